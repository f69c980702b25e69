//! The test to read first: one call from its question to its record, in the order of `src/call.rs`; and a second person
//! beside it.

use serde_json::json;

use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::{Browser, Mcp, TestObo, mail};

#[tokio::test]
async fn two_people_each_act_as_themselves() {
    let obo = TestObo::start().await;
    let (alice, bob) = (obo.client("alice").await, obo.client("bob").await);

    // Who is this? Nobody is nobody.
    let nobody = Mcp::new(&obo.base, None);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let refused = http.post(format!("{}/mcp", obo.base)).json(&json!({})).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(
        refused.headers()["www-authenticate"].to_str().unwrap().contains("/.well-known/oauth-protected-resource/mcp")
    );
    drop(nobody);

    // What is asked for? A wrong argument is named, and nothing reaches the provider.
    let wrong = alice.call("Google_SendEmail", json!({ "to": ["bob@example.com"], "subjct": "hi" })).await;
    assert_eq!(code_of(&wrong).as_deref(), Some("invalid_arguments"), "{wrong}");
    assert!(obo.provider.log().is_empty());

    // Has the person said yes? Not yet: here is the link.
    let asked = alice.call("Google_SendEmail", mail("bob@example.com", "From Alice")).await;
    assert_eq!(asked["isError"], true);
    let link = link_of(&asked).unwrap();
    assert!(link.starts_with(&format!("{}/connect/", obo.base)), "{link}");
    assert!(!link.contains("alice"));

    // Bob cannot use Alice's link: the page tells him nothing, and nothing is connected.
    let mut bobs = Browser::new();
    let page = bobs.get(&link).await;
    let token = obo.token_for("bob").await;
    bobs.submit(&page, &[("token", &token)]).await;
    let refused = bobs.get(&link).await;
    assert_eq!(refused.status, 403);
    assert!(!refused.text.contains("Google") && !refused.text.contains("alice"), "{}", refused.text);
    assert_eq!(obo.provider.token_requests(), 0);

    // Alice opens it, sees who asks for what, and connects.
    let page = obo.consent(&link, "alice", "alice@example.com").await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("Connected as <strong>alice@example.com</strong>, for alice"), "{}", page.text);

    // The call goes through, as her.
    let sent = alice.call("Google_SendEmail", mail("bob@example.com", "From Alice")).await;
    assert!(value_of(&sent)["id"].is_string(), "{sent}");
    let inbox = obo.provider.mailbox("bob@example.com");
    assert!(inbox.iter().any(|mail| String::from_utf8_lossy(&mail.raw).contains("Subject: From Alice")), "{inbox:?}");

    // Bob is asked for his own account, and acts as himself.
    obo.connect("bob", "bob@example.com", "Google_SendEmail", mail("alice@example.com", "From Bob")).await;
    value_of(&bob.call("Google_SendEmail", mail("alice@example.com", "From Bob")).await);
    let sends: Vec<_> = obo.provider.log().into_iter().filter(|c| c.path.ends_with("/messages/send")).collect();
    let as_whom: Vec<_> = sends.iter().map(|call| call.user.clone().unwrap()).collect();
    assert_eq!(as_whom, ["alice@example.com", "bob@example.com"]);

    // Who did what? Intent before, outcome after, for each; and the chain is whole.
    let records = obo.app.audit.read(|r| r.tool.as_deref() == Some("Google.SendEmail")).await.unwrap();
    let told: Vec<_> = records
        .iter()
        .map(|r| {
            (
                r.user.as_deref().unwrap(),
                format!("{:?}", r.phase),
                r.outcome.as_deref().unwrap_or("-"),
                r.account.as_deref().unwrap_or("-"),
            )
        })
        .map(|(user, phase, outcome, account)| format!("{user} {phase} {outcome} {account}"))
        .collect();
    assert_eq!(
        told,
        [
            "alice Outcome invalid_arguments -",
            "alice Intent - -",
            "alice Outcome authorization_required -",
            "alice Intent - -",
            "alice Outcome ok alice@example.com",
            "bob Intent - -",
            "bob Outcome authorization_required -",
            "bob Intent - -",
            "bob Outcome ok bob@example.com",
        ]
    );
    let report = obo.app.audit.verify().await.unwrap();
    assert_eq!(report.problems, []);
    assert!(report.records >= 10);
}

#[tokio::test]
async fn consent_for_one_tool_is_not_consent_for_the_next() {
    let obo = TestObo::start().await;
    let alice = obo.client("alice").await;
    obo.connect("alice", "alice@example.com", "Google_SendEmail", mail("bob@example.com", "x")).await;

    // A tool that needs more asks for the scope that is missing, and for nothing else.
    let arguments = json!({ "query": "hello" });
    let asked = alice.call("Google_SearchEmails", arguments.clone()).await;
    let scopes = asked["_meta"]["obo/authorization"]["scopes"].clone();
    assert_eq!(scopes, json!(["https://www.googleapis.com/auth/gmail.readonly"]));
    let page = obo.consent(&link_of(&asked).unwrap(), "alice", "alice@example.com").await;
    assert_eq!(page.status, 200, "{}", page.text);

    // Both work now, on one connection.
    value_of(&alice.call("Google_SearchEmails", arguments).await);
    value_of(&alice.call("Google_SendEmail", mail("bob@example.com", "y")).await);
    let person = obo.app.audit.read(|r| r.note.as_deref() == Some("consent.connected")).await.unwrap();
    assert_eq!(person.len(), 2);
}
