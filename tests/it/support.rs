//! A whole obo in the test's own process, with a provider that keeps the ground truth, and a clock that stands still.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use obo::app::{self, App, Settings, Way};
use obo::clock::{Clock as _, ManualClock, SharedClock};
use obo::config::{Config, Environment};
use obo::id::{Person, Source, TenantId};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::provider::{self, Provider, Service};

pub mod browser;
#[cfg(target_os = "linux")]
pub mod desktop;
pub mod documents;
pub mod issuer;
pub mod mcp;
pub mod oauth_client;
pub mod postgres;
pub mod program;
pub mod replicas;
pub mod rest;
pub mod scripted;

pub use browser::Browser;
pub use mcp::Mcp;
pub use oauth_client::OauthClient;
pub use rest::Rest;

/// A running `obo serve` and its provider. Everything ends when it is dropped.
pub struct TestObo {
    pub provider: Provider,
    pub app: App,
    pub clock: Arc<ManualClock>,
    /// `http://127.0.0.1:PORT`.
    pub base: String,
    pub dir: TempDir,
    stop: CancellationToken,
    /// Further replicas, where the tests run with several.
    _others: Vec<App>,
}

impl Drop for TestObo {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What is special about a [`TestObo`].
pub struct Builder {
    config: String,
    provider: Box<dyn FnOnce(&mut provider::Settings)>,
    without_providers: bool,
    tools: Vec<(String, String)>,
}

impl TestObo {
    /// An obo with Google and Slack, on embedded defaults.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    pub fn builder() -> Builder {
        // Nothing in a test waits for a consent unless it says so.
        Builder { config: String::new(), provider: Box::new(|_| {}), without_providers: false, tools: Vec::new() }
    }

    /// A token of obo for a person of the default tenant.
    pub async fn token_for(&self, user: &str) -> String {
        self.token_in("default", user).await
    }

    /// A token of obo for a person of some tenant.
    pub async fn token_in(&self, tenant: &str, user: &str) -> String {
        let person =
            Person { tenant: tenant.parse::<TenantId>().unwrap(), source: Source::obo(), user: user.parse().unwrap() };
        let tokens = self.app.obo.identity().tokens();
        let (_, token) = tokens.issue(&person, Vec::new(), Duration::from_secs(30 * 86_400)).await.unwrap();
        token.expose().to_owned()
    }

    /// An MCP client of a person, speaking the newest revision without sessions.
    pub async fn client(&self, user: &str) -> Mcp {
        Mcp::new(&self.base, Some(self.token_for(user).await))
    }

    /// Goes through a consent as a person would: opens the link, signs in, presses the button, picks the account at the
    /// provider, and comes back.
    pub async fn consent(&self, link: &str, user: &str, account: &str) -> browser::Page {
        let mut browser = Browser::new();
        self.consent_in(&mut browser, link, user, account).await
    }

    /// The same in a browser of the test's.
    pub async fn consent_in(&self, browser: &mut Browser, link: &str, user: &str, account: &str) -> browser::Page {
        let forwarded = self.press(browser, link, user).await;
        let back = self.provider.consent(&forwarded, account).await.unwrap();
        browser.get(&back).await
    }

    /// Opens the link, signs in, and presses the button: the provider's URL.
    pub async fn press(&self, browser: &mut Browser, link: &str, user: &str) -> String {
        let page = browser.get(link).await;
        let page = if page.text.contains("name=\"token\"") {
            let token = self.token_for(user).await;
            let signed_in = browser.submit(&page, &[("token", &token)]).await;
            assert_eq!(signed_in.status, 303, "{}", signed_in.text);
            browser.get(link).await
        } else {
            page
        };
        let pressed = browser.submit(&page, &[]).await;
        assert_eq!(pressed.status, 303, "{}", pressed.text);
        pressed.location.unwrap()
    }

    /// Connects an account to a person, by way of a call of `tool`.
    pub async fn connect(&self, user: &str, account: &str, tool: &str, arguments: Value) {
        let client = self.client(user).await;
        let asked = client.call(tool, arguments).await;
        let link = mcp::link_of(&asked).unwrap_or_else(|| panic!("no link in {asked}"));
        let page = self.consent(&link, user, account).await;
        assert_eq!(page.status, 200, "{}", page.text);
        assert!(page.text.contains(account), "{}", page.text);
    }

    /// All bytes of the data folder, for leak searches.
    pub fn data_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut folders = vec![self.dir.path().join("data")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    bytes.extend(std::fs::read(path).unwrap());
                }
            }
        }
        bytes
    }
}

impl Builder {
    /// Adds to obo.toml. Keys of tables that the support writes itself (`server.listen`, `providers`) are taken.
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Changes the provider.
    pub fn provider(mut self, change: impl FnOnce(&mut provider::Settings) + 'static) -> Self {
        self.provider = Box::new(change);
        self
    }

    /// Leaves the providers to [`Builder::config`].
    pub fn without_providers(mut self) -> Self {
        self.without_providers = true;
        self
    }

    /// Adds a tool from a manifest.
    pub fn tool(mut self, file: &str, manifest: &str) -> Self {
        self.tools.push((file.to_owned(), manifest.to_owned()));
        self
    }

    pub async fn start(self) -> TestObo {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let base = format!("http://{address}");

        let clock = ManualClock::at("2026-11-24T08:00:00Z".parse::<Timestamp>().unwrap());
        let time = Arc::clone(&clock);
        let callbacks = ["google", "slack"].map(|id| format!("{base}/oauth/callback/{id}"));
        let mut settings = provider::Settings::new(callbacks, move || time.now().as_second());
        (self.provider)(&mut settings);
        let provider = Provider::start(settings).await.unwrap();

        let key = dir.path().join("vault.key");
        write_key(&key);
        let tools = dir.path().join("tools");
        for (file, manifest) in &self.tools {
            let path = tools.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, manifest).unwrap();
        }
        let mut text = vault(&dir.path().join("data"));
        text.push_str(&format!("[vault.key]\nsource = \"file\"\npath = {key:?}\n"));
        if !self.tools.is_empty() {
            text.push_str(&format!("[tools]\ndirs = [{tools:?}]\n"));
        }
        if !self.without_providers {
            text.push_str(&providers(&provider));
        }
        text.push_str(&self.config);
        let stop = CancellationToken::new();
        let open = |listen: String, public: Option<&str>| {
            let listen = ("OBO_SERVER__LISTEN", listen.as_str());
            let environment = match public {
                Some(public) => Environment::from([listen, ("OBO_SERVER__PUBLIC_URL", public)]),
                None => Environment::from([listen]),
            };
            let config = Config::parse(&text, "obo.toml", dir.path(), &environment).unwrap();
            let (data_dir, clock): (_, SharedClock) = (dir.path().join("data"), clock.clone());
            App::open(Settings { config, data_dir, clock, way: Way::Serve, prompt: None }).unwrap()
        };
        let (app, others) = match replicas::wanted() {
            None => {
                let app = open(address.to_string(), None);
                let site = app::site(&app, address).unwrap();
                tokio::spawn(obo::transport::http::serve(listener, site, stop.clone()));
                (app, Vec::new())
            }
            Some(count) => {
                let mut apps = Vec::new();
                let mut addresses = Vec::new();
                for _ in 0..count {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    let address = listener.local_addr().unwrap();
                    let app = open(address.to_string(), Some(&base));
                    let site = app::site(&app, address).unwrap();
                    tokio::spawn(obo::transport::http::serve(listener, site, stop.clone()));
                    apps.push(app);
                    addresses.push(address);
                }
                replicas::balance(listener, addresses, stop.clone());
                (apps.remove(0), apps)
            }
        };
        TestObo { provider, app, clock, base, dir, stop, _others: others }
    }
}

/// The table `[vault]`, for a data folder: nothing, or a database of its own where `OBO_TEST_STORE=postgres`. Tests that
/// look into the file of the embedded store do not pass with it.
fn vault(data_dir: &std::path::Path) -> String {
    match std::env::var("OBO_TEST_STORE").as_deref() {
        Ok("postgres") => {
            let database = postgres::database(&data_dir.display().to_string()).unwrap();
            format!("[vault]\nstore = \"postgres\"\nurl = {:?}\n", database.url)
        }
        _ => String::new(),
    }
}

/// The tables of the sandbox's providers.
pub fn providers(provider: &Provider) -> String {
    let one = |id: &str, service: Service| {
        format!(
            "[providers.{id}]\nclient_id = {:?}\nclient_secret = {:?}\norigin = {:?}\n",
            service.client_id(),
            service.client_secret(),
            provider.origin()
        )
    };
    one("google", Service::Google) + &one("slack", Service::Slack)
}

/// Writes a key file that only its owner can read.
pub fn write_key(path: &PathBuf) {
    std::fs::write(path, [7u8; 32]).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// A mail that Google.SendEmail takes.
pub fn mail(to: &str, subject: &str) -> Value {
    serde_json::json!({ "to": [to], "subject": subject, "text": "Hello." })
}
