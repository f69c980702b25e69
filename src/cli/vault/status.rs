//! `obo vault status`.

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use crate::app::Way;
use crate::cli::{Exit, Global, output};
use crate::keys::{Facts, History, KeyError};
use crate::store::keyring::Held;
use crate::store::{Examined, Place, Table};
use crate::upkeep::{Connections, Verified};

/// How often the progress of a long check is said, in records.
const SAY_EVERY: u64 = 10_000;

#[derive(Args)]
pub(in crate::cli) struct Status {
    /// Open every record, and say how many do not open
    #[arg(long)]
    verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything that can be said; what needs the key only where it opens.
struct Found {
    store: Examined,
    key: Facts,
    opens: Result<Inside, KeyError>,
}

/// What is known once the key has opened the vault.
struct Inside {
    connections: Connections,
    history: History,
    verified: Option<Verified>,
    /// Where the secrets of connections are, where that is not the file.
    held: Option<Held>,
}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let app = global.open(global.config()?, Way::Command)?;
        let store = app.store.examine(app.clock.now()).await.map_err(Exit::failed)?;
        if !store.problems.is_empty() {
            // Whatever else would be said comes from a file that is not what was written.
            if self.json {
                output::json(&json!({ "file": store.place.to_string(), "integrity": store.problems }))?;
            } else {
                store.problems.iter().try_for_each(output::line)?;
            }
            let place = store.place;
            return Err(Exit::failed(format!("{place} is damaged; restore a backup with `obo vault restore`")));
        }
        let Some(key) = app.keys.facts().await? else {
            if self.json {
                return output::json(&json!(null));
            }
            eprintln!("There is no vault here yet; it is made when it is first needed.");
            return Ok(());
        };
        let opens = match app.keys.open().await {
            Ok(keys) => Ok(Inside {
                connections: app.upkeep.connections().await?,
                history: keys.history().await?,
                verified: match self.verify {
                    true => Some(app.upkeep.verify(&mut say).await?),
                    false => None,
                },
                held: match global.keyring_store(&app.config)? {
                    Some(store) => Some(store.held().await.map_err(Exit::failed)?),
                    None => None,
                },
            }),
            Err(error) => Err(error),
        };
        let found = Found { store, key, opens };
        if self.json {
            output::json(&found.json())?
        } else {
            found.print()?
        }
        match found.opens {
            Err(error) => Err(error.into()),
            Ok(Inside { verified: Some(verified), .. }) if !verified.is_whole() => Err(Exit::quiet(1)),
            Ok(_) => Ok(()),
        }
    }
}

fn say(records: u64) {
    if records.is_multiple_of(SAY_EVERY) {
        eprintln!("{records} records were opened");
    }
}

impl Found {
    fn print(&self) -> Result<(), Exit> {
        let opens = if self.opens.is_ok() { "opens the vault" } else { "does not open the vault" };
        let line = |name: &str, text: String| output::line(format!("{name:<15}{text}"));
        line("vault", format!("{} in {}", self.key.vault, self.store.place))?;
        line("format", format!("{} {}, keys {}", self.kind(), self.store.format, self.key.format))?;
        line("key", format!("{}, id {}; {opens}", self.key.source.as_str(), self.key.key_id))?;
        match &self.opens {
            Ok(Inside { connections, held, .. }) => {
                let mut text = format!("{} usable, {} to connect again", connections.usable, connections.need_consent);
                if connections.unopened > 0 {
                    text.push_str(&format!(", {} that do not open", connections.unopened));
                }
                line("connections", text)?;
                if let Some(Held { in_keyring, in_file, lost }) = held {
                    let text = format!("{in_keyring} in the OS keyring, {in_file} in the file, {lost} lost");
                    line("their secrets", text)?;
                }
            }
            Err(_) => line("connections", self.store.living(Table::Grant).to_string())?,
        }
        for (name, table) in OTHERS {
            line(name, self.store.living(*table).to_string())?;
        }
        line("audit", format!("{} records", self.store.log))?;
        line("size", size(self.store.bytes))?;
        if let Place::File(_) = self.store.place {
            line("integrity", "ok".to_owned())?;
        }
        if let Ok(inside) = &self.opens {
            line("key changed", time(inside.history.key_changed_at))?;
            line("last backup", time(inside.history.backed_up_at))?;
            if let Some(at) = inside.history.restored_at {
                line("restored", time(Some(at)))?;
            }
            line("recovery copy", time(inside.history.recovery_exported_at))?;
            if let Some(verified) = &inside.verified {
                line("opened", format!("{} records", verified.opened))?;
                for (what, count) in &verified.failed {
                    line("do not open", format!("{count} {what}"))?;
                }
                for (what, count) in &verified.unnamed {
                    line("not opened", format!("{count} {what}: nothing says whose they are"))?;
                }
            }
        }
        Ok(())
    }

    /// What the vault is kept in.
    fn kind(&self) -> &'static str {
        match self.store.place {
            Place::File(_) => "file",
            Place::Database(_) => "database",
        }
    }

    fn json(&self) -> serde_json::Value {
        let inside = self.opens.as_ref().ok();
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        json!({
            "vault": self.key.vault,
            (self.kind()): self.store.place.to_string(),
            (format!("{}_format", self.kind())): self.store.format,
            "key_format": self.key.format,
            "key_source": self.key.source.as_str(),
            "key_id": self.key.key_id,
            "key_opens": inside.is_some(),
            "connections": {
                "all": self.store.living(Table::Grant),
                "usable": inside.map(|inside| inside.connections.usable),
                "need_consent": inside.map(|inside| inside.connections.need_consent),
                "unopened": inside.map(|inside| inside.connections.unopened),
            },
            "secrets": inside.and_then(|inside| inside.held).map(|held| json!({
                "in_keyring": held.in_keyring,
                "in_file": held.in_file,
                "lost": held.lost,
            })),
            "tokens": self.store.living(Table::Token),
            "clients": self.store.living(Table::ClientSession),
            "applications": self.store.living(Table::Application),
            "flows": self.store.living(Table::Flow),
            "audit_records": self.store.log,
            "bytes": self.store.bytes,
            "integrity": if let Place::File(_) = self.store.place { json!("ok") } else { json!(null) },
            "key_changed_at": time(inside.and_then(|inside| inside.history.key_changed_at)),
            "data_keys_changed_at": time(inside.and_then(|inside| inside.history.data_keys_changed_at)),
            "backed_up_at": time(inside.and_then(|inside| inside.history.backed_up_at)),
            "restored_at": time(inside.and_then(|inside| inside.history.restored_at)),
            "recovery_exported_at": time(inside.and_then(|inside| inside.history.recovery_exported_at)),
            "verified": inside.and_then(|inside| inside.verified.as_ref()).map(|verified| json!({
                "opened": verified.opened,
                "failed": verified.failed,
                "unnamed": verified.unnamed,
            })),
        })
    }
}

/// What is counted beside connections.
const OTHERS: &[(&str, Table)] = &[
    ("tokens", Table::Token),
    ("clients", Table::ClientSession),
    ("applications", Table::Application),
    ("flows", Table::Flow),
];

fn time(time: Option<Timestamp>) -> String {
    time.map_or("never".to_owned(), |time| format!("{} UTC", time.strftime("%Y-%m-%d %H:%M")))
}

/// Bytes, to be read by people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: &[(u64, &str)] = &[(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}
