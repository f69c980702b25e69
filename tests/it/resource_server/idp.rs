//! An identity provider whose keys rotate, whose tokens can be of any shape, and which answers questions about opaque ones.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use axum::extract::{Form, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use obo::clock::Clock as _;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::TestObo;

/// A key pair of an issuer.
pub(crate) struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    pub(crate) jwk: Value,
}

impl Signer {
    pub(crate) fn new(id: &str, algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let key = match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(Ed25519KeyPair::generate_pkcs8v1(&random).unwrap().as_ref()),
            Algorithm::ES256 => EncodingKey::from_ec_der(
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap().as_ref(),
            ),
            _ => {
                let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
                let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().unwrap();
                let text = STANDARD.encode(der.as_ref());
                let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
                EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
            }
        };
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
        jwk["kid"] = json!(id);
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(format!("{algorithm:?}"));
        Self { key, algorithm, jwk }
    }

    pub(crate) fn header(&self) -> Value {
        json!({ "alg": format!("{:?}", self.algorithm), "kid": self.jwk["kid"], "typ": "at+jwt" })
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&self.header(), claims)
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs these very texts.
    pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
        self.sign_as(self.algorithm, header, claims)
    }

    pub(crate) fn sign_as(&self, algorithm: Algorithm, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

/// Made once: an RSA key takes a while.
pub(crate) static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::new("rsa", Algorithm::RS256));
pub(crate) static EC: LazyLock<Signer> = LazyLock::new(|| Signer::new("ec", Algorithm::ES256));
/// Of somebody else, under the same name.
pub(crate) static STRANGER: LazyLock<Signer> = LazyLock::new(|| Signer::new("rsa", Algorithm::RS256));

pub(crate) const CLIENT: &str = "obo:client";
pub(crate) const SECRET: &str = "s3cret/+ä";

/// How the introspection endpoint behaves.
#[derive(Clone)]
pub(crate) enum Introspects {
    /// It knows tokens, and its own client.
    Truly,
    /// It answers everything with a status.
    Status(u16),
    /// It answers everything with this text.
    Text(String),
    /// It answers truly, once this is true.
    Held(watch::Receiver<bool>),
}

/// A running identity provider. It ends with the test's runtime.
pub(crate) struct Idp {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    inner: Mutex<Inner>,
    asked: watch::Sender<usize>,
}

struct Inner {
    keys: Value,
    fetches: usize,
    opaque: BTreeMap<String, Value>,
    introspects: Introspects,
    endpoint: Option<String>,
    strange_requests: Vec<String>,
}

impl Idp {
    pub(crate) async fn start(signers: &[&Signer]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            url: url.clone(),
            inner: Mutex::new(Inner {
                keys: published(signers),
                fetches: 0,
                opaque: BTreeMap::new(),
                introspects: Introspects::Truly,
                endpoint: Some(format!("{url}/introspect")),
                strange_requests: Vec::new(),
            }),
            asked: watch::Sender::new(0),
        });
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(jwks))
            .route("/introspect", post(introspect))
            .fallback(strange)
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, shared }
    }

    /// The table for obo.toml.
    pub(crate) fn table(&self, name: &str, further: &str) -> String {
        format!("[[identity.issuer]]\nname = {name:?}\nissuer = {:?}\n{further}\n", self.url)
    }

    /// The table of an issuer that is asked about opaque tokens.
    pub(crate) fn introspecting(&self, name: &str, further: &str) -> String {
        let client = format!("client_id = {CLIENT:?}\nclient_secret = {SECRET:?}\nintrospection = true\n{further}");
        self.table(name, &client)
    }

    /// The claims of a good token of Alice for this obo.
    pub(crate) fn claims(&self, obo: &TestObo) -> Value {
        let now = obo.clock.now().as_second();
        json!({ "iss": self.url, "aud": format!("{}/mcp", obo.base), "sub": "alice", "iat": now, "exp": now + 300 })
    }

    pub(crate) fn publish(&self, signers: &[&Signer]) {
        self.inner(|inner| inner.keys = published(signers));
    }

    /// How often the keys were fetched.
    pub(crate) fn fetches(&self) -> usize {
        self.inner(|inner| inner.fetches)
    }

    /// Requests to anything but the three endpoints: keys that a token wanted to bring along.
    pub(crate) fn strange_requests(&self) -> Vec<String> {
        self.inner(|inner| inner.strange_requests.clone())
    }

    /// Makes an opaque token good, with what its introspection says.
    pub(crate) fn issue(&self, token: &str, claims: &Value) {
        let mut answer = claims.clone();
        if answer.get("active").is_none() {
            answer["active"] = json!(true);
        }
        self.inner(|inner| inner.opaque.insert(token.to_owned(), answer));
    }

    pub(crate) fn revoke(&self, token: &str) {
        self.inner(|inner| inner.opaque.remove(token));
    }

    pub(crate) fn introspects(&self, how: Introspects) {
        self.inner(|inner| inner.introspects = how);
    }

    pub(crate) fn announce(&self, endpoint: Option<&str>) {
        self.inner(|inner| inner.endpoint = endpoint.map(str::to_owned));
    }

    /// How often it was asked about a token.
    pub(crate) fn asked(&self) -> usize {
        *self.shared.asked.borrow()
    }

    /// Waits until it was asked that often.
    pub(crate) async fn was_asked(&self, times: usize) {
        self.shared.asked.subscribe().wait_for(|asked| *asked >= times).await.unwrap();
    }

    fn inner<T>(&self, use_it: impl FnOnce(&mut Inner) -> T) -> T {
        use_it(&mut self.shared.inner.lock().unwrap())
    }
}

fn published(signers: &[&Signer]) -> Value {
    json!({ "keys": signers.iter().map(|signer| signer.jwk.clone()).collect::<Vec<_>>() })
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let url = &shared.url;
    let mut document = json!({ "issuer": url, "jwks_uri": format!("{url}/jwks") });
    if let Some(endpoint) = &shared.inner.lock().unwrap().endpoint {
        document["introspection_endpoint"] = json!(endpoint);
    }
    Json(document)
}

async fn jwks(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let mut inner = shared.inner.lock().unwrap();
    inner.fetches += 1;
    Json(inner.keys.clone())
}

async fn introspect(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Form(form): Form<BTreeMap<String, String>>,
) -> Response {
    shared.asked.send_modify(|asked| *asked += 1);
    let how = shared.inner.lock().unwrap().introspects.clone();
    match how {
        Introspects::Truly => {}
        Introspects::Status(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        Introspects::Text(text) => return ([("content-type", "application/json")], text).into_response(),
        Introspects::Held(mut open) => {
            open.wait_for(|open| *open).await.unwrap();
        }
    }
    // RFC 7662 §2.1, RFC 6749 §2.3.1.
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", encoded(CLIENT), encoded(SECRET))));
    if headers.get("authorization").and_then(|value| value.to_str().ok()) != Some(&*basic) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if form.get("token_type_hint").map(String::as_str) != Some("access_token") {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let inner = shared.inner.lock().unwrap();
    let known = form.get("token").and_then(|token| inner.opaque.get(token)).cloned();
    Json(known.unwrap_or_else(|| json!({ "active": false }))).into_response()
}

async fn strange(State(shared): State<Arc<Shared>>, uri: axum::http::Uri) -> StatusCode {
    shared.inner.lock().unwrap().strange_requests.push(uri.to_string());
    StatusCode::NOT_FOUND
}

/// The same object with one member changed, or without it.
pub(crate) fn with(object: &Value, name: &str, member: impl Into<Value>) -> Value {
    let mut changed = object.clone();
    changed[name] = member.into();
    changed
}

pub(crate) fn without(object: &Value, name: &str) -> Value {
    let mut changed = object.clone();
    changed.as_object_mut().unwrap().remove(name);
    changed
}
