//! Browsers that obo cannot ask whose they are: what they bring back counts once it is confirmed.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use obo::clock::{Clock as _, ManualClock};
use obo::consent::{Typed, Wish};
use obo::id::Person;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::support::issuer::Issuer;
use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::program::Program;
use crate::support::rest::application;
use crate::support::{Browser, Mcp, Rest, TestObo, browser, mail};

const SEND: &str = "Google_SendEmail";
const VERIFIER: &str =
    "user_verifier_url = \"http://127.0.0.1:9/verify?from=obo\"\nnext_uris = [\"http://127.0.0.1:9/done\"]";

/// Two applications of one tenant that confirm their users themselves.
async fn with_verifier() -> TestObo {
    let tables = application("shop", "acme", VERIFIER) + &application("other", "acme", VERIFIER);
    TestObo::builder().config(&tables).start().await
}

/// Opens a link, presses the button, and consents as `account`: where the browser comes back.
async fn consent(obo: &TestObo, browser: &mut Browser, link: &str, account: &str) -> browser::Page {
    let page = browser.get(link).await;
    assert_eq!(page.status, 200, "{}", page.text);
    let pressed = browser.submit(&page, &[]).await;
    let back = obo.provider.consent(&pressed.location.unwrap_or_else(|| panic!("{}", pressed.text)), account).await;
    browser.get(&back.unwrap()).await
}

/// The flow id that the application's page was opened with.
fn flow_id(page: &browser::Page) -> String {
    assert_eq!(page.status, 303, "{}", page.text);
    let url = url::Url::parse(page.location.as_deref().unwrap()).unwrap();
    assert!(url.as_str().starts_with("http://127.0.0.1:9/verify?from=obo&flow_id="), "{url}");
    url.query_pairs().find(|(key, _)| key == "flow_id").unwrap().1.into_owned()
}

/// A call of an application's user over MCP.
async fn call(obo: &TestObo, application: &str, user: &str) -> serde_json::Value {
    let client = Mcp::new(&obo.base, Some(format!("{application}-key"))).for_user(user);
    client.call(SEND, mail("bob@example.com", "x")).await
}

#[tokio::test]
async fn an_application_confirms_its_user_and_only_then_the_code_is_exchanged() {
    let obo = with_verifier().await;
    let shop = Rest::of(&obo.base, "shop");
    let started = shop.start("u1", Some("http://127.0.0.1:9/done?order=7")).await;
    assert_eq!(started["status"], "pending");
    let id = started["id"].as_str().unwrap();
    let mut browser = Browser::new();
    let asked = browser.get(started["url"].as_str().unwrap()).await;
    assert!(asked.text.contains("u1 (app:shop, acme)") && asked.text.contains("http://127.0.0.1:9"), "{}", asked.text);
    let page = consent(&obo, &mut browser, started["url"].as_str().unwrap(), "alice@example.com").await;
    let ticket = flow_id(&page);
    assert_eq!(obo.provider.token_requests(), 0);
    let (status, answer) = shop.get(&format!("/v1/auth/status?id={id}")).await;
    assert_eq!((status, &answer["status"]), (200, &json!("pending")));

    // Whoever waits is told at once.
    let waiting = tokio::spawn({
        let (shop, path) = (Rest::of(&obo.base, "shop"), format!("/v1/auth/status?id={id}&wait=59"));
        async move { shop.get(&path).await }
    });
    let (status, answer) = shop.post("/v1/auth/confirm_user", &json!({ "flow_id": ticket, "user_id": "u1" })).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer, json!({ "auth_id": id, "next_uri": "http://127.0.0.1:9/done?order=7" }));
    let (status, answer) = waiting.await.unwrap();
    assert_eq!((status, &answer["status"]), (200, &json!("completed")), "{answer}");
    assert_eq!(obo.provider.token_requests(), 1);
    value_of(&call(&obo, "shop", "u1").await);
    assert_eq!(obo.provider.log().last().unwrap().user.as_deref(), Some("alice@example.com"));

    // It is spent; and there is no need for another link.
    let (status, _) = shop.post("/v1/auth/confirm_user", &json!({ "flow_id": ticket, "user_id": "u1" })).await;
    assert_eq!(status, 404);
    assert_eq!(shop.start("u1", None).await["status"], "completed");
    // The same id of another application is somebody else.
    assert!(link_of(&call(&obo, "other", "u1").await).is_some());
}

#[tokio::test]
async fn t1_another_user_of_the_application_ends_the_flow_and_nothing_is_exchanged() {
    let obo = with_verifier().await;
    let shop = Rest::of(&obo.base, "shop");
    let started = shop.start("mallory", None).await;
    let link = started["url"].as_str().unwrap();
    // Mallory sends the link to Alice, who consents in her browser.
    let page = consent(&obo, &mut Browser::new(), link, "alice@example.com").await;
    let ticket = flow_id(&page);
    // Mallory knows the link and its id, but not the id that Alice's browser was sent to the application with.
    let own_id = started["id"].as_str().unwrap();
    let mut bent = ticket.clone();
    bent.replace_range(80..81, if &ticket[80..81] == "A" { "B" } else { "A" });
    for guess in [own_id, "", "x", &ticket[..85], &bent, &format!("{ticket}A")] {
        let (status, answer) =
            shop.post("/v1/auth/confirm_user", &json!({ "flow_id": guess, "user_id": "mallory" })).await;
        assert_eq!(status, 404, "{guess}: {answer}");
    }
    // Another application, whatever it says, does not have it; nor does a code in its place.
    let other = Rest::of(&obo.base, "other");
    let (status, _) = other.post("/v1/auth/confirm_user", &json!({ "flow_id": ticket, "user_id": "mallory" })).await;
    assert_eq!(status, 404);
    let (status, _) = shop.post("/v1/auth/confirm_user", &json!({ "code": "BCDF-GHJK", "user_id": "mallory" })).await;
    assert_eq!(status, 404);

    let (status, answer) = shop.post("/v1/auth/confirm_user", &json!({ "flow_id": ticket, "user_id": "alice" })).await;
    assert_eq!((status, &answer["error"]), (400, &json!("user_mismatch")));
    let (status, answer) = shop.get(&format!("/v1/auth/status?id={own_id}")).await;
    assert_eq!((status, &answer["error"]), (410, &json!("authorization_failed")), "{answer}");
    let (status, _) = shop.post("/v1/auth/confirm_user", &json!({ "flow_id": ticket, "user_id": "mallory" })).await;
    assert_eq!(status, 404, "it is over");
    assert_eq!(obo.provider.token_requests(), 0);
    assert!(link_of(&call(&obo, "shop", "mallory").await).is_some());
    // And can be started again at once.
    assert_ne!(shop.start("mallory", None).await["id"].as_str(), Some(own_id));
}

#[tokio::test]
async fn an_unconfirmed_consent_is_good_for_five_minutes_and_a_new_press_replaces_it() {
    let obo = with_verifier().await;
    let shop = Rest::of(&obo.base, "shop");
    let started = shop.start("u1", None).await;
    let link = started["url"].as_str().unwrap();
    let mut browser = Browser::new();
    let first = flow_id(&consent(&obo, &mut browser, link, "alice@example.com").await);
    let second = flow_id(&consent(&obo, &mut browser, link, "alice@example.com").await);
    let confirm =
        async |ticket: &str| shop.post("/v1/auth/confirm_user", &json!({ "flow_id": ticket, "user_id": "u1" })).await.0;
    assert_eq!(confirm(&first).await, 404);
    obo.clock.advance(Duration::from_secs(300));
    assert_eq!(confirm(&second).await, 404);
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn whoever_is_at_the_provider_when_the_link_expires_still_gets_connected() {
    let obo = with_verifier().await;
    let shop = Rest::of(&obo.base, "shop");
    let started = shop.start("u1", None).await;
    let path = format!("/v1/auth/status?id={}", started["id"].as_str().unwrap());
    let mut browser = Browser::new();
    obo.clock.advance(Duration::from_secs(590));
    let page = browser.get(started["url"].as_str().unwrap()).await;
    let pressed = browser.submit(&page, &[]).await;
    let back = obo.provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    obo.clock.advance(Duration::from_secs(20));
    let (status, answer) = shop.get(&path).await;
    assert_eq!((status, &answer["status"]), (200, &json!("pending")), "{answer}");
    // Nobody can set out by that link any more: whoever asks gets another one.
    let again = shop.start("u1", None).await;
    assert!(again["id"] != started["id"] && again["status"] == "pending", "{again}");
    let ticket = flow_id(&browser.get(&back).await);
    obo.clock.advance(Duration::from_secs(299));
    let (status, answer) = shop.post("/v1/auth/confirm_user", &json!({ "flow_id": ticket, "user_id": "u1" })).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(shop.get(&path).await.1["status"], "completed");
}

#[tokio::test]
async fn t7_a_browser_is_sent_on_to_listed_addresses_only() {
    let obo = with_verifier().await;
    let shop = Rest::of(&obo.base, "shop");
    for uri in [
        "https://evil.example/",
        "//evil.example/done",
        "/done",
        "http://127.0.0.1:9/done/",
        "http://127.0.0.1:9/done/../done",
        "http://127.0.0.1:9/./done",
        "http://127.0.0.1:9/%64one",
        "http://127.0.0.1:9/done%0d%0a",
        "http://127.0.0.1:9/done\r\nSet-Cookie: x=y",
        "http://127.0.0.1:9/done\t",
        " http://127.0.0.1:9/done",
        "http://127.0.0.1:9\\@evil.example/done",
        "http://evil.example\\@127.0.0.1:9/done",
        "http://127.0.0.1:9@evil.example/done",
        "http://user@127.0.0.1:9/done",
        "http://:pass@127.0.0.1:9/done",
        "http://127.0.0.1:99/done",
        "http://127.0.0.1/done",
        "http://127.0.0.1:9.evil.example/done",
        "http://localhost:9/done",
        "http://[::1]:9/done",
        "http://127.0.0.1:9/done#fragment",
        "http://127.0.0.1:9/DONE",
        "http://127.0.0.1:9//done",
        "http:127.0.0.1:9/done/x",
        "https://127.0.0.1:9/done",
        "ftp://127.0.0.1:9/done",
        "javascript:alert(1)",
        "JaVaScRiPt://127.0.0.1:9/done",
        "data:text/html,<script>1</script>",
        "vbscript:x",
        "file:///done",
        "blob:http://127.0.0.1:9/done",
        "view-source:http://127.0.0.1:9/done",
        "http://127.0.0.1:9/done;x",
        "http://127.0.0.1:9/done\u{2044}",
        "http://127.0.0.1:9/d\u{043e}ne",
        "http://\u{ff11}27.0.0.1:9/elsewhere",
        "",
        "?",
        "#",
    ] {
        let body = json!({
            "auth_requirement": { "provider_id": "google" }, "user_id": "u1", "next_uri": uri,
        });
        let (status, answer) = shop.post("/v1/auth/authorize", &body).await;
        assert_eq!((status, &answer["error"]), (400, &json!("next_uri_not_allowed")), "{uri:?}: {answer}");
    }
    let (status, _) = shop
        .post("/v1/auth/authorize", &json!({
            "auth_requirement": { "provider_id": "google" }, "user_id": "u1", "next_uri": "http://127.0.0.1:9/done?to=//evil.example",
        }))
        .await;
    assert_eq!(status, 200);
}

/// An application of a tenant with one issuer, `corp`, at which its users sign in.
async fn with_tenant_issuer() -> (TestObo, Issuer) {
    let clock = Arc::new(std::sync::OnceLock::<Arc<ManualClock>>::new());
    let time = Arc::clone(&clock);
    let issuer = Issuer::start(move || time.get().unwrap().now().as_second()).await;
    let tables = issuer.table("corp", "tenant = \"acme\"")
        + &application("shop", "acme", "next_uris = [\"http://127.0.0.1:9/done\"]")
        + &application("lone", "elsewhere", "");
    let obo = TestObo::builder().config(&tables).start().await;
    clock.set(Arc::clone(&obo.clock)).unwrap();
    (obo, issuer)
}

async fn sign_in(browser: &mut Browser, issuer: &Issuer, link: &str, user: &str) {
    let page = browser.get(link).await;
    assert!(page.text.contains("Sign in with corp") && !page.text.contains("shop"), "{}", page.text);
    let sent = browser.submit(&page, &[]).await;
    let back = issuer.sign_in(&sent.location.unwrap(), user);
    assert_eq!(browser.get(&back).await.status, 303);
}

#[tokio::test]
async fn an_applications_user_signs_in_at_the_tenants_issuer_and_stays_their_own_person() {
    let (obo, issuer) = with_tenant_issuer().await;
    let shop = Rest::of(&obo.base, "shop");
    let started = shop.start("alice", Some("http://127.0.0.1:9/done")).await;
    let link = started["url"].as_str().unwrap();

    // Somebody else of the issuer, and somebody of the same name with a token of obo.
    let mut bob = Browser::new();
    sign_in(&mut bob, &issuer, link, "bob").await;
    assert_eq!(bob.get(link).await.status, 403);
    let mut token = Browser::new();
    let page = token.get(&format!("{}/account?with=obo", obo.base)).await;
    token.submit(&page, &[("token", &obo.token_in("acme", "alice").await)]).await;
    assert_eq!(token.get(link).await.status, 403);

    let mut alice = Browser::new();
    sign_in(&mut alice, &issuer, link, "alice").await;
    let done = consent(&obo, &mut alice, link, "alice@example.com").await;
    assert_eq!((done.status, done.location.as_deref()), (303, Some("http://127.0.0.1:9/done")), "{}", done.text);
    let (status, answer) = shop.get(&format!("/v1/auth/status?id={}", started["id"].as_str().unwrap())).await;
    assert_eq!((status, &answer["status"]), (200, &json!("completed")));
    value_of(&call(&obo, "shop", "alice").await);

    // The browser was proven; the two people are two.
    let own = Mcp::new(&obo.base, Some(issuer.access_token("alice", &format!("{}/mcp", obo.base))));
    assert!(link_of(&own.call(SEND, mail("bob@example.com", "x")).await).is_some());
    let account = alice.get(&format!("{}/account", obo.base)).await;
    assert!(account.text.contains("alice (corp, acme)"), "{}", account.text);
    // She sees what the application has of her, as the application's, and can end it; another person cannot.
    assert!(account.text.contains("<dd>shop, which acts with it"), "{}", account.text);
    let theirs = bob.get(&format!("{}/account", obo.base)).await;
    assert!(!theirs.text.contains("alice@example.com"), "{}", theirs.text);
    let ended = alice.submit(&account, &[]).await;
    assert!(ended.text.contains("Disconnected"), "{}", ended.text);
    assert!(link_of(&call(&obo, "shop", "alice").await).is_some());
}

#[tokio::test]
async fn without_any_proof_there_is_no_link_and_the_keys_to_set_are_named() {
    let (obo, _issuer) = with_tenant_issuer().await;
    let lone = Rest::of(&obo.base, "lone");
    let body = json!({ "auth_requirement": { "provider_id": "google" }, "user_id": "u1" });
    let (status, answer) = lone.post("/v1/auth/authorize", &body).await;
    assert_eq!(status, 400, "{answer}");
    for key in ["user_verifier_url", "confirm_by_code", "client_id"] {
        assert!(answer["msg"].as_str().unwrap().contains(key), "{answer}");
    }
    let refused = call(&obo, "lone", "u1").await;
    assert_eq!(code_of(&refused).as_deref(), Some("authorization_required"));
    assert!(link_of(&refused).is_none());
}

/// The code that a page shows.
fn code_on(page: &browser::Page) -> String {
    assert_eq!(page.status, 200, "{}", page.text);
    assert_eq!(page.forms_and_buttons(), (1, 1));
    let at = page.text.find("<p class=\"code\"><code>").unwrap_or_else(|| panic!("{}", page.text)) + 22;
    page.text[at..at + 9].to_owned()
}

async fn with_codes() -> TestObo {
    let tables =
        application("bot", "acme", "confirm_by_code = true") + &application("other", "acme", "confirm_by_code = true");
    TestObo::builder().config(&tables).start().await
}

#[tokio::test]
async fn a_code_that_only_the_browser_was_shown_confirms_the_consent() {
    let obo = with_codes().await;
    let bot = Rest::of(&obo.base, "bot");
    let asked = call(&obo, "bot", "u1").await;
    assert!(asked.to_string().contains("ends with a code"), "{asked}");
    let link = link_of(&asked).unwrap();
    let mut browser = Browser::new();
    let ask = browser.get(&link).await;
    assert!(ask.text.contains("If somebody else sent you the link, do not go on"), "{}", ask.text);
    let page = consent(&obo, &mut browser, &link, "alice@example.com").await;
    let code = code_on(&page);
    assert!(
        page.text.contains("Give this code to nobody else") && page.text.contains("u1 (app:bot, acme)"),
        "{}",
        page.text
    );
    assert_eq!(obo.provider.token_requests(), 0);

    let confirm = async |rest: &Rest, user: &str, code: &str| {
        rest.post("/v1/auth/confirm_user", &json!({ "user_id": user, "code": code })).await
    };
    // Another user, another application: for them no link waits for a code.
    assert_eq!(confirm(&bot, "u2", &code).await.0, 404);
    assert_eq!(confirm(&Rest::of(&obo.base, "other"), "u1", &code).await.0, 404);
    let wrong = if code == "BCDF-GHJK" { "BCDF-GHJL" } else { "BCDF-GHJK" };
    let (status, answer) = confirm(&bot, "u1", wrong).await;
    assert_eq!((status, &answer["error"]), (400, &json!("invalid_arguments")), "{answer}");
    assert_eq!(obo.provider.token_requests(), 0);

    let (status, answer) = confirm(&bot, "u1", &code.to_lowercase().replace('-', " ")).await;
    assert_eq!(status, 200, "{answer}");
    value_of(&call(&obo, "bot", "u1").await);
    assert_eq!(confirm(&bot, "u1", &code).await.0, 404, "it is spent");
}

#[tokio::test]
async fn t1_five_wrong_codes_end_the_link_however_many_come_at_once() {
    let obo = with_codes().await;
    let bot = Arc::new(Rest::of(&obo.base, "bot"));
    let link = link_of(&call(&obo, "bot", "mallory").await).unwrap();
    let page = consent(&obo, &mut Browser::new(), &link, "alice@example.com").await;
    let code = code_on(&page);
    let guesses = (0..50).map(|n| {
        let bot = Arc::clone(&bot);
        let letters = ["BCDF-GHJ", "BCDF-GHK", "BCDF-GHL"][n % 3];
        let guess = format!("{letters}{}", char::from(b"BCDFGHJKLMNPQRSTVWXZ"[n % 20]));
        async move { bot.post("/v1/auth/confirm_user", &json!({ "user_id": "mallory", "code": guess })).await.0 }
    });
    let answers = futures::future::join_all(guesses).await;
    assert_eq!(answers.iter().filter(|status| **status == 400).count(), 5, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 404).count(), 45, "{answers:?}");
    let (status, _) = bot.post("/v1/auth/confirm_user", &json!({ "user_id": "mallory", "code": code })).await;
    assert_eq!(status, 404, "the right one comes too late");
    assert_eq!(obo.provider.token_requests(), 0);
    // The link is over, and the next call gives a new one.
    assert_eq!(Browser::new().get(&link).await.status, 410);
    assert_ne!(link_of(&call(&obo, "bot", "mallory").await).unwrap(), link);
}

#[tokio::test]
async fn right_codes_cost_other_links_nothing() {
    let obo = with_codes().await;
    let person =
        Person { tenant: "acme".parse().unwrap(), source: "app:bot".parse().unwrap(), user: "u1".parse().unwrap() };
    let (app, consents) = (&obo.app, obo.app.obo.consent());
    let code_for = async |provider: &str, account: &str| {
        let provider = app.catalog.provider(provider).unwrap();
        let api = app.catalog.tools().filter_map(|tool| tool.api()).find(|api| api.provider.id == provider.id).unwrap();
        let scopes = api.scopes_any_of[0].iter().cloned().collect();
        let link = consents.connect(Wish::new(&person, provider, scopes, "test")).await.unwrap();
        code_on(&consent(&obo, &mut Browser::new(), link.url.as_str(), account).await)
    };
    let first = code_for("slack", "alice").await;
    for _ in 0..8 {
        let code = code_for("google", "alice@example.com").await;
        assert!(consents.confirm_code(&person, &code, &Typed::InApplication, "test").await.is_ok());
    }
    // A client's code is for the provider it names.
    assert!(consents.confirm_code(&person, &first, &Typed::InClient("google"), "test").await.is_err());
    assert!(consents.confirm_code(&person, &first, &Typed::InClient("slack"), "test").await.is_ok());
    let notes = app.audit.read(|r| r.note.as_deref() == Some("consent.code_wrong")).await.unwrap();
    assert!(notes.is_empty(), "{notes:?}");
}

#[tokio::test]
async fn t1_whoever_was_sent_a_link_can_throw_their_consent_away() {
    let obo = with_codes().await;
    let link = link_of(&call(&obo, "bot", "mallory").await).unwrap();
    let mut alice = Browser::new();
    let page = consent(&obo, &mut alice, &link, "alice@example.com").await;
    let code = code_on(&page);
    // Only in her browser.
    let mut other = Browser::new();
    let opened = other.get(&link).await;
    assert_eq!(other.submit_step(&opened, "disown").await.status, 410);
    let thrown = alice.submit(&page, &[]).await;
    assert!(thrown.status == 200 && thrown.text.contains("Nothing was connected"), "{}", thrown.text);
    let bot = Rest::of(&obo.base, "bot");
    let (status, _) = bot.post("/v1/auth/confirm_user", &json!({ "user_id": "mallory", "code": code })).await;
    assert_eq!(status, 404);
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn people_of_an_issuer_without_sign_in_finish_with_a_code_too() {
    let clock = Arc::new(std::sync::OnceLock::<Arc<ManualClock>>::new());
    let time = Arc::clone(&clock);
    let issuer = Issuer::start(move || time.get().unwrap().now().as_second()).await;
    let table = format!("[[identity.issuer]]\nname = \"corp\"\nissuer = {:?}\n", issuer.url);
    let obo = TestObo::builder().config(&table).start().await;
    clock.set(Arc::clone(&obo.clock)).unwrap();
    let client = Mcp::new(&obo.base, Some(issuer.access_token("alice", &format!("{}/mcp", obo.base))));
    let link = link_of(&client.call(SEND, mail("bob@example.com", "x")).await).unwrap();
    assert!(!Browser::new().get(&link).await.text.contains("alice@example.com"));
    let page = consent(&obo, &mut Browser::new(), &link, "alice@example.com").await;
    let code = code_on(&page);
    assert_eq!(obo.provider.token_requests(), 0);

    // Typed back to the agent, which passes it on: by her own only.
    let connect = json!({ "provider": "google", "code": code });
    let bob = Mcp::new(&obo.base, Some(issuer.access_token("bob", &format!("{}/mcp", obo.base))));
    assert_eq!(code_of(&bob.call("Obo_Connect", connect.clone()).await).as_deref(), Some("not_found"));
    let namesake = obo.client("alice").await;
    assert_eq!(code_of(&namesake.call("Obo_Connect", connect.clone()).await).as_deref(), Some("not_found"));
    let wrong = json!({ "provider": "google", "code": "nonsense" });
    assert_eq!(code_of(&client.call("Obo_Connect", wrong).await).as_deref(), Some("invalid_arguments"));
    assert_eq!(obo.provider.token_requests(), 0);
    let done = value_of(&client.call("Obo_Connect", connect).await);
    assert_eq!((&done["status"], &done["account"]), (&json!("connected"), &json!("alice@example.com")), "{done}");
    value_of(&client.call(SEND, mail("bob@example.com", "x")).await);
}

#[tokio::test]
async fn a_code_that_nobody_could_take_is_not_promised() {
    let issuer = Issuer::start(|| 1_795_507_200).await;
    let table =
        format!("[[identity.issuer]]\nname = \"corp\"\nissuer = {:?}\n[tools]\nenable = [\"Google.*\"]\n", issuer.url);
    let obo = TestObo::builder().config(&table).start().await;
    let client = Mcp::new(&obo.base, Some(issuer.access_token("alice", &format!("{}/mcp", obo.base))));
    let refused = client.call(SEND, mail("bob@example.com", "x")).await;
    assert!(link_of(&refused).is_none(), "{refused}");
    assert!(refused.to_string().contains("client_id") && refused.to_string().contains("Obo.Connect"), "{refused}");
}

#[tokio::test]
async fn a_terminal_without_a_browser_types_the_code_back() {
    let (program, provider) = Program::with_provider("").await;
    // Nobody serves pages that another machine could reach.
    let alone = program.run(&["connect", "google", "--headless"]).await;
    assert_eq!(alone.code, 1, "{}", alone.stderr);
    assert!(alone.stderr.contains("obo serve") && alone.stderr.contains("ssh -L"), "{}", alone.stderr);

    let mut server = program.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
    while !log.next_line().await.unwrap().unwrap().contains("listening") {}
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });

    let mut connect = program
        .command(&["connect", "google", "--headless", "--user", "alice"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(connect.stdout.take().unwrap()).lines();
    let mut stderr = BufReader::new(connect.stderr.take().unwrap()).lines();
    let mut stdin = connect.stdin.take().unwrap();
    let link = stdout.next_line().await.unwrap().unwrap();
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    let pressed = browser.submit(&page, &[]).await;
    let back = provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    let code = code_on(&browser.get(&back).await);
    // The terminal gave the link out, and the terminal takes the code: a client of the same person does not.
    let token = program.run(&["token", "issue", "--user", "alice"]).await.stdout.trim().to_owned();
    let client = Mcp::new(&format!("http://127.0.0.1:{}", program.port), Some(token));
    let elsewhere = client.call("Obo_Connect", json!({ "provider": "google", "code": code })).await;
    assert_eq!(code_of(&elsewhere).as_deref(), Some("not_found"), "{elsewhere}");
    stdin.write_all(b"nonsense\n").await.unwrap();
    while !stderr.next_line().await.unwrap().unwrap().contains("a code has eight letters") {}
    stdin.write_all(format!("{code}\n").as_bytes()).await.unwrap();
    assert_eq!(stdout.next_line().await.unwrap().unwrap(), "Google is connected as alice@example.com.");
    assert!(connect.wait().await.unwrap().success());
    let connections = program.run(&["connections", "--user", "alice"]).await;
    assert!(connections.stdout.contains("alice@example.com"), "{}", connections.stdout);
}

#[tokio::test]
async fn rest_refuses_in_the_shape_that_its_clients_read() {
    let obo = with_verifier().await;
    let shop = Rest::of(&obo.base, "shop");
    let authorize = "/v1/auth/authorize";
    let google = json!({ "provider_id": "google" });
    for (body, error) in [
        (json!({}), "bad_request"),
        (json!([]), "bad_request"),
        (json!({ "auth_requirement": google }), "bad_request"),
        (json!({ "auth_requirement": google, "user_id": "" }), "bad_request"),
        (json!({ "auth_requirement": google, "user_id": " u1" }), "bad_request"),
        (json!({ "auth_requirement": google, "user_id": "u".repeat(256) }), "bad_request"),
        (json!({ "auth_requirement": {}, "user_id": "u1" }), "bad_request"),
        (json!({ "auth_requirement": { "provider_id": "nowhere" }, "user_id": "u1" }), "bad_request"),
        (
            json!({ "auth_requirement": { "provider_id": "google", "provider_type": "saml" }, "user_id": "u1" }),
            "bad_request",
        ),
        (
            json!({ "auth_requirement": { "provider_id": "google", "oauth2": { "scopes": ["a b"] } }, "user_id": "u1" }),
            "bad_request",
        ),
        (
            json!({ "auth_requirement": { "provider_id": "google", "oauth2": { "scopes": vec!["a"; 101] } }, "user_id": "u1" }),
            "bad_request",
        ),
    ] {
        let (status, answer) = shop.post(authorize, &body).await;
        assert_eq!((status, &answer["error"], &answer["code"]), (400, &json!(error), &json!(400)), "{body}: {answer}");
        assert!(answer["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{answer}");
    }
    let (status, answer) = shop.post(authorize, &json!({ "x": "y".repeat(32 << 20) })).await;
    assert_eq!((status, &answer["error"]), (413, &json!("too_large")));
    for bad in ["", "nonsense", "shop-key2", "obo_x", "Basic shop-key"] {
        let (status, answer) = Rest::with_key(&obo.base, bad).post(authorize, &json!({})).await;
        assert_eq!((status, &answer["error"]), (401, &json!("unauthorized")), "{bad:?}");
    }
    // A user in a header that counts elsewhere must not be overlooked here.
    let (status, answer) = shop.get_as("u1", "/v1/auth/status?id=x").await;
    assert_eq!((status, &answer["error"]), (400, &json!("bad_request")));
    // A person's token is not an application's key.
    let (status, _) = Rest::with_key(&obo.base, &obo.token_for("alice").await).post(authorize, &json!({})).await;
    assert_eq!(status, 401);
    for (path, status) in [
        ("/v1/auth/status", 400),
        ("/v1/auth/status?id=x", 404),
        ("/v1/auth/status?id=x&wait=soon", 400),
        ("/v1/auth/status?id=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA&wait=59", 404),
        ("/v1/nothing", 404),
        ("/v1/auth/authorize", 405),
    ] {
        assert_eq!(shop.get(path).await.0, status, "{path}");
    }
    let (status, answer) = shop.get("/v1/health").await;
    assert_eq!((status, answer), (200, json!({ "healthy": true })));
    // Another application's flow does not exist.
    let started = shop.start("u1", None).await;
    let path = format!("/v1/auth/status?id={}", started["id"].as_str().unwrap());
    assert_eq!(shop.get(&path).await.0, 200);
    assert_eq!(Rest::of(&obo.base, "other").get(&path).await.0, 404);
    // An expired one is gone, and can be started again at once.
    obo.clock.advance(Duration::from_secs(600));
    assert_eq!(shop.get(&path).await.0, 410);
    assert_eq!(shop.start("u1", None).await["status"], "pending");
}
