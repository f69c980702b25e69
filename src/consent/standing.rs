//! Which of a person's grants a call can run on.

use std::collections::BTreeSet;

use super::flow::Need;
use super::{Ask, Consent, missing_scopes, usable};
use crate::failure::{Code, Failure};
use crate::policy::{Permit, Recorded};
use crate::vault::Grant;

/// Where a person stands with a provider, for one call.
pub(super) enum Standing {
    /// This grant will do.
    Ready(Box<Grant>),
    /// This is what must be asked for.
    Missing(Need),
}

impl Consent {
    /// Picks the grant, or says what is missing. Never guesses between accounts.
    pub(super) async fn standing(&self, permit: &Recorded<Permit>, ask: &Ask<'_>) -> Result<Standing, Failure> {
        let (tool, provider) = (permit.tool(), &permit.tool().provider);
        let mut grants = self.inner.vault.grants(permit.person()).await?;
        grants.retain(|grant| grant.provider == provider.id);
        if let Some(wanted) = ask.account {
            let known: Vec<String> = grants.iter().map(|grant| grant.account.label.clone()).collect();
            grants.retain(|g| g.account.key == wanted || g.account.label.eq_ignore_ascii_case(wanted));
            if grants.is_empty() && !known.is_empty() {
                return Err(no_such_account(&provider.name, &known));
            }
        }

        let (usable, dead): (Vec<Grant>, Vec<Grant>) = grants.into_iter().partition(|grant| usable(grant, provider));
        let (ready, lacking): (Vec<Grant>, Vec<Grant>) =
            usable.into_iter().partition(|grant| missing_scopes(tool, &grant.scopes).is_empty());
        let labels = |grants: &[Grant]| grants.iter().map(|g| g.account.label.clone()).collect::<Vec<_>>();

        // What the grants say and the provider denies: ask for all that the tool needs.
        if ask.not_enough
            && let [grant] = &ready[..]
        {
            let scopes = missing_scopes(tool, &BTreeSet::new());
            return Ok(Standing::Missing(self.need(permit, scopes, grant.scopes.clone(), Some(grant))));
        }
        match (&ready[..], &lacking[..], &dead[..]) {
            ([grant], _, _) => Ok(Standing::Ready(Box::new(grant.clone()))),
            ([_, _, ..], _, _) => Err(which_account(&provider.name, &labels(&ready))),
            ([], [grant], _) => {
                let scopes = missing_scopes(tool, &grant.scopes);
                Ok(Standing::Missing(self.need(permit, scopes, grant.scopes.clone(), Some(grant))))
            }
            ([], [_, _, ..], _) => Err(which_account(&provider.name, &labels(&lacking))),
            ([], [], dead) => {
                let again = if let [grant] = dead { Some(grant) } else { None };
                let mut scopes = missing_scopes(tool, &BTreeSet::new());
                // Whoever connects again gets back what they had.
                scopes.extend(again.into_iter().flat_map(|grant| grant.scopes.iter().cloned()));
                Ok(Standing::Missing(self.need(permit, scopes, BTreeSet::new(), again)))
            }
        }
    }

    fn need(&self, permit: &Permit, scopes: BTreeSet<String>, held: BTreeSet<String>, account: Option<&Grant>) -> Need {
        Need {
            person: permit.person().clone(),
            provider: permit.tool().provider.id.clone(),
            scopes,
            held,
            account: account.map(|grant| grant.account.label.clone()),
        }
    }
}

fn no_such_account(provider: &str, labels: &[String]) -> Failure {
    Failure::new(
        Code::AccountRequired,
        format!(
            "the person has connected no {provider} account of that name; leave `account` out, or set it to one of: {}",
            labels.join(", ")
        ),
    )
}

fn which_account(provider: &str, labels: &[String]) -> Failure {
    Failure::new(
        Code::AccountRequired,
        format!(
            "several {provider} accounts are in question; ask the person which one, then call again with `account` set to one of: {}",
            labels.join(", ")
        ),
    )
}
