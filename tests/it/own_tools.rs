//! obo's own tools: what is connected, one connection more, one less. On every way in, and for one's own only.

use std::time::Duration;

use obo::audit::{Phase, Record};
use obo::id::CallId;
use obo::identity::Credential;
use obo::policy::{Policy, Work};
use obo::secret::Secret;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::provider::Fault;
use crate::support::mcp::{NEWEST, code_of, link_of, value_of};
use crate::support::program::Program;
use crate::support::{Browser, Mcp, TestObo, browser, mail};

const LIST: &str = "Obo_ListConnections";
const CONNECT: &str = "Obo_Connect";
const DISCONNECT: &str = "Obo_Disconnect";
const SEND: &str = "Google_SendEmail";
const SEND_SCOPE: &str = "https://www.googleapis.com/auth/gmail.send";

/// An obo that holds no call for a consent.
async fn unheld() -> TestObo {
    TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await
}

async fn linked(client: &Mcp, arguments: Value) -> String {
    let asked = client.call(CONNECT, arguments).await;
    link_of(&asked).unwrap_or_else(|| panic!("no link in {asked}"))
}

/// Connects one more Google account.
async fn one_more(obo: &TestObo, user: &str, account: &str) {
    let client = obo.client(user).await;
    let arguments = json!({ "provider": "google", "another_account": true });
    let link = linked(&client, arguments.clone()).await;
    assert_eq!(obo.consent(&link, user, account).await.status, 200);
    assert_eq!(value_of(&client.call(CONNECT, arguments).await)["account"], account);
}

/// Goes to the link and declines at the provider.
async fn decline(obo: &TestObo, link: &str, user: &str) -> browser::Page {
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, link, user).await;
    let back = obo.provider.consent(&forwarded, "deny").await.unwrap();
    browser.get(&back).await
}

/// What a link asks the provider for.
async fn forwarded_to(obo: &TestObo, link: &str, user: &str) -> std::collections::BTreeMap<String, String> {
    let forwarded = obo.press(&mut Browser::new(), link, user).await;
    url::Url::parse(&forwarded).unwrap().query_pairs().into_owned().collect()
}

fn text(result: &Value) -> &str {
    result.pointer("/content/0/text").and_then(Value::as_str).unwrap_or_else(|| panic!("{result}"))
}

async fn calls(obo: &TestObo, tool: &str) -> Vec<Record> {
    obo.app.audit.read(|record| record.tool.as_deref() == Some(tool)).await.unwrap()
}

#[tokio::test]
async fn a_list_says_what_is_connected_and_what_could_be() {
    let obo = TestObo::start().await;
    let alice = obo.client("alice").await;
    let nothing = value_of(&alice.call(LIST, json!({})).await);
    assert_eq!(nothing["connections"], json!([]));
    let offered: Vec<&str> =
        nothing["not_connected"].as_array().unwrap().iter().map(|one| one["provider"].as_str().unwrap()).collect();
    assert_eq!(offered, ["google", "slack"]);

    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    let fresh = value_of(&alice.call(LIST, json!({})).await);
    assert_eq!(
        fresh,
        json!({
            "connections": [{
                "provider": "google",
                "provider_name": "Google",
                "account": "alice@example.com",
                "state": "active",
                "abilities": ["send e-mail as you"],
                "connected_at": "2026-11-24T08:00:00Z",
                "last_used": null,
                "default": false,
            }],
            "not_connected": [{
                "provider": "slack",
                "provider_name": "Slack",
                "tools": [
                    "Slack.AddReaction", "Slack.GetThread", "Slack.ListChannels", "Slack.PostMessage",
                    "Slack.ScheduleMessage", "Slack.SearchMessages",
                ],
            }],
        })
    );
    obo.clock.advance(Duration::from_secs(60));
    value_of(&alice.call(SEND, mail("bob@example.com", "x")).await);
    obo.clock.advance(Duration::from_secs(60));
    // Asking about a connection is not using it.
    value_of(&alice.call(CONNECT, json!({ "provider": "google", "tool": "Google.SendEmail" })).await);
    let used = value_of(&alice.call(LIST, json!({})).await);
    assert_eq!(used["connections"][0]["last_used"], "2026-11-24T08:01:00Z");

    // A connection that ended says so.
    obo.provider.revoke_all("alice@example.com");
    assert!(link_of(&alice.call(SEND, mail("bob@example.com", "x")).await).is_some());
    let ended = value_of(&alice.call(LIST, json!({})).await);
    assert_eq!(ended["connections"][0]["state"], "needs_consent");
    let structured = alice.call(LIST, json!({})).await;
    assert_eq!(structured["structuredContent"], ended);
}

#[tokio::test]
async fn connect_asks_as_every_call_does_and_then_says_who() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    let all = json!({ "provider": "google" });
    let asked = alice.call(CONNECT, all.clone()).await;
    assert_eq!(asked["isError"], true, "{asked}");
    let authorization = asked["_meta"]["obo/authorization"].clone();
    assert_eq!(
        (&authorization["status"], &authorization["provider"]),
        (&json!("authorization_required"), &json!("google"))
    );
    assert_eq!(authorization["scopes"].as_array().unwrap().len(), 10, "what all its tools need: {authorization}");
    let link = link_of(&asked).unwrap();
    let ask = {
        let mut browser = Browser::new();
        obo.press(&mut browser, &link, "alice").await;
        browser.get(&link).await
    };
    assert!(ask.text.contains("obo will be able to use your Google account"), "{}", ask.text);

    let waiting = alice.call(CONNECT, all.clone()).await;
    assert_eq!(link_of(&waiting).as_ref(), Some(&link), "{waiting}");
    assert_eq!(obo.consent(&link, "alice", "alice@example.com").await.status, 200);
    let connected = json!({
        "status": "connected", "provider": "google", "provider_name": "Google",
        "account": "alice@example.com", "accounts": ["alice@example.com"],
    });
    assert_eq!(value_of(&alice.call(CONNECT, all.clone()).await), connected);
    // Told once; from then on it is what there is.
    let again = value_of(&alice.call(CONNECT, all).await);
    assert_eq!((&again["status"], &again["account"]), (&json!("already_connected"), &json!("alice@example.com")));
    value_of(&alice.call(SEND, mail("bob@example.com", "x")).await);
    assert_eq!(obo.provider.token_requests(), 1);
}

#[tokio::test]
async fn connect_for_one_tool_asks_for_its_scopes_and_extends_later() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    for spelling in ["Google.SendEmail", "Google_SendEmail"] {
        let asked = alice.call(CONNECT, json!({ "provider": "google", "tool": spelling })).await;
        assert_eq!(asked["_meta"]["obo/authorization"]["scopes"], json!([SEND_SCOPE]), "{spelling}");
    }
    let one = json!({ "provider": "google", "tool": "Google.SendEmail" });
    let link = linked(&alice, one.clone()).await;
    obo.consent(&link, "alice", "alice@example.com").await;
    assert_eq!(value_of(&alice.call(CONNECT, one).await)["status"], "connected");

    // More of the same account: only what is missing is named, and the account is the one to pick.
    let more = alice.call(CONNECT, json!({ "provider": "google" })).await;
    let scopes = more["_meta"]["obo/authorization"]["scopes"].clone();
    assert!(scopes.as_array().unwrap().len() == 9 && !scopes.to_string().contains("gmail.send"), "{scopes}");
    let asked = forwarded_to(&obo, &link_of(&more).unwrap(), "alice").await;
    assert_eq!(asked["login_hint"], "alice@example.com");
    assert!(asked["scope"].contains("gmail.send"), "what there is stays: {asked:?}");
}

#[tokio::test]
async fn the_elicitation_loop_ends_with_the_account() {
    let obo = unheld().await;
    let alice = obo.client("alice").await.with_url_elicitation();
    let all = json!({ "provider": "google" });
    let first = alice.call(CONNECT, all.clone()).await;
    assert_eq!(first["resultType"], "input_required", "{first}");
    assert_eq!(first["inputRequests"]["consent:google"]["params"]["message"], "Connect Google for your agent");
    let (link, state) = (link_of(&first).unwrap(), first["requestState"].as_str().unwrap().to_owned());
    let retry =
        |action: &str| json!({ "requestState": state, "inputResponses": { "consent:google": { "action": action } } });

    let turned_away = alice.call_with(CONNECT, all.clone(), retry("decline")).await;
    assert!(turned_away["isError"] == true && turned_away.to_string().contains(&link), "{turned_away}");
    let early = alice.call_with(CONNECT, all.clone(), retry("accept")).await;
    assert_eq!(early["isError"], true, "{early}");
    // The state is hers, and of this very call.
    let bob = obo.client("bob").await.with_url_elicitation();
    for (client, arguments) in [
        (&bob, all.clone()),
        (&alice, json!({ "provider": "slack" })),
        (&alice, json!({ "provider": "google", "another_account": true })),
    ] {
        let refused = client.call_with(CONNECT, arguments, retry("accept")).await;
        assert_eq!(refused.pointer("/error/code"), Some(&json!(-32602)), "{refused}");
    }
    obo.consent(&link, "alice", "alice@example.com").await;
    let done = value_of(&alice.call_with(CONNECT, all.clone(), retry("accept")).await);
    assert_eq!((&done["status"], &done["account"]), (&json!("connected"), &json!("alice@example.com")));
    // The same retry once more, as a client may send it, hears the same.
    assert_eq!(value_of(&alice.call_with(CONNECT, all, retry("accept")).await), done);
}

#[tokio::test]
async fn each_revision_gets_its_shape() {
    let obo = unheld().await;
    let token = obo.token_for("alice").await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for (revision, shape) in [("2024-11-05", None), ("2025-06-18", None), ("2025-11-25", Some(-32042))] {
        let post = |session: Option<String>, message: Value| {
            let mut request = http.post(format!("{}/mcp", obo.base)).json(&message).bearer_auth(&token);
            request = request.header("accept", "application/json, text/event-stream");
            if let Some(session) = session {
                request = request.header("mcp-session-id", session).header("mcp-protocol-version", revision);
            }
            request.send()
        };
        let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": revision, "capabilities": { "elicitation": { "url": {} } },
            "clientInfo": { "name": "test", "version": "1" } } });
        let opened = post(None, initialize).await.unwrap();
        let session = opened.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        opened.text().await.unwrap();
        post(Some(session.clone()), json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await.unwrap();
        let call = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {
            "name": CONNECT, "arguments": { "provider": "google" } } });
        let answer = post(Some(session), call).await.unwrap().text().await.unwrap();
        let data = answer.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).rfind(|d| !d.is_empty());
        let answer: Value = serde_json::from_str(data.unwrap_or(&answer)).unwrap();
        assert_eq!(answer["error"]["code"].as_i64(), shape, "{revision}: {answer}");
        match shape {
            Some(_) => assert!(link_of(&answer).is_some(), "{revision}: {answer}"),
            None => assert!(link_of(&answer["result"]).is_some(), "{revision}: {answer}"),
        }
    }
}

#[tokio::test]
async fn a_retry_is_held_until_the_account_is_there() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"30s\"").start().await;
    for another in [false, true] {
        let alice = obo.client("alice").await;
        let arguments = json!({ "provider": "google", "another_account": another });
        let link = linked(&alice, arguments.clone()).await;
        let held: Vec<_> = (0..2)
            .map(|_| {
                let (alice, arguments) = (alice.clone(), arguments.clone());
                tokio::spawn(async move { alice.call(CONNECT, arguments).await })
            })
            .collect();
        let account = if another { "bob@example.com" } else { "alice@example.com" };
        obo.consent(&link, "alice", account).await;
        let mut told = 0;
        for held in held {
            // One that comes after the other was told may be a new call: then it is about what there is by then.
            let answer = held.await.unwrap();
            if link_of(&answer).is_none() {
                assert_eq!(value_of(&answer)["account"], account, "{answer}");
                told += 1;
            }
        }
        assert!(told >= 1, "another: {another}");
    }
}

#[tokio::test]
async fn one_more_account_is_asked_for_whatever_is_connected() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    let arguments = json!({ "provider": "google", "tool": "Google.SendEmail", "another_account": true });
    let link = linked(&alice, arguments.clone()).await;
    assert!(!forwarded_to(&obo, &link, "alice").await.contains_key("login_hint"));
    let early = alice.call(CONNECT, arguments.clone()).await;
    assert_eq!(link_of(&early).as_ref(), Some(&link), "a connection that there is is no answer: {early}");
    obo.consent(&link, "alice", "bob@example.com").await;
    let done = value_of(&alice.call(CONNECT, arguments.clone()).await);
    assert_eq!(
        (&done["status"], &done["account"], &done["accounts"]),
        (&json!("connected"), &json!("bob@example.com"), &json!(["alice@example.com", "bob@example.com"]))
    );

    // And once more, with the same arguments.
    let third = linked(&alice, arguments.clone()).await;
    assert_ne!(third, link);
    // There is no third person at this provider: the one who was picked is told, and how many there are by then.
    obo.consent(&third, "alice", "alice@example.com").await;
    let done = value_of(&alice.call(CONNECT, arguments).await);
    assert_eq!((&done["account"], done["accounts"].as_array().unwrap().len()), (&json!("alice@example.com"), 2));

    // Without it nothing is asked: there is enough, with whichever account.
    let enough = value_of(&alice.call(CONNECT, json!({ "provider": "google", "tool": "Google.SendEmail" })).await);
    assert_eq!(enough["status"], "already_connected");
    // Asked for more without a name, it does not guess which one.
    let which = alice.call(CONNECT, json!({ "provider": "google" })).await;
    assert_eq!(code_of(&which).as_deref(), Some("account_required"), "{which}");
    let named = alice.call(CONNECT, json!({ "provider": "google", "account": "BOB@example.com" })).await;
    assert_eq!(forwarded_to(&obo, &link_of(&named).unwrap(), "alice").await["login_hint"], "bob@example.com");
}

#[tokio::test]
async fn a_decline_is_told_once_and_then_asked_anew() {
    let obo = unheld().await;
    for another in [false, true] {
        let alice = obo.client("alice").await.with_url_elicitation();
        let arguments = json!({ "provider": "google", "another_account": another });
        let first = alice.call(CONNECT, arguments.clone()).await;
        let (link, state) = (link_of(&first).unwrap(), first["requestState"].clone());
        decline(&obo, &link, "alice").await;
        for _ in 0..2 {
            let told = alice.call_with(CONNECT, arguments.clone(), json!({ "requestState": state })).await;
            assert_eq!(code_of(&told).as_deref(), Some("authorization_required"), "{told}");
            assert!(text(&told).contains("declined"), "{told}");
        }
        let second = alice.call(CONNECT, arguments.clone()).await;
        let anew = link_of(&second).unwrap_or_else(|| panic!("{second}"));
        assert_ne!(anew, link);
        // A client without a state hears of it too, once.
        decline(&obo, &anew, "alice").await;
        let told = alice.call(CONNECT, arguments.clone()).await;
        assert!(text(&told).contains("declined"), "{told}");
        assert!(link_of(&alice.call(CONNECT, arguments).await).is_some());
    }
    assert_eq!(obo.provider.token_requests(), 0);
}

#[tokio::test]
async fn what_was_not_allowed_and_which_account_it_was_is_said() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    let all = json!({ "provider": "google" });
    let link = linked(&alice, all.clone()).await;
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back =
        obo.provider.consent_to(&forwarded, "alice@example.com", &["openid", "email", SEND_SCOPE]).await.unwrap();
    assert_eq!(browser.get(&back).await.status, 200);
    let partly = value_of(&alice.call(CONNECT, all.clone()).await);
    assert_eq!(partly["status"], "connected");
    assert_eq!(partly["not_allowed"].as_array().unwrap().len(), 9, "{partly}");
    assert!(partly["not_allowed"].to_string().contains("read your e-mail"), "{partly}");

    // It ends, and is renewed with another account than the one that was meant.
    obo.provider.revoke_all("alice@example.com");
    assert!(link_of(&alice.call(SEND, mail("bob@example.com", "x")).await).is_some());
    let renew = json!({ "provider": "google", "account": "alice@example.com" });
    let link = linked(&alice, renew.clone()).await;
    obo.consent(&link, "alice", "bob@example.com").await;
    let other = value_of(&alice.call(CONNECT, renew.clone()).await);
    assert_eq!((&other["account"], &other["asked_for"]), (&json!("bob@example.com"), &json!("alice@example.com")));
    // It still needs to be renewed, and is.
    let link = linked(&alice, renew.clone()).await;
    obo.consent(&link, "alice", "alice@example.com").await;
    let renewed = value_of(&alice.call(CONNECT, renew).await);
    assert_eq!((&renewed["account"], renewed.get("asked_for")), (&json!("alice@example.com"), None));
    let listed = value_of(&alice.call(LIST, json!({})).await);
    let states: Vec<&Value> = listed["connections"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["active", "active"]);
}

#[tokio::test]
async fn what_was_connected_and_ended_since_is_asked_for_anew() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    let all = json!({ "provider": "google" });
    let link = linked(&alice, all.clone()).await;
    let mut browser = Browser::new();
    let page = obo.consent_in(&mut browser, &link, "alice", "alice@example.com").await;
    assert_eq!(browser.submit(&page, &[]).await.status, 200, "disconnected on the page at once");
    let asked = alice.call(CONNECT, all).await;
    assert!(link_of(&asked).is_some_and(|anew| anew != link), "{asked}");
}

#[tokio::test]
async fn disconnect_never_guesses_and_says_what_the_provider_said() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    let google = json!({ "provider": "google" });
    let nothing = alice.call(DISCONNECT, google.clone()).await;
    assert_eq!(code_of(&nothing).as_deref(), Some("not_found"), "{nothing}");
    for account in ["alice@example.com", "bob@example.com"] {
        one_more(&obo, "alice", account).await;
    }
    let which = alice.call(DISCONNECT, google.clone()).await;
    assert_eq!(code_of(&which).as_deref(), Some("account_required"), "{which}");
    assert!(text(&which).contains("alice@example.com, bob@example.com"), "{which}");
    let unknown = alice.call(DISCONNECT, json!({ "provider": "google", "account": "carol@example.com" })).await;
    assert_eq!(code_of(&unknown).as_deref(), Some("account_required"), "{unknown}");
    assert!(obo.provider.families().iter().all(|family| family.ended.is_none()));

    // A default stands for calls, not for an end.
    let person = subject(&obo, "alice").await.person().clone();
    let key = &obo.app.obo.consent().connections(&person).await.unwrap()[0].account.key;
    obo.app.obo.consent().prefer(&person, "google", key, "test").await.unwrap().unwrap();
    let which = alice.call(DISCONNECT, google.clone()).await;
    assert_eq!(code_of(&which).as_deref(), Some("account_required"), "{which}");

    let ended =
        value_of(&alice.call(DISCONNECT, json!({ "provider": "google", "account": "alice@example.com" })).await);
    assert_eq!(
        ended,
        json!({
            "status": "disconnected", "provider": "google", "account": "alice@example.com",
            "confirmed_by_provider": true,
            "message": "Google has confirmed that the tokens of alice@example.com are void.",
        })
    );
    assert_eq!(obo.provider.families().iter().filter(|family| family.ended.is_some()).count(), 1);

    obo.provider.fault("/revoke", 10, Fault::Status(500, json!({})));
    let unsure = value_of(&alice.call(DISCONNECT, google.clone()).await);
    assert_eq!((&unsure["account"], &unsure["confirmed_by_provider"]), (&json!("bob@example.com"), &json!(false)));
    assert!(unsure["message"].as_str().unwrap().contains("at Google too"), "{unsure}");
    assert_eq!(code_of(&alice.call(DISCONNECT, google).await).as_deref(), Some("not_found"));
    assert_eq!(value_of(&alice.call(LIST, json!({})).await)["connections"], json!([]));
}

#[tokio::test]
async fn wrong_arguments_are_named_and_nothing_is_asked() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    for (tool, arguments, named) in [
        (CONNECT, json!({}), "provider"),
        (CONNECT, json!({ "provider": "github" }), "provider"),
        (CONNECT, json!({ "provider": "google", "tool": "Slack.PostMessage" }), "Google.SendEmail"),
        (CONNECT, json!({ "provider": "google", "tool": "Obo.Connect" }), "no such tool"),
        (CONNECT, json!({ "provider": "google", "tool": "Google.DeleteEmail" }), "no such tool"),
        (CONNECT, json!({ "provider": "google", "account": "a", "another_account": true }), "not both"),
        (CONNECT, json!({ "provider": "google", "scope": "x" }), "scope"),
        (CONNECT, json!({ "provider": "google", "account": 7 }), "account"),
        (DISCONNECT, json!({}), "provider"),
        (LIST, json!({ "user": "bob" }), "there are no arguments"),
        (LIST, json!({ "account": "bob@example.com" }), "there are no arguments"),
    ] {
        let refused = alice.call(tool, arguments.clone()).await;
        assert_eq!(code_of(&refused).as_deref(), Some("invalid_arguments"), "{arguments}: {refused}");
        assert!(text(&refused).contains(named), "{arguments}: {refused}");
    }
    let person = subject(&obo, "alice").await.person().clone();
    assert!(obo.app.obo.consent().connections(&person).await.unwrap().is_empty());
}

#[tokio::test]
async fn tools_that_are_not_enabled_are_not_there() {
    let obo = TestObo::builder().config("[tools]\nenable = [\"Google.*\", \"Obo.ListConnections\"]").start().await;
    let alice = obo.client("alice").await;
    for tool in [CONNECT, DISCONNECT, "Obo.Connect"] {
        let unknown = alice.call(tool, json!({ "provider": "google" })).await;
        assert_eq!(unknown.pointer("/error/code"), Some(&json!(-32602)), "{tool}: {unknown}");
    }
    let listed = value_of(&alice.call("Obo.ListConnections", json!({})).await);
    assert_eq!(listed["not_connected"].as_array().unwrap().len(), 1, "Slack has no offered tool: {listed}");
}

#[tokio::test]
async fn t13_t19_nobody_sees_or_ends_what_is_somebody_elses() {
    let obo = unheld().await;
    one_more(&obo, "alice", "alice@example.com").await;
    obo.connect("alice", "alice", "Slack_ListChannels", json!({})).await;
    let alices = value_of(&obo.client("alice").await.call(LIST, json!({})).await)["connections"].clone();
    let key = {
        let person = subject(&obo, "alice").await.person().clone();
        obo.app.obo.consent().connections(&person).await.unwrap()[0].account.key.clone()
    };
    let strangers = [
        obo.client("bob").await,
        // Her name, in another tenant.
        Mcp::new(&obo.base, Some(obo.token_in("acme", "alice").await)),
    ];
    for stranger in &strangers {
        let listed = value_of(&stranger.call(LIST, json!({})).await);
        assert_eq!(listed["connections"], json!([]), "{listed}");
        for account in ["alice@example.com", "ALICE@example.com", key.as_str(), "alice", "*", ""] {
            for provider in ["google", "Google", "slack", "*", "default|obo|alice", "../google", ""] {
                let arguments = json!({ "provider": provider, "account": account });
                let refused = stranger.call(DISCONNECT, arguments.clone()).await;
                assert_eq!(code_of(&refused).as_deref(), Some("not_found"), "{arguments}: {refused}");
                assert!(!refused.to_string().contains("example.com"), "{arguments}: {refused}");
            }
            let asked = stranger.call(CONNECT, json!({ "provider": "google", "account": account })).await;
            let link = link_of(&asked).unwrap_or_else(|| panic!("{asked}"));
            assert!(!asked.to_string().contains("example.com/") && !asked.to_string().contains(&key), "{asked}");
            assert!(!Browser::new().get(&link).await.text.contains("alice@example.com"));
        }
        for argument in ["user", "user_id", "person", "tenant", "source", "on_behalf_of"] {
            for tool in [LIST, CONNECT, DISCONNECT] {
                let refused = stranger.call(tool, json!({ "provider": "google", argument: "alice" })).await;
                assert_eq!(code_of(&refused).as_deref(), Some("invalid_arguments"), "{tool} {argument}: {refused}");
            }
        }
    }
    // With connections of their own, they see and end these and no other.
    one_more(&obo, "bob", "bob@example.com").await;
    let bobs = value_of(&strangers[0].call(LIST, json!({})).await);
    assert_eq!(bobs["connections"].as_array().unwrap().len(), 1);
    assert!(!bobs.to_string().contains("alice"), "{bobs}");
    let refused = strangers[0].call(DISCONNECT, json!({ "provider": "google", "account": "alice@example.com" })).await;
    assert_eq!(code_of(&refused).as_deref(), Some("account_required"), "{refused}");
    assert!(!text(&refused).contains("alice@"), "{refused}");
    value_of(&strangers[0].call(DISCONNECT, json!({ "provider": "google" })).await);
    assert_eq!(value_of(&obo.client("alice").await.call(LIST, json!({})).await)["connections"], alices);
    assert_eq!(obo.provider.families().iter().filter(|family| family.ended.is_some()).count(), 1);
}

#[tokio::test]
async fn t1_somebody_else_cannot_finish_what_connect_asked_for() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    let link = linked(&alice, json!({ "provider": "google" })).await;
    let mut bobs = Browser::new();
    let page = bobs.get(&link).await;
    let token = obo.token_for("bob").await;
    bobs.submit(&page, &[("token", &token)]).await;
    assert_eq!(bobs.get(&link).await.status, 403);
    let still = alice.call(CONNECT, json!({ "provider": "google" })).await;
    assert_eq!(link_of(&still), Some(link), "{still}");
}

#[tokio::test]
async fn every_call_is_on_record_with_what_it_was_about() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    let marked = "marked-argument-text";
    value_of(&alice.call(LIST, json!({})).await);
    let link = linked(&alice, json!({ "provider": "google" })).await;
    obo.consent(&link, "alice", "alice@example.com").await;
    value_of(&alice.call(CONNECT, json!({ "provider": "google" })).await);
    alice.call(CONNECT, json!({ "provider": "google", "tool": marked })).await;
    alice.call(DISCONNECT, json!({ "provider": marked })).await;
    value_of(&alice.call(DISCONNECT, json!({ "provider": "google" })).await);

    let outcomes = |records: Vec<Record>| -> Vec<(Option<String>, Option<String>, Option<String>)> {
        let ended = records.into_iter().filter(|record| record.phase == Phase::Outcome);
        ended.map(|record| (record.provider, record.account, record.outcome)).collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(outcomes(calls(&obo, "Obo.ListConnections").await), [(None, None, some("ok"))]);
    assert_eq!(
        outcomes(calls(&obo, "Obo.Connect").await),
        [
            (some("google"), None, some("authorization_required")),
            (some("google"), some("alice@example.com"), some("ok")),
            (some("google"), None, some("invalid_arguments")),
        ]
    );
    assert_eq!(
        outcomes(calls(&obo, "Obo.Disconnect").await),
        [(None, None, some("not_found")), (some("google"), some("alice@example.com"), some("ok"))]
    );
    let all = obo.app.audit.read(|_| true).await.unwrap();
    let records = serde_json::to_string(&all).unwrap();
    assert!(!records.contains(marked), "a record has no argument's text");
    // Each call was on record before it did anything, and the end of the connection is a record of its own.
    for record in all.iter().filter(|record| record.phase == Phase::Outcome && record.tool.is_some()) {
        let intent = all.iter().find(|other| other.phase == Phase::Intent && other.call_id == record.call_id).unwrap();
        assert_eq!((&intent.provider, intent.arguments_hmac.is_some()), (&record.provider, true));
    }
    let noted = |what: &str| all.iter().any(|record| record.note.as_deref().is_some_and(|n| n.starts_with(what)));
    assert!(noted("consent.connected") && noted("disconnect.revoked"));
    assert!(obo.app.audit.verify().await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn without_a_record_nothing_is_asked_for_and_nothing_ended() {
    let obo = unheld().await;
    one_more(&obo, "alice", "alice@example.com").await;
    let alice = obo.client("alice").await;
    let database = Connection::open(obo.dir.path().join("data/obo.db")).unwrap();
    let no_room = "CREATE TRIGGER no_room BEFORE INSERT ON log BEGIN SELECT RAISE(ABORT, 'no room'); END;";
    database.execute_batch(no_room).unwrap();
    for (tool, arguments) in [
        (CONNECT, json!({ "provider": "google", "another_account": true })),
        (DISCONNECT, json!({ "provider": "google" })),
    ] {
        let refused = alice.call(tool, arguments).await;
        assert_eq!(code_of(&refused).as_deref(), Some("audit_unavailable"), "{refused}");
    }
    let listed = value_of(&alice.call(LIST, json!({})).await);
    assert_eq!(listed["connections"].as_array().unwrap().len(), 1, "a read goes on");
    assert!(obo.provider.families().iter().all(|family| family.ended.is_none()));
}

#[tokio::test]
async fn no_answer_has_a_secret() {
    let obo = unheld().await;
    let alice = obo.client("alice").await;
    let mut answers = String::new();
    let mut told = async |tool: &str, arguments: Value| {
        let answer = alice.call(tool, arguments).await;
        answers.push_str(&answer.to_string());
        answer
    };
    let link = link_of(&told(CONNECT, json!({ "provider": "google" })).await).unwrap();
    obo.consent(&link, "alice", "alice@example.com").await;
    told(CONNECT, json!({ "provider": "google" })).await;
    told(LIST, json!({})).await;
    told(DISCONNECT, json!({ "provider": "google" })).await;
    let secrets = obo.provider.secrets();
    assert!(secrets.len() > 3);
    assert!(!secrets.iter().any(|secret| answers.contains(secret.as_str())));
    for inner in ["fingerprint", "generation", "googleapis.com/token", "preferred_at"] {
        assert!(!answers.contains(inner), "{inner} is in {answers}");
    }
}

/// A permit says in its type what it is for: that of an own tool is of no use to the executor.
#[tokio::test]
async fn inv_1_a_permit_for_an_own_tool_is_no_permit_for_a_provider() {
    let obo = TestObo::start().await;
    let alice = subject(&obo, "alice").await;
    for tool in obo.app.catalog.tools() {
        let arguments = match tool.name.as_str() {
            "Obo.Connect" | "Obo.Disconnect" => json!({ "provider": "google" }),
            "Google.SendEmail" => mail("bob@example.com", "x"),
            "Obo.ListConnections" | "GoogleCalendar.ListEvents" => json!({}),
            _ => continue,
        };
        let Value::Object(arguments) = arguments else { panic!("not an object") };
        let permit = Policy.decide(&alice, tool, tool.arguments(arguments).unwrap()).unwrap();
        let mut entry = obo.app.audit.entry(CallId::new(), &permit, "test");
        let own = match obo.app.audit.intent(&mut entry, permit).await.unwrap().sorted() {
            Work::Api(permit) => {
                assert!(tool.api().is_some_and(|api| std::sync::Arc::ptr_eq(api, permit.work())));
                false
            }
            Work::Own(_) => true,
        };
        assert_eq!(own, tool.name.toolkit() == "Obo", "{}", tool.name);
    }
}

async fn subject(obo: &TestObo, user: &str) -> obo::identity::Subject {
    let token = Secret::new(obo.token_for(user).await);
    obo.app.obo.authenticate(&Credential::Bearer { token, obo_user: None }).await.unwrap()
}

#[tokio::test]
async fn the_shell_and_stdio_have_them_too() {
    let (program, provider) = Program::with_provider("").await;
    let run = async |arguments: &[&str]| program.run(&[arguments, &["--user", "alice"]].concat()).await;
    let connect = ["call", "Obo.Connect", "--input", r#"{"provider": "google", "tool": "Google_SendEmail"}"#];
    let asked = run(&connect).await;
    assert_eq!(asked.code, 3, "{asked:?}");
    assert_eq!(asked.stdout, "obo connect google --tool Google.SendEmail --user alice\n");

    let mut client = program.stdio("alice");
    let arguments = json!({ "provider": "google", "tool": "Google.SendEmail" });
    let link = link_of(&client.call(CONNECT, arguments.clone()).await).unwrap();
    let asked = run(&connect).await;
    assert_eq!((asked.code, asked.stdout.lines().count()), (3, 1), "{asked:?}");
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    let pressed = browser.submit(&page, &[]).await;
    let back = provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    assert_eq!(browser.get(&back).await.status, 200);
    assert_eq!(value_of(&client.call(CONNECT, arguments).await)["account"], "alice@example.com");
    assert_eq!(client.close().await.0, 0);

    let listed: Value = serde_json::from_str(&run(&["call", "Obo.ListConnections"]).await.stdout).unwrap();
    assert_eq!(listed["connections"][0]["account"], "alice@example.com");
    let planned = run(&["call", "Obo.ListConnections", "--dry-run"]).await;
    assert_eq!((planned.code, planned.stdout.as_str()), (2, ""), "{planned:?}");
    let input = ["--input", r#"{"provider": "google"}"#];
    let ended = run(&[&["call", "Obo.Disconnect", "--account", "alice@example.com"][..], &input].concat()).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap()["confirmed_by_provider"], true);
    let gone = run(&[&["call", "Obo.Disconnect"][..], &input].concat()).await;
    assert_eq!((gone.code, gone.stdout.as_str()), (1, ""), "{gone:?}");
    let shown = program.run(&["tools", "show", "Obo.Connect"]).await;
    assert!(shown.code == 0 && shown.stdout.contains("\"google\""), "{shown:?}");
    let shown: Value =
        serde_json::from_str(&program.run(&["tools", "show", "Obo_Connect", "--json"]).await.stdout).unwrap();
    assert_eq!((&shown["provider"], &shown["effect"]), (&json!(null), &json!("write")));
}

#[tokio::test]
async fn the_list_of_tools_says_what_each_does() {
    let obo = TestObo::start().await;
    let listed = obo.client("alice").await.request("tools/list", json!({})).await;
    let find = |name: &str| {
        let tools = listed["result"]["tools"].as_array().unwrap();
        tools.iter().find(|tool| tool["name"] == name).unwrap_or_else(|| panic!("{name} is not in {listed}")).clone()
    };
    for (name, annotations) in [
        (LIST, json!({"readOnlyHint": true})),
        (CONNECT, json!({"destructiveHint": false, "idempotentHint": true})),
        (DISCONNECT, json!({"destructiveHint": true})),
    ] {
        assert_eq!(find(name)["annotations"], annotations, "{name}");
    }
    assert_eq!(find(CONNECT)["inputSchema"]["properties"]["provider"]["enum"], json!(["google", "slack"]));
    assert_eq!(find(LIST)["_meta"]["obo/name"], "Obo.ListConnections");
    assert_eq!(NEWEST, "2026-07-28");
}
