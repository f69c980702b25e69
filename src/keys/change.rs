//! Another key from outside for the same root key.
//!
//! The vault's key record is the one place that says which key opens the vault, and it is replaced whole: before that
//! write the old key opens, after it the new one, and never both. The new key is where it will be found before the
//! write; what is left of the old one is removed after it. Whatever a crash leaves, the same command takes up again.
//!
//! Nothing that is sealed changes: processes that have the root key open go on.

use super::source::Target;
use super::{CREATE_WAIT, Config, KeyError, Keys, SourceName, meta, source};
use crate::store::{Lease, StoreError, Table, Write};

/// What came of a change of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Names the key that opened the vault until now; none: an earlier try had changed it already.
    pub from: Option<String>,
    /// Names the key that opens it from now on.
    pub to: String,
    /// What is left to be done, in words, where something could not be removed.
    pub left: Option<String>,
}

impl Keys {
    /// Makes the key that `to` names the vault's key. A key file that is not there is made; a key in the keyring always
    /// is; a passphrase is asked for.
    ///
    /// # Errors
    /// See [`KeyError`]. The vault opens with its old key as before.
    ///
    /// # Cancellation
    /// The vault opens with the old key or with the new one; the next try finds out.
    pub async fn change_to(&self, to: &Config) -> Result<Changed, KeyError> {
        let _lease = self.only_one().await?;
        let (meta, generation) = self.meta_and_generation().await?;
        if let Some(id) = self.changed_already(&meta, to).await? {
            let left = self.outside.settle(&meta, self.config.source).await.err();
            return Ok(Changed { from: None, to: id, left: left.map(|error| error.to_string()) });
        }
        let open = self.unlock_existing(&meta).await?;
        if meta.source == SourceName::Keyring && to.source == SourceName::Keyring {
            // An earlier change that ended too soon: its key stands where the next one will.
            self.outside.settle(&meta, meta.source).await?;
        }

        let mut next = meta.with_source(to.source, self.outside.cost());
        let key = self.outside.key(to, Target::Next(&next)).await?;
        next.wrap(&key, &open.root)?;
        if next.key_id == meta.key_id {
            return Err(KeyError::Unusable("that is the key which the vault has already; name another one".to_owned()));
        }
        let record = crate::store::Record { generation, ..next.record()? };
        match self.store.apply(vec![Write::Replace(record)]).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Err(KeyError::Unavailable(BUSY.to_owned())),
            Err(error) => return Err(error.into()),
        }
        tracing::info!(vault = %next.vault, source = next.source.as_str(), "vault.key_changed");
        let left = self.outside.settle(&next, meta.source).await.err();
        Ok(Changed { from: Some(meta.key_id), to: next.key_id, left: left.map(|error| error.to_string()) })
    }

    /// Whether an earlier try has made the key that `to` names the vault's key, though it was not told so.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn is_changed_to(&self, to: &Config) -> Result<bool, KeyError> {
        let (meta, _) = self.meta_and_generation().await?;
        Ok(self.changed_already(&meta, to).await?.is_some())
    }

    async fn changed_already(&self, meta: &meta::Meta, to: &Config) -> Result<Option<String>, KeyError> {
        if meta.source != to.source {
            return Ok(None);
        }
        let changed = match to.source {
            // Where obo.toml still names another source, only a change can have brought the vault to this one.
            SourceName::Keyring | SourceName::Passphrase => self.config.source != to.source,
            SourceName::File if !to.path.as_ref().is_some_and(|path| path.exists()) => false,
            SourceName::File | SourceName::Env => {
                let found = self.outside.key(to, Target::Existing(meta)).await?;
                let same = source::same_place(&self.config, to);
                !same && meta::id_of(&found) == meta.key_id
            }
        };
        Ok(changed.then(|| meta.key_id.clone()))
    }

    pub(super) async fn only_one(&self) -> Result<Lease, KeyError> {
        self.store.lease(&meta::KEY, CREATE_WAIT).await?.ok_or_else(|| KeyError::Unavailable(BUSY.to_owned()))
    }

    async fn meta_and_generation(&self) -> Result<(meta::Meta, u64), KeyError> {
        let none = || KeyError::Unusable("there is no vault here yet, so there is no key to change".to_owned());
        let record = self.store.get(Table::Meta, &meta::KEY).await?.ok_or_else(none)?;
        Ok((meta::Meta::parse(&record.sealed)?, record.generation))
    }
}

pub(super) const BUSY: &str = "another obo process is changing this vault's key; wait for it, then try again";
