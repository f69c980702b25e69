//! The browser: one cookie, what it is signed in as, and the hidden value of each form.

use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Consent, flow};
use crate::clock::later;
use crate::failure::Failure;
use crate::id::{Person, TenantId};
use crate::identity::{Subject, Via};
use crate::keys::{Context, KeyError};
use crate::secret::{Secret, random_text};
use crate::store::{Record, RecordKey, StoreError, Table, Write};

/// How long a browser stays signed in to the consent pages.
pub const SESSION_TTL: Duration = Duration::from_secs(30 * 60);
/// How many random bytes a cookie has.
const COOKIE_BYTES: usize = 32;

/// The value of the browser's cookie: 256 random bits. Whoever has it is the browser.
#[derive(Clone)]
pub struct BrowserCookie(Secret);

impl BrowserCookie {
    /// A new one.
    pub fn new() -> Self {
        Self(Secret::new(random_text::<COOKIE_BYTES>()))
    }

    /// The value, for the `Set-Cookie` header.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    pub(super) fn hash(&self) -> RecordKey {
        Sha256::digest([b"obo browser ", self.0.expose().as_bytes()].concat()).into()
    }
}

impl Default for BrowserCookie {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for BrowserCookie {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let well_formed = text.len() == (COOKIE_BYTES * 4).div_ceil(3)
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if well_formed { Ok(Self(Secret::new(text))) } else { Err(()) }
    }
}

#[derive(Serialize, Deserialize)]
struct Session {
    person: Person,
    until: Timestamp,
    groups: Vec<String>,
    proof_until: Option<Timestamp>,
}

/// Whom a browser is signed in as, with what that sign-in can vouch for.
pub struct SignedIn {
    /// Who.
    pub person: Person,
    /// The groups that they were in when they signed in.
    pub groups: Vec<String>,
    /// When the token of obo that they signed in with runs out: nothing that they allow may last longer. An issuer's
    /// sign-in has no such end; its ID token's end says nothing about the person.
    pub proof_until: Option<Timestamp>,
}

impl Consent {
    /// Signs a browser in, under a new cookie: one that somebody planted before is worth nothing after (session
    /// fixation).
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn sign_in(&self, subject: &Subject) -> Result<BrowserCookie, Failure> {
        let cookie = BrowserCookie::new();
        let key = cookie.hash();
        let until = later(self.inner.clock.now(), SESSION_TTL);
        // Never longer than what proved who it is.
        let until = subject.expires_at().map_or(until, |expires| until.min(expires));
        let session = Session {
            person: subject.person().clone(),
            until,
            groups: subject.groups().to_vec(),
            proof_until: subject.expires_at().filter(|_| *subject.via() == Via::OboToken),
        };
        let plain = serde_json::to_vec(&session).map_err(Failure::internal)?;
        let keys = self.inner.keys.open().await?;
        let sealed = keys.seal(&TenantId::default_tenant(), &context(&key), &plain).await?;
        let owner = keys.record_key(Table::Session, &subject.person().parts());
        let record = Record { table: Table::Session, key, owner, generation: 0, expires_at: Some(until), sealed };
        self.inner.store.apply(vec![Write::Insert(record)]).await.map_err(flow::unavailable)?;
        Ok(cookie)
    }

    /// Ends what a browser is signed in as.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn sign_out(&self, cookie: &BrowserCookie) -> Result<(), Failure> {
        let key = cookie.hash();
        if let Some(record) = self.inner.store.get(Table::Session, &key).await.map_err(flow::unavailable)? {
            let delete = Write::Delete { table: Table::Session, key, generation: record.generation };
            self.inner.store.apply(vec![delete]).await.map_err(flow::unavailable)?;
        }
        Ok(())
    }

    /// Signs every browser of a person out: a token of theirs was revoked, or they leave. Says how many there were.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn sign_out_everywhere(&self, person: &Person) -> Result<usize, Failure> {
        let keys = self.inner.keys.open().await?;
        let mut ended = 0;
        let owner = keys.record_key(Table::Session, &person.parts());
        for record in self.inner.store.owned(Table::Session, &owner).await.map_err(flow::unavailable)? {
            let delete = Write::Delete { table: Table::Session, key: record.key, generation: record.generation };
            match self.inner.store.apply(vec![delete]).await {
                Ok(()) => ended += 1,
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(flow::unavailable(error)),
            }
        }
        Ok(ended)
    }

    /// Whom a browser is signed in as.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn signed_in(&self, cookie: &BrowserCookie) -> Result<Option<Person>, Failure> {
        Ok(self.sign_in_of(cookie).await?.map(|signed_in| signed_in.person))
    }

    /// The same, with what else is known of it.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn sign_in_of(&self, cookie: &BrowserCookie) -> Result<Option<SignedIn>, Failure> {
        let key = cookie.hash();
        let Some(record) = self.inner.store.get(Table::Session, &key).await.map_err(flow::unavailable)? else {
            return Ok(None);
        };
        let keys = self.inner.keys.open().await?;
        let plain = match keys.unseal(&TenantId::default_tenant(), &context(&key), &record.sealed).await {
            Ok(plain) => plain,
            Err(KeyError::DoesNotOpen) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // One of an older obo does not say all that counts. It was short anyway: the person signs in again.
        let Ok(session) = serde_json::from_slice::<Session>(plain.expose()) else { return Ok(None) };
        let Session { person, until, groups, proof_until } = session;
        Ok((self.inner.clock.now() < until).then_some(SignedIn { person, groups, proof_until }))
    }

    /// The hidden value of a form of this browser.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn form_value(&self, cookie: &BrowserCookie, form: &str) -> Result<String, Failure> {
        let keys = self.inner.keys.open().await?;
        Ok(URL_SAFE_NO_PAD.encode(keys.mac("form", &[cookie.expose().as_bytes(), form.as_bytes()])))
    }

    /// Whether a form came from a page that this browser was given.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn form_is_ours(&self, cookie: &BrowserCookie, form: &str, value: &str) -> Result<bool, Failure> {
        let expected = self.form_value(cookie, form).await?;
        Ok(expected.as_bytes().ct_eq(value.as_bytes()).into())
    }
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::Session).with(key)
}
