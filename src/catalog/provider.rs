//! `provider.toml`: where a provider's OAuth and APIs are, and how it differs from the next one.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::Finding;
use super::request::header_name;
use crate::schema::nearest;
use crate::secret::Secret;

/// A provider manifest, as written. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderManifest {
    /// The provider's id: the name of its folder, as `obo connect` and obo.toml spell it.
    pub id: String,
    /// The name that people read.
    pub name: String,
    /// The API servers, by the name that tool URLs begin with: `{calendar}/calendars/…`. Paths are kept.
    pub servers: BTreeMap<String, Url>,
    /// Header fields of every request to this provider, OAuth's too, by name: fixed texts, such as the version of its API
    /// that the manifests are written for. Only a few names are allowed; a tool's own come before them.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How a person connects.
    pub oauth: OauthManifest,
    /// How to learn which account was connected.
    pub account: AccountManifest,
    /// How the provider says what went wrong.
    #[serde(default)]
    pub errors: ErrorManifest,
    /// What each scope lets a tool do, in words for the consent page. A scope not listed is shown as it is.
    #[serde(default)]
    pub scopes: BTreeMap<String, String>,
    /// Scopes that give more than one tool can need, each with lesser ones to choose from: `obo tools check` warns of them.
    #[serde(default)]
    pub broad_scopes: BTreeMap<String, Vec<String>>,
}

/// The OAuth side of a provider (RFC 6749).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OauthManifest {
    /// The authorization endpoint.
    pub authorize_url: Url,
    /// The token endpoint.
    pub token_url: Url,
    /// Where to revoke.
    #[serde(default)]
    pub revoke: Option<RevokeManifest>,
    /// The issuer that an `iss` in the authorization answer must equal (RFC 9207 §2.4).
    #[serde(default)]
    pub issuer: Option<String>,
    /// Whether an authorization answer without `iss` is refused (RFC 9207 §2.4, for providers that announce it).
    #[serde(default)]
    pub require_iss: bool,
    /// How the client authenticates at the token endpoint.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// How requests to the token endpoint are written.
    #[serde(default)]
    pub token_body: TokenBody,
    /// Whether to send a PKCE S256 challenge (RFC 7636).
    #[serde(default = "yes")]
    pub pkce: bool,
    /// The authorize parameter that carries the scopes.
    #[serde(default = "scope")]
    pub scope_param: String,
    /// What stands between scopes in that parameter.
    #[serde(default = "space")]
    pub scope_separator: String,
    /// Scopes asked for in every flow, to learn whose account it is.
    #[serde(default)]
    pub base_scopes: Vec<String>,
    /// Further authorize parameters.
    #[serde(default)]
    pub authorize_params: BTreeMap<String, String>,
    /// The authorize parameter that names the account a person should pick, where the provider has one.
    #[serde(default)]
    pub login_hint_param: Option<String>,
    /// A jq program over the token endpoint's JSON answer that yields an answer in the shape of RFC 6749 §5.1 or §5.2.
    /// Without it the answer is taken as it stands.
    #[serde(default)]
    pub token_answer: Option<String>,
    /// What happens to the refresh token when it is used.
    #[serde(default)]
    pub refresh: Refresh,
    /// How long an access token lives when the answer does not say, in seconds. Without it: until it is refused.
    #[serde(default)]
    pub default_ttl_s: Option<u64>,
    /// How long a used refresh token is still accepted, in seconds. After that a strict provider is not asked with it again
    /// while there is an access token to lose. Default 0.
    #[serde(default)]
    pub refresh_grace_s: u64,
}

fn yes() -> bool {
    true
}
fn scope() -> String {
    "scope".to_owned()
}
fn space() -> String {
    " ".to_owned()
}

/// How the client authenticates at the token endpoint (RFC 6749 §2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// `client_id` and `client_secret` in the body.
    #[default]
    Post,
    /// HTTP Basic.
    Basic,
}

/// How requests to the token endpoint are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenBody {
    /// As a form (RFC 6749 §4.1.3).
    #[default]
    Form,
    /// As a JSON object of the same names.
    Json,
}

/// What a refresh does to the refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Refresh {
    /// There are none; access tokens live until they are revoked.
    None,
    /// The same one stays good.
    #[default]
    Keeps,
    /// A new one each time; the old one stays good for a while.
    Rotates,
    /// A new one each time; using an old one ends the connection.
    Strict,
}

/// How to revoke a token.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeManifest {
    /// The revocation endpoint.
    pub url: Url,
    /// How the token is handed over.
    #[serde(default)]
    pub style: RevokeStyle,
}

/// How a token to revoke is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RevokeStyle {
    /// A form with `token` (RFC 7009 §2.1).
    #[default]
    Form,
    /// A POST with the token as bearer.
    Bearer,
    /// A JSON object with `token`, the client's credentials as HTTP Basic.
    Json,
    /// GitHub's: DELETE of `url/{client_id}/grant`, the token as JSON, the client's credentials as HTTP Basic.
    ApplicationGrant,
}

/// How to learn which account was connected.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountManifest {
    /// The request's method.
    #[serde(default)]
    pub method: AccountMethod,
    /// Where to ask, with the new access token.
    pub url: Url,
    /// The JSON body of a POST, as text. Without it the body is empty.
    #[serde(default)]
    pub body: Option<String>,
    /// A jq program over the answer: an id that never changes and is never given to another account.
    pub key: String,
    /// A jq program over the answer: what a person knows the account by.
    pub label: String,
}

/// The method of the account request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum AccountMethod {
    /// GET.
    #[default]
    Get,
    /// POST.
    Post,
    /// Token introspection (RFC 7662 §2.1): the token and the client's credentials as a form.
    Introspect,
}

/// jq programs over `{status, headers, body}` of an API answer (header names in lower case). Each but the last two
/// yields true or false; the first true one, in the order below, decides. An answer that none decides is judged by
/// its status alone.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorManifest {
    /// Whether an answer with a 2xx status is a failure all the same.
    #[serde(default)]
    pub failed: Option<String>,
    /// The access token is not accepted: refresh, and if that does not help, connect again.
    #[serde(default)]
    pub token_dead: Option<String>,
    /// The connection lacks a scope.
    #[serde(default)]
    pub scope_missing: Option<String>,
    /// The provider asks to wait.
    #[serde(default)]
    pub rate_limited: Option<String>,
    /// The person may not do this.
    #[serde(default)]
    pub permission: Option<String>,
    /// The thing does not exist.
    #[serde(default)]
    pub not_found: Option<String>,
    /// An argument was refused.
    #[serde(default)]
    pub invalid_arguments: Option<String>,
    /// How long to wait, in seconds, as a number or text. `Retry-After` is read without it.
    #[serde(default)]
    pub retry_after_s: Option<String>,
    /// The provider's own words for what went wrong, for the caller. At most 300 characters are kept.
    #[serde(default)]
    pub message: Option<String>,
}

/// `[providers.ID]` of obo.toml: obo's client at a provider, and where the provider is.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderConfig {
    /// The client id that the provider gave for obo. Without it the provider's tools are not offered.
    pub client_id: Option<String>,
    /// The client secret. May be written `env:NAME` or `file:PATH`. None for a public client.
    #[schemars(with = "Option<String>")]
    pub client_secret: Option<Secret>,
    /// Whether to send a PKCE challenge; default: as the provider's manifest says.
    pub pkce: Option<bool>,
    /// Sends every URL of this provider to this origin, with its path kept: emulators, recording proxies.
    pub origin: Option<Url>,
    /// Moves single servers, by their name in provider.toml, path and all.
    pub servers: BTreeMap<String, Url>,
}

impl ProviderManifest {
    /// Checks what the types do not.
    pub(super) fn check(&self) -> Result<(), Finding> {
        let oauth = &self.oauth;
        let fixed =
            [("authorize_url", &oauth.authorize_url), ("token_url", &oauth.token_url), ("url", &self.account.url)];
        let revoke = oauth.revoke.iter().map(|revoke| ("revoke", &revoke.url));
        let servers = self.servers.iter().map(|(name, url)| (name.as_str(), url));
        for (key, url) in fixed.into_iter().chain(revoke).chain(servers.clone()) {
            check_url(url).map_err(|reason| Finding::at(key, format!("{key} {reason}"), "write https://host/path"))?;
        }
        for (name, value) in &self.headers {
            header(name, value)?;
        }
        for (key, url) in servers {
            if url.query().is_some() {
                return Err(Finding::at(
                    key,
                    format!("the server {key} has a query"),
                    "write its scheme, host and path",
                ));
            }
        }
        if let Some(body) = &self.account.body {
            let wrong = |reason: &str, mend: &str| Err(Finding::at("body", reason.to_owned(), mend));
            if self.account.method != AccountMethod::Post {
                return wrong("a GET request has no body", "write method = \"POST\", or leave the body out");
            }
            if serde_json::from_str::<serde::de::IgnoredAny>(body).is_err() {
                return wrong("the body is not JSON", "write it as '{\"key\": \"value\"}'");
            }
        }
        if self.name.trim().is_empty() || self.name.chars().any(char::is_control) {
            return Err(Finding::at(
                "name",
                "the provider has no name".into(),
                "write the name that people know it by",
            ));
        }
        for key in RESERVED_AUTHORIZE_PARAMS.iter().copied().chain([oauth.scope_param.as_str()]) {
            if oauth.authorize_params.contains_key(key) {
                let reason = format!("the authorize parameter {key:?} is obo's own");
                return Err(Finding::at("authorize_params", reason, "leave it out"));
            }
        }
        Ok(())
    }

    /// Applies obo.toml. The caller has checked that each of `servers` is a server.
    pub(super) fn apply(&mut self, config: &ProviderConfig) {
        if let Some(origin) = &config.origin {
            let urls = [&mut self.oauth.authorize_url, &mut self.oauth.token_url, &mut self.account.url];
            let revoke = self.oauth.revoke.iter_mut().map(|revoke| &mut revoke.url);
            for url in urls.into_iter().chain(revoke).chain(self.servers.values_mut()) {
                *url = moved(url, origin);
            }
        }
        for (name, to) in &config.servers {
            if let Some(url) = self.servers.get_mut(name) {
                *url = to.clone();
            }
        }
        if let Some(pkce) = config.pkce {
            self.oauth.pkce = pkce;
        }
    }
}

impl ProviderConfig {
    /// Checks what stands in obo.toml.
    ///
    /// # Errors
    /// The key, what is wrong, and the mend.
    pub(super) fn check(&self, id: &str, servers: Option<&BTreeMap<String, Url>>) -> Result<(), String> {
        let key = |name: &str| format!("providers.{id}.{name}");
        if self.client_id.as_ref().is_some_and(|id| id.trim().is_empty()) {
            return Err(format!("{} is empty: write the provider's client id, or leave the key out", key("client_id")));
        }
        if self.client_id.is_none() && self.client_secret.is_some() {
            return Err(format!(
                "{} is missing; write it beside client_secret, which is of no use alone",
                key("client_id")
            ));
        }
        if let Some(origin) = &self.origin {
            check_url(origin).map_err(|reason| format!("{} {reason}", key("origin")))?;
            if origin.path() != "/" || origin.query().is_some() {
                return Err(format!("{} has a path: write scheme, host and port only", key("origin")));
            }
        }
        for (name, url) in &self.servers {
            check_url(url).map_err(|reason| format!("{} {reason}", key(&format!("servers.{name}"))))?;
            if url.query().is_some() {
                return Err(format!(
                    "{} has a query: write its scheme, host and path",
                    key(&format!("servers.{name}"))
                ));
            }
            let Some(known) = servers else { continue };
            if !known.contains_key(name) {
                let known: Vec<&str> = known.keys().map(String::as_str).collect();
                let mend = match nearest(name, known.iter().copied()) {
                    Some(nearest) => format!("did you mean {nearest:?}?"),
                    None => format!("its servers are {}", known.join(", ")),
                };
                return Err(format!("{} is not a server of this provider; {mend}", key(&format!("servers.{name}"))));
            }
        }
        Ok(())
    }

    /// The URLs that the operator wrote, for the egress rules.
    pub fn written_urls(&self) -> impl Iterator<Item = &Url> {
        self.origin.iter().chain(self.servers.values())
    }
}

/// Authorize parameters that the flow itself sets (RFC 6749 §4.1.1, RFC 7636 §4.3).
const RESERVED_AUTHORIZE_PARAMS: &[&str] = &[
    "client_id",
    "client_secret",
    "code_challenge",
    "code_challenge_method",
    "redirect_uri",
    "request",
    "request_uri",
    "response_type",
    "state",
];

/// A header field of every request.
pub(super) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Finding> {
    let header = header_name(name)?;
    match HeaderValue::from_str(value) {
        Ok(text) if value.is_ascii() => Ok((header, text)),
        _ => Err(Finding::at(name, format!("the text of {name} is not one line of ASCII"), "correct it")),
    }
}

fn check_url(url: &Url) -> Result<(), &'static str> {
    match (url.scheme(), url.host()) {
        (_, None) => Err("has no host"),
        ("https", Some(_)) if url.username().is_empty() && url.password().is_none() && url.fragment().is_none() => {
            Ok(())
        }
        ("http", Some(host)) if is_loopback(&host) && url.username().is_empty() && url.fragment().is_none() => Ok(()),
        ("http", Some(_)) => Err("is plain http, which is accepted for loopback hosts only"),
        ("https", Some(_)) => Err("has a user name, a password or a fragment"),
        _ => Err("is not https"),
    }
}

fn is_loopback(host: &url::Host<&str>) -> bool {
    match host {
        url::Host::Domain(name) => *name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    }
}

/// `url` at another origin, path and query kept.
fn moved(url: &Url, origin: &Url) -> Url {
    let mut moved = origin.clone();
    moved.set_path(url.path());
    moved.set_query(url.query());
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        for (url, good) in [
            ("https://a.example/x", true),
            ("http://127.0.0.1:1/x", true),
            ("http://[::1]/x", true),
            ("http://localhost/x", true),
            ("http://a.example", false),
            ("http://127.0.0.1.evil.example", false),
            ("http://localhost.evil.example", false),
            ("http://10.0.0.1", false),
            ("ftp://127.0.0.1", false),
            ("https://user@a.example", false),
            ("https://a.example#x", false),
            ("data:text/plain,x", false),
        ] {
            assert_eq!(check_url(&url.parse().unwrap()).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn a_body_to_ask_for_the_account_is_json_and_posted() {
        let check = |account: &str| {
            let manifest = format!(
                "id = \"x\"\nname = \"X\"\nservers = {{}}\n[oauth]\nauthorize_url = \"https://a.example\"\n\
                 token_url = \"https://a.example\"\n[account]\nurl = \"https://a.example\"\nkey = \".\"\n\
                 label = \".\"\n{account}"
            );
            crate::catalog::parse_provider_manifest(&manifest).unwrap().check().map_err(|finding| finding.reason)
        };
        assert_eq!(check("method = \"POST\"\nbody = '{\"query\": \"{viewer{id}}\"}'"), Ok(()));
        assert_eq!(check("body = '{}'").unwrap_err(), "a GET request has no body");
        assert_eq!(check("method = \"POST\"\nbody = '{viewer}'").unwrap_err(), "the body is not JSON");
    }

    #[test]
    fn settings_that_cannot_work_name_their_key() {
        let servers = BTreeMap::from([("api".to_owned(), "https://a.example".parse().unwrap())]);
        let check = |config: ProviderConfig| config.check("x", Some(&servers)).unwrap_err();
        let url = |text: &str| Some(text.parse().unwrap());
        assert!(
            check(ProviderConfig { client_secret: Some(Secret::new("s")), ..Default::default() })
                .starts_with("providers.x.client_id")
        );
        assert!(
            check(ProviderConfig { origin: url("http://a.example"), ..Default::default() })
                .starts_with("providers.x.origin is plain http")
        );
        assert!(
            check(ProviderConfig { origin: url("https://a.example/p"), ..Default::default() }).contains("has a path")
        );
        let moved = BTreeMap::from([("apii".to_owned(), "https://b.example".parse().unwrap())]);
        let error = check(ProviderConfig { servers: moved, ..Default::default() });
        assert_eq!(error, "providers.x.servers.apii is not a server of this provider; did you mean \"api\"?");
    }
}
