//! `obo app`.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::{Exit, Global, actor, duration, output};
use crate::app::{App, Way};
use crate::audit::{Event, Kind, Phase};
use crate::failure::Failure;
use crate::id::{Person, Source, TenantId};
use crate::identity::application::Listed;

#[derive(Subcommand)]
pub(super) enum Applications {
    /// Add an application. Its key is shown once, alone on stdout; only its hash is kept
    Add {
        /// Its name. Its users' source is app:NAME
        name: String,
        /// The organisation that its users belong to
        #[arg(long, value_name = "TENANT")]
        tenant: String,
        /// Let it read its users' access tokens
        #[arg(long)]
        may_read_tokens: bool,
    },
    /// The applications, those of obo.toml too, and when they were last seen
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give an application a new key, shown once, alone on stdout
    Rotate {
        /// Its name
        name: String,
        /// How long the old key stays good beside the new one; 0s ends it at once
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse_from_zero)]
        keep_old: Duration,
    },
    /// Remove an application. Its keys are void at once
    Remove {
        /// Its name
        name: String,
    },
}

impl Applications {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let app = global.unlock(global.config()?, Way::Command).await?;
        match self {
            Applications::Add { name, tenant, may_read_tokens } => add(&app, &name, &tenant, may_read_tokens).await,
            Applications::List { json } => list(&app, json).await,
            Applications::Rotate { name, keep_old } => rotate(&app, &name, keep_old).await,
            Applications::Remove { name } => remove(&app, &name).await,
        }
    }
}

async fn add(app: &App, name: &str, tenant: &str, may_read_tokens: bool) -> Result<(), Exit> {
    let source = Source::application(name).map_err(Exit::usage)?;
    let tenant: TenantId = tenant.parse().map_err(Exit::usage)?;
    let what = if may_read_tokens { "app.added_with_tokens" } else { "app.added" };
    let adding = app.obo.identity().applications().add(name, tenant.clone(), may_read_tokens);
    let key = recorded(app, &tenant, &format!("{what} {name}"), adding).await?;

    eprintln!("Key of the application {name} for users of {tenant}. It is shown only now.");
    eprintln!("Its backend sends it in the Authorization header, to {}/v1/.", app.config.server.public_base());
    if may_read_tokens {
        eprintln!("It may read its users' access tokens: keep the key as you would keep those.");
    }
    // Any user will do: what proves a browser depends on the application.
    let somebody = Person { tenant, source, user: "somebody".parse().map_err(Exit::failed)? };
    if app.obo.identity().browser_proof(&somebody).is_none() {
        eprintln!(
            "Its users cannot connect accounts yet: set client_id for the one issuer of their tenant, or put the \
             application into obo.toml, with user_verifier_url or confirm_by_code."
        );
    }
    output::line(key.expose())
}

async fn rotate(app: &App, name: &str, keep_old: Duration) -> Result<(), Exit> {
    let tenant = tenant_of(app, name).await?;
    let rotating = app.obo.identity().applications().rotate(name, keep_old);
    let key = recorded(app, &tenant, &format!("app.rotated {name}"), rotating).await?;
    eprintln!("New key of the application {name}. It is shown only now.");
    // Before anything that may fail: the key is kept nowhere.
    output::line(key.expose())?;
    match find(app, name).await?.and_then(|listed| listed.old_key_until) {
        Some(until) => eprintln!("The old one is good until {} UTC.", minute(until)),
        None => eprintln!("The old one is void."),
    }
    Ok(())
}

async fn remove(app: &App, name: &str) -> Result<(), Exit> {
    let tenant = tenant_of(app, name).await?;
    let removing = app.obo.identity().applications().remove(name);
    recorded(app, &tenant, &format!("app.removed {name}"), removing).await?;
    eprintln!("Its users' connections stay; `obo disconnect PROVIDER --user NAME --source app:{name}` ends one.");
    output::line(format!("The application {name} is removed; its keys are void."))
}

async fn list(app: &App, json: bool) -> Result<(), Exit> {
    let list = app.obo.identity().applications().list().await?;
    if json {
        return output::json(&list.iter().map(as_json).collect::<Vec<_>>());
    }
    if list.is_empty() {
        eprintln!("There is no application yet. `obo app add NAME --tenant TENANT` adds one.");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|listed| {
            vec![
                listed.application.name().to_owned(),
                listed.application.tenant().to_string(),
                match (listed.configured, listed.hidden) {
                    (true, _) => "obo.toml".to_owned(),
                    (false, true) => "void: obo.toml has the name".to_owned(),
                    (false, false) => "obo app add".to_owned(),
                },
                if listed.application.may_read_tokens() { "yes" } else { "no" }.to_owned(),
                listed.old_key_until.map_or("-".to_owned(), minute),
                listed.last_used_at.map_or("never".to_owned(), minute),
            ]
        })
        .collect();
    output::table(&["NAME", "TENANT", "KEY FROM", "READS TOKENS", "OLD KEY UNTIL (UTC)", "LAST USED (UTC)"], &rows)
}

fn as_json(listed: &Listed) -> serde_json::Value {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    json!({
        "name": listed.application.name(),
        "tenant": listed.application.tenant(),
        "configured": listed.configured,
        "hidden": listed.hidden,
        "may_read_tokens": listed.application.may_read_tokens(),
        "created_at": time(listed.created_at),
        "old_key_until": time(listed.old_key_until),
        "last_used_at": time(listed.last_used_at),
    })
}

fn minute(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

/// The application of that name, the one of `obo app add` where there are two.
async fn find(app: &App, name: &str) -> Result<Option<Listed>, Failure> {
    let list = app.obo.identity().applications().list().await?;
    Ok(list.into_iter().rfind(|listed| listed.application.name() == name))
}

/// For the record of an act on it. A name that nothing has is not recorded: it may be any text.
async fn tenant_of(app: &App, name: &str) -> Result<TenantId, Failure> {
    app.obo.identity().applications().tenant_of(name).await
}

/// Acts between two records: who ended whose key is known even where the act was cut off.
async fn recorded<T>(
    app: &App,
    tenant: &TenantId,
    what: &str,
    act: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let actor = actor();
    let event = |phase, failure| Event {
        kind: Kind::Admin,
        phase,
        person: None,
        tenant: Some(tenant),
        actor: &actor,
        provider: None,
        account: None,
        what,
        failure,
        duration: None,
    };
    app.audit.event(event(Phase::Intent, None)).await?;
    let result = act.await;
    // Logged there.
    let _ = app.audit.event(event(Phase::Outcome, result.as_ref().err().map(|failure| failure.code))).await;
    result
}
