//! A fresh token out of a vault of a thousand, a hundred thousand and a million connections, beside what it cannot be
//! cheaper than: the same point read of the same file, and opening a record of the same length. Then how soon
//! `obo stdio` answers on that folder: its first list of tools, and its first call.
//!
//! `cargo bench --bench grants`, or with other sizes: `cargo bench --bench grants -- 1000 100000`, or from an empty database:
//! `cargo bench --bench grants -- 100000 'postgresql://obo@%2Frun%2Fpostgresql/bench'`
//!
//! Rounds of each kind alternate, so the ratios say more than the figures.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use obo::app::load_catalog;
use obo::catalog::Provider;
use obo::clock::SystemClock;
use obo::config::{Config, Environment};
use obo::egress::Egress;
use obo::id::{Person, Source, TenantId};
use obo::keys::{Keys, OpenKeys};
use obo::oauth::{Account, Oauth, TokenAnswer};
use obo::secret::Secret;
use obo::store::postgres::PostgresStore;
use obo::store::sqlite::SqliteStore;
use obo::store::{Record, RecordKey, Store, Table, Write, within};
use obo::vault::{self, Grant, Vault};
use rusqlite::{Connection, OpenFlags, params};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Records written in one transaction while the vault is filled.
const BATCH: usize = 5_000;
/// Rounds of each kind; an odd number has a median.
const ROUNDS: usize = 7;
/// Lookups in a round.
const LOOKUPS: usize = 5_000;
/// Launches for the first answers; the figure is their median.
const LAUNCHES: usize = 11;

const TOKEN: &str = "ya29.a-token-of-the-benchmark";
const SCOPE: &str = "https://www.googleapis.com/auth/calendar.events";

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let sizes: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let provider = runtime.block_on(calendar());
    println!("{LOOKUPS} lookups a round, {ROUNDS} rounds of each kind in turn, one at a time\n");
    if let Some(url) = std::env::args().find(|argument| argument.starts_with("postgresql://")) {
        let folder = tempfile::tempdir().unwrap();
        return runtime.block_on(lookups_in_postgres(folder.path(), &provider, sizes[0], &url));
    }
    for size in sizes {
        let folder = tempfile::tempdir().unwrap();
        runtime.block_on(lookups(folder.path(), &provider, size));
        launches(folder.path());
    }
}

/// A vault of one size, and what reads it.
struct Filled {
    keys: Arc<OpenKeys>,
    vault: Vault,
    google: Arc<Provider>,
    first: Grant,
}

async fn lookups(folder: &Path, provider: &str, size: usize) {
    let began = Instant::now();
    let store = Arc::new(SqliteStore::open(&folder.join("data")).unwrap());
    let filled = fill(folder, store, provider, size).await;
    let filling = began.elapsed();
    let database = folder.join("data/obo.db");
    let bytes = database.metadata().unwrap().len();
    println!("{size} connections: filled in {filling:.1?}, {} MiB", bytes >> 20);

    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&database, flags).unwrap();
        db.execute_batch("PRAGMA mmap_size = 0; PRAGMA cell_size_check = ON; PRAGMA query_only = ON;").unwrap();
        db
    };
    let (raw, other) = (open(), open());
    let sealed = point_read(&raw, &key_of(&filled.keys, 0));

    let (mut reading, mut looking) = (Vec::new(), Vec::new());
    for (chosen, keys) in rounds(&filled, size) {
        // In the page cache of the system for both, and in that of neither connection.
        keys.iter().for_each(|key| drop(point_read(&other, key)));
        let reads = times(&keys, |key| {
            assert_eq!(point_read(&raw, key).len(), sealed.len());
        });
        reading.push(Figures::of(reads));
        looking.push(looked(&filled, &chosen).await);
    }
    print(&reading, sealed.len(), &looking);
}

/// The same out of PostgreSQL, beside the same read by a client of its own.
async fn lookups_in_postgres(folder: &Path, provider: &str, size: usize, url: &str) {
    let store = Arc::new(PostgresStore::open(&Secret::new(url)).unwrap());
    let began = Instant::now();
    let filled = fill(folder, store, provider, size).await;
    println!("{size} connections in PostgreSQL: filled in {:.1?}", began.elapsed());
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    // Row security shows nothing to whoever does not say whose rows it wants.
    client.batch_execute("SET obo.scope = 'all'").await.unwrap();
    let select = client
        .prepare("SELECT key, owner, generation, expires_at, sealed FROM obo.record WHERE kind = $1 AND key = $2")
        .await
        .unwrap();
    let kind = Table::Grant as u8 as i16;
    let read = async |key: &RecordKey| -> Vec<u8> {
        client.query_one(&select, &[&kind, &key.as_slice()]).await.unwrap().get("sealed")
    };
    let length = read(&key_of(&filled.keys, 0)).await.len();
    let (mut reading, mut looking) = (Vec::new(), Vec::new());
    for (chosen, keys) in rounds(&filled, size) {
        let mut reads = Vec::with_capacity(keys.len());
        for key in &keys {
            let began = Instant::now();
            assert_eq!(read(key).await.len(), length);
            reads.push(began.elapsed());
        }
        reading.push(Figures::of(reads));
        looking.push(looked(&filled, &chosen).await);
    }
    print(&reading, length, &looking);
}

/// What is looked up in each round: everywhere in the store, in no order, and no two rounds the same ones.
fn rounds(filled: &Filled, size: usize) -> impl Iterator<Item = (Vec<usize>, Vec<RecordKey>)> {
    (0..=ROUNDS).map(move |round| {
        let chosen: Vec<usize> = (0..LOOKUPS).map(|n| mix(round * LOOKUPS + n) % size).collect();
        let keys = chosen.iter().map(|n| key_of(&filled.keys, *n)).collect();
        (chosen, keys)
    })
}

async fn looked(filled: &Filled, chosen: &[usize]) -> Figures {
    let grants: Vec<Grant> = chosen.iter().map(|n| Grant { person: person(*n), ..filled.first.clone() }).collect();
    let mut looks = Vec::with_capacity(grants.len());
    for grant in &grants {
        let began = Instant::now();
        let token = filled.vault.token_for(grant, &filled.google).await.unwrap();
        looks.push(began.elapsed());
        assert_eq!(token.expose(), TOKEN);
    }
    Figures::of(looks)
}

fn print(reading: &[Figures], sealed: usize, looking: &[Figures]) {
    let aead = Aead::of(sealed);
    let opening: Vec<Figures> = reading.iter().map(|_| Figures::of(times(&[(); LOOKUPS], |()| aead.open()))).collect();
    println!("                      median        p99");
    // The first round warms up.
    for (name, of) in [("point read", reading), ("open (AEAD)", &opening), ("token_for", looking)] {
        let Figures { median, p99 } = Figures::middle(&of[1..]);
        println!("  {name:<16} {:>8.1} µs {:>8.1} µs", micros(median), micros(p99));
    }
    let ratio =
        Figures::middle(&looking[1..]).median.as_secs_f64() / Figures::middle(&reading[1..]).median.as_secs_f64();
    println!("  token_for is {ratio:.2} x the point read");
}

struct Figures {
    median: Duration,
    p99: Duration,
}

impl Figures {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
    }

    /// The middle round of each.
    fn middle(rounds: &[Self]) -> Self {
        let middle = |of: fn(&Self) -> Duration| {
            let mut all: Vec<Duration> = rounds.iter().map(of).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        Self { median: middle(|round| round.median), p99: middle(|round| round.p99) }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn times<T>(of: &[T], mut act: impl FnMut(&T)) -> Vec<Duration> {
    of.iter()
        .map(|one| {
            let began = Instant::now();
            act(one);
            began.elapsed()
        })
        .collect()
}

/// Spreads numbers (the finaliser of SplitMix64).
fn mix(n: usize) -> usize {
    let mut z = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize >> 1
}

fn point_read(db: &Connection, key: &RecordKey) -> Vec<u8> {
    let mut select = db
        .prepare_cached("SELECT key, owner, generation, expires_at, sealed FROM records WHERE kind = ?1 AND key = ?2")
        .unwrap();
    select.query_row(params![Table::Grant as u8, key], |row| row.get(4)).unwrap()
}

/// Opening a record of one length, and nothing else.
struct Aead {
    cipher: XChaCha20Poly1305,
    sealed: Vec<u8>,
    tag: chacha20poly1305::Tag,
}

impl Aead {
    fn of(length: usize) -> Self {
        let cipher = XChaCha20Poly1305::new(&[7; 32].into());
        // As much is header, nonce and tag.
        let mut sealed = vec![1; length - 49];
        let tag =
            cipher.encrypt_inout_detached(&XNonce::from([9; 24]), b"context", sealed.as_mut_slice().into()).unwrap();
        Self { cipher, sealed, tag }
    }

    fn open(&self) {
        let mut plain = self.sealed.clone();
        let nonce = XNonce::from([9; 24]);
        self.cipher.decrypt_inout_detached(&nonce, b"context", plain.as_mut_slice().into(), &self.tag).unwrap();
        std::hint::black_box(plain);
    }
}

fn person(n: usize) -> Person {
    Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: format!("user{n:07}").parse().unwrap() }
}

fn key_of(keys: &OpenKeys, n: usize) -> RecordKey {
    let person = person(n);
    let [tenant, source, user] = person.parts();
    keys.record_key(Table::Grant, &[tenant, source, user, b"google", b"1"])
}

/// One connection as a consent would leave it, and copies of it for everybody else, sealed for them.
async fn fill(folder: &Path, store: Arc<dyn Store>, provider: &str, size: usize) -> Filled {
    let key = folder.join("vault.key");
    std::fs::write(&key, [7u8; 32]).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\n[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.google]\nclient_id = \"bench\"\nclient_secret = \"secret\"\norigin = \"{provider}\"\n"
    );
    std::fs::write(folder.join("obo.toml"), &text).unwrap();
    let config = Config::parse(&text, "obo.toml", folder, &Environment::default()).unwrap();
    let google = Arc::clone(load_catalog(&config).unwrap().provider("google").unwrap());

    let keys = Keys::new(Arc::clone(&store), config.vault.key.clone());
    let egress = Egress::new(&config.network, &[]).unwrap();
    let vault = Vault::new(Arc::clone(&store), keys.clone(), Oauth::new(egress), Arc::new(SystemClock));
    let account = Account { key: "1".to_owned(), label: "ana@example.com".to_owned() };
    let answer = TokenAnswer {
        access_token: Secret::new(TOKEN),
        refresh_token: Some(Secret::new("1//a-refresh-token-of-the-benchmark")),
        expires_in: Some(Duration::from_secs(30 * 86_400)),
        scopes: Some(BTreeSet::from([SCOPE.to_owned()])),
    };
    let first = vault.deposit(&person(0), &google, account, answer, &BTreeSet::new()).await.unwrap();

    let keys = keys.open().await.unwrap();
    let tenant = TenantId::default_tenant();
    let rows = within(&store, &keys.owner_of_data_keys(&tenant));
    let made = rows.get(Table::Grant, &key_of(&keys, 0)).await.unwrap().unwrap();
    let body = keys.unseal(&tenant, &vault::context(&person(0), &made.key), &made.sealed).await.unwrap();
    let body = std::str::from_utf8(body.expose()).unwrap().to_owned();
    assert_eq!(body.matches("user0000000").count(), 1);
    // In the order of their keys, as far as one transaction goes: a tree that is filled so is written once.
    let mut rest: Vec<(RecordKey, usize)> = (1..size).map(|n| (key_of(&keys, n), n)).collect();
    rest.sort_unstable();
    for batch in rest.chunks(BATCH) {
        let mut writes = Vec::with_capacity(batch.len());
        for (key, n) in batch {
            let person = person(*n);
            let body = body.replace("user0000000", person.user.as_str());
            let sealed = keys.seal(&tenant, &vault::context(&person, key), body.as_bytes()).await.unwrap();
            let owner = vault::owner(&keys, &person);
            let record = Record { table: Table::Grant, key: *key, owner, generation: 0, expires_at: None, sealed };
            writes.push(Write::Insert(record));
        }
        rows.apply(writes).await.unwrap();
    }
    Filled { keys, vault, google, first }
}

/// A calendar without events. Its address.
async fn calendar() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = || async { axum::Json(json!({ "kind": "calendar#events", "timeZone": "Europe/Paris", "items": [] })) };
    let router = Router::new().route("/calendar/v3/calendars/primary/events", get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// How soon a process answers on a folder that there is.
fn launches(folder: &Path) {
    let (mut lists, mut calls) = (Vec::new(), Vec::new());
    for launch in 0..=LAUNCHES {
        let began = Instant::now();
        let mut child = launched(folder);
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut ask = |request: Value| {
            writeln!(child.stdin.as_mut().unwrap(), "{request}").unwrap();
            let mut answer = String::new();
            answers.read_line(&mut answer).unwrap();
            answer
        };
        let listed = ask(request("tools/list", json!({})));
        let list = began.elapsed();
        assert!(listed.contains("GoogleCalendar_ListEvents"), "{listed}");
        let called = ask(request("tools/call", json!({ "name": "GoogleCalendar_ListEvents", "arguments": {} })));
        let call = began.elapsed();
        assert!(called.contains("Europe/Paris") || called.contains("events"), "{called}");
        assert!(!called.contains("\"isError\":true"), "{called}");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        // The first one warms up.
        if launch > 0 {
            lists.push(list);
            calls.push(call);
        }
    }
    for (name, mut times) in [("first list of tools", lists), ("first call", calls)] {
        times.sort_unstable();
        let (median, least, most) = (times[LAUNCHES / 2], times[0], times[LAUNCHES - 1]);
        println!("  launch to the {name:<19} {median:.1?} ({least:.1?} to {most:.1?})");
    }
    println!();
}

fn request(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "bench", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

fn launched(folder: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_obo"))
        .args(["stdio", "--user", "user0000000", "--config"])
        .arg(folder.join("obo.toml"))
        .arg("--data-dir")
        .arg(folder.join("data"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
