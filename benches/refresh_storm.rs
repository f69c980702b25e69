//! A thousand calls that need the token of one connection, which has just expired: one request to the provider, and how
//! long the callers wait, beside the provider's own round trip.
//!
//! `cargo bench --bench refresh_storm`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::post;
use jiff::Timestamp;
use obo::app::load_catalog;
use obo::clock::ManualClock;
use obo::config::{Config, Environment};
use obo::egress::Egress;
use obo::id::{Person, Source, TenantId};
use obo::keys::Keys;
use obo::oauth::{Account, Oauth, TokenAnswer};
use obo::secret::Secret;
use obo::store::Store;
use obo::store::sqlite::SqliteStore;
use obo::vault::Vault;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Barrier;

const CALLERS: usize = 1_000;
/// Storms; an odd number has a median.
const STORMS: usize = 11;
/// How long the provider takes over an answer.
const ANSWER: Duration = Duration::from_millis(100);
const LIFE: Duration = Duration::from_secs(3600);

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (provider, counting) = (listen(Arc::clone(&asked)).await, Arc::clone(&asked));
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("vault.key");
    std::fs::write(&key, [7u8; 32]).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let text = format!(
        "[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.google]\nclient_id = \"bench\"\nclient_secret = \"secret\"\norigin = \"{provider}\"\n"
    );
    let config = Config::parse(&text, "obo.toml", folder.path(), &Environment::default()).unwrap();
    let google = Arc::clone(load_catalog(&config).unwrap().provider("google").unwrap());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.path().join("data")).unwrap());
    let keys = Keys::new(Arc::clone(&store), config.vault.key.clone());
    let clock = ManualClock::at("2026-11-24T08:00:00Z".parse::<Timestamp>().unwrap());
    let oauth = Oauth::new(Egress::new(&config.network, &config.written_urls()).unwrap());
    let vault = Vault::new(store, keys, oauth.clone(), clock.clone());
    let person = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: "ana".parse().unwrap() };
    let account = Account { key: "1".to_owned(), label: "ana@example.com".to_owned() };
    let answer = TokenAnswer {
        access_token: Secret::new("access-0"),
        refresh_token: Some(Secret::new("refresh-0")),
        expires_in: Some(LIFE),
        scopes: None,
    };
    let grant = vault.deposit(&person, &google, account, answer, &BTreeSet::new()).await.unwrap();

    let mut trips = Vec::new();
    for _ in 0..=STORMS {
        let began = Instant::now();
        oauth.refresh(&google, &Secret::new("refresh-0")).await.unwrap();
        trips.push(began.elapsed());
    }
    trips.remove(0);
    trips.sort_unstable();
    let trip = trips[STORMS / 2];

    let (mut medians, mut p99s, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=STORMS {
        clock.advance(LIFE + Duration::from_secs(1));
        let before = counting.load(Ordering::SeqCst);
        let together = Arc::new(Barrier::new(CALLERS));
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (vault, grant, google) = (vault.clone(), grant.clone(), Arc::clone(&google));
                let together = Arc::clone(&together);
                tokio::spawn(async move {
                    together.wait().await;
                    let began = Instant::now();
                    let token = vault.token_for(&grant, &google).await.unwrap();
                    (began.elapsed(), token.expose().to_owned())
                })
            })
            .collect();
        let mut times = Vec::with_capacity(CALLERS);
        let mut tokens = BTreeSet::new();
        for caller in callers {
            let (time, token) = caller.await.unwrap();
            times.push(time);
            tokens.insert(token);
        }
        assert_eq!(counting.load(Ordering::SeqCst) - before, 1, "one token request");
        assert_eq!(tokens.len(), 1, "and one token for everybody");
        times.sort_unstable();
        medians.push(times[CALLERS / 2]);
        p99s.push(times[CALLERS * 99 / 100]);
        slowest.push(times[CALLERS - 1]);
    }
    println!("{CALLERS} callers, one connection that has expired, {STORMS} storms: one token request each");
    println!("  the provider's round trip alone   {trip:.1?} (of which it waits {ANSWER:?})");
    for (name, mut times) in [("median", medians), ("p99", p99s), ("slowest", slowest)] {
        // The first storm warms up.
        times.remove(0);
        times.sort_unstable();
        let middle = times[STORMS / 2];
        println!(
            "  callers, {name:<8}                 {middle:.1?} (round trip + {:.1?})",
            middle.saturating_sub(trip)
        );
    }
}

/// A token endpoint that takes its time. Its address.
async fn listen(asked: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move || {
        let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            tokio::time::sleep(ANSWER).await;
            axum::Json(json!({
                "access_token": format!("access-{number}"), "expires_in": LIFE.as_secs(), "token_type": "Bearer",
            }))
        }
    };
    let router = Router::new().route("/token", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}
