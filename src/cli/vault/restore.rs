//! `obo vault restore`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::recorded;
use crate::app::{App, Way};
use crate::cli::{Exit, Global, output};
use crate::config::{Config, StoreName};
use crate::secret::Secret;
use crate::store::Store;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::{Restoring, SqliteStore};
use crate::upkeep::Restored;

#[derive(Args)]
pub(in crate::cli) struct Restore {
    /// The backup, as `obo vault backup` wrote it
    file: PathBuf,
    /// Put it in the place of the vault that is there, which is kept beside it
    #[arg(long)]
    replace: bool,
}

impl Restore {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let mut config = global.config()?;
        let data_dir = global.data_dir()?;
        let database = config.vault.url.clone().filter(|_| config.vault.store == StoreName::Postgres);
        if let Some(url) = database {
            return self.into_postgres(global, config, &data_dir, &url).await;
        }
        if Restoring::take_up(&data_dir).await.map_err(Exit::failed)? {
            return output::line("A restore that was cut off is brought to its end; this backup was not looked at.");
        }
        let restoring = Restoring::begin(&self.file, &data_dir, self.replace).await.map_err(Exit::failed)?;
        // It has everything in it, and nothing of it goes into a keyring before it is the vault.
        config.vault.store = StoreName::File;
        let app = global.open_in(restoring.prepared(), config, Way::Command)?;
        let restored = self.mark(&app).await?;
        let now = app.clock.now();
        drop(app);
        let aside = restoring.finish(now).await.map_err(Exit::failed)?;
        self.say(&data_dir.display().to_string(), restored, aside.as_deref())
    }

    /// Into an empty database: what is in one is never replaced.
    async fn into_postgres(self, global: &Global, config: Config, data_dir: &Path, url: &Secret) -> Result<(), Exit> {
        if self.replace {
            return Err(Exit::usage("a vault in PostgreSQL is not replaced; name an empty database in obo.toml"));
        }
        // By the way of the data folder, where the backup is checked and marked before anything arrives. What was being
        // moved there when it was cut off comes first.
        Restoring::take_up(data_dir).await.map_err(Exit::failed)?;
        let restoring = Restoring::begin(&self.file, data_dir, true).await.map_err(Exit::failed)?;
        let prepared: Arc<dyn Store> = Arc::new(SqliteStore::open(&restoring.prepared()).map_err(Exit::failed)?);
        let app = global.open_over(prepared, config.clone(), Way::Command)?;
        let restored = self.mark(&app).await?;
        let target = Arc::new(PostgresStore::fill(url).await.map_err(Exit::failed)?);
        super::migrate::copy_into(global, config, &app, Arc::clone(&target) as _).await?;
        target.now_in_use().await.map_err(Exit::failed)?;
        self.say(&format!("the {}", target.server().place), restored, None)
    }

    /// The backup proves itself in a folder of its own: until it has, nothing of the vault that is there has changed.
    async fn mark(&self, app: &App) -> Result<Restored, Exit> {
        if app.keys.facts().await?.is_none() {
            return Err(Exit::failed(format!("{} holds no vault", self.file.display())));
        }
        app.keys.open().await?;
        recorded(app, "vault.restored", async {
            let restored = app.upkeep.mark_restored().await?;
            let (keys, at) = (app.keys.open().await?, app.clock.now());
            keys.note(|history| history.restored_at = Some(at)).await?;
            Ok(restored)
        })
        .await
    }

    fn say(&self, place: &str, restored: Restored, aside: Option<&Path>) -> Result<(), Exit> {
        let Restored { connections, unopened } = restored;
        output::line(format!("Restored {} into {place}: {connections} connections.", self.file.display()))?;
        if unopened > 0 {
            eprintln!("{unopened} connections do not open; `obo vault status --verify` says more.");
        }
        if let Some(aside) = aside {
            eprintln!("The vault that was there is in {} now.", aside.display());
        }
        eprintln!(
            "Each provider is asked about a connection at its next use; who must connect again is told then. What was\n\
             revoked since the backup is good again: look at `obo token list` and `obo app list`."
        );
        Ok(())
    }
}
