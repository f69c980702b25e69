//! obo.toml: read whole, checked whole, before anything is opened.
//!
//! Each stage owns its section; here they are only put together, from the file and the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use crate::secret::Secret;
use crate::{audit, authorization_server, catalog, egress, identity, keys, policy, transport};

mod source;

pub use source::{Environment, default_config_file, default_data_dir, secret_of};

/// Everything obo.toml can say. Paths in it are relative to it.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(
    title = "obo.toml",
    description = "The configuration of obo. Every key has a default; an empty file is valid."
)]
pub struct Config {
    /// Where obo listens, and how it speaks to clients.
    pub server: transport::Config,
    /// Where people's tokens are kept.
    pub vault: VaultConfig,
    /// Who people are: identity providers and trusted applications.
    pub identity: identity::Config,
    /// Signing MCP clients in at obo itself.
    pub authorization_server: authorization_server::Config,
    /// The OAuth clients of providers, one table a provider.
    pub providers: BTreeMap<String, catalog::ProviderConfig>,
    /// Which tools are offered.
    pub tools: catalog::ToolsConfig,
    /// What people may do with them.
    pub policy: policy::Config,
    /// The audit.
    pub audit: audit::Config,
    /// Outbound connections.
    pub network: egress::Config,
}

/// `[vault]`: where people's tokens are kept.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VaultConfig {
    /// The kind of store. Default `file`.
    pub store: StoreName,
    /// The database, for `store = "postgres"`.
    #[schemars(with = "Option<String>")]
    pub url: Option<Secret>,
    /// The key that opens it.
    pub key: keys::Config,
}

/// The kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StoreName {
    /// SQLite, in the data folder.
    #[default]
    File,
    /// The sealed secrets of each connection in the OS keyring, the rest in SQLite.
    Keyring,
    /// PostgreSQL, for several replicas.
    Postgres,
}

/// A configuration that cannot be used: one line naming the key and the mend. The program ends with 64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A line for the operator.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Config {
    /// Reads the file, lays the environment over it, resolves secrets, and checks the whole.
    ///
    /// A `file` that was named must exist; the default one need not.
    ///
    /// # Errors
    /// [`ConfigError`], for the first thing that is wrong.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let (path, text) = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| {
                    ConfigError(format!("{} cannot be read: {e}; check --config or OBO_CONFIG", path.display()))
                })?;
                (path.to_owned(), text)
            }
            None => {
                let path = default_config_file();
                match std::fs::read_to_string(&path) {
                    Ok(text) => (path, text),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => (path, String::new()),
                    Err(e) => return Err(ConfigError(format!("{} cannot be read: {e}", path.display()))),
                }
            }
        };
        let folder = std::path::absolute(&path).ok().and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_default();
        Self::parse(&text, &path.display().to_string(), &folder, environment)
    }

    /// Reads a text as obo.toml. `name` is for messages; `folder` is what paths are relative to.
    ///
    /// # Errors
    /// [`ConfigError`], for the first thing that is wrong.
    pub fn parse(text: &str, name: &str, folder: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        let mut config: Self = source::read(text, name, folder, environment)?;
        config.anchor(folder);
        config.identity = config.identity.with_default_audience(&format!("{}/mcp", config.server.public_base()));
        config.check(name)?;
        Ok(config)
    }

    /// Makes paths absolute.
    fn anchor(&mut self, folder: &Path) {
        // By its components, so that "./tools" leaves no dot in messages.
        let anchor = |path: &mut PathBuf| *path = folder.join(&*path).components().collect();
        self.vault.key.path.as_mut().map(anchor);
        self.network.ca_file.as_mut().map(anchor);
        self.tools.dirs.iter_mut().for_each(anchor);
    }

    fn check(&self, name: &str) -> Result<(), ConfigError> {
        let wrong = |text: String| ConfigError(format!("{name}: {text}"));
        self.server.check().map_err(|e| wrong(e.to_string()))?;
        if self.server.metrics_listen.is_some() {
            return Err(wrong("server.metrics_listen: this version has no metrics yet; remove the key".to_owned()));
        }
        self.identity.check().map_err(wrong)?;
        self.vault.check().map_err(wrong)?;
        self.policy.check().map_err(wrong)?;
        Ok(())
    }

    /// The URLs that stand in the file: their hosts are reachable wherever they resolve.
    pub fn written_urls(&self) -> Vec<Url> {
        let mut urls = self.identity.urls();
        for provider in self.providers.values() {
            urls.extend(provider.origin.clone());
            urls.extend(provider.servers.values().cloned());
        }
        urls
    }

    /// The JSON Schema of obo.toml, for `schemas/config.schema.json`.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Config).to_value()
    }
}

impl VaultConfig {
    fn check(&self) -> Result<(), String> {
        match self.store {
            StoreName::File | StoreName::Keyring => {}
            StoreName::Postgres if self.url.is_none() => {
                return Err("vault.url is missing; name the database, such as \"env:OBO_DATABASE_URL\"".to_owned());
            }
            StoreName::Postgres => {}
        }
        let key = &self.key;
        match (key.source, &key.path) {
            (keys::SourceName::File, None) => {
                Err("vault.key.path is missing; name the file that holds the key, or choose another vault.key.source"
                    .to_owned())
            }
            (keys::SourceName::File, Some(path)) if !path.is_file() => Err(format!(
                "vault.key.path: {} is not a file that can be read; name the file that holds this vault's key, or for a new vault write 32 random bytes into it",
                path.display()
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let environment = Environment::from([("SECRET", "s3cret"), ("OBO_SERVER__LISTEN", "127.0.0.1:9999")]);
        Config::parse(text, "obo.toml", Path::new("/etc/obo"), &environment).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_valid_and_the_environment_lies_over_it() {
        let config = parse("").unwrap();
        assert_eq!(config.server.listen.port(), 9999);
    }

    #[test]
    fn secrets_come_from_the_environment() {
        let config = parse("[providers.google]\nclient_id = \"a\"\nclient_secret = \"env:SECRET\"").unwrap();
        let secret = config.providers["google"].client_secret.as_ref().unwrap();
        assert_eq!(secret.expose(), "s3cret");
        let missing = parse("[providers.google]\nclient_id = \"a\"\nclient_secret = \"env:NOPE\"").err().unwrap();
        assert!(missing.contains("providers.google.client_secret") && missing.contains("NOPE"), "{missing}");
    }

    #[test]
    fn an_issuer_without_an_audience_has_the_one_of_this_server() {
        let issuer = "[[identity.issuer]]\nname = \"corp\"\nissuer = \"https://idp.example.com\"\ntenant = \"acme\"\n";
        parse(issuer).unwrap();
        let same = parse(&format!("{issuer}client_id = \"http://127.0.0.1:9999/mcp\"")).err().unwrap();
        assert!(same.contains("client_id"), "{same}");
    }

    #[test]
    fn a_wrong_value_is_said_to_stand_where_it_was_written() {
        let environment = Environment::from([("OBO_SERVER__LISTEN", "here")]);
        let wrong =
            |text| Config::parse(text, "obo.toml", Path::new("/etc/obo"), &environment).err().unwrap().to_string();
        assert_eq!(
            wrong(""),
            "OBO_SERVER__LISTEN: server.listen: invalid socket address syntax; write ADDRESS:PORT, such as 127.0.0.1:8787"
        );
        assert_eq!(
            wrong("[server]\nlisten = \"127.0.0.1:1\"\nconsent_wait = 5\n"),
            "obo.toml: server.consent_wait: invalid type: integer `5`, expected a string"
        );
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse("[tools]\ndirs = [\"./tools\"]").unwrap();
        assert_eq!(config.tools.dirs, [Path::new("/etc/obo/./tools")]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_mend() {
        for (text, says) in [
            ("[server]\nlisten = \"0.0.0.0:80\"\n", "public_url"),
            ("[sever]\n", "did you mean \"server\"?"),
            ("[providers.google]\nclientid = \"a\"\n", "did you mean \"client_id\"?"),
            ("[vault.key]\nsource = \"file\"\n", "vault.key.path is missing"),
            ("[vault]\nstore = \"postgres\"\n", "vault.url is missing"),
            ("[server]\nconsent_wait = \"2m\"\n", "too long"),
            ("x = [", "obo.toml"),
        ] {
            let error = Config::parse(text, "obo.toml", Path::new("/etc/obo"), &Environment::default())
                .err()
                .unwrap_or_else(|| panic!("{text}"))
                .to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
