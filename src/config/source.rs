//! Where a configuration comes from: the file, the environment, and files and variables that hold secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Config, ConfigError};
use crate::schema::unknown_keys;
use crate::secret::Secret;

/// Largest file that a `file:PATH` secret may be, in bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;
/// The prefix of variables that are keys, when `__` stands in the rest.
const PREFIX: &str = "OBO_";

/// The variables of the process, or of a test.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The process's own. Variables that are not Unicode are left out, but for those that are keys.
    ///
    /// # Errors
    /// A key whose value is not Unicode.
    pub fn of_process() -> Result<Self, ConfigError> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => {
                    variables.insert(name, value);
                }
                Err(_) if is_key(&name) => {
                    return Err(ConfigError(format!("{name}: the value is not Unicode; write it anew")));
                }
                Err(_) => {}
            }
        }
        Ok(Self(variables))
    }

    /// The same with one variable set.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }

    /// One variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Variables that are keys: `OBO_SERVER__LISTEN` is `server.listen`. Others with the prefix are not looked at.
    fn keys(&self) -> impl Iterator<Item = (&str, Vec<String>, &str)> {
        self.0.iter().filter_map(|(name, value)| {
            let rest = name.strip_prefix(PREFIX).filter(|_| is_key(name))?;
            Some((name.as_str(), rest.to_lowercase().split("__").map(str::to_owned).collect(), value.as_str()))
        })
    }
}

fn is_key(name: &str) -> bool {
    name.starts_with(PREFIX) && name.contains("__")
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }
}

/// `obo.toml` in the user's configuration folder. Never the working folder, which may be a hostile checkout.
pub fn default_config_file() -> PathBuf {
    let folder = user_folder(variable("XDG_CONFIG_HOME"), ".config");
    folder.unwrap_or_else(|| PathBuf::from("/etc")).join("obo").join("obo.toml")
}

/// obo's folder among the user's data.
pub fn default_data_dir() -> Option<PathBuf> {
    user_folder(variable("XDG_DATA_HOME"), ".local/share").map(|data| data.join("obo"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// Where the user keeps files of one kind: by the XDG Base Directory Specification, and as the other systems have it.
fn user_folder(xdg: Option<PathBuf>, in_home: &str) -> Option<PathBuf> {
    let home = |folder: &str| std::env::home_dir().map(|home| home.join(folder));
    // A relative path is invalid by that specification, and would lead into the working folder.
    let absolute = |folder: &PathBuf| folder.is_absolute();
    if cfg!(windows) {
        variable("APPDATA").filter(absolute)
    } else if cfg!(target_os = "macos") {
        home("Library/Application Support").filter(absolute)
    } else {
        xdg.filter(absolute).or_else(|| home(in_home)).filter(absolute)
    }
}

/// Reads the text, lays the environment over it, resolves secrets.
pub(super) fn read(text: &str, name: &str, folder: &Path, environment: &Environment) -> Result<Config, ConfigError> {
    let schema = Config::schema();
    let table: toml::Table = toml::from_str(text).map_err(|e| in_one_line(name, text, &e))?;
    let mut value = serde_json::to_value(table).map_err(|e| ConfigError(format!("{name}: {e}")))?;
    if let Some(unknown) = unknown_keys(&schema, &value).first() {
        return Err(ConfigError(format!("{name}: {unknown}")));
    }
    let mut written_in = BTreeMap::new();
    for (variable, path, text) in environment.keys() {
        let mut only = Value::Object(Map::new());
        put(&mut only, &path, variable_value(&schema, &path, text))
            .map_err(|()| ConfigError(format!("{variable}: write it as OBO_SECTION__KEY")))?;
        if let Some(unknown) = unknown_keys(&schema, &only).first() {
            return Err(ConfigError(format!("{variable}: {unknown}")));
        }
        let place = at(&only, &path).cloned().unwrap_or_default();
        put(&mut value, &path, place)
            .map_err(|()| ConfigError(format!("{variable}: {} is not a table in {name}", path.join("."))))?;
        written_in.insert(path.join("."), variable);
    }
    resolve_secrets(&mut value, folder, environment)?;
    deserialise(value, |path| written_in.get(path).copied().unwrap_or(name))
}

/// A value from a variable: text where text is expected, else TOML.
fn variable_value(schema: &Value, path: &[String], text: &str) -> Value {
    if is_text(schema, path) {
        return Value::String(text.to_owned());
    }
    toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .and_then(|value| serde_json::to_value(value).ok())
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Whether the schema takes text at a path.
fn is_text(schema: &Value, path: &[String]) -> bool {
    let mut here = resolve(schema, schema);
    for key in path {
        let Some(next) = here.pointer(&format!("/properties/{key}")).or_else(|| here.get("additionalProperties"))
        else {
            return true;
        };
        here = resolve(schema, next);
    }
    let one = |kind: &Value| kind == "string";
    match here.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(one),
        Some(kind) => one(kind),
        // An enum, or one of several.
        None => here.get("enum").is_some() || here.get("oneOf").is_some(),
    }
}

/// Follows `$ref`, and the one alternative that is not null.
fn resolve<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..16 {
        let referred =
            schema.get("$ref").and_then(Value::as_str).and_then(|to| root.pointer(to.trim_start_matches('#')));
        let chosen = schema
            .get("anyOf")
            .and_then(Value::as_array)
            .and_then(|any| any.iter().find(|one| one.get("type").is_none_or(|kind| kind != "null")));
        match referred.or(chosen) {
            Some(next) => schema = next,
            None => break,
        }
    }
    schema
}

fn put(value: &mut Value, path: &[String], new: Value) -> Result<(), ()> {
    let Some((key, rest)) = path.split_first() else { return Err(()) };
    if key.is_empty() {
        return Err(());
    }
    let table = value.as_object_mut().ok_or(())?;
    if rest.is_empty() {
        table.insert(key.clone(), new);
        return Ok(());
    }
    put(table.entry(key.clone()).or_insert_with(|| Value::Object(Map::new())), rest, new)
}

fn at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// Puts in what `env:NAME` and `file:PATH` stand for, at the keys that are secrets.
fn resolve_secrets(value: &mut Value, folder: &Path, environment: &Environment) -> Result<(), ConfigError> {
    let resolve = |place: Option<&mut Value>, key: &str| -> Result<(), ConfigError> {
        let Some(Value::String(text)) = place else { return Ok(()) };
        *text = secret(text, key, folder, environment)?;
        Ok(())
    };
    resolve(value.pointer_mut("/vault/url"), "vault.url")?;
    if let Some(Value::Object(providers)) = value.get_mut("providers") {
        for (id, provider) in providers {
            resolve(provider.get_mut("client_secret"), &format!("providers.{id}.client_secret"))?;
        }
    }
    if let Some(Value::Array(issuers)) = value.pointer_mut("/identity/issuer") {
        for issuer in issuers {
            resolve(issuer.get_mut("client_secret"), "identity.issuer.client_secret")?;
        }
    }
    Ok(())
}

/// What a command was told of a secret, as obo.toml would say it: `env:NAME` or `file:PATH`, beginning at the working
/// folder. The secret itself is refused, because everybody on the machine can read a command line.
///
/// # Errors
/// The text names `key`, and never the secret.
pub fn secret_of(text: &str, key: &str) -> Result<Secret, ConfigError> {
    if !text.starts_with("env:") && !text.starts_with("file:") {
        return Err(ConfigError(format!(
            "{key}: write env:NAME or file:PATH, so that it does not stand on the command line"
        )));
    }
    secret(text, key, Path::new(""), &Environment::of_process()?).map(Secret::new)
}

fn secret(text: &str, key: &str, folder: &Path, environment: &Environment) -> Result<String, ConfigError> {
    if let Some(name) = text.strip_prefix("env:") {
        let found = environment.get(name).filter(|value| !value.is_empty());
        return found.map(str::to_owned).ok_or_else(|| {
            ConfigError(format!("{key}: the environment variable {name} is not set; set it, or write file:PATH"))
        });
    }
    if let Some(path) = text.strip_prefix("file:") {
        let path = folder.join(path);
        let unreadable = |e: String| ConfigError(format!("{key}: {} cannot be read: {e}", path.display()));
        let about = std::fs::metadata(&path).map_err(|e| unreadable(e.to_string()))?;
        if !about.is_file() {
            return Err(unreadable("it is not a file".to_owned()));
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            if about.permissions().mode() & 0o077 != 0 {
                tracing::warn!(key, path = %path.display(), "a secret can be read by others; run chmod 600 on its file");
            }
        }
        let size = about.len();
        if size > MAX_SECRET_BYTES {
            return Err(unreadable(format!("it has {size} bytes, more than a secret can have")));
        }
        let held = std::fs::read_to_string(&path).map_err(|e| unreadable(e.to_string()))?;
        return Ok(held.trim().to_owned());
    }
    Ok(text.to_owned())
}

/// `written_in` says where a key was written: the file, or a variable.
fn deserialise<'a, T: DeserializeOwned>(value: Value, written_in: impl Fn(&str) -> &'a str) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        // The inner text of an error can repeat the value it did not like; at a secret's key it is left out.
        let what = if path.contains("secret") || path == "vault.url" {
            "is not text".to_owned()
        } else {
            with_mend(e.inner().to_string())
        };
        ConfigError(format!("{}: {path}: {}", written_in(&path), what.replace('\n', " ")))
    })
}

/// Adds what to write, where the error of a library's type says only what is wrong.
fn with_mend(what: String) -> String {
    if what.contains("invalid socket address syntax") {
        return format!("{what}; write ADDRESS:PORT, such as 127.0.0.1:8787");
    }
    if what.contains("relative URL without a base") {
        return format!("{what}; write it whole, such as https://obo.example.com");
    }
    what
}

/// A syntax error with its line, and without the source text, which may hold a secret.
fn in_one_line(name: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
    ConfigError(format!("{name}: line {line}: {}", error.message().replace('\n', " ")))
}

#[cfg(all(test, unix, not(target_os = "macos")))]
mod tests {
    use super::*;

    #[test]
    fn no_variable_leads_into_the_working_folder() {
        let named = |path: &str| user_folder(Some(path.into()), ".config");
        assert_eq!(named("/srv/settings"), Some("/srv/settings".into()));
        let in_home = user_folder(None, ".config");
        for relative in ["", ".", "settings", "../settings"] {
            assert_eq!(named(relative), in_home, "{relative:?}");
        }
        assert!(in_home.is_none_or(|folder| folder.is_absolute() && folder.ends_with(".config")));
    }
}
