//! `obo tools new`, and the guide that begins with it.

use serde_json::{Value, json};

use crate::readme::{blocks_of, words};
use crate::support::Browser;
use crate::support::mcp::{link_of, value_of};
use crate::support::program::{Program, Ran};

const TOOLS: &str = "[tools]\ndirs = [\"./tools\"]\n";

/// Runs a command in the program's folder.
async fn run_in(program: &Program, arguments: &[&str]) -> Ran {
    let mut command = program.command(arguments);
    let output = command.current_dir(program.dir.path()).stdin(std::process::Stdio::null()).output().await.unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn a_new_manifest_passes_at_once() {
    let program = Program::new(TOOLS);
    std::fs::create_dir_all(program.dir.path().join("tools")).unwrap();
    for (name, options, file) in [
        (
            "Google.ReadThing",
            &["--provider", "google", "--method", "GET", "--url", "{gmail}/things/{thing_id}"][..],
            "google/read-thing.toml",
        ),
        (
            "Slack.AddThing",
            &[
                "--provider",
                "slack",
                "--method",
                "post",
                "--url",
                "https://slack.com/api/things.add",
                "--scope",
                "chat:write",
            ],
            "slack/add-thing.toml",
        ),
        (
            "Slack.RemoveThing",
            &["--provider", "slack", "--method", "DELETE", "--url", "{api}/things/{a}/{b}"],
            "slack/remove-thing.toml",
        ),
        (
            "Acme.SetThing",
            &[
                "--provider",
                "acme",
                "--method",
                "PUT",
                "--url",
                "https://api.acme.example/v1/things/{id}",
                "--scope",
                "things:write",
                "--scope",
                "say \"x\"",
            ],
            "acme/set-thing.toml",
        ),
        (
            "Acme.ListThings",
            &["--provider", "acme", "--method", "GET", "--url", "https://api.acme.example/v1/things"],
            "acme/list-things.toml",
        ),
    ] {
        let arguments = [&["tools", "new", name][..], options].concat();
        let ran = run_in(&program, &arguments).await;
        let broken = name == "Acme.SetThing";
        assert_eq!(ran.code, i32::from(broken), "{ran:?}");
        let path = format!("tools/{file}");
        if broken {
            // A scope that is none is named, and the file is there to be mended.
            assert!(ran.stdout.contains("is not a scope"), "{ran:?}");
            let text = std::fs::read_to_string(program.dir.path().join(&path)).unwrap();
            std::fs::write(
                program.dir.path().join(&path),
                text.replace(", \"say \\\"x\\\"\"", "").replace(", 'say \"x\"'", ""),
            )
            .unwrap();
        }
        let checked = run_in(&program, &["tools", "check", "--strict", &path]).await;
        assert_eq!(
            (checked.code, checked.stdout.as_str()),
            (0, "0 errors, 0 warnings, 0 hints\n"),
            "{name}: {checked:?}"
        );
        let tested = run_in(&program, &["tools", "test", &path]).await;
        assert_eq!((tested.code, tested.stdout.lines().last()), (0, Some("1 passed, 0 failed")), "{name}: {tested:?}");

        let before = std::fs::read(program.dir.path().join(&path)).unwrap();
        let again = run_in(&program, &arguments).await;
        assert!(again.code == 1 && again.stderr.contains("exists already"), "{again:?}");
        assert_eq!(std::fs::read(program.dir.path().join(&path)).unwrap(), before);
        if name == "Slack.AddThing" {
            insta::assert_snapshot!("tools_new_manifest", String::from_utf8(before).unwrap());
            insta::assert_snapshot!(
                "tools_new",
                ran.stdout.replace(&program.dir.path().display().to_string(), "DIR").replace("/./", "/")
            );
        }
    }
    let whole = run_in(&program, &["tools", "check", "--strict"]).await;
    assert_eq!(whole.code, 0, "{}", whole.stdout);
    insta::assert_snapshot!(
        "tools_new_provider",
        std::fs::read_to_string(program.dir.path().join("tools/acme/provider.toml")).unwrap()
    );
}

#[tokio::test]
async fn what_is_missing_is_named_where_nobody_can_be_asked() {
    let program = Program::new("");
    for (arguments, said) in [
        (&["tools", "new", "Acme.Get"][..], "--provider, --method, --url, --dir must be given"),
        (
            &["tools", "new", "Acme.Get", "--provider", "acme", "--method", "GET", "--url", "https://x.example/a"],
            "--dir must be given",
        ),
        (&["tools", "new", "acme", "--dir", "t"], "use Toolkit.Verb"),
        (&["tools", "new", "Obo.Get", "--dir", "t"], "are obo's own"),
        (
            &["tools", "new", "Acme.Get", "--dir", "t", "--provider", "acme", "--method", "GET", "--url", "{api}/x"],
            "write the whole URL",
        ),
        (
            &[
                "tools",
                "new",
                "Acme.Get",
                "--dir",
                "t",
                "--provider",
                "google",
                "--method",
                "GET",
                "--url",
                "https://x.example/a",
            ],
            "begins with no server",
        ),
        (
            &[
                "tools",
                "new",
                "Acme.Get",
                "--dir",
                "t",
                "--provider",
                "google",
                "--method",
                "GET",
                "--url",
                "{gmail}/a?b=c",
            ],
            "leave the query out",
        ),
    ] {
        let ran = run_in(&program, arguments).await;
        assert!(ran.code == 2 && ran.stderr.contains(said), "{arguments:?}: {ran:?}");
    }
    assert!(!program.dir.path().join("t").exists(), "nothing was written");
}

/// docs/add-a-tool.md, followed step by step beside a running obo.
#[tokio::test]
async fn the_guide_is_true() {
    const PAGE: &str = "docs/add-a-tool.md";
    let blocks = |language: &str| blocks_of(PAGE, language);
    let [config, tool] = &blocks("toml")[..] else { panic!("{:?}", blocks("toml")) };
    let [named, drafted, tried, used] = &blocks("sh")[..] else { panic!("{:?}", blocks("sh")) };
    let [tested, shown] = &blocks("text")[..] else { panic!("{:?}", blocks("text")) };

    let (program, provider) = Program::with_provider(config).await;
    assert_eq!(named, "mkdir tools\nobo serve\n");
    std::fs::create_dir(program.dir.path().join("tools")).unwrap();
    // A client that obo was launched by, in the place of one of `obo serve`.
    let mut client = program.stdio("alice");
    client.send("subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } })).await;
    client.notification("notifications/subscriptions/acknowledged").await;

    let command = |line: &str| words(line).iter().skip(1).cloned().collect::<Vec<String>>();
    let run = |arguments: Vec<String>| {
        let program = &program;
        async move { run_in(program, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let ran = run(command(drafted.trim())).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let file = program.dir.path().join("tools/google/get-event.toml");
    let draft = std::fs::read_to_string(&file).unwrap();
    client.notification("notifications/tools/list_changed").await;

    let schema = tool.lines().next().and_then(|line| line.strip_prefix("#:schema ")).unwrap();
    assert!(draft.starts_with(&format!("#:schema {schema}\n")));
    let schema: Value = serde_json::from_slice(&std::fs::read(file.parent().unwrap().join(schema)).unwrap()).unwrap();
    let written: Value = toml::from_str(tool).unwrap();
    assert!(jsonschema::validator_for(&schema).unwrap().is_valid(&written));
    std::fs::write(&file, tool).unwrap();
    client.notification("notifications/tools/list_changed").await;

    let tried: Vec<&str> = tried.lines().collect();
    assert_eq!(tried.len(), 3);
    let checked = run(command(tried[0])).await;
    assert_eq!((checked.code, checked.stdout.as_str()), (0, "0 errors, 0 warnings, 0 hints\n"), "{checked:?}");
    assert_eq!(&run(command(tried[1])).await.stdout, tested);
    let real = "https://www.googleapis.com";
    let dry = run(command(tried[2])).await;
    let dry = dry.stdout.replace(&provider.origin().to_string(), real).replace(env!("CARGO_PKG_VERSION"), "VERSION");
    assert_eq!(&dry, shown);

    // The call asks for the account to be connected; then it reaches the provider, which has no such event.
    let asked = run(command(used.trim())).await;
    assert_eq!(asked.code, 3, "{asked:?}");
    let asked = client.call("GoogleCalendar_GetEvent", json!({ "event_id": "abc" })).await;
    let mut browser = Browser::new();
    let page = browser.get(&link_of(&asked).unwrap_or_else(|| panic!("{asked}"))).await;
    let pressed = browser.submit(&page, &[]).await;
    let back = provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    browser.get(&back).await;
    let event = json!({ "summary": "Lunch", "start": "2026-12-01T12:00:00Z", "end": "2026-12-01T13:00:00Z" });
    let created = client.call("GoogleCalendar_CreateEvent", event.clone()).await;
    let created = match link_of(&created) {
        // It needs another scope than reading does.
        Some(link) => {
            let page = browser.get(&link).await;
            let pressed = browser.submit(&page, &[]).await;
            browser.get(&provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap()).await;
            client.call("GoogleCalendar_CreateEvent", event).await
        }
        None => created,
    };
    let id = value_of(&created)["id"].clone();
    let read = value_of(&client.call("GoogleCalendar_GetEvent", json!({ "event_id": id })).await);
    assert_eq!((&read["summary"], &read["id"]), (&json!("Lunch"), &id));
}
