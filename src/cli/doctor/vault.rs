//! The vault: its key, what is in it, and the audit.

use std::path::Path;

use super::{Check, count};
use crate::app::{App, Way};
use crate::cli::{Global, settings};
use crate::config::{Config, StoreName};
use crate::keys::SourceName;
use crate::os_keyring::Keyring;
use crate::store::{Examined, Table};

/// The most audit records that are gone through here, in the time that somebody waits for a command.
const MAX_AUDIT_RECORDS: u64 = 200_000;

/// An entry that nobody has: asking for it shows whether the keyring answers.
const NO_ENTRY: &str = "doctor";

/// Opens what is there. A vault that is not there yet is not made.
pub(super) async fn checks(
    global: &Global,
    config: &Config,
    has_key: bool,
    data_dir: &Path,
    checks: &mut Vec<Check>,
) -> Option<App> {
    let file = data_dir.join("obo.db");
    let in_file = config.vault.store != StoreName::Postgres;
    if in_file && !file.metadata().is_ok_and(|about| about.len() > 0) {
        checks.push(Check::ok("vault", "there is none yet: it is made when it is first needed"));
        if has_key {
            checks.push(key_of_a_new_vault(config).await);
        }
        return None;
    }
    if let Some(warning) = config.vault.key.warning(data_dir) {
        checks.push(Check::warn("key", warning, "then write its new place into vault.key.path"));
    }
    // Nobody is asked for a passphrase here.
    let mut settings = settings(data_dir.to_owned(), config.clone(), Way::Command);
    settings.prompt = None;
    let app = match App::open(settings).map_err(super::Exit::from).and_then(|app| global.opened(app)) {
        Ok(app) => app,
        Err(exit) => {
            checks.push(match in_file {
                true => Check::error("vault", exit.text()),
                false => Check::fail("vault", exit.text(), "see that the server runs, and that vault.url names it"),
            });
            return None;
        }
    };
    let store = match app.store.examine(app.clock.now()).await {
        Ok(store) => store,
        Err(error) => {
            checks.push(Check::error("vault", error));
            return Some(app);
        }
    };
    if let Some(problem) = store.problems.first() {
        let found = format!("{} is damaged ({problem})", store.place);
        checks.push(Check::fail("vault", found, "restore a backup with `obo vault restore`"));
        return Some(app);
    }
    match app.keys.facts().await {
        Ok(_) if !has_key => {
            checks.push(Check::ok("vault", format!("{}, format {}; not opened", store.place, store.format)))
        }
        Ok(Some(_)) => opened(&app, &store, checks).await,
        Ok(None) => {
            checks.push(Check::ok("vault", format!("{} is empty", store.place)));
            checks.push(key_of_a_new_vault(config).await);
        }
        Err(error) => checks.push(Check::error("vault", error)),
    }
    Some(app)
}

async fn key_of_a_new_vault(config: &Config) -> Check {
    let key = &config.vault.key;
    match key.source {
        SourceName::Keyring => match Keyring::of_platform(false).get(NO_ENTRY.to_owned()).await {
            Ok(_) => Check::ok("key", "the OS keyring answers, and will hold the vault's key"),
            Err(down) => Check::fail(
                "key",
                down.to_string(),
                "or keep the key in a file: `obo init` does so by itself, later write [vault.key] source = \"file\" and path",
            ),
        },
        SourceName::Passphrase => Check::ok("key", "a passphrase is asked for when the vault is made"),
        // Trying these changes nothing: they are only read.
        SourceName::File | SourceName::Env => match crate::keys::Keys::probe(key).await {
            Ok(()) => Check::ok("key", format!("source \"{}\" can be read", key.source.as_str())),
            Err(error) => Check::error("key", error),
        },
    }
}

async fn opened(app: &App, store: &Examined, checks: &mut Vec<Check>) {
    let format = format!("{}, format {}", store.place, store.format);
    if let Err(error) = app.keys.open().await {
        checks.push(Check::ok("vault", format));
        checks.push(match app.config.vault.key.source {
            // Whoever starts obo at a terminal is asked.
            SourceName::Passphrase => Check::warn(
                "key",
                format!("it was not tried: {error}"),
                "set OBO_VAULT_PASSPHRASE for obo that a client launches",
            ),
            _ => Check::error("key", error),
        });
        return;
    }
    checks.push(Check::ok("key", format!("source \"{}\", opens the vault", app.config.vault.key.source.as_str())));
    checks.push(match app.upkeep.connections().await {
        Ok(found) if found.unopened > 0 => Check::fail(
            "vault",
            format!("{format}; {} cannot be opened", count(found.unopened, "connection")),
            "`obo vault status --verify` says which; restore a backup, or have their people connect again",
        ),
        Ok(found) if found.need_consent > 0 => Check::warn(
            "vault",
            format!(
                "{format}; {}, and {} more to connect again",
                count(found.usable, "connection"),
                found.need_consent
            ),
            "their people are given a link with their next call",
        ),
        Ok(found) => Check::ok("vault", format!("{format}; {}", count(found.usable, "connection"))),
        Err(failure) => Check::error("vault", super::Exit::from(failure).text()),
    });
    let refreshing = store.living(Table::Refreshing);
    if refreshing > 0 {
        let found = format!("under way, or cut off: {}", count(refreshing, "token refresh request"));
        checks.push(Check::warn("refreshes", found, "keep an `obo serve` or `obo stdio` running: it takes them up"));
    }
    checks.push(audit(app, store).await);
}

async fn audit(app: &App, store: &Examined) -> Check {
    if store.log > MAX_AUDIT_RECORDS {
        return Check::ok("audit", format!("{} records, not gone through; `obo audit verify` does", store.log));
    }
    match app.audit.verify().await {
        Ok(report) => match report.problems.first() {
            None => Check::ok("audit", format!("{}, whole", count(report.records, "record"))),
            Some(first) => Check::fail(
                "audit",
                format!("record {} of {}: {}", first.seq, first.writer, first.what),
                "`obo audit verify` says all; find out who wrote to the store",
            ),
        },
        Err(error) => Check::error("audit", error),
    }
}
