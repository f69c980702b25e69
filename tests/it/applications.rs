//! Applications of `obo app`: their keys, from the first to the last, and the tokens that some of them may read.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use obo::clock::{Clock as _, ManualClock};
use obo::id::{Person, Source};
use serde_json::{Value, json};

use crate::provider::TokenKind;
use crate::support::issuer::Issuer;
use crate::support::program::{Program, Ran};
use crate::support::rest::application;
use crate::support::{Browser, Rest, TestObo, mail};

/// The key, which stands alone on stdout.
#[track_caller]
fn key_of(ran: &Ran) -> String {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let key = ran.stdout.trim_end_matches('\n').to_owned();
    assert!(key.starts_with("oboapp_") && !key.contains(char::is_whitespace) && !ran.stderr.contains(&key));
    key
}

async fn list(program: &Program) -> Value {
    let ran = program.run(&["app", "list", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    serde_json::from_str(&ran.stdout).unwrap()
}

#[tokio::test]
async fn a_key_is_made_listed_replaced_and_taken_away() {
    let program = Program::new(&application("crm", "acme", ""));
    let added = program.run(&["app", "add", "shop", "--tenant", "acme", "--may-read-tokens"]).await;
    let first = key_of(&added);
    for said in ["shown only now", "Authorization header", "/v1/", "access tokens", "user_verifier_url"] {
        assert!(added.stderr.contains(said), "{said}: {}", added.stderr);
    }
    let second = key_of(&program.run(&["app", "rotate", "shop"]).await);
    let listed = list(&program).await;
    assert_eq!((&listed[0]["name"], &listed[0]["configured"]), (&json!("crm"), &json!(true)), "{listed}");
    assert_eq!((&listed[1]["name"], &listed[1]["may_read_tokens"]), (&json!("shop"), &json!(true)), "{listed}");
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let kept = time(&listed[1]["old_key_until"]).duration_since(time(&listed[1]["created_at"]));
    assert_eq!(kept.as_hours(), 24, "{listed}");
    assert_eq!(listed[1]["last_used_at"], Value::Null);
    let third = program.run(&["app", "rotate", "shop", "--keep-old", "0s"]).await;
    assert!(third.stderr.contains("The old one is void."), "{}", third.stderr);
    let third = key_of(&third);

    // Kept as hashes, sealed: nothing of a key, nor the name, is in the folder.
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(program.data()).unwrap() {
        bytes.extend(std::fs::read(entry.unwrap().path()).unwrap_or_default());
    }
    for key in [&first, &second, &third] {
        assert!(memchr::memmem::find(&bytes, &key.as_bytes()[key.len() - 20..]).is_none());
    }

    for (arguments, says) in [
        (&["app", "rotate", "crm"][..], "obo.toml"),
        (&["app", "remove", "crm"], "obo.toml"),
        (&["app", "rotate", "nothing"], "obo app list"),
        (&["app", "add", "shop", "--tenant", "acme"], "exists"),
        (&["app", "rotate", "shop", "--keep-old", "31d"], "30d"),
    ] {
        let ran = program.run(arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(ran.stderr.contains(says), "{arguments:?}: {}", ran.stderr);
    }
    for arguments in [&["app", "add", "Not A Name", "--tenant", "acme"][..], &["app", "add", "x", "--tenant", "A B"]] {
        assert_eq!(program.run(arguments).await.code, 2, "{arguments:?}");
    }
    let table = program.run(&["app", "list"]).await.stdout;
    assert!(table.lines().any(|line| line.starts_with("crm") && line.contains("obo.toml")), "{table}");

    assert_eq!(program.run(&["app", "remove", "shop"]).await.code, 0);
    assert_eq!(list(&program).await.as_array().unwrap().len(), 1);
    let records = program.run(&["audit", "show", "--json"]).await.stdout;
    let records: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ended: Vec<&str> = records
        .iter()
        .filter(|record| record["outcome"] == "ok" && record["kind"] == "admin" && record["tenant"] == "acme")
        .map(|record| record["note"].as_str().unwrap())
        .collect();
    assert_eq!(ended, ["app.added_with_tokens shop", "app.rotated shop", "app.rotated shop", "app.removed shop"]);
    assert!(records.iter().any(|r| r["note"] == "app.added shop" && r["outcome"] == "invalid_arguments"));
    assert_eq!(program.run(&["audit", "verify"]).await.code, 0);
}

#[tokio::test]
async fn a_running_obo_takes_the_keys_as_they_are_now() {
    let obo = TestObo::start().await;
    let applications = obo.app.obo.identity().applications();
    let first = applications.add("shop", "acme".parse().unwrap(), false).await.unwrap();
    let tools = async |key: &str| Rest::with_key(&obo.base, key).get("/v1/tools").await.0;
    assert_eq!(tools(first.expose()).await, 200);
    let hour = Duration::from_secs(3600);
    let second = applications.rotate("shop", hour).await.unwrap();
    assert_eq!((tools(first.expose()).await, tools(second.expose()).await), (200, 200));
    obo.clock.advance(hour);
    assert_eq!((tools(first.expose()).await, tools(second.expose()).await), (401, 200));
    obo.app.obo.drain(hour).await;
    assert!(applications.list().await.unwrap()[0].last_used_at.is_some());
    applications.remove("shop").await.unwrap();
    assert_eq!(tools(second.expose()).await, 401);
}

/// Two applications of one tenant, whose users sign in at its issuer: one that may read tokens, and one that may not.
struct Tokens {
    obo: TestObo,
    issuer: Issuer,
    reader: Rest,
    plain: Rest,
}

impl Tokens {
    async fn start() -> Self {
        let clock = Arc::new(OnceLock::<Arc<ManualClock>>::new());
        let time = Arc::clone(&clock);
        let issuer = Issuer::start(move || time.get().unwrap().now().as_second()).await;
        let obo = TestObo::builder().config(&issuer.table("corp", "tenant = \"acme\"")).start().await;
        clock.set(Arc::clone(&obo.clock)).unwrap();
        let applications = obo.app.obo.identity().applications();
        let add = async |name: &str, may_read_tokens: bool| {
            let key = applications.add(name, "acme".parse().unwrap(), may_read_tokens).await.unwrap();
            Rest::with_key(&obo.base, key.expose())
        };
        let (reader, plain) = (add("reader", true).await, add("plain", false).await);
        Self { obo, issuer, reader, plain }
    }

    /// Connects alice's account for an application: the first answer, which has the link.
    async fn connect(&self, rest: &Rest) -> Value {
        let started = rest.start("alice", None).await;
        self.consent(&started, "alice@example.com").await;
        started
    }

    /// Connects one more account for alice: what had the link.
    async fn connect_another(&self, rest: &Rest, account: &str) -> Value {
        let input = json!({ "provider": "google", "tool": SEND, "another_account": true });
        let connect = json!({ "tool_name": "Obo.Connect", "user_id": "alice", "input": input });
        let (_, asked) = rest.post("/v1/tools/execute", &connect).await;
        let started = asked["output"]["authorization"].clone();
        self.consent(&started, account).await;
        started
    }

    /// What alice does with a link.
    async fn consent(&self, started: &Value, account: &str) {
        let link = started["url"].as_str().unwrap();
        let mut browser = Browser::new();
        let page = browser.get(link).await;
        let sent = browser.submit(&page, &[]).await;
        browser.get(&self.issuer.sign_in(&sent.location.unwrap(), "alice")).await;
        let page = browser.get(link).await;
        let pressed = browser.submit(&page, &[]).await;
        let back = self.obo.provider.consent(&pressed.location.unwrap(), account).await.unwrap();
        assert_eq!(browser.get(&back).await.status, 200);
    }

    /// The answers that an application gets after a consent, each with its status.
    async fn answers(&self, rest: &Rest, started: &Value) -> Vec<(u16, Value)> {
        let scopes = json!({ "provider_id": "google", "oauth2": { "scopes": [SEND_SCOPE] } });
        let send = json!({ "tool_name": SEND, "user_id": "alice" });
        let call = json!({ "tool_name": SEND, "user_id": "alice", "input": mail("bob@example.com", "x") });
        vec![
            rest.get(&status_of(started)).await,
            rest.post("/v1/auth/authorize", &json!({ "auth_requirement": scopes, "user_id": "alice" })).await,
            rest.post("/v1/tools/authorize", &send).await,
            rest.post("/v1/tools/execute", &call).await,
            rest.get("/v1/tools?user_id=alice").await,
            rest.get("/v1/admin/user_connections?user%5Bid%5D=alice").await,
        ]
    }

    fn has_secret(&self, answer: &Value) -> bool {
        let text = answer.to_string();
        self.obo.provider.tokens().iter().any(|token| text.contains(&token.text))
    }

    /// The outcomes of token reads that are on record.
    async fn reads(&self) -> Vec<String> {
        let records = self.obo.app.audit.read(|r| r.note.as_deref() == Some("token.read")).await.unwrap();
        for record in &records {
            assert_eq!((record.actor.as_str(), record.user.as_deref()), ("app:reader", Some("alice")));
            assert_eq!(record.account.as_deref(), Some("alice@example.com"));
        }
        assert!(records.iter().filter(|r| r.outcome.is_none()).count() >= records.len() / 2, "an intent before each");
        records.into_iter().filter_map(|record| record.outcome).collect()
    }
}

fn status_of(started: &Value) -> String {
    format!("/v1/auth/status?id={}", started["id"].as_str().unwrap())
}

const SEND: &str = "Google.SendEmail";
const SEND_SCOPE: &str = "https://www.googleapis.com/auth/gmail.send";

#[tokio::test]
async fn tokens_are_shown_to_whom_the_flag_was_given_and_to_nobody_else() {
    let tokens = Tokens::start().await;
    let pending = tokens.reader.start("alice", None).await;
    assert!(pending.get("context").is_none(), "{pending}");

    let started = tokens.connect(&tokens.plain).await;
    for (status, answer) in tokens.answers(&tokens.plain, &started).await {
        assert_eq!(status, 200, "{answer}");
        assert!(!tokens.has_secret(&answer) && !answer.to_string().contains("context"), "{answer}");
    }
    assert_eq!(tokens.reads().await, Vec::<String>::new());
    // Its users are not the other's, whatever the other may do.
    assert_eq!(tokens.reader.get(&status_of(&started)).await.0, 404);
    assert_eq!(tokens.reader.start("alice", None).await["status"], "pending");

    let started = tokens.connect(&tokens.reader).await;
    let answers = tokens.answers(&tokens.reader, &started).await;
    let living = tokens.obo.provider.tokens().last().unwrap().clone();
    for (status, answer) in &answers[..3] {
        assert_eq!((*status, &answer["status"]), (200, &json!("completed")), "{answer}");
        let token = answer["context"]["token"].as_str().unwrap();
        let issued = tokens.obo.provider.tokens().into_iter().find(|one| one.text == token).unwrap();
        assert_eq!((issued.user, issued.family), ("alice@example.com", living.family));
        assert!(issued.kind == TokenKind::Access, "never the refresh token");
        assert_eq!(answer["context"]["user_info"]["account"], "alice@example.com", "{answer}");
    }
    assert_eq!(answers[3].1["success"], true);
    for (status, answer) in &answers[3..] {
        assert_eq!(*status, 200, "{answer}");
        assert!(!tokens.has_secret(answer), "{answer}");
    }
    assert_eq!(tokens.reads().await, ["ok", "ok", "ok"]);
    assert_eq!(tokens.obo.app.audit.verify().await.unwrap().problems.len(), 0);
}

#[tokio::test]
async fn a_token_that_is_shown_is_renewed_first_and_a_connection_that_is_over_has_none() {
    let tokens = Tokens::start().await;
    let started = tokens.connect(&tokens.reader).await;
    let shown = async || {
        let (status, answer) = tokens.reader.get(&status_of(&started)).await;
        (status, answer["context"]["token"].as_str().map(ToOwned::to_owned), answer)
    };
    let (_, first, _) = shown().await;
    assert_eq!(tokens.obo.provider.families().last().unwrap().refreshes, 0);
    tokens.obo.clock.advance(Duration::from_secs(3600));
    let scopes = json!({ "provider_id": "google", "oauth2": { "scopes": [SEND_SCOPE] } });
    let authorize = json!({ "auth_requirement": scopes, "user_id": "alice" });
    let (_, answer) = tokens.reader.post("/v1/auth/authorize", &authorize).await;
    let renewed = answer["context"]["token"].as_str().unwrap();
    assert_ne!(Some(renewed), first.as_deref());
    assert_eq!(tokens.obo.provider.families().last().unwrap().refreshes, 1);

    let again = tokens.reader.get("/v1/admin/user_connections?user%5Bid%5D=alice").await.1;
    let id = again["items"][0]["id"].as_str().unwrap();
    tokens.obo.provider.revoke_all("alice@example.com");
    tokens.obo.clock.advance(Duration::from_secs(3600));
    let (status, answer) = tokens.reader.post("/v1/auth/authorize", &authorize).await;
    assert_eq!((status, &answer["status"]), (200, &json!("pending")), "{answer}");
    assert!(answer.get("context").is_none(), "{answer}");
    assert_eq!(tokens.reads().await, ["ok", "ok", "authorization_required"]);
    assert_eq!(tokens.reader.delete(&format!("/v1/admin/user_connections/{id}")).await, 204);
    // The link is completed no longer where its token would have to be shown.
    let (status, token, answer) = shown().await;
    assert_eq!((status, token, &answer["error"]), (410, None, &json!("authorization_failed")), "{answer}");
}

#[tokio::test]
async fn of_several_accounts_the_token_is_the_defaults_or_nobodys() {
    let tokens = Tokens::start().await;
    for (rest, reads) in [(&tokens.plain, false), (&tokens.reader, true)] {
        tokens.connect(rest).await;
        let link = tokens.connect_another(rest, "bob@example.com").await;
        let answers = tokens.answers(rest, &link).await;
        let (own, asked) = (&answers[0], &answers[1..3]);
        assert_eq!((own.0, &own.1["status"]), (200, &json!("completed")), "{}", own.1);
        if !reads {
            // Nobody's token is shown, so none has to be chosen.
            for (status, answer) in asked {
                assert_eq!((*status, &answer["status"]), (200, &json!("completed")), "{answer}");
            }
            continue;
        }
        // The link has made one connection, and says which.
        assert_eq!(own.1["context"]["user_info"]["account"], "bob@example.com");
        for (status, answer) in asked {
            assert_eq!((*status, &answer["error"]), (400, &json!("account_required")), "{answer}");
            let text = answer["message"].as_str().unwrap();
            assert!(text.contains("alice@example.com") && text.contains("bob@example.com"), "{text}");
            assert!(!tokens.has_secret(answer), "{answer}");
        }
        // A call says which account it means, or is told to.
        assert_eq!(answers[3].1["output"]["error"]["extra"]["code"], "account_required", "{}", answers[3].1);
    }
    let read = async || {
        let ended = tokens.obo.app.audit.read(|r| r.note.as_deref() == Some("token.read") && r.outcome.is_some()).await;
        ended.unwrap().into_iter().map(|r| (r.account.unwrap(), r.outcome.unwrap())).collect::<Vec<_>>()
    };
    let ok = |account: &str| (account.to_owned(), "ok".to_owned());
    assert_eq!(read().await, [ok("bob@example.com")]);

    // Once the user has chosen, that account's is shown.
    let consent = tokens.obo.app.obo.consent();
    let source = Source::application("reader").unwrap();
    let alice = Person { tenant: "acme".parse().unwrap(), source, user: "alice".parse().unwrap() };
    let grants = consent.connections(&alice).await.unwrap();
    let chosen = grants.iter().find(|grant| grant.account.label == "alice@example.com").unwrap();
    consent.prefer(&alice, "google", &chosen.account.key, "test").await.unwrap().unwrap();
    let link = json!({ "id": "unused" });
    for (status, answer) in &tokens.answers(&tokens.reader, &link).await[1..3] {
        assert_eq!((*status, &answer["status"]), (200, &json!("completed")), "{answer}");
        assert_eq!(answer["context"]["user_info"]["account"], "alice@example.com", "{answer}");
        let token = answer["context"]["token"].as_str().unwrap();
        let issued = tokens.obo.provider.tokens().into_iter().find(|one| one.text == token).unwrap();
        assert_eq!(issued.user, "alice@example.com");
    }
    assert_eq!(read().await, [ok("bob@example.com"), ok("alice@example.com"), ok("alice@example.com")]);
}
