//! `obo doctor`, as a person meets it: on a fresh machine, after `obo init`, and with everything broken one by one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::program::{Program, Ran};

/// A program whose user has a home folder of their own.
fn at_home(config: &str) -> Program {
    let mut program = Program::new(config);
    let home = program.dir.path().join("home");
    fs::create_dir_all(&home).unwrap();
    program.environment = vec![
        ("HOME", home.display().to_string()),
        ("APPDATA", home.join("roaming").display().to_string()),
        ("XDG_CONFIG_HOME", String::new()),
        ("XDG_DATA_HOME", String::new()),
        ("CLAUDE_CONFIG_DIR", String::new()),
        // No keyring is there to ask.
        ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere".to_owned()),
        ("GOOGLE_SECRET", "s3cret".to_owned()),
    ];
    program
}

/// What differs from machine to machine and from run to run is taken out.
fn steady(program: &Program, text: &str) -> String {
    let folder = program.dir.path().display().to_string();
    let text = text
        .replace(&folder, "DIR")
        .replace(env!("CARGO_BIN_EXE_obo"), "OBO")
        .replace(&format!(":{}", program.port), ":PORT")
        .replace(&format!("port {}", program.port), "port PORT");
    let line = |line: &str| match line.get(..20) {
        Some("ok    clock          ") | Some("ok    clock         ") => "ok    clock          (the time)".to_owned(),
        Some("ok    data folder   ") => {
            let (before, after) = line.split_once(", ").unwrap_or((line, ""));
            if after.ends_with("free") { format!("{before}, (so much) free") } else { line.to_owned() }
        }
        _ => line.to_owned(),
    };
    text.lines().map(|one| line(one) + "\n").collect()
}

/// All of it, with how it ended.
fn whole(program: &Program, ran: &Ran) -> String {
    let text = format!("exit {}\n{}{}", ran.code, ran.stdout, ran.stderr);
    assert!(!text.contains("s3cret"), "{text}");
    steady(program, &text)
}

/// Everything below a folder: of each file, its size and what its bytes come to.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (usize, u64)> {
    let digest = |bytes: &[u8]| {
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(bytes, &mut hasher);
        std::hash::Hasher::finish(&hasher)
    };
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                found.insert(path.clone(), (0, 0));
                folders.push(path);
            } else if name.starts_with("obo.db") {
                // Whoever opens it last brings what others left beside it into the file.
            } else {
                let bytes = fs::read(&path).unwrap();
                found.insert(path.clone(), (bytes.len(), digest(&bytes)));
            }
        }
    }
    found
}

const GOOGLE: &str = "[providers.google]\nclient_id = \"x\"\nclient_secret = \"env:GOOGLE_SECRET\"\n";

#[tokio::test]
async fn a_fresh_machine_is_told_what_comes_next() {
    let program = at_home("");
    let run = async |arguments: &[&str]| {
        let mut command = program.command(&[]);
        // As typed by somebody who names nothing.
        let mut typed = tokio::process::Command::new(command.as_std_mut().get_program());
        typed.args(arguments).envs(program.environment.iter().cloned()).kill_on_drop(true);
        typed.env("OBO_SERVER__LISTEN", format!("127.0.0.1:{}", program.port));
        let output = typed.stdin(Stdio::null()).output().await.unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    };
    let home = program.dir.path().join("home");
    fs::create_dir_all(home.join(".cursor")).unwrap();
    let before = contents(&home);
    let fresh = run(&["doctor"]).await;
    assert_eq!(contents(&home), before, "nothing was made");
    assert_eq!(run(&["init", "--key", "file"]).await.code, 0);
    let started = run(&["doctor"]).await;
    assert_eq!(started.code, 0, "{started:?}");
    if cfg!(target_os = "linux") {
        insta::assert_snapshot!(
            "doctor_fresh",
            format!("{}--- after obo init\n{}", whole(&program, &fresh), whole(&program, &started))
        );
    }
}

#[tokio::test]
async fn what_works_is_said_and_nothing_is_changed() {
    let program = at_home(GOOGLE);
    assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
    fs::create_dir_all(program.dir.path().join("home/.cursor")).unwrap();
    assert_eq!(program.run(&["install", "cursor"]).await.code, 0);
    let inside = async || {
        let status = program.run(&["vault", "status", "--json"]).await;
        let mut status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["bytes"].take();
        status
    };
    let before = (contents(program.dir.path()), inside().await);
    let ran = program.run(&["doctor"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    insta::assert_snapshot!("doctor_well", whole(&program, &ran));
    let json = program.run(&["doctor", "--json"]).await;
    assert_eq!((contents(program.dir.path()), inside().await), before);
    let checks: Vec<Value> = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(checks.len(), ran.stdout.lines().count());
    for check in &checks {
        assert!(["ok", "warn", "fail"].contains(&check["status"].as_str().unwrap()), "{check}");
        assert!(check["check"].is_string() && check["found"].is_string() && check.get("mend").is_some(), "{check}");
    }
}

/// The lines that are not "ok".
fn wrong(program: &Program, ran: &Ran) -> String {
    let text = whole(program, ran);
    text.lines().filter(|line| !line.starts_with("ok ")).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn everything_that_can_be_broken_is_named_with_its_mend() {
    type Break = fn(&Program);
    let cases: &[(&str, Break)] = &[
        ("no TOML", |p| fs::write(p.config(), "x = 5 5").unwrap()),
        ("an unknown key", |p| p.configure("[sever]\n")),
        ("the key file is gone", |p| fs::remove_file(p.dir.path().join("vault.key")).unwrap()),
        ("another key file", |p| fs::write(p.dir.path().join("vault.key"), [9; 32]).unwrap()),
        ("the secret's variable is not set", |p| {
            p.configure("[providers.google]\nclient_id = \"x\"\nclient_secret = \"env:NOT_SET\"\n");
        }),
        ("a broken manifest", |p| {
            let folder = p.dir.path().join("tools/google");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("mine.toml"), "name = \"Google.Mine\"\ntitel = \"x\"\n").unwrap();
            p.configure(&format!("[tools]\ndirs = [\"./tools\"]\n{GOOGLE}"));
        }),
        ("no client", |p| p.configure("")),
        ("tools.enable names nothing", |p| p.configure(&format!("{GOOGLE}[tools]\nenable = [\"Google.SendMail\"]\n"))),
        ("a policy that is not enforced", |p| p.configure(&format!("{GOOGLE}[policy]\nfiles = [\"p.cedar\"]\n"))),
        ("the database is not one", |p| fs::write(p.data().join("obo.db"), "nonsense").unwrap()),
        ("the data folder is a file", |p| {
            fs::remove_dir_all(p.data()).unwrap();
            fs::write(p.data(), "").unwrap();
        }),
        ("another address", |p| {
            let text = fs::read_to_string(p.config()).unwrap();
            let text = text.replace(&format!("127.0.0.1:{}", p.port), &format!("192.0.2.1:{}", p.port));
            let text = text.replace("[server]\n", "[server]\npublic_url = \"https://obo.example.com\"\n");
            fs::write(p.config(), text).unwrap();
        }),
        ("a database server that is not there", |p| {
            let text = fs::read_to_string(p.config()).unwrap();
            let url = format!("postgres://obo:s3cret@127.0.0.1:{}/obo", p.port);
            fs::write(p.config(), format!("[vault]\nstore = \"postgres\"\nurl = \"{url}\"\n{text}")).unwrap();
        }),
        ("a client's file is no JSON", |p| fs::write(p.dir.path().join("home/.cursor/mcp.json"), "{ oops").unwrap()),
        ("a client launches what is gone", |p| {
            let file = p.dir.path().join("home/.cursor/mcp.json");
            let text = "{ \"mcpServers\": { \"obo\": { \"command\": \"/gone/obo\", \"args\": [\"stdio\"] } } }";
            fs::write(file, text).unwrap();
        }),
        ("a client launches something else", |p| {
            let other = p.dir.path().join("other");
            fs::write(&other, "").unwrap();
            let text = serde_json::json!({ "mcpServers": { "obo": { "command": other, "args": ["stdio"] } } });
            fs::write(p.dir.path().join("home/.cursor/mcp.json"), text.to_string()).unwrap();
        }),
        ("a client launches whatever is called obo", |p| {
            let text = "{ \"mcpServers\": { \"obo\": { \"command\": \"obo\", \"args\": [\"stdio\"] } } }";
            fs::write(p.dir.path().join("home/.cursor/mcp.json"), text).unwrap();
        }),
    ];
    let mut told = String::new();
    for (name, broken) in cases {
        let program = at_home(GOOGLE);
        assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
        fs::create_dir_all(program.dir.path().join("home/.cursor")).unwrap();
        assert_eq!(wrong(&program, &program.run(&["doctor"]).await), "exit 0\n", "{name}: before");
        broken(&program);
        let before = contents(program.dir.path());
        let ran = program.run(&["doctor"]).await;
        assert_eq!(contents(program.dir.path()), before, "{name}: it changed something");
        let wrong = wrong(&program, &ran);
        assert!(wrong.lines().count() > 1, "{name} was not noticed: {ran:?}");
        told.push_str(&format!("--- {name}\n{wrong}"));
    }
    if cfg!(target_os = "linux") {
        insta::assert_snapshot!("doctor_broken", told);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn what_others_can_read_is_named_with_its_mend() {
    use std::os::unix::fs::PermissionsExt as _;
    let secret = "[providers.google]\nclient_id = \"x\"\nclient_secret = \"file:google.secret\"\n\
                  [providers.slack]\nclient_id = \"x\"\nclient_secret = \"s3cret\"\n";
    let program = at_home(GOOGLE);
    fs::write(program.dir.path().join("google.secret"), "s3cret").unwrap();
    program.configure(secret);
    assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
    let open = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(program.config(), 0o644);
    open(program.dir.path().join("google.secret"), 0o640);
    open(program.data(), 0o755);
    let first = wrong(&program, &program.run(&["doctor"]).await);
    open(program.config(), 0o600);
    open(program.dir.path().join("google.secret"), 0o600);
    open(program.data(), 0o700);
    open(program.data().join("obo.db"), 0o644);
    let second = wrong(&program, &program.run(&["doctor"]).await);
    open(program.data().join("obo.db"), 0o600);
    assert_eq!(wrong(&program, &program.run(&["doctor"]).await), "exit 0\n");
    insta::assert_snapshot!("doctor_permissions", format!("{first}---\n{second}"));
}

#[tokio::test]
async fn the_port_is_ours_or_a_strangers() {
    let (mut program, _provider) = Program::with_provider("").await;
    program.environment = at_home("").environment;
    let port = |ran: &Ran| {
        let text = whole(&program, ran);
        text.lines().find(|line| line.contains(" port ")).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
    assert_eq!(port(&program.run(&["doctor"]).await), "ok    port           127.0.0.1:PORT is free");

    let mut serve = program.command(&["serve", "--log", "json"]);
    let mut serving = serve.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(serving.stderr.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().expect("it listens").contains("listening") {}
    let ours = program.run(&["doctor", "--online"]).await;
    assert_eq!(
        port(&ours),
        "ok    port           127.0.0.1:PORT is held by this vault's `obo serve` at http://127.0.0.1:PORT/"
    );
    assert!(ours.stdout.contains("public_url     http://127.0.0.1:"), "{ours:?}");
    serving.kill().await.unwrap();

    let _stranger = std::net::TcpListener::bind(("127.0.0.1", program.port)).unwrap();
    let theirs = program.run(&["doctor"]).await;
    assert_eq!(theirs.code, 1);
    assert!(port(&theirs).starts_with("FAIL  port           port PORT on this machine is held by another program"));
}

#[tokio::test]
async fn online_asks_the_providers_and_compares_the_clock() {
    let (mut program, provider) = Program::with_provider("").await;
    program.environment = at_home("").environment;
    let ran = program.run(&["doctor", "--online"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let origin = provider.origin().to_string();
    for found in ["(Google)", "(Slack)", "clock          as that of"] {
        assert!(ran.stdout.contains(found), "{found}: {ran:?}");
    }
    assert!(ran.stdout.contains("warn  public_url     nobody is at"), "{ran:?}");
    drop(provider);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = fs::read_to_string(program.config()).unwrap();
    fs::write(program.config(), text.replace(origin.trim_end_matches('/'), &format!("http://{free}"))).unwrap();
    let ran = program.run(&["doctor", "--online"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("FAIL  reachable      Google: no connection to"), "{ran:?}");
}
