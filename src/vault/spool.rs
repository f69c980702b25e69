//! What a provider answered, in a file of its own while the store has not taken it.
//!
//! A provider that rotates gives a refresh token once. If the store cannot be written then, because its server is away or
//! the disk is full, the answer is in memory only, and gone with the process. So it is kept here, sealed like a record,
//! until it has been written: by this process, or by whoever finds it in the folder later.
//!
//! An entry is named after its grant, and after its own bytes: a file that was cut off does not match its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::store::RecordKey;

/// Largest entry, in bytes: two tokens, a few candidates, and as many scopes with each as an answer may have.
const MAX_ENTRY_BYTES: u64 = 4 << 20; // 4 MiB

/// Most entries read in one round.
const MAX_ENTRIES: usize = 10_000;

/// How much of the hash of its bytes stands in an entry's name, in bytes.
const HASH_BYTES: usize = 8;

/// When an answer is written to its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// When the store has not taken it at once. For a store in files beside it: its commit is as quick and as durable as
    /// the entry would be, so that an entry first would only make the unguarded moment longer.
    WhenLate,
    /// Always, before the store is asked: for a store on another machine, which may be away, or slow.
    First,
}

/// Where answers wait. A seam: tests put a disk that fails behind it.
#[async_trait::async_trait]
pub(super) trait Entries: Send + Sync {
    /// Keeps an entry durably.
    async fn keep(&self, name: String, bytes: Vec<u8>) -> io::Result<()>;
    /// Reads an entry; none: it is gone.
    async fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Removes an entry, if it is there.
    async fn remove(&self, name: &str) -> io::Result<()>;
    /// The names of all entries.
    async fn names(&self) -> io::Result<Vec<String>>;
}

/// The name of a grant's entry with these bytes.
pub(super) fn name_of(key: &RecordKey, bytes: &[u8]) -> String {
    format!("{}-{}", hex(key), hex(&Sha256::digest(bytes)[..HASH_BYTES]))
}

/// The grant that an entry is for. None: it is something else.
pub(super) fn key_in(name: &str) -> Option<RecordKey> {
    let (key, hash) = name.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if key.len() != 64 || hash.len() != 2 * HASH_BYTES || !digits(key) || !digits(hash) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&key[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Entries as files of a folder that only its owner can look into. It is made with the first of them.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }
}

#[async_trait::async_trait]
impl Entries for Folder {
    async fn keep(&self, name: String, bytes: Vec<u8>) -> io::Result<()> {
        let folder = self.0.clone();
        blocking(move || keep(&folder, &name, &bytes)).await
    }

    async fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.0.join(name);
        blocking(move || none_if_missing(File::open(path))?.map(whole).transpose()).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.0.join(name);
        blocking(move || none_if_missing(std::fs::remove_file(path)).map(drop)).await
    }

    async fn names(&self) -> io::Result<Vec<String>> {
        let folder = self.0.clone();
        blocking(move || {
            let Some(files) = none_if_missing(std::fs::read_dir(folder))? else { return Ok(Vec::new()) };
            let mut names = Vec::new();
            for file in files.take(MAX_ENTRIES) {
                names.extend(file?.file_name().into_string().ok().filter(|name| key_in(name).is_some()));
            }
            Ok(names)
        })
        .await
    }
}

fn keep(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    let path = folder.join(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    match written {
        Ok(()) => sync_folder(folder),
        // The same bytes are there already.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
    }
}

/// Makes the name of a new file as durable as its bytes. Windows has no such thing, and needs none.
fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

fn whole(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_ENTRY_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_come_back_whole_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::at(dir.path().join("spool"));
        assert!(folder.names().await.unwrap().is_empty(), "there is no folder before there is an entry");
        let name = name_of(&[7; 32], b"sealed");
        assert_eq!(key_in(&name), Some([7; 32]));
        for _ in 0..2 {
            folder.keep(name.clone(), b"sealed".to_vec()).await.unwrap();
        }
        std::fs::write(dir.path().join("spool/notes.txt"), "x").unwrap();
        assert_eq!(folder.names().await.unwrap(), std::slice::from_ref(&name), "what is no entry is left alone");
        assert_eq!(folder.read(&name).await.unwrap().unwrap(), b"sealed");
        #[cfg(unix)]
        for (path, mode) in [(dir.path().join("spool"), 0o700), (dir.path().join("spool").join(&name), 0o600)] {
            let found = std::fs::metadata(path).unwrap().permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&found) & 0o777, mode);
        }
        for _ in 0..2 {
            folder.remove(&name).await.unwrap();
        }
        assert!(folder.read(&name).await.unwrap().is_none());
    }

    #[test]
    fn only_names_of_entries_are_names_of_grants() {
        let good = name_of(&[0xab; 32], b"");
        assert!(key_in(&good).is_some());
        for bad in ["", "-", "../x", &good.to_uppercase(), &good[1..], &format!("{good}0"), &good.replace('-', "_")] {
            assert_eq!(key_in(bad), None, "{bad}");
        }
        let wide = format!("{}-{}", "é".repeat(32), &good[65..]);
        assert_eq!(key_in(&wide), None);
    }
}
