//! A provider whose API follows a script, and is strict about it: each request must be the next one, to the letter, with
//! the token of somebody it knows. Its OAuth gives everybody who comes back with a code what was asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use http::{HeaderMap, Request, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// The people who have accounts. Their codes are `code-NAME`, their tokens `token-of-NAME`.
pub const PEOPLE: [&str; 2] = ["alice", "bob"];

/// What must be asked, and what is answered.
#[derive(Clone)]
pub struct Exchange {
    /// `METHOD /path?query`, the query decoded and in the order of its names.
    request: String,
    body: Value,
    status: u16,
    headers: Vec<(&'static str, String)>,
    answer: Vec<u8>,
}

impl Exchange {
    /// A request without a body.
    pub fn of(request: &str) -> Self {
        let (request, headers) = (request.to_owned(), Vec::new());
        Self { request, body: Value::Null, status: 200, headers, answer: Vec::new() }
    }

    /// With this body: JSON, or a text. Of a mail (`raw`), what its headers and its text say.
    pub fn with(mut self, body: Value) -> Self {
        self.body = body;
        self
    }

    /// Answered with 200 and this JSON.
    pub fn answers(self, body: Value) -> Self {
        self.says(200, &[], body.to_string())
    }

    /// Answered with this.
    pub fn says(mut self, status: u16, headers: &[(&'static str, &str)], body: impl Into<Vec<u8>>) -> Self {
        self.status = status;
        self.headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.answer = body.into();
        self
    }
}

/// The provider. It ends when it is dropped.
pub struct Scripted {
    pub origin: String,
    shared: Arc<Shared>,
    server: AbortHandle,
}

struct Shared {
    token_path: String,
    account_path: String,
    account: fn(&str) -> Value,
    script: Mutex<VecDeque<Exchange>>,
    /// Whose token each API request had, and what was wrong with it.
    asked: Mutex<Vec<(String, Option<String>)>>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Scripted {
    /// With OAuth at these paths; `account` is what it says of somebody's account.
    pub async fn start(token_path: &str, account_path: &str, account: fn(&str) -> Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            token_path: token_path.to_owned(),
            account_path: account_path.to_owned(),
            account,
            script: Mutex::default(),
            asked: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }).abort_handle();
        Self { origin, shared, server }
    }

    /// What comes next. Whatever was left of the script is forgotten.
    pub fn expect(&self, script: &[Exchange]) {
        *self.shared.script.lock().unwrap() = script.iter().cloned().collect();
        self.shared.asked.lock().unwrap().clear();
    }

    /// Asserts that everything was asked for as the script says, by this person.
    pub fn assert_asked_by(&self, person: &str, what: &str) {
        let asked = self.shared.asked.lock().unwrap();
        for (whose, wrong) in asked.iter() {
            assert_eq!(wrong, &None, "{what}");
            assert_eq!(whose, person, "{what}");
        }
        let left: Vec<_> = self.shared.script.lock().unwrap().iter().map(|one| one.request.clone()).collect();
        assert_eq!(left, [""; 0], "{what}: not asked for");
        assert!(!asked.is_empty(), "{what}: nothing was asked for");
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let person = bearer(&parts.headers);
    if parts.uri.path() == shared.token_path {
        return reply(200, &[], tokens(&parts.headers, &body).to_string().into_bytes());
    }
    // Introspection says in a form whose token it asks about.
    let about = || {
        let mut form = url::form_urlencoded::parse(&body);
        known(form.find(|(name, _)| name == "token")?.1.as_ref())
    };
    let at_account = parts.uri.path() == shared.account_path;
    let Some(person) = person.or_else(|| if at_account { about() } else { None }) else {
        return reply(401, &[], Vec::new());
    };
    if at_account {
        return reply(200, &[], (shared.account)(&person).to_string().into_bytes());
    }
    let query: Vec<String> = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mark = if query.is_empty() { "" } else { "?" };
    let line = format!("{} {}{mark}{}", parts.method, parts.uri.path(), query.join("&"));
    let said = said(&parts.headers, &body);
    let next = shared.script.lock().unwrap().pop_front();
    let wrong = match &next {
        Some(next) if next.request == line && next.body == said => None,
        Some(next) => Some(format!("asked {line} {said}\n  for {} {}", next.request, next.body)),
        None => Some(format!("asked {line} {said} for nothing")),
    };
    let failed = wrong.is_some();
    shared.asked.lock().unwrap().push((person, wrong));
    match next {
        Some(next) if !failed => reply(next.status, &next.headers, next.answer),
        _ => reply(400, &[], b"{}".to_vec()),
    }
}

/// Whose token it is.
fn bearer(headers: &HeaderMap) -> Option<String> {
    known(headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?)
}

fn known(token: &str) -> Option<String> {
    let person = token.strip_prefix("token-of-")?;
    PEOPLE.contains(&person).then(|| person.to_owned())
}

/// A token for whoever's code it is, in the shape of RFC 6749 and in Slack's.
fn tokens(headers: &HeaderMap, body: &[u8]) -> Value {
    let json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let code = if json {
        serde_json::from_slice::<Value>(body).unwrap()["code"].as_str().unwrap_or_default().to_owned()
    } else {
        let mut form = url::form_urlencoded::parse(body);
        form.find(|(name, _)| name == "code").map(|(_, code)| code.into_owned()).unwrap_or_default()
    };
    match code.strip_prefix("code-") {
        Some(person) if PEOPLE.contains(&person) => {
            let token = format!("token-of-{person}");
            json!({
                "access_token": token, "token_type": "bearer",
                "ok": true, "authed_user": {"access_token": token, "token_type": "user"},
            })
        }
        _ => json!({"error": "invalid_grant"}),
    }
}

/// A body as the script writes it.
fn said(headers: &HeaderMap, body: &[u8]) -> Value {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned()).unwrap_or_default();
    if body.is_empty() {
        return Value::Null;
    }
    if !kind.starts_with("application/json") {
        return Value::from(std::str::from_utf8(body).unwrap());
    }
    let mut said: Value = serde_json::from_slice(body).unwrap();
    let message = if said.get("message").is_some_and(|message| message.get("raw").is_some()) {
        &mut said["message"]
    } else {
        &mut said
    };
    if let Some(raw) = message.get("raw").and_then(Value::as_str) {
        message["raw"] = mail(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(raw).unwrap());
    }
    said
}

/// What a mail says, without what is different each time.
fn mail(raw: &[u8]) -> Value {
    let mail = mail_parser::MessageParser::default().parse(raw).unwrap();
    let header = |name: &str| {
        let all: Vec<&str> = mail.header_raw(name).into_iter().map(str::trim).collect();
        all.first().map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    json!({
        "to": header("To"), "cc": header("Cc"), "subject": mail.subject(), "in_reply_to": header("In-Reply-To"),
        "references": header("References"), "text": mail.body_text(0).map(|text| text.trim().to_owned()),
    })
}

fn reply(status: u16, headers: &[(&'static str, String)], body: Vec<u8>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(Body::from(body)).unwrap()
}
