//! MCP over stdio and HTTP, and the pages a person sees.
//!
//! The only module that knows `rmcp` and `axum`. It turns what arrives into a [`Credential`] and a [`Request`], hands
//! both to a [`Service`], and writes the [`Outcome`] in the shape that the client's protocol revision has for it.
//!
//! - [`config`]: the `[server]` section of obo.toml.
//! - [`frame`]: what is read of a message before the protocol layer sees it: size, depth, shape.
//! - [`delivery`]: what a call that needs consent returns, by revision and client.
//! - `mcp`: the protocol's methods, shared by every transport.
//! - [`stdio`], [`http`]: the transports.
//! - [`rest`]: for applications. [`oauth`]: for clients that look for where to sign in. [`pages`]: what a person sees. [`loopback`]: the port that all processes of a data folder share.

use std::future::Future;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::call::{Obo, Outcome, Request};
use crate::catalog::{Changes, Effect, Tool};
use crate::id::{Person, ToolName};
use crate::identity::{Credential, IdentityError, Lacking, Subject};
use crate::policy;
use crate::vault::Grant;

pub mod config;
mod cors;
pub mod delivery;
mod drain;
pub mod frame;
pub mod http;
mod listeners;
mod lists;
pub mod loopback;
mod mcp;
pub mod oauth;
pub mod pages;
pub mod rest;
pub mod signal;
pub mod stdio;

pub use config::{Config, ConfigError, ConsentDelivery, ConsentWait, ToolNames};
pub use frame::parse_frame;
pub use mcp::Handler;

/// Longest that calls under way may take to finish once obo is told to stop.
pub const SHUTDOWN_GRACE: std::time::Duration = std::time::Duration::from_secs(25);

/// What the transports need from the product. [`Obo`] is the one that counts; tests bring others.
pub trait Service: Send + Sync + 'static {
    /// Who is calling, once that is proven.
    type Caller: Caller;

    /// Says who is calling. Asked again for every request: neither a connection nor a session is a proof of identity.
    fn authenticate(&self, credential: &Credential)
    -> impl Future<Output = Result<Self::Caller, IdentityError>> + Send;

    /// The tools that a caller may see.
    fn tools(&self, caller: &Self::Caller) -> impl Future<Output = Vec<Listing>> + Send;

    /// One tool that a caller may see, by either spelling of its name.
    fn tool(&self, caller: &Self::Caller, name: &str) -> Option<Listing>;

    /// Changes of what is offered, from now on. None: it never changes.
    fn changes(&self) -> Option<Changes> {
        None
    }

    /// The very tools behind [`Service::tools`], where what is shown of them is the same for everybody who sees them: it is
    /// then written out once for all of them. None: it has to be asked for each caller.
    fn shown(&self, _caller: &Self::Caller) -> impl Future<Output = Option<Vec<Arc<Tool>>>> + Send {
        std::future::ready(None)
    }

    /// Puts it on record that a call was refused for what the caller's credential lacks, before it came to be one.
    fn refused(&self, caller: &Self::Caller, tool: &ToolName) -> impl Future<Output = ()> + Send;

    /// Makes a call. The transports carry it to its end, also when the client goes away or withdraws the request.
    fn call(&self, caller: &Self::Caller, request: Request) -> impl Future<Output = Outcome> + Send;
}

/// A caller whose identity was proven.
pub trait Caller: Clone + Send + Sync + 'static {
    /// Who it is. Sessions are bound to this.
    fn person(&self) -> &Person;

    /// What their credential lacks for calls of tools with such an effect.
    fn lacks(&self, effect: Effect) -> Option<&Lacking>;
}

/// What clients are shown of a tool.
#[derive(Debug, Clone)]
pub struct Listing {
    /// `Google.SendEmail`.
    pub name: ToolName,
    /// For people.
    pub title: String,
    /// For the model that chooses.
    pub description: String,
    /// The JSON Schema of the arguments.
    pub input: Arc<Map<String, Value>>,
    /// What a call does to the world.
    pub effect: Effect,
    /// Whether calling twice does no more than calling once.
    pub idempotent: bool,
}

impl Service for Obo {
    type Caller = Subject;

    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        Obo::authenticate(self, credential).await
    }

    async fn tools(&self, caller: &Subject) -> Vec<Listing> {
        let accounts = self.several_accounts(caller).await;
        let listing = |tool: &Arc<Tool>| match tool.api().and_then(|api| accounts.get(&api.provider.id)) {
            Some(accounts) => Listing::from(&**tool).with_account(accounts),
            None => Listing::from(&**tool),
        };
        Obo::tools(self, caller).iter().map(listing).collect()
    }

    async fn shown(&self, caller: &Subject) -> Option<Vec<Arc<Tool>>> {
        self.several_accounts(caller).await.is_empty().then(|| Obo::tools(self, caller))
    }

    fn tool(&self, caller: &Subject, name: &str) -> Option<Listing> {
        Obo::tool(self, caller, name).map(|tool| Listing::from(&*tool))
    }

    fn changes(&self) -> Option<Changes> {
        Some(Obo::changes(self))
    }

    async fn refused(&self, caller: &Subject, tool: &ToolName) {
        Obo::refused(self, caller, tool.as_str(), "mcp client").await;
    }

    async fn call(&self, caller: &Subject, request: Request) -> Outcome {
        Obo::call(self, caller, request).await
    }
}

impl Listing {
    /// Adds the argument by which a person with several accounts says which one.
    fn with_account(mut self, accounts: &[Grant]) -> Self {
        let input = Arc::make_mut(&mut self.input);
        if let Some(properties) = input.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
            let labels: Vec<&str> = accounts.iter().map(|grant| grant.account.label.as_str()).collect();
            let text = match Grant::default_of(accounts) {
                Some(Grant { account, .. }) => format!(
                    "Which of the user's connected accounts to use. Default: {}, which the user chose.",
                    account.label
                ),
                None => "Which of the user's connected accounts to use. Ask the user when it is not clear.".to_owned(),
            };
            properties.insert("account".to_owned(), json!({ "type": "string", "enum": labels, "description": text }));
        }
        self
    }
}

impl Caller for Subject {
    fn person(&self) -> &Person {
        Subject::person(self)
    }

    fn lacks(&self, effect: Effect) -> Option<&Lacking> {
        policy::lacking(self, effect)
    }
}

impl From<&Tool> for Listing {
    fn from(tool: &Tool) -> Self {
        Self {
            name: tool.name.clone(),
            title: tool.title.clone(),
            description: tool.description.clone(),
            input: tool.input.clone(),
            effect: tool.effect,
            idempotent: tool.idempotent,
        }
    }
}

/// The settings that change what clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// How `tools/list` spells names.
    pub tool_names: ToolNames,
    /// What a call that needs consent returns.
    pub consent_delivery: ConsentDelivery,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self { tool_names: config.tool_names, consent_delivery: config.consent_delivery }
    }
}
