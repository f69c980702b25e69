//! The file as a whole, for the operator: how large it is, what is in it, and whether it is sound.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::Connection;

use super::folder::{Folder, failed};
use super::{restore, schema};
use crate::secret::random_text;
use crate::store::{Count, Examined, Place, StoreError, Table, keyring};

/// Most problems that a check names.
const MAX_PROBLEMS: u32 = 20;

/// Looks at the store in a data folder. Other processes may go on using it.
///
/// # Errors
/// As [`super::SqliteStore::open`].
pub async fn examine(data_dir: &Path, now: Timestamp) -> Result<Examined, StoreError> {
    let data_dir = data_dir.to_owned();
    on_its_own_thread(move || {
        let folder = Folder::secure(&data_dir)?;
        let file = folder.database();
        let mut bytes = 0;
        for part in folder.parts() {
            bytes += part.metadata().map_or(0, |found| found.len());
        }
        let look = || -> rusqlite::Result<Examined> {
            let db = schema::connect(&file)?;
            let (_, format) = schema::format_of(&db)?;
            // A file that is not sound may fail every further question.
            let problems = problems_of(&db, "quick_check")?;
            let counts = if problems.is_empty() { counts_of(&db, now)? } else { Vec::new() };
            let log = if problems.is_empty() {
                db.query_row("SELECT count(*) FROM log", [], |row| super::number(row, 0))?
            } else {
                0
            };
            Ok(Examined { place: Place::File(file.clone()), format, bytes, counts, log, problems })
        };
        look().map_err(|error| schema::unusable_or_unavailable(&file, &error))
    })
    .await
}

/// Writes a copy of the store to a new file, as it stands at one moment. Other processes may go on using it. Sealed
/// records stay sealed. Gives the copy's size in bytes.
///
/// # Errors
/// [`StoreError::Unusable`] when there is such a file already; [`StoreError::Unavailable`] when it cannot be written.
pub async fn backup(data_dir: &Path, to: &Path) -> Result<u64, StoreError> {
    backup_with(data_dir, to, Vec::new()).await
}

/// The same for a store whose grants have their bodies elsewhere: each is put into the copy in the place of what leads
/// to it, so that the copy is a store of its own.
pub(in crate::store) async fn backup_with(
    data_dir: &Path,
    to: &Path,
    bodies: Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<u64, StoreError> {
    let (data_dir, to) = (data_dir.to_owned(), to.to_owned());
    on_its_own_thread(move || {
        let exists = || StoreError::Unusable(format!("{} exists already; name a new file", to.display()));
        if to.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let folder = Folder::secure(&data_dir)?;
        // It appears whole or not at all, under its name.
        let partial = beside(&to);
        let written = copy_into(&folder.database(), &partial, &bodies).and_then(|bytes| {
            // Unlike a rename, a link never takes the place of a file that has appeared since.
            match std::fs::hard_link(&partial, &to) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists()),
                Err(error) => Err(failed("write", &to, &error)),
                Ok(()) => Ok(bytes),
            }
        });
        let _ = std::fs::remove_file(&partial);
        let bytes = written?;
        restore::sync(to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(bytes)
    })
    .await
}

/// A name beside `path` that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}-{}", random_text::<9>()))
}

fn copy_into(database: &Path, to: &Path, bodies: &[(Vec<u8>, Vec<u8>)]) -> Result<u64, StoreError> {
    let text = to
        .to_str()
        .ok_or_else(|| StoreError::Unusable(format!("{} is not a name that SQLite can write to", to.display())))?;
    // Made before SQLite does, which would make it readable for everybody.
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(to).map_err(|error| failed("write", to, &error))?;
    let copy = || -> rusqlite::Result<Vec<String>> {
        schema::connect(database)?.execute("VACUUM INTO ?1", [text])?;
        let mut copy = schema::connect(to)?;
        fill(&mut copy, bodies)?;
        problems_of(&copy, "quick_check")
    };
    let problems = copy().map_err(|error| StoreError::Unavailable(format!("cannot copy the vault: {error}")))?;
    if let Some(first) = problems.first() {
        return Err(StoreError::Unavailable(format!("the copy of the vault is not sound ({first}); try another disk")));
    }
    file.sync_all().and_then(|()| file.metadata()).map(|found| found.len()).map_err(|error| failed("write", to, &error))
}

/// Puts bodies into their places, and forgets where they were.
fn fill(copy: &mut Connection, bodies: &[(Vec<u8>, Vec<u8>)]) -> rusqlite::Result<()> {
    let transaction = copy.transaction()?;
    {
        let mut put = transaction.prepare("UPDATE records SET sealed = ?3 WHERE kind = ?1 AND sealed = ?2")?;
        for (leads_to, body) in bodies {
            put.execute(rusqlite::params![Table::Grant as u8, leads_to, body])?;
        }
        transaction.execute("DELETE FROM records WHERE kind = ?1", [Table::KeyringEntry as u8])?;
    }
    transaction.commit()
}

/// Whether grants have their bodies elsewhere.
pub(super) fn bodies_elsewhere(db: &Connection) -> rusqlite::Result<bool> {
    let mark = rusqlite::params![Table::KeyringEntry as u8, keyring::MARK];
    db.query_row("SELECT count(*) FROM records WHERE kind = ?1 AND key = ?2", mark, |row| row.get(0))
}

/// What SQLite finds wrong with a file.
pub(super) fn problems_of(db: &Connection, check: &'static str) -> rusqlite::Result<Vec<String>> {
    let found: rusqlite::Result<Vec<String>> = db
        .prepare(&format!("PRAGMA {check}({MAX_PROBLEMS})"))
        .and_then(|mut check| check.query_map([], |row| row.get(0))?.collect());
    let mut found = match found {
        // Damage can be so bad that the check itself ends with it.
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
            return Ok(vec![error.to_string()]);
        }
        found => found?,
    };
    found.retain(|line| line != "ok");
    Ok(found)
}

fn counts_of(db: &Connection, now: Timestamp) -> rusqlite::Result<Vec<Count>> {
    db.prepare(
        "SELECT kind, count(*), count(CASE WHEN expires_at < ?1 THEN 1 END) FROM records GROUP BY kind ORDER BY kind",
    )?
    .query_map([now.as_microsecond()], |row| {
        let kind = super::number(row, 0)?;
        Ok(Count {
            table: Table::ALL.into_iter().find(|table| u64::from(*table as u8) == kind),
            records: super::number(row, 1)?,
            expired: super::number(row, 2)?,
        })
    })?
    .collect()
}

/// Runs what may take minutes on a thread that serves nobody else.
pub(super) async fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let ended = |_| StoreError::Unavailable("a thread for the vault's file could not be run".to_owned());
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}
