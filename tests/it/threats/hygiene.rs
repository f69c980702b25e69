//! T17: secrets stay out of everything that is written.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::provider::{Encoding, Fault, Provider};
use crate::support::mcp::{link_of, value_of};
use crate::support::program::Program;
use crate::support::{Browser, Mcp, mail};

const SEND: &str = "Google_SendEmail";
const SEND_PATH: &str = "/gmail/v1/users/me/messages/send";

/// How many bytes a needle is found by. What is shorter is no secret.
const HEAD: usize = 8;

/// Secrets in every form in which they get out.
#[derive(Default)]
pub(super) struct Needles {
    by_head: HashMap<[u8; HEAD], Vec<(String, Vec<u8>)>>,
}

impl Needles {
    pub(super) fn of(secrets: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let mut needles = Self::default();
        for (number, secret) in secrets.into_iter().enumerate() {
            for (form, bytes) in forms(secret.as_ref()) {
                needles.add(format!("secret {number}, {form}"), bytes);
            }
        }
        assert!(!needles.by_head.is_empty(), "there is nothing to look for");
        needles
    }

    fn add(&mut self, name: String, bytes: Vec<u8>) {
        let head = *bytes.first_chunk().expect("a secret is at least eight bytes long");
        self.by_head.entry(head).or_default().push((name, bytes));
    }

    /// Which secret is there and in what form; never the secret itself.
    pub(super) fn in_bytes(&self, bytes: &[u8]) -> Option<String> {
        (0..bytes.len()).find_map(|at| {
            let candidates = self.by_head.get(bytes[at..].first_chunk::<HEAD>()?)?;
            let (name, _) = candidates.iter().find(|(_, needle)| bytes[at..].starts_with(needle))?;
            Some(format!("{name}, at byte {at} of {}", bytes.len()))
        })
    }
}

fn forms(secret: &[u8]) -> Vec<(String, Vec<u8>)> {
    let each = |format: fn(u8) -> String| secret.iter().map(|byte| format(*byte)).collect::<String>();
    let mut forms = vec![
        ("raw".to_owned(), secret.to_vec()),
        ("hex".to_owned(), each(|b| format!("{b:02x}")).into_bytes()),
        ("HEX".to_owned(), each(|b| format!("{b:02X}")).into_bytes()),
        ("percent".to_owned(), each(|b| format!("%{b:02x}")).into_bytes()),
        ("PERCENT".to_owned(), each(|b| format!("%{b:02X}")).into_bytes()),
        ("bytes as Debug prints them".to_owned(), format!("{secret:?}").trim_matches(['[', ']']).into()),
    ];
    if let Ok(text) = std::str::from_utf8(secret) {
        let as_needed = percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let form: String = url::form_urlencoded::byte_serialize(secret).collect();
        forms.push(("percent, as needed".to_owned(), as_needed.into_bytes()));
        forms.push(("form".to_owned(), form.into_bytes()));
        forms.push(("JSON".to_owned(), text.replace('/', "\\/").into_bytes()));
        for encoding in Encoding::ALL {
            forms.push((format!("{encoding:?}"), encoding.encode(text).into_bytes()));
        }
    }
    // Base64 of a longer text with the secret in it: without the characters that its neighbours share.
    for shift in 0..3 {
        let padded = [&vec![0; shift], secret].concat();
        let (first, end) = ((shift * 8).div_ceil(6), padded.len() * 8 / 6);
        for (name, text) in
            [("base64", STANDARD_NO_PAD.encode(&padded)), ("base64url", URL_SAFE_NO_PAD.encode(&padded))]
        {
            forms.push((format!("{name}, shifted by {shift}"), text.as_bytes()[first..end].to_vec()));
        }
    }
    forms
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let secret = "ya29.a/b+c=d\"e~0123456789";
    let needles = Needles::of([secret]);
    assert_eq!(needles.in_bytes(&secret.as_bytes()[1..]), None);
    for encoding in Encoding::ALL {
        assert!(needles.in_bytes(format!("x{}y", encoding.encode(secret)).as_bytes()).is_some(), "{encoding:?}");
    }
    for before in 0..4 {
        let text = format!("{}{secret} and more", "x".repeat(before));
        assert!(needles.in_bytes(STANDARD_NO_PAD.encode(&text).as_bytes()).is_some(), "{before}");
        assert!(needles.in_bytes(URL_SAFE_NO_PAD.encode(&text).as_bytes()).is_some(), "{before}");
    }
    let key = [0u8, 200, 7, 255, 13, 10, 0, 9, 1, 2];
    let needles = Needles::of([key]);
    assert!(needles.in_bytes(&[&b"ab"[..], &key, b"c"].concat()).is_some());
    assert!(needles.in_bytes(format!("key: {:?}", [&[1u8][..], &key].concat()).as_bytes()).is_some());
}

/// Everything that may be written nowhere, and everything that was written.
#[derive(Default)]
struct World {
    /// Nowhere at all.
    secrets: Vec<Vec<u8>>,
    /// In answers to their owner only: connect links.
    links: Vec<String>,
    /// By name: what went to logs, files and other people's eyes.
    written: Vec<(String, Vec<u8>)>,
    /// By name: what callers were answered.
    answered: Vec<(String, Vec<u8>)>,
}

impl World {
    fn secret(&mut self, secret: impl Into<Vec<u8>>) {
        self.secrets.push(secret.into());
    }

    fn answer(&mut self, name: &str, answer: &Value) {
        self.answered.push((name.to_owned(), answer.to_string().into_bytes()));
    }

    fn folder(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.folder(&path);
            } else {
                #[cfg(unix)]
                assert!(crate::support::program::is_private(&path), "{} is for its owner only", path.display());
                self.written.push((path.display().to_string(), std::fs::read(&path).unwrap()));
            }
        }
    }

    /// Runs a command with every log there is; what it printed is searched, stdout only where it is no secret itself.
    async fn run(&mut self, program: &Program, arguments: &[&str], shows_a_secret: bool) -> String {
        let mut command = program.command(arguments);
        command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").stdin(Stdio::null());
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        self.written.push((format!("stderr of {arguments:?}"), output.stderr));
        if !shows_a_secret {
            self.written.push((format!("stdout of {arguments:?}"), output.stdout.clone()));
        }
        String::from_utf8(output.stdout).unwrap()
    }

    /// Opens a link as a person would, signs in where that is asked for, and keeps what the browser saw of secrets.
    async fn consent(&mut self, provider: &Provider, link: &str, token: Option<&str>, account: &str) {
        self.links.push(link.rsplit('/').next().unwrap().to_owned());
        let mut browser = Browser::new();
        let mut page = browser.get(link).await;
        self.secrets.extend(browser.cookies.values().map(|cookie| cookie.clone().into_bytes()));
        if let Some(token) = token {
            assert_eq!(browser.submit(&page, &[("token", token)]).await.status, 303);
            page = browser.get(link).await;
        }
        let forwarded = browser.submit(&page, &[]).await.location.unwrap();
        let url = url::Url::parse(&forwarded).unwrap();
        self.secret(url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned());
        let back = provider.consent(&forwarded, account).await.unwrap();
        let done = browser.get(&back).await;
        assert_eq!(done.status, 200, "{}", done.text);
        self.secrets.extend(browser.cookies.values().map(|cookie| cookie.clone().into_bytes()));
        self.answered.push(("the last page".to_owned(), done.text.into_bytes()));
    }

    fn search(&self) {
        let needles = Needles::of(&self.secrets);
        for (name, bytes) in self.written.iter().chain(&self.answered) {
            assert_eq!(needles.in_bytes(bytes), None, "in {name}");
        }
        // Commands that print a link have it on stdout; here none does.
        let links = Needles::of(&self.links);
        for (name, bytes) in &self.written {
            assert_eq!(links.in_bytes(bytes), None, "a connect link in {name}");
        }
    }
}

fn event() -> Value {
    json!({ "summary": "x", "start": "2026-12-01T10:00:00Z", "end": "2026-12-01T11:00:00Z" })
}

#[tokio::test]
async fn t17_no_secret_is_written_anywhere() {
    let (program, provider) = Program::with_provider("").await;
    let mut world = World::default();
    let key = obo::secret::random::<32>();
    std::fs::write(program.dir.path().join("vault.key"), key).unwrap();
    world.secret(key);

    // Two people over stdio: connect, call, more scopes, refresh, failures, disconnect.
    let trace = [("RUST_LOG", "trace"), ("RUST_BACKTRACE", "full")];
    for (user, account) in [("alice", "alice@example.com"), ("bob", "bob@example.com")] {
        let mut client = program.stdio_in(user, &trace);
        for (tool, arguments) in [(SEND, mail("bob@example.com", "x")), ("GoogleCalendar_CreateEvent", event())] {
            let asked = client.call(tool, arguments.clone()).await;
            let link = link_of(&asked).unwrap_or_else(|| panic!("no link in {asked}"));
            world.answer(user, &asked);
            world.consent(&provider, &link, None, account).await;
            let done = client.call(tool, arguments).await;
            value_of(&done);
            world.answer(user, &done);
        }
        provider.expire_access(account);
        value_of(&client.call(SEND, mail("bob@example.com", "refreshed")).await);
        for fault in [
            Fault::Status(500, json!({ "error": { "message": "broken" } })),
            Fault::EchoAuthorization(Encoding::Raw),
            Fault::TruncatedJson,
            Fault::CutAfter,
        ] {
            provider.fault(SEND_PATH, 1, fault);
            let failed = client.call(SEND, mail("bob@example.com", "x")).await;
            assert_eq!(failed["isError"], true, "{failed}");
            world.answer(user, &failed);
        }
        provider.expire_access(account);
        provider.fault(
            "/token",
            1,
            Fault::Status(400, json!({ "error": "invalid_request", "error_description": "no" })),
        );
        let failed = client.call(SEND, mail("bob@example.com", "x")).await;
        assert_eq!(failed["isError"], true, "{failed}");
        world.answer(user, &failed);
        let log = client.log();
        assert!(log.contains("DEBUG") || log.contains("TRACE"), "RUST_LOG was not looked at: {log}");
        world.run(&program, &["connections", "--user", user, "--json"], false).await;
        world.folder(&program.data());
        let log = client.log_path();
        assert_eq!(client.close().await.0, 0);
        world.written.push((format!("log of {user}"), std::fs::read(log).unwrap()));
        world.run(&program, &["disconnect", "google", "--user", user], false).await;
    }

    // Two people over HTTP, who sign in with tokens of obo.
    let stderr = program.dir.path().join("serve.log");
    let mut serve = program.command(&["--log", "json", "serve"]);
    serve.envs(trace).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&stderr).unwrap());
    let serve = serve.spawn().unwrap();
    let base = format!("http://127.0.0.1:{}", program.port);
    ready(&base).await;
    for (user, account) in [("carol", "alice@example.com"), ("dave", "bob@example.com")] {
        let token = world.run(&program, &["token", "issue", "--user", user], true).await.trim().to_owned();
        world.secret(token.clone());
        let client = Mcp::new(&base, Some(token.clone()));
        let asked = client.call(SEND, mail("bob@example.com", "x")).await;
        world.answer(user, &asked);
        world.consent(&provider, &link_of(&asked).unwrap(), Some(&token), account).await;
        value_of(&client.call(SEND, mail("bob@example.com", "x")).await);
        provider.expire_access(account);
        value_of(&client.call(SEND, mail("bob@example.com", "x")).await);
        provider.fault(SEND_PATH, 1, Fault::EchoAuthorization(Encoding::Base64));
        world.answer(user, &client.call(SEND, mail("bob@example.com", "x")).await);
        provider.revoke_all(account);
        let again = client.call(SEND, mail("bob@example.com", "x")).await;
        world.links.push(link_of(&again).unwrap().rsplit('/').next().unwrap().to_owned());
        world.answer(user, &again);
    }
    // What strangers show is not written either.
    for stranger in
        ["obo_4jK2c4naryc4naryc4naryc4naryc4naryc4nary", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjNG5hcnkifQ.c4nary"]
    {
        world.secret(stranger);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let refused = http.post(format!("{base}/mcp")).bearer_auth(stranger).body("{}").send().await.unwrap();
        assert_eq!(refused.status(), 401);
        let refused = http.get(format!("{base}/mcp?access_token={stranger}")).send().await.unwrap();
        assert_eq!(refused.status(), 400);
    }
    for command in [
        &["audit", "show", "--json"][..],
        &["audit", "show"],
        &["audit", "verify"],
        &["token", "list", "--json"],
        &["providers", "list"],
        &["connections", "--user", "carol"],
    ] {
        world.run(&program, command, false).await;
    }
    world.folder(&program.data());
    stop(serve.id().unwrap());
    let ended = serve.wait_with_output().await.unwrap();
    assert!(ended.status.success(), "{ended:?}");
    world.written.push(("stdout of serve".to_owned(), ended.stdout));
    world.written.push(("log of serve".to_owned(), std::fs::read(&stderr).unwrap()));
    world.folder(&program.data());

    world.secrets.extend(provider.secrets().into_iter().map(String::into_bytes));
    assert!(world.secrets.len() > 40, "{} secrets", world.secrets.len());
    let database = world.written.iter().any(|(name, bytes)| name.ends_with("-wal") && !bytes.is_empty());
    assert!(database, "the write-ahead log was among what is searched");
    world.search();
}

/// Waits until the server answers, for half a minute at most: a process starts in its own time.
async fn ready(base: &str) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asking = async {
        while http.get(format!("{base}/readyz")).send().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), asking).await.expect("serve did not start");
}

fn stop(pid: u32) {
    let killed = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn t17_the_process_leaves_no_core_and_cannot_be_read() {
    use std::os::unix::fs::MetadataExt as _;

    /// Whose files a process's memory and environment are: the kernel gives those of one that is not dumpable to root.
    fn owners(pid: u32) -> Vec<(u32, u32)> {
        let owner = |name: &str| {
            let found = std::fs::metadata(format!("/proc/{pid}/{name}")).unwrap();
            (found.uid(), found.gid())
        };
        ["mem", "environ", "maps"].map(owner).to_vec()
    }

    // Run by root, a process is told apart from root's by its group.
    let group = 54_321;
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let (program, _provider) = Program::with_provider("").await;
    let mut other = tokio::process::Command::new("cat");
    other.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut command = program.command(&["stdio", "--user", "alice"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if is_root {
        other.gid(group);
        command.gid(group);
    }
    let other = other.spawn().unwrap();
    assert_ne!(owners(other.id().unwrap()), [(0, 0); 3], "an ordinary process can be told apart");

    let mut child = command.spawn().unwrap();
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, format!("{request}\n").as_bytes()).await.unwrap();
    let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line).await.unwrap();
    assert!(line.contains("protocolVersion"), "{line}");

    let pid = child.id().unwrap();
    assert_eq!(owners(pid), [(0, 0); 3]);
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let values: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(values, ["0", "0"], "{core}");
}
