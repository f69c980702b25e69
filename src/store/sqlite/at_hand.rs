//! Point reads on the thread that asks.
//!
//! A record is found in microseconds, and handing the question to a thread and the answer back costs more than that. So a
//! single record is read where it is asked for, as long as a connection is free and nothing is to be waited for.
//! Everything that takes longer is read by threads of its own.

use std::path::PathBuf;
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::writer::open_reader;
use crate::store::StoreError;

/// Most connections: one for each thread that may ask at once, up to this many.
const MOST: usize = 8;

/// Connections that are at hand.
pub(super) struct AtHand {
    database: PathBuf,
    /// Opened with their first use, so that opening a store costs nothing for those who never read.
    connections: Vec<Mutex<Option<Connection>>>,
}

impl AtHand {
    pub(super) fn new(database: PathBuf) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { database, connections: (0..threads.min(MOST)).map(|_| Mutex::default()).collect() }
    }

    /// Makes a short query here and now; none: there is no connection free, or the file is busy.
    pub(super) fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Option<Result<T, StoreError>> {
        let mut connection = self.connections.iter().find_map(|connection| match connection.try_lock() {
            Ok(free) => Some(free),
            Err(TryLockError::Poisoned(left)) => {
                // Its last query panicked: it is opened anew.
                let mut left = left.into_inner();
                *left = None;
                Some(left)
            }
            Err(TryLockError::WouldBlock) => None,
        })?;
        if connection.is_none() {
            let opened = open_reader(&self.database).and_then(|new| {
                new.busy_timeout(Duration::ZERO).map_err(|error| StoreError::Unavailable(error.to_string()))?;
                Ok(new)
            });
            match opened {
                Ok(new) => *connection = Some(new),
                Err(error) => return Some(Err(error)),
            }
        }
        match query(connection.as_ref()?) {
            Ok(found) => Some(Ok(found)),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => None,
            Err(error) => Some(Err(StoreError::Unavailable(format!("the store cannot be read: {error}")))),
        }
    }
}
