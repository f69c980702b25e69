//! Clients that register themselves (RFC 7591).
//!
//! Nothing is kept: what a client registered stands in its id, under a MAC. So there is no table for strangers to fill,
//! and any process can read any id.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use super::AuthorizationServer;
use super::client::{Client, ClientError, KnownBy, MAX_ID_BYTES, Metadata, MetadataError};
use super::redirect::Destination;
use crate::clock::later;
use crate::egress::json;
use crate::failure::Failure;
use crate::secret::random_text;

/// What the id of such a client begins with.
const PREFIX: &str = "oboc_";
/// Longest registration read, in bytes.
pub const MAX_REGISTRATION_BYTES: usize = 16 << 10; // 16 KiB
/// How long a registration is good for. Longer than a session, so that a client learns of its end when it asks for
/// tokens, where it can register anew, rather than in front of a person.
const TTL: Duration = Duration::from_secs(180 * 24 * 60 * 60);

/// What stands in an id. The names are short because it travels in URLs.
#[derive(Serialize, Deserialize)]
struct Registration {
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(rename = "r")]
    redirect_uris: Vec<String>,
    /// When, in seconds since 1970.
    #[serde(rename = "t")]
    at: i64,
    /// So that two clients are never one.
    #[serde(rename = "x")]
    unique: String,
}

/// Why a client was not registered (RFC 7591 §3.2.2).
#[derive(Debug, Clone)]
pub enum RegistrationError {
    /// With its redirect URIs.
    RedirectUri(String),
    /// With the rest.
    Metadata(String),
    /// Registration is turned off, or the keys are not open.
    Failed(Failure),
}

/// Whether an id is of a client that registered.
pub(super) fn is_id(id: &str) -> bool {
    id.starts_with(PREFIX)
}

impl AuthorizationServer {
    /// Registers a client and returns the answer to it: what it registered, as far as it counts here.
    ///
    /// # Errors
    /// See [`RegistrationError`].
    pub async fn register(&self, body: &[u8]) -> Result<Value, RegistrationError> {
        let not_json = || RegistrationError::Metadata("the registration is not a JSON object".to_owned());
        let Ok(Value::Object(metadata)) = json::parse(body) else { return Err(not_json()) };
        let Metadata { name, redirect_uris } = Metadata::read(&metadata).map_err(|error| match error {
            MetadataError::RedirectUri(text) => RegistrationError::RedirectUri(text),
            MetadataError::Other(text) => RegistrationError::Metadata(text),
        })?;
        let redirect_uris: Vec<String> = redirect_uris.iter().map(|uri| uri.as_str().to_owned()).collect();
        let now = self.inner.clock.now();
        let registration = Registration { name, redirect_uris, at: now.as_second(), unique: random_text::<9>() };
        let text = serde_json::to_vec(&registration).map_err(|e| RegistrationError::Failed(Failure::internal(e)))?;
        let mac = self.mac(&text).await.map_err(RegistrationError::Failed)?;
        let id = format!("{PREFIX}{}.{}", URL_SAFE_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(mac));
        // It is in the URL that a browser is sent with.
        if id.len() > MAX_ID_BYTES {
            return Err(RegistrationError::RedirectUri("redirect_uris are too long, all together".to_owned()));
        }
        // RFC 7591 §3.2.1: with what was put in the place of what was asked for. Every client here is public.
        let mut answer = json!({
            "client_id": id,
            "client_id_issued_at": registration.at,
            "redirect_uris": registration.redirect_uris,
            "token_endpoint_auth_method": "none",
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "scope": super::SCOPE,
        });
        if let Some(name) = registration.name {
            answer["client_name"] = Value::String(name);
        }
        Ok(answer)
    }

    /// The client that an id was given to.
    pub(super) async fn registered(&self, id: &str) -> Result<Client, ClientError> {
        let bad = |text: &str| ClientError::Bad(text.to_owned());
        if !self.registers() {
            return Err(bad("Clients cannot register themselves at this server."));
        }
        let unknown =
            || bad("The client's registration is not of this server. Remove it from the client, and add it anew.");
        let (text, mac) = id.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| unknown());
        let (text, mac) = (decode(text)?, decode(mac)?);
        let expected = self.mac(&text).await.map_err(ClientError::Failed)?;
        if !bool::from(expected[..].ct_eq(&mac)) {
            return Err(unknown());
        }
        let registration: Registration = serde_json::from_slice(&text).map_err(|_| unknown())?;
        let at = Timestamp::from_second(registration.at).map_err(|_| unknown())?;
        if later(at, TTL) <= self.inner.clock.now() {
            return Err(bad(
                "The client's registration has run out. Remove this server from the client, and add it anew.",
            ));
        }
        // They were checked when they were registered; what is refused since then is refused.
        let redirect_uris = registration.redirect_uris.iter().filter_map(|uri| Destination::parse(uri).ok()).collect();
        Ok(Client { id: id.to_owned(), name: registration.name, known_by: KnownBy::Registration, redirect_uris })
    }

    async fn mac(&self, text: &[u8]) -> Result<[u8; 32], Failure> {
        let keys = self.inner.keys.open().await.map_err(Failure::from)?;
        Ok(keys.mac("client registration", &[text]))
    }
}
