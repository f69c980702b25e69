//! The person's tokens: sealed at rest, refreshed when they must be, handed out only for their owner.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::catalog::Provider;
use crate::failure::Failure;
use crate::id::{Person, ProviderId};
use crate::oauth::{Account, Revocation, TokenAnswer};
use crate::secret::AccessToken;

/// A connection of a person to an account at a provider. A handle: it holds no token.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Whose it is.
    pub person: Person,
    /// At which provider.
    pub provider: ProviderId,
    /// Which account.
    pub account: Account,
    /// What the provider granted, as it said.
    pub scopes: BTreeSet<String>,
    /// Whether it can be used.
    pub status: GrantStatus,
    /// When the person connected it (last).
    pub connected_at: Timestamp,
    /// The provider's fingerprint when it was made; see [`Provider::fingerprint`].
    pub fingerprint: String,
    /// Counts its tokens.
    pub generation: u64,
}

/// Whether a grant can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantStatus {
    /// It can.
    Active,
    /// The provider no longer accepts it: the person must connect again. The ciphertext is kept.
    NeedsConsent,
}

/// Why there is no token.
#[derive(Debug, Clone)]
pub enum TokenError {
    /// The provider no longer accepts the grant: ask the person.
    NeedsConsent,
    /// Something else; the grant is untouched.
    Failed(Failure),
}

/// The vault. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    // store, keys, oauth, clock, flights, cache
}

impl Vault {
    /// All connections of a person, by provider and account.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn grants(&self, _person: &Person) -> Result<Vec<Grant>, Failure> {
        todo!()
    }

    /// Keeps what a code exchange answered: a new grant, or the same account's grant with new tokens. Durable when it
    /// returns. `asked` stands for the granted scopes where the answer does not say.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn deposit(
        &self,
        _person: &Person,
        _provider: &Provider,
        _account: Account,
        _answer: TokenAnswer,
        _asked: &BTreeSet<String>,
    ) -> Result<Grant, Failure> {
        todo!()
    }

    /// An access token for a grant, refreshed if it is about to expire.
    ///
    /// # Errors
    /// See [`TokenError`].
    ///
    /// # Cancellation
    /// Dropping the future never stops a refresh under way: it runs in a task of its own.
    pub async fn token_for(
        &self,
        _grant: &Grant,
        _provider: &std::sync::Arc<Provider>,
    ) -> Result<AccessToken, TokenError> {
        todo!()
    }

    /// A new access token after the provider refused `rejected`; the current one if somebody else has refreshed since.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn token_after_rejection(
        &self,
        _grant: &Grant,
        _provider: &std::sync::Arc<Provider>,
        _rejected: &AccessToken,
    ) -> Result<AccessToken, TokenError> {
        todo!()
    }

    /// Revokes at the provider, then removes the grant here.
    ///
    /// # Errors
    /// `vault_unavailable`: nothing was removed.
    pub async fn disconnect(
        &self,
        _grant: &Grant,
        _provider: &std::sync::Arc<Provider>,
    ) -> Result<Revocation, Failure> {
        todo!()
    }

    /// Waits for the refreshes under way, at most `within`. For shutdown.
    pub async fn drain(&self, _within: std::time::Duration) {
        todo!()
    }
}
