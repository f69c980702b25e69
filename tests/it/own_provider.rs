//! docs/bring-your-own-provider.md, followed word by word against the small server that it names.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::notes::{self, CLIENT_ID, CLIENT_SECRET};
use crate::readme::{blocks_of, words};
use crate::support::Browser;
use crate::support::program::Program;

const GUIDE: &str = "docs/bring-your-own-provider.md";

#[tokio::test]
async fn the_guide_to_a_provider_of_ones_own_works() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let mut program = Program::new("");
    // `obo doctor` looks at the clients of a home folder: not of the one that this runs in.
    let home = program.dir.path().display().to_string();
    program.environment = ["HOME", "APPDATA"].map(|name| (name, home.clone())).to_vec();
    program.environment.extend(["XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR"].map(|name| (name, String::new())));
    let router = notes::router(format!("http://127.0.0.1:{}/oauth/callback/notes", program.port));
    tokio::spawn(async move { axum::serve(listener, router).await });

    // The files, where the guide says that they are.
    let page = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(GUIDE)).unwrap();
    let blocks = blocks_of(GUIDE, "toml");
    let files = ["tools/notes/provider.toml", "tools/notes/create-note.toml", "tools/notes/list-notes.toml"];
    assert_eq!(blocks.len(), files.len() + 1);
    fs::create_dir_all(program.dir.path().join("tools/notes")).unwrap();
    for (file, text) in files.iter().zip(&blocks) {
        let named = page.find(&format!("`{file}`")).unwrap_or_else(|| panic!("{file} is not named"));
        assert!(named < page.find(text.as_str()).unwrap(), "{file}");
        fs::write(program.dir.path().join(file), text).unwrap();
    }
    assert!(page.contains(&format!("`{CLIENT_SECRET}`")) && blocks[3].contains(CLIENT_ID));
    fs::write(program.dir.path().join("notes.secret"), CLIENT_SECRET).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let secret = program.dir.path().join("notes.secret");
        fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let moved = blocks[3].replace("127.0.0.1:4801", &server.to_string());
    assert_ne!(moved, blocks[3]);
    program.configure(&moved);

    // The commands, in their order.
    let mut printed = Vec::new();
    let commands = blocks_of(GUIDE, "sh").concat();
    for line in commands.lines() {
        let command = words(line);
        match command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            // The server is here already.
            ["cargo", "run", "--example", "notes"] => {}
            ["obo", "connect", "notes"] => connect(&program, server).await,
            ["obo", ref arguments @ ..] => {
                let ran = program.run(arguments).await;
                assert_eq!(ran.code, 0, "{line}: {ran:?}");
                printed.push((line.to_owned(), ran.stdout));
            }
            _ => panic!("{line}: what is this?"),
        }
    }
    let of = |start: &str| {
        let found = printed.iter().rfind(|(line, _)| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start}")).1.clone()
    };
    assert!(of("obo providers list").contains(&format!("http://127.0.0.1:{}/oauth/callback/notes", program.port)));
    assert!(of("obo doctor").contains("notes: client with a secret"));
    let created: Value = serde_json::from_str(&of("obo call Notes.CreateNote")).unwrap();
    let listed: Value = serde_json::from_str(&of("obo call Notes.ListNotes")).unwrap();
    assert_eq!((created, listed), (json!({ "id": 1 }), json!({ "notes": [{ "id": 1, "text": "Buy milk" }] })));
    let dry = &printed.iter().find(|(line, _)| line.ends_with("--dry-run")).unwrap().1;
    assert!(dry.contains("/api/notes") && dry.contains("Buy milk"), "{dry}");
}

/// `obo connect notes`, with a person who chooses Ana.
async fn connect(program: &Program, server: std::net::SocketAddr) {
    let mut command = program.command(&["connect", "notes", "--no-browser"]);
    let mut connecting = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(connecting.stdout.take().unwrap());
    let mut link = String::new();
    stdout.read_line(&mut link).await.unwrap();
    let mut browser = Browser::new();
    let asked = browser.get(link.trim()).await;
    assert!(asked.text.contains("write notes as you"), "{}", asked.text);
    let forwarded = browser.submit(&asked, &[]).await.location.unwrap();
    let choose = browser.get(&forwarded).await;
    let ana = choose.text.split('"').find(|text| text.starts_with("/oauth/approve") && text.ends_with("user=ana"));
    let back = browser.get(&format!("http://{server}{}", ana.unwrap_or_else(|| panic!("{}", choose.text)))).await;
    let done = browser.get(&back.location.unwrap()).await;
    assert!(done.status == 200 && done.text.contains("ana@notes.example.com"), "{}", done.text);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert!(
        connecting.wait().await.unwrap().success() && rest.contains("connected as ana@notes.example.com"),
        "{rest}"
    );
}
