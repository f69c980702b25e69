//! What obo adds to a call: one tool call of a connected person whose token is fresh, over `POST /mcp`, beside the same
//! request made directly to the same provider.
//!
//! `cargo bench --bench warm_call`
//!
//! Client, obo and provider share this process and this machine's cores, and rounds of both kinds alternate, so the
//! ratio says more than the figures.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::collections::BTreeSet;
use std::sync::Arc;
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
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Rounds of each kind; an odd number has a median.
const ROUNDS: usize = 5;
/// Calls in a round.
const CALLS: usize = 2000;
/// Calls before the first round.
const WARM_UP: usize = 500;
/// Calls under way at once.
const CONCURRENCY: [usize; 2] = [1, 32];

const TOKEN: &str = "ya29.a-token-of-the-benchmark";
const SCOPE: &str = "https://www.googleapis.com/auth/calendar.events";
const REVISION: &str = "2026-07-28";

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider().await;
    let (obo, bearer) = obo(folder.path(), &provider).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();

    let url = format!("{provider}/calendar/v3/calendars/primary/events");
    let query = [("singleEvents", "true"), ("orderBy", "startTime"), ("maxResults", "25")];
    let direct = http.get(url).query(&query).bearer_auth(TOKEN).build().unwrap();
    let through = http
        .post(format!("{obo}/mcp"))
        .bearer_auth(bearer)
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", REVISION)
        .header("mcp-method", "tools/call")
        .header("mcp-name", "GoogleCalendar_ListEvents")
        .json(&json!({
            "jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {
                "name": "GoogleCalendar_ListEvents", "arguments": {},
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": REVISION,
                    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
                    "io.modelcontextprotocol/clientCapabilities": {},
                },
            },
        }))
        .build()
        .unwrap();

    println!("GoogleCalendar.ListEvents, {CALLS} calls a round, {ROUNDS} rounds of each kind in turn");
    for concurrency in CONCURRENCY {
        round(&http, &direct, WARM_UP, concurrency).await;
        round(&http, &through, WARM_UP, concurrency).await;
        let (mut directly, mut by_obo) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            directly.push(round(&http, &direct, CALLS, concurrency).await);
            by_obo.push(round(&http, &through, CALLS, concurrency).await);
        }
        println!("\nconcurrency {concurrency}       direct        obo      ratio      added");
        for (name, of) in [("median", Round::median as fn(&Round) -> Duration), ("p99", Round::p99)] {
            let (direct, obo) = (middle(directly.iter().map(of)), middle(by_obo.iter().map(of)));
            println!(
                "  {name:<12} {:>7} µs {:>7} µs {:>8.2} x {:>7} µs",
                direct.as_micros(),
                obo.as_micros(),
                obo.as_secs_f64() / direct.as_secs_f64(),
                obo.saturating_sub(direct).as_micros()
            );
        }
        let rate = |rounds: &[Round]| CALLS as f64 / middle(rounds.iter().map(|round| round.whole)).as_secs_f64();
        println!("  calls/s      {:>10.0} {:>10.0}", rate(&directly), rate(&by_obo));
    }
}

/// One round's calls, the quickest first.
struct Round {
    calls: Vec<Duration>,
    whole: Duration,
}

impl Round {
    fn median(&self) -> Duration {
        self.calls[self.calls.len() / 2]
    }

    fn p99(&self) -> Duration {
        self.calls[self.calls.len() * 99 / 100]
    }
}

fn middle(values: impl Iterator<Item = Duration>) -> Duration {
    let mut values: Vec<Duration> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

async fn round(http: &reqwest::Client, request: &reqwest::Request, calls: usize, concurrency: usize) -> Round {
    let began = Instant::now();
    let workers: Vec<_> = (0..concurrency)
        .map(|worker| {
            let (http, request) = (http.clone(), request.try_clone().unwrap());
            let share = calls / concurrency + usize::from(worker < calls % concurrency);
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(share);
                for _ in 0..share {
                    let began = Instant::now();
                    let response = http.execute(request.try_clone().unwrap()).await.unwrap();
                    let status = response.status();
                    let body = response.bytes().await.unwrap();
                    times.push(began.elapsed());
                    // Both answers name the event; neither is an error.
                    let text = std::str::from_utf8(&body).unwrap();
                    assert!(
                        status.is_success() && text.contains("Lunch") && !text.contains("isError\":true"),
                        "{text}"
                    );
                }
                times
            })
        })
        .collect();
    let mut all = Vec::with_capacity(calls);
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    let whole = began.elapsed();
    all.sort_unstable();
    Round { calls: all, whole }
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

/// `obo serve` with one connected person. Its address, and the person's token.
async fn obo(folder: &std::path::Path, provider: &str) -> (String, String) {
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

    let person = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: "ana".parse().unwrap() };
    let tokens = app.obo.identity().tokens();
    let (_, bearer) = tokens.issue(&person, Vec::new(), Duration::from_secs(86_400)).await.unwrap();

    // Connected as a consent would leave it; the page is not what is measured here.
    let google = app.catalog.provider("google").unwrap();
    let account = Account { key: "1".to_owned(), label: "ana@example.com".to_owned() };
    let answer = TokenAnswer {
        access_token: Secret::new(TOKEN),
        refresh_token: None,
        expires_in: Some(Duration::from_secs(86_400)),
        scopes: Some(BTreeSet::from([SCOPE.to_owned()])),
    };
    let egress = Egress::new(&network, &[]).unwrap();
    let vault = Vault::new(Arc::clone(&app.store), app.keys.clone(), Oauth::new(egress), clock);
    vault.deposit(&person, google, account, answer, &BTreeSet::new()).await.unwrap();

    let site = app::site(&app, address).unwrap();
    // It runs until the process ends.
    tokio::spawn(obo::transport::http::serve(listener, site, CancellationToken::new()));
    (format!("http://{address}"), bearer.expose().to_owned())
}
