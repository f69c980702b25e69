//! What tests of identity need: a store in memory, keys from a file, a clock that stands still.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use url::Url;

use super::{Config, Credential, Identity};
use crate::clock::ManualClock;
use crate::egress::{self, Egress};
use crate::keys::{self, Keys, SourceName};
use crate::secret::Secret;
use crate::store::{Lease, LogEntry, Record, RecordKey, Store, StoreError, Table, Write};

/// Noon of an ordinary day, in seconds since 1970.
pub(super) const NOON: i64 = 1_800_000_000;

/// An [`Identity`] and everything it stands on.
pub(super) struct Fixture {
    pub(super) identity: Identity,
    pub(super) clock: Arc<ManualClock>,
    pub(super) store: Arc<MemoryStore>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    pub(super) fn new(config: Config) -> Self {
        let written = config.urls();
        Self::with_written(config, &written)
    }

    pub(super) fn with_written(config: Config, written: &[Url]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [7; 32]).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let store = Arc::new(MemoryStore::default());
        let clock = ManualClock::at(Timestamp::from_second(NOON).unwrap());
        let keys_config = keys::Config { source: SourceName::File, path: Some(path), env: None };
        let keys = Keys::new(Arc::clone(&store) as _, keys_config);
        let egress = Egress::new(&egress::Config::default(), written).unwrap();
        let identity = Identity::new(config, Arc::clone(&store) as _, keys, egress, Arc::clone(&clock) as _).unwrap();
        Self { identity, clock, store, _folder: folder }
    }
}

/// A bearer without `Obo-User`.
pub(super) fn bearer(token: &str) -> Credential {
    Credential::Bearer { token: Secret::new(token), obo_user: None }
}

/// A bearer with `Obo-User`.
pub(super) fn bearer_for(token: &str, user: &str) -> Credential {
    Credential::Bearer { token: Secret::new(token), obo_user: Some(user.to_owned()) }
}

/// Records in memory. `broken` makes every operation fail.
#[derive(Default)]
pub(super) struct MemoryStore {
    records: Mutex<BTreeMap<(u8, RecordKey), Record>>,
    pub(super) broken: std::sync::atomic::AtomicBool,
}

impl MemoryStore {
    fn check(&self) -> Result<(), StoreError> {
        match self.broken.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(StoreError::Unavailable("the disk is gone".to_owned())),
            false => Ok(()),
        }
    }

    /// All bytes that are kept, for looking for secrets in them.
    pub(super) fn dump(&self, table: Table) -> Vec<u8> {
        let records = self.records.lock().unwrap();
        let of_table = records.values().filter(|record| record.table == table);
        of_table.flat_map(|record| [&record.key[..], &record.owner, &record.sealed].concat()).collect()
    }

    /// Changes records behind the owner's back.
    pub(super) fn tamper(&self, change: impl Fn(&mut Record)) {
        self.records.lock().unwrap().values_mut().for_each(change);
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.check()?;
        Ok(self.records.lock().unwrap().get(&(table as u8, *key)).cloned())
    }

    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        self.check()?;
        let records = self.records.lock().unwrap();
        let generation = |key: &RecordKey| records.get(&(table as u8, *key)).map(|record| (*key, record.generation));
        Ok(keys.iter().filter_map(generation).collect())
    }

    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        self.check()?;
        let records = self.records.lock().unwrap();
        Ok(records.values().filter(|record| record.table == table && record.owner == *owner).cloned().collect())
    }

    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.check()?;
        let records = self.records.lock().unwrap();
        let rest = records.values().filter(|r| r.table == table && after.is_none_or(|after| r.key > *after));
        Ok(rest.take(limit).cloned().collect())
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.check()?;
        let mut records = self.records.lock().unwrap();
        let mut next = records.clone();
        for write in writes {
            match write {
                Write::Insert(record) if !next.contains_key(&(record.table as u8, record.key)) => {
                    next.insert((record.table as u8, record.key), Record { generation: 1, ..record });
                }
                Write::Put(record) => {
                    let at = (record.table as u8, record.key);
                    let generation = next.get(&at).map_or(0, |old| old.generation) + 1;
                    next.insert(at, Record { generation, ..record });
                }
                Write::Replace(record) => {
                    let at = (record.table as u8, record.key);
                    match next.get(&at) {
                        Some(old) if old.generation == record.generation => {
                            next.insert(at, Record { generation: record.generation + 1, ..record });
                        }
                        _ => return Err(StoreError::Conflict),
                    }
                }
                Write::Delete { table, key, generation } => match next.remove(&(table as u8, key)) {
                    Some(old) if old.generation == generation => {}
                    _ => return Err(StoreError::Conflict),
                },
                Write::Insert(_) | Write::Append(_) | Write::Reseal { .. } => return Err(StoreError::Conflict),
            }
        }
        *records = next;
        Ok(())
    }

    async fn log(&self, _: u64, _: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        Ok(Vec::new())
    }

    async fn newest(&self, _: u64, _: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        Ok(Vec::new())
    }

    async fn prune(&self, _: Timestamp) -> Result<usize, StoreError> {
        Ok(0)
    }

    async fn lease(&self, _: &RecordKey, _: Duration) -> Result<Option<Lease>, StoreError> {
        Ok(Some(Lease::new(())))
    }
}
