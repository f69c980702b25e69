//! obo as the authorization server of MCP clients: for people whose identity provider cannot register clients.
//!
//! A person who knows nothing but this server's address gives it to a client; the client finds out where to ask, names
//! itself, and sends the person's browser here. Who the person is stays with their issuer, or with a token of obo: this
//! only lets them allow a client, and gives that client tokens of its own, for this server and no other.
//!
//! Authorization code with PKCE for public clients, and nothing else (OAuth 2.1). Nothing is kept of a request before a
//! person allows it, nor of a registration: whatever strangers send costs no room.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::audit::{Audit, Event, Kind, Phase};
use crate::clock::SharedClock;
use crate::egress::Egress;
use crate::failure::Failure;
use crate::id::Person;
use crate::identity::{ClientSession, Identity};
use crate::keys::Keys;
use crate::store::Store;

mod client;
mod code;
mod document;
mod redirect;
mod registration;
mod request;
mod token;

pub use client::{Client, ClientError, KnownBy};
pub use document::parse_document;
pub use redirect::Destination;
pub use registration::{MAX_REGISTRATION_BYTES, RegistrationError};
pub use request::{Asked, MAX_QUERY_BYTES, Parameters, Refusal};
pub use token::{TokenError, TokenErrorCode};

use document::Documents;

/// The one scope there is: the tools of this server. What a person may do with them is policy's to say.
pub const SCOPE: &str = "mcp";

/// Paths of the endpoints.
pub mod path {
    /// Where browsers are sent (RFC 6749 §3.1).
    pub const AUTHORIZE: &str = "/oauth/authorize";
    /// Where clients exchange codes and refresh tokens (RFC 6749 §3.2).
    pub const TOKEN: &str = "/oauth/token";
    /// Where clients make themselves known (RFC 7591 §3).
    pub const REGISTER: &str = "/oauth/register";
    /// Where clients give tokens back (RFC 7009 §2).
    pub const REVOKE: &str = "/oauth/revoke";
    /// What there is, for clients (RFC 8414 §3).
    pub const METADATA: &str = "/.well-known/oauth-authorization-server";
}

/// `[authorization_server]` of obo.toml.
#[derive(Debug, Clone, Copy, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether MCP clients sign people in at obo itself, with nothing registered beforehand. For organisations whose
    /// identity provider cannot register MCP clients; people still sign in there, or with a token of obo. When off,
    /// clients are sent to the issuers. Default `false`.
    pub enabled: bool,
    /// Whether clients may register themselves (RFC 7591). Most that are in use today need it. When off, only clients
    /// that publish a metadata document are served. Default `true`.
    pub dynamic_registration: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: false, dynamic_registration: true }
    }
}

/// What the authorization server is made from.
pub struct Parts {
    /// `[authorization_server]`.
    pub config: Config,
    /// The public address: the issuer, and the base of everything.
    pub base: Url,
    /// Where codes are kept.
    pub store: Arc<dyn Store>,
    /// What seals them, and signs registrations.
    pub keys: Keys,
    /// Where sessions of clients are.
    pub identity: Identity,
    /// Fetches metadata documents.
    pub egress: Egress,
    /// Records who allowed what.
    pub audit: Audit,
    /// The time.
    pub clock: SharedClock,
}

/// The authorization server. Cheap to clone.
#[derive(Clone)]
pub struct AuthorizationServer {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// Without a slash at its end: the issuer, compared as text by everybody (RFC 8414 §3.3, RFC 9207 §2.4).
    issuer: String,
    store: Arc<dyn Store>,
    keys: Keys,
    identity: Identity,
    documents: Documents,
    audit: Audit,
    clock: SharedClock,
}

/// A person who allows a client, as far as their sign-in can vouch for them.
pub struct Approver {
    /// Who.
    pub person: Person,
    /// The groups they are in.
    pub groups: Vec<String>,
    /// When what they signed in with runs out for good.
    pub until: Option<Timestamp>,
}

impl AuthorizationServer {
    /// Puts it together. Nothing is read or fetched before it is needed.
    pub fn new(parts: Parts) -> Self {
        let Parts { config, base, store, keys, identity, egress, audit, clock } = parts;
        let issuer = base.as_str().trim_end_matches('/').to_owned();
        let documents = Documents::new(egress, Arc::clone(&clock));
        Self { inner: Arc::new(Inner { config, issuer, store, keys, identity, documents, audit, clock }) }
    }

    /// The issuer.
    pub fn issuer(&self) -> &str {
        &self.inner.issuer
    }

    /// Whether clients may register themselves.
    pub fn registers(&self) -> bool {
        self.inner.config.dynamic_registration
    }

    /// What clients read first (RFC 8414 §2).
    pub fn metadata(&self) -> Value {
        let issuer = &self.inner.issuer;
        let at = |path: &str| format!("{issuer}{path}");
        let mut metadata = json!({
            "issuer": issuer,
            "authorization_endpoint": at(path::AUTHORIZE),
            "token_endpoint": at(path::TOKEN),
            "revocation_endpoint": at(path::REVOKE),
            "scopes_supported": [SCOPE],
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": ["none"],
            "revocation_endpoint_auth_methods_supported": ["none"],
            "code_challenge_methods_supported": ["S256"],
            // RFC 9207 §3.
            "authorization_response_iss_parameter_supported": true,
            "client_id_metadata_document_supported": true,
            // RFC 9728 §4.
            "protected_resources": [self.resource()],
        });
        if self.registers() {
            metadata["registration_endpoint"] = json!(at(path::REGISTER));
        }
        metadata
    }

    /// The one resource that tokens are for (RFC 8707).
    fn resource(&self) -> String {
        format!("{}/mcp", self.inner.issuer)
    }

    /// Whether `resource` means this server. Clients name the address that they were given: the endpoint of either
    /// transport, or the server.
    fn is_resource(&self, resource: &str) -> bool {
        let Some(rest) = resource.strip_prefix(&self.inner.issuer) else { return false };
        matches!(rest, "" | "/" | "/mcp" | "/mcp/" | "/sse")
    }

    /// Puts on record what was done about a client. The session's id is in it, as lists show it.
    async fn record(&self, phase: Phase, person: &Person, actor: &str, what: &str) -> Result<(), Failure> {
        let event = Event {
            kind: Kind::Consent,
            phase,
            person: Some(person),
            tenant: None,
            actor,
            provider: None,
            account: None,
            what,
            failure: None,
            duration: None,
        };
        self.inner.audit.event(event).await
    }

    /// The same for a session that has ended already: it stays ended, whether that can be put on record or not.
    async fn record_end(&self, session: &ClientSession, what: &str) {
        // The audit logs what it could not keep.
        let _ = self.record(Phase::Outcome, &session.person, &session.client, &format!("{what} {}", session.id)).await;
    }

    /// Signs a client of a person out, from the person's own page. `None`, when there is no such client of theirs.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn sign_out(&self, person: &Person, id: &str) -> Result<Option<ClientSession>, Failure> {
        match self.inner.identity.clients().revoke(Some(person), id).await {
            Ok(session) => {
                self.record_end(&session, "client.signed_out").await;
                Ok(Some(session))
            }
            Err(failure) if failure.code == crate::failure::Code::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The clients that are signed in for a person.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn clients_of(&self, person: &Person) -> Result<Vec<ClientSession>, Failure> {
        let now = self.inner.clock.now();
        let mut sessions = self.inner.identity.clients().list(Some(person)).await?;
        sessions.retain(|session| session.expires_at > now);
        Ok(sessions)
    }
}
