//! The provider here keeps the ground truth: which families of refresh tokens live, and who asked how often. Whether
//! a connection was lost is judged by it, not by the vault.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::refresh::Flights;
use super::safe::Pace;
use super::take_up::Settled;
use super::upstream::TokenEndpoint;
use super::*;
use crate::catalog::provider::Refresh;
use crate::clock::{Clock as _, ManualClock};
use crate::failure::Code;
use crate::keys::{self, SourceName};
use crate::oauth::{OauthError, Revocation};
use crate::secret::Secret;
use crate::store::sqlite::SqliteStore;
use crate::store::{Lease, LogEntry, Record, RecordKey, StoreError, Table, Write};

/// Nothing is waited for that would not come sooner.
const PACE: Pace = Pace {
    again: [Duration::ZERO; 2],
    shortest: Duration::from_millis(1),
    longest: Duration::from_millis(1),
    at_once: Duration::from_secs(3600),
    look_again: Duration::ZERO,
};

const LIFE: Duration = Duration::from_secs(3600);

/// What happens to the refresh token when it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotation {
    Keeps,
    /// The one before the newest is still accepted.
    Grace,
    /// Using an old one ends the family.
    Strict,
}

/// What the provider does to one request.
#[derive(Clone, Copy)]
enum Fault {
    /// Fails before doing anything.
    Down,
    /// Does it, and the answer is lost.
    AnswerLost,
    /// Does it, and answers after a permit was added to `gate`.
    Slow,
    /// Says that our client is not good.
    ClientRefused,
    /// Refuses for another reason.
    Refused,
    /// Asks to be left alone for so many seconds.
    Wait(u64),
}

struct FakeProvider {
    rotation: Rotation,
    expires_in: Mutex<Option<Duration>>,
    gate: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    families: HashMap<u32, Family>,
    requests: u32,
    revoked: Vec<String>,
    faults: VecDeque<Fault>,
    /// Refresh tokens that are refused, and nothing comes of it.
    refused: BTreeSet<String>,
    /// Whether revocations get no answer.
    deaf: bool,
}

struct Family {
    newest: u32,
    dead: bool,
}

impl FakeProvider {
    fn new(rotation: Rotation) -> Arc<Self> {
        Arc::new(Self {
            rotation,
            expires_in: Mutex::new(Some(LIFE)),
            gate: Semaphore::new(0),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a code exchange answers: the first tokens of a new family.
    fn consent(&self) -> TokenAnswer {
        let mut state = self.state();
        let family = state.families.len() as u32;
        state.families.insert(family, Family { newest: 1, dead: false });
        self.answer(family, 1)
    }

    fn answer(&self, family: u32, number: u32) -> TokenAnswer {
        TokenAnswer {
            access_token: Secret::new(format!("access-{family}-{number}")),
            refresh_token: Some(Secret::new(format!("refresh-{family}-{number}"))),
            expires_in: *self.expires_in.lock().unwrap(),
            scopes: None,
        }
    }

    fn next(&self, faults: &[Fault]) {
        self.state().faults.extend(faults);
    }

    fn requests(&self) -> u32 {
        self.state().requests
    }

    fn lost(&self) -> usize {
        self.state().families.values().filter(|family| family.dead).count()
    }

    fn process(&self, token: &str) -> Result<TokenAnswer, OauthError> {
        let mut state = self.state();
        let mut parts = token.strip_prefix("refresh-").expect("a refresh token").split('-');
        let (family, number) = (parts.next().unwrap().parse().unwrap(), parts.next().unwrap().parse::<u32>().unwrap());
        let ended = || Err(OauthError::InvalidGrant("invalid_grant".to_owned()));
        if state.refused.contains(token) {
            return ended();
        }
        let entry = state.families.get_mut(&family).unwrap();
        if entry.dead {
            return ended();
        }
        let accepted = match self.rotation {
            Rotation::Keeps => true,
            Rotation::Grace => number + 1 >= entry.newest,
            Rotation::Strict => number == entry.newest,
        };
        if !accepted {
            entry.dead = true;
            return ended();
        }
        entry.newest += 1;
        let newest = entry.newest;
        drop(state);
        let mut answer = self.answer(family, newest);
        if self.rotation == Rotation::Keeps {
            answer.refresh_token = None;
        }
        Ok(answer)
    }
}

#[async_trait::async_trait]
impl TokenEndpoint for FakeProvider {
    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenAnswer, OauthError> {
        let fault = {
            let mut state = self.state();
            state.requests += 1;
            state.faults.pop_front()
        };
        let unavailable = |cause: &str| OauthError::Unavailable(cause.to_owned());
        match fault {
            None => self.process(refresh_token.expose()),
            Some(Fault::Down) => Err(unavailable("503")),
            Some(Fault::AnswerLost) => {
                let _ = self.process(refresh_token.expose());
                Err(unavailable("the connection broke"))
            }
            Some(Fault::Slow) => {
                let answer = self.process(refresh_token.expose());
                self.gate.acquire().await.unwrap().forget();
                answer
            }
            Some(Fault::ClientRefused) => Err(OauthError::InvalidClient("invalid_client".to_owned())),
            Some(Fault::Wait(seconds)) => Err(OauthError::Busy(Duration::from_secs(seconds))),
            Some(Fault::Refused) => Err(OauthError::Refused("temporarily_unavailable".to_owned())),
        }
    }

    async fn revoke(&self, token: &Secret) -> Revocation {
        let mut state = self.state();
        if state.deaf {
            return Revocation::Failed;
        }
        state.revoked.push(token.expose().to_owned());
        if let Some(family) = token.expose().strip_prefix("refresh-").and_then(|rest| rest.split('-').next()) {
            state.families.get_mut(&family.parse().unwrap()).unwrap().dead = true;
        }
        Revocation::Revoked
    }
}

/// A store whose writes fail while a test says so, and that counts leases and reads.
struct Flaky {
    inner: SqliteStore,
    failing_writes: Mutex<u32>,
    leases: AtomicU32,
    reads: AtomicU32,
    /// Until when leases are held; none: for as long as the process lives.
    until: Mutex<Option<Arc<Mutex<std::time::Instant>>>>,
    /// Whether the leases of all others have ended, whoever lives.
    lapsed: AtomicBool,
}

impl Flaky {
    fn over(inner: SqliteStore) -> Arc<Self> {
        Arc::new(Self {
            inner,
            failing_writes: Mutex::new(0),
            leases: AtomicU32::new(0),
            reads: AtomicU32::new(0),
            until: Mutex::default(),
            lapsed: AtomicBool::new(false),
        })
    }
}

#[async_trait::async_trait]
impl Store for Flaky {
    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let record = self.inner.get(table, key).await;
        self.reads.fetch_add(1, Ordering::SeqCst);
        record
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
        {
            let mut failing = self.failing_writes.lock().unwrap();
            if *failing > 0 {
                *failing -= 1;
                return Err(StoreError::Unavailable("disk full".to_owned()));
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
        self.leases.fetch_add(1, Ordering::SeqCst);
        let lease = match self.lapsed.load(Ordering::SeqCst) {
            true => Some(Lease::new(())),
            false => self.inner.lease(name, wait).await?,
        };
        Ok(match (lease, self.until.lock().unwrap().clone()) {
            (Some(lease), Some(until)) => Some(Lease::until(lease, until)),
            (lease, _) => lease,
        })
    }
}

/// A data folder, a provider and a clock; vaults are opened over them as processes would.
struct Bench {
    dir: tempfile::TempDir,
    provider: Arc<FakeProvider>,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn new(rotation: Rotation) -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
            provider: FakeProvider::new(rotation),
            clock: ManualClock::at(Timestamp::from_second(1_700_000_000).unwrap()),
        };
        write_key(bench.dir.path());
        bench
    }

    fn safe(&self) -> Arc<Safe> {
        self.safe_over(Arc::new(open_store(self.dir.path())))
    }

    fn safe_over(&self, store: Arc<dyn Store>) -> Arc<Safe> {
        let mut safe = Safe::new(Arc::clone(&store), open_keys(store, self.dir.path()), self.clock.clone());
        safe.pace = PACE;
        Arc::new(safe)
    }

    fn upstream(&self) -> Upstream {
        Upstream { terms: terms(), endpoint: Arc::clone(&self.provider) as Arc<dyn TokenEndpoint> }
    }

    async fn connect(&self, safe: &Arc<Safe>) -> Grant {
        let answer = self.provider.consent();
        safe.deposit(person("alice"), terms(), account("1"), answer, scopes(&["mail"])).await.unwrap()
    }

    async fn token(&self, safe: &Arc<Safe>, grant: &Grant) -> Result<String, TokenError> {
        safe.token(grant, self.upstream(), None).await.map(|token| token.expose().to_owned())
    }

    async fn after_rejection(&self, safe: &Arc<Safe>, grant: &Grant, rejected: &str) -> Result<String, TokenError> {
        let rejected = AccessToken::bind(grant.person.clone(), grant.provider.clone(), Secret::new(rejected));
        safe.token(grant, self.upstream(), Some(&rejected)).await.map(|token| token.expose().to_owned())
    }

    async fn head(&self, safe: &Safe, grant: &Grant) -> head::Head {
        let keys = safe.keys.open().await.unwrap();
        let key = safe::key_of(&keys, &grant.person, &grant.provider, &grant.account.key);
        safe.read(&keys, &grant.person, &key).await.unwrap().unwrap().head
    }
}

fn write_key(dir: &Path) {
    let path = dir.join("key");
    std::fs::write(&path, [7; 32]).unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

fn open_store(dir: &Path) -> SqliteStore {
    SqliteStore::open(&dir.join("data")).unwrap()
}

fn open_keys(store: Arc<dyn Store>, dir: &Path) -> Keys {
    Keys::new(store, keys::Config { source: SourceName::File, path: Some(dir.join("key")), env: None })
}

fn terms() -> Terms {
    Terms {
        id: "fake".parse().unwrap(),
        fingerprint: "https://fake".to_owned(),
        default_lifetime: None,
        refresh: Refresh::Rotates,
        grace: Duration::ZERO,
        server: "https://fake".to_owned(),
    }
}

fn person(user: &str) -> Person {
    Person { tenant: "acme".parse().unwrap(), source: "corp".parse().unwrap(), user: user.parse().unwrap() }
}

fn account(key: &str) -> Account {
    Account { key: key.to_owned(), label: format!("{key}@example.com") }
}

fn scopes(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn needs_consent<T>(result: Result<T, TokenError>) -> bool {
    matches!(result, Err(TokenError::NeedsConsent))
}

fn failed<T>(result: Result<T, TokenError>) -> Failure {
    match result {
        Err(TokenError::Failed(failure)) => failure,
        Err(TokenError::NeedsConsent) => panic!("it asks for consent"),
        Ok(_) => panic!("it gave a token"),
    }
}

#[tokio::test]
async fn a_deposit_is_there_for_its_person_alone() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    assert_eq!((grant.generation, grant.status), (1, GrantStatus::Active));
    let other = bench.safe();
    let listed = other.grants(&person("alice")).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].account, &listed[0].scopes), (&account("1"), &scopes(&["mail"])));
    assert_eq!(bench.token(&other, &grant).await.unwrap(), "access-0-1");

    for stranger in [
        person("bob"),
        Person { tenant: "acm".parse().unwrap(), ..person("alice") },
        Person { source: "app:corp".parse().unwrap(), ..person("alice") },
    ] {
        assert!(other.grants(&stranger).await.unwrap().is_empty());
        assert!(needs_consent(bench.token(&other, &Grant { person: stranger, ..grant.clone() }).await));
    }
    assert_eq!(bench.provider.requests(), 0);
}

#[tokio::test]
async fn a_deposit_for_the_same_account_is_laid_over_the_earlier_one() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    bench.connect(&safe).await;
    let deposit = |answer, asked| safe.deposit(person("alice"), terms(), account("1"), answer, asked);

    // Nothing said about scopes, and no refresh token: both are kept.
    let answer = TokenAnswer { refresh_token: None, ..bench.provider.consent() };
    let grant = deposit(answer, scopes(&["calendar"])).await.unwrap();
    assert_eq!((grant.generation, &grant.scopes), (2, &scopes(&["calendar", "mail"])));
    let head = bench.head(&safe, &grant).await;
    assert_eq!(head.refresh_token.unwrap().expose(), "refresh-0-1");
    assert_eq!(head.access_token.expose(), "access-1-1");

    // The provider says which: that is what there is.
    let answer = TokenAnswer { scopes: Some(scopes(&["calendar"])), ..bench.provider.consent() };
    let grant = deposit(answer, scopes(&["mail", "calendar"])).await.unwrap();
    assert_eq!(grant.scopes, scopes(&["calendar"]));

    // Another server: nothing is taken over from the old one.
    let moved = Terms { fingerprint: "https://other".to_owned(), ..terms() };
    let answer = TokenAnswer { refresh_token: None, ..bench.provider.consent() };
    let grant = safe.deposit(person("alice"), moved, account("1"), answer, scopes(&["x"])).await.unwrap();
    assert_eq!(grant.scopes, scopes(&["x"]));
    assert!(bench.head(&safe, &grant).await.refresh_token.is_none());

    // Another account stands beside it.
    let answer = bench.provider.consent();
    safe.deposit(person("alice"), terms(), account("2"), answer, scopes(&["mail"])).await.unwrap();
    let accounts: Vec<_> = safe.grants(&person("alice")).await.unwrap().into_iter().map(|g| g.account.key).collect();
    assert_eq!(accounts, ["1", "2"]);
}

#[tokio::test]
async fn a_token_is_refreshed_beside_before_it_ends_and_first_after_it() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE - Duration::from_secs(301));
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1");
    assert_eq!(bench.provider.requests(), 0, "five minutes before the end, not earlier");

    bench.clock.advance(Duration::from_secs(2));
    bench.provider.next(&[Fault::Slow]);
    for _ in 0..3 {
        assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1", "the old one serves meanwhile");
    }
    bench.provider.gate.add_permits(1);
    safe.drain(LIFE).await;
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
    assert_eq!(bench.provider.requests(), 1);

    bench.clock.advance(LIFE);
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-3");
    assert_eq!((bench.provider.requests(), bench.provider.lost()), (2, 0));
    assert_eq!(bench.head(&safe, &grant).await.generation, 3);
}

#[tokio::test]
async fn two_hundred_callers_are_one_request() {
    let bench = Bench::new(Rotation::Strict);
    let store = Flaky::over(open_store(bench.dir.path()));
    let safe = bench.safe_over(Arc::clone(&store) as Arc<dyn Store>);
    let grant = bench.connect(&safe).await;
    let count = || (store.leases.load(Ordering::SeqCst), store.reads.load(Ordering::SeqCst));
    let before = count();
    bench.clock.advance(LIFE);
    bench.provider.next(&[Fault::Slow]);
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let (safe, grant, upstream) = (Arc::clone(&safe), grant.clone(), bench.upstream());
            tokio::spawn(async move { safe.token(&grant, upstream, None).await.map(|t| t.expose().to_owned()) })
        })
        .collect();
    // Every caller has read the expired token, and the refresh has read it again: nobody is late.
    while count().1 < before.1 + 201 {
        tokio::task::yield_now().await;
    }
    bench.provider.gate.add_permits(1);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "access-0-2");
    }
    assert_eq!((bench.provider.requests(), bench.provider.lost()), (1, 0));
    assert_eq!(count().0 - before.0, 1, "and one of them waits for the lease");
}

/// The caller goes away at every point where it can.
#[tokio::test]
async fn a_caller_who_goes_away_stops_nothing() {
    let mut finished = false;
    let mut flown = 0;
    for polls in 0.. {
        let bench = Bench::new(Rotation::Strict);
        let safe = bench.safe();
        let grant = bench.connect(&safe).await;
        bench.clock.advance(LIFE);
        bench.provider.next(&[Fault::Slow]);
        {
            let mut caller = Box::pin(bench.token(&safe, &grant));
            for _ in 0..polls {
                if futures::poll!(caller.as_mut()).is_ready() {
                    finished = true;
                    break;
                }
                // Lets every other task and thread come as far as it can; the provider answers half-way.
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                std::thread::yield_now();
                if polls > 12 {
                    bench.provider.gate.add_permits(1);
                }
            }
        }
        let under_way = !lock(&safe.flights).is_empty();
        bench.provider.gate.add_permits(1);
        safe.drain(LIFE).await;
        assert!(lock(&safe.flights).is_empty());
        if under_way || bench.provider.requests() > 0 {
            flown += 1;
            assert_eq!(bench.provider.requests(), 1);
            assert_eq!(bench.head(&safe, &grant).await.access_token.expose(), "access-0-2", "after {polls} polls");
        }
        assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
        assert_eq!(bench.provider.lost(), 0);
        if finished {
            break;
        }
    }
    assert!(flown > 1, "callers went away while a refresh was under way");
}

fn lock(flights: &Mutex<Flights>) -> std::sync::MutexGuard<'_, Flights> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As two processes: separate stores, keys, flights; the lease and the look at the store are all that they share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_vaults_racing_on_a_strict_provider_lose_nothing() {
    const PEOPLE: usize = 6;
    const ROUNDS: u32 = 8;
    let bench = Bench::new(Rotation::Strict);
    let safes = [bench.safe(), bench.safe()];
    let mut grants = Vec::new();
    for n in 0..PEOPLE {
        let answer = bench.provider.consent();
        let who = person(&format!("user{n}"));
        grants.push(safes[0].deposit(who, terms(), account("1"), answer, scopes(&["mail"])).await.unwrap());
    }
    for round in 1..=ROUNDS {
        bench.clock.advance(LIFE);
        let calls: Vec<_> = grants
            .iter()
            .flat_map(|grant| safes.iter().map(move |safe| (grant.clone(), Arc::clone(safe))))
            .flat_map(|call| std::iter::repeat_n(call, 3))
            .map(|(grant, safe)| {
                let upstream = bench.upstream();
                tokio::spawn(async move { safe.token(&grant, upstream, None).await.map(|t| t.expose().to_owned()) })
            })
            .collect();
        for call in calls {
            assert!(call.await.unwrap().unwrap().ends_with(&format!("-{}", round + 1)));
        }
    }
    assert_eq!((bench.provider.lost(), bench.provider.requests()), (0, PEOPLE as u32 * ROUNDS));
}

#[tokio::test]
async fn a_rejected_token_is_replaced_once() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    let calls = (0..10).map(|_| bench.after_rejection(&safe, &grant, "access-0-1"));
    for token in futures::future::join_all(calls).await {
        assert_eq!(token.unwrap(), "access-0-2");
    }
    assert_eq!(bench.provider.requests(), 1);
    // Another process, late with the same news: somebody has refreshed since.
    assert_eq!(bench.after_rejection(&bench.safe(), &grant, "access-0-1").await.unwrap(), "access-0-2");
    assert_eq!(bench.provider.requests(), 1);
}

#[tokio::test]
async fn a_lost_answer_costs_nothing_where_the_old_token_is_still_accepted() {
    let bench = Bench::new(Rotation::Grace);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE);
    bench.provider.next(&[Fault::AnswerLost]);
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-3");
    assert_eq!((bench.provider.requests(), bench.provider.lost()), (2, 0));
}

#[tokio::test]
async fn a_provider_in_trouble_costs_no_grant_and_is_left_alone_for_a_while() {
    for (fault, code, can_retry) in [
        (Fault::Down, Code::ProviderUnreachable, true),
        (Fault::ClientRefused, Code::ProviderError, false),
        (Fault::Refused, Code::ProviderError, true),
    ] {
        let bench = Bench::new(Rotation::Strict);
        let safe = bench.safe();
        let grant = bench.connect(&safe).await;

        // While the old token lives, nobody notices.
        bench.clock.advance(LIFE - Duration::from_secs(60));
        bench.provider.next(&[fault; 3]);
        assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1");
        safe.drain(LIFE).await;
        let asked = bench.provider.requests();
        assert!(asked >= 1);
        assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1");
        safe.drain(LIFE).await;
        assert_eq!(bench.provider.requests(), asked, "left alone");

        bench.clock.advance(Duration::from_secs(60));
        bench.provider.state().faults = [fault; 3].into();
        let failure = failed(bench.token(&safe, &grant).await);
        assert_eq!((failure.code, failure.can_retry), (code, can_retry));
        let asked = bench.provider.requests();
        let again = failed(bench.token(&safe, &grant).await);
        assert_eq!((again.code, again.retry_after), (code, Some(Duration::from_secs(2))), "the pause has doubled");
        assert_eq!(bench.provider.requests(), asked);
        assert_eq!(bench.head(&safe, &grant).await.status, GrantStatus::Active);

        bench.provider.state().faults.clear();
        bench.clock.advance(Duration::from_secs(2));
        assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
        assert_eq!(bench.provider.lost(), 0);
    }
}

#[tokio::test]
async fn an_ended_grant_keeps_its_tokens_and_asks_for_consent() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    bench.provider.state().families.get_mut(&0).unwrap().dead = true;
    bench.clock.advance(LIFE);
    assert!(needs_consent(bench.token(&safe, &grant).await));
    assert!(needs_consent(bench.token(&safe, &grant).await));
    assert_eq!(bench.provider.requests(), 1, "asked once");
    let head = bench.head(&safe, &grant).await;
    assert_eq!((head.status, head.refresh_token.unwrap().expose()), (GrantStatus::NeedsConsent, "refresh-0-1"));
    assert_eq!(safe.grants(&person("alice")).await.unwrap()[0].status, GrantStatus::NeedsConsent);

    let grant = bench.connect(&safe).await;
    assert_eq!((grant.status, grant.generation), (GrantStatus::Active, 2));
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-1-1");
}

#[tokio::test]
async fn what_a_refresh_does_not_say_stays() {
    let bench = Bench::new(Rotation::Keeps);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE);
    *bench.provider.expires_in.lock().unwrap() = None;
    bench.token(&safe, &grant).await.unwrap();
    let head = bench.head(&safe, &grant).await;
    assert_eq!(head.refresh_token.unwrap().expose(), "refresh-0-1");
    assert_eq!(head.scopes, scopes(&["mail"]));
    assert_eq!(head.expires_at, Some(crate::clock::later(bench.clock.now(), LIFE)), "as long as before");

    // The manifest's word comes before what was before.
    bench.clock.advance(LIFE);
    let mut upstream = bench.upstream();
    upstream.terms.default_lifetime = Some(Duration::from_secs(60));
    safe.token(&grant, upstream, None).await.unwrap();
    let head = bench.head(&safe, &grant).await;
    assert_eq!(head.expires_at, Some(crate::clock::later(bench.clock.now(), Duration::from_secs(60))));
}

#[tokio::test]
async fn without_a_refresh_token_the_access_token_serves_to_its_end() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let answer = TokenAnswer { refresh_token: None, ..bench.provider.consent() };
    let grant = safe.deposit(person("alice"), terms(), account("1"), answer, scopes(&[])).await.unwrap();
    bench.clock.advance(LIFE - Duration::from_secs(1));
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1");
    bench.clock.advance(Duration::from_secs(1));
    assert!(needs_consent(bench.token(&safe, &grant).await));

    // One that never ends, until it is refused.
    let answer = TokenAnswer { refresh_token: None, expires_in: None, ..bench.provider.consent() };
    let grant = safe.deposit(person("alice"), terms(), account("1"), answer, scopes(&[])).await.unwrap();
    bench.clock.advance(1000 * LIFE);
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-1-1");
    assert!(needs_consent(bench.after_rejection(&safe, &grant, "access-1-1").await));
    assert_eq!(bench.provider.requests(), 0);
}

#[tokio::test]
async fn a_token_never_goes_to_a_server_that_was_not_consented_to() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    let mut moved = bench.upstream();
    moved.terms.fingerprint = "https://other".to_owned();
    assert!(needs_consent(safe.token(&grant, moved.clone(), None).await));
    bench.clock.advance(LIFE);
    assert!(needs_consent(safe.token(&grant, moved.clone(), None).await));
    assert_eq!(safe.disconnect(&grant, Some(moved), Keep::Nothing).await.unwrap().outcome, Revocation::Failed);
    assert!(bench.provider.state().revoked.is_empty());
    assert_eq!(bench.provider.requests(), 0);
    assert!(safe.grants(&person("alice")).await.unwrap().is_empty());

    let mut other = bench.upstream();
    other.terms.id = "other".parse().unwrap();
    assert_eq!(failed(safe.token(&grant, other, None).await).code, Code::Internal);
}

#[tokio::test]
async fn disconnecting_revokes_waits_for_a_refresh_and_removes() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE);
    bench.provider.next(&[Fault::Slow]);
    let mut refreshing = Box::pin(bench.token(&safe, &grant));
    // Until the refresh is at the provider, and so holds the lease.
    while bench.provider.requests() == 0 {
        assert!(futures::poll!(refreshing.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let other = bench.safe();
    let mut disconnecting = Box::pin(other.disconnect(&grant, Some(bench.upstream()), Keep::Nothing));
    assert!(futures::poll!(disconnecting.as_mut()).is_pending());
    bench.provider.gate.add_permits(1);
    let (refreshed, disconnected) = tokio::join!(refreshing, disconnecting);
    assert_eq!((refreshed.unwrap().as_str(), disconnected.unwrap().outcome), ("access-0-2", Revocation::Revoked));
    // The newest tokens, not those that were there when it was asked for.
    assert_eq!(bench.provider.state().revoked, ["refresh-0-2", "access-0-2"]);
    assert!(needs_consent(bench.token(&safe, &grant).await));
    assert!(safe.grants(&person("alice")).await.unwrap().is_empty());
    let again = safe.disconnect(&grant, Some(bench.upstream()), Keep::Nothing).await.unwrap_err();
    assert_eq!(again.code, Code::NotFound);
}

#[tokio::test]
async fn a_rotated_token_outlives_a_store_that_fails() {
    let bench = Bench::new(Rotation::Strict);
    let store = Flaky::over(open_store(bench.dir.path()));
    let safe = bench.safe_over(Arc::clone(&store) as Arc<dyn Store>);
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE);

    // No intent, no request: the provider must not rotate what cannot be kept.
    *store.failing_writes.lock().unwrap() = 1;
    assert_eq!(failed(bench.token(&safe, &grant).await).code, Code::VaultUnavailable);
    assert_eq!(bench.provider.requests(), 0);
    bench.clock.advance(Duration::from_secs(10));

    // The store fails after the provider has rotated: callers have the token at once, the write is made when it can.
    bench.provider.next(&[Fault::Slow]);
    let call = bench.token(&safe, &grant);
    let trouble = async {
        while bench.provider.requests() == 0 {
            tokio::task::yield_now().await;
        }
        *store.failing_writes.lock().unwrap() = u32::MAX;
        bench.provider.gate.add_permits(1);
    };
    assert_eq!(tokio::join!(call, trouble).0.unwrap(), "access-0-2");
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2", "it is served while it is not yet stored");
    assert_eq!(bench.head(&safe, &grant).await.access_token.expose(), "access-0-1");
    *store.failing_writes.lock().unwrap() = 3;
    safe.drain(LIFE).await;
    assert_eq!(bench.head(&safe, &grant).await.access_token.expose(), "access-0-2");
    assert_eq!((bench.provider.requests(), bench.provider.lost()), (1, 0));

    // A deposit is tried again as well: its code works only once.
    *store.failing_writes.lock().unwrap() = 3;
    bench.connect(&safe).await;
}

/// The process dies between the provider's answer and the write.
#[test]
fn an_interrupted_refresh_is_taken_up_at_once_with_the_same_token() {
    for (rotation, survives) in [(Rotation::Grace, true), (Rotation::Strict, false)] {
        let bench = Bench::new(rotation);
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        let grant = first.block_on(async {
            let safe = bench.safe();
            let grant = bench.connect(&safe).await;
            // The old token has all its life left, and still the refresh must not wait for its end.
            bench.provider.next(&[Fault::Slow]);
            let mut caller = Box::pin(bench.after_rejection(&safe, &grant, "access-0-1"));
            while bench.provider.requests() == 0 {
                assert!(futures::poll!(caller.as_mut()).is_pending());
                tokio::task::yield_now().await;
            }
            assert!(bench.head(&safe, &grant).await.refreshing_since.is_some(), "the intent is durable");
            grant.clone()
        });
        drop(first); // Ends the flight as death would: nothing more runs, the lease is free.

        runtime().block_on(async {
            let safe = bench.safe();
            assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1");
            safe.drain(LIFE).await;
            assert_eq!(bench.provider.requests(), 2);
            let head = bench.head(&safe, &grant).await;
            assert!(head.refreshing_since.is_none());
            if survives {
                assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-3");
            } else {
                // The gap that cannot be closed from this side: said plainly, and nothing is deleted.
                assert!(needs_consent(bench.token(&safe, &grant).await));
                assert!(head.refresh_token.is_some());
            }
            assert_eq!(bench.provider.lost(), usize::from(!survives));
        });
    }
}

#[tokio::test]
async fn records_moved_or_edited_open_for_nobody() {
    let bench = Bench::new(Rotation::Strict);
    let store: Arc<dyn Store> = Arc::new(open_store(bench.dir.path()));
    let safe = bench.safe_over(Arc::clone(&store));
    let grant = bench.connect(&safe).await;
    for (who, which) in [("alice", "2"), ("bob", "1")] {
        let answer = bench.provider.consent();
        safe.deposit(person(who), terms(), account(which), answer, scopes(&["mail"])).await.unwrap();
    }
    let records = store.scan(Table::Grant, None, 10).await.unwrap();
    let owner_of_two = records.iter().map(|r| r.owner).find(|o| records.iter().filter(|r| r.owner == *o).count() == 2);
    let (alices, bobs): (Vec<_>, Vec<_>) = records.iter().cloned().partition(|r| Some(r.owner) == owner_of_two);

    // Another person's tokens, and those of the same person's other account.
    for (into, from) in [(&alices[0], &bobs[0]), (&bobs[0], &alices[0]), (&alices[0], &alices[1])] {
        let moved = Record { sealed: from.sealed.clone(), ..into.clone() };
        store.apply(vec![Write::Put(moved)]).await.unwrap();
        let who = if into.owner == bobs[0].owner { "bob" } else { "alice" };
        let whole = safe.grants(&person(who)).await.unwrap();
        store.apply(vec![Write::Put(into.clone())]).await.unwrap();
        let mended = safe.grants(&person(who)).await.unwrap();
        assert_eq!(whole.len() + 1, mended.len(), "it is passed over, and nothing else is");
    }
    for alice in &alices {
        let mut cut = alice.clone();
        cut.sealed.pop();
        store.apply(vec![Write::Put(cut)]).await.unwrap();
    }
    assert_eq!(failed(bench.token(&safe, &grant).await).code, Code::VaultUnavailable);

    // Nor does the file hold anything readable.
    let file = std::fs::read(bench.dir.path().join("data/obo.db-wal")).unwrap();
    for word in ["access-", "refresh-", "alice", "example.com"] {
        assert!(!file.windows(word.len()).any(|window| window == word.as_bytes()), "{word}");
    }
}

mod failpoint_tests;
mod lapsed_tests;
mod spool_tests;

const CHILD: &str = "OBO_TEST_VAULT_CHILD";

/// A process is killed right after it was told that a deposit is durable.
#[test]
fn a_deposit_outlives_kill_9() {
    use std::io::BufRead as _;
    let bench = Bench::new(Rotation::Strict);
    for round in 1..=5 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "vault::tests::child_process", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{round} {}", bench.dir.path().display()))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "deposited"));
        child.kill().unwrap();
        child.wait().unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let safe = bench.safe();
            let grants = safe.grants(&person("alice")).await.unwrap();
            assert_eq!(grants.len(), round);
            assert_eq!(bench.token(&safe, &grants[round - 1]).await.unwrap(), format!("access-{round}"));
        });
    }
}

/// Not a test of its own: what [`a_deposit_outlives_kill_9`] starts.
#[tokio::test]
async fn child_process() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (round, dir) = job.split_once(' ').unwrap();
    let store: Arc<dyn Store> = Arc::new(open_store(Path::new(dir)));
    let clock = ManualClock::at(Timestamp::from_second(1_700_000_000).unwrap());
    let safe = Arc::new(Safe::new(Arc::clone(&store), open_keys(store, Path::new(dir)), clock));
    let answer = TokenAnswer {
        access_token: Secret::new(format!("access-{round}")),
        refresh_token: None,
        expires_in: Some(LIFE),
        scopes: None,
    };
    safe.deposit(person("alice"), terms(), account(round), answer, scopes(&[])).await.unwrap();
    println!("\ndeposited");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_default_account_stays_the_default_whatever_happens_to_its_tokens() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let first = bench.connect(&safe).await;
    let answer = bench.provider.consent();
    let second = safe.deposit(person("alice"), terms(), account("2"), answer, scopes(&["mail"])).await.unwrap();
    let default = async |safe: &Safe| {
        let grants = safe.grants(&person("alice")).await.unwrap();
        Grant::default_of(&grants).map(|grant| grant.account.key.clone())
    };
    assert_eq!(default(&safe).await, None, "the first account is no default by itself");

    // The clock stands still, and then goes back.
    let chosen = safe.prefer(&first, None).await.unwrap().unwrap().preferred_at;
    let later = safe.prefer(&second, chosen).await.unwrap().unwrap().preferred_at;
    assert!(later > chosen);
    assert_eq!(default(&safe).await.as_deref(), Some("2"));
    let latest = safe.prefer(&first, later).await.unwrap().unwrap().preferred_at;
    assert!(latest > later);
    assert_eq!(default(&safe).await.as_deref(), Some("1"));

    bench.clock.advance(LIFE);
    assert_eq!(bench.token(&safe, &first).await.unwrap(), "access-0-2");
    assert_eq!(default(&safe).await.as_deref(), Some("1"), "a refresh keeps it");
    assert_eq!(bench.connect(&safe).await.preferred_at, latest, "so does a new consent");
    bench.provider.state().families.get_mut(&2).unwrap().dead = true;
    bench.clock.advance(LIFE);
    assert!(needs_consent(bench.token(&safe, &first).await));
    assert_eq!(default(&safe).await.as_deref(), Some("1"), "and the end of the grant");

    safe.disconnect(&first, None, Keep::Nothing).await.unwrap();
    assert_eq!(default(&safe).await.as_deref(), Some("2"), "the choice before it counts again");
    assert!(safe.prefer(&first, None).await.unwrap().is_none(), "what is gone cannot be chosen");
}

#[tokio::test]
async fn a_choice_waits_for_a_refresh_and_loses_nothing_of_it() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    bench.clock.advance(LIFE);
    bench.provider.next(&[Fault::Slow]);
    let mut refreshing = Box::pin(bench.token(&safe, &grant));
    while bench.provider.requests() == 0 {
        assert!(futures::poll!(refreshing.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let store = Flaky::over(open_store(bench.dir.path()));
    let other = bench.safe_over(Arc::clone(&store) as Arc<dyn Store>);
    let mut choosing = Box::pin(other.prefer(&grant, None));
    assert!(futures::poll!(choosing.as_mut()).is_pending());
    bench.provider.gate.add_permits(1);
    let (refreshed, chosen) = tokio::join!(refreshing, choosing);
    assert_eq!(refreshed.unwrap(), "access-0-2");
    assert!(chosen.unwrap().is_some());
    assert_eq!(store.leases.load(Ordering::SeqCst), 1, "it is a change as every other");
    let head = bench.head(&safe, &grant).await;
    assert_eq!((head.access_token.expose(), head.preferred_at.is_some()), ("access-0-2", true));
    assert_eq!(bench.provider.lost(), 0);
}

#[tokio::test]
async fn heads_written_before_there_were_defaults_open_and_are_written_as_before() {
    let bench = Bench::new(Rotation::Keeps);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    let head = bench.head(&safe, &grant).await;
    let body = head.to_bytes().unwrap();
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&body).unwrap();
    assert!(!fields.contains_key("preferred_at"), "an obo that does not know the key opens it too");
    assert_eq!(head::Head::from_bytes(&body).unwrap().preferred_at, None);
    let chosen = safe.prefer(&grant, None).await.unwrap().unwrap();
    assert_eq!(chosen.preferred_at, Some(bench.clock.now()));
    assert_eq!(bench.head(&safe, &grant).await.preferred_at, chosen.preferred_at);
}

#[tokio::test]
async fn people_are_listed_as_long_as_they_have_connections() {
    let bench = Bench::new(Rotation::Keeps);
    let safe = bench.safe();
    assert!(safe.people().await.unwrap().is_empty());
    let first = bench.connect(&safe).await;
    let keys = safe.keys.open().await.unwrap();
    let owner = people::owner(&keys, &first.person);
    let listed = async || safe.people().await.unwrap().get(&owner).cloned();
    assert_eq!(listed().await, Some(person("alice")));

    // A second connection comes while the first is about to take the person off the list.
    let key = safe::key_of(&keys, &first.person, &first.provider, &first.account.key);
    let off = safe.unlisting(&keys, &first.person, &key).await.unwrap().expect("it is the last connection");
    let answer = bench.provider.consent();
    let second = safe.deposit(person("alice"), terms(), account("2"), answer, scopes(&["mail"])).await.unwrap();
    assert!(matches!(safe.store.apply(vec![off]).await, Err(StoreError::Conflict)));
    assert!(safe.unlisting(&keys, &first.person, &key).await.unwrap().is_none(), "another one stays");

    safe.disconnect(&first, None, Keep::Nothing).await.unwrap();
    assert_eq!(listed().await, Some(person("alice")));
    safe.disconnect(&second, None, Keep::Nothing).await.unwrap();
    assert_eq!(listed().await, None, "nothing is kept of who has no connection");

    // A vault of an obo that kept no list gets it with the next refresh.
    let grant = bench.connect(&safe).await;
    let listing = safe.store.get(Table::Person, &owner).await.unwrap().unwrap();
    let delete = Write::Delete { table: Table::Person, key: owner, generation: listing.generation };
    safe.store.apply(vec![delete]).await.unwrap();
    assert_eq!(listed().await, None);
    bench.clock.advance(LIFE);
    bench.token(&safe, &grant).await.unwrap();
    assert_eq!(listed().await, Some(person("alice")));
}

#[tokio::test]
async fn a_restored_grant_is_asked_about_before_its_token_is_used() {
    let bench = Bench::new(Rotation::Strict);
    let safe = bench.safe();
    let grant = bench.connect(&safe).await;
    let keys = safe.keys.open().await.unwrap();
    let key = safe::key_of(&keys, &grant.person, &grant.provider, &grant.account.key);
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1");
    assert_eq!(bench.provider.requests(), 0);

    safe.restored(&grant.person, &key).await.unwrap();
    bench.provider.next(&[Fault::Down; 3]);
    failed(bench.token(&safe, &grant).await);
    bench.clock.advance(Duration::from_secs(60));
    let asked = bench.provider.requests();
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-2");
    assert_eq!(bench.provider.requests(), asked + 1, "once: then it is as good as any");

    // The backup is older than the newest refresh token, and the provider takes its use for theft.
    bench.provider.state().families.get_mut(&0).unwrap().newest += 1;
    safe.restored(&grant.person, &key).await.unwrap();
    assert!(needs_consent(bench.token(&safe, &grant).await));
    let head = bench.head(&safe, &grant).await;
    assert_eq!((head.status, head.refresh_token.is_some()), (GrantStatus::NeedsConsent, true), "INV-9");
    let anew = bench.connect(&safe).await;
    assert_eq!(bench.token(&safe, &anew).await.unwrap(), "access-1-1", "a new consent is no restored one");
}

#[tokio::test]
async fn a_restored_grant_without_a_refresh_token_is_tried_as_it_is() {
    let bench = Bench::new(Rotation::Keeps);
    let safe = bench.safe();
    let answer = TokenAnswer { refresh_token: None, ..bench.provider.consent() };
    let grant = safe.deposit(person("alice"), terms(), account("1"), answer, scopes(&["mail"])).await.unwrap();
    let keys = safe.keys.open().await.unwrap();
    let key = safe::key_of(&keys, &grant.person, &grant.provider, &grant.account.key);
    safe.restored(&grant.person, &key).await.unwrap();
    assert_eq!(bench.token(&safe, &grant).await.unwrap(), "access-0-1");
    assert!(needs_consent(bench.after_rejection(&safe, &grant, "access-0-1").await));
}
