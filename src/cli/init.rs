//! `obo init`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use clap::Args;

use super::{Exit, Global, output};
use crate::config::default_config_file;
use crate::keys::{self, Keys, SourceName};
use crate::secret::random;

#[derive(Args)]
pub(super) struct Init {
    /// Where the vault's key is kept [default: the OS keyring if it works, else a file]
    #[arg(long, value_name = "SOURCE", value_enum)]
    key: Option<KeyChoice>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum KeyChoice {
    Keyring,
    Passphrase,
    File,
    Env,
}

impl Init {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let path = global.config.clone().unwrap_or_else(default_config_file);
        if path.exists() {
            return Err(Exit::failed(format!(
                "{} exists already and is left as it is; edit it, or remove it first",
                path.display()
            )));
        }
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        std::fs::create_dir_all(&folder)
            .map_err(|e| Exit::failed(format!("{} cannot be made: {e}", folder.display())))?;

        let source = match self.key {
            Some(KeyChoice::Keyring) => SourceName::Keyring,
            Some(KeyChoice::Passphrase) => SourceName::Passphrase,
            Some(KeyChoice::File) => SourceName::File,
            Some(KeyChoice::Env) => SourceName::Env,
            None => match Keys::probe(&keys::Config::default()).await {
                Ok(()) => SourceName::Keyring,
                Err(error) => {
                    tracing::debug!(%error, "the keyring was probed");
                    eprintln!("The OS keyring does not work here, so the vault's key is kept in a file.");
                    SourceName::File
                }
            },
        };
        let key_line = match source {
            SourceName::Keyring => "source = \"keyring\"".to_owned(),
            SourceName::Passphrase => {
                "source = \"passphrase\"      # asked for on a terminal, else read from OBO_VAULT_PASSPHRASE".to_owned()
            }
            SourceName::Env => {
                eprintln!(
                    "Set OBO_VAULT_KEY to 32 random bytes in base64 (`openssl rand -base64 32`) wherever obo runs, and keep them: without them the vault cannot be opened."
                );
                "source = \"env\"\nenv = \"OBO_VAULT_KEY\"         # 32 bytes in base64".to_owned()
            }
            SourceName::File => {
                let key = folder.join("vault.key");
                if key.exists() {
                    eprintln!("{} exists already and is used as it is.", key.display());
                } else {
                    write_private(&key, base64::engine::general_purpose::STANDARD.encode(random::<32>()).as_bytes())?;
                    eprintln!(
                        "Wrote {}. Whoever has it and the data folder can open the vault; a lost one cannot be replaced.",
                        key.display()
                    );
                }
                "source = \"file\"\npath = \"vault.key\"".to_owned()
            }
        };
        write_private(&path, starter(&key_line).as_bytes())?;
        output::line(format!("Wrote {}", path.display()))?;
        eprintln!(
            "Next: `obo providers list` shows the redirect URI to register at each provider; write its client into the file."
        );
        Ok(())
    }
}

/// The starter configuration. A test reads it as obo reads it.
fn starter(key: &str) -> String {
    format!(
        r#"# obo: on behalf of. Every key has a default; docs/config.md lists them all.
# Secrets may be written "env:NAME" or "file:PATH".

[vault.key]
{key}

# One table a provider. Register an OAuth client there first, with the redirect URI that `obo providers list` shows.
# [providers.google]
# client_id = "…apps.googleusercontent.com"
# client_secret = "file:google.secret"

# [providers.slack]
# client_id = "…"
# client_secret = "file:slack.secret"

# Without this, every tool whose provider has a client is offered.
# [tools]
# enable = ["Google.*", "GoogleCalendar.*", "Obo.*"]

# For `obo serve`: where it listens, and the https address that people use.
# [server]
# listen = "127.0.0.1:8787"
# public_url = "https://obo.example.com"
"#
    )
}

/// Writes a new file that only its owner can read.
fn write_private(path: &Path, text: &[u8]) -> Result<(), Exit> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let wrong = |e: std::io::Error| Exit::failed(format!("{} cannot be written: {e}", path.display()));
    let mut file = options.open(path).map_err(wrong)?;
    file.write_all(text).and_then(|()| file.sync_all()).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn the_starter_is_valid_and_so_is_what_it_comments_out() {
        let text = starter("source = \"passphrase\"");
        let folder = tempfile::tempdir().unwrap();
        for name in ["google.secret", "slack.secret"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        // Nothing set: what a client sets for the obo it launches is not there for obo in a shell.
        let environment = Environment::default();
        Config::parse(&text, "obo.toml", folder.path(), &environment).unwrap();
        let uncommented: String = text
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|l| l.starts_with('[') || l.contains(" = ")).unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n");
        let config = Config::parse(&uncommented, "obo.toml", folder.path(), &environment).unwrap();
        assert_eq!(config.providers.len(), 2);
        assert_eq!(config.tools.enable.as_deref().unwrap_or_default().len(), 3);
    }
}
