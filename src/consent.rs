//! Has the person said yes? Finds the grant a call needs, or asks for it with a link.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::audit::{Audit, Event, Kind, Phase};
use crate::catalog::{Api, Live, Own, Provider, Runs};
use crate::clock::{SharedClock, remaining};
use crate::failure::{Code, Failure};
use crate::id::{Person, ProviderId, ToolName};
use crate::identity::{BrowserProof, Identity};
use crate::keys::Keys;
use crate::oauth::{Oauth, Revocation};
use crate::policy::{ApiPermit, Recorded};
use crate::store::Store;
use crate::vault::{Grant, GrantStatus, Keep, Receipt, Vault};

mod account;
mod callback;
mod confirm;
mod flow;
mod leave;
mod login;
mod own;
mod polls;
mod request_state;
mod session;
mod standing;
mod visit;
mod window;
mod wish;

pub use account::{Account, Connection};
pub use callback::{CallbackQuery, Connected, Returned, TypeBack};
pub use confirm::{Confirmed, Typed};
pub use flow::{FLOW_TTL, FlowId, MAX_MADE_PER_PERSON, MAX_OPEN_PER_PERSON, Need};
pub use leave::{Ended, Left};
pub use login::{Back, LoggedIn};
pub use own::Done;
pub use session::{BrowserCookie, SESSION_TTL, SignedIn};
pub use visit::{Asking, Listener, SignInWay, Then, View, Visitor, redirect_uri};
pub use wish::{Progress, State, Wish, Wished};

use flow::{Flow, Flows, NewFlow, Removed, Stage};
use polls::Polls;
use standing::{Standing, Want};
use window::Window;

/// The longest a call may be held for a consent.
pub const MAX_WAIT: Duration = Duration::from_secs(50);
/// How often a call looks at its grants anew when a flow ended under it.
const MAX_PASSES: usize = 3;
/// How often a held call looks into the store, where another process may have put the grant.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A link that a person must open before a call can go through.
#[derive(Debug, Clone)]
pub struct Link {
    /// The flow behind it.
    pub flow: FlowId,
    /// `{base}/connect/{flow}`: nothing personal in it, and never the provider's own URL.
    pub url: Url,
    /// The provider to connect.
    pub provider: ProviderId,
    /// Its name for people.
    pub provider_name: String,
    /// The tool that was called, where there was one.
    pub tool: Option<ToolName>,
    /// The scopes that will be asked for.
    pub scopes: Vec<String>,
    /// How long the link stays good.
    pub expires_in: Duration,
    /// What a client sends back with its retry; sealed to the person, the tool, the arguments and the time.
    pub request_state: String,
    /// Whether the call was held for this link in vain: the person was given it before.
    pub waited: bool,
    /// Whether the page ends with a code that the person must type back.
    pub code_back: bool,
}

/// Where consent pages are served. A way in implements it; a link is given out only while it says that obo answers.
#[async_trait::async_trait]
pub trait Door: Send + Sync {
    /// The base of links, once it is certain that obo, and nobody else, answers there.
    ///
    /// # Errors
    /// The failure for the caller, naming the port that a stranger holds.
    async fn base(&self) -> Result<Url, Failure>;
}

/// Why there is no grant.
#[derive(Debug, Clone)]
pub enum NoGrant {
    /// The person must open a link.
    Ask(Box<Link>),
    /// The `requestState` does not belong to this person and call, or is too old.
    BadRequestState,
    /// Something else.
    Failed(Failure),
}

impl From<Failure> for NoGrant {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How a held call came free.
enum Held {
    /// The grant is there.
    Granted(Box<Grant>),
    /// The flow ended. The grant may be there, or be for less than the call needs.
    Ended,
    /// The person said no.
    Declined,
    /// The browser belonged to somebody else.
    Mismatch,
}

/// How a call asks.
pub struct Ask<'a> {
    /// Who acts for the person.
    pub actor: &'a str,
    /// The account the call names, by key or label.
    pub account: Option<&'a str>,
    /// The `requestState` of a retry.
    pub request_state: Option<&'a str>,
    /// The person said no in the client: do not wait.
    pub refused: bool,
    /// Scopes that the provider says are missing although the grant has them, and grants that it no longer accepts:
    /// the standing grant is not enough.
    pub not_enough: bool,
}

/// Everything consent needs.
pub struct Parts {
    /// Where flows and sessions are kept.
    pub store: Arc<dyn Store>,
    /// What seals them.
    pub keys: Keys,
    /// Signs browsers in.
    pub identity: Identity,
    /// The grants.
    pub vault: Vault,
    /// Exchanges the codes.
    pub oauth: Oauth,
    /// The providers.
    pub catalog: Live,
    /// Records consents.
    pub audit: Audit,
    /// The time.
    pub clock: SharedClock,
    /// Where the pages are.
    pub door: Arc<dyn Door>,
    /// How long to hold a retry; at most [`MAX_WAIT`].
    pub wait: Duration,
    /// Whether flows made here are for the machine's own user: stdio and the command line.
    pub local: bool,
}

/// Consent. Cheap to clone.
#[derive(Clone)]
pub struct Consent {
    inner: Arc<Inner>,
}

struct Inner {
    flows: Flows,
    store: Arc<dyn Store>,
    keys: Keys,
    identity: Identity,
    vault: Vault,
    oauth: Oauth,
    catalog: Live,
    audit: Audit,
    clock: SharedClock,
    door: Arc<dyn Door>,
    wait: Duration,
    local: bool,
    /// Sign-ins that were begun lately: anybody can begin one.
    logins: Window<()>,
    /// The same for those that a client sent somebody to.
    client_logins: Window<()>,
    /// Wakes held calls of this process when a flow of it ends.
    ended: Notify,
    /// Whoever waits for a link without a call.
    polls: Polls,
    /// Exchanges under way: none may be cut off between the provider's answer and the vault.
    exchanges: TaskTracker,
}

impl Consent {
    /// Puts consent together.
    pub fn new(parts: Parts) -> Self {
        let Parts { store, keys, identity, vault, oauth, catalog, audit, clock, door, wait, local } = parts;
        let flows = Flows::new(Arc::clone(&store), keys.clone(), Arc::clone(&clock));
        let wait = wait.min(MAX_WAIT);
        let ended = Notify::new();
        let polls = Polls::new(Arc::clone(&store), Arc::clone(&clock));
        Self {
            inner: Arc::new(Inner {
                flows,
                store,
                keys,
                identity,
                vault,
                oauth,
                catalog,
                audit,
                clock,
                door,
                wait,
                local,
                logins: Window::new(FLOW_TTL, login::MAX_BEGUN),
                client_logins: Window::new(FLOW_TTL, login::MAX_BEGUN_FOR_CLIENTS),
                ended,
                polls,
                exchanges: TaskTracker::new(),
            }),
        }
    }

    /// Wakes whoever waits for a flow that has ended here.
    fn has_ended(&self, id: &FlowId) {
        self.inner.ended.notify_waiters();
        self.inner.polls.wake(id);
    }

    /// Waits for code exchanges under way, at most `within`. For shutdown.
    pub async fn drain(&self, within: Duration) {
        self.inner.exchanges.close();
        let _ = tokio::time::timeout(within, self.inner.exchanges.wait()).await;
    }

    /// The grant that a call runs on, or the link that its person must open.
    ///
    /// The call that first gives a link out never waits. The same call made again while the link is open, and a retry
    /// with its `requestState`, are held for a while.
    ///
    /// # Errors
    /// See [`NoGrant`].
    pub async fn grant_for(&self, permit: &Recorded<ApiPermit>, ask: &Ask<'_>) -> Result<Grant, NoGrant> {
        let want = Want::of_call(permit);
        let retried = match ask.request_state {
            Some(state) => Some(self.open_request_state(&want, state).await?),
            None => None,
        };
        // A flow can end between a look at the grants and a look at the flow: then look at both once more.
        for _ in 0..MAX_PASSES {
            match self.find_or_ask(&want, ask, retried.as_ref()).await? {
                Some(grant) => return Ok(grant),
                None => continue,
            }
        }
        Err(Failure::internal("a consent flow kept ending without the grant it was for").into())
    }

    async fn find_or_ask(
        &self,
        want: &Want<'_>,
        ask: &Ask<'_>,
        retried: Option<&FlowId>,
    ) -> Result<Option<Grant>, NoGrant> {
        let need = match self.standing(want, ask).await? {
            Standing::Ready(grant) => return Ok(Some(*grant)),
            Standing::Missing(need) => need,
        };
        // A retry hears what became of its own link.
        let of_retry = match retried {
            Some(id) => self.inner.flows.find(id).await?,
            None => None,
        };
        match of_retry.as_ref().map(|flow| &flow.stage) {
            Some(Stage::Declined) => return Err(declined().into()),
            Some(Stage::Mismatch) => return Err(mismatch().into()),
            _ => {}
        }
        match self.hold_or_ask(want, ask, need, of_retry.as_ref()).await?.1 {
            Held::Granted(grant) => Ok(Some(*grant)),
            Held::Ended => Ok(None),
            Held::Declined => Err(declined().into()),
            Held::Mismatch => Err(mismatch().into()),
        }
    }

    /// Gives out a link for a need; where it was given out before, holds the call for it first. Says how its flow ended.
    async fn hold_or_ask(
        &self,
        want: &Want<'_>,
        ask: &Ask<'_>,
        need: Need,
        of_retry: Option<&Flow>,
    ) -> Result<(FlowId, Held), NoGrant> {
        self.check_provable(want.person)?;
        // Before the flow is made: while a stranger holds the port there is no link.
        let base = self.inner.door.base().await?;
        let new = NewFlow {
            need,
            tool: Some(want.tool.name.clone()),
            tool_title: want.title.map(ToOwned::to_owned),
            actor: ask.actor.to_owned(),
            local: self.inner.local,
            headless: false,
            next_uri: None,
            anew: false,
            call: Some(call_digest(want)),
        };
        let (mut flow, given_before) = self.inner.flows.open(new.clone()).await?;

        // A link that was only just made is not waited for: the person does not have it yet.
        let known = given_before || of_retry.is_some_and(|of_retry| of_retry.id == flow.id);
        let hold = known && !ask.refused && !ask.not_enough;
        if hold && let Some(held) = self.hold(want, ask, &flow.id).await? {
            return Ok((flow.id, held));
        }
        // Its person is on the way, but nobody can set out by it any more. An exchange is done in a moment.
        if !flow.is_open(self.inner.clock.now()) && !matches!(flow.stage, Stage::Exchanging { .. }) {
            (flow, _) = self.inner.flows.open(NewFlow { anew: true, ..new }).await?;
        }
        let request_state = self.seal_request_state(want, &flow.id).await?;
        let link = self.link(&base, &flow, want.provider, request_state, hold)?;
        Err(NoGrant::Ask(Box::new(link)))
    }

    /// A person's connections, by provider and account.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn connections(&self, person: &Person) -> Result<Vec<Grant>, Failure> {
        self.inner.vault.grants(person).await
    }

    /// The same, but empty while the vault's keys are not open.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn open_connections(&self, person: &Person) -> Result<Vec<Grant>, Failure> {
        if self.inner.keys.is_open() { self.connections(person).await } else { Ok(Vec::new()) }
    }

    /// Ends a connection: revoked at the provider, then forgotten here. `None` when there is none.
    ///
    /// # Errors
    /// `vault_unavailable`: nothing was removed.
    pub async fn disconnect(
        &self,
        person: &Person,
        provider: &str,
        account_key: &str,
        actor: &str,
    ) -> Result<Option<Receipt>, Failure> {
        let grants = self.inner.vault.grants(person).await?;
        let grant = grants.into_iter().find(|g| g.provider.as_str() == provider && g.account.key == account_key);
        let Some(grant) = grant else { return Ok(None) };
        let provider = self.inner.catalog.now().provider(provider).cloned();
        let (this, actor) = (self.clone(), actor.to_owned());
        // Revoked and recorded, or not begun: whoever asked may go away in the middle.
        let task =
            self.inner.exchanges.spawn(async move { this.end(grant, provider, &actor, Keep::Nothing).await.map(Some) });
        task.await.map_err(|_| Failure::internal("a disconnection ended early"))?
    }

    async fn end(
        &self,
        grant: Grant,
        provider: Option<Arc<Provider>>,
        actor: &str,
        keep: Keep,
    ) -> Result<Receipt, Failure> {
        let began = self.inner.clock.now();
        let event = |phase, what, failure| Event {
            kind: Kind::Disconnect,
            phase,
            person: Some(&grant.person),
            tenant: None,
            actor,
            provider: Some(&grant.provider),
            account: Some(&grant.account.label),
            what,
            failure,
            duration: (phase == Phase::Outcome).then(|| remaining(began, self.inner.clock.now())),
        };
        self.inner.audit.event(event(Phase::Intent, "disconnect", None)).await?;
        // Without a manifest nobody knows how to revoke there, but what is kept here can go.
        let ended = self.inner.vault.disconnect(&grant, provider.as_ref(), keep).await;
        let (what, problem) = match &ended {
            Ok(Receipt { outcome: Revocation::Revoked, .. }) => ("disconnect.revoked", None),
            Ok(Receipt { outcome: Revocation::NotSupported, .. }) => ("disconnect.not_supported", None),
            Ok(Receipt { kept: true, .. }) => ("disconnect.kept", Some(Code::ProviderError)),
            Ok(Receipt { outcome: Revocation::Failed, .. }) => ("disconnect.not_confirmed", Some(Code::ProviderError)),
            Err(failure) => ("disconnect.failed", Some(failure.code)),
        };
        let what = match &ended {
            Ok(receipt) => format!("{what}: {receipt}"),
            Err(_) => what.to_owned(),
        };
        // Logged there.
        let _ = self.inner.audit.event(event(Phase::Outcome, &what, problem)).await;
        ended
    }

    /// Waits until a flow has ended, and yields the label of the account that was connected.
    ///
    /// # Errors
    /// `authorization_required` when it was declined or has expired.
    pub async fn wait_for(&self, id: &FlowId) -> Result<String, Failure> {
        loop {
            let woken = self.inner.ended.notified();
            let now = self.inner.clock.now();
            match self.inner.flows.find(id).await? {
                Some(Flow { stage: Stage::Connected { account }, .. }) => return Ok(account),
                Some(Flow { stage: Stage::Declined, .. }) => return Err(declined()),
                Some(Flow { stage: Stage::Mismatch, .. }) => return Err(mismatch()),
                Some(flow) if now < flow.expires_at || flow.is_pending(now) => {}
                _ => return Err(Failure::new(Code::AuthorizationRequired, "the link expired before it was used")),
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Holds a call until the grant is there or the flow has ended; `None` when the time is up.
    async fn hold(&self, want: &Want<'_>, ask: &Ask<'_>, id: &FlowId) -> Result<Option<Held>, NoGrant> {
        let deadline = tokio::time::Instant::now() + self.inner.wait;
        loop {
            // Registered before looking, so that an ending between the look and the wait is not missed.
            let woken = self.inner.ended.notified();
            if !want.another
                && let Standing::Ready(grant) = self.standing(want, ask).await?
            {
                return Ok(Some(Held::Granted(grant)));
            }
            match self.inner.flows.find(id).await?.map(|flow| flow.stage) {
                Some(Stage::Declined) => return Ok(Some(Held::Declined)),
                Some(Stage::Mismatch) => return Ok(Some(Held::Mismatch)),
                Some(Stage::Connected { .. }) | None => return Ok(Some(Held::Ended)),
                Some(Stage::Open | Stage::Forwarded(_) | Stage::Held(_) | Stage::Exchanging { .. }) => {}
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = tokio::time::sleep_until(deadline) => return Ok(None),
            }
        }
    }

    fn link(
        &self,
        base: &Url,
        flow: &Flow,
        provider: &Provider,
        request_state: String,
        waited: bool,
    ) -> Result<Link, Failure> {
        let mut url = base.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::internal("public_url cannot have paths"))?
            .pop_if_empty()
            .extend(["connect", flow.id.as_str()]);
        Ok(Link {
            flow: flow.id.clone(),
            url,
            provider: provider.id.clone(),
            provider_name: provider.name.clone(),
            tool: flow.tool.clone(),
            scopes: flow.need.scopes.iter().cloned().collect(),
            expires_in: flow.expires_in(self.inner.clock.now()),
            request_state,
            waited,
            code_back: flow.headless
                || !flow.local && self.inner.identity.browser_proof(&flow.need.person) == Some(BrowserProof::Code),
        })
    }

    /// Whether a code that a page shows can be typed back by an MCP client.
    fn takes_codes(&self) -> bool {
        self.inner.catalog.now().tools().any(|tool| matches!(tool.runs, Runs::Own(Own::Connect)))
    }

    /// Whether a browser can show that it belongs to a person. A link for anybody else would be good for whoever holds
    /// it, or for nobody.
    fn check_provable(&self, person: &Person) -> Result<(), Failure> {
        match self.inner.identity.browser_proof(person) {
            _ if self.inner.local => return Ok(()),
            // A code is typed back to the application, or by Obo.Connect: without it nobody could take it.
            Some(BrowserProof::Code) if !is_of_application(person) && !self.takes_codes() => {
                return Err(Failure::new(
                    Code::AuthorizationRequired,
                    format!(
                        "people of {} cannot connect an account here, because nothing could tell that a browser is \
                         theirs; the operator of this obo server sets client_id for that issuer in obo.toml, or adds \
                         \"Obo.Connect\" to tools.enable",
                        person.source
                    ),
                ));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        Err(Failure::new(
            Code::AuthorizationRequired,
            format!(
                "users of {} cannot connect an account here, because nothing could tell that a browser is theirs; the \
                 operator of this obo server sets user_verifier_url or confirm_by_code for the application in obo.toml, \
                 or client_id for the one issuer of its tenant",
                person.source
            ),
        ))
    }
}

fn is_of_application(person: &Person) -> bool {
    person.source.as_str().starts_with("app:")
}

fn declined() -> Failure {
    Failure::new(
        Code::AuthorizationRequired,
        "the person declined to connect this account; ask them before you try again",
    )
}

fn mismatch() -> Failure {
    Failure::new(
        Code::AuthorizationRequired,
        "the browser that gave the consent could not be shown to be this person's, so nothing was connected; ask them to \
         open a new link themselves",
    )
}

/// Names a call: the same person, tool and arguments give the same digest.
fn call_digest(want: &Want<'_>) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut sha = Sha256::new();
    for part in want.person.parts() {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    sha.update(want.tool.name.as_str().as_bytes());
    sha.update(want.arguments.digest());
    sha.finalize().into()
}

/// Whether a grant is enough for a tool, as the provider is configured now.
pub fn is_enough(api: &Api, grant: &Grant) -> bool {
    grant.provider == api.provider.id && usable(grant, &api.provider) && missing_scopes(api, &grant.scopes).is_empty()
}

/// Whether a grant can be used with this provider as it is configured now.
fn usable(grant: &Grant, provider: &Provider) -> bool {
    grant.status == GrantStatus::Active && grant.fingerprint == provider.fingerprint()
}

/// The scopes of the tool's cheapest alternative that `held` lacks; none when one alternative is complete.
fn missing_scopes(tool: &Api, held: &BTreeSet<String>) -> BTreeSet<String> {
    tool.scopes_any_of
        .iter()
        .map(|set| set.iter().filter(|scope| !held.contains(*scope)).cloned().collect::<BTreeSet<_>>())
        .min_by_key(BTreeSet::len)
        .unwrap_or_default()
}
