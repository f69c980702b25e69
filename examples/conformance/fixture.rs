//! The suite's server, behind obo's layers.

// Revisions up to 2025-11-25 have logging and sampling, and the suite asks for both.
#![expect(deprecated, reason = "rmcp marks what 2026-07-28 no longer has")]

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use obo::identity::Subject;
use obo::secret::random_text;
use obo::transport::Handler;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, CompleteRequestParams,
    CompleteResult, CompletionInfo, ContentBlock, CreateMessageRequestParams, GetPromptRequestParams,
    GetPromptResponse, Implementation, InputRequests, InputRequiredResult, InputResponses, ListPromptsResult,
    ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, LoggingLevel, LoggingMessageNotificationParam,
    PaginatedRequestParams, ProgressNotificationParam, ProtocolVersion, ReadResourceRequestParams,
    ReadResourceResponse, SamplingMessage, ServerCapabilities, ServerConfig, SetLevelRequestParams,
    SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
};
use rmcp::service::{RequestContext, ServiceError, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::offer;

/// How long clients may keep lists and resources, in milliseconds.
const TTL_MS: u64 = 60_000;

/// Changes that a listener may fall behind.
const CHANGES: usize = 16;

/// Random bytes of a `requestState`.
const STATE_BYTES: usize = 24;

/// What can change while somebody listens.
#[derive(Debug, Clone, Copy)]
enum Change {
    Tools,
    Prompts,
}

/// The server.
pub(crate) struct Fixture {
    shared: Arc<Shared>,
    newest: ProtocolVersion,
    /// Of a request for changes: they count from before the client reads that it is heard.
    heard: Mutex<Option<broadcast::Receiver<Change>>>,
}

struct Shared {
    /// Every `requestState` that was given out, and the round that it ends. What is not here was not given out.
    rounds: Mutex<HashMap<String, u8>>,
    changes: broadcast::Sender<Change>,
}

impl Default for Fixture {
    fn default() -> Self {
        let shared = Shared { rounds: Mutex::default(), changes: broadcast::channel(CHANGES).0 };
        Self { shared: Arc::new(shared), newest: ProtocolVersion::LATEST, heard: Mutex::default() }
    }
}

impl Clone for Fixture {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), newest: self.newest.clone(), heard: Mutex::default() }
    }
}

impl Handler for Fixture {
    fn with_handshake_only(mut self) -> Self {
        self.newest = ProtocolVersion::LATEST_WITH_INITIALIZE;
        self
    }
}

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_completions()
            .enable_logging()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_tools()
            .enable_tool_list_changed()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("obo-conformance", env!("CARGO_PKG_VERSION")))
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(ProtocolVersion::known_up_to(&self.newest))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        offer::tools().into_iter().find(|tool| tool.name == name)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        authenticated(&context)?;
        Ok(ListToolsResult::with_all_items(offer::tools()).with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Private))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        authenticated(&context)?;
        let name = request.name.clone();
        if let Some(result) = offer::plain_result(&name) {
            return Ok(offer::parsed::<CallToolResult>(result).into());
        }
        let arguments = request.arguments.clone().unwrap_or_default();
        if let Some(form) = offer::form(&name, &arguments) {
            let answer = context.peer.create_elicitation(offer::parsed(form)).await.map_err(unanswered)?;
            return Ok(text(format!("Elicitation completed: {}", json!(answer))));
        }
        if name.starts_with("test_input_required_result_") || name == "test_streaming_elicitation" {
            return self.in_rounds(&name, &request, &context);
        }
        match &*name {
            "test_tool_with_logging" => {
                for said in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
                    log(&context, LoggingLevel::Info, said).await?;
                }
                Ok(text("done"))
            }
            // 2026-07-28, Logging: only what the request asked for.
            "test_logging_tool" => {
                if let Some(level) = context.meta.log_level() {
                    log(&context, level, "asked for").await?;
                }
                Ok(text("done"))
            }
            "test_tool_with_progress" => {
                if let Some(token) = context.meta.get_progress_token() {
                    for progress in [0.0, 50.0, 100.0] {
                        let progress = ProgressNotificationParam::new(token.clone(), progress).with_total(100.0);
                        context.peer.notify_progress(progress).await.map_err(unanswered)?;
                    }
                }
                Ok(text("done"))
            }
            "test_sampling" => {
                let prompt = arguments.get("prompt").and_then(Value::as_str).unwrap_or_default();
                let asked = CreateMessageRequestParams::new(vec![SamplingMessage::user_text(prompt)], 100);
                let answer = context.peer.create_message(asked).await.map_err(unanswered)?;
                let said = answer.message.content.first().and_then(|content| content.as_text());
                Ok(text(format!("LLM response: {}", said.map_or("", |said| said.text.as_str()))))
            }
            "test_missing_capability" => {
                if context.client_capabilities().is_none_or(|all| all.sampling.is_none()) {
                    let required = ClientCapabilities::builder().enable_sampling().build();
                    return Err(ErrorData::missing_required_client_capability(required));
                }
                Ok(text("done"))
            }
            "test_trigger_tool_change" => Ok(self.change(Change::Tools)),
            "test_trigger_prompt_change" => Ok(self.change(Change::Prompts)),
            _ => Err(ErrorData::invalid_params(format!("unknown tool: {name}"), None)),
        }
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        *lock(&self.heard) = Some(self.shared.changes.subscribe());
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let Some(mut changes) = lock(&self.heard).take() else { return Ok(()) };
        loop {
            let change = tokio::select! {
                () = context.cancelled() => return Ok(()),
                change = changes.recv() => change,
            };
            // Refused for what this listener did not ask for; one that has gone away is cancelled next.
            let _ = match change {
                Ok(Change::Tools) => context.sink().notify_tool_list_changed().await,
                Ok(Change::Prompts) => context.sink().notify_prompt_list_changed().await,
                Err(_) => return Ok(()),
            };
        }
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        authenticated(&context)?;
        let prompts = ListPromptsResult::with_all_items(offer::prompts());
        Ok(prompts.with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Private))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        authenticated(&context)?;
        let asks = request.name == "test_input_required_result_prompt";
        if asks && !answers(request.input_responses.as_ref(), "user_context") {
            return Ok(InputRequiredResult::new(Some(inputs(&["user_context"])), None).into());
        }
        let arguments = request.arguments.unwrap_or_default();
        let prompt = offer::prompt(&request.name, &arguments);
        prompt.map(Into::into).ok_or_else(|| ErrorData::invalid_params("unknown prompt", None))
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        authenticated(&context)?;
        let resources = ListResourcesResult::with_all_items(offer::resources());
        Ok(resources.with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Private))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        authenticated(&context)?;
        let templates = ListResourceTemplatesResult::with_all_items(offer::templates());
        Ok(templates.with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Private))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        authenticated(&context)?;
        let Some(resource) = offer::resource(&request.uri) else {
            return Err(ErrorData::resource_not_found("unknown resource", Some(json!({"uri": request.uri}))));
        };
        Ok(resource.with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Private).into())
    }

    async fn subscribe(&self, _: SubscribeRequestParams, context: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        authenticated(&context)
    }

    async fn unsubscribe(
        &self,
        _: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        authenticated(&context)
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        authenticated(&context)?;
        let values = vec![format!("{} and so on", request.argument.value)];
        let values = CompletionInfo::with_all_values(values).map_err(|e| ErrorData::internal_error(e, None))?;
        Ok(CompleteResult::new(values))
    }

    async fn set_level(&self, _: SetLevelRequestParams, context: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        authenticated(&context)
    }
}

impl Fixture {
    /// The tools that ask the client for something before they answer (2026-07-28, MRTR).
    fn in_rounds(
        &self,
        tool: &str,
        request: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let round = match &request.request_state {
            None => 0,
            Some(state) => match lock(&self.shared.rounds).get(state) {
                Some(round) => *round,
                None => return Err(ErrorData::invalid_params("requestState is not one of this server's", None)),
            },
        };
        let kind = tool.strip_prefix("test_input_required_result_").unwrap_or_default();
        let (keys, stateful): (&[&str], bool) = match (kind, round) {
            ("sampling", _) => (&["capital_question"], false),
            ("list_roots", _) => (&["client_roots"], false),
            ("request_state" | "tampered_state", _) => (&["confirm"], true),
            ("multiple_inputs", _) => (&["user_name", "greeting", "client_roots"], true),
            ("multi_round", 0 | 1) if !answers(request.input_responses.as_ref(), "step1") => (&["step1"], true),
            ("multi_round", _) => (&["step2"], true),
            ("capabilities", _) => (within(context.client_capabilities()), false),
            _ => (&["user_name"], false),
        };
        let answered = keys.iter().all(|key| answers(request.input_responses.as_ref(), key));
        if answered && (round > 0 || !stateful) {
            // The scenario of the echoed state looks for this word.
            return Ok(text(if stateful { "done: state-ok" } else { "done" }));
        }
        let state = stateful.then(|| {
            let state = random_text::<STATE_BYTES>();
            lock(&self.shared.rounds).insert(state.clone(), round + 1);
            state
        });
        Ok(InputRequiredResult::new(Some(inputs(keys)), state).into())
    }

    fn change(&self, change: Change) -> CallToolResponse {
        // Nobody may be listening.
        let _ = self.shared.changes.send(change);
        text("done")
    }
}

/// Whether the layers in front have said who is calling. Only a defect in them gets here without.
fn authenticated(context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    let parts = context.extensions.get::<http::request::Parts>();
    parts
        .and_then(|parts| parts.extensions.get::<Subject>())
        .map(|_| ())
        .ok_or_else(|| ErrorData::internal_error("the request has no caller", None))
}

async fn log(context: &RequestContext<RoleServer>, level: LoggingLevel, said: &str) -> Result<(), ErrorData> {
    let message = LoggingMessageNotificationParam::new(level, json!(said));
    context.peer.notify_logging_message(message).await.map_err(unanswered)
}

fn unanswered(error: ServiceError) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

fn text(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(text)]).into()
}

fn inputs(keys: &[&str]) -> InputRequests {
    keys.iter().map(|key| ((*key).to_owned(), offer::parsed(offer::input(key)))).collect()
}

/// Whether the client has answered: every answer is an object.
fn answers(responses: Option<&InputResponses>, key: &str) -> bool {
    responses.and_then(|responses| responses.get(key)).is_some_and(Value::is_object)
}

/// What a client with such capabilities may be asked for.
fn within(capabilities: Option<ClientCapabilities>) -> &'static [&'static str] {
    let capabilities = capabilities.unwrap_or_default();
    match (capabilities.elicitation.is_some(), capabilities.sampling.is_some()) {
        (true, true) => &["user_name", "greeting"],
        (true, false) => &["user_name"],
        (false, true) => &["greeting"],
        (false, false) => &[],
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
