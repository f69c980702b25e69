//! The key hierarchy: a key from outside opens the vault's root key, the root key opens each tenant's data key, and
//! data keys seal records.
//!
//! Keys are opened on first need, once, and stay in memory. A vault that exists is never given a second key: a
//! missing one is an error that explains itself (INV-5).

use std::sync::Arc;

use crate::failure::{Code, Failure};
use crate::id::TenantId;
use crate::secret::SecretBytes;
use crate::store::{RecordKey, Store, Table};

/// `[vault.key]` of obo.toml.
#[derive(Debug, Clone, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the key is kept.
    pub source: SourceName,
    /// `source = "file"`: 32 raw bytes, or their base64.
    pub path: Option<std::path::PathBuf>,
    /// `source = "env"`: the variable that holds 32 bytes in base64.
    pub env: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { source: SourceName::Keyring, path: None, env: None }
    }
}

/// Where the vault's key is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceName {
    /// The operating system's keyring.
    Keyring,
    /// Derived from a passphrase (Argon2id).
    Passphrase,
    /// A file outside the data folder.
    File,
    /// An environment variable.
    Env,
}

/// Why the keys are not open. The text explains itself to the person who runs obo; it holds no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    /// The key is missing, wrong, or cannot be read. The text says the mend.
    #[error("{0}")]
    Unusable(String),
    /// It may work later: a locked keyring, a store that does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// A sealed record does not open: it was changed, moved, or sealed with another key.
    #[error("a sealed record does not open: it was changed, moved, or sealed with another key")]
    DoesNotOpen,
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Failure {
        Failure::new(
            Code::VaultUnavailable,
            "obo cannot open its vault; the person who runs this obo server finds the reason with `obo doctor` or in its log",
        )
        .because(error)
    }
}

/// What a sealed record is: the associated data that it opens with, and only with.
///
/// Parts are length-prefixed, so `("acm", "ealice")` and `("acme", "alice")` differ.
#[derive(Debug, Clone)]
pub struct Context(Vec<u8>);

impl Context {
    /// The context of a record of `table`.
    pub fn of(table: Table) -> Self {
        Self(b"obo/v1\0".to_vec()).with(&[table as u8])
    }

    /// Adds a part.
    #[must_use]
    pub fn with(mut self, part: &[u8]) -> Self {
        self.0.extend_from_slice(&(part.len() as u32).to_be_bytes());
        self.0.extend_from_slice(part);
        self
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The keys of a vault, opened on first need. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    // store, config, OnceCell<Arc<OpenKeys>>
}

impl Keys {
    /// Keys that open when they are first needed.
    pub fn new(_store: Arc<dyn Store>, _config: Config) -> Self {
        todo!()
    }

    /// Opens the keys, or returns the open ones. A new vault gets a new key; an existing one never does. An error is
    /// not remembered: the next call tries again.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn open(&self) -> Result<Arc<OpenKeys>, KeyError> {
        todo!()
    }
}

/// Open keys.
pub struct OpenKeys {
    // root key, data keys by tenant, store
}

impl OpenKeys {
    /// Seals `plaintext` for a tenant; it opens with the same tenant and context only.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`] when a tenant's first data key cannot be stored.
    pub async fn seal(&self, _tenant: &TenantId, _context: &Context, _plaintext: &[u8]) -> Result<Vec<u8>, KeyError> {
        todo!()
    }

    /// Opens what [`OpenKeys::seal`] sealed.
    ///
    /// # Errors
    /// [`KeyError::DoesNotOpen`].
    pub async fn unseal(
        &self,
        _tenant: &TenantId,
        _context: &Context,
        _sealed: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        todo!()
    }

    /// HMAC-SHA256 over length-prefixed parts under a key for this purpose alone. Stable over key rotation.
    pub fn mac(&self, _purpose: &'static str, _parts: &[&[u8]]) -> [u8; 32] {
        todo!()
    }

    /// The key of a record: a MAC over what it names, so that the store learns nothing from it.
    pub fn record_key(&self, table: Table, parts: &[&[u8]]) -> RecordKey {
        let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
        let number = [table as u8];
        all.push(&number);
        all.extend_from_slice(parts);
        self.mac("record key", &all)
    }
}
