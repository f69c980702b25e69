//! Consent, and those who would bend it. Names begin with the threat of docs/threat-model.md that they stand for.

use std::time::Duration;

use serde_json::{Value, json};

use crate::provider::{Fault, Gate, Iss, TokenKind};
use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::{Browser, TestObo, mail};

const SEND: &str = "Google_SendEmail";

async fn asked(obo: &TestObo, user: &str) -> (Value, String) {
    let answer = obo.client(user).await.call(SEND, mail("bob@example.com", "x")).await;
    let link = link_of(&answer).unwrap_or_else(|| panic!("{answer}"));
    (answer, link)
}

#[tokio::test]
async fn every_page_is_one_form_with_one_button_and_nothing_from_elsewhere() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let sign_in = browser.get(&link).await;
    assert_eq!(sign_in.forms_and_buttons(), (1, 1));
    assert!(!sign_in.text.contains("Google"), "nothing about the flow is told before sign-in");
    let token = obo.token_for("alice").await;
    browser.submit(&sign_in, &[("token", &token)]).await;
    let ask = browser.get(&link).await;
    assert_eq!(ask.forms_and_buttons(), (1, 1));
    for said in ["Connect Google?", "alice", "Send an e-mail with Gmail", "gmail.send", "test 1"] {
        assert!(ask.text.contains(said), "{said} is not in {}", ask.text);
    }
    for page in [&sign_in, &ask] {
        for (name, value) in [
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(page.headers[name], value);
        }
        let policy = page.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!page.text.contains("<script") && !page.text.contains("src="), "{}", page.text);
        for url in page.text.split("http").skip(1) {
            // Scopes are spelled as URLs; nothing is loaded or linked.
            assert!(url.starts_with("s://www.googleapis.com/auth/"), "{url:.80}");
        }
    }
    let cookie = sign_in.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax") && cookie.contains("Path=/"), "{cookie}");
}

#[tokio::test]
async fn a_call_made_again_is_held_until_the_person_has_consented() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"30s\"").start().await;
    let (_, link) = asked(&obo, "alice").await;
    let client = obo.client("alice").await;
    let held = tokio::spawn(async move { client.call(SEND, mail("bob@example.com", "x")).await });
    // The retry is under way or on its way; either way it must end with the mail sent, and no third call.
    obo.consent(&link, "alice", "alice@example.com").await;
    value_of(&held.await.unwrap());
}

#[tokio::test]
async fn while_a_code_is_exchanged_no_second_link_is_given_out() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let gate = Gate::new();
    obo.provider.fault("/token", 1, Fault::HoldAnswer(gate.clone()));
    let coming_back = tokio::spawn(async move { browser.get(&back).await.status });
    gate.arrived(1).await;
    let client = obo.client("alice").await;
    let meanwhile = client.call(SEND, mail("bob@example.com", "another")).await;
    assert_eq!(link_of(&meanwhile).as_ref(), Some(&link), "{meanwhile}");
    gate.open();
    assert_eq!(coming_back.await.unwrap(), 200);
    value_of(&client.call(SEND, mail("bob@example.com", "another")).await);
}

#[tokio::test]
async fn a_call_held_in_vain_gets_the_same_link_again() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await;
    let (_, first) = asked(&obo, "alice").await;
    let (_, second) = asked(&obo, "alice").await;
    assert_eq!(first, second, "one need, one link");
    obo.clock.advance(Duration::from_secs(9 * 60));
    let other = obo.client("alice").await.call(SEND, mail("bob@example.com", "another call")).await;
    assert_ne!(link_of(&other).unwrap(), first, "a link that is about to expire is not handed out to another call");
    assert_eq!(Browser::new().get(&first).await.status, 200, "and stays good until it expires");
    obo.clock.advance(Duration::from_secs(61));
    assert_eq!(Browser::new().get(&first).await.status, 410);
}

#[tokio::test]
async fn declining_at_the_provider_ends_the_link_and_the_wait() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"30s\"").start().await;
    let (_, link) = asked(&obo, "alice").await;
    let client = obo.client("alice").await;
    let held = tokio::spawn(async move { client.call(SEND, mail("bob@example.com", "x")).await });
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "deny").await.unwrap();
    let page = browser.get(&back).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("Not connected"), "{}", page.text);
    assert_eq!(browser.get(&link).await.status, 410);
    let held = held.await.unwrap();
    // Held while it was open: told that the person declined. Made after it: given a new link.
    assert!(
        code_of(&held).as_deref() == Some("authorization_required") || link_of(&held).is_some_and(|l| l != link),
        "{held}"
    );
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn the_elicitation_loop_of_2026_07_28() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await;
    let alice = obo.client("alice").await.with_url_elicitation();
    let first = alice.call(SEND, mail("bob@example.com", "x")).await;
    assert_eq!(first["resultType"], "input_required", "{first}");
    let link = link_of(&first).unwrap();
    let state = first["requestState"].as_str().unwrap();
    let key = first["inputRequests"].as_object().unwrap().keys().next().unwrap().clone();
    let retry = |action: &str| json!({ "requestState": state, "inputResponses": { &key: { "action": action } } });

    for action in ["decline", "cancel"] {
        let turned_away = alice.call_with(SEND, mail("bob@example.com", "x"), retry(action)).await;
        assert_eq!(turned_away["isError"], true, "{turned_away}");
        assert!(turned_away.to_string().contains(&link), "the link stays reachable after {action}");
    }
    let too_early = alice.call_with(SEND, mail("bob@example.com", "x"), retry("accept")).await;
    assert_eq!(too_early["isError"], true, "a link held in vain is given as text: {too_early}");
    obo.consent(&link, "alice", "alice@example.com").await;
    value_of(&alice.call_with(SEND, mail("bob@example.com", "x"), retry("accept")).await);
}

#[tokio::test]
async fn t14_a_request_state_belongs_to_one_person_one_call_and_ten_minutes() {
    let obo = TestObo::start().await;
    let (alice, bob) =
        (obo.client("alice").await.with_url_elicitation(), obo.client("bob").await.with_url_elicitation());
    let first = alice.call(SEND, mail("bob@example.com", "x")).await;
    let state = first["requestState"].as_str().unwrap().to_owned();
    let with = |state: &str| json!({ "requestState": state });
    let refused = |answer: &Value| assert_eq!(answer.pointer("/error/code"), Some(&json!(-32602)), "{answer}");

    refused(&bob.call_with(SEND, mail("bob@example.com", "x"), with(&state)).await);
    refused(&alice.call_with(SEND, mail("eve@example.com", "x"), with(&state)).await);
    let event = json!({ "summary": "x", "start": "2026-12-01T10:00:00Z", "end": "2026-12-01T11:00:00Z" });
    refused(&alice.call_with("GoogleCalendar_CreateEvent", event, with(&state)).await);
    for at in (0..state.len()).step_by(7) {
        let mut bent = state.clone().into_bytes();
        bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
        refused(&alice.call_with(SEND, mail("bob@example.com", "x"), with(std::str::from_utf8(&bent).unwrap())).await);
    }
    for odd in ["", "a", "é", &"A".repeat(5000)] {
        refused(&alice.call_with(SEND, mail("bob@example.com", "x"), with(odd)).await);
    }
    obo.clock.advance(Duration::from_secs(601));
    refused(&alice.call_with(SEND, mail("bob@example.com", "x"), with(&state)).await);
}

#[tokio::test]
async fn t1_nobody_else_can_finish_a_flow() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;

    // Alice presses the button; Bob's browser brings the answer of Bob's account.
    let mut alices = Browser::new();
    let forwarded = obo.press(&mut alices, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "bob@example.com").await.unwrap();
    let mut bobs = Browser::new();
    assert_eq!(bobs.get(&back).await.status, 403, "a browser without the cookie");
    let (_, bobs_link) = asked(&obo, "bob").await;
    obo.press(&mut bobs, &bobs_link, "bob").await;
    assert_eq!(bobs.get(&back).await.status, 403, "a browser signed in as Bob");
    assert_eq!(obo.provider.token_requests(), 0);
    let noted = obo.app.audit.read(|r| r.note.as_deref() == Some("consent.identity_mismatch")).await.unwrap();
    assert_eq!(noted.len(), 2);
    assert!(noted.iter().all(|record| record.user.as_deref() == Some("alice")));

    // The flow is Alice's still.
    let page = alices.get(&back).await;
    assert_eq!(page.status, 200, "{}", page.text);
}

#[tokio::test]
async fn t1_a_browser_whose_sign_in_changed_half_way_is_refused() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    // Signing in gives the browser a new cookie: the old page's answer no longer fits it.
    let (_, bobs_link) = asked(&obo, "bob").await;
    let page = browser.get(&bobs_link).await;
    assert_eq!(page.status, 403);
    browser.submit(&page, &[]).await;
    let page = browser.get(&bobs_link).await;
    let token = obo.token_for("bob").await;
    browser.submit(&page, &[("token", &token)]).await;
    assert_eq!(browser.get(&back).await.status, 403);
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn t2_forms_from_elsewhere_are_refused() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    obo.press(&mut browser, &link, "alice").await;
    let page = browser.get(&link).await;
    for (origin, site) in [
        (Some("https://evil.example"), None),
        (Some("https://evil.example"), Some("same-origin")),
        (Some("null"), Some("cross-site")),
        (Some("null"), None),
        (None, Some("same-site")),
        (None, None),
    ] {
        let answer = browser.submit_from(&page, &[], origin, site).await;
        assert_eq!(answer.status, 403, "{origin:?} {site:?}");
    }
    // The right place, with the hidden value of another browser.
    let mut other = Browser::new();
    let foreign = other.get(&link).await;
    assert_eq!(browser.submit(&foreign, &[("token", "x")]).await.status, 403);
    // And without any cookie.
    let mut bare = Browser::new();
    assert_eq!(bare.submit(&page, &[]).await.status, 403);
}

#[tokio::test]
async fn t3_an_answer_of_one_provider_is_not_an_answer_of_another() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let crossed = back.replace("/oauth/callback/google", "/oauth/callback/slack");
    assert_eq!(browser.get(&crossed).await.status, 400);
    assert_eq!(browser.get(&back.replace("/google", "/nothing")).await.status, 400);
    assert_eq!(obo.provider.token_requests(), 0);
    assert_eq!(browser.get(&back).await.status, 200, "the right one still works");
}

#[tokio::test]
async fn t4_an_answer_that_names_another_issuer_is_refused() {
    let obo = TestObo::builder().provider(|p| p.iss = Iss::Text("https://evil.example".to_owned())).start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    assert_eq!(browser.get(&back).await.status, 400);
    assert_eq!(obo.provider.token_requests(), 0);
    assert_eq!(browser.get(&link).await.status, 200, "the button may be pressed again");
}

#[tokio::test]
async fn t5_a_hundred_equal_answers_make_one_exchange() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let cookies = browser.cookies.clone();
    let all = (0..100).map(|_| {
        let (back, cookies) = (back.clone(), cookies.clone());
        tokio::spawn(async move {
            let mut browser = Browser::new();
            browser.cookies = cookies;
            browser.get(&back).await.status
        })
    });
    let mut answered = Vec::new();
    for one in all.collect::<Vec<_>>() {
        answered.push(one.await.unwrap());
    }
    assert_eq!(answered.iter().filter(|status| **status == 200).count(), 1, "{answered:?}");
    assert!(answered.iter().all(|status| [200, 410].contains(status)), "{answered:?}");
    assert_eq!(obo.provider.token_requests(), 1);
    assert_eq!(browser.get(&link).await.status, 410, "the link is used up");
}

#[tokio::test]
async fn t5_states_are_exact_one_time_and_ten_minutes() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let older = obo.press(&mut browser, &link, "alice").await;
    let newer = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&older, "alice@example.com").await.unwrap();
    assert_eq!(browser.get(&back).await.status, 410, "pressing again replaced the state");

    let back = obo.provider.consent(&newer, "alice@example.com").await.unwrap();
    let mut url = url::Url::parse(&back).unwrap();
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let state = pairs.iter().find(|(k, _)| k == "state").unwrap().1.clone();
    let with = |change: &dyn Fn(&str, &str) -> Option<String>| {
        let mut url = url.clone();
        url.query_pairs_mut().clear();
        for (key, value) in &pairs {
            if let Some(value) = change(key, value) {
                url.query_pairs_mut().append_pair(key, &value);
            }
        }
        url.to_string()
    };
    for (name, bent) in [
        ("no state", with(&|k, v| (k != "state").then(|| v.to_owned()))),
        ("empty", with(&|k, v| Some(if k == "state" { String::new() } else { v.to_owned() }))),
        ("short", with(&|k, v| Some(if k == "state" { state[1..].to_owned() } else { v.to_owned() }))),
        ("no code", with(&|k, v| (k != "code").then(|| v.to_owned()))),
        ("long code", with(&|k, v| Some(if k == "code" { "c".repeat(5000) } else { v.to_owned() }))),
        ("twice", format!("{back}&state={state}")),
        ("code and error", format!("{back}&error=access_denied")),
        ("another flow's", with(&|k, v| Some(if k == "state" { "A".repeat(86) } else { v.to_owned() }))),
    ] {
        let status = browser.get(&bent).await.status;
        assert_eq!(status, 400, "{name}");
    }
    // Every place of the random half counts.
    for at in [44, 60, 85] {
        let mut bytes = state.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
        let bent = String::from_utf8(bytes).unwrap();
        let status =
            browser.get(&with(&|k, v| Some(if k == "state" { bent.clone() } else { v.to_owned() }))).await.status;
        assert!([400, 410].contains(&status), "{status}");
    }
    assert_eq!(obo.provider.token_requests(), 0);
    obo.clock.advance(Duration::from_secs(601));
    url.set_fragment(None);
    assert_eq!(browser.get(&back).await.status, 410, "too late");
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn a_failed_exchange_leaves_the_link_usable() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    for fault in [Fault::Status(500, json!({})), Fault::Html, Fault::TruncatedJson] {
        obo.provider.fault("/token", 1, fault);
        let mut browser = Browser::new();
        let forwarded = obo.press(&mut browser, &link, "alice").await;
        let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
        let page = browser.get(&back).await;
        assert_eq!(page.status, 502, "{}", page.text);
        assert!(page.text.contains("Try again"), "{}", page.text);
    }
    let page = obo.consent(&link, "alice", "alice@example.com").await;
    assert_eq!(page.status, 200, "{}", page.text);
}

#[tokio::test]
async fn the_connected_page_disconnects_and_only_for_its_own_browser() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    let mut browser = Browser::new();
    let page = obo.consent_in(&mut browser, &link, "alice", "alice@example.com").await;
    assert_eq!(page.forms_and_buttons(), (1, 1));
    assert_eq!(Browser::new().submit(&page, &[]).await.status, 403, "another browser");
    let done = browser.submit(&page, &[]).await;
    assert_eq!(done.status, 200);
    assert!(done.text.contains("Disconnected"), "{}", done.text);
    assert!(obo.provider.families().iter().all(|family| family.ended.is_some()), "revoked at the provider");
    let again = obo.client("alice").await.call(SEND, mail("bob@example.com", "x")).await;
    assert!(link_of(&again).is_some(), "{again}");
}

#[tokio::test]
async fn wrong_links_and_wrong_tokens_tell_nothing() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "alice").await;
    for bad in ["x", &"A".repeat(32), "..", "%2e%2e", &"é".repeat(10)] {
        let status = Browser::new().get(&format!("{}/connect/{bad}", obo.base)).await.status;
        assert_eq!(status, 404, "{bad}");
    }
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    for bad in ["", "obo_wrong", "a.b.c", &"x".repeat(20_000)] {
        let answer = browser.submit(&page, &[("token", bad)]).await;
        assert_eq!(answer.status, 401, "{bad:.20}");
        assert!(!answer.text.contains("Google"));
    }
}

#[tokio::test]
async fn one_person_has_at_most_twenty_open_links() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await;
    let alice = obo.client("alice").await;
    // Different needs: each connection asked for by account label is the same need, so scopes are what differs.
    for n in 0..25 {
        let person = "alice".parse().unwrap();
        let person = obo::id::Person {
            tenant: obo::id::TenantId::default_tenant(),
            source: obo::id::Source::obo(),
            user: person,
        };
        let provider = obo.app.catalog.provider("google").unwrap();
        let scopes = [format!("scope-{n}")].into();
        let made = obo.app.obo.consent().connect(obo::consent::Wish::new(&person, provider, scopes, "test")).await;
        assert_eq!(made.is_ok(), n < obo::consent::MAX_OPEN_PER_PERSON, "{n}");
    }
    let full = alice.call(SEND, mail("bob@example.com", "x")).await;
    assert_eq!(code_of(&full).as_deref(), Some("rate_limited"), "{full}");
    obo.clock.advance(Duration::from_secs(601));
    assert!(link_of(&alice.call(SEND, mail("bob@example.com", "x")).await).is_some());
}

#[tokio::test]
async fn t2_of_two_cookies_neither_counts() {
    let obo = TestObo::start().await;
    let (_, link) = asked(&obo, "mallory").await;
    let mut mallorys = Browser::new();
    let forwarded = obo.press(&mut mallorys, &link, "mallory").await;
    // Mallory plants a cookie beside Alice's own, and leads Alice to the provider.
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let (_, alices_link) = asked(&obo, "alice").await;
    let mut alices = Browser::new();
    obo.press(&mut alices, &alices_link, "alice").await;
    let (name, own) = alices.cookies.iter().next().map(|(k, v)| (k.clone(), v.clone())).unwrap();
    let planted = mallorys.cookies[&name].clone();
    for both in [format!("{planted}; {name}={own}"), format!("{own}; {name}={planted}")] {
        alices.cookies.insert(name.clone(), both);
        assert_eq!(alices.get(&back).await.status, 403);
    }
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn t6_the_code_of_one_link_is_refused_under_the_state_of_another() {
    let obo = TestObo::start().await;
    let (mut backs, mut browsers) = (Vec::new(), Vec::new());
    for user in ["alice", "mallory"] {
        let (_, link) = asked(&obo, user).await;
        let mut browser = Browser::new();
        let forwarded = obo.press(&mut browser, &link, user).await;
        backs.push(obo.provider.consent(&forwarded, "alice@example.com").await.unwrap());
        browsers.push((browser, link));
    }
    // Mallory has come by Alice's code.
    let of = |back: &str, name: &str| {
        let url = url::Url::parse(back).unwrap();
        url.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned()
    };
    let mut injected = url::Url::parse(&backs[1]).unwrap();
    let (code, state) = (of(&backs[0], "code"), of(&backs[1], "state"));
    injected.query_pairs_mut().clear().append_pair("code", &code).append_pair("state", &state);
    let (mallorys, link) = &mut browsers[1];
    let page = mallorys.get(injected.as_str()).await;
    assert_eq!(page.status, 400, "{}", page.text);
    assert!(obo.provider.tokens().iter().all(|token| token.kind == TokenKind::Code), "no token was issued");
    assert_eq!(mallorys.get(link).await.status, 200, "the button may be pressed again");
}
