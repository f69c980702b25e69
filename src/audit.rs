//! Who did what: two records a call, durable before and after, chained so that a change shows.
//!
//! The intent is durable before any token is opened, so whatever reached a provider is on record even after a crash; a
//! missing outcome reads as "unknown". Each process writes a chain of its own, continued from where the last holder of
//! its slot stopped; the newest head of each chain is kept sealed, apart from the records.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::catalog::{Effect, Tool};
use crate::clock::SharedClock;
use crate::failure::{Code, Failure};
use crate::id::{CallId, Person, ProviderId, TenantId, ToolName};
use crate::keys::{Context, Keys};
use crate::policy::{Permit, Recorded};
use crate::store::{RecordKey, Store};

mod chain;
mod record;
pub mod verify;

pub use record::{Kind, Phase, Record};

/// `[audit]` of obo.toml.
#[derive(Debug, Clone, Copy, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What to refuse while no record can be kept.
    pub fail_closed: FailClosed,
}

/// What to refuse while no record can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailClosed {
    /// Tools that change something. Reads go on, and the gap is recorded as soon as it can be.
    #[default]
    Write,
    /// Every tool.
    All,
}

/// Longest actor kept in a record, in characters. It comes from the client.
pub const MAX_ACTOR_CHARS: usize = 200;
/// How many records are made durable together, at most.
const BATCH: usize = 128;
/// How many records are looked at for somebody's recent calls: a page must not read a year of them.
pub const RECENT_SCAN: usize = 10_000;
/// How many records may wait to be written before callers wait too.
const QUEUE: usize = 1024;

/// What a record of a call says beside the outcome.
#[derive(Clone)]
pub struct Entry {
    /// The call.
    pub call_id: CallId,
    /// For whom.
    pub person: Person,
    /// Who is acting.
    pub actor: String,
    /// The tool.
    pub tool: ToolName,
    /// The provider it is about.
    pub provider: Option<ProviderId>,
    /// What it does.
    pub effect: Effect,
    /// The account used, once it is known.
    pub account: Option<String>,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// Whether it was allowed.
    pub allowed: bool,
    /// MAC over the canonical arguments: equal arguments are seen to be equal, and nothing else is seen.
    pub arguments_hmac: Option<String>,
    /// When it began.
    pub began: Timestamp,
}

/// How something ended, for its record.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// `ok`, or the code; `None` reads as ok.
    pub failure: Option<Code>,
    /// The provider's status.
    pub status: Option<u16>,
    /// Something the operator should see: `leak.blocked`.
    pub note: Option<String>,
}

impl Ending {
    /// The ending of a call that failed.
    pub fn failed(failure: &Failure) -> Self {
        Self { failure: Some(failure.code), status: failure.status, note: failure.note.map(ToOwned::to_owned) }
    }
}

/// The audit. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    keys: Keys,
    clock: SharedClock,
    fail_closed: FailClosed,
    queue: OnceCell<mpsc::Sender<Pending>>,
    /// Records that could not be kept since the last one that could.
    lost: AtomicU64,
    /// Records that nobody waits for.
    later: TaskTracker,
}

/// A record on its way to the chain.
struct Pending {
    record: Record,
    done: oneshot::Sender<Result<(), String>>,
}

impl Audit {
    /// An audit that takes its place in the store on first need.
    pub fn new(store: Arc<dyn Store>, keys: Keys, clock: SharedClock, config: Config) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                keys,
                clock,
                fail_closed: config.fail_closed,
                queue: OnceCell::new(),
                lost: AtomicU64::new(0),
                later: TaskTracker::new(),
            }),
        }
    }

    /// Begins the record of a call: nothing is written yet.
    pub fn entry(&self, call_id: CallId, permit: &Permit, actor: &str) -> Entry {
        let policies = permit.policies().to_vec();
        Entry { policies, allowed: true, ..self.refused(call_id, permit.person(), permit.tool(), actor) }
    }

    /// The record of a call that policy did not allow.
    pub fn refused(&self, call_id: CallId, person: &Person, tool: &Tool, actor: &str) -> Entry {
        Entry {
            call_id,
            person: person.clone(),
            actor: actor.chars().take(MAX_ACTOR_CHARS).collect(),
            tool: tool.name.clone(),
            provider: tool.api().map(|api| api.provider.id.clone()),
            effect: tool.effect,
            account: None,
            policies: Vec::new(),
            allowed: false,
            arguments_hmac: None,
            began: self.inner.clock.now(),
        }
    }

    /// Makes the intent durable, and gives the permit back as a recorded one.
    ///
    /// Invariant INV-3: this is the only place that makes a `Recorded<Permit>`.
    ///
    /// # Errors
    /// `audit_unavailable` when the record cannot be kept and the tool may not run without; `vault_unavailable` when
    /// the keys do not open.
    pub async fn intent(&self, entry: &mut Entry, permit: Permit) -> Result<Recorded<Permit>, Failure> {
        let keys = self.inner.keys.open().await?;
        let digest = permit.arguments().digest();
        let mac = keys.mac("audit arguments", &[permit.person().tenant.as_str().as_bytes(), &digest]);
        entry.arguments_hmac = Some(hex(&mac));

        let kept = self.keep(Record::of_call(entry, Phase::Intent, None, self.inner.clock.now())).await;
        if let Err(cause) = kept {
            let refuse = self.inner.fail_closed == FailClosed::All || entry.effect != Effect::Read;
            if refuse {
                return Err(unavailable(cause));
            }
        }
        Ok(Recorded::after_durable_record(permit))
    }

    /// Records how a call ended. A record that cannot be kept is counted, logged, and noted in the chain as soon as
    /// it can be: the call has happened, so there is nothing left to refuse.
    pub async fn outcome(&self, entry: &Entry, ending: &Ending) {
        let record = Record::of_call(entry, Phase::Outcome, Some(ending), self.inner.clock.now());
        // Logged and counted in `keep`.
        let _ = self.keep(record).await;
    }

    /// Records something other than a call: a consent, a refresh, a disconnection, an administrative act.
    ///
    /// # Errors
    /// `audit_unavailable`, when it could not be kept. Whoever is about to act must not go on.
    pub async fn event(&self, event: Event<'_>) -> Result<(), Failure> {
        self.keep(Record::of_event(&event, self.inner.clock.now())).await.map_err(unavailable)
    }

    /// Records something that has happened, without making anybody wait.
    pub fn event_later(&self, event: Event<'_>) {
        let (this, record) = (self.clone(), Record::of_event(&event, self.inner.clock.now()));
        self.inner.later.spawn(async move {
            // Logged and counted in `keep`.
            let _ = this.keep(record).await;
        });
    }

    /// Waits for records on their way, at most `within`. For shutdown.
    pub async fn drain(&self, within: Duration) {
        self.inner.later.close();
        let _ = tokio::time::timeout(within, self.inner.later.wait()).await;
    }

    async fn keep(&self, record: Record) -> Result<(), String> {
        let result = self.enqueue(record).await;
        if let Err(cause) = &result {
            let lost = self.inner.lost.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::error!(cause, lost, "an audit record could not be kept");
        }
        result
    }

    async fn enqueue(&self, record: Record) -> Result<(), String> {
        let queue = self.inner.queue.get_or_try_init(|| self.start()).await?;
        let (done, answer) = oneshot::channel();
        queue.send(Pending { record, done }).await.map_err(|_| "the audit's writer has ended".to_owned())?;
        answer.await.map_err(|_| "the audit's writer has ended".to_owned())?
    }

    /// Takes a chain and starts its writer, which ends when the audit is dropped.
    async fn start(&self) -> Result<mpsc::Sender<Pending>, String> {
        let mut chain = chain::Chain::take(Arc::clone(&self.inner.store), &self.inner.keys).await?;
        let (sender, mut receiver) = mpsc::channel::<Pending>(QUEUE);
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            while receiver.recv_many(&mut batch, BATCH).await > 0 {
                let Some(inner) = inner.upgrade() else { break };
                let lost = inner.lost.load(Ordering::Relaxed);
                let mut records: Vec<Record> = Vec::with_capacity(batch.len() + 1);
                if lost > 0 {
                    records.push(Record::gap(lost, inner.clock.now()));
                }
                records.extend(batch.iter().map(|pending| pending.record.clone()));
                let result = chain.append(records).await;
                if result.is_ok() && lost > 0 {
                    inner.lost.fetch_sub(lost, Ordering::Relaxed);
                }
                for pending in batch.drain(..) {
                    let _ = pending.done.send(result.clone());
                }
            }
        });
        Ok(sender)
    }

    /// Reads the records that `wanted` keeps, oldest first.
    ///
    /// # Errors
    /// The operator's text, when the store cannot be read.
    pub async fn read(&self, mut wanted: impl FnMut(&Record) -> bool) -> Result<Vec<Record>, String> {
        let mut found = Vec::new();
        let mut after = 0;
        loop {
            let page = self.inner.store.log(after, 1000).await.map_err(|e| e.to_string())?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            after = *last;
            for (_, entry) in page {
                match Record::parse(&entry.body) {
                    Some(record) if wanted(&record) => found.push(record),
                    Some(_) => {}
                    None => tracing::warn!(
                        writer = entry.writer,
                        seq = entry.seq,
                        "an audit record does not read; run `obo audit verify`"
                    ),
                }
            }
        }
    }

    /// A person's newest calls, newest first: at most `limit`, among the newest [`RECENT_SCAN`] records.
    ///
    /// # Errors
    /// The operator's text, when the store cannot be read.
    pub async fn recent_calls(&self, person: &Person, limit: usize) -> Result<Vec<Record>, String> {
        let mut found = Vec::new();
        let (mut before, mut read) = (u64::MAX, 0);
        while read < RECENT_SCAN {
            let page = self.inner.store.newest(before, 1000).await.map_err(|e| e.to_string())?;
            let Some((last, _)) = page.last() else { break };
            before = *last;
            read += page.len();
            let records = page.iter().filter_map(|(_, entry)| Record::parse(&entry.body));
            found.extend(records.filter(|record| {
                record.kind == Kind::Call
                    && record.phase == Phase::Outcome
                    && record.user.as_deref() == Some(person.user.as_str())
                    && record.source.as_deref() == Some(person.source.as_str())
                    && record.tenant.as_deref() == Some(person.tenant.as_str())
            }));
            if found.len() >= limit {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// What the records of [`crate::store::Table::AuditHead`] are sealed for, by their keys.
    ///
    /// # Errors
    /// The operator's text, when the store or the keys cannot be read, or the list of chains does not open.
    pub async fn head_contexts(&self) -> Result<HashMap<RecordKey, Context>, String> {
        let keys = self.inner.keys.open().await.map_err(|e| e.to_string())?;
        chain::contexts(self.inner.store.as_ref(), &keys).await
    }

    /// Everybody whom the records name.
    ///
    /// # Errors
    /// As [`Audit::read`].
    pub async fn people(&self) -> Result<BTreeSet<Person>, String> {
        let mut people = BTreeSet::new();
        let collect = |record: &Record| {
            people.extend(record.person());
            false
        };
        self.read(collect).await?;
        Ok(people)
    }

    /// Checks every chain. See [`verify::Report`].
    ///
    /// # Errors
    /// The operator's text, when the store or the keys cannot be read.
    pub async fn verify(&self) -> Result<verify::Report, String> {
        verify::verify(self.inner.store.as_ref(), &self.inner.keys).await
    }
}

/// Something other than a call.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// What it is.
    pub kind: Kind,
    /// About to happen, or done.
    pub phase: Phase,
    /// Whom it concerns; none for an act on the whole server.
    pub person: Option<&'a Person>,
    /// In which tenant, where there is no person.
    pub tenant: Option<&'a TenantId>,
    /// Who did it.
    pub actor: &'a str,
    /// At which provider.
    pub provider: Option<&'a ProviderId>,
    /// With which account.
    pub account: Option<&'a str>,
    /// What happened, as a dotted name for the record's `note`: `consent.connected`.
    pub what: &'a str,
    /// Why it did not work out; none: it did.
    pub failure: Option<Code>,
    /// How long it took.
    pub duration: Option<Duration>,
}

fn unavailable(cause: String) -> Failure {
    Failure::new(
        Code::AuditUnavailable,
        "obo cannot keep its audit record just now, so it did nothing; try again later",
    )
    .because(cause)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
