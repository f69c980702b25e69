//! Outbound HTTP: the one place that builds clients, and the rules for where they may connect (T11).
//!
//! No redirects are followed, every answer is bounded in size and time, and addresses that are not public are refused
//! at the moment of connecting, after name resolution, unless the operator wrote the host into obo.toml.

use std::collections::HashSet;
use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

mod address;
pub mod json;
#[cfg(test)]
pub(crate) mod stub;

/// Longest time from the decision to connect to an established (TLS) connection, name resolution included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept. Shorter than the idle timeout of common load balancers (60 s), so that few
/// requests meet a connection that is being closed.
const POOL_IDLE: Duration = Duration::from_secs(50);

/// Idle connections kept for one host.
const POOL_IDLE_PER_HOST: usize = 16;

/// Largest header list accepted over HTTP/2, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10; // 64 KiB

/// `[network]` of obo.toml.
#[derive(Debug, Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A PEM file of further certificate authorities to trust.
    pub ca_file: Option<std::path::PathBuf>,
    /// A proxy for all requests. Addresses are then resolved, and filtered, by it.
    pub proxy: Option<Url>,
    /// `host:port` of servers that may be reached although their addresses are private.
    pub allow_private: Vec<String>,
}

/// Bounds of one request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte out to the last byte in.
    pub total: Duration,
    /// The longest body accepted, in bytes, after decompression.
    pub body_bytes: usize,
}

/// A whole answer.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: http::StatusCode,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body, whole.
    pub body: Vec<u8>,
}

/// Why there is no answer. None of the texts holds a secret or a URL's query.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EgressError {
    /// The address may not be connected to. Nothing was sent.
    #[error("{0} may not be connected to")]
    Forbidden(String),
    /// No connection was made. Nothing was sent.
    #[error("no connection to {0}")]
    Unreachable(String),
    /// No whole answer within the time; the request may have been received.
    #[error("no answer from {0} in time")]
    Timeout(String),
    /// The connection broke after the request was sent.
    #[error("the connection to {0} broke")]
    Broken(String),
    /// The answer is longer than the bound.
    #[error("the answer of {0} is larger than allowed")]
    TooLarge(String),
}

/// Sends requests under the rules. Cheap to clone.
///
/// Invariant INV-7: a host that the operator did not write down is only ever connected to by `filtered`, whose resolver
/// drops addresses that are not public. Filtering an answer beforehand would not do: the name could resolve to
/// something else a moment later (DNS rebinding).
#[derive(Clone)]
pub struct Egress {
    /// Makes requests and sends none: it trusts nobody.
    writer: reqwest::Client,
    filtered: LazyClient,
    /// For the exempt: it connects to whatever their names resolve to.
    exempt_client: LazyClient,
    exempt: Arc<HashSet<(String, u16)>>,
    /// Those of the exempt that `allow_private` names.
    private: Arc<HashSet<(String, u16)>>,
}

/// Who chose an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChosenBy {
    /// The operator's files: what stands in them may be private.
    Operator,
    /// Somebody outside.
    Stranger,
}

/// A client that is made on first need: the system's certificates are hundreds of files, and who launches obo over stdio
/// to list its tools needs none of them.
type LazyClient =
    Arc<LazyLock<Result<reqwest::Client, String>, Box<dyn FnOnce() -> Result<reqwest::Client, String> + Send>>>;

impl Egress {
    /// Builds the client. `written` are the URLs that stand in obo.toml: their hosts are reachable wherever they resolve.
    ///
    /// # Errors
    /// One line naming the key and the mend: an unreadable `ca_file`, a bad entry in `allow_private`.
    pub fn new(config: &Config, written: &[Url]) -> Result<Self, String> {
        Self::with_resolver(config, written, Arc::new(SystemResolver))
    }

    /// The same with names resolved by something else, for tests.
    pub(crate) fn with_resolver(config: &Config, written: &[Url], resolver: Arc<dyn Resolve>) -> Result<Self, String> {
        let private: HashSet<(String, u16)> =
            config.allow_private.iter().map(|entry| parse_allow_private(entry)).collect::<Result<_, _>>()?;
        let exempt = written.iter().filter_map(host_and_port).chain(private.iter().cloned()).collect();
        let authorities = match &config.ca_file {
            Some(path) => read_authorities(path)?,
            None => Vec::new(),
        };
        let recipe = Recipe { authorities, proxy: config.proxy.clone() };
        recipe.proxy(None)?;
        // Behind a proxy the only name resolved here is the proxy's own, which the operator wrote.
        let filter: Arc<dyn Resolve> = match config.proxy {
            Some(_) => Arc::clone(&resolver),
            None => Arc::new(PublicOnly(Arc::clone(&resolver))),
        };
        let lazy = |recipe: Recipe, resolver: Arc<dyn Resolve>, bypass: Option<&'static str>| -> LazyClient {
            Arc::new(LazyLock::new(Box::new(move || recipe.client(resolver, bypass))))
        };
        let writer = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_certs_only([])
            .build();
        let egress = Self {
            writer: writer.map_err(|error| no_client(&error))?,
            filtered: lazy(recipe.clone(), filter, None),
            // A proxy elsewhere cannot reach this machine's loopback. Only the exempt may: hence not `filtered`.
            exempt_client: lazy(recipe, resolver, Some("localhost,127.0.0.0/8,::1")),
            exempt: Arc::new(exempt),
            private: Arc::new(private),
        };
        // Whether its certificates are any good is known once they are used.
        if config.ca_file.is_some() {
            egress.prepare()?;
        }
        Ok(egress)
    }

    /// Makes the clients now, for who would rather hear of it than wait or fail later.
    ///
    /// # Errors
    /// One line with the mend.
    pub fn prepare(&self) -> Result<(), String> {
        for client in [&self.filtered, &self.exempt_client] {
            client.as_ref().as_ref().map_err(Clone::clone)?;
        }
        Ok(())
    }

    /// Starts a request; [`Egress::send`] makes it, or refuses it: also where the URL carries a user or a password.
    pub fn request(&self, method: http::Method, url: Url) -> reqwest::RequestBuilder {
        if url.username().is_empty() && url.password().is_none() {
            self.writer.request(method, url)
        } else {
            // The builder would turn them into an Authorization header. An empty URL is the builder's way to fail.
            self.writer.request(method, "")
        }
    }

    /// Makes a request and reads the whole answer. Never follows a redirect, never repeats.
    ///
    /// # Errors
    /// See [`EgressError`]. [`EgressError::Forbidden`] and [`EgressError::Unreachable`] mean that the request did not
    /// leave; after the others it may have been received.
    ///
    /// # Cancellation
    /// Dropping the future closes the connection; the request may have been received.
    pub async fn send(&self, request: reqwest::RequestBuilder, limits: Limits) -> Result<Answer, EgressError> {
        self.send_to(ChosenBy::Operator, request, limits).await
    }

    /// The same for an address that somebody outside chose. That a private host stands somewhere in obo.toml does not open
    /// it to them: only `allow_private` does.
    ///
    /// # Errors
    /// As [`Egress::send`].
    pub async fn send_to_stranger(
        &self,
        request: reqwest::RequestBuilder,
        limits: Limits,
    ) -> Result<Answer, EgressError> {
        self.send_to(ChosenBy::Stranger, request, limits).await
    }

    async fn send_to(
        &self,
        chosen_by: ChosenBy,
        request: reqwest::RequestBuilder,
        limits: Limits,
    ) -> Result<Answer, EgressError> {
        // The builder's own client is not used: which client may connect is decided here, by the host.
        let (_, request) = request.build_split();
        let Ok(request) = request else {
            return Err(EgressError::Forbidden("the server of a malformed request".to_owned()));
        };
        let host = request.url().host_str().unwrap_or("a URL without a host").to_owned();
        let client = self.client_for(request.url(), chosen_by).ok_or_else(|| EgressError::Forbidden(host.clone()))?;
        let client = LazyLock::force(client).as_ref().map_err(|cause| {
            tracing::error!(cause, "no request can be made");
            EgressError::Unreachable(host.clone())
        })?;
        match tokio::time::timeout(limits.total, exchange(client, request, limits.body_bytes, &host)).await {
            Ok(result) => result,
            Err(_) => Err(EgressError::Timeout(host)),
        }
    }

    /// The client that may connect to a URL's host; none, where nobody may.
    fn client_for(&self, url: &Url, chosen_by: ChosenBy) -> Option<&LazyClient> {
        let host = url.host()?;
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&host) => {}
            _ => return None,
        }
        let exempt = match chosen_by {
            ChosenBy::Operator => &self.exempt,
            ChosenBy::Stranger => &self.private,
        };
        if host_and_port(url).is_some_and(|at| exempt.contains(&at)) {
            return Some(&self.exempt_client);
        }
        // Connecting to a literal asks no resolver. By now decimal, octal and hex spellings are plain (WHATWG URL).
        let public = match host {
            Host::Ipv4(v4) => address::is_public(IpAddr::V4(v4)),
            Host::Ipv6(v6) => address::is_public(IpAddr::V6(v6)),
            // Always loopback (RFC 6761 §6.3). Said here because a proxy would resolve it to itself.
            Host::Domain(_) => !is_loopback(&host),
        };
        public.then_some(&self.filtered)
    }
}

/// What the clients are made from.
#[derive(Clone)]
struct Recipe {
    authorities: Vec<reqwest::Certificate>,
    proxy: Option<Url>,
}

impl Recipe {
    fn client(&self, resolver: Arc<dyn Resolve>, bypass: Option<&str>) -> Result<reqwest::Client, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("obo/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // The default policy sends again after an HTTP/2 refusal. Who repeats a request knows what it does.
            .retry(reqwest::retry::never())
            .referer(false)
            // Not the environment's proxy: HTTP_PROXY would move the name filter out of this process unseen.
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
            .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
            .tls_certs_merge(self.authorities.iter().cloned())
            .dns_resolver(resolver);
        if let Some(proxy) = self.proxy(bypass)? {
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(|error| no_client(&error))
    }

    fn proxy(&self, bypass: Option<&str>) -> Result<Option<reqwest::Proxy>, String> {
        let Some(url) = &self.proxy else { return Ok(None) };
        if !matches!(url.scheme(), "http" | "https") {
            return Err("network.proxy: not an http or https URL; write https://host:port".to_owned());
        }
        let proxy = reqwest::Proxy::all(url.clone())
            .map_err(|_| "network.proxy: not usable as a proxy; write https://host:port".to_owned())?;
        Ok(Some(proxy.no_proxy(bypass.and_then(reqwest::NoProxy::from_string))))
    }
}

fn no_client(error: &reqwest::Error) -> String {
    let cause = error.source().map_or_else(|| "unknown cause".to_owned(), ToString::to_string);
    format!("network: no TLS client can be made ({cause}); check ca_file and the system's certificates")
}

/// Whether a URL's host is this machine: where plain `http` is accepted.
pub fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(v4) => v4.is_loopback(),
        Host::Ipv6(v6) => v6.is_loopback(),
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

async fn exchange(
    client: &reqwest::Client,
    request: reqwest::Request,
    body_bytes: usize,
    host: &str,
) -> Result<Answer, EgressError> {
    let mut response = client.execute(request).await.map_err(|error| classify(error, host))?;
    let too_large = || EgressError::TooLarge(host.to_owned());
    if response.content_length().is_some_and(|length| length > body_bytes as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    // Counted as it comes, after decompression: neither a false Content-Length nor a small gzip of a huge text helps.
    while let Some(chunk) = response.chunk().await.map_err(|error| classify(error, host))? {
        if chunk.len() > body_bytes - body.len() {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status: response.status(), headers: std::mem::take(response.headers_mut()), body })
}

fn classify(error: reqwest::Error, host: &str) -> EgressError {
    let error = error.without_url();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<NotPublic>() {
            return EgressError::Forbidden(host.to_owned());
        }
        cause = inner.source();
    }
    tracing::debug!(host, error = ?error, "request failed");
    if error.is_connect() {
        EgressError::Unreachable(host.to_owned())
    } else if error.is_timeout() {
        EgressError::Timeout(host.to_owned())
    } else {
        EgressError::Broken(host.to_owned())
    }
}

/// Host in lower case without a final dot, and port; the default port where none is written.
fn host_and_port(url: &Url) -> Option<(String, u16)> {
    let host = url.host_str()?;
    Some((host.strip_suffix('.').unwrap_or(host).to_owned(), url.port_or_known_default()?))
}

fn parse_allow_private(entry: &str) -> Result<(String, u16), String> {
    let mend = || format!("network.allow_private: {entry:?} is not host:port; write it like \"jira.corp:443\"");
    let (_, port) = entry.rsplit_once(':').ok_or_else(mend)?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(mend());
    }
    let url = Url::parse(&format!("https://{entry}/")).map_err(|_| mend())?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(mend());
    }
    host_and_port(&url).ok_or_else(mend)
}

fn read_authorities(path: &std::path::Path) -> Result<Vec<reqwest::Certificate>, String> {
    let bad = |why: &str| format!("network.ca_file: {} {why}; name a PEM file of certificates", path.display());
    let pem = std::fs::read(path).map_err(|error| bad(&format!("cannot be read ({})", error.kind())))?;
    let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|_| bad("is not PEM"))?;
    if authorities.is_empty() {
        return Err(bad("holds no certificate"));
    }
    Ok(authorities)
}

/// The operating system's resolver.
struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // Port 0: the connector puts the URL's port in.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// A resolver that drops addresses which are not public. The connector dials what this returns and nothing else.
struct PublicOnly(Arc<dyn Resolve>);

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let resolving = self.0.resolve(name);
        Box::pin(async move {
            let public: Vec<SocketAddr> = resolving.await?.filter(|found| address::is_public(found.ip())).collect();
            if public.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// None of a name's addresses is public.
#[derive(Debug, thiserror::Error)]
#[error("resolves to no public address")]
struct NotPublic;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::stub::{Reply, Stub};
    use super::*;

    const LIMITS: Limits = Limits { total: Duration::from_secs(10), body_bytes: 1000 };

    /// Answers each question with the next of its lists of addresses, the last one for ever.
    struct Scripted(Vec<Vec<SocketAddr>>, AtomicUsize);

    impl Scripted {
        fn new(answers: &[&[&str]]) -> Arc<Self> {
            let answers = answers.iter().map(|list| list.iter().map(|at| at.parse().unwrap()).collect()).collect();
            Arc::new(Self(answers, AtomicUsize::new(0)))
        }
    }

    impl Resolve for Scripted {
        fn resolve(&self, _: Name) -> Resolving {
            let turn = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
            let answer = self.0[turn].clone();
            Box::pin(async move { Ok(Box::new(answer.into_iter()) as Addrs) })
        }
    }

    async fn canary() -> Stub {
        Stub::start(|_| Reply::json(200, "{}")).await
    }

    fn egress(written: &[Url], resolver: Arc<dyn Resolve>) -> Egress {
        Egress::with_resolver(&Config::default(), written, resolver).unwrap()
    }

    async fn get(egress: &Egress, url: &str) -> Result<Answer, EgressError> {
        egress.send(egress.request(http::Method::GET, Url::parse(url).unwrap()), LIMITS).await
    }

    #[tokio::test]
    async fn literals_that_are_not_public_are_refused_in_every_spelling() {
        let canary = canary().await;
        let egress = egress(&[], Scripted::new(&[&["127.0.0.1:0"]]));
        let hosts = [
            // 127.0.0.1
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0x7f.0.0.1",
            "017700000001",
            "0177.0.0.1",
            "0177.0.0.01",
            "0x7F.0x0.0x0.0x1",
            "127.0.0.1.",
            "%31%32%37.0.0.1",
            "\u{ff11}27.0.0.1",
            "127\u{3002}0\u{3002}0\u{3002}1",
            "\u{2460}\u{2461}\u{2466}.0.0.1",
            "127.255.255.254",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::7f00:1]",
            "[2002:7f00:1::]",
            "[2001:0:7f00:1::1]",
            // Nowhere, which Linux takes for here.
            "0",
            "0.0.0.0",
            "0x0",
            "00",
            "[::]",
            "0.1.2.3",
            // Metadata services.
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "0xa9.254.0251.254",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::a9fe:a9fe]",
            "100.100.100.200",
            "[fd00:ec2::254]",
            "[fe80::a9fe:a9fe]",
            "192.0.0.192",
            // Private and special.
            "10.0.0.1",
            "10.1",
            "012.0.0.1",
            "0xa000001",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.1",
            "3232235521",
            "0xc0a80001",
            "198.18.0.1",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "192.88.99.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "4294967295",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[ff02::1]",
            "[fec0::1]",
            "[100::1]",
            "[2001:db8::1]",
            "[2002:c0a8:1::]",
            "[3fff::1]",
            "[5f00::1]",
            // Loopback by name.
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.localhost",
            "loc%61lhost",
        ];
        assert!(hosts.len() >= 60);
        for host in hosts {
            let port = canary.address().port();
            let error = get(&egress, &format!("https://{host}:{port}/secret?token=1")).await.err().expect(host);
            assert!(matches!(error, EgressError::Forbidden(_)), "{host}: {error}");
            assert!(!error.to_string().contains("secret") && !error.to_string().contains("token"), "{error}");
        }
        assert_eq!(canary.connections(), 0);
    }

    #[tokio::test]
    async fn a_name_is_filtered_each_time_it_is_connected_to() {
        let canary = canary().await;
        let egress = egress(&[], Scripted::new(&[&["127.0.0.1:0"], &["10.0.0.1:0", "[::1]:0", "169.254.169.254:0"]]));
        for _ in 0..3 {
            let url = format!("https://rebind.example:{}/", canary.address().port());
            let error = get(&egress, &url).await.err().unwrap();
            assert!(matches!(&error, EgressError::Forbidden(host) if host == "rebind.example"), "{error}");
        }
        assert_eq!(canary.connections(), 0);
    }

    #[tokio::test]
    async fn of_mixed_addresses_only_the_public_ones_are_dialled() {
        let filter = PublicOnly(Scripted::new(&[&["8.8.8.8:0", "127.0.0.1:0", "[2606:4700::1]:0"], &["127.0.0.1:0"]]));
        let first: Vec<_> = filter.resolve("a.example".parse().unwrap()).await.unwrap().collect();
        assert_eq!(first, ["8.8.8.8:0".parse().unwrap(), "[2606:4700::1]:0".parse().unwrap()]);
        // The same name a moment later.
        assert!(filter.resolve("a.example".parse().unwrap()).await.is_err());
    }

    #[tokio::test]
    async fn what_the_operator_wrote_is_reachable_by_host_and_port() {
        let canary = canary().await;
        let port = canary.address().port();
        let resolver = Scripted::new(&[&["127.0.0.1:0"]]);
        let written = egress(&[canary.url("/any")], Arc::clone(&resolver) as _);
        assert_eq!(get(&written, canary.url("/x").as_str()).await.unwrap().status, 200);
        assert_eq!(canary.connections(), 1);

        let elsewhere = egress(&[Url::parse("http://127.0.0.1:1/").unwrap()], Arc::clone(&resolver) as _);
        assert!(matches!(get(&elsewhere, canary.url("/").as_str()).await, Err(EgressError::Forbidden(_))));
        assert_eq!(canary.connections(), 1);

        // A name from allow_private reaches a private address (here it fails at TLS), on its port only.
        let config = Config { allow_private: vec![format!("Jira.Corp:{port}")], ..Config::default() };
        let allowed = Egress::with_resolver(&config, &[], resolver).unwrap();
        let error = get(&allowed, &format!("https://jira.corp:{port}/")).await.err().unwrap();
        assert!(matches!(error, EgressError::Unreachable(_)), "{error}");
        assert_eq!(canary.connections(), 2);
        let error = get(&allowed, "https://jira.corp:444/").await.err().unwrap();
        assert!(matches!(error, EgressError::Forbidden(_)), "{error}");
    }

    #[tokio::test]
    async fn what_stands_elsewhere_in_the_file_is_not_open_to_strangers() {
        let (canary, allowed) = (canary().await, canary().await);
        let config =
            Config { allow_private: vec![format!("127.0.0.1:{}", allowed.address().port())], ..Config::default() };
        let egress = Egress::with_resolver(&config, &[canary.url("/")], Scripted::new(&[&["127.0.0.1:0"]])).unwrap();
        let strangers = async |url: Url| {
            egress.send_to_stranger(egress.request(http::Method::GET, url), LIMITS).await.map(|answer| answer.status)
        };
        assert!(get(&egress, canary.url("/").as_str()).await.is_ok());
        assert_eq!(canary.connections(), 1);
        assert!(matches!(strangers(canary.url("/")).await, Err(EgressError::Forbidden(_))));
        let named: Url = format!("http://localhost:{}/", canary.address().port()).parse().unwrap();
        assert!(matches!(strangers(named).await, Err(EgressError::Forbidden(_))));
        assert_eq!(canary.connections(), 1, "nothing was sent for a stranger");
        assert!(strangers(allowed.url("/")).await.is_ok());
    }

    #[tokio::test]
    async fn plain_http_and_credentials_in_urls_are_refused() {
        let open = Scripted::new(&[&["127.0.0.1:0"]]);
        let written: Vec<Url> =
            ["http://a.example/", "https://a.example/"].iter().map(|url| Url::parse(url).unwrap()).collect();
        let egress = egress(&written, open);
        for url in ["http://a.example/", "https://u:p@a.example/", "https://u@a.example/", "ftp://a.example/"] {
            assert!(matches!(get(&egress, url).await, Err(EgressError::Forbidden(_))), "{url}");
        }
        // Loopback that was written is tried; the connection is refused.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://localhost:{}/", socket.local_addr().unwrap().port());
        let egress = self::egress(&[Url::parse(&url).unwrap()], Scripted::new(&[&["127.0.0.1:0"]]));
        assert!(matches!(get(&egress, &url).await, Err(EgressError::Unreachable(_))));
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_is_not_followed() {
        let canary = canary().await;
        let target = canary.url("/");
        let redirecting = Stub::start(move |asked| {
            let to = if asked.path() == "/a" { target.as_str() } else { "http://169.254.169.254/latest/meta-data" };
            Reply::Raw(format!("HTTP/1.1 302 X\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").into_bytes())
        })
        .await;
        let egress = egress(&[redirecting.url("/"), canary.url("/")], Scripted::new(&[&["127.0.0.1:0"]]));
        for path in ["/a", "/b"] {
            assert_eq!(get(&egress, redirecting.url(path).as_str()).await.unwrap().status, 302);
        }
        assert_eq!((canary.connections(), redirecting.connections()), (0, 2));
    }

    #[tokio::test]
    async fn answers_are_bounded_in_size_and_time() {
        let stub = Stub::start(|asked| match asked.path() {
            "/fits" => Reply::json(200, vec![b'x'; 1000]),
            "/long" => Reply::json(200, vec![b'x'; 1001]),
            // No length announced: counted while it streams.
            "/stream" => Reply::Raw([&b"HTTP/1.1 200 X\r\n\r\n"[..], &[b'x'; 5000]].concat()),
            "/gzip" => {
                Reply::Raw([&b"HTTP/1.1 200 X\r\ncontent-encoding: gzip\r\n\r\n"[..], &gzip_of_zeros()].concat())
            }
            "/cut" => Reply::Raw(b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\nabc".to_vec()),
            "/drop" => Reply::Raw(Vec::new()),
            "/garbage" => Reply::Raw(b"\x00\x01\x02 not HTTP\r\n\r\n".to_vec()),
            _ => Reply::Silence,
        })
        .await;
        let egress = egress(&[stub.url("/")], Scripted::new(&[&["127.0.0.1:0"]]));
        let ask = async |path: &str, total: Duration| {
            let request = egress.request(http::Method::GET, stub.url(path));
            egress.send(request, Limits { total, body_bytes: 1000 }).await
        };
        let long = Duration::from_secs(10);
        assert_eq!(ask("/fits", long).await.unwrap().body.len(), 1000);
        assert!(matches!(ask("/long", long).await, Err(EgressError::TooLarge(_))));
        assert!(matches!(ask("/stream", long).await, Err(EgressError::TooLarge(_))));
        assert!(matches!(ask("/gzip", long).await, Err(EgressError::TooLarge(_))));
        for broken in ["/cut", "/drop", "/garbage"] {
            assert!(matches!(ask(broken, long).await, Err(EgressError::Broken(_))), "{broken}");
        }
        // One connection a question: nothing was asked twice.
        assert_eq!(stub.connections(), 7);
        assert!(matches!(ask("/silence", Duration::from_millis(50)).await, Err(EgressError::Timeout(_))));
    }

    /// 100 000 zero bytes, gzipped (`head -c 100000 /dev/zero | gzip -9n`).
    fn gzip_of_zeros() -> Vec<u8> {
        let head = [
            0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xed, 0xc1, 0x31, 0x01, 0x00, 0x00, 0x00, 0xc2,
            0xa0, 0xf5, 0x4f, 0x6d, 0x0d, 0x0f, 0xa0,
        ];
        let tail = [0x80, 0x57, 0x03, 0x7d, 0x95, 0x11, 0xd4, 0xa0, 0x86, 0x01, 0x00];
        [&head[..], &[0; 96], &tail].concat()
    }

    #[tokio::test]
    async fn nobody_there_is_told_apart_from_nothing_heard() {
        // Bound, so that nobody else gets the port, but not listening.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = Url::parse(&format!("http://{}/", socket.local_addr().unwrap())).unwrap();
        let egress = egress(std::slice::from_ref(&url), Scripted::new(&[&["127.0.0.1:0"]]));
        assert!(matches!(get(&egress, url.as_str()).await, Err(EgressError::Unreachable(_))));
    }

    #[test]
    fn configuration_errors_name_the_key() {
        for entry in ["jira.corp", "jira.corp:", "jira.corp:x", "https://jira.corp:443", "a/b:443", "u@h:1", ":443", ""]
        {
            let config = Config { allow_private: vec![entry.to_owned()], ..Config::default() };
            let error = Egress::new(&config, &[]).err().expect(entry);
            assert!(error.starts_with("network.allow_private: "), "{error}");
        }
        let config = Config { allow_private: vec!["[fd00::1]:8443".to_owned()], ..Config::default() };
        assert!(Egress::new(&config, &[]).is_ok());

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let config = Config { ca_file: Some(file.clone()), ..Config::default() };
        assert!(Egress::new(&config, &[]).err().unwrap().starts_with("network.ca_file: "));
        std::fs::write(&file, "no certificate here").unwrap();
        assert!(Egress::new(&config, &[]).err().unwrap().contains("holds no certificate"));

        let config = Config { proxy: Some(Url::parse("socks5://proxy:1").unwrap()), ..Config::default() };
        assert!(Egress::new(&config, &[]).err().unwrap().starts_with("network.proxy: "));
    }

    #[tokio::test]
    async fn behind_a_proxy_names_are_its_to_resolve_and_private_literals_still_refused() {
        let proxy = Stub::start(|_| Reply::json(200, "{}")).await;
        let config = Config { proxy: Some(proxy.url("/")), ..Config::default() };
        let egress = Egress::with_resolver(&config, &[], Scripted::new(&[&["127.0.0.1:0"]])).unwrap();
        // The stub answers CONNECT without being a tunnel: TLS then fails, after one connection to the proxy.
        assert!(get(&egress, "https://api.example/").await.is_err());
        assert_eq!(proxy.connections(), 1);
        assert!(proxy.asked()[0].head.starts_with("CONNECT api.example:443 "));
        for url in ["https://169.254.169.254/", "https://localhost/", "http://127.0.0.1/"] {
            assert!(matches!(get(&egress, url).await, Err(EgressError::Forbidden(_))), "{url}");
        }
        assert_eq!(proxy.connections(), 1);
    }
}
