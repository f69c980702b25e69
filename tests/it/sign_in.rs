//! People of an identity provider: who they are on every request, and in the browser.

use std::sync::Arc;
use std::time::Duration;

use obo::clock::{Clock as _, ManualClock};

use crate::support::issuer::{Issuer, Wrong};
use crate::support::mcp::{link_of, value_of};
use crate::support::{Browser, Mcp, TestObo, browser, mail};

const SEND: &str = "Google_SendEmail";

/// An obo whose people are those of one issuer, `corp`.
async fn with_issuer() -> (TestObo, Issuer) {
    let clock = Arc::new(std::sync::OnceLock::<Arc<ManualClock>>::new());
    let time = Arc::clone(&clock);
    let issuer = Issuer::start(move || time.get().unwrap().now().as_second()).await;
    let obo = TestObo::builder().config(&issuer.table("corp", "")).start().await;
    clock.set(Arc::clone(&obo.clock)).unwrap();
    (obo, issuer)
}

fn client(obo: &TestObo, issuer: &Issuer, user: &str) -> Mcp {
    Mcp::new(&obo.base, Some(issuer.access_token(user, &format!("{}/mcp", obo.base))))
}

async fn link_for(obo: &TestObo, issuer: &Issuer, user: &str) -> String {
    let answer = client(obo, issuer, user).call(SEND, mail("bob@example.com", "x")).await;
    link_of(&answer).unwrap_or_else(|| panic!("{answer}"))
}

/// Presses "Sign in with corp" and signs `user` in there: the page that the browser then comes back to.
async fn sign_in(browser: &mut Browser, issuer: &Issuer, url: &str, user: &str) -> browser::Page {
    let page = browser.get(url).await;
    assert_eq!(page.forms_and_buttons(), (1, 1), "{}", page.text);
    let sent = browser.submit(&page, &[]).await;
    assert_eq!(sent.status, 303, "{}", sent.text);
    let back = issuer.sign_in(&sent.location.unwrap(), user);
    browser.get(&back).await
}

#[tokio::test]
async fn a_person_signs_in_at_their_own_provider_and_connects() {
    let (obo, issuer) = with_issuer().await;
    let link = link_for(&obo, &issuer, "alice").await;
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    assert!(page.text.contains("Sign in with corp") && !page.text.contains("name=\"token\""), "{}", page.text);
    assert!(!page.text.contains("Google") && !page.text.contains("alice"), "{}", page.text);
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains(&format!("form-action 'self' https: {};", issuer.url)), "{policy}");

    let back = sign_in(&mut browser, &issuer, &link, "alice").await;
    assert_eq!((back.status, back.location.as_deref()), (303, Some(url::Url::parse(&link).unwrap().path())));
    let ask = browser.get(&link).await;
    assert!(ask.text.contains("Connect Google?") && ask.text.contains("alice (corp, default)"), "{}", ask.text);
    let pressed = browser.submit(&ask, &[]).await;
    let back = obo.provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    assert_eq!(browser.get(&back).await.status, 200);
    value_of(&client(&obo, &issuer, "alice").call(SEND, mail("bob@example.com", "x")).await);

    // The same id from another source is another person.
    let other = obo.client("alice").await.call(SEND, mail("bob@example.com", "x")).await;
    assert!(link_of(&other).is_some(), "{other}");
}

#[tokio::test]
async fn t1_somebody_else_of_the_same_provider_gets_nowhere() {
    let (obo, issuer) = with_issuer().await;
    let link = link_for(&obo, &issuer, "alice").await;
    let mut browser = Browser::new();
    sign_in(&mut browser, &issuer, &link, "bob").await;
    let refused = browser.get(&link).await;
    assert_eq!(refused.status, 403);
    assert!(!refused.text.contains("Google") && !refused.text.contains("alice"), "{}", refused.text);
    // Nor does an obo token of the same name help.
    let token = obo.token_for("alice").await;
    let mut browser = Browser::new();
    let page = browser.get(&format!("{}/account?with=obo", obo.base)).await;
    browser.submit(&page, &[("token", &token)]).await;
    assert_eq!(browser.get(&link).await.status, 403);
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn t2_the_answer_must_come_back_in_the_browser_that_was_sent_once_and_in_time() {
    let (obo, issuer) = with_issuer().await;
    let link = link_for(&obo, &issuer, "alice").await;
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    let sent = browser.submit(&page, &[]).await.location.unwrap();
    let back = issuer.sign_in(&sent, "alice");

    // Login CSRF: the attacker's answer in the victim's browser.
    let mut victim = Browser::new();
    victim.get(&link).await;
    assert_eq!(victim.get(&back).await.status, 400);
    assert_eq!(issuer.exchanges(), 0, "nothing was exchanged");
    // The attempt used the state up: whoever holds it has one try.
    assert_eq!(browser.get(&back).await.status, 400);

    for bend in [
        |url: &str| url.replace("/login/callback/corp", "/login/callback/other"),
        |url: &str| url.replace("iss=", "was="),
        |url: &str| url.replace("iss=http", "iss=https"),
        |url: &str| format!("{url}&state=x"),
        |url: &str| url.replace("state=", "state=A"),
        |url: &str| url.replace("code=", "kode="),
    ] {
        let page = browser.get(&link).await;
        let sent = browser.submit(&page, &[]).await.location.unwrap();
        let back = bend(&issuer.sign_in(&sent, "alice"));
        assert_eq!(browser.get(&back).await.status, 400, "{back}");
    }
    let page = browser.get(&link).await;
    let sent = browser.submit(&page, &[]).await.location.unwrap();
    let back = issuer.sign_in(&sent, "alice");
    obo.clock.advance(Duration::from_secs(601));
    assert_eq!(browser.get(&back).await.status, 400, "too late");
    assert_eq!(issuer.exchanges(), 0);
}

#[tokio::test]
async fn t6_t18_an_id_token_that_is_not_for_this_sign_in_signs_nobody_in() {
    let (obo, issuer) = with_issuer().await;
    let link = link_for(&obo, &issuer, "alice").await;
    for (wrong, status) in [
        (Wrong::Nonce, 403),
        (Wrong::Audience, 403),
        (Wrong::Party, 403),
        (Wrong::Issuer, 403),
        (Wrong::Expired, 403),
        (Wrong::Key, 403),
        (Wrong::Refuses, 403),
        (Wrong::NoToken, 503),
    ] {
        issuer.be_wrong(wrong);
        let mut browser = Browser::new();
        let page = sign_in(&mut browser, &issuer, &link, "alice").await;
        assert_eq!(page.status, status, "{wrong:?}");
        assert!(browser.get(&link).await.text.contains("Sign in with corp"), "{wrong:?}");
    }
    issuer.be_wrong(Wrong::Nothing);
    let mut browser = Browser::new();
    assert_eq!(sign_in(&mut browser, &issuer, &link, "alice").await.status, 303, "and a failure can be tried again");
}

#[tokio::test]
async fn signing_in_gives_the_browser_a_new_cookie() {
    let (obo, issuer) = with_issuer().await;
    let link = link_for(&obo, &issuer, "alice").await;
    let mut browser = Browser::new();
    browser.get(&link).await;
    let planted = browser.cookies.clone();
    sign_in(&mut browser, &issuer, &link, "alice").await;
    assert_ne!(browser.cookies, planted);
    let mut attacker = Browser::new();
    attacker.cookies = planted;
    assert!(attacker.get(&link).await.text.contains("Sign in with corp"), "the planted cookie is worth nothing");
}

#[tokio::test]
async fn the_account_page_shows_one_s_own_and_disconnects() {
    let (obo, issuer) = with_issuer().await;
    let account = format!("{}/account", obo.base);
    let link = link_for(&obo, &issuer, "alice").await;
    let mut browser = Browser::new();
    sign_in(&mut browser, &issuer, &link, "alice").await;
    let ask = browser.get(&link).await;
    let pressed = browser.submit(&ask, &[]).await;
    let back = obo.provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    browser.get(&back).await;
    value_of(&client(&obo, &issuer, "alice").call(SEND, mail("bob@example.com", "secret subject")).await);
    obo.connect("bob", "bob@example.com", SEND, mail("alice@example.com", "x")).await;

    let page = browser.get(&account).await;
    assert_eq!(page.status, 200);
    for said in [
        "alice (corp, default)",
        "alice@example.com",
        "send e-mail as you",
        "Google.SendEmail",
        "test 1",
        "2026-11-24 08:00",
    ] {
        assert!(page.text.contains(said), "{said} is not in {}", page.text);
    }
    assert!(!page.text.contains("bob@") && !page.text.contains("secret subject"), "{}", page.text);
    // Its first form disconnects.
    let done = browser.submit(&page, &[]).await;
    assert!(done.text.contains("Disconnected"), "{}", done.text);
    let page = browser.get(&account).await;
    assert!(page.text.contains("You have connected no account"), "{}", page.text);

    // Signing out, and in again by choice.
    let out = browser.submit(&page, &[]).await;
    assert_eq!((out.status, out.location.as_deref()), (303, Some("/account?again=1")));
    let choose = browser.get(&account).await;
    assert!(choose.text.contains("/account?with=corp") && choose.text.contains("/account?with=obo"), "{}", choose.text);
    let back = sign_in(&mut browser, &issuer, &format!("{account}?with=corp"), "alice").await;
    assert_eq!(back.location.as_deref(), Some("/account"));
    assert!(browser.get(&account).await.text.contains("alice (corp, default)"));
}

#[tokio::test]
async fn t2_a_disconnect_form_of_somebody_else_does_nothing() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    let account = format!("{}/account", obo.base);
    let mut alices = Browser::new();
    let page = alices.get(&account).await;
    let token = obo.token_for("alice").await;
    alices.submit(&page, &[("token", &token)]).await;
    let page = alices.get(&account).await;
    // Bob posts Alice's form from his own browser; and Alice's browser posts it from elsewhere.
    let mut bobs = Browser::new();
    let bobs_page = bobs.get(&account).await;
    let token = obo.token_for("bob").await;
    bobs.submit(&bobs_page, &[("token", &token)]).await;
    assert_eq!(bobs.submit(&page, &[]).await.status, 403);
    let forged = alices.submit_from(&page, &[], Some("https://evil.example"), Some("cross-site")).await;
    assert_eq!(forged.status, 403);
    assert!(alices.get(&account).await.text.contains("alice@example.com"), "still connected");
}

#[tokio::test]
async fn without_pkce_nobody_is_sent_to_an_issuer() {
    let (obo, issuer) = with_issuer().await;
    issuer.be_wrong(Wrong::NoPkce);
    let link = link_for(&obo, &issuer, "alice").await;
    assert_eq!(Browser::new().get(&link).await.status, 503);
    // What the issuer says is believed for ten minutes.
    issuer.be_wrong(Wrong::Nothing);
    obo.clock.advance(Duration::from_secs(600));
    let link = link_for(&obo, &issuer, "alice").await;
    assert_eq!(sign_in(&mut Browser::new(), &issuer, &link, "alice").await.status, 303);
}

#[tokio::test]
async fn a_clients_token_signs_no_browser_in() {
    let (obo, issuer) = with_issuer().await;
    let token = issuer.access_token("alice", &format!("{}/mcp", obo.base));
    for page in [format!("{}/account?with=obo", obo.base), link_for(&obo, &issuer, "alice").await] {
        let mut browser = Browser::new();
        let mut form = browser.get(&page).await;
        if !form.text.contains("name=\"token\"") {
            form.text = form.text.replace("value=\"log_in\"", "value=\"sign_in\"");
        }
        assert!(form.text.contains("value=\"sign_in\""), "{}", form.text);
        assert_ne!(browser.submit(&form, &[("token", &token)]).await.status, 303, "{page}");
        let after = browser.get(&page).await;
        assert!(!after.text.contains("alice"), "{}", after.text);
    }
}

#[tokio::test]
async fn t21_strangers_do_not_make_obo_ask_the_issuer_again_and_again() {
    let (obo, issuer) = with_issuer().await;
    for _ in 0..20 {
        let mut browser = Browser::new();
        let page = browser.get(&format!("{}/account?with=corp", obo.base)).await;
        assert_eq!(browser.submit(&page, &[]).await.status, 303);
    }
    assert_eq!(issuer.documents(), 1);
    obo.clock.advance(Duration::from_secs(601));
    Browser::new().get(&format!("{}/account?with=corp", obo.base)).await;
    assert_eq!(issuer.documents(), 2);
}

#[tokio::test]
async fn whoever_signed_out_is_asked_who_they_are() {
    let (obo, issuer) = with_issuer().await;
    let link = link_for(&obo, &issuer, "alice").await;
    let mut browser = Browser::new();
    sign_in(&mut browser, &issuer, &link, "bob").await;
    let refused = browser.get(&link).await;
    let out = browser.submit(&refused, &[]).await;
    let again = url::Url::parse(&link).unwrap().join(&out.location.unwrap()).unwrap();
    // The issuer may remember bob: it must ask, or nobody else could sign in from here.
    let page = browser.get(again.as_str()).await;
    let sent = browser.submit(&page, &[]).await.location.unwrap();
    assert!(sent.contains("&prompt=login"), "{sent}");
    assert_eq!(browser.get(&issuer.sign_in(&sent, "alice")).await.status, 303);
    assert!(browser.get(&link).await.text.contains("Connect Google?"));
    // Who has not signed out is not asked twice.
    let mut other = Browser::new();
    let page = other.get(&link).await;
    assert!(!other.submit(&page, &[]).await.location.unwrap().contains("prompt"));
}
