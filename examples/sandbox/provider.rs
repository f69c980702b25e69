//! A stand-in for Google and Slack on a loopback port: strict about OAuth, and a witness of everything that happened.
//!
//! It checks what the real ones check (client, redirect URI, PKCE, single-use codes, expiry, scopes) and answers in
//! their shapes, so a mistake shows here as it would show there. Beyond that it keeps the ground truth that a test
//! needs: which call ran as whom, every token it ever issued, and which connections are still alive.
//!
//! The sandbox example and the integration tests include this file by `#[path]`.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "this is a library to the programs that include it; each uses a part"
)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::response::Response;
use http::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt as _;

// With explicit paths the parts are found both beside this file and where it is included by `#[path]`.
#[path = "provider/fault.rs"]
pub mod fault;
#[path = "provider/google.rs"]
mod google;
#[path = "provider/ledger.rs"]
pub mod ledger;
#[path = "provider/oauth.rs"]
mod oauth;
#[path = "provider/page.rs"]
mod page;
#[path = "provider/slack.rs"]
mod slack;
#[cfg(test)]
#[path = "provider/tests.rs"]
mod tests;

pub use fault::{Encoding, Fault, Gate};
pub use ledger::{Call, Ended, Family, IssuedToken, Mail, SlackMessage, TokenKind};

/// Largest request body read, in bytes: a mail of 25 MB in base64, and room.
const MAX_BODY_BYTES: usize = 40 << 20;

/// The people who have accounts here, by first name.
pub const PEOPLE: [Account; 2] = [
    Account { name: "alice", email: "alice@example.com", google_sub: "100000000000000000001", slack_id: "U0ALICE01" },
    Account { name: "bob", email: "bob@example.com", google_sub: "100000000000000000002", slack_id: "U0BOB0001" },
];

/// Somebody's accounts.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    /// What tests call them.
    pub name: &'static str,
    /// The address both services know them by.
    pub email: &'static str,
    /// Google's immutable id.
    pub google_sub: &'static str,
    /// Slack's immutable id within the team.
    pub slack_id: &'static str,
}

/// Which of the two imitated services something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Google: accounts, mail, calendar.
    Google,
    /// Slack: one team.
    Slack,
}

impl Service {
    /// The client id that obo is registered with.
    pub fn client_id(self) -> &'static str {
        match self {
            Service::Google => "sandbox-google",
            Service::Slack => "sandbox-slack",
        }
    }

    /// The client secret that belongs to it.
    pub fn client_secret(self) -> &'static str {
        match self {
            Service::Google => "sandbox-google-secret-9f2c",
            Service::Slack => "sandbox-slack-secret-41d7",
        }
    }
}

/// What happens to a refresh token when it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshMode {
    /// There are no refresh tokens, and access tokens do not expire.
    None,
    /// The same one stays good and is not repeated in the answer.
    Keeps,
    /// A new one each time; the old one is good for the grace period and refused after it.
    Rotates {
        /// How long a used one is still accepted.
        grace: Duration,
    },
    /// A new one each time; using an old one after the grace period ends the connection.
    Strict {
        /// How long a used one is still accepted.
        grace: Duration,
    },
}

/// What the authorization answer says about its issuer (RFC 9207).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Iss {
    /// Nothing.
    Absent,
    /// The provider's own origin.
    Own,
    /// This text: a wrong one, to stage a mix-up.
    Text(String),
}

/// How a provider behaves.
#[derive(Clone)]
pub struct Settings {
    /// The redirect URIs registered, compared character by character.
    pub redirect_uris: Vec<String>,
    /// The time, in seconds since 1970.
    pub now: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// How long an access token lives.
    pub access_ttl: Duration,
    /// How Google's refresh tokens behave. The real ones are kept.
    pub google_refresh: RefreshMode,
    /// How Slack's refresh tokens behave. The real ones do not exist unless token rotation is switched on.
    pub slack_refresh: RefreshMode,
    /// Whether the authorization answer carries `iss`.
    pub iss: Iss,
}

impl Settings {
    /// The behaviour of the real services, for a client with these redirect URIs.
    pub fn new(
        redirect_uris: impl IntoIterator<Item = impl Into<String>>,
        now: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            redirect_uris: redirect_uris.into_iter().map(Into::into).collect(),
            now: Arc::new(now),
            access_ttl: Duration::from_secs(3599),
            google_refresh: RefreshMode::Keeps,
            slack_refresh: RefreshMode::None,
            iss: Iss::Absent,
        }
    }

    fn refresh(&self, service: Service) -> RefreshMode {
        match service {
            Service::Google => self.google_refresh,
            Service::Slack => self.slack_refresh,
        }
    }
}

/// A running provider. Dropping it closes the port and every connection.
pub struct Provider {
    origin: String,
    shared: Arc<Shared>,
    server: AbortHandle,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Provider {
    /// Starts a provider on a free loopback port.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let origin = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            origin: origin.clone(),
            settings,
            ledger: Mutex::default(),
            faults: fault::Faults::default(),
        });
        let router = Router::new()
            .merge(google::routes())
            .merge(slack::routes())
            .fallback(oauth::unknown_path)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(shared.clone());
        let server = tokio::spawn(accept(listener, shared.clone(), router)).abort_handle();
        Ok(Self { origin, shared, server })
    }

    /// `http://127.0.0.1:PORT`, for `origin` in obo.toml. Both services live there; their paths do not meet.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Every request so far, in the order in which they were answered.
    pub fn log(&self) -> Vec<Call> {
        self.shared.ledger().calls.clone()
    }

    /// Every token and code issued so far, dead ones included.
    pub fn tokens(&self) -> Vec<IssuedToken> {
        self.shared.ledger().issued.clone()
    }

    /// Everything that may appear nowhere but in transit: tokens, codes, PKCE verifiers, client secrets.
    pub fn secrets(&self) -> BTreeSet<String> {
        let ledger = self.shared.ledger();
        let issued = ledger.issued.iter().map(|token| token.text.clone());
        let clients = [Service::Google, Service::Slack].map(|s| s.client_secret().to_owned());
        issued.chain(ledger.verifiers.iter().cloned()).chain(clients).collect()
    }

    /// Every connection a person ever agreed to.
    pub fn families(&self) -> Vec<Family> {
        self.shared.ledger().families.clone()
    }

    /// How often a token endpoint was asked.
    pub fn token_requests(&self) -> usize {
        self.shared.ledger().token_requests
    }

    /// The mail in `email`'s mailbox, sent and received.
    pub fn mailbox(&self, email: &str) -> Vec<Mail> {
        self.shared.ledger().mail.iter().filter(|mail| mail.owner == email).cloned().collect()
    }

    /// The calendar events of `email`, as Google would show them.
    pub fn events(&self, email: &str) -> Vec<serde_json::Value> {
        let ledger = self.shared.ledger();
        ledger.events.iter().filter(|(owner, _)| owner == email).map(|(_, event)| event.clone()).collect()
    }

    /// The messages posted to Slack.
    pub fn slack_messages(&self) -> Vec<SlackMessage> {
        self.shared.ledger().slack_messages.clone()
    }

    /// Ends every connection of a person, as they could on their account page.
    pub fn revoke_all(&self, email: &str) {
        self.shared.ledger().end_all(email, None);
    }

    /// Makes every access token of a person expire now; refresh tokens stay good.
    pub fn expire_access(&self, email: &str) {
        let now = self.shared.now();
        self.shared.ledger().expire_access(email, now);
    }

    /// Plants a fault for the next `times` requests to `path` (`*` at its end matches any rest).
    pub fn fault(&self, path: &str, times: usize, fault: Fault) {
        self.shared.faults.plant(path, times, fault);
    }

    /// Removes the faults that have not been met.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Walks the consent page as a browser would: `who` is a first name, or `deny`. Returns where the page sends the
    /// browser; following it is the caller's.
    ///
    /// # Errors
    /// When the provider shows an error page, or the page does not know `who`.
    pub async fn consent(&self, authorize_url: &str, who: &str) -> Result<String, String> {
        page::walk(authorize_url, who, None).await
    }

    /// As [`Provider::consent`], leaving only the boxes of `scopes` ticked (Google's granular consent).
    ///
    /// # Errors
    /// As [`Provider::consent`].
    pub async fn consent_to(&self, authorize_url: &str, who: &str, scopes: &[&str]) -> Result<String, String> {
        page::walk(authorize_url, who, Some(scopes)).await
    }
}

/// What the handlers share.
struct Shared {
    origin: String,
    settings: Settings,
    ledger: Mutex<ledger::Ledger>,
    faults: fault::Faults,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, ledger::Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> i64 {
        (self.settings.now)()
    }
}

/// Marks an answer with the person a request acted as.
#[derive(Clone)]
struct ActedAs(&'static str);

/// The connection is cut without an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut by a planted fault")
    }
}

impl std::error::Error for Cut {}

/// Hyper rather than `axum::serve`, because a service of hyper's may fail, which cuts the connection.
async fn accept(listener: TcpListener, shared: Arc<Shared>, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            Some(_) = connections.join_next() => continue,
        };
        let (shared, router) = (shared.clone(), router.clone());
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(shared.clone(), router.clone(), request));
            // An error here is a client that went away, or a planted cut.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Answers one request, under the faults planted for its path, and writes it into the log.
async fn answer(shared: Arc<Shared>, router: Router, request: Request<hyper::body::Incoming>) -> Result<Response, Cut> {
    let request = request.map(Body::new);
    let path = request.uri().path().to_owned();
    let mut call = Call {
        method: request.method().to_string(),
        path: path.clone(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        user: None,
        status: 0,
        performed: false,
    };
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    if oauth::TOKEN_PATHS.contains(&path.as_str()) {
        shared.ledger().token_requests += 1;
    }

    let fault = shared.faults.take(&path);
    if let Some(Fault::Hold(gate)) = &fault {
        gate.pass().await;
    }
    if let Some(answer) = fault.as_ref().and_then(|fault| fault.answer(&path, authorization.as_ref())) {
        call.status = answer.status().as_u16();
        shared.ledger().calls.push(call);
        return Ok(answer);
    }
    if matches!(fault, Some(Fault::CutBefore)) {
        shared.ledger().calls.push(call);
        return Err(Cut);
    }

    let answer = match router.oneshot(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    };
    call.performed = true;
    call.status = answer.status().as_u16();
    call.user = answer.extensions().get::<ActedAs>().map(|user| user.0.to_owned());
    shared.ledger().calls.push(call);
    match fault {
        Some(Fault::CutAfter) => Err(Cut),
        Some(Fault::HoldAnswer(gate)) => {
            gate.pass().await;
            Ok(answer)
        }
        _ => Ok(answer),
    }
}
