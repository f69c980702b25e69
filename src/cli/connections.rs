//! `obo connections` and `obo disconnect`.

use clap::Args;
use serde_json::json;

use super::{AnyWho, Exit, Global, actor, output};
use crate::app::Way;
use crate::id::Person;
use crate::oauth::Revocation;
use crate::vault::{Grant, GrantStatus};

#[derive(Args)]
pub(super) struct Connections {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Use this account where a call names none of the provider
    #[arg(long, value_name = "PROVIDER=ACCOUNT")]
    default: Option<String>,
    #[command(flatten)]
    who: AnyWho,
}

impl Connections {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let person = self.who.person()?;
        let app = global.unlock(config, Way::Command).await?;
        let consent = app.obo.consent();
        if let Some(default) = &self.default {
            let (provider, account) =
                default.split_once('=').ok_or_else(|| Exit::usage("--default: write PROVIDER=ACCOUNT"))?;
            let grant = pick(consent.connections(&person).await?, &person, provider, Some(account), "--default")?;
            let chosen = consent.prefer(&person, provider, &grant.account.key, &actor()).await?;
            chosen.ok_or_else(|| Exit::failed("the connection was gone already"))?;
            if !self.json {
                return output::line(format!(
                    "{} is used where a call names no {provider} account.",
                    grant.account.label
                ));
            }
        }
        let grants = consent.connections(&person).await?;
        let is_default = |grant: &Grant| {
            let siblings = grants.iter().filter(|other| other.provider == grant.provider);
            Grant::default_of(siblings).is_some_and(|default| default.account.key == grant.account.key)
        };
        if self.json {
            let rows: Vec<_> = grants
                .iter()
                .map(|grant| {
                    json!({
                        "provider": grant.provider,
                        "account": grant.account.label,
                        "account_key": grant.account.key,
                        "status": grant.status,
                        "default": is_default(grant),
                        "scopes": grant.scopes,
                        "connected_at": grant.connected_at.to_string(),
                    })
                })
                .collect();
            return output::json(&rows);
        }
        if grants.is_empty() {
            eprintln!("{person} has connected no account. `obo connect PROVIDER` connects one.");
            return Ok(());
        }
        let rows: Vec<Vec<String>> = grants
            .iter()
            .map(|grant| {
                let status = match grant.status {
                    GrantStatus::Active => "active",
                    GrantStatus::NeedsConsent => "connect again",
                };
                vec![
                    grant.provider.to_string(),
                    grant.account.label.clone(),
                    if is_default(grant) { format!("{status}, default") } else { status.to_owned() },
                    grant.connected_at.strftime("%Y-%m-%d %H:%M").to_string(),
                    grant.scopes.len().to_string(),
                ]
            })
            .collect();
        output::table(&["PROVIDER", "ACCOUNT", "STATUS", "CONNECTED (UTC)", "SCOPES"], &rows)
    }
}

#[derive(Args)]
pub(super) struct Disconnect {
    /// The provider
    provider: String,
    /// Which account, where there are several
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    #[command(flatten)]
    who: AnyWho,
}

impl Disconnect {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let person = self.who.person()?;
        let app = global.unlock(config, Way::Command).await?;
        let consent = app.obo.consent();
        let grants = consent.connections(&person).await?;
        let grant = pick(grants, &person, &self.provider, self.account.as_deref(), "--account")?;
        match consent.disconnect(&person, &self.provider, &grant.account.key, &actor()).await? {
            Some(Revocation::Revoked) => {
                output::line(format!("{} is disconnected, and the provider has confirmed it.", grant.account.label))
            }
            Some(Revocation::NotSupported | Revocation::Failed) => output::line(format!(
                "{} is forgotten here, but the provider has not confirmed it: remove obo in its account settings too.",
                grant.account.label
            )),
            None => Err(Exit::failed("the connection was gone already")),
        }
    }
}

/// The one connection that is meant.
fn pick(
    mut grants: Vec<Grant>,
    person: &Person,
    provider: &str,
    account: Option<&str>,
    option: &str,
) -> Result<Grant, Exit> {
    grants.retain(|grant| grant.provider.as_str() == provider);
    let labels: Vec<String> = grants.iter().map(|grant| grant.account.label.clone()).collect();
    if let Some(account) = account {
        grants.retain(|g| g.account.key == account || g.account.label.eq_ignore_ascii_case(account));
    }
    match (grants.pop(), grants.is_empty()) {
        (Some(grant), true) => Ok(grant),
        _ if labels.is_empty() => {
            Err(Exit::failed(format!("{person} has no connection to {provider:?}; see `obo connections`")))
        }
        _ if account.is_some() => {
            Err(Exit::usage(format!("there is no such account; {provider} is connected as: {}", labels.join(", "))))
        }
        _ => Err(Exit::usage(format!("say which with {option}: {}", labels.join(", ")))),
    }
}
