//! The end of a grant: revoked at its provider, with a receipt that says what the provider answered.

use std::fmt;
use std::sync::Arc;

use super::head::Head;
use super::safe::{Safe, Stored, WriteError, key_of, unavailable, unseal};
use super::upstream::Upstream;
use super::{Grant, GrantStatus, people};
use crate::failure::Failure;
use crate::id::Person;
use crate::oauth::{Answered, Revocation};
use crate::store::{StoreError, Table, Write};

/// What stays of a grant that is ended while its provider does not confirm it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// The grant, which nobody can use: so that the provider can be asked again.
    Unconfirmed,
}

/// What the provider answered when a grant was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The worst of the answers.
    pub outcome: Revocation,
    /// Which tokens it was asked about, in that order, and its answers. None, where it was not asked: it is not in the
    /// catalog, or the grant was made for other servers than it has now.
    pub tokens: Vec<(&'static str, Answered)>,
    /// Whether the grant is still here, so that it can be asked again.
    pub kept: bool,
}

impl fmt::Display for Receipt {
    /// `refresh_token revoked 200, access_token failed 503`: what was asked for, and how it was answered.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tokens.is_empty() {
            return f.write_str("not asked");
        }
        for (at, (token, answered)) in self.tokens.iter().enumerate() {
            let outcome = match answered.outcome {
                Revocation::Revoked => "revoked",
                Revocation::NotSupported => "not supported",
                Revocation::Failed => "failed",
            };
            let before = if at == 0 { "" } else { ", " };
            write!(f, "{before}{token} {outcome}")?;
            match answered.status {
                Some(status) => write!(f, " {status}")?,
                None if answered.outcome == Revocation::Failed => f.write_str(" without an answer")?,
                None => {}
            }
        }
        Ok(())
    }
}

impl Receipt {
    /// Revokes the refresh token, then the access token: some providers end the access token with the refresh token, none
    /// the other way round (RFC 7009 §2.1).
    pub(super) async fn of(head: &Head, upstream: Option<&Upstream>) -> Self {
        let Some(upstream) = upstream else {
            return Self { outcome: Revocation::NotSupported, tokens: Vec::new(), kept: false };
        };
        if head.fingerprint != upstream.terms.fingerprint {
            // It was made for another server, and the token is not this one's to see.
            return Self { outcome: Revocation::Failed, tokens: Vec::new(), kept: false };
        }
        let refresh = head.refresh_token.iter().map(|token| ("refresh_token", token));
        let mut receipt = Self { outcome: Revocation::Revoked, tokens: Vec::new(), kept: false };
        for (name, token) in refresh.chain([("access_token", &head.access_token)]) {
            let answered = upstream.endpoint.revoke_answered(token).await;
            receipt.outcome = match (receipt.outcome, answered.outcome) {
                (Revocation::Failed, _) | (_, Revocation::Failed) => Revocation::Failed,
                (Revocation::NotSupported, _) | (_, Revocation::NotSupported) => Revocation::NotSupported,
                (Revocation::Revoked, Revocation::Revoked) => Revocation::Revoked,
            };
            receipt.tokens.push((name, answered));
        }
        receipt
    }
}

impl Safe {
    /// Makes a grant one that no call can use any more, and nothing else.
    pub(super) async fn suspend(self: &Arc<Self>, grant: &Grant) -> Result<(), Failure> {
        let safe = Arc::clone(self);
        let (person, provider, account) = (grant.person.clone(), grant.provider.clone(), grant.account.key.clone());
        self.to_its_end(async move {
            let keys = safe.keys.open().await?;
            let key = key_of(&keys, &person, &provider, &account);
            let _lease = safe.lease(&key).await?;
            loop {
                let Some(Stored { mut head, generation }) = safe.read(&keys, &person, &key).await? else {
                    return Ok(());
                };
                if head.suspended_at.is_some() {
                    return Ok(());
                }
                head.status = GrantStatus::NeedsConsent;
                head.suspended_at = Some(safe.clock.now());
                match safe.write(&keys, &key, &head, Some(generation)).await {
                    Ok(_) => return Ok(()),
                    Err(WriteError::Conflict) => {}
                    Err(WriteError::Failed(failure)) => return Err(failure),
                }
            }
        })
        .await
    }

    /// Takes a person off the list who has no grants: two of theirs that end at the same time each see the other one.
    pub(super) async fn unlist(&self, person: &Person) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        let key = people::owner(&keys, person);
        let Some(listed) = self.store.get(Table::Person, &key).await.map_err(unavailable)? else { return Ok(()) };
        if !self.store.owned(Table::Grant, &key).await.map_err(unavailable)?.is_empty() {
            return Ok(());
        }
        let delete = Write::Delete { table: Table::Person, key, generation: listed.generation };
        match self.store.apply(vec![delete]).await {
            // Connected again in between: then they are listed anew.
            Ok(()) | Err(StoreError::Conflict) => Ok(()),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// How many grants of a person do not open.
    pub(super) async fn unopened(&self, person: &Person) -> Result<usize, Failure> {
        let keys = self.keys.open().await?;
        let owner = people::owner(&keys, person);
        let mut count = 0;
        for record in self.of_tenant(&keys, person).owned(Table::Grant, &owner).await.map_err(unavailable)? {
            count += usize::from(unseal(&keys, person, &record).await.is_err());
        }
        Ok(count)
    }
}
