//! `obo token`.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::{Exit, Global, Who, actor, duration, output};
use crate::app::{App, Way};
use crate::audit::{Event, Kind, Phase};
use crate::failure::Failure;
use crate::id::Person;
use crate::identity::{ClientSession, IssuedToken};

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
    /// The tokens that were issued, and the clients that people signed in
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a token void at once, or sign a client out. With a token go its person's browsers and clients
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
                    if tokens.revoke(&id).await.is_err() {
                        let Exit { code, text } = failure.into();
                        let text = format!(
                            "{text}; token {id} is listed and could not be taken back, but it was shown to nobody: \
                             `obo token revoke {id}` when there is room again"
                        );
                        return Err(Exit { code, text });
                    }
                    return Err(failure.into());
                }
                eprintln!("Token {id} for {person}. It is shown only now:");
                output::line(token.expose())
            }
            Token::List { json } => {
                let tokens = tokens.list(None).await?;
                let clients = app.obo.identity().clients().list(None).await?;
                if json {
                    let all = tokens.iter().map(as_json).chain(clients.iter().map(client_as_json));
                    return output::json(&all.collect::<Vec<_>>());
                }
                if tokens.is_empty() && clients.is_empty() {
                    eprintln!("No token was issued yet. `obo token issue --user NAME` issues one.");
                    return Ok(());
                }
                let now = app.clock.now();
                let row = |id: &str, person: &Person, groups: &[String], expires_at: Timestamp, client: &str| {
                    let expires = expires_at.strftime("%Y-%m-%d %H:%M").to_string();
                    vec![
                        id.to_owned(),
                        person.user.to_string(),
                        person.source.to_string(),
                        person.tenant.to_string(),
                        groups.join(","),
                        if expires_at <= now { format!("expired {expires}") } else { expires },
                        client.to_owned(),
                    ]
                };
                let tokens = tokens.iter().map(|t| row(&t.id, &t.person, &t.groups, t.expires_at, ""));
                let clients = clients.iter().map(|c| row(&c.id, &c.person, &c.groups, c.expires_at, &c.client));
                let rows: Vec<Vec<String>> = tokens.chain(clients).collect();
                output::table(&["ID", "USER", "SOURCE", "TENANT", "GROUPS", "EXPIRES (UTC)", "CLIENT"], &rows)
            }
            Token::Revoke { id } => {
                let Some(found) = tokens.list(None).await?.into_iter().find(|token| token.id == id) else {
                    let client = app.obo.identity().clients().revoke(None, &id).await?;
                    record(&app, &client.person, &format!("client.signed_out {}", client.id)).await?;
                    // A browser that is signed in could allow it again at once.
                    sign_out_everything(&app, &client.person, false).await?;
                    return output::line(format!("{} acts no longer for {}.", client.client, client.person));
                };
                // What was allowed with it goes with it: before, so that a failure here can be made good by the same
                // command, and after, for what was begun in between.
                sign_out_everything(&app, &found.person, true).await?;
                let revoked = tokens.revoke(&id).await?;
                sign_out_everything(&app, &revoked.person, true).await?;
                record(&app, &revoked.person, &format!("token.revoked {}", revoked.id)).await?;
                output::line(format!("Token {} of {} is void.", revoked.id, revoked.person))
            }
        }
    }
}

/// Signs a person's browsers out, with what they were about to allow; and, where `clients`, every client.
async fn sign_out_everything(app: &App, person: &Person, clients: bool) -> Result<(), Failure> {
    app.obo.consent().sign_out_everywhere(person).await?;
    let sessions = app.obo.identity().clients();
    if !clients {
        return sessions.forget_codes(person).await;
    }
    for session in sessions.revoke_all(person).await? {
        record(app, person, &format!("client.signed_out {}", session.id)).await?;
    }
    Ok(())
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
        "source": token.person.source,
        "groups": token.groups,
        "created_at": token.created_at.to_string(),
        "expires_at": token.expires_at.to_string(),
    })
}

fn client_as_json(session: &ClientSession) -> serde_json::Value {
    json!({
        "id": session.id,
        "user": session.person.user,
        "tenant": session.person.tenant,
        "source": session.person.source,
        "groups": session.groups,
        "client": session.client,
        "client_id": session.client_id,
        "created_at": session.created_at.to_string(),
        "used_at": session.used_at.to_string(),
        "expires_at": session.expires_at.to_string(),
    })
}
