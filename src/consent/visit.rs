//! A browser at a link: what it is shown, and what its button does.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use url::Url;

use super::confirm::Confirmer;
use super::flow::{self, FLOW_TTL, Flow, FlowId, Forwarded, Stage};
use super::session::BrowserCookie;
use super::{Back, Consent};
use crate::audit::{Event, Kind, Phase};
use crate::catalog::Provider;
use crate::clock::later;
use crate::failure::{Code, Failure};
use crate::id::{Person, Source};
use crate::identity::BrowserProof;
use crate::oauth::{Oauth, OauthError};
use crate::secret::{Secret, random};
use crate::store::StoreError;
use crate::vault::Receipt;

/// Which kind of listener a page is served by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// stdio's or the command line's, on loopback: whoever reaches it is the machine's own user.
    Local,
    /// `obo serve`: every flow asks for sign-in.
    Site,
}

/// A browser, and where it is.
#[derive(Clone)]
pub struct Visitor {
    /// Its cookie.
    pub cookie: BrowserCookie,
    /// What it talks to.
    pub listener: Listener,
    /// The base of that listener's URLs.
    pub base: Url,
}

/// What a browser sees at a link.
pub enum View {
    /// There is no such link.
    Unknown,
    /// The link was used, declined, or has expired.
    Gone,
    /// It must sign in first. Nothing about the flow is shown before but where its person signs in.
    SignIn(SignInWay),
    /// It is signed in as somebody else. Nothing about the flow is shown.
    OtherPerson,
    /// There is no way left by which a browser could show that it is the person's: the configuration has changed.
    NoProof,
    /// It may connect.
    Ask(Box<Asking>),
}

/// How a browser signs in.
pub enum SignInWay {
    /// With the token that the person uses with obo.
    Token,
    /// At the person's identity provider.
    Issuer {
        /// Its name in obo.toml.
        name: Source,
        /// The origin that the button forwards to.
        forward_to: String,
    },
}

/// What the page says before the button is pressed.
pub struct Asking {
    /// For whom.
    pub person: Person,
    /// Who asks.
    pub actor: String,
    /// Which provider.
    pub provider_name: String,
    /// The tool that asked, in words.
    pub tool_title: Option<String>,
    /// What will be allowed: in words, and the scope itself.
    pub abilities: Vec<(String, String)>,
    /// What was allowed before and stays so.
    pub held: usize,
    /// The account to pick at the provider.
    pub account: Option<String>,
    /// How long the link stays good.
    pub expires_in: Duration,
    /// What comes after the consent, where this browser could not be asked whose it is.
    pub then: Option<Then>,
    /// The origins that the button leads to.
    pub forward_to: Vec<String>,
}

/// What comes after the consent in a browser that could not be asked whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// The application asks, at this origin of its own.
    Application(String),
    /// A code is shown, to be typed where the link came from.
    Code,
}

impl Consent {
    /// What a browser sees at a link.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn view(&self, id: &FlowId, visitor: &Visitor) -> Result<View, Failure> {
        match self.enter(id, visitor).await? {
            Entered::Shut(view) => Ok(view),
            Entered::In { flow, provider, confirmer } => {
                Ok(View::Ask(Box::new(self.asking(&flow, &provider, confirmer.as_ref()))))
            }
        }
    }

    /// Presses the button: the answer is where the browser must go. Pressing again replaces the `state`, so an older
    /// answer of the provider is no longer accepted.
    ///
    /// # Errors
    /// The view instead, when the browser may not; or a failure.
    pub async fn press(&self, id: &FlowId, visitor: &Visitor) -> Result<Result<Url, View>, Failure> {
        let (mut flow, provider, confirmer) = match self.enter(id, visitor).await? {
            Entered::Shut(view) => return Ok(Err(view)),
            Entered::In { flow, provider, confirmer } => (*flow, provider, confirmer),
        };
        let state = Ticket::new(&flow);
        let pkce = provider.oauth.pkce.then(Oauth::pkce);
        let redirect_uri = redirect_uri(&visitor.base, &provider)?;
        let challenge = pkce.as_ref().map(|pkce| pkce.challenge.as_str());
        let scopes = scopes_to_ask(&flow, &provider);
        let url = self
            .inner
            .oauth
            .authorize_url(&provider, &redirect_uri, &state.text, &scopes, challenge, flow.need.account.as_deref())
            .map_err(no_client)?;
        flow.stage = Stage::Forwarded(Forwarded {
            state: state.hash(),
            browser: visitor.cookie.hash(),
            verifier: pkce.map(|pkce| pkce.verifier.expose().to_owned()),
            redirect_uri,
            until: later(self.inner.clock.now(), FLOW_TTL),
        });
        match self.inner.flows.save(&mut flow).await {
            Ok(()) => Ok(Ok(url)),
            // Two presses at once: the other one goes on; this browser may press again.
            Err(StoreError::Conflict) => {
                Ok(Err(View::Ask(Box::new(self.asking(&flow, &provider, confirmer.as_ref())))))
            }
            Err(error) => Err(flow::unavailable(error)),
        }
    }

    /// Ends a connection from a page. On a site, only for the person who is signed in there.
    ///
    /// # Errors
    /// `vault_unavailable`: nothing was removed.
    pub async fn disconnect_at(
        &self,
        visitor: &Visitor,
        person: &Person,
        provider: &str,
        account_key: &str,
    ) -> Result<Option<Receipt>, Failure> {
        if !self.is_signed_in_as(person, visitor).await? {
            return Ok(None);
        }
        self.disconnect(person, provider, account_key, "browser").await
    }

    /// Lets a browser into a flow that is open and its own.
    async fn enter(&self, id: &FlowId, visitor: &Visitor) -> Result<Entered, Failure> {
        let Some(flow) = self.inner.flows.find(id).await? else { return Ok(Entered::Shut(View::Unknown)) };
        if !flow.is_open(self.inner.clock.now()) {
            return Ok(Entered::Shut(View::Gone));
        }
        let confirmer = match self.owner_at(&flow, visitor).await? {
            Owner::Same => None,
            Owner::Unasked(confirmer) => Some(confirmer),
            Owner::Nobody(source) => return Ok(Entered::Shut(View::SignIn(self.sign_in_way(&source).await?))),
            Owner::Other => {
                self.note_mismatch(&flow).await;
                return Ok(Entered::Shut(View::OtherPerson));
            }
            Owner::Unknowable => {
                tracing::warn!(flow = ?flow.id, person = %flow.need.person, "no browser can show that it is this person's");
                return Ok(Entered::Shut(View::NoProof));
            }
        };
        let Some(provider) = self.inner.catalog.now().provider(flow.need.provider.as_str()).cloned() else {
            return Ok(Entered::Shut(View::Gone));
        };
        Ok(Entered::In { provider, flow: Box::new(flow), confirmer })
    }

    /// How people of a source sign in.
    ///
    /// # Errors
    /// When their issuer does not answer.
    pub async fn sign_in_way(&self, source: &Source) -> Result<SignInWay, Failure> {
        Ok(match self.sign_in_at(source).await? {
            Some(sign_in) => SignInWay::Issuer {
                name: source.clone(),
                forward_to: sign_in.authorization_url.origin().ascii_serialization(),
            },
            None => SignInWay::Token,
        })
    }

    /// Sends the browser at a link to its person's issuer, where they have one.
    ///
    /// # Errors
    /// `vault_unavailable`, or the issuer does not answer.
    pub async fn login_for(&self, id: &FlowId, visitor: &Visitor, again: bool) -> Result<Option<Url>, Failure> {
        let Some(flow) = self.inner.flows.find(id).await? else { return Ok(None) };
        if !flow.is_open(self.inner.clock.now()) {
            return Ok(None);
        }
        match self.owner_at(&flow, visitor).await? {
            Owner::Nobody(source) => self.begin_login(&source, Back::Connect(id.clone()), visitor, again).await,
            // It is signed in by now, or never had to.
            _ => Ok(None),
        }
    }

    /// Whether the browser belongs to the person who started the flow (T1).
    ///
    /// Invariant INV-6: asked before the browser is forwarded, and again before a code is exchanged. Where obo cannot
    /// ask it, the code is kept unexchanged until somebody who can has confirmed it.
    pub(super) async fn owner_at(&self, flow: &Flow, visitor: &Visitor) -> Result<Owner, Failure> {
        if flow.local && visitor.listener == Listener::Local {
            return Ok(Owner::Same);
        }
        if flow.headless {
            return Ok(Owner::Unasked(Confirmer::Code));
        }
        self.whose(&flow.need.person, visitor).await
    }

    /// Whether a browser on a site is this person's.
    async fn whose(&self, person: &Person, visitor: &Visitor) -> Result<Owner, Failure> {
        let (source, same_user) = match self.inner.identity.browser_proof(person) {
            Some(BrowserProof::Issuer(source)) => (source, person.clone()),
            Some(BrowserProof::Token) => (Source::obo(), person.clone()),
            // contract.md section 3: the same user id proves the browser, and does not make the two one person.
            Some(BrowserProof::TenantIssuer(source)) => {
                (source.clone(), Person { source, tenant: person.tenant.clone(), user: person.user.clone() })
            }
            Some(BrowserProof::Application(url)) => return Ok(Owner::Unasked(Confirmer::Application(url))),
            Some(BrowserProof::Code) => return Ok(Owner::Unasked(Confirmer::Code)),
            None => return Ok(Owner::Unknowable),
        };
        Ok(match self.signed_in(&visitor.cookie).await? {
            Some(signed_in) if signed_in == same_user => Owner::Same,
            Some(_) => Owner::Other,
            None => Owner::Nobody(source),
        })
    }

    /// Whether a browser may do what its person may: on loopback the machine's own user may.
    pub(super) async fn is_signed_in_as(&self, person: &Person, visitor: &Visitor) -> Result<bool, Failure> {
        if visitor.listener == Listener::Local || self.signed_in(&visitor.cookie).await?.as_ref() == Some(person) {
            return Ok(true);
        }
        Ok(matches!(self.whose(person, visitor).await?, Owner::Same))
    }

    pub(super) async fn note_mismatch(&self, flow: &Flow) {
        tracing::warn!(flow = ?flow.id, person = %flow.need.person, "a browser of somebody else opened a connect link");
        self.note(flow, None, "consent.identity_mismatch", Some(Code::Denied)).await;
    }

    /// Records an answer that was not accepted.
    pub(super) async fn note_refused(&self, flow: &Flow, what: &str) {
        tracing::info!(flow = ?flow.id, what, "an authorization answer was refused");
        self.note(flow, None, what, Some(Code::Denied)).await;
    }

    pub(super) async fn note(&self, flow: &Flow, account: Option<&str>, what: &str, failure: Option<Code>) {
        // What has happened has happened; a record that cannot be kept is logged and counted there.
        let _ = self.inner.audit.event(event(flow, Phase::Outcome, account, what, failure)).await;
    }

    /// Records what somebody else than whoever asked for the link did with it.
    pub(super) async fn note_of(&self, flow: &Flow, actor: &str, what: &str, failure: Option<Code>) {
        tracing::info!(flow = ?flow.id, what, "a consent that waits to be confirmed");
        let _ = self.inner.audit.event(Event { actor, ..event(flow, Phase::Outcome, None, what, failure) }).await;
    }

    /// Puts it on record that a code is about to be exchanged.
    pub(super) async fn note_exchange(&self, flow: &Flow) -> Result<(), Failure> {
        self.inner.audit.event(event(flow, Phase::Intent, None, "consent.exchange", None)).await
    }

    fn asking(&self, flow: &Flow, provider: &Provider, confirmer: Option<&Confirmer>) -> Asking {
        let then = confirmer.map(|confirmer| match confirmer {
            Confirmer::Application(url) => Then::Application(url.origin().ascii_serialization()),
            Confirmer::Code => Then::Code,
        });
        // A provider that has been asked before sends the browser on without stopping, all the way to the end.
        let mut forward_to = vec![provider.oauth.authorize_url.origin().ascii_serialization()];
        forward_to.extend(flow.next_uri.iter().map(|uri| uri.origin().ascii_serialization()));
        if let Some(Then::Application(origin)) = &then {
            forward_to.push(origin.clone());
        }
        let words = |scope: &String| provider.scopes.get(scope).cloned().unwrap_or_else(|| scope.clone());
        Asking {
            person: flow.need.person.clone(),
            actor: shown_actor(&flow.actor),
            provider_name: provider.name.clone(),
            tool_title: flow.tool_title.clone(),
            abilities: flow.need.scopes.iter().map(|scope| (words(scope), scope.clone())).collect(),
            held: flow.need.held.len(),
            // Whoever holds the link sees the page then: not the name of somebody's account.
            account: flow.need.account.clone().filter(|_| then.is_none()),
            expires_in: flow.expires_in(self.inner.clock.now()),
            then,
            forward_to,
        }
    }
}

/// Who asks, as people know it.
pub(super) fn shown_actor(actor: &str) -> String {
    actor.strip_prefix("app:").unwrap_or(actor).to_owned()
}

fn event<'a>(
    flow: &'a Flow,
    phase: Phase,
    account: Option<&'a str>,
    what: &'a str,
    failure: Option<Code>,
) -> Event<'a> {
    Event {
        kind: Kind::Consent,
        phase,
        person: Some(&flow.need.person),
        tenant: None,
        actor: &flow.actor,
        provider: Some(&flow.need.provider),
        account,
        what,
        failure,
        duration: None,
    }
}

/// What came of a browser's coming to a link.
enum Entered {
    Shut(View),
    In { flow: Box<Flow>, provider: std::sync::Arc<Provider>, confirmer: Option<Confirmer> },
}

/// Whose browser it is.
pub(super) enum Owner {
    /// The person's.
    Same,
    /// Somebody else's.
    Other,
    /// Nobody's yet: people of this source sign in there.
    Nobody(Source),
    /// obo cannot ask it. What it brings back counts once it is confirmed.
    Unasked(Confirmer),
    /// Nobody can tell.
    Unknowable,
}

/// `{base}/oauth/callback/{provider}`: one a provider, so that an answer of one cannot pass as another's (T3).
///
/// # Errors
/// When `base` is no base.
pub fn redirect_uri(base: &Url, provider: &Provider) -> Result<Url, Failure> {
    let mut url = base.clone();
    url.path_segments_mut().map_err(|()| Failure::internal("public_url cannot have paths"))?.pop_if_empty().extend([
        "oauth",
        "callback",
        provider.id.as_str(),
    ]);
    Ok(url)
}

/// The flow's scopes, those that identify the account, and those held already: a provider that does not add consents up
/// would otherwise narrow the connection. The page names only what is new.
pub(super) fn scopes_to_ask(flow: &Flow, provider: &Provider) -> BTreeSet<String> {
    let base = provider.oauth.base_scopes.iter();
    base.chain(&flow.need.scopes).chain(&flow.need.held).cloned().collect()
}

fn no_client(error: OauthError) -> Failure {
    Failure::new(
        Code::Internal,
        "this provider cannot be connected just now; the operator of this obo server finds the reason in its log",
    )
    .because(error)
}

/// The OAuth `state`, and the flow id that an application is given: the key of the flow's record, which finds it, and 256
/// random bits, which nobody can guess.
pub(super) struct Ticket {
    pub(super) text: Secret,
}

const TICKET_BYTES: usize = 64;

impl Ticket {
    pub(super) fn new(flow: &Flow) -> Self {
        let mut bytes = [0u8; TICKET_BYTES];
        bytes[..32].copy_from_slice(&flow.id.key());
        bytes[32..].copy_from_slice(&random::<32>());
        Self { text: Secret::new(URL_SAFE_NO_PAD.encode(bytes)) }
    }

    /// Reads a state that came back: the key of the flow it names, if it is one of ours at all.
    pub(super) fn parse(text: &str) -> Option<(Self, [u8; 32])> {
        if text.len() != (TICKET_BYTES * 4).div_ceil(3) {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let key = bytes.get(..32)?.try_into().ok()?;
        Some((Self { text: Secret::new(text) }, key))
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest([b"obo state ", self.text.expose().as_bytes()].concat()).into()
    }
}
