//! Batches: several messages in one POST, which 2025-03-26 has and no other revision (2025-03-26, Basic §Batching).

use std::ops::Range;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{StatusCode, header};
use rmcp::ErrorData;
use rmcp::model::{ProtocolVersion, RequestId};
use serde_json::Value;

use super::answer::{json, refuse};
use super::{Endpoint, PROTOCOL_VERSION};
use crate::transport::frame::{Kind, Message, error_json};
use crate::transport::{Handler, Service};

/// Largest answer to one message of a batch that is put together with the others, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Serves the messages of a batch side by side, and answers the requests among them in their order.
pub(super) async fn serve<S: Service, H: Handler>(
    endpoint: &Endpoint<S, H>,
    caller: S::Caller,
    mut parts: Parts,
    body: Bytes,
    messages: Vec<(Message, Range<usize>)>,
) -> Result<Response, Response> {
    let revision = ProtocolVersion::V_2025_03_26;
    let other =
        || refuse(StatusCode::BAD_REQUEST, "only sessions of 2025-03-26 have batches; send one message a request");
    // That revision does not know the header; a request with another value is of another revision.
    if parts.headers.get(PROTOCOL_VERSION).is_some_and(|stated| stated != revision.as_str()) {
        return Err(other());
    }
    // Without a session no revision is agreed on, and `initialize` must not stand in a batch (Lifecycle).
    if endpoint.session(&parts.headers, &caller).await?.as_deref() != Some(revision.as_str()) {
        return Err(other());
    }
    let of_another = |message: &Message| message.is_initialize() || message.revision.is_some();
    if messages.iter().any(|(message, _)| of_another(message)) {
        return Err(refuse(StatusCode::BAD_REQUEST, "a batch holds a message that cannot stand in one"));
    }
    // JSON-RPC 2.0 §5: an answer is found by its id. Of two requests with one id the protocol layer answers one, and the
    // batch would wait for the other for ever.
    let ids: Vec<_> =
        messages.iter().filter(|(message, _)| message.kind == Kind::Request).map(|(m, _)| &m.id).collect();
    if ids.iter().enumerate().any(|(at, id)| ids[..at].contains(id)) {
        return Err(refuse(StatusCode::BAD_REQUEST, "two requests of the batch have the same id; give each its own"));
    }
    // Before any of them is begun: a batch with one such call is sent again whole, with another token.
    for (message, _) in &messages {
        if let Some(refusal) = endpoint.too_few_scopes(&caller, message).await {
            return Err(refusal);
        }
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    let served = messages.into_iter().map(|(message, at)| {
        let (caller, parts, text) = (caller.clone(), parts.clone(), body.slice(at));
        async move {
            let response = endpoint.forward_message(caller, parts, text, &message).await;
            match message.kind {
                Kind::Request => Some(answer_in(response, message.id).await),
                Kind::Notification | Kind::Answer => None,
            }
        }
    });
    let answers: Vec<Value> = futures::future::join_all(served).await.into_iter().flatten().collect();
    if answers.is_empty() {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    Ok(json(StatusCode::OK, Value::Array(answers).to_string().into_bytes()))
}

/// The JSON-RPC answer in a response: in its stream, or its body.
async fn answer_in(response: Response, id: Option<RequestId>) -> Value {
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    let lines = text.lines().map(|line| line.strip_prefix("data:").unwrap_or(line));
    let answer = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|value| {
        value.get("jsonrpc").is_some() && (value.get("result").is_some() || value.get("error").is_some())
    });
    answer.unwrap_or_else(|| {
        let text = format!("the message was not answered (HTTP {}); send it again by itself", status.as_u16());
        // Our own bytes, written a moment ago.
        serde_json::from_slice(&error_json(id, ErrorData::internal_error(text, None))).unwrap_or_default()
    })
}
