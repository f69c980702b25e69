//! A provider as the vault sees it: where tokens are refreshed and revoked, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Provider;
use crate::catalog::provider::Refresh;
use crate::id::ProviderId;
use crate::oauth::{Answered, Oauth, OauthError, Revocation, TokenAnswer};
use crate::secret::Secret;

/// Refreshes and revokes at one provider. A seam: tests put a provider of their own behind it.
#[async_trait::async_trait]
pub(super) trait TokenEndpoint: Send + Sync {
    /// Refreshes (RFC 6749 §6).
    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenAnswer, OauthError>;
    /// Revokes a token (RFC 7009).
    async fn revoke(&self, token: &Secret) -> Revocation;
    /// The same, with what the provider answered.
    async fn revoke_answered(&self, token: &Secret) -> Answered {
        Answered { outcome: self.revoke(token).await, status: None }
    }
}

/// What the vault needs to know of a provider.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) id: ProviderId,
    /// See [`Provider::fingerprint`].
    pub(super) fingerprint: String,
    /// How long an access token lives when the answer does not say.
    pub(super) default_lifetime: Option<Duration>,
    /// What a refresh does to the refresh token.
    pub(super) refresh: Refresh,
    /// How long a used refresh token is still accepted.
    pub(super) grace: Duration,
    /// Where tokens are refreshed.
    pub(super) server: String,
}

impl Terms {
    pub(super) fn of(provider: &Provider) -> Self {
        Self {
            id: provider.id.clone(),
            fingerprint: provider.fingerprint(),
            default_lifetime: provider.oauth.default_ttl_s.map(Duration::from_secs),
            refresh: provider.oauth.refresh,
            grace: Duration::from_secs(provider.oauth.refresh_grace_s),
            server: provider.oauth.token_url.origin().ascii_serialization(),
        }
    }

    /// Whether a refresh that had no answer may be asked for again with the same token, so long after the first time,
    /// without anything to lose. A strict provider ends the connection for it, and with it an access token that may still
    /// be good.
    pub(super) fn may_ask_again(&self, after: Duration) -> bool {
        self.refresh != Refresh::Strict || after < self.grace
    }
}

/// A provider and the way to it.
#[derive(Clone)]
pub(super) struct Upstream {
    pub(super) terms: Terms,
    pub(super) endpoint: Arc<dyn TokenEndpoint>,
}

impl Upstream {
    pub(super) fn new(oauth: &Oauth, provider: &Arc<Provider>) -> Self {
        let endpoint = ThroughOauth { oauth: oauth.clone(), provider: Arc::clone(provider) };
        Self { terms: Terms::of(provider), endpoint: Arc::new(endpoint) }
    }
}

struct ThroughOauth {
    oauth: Oauth,
    provider: Arc<Provider>,
}

#[async_trait::async_trait]
impl TokenEndpoint for ThroughOauth {
    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenAnswer, OauthError> {
        self.oauth.refresh(&self.provider, refresh_token).await
    }

    async fn revoke(&self, token: &Secret) -> Revocation {
        self.oauth.revoke(&self.provider, token).await
    }

    async fn revoke_answered(&self, token: &Secret) -> Answered {
        self.oauth.revoke_answered(&self.provider, token).await
    }
}
