//! A writer that dies at each of its steps, and keyrings that lose, hide or refuse.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicI64;

use tokio::sync::oneshot;

use super::*;
use crate::os_keyring::{Ring, RingError};
use crate::secret::Secret;

/// Lets a number of steps through; then the process is dead. There is a step before each thing and one after it.
#[derive(Default)]
struct Fuse(Option<AtomicI64>);

impl Fuse {
    fn of(steps: i64) -> Arc<Self> {
        Arc::new(Self(Some(AtomicI64::new(steps))))
    }

    fn step(&self) -> Result<(), StoreError> {
        match &self.0 {
            Some(left) if left.fetch_sub(1, Ordering::SeqCst) <= 0 => {
                Err(StoreError::Unavailable("the process has died".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn burnt(&self) -> bool {
        self.0.as_ref().is_some_and(|left| left.load(Ordering::SeqCst) < 0)
    }
}

/// A keyring in memory, which several processes see.
#[derive(Default)]
struct Memory {
    entries: Mutex<BTreeMap<String, String>>,
    most: Mutex<Option<usize>>,
}

impl Memory {
    fn names(&self) -> Vec<String> {
        self.entries.lock().unwrap().keys().cloned().collect()
    }
}

/// One process's way to it.
struct Way(Arc<Memory>, Arc<Fuse>);

impl Way {
    fn through<T>(&self, act: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> Result<T, RingError> {
        let dead = |_| RingError("the process has died".to_owned());
        self.1.step().map_err(dead)?;
        let done = act(&mut self.0.entries.lock().unwrap());
        self.1.step().map_err(dead)?;
        Ok(done)
    }
}

impl Ring for Way {
    fn get(&self, user: &str) -> Result<Option<Secret>, RingError> {
        self.through(|entries| entries.get(user).map(Secret::new))
    }

    fn set(&self, user: &str, text: &Secret) -> Result<(), RingError> {
        let most = self.0.most.lock().unwrap().unwrap_or(usize::MAX);
        if text.expose().len() > most {
            return Err(RingError(format!("it takes no more than {most} bytes in one entry")));
        }
        self.through(|entries| drop(entries.insert(user.to_owned(), text.expose().to_owned())))
    }

    fn delete(&self, user: &str) -> Result<(), RingError> {
        self.through(|entries| drop(entries.remove(user)))
    }
}

/// One process's way to the file.
struct Rows {
    inner: Arc<dyn Store>,
    fuse: Arc<Fuse>,
    /// It has every lease, as a process believes that was stopped for too long.
    lawless: bool,
    /// Stops before a transaction that removes something, says so, and waits until the sender is dropped.
    stop: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
}

impl Rows {
    async fn step<T>(&self, act: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.fuse.step()?;
        let done = act.await?;
        self.fuse.step()?;
        Ok(done)
    }
}

#[async_trait::async_trait]
impl Store for Rows {
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
        if writes.iter().any(|write| matches!(write, Write::Delete { .. })) {
            let stop = self.stop.lock().unwrap().take();
            if let Some((says, go)) = stop {
                says.send(()).unwrap();
                let _ = go.await;
            }
        }
        self.step(self.inner.apply(writes)).await
    }
    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.inner.log(after, limit).await
    }
    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.inner.newest(before, limit).await
    }
    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.inner.prune(now).await
    }
    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        if self.lawless {
            return Ok(Some(Lease::new(())));
        }
        self.inner.lease(name, wait).await
    }
}

struct Bench {
    dir: tempfile::TempDir,
    file: Arc<dyn Store>,
    ring: Arc<Memory>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = Arc::new(SqliteStore::open(&dir.path().join("data")).unwrap());
        Self { dir, file, ring: Arc::default() }
    }

    /// A process.
    fn process(&self) -> KeyringStore {
        self.dying(Arc::default())
    }

    fn dying(&self, fuse: Arc<Fuse>) -> KeyringStore {
        self.over(Rows { inner: Arc::clone(&self.file), fuse, lawless: false, stop: Mutex::default() })
    }

    fn over(&self, rows: Rows) -> KeyringStore {
        let fuse = Arc::clone(&rows.fuse);
        let mut keyring = Keyring::new(Arc::new(Way(Arc::clone(&self.ring), fuse)));
        keyring.deadline = Duration::from_secs(60);
        KeyringStore::over(Arc::new(rows), keyring)
    }

    /// What the keyring has that no record leads to, and nothing is noted of.
    async fn stray(&self) -> Vec<String> {
        self.process().prune(at(0)).await.unwrap();
        let rows = self.file.scan(Table::Grant, None, 100).await.unwrap();
        let notes = self.file.scan(Table::KeyringEntry, None, 100).await.unwrap();
        let mark = notes.iter().find(|note| note.key == MARK).map(|mark| mark.sealed.as_slice().try_into().unwrap());
        assert_eq!(notes.len(), usize::from(mark.is_some()), "everything noted is removed");
        let known: Vec<_> = rows.iter().filter_map(name_in).chain(mark).map(|name| entry_of(&name)).collect();
        self.ring.names().into_iter().filter(|name| !known.contains(name)).collect()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn grant(number: u8, generation: u64, body: &[u8]) -> Record {
    let key = [number; 32];
    Record { table: Table::Grant, key, owner: [9; 32], generation, expires_at: None, sealed: body.to_vec() }
}

async fn body(store: &dyn Store, number: u8) -> Option<Vec<u8>> {
    store.get(Table::Grant, &[number; 32]).await.unwrap().map(|record| record.sealed)
}

#[tokio::test]
async fn bodies_are_in_the_keyring_and_nowhere_else() {
    let bench = Bench::new();
    let store = bench.process();
    let marker = b"a sealed body that can be searched for";
    store.apply(vec![Write::Insert(grant(1, 0, marker))]).await.unwrap();
    store.apply(vec![Write::Replace(grant(1, 1, &[&marker[..], b"!"].concat()))]).await.unwrap();
    assert_eq!(bench.ring.names().len(), 2, "its body, and the mark");
    assert_eq!(body(&*bench.file, 1).await.unwrap().len(), ELSEWHERE.len() + 32);
    for file in std::fs::read_dir(bench.dir.path().join("data")).unwrap() {
        let path = file.unwrap().path();
        let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        assert!(!bytes.windows(marker.len()).any(|window| window == marker), "{path:?}");
    }
    store.apply(vec![Write::Delete { table: Table::Grant, key: [1; 32], generation: 2 }]).await.unwrap();
    assert_eq!(bench.ring.names().len(), 1, "the mark");
    assert!(store.scan(Table::KeyringEntry, None, 9).await.unwrap().is_empty(), "notes are nobody else's");
}

/// Whatever is done, and wherever the process dies: the old or the new, whole; and nothing stays in the keyring.
#[tokio::test]
async fn a_writer_that_dies_leaves_the_old_or_the_new() {
    let delete = Write::Delete { table: Table::Grant, key: [1; 32], generation: 1 };
    let reseal = Write::Reseal { table: Table::Grant, key: [1; 32], before: b"old".into(), sealed: b"new".into() };
    for (write, new) in [
        (Write::Replace(grant(1, 1, b"new")), Some(&b"new"[..])),
        (Write::Put(grant(1, 0, b"new")), Some(b"new")),
        (reseal, Some(b"new")),
        (delete, None),
    ] {
        let mut deaths = 0;
        for steps in 0.. {
            let bench = Bench::new();
            bench
                .process()
                .apply(vec![Write::Insert(grant(1, 0, b"old")), Write::Insert(grant(2, 0, b"x"))])
                .await
                .unwrap();
            let fuse = Fuse::of(steps);
            let done = bench.dying(Arc::clone(&fuse)).apply(vec![write.clone()]).await;
            let found = body(&bench.process(), 1).await;
            assert!(
                found.as_deref() == new || (found.as_deref() == Some(b"old") && done.is_err()),
                "{steps}: {found:?}"
            );
            assert_eq!(body(&bench.process(), 2).await.unwrap(), b"x");
            assert_eq!(bench.stray().await, [""; 0], "{write:?} after {steps} steps");
            assert_eq!(body(&bench.process(), 1).await, found, "removing what is noted changes nothing");
            if !fuse.burnt() {
                done.unwrap();
                break;
            }
            deaths += 1;
        }
        assert!(deaths > 10, "{deaths}");
    }
    // The very first body brings the mark.
    for steps in 0.. {
        let (bench, fuse) = (Bench::new(), Fuse::of(steps));
        let done = bench.dying(Arc::clone(&fuse)).apply(vec![Write::Insert(grant(1, 0, b"new"))]).await;
        let found = body(&bench.process(), 1).await;
        assert!(found.as_deref() == Some(b"new") || (found.is_none() && done.is_err()), "{steps}");
        assert_eq!(bench.stray().await, [""; 0], "after {steps} steps");
        if !fuse.burnt() {
            break;
        }
    }
}

/// A process that was stopped between writing a body and committing its name, for so long that another, which may die
/// over it, cleans up behind it.
#[tokio::test]
async fn a_writer_that_lost_its_turn_commits_nothing() {
    let (mut committed, mut refused) = (0, 0);
    for steps in 0.. {
        let bench = Bench::new();
        bench.process().apply(vec![Write::Insert(grant(1, 0, b"old"))]).await.unwrap();
        let (says, stopped) = oneshot::channel();
        let (go, wait) = oneshot::channel();
        let stop = Mutex::new(Some((says, wait)));
        let rows = Rows { inner: Arc::clone(&bench.file), fuse: Arc::default(), lawless: true, stop };
        let slow = bench.over(rows);
        let writing = tokio::spawn(async move { slow.apply(vec![Write::Replace(grant(1, 1, b"late"))]).await });
        stopped.await.unwrap();
        let fuse = Fuse::of(steps);
        let _ = bench.dying(Arc::clone(&fuse)).prune(at(0)).await;
        drop(go);
        match writing.await.unwrap() {
            Ok(()) => {
                committed += 1;
                assert_eq!(body(&bench.process(), 1).await.unwrap(), b"late", "{steps}");
            }
            Err(error) => {
                refused += 1;
                assert!(matches!(error, StoreError::Conflict), "{error}");
                assert_eq!(body(&bench.process(), 1).await.unwrap(), b"old", "{steps}");
            }
        }
        assert_eq!(bench.stray().await, [""; 0], "{steps}");
        if !fuse.burnt() {
            break;
        }
    }
    assert!(committed > 0 && refused > 2, "{committed} {refused}");
}

#[tokio::test]
async fn a_keyring_that_hides_everything_is_told_from_one_that_lost_something() {
    let bench = Bench::new();
    bench.process().apply(vec![Write::Insert(grant(1, 0, b"a")), Write::Insert(grant(2, 0, b"b"))]).await.unwrap();
    let all = bench.ring.entries.lock().unwrap().clone();

    bench.ring.entries.lock().unwrap().clear();
    let locked = bench.process();
    for result in [
        locked.get(Table::Grant, &[1; 32]).await.map(drop),
        locked.owned(Table::Grant, &[9; 32]).await.map(drop),
        locked.scan(Table::Grant, None, 10).await.map(drop),
        locked.apply(vec![Write::Insert(grant(1, 0, b"another"))]).await,
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("unlock it"), "{error}");
    }
    *bench.ring.entries.lock().unwrap() = all;
    assert_eq!(body(&bench.process(), 1).await.unwrap(), b"a", "unlocked, it is as it was");

    let row = bench.file.get(Table::Grant, &[1; 32]).await.unwrap().unwrap();
    bench.ring.entries.lock().unwrap().remove(&entry_of(&name_in(&row).unwrap())).unwrap();
    let store = bench.process();
    assert_eq!(body(&store, 1).await, None);
    assert_eq!(store.scan(Table::Grant, None, 1).await.unwrap()[0].sealed, b"b", "no page is empty before the end");
    assert_eq!(store.held().await.unwrap(), Held { in_keyring: 1, in_file: 0, lost: 1 });
    // Its person connects again.
    store.apply(vec![Write::Insert(grant(1, 0, b"again"))]).await.unwrap();
    assert_eq!(body(&store, 1).await.unwrap(), b"again");
    assert_eq!(store.held().await.unwrap(), Held { in_keyring: 2, in_file: 0, lost: 0 });
    assert_eq!(bench.stray().await, [""; 0]);
}

#[tokio::test]
async fn a_keyring_of_small_entries_is_refused_before_a_consent() {
    let bench = Bench::new();
    // Windows takes 2560 bytes.
    *bench.ring.most.lock().unwrap() = Some(2560);
    let flow = Record { table: Table::Flow, ..grant(1, 0, b"a flow") };
    let refused = bench.process().apply(vec![Write::Insert(flow.clone())]).await.unwrap_err().to_string();
    assert!(refused.contains("no more than 2560 bytes") && refused.contains("store = \"file\""), "{refused}");
    assert_eq!(bench.file.get(Table::Flow, &[1; 32]).await.unwrap(), None, "there is no link to open");
    assert_eq!(bench.ring.names(), [""; 0]);
    *bench.ring.most.lock().unwrap() = None;
    let store = bench.process();
    store.apply(vec![Write::Insert(flow)]).await.unwrap();
    assert_eq!(bench.ring.names(), [""; 0], "the probe is gone");
    // One that changes its mind afterwards.
    *bench.ring.most.lock().unwrap() = Some(10);
    store.apply(vec![Write::Insert(grant(2, 0, &[7; 100]))]).await.unwrap_err();
    assert_eq!(bench.file.get(Table::Grant, &[2; 32]).await.unwrap(), None);
    assert_eq!(bench.stray().await, [""; 0]);
}

#[tokio::test]
async fn what_was_in_the_file_moves_in_and_a_backup_has_everything() {
    let bench = Bench::new();
    bench.file.apply(vec![Write::Insert(grant(1, 0, b"of the file"))]).await.unwrap();
    let store = bench.process();
    assert_eq!(body(&store, 1).await.unwrap(), b"of the file");
    assert_eq!(store.held().await.unwrap(), Held { in_keyring: 0, in_file: 1, lost: 0 });
    let data = bench.dir.path().join("data");
    assert!(!SqliteStore::open(&data).unwrap().bodies_elsewhere());
    store.prune(at(0)).await.unwrap();
    assert_eq!(store.held().await.unwrap(), Held { in_keyring: 1, in_file: 0, lost: 0 });
    assert_eq!(store.get(Table::Grant, &[1; 32]).await.unwrap().unwrap(), grant(1, 1, b"of the file"));
    assert!(SqliteStore::open(&data).unwrap().bodies_elsewhere());

    let elsewhere = bench.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    store.backup(&data, &elsewhere.join("obo.db")).await.unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&elsewhere, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let copy = SqliteStore::open(&elsewhere).unwrap();
    assert!(!copy.bodies_elsewhere());
    assert_eq!(copy.get(Table::Grant, &[1; 32]).await.unwrap().unwrap(), grant(1, 1, b"of the file"));
    assert_eq!(bench.stray().await, [""; 0]);
}

#[tokio::test]
async fn grants_that_expire_take_their_bodies_along() {
    let bench = Bench::new();
    let store = bench.process();
    let expiring = Record { expires_at: Some(at(100)), ..grant(1, 0, b"a") };
    store.apply(vec![Write::Insert(expiring), Write::Insert(grant(2, 0, b"b"))]).await.unwrap();
    assert_eq!(store.prune(at(101)).await.unwrap(), 1);
    assert_eq!((bench.ring.names().len(), bench.stray().await.len()), (2, 0));
}
