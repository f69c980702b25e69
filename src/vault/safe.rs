//! Reads and writes grants. Whoever changes one holds its lease, over processes.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::breaker::Breakers;
use super::head::Head;
use super::people;
use super::refresh::{Cooling, Flights};
use super::spool::{Entries, Journal};
use super::take_up::TakingUp;
use super::upstream::{Terms, Upstream};
use super::{Grant, GrantStatus, Keep, Receipt, context};
use crate::clock::{SharedClock, later};
use crate::failure::{Code, Failure};
use crate::id::{Person, ProviderId};
use crate::keys::{KeyError, Keys, OpenKeys};
use crate::oauth::{Account, Revocation, TokenAnswer};
use crate::store::{self, Lease, Record, RecordKey, Store, StoreError, Table, Write};

/// How long a grant may be held by another process: a refresh that waits for a slow provider.
const LEASE_WAIT: Duration = Duration::from_secs(60);

/// How often a deposit is tried: its tokens were given for a code that works once.
const DEPOSIT_TRIES: u32 = 6;

/// How fast things are tried again.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Before a refresh that had no answer is asked for again: at once, because a provider that did rotate still takes
    /// the old token for a short while; then once more.
    pub(super) again: [Duration; 2],
    /// Before a write that failed is made again; doubles up to [`Pace::longest`].
    pub(super) shortest: Duration,
    /// See [`Pace::shortest`].
    pub(super) longest: Duration,
    /// How long the store has to take an answer, before it is late.
    pub(super) at_once: Duration,
    /// Between looks at an exchange that somebody else may have under way.
    pub(super) look_again: Duration,
}

impl Pace {
    const REAL: Self = Self {
        again: [Duration::from_millis(100), Duration::from_secs(2)],
        shortest: Duration::from_millis(50),
        longest: Duration::from_secs(5),
        at_once: Duration::from_millis(100),
        look_again: Duration::from_secs(1),
    };
}

/// Everything of the vault but its way to providers.
pub(super) struct Safe {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Keys,
    pub(super) clock: SharedClock,
    pub(super) pace: Pace,
    pub(super) flights: Mutex<Flights>,
    pub(super) cooling: Mutex<HashMap<RecordKey, Cooling>>,
    pub(super) breakers: Breakers,
    pub(super) spool: Option<Spool>,
    /// How far what others left behind was gone through.
    pub(super) taking_up: Mutex<TakingUp>,
    /// Whether this process is about to end.
    pub(super) draining: watch::Sender<bool>,
    pub(super) tasks: TaskTracker,
    pub(super) observer: OnceLock<super::Observer>,
}

/// Where answers wait that the store has not taken, and when they are written there.
pub(super) struct Spool {
    pub(super) entries: Box<dyn Entries>,
    pub(super) journal: Journal,
}

/// A grant as it stands in the store.
pub(super) struct Stored {
    pub(super) head: Head,
    /// The record's generation, for compare-and-set.
    pub(super) generation: u64,
}

/// Why a head was not written.
pub(super) enum WriteError {
    /// The record is not what it was when it was read.
    Conflict,
    /// The store or the keys do not work now.
    Failed(Failure),
}

impl Safe {
    pub(super) fn new(store: Arc<dyn Store>, keys: Keys, clock: SharedClock) -> Self {
        Self {
            store,
            keys,
            clock,
            pace: Pace::REAL,
            flights: Mutex::default(),
            cooling: Mutex::default(),
            breakers: Breakers::default(),
            spool: None,
            taking_up: Mutex::default(),
            draining: watch::Sender::new(false),
            tasks: TaskTracker::new(),
            observer: OnceLock::new(),
        }
    }

    pub(super) async fn grants(&self, person: &Person) -> Result<Vec<Grant>, Failure> {
        let keys = self.keys.open().await?;
        let owner = people::owner(&keys, person);
        let mut grants = Vec::new();
        for record in self.of_tenant(&keys, person).owned(Table::Grant, &owner).await.map_err(unavailable)? {
            match unseal(&keys, person, &record).await {
                Ok(stored) => grants.push(stored.head.grant()),
                // One bad record must not keep its person from every other connection.
                Err(failure) => tracing::error!(cause = failure.cause, "vault.grant_does_not_open"),
            }
        }
        grants.sort_by(|a, b| {
            (a.provider.as_str(), &a.account.label, &a.account.key).cmp(&(
                b.provider.as_str(),
                &b.account.label,
                &b.account.key,
            ))
        });
        Ok(grants)
    }

    pub(super) async fn deposit(
        self: &Arc<Self>,
        person: Person,
        terms: Terms,
        account: Account,
        answer: TokenAnswer,
        asked: BTreeSet<String>,
    ) -> Result<Grant, Failure> {
        let safe = Arc::clone(self);
        self.to_its_end(async move {
            let keys = safe.keys.open().await?;
            let key = key_of(&keys, &person, &terms.id, &account.key);
            let _lease = safe.hold(&keys, &key).await?;
            let mut pause = safe.pace.shortest;
            let mut tries = 0;
            loop {
                let outcome = safe.lay_over(&keys, &key, &person, &terms, &account, &answer, &asked).await;
                tries += 1;
                match outcome {
                    Ok(grant) => {
                        safe.warm(&key);
                        return Ok(grant);
                    }
                    Err(WriteError::Conflict) if tries < DEPOSIT_TRIES => {}
                    Err(WriteError::Failed(failure)) if tries < DEPOSIT_TRIES => {
                        tracing::warn!(cause = failure.cause, "vault.deposit_retried");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(safe.pace.longest);
                    }
                    Err(WriteError::Conflict) => return Err(unavailable(StoreError::Conflict)),
                    Err(WriteError::Failed(failure)) => return Err(failure),
                }
            }
        })
        .await
    }

    #[expect(clippy::too_many_arguments, reason = "one step of `deposit`, with all that it was given")]
    async fn lay_over(
        &self,
        keys: &OpenKeys,
        key: &RecordKey,
        person: &Person,
        terms: &Terms,
        account: &Account,
        answer: &TokenAnswer,
        asked: &BTreeSet<String>,
    ) -> Result<Grant, WriteError> {
        let (earlier, replaces) = self.earlier(keys, person, key).await.map_err(WriteError::Failed)?;
        let head =
            Head::deposited(earlier.as_ref(), person, terms, account.clone(), answer.clone(), asked, self.clock.now());
        self.write(keys, key, &head, replaces).await?;
        Ok(head.grant())
    }

    /// What a deposit is laid over, and the generation of the record in whose place it goes. One that does not open any
    /// more stands in nobody's way: its person has just consented anew, and there is nothing to take over from it.
    async fn earlier(
        &self,
        keys: &OpenKeys,
        person: &Person,
        key: &RecordKey,
    ) -> Result<(Option<Head>, Option<u64>), Failure> {
        let Some(record) = self.of_tenant(keys, person).get(Table::Grant, key).await.map_err(unavailable)? else {
            return Ok((None, None));
        };
        let opened = keys.unseal(&person.tenant, &context(person, key), &record.sealed).await;
        if let Err(KeyError::DoesNotOpen) = opened {
            tracing::error!("vault.damaged_grant_replaced");
            return Ok((None, Some(record.generation)));
        }
        let stored = unseal(keys, person, &record).await?;
        Ok((Some(stored.head), Some(stored.generation)))
    }

    /// Ends a grant; without an upstream, only here. `keep` says whether one whose tokens the provider did not confirm to
    /// be void stays behind, unusable, so that it can be asked again.
    pub(super) async fn disconnect(
        self: &Arc<Self>,
        grant: &Grant,
        upstream: Option<Upstream>,
        keep: Keep,
    ) -> Result<Receipt, Failure> {
        let safe = Arc::clone(self);
        let (person, provider, account) = (grant.person.clone(), grant.provider.clone(), grant.account.key.clone());
        self.to_its_end(async move {
            let keys = safe.keys.open().await?;
            let key = key_of(&keys, &person, &provider, &account);
            // A refresh under way ends first; one that would begin finds nothing.
            let _lease = safe.hold(&keys, &key).await?;
            let gone = || Failure::new(Code::NotFound, "there is no such connection any more");
            let mut stored = safe.read(&keys, &person, &key).await?.ok_or_else(gone)?;
            let mut receipt = Receipt::of(&stored.head, upstream.as_ref()).await;
            loop {
                receipt.kept = keep == Keep::Unconfirmed && receipt.outcome == Revocation::Failed;
                let changed = if receipt.kept {
                    stored.head.status = GrantStatus::NeedsConsent;
                    match safe.write(&keys, &key, &stored.head, Some(stored.generation)).await {
                        Ok(_) => Ok(()),
                        Err(WriteError::Conflict) => Err(StoreError::Conflict),
                        Err(WriteError::Failed(failure)) => return Err(failure),
                    }
                } else {
                    let delete = Write::Delete { table: Table::Grant, key, generation: stored.generation };
                    let writes =
                        [Some(delete), safe.unlisting(&keys, &person, &key).await?, safe.unmarking(&key).await?];
                    safe.of_tenant(&keys, &person).apply(writes.into_iter().flatten().collect()).await
                };
                match changed {
                    Ok(()) => {
                        safe.warm(&key);
                        if let Err(failure) = safe.unlist(&person).await {
                            tracing::warn!(cause = failure.cause, "somebody without connections is still listed");
                        }
                        return Ok(receipt);
                    }
                    Err(StoreError::Conflict) => match safe.read(&keys, &person, &key).await? {
                        Some(changed) => {
                            // Tokens that came in the meantime are not void by those that were before them.
                            if !changed.head.access_token.matches(&stored.head.access_token) {
                                receipt = Receipt::of(&changed.head, upstream.as_ref()).await;
                            }
                            stored = changed;
                        }
                        None => return Ok(receipt),
                    },
                    Err(error) => return Err(unavailable(error)),
                }
            }
        })
        .await
    }

    /// Notes a choice of the person's, later than `after`.
    pub(super) async fn prefer(
        self: &Arc<Self>,
        grant: &Grant,
        after: Option<Timestamp>,
    ) -> Result<Option<Grant>, Failure> {
        let safe = Arc::clone(self);
        let (person, provider, account) = (grant.person.clone(), grant.provider.clone(), grant.account.key.clone());
        self.to_its_end(async move {
            let keys = safe.keys.open().await?;
            let key = key_of(&keys, &person, &provider, &account);
            let _lease = safe.lease(&key).await?;
            loop {
                let Some(Stored { mut head, generation }) = safe.read(&keys, &person, &key).await? else {
                    return Ok(None);
                };
                // Two choices at one instant, or a clock that went back, must not leave the order open.
                let next = after.map(|after| later(after, Duration::from_millis(1)));
                head.preferred_at = next.max(Some(safe.clock.now()));
                match safe.write(&keys, &key, &head, Some(generation)).await {
                    Ok(_) => return Ok(Some(head.grant())),
                    Err(WriteError::Conflict) => {}
                    Err(WriteError::Failed(failure)) => return Err(failure),
                }
            }
        })
        .await
    }

    /// Notes that a grant came back with a backup.
    pub(super) async fn restored(&self, person: &Person, key: &RecordKey) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        let _lease = self.lease(key).await?;
        let Some(Stored { mut head, generation }) = self.read(&keys, person, key).await? else { return Ok(()) };
        head.restored_at = Some(self.clock.now());
        match self.write(&keys, key, &head, Some(generation)).await {
            Ok(_) => Ok(()),
            Err(WriteError::Conflict) => Err(unavailable(StoreError::Conflict)),
            Err(WriteError::Failed(failure)) => Err(failure),
        }
    }

    pub(super) async fn drain(&self, within: Duration) {
        // Answers that wait in the spool are safe there, and those that wait in memory are put there.
        self.draining.send_replace(true);
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_err() {
            tracing::error!(unfinished = self.tasks.len(), "vault.drain_timed_out");
        }
        self.tasks.reopen();
        self.draining.send_replace(false);
    }

    /// Takes a grant for a change, with whatever earlier holders had no time to write.
    pub(super) async fn hold(&self, keys: &OpenKeys, key: &RecordKey) -> Result<Lease, Failure> {
        let lease = self.lease(key).await?;
        self.settle_left(keys, key).await?;
        Ok(lease)
    }

    /// Takes a grant for a change.
    pub(super) async fn lease(&self, key: &RecordKey) -> Result<Lease, Failure> {
        self.store.lease(key, LEASE_WAIT).await.map_err(unavailable)?.ok_or_else(|| {
            Failure::new(Code::VaultUnavailable, "this connection is being changed by another obo process; try again")
                .because("the lease of a grant stayed taken")
        })
    }

    /// Reads a grant.
    pub(super) async fn read(
        &self,
        keys: &OpenKeys,
        person: &Person,
        key: &RecordKey,
    ) -> Result<Option<Stored>, Failure> {
        match self.of_tenant(keys, person).get(Table::Grant, key).await.map_err(unavailable)? {
            Some(record) => Ok(Some(unseal(keys, person, &record).await?)),
            None => Ok(None),
        }
    }

    /// Writes a grant in place of the record that was read; none: where none was. Returns the record's new generation.
    pub(super) async fn write(
        &self,
        keys: &OpenKeys,
        key: &RecordKey,
        head: &Head,
        replaces: Option<u64>,
    ) -> Result<u64, WriteError> {
        let body = head.to_bytes().map_err(|error| WriteError::Failed(Failure::internal(error)))?;
        let sealed = keys
            .seal(&head.person.tenant, &context(&head.person, key), &body)
            .await
            .map_err(|error| WriteError::Failed(error.into()))?;
        let record = Record {
            table: Table::Grant,
            key: *key,
            owner: people::owner(keys, &head.person),
            generation: replaces.unwrap_or_default(),
            expires_at: None,
            sealed,
        };
        let write = if replaces.is_some() { Write::Replace(record) } else { Write::Insert(record) };
        let listing = people::listing(keys, &head.person).await.map_err(|error| WriteError::Failed(error.into()))?;
        let marking = self.marking(keys, key, head).await.map_err(WriteError::Failed)?;
        match self.of_tenant(keys, &head.person).apply([write, listing].into_iter().chain(marking).collect()).await {
            Ok(()) => Ok(replaces.unwrap_or_default() + 1),
            Err(StoreError::Conflict) => Err(WriteError::Conflict),
            Err(error) => Err(WriteError::Failed(unavailable(error))),
        }
    }

    /// The store as far as it concerns a person's tenant.
    pub(super) fn of_tenant(&self, keys: &OpenKeys, person: &Person) -> Arc<dyn Store> {
        store::within(&self.store, &keys.owner_of_data_keys(&person.tenant))
    }

    /// Runs work in a task of its own, so that a caller who goes away does not stop it half-way.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        self.tasks.spawn(work).await.map_err(Failure::internal)?
    }
}

/// The record of a person's account at a provider.
pub(super) fn key_of(keys: &OpenKeys, person: &Person, provider: &ProviderId, account: &str) -> RecordKey {
    let [tenant, source, user] = person.parts();
    keys.record_key(Table::Grant, &[tenant, source, user, provider.as_str().as_bytes(), account.as_bytes()])
}

/// A failure of the store, as a caller may read it.
pub(super) fn unavailable(error: StoreError) -> Failure {
    Failure::new(Code::VaultUnavailable, "obo cannot read or write its vault now; try again in a moment").because(error)
}

pub(super) async fn unseal(keys: &OpenKeys, person: &Person, record: &Record) -> Result<Stored, Failure> {
    let body = keys.unseal(&person.tenant, &context(person, &record.key), &record.sealed).await?;
    // serde_json's messages may quote what they did not expect, so the cause is not passed on.
    let head = Head::from_bytes(body.expose())
        .map_err(|_| Failure::internal("a grant's body cannot be read; was it written by a newer obo?"))?;
    Ok(Stored { head, generation: record.generation })
}
