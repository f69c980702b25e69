//! A consent flow: one link, from the call that asked for it to the code that was exchanged.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use super::window::Window;
use crate::clock::{SharedClock, later, remaining};
use crate::failure::{Code, Failure};
use crate::id::{Person, ProviderId, Source, TenantId, ToolName};
use crate::keys::{Context, Keys, OpenKeys};
use crate::secret::{Secret, random_text};
use crate::store::{Record, RecordKey, Store, StoreError, Table, Write};

/// How many random bytes a flow id has. The link is a capability to see the page, so it must not be guessable.
const FLOW_ID_BYTES: usize = 24;
/// How long a link stays good.
pub const FLOW_TTL: Duration = Duration::from_secs(600);
/// A link with less time left than this is not handed out again.
pub(super) const WORTH_REUSING: Duration = Duration::from_secs(120);
/// Longest that an exchange takes, the account's request included.
const LONGEST_EXCHANGE: Duration = Duration::from_secs(90);
/// How many links of one person may be open at the same time.
pub const MAX_OPEN_PER_PERSON: usize = 20;
/// How many different calls one link remembers.
const MAX_CALLS: usize = 64;
/// How long a code of the provider is kept unexchanged while it is confirmed whose it is. Providers take a code back
/// after one to ten minutes.
pub(super) const HELD_TTL: Duration = Duration::from_secs(300);
/// How many links of one person may be made within [`FLOW_TTL`], the finished ones included.
pub const MAX_MADE_PER_PERSON: usize = 100;
/// How many links of one source in one tenant may be made within [`FLOW_TTL`], by one process.
const MAX_MADE_PER_SOURCE: usize = 10_000;
/// How often a person's flows are looked for when all of them are to go.
const MAX_REMOVALS: usize = 10;
/// Over how many locks the makers of links are spread.
const STRIPES: usize = 64;

/// The id of a flow, as it stands in its link: 192 random bits, base64url.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlowId(String);

impl FlowId {
    /// A new id.
    pub fn new() -> Self {
        Self(random_text::<FLOW_ID_BYTES>())
    }

    /// The id as text, for the link.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of the flow's record.
    pub(super) fn key(&self) -> RecordKey {
        Sha256::digest([b"obo flow ", self.0.as_bytes()].concat()).into()
    }
}

impl Default for FlowId {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for FlowId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let well_formed = text.len() == FLOW_ID_BYTES * 4 / 3
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if well_formed { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl fmt::Debug for FlowId {
    /// Only the beginning: a log must not be a list of working links.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowId({}…)", &self.0[..6.min(self.0.len())])
    }
}

/// What a link asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Who must say yes.
    pub person: Person,
    /// To which provider.
    pub provider: ProviderId,
    /// The scopes to ask for.
    pub scopes: BTreeSet<String>,
    /// The scopes that the connection has already. Asked for again where the provider would drop them otherwise.
    pub held: BTreeSet<String>,
    /// The account that should be picked, by its label.
    pub account: Option<String>,
}

/// Where a flow stands.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub(super) enum Stage {
    /// The link was given out; the button was not pressed yet, or the answer that came was no good.
    Open,
    /// The browser was sent to the provider.
    Forwarded(Forwarded),
    /// A code came back and is being exchanged.
    Exchanging {
        /// Since when. A process that was killed here leaves it behind.
        since: Timestamp,
    },
    /// A code came back in a browser that could not be asked whose it is: kept, unexchanged, until that is confirmed.
    Held(Held),
    /// Done.
    Connected {
        /// The account's label.
        account: String,
    },
    /// The person said no.
    Declined,
    /// The browser belonged to somebody else.
    Mismatch,
}

/// What must come back from the provider, and from where.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Forwarded {
    /// SHA-256 of the `state`: the state itself is never stored.
    pub(super) state: [u8; 32],
    /// SHA-256 of the cookie of the browser that pressed the button.
    pub(super) browser: [u8; 32],
    /// The PKCE verifier. It stands in a sealed record only.
    pub(super) verifier: Option<String>,
    /// Where the provider was told to send the browser.
    pub(super) redirect_uri: Url,
    /// The answer must come before.
    pub(super) until: Timestamp,
}

/// What an exchange needs, besides the flow.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Redeemable {
    /// The provider's code. It stands in a sealed record only, and counts for [`HELD_TTL`].
    #[serde(serialize_with = "into_sealed_record")]
    pub(super) code: Secret,
    /// The PKCE verifier.
    pub(super) verifier: Option<String>,
    /// Where the provider sent the browser.
    pub(super) redirect_uri: Url,
}

/// The one place where a code is serialised: into the record that is sealed.
fn into_sealed_record<S: serde::Serializer>(code: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.expose())
}

/// A code that waits for a confirmation.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) redeemable: Redeemable,
    /// SHA-256 of the cookie of the browser that brought it: that browser may throw it away.
    pub(super) browser: [u8; 32],
    /// What confirms it.
    pub(super) by: HeldFor,
    /// The confirmation must come before.
    pub(super) until: Timestamp,
}

/// Who confirms that the browser is the person's, and with what. Only that browser was told.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub(super) enum HeldFor {
    /// The application, with the id that its page was opened with. SHA-256 of it.
    Application {
        /// The hash.
        ticket: [u8; 32],
    },
    /// The person, with the code that the page showed.
    Code {
        /// The hash.
        code: [u8; 32],
        /// How often it may still be typed wrong.
        tries: u8,
    },
}

/// A flow, as it stands in its sealed record.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Flow {
    pub(super) id: FlowId,
    pub(super) need: Need,
    /// The tool whose call asked first.
    pub(super) tool: Option<ToolName>,
    pub(super) tool_title: Option<String>,
    /// Who asked for the person: shown, never trusted.
    pub(super) actor: String,
    /// Made by stdio or the command line: their listeners serve it without sign-in.
    pub(super) local: bool,
    /// To be finished in a browser elsewhere, with a code that is typed back.
    #[serde(default)]
    pub(super) headless: bool,
    /// Where the browser goes at the end. One of the application's own addresses.
    #[serde(default)]
    pub(super) next_uri: Option<Url>,
    pub(super) expires_at: Timestamp,
    /// Digests of the calls that were given this link: the same call again is held for it.
    pub(super) calls: Vec<[u8; 32]>,
    pub(super) stage: Stage,
    /// The record's generation when it was read.
    #[serde(skip)]
    pub(super) generation: u64,
}

impl Flow {
    /// Whether the link can still be used.
    pub(super) fn is_open(&self, now: Timestamp) -> bool {
        now < self.expires_at && matches!(self.stage, Stage::Open | Stage::Forwarded(_) | Stage::Held(_))
    }

    /// Whether a call may still wait for it: it is open, or its code is being confirmed or exchanged just now.
    pub(super) fn is_pending(&self, now: Timestamp) -> bool {
        self.pending_until().is_some_and(|until| now < until)
    }

    /// Until when it is pending if nothing happens to it; none: it has ended.
    pub(super) fn pending_until(&self) -> Option<Timestamp> {
        match &self.stage {
            Stage::Open => Some(self.expires_at),
            // The person is at the provider, or about to confirm: their answer counts for that long.
            Stage::Forwarded(forwarded) => Some(forwarded.until.max(self.expires_at)),
            Stage::Held(held) => Some(held.until.max(self.expires_at)),
            Stage::Exchanging { since } => Some(later(*since, LONGEST_EXCHANGE)),
            Stage::Connected { .. } | Stage::Declined | Stage::Mismatch => None,
        }
    }

    pub(super) fn expires_in(&self, now: Timestamp) -> Duration {
        remaining(now, self.expires_at)
    }

    /// Whether it would do what a new one would.
    fn is_for(&self, new: &NewFlow) -> bool {
        self.need == new.need
            && self.local == new.local
            && self.headless == new.headless
            && self.next_uri == new.next_uri
            && self.actor == new.actor
    }
}

/// Keeps flows in the store, sealed. They are sealed for no tenant: a link must be found before its person is known.
#[derive(Clone)]
pub(super) struct Flows {
    store: Arc<dyn Store>,
    keys: Keys,
    clock: SharedClock,
    makers: Arc<Makers>,
}

/// Those who make links in this process.
struct Makers {
    /// One at a time for a person: they count before they add.
    stripes: [tokio::sync::Mutex<()>; STRIPES],
    /// By tenant and source: an application must not use up what an organisation's own people have.
    made: Window<(TenantId, Source)>,
}

impl Flows {
    pub(super) fn new(store: Arc<dyn Store>, keys: Keys, clock: SharedClock) -> Self {
        let stripes = std::array::from_fn(|_| tokio::sync::Mutex::new(()));
        let made = Window::new(FLOW_TTL, MAX_MADE_PER_SOURCE);
        Self { store, keys, clock, makers: Arc::new(Makers { stripes, made }) }
    }

    /// Finds an open flow for the same need, or makes one; says whether this call was given it before.
    pub(super) async fn open(&self, new: NewFlow) -> Result<(Flow, bool), Failure> {
        let keys = self.keys.open().await?;
        let _alone = self.alone(&keys, &new.need.person).await;
        // A conflict means that another call of the same person changed the same flow: read again.
        for _ in 0..8 {
            let now = self.clock.now();
            let all = self.of_person(&keys, &new.need.person).await?;
            let made = all.iter().filter(|flow| now < flow.expires_at).count();
            let open: Vec<Flow> = all.into_iter().filter(|flow| flow.is_pending(now)).collect();
            let same = open.iter().filter(|flow| flow.is_for(&new) && (flow.is_open(now) || !new.anew));
            let same = same.max_by_key(|flow| flow.expires_at);
            if let Some(flow) = same {
                let given_before = new.call.is_some_and(|call| flow.calls.contains(&call));
                // One whose code is being exchanged is done in a moment: waiting is better than a second link.
                if given_before || matches!(flow.stage, Stage::Exchanging { .. }) {
                    return Ok((flow.clone(), true));
                }
                if flow.expires_in(now) >= WORTH_REUSING {
                    let mut flow = flow.clone();
                    let Some(call) = new.call else { return Ok((flow, false)) };
                    if flow.calls.len() < MAX_CALLS {
                        flow.calls.push(call);
                    }
                    match self.replace(&keys, &mut flow).await {
                        Ok(()) => return Ok((flow, false)),
                        Err(StoreError::Conflict) => continue,
                        Err(error) => return Err(unavailable(error)),
                    }
                }
            }
            if made >= MAX_MADE_PER_PERSON {
                let text = "too many connect links were made for this person; try again in a few minutes";
                return Err(Failure::new(Code::RateLimited, text).after(Some(WORTH_REUSING)));
            }
            if open.len() >= MAX_OPEN_PER_PERSON {
                return Err(Failure::new(
                    Code::RateLimited,
                    format!(
                        "{MAX_OPEN_PER_PERSON} connect links are open for this person already; use one of them, or wait ten minutes"
                    ),
                )
                .after(Some(FLOW_TTL)));
            }
            let Person { tenant, source, .. } = &new.need.person;
            if !self.makers.made.count((tenant.clone(), source.clone()), now) {
                tracing::warn!(%tenant, %source, "as many connect links as may be made in ten minutes");
                let text = "too many connect links were made for this organisation; try again in a few minutes";
                return Err(Failure::new(Code::RateLimited, text).after(Some(WORTH_REUSING)));
            }
            let flow = Flow {
                id: FlowId::new(),
                need: new.need.clone(),
                tool: new.tool.clone(),
                tool_title: new.tool_title.clone(),
                actor: new.actor.clone(),
                local: new.local,
                headless: new.headless,
                next_uri: new.next_uri.clone(),
                expires_at: later(now, FLOW_TTL),
                calls: new.call.into_iter().collect(),
                stage: Stage::Open,
                generation: 1,
            };
            let record = self.seal(&keys, &flow).await?;
            self.store.apply(vec![Write::Insert(record)]).await.map_err(unavailable)?;
            return Ok((flow, false));
        }
        Err(Failure::internal("a consent flow kept changing while it was read"))
    }

    /// Keeps this process from looking at a person's flows and changing them twice at once.
    pub(super) async fn alone(&self, keys: &OpenKeys, person: &Person) -> tokio::sync::MutexGuard<'_, ()> {
        let owner = keys.record_key(Table::Flow, &person.parts());
        self.makers.stripes[usize::from(owner[0]) % STRIPES].lock().await
    }

    /// Reads a flow by its id.
    pub(super) async fn find(&self, id: &FlowId) -> Result<Option<Flow>, Failure> {
        self.find_by_key(&id.key()).await
    }

    /// Reads a flow by the key of its record.
    pub(super) async fn find_by_key(&self, key: &RecordKey) -> Result<Option<Flow>, Failure> {
        let Some(record) = self.store.get(Table::Flow, key).await.map_err(unavailable)? else { return Ok(None) };
        let keys = self.keys.open().await?;
        Ok(Some(unseal(&keys, &record).await?))
    }

    /// Writes a flow that nobody else has written since it was read.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when somebody has.
    pub(super) async fn save(&self, flow: &mut Flow) -> Result<(), StoreError> {
        let keys = self.keys.open().await.map_err(|e| StoreError::Unavailable(e.to_string()))?;
        self.replace(&keys, flow).await
    }

    async fn replace(&self, keys: &OpenKeys, flow: &mut Flow) -> Result<(), StoreError> {
        let record = self.seal(keys, flow).await.map_err(|e| StoreError::Unavailable(e.to_string()))?;
        self.store.apply(vec![Write::Replace(record)]).await?;
        flow.generation += 1;
        Ok(())
    }

    /// A person's flows that have not expired.
    pub(super) async fn of(&self, person: &Person) -> Result<Vec<Flow>, Failure> {
        let keys = self.keys.open().await?;
        self.of_person(&keys, person).await
    }

    pub(super) async fn of_person(&self, keys: &OpenKeys, person: &Person) -> Result<Vec<Flow>, Failure> {
        let owner = keys.record_key(Table::Flow, &person.parts());
        let mut flows = Vec::new();
        let now = self.clock.now();
        for record in self.store.owned(Table::Flow, &owner).await.map_err(unavailable)? {
            if record.expires_at.is_some_and(|until| until <= now) {
                continue;
            }
            match unseal(keys, &record).await {
                Ok(flow) => flows.push(flow),
                // One bad record must not keep its person from everything.
                Err(failure) => tracing::error!(cause = failure.cause, "a consent flow does not open"),
            }
        }
        Ok(flows)
    }

    /// Removes every flow of a person, and says how many of them had not ended, and whether the code of one was just being
    /// exchanged: whoever exchanges it finds its flow gone.
    pub(super) async fn remove_all(&self, person: &Person) -> Result<Removed, Failure> {
        let keys = self.keys.open().await?;
        let owner = keys.record_key(Table::Flow, &person.parts());
        let mut removed = Removed::default();
        // Again, where one went on in between.
        for _ in 0..MAX_REMOVALS {
            let records = self.store.owned(Table::Flow, &owner).await.map_err(unavailable)?;
            if records.is_empty() {
                return Ok(removed);
            }
            for record in records {
                let flow = unseal(&keys, &record).await.ok();
                let delete = Write::Delete { table: Table::Flow, key: record.key, generation: record.generation };
                match self.store.apply(vec![delete]).await {
                    Ok(()) => {
                        let now = self.clock.now();
                        let pending = flow.filter(|flow| flow.is_pending(now));
                        removed.pending += usize::from(pending.is_some());
                        removed.exchanging |=
                            pending.is_some_and(|flow| matches!(flow.stage, Stage::Exchanging { .. }));
                    }
                    Err(StoreError::Conflict) => {}
                    Err(error) => return Err(unavailable(error)),
                }
            }
        }
        Err(unavailable(StoreError::Conflict))
    }

    async fn seal(&self, keys: &OpenKeys, flow: &Flow) -> Result<Record, Failure> {
        let key = flow.id.key();
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(flow).map_err(Failure::internal)?);
        let sealed = keys.seal(&TenantId::default_tenant(), &context(&key), &plain).await?;
        Ok(Record {
            table: Table::Flow,
            key,
            owner: keys.record_key(Table::Flow, &flow.need.person.parts()),
            generation: flow.generation,
            // Kept a while after it expired, so that a late browser is told what happened, and one that is not late is not.
            expires_at: Some(later(flow.expires_at, FLOW_TTL).max(flow.pending_until().unwrap_or(flow.expires_at))),
            sealed,
        })
    }
}

/// What was removed of a person's flows.
#[derive(Default)]
pub(super) struct Removed {
    /// How many had not ended.
    pub(super) pending: usize,
    /// Whether the code of one was being exchanged.
    pub(super) exchanging: bool,
}

/// What a new flow is made from.
#[derive(Clone)]
pub(super) struct NewFlow {
    pub(super) need: Need,
    pub(super) tool: Option<ToolName>,
    pub(super) tool_title: Option<String>,
    pub(super) actor: String,
    pub(super) local: bool,
    pub(super) headless: bool,
    pub(super) next_uri: Option<Url>,
    /// Not one whose link can no longer be opened, although it may still end well.
    pub(super) anew: bool,
    pub(super) call: Option<[u8; 32]>,
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::Flow).with(key)
}

async fn unseal(keys: &OpenKeys, record: &Record) -> Result<Flow, Failure> {
    let plain = keys.unseal(&TenantId::default_tenant(), &context(&record.key), &record.sealed).await?;
    let mut flow: Flow = serde_json::from_slice(plain.expose()).map_err(Failure::internal)?;
    flow.generation = record.generation;
    Ok(flow)
}

/// What a caller is told when the store does not answer.
pub(super) fn unavailable(error: StoreError) -> Failure {
    Failure::new(Code::VaultUnavailable, "obo cannot reach its store just now; try again later").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_ids_are_long_random_and_strictly_read() {
        let id = FlowId::new();
        assert_eq!(id.as_str().parse::<FlowId>().unwrap(), id);
        for bad in ["", "short", &format!("{}=", id.as_str()), &"/".repeat(32), &"é".repeat(16)] {
            assert!(bad.parse::<FlowId>().is_err(), "{bad}");
        }
        assert!(!format!("{id:?}").contains(id.as_str()));
    }
}
