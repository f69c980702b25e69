//! The `[server]` section of obo.toml.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use url::{Host, Url};

/// Longest that `consent_wait` may hold a call. Clients and proxies give up on requests after a minute.
pub const MAX_CONSENT_WAIT: Duration = Duration::from_secs(50);

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8787);
const DEFAULT_CONSENT_WAIT: Duration = Duration::from_secs(25);
const DEFAULT_CALLS_PER_MINUTE: u32 = 600;

/// `[server]`: where obo listens, and how it speaks to clients.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port of `obo serve`. Default `127.0.0.1:8787`. On an address that is not loopback, `public_url` must
    /// be https: TLS ends in front of obo, and `X-Forwarded-*` headers are ignored.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// The address that people and clients use: scheme and host, no path. Default: `http://` and `listen`. https unless
    /// the host is loopback.
    pub public_url: Option<Url>,
    /// Web origins besides obo's own whose pages may call the MCP endpoint, each `https://host[:port]`. Default none.
    pub allowed_origins: Vec<String>,
    /// How `tools/list` spells names; both spellings are accepted on a call. Default `underscore`.
    pub tool_names: ToolNames,
    /// What a call that needs consent returns. Default `auto`.
    pub consent_delivery: ConsentDelivery,
    /// How long a call is held that waits for a link already given out, such as `25s`. At most `50s`; default `25s`.
    pub consent_wait: ConsentWait,
    /// Most tool calls that one person may make in a minute, all at once or spread out; further ones fail with
    /// `rate_limited` and say when to come back. Each process counts for itself, so behind several the limit is that
    /// much higher. 0: no limit. Default 600.
    pub calls_per_minute: u32,
    /// Address and port of the Prometheus metrics. Default none.
    #[schemars(with = "Option<String>")]
    pub metrics_listen: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            public_url: None,
            allowed_origins: Vec::new(),
            tool_names: ToolNames::default(),
            consent_delivery: ConsentDelivery::default(),
            consent_wait: ConsentWait(DEFAULT_CONSENT_WAIT),
            calls_per_minute: DEFAULT_CALLS_PER_MINUTE,
            metrics_listen: None,
        }
    }
}

impl Config {
    /// Checks what no single key can say.
    ///
    /// # Errors
    /// The first thing that is wrong, on one line, with its key and its mend.
    pub fn check(&self) -> Result<(), ConfigError> {
        match &self.public_url {
            None if !self.listen.ip().is_loopback() => {
                return Err(ConfigError::new(
                    "public_url",
                    format!(
                        "is missing, and {} is not loopback; set it to the https address that people use",
                        self.listen
                    ),
                ));
            }
            None => {}
            Some(url) => self.check_public_url(url)?,
        }
        let mut seen = HashSet::new();
        for origin in &self.allowed_origins {
            let normal = web_origin(origin).ok_or_else(|| {
                ConfigError::new(
                    "allowed_origins",
                    format!("{origin:?} is not an origin; write https://host or https://host:port, without a path"),
                )
            })?;
            if !seen.insert(normal) {
                return Err(ConfigError::new("allowed_origins", format!("{origin:?} is listed twice; remove one")));
            }
        }
        if self.metrics_listen == Some(self.listen) {
            return Err(ConfigError::new(
                "metrics_listen",
                "is the same as listen; give the metrics a port of their own",
            ));
        }
        Ok(())
    }

    fn check_public_url(&self, url: &Url) -> Result<(), ConfigError> {
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !bare || !url.username().is_empty() || url.password().is_some() || !url.has_host() {
            return Err(ConfigError::new(
                "public_url",
                "has more than scheme, host and port; write https://host without a path, query or user",
            ));
        }
        match url.scheme() {
            "https" => Ok(()),
            "http" if !self.listen.ip().is_loopback() => Err(ConfigError::new(
                "public_url",
                format!("is http, and {} is not loopback; let TLS end in front of obo and write https", self.listen),
            )),
            "http" if is_loopback(url) => Ok(()),
            "http" => Err(ConfigError::new("public_url", "is http for a host that is not loopback; write https")),
            _ => Err(ConfigError::new("public_url", "is neither https nor http; write https://host")),
        }
    }

    /// The address that people and clients use, without a slash at its end.
    pub fn public_base(&self) -> String {
        match &self.public_url {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None => format!("http://{}", self.listen),
        }
    }
}

/// How `tools/list` spells names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolNames {
    /// `Google_SendEmail`: clients and model APIs exist that refuse dots.
    #[default]
    Underscore,
    /// `Google.SendEmail`.
    Dotted,
}

/// What a call that needs consent returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConsentDelivery {
    /// The best that the client's protocol revision and capabilities have: a URL elicitation, else text.
    #[default]
    Auto,
    /// Always text. For clients that announce URL elicitation and then show nothing.
    Text,
    /// As `auto`, but a 2026-07-28 client without URL elicitation gets the error -32021.
    Elicit,
}

/// How long a call is held that waits for a link already given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct ConsentWait(Duration);

impl ConsentWait {
    /// The time.
    pub fn as_duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for ConsentWait {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wait = text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|wait| Duration::try_from(wait).ok())
            .ok_or_else(|| format!("{text:?} is not a time; write seconds, such as \"25s\""))?;
        if wait > MAX_CONSENT_WAIT {
            return Err(format!("{text:?} is too long; at most \"{}s\" is possible", MAX_CONSENT_WAIT.as_secs()));
        }
        Ok(Self(wait))
    }
}

/// What is wrong with `[server]`, on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("server.{key} {problem}")]
pub struct ConfigError {
    key: &'static str,
    problem: String,
}

impl ConfigError {
    fn new(key: &'static str, problem: impl Into<String>) -> Self {
        Self { key, problem: problem.into() }
    }
}

/// The origin that `text` spells, in its one normal form (RFC 6454 §6.2); none when it is not exactly an origin, or
/// when it is plain http to a host that is not loopback.
pub(super) fn web_origin(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let secure = match url.scheme() {
        "https" => true,
        "http" => is_loopback(&url),
        _ => false,
    };
    // Compared with the text itself: a URL that merely contains the origin (a path, a user, a trailing slash) is none.
    let origin = url.origin().ascii_serialization();
    let authority = text.split_once("://")?.1;
    let exact = !authority.contains(['/', '\\', '@', '?', '#']) && !text.contains(char::is_whitespace);
    (secure && exact).then_some(origin)
}

/// Whether a URL's host is this machine, whatever the resolver says.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_empty_section_is_a_loopback_server() {
        let config = parse("").unwrap();
        assert_eq!(config.listen, DEFAULT_LISTEN);
        assert_eq!(config.public_base(), "http://127.0.0.1:8787");
        assert_eq!(config.consent_wait.as_duration(), Duration::from_secs(25));
        assert_eq!((config.tool_names, config.consent_delivery), (ToolNames::Underscore, ConsentDelivery::Auto));
        assert_eq!(config.calls_per_minute, 600);
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"
            listen = "0.0.0.0:9000"
            public_url = "https://obo.example.com"
            allowed_origins = ["https://app.example.com:8443", "http://localhost:6274"]
            tool_names = "dotted"
            consent_delivery = "elicit"
            consent_wait = "50s"
            calls_per_minute = 0
            metrics_listen = "127.0.0.1:9464"
            "#,
        )
        .unwrap();
        assert_eq!(config.public_base(), "https://obo.example.com");
        assert_eq!((config.tool_names, config.consent_delivery), (ToolNames::Dotted, ConsentDelivery::Elicit));
        assert_eq!(config.consent_wait.as_duration(), MAX_CONSENT_WAIT);
        assert_eq!(config.calls_per_minute, 0);
    }

    #[test]
    fn the_schema_has_every_key_and_no_other() {
        let schema = schemars::schema_for!(Config).to_value();
        let keys: Vec<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "allowed_origins",
                "calls_per_minute",
                "consent_delivery",
                "consent_wait",
                "listen",
                "metrics_listen",
                "public_url",
                "tool_names"
            ]
        );
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["listen"]["type"], "string");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key_and_its_mend() {
        for (text, expected) in [
            ("listen = \"0.0.0.0:1\"", "server.public_url is missing, and 0.0.0.0:1 is not loopback"),
            ("listen = \"[::]:1\"\npublic_url = \"http://localhost:1\"", "server.public_url is http, and [::]:1"),
            ("public_url = \"http://obo.example.com\"", "server.public_url is http for a host that is not loopback"),
            ("public_url = \"https://obo.example.com/base\"", "server.public_url has more than scheme, host and port"),
            ("public_url = \"https://a:b@obo.example.com\"", "server.public_url has more than"),
            ("public_url = \"ftp://obo.example.com\"", "server.public_url is neither https nor http"),
            ("allowed_origins = [\"*\"]", "server.allowed_origins \"*\" is not an origin"),
            ("allowed_origins = [\"null\"]", "server.allowed_origins \"null\" is not an origin"),
            ("allowed_origins = [\"https://a.example/\"]", "is not an origin"),
            ("allowed_origins = [\"http://a.example\"]", "is not an origin"),
            ("allowed_origins = [\"https://a.example\", \"https://A.example:443\"]", "is listed twice"),
            ("metrics_listen = \"127.0.0.1:8787\"", "server.metrics_listen is the same as listen"),
            ("consent_wait = \"51s\"", "\"51s\" is too long; at most \"50s\""),
            ("consent_wait = \"-1s\"", "is not a time"),
            ("consent_wait = \"soon\"", "is not a time"),
            ("calls_per_minute = -1", "invalid value"),
            ("port = 1", "unknown field `port`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
