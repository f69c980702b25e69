//! `obo vault export-recovery`.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::recorded;
use crate::app::Way;
use crate::cli::{Exit, Global, output, passphrase};
use crate::keys::{Ask, Lock, MAX_COPY_BYTES, Opener, Recovered};
use crate::secret::Secret;

#[derive(Args)]
#[command(after_help = "Without --recipient a passphrase is asked for, or read from OBO_VAULT_RECOVERY_PASSPHRASE.")]
pub(in crate::cli) struct ExportRecovery {
    /// Whoever holds the identity of this age recipient (age1…) can open the copy; may be repeated
    #[arg(long, value_name = "AGE1", conflicts_with = "check")]
    recipient: Vec<String>,
    /// The file to write, which must not exist yet; only you can read it. Else the copy is printed
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    to: Option<PathBuf>,
    /// Open this copy, and say whether it opens this vault: exit code 0 or 1. Nothing is written
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// The file of the age identity that opens the copy
    #[arg(long, value_name = "FILE", requires = "check")]
    identity: Option<PathBuf>,
    /// Print JSON
    #[arg(long, requires = "check")]
    json: bool,
}

impl ExportRecovery {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = if self.check.is_some() { global.config_without_key()? } else { global.config()? };
        let app = global.open(config, Way::Command)?;
        if let Some(file) = &self.check {
            let opened = match open(file, self.identity.as_deref()).await {
                Ok(copy) => app.keys.opens_with(&copy).await.map_err(Exit::failed),
                Err(exit) => Err(exit),
            };
            if self.json {
                let why = opened.as_ref().err().map(Exit::text);
                output::json(&json!({ "opens_this_vault": opened.is_ok(), "why_not": why }))?;
                return opened.map_err(|exit| Exit::quiet(exit.code()));
            }
            opened?;
            return output::line("This recovery copy opens this vault.");
        }
        if app.keys.facts().await?.is_none() {
            return Err(Exit::failed("there is no vault here yet, so there is nothing to copy"));
        }
        let keys = app.keys.open().await?;
        let lock = if self.recipient.is_empty() {
            Lock::Passphrase(passphrase::of_recovery(Ask::NewRecoveryPassphrase)?)
        } else {
            Lock::Recipients(self.recipient)
        };
        recorded(&app, "vault.recovery_exported", async {
            // First, because it must stand in the vault by which a copy is checked.
            let at = app.clock.now();
            keys.note(|history| history.recovery_exported_at = Some(at)).await?;
            let copy = keys.recovery_copy(lock).await.map_err(Exit::usage)?;
            match &self.to {
                Some(file) => write(file, &copy),
                None => output::line(copy.trim_end()),
            }
        })
        .await?;
        if let Some(file) = &self.to {
            output::line(format!("Wrote {}.", file.display()))?;
        }
        eprintln!(
            "Whoever opens it opens this vault and its backups, also after its key was changed. Keep it away from both, and\n\
             try it: `obo vault export-recovery --check FILE`."
        );
        Ok(())
    }
}

/// Opens a copy with an identity, else with a passphrase.
pub(super) async fn open(file: &Path, identity: Option<&Path>) -> Result<Recovered, Exit> {
    let copy = read(file)?.to_vec();
    let with = match identity {
        Some(file) => {
            let text = String::from_utf8(read(file)?.to_vec());
            Opener::Identities(Secret::new(text.map_err(|_| Exit::failed("the file of identities is not text"))?))
        }
        None => Opener::Passphrase(passphrase::of_recovery(Ask::RecoveryPassphrase)?),
    };
    Recovered::open(copy, with).await.map_err(Exit::failed)
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, Exit> {
    let failed = |error: std::io::Error| Exit::failed(format!("{} cannot be read: {error}", file.display()));
    let mut bytes = Zeroizing::new(Vec::new());
    std::fs::File::open(file).map_err(failed)?.take(MAX_COPY_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Writes a new file that only its owner can read.
fn write(file: &Path, text: &str) -> Result<(), Exit> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Exit::failed(format!("{} exists already; name a new file", file.display()))
        }
        _ => Exit::failed(format!("{} cannot be written: {error}", file.display())),
    };
    let mut new = options.open(file).map_err(failed)?;
    new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).map_err(failed)
}
