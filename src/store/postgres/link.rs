//! The way to the server: a thread with a runtime of its own, and a pool of connections on it.
//!
//! Every request is a task there, so that a caller who goes away never leaves a transaction half-way, and a store that
//! is dropped first ends what was handed over. Nothing outlives a transaction on a connection (no prepared statement, no
//! setting), because a pooler may give the next one to another connection.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::address::Address;
use crate::store::{RecordKey, StoreError};

/// Connections of one process, at most.
const CONNECTIONS: usize = 16;

/// How long a request may take in all, with a connection that has to be made for it.
const DEADLINE: Duration = Duration::from_secs(15);

/// How often a transaction is begun anew that the server gave up, or that met a connection that was cut.
const TRIES: u32 = 4;

/// How long dropping the store waits for what was handed over.
const ENDING: Duration = Duration::from_secs(5);

/// What the server itself gives up, in milliseconds. The last one is for a process that was stopped before it could end
/// its transaction: others wait for what it has locked.
const LIMITS: &str = "SET LOCAL statement_timeout = 5000; SET LOCAL lock_timeout = 2000; \
                      SET LOCAL idle_in_transaction_session_timeout = 5000";

/// How often it is asked again whether a transaction has ended.
const POLL: Duration = Duration::from_millis(20);

/// A commit waits for the disk, also where the role's setting says otherwise since this process opened the vault.
const SYNCED: &str = "SELECT set_config('synchronous_commit', 'on', true) \
                      WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// Names the transaction, so that its outcome can be asked for, and the run of the server that it is of: another server,
/// or the same after a failover, may give its number to another one. And how the vault is used: a process that was stopped
/// while it was moved elsewhere must write nothing more.
const TRANSACTION: &str = "SELECT pg_current_xact_id()::text, extract(epoch FROM pg_postmaster_start_time())::text, \
                           (SELECT state FROM obo.vault)";

/// How a transaction ended; null: the server has forgotten it, or is another one.
const OUTCOME: &str = "SELECT CASE WHEN extract(epoch FROM pg_postmaster_start_time())::text = $2 \
                       THEN pg_xact_status($1::xid8) END";

/// A parameter of a statement.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Short(i16),
    Long(i64),
    LongIfAny(Option<i64>),
    Longs(Vec<i64>),
    Bytes(Vec<u8>),
    BytesIfAny(Option<Vec<u8>>),
    Keys(Vec<Vec<u8>>),
    Text(String),
    Texts(Vec<String>),
    Uuid(Uuid),
    Uuids(Vec<Uuid>),
}

impl Value {
    /// As it is sent, with its type: nothing is prepared, so the server is not asked for it.
    pub(super) fn parameter(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Self::Short(value) => (value, Type::INT2),
            Self::Long(value) => (value, Type::INT8),
            Self::LongIfAny(value) => (value, Type::INT8),
            Self::Longs(value) => (value, Type::INT8_ARRAY),
            Self::Bytes(value) => (value, Type::BYTEA),
            Self::BytesIfAny(value) => (value, Type::BYTEA),
            Self::Keys(value) => (value, Type::BYTEA_ARRAY),
            Self::Text(value) => (value, Type::TEXT),
            Self::Texts(value) => (value, Type::TEXT_ARRAY),
            Self::Uuid(value) => (value, Type::UUID),
            Self::Uuids(value) => (value, Type::UUID_ARRAY),
        }
    }
}

impl From<&RecordKey> for Value {
    fn from(key: &RecordKey) -> Self {
        Self::Bytes(key.to_vec())
    }
}

impl From<Uuid> for Value {
    fn from(id: Uuid) -> Self {
        Self::Uuid(id)
    }
}

/// One statement of a transaction.
pub(super) struct Statement {
    pub(super) sql: &'static str,
    pub(super) values: Vec<Value>,
    /// How many rows it must change: else the transaction is undone. None: any number.
    pub(super) changes: Option<u64>,
}

/// A transaction that is about to be committed.
struct Transaction {
    number: String,
    /// When the server was started.
    server: String,
    /// How the vault is used.
    state: String,
}

/// Why a transaction was not made.
#[derive(Debug)]
pub(super) enum Undone {
    /// A statement did not change what it should have changed.
    Conflict,
    /// The server or the way to it failed.
    Failed(tokio_postgres::Error),
}

/// A connection that is lent. It goes back into the pool when its work is over; dropped before, it is closed, and so what
/// was begun on it is undone. Otherwise the next transaction would commit what was given up.
pub(super) struct Lent(Option<Object>);

impl Lent {
    /// Nothing is under way on it any more.
    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Lent {
    type Target = Object;

    #[expect(clippy::expect_used, reason = "only what consumes it takes the connection out")]
    fn deref(&self) -> &Object {
        self.0.as_ref().expect("a connection that is lent")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

/// The server, and the thread on which it is talked to.
pub(super) struct Link {
    handle: Handle,
    pool: Pool,
    tasks: TaskTracker,
    /// What the state of the vault must be for something to be written; empty: any.
    states: Vec<&'static str>,
}

/// Whoever holds one may still hand something over to the thread. When the last one is dropped, the thread ends what was
/// handed over, and this waits for it: so what a process releases as it ends is released. Tasks never hold one.
pub(super) struct Open {
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Link {
    /// Starts the thread. Connects when it is first needed.
    pub(super) fn start(address: &Address, states: Vec<&'static str>) -> Result<(Self, Open), StoreError> {
        let unavailable = |error: &dyn std::fmt::Display| {
            StoreError::Unavailable(format!("cannot start a thread for the store: {error}"))
        };
        let manager = Manager::from_config(
            address.config.clone(),
            address.tls.clone(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(DEADLINE))
            .create_timeout(Some(DEADLINE))
            .build()
            .map_err(|error| unavailable(&error))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| unavailable(&error))?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let tasks = TaskTracker::new();
        let under_way = tasks.clone();
        let thread = std::thread::Builder::new()
            .name("obo-store-postgres".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let _ = ended.await;
                    under_way.close();
                    let _ = tokio::time::timeout(ENDING, under_way.wait()).await;
                });
                runtime.shutdown_background();
            })
            .map_err(|error| unavailable(&error))?;
        let link = Self { handle, pool, tasks, states };
        Ok((link, Open { end: Some(end), thread: Some(thread) }))
    }

    /// Runs work on the store's thread to its end, whether anybody waits for it or not.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let work = self.tasks.spawn_on(work, &self.handle);
        work.await.map_err(|_| StoreError::Unavailable("the store's thread has ended".to_owned()))
    }

    /// As [`Link::run`], with nobody who waits.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.handle);
    }

    /// As [`Link::spawn`], for what never ends by itself: dropping the store does not wait for it.
    pub(super) fn spawn_for_ever(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }

    /// Runs work on the store's thread, holding up this one. For opening the store.
    pub(super) fn block_on<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            let _ = reply.send(work.await);
        });
        answer.recv().map_err(|_| StoreError::Unavailable("the store's thread has ended".to_owned()))
    }

    /// A connection.
    pub(super) async fn connection(&self) -> Result<Lent, StoreError> {
        for tried in 1.. {
            match self.pool.get().await {
                Ok(client) => return Ok(Lent(Some(client))),
                // A new one can be cut as well, before it is of any use.
                Err(PoolError::Backend(error)) if tried < TRIES && is_cut(&error) => tokio::time::sleep(POLL).await,
                Err(PoolError::Backend(error)) => return Err(failed("reach", &error)),
                Err(other) => return Err(StoreError::Unavailable(format!("cannot reach the database: {other}"))),
            }
        }
        Err(given_up())
    }

    /// One statement by itself, on a table without row security: one that may be made twice, because a connection may be
    /// cut before the answer. Gives the number of rows that changed.
    pub(super) async fn execute(self: &Arc<Self>, sql: &'static str, values: Vec<Value>) -> Result<u64, StoreError> {
        let link = Arc::clone(self);
        self.limited(async move {
            for tried in 1.. {
                let client = link.connection().await?;
                let parameters: Vec<_> = values.iter().map(Value::parameter).collect();
                let changed = client.execute_typed(sql, &parameters).await;
                match kept(client, changed) {
                    Err(error) if tried < TRIES && is_cut(&error) => {}
                    done => return done.map_err(|error| failed("write to", &error)),
                }
            }
            Err(given_up())
        })
        .await
    }

    /// One query by itself, likewise.
    pub(super) async fn query(self: &Arc<Self>, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let link = Arc::clone(self);
        self.limited(async move {
            for tried in 1.. {
                let client = link.connection().await?;
                let parameters: Vec<_> = values.iter().map(Value::parameter).collect();
                let rows = client.query_typed(sql, &parameters).await;
                match kept(client, rows) {
                    Err(error) if tried < TRIES && is_cut(&error) => {}
                    done => return done.map_err(|error| failed("read from", &error)),
                }
            }
            Err(given_up())
        })
        .await
    }

    /// One query in a transaction that sees what `scope` names.
    pub(super) async fn read(
        self: &Arc<Self>,
        scope: String,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        let link = Arc::clone(self);
        self.limited(async move {
            for tried in 1.. {
                let client = link.connection().await?;
                let parameters: Vec<_> = values.iter().map(Value::parameter).collect();
                let begin = format!("BEGIN READ ONLY; {LIMITS}; {scope}");
                // Sent together, in this order: one round trip. `futures::join` polls from left to right.
                let (begun, rows, ended) = futures::join!(
                    client.batch_execute(&begin),
                    client.query_typed(sql, &parameters),
                    client.batch_execute("COMMIT")
                );
                // Without the beginning there was no scope, and so no row.
                let rows = begun.and(rows).and_then(|rows| ended.map(|()| rows));
                match kept(client, rows) {
                    Ok(rows) => return Ok(rows),
                    Err(error) if tried < TRIES && (is_cut(&error) || is_passing(&error)) => {}
                    Err(error) => return Err(failed("read from", &error)),
                }
            }
            Err(given_up())
        })
        .await
    }

    /// Makes all statements durably, or none.
    pub(super) async fn write(self: &Arc<Self>, scope: String, statements: Vec<Statement>) -> Result<(), StoreError> {
        let link = Arc::clone(self);
        self.limited(async move {
            for tried in 1.. {
                let client = link.connection().await?;
                let begin = format!("BEGIN; {LIMITS}; {scope}; {SYNCED}");
                let error = match change(&client, &begin, &statements).await {
                    // Dropped, and so closed, with what was begun on it.
                    Ok(transaction) if !link.states.is_empty() && !link.states.contains(&&*transaction.state) => {
                        return Err(StoreError::Unusable(format!(
                            "the vault in this database is not in use any more, but {}; end this process",
                            transaction.state
                        )));
                    }
                    Ok(transaction) => {
                        let committed = client.batch_execute("COMMIT").await;
                        let Err(error) = kept(client, committed) else { return Ok(()) };
                        // Whether it happened is not known from here, but the server knows.
                        match link.outcome_of(&transaction).await? {
                            Some(true) => return Ok(()),
                            Some(false) if tried < TRIES => continue,
                            _ => return Err(failed("write to", &error)),
                        }
                    }
                    Err(Undone::Conflict) => {
                        client.give_back();
                        return Err(StoreError::Conflict);
                    }
                    // The commit was not sent, and the connection is closed, so nothing has happened.
                    Err(Undone::Failed(error)) => error,
                };
                let again = tried < TRIES && (is_passing(&error) || is_cut(&error));
                if !again {
                    return Err(failed("write to", &error));
                }
            }
            Err(given_up())
        })
        .await
    }

    /// Whether a transaction was committed whose answer was lost. None: the server has forgotten it.
    async fn outcome_of(self: &Arc<Self>, transaction: &Transaction) -> Result<Option<bool>, StoreError> {
        for tried in 1.. {
            let client = self.connection().await?;
            let asked = [Value::Text(transaction.number.clone()), Value::Text(transaction.server.clone())];
            let parameters: Vec<_> = asked.iter().map(Value::parameter).collect();
            let row = client.query_typed_one(OUTCOME, &parameters).await;
            match kept(client, row).map(|row| row.get::<_, Option<String>>(0)) {
                // Its process has not noticed yet that nobody is there any more.
                Ok(Some(state)) if state == "in progress" => tokio::time::sleep(POLL).await,
                Ok(state) => return Ok(state.map(|state| state == "committed")),
                Err(error) if tried < TRIES && is_cut(&error) => {}
                Err(error) => return Err(failed("read from", &error)),
            }
        }
        Err(given_up())
    }

    /// Removes some rows, and says how many: a query that writes.
    pub(super) async fn prune(
        self: &Arc<Self>,
        scope: String,
        sql: &'static str,
        before: i64,
        most: i64,
    ) -> Result<usize, StoreError> {
        let link = Arc::clone(self);
        self.limited(async move {
            let client = link.connection().await?;
            let begin = format!("BEGIN; {LIMITS}; {scope}");
            let values = [Value::Long(before), Value::Long(most)];
            let parameters: Vec<_> = values.iter().map(Value::parameter).collect();
            let (begun, rows, ended) = futures::join!(
                client.batch_execute(&begin),
                client.query_typed(sql, &parameters),
                client.batch_execute("COMMIT")
            );
            let rows = begun.and(rows).and_then(|rows| ended.map(|()| rows));
            let rows = kept(client, rows).map_err(|error| failed("write to", &error))?;
            Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)) as usize)
        })
        .await
    }

    async fn limited<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(async move {
            tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| {
                Err(StoreError::Unavailable("the database does not answer; look whether it is overloaded".to_owned()))
            })
        })
        .await?
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
        if let Some(thread) = self.thread.take()
            // What was taken for somebody who went away is given back there.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Begins, and makes the statements; undoes them where one does not change what it should. Names the transaction, which is
/// to be committed.
async fn change(client: &Object, begin: &str, statements: &[Statement]) -> Result<Transaction, Undone> {
    let parameters: Vec<Vec<_>> =
        statements.iter().map(|statement| statement.values.iter().map(Value::parameter).collect()).collect();
    let made = join_all(
        statements
            .iter()
            .zip(&parameters)
            .map(|(statement, parameters)| async move { client.execute_typed(statement.sql, parameters).await }),
    );
    // Sent together, in this order.
    let (begun, made, name) =
        futures::join!(client.batch_execute(begin), made, client.query_typed_one(TRANSACTION, &[]));
    begun.map_err(Undone::Failed)?;
    let mut conflict = false;
    for (statement, made) in statements.iter().zip(made) {
        match made {
            Ok(changed) => conflict |= statement.changes.is_some_and(|wanted| wanted != changed),
            Err(error) => return Err(Undone::Failed(error)),
        }
    }
    if conflict {
        client.batch_execute("ROLLBACK").await.map_err(Undone::Failed)?;
        return Err(Undone::Conflict);
    }
    name.map(|row| Transaction { number: row.get(0), server: row.get(1), state: row.get(2) }).map_err(Undone::Failed)
}

fn given_up() -> StoreError {
    StoreError::Unavailable("the connection to the database is cut again and again; try again".to_owned())
}

/// Gives the connection back to the pool, unless it may be in the middle of something.
fn kept<T>(client: Lent, result: Result<T, tokio_postgres::Error>) -> Result<T, tokio_postgres::Error> {
    if result.is_ok() {
        client.give_back();
    }
    result
}

/// Whether the connection ended, rather than that the server refused.
fn is_cut(error: &tokio_postgres::Error) -> bool {
    error.is_closed()
        || match error.code() {
            None => true,
            Some(code) => {
                [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
                    || code.code().starts_with("08")
            }
        }
}

/// Whether the server undid the transaction for a reason that passes.
fn is_passing(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
}

/// A failure, for the operator. The server's details may quote what was written, so they are left out.
pub(super) fn failed(what: &str, error: &tokio_postgres::Error) -> StoreError {
    use std::error::Error as _;
    let cause = match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
    };
    let text = format!("cannot {what} the database: {cause}");
    let unusable = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INVALID_CATALOG_NAME,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
    ];
    match error.code() {
        Some(code) if unusable.contains(code) => StoreError::Unusable(text),
        _ => StoreError::Unavailable(text),
    }
}
