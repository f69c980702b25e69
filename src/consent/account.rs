//! A person's own page: what they have connected, and what was done with it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Consent;
use crate::audit::Record;
use crate::failure::{Code, Failure};
use crate::id::{Person, Source};
use crate::vault::{Grant, GrantStatus};

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
        for call in calls.iter().filter(|call| call.outcome.as_deref() == Some("ok")) {
            if let (Some(provider), Some(account)) = (&call.provider, &call.account) {
                // Newest first: the first one seen stays.
                last_used.entry((provider.clone(), account.clone())).or_insert(call.time);
            }
        }
        let connections = self.inner.vault.grants(person).await?;
        let connections = connections.into_iter().map(|grant| self.in_words(grant, &last_used)).collect();
        calls.truncate(RECENT_CALLS);
        Ok(Account { connections, calls })
    }

    fn in_words(&self, grant: Grant, last_used: &BTreeMap<(String, String), Timestamp>) -> Connection {
        let provider = self.inner.catalog.provider(grant.provider.as_str());
        let base = provider.map(|provider| provider.oauth.base_scopes.clone()).unwrap_or_default();
        let words = |scope: &String| provider.and_then(|p| p.scopes.get(scope)).unwrap_or(scope).clone();
        let used = last_used.get(&(grant.provider.to_string(), grant.account.label.clone())).copied();
        Connection {
            provider_name: provider.map_or_else(|| grant.provider.to_string(), |provider| provider.name.clone()),
            usable: grant.status == GrantStatus::Active
                && provider.is_some_and(|p| grant.fingerprint == p.fingerprint()),
            abilities: grant.scopes.iter().filter(|scope| !base.contains(scope)).map(words).collect(),
            last_used: used,
            grant,
        }
    }

    /// The sources whose people sign in at an identity provider.
    pub fn issuers(&self) -> Vec<Source> {
        let identity = &self.inner.identity;
        let names = identity.issuers().map(|issuer| issuer.name.clone());
        names.filter(|name| identity.signs_in(name)).collect()
    }
}
