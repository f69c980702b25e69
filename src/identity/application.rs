//! Trusted applications: backends that authenticate their users themselves and name them in `Obo-User`.
//!
//! Their keys come from obo.toml (as SHA-256) or from `obo app add`. The latter are
//! `oboapp_NAME_` and 43 characters of base64url; the name finds the record, whose sealed body has the key's SHA-256.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use url::Url;

use super::{Authenticate, Credential, IdentityError, Subject, Via, store_failure};
use crate::clock::SharedClock;
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

/// Recognises applications, and keeps those of `obo app`. Cheap to clone.
#[derive(Clone)]
pub struct Applications {
    configured: Arc<Vec<([u8; 32], Application)>>,
    store: Arc<dyn Store>,
    keys: Keys,
    clock: SharedClock,
}

/// The sealed body of a record.
#[derive(Serialize, Deserialize)]
struct Body {
    name: String,
    tenant: TenantId,
    may_read_tokens: bool,
    key_sha256: [u8; 32],
    created_at: Timestamp,
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
            };
            Some((decode_hash(&config.key_sha256)?, application))
        });
        Self { configured: Arc::new(configured.collect()), store, keys, clock }
    }

    /// The application of obo.toml whose users have this source and tenant.
    pub(super) fn configured(&self, source: &Source, tenant: &TenantId) -> Option<&Application> {
        let fits = |application: &&Application| application.source == *source && application.tenant == *tenant;
        self.configured.iter().map(|(_, application)| application).find(fits)
    }

    /// Finds the application that a key belongs to.
    pub(super) async fn find(&self, key: &Secret) -> Result<Application, IdentityError> {
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
        if self.configured.iter().any(|(_, application)| application.name == name) {
            return Err(IdentityError::invalid(format!(
                "the key of an older application {name}; obo.toml has the name"
            )));
        }
        let keys = self.keys.open().await?;
        let record = self.store.get(Table::Application, &record_key(&keys, name)).await?.ok_or_else(unknown)?;
        let body = open(&keys, &record).await?;
        if body.name != name || !bool::from(body.key_sha256.ct_eq(&hash)) {
            return Err(unknown());
        }
        application(body).ok_or_else(unknown)
    }

    /// Adds an application and returns its key, which is kept nowhere.
    ///
    /// # Errors
    /// `invalid_arguments`: the name is not one, or is taken. `vault_unavailable`.
    pub async fn add(&self, name: &str, tenant: TenantId, may_read_tokens: bool) -> Result<Secret, Failure> {
        let wrong = |message: String| Failure::new(Code::InvalidArguments, message);
        Source::application(name).map_err(|error| wrong(error.to_string()))?;
        let taken = || wrong(format!("an application named {name} exists; choose another name, or rotate its key"));
        if self.configured.iter().any(|(_, application)| application.name == name) {
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
        };
        match self.store.apply(vec![Write::Insert(seal(&keys, &body, 0).await?)]).await {
            Ok(()) => Ok(key),
            Err(StoreError::Conflict) => Err(taken()),
            Err(error) => Err(store_failure(error)),
        }
    }

    /// Gives an application of [`Applications::add`] a new key. The old one is refused from now on.
    ///
    /// # Errors
    /// `not_found`; `vault_unavailable`.
    pub async fn rotate(&self, name: &str) -> Result<Secret, Failure> {
        let keys = self.keys.open().await?;
        let record = self.record(&keys, name).await?;
        let key = new_key(name);
        let body = Body { key_sha256: digest(&key), ..open(&keys, &record).await? };
        let write = Write::Replace(seal(&keys, &body, record.generation).await?);
        self.store.apply(vec![write]).await.map_err(store_failure)?;
        Ok(key)
    }

    /// Removes an application of [`Applications::add`]. Its key is refused from now on; its users' connections stay.
    ///
    /// # Errors
    /// `not_found`; `vault_unavailable`.
    pub async fn remove(&self, name: &str) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        let record = self.record(&keys, name).await?;
        let write = Write::Delete { table: Table::Application, key: record.key, generation: record.generation };
        self.store.apply(vec![write]).await.map_err(store_failure)
    }

    /// Lists all applications by name, those of obo.toml too.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn list(&self) -> Result<Vec<Application>, Failure> {
        let mut list: Vec<Application> = self.configured.iter().map(|(_, application)| application.clone()).collect();
        let records = self.records().await?;
        if !records.is_empty() {
            let keys = self.keys.open().await?;
            for record in &records {
                list.extend(application(open(&keys, record).await?));
            }
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    async fn record(&self, keys: &OpenKeys, name: &str) -> Result<Record, Failure> {
        let record = self.store.get(Table::Application, &record_key(keys, name)).await.map_err(store_failure)?;
        record.ok_or_else(|| {
            let in_config = self.configured.iter().any(|(_, application)| application.name == name);
            Failure::new(
                Code::NotFound,
                if in_config {
                    format!("the application {name} stands in obo.toml; change it there")
                } else {
                    format!("there is no application named {name}; `obo app list` shows them")
                },
            )
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

fn application(body: Body) -> Option<Application> {
    Some(Application {
        source: Source::application(&body.name).ok()?,
        name: body.name,
        tenant: body.tenant,
        may_read_tokens: body.may_read_tokens,
        user_verifier_url: None,
        confirm_by_code: false,
        next_uris: Vec::new(),
    })
}

fn record_key(keys: &OpenKeys, name: &str) -> RecordKey {
    keys.record_key(Table::Application, &[name.as_bytes()])
}

/// Applications are looked up before it is known whose they are, hence before the tenant is known.
fn sealing_tenant() -> TenantId {
    TenantId::default_tenant()
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::Application).with(key)
}

async fn seal(keys: &OpenKeys, body: &Body, generation: u64) -> Result<Record, Failure> {
    let key = record_key(keys, &body.name);
    let plain = serde_json::to_vec(body).map_err(Failure::internal)?;
    let sealed = keys.seal(&sealing_tenant(), &context(&key), &plain).await?;
    Ok(Record { table: Table::Application, key, owner: key, generation, expires_at: None, sealed })
}

async fn open(keys: &OpenKeys, record: &Record) -> Result<Body, KeyError> {
    let body = keys.unseal(&sealing_tenant(), &context(&record.key), &record.sealed).await?;
    serde_json::from_slice(body.expose())
        .map_err(|_| KeyError::Unusable("an application's record is from a newer obo; update this one".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, bearer, bearer_for};
    use super::*;
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

        let names: Vec<_> = applications.list().await.unwrap().iter().map(|app| app.name().to_owned()).collect();
        assert_eq!(names, ["crm", "my_app-1", "shop"]);
        for taken in ["my_app-1", "shop", "Not A Name", ""] {
            let failure = applications.add(taken, "acme".parse().unwrap(), false).await.err().unwrap();
            assert_eq!(failure.code, Code::InvalidArguments, "{taken}");
        }

        let new = applications.rotate("my_app-1").await.unwrap();
        assert!(test.identity.application(&key).await.is_err());
        assert!(test.identity.application(&new).await.unwrap().may_read_tokens());

        applications.remove("my_app-1").await.unwrap();
        assert!(test.identity.application(&new).await.is_err());
        for name in ["my_app-1", "shop", ".."] {
            assert_eq!(applications.rotate(name).await.err().unwrap().code, Code::NotFound);
            assert_eq!(applications.remove(name).await.err().unwrap().code, Code::NotFound);
        }
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
