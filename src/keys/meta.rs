//! The record that says which key opens the vault. Not sealed, because it is read before any key is known; changing
//! it can make a vault unreadable, but opens nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::sealed::Key;
use super::{Context, KeyError, OUTSIDE_KEY, Sealed, SourceName, WRAPS_ROOT_KEY};
use crate::secret::random;
use crate::store::{Record, RecordKey, Table};

/// Where the record stands. No MAC is ever all zeros, so no other record meets it.
pub(super) const KEY: RecordKey = [0; 32];

/// The format written and read.
const FORMAT: u32 = 1;

/// The longest record read, in bytes.
const MAX_BYTES: usize = 8 << 10; // 8 KiB

/// The most memory that a record may ask Argon2id for, in KiB: an edited record must not exhaust the machine.
const MAX_MEMORY_KIB: u32 = 1 << 20; // 1 GiB

/// The most passes that a record may ask Argon2id for.
const MAX_PASSES: u32 = 64;

/// The vault's own facts, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    format: u32,
    /// Random, made with the vault: the keyring's entry is named by it, so that two data folders have two.
    pub(super) vault: uuid::Uuid,
    /// Where the key is kept. Pinned: a locked keyring must never turn into another source by itself.
    pub(super) source: SourceName,
    /// [`id_of`] the key.
    pub(super) key_id: String,
    /// For `passphrase`: base64, 16 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    /// For `passphrase`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cost: Option<Cost>,
    /// The root key, sealed, in base64.
    root: String,
}

/// What one guess at a passphrase costs (Argon2id, RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cost {
    pub(super) memory_kib: u32,
    pub(super) passes: u32,
    pub(super) lanes: u32,
}

impl Cost {
    /// RFC 9106 §4, second recommended option, with one lane so that it costs the same on every machine.
    pub(super) const NEW: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 1 };
}

impl Meta {
    /// The facts of a new vault, without its keys.
    pub(super) fn new(source: SourceName, cost: Cost) -> Self {
        let passphrase = source == SourceName::Passphrase;
        Self {
            format: FORMAT,
            vault: uuid::Uuid::new_v4(),
            source,
            key_id: String::new(),
            salt: passphrase.then(|| BASE64.encode(random::<16>())),
            cost: passphrase.then_some(cost),
            root: String::new(),
        }
    }

    /// The facts of the same vault with another key, without that key.
    pub(super) fn with_source(&self, source: SourceName, cost: Cost) -> Self {
        Self::of(self.vault, source, cost)
    }

    /// The facts of a vault whose id is known, without its keys.
    pub(super) fn of(vault: uuid::Uuid, source: SourceName, cost: Cost) -> Self {
        Self { vault, ..Self::new(source, cost) }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        #[derive(Deserialize)]
        struct Peek {
            format: u32,
        }
        let damaged =
            || KeyError::Unusable("the vault's key record is damaged; restore a backup of the data folder".to_owned());
        if bytes.len() > MAX_BYTES {
            return Err(damaged());
        }
        let Peek { format } = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        if format > FORMAT {
            return Err(KeyError::Unusable(format!(
                "this vault's keys were written by a newer obo (format {format}; this one reads format {FORMAT}); run \
                 the newer obo"
            )));
        }
        let meta: Self = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        if meta.format != FORMAT {
            return Err(damaged());
        }
        Ok(meta)
    }

    /// See [`FORMAT`].
    pub(super) fn format(&self) -> u32 {
        self.format
    }

    pub(super) fn record(&self) -> Result<Record, KeyError> {
        let body = serde_json::to_vec(self).map_err(|error| KeyError::Unavailable(error.to_string()))?;
        Ok(Record { table: Table::Meta, key: KEY, owner: KEY, generation: 0, expires_at: None, sealed: body })
    }

    /// The root key, opened by the key from outside.
    pub(super) fn unwrap(&self, key: &Key) -> Result<Key, KeyError> {
        let sealed = BASE64.decode(&self.root).map_err(|_| KeyError::DoesNotOpen)?;
        let sealed = Sealed::parse(&sealed).ok_or(KeyError::DoesNotOpen)?;
        let root = key.derive(&[WRAPS_ROOT_KEY]).open(&self.context(), &sealed)?;
        Key::from_bytes(root.expose()).ok_or(KeyError::DoesNotOpen)
    }

    /// Makes `key` the key from outside, and reads back what it is relied on for.
    pub(super) fn wrap(&mut self, key: &Key, root: &Key) -> Result<(), KeyError> {
        self.key_id = id_of(key);
        let sealed = key.derive(&[WRAPS_ROOT_KEY]).seal(OUTSIDE_KEY, &self.context(), root.expose())?;
        self.root = BASE64.encode(sealed);
        self.unwrap(key).map(drop)
    }

    /// What the root key is sealed for: this vault.
    fn context(&self) -> Context {
        Context::of(Table::Meta).with(b"root key").with(self.vault.as_bytes())
    }

    /// The salt and cost of a passphrase vault.
    pub(super) fn passphrase(&self) -> Result<(Vec<u8>, Cost), KeyError> {
        let salt = self.salt.as_ref().and_then(|salt| BASE64.decode(salt).ok()).filter(|salt| salt.len() == 16);
        let cost = self.cost.filter(|cost| {
            cost.memory_kib <= MAX_MEMORY_KIB
                && (1..=MAX_PASSES).contains(&cost.passes)
                && (1..=16).contains(&cost.lanes)
        });
        salt.zip(cost).ok_or(KeyError::DoesNotOpen)
    }
}

/// Tells keys apart without telling anything about them: the first 8 bytes of SHA-256, in hex.
pub(super) fn id_of(key: &Key) -> String {
    sha2::Sha256::digest(key.expose())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
