//! The sealed body of a grant: its newest tokens, and what is known about them.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use super::upstream::Terms;
use super::{Grant, GrantStatus};
use crate::catalog::provider::Refresh;
use crate::clock::{later, remaining};
use crate::id::{Person, ProviderId};
use crate::oauth::{Account, TokenAnswer};
use crate::secret::Secret;

/// How long before its end a token is refreshed, at most.
const MAX_EARLY: Duration = Duration::from_secs(300);

/// ... and what part of its life that is, at most: one fifth.
const EARLY_PART: u32 = 5;

/// How many times earlier at a strict provider: it may be asked once only, so that there should be time for its person to
/// connect again, should the answer be lost.
const EARLIER: u32 = 2;

/// Most candidates kept of a grant.
const MAX_CANDIDATES: usize = 3;

/// A grant with its tokens. Lives only between opening a record and answering a call.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) person: Person,
    pub(super) provider: ProviderId,
    pub(super) account: Account,
    pub(super) scopes: BTreeSet<String>,
    pub(super) status: GrantStatus,
    pub(super) connected_at: Timestamp,
    pub(super) fingerprint: String,
    /// Counts the tokens, beginning with 1.
    pub(super) generation: u64,
    #[serde(serialize_with = "into_sealed_body")]
    pub(super) access_token: Secret,
    #[serde(serialize_with = "into_sealed_body_if_any")]
    pub(super) refresh_token: Option<Secret>,
    pub(super) issued_at: Timestamp,
    /// None: good until it is refused.
    pub(super) expires_at: Option<Timestamp>,
    /// The intent: since when a refresh with this generation's refresh token has been under way. One that stays behind
    /// was interrupted, and the provider may have taken the token back.
    pub(super) refreshing_since: Option<Timestamp>,
    /// When the person chose it for calls that name no account. Left out where they did not, so that an obo which does
    /// not know the key opens what it always did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) preferred_at: Option<Timestamp>,
    /// When it came back with a backup. Until the provider has answered for it, its tokens may be ones that it has taken
    /// back since. Left out where it did not, as `preferred_at` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) restored_at: Option<Timestamp>,
    /// When everything of its person was ended here: no answer that is on its way makes it usable again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) suspended_at: Option<Timestamp>,
    /// Tokens that were given for this grant, and came too late: somebody else had refreshed it by then. They are tried
    /// when the provider refuses the others. The newest stands last. Left out where there are none, as `preferred_at` is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) candidates: Vec<Candidate>,
}

/// Tokens of a grant that are not its newest.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Candidate {
    #[serde(serialize_with = "into_sealed_body")]
    pub(super) refresh_token: Secret,
    pub(super) scopes: BTreeSet<String>,
    /// Whether the provider has refused it. It is kept all the same, because an answer can be wrong.
    pub(super) rejected: bool,
}

/// An answer that is not written yet: what the grant shall be, and the refresh token that it was given for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answered {
    pub(super) next: Head,
    #[serde(serialize_with = "into_sealed_body")]
    pub(super) spent: Secret,
}

/// How good an access token still is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fitness {
    /// Use it.
    Fresh,
    /// Use it, and refresh beside.
    Ageing,
    /// Refresh first.
    Expired,
}

impl Head {
    /// What a code exchange answered, laid over the same account's earlier grant, where there is one.
    pub(super) fn deposited(
        earlier: Option<&Head>,
        person: &Person,
        terms: &Terms,
        account: Account,
        answer: TokenAnswer,
        asked: &BTreeSet<String>,
        now: Timestamp,
    ) -> Self {
        // A token is never sent to a server that its person did not consent to, so nothing is taken over from a grant
        // that was made for other servers.
        let same_server = earlier.filter(|earlier| earlier.fingerprint == terms.fingerprint);
        let scopes = answer.scopes.unwrap_or_else(|| {
            // The provider did not say: what was asked now, and what a living grant had before.
            let before = same_server.filter(|earlier| earlier.status == GrantStatus::Active);
            asked.iter().chain(before.iter().flat_map(|earlier| &earlier.scopes)).cloned().collect()
        });
        let lifetime = answer.expires_in.or(terms.default_lifetime);
        Self {
            person: person.clone(),
            provider: terms.id.clone(),
            account,
            scopes,
            status: GrantStatus::Active,
            connected_at: now,
            fingerprint: terms.fingerprint.clone(),
            generation: earlier.map_or(1, |earlier| earlier.generation + 1),
            access_token: answer.access_token,
            // Some providers give a refresh token only with the first consent.
            refresh_token: answer.refresh_token.or_else(|| same_server?.refresh_token.clone()),
            issued_at: now,
            expires_at: lifetime.map(|lifetime| later(now, lifetime)),
            refreshing_since: None,
            // The choice is of an account, not of its tokens.
            preferred_at: earlier.and_then(|earlier| earlier.preferred_at),
            restored_at: None,
            suspended_at: None,
            // Those before belong to the consent before, as the tokens do that are replaced here.
            candidates: Vec::new(),
        }
    }

    /// The tokens of an answer that came too late, kept beside those that there are.
    pub(super) fn with_candidate(&self, late: &Head) -> Self {
        let mut head = self.clone();
        let Some(refresh_token) = late.refresh_token.clone() else { return head };
        let known = |candidate: &Candidate| candidate.refresh_token.matches(&refresh_token);
        if !head.candidates.iter().any(known) {
            head.candidates.push(Candidate { refresh_token, scopes: late.scopes.clone(), rejected: false });
            let surplus = head.candidates.len().saturating_sub(MAX_CANDIDATES);
            head.candidates.drain(..surplus);
        }
        head
    }

    /// What a refresh answered, laid over this generation.
    pub(super) fn refreshed(&self, terms: &Terms, answer: TokenAnswer, now: Timestamp) -> Self {
        let lifetime = answer.expires_in.or(terms.default_lifetime).or_else(|| self.lifetime());
        Self {
            // RFC 6749 §6: no scopes in the answer means the same as before.
            scopes: answer.scopes.unwrap_or_else(|| self.scopes.clone()),
            status: GrantStatus::Active,
            generation: self.generation + 1,
            access_token: answer.access_token,
            // RFC 6749 §6: no new refresh token means that the old one stays.
            refresh_token: answer.refresh_token.or_else(|| self.refresh_token.clone()),
            issued_at: now,
            expires_at: lifetime.map(|lifetime| later(now, lifetime)),
            refreshing_since: None,
            restored_at: None,
            ..self.clone()
        }
    }

    /// How good the access token is at `now`, by the wall clock.
    pub(super) fn fitness(&self, terms: &Terms, now: Timestamp) -> Fitness {
        let earlier = if terms.refresh == Refresh::Strict { EARLIER } else { 1 };
        let early = self.lifetime().map(|lifetime| (lifetime / EARLY_PART).min(MAX_EARLY) * earlier);
        let left = self.expires_at.map(|end| remaining(now, end));
        let interrupted = self.refreshing_since.map(|since| remaining(since, now));
        match (left, early) {
            (Some(Duration::ZERO), _) => Fitness::Expired,
            // A refresh asks the provider whether the grant still lives. Without a refresh token, using it does.
            _ if self.restored_at.is_some() && self.refresh_token.is_some() => Fitness::Expired,
            // At once; or, where asking twice could end the connection, when there is nothing left to lose.
            _ if interrupted.is_some_and(|since| !terms.may_ask_again(since)) => Fitness::Fresh,
            _ if interrupted.is_some() => Fitness::Ageing,
            (Some(left), Some(early)) if left <= early => Fitness::Ageing,
            _ => Fitness::Fresh,
        }
    }

    /// Whether the grant may be used with a provider as it is configured now.
    pub(super) fn usable(&self, terms: &Terms) -> bool {
        self.status == GrantStatus::Active && self.fingerprint == terms.fingerprint
    }

    /// The handle, without tokens.
    pub(super) fn grant(&self) -> Grant {
        Grant {
            person: self.person.clone(),
            provider: self.provider.clone(),
            account: self.account.clone(),
            scopes: self.scopes.clone(),
            status: self.status,
            connected_at: self.connected_at,
            fingerprint: self.fingerprint.clone(),
            generation: self.generation,
            preferred_at: self.preferred_at,
        }
    }

    /// The body, to be sealed.
    pub(super) fn to_bytes(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        to_bytes(self)
    }

    /// Reads a body that was unsealed.
    pub(super) fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    fn lifetime(&self) -> Option<Duration> {
        self.expires_at.map(|end| remaining(self.issued_at, end))
    }
}

impl Answered {
    /// The body, to be sealed.
    pub(super) fn to_bytes(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        to_bytes(self)
    }

    /// Reads a body that was unsealed.
    pub(super) fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

fn to_bytes(body: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    // Measured first, so that the buffer never grows and leaves a copy of the tokens behind.
    let mut length = Length(0);
    serde_json::to_writer(&mut length, body)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, body)?;
    Ok(bytes)
}

/// The one place where a token is serialised: into the body that is sealed.
fn into_sealed_body<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

fn into_sealed_body_if_any<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(Secret::expose).serialize(serializer)
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
