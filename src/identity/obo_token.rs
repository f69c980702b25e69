//! Tokens that obo issues itself, for a machine without an identity provider.
//!
//! A token is `obo_` and 43 characters of base64url: 32 random bytes. It is shown once; the store has its SHA-256 as
//! the record's key and the rest sealed. There is no cache: a revoked token is refused by every process at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Authenticate, Credential, IdentityError, Subject, Via, all_records, bounded_groups, store_failure};
use crate::clock::{SharedClock, later};
use crate::failure::{Code, Failure};
use crate::id::{Person, Source, TenantId};
use crate::keys::{Context, KeyError, Keys, OpenKeys};
use crate::secret::{Secret, random, random_text};
use crate::store::{Record, RecordKey, Store, StoreError, Table, Write};

/// What a token begins with. NEVER CHANGE IT: secret scanners know it, and tokens in use would stop to be recognised.
pub const PREFIX: &str = "obo_";

/// Characters after the prefix: 32 bytes in base64url.
const SECRET_CHARS: usize = 43;

/// A token that was issued, without the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    /// What lists and `revoke` call it. Random, so that it tells nothing about the token.
    pub id: String,
    /// Whose it is.
    pub person: Person,
    /// The groups that its holder is in.
    pub groups: Vec<String>,
    /// When it was issued.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Timestamp,
}

/// Longest that a token may be good for: ten years.
const MAX_TTL: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Issues, lists, revokes and recognises tokens. Cheap to clone.
#[derive(Clone)]
pub struct OboTokens {
    store: Arc<dyn Store>,
    keys: Keys,
    clock: SharedClock,
}

impl OboTokens {
    pub(super) fn new(store: Arc<dyn Store>, keys: Keys, clock: SharedClock) -> Self {
        Self { store, keys, clock }
    }

    /// Issues a token that is good for `ttl`, and returns its id and the token.
    ///
    /// # Errors
    /// `invalid_arguments`: a person of another source, a group's name, no time at all. `vault_unavailable`.
    pub async fn issue(
        &self,
        person: &Person,
        groups: Vec<String>,
        ttl: Duration,
    ) -> Result<(String, Secret), Failure> {
        let wrong = |message: &str| Failure::new(Code::InvalidArguments, message);
        if person.source != Source::obo() {
            return Err(wrong(
                "obo issues tokens for its own people only; people of an issuer use the issuer's tokens",
            ));
        }
        if ttl > MAX_TTL {
            return Err(wrong("a token is good for ten years at most; give a shorter --ttl"));
        }
        if ttl.is_zero() {
            return Err(wrong("a token must be good for some time; give a --ttl such as 30d"));
        }
        let groups = bounded_groups(groups).map_err(wrong)?;
        let token = Secret::new(format!("{PREFIX}{}", random_text::<32>()));
        let now = self.clock.now();
        let issued = IssuedToken {
            id: random::<5>().iter().map(|byte| format!("{byte:02x}")).collect(),
            person: person.clone(),
            groups,
            created_at: now,
            expires_at: later(now, ttl),
        };
        let keys = self.keys.open().await?;
        let key = record_key(&token);
        let body = serde_json::to_vec(&issued).map_err(Failure::internal)?;
        let record = Record {
            table: Table::Token,
            key,
            owner: owner(&keys, person),
            generation: 0,
            expires_at: Some(issued.expires_at),
            sealed: keys.seal(&sealing_tenant(), &context(&key), &body).await?,
        };
        self.store.apply(vec![Write::Insert(record)]).await.map_err(store_failure)?;
        Ok((issued.id, token))
    }

    /// Lists tokens, of one person or of all, newest first. Expired ones are in it until they are pruned.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn list(&self, person: Option<&Person>) -> Result<Vec<IssuedToken>, Failure> {
        let keys = self.keys.open().await?;
        let records = match person {
            Some(person) => self.store.owned(Table::Token, &owner(&keys, person)).await.map_err(store_failure)?,
            None => all_records(&*self.store, Table::Token).await?,
        };
        let mut list = Vec::with_capacity(records.len());
        for record in &records {
            match open(&keys, record).await {
                Ok(token) => list.push(token),
                // One bad record must not hide the others.
                Err(error) => tracing::error!(%error, "an issued token does not open"),
            }
        }
        list.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(list)
    }

    /// Revokes a token by its id. Every process refuses it from now on.
    ///
    /// # Errors
    /// `not_found`; `vault_unavailable`.
    pub async fn revoke(&self, id: &str) -> Result<IssuedToken, Failure> {
        let keys = self.keys.open().await?;
        for record in all_records(&*self.store, Table::Token).await? {
            let Ok(issued) = open(&keys, &record).await else { continue };
            if issued.id != id {
                continue;
            }
            let delete = Write::Delete { table: Table::Token, key: record.key, generation: record.generation };
            return match self.store.apply(vec![delete]).await {
                // A token is never rewritten: who changed it in the meantime has removed it.
                Ok(()) | Err(StoreError::Conflict) => Ok(issued),
                Err(error) => Err(store_failure(error)),
            };
        }
        Err(Failure::new(Code::NotFound, "no token has this id; `obo token list` shows them"))
    }

    /// Revokes every token of a person, those that do not open too, and says which.
    ///
    /// # Errors
    /// `vault_unavailable`: some may still be good.
    pub async fn revoke_all(&self, person: &Person) -> Result<Vec<IssuedToken>, Failure> {
        let keys = self.keys.open().await?;
        let mut revoked = Vec::new();
        for record in self.store.owned(Table::Token, &owner(&keys, person)).await.map_err(store_failure)? {
            let issued = open(&keys, &record).await;
            let delete = Write::Delete { table: Table::Token, key: record.key, generation: record.generation };
            match self.store.apply(vec![delete]).await {
                Ok(()) => revoked.extend(issued.ok()),
                // A token is never rewritten: who changed it in the meantime has removed it.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(store_failure(error)),
            }
        }
        Ok(revoked)
    }
}

#[async_trait]
impl Authenticate for OboTokens {
    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        let Credential::Bearer { token, obo_user: None } = credential else { return Err(IdentityError::Missing) };
        let secret = token.expose().strip_prefix(PREFIX).unwrap_or_default();
        if secret.len() != SECRET_CHARS || !secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return Err(IdentityError::invalid("not in the form of a token issued by obo"));
        }
        // Looking a digest up tells nothing about the token by its timing: who could aim at a digest has the token.
        let record = self.store.get(Table::Token, &record_key(token)).await?;
        let record =
            record.ok_or_else(|| IdentityError::invalid("a token that was not issued here, or was revoked"))?;
        let keys = self.keys.open().await?;
        let issued = open(&keys, &record).await?;
        if issued.expires_at <= self.clock.now() {
            return Err(IdentityError::invalid(format!("token {} has expired", issued.id)));
        }
        let expires_at = Some(issued.expires_at);
        Ok(Subject { person: issued.person, groups: issued.groups, via: Via::OboToken, expires_at, lacking: None })
    }
}

/// The key of a token's record. Plain SHA-256 is enough for 256 random bits: there is nothing to guess.
fn record_key(token: &Secret) -> RecordKey {
    Sha256::digest(token.expose().as_bytes()).into()
}

/// What a person's tokens are listed by. A MAC, because a person's name can be guessed.
fn owner(keys: &OpenKeys, person: &Person) -> RecordKey {
    keys.record_key(Table::Token, &person.parts())
}

/// Tokens are looked up before it is known whose they are, hence before the tenant is known.
fn sealing_tenant() -> TenantId {
    TenantId::default_tenant()
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::Token).with(key)
}

async fn open(keys: &OpenKeys, record: &Record) -> Result<IssuedToken, KeyError> {
    let body = keys.unseal(&sealing_tenant(), &context(&record.key), &record.sealed).await?;
    serde_json::from_slice(body.expose())
        .map_err(|_| KeyError::Unusable("a token's record is from a newer obo; update this one".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::fixture::{Fixture, bearer, bearer_for};
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn alice() -> Person {
        person("acme", "alice")
    }

    fn person(tenant: &str, user: &str) -> Person {
        Person { tenant: tenant.parse().unwrap(), source: Source::obo(), user: user.parse().unwrap() }
    }

    #[tokio::test]
    async fn a_token_stands_for_its_person_until_it_expires() {
        let test = Fixture::new(Default::default());
        let tokens = test.identity.tokens();
        let (id, token) = tokens.issue(&alice(), vec!["ops".to_owned()], DAY).await.unwrap();
        assert!(token.expose().starts_with("obo_") && token.expose().len() == 47 && !token.expose().contains(&id));

        let subject = test.identity.authenticate(&bearer(token.expose())).await.unwrap();
        assert_eq!((subject.person(), subject.groups()), (&alice(), &["ops".to_owned()][..]));
        assert_eq!(subject.via(), &Via::OboToken);

        test.clock.advance(DAY - Duration::from_secs(1));
        assert!(test.identity.authenticate(&bearer(token.expose())).await.is_ok());
        test.clock.advance(Duration::from_secs(1));
        let error = test.identity.authenticate(&bearer(token.expose())).await.unwrap_err();
        assert_eq!(error, IdentityError::invalid(format!("token {id} has expired")));
    }

    #[tokio::test]
    async fn revocation_works_at_once_and_on_that_token_alone() {
        let test = Fixture::new(Default::default());
        let tokens = test.identity.tokens();
        let (first, token) = tokens.issue(&alice(), vec![], DAY).await.unwrap();
        test.clock.advance(Duration::from_secs(1));
        let (second, other) = tokens.issue(&alice(), vec![], DAY).await.unwrap();
        tokens.issue(&person("acme", "bob"), vec![], DAY).await.unwrap();

        assert_eq!(tokens.list(None).await.unwrap().len(), 3);
        let ids: Vec<_> = tokens.list(Some(&alice())).await.unwrap().into_iter().map(|token| token.id).collect();
        assert_eq!(ids, [second, first.clone()]);
        assert!(tokens.list(Some(&person("other", "alice"))).await.unwrap().is_empty());

        assert_eq!(tokens.revoke(&first).await.unwrap().person, alice());
        assert!(test.identity.authenticate(&bearer(token.expose())).await.is_err());
        assert!(test.identity.authenticate(&bearer(other.expose())).await.is_ok());
        assert_eq!(tokens.revoke(&first).await.unwrap_err().code, Code::NotFound);
    }

    #[tokio::test]
    async fn what_is_not_a_token_is_refused_without_looking_further() {
        let test = Fixture::new(Default::default());
        let (_, token) = test.identity.tokens().issue(&alice(), vec![], DAY).await.unwrap();
        let token = token.expose();
        let mut wrong: Vec<String> = ["obo_", "obo_x", "obo_../../etc/passwd", "OBO_x", "", "x", "obo_\0"]
            .iter()
            .map(|text| text.to_string())
            .collect();
        wrong.extend([format!("{token}="), format!("{token}a"), token[..46].to_owned(), token.to_uppercase()]);
        wrong.push(format!("obo_{}", "A".repeat(43)));
        wrong.push(format!("obo_{}", "A".repeat(20_000)));
        for wrong in wrong {
            assert!(test.identity.authenticate(&bearer(&wrong)).await.is_err(), "{wrong:.60}");
        }
        // Nobody acts as somebody else with a token of their own.
        let error = test.identity.authenticate(&bearer_for(token, "bob")).await.unwrap_err();
        assert!(matches!(error, IdentityError::Invalid { .. }));
        assert!(test.identity.authenticate(&bearer(token)).await.is_ok());
    }

    #[tokio::test]
    async fn the_store_has_neither_the_token_nor_the_person() {
        let test = Fixture::new(Default::default());
        let (id, token) = test.identity.tokens().issue(&alice(), vec!["ops".to_owned()], DAY).await.unwrap();
        let dump = test.store.dump(Table::Token);
        assert!(dump.len() > 100);
        for secret in [token.expose(), &token.expose()[4..], "alice", "acme", "ops", &id] {
            assert!(!dump.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
        }
    }

    #[tokio::test]
    async fn a_changed_record_or_a_broken_store_is_no_answer() {
        let test = Fixture::new(Default::default());
        let (_, token) = test.identity.tokens().issue(&alice(), vec![], DAY).await.unwrap();
        test.store.tamper(|record| *record.sealed.last_mut().unwrap() ^= 1);
        let error = test.identity.authenticate(&bearer(token.expose())).await.unwrap_err();
        assert!(matches!(error, IdentityError::Unavailable { .. }), "{error}");

        test.store.broken.store(true, Ordering::SeqCst);
        let error = test.identity.authenticate(&bearer(token.expose())).await.unwrap_err();
        assert!(matches!(error, IdentityError::Unavailable { .. }), "{error}");
        let failure = test.identity.tokens().issue(&alice(), vec![], DAY).await.err().unwrap();
        assert_eq!(failure.code, Code::VaultUnavailable);
    }

    #[tokio::test]
    async fn a_record_does_not_open_under_another_token_s_key() {
        let test = Fixture::new(Default::default());
        let (_, alices) = test.identity.tokens().issue(&alice(), vec![], DAY).await.unwrap();
        let (_, bobs) = test.identity.tokens().issue(&person("acme", "bob"), vec![], DAY).await.unwrap();
        let record = test.store.get(Table::Token, &record_key(&alices)).await.unwrap().unwrap();
        test.store.tamper(|other| other.sealed = record.sealed.clone());
        assert!(test.identity.authenticate(&bearer(alices.expose())).await.is_ok());
        let error = test.identity.authenticate(&bearer(bobs.expose())).await.unwrap_err();
        assert!(matches!(error, IdentityError::Unavailable { .. }), "{error}");
    }

    #[tokio::test]
    async fn only_sensible_tokens_are_issued() {
        let test = Fixture::new(Default::default());
        let corp = Person { source: "corp".parse().unwrap(), ..alice() };
        for (person, groups, ttl) in [
            (corp, vec![], DAY),
            (alice(), vec![], Duration::ZERO),
            (alice(), vec![String::new()], DAY),
            (alice(), vec!["a\n".to_owned()], DAY),
            (alice(), vec!["g".to_owned(); 600], DAY),
            (alice(), vec![], Duration::MAX),
        ] {
            let failure = test.identity.tokens().issue(&person, groups, ttl).await.err().unwrap();
            assert_eq!(failure.code, Code::InvalidArguments);
        }
        let (_, token) = test.identity.tokens().issue(&alice(), vec![], MAX_TTL).await.unwrap();
        assert!(test.identity.authenticate(&bearer(token.expose())).await.is_ok());
    }
}
