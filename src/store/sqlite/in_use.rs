//! Who has the store open. Everybody shares one lock file; whoever puts another file in the store's place has it alone.

use std::fs::{File, OpenOptions, TryLockError};

use super::folder::{Folder, failed};
use crate::store::StoreError;

/// Held for as long as the store is open, or is being replaced. The kernel frees it when its holder dies.
pub(super) struct InUse(#[expect(dead_code, reason = "held for its lock")] File);

impl InUse {
    /// Shares the store with every other process.
    pub(super) fn shared(folder: &Folder) -> Result<Self, StoreError> {
        let file = open(folder)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable(format!(
                "a backup is being restored into {}; try again when that is done",
                folder.path().display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed("lock", &folder.in_use(), &error)),
        }
    }

    /// Has the store alone.
    pub(super) fn alone(folder: &Folder) -> Result<Self, StoreError> {
        let file = open(folder)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable(format!(
                "another obo process uses {}; end it, then try again",
                folder.path().display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed("lock", &folder.in_use(), &error)),
        }
    }
}

fn open(folder: &Folder) -> Result<File, StoreError> {
    let path = folder.in_use();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&path).map_err(|error| failed("open", &path, &error))
}
