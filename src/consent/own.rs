//! What obo's own tools do: say what is connected, ask for a connection, end one. Always for the permit's own person.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::confirm::Typed;
use super::flow::{Flow, FlowId, Stage};
use super::standing::{Standing, Want, which_account};
use super::{Ask, Consent, Held, MAX_PASSES, NoGrant, call_digest, declined, mismatch, usable};
use crate::catalog::{Api, Own, Provider, Tool};
use crate::failure::{Code, Failure};
use crate::id::{Person, ProviderId, ToolName};
use crate::oauth::Revocation;
use crate::policy::{OwnPermit, Recorded};
use crate::store::StoreError;
use crate::vault::Grant;

/// How often the report of a flow's end is written down while others write the same flow.
const MAX_REPORTS: usize = 4;

/// What came of an own tool.
pub struct Done {
    /// What the caller gets.
    pub value: Value,
    /// The account it was about, for the record.
    pub account: Option<String>,
}

impl Consent {
    /// Runs an own tool. `offered` are the tools that its person may see.
    ///
    /// # Errors
    /// See [`NoGrant`]: `Obo.Connect` ends with a link where the person must say yes.
    pub async fn own(
        &self,
        permit: &Recorded<OwnPermit>,
        offered: &[Arc<Tool>],
        ask: &Ask<'_>,
    ) -> Result<Done, NoGrant> {
        let given = Given(permit.arguments().as_map());
        match permit.work() {
            Own::ListConnections => Ok(self.list(permit.person(), offered).await?),
            Own::Connect => self.ask_to_connect(permit, offered, &given, ask).await,
            Own::Disconnect => Ok(self.disconnect_named(permit.person(), &given, ask.actor).await?),
        }
    }

    async fn list(&self, person: &Person, offered: &[Arc<Tool>]) -> Result<Done, Failure> {
        let connections = self.account(person).await?.connections;
        let mut others: BTreeMap<&ProviderId, (&str, Vec<&ToolName>)> = BTreeMap::new();
        for api in offered.iter().filter_map(|tool| tool.api()) {
            let connected = connections.iter().any(|connection| connection.grant.provider == api.provider.id);
            if !connected && api.provider.client.is_some() {
                others.entry(&api.provider.id).or_insert((&api.provider.name, Vec::new())).1.push(&api.name);
            }
        }
        let others: Vec<Value> = others
            .into_iter()
            .map(|(id, (name, tools))| json!({ "provider": id, "provider_name": name, "tools": tools }))
            .collect();
        let connections: Vec<Value> = connections
            .iter()
            .map(|connection| {
                json!({
                    "provider": connection.grant.provider,
                    "provider_name": connection.provider_name,
                    "account": connection.grant.account.label,
                    "state": if connection.usable { "active" } else { "needs_consent" },
                    "abilities": connection.abilities,
                    "connected_at": connection.grant.connected_at.to_string(),
                    "last_used": connection.last_used.map(|used| used.to_string()),
                    "default": connection.default,
                })
            })
            .collect();
        Ok(Done { value: json!({ "connections": connections, "not_connected": others }), account: None })
    }

    /// Ends a connection. Which one is never guessed, and no default stands for it.
    async fn disconnect_named(&self, person: &Person, given: &Given<'_>, actor: &str) -> Result<Done, Failure> {
        let id = given.text("provider").unwrap_or_default();
        let mut grants = self.inner.vault.grants(person).await?;
        grants.retain(|grant| grant.provider.as_str() == id);
        let labels: Vec<String> = grants.iter().map(|grant| grant.account.label.clone()).collect();
        let catalog = self.inner.catalog.now();
        let provider = catalog.provider(id);
        let name = provider.map_or("provider", |provider| provider.name.as_str());
        if let Some(account) = given.text("account") {
            grants.retain(|grant| is_named(grant, account));
            if grants.is_empty() && !labels.is_empty() {
                // Not as for a call: leaving the name out here would end another connection than was meant.
                let text = format!(
                    "the person has connected no {name} account of that name, so nothing was disconnected; connected: {}. \
                     Ask them which one they mean",
                    labels.join(", ")
                );
                return Err(Failure::new(Code::AccountRequired, text));
            }
        }
        // What was asked for is not repeated: it may be anything.
        let gone = || {
            Failure::new(Code::NotFound, "the person has no such connection; Obo.ListConnections shows what there is")
        };
        let grant = match &grants[..] {
            [] => return Err(gone()),
            [grant] => grant,
            [_, _, ..] => return Err(which_account(name, &labels)),
        };
        let receipt = self.disconnect(person, id, &grant.account.key, actor).await?.ok_or_else(gone)?;
        let confirmed = receipt.outcome == Revocation::Revoked;
        let message = if confirmed {
            format!("{name} has confirmed that the tokens of {} are void.", grant.account.label)
        } else {
            format!(
                "obo has forgotten the connection to {}, but {name} has not confirmed it. The user should remove obo in \
                 the account's settings at {name} too.",
                grant.account.label
            )
        };
        let value = json!({
            "status": "disconnected",
            "provider": grant.provider,
            "account": grant.account.label,
            "confirmed_by_provider": confirmed,
            "message": message,
        });
        Ok(Done { value, account: Some(grant.account.label.clone()) })
    }

    /// Asks the person to connect an account, as a call that needs it would.
    async fn ask_to_connect(
        &self,
        permit: &Recorded<OwnPermit>,
        offered: &[Arc<Tool>],
        given: &Given<'_>,
        ask: &Ask<'_>,
    ) -> Result<Done, NoGrant> {
        if let Some(code) = given.text("code") {
            let provider = given.text("provider").unwrap_or_default();
            return Ok(self.finish_by_code(permit.person(), provider, code, ask.actor).await?);
        }
        let want = &wanted(permit, offered, given)?;
        let ask = &Ask { account: given.text("account"), ..*ask };
        // The flow that this call is about: a retry names it, and a call that was held has it.
        let mut own_flow = match ask.request_state {
            Some(state) => Some(self.open_request_state(want, state).await?),
            None => None,
        };
        for _ in 0..MAX_PASSES {
            if let Some(done) = self.report(want, own_flow.as_ref()).await? {
                return Ok(done);
            }
            let need = if want.another {
                want.need(want.missing(&BTreeSet::new()), BTreeSet::new(), None)
            } else {
                match self.connected_enough(want, ask).await? {
                    Standing::Ready(grant) => {
                        return Ok(self.connected("already_connected", want, &grant.account.label).await?);
                    }
                    Standing::Missing(need) => need,
                }
            };
            let of_retry = match &own_flow {
                Some(id) => self.inner.flows.find(id).await?,
                None => None,
            };
            let (flow, held) = self.hold_or_ask(want, ask, need, of_retry.as_ref()).await?;
            if let Held::Granted(grant) = &held
                && self.inner.flows.find(&flow).await?.is_none_or(|flow| !is_over(&flow))
            {
                // Connected by another link than this call's.
                return Ok(self.connected("connected", want, &grant.account.label).await?);
            }
            own_flow = Some(flow);
        }
        Err(Failure::internal("a consent flow kept ending without an account").into())
    }

    /// Finishes a connection by the code that the person read in their browser.
    async fn finish_by_code(&self, person: &Person, provider: &str, code: &str, actor: &str) -> Result<Done, Failure> {
        let connected = self.confirm_code(person, code, &Typed::InClient(provider), actor).await?;
        let grant = &connected.grant;
        let mut value = json!({
            "status": "connected",
            "provider": grant.provider,
            "provider_name": connected.provider_name,
            "account": grant.account.label,
        });
        if !connected.withheld.is_empty() {
            value["not_allowed"] = json!(connected.withheld);
        }
        if let Some(expected) = &connected.expected {
            value["asked_for"] = json!(expected);
        }
        Ok(Done { value, account: Some(grant.account.label.clone()) })
    }

    /// The grant that is enough already. Where several are, that is enough too: nothing is done with any of them.
    async fn connected_enough(&self, want: &Want<'_>, ask: &Ask<'_>) -> Result<Standing, Failure> {
        if ask.account.is_none() {
            let grants = self.inner.vault.grants(want.person).await?;
            let of_provider = || grants.iter().filter(|grant| grant.provider == want.provider.id);
            let enough = |grant: &&Grant| usable(grant, want.provider) && want.missing(&grant.scopes).is_empty();
            if Grant::default_of(of_provider()).is_none()
                && let Some(grant) = of_provider().find(enough)
            {
                return Ok(Standing::Ready(Box::new(grant.clone())));
            }
        }
        self.standing(want, ask).await
    }

    /// Tells how a flow of this call ended, once. A standing connection would be no answer: the person may have been asked
    /// for another one, or for more than they allowed.
    async fn report(&self, want: &Want<'_>, own: Option<&FlowId>) -> Result<Option<Done>, NoGrant> {
        let digest = call_digest(want);
        let flow = match own {
            Some(id) => self.inner.flows.find(id).await?.filter(is_over),
            None => {
                let now = self.inner.clock.now();
                let flows = self.inner.flows.of(want.person).await?;
                let of_call = |flow: &Flow| is_over(flow) && flow.calls.contains(&digest) && now < flow.expires_at;
                flows.into_iter().filter(of_call).max_by_key(|flow| flow.expires_at)
            }
        };
        let Some(flow) = flow else { return Ok(None) };
        self.forget_call(&flow.id, &digest).await;
        let account = match &flow.stage {
            Stage::Declined => return Err(declined().into()),
            Stage::Mismatch => return Err(mismatch().into()),
            Stage::Connected { account } => account,
            _ => return Ok(None),
        };
        let grants = self.inner.vault.grants(want.person).await?;
        let grant = grants.iter().find(|grant| grant.provider == want.provider.id && grant.account.label == *account);
        // Disconnected since: the person is asked anew.
        let Some(grant) = grant else { return Ok(None) };
        let mut done = self.connected("connected", want, account).await?;
        let withheld = flow.need.scopes.iter().filter(|scope| !grant.scopes.contains(*scope));
        let withheld: Vec<&String> = withheld.map(|scope| want.provider.scopes.get(scope).unwrap_or(scope)).collect();
        if !withheld.is_empty() {
            done.value["not_allowed"] = json!(withheld);
        }
        if let Some(expected) = flow.need.account.filter(|expected| !expected.eq_ignore_ascii_case(account)) {
            done.value["asked_for"] = json!(expected);
        }
        Ok(Some(done))
    }

    /// Takes a call out of a flow that it has heard the end of: the same call made later is a new one.
    async fn forget_call(&self, id: &FlowId, digest: &[u8; 32]) {
        for _ in 0..MAX_REPORTS {
            let flow = match self.inner.flows.find(id).await {
                Ok(flow) => flow,
                Err(failure) => return tracing::warn!(cause = failure.cause, "a consent flow could not be read"),
            };
            let Some(mut flow) = flow.filter(|flow| flow.calls.contains(digest)) else { return };
            flow.calls.retain(|call| call != digest);
            match self.inner.flows.save(&mut flow).await {
                Ok(()) => return,
                Err(StoreError::Conflict) => {}
                // The end is told again then: better than not at all.
                Err(error) => return tracing::warn!(%error, "a consent flow could not be written"),
            }
        }
    }

    async fn connected(&self, status: &str, want: &Want<'_>, account: &str) -> Result<Done, Failure> {
        let grants = self.inner.vault.grants(want.person).await?;
        let of_provider = grants.iter().filter(|grant| grant.provider == want.provider.id);
        let all: Vec<&str> = of_provider.map(|grant| grant.account.label.as_str()).collect();
        let value = json!({
            "status": status,
            "provider": want.provider.id,
            "provider_name": want.provider.name,
            "account": account,
            "accounts": all,
        });
        Ok(Done { value, account: Some(account.to_owned()) })
    }
}

/// The connection that `Obo.Connect` asks for.
fn wanted<'a>(permit: &'a OwnPermit, offered: &'a [Arc<Tool>], given: &Given<'_>) -> Result<Want<'a>, Failure> {
    let invalid = |message: String| Failure::new(Code::InvalidArguments, message);
    let id = given.text("provider").unwrap_or_default();
    let tools = || offered.iter().filter_map(|tool| Some((tool, tool.api().filter(|a| a.provider.id.as_str() == id)?)));
    // The schema lists what is offered at all; this person may see less of it.
    let no_provider = || invalid(format!("provider: no tool of {id:?} is offered to this person"));
    let provider: &Provider = &tools().next().ok_or_else(no_provider)?.1.provider;
    let another = given.flag("another_account");
    if another && given.text("account").is_some() {
        return Err(invalid("give `account` or `another_account`, not both".to_owned()));
    }
    let (title, tools): (Option<&str>, Vec<&Api>) = match given.text("tool") {
        None => (None, tools().map(|(_, api)| &**api).collect()),
        Some(name) => {
            let found = tools().find(|(tool, _)| tool.name.as_str() == name || tool.name.underscored() == name);
            let (tool, api) = found.ok_or_else(|| {
                let names: Vec<&str> = tools().map(|(tool, _)| tool.name.as_str()).collect();
                invalid(format!("tool: no such tool of {}; there are: {}", provider.name, names.join(", ")))
            })?;
            (Some(&tool.title), vec![&**api])
        }
    };
    let (person, tool, arguments) = (permit.person(), &**permit.tool(), permit.arguments());
    Ok(Want { person, tool, arguments, title, provider, tools, another })
}

/// The arguments, which the schema has accepted.
struct Given<'a>(&'a Map<String, Value>);

impl Given<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or_default()
    }
}

/// Whether there is nothing left to be done with it.
fn is_over(flow: &Flow) -> bool {
    matches!(flow.stage, Stage::Connected { .. } | Stage::Declined | Stage::Mismatch)
}

fn is_named(grant: &Grant, name: &str) -> bool {
    grant.account.key == name || grant.account.label.eq_ignore_ascii_case(name)
}
