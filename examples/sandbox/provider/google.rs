//! Google: accounts, Gmail and Calendar.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::ledger::{Mail, TokenState};
use super::oauth::{self, Dialect, Params, Refusal, json_answer};
use super::{Account, ActedAs, PEOPLE, Service, Shared};

macro_rules! g {
    ($name:literal) => {
        concat!("https://www.googleapis.com/auth/", $name)
    };
}

const DIALECT: Dialect = Dialect {
    service: Service::Google,
    scope: "scope",
    bot_scope: None,
    separator: ' ',
    known_scopes: &[
        "openid",
        "email",
        "profile",
        g!("userinfo.email"),
        g!("userinfo.profile"),
        g!("gmail.send"),
        g!("gmail.readonly"),
        g!("gmail.compose"),
        g!("gmail.modify"),
        g!("calendar"),
        g!("calendar.readonly"),
        g!("calendar.events"),
        g!("calendar.events.readonly"),
        g!("calendar.freebusy"),
        g!("drive.metadata.readonly"),
        g!("drive.readonly"),
        g!("drive.file"),
    ],
    response_type_needed: true,
};

const MAIL_SEND: &[&str] = &[g!("gmail.send"), g!("gmail.compose"), g!("gmail.modify")];
const MAIL_READ: &[&str] = &[g!("gmail.readonly"), g!("gmail.modify")];
const EVENTS_READ: &[&str] =
    &[g!("calendar.events"), g!("calendar.events.readonly"), g!("calendar.readonly"), g!("calendar")];
const EVENTS_WRITE: &[&str] = &[g!("calendar.events"), g!("calendar")];
const USERINFO: &[&str] = &["openid", "email", g!("userinfo.email")];

/// Gmail takes base64url with and without padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/o/oauth2/v2/auth", get(authorize).post(decide))
        .route("/token", post(token))
        .route("/revoke", post(revoke))
        .route("/v1/userinfo", get(userinfo))
        .route("/gmail/v1/users/{user}/messages", get(list_messages))
        .route("/gmail/v1/users/{user}/messages/send", post(send_message))
        .route("/gmail/v1/users/{user}/messages/{id}", get(get_message))
        .route("/calendar/v3/calendars/{calendar}/events", get(list_events).post(create_event))
        .route("/calendar/v3/calendars/{calendar}/events/{id}", get(get_event).patch(patch_event).delete(delete_event))
}

async fn authorize(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    oauth::authorize(&shared, &DIALECT, "/o/oauth2/v2/auth", &query.unwrap_or_default())
}

async fn decide(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    oauth::decide(&shared, &body)
}

async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let issued = match oauth::token(&shared, Service::Google, &headers, &body) {
        Ok(issued) => issued,
        Err(refusal) => return refused(refusal),
    };
    let scopes: Vec<&str> = issued.scopes.iter().map(|scope| granted_spelling(scope)).collect();
    let mut answer = json!({"access_token": issued.access, "token_type": "Bearer", "scope": scopes.join(" ")});
    if let Some(seconds) = issued.expires_in_s {
        answer["expires_in"] = seconds.into();
    }
    if let Some(refresh) = issued.refresh {
        answer["refresh_token"] = refresh.into();
    }
    json_answer(200, &answer)
}

/// Google answers the short names in full.
fn granted_spelling(scope: &str) -> &str {
    match scope {
        "email" => g!("userinfo.email"),
        "profile" => g!("userinfo.profile"),
        other => other,
    }
}

/// RFC 6749 §5.2.
fn refused(refusal: Refusal) -> Response {
    let (status, error, description) = match refusal {
        Refusal::Malformed(why) => (400, "invalid_request", why),
        Refusal::Client => (401, "invalid_client", "The client is unknown, or its secret is wrong."),
        Refusal::RedirectUri => (400, "redirect_uri_mismatch", "Not the redirect URI of the request."),
        Refusal::Code => (400, "invalid_grant", "The code is used, expired or unknown."),
        Refusal::CodeVerifier => (400, "invalid_grant", "The code verifier does not fit."),
        Refusal::RefreshToken => (400, "invalid_grant", "The token is expired or revoked."),
        Refusal::GrantType => (400, "unsupported_grant_type", "Not a grant type."),
    };
    json_answer(status, &json!({"error": error, "error_description": description}))
}

/// Either kind of token ends everything its person granted to the client.
async fn revoke(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let params = Params::parse(&body);
    let token = params.as_ref().ok().and_then(|params| params.get("token")).unwrap_or_default();
    let mut ledger = shared.ledger();
    let family = ledger.family_of(token).map(|family| ledger.families[family].clone());
    match family.filter(|family| family.service == Service::Google && family.ended.is_none()) {
        Some(family) => {
            ledger.end_all(family.user, Some(Service::Google));
            json_answer(200, &json!({}))
        }
        None => json_answer(400, &json!({"error": "invalid_token", "error_description": "Not a living token."})),
    }
}

/// Runs an API call as the owner of its bearer token, if that token has one of these scopes.
fn as_owner(
    shared: &Shared,
    headers: &HeaderMap,
    any_of: &[&str],
    call: impl FnOnce(&'static Account) -> Response,
) -> Response {
    let access = match oauth::bearer(shared, Service::Google, headers) {
        Ok(access) => access,
        Err(why) => return unauthenticated(why),
    };
    let allowed = access.scopes.iter().any(|scope| any_of.contains(&scope.as_str()));
    let mut answer = if allowed { call(access.account) } else { scope_missing(any_of) };
    answer.extensions_mut().insert(ActedAs(access.account.email));
    answer
}

fn error(code: u16, status: &str, reason: &str, message: &str) -> Response {
    let errors = json!([{"domain": "global", "reason": reason, "message": message}]);
    json_answer(code, &json!({"error": {"code": code, "message": message, "status": status, "errors": errors}}))
}

fn unauthenticated(why: Option<TokenState>) -> Response {
    let message = match why {
        None => "This request carries no credentials.",
        Some(_) => "This request carries credentials that are not valid.",
    };
    let mut answer = error(401, "UNAUTHENTICATED", "authError", message);
    let challenge = HeaderValue::from_static(r#"Bearer realm="https://accounts.google.com/", error="invalid_token""#);
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    answer
}

fn scope_missing(any_of: &[&str]) -> Response {
    let message = "The token's scopes are not sufficient for this request.";
    let mut answer = json_answer(
        403,
        &json!({"error": {
            "code": 403, "message": message, "status": "PERMISSION_DENIED",
            "errors": [{"domain": "global", "reason": "insufficientPermissions", "message": message}],
            "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                         "domain": "googleapis.com"}],
        }}),
    );
    let challenge = format!(r#"Bearer error="insufficient_scope", scope="{}""#, any_of.join(" "));
    if let Ok(challenge) = HeaderValue::from_str(&challenge) {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    answer
}

fn not_found() -> Response {
    error(404, "NOT_FOUND", "notFound", "Requested entity was not found.")
}

fn invalid(message: &str) -> Response {
    error(400, "INVALID_ARGUMENT", "invalidArgument", message)
}

async fn userinfo(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    as_owner(&shared, &headers, USERINFO, |account| {
        let info =
            json!({"sub": account.google_sub, "email": account.email, "email_verified": true, "hd": "example.com"});
        json_answer(200, &info)
    })
}

fn is_self(user: &str, account: &Account) -> bool {
    user == "me" || user == account.email
}

async fn send_message(
    State(shared): State<Arc<Shared>>,
    Path(user): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    as_owner(&shared, &headers, MAIL_SEND, |account| {
        if !is_self(&user, account) {
            return not_found();
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let raw = body["raw"].as_str().and_then(|raw| BASE64URL.decode(raw).ok());
        let Some(raw) = raw else { return invalid("'raw' is not a message in base64url.") };
        let recipients: Vec<String> = mail_headers(&raw)
            .into_iter()
            .filter(|(name, _)| matches!(name.to_ascii_lowercase().as_str(), "to" | "cc" | "bcc"))
            .map(|(_, value)| value)
            .collect();
        if recipients.is_empty() {
            return invalid("Recipient address required");
        }

        let mut ledger = shared.ledger();
        let number = ledger.mail.len();
        let id = format!("{number:016x}");
        let thread = body["threadId"].as_str().map_or_else(|| id.clone(), str::to_owned);
        let received = PEOPLE.iter().filter(|person| recipients.iter().any(|to| to.contains(person.email)));
        for (at, person) in received.enumerate() {
            let id = format!("{:016x}", number + 1 + at);
            ledger.mail.push(Mail { owner: person.email, thread: id.clone(), id, label: "INBOX", raw: raw.clone() });
        }
        let sent = Mail { owner: account.email, id: id.clone(), thread: thread.clone(), label: "SENT", raw };
        ledger.mail.push(sent);
        json_answer(200, &json!({"id": id, "threadId": thread, "labelIds": ["SENT"]}))
    })
}

async fn list_messages(
    State(shared): State<Arc<Shared>>,
    Path(user): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    as_owner(&shared, &headers, MAIL_READ, |account| {
        if !is_self(&user, account) {
            return not_found();
        }
        let query = query.unwrap_or_default();
        let Ok(params) = Params::parse(query.as_bytes()) else { return invalid("A parameter is repeated.") };
        let words = params.get("q").unwrap_or_default().to_lowercase();
        let most: usize = params.get("maxResults").and_then(|n| n.parse().ok()).unwrap_or(100);
        let skip: usize = params.get("pageToken").and_then(|n| n.parse().ok()).unwrap_or(0);
        let ledger = shared.ledger();
        let fits = |mail: &&Mail| {
            let text = String::from_utf8_lossy(&mail.raw).to_lowercase();
            mail.owner == account.email && words.split_whitespace().all(|word| text.contains(word))
        };
        let found: Vec<&Mail> = ledger.mail.iter().rev().filter(fits).collect();
        let page: Vec<Value> =
            found.iter().skip(skip).take(most).map(|mail| json!({"id": mail.id, "threadId": mail.thread})).collect();
        let mut answer = json!({"resultSizeEstimate": found.len()});
        // Like the real one, an empty list is left out.
        if !page.is_empty() {
            answer["messages"] = page.into();
        }
        if found.len() > skip + most {
            answer["nextPageToken"] = (skip + most).to_string().into();
        }
        json_answer(200, &answer)
    })
}

async fn get_message(
    State(shared): State<Arc<Shared>>,
    Path((user, id)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    as_owner(&shared, &headers, MAIL_READ, |account| {
        let ledger = shared.ledger();
        let found = ledger.mail.iter().find(|mail| mail.owner == account.email && mail.id == id);
        let Some(mail) = found.filter(|_| is_self(&user, account)) else { return not_found() };
        let query = query.unwrap_or_default();
        let params: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let format = params.iter().find(|(name, _)| name == "format").map_or("full", |(_, value)| value.as_str());
        let wanted: Vec<&str> =
            params.iter().filter(|(name, _)| name == "metadataHeaders").map(|(_, value)| value.as_str()).collect();

        let body = mail_body(&mail.raw);
        let snippet: String = body.chars().take(80).collect();
        let mut answer = json!({"id": mail.id, "threadId": mail.thread, "labelIds": [mail.label], "snippet": snippet, "internalDate": "0"});
        if format == "raw" {
            answer["raw"] = BASE64URL.encode(&mail.raw).into();
        } else if format != "minimal" {
            let keep = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w.eq_ignore_ascii_case(name));
            let headers: Vec<Value> = mail_headers(&mail.raw)
                .into_iter()
                .filter(|(name, _)| keep(name))
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            answer["payload"] = json!({"mimeType": "text/plain", "headers": headers});
            if format == "full" {
                answer["payload"]["body"] = json!({"size": body.len(), "data": BASE64URL.encode(&body)});
            }
        }
        json_answer(200, &answer)
    })
}

/// The header fields of a message, unfolded (RFC 5322 §2.2.3).
fn mail_headers(raw: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(raw).replace("\r\n", "\n");
    let head = text.split("\n\n").next().unwrap_or_default();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in head.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    fields
}

fn mail_body(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw).replace("\r\n", "\n");
    text.split_once("\n\n").map_or_else(String::new, |(_, body)| body.trim_end().to_owned())
}

fn own_calendar(calendar: &str, account: &Account) -> bool {
    calendar == "primary" || calendar == account.email
}

async fn create_event(
    State(shared): State<Arc<Shared>>,
    Path(calendar): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    as_owner(&shared, &headers, EVENTS_WRITE, |account| {
        if !own_calendar(&calendar, account) {
            return not_found();
        }
        let Ok(mut event) = serde_json::from_slice::<Map<String, Value>>(&body) else { return invalid("Parse Error") };
        if !event.contains_key("start") || !event.contains_key("end") {
            return error(400, "INVALID_ARGUMENT", "required", "Missing start or end time.");
        }
        let mut ledger = shared.ledger();
        let id = match event.get("id").and_then(Value::as_str) {
            Some(id) => id.to_owned(),
            None => format!("ev{:08}", ledger.events.len() + 1),
        };
        if ledger.events.iter().any(|(owner, event)| owner == account.email && event["id"] == id.as_str()) {
            return error(409, "ALREADY_EXISTS", "duplicate", "The requested identifier already exists.");
        }
        event.insert("htmlLink".into(), format!("{}/calendar/event?eid={id}", shared.origin).into());
        event.insert("id".into(), id.into());
        event.insert("status".into(), "confirmed".into());
        event.insert("organizer".into(), json!({"email": account.email, "self": true}));
        let event = Value::Object(event);
        ledger.events.push((account.email.to_owned(), event.clone()));
        json_answer(200, &event)
    })
}

async fn list_events(
    State(shared): State<Arc<Shared>>,
    Path(calendar): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    as_owner(&shared, &headers, EVENTS_READ, |account| {
        if !own_calendar(&calendar, account) {
            return not_found();
        }
        let query = query.unwrap_or_default();
        let Ok(params) = Params::parse(query.as_bytes()) else { return invalid("A parameter is repeated.") };
        let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
        let (from, to) = (params.get("timeMin").and_then(time), params.get("timeMax").and_then(time));
        let words = params.get("q").unwrap_or_default().to_lowercase();
        let fits = |event: &Value| {
            let edge = |name: &str| event[name]["dateTime"].as_str().and_then(time);
            let after_start = from.is_none_or(|from| edge("end").is_none_or(|end| end > from));
            let before_end = to.is_none_or(|to| edge("start").is_none_or(|start| start < to));
            after_start && before_end && event.to_string().to_lowercase().contains(&words)
        };
        let ledger = shared.ledger();
        let own = ledger.events.iter().filter(|(owner, event)| owner == account.email && fits(event));
        let items: Vec<Value> = own.map(|(_, event)| event.clone()).collect();
        json_answer(
            200,
            &json!({"kind": "calendar#events", "summary": account.email, "timeZone": "UTC", "items": items}),
        )
    })
}

/// Runs `change` on one event of the caller's.
fn with_event(
    shared: &Shared,
    headers: &HeaderMap,
    any_of: &[&str],
    (calendar, id): &(String, String),
    change: impl FnOnce(&mut Vec<(String, Value)>, usize) -> Response,
) -> Response {
    as_owner(shared, headers, any_of, |account| {
        let mut ledger = shared.ledger();
        let at = ledger.events.iter().position(|(owner, event)| owner == account.email && event["id"] == id.as_str());
        match at.filter(|_| own_calendar(calendar, account)) {
            Some(at) => change(&mut ledger.events, at),
            None => not_found(),
        }
    })
}

async fn get_event(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    with_event(&shared, &headers, EVENTS_READ, &path, |events, at| json_answer(200, &events[at].1))
}

async fn patch_event(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    with_event(&shared, &headers, EVENTS_WRITE, &path, |events, at| {
        let Ok(changes) = serde_json::from_slice::<Map<String, Value>>(&body) else { return invalid("Parse Error") };
        for (name, value) in changes {
            events[at].1[name] = value;
        }
        json_answer(200, &events[at].1)
    })
}

async fn delete_event(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    with_event(&shared, &headers, EVENTS_WRITE, &path, |events, at| {
        events.remove(at);
        StatusCode::NO_CONTENT.into_response()
    })
}
