//! Tool lists are written out once for everybody who sees the same tools, and say what they would say otherwise.

use obo::consent::Wish;
use obo::id::{Person, Source, TenantId};
use serde_json::{Value, json};

use crate::support::TestObo;

/// Posts a message, and gives back the status, the length that was announced, and the body.
async fn post(obo: &TestObo, token: &str, headers: &[(&str, &str)], body: Value) -> (u16, Option<u64>, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(format!("{}/mcp", obo.base)).bearer_auth(token).json(&body);
    let request = request.header("accept", "application/json, text/event-stream");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.content_length(), answer.text().await.unwrap())
}

/// A `tools/list` of 2026-07-28 with some id.
async fn list(obo: &TestObo, token: &str, id: Value, params: Value) -> (u16, Option<u64>, Value) {
    let mut params = params;
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": crate::support::mcp::NEWEST,
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let headers = [("mcp-protocol-version", crate::support::mcp::NEWEST), ("mcp-method", "tools/list")];
    let body = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/list", "params": params });
    let (status, length, text) = post(obo, token, &headers, body).await;
    assert!(length.is_none_or(|length| length == text.len() as u64));
    (status, length, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

/// The same tools in a session of 2025-11-25, where nothing is written out before.
async fn list_in_session(obo: &TestObo, token: &str) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let send = |session: Option<&str>, body: Value| {
        let request = client.post(format!("{}/mcp", obo.base)).bearer_auth(token).json(&body);
        let request = request.header("accept", "application/json, text/event-stream");
        match session {
            Some(id) => request.header("mcp-session-id", id).header("mcp-protocol-version", "2025-11-25"),
            None => request,
        }
        .send()
    };
    let hello =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello });
    let opened = send(None, hello).await.unwrap();
    let session = opened.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    opened.text().await.unwrap();
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    send(Some(&session), ready).await.unwrap();
    let asked = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" });
    let text = send(Some(&session), asked).await.unwrap().text().await.unwrap();
    let line = text.lines().filter_map(|line| line.strip_prefix("data:")).rfind(|data| !data.trim().is_empty());
    serde_json::from_str::<Value>(line.unwrap_or(&text)).unwrap()["result"]["tools"].clone()
}

#[tokio::test]
async fn a_list_that_was_written_out_says_what_one_that_was_not_says() {
    let obo = TestObo::start().await;
    let (alice, bob) = (obo.token_for("alice").await, obo.token_for("bob").await);
    let plain = list_in_session(&obo, &alice).await;
    assert!(plain.as_array().is_some_and(|tools| tools.len() > 3), "{plain}");
    // Whatever the id is: it stands beside the tools in the answer.
    for id in [json!(1), json!("a"), json!("\"tools\":[]"), json!("{\"tools\":[]}"), json!("tools")] {
        for token in [&alice, &bob] {
            let (status, length, answer) = list(&obo, token, id.clone(), json!({})).await;
            assert_eq!((status, &answer["id"], &answer["result"]["tools"]), (200, &id, &plain));
            assert!(length.is_some(), "its length is announced");
        }
    }
    // What the protocol layer refuses it refuses still.
    let (status, _, refused) = list(&obo, &alice, json!(1), json!({ "cursor": "nonsense" })).await;
    assert!(status != 500 && refused["error"]["code"] == -32602 && refused["result"].is_null(), "{refused}");
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let (status, _, text) = post(&obo, "obo_nobody", &[], body).await;
    assert_eq!(status, 401, "{text}");
}

#[tokio::test]
async fn who_has_several_accounts_is_asked_which_and_nobody_else() {
    let obo = TestObo::start().await;
    for account in ["alice@example.com", "bob@example.com"] {
        connect(&obo, account).await;
    }
    let tools = async |user: &str| {
        let token = obo.token_for(user).await;
        list(&obo, &token, json!(1), json!({})).await.2["result"]["tools"].clone()
    };
    let accounts = |tools: &Value| tools.to_string().matches("bob@example.com").count();
    // In either order: one person's list is not kept for another.
    let (before, hers, after) = (tools("bob").await, tools("alice").await, tools("bob").await);
    assert!(accounts(&hers) > 0, "{hers}");
    assert_eq!((accounts(&before), before), (0, after));
}

/// Connects one more account of alice's.
async fn connect(obo: &TestObo, account: &str) {
    let person = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: "alice".parse().unwrap() };
    let provider = obo.app.catalog.provider("google").unwrap();
    let scopes = ["https://www.googleapis.com/auth/gmail.send".to_owned()].into();
    let link = obo.app.obo.consent().connect(Wish::new(&person, provider, scopes, "test")).await.unwrap();
    let page = obo.consent(link.url.as_str(), "alice", account).await;
    assert_eq!(page.status, 200, "{}", page.text);
}
