//! `obo vault migrate`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;

use super::record;
use crate::app::{App, Way};
use crate::audit::Phase;
use crate::cli::{Exit, Global, output};
use crate::config::{self, Config, StoreName};
use crate::failure::Code;
use crate::secret::Secret;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::{Restoring, SqliteStore, moved_to, upkeep};
use crate::store::{Examined, Store, Table};

/// How often the progress is said, in records.
const SAY_EVERY: u64 = 10_000;

/// How many records may have been added to a copy before the move was taken up again.
const LATEST: usize = 1000;

/// A folder in the data folder where a vault arrives.
const ARRIVING: &str = "arriving";

#[derive(Args)]
#[command(
    after_help = "Everything is copied as it is sealed, counted, and opened; only then is the copy the vault, and the other \
                  one is left aside and opened no more. A move that was cut off is taken up by the same command. The key \
                  stays where it is."
)]
pub(in crate::cli) struct Migrate {
    /// Into an empty database: env:NAME or file:PATH, where its URL is found
    #[arg(long, value_name = "URL", required_unless_present = "to_file")]
    to_postgres: Option<String>,
    /// Into the data folder, from the database that obo.toml names
    #[arg(long, conflicts_with = "to_postgres")]
    to_file: bool,
}

impl Migrate {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        match (self.to_postgres, config.vault.store, config.vault.url.clone()) {
            (Some(_), StoreName::Postgres, _) => {
                Err(Exit::usage("obo.toml says that the vault is in PostgreSQL already; --to-file moves it from there"))
            }
            (Some(_), StoreName::Keyring, _) => Err(Exit::usage(
                "the secrets of this vault's connections are in the OS keyring; make a backup, which has them, and restore \
                 it into the database with `obo vault restore`",
            )),
            (Some(to), StoreName::File, _) => {
                let url = config::secret_of(&to, "--to-postgres")?;
                to_postgres(global, config, &to, &url).await
            }
            (None, StoreName::Postgres, Some(url)) => to_file(global, config, &url).await,
            (None, _, _) => Err(Exit::usage("obo.toml says that the vault is in a file already")),
        }
    }
}

async fn to_postgres(global: &Global, config: Config, named: &str, url: &Secret) -> Result<(), Exit> {
    let data_dir = global.data_dir()?;
    if let Some(moved) = moved_to(&data_dir).map_err(Exit::failed)? {
        // The note is written when the copy is whole, so that there is nothing left but to use it.
        let target = Arc::new(PostgresStore::filled(url).map_err(Exit::failed)?);
        let there = global.open_over(Arc::clone(&target) as _, config, Way::Command)?;
        if there.keys.facts().await?.is_none_or(|facts| facts.vault.to_string() != moved.vault) {
            return Err(Exit::failed(format!(
                "this vault was moved to the {} before; nothing was changed",
                moved.place
            )));
        }
        target.now_in_use().await.map_err(Exit::failed)?;
        output::line("A move that was cut off is brought to its end.")?;
        return told_postgres(named);
    }
    let source = Arc::new(SqliteStore::open_alone(&data_dir).map_err(Exit::failed)?);
    if source.bodies_elsewhere() {
        return Err(Exit::usage(
            "the secrets of this vault's connections are in the OS keyring; write store = \"keyring\"",
        ));
    }
    let app = global.open_over(Arc::clone(&source) as _, config.clone(), Way::Command)?;
    let Some(facts) = app.keys.facts().await? else {
        return Err(Exit::failed(
            "there is no vault here yet; write store = \"postgres\" into obo.toml, and it is made there",
        ));
    };
    app.keys.open().await?;
    let target = PostgresStore::fill(url).await.map_err(Exit::failed)?;
    let place = target.server().place.clone();
    let target = Arc::new(target);
    let arrived = move_into(global, config, &app, Arc::clone(&target) as _).await?;
    source.note_moved(&place, &facts.vault.to_string()).map_err(Exit::failed)?;
    target.now_in_use().await.map_err(Exit::failed)?;
    record(&arrived, "vault.migrated", Phase::Outcome, None).await?;
    told_postgres(named)
}

fn told_postgres(named: &str) -> Result<(), Exit> {
    eprintln!("Write this into obo.toml, in place of the [vault] that is there; [vault.key] stays as it is:");
    output::line(format!("[vault]\nstore = \"postgres\"\nurl = \"{named}\""))
}

async fn to_file(global: &Global, config: Config, url: &Secret) -> Result<(), Exit> {
    let data_dir = global.data_dir()?;
    // One that was cut off while it moved files: they are in place then.
    Restoring::take_up(&data_dir).await.map_err(Exit::failed)?;
    let source = Arc::new(PostgresStore::leave(url).await.map_err(Exit::failed)?);
    // Once the copy may be in its place, here or in the folder of an earlier try, the database is never used again by
    // itself.
    let placed = AtomicBool::new(source.was_being_moved());
    let moved = async {
        let app = global.open_over(Arc::clone(&source) as _, config.clone(), Way::Command)?;
        let Some(facts) = app.keys.facts().await? else {
            return Err(Exit::failed("there is no vault in the database yet, so there is nothing to move"));
        };
        app.keys.open().await?;
        let again = moved_to(&data_dir).map_err(Exit::failed)?.is_some();
        if data_dir.join("obo.db").exists() && !again {
            // Of an earlier try that was cut off after the copy was in place; or of somebody else.
            let there = Arc::new(SqliteStore::open_alone(&data_dir).map_err(Exit::failed)?);
            let there = global.open_over(there, config.clone(), Way::Command)?;
            let same = there.keys.facts().await?.is_some_and(|there| there.vault == facts.vault);
            // An older copy of the same vault is another one: everything that is on record here must be there.
            if same && source.was_being_moved() {
                return match has_the_newest(&app, &there).await? {
                    true => Ok(()),
                    false => Err(Exit::failed(format!(
                        "{} has another copy of this vault, and a move into it was cut off; move that copy away if it is \
                         not the one that was moved, and run the same command again",
                        data_dir.display()
                    ))),
                };
            }
            return Err(Exit::failed(format!(
                "{} has a vault already; name an empty folder with --data-dir",
                data_dir.display()
            )));
        }
        arrive(global, config.clone(), &app, &data_dir, again, &placed).await
    };
    if let Err(exit) = moved.await {
        if !placed.load(Ordering::Relaxed) {
            source.now_in_use().await.map_err(Exit::failed)?;
        }
        return Err(exit);
    }
    source.now_moved().await.map_err(Exit::failed)?;
    eprintln!("Write this into obo.toml, in place of the [vault] that is there; [vault.key] stays as it is:");
    output::line("[vault]\nstore = \"file\"")
}

/// Puts a copy of the vault into the data folder, by the way of a backup: it is checked, and in its place as a whole or
/// not at all.
async fn arrive(
    global: &Global,
    config: Config,
    app: &App,
    data_dir: &Path,
    again: bool,
    placed: &AtomicBool,
) -> Result<(), Exit> {
    let arriving = data_dir.join(ARRIVING);
    let clean = || match std::fs::remove_dir_all(&arriving) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Exit::failed(error)),
        _ => Ok(()),
    };
    clean()?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&arriving).map_err(Exit::failed)?);
    let arrived = move_into(global, config, app, Arc::clone(&store)).await?;
    record(&arrived, "vault.migrated", Phase::Outcome, None).await?;
    drop((arrived, store));
    let backup = arriving.join("whole");
    upkeep::backup(&arriving, &backup).await.map_err(Exit::failed)?;
    let restoring = Restoring::begin(&backup, data_dir, again).await.map_err(Exit::failed)?;
    placed.store(true, Ordering::Relaxed);
    restoring
        .finish(app.clock.now())
        .await
        .map_err(|error| Exit::failed(format!("{error}; the move is not at its end: run the same command again")))?;
    if clean().is_err() {
        tracing::warn!(folder = %arriving.display(), "what was left of the move was not removed");
    }
    Ok(())
}

/// Whether the newest record of one vault is in another.
async fn has_the_newest(of: &App, other: &App) -> Result<bool, Exit> {
    let newest = of.store.newest(u64::MAX, 1).await.map_err(Exit::failed)?;
    let there = other.store.newest(u64::MAX, LATEST).await.map_err(Exit::failed)?;
    Ok(newest.iter().all(|(_, entry)| there.iter().any(|(_, other)| other == entry)))
}

/// Moves everything between two records, so that the move is on record even where it was cut off.
async fn move_into(global: &Global, config: Config, app: &App, to: Arc<dyn Store>) -> Result<App, Exit> {
    record(app, "vault.migrated", Phase::Intent, None).await?;
    let arrived = copy_into(global, config, app, to).await;
    if arrived.is_err() {
        let _ = record(app, "vault.migrated", Phase::Outcome, Some(Code::VaultUnavailable)).await;
    }
    arrived
}

/// Copies everything, and looks whether it arrived. Gives the copy, opened.
pub(super) async fn copy_into(global: &Global, config: Config, app: &App, to: Arc<dyn Store>) -> Result<App, Exit> {
    let copied = app.upkeep.copy_to(&to, &mut say).await?;
    let (before, after) = (counted(&app.store, app).await?, counted(&to, app).await?);
    if let Some((what, before, after)) = difference(&before, &after) {
        return Err(Exit::failed(format!("of {before} {what}, {after} arrived; nothing was changed here, try again")));
    }
    let arrived = global.open_over(to, config, Way::Command)?;
    let verified = arrived.upkeep.verify(&mut |_| ()).await?;
    if !verified.is_whole() && verified != app.upkeep.verify(&mut |_| ()).await? {
        return Err(Exit::failed("not every record that was copied opens; nothing was changed here, try again"));
    }
    let audit = arrived.audit.verify().await.map_err(Exit::failed)?;
    if !audit.problems.is_empty() && audit.problems != app.audit.verify().await.map_err(Exit::failed)?.problems {
        return Err(Exit::failed("the audit that was copied is not whole; nothing was changed here, try again"));
    }
    eprintln!(
        "Copied {} records and {} entries of the audit; {} opened.",
        copied.records, copied.entries, verified.opened
    );
    Ok(arrived)
}

async fn counted(store: &Arc<dyn Store>, app: &App) -> Result<Examined, Exit> {
    store.examine(app.clock.now()).await.map_err(Exit::failed)
}

/// Of what there is more here or there.
fn difference(before: &Examined, after: &Examined) -> Option<(&'static str, u64, u64)> {
    let all = |found: &Examined, table| {
        found.counts.iter().filter(|count| count.table == Some(table)).map(|count| count.records).sum::<u64>()
    };
    let tables = Table::ALL.into_iter().map(|table| (table.words(), all(before, table), all(after, table)));
    tables.chain([("audit records", before.log, after.log)]).find(|(_, before, after)| before != after)
}

fn say(records: u64) {
    if records.is_multiple_of(SAY_EVERY) {
        eprintln!("{records} records were copied");
    }
}
