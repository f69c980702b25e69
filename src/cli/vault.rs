//! `obo vault`.

use clap::Subcommand;

use super::{Exit, Global, actor};
use crate::app::App;
use crate::audit::{Event, Kind, Phase};
use crate::failure::{Code, Failure};

mod backup;
mod migrate;
mod recovery;
mod restore;
mod rotate;
mod status;

#[derive(Subcommand)]
pub(super) enum Vault {
    /// Where the key is, what is in the vault, and whether it is sound
    Status(status::Status),
    /// Give the vault a new key, or its tenants new data keys
    RotateKey(rotate::RotateKey),
    /// Write an encrypted copy of what opens the vault, for the day on which its key is lost; or check one
    ExportRecovery(recovery::ExportRecovery),
    /// Write a backup to a new file, while obo runs. What is sealed stays sealed
    Backup(backup::Backup),
    /// Put a backup in the vault's place. No other obo may be running
    Restore(restore::Restore),
    /// Move the vault from the file into PostgreSQL, or back. No other obo may be running
    Migrate(migrate::Migrate),
}

impl Vault {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        match self {
            Vault::Status(command) => command.run(global).await,
            Vault::RotateKey(command) => command.run(global).await,
            Vault::ExportRecovery(command) => command.run(global).await,
            Vault::Backup(command) => command.run(global).await,
            Vault::Restore(command) => command.run(global).await,
            Vault::Migrate(command) => command.run(global).await,
        }
    }
}

/// Acts on the vault as a whole between two records, so that it is on record even where the act was cut off.
async fn recorded<T>(app: &App, what: &str, act: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    record(app, what, Phase::Intent, None).await?;
    let result = act.await;
    // Logged there. Which code it was is not known of an exit; the command says it.
    let _ = record(app, what, Phase::Outcome, result.is_err().then_some(Code::VaultUnavailable)).await;
    result
}

async fn record(app: &App, what: &str, phase: Phase, failure: Option<Code>) -> Result<(), Failure> {
    let event = Event {
        kind: Kind::Admin,
        phase,
        person: None,
        tenant: None,
        actor: &actor(),
        provider: None,
        account: None,
        what,
        failure,
        duration: None,
    };
    app.audit.event(event).await
}
