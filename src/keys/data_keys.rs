//! More than one data key a tenant: the newest seals, every one opens.
//!
//! New keys and the note that everything is to be sealed with them are written together, and the note stays until that is
//! done. Earlier keys are never removed: a process that has not seen a new one yet may still be sealing with its own. They
//! stay wrapped by the root key.

use std::collections::{BTreeMap, BTreeSet};

use super::sealed::{KEY_BYTES, Key};
use super::{Context, KeyError, OpenKeys, ROOT_KEY, Sealed, WRAPS_DATA_KEYS, data_key_context};
use crate::id::TenantId;
use crate::store::{Record, RecordKey, StoreError, Table, Write};

/// The data key that each tenant's records are to be sealed with, or a later one.
pub type Targets = BTreeMap<TenantId, u32>;

impl OpenKeys {
    /// Where the note stands that everything is to be sealed anew.
    pub fn targets_key(&self) -> RecordKey {
        self.record_key(Table::Meta, &[b"new data keys"])
    }

    /// What everything is to be sealed with, while a change of the data keys is under way.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn targets(&self) -> Result<Option<Targets>, KeyError> {
        let key = self.targets_key();
        let Some(record) = self.store.get(Table::Meta, &key).await? else { return Ok(None) };
        let body = self.unseal(&TenantId::default_tenant(), &targets_context(&key), &record.sealed).await?;
        let targets: Targets = serde_json::from_slice(body.expose()).map_err(|_| KeyError::DoesNotOpen)?;
        for tenant in targets.keys() {
            // Read anew: this process may have opened the keys before they were made.
            self.load(tenant).await?;
        }
        Ok(Some(targets))
    }

    /// Begins a change: makes a new data key for each of these tenants that has one.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn begin_targets(&self, tenants: BTreeSet<TenantId>) -> Result<Targets, KeyError> {
        let mut targets = Targets::new();
        let mut writes = Vec::new();
        for tenant in tenants {
            let Some(keys) = self.load(&tenant).await? else { continue };
            let newest = keys.0.last_key_value().map_or(0, |(number, _)| *number);
            let number = newest.checked_add(1).ok_or(KeyError::DoesNotOpen)?;
            writes.push(self.data_key(&tenant, number)?);
            targets.insert(tenant, number);
        }
        let key = self.targets_key();
        let body = serde_json::to_vec(&targets).map_err(|error| KeyError::Unavailable(error.to_string()))?;
        let sealed = self.seal(&TenantId::default_tenant(), &targets_context(&key), &body).await?;
        let note = Record { table: Table::Meta, key, owner: key, generation: 0, expires_at: None, sealed };
        writes.push(Write::Insert(note));
        self.store.apply(writes).await?;
        for tenant in targets.keys() {
            self.load(tenant).await?;
        }
        Ok(targets)
    }

    /// Ends a change: everything is sealed with the new keys.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn end_targets(&self) -> Result<(), KeyError> {
        let key = self.targets_key();
        while let Some(record) = self.store.get(Table::Meta, &key).await? {
            let delete = Write::Delete { table: Table::Meta, key, generation: record.generation };
            match self.store.apply(vec![delete]).await {
                Err(StoreError::Conflict) => {}
                other => return Ok(other?),
            }
        }
        Ok(())
    }

    /// The number of the data key that sealed a record; it says so itself. None: it is no sealed record.
    pub fn sealed_with(sealed: &[u8]) -> Option<u32> {
        Sealed::parse(sealed).map(|sealed| sealed.key_id())
    }

    /// The same content sealed with the tenant's newest data key.
    ///
    /// # Errors
    /// As [`OpenKeys::unseal`] and [`OpenKeys::seal`].
    pub async fn reseal(&self, tenant: &TenantId, context: &Context, sealed: &[u8]) -> Result<Vec<u8>, KeyError> {
        let body = self.unseal(tenant, context, sealed).await?;
        self.seal(tenant, context, body.expose()).await
    }

    /// The write that gives a tenant its data key of this number. Earlier keys stay: they open what they sealed.
    pub(super) fn data_key(&self, tenant: &TenantId, number: u32) -> Result<Write, KeyError> {
        let mut body = zeroize::Zeroizing::new(Vec::with_capacity(4 + KEY_BYTES));
        body.extend_from_slice(&number.to_be_bytes());
        body.extend_from_slice(Key::random().expose());
        let wrapped = self.root.derive(&[WRAPS_DATA_KEYS]).seal(ROOT_KEY, &data_key_context(tenant), &body)?;
        Ok(Write::Insert(Record {
            table: Table::DataKey,
            key: self.record_key(Table::DataKey, &[tenant.as_str().as_bytes(), &number.to_be_bytes()]),
            owner: self.owner_of_data_keys(tenant),
            generation: 0,
            expires_at: None,
            sealed: wrapped,
        }))
    }
}

fn targets_context(key: &RecordKey) -> Context {
    Context::of(Table::Meta).with(key)
}
