//! `obo connections` and `obo disconnect`.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::{Value, json};

use super::{AnyWho, Exit, Global, actor, output};
use crate::app::{App, Way};
use crate::consent::{Ended, Left};
use crate::id::{Person, ProviderId, Source};
use crate::oauth::{Answered, Revocation};
use crate::vault::{Grant, GrantStatus, Receipt};

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
    #[arg(required_unless_present = "everywhere")]
    provider: Option<String>,
    /// Which account, where there are several
    #[arg(long, value_name = "ACCOUNT", conflicts_with = "everywhere")]
    account: Option<String>,
    /// Every account of the provider. Without a provider, for somebody who leaves: every connection, and the tokens,
    /// clients, browsers and links that obo has for them
    #[arg(long)]
    everywhere: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: AnyWho,
}

impl Disconnect {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let person = self.who.person()?;
        let app = global.unlock(config, Way::Command).await?;
        if self.everywhere {
            return self.everywhere(&app, &person).await;
        }
        let consent = app.obo.consent();
        let grants = consent.connections(&person).await?;
        let provider = self.provider.as_deref().unwrap_or_default();
        let grant = pick(grants, &person, provider, self.account.as_deref(), "--account")?;
        let ended = consent.disconnect(&person, provider, &grant.account.key, &actor()).await?;
        let receipt = ended.ok_or_else(|| Exit::failed("the connection was gone already"))?;
        if self.json {
            return output::json(&as_json(&Ended { grant, outcome: Ok(receipt) }));
        }
        output::line(match receipt.outcome {
            Revocation::Revoked => {
                format!("{} is disconnected, and the provider has confirmed it.", grant.account.label)
            }
            Revocation::NotSupported | Revocation::Failed => format!(
                "{} is forgotten here, but the provider has not confirmed it: remove obo in its account settings too.",
                grant.account.label
            ),
        })
    }

    /// Ends everything, or everything at one provider.
    async fn everywhere(&self, app: &App, person: &Person) -> Result<(), Exit> {
        let provider = self.provider.as_deref().map(str::parse).transpose();
        let provider: Option<ProviderId> = provider.map_err(|e| Exit::usage(format!("the provider {e}")))?;
        let left = app.obo.consent().leave(person, provider.as_ref(), &actor()).await?;
        if self.json {
            output::json(&left_as_json(person, &left))?;
        } else {
            tell(person, provider.is_none(), &left)?;
        }
        if provider.is_none() {
            self.tell_of_namesakes(app, person).await?;
        }
        if left.is_complete() {
            return Ok(());
        }
        let again = if left.can_go_on() { "; the same command asks again for what is left" } else { "" };
        Err(Exit::failed(format!("not everything is known to be void at the providers{again}")))
    }

    /// Who has the same id by another source is somebody else to obo, and perhaps not to whoever types this.
    async fn tell_of_namesakes(&self, app: &App, person: &Person) -> Result<(), Exit> {
        let identity = app.obo.identity();
        let applications = identity.applications().list().await?;
        let mut sources = BTreeSet::from([Source::obo()]);
        sources.extend(identity.issuers().map(|issuer| issuer.name.clone()));
        sources.extend(applications.iter().map(|listed| listed.application.source().clone()));
        for source in sources.into_iter().filter(|source| *source != person.source) {
            let other = Person { source, ..person.clone() };
            if !app.obo.consent().connections(&other).await?.is_empty() {
                eprintln!(
                    "{other} has connections too. If that is the same human being, end them with --source {}.",
                    other.source
                );
            }
        }
        Ok(())
    }
}

/// What ended, in words.
fn tell(person: &Person, whole: bool, left: &Left) -> Result<(), Exit> {
    let rows: Vec<Vec<String>> = left
        .connections
        .iter()
        .map(|ended| {
            let outcome = match &ended.outcome {
                Ok(Receipt { outcome: Revocation::Revoked, .. }) => "revoked".to_owned(),
                Ok(Receipt { outcome: Revocation::NotSupported, .. }) => {
                    "removed here; it cannot be revoked there, so remove obo in the account's settings".to_owned()
                }
                Ok(receipt) => format!("kept, unusable: the provider did not confirm it ({receipt})"),
                Err(failure) => format!("not ended: {}", failure.message),
            };
            vec![ended.grant.provider.to_string(), ended.grant.account.label.clone(), outcome]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["PROVIDER", "ACCOUNT", "OUTCOME"], &rows)?;
    }
    if whole {
        output::line(format!(
            "Ended here for {person}: connections {}, tokens {}, clients {}, browsers {}, open links {}.",
            left.connections.iter().filter(|ended| ended.outcome.is_ok()).count(),
            left.tokens.len(),
            left.clients.len(),
            left.browsers,
            left.links,
        ))?;
    } else if rows.is_empty() {
        output::line(format!("{person} has no such connection."))?;
    }
    if left.unopened > 0 {
        eprintln!(
            "Connections of {person} that do not open, and so could not be revoked: {}; see `obo vault status --verify`.",
            left.unopened
        );
    }
    if left.exchanging {
        eprintln!("A consent was coming back just now; what comes of it ends too. The same command makes sure of it.");
    }
    Ok(())
}

fn left_as_json(person: &Person, left: &Left) -> Value {
    json!({
        "user": person.user,
        "tenant": person.tenant,
        "source": person.source,
        "complete": left.is_complete(),
        "connections": left.connections.iter().map(as_json).collect::<Vec<_>>(),
        "unopened_connections": left.unopened,
        "tokens": left.tokens.iter().map(|token| &token.id).collect::<Vec<_>>(),
        "clients": left.clients.iter().map(|client| &client.id).collect::<Vec<_>>(),
        "browsers": left.browsers,
        "open_links": left.links,
        "consent_coming_back": left.exchanging,
    })
}

fn as_json(ended: &Ended) -> Value {
    let mut value = json!({
        "provider": ended.grant.provider,
        "account": ended.grant.account.label,
        "account_key": ended.grant.account.key,
    });
    match &ended.outcome {
        Ok(receipt) => {
            let answer = |(token, answered): &(&str, Answered)| json!({ "token": token, "outcome": answered.outcome, "status": answered.status });
            value["outcome"] = json!(receipt.outcome);
            value["kept"] = json!(receipt.kept);
            value["tokens"] = receipt.tokens.iter().map(answer).collect();
        }
        Err(failure) => {
            value["outcome"] = json!("error");
            value["kept"] = json!(true);
            value["error"] = json!({ "code": failure.code.as_str(), "message": failure.message });
        }
    }
    value
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
