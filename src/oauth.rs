//! The only client of token endpoints: the authorization link, the code exchange, refresh, revocation, and the
//! question whose account it is.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use oauth2::basic::{BasicClient, BasicTokenResponse};
use oauth2::{
    AsyncHttpClient, AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointNotSet,
    EndpointSet, HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RefreshToken,
    RequestTokenError, Scope, TokenResponse as _, TokenUrl,
};
use url::Url;

use crate::catalog::provider::{AccountManifest, AccountMethod, ClientAuth, TokenBody};
use crate::catalog::{Provider, ProviderClient};
use crate::egress::{Answer, Egress, EgressError, Limits, json};
use crate::secret::Secret;
use crate::secret::echo::Guard;

mod answer;
mod revocation;
mod sign_in;
#[cfg(test)]
mod tests;

pub use answer::parse_token_answer;

/// Bounds of one request: from the first byte out to the last byte in, and the size of the answer.
const LIMITS: Limits = Limits { total: Duration::from_secs(20), body_bytes: 1 << 20 /* 1 MiB */ };

/// Longest key or label of an account, in bytes.
const MAX_ACCOUNT_BYTES: usize = 255;

/// What a token endpoint answered (RFC 6749 §5.1).
#[derive(Clone)]
pub struct TokenAnswer {
    /// The access token.
    pub access_token: Secret,
    /// The refresh token, where there is one.
    pub refresh_token: Option<Secret>,
    /// The lifetime, where it was given and makes sense.
    pub expires_in: Option<Duration>,
    /// The scopes that were granted, where the answer says; otherwise as asked (RFC 6749 §5.1).
    pub scopes: Option<BTreeSet<String>>,
}

/// The account that was connected.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Account {
    /// The provider's immutable id of it.
    pub key: String,
    /// What a person knows it by: an e-mail address, a handle.
    pub label: String,
}

/// A PKCE pair (RFC 7636 §4.1, §4.2; S256).
pub struct Pkce {
    /// The verifier, for the exchange. 43 characters or more.
    pub verifier: Secret,
    /// The challenge, for the link.
    pub challenge: String,
}

/// What became of a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Revocation {
    /// The provider confirmed it, or did not know the token any more.
    Revoked,
    /// The provider has no way to do it.
    NotSupported,
    /// The provider did not confirm it; the person should look there.
    Failed,
}

/// How the provider answered when it was asked to revoke one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Answered {
    /// What that means.
    pub outcome: Revocation,
    /// The status of its answer; none, where it was not asked or did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

impl Answered {
    /// Without an answer.
    fn without(outcome: Revocation) -> Self {
        Self { outcome, status: None }
    }
}

/// Why a token endpoint did not give what was asked.
///
/// What stands in brackets is a code of at most 64 characters (`a-z`, `0-9`, `_`, `.`, `-`): never the provider's
/// words, which may name a person or repeat a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OauthError {
    /// The grant, code or refresh token is not good (`invalid_grant`, RFC 6749 §5.2). Asking again does not help.
    #[error("the provider no longer accepts this authorization ({0})")]
    InvalidGrant(String),
    /// Our client is not good (`invalid_client`, `unauthorized_client`): the operator's to mend, nobody's consent.
    #[error("the provider does not accept obo's client ({0})")]
    InvalidClient(String),
    /// Another answer that is a clear refusal; the code is one of RFC 6749 §5.2's or the provider's own.
    #[error("the provider refused ({0})")]
    Refused(String),
    /// It asks to be left alone for so long (429 with `Retry-After`, RFC 6585 §4). Nothing was done.
    #[error("the provider's token endpoint asks to wait {} s", .0.as_secs())]
    Busy(Duration),
    /// Not reached, or no answer, or an answer that is not one: whether something happened there is unknown, except
    /// after `unreachable` and `forbidden_address`, where nothing was sent.
    #[error("the provider's token endpoint did not answer properly ({0})")]
    Unavailable(String),
}

/// Speaks OAuth to providers. Cheap to clone.
#[derive(Clone)]
pub struct Oauth {
    egress: Egress,
    limits: Limits,
}

/// A client of the `oauth2` crate with both endpoints.
type Client = BasicClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

impl Oauth {
    /// Speaks through `egress`.
    pub fn new(egress: Egress) -> Self {
        Self { egress, limits: LIMITS }
    }

    /// A fresh PKCE pair.
    pub fn pkce() -> Pkce {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        Pkce { verifier: Secret::new(verifier.into_secret()), challenge: challenge.as_str().to_owned() }
    }

    /// The link that forwards a browser to the provider. The manifest's `base_scopes` are asked for with `scopes`.
    ///
    /// # Errors
    /// When the provider has no client.
    pub fn authorize_url(
        &self,
        provider: &Provider,
        redirect_uri: &Url,
        state: &Secret,
        scopes: &BTreeSet<String>,
        challenge: Option<&str>,
        login_hint: Option<&str>,
    ) -> Result<Url, OauthError> {
        let client = client(provider)?.set_redirect_uri(RedirectUrl::from_url(redirect_uri.clone()));
        let manifest = &provider.oauth;
        let mut request = client.authorize_url(|| CsrfToken::new(state.expose().to_owned()));
        let scopes: BTreeSet<&String> = scopes.iter().chain(&manifest.base_scopes).collect();
        if manifest.scope_param == "scope" && manifest.scope_separator == " " {
            request = request.add_scopes(scopes.into_iter().map(|scope| Scope::new(scope.clone())));
        } else if !scopes.is_empty() {
            // Another parameter takes the place of `scope`: at such providers `scope` means something else.
            let scopes: Vec<&str> = scopes.into_iter().map(String::as_str).collect();
            request = request.add_extra_param(&manifest.scope_param, scopes.join(&manifest.scope_separator));
        }
        if let Some(challenge) = challenge {
            // RFC 7636 §4.3. The verifier is not at hand here, so the crate's own type cannot be built.
            request = request.add_extra_param("code_challenge", challenge);
            request = request.add_extra_param("code_challenge_method", "S256");
        }
        for (name, value) in &manifest.authorize_params {
            request = request.add_extra_param(name, value);
        }
        if let (Some(name), Some(hint)) = (&manifest.login_hint_param, login_hint) {
            request = request.add_extra_param(name, hint);
        }
        Ok(request.url().0)
    }

    /// Exchanges a code (RFC 6749 §4.1.3).
    ///
    /// # Errors
    /// See [`OauthError`].
    ///
    /// # Cancellation
    /// The code may be spent. Whoever must not lose the answer runs this in a task of its own.
    pub async fn exchange(
        &self,
        provider: &Provider,
        code: &Secret,
        verifier: Option<&Secret>,
        redirect_uri: &Url,
    ) -> Result<TokenAnswer, OauthError> {
        let client = client(provider)?.set_redirect_uri(RedirectUrl::from_url(redirect_uri.clone()));
        let mut request = client.exchange_code(AuthorizationCode::new(code.expose().to_owned()));
        if let Some(verifier) = verifier {
            request = request.set_pkce_verifier(PkceCodeVerifier::new(verifier.expose().to_owned()));
        }
        let http = Http { oauth: self, provider };
        finish(request.request_async(&http).await)
    }

    /// Refreshes (RFC 6749 §6).
    ///
    /// # Errors
    /// See [`OauthError`].
    ///
    /// # Cancellation
    /// The refresh token may be spent. Whoever must not lose the answer runs this in a task of its own.
    pub async fn refresh(&self, provider: &Provider, refresh_token: &Secret) -> Result<TokenAnswer, OauthError> {
        let client = client(provider)?;
        let refresh_token = RefreshToken::new(refresh_token.expose().to_owned());
        let request = client.exchange_refresh_token(&refresh_token);
        let http = Http { oauth: self, provider };
        finish(request.request_async(&http).await)
    }

    /// Revokes a token (RFC 7009), in the provider's way.
    pub async fn revoke(&self, provider: &Provider, token: &Secret) -> Revocation {
        self.revoke_answered(provider, token).await.outcome
    }

    /// The same, with what the provider answered, for the record.
    pub async fn revoke_answered(&self, provider: &Provider, token: &Secret) -> Answered {
        let Some(manifest) = &provider.oauth.revoke else { return Answered::without(Revocation::NotSupported) };
        let Some(request) = revocation::request(&self.egress, provider, manifest, token) else {
            return Answered::without(Revocation::Failed);
        };
        match self.egress.send(request, self.limits).await {
            Ok(answer) => {
                Answered { outcome: revocation::outcome(manifest.style, &answer), status: Some(answer.status.as_u16()) }
            }
            Err(error) => {
                tracing::info!(provider = %provider.id, %error, "a revocation got no answer");
                Answered::without(Revocation::Failed)
            }
        }
    }

    /// Asks whose account an access token belongs to.
    ///
    /// # Errors
    /// See [`OauthError`].
    pub async fn account(&self, provider: &Provider, access_token: &Secret) -> Result<Account, OauthError> {
        let AccountManifest { method, url, body, .. } = &provider.account;
        let request = match method {
            AccountMethod::Get => self.egress.request(Method::GET, url.clone()),
            AccountMethod::Post | AccountMethod::Introspect => self.egress.request(Method::POST, url.clone()),
        };
        let request = request.headers(provider.headers.clone()).header(ACCEPT, "application/json");
        let request = match (method, body) {
            (AccountMethod::Get, _) => request.header(AUTHORIZATION, bearer(access_token)?),
            (AccountMethod::Post, Some(body)) => request
                .header(AUTHORIZATION, bearer(access_token)?)
                .header(CONTENT_TYPE, "application/json")
                .body(body.clone()),
            // Some servers answer 411 without a length. No content type: an empty body is not JSON.
            (AccountMethod::Post, None) => {
                request.header(AUTHORIZATION, bearer(access_token)?).header(CONTENT_LENGTH, "0")
            }
            (AccountMethod::Introspect, _) => revocation::with_token(request, provider, access_token)
                .ok_or_else(|| OauthError::InvalidClient("not_configured".to_owned()))?,
        };
        let answer = self.egress.send(request, self.limits).await.map_err(no_answer)?;
        match answer.status.as_u16() {
            200..=299 => {}
            status @ (401 | 403) => return Err(OauthError::Refused(format!("status_{status}"))),
            status => return Err(OauthError::Unavailable(format!("status_{status}"))),
        }
        let value = json::parse(&answer.body).map_err(|_| OauthError::Unavailable("not_json".to_owned()))?;
        let (key, label) = provider.account_of(&value).map_err(|_| OauthError::Unavailable("no_account".to_owned()))?;
        let fits = |text: &str| {
            !text.trim().is_empty() && text.len() <= MAX_ACCOUNT_BYTES && !text.chars().any(char::is_control)
        };
        if !fits(&key) || !fits(&label) {
            return Err(OauthError::Unavailable("no_account".to_owned()));
        }
        // They are shown on pages and to models, and stand in the audit: no place for a token that was mirrored (T16).
        let guard = Guard::new(access_token.expose());
        if guard.finds_in(key.as_bytes()) || guard.finds_in(label.as_bytes()) {
            return Err(OauthError::Unavailable("token_in_account".to_owned()));
        }
        Ok(Account { key, label })
    }

    /// Makes a request of the `oauth2` crate, and puts the provider's answer into the shape that the crate reads.
    async fn post(&self, provider: &Provider, request: HttpRequest) -> Result<HttpResponse, OauthError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string()).map_err(|_| OauthError::Unavailable("bad_url".to_owned()))?;
        let mut headers = parts.headers;
        headers.extend(provider.headers.clone());
        let body = match provider.oauth.token_body {
            TokenBody::Form => body,
            TokenBody::Json => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                as_json(body)
            }
        };
        if let Some(credentials) = headers.get_mut(AUTHORIZATION) {
            credentials.set_sensitive(true);
        }
        let request = self.egress.request(parts.method, url).headers(headers).body(body);
        let Answer { status, headers, body } = self.egress.send(request, self.limits).await.map_err(no_answer)?;
        let body = zeroize::Zeroizing::new(body);
        if status == StatusCode::TOO_MANY_REQUESTS
            && let Some(wait) = answer::retry_after(headers.get(RETRY_AFTER))
        {
            return Err(OauthError::Busy(wait));
        }
        let value = answer::read(status.as_u16(), &body)?;
        let value =
            provider.token_answer(value).map_err(|_| OauthError::Unavailable("not_a_token_answer".to_owned()))?;
        let answer = answer::judge(status.as_u16(), &value)?;
        let mut response = HttpResponse::new(answer::standard(&answer));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

/// What the `oauth2` crate makes its requests with. A type and not a closure: with the lifetimes named, the compiler can
/// see that the futures above are `Send`.
struct Http<'a> {
    oauth: &'a Oauth,
    provider: &'a Provider,
}

impl<'c> AsyncHttpClient<'c> for Http<'_> {
    type Error = OauthError;
    type Future = BoxFuture<'c, Result<HttpResponse, OauthError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.oauth.post(self.provider, request))
    }
}

fn client(provider: &Provider) -> Result<Client, OauthError> {
    let ProviderClient { id, secret } =
        provider.client.as_ref().ok_or_else(|| OauthError::InvalidClient("not_configured".to_owned()))?;
    let mut client = BasicClient::new(ClientId::new(id.clone()))
        .set_auth_uri(AuthUrl::from_url(provider.oauth.authorize_url.clone()))
        .set_token_uri(TokenUrl::from_url(provider.oauth.token_url.clone()))
        .set_auth_type(match provider.oauth.client_auth {
            ClientAuth::Post => AuthType::RequestBody,
            ClientAuth::Basic => AuthType::BasicAuth,
        });
    if let Some(secret) = secret {
        client = client.set_client_secret(ClientSecret::new(secret.expose().to_owned()));
    }
    Ok(client)
}

fn finish<E: oauth2::ErrorResponse + 'static>(
    result: Result<BasicTokenResponse, RequestTokenError<OauthError, E>>,
) -> Result<TokenAnswer, OauthError> {
    match result {
        Ok(response) => Ok(TokenAnswer {
            access_token: Secret::new(response.access_token().secret().as_str()),
            refresh_token: response.refresh_token().map(|token| Secret::new(token.secret().as_str())),
            expires_in: response.expires_in(),
            scopes: response.scopes().map(|scopes| {
                scopes.iter().map(|scope| scope.as_str().to_owned()).filter(|scope| !scope.is_empty()).collect()
            }),
        }),
        Err(RequestTokenError::Request(error)) => Err(error),
        // The crate read what we wrote for it, or could not write the request; its texts may quote the answer.
        Err(_) => Err(OauthError::Unavailable("not_a_token_answer".to_owned())),
    }
}

/// The fields of a form as a JSON object.
fn as_json(form: Vec<u8>) -> Vec<u8> {
    let form = zeroize::Zeroizing::new(form);
    let fields: serde_json::Map<_, _> = url::form_urlencoded::parse(&form)
        .map(|(name, value)| (name.into_owned(), value.into_owned().into()))
        .collect();
    serde_json::Value::Object(fields).to_string().into_bytes()
}

fn bearer(token: &Secret) -> Result<HeaderValue, OauthError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        .map_err(|_| OauthError::Refused("token_not_printable".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn no_answer(error: EgressError) -> OauthError {
    tracing::info!(%error, "a provider's token or account endpoint gave no answer");
    let code = match error {
        EgressError::Forbidden(_) => "forbidden_address",
        EgressError::Unreachable(_) => "unreachable",
        EgressError::Timeout(_) => "timeout",
        EgressError::Broken(_) => "connection_broken",
        EgressError::TooLarge(_) => "too_large",
    };
    OauthError::Unavailable(code.to_owned())
}
