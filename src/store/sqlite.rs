//! The store of one machine: a SQLite file in the data folder, shared by every obo process of its owner.
//!
//! Writes go through one thread that commits whatever has queued up together, so that many small writes share one
//! flush to disk. A single record is read where it is asked for, everything longer by two threads with connections of
//! their own; in WAL mode reads never wait for a writer.
//! Leases are file locks, which the kernel frees when their holder dies.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    Examined, Lease, LogEntry, MAX_LOG_BODY_BYTES, MAX_ROWS, MAX_SEALED_BYTES, Record, RecordKey, Store, StoreError,
    Table, Write,
};

mod at_hand;
mod folder;
mod in_use;
mod lease;
mod restore;
mod schema;
pub mod upkeep;
mod writer;

use at_hand::AtHand;
use folder::Folder;
use in_use::InUse;
use lease::Locks;
use writer::{Readers, Writer};

pub use restore::{Moved, Restoring, moved_to};

/// Rows removed in one transaction by [`Store::prune`], so that it never holds up other writers for long.
const PRUNE_ROWS: usize = 1_000;

/// Records in a SQLite file. Several processes may open the same folder.
pub struct SqliteStore {
    writer: Writer,
    readers: Readers,
    at_hand: AtHand,
    locks: Locks,
    folder: PathBuf,
    bodies_elsewhere: bool,
    /// Last, so that it is freed when the connections are closed.
    _in_use: InUse,
}

impl SqliteStore {
    /// Opens the store in `data_dir`, and makes the folder and the file where there are none.
    ///
    /// Opening is cheap: no record is read and no key is needed. It blocks for a few file operations.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when the folder or a file in it could be read by others, belongs to somebody else, is a
    /// link, lies on a network file system, or was written by a newer obo; [`StoreError::Unavailable`] when the disk
    /// fails.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let in_use = InUse::shared(&Folder::without_database(data_dir)?)?;
        Self::open_in(data_dir, in_use)
    }

    /// The same, for as long as no other process has it open: to move what is in it elsewhere.
    ///
    /// # Errors
    /// As [`SqliteStore::open`]; [`StoreError::Unavailable`] while another process has it open.
    pub fn open_alone(data_dir: &Path) -> Result<Self, StoreError> {
        let in_use = InUse::alone(&Folder::without_database(data_dir)?)?;
        Self::open_in(data_dir, in_use)
    }

    fn open_in(data_dir: &Path, in_use: InUse) -> Result<Self, StoreError> {
        restore::refuse_interrupted(data_dir)?;
        restore::refuse_moved(data_dir)?;
        let folder = Folder::secure(data_dir)?;
        let locks = Locks::in_folder(folder.locks());
        let connection = schema::open(&folder, &locks)?;
        let bodies_elsewhere = upkeep::bodies_elsewhere(&connection)
            .map_err(|error| schema::unusable_or_unavailable(&folder.database(), &error))?;
        let (writer, readers) = (Writer::start(connection)?, Readers::start(folder.database())?);
        let at_hand = AtHand::new(folder.database());
        Ok(Self { writer, readers, at_hand, locks, folder: data_dir.to_owned(), bodies_elsewhere, _in_use: in_use })
    }

    /// Notes durably that what is in the store is elsewhere now, and which vault it was: nobody opens it again. Those who
    /// have it open go on, so this is for who has it alone.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn note_moved(&self, place: &str, vault: &str) -> Result<(), StoreError> {
        restore::note_moved(&self.folder, &Moved { place: place.to_owned(), vault: vault.to_owned() })
    }

    /// Whether the bodies of grants were kept in the OS keyring when it was opened, so that only [`super::keyring`] can
    /// read them.
    pub fn bodies_elsewhere(&self) -> bool {
        self.bodies_elsewhere
    }
}

impl SqliteStore {
    async fn log_page(&self, sql: &'static str, from: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let limit = limit.min(MAX_ROWS) as i64;
        self.readers
            .read(move |db| {
                db.prepare_cached(sql)?
                    .query_map(params![from, limit], |row| {
                        let entry = LogEntry { writer: row.get(1)?, seq: number(row, 2)?, body: row.get(3)? };
                        Ok((number(row, 0)?, entry))
                    })?
                    .collect()
            })
            .await
    }
}

#[async_trait::async_trait]
impl Store for SqliteStore {
    async fn examine(&self, now: Timestamp) -> Result<Examined, StoreError> {
        upkeep::examine(&self.folder, now).await
    }

    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let key = *key;
        let find = move |db: &Connection| {
            db.prepare_cached(
                "SELECT key, owner, generation, expires_at, sealed FROM records WHERE kind = ?1 AND key = ?2",
            )?
            .query_row(params![table as u8, key], |row| record(table, row))
            .optional()
        };
        match self.at_hand.read(find) {
            Some(found) => found,
            None => self.readers.read(find).await,
        }
    }

    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        let keys = keys.to_vec();
        self.readers
            .read(move |db| {
                let mut select = db.prepare_cached("SELECT generation FROM records WHERE kind = ?1 AND key = ?2")?;
                let mut found = Vec::with_capacity(keys.len());
                for key in keys {
                    let generation = select.query_row(params![table as u8, key], |row| number(row, 0)).optional()?;
                    found.extend(generation.map(|generation| (key, generation)));
                }
                Ok(found)
            })
            .await
    }

    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        let owner = *owner;
        self.readers
            .read(move |db| {
                db.prepare_cached(
                    "SELECT key, owner, generation, expires_at, sealed FROM records
                     WHERE kind = ?1 AND owner = ?2 ORDER BY key",
                )?
                .query_map(params![table as u8, owner], |row| record(table, row))?
                .collect()
            })
            .await
    }

    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        // The empty key sorts before every key.
        let after = after.map_or_else(Vec::new, |key| key.to_vec());
        let limit = limit.min(MAX_ROWS) as i64;
        self.readers
            .read(move |db| {
                db.prepare_cached(
                    "SELECT key, owner, generation, expires_at, sealed FROM records
                     WHERE kind = ?1 AND key > ?2 ORDER BY key LIMIT ?3",
                )?
                .query_map(params![table as u8, after, limit], |row| record(table, row))?
                .collect()
            })
            .await
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.writer.submit(move |db| writes.iter().try_for_each(|write| apply(db, write))).await
    }

    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let sql = "SELECT position, writer, seq, body FROM log WHERE position > ?1 ORDER BY position LIMIT ?2";
        self.log_page(sql, after, limit).await
    }

    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let sql = "SELECT position, writer, seq, body FROM log WHERE position < ?1 ORDER BY position DESC LIMIT ?2";
        self.log_page(sql, before, limit).await
    }

    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut removed = 0;
        loop {
            let round = self
                .writer
                .submit(move |db| {
                    let rows = db
                        .prepare_cached(
                            "DELETE FROM records WHERE rowid IN
                               (SELECT rowid FROM records WHERE expires_at < ?1 LIMIT ?2)",
                        )
                        .and_then(|mut delete| delete.execute(params![now.as_microsecond(), PRUNE_ROWS as i64]))?;
                    Ok(rows)
                })
                .await?;
            removed += round;
            if round < PRUNE_ROWS {
                return Ok(removed);
            }
        }
    }

    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        self.locks.take(name, wait).await
    }
}

/// Why one job of a batch was not done.
enum JobError {
    /// A condition does not hold: this job alone is undone.
    Conflict,
    /// The job itself cannot be stored: it alone is undone.
    Refused(String),
    /// The database failed: the whole batch is.
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for JobError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::ConstraintViolation) => Self::Refused(error.to_string()),
            _ => Self::Database(error),
        }
    }
}

/// Makes one change inside the open transaction.
fn apply(db: &Connection, write: &Write) -> Result<(), JobError> {
    let changed = match write {
        Write::Insert(new) => {
            bounded("a record", new.sealed.len(), MAX_SEALED_BYTES)?;
            db.prepare_cached(
                "INSERT INTO records (kind, key, owner, generation, expires_at, sealed) VALUES (?1, ?2, ?3, 1, ?4, ?5)
                 ON CONFLICT (kind, key) DO NOTHING",
            )?
            .execute(params![new.table as u8, new.key, new.owner, micros(new), new.sealed])?
        }
        Write::Replace(new) => {
            bounded("a record", new.sealed.len(), MAX_SEALED_BYTES)?;
            db.prepare_cached(
                "UPDATE records SET owner = ?3, generation = generation + 1, expires_at = ?4, sealed = ?5
                 WHERE kind = ?1 AND key = ?2 AND generation = ?6",
            )?
            .execute(params![
                new.table as u8,
                new.key,
                new.owner,
                micros(new),
                new.sealed,
                as_stored(new.generation)
            ])?
        }
        Write::Put(new) => {
            bounded("a record", new.sealed.len(), MAX_SEALED_BYTES)?;
            db.prepare_cached(
                "INSERT INTO records (kind, key, owner, generation, expires_at, sealed) VALUES (?1, ?2, ?3, 1, ?4, ?5)
                 ON CONFLICT (kind, key) DO UPDATE SET owner = excluded.owner, generation = generation + 1,
                   expires_at = excluded.expires_at, sealed = excluded.sealed",
            )?
            .execute(params![new.table as u8, new.key, new.owner, micros(new), new.sealed])?
        }
        Write::Reseal { table, key, before, sealed } => {
            bounded("a record", sealed.len(), MAX_SEALED_BYTES)?;
            db.prepare_cached("UPDATE records SET sealed = ?3 WHERE kind = ?1 AND key = ?2 AND sealed = ?4")?
                .execute(params![*table as u8, key, sealed, before])?
        }
        Write::Delete { table, key, generation } => db
            .prepare_cached("DELETE FROM records WHERE kind = ?1 AND key = ?2 AND generation = ?3")?
            .execute(params![*table as u8, key, as_stored(*generation)])?,
        Write::Append(entry) => {
            bounded("a log entry", entry.body.len(), MAX_LOG_BODY_BYTES)?;
            db.prepare_cached(
                "INSERT INTO log (writer, seq, body) VALUES (?1, ?2, ?3) ON CONFLICT (writer, seq) DO NOTHING",
            )?
            .execute(params![entry.writer, as_stored(entry.seq), entry.body])?
        }
    };
    if changed == 1 { Ok(()) } else { Err(JobError::Conflict) }
}

fn bounded(what: &str, bytes: usize, limit: usize) -> Result<(), JobError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(JobError::Refused(format!("{what} of {bytes} bytes is longer than the {limit} bytes that the store keeps")))
}

/// SQLite's integers are signed; a number that does not fit is equal to no stored one.
fn as_stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(-1)
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let stored: i64 = row.get(column)?;
    u64::try_from(stored).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, stored))
}

fn micros(record: &Record) -> Option<i64> {
    record.expires_at.map(Timestamp::as_microsecond)
}

fn record(table: Table, row: &Row<'_>) -> rusqlite::Result<Record> {
    let expires_at: Option<i64> = row.get(3)?;
    let expires_at = expires_at.map(Timestamp::from_microsecond).transpose().map_err(|_| {
        // A time that no write of ours could have stored.
        rusqlite::Error::IntegralValueOutOfRange(3, expires_at.unwrap_or_default())
    })?;
    Ok(Record {
        table,
        key: row.get(0)?,
        owner: row.get(1)?,
        generation: number(row, 2)?,
        expires_at,
        sealed: row.get(4)?,
    })
}
