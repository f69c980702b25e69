//! Manifests that change while obo runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::{log_problem, provider_configs};
use crate::catalog::{Catalog, Live, Problem, Stamps};
use crate::config::{Config, ConfigError};

/// How often the folders are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the folders must have been still before they are read: a file is often written in several steps, and a folder
/// file by file.
const STILL_FOR: Duration = Duration::from_millis(200);
/// How often they are looked at for that. A folder that never keeps still is read all the same.
const MAX_LOOKS: usize = 25;

/// Reads the folders of `tools.dirs` again whenever something in them has changed, and puts the new catalog into force as a
/// whole, until it is dropped. Calls under way keep the tools they began with.
pub(super) async fn watch(config: Config, live: Live) {
    if config.tools.dirs.is_empty() {
        return;
    }
    let first = live.now();
    let mut told = Told { stamps: first.stamps().clone(), problems: first.problems().iter().cloned().collect() };
    drop(first);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(changed) = look(&config).await else { return };
        if changed == told.stamps || !still(&config, changed).await {
            continue;
        }
        match read(&config).await {
            Some(Ok(catalog)) => {
                told.log_news(&catalog);
                tracing::info!(tools = catalog.tools().count(), "catalog.replaced");
                live.replace(Arc::new(catalog));
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the manifests changed and cannot be read; the tools stay as they were");
                // Said once; the next change is the next reason to try.
                told.stamps = match look(&config).await {
                    Some(stamps) => stamps,
                    None => return,
                };
            }
            None => return,
        }
    }
}

/// What was said already.
struct Told {
    stamps: Stamps,
    problems: HashSet<Problem>,
}

impl Told {
    /// Logs what is wrong now, but for what was said of the same file as it is.
    fn log_news(&mut self, catalog: &Catalog) {
        for problem in catalog.problems() {
            let same_file = self.stamps.has_same(catalog.stamps(), &problem.file);
            if !(same_file && self.problems.contains(problem)) {
                log_problem(problem);
            }
        }
        self.stamps = catalog.stamps().clone();
        self.problems = catalog.problems().iter().cloned().collect();
    }
}

/// Waits until nothing changes any more. False: the process is about to end.
async fn still(config: &Config, mut before: Stamps) -> bool {
    for _ in 0..MAX_LOOKS {
        tokio::time::sleep(STILL_FOR).await;
        match look(config).await {
            Some(now) if now == before => return true,
            Some(now) => before = now,
            None => return false,
        }
    }
    true
}

/// None: the runtime is about to end.
async fn look(config: &Config) -> Option<Stamps> {
    let dirs = config.tools.dirs.clone();
    tokio::task::spawn_blocking(move || Stamps::of(&dirs)).await.ok()
}

async fn read(config: &Config) -> Option<Result<Catalog, ConfigError>> {
    let config = config.clone();
    let reading = move || Catalog::load(&config.tools, &provider_configs(&config)?).map_err(ConfigError::new);
    tokio::task::spawn_blocking(reading).await.ok()
}
