//! Answers that are not the protocol layer's.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use rmcp::ErrorData;
use rmcp::model::RequestId;

use crate::transport::frame::error_json;

/// An HTTP error whose body is a JSON-RPC error, so that clients which show only one of the two show the reason.
pub(super) fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    refuse_request(status, None, text)
}

/// [`refuse`], for a request whose id is known.
pub(super) fn refuse_request(status: StatusCode, id: Option<RequestId>, text: impl Into<String>) -> Response {
    json(status, error_json(id, ErrorData::invalid_request(text.into(), None)))
}

/// A JSON body.
pub(super) fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], Body::from(body)).into_response()
}

/// The answer for a session that is unknown, ended, or somebody else's: all three read the same (2025-11-25,
/// Transports §Session Management), so that ids of others cannot be probed for.
pub(super) fn no_such_session() -> Response {
    refuse(StatusCode::NOT_FOUND, "there is no such session; initialize a new one")
}

/// Adds how long to wait.
pub(super) fn retry_after(mut response: Response, seconds: u32) -> Response {
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}
