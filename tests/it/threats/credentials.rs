//! T18: tokens of identity providers and keys of applications, as they come in over HTTP. Every way in which a token can
//! be wrong stands in `src/identity/issuer/tests.rs`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use obo::consent::Typed;
use obo::id::Person;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::mcp::{link_of, value_of};
use crate::support::{Browser, Mcp, TestObo, mail};

const SEND: &str = "Google_SendEmail";

/// A key pair of an issuer.
struct Signer {
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(id: &str) -> Self {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let key = EncodingKey::from_ec_der(key.as_ref());
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = json!(id);
        jwk["use"] = json!("sig");
        jwk["alg"] = json!("ES256");
        Self { key, jwk }
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "kid": self.jwk["kid"], "typ": "at+jwt" });
        signed(&header, claims, &self.key, Algorithm::ES256)
    }
}

fn signed(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    format!("{message}.{}", jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap())
}

static KEY: LazyLock<Signer> = LazyLock::new(|| Signer::new("k1"));
/// Published nowhere.
static STRANGER: LazyLock<Signer> = LazyLock::new(|| Signer::new("k1"));

/// An identity provider on loopback. It ends with the test's runtime.
struct Issuer {
    url: String,
    keys: Arc<Mutex<Value>>,
    fetches: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(json!({ "keys": [KEY.jwk] })));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (base, published, count) = (url.clone(), Arc::clone(&keys), Arc::clone(&fetches));
        let router = axum::Router::new()
            .route(
                "/.well-known/openid-configuration",
                axum::routing::get(move || async move {
                    axum::Json(json!({ "issuer": base, "jwks_uri": format!("{base}/jwks") }))
                }),
            )
            .route(
                "/jwks",
                axum::routing::get(move || async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    axum::Json(published.lock().unwrap().clone())
                }),
            );
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, keys, fetches }
    }

    fn claims(&self, obo: &TestObo) -> Value {
        let now = obo::clock::Clock::now(&*obo.clock).as_second();
        json!({ "iss": self.url, "aud": format!("{}/mcp", obo.base), "sub": "alice", "iat": now, "exp": now + 300, "org": "acme" })
    }
}

/// The status and the challenge of a request that shows this bearer.
async fn shown(obo: &TestObo, bearer: Option<&str>, user: Option<&str>) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    } } });
    let mut request = http
        .post(format!("{}/mcp", obo.base))
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/list")
        .json(&list);
    if let Some(bearer) = bearer {
        request = request.bearer_auth(bearer);
    }
    if let Some(user) = user {
        request = request.header("obo-user", user);
    }
    let answer = request.send().await.unwrap();
    let challenge = answer.headers().get("www-authenticate").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), challenge.unwrap_or_default())
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[tokio::test]
async fn t18_a_token_of_the_issuer_stands_for_its_person_and_others_for_nobody() {
    let issuer = Issuer::start().await;
    let obo = TestObo::builder()
        .config(&format!(
            "[server]\nconsent_wait = \"0s\"\n[[identity.issuer]]\nname = \"corp\"\nissuer = {:?}\n\
             tenant_claim = \"org\"\ntenants = [\"acme\", \"initech\"]\n",
            issuer.url
        ))
        .start()
        .await;
    let claims = issuer.claims(&obo);
    let good = KEY.sign(&claims);

    // She is (acme, corp, alice): the namesake that obo vouches for is somebody else, and so is the one of another tenant.
    let alice = Mcp::new(&obo.base, Some(good.clone()));
    let link = link_of(&alice.call(SEND, mail("bob@example.com", "x")).await).unwrap();
    // The issuer has no sign-in here, so the browser is shown a code, and she types it back.
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    let forwarded = browser.submit(&page, &[]).await.location.unwrap();
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let page = browser.get(&back).await;
    let at = page.text.find("<p class=\"code\"><code>").unwrap() + 22;
    let code = &page.text[at..at + 9];
    let person = |tenant: &str, source: &str| Person {
        tenant: tenant.parse().unwrap(),
        source: source.parse().unwrap(),
        user: "alice".parse().unwrap(),
    };
    let consent = obo.app.obo.consent();
    for somebody_else in [person("default", "obo"), person("acme", "obo"), person("initech", "corp")] {
        assert!(
            consent.confirm_code(&somebody_else, code, &Typed::InClient("google"), "test").await.is_err(),
            "{somebody_else}"
        );
    }
    assert!(consent.confirm_code(&person("acme", "corp"), code, &Typed::InClient("google"), "test").await.is_ok());
    value_of(&alice.call(SEND, mail("bob@example.com", "x")).await);
    let called = obo.app.audit.read(|r| r.tool.is_some() && r.outcome.as_deref() == Some("ok")).await.unwrap();
    let who: Vec<_> =
        called.iter().map(|r| [&r.tenant, &r.source, &r.user].map(|name| name.as_deref().unwrap())).collect();
    assert_eq!(who, [["acme", "corp", "alice"]]);

    let own = format!("{}/mcp", obo.base);
    let now = claims["iat"].as_i64().unwrap();
    let public_point = STANDARD.encode(KEY.jwk.to_string());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{public_point}\n-----END PUBLIC KEY-----\n");
    let shared = |secret: &[u8], alg: Algorithm| {
        let header = json!({ "alg": format!("{alg:?}"), "kid": "k1", "typ": "at+jwt" });
        signed(&header, &claims, &EncodingKey::from_secret(secret), alg)
    };
    let unsigned = |alg: &str| {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": alg, "typ": "at+jwt" }).to_string());
        format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims.to_string()))
    };
    let x = URL_SAFE_NO_PAD.decode(KEY.jwk["x"].as_str().unwrap()).unwrap();
    let y = URL_SAFE_NO_PAD.decode(KEY.jwk["y"].as_str().unwrap()).unwrap();
    let bad = [
        ("another audience", KEY.sign(&with(&claims, "aud", json!("https://else.example/mcp")))),
        ("our origin as audience", KEY.sign(&with(&claims, "aud", json!(obo.base)))),
        ("an audience that only begins as ours", KEY.sign(&with(&claims, "aud", json!(format!("{own}/x"))))),
        ("no audience", KEY.sign(&without(&claims, "aud"))),
        ("another issuer", KEY.sign(&with(&claims, "iss", json!("https://idp.example")))),
        ("the issuer with a slash", KEY.sign(&with(&claims, "iss", json!(format!("{}/", issuer.url))))),
        ("expired", KEY.sign(&with(&claims, "exp", json!(now - 61)))),
        ("no expiry", KEY.sign(&without(&claims, "exp"))),
        ("not yet", KEY.sign(&with(&claims, "nbf", json!(now + 120)))),
        ("a tenant that is not listed", KEY.sign(&with(&claims, "org", json!("globex")))),
        ("no tenant", KEY.sign(&without(&claims, "org"))),
        ("two tenants", KEY.sign(&with(&claims, "org", json!(["acme", "initech"])))),
        ("no subject", KEY.sign(&without(&claims, "sub"))),
        ("an empty subject", KEY.sign(&with(&claims, "sub", json!("")))),
        ("another key of the same name", STRANGER.sign(&claims)),
        ("none", unsigned("none")),
        ("nOnE", unsigned("nOnE")),
        ("ES256 without a signature", unsigned("ES256")),
        ("HS256 with the key set's text", shared(KEY.jwk.to_string().as_bytes(), Algorithm::HS256)),
        ("HS256 with the public point", shared(&[&[4], &x[..], &y[..]].concat(), Algorithm::HS256)),
        ("HS256 with the public x", shared(&x, Algorithm::HS256)),
        ("HS512 with a PEM of it", shared(pem.as_bytes(), Algorithm::HS512)),
        ("a bent signature", {
            // Not its last character: that has only two bits, and may be the new one already.
            let (rest, tail) = good.split_at(good.len() - 40);
            let bent = if tail.starts_with('A') { 'B' } else { 'A' };
            format!("{rest}{bent}{}", &tail[1..])
        }),
        ("other claims under its signature", {
            let parts: Vec<&str> = good.split('.').collect();
            let claims = with(&claims, "sub", json!("bob")).to_string();
            format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims), parts[2])
        }),
    ];
    let metadata = format!("resource_metadata=\"{}/.well-known/oauth-protected-resource/mcp\"", obo.base);
    assert_eq!(shown(&obo, Some(&good), None).await.0, 200);
    for (what, token) in &bad {
        let (status, challenge) = shown(&obo, Some(token), None).await;
        assert_eq!(status, 401, "{what}");
        assert!(challenge.contains(&metadata) && challenge.contains("error=\"invalid_token\""), "{what}: {challenge}");
        // No token of an issuer signs a browser in, and a bad one is told no more than that.
        let mut browser = Browser::new();
        let page = browser.get(&format!("{}/account?with=obo", obo.base)).await;
        assert_eq!(browser.submit(&page, &[("token", token)]).await.status, 401, "{what} on the page");
    }
    assert_eq!(issuer.fetches.load(Ordering::SeqCst), 1, "no bad token made obo ask the issuer");
    let all = obo.app.audit.read(|r| r.tool.is_some()).await.unwrap();
    assert!(
        all.iter().all(|record| record.user.as_deref() == Some("alice") && record.source.as_deref() == Some("corp"))
    );

    // A key that the issuer has withdrawn signs nothing any more, within the time that keys are kept.
    *issuer.keys.lock().unwrap() = json!({ "keys": [] });
    obo.clock.advance(std::time::Duration::from_secs(11 * 60));
    let fresh = KEY.sign(&issuer.claims(&obo));
    assert_ne!(shown(&obo, Some(&fresh), None).await.0, 200);
}

#[tokio::test]
async fn t18_an_application_names_its_users_and_nobody_without_a_name() {
    let key = "a-key-of-the-shop-0123456789abcdef";
    let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    let obo = TestObo::builder()
        .config(&format!("[[identity.application]]\nname = \"shop\"\ntenant = \"acme\"\nkey_sha256 = \"{hash}\"\n"))
        .start()
        .await;
    assert_eq!(shown(&obo, Some(key), Some("customer 7")).await.0, 200);
    for (bearer, user) in [
        (Some(key), None),
        (Some(key), Some("")),
        (Some(key), Some("cust\tomer")),
        (Some(&hash[..]), Some("customer 7")),
        (Some("another-key"), Some("customer 7")),
        (None, Some("customer 7")),
        (None, None),
    ] {
        let (status, challenge) = shown(&obo, bearer, user).await;
        assert_eq!(status, 401, "{user:?}");
        assert!(challenge.starts_with("Bearer resource_metadata="), "{challenge}");
    }

    // Its user is (acme, app:shop, alice) and no other alice.
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": SEND, "arguments": mail("bob@example.com", "x"), "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    } } });
    let answer: Value = http
        .post(format!("{}/mcp", obo.base))
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", SEND)
        .header("obo-user", "alice")
        .bearer_auth(key)
        .json(&call)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    // No browser can show that it is theirs, so there is no link for anybody to pick up.
    assert!(link_of(&answer["result"]).is_none(), "{answer}");
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("app:shop"), "{answer}");
    // The key alone signs nobody in.
    let mut browser = Browser::new();
    let page = browser.get(&format!("{}/account", obo.base)).await;
    assert_eq!(browser.submit(&page, &[("token", key)]).await.status, 401);
    let records = obo.app.audit.read(|r| r.tool.is_some()).await.unwrap();
    assert!(records.iter().all(|r| r.source.as_deref() == Some("app:shop") && r.user.as_deref() == Some("alice")));
}
