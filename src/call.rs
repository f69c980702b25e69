//! The life of a tool call: the only place that knows all the stages.
//!
//! Every way in, MCP on either transport, REST or the command line, comes through [`Obo::call`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, Ending, Entry, Event, Kind, Phase};
use crate::catalog::{Arguments, Changes, Live, Provider, Tool};
use crate::consent::{Ask, Consent, Link, NoGrant};
use crate::executor::{Executor, Ran, RunError};
use crate::failure::{Code, Failure};
use crate::id::{CallId, ProviderId};
use crate::identity::{Credential, Identity, IdentityError, Subject, TokenReader, Via};
use crate::policy::{ApiPermit, OwnPermit, Policy, Recorded, Work};
use crate::secret::AccessToken;
use crate::vault::{Grant, TokenError, Vault};

mod limits;

use limits::Calls;

/// What is asked for.
#[derive(Clone)]
pub struct Request {
    /// The tool, in either spelling.
    pub tool: String,
    /// The arguments as sent, `account` included where the way in has it there.
    pub arguments: Map<String, Value>,
    /// Who is acting for the person: client name and version, an application, or `cli:USER`. At most 200 characters
    /// are kept; it is shown and recorded, never trusted.
    pub actor: String,
    /// What a client sends with the retry of a call that needed consent.
    pub resume: Option<Resume>,
}

/// The retry of a call that needed consent (MCP 2026-07-28, multi-round-trip requests).
#[derive(Clone)]
pub struct Resume {
    /// The `requestState` as sent. Attacker-controlled until it opens.
    pub state: String,
    /// Whether the person said no in the client, or turned away.
    pub refused: bool,
}

/// What became of a call.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The tool's value.
    Value(Value),
    /// The person must open a link first.
    Authorization(Link),
    /// It failed.
    Failed(Failure),
    /// There is no such tool for this person: unknown, disabled and hidden read the same.
    UnknownTool,
    /// The `requestState` does not belong to this person and call, or is too old.
    BadRequestState,
}

/// The stages, for [`Obo::new`].
pub struct Stages {
    /// Who is this?
    pub identity: Identity,
    /// What is asked for?
    pub catalog: Live,
    /// May they?
    pub policy: Policy,
    /// Intent and outcome.
    pub audit: Audit,
    /// Has the person said yes?
    pub consent: Consent,
    /// The person's token.
    pub vault: Vault,
    /// The provider.
    pub executor: Executor,
    /// Most calls of one person in a minute; 0: any number.
    pub calls_per_minute: u32,
}

/// obo: the stages of a call, put together. Cheap to clone.
#[derive(Clone)]
pub struct Obo {
    stages: Arc<Stages>,
    limits: Arc<Calls>,
    under_way: TaskTracker,
}

/// Why a call ended without a value.
enum Stop {
    UnknownTool,
    BadRequestState,
    Ask(Box<Link>),
    Failed(Failure),
}

/// Who acts for the person: a client that they allowed goes by the name they allowed it under, and what it calls itself in
/// this connection stands after that.
fn actor(subject: &Subject, said: String) -> String {
    match subject.via() {
        Via::Client(allowed) => format!("{allowed}, {said}"),
        Via::OsUser | Via::OboToken | Via::Issuer(_) | Via::Application(_) => said,
    }
}

impl Obo {
    /// Puts the stages together.
    pub fn new(stages: Stages) -> Self {
        let limits = Calls::new(stages.calls_per_minute);
        Self { stages: Arc::new(stages), limits, under_way: TaskTracker::new() }
    }

    /// Makes a call. It is carried to its end, audit included, even when the caller goes away.
    pub async fn call(&self, subject: &Subject, request: Request) -> Outcome {
        let request = Request { actor: actor(subject, request.actor), ..request };
        let call = match self.limits.begin(subject.person()) {
            Ok(call) => call,
            Err(too_many) => {
                tracing::warn!(user = subject.person().user.as_str(), ?too_many, "call.refused");
                return Outcome::Failed(too_many.into());
            }
        };
        let (this, subject) = (self.clone(), subject.clone());
        let task = self.under_way.spawn(async move {
            let _call = call;
            let name = request.tool.clone();
            let result = this.stages(&subject, request).await;
            log(&subject, &name, &result);
            result
        });
        match task.await {
            Ok(Ok(value)) => Outcome::Value(value),
            Ok(Err(Stop::UnknownTool)) => Outcome::UnknownTool,
            Ok(Err(Stop::BadRequestState)) => Outcome::BadRequestState,
            Ok(Err(Stop::Ask(link))) => Outcome::Authorization(*link),
            Ok(Err(Stop::Failed(failure))) => Outcome::Failed(failure),
            Err(_) => Outcome::Failed(Failure::internal("a call ended early")),
        }
    }

    async fn stages(&self, subject: &Subject, mut request: Request) -> Result<Value, Stop> {
        let stages = &self.stages;
        let id = CallId::new();

        let tool = self.tool(subject, &request.tool).ok_or(Stop::UnknownTool)?;
        // An own tool has the argument for itself.
        let account = if tool.api().is_some() { take_account(&mut request.arguments)? } else { None };
        let arguments = match tool.arguments(request.arguments) {
            Ok(arguments) => arguments,
            Err(failure) => return Err(self.refuse(id, subject, &tool, &request.actor, failure).await),
        };
        let permit = match stages.policy.decide(subject, &tool, arguments) {
            Ok(permit) => permit,
            Err(failure) => return Err(self.refuse(id, subject, &tool, &request.actor, failure).await),
        };

        let mut entry = stages.audit.entry(id, &permit, &request.actor);
        if tool.api().is_none() {
            entry.provider = self.provider_named_in(permit.arguments());
        }
        // Durable before any token is opened: what reaches a provider is on record even after a crash.
        let permit = stages.audit.intent(&mut entry, permit).await?;
        let ask = Ask {
            actor: &request.actor,
            account: account.as_deref(),
            request_state: request.resume.as_ref().map(|resume| resume.state.as_str()),
            refused: request.resume.as_ref().is_some_and(|resume| resume.refused),
            not_enough: false,
        };
        let result = match permit.sorted() {
            Work::Api(permit) => {
                self.act(&permit, &ask, &mut entry).await.map(|Ran { value, status }| (value, Some(status)))
            }
            Work::Own(permit) => self.own(subject, &permit, &ask, &mut entry).await.map(|value| (value, None)),
        };
        let ending = match &result {
            Ok((_, status)) => Ending { status: *status, ..Ending::default() },
            Err(Stop::Failed(failure)) => Ending::failed(failure),
            Err(Stop::Ask(_)) => Ending { failure: Some(Code::AuthorizationRequired), ..Ending::default() },
            Err(Stop::BadRequestState | Stop::UnknownTool) => {
                Ending { failure: Some(Code::InvalidArguments), ..Ending::default() }
            }
        };
        stages.audit.outcome(&entry, &ending).await;
        result.map(|(value, _)| value)
    }

    /// What obo does itself.
    async fn own(
        &self,
        subject: &Subject,
        permit: &Recorded<OwnPermit>,
        ask: &Ask<'_>,
        entry: &mut Entry,
    ) -> Result<Value, Stop> {
        let done = self.stages.consent.own(permit, &self.tools(subject), ask).await?;
        entry.account = done.account;
        Ok(done.value)
    }

    /// The provider that a call of an own tool is about, for the record: one that there is, because a record never has an
    /// argument's text.
    fn provider_named_in(&self, arguments: &Arguments) -> Option<ProviderId> {
        let id = arguments.as_map().get("provider")?.as_str()?;
        self.stages.catalog.now().provider(id).map(|provider| provider.id.clone())
    }

    /// Records a call that was refused before it had a permit.
    async fn refuse(&self, id: CallId, subject: &Subject, tool: &Tool, actor: &str, failure: Failure) -> Stop {
        let refused = self.stages.audit.refused(id, subject.person(), tool, actor);
        self.stages.audit.outcome(&refused, &Ending::failed(&failure)).await;
        failure.into()
    }

    /// Records a call that a way in refused, because it could say why better than an answer to the call can.
    pub async fn refused(&self, subject: &Subject, tool: &str, actor: &str) {
        // Counted as a call, so that it cannot fill the audit.
        let Ok(_counted) = self.limits.begin(subject.person()) else { return };
        if let Some(tool) = self.tool(subject, tool) {
            let refused = self.stages.audit.refused(CallId::new(), subject.person(), &tool, actor);
            let ending = Ending { failure: Some(Code::Denied), ..Ending::default() };
            self.stages.audit.outcome(&refused, &ending).await;
        }
    }

    /// Consent, token, provider. A token that the provider refuses is refreshed once; a grant it refuses is asked for.
    async fn act(&self, permit: &Recorded<ApiPermit>, ask: &Ask<'_>, entry: &mut Entry) -> Result<Ran, Stop> {
        let Stages { consent, vault, executor, .. } = &*self.stages;
        let provider = &permit.work().provider;
        let not_enough = Ask { not_enough: true, ..*ask };

        let grant = consent.grant_for(permit, ask).await?;
        entry.account = Some(grant.account.label.clone());
        let Some(token) = token(vault.token_for(&grant, provider).await)? else {
            return Err(self.ask_again(permit, &not_enough).await);
        };
        match executor.run(permit, &token).await {
            Ok(ran) => Ok(ran),
            Err(RunError::TokenRejected { may_repeat }) => {
                let renewed = vault.token_after_rejection(&grant, provider, &token).await;
                let Some(token) = self::token(renewed)? else {
                    return Err(self.ask_again(permit, &not_enough).await);
                };
                if !may_repeat {
                    return Err(half_done(&grant).into());
                }
                match executor.run(permit, &token).await {
                    Ok(ran) => Ok(ran),
                    Err(RunError::TokenRejected { may_repeat: false }) => Err(half_done(&grant).into()),
                    Err(RunError::TokenRejected { may_repeat: true }) => Err(rejected(&grant).into()),
                    Err(RunError::ScopeMissing(_)) => Err(self.ask_again(permit, &not_enough).await),
                    Err(RunError::Failed(failure)) => Err(failure.into()),
                }
            }
            Err(RunError::ScopeMissing(_)) => Err(self.ask_again(permit, &not_enough).await),
            Err(RunError::Failed(failure)) => Err(failure.into()),
        }
    }

    /// The grant that there is will not do: gives out a link for what is missing.
    async fn ask_again(&self, permit: &Recorded<ApiPermit>, ask: &Ask<'_>) -> Stop {
        match self.stages.consent.grant_for(permit, ask).await {
            Err(no_grant) => no_grant.into(),
            // Somebody has connected in the meantime.
            Ok(_) => Stop::Failed(Failure {
                can_retry: true,
                ..Failure::new(Code::ScopeMissing, "the connection has just changed; call again")
            }),
        }
    }

    /// Says who is calling.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        self.stages.identity.authenticate(credential).await
    }

    /// All tools that are offered to anybody, in the order of their names.
    pub fn all_tools(&self) -> Vec<Arc<Tool>> {
        self.stages.catalog.now().tools().cloned().collect()
    }

    /// Changes of what is offered, from now on.
    pub fn changes(&self) -> Changes {
        self.stages.catalog.changes()
    }

    /// The tools that a person may see, in the order of their names.
    pub fn tools(&self, subject: &Subject) -> Vec<Arc<Tool>> {
        let catalog = self.stages.catalog.now();
        catalog.tools().filter(|tool| self.stages.policy.may_see(subject, tool)).cloned().collect()
    }

    /// A person's accounts, for each provider where they have several. Empty while the keys are not open: a list must
    /// not be what opens them.
    pub async fn several_accounts(&self, subject: &Subject) -> BTreeMap<ProviderId, Vec<Grant>> {
        let mut accounts: BTreeMap<ProviderId, Vec<Grant>> = BTreeMap::new();
        // Where they cannot be read the list is shown without; a call then says what is wrong.
        for grant in self.stages.consent.open_connections(subject.person()).await.unwrap_or_default() {
            accounts.entry(grant.provider.clone()).or_default().push(grant);
        }
        accounts.retain(|_, accounts| accounts.len() > 1);
        accounts
    }

    /// One tool that a person may see, by either spelling.
    pub fn tool(&self, subject: &Subject, name: &str) -> Option<Arc<Tool>> {
        let tool = self.stages.catalog.now().find(name).cloned()?;
        self.stages.policy.may_see(subject, &tool).then_some(tool)
    }

    /// The access token of a connection, refreshed if need be, for an application that may read it; on record before it is
    /// opened. `None` where the provider no longer accepts the connection.
    ///
    /// # Errors
    /// `audit_unavailable`, `vault_unavailable`, and what keeps a refresh from succeeding now.
    pub async fn read_token(&self, reader: &TokenReader<'_>, grant: &Grant) -> Result<Option<AccessToken>, Failure> {
        let Stages { audit, vault, catalog, .. } = &*self.stages;
        if !reader.may_read_of(&grant.person) {
            return Err(Failure::internal("an application asked for the token of somebody else's user"));
        }
        // Counted as a call: each reading is two records.
        let _counted = self.limits.begin(&grant.person)?;
        // A status may have been held for a minute: its key must still be one.
        if !self.stages.identity.applications().is_current(reader.application()).await? {
            return Err(Failure::new(Code::Denied, "the application's key is no longer valid; use the new one"));
        }
        // Its manifest is gone: nobody can tell any more what the token is good for.
        let catalog = catalog.now();
        let Some(provider) = catalog.provider(grant.provider.as_str()) else { return Ok(None) };
        let actor = reader.application().source().to_string();
        let event = |phase, failure| Event {
            kind: Kind::Consent,
            phase,
            person: Some(&grant.person),
            tenant: None,
            actor: &actor,
            provider: Some(&grant.provider),
            account: Some(&grant.account.label),
            what: "token.read",
            failure,
            duration: None,
        };
        audit.event(event(Phase::Intent, None)).await?;
        let read = vault.token_for(grant, provider).await;
        let failure = match &read {
            Ok(_) => None,
            Err(TokenError::NeedsConsent) => Some(Code::AuthorizationRequired),
            Err(TokenError::Failed(failure)) => Some(failure.code),
        };
        // Logged there.
        let _ = audit.event(event(Phase::Outcome, failure)).await;
        match read {
            Ok(token) => Ok(Some(token)),
            Err(TokenError::NeedsConsent) => Ok(None),
            Err(TokenError::Failed(failure)) => Err(failure),
        }
    }

    /// The providers that have a client, in the order of their ids.
    pub fn offered_providers(&self) -> Vec<Arc<Provider>> {
        self.stages.catalog.now().providers().filter(|provider| provider.client.is_some()).cloned().collect()
    }

    /// Consent, for the pages.
    pub fn consent(&self) -> &Consent {
        &self.stages.consent
    }

    /// Identity, for the metadata document.
    pub fn identity(&self) -> &Identity {
        &self.stages.identity
    }

    /// Waits for calls, exchanges and refreshes under way, at most `within`. New calls are the caller's to stop.
    pub async fn drain(&self, within: Duration) {
        self.under_way.close();
        let all = async {
            self.under_way.wait().await;
            self.stages.identity.drain(within).await;
            self.stages.consent.drain(within).await;
            self.stages.vault.drain(within).await;
            self.stages.audit.drain(within).await;
        };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("stopped before everything under way had ended");
        }
    }
}

/// The one line that a call has in the log. Its cause, where there is one, is told nowhere else.
fn log(subject: &Subject, tool: &str, result: &Result<Value, Stop>) {
    let tool: String = tool.chars().take(64).collect();
    let user = subject.person().user.as_str();
    match result {
        Ok(_) => tracing::info!(tool, user, outcome = "ok", "call"),
        Err(Stop::Ask(_)) => tracing::info!(tool, user, outcome = "authorization_required", "call"),
        Err(Stop::UnknownTool) => tracing::info!(tool, user, outcome = "unknown_tool", "call"),
        Err(Stop::BadRequestState) => tracing::warn!(tool, user, outcome = "bad_request_state", "call"),
        Err(Stop::Failed(failure)) => {
            let (outcome, cause) = (failure.code.as_str(), failure.cause.as_deref());
            match failure.code {
                Code::Internal | Code::AuditUnavailable | Code::VaultUnavailable => {
                    tracing::error!(tool, user, outcome, cause, "call");
                }
                Code::ProviderError | Code::ProviderUnreachable | Code::Timeout | Code::OutcomeUnknown => {
                    tracing::warn!(tool, user, outcome, cause, "call");
                }
                _ => tracing::info!(tool, user, outcome, cause, "call"),
            }
        }
    }
}

/// Takes the reserved argument `account` out of the arguments.
fn take_account(arguments: &mut Map<String, Value>) -> Result<Option<String>, Stop> {
    match arguments.remove("account") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(account)) => Ok(Some(account)),
        Some(_) => {
            Err(Failure::new(Code::InvalidArguments, "`account` must be text: the label of a connected account").into())
        }
    }
}

/// `None` when the person must be asked.
fn token(result: Result<AccessToken, TokenError>) -> Result<Option<AccessToken>, Stop> {
    match result {
        Ok(token) => Ok(Some(token)),
        Err(TokenError::NeedsConsent) => Ok(None),
        Err(TokenError::Failed(failure)) => Err(failure.into()),
    }
}

fn half_done(grant: &Grant) -> Failure {
    Failure::new(
        Code::OutcomeUnknown,
        format!(
            "{} stopped accepting the connection half way; look at what was done before you call again",
            grant.provider
        ),
    )
}

fn rejected(grant: &Grant) -> Failure {
    let message = format!("{} refuses a token that it has just issued; try again later", grant.provider);
    Failure { can_retry: true, ..Failure::new(Code::ProviderError, message) }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<NoGrant> for Stop {
    fn from(no_grant: NoGrant) -> Self {
        match no_grant {
            NoGrant::Ask(link) => Self::Ask(link),
            NoGrant::BadRequestState => Self::BadRequestState,
            NoGrant::Failed(failure) => Self::Failed(failure),
        }
    }
}
