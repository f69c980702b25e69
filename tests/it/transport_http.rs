//! MCP over sockets: every revision, and everybody who should get nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::join_all;
use obo::transport::http::{Ready, Scopes, Setup, limits, router, serve};
use obo::transport::{Config, ConsentDelivery};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::transport_fake::{Fake, LINK, initialize, modern, request};

const HANDSHAKES: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

struct Server {
    fake: Arc<Fake>,
    address: SocketAddr,
    http: reqwest::Client,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

struct Always(bool);

#[async_trait::async_trait]
impl Ready for Always {
    async fn ready(&self) -> bool {
        self.0
    }
}

impl Server {
    async fn start() -> Self {
        Self::start_with(Config::default(), true).await
    }

    async fn start_with(config: Config, ready: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Fake::new();
        let config = Config { listen: address, ..config };
        config.check().unwrap();
        let app = router(Setup {
            service: fake.clone(),
            config,
            listen: address,
            issuers: vec!["https://idp.example.com".to_owned()],
            scopes: Scopes::default(),
            sse_is_a_resource: false,
            mcp_sessions: None,
            ready: Arc::new(Always(ready)),
            further: axum::Router::new().route("/further", axum::routing::post(|| async { "further" })),
            unhosted: axum::Router::new(),
        });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, app, stop.clone()));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { fake, address, http, stop, serving }
    }

    fn to(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", self.address))
            .header("accept", "application/json, text/event-stream")
    }

    fn post(&self, user: &str, message: &Value) -> RequestBuilder {
        self.to(Method::POST, "/mcp")
            .bearer_auth(user)
            .header("content-type", "application/json")
            .body(message.to_string())
    }

    fn modern(&self, user: &str, message: &Value) -> RequestBuilder {
        let request = self
            .post(user, message)
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", message["method"].as_str().unwrap());
        match message["params"]["name"].as_str() {
            Some(name) => request.header("mcp-name", name),
            None => request,
        }
    }

    async fn open(&self, user: &str, revision: &str, capabilities: Value) -> Session<'_> {
        let response = self.post(user, &initialize(revision, capabilities)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let id = response.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        let opened = answer(response).await;
        assert_eq!(opened["result"]["protocolVersion"], revision);
        let session = Session { server: self, user: user.to_owned(), revision: revision.to_owned(), id };
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(session.post(&initialized).send().await.unwrap().status(), StatusCode::ACCEPTED);
        session
    }

    /// Writes a request by hand, and reads the head of its answer.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.unwrap() == 1 {
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }
}

struct Session<'a> {
    server: &'a Server,
    user: String,
    revision: String,
    id: String,
}

impl Session<'_> {
    fn with(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.header("mcp-session-id", &self.id);
        // The header came with 2025-06-18.
        if self.revision.as_str() >= "2025-06-18" {
            request.header("mcp-protocol-version", &self.revision)
        } else {
            request
        }
    }

    fn post(&self, message: &Value) -> RequestBuilder {
        self.with(self.server.post(&self.user, message))
    }

    async fn ask(&self, message: &Value) -> Value {
        answer(self.post(message).send().await.unwrap()).await
    }
}

/// The JSON-RPC answer of a response, from its body or from its stream.
async fn answer(response: Response) -> Value {
    let text = response.text().await.unwrap();
    let json = text.lines().map(|line| line.strip_prefix("data:").unwrap_or(line).trim());
    json.filter_map(|line| serde_json::from_str(line).ok()).next_back().unwrap_or_else(|| panic!("no answer: {text:?}"))
}

/// Reads a stream of events bit by bit.
struct Events {
    chunks: std::pin::Pin<Box<dyn futures::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    text: String,
}

impl Events {
    fn of(response: Response) -> Self {
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { chunks: Box::pin(response.bytes_stream()), text: String::new() }
    }

    /// The next event's fields, comments left out; none at the end.
    async fn next(&mut self) -> Option<Vec<(String, String)>> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                let fields: Vec<_> = event
                    .lines()
                    .filter_map(|line| line.split_once(':'))
                    .filter(|(name, _)| !name.is_empty())
                    .map(|(name, value)| (name.to_owned(), value.trim_start().to_owned()))
                    .collect();
                if !fields.is_empty() {
                    return Some(fields);
                }
            }
            self.text.push_str(std::str::from_utf8(&self.chunks.next().await?.ok()?).unwrap());
        }
    }

    async fn next_message(&mut self) -> Value {
        loop {
            let fields = self.next().await.expect("a message before the end");
            if let Some(message) = field(&fields, "data").and_then(|data| serde_json::from_str(&data).ok()) {
                return message;
            }
        }
    }
}

fn field(fields: &[(String, String)], name: &str) -> Option<String> {
    fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}

fn call(id: u64, name: &str, arguments: Value) -> Value {
    request(id, "tools/call", json!({"name": name, "arguments": arguments}))
}

// ---- Every revision ----

#[tokio::test]
async fn every_handshake_revision_lists_and_calls() {
    let server = Server::start().await;
    for revision in HANDSHAKES {
        let session = server.open("bob", revision, json!({})).await;
        let list = session.ask(&request(1, "tools/list", json!({}))).await;
        let tools = list["result"]["tools"].as_array().unwrap();
        let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Google_DeleteEmail", "Google_SendEmail", "Test_Echo", "Test_Fail", "Test_Wait"]);
        assert_eq!(tools[1]["_meta"]["obo/name"], "Google.SendEmail");
        assert_eq!(tools[1]["title"], "Title of Google.SendEmail");
        // What is left out is what the protocol takes for granted.
        assert_eq!(tools[0]["annotations"], json!({"destructiveHint": true}));
        assert_eq!(tools[1]["annotations"], json!({"destructiveHint": false}));
        assert_eq!(tools[2]["annotations"], json!({"readOnlyHint": true}));
        for spelling in ["Test_Echo", "Test.Echo"] {
            let called = session.ask(&call(2, spelling, json!({"a": 1}))).await;
            let text: Value = serde_json::from_str(called["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
            assert_eq!((&text["user"], &text["arguments"]), (&json!("bob"), &json!({"a": 1})));
            assert_eq!(called["result"].get("structuredContent").is_some(), revision >= "2025-06-18");
        }
        let failed = session.ask(&call(3, "Test.Fail", json!({}))).await;
        assert_eq!(failed["result"]["isError"], true);
        assert_eq!(failed["result"]["_meta"]["obo/error"], json!({"code": "not_found", "can_retry": false}));
        let hidden = session.ask(&call(4, "Test_OfAlice", json!({}))).await;
        assert_eq!(hidden["error"], json!({"code": -32602, "message": "Unknown tool: Test_OfAlice"}));
        let cursor = session.ask(&request(5, "tools/list", json!({"cursor": "x"}))).await;
        assert_eq!(cursor["error"]["code"], -32602);
    }
}

#[tokio::test]
async fn consent_is_asked_for_as_each_revision_has_it() {
    let server = Server::start().await;
    let url = json!({"elicitation": {"url": {}}});
    for revision in HANDSHAKES {
        for capabilities in [json!({}), json!({"elicitation": {}}), url.clone()] {
            let session = server.open("bob", revision, capabilities.clone()).await;
            let asked = session.ask(&call(1, "Google_SendEmail", json!({}))).await;
            if revision == "2025-11-25" && capabilities == url {
                assert_eq!(asked["error"]["code"], -32042);
                assert_eq!(asked["error"]["data"]["elicitations"][0]["url"], LINK);
            } else {
                assert_eq!(asked["result"]["isError"], true, "{revision} {capabilities}");
                assert!(asked["result"]["content"][0]["text"].as_str().unwrap().contains(LINK));
                assert_eq!(asked["result"]["_meta"]["obo/authorization"]["authorization_url"], LINK);
            }
        }
    }
    let message = |capabilities| modern(1, "tools/call", json!({"name": "Google.SendEmail"}), capabilities);
    let asked = answer(server.modern("bob", &message(url)).send().await.unwrap()).await;
    assert_eq!(asked["result"]["resultType"], "input_required");
    let told = answer(server.modern("bob", &message(json!({"elicitation": {}}))).send().await.unwrap()).await;
    assert_eq!((&told["result"]["isError"], &told["result"]["resultType"]), (&json!(true), &json!("complete")));
    assert_eq!(told["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "obo");

    let strict = Config { consent_delivery: ConsentDelivery::Elicit, ..Config::default() };
    let server = Server::start_with(strict, true).await;
    let refused = server.modern("bob", &message(json!({}))).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let refused = answer(refused).await;
    assert_eq!(refused["error"]["code"], -32021);
    assert_eq!(refused["error"]["data"], json!({"requiredCapabilities": {"elicitation": {"url": {}}}}));
}

#[tokio::test]
async fn a_retry_of_2026_07_28_goes_through_or_is_refused() {
    let server = Server::start().await;
    let url = json!({"elicitation": {"url": {}}});
    let retry = |state: &str, action: &str| {
        let responses = json!({"consent:google": {"action": action}});
        let params = json!({"name": "Google_SendEmail", "requestState": state, "inputResponses": responses});
        modern(2, "tools/call", params, url.clone())
    };
    let declined = answer(server.modern("bob", &retry("state of bob", "decline")).send().await.unwrap()).await;
    assert_eq!(declined["result"]["isError"], true);
    assert!(declined["result"]["content"][0]["text"].as_str().unwrap().contains(LINK));
    let of_another = answer(server.modern("mallory", &retry("state of bob", "accept")).send().await.unwrap()).await;
    assert_eq!(of_another["error"]["code"], -32602);
    server.fake.connect("bob");
    let done = answer(server.modern("bob", &retry("state of bob", "accept")).send().await.unwrap()).await;
    assert_eq!(done["result"]["structuredContent"], json!({"sent_as": "bob"}));
}

#[tokio::test]
async fn the_headers_of_2026_07_28_are_held_to() {
    let server = Server::start().await;
    let message = modern(1, "tools/call", json!({"name": "Test_Echo"}), json!({}));
    let list = modern(1, "tools/list", json!({}), json!({}));
    let mut unversioned = list.clone();
    unversioned["params"]["_meta"].as_object_mut().unwrap().remove("io.modelcontextprotocol/clientCapabilities");
    let unknown = list.to_string().replace("2026-07-28", "2099-01-01");
    let version = ("mcp-protocol-version", "2026-07-28");
    for (body, headers, status, code) in [
        (message.to_string(), vec![version, ("mcp-method", "tools/call"), ("mcp-name", "Test_Echo")], 200, None),
        (
            message.to_string(),
            vec![version, ("mcp-method", "tools/list"), ("mcp-name", "Test_Echo")],
            400,
            Some(-32020),
        ),
        (message.to_string(), vec![version, ("mcp-method", "tools/call"), ("mcp-name", "Other")], 400, Some(-32020)),
        (message.to_string(), vec![version, ("mcp-method", "tools/call")], 400, Some(-32020)),
        (message.to_string(), vec![("mcp-protocol-version", "2025-11-25")], 400, Some(-32020)),
        (unversioned.to_string(), vec![version, ("mcp-method", "tools/list")], 400, Some(-32602)),
        (unknown, vec![("mcp-protocol-version", "2099-01-01"), ("mcp-method", "tools/list")], 400, Some(-32022)),
        (
            modern(1, "nothing/here", json!({}), json!({})).to_string(),
            vec![version, ("mcp-method", "nothing/here")],
            404,
            Some(-32601),
        ),
        (modern(1, "ping", json!({}), json!({})).to_string(), vec![version, ("mcp-method", "ping")], 404, Some(-32601)),
    ] {
        let mut request = server.post("bob", &Value::Null).body(body.clone());
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{body} {headers:?}");
        assert_eq!(answer(response).await["error"]["code"].as_i64(), code, "{body} {headers:?}");
    }
    for method in [Method::GET, Method::DELETE] {
        let request = server.to(method.clone(), "/mcp").bearer_auth("bob").header(version.0, version.1);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    let found = modern(1, "server/discover", json!({}), json!({}));
    let found = answer(server.modern("bob", &found).send().await.unwrap()).await;
    assert_eq!(found["result"]["supportedVersions"].as_array().unwrap().len(), 5);
    assert_eq!((&found["result"]["ttlMs"], &found["result"]["cacheScope"]), (&json!(60_000), &json!("private")));
}

#[tokio::test]
async fn arguments_repeated_in_headers_are_compared() {
    let server = Server::start().await;
    let message = modern(1, "tools/call", json!({"name": "Test_Echo", "arguments": {"region": "eu"}}), json!({}));
    for (value, status) in [("eu", StatusCode::OK), ("us", StatusCode::BAD_REQUEST)] {
        let request = server.modern("bob", &message).header("mcp-param-region", value);
        assert_eq!(request.send().await.unwrap().status(), status, "{value}");
    }
}

// ---- Who is calling ----

#[tokio::test]
async fn without_a_good_bearer_there_is_nothing_anywhere() {
    let server = Server::start().await;
    let metadata = format!("resource_metadata=\"http://{}/.well-known/oauth-protected-resource/mcp\"", server.address);
    let session = server.open("alice", "2025-11-25", json!({})).await;
    for (method, path) in [
        (Method::POST, "/mcp"),
        (Method::GET, "/mcp"),
        (Method::DELETE, "/mcp"),
        (Method::PUT, "/mcp"),
        (Method::GET, "/sse"),
        (Method::POST, "/messages?sessionId=x"),
    ] {
        let request = || session.with(server.to(method.clone(), path));
        let none = request().send().await.unwrap();
        assert_eq!(none.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        assert_eq!(none.headers()["www-authenticate"], format!("Bearer {metadata}"));
        for wrong in ["Bearer bad", "Basic YWxpY2U6", "Bearer", "Bearer a b"] {
            let refused = request().header("authorization", wrong).send().await.unwrap();
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{wrong}");
            let challenge = refused.headers()["www-authenticate"].to_str().unwrap();
            assert!(challenge.starts_with(&format!("Bearer {metadata}, error=\"invalid_token\"")), "{challenge}");
        }
        let unknown = request().bearer_auth("down").send().await.unwrap();
        assert_eq!(unknown.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(unknown.headers().contains_key("retry-after"));
        let mark = if path.contains('?') { '&' } else { '?' };
        let in_query = server.to(method.clone(), &format!("{path}{mark}access_token=alice"));
        assert_eq!(in_query.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn an_application_names_its_user() {
    let server = Server::start().await;
    let message = modern(1, "tools/call", json!({"name": "Test_Echo"}), json!({}));
    let named = server.modern("shop", &message).header("obo-user", "customer 7").send().await.unwrap();
    let value = answer(named).await["result"]["structuredContent"].clone();
    assert_eq!((&value["user"], &value["tenant"]), (&json!("customer 7"), &json!("acme")));
    assert_eq!(server.modern("shop", &message).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn clients_learn_where_to_sign_in() {
    let server = Server::start().await;
    for path in ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"] {
        let document: Value = server.to(Method::GET, path).send().await.unwrap().json().await.unwrap();
        assert_eq!(document["resource"], format!("http://{}/mcp", server.address));
        assert_eq!(document["authorization_servers"], json!(["https://idp.example.com"]));
        assert_eq!(document["bearer_methods_supported"], json!(["header"]));
    }
}

// ---- Sessions ----

#[tokio::test]
async fn a_session_of_somebody_else_does_not_exist() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-11-25", json!({})).await;
    let events = session.with(server.to(Method::GET, "/mcp").bearer_auth("alice")).send().await.unwrap();
    assert_eq!(events.status(), StatusCode::OK);
    let ping = request(1, "ping", json!({})).to_string();
    for method in [Method::POST, Method::GET, Method::DELETE] {
        let attack = |user: &str, id: &str| {
            let mut request = server.to(method.clone(), "/mcp").bearer_auth(user).header("mcp-session-id", id);
            if method == Method::POST {
                request = request.header("content-type", "application/json").body(ping.clone());
            }
            request.header("last-event-id", "0")
        };
        let theirs = attack("mallory", &session.id).send().await.unwrap();
        let unknown = attack("mallory", "00000000-0000-4000-8000-000000000000").send().await.unwrap();
        assert_eq!((theirs.status(), unknown.status()), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND), "{method}");
        let comparable = |headers: &HeaderMap| {
            let mut names: Vec<_> = headers.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
            names.retain(|(name, _)| name != "date");
            names
        };
        assert_eq!(comparable(theirs.headers()), comparable(unknown.headers()));
        assert_eq!(theirs.text().await.unwrap(), unknown.text().await.unwrap());
        // The same name vouched for by another application, in another tenant, is somebody else.
        let namesake = attack("shop", &session.id).header("obo-user", "alice").send().await.unwrap();
        assert_eq!(namesake.status(), StatusCode::NOT_FOUND);
    }
    let twice = session.post(&request(1, "ping", json!({}))).header("mcp-session-id", "other").send().await.unwrap();
    assert_eq!(twice.status(), StatusCode::BAD_REQUEST);
    assert_eq!(session.ask(&request(2, "ping", json!({}))).await["result"], json!({}));
}

#[tokio::test]
async fn a_modern_request_cannot_carry_a_session() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-11-25", json!({})).await;
    let message = modern(1, "tools/call", json!({"name": "Test_Echo"}), json!({}));
    let response = server.modern("mallory", &message).header("mcp-session-id", &session.id).send().await.unwrap();
    assert_eq!(answer(response).await["result"]["structuredContent"]["user"], "mallory");
}

#[tokio::test]
async fn sessions_end_when_they_are_deleted() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-11-25", json!({})).await;
    let delete = || session.with(server.to(Method::DELETE, "/mcp").bearer_auth("alice")).send();
    assert_eq!(delete().await.unwrap().status(), StatusCode::OK);
    assert_eq!(delete().await.unwrap().status(), StatusCode::NOT_FOUND);
    let after = session.post(&request(1, "ping", json!({}))).send().await.unwrap();
    assert_eq!(after.status(), StatusCode::NOT_FOUND);
    let without = server.post("alice", &request(1, "ping", json!({}))).send().await.unwrap();
    assert_eq!(without.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_oldest_session_of_a_person_gives_way() {
    let server = Server::start().await;
    let first = server.open("alice", "2025-11-25", json!({})).await;
    let of_bob = server.open("bob", "2025-11-25", json!({})).await;
    for _ in 0..limits::MAX_SESSIONS_PER_PERSON {
        server.open("alice", "2025-11-25", json!({})).await;
    }
    let ping = request(1, "ping", json!({}));
    assert_eq!(first.post(&ping).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(of_bob.ask(&ping).await["result"], json!({}));
}

#[tokio::test]
async fn a_dropped_stream_is_taken_up_again() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-11-25", json!({})).await;
    let mut events = Events::of(session.post(&call(7, "Test_Wait", json!({}))).send().await.unwrap());
    let first = events.next().await.unwrap();
    let last = field(&first, "id").expect("an id to take up again from");
    server.fake.has_begun().await;
    drop(events);
    server.fake.release.add_permits(1);
    let resume = session.with(server.to(Method::GET, "/mcp").bearer_auth("alice")).header("last-event-id", &last);
    let mut events = Events::of(resume.send().await.unwrap());
    let message = events.next_message().await;
    assert_eq!((&message["id"], &message["result"]["content"][0]["text"]), (&json!(7), &json!("\"released\"")));
}

#[tokio::test]
async fn calls_side_by_side_get_their_own_answers() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-11-25", json!({})).await;
    let answers = join_all((1..=64).map(|id| {
        let message = call(id, "Test_Echo", json!({"n": id}));
        let request = session.post(&message).send();
        async move { (id, answer(request.await.unwrap()).await) }
    }));
    for (id, answer) in answers.await {
        assert_eq!(answer["id"], id);
        assert_eq!(answer["result"]["structuredContent"]["arguments"]["n"], id);
    }
}

// ---- Batches ----

#[tokio::test]
async fn batches_are_for_2025_03_26() {
    let server = Server::start().await;
    let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let session = server.open("alice", "2025-03-26", json!({})).await;
    let batch = json!([
        call(1, "Test_Echo", json!({"n": 1})),
        note,
        call(2, "Nothing_Here", json!({})),
        request(3, "ping", json!({})),
    ]);
    let response = session.post(&batch).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let answers: Vec<Value> = response.json().await.unwrap();
    let ids: Vec<_> = answers.iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(answers[1]["error"]["code"], -32602);
    assert_eq!(answers[2]["result"], json!({}));

    let notes = session.post(&json!([note, note])).send().await.unwrap();
    assert_eq!((notes.status(), notes.text().await.unwrap().as_str()), (StatusCode::ACCEPTED, ""));
    for bad in [
        json!([]),
        json!([1]),
        json!([initialize("2025-03-26", json!({}))]),
        json!([modern(1, "tools/list", json!({}), json!({}))]),
        Value::Array(vec![note.clone(); 51]),
        // Two answers with one id would be one answer, waited for twice.
        json!([request(1, "ping", json!({})), request(1, "ping", json!({}))]),
    ] {
        assert_eq!(session.post(&bad).send().await.unwrap().status(), StatusCode::BAD_REQUEST, "{bad}");
    }
    // In other sessions, without a session, under another revision's header, or in somebody else's session: nothing.
    let pings = json!([request(1, "ping", json!({}))]);
    for revision in ["2024-11-05", "2025-06-18", "2025-11-25"] {
        let other = server.open("alice", revision, json!({})).await;
        assert_eq!(other.post(&pings).send().await.unwrap().status(), StatusCode::BAD_REQUEST, "{revision}");
    }
    assert_eq!(server.post("alice", &pings).send().await.unwrap().status(), StatusCode::BAD_REQUEST);
    let stated = session.post(&pings).header("mcp-protocol-version", "2025-11-25").send().await.unwrap();
    assert_eq!(stated.status(), StatusCode::BAD_REQUEST);
    let theirs = server.post("mallory", &pings).header("mcp-session-id", &session.id).send().await.unwrap();
    assert_eq!(theirs.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_messages_of_a_batch_run_side_by_side() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-03-26", json!({})).await;
    let batch = json!([call(1, "Test_Wait", json!({})), call(2, "Test_Wait", json!({}))]);
    let sent = tokio::spawn(session.post(&batch).send());
    server.fake.has_begun().await;
    server.fake.has_begun().await;
    server.fake.release.add_permits(2);
    let answers: Vec<Value> = sent.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(answers.len(), 2);
}

// ---- What is not a request for us ----

#[tokio::test]
async fn hosts_and_origins_are_checked_before_anything_else() {
    let server = Server::start().await;
    let port = server.address.port();
    let head = |path: &str, host: &str| {
        format!("POST {path} HTTP/1.1\r\n{host}Content-Length: 0\r\nAuthorization: Bearer alice\r\n\r\n")
    };
    for (host, status) in [
        (format!("Host: 127.0.0.1:{port}\r\n"), "HTTP/1.1 415"),
        (format!("Host: localhost:{port}\r\n"), "HTTP/1.1 415"),
        (format!("Host: evil.example:{port}\r\n"), "HTTP/1.1 403"),
        (format!("Host: localhost.evil.example:{port}\r\n"), "HTTP/1.1 403"),
        (format!("Host: localhost:{port}\r\nHost: evil.example\r\n"), "HTTP/1.1 403"),
        (String::new(), "HTTP/1.1 4"),
    ] {
        let answer = server.raw(&head("/mcp", &format!("{host}Accept: application/json, text/event-stream\r\n"))).await;
        assert!(answer.starts_with(status), "{host}: {answer}");
    }
    let evil = server.raw(&head("/further", "Host: evil.example\r\n")).await;
    assert!(evil.starts_with("HTTP/1.1 403"), "{evil}");
    let probe = server.raw("GET /healthz HTTP/1.1\r\nHost: whatever\r\n\r\n").await;
    assert!(probe.starts_with("HTTP/1.1 200"), "{probe}");

    for (origin, status) in [
        (format!("http://127.0.0.1:{port}"), StatusCode::UNAUTHORIZED),
        (format!("http://localhost:{port}"), StatusCode::UNAUTHORIZED),
        (format!("http://localhost:{}", port.wrapping_add(1)), StatusCode::FORBIDDEN),
        ("null".to_owned(), StatusCode::FORBIDDEN),
        ("https://evil.example".to_owned(), StatusCode::FORBIDDEN),
    ] {
        for path in ["/mcp", "/messages"] {
            let response = server.to(Method::POST, path).header("origin", &origin).send().await.unwrap();
            assert_eq!(response.status(), status, "{origin} {path}");
        }
    }
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_ask_and_read() {
    let origin = "https://app.example.com";
    let config = Config { allowed_origins: vec![origin.to_owned()], ..Config::default() };
    let server = Server::start_with(config, true).await;
    let asked = server.to(Method::OPTIONS, "/mcp").header("origin", origin).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::NO_CONTENT);
    assert_eq!(asked.headers()["access-control-allow-origin"], origin);
    assert!(asked.headers()["access-control-allow-headers"].to_str().unwrap().contains("mcp-session-id"));
    let refused = server.to(Method::POST, "/mcp").header("origin", origin).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers()["access-control-allow-origin"], origin);
    let other = server.to(Method::OPTIONS, "/mcp").header("origin", "https://evil.example").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::FORBIDDEN);
    assert!(!other.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn bodies_that_are_no_messages_are_refused() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-11-25", json!({})).await;
    let deep =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{}1{}}}"#, r#"{"a":"#.repeat(64), "}".repeat(64));
    let sse = server.to(Method::GET, "/sse").bearer_auth("alice").send().await.unwrap();
    let mut events = Events::of(sse);
    let messages = field(&events.next().await.unwrap(), "data").unwrap();
    for (body, status, code) in [
        ("".to_owned(), 400, -32700),
        ("nonsense".to_owned(), 400, -32700),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping""#.to_owned(), 400, -32700),
        ("{}".to_owned(), 400, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","id":2}"#.to_owned(), 400, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":7}"#.to_owned(), 400, -32600),
        (deep, 400, -32600),
        (" ".repeat(limits::MAX_BODY_BYTES + 1), 413, -32600),
    ] {
        for request in [
            session.post(&Value::Null),
            server.to(Method::POST, &messages).bearer_auth("alice").header("content-type", "application/json"),
        ] {
            let response = request.body(body.clone()).send().await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{:.80}", body);
            assert_eq!(answer(response).await["error"]["code"], code, "{:.80}", body);
        }
    }
    let text = session.with(server.to(Method::POST, "/mcp")).bearer_auth("alice").body("{}").send().await.unwrap();
    assert_eq!(text.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let large = server.raw(&format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20))).await;
    assert!(large.starts_with("HTTP/1.1 431"), "{large}");
}

// ---- HTTP+SSE ----

#[tokio::test]
async fn the_older_transport_speaks_over_one_stream() {
    let server = Server::start().await;
    for revision in HANDSHAKES {
        let stream = server.to(Method::GET, "/sse").bearer_auth("alice").send().await.unwrap();
        assert_eq!(stream.headers()["x-accel-buffering"], "no");
        let mut events = Events::of(stream);
        let first = events.next().await.unwrap();
        assert_eq!(field(&first, "event").as_deref(), Some("endpoint"));
        let path = field(&first, "data").unwrap();
        let tell = |user: &str, message: Value| {
            let request = server.to(Method::POST, &path).bearer_auth(user);
            request.header("content-type", "application/json").body(message.to_string()).send()
        };
        let told = tell("alice", initialize(revision, json!({"elicitation": {"url": {}}}))).await.unwrap();
        assert_eq!(told.status(), StatusCode::ACCEPTED);
        assert_eq!(events.next_message().await["result"]["protocolVersion"], revision);
        tell("alice", json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await.unwrap();
        tell("alice", call(1, "Test_Echo", json!({}))).await.unwrap();
        let called = events.next_message().await;
        assert!(called["result"]["content"][0]["text"].as_str().unwrap().contains("alice"));
        tell("alice", call(2, "Google_SendEmail", json!({}))).await.unwrap();
        let asked = events.next_message().await;
        assert_eq!(asked["error"]["code"].as_i64(), (revision == "2025-11-25").then_some(-32042));

        let attack = tell("mallory", call(3, "Test_Echo", json!({}))).await.unwrap();
        assert_eq!(attack.status(), StatusCode::NOT_FOUND);
        let other_way = server.post("alice", &call(4, "Test_Echo", json!({})));
        let id = path.rsplit('=').next().unwrap();
        assert_eq!(other_way.header("mcp-session-id", id).send().await.unwrap().status(), StatusCode::NOT_FOUND);
        tell("alice", modern(5, "tools/list", json!({}), json!({}))).await.unwrap();
        assert_eq!(events.next_message().await["error"]["code"], -32022);
    }
    for query in ["", "?sessionId=unknown", "?sessionId=a&sessionId=b"] {
        let unknown = server.to(Method::POST, &format!("/messages{query}")).bearer_auth("alice").body("{}");
        assert_eq!(unknown.send().await.unwrap().status(), StatusCode::NOT_FOUND, "{query}");
    }
}

#[tokio::test]
async fn a_session_of_the_older_transport_ends_with_its_stream() {
    let server = Server::start().await;
    let mut events = Events::of(server.to(Method::GET, "/sse").bearer_auth("alice").send().await.unwrap());
    let path = field(&events.next().await.unwrap(), "data").unwrap();
    drop(events);
    loop {
        let ping = request(1, "ping", json!({})).to_string();
        let told = server.to(Method::POST, &path).bearer_auth("alice").body(ping).send().await.unwrap();
        if told.status() == StatusCode::NOT_FOUND {
            break;
        }
        assert_eq!(told.status(), StatusCode::ACCEPTED);
        tokio::task::yield_now().await;
    }
}

// ---- Health, and the end ----

#[tokio::test]
async fn probes_are_answered() {
    for (ready, status) in [(true, StatusCode::OK), (false, StatusCode::SERVICE_UNAVAILABLE)] {
        let server = Server::start_with(Config::default(), ready).await;
        assert_eq!(server.to(Method::GET, "/healthz").send().await.unwrap().status(), StatusCode::OK);
        assert_eq!(server.to(Method::GET, "/readyz").send().await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn the_end_waits_for_calls_and_closes_streams() {
    let server = Server::start().await;
    let session = server.open("alice", "2025-11-25", json!({})).await;
    let listening = session.with(server.to(Method::GET, "/mcp").bearer_auth("alice")).send().await.unwrap();
    let mut events = Events::of(server.to(Method::GET, "/sse").bearer_auth("alice").send().await.unwrap());
    let path = field(&events.next().await.unwrap(), "data").unwrap();
    let tell = |message: Value| server.to(Method::POST, &path).bearer_auth("alice").body(message.to_string()).send();
    tell(initialize("2024-11-05", json!({}))).await.unwrap();
    events.next_message().await;
    tell(call(1, "Test_Wait", json!({}))).await.unwrap();
    let streamed = session.post(&call(2, "Test_Wait", json!({}))).send().await.unwrap();
    let message = modern(3, "tools/call", json!({"name": "Test_Wait"}), json!({}));
    let stateless = tokio::spawn(server.modern("alice", &message).send());
    for _ in 0..3 {
        server.fake.has_begun().await;
    }
    server.stop.cancel();
    server.fake.release.add_permits(3);
    assert_eq!(events.next_message().await["id"], 1);
    assert_eq!(answer(streamed).await["id"], 2);
    assert_eq!(answer(stateless.await.unwrap().unwrap()).await["id"], 3);
    assert!(events.next().await.is_none());
    // Whether the stream that only listens ends by the book or is cut off makes no difference; it must end.
    let _ = listening.bytes().await;
    server.serving.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
