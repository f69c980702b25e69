//! Outbound HTTP: the one place that builds clients, and the rules for where they may connect (T11).
//!
//! No redirects are followed, every answer is bounded in size and time, and addresses that are not public are refused
//! at the moment of connecting, after name resolution, unless the operator wrote the host into obo.toml.

use std::time::Duration;

use url::Url;

/// `[network]` of obo.toml.
#[derive(Debug, Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A PEM file of further certificate authorities to trust.
    pub ca_file: Option<std::path::PathBuf>,
    /// A proxy for all requests. Addresses are then resolved, and filtered, by it.
    pub proxy: Option<Url>,
    /// `host:port` of servers that may be reached although their addresses are private.
    pub allow_private: Vec<String>,
}

/// Bounds of one request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte out to the last byte in.
    pub total: Duration,
    /// The longest body accepted, in bytes, after decompression.
    pub body_bytes: usize,
}

/// A whole answer.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: http::StatusCode,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body, whole.
    pub body: Vec<u8>,
}

/// Why there is no answer. None of the texts holds a secret or a URL's query.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EgressError {
    /// The address may not be connected to. Nothing was sent.
    #[error("{0} may not be connected to")]
    Forbidden(String),
    /// No connection was made. Nothing was sent.
    #[error("no connection to {0}")]
    Unreachable(String),
    /// No whole answer within the time; the request may have been received.
    #[error("no answer from {0} in time")]
    Timeout(String),
    /// The connection broke after the request was sent.
    #[error("the connection to {0} broke")]
    Broken(String),
    /// The answer is longer than the bound.
    #[error("the answer of {0} is larger than allowed")]
    TooLarge(String),
}

/// Sends requests under the rules. Cheap to clone.
#[derive(Clone)]
pub struct Egress {
    client: reqwest::Client,
}

impl Egress {
    /// Builds the client. `written` are the URLs that stand in obo.toml: their hosts are reachable wherever they resolve.
    ///
    /// # Errors
    /// One line naming the key and the mend: an unreadable `ca_file`, a bad entry in `allow_private`.
    pub fn new(_config: &Config, _written: &[Url]) -> Result<Self, String> {
        todo!()
    }

    /// Starts a request; [`Egress::send`] makes it.
    pub fn request(&self, method: http::Method, url: Url) -> reqwest::RequestBuilder {
        self.client.request(method, url)
    }

    /// Makes a request and reads the whole answer. Never follows a redirect, never repeats.
    ///
    /// # Errors
    /// See [`EgressError`].
    pub async fn send(&self, _request: reqwest::RequestBuilder, _limits: Limits) -> Result<Answer, EgressError> {
        todo!()
    }
}
