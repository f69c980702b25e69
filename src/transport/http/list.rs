//! An answer whose tools were written out before.

use axum::body::{Body, Bytes, to_bytes};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use memchr::memmem;

/// What the protocol layer writes for no tools. It stands nowhere inside a text, where quotes have a backslash.
const NO_TOOLS: &[u8] = b"\"tools\":[]";

/// Largest answer without its tools, in bytes: an id, and what the server says of itself.
const MAX_REST_BYTES: usize = 64 * 1024;

/// Puts the tools into the answer that the protocol layer made without them. Any other answer stays as it is.
pub(super) async fn put_in(response: Response, tools: Bytes) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(rest) = to_bytes(body, MAX_REST_BYTES).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let Some(at) = memmem::find(&rest, NO_TOOLS) else { return Response::from_parts(parts, Body::from(rest)) };
    let (before, after) = (rest.slice(..at + NO_TOOLS.len() - 2), rest.slice(at + NO_TOOLS.len()..));
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(before.len() + tools.len() + after.len()));
    // Side by side, without copying what is long.
    let pieces = [before, tools, after].map(Ok::<_, std::convert::Infallible>);
    Response::from_parts(parts, Body::from_stream(stream::iter(pieces)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(answer: &'static str) -> (Option<usize>, String) {
        let response = put_in(answer.into_response(), Bytes::from_static(b"[{\"name\":\"a\"}]")).await;
        let length =
            response.headers().get(header::CONTENT_LENGTH).map(|value| value.to_str().unwrap().parse().unwrap());
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (length, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn tools_are_put_where_there_are_none_and_nowhere_else() {
        let whole = r#"{"id":"\"tools\":[]","result":{"tools":[{"name":"a"}],"ttlMs":1}}"#;
        assert_eq!(
            text(r#"{"id":"\"tools\":[]","result":{"tools":[],"ttlMs":1}}"#).await,
            (Some(whole.len()), whole.to_owned())
        );
        let error = r#"{"id":1,"error":{"message":"\"tools\":[]"}}"#;
        assert_eq!(text(error).await.1, error);
    }
}
