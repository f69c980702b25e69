//! REST for applications: backends that know their users and name them.
//!
//! The paths and shapes are those that the public Arcade clients speak. An application shows its key with every request,
//! with or without `Bearer` before it, and sees nothing but what is its own: the rest does not exist.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::Obo;
use crate::catalog::MAX_ARGUMENT_BYTES;
use crate::failure::{Code, Failure};
use crate::identity::{Application, IdentityError};
use crate::secret::Secret;
use crate::transport::http::bearer::OBO_USER;

mod auth;
mod connections;
mod definition;
pub mod openapi;
mod page;
pub mod tools;

/// Longest body that is read, in bytes.
const MAX_BODY_BYTES: usize = MAX_ARGUMENT_BYTES + (64 << 10); // the arguments of a call, and what is around them
/// Longest that a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest key that is looked at, in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// The routes, under `/v1`.
pub fn router(obo: Obo) -> Router {
    let own = routes().into_iter().fold(Router::new(), |router, (path, method)| router.route(path, method));
    let own =
        own.layer(middleware::from_fn(whole_body)).layer(middleware::from_fn_with_state(obo.clone(), application));
    let routes = own
        .route("/openapi.json", get(openapi::get))
        .route("/health", get(|| async { axum::Json(Health { healthy: true }) }))
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has another method")
        })
        .layer(middleware::map_response(private))
        .with_state(obo);
    Router::new().nest("/v1", routes)
}

/// What an application with a key may ask for.
fn routes() -> [(&'static str, MethodRouter<Obo>); 11] {
    [
        ("/auth/authorize", post(auth::authorize)),
        ("/auth/status", get(auth::status)),
        ("/auth/confirm_user", post(auth::confirm_user)),
        ("/tools", get(tools::list)),
        ("/tools/authorize", post(tools::authorize)),
        ("/tools/execute", post(tools::execute)),
        ("/tools/{name}", get(tools::get)),
        ("/formatted_tools", get(tools::formatted_list)),
        ("/formatted_tools/{name}", get(tools::formatted_get)),
        ("/admin/user_connections", get(connections::list)),
        ("/admin/user_connections/{id}", delete(connections::delete)),
    ]
}

/// Finds out which application asks, before anything of the request is read.
async fn application(State(obo): State<Obo>, mut request: Request, next: Next) -> Response {
    // Ignoring it would let a caller believe that it acts as somebody: here the user stands in the request itself.
    if request.headers().contains_key(OBO_USER) {
        let text = "Obo-User is for /mcp; here user_id names the user";
        return Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text).into_response();
    }
    let key = key(request.headers());
    // From here on nobody needs it, and what is not there cannot be logged.
    request.headers_mut().remove(header::AUTHORIZATION);
    let found = match key {
        Some(key) => obo.identity().application(&key).await,
        None => Err(IdentityError::Missing),
    };
    match found {
        Ok(application) => {
            request.extensions_mut().insert(application);
            next.run(request).await
        }
        Err(IdentityError::Unavailable { .. }) => {
            let text = "who is calling cannot be checked now; try again in a moment";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", text).into_response()
        }
        Err(_) => {
            let text = "the Authorization header needs the key of an application; there is none, or it is unknown, removed or replaced";
            let mut response = Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", text).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// The one key of a request. Those clients send it bare.
fn key(headers: &HeaderMap) -> Option<Secret> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let text = value.to_str().ok()?;
    let key = match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim_matches(' '),
        Some(_) => return None,
        None => text,
    };
    let well_formed = !key.is_empty() && key.len() <= MAX_KEY_BYTES && key.bytes().all(|b| b.is_ascii_graphic());
    well_formed.then(|| Secret::new(key))
}

/// Reads a body whole, within bounds of size and time.
async fn whole_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, body.into())).await,
        Ok(Err(_)) => {
            let text = format!("the body is larger than {} MiB, or broke off", MAX_BODY_BYTES >> 20);
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text).into_response()
        }
        Err(_) => Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long").into_response(),
    }
}

/// Answers are one application's own.
async fn private(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Reads a JSON body.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        // The reader's text may quote the body, which is the sender's own; it is cut all the same.
        let why: String = error.to_string().chars().take(200).collect();
        Refusal::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body is not what this path takes: {why}"))
    })
}

/// An error, in the shape that those clients raise typed errors from.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: &'static str,
    text: String,
    retry_after_s: Option<u64>,
}

/// Why a request was refused.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
struct ErrorBody {
    /// The HTTP status.
    code: u16,
    /// What kind of error it is.
    error: &'static str,
    /// What is wrong, and what to do next.
    msg: String,
    /// The same.
    // Where the JavaScript client looks for what it shows.
    message: String,
}

/// That obo answers.
#[derive(Serialize, JsonSchema)]
struct Health {
    healthy: bool,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, text: impl Into<String>) -> Self {
        Self { status, error, text: text.into(), retry_after_s: None }
    }

    /// What somebody else's thing and a thing that does not exist both answer.
    fn not_found(text: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", text)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = match failure.code {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Denied => StatusCode::FORBIDDEN,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::ProviderError | Code::ProviderUnreachable | Code::Timeout => StatusCode::BAD_GATEWAY,
            Code::VaultUnavailable | Code::AuditUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        if status.is_server_error() {
            tracing::error!(code = failure.code.as_str(), cause = failure.cause, "a request of an application failed");
        }
        let retry_after_s = failure.retry_after.map(|wait| wait.as_secs().max(1));
        Self { status, error: failure.code.as_str(), text: failure.message, retry_after_s }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body =
            ErrorBody { code: self.status.as_u16(), error: self.error, msg: self.text.clone(), message: self.text };
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(wait) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, wait.into());
        }
        response
    }
}

/// Who an application's requests are recorded as.
fn actor(application: &Application) -> String {
    application.source().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_alone_or_behind_bearer() {
        let shown = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::AUTHORIZATION, line.parse().unwrap());
            }
            key(&headers).map(|key| key.expose().to_owned())
        };
        for good in ["k", "Bearer k", "bearer  k "] {
            assert_eq!(shown(&[good]).as_deref(), Some("k"), "{good}");
        }
        for bad in [&[][..], &[""], &["Bearer "], &["Basic k"], &["k k"], &["k", "k"], &["Bearer k k"]] {
            assert_eq!(shown(bad), None, "{bad:?}");
        }
        assert_eq!(shown(&[&"k".repeat(MAX_KEY_BYTES + 1)]), None);
    }
}
