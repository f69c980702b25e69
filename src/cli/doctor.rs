//! `obo doctor`: goes through everything that obo needs, and says what is wrong and how to mend it.
//!
//! It must work where nothing else does: every check stands on its own, and what an earlier one found broken is passed
//! over rather than said twice. It makes no file, and changes none.

use clap::Args;
use serde::Serialize;

use super::{Exit, Global, output};
use crate::app::public_url;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::egress::Egress;

mod catalog;
mod clients;
mod network;
mod place;
mod vault;

#[derive(Args)]
pub(super) struct Doctor {
    /// Ask providers, identity providers and the public address too: requests without any credential
    #[arg(long)]
    online: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// It works, and might not tomorrow; or somebody should know.
    Warn,
    /// Something does not work.
    Fail,
}

/// What one check found. Never a secret.
#[derive(Debug, Serialize)]
struct Check {
    status: Status,
    check: &'static str,
    found: String,
    /// What to do, where there is something to do.
    mend: Option<String>,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { status: Status::Ok, check, found: found.into(), mend: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Warn, check, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Fail, check, found: found.into(), mend: Some(mend.into()) }
    }

    /// From the error texts of obo, which end with the mend.
    fn error(check: &'static str, error: impl std::fmt::Display) -> Self {
        Self { status: Status::Fail, check, found: error.to_string(), mend: None }
    }

    fn line(&self) -> String {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        let mend = self.mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default();
        let text = format!("{}{mend}", self.found).replace('\n', " ");
        format!("{status:<5} {:<14} {text}", self.check)
    }
}

impl Doctor {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let checks = self.checks(global).await;
        if self.json {
            output::json(&checks)?;
        } else {
            checks.iter().try_for_each(|check| output::line(check.line()))?;
        }
        let failed = checks.iter().filter(|check| check.status == Status::Fail).count();
        if failed == 0 {
            return Ok(());
        }
        if !self.json {
            let (checks, does) = if failed == 1 { ("check", "does") } else { ("checks", "do") };
            eprintln!("{failed} {checks} {does} not pass.");
        }
        Err(Exit::quiet(1))
    }

    async fn checks(&self, global: &Global) -> Vec<Check> {
        let mut checks = Vec::new();
        let Configured { config, has_key } = place::configuration(global, &mut checks);
        let data_dir = place::data_folder(global, &mut checks);
        let mut app = None;
        if let (Some(config), Some(data_dir)) = (&config, &data_dir) {
            app = vault::checks(global, config, has_key, data_dir, &mut checks).await;
        }
        checks.push(network::clock(app.as_ref(), SystemClock.now()).await);
        if let Some(config) = &config {
            checks.push(network::port(config, app.as_ref().filter(|_| has_key)).await);
            // The public address is obo's own, and may be on this machine.
            let asked = config.written_urls().into_iter().chain(public_url(config)).collect::<Vec<_>>();
            let egress = Egress::new(&config.network, &asked);
            let catalog = catalog::checks(config, &mut checks);
            match (&egress, self.online) {
                (Ok(egress), true) => network::online(config, catalog.as_deref(), egress, &mut checks).await,
                (Ok(_), false) => {}
                (Err(error), _) => checks.push(Check::error("network", error)),
            }
        }
        clients::checks(&mut checks);
        checks
    }
}

/// What could be read of obo.toml.
struct Configured {
    config: Option<Config>,
    /// Whether the vault's key is where it says.
    has_key: bool,
}

/// Whether a file that holds secrets can be read by other users; none where the system has no such permissions.
fn readable_by_others(path: &std::path::Path) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then_some(mode)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// So many of something.
fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
