//! One test for each invariant that the code states, by its number. docs/threat-model.md lists them all.

use std::path::{Path, PathBuf};

use obo::audit::Entry;
use obo::call::Obo;
use obo::executor::{Executor, RunError};
use obo::failure::Code;
use obo::id::CallId;
use obo::identity::{Credential, Subject};
use obo::policy::{ApiPermit, Permit, Policy, Recorded, Work};
use obo::secret::{AccessToken, Secret};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::program::Program;
use crate::support::{Browser, TestObo, mail};

const SEND: &str = "Google_SendEmail";
const LIST: &str = "GoogleCalendar_ListEvents";

/// The sources of the product, tests left out.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                found.push((path, code.join("\n")));
            }
        }
    }
    found
}

/// The files, by their names below `src`, whose code has `text`.
fn files_with(text: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let with = sources().into_iter().filter(|(_, code)| code.contains(text));
    let mut names: Vec<String> =
        with.map(|(path, _)| path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/")).collect();
    names.sort();
    names
}

async fn subject(obo: &TestObo, user: &str) -> Subject {
    let token = Secret::new(obo.token_for(user).await);
    obo.app.obo.authenticate(&Credential::Bearer { token, obo_user: None }).await.unwrap()
}

async fn permit(obo: &TestObo, user: &str, tool: &str, arguments: Value) -> (Permit, Entry) {
    let tool = obo.app.catalog.find(tool).unwrap();
    let Value::Object(arguments) = arguments else { panic!("not an object") };
    let arguments = tool.arguments(arguments).unwrap();
    let permit = Policy.decide(&subject(obo, user).await, tool, arguments).unwrap();
    let entry = obo.app.audit.entry(CallId::new(), &permit, "test");
    (permit, entry)
}

fn executor(obo: &TestObo) -> Executor {
    let egress = obo::egress::Egress::new(&obo.app.config.network, &obo.app.config.written_urls()).unwrap();
    Executor::new(egress)
}

/// Nothing but `Policy::decide` builds a permit, and the one way to a provider's API takes nothing else.
#[tokio::test]
async fn inv_1_only_policy_builds_permits() {
    // Its fields are private to policy.rs, which builds it in one place.
    assert_eq!(files_with("Permit {"), ["policy.rs"]);
    let policy = sources().into_iter().find(|(path, _)| path.ends_with("src/policy.rs")).unwrap().1;
    assert_eq!(policy.matches("Permit {").count(), 2, "decide, and what narrows the type of one that there is");
    assert!(policy.contains("Ok(Permit {") && policy.contains("fn narrowed<V>(self, work: V) -> Permit<V> {"));
    assert!(
        !policy.contains("pub fn narrowed") && !policy.contains("pub person:") && !policy.contains("pub arguments:")
    );
    // Compiles only as long as the executor asks for a recorded permit for a provider's API.
    fn takes<'a, F>(_: impl Fn(&'a Executor, &'a Recorded<ApiPermit>, &'a AccessToken) -> F) {}
    takes(Executor::run);

    // What policy is never asked about reaches nobody.
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    let (alice, before) = (obo.client("alice").await, obo.provider.log().len());
    let unknown = alice.call("Google_DeleteEverything", json!({})).await;
    assert_eq!(unknown.pointer("/error/code"), Some(&json!(-32602)), "{unknown}");
    let wrong = alice.call(SEND, json!({ "to": "bob@example.com" })).await;
    assert_eq!(code_of(&wrong).as_deref(), Some("invalid_arguments"), "{wrong}");
    assert_eq!(obo.provider.log().len(), before);
}

/// A token is used for its own person and provider only.
#[tokio::test]
async fn inv_2_a_token_of_another_person_or_provider_is_not_used() {
    let obo = TestObo::start().await;
    let executor = executor(&obo);
    let alice = subject(&obo, "alice").await.person().clone();
    let others = [
        (subject(&obo, "bob").await.person().clone(), "google"),
        (obo::id::Person { tenant: "acme".parse().unwrap(), ..alice.clone() }, "google"),
        (obo::id::Person { source: "corp".parse().unwrap(), ..alice.clone() }, "google"),
        (alice.clone(), "slack"),
    ];
    let (permit, mut entry) = permit(&obo, "alice", LIST, json!({})).await;
    let Work::Api(permit) = obo.app.audit.intent(&mut entry, permit).await.unwrap().sorted() else { panic!("{LIST}") };
    for (person, provider) in others {
        let token = AccessToken::bind(person, provider.parse().unwrap(), Secret::new("a-token-of-somebody"));
        match executor.run(&permit, &token).await {
            Err(RunError::Failed(failure)) => assert_eq!(failure.code, Code::Internal),
            other => panic!("{other:?}"),
        }
    }
    assert!(obo.provider.log().is_empty());
    // With its own the request is made, and the provider says that it does not know the token.
    let own = AccessToken::bind(alice, "google".parse().unwrap(), Secret::new("a-token-of-somebody"));
    assert!(matches!(executor.run(&permit, &own).await, Err(RunError::TokenRejected { may_repeat: true })));
    assert_eq!(obo.provider.log().len(), 1);
}

/// Makes the store refuse every record of the audit, as a full disk would, and nothing else.
fn refuse_records(obo: &TestObo) -> Connection {
    let connection = Connection::open(obo.dir.path().join("data/obo.db")).unwrap();
    connection
        .execute_batch("CREATE TRIGGER no_room BEFORE INSERT ON log BEGIN SELECT RAISE(ABORT, 'no room'); END;")
        .unwrap();
    connection
}

/// Nothing that changes something reaches a provider without a durable intent; reads go on, and the gap is recorded.
#[tokio::test]
async fn inv_3_without_a_durable_intent_nothing_is_changed() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    obo.connect("alice", "alice@example.com", LIST, json!({})).await;
    let alice = obo.client("alice").await;
    // Not even a token is renewed for a call that is not on record.
    obo.clock.advance(std::time::Duration::from_secs(2 * 3600));
    let (before, kept) = (obo.provider.log().len(), obo.app.audit.read(|_| true).await.unwrap().len());

    let broken = refuse_records(&obo);
    let refused = alice.call(SEND, mail("bob@example.com", "lost")).await;
    assert_eq!(code_of(&refused).as_deref(), Some("audit_unavailable"), "{refused}");
    assert_eq!(obo.provider.log().len(), before, "nothing was asked of the provider");
    assert!(obo.provider.mailbox("bob@example.com").iter().all(|mail| !mail.raw.ends_with(b"lost")));
    value_of(&alice.call(LIST, json!({})).await);
    assert!(obo.provider.log().len() > before, "a read goes on");
    assert_eq!(obo.app.audit.read(|_| true).await.unwrap().len(), kept);

    broken.execute_batch("DROP TRIGGER no_room").unwrap();
    value_of(&alice.call(SEND, mail("bob@example.com", "kept")).await);
    let gaps =
        obo.app.audit.read(|r| r.note.as_deref().is_some_and(|note| note.starts_with("audit.gap"))).await.unwrap();
    assert_eq!(gaps.len(), 1);
    let lost: u64 = gaps[0].note.as_deref().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    // The intent of the write; intent and outcome of the read. The refresh beside it is recorded in its own time.
    assert!((3..=4).contains(&lost), "{lost}");
    assert_eq!(obo.app.audit.verify().await.unwrap().problems, []);

    // Only the audit makes a permit a recorded one.
    assert_eq!(files_with("Recorded::after_durable_record"), ["audit.rs"]);
}

#[tokio::test]
async fn inv_3_with_fail_closed_all_reads_are_refused_too() {
    let obo = TestObo::builder().config("[audit]\nfail_closed = \"all\"").start().await;
    obo.connect("alice", "alice@example.com", LIST, json!({})).await;
    let before = obo.provider.log().len();
    let _broken = refuse_records(&obo);
    let refused = obo.client("alice").await.call(LIST, json!({})).await;
    assert_eq!(code_of(&refused).as_deref(), Some("audit_unavailable"), "{refused}");
    assert_eq!(obo.provider.log().len(), before);
}

/// There is no shared and no anonymous person: without a good credential nothing is told and nothing happens.
#[tokio::test]
async fn inv_4_nobody_is_ever_somebody() {
    let obo = TestObo::start().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    for (method, path) in [
        (reqwest::Method::POST, "/mcp"),
        (reqwest::Method::GET, "/mcp"),
        (reqwest::Method::DELETE, "/mcp"),
        (reqwest::Method::GET, "/sse"),
        (reqwest::Method::POST, "/messages?sessionId=x"),
    ] {
        for bearer in [None, Some(""), Some("obo_unknown"), Some("a.b.c"), Some("anonymous"), Some("null")] {
            for user in [None, Some("alice")] {
                let mut request = http.request(method.clone(), format!("{}{path}", obo.base)).json(&list);
                if let Some(bearer) = bearer {
                    request = request.bearer_auth(bearer);
                }
                if let Some(user) = user {
                    request = request.header("obo-user", user);
                }
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), 401, "{method} {path} {bearer:?} {user:?}");
                assert!(answer.headers().contains_key("www-authenticate"));
                assert!(!answer.text().await.unwrap().contains("Google"));
            }
        }
    }
    // Records of calls always name a person; a subject is built in the methods of identity only.
    obo.client("alice").await.call(LIST, json!({})).await;
    let records = obo.app.audit.read(|r| r.tool.is_some()).await.unwrap();
    assert!(!records.is_empty());
    assert!(records.iter().all(|r| r.user.is_some() && r.tenant.is_some() && r.source.is_some()));
    for (path, code) in sources() {
        let code = code.replace("impl Subject {", "").replace("for Subject {", "");
        assert!(!code.contains("Subject {") || path.to_str().unwrap().contains("identity"), "{path:?} builds subjects");
    }
    fn asks<'a, F>(_: impl Fn(&'a Obo, &'a Subject, obo::call::Request) -> F) {}
    asks(Obo::call);
}

/// A vault that exists is never given a second key.
#[tokio::test]
async fn inv_5_a_vault_never_gets_a_second_key() {
    let (program, _provider) = Program::with_provider("").await;
    let token = program.run(&["token", "issue", "--user", "alice"]).await;
    assert_eq!(token.code, 0, "{token:?}");
    let key = program.dir.path().join("vault.key");
    let right = std::fs::read(&key).unwrap();
    let records = || -> Vec<(i64, Vec<u8>, Vec<u8>)> {
        let connection = Connection::open(program.data().join("obo.db")).unwrap();
        let mut query = connection.prepare("SELECT kind, key, sealed FROM records ORDER BY kind, key").unwrap();
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap().map(Result::unwrap).collect()
    };
    let before = records();

    // Another key: refused in words, and nothing is changed.
    std::fs::write(&key, [9; 32]).unwrap();
    let refused = program.run(&["token", "list"]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("never"), "{refused:?}");
    assert_eq!(std::fs::read(&key).unwrap(), [9; 32]);
    // No key: the same, and none is made.
    std::fs::remove_file(&key).unwrap();
    let refused = program.run(&["token", "list"]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(!key.exists());
    assert_eq!(records(), before);

    std::fs::write(&key, &right).unwrap();
    private(&key);
    let listed = program.run(&["token", "list"]).await;
    assert!(listed.stdout.contains("alice"), "{listed:?}");

    // The key record itself gone: what was sealed says that there was one.
    Connection::open(program.data().join("obo.db")).unwrap().execute("DELETE FROM records WHERE kind = 1", []).unwrap();
    let refused = program.run(&["token", "list"]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("never makes a second key"), "{refused:?}");
}

fn private(path: &Path) {
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    #[cfg(not(unix))]
    let _ = path;
}

/// The browser that consents belongs to the person whose call asked: before it is forwarded, and before the exchange.
#[tokio::test]
async fn inv_6_the_browser_belongs_to_the_person_who_asked() {
    let obo = TestObo::start().await;
    let asked = obo.client("alice").await.call(SEND, mail("bob@example.com", "x")).await;
    let link = link_of(&asked).unwrap();

    // Before it is forwarded: Bob's browser presses, with a form that is its own, and goes nowhere.
    let mut bobs = Browser::new();
    let page = bobs.get(&link).await;
    let token = obo.token_for("bob").await;
    bobs.submit(&page, &[("token", &token)]).await;
    let shut = bobs.get(&link).await;
    assert_eq!(shut.status, 403);
    let pressed = bobs.submit(&shut, &[("step", "connect")]).await;
    assert_eq!((pressed.status, pressed.location), (400, None), "two steps in one form");
    let pressed = bobs.submit_step(&shut, "connect").await;
    assert_eq!((pressed.status, pressed.location), (403, None));

    // Before the exchange: forwarded as Alice, signed in as Bob when the answer comes, in one and the same browser.
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let alices = browser.cookies.clone();
    browser.cookies = bobs.cookies.clone();
    assert_eq!(browser.get(&back).await.status, 403);
    // And signed out.
    browser.cookies = alices.clone();
    for cookie in browser.cookies.values_mut() {
        let cookie: obo::consent::BrowserCookie = cookie.parse().unwrap();
        obo.app.obo.consent().sign_out(&cookie).await.unwrap();
    }
    assert_eq!(browser.get(&back).await.status, 403);
    assert_eq!(obo.provider.token_requests(), 0);
    assert!(obo.app.obo.consent().connections(subject(&obo, "alice").await.person()).await.unwrap().is_empty());
    let noted = obo.app.audit.read(|r| r.note.as_deref() == Some("consent.identity_mismatch")).await.unwrap();
    assert_eq!(noted.len(), 4);
}

/// Where requests go is decided when they connect, by one client, which follows nothing.
#[test]
fn inv_7_one_place_builds_clients_and_follows_no_redirect() {
    assert_eq!(files_with("reqwest::Client::builder"), ["egress.rs"]);
    assert_eq!(files_with("Policy::none()"), ["egress.rs"]);
    assert!(files_with("reqwest::get").is_empty() && files_with("Client::new()").is_empty());
    let egress = sources().into_iter().find(|(path, _)| path.ends_with("src/egress.rs")).unwrap().1;
    // One writes requests down and trusts nobody; the other sends them.
    let built = egress.matches("Client::builder").count();
    assert_eq!(built, 2);
    assert_eq!(egress.matches(".redirect(reqwest::redirect::Policy::none())").count(), built);
}

/// A session answers to the person who opened it, and an identity is proven anew with every request.
#[tokio::test]
async fn inv_8_a_session_is_no_proof_of_identity() {
    let obo = TestObo::start().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = |token: Option<&str>, session: Option<&str>, message: &Value| {
        let mut request = http.post(format!("{}/mcp", obo.base)).json(message);
        request = request.header("accept", "application/json, text/event-stream");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(session) = session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
        }
        request.send()
    };
    let person = subject(&obo, "alice").await.person().clone();
    let tokens = obo.app.obo.identity().tokens();
    let (id, alice) = tokens.issue(&person, Vec::new(), std::time::Duration::from_secs(3600)).await.unwrap();
    let bob = obo.token_for("bob").await;
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } } });
    let opened = post(Some(alice.expose()), None, &initialize).await.unwrap();
    let session = opened.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" });
    assert_eq!(post(Some(alice.expose()), Some(&session), &ping).await.unwrap().status(), 200);
    assert_eq!(post(Some(&bob), Some(&session), &ping).await.unwrap().status(), 404);
    assert_eq!(post(None, Some(&session), &ping).await.unwrap().status(), 401);
    // A token that was revoked is worth nothing in a session that it opened.
    tokens.revoke(&id).await.unwrap();
    assert_eq!(post(Some(alice.expose()), Some(&session), &ping).await.unwrap().status(), 401);
}

/// A provider's word never costs a grant its tokens.
#[tokio::test]
async fn inv_9_a_refused_refresh_deletes_nothing() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    let alice = obo.client("alice").await;
    let grants = || {
        let connection = Connection::open(obo.dir.path().join("data/obo.db")).unwrap();
        connection.query_row("SELECT count(*) FROM records WHERE kind = 3", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let before = grants();
    obo.provider.revoke_all("alice@example.com");
    let asked = alice.call(SEND, mail("bob@example.com", "x")).await;
    assert!(link_of(&asked).is_some(), "{asked}");
    assert!(grants() >= before && before > 0);
    let person = subject(&obo, "alice").await.person().clone();
    let kept = obo.app.obo.consent().connections(&person).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].account.label, "alice@example.com");
}
