//! Has the person said yes? Finds the grant a call needs, or asks for it with a link.

pub mod flow;

use std::time::Duration;

use url::Url;

use crate::id::{ProviderId, ToolName};

pub use flow::FlowId;

/// A link that a person must open before a call can go through.
#[derive(Debug, Clone)]
pub struct Link {
    /// The flow behind it.
    pub flow: FlowId,
    /// `{base}/connect/{flow}`: nothing personal in it, and never the provider's own URL.
    pub url: Url,
    /// The provider to connect.
    pub provider: ProviderId,
    /// Its name for people.
    pub provider_name: String,
    /// The tool that was called, where there was one.
    pub tool: Option<ToolName>,
    /// The scopes that will be asked for.
    pub scopes: Vec<String>,
    /// How long the link stays good.
    pub expires_in: Duration,
    /// What a client sends back with its retry; sealed to the person, the tool, the arguments and the time.
    pub request_state: String,
    /// Whether the call was held for this link in vain: the person was given it before.
    pub waited: bool,
}

/// Where consent pages are served. A way in implements it; a link is given out only while it says that obo answers.
#[async_trait::async_trait]
pub trait Door: Send + Sync {
    /// The base of links, once it is certain that obo, and nobody else, answers there.
    ///
    /// # Errors
    /// The failure for the caller, naming the port that a stranger holds.
    async fn base(&self) -> Result<Url, crate::failure::Failure>;
}
