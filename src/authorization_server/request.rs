//! What a client asks for when it sends a browser here (RFC 6749 §4.1.1, RFC 7636 §4.3, RFC 8707 §2).
//!
//! Nothing of it is kept: it stands in the address of the page, is checked each time that address is asked for, and what
//! the page showed is bound to the form that comes back. No answer goes to a client without a person's press of a
//! button: anybody can register one, and a link to here must not lead elsewhere by itself (RFC 9700 §4.11.2).

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::client::{Client, ClientError, KnownBy};
use super::redirect::Destination;
use super::{Approver, AuthorizationServer};
use crate::audit::Phase;
use crate::failure::Failure;

/// Longest query of an authorization request, in bytes: a client id may have a third of it.
pub const MAX_QUERY_BYTES: usize = 6 << 10; // 6 KiB

/// Characters of an S256 challenge: 32 bytes in base64url.
const CHALLENGE_CHARS: usize = 43;

/// A request that can be granted.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who asks.
    pub client: Client,
    /// Where the answer goes.
    pub destination: Destination,
    pub(super) state: Option<String>,
    pub(super) challenge: String,
}

impl Asked {
    /// A digest of what a person sees and decides by. A form that was made for another one is void: a client's document
    /// may have changed in between.
    pub fn digest(&self) -> String {
        use base64::Engine as _;
        let host = match &self.client.known_by {
            KnownBy::Document { host } => host.as_str(),
            KnownBy::Registration => "",
        };
        let mut sha = Sha256::new();
        for part in [&self.client.id, self.client.name.as_deref().unwrap_or_default(), host, self.destination.as_str()]
        {
            sha.update((part.len() as u64).to_be_bytes());
            sha.update(part.as_bytes());
        }
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sha.finalize())
    }
}

/// Why a request cannot be granted.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// A page says why. `back` leads to the client with the reason, where it is certain that it is the client's address.
    Bad {
        /// A sentence for the person.
        text: String,
        /// Where a link may lead.
        back: Option<Box<(Destination, String)>>,
    },
    /// It cannot be told just now; a page says why.
    Unavailable(String),
    /// Of our own.
    Failed(Failure),
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Bad(text) => Self::Bad { text, back: None },
            ClientError::Unavailable(text) => Self::Unavailable(text),
            ClientError::Failed(failure) => Self::Failed(failure),
        }
    }
}

fn bad(text: &str) -> Refusal {
    Refusal::Bad { text: text.to_owned(), back: None }
}

/// The parameters of a request or form. None may stand there twice (RFC 6749 §3.1): two readers could take two. A
/// resource may (RFC 8707 §2), and then every one of them counts.
pub struct Parameters {
    one: HashMap<String, String>,
    resources: Vec<String>,
}

impl Parameters {
    /// Reads them. `None`, where one stands there twice.
    pub fn read(text: &[u8]) -> Option<Self> {
        let (mut one, mut resources) = (HashMap::new(), Vec::new());
        for (key, value) in url::form_urlencoded::parse(text) {
            if key == "resource" {
                resources.push(value.into_owned());
            } else if one.insert(key.into_owned(), value.into_owned()).is_some() {
                return None;
            }
        }
        Some(Self { one, resources })
    }

    /// A parameter that is there and not empty: an empty one counts as left out (RFC 6749 §3.1).
    pub fn get(&self, key: &str) -> Option<&str> {
        self.one.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// What the tokens are to be for.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.resources.iter().map(String::as_str)
    }
}

impl AuthorizationServer {
    /// Checks a request. `None`, where the client's document would have to be fetched first and `may_fetch` is false.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn examine(&self, query: &str, may_fetch: bool) -> Result<Option<Asked>, Refusal> {
        if query.len() > MAX_QUERY_BYTES {
            return Err(bad("The client's request is too long."));
        }
        let parameters = Parameters::read(query.as_bytes())
            .ok_or_else(|| bad("The client's request has a parameter twice, so it is not certain what it asks for."))?;
        let id =
            parameters.get("client_id").ok_or_else(|| bad("The client's request does not say which client it is."))?;
        let asked = parameters
            .get("redirect_uri")
            .ok_or_else(|| bad("The client's request does not say where to send you back to (redirect_uri)."))?;
        let destination = Destination::parse(asked)
            .map_err(|why| bad(&format!("The address that the client wants you sent back to {why}.")))?;
        let Some(client) = self.client(id, may_fetch).await? else { return Ok(None) };
        if !client.redirect_uris.iter().any(|registered| registered.admits(&destination)) {
            return Err(bad(
                "The client wants you sent back to an address that it is not registered with. Nothing was sent there.",
            ));
        }
        let state = parameters.get("state").map(str::to_owned);
        match self.challenge(&parameters) {
            Ok(challenge) => Ok(Some(Asked { client, destination, state, challenge })),
            Err((code, text)) => {
                let back = self.answer(&destination, state.as_deref(), &[("error", code), ("error_description", text)]);
                Err(Refusal::Bad {
                    text: format!("The client's request cannot be granted: {text}."),
                    back: Some(Box::new((destination, back))),
                })
            }
        }
    }

    /// The challenge of a request that is otherwise acceptable, or the error for the client (RFC 6749 §4.1.2.1).
    fn challenge(&self, parameters: &Parameters) -> Result<String, (&'static str, &'static str)> {
        match parameters.get("response_type") {
            Some("code") => {}
            Some(_) => return Err(("unsupported_response_type", "only response_type=code is supported")),
            None => return Err(("invalid_request", "response_type is missing")),
        }
        if parameters.get("response_mode").is_some_and(|mode| mode != "query") {
            return Err(("invalid_request", "only response_mode=query is supported"));
        }
        // RFC 9101 §6.2: to be ignored would mean to ask the person for something else than what was asked for.
        if parameters.get("request").is_some() || parameters.get("request_uri").is_some() {
            return Err(("request_not_supported", "request objects are not supported"));
        }
        // RFC 7636 §4.3: without a method it would be "plain", which whoever reads the request can answer.
        match parameters.get("code_challenge_method") {
            Some("S256") => {}
            _ => return Err(("invalid_request", "code_challenge_method must be S256")),
        }
        let challenge = parameters.get("code_challenge").unwrap_or_default();
        let in_form = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if challenge.len() != CHALLENGE_CHARS || !challenge.bytes().all(in_form) {
            return Err(("invalid_request", "code_challenge is missing, or not a SHA-256 in base64url"));
        }
        if !parameters.resources().all(|resource| self.is_resource(resource)) {
            // RFC 8707 §2.
            return Err(("invalid_target", "resource is not this server"));
        }
        Ok(challenge.to_owned())
    }

    /// Where a browser goes with an answer. It always says whose it is (RFC 9207 §2).
    fn answer(&self, destination: &Destination, state: Option<&str>, parameters: &[(&str, &str)]) -> String {
        let mut all = parameters.to_vec();
        all.extend(state.map(|state| ("state", state)));
        all.push(("iss", self.issuer()));
        destination.with(&all)
    }

    /// A person allows a client: where their browser goes, with a code.
    ///
    /// # Errors
    /// `vault_unavailable`, `audit_unavailable`: nothing was allowed.
    pub async fn allow(&self, asked: &Asked, approver: Approver) -> Result<String, Failure> {
        let code = self.new_code(asked, approver).await?;
        Ok(self.answer(&asked.destination, asked.state.as_deref(), &[("code", code.expose())]))
    }

    /// A person does not: where their browser goes.
    ///
    /// # Errors
    /// `audit_unavailable`.
    pub async fn deny(&self, asked: &Asked, approver: &Approver) -> Result<String, Failure> {
        self.record(Phase::Outcome, &approver.person, &asked.client.label(), "client.denied").await?;
        let error = [("error", "access_denied"), ("error_description", "the person did not allow it")];
        Ok(self.answer(&asked.destination, asked.state.as_deref(), &error))
    }
}
