//! What is asked for? Tools and providers, read from manifests once and immutable afterwards.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};
use url::Url;

use crate::failure::Failure;
use crate::id::{ProviderId, ToolName};
use crate::secret::Secret;

pub mod jq;
pub mod mail;
pub mod provider;

/// What a call does to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Changes nothing.
    Read,
    /// Adds or changes something.
    Write,
    /// Removes or overwrites something.
    Destructive,
}

/// The client of a provider, from `[providers.ID]` of obo.toml.
#[derive(Clone)]
pub struct ProviderClient {
    /// The client id.
    pub id: String,
    /// The client secret; none for a public client.
    pub secret: Option<Secret>,
}

/// A provider, ready to use: its manifest with obo.toml applied and its programs compiled.
pub struct Provider {
    /// Its id.
    pub id: ProviderId,
    /// Its name for people.
    pub name: String,
    /// The API servers. `origin` and `servers` of obo.toml are applied.
    pub servers: BTreeMap<String, Url>,
    /// The OAuth side. `origin` and `pkce` of obo.toml are applied.
    pub oauth: provider::OauthManifest,
    /// How to learn which account was connected. `origin` is applied.
    pub account: provider::AccountManifest,
    /// What scopes mean, in words.
    pub scopes: BTreeMap<String, String>,
    /// The client; none: its tools are not offered.
    pub client: Option<ProviderClient>,
    // catalog helper adds: compiled programs (token_answer, account key and label, error rules)
}

impl Provider {
    /// Names the token endpoint and the API origins. A grant remembers it: when it changes the grant is not used, so
    /// that a token never goes to a server its person did not consent to.
    pub fn fingerprint(&self) -> String {
        todo!()
    }
}

/// A tool, ready to call.
pub struct Tool {
    /// `Google.SendEmail`.
    pub name: ToolName,
    /// For people.
    pub title: String,
    /// For the model that chooses.
    pub description: String,
    /// Scope sets, any one of which is enough. Never empty; a set may be.
    pub scopes_any_of: Vec<Vec<String>>,
    /// What a call does.
    pub effect: Effect,
    /// Whether calling twice does no more than calling once.
    pub idempotent: bool,
    /// The JSON Schema of the arguments, as clients see it.
    pub input: Arc<Map<String, Value>>,
    /// Whose API it calls.
    pub provider: Arc<Provider>,
    // catalog helper adds: validator, steps, response program, facts
}

impl Tool {
    /// Fills in defaults, then validates against the schema.
    ///
    /// # Errors
    /// `invalid_arguments`, naming each wrong argument's path and what was expected there; never its value.
    pub fn arguments(&self, _raw: Map<String, Value>) -> Result<Arguments, Failure> {
        todo!()
    }
}

/// Arguments that a tool's schema accepted. Only [`Tool::arguments`] builds them.
#[derive(Debug, Clone, PartialEq)]
pub struct Arguments(Map<String, Value>);

impl Arguments {
    /// The arguments as JSON.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// SHA-256 over the canonical JSON (keys sorted, no white space): the same arguments give the same digest.
    pub fn digest(&self) -> [u8; 32] {
        todo!()
    }
}

/// All tools and providers.
pub struct Catalog {
    tools: BTreeMap<ToolName, Arc<Tool>>,
    aliases: HashMap<String, ToolName>,
    providers: BTreeMap<ProviderId, Arc<Provider>>,
}

impl Catalog {
    /// Finds an enabled tool by either spelling of its name.
    pub fn find(&self, name: &str) -> Option<&Arc<Tool>> {
        let name = self.aliases.get(name)?;
        self.tools.get(name)
    }

    /// The enabled tools, in the order of their names.
    pub fn tools(&self) -> impl Iterator<Item = &Arc<Tool>> {
        self.tools.values()
    }

    /// All providers, with and without a client.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.providers.values()
    }

    /// One provider.
    pub fn provider(&self, id: &str) -> Option<&Arc<Provider>> {
        self.providers.values().find(|p| p.id.as_str() == id)
    }
}
