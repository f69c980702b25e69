//! Sessions of the revisions that have some go on at another process: a replica, or the same one started anew.

use std::net::SocketAddr;
use std::time::Duration;

use obo::app::site;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::TestObo;

const REVISION: &str = "2025-11-25";

/// A second server on the same store, which knows nothing of the sessions of the first.
async fn beside(obo: &TestObo) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let router = site(&obo.app, address).unwrap().router();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

/// A client of a revision with sessions.
struct Client {
    http: reqwest::Client,
    token: String,
    session: Option<String>,
}

impl Client {
    async fn of(obo: &TestObo, user: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, token: obo.token_for(user).await, session: None }
    }

    fn request(&self, method: reqwest::Method, base: &str) -> reqwest::RequestBuilder {
        let mut request = self
            .http
            .request(method, format!("{base}/mcp"))
            .bearer_auth(&self.token)
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", REVISION);
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        request
    }

    /// The status, and the answer where there is one.
    async fn post(&self, base: &str, method: &str, params: Value) -> (u16, Value, Option<String>) {
        let body = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
        let response = self.request(reqwest::Method::POST, base).json(&body).send().await.unwrap();
        let session = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data:")).rfind(|data| !data.trim().is_empty());
        (status, serde_json::from_str(data.unwrap_or(&text)).unwrap_or_default(), session)
    }

    async fn begin(mut self, base: &str) -> Self {
        let params = json!({
            "protocolVersion": REVISION,
            "capabilities": { "elicitation": { "url": {} } },
            "clientInfo": { "name": "an editor", "version": "3" },
        });
        let (status, _, session) = self.post(base, "initialize", params).await;
        assert_eq!(status, 200);
        self.session = session;
        assert!(self.session.is_some());
        self
    }

    async fn tools(&self, base: &str) -> (u16, usize) {
        let (status, answer, _) = self.post(base, "tools/list", json!({})).await;
        (status, answer["result"]["tools"].as_array().map_or(0, Vec::len))
    }

    async fn end(&self, base: &str) -> u16 {
        self.request(reqwest::Method::DELETE, base).send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn a_session_goes_on_at_a_process_that_did_not_begin_it() {
    let obo = TestObo::start().await;
    let other = beside(&obo).await;
    let alice = Client::of(&obo, "alice").await.begin(&obo.base).await;
    let here = alice.tools(&obo.base).await;
    assert!(here.0 == 200 && here.1 > 0, "{here:?}");
    assert_eq!(alice.tools(&other).await, here);
    // What the client said of itself is known there: that it opens links, and its name.
    let call =
        json!({ "name": "Google_SendEmail", "arguments": { "to": ["b@example.com"], "subject": "x", "text": "y" } });
    let (_, answer, _) = alice.post(&other, "tools/call", call).await;
    assert_eq!(answer["error"]["code"], -32042, "{answer}");
    let calls = obo.app.audit.recent_calls(&crate::offboarding::person("alice"), 1).await.unwrap();
    assert!(calls[0].actor.contains("an editor"), "{:?}", calls[0].actor);
}

#[tokio::test]
async fn a_session_is_nobody_elses_at_another_process() {
    let obo = TestObo::start().await;
    let other = beside(&obo).await;
    let alice = Client::of(&obo, "alice").await.begin(&obo.base).await;
    let mut mallory = Client::of(&obo, "mallory").await;
    mallory.session = alice.session.clone();
    assert_eq!(mallory.tools(&other).await.0, 404);
    assert_eq!(mallory.end(&other).await, 404);
    assert_eq!(alice.tools(&other).await.0, 200);
    // Also not once it is in use there.
    assert_eq!(mallory.tools(&other).await.0, 404);
    mallory.session = Some("0b0b0b0b-0b0b-4b0b-8b0b-0b0b0b0b0b0b".to_owned());
    assert_eq!(mallory.tools(&other).await.0, 404);
}

#[tokio::test]
async fn a_session_that_ends_anywhere_has_ended_everywhere() {
    let obo = TestObo::start().await;
    let other = beside(&obo).await;
    let alice = Client::of(&obo, "alice").await.begin(&obo.base).await;
    assert_eq!(alice.tools(&other).await.0, 200);
    assert_eq!(alice.end(&other).await, 200);
    for base in [&other, &obo.base] {
        assert_eq!(alice.tools(base).await.0, 404);
    }

    // By somebody's leaving.
    let bob = Client::of(&obo, "bob").await.begin(&obo.base).await;
    let person = crate::offboarding::person("bob");
    obo.app.obo.consent().leave(&person, None, "test").await.unwrap();
    let bob = Client { token: obo.token_for("bob").await, ..bob };
    for base in [&other, &obo.base] {
        assert_eq!(bob.tools(base).await.0, 404);
    }
}

#[tokio::test]
async fn a_session_ends_when_it_is_not_used_and_lasts_while_it_is() {
    let obo = TestObo::start().await;
    let other = beside(&obo).await;
    let alice = Client::of(&obo, "alice").await.begin(&obo.base).await;
    // Also when each use is at a process that has not seen it before.
    for base in [&obo.base, &other, &beside(&obo).await, &beside(&obo).await, &obo.base] {
        obo.clock.advance(Duration::from_secs(3 * 3600));
        assert_eq!(alice.tools(base).await.0, 200);
    }
    assert_eq!(alice.tools(&other).await.0, 200);
    obo.clock.advance(Duration::from_secs(8 * 3600));
    for base in [&other, &obo.base] {
        assert_eq!(alice.tools(base).await.0, 404);
    }
}

#[tokio::test]
async fn what_is_too_long_to_be_kept_stays_where_it_began() {
    let obo = TestObo::start().await;
    let (here, other) = (beside(&obo).await, beside(&obo).await);
    let client = Client::of(&obo, "alice").await;
    let params = json!({
        "protocolVersion": REVISION,
        "capabilities": {},
        "clientInfo": { "name": "x".repeat(64 << 10), "version": "3" },
    });
    let (status, _, session) = client.post(&here, "initialize", params).await;
    let client = Client { session, ..client };
    assert_eq!(status, 200);
    assert_eq!(client.tools(&here).await.0, 200);
    assert_eq!(client.tools(&other).await.0, 404);
}
