//! `obo connect`.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{Exit, Global, Who, actor, output};
use crate::app::{App, Way};
use crate::catalog::{Api, Provider, Tool};
use crate::consent::{Consent, Link, Typed, Wish};
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::transport;

/// How long the last page may take to reach the browser.
const LAST_PAGE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(super) struct Connect {
    /// The provider, as `obo providers list` spells it
    provider: String,
    /// Ask for what this tool needs (may be repeated) [default: all offered tools of the provider]
    #[arg(long, value_name = "TOOL")]
    tool: Vec<String>,
    /// Ask for this scope (may be repeated)
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    /// Print the link only
    #[arg(long)]
    no_browser: bool,
    /// For a browser on another machine: the page, which the `obo serve` of this data folder shows, ends with a code to
    /// type here
    #[arg(long)]
    headless: bool,
    #[command(flatten)]
    who: Who,
}

/// The person was asked and did not connect: that is an end, not something to be asked for again (exit code 3).
fn not_connected(failure: Failure) -> Exit {
    if failure.code == Code::AuthorizationRequired { Exit::failed(failure.message) } else { failure.into() }
}

/// Reads codes until one is right, or the link has ended.
async fn typed(consent: &Consent, person: &Person, link: &Link, actor: &str) -> Result<String, Exit> {
    // Not tokio's stdin: a read that nobody ends would keep the process from ending.
    let (sender, mut lines) = tokio::sync::mpsc::channel::<String>(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    loop {
        tokio::select! {
            ended = consent.wait_for(&link.flow) => return ended.map_err(not_connected),
            line = lines.recv() => match line {
                None => return Err(Exit::failed("stdin ended before the code was typed")),
                Some(line) if line.trim().is_empty() => {}
                Some(line) => match consent.confirm_code(person, &line, &Typed::InTerminal(&link.flow), actor).await {
                    Ok(connected) => return Ok(connected.grant.account.label.clone()),
                    // The page can be opened again, and shows another code.
                    Err(failure)
                        if failure.can_retry || matches!(failure.code, Code::InvalidArguments | Code::NotFound) =>
                    {
                        eprintln!("{}.", failure.message);
                    }
                    Err(failure) => return Err(failure.into()),
                },
            },
        }
    }
}

impl Connect {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let person = self.who.person()?;
        // The pages of a headless link are another process's.
        let app = global.open(config, if self.headless { Way::Command } else { Way::Local })?;
        let provider = app.catalog.provider(&self.provider).cloned().ok_or_else(|| {
            let known: Vec<&str> = app.catalog.providers().map(|p| p.id.as_str()).collect();
            Exit::usage(format!("there is no provider {:?}; known: {}", self.provider, known.join(", ")))
        })?;
        if provider.client.is_none() {
            return Err(Exit { code: 64, text: super::providers::no_client(&provider) });
        }
        let scopes = self.scopes(&app, &provider)?;
        app.keys.open().await?;

        if self.headless {
            return self.elsewhere(&app, &person, &provider, scopes).await;
        }
        let stop = transport::signal::on_signal().map_err(Exit::failed)?;
        let pages = CancellationToken::new();
        let serving = app.loopback.clone().map(|loopback| tokio::spawn(loopback.serve(app.obo.clone(), pages.clone())));
        let actor = actor();
        let wish = Wish::new(&person, &provider, scopes, &actor);
        let link = app.obo.consent().connect(wish).await?;
        if self.no_browser || open::that_detached(link.url.as_str()).is_err() {
            eprintln!("Open this link in a browser on this machine:");
        } else {
            eprintln!("Your browser opens this link:");
        }
        output::line(&link.url)?;
        let grants = app.obo.consent().connections(&person).await?;
        for grant in grants.iter().filter(|grant| grant.provider == provider.id) {
            eprintln!(
                "{} is connected as {} already; this renews it, or connects another account.",
                provider.name, grant.account.label
            );
        }
        eprintln!("Waiting for you to connect {} (Ctrl-C to stop) …", provider.name);
        let ended = tokio::select! {
            ended = app.obo.consent().wait_for(&link.flow) => ended.map_err(not_connected),
            () = stop.cancelled() => Err(Exit::failed("stopped before the account was connected")),
        };
        // The browser is still being told how it ended: its page must arrive, also when the person said no.
        pages.cancel();
        if let Some(serving) = serving {
            let _ = tokio::time::timeout(LAST_PAGE, serving).await;
        }
        app.obo.drain(transport::SHUTDOWN_GRACE).await;
        let account = ended?;
        output::line(format!("{} is connected as {account}.", provider.name))
    }

    /// Has the link opened in a browser on another machine, and the code typed here that its page ends with.
    async fn elsewhere(
        &self,
        app: &App,
        person: &Person,
        provider: &Provider,
        scopes: BTreeSet<String>,
    ) -> Result<(), Exit> {
        let site = match &app.loopback {
            Some(loopback) => loopback.site().await?,
            None => None,
        };
        if site.is_none() {
            return Err(Exit::failed(
                "no `obo serve` of this data folder is running, and a browser on another machine cannot reach the pages of \
                 `obo connect`; start one, or forward the port (ssh -L) and leave --headless out",
            ));
        }
        let stop = transport::signal::on_signal().map_err(Exit::failed)?;
        let actor = actor();
        let wish = Wish { headless: true, ..Wish::new(person, provider, scopes, &actor) };
        let consent = app.obo.consent();
        let link = consent.connect(wish).await?;
        eprintln!("Open this link in a browser on any machine:");
        output::line(&link.url)?;
        eprintln!("Then type the code that the page shows, and give it to nobody else (Ctrl-C to stop):");
        let account = tokio::select! {
            account = typed(consent, person, &link, &actor) => account,
            () = stop.cancelled() => Err(Exit::failed("stopped before the account was connected")),
        };
        app.obo.drain(transport::SHUTDOWN_GRACE).await;
        output::line(format!("{} is connected as {}.", provider.name, account?))
    }

    fn scopes(&self, app: &App, provider: &Provider) -> Result<BTreeSet<String>, Exit> {
        let mut scopes: BTreeSet<String> = self.scope.iter().cloned().collect();
        let of_provider = |tool: &Tool| tool.api().filter(|api| api.provider.id == provider.id).cloned();
        let least = |api: &Api| api.scopes_any_of.first().cloned().unwrap_or_default();
        for name in &self.tool {
            let api = app.catalog.find(name).and_then(|tool| of_provider(tool)).ok_or_else(|| {
                Exit::usage(format!(
                    "{name:?} is not a tool of {} that is offered; see `obo tools list`",
                    provider.name
                ))
            })?;
            scopes.extend(least(&api));
        }
        if self.tool.is_empty() && self.scope.is_empty() {
            for api in app.catalog.tools().filter_map(|tool| of_provider(tool)) {
                scopes.extend(least(&api));
            }
        }
        Ok(scopes)
    }
}
