//! What the server says about itself to clients that look for where to sign in (RFC 9728).

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::{Value, json};

/// The document, at the root and with the resource's path inserted (RFC 9728 §3.1).
pub(super) const PATHS: [&str; 2] = [ROOT, "/.well-known/oauth-protected-resource/mcp"];

const ROOT: &str = "/.well-known/oauth-protected-resource";

/// Where the challenge of a 401 points.
pub(super) fn url(public_base: &str) -> String {
    format!("{public_base}{ROOT}/mcp")
}

/// The protected resource's metadata (RFC 9728 §2). Without issuers the list is left out: the tokens then come from
/// obo itself, by other ways than OAuth.
pub(super) fn document(public_base: &str, issuers: &[String]) -> Value {
    let mut document = json!({
        "resource": format!("{public_base}/mcp"),
        "bearer_methods_supported": ["header"],
        "resource_name": "obo",
    });
    if !issuers.is_empty() {
        document["authorization_servers"] = json!(issuers);
    }
    document
}

/// The answer. Public, and readable from any page: clients that run in a browser need it before they may do anything.
pub(super) fn answer(document: Value) -> Response {
    let headers = [(header::CACHE_CONTROL, "public, max-age=300"), (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")];
    (headers, Json(document)).into_response()
}
