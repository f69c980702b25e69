//! Keeps an issuer's keys at hand: found by discovery, cached, fetched again when they may have changed.
//!
//! All by the injected wall clock. What an unauthenticated caller can make obo fetch is bounded: one fetch for an
//! unknown key id in [`MISS_PAUSE`], however many tokens name one.
//!
//! That bound must not become a weapon. Whoever sends an invented key id just before the issuer rotates uses the fetch
//! up, and for the rest of the pause the new key's tokens name an unknown key as well. They are then "cannot be checked
//! now", which clients try again, and not "invalid", which makes them throw good tokens away. Who sends forged tokens
//! gains nothing by that answer: it accepts nobody, it causes no fetch, and to be given it a forgery must claim to be
//! younger than the last fetch, which the issuer's next publication disproves.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{Method, StatusCode};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;

use super::jwks::KeySet;
use crate::clock::{SharedClock, later};
use crate::egress::{Egress, Limits, json};

/// How long keys are used without asking whether they have changed.
pub(super) const FRESH: Duration = Duration::from_secs(10 * 60);

/// How long keys are used when the issuer does not answer.
pub(super) const STALE_IF_ERROR: Duration = Duration::from_secs(24 * 60 * 60);

/// The least time between two fetches for a key id that is not in the set.
pub(super) const MISS_PAUSE: Duration = Duration::from_secs(30);

/// The least time between a fetch that failed and the next, where there are no keys at all.
pub(super) const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// The same where older keys can be used: each fetch from an issuer that hangs makes callers wait.
pub(super) const STALE_PAUSE: Duration = Duration::from_secs(30);

/// How much older than a fetch a token must be so that its key was certainly published by then: the two clocks may
/// differ, and a cache in front of the issuer may lag.
const PUBLISHED_S: i64 = super::LEEWAY_S;

/// Longest that one caller waits for the discovery document that another has asked for.
const DOCUMENT_WAIT: Duration = Duration::from_secs(10);

/// Bounds of the two requests of a fetch.
const LIMITS: Limits = Limits { total: Duration::from_secs(5), body_bytes: 64 << 10 /* 64 KiB */ };

/// Why no key was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The issuer has none that fits.
    Unknown,
    /// The token names none and several fit.
    Ambiguous,
    /// Cannot be known now. The text is for the operator.
    Unavailable(String),
}

/// The keys of one issuer.
pub(super) struct IssuerKeys {
    issuer: String,
    egress: Egress,
    clock: SharedClock,
    state: RwLock<State>,
    /// Held by the one fetch under way.
    flight: Mutex<()>,
    document: Mutex<Option<Document>>,
}

/// The discovery document, or why there is none, and since when. Strangers can make obo ask for it: they open a page.
struct Document {
    at: Timestamp,
    read: Result<Arc<Value>, String>,
}

#[derive(Clone, Default)]
struct State {
    /// The newest set and when it was asked for.
    fetched: Option<(Timestamp, Arc<KeySet>)>,
    /// The last fetch that failed after it, and why.
    failed: Option<(Timestamp, String)>,
    /// The last fetch for an unknown key id.
    missed: Option<Timestamp>,
    /// Counts the fetches.
    generation: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// There are none, or they are no longer fresh.
    Age,
    /// They are fresh but do not have the key.
    Miss,
}

impl IssuerKeys {
    pub(super) fn new(issuer: String, egress: Egress, clock: SharedClock) -> Self {
        Self { issuer, egress, clock, state: RwLock::default(), flight: Mutex::default(), document: Mutex::default() }
    }

    /// The keys that may have signed a token with this key id and algorithm, issued then as it says itself; never none.
    ///
    /// # Cancellation
    /// A fetch under way goes on, for the others who wait for it.
    pub(super) async fn find(
        self: &Arc<Self>,
        id: Option<&str>,
        algorithm: Algorithm,
        issued: Option<i64>,
    ) -> Result<Vec<DecodingKey>, NoKey> {
        let seen = self.state();
        let reason = match &seen.fetched {
            Some((at, set)) if within(self.clock.now(), *at, FRESH) => match choose(set, id, algorithm) {
                Err(NoKey::Unknown) => Reason::Miss,
                decided => return decided,
            },
            _ => Reason::Age,
        };
        let mut looked = false;
        if seen.may_fetch(reason, self.clock.now()) {
            looked = self.fetch_once(seen.generation, reason).await;
        }
        let state = self.state();
        let why = |failed: Option<(Timestamp, String)>| failed.map_or_else(|| "no keys yet".to_owned(), |(_, why)| why);
        match state.fetched {
            Some((at, set)) if within(self.clock.now(), at, STALE_IF_ERROR) => match choose(&set, id, algorithm) {
                // The set may have changed, and the issuer could not be asked.
                Err(NoKey::Unknown) if state.failed.is_some() => Err(NoKey::Unavailable(why(state.failed))),
                // What was asked for after the token came has every key that can have signed it. What was asked for
                // before says nothing about a key that the issuer may have published since.
                Err(NoKey::Unknown) if !looked && !set.has(id) && !is_older(issued, at) => {
                    Err(NoKey::Unavailable("an unknown key id, and its keys were asked for only lately".to_owned()))
                }
                decided => decided,
            },
            _ => Err(NoKey::Unavailable(why(state.failed))),
        }
    }

    /// Fetches, unless somebody else has done it since `seen`; says whether it did. In a task of its own: a caller who
    /// hangs up must not be able to undo the bound on fetches.
    async fn fetch_once(self: &Arc<Self>, seen: u64, reason: Reason) -> bool {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _flight = this.flight.lock().await;
            let state = this.state();
            if state.generation != seen || !state.may_fetch(reason, this.clock.now()) {
                return false;
            }
            let began = this.clock.now();
            let result = this.fetch().await;
            let now = this.clock.now();
            let mut state = this.state.write().unwrap_or_else(PoisonError::into_inner);
            state.generation += 1;
            if reason == Reason::Miss {
                state.missed = Some(now);
            }
            match result {
                Ok(set) => {
                    state.fetched = Some((began, Arc::new(set)));
                    state.failed = None;
                }
                Err(cause) => {
                    tracing::warn!(issuer = this.issuer, cause, "an issuer's keys could not be fetched");
                    state.failed = Some((now, cause));
                }
            }
            true
        });
        // An error would be a panic in the task or the end of the runtime; the caller then sees the state as it was.
        task.await.unwrap_or(false)
    }

    /// Until when the newest keys are believed without asking.
    pub(super) fn fresh_until(&self) -> Option<Timestamp> {
        self.state().fetched.map(|(at, _)| later(at, FRESH))
    }

    /// The issuer's discovery document, not older than [`FRESH`].
    ///
    /// # Cancellation
    /// As [`IssuerKeys::find`].
    pub(super) async fn metadata(self: &Arc<Self>) -> Result<Arc<Value>, String> {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            // An issuer that hangs must not make a queue of those who ask about it.
            let Ok(mut known) = tokio::time::timeout(DOCUMENT_WAIT, this.document.lock()).await else {
                return Err("its discovery document is still being waited for".to_owned());
            };
            let now = this.clock.now();
            if let Some(Document { at, read }) = &*known
                && within(now, *at, if read.is_ok() { FRESH } else { FAILURE_PAUSE })
            {
                return read.clone();
            }
            let read = this.fetch_metadata().await.map(Arc::new);
            // A failure counts from its end: it may have taken longer than the pause after it.
            *known = Some(Document { at: if read.is_ok() { now } else { this.clock.now() }, read: read.clone() });
            read
        });
        // Only a defect or the end of the runtime gets here.
        task.await.unwrap_or_else(|_| Err("the fetch of its discovery document broke off".to_owned()))
    }

    async fn fetch_metadata(&self) -> Result<Value, String> {
        let metadata = self.discover().await?;
        // Discovery documents are forged more easily than tokens: it must speak of this issuer, to the letter
        // (RFC 8414 §3.3, OpenID Connect Discovery §4.3).
        if metadata.get("issuer").and_then(Value::as_str) != Some(self.issuer.as_str()) {
            return Err("its discovery document names another issuer".to_owned());
        }
        Ok(metadata)
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let metadata = self.fetch_metadata().await?;
        let url = metadata.get("jwks_uri").and_then(Value::as_str).and_then(|url| Url::parse(url).ok());
        let url = url.ok_or("its discovery document has no jwks_uri")?;
        match self.get(url).await? {
            (StatusCode::OK, Some(set)) => Ok(KeySet::parse(&set)?),
            (status, _) => Err(format!("its key set is not one (status {})", status.as_u16())),
        }
    }

    /// The discovery document, where OpenID Connect puts it, else where RFC 8414 §3.1 does.
    async fn discover(&self) -> Result<Value, String> {
        let base = self.issuer.trim_end_matches('/');
        let mut url = Url::parse(&format!("{base}/.well-known/openid-configuration"))
            .map_err(|_| "the issuer is not a URL".to_owned())?;
        let mut answer = self.get(url.clone()).await?;
        if answer.0 == StatusCode::NOT_FOUND {
            let path = Url::parse(base).map(|base| base.path().trim_end_matches('/').to_owned()).unwrap_or_default();
            url.set_path(&format!("/.well-known/oauth-authorization-server{path}"));
            answer = self.get(url).await?;
        }
        match answer {
            (StatusCode::OK, Some(metadata)) => Ok(metadata),
            (status, _) => Err(format!("its discovery document is not one (status {})", status.as_u16())),
        }
    }

    async fn get(&self, url: Url) -> Result<(StatusCode, Option<Value>), String> {
        let request = self.egress.request(Method::GET, url).header(http::header::ACCEPT, "application/json");
        let answer = self.egress.send(request, LIMITS).await.map_err(|error| error.to_string())?;
        Ok((answer.status, json::parse(&answer.body).ok()))
    }

    fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl State {
    fn may_fetch(&self, reason: Reason, now: Timestamp) -> bool {
        let after_failure = if self.fetched.is_some() { STALE_PAUSE } else { FAILURE_PAUSE };
        let failed = self.failed.as_ref().is_some_and(|(at, _)| within(now, *at, after_failure));
        let missed = reason == Reason::Miss && self.missed.is_some_and(|at| within(now, at, MISS_PAUSE));
        !failed && !missed
    }
}

/// Whether less than `span` has passed since `at`. A clock that was set back counts as "no": then ask again.
pub(super) fn within(now: Timestamp, at: Timestamp, span: Duration) -> bool {
    Duration::try_from(now.duration_since(at)).is_ok_and(|age| age < span)
}

/// Whether a token was issued so long before its issuer's keys were asked for that its key was among them. A token that
/// does not say when it was issued may be new.
fn is_older(issued: Option<i64>, asked: Timestamp) -> bool {
    issued.is_some_and(|issued| issued.saturating_add(PUBLISHED_S) < asked.as_second())
}

fn choose(set: &KeySet, id: Option<&str>, algorithm: Algorithm) -> Result<Vec<DecodingKey>, NoKey> {
    let keys = set.find(id, algorithm);
    match (keys.len(), id) {
        (0, _) => Err(NoKey::Unknown),
        (1, _) | (_, Some(_)) => Ok(keys),
        // RFC 7515 §4.1.4 leaves `kid` optional. Trying every key would make each such token cost 64 signatures.
        (_, None) => Err(NoKey::Ambiguous),
    }
}
