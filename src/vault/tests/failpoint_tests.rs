//! Every operation of the store and of the spool fails, hangs, or is the last one of its process, one at a time; and every
//! caller goes away at every point where it can. What was lost is the provider's word.

use std::collections::BTreeMap;
use std::io;

use super::super::safe::Spool;
use super::super::spool::{Entries, Folder};
use super::*;

/// What happens at one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    /// It fails, and nothing happened.
    FailBefore,
    /// It happens, and fails all the same.
    FailAfter,
    /// The process dies before it.
    DieBefore,
    /// The process dies once it has happened.
    DieAfter,
    /// It takes so long that whatever else can happen does.
    Delay,
    /// Nothing can be written from there on, neither to the store nor to the spool, until the test lifts it.
    Full,
}

const ACTIONS: [Action; 6] =
    [Action::FailBefore, Action::FailAfter, Action::DieBefore, Action::DieAfter, Action::Delay, Action::Full];

/// Which operation it is, and what there was until then.
struct Plan {
    at: u32,
    action: Action,
    count: AtomicU32,
    /// What the operation was.
    struck: Mutex<Option<&'static str>>,
    dead: AtomicBool,
    died: Semaphore,
    full: AtomicBool,
}

impl Plan {
    fn new(at: u32, action: Action) -> Arc<Self> {
        Arc::new(Self {
            at,
            action,
            count: AtomicU32::new(0),
            struck: Mutex::default(),
            dead: AtomicBool::new(false),
            died: Semaphore::new(0),
            full: AtomicBool::new(false),
        })
    }

    /// One operation.
    async fn step<T, E>(
        &self,
        name: &'static str,
        writes: bool,
        work: impl Future<Output = Result<T, E>>,
        failure: impl FnOnce() -> E,
    ) -> Result<T, E> {
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.count.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            *self.struck.lock().unwrap() = Some(name);
            match self.action {
                Action::FailBefore => return Err(failure()),
                Action::FailAfter => {
                    let _ = work.await;
                    return Err(failure());
                }
                Action::DieBefore => return self.die().await,
                Action::DieAfter => {
                    let _ = work.await;
                    return self.die().await;
                }
                Action::Delay => {
                    for _ in 0..200 {
                        tokio::task::yield_now().await;
                    }
                }
                Action::Full => self.full.store(true, Ordering::SeqCst),
            }
        }
        if writes && self.full.load(Ordering::SeqCst) {
            return Err(failure());
        }
        work.await
    }

    /// The process does nothing any more. The test drops what is left of it.
    async fn die<T>(&self) -> T {
        self.dead.store(true, Ordering::SeqCst);
        self.died.add_permits(1);
        std::future::pending().await
    }

    /// The work's outcome; none: the process died first.
    async fn until_death<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            _ = self.died.acquire() => None,
            outcome = work => Some(outcome),
        }
    }
}

struct Faulty<T> {
    inner: T,
    plan: Arc<Plan>,
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("as planned".to_owned())
}

#[async_trait::async_trait]
impl Store for Faulty<SqliteStore> {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.plan.step("get", false, self.inner.get(table, key), unavailable).await
    }
    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        self.plan.step("generations", false, self.inner.generations(table, keys), unavailable).await
    }
    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        self.plan.step("owned", false, self.inner.owned(table, owner), unavailable).await
    }
    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.plan.step("scan", false, self.inner.scan(table, after, limit), unavailable).await
    }
    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.plan.step("apply", true, self.inner.apply(writes), unavailable).await
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
        self.plan.step("lease", false, self.inner.lease(name, wait), unavailable).await
    }
}

#[async_trait::async_trait]
impl Entries for Faulty<Folder> {
    async fn keep(&self, name: String, bytes: Vec<u8>) -> io::Result<()> {
        self.plan.step("keep", true, self.inner.keep(name, bytes), || io::ErrorKind::StorageFull.into()).await
    }
    async fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.plan.step("read", false, self.inner.read(name), || io::ErrorKind::Other.into()).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.plan.step("remove", false, self.inner.remove(name), || io::ErrorKind::Other.into()).await
    }
    async fn names(&self) -> io::Result<Vec<String>> {
        self.plan.step("names", false, self.inner.names(), || io::ErrorKind::Other.into()).await
    }
}

/// How soon an answer goes into the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Only when the store has failed.
    Failed,
    /// As soon as the store takes any time at all.
    Late,
    First,
}

impl Bench {
    fn faulty_safe(&self, plan: &Arc<Plan>, when: When) -> Arc<Safe> {
        let store: Arc<dyn Store> = Arc::new(Faulty { inner: open_store(self.dir.path()), plan: Arc::clone(plan) });
        let mut safe = Safe::new(Arc::clone(&store), open_keys(store, self.dir.path()), self.clock.clone());
        safe.pace = Pace { at_once: if when == When::Late { Duration::ZERO } else { PACE.at_once }, ..PACE };
        let entries = Box::new(Faulty { inner: Folder::at(self.dir.path().join("spool")), plan: Arc::clone(plan) });
        let journal = if when == When::First { Journal::First } else { Journal::WhenLate };
        safe.spool = Some(Spool { entries, journal });
        Arc::new(safe)
    }

    fn strict_upstream(&self) -> Upstream {
        let refresh = if self.provider.rotation == Rotation::Strict { Refresh::Strict } else { Refresh::Rotates };
        Upstream { terms: Terms { refresh, ..terms() }, ..self.upstream() }
    }

    fn newest(&self) -> u32 {
        self.provider.state().families[&0].newest
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Goes on until an operation's number is beyond all that there are.
fn at_every_operation(actions: &[Action], mut run: impl FnMut(&Arc<Plan>, &str)) {
    for action in actions.iter().copied() {
        for at in 1.. {
            let plan = Plan::new(at, action);
            run(&plan, &format!("{action:?} at operation {at}"));
            if plan.struck.lock().unwrap().is_none() {
                assert!(at > 5, "there are operations");
                break;
            }
        }
    }
}

#[test]
fn whatever_fails_in_a_refresh_its_tokens_are_kept_but_in_the_one_window() {
    every_refresh(When::Failed);
}

#[test]
fn whatever_fails_while_a_store_is_late_the_tokens_are_kept_but_in_the_one_window() {
    every_refresh(When::Late);
}

#[test]
fn whatever_fails_with_the_spool_first_the_tokens_are_kept_but_in_the_one_window() {
    every_refresh(When::First);
}

fn every_refresh(when: When) {
    // Where the process does not die, a provider with grace shows nothing that a strict one does not.
    let death = [Action::DieBefore, Action::DieAfter].as_slice();
    for (rotation, actions) in [(Rotation::Strict, ACTIONS.as_slice()), (Rotation::Grace, death)] {
        let mut windows: BTreeMap<(&str, Action), u32> = BTreeMap::new();
        at_every_operation(actions, |plan, what| {
            if let Some(operation) = one_refresh(rotation, when, plan, &format!("{rotation:?} {when:?}: {what}")) {
                *windows.entry((operation, plan.action)).or_default() += 1;
            }
        });
        // The exception: it died, the provider had rotated, and the answer was nowhere but with it.
        assert!(windows.keys().all(|(_, action)| death.contains(action)), "{windows:?}");
        if when == When::First {
            assert_eq!(windows, BTreeMap::from([(("keep", Action::DieBefore), 1)]), "{rotation:?}");
        } else {
            assert!((1..=8).contains(&windows.values().sum::<u32>()), "{rotation:?} {when:?}: {windows:?}");
        }
    }
}

/// One refresh under a plan, then another process. The operation in which the process died where it alone had the answer.
fn one_refresh(rotation: Rotation, when: When, plan: &Arc<Plan>, what: &str) -> Option<&'static str> {
    let bench = Bench::new(rotation);
    let upstream = bench.strict_upstream();
    let first = runtime();
    let grant = first.block_on(async {
        let grant = bench.connect(&bench.safe()).await;
        bench.clock.advance(LIFE);
        let safe = bench.faulty_safe(plan, when);
        let called = plan.until_death(safe.token(&grant, upstream.clone(), None)).await;
        if let Some(Ok(token)) = &called {
            assert_eq!(token.expose(), format!("access-0-{}", bench.newest()), "{what}");
        }
        assert!(!matches!(called, Some(Err(TokenError::NeedsConsent))), "{what}: nobody is asked for consent");
        plan.full.store(false, Ordering::SeqCst);
        plan.until_death(safe.drain(LIFE)).await;
        grant
    });
    drop(first);

    runtime().block_on(async {
        let (safe, _) = bench.safe_with_spool(Arc::new(open_store(bench.dir.path())), Journal::WhenLate);
        let head = bench.head(&safe, &grant).await;
        let spool = bench.dir.path().join("spool");
        let spooled = std::fs::read_dir(spool).is_ok_and(|mut files| files.next().is_some());
        let nowhere = bench.newest() == 2 && head.access_token.expose() == "access-0-1" && !spooled;
        let window = nowhere.then(|| plan.struck.lock().unwrap().unwrap());

        let found = upstream.clone();
        safe.take_up(&|_| Some(found.clone())).await;
        safe.drain(LIFE).await;
        for _ in 0..2 {
            let token = safe.token(&grant, upstream.clone(), None).await;
            if window.is_some() && rotation == Rotation::Strict {
                assert!(needs_consent(token), "{what}");
                assert_eq!(bench.head(&safe, &grant).await.refresh_token.unwrap().expose(), "refresh-0-1", "INV-9");
                break;
            }
            let token = token.unwrap_or_else(|_| panic!("{what}: the connection is lost"));
            assert_eq!(token.expose(), format!("access-0-{}", bench.newest()), "{what}");
            assert_eq!(bench.provider.lost(), 0, "{what}");
            bench.clock.advance(LIFE);
        }
        assert!(std::fs::read_dir(bench.dir.path().join("spool")).map_or(0, Iterator::count) == 0, "{what}");
        window
    })
}

#[test]
fn whatever_fails_in_a_disconnect_nothing_lives_on_that_is_gone_here() {
    at_every_operation(&ACTIONS, |plan, what| {
        let bench = Bench::new(Rotation::Strict);
        let upstream = bench.strict_upstream();
        let first = runtime();
        let (grant, ended) = first.block_on(async {
            let grant = bench.connect(&bench.safe()).await;
            let safe = bench.faulty_safe(plan, When::Failed);
            let ended = plan.until_death(safe.disconnect(&grant, Some(upstream.clone()), Keep::Nothing)).await;
            plan.full.store(false, Ordering::SeqCst);
            plan.until_death(safe.drain(LIFE)).await;
            (grant, ended)
        });
        drop(first);
        runtime().block_on(async {
            let safe = bench.safe();
            let gone = safe.grants(&grant.person).await.unwrap().is_empty();
            if let Some(Ok(revocation)) = &ended {
                assert_eq!((gone, revocation.outcome), (true, Revocation::Revoked), "{what}");
            }
            let revoked = bench.provider.state().revoked.contains(&"refresh-0-1".to_owned());
            assert!(revoked || !gone, "{what}: it is gone here, and lives there");
            if !gone {
                // Asked again, it goes.
                safe.disconnect(&grant, Some(upstream), Keep::Nothing).await.unwrap();
                assert!(bench.provider.state().revoked.contains(&"refresh-0-1".to_owned()), "{what}");
            }
            assert!(safe.grants(&grant.person).await.unwrap().is_empty());
            assert!(safe.people().await.unwrap().is_empty(), "{what}: nothing is kept of who has no connection");
        });
    });
}

#[test]
fn whatever_fails_in_a_deposit_it_is_there_whole_or_not_at_all() {
    at_every_operation(&ACTIONS, |plan, what| {
        let bench = Bench::new(Rotation::Strict);
        // The vault has its keys already: making them is tested with them.
        runtime().block_on(async { bench.safe().keys.open().await.unwrap() });
        let first = runtime();
        let kept = first.block_on(async {
            let safe = bench.faulty_safe(plan, When::Failed);
            let deposit =
                safe.deposit(person("alice"), terms(), account("1"), bench.provider.consent(), scopes(&["mail"]));
            plan.until_death(deposit).await
        });
        drop(first);
        runtime().block_on(async {
            let safe = bench.safe();
            let grants = safe.grants(&person("alice")).await.unwrap();
            if let Some(Ok(grant)) = &kept {
                assert_eq!(grants.len(), 1, "{what}: it was said to be durable");
                assert_eq!(bench.token(&safe, grant).await.unwrap(), "access-0-1");
            }
            assert_eq!(safe.people().await.unwrap().len(), grants.len(), "{what}");
            for grant in &grants {
                assert_eq!(bench.token(&safe, grant).await.unwrap(), "access-0-1", "{what}");
            }
        });
    });
}

/// Polls some work so often, and drops it: whether it was done by then.
async fn dropped_after<T>(polls: u32, work: impl Future<Output = T>) -> bool {
    let mut work = Box::pin(work);
    for _ in 0..polls {
        if futures::poll!(work.as_mut()).is_ready() {
            return true;
        }
        // Every other task and thread comes a little further.
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    false
}

/// Tries every number of polls until the work is done, and then says how many there were.
async fn at_every_poll(mut run: impl AsyncFnMut(u32) -> bool) {
    for polls in 0.. {
        if run(polls).await {
            assert!(polls > 1, "it went away while something was under way");
            return;
        }
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_from_a_deposit_leaves_it_whole() {
    at_every_poll(async |polls| {
        let bench = Bench::new(Rotation::Strict);
        let safe = bench.safe();
        let deposit = safe.deposit(person("alice"), terms(), account("1"), bench.provider.consent(), scopes(&["mail"]));
        let done = dropped_after(polls, deposit).await;
        safe.drain(LIFE).await;
        let grants = safe.grants(&person("alice")).await.unwrap();
        // Before the first poll it has not begun.
        assert_eq!(grants.len(), usize::from(polls > 0), "after {polls} polls");
        for grant in &grants {
            bench.clock.advance(LIFE);
            assert_eq!(bench.token(&safe, grant).await.unwrap(), "access-0-2");
        }
        assert_eq!(bench.provider.lost(), 0);
        done
    })
    .await;
}

#[tokio::test]
async fn a_caller_who_goes_away_from_a_disconnect_leaves_nothing() {
    at_every_poll(async |polls| {
        let bench = Bench::new(Rotation::Strict);
        let safe = bench.safe();
        let grant = bench.connect(&safe).await;
        let done = dropped_after(polls, safe.disconnect(&grant, Some(bench.upstream()), Keep::Nothing)).await;
        safe.drain(LIFE).await;
        let there = safe.grants(&grant.person).await.unwrap().len();
        assert_eq!(there, usize::from(polls == 0), "after {polls} polls");
        assert_eq!(bench.provider.state().revoked.len(), if polls > 0 { 2 } else { 0 });
        done
    })
    .await;
}

#[tokio::test]
async fn a_caller_who_goes_away_from_a_rejected_token_leaves_a_new_one() {
    let mut flown = 0;
    at_every_poll(async |polls| {
        let bench = Bench::new(Rotation::Strict);
        let safe = bench.safe();
        let grant = bench.connect(&safe).await;
        let done = dropped_after(polls, bench.after_rejection(&safe, &grant, "access-0-1")).await;
        safe.drain(LIFE).await;
        let asked = bench.provider.requests();
        flown += asked;
        assert_eq!(bench.after_rejection(&safe, &grant, "access-0-1").await.unwrap(), "access-0-2");
        assert_eq!((bench.provider.requests(), bench.provider.lost()), (1, 0), "after {polls} polls");
        done
    })
    .await;
    assert!(flown > 1, "callers went away while a refresh was under way");
}
