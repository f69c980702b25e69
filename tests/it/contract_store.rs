//! What every store must do. A new backend adds one line at `contract!` and passes the same cases.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use obo::os_keyring::{Keyring, Ring, RingError};
use obo::secret::Secret;
use obo::store::keyring::KeyringStore;
use obo::store::postgres::PostgresStore;
use obo::store::sqlite::SqliteStore;
use obo::store::{LogEntry, Record, RecordKey, Store, StoreError, Table, Write};

use crate::support::postgres as server;

/// Opens the backend in a folder; opening the same folder twice gives two stores over the same records.
type Open = fn(&Path) -> Arc<dyn Store>;

macro_rules! contract {
    ($backend:ident, $there:expr, $open:expr $(, #[$attribute:meta])?) => {
        contract!($backend, $there, $open, [$(#[$attribute])?], [
            records_come_back_as_written,
            generations_count_and_guard,
            sealing_anew_changes_the_body_alone,
            a_list_of_writes_is_made_whole_or_not_at_all,
            one_conflict_fails_only_itself,
            generations_tell_what_changed,
            owners_and_pages,
            the_log_keeps_its_order_and_its_entries,
            prune_removes_what_expired_and_nothing_else,
            everything_is_there_after_reopening,
            two_stores_on_one_folder_agree,
            racing_replaces_have_one_winner,
            a_lease_is_exclusive_and_is_freed_on_drop,
            leases_never_overlap,
            what_is_too_large_is_refused_alone,
        ]);
    };
    ($backend:ident, $there:expr, $open:expr, [$(#[$attribute:meta])?], [$($case:ident),* $(,)?]) => {
        contract!(@ $backend, $there, $open, ($(#[$attribute])?), $($case)*);
    };
    (@ $backend:ident, $there:expr, $open:expr, $attributes:tt, $($case:ident)*) => {
        mod $backend {
            #[allow(unused_imports, reason = "one backend needs what another does not")]
            use super::*;

            $(contract!(@case $there, $open, $attributes, $case);)*
        }
    };
    (@case $there:expr, $open:expr, ($(#[$attribute:meta])?), $case:ident) => {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            $(#[$attribute])?
            async fn $case() {
                if !$there {
                    return;
                }
                let dir = tempfile::tempdir().unwrap();
                super::cases::$case(dir.path(), $open).await;
            }
    };
}

contract!(sqlite, true, |dir| std::sync::Arc::new(SqliteStore::open(&dir.join("data")).unwrap()));

contract!(postgres, server::database("there").is_some(), |dir| {
    let url = server::database(&dir.display().to_string()).unwrap().url;
    std::sync::Arc::new(PostgresStore::open(&Secret::new(url)).unwrap())
});

contract!(
    postgres_behind_a_pooler,
    server::database("there").is_some_and(|there| server::pooled(&there).is_some()),
    |dir| {
        let url = server::pooled(&server::database(&dir.display().to_string()).unwrap()).unwrap();
        std::sync::Arc::new(PostgresStore::open(&Secret::new(url)).unwrap())
    }
);

contract!(keyring, true, crate::contract_store::over_memory);
contract!(
    os_keyring,
    true,
    crate::contract_store::over_the_os,
    #[ignore = "needs a keyring: `the_os_keyring_keeps_the_contract` runs them in a session of their own"]
);

fn over_memory(dir: &Path) -> Arc<dyn Store> {
    static RINGS: Mutex<BTreeMap<PathBuf, Arc<Memory>>> = Mutex::new(BTreeMap::new());
    let ring = Arc::clone(RINGS.lock().unwrap().entry(dir.to_owned()).or_default());
    Arc::new(KeyringStore::open(&dir.join("data"), Keyring::new(ring)).unwrap())
}

fn over_the_os(dir: &Path) -> Arc<dyn Store> {
    Arc::new(KeyringStore::open(&dir.join("data"), Keyring::of_platform(true)).unwrap())
}

/// A keyring that keeps what it is given.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Secret>>);

impl Ring for Memory {
    fn get(&self, user: &str) -> Result<Option<Secret>, RingError> {
        Ok(self.0.lock().unwrap().get(user).cloned())
    }

    fn set(&self, user: &str, text: &Secret) -> Result<(), RingError> {
        self.0.lock().unwrap().insert(user.to_owned(), text.clone());
        Ok(())
    }

    fn delete(&self, user: &str) -> Result<(), RingError> {
        self.0.lock().unwrap().remove(user);
        Ok(())
    }
}

fn key(number: u32) -> RecordKey {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key
}

fn record(number: u32, sealed: &[u8]) -> Record {
    Record {
        table: Table::Grant,
        key: key(number),
        owner: key(number / 10),
        generation: 0,
        expires_at: None,
        sealed: sealed.to_vec(),
    }
}

fn entry(writer: &str, seq: u64) -> LogEntry {
    LogEntry { writer: writer.to_owned(), seq, body: format!("{writer} {seq}") }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

mod cases {
    use super::*;

    pub(super) async fn records_come_back_as_written(dir: &Path, open: Open) {
        let store = open(dir);
        assert_eq!(store.get(Table::Grant, &key(1)).await.unwrap(), None);
        let every_byte: Vec<u8> = (0..=255).collect();
        for sealed in [&[][..], &every_byte] {
            let expires_at = Some(Timestamp::from_microsecond(1_700_000_000_123_456).unwrap());
            let new = Record { expires_at, ..record(1, sealed) };
            store.apply(vec![Write::Put(new.clone())]).await.unwrap();
            let read = store.get(Table::Grant, &key(1)).await.unwrap().unwrap();
            assert_eq!(read, Record { generation: read.generation, ..new });
        }
        assert_eq!(store.get(Table::Flow, &key(1)).await.unwrap(), None, "tables are apart");
    }

    pub(super) async fn generations_count_and_guard(dir: &Path, open: Open) {
        let store = open(dir);
        let generation = || async { store.get(Table::Grant, &key(1)).await.unwrap().map(|r| r.generation) };
        let conflict = |result| assert!(matches!(result, Err(StoreError::Conflict)));

        store.apply(vec![Write::Insert(record(1, b"a"))]).await.unwrap();
        assert_eq!(generation().await, Some(1));
        conflict(store.apply(vec![Write::Insert(record(1, b"b"))]).await);
        store.apply(vec![Write::Replace(Record { generation: 1, ..record(1, b"c") })]).await.unwrap();
        assert_eq!(generation().await, Some(2));
        for stale in [0, 1, 3, u64::MAX] {
            conflict(store.apply(vec![Write::Replace(Record { generation: stale, ..record(1, b"d") })]).await);
            let delete = Write::Delete { table: Table::Grant, key: key(1), generation: stale };
            conflict(store.apply(vec![delete]).await);
        }
        store.apply(vec![Write::Put(record(1, b"e"))]).await.unwrap();
        assert_eq!(generation().await, Some(3));
        store.apply(vec![Write::Delete { table: Table::Grant, key: key(1), generation: 3 }]).await.unwrap();
        assert_eq!(generation().await, None);
        conflict(store.apply(vec![Write::Replace(Record { generation: 3, ..record(1, b"f") })]).await);
        store.apply(vec![Write::Insert(record(1, b"g"))]).await.unwrap();
        assert_eq!(generation().await, Some(1), "a record made again begins anew");
    }

    pub(super) async fn sealing_anew_changes_the_body_alone(dir: &Path, open: Open) {
        let store = open(dir);
        let new = Record { expires_at: Some(at(1_700_000_000)), ..record(1, b"a") };
        store.apply(vec![Write::Insert(new.clone())]).await.unwrap();
        let reseal = |before: &[u8], sealed: &[u8]| {
            let write =
                Write::Reseal { table: Table::Grant, key: key(1), before: before.to_vec(), sealed: sealed.to_vec() };
            store.apply(vec![write])
        };
        reseal(b"a", b"b").await.unwrap();
        let read = async || store.get(Table::Grant, &key(1)).await.unwrap().unwrap();
        assert_eq!(read().await, Record { generation: 1, sealed: b"b".to_vec(), ..new.clone() });
        // Who read it before may still replace it, and whoever reads it after that may not seal what was there.
        store.apply(vec![Write::Replace(Record { generation: 1, ..record(1, b"c") })]).await.unwrap();
        assert!(matches!(reseal(b"b", b"d").await, Err(StoreError::Conflict)));
        assert_eq!(read().await.sealed, b"c");
        store.apply(vec![Write::Delete { table: Table::Grant, key: key(1), generation: 2 }]).await.unwrap();
        assert!(matches!(reseal(b"c", b"d").await, Err(StoreError::Conflict)));
    }

    pub(super) async fn a_list_of_writes_is_made_whole_or_not_at_all(dir: &Path, open: Open) {
        let store = open(dir);
        store.apply(vec![Write::Insert(record(9, b"there"))]).await.unwrap();
        let broken = vec![
            Write::Insert(record(1, b"a")),
            Write::Append(entry("w", 1)),
            Write::Delete { table: Table::Grant, key: key(9), generation: 1 },
            Write::Insert(record(1, b"taken by the first of this list")),
        ];
        assert!(matches!(store.apply(broken).await, Err(StoreError::Conflict)));
        assert_eq!(store.get(Table::Grant, &key(1)).await.unwrap(), None);
        assert!(store.get(Table::Grant, &key(9)).await.unwrap().is_some());
        assert!(store.log(0, 10).await.unwrap().is_empty());
        store.apply(Vec::new()).await.unwrap();
    }

    pub(super) async fn one_conflict_fails_only_itself(dir: &Path, open: Open) {
        let store = open(dir);
        store.apply(vec![Write::Insert(record(0, b"taken"))]).await.unwrap();
        // Submitted together, so that they share commits; every third one meets the record that is taken.
        let all = (1..=300u32).map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let number = if n % 3 == 0 { 0 } else { n };
                store.apply(vec![Write::Insert(record(number, b"new")), Write::Append(entry("w", u64::from(n)))]).await
            })
        });
        for (n, job) in (1..=300u32).zip(all.collect::<Vec<_>>()) {
            let result = job.await.unwrap();
            assert_eq!(matches!(result, Err(StoreError::Conflict)), n % 3 == 0, "{n}: {result:?}");
            assert_eq!(result.is_ok(), n % 3 != 0);
        }
        assert_eq!(store.log(0, 1000).await.unwrap().len(), 200);
        assert_eq!(store.get(Table::Grant, &key(0)).await.unwrap().unwrap().sealed, b"taken");
    }

    pub(super) async fn generations_tell_what_changed(dir: &Path, open: Open) {
        let store = open(dir);
        let keys: Vec<RecordKey> = (0..3).map(key).collect();
        let generations = || async {
            let mut found = store.generations(Table::Grant, &keys).await.unwrap();
            found.sort_unstable();
            found
        };
        assert_eq!(generations().await, []);
        store.apply(vec![Write::Insert(record(0, b"a")), Write::Insert(record(2, b"b"))]).await.unwrap();
        assert_eq!(generations().await, [(key(0), 1), (key(2), 1)]);
        store.apply(vec![Write::Replace(Record { generation: 1, ..record(2, b"c") })]).await.unwrap();
        assert_eq!(generations().await, [(key(0), 1), (key(2), 2)]);
        store.apply(vec![Write::Delete { table: Table::Grant, key: key(0), generation: 1 }]).await.unwrap();
        assert_eq!(generations().await, [(key(2), 2)]);
        assert_eq!(store.generations(Table::Flow, &keys).await.unwrap(), []);
        assert_eq!(store.generations(Table::Grant, &[]).await.unwrap(), []);
    }

    pub(super) async fn owners_and_pages(dir: &Path, open: Open) {
        let store = open(dir);
        for n in (0..25).rev() {
            store.apply(vec![Write::Insert(record(n, b"x"))]).await.unwrap();
        }
        let numbers = |records: Vec<Record>| records.iter().map(|r| r.key).collect::<Vec<_>>();
        let owned = store.owned(Table::Grant, &key(1)).await.unwrap();
        assert_eq!(numbers(owned), (10..20).map(key).collect::<Vec<_>>());
        assert!(store.owned(Table::Flow, &key(1)).await.unwrap().is_empty());

        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = numbers(store.scan(Table::Grant, after.as_ref(), 7).await.unwrap());
            assert!(page.len() <= 7);
            let Some(last) = page.last() else { break };
            after = Some(*last);
            all.extend(page);
        }
        assert_eq!(all, (0..25).map(key).collect::<Vec<_>>());
    }

    pub(super) async fn the_log_keeps_its_order_and_its_entries(dir: &Path, open: Open) {
        let store = open(dir);
        store.apply(vec![Write::Append(entry("b", 1)), Write::Append(entry("a", 1))]).await.unwrap();
        store.apply(vec![Write::Append(entry("a", 2))]).await.unwrap();
        let again = LogEntry { body: "other".to_owned(), ..entry("a", 1) };
        assert!(matches!(store.apply(vec![Write::Append(again)]).await, Err(StoreError::Conflict)));
        let all = store.log(0, 10).await.unwrap();
        let entries: Vec<_> = all.iter().map(|(_, entry)| entry.clone()).collect();
        assert_eq!(entries, [entry("b", 1), entry("a", 1), entry("a", 2)]);
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(store.log(all[0].0, 1).await.unwrap(), [all[1].clone()]);
        assert!(store.log(all[2].0, 10).await.unwrap().is_empty());
        assert!(store.log(u64::MAX, 10).await.unwrap().is_empty());
        let backwards: Vec<_> = all.iter().rev().cloned().collect();
        assert_eq!(store.newest(u64::MAX, 10).await.unwrap(), backwards);
        assert_eq!(store.newest(all[2].0, 1).await.unwrap(), [all[1].clone()]);
        assert!(store.newest(all[0].0, 10).await.unwrap().is_empty());
    }

    pub(super) async fn prune_removes_what_expired_and_nothing_else(dir: &Path, open: Open) {
        let store = open(dir);
        for (n, expires_at) in [(1, Some(at(100))), (2, Some(at(200))), (3, None)] {
            store.apply(vec![Write::Put(Record { expires_at, ..record(n, b"x") })]).await.unwrap();
        }
        assert_eq!(store.prune(at(100)).await.unwrap(), 0, "it expires at 100, not before");
        assert_eq!(store.prune(at(101)).await.unwrap(), 1);
        assert_eq!(store.prune(at(101)).await.unwrap(), 0);
        let left = store.scan(Table::Grant, None, 10).await.unwrap();
        assert_eq!(left.iter().map(|r| r.key).collect::<Vec<_>>(), [key(2), key(3)]);
    }

    pub(super) async fn everything_is_there_after_reopening(dir: &Path, open: Open) {
        open(dir).apply(vec![Write::Insert(record(1, b"x")), Write::Append(entry("w", 1))]).await.unwrap();
        let store = open(dir);
        assert_eq!(store.get(Table::Grant, &key(1)).await.unwrap().unwrap().sealed, b"x");
        assert_eq!(store.log(0, 10).await.unwrap().len(), 1);
    }

    pub(super) async fn two_stores_on_one_folder_agree(dir: &Path, open: Open) {
        let (one, two) = (open(dir), open(dir));
        for n in 0..20 {
            let (writer, reader) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
            writer.apply(vec![Write::Insert(record(n, b"x"))]).await.unwrap();
            assert!(
                reader.get(Table::Grant, &key(n)).await.unwrap().is_some(),
                "an acknowledged write is seen at once"
            );
        }
    }

    pub(super) async fn racing_replaces_have_one_winner(dir: &Path, open: Open) {
        let stores = [open(dir), open(dir)];
        stores[0].apply(vec![Write::Insert(record(1, b"0"))]).await.unwrap();
        let racers: Vec<_> = (0..20u8)
            .map(|n| {
                let store = Arc::clone(&stores[usize::from(n % 2)]);
                let replace = Write::Replace(Record { generation: 1, ..record(1, &[n]) });
                tokio::spawn(async move { store.apply(vec![replace]).await })
            })
            .collect();
        let mut winners = 0;
        for racer in racers {
            match racer.await.unwrap() {
                Ok(()) => winners += 1,
                Err(StoreError::Conflict) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(winners, 1);
        assert_eq!(stores[0].get(Table::Grant, &key(1)).await.unwrap().unwrap().generation, 2);
    }

    pub(super) async fn a_lease_is_exclusive_and_is_freed_on_drop(dir: &Path, open: Open) {
        let (one, two) = (open(dir), open(dir));
        let held = one.lease(&key(1), Duration::ZERO).await.unwrap().expect("nobody has it");
        for store in [&one, &two] {
            assert!(store.lease(&key(1), Duration::from_millis(60)).await.unwrap().is_none());
            assert!(store.lease(&key(2), Duration::ZERO).await.unwrap().is_some(), "another name is free");
        }
        let waiting = tokio::spawn(async move { two.lease(&key(1), Duration::from_secs(30)).await });
        drop(held);
        assert!(waiting.await.unwrap().unwrap().is_some());
        // Whoever frees it may be on the way to a server.
        assert!(one.lease(&key(1), Duration::from_secs(30)).await.unwrap().is_some());
    }

    pub(super) async fn leases_never_overlap(dir: &Path, open: Open) {
        use std::sync::atomic::{AtomicU32, Ordering};
        let stores = [open(dir), open(dir)];
        let (inside, turns) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let store = Arc::clone(&stores[n % 2]);
                let (inside, turns) = (Arc::clone(&inside), Arc::clone(&turns));
                tokio::spawn(async move {
                    for _ in 0..20 {
                        let held = store.lease(&key(1), Duration::from_secs(60)).await.unwrap().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold one lease");
                        tokio::task::yield_now().await;
                        turns.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(held);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(turns.load(Ordering::SeqCst), 160);
    }

    pub(super) async fn what_is_too_large_is_refused_alone(dir: &Path, open: Open) {
        let store = open(dir);
        let huge = store.apply(vec![Write::Put(record(1, &vec![0; (1 << 20) + 1]))]);
        let zero = store.apply(vec![Write::Append(entry("w", 0))]);
        let fine = store.apply(vec![Write::Put(record(2, &vec![0; 1 << 20]))]);
        let (huge, zero, fine) = tokio::join!(huge, zero, fine);
        assert!(matches!(huge, Err(StoreError::Unavailable(_))));
        assert!(matches!(zero, Err(StoreError::Unavailable(_))), "entries are numbered from 1");
        fine.unwrap();
        assert_eq!(store.get(Table::Grant, &key(1)).await.unwrap(), None);
    }
}

// SQLite alone: files, formats, processes.

fn opening(dir: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(&dir.join("data"))
}

fn database(dir: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(dir.join("data/obo.db")).unwrap()
}

fn unusable(dir: &Path) -> String {
    match opening(dir) {
        Err(StoreError::Unusable(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    opening(dir.path()).unwrap();
    database(dir.path()).pragma_update(None, "user_version", 2).unwrap();
    assert!(unusable(dir.path()).contains("written by a newer obo (format 2; this one reads format 1)"));
    let version: i32 = database(dir.path()).pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 2);
}

#[test]
fn a_file_that_is_not_a_vault_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    opening(dir.path()).unwrap();
    database(dir.path()).pragma_update(None, "application_id", 7).unwrap();
    assert!(unusable(dir.path()).contains("is not a vault of obo"));

    let dir = tempfile::tempdir().unwrap();
    opening(dir.path()).unwrap();
    for beside in ["obo.db-wal", "obo.db-shm"] {
        let _ = std::fs::remove_file(dir.path().join("data").join(beside));
    }
    let mut file = std::fs::OpenOptions::new().write(true).open(dir.path().join("data/obo.db")).unwrap();
    file.write_all(&[b'x'; 4096]).unwrap();
    drop(file);
    assert!(unusable(dir.path()).contains("restore a backup"));
}

#[cfg(unix)]
#[tokio::test]
async fn no_file_of_the_vault_can_be_read_by_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let store = opening(dir.path()).unwrap();
    store.apply(vec![Write::Insert(record(1, b"x"))]).await.unwrap();
    let _lease = store.lease(&key(1), Duration::ZERO).await.unwrap().unwrap();
    let mut seen = 0;
    for folder in ["data", "data/locks"] {
        for file in std::fs::read_dir(dir.path().join(folder)).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.path());
            seen += 1;
        }
    }
    assert!(seen >= 5, "database, -wal, -shm, locks, a lease: {seen}");
    std::fs::set_permissions(dir.path().join("data/obo.db-wal"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(unusable(dir.path()).contains("chmod 600"));
}

#[tokio::test]
async fn the_log_cannot_be_changed_through_the_database_either() {
    let dir = tempfile::tempdir().unwrap();
    opening(dir.path()).unwrap().apply(vec![Write::Append(entry("w", 1))]).await.unwrap();
    for statement in ["UPDATE log SET body = ''", "DELETE FROM log"] {
        assert!(database(dir.path()).execute_batch(statement).unwrap_err().to_string().contains("append-only"));
    }
}

#[test]
fn many_processes_may_make_the_same_folder_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..8).map(|n| child(dir.path(), "write-once", n).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(count(dir.path()), 8);
}

/// Writers are killed while they write; whatever they were told is durable must be there.
#[test]
fn no_acknowledged_write_is_lost_to_kill_9() {
    const ROUNDS: u32 = 12;
    const WRITERS: u32 = 3;
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let mut child = child(dir.path(), "write-for-ever", round * WRITERS + n).spawn().unwrap();
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                std::thread::spawn(move || {
                    // The harness prints around the child's own lines.
                    let mut numbers = lines.by_ref().map_while(Result::ok).filter_map(|line| line.parse::<u32>().ok());
                    // Another count every time, so that the kill meets another moment.
                    let mut seen: Vec<u32> = numbers.by_ref().take(1 + (7 * round + 5 * n) as usize % 40).collect();
                    child.kill().unwrap();
                    child.wait().unwrap();
                    seen.extend(numbers);
                    seen
                })
            })
            .collect();
        for writer in writers {
            acknowledged.extend(writer.join().unwrap());
        }
    }
    assert!(acknowledged.len() >= (ROUNDS * WRITERS) as usize, "{}", acknowledged.len());

    let db = database(dir.path());
    let integrity: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|number| {
            !db.query_row("SELECT count(*) = 1 FROM records WHERE key = ?1", [key(**number)], |row| {
                row.get::<_, bool>(0)
            })
            .unwrap()
        })
        .collect();
    assert!(lost.is_empty(), "lost {} of {}: {lost:?}", lost.len(), acknowledged.len());
}

/// The disk fills up (a file size limit stands in for it): the write fails and says so, earlier ones stay.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    opening(dir.path()).unwrap();
    let direct = child(dir.path(), "fill", 0);
    let mut limited = Command::new("sh");
    // Ignoring SIGXFSZ turns it into the error EFBIG. The unit of `ulimit -f` is 512 bytes or 1 KiB, by shell.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "sh"]);
    limited.arg(direct.get_program()).args(direct.get_args());
    limited.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged = text.lines().filter_map(|line| line.parse::<u32>().ok()).count();
    assert!(acknowledged > 0 && text.contains("refused: the store cannot be written"), "{text}");

    assert_eq!(count(dir.path()), acknowledged);
    let integrity: String = database(dir.path()).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
}

/// A lease dies with its process.
#[test]
fn a_killed_holder_frees_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = child(dir.path(), "hold-lease", 0).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "held"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = opening(dir.path()).unwrap();
    assert!(runtime.block_on(store.lease(&key(1), Duration::ZERO)).unwrap().is_none());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(runtime.block_on(store.lease(&key(1), Duration::from_secs(30))).unwrap().is_some());
}

fn count(dir: &Path) -> usize {
    database(dir).query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0)).unwrap() as usize
}

const CHILD: &str = "OBO_TEST_STORE_CHILD";

/// This very binary, running [`child_process`] alone.
fn child(dir: &Path, job: &str, number: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "contract_store::child_process", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("{job} {number} {}", dir.display()));
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Not a test of its own: what the processes started by [`child`] do.
#[tokio::test]
async fn child_process() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let mut parts = job.splitn(3, ' ');
    let (job, number, dir) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let number: u32 = number.parse().unwrap();
    let store = opening(Path::new(dir)).unwrap();
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{line}").unwrap();
        out.flush().unwrap();
    };
    match job {
        "write-once" => store.apply(vec![Write::Insert(record(number, b"x"))]).await.unwrap(),
        "write-for-ever" => {
            for n in number * 100_000.. {
                store.apply(vec![Write::Insert(record(n, &[7; 700]))]).await.unwrap();
                say(n.to_string());
            }
        }
        "fill" => {
            for n in 0..100_000 {
                match store.apply(vec![Write::Insert(record(n, &[7; 50_000]))]).await {
                    Ok(()) => say(n.to_string()),
                    Err(error) => {
                        say(format!("refused: {error}"));
                        // It is still there, and goes on reading.
                        assert!(store.get(Table::Grant, &key(0)).await.unwrap().is_some());
                        return;
                    }
                }
            }
            panic!("the disk never filled up");
        }
        "write-to-keyring" => {
            let store = over_the_os(Path::new(dir));
            for n in number * 100_000.. {
                // New ones and old ones.
                store.apply(vec![Write::Insert(record(n, &[7; 700]))]).await.unwrap();
                store.apply(vec![Write::Replace(Record { generation: 1, ..record(n, &[8; 700]) })]).await.unwrap();
                say(n.to_string());
            }
        }
        "read-from-keyring" => {
            let store = over_the_os(Path::new(dir));
            store.prune(at(0)).await.unwrap();
            for record in store.scan(Table::Grant, None, 1000).await.unwrap() {
                assert!([[7; 700], [8; 700]].iter().any(|whole| whole == record.sealed.as_slice()));
                say(u32::from_be_bytes(record.key[..4].try_into().unwrap()).to_string());
            }
        }
        "hold-lease" => {
            let _held = store.lease(&key(1), Duration::ZERO).await.unwrap().unwrap();
            say("held".to_owned());
            std::future::pending::<()>().await;
        }
        other => panic!("{other}"),
    }
}

/// The contract, over gnome-keyring.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_os_keyring_keeps_the_contract() {
    use crate::support::desktop::{Desktop, Mood, is_here};
    if !is_here() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let desktop = Desktop::start(home.path(), Mood::Unlocked).await;
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["contract_store::os_keyring::", "--ignored", "--test-threads=4"]);
    let output = desktop.inside(&mut command).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("15 passed; 0 failed"), "{text}");
}

/// Writers are killed while they write to the keyring. Whatever they were told is durable is there, and nothing else.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_os_keyring_loses_nothing_to_kill_9() {
    use crate::support::desktop::{Desktop, Mood, is_here};
    use tokio::io::AsyncBufReadExt as _;
    if !is_here() {
        return;
    }
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let desktop = Desktop::start(home.path(), Mood::Unlocked).await;
    let run = async |job: &str, number: u32, lines: usize| {
        let mut command = tokio::process::Command::from(child(dir.path(), job, number));
        let mut child = desktop.inside(&mut command).kill_on_drop(true).spawn().unwrap();
        let mut out = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen: Vec<u32> = Vec::new();
        while let Some(line) = out.next_line().await.unwrap() {
            seen.extend(line.parse::<u32>().ok());
            if seen.len() == lines {
                child.start_kill().unwrap();
            }
        }
        child.wait().await.unwrap();
        seen
    };
    let mut acknowledged = Vec::new();
    for round in 1..=12 {
        acknowledged.extend(run("write-to-keyring", round, 1 + round as usize % 4).await);
    }
    assert!(acknowledged.len() >= 12, "{acknowledged:?}");
    // Cleans up, and says what it can read.
    let found = run("read-from-keyring", 0, usize::MAX).await;
    let lost: Vec<_> = acknowledged.iter().filter(|number| !found.contains(number)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(desktop.entries().await.len(), found.len() + 1, "nothing but them, and the mark");
}
