//! Clients that people signed in at obo itself: short access tokens, and refresh tokens that work once.
//!
//! What is shared by all tokens of one sign-in is its session. A refresh token that comes back after it was used is in two
//! hands, and nobody can tell which of them is the person's: the whole session ends (RFC 9700 §4.14.2).
//!
//! One thing looks the same and is not: clients in wide use send the same refresh token several times at once when several
//! of their calls find the access token expired, and any client does when an answer was lost on its way. For a few
//! seconds, and only while its successor was not used, a refresh token gets the very answer again. A thief wins nothing by
//! it: two hands then hold one successor, and whichever uses it second ends the session.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Authenticate, Credential, IdentityError, Subject, Via, bounded_groups, issuer, store_failure};
use crate::clock::{SharedClock, later};
use crate::failure::{Code, Failure};
use crate::id::{Person, Source, TenantId};
use crate::keys::{Context, KeyError, Keys, OpenKeys};
use crate::secret::{Secret, random, random_text};
use crate::store::{Record, RecordKey, Store, StoreError, Table, Write};

/// What an access token begins with. NEVER CHANGE IT: secret scanners know it, and tokens in use would stop to be
/// recognised. Neither begins with the other's, nor with that of a token from `obo token issue`.
pub const ACCESS_PREFIX: &str = "oboa_";
/// What a refresh token begins with. NEVER CHANGE IT.
pub const REFRESH_PREFIX: &str = "obor_";

/// How long an access token is good for. Short, because it may lie in a log somewhere.
pub const ACCESS_TTL: Duration = Duration::from_secs(15 * 60);
/// How long a session lasts at most, from the sign-in: after that the person signs in again.
pub const SESSION_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long a used refresh token gets its successor again.
const AGAIN_FOR: Duration = Duration::from_secs(10);
/// How many sessions a person may have. The one that was not used for longest makes room.
const MAX_SESSIONS: usize = 50;
/// How many access tokens of a session may be good at once. The oldest makes room.
const MAX_ACCESS_TOKENS: usize = 8;
/// How often a write is tried anew when somebody else wrote first.
const MAX_TRIES: usize = 5;

const FAMILY_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
/// Characters of an access token after its prefix.
const ACCESS_CHARS: usize = 43;

/// What names a session in its refresh tokens. Whoever has it has, or had, one of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family([u8; FAMILY_BYTES]);

impl Family {
    /// A new one.
    pub fn random() -> Self {
        Self(random())
    }

    fn key(&self) -> RecordKey {
        Sha256::digest([b"obo client session ", &self.0[..]].concat()).into()
    }
}

/// A client that is signed in for a person, without its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientSession {
    /// What lists and `revoke` call it. Random, so that it tells nothing about the tokens.
    pub id: String,
    /// Whose it is.
    pub person: Person,
    /// The groups that the person was in when they signed in.
    pub groups: Vec<String>,
    /// The client, as OAuth names it.
    pub client_id: String,
    /// The client's name, for people.
    pub client: String,
    /// When the person signed in.
    pub created_at: Timestamp,
    /// When it last got a token.
    pub used_at: Timestamp,
    /// From when on the person must sign in again.
    pub expires_at: Timestamp,
}

/// What a person has allowed: a session to begin.
pub struct Allowed {
    /// Its name in tokens.
    pub family: Family,
    /// What lists and `revoke` will call it.
    pub id: String,
    /// Who allowed it.
    pub person: Person,
    /// The groups they are in.
    pub groups: Vec<String>,
    /// The client, as OAuth names it.
    pub client_id: String,
    /// The client's name, for people.
    pub client: String,
    /// When what proved who they are runs out for good; the session lasts no longer.
    pub until: Option<Timestamp>,
}

/// The tokens that a client gets. The access token is good for [`ACCESS_TTL`].
pub struct Tokens {
    /// For calls.
    pub access: Secret,
    /// How long the access token is good for.
    pub expires_in: Duration,
    /// For the next tokens, once.
    pub refresh: Secret,
    /// The session.
    pub session: ClientSession,
    /// Sessions that ended to make room for a new one.
    pub displaced: Vec<ClientSession>,
}

/// Why a client gets no tokens.
#[derive(Debug, Clone)]
pub enum NoTokens {
    /// What was shown is not good: unknown, ended, expired, of another client.
    Invalid(&'static str),
    /// It was used before. Its session has ended now.
    Reused(Box<ClientSession>),
    /// It cannot be told, or not be kept.
    Failed(Failure),
}

impl From<StoreError> for NoTokens {
    fn from(error: StoreError) -> Self {
        Self::Failed(store_failure(error))
    }
}

impl From<KeyError> for NoTokens {
    fn from(error: KeyError) -> Self {
        Self::Failed(error.into())
    }
}

/// A session as it stands in its sealed record.
#[derive(Serialize, Deserialize)]
struct Kept {
    session: ClientSession,
    /// SHA-256 of the one refresh token that is good now.
    refresh: [u8; 32],
    /// SHA-256 of the one before it, whose successor it is.
    previous: Option<[u8; 32]>,
}

/// An access token as it stands in its sealed record.
#[derive(Serialize, Deserialize)]
struct Access {
    person: Person,
    groups: Vec<String>,
    client_id: String,
    client: String,
    created_at: Timestamp,
    expires_at: Timestamp,
}

/// Begins, renews, lists and ends sessions, and recognises their access tokens. Cheap to clone.
#[derive(Clone)]
pub struct ClientSessions {
    store: Arc<dyn Store>,
    keys: Keys,
    issuers: Arc<issuer::Issuers>,
    clock: SharedClock,
    accepted: bool,
}

impl ClientSessions {
    pub(super) fn new(store: Arc<dyn Store>, keys: Keys, issuers: Arc<issuer::Issuers>, clock: SharedClock) -> Self {
        Self { store, keys, issuers, clock, accepted: false }
    }

    pub(super) fn accept(&mut self) {
        self.accepted = true;
    }

    /// Begins a session, together with `spent`, which marks what it was allowed by as used: both happen, or neither.
    /// `None` when `spent` was not as it was read: somebody else was first.
    ///
    /// # Errors
    /// See [`NoTokens`].
    pub async fn begin(&self, allowed: Allowed, spent: Write) -> Result<Option<Tokens>, NoTokens> {
        let Allowed { family, id, person, groups, client_id, client, until } = allowed;
        let groups = bounded_groups(groups).map_err(NoTokens::Invalid)?;
        let now = self.clock.now();
        let longest = later(now, SESSION_TTL);
        let expires_at = until.map_or(longest, |until| longest.min(until));
        if expires_at <= now || !self.is_known(&person) {
            return Err(NoTokens::Invalid("what proved who the person is has run out"));
        }
        let session =
            ClientSession { id, person, groups, client_id, client, created_at: now, used_at: now, expires_at };
        let displaced = self.make_room(&session.person).await?;
        let keys = self.keys.open().await?;
        let refresh = refresh_token(&family, random());
        let kept = Kept { session: session.clone(), refresh: hash_of(&refresh), previous: None };
        let session_record = seal(&keys, &family.key(), &kept).await?;
        let (access, access_record) = self.new_access(&keys, &family.key(), &session).await?;
        match self.store.apply(vec![spent, Write::Insert(session_record), Write::Insert(access_record)]).await {
            Ok(()) => Ok(Some(Tokens { displaced, ..self.tokens(access, refresh, session) })),
            Err(StoreError::Conflict) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// New tokens for a refresh token, which is void then (RFC 6749 §6, OAuth 2.1 §4.3.1).
    ///
    /// # Errors
    /// See [`NoTokens`].
    pub async fn renew(&self, token: &Secret, client_id: &str) -> Result<Tokens, NoTokens> {
        let family = family_of(token).ok_or(NoTokens::Invalid("not in the form of a refresh token"))?;
        let hash = hash_of(token);
        let keys = self.keys.open().await?;
        for _ in 0..MAX_TRIES {
            let key = family.key();
            let Some(record) = self.store.get(Table::ClientSession, &key).await? else {
                return Err(NoTokens::Invalid("its session has ended"));
            };
            let kept = open(&keys, &record).await?;
            let now = self.clock.now();
            let newest = bool::from(kept.refresh.ct_eq(&hash));
            let just_used = kept.previous.is_some_and(|previous| bool::from(previous.ct_eq(&hash)))
                && now < later(kept.session.used_at, AGAIN_FOR);
            // Another client that shows it has stolen it, however new it is.
            if kept.session.client_id != client_id || !(newest || just_used) {
                self.end(&key).await?;
                return Err(NoTokens::Reused(Box::new(kept.session)));
            }
            if kept.session.expires_at <= now || !self.is_known(&kept.session.person) {
                return Err(NoTokens::Invalid("its session has expired"));
            }
            // Made from the token that is shown, so that the same answer can be given again without being kept.
            let refresh = refresh_token(&family, keys.mac("client refresh token", &[token.expose().as_bytes()]));
            let kept = if newest {
                let session = ClientSession { used_at: now, ..kept.session };
                Kept { session, refresh: hash_of(&refresh), previous: Some(hash) }
            } else {
                kept
            };
            let session = kept.session.clone();
            let mut renewed = seal(&keys, &key, &kept).await?;
            renewed.generation = record.generation;
            let (access, access_record) = self.new_access(&keys, &key, &session).await?;
            let mut writes = vec![Write::Replace(renewed), Write::Insert(access_record)];
            writes.extend(self.surplus(&keys, &key).await?);
            match self.store.apply(writes).await {
                Ok(()) => return Ok(self.tokens(access, refresh, session)),
                // Read anew: if the token was used at the same moment, it is known to be used now.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(NoTokens::Failed(Failure::new(Code::VaultUnavailable, "the session is busy; try again")))
    }

    /// Ends what a token of this client belongs to: a refresh token's session, or an access token alone (RFC 7009 §2.1).
    /// The session, where one ended. A token that is unknown is void already.
    ///
    /// # Errors
    /// `vault_unavailable`: it may still be good.
    pub async fn revoke_token(&self, token: &Secret, client_id: &str) -> Result<Option<ClientSession>, Failure> {
        let keys = self.keys.open().await?;
        if let Some(family) = family_of(token) {
            let key = family.key();
            let Some(record) = self.store.get(Table::ClientSession, &key).await.map_err(store_failure)? else {
                return Ok(None);
            };
            let session = open(&keys, &record).await?.session;
            // RFC 7009 §2.1: only the client's own.
            if session.client_id != client_id {
                return Ok(None);
            }
            self.end(&key).await.map_err(store_failure)?;
            return Ok(Some(session));
        }
        let key = access_key(token);
        if let Some(record) = self.store.get(Table::ClientToken, &key).await.map_err(store_failure)?
            && open_access(&keys, &record).await?.client_id == client_id
        {
            let delete = Write::Delete { table: Table::ClientToken, key, generation: record.generation };
            match self.store.apply(vec![delete]).await {
                Ok(()) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(store_failure(error)),
            }
        }
        Ok(None)
    }

    /// Ends the session that a code began, because the code came twice (RFC 6749 §4.1.2).
    ///
    /// # Errors
    /// `vault_unavailable`: it may still be good.
    pub async fn end_family(&self, family: &Family) -> Result<(), Failure> {
        self.end(&family.key()).await.map_err(store_failure)
    }

    /// Lists sessions, of one person or of all, newest first. Expired ones are in it until they are pruned.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn list(&self, person: Option<&Person>) -> Result<Vec<ClientSession>, Failure> {
        let found = self.find(person).await?;
        let mut list: Vec<ClientSession> = found.into_iter().map(|(_, session)| session).collect();
        list.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(list)
    }

    /// Ends a session by its id, of one person or of anybody. Every process refuses its tokens from now on.
    ///
    /// # Errors
    /// `not_found`; `vault_unavailable`.
    pub async fn revoke(&self, person: Option<&Person>, id: &str) -> Result<ClientSession, Failure> {
        let found = self.find(person).await?.into_iter().find(|(_, session)| session.id == id);
        let (key, session) = found.ok_or_else(|| {
            Failure::new(Code::NotFound, "no token and no signed-in client has this id; `obo token list` shows them")
        })?;
        self.end(&key).await.map_err(store_failure)?;
        Ok(session)
    }

    /// What a person's sessions, and the codes that may become some, are listed by. A MAC, because a person's name can be
    /// guessed.
    pub fn owner(keys: &OpenKeys, person: &Person) -> RecordKey {
        keys.record_key(Table::ClientSession, &person.parts())
    }

    /// Forgets the codes that were about to become sessions of a person.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn forget_codes(&self, person: &Person) -> Result<(), Failure> {
        let keys = self.keys.open().await?;
        let codes = self.store.owned(Table::AuthorizationCode, &Self::owner(&keys, person)).await;
        for code in codes.map_err(store_failure)? {
            let delete = Write::Delete { table: code.table, key: code.key, generation: code.generation };
            match self.store.apply(vec![delete]).await {
                // One that was exchanged in between is a session by now.
                Ok(()) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(store_failure(error)),
            }
        }
        Ok(())
    }

    /// Ends all sessions of a person, with the codes that were about to become some, and says which.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn revoke_all(&self, person: &Person) -> Result<Vec<ClientSession>, Failure> {
        // First: one that becomes a session in between is found as one.
        self.forget_codes(person).await?;
        let mut ended = Vec::new();
        for (key, session) in self.find(Some(person)).await? {
            self.end(&key).await.map_err(store_failure)?;
            ended.push(session);
        }
        Ok(ended)
    }

    async fn find(&self, person: Option<&Person>) -> Result<Vec<(RecordKey, ClientSession)>, Failure> {
        let keys = self.keys.open().await?;
        let records = match person {
            Some(person) => {
                self.store.owned(Table::ClientSession, &Self::owner(&keys, person)).await.map_err(store_failure)?
            }
            None => super::all_records(&*self.store, Table::ClientSession).await?,
        };
        let mut found = Vec::with_capacity(records.len());
        for record in &records {
            match open(&keys, record).await {
                Ok(kept) => found.push((record.key, kept.session)),
                // One bad record must not hide the others.
                Err(error) => tracing::error!(%error, "a client's session does not open"),
            }
        }
        Ok(found)
    }

    /// Removes a session and its access tokens at once, so that none outlives it.
    async fn end(&self, key: &RecordKey) -> Result<(), StoreError> {
        loop {
            let Some(record) = self.store.get(Table::ClientSession, key).await? else { return Ok(()) };
            let tokens = self.store.owned(Table::ClientToken, key).await?;
            let delete =
                |record: &Record| Write::Delete { table: record.table, key: record.key, generation: record.generation };
            // Whoever renews it at the same moment changes the session too: then all of this is read anew.
            match self.store.apply(std::iter::once(&record).chain(&tokens).map(delete).collect()).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends the sessions of a person that one more would be too many for.
    async fn make_room(&self, person: &Person) -> Result<Vec<ClientSession>, NoTokens> {
        let mut sessions = self.find(Some(person)).await.map_err(NoTokens::Failed)?;
        sessions.sort_by_key(|(_, session)| std::cmp::Reverse(session.used_at));
        let mut displaced = Vec::new();
        for (key, session) in sessions.into_iter().skip(MAX_SESSIONS - 1) {
            self.end(&key).await?;
            displaced.push(session);
        }
        Ok(displaced)
    }

    /// What to remove so that one more access token of a session is not one too many.
    async fn surplus(&self, keys: &OpenKeys, session: &RecordKey) -> Result<Vec<Write>, NoTokens> {
        let records = self.store.owned(Table::ClientToken, session).await?;
        if records.len() < MAX_ACCESS_TOKENS {
            return Ok(Vec::new());
        }
        let mut dated = Vec::with_capacity(records.len());
        for record in records {
            dated.push((open_access(keys, &record).await?.created_at, record));
        }
        dated.sort_by_key(|(created_at, _)| std::cmp::Reverse(*created_at));
        let delete = |(_, record): &(Timestamp, Record)| Write::Delete {
            table: Table::ClientToken,
            key: record.key,
            generation: record.generation,
        };
        Ok(dated.iter().skip(MAX_ACCESS_TOKENS - 1).map(delete).collect())
    }

    async fn new_access(
        &self,
        keys: &OpenKeys,
        session_key: &RecordKey,
        session: &ClientSession,
    ) -> Result<(Secret, Record), NoTokens> {
        let token = Secret::new(format!("{ACCESS_PREFIX}{}", random_text::<SECRET_BYTES>()));
        let now = self.clock.now();
        let access = Access {
            person: session.person.clone(),
            groups: session.groups.clone(),
            client_id: session.client_id.clone(),
            client: session.client.clone(),
            created_at: now,
            expires_at: later(now, ACCESS_TTL).min(session.expires_at),
        };
        let key = access_key(&token);
        let body = serde_json::to_vec(&access).map_err(|error| NoTokens::Failed(Failure::internal(error)))?;
        let sealed = keys.seal(&sealing_tenant(), &Context::of(Table::ClientToken).with(&key), &body).await?;
        let expires_at = Some(access.expires_at);
        let record = Record { table: Table::ClientToken, key, owner: *session_key, generation: 0, expires_at, sealed };
        Ok((token, record))
    }

    fn tokens(&self, access: Secret, refresh: Secret, session: ClientSession) -> Tokens {
        let left = crate::clock::remaining(self.clock.now(), session.expires_at);
        Tokens { access, expires_in: ACCESS_TTL.min(left), refresh, session, displaced: Vec::new() }
    }

    /// Whether people like this one can still sign in: an issuer that was taken out of obo.toml vouches for nobody.
    fn is_known(&self, person: &Person) -> bool {
        let vouches = |issuer: &issuer::Config| issuer.name == person.source && issuer.may_be_in(&person.tenant);
        person.source == Source::obo() || self.issuers.configs().any(vouches)
    }
}

#[async_trait]
impl Authenticate for ClientSessions {
    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        let Credential::Bearer { token, obo_user: None } = credential else { return Err(IdentityError::Missing) };
        if !self.accepted {
            return Err(IdentityError::invalid("the authorization server of this obo is turned off"));
        }
        let secret = token.expose().strip_prefix(ACCESS_PREFIX).unwrap_or_default();
        if secret.len() != ACCESS_CHARS || !secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return Err(IdentityError::invalid("not in the form of an access token of obo"));
        }
        // Looking a digest up tells nothing about the token by its timing: who could aim at a digest has the token.
        let record = self.store.get(Table::ClientToken, &access_key(token)).await?;
        let record =
            record.ok_or_else(|| IdentityError::invalid("an access token that was not issued here, or has ended"))?;
        let keys = self.keys.open().await?;
        let access = open_access(&keys, &record).await?;
        if access.expires_at <= self.clock.now() {
            return Err(IdentityError::invalid("an access token of obo has expired"));
        }
        if !self.is_known(&access.person) {
            return Err(IdentityError::invalid("the issuer of the person is not configured any more"));
        }
        let via = Via::Client(access.client);
        let expires_at = Some(access.expires_at);
        Ok(Subject { person: access.person, groups: access.groups, via, expires_at, lacking: None })
    }
}

/// The refresh token of a family with this secret.
fn refresh_token(family: &Family, secret: [u8; SECRET_BYTES]) -> Secret {
    let secret = zeroize::Zeroizing::new(secret);
    let bytes = zeroize::Zeroizing::new([&family.0[..], &secret[..]].concat());
    Secret::new(format!("{REFRESH_PREFIX}{}", URL_SAFE_NO_PAD.encode(&*bytes)))
}

/// The family of what looks like a refresh token.
fn family_of(token: &Secret) -> Option<Family> {
    let text = token.expose().strip_prefix(REFRESH_PREFIX)?;
    let bytes = zeroize::Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
    let family = bytes.first_chunk::<FAMILY_BYTES>()?;
    (bytes.len() == FAMILY_BYTES + SECRET_BYTES).then_some(Family(*family))
}

fn hash_of(token: &Secret) -> [u8; 32] {
    Sha256::digest(token.expose().as_bytes()).into()
}

/// The key of an access token's record. Plain SHA-256 is enough for 256 random bits: there is nothing to guess.
fn access_key(token: &Secret) -> RecordKey {
    Sha256::digest(token.expose().as_bytes()).into()
}

/// Tokens are looked up before it is known whose they are, hence before the tenant is known.
fn sealing_tenant() -> TenantId {
    TenantId::default_tenant()
}

async fn seal(keys: &OpenKeys, key: &RecordKey, kept: &Kept) -> Result<Record, NoTokens> {
    let body = serde_json::to_vec(kept).map_err(|error| NoTokens::Failed(Failure::internal(error)))?;
    let sealed = keys.seal(&sealing_tenant(), &Context::of(Table::ClientSession).with(key), &body).await?;
    Ok(Record {
        table: Table::ClientSession,
        key: *key,
        owner: ClientSessions::owner(keys, &kept.session.person),
        generation: 0,
        expires_at: Some(kept.session.expires_at),
        sealed,
    })
}

async fn open(keys: &OpenKeys, record: &Record) -> Result<Kept, KeyError> {
    read(keys, Table::ClientSession, record).await
}

async fn open_access(keys: &OpenKeys, record: &Record) -> Result<Access, KeyError> {
    read(keys, Table::ClientToken, record).await
}

async fn read<T: serde::de::DeserializeOwned>(keys: &OpenKeys, table: Table, record: &Record) -> Result<T, KeyError> {
    let body = keys.unseal(&sealing_tenant(), &Context::of(table).with(&record.key), &record.sealed).await?;
    serde_json::from_slice(body.expose())
        .map_err(|_| KeyError::Unusable("a client's record is from a newer obo; update this one".to_owned()))
}
