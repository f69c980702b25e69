//! T13, T19: one person's call is never another's, and tenants do not meet.

use std::collections::BTreeSet;

use reqwest::Response;
use serde_json::{Value, json};

use super::hygiene::Needles;
use super::mirror::Mirror;
use crate::support::mcp::{NEWEST, code_of, link_of, value_of};
use crate::support::{Browser, Mcp, TestObo, mail};

const SEND: &str = "Google_SendEmail";
const LIST: &str = "GoogleCalendar_ListEvents";

/// A call with these headers and this `_meta`, beside what the protocol needs.
async fn call(
    obo: &TestObo,
    token: &str,
    tool: &str,
    arguments: Value,
    meta: Value,
    headers: &[(&str, &str)],
) -> Response {
    let mut all = json!({
        "io.modelcontextprotocol/protocolVersion": NEWEST,
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    all.as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
    let params = json!({ "name": tool, "arguments": arguments, "_meta": all });
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = http
        .post(format!("{}/mcp", obo.base))
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", NEWEST)
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool)
        .bearer_auth(token)
        .json(&json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn t13_nothing_in_a_request_but_its_bearer_says_who_calls() {
    let obo = TestObo::start().await;
    for user in ["alice", "bob"] {
        obo.connect(user, &format!("{user}@example.com"), LIST, json!({})).await;
    }
    let alice = obo.token_for("alice").await;
    let bob = obo.token_for("bob").await;
    let before = obo.provider.log().len();

    // In the arguments: there is no such argument, except the one for accounts, which knows her own only.
    for name in ["user", "user_id", "person", "subject", "sub", "tenant", "source", "on_behalf_of", "obo_user", "_meta"]
    {
        let answer: Value =
            call(&obo, &alice, LIST, json!({ name: "bob" }), json!({}), &[]).await.json().await.unwrap();
        assert_eq!(code_of(&answer["result"]).as_deref(), Some("invalid_arguments"), "{name}: {answer}");
    }
    for account in ["bob@example.com", "BOB@EXAMPLE.COM", "100000000000000000002", "bob"] {
        let answer: Value =
            call(&obo, &alice, LIST, json!({ "account": account }), json!({}), &[]).await.json().await.unwrap();
        assert_eq!(code_of(&answer["result"]).as_deref(), Some("account_required"), "{account}: {answer}");
    }
    assert_eq!(obo.provider.log().len(), before);

    // In `_meta` and in headers: it is not looked at.
    let metas = ["user", "user_id", "sub", "obo/user", "obo/person", "tenant", "authorization", "obo/authorization"];
    for name in metas {
        let value = if name.ends_with("authorization") { json!(format!("Bearer {bob}")) } else { json!("bob") };
        let answer: Value =
            call(&obo, &alice, LIST, json!({}), json!({ name: value }), &[]).await.json().await.unwrap();
        value_of(&answer["result"]);
    }
    let bearer = format!("Bearer {bob}");
    let headers = [
        ("x-user", "bob"),
        ("x-forwarded-user", "bob"),
        ("x-remote-user", "bob"),
        ("remote-user", "bob"),
        ("obo-tenant", "acme"),
        ("obo-source", "app:shop"),
        ("x-obo-user", "bob"),
        ("x-authorization", &bearer),
        ("proxy-authorization", &bearer),
        ("cookie", &bearer),
        ("forwarded", "for=127.0.0.1;host=evil.example"),
        ("x-forwarded-host", "evil.example"),
    ];
    for header in headers {
        let answer: Value = call(&obo, &alice, LIST, json!({}), json!({}), &[header]).await.json().await.unwrap();
        value_of(&answer["result"]);
    }
    let acted: Vec<_> = obo.provider.log().split_off(before).into_iter().map(|call| call.user.unwrap()).collect();
    assert_eq!(acted.len(), metas.len() + headers.len());
    assert!(acted.iter().all(|user| user == "alice@example.com"), "{acted:?}");

    // Where it would mean something, it is refused: she is no application, and one request has one bearer.
    for header in [("obo-user", "bob"), ("obo-user", "alice"), ("authorization", bearer.as_str())] {
        let refused = call(&obo, &alice, LIST, json!({}), json!({}), &[header]).await;
        assert_eq!(refused.status(), 401, "{}", header.0);
    }
    let records = obo.app.audit.read(|r| r.tool.is_some() && r.outcome.as_deref() == Some("ok")).await.unwrap();
    assert_eq!(records.len(), metas.len() + headers.len());
    assert!(records.iter().all(|record| record.user.as_deref() == Some("alice")));
}

#[tokio::test]
async fn t13_nothing_of_the_clients_request_is_passed_on() {
    let mirror = Mirror::start().await;
    let obo = mirror.obo().await;
    assert_eq!(mirror.connect(&obo, "alice").await.status, 200);
    let alice = obo.token_for("alice").await;
    let headers = [
        ("cookie", "session=c4nary-cookie-of-the-client"),
        ("x-api-key", "c4nary-key-of-the-client"),
        ("traceparent", "00-c4naryc4naryc4naryc4naryc4nary00-c4naryc4nary0000-01"),
        ("user-agent", "c4nary-agent-of-the-client/1"),
        ("accept-language", "c4nary-language"),
        ("x-forwarded-for", "203.0.113.77"),
    ];
    for tool in ["Mirror_Read", "Mirror_Write"] {
        let answer: Value =
            call(&obo, &alice, tool, json!({}), json!({ "c4nary": "c4nary-meta-of-the-client" }), &headers)
                .await
                .json()
                .await
                .unwrap();
        value_of(&answer["result"]);
    }
    let (asked, api) = (mirror.asked(), mirror.api());
    assert_eq!(api.len(), 2);
    let needles = Needles::of([alice.as_str(), "203.0.113.77"]);
    for asked in &asked {
        assert_eq!(needles.in_bytes(&asked.bytes()), None, "{}", asked.path);
        assert!(!String::from_utf8_lossy(&asked.bytes()).contains("c4nary"), "{}", asked.path);
    }
    // The person's own token of this provider, and no other.
    let token = mirror.tokens().pop().unwrap();
    assert!(api.iter().all(|asked| asked.headers["authorization"] == format!("Bearer {token}")));
}

/// Opens a link, signs in with this token, and goes through to the end.
async fn consent(obo: &TestObo, link: &str, token: &str, account: &str) -> u16 {
    let mut browser = Browser::new();
    let page = browser.get(link).await;
    browser.submit(&page, &[("token", token)]).await;
    let page = browser.get(link).await;
    if page.status != 200 {
        return page.status;
    }
    let forwarded = browser.submit(&page, &[]).await.location.unwrap();
    let back = obo.provider.consent(&forwarded, account).await.unwrap();
    browser.get(&back).await.status
}

#[tokio::test]
async fn t19_one_name_in_two_tenants_is_two_people() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await;
    let tokens = [obo.token_in("acme", "alice").await, obo.token_in("globex", "alice").await];
    let [acme, globex] = tokens.clone().map(|token| Mcp::new(&obo.base, Some(token)).with_url_elicitation());
    let arguments = || mail("bob@example.com", "x");

    // Links are not shared, although the need is the same.
    let asked = acme.call(SEND, arguments()).await;
    let others = globex.call(SEND, arguments()).await;
    let links = [link_of(&asked).unwrap(), link_of(&others).unwrap()];
    assert_ne!(links[0], links[1]);

    // A flow is its own tenant's alone.
    assert_eq!(consent(&obo, &links[0], &tokens[1], "bob@example.com").await, 403);
    assert_eq!(obo.provider.token_requests(), 0);

    // The state of a retry, too.
    let state = asked["requestState"].as_str().unwrap();
    let crossed = globex.call_with(SEND, arguments(), json!({ "requestState": state })).await;
    assert_eq!(crossed.pointer("/error/code"), Some(&json!(-32602)), "{crossed}");

    // A connection, and the account's name, are its own tenant's alone.
    assert_eq!(consent(&obo, &links[0], &tokens[0], "alice@example.com").await, 200);
    value_of(&acme.call(SEND, arguments()).await);
    let still = globex.call(SEND, arguments()).await;
    assert!(link_of(&still).is_some() && !still.to_string().contains("alice@example.com"), "{still}");
    let named = globex
        .call(SEND, json!({ "to": ["b@example.com"], "subject": "x", "text": "y", "account": "alice@example.com" }))
        .await;
    assert!(link_of(&named).is_some(), "{named}");
    let person = |tenant: &str| obo::id::Person {
        tenant: tenant.parse().unwrap(),
        source: obo::id::Source::obo(),
        user: "alice".parse().unwrap(),
    };
    let consents = obo.app.obo.consent();
    assert_eq!(consents.connections(&person("acme")).await.unwrap().len(), 1);
    for tenant in ["globex", "default"] {
        assert_eq!(consents.connections(&person(tenant)).await.unwrap().len(), 0, "{tenant}");
    }
    let key = consents.connections(&person("acme")).await.unwrap()[0].account.key.clone();
    assert!(consents.disconnect(&person("globex"), "google", &key, "test").await.unwrap().is_none());

    // So does a second account connect in the other tenant: each acts as its own.
    assert_eq!(consent(&obo, &links[1], &tokens[1], "bob@example.com").await, 200);
    value_of(&globex.call(SEND, arguments()).await);
    value_of(&acme.call(SEND, arguments()).await);
    let sends: Vec<_> = obo.provider.log().into_iter().filter(|call| call.path.ends_with("/send")).collect();
    let as_whom: Vec<_> = sends.iter().map(|call| call.user.as_deref().unwrap()).collect();
    assert_eq!(as_whom, ["alice@example.com", "bob@example.com", "alice@example.com"]);
    // Equal arguments look different in the audit of another tenant.
    let records = obo.app.audit.read(|r| r.arguments_hmac.is_some()).await.unwrap();
    let macs = |tenant: &str| -> BTreeSet<_> {
        records.iter().filter(|r| r.tenant.as_deref() == Some(tenant)).map(|r| r.arguments_hmac.clone()).collect()
    };
    assert!(macs("acme").is_disjoint(&macs("globex")));
}

#[tokio::test]
async fn t19_sessions_do_not_cross_tenants() {
    let obo = TestObo::start().await;
    let (acme, globex) = (obo.token_in("acme", "alice").await, obo.token_in("globex", "alice").await);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/mcp", obo.base);
    let post = |token: &str, session: Option<&str>, message: Value| {
        let mut request = http
            .post(&url)
            .bearer_auth(token)
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2025-11-25")
            .json(&message);
        if let Some(session) = session {
            request = request.header("mcp-session-id", session);
        }
        request.send()
    };
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } } });
    let opened = post(&acme, None, initialize).await.unwrap();
    let session = opened.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" });
    let theirs = post(&globex, Some(&session), ping.clone()).await.unwrap();
    let unknown = post(&globex, Some("00000000-0000-4000-8000-000000000000"), ping.clone()).await.unwrap();
    assert_eq!((theirs.status(), unknown.status()), (http::StatusCode::NOT_FOUND, http::StatusCode::NOT_FOUND));
    assert_eq!(theirs.text().await.unwrap(), unknown.text().await.unwrap());
    for method in [reqwest::Method::GET, reqwest::Method::DELETE] {
        let refused = http
            .request(method.clone(), &url)
            .bearer_auth(&globex)
            .header("accept", "text/event-stream")
            .header("mcp-protocol-version", "2025-11-25")
            .header("mcp-session-id", &session)
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), 404, "{method}");
    }
    assert_eq!(post(&acme, Some(&session), ping).await.unwrap().status(), 200, "it is still its own person's");
}
