//! Leases as file locks: the kernel frees them when their holder dies, and no clock is involved.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::{Lease, RecordKey, StoreError};

/// How often a taken lease is tried again.
const POLL: Duration = Duration::from_millis(25);

/// The folder of lease files.
pub(super) struct Locks(PathBuf);

impl Locks {
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Takes `name`, waiting up to `wait`.
    pub(super) async fn take(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        let path = self.path(name);
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            match try_take(&path).map_err(|error| unavailable(&path, &error))? {
                Some(held) => return Ok(Some(Lease::new(held))),
                None if tokio::time::Instant::now() >= deadline => return Ok(None),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Takes `name`, holding up the thread for up to `wait`. For opening the store, which happens before any task runs.
    pub(super) fn take_blocking(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        let path = self.path(name);
        let deadline = std::time::Instant::now() + wait;
        loop {
            match try_take(&path).map_err(|error| unavailable(&path, &error))? {
                Some(held) => return Ok(Some(Lease::new(held))),
                None if std::time::Instant::now() >= deadline => return Ok(None),
                None => std::thread::sleep(POLL),
            }
        }
    }

    fn path(&self, name: &RecordKey) -> PathBuf {
        use std::fmt::Write as _;
        let mut file = String::with_capacity(2 * name.len() + 5);
        for byte in name {
            let _ = write!(file, "{byte:02x}");
        }
        file.push_str(".lock");
        self.0.join(file)
    }
}

fn unavailable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot lock {}: {error}", path.display()))
}

/// A locked file. Dropping it removes the file and frees the lock, in this order.
struct Held {
    file: File,
    path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Only the holder removes the file, and whoever locks a file checks that it still is the one at its path: so
        // two can never hold locks on two files of the same name. Windows does not remove open files; there they stay.
        #[cfg(unix)]
        let _ = std::fs::remove_file(&self.path);
        #[cfg(not(unix))]
        let _ = &self.path;
        let _ = self.file.unlock();
    }
}

fn try_take(path: &Path) -> io::Result<Option<Held>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    loop {
        let file = options.open(path)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, path)? => return Ok(Some(Held { file, path: path.to_owned() })),
            // The holder before us removed the file between our opening and our locking it.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Whether `path` still leads to `file`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let ours = file.metadata()?;
    match path.symlink_metadata() {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}
