//! `obo vault restore`.

use std::path::PathBuf;

use clap::Args;

use super::recorded;
use crate::app::Way;
use crate::cli::{Exit, Global, output};
use crate::store::sqlite::Restoring;
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
        let config = global.config()?;
        let data_dir = global.data_dir()?;
        if Restoring::take_up(&data_dir).await.map_err(Exit::failed)? {
            return output::line("A restore that was cut off is brought to its end; this backup was not looked at.");
        }
        let restoring = Restoring::begin(&self.file, &data_dir, self.replace).await.map_err(Exit::failed)?;
        // The backup proves itself in a folder of its own: until it has, nothing of the vault that is there has changed.
        let app = global.open_in(restoring.prepared(), config, Way::Command)?;
        if app.keys.facts().await?.is_none() {
            return Err(Exit::failed(format!("{} holds no vault", self.file.display())));
        }
        app.keys.open().await?;
        let restored = recorded(&app, "vault.restored", async {
            let restored = app.upkeep.mark_restored().await?;
            let (keys, at) = (app.keys.open().await?, app.clock.now());
            keys.note(|history| history.restored_at = Some(at)).await?;
            Ok(restored)
        })
        .await?;
        let now = app.clock.now();
        drop(app);
        let aside = restoring.finish(now).await.map_err(Exit::failed)?;
        let Restored { connections, unopened } = restored;
        output::line(format!(
            "Restored {} into {}: {connections} connections.",
            self.file.display(),
            data_dir.display()
        ))?;
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
