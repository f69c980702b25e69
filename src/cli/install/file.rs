//! A file that belongs to another program: read whole, and replaced at once or not at all.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// The largest configuration that is read, in bytes. Claude Code keeps more than servers in its own.
const MAX_CONFIGURATION_BYTES: u64 = 32 * 1024 * 1024;
/// The most backups of one file.
const MAX_BACKUPS: usize = 1000;

/// A configuration file as it stands.
pub(in crate::cli) struct Found {
    /// The file itself, behind any links.
    target: PathBuf,
    /// What it is; none where there is no file yet.
    about: Option<Metadata>,
    /// What is in it.
    pub(in crate::cli) text: String,
}

impl Found {
    /// Reads the file. One that is not there is empty.
    ///
    /// # Errors
    /// One line that names the file.
    pub(in crate::cli) fn read(file: &Path) -> Result<Self, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("{} {what}", file.display());
        let target = match fs::canonicalize(file) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if file.symlink_metadata().is_ok() {
                    return Err(wrong(&"is a link to a file that is not there; make that file, or remove the link"));
                }
                return Ok(Self { target: file.to_owned(), about: None, text: String::new() });
            }
            Err(error) => return Err(wrong(&format_args!("cannot be read: {error}"))),
        };
        let unreadable = |error: io::Error| wrong(&format_args!("cannot be read: {error}"));
        // Before it is opened: opening a pipe would wait for somebody to write into it.
        let about = fs::metadata(&target).map_err(unreadable)?;
        if !about.is_file() {
            return Err(wrong(&"is not a file"));
        }
        let mut bytes = Vec::new();
        let opened = File::open(&target).map_err(unreadable)?;
        opened.take(MAX_CONFIGURATION_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_CONFIGURATION_BYTES {
            return Err(wrong(&format_args!("is larger than {} MiB", MAX_CONFIGURATION_BYTES >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|_| wrong(&"is not UTF-8; save it as UTF-8"))?;
        Ok(Self { target, about: Some(about), text })
    }

    /// Replaces the file, and says where what was in it is kept. A new file can be read by its owner only where it is
    /// `private`.
    ///
    /// # Errors
    /// One line that names the file, which is as it was.
    pub(super) fn replace(&self, text: &str, private: bool) -> Result<Option<PathBuf>, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{} is left as it was: {error}", self.target.display());
        if self.about.as_ref().is_some_and(|about| about.permissions().readonly()) {
            return Err(wrong(&"it is read-only"));
        }
        let written = |error: io::Error| wrong(&error);
        let backup = match &self.about {
            Some(about) => Some(self.back_up(about).map_err(written)?),
            None => None,
        };
        let prepared = self.beside(&format!(".{}", Uuid::new_v4().simple()));
        let replaced = write_new(&prepared, text, self.about.as_ref(), private)
            .and_then(|()| self.unchanged())
            .and_then(|()| fs::rename(&prepared, &self.target));
        if let Err(error) = replaced {
            // What is of no use to anybody is not left behind; the first error is the one to tell.
            let _ = fs::remove_file(&prepared);
            backup.iter().for_each(|backup| drop(fs::remove_file(backup)));
            return Err(wrong(&error));
        }
        #[cfg(unix)]
        if let Some(folder) = self.target.parent() {
            // The new name outlives a power cut; where a file system cannot promise that, it is still written.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(backup)
    }

    /// Clients write their files too, Claude Code often.
    fn unchanged(&self) -> io::Result<()> {
        let now = match fs::read(&self.target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.about.is_none() => return Ok(()),
            now => now?,
        };
        if self.about.is_some() && now == self.text.as_bytes() {
            return Ok(());
        }
        Err(io::Error::other("another program has just written it; run the command again"))
    }

    fn back_up(&self, about: &Metadata) -> io::Result<PathBuf> {
        for number in 1..=MAX_BACKUPS {
            let ending = if number == 1 { ".before-obo".to_owned() } else { format!(".before-obo-{number}") };
            let backup = self.beside(&ending);
            match write_new(&backup, &self.text, Some(about), true) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                done => return done.map(|()| backup),
            }
        }
        Err(io::Error::other(format!("there are {MAX_BACKUPS} backups of it; remove some")))
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.target.clone().into_os_string();
        name.push(ending);
        name.into()
    }
}

/// Writes a file that is not there yet, with the owner and the permissions of `like`.
fn write_new(path: &Path, text: &str, like: Option<&Metadata>, private: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if private || like.is_some() { 0o600 } else { 0o644 });
    #[cfg(not(unix))]
    let _ = private;
    let mut file = options.open(path)?;
    #[cfg(unix)]
    if let Some(like) = like {
        use std::os::unix::fs::{MetadataExt as _, fchown};
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
    }
    if let Some(like) = like {
        file.set_permissions(like.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_kept_beside_and_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mcp.json");
        assert_eq!(Found::read(&file).unwrap().replace("1", true), Ok(None));
        for (text, backup) in [("2", "mcp.json.before-obo"), ("3", "mcp.json.before-obo-2")] {
            let found = Found::read(&file).unwrap();
            let kept = found.replace(text, true).unwrap().unwrap();
            assert_eq!(kept.file_name().unwrap(), backup);
            assert_eq!(
                (fs::read_to_string(kept).unwrap(), fs::read_to_string(&file).unwrap()),
                (found.text, text.into())
            );
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else is left there");
    }

    #[test]
    fn what_another_program_wrote_meanwhile_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mcp.json");
        let nothing = Found::read(&file).unwrap();
        fs::write(&file, "theirs").unwrap();
        assert!(nothing.replace("ours", true).unwrap_err().contains("run the command again"));
        let theirs = Found::read(&file).unwrap();
        fs::write(&file, "theirs again").unwrap();
        assert!(theirs.replace("ours", true).unwrap_err().contains("run the command again"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "theirs again");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no backup of what was not changed");
    }

    #[test]
    fn what_is_no_text_file_of_a_usual_size_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| Found::read(path).err().unwrap();
        assert!(error(folder.path()).ends_with("is not a file"));
        let utf16 = folder.path().join("utf16.json");
        fs::write(&utf16, [0xff, 0xfe, b'{', 0, b'}', 0]).unwrap();
        assert!(error(&utf16).contains("is not UTF-8"));
        let large = folder.path().join("large.json");
        File::create(&large).unwrap().set_len(MAX_CONFIGURATION_BYTES + 1).unwrap();
        assert!(error(&large).contains("is larger than 32 MiB"));
    }

    #[cfg(unix)]
    #[test]
    fn links_permissions_and_read_only_files_are_respected() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.json"), folder.path().join("mcp.json"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        let backup = Found::read(&link).unwrap().replace("new", true).unwrap().unwrap();
        assert!(link.is_symlink(), "the link stays a link");
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        for path in [&file, &backup] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640, "{}", path.display());
        }

        fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
        assert!(Found::read(&link).unwrap().replace("newer", true).unwrap_err().contains("read-only"));
        fs::remove_file(&file).unwrap();
        assert!(Found::read(&link).err().unwrap().contains("link to a file that is not there"));
        fs::remove_file(&link).unwrap();
        Found::read(&link).unwrap().replace("first", true).unwrap();
        assert_eq!(fs::metadata(&link).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
