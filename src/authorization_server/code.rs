//! Codes: what a client gets by way of the person's browser, and exchanges once.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use super::request::Asked;
use super::{Approver, AuthorizationServer};
use crate::audit::Phase;
use crate::clock::later;
use crate::failure::{Code as FailureCode, Failure};
use crate::id::{Person, TenantId};
use crate::identity::ClientSessions;
use crate::identity::client_session::{Allowed, Family, NoTokens, Tokens};
use crate::keys::{Context, KeyError};
use crate::secret::{Secret, random, random_text};
use crate::store::{Record, RecordKey, StoreError, Table, Write};

/// How long a code is good for: a browser's way back, which for a client on another machine is a person who copies an
/// address. RFC 6749 §4.1.2 allows ten minutes.
const TTL: Duration = Duration::from_secs(5 * 60);
/// How long it is remembered, to know it when it comes again.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);
const BYTES: usize = 32;

/// A code as it stands in its sealed record.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// What it became, or is to become.
    family: Family,
    id: String,
    person: Person,
    groups: Vec<String>,
    proof_until: Option<Timestamp>,
    client_id: String,
    client: String,
    redirect_uri: String,
    challenge: String,
    good_until: Timestamp,
    used: bool,
}

/// What a client shows with a code.
pub(super) struct Shown<'a> {
    pub(super) code: &'a Secret,
    pub(super) client_id: &'a str,
    /// OAuth 2.1 has it no more (§10.2), older clients send it.
    pub(super) redirect_uri: Option<&'a str>,
    pub(super) verifier: &'a Secret,
}

impl AuthorizationServer {
    /// A code for what a person has just allowed. That is on record before anybody can use it.
    pub(super) async fn new_code(&self, asked: &Asked, approver: Approver) -> Result<Secret, Failure> {
        let code = Secret::new(random_text::<BYTES>());
        let now = self.inner.clock.now();
        let kept = Kept {
            family: Family::random(),
            id: random::<5>().iter().map(|byte| format!("{byte:02x}")).collect(),
            person: approver.person,
            groups: approver.groups,
            proof_until: approver.until,
            client_id: asked.client.id.clone(),
            client: asked.client.label(),
            redirect_uri: asked.destination.as_str().to_owned(),
            challenge: asked.challenge.clone(),
            good_until: later(now, TTL),
            used: false,
        };
        self.record(Phase::Intent, &kept.person, &kept.client, &format!("client.allowed {}", kept.id)).await?;
        let record = self.sealed(key_of(&code), &kept, later(now, REMEMBERED)).await?;
        self.inner.store.apply(vec![Write::Insert(record)]).await.map_err(unavailable)?;
        Ok(code)
    }

    /// Exchanges a code. Whatever is shown with it, it is void afterwards.
    pub(super) async fn exchange(&self, shown: Shown<'_>) -> Result<Tokens, NoTokens> {
        // Who loses against somebody that uses it at the same moment finds it used when they look again: two hands are
        // two hands, however close together.
        for _ in 0..2 {
            if let Some(tokens) = self.exchange_as_read(&shown).await? {
                return Ok(tokens);
            }
        }
        Err(NoTokens::Invalid("the code is being used by somebody else"))
    }

    /// `None`, where it was changed after it was read.
    async fn exchange_as_read(&self, shown: &Shown<'_>) -> Result<Option<Tokens>, NoTokens> {
        let key = key_of(shown.code);
        let Some(record) = self.inner.store.get(Table::AuthorizationCode, &key).await? else {
            return Err(NoTokens::Invalid("the code is not one, or too old"));
        };
        let keys = self.inner.keys.open().await?;
        let plain = keys.unseal(&TenantId::default_tenant(), &context(&key), &record.sealed).await?;
        let kept: Kept = serde_json::from_slice(plain.expose())
            .map_err(|_| KeyError::Unusable("the record of a code is from a newer obo; update this one".to_owned()))?;
        let clients = self.inner.identity.clients();
        if kept.used {
            // RFC 6749 §4.1.2: it is in two hands, and nobody can tell which of them is the client's.
            clients.end_family(&kept.family).await.map_err(NoTokens::Failed)?;
            // Known once is enough, and on record once: it could be shown for as long as it is remembered.
            let forget = Write::Delete { table: Table::AuthorizationCode, key, generation: record.generation };
            match self.inner.store.apply(vec![forget]).await {
                Ok(()) => self.note(&kept, "client.code_reused").await,
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
            return Err(NoTokens::Invalid("the code was used before"));
        }
        let used = Kept { used: true, ..kept };
        let expires_at = record.expires_at.unwrap_or(used.good_until);
        let mut spent = self.sealed(key, &used, expires_at).await.map_err(NoTokens::Failed)?;
        spent.generation = record.generation;
        let refused = if used.client_id != shown.client_id {
            Some("the code is another client's")
        } else if shown.redirect_uri.is_some_and(|shown| shown != used.redirect_uri) {
            // RFC 6749 §4.1.3.
            Some("redirect_uri is not the one that the code was asked for with")
        } else if !proves(shown.verifier, &used.challenge) {
            Some("code_verifier does not fit")
        } else {
            None
        };
        if let Some(why) = refused {
            match self.inner.store.apply(vec![Write::Replace(spent)]).await {
                Ok(()) => {}
                Err(StoreError::Conflict) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            self.note(&used, "client.code_refused").await;
            return Err(NoTokens::Invalid(why));
        }
        if self.inner.clock.now() >= used.good_until {
            return Err(NoTokens::Invalid("the code is too old"));
        }
        let allowed = Allowed {
            family: used.family.clone(),
            id: used.id.clone(),
            person: used.person.clone(),
            groups: used.groups.clone(),
            client_id: used.client_id.clone(),
            client: used.client.clone(),
            until: used.proof_until,
        };
        let Some(tokens) = clients.begin(allowed, Write::Replace(spent)).await? else { return Ok(None) };
        for displaced in &tokens.displaced {
            self.record_end(displaced, "client.displaced").await;
        }
        let what = format!("client.signed_in {}", used.id);
        if let Err(failure) = self.record(Phase::Outcome, &used.person, &used.client, &what).await {
            // A client that is not on record acts for nobody.
            clients.end_family(&used.family).await.map_err(NoTokens::Failed)?;
            tracing::error!(cause = failure.cause, "a client was signed out again: it could not be put on record");
            // The code is used up: told to try again, the client would come back with it, and look like a thief.
            return Err(NoTokens::Invalid("it could not be put on record; sign in again later"));
        }
        Ok(Some(tokens))
    }

    async fn note(&self, kept: &Kept, what: &str) {
        // The audit logs what it could not keep.
        let _ = self.record(Phase::Outcome, &kept.person, &kept.client, &format!("{what} {}", kept.id)).await;
    }

    async fn sealed(&self, key: RecordKey, kept: &Kept, expires_at: Timestamp) -> Result<Record, Failure> {
        let keys = self.inner.keys.open().await?;
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(kept).map_err(Failure::internal)?);
        let sealed = keys.seal(&TenantId::default_tenant(), &context(&key), &plain).await?;
        Ok(Record {
            table: Table::AuthorizationCode,
            key,
            owner: ClientSessions::owner(&keys, &kept.person),
            generation: 0,
            expires_at: Some(expires_at),
            sealed,
        })
    }
}

/// Whether a verifier belongs to an S256 challenge (RFC 7636 §4.1, §4.6).
fn proves(verifier: &Secret, challenge: &str) -> bool {
    use base64::Engine as _;
    let text = verifier.expose();
    let in_form = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'));
    let expected = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(text.as_bytes()));
    (43..=128).contains(&text.len()) && in_form && bool::from(expected.as_bytes().ct_eq(challenge.as_bytes()))
}

fn key_of(code: &Secret) -> RecordKey {
    Sha256::digest([b"obo authorization code ", code.expose().as_bytes()].concat()).into()
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::AuthorizationCode).with(key)
}

fn unavailable(error: StoreError) -> Failure {
    Failure::new(FailureCode::VaultUnavailable, "obo cannot keep this just now; try again").because(error)
}
