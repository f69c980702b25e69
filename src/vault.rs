//! The person's tokens: sealed at rest, refreshed when they must be, handed out only for their owner.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::catalog::{Live, Provider};
use crate::clock::SharedClock;
use crate::failure::Failure;
use crate::id::{Person, ProviderId};
use crate::keys::{Context, Keys, OpenKeys};
use crate::oauth::{Account, Oauth, TokenAnswer};
use crate::secret::{AccessToken, SecretBytes};
use crate::store::{RecordKey, Store, Table};

mod breaker;
mod ending;
mod head;
mod people;
mod refresh;
mod safe;
mod spool;
mod take_up;
mod upstream;

pub use ending::{Keep, Receipt};
use safe::Safe;
pub use spool::Journal;
use upstream::{Terms, Upstream};

/// How often it is looked for what others left behind. Half a minute is the grace of common providers, and there must be
/// time to use it.
const TEND_EVERY: Duration = Duration::from_secs(5);

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
    /// When the person chose it as the one to use where a call names no account; none: they did not.
    pub preferred_at: Option<Timestamp>,
}

impl Grant {
    /// Among the grants of one provider, the one that its person chose last for calls that name no account.
    pub fn default_of<'a>(grants: impl IntoIterator<Item = &'a Self>) -> Option<&'a Self> {
        grants.into_iter().filter(|grant| grant.preferred_at.is_some()).max_by_key(|grant| grant.preferred_at)
    }
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

/// A refresh that ended.
#[derive(Debug, Clone)]
pub struct Refreshed {
    /// Whose grant it is.
    pub person: Person,
    /// At which provider.
    pub provider: ProviderId,
    /// The account's label.
    pub account: String,
    /// `refresh.ok`, `refresh.grant_ended` or `refresh.failed`.
    pub what: &'static str,
    /// Why it gave no token; none: it did.
    pub failure: Option<crate::failure::Code>,
    /// How long it took.
    pub duration: Duration,
}

/// Hears of refreshes. It must not block.
pub type Observer = Arc<dyn Fn(Refreshed) + Send + Sync>;

/// The vault. Cheap to clone.
///
/// Every process of a data folder may have one: what they share is the store, and they agree over its leases.
#[derive(Clone)]
pub struct Vault {
    oauth: Oauth,
    safe: Arc<Safe>,
}

impl Vault {
    /// A vault over a store. Opens nothing yet.
    pub fn new(store: Arc<dyn Store>, keys: Keys, oauth: Oauth, clock: SharedClock) -> Self {
        Self { oauth, safe: Arc::new(Safe::new(store, keys, clock)) }
    }

    /// Keeps what providers answered in a folder `spool` of the data folder, as long as the store has not taken it.
    #[must_use]
    pub fn with_spool(mut self, data_dir: &Path, journal: Journal) -> Self {
        if let Some(safe) = Arc::get_mut(&mut self.safe) {
            let entries = Box::new(spool::Folder::at(data_dir.join("spool")));
            safe.spool = Some(safe::Spool { entries, journal });
        }
        self
    }

    /// Takes up what others left behind, now and every few seconds, until this process is about to end: answers that were
    /// not written, and refreshes that were interrupted. For processes that stay.
    pub async fn tend(&self, catalog: Live) {
        let upstream = |head: &head::Head| {
            let catalog = catalog.now();
            let provider = catalog.provider(head.provider.as_str()).filter(|provider| provider.client.is_some())?;
            Some(Upstream::new(&self.oauth, provider))
        };
        let mut draining = self.safe.draining.subscribe();
        loop {
            tokio::select! {
                biased;
                _ = draining.wait_for(|draining| *draining) => return,
                () = async {
                    self.safe.take_up(&upstream).await;
                    tokio::time::sleep(TEND_EVERY).await;
                } => {}
            }
        }
    }

    /// All connections of a person, by provider and account.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn grants(&self, person: &Person) -> Result<Vec<Grant>, Failure> {
        self.safe.grants(person).await
    }

    /// Keeps what a code exchange answered: a new grant, or the same account's grant with new tokens. Durable when it
    /// returns. `asked` stands for the granted scopes where the answer does not say.
    ///
    /// # Errors
    /// `vault_unavailable`.
    ///
    /// # Cancellation
    /// Dropping the future does not stop the deposit: the code that the tokens were given for works only once.
    pub async fn deposit(
        &self,
        person: &Person,
        provider: &Provider,
        account: Account,
        answer: TokenAnswer,
        asked: &BTreeSet<String>,
    ) -> Result<Grant, Failure> {
        self.safe.deposit(person.clone(), Terms::of(provider), account, answer, asked.clone()).await
    }

    /// An access token for a grant, refreshed if it is about to expire.
    ///
    /// A grant that was made for other servers than the provider has now needs consent: its token is not sent there.
    ///
    /// # Errors
    /// See [`TokenError`].
    ///
    /// # Cancellation
    /// Dropping the future never stops a refresh under way: it runs in a task of its own.
    pub async fn token_for(&self, grant: &Grant, provider: &Arc<Provider>) -> Result<AccessToken, TokenError> {
        self.safe.token(grant, Upstream::new(&self.oauth, provider), None).await
    }

    /// A new access token after the provider refused `rejected`; the current one if somebody else has refreshed since.
    ///
    /// # Errors
    /// See [`TokenError`].
    ///
    /// # Cancellation
    /// As [`Vault::token_for`].
    pub async fn token_after_rejection(
        &self,
        grant: &Grant,
        provider: &Arc<Provider>,
        rejected: &AccessToken,
    ) -> Result<AccessToken, TokenError> {
        self.safe.token(grant, Upstream::new(&self.oauth, provider), Some(rejected)).await
    }

    /// Revokes at the provider, then removes the grant here; without a provider, because it is no longer in the catalog,
    /// only here.
    ///
    /// # Errors
    /// `vault_unavailable`: nothing was removed, though the provider may have revoked it. `not_found`: there was nothing to
    /// remove.
    ///
    /// # Cancellation
    /// Dropping the future does not stop it half-way.
    pub async fn disconnect(
        &self,
        grant: &Grant,
        provider: Option<&Arc<Provider>>,
        keep: Keep,
    ) -> Result<Receipt, Failure> {
        self.safe.disconnect(grant, provider.map(|provider| Upstream::new(&self.oauth, provider)), keep).await
    }

    /// Makes a grant one that no call can use any more, without asking the provider.
    ///
    /// # Errors
    /// `vault_unavailable`: it may still be usable.
    ///
    /// # Cancellation
    /// Dropping the future does not stop it half-way.
    pub async fn suspend(&self, grant: &Grant) -> Result<(), Failure> {
        self.safe.suspend(grant).await
    }

    /// Takes a person off the list of those who have connections, if they have none.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn unlist(&self, person: &Person) -> Result<(), Failure> {
        self.safe.unlist(person).await
    }

    /// How many of a person's grants do not open: nobody can use them, and nobody can revoke them.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn unopened(&self, person: &Person) -> Result<usize, Failure> {
        self.safe.unopened(person).await
    }

    /// Notes that the person chose this grant for calls that name no account. The newest choice counts, so that no other
    /// record needs to change; `after` is the newest there is. `None` when the grant is gone.
    ///
    /// # Errors
    /// `vault_unavailable`.
    ///
    /// # Cancellation
    /// Dropping the future does not stop it half-way.
    pub async fn prefer(&self, grant: &Grant, after: Option<Timestamp>) -> Result<Option<Grant>, Failure> {
        self.safe.prefer(grant, after).await
    }

    /// Notes that a grant came back with a backup: its tokens are not believed before the provider has answered for it.
    ///
    /// # Errors
    /// `vault_unavailable`; also when it does not open.
    pub async fn restored(&self, person: &Person, key: &RecordKey) -> Result<(), Failure> {
        self.safe.restored(person, key).await
    }

    /// Everybody who has connections, by the owner of their grants. A listing that does not open is left out: its
    /// person's grants are then found without a name.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn people(&self) -> Result<HashMap<RecordKey, Person>, Failure> {
        self.safe.people().await
    }

    /// Tells `observer` of every refresh that ended: the audit cannot be called from here.
    #[must_use]
    pub fn with_observer(self, observer: Observer) -> Self {
        // Set once, when the parts are put together.
        let _ = self.safe.observer.set(observer);
        self
    }

    /// Waits for the refreshes and deposits under way, at most `within`. For shutdown.
    pub async fn drain(&self, within: Duration) {
        self.safe.drain(within).await;
    }
}

/// What a person's grant is sealed for. A grant opens for its own person and record only. The record's key is a MAC over
/// person, provider and account, so it stands for all of them, also where a listing does not know the last two yet.
pub fn context(person: &Person, key: &RecordKey) -> Context {
    person.parts().into_iter().fold(Context::of(Table::Grant), Context::with).with(key)
}

/// What a person's grants are found by.
pub fn owner(keys: &OpenKeys, person: &Person) -> RecordKey {
    people::owner(keys, person)
}

/// Whether a grant can be used, from its unsealed body. None: the body does not read.
pub fn status_of(body: &SecretBytes) -> Option<GrantStatus> {
    head::Head::from_bytes(body.expose()).ok().map(|head| head.status)
}

#[cfg(test)]
mod tests;
