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

use super::breaker::Trouble;
use super::head::{Answered, Fitness, Head};
use super::safe::{Safe, Stored, WriteError, key_of};
use super::spool::Journal;
use super::take_up::{Settled, revoke_late};
use super::upstream::Upstream;
use super::{Grant, GrantStatus, Refreshed, TokenError};
use crate::clock::{later, remaining};
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::keys::OpenKeys;
use crate::oauth::{OauthError, Revocation, TokenAnswer};
use crate::secret::{AccessToken, Secret};
use crate::store::{Lease, RecordKey};

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

/// How long it takes, as a rule, until a request has reached the provider; a lease must last for that. From then on
/// whoever holds it renews it.
const SENDING: Duration = Duration::from_secs(1);

/// How long an exchange is under way at most: what its endpoint is given, and by how much the clocks of machines differ.
pub(super) const EXCHANGE: Duration = Duration::from_secs(25);

/// How long after it began a refresh that had no answer is still tried again.
const ASK_AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// One refresh to be made.
pub(super) struct Refresh {
    pub(super) key: RecordKey,
    pub(super) person: Person,
    pub(super) upstream: Upstream,
    /// The access token that is no longer good enough.
    pub(super) stale: Secret,
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

            let fitness = head.fitness(&upstream.terms, now);
            let refused = rejected.as_ref().is_some_and(|rejected| rejected.matches(&head.access_token));
            if fitness == Fitness::Fresh && !refused {
                return Ok(bind(head.access_token));
            }
            let must_wait = refused || fitness == Fitness::Expired;
            if !must_wait && head.refresh_token.is_none() {
                return Ok(bind(head.access_token));
            }
            if let Some(failure) = self.at_rest(&key, &upstream, now) {
                return if must_wait { Err(TokenError::Failed(failure)) } else { Ok(bind(head.access_token)) };
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
    pub(super) fn join(self: &Arc<Self>, refresh: Refresh) -> watch::Receiver<Option<Outcome>> {
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
        let (lease, Stored { mut head, mut generation }) = self.turn(&keys, refresh).await?;
        if self.is_done(refresh, &head) {
            return Ok(Issued::of(&head));
        }
        let Some(refresh_token) = head.refresh_token.clone() else {
            return self.end(&keys, refresh, head, generation).await;
        };

        // The intent is durable before the request, so that a refresh that a crash interrupts is taken up again, with the
        // same token, while the provider may still accept it.
        let began = self.clock.now();
        let interrupted = head.refreshing_since;
        let since = interrupted.unwrap_or(began);
        if interrupted.is_none() {
            head.refreshing_since = Some(since);
            generation = match self.write(&keys, &refresh.key, &head, Some(generation)).await {
                Ok(generation) => generation,
                Err(WriteError::Failed(failure)) => return Err(TokenError::Failed(failure)),
                Err(WriteError::Conflict) => return Err(TokenError::Failed(changed_under_lease())),
            };
        } else {
            tracing::warn!(provider = %head.provider, "vault.interrupted_refresh_taken_up");
        }

        match self.ask(refresh, &lease, &refresh_token, since).await? {
            Ok(answer) => {
                let next = head.refreshed(&refresh.upstream.terms, answer, self.clock.now());
                let outcome = self.commit(&keys, refresh, &refresh_token, next, generation, publish).await;
                self.tell(&head, began, "refresh.ok", None);
                outcome
            }
            Err(OauthError::InvalidGrant(code)) => {
                // Never believed on its own: somebody may have moved the grant on while we asked.
                let Stored { head: mut newest, generation } = self.usable(&keys, refresh).await?;
                if newest.generation != head.generation {
                    return Ok(Issued::of(&newest));
                }
                if let Some(next) = self.try_candidates(refresh, &lease, &mut newest).await? {
                    let outcome = self.commit(&keys, refresh, &refresh_token, next, generation, publish).await;
                    self.tell(&head, began, "refresh.ok", None);
                    return outcome;
                }
                tracing::warn!(provider = %head.provider, code, "vault.grant_ended");
                self.tell(&head, began, "refresh.grant_ended", Some(Code::AuthorizationRequired));
                self.end(&keys, refresh, newest, generation).await
            }
            Err(error) => {
                if interrupted.is_none() && nothing_was_done(&error) {
                    // What stays behind here is only taken up for nothing.
                    head.refreshing_since = None;
                    let _ = self.write(&keys, &refresh.key, &head, Some(generation)).await;
                }
                self.tell(&head, began, "refresh.failed", Some(Code::ProviderError));
                Err(TokenError::Failed(failure(&refresh.upstream, &error)))
            }
        }
    }

    /// Takes the grant for a refresh and reads it inside the lease: whoever held it before may have refreshed already.
    ///
    /// Where leases end by themselves, the process that began a refresh may live without its own: stopped for a while, or
    /// cut off from the store. At a provider that ends a connection when a token is used twice it is therefore left in
    /// peace for as long as its exchange can take, and then has the time in which it writes the answer.
    async fn turn(&self, keys: &OpenKeys, refresh: &Refresh) -> Result<(Lease, Stored), TokenError> {
        // The exchange that is waited for, by when it began; and since when.
        let mut seen: Option<(Timestamp, Timestamp)> = None;
        loop {
            let lease = self.hold(keys, &refresh.key).await.map_err(TokenError::Failed)?;
            let stored = self.usable(keys, refresh).await?;
            let now = self.clock.now();
            let once = |since: &Timestamp| !refresh.upstream.terms.may_ask_again(remaining(*since, now));
            let Some(since) = stored.head.refreshing_since.filter(once) else { return Ok((lease, stored)) };
            if !lease.ends_by_itself() || self.is_done(refresh, &stored.head) {
                return Ok((lease, stored));
            }
            let first = seen.filter(|(of, _)| *of == since).map_or(now, |(_, first)| first);
            seen = Some((since, first));
            let watched = remaining(first, now);
            // Not longer than that from the first look on, whatever the other's clock says.
            let exchange = EXCHANGE.saturating_sub(remaining(since, now).max(watched));
            let write = (self.pace.longest + self.pace.look_again).saturating_sub(watched);
            let wait = exchange.max(write);
            if wait.is_zero() {
                return Ok((lease, stored));
            }
            drop(lease);
            tokio::time::sleep(wait.min(self.pace.look_again)).await;
        }
    }

    /// Whether somebody else has brought what a refresh is for.
    fn is_done(&self, refresh: &Refresh, head: &Head) -> bool {
        !head.access_token.matches(&refresh.stale)
            && head.fitness(&refresh.upstream.terms, self.clock.now()) == Fitness::Fresh
    }

    /// Asks with the tokens that came too late once, the newest first: the provider may have meant one of them to be the
    /// last. What the grant is now; none: they are all refused, which is noted in `head`.
    async fn try_candidates(
        &self,
        refresh: &Refresh,
        lease: &Lease,
        head: &mut Head,
    ) -> Result<Option<Head>, TokenError> {
        for at in (0..head.candidates.len()).rev() {
            let candidate = head.candidates[at].clone();
            if candidate.rejected {
                continue;
            }
            match self.ask(refresh, lease, &candidate.refresh_token, self.clock.now()).await? {
                Ok(answer) => {
                    tracing::warn!(provider = %head.provider, "vault.candidate_taken");
                    let mut before = head.clone();
                    before.scopes = candidate.scopes;
                    before.refresh_token = Some(candidate.refresh_token);
                    return Ok(Some(before.refreshed(&refresh.upstream.terms, answer, self.clock.now())));
                }
                Err(OauthError::InvalidGrant(_)) => head.candidates[at].rejected = true,
                Err(error) => return Err(TokenError::Failed(failure(&refresh.upstream, &error))),
            }
        }
        Ok(None)
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

    /// Asks the provider; again, where it is unknown whether it rotated the token: it may still accept the old one. `since`:
    /// when this token was first shown.
    ///
    /// Whoever was stopped for longer than its lease sends nothing: another process may be asking with the same token.
    async fn ask(
        &self,
        refresh: &Refresh,
        lease: &Lease,
        token: &Secret,
        since: Timestamp,
    ) -> Result<Result<TokenAnswer, OauthError>, TokenError> {
        if !lease.lasts(SENDING) {
            return Err(TokenError::Failed(lease_lost()));
        }
        let began = tokio::time::Instant::now();
        let Upstream { terms, endpoint } = &refresh.upstream;
        let mut answer = endpoint.refresh(token).await;
        for pause in self.pace.again {
            let Err(OauthError::Unavailable(cause)) = &answer else { break };
            // Its answer would be the same. And whoever hangs once will hang again, while others wait for the lease.
            let pointless = answer.as_ref().is_err_and(nothing_was_done) || began.elapsed() > ASK_AGAIN_WITHIN;
            if pointless
                || !lease.lasts(SENDING + pause)
                || !terms.may_ask_again(remaining(since, self.clock.now()).saturating_add(pause))
            {
                break;
            }
            tracing::warn!(provider = %terms.id, cause, "vault.refresh_retried");
            tokio::time::sleep(pause).await;
            answer = endpoint.refresh(token).await;
        }
        self.note_server(&refresh.upstream, &answer);
        Ok(answer)
    }

    /// Remembers how the server is, whoever's grant this was.
    fn note_server(&self, upstream: &Upstream, answer: &Result<TokenAnswer, OauthError>) {
        let trouble = match answer {
            Ok(_) | Err(OauthError::InvalidGrant(_) | OauthError::Refused(_)) => {
                return self.breakers.well(&upstream.terms.server);
            }
            Err(OauthError::InvalidClient(_)) => Trouble::Client,
            Err(OauthError::Busy(wait)) => Trouble::Asked(*wait),
            Err(OauthError::Unavailable(_)) => Trouble::NoAnswer,
        };
        if let Err(error) = answer {
            let failure = failure(upstream, error);
            self.breakers.failed(&upstream.terms.server, trouble, &failure, self.clock.now());
        }
    }

    /// Writes the new tokens, for as long as it takes: the provider has rotated, and there is no other copy. While the store
    /// does not take them, they are in the spool as well, from where they are written should this process end.
    async fn commit(
        &self,
        keys: &OpenKeys,
        refresh: &Refresh,
        spent: &Secret,
        next: Head,
        generation: u64,
        publish: &watch::Sender<Option<Outcome>>,
    ) -> Outcome {
        let issued = Issued::of(&next);
        let rotated = next.refresh_token.as_ref().is_some_and(|token| !token.matches(spent));
        let answered = Answered { next, spent: spent.clone() };
        let spool = self.spool.as_ref().filter(|_| rotated);
        let mut kept = None;
        if spool.is_some_and(|spool| spool.journal == Journal::First) {
            kept = self.keep(keys, refresh, &answered).await;
        }
        let mut generation = Some(generation);
        let mut pause = self.pace.shortest;
        let mut draining = self.draining.subscribe();
        loop {
            let mut writing = Box::pin(self.write_answer(keys, refresh, &answered, generation.take()));
            let written = if spool.is_some() && kept.is_none() {
                match tokio::time::timeout(self.pace.at_once, &mut writing).await {
                    Ok(written) => written,
                    Err(_) => {
                        // The token is good, whether it is stored yet or not: callers go on.
                        publish.send_replace(Some(Ok(issued.clone())));
                        kept = self.keep(keys, refresh, &answered).await;
                        writing.await
                    }
                }
            } else {
                writing.await
            };
            let failure = match written {
                Ok(Settled::Nobodys) => {
                    // Disconnected: what was issued since is nobody's.
                    if revoke_late(&answered.next, Some(&refresh.upstream)).await == Revocation::Failed {
                        if kept.is_none() {
                            self.keep(keys, refresh, &answered).await;
                        }
                    } else {
                        self.forget(kept).await;
                    }
                    return Err(TokenError::NeedsConsent);
                }
                Ok(Settled::Written) => {
                    self.forget(kept).await;
                    return Ok(issued);
                }
                Ok(Settled::Candidate | Settled::Superseded) => {
                    // Others have refreshed, or the person has connected anew; those tokens are the later ones.
                    self.forget(kept).await;
                    let stored = self.read(keys, &refresh.person, &refresh.key).await.ok().flatten();
                    return Ok(stored.map_or(issued, |stored| Issued::of(&stored.head)));
                }
                Err(failure) => failure,
            };
            tracing::error!(provider = %answered.next.provider, cause = failure.cause, "vault.commit_retried");
            publish.send_replace(Some(Ok(issued.clone())));
            if spool.is_some() && kept.is_none() {
                kept = self.keep(keys, refresh, &answered).await;
            }
            // Safe where it is: whoever comes next in this folder writes it. Other replicas do not see the folder, so for them
            // it is tried for as long as this process may take.
            let safe = kept.is_some() && spool.is_some_and(|spool| spool.journal == Journal::WhenLate);
            if safe && *draining.borrow() {
                return Ok(issued);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = draining.wait_for(|draining| *draining), if safe => {}
            }
            pause = (pause * 2).min(self.pace.longest);
        }
    }

    /// Tries once to write an answer: in place of what was read before, or of what there is now.
    async fn write_answer(
        &self,
        keys: &OpenKeys,
        refresh: &Refresh,
        answered: &Answered,
        generation: Option<u64>,
    ) -> Result<Settled, Failure> {
        if generation.is_some() {
            match self.write(keys, &refresh.key, &answered.next, generation).await {
                Ok(_) => return Ok(Settled::Written),
                Err(WriteError::Failed(failure)) => return Err(failure),
                // An earlier try that seemed to fail did not, or something was changed meanwhile.
                Err(WriteError::Conflict) => {}
            }
        }
        self.settle(keys, &refresh.key, &refresh.person, answered).await
    }

    /// Puts an answer into the spool. None: it is in memory only, until the store takes it.
    async fn keep(&self, keys: &OpenKeys, refresh: &Refresh, answered: &Answered) -> Option<String> {
        self.keep_answer(keys, &refresh.key, answered).await.unwrap_or_else(|failure| {
            tracing::error!(cause = failure.cause, "vault.answer_not_kept");
            None
        })
    }

    async fn forget(&self, kept: Option<String>) {
        if let Some(name) = kept {
            self.forget_answer(&name).await;
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

    /// Why the provider is left alone now, for this grant's sake or for everybody's.
    pub(super) fn at_rest(&self, key: &RecordKey, upstream: &Upstream, now: Timestamp) -> Option<Failure> {
        self.cooling(key, now).or_else(|| self.breakers.refusal(&upstream.terms.server, now))
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
        OauthError::Busy(_) | OauthError::Unavailable(_) => (
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

/// Whether it is certain that the provider has not rotated the token.
fn nothing_was_done(error: &OauthError) -> bool {
    match error {
        OauthError::Unavailable(cause) => ["unreachable", "forbidden_address", "status_429"].contains(&cause.as_str()),
        OauthError::Busy(_) | OauthError::InvalidClient(_) | OauthError::Refused(_) => true,
        OauthError::InvalidGrant(_) => false,
    }
}

fn lease_lost() -> Failure {
    Failure::new(Code::VaultUnavailable, "obo cannot be sure of its vault now; try again in a moment")
        .because("this process was stopped for longer than it may hold a grant, or cannot reach the store")
}

fn changed_under_lease() -> Failure {
    Failure::new(Code::VaultUnavailable, "this connection was changed by another obo process; try again")
        .because("a grant changed while its lease was held")
}
