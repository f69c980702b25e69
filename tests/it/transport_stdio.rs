//! MCP over pipes: what is on stdout, in every revision, to the last answer.

use std::sync::Arc;

use obo::id::TenantId;
use obo::identity::Credential;
use obo::transport::{Settings, stdio};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::transport_fake::{Fake, LINK, initialize, modern, request};

struct Client {
    fake: Arc<Fake>,
    stdin: Option<DuplexStream>,
    stdout: Lines<BufReader<DuplexStream>>,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

impl Client {
    fn start() -> Self {
        Self::start_as("alice")
    }

    fn start_as(user: &str) -> Self {
        let fake = Fake::new();
        let (stdin, reader) = tokio::io::duplex(1 << 16);
        let (writer, stdout) = tokio::io::duplex(1 << 16);
        let credential = Credential::OsUser { tenant: TenantId::default_tenant(), user: user.parse().unwrap() };
        let stop = CancellationToken::new();
        let server =
            tokio::spawn(stdio::run_on(fake.clone(), credential, Settings::default(), reader, writer, stop.clone()));
        Self { fake, stdin: Some(stdin), stdout: BufReader::new(stdout).lines(), stop, server }
    }

    async fn send(&mut self, message: Value) {
        self.write(format!("{message}\n").as_bytes()).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).await.unwrap();
    }

    async fn answer(&mut self) -> Value {
        let line = self.stdout.next_line().await.unwrap().expect("an answer before the end");
        serde_json::from_str(&line).unwrap()
    }

    async fn ask(&mut self, message: Value) -> Value {
        self.send(message).await;
        self.answer().await
    }

    /// Closes stdin and reads stdout to its end.
    async fn close(mut self) -> Vec<Value> {
        drop(self.stdin.take());
        let mut rest = Vec::new();
        while let Some(line) = self.stdout.next_line().await.unwrap() {
            rest.push(serde_json::from_str(&line).unwrap());
        }
        self.server.await.unwrap().unwrap();
        rest
    }
}

#[tokio::test]
async fn every_handshake_revision_lists_and_calls() {
    for revision in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut client = Client::start();
        let opened = client.ask(initialize(revision, json!({}))).await;
        assert_eq!(opened["result"]["protocolVersion"], revision);
        assert_eq!(opened["result"]["serverInfo"]["name"], "obo");
        client.send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        let list = client.ask(request(1, "tools/list", json!({}))).await;
        assert_eq!(list["result"]["tools"][0]["name"], "Google_DeleteEmail");
        assert!(list["result"].get("_meta").is_none() && list["result"].get("ttlMs").is_none(), "{list}");
        let call = client.ask(request(2, "tools/call", json!({"name": "Test_Echo", "arguments": {"a": 1}}))).await;
        let text: Value = serde_json::from_str(call["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!((&text["user"], &text["arguments"]), (&json!("alice"), &json!({"a": 1})));
        assert_eq!(call["result"].get("structuredContent").is_some(), revision >= "2025-06-18", "{revision}");
        assert!(call["result"].get("resultType").is_none(), "{call}");
        assert_eq!(client.fake.actors.lock().unwrap().first().unwrap(), "probe 1");
        assert!(client.close().await.is_empty());
    }
}

#[tokio::test]
async fn the_revision_without_a_handshake_says_everything_inline() {
    let mut client = Client::start();
    let found = client.ask(modern(1, "server/discover", json!({}), json!({}))).await;
    assert_eq!(found["result"]["supportedVersions"].as_array().unwrap().len(), 5);
    assert_eq!((&found["result"]["ttlMs"], &found["result"]["cacheScope"]), (&json!(60_000), &json!("private")));
    let list = client.ask(modern(2, "tools/list", json!({}), json!({}))).await;
    assert_eq!((&list["result"]["ttlMs"], &list["result"]["cacheScope"]), (&json!(60_000), &json!("private")));
    assert_eq!(list["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "obo");
    let url = json!({"elicitation": {"url": {}}});
    let call = json!({"name": "Google.SendEmail", "arguments": {}});
    let asked = client.ask(modern(3, "tools/call", call.clone(), url.clone())).await;
    assert_eq!(asked["result"]["resultType"], "input_required");
    assert_eq!(asked["result"]["inputRequests"]["consent:google"]["params"]["url"], LINK);
    assert_eq!(asked["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "obo");

    let mut retry = call.clone();
    retry["requestState"] = asked["result"]["requestState"].clone();
    retry["inputResponses"] = json!({"consent:google": {"action": "accept"}});
    let waited = client.ask(modern(4, "tools/call", retry.clone(), url.clone())).await;
    assert_eq!((&waited["result"]["isError"], &waited["result"]["resultType"]), (&json!(true), &json!("complete")));
    client.fake.connect("alice");
    let done = client.ask(modern(5, "tools/call", retry.clone(), url.clone())).await;
    assert_eq!(done["result"]["structuredContent"], json!({"sent_as": "alice"}));
    retry["requestState"] = json!("state of bob");
    let forged = client.ask(modern(6, "tools/call", retry, url)).await;
    assert_eq!(forged["error"]["code"], -32602);
}

#[tokio::test]
async fn both_lifecycles_mix_on_one_process() {
    let mut client = Client::start();
    client.ask(modern(1, "server/discover", json!({}), json!({}))).await;
    client.ask(initialize("2025-06-18", json!({}))).await;
    let old = client.ask(request(2, "tools/call", json!({"name": "Test.Echo"}))).await;
    assert!(old["result"].get("resultType").is_none());
    let new = client.ask(modern(3, "tools/call", json!({"name": "Test.Echo"}), json!({}))).await;
    assert_eq!(new["result"]["resultType"], "complete");
}

#[tokio::test]
async fn the_end_of_stdin_waits_for_answers() {
    let mut client = Client::start();
    client.ask(initialize("2025-11-25", json!({}))).await;
    client.send(request(1, "tools/call", json!({"name": "Test_Wait"}))).await;
    client.fake.has_begun().await;
    drop(client.stdin.take());
    client.fake.release.add_permits(1);
    let rest = client.close().await;
    assert_eq!(rest[0]["result"]["content"][0]["text"], "\"released\"");
}

#[tokio::test]
async fn being_told_to_stop_waits_for_answers() {
    let mut client = Client::start();
    client.ask(initialize("2025-11-25", json!({}))).await;
    client.send(request(1, "tools/call", json!({"name": "Test_Wait"}))).await;
    client.fake.has_begun().await;
    client.stop.cancel();
    client.fake.release.add_permits(1);
    assert_eq!(client.answer().await["id"], 1);
    assert!(client.stdout.next_line().await.unwrap().is_none());
    client.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_end_before_the_beginning_is_clean() {
    assert!(Client::start().close().await.is_empty());
    let client = Client::start();
    client.stop.cancel();
    client.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_not_json_is_answered_and_harms_nothing() {
    let mut client = Client::start();
    client.write(b"hello\n").await;
    assert_eq!(client.answer().await["error"]["code"], -32700);
    client.ask(initialize("2025-11-25", json!({}))).await;
    let deep =
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{}{}}}\n", "{\"a\":".repeat(99), "1}");
    client.write(deep.as_bytes()).await;
    assert_eq!(client.answer().await["error"]["code"], -32600);
    assert_eq!(client.ask(request(2, "ping", json!({}))).await["result"], json!({}));
}

#[tokio::test]
async fn batches_of_2025_03_26_are_answered() {
    let mut client = Client::start();
    client.ask(initialize("2025-03-26", json!({}))).await;
    client.send(json!([request(1, "ping", json!({})), request(2, "ping", json!({}))])).await;
    let mut ids = [client.answer().await["id"].as_u64(), client.answer().await["id"].as_u64()];
    ids.sort_unstable();
    assert_eq!(ids, [Some(1), Some(2)]);
}

#[tokio::test]
async fn calls_side_by_side_get_their_own_answers() {
    let mut client = Client::start();
    client.ask(initialize("2025-11-25", json!({}))).await;
    for id in 1..=64 {
        client.send(request(id, "tools/call", json!({"name": "Test_Echo", "arguments": {"n": id}}))).await;
    }
    let mut seen = std::collections::HashSet::new();
    for _ in 1..=64 {
        let answer = client.answer().await;
        assert_eq!(answer["id"], answer["result"]["structuredContent"]["arguments"]["n"]);
        assert!(seen.insert(answer["id"].as_u64()));
    }
}

#[tokio::test]
async fn a_withdrawn_call_is_not_answered_and_the_end_does_not_wait_for_it() {
    let mut client = Client::start();
    client.ask(initialize("2025-11-25", json!({}))).await;
    client.send(request(1, "tools/call", json!({"name": "Test_Wait"}))).await;
    client.fake.has_begun().await;
    client.send(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})).await;
    assert_eq!(client.ask(request(2, "ping", json!({}))).await["id"], 2);
    assert!(client.close().await.is_empty());
}

#[tokio::test]
async fn a_defect_is_an_answer() {
    let mut client = Client::start();
    client.ask(initialize("2025-11-25", json!({}))).await;
    let call = json!({"name": "Test_Echo", "arguments": {"panic": true}});
    let broken = client.ask(request(1, "tools/call", call)).await;
    assert_eq!(broken["result"]["_meta"]["obo/error"]["code"], "internal");
    assert!(!broken.to_string().contains("asked for"), "{broken}");
}

#[cfg(unix)]
#[tokio::test]
async fn it_works_over_the_pipes_of_the_operating_system() {
    use tokio::net::unix::pipe;
    let (mut stdin, reader) = pipe::pipe().unwrap();
    let (writer, stdout) = pipe::pipe().unwrap();
    let credential = Credential::OsUser { tenant: TenantId::default_tenant(), user: "alice".parse().unwrap() };
    let stop = CancellationToken::new();
    let server = tokio::spawn(stdio::run_on(Fake::new(), credential, Settings::default(), reader, writer, stop));
    stdin.write_all(format!("{}\n", initialize("2025-11-25", json!({}))).as_bytes()).await.unwrap();
    drop(stdin);
    let mut lines = BufReader::new(stdout).lines();
    assert!(lines.next_line().await.unwrap().unwrap().contains("\"id\":0"));
    assert!(lines.next_line().await.unwrap().is_none());
    server.await.unwrap().unwrap();
}
