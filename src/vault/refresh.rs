//! Refreshing without losing a rotated token.
//!
//! A provider that rotates refresh tokens takes a second use of the same one for theft, and ends the connection. So:
//! one refresh a grant in this process (a flight), one over processes (the grant's lease), a look at the store inside
//! the lease, a durable note before the request, and a compare-and-set write after it. The flight is a task of its
//! own: a caller who goes away cannot cancel it between the provider's answer and the write.
//!
//! What remains: a process killed after the provider rotated and before the answer was written, at a provider that
//! accepts no old token even for a moment. Nobody can close that gap from this side.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::head::{Fitness, Head};
use super::safe::{Safe, Stored, WriteError, key_of};
use super::upstream::Upstream;
use super::{Grant, GrantStatus, Refreshed, TokenError};
use crate::clock::{later, remaining};
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::keys::OpenKeys;
use crate::oauth::{OauthError, TokenAnswer};
use crate::secret::{AccessToken, Secret};
use crate::store::RecordKey;

/// How long a provider that failed is left alone, at first; doubles with every further failure.
const FIRST_COOLING: Duration = Duration::from_secs(1);

/// ... and at most.
const LONGEST_COOLING: Duration = Duration::from_secs(60);

/// The refreshes under way in this process, by grant.
pub(super) type Flights = HashMap<RecordKey, watch::Receiver<Option<Outcome>>>;

type Outcome = Result<Issued, TokenError>;

/// An access token that may be handed out.
#[derive(Clone)]
pub(super) struct Issued {
    token: Secret,
    expires_at: Option<Timestamp>,
}

impl Issued {
    fn of(head: &Head) -> Self {
        Self { token: head.access_token.clone(), expires_at: head.expires_at }
    }

    /// Whether it is good at `now`, and not the one that was just refused.
    fn serves(&self, now: Timestamp, rejected: Option<&Secret>) -> bool {
        self.expires_at.is_none_or(|end| now < end) && !rejected.is_some_and(|rejected| rejected.matches(&self.token))
    }
}

/// A grant whose last refresh failed: what every call would only hear again.
pub(super) struct Cooling {
    until: Timestamp,
    pause: Duration,
    failure: Failure,
}

/// How long after it began a refresh that had no answer is still tried again.
const ASK_AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// One refresh to be made.
struct Refresh {
    key: RecordKey,
    person: Person,
    upstream: Upstream,
    /// The access token that is no longer good enough.
    stale: Secret,
}

impl Safe {
    /// An access token for a grant; after a rejection, another one than the `rejected`.
    pub(super) async fn token(
        self: &Arc<Self>,
        grant: &Grant,
        upstream: Upstream,
        rejected: Option<&AccessToken>,
    ) -> Result<AccessToken, TokenError> {
        if grant.provider != upstream.terms.id {
            return Err(TokenError::Failed(Failure::internal("a grant was used with another provider than its own")));
        }
        let keys = self.keys.open().await.map_err(|error| TokenError::Failed(error.into()))?;
        let key = key_of(&keys, &grant.person, &grant.provider, &grant.account.key);
        let rejected = rejected.map(|token| Secret::new(token.expose()));
        let bind = |token: Secret| AccessToken::bind(grant.person.clone(), grant.provider.clone(), token);
        // A second round, for a flight that began before the rejection and brought the rejected token.
        for _ in 0..2 {
            let now = self.clock.now();
            if let Some(issued) = self.published(&key).filter(|issued| issued.serves(now, rejected.as_ref())) {
                return Ok(bind(issued.token));
            }
            let stored = self.read(&keys, &grant.person, &key).await.map_err(TokenError::Failed)?;
            let head = stored.map(|stored| stored.head).filter(|head| head.usable(&upstream.terms));
            let head = head.ok_or(TokenError::NeedsConsent)?;

            let fitness = head.fitness(now);
            let refused = rejected.as_ref().is_some_and(|rejected| rejected.matches(&head.access_token));
            if fitness == Fitness::Fresh && !refused {
                return Ok(bind(head.access_token));
            }
            let must_wait = refused || fitness == Fitness::Expired;
            if !must_wait && (head.refresh_token.is_none() || self.cooling(&key, now).is_some()) {
                return Ok(bind(head.access_token));
            }
            if must_wait && let Some(failure) = self.cooling(&key, now) {
                return Err(TokenError::Failed(failure));
            }
            let flight = self.join(Refresh {
                key,
                person: grant.person.clone(),
                upstream: upstream.clone(),
                stale: head.access_token.clone(),
            });
            if !must_wait {
                // The old token serves while the refresh runs beside: trouble at the provider is invisible for minutes.
                return Ok(bind(head.access_token));
            }
            let issued = landed(flight).await?;
            if issued.serves(self.clock.now(), rejected.as_ref()) {
                return Ok(bind(issued.token));
            }
        }
        Err(TokenError::Failed(
            Failure::new(
                Code::ProviderError,
                "the provider refuses the access token that it has just issued; try again",
            )
            .because("a refresh brought the rejected or an expired token"),
        ))
    }

    /// Joins the refresh of a grant that is under way, or begins one.
    fn join(self: &Arc<Self>, refresh: Refresh) -> watch::Receiver<Option<Outcome>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&refresh.key) {
            return flight.clone();
        }
        let (publish, flight) = watch::channel(None);
        flights.insert(refresh.key, flight.clone());
        let landing = Landing { safe: Arc::clone(self), key: refresh.key };
        self.tasks.spawn(async move {
            let outcome = landing.safe.refresh(&refresh, &publish).await;
            landing.safe.note(&refresh.key, &outcome);
            publish.send_if_modified(|published| {
                let first = published.is_none();
                if first {
                    *published = Some(outcome);
                }
                first
            });
        });
        flight
    }

    /// The refresh itself, from lease to commit.
    async fn refresh(&self, refresh: &Refresh, publish: &watch::Sender<Option<Outcome>>) -> Outcome {
        let keys = self.keys.open().await.map_err(|error| TokenError::Failed(error.into()))?;
        let _lease = self.lease(&refresh.key).await.map_err(TokenError::Failed)?;

        // Read inside the lease: whoever held it before may have refreshed already.
        let Stored { mut head, mut generation } = self.usable(&keys, refresh).await?;
        if !head.access_token.matches(&refresh.stale) && head.fitness(self.clock.now()) == Fitness::Fresh {
            return Ok(Issued::of(&head));
        }
        let Some(refresh_token) = head.refresh_token.clone() else {
            return self.end(&keys, refresh, head, generation).await;
        };

        // The intent is durable before the request, so that a refresh that a crash interrupts is taken up again at the
        // next call, with the same token, while the provider may still accept it.
        if head.refreshing_since.is_none() {
            head.refreshing_since = Some(self.clock.now());
            generation = match self.write(&keys, &refresh.key, &head, Some(generation)).await {
                Ok(generation) => generation,
                Err(WriteError::Failed(failure)) => return Err(TokenError::Failed(failure)),
                Err(WriteError::Conflict) => return Err(TokenError::Failed(changed_under_lease())),
            };
        } else {
            tracing::warn!(provider = %head.provider, "vault.interrupted_refresh_taken_up");
        }

        let began = self.clock.now();
        match self.ask(refresh, &refresh_token).await {
            Ok(answer) => {
                let next = head.refreshed(&refresh.upstream.terms, answer, self.clock.now());
                let outcome = self.commit(&keys, refresh, &refresh_token, next, generation, publish).await;
                self.tell(&head, began, "refresh.ok", None);
                outcome
            }
            Err(OauthError::InvalidGrant(code)) => {
                // Never believed on its own: somebody may have moved the grant on while we asked.
                let Stored { head: newest, generation } = self.usable(&keys, refresh).await?;
                if newest.generation != head.generation {
                    return Ok(Issued::of(&newest));
                }
                tracing::warn!(provider = %head.provider, code, "vault.grant_ended");
                self.tell(&head, began, "refresh.grant_ended", Some(Code::AuthorizationRequired));
                self.end(&keys, refresh, newest, generation).await
            }
            Err(error) => {
                self.tell(&head, began, "refresh.failed", Some(Code::ProviderError));
                Err(TokenError::Failed(failure(&refresh.upstream, &error)))
            }
        }
    }

    /// Tells the observer of a refresh that the provider was asked for.
    fn tell(&self, head: &Head, began: Timestamp, what: &'static str, failure: Option<Code>) {
        let Some(observer) = self.observer.get() else { return };
        observer(Refreshed {
            person: head.person.clone(),
            provider: head.provider.clone(),
            account: head.account.label.clone(),
            what,
            failure,
            duration: remaining(began, self.clock.now()),
        });
    }

    /// The grant, if it can be used.
    async fn usable(&self, keys: &OpenKeys, refresh: &Refresh) -> Result<Stored, TokenError> {
        self.read(keys, &refresh.person, &refresh.key)
            .await
            .map_err(TokenError::Failed)?
            .filter(|stored| stored.head.usable(&refresh.upstream.terms))
            .ok_or(TokenError::NeedsConsent)
    }

    /// Asks the provider; again, where it is unknown whether it rotated the token: it may still accept the old one.
    async fn ask(&self, refresh: &Refresh, token: &Secret) -> Result<TokenAnswer, OauthError> {
        let began = tokio::time::Instant::now();
        let mut answer = refresh.upstream.endpoint.refresh(token).await;
        for pause in self.pace.again {
            let Err(OauthError::Unavailable(cause)) = &answer else { break };
            // Nothing was sent, or the provider asks to wait: its answer would be the same. And whoever hangs once will
            // hang again, while others wait for the lease.
            let pointless = ["unreachable", "forbidden_address", "status_429"].contains(&cause.as_str());
            if pointless || began.elapsed() > ASK_AGAIN_WITHIN {
                break;
            }
            tracing::warn!(provider = %refresh.upstream.terms.id, cause, "vault.refresh_retried");
            tokio::time::sleep(pause).await;
            answer = refresh.upstream.endpoint.refresh(token).await;
        }
        answer
    }

    /// Writes the new tokens, for as long as it takes: the provider has rotated, and there is no other copy.
    async fn commit(
        &self,
        keys: &OpenKeys,
        refresh: &Refresh,
        spent: &Secret,
        mut next: Head,
        mut generation: u64,
        publish: &watch::Sender<Option<Outcome>>,
    ) -> Outcome {
        let issued = Issued::of(&next);
        let mut pause = self.pace.shortest;
        loop {
            let failure = match self.write(keys, &refresh.key, &next, Some(generation)).await {
                Ok(_) => return Ok(issued),
                Err(WriteError::Failed(failure)) => failure,
                Err(WriteError::Conflict) => match self.read(keys, &refresh.person, &refresh.key).await {
                    // An earlier try that seemed to fail did not.
                    Ok(Some(stored)) if stored.head.access_token.matches(&next.access_token) => return Ok(issued),
                    // Only what is beside the tokens changed.
                    Ok(Some(stored)) if stored.head.refresh_token.as_ref().is_some_and(|t| t.matches(spent)) => {
                        generation = stored.generation;
                        next.preferred_at = stored.head.preferred_at;
                        continue;
                    }
                    // The person has connected anew; those tokens are the later ones.
                    Ok(Some(stored)) => return Ok(Issued::of(&stored.head)),
                    // Disconnected: what was issued since is nobody's.
                    Ok(None) => {
                        for token in next.refresh_token.iter().chain([&next.access_token]) {
                            refresh.upstream.endpoint.revoke(token).await;
                        }
                        return Err(TokenError::NeedsConsent);
                    }
                    Err(failure) => failure,
                },
            };
            tracing::error!(provider = %next.provider, cause = failure.cause, "vault.commit_retried");
            // The token is good, whether it is stored yet or not: callers go on.
            publish.send_replace(Some(Ok(issued.clone())));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.pace.longest);
        }
    }

    /// Notes that the person must connect again. Invariant INV-9: the tokens stay, because an answer can be wrong and a
    /// deleted token is gone.
    async fn end(&self, keys: &OpenKeys, refresh: &Refresh, mut head: Head, generation: u64) -> Outcome {
        head.status = GrantStatus::NeedsConsent;
        head.refreshing_since = None;
        if let Err(WriteError::Failed(failure)) = self.write(keys, &refresh.key, &head, Some(generation)).await {
            // Not noted, so the next call asks the provider once more and hears the same.
            tracing::warn!(cause = failure.cause, "vault.status_not_written");
        }
        Err(TokenError::NeedsConsent)
    }

    /// The token of a refresh that has its answer but is still writing it.
    fn published(&self, key: &RecordKey) -> Option<Issued> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.get(key)?.borrow().as_ref()?.as_ref().ok().cloned()
    }

    /// Remembers how a refresh ended, so that a provider in trouble is not asked by every call.
    fn note(&self, key: &RecordKey, outcome: &Outcome) {
        let mut cooling = self.cooling.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(TokenError::Failed(failure)) = outcome else {
            cooling.remove(key);
            return;
        };
        let now = self.clock.now();
        let pause = cooling.get(key).map_or(FIRST_COOLING, |last| (last.pause * 2).min(LONGEST_COOLING));
        // What is long over is forgotten, so that the map holds no more than what fails now.
        cooling.retain(|_, last| later(last.until, LONGEST_COOLING) > now);
        cooling.insert(*key, Cooling { until: later(now, pause), pause, failure: failure.clone() });
    }

    /// The last failure, while the provider is left alone.
    fn cooling(&self, key: &RecordKey, now: Timestamp) -> Option<Failure> {
        let cooling = self.cooling.lock().unwrap_or_else(PoisonError::into_inner);
        let last = cooling.get(key).filter(|last| now < last.until)?;
        Some(last.failure.clone().after(Some(remaining(now, last.until))))
    }

    /// Forgets earlier failures: the grant has changed.
    pub(super) fn warm(&self, key: &RecordKey) {
        self.cooling.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Takes a flight off the list when it ends, also when it panics.
struct Landing {
    safe: Arc<Safe>,
    key: RecordKey,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.safe.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// Waits for a flight's outcome.
async fn landed(mut flight: watch::Receiver<Option<Outcome>>) -> Outcome {
    let outcome = match flight.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone(),
        Err(_) => None,
    };
    outcome.unwrap_or_else(|| Err(TokenError::Failed(Failure::internal("a refresh ended without an outcome"))))
}

/// What a caller reads when a refresh failed and the grant is none the worse.
fn failure(upstream: &Upstream, error: &OauthError) -> Failure {
    let provider = &upstream.terms.id;
    let (code, text, can_retry) = match error {
        OauthError::InvalidClient(_) => (
            Code::ProviderError,
            format!(
                "{provider} does not accept this obo server as its client; its operator must mend [providers.{provider}]"
            ),
            false,
        ),
        OauthError::Unavailable(_) => (
            Code::ProviderUnreachable,
            format!("{provider} did not renew the access token now; try again in a moment"),
            true,
        ),
        OauthError::Refused(_) | OauthError::InvalidGrant(_) => {
            (Code::ProviderError, format!("{provider} refused to renew the access token; try again later"), true)
        }
    };
    Failure { can_retry, ..Failure::new(code, text).because(error) }
}

fn changed_under_lease() -> Failure {
    Failure::new(Code::VaultUnavailable, "this connection was changed by another obo process; try again")
        .because("a grant changed while its lease was held")
}
