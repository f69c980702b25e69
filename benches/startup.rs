//! How soon `obo stdio` answers after it was launched, and what it holds while it has nothing to do.
//!
//! `cargo bench --bench startup`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Launches; the figure is their median.
const LAUNCHES: usize = 21;
/// How long it is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(3);

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}"#;

fn main() {
    // `cargo test --benches` only wants to know whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\n[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n\
         [providers.google]\nclient_id = \"bench\"\nclient_secret = \"secret\"\n\
         [providers.slack]\nclient_id = \"bench\"\nclient_secret = \"secret\"\n"
    );
    std::fs::write(folder.path().join("obo.toml"), config).unwrap();
    std::fs::write(folder.path().join("vault.key"), [7u8; 32]).unwrap();

    let (first, mut child) = launch(folder.path());
    println!("launch to the first tools/list answer, new data folder:  {first:.1?}");
    end(&mut child);
    let mut times: Vec<Duration> = (0..LAUNCHES)
        .map(|_| {
            let (time, mut child) = launch(folder.path());
            end(&mut child);
            time
        })
        .collect();
    times.sort_unstable();
    println!(
        "launch to the first tools/list answer, median of {LAUNCHES}:      {:.1?} ({:.1?} to {:.1?})",
        times[LAUNCHES / 2],
        times[0],
        times[LAUNCHES - 1]
    );

    let (_, mut child) = launch(folder.path());
    std::thread::sleep(IDLE);
    match resident(child.id()) {
        Some(kib) => {
            println!("resident after {IDLE:?} without work:                     {:.1} MiB", kib as f64 / 1024.0)
        }
        None => println!("resident: not measured on this system"),
    }
    end(&mut child);
}

/// Launches obo and asks for its tools; the time until they were all there.
fn launch(folder: &Path) -> (Duration, Child) {
    let began = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_obo"))
        .args(["stdio", "--user", "ana", "--config"])
        .arg(folder.join("obo.toml"))
        .arg("--data-dir")
        .arg(folder.join("data"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{LIST}").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    let time = began.elapsed();
    assert!(answer.contains("Google_SendEmail") && answer.contains("Slack_PostMessage"), "{answer}");
    (time, child)
}

fn end(child: &mut Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Resident memory in KiB.
fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}
