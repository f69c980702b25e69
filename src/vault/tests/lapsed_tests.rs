//! Leases that end while their holder lives: it was stopped for a while, or cannot reach the store.

use std::time::Instant;

use super::super::refresh::EXCHANGE;
use super::*;

/// A store whose leases end by themselves: until when.
fn timed(bench: &Bench, span: Duration) -> (Arc<Flaky>, Arc<Mutex<Instant>>) {
    let store = Flaky::over(open_store(bench.dir.path()));
    let until = Arc::new(Mutex::new(Instant::now() + span));
    *store.until.lock().unwrap() = Some(Arc::clone(&until));
    (store, until)
}

/// The provider, which ends a connection when a token is used twice, and is known to.
fn strict(bench: &Bench) -> Upstream {
    let mut upstream = bench.upstream();
    upstream.terms.refresh = Refresh::Strict;
    upstream
}

/// A vault that waits for no lease of another, by a clock of its own.
fn beside(bench: &Bench, clock: &Arc<ManualClock>) -> (Arc<Safe>, Arc<Flaky>) {
    let (store, _) = timed(bench, Duration::from_secs(600));
    store.lapsed.store(true, Ordering::SeqCst);
    let shared = Arc::clone(&store) as Arc<dyn Store>;
    let mut safe = Safe::new(Arc::clone(&shared), open_keys(shared, bench.dir.path()), clock.clone());
    safe.pace = PACE;
    (Arc::new(safe), store)
}

/// Lets somebody wait until they have looked at the grant so many times more.
async fn looks<F: Future + Unpin>(store: &Flaky, times: u32, waiting: &mut F) {
    let until = store.leases.load(Ordering::SeqCst) + times;
    while store.leases.load(Ordering::SeqCst) < until {
        assert!(futures::poll!(&mut *waiting).is_pending());
        tokio::task::yield_now().await;
    }
}

/// A refresh at the provider, which has replaced the token and does not answer yet.
async fn at_the_provider<F: Future + Unpin>(bench: &Bench, refreshing: &mut F) {
    while bench.provider.requests() == 0 {
        assert!(futures::poll!(&mut *refreshing).is_pending());
        tokio::task::yield_now().await;
    }
}

/// As a process that was stopped for longer than it may hold a grant, at the worst moment: another one has asked since.
#[tokio::test]
async fn whoever_has_lost_its_lease_asks_no_provider() {
    let bench = Bench::new(Rotation::Strict);
    let grant = bench.connect(&bench.safe()).await;
    bench.clock.advance(LIFE);
    let (store, until) = timed(&bench, Duration::from_millis(500));
    let safe = bench.safe_over(store);
    let failure = failed(bench.token(&safe, &grant).await);
    assert_eq!(failure.code, Code::VaultUnavailable, "it may end before the provider has the request");
    assert_eq!(bench.provider.requests(), 0);
    *until.lock().unwrap() += Duration::from_secs(60);
    bench.clock.advance(LIFE);
    bench.token(&safe, &grant).await.unwrap();
    assert_eq!(bench.provider.requests(), 1);
}

/// At a provider that takes no token twice: the one who began it lives, and writes what it is answered.
#[tokio::test]
async fn an_exchange_whose_lease_has_ended_is_left_in_peace() {
    let bench = Bench::new(Rotation::Strict);
    let first = bench.safe();
    let grant = bench.connect(&first).await;
    bench.clock.advance(LIFE);
    bench.provider.next(&[Fault::Slow]);
    let mut refreshing = Box::pin(first.token(&grant, strict(&bench), None));
    at_the_provider(&bench, &mut refreshing).await;

    let (second, store) = beside(&bench, &bench.clock);
    let mut waiting = Box::pin(second.token(&grant, strict(&bench), None));
    looks(&store, 3, &mut waiting).await;
    bench.clock.advance(EXCHANGE - Duration::from_secs(1));
    looks(&store, 3, &mut waiting).await;
    assert_eq!(bench.provider.requests(), 1);
    bench.provider.gate.add_permits(1);
    let (refreshed, waited) = tokio::join!(refreshing, waiting);
    assert_eq!((refreshed.unwrap().expose(), waited.unwrap().expose()), ("access-0-2", "access-0-2"));
    assert_eq!((bench.provider.requests(), bench.provider.lost()), (1, 0));
}

/// ... but not for ever, and whatever the clock says of the one who began it.
#[tokio::test]
async fn an_exchange_whose_process_is_gone_is_made_again() {
    for ahead in [Duration::ZERO, 100 * LIFE] {
        let bench = Bench::new(Rotation::Strict);
        let first = bench.safe();
        let grant = bench.connect(&first).await;
        bench.clock.advance(LIFE);
        let clock = ManualClock::at(bench.clock.now());
        bench.clock.advance(ahead);
        bench.provider.next(&[Fault::Slow]);
        let mut refreshing = Box::pin(first.token(&grant, strict(&bench), None));
        at_the_provider(&bench, &mut refreshing).await;
        // It has not heard of it after all.
        bench.provider.state().families.get_mut(&0).unwrap().newest = 1;

        let (second, store) = beside(&bench, &clock);
        let mut waiting = Box::pin(second.token(&grant, strict(&bench), None));
        looks(&store, 2, &mut waiting).await;
        assert_eq!(bench.provider.requests(), 1);
        clock.advance(EXCHANGE);
        assert_eq!(waiting.await.unwrap().expose(), "access-0-2");
        assert_eq!((bench.provider.requests(), bench.provider.lost()), (2, 0));
    }
}

/// One that takes a token again for a while is asked as soon as the lease has ended.
#[tokio::test]
async fn a_provider_with_grace_is_asked_at_once() {
    let bench = Bench::new(Rotation::Grace);
    let first = bench.safe();
    let grant = bench.connect(&first).await;
    bench.clock.advance(LIFE);
    bench.provider.next(&[Fault::Slow]);
    let graced = || {
        let mut upstream = strict(&bench);
        upstream.terms.grace = Duration::from_secs(30);
        upstream
    };
    let mut refreshing = Box::pin(first.token(&grant, graced(), None));
    at_the_provider(&bench, &mut refreshing).await;
    let (second, _) = beside(&bench, &bench.clock);
    second.token(&grant, graced(), None).await.unwrap();
    assert_eq!((bench.provider.requests(), bench.provider.lost()), (2, 0));
    bench.provider.gate.add_permits(1);
    refreshing.await.unwrap();
}
