//! A provider that writes down every request as it came, and answers as it is told: with the bearer in the answer, with
//! a redirect, or politely.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::provider::Encoding;
use crate::support::mcp::link_of;
use crate::support::{Browser, TestObo, browser};

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Asked {
    /// Everything of it, for searches.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}?{}\n", self.path, self.query).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Where in an answer the bearer is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Value,
    Key,
    Header,
}

/// What paths under `/api/` answer.
#[derive(Debug, Clone)]
pub(super) enum Manner {
    Polite,
    Echo { status: u16, encoding: Encoding, place: Place },
}

/// The provider. It ends with the test's runtime.
pub(super) struct Mirror {
    pub(super) origin: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    manner: Mutex<Option<Manner>>,
    /// Paths that are answered with a 307, and where to.
    redirects: Mutex<Vec<(String, String)>>,
    /// How the account's address repeats the bearer.
    account: Mutex<Option<Encoding>>,
    tokens: Mutex<Vec<String>>,
}

impl Mirror {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let router = Router::new().fallback(move |request: Request<Body>| answer(Arc::clone(&state), request));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { origin, shared }
    }

    /// Every request so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// The requests to the API.
    pub(super) fn api(&self) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path.starts_with("/api/")).collect()
    }

    /// Every token that was handed out.
    pub(super) fn tokens(&self) -> Vec<String> {
        self.shared.tokens.lock().unwrap().clone()
    }

    pub(super) fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = Some(manner);
    }

    pub(super) fn redirect(&self, path: &str, to: &str) {
        self.shared.redirects.lock().unwrap().push((path.to_owned(), to.to_owned()));
    }

    pub(super) fn stop_redirecting(&self) {
        self.shared.redirects.lock().unwrap().clear();
    }

    /// The account that is connected is called as the bearer of its own request, in this encoding.
    pub(super) fn name_the_account_after_its_token(&self, encoding: Encoding) {
        *self.shared.account.lock().unwrap() = Some(encoding);
    }

    /// Its manifests: what each tool's answer is, the model gets whole.
    pub(super) fn manifests(&self) -> Vec<(String, String)> {
        let origin = &self.origin;
        let provider = format!(
            r#"
id = "mirror"
name = "Mirror"
[servers]
api = "{origin}/api"
[oauth]
authorize_url = "{origin}/authorize"
token_url = "{origin}/token"
base_scopes = []
[account]
url = "{origin}/userinfo"
key = ".sub"
label = ".email"
[errors]
message = ".error.message"
"#
        );
        let tool = |name: &str, effect: &str, method: &str, body: &str| {
            format!(
                r#"
name = "Mirror.{name}"
title = "{name}"
description = "Of a test."
scopes = ["all"]
effect = "{effect}"
[input]
type = "object"
[input.properties.segment]
type = "string"
default = "x"
description = "A segment of the path."
[input.properties.words]
type = "string"
default = "y"
description = "A parameter of the query, and of the body."
[input.properties.prefer]
type = "string"
default = "z"
description = "A header."
[request]
method = "{method}"
url = "{{api}}/things/{{segment}}/end"
query.q = ".words"
headers.prefer = ".prefer"
{body}
"#
            )
        };
        vec![
            ("mirror/provider.toml".to_owned(), provider),
            ("mirror/read.toml".to_owned(), tool("Read", "read", "GET", "")),
            ("mirror/write.toml".to_owned(), tool("Write", "write", "POST", "body = '{words}'")),
        ]
    }

    /// An obo with this provider, which holds no call for a consent.
    pub(super) async fn obo(&self) -> TestObo {
        let port = self.origin.rsplit(':').next().unwrap();
        let mut builder = TestObo::builder().config(&format!(
            "[providers.mirror]\nclient_id = \"obo\"\nclient_secret = \"a secret of the mirror's client\"\n\
             [network]\nallow_private = [\"127.0.0.1:{port}\"]\n\
             [server]\nconsent_wait = \"0s\"\ncalls_per_minute = 0"
        ));
        for (file, manifest) in self.manifests() {
            builder = builder.tool(&file, &manifest);
        }
        builder.start().await
    }

    /// Asks for the provider and consents, with a user's token of obo.
    pub(super) async fn connect(&self, obo: &TestObo, user: &str) -> browser::Page {
        let asked = obo.client(user).await.call("Mirror_Read", json!({})).await;
        let link = link_of(&asked).unwrap_or_else(|| panic!("no link in {asked}"));
        let mut browser = Browser::new();
        let forwarded = obo.press(&mut browser, &link, user).await;
        assert!(forwarded.starts_with(&format!("{}/authorize?", self.origin)), "{forwarded}");
        let url = url::Url::parse(&forwarded).unwrap();
        let state = url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        browser.get(&format!("{}/oauth/callback/mirror?code=c0de&state={state}", obo.base)).await
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let asked = Asked {
        path: path.clone(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers.clone(),
        body: to_bytes(body, 1 << 20).await.unwrap().to_vec(),
    };
    shared.asked.lock().unwrap().push(asked);
    let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bearer = bearer.strip_prefix("Bearer ").unwrap_or(bearer).to_owned();

    let redirect = shared.redirects.lock().unwrap().iter().find(|(at, _)| path.starts_with(at)).cloned();
    if let Some((_, to)) = redirect {
        let mut answer = json_text(307, "{}".to_owned());
        answer.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&to).unwrap());
        return answer;
    }
    match path.as_str() {
        "/token" => {
            // With characters that the encodings of URLs, JSON and base64 change.
            let token = format!("mi/{}+~=", obo::secret::random_text::<24>());
            shared.tokens.lock().unwrap().push(token.clone());
            json_of(200, &json!({ "access_token": token, "token_type": "Bearer", "scope": "all" }))
        }
        "/userinfo" => {
            let label = match *shared.account.lock().unwrap() {
                None => "carol@example.com".to_owned(),
                Some(encoding) => encoding.encode(&bearer),
            };
            json_of(200, &json!({ "sub": "1", "email": label }))
        }
        _ => match shared.manner.lock().unwrap().clone().unwrap_or(Manner::Polite) {
            Manner::Polite => json_of(200, &json!({ "answer": "polite" })),
            Manner::Echo { status, encoding, place } => echo(status, encoding, place, &bearer),
        },
    }
}

fn echo(status: u16, encoding: Encoding, place: Place, bearer: &str) -> Response {
    let echo = encoding.encode(bearer);
    // Written by hand: a serialiser would escape the backslashes of `JsonEscapes` once more.
    match place {
        Place::Value => json_text(status, format!(r#"{{"error":{{"message":"bad token {echo}"}}}}"#)),
        Place::Key => json_text(status, format!(r#"{{"error":{{"{echo}":1,"message":"no"}}}}"#)),
        Place::Header => {
            let mut answer = json_text(status, r#"{"error":{"message":"no"}}"#.to_owned());
            answer.headers_mut().insert("x-request", HeaderValue::from_str(&echo).unwrap());
            answer
        }
    }
}

fn json_of(status: u16, value: &Value) -> Response {
    json_text(status, value.to_string())
}

fn json_text(status: u16, text: String) -> Response {
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
