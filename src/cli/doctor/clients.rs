//! The MCP clients of this machine.

use std::path::Path;

use serde_json::Value;

use super::Check;
use crate::cli::install::DEFAULT_NAME;
use crate::cli::install::client::{Client, Machine};
use crate::cli::install::document::Document;
use crate::cli::install::file::Found;

pub(super) fn checks(checks: &mut Vec<Check>) {
    let machine = Machine::here();
    let mut missing = Vec::new();
    for client in Client::ALL {
        let Some(place) = machine.place(client) else { continue };
        if !place.is_used() {
            missing.push(client.name());
            continue;
        }
        checks.push(one(client, &place.file));
    }
    if !missing.is_empty() {
        checks.push(Check::ok("client", format!("not on this machine: {}", missing.join(", "))));
    }
}

fn one(client: Client, file: &Path) -> Check {
    let (name, install) = (client.name(), format!("`obo install {}`", client.argument()));
    let found = match Found::read(file) {
        Ok(found) => found,
        Err(error) => return Check::fail("client", format!("{name}: {error}"), "it reads none of its servers"),
    };
    let document = Document::parse(&found.text, client.section());
    let entry = match document.and_then(|document| document.entry(DEFAULT_NAME)) {
        Ok(entry) => entry,
        Err(error) => {
            let found = format!("{name}: {}: {error}", file.display());
            return Check::fail("client", found, "correct the file: the client reads none of its servers");
        }
    };
    let Some(entry) = entry else {
        return Check::ok("client", format!("{name}: obo is not in it; {install} adds it"));
    };
    if entry.get("url").is_some() {
        return Check::ok("client", format!("{name}: speaks to an obo serve"));
    }
    let again = format!("run `obo install {} --force`", client.argument());
    let Some(command) = entry.get("command").and_then(Value::as_str) else {
        return Check::fail("client", format!("{name}: the entry {DEFAULT_NAME:?} launches nothing"), again);
    };
    let path = Path::new(command);
    if !path.is_absolute() {
        // Which program that is depends on the PATH that the client has.
        let found = format!("{name}: launches {command:?}, wherever its own PATH leads");
        return Check::warn("client", found, again);
    }
    let this = std::env::current_exe().and_then(std::fs::canonicalize);
    match (std::fs::canonicalize(path), this) {
        (Err(_), _) => Check::fail("client", format!("{name}: launches {command}, which is not there"), again),
        (Ok(there), Ok(this)) if there != this => {
            Check::warn("client", format!("{name}: launches {command}, which is not this obo"), again)
        }
        _ => Check::ok("client", format!("{name}: launches this obo")),
    }
}
