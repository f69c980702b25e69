//! The loopback port that all obo processes of a data folder share.
//!
//! Whichever process owns the port serves everybody's consent pages and callbacks; when it ends another takes over.
//! Before a link is given out, a process that does not own the port makes sure that its owner is an obo of this data
//! folder: it sends a challenge and checks a MAC that only the vault's keys can make (T9). A stranger on the port could
//! otherwise collect authorization codes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::pages;
use crate::call::Obo;
use crate::consent::{Door, Listener};
use crate::egress::{Egress, EgressError, Limits};
use crate::failure::{Code, Failure};
use crate::keys::Keys;
use crate::secret::random;

/// How often a process that does not own the port tries to take it over.
const TAKE_OVER_EVERY: Duration = Duration::from_millis(500);
/// How long the port's owner may take to answer a challenge: it may have to open its keys first.
const CHALLENGE_LIMITS: Limits = Limits { total: Duration::from_secs(5), body_bytes: 1024 };
/// How often a challenge is tried while the port changes hands.
const CHALLENGE_TRIES: u32 = 4;
/// How many random bytes a challenge has.
const CHALLENGE_BYTES: usize = 32;

/// Who serves the pages on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// stdio or the command line: links begin with the loopback address.
    Local,
    /// `obo serve`: links begin with its public address, and ask for sign-in.
    Site(Url),
}

/// Names the providers, and the clients at them, that a process has now: manifests may change while it runs.
pub type ProvidersDigest = Arc<dyn Fn() -> [u8; 32] + Send + Sync>;

/// What proves the ownership of the port.
#[derive(Clone)]
pub struct Proof {
    keys: Keys,
    /// Proofs of another folder, or of another machine's folder at another path, are not ours.
    data_dir: PathBuf,
    /// Nor are those of a process that has other providers or clients: it could not finish our flows.
    providers: ProvidersDigest,
    port: u16,
    owner: Owner,
}

impl Proof {
    /// The proof of owning `port` as `owner`, with the vault of `data_dir` and these providers.
    pub fn new(keys: Keys, data_dir: PathBuf, providers: ProvidersDigest, port: u16, owner: Owner) -> Self {
        Self { keys, data_dir, providers, port, owner }
    }

    /// What an owner answers: `local MAC`, or `site BASE MAC`.
    async fn answer(&self, challenge: &str) -> Result<String, Failure> {
        let mac = self.mac(challenge, &self.owner).await?;
        Ok(match &self.owner {
            Owner::Local => format!("local {mac}"),
            Owner::Site(base) => format!("site {base} {mac}"),
        })
    }

    /// Who answered, if it was an obo of this folder.
    async fn check(&self, challenge: &str, answer: &[u8]) -> Result<Option<Owner>, Failure> {
        let words: Vec<&str> = std::str::from_utf8(answer).unwrap_or_default().split(' ').collect();
        let (owner, mac) = match words[..] {
            ["local", mac] => (Owner::Local, mac),
            ["site", base, mac] => match Url::parse(base) {
                Ok(base) => (Owner::Site(base), mac),
                Err(_) => return Ok(None),
            },
            _ => return Ok(None),
        };
        let expected = self.mac(challenge, &owner).await?;
        Ok(bool::from(expected.as_bytes().ct_eq(mac.as_bytes())).then_some(owner))
    }

    async fn mac(&self, challenge: &str, owner: &Owner) -> Result<String, Failure> {
        let keys = self.keys.open().await?;
        let folder = self.data_dir.as_os_str().as_encoded_bytes();
        let base = match owner {
            Owner::Local => "",
            Owner::Site(base) => base.as_str(),
        };
        let providers = (self.providers)();
        let parts = [challenge.as_bytes(), &self.port.to_be_bytes(), folder, &providers, base.as_bytes()];
        Ok(hex(&keys.mac("loopback owner", &parts)))
    }
}

/// The route that answers challenges. `obo serve` has it too: it may own the shared port.
pub fn owner_route(proof: Proof) -> Router {
    Router::new().route("/obo/owner/{challenge}", get(answer)).with_state(proof)
}

/// Answers neighbours only: the peer and the name it uses for us are both loopback. A proxy in front is a loopback peer
/// too, and brings another name.
async fn answer(State(proof): State<Proof>, Path(challenge): Path<String>, request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let near = peer.is_some_and(|peer| peer.0.ip().is_loopback());
    let by_address = host_of(&request).is_some_and(|host| {
        host.parse::<SocketAddr>().is_ok_and(|host| host.ip().is_loopback() && host.port() == proof.port)
    });
    let well_formed = challenge.len() == 2 * CHALLENGE_BYTES && challenge.bytes().all(|b| b.is_ascii_hexdigit());
    if !near || !by_address || !well_formed {
        return StatusCode::NOT_FOUND.into_response();
    }
    match proof.answer(&challenge).await {
        Ok(answer) => answer.into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// The door of stdio and of the command line.
pub struct Loopback {
    address: SocketAddr,
    base: Url,
    proof: Proof,
    egress: Egress,
    owned: AtomicBool,
    /// Whether this process serves the port when it is free.
    serves: bool,
}

impl Loopback {
    /// A door at `base`, listening on `address` once [`Loopback::serve`] runs; see [`shared_address`].
    pub fn new(address: SocketAddr, base: Url, proof: Proof, egress: Egress, serves: bool) -> Arc<Self> {
        Arc::new(Self { address, base, proof, egress, owned: AtomicBool::new(false), serves })
    }

    /// Serves the pages whenever the port is free, until `stop`.
    pub async fn serve(self: Arc<Self>, obo: Obo, stop: CancellationToken) {
        loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => {
                    let app = self.router(obo.clone()).into_make_service_with_connect_info::<SocketAddr>();
                    self.owned.store(true, Ordering::Release);
                    let served =
                        axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned()).await;
                    self.owned.store(false, Ordering::Release);
                    if let Err(error) = served {
                        tracing::warn!(%error, "the consent pages stopped being served");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => tracing::warn!(%error, address = %self.address, "the consent pages cannot be served"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(TAKE_OVER_EVERY) => {}
            }
        }
    }

    fn router(&self, obo: Obo) -> Router {
        let hosts = self.hosts();
        pages::router(obo, Listener::Local, self.base.clone(), None)
            .merge(owner_route(self.proof.clone()))
            .fallback(pages::nothing_here)
            .layer(middleware::from_fn(move |request: Request, next: Next| {
                let known = hosts.iter().any(|host| host_of(&request).is_some_and(|h| h.eq_ignore_ascii_case(host)));
                async move {
                    // A name that resolves to loopback is not loopback (DNS rebinding, T10).
                    if known { next.run(request).await } else { StatusCode::MISDIRECTED_REQUEST.into_response() }
                }
            }))
    }

    /// The `Host` headers that are ours.
    fn hosts(&self) -> Vec<String> {
        let port = self.address.port();
        let mut hosts = vec![self.address.to_string(), format!("localhost:{port}")];
        if let Some(host) = self.base.host_str() {
            hosts.push(match self.base.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            });
        }
        hosts
    }

    /// The public address of the `obo serve` of this folder, where one holds the port.
    ///
    /// # Errors
    /// The failure for the caller, naming the port that a stranger holds.
    pub async fn site(&self) -> Result<Option<Url>, Failure> {
        match self.holder().await? {
            Holder::Ours(Owner::Site(base)) => Ok(Some(base)),
            Holder::Ours(Owner::Local) | Holder::Nobody => Ok(None),
            Holder::Stranger => Err(stranger(self.address)),
        }
    }

    /// Who holds the port.
    async fn holder(&self) -> Result<Holder, Failure> {
        let challenge = hex(&random::<CHALLENGE_BYTES>());
        let url = format!("http://{}/obo/owner/{challenge}", self.address);
        let url = Url::parse(&url).map_err(Failure::internal)?;
        match self.egress.send(self.egress.request(http::Method::GET, url), CHALLENGE_LIMITS).await {
            Ok(answer) => Ok(match self.proof.check(&challenge, &answer.body).await? {
                Some(owner) => Holder::Ours(owner),
                None => Holder::Stranger,
            }),
            Err(EgressError::Unreachable(_)) => Ok(Holder::Nobody),
            // Our own rules forbid asking: a defect, and no stranger's doing.
            Err(error @ EgressError::Forbidden(_)) => Err(Failure::internal(error)),
            Err(_) => Ok(Holder::Stranger),
        }
    }
}

/// Who holds the port.
enum Holder {
    Nobody,
    Stranger,
    Ours(Owner),
}

#[async_trait::async_trait]
impl Door for Loopback {
    async fn base(&self) -> Result<Url, Failure> {
        for _ in 0..CHALLENGE_TRIES {
            if self.owned.load(Ordering::Acquire) {
                return Ok(self.base.clone());
            }
            match self.holder().await? {
                Holder::Ours(Owner::Local) => return Ok(self.base.clone()),
                Holder::Ours(Owner::Site(base)) => return Ok(base),
                Holder::Stranger => return Err(stranger(self.address)),
                Holder::Nobody if !self.serves => return Err(nobody()),
                // The owner has just ended: this process, or another, takes over in a moment.
                Holder::Nobody => tokio::time::sleep(TAKE_OVER_EVERY).await,
            }
        }
        Err(stranger(self.address))
    }
}

/// The address of the shared port: never on another interface, whatever the server listens on.
pub fn shared_address(listen: SocketAddr) -> SocketAddr {
    let ip = if listen.ip().is_loopback() { listen.ip() } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    SocketAddr::new(ip, listen.port())
}

/// The door of `obo serve`: its own pages, at its public address.
pub struct Site(pub Url);

#[async_trait::async_trait]
impl Door for Site {
    async fn base(&self) -> Result<Url, Failure> {
        Ok(self.0.clone())
    }
}

fn stranger(address: SocketAddr) -> Failure {
    let port = address.port();
    Failure::new(
        Code::Internal,
        format!(
            "port {port} on this machine is held by another program, or by an obo with another data folder or other \
             providers, so no connect link can be given out safely; stop it, or set server.listen in obo.toml to a \
             free port and register the new redirect URI"
        ),
    )
}

/// What a process that serves no pages finds when nobody else does.
fn nobody() -> Failure {
    Failure::new(Code::AuthorizationRequired, "no running obo serves the connect page just now; run `obo connect`")
        .noted(NOBODY_SERVES)
}

/// Marks the failure that the command line turns into the `obo connect` command.
pub const NOBODY_SERVES: &str = "nobody_serves";

fn host_of(request: &Request) -> Option<&str> {
    let mut hosts = request.headers().get_all(http::header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
