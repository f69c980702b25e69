//! Manifests that change while the program runs: who hears of it, and what can be called then.

use std::pin::Pin;
use std::process::Stdio;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::Browser;
use crate::support::mcp::{NEWEST, link_of, value_of};
use crate::support::program::{Program, StdioClient};

const TOOLS: &str = "[tools]\ndirs = [\"./tools\"]\n";
/// After which nothing is expected any more; each of them comes within seconds.
const LONG: std::time::Duration = std::time::Duration::from_secs(60);
const CHANGED: &str = "notifications/tools/list_changed";

const UPCOMING: &str = r#"name = "GoogleCalendar.Upcoming"
title = "What comes next"
description = "Returns the summaries of the user's next events."
scopes = ["https://www.googleapis.com/auth/calendar.events"]
effect = "read"
[input]
type = "object"
[request]
method = "GET"
url = "{calendar}/calendars/primary/events"
[response]
value = '{summaries: [.items[]? | .summary]}'
"#;

/// A folder of a provider, empty at first.
fn folder(program: &Program) -> std::path::PathBuf {
    let folder = program.dir.path().join("tools/google");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

async fn names(client: &mut StdioClient) -> Vec<String> {
    let list = client.request("tools/list", json!({})).await;
    let tools = list["result"]["tools"].as_array().unwrap_or_else(|| panic!("{list}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_file_that_is_dropped_is_a_tool_until_it_is_broken_or_removed() {
    let (program, provider) = Program::with_provider(TOOLS).await;
    let file = folder(&program).join("upcoming.toml");
    let mut client = program.stdio("alice");
    let discovered = client.request("server/discover", json!({})).await;
    assert_eq!(discovered["result"]["capabilities"]["tools"]["listChanged"], true, "{discovered}");
    let wanted = json!({ "notifications": { "toolsListChanged": true } });
    let subscription = client.send("subscriptions/listen", wanted).await;
    client.notification("notifications/subscriptions/acknowledged").await;
    assert!(!names(&mut client).await.contains(&"GoogleCalendar_Upcoming".to_owned()));

    // As editors save: the text under another name, then renamed.
    std::fs::write(file.with_extension("tmp"), UPCOMING).unwrap();
    std::fs::rename(file.with_extension("tmp"), &file).unwrap();
    let heard = client.notification(CHANGED).await;
    assert_eq!(heard["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], subscription, "{heard}");
    assert!(names(&mut client).await.contains(&"GoogleCalendar_Upcoming".to_owned()));
    let asked = client.call("GoogleCalendar_Upcoming", json!({})).await;
    let mut browser = Browser::new();
    let page = browser.get(&link_of(&asked).unwrap_or_else(|| panic!("{asked}"))).await;
    let pressed = browser.submit(&page, &[]).await;
    let back = provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    browser.get(&back).await;
    assert_eq!(value_of(&client.call("GoogleCalendar_Upcoming", json!({})).await), json!({ "summaries": [] }));

    // Another answer of the same tool: clients need not hear of that, and the next call has it.
    std::fs::write(&file, UPCOMING.replace("summaries:", "titles:")).unwrap();
    until(&client, "catalog.replaced", 2).await;
    assert_eq!(value_of(&client.call("GoogleCalendar_Upcoming", json!({})).await), json!({ "titles": [] }));

    // Broken, it is left out, named once, and no other is.
    std::fs::write(&file, UPCOMING.replace("[.items[]?", "[.items[]? |")).unwrap();
    client.notification(CHANGED).await;
    let without = names(&mut client).await;
    assert!(!without.contains(&"GoogleCalendar_Upcoming".to_owned()), "{without:?}");
    assert!(without.contains(&"GoogleCalendar_ListEvents".to_owned()), "{without:?}");
    let another = program.dir.path().join("tools/google/next.toml");
    std::fs::write(&another, UPCOMING.replace("Upcoming", "Next")).unwrap();
    client.notification(CHANGED).await;
    let log = client.log();
    assert_eq!(log.matches("upcoming.toml:12:").count(), 1, "said once: {log}");

    std::fs::write(&file, UPCOMING).unwrap();
    client.notification(CHANGED).await;
    assert!(names(&mut client).await.contains(&"GoogleCalendar_Upcoming".to_owned()));
    std::fs::remove_file(&file).unwrap();
    client.notification(CHANGED).await;
    assert!(!names(&mut client).await.contains(&"GoogleCalendar_Upcoming".to_owned()));

    // An open subscription is no call that the end waits for.
    let (code, rest) = tokio::time::timeout(std::time::Duration::from_secs(15), client.close()).await.unwrap();
    let last: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!((code, &last["id"]), (0, &json!(subscription)), "{rest}");
}

/// Waits until the log of a client's server has said something this often.
async fn until(client: &StdioClient, text: &str, times: usize) {
    let begun = std::time::Instant::now();
    while client.log().matches(text).count() < times {
        assert!(begun.elapsed() < LONG, "there was no {text}: {}", client.log());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_file_that_breaks_never_gives_way_to_the_built_in_tool_it_replaces() {
    let (program, _provider) = Program::with_provider(TOOLS).await;
    let file = folder(&program).join("send-email.toml");
    let mine = UPCOMING.replace("GoogleCalendar.Upcoming", "Google.SendEmail");
    std::fs::write(&file, &mine).unwrap();
    let mut client = program.stdio("alice");
    client.send("subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } })).await;
    client.notification("notifications/subscriptions/acknowledged").await;
    assert!(names(&mut client).await.contains(&"Google_SendEmail".to_owned()));
    for broken in ["nothing at all", "name = \"Google.SendEmail\"\n\u{0}"] {
        std::fs::write(&file, broken).unwrap();
        client.notification(CHANGED).await;
        assert!(!names(&mut client).await.contains(&"Google_SendEmail".to_owned()), "{broken:?}");
        std::fs::write(&file, &mine).unwrap();
        client.notification(CHANGED).await;
    }
    std::fs::remove_file(&file).unwrap();
    client.notification(CHANGED).await;
    assert!(names(&mut client).await.contains(&"Google_SendEmail".to_owned()), "the built-in one, again");
}

/// A stream of events.
struct Events(Pin<Box<dyn futures::Stream<Item = String> + Send>>, String);

impl Events {
    fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.headers()["content-type"], "text/event-stream", "{response:?}");
        let chunks = response.bytes_stream().map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap());
        Self(Box::pin(chunks), String::new())
    }

    /// Reads until a line of data has this text in it.
    async fn until(&mut self, text: &str) -> String {
        loop {
            while let Some((line, rest)) = self.1.split_once('\n') {
                let (line, rest) = (line.to_owned(), rest.to_owned());
                self.1 = rest;
                if line.starts_with("data:") && line.contains(text) {
                    return line.trim_start_matches("data:").trim().to_owned();
                }
            }
            let chunk = tokio::time::timeout(LONG, self.0.next()).await;
            let chunk = chunk.unwrap_or_else(|_| panic!("there was no {text}: {}", self.1));
            self.1.push_str(&chunk.unwrap_or_else(|| panic!("ended before {text}: {}", self.1)));
        }
    }
}

#[tokio::test]
async fn clients_of_every_revision_and_transport_hear_of_it() {
    let (program, _provider) = Program::with_provider(TOOLS).await;
    let folder = folder(&program);
    let token = program.run(&["token", "issue", "--user", "alice"]).await.stdout.trim().to_owned();
    let mut serve = program.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(serve.stderr.take().unwrap()).lines();
    while !log.next_line().await.unwrap().expect("obo serve has ended").contains("listening") {}
    let reading = tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let base = format!("http://127.0.0.1:{}", program.port);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = |url: String, body: Value| {
        http.post(url).bearer_auth(&token).header("accept", "application/json, text/event-stream").json(&body)
    };

    // Revisions with a handshake: one session each, and its stream.
    let mut streams = Vec::new();
    for revision in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let params =
            json!({ "protocolVersion": revision, "capabilities": {}, "clientInfo": { "name": "c", "version": "1" } });
        let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
        let opened = post(format!("{base}/mcp"), initialize).send().await.unwrap();
        let session = opened.headers()["mcp-session-id"].clone();
        Events::of(opened).until("\"listChanged\":true").await;
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let told = post(format!("{base}/mcp"), initialized).header("mcp-session-id", &session);
        assert!(told.header("mcp-protocol-version", revision).send().await.unwrap().status().is_success());
        let stream = http.get(format!("{base}/mcp")).bearer_auth(&token).header("mcp-session-id", session);
        let stream = stream.header("mcp-protocol-version", revision).header("accept", "text/event-stream");
        streams.push((revision, Events::of(stream.send().await.unwrap())));
    }
    // HTTP+SSE.
    let mut sse = Events::of(http.get(format!("{base}/sse")).bearer_auth(&token).send().await.unwrap());
    let messages = sse.until("/messages").await;
    let params =
        json!({ "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": { "name": "c", "version": "1" } });
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
    post(format!("{base}{messages}"), initialize).send().await.unwrap();
    sse.until("listChanged").await;
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    post(format!("{base}{messages}"), initialized).send().await.unwrap();
    // Handled in order: with this answer the one before was taken in.
    post(format!("{base}{messages}"), json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" })).send().await.unwrap();
    sse.until("\"id\":2").await;
    streams.push(("2024-11-05", sse));
    // The newest has no session: it listens.
    let listen = |id: u64| {
        let params = json!({
            "notifications": { "toolsListChanged": true },
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": NEWEST,
                "io.modelcontextprotocol/clientInfo": { "name": "c", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        });
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": "subscriptions/listen", "params": params });
        post(format!("{base}/mcp"), body)
            .header("mcp-protocol-version", NEWEST)
            .header("mcp-method", "subscriptions/listen")
    };
    let mut listening = Events::of(listen(7).send().await.unwrap());
    listening.until("acknowledged").await;
    streams.push((NEWEST, listening));

    std::fs::write(folder.join("upcoming.toml"), UPCOMING).unwrap();
    for (revision, stream) in &mut streams {
        let heard: Value = serde_json::from_str(&stream.until(CHANGED).await).unwrap();
        assert_eq!(heard["method"], CHANGED, "{revision}");
    }

    // A person's subscriptions are counted, and given back.
    let mut open = Vec::new();
    let refused = loop {
        let answer = listen(8).send().await.unwrap();
        let mut events = Events::of(answer);
        let first = events.until("jsonrpc").await;
        let second =
            if first.contains("acknowledged") && open.len() == 19 { events.until("jsonrpc").await } else { first };
        if second.contains("too many subscriptions") {
            break second;
        }
        open.push(events);
        assert!(open.len() < 20, "there is no end of them");
    };
    assert!(refused.contains("close some first"), "{refused}");

    // Told to stop, it says so to whoever listens, and does not wait for them.
    #[cfg(unix)]
    {
        let pid = rustix::process::Pid::from_raw(i32::try_from(serve.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let (_, listening) = streams.last_mut().unwrap();
        listening.until("\"id\":7").await;
        drop((streams, open));
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), serve.wait()).await.unwrap();
        assert!(ended.unwrap().success());
        reading.await.unwrap();
    }
}
