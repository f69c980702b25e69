//! Another file in the store's place.
//!
//! A backup is copied into a folder of its own inside the data folder, checked there, and opened there as a store. Only
//! then are files moved, with a mark that says so: until the mark is there, nothing has changed; once it is, nobody opens
//! the store before the moving was brought to its end.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::folder::{Folder, create_private, failed};
use super::in_use::InUse;
use super::lease::Locks;
use super::schema;
use super::upkeep::{on_its_own_thread, problems_of};
use crate::store::StoreError;

/// The mark that files are being moved. It names the folder that the old ones go to.
const MOVING: &str = "moving";

/// The note that what is in the store is elsewhere now. It says where.
const MOVED: &str = "moved";

/// How long the prepared store may take to be closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// How often that is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Bytes of SQLite's file header that are looked at.
const HEADER_BYTES: usize = 20;

/// Refuses a store whose files were being moved when a restore was cut off.
pub(super) fn refuse_interrupted(data_dir: &Path) -> Result<(), StoreError> {
    let mark = data_dir.join("restoring").join(MOVING);
    match mark.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(StoreError::Unusable(format!(
            "a restore into {} was cut off; run `obo vault restore` again, which brings it to its end",
            data_dir.display()
        ))),
        Err(error) => Err(failed("look at", &mark, &error)),
    }
}

/// Where a store was moved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The place, in words.
    pub place: String,
    /// The vault's id.
    pub vault: String,
}

/// Where the store in a data folder was moved to, if it was.
///
/// # Errors
/// [`StoreError::Unavailable`] when the note cannot be read.
pub fn moved_to(data_dir: &Path) -> Result<Option<Moved>, StoreError> {
    let note = data_dir.join(MOVED);
    match std::fs::read_to_string(&note) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &note, &error)),
        Ok(text) => {
            let mut lines = text.lines().map(str::to_owned);
            let mut line = || lines.next().unwrap_or_default();
            Ok(Some(Moved { place: line(), vault: line() }))
        }
    }
}

/// Refuses a store that was moved elsewhere: going on with it would end at providers what is used there.
pub(super) fn refuse_moved(data_dir: &Path) -> Result<(), StoreError> {
    let Some(Moved { place, .. }) = moved_to(data_dir)? else { return Ok(()) };
    Err(StoreError::Unusable(format!(
        "the vault in {} was moved to the {place}; name that in obo.toml. What is here is as it was then: to go back to it \
         for good, remove {}",
        data_dir.display(),
        data_dir.join(MOVED).display()
    )))
}

/// Writes the note that [`moved_to`] reads.
pub(super) fn note_moved(data_dir: &Path, moved: &Moved) -> Result<(), StoreError> {
    let text = format!("{}\n{}\n", moved.place, moved.vault);
    let (note, unfinished) = (data_dir.join(MOVED), data_dir.join("moved.new"));
    let _ = std::fs::remove_file(&unfinished);
    write_durably(&unfinished, text.as_bytes())?;
    std::fs::rename(&unfinished, &note).map_err(|error| failed("write", &note, &error))?;
    sync(data_dir)
}

/// A backup on its way into a data folder. Dropping it leaves the folder as it was.
pub struct Restoring {
    folder: Folder,
    _alone: InUse,
}

impl Restoring {
    /// Brings a restore to its end that was cut off while it moved files. Says whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], also while another process uses the folder.
    pub async fn take_up(data_dir: &Path) -> Result<bool, StoreError> {
        if refuse_interrupted(data_dir).is_ok() {
            return Ok(false);
        }
        let data_dir = data_dir.to_owned();
        on_its_own_thread(move || {
            let folder = Folder::without_database(&data_dir)?;
            let _alone = InUse::alone(&folder)?;
            move_files(&folder)?;
            Ok(true)
        })
        .await
    }

    /// Copies a backup beside the store, and checks it. `replace`: there may be a store already.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when it is no backup or a damaged one, or there is a store already;
    /// [`StoreError::Unavailable`] while another process uses the folder, or the disk fails.
    pub async fn begin(backup: &Path, data_dir: &Path, replace: bool) -> Result<Self, StoreError> {
        let (backup, data_dir) = (backup.to_owned(), data_dir.to_owned());
        on_its_own_thread(move || {
            // First, so that nothing is made for a backup that is not there.
            let mut source = open_backup(&backup)?;
            let folder = Folder::without_database(&data_dir)?;
            let alone = InUse::alone(&folder)?;
            refuse_interrupted(&data_dir)?;
            if !replace && folder.database().symlink_metadata().is_ok() {
                return Err(StoreError::Unusable(format!(
                    "{} has a vault already; name an empty folder with --data-dir, or say --replace, which keeps the \
                     old one beside the new",
                    data_dir.display()
                )));
            }
            // What an earlier try has left.
            remove(&folder.restoring())?;
            let restoring = Self { folder, _alone: alone };
            restoring.copy(&backup, &mut source)?;
            Ok(restoring)
        })
        .await
    }

    /// A data folder with the backup in it. Its store must be closed before [`Restoring::finish`].
    pub fn prepared(&self) -> PathBuf {
        self.folder.restoring()
    }

    /// Puts the backup in the store's place. Gives the folder that has the old one now, where there was one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]. What was begun is brought to its end by [`Restoring::take_up`].
    pub async fn finish(self, now: Timestamp) -> Result<Option<PathBuf>, StoreError> {
        on_its_own_thread(move || {
            // Its own connections end with threads that end by themselves, a moment later.
            let prepared = Folder::without_database(&self.folder.restoring())?;
            let deadline = std::time::Instant::now() + CLOSE_WITHIN;
            let closed = loop {
                match InUse::alone(&prepared) {
                    Err(_) if std::time::Instant::now() < deadline => std::thread::sleep(POLL),
                    other => break other?,
                }
            };
            drop(closed);
            let has_old = self.folder.parts().iter().any(|path| path.symlink_metadata().is_ok());
            let name = format!("replaced-{}", now.strftime("%Y%m%dT%H%M%SZ"));
            let aside = self.folder.path().join(&name);
            if has_old {
                std::fs::DirBuilder::new().create(&aside).map_err(|error| failed("make the folder", &aside, &error))?;
                make_private(&aside)?;
            }
            let mark = self.folder.restoring().join(MOVING);
            write_durably(&mark, name.as_bytes())?;
            move_files(&self.folder)?;
            Ok(has_old.then_some(aside))
        })
        .await
    }

    fn copy(&self, backup: &Path, source: &mut File) -> Result<(), StoreError> {
        let prepared = self.folder.restoring();
        create_private(&prepared).map_err(|error| failed("make the folder", &prepared, &error))?;
        let staged = staged(&self.folder);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&staged).map_err(|error| failed("make the file", &staged, &error))?;
        std::io::copy(source, &mut file)
            .and_then(|_| file.sync_all())
            .map_err(|error| failed("copy the backup to", &staged, &error))?;
        drop(file);

        let folder = Folder::secure(&prepared)?;
        // Says what is wrong with another program's file, and with a newer obo's.
        let named = |error: StoreError| match error {
            StoreError::Unusable(text) => {
                StoreError::Unusable(text.replace(&staged.display().to_string(), &backup.display().to_string()))
            }
            other => other,
        };
        let db = schema::open(&folder, &Locks::in_folder(folder.locks())).map_err(named)?;
        let check = || -> rusqlite::Result<Vec<String>> {
            let problems = problems_of(&db, "integrity_check")?;
            db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
            Ok(problems)
        };
        let problems = check().map_err(|error| schema::unusable_or_unavailable(backup, &error))?;
        match problems.first() {
            None => Ok(()),
            Some(first) => {
                Err(StoreError::Unusable(format!("{} is damaged ({first}); take another backup", backup.display())))
            }
        }
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        if refuse_interrupted(self.folder.path()).is_ok() {
            // What stays is removed by the next try.
            let _ = remove(&self.folder.restoring());
        }
    }
}

fn open_backup(path: &Path) -> Result<File, StoreError> {
    let mut file = File::open(path).map_err(|error| failed("open the backup", path, &error))?;
    let no_backup =
        || StoreError::Unusable(format!("{} is not a backup that `obo vault backup` has written", path.display()));
    let mut header = [0; HEADER_BYTES];
    if !file.metadata().is_ok_and(|found| found.is_file()) || file.read_exact(&mut header).is_err() {
        return Err(no_backup());
    }
    // SQLite's file format §1.3: bytes 18 and 19 are 2 in a file with a write-ahead log. A backup has none; a copy of a
    // store that was in use may lack what its log had.
    if !header.starts_with(b"SQLite format 3\0") || header[18..20] != [1, 1] {
        return Err(no_backup());
    }
    file.rewind().map_err(|error| failed("read the backup", path, &error))?;
    Ok(file)
}

/// Moves the old files aside and the new one into place, from wherever an earlier try stopped.
fn move_files(folder: &Folder) -> Result<(), StoreError> {
    let (mark, staged) = (folder.restoring().join(MOVING), staged(folder));
    let name = std::fs::read_to_string(&mark).map_err(|error| failed("read", &mark, &error))?;
    let aside = folder.path().join(name);
    let rename = |from: &Path, to: &Path| match std::fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| failed("move", from, &error)),
    };
    // Once the new file has moved, what stands in the old one's place is it.
    if staged.symlink_metadata().is_ok() {
        for part in folder.parts() {
            if let Some(name) = part.file_name() {
                rename(&part, &aside.join(name))?;
            }
        }
        rename(&folder.path().join(MOVED), &aside.join(MOVED))?;
        sync(&aside)?;
        rename(&staged, &folder.database())?;
        sync(folder.path())?;
    }
    // The mark goes first: without it the rest is only left over.
    std::fs::remove_file(&mark).map_err(|error| failed("remove", &mark, &error))?;
    sync(&folder.restoring())?;
    remove(&folder.restoring())
}

fn staged(folder: &Folder) -> PathBuf {
    folder.restoring().join("obo.db")
}

fn remove(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", folder, &error)),
        _ => Ok(()),
    }
}

fn make_private(folder: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    {
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder, owner_only).map_err(|error| failed("protect", folder, &error))?;
    }
    let _ = folder;
    Ok(())
}

fn write_durably(path: &Path, text: &[u8]) -> Result<(), StoreError> {
    use std::io::Write as _;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(text)?;
        file.sync_all()
    };
    write().map_err(|error| failed("write", path, &error))?;
    path.parent().map_or(Ok(()), sync)
}

/// Makes names in a folder durable. Windows does so by itself.
pub(super) fn sync(folder: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // There is no such folder where nothing was moved aside.
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("write", folder, &error)),
        _ => {}
    }
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::{SqliteStore, upkeep};
    use crate::store::{Record, Store as _, Table, Write};

    async fn with(data_dir: &Path, byte: u8) -> SqliteStore {
        let store = SqliteStore::open(data_dir).unwrap();
        let record = Record {
            table: Table::Grant,
            key: [byte; 32],
            owner: [0; 32],
            generation: 0,
            expires_at: None,
            sealed: vec![],
        };
        store.apply(vec![Write::Put(record)]).await.unwrap();
        store
    }

    async fn holds(data_dir: &Path) -> Vec<u8> {
        let store = SqliteStore::open(data_dir).unwrap();
        store.scan(Table::Grant, None, 10).await.unwrap().iter().map(|record| record.key[0]).collect()
    }

    /// A folder with record 1, and a backup with record 2.
    async fn bench() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (data, other, backup) = (dir.path().join("data"), dir.path().join("other"), dir.path().join("backup"));
        drop(with(&data, 1).await);
        let store = with(&other, 2).await;
        upkeep::backup(&other, &backup).await.unwrap();
        drop(store);
        (dir, data, backup)
    }

    fn noon() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    #[tokio::test]
    async fn the_old_one_is_kept_beside() {
        let (_dir, data, backup) = bench().await;
        let restoring = Restoring::begin(&backup, &data, true).await.unwrap();
        assert_eq!(holds(&restoring.prepared()).await, [2]);
        let aside = restoring.finish(noon()).await.unwrap().unwrap();
        assert_eq!(aside, data.join("replaced-20261124T120000Z"));
        assert_eq!((holds(&data).await, holds(&aside).await), (vec![2], vec![1]));
        assert!(!data.join("restoring").exists());
    }

    /// The process died at each of the moves, an old file with a log among them.
    #[tokio::test]
    async fn moving_that_was_cut_off_is_brought_to_its_end_before_anybody_opens_the_store() {
        for moved in 0..=4 {
            let (_dir, data, backup) = bench().await;
            let restoring = Restoring::begin(&backup, &data, true).await.unwrap();
            let (prepared, aside) = (restoring.prepared(), data.join("replaced-1"));
            let folder = Folder::without_database(&data).unwrap();
            std::fs::File::create(data.join("obo.db-wal")).unwrap();
            #[cfg(unix)]
            std::fs::set_permissions(data.join("obo.db-wal"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            create_private(&aside).unwrap();
            write_durably(&prepared.join(MOVING), b"replaced-1").unwrap();
            let moves = [
                (folder.database(), aside.join("obo.db")),
                (data.join("obo.db-wal"), aside.join("obo.db-wal")),
                (prepared.join("obo.db"), folder.database()),
            ];
            for (from, to) in moves.iter().take(moved) {
                std::fs::rename(from, to).unwrap();
            }
            drop(restoring);
            let refused = SqliteStore::open(&data).err().unwrap().to_string();
            assert!(refused.contains("was cut off"), "{refused}");
            assert!(Restoring::begin(&backup, &data, true).await.is_err(), "no other restore goes over it");
            assert!(Restoring::take_up(&data).await.unwrap());
            assert_eq!((holds(&data).await, holds(&aside).await), (vec![2], vec![1]), "{moved}");
            assert!(!Restoring::take_up(&data).await.unwrap());
        }
    }

    #[tokio::test]
    async fn nothing_changes_before_the_moving() {
        let (_dir, data, backup) = bench().await;
        let refused = Restoring::begin(&backup, &data, false).await.err().unwrap().to_string();
        assert!(refused.contains("--replace"), "{refused}");
        let open = SqliteStore::open(&data).unwrap();
        let refused = Restoring::begin(&backup, &data, true).await.err().unwrap().to_string();
        assert!(refused.contains("another obo process uses"), "{refused}");
        drop(open);

        let restoring = Restoring::begin(&backup, &data, true).await.unwrap();
        let refused = SqliteStore::open(&data).err().unwrap().to_string();
        assert!(refused.contains("is being restored"), "{refused}");
        drop(restoring);
        assert_eq!(holds(&data).await, [1]);
        assert!(!data.join("restoring").exists());
    }

    #[tokio::test]
    async fn only_a_backup_is_restored() {
        let (dir, data, backup) = bench().await;
        let whole = std::fs::read(&backup).unwrap();
        let other = dir.path().join("other/obo.db");
        let path = dir.path().join("x");
        let refused = async |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = Restoring::begin(&path, &data, true).await.err().expect("it must be refused").to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            error
        };
        assert!(refused(b"").await.contains("is not a backup"));
        assert!(refused(b"SQLite format 3").await.contains("is not a backup"));
        assert!(refused(&std::fs::read(other).unwrap()).await.contains("is not a backup"), "a copy of a store in use");
        // user_version at 60, application_id at 68 (SQLite's file format §1.3).
        let edited = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            bytes
        };
        assert!(refused(&edited(63, 9)).await.contains("newer obo"));
        assert!(refused(&edited(71, 0)).await.contains("is not a vault of obo"));
        let mut damaged = whole.clone();
        damaged[4096..8192].fill(0xee);
        assert!(refused(&damaged).await.contains("is damaged"));
        assert!(refused(&whole[..whole.len() - 4096]).await.contains("is damaged"));
        assert!(Restoring::begin(dir.path(), &data, true).await.is_err());
        assert!(Restoring::begin(&dir.path().join("none"), &data, true).await.is_err());
        assert_eq!(holds(&data).await, [1]);
        assert!(!data.join("restoring").exists());
        std::fs::write(&path, &whole).unwrap();
        Restoring::begin(&path, &data, true).await.unwrap();
    }

    #[tokio::test]
    async fn a_backup_is_whole_private_and_new() {
        let (dir, data, backup) = bench().await;
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&backup.metadata().unwrap()) & 0o777, 0o600);
        let before = std::fs::read(&backup).unwrap();
        assert!(upkeep::backup(&data, &backup).await.unwrap_err().to_string().contains("exists already"));
        assert_eq!(std::fs::read(&backup).unwrap(), before);
        assert!(upkeep::backup(&data, &dir.path().join("no/folder")).await.is_err());
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| !name.to_string_lossy().starts_with('.')), "nothing is left beside it");
    }
}
