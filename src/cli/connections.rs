//! `obo connections` and `obo disconnect`.

use clap::Args;
use serde_json::json;

use super::{AnyWho, Exit, Global, actor, output};
use crate::app::Way;
use crate::oauth::Revocation;
use crate::vault::GrantStatus;

#[derive(Args)]
pub(super) struct Connections {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: AnyWho,
}

impl Connections {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let person = self.who.person()?;
        let app = global.unlock(config, Way::Command).await?;
        let grants = app.obo.consent().connections(&person).await?;
        if self.json {
            let rows: Vec<_> = grants
                .iter()
                .map(|grant| {
                    json!({
                        "provider": grant.provider,
                        "account": grant.account.label,
                        "account_key": grant.account.key,
                        "status": grant.status,
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
                    status.to_owned(),
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
        let mut grants = app.obo.consent().connections(&person).await?;
        grants.retain(|grant| grant.provider.as_str() == self.provider);
        let labels: Vec<String> = grants.iter().map(|grant| grant.account.label.clone()).collect();
        if let Some(account) = &self.account {
            grants.retain(|g| g.account.key == *account || g.account.label.eq_ignore_ascii_case(account));
        }
        let grant = match &grants[..] {
            [grant] => grant,
            [] if labels.is_empty() => {
                return Err(Exit::failed(format!(
                    "{person} has no connection to {:?}; see `obo connections`",
                    self.provider
                )));
            }
            _ => return Err(Exit::usage(format!("say which with --account: {}", labels.join(", ")))),
        };
        let consent = app.obo.consent();
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
