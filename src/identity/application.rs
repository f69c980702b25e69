//! Trusted applications: backends that authenticate their users themselves and name them in `Obo-User`.
//!
//! Their keys come from obo.toml (as SHA-256) or from `obo app add`. The latter are
//! `oboapp_NAME_` and 43 characters of base64url; the name finds the record, whose sealed body has the key's SHA-256.
//! When an application was last seen stands in a record of its own: noting it can never bring an old key back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use tokio_util::task::TaskTracker;
use url::Url;

use super::{Authenticate, Credential, IdentityError, Subject, Via, store_failure};
use crate::clock::{SharedClock, later};
use crate::egress;
use crate::failure::{Code, Failure};
use crate::id::{Person, Source, TenantId, UserId};
use crate::keys::{Context, KeyError, Keys, OpenKeys};
use crate::secret::{Secret, random_text};
use crate::store::{Record, RecordKey, Store, StoreError, Table, Write};

/// What a key from `obo app add` begins with. NEVER CHANGE IT: keys in use would stop to be recognised.
const PREFIX: &str = "oboapp_";

/// Characters at the end of such a key: 32 bytes in base64url.
const SECRET_CHARS: usize = 43;

/// Most applications that `obo app add` keeps.
const MAX_APPLICATIONS: usize = 1000;

/// Longest that an old key stays good beside the one that replaced it.
pub const MAX_KEEP_OLD: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How often it is written down that an application was seen, at most, by one process.
const NOTE_USE_EVERY: Duration = Duration::from_secs(5 * 60);

/// How often a change is tried again that met another one.
const MAX_TRIES: usize = 8;

/// `[[identity.application]]` of obo.toml.
#[derive(Clone, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name. Its users' source is `app:NAME`.
    pub name: String,
    /// The organisation that its users belong to.
    #[schemars(with = "String")]
    pub tenant: TenantId,
    /// The SHA-256 of its key, in hex.
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{64}$"))]
    pub key_sha256: String,
    /// Where a browser is sent so that the application confirms whose it is, before an account is connected.
    #[serde(default)]
    pub user_verifier_url: Option<Url>,
    /// For applications whose users have no browser to sign in with, such as bots: in place of `user_verifier_url`, the
    /// page shows a code after the consent, which the user gives to the application, and the application to obo.
    #[serde(default)]
    pub confirm_by_code: bool,
    /// Where a flow may send the browser at its end: exact origin and path, query free.
    #[serde(default)]
    pub next_uris: Vec<Url>,
}

/// An application whose key was shown, or that is listed. Private fields: only this module builds one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    name: String,
    source: Source,
    tenant: TenantId,
    may_read_tokens: bool,
    user_verifier_url: Option<Url>,
    confirm_by_code: bool,
    next_uris: Vec<Url>,
    /// The hash of the key that was shown, or of its newest.
    key: [u8; 32],
}

impl Application {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The source of its users: `app:NAME`.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The organisation that its users belong to.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Whether it was added with `--may-read-tokens`.
    pub fn may_read_tokens(&self) -> bool {
        self.may_read_tokens
    }

    /// What it reads its users' tokens with: none, unless it was added with `--may-read-tokens`.
    pub fn token_reader(&self) -> Option<TokenReader<'_>> {
        self.may_read_tokens.then_some(TokenReader(self))
    }

    /// Where it confirms whose a browser is.
    pub fn user_verifier_url(&self) -> Option<&Url> {
        self.user_verifier_url.as_ref()
    }

    /// Whether its users type a code back that the page shows them.
    pub fn confirms_by_code(&self) -> bool {
        self.confirm_by_code
    }

    /// Whether a flow may send the browser there at its end: the same origin and path as one of the list; the query is
    /// free. What a browser would read differently than it is written is not there (T7).
    pub fn may_send_to(&self, uri: &Url) -> bool {
        let plain = uri.username().is_empty() && uri.password().is_none() && uri.fragment().is_none();
        let listed = |known: &Url| known.origin() == uri.origin() && known.path() == uri.path();
        plain && matches!(uri.scheme(), "https" | "http") && self.next_uris.iter().any(listed)
    }

    /// The user that the application names, as a subject. They are the application's own: the same id from an issuer
    /// is somebody else.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`] when it is not a user id.
    pub fn on_behalf_of(&self, user: &str) -> Result<Subject, IdentityError> {
        let user: UserId =
            user.parse().map_err(|_| IdentityError::invalid("the user that is named is not a user id"))?;
        let person = Person { tenant: self.tenant.clone(), source: self.source.clone(), user };
        Ok(Subject {
            person,
            groups: Vec::new(),
            via: Via::Application(self.name.clone()),
            expires_at: None,
            lacking: None,
        })
    }
}

/// An application that may read its users' tokens. Only [`Application::token_reader`] makes one.
#[derive(Debug, Clone, Copy)]
pub struct TokenReader<'a>(&'a Application);

impl TokenReader<'_> {
    /// The application.
    pub fn application(&self) -> &Application {
        self.0
    }

    /// Whether a person is one of its users.
    pub fn may_read_of(&self, person: &Person) -> bool {
        person.source == self.0.source && person.tenant == self.0.tenant
    }
}

/// Recognises applications, and keeps those of `obo app`. Cheap to clone.
#[derive(Clone)]
pub struct Applications {
    configured: Arc<Vec<([u8; 32], Application)>>,
    store: Arc<dyn Store>,
    keys: Keys,
    clock: SharedClock,
    uses: Arc<Uses>,
}

/// Which uses this process has written down.
#[derive(Default)]
struct Uses {
    /// When, by name. Only applications that showed their key are in it.
    noted: Mutex<BTreeMap<String, Timestamp>>,
    under_way: TaskTracker,
}

impl Uses {
    /// Whether this one should be written down; then the next ones should not.
    fn is_due(&self, name: &str, now: Timestamp) -> bool {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = noted.get(name).is_none_or(|last| later(*last, NOTE_USE_EVERY) <= now);
        if due {
            noted.insert(name.to_owned(), now);
        }
        due
    }
}

/// An application as the operator sees it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The application.
    pub application: Application,
    /// Whether it stands in obo.toml, which then has its key.
    pub configured: bool,
    /// Whether obo.toml has taken its name: then its key is refused.
    pub hidden: bool,
    /// When it was added; none for those of obo.toml.
    pub created_at: Option<Timestamp>,
    /// Until when the key before the newest is good; none: it is not.
    pub old_key_until: Option<Timestamp>,
    /// When it was last seen, give or take some minutes.
    pub last_used_at: Option<Timestamp>,
}

/// The sealed body of a record.
#[derive(Serialize, Deserialize)]
struct Body {
    name: String,
    tenant: TenantId,
    may_read_tokens: bool,
    key_sha256: [u8; 32],
    created_at: Timestamp,
    /// The key before this one, while it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_key: Option<OldKey>,
}

/// A key that was replaced.
#[derive(Serialize, Deserialize)]
struct OldKey {
    sha256: [u8; 32],
    until: Timestamp,
}

/// The sealed body of the record that says when an application was last seen.
#[derive(Serialize, Deserialize)]
struct LastUse {
    at: Timestamp,
}

impl Body {
    /// Whether a key of this hash is good now. Both are compared, whichever it is.
    fn has_key(&self, hash: &[u8; 32], now: Timestamp) -> bool {
        let newest = self.key_sha256.ct_eq(hash);
        let old = self.old_key(now).map_or(Choice::from(0), |old| old.sha256.ct_eq(hash));
        bool::from(newest | old)
    }

    fn old_key(&self, now: Timestamp) -> Option<&OldKey> {
        self.old_key.as_ref().filter(|old| now < old.until)
    }
}

/// Checks what serde cannot.
pub(super) fn check(configs: &[Config]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for config in configs {
        let key = format!("identity.application {:?}", config.name);
        Source::application(&config.name).map_err(|error| format!("identity.application: {error}"))?;
        if !names.insert(&config.name) {
            return Err(format!("{key}: the name occurs twice; give each application its own"));
        }
        let hash = decode_hash(&config.key_sha256)
            .ok_or_else(|| format!("{key}: key_sha256 is not 64 hex digits; `printf %s KEY | sha256sum` makes it"))?;
        if !keys.insert(hash) {
            return Err(format!("{key}: another application has the same key; give each its own"));
        }
        if config.confirm_by_code && config.user_verifier_url.is_some() {
            return Err(format!("{key}: user_verifier_url and confirm_by_code exclude each other; keep one"));
        }
        for url in config.user_verifier_url.iter().chain(&config.next_uris) {
            let loopback = url.host().is_some_and(|host| egress::is_loopback(&host));
            if !(url.scheme() == "https" || url.scheme() == "http" && loopback) {
                return Err(format!("{key}: {url} must be https, or http on a loopback host"));
            }
        }
    }
    Ok(())
}

fn decode_hash(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digit = |hex: u8| char::from(hex).to_digit(16).map(|digit| digit as u8);
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

impl Applications {
    pub(super) fn new(configs: Vec<Config>, store: Arc<dyn Store>, keys: Keys, clock: SharedClock) -> Self {
        let configured = configs.into_iter().filter_map(|config| {
            let application = Application {
                source: Source::application(&config.name).ok()?,
                name: config.name,
                tenant: config.tenant,
                may_read_tokens: false,
                user_verifier_url: config.user_verifier_url,
                confirm_by_code: config.confirm_by_code,
                next_uris: config.next_uris,
                key: decode_hash(&config.key_sha256)?,
            };
            Some((decode_hash(&config.key_sha256)?, application))
        });
        Self { configured: Arc::new(configured.collect()), store, keys, clock, uses: Arc::default() }
    }

    /// The application of obo.toml whose users have this source and tenant.
    pub(super) fn configured(&self, source: &Source, tenant: &TenantId) -> Option<&Application> {
        let fits = |application: &&Application| application.source == *source && application.tenant == *tenant;
        self.configured.iter().map(|(_, application)| application).find(fits)
    }

    /// Whether a bearer is the key of an application, or has the form of one.
    pub(super) fn is_key(&self, bearer: &Secret) -> bool {
        let hash = digest(bearer);
        bearer.expose().starts_with(PREFIX) || self.configured.iter().any(|(known, _)| bool::from(known.ct_eq(&hash)))
    }

    /// Finds the application that a key belongs to, and notes that it was seen.
    pub(super) async fn find(&self, key: &Secret) -> Result<Application, IdentityError> {
        let application = self.look_up(key).await?;
        self.note_use(&application.name);
        Ok(application)
    }

    async fn look_up(&self, key: &Secret) -> Result<Application, IdentityError> {
        let hash = digest(key);
        // All are compared, each in constant time: which one it is cannot be told by how long it took.
        let mut found = None;
        for (known, application) in self.configured.iter() {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(application);
            }
        }
        if let Some(application) = found {
            return Ok(application.clone());
        }
        let unknown = || IdentityError::invalid("a key that belongs to no application");
        let name = name_in_key(key.expose()).ok_or_else(unknown)?;
        // obo.toml may have taken the name later. Two applications with one source would share their users.
        if self.is_configured(name) {
            return Err(IdentityError::invalid(format!(
                "the key of an older application {name}; obo.toml has the name"
            )));
        }
        let keys = self.keys.open().await?;
        let record = self.store.get(Table::Application, &record_key(&keys, name)).await?.ok_or_else(unknown)?;
        let body: Body = open(&keys, &record).await?;
        if body.name != name || !body.has_key(&hash, self.clock.now()) {
            return Err(unknown());
        }
        let application = application(&body).ok_or_else(unknown)?;
        Ok(Application { key: hash, ..application })
    }

    /// Whether the key that an application has shown is still one: it may have been removed or rotated since.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn is_current(&self, application: &Application) -> Result<bool, Failure> {
        let configured = |(known, one): &([u8; 32], Application)| *known == application.key && one == application;
        if self.configured.iter().any(configured) {
            return Ok(true);
        }
        let keys = self.keys.open().await?;
        let key = record_key(&keys, &application.name);
        let Some(record) = self.store.get(Table::Application, &key).await.map_err(store_failure)? else {
            return Ok(false);
        };
        let body: Body = open(&keys, &record).await?;
        Ok(!self.is_configured(&body.name) && body.has_key(&application.key, self.clock.now()))
    }

    /// The tenant of an application, for the record of an act on it.
    ///
    /// # Errors
    /// `not_found`; `vault_unavailable`.
    pub async fn tenant_of(&self, name: &str) -> Result<TenantId, Failure> {
        let keys = self.keys.open().await?;
        if let Some(record) =
            self.store.get(Table::Application, &record_key(&keys, name)).await.map_err(store_failure)?
        {
            let body: Body = open(&keys, &record).await?;
            return Ok(body.tenant);
        }
        let configured = self.configured.iter().find(|(_, application)| application.name == name);
        configured.map(|(_, application)| application.tenant.clone()).ok_or_else(|| {
            Failure::new(Code::NotFound, "there is no application of that name; `obo app list` shows them".to_owned())
        })
    }

    /// Writes down that an application was seen: rarely, and while nobody waits for it.
    fn note_use(&self, name: &str) {
        let now = self.clock.now();
        // Nothing that only notes may be what asks for the vault's passphrase.
        if !self.keys.is_open() || !self.uses.is_due(name, now) {
            return;
        }
        let (this, name) = (self.clone(), name.to_owned());
        self.uses.under_way.spawn(async move {
            if let Err(failure) = this.write_use(&name, now).await {
                tracing::warn!(cause = failure.cause, "when an application was last seen could not be written down");
            }
        });
    }

    async fn write_use(&self, name: &str, at: Timestamp) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        let key = use_key(&keys, name);
        let record = seal(&keys, Table::ApplicationUse, key, &LastUse { at }, 0).await?;
        self.store.apply(vec![Write::Put(record)]).await.map_err(store_failure)
    }

    /// Waits for notes under way, at most `within`. For shutdown.
    pub(super) async fn drain(&self, within: Duration) {
        self.uses.under_way.close();
        let _ = tokio::time::timeout(within, self.uses.under_way.wait()).await;
    }

    fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|(_, application)| application.name == name)
    }

    /// Adds an application and returns its key, which is kept nowhere.
    ///
    /// # Errors
    /// `invalid_arguments`: the name is not one, or is taken. `vault_unavailable`.
    pub async fn add(&self, name: &str, tenant: TenantId, may_read_tokens: bool) -> Result<Secret, Failure> {
        let wrong = |message: String| Failure::new(Code::InvalidArguments, message);
        Source::application(name).map_err(|error| wrong(error.to_string()))?;
        let taken = || wrong(format!("an application named {name} exists; choose another name, or rotate its key"));
        if self.is_configured(name) {
            return Err(taken());
        }
        let keys = self.keys.open().await?;
        if self.records().await?.len() >= MAX_APPLICATIONS {
            return Err(wrong("there are as many applications as obo keeps; remove one first".to_owned()));
        }
        let key = new_key(name);
        let body = Body {
            name: name.to_owned(),
            tenant,
            may_read_tokens,
            key_sha256: digest(&key),
            created_at: self.clock.now(),
            old_key: None,
        };
        match self.store.apply(vec![Write::Insert(seal_body(&keys, &body, 0).await?)]).await {
            Ok(()) => Ok(key),
            Err(StoreError::Conflict) => Err(taken()),
            Err(error) => Err(store_failure(error)),
        }
    }

    /// Gives an application of [`Applications::add`] a new key. The one before it stays good for `keep_old`, so that
    /// whoever has it can change over without a gap; one that was replaced earlier is refused from now on.
    ///
    /// # Errors
    /// `not_found`; `invalid_arguments`: the key stands in obo.toml, or `keep_old` is longer than [`MAX_KEEP_OLD`];
    /// `vault_unavailable`.
    pub async fn rotate(&self, name: &str, keep_old: Duration) -> Result<Secret, Failure> {
        if keep_old > MAX_KEEP_OLD {
            let days = MAX_KEEP_OLD.as_secs() / 86_400;
            return Err(Failure::new(Code::InvalidArguments, format!("an old key is kept for {days}d at most")));
        }
        if self.is_configured(name) {
            return Err(stands_in_config(name));
        }
        let keys = self.keys.open().await?;
        let record = self.record(&keys, name).await?;
        let body: Body = open(&keys, &record).await?;
        let key = new_key(name);
        let until = later(self.clock.now(), keep_old);
        let old_key = (!keep_old.is_zero()).then_some(OldKey { sha256: body.key_sha256, until });
        let body = Body { key_sha256: digest(&key), old_key, ..body };
        let write = Write::Replace(seal_body(&keys, &body, record.generation).await?);
        match self.store.apply(vec![write]).await {
            Ok(()) => Ok(key),
            // The other one's key must not be ended by somebody who has not seen it.
            Err(StoreError::Conflict) => Err(Failure::new(
                Code::InvalidArguments,
                format!("the application {name} was changed by somebody else just now; look at `obo app list`"),
            )),
            Err(error) => Err(store_failure(error)),
        }
    }

    /// Removes an application of [`Applications::add`]. Its keys are refused from now on; its users' connections stay.
    ///
    /// # Errors
    /// `not_found`; `invalid_arguments`: it stands in obo.toml; `vault_unavailable`.
    pub async fn remove(&self, name: &str) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        // A conflict means that it was rotated, or seen, in the meantime: it goes all the same.
        for _ in 0..MAX_TRIES {
            let record = self.record(&keys, name).await?;
            let seen = self.store.get(Table::ApplicationUse, &use_key(&keys, name)).await.map_err(store_failure)?;
            let writes = [Some(record), seen]
                .into_iter()
                .flatten()
                .map(|Record { table, key, generation, .. }| Write::Delete { table, key, generation });
            match self.store.apply(writes.collect()).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(store_failure(error)),
            }
        }
        Err(Failure::internal("an application kept changing while it was removed"))
    }

    /// Lists all applications by name, those of obo.toml too.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn list(&self) -> Result<Vec<Listed>, Failure> {
        let keys = self.keys.open().await?;
        let now = self.clock.now();
        let mut list = Vec::new();
        for (_, application) in self.configured.iter() {
            list.push(Listed {
                last_used_at: self.last_use(&keys, &application.name).await?,
                application: application.clone(),
                configured: true,
                hidden: false,
                created_at: None,
                old_key_until: None,
            });
        }
        for record in &self.records().await? {
            let body: Body = match open(&keys, record).await {
                Ok(body) => body,
                // One bad record must not hide the others, nor keep any of them from being removed.
                Err(error) => {
                    tracing::error!(%error, "the record of an application does not open");
                    continue;
                }
            };
            let Some(application) = application(&body) else { continue };
            let hidden = self.is_configured(&body.name);
            // One of the same name may have been there before it.
            let last_used_at = self.last_use(&keys, &body.name).await?.filter(|at| !hidden && *at >= body.created_at);
            list.push(Listed {
                last_used_at,
                application,
                configured: false,
                hidden,
                created_at: Some(body.created_at),
                old_key_until: body.old_key(now).map(|old| old.until),
            });
        }
        list.sort_by(|a, b| (a.application.name(), !a.configured).cmp(&(b.application.name(), !b.configured)));
        Ok(list)
    }

    async fn last_use(&self, keys: &OpenKeys, name: &str) -> Result<Option<Timestamp>, Failure> {
        let record = self.store.get(Table::ApplicationUse, &use_key(keys, name)).await.map_err(store_failure)?;
        let Some(record) = record else { return Ok(None) };
        let LastUse { at } = open(keys, &record).await?;
        Ok(Some(at))
    }

    async fn record(&self, keys: &OpenKeys, name: &str) -> Result<Record, Failure> {
        let record = self.store.get(Table::Application, &record_key(keys, name)).await.map_err(store_failure)?;
        record.ok_or_else(|| {
            if self.is_configured(name) {
                return stands_in_config(name);
            }
            Failure::new(Code::NotFound, format!("there is no application named {name}; `obo app list` shows them"))
        })
    }

    async fn records(&self) -> Result<Vec<Record>, Failure> {
        self.store.scan(Table::Application, None, MAX_APPLICATIONS).await.map_err(store_failure)
    }
}

#[async_trait]
impl Authenticate for Applications {
    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        let Credential::Bearer { token, obo_user: Some(user) } = credential else { return Err(IdentityError::Missing) };
        self.find(token).await?.on_behalf_of(user)
    }
}

fn new_key(name: &str) -> Secret {
    Secret::new(format!("{PREFIX}{name}_{}", random_text::<32>()))
}

fn name_in_key(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(PREFIX)?;
    let (name, secret) = rest.split_at_checked(rest.len().checked_sub(SECRET_CHARS)?)?;
    let name = name.strip_suffix('_')?;
    let well_formed = secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (well_formed && Source::application(name).is_ok()).then_some(name)
}

fn digest(key: &Secret) -> [u8; 32] {
    Sha256::digest(key.expose().as_bytes()).into()
}

fn stands_in_config(name: &str) -> Failure {
    Failure::new(
        Code::InvalidArguments,
        format!("the application {name} stands in obo.toml; change its key_sha256 there, or take its table out"),
    )
}

fn application(body: &Body) -> Option<Application> {
    Some(Application {
        source: Source::application(&body.name).ok()?,
        name: body.name.clone(),
        tenant: body.tenant.clone(),
        may_read_tokens: body.may_read_tokens,
        user_verifier_url: None,
        confirm_by_code: false,
        next_uris: Vec::new(),
        key: body.key_sha256,
    })
}

fn record_key(keys: &OpenKeys, name: &str) -> RecordKey {
    keys.record_key(Table::Application, &[name.as_bytes()])
}

fn use_key(keys: &OpenKeys, name: &str) -> RecordKey {
    keys.record_key(Table::ApplicationUse, &[name.as_bytes()])
}

/// Applications are looked up before it is known whose they are, hence before the tenant is known.
fn sealing_tenant() -> TenantId {
    TenantId::default_tenant()
}

fn context(table: Table, key: &RecordKey) -> Context {
    Context::of(table).with(key)
}

async fn seal_body(keys: &OpenKeys, body: &Body, generation: u64) -> Result<Record, Failure> {
    seal(keys, Table::Application, record_key(keys, &body.name), body, generation).await
}

async fn seal(
    keys: &OpenKeys,
    table: Table,
    key: RecordKey,
    body: &impl Serialize,
    generation: u64,
) -> Result<Record, Failure> {
    let plain = serde_json::to_vec(body).map_err(Failure::internal)?;
    let sealed = keys.seal(&sealing_tenant(), &context(table, &key), &plain).await?;
    Ok(Record { table, key, owner: key, generation, expires_at: None, sealed })
}

async fn open<T: DeserializeOwned>(keys: &OpenKeys, record: &Record) -> Result<T, KeyError> {
    let body = keys.unseal(&sealing_tenant(), &context(record.table, &record.key), &record.sealed).await?;
    serde_json::from_slice(body.expose())
        .map_err(|_| KeyError::Unusable("an application's record is from a newer obo; update this one".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, bearer, bearer_for};
    use super::*;
    use crate::clock::Clock as _;
    use crate::identity;

    /// Two applications of obo.toml; `shop`'s key is "shop key", `crm`'s is "crm key".
    fn config() -> identity::Config {
        let hash = |key: &str| Sha256::digest(key).iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        let text = format!(
            r#"
            [[application]]
            name = "shop"
            tenant = "acme"
            key_sha256 = "{}"
            user_verifier_url = "https://shop.example.com/obo/verify"
            next_uris = ["https://shop.example.com/done"]
            [[application]]
            name = "crm"
            tenant = "other"
            key_sha256 = "{}"
            "#,
            hash("shop key"),
            hash("crm key").to_lowercase(),
        );
        toml::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn an_application_names_its_own_users() {
        let test = Fixture::new(config());
        let alice = async |key: &str| test.identity.authenticate(&bearer_for(key, "alice")).await;
        let subject = alice("shop key").await.unwrap();
        assert_eq!(subject.person().to_string(), "alice (app:shop, acme)");
        assert_eq!(subject.via(), &Via::Application("shop".to_owned()));
        assert_eq!(alice("crm key").await.unwrap().person().to_string(), "alice (app:crm, other)");

        for wrong in ["shop keY", "shop key ", "", "x", "a.b.c", &"k".repeat(20_000), "oboapp_shop_"] {
            assert!(alice(wrong).await.is_err(), "{wrong:.20}");
        }
        // A key without a user is nobody: never a shared subject (INV-4).
        assert!(test.identity.authenticate(&bearer("shop key")).await.is_err());
        for user in ["", " alice", "a\nb", &"x".repeat(256)] {
            assert!(test.identity.authenticate(&bearer_for("shop key", user)).await.is_err(), "{user:?}");
        }
        let application = test.identity.application(&Secret::new("shop key")).await.unwrap();
        assert_eq!((application.name(), application.may_read_tokens()), ("shop", false));
        let may = |uri: &str| application.may_send_to(&Url::parse(uri).unwrap());
        assert!(may("https://shop.example.com/done") && may("https://shop.example.com/done?id=7&next=//evil.example"));
        for elsewhere in [
            "http://shop.example.com/done",
            "https://shop.example.com/",
            "https://shop.example.com/done/",
            "https://shop.example.com/DONE",
            "https://shop.example.com/done/../other",
            "https://shop.example.com:8443/done",
            "https://shop.example.com.evil.example/done",
            "https://shop.example.com@evil.example/done",
            "https://me@shop.example.com/done",
            "https://shop.example.com/done#x",
            "https://evil.example/done",
            "https://evil.example\\@shop.example.com/done",
            "javascript:alert(1)",
            "data:text/html,x",
        ] {
            assert!(!may(elsewhere), "{elsewhere}");
        }
        assert_eq!(test.identity.application(&Secret::new("")).await, Err(IdentityError::Missing));
    }

    #[tokio::test]
    async fn an_added_application_has_a_key_that_can_be_changed_and_taken_away() {
        let test = Fixture::new(config());
        let applications = test.identity.applications();
        let key = applications.add("my_app-1", "acme".parse().unwrap(), true).await.unwrap();
        let application = test.identity.application(&key).await.unwrap();
        assert_eq!((application.name(), application.may_read_tokens()), ("my_app-1", true));
        let subject = test.identity.authenticate(&bearer_for(key.expose(), "bob")).await.unwrap();
        assert_eq!(subject.person().to_string(), "bob (app:my_app-1, acme)");

        let names: Vec<_> =
            applications.list().await.unwrap().iter().map(|app| app.application.name().to_owned()).collect();
        assert_eq!(names, ["crm", "my_app-1", "shop"]);
        for taken in ["my_app-1", "shop", "Not A Name", ""] {
            let failure = applications.add(taken, "acme".parse().unwrap(), false).await.err().unwrap();
            assert_eq!(failure.code, Code::InvalidArguments, "{taken}");
        }

        let new = applications.rotate("my_app-1", Duration::ZERO).await.unwrap();
        assert!(test.identity.application(&key).await.is_err());
        assert!(test.identity.application(&new).await.unwrap().may_read_tokens());

        applications.remove("my_app-1").await.unwrap();
        assert!(test.identity.application(&new).await.is_err());
        for (name, code) in [("my_app-1", Code::NotFound), ("shop", Code::InvalidArguments), ("..", Code::NotFound)] {
            for failure in
                [applications.rotate(name, Duration::ZERO).await.err(), applications.remove(name).await.err()]
            {
                let failure = failure.unwrap();
                assert_eq!(failure.code, code, "{name}");
                assert_eq!(failure.message.contains("obo.toml"), name == "shop", "{}", failure.message);
            }
        }
    }

    #[tokio::test]
    async fn two_keys_are_good_for_a_set_time() {
        let test = Fixture::new(Default::default());
        let applications = test.identity.applications();
        let hour = Duration::from_secs(3600);
        let good = async |key: &Secret| test.identity.application(key).await.is_ok();
        let first = applications.add("shop", "acme".parse().unwrap(), true).await.unwrap();
        let second = applications.rotate("shop", hour).await.unwrap();
        assert!(good(&first).await && good(&second).await);
        assert!(test.identity.application(&first).await.unwrap().may_read_tokens());
        assert_eq!(applications.list().await.unwrap()[0].old_key_until, Some(later(test.clock.now(), hour)));

        test.clock.advance(hour - Duration::from_secs(1));
        assert!(good(&first).await);
        test.clock.advance(Duration::from_secs(1));
        assert!(!good(&first).await && good(&second).await);
        assert_eq!(applications.list().await.unwrap()[0].old_key_until, None);

        // The third ends the first of two, and never the newest; nothing ends both at once but taking it away.
        let third = applications.rotate("shop", hour).await.unwrap();
        let fourth = applications.rotate("shop", hour).await.unwrap();
        assert!(!good(&second).await && good(&third).await && good(&fourth).await);
        let fifth = applications.rotate("shop", Duration::ZERO).await.unwrap();
        assert!(!good(&third).await && !good(&fourth).await && good(&fifth).await);
        let failure = applications.rotate("shop", MAX_KEEP_OLD + hour).await.err().unwrap();
        assert_eq!(failure.code, Code::InvalidArguments);
        assert!(good(&fifth).await);
    }

    #[tokio::test]
    async fn records_from_before_old_keys_were_kept_open() {
        let test = Fixture::new(Default::default());
        let keys = test.identity.applications().keys.open().await.unwrap();
        let key = new_key("shop");
        let body = serde_json::json!({
            "name": "shop", "tenant": "acme", "may_read_tokens": false, "key_sha256": digest(&key),
            "created_at": "2026-11-01T00:00:00Z",
        });
        let record = seal(&keys, Table::Application, record_key(&keys, "shop"), &body, 0).await.unwrap();
        test.store.apply(vec![Write::Insert(record)]).await.unwrap();
        assert_eq!(test.identity.application(&key).await.unwrap().name(), "shop");
        let new = test.identity.applications().rotate("shop", Duration::from_secs(60)).await.unwrap();
        assert!(test.identity.application(&key).await.is_ok() && test.identity.application(&new).await.is_ok());
    }

    #[tokio::test]
    async fn the_last_use_is_written_rarely_and_never_in_the_way() {
        let test = Fixture::new(config());
        let applications = test.identity.applications();
        let key = applications.add("app", "acme".parse().unwrap(), false).await.unwrap();
        let last = async || {
            // Draining is for the end, and does not keep later notes from being written.
            applications.drain(Duration::from_secs(10)).await;
            let list = applications.list().await.unwrap();
            ["app", "crm", "shop"]
                .map(|name| list.iter().find(|listed| listed.application.name() == name).unwrap().last_used_at)
        };
        assert_eq!(last().await, [None; 3]);
        let noon = test.clock.now();
        test.identity.application(&key).await.unwrap();
        test.identity.authenticate(&bearer_for("shop key", "alice")).await.unwrap();
        assert!(test.identity.application(&Secret::new("oboapp_crm_")).await.is_err());
        assert_eq!(last().await, [Some(noon), None, Some(noon)]);

        test.clock.advance(NOTE_USE_EVERY - Duration::from_secs(1));
        test.identity.application(&key).await.unwrap();
        assert_eq!(last().await[0], Some(noon));
        test.clock.advance(Duration::from_secs(1));
        test.identity.application(&key).await.unwrap();
        assert_eq!(last().await[0], Some(later(noon, NOTE_USE_EVERY)));

        // One that has the name of one that is gone has not been seen.
        applications.remove("app").await.unwrap();
        test.clock.advance(Duration::from_secs(1));
        applications.add("app", "acme".parse().unwrap(), false).await.unwrap();
        assert_eq!(last().await[0], None);
    }

    #[tokio::test]
    async fn the_store_has_neither_the_key_nor_the_name() {
        let test = Fixture::new(Default::default());
        let key = test.identity.applications().add("shop", "acme".parse().unwrap(), false).await.unwrap();
        let dump = test.store.dump(Table::Application);
        for secret in [key.expose(), &key.expose()[key.expose().len() - 43..], "shop", "acme"] {
            assert!(!dump.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
        }
        // The record of an application with more rights, put in the place of this one's, does not open there.
        test.identity.applications().add("evil", "acme".parse().unwrap(), true).await.unwrap();
        let records = test.store.scan(Table::Application, None, 2).await.unwrap();
        test.store.tamper(|record| record.sealed = records[usize::from(record.key == records[0].key)].sealed.clone());
        assert!(matches!(test.identity.application(&key).await, Err(IdentityError::Unavailable { .. })));
    }

    #[test]
    fn configuration_errors_name_the_key() {
        let good = config();
        assert_eq!(good.check(), Ok(()));
        let changed = |change: fn(&mut Config)| {
            let mut config = good.clone();
            change(&mut config.application[1]);
            config.check().unwrap_err()
        };
        for error in [
            changed(|app| app.name = "shop".to_owned()),
            changed(|app| app.name = "a:b".to_owned()),
            changed(|app| app.key_sha256 = "abc".to_owned()),
            changed(|app| app.key_sha256 = "é".repeat(32)),
            changed(|app| app.key_sha256 = "g".repeat(64)),
            changed(|app| app.user_verifier_url = Some(Url::parse("http://shop.example/").unwrap())),
            changed(|app| app.next_uris = vec![Url::parse("javascript:alert(1)").unwrap()]),
        ] {
            assert!(error.starts_with("identity.application"), "{error}");
        }
        let mut twice = good.clone();
        twice.application[1].key_sha256 = twice.application[0].key_sha256.to_lowercase();
        assert!(twice.check().unwrap_err().contains("the same key"));
        assert!(
            toml::from_str::<identity::Config>("[[application]]\nname='x'\ntenant='a'\nkey_sha256=''\nkey='x'")
                .is_err()
        );
    }

    #[test]
    fn keys_carry_their_name() {
        let secret = "A".repeat(43);
        assert_eq!(name_in_key(&format!("oboapp_a_b_{secret}")), Some("a_b"));
        for wrong in ["oboapp_".to_owned(), format!("oboapp_{secret}"), format!("oboapp__{secret}"), "é".repeat(60)] {
            assert_eq!(name_in_key(&wrong), None, "{wrong}");
        }
        assert_eq!(name_in_key(&format!("oboapp_{}", "é".repeat(40))), None);
    }
}
