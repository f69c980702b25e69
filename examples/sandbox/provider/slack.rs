//! Slack: one team, its channels, and answers that are 200 even when they are errors.

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::ledger::{Access, Ended, SlackMessage, TokenState};
use super::oauth::{self, Dialect, Refusal, json_answer};
use super::{ActedAs, Service, Shared};

const TEAM_ID: &str = "T0SANDBOX";

const DIALECT: Dialect = Dialect {
    service: Service::Slack,
    scope: "user_scope",
    bot_scope: Some("scope"),
    separator: ',',
    known_scopes: &[
        "chat:write",
        "channels:read",
        "channels:history",
        "groups:read",
        "groups:history",
        "im:read",
        "im:write",
        "mpim:read",
        "reactions:write",
        "search:read",
        "users:read",
        "users:read.email",
    ],
    response_type_needed: false,
};

const CHANNELS: [(&str, &str, bool); 3] =
    [("C0GENERAL1", "general", false), ("C0RANDOM01", "random", false), ("C0LEADERS1", "leadership", true)];

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/oauth/v2/authorize", get(authorize).post(decide))
        .route("/api/oauth.v2.access", post(access))
        .route("/api/auth.test", get(auth_test).post(auth_test))
        .route("/api/auth.revoke", get(auth_revoke).post(auth_revoke))
        .route("/api/chat.postMessage", post(post_message))
        .route("/api/conversations.list", get(list_conversations).post(list_conversations))
}

async fn authorize(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    oauth::authorize(&shared, &DIALECT, "/oauth/v2/authorize", &query.unwrap_or_default())
}

async fn decide(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    oauth::decide(&shared, &body)
}

async fn access(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let issued = match oauth::token(&shared, Service::Slack, &headers, &body) {
        Ok(issued) => issued,
        Err(refusal) => {
            return refused(match refusal {
                Refusal::Malformed(_) => "invalid_arguments",
                Refusal::Client => "bad_client_secret",
                Refusal::RedirectUri => "bad_redirect_uri",
                Refusal::Code => "invalid_code",
                Refusal::CodeVerifier => "invalid_code_verifier",
                Refusal::RefreshToken => "invalid_refresh_token",
                Refusal::GrantType => "invalid_grant_type",
            });
        }
    };
    let scope = issued.scopes.into_iter().collect::<Vec<_>>().join(",");
    let mut user = json!({"scope": scope, "access_token": issued.access, "token_type": "user"});
    if let (Some(refresh), Some(seconds)) = (issued.refresh, issued.expires_in_s) {
        user["refresh_token"] = refresh.into();
        user["expires_in"] = seconds.into();
    }
    let mut answer = json!({"ok": true, "app_id": "A0SANDBOX", "team": {"id": TEAM_ID, "name": "Sandbox"}});
    if issued.by_code {
        // The person's token stands in `authed_user`; at the top level only a bot's would.
        user["id"] = issued.account.slack_id.into();
        answer["authed_user"] = user;
        if let Some((token, scopes)) = issued.bot {
            answer["access_token"] = token.into();
            answer["token_type"] = "bot".into();
            answer["scope"] = scopes.into_iter().collect::<Vec<_>>().join(",").into();
        }
    } else if let (Value::Object(answer), Value::Object(user)) = (&mut answer, user) {
        answer.extend(user);
    }
    json_answer(200, &answer)
}

fn refused(error: &str) -> Response {
    json_answer(200, &json!({"ok": false, "error": error}))
}

/// Runs a method as the owner of its bearer token, if that token has the scope.
fn as_owner(
    shared: &Shared,
    headers: &HeaderMap,
    scope: Option<&str>,
    method: impl FnOnce(&Access) -> Response,
) -> Response {
    let access = match oauth::bearer(shared, Service::Slack, headers) {
        Ok(access) => access,
        Err(None) => return refused("not_authed"),
        Err(Some(TokenState::Unknown)) => return refused("invalid_auth"),
        Err(Some(TokenState::Revoked)) => return refused("token_revoked"),
        Err(Some(TokenState::Expired)) => return refused("token_expired"),
    };
    let mut answer = match scope {
        Some(scope) if !access.scopes.contains(scope) => missing_scope(scope, &access),
        _ => method(&access),
    };
    if let Ok(provided) = HeaderValue::from_str(&provided(&access)) {
        answer.headers_mut().insert("x-oauth-scopes", provided);
    }
    answer.extensions_mut().insert(ActedAs(if access.bot { "bot" } else { access.account.email }));
    answer
}

fn provided(access: &Access) -> String {
    access.scopes.iter().cloned().collect::<Vec<_>>().join(",")
}

fn missing_scope(needed: &str, access: &Access) -> Response {
    json_answer(200, &json!({"ok": false, "error": "missing_scope", "needed": needed, "provided": provided(access)}))
}

async fn auth_test(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    as_owner(&shared, &headers, None, |access| {
        let account = access.account;
        json_answer(
            200,
            &json!({"ok": true, "url": "https://sandbox.slack.com/", "team": "Sandbox", "team_id": TEAM_ID,
                    "user": account.name, "user_id": account.slack_id, "is_enterprise_install": false}),
        )
    })
}

async fn auth_revoke(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    as_owner(&shared, &headers, None, |access| {
        shared.ledger().end(access.family, Ended::Revoked);
        json_answer(200, &json!({"ok": true, "revoked": true}))
    })
}

/// The arguments of a method: JSON, a form, or the query.
fn arguments(headers: &HeaderMap, query: Option<String>, body: &[u8]) -> Value {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/json") {
        return serde_json::from_slice(body).unwrap_or_default();
    }
    let query = query.unwrap_or_default();
    let pairs = url::form_urlencoded::parse(query.as_bytes()).chain(url::form_urlencoded::parse(body));
    pairs
        .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

async fn post_message(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    as_owner(&shared, &headers, Some("chat:write"), |access| {
        let arguments = arguments(&headers, None, &body);
        let asked = arguments["channel"].as_str().unwrap_or_default();
        let found = CHANNELS.iter().find(|(id, name, _)| asked == *id || asked.strip_prefix('#') == Some(name));
        let Some((channel, ..)) = found else { return refused("channel_not_found") };
        let text = arguments["text"].as_str().unwrap_or_default();
        if text.is_empty() {
            return refused("no_text");
        }
        let mut ledger = shared.ledger();
        let ts = format!("{}.{:06}", shared.now(), ledger.slack_messages.len() + 1);
        ledger.slack_messages.push(SlackMessage {
            channel: (*channel).to_owned(),
            user: if access.bot { "bot" } else { access.account.email },
            text: text.to_owned(),
            ts: ts.clone(),
        });
        let message = json!({"type": "message", "text": text, "user": access.account.slack_id, "ts": ts});
        json_answer(200, &json!({"ok": true, "channel": channel, "ts": ts, "message": message}))
    })
}

async fn list_conversations(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let arguments = arguments(&headers, query, &body);
    let types = arguments["types"].as_str().unwrap_or("public_channel");
    let private = types.contains("private_channel");
    as_owner(&shared, &headers, Some("channels:read"), |access| {
        if private && !access.scopes.contains("groups:read") {
            return missing_scope("groups:read", access);
        }
        let number = |value: &Value| match value {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64().and_then(|n| usize::try_from(n).ok()),
        };
        let limit: usize = number(&arguments["limit"]).unwrap_or(100).max(1);
        let skip: usize = number(&arguments["cursor"]).unwrap_or(0);
        let visible: Vec<_> = CHANNELS.iter().filter(|(.., is_private)| private || !is_private).collect();
        let page: Vec<Value> = visible
            .iter()
            .skip(skip)
            .take(limit)
            .map(|(id, name, is_private)| {
                json!({"id": id, "name": name, "is_channel": true, "is_private": is_private, "is_member": true,
                       "is_archived": false, "num_members": 2, "topic": {"value": ""}})
            })
            .collect();
        let next = if visible.len() > skip + limit { (skip + limit).to_string() } else { String::new() };
        json_answer(200, &json!({"ok": true, "channels": page, "response_metadata": {"next_cursor": next}}))
    })
}
