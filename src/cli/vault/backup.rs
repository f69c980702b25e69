//! `obo vault backup`.

use std::path::PathBuf;

use clap::Args;

use super::{recorded, status};
use crate::app::Way;
use crate::cli::{Exit, Global, output};
use crate::store::sqlite::upkeep;

#[derive(Args)]
pub(in crate::cli) struct Backup {
    /// The file to write, which must not exist yet. Only you can read it
    file: PathBuf,
}

impl Backup {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let app = global.open(global.config()?, Way::Command)?;
        let Some(facts) = app.keys.facts().await? else {
            return Err(Exit::failed("there is no vault here yet, so there is nothing to back up"));
        };
        let keys = app.keys.open().await?;
        let bytes = recorded(&app, "vault.backed_up", async {
            upkeep::backup(&global.data_dir()?, &self.file).await.map_err(Exit::failed)
        })
        .await?;
        let at = app.clock.now();
        if let Err(error) = keys.note(|history| history.backed_up_at = Some(at)).await {
            tracing::warn!(%error, "vault.history_not_written");
        }
        output::line(format!("Wrote {} ({}).", self.file.display(), status::size(bytes)))?;
        eprintln!(
            "It opens with the key {} ({}), which is not in it: keep that too, elsewhere.",
            facts.key_id,
            facts.source.as_str()
        );
        Ok(())
    }
}
