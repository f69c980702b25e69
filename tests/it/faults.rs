//! A data folder that is broken in the ways in which disks and people break one: a clear error, and nothing is changed,
//! by whatever command meets it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::cli::connect;
use crate::support::mail;
use crate::support::program::{Program, Ran};

/// Somebody without any right of their own. Root may do everything, so that no permission stands in its way.
const NOBODY: u32 = 65_534;
/// Longer than any of these commands takes to find out; a server that is up by then did not find out.
const FOUND_OUT: Duration = Duration::from_secs(60);

/// A vault with somebody's connection and token in it, and a copy of it to begin anew with.
struct Broken {
    program: Program,
    _provider: crate::provider::Provider,
    good: PathBuf,
    /// Whom commands run as, with which program; none: as these tests do.
    as_nobody: Option<PathBuf>,
}

impl Broken {
    async fn new() -> Self {
        let (program, provider) = Program::with_provider("").await;
        assert_eq!(connect(&program, &provider, &["--user", "alice"], "alice").await.code, 0);
        assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
        // Whoever was the last to close it may have left something beside it.
        pragma(&program.data(), "foreign_keys = ON");
        let good = program.dir.path().join("good");
        copy(&program.data(), &good);
        let as_nobody = (rustix::process::geteuid().is_root()).then(|| {
            let binary = program.dir.path().join("obo");
            std::fs::copy(env!("CARGO_BIN_EXE_obo"), &binary).unwrap();
            binary
        });
        Self { program, _provider: provider, good, as_nobody }
    }

    /// Puts the good folder and the right key back.
    fn mend(&self) {
        let data = self.program.data();
        let _ = std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700));
        let _ = std::fs::remove_dir_all(&data);
        copy(&self.good, &data);
        let key = self.program.dir.path().join("vault.key");
        let _ = std::fs::remove_file(&key);
        crate::support::write_key(&key);
        if self.as_nobody.is_some() {
            own(self.program.dir.path());
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let command = self.program.command(arguments);
        let Some(binary) = &self.as_nobody else { return command };
        let mut nobody = Command::new(binary);
        nobody.args(command.as_std().get_args()).uid(NOBODY).gid(NOBODY).current_dir(self.program.dir.path());
        for (name, value) in command.as_std().get_envs() {
            match value {
                Some(value) => nobody.env(name, value),
                None => nobody.env_remove(name),
            };
        }
        nobody.kill_on_drop(true);
        nobody
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Ran {
        run(self.command(arguments), input).await
    }

    /// What each of the commands says, one a line.
    async fn told(&self) -> Vec<String> {
        let input = mail("bob@example.com", "x").to_string();
        let mut told = Vec::new();
        for (name, arguments) in [
            ("serve", &["serve"][..]),
            ("call", &["call", "Google.SendEmail", "--user", "alice", "--input", &input]),
            ("vault status", &["vault", "status"]),
        ] {
            let ran = self.run(arguments, "").await;
            assert_ne!(ran.code, 0, "{name}: {ran:?}");
            let said: Vec<&str> = ran.stderr.lines().filter_map(|line| line.strip_prefix("obo: ")).collect();
            assert_eq!(said.len(), 1, "{name}: {ran:?}");
            told.push(format!("{name}: {} {}", ran.code, self.steady(said[0])));
        }
        // A client that launched it is told either by its end, or by the answer to a call.
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "Google_SendEmail", "arguments": mail("bob@example.com", "x"),
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": crate::support::mcp::NEWEST,
                "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        } });
        let ran = self.run(&["stdio", "--user", "alice"], &format!("{call}\n")).await;
        let said = ran.stderr.lines().find_map(|line| line.strip_prefix("obo: "));
        let answer: Value = ran.stdout.lines().next().map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
        let code = answer.pointer("/result/_meta/obo~1error/code").and_then(Value::as_str);
        told.push(match (ran.code, said, code) {
            (0, None, Some(code)) => format!("stdio: a call is answered with {code}"),
            (exit, Some(said), None) if exit != 0 => format!("stdio: {exit} {}", self.steady(said)),
            _ => panic!("{ran:?}"),
        });
        told
    }

    fn steady(&self, text: &str) -> String {
        let text = text.replace(&self.program.dir.path().display().to_string(), "DIR");
        let is_id = |word: &&str| word.len() == 16 && word.bytes().all(|b| b.is_ascii_hexdigit());
        let ids: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(is_id).collect();
        ids.iter().fold(text.clone(), |text, id| text.replace(id, "KEY"))
    }
}

/// Ids of tokens are five bytes in hexadecimal.
fn is_token_id(word: &str) -> bool {
    word.len() == 10 && word.bytes().all(|b| b.is_ascii_hexdigit())
}

async fn run(mut command: Command, input: &str) -> Ran {
    let told = format!("{:?}", command.as_std().get_args());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Whoever ends at once does not read it.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(FOUND_OUT, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("it goes on: {told}")).unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Copies a folder with its permissions. Links are made anew.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, from.metadata().unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

/// Gives everything in a folder to nobody.
fn own(path: &Path) {
    std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        std::fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path()));
    }
}

/// Everything in a folder: names, kinds, permissions, owners, bytes.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // SQLite's index of the log beside the database, and that log when there is nothing in it, may stay behind.
            let empty = path.metadata().is_ok_and(|about| about.len() == 0);
            if path.ends_with("obo.db-shm") || path.ends_with("obo.db-wal") && empty {
                continue;
            }
            let about = path.symlink_metadata().unwrap();
            let bytes = if about.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            found.insert(path.clone(), (about.mode(), about.uid(), bytes));
            if about.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

type Fault = (&'static str, fn(&Path, &Path));

/// What is wrong, made so in the data folder and with the key file.
const FAULTS: [Fault; 16] = [
    ("the wrong key", |_, key| std::fs::write(key, [8; 32]).unwrap()),
    ("half a key", |_, key| std::fs::write(key, [7; 16]).unwrap()),
    ("no key", |_, key| std::fs::remove_file(key).unwrap()),
    ("a key that others can read", |_, key| mode(key, 0o644)),
    ("a key that cannot be read", |_, key| mode(key, 0o000)),
    ("a folder that others can read", |data, _| mode(data, 0o755)),
    ("a file that others can read", |data, _| mode(&data.join("obo.db"), 0o644)),
    ("a file that is a link", |data, _| {
        std::fs::rename(data.join("obo.db"), data.join("elsewhere")).unwrap();
        symlink(data.join("elsewhere"), data.join("obo.db")).unwrap();
    }),
    ("a folder that cannot be written", |data, _| mode(data, 0o500)),
    ("locks that cannot be written", |data, _| {
        mode(&data.join("locks/in-use"), 0o400);
        mode(&data.join("locks"), 0o500);
    }),
    ("a file that cannot be written", |data, _| mode(&data.join("obo.db"), 0o400)),
    ("a file that cannot be read", |data, _| mode(&data.join("obo.db"), 0o000)),
    ("a newer format", |data, _| pragma(data, "user_version = 2")),
    ("a file of another program", |data, _| pragma(data, "application_id = 7")),
    ("half a file", |data, _| {
        let bytes = std::fs::read(data.join("obo.db")).unwrap();
        std::fs::write(data.join("obo.db"), &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("a file of zeros", |data, _| {
        let length = data.join("obo.db").metadata().unwrap().len();
        std::fs::write(data.join("obo.db"), vec![0; length as usize]).unwrap();
    }),
];

fn pragma(data: &Path, pragma: &str) {
    let db = Connection::open(data.join("obo.db")).unwrap();
    db.execute_batch(&format!("PRAGMA {pragma}; PRAGMA wal_checkpoint(TRUNCATE);")).unwrap();
}

#[tokio::test]
async fn a_broken_folder_is_said_clearly_and_left_as_it_is() {
    let broken = Broken::new().await;
    let (data, key) = (broken.program.data(), broken.program.dir.path().join("vault.key"));
    let mut all = Vec::new();
    for (name, breaking) in FAULTS {
        broken.mend();
        breaking(&data, &key);
        if broken.as_nobody.is_some() {
            own(&data);
        }
        let before = everything(&data);
        let told = broken.told().await;
        let after = everything(&data);
        let changed: Vec<&PathBuf> =
            before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
        assert_eq!(changed, Vec::<&PathBuf>::new(), "{name}: {told:?}");
        all.push(format!("{name}\n    {}", told.join("\n    ")));
    }
    insta::assert_snapshot!("broken_folders", all.join("\n"));

    // Mended, everything is there.
    broken.mend();
    let status = broken.run(&["vault", "status", "--verify"], "").await;
    assert_eq!(status.code, 0, "{status:?}");
    let tokens = broken.run(&["token", "list", "--json"], "").await;
    assert_eq!(serde_json::from_str::<Value>(&tokens.stdout).unwrap().as_array().unwrap().len(), 1);
}

/// A disk without room, by a limit on how far a file may reach. Whatever was said to be kept is kept, whatever was said
/// not to be is not, and nothing that was there is lost.
#[tokio::test]
async fn on_a_full_disk_nothing_is_lost_and_nothing_is_half_done() {
    let broken = Broken::new().await;
    let limited = |kib: u64, arguments: &[&str]| {
        let plain = broken.program.command(arguments);
        let mut command = Command::new("sh");
        // The signal would end the process: a full disk is an error, and so is this then.
        command.args(["-c", "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"", "sh"]);
        // In units of 512 bytes (POSIX.1-2017, ulimit).
        command.arg((kib * 2).to_string()).arg(plain.as_std().get_program()).args(plain.as_std().get_args());
        for (name, _) in plain.as_std().get_envs() {
            command.env_remove(name);
        }
        command.kill_on_drop(true);
        command
    };
    let listed = broken.program.run(&["token", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let first = listed[0]["id"].as_str().unwrap().to_owned();
    let (mut kept, mut refused) = (BTreeSet::new(), Vec::new());
    let mut said = Vec::new();
    // From no room at all to some: enough for the files beside the database, and for one write or a few.
    for kib in [0, 32, 40, 48, 64, 96] {
        for _ in 0..3 {
            let ran = run(limited(kib, &["token", "issue", "--user", "alice"]), "").await;
            let ids = |text: &str| text.split(' ').find(|word| is_token_id(word)).map(str::to_owned);
            match ran.code {
                0 => drop(kept.insert(ids(&ran.stderr).unwrap())),
                1 => {
                    assert_eq!(ran.stdout, "", "no token is shown that is not kept");
                    let lines: Vec<&str> = ran.stderr.lines().filter_map(|line| line.strip_prefix("obo: ")).collect();
                    assert_eq!(lines.len(), 1, "{ran:?}");
                    refused.extend(ids(lines[0]));
                    let id = ids(lines[0]).unwrap_or_else(|| "no id".to_owned());
                    said.push(broken.steady(&lines[0].replace(&id, "ID")));
                }
                _ => panic!("{kib} KiB: {ran:?}"),
            }
            let listed = broken.program.run(&["token", "list", "--json"]).await;
            let tokens: Value = serde_json::from_str(&listed.stdout).unwrap();
            let listed: BTreeSet<String> =
                tokens.as_array().unwrap().iter().map(|token| token["id"].as_str().unwrap().to_owned()).collect();
            assert!(listed.contains(&first) && kept.iter().all(|id| listed.contains(id)), "{kib} KiB: {ran:?}");
            // Beyond these only what the command said.
            assert!(
                listed.iter().all(|id| *id == first || kept.contains(id) || refused.contains(id)),
                "{kib} KiB: {ran:?}"
            );
        }
    }
    assert!(!kept.is_empty(), "there was never room");
    assert!(said.len() >= 3, "there was room all the time");
    said.sort();
    said.dedup();
    insta::assert_snapshot!("full_disk", said.join("\n"));

    // A call that changes something is not made, because it cannot be on record.
    let mails = || broken._provider.mailbox("bob@example.com").len();
    let (before, input) = (mails(), mail("bob@example.com", "x").to_string());
    let call = ["call", "Google.SendEmail", "--user", "alice", "--input", &input];
    assert_eq!(run(limited(0, &call), "").await.code, 1);
    assert_eq!(mails(), before);
    assert_eq!(broken.program.run(&call).await.code, 0, "with room again it is");
    assert_eq!(mails(), before + 1);
    let status = broken.program.run(&["vault", "status", "--verify"]).await;
    assert_eq!(status.code, 0, "{status:?}");
    assert_eq!(broken.program.run(&["audit", "verify"]).await.code, 0);
}
