//! What a large catalog costs: reading a thousand manifests, answering `tools/list` with them, and what a typical call
//! spends on its template and its programs.
//!
//! `cargo bench --bench catalog`
//!
//! A figure beyond its bound ends the program with an error. The list is compared with the same bytes from a server that
//! does nothing else: client, obo and that server share this process and this machine's cores, and take short turns, so
//! that what else the machine does slows both down alike.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::post;
use obo::app::{self, App, Settings, Way};
use obo::catalog::{Catalog, ProviderConfig, ToolsConfig};
use obo::clock::SystemClock;
use obo::config::{Config, Environment};
use obo::executor::plan;
use obo::id::{Person, Source, TenantId};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Manifests of the operator's folder.
const TOOLS: usize = 1000;
/// Times that they are read; the figure is the median.
const LOADS: usize = 11;
/// Turns of the two servers.
const TURNS: usize = 30;
/// Requests in a turn.
const REQUESTS: usize = 32;
/// Typical calls.
const CALLS: u32 = 20_000;

/// The longest that reading the manifests may take.
const LOAD_WITHIN: Duration = Duration::from_millis(300);
/// How many times as long as the bare server's an answer may take.
const LIST_WITHIN: f64 = 2.0;
/// The longest that template and programs of a call may take.
const CALL_WITHIN: Duration = Duration::from_micros(50);

fn main() -> ExitCode {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().unwrap();
    write_manifests(&folder.path().join("tools"));
    let within = [load(folder.path()), tokio::runtime::Runtime::new().unwrap().block_on(list(folder.path())), call()];
    if within.iter().all(|within| *within) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a figure beside its bound.
fn said(what: &str, figure: String, bound: String, within: bool) -> bool {
    println!("{what:<58} {figure:>10}   bound {bound:>8}   {}", if within { "ok" } else { "TOO SLOW" });
    within
}

/// Tools like those of the built-in catalog: descriptions, eight arguments, a query, a body, a value.
fn write_manifests(folder: &Path) {
    let google = folder.join("google");
    std::fs::create_dir_all(&google).unwrap();
    for n in 0..TOOLS {
        let mut text = format!(
            "name = \"Bench.Tool{n}\"\ntitle = \"Do the thing of number {n}\"\n\
             description = \"Does one thing of many. Do not use it for another; it changes what the user has. Times are RFC 3339 with offset. Returns the id of what it made, number {n}.\"\n\
             scopes = [\"https://www.googleapis.com/auth/calendar.events\"]\neffect = \"write\"\n\
             [input]\ntype = \"object\"\nrequired = [\"summary\", \"start\"]\n"
        );
        for argument in ["summary", "start", "end", "location", "description", "color", "time_zone"] {
            text.push_str(&format!(
                "[input.properties.{argument}]\ntype = \"string\"\nmaxLength = 1000\n\
                 description = \"What stands in the field of that name, one line of text, as in an example of {argument}.\"\n"
            ));
        }
        text.push_str(
            "[input.properties.calendar_id]\ntype = \"string\"\ndefault = \"primary\"\ndescription = \"The calendar.\"\n\
             [request]\nmethod = \"POST\"\nurl = \"{calendar}/calendars/{calendar_id}/events\"\n\
             query.sendUpdates = '.color // \"none\"'\n\
             body = '{summary, location, description, start: {dateTime: .start, timeZone: .time_zone}, end: {dateTime: .end}}'\n\
             [response]\nvalue = '{id, link: .htmlLink, status}'\n",
        );
        std::fs::write(google.join(format!("tool-{n}.toml")), text).unwrap();
    }
}

fn with_client() -> ProviderConfig {
    ProviderConfig { client_id: Some("bench".to_owned()), ..ProviderConfig::default() }
}

fn load(folder: &Path) -> bool {
    let config = ToolsConfig { dirs: vec![folder.join("tools")], enable: None };
    let clients = BTreeMap::from([("google".parse().unwrap(), with_client())]);
    let mut times: Vec<Duration> = (0..LOADS)
        .map(|_| {
            let began = Instant::now();
            let catalog = Catalog::load(&config, &clients).unwrap();
            let time = began.elapsed();
            assert!(catalog.problems().is_empty() && catalog.tools().count() > TOOLS, "{:?}", catalog.problems());
            time
        })
        .collect();
    let first = times[0];
    times.sort_unstable();
    let median = times[LOADS / 2];
    said(
        &format!("reading {TOOLS} manifests, the first time ({median:.0?} later)"),
        format!("{first:.0?}"),
        format!("{LOAD_WITHIN:?}"),
        first < LOAD_WITHIN,
    )
}

async fn list(folder: &Path) -> bool {
    let (url, token) = obo(folder).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "bench", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    }}});
    let to = |url: &str| {
        let request = http.post(url).bearer_auth(&token).json(&body);
        let request = request.header(header::ACCEPT, "application/json, text/event-stream");
        request.header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/list").build().unwrap()
    };
    let answer = http.execute(to(&url)).await.unwrap().bytes().await.unwrap();
    let value: Value = serde_json::from_slice(&answer).unwrap();
    let tools = value["result"]["tools"].as_array().unwrap_or_else(|| panic!("{value}")).len();
    assert!(tools > TOOLS, "{tools}");
    let bare = bare(answer.clone()).await;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        for (url, times) in [(&url, &mut ours), (&bare, &mut theirs)] {
            for _ in 0..REQUESTS {
                let began = Instant::now();
                let got = http.execute(to(url)).await.unwrap().bytes().await.unwrap();
                let time = began.elapsed();
                assert_eq!(got.len(), answer.len());
                // The first turn warms up.
                if turn > 0 {
                    times.push(time);
                }
            }
        }
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    let (ours, theirs) = (ours[ours.len() / 2], theirs[theirs.len() / 2]);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let kib = answer.len() / 1024;
    said(
        &format!("tools/list of {tools} tools, {kib} KiB: {ours:.0?}, bare {theirs:.0?}"),
        format!("{ratio:.2} x"),
        format!("{LIST_WITHIN} x"),
        ratio < LIST_WITHIN,
    )
}

/// The same bytes, for whoever asks.
async fn bare(answer: Bytes) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let same = move |_: Bytes| {
        let answer = answer.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], answer) }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", post(same))).await });
    format!("http://{address}/mcp")
}

/// `obo serve` with those tools: its address, and a person's token.
async fn obo(folder: &Path) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let key = folder.join("vault.key");
    std::fs::write(&key, [7u8; 32]).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let text = format!(
        "[server]\nlisten = \"{address}\"\n[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.google]\nclient_id = \"bench\"\n[tools]\ndirs = [\"tools\"]\n"
    );
    let config = Config::parse(&text, "obo.toml", folder, &Environment::default()).unwrap();
    let data_dir = folder.join("data");
    let app =
        App::open(Settings { config, data_dir, clock: Arc::new(SystemClock), way: Way::Serve, prompt: None }).unwrap();
    let person = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: "ana".parse().unwrap() };
    let (_, token) = app.obo.identity().tokens().issue(&person, Vec::new(), Duration::from_secs(3600)).await.unwrap();
    let site = app::site(&app, address).unwrap();
    // It runs until the process ends.
    tokio::spawn(obo::transport::http::serve(listener, site, CancellationToken::new()));
    (format!("http://{address}/mcp"), token.expose().to_owned())
}

/// Creating an event: arguments checked and completed, the request built, the answer turned into the tool's value.
fn call() -> bool {
    let clients = BTreeMap::from([("google".parse().unwrap(), with_client())]);
    let catalog = Catalog::load(&ToolsConfig::default(), &clients).unwrap();
    let tool = catalog.find("GoogleCalendar.CreateEvent").unwrap();
    let api = tool.api().unwrap();
    let arguments = json!({
        "summary": "Lunch", "start": "2026-12-01T12:00:00+01:00", "end": "2026-12-01T13:00:00+01:00",
        "attendees": ["ana@example.com", "bob@example.com"], "location": "Canteen",
    });
    let Value::Object(arguments) = arguments else { return false };
    let answer = json!({
        "id": "e1", "status": "confirmed", "summary": "Lunch", "htmlLink": "https://calendar.example/e1",
        "start": {"dateTime": "2026-12-01T12:00:00+01:00"}, "end": {"dateTime": "2026-12-01T13:00:00+01:00"},
        "attendees": [{"email": "ana@example.com", "responseStatus": "accepted"}],
    });
    let (mut checked, mut worked) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..CALLS {
        let raw = arguments.clone();
        let began = Instant::now();
        let arguments = tool.arguments(raw).unwrap();
        checked += began.elapsed();
        let began = Instant::now();
        let planned = plan(api, &arguments).unwrap();
        let value = api.response().run(&answer, &[]).unwrap();
        worked += began.elapsed();
        assert!(planned.len() == 1 && value["id"] == "e1");
    }
    let (checked, worked) = (checked / CALLS, worked / CALLS);
    said(
        &format!("template and jq of a call (and {checked:.1?} for its arguments)"),
        format!("{worked:.1?}"),
        format!("{CALL_WITHIN:?}"),
        worked < CALL_WITHIN,
    )
}
