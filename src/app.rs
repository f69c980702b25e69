//! All parts put together, for one data folder and one configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::audit::{Audit, Event, Kind, Phase};
use crate::authorization_server::{self, AuthorizationServer};
use crate::call::{Obo, Stages};
use crate::catalog::{Catalog, Level, Live, Problem, ProviderConfig};
use crate::clock::SharedClock;
use crate::config::{Config, ConfigError, StoreName};
use crate::consent::{self, Consent, Door, Listener};
use crate::egress::{Egress, is_loopback};
use crate::executor::Executor;
use crate::id::ProviderId;
use crate::identity::Identity;
use crate::keys::Keys;
use crate::oauth::Oauth;
use crate::os_keyring::Keyring;
use crate::policy::Policy;
use crate::store::keyring::KeyringStore;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError, Table};
use crate::transport::loopback::{Loopback, Owner, Proof, Site, owner_route, shared_address};
use crate::transport::{http, oauth, pages, rest};
use crate::upkeep::Upkeep;
use crate::vault::{self, Journal, Vault};

mod reload;

/// How this process is used: who serves the consent pages, and for whom flows are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `obo serve`.
    Serve,
    /// stdio, and `obo connect`: for the machine's own user, serving the shared loopback port when it is free.
    Local,
    /// Other commands: for the machine's own user, serving nothing.
    Command,
}

/// What an app is made from.
pub struct Settings {
    /// obo.toml.
    pub config: Config,
    /// Where the vault is.
    pub data_dir: PathBuf,
    /// The time.
    pub clock: SharedClock,
    /// How it is used.
    pub way: Way,
    /// Asks for the vault's passphrase on a terminal.
    pub prompt: Option<crate::keys::Prompt>,
}

/// Why the parts do not go together.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Every part. Nothing secret is opened yet.
pub struct App {
    /// obo.toml.
    pub config: Config,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The keys, opened on first need.
    pub keys: Keys,
    /// Tools and providers, as they were at the start.
    pub catalog: Arc<Catalog>,
    /// Tools and providers, as they are.
    pub live: Live,
    /// The audit.
    pub audit: Audit,
    /// The time.
    pub clock: SharedClock,
    /// The vault.
    pub vault: Vault,
    /// The stages of a call.
    pub obo: Obo,
    /// The shared loopback port, where this way uses it.
    pub loopback: Option<Arc<Loopback>>,
    /// The vault as a whole, for the operator.
    pub upkeep: Upkeep,
    /// What proves the ownership of the shared port.
    pub proof: Proof,
    /// obo's own authorization server, where it is on.
    pub clients: Option<AuthorizationServer>,
}

/// What needs no store.
struct Prepared {
    egress: Egress,
    catalog: Arc<Catalog>,
    loopback_base: Url,
    shared: SocketAddr,
}

impl Prepared {
    fn of(settings: &Settings) -> Result<Self, OpenError> {
        let Settings { config, way, .. } = settings;
        let loopback_base = loopback_base(config)?;
        let shared = shared_address(config.server.listen);
        let mut written = config.written_urls();
        // Where the owner of the shared port is asked who it is.
        written.push(
            Url::parse(&format!("http://{shared}")).map_err(|e| ConfigError::new(format!("server.listen: {e}")))?,
        );
        let egress = Egress::new(&config.network, &written).map_err(ConfigError::new)?;
        if *way == Way::Serve {
            egress.prepare().map_err(ConfigError::new)?;
        }
        let catalog = load_catalog(config)?;
        Ok(Self { egress, catalog, loopback_base, shared })
    }
}

impl App {
    /// Puts the parts together.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(settings: Settings) -> Result<Self, OpenError> {
        // What is wrong with obo.toml is said before anything is made.
        let parts = Prepared::of(&settings)?;
        let store = open_store(&settings.config, &settings.data_dir, settings.prompt.is_some())?;
        Self::put_together(settings, parts, store)
    }

    /// The same over a store that is open, whatever obo.toml says of it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn over(settings: Settings, store: Arc<dyn Store>) -> Result<Self, OpenError> {
        let parts = Prepared::of(&settings)?;
        Self::put_together(settings, parts, store)
    }

    fn put_together(settings: Settings, parts: Prepared, store: Arc<dyn Store>) -> Result<Self, OpenError> {
        let Settings { config, data_dir, clock, way, prompt } = settings;
        let Prepared { egress, catalog, loopback_base, shared } = parts;
        let data_dir = std::fs::canonicalize(&data_dir).unwrap_or(data_dir);
        let mut keys = Keys::new(Arc::clone(&store), config.vault.key.clone());
        if let Some(prompt) = prompt {
            keys = keys.with_prompt(prompt);
        }
        let audit = Audit::new(Arc::clone(&store), keys.clone(), Arc::clone(&clock), config.audit);
        let oauth = Oauth::new(egress.clone());
        let vault = Vault::new(Arc::clone(&store), keys.clone(), oauth.clone(), Arc::clone(&clock));
        let journal = match config.vault.store {
            StoreName::Postgres => Journal::First,
            StoreName::File | StoreName::Keyring => Journal::WhenLate,
        };
        let vault = vault.with_spool(&data_dir, journal).with_observer(record_refreshes(audit.clone()));
        let identity = Identity::new(
            config.identity.clone(),
            Arc::clone(&store),
            keys.clone(),
            egress.clone(),
            Arc::clone(&clock),
        )
        .map_err(ConfigError::new)?;
        let identity = if config.authorization_server.enabled { identity.with_clients() } else { identity };
        let clients = config.authorization_server.enabled.then_some(public_url(&config)?).map(|base| {
            AuthorizationServer::new(authorization_server::Parts {
                config: config.authorization_server,
                base,
                store: Arc::clone(&store),
                keys: keys.clone(),
                identity: identity.clone(),
                egress: egress.clone(),
                audit: audit.clone(),
                clock: Arc::clone(&clock),
            })
        });

        let owner = if way == Way::Serve { Owner::Site(public_url(&config)?) } else { Owner::Local };
        let live = Live::new(Arc::clone(&catalog));
        let current = live.clone();
        let providers = Arc::new(move || digest_of_providers(&current.now()));
        let proof = Proof::new(keys.clone(), data_dir, providers, shared.port(), owner);
        let loopback = (way != Way::Serve)
            .then(|| Loopback::new(shared, loopback_base, proof.clone(), egress.clone(), way == Way::Local));
        let door: Arc<dyn Door> = match &loopback {
            Some(loopback) => Arc::clone(loopback) as Arc<dyn Door>,
            None => Arc::new(Site(public_url(&config)?)),
        };
        let consent = Consent::new(consent::Parts {
            store: Arc::clone(&store),
            keys: keys.clone(),
            identity: identity.clone(),
            vault: vault.clone(),
            oauth,
            catalog: live.clone(),
            audit: audit.clone(),
            clock: Arc::clone(&clock),
            door,
            wait: config.server.consent_wait.as_duration(),
            local: way != Way::Serve,
        });
        let upkeep = Upkeep::new(Arc::clone(&store), keys.clone(), vault.clone(), audit.clone());
        let obo = Obo::new(Stages {
            identity,
            catalog: live.clone(),
            policy: Policy,
            audit: audit.clone(),
            consent,
            vault: vault.clone(),
            executor: Executor::new(egress),
            calls_per_minute: config.server.calls_per_minute,
        });
        Ok(Self { config, store, keys, catalog, live, audit, clock, vault, obo, loopback, upkeep, proof, clients })
    }
}

/// Opens the store that obo.toml names.
fn open_store(config: &Config, data_dir: &Path, attended: bool) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match (config.vault.store, &config.vault.url) {
        (StoreName::Keyring, _) => Arc::new(KeyringStore::open(data_dir, Keyring::of_platform(attended))?),
        (StoreName::Postgres, Some(url)) => Arc::new(PostgresStore::open(url)?),
        (StoreName::File | StoreName::Postgres, _) => {
            let store = SqliteStore::open(data_dir)?;
            if store.bodies_elsewhere() {
                return Err(ConfigError::new(
                    "vault.store: this vault keeps the secrets of connections in the OS keyring; write \"keyring\", or \
                     restore a backup of it, which has them",
                )
                .into());
            }
            Arc::new(store)
        }
    })
}

/// How often what has expired is removed: flows, browser sessions, tokens of obo.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Removes what has expired, every ten minutes, until it is dropped. For processes that stay.
pub async fn sweep(store: Arc<dyn Store>, clock: SharedClock) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        match store.prune(clock.now()).await {
            Ok(removed) => tracing::debug!(removed, "expired records were removed"),
            Err(error) => tracing::warn!(%error, "expired records could not be removed"),
        }
    }
}

/// Takes up what other processes left behind, until this one is about to end. For processes that stay.
pub fn tend(app: &App) -> impl Future<Output = ()> + Send + 'static {
    let (vault, catalog) = (app.vault.clone(), app.live.clone());
    async move { vault.tend(catalog).await }
}

/// Takes up changed manifests, until it is dropped. For processes that stay.
pub fn watch_tools(app: &App) -> impl Future<Output = ()> + Send + 'static {
    reload::watch(app.config.clone(), app.live.clone())
}

/// Refreshes are recorded beside the calls that needed them, without making a call wait.
fn record_refreshes(audit: Audit) -> vault::Observer {
    Arc::new(move |refreshed| {
        audit.event_later(Event {
            kind: Kind::Refresh,
            phase: Phase::Outcome,
            person: Some(&refreshed.person),
            tenant: None,
            actor: "obo",
            provider: Some(&refreshed.provider),
            account: Some(&refreshed.account),
            what: refreshed.what,
            failure: refreshed.failure,
            duration: Some(refreshed.duration),
        });
    })
}

/// What a process must have in common with another to finish its flows: the providers, and the clients at them.
fn digest_of_providers(catalog: &Catalog) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut sha = Sha256::new();
    for provider in catalog.providers() {
        for part in
            [provider.id.as_str(), provider.client.as_ref().map_or("", |c| c.id.as_str()), &provider.fingerprint()]
        {
            sha.update((part.len() as u64).to_be_bytes());
            sha.update(part.as_bytes());
        }
    }
    sha.finalize().into()
}

/// Reads the manifests; what is wrong with one of them is logged, and leaves the others alone.
///
/// # Errors
/// What is wrong with obo.toml itself.
pub fn load_catalog(config: &Config) -> Result<Arc<Catalog>, ConfigError> {
    let catalog = Catalog::load(&config.tools, &provider_configs(config)?).map_err(ConfigError::new)?;
    catalog.problems().iter().for_each(log_problem);
    Ok(Arc::new(catalog))
}

/// Everything that there is to say about the manifests: what keeps a file from being served, and what is merely unwise. For
/// `obo tools check` and `obo doctor`.
///
/// # Errors
/// What is wrong with obo.toml itself.
pub fn check_catalog(config: &Config) -> Result<Vec<Problem>, ConfigError> {
    Catalog::check(&config.tools, &provider_configs(config)?).map_err(ConfigError::new)
}

fn log_problem(problem: &Problem) {
    match problem.level {
        Level::Error => tracing::warn!(%problem, "left out of the catalog"),
        Level::Warning | Level::Hint => tracing::warn!(%problem, "in the catalog"),
    }
}

fn provider_configs(config: &Config) -> Result<BTreeMap<ProviderId, ProviderConfig>, ConfigError> {
    let mut providers = BTreeMap::new();
    for (id, provider) in &config.providers {
        let id = id.parse().map_err(|e| ConfigError::new(format!("providers.{id}: {e}")))?;
        providers.insert(id, provider.clone());
    }
    Ok(providers)
}

/// The public address.
///
/// # Errors
/// When it is no URL; the configuration's own check has said so before.
pub fn public_url(config: &Config) -> Result<Url, ConfigError> {
    Url::parse(&config.server.public_base()).map_err(|e| ConfigError::new(format!("server.public_url: {e}")))
}

/// The base of links and redirect URIs on the shared loopback port: `public_url`'s port where that is on loopback, else the
/// listening port; always by address, because a browser may take `localhost` for `::1`, where nobody of ours listens.
///
/// # Errors
/// As [`public_url`].
pub fn loopback_base(config: &Config) -> Result<Url, ConfigError> {
    let public = public_url(config)?;
    let mut shared = shared_address(config.server.listen);
    if public.scheme() == "http"
        && public.host().is_some_and(|host| is_loopback(&host))
        && let Some(port) = public.port_or_known_default()
    {
        shared.set_port(port);
    }
    Url::parse(&format!("http://{shared}")).map_err(|e| ConfigError::new(format!("server.listen: {e}")))
}

/// All routes of `obo serve`, for a listener at `listen`.
///
/// # Errors
/// As [`public_url`].
pub fn site(app: &App, listen: SocketAddr) -> Result<http::App, ConfigError> {
    setup(app, listen).map(http::router)
}

/// What [`site`] is built from.
///
/// # Errors
/// As [`public_url`].
pub fn setup(app: &App, listen: SocketAddr) -> Result<http::Setup<Obo>, ConfigError> {
    let base = public_url(&app.config)?;
    let pages = pages::router(app.obo.clone(), Listener::Site, base, app.clients.clone());
    let mut further = pages.fallback(pages::nothing_here).merge(rest::router(app.obo.clone()));
    let issuers = || app.obo.identity().issuers();
    let (mut scopes, mut servers) =
        (http::Scopes::of(issuers()), issuers().map(|issuer| issuer.issuer.clone()).collect::<Vec<_>>());
    if let Some(server) = &app.clients {
        further = further.merge(oauth::router(server.clone()));
        // Clients take the first one, as a rule, and it is on because the issuers cannot register them.
        (scopes, servers) = (http::Scopes::own(), vec![server.issuer().to_owned()]);
    }
    Ok(http::Setup {
        service: Arc::new(app.obo.clone()),
        config: app.config.server.clone(),
        listen,
        scopes,
        issuers: servers,
        // What an issuer's tokens are for stands in obo.toml, and is one address.
        sse_is_a_resource: app.clients.is_some(),
        mcp_sessions: Some(app.obo.identity().mcp_sessions().clone()),
        ready: Arc::new(Readiness { store: Arc::clone(&app.store), keys: app.keys.clone() }),
        further,
        // Neighbours ask by address, whatever the public name is.
        unhosted: owner_route(app.proof.clone()),
    })
}

/// Ready means that a call could be served now: the store answers, and the keys are open.
struct Readiness {
    store: Arc<dyn Store>,
    keys: Keys,
}

#[async_trait::async_trait]
impl http::Ready for Readiness {
    async fn ready(&self) -> bool {
        self.store.get(Table::Meta, &[0; 32]).await.is_ok() && self.keys.is_open()
    }
}
