//! `obo vault rotate-key`.

use std::path::PathBuf;

use clap::Args;

use super::{recorded, recovery};
use crate::app::{App, Way};
use crate::cli::{Exit, Global, output};
use crate::keys::{Changed, Config, SourceName};

/// How often the progress is said, in records.
const SAY_EVERY: u64 = 10_000;

#[derive(Args)]
#[command(
    after_help = "Without an option, a key in the OS keyring is replaced there, and a new passphrase is asked for."
)]
pub(in crate::cli) struct RotateKey {
    /// Keep the new key in this file, which is made if it is not there
    #[arg(long, value_name = "FILE", group = "to_where")]
    to: Option<PathBuf>,
    /// Read the new key from this environment variable: 32 bytes in base64
    #[arg(long, value_name = "NAME", group = "to_where")]
    to_env: Option<String>,
    /// Keep the new key in the OS keyring
    #[arg(long, group = "to_where")]
    to_keyring: bool,
    /// Ask for a new passphrase, or read it from OBO_VAULT_NEW_PASSPHRASE
    #[arg(long, group = "to_where")]
    to_passphrase: bool,
    /// Change the tenants' data keys in place of the vault's key, and seal everything anew
    #[arg(long, conflicts_with = "to_where")]
    data_keys: bool,
    /// The vault's key is lost: open the vault with this copy, which `obo vault export-recovery` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "data_keys")]
    recovery: Option<PathBuf>,
    /// The file of the age identity that opens the copy; else its passphrase is asked for, or read from
    /// OBO_VAULT_RECOVERY_PASSPHRASE
    #[arg(long, value_name = "FILE", requires = "recovery")]
    identity: Option<PathBuf>,
}

impl RotateKey {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let mut config = if self.recovery.is_some() { global.config_without_key()? } else { global.config()? };
        if self.data_keys {
            return data_keys(&global.unlock(config, Way::Command).await?).await;
        }
        let to = self.target(&config.vault.key)?;
        let now = config.vault.key.clone();
        let recovery = match &self.recovery {
            Some(file) => Some(recovery::open(file, self.identity.as_deref()).await?),
            None => None,
        };
        if recovery.is_some() {
            config.vault.key = to.clone();
        }
        let app = global.open(config, Way::Command)?;
        let changed = if let Some(copy) = recovery {
            // Nothing can be recorded before: the record would have to be sealed.
            let changed = app.keys.recover_to(&copy, &to).await?;
            recorded(&app, "vault.recovered", async {
                let (keys, at) = (app.keys.open().await?, app.clock.now());
                Ok(keys.note(|history| history.key_changed_at = Some(at)).await?)
            })
            .await?;
            changed
        } else if app.keys.is_changed_to(&to).await? {
            // The key that obo.toml names opens nothing any more, so that nothing can be recorded; the try that changed
            // it has recorded what it was about to do.
            app.keys.change_to(&to).await?
        } else {
            app.keys.open().await?;
            recorded(&app, "vault.key_changed", async {
                let changed = app.keys.change_to(&to).await?;
                let (keys, at) = (app.keys.open().await?, app.clock.now());
                // The key is changed, whatever comes of the note.
                if let Err(error) = keys.note(|history| history.key_changed_at = Some(at)).await {
                    tracing::warn!(%error, "vault.history_not_written");
                }
                Ok(changed)
            })
            .await?
        };
        say(&changed, &now, &to)?;
        if let Some(warning) = to.warning(&global.data_dir()?) {
            eprintln!("{warning}");
        }
        Ok(())
    }

    /// Where the new key is to be kept.
    fn target(&self, now: &Config) -> Result<Config, Exit> {
        let none = Config { source: now.source, path: None, env: None };
        if let Some(path) = &self.to {
            let path = std::path::absolute(path).map_err(Exit::usage)?;
            return Ok(Config { source: SourceName::File, path: Some(path), ..none });
        }
        if let Some(name) = &self.to_env {
            return Ok(Config { source: SourceName::Env, env: Some(name.clone()), ..none });
        }
        match (self.to_keyring, self.to_passphrase, now.source) {
            (true, ..) => Ok(Config { source: SourceName::Keyring, ..none }),
            (_, true, _) => Ok(Config { source: SourceName::Passphrase, ..none }),
            (.., SourceName::Keyring | SourceName::Passphrase) => Ok(none),
            (.., SourceName::File | SourceName::Env) => Err(Exit::usage(
                "say where the new key is to be kept: --to FILE, --to-env NAME, --to-keyring or --to-passphrase",
            )),
        }
    }
}

fn say(changed: &Changed, now: &Config, to: &Config) -> Result<(), Exit> {
    output::line(match &changed.from {
        Some(from) => format!("The vault opens with key {} now, and no longer with {from}.", changed.to),
        None => format!("The vault opens with key {} already.", changed.to),
    })?;
    let same = now.source == to.source && now.path == to.path && now.env == to.env;
    if !same {
        eprintln!("Write this into obo.toml before obo is started again; processes that run go on:\n");
        eprintln!("[vault.key]\nsource = \"{}\"", to.source.as_str());
        if let Some(path) = &to.path {
            eprintln!("path = {path:?}");
        }
        if let Some(name) = &to.env {
            eprintln!("env = \"{name}\"");
        }
        eprintln!();
    }
    eprintln!("Backups made until now open with the old key only, or with a recovery copy: make a new one.");
    if let Some(left) = &changed.left {
        eprintln!("The old key could not be removed from the OS keyring ({left}); it opens the vault no longer.");
    }
    Ok(())
}

async fn data_keys(app: &App) -> Result<(), Exit> {
    let mut said = |records: u64| {
        if records.is_multiple_of(SAY_EVERY) {
            eprintln!("{records} records were sealed anew");
        }
    };
    let done = recorded(app, "vault.data_keys_changed", async {
        let done = app.upkeep.change_data_keys(&mut said).await?;
        let (keys, at) = (app.keys.open().await?, app.clock.now());
        if let Err(error) = keys.note(|history| history.data_keys_changed_at = Some(at)).await {
            tracing::warn!(%error, "vault.history_not_written");
        }
        Ok(done)
    })
    .await?;
    if done.resumed {
        eprintln!("A change that was cut off is taken up; there is no other new key.");
    }
    output::line(format!("{} data keys are new, {} records were sealed anew.", done.tenants, done.resealed))?;
    if done.left > 0 {
        eprintln!("{} records were left as they are; `obo vault status --verify` says which.", done.left);
    }
    Ok(())
}
