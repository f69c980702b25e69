//! What it takes to hold 5,000 status polls, and how soon they hear of a consent.
//!
//! `cargo bench --bench polls`
//!
//! obo runs in a process of its own, whose memory is measured; the backend, the browsers and the provider are here.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Query;
use axum::routing::post;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Polls that are held at once.
const POLLS: usize = 5000;
/// Requests under way at once while links are made.
const AT_ONCE: usize = 32;
/// Links that are consented to while all are held, for the time until each one's poll is answered.
const CONSENTS: usize = 20;
/// How long the polls are left alone before memory and processor time are read.
const IDLE: Duration = Duration::from_secs(5);
/// Longest that obo may take to start.
const START: Duration = Duration::from_secs(20);

const KEY: &str = "the-key-of-the-benchmark";

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

/// A link, and the user it is for.
struct Started {
    user: String,
    id: String,
    link: String,
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let provider = provider().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = format!("http://127.0.0.1:{port}");
    let mut server = serve(folder.path(), port, &provider);
    let http = Arc::new(client());
    let began = Instant::now();
    while http.get(format!("{base}/readyz")).send().await.is_err() {
        assert!(began.elapsed() < START, "obo did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("resident, nobody waits:                      {}", mebibytes(&server));

    // Everybody has a link of their own.
    let mut links = Vec::with_capacity(POLLS);
    for from in (0..POLLS).step_by(AT_ONCE) {
        let users = from..(from + AT_ONCE).min(POLLS);
        links.extend(futures::future::join_all(users.map(|n| start(&http, &base, format!("user-{n}")))).await);
    }
    println!("resident, {POLLS} links made:                   {}", mebibytes(&server));
    let polls = (0..POLLS).collect();
    let mut answers = hold(&base, &links, polls).await;
    tokio::time::sleep(IDLE).await;
    let before = processor_time(&server);
    tokio::time::sleep(IDLE).await;
    println!("resident, {POLLS} polls held, each of its own: {}", mebibytes(&server));
    if let (Some(before), Some(after)) = (before, processor_time(&server)) {
        let share = (after - before) / IDLE.as_secs_f64() * 100.0;
        println!("processor, {POLLS} polls held:                  {share:.1} % of one core");
    }
    let mut worst = Duration::ZERO;
    for (n, started) in links.iter().enumerate().take(CONSENTS) {
        let done = consent(&base, &http, started).await;
        let (answered, status) = answers.recv().await.unwrap();
        assert_eq!((answered, status.as_str()), (n, "completed"));
        worst = worst.max(done.elapsed());
    }
    println!("consent to its answer, the worst of {CONSENTS}:       {worst:.1?}");
    end(&mut server);
    drop(answers);

    // All of them wait for one: the most that a single consent can have to wake.
    let mut server = serve(folder.path(), port, &provider);
    let http = Arc::new(client());
    let began = Instant::now();
    while http.get(format!("{base}/readyz")).send().await.is_err() {
        assert!(began.elapsed() < START, "obo did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let one = [start(&http, &base, "everybody".to_owned()).await];
    let mut answers = hold(&base, &one, vec![0; POLLS]).await;
    tokio::time::sleep(IDLE).await;
    println!("resident, {POLLS} polls of one link held:       {}", mebibytes(&server));
    let done = consent(&base, &http, &one[0]).await;
    for _ in 0..POLLS {
        assert_eq!(answers.recv().await.unwrap().1, "completed");
    }
    println!("consent to the last of {POLLS} answers:         {:.1?}", done.elapsed());
    println!("resident, after it:                          {}", mebibytes(&server));
    end(&mut server);
}

fn serve(folder: &std::path::Path, port: u16, provider: &str) -> Child {
    let hash: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\n[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.google]\nclient_id = \"bench\"\nclient_secret = \"secret\"\norigin = {provider:?}\n\
         [[identity.application]]\nname = \"bench\"\ntenant = \"acme\"\nkey_sha256 = \"{hash}\"\n\
         user_verifier_url = \"http://127.0.0.1:9/verify\"\n"
    );
    std::fs::write(folder.join("obo.toml"), config).unwrap();
    let key = folder.join("vault.key");
    std::fs::write(&key, [7u8; 32]).unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_obo"))
        .args(["serve", "--config"])
        .arg(folder.join("obo.toml"))
        .arg("--data-dir")
        .arg(folder.join("data"))
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn end(server: &mut Child) {
    server.kill().unwrap();
    server.wait().unwrap();
}

fn client() -> reqwest::Client {
    let policy = reqwest::redirect::Policy::none();
    reqwest::Client::builder().no_proxy().redirect(policy).build().unwrap()
}

async fn start(http: &reqwest::Client, base: &str, user: String) -> Started {
    let requirement = json!({
        "provider_id": "google", "oauth2": { "scopes": ["https://www.googleapis.com/auth/gmail.send"] },
    });
    let body = json!({ "auth_requirement": requirement, "user_id": user });
    let asked = http.post(format!("{base}/v1/auth/authorize")).header("authorization", KEY).json(&body);
    let answer: Value = asked.send().await.unwrap().json().await.unwrap();
    let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    Started { id: text("id"), link: text("url"), user }
}

/// Holds a poll for each of these links; each answer comes with its link's number.
async fn hold(base: &str, links: &[Started], polls: Vec<usize>) -> mpsc::UnboundedReceiver<(usize, String)> {
    let http = Arc::new(client());
    let (answered, answers) = mpsc::unbounded_channel();
    for (n, link) in polls.into_iter().enumerate() {
        let url = format!("{base}/v1/auth/status?id={}&wait=59", links[link].id);
        let (http, answered) = (Arc::clone(&http), answered.clone());
        tokio::spawn(async move {
            // Those that are held when obo ends have no answer.
            let Ok(answer) = http.get(url).header("authorization", KEY).send().await else { return };
            let answer: Value = answer.json().await.unwrap();
            let _ = answered.send((link, answer["status"].as_str().unwrap_or_default().to_owned()));
        });
        // Connections are made one after the other: a burst would only measure the system's queue.
        if n % AT_ONCE == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    answers
}

/// Goes through a consent: the page, the button, the provider, and the application's word. When it was given.
async fn consent(base: &str, http: &reqwest::Client, started: &Started) -> Instant {
    let page = http.get(&started.link).send().await.unwrap();
    let cookie = page.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let page = page.text().await.unwrap();
    let fields: Vec<(String, String)> = page
        .split("<input type=\"hidden\"")
        .skip(1)
        .map(|input| (attribute(input, "name"), attribute(input, "value")))
        .collect();
    let press = http.post(&started.link).header("cookie", &cookie).header("origin", base).form(&fields);
    let forwarded = location(&press.send().await.unwrap());
    let query: HashMap<String, String> = forwarded.query_pairs().into_owned().collect();
    let back = format!("{}?code={}&state={}", query["redirect_uri"], started.user, query["state"]);
    let verify = location(&http.get(back).header("cookie", &cookie).send().await.unwrap());
    let flow = verify.query_pairs().find(|(key, _)| key == "flow_id").unwrap().1.into_owned();
    let body = json!({ "flow_id": flow, "user_id": started.user });
    let confirm = http.post(format!("{base}/v1/auth/confirm_user")).header("authorization", KEY).json(&body);
    let began = Instant::now();
    assert_eq!(confirm.send().await.unwrap().status(), 200);
    began
}

fn attribute(input: &str, name: &str) -> String {
    let from = input.find(&format!("{name}=\"")).unwrap() + name.len() + 2;
    input[from..].split('"').next().unwrap().to_owned()
}

fn location(answer: &reqwest::Response) -> url::Url {
    url::Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap()
}

/// A provider that gives a token for any code, and says that the account is the code.
async fn provider() -> String {
    let token = |body: String| async move {
        let code = url::form_urlencoded::parse(body.as_bytes()).find(|(key, _)| key == "code").unwrap().1.into_owned();
        axum::Json(json!({
            "access_token": format!("token-of-{code}"), "refresh_token": "refresh", "expires_in": 3599, "token_type": "Bearer",
            "scope": "openid email https://www.googleapis.com/auth/gmail.send", "id_token": id_token(&code),
        }))
    };
    let account = |headers: axum::http::HeaderMap, Query(_): Query<HashMap<String, String>>| async move {
        let user = headers["authorization"].to_str().unwrap().replace("Bearer token-of-", "");
        axum::Json(json!({ "sub": user, "id": user, "email": format!("{user}@example.com"), "email_verified": true }))
    };
    let router = Router::new().route("/token", post(token)).fallback(account);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    origin
}

fn id_token(user: &str) -> String {
    use base64::Engine as _;
    let encode = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({ "sub": user, "email": format!("{user}@example.com"), "aud": "bench" });
    format!("{}.{}.c2ln", encode(json!({ "alg": "RS256" })), encode(claims))
}

/// Resident memory.
fn mebibytes(server: &Child) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<f64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.map_or_else(|| "not measured on this system".to_owned(), |kib| format!("{:.1} MiB", kib / 1024.0))
}

/// Processor time that was used, in seconds; the clock of `/proc` has hundredths.
fn processor_time(server: &Child) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some((fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?) / 100.0)
}
