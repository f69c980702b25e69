//! The store of several replicas: PostgreSQL, which any of them may ask for anything.
//!
//! Every record stands in one table with row security: a transaction names the tenant that it is for, and sees nothing
//! else; one that names none sees nothing at all. The vault opens records for their own person only in any case, so this
//! guards against a mistake in obo, not against whoever runs the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio_postgres::Row;

use super::{
    Changed, Count, Examined, Lease, LogEntry, MAX_LOG_BODY_BYTES, MAX_ROWS, MAX_SEALED_BYTES, Place, Record,
    RecordKey, Store, StoreError, Table, Write,
};
use crate::secret::Secret;

mod address;
mod changes;
mod lease;
mod link;
mod schema;
mod snapshot;

use address::Address;
use changes::Changes;
use lease::Leases;
use link::{Link, Open, Statement, Value, failed};
use schema::State;

pub use snapshot::Snapshot;

/// Rows removed in one transaction by [`Store::prune`], so that it never holds up other writers for long.
const PRUNE_ROWS: i64 = 1_000;

/// How often it is tried to open a database whose connections are cut, and how long between.
const OPENING_TRIES: u32 = 4;
const OPENING_PAUSE: Duration = Duration::from_millis(250);

/// Held by whoever appends to the log until it has committed, so that positions become visible in their order: a reader
/// that goes on after the last position it saw misses none. "obo" and "log" in ASCII.
const APPENDING: &str = "SELECT pg_advisory_xact_lock(7299695, 7106407)";

/// Records in a PostgreSQL database. Any number of processes may open it.
pub struct PostgresStore {
    shared: Arc<Shared>,
    /// Whose records are seen; none: everybody's.
    tenant: Option<RecordKey>,
}

struct Shared {
    link: Arc<Link>,
    leases: Arc<Leases>,
    changes: Arc<Changes>,
    url: Secret,
    listening: AtomicBool,
    server: Server,
    /// How the vault was used when it was opened.
    found: String,
    /// Last, so that what is released with the rest still reaches the server.
    open: Arc<Open>,
}

/// What is known of the server, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Which database where, without what is secret.
    pub place: String,
    /// The version of PostgreSQL.
    pub version: String,
    /// The format of the tables.
    pub format: i32,
    /// Whether row security holds the role that obo uses.
    pub row_security: bool,
}

impl PostgresStore {
    /// Opens the vault in the database that `url` names, and makes its tables where there are none. It blocks for as long
    /// as that takes: some milliseconds, or until a server that does not answer is given up, some seconds.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when the URL cannot be used, the server refuses the role, the vault was written by
    /// another obo, or was moved elsewhere; [`StoreError::Unavailable`] when the server cannot be reached. No text holds
    /// the password.
    pub fn open(url: &Secret) -> Result<Self, StoreError> {
        Self::open_with(url, lease::SPAN)
    }

    /// As [`PostgresStore::open`], with another time after which a process that says nothing counts as dead: for tests.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    pub fn open_with(url: &Secret, lease: Duration) -> Result<Self, StoreError> {
        Self::open_as(url, lease, &[State::InUse])
    }

    /// Opens a database that a vault is to be moved into: one without a vault, or one whose filling was cut off. Nobody
    /// else opens it before [`PostgresStore::now_in_use`].
    ///
    /// # Errors
    /// As [`PostgresStore::open`]; [`StoreError::Unusable`] when there is a vault in it.
    pub async fn fill(url: &Secret) -> Result<Self, StoreError> {
        let store = Self::open_as(url, lease::SPAN, &[State::BeingFilled, State::InUse])?;
        let empty = "UPDATE obo.vault SET state = 'being filled' WHERE state = 'being filled'
                     OR NOT EXISTS (SELECT FROM obo.record) AND NOT EXISTS (SELECT FROM obo.log)";
        // Row security would hide what is there, and so make every vault look empty: counted within a scope.
        let statement = Statement { sql: empty, values: Vec::new(), changes: Some(1) };
        match store.shared.link.write(store.scope(), vec![statement]).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => {
                return Err(StoreError::Unusable(format!(
                    "{} has a vault already; name an empty database",
                    store.server().place
                )));
            }
            Err(error) => return Err(error),
        }
        if let Err(error) = store.refuse_others().await {
            if store.shared.found == State::InUse.as_str() {
                store.now_in_use().await?;
            }
            return Err(error);
        }
        Ok(store)
    }

    /// Opens a database that [`PostgresStore::fill`] has filled, but that nobody has said to be in use.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    pub fn filled(url: &Secret) -> Result<Self, StoreError> {
        Self::open_as(url, lease::SPAN, &[State::BeingFilled, State::InUse])
    }

    /// Opens a vault that is to be moved elsewhere, or whose moving was cut off. From now on nobody else opens it, until
    /// [`PostgresStore::now_in_use`].
    ///
    /// # Errors
    /// As [`PostgresStore::open`]; [`StoreError::Unavailable`] while another process has it open.
    pub async fn leave(url: &Secret) -> Result<Self, StoreError> {
        let store = Self::open_as(url, lease::SPAN, &[State::InUse, State::BeingMoved])?;
        store.set_state(State::BeingMoved).await?;
        if let Err(error) = store.refuse_others().await {
            // Where a move was cut off, the copy may be in use already.
            if !store.was_being_moved() {
                store.now_in_use().await?;
            }
            return Err(error);
        }
        Ok(store)
    }

    /// Whether the moving of this vault was begun before it was opened, and cut off.
    pub fn was_being_moved(&self) -> bool {
        self.shared.found == State::BeingMoved.as_str()
    }

    /// Says that the vault in the database is the one to use.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn now_in_use(&self) -> Result<(), StoreError> {
        self.set_state(State::InUse).await
    }

    /// Says that what is in the database is elsewhere now: nobody opens it again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn now_moved(&self) -> Result<(), StoreError> {
        self.set_state(State::Moved).await
    }

    async fn set_state(&self, state: State) -> Result<(), StoreError> {
        let set = "UPDATE obo.vault SET state = $1";
        let values = vec![Value::Text(state.as_str().to_owned())];
        self.shared.link.write(self.scope(), vec![Statement { sql: set, values, changes: Some(1) }]).await
    }

    async fn refuse_others(&self) -> Result<(), StoreError> {
        match self.others().await? {
            0 => Ok(()),
            some => Err(StoreError::Unavailable(format!(
                "{some} other obo processes use {}; end them, and wait {} s for one that was killed",
                self.server().place,
                lease::SPAN.as_secs()
            ))),
        }
    }

    /// The records as they stand at this moment, for a copy: what others write meanwhile is not in it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Snapshot::take(&self.shared).await
    }

    fn open_as(url: &Secret, lease: Duration, states: &[State]) -> Result<Self, StoreError> {
        let address = Address::parse(url)?;
        // Whoever moves a vault writes in every state of it.
        let written_in = if states == [State::InUse] { vec![State::InUse.as_str()] } else { Vec::new() };
        let (link, open) = Link::start(&address, written_in)?;
        let (link, open) = (Arc::new(link), Arc::new(open));
        let leases = Leases::new(Arc::clone(&link), lease);
        let known = link.block_on({
            let (link, leases) = (Arc::clone(&link), Arc::clone(&leases));
            async move {
                let mut tried = 1;
                loop {
                    match announce(&link, &leases).await {
                        Err(StoreError::Unavailable(_)) if tried < OPENING_TRIES => tried += 1,
                        done => return done,
                    }
                    tokio::time::sleep(OPENING_PAUSE).await;
                }
            }
        })??;
        if !states.iter().any(|state| state.as_str() == known.state) {
            link.block_on({
                let leases = Arc::clone(&leases);
                async move { leases.leave().await }
            })?;
            return Err(StoreError::Unusable(format!(
                "the vault in {} is not in use: it {}",
                address.shown,
                match known.state.as_str() {
                    "moved" => "was moved elsewhere; see obo.toml's [vault]",
                    "being filled" => "is being filled; if `obo vault migrate` was cut off, run it again",
                    _ => "is being moved elsewhere; if `obo vault migrate` was cut off, run it again",
                }
            )));
        }
        if known.unbound {
            tracing::warn!("store.row_security_does_not_hold: the database role is a superuser or may bypass it");
        }
        link.spawn_for_ever(Leases::renew(Arc::downgrade(&leases)));
        let server = Server {
            place: address.shown,
            version: known.version,
            format: schema::FORMAT,
            row_security: !known.unbound,
        };
        let shared = Shared {
            link,
            leases,
            changes: Changes::new(),
            url: url.clone(),
            listening: AtomicBool::new(false),
            server,
            found: known.state,
            open,
        };
        Ok(Self { shared: Arc::new(shared), tenant: None })
    }

    /// What is known of the server.
    pub fn server(&self) -> &Server {
        &self.shared.server
    }

    /// How many other processes have the vault open.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn others(&self) -> Result<u64, StoreError> {
        self.shared.leases.others().await
    }

    /// The scope of a transaction. The tenant is hexadecimal digits, so it can be written into the statement.
    fn scope(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("SET LOCAL obo.scope = '{}'", hex(tenant)),
            None => "SET LOCAL obo.scope = 'all'".to_owned(),
        }
    }

    async fn read(&self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        self.shared.link.read(self.scope(), sql, values).await
    }

    async fn log_page(&self, sql: &'static str, from: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        snapshot::entries(&self.read(sql, vec![Value::Long(from), rows_at_most(limit)]).await?)
    }
}

/// Makes the tables where there are none, and says that this process is there: before the state is read, because whoever
/// changes it looks for others after that.
async fn announce(link: &Link, leases: &Leases) -> Result<schema::Known, StoreError> {
    let client = link.connection().await?;
    schema::prepare(&client).await?;
    leases.present().await?;
    let known = schema::prepare(&client).await?;
    client.give_back();
    Ok(known)
}

impl Drop for Shared {
    fn drop(&mut self) {
        let leases = Arc::clone(&self.leases);
        self.link.spawn(async move { leases.leave().await });
    }
}

#[async_trait::async_trait]
impl Store for PostgresStore {
    async fn close(&self) {
        self.shared.leases.leave().await;
    }

    fn to_close(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Self { shared: Arc::clone(&self.shared), tenant: None }))
    }

    async fn examine(&self, now: Timestamp) -> Result<Examined, StoreError> {
        let counts = self
            .read(
                "SELECT kind::bigint, count(*), count(*) FILTER (WHERE expires_at < $1)
                 FROM obo.record GROUP BY kind ORDER BY kind",
                vec![Value::Long(now.as_microsecond())],
            )
            .await?;
        let counts = counts.iter().map(|row| {
            let kind = number(row, 0)?;
            Ok(Count {
                table: Table::ALL.into_iter().find(|table| u64::from(*table as u8) == kind),
                records: number(row, 1)?,
                expired: number(row, 2)?,
            })
        });
        let size = "SELECT pg_total_relation_size('obo.record') + pg_total_relation_size('obo.log'), \
                    (SELECT count(*) FROM obo.log)";
        let rows = self.read(size, Vec::new()).await?;
        let row = rows.first().ok_or_else(strange)?;
        let Server { place, version, format, .. } = &self.shared.server;
        Ok(Examined {
            place: Place::Database(format!("{place} (PostgreSQL {version})")),
            format: *format,
            bytes: number(row, 0)?,
            counts: counts.collect::<Result<_, StoreError>>()?,
            log: number(row, 1)?,
            problems: Vec::new(),
        })
    }

    fn of_tenant(&self, tenant: &RecordKey) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Self { shared: Arc::clone(&self.shared), tenant: Some(*tenant) }))
    }

    fn changes(&self) -> Option<broadcast::Receiver<Changed>> {
        if !self.shared.listening.swap(true, Ordering::Relaxed) {
            let address = Address::parse(&self.shared.url).ok()?;
            self.shared.link.spawn_for_ever(Changes::listen(Arc::downgrade(&self.shared.changes), address));
        }
        Some(self.shared.changes.subscribe())
    }

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
        // The empty key sorts before every key.
        let after = Value::Bytes(after.map_or_else(Vec::new, |key| key.to_vec()));
        let rows = self.read(sql, vec![kind(table), after, rows_at_most(limit)]).await?;
        rows.iter().map(|row| record(table, row)).collect()
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let statements = statements(writes, self.tenant)?;
        self.shared.link.write(self.scope(), statements).await
    }

    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let sql = "SELECT position, writer, seq, body FROM obo.log WHERE position > $1 ORDER BY position LIMIT $2";
        self.log_page(sql, after, limit).await
    }

    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        let sql = "SELECT position, writer, seq, body FROM obo.log WHERE position < $1 ORDER BY position DESC LIMIT $2";
        self.log_page(sql, before, limit).await
    }

    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError> {
        let sql = "WITH removed AS (
                     DELETE FROM obo.record WHERE (kind, key) IN
                       (SELECT kind, key FROM obo.record WHERE expires_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)
                     RETURNING 1)
                   SELECT count(*) FROM removed";
        let mut removed = 0;
        loop {
            let round = self.shared.link.prune(self.scope(), sql, now.as_microsecond(), PRUNE_ROWS).await?;
            removed += round;
            if round < PRUNE_ROWS as usize {
                return Ok(removed);
            }
        }
    }

    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        self.shared.leases.take(&self.shared.open, name, wait).await
    }
}

/// The statements of one list of writes.
fn statements(writes: Vec<Write>, tenant: Option<RecordKey>) -> Result<Vec<Statement>, StoreError> {
    // A data key is owned by its tenant, and may be written together with what belongs to nobody.
    let tenant = |new: &Record| {
        let owner = (new.table == Table::DataKey).then_some(new.owner);
        Value::BytesIfAny(tenant.or(owner).map(|tenant| tenant.to_vec()))
    };
    let mut statements = Vec::with_capacity(writes.len() + 2);
    let mut told = Vec::new();
    let (mut writers, mut seqs, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    for write in writes {
        let (sql, values) = match write {
            Write::Insert(new) => {
                bounded("a record", new.sealed.len(), MAX_SEALED_BYTES)?;
                tell(&mut told, new.table, &new.key);
                (
                    "INSERT INTO obo.record (kind, key, owner, tenant, generation, expires_at, sealed)
                     VALUES ($1, $2, $3, $4, 1, $5, $6) ON CONFLICT DO NOTHING",
                    vec![
                        kind(new.table),
                        (&new.key).into(),
                        (&new.owner).into(),
                        tenant(&new),
                        micros(&new),
                        Value::Bytes(new.sealed),
                    ],
                )
            }
            Write::Replace(new) => {
                bounded("a record", new.sealed.len(), MAX_SEALED_BYTES)?;
                tell(&mut told, new.table, &new.key);
                (
                    "UPDATE obo.record SET owner = $3, generation = generation + 1, expires_at = $4, sealed = $5
                     WHERE kind = $1 AND key = $2 AND generation = $6",
                    vec![
                        kind(new.table),
                        (&new.key).into(),
                        (&new.owner).into(),
                        micros(&new),
                        Value::Bytes(new.sealed),
                        Value::Long(as_stored(new.generation)),
                    ],
                )
            }
            Write::Put(new) => {
                bounded("a record", new.sealed.len(), MAX_SEALED_BYTES)?;
                tell(&mut told, new.table, &new.key);
                (
                    "INSERT INTO obo.record AS there (kind, key, owner, tenant, generation, expires_at, sealed)
                     VALUES ($1, $2, $3, $4, 1, $5, $6)
                     ON CONFLICT (kind, key) DO UPDATE SET owner = excluded.owner, generation = there.generation + 1,
                       expires_at = excluded.expires_at, sealed = excluded.sealed",
                    vec![
                        kind(new.table),
                        (&new.key).into(),
                        (&new.owner).into(),
                        tenant(&new),
                        micros(&new),
                        Value::Bytes(new.sealed),
                    ],
                )
            }
            Write::Reseal { table, key, before, sealed } => {
                bounded("a record", sealed.len(), MAX_SEALED_BYTES)?;
                (
                    "UPDATE obo.record SET sealed = $3 WHERE kind = $1 AND key = $2 AND sealed = $4",
                    vec![kind(table), (&key).into(), Value::Bytes(sealed), Value::Bytes(before)],
                )
            }
            Write::Delete { table, key, generation } => {
                tell(&mut told, table, &key);
                (
                    "DELETE FROM obo.record WHERE kind = $1 AND key = $2 AND generation = $3",
                    vec![kind(table), (&key).into(), Value::Long(as_stored(generation))],
                )
            }
            Write::Append(entry) => {
                bounded("a log entry", entry.body.len(), MAX_LOG_BODY_BYTES)?;
                writers.push(entry.writer);
                seqs.push(as_stored(entry.seq));
                bodies.push(entry.body);
                continue;
            }
        };
        statements.push(Statement { sql, values, changes: Some(1) });
    }
    if !seqs.is_empty() {
        // Before everything else: whoever waits for it holds no row that another one who appends waits for.
        statements.insert(0, Statement { sql: APPENDING, values: Vec::new(), changes: None });
        let wanted = seqs.len() as u64;
        statements.push(Statement {
            sql: "INSERT INTO obo.log (writer, seq, body)
                  SELECT writer, seq, body
                  FROM unnest($1, $2, $3) WITH ORDINALITY AS new (writer, seq, body, place)
                  WHERE current_setting('obo.scope', true) <> '' ORDER BY place
                  ON CONFLICT (writer, seq) DO NOTHING",
            values: vec![Value::Texts(writers), Value::Longs(seqs), Value::Texts(bodies)],
            changes: Some(wanted),
        });
    }
    for payload in told {
        statements.push(Statement {
            sql: "SELECT pg_notify('obo_changed', $1)",
            values: vec![Value::Text(payload)],
            changes: None,
        });
    }
    Ok(statements)
}

/// Notes that others should hear of a change: only where somebody waits for one, because telling costs every commit a
/// turn in one queue.
fn tell(told: &mut Vec<String>, table: Table, key: &RecordKey) {
    if table == Table::Flow {
        told.push(changes::payload(table, key));
    }
}

fn bounded(what: &str, bytes: usize, limit: usize) -> Result<(), StoreError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(StoreError::Unavailable(format!(
        "{what} of {bytes} bytes is longer than the {limit} bytes that the store keeps"
    )))
}

fn kind(table: Table) -> Value {
    Value::Short(i16::from(table as u8))
}

fn rows_at_most(limit: usize) -> Value {
    Value::Long(limit.min(MAX_ROWS) as i64)
}

/// The server's integers are signed; a number that does not fit is equal to no stored one.
fn as_stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(-1)
}

fn micros(record: &Record) -> Value {
    Value::LongIfAny(record.expires_at.map(Timestamp::as_microsecond))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(row: &Row, column: usize) -> Result<u64, StoreError> {
    let stored: i64 = row.try_get(column).map_err(|error| failed("read from", &error))?;
    u64::try_from(stored).map_err(|_| strange())
}

fn text(row: &Row, column: usize) -> Result<String, StoreError> {
    row.try_get(column).map_err(|error| failed("read from", &error))
}

fn hash(row: &Row, column: usize) -> Result<RecordKey, StoreError> {
    let bytes: &[u8] = row.try_get(column).map_err(|error| failed("read from", &error))?;
    bytes.try_into().map_err(|_| strange())
}

fn record(table: Table, row: &Row) -> Result<Record, StoreError> {
    let failed = |error| failed("read from", &error);
    let expires_at: Option<i64> = row.try_get(3).map_err(failed)?;
    Ok(Record {
        table,
        key: hash(row, 0)?,
        owner: hash(row, 1)?,
        generation: number(row, 2)?,
        expires_at: expires_at.map(Timestamp::from_microsecond).transpose().map_err(|_| strange())?,
        sealed: row.try_get(4).map_err(failed)?,
    })
}

fn strange() -> StoreError {
    StoreError::Unavailable("the database holds what no obo has written".to_owned())
}
