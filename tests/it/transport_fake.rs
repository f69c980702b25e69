//! A product behind the transports that is nothing but people, tools and a switch.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use obo::call::{Outcome, Request};
use obo::catalog::Effect;
use obo::consent::Link;
use obo::failure::{Code, Failure};
use obo::id::{Person, TenantId, UserId};
use obo::identity::{Credential, IdentityError, Lacking};
use obo::transport::{Caller, Listing, Service};
use serde_json::json;
use tokio::sync::Semaphore;

pub(crate) const LINK: &str = "https://obo.example.com/connect/AbCdEfGhIjKlMnOpQrStUvWxYz012345";

/// Bearer tokens are user names; `bad` is nobody and `down` cannot be checked. Who is not connected gets [`LINK`].
pub(crate) struct Fake {
    connected: Mutex<HashSet<String>>,
    /// A permit for each call of `Test.Wait` that has begun.
    pub(crate) begun: Semaphore,
    /// `Test.Wait` ends for each permit here.
    pub(crate) release: Semaphore,
    /// Every actor that was seen.
    pub(crate) actors: Mutex<BTreeSet<String>>,
}

#[derive(Clone)]
pub(crate) struct Someone(Person);

impl Caller for Someone {
    fn person(&self) -> &Person {
        &self.0
    }

    fn lacks(&self, _: Effect) -> Option<&Lacking> {
        None
    }
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            connected: Mutex::default(),
            begun: Semaphore::new(0),
            release: Semaphore::new(0),
            actors: Mutex::default(),
        })
    }

    pub(crate) fn connect(&self, user: &str) {
        self.connected.lock().unwrap().insert(user.to_owned());
    }

    pub(crate) async fn has_begun(&self) {
        self.begun.acquire().await.unwrap().forget();
    }
}

fn person(tenant: &TenantId, user: &str) -> Result<Someone, IdentityError> {
    let user: UserId = user.parse().map_err(|_| IdentityError::Invalid { cause: "no such name".to_owned() })?;
    Ok(Someone(Person { tenant: tenant.clone(), source: obo::id::Source::obo(), user }))
}

impl Service for Fake {
    type Caller = Someone;

    async fn authenticate(&self, credential: &Credential) -> Result<Someone, IdentityError> {
        match credential {
            Credential::OsUser { tenant, user } => person(tenant, user.as_str()),
            Credential::Bearer { token, obo_user } => match token.expose() {
                "bad" => Err(IdentityError::Invalid { cause: "test".to_owned() }),
                "down" => Err(IdentityError::Unavailable { cause: "test".to_owned() }),
                "shop" => person(&"acme".parse().unwrap(), obo_user.as_deref().unwrap_or_default()),
                user => person(&TenantId::default_tenant(), user),
            },
        }
    }

    async fn tools(&self, caller: &Someone) -> Vec<Listing> {
        listings(caller)
    }

    fn tool(&self, caller: &Someone, name: &str) -> Option<Listing> {
        listings(caller).into_iter().find(|tool| tool.name.as_str() == name || tool.name.underscored() == name)
    }

    async fn refused(&self, _: &Self::Caller, _: &obo::id::ToolName) {}

    async fn call(&self, caller: &Someone, request: Request) -> Outcome {
        self.actors.lock().unwrap().insert(request.actor);
        let Some(tool) = self.tool(caller, &request.tool) else { return Outcome::UnknownTool };
        let user = caller.0.user.as_str();
        match tool.name.as_str() {
            "Test.Wait" => {
                self.begun.add_permits(1);
                self.release.acquire().await.unwrap().forget();
                Outcome::Value(json!("released"))
            }
            "Test.Fail" => Outcome::Failed(Failure::new(Code::NotFound, "there is no such message; list them first")),
            "Google.SendEmail" => {
                let state = format!("state of {user}");
                let resume = request.resume;
                if resume.as_ref().is_some_and(|resume| resume.state != state) {
                    return Outcome::BadRequestState;
                }
                if self.connected.lock().unwrap().contains(user) {
                    return Outcome::Value(json!({"sent_as": user}));
                }
                Outcome::Authorization(Link {
                    flow: LINK.rsplit('/').next().unwrap().parse().unwrap(),
                    url: LINK.parse().unwrap(),
                    provider: "google".parse().unwrap(),
                    provider_name: "Google".to_owned(),
                    tool: Some(tool.name),
                    scopes: vec!["send".to_owned()],
                    expires_in: Duration::from_secs(600),
                    request_state: state,
                    waited: resume.is_some_and(|resume| !resume.refused),
                    code_back: false,
                })
            }
            _ if request.arguments.contains_key("panic") => panic!("a defect, asked for"),
            _ => Outcome::Value(json!({
                "user": user,
                "tenant": caller.0.tenant.as_str(),
                "arguments": request.arguments,
            })),
        }
    }
}

/// A request of a revision up to 2025-11-25.
pub(crate) fn request(id: u64, method: &str, params: serde_json::Value) -> serde_json::Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// The handshake of those revisions.
pub(crate) fn initialize(revision: &str, capabilities: serde_json::Value) -> serde_json::Value {
    let client = json!({"name": "probe", "version": "1"});
    let params = json!({"protocolVersion": revision, "capabilities": capabilities, "clientInfo": client});
    request(0, "initialize", params)
}

/// A request of 2026-07-28, which says everything itself.
pub(crate) fn modern(
    id: u64,
    method: &str,
    mut params: serde_json::Value,
    capabilities: serde_json::Value,
) -> serde_json::Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "probe", "version": "2"},
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    });
    request(id, method, params)
}

fn listings(caller: &Someone) -> Vec<Listing> {
    let tool = |name: &str, effect| Listing {
        name: name.parse().unwrap(),
        title: format!("Title of {name}"),
        description: "A tool of a test.".to_owned(),
        input: Arc::new(serde_json::from_value(json!({"type": "object"})).unwrap()),
        effect,
        idempotent: effect == Effect::Read,
    };
    let mut tools = vec![
        tool("Test.Wait", Effect::Read),
        tool("Google.SendEmail", Effect::Write),
        tool("Google.DeleteEmail", Effect::Destructive),
        tool("Test.Echo", Effect::Read),
        tool("Test.Fail", Effect::Read),
    ];
    // An argument that is to be repeated in a header (2026-07-28, Tools §x-mcp-header).
    let region = json!({"type": "string", "x-mcp-header": "Region"});
    let input = json!({"type": "object", "properties": {"region": region}});
    tools[3].input = Arc::new(serde_json::from_value(input).unwrap());
    if caller.0.user.as_str() == "alice" {
        tools.push(tool("Test.OfAlice", Effect::Read));
    }
    tools
}
