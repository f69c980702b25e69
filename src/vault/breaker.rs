//! Token endpoints that are in trouble are left alone, whoever's grant it is.
//!
//! A grant whose refresh failed is left alone by itself. But ten thousand of them would still be ten thousand requests to
//! a server that is down, or that has refused our client: so the server is remembered, too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::clock::{later, remaining};
use crate::failure::Failure;

/// How many refreshes in a row must fail before the server is taken to be in trouble, rather than one grant.
const TOO_MANY: u32 = 5;

/// How long it is left alone, at first; doubles with every further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// ... and at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The longest wait that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// How long one refresh has to find out whether it is well again, before another may.
const PROBE: Duration = Duration::from_secs(20);

/// Why a server is in trouble.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It gave no proper answer.
    NoAnswer,
    /// It asks to be left alone for so long.
    Asked(Duration),
    /// It does not accept our client: nobody's refresh can succeed.
    Client,
}

/// The servers in trouble, by their address.
#[derive(Default)]
pub(super) struct Breakers(Mutex<HashMap<String, Breaker>>);

struct Breaker {
    failures: u32,
    pause: Duration,
    /// None: it is not left alone yet.
    until: Option<Timestamp>,
    /// Whether one caller is finding out.
    probed: bool,
    failure: Failure,
}

impl Breakers {
    /// What every refresh would hear, while a server is left alone. When the pause is over, one caller is let through.
    pub(super) fn refusal(&self, server: &str, now: Timestamp) -> Option<Failure> {
        let mut breakers = self.lock();
        let breaker = breakers.get_mut(server)?;
        let until = breaker.until?;
        if now < until {
            return Some(breaker.failure.clone().after(Some(remaining(now, until))));
        }
        breaker.until = Some(later(now, PROBE));
        breaker.probed = true;
        None
    }

    /// Notes a proper answer, a refusal of one grant included.
    pub(super) fn well(&self, server: &str) {
        if self.lock().remove(server).is_some_and(|breaker| breaker.until.is_some()) {
            tracing::info!(server, "vault.provider_well_again");
        }
    }

    /// Notes a failure.
    pub(super) fn failed(&self, server: &str, trouble: Trouble, failure: &Failure, now: Timestamp) {
        let mut breakers = self.lock();
        let breaker = breakers.entry(server.to_owned()).or_insert_with(|| Breaker {
            failures: 0,
            pause: FIRST_PAUSE,
            until: None,
            probed: false,
            failure: failure.clone(),
        });
        breaker.failures = breaker.failures.saturating_add(1);
        breaker.failure = failure.clone();
        let was_left_alone = breaker.until.is_some();
        let pause = match trouble {
            Trouble::NoAnswer if breaker.failures < TOO_MANY => return,
            Trouble::NoAnswer | Trouble::Client => {
                let pause = breaker.pause;
                breaker.pause = (pause * 2).min(LONGEST_PAUSE);
                pause
            }
            Trouble::Asked(wait) => wait.min(LONGEST_ASKED),
        };
        let until = Some(later(now, pause));
        // A refresh that began earlier does not shorten what was asked for since.
        breaker.until = if std::mem::take(&mut breaker.probed) { until } else { breaker.until.max(until) };
        if trouble == Trouble::Client && !was_left_alone {
            // Once, and not once a person: it is the operator's to mend, and nobody's connection.
            tracing::error!(server, cause = failure.cause, "vault.client_refused");
        } else if !was_left_alone {
            tracing::warn!(server, cause = failure.cause, "vault.provider_in_trouble");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Breaker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn failure() -> Failure {
        Failure::new(Code::ProviderUnreachable, "it is down")
    }

    #[test]
    fn a_server_is_left_alone_after_several_failures_and_asked_by_one() {
        let breakers = Breakers::default();
        for _ in 1..TOO_MANY {
            breakers.failed("a", Trouble::NoAnswer, &failure(), at(0));
            assert!(breakers.refusal("a", at(0)).is_none());
        }
        breakers.failed("a", Trouble::NoAnswer, &failure(), at(0));
        assert_eq!(breakers.refusal("a", at(0)).unwrap().retry_after, Some(FIRST_PAUSE));
        assert!(breakers.refusal("b", at(0)).is_none(), "others are none the worse");

        assert!(breakers.refusal("a", at(1)).is_none(), "one may look");
        assert!(breakers.refusal("a", at(1)).is_some(), "and nobody else meanwhile");
        // Its failure doubles the pause; its silence lets another look.
        breakers.failed("a", Trouble::NoAnswer, &failure(), at(2));
        assert_eq!(breakers.refusal("a", at(2)).unwrap().retry_after, Some(2 * FIRST_PAUSE));
        assert!(breakers.refusal("a", at(4)).is_none());
        assert!(breakers.refusal("a", at(23)).is_some());
        assert!(breakers.refusal("a", at(24)).is_none());
        breakers.well("a");
        for _ in 0..2 {
            assert!(breakers.refusal("a", at(24)).is_none());
        }
    }

    #[test]
    fn a_server_that_asks_to_wait_or_refuses_the_client_is_left_alone_at_once() {
        let breakers = Breakers::default();
        breakers.failed("a", Trouble::Asked(Duration::from_secs(7)), &failure(), at(0));
        assert_eq!(breakers.refusal("a", at(0)).unwrap().retry_after, Some(Duration::from_secs(7)));
        breakers.failed("b", Trouble::Asked(Duration::MAX), &failure(), at(0));
        assert_eq!(breakers.refusal("b", at(0)).unwrap().retry_after, Some(LONGEST_ASKED));
        breakers.failed("c", Trouble::Client, &failure(), at(0));
        assert_eq!(breakers.refusal("c", at(0)).unwrap().retry_after, Some(FIRST_PAUSE));
        // What was asked for is not cut short by a failure that comes late.
        breakers.failed("b", Trouble::Client, &failure(), at(0));
        assert_eq!(breakers.refusal("b", at(0)).unwrap().retry_after, Some(LONGEST_ASKED));
    }
}
