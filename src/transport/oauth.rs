//! The endpoints of obo's own authorization server that clients ask themselves. The page that a person sees is in
//! [`super::pages`].

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::cors::open_to_pages;
use crate::authorization_server::{
    AuthorizationServer, MAX_REGISTRATION_BYTES, RegistrationError, TokenError, TokenErrorCode, path,
};

/// Longest that a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest form of a client, in bytes.
const MAX_FORM_BYTES: usize = 16 << 10; // 16 KiB

/// The routes.
pub fn router(server: AuthorizationServer) -> Router {
    let mut router = Router::new()
        .route(path::METADATA, get(metadata))
        .route(path::TOKEN, post(token))
        .route(path::REVOKE, post(revoke));
    if server.registers() {
        router = router.route(path::REGISTER, post(register));
    }
    router.layer(middleware::from_fn(open_to_pages)).with_state(server)
}

async fn metadata(State(server): State<AuthorizationServer>) -> Response {
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(server.metadata())).into_response()
}

async fn token(State(server): State<AuthorizationServer>, request: Request) -> Response {
    match form(request).await {
        Ok(form) => match server.token(&form).await {
            Ok(answer) => not_stored(StatusCode::OK, answer),
            Err(error) => refuse(&error),
        },
        Err(refusal) => refusal,
    }
}

async fn revoke(State(server): State<AuthorizationServer>, request: Request) -> Response {
    match form(request).await {
        Ok(form) => match server.revoke(&form).await {
            Ok(()) => not_stored(StatusCode::OK, json!({})),
            Err(error) => refuse(&error),
        },
        Err(refusal) => refusal,
    }
}

async fn register(State(server): State<AuthorizationServer>, request: Request) -> Response {
    let is_json = kind(request.headers()) == "application/json";
    let body = match body(request, MAX_REGISTRATION_BYTES).await {
        Ok(body) => body,
        Err(status) => return describe(status, "invalid_client_metadata", &too_much(status, MAX_REGISTRATION_BYTES)),
    };
    if !is_json {
        let text = "send the registration as application/json";
        return describe(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_client_metadata", text);
    }
    match server.register(&body).await {
        // RFC 7591 §3.2.1.
        Ok(answer) => not_stored(StatusCode::CREATED, answer),
        Err(RegistrationError::RedirectUri(text)) => describe(StatusCode::BAD_REQUEST, "invalid_redirect_uri", &text),
        Err(RegistrationError::Metadata(text)) => describe(StatusCode::BAD_REQUEST, "invalid_client_metadata", &text),
        Err(RegistrationError::Failed(failure)) => refuse(&failure.into()),
    }
}

/// The form of a client that has not tried to prove who it is: there is no client here that could.
async fn form(request: Request) -> Result<Vec<u8>, Response> {
    if request.headers().contains_key(header::AUTHORIZATION) {
        // RFC 6749 §5.2.
        let text = "clients have no secrets here; use token_endpoint_auth_method none";
        let mut response = describe(StatusCode::UNAUTHORIZED, TokenErrorCode::InvalidClient.as_str(), text);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"obo\""));
        return Err(response);
    }
    if kind(request.headers()) != "application/x-www-form-urlencoded" {
        let text = "send a form (application/x-www-form-urlencoded)";
        return Err(describe(StatusCode::BAD_REQUEST, TokenErrorCode::InvalidRequest.as_str(), text));
    }
    // RFC 6749 §3.2: parameters in the address would end up in logs.
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        let text = "send the parameters in the body, not in the address";
        return Err(describe(StatusCode::BAD_REQUEST, TokenErrorCode::InvalidRequest.as_str(), text));
    }
    body(request, MAX_FORM_BYTES)
        .await
        .map_err(|status| describe(status, TokenErrorCode::InvalidRequest.as_str(), &too_much(status, MAX_FORM_BYTES)))
}

async fn body(request: Request, most: usize) -> Result<Vec<u8>, StatusCode> {
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(request.into_body(), most)).await {
        Ok(Ok(body)) => Ok(body.into()),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

fn too_much(status: StatusCode, most: usize) -> String {
    if status == StatusCode::REQUEST_TIMEOUT {
        "the body took too long to arrive".to_owned()
    } else {
        format!("the body is larger than {} KiB, or broke off", most >> 10)
    }
}

fn kind(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn refuse(error: &TokenError) -> Response {
    let status = match error.code {
        TokenErrorCode::InvalidClient => StatusCode::UNAUTHORIZED,
        TokenErrorCode::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        TokenErrorCode::InvalidRequest
        | TokenErrorCode::InvalidGrant
        | TokenErrorCode::UnsupportedGrantType
        | TokenErrorCode::InvalidTarget => StatusCode::BAD_REQUEST,
    };
    describe(status, error.code.as_str(), &error.text)
}

/// RFC 6749 §5.2, which RFC 7591 §3.2.2 and RFC 7009 §2.2.1 share.
fn describe(status: StatusCode, code: &str, text: &str) -> Response {
    not_stored(status, json!({"error": code, "error_description": text}))
}

/// RFC 6749 §5.1.
fn not_stored(status: StatusCode, body: Value) -> Response {
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
    (status, headers, Json(body)).into_response()
}
