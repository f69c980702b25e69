//! Somebody leaves: everything that obo holds for a person ends, here at once and at the providers as far as they go along.

use futures::StreamExt as _;

use super::{Consent, Removed};
use crate::audit::{Event, Kind, Phase};
use crate::failure::{Code, Failure};
use crate::id::{Person, ProviderId};
use crate::identity::{ClientSession, IssuedToken};
use crate::oauth::Revocation;
use crate::vault::{Grant, GrantStatus, Keep, Receipt};

/// How many connections are ended at once: one provider that does not answer must not hold up the others.
const AT_ONCE: usize = 8;
/// How often it is looked for what came in while the rest was ended.
const MAX_LOOKS: usize = 3;

/// What ended.
#[derive(Default)]
pub struct Left {
    /// The connections, each with what came of it.
    pub connections: Vec<Ended>,
    /// How many connections do not open: nobody can use them, and nobody can revoke them.
    pub unopened: usize,
    /// Tokens that obo issued.
    pub tokens: Vec<IssuedToken>,
    /// Clients that were signed in at obo.
    pub clients: Vec<ClientSession>,
    /// How many browsers were signed in.
    pub browsers: usize,
    /// How many connect links were open.
    pub links: usize,
    /// Whether the code of one of them was being exchanged. What comes of it is ended by the process that exchanges it,
    /// unless that one dies in between.
    pub exchanging: bool,
}

/// A connection, and what came of ending it.
pub struct Ended {
    /// As it was.
    pub grant: Grant,
    /// What its provider answered; else why it is still here.
    pub outcome: Result<Receipt, Failure>,
}

impl Ended {
    fn is_revoked(&self) -> bool {
        matches!(&self.outcome, Ok(receipt) if receipt.outcome == Revocation::Revoked)
    }
}

impl Left {
    /// Whether all of it is known to be void, everywhere.
    pub fn is_complete(&self) -> bool {
        self.unopened == 0 && !self.exchanging && self.connections.iter().all(Ended::is_revoked)
    }

    /// Whether the same again can bring more of it to its end.
    pub fn can_go_on(&self) -> bool {
        let here = |ended: &Ended| ended.outcome.as_ref().map_or(true, |receipt| receipt.kept);
        self.exchanging || self.connections.iter().any(here)
    }

    fn problem(&self) -> Option<Code> {
        let of = |ended: &Ended| match &ended.outcome {
            Ok(receipt) => (receipt.outcome == Revocation::Failed).then_some(Code::ProviderError),
            Err(failure) => Some(failure.code),
        };
        let unopened = || (self.unopened > 0).then_some(Code::VaultUnavailable);
        self.connections.iter().find_map(of).or_else(unopened)
    }
}

impl Consent {
    /// Ends all connections of a person, or all at one provider. Without a provider also whatever obo issued to the person
    /// or began for them: tokens, clients, browsers, connect links.
    ///
    /// First everything is made useless here, and then the providers are asked: whoever is stopped half-way leaves
    /// nothing that works. A connection that its provider does not confirm to be void stays behind, unusable, so that the
    /// same again asks once more.
    ///
    /// # Errors
    /// `audit_unavailable`: nothing was done. `vault_unavailable`: some of it was, perhaps.
    ///
    /// # Cancellation
    /// Dropping the future does not stop it half-way.
    pub async fn leave(&self, person: &Person, provider: Option<&ProviderId>, actor: &str) -> Result<Left, Failure> {
        let (this, person, actor) = (self.clone(), person.clone(), actor.to_owned());
        let provider = provider.cloned();
        let task = self.inner.exchanges.spawn(async move { this.end_all(&person, provider.as_ref(), &actor).await });
        task.await.map_err(|_| Failure::internal("the end of somebody's connections ended early"))?
    }

    async fn end_all(&self, person: &Person, provider: Option<&ProviderId>, actor: &str) -> Result<Left, Failure> {
        let event = |phase, what, failure| Event {
            kind: Kind::Disconnect,
            phase,
            person: Some(person),
            tenant: None,
            actor,
            provider,
            account: None,
            what,
            failure,
            duration: None,
        };
        self.inner.audit.event(event(Phase::Intent, "disconnect.everywhere", None)).await?;
        let mut left = Left::default();
        let done = self.end_each(person, provider, actor, &mut left).await;
        let revoked = left.connections.iter().filter(|ended| ended.is_revoked()).count();
        let what = format!(
            "disconnect.everywhere: {revoked} of {} connections revoked, {} do not open; {} tokens, {} clients, {} browsers, \
             {} links",
            left.connections.len(),
            left.unopened,
            left.tokens.len(),
            left.clients.len(),
            left.browsers,
            left.links,
        );
        let problem = done.as_ref().err().map(|failure| failure.code).or_else(|| left.problem());
        // Logged there.
        let _ = self.inner.audit.event(event(Phase::Outcome, &what, problem)).await;
        done.map(|()| left)
    }

    async fn end_each(
        &self,
        person: &Person,
        provider: Option<&ProviderId>,
        actor: &str,
        left: &mut Left,
    ) -> Result<(), Failure> {
        for _ in 0..MAX_LOOKS {
            let shut = match provider {
                None => self.shut_out(person, actor, left).await?,
                Some(_) => false,
            };
            let mut grants = self.inner.vault.grants(person).await?;
            grants.retain(|grant| {
                let asked = provider.is_none_or(|provider| grant.provider == *provider);
                // One that stayed behind was asked about; one that can be used was made in between.
                let known = left.connections.iter().any(|ended| is_same(&ended.grant, grant));
                asked && (!known || grant.status == GrantStatus::Active)
            });
            if grants.is_empty() && !shut {
                break;
            }
            for grant in &grants {
                // What fails here is told when it is ended.
                if let Err(failure) = self.inner.vault.suspend(grant).await {
                    tracing::warn!(cause = failure.cause, "a connection could not be made unusable");
                }
            }
            let ending = grants.into_iter().map(|grant| async {
                let provider = self.inner.catalog.now().provider(grant.provider.as_str()).cloned();
                let outcome = self.end(grant.clone(), provider, actor, Keep::Unconfirmed).await;
                Ended { grant, outcome }
            });
            let mut ending = futures::stream::iter(ending).buffered(AT_ONCE);
            while let Some(ended) = ending.next().await {
                left.connections.retain(|before| !is_same(&before.grant, &ended.grant));
                left.connections.push(ended);
            }
        }
        if provider.is_none() {
            left.unopened = self.inner.vault.unopened(person).await?;
            // Their name, where an earlier try was cut off.
            self.inner.vault.unlist(person).await?;
        }
        Ok(())
    }

    /// Takes away everything that a person could still come in with, and says whether there was any.
    async fn shut_out(&self, person: &Person, actor: &str, left: &mut Left) -> Result<bool, Failure> {
        let identity = &self.inner.identity;
        let note = async |what: String| {
            let event = Event {
                kind: Kind::Admin,
                phase: Phase::Outcome,
                person: Some(person),
                tenant: None,
                actor,
                provider: None,
                account: None,
                what: &what,
                failure: None,
                duration: None,
            };
            // Logged there.
            let _ = self.inner.audit.event(event).await;
        };
        // Tokens first: whoever has one could sign in with it again.
        let tokens = identity.tokens().revoke_all(person).await?;
        for token in &tokens {
            note(format!("token.revoked {}", token.id)).await;
        }
        // Browsers next: whoever is signed in could allow a client.
        let browsers = self.sign_out_everywhere(person).await?;
        let clients = identity.clients().revoke_all(person).await?;
        for client in &clients {
            note(format!("client.signed_out {}", client.id)).await;
        }
        identity.mcp_sessions().end_all(person).await?;
        let Removed { pending, exchanging } = self.inner.flows.remove_all(person).await?;
        let any = !tokens.is_empty() || browsers > 0 || !clients.is_empty() || pending > 0;
        left.tokens.extend(tokens);
        left.clients.extend(clients);
        left.browsers += browsers;
        left.links += pending;
        left.exchanging |= exchanging;
        Ok(any)
    }
}

fn is_same(one: &Grant, other: &Grant) -> bool {
    one.provider == other.provider && one.account.key == other.account.key
}
