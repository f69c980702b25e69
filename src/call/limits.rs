//! Calls of each person: how many are under way, and how often they come.
//!
//! A call goes on when its client goes away, so neither the number of connections nor that of sessions bounds it. How
//! often is the other half: servers must limit the rate of tool calls (2025-11-25, Tools §Security Considerations).
//!
//! Both are counted in this process only. Time is tokio's, which is monotonic: setting the machine's clock neither lets
//! anybody through nor keeps anybody out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::{Code, Failure};
use crate::id::Person;

/// Most calls of one person that are under way at once. A model with its sub-agents makes a few dozen.
pub(super) const MAX_CALLS_PER_PERSON: usize = 256;

/// The time that `calls_per_minute` is about: what is saved up in it may be spent at once.
const WINDOW: Duration = Duration::from_secs(60);

/// The calls of everybody.
pub(super) struct Calls {
    /// What one call costs of the window's time; none where calls are not limited.
    cost: Option<Duration>,
    people: Mutex<People>,
}

#[derive(Default)]
struct People {
    of: HashMap<Person, Count>,
    /// When those who have nothing under way and all of their calls again are forgotten next.
    sweep_at: Option<Instant>,
}

/// What is known of one person's calls.
#[derive(Default)]
struct Count {
    under_way: usize,
    /// When everything that was spent will have come back: a token bucket, written as the time when it is full (the
    /// generic cell rate algorithm, ITU-T I.371).
    full_at: Option<Instant>,
}

/// One call under way; it has ended when this is dropped.
pub(super) struct Call {
    calls: Arc<Calls>,
    person: Person,
}

/// Why a call may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooMany {
    /// Too many are under way.
    UnderWay,
    /// Too many came within a minute.
    InAMinute {
        /// When the next one may come.
        wait: Duration,
    },
}

impl Calls {
    /// Lets each person make `per_minute` calls a minute, in a burst or spread out; any number where it is 0.
    pub(super) fn new(per_minute: u32) -> Arc<Self> {
        Arc::new(Self { cost: WINDOW.checked_div(per_minute), people: Mutex::default() })
    }

    /// Begins a call, unless the person has too many.
    ///
    /// # Errors
    /// What there is too much of. A call that is refused costs nothing.
    pub(super) fn begin(self: &Arc<Self>, person: &Person) -> Result<Call, TooMany> {
        let now = Instant::now();
        let mut people = self.lock();
        people.sweep(now);
        let count = people.of.entry(person.clone()).or_default();
        if count.under_way >= MAX_CALLS_PER_PERSON {
            return Err(TooMany::UnderWay);
        }
        if let Some(cost) = self.cost {
            let full_at = count.full_at.filter(|at| *at > now).unwrap_or(now) + cost;
            let latest = now + WINDOW;
            if full_at > latest {
                return Err(TooMany::InAMinute { wait: full_at - latest });
            }
            count.full_at = Some(full_at);
        }
        count.under_way += 1;
        drop(people);
        Ok(Call { calls: self.clone(), person: person.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, People> {
        self.people.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl People {
    /// Forgets people about whom there is nothing to know. Once a window, so that it costs each call next to nothing.
    fn sweep(&mut self, now: Instant) {
        if self.sweep_at.is_some_and(|at| now < at) {
            return;
        }
        self.sweep_at = Some(now + WINDOW);
        self.of.retain(|_, count| count.under_way > 0 || count.full_at.is_some_and(|at| at > now));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut people = self.calls.lock();
        if let Some(count) = people.of.get_mut(&self.person) {
            count.under_way -= 1;
            if count.under_way == 0 && count.full_at.is_none() {
                people.of.remove(&self.person);
            }
        }
    }
}

impl From<TooMany> for Failure {
    fn from(too_many: TooMany) -> Self {
        match too_many {
            TooMany::UnderWay => Failure::new(
                Code::RateLimited,
                "too many calls of this user are under way; wait for some of them to end",
            ),
            TooMany::InAMinute { wait } => {
                // Rounded up: whoever waits that long gets through.
                let wait = Duration::from_millis(u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX));
                let text = "this user has made too many calls within a minute; nothing was done. Wait as long as \
                    retry_after_ms says, then make the call again, and make fewer at a time";
                Failure::new(Code::RateLimited, text).after(Some(wait))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(user: &str) -> Person {
        Person { tenant: "acme".parse().unwrap(), source: "corp".parse().unwrap(), user: user.parse().unwrap() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_persons_calls_do_not_count_for_another() {
        let calls = Calls::new(0);
        let mut under_way: Vec<_> = (0..MAX_CALLS_PER_PERSON).map(|_| calls.begin(&person("alice")).unwrap()).collect();
        assert_eq!(calls.begin(&person("alice")).err(), Some(TooMany::UnderWay));
        assert!(calls.begin(&person("bob")).is_ok());
        under_way.pop();
        assert!(calls.begin(&person("alice")).is_ok());
        under_way.clear();
        assert!(calls.lock().of.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_minutes_calls_may_come_at_once_and_come_back_one_by_one() {
        let calls = Calls::new(6);
        let alice = person("alice");
        for _ in 0..6 {
            calls.begin(&alice).unwrap();
        }
        let wait = Duration::from_secs(10);
        // However often it is tried: a refused call costs nothing.
        for _ in 0..20 {
            assert_eq!(calls.begin(&alice).err(), Some(TooMany::InAMinute { wait }));
        }
        for _ in 0..6 {
            calls.begin(&person("bob")).unwrap();
        }
        tokio::time::advance(wait - Duration::from_millis(1)).await;
        assert_eq!(calls.begin(&alice).err(), Some(TooMany::InAMinute { wait: Duration::from_millis(1) }));
        tokio::time::advance(Duration::from_millis(1)).await;
        calls.begin(&alice).unwrap();
        assert_eq!(calls.begin(&alice).err(), Some(TooMany::InAMinute { wait }));
        // No more than a minute's calls are ever saved up.
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..20).filter(|_| calls.begin(&alice).is_ok()).count(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn people_who_make_no_calls_any_more_are_forgotten() {
        let calls = Calls::new(6);
        for n in 0..100 {
            calls.begin(&person(&n.to_string())).unwrap();
        }
        assert_eq!(calls.lock().of.len(), 100);
        let under_way = calls.begin(&person("alice")).unwrap();
        tokio::time::advance(WINDOW).await;
        calls.begin(&person("bob")).unwrap();
        assert_eq!(calls.lock().of.len(), 2, "alice, whose call is under way, and bob");
        drop(under_way);
    }

    #[test]
    fn the_wait_is_told_and_is_long_enough() {
        let failure = Failure::from(TooMany::InAMinute { wait: Duration::from_micros(1_500) });
        assert_eq!(failure.retry_after, Some(Duration::from_millis(2)));
        assert!(failure.can_retry);
        assert_eq!(Failure::from(TooMany::UnderWay).retry_after, None);
    }
}
