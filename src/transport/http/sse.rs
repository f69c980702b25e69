//! The older HTTP+SSE transport (2024-11-05, Transports): one stream for everything the server says, and an address
//! for everything it is told.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::channel::mpsc as outgoing;
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, StatusCode};
use rmcp::RoleServer;
use rmcp::ServiceExt as _;
use rmcp::model::{ClientJsonRpcMessage, GetExtensions as _, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answer::{no_such_session, refuse, refuse_request, retry_after};
use super::limits::MAX_PENDING_PER_STREAM;
use super::session::{Link, Sessions};
use super::{Endpoint, read_body, refuse_frame};
use crate::secret::random_text;
use crate::transport::drain::{Draining, Pending};
use crate::transport::frame::{Frame, parse_frame};
use crate::transport::{Caller as _, Handler, Service};

/// Random bytes of a session id.
const SESSION_ID_BYTES: usize = 24;

/// Messages and answers that may wait in either direction.
const CHANNEL: usize = 16;

/// How often a comment is sent so that nothing in between takes the stream for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The revision that is noted of such a session. Nothing depends on it: batches are for Streamable HTTP.
const REVISION: &str = "2024-11-05";

/// `GET /sse`: opens a session. It ends with its stream.
pub(super) async fn open<S: Service, H: Handler>(
    State(endpoint): State<Arc<Endpoint<S, H>>>,
    request: Request,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let opened = async {
        let caller = endpoint.authenticate(&mut parts).await?;
        let slot = endpoint.reserve(&caller).await?;
        let id = random_text::<SESSION_ID_BYTES>();
        let (messages, incoming) = mpsc::channel(CHANNEL);
        let (answers, outgoing) = outgoing::channel(CHANNEL);
        let (pending, end) = (Pending::new(), CancellationToken::new());
        slot.bind(&id, REVISION, Link::Stream { messages, pending: pending.clone(), end: end.clone() });
        let transport = Draining::new(Channels { incoming, answers }, pending, endpoint.stop.listening.clone());
        let handler = endpoint.handler.clone().with_handshake_only();
        let forget = Forget { sessions: endpoint.sessions.clone(), id: id.clone() };
        let ended = end.clone();
        tokio::spawn(async move {
            let _forget = forget;
            match handler.serve_with_ct(transport, ended).await {
                Ok(running) => {
                    // How it ended makes no difference to anyone any more.
                    let _ = running.waiting().await;
                }
                Err(error) => tracing::debug!(%error, "http.sse_not_initialized"),
            }
        });
        Ok::<_, Response>(Events { first: Some(id), outgoing, _end: end.drop_guard() })
    };
    let mut response = match opened.await {
        Ok(events) => Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response(),
        Err(refusal) => return refusal,
    };
    // Proxies that collect answers would collect this one for ever.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// `POST /messages?sessionId=…`: one message for a session. Its answer comes down the session's stream.
pub(super) async fn message<S: Service, H: Handler>(
    State(endpoint): State<Arc<Endpoint<S, H>>>,
    request: Request,
) -> Response {
    let _answering = endpoint.stop.answers.token();
    accept(&endpoint, request).await.unwrap_or_else(|refusal| refusal)
}

async fn accept<S: Service, H: Handler>(endpoint: &Endpoint<S, H>, request: Request) -> Result<Response, Response> {
    let (mut parts, body) = request.into_parts();
    let caller = endpoint.authenticate(&mut parts).await?;
    let id = session_id(parts.uri.query().unwrap_or_default());
    let found = id.and_then(|id| endpoint.sessions.find(&id, caller.person()));
    let Some((_, Link::Stream { messages, pending, .. })) = found else { return Err(no_such_session()) };
    let _room = endpoint.room_for(&parts.headers).await?;
    let body = read_body(&parts.headers, body).await?;
    let frame = match parse_frame(&body).map_err(|error| refuse_frame(&error))? {
        Frame::Message(frame) => frame,
        Frame::Batch(_) => return Err(refuse(StatusCode::BAD_REQUEST, "this transport takes one message a request")),
    };
    if let Some(refusal) = endpoint.too_few_scopes(&caller, &frame).await {
        return Err(refusal);
    }
    if pending.count() >= MAX_PENDING_PER_STREAM {
        let text = "too many calls of this session are under way; wait for some to end";
        return Err(retry_after(refuse_request(StatusCode::TOO_MANY_REQUESTS, frame.id, text), 1));
    }
    let mut message: ClientJsonRpcMessage = serde_json::from_slice(&body).map_err(|_| {
        refuse_request(StatusCode::BAD_REQUEST, frame.id, "the message does not have the form that its method needs")
    })?;
    // Where rmcp itself puts them on the other transport: with each message the caller of its own request.
    match &mut message {
        JsonRpcMessage::Request(request) => {
            request.request.extensions_mut().insert(parts);
        }
        JsonRpcMessage::Notification(notification) => {
            notification.notification.extensions_mut().insert(parts);
        }
        JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
    }
    messages.send(message).await.map_err(|_| no_such_session())?;
    Ok(StatusCode::ACCEPTED.into_response())
}

fn session_id(query: &str) -> Option<String> {
    let mut ids = url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "sessionId");
    match (ids.next(), ids.next()) {
        (Some((_, id)), None) => Some(id.into_owned()),
        _ => None,
    }
}

/// Takes the session out of the table when it has ended, however that came about.
struct Forget {
    sessions: Arc<Sessions>,
    id: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.sessions.remove(&self.id);
    }
}

/// The body of the stream. Dropping it, as when the client goes away, ends the session.
struct Events {
    first: Option<String>,
    outgoing: outgoing::Receiver<ServerJsonRpcMessage>,
    _end: DropGuard,
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(id) = self.first.take() {
            let endpoint = format!("/messages?sessionId={id}");
            return Poll::Ready(Some(Ok(Event::default().event("endpoint").data(endpoint))));
        }
        self.outgoing.poll_next_unpin(context).map(|message| {
            let text = serde_json::to_string(&message?).unwrap_or_default();
            Some(Ok(Event::default().event("message").data(text)))
        })
    }
}

/// A session's two directions, as a transport.
struct Channels {
    incoming: mpsc::Receiver<ClientJsonRpcMessage>,
    answers: outgoing::Sender<ServerJsonRpcMessage>,
}

impl Transport<RoleServer> for Channels {
    type Error = outgoing::SendError;

    fn send(
        &mut self,
        message: ServerJsonRpcMessage,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let mut answers = self.answers.clone();
        async move { futures::SinkExt::send(&mut answers, message).await }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        self.incoming.recv().await
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.answers.close_channel();
        Ok(())
    }
}
