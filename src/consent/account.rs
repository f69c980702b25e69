//! A person's own page: what they have connected, and what was done with it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Consent, Visitor};
use crate::audit::{Event, Kind, Phase, Record};
use crate::catalog::OWN_TOOLKIT;
use crate::failure::{Code, Failure};
use crate::id::{Person, Source};
use crate::identity::BrowserProof;
use crate::vault::Grant;

/// How many calls the page shows.
const RECENT_CALLS: usize = 20;
/// Among how many of the person's newest calls the last use of a connection is looked for.
const LAST_USE_CALLS: usize = 500;

/// What a person sees of their own.
pub struct Account {
    /// Their connections, by provider and account.
    pub connections: Vec<Connection>,
    /// Their newest calls.
    pub calls: Vec<Record>,
}

/// One connection, in words.
pub struct Connection {
    /// The grant.
    pub grant: Grant,
    /// The provider's name.
    pub provider_name: String,
    /// Whether it can be used as it is.
    pub usable: bool,
    /// Whether the person chose it for calls that name no account of the provider.
    pub default: bool,
    /// Whether it is one of several accounts of the provider, so that there is something to choose.
    pub one_of_several: bool,
    /// What tools can do with it.
    pub abilities: Vec<String>,
    /// When a call last succeeded with it, as far back as the page looks.
    pub last_used: Option<Timestamp>,
}

impl Consent {
    /// What a person has connected, and their recent calls.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn account(&self, person: &Person) -> Result<Account, Failure> {
        let unreadable = |cause: String| {
            Failure::new(Code::VaultUnavailable, "obo cannot read its records just now; try again later").because(cause)
        };
        let mut calls = self.inner.audit.recent_calls(person, LAST_USE_CALLS).await.map_err(unreadable)?;
        let mut last_used: BTreeMap<(String, String), Timestamp> = BTreeMap::new();
        // Asking about a connection is not using it.
        let own = format!("{OWN_TOOLKIT}.");
        let uses = |call: &&Record| !call.tool.as_ref().is_some_and(|tool| tool.starts_with(&own));
        for call in calls.iter().filter(|call| call.outcome.as_deref() == Some("ok")).filter(uses) {
            if let (Some(provider), Some(account)) = (&call.provider, &call.account) {
                // Newest first: the first one seen stays.
                last_used.entry((provider.clone(), account.clone())).or_insert(call.time);
            }
        }
        let grants = self.inner.vault.grants(person).await?;
        let connections = grants.iter().map(|grant| self.in_words(grant, &grants, &last_used)).collect();
        calls.truncate(RECENT_CALLS);
        Ok(Account { connections, calls })
    }

    fn in_words(&self, grant: &Grant, all: &[Grant], last_used: &BTreeMap<(String, String), Timestamp>) -> Connection {
        let siblings = || all.iter().filter(|other| other.provider == grant.provider);
        let default = Grant::default_of(siblings()).is_some_and(|default| default.account.key == grant.account.key);
        let catalog = self.inner.catalog.now();
        let provider = catalog.provider(grant.provider.as_str());
        let base = provider.map(|provider| provider.oauth.base_scopes.clone()).unwrap_or_default();
        let words = |scope: &String| provider.and_then(|p| p.scopes.get(scope)).unwrap_or(scope).clone();
        let used = last_used.get(&(grant.provider.to_string(), grant.account.label.clone())).copied();
        Connection {
            provider_name: provider.map_or_else(|| grant.provider.to_string(), |provider| provider.name.clone()),
            usable: provider.is_some_and(|provider| super::usable(grant, provider)),
            abilities: grant.scopes.iter().filter(|scope| !base.contains(scope)).map(words).collect(),
            last_used: used,
            default,
            one_of_several: siblings().count() > 1,
            grant: grant.clone(),
        }
    }

    /// Makes a connection the one that calls use which name no account of its provider. `None` when there is none.
    ///
    /// # Errors
    /// `vault_unavailable`, `audit_unavailable`: nothing was changed.
    pub async fn prefer(
        &self,
        person: &Person,
        provider: &str,
        account_key: &str,
        actor: &str,
    ) -> Result<Option<Grant>, Failure> {
        let mut grants = self.inner.vault.grants(person).await?;
        grants.retain(|grant| grant.provider.as_str() == provider);
        let newest = grants.iter().filter_map(|grant| grant.preferred_at).max();
        let Some(grant) = grants.into_iter().find(|grant| grant.account.key == account_key) else { return Ok(None) };
        let (this, actor) = (self.clone(), actor.to_owned());
        // Changed and recorded, or not begun: whoever asked may go away in the middle.
        let task = self.inner.exchanges.spawn(async move { this.choose(&grant, newest, &actor).await });
        task.await.map_err(|_| Failure::internal("the choice of a default account ended early"))?
    }

    async fn choose(&self, grant: &Grant, newest: Option<Timestamp>, actor: &str) -> Result<Option<Grant>, Failure> {
        let event = |phase, failure| Event {
            kind: Kind::Consent,
            phase,
            person: Some(&grant.person),
            tenant: None,
            actor,
            provider: Some(&grant.provider),
            account: Some(&grant.account.label),
            what: "consent.default_chosen",
            failure,
            duration: None,
        };
        // Later calls act as another account: that is on record before it is so.
        self.inner.audit.event(event(Phase::Intent, None)).await?;
        let chosen = self.inner.vault.prefer(grant, newest).await;
        let failure = match &chosen {
            Ok(Some(_)) => None,
            Ok(None) => Some(Code::NotFound),
            Err(failure) => Some(failure.code),
        };
        // Logged there.
        let _ = self.inner.audit.event(event(Phase::Outcome, failure)).await;
        chosen
    }

    /// The same from a page. On a site, only for the person who is signed in there.
    ///
    /// # Errors
    /// As [`Consent::prefer`].
    pub async fn prefer_at(
        &self,
        visitor: &Visitor,
        person: &Person,
        provider: &str,
        account_key: &str,
    ) -> Result<Option<Grant>, Failure> {
        if !self.is_signed_in_as(person, visitor).await? {
            return Ok(None);
        }
        self.prefer(person, provider, account_key, "browser").await
    }

    /// The users of applications whom a person is too, by the same proof: those of the person's tenant, whose browsers sign
    /// in where this one did.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn also_as(&self, person: &Person) -> Result<Vec<Person>, Failure> {
        let identity = &self.inner.identity;
        let mut also: Vec<Person> = Vec::new();
        for listed in identity.applications().list().await? {
            let application = &listed.application;
            let user = Person { source: application.source().clone(), ..person.clone() };
            let proof = BrowserProof::TenantIssuer(person.source.clone());
            if *application.tenant() == person.tenant
                && identity.browser_proof(&user) == Some(proof)
                && !also.contains(&user)
            {
                also.push(user);
            }
        }
        Ok(also)
    }

    /// The sources whose people sign in at an identity provider.
    pub fn issuers(&self) -> Vec<Source> {
        let identity = &self.inner.identity;
        let names = identity.issuers().map(|issuer| issuer.name.clone());
        names.filter(|name| identity.signs_in(name)).collect()
    }
}
