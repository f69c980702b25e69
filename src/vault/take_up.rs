//! What others left behind: answers that were not written, and refreshes that were interrupted.
//!
//! Both are found at start-up and every few seconds, by whoever has the folder or the store. Nothing secret is opened as
//! long as there is nothing to find.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::head::{Answered, Head};
use super::refresh::Refresh;
use super::safe::{Safe, Stored, WriteError, key_of, unavailable};
use super::spool::{key_in, name_of};
use super::upstream::Upstream;
use super::{GrantStatus, context};
use crate::clock::{later, remaining};
use crate::failure::Failure;
use crate::id::{Person, TenantId};
use crate::keys::{Context, KeyError, OpenKeys};
use crate::oauth::Revocation;
use crate::secret::Secret;
use crate::store::{Lease, Record, RecordKey, Table, Write};

/// How long an interrupted refresh is looked for. After that the next call takes it up, if there is one.
const INTERRUPTED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// How long revoking tokens that are nobody's any more is tried.
const REVOKE_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Most interrupted refreshes taken up in one round.
const PAGE: usize = 200;

/// What became of an answer that was not written at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It is the grant's newest.
    Written,
    /// Somebody else refreshed first: it is kept beside.
    Candidate,
    /// It is not needed: it brought no new refresh token, or the person has connected anew.
    Superseded,
    /// There is no such grant any more.
    Nobodys,
}

/// What to ask a provider with, from its id.
pub(super) type FindUpstream<'a> = &'a (dyn Fn(&Head) -> Option<Upstream> + Send + Sync);

/// How far this process has come with it.
#[derive(Default)]
pub(super) struct TakingUp {
    /// The mark that the next round begins after.
    after: Option<RecordKey>,
    /// Whether the keys were asked for. If they do not open, a person may be asked for them; not every few seconds.
    asked_for_keys: bool,
    /// Entries that could not be taken up, and were complained about.
    told: BTreeSet<String>,
}

impl Safe {
    /// One round. `upstream` finds the provider of a grant.
    pub(super) async fn take_up(self: &Arc<Self>, upstream: FindUpstream<'_>) {
        let names = self.names_of_answers().await;
        let after = self.taking_up().after;
        let marks = match self.store.scan(Table::Refreshing, after.as_ref(), PAGE).await {
            Ok(marks) => marks,
            Err(error) => return tracing::warn!(%error, "vault.interrupted_refreshes_not_found"),
        };
        self.taking_up().after = marks.last().filter(|_| marks.len() == PAGE).map(|mark| mark.key);
        if names.is_empty() && marks.is_empty() {
            return;
        }
        let asked = std::mem::replace(&mut self.taking_up().asked_for_keys, true);
        if asked && !self.keys.is_open() {
            return;
        }
        let keys = match self.keys.open().await {
            Ok(keys) => keys,
            Err(error) => return tracing::warn!(%error, "vault.left_as_found"),
        };
        for name in names {
            let Some(key) = key_in(&name) else { continue };
            if let Err(failure) = self.take_up_answer(&keys, &key, &name, upstream).await
                && self.taking_up().told.insert(name)
            {
                tracing::warn!(cause = failure.cause, "vault.answer_not_taken_up");
            }
        }
        for mark in marks {
            if let Err(failure) = self.take_up_interrupted(&keys, &mark, upstream).await {
                tracing::warn!(cause = failure.cause, "vault.interrupted_refresh_not_taken_up");
            }
        }
    }

    fn taking_up(&self) -> MutexGuard<'_, TakingUp> {
        self.taking_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up an answer that somebody could not write.
    async fn take_up_answer(
        &self,
        keys: &OpenKeys,
        key: &RecordKey,
        name: &str,
        upstream: FindUpstream<'_>,
    ) -> Result<(), Failure> {
        // Whoever holds the grant has the answer in memory, and is writing it.
        let Some(_lease) = self.lease_at_once(key).await? else { return Ok(()) };
        let Some((person, answered)) = self.answer_in(keys, key, name).await? else { return Ok(()) };
        match self.settle(keys, key, &person, &answered).await? {
            Settled::Nobodys => {
                let tried_for = remaining(answered.next.issued_at, self.clock.now());
                let upstream = upstream(&answered.next);
                let given_up = tried_for > REVOKE_FOR || upstream.is_none();
                if revoke_late(&answered.next, upstream.as_ref()).await == Revocation::Failed && !given_up {
                    return Ok(());
                }
            }
            settled => tracing::info!(provider = %answered.next.provider, ?settled, "vault.answer_taken_up"),
        }
        self.forget_answer(name).await;
        Ok(())
    }

    /// Writes an answer to its grant as it stands now. Whoever calls this holds the grant.
    pub(super) async fn settle(
        &self,
        keys: &OpenKeys,
        key: &RecordKey,
        person: &Person,
        Answered { next, spent }: &Answered,
    ) -> Result<Settled, Failure> {
        loop {
            let Some(Stored { head, generation }) = self.read(keys, person, key).await? else {
                return Ok(Settled::Nobodys);
            };
            if head.access_token.matches(&next.access_token) {
                return Ok(Settled::Written);
            }
            let is = |token: &Secret| head.refresh_token.as_ref().is_some_and(|t| t.matches(token));
            let (changed, settled) = if is(spent) {
                // Only what is beside the tokens has changed since, if anything has.
                let Head { preferred_at, suspended_at, .. } = head;
                let status = if suspended_at.is_some() { head.status } else { next.status };
                let candidates = head.candidates.clone();
                (Head { preferred_at, suspended_at, status, candidates, ..next.clone() }, Settled::Written)
            } else if next.refresh_token.as_ref().is_none_or(|token| token.matches(spent))
                || head.connected_at > next.connected_at
            {
                return Ok(Settled::Superseded);
            } else {
                (head.with_candidate(next), Settled::Candidate)
            };
            match self.write(keys, key, &changed, Some(generation)).await {
                Ok(_) => return Ok(settled),
                Err(WriteError::Conflict) => {}
                Err(WriteError::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// Goes on with a refresh whose process is gone, with the same token: the provider may still take it for a moment.
    async fn take_up_interrupted(
        self: &Arc<Self>,
        keys: &OpenKeys,
        mark: &Record,
        upstream: FindUpstream<'_>,
    ) -> Result<(), Failure> {
        let person: Person =
            match keys.unseal(&TenantId::default_tenant(), &mark_context(&mark.key), &mark.sealed).await {
                Ok(body) => serde_json::from_slice(body.expose()).map_err(|_| KeyError::DoesNotOpen)?,
                Err(error) => return Err(error.into()),
            };
        // Held: its process lives.
        let Some(lease) = self.lease_at_once(&mark.key).await? else { return Ok(()) };
        let now = self.clock.now();
        let head = self.read(keys, &person, &mark.key).await?.map(|stored| stored.head);
        let interrupted = head.and_then(|head| Some((head.refreshing_since?, head)));
        let Some((since, head)) = interrupted.filter(|(_, head)| head.status == GrantStatus::Active) else {
            self.unmark(mark).await;
            return Ok(());
        };
        let Some(upstream) = upstream(&head) else { return Ok(()) };
        if !head.usable(&upstream.terms) || !upstream.terms.may_ask_again(remaining(since, now)) {
            // The next call sees to it, if there is one.
            self.unmark(mark).await;
            return Ok(());
        }
        if self.at_rest(&mark.key, &upstream, now).is_none() {
            // The flight takes the lease, and looks again.
            drop(lease);
            self.join(Refresh { key: mark.key, person, upstream, stale: head.access_token });
        }
        Ok(())
    }

    async fn lease_at_once(&self, key: &RecordKey) -> Result<Option<Lease>, Failure> {
        self.store.lease(key, Duration::ZERO).await.map_err(unavailable)
    }

    async fn unmark(&self, record: &Record) {
        let delete = Write::Delete { table: Table::Refreshing, key: record.key, generation: record.generation };
        // It is looked at again in the next round, if it is still there.
        let _ = self.store.apply(vec![delete]).await;
    }

    /// The write that goes with a grant's: a mark while its refresh is under way, none while it is not.
    pub(super) async fn marking(
        &self,
        keys: &OpenKeys,
        key: &RecordKey,
        head: &Head,
    ) -> Result<Option<Write>, Failure> {
        if head.refreshing_since.is_none() {
            return self.unmarking(key).await;
        }
        let body = serde_json::to_vec(&head.person).map_err(Failure::internal)?;
        let sealed = keys.seal(&TenantId::default_tenant(), &mark_context(key), &body).await?;
        let expires_at = Some(later(self.clock.now(), INTERRUPTED_FOR));
        Ok(Some(Write::Put(Record {
            table: Table::Refreshing,
            key: *key,
            owner: *key,
            generation: 0,
            expires_at,
            sealed,
        })))
    }

    /// The write that removes a grant's mark, where there is one.
    pub(super) async fn unmarking(&self, key: &RecordKey) -> Result<Option<Write>, Failure> {
        let mark = self.store.get(Table::Refreshing, key).await.map_err(unavailable)?;
        Ok(mark.map(|mark| Write::Delete { table: Table::Refreshing, key: *key, generation: mark.generation }))
    }

    /// Keeps an answer in the spool: its name there.
    pub(super) async fn keep_answer(
        &self,
        keys: &OpenKeys,
        key: &RecordKey,
        answered: &Answered,
    ) -> Result<Option<String>, Failure> {
        let Some(spool) = &self.spool else { return Ok(None) };
        let person = &answered.next.person;
        let whose = serde_json::to_vec(person).map_err(Failure::internal)?;
        let whose = keys.seal(&TenantId::default_tenant(), &whose_context(key), &whose).await?;
        let body = answered.to_bytes().map_err(Failure::internal)?;
        let body = keys.seal(&person.tenant, &answer_context(person, key), &body).await?;
        let mut bytes = Vec::with_capacity(4 + whose.len() + body.len());
        bytes.extend_from_slice(&(whose.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&whose);
        bytes.extend_from_slice(&body);
        let name = name_of(key, &bytes);
        spool.entries.keep(name.clone(), bytes).await.map_err(unkept)?;
        Ok(Some(name))
    }

    pub(super) async fn forget_answer(&self, name: &str) {
        let Some(spool) = &self.spool else { return };
        // Found again in the next round, and then it is written already.
        if let Err(error) = spool.entries.remove(name).await {
            tracing::warn!(%error, "vault.answer_not_removed");
        }
    }

    /// Writes what earlier holders of a grant left behind, before anything else is done with it. Whoever calls this holds
    /// it.
    pub(super) async fn settle_left(&self, keys: &OpenKeys, key: &RecordKey) -> Result<(), Failure> {
        for name in self.names_of_answers().await {
            if key_in(&name) != Some(*key) {
                continue;
            }
            let (person, answered) = match self.answer_in(keys, key, &name).await {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // One that does not open must not keep its grant from being used.
                Err(failure) => {
                    tracing::error!(cause = failure.cause, "vault.answer_does_not_open");
                    continue;
                }
            };
            let settled = self.settle(keys, key, &person, &answered).await?;
            tracing::info!(provider = %answered.next.provider, ?settled, "vault.answer_taken_up");
            // Those of nobody are revoked in the next round.
            if settled != Settled::Nobodys {
                self.forget_answer(&name).await;
            }
        }
        Ok(())
    }

    async fn names_of_answers(&self) -> Vec<String> {
        let Some(spool) = &self.spool else { return Vec::new() };
        spool.entries.names().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "vault.spool_not_read");
            Vec::new()
        })
    }

    /// Opens an entry. None: it is gone, or it was cut off, and then nobody has it.
    async fn answer_in(
        &self,
        keys: &OpenKeys,
        key: &RecordKey,
        name: &str,
    ) -> Result<Option<(Person, Answered)>, Failure> {
        let Some(spool) = &self.spool else { return Ok(None) };
        let Some(bytes) = spool.entries.read(name).await.map_err(unkept)? else { return Ok(None) };
        if name_of(key, &bytes) != name {
            // Its writer held the grant, and holds it no longer.
            tracing::warn!("vault.answer_cut_off");
            self.forget_answer(name).await;
            return Ok(None);
        }
        let does_not_read = || Failure::internal("an entry of the spool does not read");
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(does_not_read)?;
        let (whose, body) = rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(does_not_read)?;
        let whose = keys.unseal(&TenantId::default_tenant(), &whose_context(key), whose).await?;
        let person: Person = serde_json::from_slice(whose.expose()).map_err(|_| does_not_read())?;
        let body = keys.unseal(&person.tenant, &answer_context(&person, key), body).await?;
        let answered = Answered::from_bytes(body.expose()).map_err(|_| does_not_read())?;
        // What is in it decides which grant it is for, not the name of a file.
        let is_its_own = key_of(keys, &person, &answered.next.provider, &answered.next.account.key) == *key
            && answered.next.person == person;
        if is_its_own { Ok(Some((person, answered))) } else { Err(does_not_read()) }
    }
}

/// Revokes tokens that came after their grant had ended.
pub(super) async fn revoke_late(head: &Head, upstream: Option<&Upstream>) -> Revocation {
    let Some(upstream) = upstream else { return Revocation::NotSupported };
    let revoked = super::Receipt::of(head, Some(upstream)).await.outcome;
    tracing::info!(provider = %head.provider, ?revoked, "vault.late_answer_revoked");
    revoked
}

fn mark_context(key: &RecordKey) -> Context {
    Context::of(Table::Refreshing).with(key)
}

fn whose_context(key: &RecordKey) -> Context {
    Context::of(Table::Refreshing).with(key).with(b"whose answer")
}

fn answer_context(person: &Person, key: &RecordKey) -> Context {
    context(person, key).with(b"answer")
}

fn unkept(error: io::Error) -> Failure {
    Failure::internal(format!("the spool in the data folder: {error}"))
}
