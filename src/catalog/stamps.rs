//! What manifests' files look like from outside: enough to tell that one was changed, without reading it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::source::{is_manifest, list};

/// The manifests of folders, as they were at one moment.
///
/// Compared rather than listened to: this works on every file system, over networks and in containers too, sees a link that
/// is moved and a file that is written anew under its name, and has no queue to overflow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    /// When it was written, in nanoseconds.
    modified: Option<u128>,
    /// Which file it is, when it was last touched, whose it is, and who may write it, where the system has that.
    identity: [u64; 5],
}

impl Stamps {
    /// Looks at folders as `tools.dirs` has them.
    pub fn of(dirs: &[PathBuf]) -> Self {
        let mut stamps = BTreeMap::new();
        for dir in dirs {
            stamps.insert(dir.clone(), folder(dir));
            for entry in list(dir).unwrap_or_default() {
                if entry.is_dir() {
                    stamps.insert(entry.clone(), folder(&entry));
                    let files = list(&entry).unwrap_or_default();
                    stamps.extend(files.into_iter().filter(|file| is_manifest(file)).map(|file| {
                        let stamp = Stamp::of(&file);
                        (file, stamp)
                    }));
                } else if is_manifest(&entry) {
                    let stamp = Stamp::of(&entry);
                    stamps.insert(entry, stamp);
                }
            }
        }
        Self(stamps)
    }

    /// Whether this file is there as it was then.
    pub fn has_same(&self, other: &Self, file: &str) -> bool {
        let file = Path::new(file);
        self.0.get(file) == other.0.get(file)
    }
}

/// A folder counts by what is in it, and by who may write into it.
fn folder(path: &Path) -> Option<Stamp> {
    let stamp = Stamp::of(path)?;
    let [_, _, _, owner, mode] = stamp.identity;
    Some(Stamp { bytes: 0, modified: None, identity: [0, 0, 0, owner, mode] })
}

fn modified(meta: &fs::Metadata) -> Option<u128> {
    Some(meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos())
}

impl Stamp {
    #[cfg(unix)]
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::metadata(path).ok()?;
        // Milliseconds are not enough where a file is written twice within one.
        let touched = (meta.ctime() as u64).wrapping_mul(1_000_000_000).wrapping_add(meta.ctime_nsec() as u64);
        let identity = [meta.dev(), meta.ino(), touched, u64::from(meta.uid()), u64::from(meta.mode())];
        Some(Self { bytes: meta.len(), modified: modified(&meta), identity })
    }

    #[cfg(not(unix))]
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { bytes: meta.len(), modified: modified(&meta), identity: [0; 5] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_manifest_shows_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("acme/get.toml");
        fs::create_dir_all(dir.path().join("acme")).unwrap();
        let look = || Stamps::of(&[dir.path().to_owned()]);
        let empty = look();
        fs::write(&file, "a = 1").unwrap();
        let first = look();
        assert_ne!(first, empty);
        fs::write(dir.path().join("acme/.get.toml.swp"), "x").unwrap();
        fs::write(dir.path().join("acme/notes.txt"), "x").unwrap();
        assert_eq!(look(), first, "neither is a manifest");
        // As editors save: the new text under another name, then renamed over the old one.
        let aside = dir.path().join("acme/get.toml~");
        fs::write(&aside, "a = 2").unwrap();
        fs::rename(&aside, &file).unwrap();
        let second = look();
        assert_ne!(second, first, "of the same length, and perhaps within one tick of the clock");
        assert!(!second.has_same(&first, &file.display().to_string()));
        fs::remove_file(&file).unwrap();
        assert_eq!(look(), empty);
    }
}
