//! What README.md shows works: its configurations are valid, its tool loads, its commands are commands of obo.

use std::path::Path;
use std::process::Stdio;

use obo::config::{Config, Environment};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::resource_server::idp::{EC, Idp, with};
use crate::resource_server::{Answered, call, modern};
use crate::support::TestObo;
use crate::support::mcp::value_of;
use crate::support::program::Program;

/// README's fenced blocks of one language, in their order.
fn blocks(language: &str) -> Vec<String> {
    blocks_of("README.md", language)
}

/// A page's fenced blocks of one language, in their order.
pub(crate) fn blocks_of(page: &str, language: &str) -> Vec<String> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{language}") {
            found.push(lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect());
        }
    }
    found
}

fn is_tool(text: &str) -> bool {
    text.starts_with("name = ")
}

/// The words of a command line. README quotes with single quotes only.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (n, part) in line.split('\'').enumerate() {
        if n % 2 == 1 { words.push(part.to_owned()) } else { words.extend(part.split_whitespace().map(str::to_owned)) }
    }
    words
}

/// The lines of the sh blocks that run obo, without "obo".
fn commands() -> Vec<Vec<String>> {
    let lines = blocks("sh").concat();
    lines.lines().filter(|line| line.starts_with("obo ")).map(|line| words(line)[1..].to_vec()).collect()
}

#[test]
fn every_block_is_of_a_kind_that_is_tested() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let fences = page.lines().filter(|line| line.starts_with("```")).count() / 2;
    // The one in Python is run against a server by tests/e2e/rest.test.mjs.
    assert_eq!(blocks("python").len(), 1);
    let tested: usize = ["sh", "toml", "json", "python"].map(|language| blocks(language).len()).iter().sum();
    assert_eq!(fences, tested);
    for line in blocks("sh").concat().lines() {
        let known = ["obo ", "cargo run --example sandbox", "cargo test", "cargo install --path ."];
        assert!(known.iter().any(|start| line.starts_with(start)), "{line}");
    }
}

#[test]
fn configurations_are_valid() {
    let configurations: Vec<String> = blocks("toml").into_iter().filter(|text| !is_tool(text)).collect();
    assert!(configurations.len() >= 2);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("google.secret"), "s3cret\n").unwrap();
    let key = folder.path().join("obo.key");
    std::fs::write(&key, [7; 32]).unwrap();
    // A variable that a client sets for the obo it launches is not there for obo in a shell: the guide must not need one.
    let environment = Environment::from([("OBO_IDP_SECRET", "s3cret")]);
    for text in configurations {
        let text = text.replace("\"/run/secrets/obo.key\"", &format!("{key:?}"));
        let config =
            Config::parse(&text, "obo.toml", folder.path(), &environment).unwrap_or_else(|e| panic!("{e}\n{text}"));
        // A part of a configuration may be shown alone.
        assert!(config.authorization_server.enabled != config.providers.contains_key("google"), "{text}");
        if let Some(google) = config.providers.get("google") {
            assert_eq!(google.client_secret.as_ref().unwrap().expose(), "s3cret");
        }
    }
}

/// docs/identity.md: its configurations work, and what it says that clients are told is what they are told.
#[tokio::test]
async fn the_guide_to_identity_providers_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let environment = Environment::from([("OBO_IDP_SECRET", "s3cret")]);
    let configurations = blocks_of("docs/identity.md", "toml");
    assert_eq!(configurations.len(), 3);
    for text in &configurations {
        Config::parse(text, "obo.toml", folder.path(), &environment).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }

    let idp = Idp::start(&[&EC]).await;
    let obo = TestObo::builder()
        .config(&idp.table("corp", "scopes = [\"obo.use\"]\nwrite_scopes = [\"obo.write\"]"))
        .start()
        .await;
    let reader = EC.token(&with(&idp.claims(&obo), "scope", "obo.use"));
    let nothing = Answered::of(modern(&obo, "tools/list", json!({}))).await;
    let told = [nothing, call(&obo, &reader, "Google_SendEmail").await].map(|answer| {
        let challenge = answer.challenge.replace(&obo.base, "https://obo.example.com");
        format!("WWW-Authenticate: {challenge}\n")
    });
    assert_eq!(blocks_of("docs/identity.md", "http"), told);
}

#[tokio::test]
async fn the_tool_loads_and_works() {
    let tools: Vec<String> = blocks("toml").into_iter().filter(|text| is_tool(text)).collect();
    let [tool] = &tools[..] else { panic!("{tools:?}") };
    let obo = TestObo::builder().tool("google/get-event.toml", tool).start().await;
    assert_eq!(obo.app.catalog.problems(), []);
    obo.connect("alice", "alice@example.com", "GoogleCalendar_GetEvent", json!({ "event_id": "abc" })).await;
    let event = json!({ "summary": "Lunch", "start": "2026-12-01T12:00:00Z", "end": "2026-12-01T13:00:00Z" });
    obo.connect("alice", "alice@example.com", "GoogleCalendar_CreateEvent", event.clone()).await;
    let alice = obo.client("alice").await;
    let created = value_of(&alice.call("GoogleCalendar_CreateEvent", event).await);
    let read = value_of(&alice.call("GoogleCalendar_GetEvent", json!({ "event_id": created["id"] })).await);
    assert_eq!(read["summary"], "Lunch", "{read}");
}

#[tokio::test]
async fn client_configurations_launch_obo() {
    let programs: Vec<Value> = blocks("json").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(programs.len(), 1);
    for program in programs {
        for server in program["mcpServers"].as_object().unwrap().values() {
            assert_eq!(server["command"], "obo");
            let arguments: Vec<String> =
                server["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect();
            is_understood(&arguments).await;
        }
    }
}

/// Whether the arguments are obo's: `--help` after them is reached only where the words before it are understood.
async fn is_understood(arguments: &[String]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obo"));
    let output = command.args(arguments).arg("--help").stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn commands_are_understood_and_those_that_need_no_account_work() {
    let commands = commands();
    assert!(commands.len() >= 10, "{commands:?}");
    let tool: String = blocks("toml").into_iter().find(|text| is_tool(text)).unwrap();
    let program = Program::new("[providers.google]\nclient_id = \"x\"\n[tools]\ndirs = [\"./tools\"]\n");
    std::fs::create_dir_all(program.dir.path().join("tools/google")).unwrap();
    std::fs::write(program.dir.path().join("tools/google/get-event.toml"), tool).unwrap();

    let mut ran = 0;
    for command in &commands {
        is_understood(command).await;
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        let expected = match &arguments[..] {
            // It would wait for a browser, or for clients; its own tests are in cli.rs.
            ["connect" | "serve", ..] => continue,
            // It would write into the home folder; its own tests are in install.rs.
            ["install", ..] => continue,
            // There is a configuration already.
            ["init", ..] => 1,
            // Nobody has connected an account here.
            ["call", .., last] if *last != "--dry-run" => 3,
            ["connections", "--default", _] => 1,
            _ => 0,
        };
        let result = program.run(&arguments).await;
        assert_eq!(result.code, expected, "obo {}: {result:?}", arguments.join(" "));
        ran += 1;
    }
    assert!(ran >= 9, "{ran}");
}
