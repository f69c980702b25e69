//! `obo call`.

use std::io::Read as _;
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};

use super::tools::not_offered;
use super::{Exit, Global, Who, actor, output};
use crate::app::Way;
use crate::call::{Outcome, Request};
use crate::catalog::{Catalog, Tool};
use crate::failure::Code;
use crate::identity::Credential;
use crate::transport::loopback::NOBODY_SERVES;

mod dry_run;

/// Largest input read, in bytes. Attachments travel in it.
const MAX_INPUT_BYTES: u64 = 40 << 20; // 40 MiB

#[derive(Args)]
pub(super) struct Call {
    /// The tool: Google.SendEmail
    tool: String,
    /// The arguments: JSON, @FILE, or - for stdin
    #[arg(long, value_name = "JSON|@FILE|-", default_value = "{}")]
    input: String,
    /// Which account, where there are several
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    /// Show the request that would be made, and make none
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, failures too
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
}

impl Call {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let person = self.who.person()?;
        let mut arguments = read_input(&self.input)?;
        if let Some(account) = &self.account {
            arguments.insert("account".to_owned(), Value::String(account.clone()));
        }
        let app = global.open(config, Way::Command)?;
        let credential = Credential::OsUser { tenant: person.tenant.clone(), user: person.user.clone() };
        let subject = app.obo.authenticate(&credential).await.map_err(Exit::failed)?;

        if self.dry_run {
            let tool = app.obo.tool(&subject, &self.tool).or_else(|| waiting(&app.catalog, &self.tool));
            let tool = tool.ok_or_else(|| not_offered(&app.catalog, &self.tool))?;
            return dry_run::show(&tool, arguments, self.json);
        }

        let connect = connect_command(&app.catalog, &self.tool, &arguments);
        let request = Request { tool: self.tool.clone(), arguments, actor: actor(), resume: None };
        let outcome = app.obo.call(&subject, request).await;
        app.obo.drain(crate::transport::SHUTDOWN_GRACE).await;
        match outcome {
            Outcome::Value(Value::String(text)) if !self.json => output::line(text),
            Outcome::Value(value) => output::json(&value),
            Outcome::UnknownTool => Err(not_offered(&app.catalog, &self.tool)),
            Outcome::BadRequestState => Err(Exit::failed("the request state is not valid")),
            Outcome::Authorization(link) => {
                if self.json {
                    output::json(&json!({
                        "status": "authorization_required",
                        "provider": link.provider,
                        "authorization_url": link.url,
                        "scopes": link.scopes,
                        "expires_in": link.expires_in.as_secs(),
                    }))?;
                } else {
                    output::line(&link.url)?;
                }
                eprintln!("Open this link to connect {}, then call again.", link.provider_name);
                Err(Exit::quiet(3))
            }
            Outcome::Failed(failure) if failure.note == Some(NOBODY_SERVES) => {
                let (provider, command) = connect;
                let command = format!("{command}{}", self.for_whom());
                if self.json {
                    output::json(
                        &json!({ "status": "authorization_required", "provider": provider, "command": command }),
                    )?;
                } else {
                    output::line(&command)?;
                }
                eprintln!("Run this command to connect the account, then call again.");
                Err(Exit::quiet(3))
            }
            Outcome::Failed(failure) => {
                if self.json {
                    output::json(&json!({ "error": {
                        "code": failure.code,
                        "message": failure.message,
                        "can_retry": failure.can_retry,
                        "retry_after_ms": failure.retry_after.map(|after| after.as_millis() as u64),
                        "status": failure.status,
                    }}))?;
                }
                if failure.code == Code::VaultUnavailable {
                    // Where it is the key, that is a matter of obo.toml.
                    app.keys.open().await?;
                }
                Err(failure.into())
            }
        }
    }

    fn for_whom(&self) -> String {
        let mut text = String::new();
        if let Some(user) = &self.who.user {
            text.push_str(&format!(" --user {user}"));
        }
        if self.who.tenant != "default" {
            text.push_str(&format!(" --tenant {}", self.who.tenant));
        }
        text
    }
}

/// A tool that is not offered because its provider has no client yet. What it would send can be shown all the same: whoever
/// writes a manifest wants to see it before anything is registered.
fn waiting(catalog: &Catalog, name: &str) -> Option<Arc<Tool>> {
    let named = |tool: &&Arc<Tool>| tool.name.as_str() == name || tool.name.underscored() == name;
    let without_client = |tool: &&Arc<Tool>| tool.api().is_some_and(|api| api.provider.client.is_none());
    catalog.known_tools().find(|tool| named(tool) && without_client(tool)).cloned()
}

/// The provider that a call may need, and the command that connects it.
fn connect_command(catalog: &Catalog, tool: &str, arguments: &Map<String, Value>) -> (String, String) {
    let argument = |name: &str| arguments.get(name).and_then(Value::as_str);
    match catalog.find(tool).map(|tool| tool.api()) {
        Some(Some(api)) => (api.provider.id.to_string(), format!("obo connect {} --tool {tool}", api.provider.id)),
        // One of obo's own, which names what it connects in its arguments.
        _ => {
            let provider = argument("provider").and_then(|id| catalog.provider(id));
            let provider = provider.map_or("PROVIDER", |provider| provider.id.as_str());
            let tool = argument("tool").and_then(|name| catalog.find(name));
            let tool = tool.map(|tool| format!(" --tool {}", tool.name)).unwrap_or_default();
            (provider.to_owned(), format!("obo connect {provider}{tool}"))
        }
    }
}

fn read_input(input: &str) -> Result<Map<String, Value>, Exit> {
    let text = match input {
        "-" => read(std::io::stdin().lock(), "stdin")?,
        path if path.starts_with('@') => {
            let path = &path[1..];
            let file =
                std::fs::File::open(path).map_err(|e| Exit::usage(format!("--input: {path} cannot be read: {e}")))?;
            read(file, path)?
        }
        text => text.to_owned(),
    };
    serde_json::from_str(&text).map_err(|e| Exit::usage(format!("--input is not a JSON object: {e}")))
}

fn read(from: impl std::io::Read, name: &str) -> Result<String, Exit> {
    let mut text = String::new();
    from.take(MAX_INPUT_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|e| Exit::usage(format!("--input: {name}: {e}")))?;
    if text.len() as u64 > MAX_INPUT_BYTES {
        return Err(Exit::usage(format!("--input: {name} is larger than {} MiB", MAX_INPUT_BYTES >> 20)));
    }
    Ok(text)
}
