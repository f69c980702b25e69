//! The command line. stdout belongs to a command's result; everything else goes to stderr.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, Parser, Subcommand};

use crate::app::{App, OpenError, Settings, Way};
use crate::clock::SystemClock;
use crate::config::{Config, ConfigError, Environment, StoreName, default_data_dir};
use crate::failure::{Code, Failure};
use crate::id::{Person, Source, TenantId, UserId};
use crate::identity::os_user_name;
use crate::keys::KeyError;
use crate::os_keyring::Keyring;
use crate::store::Store;
use crate::store::keyring::KeyringStore;

mod app;
mod audit;
mod call;
mod connect;
mod connections;
mod doctor;
mod duration;
mod init;
mod install;
mod logs;
mod output;
mod passphrase;
mod providers;
mod serve;
mod stdio;
mod token;
mod tools;
mod vault;

use logs::LogFormat;

/// The heading of the options that every command has, so that they do not stand between a command's own.
const GLOBAL: &str = "Global options";

/// On behalf of: tools that act as the person who asked, never as a shared account.
#[derive(Parser)]
#[command(
    name = "obo",
    version,
    max_term_width = 110,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 connect an account first, 4 denied by policy, 64 bad configuration."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// The configuration file [default: $OBO_CONFIG, else obo.toml in the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE", env = "OBO_CONFIG", hide_env = true, help_heading = GLOBAL)]
    config: Option<PathBuf>,
    /// Where the vault is kept [default: $OBO_DATA_DIR, else obo in the user's data folder]
    #[arg(long, global = true, value_name = "DIR", env = "OBO_DATA_DIR", hide_env = true, help_heading = GLOBAL)]
    data_dir: Option<PathBuf>,
    /// How logs are written to stderr; RUST_LOG sets the level
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "text|json",
        default_value_t = LogFormat::Text,
        hide_possible_values = true,
        help_heading = GLOBAL
    )]
    log: LogFormat,
    /// What is to be closed when the command has ended.
    #[arg(skip)]
    stores: Arc<Mutex<Vec<Arc<dyn Store>>>>,
}

#[derive(Subcommand)]
enum Command {
    /// MCP over stdin and stdout, for a client that launches obo
    Stdio(stdio::Stdio),
    /// MCP over HTTP for many people, and the consent pages
    Serve(serve::Serve),
    /// Connect an account of a provider
    Connect(connect::Connect),
    /// List connected accounts
    Connections(connections::Connections),
    /// Revoke a connection, at the provider too
    Disconnect(connections::Disconnect),
    /// Call one tool, through the same path as a client's call
    Call(call::Call),
    /// List the tools that are offered, or show one
    #[command(subcommand)]
    Tools(tools::Tools),
    /// The providers, and the redirect URI to register at each
    #[command(subcommand)]
    Providers(providers::Providers),
    /// Access tokens issued by obo, for machines without an identity provider
    #[command(subcommand)]
    Token(token::Token),
    /// Keys for trusted applications, which name the user themselves
    #[command(subcommand)]
    App(app::Applications),
    /// Who did what
    #[command(subcommand)]
    Audit(audit::Audit),
    /// The vault as a whole: its keys, and whether it is sound
    #[command(subcommand)]
    Vault(vault::Vault),
    /// Write a starter configuration
    Init(init::Init),
    /// Tell a client about obo, keeping everything else that its configuration says
    Install(install::Install),
    /// Say what is wrong, and how to mend it
    Doctor(doctor::Doctor),
}

/// Whom a command acts for.
#[derive(Args, Clone)]
struct Who {
    /// The user [default: the operating system's user]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The tenant
    #[arg(long, value_name = "TENANT", default_value = "default")]
    tenant: String,
}

/// Whom a command looks at: people of other sources too.
#[derive(Args, Clone)]
struct AnyWho {
    #[command(flatten)]
    who: Who,
    /// Who vouches for the user: obo, an issuer's name, or app:NAME
    #[arg(long, value_name = "NAME", default_value = "obo")]
    source: String,
}

impl Who {
    fn person(&self) -> Result<Person, Exit> {
        let user: UserId = match &self.user {
            Some(user) => user.parse().map_err(Exit::usage)?,
            None => os_user_name().map_err(Exit::usage)?,
        };
        let tenant: TenantId = self.tenant.parse().map_err(Exit::usage)?;
        Ok(Person { tenant, source: Source::obo(), user })
    }
}

impl AnyWho {
    fn person(&self) -> Result<Person, Exit> {
        let source: Source = self.source.parse().map_err(Exit::usage)?;
        Ok(Person { source, ..self.who.person()? })
    }
}

/// How a command ended when it is not done.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    text: String,
}

impl Exit {
    fn failed(text: impl std::fmt::Display) -> Self {
        Self { code: 1, text: text.to_string() }
    }

    fn usage(text: impl std::fmt::Display) -> Self {
        Self { code: 2, text: text.to_string() }
    }

    /// The result is on stdout already; only the code is left to say.
    fn quiet(code: u8) -> Self {
        Self { code, text: String::new() }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// What stderr says; empty when everything is said.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<ConfigError> for Exit {
    fn from(error: ConfigError) -> Self {
        Self { code: 64, text: error.to_string() }
    }
}

impl From<OpenError> for Exit {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Config(error) => error.into(),
            OpenError::Store(error) => Self::failed(error),
        }
    }
}

impl From<KeyError> for Exit {
    /// A key that is missing or wrong is mended in obo.toml, or where obo.toml says that the key is.
    fn from(error: KeyError) -> Self {
        Self { code: 64, text: format!("vault.key: {error}") }
    }
}

impl From<Failure> for Exit {
    /// Whoever runs the command is the operator: they read the cause too.
    fn from(failure: Failure) -> Self {
        let code = match failure.code {
            Code::AuthorizationRequired => 3,
            Code::Denied => 4,
            _ => 1,
        };
        let text = match (failure.code, failure.cause) {
            // The cause explains itself; the message is for somebody who cannot see it.
            (Code::VaultUnavailable, Some(cause)) => cause,
            (_, Some(cause)) => format!("{} ({cause})", failure.message),
            (_, None) => failure.message,
        };
        Self { code, text }
    }
}

impl Global {
    fn config(&self) -> Result<Config, Exit> {
        Ok(Config::load(self.config.as_deref(), &Environment::of_process()?)?)
    }

    fn config_with(&self, variable: &str, value: &str) -> Result<Config, Exit> {
        let environment = Environment::of_process()?.with(variable, value);
        Ok(Config::load(self.config.as_deref(), &environment)?)
    }

    /// For what needs no key. A key file that is lost is what a recovery copy is there for, and no reason to stop.
    fn config_without_key(&self) -> Result<Config, Exit> {
        self.config().or_else(|exit| self.config_with("OBO_VAULT__KEY__SOURCE", "env").map_err(|_| exit))
    }

    fn data_dir(&self) -> Result<PathBuf, Exit> {
        self.data_dir.clone().or_else(default_data_dir).ok_or_else(|| {
            ConfigError::new(
                "there is no user's data folder here; say where the vault is with --data-dir or OBO_DATA_DIR",
            )
            .into()
        })
    }

    /// Puts the parts together, and opens the vault's key.
    async fn unlock(&self, config: Config, way: Way) -> Result<App, Exit> {
        let app = self.open(config, way)?;
        app.keys.open().await?;
        Ok(app)
    }

    fn open(&self, config: Config, way: Way) -> Result<App, Exit> {
        self.open_in(self.data_dir()?, config, way)
    }

    /// What only a store in the keyring can say or do.
    fn keyring_store(&self, config: &Config) -> Result<Option<KeyringStore>, Exit> {
        if config.vault.store != StoreName::Keyring {
            return Ok(None);
        }
        let keyring = Keyring::of_platform(passphrase::prompt().is_some());
        Ok(Some(KeyringStore::open(&self.data_dir()?, keyring).map_err(Exit::failed)?))
    }

    /// The same in another data folder.
    fn open_in(&self, data_dir: PathBuf, config: Config, way: Way) -> Result<App, Exit> {
        self.opened(App::open(settings(data_dir, config, way))?)
    }

    /// The same over a store that is open.
    fn open_over(&self, store: Arc<dyn Store>, config: Config, way: Way) -> Result<App, Exit> {
        self.opened(App::over(settings(self.data_dir()?, config, way), store)?)
    }

    fn opened(&self, app: App) -> Result<App, Exit> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).extend(app.store.to_close());
        Ok(app)
    }

    async fn close(&self) {
        let stores = std::mem::take(&mut *self.stores.lock().unwrap_or_else(PoisonError::into_inner));
        for store in stores {
            store.close().await;
        }
    }
}

fn settings(data_dir: PathBuf, config: Config, way: Way) -> Settings {
    Settings { config, data_dir, clock: Arc::new(SystemClock), way, prompt: passphrase::prompt() }
}

impl Cli {
    /// Starts the logs as this command has them. A server tells what it does; a command that ends says itself how it
    /// ended, and a log line beside that would say it twice.
    pub fn start_logs(&self) {
        let level = match self.command {
            Command::Stdio(_) | Command::Serve(_) => "info",
            // What would be logged is what it says itself.
            Command::Doctor(_) => "off",
            _ => "warn,obo::call=off",
        };
        logs::start(self.global.log, level);
    }

    /// Runs the command.
    ///
    /// # Errors
    /// How it ended.
    pub async fn run(self) -> Result<(), Exit> {
        let global = &self.global;
        let result = self.command.run(global).await;
        global.close().await;
        result
    }
}

impl Command {
    async fn run(self, global: &Global) -> Result<(), Exit> {
        match self {
            Command::Stdio(command) => command.run(global).await,
            Command::Serve(command) => command.run(global).await,
            Command::Connect(command) => command.run(global).await,
            Command::Connections(command) => command.run(global).await,
            Command::Disconnect(command) => command.run(global).await,
            Command::Call(command) => command.run(global).await,
            Command::Tools(command) => command.run(global).await,
            Command::Providers(command) => command.run(global),
            Command::Token(command) => command.run(global).await,
            Command::App(command) => command.run(global).await,
            Command::Audit(command) => command.run(global).await,
            Command::Vault(command) => command.run(global).await,
            Command::Init(command) => command.run(global).await,
            Command::Install(command) => command.run(global),
            Command::Doctor(command) => command.run(global).await,
        }
    }
}

/// The actor of commands: whoever types them.
fn actor() -> String {
    format!("cli:{}", os_user_name().map_or_else(|_| "unknown".to_owned(), |user| user.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_help() {
        let exit = |code| Exit::from(Failure::new(code, "x")).code();
        assert_eq!(exit(Code::Denied), 4);
        assert_eq!(exit(Code::AuthorizationRequired), 3);
        assert_eq!(exit(Code::ProviderError), 1);
        assert_eq!(Exit::from(ConfigError::new("x")).code(), 64);
        assert_eq!(Exit::from(KeyError::Unusable("x".to_owned())).code(), 64);
    }
}
