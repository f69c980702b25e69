//! Calls under way, counted by person.
//!
//! A call goes on when its client goes away, so neither the number of connections nor that of sessions bounds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::Person;

/// Most calls of one person that are under way at once. A model with its sub-agents makes a few dozen.
pub(super) const MAX_CALLS_PER_PERSON: usize = 256;

/// How many calls each person has under way.
#[derive(Default)]
pub(super) struct Calls(Mutex<HashMap<Person, usize>>);

/// One call under way; it has ended when this is dropped.
pub(super) struct Call {
    calls: Arc<Calls>,
    person: Person,
}

impl Calls {
    /// Begins a call, unless the person has too many.
    pub(super) fn begin(self: &Arc<Self>, person: &Person) -> Option<Call> {
        let mut counts = self.lock();
        let count = counts.entry(person.clone()).or_default();
        if *count >= MAX_CALLS_PER_PERSON {
            return None;
        }
        *count += 1;
        Some(Call { calls: self.clone(), person: person.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Person, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut counts = self.calls.lock();
        if let Some(count) = counts.get_mut(&self.person) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.person);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_persons_calls_do_not_count_for_another() {
        let person = |user: &str| Person {
            tenant: "acme".parse().unwrap(),
            source: "corp".parse().unwrap(),
            user: user.parse().unwrap(),
        };
        let calls = Arc::<Calls>::default();
        let mut under_way: Vec<_> = (0..MAX_CALLS_PER_PERSON).map(|_| calls.begin(&person("alice")).unwrap()).collect();
        assert!(calls.begin(&person("alice")).is_none());
        assert!(calls.begin(&person("bob")).is_some());
        under_way.pop();
        assert!(calls.begin(&person("alice")).is_some());
        under_way.clear();
        assert!(calls.lock().is_empty());
    }
}
