//! What was done with the vault as a whole, for `obo vault status`. Sealed: nobody without the key can claim that there
//! is a backup.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Context, KeyError, OpenKeys};
use crate::id::TenantId;
use crate::store::{Record, RecordKey, StoreError, Table, Write};

/// When something was done last. An older obo leaves out what it does not know when it writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// A backup was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backed_up_at: Option<Timestamp>,
    /// It came back with a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_at: Option<Timestamp>,
    /// The key from outside was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_changed_at: Option<Timestamp>,
    /// Everything was sealed anew with new data keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_keys_changed_at: Option<Timestamp>,
    /// A recovery copy was exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_exported_at: Option<Timestamp>,
}

impl OpenKeys {
    /// What was done with the vault.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn history(&self) -> Result<History, KeyError> {
        Ok(self.read_history().await?.0)
    }

    /// Notes what was done.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn note(&self, change: impl Fn(&mut History)) -> Result<(), KeyError> {
        loop {
            let (mut history, generation) = self.read_history().await?;
            change(&mut history);
            let body = serde_json::to_vec(&history).map_err(|error| KeyError::Unavailable(error.to_string()))?;
            let key = self.history_key();
            let sealed = self.seal(&TenantId::default_tenant(), &context(&key), &body).await?;
            let generation_read = generation.unwrap_or_default();
            let record =
                Record { table: Table::Meta, key, owner: key, generation: generation_read, expires_at: None, sealed };
            let write = if generation.is_some() { Write::Replace(record) } else { Write::Insert(record) };
            match self.store.apply(vec![write]).await {
                Err(StoreError::Conflict) => {}
                other => return Ok(other?),
            }
        }
    }

    async fn read_history(&self) -> Result<(History, Option<u64>), KeyError> {
        let key = self.history_key();
        let Some(record) = self.store.get(Table::Meta, &key).await? else { return Ok((History::default(), None)) };
        let body = self.unseal(&TenantId::default_tenant(), &context(&key), &record.sealed).await?;
        let history = serde_json::from_slice(body.expose()).map_err(|_| KeyError::DoesNotOpen)?;
        Ok((history, Some(record.generation)))
    }

    fn history_key(&self) -> RecordKey {
        self.record_key(Table::Meta, &[b"history"])
    }
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::Meta).with(key)
}
