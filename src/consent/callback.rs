//! The provider's answer comes back through the browser: checked, exchanged once, and kept.

use std::sync::Arc;
use std::time::Duration;

use subtle::ConstantTimeEq;
use url::Url;

use super::Consent;
use super::flow::{self, Flow, FlowId, Redeemable, Stage, WORTH_REUSING};
use super::visit::{Owner, Ticket, Visitor, scopes_to_ask};
use crate::catalog::Provider;
use crate::clock::later;
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::oauth::{Account, OauthError, Revocation, TokenAnswer};
use crate::secret::Secret;
use crate::store::StoreError;
use crate::vault::{Grant, Keep};

/// Longest query of a callback, in bytes.
const MAX_QUERY_BYTES: usize = 8 * 1024;
/// Before the account is asked for again: the tokens are there, and would be for nothing.
const ACCOUNT_AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// Longest authorization code, in bytes. RFC 6749 leaves the size open; the longest seen are below 2 KiB.
const MAX_CODE_BYTES: usize = 4 * 1024;

/// The query of a callback (RFC 6749 §4.1.2, RFC 9207 §2). Unverified: it says what the browser was sent with.
pub struct CallbackQuery {
    state: String,
    answer: Result<Secret, String>,
    iss: Option<String>,
}

impl CallbackQuery {
    /// Reads a query. A parameter that stands twice makes it invalid (RFC 6749 §3.1).
    pub fn parse(query: &str) -> Option<Self> {
        if query.len() > MAX_QUERY_BYTES {
            return None;
        }
        let (mut state, mut code, mut error, mut iss) = (None, None, None, None);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*key {
                "state" => &mut state,
                "code" => &mut code,
                "error" => &mut error,
                "iss" => &mut iss,
                // Providers add `scope`, `authuser`, `session_state` and more.
                _ => continue,
            };
            if slot.replace(value.into_owned()).is_some() {
                return None;
            }
        }
        let answer = match (code, error) {
            (Some(code), None) if !code.is_empty() && code.len() <= MAX_CODE_BYTES => Ok(Secret::new(code)),
            (None, Some(error)) => Err(error_code(&error)),
            _ => return None,
        };
        Some(Self { state: state?, answer, iss })
    }
}

impl CallbackQuery {
    pub(super) fn state(&self) -> &str {
        &self.state
    }

    pub(super) fn iss(&self) -> Option<&str> {
        self.iss.as_deref()
    }

    /// The code, or the error's.
    pub(super) fn into_answer(self) -> Result<Secret, String> {
        self.answer
    }
}

/// An error code as it may be shown: what is not one becomes `error`.
fn error_code(text: &str) -> String {
    let plain = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-'));
    if plain { text.to_owned() } else { "error".to_owned() }
}

/// What a browser sees after it came back.
pub enum Returned {
    /// The answer is not of a flow of ours, or not of this provider's.
    NotOurs,
    /// The answer was used already, or another press replaced it.
    Used,
    /// The answer came too late.
    Expired,
    /// It came in another browser than the one that pressed the button, or one that is signed in as somebody else.
    OtherBrowser,
    /// The person declined.
    Declined {
        /// The provider's name.
        provider_name: String,
    },
    /// It did not work out; the button may be pressed again.
    Failed {
        /// The flow, for the way back.
        flow: FlowId,
        /// The provider's name.
        provider_name: String,
        /// What the person may read.
        message: String,
        /// Whether the answer itself was no good; else the provider did not do its part.
        bad_answer: bool,
    },
    /// The application must say whose browser it is: the browser goes there, with the flow id that only it was given.
    AtApplication(Url),
    /// The person must type this code where the link came from.
    TypeBack(Box<TypeBack>),
    /// Done.
    Connected(Box<Connected>),
}

/// A code to type back.
pub struct TypeBack {
    /// The flow, for the form that throws the consent away.
    pub flow: FlowId,
    /// As it is shown, `BCDF-GHJK`. Only this browser ever sees it.
    pub code: Secret,
    /// For whom.
    pub person: Person,
    /// Who asked.
    pub actor: String,
    /// At which provider.
    pub provider_name: String,
}

/// What was connected.
pub struct Connected {
    /// By which link.
    pub flow: FlowId,
    /// For whom.
    pub person: Person,
    /// At which provider.
    pub provider_name: String,
    /// The grant.
    pub grant: Grant,
    /// What was asked for and not allowed, in words.
    pub withheld: Vec<String>,
    /// The account that was asked for, where it is another one.
    pub expected: Option<String>,
    /// Where the application wants the browser to go now.
    pub next_uri: Option<Url>,
}

impl Consent {
    /// Takes the provider's answer. Exactly one of any number of equal answers leads to an exchange (T5).
    ///
    /// # Errors
    /// `vault_unavailable`; nothing was exchanged.
    ///
    /// # Cancellation
    /// Once the exchange has begun it goes on in a task of its own: a browser that goes away loses nothing.
    pub async fn callback(
        &self,
        provider_id: &str,
        query: CallbackQuery,
        visitor: &Visitor,
    ) -> Result<Returned, Failure> {
        // Anybody can send a browser here: what belongs to no flow is for the log alone.
        let stray = |why: &str| {
            tracing::info!(provider = provider_id, why, "an authorization answer was refused");
            Ok(Returned::NotOurs)
        };
        let Some((state, key)) = Ticket::parse(&query.state) else { return stray("its state is none of ours") };
        let Some(flow) = self.inner.flows.find_by_key(&key).await? else { return stray("its flow is not known") };
        // RFC 9700 §4.4: the path tells the providers apart, so that one's code never goes to another's endpoint.
        if flow.need.provider.as_str() != provider_id {
            self.note_refused(&flow, "consent.other_provider").await;
            return Ok(Returned::NotOurs);
        }
        let Some(provider) = self.inner.catalog.now().provider(provider_id).cloned() else {
            return stray("its provider is not in the catalog");
        };
        let Stage::Forwarded(forwarded) = flow.stage.clone() else {
            self.note_refused(&flow, "consent.used_state").await;
            return Ok(Returned::Used);
        };
        if !bool::from(state.hash().ct_eq(&forwarded.state)) {
            self.note_refused(&flow, "consent.used_state").await;
            return Ok(Returned::Used);
        }
        // RFC 6749 §10.12: the browser that brings the answer must be the one that was sent.
        if !bool::from(visitor.cookie.hash().ct_eq(&forwarded.browser)) {
            self.note_mismatch(&flow).await;
            return Ok(Returned::OtherBrowser);
        }
        let confirmer = match self.owner_at(&flow, visitor).await? {
            Owner::Same => None,
            Owner::Unasked(confirmer) => Some(confirmer),
            Owner::Other | Owner::Nobody(_) | Owner::Unknowable => {
                self.note_mismatch(&flow).await;
                return Ok(Returned::OtherBrowser);
            }
        };
        if self.inner.clock.now() >= forwarded.until {
            self.note_refused(&flow, "consent.expired_state").await;
            return Ok(Returned::Expired);
        }
        if let Err(cause) = check_issuer(&provider, query.iss.as_deref()) {
            tracing::warn!(provider = provider_id, cause, "an authorization answer names another issuer");
            let message = "the answer did not come from the provider it should have come from".to_owned();
            return self.reopen(flow, &provider, message, true, "consent.issuer_mismatch").await;
        }
        match query.answer {
            Err(error) if error == "access_denied" => self.decline(flow, &provider).await,
            Err(error) => {
                let message = format!("{} answered: {error}", provider.name);
                self.reopen(flow, &provider, message, true, "consent.refused").await
            }
            Ok(code) => {
                let redeemable =
                    Redeemable { code, verifier: forwarded.verifier, redirect_uri: forwarded.redirect_uri };
                match confirmer {
                    None => self.exchange(flow, provider, redeemable).await,
                    Some(confirmer) => self.keep_unconfirmed(flow, &provider, redeemable, confirmer, visitor).await,
                }
            }
        }
    }

    async fn decline(&self, mut flow: Flow, provider: &Provider) -> Result<Returned, Failure> {
        flow.stage = Stage::Declined;
        match self.inner.flows.save(&mut flow).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(Returned::Used),
            Err(error) => return Err(flow::unavailable(error)),
        }
        self.note(&flow, None, "consent.declined", Some(Code::Denied)).await;
        self.has_ended(&flow.id);
        Ok(Returned::Declined { provider_name: provider.name.clone() })
    }

    async fn reopen(
        &self,
        mut flow: Flow,
        provider: &Provider,
        message: String,
        bad_answer: bool,
        what: &str,
    ) -> Result<Returned, Failure> {
        flow.stage = Stage::Open;
        // What the page says can be tried again, can be.
        flow.expires_at = flow.expires_at.max(later(self.inner.clock.now(), WORTH_REUSING));
        match self.inner.flows.save(&mut flow).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(Returned::Used),
            Err(error) => return Err(flow::unavailable(error)),
        }
        self.note(&flow, None, what, Some(Code::ProviderError)).await;
        Ok(Returned::Failed { flow: flow.id, provider_name: provider.name.clone(), message, bad_answer })
    }

    /// Exchanges a code, of any number of callers once.
    pub(super) async fn exchange(
        &self,
        mut flow: Flow,
        provider: Arc<Provider>,
        redeemable: Redeemable,
    ) -> Result<Returned, Failure> {
        let this = self.clone();
        // From the first write on in a task of its own: a flow must not stay behind as one that is being exchanged.
        let task = self.inner.exchanges.spawn(async move {
            this.note_exchange(&flow).await?;
            flow.stage = Stage::Exchanging { since: this.inner.clock.now() };
            match this.inner.flows.save(&mut flow).await {
                Ok(()) => this.finish(flow, provider, redeemable).await,
                Err(StoreError::Conflict) => Ok(Returned::Used),
                Err(error) => Err(flow::unavailable(error)),
            }
        });
        task.await.map_err(|_| Failure::internal("the exchange of a code ended early"))?
    }

    /// Exchanges the code, learns whose account it is, and keeps the tokens before it says so.
    async fn finish(
        &self,
        mut flow: Flow,
        provider: Arc<Provider>,
        redeemable: Redeemable,
    ) -> Result<Returned, Failure> {
        let asked = scopes_to_ask(&flow, &provider);
        let granted = match self.tokens(&flow, &provider, redeemable).await {
            Ok((account, answer)) => self
                .inner
                .vault
                .deposit(&flow.need.person, &provider, account, answer, &asked)
                .await
                .map_err(|failure| (failure.message.clone(), false, failure.to_string())),
            // The code was used up, is another client's, or belongs to another link: PKCE shows that.
            Err(error) => {
                let bad_answer = matches!(error, OauthError::InvalidGrant(_));
                Err((in_words(&provider, &error), bad_answer, error.to_string()))
            }
        };
        let grant = match granted {
            Ok(grant) => grant,
            Err((message, bad_answer, cause)) => {
                tracing::warn!(provider = %provider.id, cause, "a code could not be exchanged");
                return self.reopen(flow, &provider, message, bad_answer, "consent.exchange_failed").await;
            }
        };

        flow.stage = Stage::Connected { account: grant.account.label.clone() };
        match self.inner.flows.save(&mut flow).await {
            Ok(()) => {}
            // Its person left while the code was exchanged: what came of it is not to stay. Whoever ended everything removed
            // the flow before they looked for connections, so one of the two sees the other's work.
            Err(StoreError::Conflict) if matches!(self.inner.flows.find(&flow.id).await, Ok(None)) => {
                self.end(grant, Some(provider), &flow.actor, Keep::Unconfirmed).await?;
                self.note(&flow, None, "consent.withdrawn", Some(Code::Denied)).await;
                self.has_ended(&flow.id);
                return Ok(Returned::Expired);
            }
            // The grant is durable; only the link's own ending is not on record.
            Err(error) => tracing::warn!(%error, "a finished consent flow could not be marked as finished"),
        }
        self.note(&flow, Some(&grant.account.label), "consent.connected", None).await;
        self.has_ended(&flow.id);
        let withheld = flow.need.scopes.iter().filter(|scope| !grant.scopes.contains(*scope));
        let withheld = withheld.map(|scope| provider.scopes.get(scope).unwrap_or(scope).clone()).collect();
        let expected = flow.need.account.filter(|label| !label.eq_ignore_ascii_case(&grant.account.label));
        Ok(Returned::Connected(Box::new(Connected {
            expected,
            flow: flow.id,
            next_uri: flow.next_uri,
            person: flow.need.person,
            provider_name: provider.name.clone(),
            grant,
            withheld,
        })))
    }

    async fn tokens(
        &self,
        flow: &Flow,
        provider: &Provider,
        redeemable: Redeemable,
    ) -> Result<(Account, TokenAnswer), OauthError> {
        let verifier = redeemable.verifier.map(Secret::new);
        let oauth = &self.inner.oauth;
        let answer = oauth.exchange(provider, &redeemable.code, verifier.as_ref(), &redeemable.redirect_uri).await?;
        match self.account_of(provider, &answer.access_token).await {
            Ok(account) => Ok((account, answer)),
            Err(error) => {
                // Tokens that belong to nobody known are not kept, here or there. But a provider may revoke everything
                // between a person and this client with them: not beside a connection that works.
                let others = self.inner.vault.grants(&flow.need.person).await.unwrap_or_default();
                let alone = !others.iter().any(|grant| grant.provider == provider.id);
                let token = answer.refresh_token.as_ref().unwrap_or(&answer.access_token);
                let revoked = alone && oauth.revoke(provider, token).await == Revocation::Revoked;
                tracing::warn!(flow = ?flow.id, revoked, "the connected account could not be read");
                Err(error)
            }
        }
    }

    /// Asks whose account it is; again, where the provider did not answer.
    async fn account_of(&self, provider: &Provider, token: &Secret) -> Result<Account, OauthError> {
        let mut answer = self.inner.oauth.account(provider, token).await;
        for pause in ACCOUNT_AGAIN {
            let Err(OauthError::Unavailable(_)) = &answer else { break };
            tokio::time::sleep(pause).await;
            answer = self.inner.oauth.account(provider, token).await;
        }
        answer
    }
}

/// RFC 9207 §2.4: compared as strings, without normalisation.
fn check_issuer(provider: &Provider, iss: Option<&str>) -> Result<(), &'static str> {
    match (&provider.oauth.issuer, iss) {
        (Some(expected), Some(iss)) if expected != iss => Err("it is not the provider's"),
        (_, None) if provider.oauth.require_iss => Err("it is missing"),
        _ => Ok(()),
    }
}

fn in_words(provider: &Provider, error: &OauthError) -> String {
    let name = &provider.name;
    match error {
        OauthError::InvalidGrant(_) => format!("{name} no longer accepts this answer"),
        OauthError::InvalidClient(_) => {
            format!("{name} does not accept this obo server; its operator must check the client in obo.toml")
        }
        OauthError::Refused(code) => format!("{name} refused ({code})"),
        OauthError::Busy(_) | OauthError::Unavailable(_) => format!("{name} did not answer as it should"),
    }
}
