//! The file format: version 1.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::folder::Folder;
use super::lease::Locks;
use crate::store::StoreError;

/// The format written and read, kept in `user_version`.
pub(super) const FORMAT: i32 = 1;

/// `application_id`: "OBO1". NEVER CHANGE: existing files would be refused as somebody else's.
const APPLICATION: i32 = 0x4f42_4f31;

/// The oldest SQLite accepted. Versions before it can damage a WAL file when two processes commit and checkpoint at
/// the same moment, which is what several obo processes do.
const MIN_SQLITE: i32 = 3_051_003;

/// How long to wait for another process's short write transaction.
const BUSY: Duration = Duration::from_secs(5);

/// How long to wait for another process that is making the file.
const CREATE_WAIT: Duration = Duration::from_secs(10);

/// The lease held while the file is made or its format raised.
const CREATE_LEASE: [u8; 32] = [0xff; 32];

const TABLES: &str = "
CREATE TABLE records (
    kind       INTEGER NOT NULL,
    key        BLOB    NOT NULL CHECK (length(key) = 32),
    owner      BLOB    NOT NULL CHECK (length(owner) = 32),
    generation INTEGER NOT NULL CHECK (generation >= 1),
    expires_at INTEGER,            -- microseconds since 1970, UTC
    sealed     BLOB    NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT;
CREATE INDEX records_by_owner  ON records (kind, owner, key);
CREATE INDEX records_by_expiry ON records (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE log (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    writer   TEXT    NOT NULL,
    seq      INTEGER NOT NULL CHECK (seq >= 1),
    body     TEXT    NOT NULL,
    UNIQUE (writer, seq)
) STRICT;
CREATE TRIGGER log_keeps_its_text    BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_keeps_its_entries BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
";

/// Opens the writing connection, making the tables in a new file.
pub(super) fn open(folder: &Folder, locks: &Locks) -> Result<Connection, StoreError> {
    let version = rusqlite::version_number();
    if version < MIN_SQLITE {
        return Err(StoreError::Unusable(format!(
            "obo was built with SQLite {}, which can damage a vault that several processes use; build it with the \
             bundled SQLite",
            rusqlite::version()
        )));
    }
    let path = folder.database();
    let database = |error: rusqlite::Error| unusable_or_unavailable(&path, &error);
    let mut connection = connect(&path).map_err(database)?;
    // SQLite opens a file that it may not write for reading: an obo that starts so would keep no record of anything.
    if connection.is_readonly("main").map_err(database)? {
        return Err(StoreError::Unusable(format!(
            "{path} cannot be written; run `chmod 600 {path}`, or make its disk writable",
            path = path.display()
        )));
    }
    match format_of(&connection).map_err(database)? {
        (APPLICATION, FORMAT) => {}
        (0, 0) => {
            // WAL cannot be switched on inside a transaction, and two that try it at once fail: hence the lease.
            let _lease = locks.take_blocking(&CREATE_LEASE, CREATE_WAIT)?.ok_or_else(|| {
                StoreError::Unavailable(format!(
                    "another obo process has been preparing {} for too long; end it, then try again",
                    path.display()
                ))
            })?;
            create(&mut connection).map_err(database)?;
        }
        (APPLICATION, newer) if newer > FORMAT => {
            return Err(StoreError::Unusable(format!(
                "{} was written by a newer obo (format {newer}; this one reads format {FORMAT}); run the newer obo, \
                 or restore a backup made before it was upgraded",
                path.display()
            )));
        }
        _ => {
            return Err(StoreError::Unusable(format!(
                "{} is not a vault of obo; move it away, or name another data folder with --data-dir",
                path.display()
            )));
        }
    }
    Ok(connection)
}

/// Opens a connection with every safety setting. The file must exist.
pub(super) fn connect(path: &std::path::Path) -> rusqlite::Result<Connection> {
    use rusqlite::OpenFlags;
    // Not OPEN_CREATE: the file was made before, with the right permissions. NOFOLLOW: it is not a link.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    // synchronous FULL: a commit that returned is on the disk. mmap is off: it turns a torn page into wrong memory.
    // trusted_schema and cell_size_check: a file made by somebody else must not run code or lead reads astray.
    connection.execute_batch(
        "PRAGMA synchronous = FULL;
         PRAGMA secure_delete = ON;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         PRAGMA mmap_size = 0;
         PRAGMA temp_store = MEMORY;",
    )?;
    Ok(connection)
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Somebody else may have made it while we waited.
    if format_of(&transaction)? == (0, 0) {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
    }
    transaction.commit()
}

pub(super) fn format_of(connection: &Connection) -> rusqlite::Result<(i32, i32)> {
    let number = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    Ok((number("application_id")?, number("user_version")?))
}

pub(super) fn unusable_or_unavailable(path: &std::path::Path, error: &rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StoreError::Unusable(format!(
            "{} is damaged or not a vault of obo ({error}); restore a backup, or name another data folder with \
             --data-dir",
            path.display()
        )),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            let folder = path.parent().unwrap_or(path);
            StoreError::Unusable(format!(
                "{path} cannot be opened ({error}); obo's user must be able to read and write it and its folder: run \
                 `chmod 600 {path}` and `chmod 700 {folder}`, or make their disk writable",
                path = path.display(),
                folder = folder.display()
            ))
        }
        _ => StoreError::Unavailable(format!("cannot open {}: {error}", path.display())),
    }
}
