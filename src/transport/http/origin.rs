//! Is this request meant for us? Host and Origin, before anything else is looked at.
//!
//! A page on any site can make a browser send requests to a server that only the browser can reach. If its name is
//! made to point here (DNS rebinding), `Host` still has the name; if it sends across origins, `Origin` has its origin
//! (2025-11-25, Transports §Security Warning).

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::Authority};
use url::Url;

use super::answer::refuse;
use crate::transport::Config;
use crate::transport::config::web_origin;

const ALLOWED_METHODS: &str = "GET, POST, DELETE";
const ALLOWED_HEADERS: &str = "authorization, content-type, accept, last-event-id, mcp-protocol-version, \
    mcp-session-id, mcp-method, mcp-name, obo-user";
const EXPOSED_HEADERS: &str = "mcp-session-id, www-authenticate";

/// The names and origins that are ours, and the origins that are welcome.
pub(super) struct Gate {
    hosts: Vec<(String, Option<u16>)>,
    own: HashSet<String>,
    welcome: HashSet<String>,
}

impl Gate {
    /// `listen` is the address that is really listened on, its port included.
    pub(super) fn new(config: &Config, listen: SocketAddr) -> Self {
        let mut hosts = vec![(bare(&listen.ip().to_string()), Some(listen.port()))];
        let mut own = HashSet::new();
        if listen.ip().is_loopback() {
            // Any port: a tunnel to this port has another one at its far end. What matters is the name.
            hosts.extend(["localhost", "127.0.0.1", "::1"].map(|name| (name.to_owned(), None)));
            own.extend(["localhost", "127.0.0.1", "[::1]"].map(|name| format!("http://{name}:{}", listen.port())));
        }
        if let Ok(url) = Url::parse(&config.public_base()) {
            if let Some(host) = url.host_str() {
                hosts.push((bare(host), url.port_or_known_default()));
            }
            own.insert(url.origin().ascii_serialization());
        }
        Self { hosts, own, welcome: config.allowed_origins.iter().filter_map(|origin| web_origin(origin)).collect() }
    }

    fn admits_host(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::HOST).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some(host) = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()) else { return false };
        // A target in absolute form names the host a second time (RFC 9112 §3.2.2).
        let agrees = uri.authority().is_none_or(|target| target == &host);
        let port = host.port_u16();
        // `Authority` also reads `user@host`, and overlooks a port that is no number.
        let rest = host.as_str().strip_prefix(host.host());
        let exact = rest.is_some_and(|rest| rest.is_empty() || port.is_some());
        let name = bare(host.host());
        agrees
            && exact
            && self.hosts.iter().any(|(ours, needed)| {
                *ours == name && needed.is_none_or(|needed| port.unwrap_or(default_port(needed)) == needed)
            })
    }

    fn admits_origin(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::ORIGIN).iter();
        match (values.next(), values.next()) {
            // No browser sends a cross-origin POST without one, and other clients send none.
            (None, _) => true,
            (Some(origin), None) => origin
                .to_str()
                .ok()
                .and_then(web_origin)
                .is_some_and(|origin| self.own.contains(&origin) || self.welcome.contains(&origin)),
            (Some(_), Some(_)) => false,
        }
    }

    /// The origin of a page that may read our answers, where a browser asks for leave. Our own need none.
    fn shares_with(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let normal = web_origin(origin.to_str().ok()?)?;
        self.welcome.contains(&normal).then(|| origin.clone())
    }
}

/// A host's name in the one spelling that is compared.
fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
}

/// The port that a `Host` without one stands for: that of the scheme, which TLS in front hides from us.
fn default_port(needed: u16) -> u16 {
    if needed == 443 { 443 } else { 80 }
}

/// Refuses requests whose `Host` is not ours.
pub(super) async fn check_host(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if gate.admits_host(request.uri(), request.headers()) {
        return next.run(request).await;
    }
    tracing::warn!(host = ?request.headers().get(header::HOST), "http.host_refused");
    refuse(StatusCode::FORBIDDEN, "this Host is not served here; use the address in server.public_url")
}

/// Refuses requests from pages of other origins, and answers the browser's question whether one may ask (CORS).
pub(super) async fn check_origin(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if !gate.admits_origin(request.headers()) {
        tracing::warn!(origin = ?request.headers().get(header::ORIGIN), "http.origin_refused");
        return refuse(
            StatusCode::FORBIDDEN,
            "this Origin may not use this server; its operator can add it to server.allowed_origins",
        );
    }
    let Some(origin) = gate.shares_with(request.headers()) else { return next.run(request).await };
    let preflight = request.method() == Method::OPTIONS;
    let mut response = if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(config: &str, listen: &str) -> Gate {
        let config: Config = toml::from_str(config).unwrap();
        Gate::new(&config, listen.parse().unwrap())
    }

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn hosts_that_are_ours() {
        let local = gate("", "127.0.0.1:8787");
        let public = gate("listen = \"0.0.0.0:9000\"\npublic_url = \"https://obo.example.com\"", "0.0.0.0:9000");
        let any: Uri = "/mcp".parse().unwrap();
        for (gate, host, ours) in [
            (&local, "127.0.0.1:8787", true),
            (&local, "localhost:8787", true),
            (&local, "LOCALHOST", true),
            (&local, "localhost:1234", true),
            (&local, "[::1]:8787", true),
            (&local, "evil.example:8787", false),
            (&local, "localhost.evil.example", false),
            (&local, "evil.localhost", false),
            (&local, "127.0.0.1.evil.example", false),
            (&local, "evil@localhost", false),
            (&local, "localhost:8787:1", false),
            (&local, "localhost:99999", false),
            (&local, "", false),
            (&public, "obo.example.com", true),
            (&public, "OBO.example.com:443", true),
            (&public, "obo.example.com:80", false),
            (&public, "obo.example.com:9000", false),
            (&public, "sub.obo.example.com", false),
            (&public, "obo.example.com.evil.example", false),
            (&public, "localhost", false),
            (&public, "127.0.0.1:9000", false),
        ] {
            assert_eq!(gate.admits_host(&any, &headers(header::HOST, &[host])), ours, "{host}");
        }
        assert!(!local.admits_host(&any, &headers(header::HOST, &[])));
        assert!(!local.admits_host(&any, &headers(header::HOST, &["localhost", "localhost"])));
        let absolute: Uri = "http://evil.example/mcp".parse().unwrap();
        assert!(!local.admits_host(&absolute, &headers(header::HOST, &["localhost:8787"])));
    }

    #[test]
    fn origins_that_may_ask() {
        let config = "public_url = \"https://obo.example.com\"\nallowed_origins = [\"https://app.example.com:8443\"]";
        let gate = gate(config, "127.0.0.1:8787");
        for (origin, welcome) in [
            ("https://obo.example.com", true),
            ("https://obo.example.com:443", true),
            ("HTTPS://OBO.example.com", true),
            ("http://127.0.0.1:8787", true),
            ("http://localhost:8787", true),
            ("http://[::1]:8787", true),
            ("https://app.example.com:8443", true),
            ("null", false),
            ("", false),
            ("http://obo.example.com", false),
            ("https://obo.example.com:8443", false),
            ("https://sub.obo.example.com", false),
            ("https://obo.example.com.evil.example", false),
            ("https://evil.example", false),
            ("https://app.example.com", false),
            ("https://app.example.com:443", false),
            ("http://localhost:1", false),
            ("https://localhost:8787", false),
            ("https://obo.example.com/", false),
            ("https://evil@obo.example.com", false),
            ("file://", false),
        ] {
            assert_eq!(gate.admits_origin(&headers(header::ORIGIN, &[origin])), welcome, "{origin:?}");
        }
        assert!(gate.admits_origin(&HeaderMap::new()));
        let twice = headers(header::ORIGIN, &["https://obo.example.com", "https://obo.example.com"]);
        assert!(!gate.admits_origin(&twice));
    }
}
