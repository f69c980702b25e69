//! Clients that are known by a document: their id is its address (Client ID Metadata Documents).
//!
//! The address comes from whoever sends a browser here. It is fetched only for a person who has signed in, only where
//! strangers may make obo connect to (T11), whole and small, and a redirect is not followed.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header;
use jiff::Timestamp;
use lru::LruCache;
use serde_json::Value;
use tokio::sync::Semaphore;
use url::Url;

use super::client::{Client, ClientError, KnownBy, Metadata};
use crate::clock::{SharedClock, later};
use crate::egress::{Egress, EgressError, Limits, json};

/// Bounds of fetching a document: it has a name and a few addresses.
const LIMITS: Limits = Limits { total: Duration::from_secs(5), body_bytes: 16 << 10 }; // 16 KiB
/// How long a document is used without being read anew. Errors are not kept.
const FRESH: Duration = Duration::from_secs(5 * 60);
/// How many documents are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// How many are fetched at once.
const AT_ONCE: usize = 8;

/// Whether an id is to be an address, right or wrong.
pub(super) fn is_id(id: &str) -> bool {
    ["https:", "http:"]
        .iter()
        .any(|scheme| id.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}

/// Fetches documents, and keeps some for a while.
pub(super) struct Documents {
    egress: Egress,
    clock: SharedClock,
    kept: Mutex<LruCache<String, (Timestamp, Client)>>,
    room: Arc<Semaphore>,
}

impl Documents {
    pub(super) fn new(egress: Egress, clock: SharedClock) -> Self {
        Self { egress, clock, kept: Mutex::new(LruCache::new(KEPT)), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// A client whose document was read lately.
    pub(super) fn cached(&self, id: &str) -> Option<Client> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (read_at, client) = kept.get(id)?;
        let fresh = self.clock.now() < later(*read_at, FRESH) && self.clock.now() >= *read_at;
        fresh.then(|| client.clone())
    }

    /// Fetches a client's document and checks it.
    pub(super) async fn fetch(&self, id: &str) -> Result<Client, ClientError> {
        let url = address(id).map_err(|why| ClientError::Bad(format!("The client's id {why}.")))?;
        let host = host_of(&url);
        let bad = |why: &str| ClientError::Bad(format!("The metadata document of the client at {host} {why}."));
        let Ok(_room) = self.room.try_acquire() else {
            return Err(ClientError::Unavailable(
                "Too many clients are being looked up just now. Try again.".to_owned(),
            ));
        };
        let request = self.egress.request(http::Method::GET, url).header(header::ACCEPT, "application/json");
        let answer = self.egress.send_to_stranger(request, LIMITS).await.map_err(|error| match error {
            EgressError::Forbidden(_) => bad("is at an address that obo does not connect to for strangers"),
            EgressError::TooLarge(_) => bad("is larger than 16 KiB"),
            EgressError::Timeout(_) => {
                ClientError::Unavailable(format!("The metadata document at {host} did not arrive in five seconds."))
            }
            EgressError::Unreachable(_) | EgressError::Broken(_) => {
                ClientError::Unavailable(format!("The metadata document at {host} cannot be fetched."))
            }
        })?;
        if answer.status.is_redirection() {
            return Err(bad("redirects elsewhere; its address must be the client's id itself"));
        }
        if answer.status != http::StatusCode::OK {
            return Err(ClientError::Unavailable(format!(
                "The metadata document at {host} cannot be fetched; the answer was {}.",
                answer.status.as_u16()
            )));
        }
        let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind != "application/json" && !(kind.starts_with("application/") && kind.ends_with("+json")) {
            return Err(bad("is not sent as JSON"));
        }
        let client = read(id, &host, &answer.body).map_err(|why| bad(&why))?;
        let entry = (self.clock.now(), client.clone());
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).put(id.to_owned(), entry);
        Ok(client)
    }
}

/// The address that an id is. As text, too: two spellings of one address would be two clients.
fn address(id: &str) -> Result<Url, &'static str> {
    let url = Url::parse(id).map_err(|_| "is not a URL")?;
    // http only where egress allows a loopback address by name: for trying things out.
    if !matches!(url.scheme(), "https" | "http") {
        return Err("is not an https URL");
    }
    if url.path() == "/" {
        return Err("has no path; it must be the address of a document");
    }
    if id.contains('#') {
        return Err("has a fragment");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user or a password");
    }
    if url.as_str() != id {
        return Err("is not spelled as URLs are: lower-case host, no default port, no dot segments");
    }
    Ok(url)
}

/// The host, with the port where one is written.
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Reads what was found at the address that an id is.
///
/// # Errors
/// What is wrong with one or the other, to be put after it.
pub fn parse_document(id: &str, body: &[u8]) -> Result<Client, String> {
    read(id, &host_of(&address(id)?), body)
}

/// Reads a document. The error is to be put after "the document".
fn read(id: &str, host: &str, body: &[u8]) -> Result<Client, String> {
    let Ok(Value::Object(metadata)) = json::parse(body) else { return Err("is not a JSON object".to_owned()) };
    // Compared as text: whoever can write one document must not speak for another.
    match metadata.get("client_id") {
        Some(Value::String(own)) if own == id => {}
        Some(_) => return Err("is for another client_id".to_owned()),
        None => return Err("has no client_id".to_owned()),
    }
    // Everybody can read it: what is in it is no secret.
    if metadata.contains_key("client_secret") || metadata.contains_key("client_secret_expires_at") {
        return Err("has a client secret, which everybody can read".to_owned());
    }
    // Some prefer another method and say that they have this one, too.
    let method = metadata.get("token_endpoint_auth_method").filter(|method| *method != "none");
    let has_none = |list: &Value| list.as_array().is_some_and(|list| list.iter().any(|method| method == "none"));
    if method.is_some() && !metadata.get("token_endpoint_auth_methods_supported").is_some_and(has_none) {
        return Err("asks for a token_endpoint_auth_method other than none, which obo has not".to_owned());
    }
    let Metadata { name, redirect_uris } =
        Metadata::read(&metadata).map_err(|error| format!("is not acceptable: {}", error.text()))?;
    let known_by = KnownBy::Document { host: host.to_owned() };
    Ok(Client { id: id.to_owned(), name, known_by, redirect_uris })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use reqwest::dns::{Addrs, Name, Resolve, Resolving};

    use super::*;
    use crate::clock::ManualClock;
    use crate::egress::Config;
    use crate::egress::stub::{Reply, Stub};

    /// A name that is this computer, or what is beside it: another one each time.
    struct Rebinding(AtomicUsize);

    impl Resolve for Rebinding {
        fn resolve(&self, _: Name) -> Resolving {
            let answers = ["127.0.0.1:0", "10.0.0.1:0", "169.254.169.254:0", "[::1]:0", "[fd00::1]:0"];
            let turn = self.0.fetch_add(1, Ordering::SeqCst) % answers.len();
            let answer: SocketAddr = answers[turn].parse().unwrap();
            Box::pin(async move { Ok(Box::new(std::iter::once(answer)) as Addrs) })
        }
    }

    fn documents(config: &Config, written: &[Url]) -> Documents {
        let egress = Egress::with_resolver(config, written, Arc::new(Rebinding(AtomicUsize::new(0)))).unwrap();
        Documents::new(egress, ManualClock::at(Timestamp::UNIX_EPOCH))
    }

    #[tokio::test]
    async fn a_document_s_name_is_connected_to_only_where_strangers_may_lead() {
        let canary = Stub::start(|_| Reply::json(200, "{}")).await;
        let port = canary.address().port();
        let id = format!("https://tool.example:{port}/client.json");
        // Nobody wrote it down; and what stands elsewhere in obo.toml is not there for strangers.
        for written in [vec![], vec![Url::parse(&id).unwrap()]] {
            let documents = documents(&Config::default(), &written);
            for _ in 0..5 {
                let error = documents.fetch(&id).await.unwrap_err();
                assert!(matches!(&error, ClientError::Bad(text) if text.contains("for strangers")), "{error:?}");
            }
        }
        assert_eq!(canary.connections(), 0);
        // Written down for this, it is; the canary has no certificate.
        let open = Config { allow_private: vec![format!("tool.example:{port}")], ..Config::default() };
        let error = documents(&open, &[]).fetch(&id).await.unwrap_err();
        assert!(matches!(error, ClientError::Unavailable(_)), "{error:?}");
        assert_eq!(canary.connections(), 1);
    }

    #[tokio::test]
    async fn no_more_than_a_few_documents_are_fetched_at_once() {
        let slow = Stub::start(|_| Reply::Silence).await;
        let open = Config { allow_private: vec![slow.address().to_string()], ..Config::default() };
        let documents = Arc::new(documents(&open, &[]));
        let mut under_way = Vec::new();
        for number in 0..AT_ONCE {
            let (documents, id) = (Arc::clone(&documents), slow.url(&format!("/{number}")).to_string());
            under_way.push(tokio::spawn(async move { documents.fetch(&id).await }));
        }
        while documents.room.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let error = documents.fetch(slow.url("/more").as_str()).await.unwrap_err();
        assert!(matches!(&error, ClientError::Unavailable(text) if text.contains("Too many")), "{error:?}");
        for fetch in under_way {
            fetch.abort();
            let _ = fetch.await;
        }
        assert_eq!(documents.room.available_permits(), AT_ONCE, "whoever goes away makes room");
    }
}
