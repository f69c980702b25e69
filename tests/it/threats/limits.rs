//! T21: what one caller can make obo hold. Links per person stand in `consent.rs`; connections, heads and bodies of
//! single transports in `transport_http.rs` and beside their code.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::provider::{Fault, Gate};
use crate::support::mcp::{code_of, link_of};
use crate::support::{Browser, Mcp, TestObo};

/// The status of a request written by hand; its body never arrives.
async fn status_of(obo: &TestObo, token: Option<&str>, length: &str) -> u16 {
    let host = obo.base.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let bearer = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {host}\r\n{bearer}content-type: application/json\r\n\
         accept: application/json, text/event-stream\r\n{length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    std::str::from_utf8(&answer).unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn t21_a_body_is_refused_by_its_length_and_a_strangers_is_not_read() {
    let obo = TestObo::start().await;
    let token = obo.token_for("alice").await;
    let largest = obo::transport::http::limits::MAX_BODY_BYTES;
    assert_eq!(status_of(&obo, Some(&token), &format!("content-length: {}", largest + 1)).await, 413);
    // Nothing was sent, and yet there is an answer: who asks comes before what is asked.
    assert_eq!(status_of(&obo, None, &format!("content-length: {largest}")).await, 401);
    assert_eq!(status_of(&obo, None, "transfer-encoding: chunked").await, 401);
}

#[tokio::test]
async fn t21_one_person_has_at_most_a_hundred_sessions() {
    let obo = TestObo::start().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = |token: &str, session: Option<&str>, message: &Value| {
        let mut request = http
            .post(format!("{}/mcp", obo.base))
            .bearer_auth(token)
            .header("accept", "application/json, text/event-stream")
            .json(message);
        if let Some(session) = session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        request.send()
    };
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } } });
    let open = async |token: &str| {
        post(token, None, &initialize).await.unwrap().headers()["mcp-session-id"].to_str().unwrap().to_owned()
    };
    let (alice, bob) = (obo.token_for("alice").await, obo.token_for("bob").await);
    let (first, of_bob) = (open(&alice).await, open(&bob).await);
    let second = open(&alice).await;
    for _ in 0..obo::transport::http::limits::MAX_SESSIONS_PER_PERSON - 1 {
        open(&alice).await;
    }
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" });
    assert_eq!(post(&alice, Some(&first), &ping).await.unwrap().status(), 404, "the oldest gave way");
    assert_eq!(post(&alice, Some(&second), &ping).await.unwrap().status(), 200);
    assert_eq!(post(&bob, Some(&of_bob), &ping).await.unwrap().status(), 200, "nobody else's did");
}

#[tokio::test]
async fn t21_one_persons_links_do_not_use_up_anothers() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await;
    let person = obo::id::Person {
        tenant: obo::id::TenantId::default_tenant(),
        source: obo::id::Source::obo(),
        user: "alice".parse().unwrap(),
    };
    let provider = obo.app.catalog.provider("google").unwrap();
    for number in 0..obo::consent::MAX_OPEN_PER_PERSON {
        let scopes = [format!("scope-{number}")].into();
        obo.app.obo.consent().connect(obo::consent::Wish::new(&person, provider, scopes, "test")).await.unwrap();
    }
    let list = "GoogleCalendar_ListEvents";
    let full = obo.client("alice").await.call(list, json!({})).await;
    assert_eq!(code_of(&full).as_deref(), Some("rate_limited"), "{full}");
    assert!(link_of(&obo.client("bob").await.call(list, json!({})).await).is_some());
}

#[tokio::test]
async fn t21_arguments_too_deep_or_too_many_cost_a_line_at_most() {
    let obo = TestObo::start().await;
    let alice = obo.client("alice").await;
    let mut deep = json!("x");
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let before = obo.app.audit.read(|_| true).await.unwrap().len();
    for arguments in [json!({ "query": deep }), json!({ "query": "x".repeat(100_000) })] {
        let refused = alice.call("GoogleCalendar_ListEvents", arguments).await;
        assert!(code_of(&refused).as_deref() == Some("invalid_arguments") || refused["error"].is_object(), "{refused}");
    }
    let after = obo.app.audit.read(|_| true).await.unwrap();
    assert!(after.len() <= before + 2, "{after:?}");
    assert!(obo.provider.log().is_empty());
}

#[tokio::test]
async fn t21_one_persons_calls_are_limited_and_nobody_elses() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"\ncalls_per_minute = 3").start().await;
    let (alice, bob) = (obo.client("alice").await, obo.client("bob").await);
    let list = async |who: &Mcp| who.call("GoogleCalendar_ListEvents", json!({})).await;
    for _ in 0..3 {
        assert_eq!(code_of(&list(&alice).await), None);
    }
    let records = async || obo.app.audit.read(|_| true).await.unwrap().len();
    let before = records().await;
    // Whatever the tool, and whether or not there is one: it is the person who is counted.
    for tool in ["GoogleCalendar_ListEvents", "Slack_ListChannels", "nothing"] {
        let refused = alice.call(tool, json!({})).await;
        let error = &refused["_meta"]["obo/error"];
        assert_eq!((&error["code"], &error["can_retry"]), (&json!("rate_limited"), &json!(true)), "{refused}");
        let wait = error["retry_after_ms"].as_u64().unwrap();
        assert!((1..=20_000).contains(&wait), "{wait}");
    }
    assert_eq!(records().await, before, "what is refused this early costs no record");
    assert!(alice.request("tools/list", json!({})).await["result"]["tools"].is_array(), "only calls are counted");
    assert_eq!(code_of(&list(&bob).await), None);

    let unlimited = TestObo::builder().config("[server]\nconsent_wait = \"0s\"\ncalls_per_minute = 0").start().await;
    let alice = unlimited.client("alice").await;
    for _ in 0..20 {
        assert_eq!(code_of(&list(&alice).await), None);
    }
}

#[tokio::test]
async fn t21_calls_count_until_they_end_also_without_their_client() {
    const MOST: usize = 256;
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"\ncalls_per_minute = 0").start().await;
    obo.connect("alice", "alice@example.com", "GoogleCalendar_ListEvents", json!({})).await;
    let (alice, bob) = (obo.client("alice").await, obo.client("bob").await);
    let gate = Gate::new();
    obo.provider.fault("/calendar/v3/*", MOST, Fault::Hold(gate.clone()));
    let calls: Vec<_> = (0..MOST)
        .map(|_| {
            let alice = alice.clone();
            tokio::spawn(async move { alice.call("GoogleCalendar_ListEvents", json!({})).await })
        })
        .collect();
    gate.arrived(MOST).await;
    // The clients go away; the calls do not.
    for call in calls {
        call.abort();
    }
    let refused = alice.call("GoogleCalendar_ListEvents", json!({})).await;
    assert_eq!(code_of(&refused).as_deref(), Some("rate_limited"), "{refused}");
    assert!(link_of(&bob.call("GoogleCalendar_ListEvents", json!({})).await).is_some());
    gate.open();
    while code_of(&alice.call("GoogleCalendar_ListEvents", json!({})).await).is_some() {}
}

#[tokio::test]
async fn t21_links_that_are_ended_at_once_are_counted_too() {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"\ncalls_per_minute = 0").start().await;
    let (alice, bob) = (obo.client("alice").await, obo.client("bob").await);
    let list = async |who: &Mcp| who.call("GoogleCalendar_ListEvents", json!({})).await;
    let mut browser = Browser::new();
    for _ in 0..obo::consent::MAX_MADE_PER_PERSON {
        let link = link_of(&list(&alice).await).unwrap();
        let forwarded = url::Url::parse(&obo.press(&mut browser, &link, "alice").await).unwrap();
        let state = forwarded.query_pairs().find(|(key, _)| key == "state").unwrap().1.into_owned();
        // She needs no provider to say no.
        browser.get(&format!("{}/oauth/callback/google?error=access_denied&state={state}", obo.base)).await;
    }
    assert_eq!(code_of(&list(&alice).await).as_deref(), Some("rate_limited"));
    assert!(link_of(&list(&bob).await).is_some());
    obo.clock.advance(std::time::Duration::from_secs(600));
    assert!(link_of(&list(&alice).await).is_some());
}
