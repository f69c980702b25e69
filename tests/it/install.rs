//! `obo install`, as a person runs it: what it writes for each client, and what it leaves alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::program::{Program, Ran};

/// A person's home folder, with whatever clients were started in it.
struct Home {
    program: Program,
}

impl Home {
    fn with(folders: &[&str]) -> Self {
        let mut program = Program::new("");
        let home = program.dir.path().join("home");
        for folder in folders {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        fs::create_dir_all(&home).unwrap();
        program.environment = vec![
            ("HOME", home.display().to_string()),
            ("APPDATA", home.join("roaming").display().to_string()),
            ("XDG_CONFIG_HOME", String::new()),
            ("CLAUDE_CONFIG_DIR", String::new()),
            ("PATH", std::env::var("PATH").unwrap()),
        ];
        Self { program }
    }

    /// Where Electron's applications keep their settings here.
    fn applications(&self) -> PathBuf {
        let home = self.path("");
        if cfg!(windows) {
            home.join("roaming")
        } else if cfg!(target_os = "macos") {
            home.join("Library/Application Support")
        } else {
            home.join(".config")
        }
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.program.dir.path().join("home").join(inside)
    }

    async fn install(&self, arguments: &[&str]) -> Ran {
        self.program.run(&[&["install"], arguments].concat()).await
    }

    /// What a run said, without what differs from machine to machine.
    fn steady(&self, ran: &Ran) -> String {
        let text = format!("exit {}\n{}{}", ran.code, ran.stdout, ran.stderr);
        text.replace(&self.program.dir.path().display().to_string(), "DIR").replace(env!("CARGO_BIN_EXE_obo"), "OBO")
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Launches what an entry says, as a client does, and asks which tools there are.
async fn launch(entry: &Value) -> String {
    let arguments: Vec<&str> = entry["args"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    let mut command = Command::new(entry["command"].as_str().unwrap());
    // A client knows nothing of the shell that obo was installed from.
    command.args(arguments).env_clear().current_dir("/").kill_on_drop(true);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it can be launched");
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": crate::support::mcp::NEWEST,
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let asked = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": meta } });
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("{asked}\n").as_bytes()).await.unwrap();
    drop(stdin);
    String::from_utf8(child.wait_with_output().await.unwrap().stdout).unwrap()
}

#[tokio::test]
async fn each_client_launches_what_was_written_for_it() {
    let home = Home::with(&[".claude", ".cursor"]);
    for folder in ["Claude", "Code/User"] {
        fs::create_dir_all(home.applications().join(folder)).unwrap();
    }
    let mut told = String::new();
    for (client, section, file) in [
        ("claude-desktop", "mcpServers", home.applications().join("Claude/claude_desktop_config.json")),
        ("claude-code", "mcpServers", home.path(".claude.json")),
        ("cursor", "mcpServers", home.path(".cursor/mcp.json")),
        ("vscode", "servers", home.applications().join("Code/User/mcp.json")),
    ] {
        let ran = home.install(&[client]).await;
        assert_eq!(ran.code, 0, "{client}: {ran:?}");
        let text = fs::read_to_string(&file).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        let entry = &written[section]["obo"];
        assert_eq!(entry["command"], env!("CARGO_BIN_EXE_obo"), "{client}");
        let answer = launch(entry).await;
        assert!(answer.contains("Obo_ListConnections"), "{client}: {answer}");
        told.push_str(&format!("--- {client}\n{}{text}", home.steady(&ran)));

        let again = home.install(&[client]).await;
        assert!(again.code == 0 && again.stdout.contains("already: nothing to do"), "{client}: {again:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "{client}");
        #[cfg(unix)]
        assert!(crate::support::program::is_private(&file), "{client}");

        let removed = home.install(&[client, "--remove"]).await;
        assert!(removed.code == 0 && removed.stdout.contains("no longer has"), "{client}: {removed:?}");
        let left: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(left, json!({ section: {} }), "{client}");
        let again = home.install(&[client, "--remove"]).await;
        assert!(again.code == 0 && again.stdout.contains("nothing to do"), "{client}: {again:?}");
    }
    let told = told.replace(&home.program.dir.path().display().to_string(), "DIR");
    // Other systems have other folders.
    if cfg!(target_os = "linux") {
        insta::assert_snapshot!("install_each_client", told.replace(env!("CARGO_BIN_EXE_obo"), "OBO"));
    }
}

#[tokio::test]
async fn what_is_there_is_kept_and_another_entry_is_replaced_only_by_force() {
    let home = Home::with(&[".cursor"]);
    let file = home.path(".cursor/mcp.json");
    let before = "{\n    // mine\n    \"mcpServers\": {\n        \"zeta\": { \"command\": \"zeta\", \"env\": { \"TOKEN\": \"s3cret\" } },\n        \
                  \"obo\": { \"command\": \"npx\", \"args\": [\"--token\", \"s3cret\"] }\n    },\n    \"other\": [1, 2]\n}\n";
    fs::write(&file, before).unwrap();
    let refused = home.install(&["cursor"]).await;
    assert_eq!((refused.code, fs::read_to_string(&file).unwrap().as_str()), (1, before), "{refused:?}");
    assert_eq!(files(&home.path("")), std::slice::from_ref(&file));
    let forced = home.install(&["cursor", "--force"]).await;
    assert_eq!(forced.code, 0, "{forced:?}");
    assert_eq!(fs::read_to_string(home.path(".cursor/mcp.json.before-obo")).unwrap(), before);
    let second = home.install(&["cursor", "--name", "obo-team", "--url", "https://obo.example.com"]).await;
    assert_eq!(second.code, 0, "{second:?}");
    let elsewhere = home.install(&["cursor", "--name", "obo-team", "--url", "https://other.example.com"]).await;
    let not_ours = home.install(&["cursor", "--remove", "--name", "zeta"]).await;
    assert_eq!((elsewhere.code, not_ours.code), (1, 1), "{elsewhere:?} {not_ours:?}");
    let after = fs::read_to_string(&file).unwrap();
    let all = [&refused, &forced, &second, &elsewhere, &not_ours].map(|ran| home.steady(ran)).join("---\n");
    assert!(!all.contains("s3cret"), "{all}");
    let after = after.replace(&home.program.dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!("install_keeps", format!("{all}---\n{}", after.replace(env!("CARGO_BIN_EXE_obo"), "OBO")));
}

#[tokio::test]
async fn a_file_that_cannot_be_edited_is_named_and_left_as_it_is() {
    let home = Home::with(&[".cursor"]);
    let file = home.path(".cursor/mcp.json");
    let mut told = String::new();
    for text in [
        "{\n  \"mcpServers\": {\n    nonsense\n",
        "[]",
        "{ \"mcpServers\": [] }",
        "{ \"mcpServers\": {}, \"mcpServers\": {} }",
    ] {
        fs::write(&file, text).unwrap();
        for arguments in [&["cursor"][..], &["cursor", "--force"], &["cursor", "--remove"]] {
            let ran = home.install(arguments).await;
            assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{text}: {ran:?}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            if arguments.len() == 1 {
                told.push_str(&home.steady(&ran));
            }
        }
        assert_eq!(files(&home.path("")), std::slice::from_ref(&file), "no backup of what was not changed");
    }
    insta::assert_snapshot!("install_refuses", told);
}

#[tokio::test]
async fn a_client_that_was_never_started_is_said_and_the_entry_can_be_printed() {
    let home = Home::with(&[]);
    let mut told = String::new();
    for client in ["claude-desktop", "claude-code", "cursor", "vscode"] {
        let ran = home.install(&[client]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{client}: {ran:?}");
        let printed = home.install(&[client, "--print"]).await;
        assert_eq!(printed.code, 0, "{client}: {printed:?}");
        let entry: Value = serde_json::from_str(&printed.stdout).unwrap();
        let section = if client == "vscode" { "servers" } else { "mcpServers" };
        assert_eq!(entry[section]["obo"]["command"], env!("CARGO_BIN_EXE_obo"), "{client}");
        told.push_str(&format!("--- {client}\n{}", home.steady(&ran)));
        if client != "claude-desktop" {
            let remote = home.install(&[client, "--print", "--url", "https://obo.example.com"]).await;
            assert!(remote.stdout.contains("https://obo.example.com/mcp"), "{client}: {remote:?}");
            told.push_str(&home.steady(&remote));
        }
    }
    assert_eq!(files(&home.path("")), [] as [PathBuf; 0], "nothing was made");
    let remote = home.install(&["claude-desktop", "--print", "--url", "https://obo.example.com"]).await;
    assert_eq!(remote.code, 2, "{remote:?}");
    told.push_str(&home.steady(&remote));
    if cfg!(target_os = "linux") {
        insta::assert_snapshot!("install_not_started", told);
    }
}

#[tokio::test]
async fn a_project_is_written_only_when_it_is_asked_for() {
    let home = Home::with(&[".claude", ".cursor", "work/.vscode"]);
    let work = home.path("work");
    // In a project's folder, which says nothing.
    let mut command = home.program.command(&["install", "cursor"]);
    assert!(command.current_dir(&work).stdin(Stdio::null()).output().await.unwrap().status.success());
    assert!(home.path(".cursor/mcp.json").exists() && files(&work).is_empty());

    let project = work.display().to_string();
    for (client, file) in [("claude-code", ".mcp.json"), ("cursor", ".cursor/mcp.json"), ("vscode", ".vscode/mcp.json")]
    {
        let ran = home.install(&[client, "--project", &project]).await;
        assert!(ran.code == 0 && ran.stderr.contains("version control"), "{client}: {ran:?}");
        assert!(work.join(file).exists(), "{client}");
    }
    assert_eq!(files(&work).len(), 3);
    assert_eq!(home.install(&["claude-desktop", "--project", &project]).await.code, 2);
    assert_eq!(home.install(&["cursor", "--project", &work.join("no").display().to_string()]).await.code, 1);

    // A project of somebody else's, whose file is a link to one of the person's own.
    #[cfg(unix)]
    {
        let theirs = home.path("theirs");
        fs::create_dir_all(theirs.join(".vscode")).unwrap();
        std::os::unix::fs::symlink(home.path(".cursor"), theirs.join(".cursor")).unwrap();
        std::os::unix::fs::symlink(home.path(".cursor/mcp.json"), theirs.join(".vscode/mcp.json")).unwrap();
        let before = fs::read_to_string(home.path(".cursor/mcp.json")).unwrap();
        for client in ["cursor", "vscode"] {
            let ran = home.install(&[client, "--name", "evil", "--project", &theirs.display().to_string()]).await;
            assert!(ran.code == 1 && ran.stderr.contains("leads out of the project"), "{client}: {ran:?}");
        }
        assert_eq!(fs::read_to_string(home.path(".cursor/mcp.json")).unwrap(), before);
    }
}
