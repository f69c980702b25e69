//! `[vault.key] source = "keyring"` and `[vault] store = "keyring"` with gnome-keyring, in every mood that it can be in.
//!
//! They need Debian's packages `dbus`, `gnome-keyring` and `libsecret-tools`, and say so where those are missing.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::connect;
use crate::support::desktop::{Desktop, Mood, is_here};
use crate::support::mail;
use crate::support::mcp::value_of;
use crate::support::program::{Program, Ran};

/// Far more than a keyring that says nothing is waited for, and far less than somebody who could unlock it.
const HANGS: Duration = Duration::from_secs(60);

/// obo on a desktop, whose vault's key is in the keyring.
struct Machine {
    program: Program,
}

impl Machine {
    fn new() -> Self {
        let program = Program::new("");
        let machine = Self { program };
        machine.configure("");
        machine
    }

    fn configure(&self, further: &str) {
        let listen = format!("[server]\nlisten = \"127.0.0.1:{}\"\n", self.program.port);
        let key = "[vault.key]\nsource = \"keyring\"\n";
        std::fs::write(self.program.config(), format!("{listen}{key}{further}")).unwrap();
    }

    fn home(&self) -> PathBuf {
        self.program.dir.path().join("home")
    }

    async fn desktop(&self, mood: Mood) -> Desktop {
        Desktop::start(&self.home(), mood).await
    }

    /// Runs a command in a session. It must end.
    async fn run(&self, desktop: &Desktop, arguments: &[&str]) -> Ran {
        let mut command = self.program.command(arguments);
        let output = desktop.inside(&mut command).stdin(std::process::Stdio::null()).output();
        let output = tokio::time::timeout(HANGS, output).await.unwrap_or_else(|_| panic!("{arguments:?} hangs"));
        let output = output.unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn status(&self, desktop: &Desktop) -> Value {
        let ran = self.run(desktop, &["vault", "status", "--json"]).await;
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
    }

    /// What differs from run to run is taken out.
    fn steady(&self, ran: &Ran) -> String {
        let text = format!("exit code {}\n{}{}", ran.code, ran.stdout, ran.stderr);
        let text = text.replace(&self.program.dir.path().display().to_string(), "DIR");
        let word = |word: &str| match word.trim_matches(|c: char| !c.is_ascii_alphanumeric()) {
            bare if uuid::Uuid::parse_str(bare).is_ok() => word.replace(bare, "VAULT"),
            bare if bare.len() == 16 && bare.bytes().all(|byte| byte.is_ascii_hexdigit()) => word.replace(bare, "KEY"),
            _ => word.to_owned(),
        };
        let line = |line: &str| match line {
            line if line.starts_with("size") => "size           BYTES".to_owned(),
            line => line.split(' ').map(word).collect::<Vec<_>>().join(" "),
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }
}

const ISSUE: [&str; 5] = ["token", "issue", "--user", "alice", "--log=text"];

#[tokio::test]
async fn a_key_in_the_keyring_outlives_processes_and_logins() {
    if !is_here() {
        return;
    }
    let machine = Machine::new();
    std::fs::remove_file(machine.program.config()).unwrap();
    let desktop = machine.desktop(Mood::Unlocked).await;
    let init = machine.run(&desktop, &["init"]).await;
    assert_eq!(init.code, 0, "{init:?}");
    let written = std::fs::read_to_string(machine.program.config()).unwrap();
    assert!(written.contains("source = \"keyring\""), "{written}");
    assert_eq!(desktop.entries().await, [""; 0], "the probe leaves nothing behind");

    assert_eq!(machine.run(&desktop, &ISSUE).await.code, 0);
    let status = machine.status(&desktop).await;
    assert_eq!((&status["key_source"], &status["key_opens"]), (&json!("keyring"), &json!(true)));
    let vault = status["vault"].as_str().unwrap().to_owned();
    assert_eq!(desktop.entries().await, [vault.as_str()], "one entry, named after the vault");
    assert_eq!(machine.run(&desktop, &ISSUE).await.code, 0);
    desktop.end().await;

    let desktop = machine.desktop(Mood::Unlocked).await;
    assert_eq!(machine.status(&desktop).await["tokens"], json!(2));
    assert_eq!(desktop.entries().await, [vault.as_str()]);
    // Another key in its place, and the old one is gone.
    let old = machine.status(&desktop).await["key_id"].clone();
    let rotated = machine.run(&desktop, &["vault", "rotate-key"]).await;
    assert_eq!(rotated.code, 0, "{rotated:?}");
    let status = machine.status(&desktop).await;
    assert_eq!((status["key_id"] != old, &status["key_opens"]), (true, &json!(true)));
    assert_eq!(desktop.entries().await, [vault.as_str()]);

    desktop.forget(&vault).await;
    let lost = machine.run(&desktop, &ISSUE).await;
    assert_eq!(lost.code, 64, "{lost:?}");
    assert!(lost.stderr.contains("never makes a second key"), "{lost:?}");
    assert_eq!(desktop.entries().await, [""; 0]);
}

/// What a mood costs: nothing but the time until it is over.
async fn costs_nothing(mood: Mood) {
    if !is_here() {
        return;
    }
    // Somebody with a vault.
    let machine = Machine::new();
    let desktop = machine.desktop(Mood::Unlocked).await;
    assert_eq!(machine.run(&desktop, &ISSUE).await.code, 0);
    let (before, entries) = (machine.status(&desktop).await, desktop.entries().await);
    desktop.end().await;
    // And somebody without one, on the same desktop.
    let newcomer = Machine::new();

    let desktop = machine.desktop(mood).await;
    let mut said = Vec::new();
    for (name, machine, arguments) in [
        ("vault status", &machine, &["vault", "status"][..]),
        ("token issue", &machine, &ISSUE[..]),
        ("vault rotate-key", &machine, &["vault", "rotate-key"][..]),
        ("token issue, without a vault", &newcomer, &ISSUE[..]),
    ] {
        let ran = machine.run(&desktop, arguments).await;
        assert_eq!(ran.code, 64, "{ran:?}");
        said.push(format!("obo {name}\n{}", machine.steady(&ran)));
    }
    // The newcomer is at the home of the other.
    let said = said.join("\n\n").replace(&machine.program.dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(format!("keyring_{mood:?}"), said);

    // Where no key can be kept there, `obo init` chooses another place, and says so.
    std::fs::remove_file(newcomer.program.config()).unwrap();
    std::fs::remove_file(newcomer.program.dir.path().join("vault.key")).unwrap();
    let init = newcomer.run(&desktop, &["init"]).await;
    assert_eq!(init.code, 0, "{init:?}");
    assert!(init.stderr.contains("does not work here"), "{init:?}");
    assert!(std::fs::read_to_string(newcomer.program.config()).unwrap().contains("source = \"file\""));
    newcomer.configure("");

    // A server starts, lists its tools, and ends, whatever the keyring does.
    let environment = desktop.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut stdio = machine.program.stdio_in("alice", &environment);
    let served = async {
        let listed = stdio.request("tools/list", json!({})).await;
        assert!(listed["result"]["tools"].is_array(), "{listed}");
        let called = stdio.call("Obo_ListConnections", json!({})).await;
        assert_eq!(called["_meta"]["obo/error"]["code"], "vault_unavailable", "{called}");
        stdio.close().await.0
    };
    let code = tokio::time::timeout(HANGS, served).await.unwrap_or_else(|_| panic!("obo stdio hangs"));
    assert_eq!(code, 0);
    desktop.end().await;

    let desktop = machine.desktop(Mood::Unlocked).await;
    let after = machine.status(&desktop).await;
    assert_eq!((&after["key_id"], &after["key_opens"]), (&before["key_id"], &json!(true)), "{after}");
    assert_eq!(after["tokens"], before["tokens"]);
    assert_eq!(desktop.entries().await, entries, "no second key");
    assert_eq!(newcomer.status(&desktop).await, Value::Null, "no vault without a key");
    assert_eq!(machine.run(&desktop, &ISSUE).await.code, 0);
}

#[tokio::test]
async fn a_locked_keyring() {
    costs_nothing(Mood::Locked).await;
}

#[tokio::test]
async fn a_keyring_whose_password_is_another() {
    costs_nothing(Mood::WrongPassword).await;
}

#[tokio::test]
async fn a_bus_without_a_keyring() {
    costs_nothing(Mood::NoService).await;
}

#[tokio::test]
async fn no_bus() {
    costs_nothing(Mood::NoBus).await;
}

#[tokio::test]
async fn a_keyring_that_never_answers() {
    costs_nothing(Mood::Hanging).await;
}

/// A login without a password, as of a person whom a fingerprint lets in: there is a keyring, and it was never made.
#[tokio::test]
async fn a_keyring_that_was_never_unlocked() {
    if !is_here() {
        return;
    }
    let machine = Machine::new();
    let desktop = machine.desktop(Mood::Unlocked).await;
    assert_eq!(machine.run(&desktop, &ISSUE).await.code, 0);
    let before = machine.status(&desktop).await;
    desktop.end().await;
    // Another home: a keyring that knows nothing.
    let newcomer = Machine::new();
    let desktop = newcomer.desktop(Mood::Locked).await;
    let mut said = Vec::new();
    for (name, machine) in [("with a vault", &machine), ("without a vault", &newcomer)] {
        let ran = machine.run(&desktop, &ISSUE).await;
        assert_eq!(ran.code, 64, "{ran:?}");
        said.push(format!("obo token issue, {name}\n{}", machine.steady(&ran)));
    }
    insta::assert_snapshot!("keyring_never_unlocked", said.join("\n\n"));
    desktop.end().await;
    let desktop = machine.desktop(Mood::Unlocked).await;
    let after = machine.status(&desktop).await;
    assert_eq!((&after["key_id"], &after["key_opens"]), (&before["key_id"], &json!(true)));
    assert_eq!(desktop.entries().await.len(), 1);
}

/// A client launches obo before the desktop has its keyring.
#[tokio::test]
async fn a_server_finds_a_keyring_that_is_started_after_it() {
    if !is_here() {
        return;
    }
    let machine = Machine::new();
    let desktop = machine.desktop(Mood::NoService).await;
    let environment = desktop.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut stdio = machine.program.stdio_in("alice", &environment);
    let without = stdio.call("Obo_ListConnections", json!({})).await;
    assert_eq!(without["_meta"]["obo/error"]["code"], "vault_unavailable", "{without}");
    desktop.login().await;
    let with = stdio.call("Obo_ListConnections", json!({})).await;
    assert_eq!(with["isError"], false, "{with}: {}", stdio.log());
    assert_eq!(desktop.entries().await.len(), 1);
    assert_eq!(stdio.close().await.0, 0);
}

/// What a command printed as JSON, whatever its exit code.
fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

/// `[vault] store = "keyring"`, with the key in a file, so that it is the store alone which needs the keyring.
#[tokio::test]
async fn connections_whose_secrets_are_in_the_keyring() {
    if !is_here() {
        return;
    }
    let (mut program, provider) = Program::with_provider("[vault]\nstore = \"keyring\"\n").await;
    let home = program.dir.path().join("home");
    let desktop = Desktop::start(&home, Mood::Unlocked).await;
    program.environment = desktop.environment();
    let send = mail("bob@example.com", "x");
    let call = ["call", "Google.SendEmail", "--user", "alice", "--input", &send.to_string()].map(str::to_owned);
    let call = call.each_ref().map(String::as_str);
    for account in ["alice", "bob"] {
        let connected = connect(&program, &provider, &["--user", account], account).await;
        assert_eq!(connected.code, 0, "{connected:?}");
    }
    assert_eq!(program.run(&call).await.code, 0);
    let bodies = async || {
        let secrets = json_of(&program.run(&["vault", "status", "--json"]).await)["secrets"].clone();
        ["in_keyring", "in_file", "lost"].map(|key| secrets[key].as_u64().unwrap())
    };
    assert_eq!(bodies().await, [2, 0, 0]);
    assert_eq!(desktop.entries().await.len(), 3, "a body each, and the mark");
    let shown = program.run(&["vault", "status"]).await.stdout;
    assert!(shown.contains("their secrets  2 in the OS keyring, 0 in the file, 0 lost\n"), "{shown}");

    // The other store would see connections that do not open, and is not let near them.
    let toml = std::fs::read_to_string(program.config()).unwrap();
    std::fs::write(program.config(), toml.replace("store = \"keyring\"", "store = \"file\"")).unwrap();
    let refused = program.run(&call).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (64, ""), "{refused:?}");
    assert!(refused.stderr.contains("vault.store: this vault keeps"), "{refused:?}");
    std::fs::write(program.config(), &toml).unwrap();

    // The keyring is started again while a server runs.
    let mut serving = program.stdio("bob");
    value_of(&serving.call("Google_SendEmail", send.clone()).await);
    desktop.end_keyring().await;
    desktop.login().await;
    let gone = serving.call("Obo_Disconnect", json!({ "provider": "google" })).await;
    assert_eq!(gone["isError"], false, "{gone}: {}", serving.log());
    assert_eq!(serving.close().await.0, 0);
    assert_eq!((bodies().await, desktop.entries().await.len()), ([1, 0, 0], 2));

    // A backup has everything in it, sealed: it opens without this keyring.
    let backup = program.dir.path().join("obo.backup");
    let backup = backup.to_str().unwrap();
    let written = program.run(&["vault", "backup", backup]).await;
    assert_eq!(written.code, 0, "{written:?}");
    let bytes = std::fs::read(backup).unwrap();
    for secret in provider.secrets() {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "a secret is not sealed");
    }
    desktop.end().await;

    // Locked: nobody is asked to connect again, and nothing is lost.
    for mood in [Mood::Locked, Mood::NoService] {
        let desktop = Desktop::start(&home, mood).await;
        program.environment = desktop.environment();
        let locked = program.run(&call).await;
        assert_eq!((locked.code, locked.stdout.as_str()), (1, ""), "{locked:?}");
        assert!(locked.stderr.contains("the OS keyring does not work here"), "{locked:?}");
        let asked = program.run(&["connect", "slack", "--no-browser", "--user", "alice"]).await;
        assert_eq!((asked.code, asked.stdout.as_str()), (1, ""), "no link whose fruits cannot be kept: {asked:?}");
        let restored = program.run(&["vault", "status"]).await;
        assert_ne!(restored.code, 0, "{restored:?}");
        desktop.end().await;
    }
    let other = Program::new("[vault]\nstore = \"file\"\n");
    let elsewhere = toml.replace(&format!(":{}", program.port), &format!(":{}", other.port));
    std::fs::write(other.config(), elsewhere.replace("store = \"keyring\"", "store = \"file\"")).unwrap();
    let restored = other.run(&["vault", "restore", backup]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(other.run(&call).await.code, 0);

    // Restored where it was, too: its bodies come from the backup, and go into the keyring as they change.
    let desktop = Desktop::start(&home, Mood::Unlocked).await;
    program.environment = desktop.environment();
    assert_eq!(program.run(&call).await.code, 0);
    let restored = program.run(&["vault", "restore", "--replace", backup]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    let bodies = json_of(&program.run(&["vault", "status", "--json"]).await)["secrets"].clone();
    assert_eq!(bodies, json!({ "in_keyring": 0, "in_file": 1, "lost": 0 }));
    assert_eq!(program.run(&call).await.code, 0);
    let bodies = json_of(&program.run(&["vault", "status", "--json"]).await)["secrets"].clone();
    assert_eq!(bodies, json!({ "in_keyring": 1, "in_file": 0, "lost": 0 }));
}
