//! Answers that the store does not take, refreshes that were interrupted, and tokens that came too late.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;

use super::super::safe::Spool;
use super::super::spool::{Entries, Folder};
use super::*;

/// A disk that is full when a test says so.
pub(super) struct Disk {
    folder: Folder,
    pub(super) full: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Entries for Disk {
    async fn keep(&self, name: String, bytes: Vec<u8>) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.folder.keep(name, bytes).await
    }
    async fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.folder.read(name).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.folder.remove(name).await
    }
    async fn names(&self) -> io::Result<Vec<String>> {
        self.folder.names().await
    }
}

impl Bench {
    /// As a process with a spool, over a store.
    pub(super) fn safe_with_spool(&self, store: Arc<dyn Store>, journal: Journal) -> (Arc<Safe>, Arc<AtomicBool>) {
        let full = Arc::new(AtomicBool::new(false));
        let mut safe = Safe::new(Arc::clone(&store), open_keys(store, self.dir.path()), self.clock.clone());
        safe.pace = PACE;
        let folder = Folder::at(self.dir.path().join("spool"));
        safe.spool = Some(Spool { entries: Box::new(Disk { folder, full: Arc::clone(&full) }), journal });
        (Arc::new(safe), full)
    }

    fn spooled(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("spool")).map_or(0, Iterator::count)
    }

    pub(super) async fn take_up(&self, safe: &Arc<Safe>) {
        let upstream = self.upstream();
        safe.take_up(&|_| Some(upstream.clone())).await;
        safe.drain(LIFE).await;
    }

    async fn marks(&self, safe: &Safe) -> usize {
        safe.store.scan(Table::Refreshing, None, 100).await.unwrap().len()
    }

    /// Refreshes until the provider has rotated and the store has failed to take it, and then lets the process die.
    /// Whoever is not told otherwise has lost the only copy.
    fn dies_unwritten(&self, journal: Journal) -> Grant {
        let runtime = runtime();
        let grant = runtime.block_on(async {
            let store = Flaky::over(open_store(self.dir.path()));
            let (safe, _) = self.safe_with_spool(Arc::clone(&store) as Arc<dyn Store>, journal);
            let grant = self.connect(&safe).await;
            self.clock.advance(LIFE);
            self.provider.next(&[Fault::Slow]);
            let call = self.token(&safe, &grant);
            let trouble = async {
                while self.provider.requests() == 0 {
                    tokio::task::yield_now().await;
                }
                *store.failing_writes.lock().unwrap() = u32::MAX;
                self.provider.gate.add_permits(1);
            };
            assert_eq!(tokio::join!(call, trouble).0.unwrap(), "access-0-2", "the caller has the token");
            assert_eq!(self.head(&safe, &grant).await.access_token.expose(), "access-0-1");
            grant
        });
        drop(runtime);
        assert_eq!(self.spooled(), 1);
        grant
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn an_answer_outlives_a_process_whose_store_never_took_it() {
    for journal in [Journal::WhenLate, Journal::First] {
        let bench = Bench::new(Rotation::Strict);
        let grant = bench.dies_unwritten(journal);
        let file = std::fs::read_dir(bench.dir.path().join("spool")).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(file).unwrap();
        for word in ["refresh-", "access-", "alice", "fake"] {
            assert!(!bytes.windows(word.len()).any(|window| window == word.as_bytes()), "{word} stands in it");
        }
        runtime().block_on(async {
            let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), journal);
            bench.take_up(&safe).await;
            assert_eq!((bench.spooled(), bench.marks(&safe).await), (0, 0));
            assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
            bench.clock.advance(LIFE);
            assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-3");
            assert_eq!((bench.provider.requests(), bench.provider.lost()), (2, 0), "nothing was asked for twice");
        });
    }
}

/// The next call comes before anybody looked into the spool.
#[test]
fn whoever_refreshes_next_writes_what_was_left_first() {
    let bench = Bench::new(Rotation::Strict);
    let grant = bench.dies_unwritten(Journal::WhenLate);
    runtime().block_on(async {
        let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
        assert_eq!((bench.provider.requests(), bench.provider.lost(), bench.spooled()), (1, 0, 0));
    });
}

#[tokio::test]
async fn the_spool_is_used_when_it_is_needed_and_emptied() {
    for (journal, failing, kept) in
        [(Journal::WhenLate, 0, false), (Journal::WhenLate, 1, true), (Journal::First, 0, true)]
    {
        let bench = Bench::new(Rotation::Strict);
        let store = Flaky::over(open_store(bench.dir.path()));
        let (safe, _) = bench.safe_with_spool(Arc::clone(&store) as Arc<dyn Store>, journal);
        let grant = bench.connect(&safe).await;
        bench.clock.advance(LIFE);
        bench.provider.next(&[Fault::Slow]);
        let call = bench.token(&safe, &grant);
        let trouble = async {
            while bench.provider.requests() == 0 {
                tokio::task::yield_now().await;
            }
            *store.failing_writes.lock().unwrap() = failing;
            bench.provider.gate.add_permits(1);
        };
        assert_eq!(tokio::join!(call, trouble).0.unwrap(), "access-0-2");
        while !lock(&safe.flights).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.dir.path().join("spool").exists(), kept, "{journal:?} {failing}");
        assert_eq!(bench.spooled(), 0);
        assert_eq!(bench.head(&safe, &grant).await.access_token.expose(), "access-0-2");
    }
}

#[tokio::test]
async fn a_store_that_hangs_is_late_and_the_caller_does_not_wait_for_it() {
    let bench = Bench::new(Rotation::Strict);
    let store = Hanging::over(open_store(bench.dir.path()));
    let (safe, _) = bench.safe_with_spool(Arc::clone(&store) as Arc<dyn Store>, Journal::WhenLate);
    let mut safe = Arc::into_inner(safe).unwrap();
    safe.pace.at_once = Duration::ZERO;
    let safe = Arc::new(safe);
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE);
    store.from_now_on.store(2, Ordering::SeqCst);
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
    while bench.spooled() == 0 {
        tokio::task::yield_now().await;
    }
    store.go.add_permits(100);
    safe.drain(LIFE).await;
    assert_eq!((bench.spooled(), bench.head(&safe, &grant).await.generation), (0, 2));
}

/// A store whose writes hang from the n-th on, until there are permits.
struct Hanging {
    inner: SqliteStore,
    /// How many writes more go through, and one.
    from_now_on: AtomicU32,
    go: Semaphore,
}

impl Hanging {
    fn over(inner: SqliteStore) -> Arc<Self> {
        Arc::new(Self { inner, from_now_on: AtomicU32::new(u32::MAX), go: Semaphore::new(0) })
    }
}

#[async_trait::async_trait]
impl Store for Hanging {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.inner.get(table, key).await
    }
    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        self.inner.generations(table, keys).await
    }
    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        self.inner.owned(table, owner).await
    }
    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.inner.scan(table, after, limit).await
    }
    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let left = self.from_now_on.load(Ordering::SeqCst);
        if left != u32::MAX {
            self.from_now_on.store(left.saturating_sub(1), Ordering::SeqCst);
            if left <= 1 {
                self.go.acquire().await.unwrap().forget();
            }
        }
        self.inner.apply(writes).await
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
        self.inner.lease(name, wait).await
    }
}

/// The process is told to end while neither store nor disk takes the answer: it waits for one of them.
#[tokio::test]
async fn a_drain_ends_when_the_answer_is_safe_and_not_before() {
    let bench = Bench::new(Rotation::Strict);
    let store = Flaky::over(open_store(bench.dir.path()));
    let (safe, full) = bench.safe_with_spool(Arc::clone(&store) as Arc<dyn Store>, Journal::WhenLate);
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE);
    bench.provider.next(&[Fault::Slow]);
    let call = bench.token(&safe, &grant);
    let trouble = async {
        while bench.provider.requests() == 0 {
            tokio::task::yield_now().await;
        }
        full.store(true, Ordering::SeqCst);
        *store.failing_writes.lock().unwrap() = u32::MAX;
        bench.provider.gate.add_permits(1);
    };
    assert_eq!(tokio::join!(call, trouble).0.unwrap(), "access-0-2");
    let mut draining = Box::pin(safe.drain(LIFE));
    // Some tries later it is still not safe.
    let tried = *store.failing_writes.lock().unwrap();
    while tried - *store.failing_writes.lock().unwrap() < 5 {
        assert!(futures::poll!(draining.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    full.store(false, Ordering::SeqCst);
    draining.await;
    assert_eq!(bench.spooled(), 1);
    assert_eq!(bench.head(&safe, &grant).await.access_token.expose(), "access-0-1", "the store still does not work");
    *store.failing_writes.lock().unwrap() = 0;
    bench.take_up(&safe).await;
    assert_eq!((bench.spooled(), bench.token(&safe, &grant).await.unwrap().as_str()), (0, "access-0-2"));
}

/// Two processes believe that the grant is theirs: the first was stopped for longer than a lease.
#[test]
fn an_answer_that_came_too_late_is_kept_and_tried_when_the_others_are_refused() {
    let bench = Bench::new(Rotation::Grace);
    // Kept by the first process, whose store never took it: access-0-2 with refresh-0-2.
    let grant = bench.dies_unwritten(Journal::WhenLate);
    runtime().block_on(async {
        // The second does not see the folder of the first, as a replica on another machine.
        let second = bench.safe();
        assert_eq!(bench.token(&second, &grant).await.unwrap(), "access-0-3");
        let (first, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        bench.take_up(&first).await;
        assert_eq!(bench.spooled(), 0);
        let head = bench.head(&first, &grant).await;
        let kept: Vec<&str> = head.candidates.iter().map(|c| c.refresh_token.expose()).collect();
        assert_eq!((head.refresh_token.as_ref().unwrap().expose(), kept), ("refresh-0-3", vec!["refresh-0-2"]));

        // The provider takes the other one for the last: refresh-0-3 is refused once.
        bench.provider.state().refused.insert("refresh-0-3".to_owned());
        bench.clock.advance(LIFE);
        assert_eq!(bench.token(&first, &grant).await.unwrap(), "access-0-4");
        let head = bench.head(&first, &grant).await;
        assert_eq!((head.status, head.refresh_token.unwrap().expose()), (GrantStatus::Active, "refresh-0-4"));
        assert_eq!(bench.provider.lost(), 0);
        bench.clock.advance(LIFE);
        assert_eq!(bench.token(&first, &grant).await.unwrap(), "access-0-5");
    });
}

#[tokio::test]
async fn candidates_are_few_are_not_deleted_by_a_refusal_and_end_with_a_new_consent() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    let keys = safe.keys.open().await.unwrap();
    let key = safe::key_of(&keys, &grant.person, &grant.provider, &grant.account.key);
    let head = bench.head(&safe, &grant).await;
    let late = |number: u32| {
        let mut next = head.clone();
        next.access_token = Secret::new(format!("access-0-{number}"));
        next.refresh_token = Some(Secret::new(format!("refresh-0-{number}")));
        head::Answered { next, spent: Secret::new("refresh-0-0") }
    };
    for number in [10, 11, 11, 12, 13] {
        assert_eq!(safe.settle(&keys, &key, &grant.person, &late(number)).await.unwrap(), Settled::Candidate);
    }
    let kept = |head: &head::Head| -> BTreeMap<String, bool> {
        head.candidates.iter().map(|c| (c.refresh_token.expose().to_owned(), c.rejected)).collect()
    };
    let names = |rejected| [11, 12, 13].map(|number| (format!("refresh-0-{number}"), rejected)).into();
    assert_eq!(kept(&bench.head(&safe, &grant).await), names(false));

    bench.provider.state().families.get_mut(&0).unwrap().dead = true;
    bench.clock.advance(LIFE);
    assert!(needs_consent(bench.token(&safe, &grant).await));
    assert_eq!(bench.provider.requests(), 4, "the newest one, and then each of the others once");
    let ended = bench.head(&safe, &grant).await;
    assert_eq!((ended.status, kept(&ended)), (GrantStatus::NeedsConsent, names(true)), "INV-9");

    // What was given for an earlier consent is not for the new one.
    bench.clock.advance(Duration::from_secs(1));
    let anew = bench.connect(&safe).await;
    assert!(bench.head(&safe, &anew).await.candidates.is_empty());
    assert_eq!(safe.settle(&keys, &key, &grant.person, &late(14)).await.unwrap(), Settled::Superseded);
}

/// The tokens that are revoked are those of the answer, not those that the store knows.
#[test]
fn disconnecting_ends_what_was_answered_and_not_written() {
    let bench = Bench::new(Rotation::Strict);
    let grant = bench.dies_unwritten(Journal::WhenLate);
    runtime().block_on(async {
        let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        safe.disconnect(&grant, Some(bench.upstream()), Keep::Nothing).await.unwrap();
        assert_eq!(bench.provider.state().revoked, ["refresh-0-2", "access-0-2"]);
        assert_eq!((bench.spooled(), bench.marks(&safe).await), (0, 0));
    });
}

/// A person whose keyring is locked is not asked to open it again and again.
#[test]
fn keys_that_do_not_open_are_asked_for_once() {
    let bench = Bench::new(Rotation::Strict);
    let grant = bench.dies_unwritten(Journal::WhenLate);
    runtime().block_on(async {
        let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        let (key, aside) = (bench.dir.path().join("key"), bench.dir.path().join("aside"));
        std::fs::rename(&key, &aside).unwrap();
        bench.take_up(&safe).await;
        std::fs::rename(&aside, &key).unwrap();
        bench.take_up(&safe).await;
        assert!(!safe.keys.is_open(), "it has asked, and was told no");
        assert_eq!(bench.spooled(), 1);
        // A call opens them, and from then on everything goes its way.
        assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
        bench.take_up(&safe).await;
        assert_eq!(bench.spooled(), 0);
    });
}

/// The person disconnected while the answer could not be written.
#[test]
fn an_answer_whose_grant_is_gone_is_revoked() {
    let bench = Bench::new(Rotation::Strict);
    let grant = bench.dies_unwritten(Journal::WhenLate);
    runtime().block_on(async {
        // By a process that does not see the folder.
        bench.safe().disconnect(&grant, None, Keep::Nothing).await.unwrap();
        let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        bench.provider.state().deaf = true;
        bench.take_up(&safe).await;
        assert_eq!(bench.spooled(), 1, "it is tried again as long as the provider does not answer");
        bench.provider.state().deaf = false;
        bench.take_up(&safe).await;
        assert_eq!(bench.provider.state().revoked, ["refresh-0-2", "access-0-2"]);
        assert_eq!(bench.spooled(), 0);
        assert!(safe.grants(&grant.person).await.unwrap().is_empty(), "nothing comes back");
    });
}

#[test]
fn what_is_no_answer_in_the_spool_harms_nobody() {
    let bench = Bench::new(Rotation::Strict);
    let grant = bench.dies_unwritten(Journal::WhenLate);
    let spool = bench.dir.path().join("spool");
    let entry = std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&entry).unwrap();
    let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
    let key = spool::key_in(&name).unwrap();
    runtime().block_on(async {
        let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        // Cut off; changed, under a name that fits; for another grant, under a name that fits.
        std::fs::write(&entry, &bytes[..bytes.len() - 1]).unwrap();
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(spool.join(spool::name_of(&key, &changed)), &changed).unwrap();
        std::fs::write(spool.join(spool::name_of(&[9; 32], &bytes)), &bytes).unwrap();
        std::fs::write(spool.join(spool::name_of(&key, b"")), b"").unwrap();
        bench.take_up(&safe).await;
        assert!(!entry.exists(), "what was cut off is nobody's");
        assert_eq!(bench.head(&safe, &grant).await.access_token.expose(), "access-0-1");
        // Nor do they keep the grant from being used, and they are not deleted: whoever has the right key may open them.
        *bench.provider.expires_in.lock().unwrap() = None;
        let _ = bench.token(&safe, &grant).await;
        assert_eq!(bench.provider.requests(), 2);
        assert_eq!(bench.spooled(), 3);
    });
}

#[test]
fn an_interrupted_refresh_is_taken_up_without_a_call() {
    for (rotation, refresh, grace, asked, lost) in [
        (Rotation::Grace, Refresh::Rotates, 0, 2, 0),
        (Rotation::Grace, Refresh::Strict, 30, 2, 0),
        // Beyond what the provider promises, asking again could end an access token that is still good.
        (Rotation::Grace, Refresh::Strict, 10, 1, 0),
        (Rotation::Strict, Refresh::Strict, 0, 1, 0),
        (Rotation::Keeps, Refresh::Keeps, 0, 2, 0),
    ] {
        let bench = Bench::new(rotation);
        let terms = Terms { refresh, grace: Duration::from_secs(grace), ..terms() };
        let upstream = || Upstream { terms: terms.clone(), ..bench.upstream() };
        let first = runtime();
        let grant = first.block_on(async {
            let safe = bench.safe();
            let grant = bench.connect(&safe).await;
            bench.provider.next(&[Fault::Slow]);
            let mut caller = Box::pin(bench.after_rejection(&safe, &grant, "access-0-1"));
            while bench.provider.requests() == 0 {
                assert!(futures::poll!(caller.as_mut()).is_pending());
                tokio::task::yield_now().await;
            }
            assert_eq!(bench.marks(&safe).await, 1);
            // Its holder lives: nobody else touches it.
            let other = bench.safe();
            let upstream = upstream();
            other.take_up(&|_| Some(upstream.clone())).await;
            assert_eq!(bench.provider.requests(), 1);
            grant.clone()
        });
        drop(first);
        runtime().block_on(async {
            bench.clock.advance(Duration::from_secs(20));
            let safe = bench.safe();
            let upstream = upstream();
            safe.take_up(&|_| Some(upstream.clone())).await;
            safe.drain(LIFE).await;
            assert_eq!(bench.provider.requests(), asked, "{refresh:?} {grace}");
            let head = bench.head(&safe, &grant).await;
            assert_eq!((head.refreshing_since.is_none(), bench.marks(&safe).await), (asked == 2, 0));
            assert_eq!(bench.provider.lost(), lost);
            if asked == 1 {
                // It serves to its end, and then there is nothing left to lose.
                let serve = async || safe.token(&grant, upstream.clone(), None).await;
                assert_eq!(serve().await.unwrap().expose(), "access-0-1");
                safe.drain(LIFE).await;
                assert_eq!(bench.provider.requests(), 1);
                bench.clock.advance(LIFE);
                assert_eq!(serve().await.is_ok(), rotation == Rotation::Grace);
                assert_eq!(bench.provider.requests(), 2);
            }
        });
    }
}

#[tokio::test]
async fn a_mark_without_an_interrupted_refresh_is_removed_and_opens_no_key_where_there_is_none() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    bench.take_up(&safe).await;
    assert!(!safe.keys.is_open(), "nothing to find, nothing to open");
    let grant = bench.connect(&safe).await;
    let keys = safe.keys.open().await.unwrap();
    let key = safe::key_of(&keys, &grant.person, &grant.provider, &grant.account.key);
    let mut head = bench.head(&safe, &grant).await;
    head.refreshing_since = Some(bench.clock.now());
    let mark = safe.marking(&keys, &key, &head).await.unwrap().unwrap();
    safe.store.apply(vec![mark.clone()]).await.unwrap();
    bench.take_up(&safe).await;
    assert_eq!((bench.marks(&safe).await, bench.provider.requests()), (0, 0));

    // Disconnecting takes it along.
    safe.store.apply(vec![mark]).await.unwrap();
    safe.disconnect(&grant, None, Keep::Nothing).await.unwrap();
    assert_eq!(bench.marks(&safe).await, 0);
}

#[tokio::test]
async fn a_strict_provider_is_asked_earlier_and_once() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    let upstream = Upstream { terms: Terms { refresh: Refresh::Strict, ..terms() }, ..bench.upstream() };
    bench.clock.advance(LIFE - Duration::from_secs(600));
    bench.provider.next(&[Fault::Down]);
    assert_eq!(safe.token(&grant, upstream.clone(), None).await.unwrap().expose(), "access-0-1");
    safe.drain(LIFE).await;
    assert_eq!(bench.provider.requests(), 1, "ten minutes before the end, and not again at once");
    bench.clock.advance(Duration::from_secs(500));
    assert_eq!(safe.token(&grant, upstream.clone(), None).await.unwrap().expose(), "access-0-1");
    safe.drain(LIFE).await;
    assert_eq!(bench.provider.requests(), 1, "the answer may have been lost after it had rotated");
    bench.clock.advance(Duration::from_secs(100));
    assert_eq!(safe.token(&grant, upstream, None).await.unwrap().expose(), "access-0-2");
    assert_eq!((bench.provider.requests(), bench.provider.lost()), (2, 0));
}

#[tokio::test]
async fn a_server_in_trouble_is_left_alone_by_everybody_and_nobody_loses_a_connection() {
    for (fault, heard) in [(Fault::Down, 5), (Fault::ClientRefused, 1), (Fault::Wait(30), 1)] {
        let bench = Bench::new(Rotation::Strict);
        let safe = bench.safe();
        let mut grants = Vec::new();
        for number in 0..20 {
            let who = person(&format!("user{number}"));
            let answer = bench.provider.consent();
            grants.push(safe.deposit(who, terms(), account("1"), answer, scopes(&["mail"])).await.unwrap());
        }
        bench.clock.advance(LIFE);
        bench.provider.next(&vec![fault; 1000]);
        for grant in &grants {
            failed(bench.token(&safe, grant).await);
        }
        // Each refresh that gets no answer is asked for three times.
        let times = if matches!(fault, Fault::Down) { 3 } else { 1 };
        assert_eq!(bench.provider.requests(), heard * times);
        bench.provider.state().faults.clear();
        bench.clock.advance(Duration::from_secs(30));
        for grant in &grants {
            assert!(bench.token(&safe, grant).await.is_ok());
            assert_eq!(bench.head(&safe, grant).await.status, GrantStatus::Active);
        }
        assert_eq!(bench.provider.lost(), 0);
    }
}

/// Whoever leaves while a refresh is on its way: what it brings is kept, to be revoked, and used by nobody.
#[test]
fn an_answer_does_not_bring_back_what_was_suspended() {
    let bench = Bench::new(Rotation::Strict);
    let grant = bench.dies_unwritten(Journal::WhenLate);
    runtime().block_on(async {
        // By a process that does not see the folder.
        bench.safe().suspend(&grant).await.unwrap();
        let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        bench.take_up(&safe).await;
        let head = bench.head(&safe, &grant).await;
        assert_eq!((head.status, head.access_token.expose()), (GrantStatus::NeedsConsent, "access-0-2"));
        assert!(needs_consent(bench.token(&safe, &grant).await));
        assert_eq!(bench.spooled(), 0);
        // Their own consent does.
        let again = bench.connect(&safe).await;
        assert_eq!(again.status, GrantStatus::Active);
        bench.token(&safe, &again).await.unwrap();
    });
}
