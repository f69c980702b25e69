//! Who waits for a link to end without holding anything but its connection: one watcher a process looks at the store
//! for all of them.
//!
//! A flow that ends in this process wakes its own waiters at once. One that another process ends is seen at the next
//! look, or as soon as the store tells of it. A look asks for nothing but generations; only who waits for a flow that
//! changed reads it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, broadcast};

use super::flow::FlowId;
use crate::clock::SharedClock;
use crate::store::{Changed, RecordKey, Store, Table};

/// How often the watcher looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many flows it asks for at once: other readers of the store get their turn in between.
const MAX_ASKED: usize = 500;

/// The waiters of this process. Cheap to clone.
#[derive(Clone)]
pub(super) struct Polls {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    clock: SharedClock,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    flows: HashMap<RecordKey, Watched>,
    /// Whether there is a watcher. It ends when nobody waits.
    watching: bool,
}

/// A flow that somebody waits for.
struct Watched {
    waiters: usize,
    changed: Arc<Notify>,
    /// The record's generation when it was last looked at; none: nobody has looked yet.
    generation: Option<u64>,
    /// When it is over if nothing happens to it.
    until: Timestamp,
}

/// One who waits. Dropping it is enough to stop.
pub(super) struct Poll {
    polls: Polls,
    key: RecordKey,
    changed: Arc<Notify>,
}

impl Poll {
    /// Ready when the flow may have changed since this was called.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Says how the flow stands that was just read: only what differs from it wakes.
    pub(super) fn saw(&self, generation: u64, until: Timestamp) {
        if let Some(watched) = self.polls.held().flows.get_mut(&self.key) {
            watched.generation.get_or_insert(generation);
            watched.until = until;
        }
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let mut held = self.polls.held();
        if let Some(watched) = held.flows.get_mut(&self.key) {
            watched.waiters -= 1;
            if watched.waiters == 0 {
                held.flows.remove(&self.key);
            }
        }
    }
}

impl Polls {
    pub(super) fn new(store: Arc<dyn Store>, clock: SharedClock) -> Self {
        Self { inner: Arc::new(Inner { store, clock, held: Mutex::default() }) }
    }

    /// Begins to wait for a flow.
    pub(super) fn wait_for(&self, id: &FlowId) -> Poll {
        let key = id.key();
        let mut held = self.held();
        let watched = held.flows.entry(key).or_insert_with(|| Watched {
            waiters: 0,
            changed: Arc::default(),
            generation: None,
            until: Timestamp::MAX,
        });
        watched.waiters += 1;
        let changed = Arc::clone(&watched.changed);
        if !held.watching {
            held.watching = true;
            let this = self.clone();
            tokio::spawn(async move { this.watch().await });
        }
        Poll { polls: self.clone(), key, changed }
    }

    /// Wakes whoever waits for a flow that has just ended here.
    pub(super) fn wake(&self, id: &FlowId) {
        if let Some(watched) = self.held().flows.get(&id.key()) {
            watched.changed.notify_waiters();
        }
    }

    async fn watch(&self) {
        let mut changes = self.inner.store.changes();
        loop {
            self.pause(&mut changes).await;
            let keys: Vec<RecordKey> = {
                let mut held = self.held();
                if held.flows.is_empty() {
                    held.watching = false;
                    return;
                }
                held.flows.keys().copied().collect()
            };
            for keys in keys.chunks(MAX_ASKED) {
                self.look(keys).await;
            }
        }
    }

    /// Until it is time to look: at the latest after [`LOOK_EVERY`], and at once when another process has changed a flow
    /// that somebody waits for.
    async fn pause(&self, changes: &mut Option<broadcast::Receiver<Changed>>) {
        let until = tokio::time::Instant::now() + LOOK_EVERY;
        while let Some(receiver) = changes {
            match tokio::time::timeout_at(until, receiver.recv()).await {
                Ok(Ok(changed)) if !self.held().flows.contains_key(&changed.key) => {}
                // One of ours; or some went unheard.
                Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) | Err(_) => return,
                Ok(Err(broadcast::error::RecvError::Closed)) => *changes = None,
            }
        }
        tokio::time::sleep_until(until).await;
    }

    async fn look(&self, keys: &[RecordKey]) {
        let found = self.inner.store.generations(Table::Flow, keys).await;
        let found: Option<HashMap<RecordKey, u64>> = found.ok().map(|found| found.into_iter().collect());
        let now = self.inner.clock.now();
        let mut held = self.held();
        for key in keys {
            let Some(watched) = held.flows.get_mut(key) else { continue };
            let changed = match (&found, watched.generation) {
                // Whoever waits looks for themselves, and hears that the store does not answer.
                (None, _) => true,
                // Still on the way to its first look.
                (Some(_), None) => false,
                (Some(found), Some(seen)) => found.get(key) != Some(&seen),
            };
            if changed || watched.until <= now {
                // The next who reads it says how it stands.
                watched.generation = None;
                watched.changed.notify_waiters();
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn counts(&self) -> (usize, bool) {
        let held = self.held();
        (held.flows.len(), held.watching)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;

    use super::*;
    use crate::clock::{Clock as _, ManualClock};
    use crate::store::{Lease, LogEntry, Record, StoreError, Write};

    /// Generations, and how often it was asked for some. It is asked for nothing else.
    #[derive(Default)]
    struct Generations {
        flows: Mutex<HashMap<RecordKey, u64>>,
        broken: Mutex<bool>,
        asked: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl Store for Generations {
        async fn generations(&self, _: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if *self.broken.lock().unwrap() {
                return Err(StoreError::Unavailable("the disk is gone".to_owned()));
            }
            let flows = self.flows.lock().unwrap();
            Ok(keys.iter().filter_map(|key| Some((*key, *flows.get(key)?))).collect())
        }
        async fn get(&self, _: Table, _: &RecordKey) -> Result<Option<Record>, StoreError> {
            panic!("a record was read")
        }
        async fn owned(&self, _: Table, _: &RecordKey) -> Result<Vec<Record>, StoreError> {
            panic!("records were read")
        }
        async fn scan(&self, _: Table, _: Option<&RecordKey>, _: usize) -> Result<Vec<Record>, StoreError> {
            panic!("records were read")
        }
        async fn apply(&self, _: Vec<Write>) -> Result<(), StoreError> {
            panic!("something was written")
        }
        async fn log(&self, _: u64, _: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
            panic!("the log was read")
        }
        async fn newest(&self, _: u64, _: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
            panic!("the log was read")
        }
        async fn prune(&self, _: Timestamp) -> Result<usize, StoreError> {
            panic!("something was removed")
        }
        async fn lease(&self, _: &RecordKey, _: Duration) -> Result<Option<Lease>, StoreError> {
            panic!("a lease was taken")
        }
    }

    struct Bench {
        store: Arc<Generations>,
        clock: Arc<ManualClock>,
        polls: Polls,
        ids: Vec<FlowId>,
    }

    impl Bench {
        fn with_flows(count: usize) -> Self {
            let ids: Vec<FlowId> = (0..count).map(|_| FlowId::new()).collect();
            let store = Arc::new(Generations::default());
            store.flows.lock().unwrap().extend(ids.iter().map(|id| (id.key(), 1)));
            let clock = ManualClock::at("2026-11-24T08:00:00Z".parse().unwrap());
            let polls = Polls::new(Arc::clone(&store) as _, Arc::clone(&clock) as _);
            Self { store, clock, polls, ids }
        }

        /// Polls for all flows, each of which was seen as it stands.
        fn held(&self) -> Vec<Poll> {
            let until = crate::clock::later(self.clock.now(), Duration::from_secs(600));
            self.ids
                .iter()
                .map(|id| {
                    let poll = self.polls.wait_for(id);
                    poll.saw(1, until);
                    poll
                })
                .collect()
        }

        /// Which of these were woken by what happens next, one look included.
        async fn woken(&self, polls: &[Poll], happens: impl FnOnce()) -> Vec<usize> {
            let waiting: Vec<_> = polls.iter().map(Poll::changed).collect();
            happens();
            // Time stands still but for this: a little more than a look, so that each has one.
            tokio::time::sleep(LOOK_EVERY + LOOK_EVERY / 20).await;
            let woken = waiting.into_iter().enumerate();
            woken.filter_map(|(n, changed)| Box::pin(changed).as_mut().now_or_never().map(|()| n)).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_serves_all_and_wakes_only_whose_flow_changed() {
        let bench = Bench::with_flows(MAX_ASKED + 1);
        let polls = bench.held();
        assert_eq!(bench.woken(&polls, || ()).await, Vec::<usize>::new());
        assert_eq!(bench.store.asked.load(Ordering::SeqCst), 2, "for all of them");
        let changed = bench.woken(&polls, || {
            let mut flows = bench.store.flows.lock().unwrap();
            flows.insert(bench.ids[7].key(), 2);
            flows.remove(&bench.ids[MAX_ASKED].key());
        });
        assert_eq!(changed.await, [7, MAX_ASKED]);
        assert_eq!(bench.store.asked.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_here_wakes_at_once_and_everybody_who_waits_for_it() {
        let bench = Bench::with_flows(2);
        let (polls, again) = (bench.held(), bench.held());
        let woken = [polls[1].changed(), again[1].changed()];
        let others = [polls[0].changed(), again[0].changed()];
        bench.polls.wake(&bench.ids[1]);
        assert!(woken.into_iter().all(|changed| Box::pin(changed).as_mut().now_or_never().is_some()));
        assert!(others.into_iter().all(|changed| Box::pin(changed).as_mut().now_or_never().is_none()));
        assert_eq!(bench.store.asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_expires_and_a_store_that_is_gone_wake_too() {
        let bench = Bench::with_flows(2);
        let polls = bench.held();
        let woken = bench.woken(&polls, || bench.clock.advance(Duration::from_secs(600)));
        assert_eq!(woken.await, [0, 1]);
        let polls = bench.held();
        assert_eq!(bench.woken(&polls, || *bench.store.broken.lock().unwrap() = true).await, [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_when_nobody_waits_and_the_next_one_is_watched_for() {
        let bench = Bench::with_flows(3);
        let polls = bench.held();
        let again = bench.held();
        drop(polls);
        assert_eq!(bench.polls.counts(), (3, true));
        drop(again);
        assert_eq!(bench.polls.counts().0, 0);
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert_eq!(bench.polls.counts(), (0, false));
        assert_eq!(bench.store.asked.load(Ordering::SeqCst), 0);
        let polls = bench.held();
        let woken = bench.woken(&polls, || {
            bench.store.flows.lock().unwrap().insert(bench.ids[0].key(), 9);
        });
        assert_eq!(woken.await, [0]);
    }
}
