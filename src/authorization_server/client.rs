//! A client: what it says of itself, and what of that is known.

use serde_json::{Map, Value};

use super::AuthorizationServer;
use super::redirect::Destination;
use super::{document, registration};
use crate::failure::Failure;

/// Most redirect URIs of a client.
pub(super) const MAX_REDIRECT_URIS: usize = 16;
/// Longest name of a client, in characters. It stands on a page that a person decides by.
pub(super) const MAX_NAME_CHARS: usize = 60;
/// Longest client id, in bytes.
pub(super) const MAX_ID_BYTES: usize = 2048;

/// How a client is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownBy {
    /// By a document at an address, which is its id: whoever can write there is the client.
    Document {
        /// The address's host, with its port where it has one.
        host: String,
    },
    /// By what it said of itself when it registered. Nobody has checked that.
    Registration,
}

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// What OAuth calls it.
    pub id: String,
    /// What it calls itself.
    pub name: Option<String>,
    /// How it is known.
    pub known_by: KnownBy,
    /// Where it may be sent codes.
    pub redirect_uris: Vec<Destination>,
}

impl Client {
    /// Its name in lists and on record.
    pub fn label(&self) -> String {
        match (&self.name, &self.known_by) {
            (Some(name), KnownBy::Document { host }) => format!("{name} ({host})"),
            (None, KnownBy::Document { host }) => host.clone(),
            (Some(name), KnownBy::Registration) => format!("{name} (as it calls itself)"),
            (None, KnownBy::Registration) => "a client without a name".to_owned(),
        }
    }
}

/// Why there is no such client.
#[derive(Debug, Clone)]
pub enum ClientError {
    /// It is unknown, or what it says of itself is not acceptable. A sentence for whoever runs the client.
    Bad(String),
    /// It cannot be told just now. A sentence, too.
    Unavailable(String),
    /// Of our own.
    Failed(Failure),
}

impl AuthorizationServer {
    /// The client that goes by an id. `None`, where its document would have to be fetched first and `may_fetch` is false.
    pub(super) async fn client(&self, id: &str, may_fetch: bool) -> Result<Option<Client>, ClientError> {
        if id.len() > MAX_ID_BYTES {
            return Err(ClientError::Bad("The client's id is too long.".to_owned()));
        }
        if registration::is_id(id) {
            return self.registered(id).await.map(Some);
        }
        if document::is_id(id) {
            return match self.inner.documents.cached(id) {
                Some(client) => Ok(Some(client)),
                None if may_fetch => self.inner.documents.fetch(id).await.map(Some),
                None => Ok(None),
            };
        }
        Err(ClientError::Bad(
            "The client is not known here. Clients register first, or have the https address of their metadata document \
             as their id."
                .to_owned(),
        ))
    }
}

/// What client metadata says, wherever it stands (RFC 7591 §2). The error is what is wrong with it.
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) redirect_uris: Vec<Destination>,
}

/// What is wrong with client metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MetadataError {
    /// With a redirect URI.
    RedirectUri(String),
    /// With something else.
    Other(String),
}

impl MetadataError {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::RedirectUri(text) | Self::Other(text) => text,
        }
    }
}

impl Metadata {
    pub(super) fn read(metadata: &Map<String, Value>) -> Result<Self, MetadataError> {
        let name = match metadata.get("client_name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => read_name(name),
            Some(_) => return Err(MetadataError::Other("client_name is not text".to_owned())),
        };
        let wrong = |text: &str| MetadataError::RedirectUri(text.to_owned());
        let Some(Value::Array(uris)) = metadata.get("redirect_uris") else {
            return Err(wrong("redirect_uris is missing; list where the client may be sent"));
        };
        if uris.is_empty() || uris.len() > MAX_REDIRECT_URIS {
            return Err(MetadataError::RedirectUri(format!("redirect_uris needs 1 to {MAX_REDIRECT_URIS} entries")));
        }
        let mut redirect_uris = Vec::with_capacity(uris.len());
        for (number, uri) in uris.iter().enumerate() {
            let text = uri.as_str().ok_or_else(|| wrong("redirect_uris has an entry that is not text"))?;
            let destination = Destination::parse(text).map_err(|why| {
                // By its number: what it says is not for a page, nor for a log.
                MetadataError::RedirectUri(format!("entry {} of redirect_uris {why}", number + 1))
            })?;
            redirect_uris.push(destination);
        }
        must_have(metadata, "grant_types", "authorization_code")?;
        must_have(metadata, "response_types", "code")?;
        Ok(Self { name, redirect_uris })
    }
}

/// A list that, where there is one, has an entry.
fn must_have(metadata: &Map<String, Value>, key: &str, needed: &str) -> Result<(), MetadataError> {
    match metadata.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.iter().any(|entry| entry == needed) => Ok(()),
        Some(Value::Array(_)) => Err(MetadataError::Other(format!("{key} is without {needed}, the one there is"))),
        Some(_) => Err(MetadataError::Other(format!("{key} is not a list"))),
    }
}

/// A name as it may stand on a page: what would turn the text around, hide in it, or end the quotes around it is left out,
/// and what is too long is cut (RFC 7591 §2: a server may put another value in its place).
fn read_name(name: &str) -> Option<String> {
    let seen = |c: char| {
        // Letters that look like nothing.
        let blank = matches!(c, '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}');
        (c.is_alphanumeric() && !blank)
            || matches!(c, ' ' | '.' | ',' | '-' | '_' | '(' | ')' | '+' | '&' | '/' | ':' | '#')
    };
    let kept: String = name.chars().filter(|&c| seen(c)).take(MAX_NAME_CHARS).collect();
    let name = kept.split_whitespace().collect::<Vec<_>>().join(" ");
    (!name.is_empty()).then_some(name)
}
