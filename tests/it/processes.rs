//! `obo stdio` as clients launch it: several processes, one data folder, one port.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::program::{Program, StdioClient};
use crate::support::{Browser, mail};

const SEND: &str = "Google_SendEmail";

/// Presses the button and agrees, as the machine's own user: no sign-in on loopback.
async fn consent(provider: &crate::provider::Provider, link: &str, account: &str) -> crate::support::browser::Page {
    let mut browser = Browser::new();
    let page = browser.get(link).await;
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(!page.text.contains("name=\"token\""), "{}", page.text);
    let pressed = browser.submit(&page, &[]).await;
    let back = provider.consent(&pressed.location.unwrap(), account).await.unwrap();
    browser.get(&back).await
}

#[tokio::test]
async fn tools_are_listed_without_opening_any_key() {
    let (program, _provider) = Program::with_provider("").await;
    std::fs::remove_file(program.dir.path().join("vault.key")).unwrap();
    program.configure("[providers.google]\nclient_id = \"x\"\n");
    let text = std::fs::read_to_string(program.config()).unwrap();
    let text = text.replace("source = \"file\"\npath = \"vault.key\"", "source = \"env\"\nenv = \"NOT_SET_ANYWHERE\"");
    std::fs::write(program.config(), text).unwrap();

    let mut client = program.stdio("alice");
    let listed = client.request("tools/list", json!({})).await;
    let names: Vec<&str> =
        listed["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    for name in ["GoogleCalendar_ListEvents", "Google_SendEmail", "Obo_Connect"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let called = client.call(SEND, mail("bob@example.com", "x")).await;
    assert_eq!(code_of(&called).as_deref(), Some("vault_unavailable"), "{called}");
    assert!(client.log().contains("NOT_SET_ANYWHERE"), "the log says which variable: {}", client.log());
    let (code, _) = client.close().await;
    assert_eq!(code, 0);
}

#[tokio::test]
async fn both_lifecycles_and_nothing_else_on_stdout() {
    let (program, _provider) = Program::with_provider("").await;
    let mut client = program.stdio("alice");
    client
        .line(
            &json!({ "jsonrpc": "2.0", "id": 900, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "old", "version": "1" } } })
            .to_string(),
        )
        .await;
    let initialized = client.answer(900).await;
    assert_eq!(initialized["result"]["protocolVersion"], "2025-06-18");
    client.line(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }).to_string()).await;
    client.line(&json!({ "jsonrpc": "2.0", "id": 901, "method": "tools/list" }).to_string()).await;
    assert!(client.answer(901).await["result"]["tools"].is_array());
    let discovered = client.request("server/discover", json!({})).await;
    assert_eq!(discovered["result"]["resultType"], "complete", "{discovered}");
    client.line("this is not JSON").await;
    let still = client.request("tools/list", json!({})).await;
    assert!(still["result"]["tools"].is_array());
    assert_eq!(client.close().await.0, 0);
}

#[tokio::test]
async fn whoever_owns_the_port_serves_everybody_and_another_takes_over() {
    let (program, provider) = Program::with_provider("").await;
    let mut first = program.stdio("alice");
    let mut second = program.stdio("alice");
    // The first to answer a call may be either; both give out links on the one port.
    let links = [
        link_of(&first.call(SEND, mail("bob@example.com", "1")).await).unwrap(),
        link_of(&second.call(SEND, mail("bob@example.com", "2")).await).unwrap(),
    ];
    assert_eq!(links[0], links[1], "one need, one link, whoever asks");
    assert!(links[0].starts_with(&format!("http://127.0.0.1:{}/connect/", program.port)));

    // Both wait for it. One ends; the link goes on working, and the other learns of the consent through the store.
    let waiting = second.send("tools/call", json!({ "name": SEND, "arguments": mail("bob@example.com", "2") })).await;
    assert_eq!(first.close().await.0, 0);
    let page = eventually(|| async { reachable(&links[0]).await }).await;
    assert!(page.contains("Connect Google?"), "{page}");
    let page = consent(&provider, &links[0], "alice@example.com").await;
    assert_eq!(page.status, 200, "{}", page.text);
    let answer = second.answer(waiting).await;
    value_of(&answer["result"]);
    assert_eq!(second.close().await.0, 0);

    // And a third one, started afterwards, is connected.
    let mut third = program.stdio("alice");
    value_of(&third.call(SEND, mail("bob@example.com", "3")).await);
    // Another OS user's name is another person.
    let mut other = program.stdio("bob");
    assert!(link_of(&other.call(SEND, mail("alice@example.com", "4")).await).is_some());
    let sent = provider.log().iter().filter(|call| call.path.ends_with("/messages/send")).count();
    assert_eq!(sent, 2);
}

#[tokio::test]
async fn t9_a_stranger_on_the_port_gets_no_link() {
    let (program, _provider) = Program::with_provider("").await;
    // Something else answers on the port, and answers anything with 200.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", program.port)).await.unwrap();
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let seen = std::sync::Arc::clone(&asked);
    let stranger = axum::Router::new().fallback(move |uri: axum::http::Uri| {
        seen.lock().unwrap().push(uri.to_string());
        async { "0".repeat(64) }
    });
    tokio::spawn(async move { axum::serve(listener, stranger).await });

    let mut client = program.stdio("alice");
    let refused = client.call(SEND, mail("bob@example.com", "x")).await;
    assert_eq!(code_of(&refused).as_deref(), Some("internal"), "{refused}");
    let text = refused["content"][0]["text"].as_str().unwrap();
    assert!(text.contains(&format!("port {}", program.port)), "{text}");
    assert!(link_of(&refused).is_none() && !refused.to_string().contains("/connect/"), "{refused}");
    assert!(asked.lock().unwrap().iter().all(|uri| uri.starts_with("/obo/owner/")), "only the challenge was sent");

    // The command line says so too.
    let ran = program.run(&["call", "Google.SendEmail", "--input", &mail("bob@example.com", "x").to_string()]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains(&format!("port {}", program.port)), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[tokio::test]
async fn t9_an_obo_of_another_folder_is_a_stranger() {
    let (program, _provider) = Program::with_provider("").await;
    let other = Program::new("");
    std::fs::copy(program.config(), other.config()).unwrap();
    let mut owner = other.stdio("mallory");
    assert!(link_of(&owner.call(SEND, mail("bob@example.com", "x")).await).is_some());
    let mut client = program.stdio("alice");
    let refused = client.call(SEND, mail("bob@example.com", "x")).await;
    assert_eq!(code_of(&refused).as_deref(), Some("internal"), "{refused}");
}

#[tokio::test]
async fn t9_t10_only_the_loopback_name_is_answered() {
    let (program, _provider) = Program::with_provider("").await;
    let mut client = program.stdio("alice");
    let link = link_of(&client.call(SEND, mail("bob@example.com", "x")).await).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for (host, status) in [
        (format!("127.0.0.1:{}", program.port), 200),
        (format!("localhost:{}", program.port), 200),
        ("127.0.0.1".to_owned(), 421),
        (format!("evil.example:{}", program.port), 421),
        (format!("127.0.0.1.evil.example:{}", program.port), 421),
        (format!("127.0.0.1:{}", program.port + 1), 421),
    ] {
        let answer = http.get(&link).header("host", &host).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{host}");
    }
}

#[tokio::test]
async fn a_link_of_stdio_needs_a_sign_in_at_obo_serve() {
    let (program, provider) = Program::with_provider("").await;
    let token = program.run(&["token", "issue", "--user", "alice"]).await.stdout.trim().to_owned();
    let mut serve = program.command(&["serve"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    eventually(|| async { reachable(&format!("http://127.0.0.1:{}/healthz", program.port)).await }).await;
    // serve owns the port: it proves itself to stdio, and asks the browser who it is.
    let mut client = program.stdio("alice");
    let link = link_of(&client.call(SEND, mail("bob@example.com", "x")).await).unwrap();
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    assert!(page.text.contains("name=\"token\""), "{}", page.text);
    browser.submit(&page, &[("token", &token)]).await;
    let page = browser.get(&link).await;
    let pressed = browser.submit(&page, &[]).await;
    let back = provider.consent(&pressed.location.unwrap(), "alice@example.com").await.unwrap();
    assert_eq!(browser.get(&back).await.status, 200);
    value_of(&client.call(SEND, mail("bob@example.com", "x")).await);
    serve.kill().await.unwrap();
}

#[tokio::test]
async fn a_server_behind_tls_gives_stdio_its_public_links() {
    let (program, _provider) = Program::with_provider("").await;
    let text = std::fs::read_to_string(program.config()).unwrap();
    let public = "[server]\npublic_url = \"https://obo.example.com\"";
    std::fs::write(program.config(), text.replacen("[server]", public, 1)).unwrap();
    let every = format!("0.0.0.0:{}", program.port);
    for arguments in [&["serve"][..], &["serve", "--listen", &every]] {
        let mut serve = program.command(arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
        eventually(|| async { reachable(&format!("http://127.0.0.1:{}/healthz", program.port)).await }).await;
        let mut client = program.stdio("alice");
        let link = link_of(&client.call(SEND, mail("bob@example.com", "x")).await).unwrap();
        assert!(link.starts_with("https://obo.example.com/connect/"), "{link}");
        serve.kill().await.unwrap();
        client.close().await;
    }
}

#[tokio::test]
async fn localhost_is_spelled_as_an_address() {
    let (program, _provider) = Program::with_provider("").await;
    let text = std::fs::read_to_string(program.config()).unwrap();
    let public = format!("[server]\npublic_url = \"http://localhost:{}\"", program.port);
    std::fs::write(program.config(), text.replacen("[server]", &public, 1)).unwrap();
    let mut owner = program.stdio("alice");
    let base = format!("http://127.0.0.1:{}/connect/", program.port);
    let link = link_of(&owner.call(SEND, mail("bob@example.com", "1")).await).unwrap();
    assert!(link.starts_with(&base), "{link}");
    let mut other = program.stdio("alice");
    let answer = other.call(SEND, mail("bob@example.com", "2")).await;
    let link = link_of(&answer).unwrap_or_else(|| panic!("{answer} {}", other.log()));
    assert!(link.starts_with(&base), "{link}");
}

#[tokio::test]
async fn t21_forms_that_never_end_are_cut_off() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (program, _provider) = Program::with_provider("").await;
    let mut client = program.stdio("alice");
    link_of(&client.call(SEND, mail("bob@example.com", "x")).await).unwrap();
    let mut slow = tokio::net::TcpStream::connect(("127.0.0.1", program.port)).await.unwrap();
    let head =
        format!("POST /connect/x HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 1000\r\n\r\nform=", program.port);
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
}

#[cfg(unix)]
#[tokio::test]
async fn told_to_stop_it_answers_what_is_under_way() {
    use crate::provider::{Fault, Gate};
    let (program, provider) = Program::with_provider("").await;
    let mut client = program.stdio("alice");
    let link = link_of(&client.call(SEND, mail("bob@example.com", "x")).await).unwrap();
    consent(&provider, &link, "alice@example.com").await;
    let gate = Gate::new();
    provider.fault("/gmail/v1/users/me/messages/send", 1, Fault::HoldAnswer(gate.clone()));
    let id = client.send("tools/call", json!({ "name": SEND, "arguments": mail("bob@example.com", "x") })).await;
    gate.arrived(1).await;
    signal(&client, "TERM");
    gate.open();
    value_of(&client.answer(id).await["result"]);
    assert_eq!(client.close().await.0, 0);
}

#[cfg(unix)]
#[tokio::test]
async fn what_was_shown_as_connected_survives_a_kill() {
    let (program, provider) = Program::with_provider("").await;
    for round in 0..5 {
        let user = format!("user{round}");
        let mut client = program.stdio(&user);
        let link = link_of(&client.call(SEND, mail("bob@example.com", "x")).await).unwrap();
        let page = consent(&provider, &link, "alice@example.com").await;
        assert!(page.text.contains("Google is connected"), "{}", page.text);
        client.child.kill().await.unwrap();
        let ran = program.run(&["connections", "--user", &user, "--json"]).await;
        let connections: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        assert_eq!(connections[0]["account"], "alice@example.com", "{connections}");
    }
    let verified = program.run(&["audit", "verify"]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[cfg(unix)]
fn signal(client: &StdioClient, name: &str) {
    let pid = client.child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
}

/// The page's text, where the port answers.
async fn reachable(url: &str) -> Option<String> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.get(url).send().await.ok()?;
    answer.text().await.ok()
}

/// Asks until there is an answer, for half a minute at most: other processes start and end in their own time.
async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.expect("nothing came of it in half a minute")
}
