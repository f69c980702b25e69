//! How often something was done lately, in this process.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::clock::later;

/// Counts what was done within a span of time, by key.
pub(super) struct Window<K> {
    span: Duration,
    most: usize,
    /// When it was done for each key, oldest first.
    done: Mutex<HashMap<K, VecDeque<Timestamp>>>,
}

impl<K: Eq + Hash> Window<K> {
    pub(super) fn new(span: Duration, most: usize) -> Self {
        Self { span, most, done: Mutex::default() }
    }

    /// Counts one more for a key, unless there were too many.
    pub(super) fn count(&self, key: K, now: Timestamp) -> bool {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.retain(|_, times| {
            while times.front().is_some_and(|time| later(*time, self.span) <= now) {
                times.pop_front();
            }
            !times.is_empty()
        });
        let times = done.entry(key).or_default();
        let room = times.len() < self.most;
        if room {
            times.push_back(now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_count_and_time_gives_it_back() {
        let window = Window::new(Duration::from_secs(600), 3);
        let now: Timestamp = "2026-11-24T08:00:00Z".parse().unwrap();
        assert!((0..3).all(|_| window.count("acme", now)));
        assert!(!window.count("acme", now));
        assert!(window.count("globex", now));
        assert!(!window.count("acme", later(now, Duration::from_secs(599))));
        assert!(window.count("acme", later(now, Duration::from_secs(600))));
        assert_eq!(window.done.lock().unwrap().len(), 1, "who does nothing any more is forgotten");
    }
}
