//! The command line as a person meets it: what each command prints, where, and how it ends.

use std::process::Stdio;
use std::sync::Arc;

use obo::app::{App, Settings, Way};
use obo::audit::{Event, Kind};
use obo::clock::{ManualClock, SharedClock};
use obo::config::{Config, Environment};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};

use crate::provider::Provider;
use crate::support::mcp::link_of;
use crate::support::program::{Program, Ran};
use crate::support::{Browser, Mcp, browser, mail, write_key};

const GOOGLE: &str = "[providers.google]\nclient_id = \"x\"\n";

/// What differs from machine to machine and from run to run is taken out.
fn steady(program: &Program, text: &str) -> String {
    let folder = program.dir.path().display().to_string();
    let mut text = text.replace(&folder, "DIR").replace(&format!(":{}", program.port), ":PORT");
    while let Some((before, after)) = text.split_once("(os error ") {
        let (_, after) = after.split_once(')').unwrap();
        text = format!("{before}(the system's number){after}");
    }
    text
}

/// Exit code 64 with one line on stderr, and nothing on stdout.
#[track_caller]
fn one_line(name: &str, ran: &Ran) -> String {
    assert_eq!(ran.code, 64, "{name}: {ran:?}");
    assert_eq!(ran.stdout, "", "{name}: {ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{name}: {ran:?}");
    ran.stderr.trim_end().strip_prefix("obo: ").unwrap_or_else(|| panic!("{name}: {ran:?}")).to_owned()
}

async fn run_with(program: &Program, environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let output = program
        .command(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .await
        .unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn a_bad_configuration_is_one_line_with_the_key_and_the_mend() {
    let program = Program::new("");
    let key = "[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n";
    let mut told = Vec::new();
    for (name, text) in [
        ("not TOML", "x = 5 5"),
        ("unknown section", "[sever]"),
        ("unknown key", "[server]\nlisen = \"127.0.0.1:1\""),
        ("unknown key that is like none", "[audit]\nzzz = 1"),
        ("unknown key of a provider", "[providers.google]\nclientid = \"x\""),
        ("unknown provider", "[providers.gogle]\nclient_id = \"x\""),
        ("client secret without client id", "[providers.google]\nclient_secret = \"x\""),
        ("empty client id", "[providers.google]\nclient_id = \"\""),
        ("wrong type", "[providers.google]\nclient_id = 5"),
        (
            "secret from a variable that is not set",
            "[providers.google]\nclient_id = \"x\"\nclient_secret = \"env:NOT_SET\"",
        ),
        (
            "secret from a file that is not there",
            "[providers.google]\nclient_id = \"x\"\nclient_secret = \"file:no.secret\"",
        ),
        ("plain http origin", "[providers.google]\nclient_id = \"x\"\norigin = \"http://example.com\""),
        ("listen is no address", "[server]\nlisten = \"8787\""),
        ("listen off loopback", "[server]\nlisten = \"0.0.0.0:8787\""),
        ("http off loopback", "[server]\npublic_url = \"http://obo.example.com\""),
        ("http on an open address", "[server]\nlisten = \"0.0.0.0:8787\"\npublic_url = \"http://127.0.0.1:8787\""),
        ("public_url with a path", "[server]\npublic_url = \"https://obo.example.com/obo\""),
        ("public_url is no URL", "[server]\npublic_url = \"obo.example.com\""),
        ("origin with a path", "[server]\nallowed_origins = [\"https://a.example/x\"]"),
        ("wait too long", "[server]\nconsent_wait = \"2m\""),
        ("metrics on the same port", "[server]\nlisten = \"127.0.0.1:1\"\nmetrics_listen = \"127.0.0.1:1\""),
        ("no such choice", "[server]\ntool_names = \"dots\""),
        ("folder of tools that is not there", "[tools]\ndirs = [\"./none\"]"),
        ("issuer without its URL", "[[identity.issuer]]\nname = \"corp\""),
        (
            "plain http issuer",
            "[[identity.issuer]]\nname = \"corp\"\nissuer = \"http://idp.example.com\"\ntenant = \"acme\"",
        ),
        (
            "application key that is no hash",
            "[[identity.application]]\nname = \"shop\"\ntenant = \"acme\"\nkey_sha256 = \"x\"",
        ),
        ("certificates that are not there", "[network]\nca_file = \"ca.pem\""),
        ("private host without a port", "[network]\nallow_private = [\"jira.corp\"]"),
    ] {
        std::fs::write(program.config(), format!("{key}{text}\n")).unwrap();
        let line = one_line(name, &program.run(&["token", "list"]).await);
        told.push(format!("{name}\n    {}", steady(&program, &line)));
    }
    for (name, text) in [
        ("key source without a path", "[vault.key]\nsource = \"file\""),
        ("key file that is not there", "[vault.key]\nsource = \"file\"\npath = \"none.key\""),
        ("key file that is a folder", "[vault.key]\nsource = \"file\"\npath = \".\""),
        ("key in a variable that is not set", "[vault.key]\nsource = \"env\"\nenv = \"NOT_SET\""),
        ("passphrase that nobody can be asked for", "[vault.key]\nsource = \"passphrase\""),
        ("unknown key source", "[vault.key]\nsource = \"keyrin\""),
    ] {
        std::fs::write(program.config(), text).unwrap();
        let line = one_line(name, &program.run(&["token", "list"]).await);
        told.push(format!("{name}\n    {}", steady(&program, &line)));
    }
    insta::assert_snapshot!("bad_configurations", told.join("\n"));
}

#[tokio::test]
async fn a_bad_variable_is_named() {
    let program = Program::new("");
    let mut told = Vec::new();
    for (variable, value) in [
        ("OBO_SERVER__LISEN", "127.0.0.1:1"),
        ("OBO_SERVER__CONSENT_WAIT", "2m"),
        ("OBO_SEVER__LISTEN", "127.0.0.1:1"),
        ("OBO_SERVER__LISTEN__PORT", "1"),
        ("OBO_TOOLS__ENABLE", "Google.*"),
        ("OBO__LISTEN", "127.0.0.1:1"),
    ] {
        let line = one_line(variable, &run_with(&program, &[(variable, value)], &["providers", "list"]).await);
        assert!(line.starts_with(variable), "{line}");
        told.push(steady(&program, &line));
    }
    insta::assert_snapshot!("bad_variables", told.join("\n"));

    let others =
        run_with(&program, &[("OBO_LISTEN", "nonsense"), ("OBO_VAULT_KEY", "x")], &["providers", "list"]).await;
    assert_eq!((others.code, others.stderr.as_str()), (0, ""), "other variables are not looked at");
    let lists = [("OBO_TOOLS__ENABLE", "[\"Slack.*\"]"), ("OBO_PROVIDERS__SLACK__CLIENT_ID", "x")];
    let listed = run_with(&program, &lists, &["tools", "list"]).await;
    assert!(listed.stdout.contains("Slack.PostMessage") && listed.code == 0, "{listed:?}");
}

#[tokio::test]
async fn a_key_that_does_not_open_the_vault_is_one_line_too() {
    let program = Program::new(GOOGLE);
    let key = program.dir.path().join("vault.key");
    assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
    let commands: [&[&str]; 6] = [
        &["token", "list"],
        &["connections"],
        &["disconnect", "google"],
        &["connect", "google", "--no-browser"],
        &["audit", "verify"],
        &["serve"],
    ];

    std::fs::write(&key, [8u8; 32]).unwrap();
    for command in commands {
        let line = one_line(command[0], &program.run(command).await);
        assert!(line.starts_with("vault.key: ") && line.contains("does not hold the key"), "{line}");
    }
    let call = ["call", "Google.SendEmail", "--input", &mail("bob@example.com", "x").to_string()];
    assert!(one_line("call", &program.run(&call).await).contains("does not hold the key"));

    std::fs::write(&key, "too short").unwrap();
    let short = one_line("short", &program.run(&["token", "list"]).await);
    assert!(short.starts_with("vault.key: "), "{short}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        write_key(&key);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        let shared = one_line("shared", &program.run(&["serve"]).await);
        insta::assert_snapshot!("bad_keys", steady(&program, &format!("{short}\n{shared}")));
    }
    write_key(&key);
    assert_eq!(program.run(&["token", "list"]).await.code, 0, "the right key opens it again");
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() {
    let program = Program::new("");
    let _taken = std::net::TcpListener::bind(("127.0.0.1", program.port)).unwrap();
    insta::assert_snapshot!("port_taken", steady(&program, &one_line("serve", &program.run(&["serve"]).await)));
    let open = one_line("open", &program.run(&["serve", "--listen", "0.0.0.0:1"]).await);
    assert!(open.starts_with("--listen 0.0.0.0:1: ") && open.contains("server.public_url is missing"), "{open}");
}

#[tokio::test]
async fn a_provider_without_a_client_is_said_with_what_to_register() {
    let program = Program::new("");
    let connect = one_line("connect", &program.run(&["connect", "google", "--no-browser"]).await);
    insta::assert_snapshot!("no_client", connect);
    for command in [["call", "Google.SendEmail"], ["call", "Google_SendEmail"]] {
        assert_eq!(one_line("call", &program.run(&command).await), connect);
    }
    assert_eq!(one_line("show", &program.run(&["tools", "show", "Google.SendEmail"]).await), connect);
    let listed = program.run(&["tools", "list"]).await;
    assert_eq!(listed.code, 0);
    let offered = listed.stdout.lines().skip(1).map(|line| line.split(' ').next().unwrap());
    assert_eq!(offered.collect::<Vec<_>>(), ["Obo.Disconnect", "Obo.ListConnections"], "what needs no provider");
    assert!(listed.stderr.contains("obo providers list"), "{listed:?}");
    let connect = program.run(&["tools", "show", "Obo.Connect"]).await;
    assert!(connect.code == 1 && connect.stderr.contains("obo providers list"), "{connect:?}");
    let none = program.run(&["call", "Nothing.There"]).await;
    assert_eq!(none.code, 1, "{none:?}");

    program.configure(&format!("{GOOGLE}[tools]\nenable = [\"GoogleCalendar.*\"]\n"));
    let disabled = program.run(&["call", "Google.SendEmail"]).await;
    assert_eq!(disabled.code, 1);
    assert_eq!(disabled.stderr, "obo: Google.SendEmail is not offered; add it to tools.enable in obo.toml\n");
    let near = program.run(&["tools", "show", "GoogleCalendar.ListEvent"]).await;
    assert_eq!(
        near.stderr,
        "obo: there is no tool \"GoogleCalendar.ListEvent\" here; did you mean GoogleCalendar.ListEvents?\n"
    );
}

#[tokio::test]
async fn wrong_usage_is_2_and_says_what_would_be_right() {
    let program = Program::new(GOOGLE);
    let mut told = Vec::new();
    for arguments in [
        &["foo"][..],
        &["tool", "list"],
        &["call"],
        &["call", "Google.SendEmail", "--inptu", "{}"],
        &["call", "Google.SendEmail", "--input", "{\"to"],
        &["call", "Google.SendEmail", "--input", "[1]"],
        &["call", "Google.SendEmail", "--input", "@no.json"],
        &["call", "Google.SendEmail", "--user", ""],
        &["call", "Google.SendEmail", "--tenant", "A B"],
        &["call", "Google.SendEmail", "--source", "corp"],
        &["connections", "--source", "A B"],
        &["connect", "gogle", "--no-browser"],
        &["connect", "google", "--tool", "Slack.PostMessage", "--no-browser"],
        &["audit", "show", "--since", "1 week"],
        &["token", "issue"],
        &["token", "issue", "--user", "alice", "--ttl", "0d"],
        &["serve", "--listen", "8787"],
    ] {
        let ran = program.run(arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}: {ran:?}");
        told.push(format!("$ obo {}\n{}", arguments.join(" "), steady(&program, &ran.stderr)));
    }
    insta::assert_snapshot!("wrong_usage", told.join("\n"));
    let bare = program.command(&[]).stdin(Stdio::null()).output().await.unwrap();
    assert_eq!(bare.status.code(), Some(2));
}

#[tokio::test]
async fn every_command_has_its_help() {
    let program = Program::new("");
    let mut commands = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(command) = commands.pop() {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_obo")).args(&arguments).output().await.unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{command:?}");
        for line in help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty()) {
            let Some(name) = line.strip_prefix("  ").filter(|name| !name.starts_with(' ')) else { continue };
            let name = name.split(' ').next().unwrap();
            if name != "help" {
                commands.push([&command[..], &[name.to_owned()]].concat());
            }
        }
        assert!(help.lines().all(|line| line.chars().count() <= 110), "{help}");
        insta::assert_snapshot!(format!("help {}", command.join(" ")).trim_end().replace(' ', "_"), help);
        seen += 1;
    }
    assert!(seen >= 18, "{seen} commands");
    drop(program);
}

#[tokio::test]
async fn results_are_json_where_it_is_asked_for() {
    let program = Program::new(GOOGLE);
    program.run(&["token", "issue", "--user", "alice", "--group", "staff"]).await;
    let json = |ran: Ran| -> Value {
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
    };
    let providers = json(program.run(&["providers", "list", "--json"]).await);
    let google = providers.as_array().unwrap().iter().find(|one| one["id"] == "google").unwrap();
    assert_eq!(google["client_configured"], true);
    assert_eq!(google["redirect_uris"], json!([format!("http://127.0.0.1:{}/oauth/callback/google", program.port)]));
    let tools = json(program.run(&["tools", "list", "--json"]).await);
    let shown = json(program.run(&["tools", "show", "Google_SendEmail", "--json"]).await);
    assert_eq!(shown["name"], "Google.SendEmail");
    assert!(tools.as_array().unwrap().contains(&shown));
    let tokens = json(program.run(&["token", "list", "--json"]).await);
    assert_eq!((&tokens[0]["user"], &tokens[0]["groups"]), (&json!("alice"), &json!(["staff"])));
    assert_eq!(json(program.run(&["connections", "--json"]).await), json!([]));
    assert_eq!(
        json(program.run(&["audit", "show", "--json"]).await)["note"],
        format!("token.issued {}", tokens[0]["id"].as_str().unwrap())
    );
    assert_eq!(json(program.run(&["audit", "verify", "--json"]).await)["problems"], json!([]));
    assert_eq!(
        json(
            program
                .run(&[
                    "call",
                    "Google.SendEmail",
                    "--dry-run",
                    "--json",
                    "--input",
                    &mail("bob@example.com", "x").to_string()
                ])
                .await
        )[0]["method"],
        "POST"
    );
}

#[tokio::test]
async fn a_dry_run_shows_the_request_and_sends_none() {
    let (program, provider) = Program::with_provider("").await;
    let input = json!({ "time_min": "2026-12-01T00:00:00Z", "time_max": "2026-12-08T00:00:00Z" }).to_string();
    let ran = program.run(&["call", "GoogleCalendar.ListEvents", "--dry-run", "--json", "--input", &input]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let requests: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(requests[0]["headers"]["authorization"], "Bearer ••••");
    let url = requests[0]["url"].as_str().unwrap();
    assert!(url.starts_with(&format!("{}/calendar/v3/calendars/primary/events?", provider.origin())), "{url}");
    let wrong = program.run(&["call", "GoogleCalendar.ListEvents", "--dry-run", "--input", "{\"time_mix\":1}"]).await;
    assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""));
    assert!(wrong.stderr.contains("time_mix"), "{wrong:?}");
    assert!(provider.log().is_empty());
    let audited = program.run(&["audit", "show"]).await;
    assert_eq!(
        (audited.stdout.as_str(), audited.stderr.as_str()),
        ("", "No record is like that.\n"),
        "nothing was done"
    );
}

/// A command that runs on, with its lines.
struct Running {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(program: &Program, arguments: &[&str]) -> Self {
        let mut command = program.command(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, stdout, stderr }
    }

    /// `obo serve`, once it listens.
    async fn serve(program: &Program) -> Self {
        let mut serve = Self::start(program, &["serve"]);
        loop {
            let line = serve.stderr.next_line().await.unwrap().expect("obo serve has ended");
            if line.contains("listening") {
                return serve;
            }
        }
    }

    async fn end(mut self) -> Ran {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.get_mut().read_to_string(&mut stdout).await.unwrap();
        self.stderr.get_mut().read_to_string(&mut stderr).await.unwrap();
        Ran { code: self.child.wait().await.unwrap().code().unwrap_or(-1), stdout, stderr }
    }
}

/// Presses the button of a loopback page and chooses an account, or `deny`.
async fn consent(provider: &Provider, link: &str, who: &str) -> browser::Page {
    let mut browser = Browser::new();
    let page = browser.get(link).await;
    assert_eq!(page.status, 200, "{}", page.text);
    let pressed = browser.submit(&page, &[]).await;
    let back = provider.consent(&pressed.location.unwrap(), who).await.unwrap();
    browser.get(&back).await
}

pub(crate) async fn connect(program: &Program, provider: &Provider, arguments: &[&str], who: &str) -> Ran {
    let mut connecting = Running::start(program, &[&["connect", "google", "--no-browser"], arguments].concat());
    let link = connecting.stdout.next_line().await.unwrap().expect("no link");
    assert!(link.starts_with(&format!("http://127.0.0.1:{}/connect/", program.port)), "{link}");
    consent(provider, &link, who).await;
    connecting.end().await
}

#[tokio::test]
async fn connecting_calling_and_disconnecting_from_the_shell() {
    let (program, provider) = Program::with_provider("").await;
    let for_alice = ["--user", "alice"];
    let call = |input: &str, further: &[&str]| {
        let mut arguments = vec!["call", "Google.SendEmail", "--user", "alice", "--input"];
        arguments.push(input);
        arguments.extend(further);
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run =
        async |arguments: Vec<String>| program.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let hello = mail("bob@example.com", "From the shell").to_string();

    // Nobody serves this folder: the command that would is the result, and can be run as it stands.
    let asked = run(call(&hello, &[])).await;
    assert_eq!(asked.code, 3, "{asked:?}");
    assert_eq!(asked.stdout, "obo connect google --tool Google.SendEmail --user alice\n");
    assert_eq!(asked.stderr, "Run this command to connect the account, then call again.\n");
    let asked = run(call(&hello, &["--json"])).await;
    let told: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!((asked.code, &told["status"]), (3, &json!("authorization_required")));
    assert_eq!(told["command"], "obo connect google --tool Google.SendEmail --user alice");

    let refused = connect(&program, &provider, &for_alice, "deny").await;
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "{refused:?}");
    let connected = connect(&program, &provider, &["--user", "alice", "--tool", "Google.SendEmail"], "alice").await;
    assert_eq!((connected.code, connected.stdout.as_str()), (0, "Google is connected as alice@example.com.\n"));
    insta::assert_snapshot!("connect_says", steady(&program, &format!("{}\n{}", refused.stderr, connected.stderr)));
    let listed = program.run(&["connections", "--user", "alice", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed[0]["account"], "alice@example.com");
    assert!(listed[0]["scopes"].to_string().contains("gmail.send"), "{listed}");
    assert!(!listed[0]["scopes"].to_string().contains("calendar"), "only what the tool needs: {listed}");

    // The input as text, from a file, and from stdin.
    let file = program.dir.path().join("mail.json");
    std::fs::write(&file, &hello).unwrap();
    for input in [hello.clone(), format!("@{}", file.display())] {
        let sent = run(call(&input, &[])).await;
        assert_eq!((sent.code, sent.stderr.as_str()), (0, ""), "{sent:?}");
        assert!(serde_json::from_str::<Value>(&sent.stdout).unwrap()["id"].is_string());
    }
    let mut piped = program
        .command(&["call", "Google.SendEmail", "--user", "alice", "--input", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(hello.as_bytes()).await.unwrap();
    assert!(piped.wait_with_output().await.unwrap().status.success());
    assert_eq!(provider.mailbox("bob@example.com").len(), 3);

    // A wrong argument is 1, named, and never sent.
    let wrong = run(call("{\"to\": [\"bob@example.com\"], \"subjct\": \"x\"}", &[])).await;
    assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""));
    assert!(wrong.stderr.contains("subjct") && wrong.stderr.lines().count() == 1, "{wrong:?}");
    let wrong = run(call("{}", &["--json"])).await;
    let told: Value = serde_json::from_str(&wrong.stdout).unwrap();
    assert_eq!((wrong.code, &told["error"]["code"]), (1, &json!("invalid_arguments")));

    // Somebody else is somebody else.
    let other = program.run(&["disconnect", "google", "--user", "bob"]).await;
    assert_eq!((other.code, other.stdout.as_str()), (1, ""), "{other:?}");
    let gone = program.run(&["disconnect", "google", "--user", "alice"]).await;
    assert_eq!((gone.code, gone.stderr.as_str()), (0, ""), "{gone:?}");
    assert_eq!(gone.stdout, "alice@example.com is disconnected, and the provider has confirmed it.\n");
    assert!(provider.families().iter().all(|family| family.ended.is_some()), "revoked at the provider");
    assert_eq!(program.run(&["disconnect", "google", "--user", "alice"]).await.code, 1);
    assert_eq!(run(call(&hello, &[])).await.code, 3);
}

#[tokio::test]
async fn where_an_obo_of_the_folder_runs_its_link_is_the_result() {
    let (program, provider) = Program::with_provider("").await;
    // What this process asks for on its own behalf makes sure that it owns the port by now.
    let mut owner = program.stdio("bob");
    assert!(link_of(&owner.call("Google_SendEmail", mail("alice@example.com", "x")).await).is_some());
    let input = mail("bob@example.com", "x").to_string();
    let call = ["call", "Google.SendEmail", "--user", "alice", "--input", &input];
    let asked = program.run(&call).await;
    assert_eq!(asked.code, 3, "{asked:?}");
    let link = asked.stdout.trim_end();
    assert!(link.starts_with(&format!("http://127.0.0.1:{}/connect/", program.port)), "{asked:?}");
    assert_eq!(asked.stderr, "Open this link to connect Google, then call again.\n");
    assert_eq!(consent(&provider, link, "alice").await.status, 200);
    assert_eq!(program.run(&call).await.code, 0);
    assert_eq!(owner.close().await.0, 0);
}

#[tokio::test]
async fn two_accounts_and_which_of_them() {
    let (program, provider) = Program::with_provider("").await;
    for account in ["alice", "bob"] {
        assert_eq!(connect(&program, &provider, &["--user", "alice"], account).await.code, 0);
    }
    let listed = program.run(&["connections", "--user", "alice"]).await;
    assert_eq!((listed.stdout.lines().count(), listed.stderr.as_str()), (3, ""), "{listed:?}");
    let input = mail("bob@example.com", "x").to_string();
    let call = ["call", "Google.SendEmail", "--user", "alice", "--input", &input];
    let which = program.run(&call).await;
    assert_eq!((which.code, which.stdout.as_str()), (1, ""));
    assert!(which.stderr.contains("alice@example.com") && which.stderr.contains("bob@example.com"), "{which:?}");
    let as_bob = program.run(&[&call[..], &["--account", "bob@example.com"]].concat()).await;
    assert_eq!(as_bob.code, 0, "{as_bob:?}");
    assert_eq!(provider.log().last().unwrap().user.as_deref(), Some("bob@example.com"));
    let which = program.run(&["disconnect", "google", "--user", "alice"]).await;
    assert_eq!(
        (which.code, which.stderr.as_str()),
        (2, "obo: say which with --account: alice@example.com, bob@example.com\n")
    );
    let gone = program.run(&["disconnect", "google", "--user", "alice", "--account", "BOB@example.com"]).await;
    assert_eq!(gone.code, 0, "{gone:?}");
    assert_eq!(program.run(&call).await.code, 0, "one is left, and is meant");
}

#[tokio::test]
async fn a_token_is_shown_once_and_a_revoked_one_is_refused_at_once() {
    let program = Program::new(GOOGLE);
    let none = program.run(&["token", "list"]).await;
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    assert!(none.stderr.contains("obo token issue"), "{none:?}");
    let issued = program.run(&["token", "issue", "--user", "alice", "--ttl", "12h"]).await;
    let token = issued.stdout.trim_end();
    assert!(token.starts_with("obo_") && issued.stdout.lines().count() == 1, "the token is alone on stdout");
    let listed = program.run(&["token", "list"]).await;
    assert!(!listed.stdout.contains(token) && listed.stdout.contains("alice"), "{}", listed.stdout);
    let json = program.run(&["token", "list", "--json"]).await.stdout;
    assert!(!json.contains(token));
    let tokens: Value = serde_json::from_str(&json).unwrap();
    let id = tokens[0]["id"].as_str().unwrap();

    let mut serve = Running::serve(&program).await;
    let base = format!("http://127.0.0.1:{}", program.port);
    let alice = Mcp::new(&base, Some(token.to_owned()));
    assert!(alice.request("tools/list", json!({})).await["result"]["tools"].is_array());
    let revoked = program.run(&["token", "revoke", id]).await;
    assert_eq!((revoked.code, revoked.stdout), (0, format!("Token {id} of alice is void.\n")));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let refused = http.post(format!("{base}/mcp")).bearer_auth(token).json(&json!({})).send().await.unwrap();
    assert_eq!(refused.status(), 401, "a server that runs refuses it at once");
    serve.child.kill().await.unwrap();

    let again = program.run(&["token", "revoke", id]).await;
    assert_eq!((again.code, again.stdout.as_str()), (1, ""), "{again:?}");
    let shown = program.run(&["audit", "show", "--user", "alice"]).await;
    assert!(shown.stdout.contains("token.issued") && shown.stdout.contains("token.revoked"), "{}", shown.stdout);
}

#[tokio::test]
async fn init_writes_what_works_and_never_writes_twice() {
    for source in ["file", "env", "passphrase"] {
        let program = Program::new("");
        std::fs::remove_file(program.config()).unwrap();
        std::fs::remove_file(program.dir.path().join("vault.key")).unwrap();
        let first = program.run(&["init", "--key", source]).await;
        assert_eq!(first.code, 0, "{first:?}");
        assert_eq!(steady(&program, &first.stdout), "Wrote DIR/obo.toml\n");
        insta::assert_snapshot!(format!("init_{source}"), steady(&program, &first.stderr));
        let written = std::fs::read(program.config()).unwrap();
        let second = program.run(&["init", "--key", "keyring"]).await;
        assert_eq!((second.code, second.stdout.as_str()), (1, ""), "{second:?}");
        assert!(second.stderr.contains("exists already"), "{second:?}");
        assert_eq!(std::fs::read(program.config()).unwrap(), written, "the first is kept");

        let secrets = [
            ("OBO_VAULT_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            ("OBO_VAULT_PASSPHRASE", "correct horse battery"),
        ];
        let issued = run_with(&program, &secrets, &["token", "issue", "--user", "alice"]).await;
        assert_eq!(issued.code, 0, "{source}: {issued:?}");
        #[cfg(unix)]
        {
            use crate::support::program::is_private;
            assert!(is_private(&program.config()));
            assert!(source != "file" || is_private(&program.dir.path().join("vault.key")));
        }
    }
}

#[tokio::test]
async fn the_audit_is_shown_as_it_is_asked_for() {
    let program = Program::new(GOOGLE);
    let input = mail("bob@example.com", "x").to_string();
    for (user, tenant) in [("alice", "default"), ("bob", "default"), ("alice", "acme")] {
        let call = ["call", "Google.SendEmail", "--user", user, "--tenant", tenant, "--input", &input];
        assert_eq!(program.run(&call).await.code, 3);
    }
    // Something that happened long ago.
    let clock: SharedClock = ManualClock::at("2020-01-01T00:00:00Z".parse().unwrap());
    let config = Config::load(Some(&program.config()), &Environment::default()).unwrap();
    let app = App::open(Settings {
        config,
        data_dir: program.data(),
        clock: Arc::clone(&clock),
        way: Way::Command,
        prompt: None,
    })
    .unwrap();
    let old = Event {
        kind: Kind::Admin,
        person: None,
        tenant: None,
        actor: "test",
        provider: None,
        account: None,
        phase: obo::audit::Phase::Outcome,
        what: "old",
        failure: None,
        duration: None,
    };
    app.audit.event(old).await.unwrap();
    drop(app);

    let count = async |further: &[&str]| {
        let ran = program.run(&[&["audit", "show", "--json"], further].concat()).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        for line in ran.stdout.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        }
        ran.stdout.lines().count()
    };
    let all = count(&[]).await;
    assert_eq!(all, 7, "three intents, three outcomes, and the old one");
    for (further, expected) in [
        (&["--user", "alice"][..], 4),
        (&["--user", "alice", "--tenant", "acme"], 2),
        (&["--user", "carol"], 0),
        (&["--source", "obo"], 6),
        (&["--source", "corp"], 0),
        (&["--tool", "Google.SendEmail"], 6),
        (&["--tool", "Google_SendEmail"], 6),
        (&["--tool", "Google.SearchEmails"], 0),
        (&["--since", "1h"], 6),
        (&["--since", "36500d"], 7),
    ] {
        assert_eq!(count(further).await, expected, "{further:?}");
    }
    let table = program.run(&["audit", "show", "--user", "bob"]).await;
    assert_eq!(table.stdout.lines().count(), 2, "an intent and its outcome are one line: {}", table.stdout);
    let columns: Vec<usize> =
        table.stdout.lines().map(|line| line.find("  bob").or(line.find("  WHO")).unwrap()).collect();
    assert_eq!(columns[0], columns[1], "{}", table.stdout);
    let verified = program.run(&["audit", "verify"]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[tokio::test]
async fn a_reader_that_has_gone_away_is_no_error() {
    let program = Program::new(GOOGLE);
    program.run(&["token", "issue", "--user", "alice"]).await;
    for arguments in [
        &["tools", "list"][..],
        &["tools", "show", "Google.SendEmail"],
        &["providers", "list", "--json"],
        &["token", "list"],
        &["audit", "show", "--json"],
        &["connect", "--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output =
            program.command(arguments).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

#[tokio::test]
async fn commands_that_start_at_once_on_a_new_folder_share_it() {
    let program = Program::new("");
    let users: Vec<String> = (0..12).map(|n| format!("user{n}")).collect();
    let issued = users.iter().map(|user| async { program.run(&["token", "issue", "--user", user]).await });
    for ran in futures::future::join_all(issued).await {
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let listed = program.run(&["token", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), users.len());
    let verified = program.run(&["audit", "verify", "--json"]).await;
    let verified: Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!((&verified["records"], &verified["problems"]), (&json!(users.len()), &json!([])));
}
