//! The vault as a whole: what `obo vault` says of it, and does with it.

use std::process::Stdio;

use obo::store::{Record, RecordKey, Store, Table, Write};
use obo::upkeep::Verified;
use serde_json::{Value, json};

use crate::cli::connect;
use crate::readme::{blocks_of, words};
use crate::support::mcp::link_of;
use crate::support::program::{Program, Ran};
use crate::support::{TestObo, mail};

/// What a command printed as JSON, when it ended well.
#[track_caller]
fn printed(ran: &Ran) -> Value {
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

/// What differs from run to run is taken out.
fn steady(program: &Program, text: &str) -> String {
    let text = text.replace(&program.dir.path().display().to_string(), "DIR");
    let lines = text.lines().map(|line| {
        let words = line.split(' ').map(|word| if uuid::Uuid::parse_str(word).is_ok() { "VAULT" } else { word });
        let line = words.collect::<Vec<_>>().join(" ");
        match line.split_once("UTC") {
            Some((before, _)) if line.starts_with("last backup") || line.starts_with("recovery") => {
                format!("{}TIME", &before[..15])
            }
            _ if line.starts_with("size") => "size           BYTES".to_owned(),
            _ => line,
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

async fn every(store: &dyn Store, table: Table) -> Vec<Record> {
    store.scan(table, None, 10_000).await.unwrap()
}

/// Somebody of each tenant with a connection, and a record of every kind that a server keeps.
async fn full() -> TestObo {
    let obo = TestObo::start().await;
    for (user, account) in [("alice", "alice@example.com"), ("bob", "bob@example.com")] {
        obo.connect(user, account, "Google_SendEmail", mail("carol@example.com", "x")).await;
    }
    let tenant = "acme".parse().unwrap();
    obo.app.obo.identity().applications().add("shop", tenant, false).await.unwrap();
    let asked = obo.client("carol").await.call("Google_SendEmail", mail("carol@example.com", "x")).await;
    assert!(link_of(&asked).is_some());
    obo
}

async fn verified(obo: &TestObo) -> Verified {
    obo.app.upkeep.verify(&mut |_| {}).await.unwrap()
}

#[tokio::test]
async fn every_record_is_opened_and_one_that_does_not_open_is_counted() {
    let obo = full().await;
    let store = &*obo.app.store;
    let mut all = Vec::new();
    for table in Table::ALL {
        all.extend(every(store, table).await);
    }
    let kinds: std::collections::BTreeSet<u8> = all.iter().map(|record| record.table as u8).collect();
    // The key record, data keys, grants, flows, browser sessions, tokens, applications, audit heads, people.
    assert!(kinds.len() >= 9 && kinds.contains(&(Table::Session as u8)), "{kinds:?}");
    let whole = verified(&obo).await;
    assert!(whole.is_whole(), "{whole:?}");
    assert_eq!(whole.opened as usize, all.len() - 1, "all but the key record, which is not sealed");

    for record in all {
        if record.table == Table::Meta {
            continue;
        }
        let mut broken = record.clone();
        *broken.sealed.last_mut().unwrap() ^= 1;
        store.apply(vec![Write::Put(broken)]).await.unwrap();
        let found = verified(&obo).await;
        // Of a person's broken listing the audit knows the name; a broken list of audit chains names no chain.
        let failed: u64 = found.failed.values().sum();
        assert!(failed >= 1 || !found.unnamed.is_empty(), "{:?}: {found:?}", record.table);
        let named = found.failed.contains_key(record.table.words()) || found.unnamed.contains_key(record.table.words());
        assert!(named, "{:?}: {found:?}", record.table);
        assert!(found.opened < whole.opened, "{:?}: {found:?}", record.table);
        store.apply(vec![Write::Put(record)]).await.unwrap();
    }
    assert_eq!(verified(&obo).await, whole);
}

#[tokio::test]
async fn connections_are_counted_by_what_can_be_done_with_them() {
    let obo = full().await;
    let counted = obo.app.upkeep.connections().await.unwrap();
    assert_eq!((counted.usable, counted.need_consent, counted.unopened), (2, 0, 0));

    // The lists are gone, as in a vault of an obo that kept none: the audit has the names.
    for listing in every(&*obo.app.store, Table::Person).await {
        let delete = Write::Delete { table: Table::Person, key: listing.key, generation: listing.generation };
        obo.app.store.apply(vec![delete]).await.unwrap();
    }
    let counted = obo.app.upkeep.connections().await.unwrap();
    assert_eq!((counted.usable, counted.unopened), (2, 0));

    // Moved to somebody that nothing names.
    let mut grant = every(&*obo.app.store, Table::Grant).await.remove(0);
    grant.owner = RecordKey::from([9; 32]);
    obo.app.store.apply(vec![Write::Put(grant)]).await.unwrap();
    let counted = obo.app.upkeep.connections().await.unwrap();
    assert_eq!((counted.usable, counted.unopened), (1, 1));
    assert_eq!(verified(&obo).await.unnamed.get("connections"), Some(&1));

    for account in ["alice@example.com", "bob@example.com"] {
        obo.provider.revoke_all(account);
    }
    obo.clock.advance(std::time::Duration::from_secs(7200));
    for user in ["alice", "bob"] {
        obo.client(user).await.call("Google_SendEmail", mail("carol@example.com", "x")).await;
    }
    let counted = obo.app.upkeep.connections().await.unwrap();
    assert_eq!((counted.usable, counted.need_consent), (0, 1));
}

#[tokio::test]
async fn status_says_what_is_there_and_makes_nothing() {
    let (program, provider) = Program::with_provider("").await;
    let none = program.run(&["vault", "status"]).await;
    assert_eq!((none.code, none.stdout.as_str()), (0, ""), "{none:?}");
    assert_eq!(none.stderr, "There is no vault here yet; it is made when it is first needed.\n");
    assert_eq!(printed(&program.run(&["vault", "status", "--json"]).await), Value::Null, "and asking made none");

    assert_eq!(connect(&program, &provider, &["--user", "alice"], "alice").await.code, 0);
    assert_eq!(program.run(&["token", "issue", "--user", "alice"]).await.code, 0);
    let shown = program.run(&["vault", "status", "--verify"]).await;
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{shown:?}");
    insta::assert_snapshot!("vault_status", steady(&program, &shown.stdout));
    let told = printed(&program.run(&["vault", "status", "--json", "--verify"]).await);
    assert_eq!(told["connections"], json!({ "all": 1, "usable": 1, "need_consent": 0, "unopened": 0 }));
    assert_eq!((&told["tokens"], &told["integrity"], &told["backed_up_at"]), (&json!(1), &json!("ok"), &Value::Null));
    assert_eq!((&told["key_source"], &told["key_opens"]), (&json!("file"), &json!(true)));
    assert_eq!((&told["verified"]["failed"], &told["verified"]["unnamed"]), (&json!({}), &json!({})));
    assert_eq!(printed(&program.run(&["vault", "status", "--json"]).await)["verified"], Value::Null);

    // Without the key, what can be said is said, and the reason is that of every command.
    std::fs::write(program.dir.path().join("vault.key"), [8; 32]).unwrap();
    let locked = program.run(&["vault", "status"]).await;
    assert_eq!(locked.code, 64, "{locked:?}");
    assert!(locked.stderr.starts_with("obo: vault.key: ") && locked.stderr.lines().count() == 1, "{locked:?}");
    insta::assert_snapshot!("vault_status_locked", steady(&program, &locked.stdout));
}

#[tokio::test]
async fn status_finds_damage() {
    let program = Program::new("");
    for n in 0..40 {
        assert_eq!(program.run(&["token", "issue", "--user", &format!("user{n}")]).await.code, 0);
    }
    let store = obo::store::sqlite::SqliteStore::open(&program.data()).unwrap();
    let mut token = every(&store, Table::Token).await.remove(0);
    *token.sealed.last_mut().unwrap() ^= 1;
    store.apply(vec![Write::Put(token)]).await.unwrap();
    drop(store);
    assert_eq!(program.run(&["vault", "status"]).await.code, 0, "it is looked for only where that is asked");
    let found = program.run(&["vault", "status", "--verify"]).await;
    assert_eq!(found.code, 1, "{found:?}");
    assert!(found.stdout.contains("do not open    1 tokens\n"), "{found:?}");

    // A page of the file overwritten.
    let file = program.data().join("obo.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let page = 4096;
    assert!(bytes.len() > 8 * page);
    bytes[4 * page..5 * page].fill(0xee);
    std::fs::write(&file, &bytes).unwrap();
    let damaged = program.run(&["vault", "status"]).await;
    assert_eq!(damaged.code, 1, "{damaged:?}");
    assert!(damaged.stderr.contains("is damaged; restore a backup"), "{damaged:?}");
}

/// docs/vault.md: its commands work in the order in which they stand there.
#[tokio::test]
async fn the_guide_for_operators_is_true() {
    let (program, provider) = Program::with_provider("").await;
    assert_eq!(connect(&program, &provider, &["--user", "alice"], "alice").await.code, 0);
    let mut ran = 0;
    for line in blocks_of("docs/vault.md", "sh").concat().lines() {
        let words = words(line);
        assert_eq!(words[0], "obo", "{line}");
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let mut command = program.command(&arguments);
        let output = command.current_dir(program.dir.path()).stdin(Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        ran += 1;
    }
    assert!(ran >= 2, "{ran}");
}
