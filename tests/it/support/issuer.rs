//! An identity provider in the test's process: discovery, keys, sign-in with PKCE and nonce, and whatever it is told to
//! get wrong.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use axum::extract::{Form, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What it gets wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wrong {
    #[default]
    Nothing,
    /// The ID token has another nonce.
    Nonce,
    /// The ID token is for another client.
    Audience,
    /// The ID token has several audiences, and another authorized party.
    Party,
    /// The ID token names another issuer.
    Issuer,
    /// The ID token has expired.
    Expired,
    /// The ID token is signed with a key that is not published.
    Key,
    /// There is no ID token.
    NoToken,
    /// The token endpoint refuses the code.
    Refuses,
    /// PKCE is not announced.
    NoPkce,
}

/// A running identity provider whose client is `obo` with the secret `obo secret/:`.
pub struct Issuer {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    key: EncodingKey,
    other_key: EncodingKey,
    jwk: Value,
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    state: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    wrong: Wrong,
    /// Codes, with who signed in and the request they belong to.
    codes: BTreeMap<String, (String, BTreeMap<String, String>)>,
    exchanges: usize,
    documents: usize,
}

pub const CLIENT: &str = "obo";
pub const SECRET: &str = "obo secret/:";

impl Issuer {
    pub async fn start(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let key = || {
            let random = SystemRandom::new();
            EncodingKey::from_ed_der(Ed25519KeyPair::generate_pkcs8v1(&random).unwrap().as_ref())
        };
        let signing = key();
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&signing, Algorithm::EdDSA).unwrap()).unwrap();
        jwk["kid"] = json!("k1");
        jwk["alg"] = json!("EdDSA");
        let shared = Arc::new(Shared {
            url: url.clone(),
            key: signing,
            other_key: key(),
            jwk,
            now: Box::new(now),
            state: Mutex::default(),
        });
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(|State(s): State<Arc<Shared>>| async move { Json(json!({ "keys": [s.jwk] })) }))
            .route("/token", post(token))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, shared }
    }

    /// The table for obo.toml.
    pub fn table(&self, name: &str, further: &str) -> String {
        format!(
            "[[identity.issuer]]\nname = {name:?}\nissuer = {:?}\nclient_id = {CLIENT:?}\nclient_secret = {SECRET:?}\n{further}\n",
            self.url
        )
    }

    pub fn be_wrong(&self, wrong: Wrong) {
        self.shared.state.lock().unwrap().wrong = wrong;
    }

    pub fn exchanges(&self) -> usize {
        self.shared.state.lock().unwrap().exchanges
    }

    /// How often the discovery document was read.
    pub fn documents(&self) -> usize {
        self.shared.state.lock().unwrap().documents
    }

    /// Signs `user` in at the authorization endpoint that a browser was sent to: where the browser goes next.
    pub fn sign_in(&self, authorization_url: &str, user: &str) -> String {
        let url = url::Url::parse(authorization_url).unwrap();
        assert!(authorization_url.starts_with(&format!("{}/auth?", self.url)), "{authorization_url}");
        let request: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(request["response_type"], "code");
        assert_eq!(request["client_id"], CLIENT);
        assert_eq!(request["code_challenge_method"], "S256");
        assert!(request["scope"].split(' ').any(|scope| scope == "openid"));
        let code = uuid::Uuid::new_v4().to_string();
        let mut back = url::Url::parse(&request["redirect_uri"]).unwrap();
        back.query_pairs_mut()
            .append_pair("code", &code)
            .append_pair("state", &request["state"])
            .append_pair("iss", &self.url);
        self.shared.state.lock().unwrap().codes.insert(code, (user.to_owned(), request));
        back.into()
    }

    /// An access token for an audience, as MCP clients show it.
    pub fn access_token(&self, user: &str, audience: &str) -> String {
        let now = (self.shared.now)();
        let claims = json!({ "iss": self.url, "sub": user, "aud": audience, "iat": now, "exp": now + 600 });
        self.shared.sign(&self.shared.key, "at+jwt", &claims)
    }
}

impl Shared {
    fn sign(&self, key: &EncodingKey, kind: &str, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("k1".to_owned());
        header.typ = Some(kind.to_owned());
        jsonwebtoken::encode(&header, claims, key).unwrap()
    }
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let url = &shared.url;
    let mut document = json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/auth"),
        "token_endpoint": format!("{url}/token"),
        "jwks_uri": format!("{url}/jwks"),
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
    });
    let mut state = shared.state.lock().unwrap();
    state.documents += 1;
    if state.wrong == Wrong::NoPkce {
        document["code_challenge_methods_supported"] = json!(["plain"]);
    }
    drop(state);
    Json(document)
}

async fn token(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Form(form): Form<BTreeMap<String, String>>,
) -> Response {
    let mut state = shared.state.lock().unwrap();
    state.exchanges += 1;
    let refuse = |code: &str| (StatusCode::BAD_REQUEST, Json(json!({ "error": code }))).into_response();
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", encoded(CLIENT), encoded(SECRET))));
    if headers.get("authorization").and_then(|value| value.to_str().ok()) != Some(&*basic) {
        return refuse("invalid_client");
    }
    // Single use.
    let Some((user, request)) = form.get("code").and_then(|code| state.codes.remove(code)) else {
        return refuse("invalid_grant");
    };
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(form.get("code_verifier").map_or("", |v| v).as_bytes()));
    if challenge != request["code_challenge"]
        || form.get("redirect_uri") != request.get("redirect_uri")
        || state.wrong == Wrong::Refuses
    {
        return refuse("invalid_grant");
    }
    let now = (shared.now)();
    let mut claims = json!({
        "iss": shared.url, "sub": user, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": request["nonce"],
        "groups": ["staff"],
    });
    match state.wrong {
        Wrong::Nonce => claims["nonce"] = json!("another"),
        Wrong::Audience => claims["aud"] = json!("another"),
        Wrong::Party => {
            claims["aud"] = json!([CLIENT, "another"]);
            claims["azp"] = json!("another");
        }
        Wrong::Issuer => claims["iss"] = json!("https://evil.example"),
        Wrong::Expired => claims["exp"] = json!(now - 300),
        _ => {}
    }
    let key = if state.wrong == Wrong::Key { &shared.other_key } else { &shared.key };
    let mut answer = json!({ "access_token": "opaque", "token_type": "Bearer", "expires_in": 300 });
    if state.wrong != Wrong::NoToken {
        answer["id_token"] = json!(shared.sign(key, "JWT", &claims));
    }
    Json(answer).into_response()
}
