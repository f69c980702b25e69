//! `obo vault backup`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::{recorded, status};
use crate::app::{App, Way};
use crate::cli::{Exit, Global, output};
use crate::config::StoreName;
use crate::secret::{Secret, random_text};
use crate::store::Store;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::{SqliteStore, upkeep};

#[derive(Args)]
pub(in crate::cli) struct Backup {
    /// The file to write, which must not exist yet. Only you can read it
    file: PathBuf,
}

impl Backup {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let app = global.open(config.clone(), Way::Command)?;
        let Some(facts) = app.keys.facts().await? else {
            return Err(Exit::failed("there is no vault here yet, so there is nothing to back up"));
        };
        let keys = app.keys.open().await?;
        let bytes = recorded(&app, "vault.backed_up", async {
            let data_dir = global.data_dir()?;
            match &config.vault.url {
                Some(url) if config.vault.store == StoreName::Postgres => {
                    return from_postgres(&app, url, &data_dir, &self.file).await;
                }
                _ => {}
            }
            let written = match global.keyring_store(&app.config)? {
                Some(store) => store.backup(&data_dir, &self.file).await,
                None => upkeep::backup(&data_dir, &self.file).await,
            };
            written.map_err(Exit::failed)
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

/// A backup is a file of the embedded store, wherever the vault is: so it can be restored into either.
async fn from_postgres(app: &App, url: &Secret, data_dir: &Path, file: &Path) -> Result<u64, Exit> {
    if file.symlink_metadata().is_ok() {
        return Err(Exit::failed(format!("{} exists already; name a new file", file.display())));
    }
    let copying = data_dir.join(format!("copying-{}", random_text::<9>()));
    let written = async {
        let snapshot = PostgresStore::open(url).map_err(Exit::failed)?.snapshot().await.map_err(Exit::failed)?;
        let copy: Arc<dyn Store> = Arc::new(SqliteStore::open(&copying).map_err(Exit::failed)?);
        app.upkeep.in_store(Arc::new(snapshot)).copy_to(&copy, &mut |_| ()).await?;
        drop(copy);
        upkeep::backup(&copying, file).await.map_err(Exit::failed)
    };
    let written = written.await;
    let _ = std::fs::remove_dir_all(&copying);
    written
}
