//! `provider.toml`: where a provider's OAuth and APIs are, and how it differs from the next one.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

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
    /// Whether to send a PKCE S256 challenge (RFC 7636).
    #[serde(default = "yes")]
    pub pkce: bool,
    /// The authorize parameter that carries the scopes.
    #[serde(default = "scope")]
    pub scope_param: String,
    /// What stands between scopes in that parameter.
    #[serde(default = "space")]
    pub scope_separator: String,
    /// Whether a new token has the scopes of earlier consents too. Where it has not, they are asked for again.
    #[serde(default)]
    pub scopes_accumulate: bool,
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
    /// How long a used refresh token is still accepted, in seconds.
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
    /// POST with an empty body.
    Post,
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
