//! T18: everything that is not a good token, as it comes in over HTTP. A case is a name and a request.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use super::idp::{EC, Idp, RSA, STRANGER, Signer, with, without};
use super::{Answered, http, initialize, list, modern};
use crate::support::TestObo;

const CLIENT: &str = "obo-client";

/// Alice's good token is what all of these are made from.
struct Cases {
    bearers: Vec<(String, String)>,
}

impl Cases {
    fn add(&mut self, name: impl Into<String>, token: impl Into<String>) {
        self.bearers.push((name.into(), token.into()));
    }
}

fn hmac(key: &[u8], header: &Value, claims: &Value) -> String {
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", text(header), text(claims));
    let key = EncodingKey::from_secret(key);
    format!("{message}.{}", jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap())
}

fn algorithms(cases: &mut Cases, good: &str, claims: &Value) {
    let parts: Vec<&str> = good.split('.').collect();
    for none in ["none", "None", "NONE", "NoNe", "nonE", ""] {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": none, "kid": "rsa" }).to_string());
        cases.add(format!("alg {none:?}, no signature"), format!("{header}.{}.", parts[1]));
        cases.add(format!("alg {none:?}, the signature of another"), format!("{header}.{}.{}", parts[1], parts[2]));
    }
    let modulus = URL_SAFE_NO_PAD.decode(RSA.jwk["n"].as_str().unwrap()).unwrap();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&modulus));
    let hs256 = json!({ "alg": "HS256", "kid": "rsa", "typ": "at+jwt" });
    for (name, key) in [
        ("the modulus", &modulus[..]),
        ("the modulus as text", RSA.jwk["n"].as_str().unwrap().as_bytes()),
        ("the JWK", RSA.jwk.to_string().as_bytes()),
        ("a PEM", pem.as_bytes()),
        ("nothing", b""),
        ("the client's name", CLIENT.as_bytes()),
    ] {
        cases.add(format!("HS256 with {name}"), hmac(key, &hs256, claims));
    }
    for other in ["RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA", "rs256", "RS256 ", "ES256K", "dir"] {
        cases.add(format!("RS256 called {other}"), RSA.sign(&with(&RSA.header(), "alg", other), claims));
    }
    let really = |alg: Algorithm, kid: &str| {
        let header = json!({ "alg": format!("{alg:?}"), "kid": kid, "typ": "at+jwt" });
        RSA.sign_as(alg, &header.to_string(), &claims.to_string())
    };
    cases.add("really PS256, by a key for RS256", really(Algorithm::PS256, "rsa"));
    cases.add("really PS256, under the EC key's id", really(Algorithm::PS256, "ec"));
    cases.add("really RS512, by a key for RS256", really(Algorithm::RS512, "rsa"));
    cases.add("ES256 with an empty signature", {
        let header = URL_SAFE_NO_PAD.encode(EC.header().to_string());
        format!("{header}.{}.{}", parts[1], URL_SAFE_NO_PAD.encode([0; 64]))
    });
    cases.add("ES256 in DER form", {
        let header = URL_SAFE_NO_PAD.encode(EC.header().to_string());
        format!("{header}.{}.{}", parts[1], URL_SAFE_NO_PAD.encode([0x30, 6, 2, 1, 1, 2, 1, 1]))
    });
    cases.add("no alg", RSA.sign(&without(&RSA.header(), "alg"), claims));
    cases.add("two algs", RSA.sign_text(r#"{"alg":"none","alg":"RS256","kid":"rsa"}"#, &claims.to_string()));
    cases.add("alg is a list", RSA.sign(&with(&RSA.header(), "alg", json!(["RS256"])), claims));
}

fn headers(cases: &mut Cases, idp: &Idp, claims: &Value) {
    let header = RSA.header();
    let rsa = |name: &str, value: Value| RSA.sign(&with(&header, name, value), claims);
    let stranger = |name: &str, value: Value| STRANGER.sign(&with(&header, name, value), claims);
    cases.add("a stranger's key of the same id", STRANGER.sign(&header, claims));
    cases.add("a stranger's key, brought along", stranger("jwk", STRANGER.jwk.clone()));
    cases.add("a stranger's key, by jku", stranger("jku", json!(format!("{}/stranger/jwks", idp.url))));
    cases.add("a stranger's key, by x5u", stranger("x5u", json!(format!("{}/stranger/x5u", idp.url))));
    cases.add("a stranger's key, by x5c", stranger("x5c", json!(["MIIB"])));
    for id in [
        "../../../../dev/null",
        "/etc/passwd",
        "' OR 1=1 --",
        "rsa\0",
        "RSA",
        "",
        "*",
        "http://169.254.169.254/",
        "rsａ",
    ] {
        cases.add(format!("kid {id:?}"), rsa("kid", json!(id)));
    }
    cases.add("kid of the other key", rsa("kid", json!("ec")));
    cases.add("kid is huge", rsa("kid", json!("k".repeat(9000))));
    cases.add("kid is a number", rsa("kid", json!(1)));
    cases.add("kid is an object", rsa("kid", json!({ "rsa": 1 })));
    cases.add("no kid, signed by nobody known", STRANGER.sign(&without(&header, "kid"), claims));
    cases.add("crit", rsa("crit", json!(["exp"])));
    cases.add("an empty crit", rsa("crit", json!([])));
    cases.add("an unencoded payload", RSA.sign(&with(&with(&header, "crit", json!(["b64"])), "b64", false), claims));
    for kind in [
        "dpop+jwt",
        "logout+jwt",
        "secevent+jwt",
        "token-introspection+jwt",
        "oauth-authz-req+jwt",
        "entity-statement+jwt",
        "id_token",
        "at+jwt ",
        "",
    ] {
        cases.add(format!("typ {kind:?}"), rsa("typ", json!(kind)));
    }
    cases.add("typ is a list", rsa("typ", json!(["at+jwt"])));
    cases.add("a header that is a list", RSA.sign_text("[]", &claims.to_string()));
    cases.add("a header that is no JSON", RSA.sign_text("alg=RS256", &claims.to_string()));
    cases.add("a header after a byte order mark", RSA.sign_text(&format!("\u{feff}{header}"), &claims.to_string()));
    cases.add("more after the header", RSA.sign_text(&format!("{header}{{}}"), &claims.to_string()));
    cases.add(
        "header names with lookalikes",
        RSA.sign_text(&header.to_string().replace("alg", "аlg"), &claims.to_string()),
    );
}

fn claims_of(cases: &mut Cases, obo: &TestObo, idp: &Idp, claims: &Value) {
    let own = claims["aud"].as_str().unwrap().to_owned();
    let now = claims["iat"].as_i64().unwrap();
    let mut changed = |name: String, claim: &str, value: Value| {
        cases.add(name, RSA.token(&with(claims, claim, value)));
    };
    for audience in [
        json!(CLIENT),
        json!(obo.base),
        json!(format!("{own}/")),
        json!(format!("{own}?")),
        json!(own.to_uppercase()),
        json!(own.replace("127.0.0.1", "localhost")),
        json!(own.replace("mcp", "mсp")),
        json!(format!("{own} https://else.example")),
        json!(format!("{own}\0")),
        json!("*"),
        json!(""),
        json!([]),
        json!([[own]]),
        json!([own, 1]),
        json!({ "aud": own }),
        Value::Null,
        json!(true),
        json!(vec!["x"; 65].into_iter().chain([own.as_str()]).collect::<Vec<_>>()),
    ] {
        changed(format!("aud {:.60}", audience.to_string()), "aud", audience);
    }
    for issuer in [
        json!(format!("{}/", idp.url)),
        json!(idp.url.to_uppercase()),
        json!(format!(" {}", idp.url)),
        json!(idp.url.replace("127.0.0.1", "localhost")),
        json!([idp.url]),
        json!("https://evil.example"),
        json!(""),
        Value::Null,
    ] {
        changed(format!("iss {issuer}"), "iss", issuer);
    }
    for expires in [
        json!(now - 61),
        json!(0),
        json!(-1),
        json!("2099-01-01T00:00:00Z"),
        json!((now + 300).to_string()),
        json!(1e300),
        json!(u64::MAX),
        json!([now + 300]),
        Value::Null,
    ] {
        changed(format!("exp {expires}"), "exp", expires);
    }
    for (claim, value) in [
        ("nbf", json!(now + 61)),
        ("nbf", json!(u64::MAX)),
        ("nbf", json!("now")),
        ("iat", json!(now + 61)),
        ("iat", Value::Null),
        ("sub", json!("")),
        ("sub", json!(["alice"])),
        ("sub", json!(1)),
        ("sub", json!("a".repeat(5000))),
        ("sub", json!("alice\n")),
        ("cnf", json!({ "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" })),
        ("cnf", json!({ "x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2" })),
        ("cnf", json!({})),
    ] {
        changed(format!("{claim} {:.60}", value.to_string()), claim, value);
    }
    for claim in ["aud", "iss", "exp", "sub"] {
        cases.add(format!("no {claim}"), RSA.token(&without(claims, claim)));
    }
    let text = claims.to_string();
    for (claim, value) in
        [("sub", "\"bob\""), ("aud", "\"x\""), ("iss", "\"x\""), ("exp", "1"), ("\\u0073ub", "\"bob\"")]
    {
        let twice = text.replacen('{', &format!("{{\"{claim}\":{value},"), 1);
        cases.add(format!("two claims {claim}"), RSA.sign_text(&RSA.header().to_string(), &twice));
    }
    for (name, text) in [
        ("claims after a byte order mark", format!("\u{feff}{text}")),
        ("more after the claims", format!("{text} x")),
        ("claims in a list", format!("[{text}]")),
        ("claims that are text", "\"alice\"".to_owned()),
        ("claims without an end", text[..text.len() - 1].to_owned()),
        ("claims two hundred deep", text.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(200), "]".repeat(200)), 1)),
    ] {
        cases.add(name, RSA.sign_text(&RSA.header().to_string(), &text));
    }
    // Tokens that the issuer really makes, for other uses.
    let id_token = with(&with(claims, "aud", CLIENT), "nonce", "n");
    cases.add("an ID token", RSA.sign(&with(&RSA.header(), "typ", "JWT"), &id_token));
    let logout = with(
        &with(claims, "aud", CLIENT),
        "events",
        json!({ "http://schemas.openid.net/event/backchannel-logout": {} }),
    );
    cases.add("a logout token", RSA.sign(&with(&RSA.header(), "typ", "logout+jwt"), &logout));
    cases.add("a logout token without its type", RSA.sign(&without(&RSA.header(), "typ"), &logout));
}

fn forms(cases: &mut Cases, good: &str, claims: &Value) {
    let parts: Vec<&str> = good.split('.').collect();
    let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
    cases.add("padded", format!("{good}=="));
    cases.add("padded claims", format!("{}.{}=.{}", parts[0], parts[1], parts[2]));
    cases.add("with padding where it belongs", format!("{}.{}.{}", parts[0], parts[1], URL_SAFE.encode(&signature)));
    cases.add("standard base64", format!("{}.{}.{}+/", parts[0], parts[1], &parts[2][..parts[2].len() - 2]));
    cases.add("cut off", &good[..good.len() - 1]);
    cases.add("a byte too much", format!("{good}A"));
    cases.add("no signature", format!("{}.{}.", parts[0], parts[1]));
    cases.add("no claims", format!("{}..{}", parts[0], parts[2]));
    cases.add("dots alone", "..");
    cases.add("two parts", format!("{}.{}", parts[0], parts[1]));
    cases.add("four parts", format!("{good}.x"));
    cases.add("five parts, encrypted", format!("{good}.x.y"));
    cases.add("JSON serialised", json!({ "payload": parts[1], "signatures": [] }).to_string());
    cases.add("a newline inside, encoded", format!("{}%0A.{}.{}", parts[0], parts[1], parts[2]));
    cases.add("lookalike letters", good.replacen('e', "е", 1));
    cases.add("larger than is read", RSA.token(&with(claims, "x", "x".repeat(16 << 10))));
    cases.add("the claims of Bob", {
        let bob = URL_SAFE_NO_PAD.encode(with(claims, "sub", "bob").to_string());
        format!("{}.{bob}.{}", parts[0], parts[2])
    });
    cases.add("a signature of another token", {
        let other = RSA.token(&with(claims, "sub", "bob"));
        format!("{}.{}.{}", parts[0], parts[1], other.rsplit('.').next().unwrap())
    });
    for (number, at) in [0, signature.len() / 2, signature.len() - 1].into_iter().enumerate() {
        let mut bent = signature.clone();
        bent[at] ^= 1;
        cases.add(
            format!("a bent signature, {number}"),
            format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode(bent)),
        );
    }
}

/// Requests that show a good token in a way that does not count, or beside another credential.
async fn ways(obo: &TestObo, good: &str, others: &str) -> Vec<(&'static str, Answered)> {
    let list = || modern(obo, "tools/list", json!({}));
    let base = &obo.base;
    let requests = vec![
        ("no credential", list()),
        ("two headers", list().bearer_auth(good).bearer_auth(good)),
        ("two people", list().bearer_auth(good).bearer_auth(others)),
        ("two tokens in one header", list().header("authorization", format!("Bearer {good}, Bearer {others}"))),
        ("two tokens in one value", list().header("authorization", format!("Bearer {good} {others}"))),
        ("without the scheme", list().header("authorization", good)),
        ("as Basic", list().header("authorization", format!("Basic {good}"))),
        ("as DPoP", list().header("authorization", format!("DPoP {good}"))),
        ("as a password", list().basic_auth("alice", Some(good))),
        ("a scheme run into the token", list().header("authorization", format!("Bearer{good}"))),
        ("after a tab", list().header("authorization", format!("Bearer\t{good}"))),
        ("in quotes", list().header("authorization", format!("Bearer \"{good}\""))),
        ("an empty bearer", list().header("authorization", "Bearer ")),
        ("as an application, for herself", list().bearer_auth(good).header("obo-user", "alice")),
        ("as an application, for Bob", list().bearer_auth(good).header("obo-user", "bob")),
        ("in another header", list().header("x-forwarded-access-token", good).header("x-forwarded-user", "alice")),
        ("for the proxy", list().header("proxy-authorization", format!("Bearer {good}"))),
        ("in a cookie", list().header("cookie", format!("access_token={good}; obo={good}"))),
        ("in the query", http().get(format!("{base}/mcp?access_token={good}"))),
        ("in the query, beside the header", http().get(format!("{base}/mcp?access_token={others}")).bearer_auth(good)),
        ("in the query of the older transport", http().get(format!("{base}/sse?access%5ftoken={good}"))),
        ("in a form", http().post(format!("{base}/mcp")).form(&[("access_token", good)])),
        (
            "in the message",
            http().post(format!("{base}/mcp")).json(&json!({
                "jsonrpc": "2.0", "id": 1, "method": "tools/list",
                "params": { "access_token": good, "_meta": { "authorization": format!("Bearer {good}") } },
            })),
        ),
    ];
    let mut answers = Vec::new();
    for (name, request) in requests {
        answers.push((name, Answered::of(request).await));
    }
    answers
}

#[tokio::test]
async fn t18_whatever_is_not_a_good_token_is_refused_at_the_door() {
    // Two more keys that the issuer publishes and signs no access tokens with.
    let mut encryption = Signer::new("enc", Algorithm::ES256);
    encryption.jwk["use"] = json!("enc");
    let mut octets = Signer::new("oct", Algorithm::ES256);
    octets.jwk = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode("published"), "kid": "oct", "alg": "HS256" });
    let idp = Idp::start(&[&RSA, &EC, &encryption, &octets]).await;
    let partner = Idp::start(&[&STRANGER]).await;
    let obo = TestObo::builder()
        .config(&idp.table("corp", &format!("client_id = {CLIENT:?}")))
        .config(&partner.table("partner", ""))
        .start()
        .await;
    let claims = idp.claims(&obo);
    let good = RSA.token(&claims);
    let of_partner = STRANGER.token(&partner.claims(&obo));

    let mut cases = Cases { bearers: Vec::new() };
    algorithms(&mut cases, &good, &claims);
    headers(&mut cases, &idp, &claims);
    claims_of(&mut cases, &obo, &idp, &claims);
    forms(&mut cases, &good, &claims);
    cases.add("the encryption key", encryption.sign(&encryption.header(), &claims));
    cases.add(
        "HS256 with a secret that is published",
        hmac(b"published", &json!({ "alg": "HS256", "kid": "oct" }), &claims),
    );
    // Each of the two issuers is trusted, for its own people.
    cases.add("of one issuer, signed by the other", STRANGER.token(&claims));
    cases.add("of the other issuer, signed by the one", RSA.token(&partner.claims(&obo)));
    cases.add(
        "of the other issuer, with the one's key",
        STRANGER.sign(&with(&STRANGER.header(), "jwk", RSA.jwk.clone()), &claims),
    );
    let names: BTreeSet<&String> = cases.bearers.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), cases.bearers.len(), "every case has a name of its own");

    assert_eq!(list(&obo, &good).await.status, 200, "the control");
    assert_eq!(list(&obo, &of_partner).await.status, 200, "the control");
    let client = http();
    let (mut accepted, mut later, mut count) = (Vec::new(), 0, 0);
    for (name, token) in &cases.bearers {
        // As bytes, because some are not ASCII.
        let value = reqwest::header::HeaderValue::from_bytes(format!("Bearer {token}").as_bytes()).unwrap();
        let request = client.get(format!("{}/mcp", obo.base)).header("authorization", value);
        let answer = Answered::of(request.header("accept", "text/event-stream")).await;
        count += 1;
        match answer.status {
            401 => assert!(answer.challenge.contains("error=\"invalid_token\""), "{name}: {answer:?}"),
            // A key id that the issuer may have published a moment ago.
            503 if name.starts_with("kid ") || name.contains("key") || name.contains("called") => later += 1,
            // A head that is larger than the server reads.
            431 if name.contains("huge") || name.contains("larger") => {}
            _ => accepted.push(format!("{name}: {answer:?}")),
        }
    }
    for (name, answer) in ways(&obo, &good, &of_partner).await {
        count += 1;
        match answer.status {
            401 => assert!(answer.challenge.starts_with("Bearer resource_metadata="), "{name}: {answer:?}"),
            400 if name.contains("query") => {
                assert!(answer.challenge.contains("invalid_request"), "{name}: {answer:?}")
            }
            _ => accepted.push(format!("{name}: {answer:?}")),
        }
    }

    // A session is no credential: Bob's token in Alice's session finds none.
    let open = client.post(format!("{}/mcp", obo.base)).header("accept", "application/json, text/event-stream");
    let opened = open.bearer_auth(&good).json(&initialize("2025-11-25")).send().await.unwrap();
    let session = opened.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    let of_bob = RSA.token(&with(&claims, "sub", "bob"));
    for (name, token, expected) in [
        ("another person in the session", Some(&of_bob), 404),
        ("the namesake of another issuer in the session", Some(&of_partner), 404),
        ("nobody in the session", None, 401),
    ] {
        count += 1;
        let request = client.post(format!("{}/mcp", obo.base)).header("mcp-session-id", &session);
        let request = request.header("accept", "application/json, text/event-stream");
        let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
        let answer = Answered::of(request.json(&json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }))).await;
        if answer.status != expected {
            accepted.push(format!("{name}: {answer:?}"));
        }
    }

    println!("{count} cases, {} accepted, {later} of them told to come again", accepted.len());
    assert!(accepted.is_empty(), "{accepted:#?}");
    assert!(count >= 180, "{count}");
    // No key that a token brought along was fetched, and the flood of key ids cost one fetch.
    assert_eq!((idp.strange_requests(), partner.strange_requests()), (vec![], vec![]));
    assert_eq!((idp.fetches(), partner.fetches()), (2, 1));
    // What is harmless is still taken.
    for harmless in [
        RSA.token(&with(&claims, "aud", json!(["https://else.example", claims["aud"]]))),
        RSA.sign(&with(&RSA.header(), "jku", "http://169.254.169.254/"), &claims),
        RSA.sign(&without(&RSA.header(), "typ"), &claims),
        EC.token(&claims),
    ] {
        let request = modern(&obo, "tools/list", json!({})).header("authorization", format!("bearer {harmless}"));
        assert_eq!(Answered::of(request).await.status, 200);
    }
}
