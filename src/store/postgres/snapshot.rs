//! Everything as it stands at one moment: one connection in one transaction that only reads.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_postgres::Row;

use super::link::{Lent, Value, failed};
use super::{Shared, hash, kind, number, record, rows_at_most, text};
use crate::store::{Lease, LogEntry, Record, RecordKey, Store, StoreError, Table, Write};

/// A store that can be read, and never changes. It holds a connection, and the server keeps what others remove, for as long
/// as it is there.
pub struct Snapshot {
    shared: Arc<Shared>,
    client: Arc<Mutex<Option<Lent>>>,
}

impl Snapshot {
    pub(super) async fn take(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let link = Arc::clone(&shared.link);
        let begun = shared.link.run(async move {
            let client = link.connection().await?;
            // The moment is that of the first query (PostgreSQL, "Repeatable Read Isolation Level").
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL obo.scope = 'all'; SELECT 1";
            client.batch_execute(begin).await.map_err(|error| failed("read from", &error))?;
            Ok::<_, StoreError>(client)
        });
        Ok(Self { shared: Arc::clone(shared), client: Arc::new(Mutex::new(Some(begun.await??))) })
    }

    async fn read(&self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let client = Arc::clone(&self.client);
        let read = self.shared.link.run(async move {
            let client = client.lock().await;
            let ended = || StoreError::Unavailable("the snapshot has ended".to_owned());
            let parameters: Vec<_> = values.iter().map(Value::parameter).collect();
            let rows = client.as_ref().ok_or_else(ended)?.query_typed(sql, &parameters).await;
            rows.map_err(|error| failed("read from", &error))
        });
        read.await?
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let client = Arc::clone(&self.client);
        self.shared.link.spawn(async move {
            // Not given back: it is in the middle of a transaction.
            if let Some(client) = client.lock().await.take() {
                drop(client);
            }
        });
    }
}

#[async_trait::async_trait]
impl Store for Snapshot {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let sql = "SELECT key, owner, generation, expires_at, sealed FROM obo.record WHERE kind = $1 AND key = $2";
        let rows = self.read(sql, vec![kind(table), key.into()]).await?;
        rows.first().map(|row| record(table, row)).transpose()
    }

    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        let sql = "SELECT key, generation FROM obo.record WHERE kind = $1 AND key = ANY ($2)";
        let keys = keys.iter().map(|key| key.to_vec()).collect();
        let rows = self.read(sql, vec![kind(table), Value::Keys(keys)]).await?;
        rows.iter().map(|row| Ok((hash(row, 0)?, number(row, 1)?))).collect()
    }

    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        let sql = "SELECT key, owner, generation, expires_at, sealed FROM obo.record
                   WHERE kind = $1 AND owner = $2 ORDER BY key";
        let rows = self.read(sql, vec![kind(table), owner.into()]).await?;
        rows.iter().map(|row| record(table, row)).collect()
    }

    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        let sql = "SELECT key, owner, generation, expires_at, sealed FROM obo.record
                   WHERE kind = $1 AND key > $2 ORDER BY key LIMIT $3";
        let after = Value::Bytes(after.map_or_else(Vec::new, |key| key.to_vec()));
        let rows = self.read(sql, vec![kind(table), after, rows_at_most(limit)]).await?;
        rows.iter().map(|row| record(table, row)).collect()
    }

    async fn apply(&self, _: Vec<Write>) -> Result<(), StoreError> {
        Err(unchanging())
    }

    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let sql = "SELECT position, writer, seq, body FROM obo.log WHERE position > $1 ORDER BY position LIMIT $2";
        let from = Value::Long(i64::try_from(after).unwrap_or(i64::MAX));
        entries(&self.read(sql, vec![from, rows_at_most(limit)]).await?)
    }

    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let sql = "SELECT position, writer, seq, body FROM obo.log WHERE position < $1 ORDER BY position DESC LIMIT $2";
        let from = Value::Long(i64::try_from(before).unwrap_or(i64::MAX));
        entries(&self.read(sql, vec![from, rows_at_most(limit)]).await?)
    }

    async fn prune(&self, _: Timestamp) -> Result<usize, StoreError> {
        Err(unchanging())
    }

    async fn lease(&self, _: &RecordKey, _: Duration) -> Result<Option<Lease>, StoreError> {
        Err(unchanging())
    }
}

/// The log entries in rows.
pub(super) fn entries(rows: &[Row]) -> Result<Vec<(u64, LogEntry)>, StoreError> {
    let entry = |row: &Row| {
        let entry = LogEntry { writer: text(row, 1)?, seq: number(row, 2)?, body: text(row, 3)? };
        Ok((number(row, 0)?, entry))
    };
    rows.iter().map(entry).collect()
}

fn unchanging() -> StoreError {
    StoreError::Unavailable("a snapshot is not written to".to_owned())
}
