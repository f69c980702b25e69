//! `obo token`.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::{Exit, Global, Who, actor, duration, output};
use crate::app::{App, Way};
use crate::audit::{Event, Kind, Phase};
use crate::failure::Failure;
use crate::id::Person;
use crate::identity::IssuedToken;

#[derive(Subcommand)]
pub(super) enum Token {
    /// Issue a token. It is shown once, alone on stdout; only its hash is kept
    Issue {
        /// Whose token it is
        #[arg(long, value_name = "NAME")]
        user: String,
        /// The tenant
        #[arg(long, value_name = "TENANT", default_value = "default")]
        tenant: String,
        /// A group the person is in (may be repeated)
        #[arg(long, value_name = "GROUP")]
        group: Vec<String>,
        /// How long it is good for
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration::parse)]
        ttl: Duration,
    },
    /// The tokens that were issued
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a token void at once
    Revoke {
        /// The id, as `obo token list` shows it
        id: String,
    },
}

impl Token {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let app = global.unlock(global.config()?, Way::Command).await?;
        let tokens = app.obo.identity().tokens();
        match self {
            Token::Issue { user, tenant, group, ttl } => {
                let person = Who { user: Some(user), tenant }.person()?;
                let (id, token) = tokens.issue(&person, group, ttl).await?;
                let what = format!("token.issued {id}");
                if let Err(failure) = record(&app, &person, &what).await {
                    // Nobody has seen it yet: a token that is not on record is no token.
                    tokens.revoke(&id).await?;
                    return Err(failure.into());
                }
                eprintln!("Token {id} for {person}. It is shown only now:");
                output::line(token.expose())
            }
            Token::List { json } => {
                let tokens = tokens.list(None).await?;
                if json {
                    return output::json(&tokens.iter().map(as_json).collect::<Vec<_>>());
                }
                if tokens.is_empty() {
                    eprintln!("No token was issued yet. `obo token issue --user NAME` issues one.");
                    return Ok(());
                }
                let now = app.clock.now();
                let rows: Vec<Vec<String>> = tokens
                    .iter()
                    .map(|token| {
                        let expires = token.expires_at.strftime("%Y-%m-%d %H:%M").to_string();
                        vec![
                            token.id.clone(),
                            token.person.user.to_string(),
                            token.person.tenant.to_string(),
                            token.groups.join(","),
                            if token.expires_at <= now { format!("expired {expires}") } else { expires },
                        ]
                    })
                    .collect();
                output::table(&["ID", "USER", "TENANT", "GROUPS", "EXPIRES (UTC)"], &rows)
            }
            Token::Revoke { id } => {
                let revoked = tokens.revoke(&id).await?;
                app.obo.consent().sign_out_everywhere(&revoked.person).await?;
                record(&app, &revoked.person, &format!("token.revoked {}", revoked.id)).await?;
                output::line(format!("Token {} of {} is void.", revoked.id, revoked.person))
            }
        }
    }
}

async fn record(app: &App, person: &Person, what: &str) -> Result<(), Failure> {
    let event = Event {
        kind: Kind::Admin,
        phase: Phase::Outcome,
        person: Some(person),
        tenant: None,
        actor: &actor(),
        provider: None,
        account: None,
        what,
        failure: None,
        duration: None,
    };
    app.audit.event(event).await
}

fn as_json(token: &IssuedToken) -> serde_json::Value {
    json!({
        "id": token.id,
        "user": token.person.user,
        "tenant": token.person.tenant,
        "groups": token.groups,
        "created_at": token.created_at.to_string(),
        "expires_at": token.expires_at.to_string(),
    })
}
