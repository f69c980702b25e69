//! A thousand people at once: each signs in at their identity provider from a consent link, connects, and makes a call.
//! Then another thousand, to see whether anything piles up.
//!
//! `cargo bench --bench people`
//!
//! obo is the program itself, in a process of its own, so its memory is obo's alone. The people, their identity provider
//! and the sandbox's Google share this process, and the machine's cores with obo: times are those of a machine that does
//! all of it. The provider's own page is not timed.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]
#![allow(dead_code, unreachable_pub, reason = "what the tests share with it offers more than it takes")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use obo::clock::{Clock as _, SystemClock, later};
use obo::store::sqlite::SqliteStore;
use obo::store::{Store as _, Table};
use serde_json::json;

#[path = "../tests/it/support/browser.rs"]
mod browser;
#[path = "../tests/it/support/issuer.rs"]
mod issuer;
#[path = "../tests/it/support/mcp.rs"]
mod mcp;
#[path = "../examples/sandbox/provider.rs"]
mod provider;

use browser::{Browser, Page};
use issuer::Issuer;
use mcp::Mcp;
use provider::{Provider, Service};

/// How many.
const PEOPLE: usize = 1000;
/// Those that go before, one after the other, so that what obo makes once is made.
const WARM_UP: usize = 3;
/// How long it is left alone after them.
const SETTLE: Duration = Duration::from_secs(2);
/// How long it is left alone before its memory is compared.
const REST: Duration = Duration::from_secs(30);

const TOOL: &str = "GoogleCalendar_ListEvents";
const SCOPE: &str = "https://www.googleapis.com/auth/calendar.events.readonly";
/// Everybody picks the same one: the sandbox has no thousand.
const ACCOUNT: &str = "alice@example.com";
const STEPS: [&str; 5] = ["call, link", "open, sign in", "press", "connected", "call, value"];

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = Arc::new(Issuer::start(|| SystemClock.now().as_second()).await);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = format!("http://127.0.0.1:{port}");
    let callbacks = ["google", "slack"].map(|id| format!("{base}/oauth/callback/{id}"));
    let settings = provider::Settings::new(callbacks, || SystemClock.now().as_second());
    let provider = Provider::start(settings).await.unwrap();
    let obo = serve(folder.path(), &base, &issuer, &provider).await;

    for number in 0..WARM_UP {
        Somebody::new(&base, &issuer, format!("early-{number}")).goes_through(&issuer).await.unwrap();
    }
    tokio::time::sleep(SETTLE).await;
    let before = obo.resident();
    println!("resident memory before: {:.1} MiB", mib(before));
    let mut errors = 0;
    for wave in ["first", "second"] {
        let (results, wall) = everybody_at_once(&base, &issuer, wave).await;
        let peak = obo.most_resident();
        errors += results.iter().filter(|result| result.is_err()).count();
        print(wave, &results, wall);
        tokio::time::sleep(REST).await;
        let after = obo.resident();
        let more = mib(after) - mib(before);
        println!("resident memory: {peak:.1} MiB at the peak, {:.1} MiB after {REST:?} ({more:+.1} MiB)", mib(after));
    }
    drop(obo);
    left(&folder.path().join("data")).await;
    assert_eq!(errors, 0, "people did not get through");
}

/// Sends a thousand new people through.
async fn everybody_at_once(base: &str, issuer: &Arc<Issuer>, wave: &str) -> (Vec<Result<Times, String>>, Duration) {
    // Made before the clock starts: what their clients cost is not obo's.
    let everybody: Vec<_> = (0..PEOPLE).map(|number| Somebody::new(base, issuer, format!("{wave}-{number}"))).collect();
    let began = Instant::now();
    let under_way = everybody.into_iter().map(|one| {
        let issuer = Arc::clone(issuer);
        tokio::spawn(async move { one.goes_through(&issuer).await })
    });
    let ended = join_all(under_way).await;
    let wall = began.elapsed();
    (ended.into_iter().map(|ended| ended.unwrap_or_else(|panic| Err(panic.to_string()))).collect(), wall)
}

fn print(wave: &str, results: &[Result<Times, String>], wall: Duration) {
    let errors: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    println!("\nthe {wave} {PEOPLE} people at once: {wall:.2?} in all, {} errors", errors.len());
    for error in errors.iter().take(5) {
        println!("  {error}");
    }
    println!("step                  p50        p99    slowest");
    for (at, step) in STEPS.iter().enumerate() {
        let mut times: Vec<Duration> = results.iter().flatten().map(|times| times[at]).collect();
        times.sort_unstable();
        let Some(last) = times.last() else { continue };
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("{step:<14} {:>7} ms {:>7} ms {:>7} ms", p50.as_millis(), p99.as_millis(), last.as_millis());
    }
}

/// How long each of [`STEPS`] took.
type Times = [Duration; STEPS.len()];

/// A person, with an MCP client and a browser of their own.
struct Somebody {
    name: String,
    client: Mcp,
    browser: Browser,
}

impl Somebody {
    fn new(base: &str, issuer: &Issuer, name: String) -> Self {
        let client = Mcp::new(base, Some(issuer.access_token(&name, &format!("{base}/mcp"))));
        Self { name, client, browser: Browser::new() }
    }

    /// From the first call, which is answered with a link, to the second, which goes through.
    async fn goes_through(mut self, issuer: &Issuer) -> Result<Times, String> {
        let mut times = Times::default();
        let clock = Instant::now();
        let asked = self.client.call(TOOL, json!({})).await;
        let link = mcp::link_of(&asked).ok_or_else(|| format!("{} is given no link: {asked}", self.name))?;
        times[0] = clock.elapsed();

        let clock = Instant::now();
        let page = self.get(&link, 200).await?;
        let sent = self.submit(&page, &[]).await?;
        self.get(&issuer.sign_in(&sent, &self.name), 303).await?;
        times[1] = clock.elapsed();

        let clock = Instant::now();
        let page = self.get(&link, 200).await?;
        let sent = self.submit(&page, &[]).await?;
        times[2] = clock.elapsed();

        let page = self.get(&sent, 200).await?;
        let back = self.submit(&page, &[("account", ACCOUNT), ("scope", SCOPE)]).await?;

        let clock = Instant::now();
        self.get(&back, 200).await?;
        times[3] = clock.elapsed();

        let clock = Instant::now();
        let done = self.client.call(TOOL, json!({})).await;
        if done["isError"] == true || done.get("error").is_some() {
            return Err(format!("{}'s call: {done}", self.name));
        }
        times[4] = clock.elapsed();
        Ok(times)
    }

    async fn get(&mut self, url: &str, status: u16) -> Result<Page, String> {
        let page = self.browser.get(url).await;
        if page.status == status { Ok(page) } else { Err(format!("{}: {} {}", self.name, page.status, page.text)) }
    }

    /// Submits a page's form: where the browser is sent.
    async fn submit(&mut self, page: &Page, typed: &[(&str, &str)]) -> Result<String, String> {
        let sent = self.browser.submit(page, typed).await;
        sent.location.ok_or_else(|| format!("{} is sent nowhere: {} {}", self.name, sent.status, sent.text))
    }
}

/// The program, which ends with this.
struct Obo(Child);

impl Obo {
    /// Resident memory in KiB; 0 where it cannot be read.
    fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that it ever was, in MiB.
    fn most_resident(&self) -> f64 {
        mib(self.status("VmHWM:"))
    }

    fn status(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let value = status.lines().find_map(|text| text.strip_prefix(line));
        value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Obo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `obo serve` and waits until it is ready.
async fn serve(folder: &Path, base: &str, issuer: &Issuer, provider: &Provider) -> Obo {
    let key = folder.join("vault.key");
    std::fs::write(&key, [7u8; 32]).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let google = Service::Google;
    let text = format!(
        "[server]\nlisten = {:?}\nconsent_wait = \"0s\"\n[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.google]\nclient_id = {:?}\nclient_secret = {:?}\norigin = {:?}\n{}",
        base.strip_prefix("http://").unwrap(),
        google.client_id(),
        google.client_secret(),
        provider.origin(),
        issuer.table("corp", "tenant = \"acme\""),
    );
    let config = folder.join("obo.toml");
    std::fs::write(&config, text).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_obo"))
        .args(["serve", "--config"])
        .arg(config)
        .arg("--data-dir")
        .arg(folder.join("data"))
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map(Obo)
        .unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    while !http.get(format!("{base}/readyz")).send().await.is_ok_and(|answer| answer.status().is_success()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child
}

/// What is left in the store a day later, once what has expired was removed.
async fn left(data: &Path) {
    let store = SqliteStore::open(data).unwrap();
    let tomorrow = later(SystemClock.now(), Duration::from_secs(86_400));
    let removed = store.prune(tomorrow).await.unwrap();
    let mut line = format!("store: {removed} expired records removed a day later; left:");
    for (name, table) in
        [("flows", Table::Flow), ("sessions", Table::Session), ("sign-ins", Table::Login), ("grants", Table::Grant)]
    {
        let count = store.scan(table, None, usize::MAX >> 1).await.unwrap().len();
        let _ = write!(line, " {count} {name},");
    }
    println!("{}", line.trim_end_matches(','));
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
