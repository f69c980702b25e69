//! What a call of an application costs over REST, beside the same call over MCP.
//!
//! `cargo bench --bench execute`
//!
//! Client, obo and provider share this process and this machine's cores, and all kinds take short turns, so that what
//! else the machine does slows them down alike: the ratios say more than the figures. The key is one of `obo app add`:
//! it is looked up in the store, as a token is.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use obo::app::{self, App, Settings, Way};
use obo::clock::SystemClock;
use obo::config::{Config, Environment};
use obo::egress::Egress;
use obo::id::{Person, Source, TenantId};
use obo::oauth::{Account, Oauth, TokenAnswer};
use obo::secret::Secret;
use obo::vault::Vault;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Turns of each kind; a multiple of how many kinds there are.
const TURNS: usize = 60;
/// Calls in a turn.
const CALLS: usize = 256;
/// Calls of each kind before its first turn.
const WARM_UP: usize = 512;
/// Calls under way at once.
const CONCURRENCY: [usize; 2] = [1, 32];

const TOKEN: &str = "ya29.a-token-of-the-benchmark";
const SCOPE: &str = "https://www.googleapis.com/auth/calendar.events";
const STATELESS: &str = "2026-07-28";
const WITH_SESSIONS: &str = "2025-11-25";
const APPLICATION: &str = "bench";
const USER: &str = "ana";

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

/// One way to make the call, and how long the calls took.
struct Kind {
    name: &'static str,
    head: reqwest::Request,
    body: Value,
    calls: Vec<Duration>,
    whole: Duration,
}

impl Kind {
    fn new(name: &'static str, head: reqwest::RequestBuilder, body: Value) -> Self {
        let head = head.header(header::CONTENT_TYPE, "application/json").build().unwrap();
        Self { name, head, body, calls: Vec::new(), whole: Duration::ZERO }
    }

    /// The requests of a turn. In a session no two calls may have the same id.
    fn requests(&self, calls: usize) -> Vec<reqwest::Request> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let request = |_| {
            let (mut request, mut body) = (self.head.try_clone().unwrap(), self.body.clone());
            if let Some(id) = body.get_mut("id") {
                *id = json!(LAST.fetch_add(1, Ordering::Relaxed) + 1);
            }
            *request.body_mut() = Some(body.to_string().into());
            request
        };
        (0..calls).map(request).collect()
    }

    async fn turn(&mut self, http: &reqwest::Client, calls: usize, concurrency: usize) {
        let requests = self.requests(calls);
        let began = Instant::now();
        self.calls.extend(run_calls(http, requests, concurrency).await);
        self.whole += began.elapsed();
    }

    /// What this part of the calls stayed below; they are sorted.
    fn below(&self, percent: usize) -> Duration {
        self.calls[self.calls.len() * percent / 100]
    }
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider().await;
    let Obo { base, key, token } = obo(folder.path(), &provider).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();

    let execute = http.post(format!("{base}/v1/tools/execute")).header("authorization", &key);
    let named = json!({ "tool_name": "GoogleCalendar.ListEvents", "user_id": USER, "input": {} });
    let mcp = format!("{base}/mcp");
    let post = || http.post(&mcp).header("accept", "application/json, text/event-stream");
    let stateless = || {
        let post = post().header("mcp-protocol-version", STATELESS).header("mcp-method", "tools/call");
        post.header("mcp-name", "GoogleCalendar_ListEvents")
    };
    let alone = call(&json!({
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }));
    let session = session(&post, &key).await;
    let in_session = post().header("mcp-protocol-version", WITH_SESSIONS).header("mcp-session-id", session);
    // REST first: the others are compared with it.
    let mut kinds = [
        Kind::new("REST, key and user_id", execute, named),
        Kind::new("MCP, key and Obo-User", stateless().bearer_auth(&key).header("obo-user", USER), alone.clone()),
        Kind::new("MCP, token of obo", stateless().bearer_auth(&token), alone),
        Kind::new("MCP, key, in a session", in_session.bearer_auth(&key).header("obo-user", USER), call(&json!({}))),
    ];

    println!("GoogleCalendar.ListEvents, {} calls of each kind, {CALLS} in turn", TURNS * CALLS);
    for concurrency in CONCURRENCY {
        for kind in &mut kinds {
            kind.turn(&http, WARM_UP, concurrency).await;
            (kind.calls, kind.whole) = (Vec::new(), Duration::ZERO);
        }
        for turn in 0..TURNS {
            // Each is the first as often as the others: what ran before leaves its mark.
            for at in 0..kinds.len() {
                kinds[(turn + at) % kinds.len()].turn(&http, CALLS, concurrency).await;
            }
        }
        print(concurrency, &mut kinds);
    }
}

/// The figures, and how REST stands to each of the others.
fn print(concurrency: usize, kinds: &mut [Kind]) {
    for kind in &mut *kinds {
        kind.calls.sort_unstable();
    }
    let heading = format!("concurrency {concurrency}");
    println!("\n{heading:<24}   median         p99  calls/s   REST to it: median       p99");
    let kinds = &*kinds;
    let [rest, ..] = kinds else { return };
    for kind in kinds {
        let rate = kind.calls.len() as f64 / kind.whole.as_secs_f64();
        let ratio = |percent| rest.below(percent).as_secs_f64() / kind.below(percent).as_secs_f64();
        println!(
            "  {:<22} {:>6} µs {:>8} µs {rate:>8.0} {:>18.2} x {:>7.2} x",
            kind.name,
            kind.below(50).as_micros(),
            kind.below(99).as_micros(),
            ratio(50),
            ratio(99),
        );
    }
}

/// The call, as MCP has it.
fn call(meta: &Value) -> Value {
    json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": "GoogleCalendar_ListEvents", "arguments": {}, "_meta": meta },
    })
}

/// Opens a session: its id.
async fn session(post: &impl Fn() -> reqwest::RequestBuilder, key: &str) -> String {
    let send = async |session: Option<&str>, body: Value| {
        let mut request = post().bearer_auth(key).header("obo-user", USER).json(&body);
        if let Some(session) = session {
            request = request.header("mcp-protocol-version", WITH_SESSIONS).header("mcp-session-id", session);
        }
        let response = request.send().await.unwrap().error_for_status().unwrap();
        let id = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
        response.bytes().await.unwrap();
        id
    };
    let client = json!({ "name": "bench", "version": "1" });
    let params = json!({ "protocolVersion": WITH_SESSIONS, "capabilities": {}, "clientInfo": client });
    let begin = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let session = send(None, begin).await.unwrap();
    send(Some(&session), json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    session
}

/// Makes calls, so many at once: how long each took.
async fn run_calls(http: &reqwest::Client, requests: Vec<reqwest::Request>, concurrency: usize) -> Vec<Duration> {
    let mut shares: Vec<Vec<reqwest::Request>> = (0..concurrency).map(|_| Vec::new()).collect();
    for (n, request) in requests.into_iter().enumerate() {
        shares[n % concurrency].push(request);
    }
    let workers: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let http = http.clone();
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(share.len());
                for request in share {
                    let began = Instant::now();
                    let response = http.execute(request).await.unwrap();
                    let status = response.status();
                    let body = response.bytes().await.unwrap();
                    times.push(began.elapsed());
                    // All answers name the event; an error over either would not.
                    let text = std::str::from_utf8(&body).unwrap();
                    assert!(status.is_success() && text.contains("Lunch"), "{text}");
                }
                times
            })
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    all
}

/// A calendar with one event, for one token. Its address.
async fn provider() -> String {
    let answer: Arc<str> = json!({
        "kind": "calendar#events", "timeZone": "Europe/Paris",
        "items": [{
            "id": "e1", "status": "confirmed", "summary": "Lunch", "htmlLink": "https://calendar.example/e1",
            "start": {"dateTime": "2026-03-31T12:00:00+02:00"}, "end": {"dateTime": "2026-03-31T13:00:00+02:00"},
            "organizer": {"email": "ana@example.com"},
            "attendees": [{"email": "ana@example.com", "responseStatus": "accepted"}],
        }],
    })
    .to_string()
    .into();
    let events = move |headers: HeaderMap| {
        let answer = Arc::clone(&answer);
        async move {
            let known = headers.get(header::AUTHORIZATION).is_some_and(|value| *value == *format!("Bearer {TOKEN}"));
            let status = if known { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            (status, [(header::CONTENT_TYPE, "application/json")], answer.to_string())
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/calendar/v3/calendars/primary/events", get(events));
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// `obo serve`, the key of an application and a token of obo.
struct Obo {
    base: String,
    key: String,
    token: String,
}

/// Starts obo with one user of an application and one holder of a token, both connected.
async fn obo(folder: &Path, provider: &str) -> Obo {
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
        "[server]\nlisten = \"{address}\"\ncalls_per_minute = 0\n[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.google]\nclient_id = \"bench\"\nclient_secret = \"secret\"\norigin = \"{provider}\"\n"
    );
    let config = Config::parse(&text, "obo.toml", folder, &Environment::default()).unwrap();
    let network = config.network.clone();
    let clock = Arc::new(SystemClock);
    let app = App::open(Settings {
        config,
        data_dir: folder.join("data"),
        clock: clock.clone(),
        way: Way::Serve,
        prompt: None,
    })
    .unwrap();

    let tenant = TenantId::default_tenant();
    let person = |source| Person { tenant: tenant.clone(), source, user: USER.parse().unwrap() };
    let holder = person(Source::obo());
    let identity = app.obo.identity();
    let (_, token) = identity.tokens().issue(&holder, Vec::new(), Duration::from_secs(86_400)).await.unwrap();
    let key = identity.applications().add(APPLICATION, tenant.clone(), false).await.unwrap();

    // Connected as a consent would leave it; the page is not what is measured here.
    let google = app.catalog.provider("google").unwrap();
    let egress = Egress::new(&network, &[]).unwrap();
    let vault = Vault::new(Arc::clone(&app.store), app.keys.clone(), Oauth::new(egress), clock);
    for person in [holder, person(Source::application(APPLICATION).unwrap())] {
        let account = Account { key: "1".to_owned(), label: "ana@example.com".to_owned() };
        let answer = TokenAnswer {
            access_token: Secret::new(TOKEN),
            refresh_token: None,
            expires_in: Some(Duration::from_secs(86_400)),
            scopes: Some(BTreeSet::from([SCOPE.to_owned()])),
        };
        vault.deposit(&person, google, account, answer, &BTreeSet::new()).await.unwrap();
    }

    let site = app::site(&app, address).unwrap();
    // It runs until the process ends.
    tokio::spawn(obo::transport::http::serve(listener, site, CancellationToken::new()));
    Obo { base: format!("http://{address}"), key: key.expose().to_owned(), token: token.expose().to_owned() }
}
