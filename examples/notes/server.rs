//! The server: an authorization page, a token endpoint (RFC 6749, PKCE by RFC 7636), and an API that keeps notes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Form, Query, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use url::form_urlencoded::Serializer;

/// The client that is registered.
pub(crate) const CLIENT_ID: &str = "obo-at-notes";
/// Its secret. Everybody may know it: it opens nothing but this toy.
pub(crate) const CLIENT_SECRET: &str = "notes-secret";

/// How long an access token is good, in seconds. Nobody counts: a refresh is what is to be seen.
const EXPIRES_IN_S: u64 = 300;

type Parameters = HashMap<String, String>;

#[derive(Default)]
struct Kept {
    /// Who a code is for, and the challenge that its verifier must meet.
    codes: HashMap<String, (String, String)>,
    /// Who a refresh token is for. Each is good once.
    refresh_tokens: HashMap<String, String>,
    access_tokens: HashMap<String, String>,
    /// Whose it is, and the text.
    notes: Vec<(String, String)>,
}

struct Notes {
    redirect_uri: String,
    kept: Mutex<Kept>,
}

impl Notes {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes, for a client with this redirect URI.
pub(crate) fn router(redirect_uri: String) -> Router {
    Router::new()
        .route("/oauth/authorize", get(authorize))
        .route("/oauth/approve", get(approve))
        .route("/oauth/token", post(token))
        .route("/api/me", get(me))
        .route("/api/notes", get(list).post(create))
        .with_state(Arc::new(Notes { redirect_uri, kept: Mutex::default() }))
}

/// Asks who is there. A real provider has its users sign in here, and names what is asked for.
async fn authorize(State(notes): State<Arc<Notes>>, Query(asked): Query<Parameters>) -> Response {
    let asked_for = |name: &str| asked.get(name).map_or("", String::as_str);
    if asked_for("client_id") != CLIENT_ID || asked_for("redirect_uri") != notes.redirect_uri {
        return (StatusCode::BAD_REQUEST, "unknown client or redirect_uri").into_response();
    }
    if asked_for("response_type") != "code" || asked_for("code_challenge_method") != "S256" {
        return (StatusCode::BAD_REQUEST, "this server wants a code with PKCE").into_response();
    }
    let link = |user: &str| {
        let mut query = Serializer::new(String::new());
        for name in ["state", "code_challenge"] {
            query.append_pair(name, asked_for(name));
        }
        let query = query.append_pair("user", user).finish();
        format!("<p><a href=\"/oauth/approve?{query}\">Go on as {user}</a></p>")
    };
    Html(format!("<h1>Notes</h1><p>obo asks to act for you.</p>{}{}", link("ana"), link("bob"))).into_response()
}

async fn approve(State(notes): State<Arc<Notes>>, Query(said): Query<Parameters>) -> Redirect {
    let said_of = |name: &str| said.get(name).cloned().unwrap_or_default();
    let code = fresh();
    notes.kept().codes.insert(code.clone(), (said_of("user"), said_of("code_challenge")));
    let mut query = Serializer::new(String::new());
    let query = query.append_pair("code", &code).append_pair("state", &said_of("state")).finish();
    Redirect::to(&format!("{}?{query}", notes.redirect_uri))
}

async fn token(State(notes): State<Arc<Notes>>, Form(sent): Form<Parameters>) -> Response {
    let given = |name: &str| sent.get(name).map_or("", String::as_str);
    let refuse = |status: StatusCode, error: &str| (status, Json(json!({ "error": error }))).into_response();
    if given("client_id") != CLIENT_ID || given("client_secret") != CLIENT_SECRET {
        return refuse(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    let mut kept = notes.kept();
    let user = match given("grant_type") {
        "authorization_code" => kept.codes.remove(given("code")).and_then(|(user, challenge)| {
            let met = URL_SAFE_NO_PAD.encode(Sha256::digest(given("code_verifier"))) == challenge;
            (met && given("redirect_uri") == notes.redirect_uri).then_some(user)
        }),
        "refresh_token" => kept.refresh_tokens.remove(given("refresh_token")),
        _ => return refuse(StatusCode::BAD_REQUEST, "unsupported_grant_type"),
    };
    let Some(user) = user else { return refuse(StatusCode::BAD_REQUEST, "invalid_grant") };
    let (access, refresh) = (fresh(), fresh());
    kept.access_tokens.insert(access.clone(), user.clone());
    kept.refresh_tokens.insert(refresh.clone(), user);
    Json(json!({
        "access_token": access, "token_type": "Bearer", "expires_in": EXPIRES_IN_S,
        "refresh_token": refresh, "scope": "notes.read notes.write",
    }))
    .into_response()
}

/// What the API says went wrong.
struct Failed(StatusCode, &'static str);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "problem": self.1 }))).into_response()
    }
}

/// Whose token a request has.
fn user(notes: &Notes, headers: &HeaderMap) -> Result<String, Failed> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let user = bearer.and_then(|token| notes.kept().access_tokens.get(token).cloned());
    user.ok_or(Failed(StatusCode::UNAUTHORIZED, "the token is not valid"))
}

async fn me(State(notes): State<Arc<Notes>>, headers: HeaderMap) -> Result<Json<Value>, Failed> {
    let user = user(&notes, &headers)?;
    Ok(Json(json!({ "id": format!("user-{user}"), "email": format!("{user}@notes.example.com") })))
}

async fn list(State(notes): State<Arc<Notes>>, headers: HeaderMap) -> Result<Json<Value>, Failed> {
    let user = user(&notes, &headers)?;
    let mine = |(id, (whose, text)): (usize, &(String, String))| {
        (*whose == user).then(|| json!({ "id": id + 1, "text": text, "internal": "of no use to a model" }))
    };
    Ok(Json(json!({ "notes": notes.kept().notes.iter().enumerate().filter_map(mine).collect::<Vec<_>>() })))
}

async fn create(
    State(notes): State<Arc<Notes>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<Response, Failed> {
    let user = user(&notes, &headers)?;
    let Some(text) = body["text"].as_str().filter(|text| !text.is_empty()) else {
        return Err(Failed(StatusCode::UNPROCESSABLE_ENTITY, "a note needs a text"));
    };
    let mut kept = notes.kept();
    kept.notes.push((user, text.to_owned()));
    Ok((StatusCode::CREATED, Json(json!({ "note": { "id": kept.notes.len(), "text": text } }))).into_response())
}

/// A value that nobody can guess.
fn fresh() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
