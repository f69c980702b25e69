//! Which of a person's grants a call can run on.

use std::collections::BTreeSet;

use super::flow::Need;
use super::{Ask, Consent, missing_scopes, usable};
use crate::catalog::{Api, Arguments, Provider, Tool};
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::policy::ApiPermit;
use crate::vault::Grant;

/// What a call wants of its person's connections.
pub(super) struct Want<'a> {
    /// Whose.
    pub(super) person: &'a Person,
    /// The tool that was called.
    pub(super) tool: &'a Tool,
    /// With what.
    pub(super) arguments: &'a Arguments,
    /// What the person is told that it is for.
    pub(super) title: Option<&'a str>,
    /// At which provider.
    pub(super) provider: &'a Provider,
    /// The tools that the connection must be enough for.
    pub(super) tools: Vec<&'a Api>,
    /// Whether it is about one more account, so that no connection that there is will do.
    pub(super) another: bool,
}

impl<'a> Want<'a> {
    /// What the call of a provider's tool wants.
    pub(super) fn of_call(permit: &'a ApiPermit) -> Self {
        Self {
            person: permit.person(),
            tool: permit.tool(),
            arguments: permit.arguments(),
            title: Some(&permit.tool().title),
            provider: &permit.work().provider,
            tools: vec![permit.work()],
            another: false,
        }
    }

    /// The scopes that `held` lacks.
    pub(super) fn missing(&self, held: &BTreeSet<String>) -> BTreeSet<String> {
        self.tools.iter().flat_map(|tool| missing_scopes(tool, held)).collect()
    }

    /// What to ask for.
    pub(super) fn need(&self, scopes: BTreeSet<String>, held: BTreeSet<String>, account: Option<&Grant>) -> Need {
        Need {
            person: self.person.clone(),
            provider: self.provider.id.clone(),
            scopes,
            held,
            account: account.map(|grant| grant.account.label.clone()),
        }
    }
}

/// Where a person stands with a provider, for one call.
pub(super) enum Standing {
    /// This grant will do.
    Ready(Box<Grant>),
    /// This is what must be asked for.
    Missing(Need),
}

impl Consent {
    /// Picks the grant, or says what is missing. Never guesses between accounts.
    pub(super) async fn standing(&self, want: &Want<'_>, ask: &Ask<'_>) -> Result<Standing, Failure> {
        let provider = want.provider;
        let mut grants = self.inner.vault.grants(want.person).await?;
        grants.retain(|grant| grant.provider == provider.id);
        if let Some(wanted) = ask.account {
            let known: Vec<String> = grants.iter().map(|grant| grant.account.label.clone()).collect();
            grants.retain(|g| g.account.key == wanted || g.account.label.eq_ignore_ascii_case(wanted));
            if grants.is_empty() && !known.is_empty() {
                return Err(no_such_account(&provider.name, &known));
            }
        }

        // What the person chose counts in whatever state it is: another account in its place would be a guess.
        if ask.account.is_none()
            && let Some(default) = Grant::default_of(&grants).cloned()
        {
            grants = vec![default];
        }

        let (usable, dead): (Vec<Grant>, Vec<Grant>) = grants.into_iter().partition(|grant| usable(grant, provider));
        let (ready, lacking): (Vec<Grant>, Vec<Grant>) =
            usable.into_iter().partition(|grant| want.missing(&grant.scopes).is_empty());
        let labels = |grants: &[Grant]| grants.iter().map(|g| g.account.label.clone()).collect::<Vec<_>>();

        // What the grants say and the provider denies: ask for all that the tool needs.
        if ask.not_enough
            && let [grant] = &ready[..]
        {
            let scopes = want.missing(&BTreeSet::new());
            return Ok(Standing::Missing(want.need(scopes, grant.scopes.clone(), Some(grant))));
        }
        match (&ready[..], &lacking[..], &dead[..]) {
            ([grant], _, _) => Ok(Standing::Ready(Box::new(grant.clone()))),
            ([_, _, ..], _, _) => Err(which_account(&provider.name, &labels(&ready))),
            ([], [grant], _) => {
                let scopes = want.missing(&grant.scopes);
                Ok(Standing::Missing(want.need(scopes, grant.scopes.clone(), Some(grant))))
            }
            ([], [_, _, ..], _) => Err(which_account(&provider.name, &labels(&lacking))),
            ([], [], dead) => {
                let again = if let [grant] = dead { Some(grant) } else { None };
                let mut scopes = want.missing(&BTreeSet::new());
                // Whoever connects again gets back what they had.
                scopes.extend(again.into_iter().flat_map(|grant| grant.scopes.iter().cloned()));
                Ok(Standing::Missing(want.need(scopes, BTreeSet::new(), again)))
            }
        }
    }
}

pub(super) fn no_such_account(provider: &str, labels: &[String]) -> Failure {
    Failure::new(
        Code::AccountRequired,
        format!(
            "the person has connected no {provider} account of that name; leave `account` out, or set it to one of: {}",
            labels.join(", ")
        ),
    )
}

pub(super) fn which_account(provider: &str, labels: &[String]) -> Failure {
    Failure::new(
        Code::AccountRequired,
        format!(
            "several {provider} accounts are in question; ask the person which one, then call again with `account` set to one of: {}",
            labels.join(", ")
        ),
    )
}
