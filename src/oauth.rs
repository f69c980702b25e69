//! The only client of token endpoints: the authorization link, the code exchange, refresh, revocation, and the
//! question whose account it is.

use std::collections::BTreeSet;
use std::time::Duration;

use url::Url;

use crate::catalog::Provider;
use crate::secret::Secret;

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

/// Why a token endpoint did not give what was asked.
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
    /// Not reached, or no answer, or an answer that is not one: whether something happened there is unknown.
    #[error("the provider's token endpoint did not answer properly ({0})")]
    Unavailable(String),
}

/// Speaks OAuth to providers. Cheap to clone.
#[derive(Clone)]
pub struct Oauth {
    // http: the egress client
}

impl Oauth {
    /// A fresh PKCE pair.
    pub fn pkce() -> Pkce {
        todo!()
    }

    /// The link that forwards a browser to the provider.
    ///
    /// # Errors
    /// When the provider has no client.
    pub fn authorize_url(
        &self,
        _provider: &Provider,
        _redirect_uri: &Url,
        _state: &Secret,
        _scopes: &BTreeSet<String>,
        _challenge: Option<&str>,
        _login_hint: Option<&str>,
    ) -> Result<Url, OauthError> {
        todo!()
    }

    /// Exchanges a code (RFC 6749 §4.1.3).
    ///
    /// # Errors
    /// See [`OauthError`].
    pub async fn exchange(
        &self,
        _provider: &Provider,
        _code: &Secret,
        _verifier: Option<&Secret>,
        _redirect_uri: &Url,
    ) -> Result<TokenAnswer, OauthError> {
        todo!()
    }

    /// Refreshes (RFC 6749 §6).
    ///
    /// # Errors
    /// See [`OauthError`].
    pub async fn refresh(&self, _provider: &Provider, _refresh_token: &Secret) -> Result<TokenAnswer, OauthError> {
        todo!()
    }

    /// Revokes a token (RFC 7009), in the provider's way.
    pub async fn revoke(&self, _provider: &Provider, _token: &Secret) -> Revocation {
        todo!()
    }

    /// Asks whose account an access token belongs to.
    ///
    /// # Errors
    /// See [`OauthError`].
    pub async fn account(&self, _provider: &Provider, _access_token: &Secret) -> Result<Account, OauthError> {
        todo!()
    }
}
