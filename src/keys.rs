//! The key hierarchy: a key from outside opens the vault's root key, the root key opens each tenant's data key, and
//! data keys seal records.
//!
//! Keys are opened on first need, once, and stay in memory. A vault that exists is never given a second key: a
//! missing one is an error that explains itself (INV-5).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::failure::{Code, Failure};
use crate::id::TenantId;
use crate::os_keyring::Down;
use crate::secret::{Secret, SecretBytes};
use crate::store::{self, Record, RecordKey, Store, StoreError, Table, Write};

mod change;
mod data_keys;
mod history;
mod meta;
mod recovery;
mod sealed;
mod source;

pub use change::Changed;
pub use data_keys::Targets;
pub use history::History;
pub use recovery::{Lock, MAX_COPY_BYTES, Opener, Recovered};
pub use sealed::{MAX_PLAINTEXT_BYTES, Sealed};

use meta::Meta;
use sealed::Key;
use source::{Outside, Target};

/// How long another process may take to give a new vault its key.
const CREATE_WAIT: Duration = Duration::from_secs(30);

/// The key id in the header of a wrapped root key: the key from outside has no number of its own.
const OUTSIDE_KEY: u32 = 0;
/// The key id of the root key.
const ROOT_KEY: u32 = 1;
/// The number of a tenant's first data key. Later ones, where there are any, count on.
const FIRST_DATA_KEY: u32 = 1;

// Labels of derived keys. NEVER CHANGE: nothing that was sealed before would open or be found.
const WRAPS_ROOT_KEY: &[u8] = b"obo/v1/wraps root key";
const WRAPS_DATA_KEYS: &[u8] = b"obo/v1/wraps data keys";
const MAC: &[u8] = b"obo/v1/mac/";

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

impl Config {
    /// What the operator should know about this choice, if anything: a key that lies beside what it locks protects
    /// nothing against somebody who copies the folder.
    pub fn warning(&self, data_dir: &Path) -> Option<String> {
        let path = self.path.as_ref().filter(|_| self.source == SourceName::File)?;
        let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        whole(path).starts_with(whole(data_dir)).then(|| {
            format!(
                "the vault's key {} lies in the data folder, so a copy of the folder holds both; move the key elsewhere",
                path.display()
            )
        })
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

impl SourceName {
    /// As obo.toml spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keyring => "keyring",
            Self::Passphrase => "passphrase",
            Self::File => "file",
            Self::Env => "env",
        }
    }

    /// In words, after "kept in".
    fn words(self) -> &'static str {
        match self {
            Self::Keyring => "the OS keyring",
            Self::Passphrase => "a passphrase",
            Self::File => "a file",
            Self::Env => "an environment variable",
        }
    }
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

impl From<StoreError> for KeyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unusable(text) => Self::Unusable(text),
            StoreError::Conflict | StoreError::Unavailable(_) => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<Down> for KeyError {
    fn from(down: Down) -> Self {
        Self::Unavailable(match &down {
            Down::Fails(_) => format!("{down}, or for a new vault choose another [vault.key] source"),
            Down::Silent => down.to_string(),
        })
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Failure {
        Failure::new(
            Code::VaultUnavailable,
            "obo cannot open its vault; the person who runs this obo server finds the reason in its log",
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

/// What [`Keys::with_prompt`] is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A passphrase for a new vault. Ask twice: what is mistyped here locks the vault for ever.
    NewPassphrase,
    /// A new passphrase for a vault that exists. Ask twice, too.
    NextPassphrase,
    /// The passphrase of the vault.
    Passphrase,
    /// A passphrase for a new recovery copy. Ask twice, too.
    NewRecoveryPassphrase,
    /// The passphrase of a recovery copy.
    RecoveryPassphrase,
}

/// Asks the person at the terminal. None when there is no terminal, or nothing was entered. May block.
pub type Prompt = Arc<dyn Fn(Ask) -> Option<Secret> + Send + Sync>;

/// The keys of a vault, opened on first need. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    store: Arc<dyn Store>,
    config: Arc<Config>,
    outside: Outside,
    open: Arc<OnceCell<Arc<OpenKeys>>>,
}

impl Keys {
    /// Keys that open when they are first needed.
    pub fn new(store: Arc<dyn Store>, config: Config) -> Self {
        Self { store, config: Arc::new(config), outside: Outside::real(), open: Arc::default() }
    }

    /// Asks a person for the passphrase, and gives them time to unlock the keyring. For the command line.
    #[must_use]
    pub fn with_prompt(mut self, prompt: Prompt) -> Self {
        self.outside.ask_with(prompt);
        self
    }

    /// Tries whether a key could be kept or read as `config` says, and leaves nothing behind. A keyring is written to,
    /// read back on another thread (some keep what they are given for one thread alone) and cleaned; a file or a
    /// variable is read; a passphrase always works.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn probe(config: &Config) -> Result<(), KeyError> {
        Outside::real().probe(config).await
    }

    /// What the vault says of its key, without opening it. None: there is no vault yet.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn facts(&self) -> Result<Option<Facts>, KeyError> {
        Ok(self.meta().await?.map(|meta| Facts {
            vault: meta.vault,
            format: meta.format(),
            source: meta.source,
            key_id: meta.key_id,
        }))
    }

    /// Whether the keys are open already.
    pub fn is_open(&self) -> bool {
        self.open.initialized()
    }

    /// Opens the keys, or returns the open ones. A new vault gets a new key; an existing one never does. An error is
    /// not remembered: the next call tries again.
    ///
    /// # Errors
    /// See [`KeyError`].
    ///
    /// # Cancellation
    /// A vault whose first opening is dropped has its key or has none; the next call opens either.
    pub async fn open(&self) -> Result<Arc<OpenKeys>, KeyError> {
        self.open.get_or_try_init(|| self.unlock()).await.cloned()
    }

    async fn unlock(&self) -> Result<Arc<OpenKeys>, KeyError> {
        if let Some(meta) = self.meta().await? {
            return self.unlock_existing(&meta).await;
        }
        // Two processes that start at once must not each make a key: the second one's would lock out the first.
        let _lease = self.store.lease(&meta::KEY, CREATE_WAIT).await?.ok_or_else(|| {
            KeyError::Unavailable(
                "another obo process has been making this vault's key for too long; end it".to_owned(),
            )
        })?;
        match self.meta().await? {
            Some(meta) => self.unlock_existing(&meta).await,
            None => self.unlock_new().await,
        }
    }

    async fn meta(&self) -> Result<Option<Meta>, KeyError> {
        self.store.get(Table::Meta, &meta::KEY).await?.map(|record| Meta::parse(&record.sealed)).transpose()
    }

    async fn unlock_existing(&self, meta: &Meta) -> Result<Arc<OpenKeys>, KeyError> {
        if meta.source != self.config.source {
            return Err(KeyError::Unusable(format!(
                "this vault's key is kept in {}, but obo.toml names {}; set [vault.key] source = \"{}\"",
                meta.source.words(),
                self.config.source.words(),
                meta.source.as_str(),
            )));
        }
        let key = self.outside.key(&self.config, Target::Existing(meta)).await?;
        let id = meta::id_of(&key);
        if id != meta.key_id {
            return Err(source::wrong_key(&self.config, &id, &meta.key_id));
        }
        let root = meta.unwrap(&key)?;
        Ok(Arc::new(OpenKeys::new(Arc::clone(&self.store), root, meta.vault, meta.key_id.clone())))
    }

    /// Invariant INV-5: only where nothing was ever sealed is a key made. Otherwise a keyring that is locked, and so
    /// looks empty, would cost everybody their connections.
    async fn unlock_new(&self) -> Result<Arc<OpenKeys>, KeyError> {
        for table in [Table::DataKey, Table::Grant] {
            if !self.store.scan(table, None, 1).await?.is_empty() {
                return Err(KeyError::Unusable(
                    "this vault has sealed records but its key record is gone; restore a backup of the data folder \
                     (obo never makes a second key beside an existing vault)"
                        .to_owned(),
                ));
            }
        }
        let mut meta = Meta::new(self.config.source, self.outside.cost());
        let key = self.outside.key(&self.config, Target::New(&meta)).await?;
        let root = Key::random();
        meta.wrap(&key, &root)?;
        self.store.apply(vec![Write::Insert(meta.record()?)]).await?;
        tracing::info!(vault = %meta.vault, source = meta.source.as_str(), "vault.created");
        Ok(Arc::new(OpenKeys::new(Arc::clone(&self.store), root, meta.vault, meta.key_id)))
    }
}

/// What a vault says of its key. Nothing of it is secret, and nothing of it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The vault's id.
    pub vault: uuid::Uuid,
    /// The format of its keys.
    pub format: u32,
    /// Where the key from outside is kept.
    pub source: SourceName,
    /// Names that key.
    pub key_id: String,
}

/// Open keys.
pub struct OpenKeys {
    store: Arc<dyn Store>,
    root: Key,
    vault: uuid::Uuid,
    key_id: String,
    /// As many as there are tenants, which an operator names.
    tenants: Mutex<HashMap<TenantId, Arc<DataKeys>>>,
}

/// A tenant's data keys by their numbers. Never empty; the newest seals, every one opens.
struct DataKeys(BTreeMap<u32, Key>);

impl OpenKeys {
    fn new(store: Arc<dyn Store>, root: Key, vault: uuid::Uuid, key_id: String) -> Self {
        Self { store, root, vault, key_id, tenants: Mutex::default() }
    }

    /// The vault's id: random, made with it, and no secret.
    pub fn vault_id(&self) -> uuid::Uuid {
        self.vault
    }

    /// Names the key from outside that opened the vault; no secret.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Seals `plaintext` for a tenant; it opens with the same tenant and context only.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`] when a tenant's first data key cannot be stored.
    pub async fn seal(&self, tenant: &TenantId, context: &Context, plaintext: &[u8]) -> Result<Vec<u8>, KeyError> {
        let keys = match self.known(tenant) {
            Some(keys) => keys,
            None => match self.load(tenant).await? {
                Some(keys) => keys,
                None => self.first(tenant).await?,
            },
        };
        let (number, key) = keys.0.last_key_value().ok_or(KeyError::DoesNotOpen)?;
        key.seal(*number, context, plaintext)
    }

    /// Opens what [`OpenKeys::seal`] sealed.
    ///
    /// # Errors
    /// [`KeyError::DoesNotOpen`].
    pub async fn unseal(&self, tenant: &TenantId, context: &Context, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        let sealed = Sealed::parse(sealed).ok_or(KeyError::DoesNotOpen)?;
        let number = sealed.key_id();
        let known = self.known(tenant).filter(|keys| keys.0.contains_key(&number));
        let keys = match known {
            Some(keys) => keys,
            // Another process may have made the key since.
            None => self.load(tenant).await?.ok_or(KeyError::DoesNotOpen)?,
        };
        keys.0.get(&number).ok_or(KeyError::DoesNotOpen)?.open(context, &sealed)
    }

    /// HMAC-SHA256 over length-prefixed parts under a key for this purpose alone. Stable over key rotation.
    pub fn mac(&self, purpose: &'static str, parts: &[&[u8]]) -> [u8; 32] {
        use hmac::{KeyInit as _, Mac as _};
        let key = self.root.derive(&[MAC, purpose.as_bytes()]);
        #[expect(clippy::expect_used, reason = "RFC 2104 §3: HMAC takes keys of every length")]
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key.expose()).expect("any length will do");
        for part in parts {
            mac.update(&(part.len() as u32).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// The key of a record: a MAC over what it names, so that the store learns nothing from it.
    pub fn record_key(&self, table: Table, parts: &[&[u8]]) -> RecordKey {
        let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
        let number = [table as u8];
        all.push(&number);
        all.extend_from_slice(parts);
        self.mac("record key", &all)
    }

    /// What a tenant's data keys are found by.
    pub fn owner_of_data_keys(&self, tenant: &TenantId) -> RecordKey {
        self.record_key(Table::DataKey, &[tenant.as_str().as_bytes()])
    }

    /// How many data keys a tenant has, each of which was opened anew.
    ///
    /// # Errors
    /// [`KeyError::DoesNotOpen`] when one of them does not.
    pub async fn data_keys(&self, tenant: &TenantId) -> Result<usize, KeyError> {
        Ok(self.load(tenant).await?.map_or(0, |keys| keys.0.len()))
    }

    /// The store as far as it concerns a tenant.
    fn within(&self, tenant: &TenantId) -> Arc<dyn Store> {
        store::within(&self.store, &self.owner_of_data_keys(tenant))
    }

    fn known(&self, tenant: &TenantId) -> Option<Arc<DataKeys>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()
    }

    /// Reads a tenant's data keys from the store.
    async fn load(&self, tenant: &TenantId) -> Result<Option<Arc<DataKeys>>, KeyError> {
        let owner = self.owner_of_data_keys(tenant);
        let wrapping = self.root.derive(&[WRAPS_DATA_KEYS]);
        let mut keys = BTreeMap::new();
        for record in self.within(tenant).owned(Table::DataKey, &owner).await? {
            let sealed = Sealed::parse(&record.sealed).ok_or(KeyError::DoesNotOpen)?;
            let body = wrapping.open(&data_key_context(tenant), &sealed)?;
            let (number, key) = body.expose().split_first_chunk::<4>().ok_or(KeyError::DoesNotOpen)?;
            keys.insert(u32::from_be_bytes(*number), Key::from_bytes(key).ok_or(KeyError::DoesNotOpen)?);
        }
        if keys.is_empty() {
            return Ok(None);
        }
        let keys = Arc::new(DataKeys(keys));
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone(), Arc::clone(&keys));
        Ok(Some(keys))
    }

    /// Makes a tenant's first data key; or finds that another process just has.
    async fn first(&self, tenant: &TenantId) -> Result<Arc<DataKeys>, KeyError> {
        let new = self.data_key(tenant, FIRST_DATA_KEY)?;
        match self.within(tenant).apply(vec![new]).await {
            Ok(()) | Err(StoreError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
        // What the store has counts, whoever wrote it.
        self.load(tenant).await?.ok_or_else(|| KeyError::Unavailable("the new data key was not found again".to_owned()))
    }
}

/// Whether this is the record that says which key opens the vault: the one record that is not sealed.
pub fn is_key_record(record: &Record) -> bool {
    record.table == Table::Meta && record.key == meta::KEY
}

fn data_key_context(tenant: &TenantId) -> Context {
    Context::of(Table::DataKey).with(tenant.as_str().as_bytes())
}

#[cfg(test)]
mod tests;
