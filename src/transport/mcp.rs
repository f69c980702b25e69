//! The protocol's methods, shared by stdio, Streamable HTTP and HTTP+SSE.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Bytes;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, ClientCapabilities, DiscoverResult, Implementation,
    ListToolsResult, MetaObject, PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig,
    SubscriptionFilter, Tool, ToolAnnotations,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::config::ToolNames;
use super::delivery::{CONSENT_KEY_PREFIX, Recipient, deliver};
use super::listeners::Listeners;
use super::lists::Lists;
use super::{Caller as _, Listing, Service, Settings};
use crate::call::{Outcome, Request, Resume};
use crate::catalog::{self, Effect};
use crate::failure::Failure;
use crate::identity::{Credential, IdentityError};

/// How long clients may keep the tool list, in milliseconds (2026-07-28, Caching). Policies and catalogs change.
const LIST_TTL_MS: u64 = 60_000;

/// Longest `requestState` that is looked at, in bytes. Sealed ones are a fraction of this.
const MAX_REQUEST_STATE_BYTES: usize = 8 * 1024;

/// Most characters of a client's name and version that are kept.
const MAX_ACTOR_CHARS: usize = 200;

const SERVER_INFO_KEY: &str = "io.modelcontextprotocol/serverInfo";

const INSTRUCTIONS: &str = "Each tool acts on a service, such as a mailbox or a calendar, as the user who is signed \
    in, with that user's own permission. A call to a service that the user has not connected yet returns a link, \
    which the user opens in a browser to connect it.";

tokio::task_local! {
    /// The caller of the HTTP request being served, for [`ServerHandler::get_tool`], which is given no context.
    static CALLER: Arc<dyn Any + Send + Sync>;
}

/// Runs `work` with its caller known to [`Mcp::get_tool`].
pub(super) async fn with_caller<C: Send + Sync + 'static, T>(caller: C, work: impl Future<Output = T>) -> T {
    CALLER.scope(Arc::new(caller), work).await
}

/// What answers the messages that the layers in front of it let through. The product's is the one that counts; the
/// conformance suite asks for tools of its own, which another one offers behind the very same layers.
///
/// One is made for every session and every stateless request, so it is cheap to clone.
pub trait Handler: ServerHandler + Clone {
    /// The same, speaking the revisions that have an `initialize` handshake only.
    fn with_handshake_only(self) -> Self;

    /// The same, ending what would go on for ever when `end` is cancelled.
    fn ending_with(self, end: CancellationToken) -> Self {
        let _ = end;
        self
    }

    /// The tools of a `tools/list` result, written out, where that was or can be done once for all who see the same. A
    /// request with these parts and `WrittenOut` in them is answered as if there were none, for its caller to put them
    /// in.
    fn written_out(&self, _parts: &http::request::Parts) -> impl Future<Output = Option<Bytes>> + Send {
        std::future::ready(None)
    }
}

/// In the parts of a request: its tools are put in afterwards.
#[derive(Debug, Clone, Copy)]
pub(super) struct WrittenOut;

/// The product's.
pub(super) struct Mcp<S> {
    service: Arc<S>,
    who: Who,
    settings: Settings,
    newest: ProtocolVersion,
    listeners: Listeners,
    end: CancellationToken,
    lists: Arc<Lists>,
}

/// Where a request's caller comes from.
#[derive(Clone)]
pub(super) enum Who {
    /// The HTTP request that carried the message; the layer in front of rmcp has put the caller there.
    Request,
    /// The process itself: one credential, authenticated again for every call.
    Process(Credential),
}

impl<S> Clone for Mcp<S> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            who: self.who.clone(),
            settings: self.settings,
            newest: self.newest.clone(),
            listeners: self.listeners.clone(),
            end: self.end.clone(),
            lists: self.lists.clone(),
        }
    }
}

impl<S: Service> Mcp<S> {
    pub(super) fn new(service: Arc<S>, who: Who, settings: Settings) -> Self {
        let listeners = Listeners::new(service.changes());
        let end = CancellationToken::new();
        Self { service, who, settings, newest: ProtocolVersion::LATEST, listeners, end, lists: Arc::default() }
    }

    async fn caller(&self, context: &RequestContext<RoleServer>) -> Result<S::Caller, ErrorData> {
        match &self.who {
            Who::Request => context
                .extensions
                .get::<http::request::Parts>()
                .and_then(|parts| parts.extensions.get::<S::Caller>())
                .cloned()
                // Only a defect in the layers gets here, and it must not become an anonymous call.
                .ok_or_else(|| ErrorData::internal_error("the request has no caller", None)),
            Who::Process(credential) => self.service.authenticate(credential).await.map_err(|error| {
                tracing::warn!(cause = %error, "identity.refused");
                let text = match error {
                    IdentityError::Unavailable { .. } => "the user could not be identified now; call again in a moment",
                    _ => "the user that this server runs for is not known; its log says why",
                };
                ErrorData::internal_error(text, None)
            }),
        }
    }

    /// Makes a call in a task of its own: it ends as it would have when nobody waits for it any more, and a defect in
    /// it is an answer rather than silence.
    async fn carry(&self, caller: S::Caller, request: Request) -> Outcome {
        let service = self.service.clone();
        let call = tokio::spawn(async move { service.call(&caller, request).await });
        call.await.unwrap_or_else(|error| {
            // Whether it panicked, not with what: a panic's text may quote anything.
            tracing::error!(panicked = error.is_panic(), "call.broke_off");
            Outcome::Failed(Failure::internal("the call broke off"))
        })
    }

    fn in_order(&self, listings: impl IntoIterator<Item = Listing>) -> Vec<Tool> {
        let mut tools: Vec<Tool> = listings.into_iter().map(|listing| self.tool(&listing)).collect();
        tools.sort_by(|a, b| a.name.cmp(&b.name));
        tools
    }

    fn tool(&self, listing: &Listing) -> Tool {
        let name = match self.settings.tool_names {
            ToolNames::Underscore => listing.name.underscored(),
            ToolNames::Dotted => listing.name.to_string(),
        };
        // Lists are read by models and paid for by the token. What the protocol takes for granted is left out (Tool
        // Annotations: a tool writes, destroys, is not idempotent, and meets an open world), and so is a second title.
        let annotations = match listing.effect {
            Effect::Read => ToolAnnotations::from_raw(None, Some(true), None, None, None),
            Effect::Write => {
                ToolAnnotations::from_raw(None, None, Some(false), listing.idempotent.then_some(true), None)
            }
            // Taken for granted too, and said all the same: it is what people are warned of.
            Effect::Destructive => {
                ToolAnnotations::from_raw(None, None, Some(true), listing.idempotent.then_some(true), None)
            }
        };
        let mut meta = MetaObject::new();
        meta.insert("obo/name".to_owned(), Value::from(listing.name.as_str()));
        Tool::new(name, listing.description.clone(), listing.input.clone())
            .with_title(listing.title.clone())
            .with_annotations(annotations)
            .with_meta(meta)
    }
}

impl<S: Service> Handler for Mcp<S> {
    fn with_handshake_only(mut self) -> Self {
        self.newest = ProtocolVersion::LATEST_WITH_INITIALIZE;
        self
    }

    fn ending_with(self, end: CancellationToken) -> Self {
        Self { end, ..self }
    }

    async fn written_out(&self, parts: &http::request::Parts) -> Option<Bytes> {
        let caller = parts.extensions.get::<S::Caller>()?.clone();
        let tools = self.service.shown(&caller).await?;
        let write = |tools: &[Arc<catalog::Tool>]| {
            let listed = self.in_order(tools.iter().map(|tool| Listing::from(&**tool)));
            serde_json::to_vec(&listed).ok().map(Bytes::from)
        };
        self.lists.of(tools, write)
    }
}

impl<S: Service> ServerHandler for Mcp<S> {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build())
            .with_server_info(implementation())
            .with_instructions(INSTRUCTIONS)
            // What `initialize` falls back to; 2026-07-28 has no handshake.
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(ProtocolVersion::known_up_to(&self.newest))
    }

    async fn discover(&self, _context: RequestContext<RoleServer>) -> Result<DiscoverResult, ErrorData> {
        let versions = self.supported_protocol_versions().into_owned();
        Ok(DiscoverResult::from_server_info(versions, self.get_info())
            .with_ttl_ms(LIST_TTL_MS)
            .with_cache_scope(CacheScope::Private))
    }

    /// A client of a revision with a handshake hears of changes in its session, without asking.
    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.listeners.add(context.peer);
    }

    /// 2026-07-28 has no sessions: a client that wants to hear of changes listens for them (Subscriptions).
    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let caller = self.caller(context.request_context()).await?;
        let Some(_counted) = self.listeners.begin(caller.person()) else {
            let text = "too many subscriptions of this user are open; close some first";
            return Err(ErrorData::invalid_request(text, None));
        };
        let told = self.listeners.tell(&context);
        tokio::select! {
            () = told => {}
            () = context.cancelled() => {}
            () = self.end.cancelled() => {}
        }
        Ok(())
    }

    /// For the check of `Mcp-Param-*` headers (2026-07-28, Transports §Standard Request Headers), which runs before
    /// the call and with no context.
    fn get_tool(&self, name: &str) -> Option<Tool> {
        let caller = CALLER.try_with(Clone::clone).ok()?.downcast::<S::Caller>().ok()?;
        self.service.tool(&caller, name).map(|listing| self.tool(&listing))
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        // Everything is on one page, so no cursor was ever given out. An empty one is the beginning.
        if request.and_then(|page| page.cursor).is_some_and(|cursor| !cursor.is_empty()) {
            return Err(ErrorData::invalid_params("this cursor is not known; list again without one", None));
        }
        let caller = self.caller(&context).await?;
        let parts = context.extensions.get::<http::request::Parts>();
        let tools = match parts.and_then(|parts| parts.extensions.get::<WrittenOut>()) {
            Some(WrittenOut) => Vec::new(),
            None => self.in_order(self.service.tools(&caller).await),
        };
        let mut result = ListToolsResult::with_all_items(tools);
        if is_modern(&context) {
            result = result.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Private);
            add_server_info(&mut result.meta);
        }
        Ok(result)
    }

    async fn call_tool(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let caller = self.caller(&context).await?;
        let resume = resume(&params)?;
        let to = Recipient {
            revision: context.protocol_version(),
            url_elicitation: has_url_elicitation(context.client_capabilities().as_ref()),
            consent_delivery: self.settings.consent_delivery,
            retried: resume.is_some(),
            refused: resume.as_ref().is_some_and(|resume| resume.refused),
            tool: params.name.to_string(),
            tool_names: self.settings.tool_names,
        };
        let request = Request {
            tool: params.name.into_owned(),
            arguments: params.arguments.unwrap_or_default(),
            actor: actor(context.client_info()),
            resume,
        };
        let outcome = tokio::select! {
            outcome = self.carry(caller, request) => outcome,
            // Nobody reads the answer of a request that was withdrawn; what was begun goes on without us.
            () = context.ct.cancelled() => return Err(ErrorData::internal_error("the request was withdrawn", None)),
        };
        let mut delivered = deliver(outcome, &to)?;
        if is_modern(&context) {
            match &mut delivered {
                CallToolResponse::Complete(result) => add_server_info(&mut result.meta),
                CallToolResponse::InputRequired(result) => add_server_info(&mut result.meta),
                _ => {}
            }
        }
        Ok(delivered)
    }
}

/// Whether a client declared URL elicitation. An empty `elicitation` means forms only (2025-11-25, Elicitation
/// §Capabilities).
pub(super) fn has_url_elicitation(capabilities: Option<&ClientCapabilities>) -> bool {
    capabilities.and_then(|all| all.elicitation.as_ref()).is_some_and(|elicitation| elicitation.url.is_some())
}

fn implementation() -> Implementation {
    Implementation::new("obo", env!("CARGO_PKG_VERSION")).with_title("obo: tools that act on the user's behalf")
}

fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|revision| !revision.has_initialize())
}

/// 2026-07-28, Basic §`_meta`: servers identify themselves on every result.
fn add_server_info(meta: &mut Option<MetaObject>) {
    if let Ok(info) = serde_json::to_value(implementation()) {
        meta.get_or_insert_default().insert(SERVER_INFO_KEY.to_owned(), info);
    }
}

/// What a retry carries (2026-07-28, MRTR). Nothing in it is believed: the state is opened by the product, and an
/// `accept` only means that the person was shown the link.
fn resume(params: &CallToolRequestParams) -> Result<Option<Resume>, ErrorData> {
    let Some(state) = &params.request_state else { return Ok(None) };
    if state.len() > MAX_REQUEST_STATE_BYTES {
        return Err(ErrorData::invalid_params("requestState is too long; call the tool again without it", None));
    }
    let refused = params.input_responses.iter().flatten().any(|(key, response)| {
        key.starts_with(CONSENT_KEY_PREFIX)
            && matches!(response.get("action").and_then(Value::as_str), Some("decline" | "cancel"))
    });
    Ok(Some(Resume { state: state.clone(), refused }))
}

/// Client name and version, as the client says: shown and recorded, never trusted.
fn actor(client: Option<Implementation>) -> String {
    let Some(client) = client else { return "unknown client".to_owned() };
    let text = format!("{} {}", client.name, client.version);
    text.chars().filter(|c| !c.is_control()).take(MAX_ACTOR_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn params(value: Value) -> CallToolRequestParams {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_retry_is_refused_when_the_consent_was() {
        for (responses, refused) in [
            (json!({"consent:google": {"action": "accept"}}), false),
            (json!({"consent:google": {"action": "decline"}}), true),
            (json!({"consent:google": {"action": "cancel"}}), true),
            (json!({"other": {"action": "decline"}}), false),
            (json!({"consent:google": "decline"}), false),
            (json!({}), false),
        ] {
            let call = params(json!({"name": "x", "requestState": "s", "inputResponses": responses.clone()}));
            assert_eq!(resume(&call).unwrap().unwrap().refused, refused, "{responses}");
        }
        assert!(resume(&params(json!({"name": "x"}))).unwrap().is_none());
        assert!(resume(&params(json!({"name": "x", "requestState": "s".repeat(8193)}))).is_err());
    }

    #[test]
    fn an_actor_is_one_bounded_line() {
        let client = Implementation::new("evil\nclient", "9".repeat(500));
        let actor = actor(Some(client));
        assert!(actor.starts_with("evilclient 9") && actor.chars().count() == MAX_ACTOR_CHARS, "{actor}");
    }
}
