//! Who is this? A [`Credential`] goes in, a [`Subject`] comes out, or nobody does.
//!
//! One file a method. Which method looks at a credential is decided by its form alone ([`Identity::authenticate`]), so
//! a credential that one method refuses is never tried with another.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use url::Url;

use crate::clock::SharedClock;
use crate::egress::Egress;
use crate::failure::{Code, Failure};
use crate::id::{Person, Source, TenantId, UserId};
use crate::keys::{KeyError, Keys};
use crate::secret::Secret;
use crate::store::{Record, Store, StoreError, Table};

pub mod application;
mod browser;
pub mod client_session;
#[cfg(test)]
mod fixture;
pub mod issuer;
pub mod mcp_session;
pub mod obo_token;
pub mod os_user;

pub use application::{Application, TokenReader};
pub use browser::BrowserProof;
pub use client_session::{ClientSession, ClientSessions};
pub use issuer::SignIn;
pub use mcp_session::McpSessions;
pub use obo_token::IssuedToken;
pub use os_user::os_user_name;

/// Longest bearer credential looked at, in bytes.
pub const MAX_BEARER_BYTES: usize = 16 << 10; // 16 KiB

/// Most groups a person may be in. More are refused rather than cut: a policy may forbid by group.
pub const MAX_GROUPS: usize = 512;

/// Longest name of a group, in bytes.
pub const MAX_GROUP_BYTES: usize = 255;

/// `[identity]` of obo.toml.
#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Identity providers whose people may use this server.
    pub issuer: Vec<issuer::Config>,
    /// Applications that name their users themselves.
    pub application: Vec<application::Config>,
}

impl Config {
    /// Puts `resource` (`public_url` + `/mcp`) in where an issuer names no audience.
    #[must_use]
    pub fn with_default_audience(mut self, resource: &str) -> Self {
        for issuer in &mut self.issuer {
            issuer.audience.get_or_insert_with(|| resource.to_owned());
        }
        self
    }

    /// The URLs in it that obo makes requests to, for [`Egress::new`]: their hosts may be private.
    pub fn urls(&self) -> Vec<Url> {
        self.issuer.iter().filter_map(|issuer| Url::parse(&issuer.issuer).ok()).collect()
    }

    /// Checks what serde cannot: names and issuers that are unique, URLs, audiences, tenants.
    ///
    /// # Errors
    /// One line naming the key and the mend.
    pub fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut issuers = BTreeSet::new();
        for issuer in &self.issuer {
            issuer.check()?;
            if !names.insert(issuer.name.as_str()) {
                return Err(format!(
                    "identity.issuer: two are named {:?}; give each its own name",
                    issuer.name.as_str()
                ));
            }
            // A token says who issued it, and nothing else about which entry is meant.
            if !issuers.insert(issuer.issuer.as_str()) {
                return Err(format!("identity.issuer: {:?} occurs twice; keep one entry for it", issuer.issuer));
            }
        }
        let asked: Vec<&str> =
            self.issuer.iter().filter(|issuer| issuer.introspection).map(|issuer| issuer.name.as_str()).collect();
        if let [first, second, ..] = asked[..] {
            return Err(format!(
                "identity.issuer: {first:?} and {second:?} both have introspection, and an opaque token does not say whose \
                 it is; keep it at one, and let the others issue signed tokens"
            ));
        }
        application::check(&self.application)
    }
}

/// What a caller shows. Unverified: it says nothing about who they are until [`Identity::authenticate`] has agreed.
#[derive(Clone)]
pub enum Credential {
    /// The operating system's user, for stdio and the command line. The process itself is the proof.
    OsUser {
        /// The tenant to act in.
        tenant: TenantId,
        /// The user's name.
        user: UserId,
    },
    /// An `Authorization: Bearer` token (RFC 6750 §2.1), with the `Obo-User` header where one was sent.
    Bearer {
        /// The token.
        token: Secret,
        /// Whom a trusted application names.
        obo_user: Option<String>,
    },
}

/// How a subject came in: what the audit calls the actor's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// The operating system's user.
    OsUser,
    /// A token issued by obo.
    OboToken,
    /// An identity provider's token.
    Issuer(String),
    /// A trusted application that named the user.
    Application(String),
    /// A client that the person signed in at obo itself.
    Client(String),
}

/// What the scopes of a good token do not allow. Its client can ask the issuer for a token with the whole set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// Every scope that is needed, in the order of the configuration.
    pub needed: Vec<String>,
    /// Those of them that the token does not have.
    pub missing: Vec<String>,
}

/// A person whose identity was proven for this request. Private fields: only this module builds one.
///
/// Invariant INV-4: there is no shared and no anonymous subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    person: Person,
    groups: Vec<String>,
    via: Via,
    expires_at: Option<Timestamp>,
    lacking: Option<Arc<Lacking>>,
}

impl Subject {
    /// What the credential lacks for calls that change something. For all others it has what is needed, or it would
    /// have proven nobody. Only issuers' tokens have scopes; the others lack none.
    pub fn lacks_for_changes(&self) -> Option<&Lacking> {
        self.lacking.as_deref()
    }

    /// When the credential that proved it expires; nothing that follows from it should last longer.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Who it is.
    pub fn person(&self) -> &Person {
        &self.person
    }

    /// The groups that the identity's source puts them in.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// How they were identified.
    pub fn via(&self) -> &Via {
        &self.via
    }
}

/// Why nobody was identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    /// Nothing was shown, or something that is not a credential.
    Missing,
    /// It was shown and is not good: unknown, expired, for somebody else. `cause` is for the log only; the caller
    /// is told the same in every case.
    Invalid {
        /// For the operator. Never holds the credential.
        cause: String,
    },
    /// It is good, and has not the scopes that everything here needs. The caller may ask its issuer for them.
    InsufficientScope(Arc<Lacking>),
    /// It could not be checked now: the issuer or the store does not answer. The caller may try again.
    Unavailable {
        /// For the operator.
        cause: String,
    },
}

impl IdentityError {
    fn invalid(cause: impl Into<String>) -> Self {
        Self::Invalid { cause: cause.into() }
    }

    fn unavailable(cause: impl fmt::Display) -> Self {
        Self::Unavailable { cause: cause.to_string() }
    }
}

impl From<StoreError> for IdentityError {
    fn from(error: StoreError) -> Self {
        Self::unavailable(error)
    }
}

impl From<KeyError> for IdentityError {
    fn from(error: KeyError) -> Self {
        // A record that does not open is for the operator to see, not for the caller to be told as "invalid".
        Self::unavailable(error)
    }
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no credential was shown"),
            Self::Invalid { cause } => write!(f, "the credential is not valid: {cause}"),
            Self::InsufficientScope(lacking) => f.write_str(&lacking.in_words()),
            Self::Unavailable { cause } => write!(f, "the credential could not be checked: {cause}"),
        }
    }
}

impl std::error::Error for IdentityError {}

/// A way to find out who somebody is.
///
/// # Cancellation
/// Nothing is changed by authenticating; a future may be dropped at any point.
#[async_trait::async_trait]
pub trait Authenticate: Send + Sync {
    /// Turns a credential into a subject.
    ///
    /// # Errors
    /// See [`IdentityError`]. [`IdentityError::Missing`] where the credential is not of this method's kind.
    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError>;
}

/// All ways to find out who somebody is. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    os_user: os_user::OsUser,
    tokens: obo_token::OboTokens,
    clients: client_session::ClientSessions,
    mcp_sessions: McpSessions,
    issuers: Arc<issuer::Issuers>,
    applications: application::Applications,
}

impl Identity {
    /// Puts the methods together. Nothing is read or fetched before it is needed.
    ///
    /// # Errors
    /// What [`Config::check`] says.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        keys: Keys,
        egress: Egress,
        clock: SharedClock,
    ) -> Result<Self, String> {
        config.check()?;
        let issuers = Arc::new(issuer::Issuers::new(config.issuer, egress, Arc::clone(&clock)));
        let clients = client_session::ClientSessions::new(
            Arc::clone(&store),
            keys.clone(),
            Arc::clone(&issuers),
            Arc::clone(&clock),
        );
        Ok(Self {
            os_user: os_user::OsUser,
            tokens: obo_token::OboTokens::new(Arc::clone(&store), keys.clone(), Arc::clone(&clock)),
            clients,
            mcp_sessions: McpSessions::new(Arc::clone(&store), keys.clone(), Arc::clone(&clock)),
            issuers,
            applications: application::Applications::new(config.application, store, keys, clock),
        })
    }

    /// Finds out who shows a credential. A refusal is logged with its cause, never with the credential.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        let result = match self.method_for(credential) {
            Ok(method) => method.authenticate(credential).await,
            Err(error) => Err(error),
        };
        log_refusal(result)
    }

    /// Finds out which application shows a key, for requests that name no user.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn application(&self, key: &Secret) -> Result<Application, IdentityError> {
        let result = match bearer_form(key, true) {
            Err(error) => Err(error),
            Ok(_) => self.applications.find(key).await,
        };
        log_refusal(result)
    }

    /// Tokens that obo issues itself.
    pub fn tokens(&self) -> &obo_token::OboTokens {
        &self.tokens
    }

    /// Accepts the tokens that obo's own authorization server gave to clients. Without this they are refused, also those of
    /// a time when it was on.
    #[must_use]
    pub fn with_clients(mut self) -> Self {
        self.clients.accept();
        self
    }

    /// Clients that people signed in at obo itself.
    pub fn clients(&self) -> &client_session::ClientSessions {
        &self.clients
    }

    /// MCP sessions that outlive the process they began in.
    pub fn mcp_sessions(&self) -> &McpSessions {
        &self.mcp_sessions
    }

    /// Trusted applications.
    pub fn applications(&self) -> &application::Applications {
        &self.applications
    }

    /// Waits for what is written down on the side, at most `within`. For shutdown.
    pub async fn drain(&self, within: Duration) {
        self.applications.drain(within).await;
    }

    /// The configured issuers: for the RFC 9728 document, and for signing in on the consent pages.
    pub fn issuers(&self) -> impl Iterator<Item = &issuer::Config> {
        self.issuers.configs()
    }

    /// Whether people of this source can be signed in in a browser.
    pub fn signs_in(&self, source: &Source) -> bool {
        self.issuers.signs_in(source)
    }

    /// Where people of this source sign in.
    ///
    /// # Errors
    /// [`IdentityError::Missing`] where it has no sign-in; [`IdentityError::Unavailable`].
    pub async fn sign_in(&self, source: &Source) -> Result<SignIn, IdentityError> {
        self.issuers.sign_in(source).await
    }

    /// Who came back from a sign-in, by the ID token that was made for it, and the access token beside it.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn verify_id_token(
        &self,
        source: &Source,
        id_token: &Secret,
        access_token: &Secret,
        nonce: &Secret,
    ) -> Result<Subject, IdentityError> {
        log_refusal(self.issuers.verify_id_token(source, id_token, access_token, nonce).await)
    }

    fn method_for(&self, credential: &Credential) -> Result<&dyn Authenticate, IdentityError> {
        let Credential::Bearer { token, obo_user } = credential else { return Ok(&self.os_user) };
        Ok(match bearer_form(token, obo_user.is_some())? {
            BearerForm::OboToken => &self.tokens,
            BearerForm::ClientToken => &self.clients,
            BearerForm::ApplicationKey => &self.applications,
            BearerForm::Jwt => &*self.issuers,
            // A key that is missing its user is worth all of its users: it goes to nobody.
            BearerForm::Opaque if self.applications.is_key(token) => {
                return Err(IdentityError::invalid("an application key without a user"));
            }
            BearerForm::Opaque => {
                self.issuers.opaque().ok_or_else(|| IdentityError::invalid("an unknown form of bearer"))?
            }
        })
    }
}

fn log_refusal<T>(result: Result<T, IdentityError>) -> Result<T, IdentityError> {
    match &result {
        Ok(_) => {}
        // Every client begins so: it asks without a token to learn where to get one.
        Err(IdentityError::Missing) => tracing::debug!("a request without a credential"),
        Err(IdentityError::Invalid { cause }) => tracing::info!(cause, "a credential was refused"),
        Err(IdentityError::InsufficientScope(lacking)) => {
            tracing::info!(missing = lacking.missing.join(" "), "a credential without the scopes it needs was refused");
        }
        Err(IdentityError::Unavailable { cause }) => tracing::warn!(cause, "a credential could not be checked"),
    }
    result
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BearerForm {
    OboToken,
    ClientToken,
    ApplicationKey,
    Jwt,
    Opaque,
}

fn bearer_form(token: &Secret, names_a_user: bool) -> Result<BearerForm, IdentityError> {
    let text = token.expose();
    if text.is_empty() {
        return Err(IdentityError::Missing);
    }
    if text.len() > MAX_BEARER_BYTES {
        return Err(IdentityError::invalid("the bearer is longer than obo reads"));
    }
    let own = if text.starts_with(obo_token::PREFIX) {
        Some(BearerForm::OboToken)
    } else {
        text.starts_with(client_session::ACCESS_PREFIX).then_some(BearerForm::ClientToken)
    };
    match (own, names_a_user) {
        // Ignoring the header would let a caller believe that it acts as somebody else.
        (Some(_), true) => {
            Err(IdentityError::invalid("a token issued by obo with Obo-User, which is for applications"))
        }
        (Some(own), false) => Ok(own),
        // It is for the token endpoint. An issuer that is asked about opaque tokens must not get to see it.
        (None, _) if text.starts_with(client_session::REFRESH_PREFIX) => {
            Err(IdentityError::invalid("a refresh token of obo, where an access token belongs"))
        }
        (None, true) => Ok(BearerForm::ApplicationKey),
        (None, false) if text.split('.').count() == 3 => Ok(BearerForm::Jwt),
        (None, false) => Ok(BearerForm::Opaque),
    }
}

/// Checks a list of group names from outside.
fn bounded_groups(groups: Vec<String>) -> Result<Vec<String>, &'static str> {
    if groups.len() > MAX_GROUPS {
        return Err("too many groups");
    }
    let fits =
        |group: &String| !group.is_empty() && group.len() <= MAX_GROUP_BYTES && !group.chars().any(char::is_control);
    if groups.iter().all(fits) { Ok(groups) } else { Err("a group's name is empty, too long, or not printable") }
}

/// Records read at once when looking through all of a table.
const PAGE: usize = 256;

/// All records of a table.
async fn all_records(store: &dyn Store, table: Table) -> Result<Vec<Record>, Failure> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let after = records.last().map(|record| record.key);
        let page = store.scan(table, after.as_ref(), PAGE).await.map_err(store_failure)?;
        let last = page.len() < PAGE;
        records.extend(page);
        if last {
            return Ok(records);
        }
    }
}

/// A store that cannot be read or written, for the person who runs a command.
fn store_failure(error: StoreError) -> Failure {
    Failure::new(Code::VaultUnavailable, "obo cannot read or write its store; its log says why").because(error)
}

#[cfg(test)]
mod tests {
    use super::fixture::{Fixture, bearer, bearer_for};
    use super::*;

    #[test]
    fn the_form_of_a_bearer_decides_who_looks_at_it() {
        let form = |text: &str, user: bool| bearer_form(&Secret::new(text), user);
        assert_eq!(form("obo_x", false), Ok(BearerForm::OboToken));
        assert_eq!(form("obo_a.b.c", false), Ok(BearerForm::OboToken));
        assert_eq!(form("a.b.c", false), Ok(BearerForm::Jwt));
        assert_eq!(form("a.b.c", true), Ok(BearerForm::ApplicationKey));
        assert_eq!(form("key", true), Ok(BearerForm::ApplicationKey));
        assert_eq!(form("", true), Err(IdentityError::Missing));
        assert_eq!(form("", false), Err(IdentityError::Missing));
        for text in ["key", "a.b", "a.b.c.d.e"] {
            assert_eq!(form(text, false), Ok(BearerForm::Opaque), "{text}");
        }
        assert!(matches!(form("obo_x", true), Err(IdentityError::Invalid { .. })));
        assert!(form(&".".repeat(MAX_BEARER_BYTES + 1), false).is_err());
    }

    #[tokio::test]
    async fn causes_never_hold_the_credential() {
        let test = Fixture::new(Config::default());
        for credential in [
            bearer("c4nary"),
            bearer("obo_c4nary"),
            bearer(&format!("obo_c4nary{}", "A".repeat(37))),
            bearer("c4nary.c4nary.c4nary"),
            bearer("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJjNG5hcnkifQ.c4nary"),
            bearer_for("c4nary", "alice"),
            bearer_for(&format!("oboapp_shop_c4nary{}", "A".repeat(37)), "alice"),
        ] {
            let error = test.identity.authenticate(&credential).await.unwrap_err();
            assert!(matches!(error, IdentityError::Invalid { .. }), "{error}");
            assert!(!format!("{error} {error:?}").contains("c4nary"), "{error}");
        }
    }
}
