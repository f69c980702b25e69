//! The vault as a whole: what `obo vault` says of it, and does with it.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use obo::audit::Audit;
use obo::egress::Egress;
use obo::keys::{Keys, Sealed};
use obo::oauth::Oauth;
use obo::store::{Lease, LogEntry, Record, RecordKey, Store, StoreError, Table, Write};
use obo::upkeep::{Upkeep, Verified};
use obo::vault::Vault;
use serde_json::{Value, json};

use crate::cli::connect;
use crate::readme::{blocks_of, words};
use crate::support::mcp::{link_of, value_of};
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

/// A store of a process that dies: it lets a number of steps through. Whatever it does has a step before and one after
/// it, so that the process dies both with the thing undone and with it done but not known to be.
struct Dying {
    inner: Arc<dyn Store>,
    steps: AtomicI64,
}

impl Dying {
    async fn step<T>(&self, act: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.live()?;
        let done = act.await?;
        self.live()?;
        Ok(done)
    }

    fn live(&self) -> Result<(), StoreError> {
        let alive = self.steps.fetch_sub(1, Ordering::SeqCst) > 0;
        alive.then_some(()).ok_or_else(|| StoreError::Unavailable("the process has died".to_owned()))
    }

    fn is_dead(&self) -> bool {
        self.steps.load(Ordering::SeqCst) < 0
    }
}

#[async_trait::async_trait]
impl Store for Dying {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.step(self.inner.get(table, key)).await
    }
    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        self.step(self.inner.generations(table, keys)).await
    }
    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        self.step(self.inner.owned(table, owner)).await
    }
    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.step(self.inner.scan(table, after, limit)).await
    }
    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.step(self.inner.apply(writes)).await
    }
    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.step(self.inner.log(after, limit)).await
    }
    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.step(self.inner.newest(before, limit)).await
    }
    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.step(self.inner.prune(now)).await
    }
    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        self.step(self.inner.lease(name, wait)).await
    }
}

/// The upkeep of another process over the same records.
fn upkeep_over(obo: &TestObo, store: Arc<dyn Store>) -> Upkeep {
    let keys = Keys::new(Arc::clone(&store), obo.app.config.vault.key.clone());
    let oauth = Oauth::new(Egress::new(&Default::default(), &[]).unwrap());
    let vault = Vault::new(Arc::clone(&store), keys.clone(), oauth, obo.app.clock.clone());
    let audit = Audit::new(Arc::clone(&store), keys.clone(), obo.app.clock.clone(), Default::default());
    Upkeep::new(store, keys, vault, audit)
}

/// The numbers of the data keys that sealed the records, but for those that say which key opens the vault.
async fn sealed_with(store: &dyn Store) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for table in Table::ALL.into_iter().filter(|table| *table != Table::DataKey) {
        let records = every(store, table).await;
        numbers.extend(records.iter().filter_map(|record| Some(Sealed::parse(&record.sealed)?.key_id())));
    }
    numbers
}

/// Every record, without what sealing it anew changes.
async fn without_seals(store: &dyn Store) -> Vec<Record> {
    let mut all = Vec::new();
    for table in Table::ALL.into_iter().filter(|table| *table != Table::DataKey) {
        all.extend(every(store, table).await.into_iter().map(|record| Record { sealed: Vec::new(), ..record }));
    }
    all
}

/// Dies at each step. Every record opens all the while, and the same command brings the change to its end.
#[tokio::test]
async fn new_data_keys_lose_nothing_wherever_the_process_dies() {
    let obo = full().await;
    let store = &*obo.app.store;
    let whole = verified(&obo).await;
    let (records, tenants) = (without_seals(store).await, every(store, Table::DataKey).await.len());
    let mut number = 1;
    assert_eq!(sealed_with(store).await, BTreeSet::from([number]));
    let mut deaths = 0;
    // An odd stride, so that it dies before things and after them in turn.
    for steps in (0..).step_by(5) {
        let dying = Arc::new(Dying { inner: Arc::clone(&obo.app.store), steps: AtomicI64::new(steps) });
        let outcome = upkeep_over(&obo, Arc::clone(&dying) as Arc<dyn Store>).change_data_keys(&mut |_| {}).await;
        if dying.is_dead() {
            deaths += 1;
            let found = verified(&obo).await;
            assert!(found.is_whole() && found.opened >= whole.opened, "after {steps} steps: {found:?}");
            let done = sealed_with(store).await == BTreeSet::from([number + 1]);
            let again = obo.app.upkeep.change_data_keys(&mut |_| {}).await.unwrap();
            // Dead with everything done: then the same command is another change.
            number += u32::from(done && !again.resumed);
        } else {
            assert!(!outcome.unwrap().resumed);
        }
        number += 1;
        let anew: BTreeSet<u32> = sealed_with(store).await;
        assert_eq!(anew, BTreeSet::from([number]), "one new key a change, after {steps} steps");
        assert_eq!(every(store, Table::DataKey).await.len(), tenants * number as usize, "earlier ones stay");
        assert_eq!(without_seals(store).await, records, "nothing but the seals has changed");
        if !dying.is_dead() {
            break;
        }
    }
    assert!(deaths > 20, "{deaths}");
    let found = verified(&obo).await;
    assert!(found.is_whole(), "{found:?}");
}

#[tokio::test]
async fn a_server_goes_on_while_everything_is_sealed_anew() {
    let obo = full().await;
    let alice = obo.client("alice").await;
    let mail = mail("carol@example.com", "x");
    // A process of its own, with nothing of it open.
    let other = upkeep_over(&obo, Arc::clone(&obo.app.store));
    for round in 1..=3 {
        let mut quiet = |_| {};
        let (changed, called) =
            tokio::join!(other.change_data_keys(&mut quiet), alice.call("Google_SendEmail", mail.clone()));
        value_of(&called);
        assert_eq!(changed.unwrap().left, 0);
        // A refresh, which reads with the new key and writes.
        obo.clock.advance(Duration::from_secs(7200));
        value_of(&alice.call("Google_SendEmail", mail.clone()).await);
        assert!(verified(&obo).await.is_whole(), "round {round}");
    }
    let grants = every(&*obo.app.store, Table::Grant).await;
    assert!(grants.iter().all(|grant| Sealed::parse(&grant.sealed).unwrap().key_id() == 4));
}

#[tokio::test]
async fn a_new_key_is_taken_while_processes_serve() {
    let (program, provider) = Program::with_provider("").await;
    assert_eq!(connect(&program, &provider, &["--user", "alice"], "alice").await.code, 0);
    let mut serving = program.stdio("alice");
    let send = ["call", "Google.SendEmail", "--user", "alice", "--input"];
    let input = mail("bob@example.com", "x").to_string();
    value_of(&serving.call("Google_SendEmail", mail("bob@example.com", "x")).await);

    let where_to = program.run(&["vault", "rotate-key"]).await;
    assert_eq!((where_to.code, where_to.stdout.as_str()), (2, ""), "{where_to:?}");
    assert!(where_to.stderr.contains("--to FILE"), "{where_to:?}");
    let new = program.dir.path().join("new.key");
    let rotate = ["vault", "rotate-key", "--to", new.to_str().unwrap()];
    let rotated = program.run(&rotate).await;
    assert_eq!(rotated.code, 0, "{rotated:?}");
    insta::assert_snapshot!(
        "vault_rotated",
        without_ids(&steady(&program, &format!("{}{}", rotated.stdout, rotated.stderr)))
    );

    // Who served before, serves on; who starts, is told.
    value_of(&serving.call("Google_SendEmail", mail("bob@example.com", "x")).await);
    let old = program.run(&[&send[..], &[&input]].concat()).await;
    assert_eq!(old.code, 64, "{old:?}");
    assert!(old.stderr.contains("if the key was changed"), "{old:?}");
    // The same command again is no second change, though obo.toml names the old key.
    let again = program.run(&rotate).await;
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.stdout.contains("already"), "{again:?}");

    let toml = std::fs::read_to_string(program.config()).unwrap();
    std::fs::write(program.config(), toml.replace("\"vault.key\"", "\"new.key\"")).unwrap();
    let called = program.run(&[&send[..], &[&input]].concat()).await;
    assert_eq!(called.code, 0, "{called:?}");
    let anew = program.run(&["vault", "rotate-key", "--data-keys"]).await;
    assert_eq!(anew.code, 0, "{anew:?}");
    assert!(anew.stdout.starts_with("1 data keys are new, "), "{anew:?}");
    value_of(&serving.call("Google_SendEmail", mail("bob@example.com", "x")).await);
    assert_eq!(serving.close().await.0, 0);
    let status = printed(&program.run(&["vault", "status", "--json", "--verify"]).await);
    assert_eq!(status["verified"]["failed"], json!({}));
    assert!(status["key_changed_at"].is_string() && status["data_keys_changed_at"].is_string(), "{status}");
    assert_eq!(program.run(&["audit", "verify"]).await.code, 0);
    let shown = program.run(&["audit", "show", "--json"]).await.stdout;
    let phases = |note: &str| shown.lines().filter(|line| line.contains(&format!("\"{note}\""))).count();
    assert_eq!((phases("vault.key_changed"), phases("vault.data_keys_changed")), (2, 2), "{shown}");
}

/// Key ids are random.
fn without_ids(text: &str) -> String {
    let id = |word: &str| word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = text.split(' ').map(|word| if id(word.trim_end_matches(['.', '\n'])) { "KEY" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// Another machine: the same obo.toml and key, and a data folder of its own.
fn another(program: &Program) -> Program {
    let other = Program::new("");
    let toml = std::fs::read_to_string(program.config()).unwrap();
    let toml = toml.replace(&format!(":{}", program.port), &format!(":{}", other.port));
    std::fs::write(other.config(), toml).unwrap();
    other
}

#[tokio::test]
async fn a_backup_brings_connections_back_and_their_providers_are_asked_first() {
    let (program, provider) = Program::with_provider("").await;
    for account in ["alice", "bob"] {
        assert_eq!(connect(&program, &provider, &["--user", account], account).await.code, 0);
    }
    let none = another(&program).run(&["vault", "backup", "x"]).await;
    assert_eq!((none.code, none.stdout.as_str()), (1, ""), "{none:?}");
    // While a server has the vault open.
    let mut serving = program.stdio("alice");
    value_of(&serving.call("Google_SendEmail", mail("bob@example.com", "x")).await);
    let file = program.dir.path().join("obo.backup");
    let backup = ["vault", "backup", file.to_str().unwrap()];
    let written = program.run(&backup).await;
    assert_eq!(written.code, 0, "{written:?}");
    assert!(written.stdout.starts_with(&format!("Wrote {}", file.display())), "{written:?}");
    assert!(written.stderr.contains("4bb06f8e4e3a7715"), "it names the key: {written:?}");
    #[cfg(unix)]
    assert!(crate::support::program::is_private(&file));
    let bytes = std::fs::read(&file).unwrap();
    assert!(provider.secrets().len() >= 4);
    for secret in provider.secrets() {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "a secret is not sealed");
    }
    let again = program.run(&backup).await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("exists already"), "{again:?}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    let status = printed(&program.run(&["vault", "status", "--json"]).await);
    assert!(status["backed_up_at"].is_string(), "{status}");
    value_of(&serving.call("Google_SendEmail", mail("bob@example.com", "x")).await);
    assert_eq!(serving.close().await.0, 0);

    // Elsewhere: the key opens it, and everything is there but what is begun anew.
    provider.revoke_all("bob@example.com");
    let other = another(&program);
    let restore = ["vault", "restore", file.to_str().unwrap()];
    let restored = other.run(&restore).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert!(restored.stdout.ends_with(": 2 connections.\n"), "{restored:?}");
    let status = printed(&other.run(&["vault", "status", "--json", "--verify"]).await);
    assert_eq!((&status["verified"]["failed"], &status["connections"]["usable"]), (&json!({}), &json!(2)));
    assert_eq!((&status["flows"], status["restored_at"].is_string()), (&json!(0), true), "{status}");
    assert_eq!(other.run(&["audit", "verify"]).await.code, 0);
    let shown = other.run(&["audit", "show", "--json"]).await.stdout;
    assert_eq!(shown.lines().filter(|line| line.contains("\"vault.restored\"")).count(), 2, "{shown}");

    let (input, sent) = (mail("bob@example.com", "x").to_string(), provider.mailbox("bob@example.com").len());
    let call = |user| ["call", "Google.SendEmail", "--user", user, "--input", &input].map(str::to_owned);
    let asked = provider.token_requests();
    for expected in [asked + 1, asked + 1] {
        let called = other.run(&call("alice").each_ref().map(String::as_str)).await;
        assert_eq!(called.code, 0, "{called:?}");
        assert_eq!(provider.token_requests(), expected, "asked about at the first use, and believed then");
    }
    let ended = other.run(&call("bob").each_ref().map(String::as_str)).await;
    assert_eq!(ended.code, 3, "the provider had taken it back since: {ended:?}");
    assert_eq!(provider.token_requests(), asked + 2);
    assert_eq!(provider.mailbox("bob@example.com").len(), sent + 2);
}

#[tokio::test]
async fn a_restore_that_cannot_be_changes_nothing() {
    let (program, provider) = Program::with_provider("").await;
    assert_eq!(connect(&program, &provider, &["--user", "alice"], "alice").await.code, 0);
    let file = program.dir.path().join("obo.backup");
    let path = file.to_str().unwrap();
    assert_eq!(program.run(&["vault", "backup", path]).await.code, 0);
    assert_eq!(connect(&program, &provider, &["--user", "bob"], "bob").await.code, 0);
    let connections = async |program: &Program, user: &str| {
        let ran = program.run(&["connections", "--user", user, "--json"]).await;
        printed(&ran).as_array().unwrap().len()
    };

    let full = program.run(&["vault", "restore", path]).await;
    assert_eq!((full.code, full.stdout.as_str()), (1, ""), "{full:?}");
    assert!(full.stderr.contains("--replace"), "{full:?}");
    let replace = ["vault", "restore", "--replace", path];
    let mut serving = program.stdio("alice");
    value_of(&serving.call("Google_SendEmail", mail("bob@example.com", "x")).await);
    let busy = program.run(&replace).await;
    assert_eq!(busy.code, 1, "{busy:?}");
    assert!(busy.stderr.contains("another obo process uses"), "{busy:?}");
    assert_eq!(serving.close().await.0, 0);

    let key = program.dir.path().join("vault.key");
    std::fs::write(&key, [8; 32]).unwrap();
    let locked = program.run(&replace).await;
    assert_eq!(locked.code, 64, "{locked:?}");
    assert!(locked.stderr.contains("does not hold the key of this vault"), "{locked:?}");
    std::fs::write(&key, [7; 32]).unwrap();
    let nothing = program.run(&["vault", "restore", "--replace", program.config().to_str().unwrap()]).await;
    assert_eq!(nothing.code, 1, "{nothing:?}");
    assert_eq!((connections(&program, "alice").await, connections(&program, "bob").await), (1, 1));

    let restored = program.run(&replace).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!((connections(&program, "alice").await, connections(&program, "bob").await), (1, 0));
    // What was there is a data folder like any other.
    let aside = std::fs::read_dir(program.data()).unwrap().map(|entry| entry.unwrap().path());
    let aside = aside.into_iter().find(|path| path.to_string_lossy().contains("replaced-")).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_obo"));
    command.arg("--config").arg(program.config()).arg("--data-dir").arg(&aside);
    let output = command.args(["connections", "--user", "bob", "--json"]).stdin(Stdio::null()).output().await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap().as_array().unwrap().len(), 1);
}

/// What the crate age itself reads in a copy.
fn decrypted(copy: &str, identity: &impl age::Identity) -> Value {
    serde_json::from_slice(&age::decrypt(identity, copy.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_recovery_copy_brings_the_vault_back_whatever_became_of_its_key() {
    let (mut program, provider) = Program::with_provider("").await;
    assert_eq!(connect(&program, &provider, &["--user", "alice"], "alice").await.code, 0);
    let old_backup = program.dir.path().join("old.backup");
    assert_eq!(program.run(&["vault", "backup", old_backup.to_str().unwrap()]).await.code, 0);

    // To a recipient, on stdout.
    let (alice, other) = (age::x25519::Identity::generate(), age::x25519::Identity::generate());
    let recipients = [alice.to_public().to_string(), age::x25519::Identity::generate().to_public().to_string()];
    let export = ["vault", "export-recovery", "--recipient", &recipients[0], "--recipient", &recipients[1]];
    let printed = program.run(&export).await;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"), "{printed:?}");
    let inside = decrypted(&printed.stdout, &alice);
    assert_eq!(inside["obo_recovery"], 1);
    assert!(age::decrypt(&other, printed.stdout.as_bytes()).is_err());
    let copy = program.dir.path().join("alice.age");
    std::fs::write(&copy, &printed.stdout).unwrap();

    // With a passphrase, into a file.
    let nobody = program.run(&["vault", "export-recovery"]).await;
    assert_eq!((nobody.code, nobody.stdout.as_str()), (2, ""), "{nobody:?}");
    program.environment = vec![("OBO_VAULT_RECOVERY_PASSPHRASE", "short".to_owned())];
    let by_passphrase = program.dir.path().join("passphrase.age");
    let into_file = ["vault", "export-recovery", "--to", by_passphrase.to_str().unwrap()];
    assert_eq!(program.run(&into_file).await.code, 2);
    program.environment = vec![("OBO_VAULT_RECOVERY_PASSPHRASE", "correct horse".to_owned())];
    let written = program.run(&into_file).await;
    assert_eq!(written.code, 0, "{written:?}");
    #[cfg(unix)]
    assert!(crate::support::program::is_private(&by_passphrase));
    let text = std::fs::read_to_string(&by_passphrase).unwrap();
    assert_eq!(decrypted(&text, &age::scrypt::Identity::new("correct horse".to_owned().into())), inside);
    let again = program.run(&into_file).await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("exists already"), "{again:?}");
    assert_eq!(std::fs::read_to_string(&by_passphrase).unwrap(), text);
    let status = self::printed(&program.run(&["vault", "status", "--json"]).await);
    assert!(status["recovery_exported_at"].is_string(), "{status}");

    // The key is changed, then lost. The copies are as good as before.
    let changed = program.dir.path().join("changed.key");
    assert_eq!(program.run(&["vault", "rotate-key", "--to", changed.to_str().unwrap()]).await.code, 0);
    std::fs::remove_file(&changed).unwrap();
    std::fs::remove_file(program.dir.path().join("vault.key")).unwrap();
    let check = ["vault", "export-recovery", "--check"];
    let checked = program.run(&[&check[..], &[by_passphrase.to_str().unwrap(), "--json"]].concat()).await;
    assert_eq!(self::printed(&checked), json!({ "opens_this_vault": true, "why_not": null }));
    let identity = program.dir.path().join("identity");
    let secret = age::secrecy::ExposeSecret::expose_secret(&alice.to_string()).to_owned();
    std::fs::write(&identity, format!("# alice\n{secret}\n")).unwrap();
    let with = ["--identity", identity.to_str().unwrap()];
    let checked = program.run(&[&check[..], &[copy.to_str().unwrap()], &with].concat()).await;
    assert_eq!((checked.code, checked.stdout.as_str()), (0, "This recovery copy opens this vault.\n"), "{checked:?}");

    let new = program.dir.path().join("new.key");
    let recover = ["vault", "rotate-key", "--to", new.to_str().unwrap(), "--recovery"];
    let recovered = program.run(&[&recover[..], &[copy.to_str().unwrap()], &with].concat()).await;
    assert_eq!(recovered.code, 0, "{recovered:?}");
    let toml = std::fs::read_to_string(program.config()).unwrap();
    std::fs::write(program.config(), toml.replace("\"vault.key\"", "\"new.key\"")).unwrap();
    let status = self::printed(&program.run(&["vault", "status", "--json", "--verify"]).await);
    assert_eq!((&status["verified"]["failed"], &status["connections"]["usable"]), (&json!({}), &json!(1)));
    assert_eq!(program.run(&["audit", "verify"]).await.code, 0);
    let shown = program.run(&["audit", "show", "--json"]).await.stdout;
    let phases = |note: &str| shown.lines().filter(|line| line.contains(&format!("\"{note}\""))).count();
    assert_eq!((phases("vault.recovery_exported"), phases("vault.recovered")), (8, 2), "{shown}");

    // The other copy once more, where even the record of the key is gone.
    let database = rusqlite::Connection::open(program.data().join("obo.db")).unwrap();
    database.execute("DELETE FROM records WHERE kind = 1 AND key = zeroblob(32)", []).unwrap();
    drop(database);
    let lost = program.run(&["vault", "backup", "x"]).await;
    assert_ne!(lost.code, 0, "{lost:?}");
    let recovered = program.run(&[&recover[..], &[by_passphrase.to_str().unwrap()]].concat()).await;
    assert_eq!(recovered.code, 0, "{recovered:?}");
    let status = self::printed(&program.run(&["vault", "status", "--json", "--verify"]).await);
    assert_eq!((&status["verified"]["failed"], &status["connections"]["usable"]), (&json!({}), &json!(1)));

    // What is no copy of this vault, or not opened, changes nothing.
    let stranger = Program::new("");
    assert_eq!(stranger.run(&["token", "issue", "--user", "x"]).await.code, 0);
    let before = self::printed(&stranger.run(&["vault", "status", "--json"]).await)["key_id"].clone();
    let key = stranger.dir.path().join("another.key");
    let steal = ["vault", "rotate-key", "--to", key.to_str().unwrap(), "--recovery", copy.to_str().unwrap()];
    let refused = stranger.run(&[&steal[..], &with].concat()).await;
    assert_eq!(refused.code, 64, "{refused:?}");
    assert!(refused.stderr.contains("of another vault"), "{refused:?}");
    let checked = stranger.run(&[&check[..], &[copy.to_str().unwrap(), "--json"], &with].concat()).await;
    assert_eq!(checked.code, 1, "{checked:?}");
    assert!(checked.stdout.contains("\"opens_this_vault\": false"), "{checked:?}");
    program.environment = vec![("OBO_VAULT_RECOVERY_PASSPHRASE", "another horse".to_owned())];
    let wrong = program.run(&[&recover[..], &[by_passphrase.to_str().unwrap()]].concat()).await;
    assert_eq!(wrong.code, 1, "{wrong:?}");
    assert!(wrong.stderr.contains("not the passphrase"), "{wrong:?}");
    assert_eq!(self::printed(&stranger.run(&["vault", "status", "--json"]).await)["key_id"], before);
    assert!(!key.exists(), "no key is made for what cannot be");
    assert_eq!(self::printed(&program.run(&["vault", "status", "--json"]).await)["key_opens"], json!(true));
}

/// docs/vault.md: its commands work in the order in which they stand there.
#[tokio::test]
async fn the_guide_for_operators_is_true() {
    let (program, provider) = Program::with_provider("").await;
    assert_eq!(connect(&program, &provider, &["--user", "alice"], "alice").await.code, 0);
    let toml = blocks_of("docs/vault.md", "toml");
    let key = toml.iter().find(|block| block.starts_with("[vault.key]")).unwrap();
    let database = crate::support::postgres::database("the guide for operators");
    let mut ran = 0;
    for line in blocks_of("docs/vault.md", "sh").concat().lines() {
        let words = words(line);
        assert_eq!(words[0], "obo", "{line}");
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let mut command = program.command(&arguments);
        if line.contains("OBO_DATABASE_URL") {
            // Without a database, which was said, this one is not tried.
            let Some(database) = &database else { continue };
            command.env("OBO_DATABASE_URL", &database.url);
        }
        let output = command.current_dir(program.dir.path()).stdin(Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        if line.contains("--to new.key") {
            let before = std::fs::read_to_string(program.config()).unwrap();
            let old = "[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n";
            assert!(before.contains(old), "{before}");
            std::fs::write(program.config(), before.replace(old, key)).unwrap();
        }
        ran += 1;
    }
    assert!(ran >= 6, "{ran}");
}
