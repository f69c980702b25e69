//! `obo vault status`.

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use crate::app::Way;
use crate::cli::{Exit, Global, output};
use crate::keys::{Facts, History, KeyError};
use crate::store::Table;
use crate::store::sqlite::upkeep::{Examined, examine};
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
    file: Examined,
    key: Facts,
    opens: Result<Inside, KeyError>,
}

/// What is known once the key has opened the vault.
struct Inside {
    connections: Connections,
    history: History,
    verified: Option<Verified>,
}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let app = global.open(global.config()?, Way::Command)?;
        let file = examine(&global.data_dir()?, app.clock.now()).await.map_err(Exit::failed)?;
        if !file.problems.is_empty() {
            // Whatever else would be said comes from a file that is not what was written.
            if self.json {
                output::json(&json!({ "file": file.file, "integrity": file.problems }))?;
            } else {
                file.problems.iter().try_for_each(output::line)?;
            }
            let file = file.file.display();
            return Err(Exit::failed(format!("{file} is damaged; restore a backup with `obo vault restore`")));
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
            }),
            Err(error) => Err(error),
        };
        let found = Found { file, key, opens };
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
        line("vault", format!("{} in {}", self.key.vault, self.file.file.display()))?;
        line("format", format!("file {}, keys {}", self.file.format, self.key.format))?;
        line("key", format!("{}, id {}; {opens}", self.key.source.as_str(), self.key.key_id))?;
        match &self.opens {
            Ok(Inside { connections, .. }) => {
                let mut text = format!("{} usable, {} to connect again", connections.usable, connections.need_consent);
                if connections.unopened > 0 {
                    text.push_str(&format!(", {} that do not open", connections.unopened));
                }
                line("connections", text)?;
            }
            Err(_) => line("connections", self.file.living(Table::Grant).to_string())?,
        }
        for (name, table) in OTHERS {
            line(name, self.file.living(*table).to_string())?;
        }
        line("audit", format!("{} records", self.file.log))?;
        line("size", size(self.file.bytes))?;
        line("integrity", "ok".to_owned())?;
        if let Ok(inside) = &self.opens {
            line("key changed", time(inside.history.key_changed_at))?;
            line("last backup", time(inside.history.backed_up_at))?;
            if let Some(at) = inside.history.restored_at {
                line("restored", time(Some(at)))?;
            }
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

    fn json(&self) -> serde_json::Value {
        let inside = self.opens.as_ref().ok();
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        json!({
            "vault": self.key.vault,
            "file": self.file.file,
            "file_format": self.file.format,
            "key_format": self.key.format,
            "key_source": self.key.source.as_str(),
            "key_id": self.key.key_id,
            "key_opens": inside.is_some(),
            "connections": {
                "all": self.file.living(Table::Grant),
                "usable": inside.map(|inside| inside.connections.usable),
                "need_consent": inside.map(|inside| inside.connections.need_consent),
                "unopened": inside.map(|inside| inside.connections.unopened),
            },
            "tokens": self.file.living(Table::Token),
            "clients": self.file.living(Table::ClientSession),
            "applications": self.file.living(Table::Application),
            "flows": self.file.living(Table::Flow),
            "audit_records": self.file.log,
            "bytes": self.file.bytes,
            "integrity": "ok",
            "key_changed_at": time(inside.and_then(|inside| inside.history.key_changed_at)),
            "data_keys_changed_at": time(inside.and_then(|inside| inside.history.data_keys_changed_at)),
            "backed_up_at": time(inside.and_then(|inside| inside.history.backed_up_at)),
            "restored_at": time(inside.and_then(|inside| inside.history.restored_at)),
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
