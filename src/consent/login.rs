//! Signing a browser in at the person's own identity provider (OpenID Connect Core §3.1).
//!
//! The answer is accepted from the browser that was sent, once, and only for the issuer whose callback path it came to.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use url::Url;

use super::session::BrowserCookie;
use super::{CallbackQuery, Consent, FLOW_TTL, FlowId, Visitor, flow};
use crate::clock::later;
use crate::failure::{Code, Failure};
use crate::id::{Source, TenantId};
use crate::identity::{IdentityError, SignIn};
use crate::keys::{Context, KeyError};
use crate::oauth::{Oauth, OauthError};
use crate::secret::{Secret, random, random_text};
use crate::store::{Record, RecordKey, StoreError, Table, Write};

/// How many random bytes a state has.
const STATE_BYTES: usize = 32;
/// How many sign-ins may be begun within [`FLOW_TTL`], by one process. Anybody can begin one, and each is kept for that
/// long: about 100 MB.
pub(super) const MAX_BEGUN: usize = 100_000;
/// The same for those that a client sent somebody to: its request is kept with each, about 7 KB.
pub(super) const MAX_BEGUN_FOR_CLIENTS: usize = 15_000;
/// How many random bytes a nonce has.
const NONCE_BYTES: usize = 32;

/// Where a browser goes once it is signed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Back {
    /// To a connect link.
    Connect(FlowId),
    /// To the person's own page.
    Account,
    /// To the decision about a client, whose request is this query.
    Client {
        /// As it stood in the address.
        query: String,
    },
}

impl Back {
    /// Our path of it.
    pub fn path(&self) -> String {
        match self {
            Self::Connect(flow) => format!("/connect/{}", flow.as_str()),
            Self::Account => "/account".to_owned(),
            Self::Client { query } => format!("/oauth/authorize?{query}"),
        }
    }
}

/// A sign-in under way, as it stands in its sealed record.
#[derive(Serialize, Deserialize)]
struct Login {
    source: Source,
    nonce: String,
    verifier: String,
    redirect_uri: Url,
    /// SHA-256 of the cookie of the browser that was sent.
    browser: [u8; 32],
    back: Back,
    until: Timestamp,
}

/// What came of a sign-in.
pub enum LoggedIn {
    /// The browser is signed in, under a new cookie.
    Yes {
        /// The cookie.
        cookie: BrowserCookie,
        /// Where it goes now.
        back: Back,
    },
    /// The answer belongs to no sign-in of this browser: unknown, used, too late, another browser's, another issuer's.
    NotOurs,
    /// The issuer did not sign the person in. It may be tried again.
    Refused {
        /// Where the browser came from.
        back: Back,
    },
}

impl Consent {
    /// Where a person of this source is sent to sign in; none, where there is no sign-in for that source.
    ///
    /// # Errors
    /// When the issuer does not answer.
    pub async fn sign_in_at(&self, source: &Source) -> Result<Option<SignIn>, Failure> {
        match self.inner.identity.sign_in(source).await {
            Ok(sign_in) => Ok(Some(sign_in)),
            Err(IdentityError::Missing) => Ok(None),
            Err(error) => Err(Failure::internal(error)),
        }
    }

    /// Sends a browser to its person's issuer: the answer is where. `again`: the issuer must ask who it is.
    ///
    /// # Errors
    /// `vault_unavailable`, or the issuer does not answer.
    pub async fn begin_login(
        &self,
        source: &Source,
        back: Back,
        visitor: &Visitor,
        again: bool,
    ) -> Result<Option<Url>, Failure> {
        let Some(sign_in) = self.sign_in_at(source).await? else { return Ok(None) };
        let begun = if matches!(back, Back::Client { .. }) { &self.inner.client_logins } else { &self.inner.logins };
        if !begun.count((), self.inner.clock.now()) {
            return Err(Failure::new(Code::RateLimited, "too many sign-ins were begun; try again in a few minutes"));
        }
        let redirect_uri = login_redirect_uri(&visitor.base, source)?;
        let state = Secret::new(URL_SAFE_NO_PAD.encode(random::<STATE_BYTES>()));
        let nonce = Secret::new(random_text::<NONCE_BYTES>());
        let pkce = Oauth::pkce();
        let url = Oauth::sign_in_url(&sign_in, &redirect_uri, &state, &nonce, &pkce, again);
        let login = Login {
            source: source.clone(),
            nonce: nonce.expose().to_owned(),
            verifier: pkce.verifier.expose().to_owned(),
            redirect_uri,
            browser: visitor.cookie.hash(),
            back,
            until: later(self.inner.clock.now(), FLOW_TTL),
        };
        let key = key_of(&state);
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(&login).map_err(Failure::internal)?);
        let keys = self.inner.keys.open().await?;
        let sealed = keys.seal(&TenantId::default_tenant(), &context(&key), &plain).await?;
        let record =
            Record { table: Table::Login, key, owner: key, generation: 0, expires_at: Some(login.until), sealed };
        self.inner.store.apply(vec![Write::Insert(record)]).await.map_err(flow::unavailable)?;
        Ok(Some(url))
    }

    /// Takes the issuer's answer.
    ///
    /// # Errors
    /// `vault_unavailable`, or the issuer does not answer.
    pub async fn finish_login(
        &self,
        issuer: &str,
        query: CallbackQuery,
        visitor: &Visitor,
    ) -> Result<LoggedIn, Failure> {
        let Some(login) = self.take_login(&Secret::new(query.state())).await? else { return Ok(LoggedIn::NotOurs) };
        let same_browser = bool::from(login.browser.ct_eq(&visitor.cookie.hash()));
        if login.source.as_str() != issuer || !same_browser || self.inner.clock.now() >= login.until {
            tracing::warn!(issuer, same_browser, "an answer came to a sign-in that it does not belong to");
            return Ok(LoggedIn::NotOurs);
        }
        let Some(sign_in) = self.sign_in_at(&login.source).await? else { return Ok(LoggedIn::NotOurs) };
        // RFC 9207 §2.4: compared as strings.
        match query.iss() {
            Some(iss) if iss == sign_in.issuer => {}
            None if !sign_in.sends_iss => {}
            _ => {
                tracing::warn!(issuer, "an answer to a sign-in names another issuer");
                return Ok(LoggedIn::NotOurs);
            }
        }
        let refused = |cause: String| {
            tracing::info!(issuer, cause, "a sign-in failed");
            Ok(LoggedIn::Refused { back: login.back.clone() })
        };
        let code = match query.into_answer() {
            Ok(code) => code,
            Err(error) => return refused(error),
        };
        let verifier = Secret::new(login.verifier.as_str());
        let tokens = match self.inner.oauth.sign_in_tokens(&sign_in, &code, &verifier, &login.redirect_uri).await {
            Ok(tokens) => tokens,
            // Neither is the person's doing, and the second is the operator's to mend.
            Err(error @ (OauthError::Busy(_) | OauthError::Unavailable(_) | OauthError::InvalidClient(_))) => {
                return Err(Failure::internal(error));
            }
            Err(error) => return refused(error.to_string()),
        };
        let nonce = Secret::new(login.nonce.as_str());
        let (id_token, access_token) = (&tokens.id_token, &tokens.access_token);
        match self.inner.identity.verify_id_token(&login.source, id_token, access_token, &nonce).await {
            Ok(subject) => Ok(LoggedIn::Yes { cookie: self.sign_in(&subject).await?, back: login.back }),
            Err(error @ IdentityError::Unavailable { .. }) => Err(Failure::internal(error)),
            Err(error) => refused(error.to_string()),
        }
    }

    /// Reads a sign-in under way and removes it: a state works once.
    async fn take_login(&self, state: &Secret) -> Result<Option<Login>, Failure> {
        let key = key_of(state);
        let Some(record) = self.inner.store.get(Table::Login, &key).await.map_err(flow::unavailable)? else {
            return Ok(None);
        };
        let delete = Write::Delete { table: Table::Login, key, generation: record.generation };
        match self.inner.store.apply(vec![delete]).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(None),
            Err(error) => return Err(flow::unavailable(error)),
        }
        let keys = self.inner.keys.open().await?;
        let plain = match keys.unseal(&TenantId::default_tenant(), &context(&key), &record.sealed).await {
            Ok(plain) => plain,
            Err(KeyError::DoesNotOpen) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(plain.expose()).map(Some).map_err(Failure::internal)
    }
}

/// `{base}/login/callback/{issuer}`: one an issuer (RFC 9700 §4.4.2.2).
fn login_redirect_uri(base: &Url, source: &Source) -> Result<Url, Failure> {
    let mut url = base.clone();
    url.path_segments_mut().map_err(|()| Failure::internal("public_url cannot have paths"))?.pop_if_empty().extend([
        "login",
        "callback",
        source.as_str(),
    ]);
    Ok(url)
}

fn key_of(state: &Secret) -> RecordKey {
    Sha256::digest([b"obo login ", state.expose().as_bytes()].concat()).into()
}

fn context(key: &RecordKey) -> Context {
    Context::of(Table::Login).with(key)
}
