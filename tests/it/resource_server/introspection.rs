//! Opaque tokens: the issuer is asked (RFC 7662), seldom, and never believed about somebody else's.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::idp::{EC, Idp, Introspects, with, without};
use super::{READ, WRITE, call, list};
use crate::support::mcp::link_of;
use crate::support::rest::application;
use crate::support::{Mcp, TestObo};

async fn with_introspection(further: &str) -> (TestObo, Idp) {
    let idp = Idp::start(&[&EC]).await;
    let shop = application("shop", "acme", "");
    let config = format!("[server]\nconsent_wait = \"0s\"\n{shop}{}", idp.introspecting("corp", further));
    (TestObo::builder().config(&config).start().await, idp)
}

/// What the issuer says about a good token.
fn good(idp: &Idp, obo: &TestObo) -> Value {
    let mut claims = idp.claims(obo);
    claims["token_type"] = json!("Bearer");
    claims["client_id"] = json!("some client");
    claims
}

#[tokio::test]
async fn an_opaque_token_is_its_persons_and_the_same_rules_hold() {
    let (obo, idp) = with_introspection(
        "scopes = [\"use\"]\nwrite_scopes = [\"write\"]\ntenant_claim = \"org\"\ntenants = [\"acme\"]",
    )
    .await;
    let claims = with(&with(&good(&idp, &obo), "org", "acme"), "scope", "use");
    idp.issue("opaque", &claims);
    idp.issue("writer", &with(&claims, "scope", "use write"));
    idp.issue("poor", &without(&claims, "scope"));
    idp.issue("stranger", &with(&claims, "org", "globex"));
    idp.issue("a.b.c.d.e", &claims);
    assert_eq!(call(&obo, "opaque", READ).await.status, 200);
    assert_eq!(call(&obo, "opaque", WRITE).await.status, 403);
    assert_eq!(call(&obo, "writer", WRITE).await.status, 200);
    assert_eq!(list(&obo, "poor").await.status, 403);
    assert_eq!(list(&obo, "stranger").await.status, 401);
    assert_eq!(list(&obo, "a.b.c.d.e").await.status, 200, "an encrypted token is opaque, too");
    assert_eq!(list(&obo, "unknown").await.status, 401);
    assert_eq!(idp.asked(), 6, "each once");
    // The same person by a signed token of the same issuer, which nobody is asked about.
    let signed = EC.token(&claims);
    let link = |token: &str| {
        let client = Mcp::new(&obo.base, Some(token.to_owned()));
        async move { link_of(&client.call(READ, json!({})).await).unwrap() }
    };
    assert_eq!(link(&signed).await, link("opaque").await);
    assert_eq!(idp.asked(), 6);
    // What is for others is not asked about: tokens of obo, applications' keys, what is too long.
    for token in ["obo_opaque", "obo_a.b", "shop-key", "oboapp_shop_key", &"x".repeat(20_000)] {
        assert_ne!(list(&obo, token).await.status, 200);
    }
    let named = super::modern(&obo, "tools/list", json!({})).bearer_auth("opaque").header("obo-user", "alice");
    assert_eq!(super::Answered::of(named).await.status, 401);
    assert_eq!(idp.asked(), 6);
}

#[tokio::test]
async fn t18_no_answer_about_another_token_is_good_enough() {
    let (obo, idp) = with_introspection("").await;
    let good = good(&idp, &obo);
    let own = good["aud"].clone();
    let now = good["iat"].as_i64().unwrap();
    let invalid = [
        ("not active", with(&good, "active", false)),
        ("no audience", without(&good, "aud")),
        ("another audience", with(&good, "aud", "https://else.example/mcp")),
        ("our client as audience", with(&good, "aud", super::idp::CLIENT)),
        ("our origin as audience", with(&good, "aud", obo.base.clone())),
        ("no audiences", with(&good, "aud", json!([]))),
        ("other audiences", with(&good, "aud", json!(["a", "b"]))),
        ("an audience in a list in a list", with(&good, "aud", json!([[own]]))),
        ("an audience that is null", with(&good, "aud", Value::Null)),
        ("another issuer", with(&good, "iss", "https://evil.example")),
        ("the issuer with a slash", with(&good, "iss", format!("{}/", idp.url))),
        ("an issuer that is no text", with(&good, "iss", json!([idp.url]))),
        ("no expiry", without(&good, "exp")),
        ("expired", with(&good, "exp", now - 61)),
        ("an expiry that is text", with(&good, "exp", "9999999999")),
        ("an expiry beyond time", with(&good, "exp", 1e300)),
        ("not yet", with(&good, "nbf", now + 61)),
        ("issued in the future", with(&good, "iat", now + 61)),
        ("for DPoP", with(&good, "token_type", "DPoP")),
        ("of a type that is no text", with(&good, "token_type", 1)),
        ("bound to a key", with(&good, "cnf", json!({ "jkt": "x" }))),
        ("bound to a certificate", with(&good, "cnf", json!({ "x5t#S256": "x" }))),
        ("nobody's", without(&good, "sub")),
        ("nobody's, in an empty text", with(&good, "sub", "")),
        ("two people's", with(&good, "sub", json!(["alice", "bob"]))),
    ];
    for (number, (what, answer)) in invalid.iter().enumerate() {
        let token = format!("token-{number}");
        idp.issue(&token, answer);
        let refused = list(&obo, &token).await;
        assert_eq!(refused.status, 401, "{what}: {refused:?}");
        assert!(refused.challenge.contains("invalid_token"), "{what}: {refused:?}");
    }
    // What is no answer is no refusal either: it could not be checked.
    let text = |change: &dyn Fn(&Value) -> String| Introspects::Text(change(&with(&good, "active", true)));
    let unavailable = [
        ("not saying whether it is active", Introspects::Text(good.to_string())),
        ("active in words", text(&|good| with(good, "active", "true").to_string())),
        ("active by a number", text(&|good| with(good, "active", 1).to_string())),
        ("a list", text(&|good| json!([good]).to_string())),
        ("not JSON", Introspects::Text("active".to_owned())),
        ("two people in one answer", text(&|good| good.to_string().replacen('{', "{\"sub\":\"bob\",", 1))),
        ("larger than is read", text(&|good| with(good, "x", "x".repeat(64 << 10)).to_string())),
        ("our client refused", Introspects::Status(401)),
        ("our client forbidden", Introspects::Status(403)),
        ("a redirect", Introspects::Status(302)),
        ("an error", Introspects::Status(500)),
        ("nothing there", Introspects::Status(404)),
        ("no content", Introspects::Status(204)),
    ];
    for (number, (what, how)) in unavailable.into_iter().enumerate() {
        idp.introspects(how);
        let unknown = list(&obo, &format!("unavailable-{number}")).await;
        assert_eq!((unknown.status, unknown.retry_after.as_deref()), (503, Some("5")), "{what}: {unknown:?}");
    }
    idp.introspects(Introspects::Truly);
    idp.issue("control", &good);
    assert_eq!(list(&obo, "control").await.status, 200);
    // That it could not be asked is not remembered of a token.
    idp.issue("unavailable-7", &good);
    assert_eq!(list(&obo, "unavailable-7").await.status, 200);
}

#[tokio::test]
async fn a_revoked_token_works_for_a_minute_at_most() {
    let (obo, idp) = with_introspection("").await;
    let claims = good(&idp, &obo);
    idp.issue("opaque", &claims);
    for _ in 0..5 {
        assert_eq!(list(&obo, "opaque").await.status, 200);
    }
    assert_eq!(idp.asked(), 1, "a good answer is remembered");
    idp.revoke("opaque");
    obo.clock.advance(Duration::from_secs(59));
    assert_eq!(list(&obo, "opaque").await.status, 200);
    obo.clock.advance(Duration::from_secs(1));
    assert_eq!(list(&obo, "opaque").await.status, 401);
    assert_eq!(idp.asked(), 2);
    // A refusal is remembered for five seconds, and no longer: the issuer may have been late.
    assert_eq!(list(&obo, "opaque").await.status, 401);
    assert_eq!(idp.asked(), 2);
    idp.issue("opaque", &claims);
    obo.clock.advance(Duration::from_secs(5));
    assert_eq!(list(&obo, "opaque").await.status, 200);
    assert_eq!(idp.asked(), 3);
    // Never beyond its expiry, and the leeway is the clock's, not the cache's.
    let now = claims["iat"].as_i64().unwrap() + 65;
    idp.issue("short", &with(&claims, "exp", now + 10));
    assert_eq!(list(&obo, "short").await.status, 200);
    obo.clock.advance(Duration::from_secs(10));
    assert_eq!(list(&obo, "short").await.status, 200);
    assert_eq!(idp.asked(), 5, "asked again at its expiry");
    obo.clock.advance(Duration::from_secs(61));
    assert_eq!(list(&obo, "short").await.status, 401);
}

#[tokio::test]
async fn an_issuer_that_hangs_is_asked_sixteen_questions_at_once() {
    let (obo, idp) = with_introspection("").await;
    let (open, gate) = watch::channel(false);
    let claims = good(&idp, &obo);
    idp.issue("known", &claims);
    assert_eq!(list(&obo, "known").await.status, 200);
    idp.introspects(Introspects::Held(gate));
    let held: Vec<_> = (0..16)
        .map(|number| {
            let token = format!("held-{number}");
            idp.issue(&token, &claims);
            let request = super::modern(&obo, "tools/list", json!({})).bearer_auth(token);
            tokio::spawn(super::Answered::of(request))
        })
        .collect();
    idp.was_asked(17).await;
    // One more waits for a while, and is told to come again. Who is known, or signed for, waits for nothing.
    let more = list(&obo, "one-more").await;
    assert_eq!((more.status, more.retry_after.as_deref()), (503, Some("5")));
    assert_eq!(idp.asked(), 17);
    assert_eq!(list(&obo, "known").await.status, 200);
    assert_eq!(list(&obo, &EC.token(&claims)).await.status, 200);
    open.send(true).unwrap();
    for answer in held {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    // Many with one token: it is asked about by those who are let through at once, and by nobody else.
    idp.introspects(Introspects::Truly);
    idp.issue("shared", &claims);
    let many = futures::future::join_all((0..200).map(|_| list(&obo, "shared"))).await;
    assert!(many.iter().all(|answer| answer.status == 200));
    assert!(idp.asked() <= 17 + 16, "{}", idp.asked());
}

#[tokio::test]
async fn the_place_to_ask_comes_from_the_issuers_document_and_is_safe() {
    for endpoint in [
        None,
        Some("http://idp.example.com/introspect"),
        Some("https://10.0.0.1/introspect"),
        Some("file:///etc/passwd"),
        Some(""),
    ] {
        let (obo, idp) = with_introspection("").await;
        idp.issue("opaque", &good(&idp, &obo));
        idp.announce(endpoint);
        assert_eq!(list(&obo, "opaque").await.status, 503, "{endpoint:?}");
        assert_eq!(idp.asked(), 0, "{endpoint:?}");
        // Mended, it is found as soon as a failure is forgotten.
        idp.announce(Some(&format!("{}/introspect", idp.url)));
        obo.clock.advance(Duration::from_secs(600));
        assert_eq!(list(&obo, "opaque").await.status, 401, "by now it has expired");
        idp.issue("another", &good(&idp, &obo));
        assert_eq!(list(&obo, "another").await.status, 200, "{endpoint:?}");
    }
}

#[tokio::test]
async fn without_introspection_an_opaque_token_is_nobodys() {
    let (obo, idp) = super::with_issuer("").await;
    idp.issue("opaque", &good(&idp, &obo));
    assert_eq!(list(&obo, "opaque").await.status, 401);
    assert_eq!((idp.asked(), idp.fetches()), (0, 0));
}
