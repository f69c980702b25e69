//! What a bearer costs: a signed token that is verified anew, beside the same kind of token that was seen before.
//!
//! `cargo bench --bench bearer`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use obo::app::{App, Settings, Way};
use obo::clock::{Clock as _, SystemClock};
use obo::config::{Config, Environment};
use obo::identity::issuer::MAX_SEEN_TOKENS;
use obo::identity::{Credential, Identity};
use obo::secret::Secret;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Rounds of each kind; an odd number has a median.
const ROUNDS: usize = 5;
/// Tokens in a round. All rounds of one algorithm fit into the cache, so none is verified twice.
const TOKENS: usize = 1000;

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let signers = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].map(|algorithm| (algorithm, key(algorithm)));
    let jwks: Vec<Value> = signers.iter().map(|(algorithm, key)| public(key, *algorithm)).collect();
    let issuer = issuer(json!({ "keys": jwks })).await;
    let folder = tempfile::tempdir().unwrap();
    let app = obo(folder.path(), &issuer);
    let identity = app.obo.identity();

    println!("one request's bearer, {TOKENS} tokens a round, {ROUNDS} rounds of each kind in turn");
    println!("at most {MAX_SEEN_TOKENS} tokens are remembered\n");
    println!("                   anew           seen      ratio");
    for (algorithm, key) in &signers {
        // So that the keys are there; fetching them is not what is measured.
        round(identity, &tokens(*algorithm, key, &issuer, "first", 1)).await;
        let (mut anew, mut seen) = (Vec::new(), Vec::new());
        for number in 0..ROUNDS {
            let tokens = tokens(*algorithm, key, &issuer, &number.to_string(), TOKENS);
            anew.push(round(identity, &tokens).await);
            seen.push(round(identity, &tokens).await);
        }
        let (anew, seen) = (middle(anew), middle(seen));
        println!(
            "  {:<8} {:>10} ns {:>11} ns {:>8.1} x",
            format!("{algorithm:?}"),
            anew.as_nanos(),
            seen.as_nanos(),
            anew.as_secs_f64() / seen.as_secs_f64()
        );
    }
}

/// How long one of the tokens takes.
async fn round(identity: &Identity, tokens: &[Credential]) -> Duration {
    let began = Instant::now();
    for token in tokens {
        let subject = identity.authenticate(token).await;
        assert!(black_box(subject).is_ok());
    }
    began.elapsed() / u32::try_from(tokens.len()).unwrap()
}

fn middle(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

fn key(algorithm: Algorithm) -> EncodingKey {
    let random = SystemRandom::new();
    match algorithm {
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
    }
}

fn public(key: &EncodingKey, algorithm: Algorithm) -> Value {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
    jwk["kid"] = json!(format!("{algorithm:?}"));
    jwk
}

/// Tokens of as many people, as issuers write them: a few groups, a scope, some claims that nobody here reads.
fn tokens(algorithm: Algorithm, key: &EncodingKey, issuer: &str, round: &str, count: usize) -> Vec<Credential> {
    let mut header = Header::new(algorithm);
    header.kid = Some(format!("{algorithm:?}"));
    header.typ = Some("at+jwt".to_owned());
    let now = SystemClock.now().as_second();
    let token = |number: usize| {
        let claims = json!({
            "iss": issuer, "aud": "https://obo.example.com/mcp", "sub": format!("{round}-{number}"), "iat": now,
            "exp": now + 3600, "jti": format!("{round}-{number}"), "client_id": "a-client", "scope": "obo.use openid",
            "groups": ["engineering", "on-call", "everyone"], "name": "A Person", "email": "person@example.com",
        });
        let token = Secret::new(jsonwebtoken::encode(&header, &claims, key).unwrap());
        Credential::Bearer { token, obo_user: None }
    };
    (0..count).map(token).collect()
}

/// An identity provider with these keys. Its address.
async fn issuer(keys: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let document = json!({ "issuer": url, "jwks_uri": format!("{url}/jwks") });
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(move || std::future::ready(Json(document.clone()))))
        .route("/jwks", get(move || std::future::ready(Json(keys.clone()))));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn obo(folder: &std::path::Path, issuer: &str) -> App {
    // Never opened: no bearer here is obo's own.
    std::fs::write(folder.join("vault.key"), [7u8; 32]).unwrap();
    let text = format!(
        "[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n[[identity.issuer]]\nname = \"corp\"\nissuer = \"{issuer}\"\n\
         audience = \"https://obo.example.com/mcp\"\ngroups_claim = \"groups\"\nscopes = [\"obo.use\"]\n"
    );
    let config = Config::parse(&text, "obo.toml", folder, &Environment::default()).unwrap();
    let data_dir = folder.join("data");
    App::open(Settings { config, data_dir, clock: Arc::new(SystemClock), way: Way::Serve, prompt: None }).unwrap()
}
