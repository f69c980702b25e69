//! MCP sessions of the revisions that have some (2024-11-05 to 2025-11-25), kept so that they outlive a restart, and so
//! that each of several replicas can go on with a session that another one began.
//!
//! What is kept is what the client said when it began, and whose it is. A session is no proof of identity: it is found by
//! its id and its person together, and to everybody else it does not exist (2025-11-25, Security Best Practices §Session
//! Hijacking).

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::store_failure;
use crate::clock::{SharedClock, later, remaining};
use crate::failure::{Code, Failure};
use crate::id::{Person, TenantId};
use crate::keys::{Context, Keys, OpenKeys};
use crate::store::{Record, RecordKey, Store, StoreError, Table, Write};

/// How long a session lives without a message. People leave a conversation open over a working day.
pub const IDLE: Duration = Duration::from_secs(8 * 60 * 60);

/// The longest `initialize` that is kept, in bytes. Common ones have a few hundred.
const MAX_INITIALIZE_BYTES: usize = 32 << 10; // 32 KiB

/// What part of its time a session may have left before it is given all of it again: uses are not written down one by one.
const RENEWED_BELOW: f64 = 0.9;

/// A session as it stands in its sealed record.
#[derive(Serialize, Deserialize)]
struct Kept {
    person: Person,
    revision: String,
    /// The parameters of `initialize`.
    initialize: Value,
}

/// Keeps, finds and ends sessions. Cheap to clone.
#[derive(Clone)]
pub struct McpSessions {
    store: Arc<dyn Store>,
    keys: Keys,
    clock: SharedClock,
}

impl McpSessions {
    pub(super) fn new(store: Arc<dyn Store>, keys: Keys, clock: SharedClock) -> Self {
        Self { store, keys, clock }
    }

    /// Keeps a session that has begun. Where it is not kept, it lives in this process alone.
    ///
    /// # Errors
    /// `too_large`; `vault_unavailable`.
    pub async fn keep(&self, id: &str, person: &Person, revision: &str, initialize: Value) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        let kept = Kept { person: person.clone(), revision: revision.to_owned(), initialize };
        let body = serde_json::to_vec(&kept).map_err(Failure::internal)?;
        if body.len() > MAX_INITIALIZE_BYTES {
            return Err(Failure::new(Code::TooLarge, "the client said too much of itself to be kept"));
        }
        let key = key_of(&keys, id);
        let sealed = keys.seal(&TenantId::default_tenant(), &context(&key), &body).await?;
        let owner = owner(&keys, person);
        let expires_at = Some(later(self.clock.now(), IDLE));
        let record = Record { table: Table::McpSession, key, owner, generation: 0, expires_at, sealed };
        self.store.apply(vec![Write::Insert(record)]).await.map_err(store_failure)
    }

    /// The revision of a session, where there is one and it is this person's. Gives it more time.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn find(&self, id: &str, person: &Person) -> Result<Option<String>, Failure> {
        let Some((record, kept)) = self.read(id).await?.filter(|(_, kept)| kept.person == *person) else {
            return Ok(None);
        };
        self.renew(record).await?;
        Ok(Some(kept.revision))
    }

    /// The parameters that a session was begun with. Whoever asks has made sure whose it is.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn initialize(&self, id: &str) -> Result<Option<Value>, Failure> {
        Ok(self.read(id).await?.map(|(_, kept)| kept.initialize))
    }

    /// Whether a session that is in use here has not been ended elsewhere. Gives it more time.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn goes_on(&self, id: &str) -> Result<bool, Failure> {
        let Some((record, _)) = self.read(id).await? else { return Ok(false) };
        self.renew(record).await?;
        Ok(true)
    }

    async fn renew(&self, record: Record) -> Result<(), Failure> {
        let now = self.clock.now();
        let left = record.expires_at.map_or(Duration::ZERO, |end| remaining(now, end));
        if left >= IDLE.mul_f64(RENEWED_BELOW) {
            return Ok(());
        }
        let renewed = Record { expires_at: Some(later(now, IDLE)), ..record };
        match self.store.apply(vec![Write::Replace(renewed)]).await {
            // Somebody else gave it more time, or ended it, which is seen next time.
            Ok(()) | Err(StoreError::Conflict) => Ok(()),
            Err(error) => Err(store_failure(error)),
        }
    }

    /// Ends a session, for every process.
    ///
    /// # Errors
    /// `vault_unavailable`: others may go on with it.
    pub async fn end(&self, id: &str) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        match self.store.get(Table::McpSession, &key_of(&keys, id)).await.map_err(store_failure)? {
            Some(record) => self.delete(&record).await,
            None => Ok(()),
        }
    }

    /// Ends all sessions of a person.
    ///
    /// # Errors
    /// `vault_unavailable`: some may go on.
    pub async fn end_all(&self, person: &Person) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        for record in self.store.owned(Table::McpSession, &owner(&keys, person)).await.map_err(store_failure)? {
            self.delete(&record).await?;
        }
        Ok(())
    }

    async fn delete(&self, record: &Record) -> Result<(), Failure> {
        let (table, key) = (record.table, record.key);
        let mut generation = record.generation;
        loop {
            match self.store.apply(vec![Write::Delete { table, key, generation }]).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Conflict) => match self.store.get(table, &key).await.map_err(store_failure)? {
                    Some(newer) => generation = newer.generation,
                    None => return Ok(()),
                },
                Err(error) => return Err(store_failure(error)),
            }
        }
    }

    async fn read(&self, id: &str) -> Result<Option<(Record, Kept)>, Failure> {
        let keys = self.keys.open().await?;
        let key = key_of(&keys, id);
        let record = self.store.get(Table::McpSession, &key).await.map_err(store_failure)?;
        let Some(record) = record.filter(|record| record.expires_at.is_none_or(|end| self.clock.now() < end)) else {
            return Ok(None);
        };
        let body = keys.unseal(&TenantId::default_tenant(), &context(&key), &record.sealed).await?;
        let kept = serde_json::from_slice(body.expose()).map_err(Failure::internal)?;
        Ok(Some((record, kept)))
    }
}

/// A MAC, because whoever reads the store must not learn ids that are in use.
fn key_of(keys: &OpenKeys, id: &str) -> RecordKey {
    keys.record_key(Table::McpSession, &[b"id", id.as_bytes()])
}

/// What a person's sessions are listed by.
fn owner(keys: &OpenKeys, person: &Person) -> RecordKey {
    let [tenant, source, user] = person.parts();
    keys.record_key(Table::McpSession, &[b"person", tenant, source, user])
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::McpSession).with(key)
}
