//! The configuration, and the folder of the vault.

use std::path::{Path, PathBuf};

use super::{Check, Configured, Global, readable_by_others};
use crate::config::default_config_file;

/// Free space below which the disk is said to be nearly full, in bytes.
const LITTLE_SPACE: u64 = 512 * 1024 * 1024;

/// Reads obo.toml. Where only the vault's key is missing the rest can still be looked at.
pub(super) fn configuration(global: &Global, checks: &mut Vec<Check>) -> Configured {
    const NAME: &str = "configuration";
    let file = global.config.clone().unwrap_or_else(default_config_file);
    let config = match global.config() {
        Ok(config) => {
            checks.push(match file.exists() {
                true => Check::ok(NAME, file.display().to_string()),
                false => Check::warn(
                    NAME,
                    format!("there is no {} yet, so no provider has a client", file.display()),
                    "run `obo init`",
                ),
            });
            Configured { config: Some(config), has_key: true }
        }
        Err(exit) => {
            checks.push(Check::error(NAME, exit.text()));
            Configured { config: global.config_without_key().ok(), has_key: false }
        }
    };
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let table: toml::Table = toml::from_str(&text).unwrap_or_default();
    let folder = std::path::absolute(&file).ok().and_then(|file| file.parent().map(Path::to_owned)).unwrap_or_default();
    let mut secrets = Secrets::default();
    secrets.look(&toml::Value::Table(table), "");
    if secrets.written_out
        && let Some(mode) = readable_by_others(&file)
    {
        let found = format!("{} holds a secret, and other users can read it (mode {mode:o})", file.display());
        checks.push(Check::warn("secrets", found, format!("run `chmod 600 {}`", file.display())));
    }
    for path in secrets.files {
        let path = folder.join(path);
        if let Some(mode) = readable_by_others(&path) {
            let found = format!("other users can read {} (mode {mode:o})", path.display());
            checks.push(Check::warn("secrets", found, format!("run `chmod 600 {}`", path.display())));
        }
    }
    config
}

/// Where the secrets of obo.toml are.
#[derive(Default)]
struct Secrets {
    /// One stands in the file itself.
    written_out: bool,
    files: Vec<PathBuf>,
}

impl Secrets {
    fn look(&mut self, value: &toml::Value, key: &str) {
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(key, value)| self.look(value, key)),
            toml::Value::Array(items) => items.iter().for_each(|item| self.look(item, key)),
            toml::Value::String(text) if key == "client_secret" || key == "url" => match text.strip_prefix("file:") {
                Some(path) => self.files.push(path.into()),
                // A database's address holds a password; other addresses of that name do not.
                None => self.written_out |= !text.starts_with("env:") && (key != "url" || text.contains('@')),
            },
            _ => {}
        }
    }
}

/// Looks at the data folder without making it.
pub(super) fn data_folder(global: &Global, checks: &mut Vec<Check>) -> Option<PathBuf> {
    const NAME: &str = "data folder";
    let data_dir = match global.data_dir() {
        Ok(data_dir) => data_dir,
        Err(exit) => {
            checks.push(Check::error(NAME, exit.text()));
            return None;
        }
    };
    let shown = data_dir.display();
    // The folder itself, not where a link leads: obo refuses a link.
    let Ok(about) = data_dir.symlink_metadata() else {
        checks.push(Check::ok(NAME, format!("{shown} is made when it is first needed")));
        return Some(data_dir);
    };
    if !about.is_dir() {
        let found = format!("{shown} is not a folder");
        checks.push(Check::fail(NAME, found, "move it away, or name another data folder with --data-dir"));
        return None;
    }
    if let Some(mode) = readable_by_others(&data_dir) {
        let found = format!("{shown} can be reached by other users (mode {mode:o})");
        checks.push(Check::fail(NAME, found, format!("run `chmod 700 {shown}`")));
        return None;
    }
    checks.push(match free_space(&data_dir) {
        Some(free) if free < LITTLE_SPACE => {
            let found = format!("{shown}: the disk has {} MiB left", free >> 20);
            Check::warn(NAME, found, "make room, or name a folder on another disk with --data-dir")
        }
        Some(free) => Check::ok(NAME, format!("{shown}, {} GiB free", free >> 30)),
        None => Check::ok(NAME, shown.to_string()),
    });
    Some(data_dir)
}

fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(folder).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}
