//! Where records are kept: sealed bytes under opaque keys, and an append-only log.
//!
//! One trait, one file a backend, one contract suite (`tests/it/contract_store.rs`) that every backend passes. A store
//! knows no secret and no name: keys are hashes, bodies are sealed by [`crate::keys`] before they arrive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::broadcast;

pub mod keyring;
pub mod postgres;
pub mod sqlite;

/// The largest sealed body accepted, in bytes. Grants are a few KiB, consent flows less.
pub const MAX_SEALED_BYTES: usize = 1 << 20; // 1 MiB

/// The largest log entry accepted, in bytes.
pub const MAX_LOG_BODY_BYTES: usize = 1 << 20; // 1 MiB

/// Most rows that one call of [`Store::scan`] or [`Store::log`] gives, whatever limit it was asked for.
pub const MAX_ROWS: usize = 10_000;

/// What a record is. The number is stored.
///
/// NEVER CHANGE OR REUSE A NUMBER: records of existing vaults would be read as something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Table {
    /// The vault's own facts: format, key id, canary.
    Meta = 1,
    /// A tenant's data key, wrapped.
    DataKey = 2,
    /// A connection of a person to a provider.
    Grant = 3,
    /// A consent flow.
    Flow = 4,
    /// A browser signed in to the consent pages.
    Session = 6,
    /// A token issued by obo.
    Token = 7,
    /// A trusted application.
    Application = 8,
    /// The newest head of an audit chain.
    AuditHead = 9,
    /// A sign-in under way at an identity provider.
    Login = 10,
    /// When a trusted application was last seen.
    ApplicationUse = 11,
    /// A code of obo's own authorization server, for a client to exchange.
    AuthorizationCode = 12,
    /// A client that a person signed in at obo itself.
    ClientSession = 13,
    /// An access token of such a client.
    ClientToken = 14,
    /// Somebody who has connections: the name behind the owner of their grants.
    Person = 15,
    /// A refresh under way, under the key of its grant: what finds one that was interrupted.
    Refreshing = 16,
    /// An entry of the OS keyring that no record leads to, or that may come to that; see `store/keyring.rs`, which shows
    /// none of them.
    KeyringEntry = 17,
    /// An MCP session of a revision that has some.
    McpSession = 18,
}

impl Table {
    /// Every table, in the order of the numbers.
    pub const ALL: [Self; 17] = [
        Self::Meta,
        Self::DataKey,
        Self::Grant,
        Self::Flow,
        Self::Session,
        Self::Token,
        Self::Application,
        Self::AuditHead,
        Self::Login,
        Self::ApplicationUse,
        Self::AuthorizationCode,
        Self::ClientSession,
        Self::ClientToken,
        Self::Person,
        Self::Refreshing,
        Self::KeyringEntry,
        Self::McpSession,
    ];

    /// In words, for the operator: what several of its records are.
    pub fn words(self) -> &'static str {
        match self {
            Self::Meta => "facts about the vault",
            Self::DataKey => "data keys",
            Self::Grant => "connections",
            Self::Flow => "consent flows",
            Self::Session => "browser sessions",
            Self::Token => "tokens",
            Self::Application => "applications",
            Self::AuditHead => "audit heads",
            Self::Login => "sign-ins under way",
            Self::ApplicationUse => "uses of applications",
            Self::AuthorizationCode => "authorization codes",
            Self::ClientSession => "clients",
            Self::ClientToken => "tokens of clients",
            Self::Person => "people",
            Self::Refreshing => "refreshes under way",
            Self::KeyringEntry => "entries of the keyring",
            Self::McpSession => "MCP sessions",
        }
    }
}

/// The key of a record: a hash, so that it tells nothing about what it names.
pub type RecordKey = [u8; 32];

/// A stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub table: Table,
    /// Its key, unique within the table.
    pub key: RecordKey,
    /// What it belongs to, for [`Store::owned`]; a hash too.
    pub owner: RecordKey,
    /// Counts the writes, beginning with 1. The store sets it. A record that was deleted and made again begins anew.
    pub generation: u64,
    /// When it may be pruned; never, where there is none. Readers check the time themselves. Kept to the microsecond.
    pub expires_at: Option<Timestamp>,
    /// The sealed body.
    pub sealed: Vec<u8>,
}

/// One entry of the append-only log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The chain it belongs to.
    pub writer: String,
    /// Its number in the chain, beginning with 1. Unique within the chain.
    pub seq: u64,
    /// The record, as text.
    pub body: String,
}

/// A change. A list of them is made whole or not at all.
#[derive(Debug, Clone)]
pub enum Write {
    /// Adds a record; a conflict where the key is taken. `generation` is ignored.
    Insert(Record),
    /// Replaces a record whose generation is still `record.generation`; otherwise a conflict.
    Replace(Record),
    /// Adds or replaces whatever stands there. `generation` is ignored.
    Put(Record),
    /// Replaces a sealed body that is still `before` by the same content sealed anew. Nothing else of the record changes, so
    /// that nobody who read it meets a conflict; a conflict where the body is another one. Sealing never gives the same
    /// bytes twice, so the body stands for everything about the record.
    Reseal {
        /// What it is.
        table: Table,
        /// Its key.
        key: RecordKey,
        /// The body that was read.
        before: Vec<u8>,
        /// The same, sealed anew.
        sealed: Vec<u8>,
    },
    /// Removes a record whose generation is still `generation`; otherwise a conflict.
    Delete {
        /// What it is.
        table: Table,
        /// Its key.
        key: RecordKey,
        /// The generation that was read.
        generation: u64,
    },
    /// Appends to the log; a conflict where `(writer, seq)` is taken.
    Append(LogEntry),
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote first: read again and decide again. Nothing was changed.
    #[error("the record was changed by somebody else in the meantime")]
    Conflict,
    /// The store cannot be reached, read or written. The text is for the operator. Nothing was changed, unless the disk
    /// itself failed during a commit: whoever must know reads again.
    #[error("{0}")]
    Unavailable(String),
    /// The files are not what they should be: wrong permissions, a newer format, a network folder.
    #[error("{0}")]
    Unusable(String),
}

/// Holds a name exclusively, over processes and replicas, until it is dropped (or its holder dies).
pub struct Lease {
    _guard: Box<dyn Send + Sync>,
    /// Until when it is held; none: for as long as this process lives.
    until: Option<Arc<Mutex<Instant>>>,
}

impl Lease {
    /// Wraps whatever releases the name when it is dropped.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self { _guard: Box::new(guard), until: None }
    }

    /// The same, for a name that is held until a moment, which whoever renews it moves on.
    pub fn until(guard: impl Send + Sync + 'static, until: Arc<Mutex<Instant>>) -> Self {
        Self { _guard: Box::new(guard), until: Some(until) }
    }

    /// Whether it ends while its holder may still live: one that was stopped, or that cannot reach the store.
    pub fn ends_by_itself(&self) -> bool {
        self.until.is_some()
    }

    /// Whether the name stays held for `span` from now even if nothing renews it. A process that was stopped for a while
    /// may have lost what it holds: ask this before what must not be done twice.
    pub fn lasts(&self, span: Duration) -> bool {
        let Some(until) = &self.until else { return true };
        Instant::now() + span <= *until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record that was written or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// What it is.
    pub table: Table,
    /// Its key.
    pub key: RecordKey,
}

/// What a look at a whole store found. No key is needed for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// Where it is.
    pub place: Place,
    /// The format of the file or the tables.
    pub format: i32,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Records by table: how many there are, and how many of them have expired but were not removed yet.
    pub counts: Vec<Count>,
    /// Entries of the log.
    pub log: u64,
    /// What the store itself finds wrong with what it holds; empty: it is sound, or nothing was looked at.
    pub problems: Vec<String>,
}

impl Examined {
    /// How many records of a table there are that have not expired.
    pub fn living(&self, table: Table) -> u64 {
        let of_table = self.counts.iter().filter(|count| count.table == Some(table));
        of_table.map(|count| count.records - count.expired).sum()
    }
}

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File(std::path::PathBuf),
    /// In a database: which one, without what is secret, and its version.
    Database(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Database(text) => f.write_str(text),
        }
    }
}

/// The records of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// None: a newer obo's.
    pub table: Option<Table>,
    /// How many there are.
    pub records: u64,
    /// How many of them have expired.
    pub expired: u64,
}

/// The store as far as it concerns one tenant, where the store can tell tenants apart: what others have is then neither
/// seen nor changed. `tenant` is what [`Store::of_tenant`] says.
pub fn within(store: &Arc<dyn Store>, tenant: &RecordKey) -> Arc<dyn Store> {
    store.of_tenant(tenant).unwrap_or_else(|| Arc::clone(store))
}

/// A place for records and the log.
///
/// # Cancellation
/// A write whose future is dropped may or may not have happened; it never happens by halves.
#[async_trait::async_trait]
pub trait Store: Send + Sync {
    /// A view of one tenant's records, named by a hash; what it adds belongs to that tenant. None: this store cannot tell
    /// tenants apart. See [`within`].
    fn of_tenant(&self, _tenant: &RecordKey) -> Option<Arc<dyn Store>> {
        None
    }

    /// Hears of changes to consent flows that other processes make, as soon as may be. Some may go unheard, so who waits
    /// for one looks from time to time as well. None: this store cannot tell.
    fn changes(&self) -> Option<broadcast::Receiver<Changed>> {
        None
    }

    /// Gives back what this process holds, leases above all, so that nobody waits for a process that has ended. For the end
    /// of a process: what goes on using the store does so without its leases.
    async fn close(&self) {}

    /// The same store to be closed at the end of the process, where dropping it may not be enough: a task that nobody ends
    /// can hold it still. None: what it holds goes with the process.
    fn to_close(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// Looks at the store as a whole. It may take seconds for millions of records.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; also where this store has nothing to say.
    async fn examine(&self, _now: Timestamp) -> Result<Examined, StoreError> {
        Err(StoreError::Unavailable("this store cannot be looked at as a whole".to_owned()))
    }

    /// Reads one record, expired or not.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError>;

    /// Which of these records there are, each with its generation, in no particular order: whether any of many has
    /// changed, without reading it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError>;

    /// Reads the records of one owner, in the order of their keys.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError>;

    /// Reads up to `limit` records of a table whose keys come after `after`, in the order of their keys.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError>;

    /// Makes all changes durably, or none. Returns once they outlive a crash.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a condition does not hold; [`StoreError::Unavailable`].
    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError>;

    /// Reads up to `limit` log entries after position `after` (0 for the beginning), oldest first, with positions.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError>;

    /// Reads up to `limit` log entries before position `before` (`u64::MAX` for the end), newest first, with positions.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError>;

    /// Removes records that expired before `now`, and says how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError>;

    /// Takes `name` exclusively, waiting up to `wait`; `None` when it stayed taken. Freed when its holder dies. A second
    /// lease of one name waits in the same process, too, so a holder must never ask for what it holds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError>;
}
