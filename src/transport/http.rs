//! MCP over HTTP: Streamable HTTP at `/mcp`, the older HTTP+SSE at `/sse` and `/messages`.
//!
//! The order of the checks is the order of [`router`] and of `Endpoint::serve`: `Host`; `Origin`; bearer; body size,
//! time and shape; scopes; session and its person; and only then the protocol layer. The body is read after the bearer was
//! accepted, so that strangers cannot make this process hold their megabytes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use rmcp::model::ProtocolVersion;
use rmcp::transport::streamable_http_server::session::store::SessionStore;
use rmcp::transport::streamable_http_server::{SessionManager as _, StreamableHttpServerConfig, StreamableHttpService};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::frame::{Frame, FrameError, Message, parse_frame};
use super::mcp::{Mcp, Who, WrittenOut, with_caller};
use super::{Caller as _, Config, Handler, Service, Settings};
use crate::id::Person;
use crate::identity::McpSessions;

mod answer;
mod batch;
pub mod bearer;
mod connection;
pub mod health;
mod kept;
pub mod limits;
mod list;
mod metadata;
mod origin;
mod resume;
mod session;
mod sse;

use answer::{no_such_session, refuse, retry_after};
use bearer::Challenges;
pub use connection::serve;
pub use health::Ready;
use kept::Kept;
use limits::{BODY_BUDGET_KIB, BODY_TIMEOUT, MAX_BODY_BYTES};
pub use metadata::Scopes;
use origin::Gate;
use session::{BoundSessionManager, Evicted, Link, Sessions, Slot};

const SESSION_ID: &str = "mcp-session-id";
const PROTOCOL_VERSION: &str = "mcp-protocol-version";

/// Seconds that a client is asked to wait when there is no room for its session.
const FULL_RETRY_S: u32 = 60;

/// Seconds that a client is asked to wait when it cannot be told whether there is its session.
const STORE_RETRY_S: u32 = 5;

/// What [`router`] is built from.
pub struct Setup<S> {
    /// The product.
    pub service: Arc<S>,
    /// `[server]`, checked.
    pub config: Config,
    /// The address that is really listened on.
    pub listen: SocketAddr,
    /// The issuers whose tokens are accepted, for the metadata of RFC 9728.
    pub issuers: Vec<String>,
    /// The scopes that their tokens need, for the metadata and for challenges.
    pub scopes: Scopes,
    /// Whether `/sse` is described as a resource of its own, for clients that were given its address.
    pub sse_is_a_resource: bool,
    /// Where sessions are kept that other processes may go on with; none: each lives in this process alone.
    pub mcp_sessions: Option<McpSessions>,
    /// Whether calls can be served.
    pub ready: Arc<dyn Ready>,
    /// Further routes: the pages, REST. Only `Host` is checked for them. They authenticate by their own means, and
    /// check the origin of forms themselves: a browser sends `Origin: null` with a form of a page without a referrer.
    pub further: Router,
    /// Routes for which not even `Host` is checked. They must tell friend from stranger by other means.
    pub unhosted: Router,
}

/// The routes, and what [`serve`] needs to end them well.
pub struct App {
    router: Router,
    stop: Stop,
}

impl App {
    /// The routes alone, for tests that need no socket.
    pub fn router(&self) -> Router {
        self.router.clone()
    }
}

/// How the end is told to everything that would otherwise go on.
#[derive(Clone)]
struct Stop {
    /// No new messages: HTTP+SSE sessions answer what they have and end.
    listening: CancellationToken,
    /// Answers that are not written to their end yet.
    answers: TaskTracker,
    /// Cuts off what is left: rmcp's sessions and their open streams.
    sessions: CancellationToken,
}

/// Puts the routes together.
pub fn router<S: Service>(setup: Setup<S>) -> App {
    let handler = Mcp::new(setup.service.clone(), Who::Request, Settings::from(&setup.config));
    router_to(handler, setup)
}

/// The same routes and the same layers, with `handler` behind them in the product's place. It finds the caller of each
/// message where the product's does: in the extensions of the request's [`Parts`].
pub fn router_to<S: Service, H: Handler>(handler: H, setup: Setup<S>) -> App {
    let Setup { service, config, listen, issuers, scopes, sse_is_a_resource, mcp_sessions, ready, further, unhosted } =
        setup;
    let base = config.public_base();
    let gate = Arc::new(Gate::new(&config, listen));
    let stop =
        Stop { listening: CancellationToken::new(), answers: TaskTracker::new(), sessions: CancellationToken::new() };
    let handler = handler.ending_with(stop.listening.clone());
    let described = &metadata::RESOURCES[..if sse_is_a_resource { 2 } else { 1 }];
    let challenges = Challenges::new(&base, described, &scopes);
    let endpoint = Arc::new(Endpoint::new(service, handler, challenges, mcp_sessions, stop.clone()));

    let protocol = Router::new()
        .route("/mcp", any(mcp::<S, H>))
        .route("/sse", get(sse::open::<S, H>))
        .route("/messages", post(sse::message::<S, H>))
        .with_state(endpoint)
        .layer(middleware::from_fn_with_state(gate.clone(), origin::check_origin));
    let mut documents = Router::new();
    for (path, resource) in described
        .iter()
        .map(|&resource| (metadata::path(resource), resource))
        .chain([(metadata::ROOT.to_owned(), "/mcp")])
    {
        let document = metadata::document(&base, resource, &issuers, &scopes);
        documents = documents.route(&path, get(move || std::future::ready(metadata::answer(document.clone()))));
    }
    let router = protocol
        .merge(documents.layer(middleware::from_fn(super::cors::open_to_pages)))
        .merge(further)
        .layer(middleware::from_fn_with_state(gate, origin::check_host))
        .merge(health::router(ready))
        .merge(unhosted);
    App { router, stop }
}

async fn mcp<S: Service, H: Handler>(State(endpoint): State<Arc<Endpoint<S, H>>>, request: Request) -> Response {
    // Held until the answer is written to its end, or until it is a stream, which holds its own.
    let _answering = endpoint.stop.answers.token();
    endpoint.serve(request).await.unwrap_or_else(|refusal| refusal)
}

type Inner<H> = StreamableHttpService<H, BoundSessionManager>;

/// `/mcp`, and what it shares with `/sse`.
struct Endpoint<S: Service, H: Handler> {
    service: Arc<S>,
    handler: H,
    challenges: Challenges,
    sessions: Arc<Sessions>,
    kept: Option<McpSessions>,
    manager: Arc<BoundSessionManager>,
    inner: Inner<H>,
    /// KiB of bodies that may still be taken in.
    room: Arc<Semaphore>,
    stop: Stop,
}

impl<S: Service, H: Handler> Endpoint<S, H> {
    fn new(service: Arc<S>, handler: H, challenges: Challenges, kept: Option<McpSessions>, stop: Stop) -> Self {
        let sessions = Sessions::new();
        let manager = Arc::new(BoundSessionManager::new(sessions.clone()));
        // Host and Origin were checked before, by name and for every route; here the bodies are bounded too.
        let mut config = StreamableHttpServerConfig::default()
            .disable_allowed_hosts()
            .with_json_response(true)
            .with_max_request_body_bytes(MAX_BODY_BYTES)
            .with_cancellation_token(stop.sessions.clone());
        config.session_store = kept.clone().map(|kept| Arc::new(Kept(kept)) as Arc<dyn SessionStore>);
        let each = handler.clone();
        let inner = StreamableHttpService::new(move || Ok(each.clone()), manager.clone(), config);
        let room = Arc::new(Semaphore::new(BODY_BUDGET_KIB));
        Self { service, handler, challenges, sessions, kept, manager, inner, room, stop }
    }

    async fn serve(&self, request: Request) -> Result<Response, Response> {
        let (mut parts, body) = request.into_parts();
        let caller = self.authenticate(&mut parts).await?;
        // Two session ids: which one would be checked, and which one used?
        if parts.headers.get_all(SESSION_ID).iter().count() > 1 {
            return Err(refuse(StatusCode::BAD_REQUEST, "more than one Mcp-Session-Id; send one"));
        }
        if parts.method == Method::POST && is_json(&parts.headers) {
            return self.post(caller, parts, body).await;
        }
        // GET and DELETE have no message. A POST that is not JSON has none that is read: rmcp refuses it unseen.
        let deletes = parts.method == Method::DELETE;
        if is_modern(&parts.headers, None) {
            parts.headers.remove(SESSION_ID);
        } else {
            self.session(&parts.headers, &caller).await?;
        }
        // First: a client that goes away in between must not leave one that others can go on with.
        if deletes && let Some(id) = named(&parts.headers) {
            self.end_kept(id).await;
        }
        let response = self.forward(caller, Request::from_parts(parts, Body::empty())).await;
        // Some clients take 202 for a failure to end the session.
        if deletes && response.status() == StatusCode::ACCEPTED {
            return Ok(StatusCode::OK.into_response());
        }
        Ok(response)
    }

    async fn post(&self, caller: S::Caller, mut parts: Parts, body: Body) -> Result<Response, Response> {
        let _room = self.room_for(&parts.headers).await?;
        let body = read_body(&parts.headers, body).await?;
        let message = match parse_frame(&body).map_err(|error| refuse_frame(&error))? {
            Frame::Message(message) => message,
            Frame::Batch(messages) => return batch::serve(self, caller, parts, body, messages).await,
        };
        if let Some(refusal) = self.too_few_scopes(&caller, &message).await {
            return Err(refusal);
        }
        if message.is_initialize() {
            parts.headers.remove(SESSION_ID);
            return self.initialize(caller, parts, body, &message).await;
        }
        if is_modern(&parts.headers, Some(&message)) {
            // 2026-07-28 has no sessions and ignores the header. Taken out, it cannot reach a session unchecked.
            parts.headers.remove(SESSION_ID);
            if message.lists_tools()
                && let Some(tools) = self.handler.written_out(&parts).await
            {
                parts.extensions.insert(WrittenOut);
                return Ok(list::put_in(self.forward_message(caller, parts, body, &message).await, tools).await);
            }
        } else {
            self.session(&parts.headers, &caller).await?;
        }
        Ok(self.forward_message(caller, parts, body, &message).await)
    }

    async fn initialize(
        &self,
        caller: S::Caller,
        parts: Parts,
        body: Bytes,
        message: &Message,
    ) -> Result<Response, Response> {
        let slot = self.reserve(&caller).await?;
        let (person, params) = (caller.person().clone(), params_of(&body));
        let response = self.forward_message(caller, parts, body, message).await;
        if let Some(id) = response.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()) {
            // Before anything is waited for: one that nobody is bound to would count for nobody.
            slot.bind(id, &negotiated(message), Link::Streamable { kept: false });
            if self.keep(id, &person, message, params).await {
                self.sessions.note_kept(id);
            }
            // It may have ended before it was bound, and will then not be removed a second time.
            if !self.manager.has_session(&id.into()).await.unwrap_or(false) {
                self.sessions.remove(id);
                self.end_kept(id).await;
            }
        }
        Ok(response)
    }

    /// Waits until a body of the announced size may be taken in; one without a size counts as the largest. Held until the
    /// call is answered.
    async fn room_for(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Response> {
        let bytes = announced_length(headers).unwrap_or(MAX_BODY_BYTES).min(MAX_BODY_BYTES);
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        match tokio::time::timeout(BODY_TIMEOUT, self.room.clone().acquire_many_owned(kib)).await {
            Ok(Ok(room)) => Ok(room),
            _ => {
                tracing::warn!("http.bodies_full");
                let text = "this server is busy with large messages; try again in a minute";
                Err(retry_after(refuse(StatusCode::SERVICE_UNAVAILABLE, text), FULL_RETRY_S))
            }
        }
    }

    async fn authenticate(&self, parts: &mut Parts) -> Result<S::Caller, Response> {
        let caller = bearer::authenticate(&*self.service, parts, &self.challenges).await?;
        // For the handler, which sees the parts of the very request that carried its message.
        parts.extensions.insert(caller.clone());
        Ok(caller)
    }

    /// The refusal of a call that the caller's token has too few scopes for, while that can still be said with a status:
    /// the protocol layer answers 200, by which no client learns to ask for more. Elsewhere policy says it.
    async fn too_few_scopes(&self, caller: &S::Caller, message: &Message) -> Option<Response> {
        let tool = self.service.tool(caller, message.tool.as_deref()?)?;
        let lacking = caller.lacks(tool.effect)?;
        let missing = lacking.missing.join(" ");
        tracing::info!(tool = tool.name.as_str(), missing, "a call without the scopes it needs was refused");
        self.service.refused(caller, &tool.name).await;
        Some(self.challenges.insufficient(lacking))
    }

    /// Makes room for a session.
    async fn reserve(&self, caller: &S::Caller) -> Result<Slot, Response> {
        let (slot, evicted) = self.sessions.reserve(caller.person()).map_err(|_| {
            tracing::warn!("http.sessions_full");
            let text = "this server has no room for another session now; try again in a minute";
            retry_after(refuse(StatusCode::SERVICE_UNAVAILABLE, text), FULL_RETRY_S)
        })?;
        match evicted {
            Some(Evicted { id, link: Link::Streamable { .. } }) => {
                if let Err(error) = self.manager.close_session(&id.as_str().into()).await {
                    tracing::warn!(%error, "http.session_not_closed");
                }
                self.end_kept(&id).await;
            }
            Some(Evicted { link: Link::Stream { end, .. }, .. }) => end.cancel(),
            None => {}
        }
        Ok(slot)
    }

    /// The revision of the session that a request names, where it names one: one of this caller's own, else none.
    async fn session(&self, headers: &HeaderMap, caller: &S::Caller) -> Result<Option<String>, Response> {
        if !headers.contains_key(SESSION_ID) {
            return Ok(None);
        }
        let id = named(headers).ok_or_else(no_such_session)?;
        match self.sessions.find(id, caller.person()) {
            Some((_, Link::Stream { .. })) => Err(no_such_session()),
            Some((revision, Link::Streamable { kept })) if !kept || self.goes_on(id).await => Ok(Some(revision)),
            Some((_, Link::Streamable { .. })) => {
                // Ended at another process.
                let _ = self.manager.close_session(&id.into()).await;
                Err(no_such_session())
            }
            None => self.take_over(id, caller).await.map(Some),
        }
    }

    /// Keeps a session that has begun, so that other processes can go on with it, and says whether they can.
    async fn keep(&self, id: &str, person: &Person, message: &Message, params: Option<serde_json::Value>) -> bool {
        let (Some(kept), Some(params)) = (&self.kept, params) else { return false };
        let outcome = kept.keep(id, person, &negotiated(message), params).await;
        if let Err(failure) = &outcome {
            tracing::warn!(cause = failure.cause, "http.session_not_kept");
        }
        outcome.is_ok()
    }

    /// Whether a session that is known here was not ended elsewhere. Where that cannot be told it goes on.
    async fn goes_on(&self, id: &str) -> bool {
        match &self.kept {
            Some(kept) => kept.goes_on(id).await.unwrap_or(true),
            None => true,
        }
    }

    /// Binds a session that another process began, where it is this caller's; rmcp then begins it here, too.
    async fn take_over(&self, id: &str, caller: &S::Caller) -> Result<String, Response> {
        let Some(kept) = &self.kept else { return Err(no_such_session()) };
        let found = kept.find(id, caller.person()).await.map_err(|failure| {
            tracing::warn!(cause = failure.cause, "http.session_not_looked_for");
            // Not that there is none: the client would begin anew, and lose what it has.
            retry_after(refuse(StatusCode::SERVICE_UNAVAILABLE, failure.message), STORE_RETRY_S)
        })?;
        let revision = found.ok_or_else(no_such_session)?;
        let slot = self.reserve(caller).await?;
        slot.bind(id, &revision, Link::Streamable { kept: true });
        Ok(revision)
    }

    async fn end_kept(&self, id: &str) {
        let Some(kept) = &self.kept else { return };
        if let Err(failure) = kept.end(id).await {
            tracing::warn!(cause = failure.cause, "http.session_not_ended");
        }
    }

    /// Hands a message that was looked at to rmcp.
    async fn forward_message(&self, caller: S::Caller, parts: Parts, body: Bytes, message: &Message) -> Response {
        let response = self.forward(caller, Request::from_parts(parts, Body::from(body))).await;
        // rmcp says that of JSON it cannot read, too.
        if response.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            let text = "the message does not have the form that its method needs";
            return answer::refuse_request(StatusCode::BAD_REQUEST, message.id.clone(), text);
        }
        response
    }

    async fn forward(&self, caller: S::Caller, request: Request) -> Response {
        let stream_of_answers = request.method() == Method::POST;
        let served = with_caller(caller, self.inner.clone().oneshot(request)).await;
        let Ok(response) = served;
        let mut response = response.map(Body::new);
        let is_stream = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        if is_stream && stream_of_answers {
            // Counts as an answer until it has ended. The stream of a GET ends with its session.
            let answering = self.stop.answers.token();
            response = response.map(|body| {
                Body::from_stream(body.into_data_stream().map(move |chunk| {
                    let _ = &answering;
                    chunk
                }))
            });
        }
        response
    }
}

/// The session that a request names.
fn named(headers: &HeaderMap) -> Option<&str> {
    headers.get(SESSION_ID)?.to_str().ok()
}

/// The parameters of a message.
fn params_of(body: &[u8]) -> Option<serde_json::Value> {
    #[derive(serde::Deserialize)]
    struct Params {
        params: serde_json::Value,
    }
    Some(serde_json::from_slice::<Params>(body).ok()?.params)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split_once(';').map_or(kind, |(essence, _)| essence);
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// Whether a request belongs to the revisions without sessions: its message says so, else its header. Revisions are
/// dates, so later ones compare as greater.
fn is_modern(headers: &HeaderMap, message: Option<&Message>) -> bool {
    let stated = headers.get(PROTOCOL_VERSION).and_then(|value| value.to_str().ok());
    let inline = message.and_then(|message| message.revision.as_deref());
    inline.or(stated).is_some_and(|revision| revision >= ProtocolVersion::NO_INITIALIZE.as_str())
}

/// What `initialize` agrees on: the revision asked for where it has a handshake, else the newest that has one.
fn negotiated(message: &Message) -> String {
    let newest = ProtocolVersion::LATEST_WITH_INITIALIZE;
    let known = ProtocolVersion::known_up_to(&newest).iter();
    let asked = known.clone().find(|revision| message.revision.as_deref() == Some(revision.as_str()));
    asked.unwrap_or(&newest).to_string()
}

fn refuse_frame(error: &FrameError) -> Response {
    answer::json(StatusCode::BAD_REQUEST, error.to_json())
}

fn announced_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Response> {
    let too_large = || {
        let text = format!("the body is larger than {} MiB", MAX_BODY_BYTES >> 20);
        refuse(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    if announced_length(headers).is_some_and(|length| length > MAX_BODY_BYTES) {
        return Err(too_large());
    }
    let read = async {
        let mut chunks = body.into_data_stream();
        let mut whole = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| refuse(StatusCode::BAD_REQUEST, "the body broke off"))?;
            if chunk.len() > MAX_BODY_BYTES - whole.len() {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(whole))
    };
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(read) => read,
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_counts_before_the_header() {
        let mut headers = HeaderMap::new();
        assert!(!is_modern(&headers, None));
        headers.insert(PROTOCOL_VERSION, "2026-07-28".parse().unwrap());
        assert!(is_modern(&headers, None));
        headers.insert(PROTOCOL_VERSION, "2025-11-25".parse().unwrap());
        assert!(!is_modern(&headers, None));
        let Ok(Frame::Message(message)) = parse_frame(
            br#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
        ) else {
            panic!("a message")
        };
        assert!(is_modern(&headers, Some(&message)));
    }

    #[test]
    fn a_handshake_agrees_on_a_revision_that_has_one() {
        for (asked, agreed) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-03-26", "2025-03-26"),
            ("2025-11-25", "2025-11-25"),
            ("2026-07-28", "2025-11-25"),
            ("1999-01-01", "2025-11-25"),
        ] {
            let body =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{asked}"}}}}"#);
            let Ok(Frame::Message(message)) = parse_frame(body.as_bytes()) else { panic!("a message") };
            assert_eq!(negotiated(&message), agreed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_bounded_in_size_and_time() {
        let none = HeaderMap::new();
        let whole = read_body(&none, Body::from("{}")).await.unwrap();
        assert_eq!(&whole[..], b"{}");

        let mut announced = HeaderMap::new();
        announced.insert(header::CONTENT_LENGTH, (MAX_BODY_BYTES + 1).into());
        let refused = read_body(&announced, Body::empty()).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);

        let chunk = Bytes::from(vec![b' '; 1 << 20]);
        let endless = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone()));
        let refused = read_body(&none, Body::from_stream(endless)).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);

        let silent = futures::stream::pending::<Result<Bytes, std::io::Error>>();
        let refused = read_body(&none, Body::from_stream(silent)).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
