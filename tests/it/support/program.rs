//! The program itself, as a person runs it: a folder of its own, arguments, exit codes, and stdio clients.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{providers, vault, write_key};
use crate::provider::{self, Provider};

/// A configuration and a data folder for the program.
pub struct Program {
    pub dir: TempDir,
    pub port: u16,
    /// What its commands have in their environment beside the test's own.
    pub environment: Vec<(&'static str, String)>,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// A folder with a key file and this obo.toml, listening on a port that is free now.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        write_key(&dir.path().join("vault.key"));
        let program = Self { dir, port, environment: Vec::new() };
        program.configure(config);
        program
    }

    /// The same with the sandbox's providers, which send browsers back to this port.
    pub async fn with_provider(config: &str) -> (Self, Provider) {
        let program = Self::new("");
        let callbacks = ["google", "slack"].map(|id| format!("http://127.0.0.1:{}/oauth/callback/{id}", program.port));
        let clock = obo::clock::SystemClock;
        let now = move || obo::clock::Clock::now(&clock).as_second();
        let provider = Provider::start(provider::Settings::new(callbacks, now)).await.unwrap();
        program.configure(&format!("{}{config}", providers(&provider)));
        (program, provider)
    }

    /// Writes obo.toml.
    pub fn configure(&self, further: &str) {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:{}\"\nconsent_wait = \"20s\"\n{}[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n{further}",
            self.port,
            vault(&self.data())
        );
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("obo.toml")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_obo"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OBO_")) {
            command.env_remove(name);
        }
        command.arg("--config").arg(self.config()).arg("--data-dir").arg(self.data()).args(arguments);
        command.envs(self.environment.iter().cloned());
        command.kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).stdin(Stdio::null()).output().await.unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts `obo stdio` for a user.
    pub fn stdio(&self, user: &str) -> StdioClient {
        self.stdio_in(user, &[])
    }

    pub fn stdio_in(&self, user: &str, environment: &[(&str, &str)]) -> StdioClient {
        let log = self.dir.path().join(format!("stdio-{}.log", uuid::Uuid::new_v4()));
        let mut child = self
            .command(&["stdio", "--user", user])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        StdioClient { child, stdin, lines, next: 0, log }
    }
}

/// A client that launched `obo stdio`. It speaks 2026-07-28.
pub struct StdioClient {
    pub child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    next: u64,
    log: PathBuf,
}

impl StdioClient {
    /// Sends a request and waits for its answer. Every line on stdout must be JSON-RPC.
    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params).await;
        self.answer(id).await
    }

    pub async fn send(&mut self, method: &str, mut params: Value) -> u64 {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": super::mcp::NEWEST,
            "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        self.next += 1;
        let line = json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params }).to_string();
        self.line(&line).await;
        self.next
    }

    pub async fn line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).await.unwrap();
        stdin.write_all(b"\n").await.unwrap();
    }

    pub async fn answer(&mut self, id: u64) -> Value {
        loop {
            let line = self.lines.next_line().await.unwrap().unwrap_or_else(|| panic!("stdout ended: {}", self.log()));
            let message: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("not JSON-RPC: {e}: {line}"));
            assert_eq!(message["jsonrpc"], "2.0");
            if message["id"] == id {
                return message;
            }
        }
    }

    /// Waits for a notification, and fails where none comes for a long time.
    pub async fn notification(&mut self, method: &str) -> Value {
        loop {
            let line = tokio::time::timeout(std::time::Duration::from_secs(60), self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("there was no {method}: {}", self.log()));
            let line = line.unwrap().unwrap_or_else(|| panic!("stdout ended: {}", self.log()));
            let message: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("not JSON-RPC: {e}: {line}"));
            if message["method"] == method {
                return message;
            }
        }
    }

    pub async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let answer = self.request("tools/call", json!({ "name": tool, "arguments": arguments })).await;
        answer.get("result").cloned().unwrap_or(answer)
    }

    /// Closes stdin, and waits for the end.
    pub async fn close(mut self) -> (i32, String) {
        drop(self.stdin.take());
        let mut rest = String::new();
        while let Some(line) = self.lines.next_line().await.unwrap() {
            rest.push_str(&line);
            rest.push('\n');
        }
        (self.child.wait().await.unwrap().code().unwrap_or(-1), rest)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Where its log is, for after its end.
    pub fn log_path(&self) -> PathBuf {
        self.log.clone()
    }
}

/// Whether a file can be read by its owner only.
#[cfg(unix)]
pub fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode().trailing_zeros() >= 6
}
