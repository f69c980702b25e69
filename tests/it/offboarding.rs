//! Somebody leaves: one command ends all that obo has for them, and nobody else notices.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use obo::audit::Record as AuditRecord;
use obo::consent::Left;
use obo::egress::Egress;
use obo::id::{Person, Source};
use obo::oauth::{Account, Oauth, Revocation, TokenAnswer};
use obo::secret::Secret;
use obo::store::{Record, Table, Write};
use obo::vault::{GrantStatus, Vault};
use serde_json::{Value, json};

use crate::cli::connect;
use crate::provider::{Ended, Fault, Gate};
use crate::support::mcp::{link_of, value_of};
use crate::support::oauth_client::{CALLBACK, listed};
use crate::support::program::{Program, Ran};
use crate::support::{Browser, OauthClient, TestObo, mail};

const SEND: &str = "Google_SendEmail";
const CLIENTS: &str = "[authorization_server]\nenabled = true\n";

pub fn person(user: &str) -> Person {
    Person { tenant: "default".parse().unwrap(), source: Source::obo(), user: user.parse().unwrap() }
}

/// Slack calls its accounts by a name, not by an address.
async fn connect_slack(obo: &TestObo, user: &str) {
    let asked = obo.client(user).await.call("Slack_ListChannels", json!({})).await;
    let page = obo.consent(&link_of(&asked).unwrap(), user, &format!("{user}@example.com")).await;
    assert!(page.text.contains("Slack is connected"), "{}", page.text);
}

/// A person with all that obo can have for one: two connections, tokens, a client, browsers, and a link that is open.
async fn arrive(obo: &TestObo, user: &str) -> OauthClient {
    let account = format!("{user}@example.com");
    obo.connect(user, &account, SEND, mail("carol@example.com", "x")).await;
    connect_slack(obo, user).await;
    let client = OauthClient::register(&obo.base, "An editor", CALLBACK).await;
    let mut browser = obo.browser_of(user).await;
    let tokens = client.sign_in(&mut browser).await;
    assert_eq!(listed(&obo.base, &tokens.access).await, 200);
    // One that the person began to sign in, and did not exchange yet.
    let begun = client.begin();
    client.code(&mut browser, &begun).await;
    obo.browser_of(user).await;
    let asked = obo.client(user).await.call("GoogleCalendar_ListEvents", json!({})).await;
    assert!(link_of(&asked).is_some(), "{asked}");
    client
}

/// Every record that is somebody's.
async fn records(obo: &TestObo) -> Vec<Record> {
    let of_nobody = [Table::Meta, Table::DataKey, Table::AuditHead, Table::Application, Table::ApplicationUse];
    let mut all = Vec::new();
    for table in Table::ALL.into_iter().filter(|table| !of_nobody.contains(table)) {
        all.extend(obo.app.store.scan(table, None, 10_000).await.unwrap());
    }
    all
}

async fn leave(obo: &TestObo, user: &str) -> Left {
    obo.app.obo.consent().leave(&person(user), None, "test").await.unwrap()
}

fn outcomes(left: &Left) -> Vec<(&str, Revocation, bool)> {
    left.connections
        .iter()
        .map(|ended| {
            let receipt = ended.outcome.as_ref().unwrap();
            (ended.grant.provider.as_str(), receipt.outcome, receipt.kept)
        })
        .collect()
}

/// What is on record of a person's connections that ended, from the outcomes.
async fn receipts(obo: &TestObo, user: &str) -> Vec<AuditRecord> {
    let of = |record: &AuditRecord| {
        record.user.as_deref() == Some(user)
            && record.outcome.is_some()
            && record.note.as_deref().is_some_and(|note| note.starts_with("disconnect"))
    };
    obo.app.audit.read(of).await.unwrap()
}

fn noted(records: &[AuditRecord]) -> BTreeSet<(Option<&str>, &str, &str)> {
    records
        .iter()
        .map(|record| (record.provider.as_deref(), record.note.as_deref().unwrap(), record.outcome.as_deref().unwrap()))
        .collect()
}

#[tokio::test]
async fn whoever_leaves_is_as_if_they_had_never_been_and_nobody_else_notices() {
    let obo = TestObo::builder().config(CLIENTS).start().await;
    let client = arrive(&obo, "bob").await;
    let mut browser = obo.browser_of("bob").await;
    let bobs = client.sign_in(&mut browser).await;
    let before = records(&obo).await;

    arrive(&obo, "alice").await;
    let token = obo.token_for("alice").await;
    let kinds: BTreeSet<u8> = records(&obo).await.iter().map(|record| record.table as u8).collect();
    for table in [
        Table::Grant,
        Table::Person,
        Table::Token,
        Table::Session,
        Table::Flow,
        Table::ClientSession,
        Table::ClientToken,
        Table::AuthorizationCode,
    ] {
        assert!(kinds.contains(&(table as u8)), "there is none of {table:?} to end");
    }

    let left = leave(&obo, "alice").await;
    assert!(left.is_complete());
    assert_eq!(outcomes(&left), [("google", Revocation::Revoked, false), ("slack", Revocation::Revoked, false)]);
    assert!(left.tokens.len() >= 2 && left.clients.len() == 1 && left.browsers >= 1 && left.links == 1);
    assert_eq!(listed(&obo.base, &token).await, 401);
    let after = records(&obo).await;
    let differing = after
        .iter()
        .filter(|record| !before.contains(record))
        .chain(before.iter().filter(|record| !after.contains(record)));
    let differing: Vec<Table> = differing.map(|record| record.table).collect();
    assert_eq!(differing, [], "what is left is Bob's, to the last byte");

    // The provider keeps the truth: Alice's tokens are void, Bob's are not.
    for family in obo.provider.families() {
        assert_eq!(family.ended, family.user.starts_with("alice").then_some(Ended::Revoked), "{}", family.user);
    }
    assert_eq!(listed(&obo.base, &bobs.access).await, 200);
    value_of(&obo.client("bob").await.call(SEND, mail("carol@example.com", "x")).await);

    // The receipts: what was asked for, and how it was answered.
    let told = receipts(&obo, "alice").await;
    let summary = told.last().unwrap().note.clone().unwrap();
    assert_eq!(
        noted(&told),
        BTreeSet::from([
            (Some("google"), "disconnect.revoked: refresh_token revoked 200, access_token revoked 400", "ok"),
            (Some("slack"), "disconnect.revoked: access_token revoked 200", "ok"),
            (None, summary.as_str(), "ok"),
        ])
    );
    assert!(summary.starts_with("disconnect.everywhere: 2 of 2 connections revoked, 0 do not open; "), "{summary}");
    assert!(receipts(&obo, "bob").await.is_empty());
    let tokens = obo.app.audit.read(|r| r.note.as_deref().is_some_and(|n| n.starts_with("token.revoked "))).await;
    assert_eq!(tokens.unwrap().len(), left.tokens.len());
    assert_eq!(obo.app.audit.verify().await.unwrap().problems, []);

    // Again: there is nothing left to end.
    let again = leave(&obo, "alice").await;
    assert!(again.is_complete() && again.connections.is_empty() && again.tokens.is_empty());
}

#[tokio::test]
async fn a_provider_that_is_down_keeps_its_own_connection_alone_and_is_asked_again() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("carol@example.com", "x")).await;
    connect_slack(&obo, "alice").await;
    obo.connect("bob", "bob@example.com", SEND, mail("carol@example.com", "x")).await;
    obo.provider.fault("/revoke", 3, Fault::Status(503, json!({})));
    obo.provider.fault("/revoke", 1, Fault::CutBefore);

    let left = leave(&obo, "alice").await;
    assert!(!left.is_complete() && left.can_go_on());
    assert_eq!(outcomes(&left), [("google", Revocation::Failed, true), ("slack", Revocation::Revoked, false)]);
    let kept = obo.app.obo.consent().connections(&person("alice")).await.unwrap();
    assert_eq!(
        kept.iter().map(|grant| (grant.provider.as_str(), grant.status)).collect::<Vec<_>>(),
        [("google", GrantStatus::NeedsConsent)]
    );

    // It is of no use to anybody meanwhile, whatever they are let in with, and its tokens are not sent anywhere.
    let asked = obo.provider.log().len();
    let call = obo.client("alice").await.call(SEND, mail("carol@example.com", "x")).await;
    assert!(link_of(&call).is_some(), "{call}");
    assert_eq!(obo.provider.log().len(), asked);

    let second = leave(&obo, "alice").await;
    assert_eq!(outcomes(&second), [("google", Revocation::Failed, true)]);
    let third = leave(&obo, "alice").await;
    assert!(third.is_complete());
    assert_eq!(outcomes(&third), [("google", Revocation::Revoked, false)]);
    assert!(obo.app.obo.consent().connections(&person("alice")).await.unwrap().is_empty());
    for family in obo.provider.families() {
        assert_eq!(family.ended.is_some(), family.user.starts_with("alice"), "{}", family.user);
    }
    value_of(&obo.client("bob").await.call(SEND, mail("carol@example.com", "x")).await);

    let told = receipts(&obo, "alice").await;
    let of_google: Vec<(&str, &str)> = told
        .iter()
        .filter(|record| record.provider.as_deref() == Some("google"))
        .map(|record| (record.note.as_deref().unwrap(), record.outcome.as_deref().unwrap()))
        .collect();
    assert_eq!(
        of_google,
        [
            ("disconnect.kept: refresh_token failed 503, access_token failed 503", "provider_error"),
            ("disconnect.kept: refresh_token failed 503, access_token failed without an answer", "provider_error"),
            ("disconnect.revoked: refresh_token revoked 200, access_token revoked 400", "ok"),
        ]
    );
}

/// A single connection goes, whatever the provider says: somebody asked for that one, and is told.
#[tokio::test]
async fn one_connection_goes_with_a_receipt_also_where_the_provider_does_not_confirm_it() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("carol@example.com", "x")).await;
    obo.provider.fault("/revoke", 2, Fault::Status(500, json!({})));
    let key = obo.app.obo.consent().connections(&person("alice")).await.unwrap()[0].account.key.clone();
    let receipt = obo.app.obo.consent().disconnect(&person("alice"), "google", &key, "test").await.unwrap().unwrap();
    assert_eq!((receipt.outcome, receipt.kept), (Revocation::Failed, false));
    assert!(obo.app.obo.consent().connections(&person("alice")).await.unwrap().is_empty());
    let told = receipts(&obo, "alice").await;
    assert_eq!(
        noted(&told),
        BTreeSet::from([(
            Some("google"),
            "disconnect.not_confirmed: refresh_token failed 500, access_token failed 500",
            "provider_error"
        )])
    );
}

#[tokio::test]
async fn a_provider_that_cannot_revoke_is_said_to_be_one_and_nothing_of_it_is_kept() {
    let obo = TestObo::builder()
        .config("[providers.microsoft]\nclient_id = \"x\"\nclient_secret = \"y\"\norigin = \"http://127.0.0.1:1\"")
        .start()
        .await;
    let provider = obo.app.catalog.provider("microsoft").unwrap();
    let oauth = Oauth::new(Egress::new(&Default::default(), &[]).unwrap());
    let vault = Vault::new(Arc::clone(&obo.app.store), obo.app.keys.clone(), oauth, obo.app.clock.clone());
    let answer = TokenAnswer {
        access_token: Secret::new("access"),
        refresh_token: Some(Secret::new("refresh")),
        expires_in: Some(Duration::from_secs(3600)),
        scopes: None,
    };
    let account = Account { key: "1".to_owned(), label: "alice@example.com".to_owned() };
    vault.deposit(&person("alice"), provider, account, answer, &BTreeSet::new()).await.unwrap();

    let left = leave(&obo, "alice").await;
    assert_eq!(outcomes(&left), [("microsoft", Revocation::NotSupported, false)]);
    assert!(!left.is_complete(), "it may still be good there");
    assert!(!left.can_go_on(), "and asking again does not help");
    assert!(obo.app.obo.consent().connections(&person("alice")).await.unwrap().is_empty());
    assert_eq!(
        receipts(&obo, "alice").await[0].note.as_deref(),
        Some("disconnect.not_supported: refresh_token not supported, access_token not supported")
    );
    assert!(leave(&obo, "alice").await.is_complete());
}

/// The code is at the provider when its person leaves: the tokens that come back are nobody's.
#[tokio::test]
async fn a_consent_that_comes_back_after_its_person_left_is_revoked_and_not_kept() {
    let obo = TestObo::start().await;
    let asked = obo.client("alice").await.call(SEND, mail("carol@example.com", "x")).await;
    let link = link_of(&asked).unwrap();
    let mut browser = Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let gate = Gate::new();
    obo.provider.fault("/token", 1, Fault::HoldAnswer(gate.clone()));
    let late = back.clone();
    let coming_back = tokio::spawn(async move { browser.get(&late).await });
    gate.arrived(1).await;

    let left = leave(&obo, "alice").await;
    assert!(left.exchanging && left.links == 1 && !left.is_complete() && left.can_go_on());
    gate.open();
    let page = coming_back.await.unwrap();
    assert!(!page.text.contains("is connected"), "{}", page.text);
    assert!(obo.app.obo.consent().connections(&person("alice")).await.unwrap().is_empty());
    assert!(obo.provider.families().iter().all(|family| family.ended == Some(Ended::Revoked)));
    let withdrawn = obo.app.audit.read(|r| r.note.as_deref() == Some("consent.withdrawn")).await.unwrap();
    assert_eq!(withdrawn.len(), 1);
    assert_eq!(Browser::new().get(&link).await.status, 404, "the link is gone too");
    assert!(leave(&obo, "alice").await.is_complete());
}

#[tokio::test]
async fn a_connection_that_does_not_open_is_said_to_be_there_and_the_others_end() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("carol@example.com", "x")).await;
    let mut broken = obo.app.store.scan(Table::Grant, None, 10).await.unwrap().remove(0);
    *broken.sealed.last_mut().unwrap() ^= 1;
    obo.app.store.apply(vec![Write::Put(broken)]).await.unwrap();
    connect_slack(&obo, "alice").await;
    let left = leave(&obo, "alice").await;
    assert_eq!((left.unopened, left.is_complete()), (1, false));
    assert_eq!(outcomes(&left), [("slack", Revocation::Revoked, false)]);
}

fn printed(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

async fn connections(program: &Program, user: &str) -> Vec<(String, String)> {
    let ran = program.run(&["connections", "--user", user, "--json"]).await;
    let listed = printed(&ran);
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(|row| (text(row, "account"), text(row, "status"))).collect()
}

#[tokio::test]
async fn the_command_says_what_happened_and_finishes_what_it_could_not() {
    let (program, provider) = Program::with_provider("").await;
    for user in ["alice", "bob"] {
        assert_eq!(connect(&program, &provider, &["--user", user], user).await.code, 0);
    }
    let token = program.run(&["token", "issue", "--user", "alice"]).await.stdout;
    assert_eq!(program.run(&["token", "issue", "--user", "bob"]).await.code, 0);

    provider.fault("/revoke", 2, Fault::Status(503, json!({})));
    let everywhere = ["disconnect", "--user", "alice", "--everywhere"];
    let first = program.run(&everywhere).await;
    assert_eq!(first.code, 1, "{first:?}");
    assert!(!first.stdout.contains(token.trim_end()));
    let second = program.run(&everywhere).await;
    assert_eq!((second.code, second.stderr.as_str()), (0, ""), "{second:?}");
    let third = program.run(&everywhere).await;
    assert_eq!((third.code, third.stderr.as_str()), (0, ""), "{third:?}");
    let said = [&first, &second, &third].map(|ran| format!("{}{}", ran.stdout, ran.stderr));
    insta::assert_snapshot!("offboarding_says", said.join("---\n"));

    assert_eq!(connections(&program, "bob").await, [("bob@example.com".to_owned(), "active".to_owned())]);
    assert_eq!(printed(&program.run(&["token", "list", "--json"]).await).as_array().unwrap().len(), 1);

    // Only what is at one provider: the token stays.
    let one = program.run(&["disconnect", "google", "--user", "bob", "--everywhere", "--json"]).await;
    assert_eq!((one.code, one.stderr.as_str()), (0, ""), "{one:?}");
    let told = printed(&one);
    assert_eq!((&told["complete"], &told["tokens"]), (&json!(true), &json!([])));
    assert_eq!(
        told["connections"][0]["tokens"][0],
        json!({ "token": "refresh_token", "outcome": "revoked", "status": 200 })
    );
    assert_eq!(printed(&program.run(&["token", "list", "--json"]).await).as_array().unwrap().len(), 1);

    let mixed = program.run(&["disconnect", "google", "--everywhere", "--account", "x"]).await;
    assert_eq!((mixed.code, mixed.stdout.as_str()), (2, ""), "{mixed:?}");
    assert_eq!(program.run(&["disconnect", "--user", "bob"]).await.code, 2, "of whom, and of what");
}

/// Killed while a provider is asked: nothing works any more, and the same command finishes it.
#[cfg(unix)]
#[tokio::test]
async fn killed_half_way_nothing_works_and_the_same_command_finishes() {
    let (program, provider) = Program::with_provider("").await;
    for account in ["alice", "bob"] {
        assert_eq!(connect(&program, &provider, &["--user", "alice"], account).await.code, 0);
    }
    assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
    let everywhere = ["disconnect", "--user", "alice", "--everywhere", "--json"];
    for held in [Fault::Hold as fn(Gate) -> Fault, Fault::HoldAnswer] {
        let gate = Gate::new();
        provider.fault("/revoke", 2, held(gate.clone()));
        let mut killed = program.command(&everywhere).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        // Both connections are being ended, and neither has.
        gate.arrived(2).await;
        killed.start_kill().unwrap();
        killed.wait().await.unwrap();
        gate.open();
        let both = ["alice", "bob"].map(|name| (format!("{name}@example.com"), "needs_consent".to_owned()));
        assert_eq!(connections(&program, "alice").await, both);
        let input = mail("carol@example.com", "x").to_string();
        let call = ["call", "Google.SendEmail", "--user", "alice", "--account", "bob@example.com", "--input", &input];
        assert_eq!(program.run(&call).await.code, 3, "the person would have to consent anew");
        assert_eq!(printed(&program.run(&["token", "list", "--json"]).await), json!([]));
    }
    let finished = program.run(&everywhere).await;
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "{finished:?}");
    assert_eq!(connections(&program, "alice").await, []);
    assert!(provider.families().iter().all(|family| family.ended.is_some()));
    // On record: three begun, one brought to its end.
    let shown = program.run(&["audit", "show", "--json"]).await.stdout;
    let everywhere = |phase: &str| {
        let lines = shown.lines().filter(|line| line.contains("\"disconnect.everywhere"));
        lines.filter(|line| line.contains(&format!("\"phase\":\"{phase}\""))).count()
    };
    assert_eq!((everywhere("intent"), everywhere("outcome")), (3, 1));
    assert_eq!(program.run(&["audit", "verify"]).await.code, 0);
}
