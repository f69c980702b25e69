//! The store of several replicas: what it does beyond the contract of all stores.

use std::sync::Arc;
use std::time::Duration;

use obo::secret::Secret;
use obo::store::postgres::PostgresStore;
use obo::store::{self, LogEntry, Record, RecordKey, Store, StoreError, Table, Write};

use crate::support::postgres::{Database, database, sql};

const ALICE: RecordKey = [0xa1; 32];
const BOB: RecordKey = [0xb0; 32];

fn open(database: &Database) -> Arc<dyn Store> {
    Arc::new(PostgresStore::open(&Secret::new(database.url.clone())).unwrap())
}

fn record(key: u8, sealed: &[u8]) -> Record {
    Record {
        table: Table::Grant,
        key: [key; 32],
        owner: [9; 32],
        generation: 0,
        expires_at: None,
        sealed: sealed.to_vec(),
    }
}

fn refused(url: &str) -> StoreError {
    match PostgresStore::open(&Secret::new(url)) {
        Err(error) => error,
        Ok(_) => panic!("it was opened"),
    }
}

#[tokio::test]
async fn one_tenants_view_holds_nothing_of_another() {
    let Some(database) = database("tenants") else { return };
    let store = open(&database);
    let (of_alice, of_bob) = (store::within(&store, &ALICE), store::within(&store, &BOB));
    of_alice.apply(vec![Write::Insert(record(1, b"alice"))]).await.unwrap();
    of_bob.apply(vec![Write::Insert(record(2, b"bob"))]).await.unwrap();
    store.apply(vec![Write::Insert(record(3, b"obo's own"))]).await.unwrap();

    let keys = [1, 2, 3].map(|key| [key; 32]);
    for (view, seen) in [(&of_alice, vec![1]), (&of_bob, vec![2]), (&store, vec![1, 2, 3])] {
        let found = |records: Vec<Record>| records.iter().map(|record| record.key[0]).collect::<Vec<_>>();
        assert_eq!(found(view.scan(Table::Grant, None, 10).await.unwrap()), seen);
        assert_eq!(found(view.owned(Table::Grant, &[9; 32]).await.unwrap()), seen);
        let mut generations = view.generations(Table::Grant, &keys).await.unwrap();
        generations.sort_unstable();
        assert_eq!(generations.iter().map(|(key, _)| key[0]).collect::<Vec<_>>(), seen);
        for key in keys {
            assert_eq!(view.get(Table::Grant, &key).await.unwrap().is_some(), seen.contains(&key[0]));
        }
    }
    // Nor can it change what it does not see; and it cannot take a key that is taken.
    for write in [
        Write::Insert(record(2, b"mine")),
        Write::Replace(Record { generation: 1, ..record(2, b"mine") }),
        Write::Delete { table: Table::Grant, key: [2; 32], generation: 1 },
        Write::Reseal { table: Table::Grant, key: [2; 32], before: b"bob".to_vec(), sealed: b"mine".to_vec() },
    ] {
        assert!(matches!(of_alice.apply(vec![write]).await, Err(StoreError::Conflict)));
    }
    assert!(of_alice.apply(vec![Write::Put(record(2, b"mine"))]).await.is_err());
    assert_eq!(store.get(Table::Grant, &[2; 32]).await.unwrap().unwrap().sealed, b"bob");
}

#[tokio::test]
async fn row_security_holds_the_role_that_owns_the_tables() {
    let Some(database) = database("row security") else { return };
    let store = open(&database);
    store::within(&store, &ALICE).apply(vec![Write::Insert(record(1, b"alice"))]).await.unwrap();
    let as_obo = |set: &str| {
        let count = format!("SET ROLE obo; {set} SELECT count(*) FROM obo.record");
        sql(&database, &count).trim().to_owned()
    };
    assert_eq!(as_obo(""), "0", "without a scope nothing is seen");
    assert_eq!(as_obo("SET obo.scope = '';"), "0");
    assert_eq!(as_obo("SET obo.scope = 'all';"), "1");
    assert_eq!(as_obo(&format!("SET obo.scope = '{}';", "a1".repeat(32))), "1");
    assert_eq!(as_obo(&format!("SET obo.scope = '{}';", "b0".repeat(32))), "0");
    // A transaction's scope ends with it, so that whoever gets the connection next has none.
    assert_eq!(as_obo("BEGIN; SET LOCAL obo.scope = 'all'; COMMIT;"), "0");
}

#[tokio::test]
async fn the_log_cannot_be_changed_through_the_database_either() {
    let Some(database) = database("append only") else { return };
    let entry = LogEntry { writer: "w".to_owned(), seq: 1, body: "kept".to_owned() };
    open(&database).apply(vec![Write::Append(entry)]).await.unwrap();
    for statement in ["UPDATE obo.log SET body = ''", "DELETE FROM obo.log", "TRUNCATE obo.log"] {
        let tried = format!(
            "DO $$ BEGIN {statement}; RAISE 'it was done'; EXCEPTION WHEN raise_exception THEN \
             IF SQLERRM <> 'the log is append-only' THEN RAISE; END IF; END $$"
        );
        sql(&database, &tried);
    }
    assert_eq!(sql(&database, "SELECT body FROM obo.log").trim(), "kept");
}

#[tokio::test]
async fn what_cannot_be_opened_says_why_and_never_the_password() {
    let Some(database) = database("refusals") else { return };
    drop(open(&database));
    let at = database.url.split_once('@').unwrap().1;
    let port = at.split([':', '/']).nth(1).unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (url, says, unusable) in [
        (format!("postgresql://nobody:pa55word@{at}"), "role \"nobody\" does not exist", true),
        (format!("postgresql://obo:pa55word@127.0.0.1:{port}/nowhere"), "database \"nowhere\" does not exist", true),
        (format!("postgresql://obo:pa55word@127.0.0.1:{nobody}/obo"), "cannot reach the database", false),
        ("postgresql://obo:pa55word@db.example.com/obo?sslmode=disable".to_owned(), "turns TLS off", true),
    ] {
        let error = refused(&url);
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains("pa55word"), "{error}");
        assert_eq!(matches!(error, StoreError::Unusable(_)), unusable, "{error}");
    }
    // A database on another machine that has no TLS is not spoken to: this one has none.
    let text =
        refused(&format!("postgresql://obo:pa55word@127.0.0.1:{port}/{}?sslmode=require", database.name)).to_string();
    assert!(text.contains("server does not support TLS"), "{text}");

    for (change, says) in [
        ("UPDATE obo.vault SET format = 2", "written by another obo (format 2; this one reads format 1)"),
        ("UPDATE obo.vault SET format = 1, state = 'moved'", "was moved elsewhere"),
        ("UPDATE obo.vault SET state = 'being filled'", "is being filled"),
    ] {
        sql(&database, change);
        let error = refused(&database.url);
        assert!(matches!(&error, StoreError::Unusable(text) if text.contains(says)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_cost_nothing_that_was_acknowledged() {
    let Some(database) = database("cut") else { return };
    let store = open(&database);
    let cut = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'obo' AND datname = '{}'",
        database.name
    );
    let mut kept = Vec::new();
    for round in 0..30_u8 {
        // Some are in the middle of it.
        let writes: Vec<_> = (0..8_u8)
            .map(|n| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut record = record(0, &[round, n]);
                    (record.key[0], record.key[1]) = (round, n);
                    let key = record.key;
                    store.apply(vec![Write::Insert(record)]).await.map(|()| key)
                })
            })
            .collect();
        sql(&database, &cut);
        for write in writes {
            kept.push(write.await.unwrap().unwrap());
        }
        // Reads are simply asked again.
        store.get(Table::Grant, &[0; 32]).await.unwrap();
    }
    assert_eq!(kept.len(), 240);
    for key in kept {
        assert!(store.get(Table::Grant, &key).await.unwrap().is_some());
    }
}

/// The connection goes back to nobody with what was begun on it, which the next commit would make true.
#[tokio::test]
async fn what_was_given_up_never_happens_later() {
    let Some(database) = database("given up") else { return };
    let store = open(&database);
    // Each statement is quick enough for the server, and all of them are too slow for the deadline.
    sql(
        &database,
        "CREATE FUNCTION obo.slow() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM pg_sleep(4); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON obo.record FOR EACH ROW EXECUTE FUNCTION obo.slow()",
    );
    let writes = (1..=5).map(|key| Write::Insert(record(key, b"given up"))).collect();
    let given_up = store.apply(writes).await.unwrap_err();
    assert!(given_up.to_string().contains("does not answer"), "{given_up}");
    let busy = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'obo' AND datname = '{}' AND state <> 'idle'",
        database.name
    );
    // At once, so that every connection of the pool is used: on the same one, its commit would be that of both.
    let reads = (0..8).map(|_| store.log(0, 1));
    futures::future::try_join_all(reads).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while sql(&database, &busy).trim() != "0" {
        assert!(tokio::time::Instant::now() < deadline, "a transaction stays open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(store.scan(Table::Grant, None, 10).await.unwrap().is_empty());
}

/// A process that was stopped in the middle of a transaction does not hold up the others.
#[tokio::test]
async fn who_is_stopped_in_a_transaction_loses_it() {
    let Some(database) = database("stopped") else { return };
    let store = open(&database);
    // As the settings stand within a transaction of obo's.
    sql(
        &database,
        "CREATE TABLE obo.seen (what text); GRANT ALL ON obo.seen TO obo;
         CREATE FUNCTION obo.note() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN INSERT INTO obo.seen VALUES (current_setting('idle_in_transaction_session_timeout')); RETURN NEW; END $$;
         CREATE TRIGGER note BEFORE INSERT ON obo.record FOR EACH ROW EXECUTE FUNCTION obo.note()",
    );
    store.apply(vec![Write::Insert(record(1, b"x"))]).await.unwrap();
    assert_eq!(sql(&database, "SELECT what FROM obo.seen").trim(), "5s");
}

#[tokio::test]
async fn a_holder_that_says_nothing_loses_its_lease_and_can_know() {
    let Some(database) = database("silent") else { return };
    let span = Duration::from_secs(3);
    let secret = Secret::new(database.url.clone());
    let silent = PostgresStore::open_with(&secret, span).unwrap();
    let other = PostgresStore::open_with(&secret, span).unwrap();
    let name = [1; 32];
    let held = silent.lease(&name, Duration::ZERO).await.unwrap().unwrap();
    assert!(held.lasts(Duration::ZERO) && held.lasts(span / 2) && !held.lasts(span * 2));
    assert!(other.lease(&name, Duration::ZERO).await.unwrap().is_none());
    // As if the holder had been stopped for longer than its lease: the database no longer believes it.
    sql(&database, "UPDATE obo.lease SET until = clock_timestamp() - interval '1 second'");
    let taken = other.lease(&name, Duration::from_secs(30)).await.unwrap().unwrap();
    // With its next sign of life the first one knows.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while held.lasts(Duration::ZERO) {
        assert!(tokio::time::Instant::now() < deadline, "it still believes that it holds the lease");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What it gives back is no longer its own to give.
    drop(held);
    drop(silent);
    assert_eq!(sql(&database, "SELECT count(*) FROM obo.lease").trim(), "1");
    assert!(taken.lasts(Duration::ZERO));
    drop(taken);
    drop(other);
    assert_eq!(
        sql(&database, "SELECT count(*) FROM obo.lease").trim(),
        "0",
        "a store that is dropped first gives back"
    );
    assert_eq!(sql(&database, "SELECT count(*) FROM obo.replica").trim(), "0");
}

#[tokio::test]
async fn a_lease_is_renewed_for_as_long_as_it_is_held() {
    let Some(database) = database("renewed") else { return };
    let secret = Secret::new(database.url.clone());
    let store = PostgresStore::open_with(&secret, Duration::from_secs(2)).unwrap();
    let held = store.lease(&[1; 32], Duration::ZERO).await.unwrap().unwrap();
    let until = || sql(&database, "SELECT until FROM obo.lease");
    let first = until();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while until() == first {
        assert!(tokio::time::Instant::now() < deadline, "it was not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(held.lasts(Duration::from_millis(500)));
}

#[tokio::test]
async fn a_caller_who_goes_away_while_taking_a_lease_leaves_none() {
    let Some(database) = database("gone away") else { return };
    let store = open(&database);
    for _ in 0..20 {
        let mut taking = Box::pin(store.lease(&[1; 32], Duration::from_secs(5)));
        // Asked for, and dropped before the answer; or, when the machine is slow, with it.
        let _ = futures::poll!(&mut taking);
        drop(taking);
    }
    assert!(store.lease(&[1; 32], Duration::from_secs(30)).await.unwrap().is_some());
    drop(store);
    assert_eq!(sql(&database, "SELECT count(*) FROM obo.lease").trim(), "0");
}

#[tokio::test]
async fn a_change_of_a_flow_is_heard_by_other_replicas() {
    let Some(database) = database("heard") else { return };
    let (one, two) = (open(&database), open(&database));
    let mut changes = two.changes().unwrap();
    let flow = |n: u8| Record { table: Table::Flow, ..record(n, b"x") };
    let heard = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            // Until it listens, nothing is heard.
            one.apply(vec![Write::Put(record(7, b"of another kind")), Write::Put(flow(1))]).await.unwrap();
            if let Ok(Ok(heard)) = tokio::time::timeout(Duration::from_millis(100), changes.recv()).await {
                break heard;
            }
        }
    });
    assert_eq!(heard.await.unwrap(), store::Changed { table: Table::Flow, key: [1; 32] });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_become_visible_in_their_order() {
    let Some(database) = database("positions") else { return };
    let (one, two) = (open(&database), open(&database));
    let writers: Vec<_> = [one, two]
        .into_iter()
        .enumerate()
        .flat_map(|(n, store)| (0..4).map(move |m| (n * 4 + m, Arc::clone(&store))))
        .map(|(writer, store)| {
            tokio::spawn(async move {
                for seq in 1..=50 {
                    let entry = LogEntry { writer: format!("w{writer}"), seq, body: String::new() };
                    store.apply(vec![Write::Append(entry)]).await.unwrap();
                }
            })
        })
        .collect();
    let reader = open(&database);
    // Whoever goes on after the last position that was seen misses nothing.
    let (mut after, mut seen) = (0, 0);
    while seen < 400 {
        for (position, _) in reader.log(after, 7).await.unwrap() {
            assert!(position > after);
            after = position;
            seen += 1;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(reader.log(0, 1000).await.unwrap().len(), 400);
}

/// As a replica that was stopped while the vault was moved elsewhere, and goes on.
#[tokio::test]
async fn whoever_missed_that_the_vault_was_moved_writes_nothing_more() {
    let Some(database) = database("missed") else { return };
    let store = open(&database);
    store.apply(vec![Write::Insert(record(1, b"before"))]).await.unwrap();
    for state in ["being moved", "moved", "being filled"] {
        sql(&database, &format!("UPDATE obo.vault SET state = '{state}'"));
        let refused = store.apply(vec![Write::Put(record(1, b"after"))]).await;
        assert!(matches!(&refused, Err(StoreError::Unusable(text)) if text.contains(state)), "{refused:?}");
    }
    assert_eq!(store.get(Table::Grant, &[1; 32]).await.unwrap().unwrap().sealed, b"before");
}

#[tokio::test]
async fn a_database_that_is_in_use_is_not_filled_and_stays_as_it_is() {
    let Some(database) = database("not filled") else { return };
    let store = open(&database);
    let refused = PostgresStore::fill(&Secret::new(database.url.clone())).await.err().unwrap();
    assert!(refused.to_string().contains("1 other obo processes use"), "{refused}");
    assert_eq!(sql(&database, "SELECT state FROM obo.vault").trim(), "in use");
    store.apply(vec![Write::Insert(record(1, b"goes on"))]).await.unwrap();
}
