//! A connection that is asked for without a call: by the command line, or by an application.

use std::collections::BTreeSet;
use std::time::Duration;

use url::Url;

use super::flow::{Flow, FlowId, NewFlow, Stage};
use super::{Consent, Link, Need, usable};
use crate::catalog::Provider;
use crate::failure::Failure;
use crate::id::{Person, ProviderId};
use crate::vault::Grant;

/// What is asked for.
pub struct Wish<'a> {
    /// For whom.
    pub person: &'a Person,
    /// At which provider.
    pub provider: &'a Provider,
    /// The scopes.
    pub scopes: BTreeSet<String>,
    /// Who asks.
    pub actor: &'a str,
    /// To be finished in a browser elsewhere, with a code that is typed back.
    pub headless: bool,
    /// Where the browser goes at the end: checked by whoever asks.
    pub next_uri: Option<Url>,
}

impl<'a> Wish<'a> {
    /// A plain one: finished in a browser that shows whose it is, and ends on obo's page.
    pub fn new(person: &'a Person, provider: &'a Provider, scopes: BTreeSet<String>, actor: &'a str) -> Self {
        Self { person, provider, scopes, actor, headless: false, next_uri: None }
    }
}

/// What came of a wish.
pub enum Wished {
    /// Each of these connections has all of it already. Never none.
    Standing(Vec<Grant>),
    /// The person must open this link.
    Link(Box<Link>),
}

/// Where a link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Whose it is.
    pub person: Person,
    /// The provider.
    pub provider: ProviderId,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// Where it stands.
    pub state: State,
}

/// Where a link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The person has not finished.
    Pending,
    /// The account is connected.
    Connected {
        /// Its label.
        account: String,
    },
    /// It will never be connected by this link.
    Over {
        /// Why, for whoever asked.
        why: &'static str,
    },
}

impl Consent {
    /// A link for what is wished, whatever is connected already: to renew it, or to connect another account.
    ///
    /// # Errors
    /// The failure for the person.
    pub async fn connect(&self, wish: Wish<'_>) -> Result<Link, Failure> {
        self.check_provable(wish.person)?;
        let base = self.inner.door.base().await?;
        let Wish { person, provider, scopes, actor, headless, next_uri } = wish;
        let grants = self.inner.vault.grants(person).await?;
        let own: Vec<&Grant> = grants.iter().filter(|g| g.provider == provider.id && usable(g, provider)).collect();
        // A provider that does not add consents up would otherwise narrow the connection that is there.
        let held = if let [grant] = own[..] { grant.scopes.clone() } else { BTreeSet::new() };
        let need = Need { person: person.clone(), provider: provider.id.clone(), scopes, held, account: None };
        let new = NewFlow {
            need,
            tool: None,
            tool_title: None,
            actor: actor.to_owned(),
            local: self.inner.local,
            headless,
            next_uri,
            anew: true,
            call: None,
        };
        let (flow, _) = self.inner.flows.open(new).await?;
        self.link(&base, &flow, provider, String::new(), false)
    }

    /// The connection that has all of what is wished, or a link.
    ///
    /// # Errors
    /// The failure for whoever asked.
    pub async fn fulfil(&self, wish: Wish<'_>) -> Result<Wished, Failure> {
        let grants = self.inner.vault.grants(wish.person).await?;
        let enough = |grant: &Grant| {
            grant.provider == wish.provider.id && usable(grant, wish.provider) && wish.scopes.is_subset(&grant.scopes)
        };
        let standing: Vec<Grant> = grants.into_iter().filter(enough).collect();
        if standing.is_empty() {
            return Ok(Wished::Link(Box::new(self.connect(wish).await?)));
        }
        Ok(Wished::Standing(standing))
    }

    /// Where a link stands; none, where there is no such link.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn progress(&self, id: &FlowId) -> Result<Option<Progress>, Failure> {
        Ok(self.inner.flows.find(id).await?.map(|flow| self.standing_of(flow)))
    }

    fn standing_of(&self, flow: Flow) -> Progress {
        let state = self.state(&flow);
        let scopes = flow.need.scopes.into_iter().collect();
        Progress { person: flow.need.person, provider: flow.need.provider, scopes, state }
    }

    /// The same, once it has ended or `within` has passed. Waiting holds no thread and no connection to the store, and
    /// one look at the store serves all who wait.
    ///
    /// # Errors
    /// `vault_unavailable`.
    pub async fn progress_within(&self, id: &FlowId, within: Duration) -> Result<Option<Progress>, Failure> {
        let deadline = tokio::time::Instant::now() + within;
        let poll = self.inner.polls.wait_for(id);
        loop {
            // Registered before looking, so that an ending between the look and the wait is not missed.
            let changed = poll.changed();
            let Some(flow) = self.inner.flows.find(id).await? else { return Ok(None) };
            let (generation, until) = (flow.generation, flow.pending_until());
            let progress = self.standing_of(flow);
            let (State::Pending, Some(until)) = (&progress.state, until) else { return Ok(Some(progress)) };
            poll.saw(generation, until);
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(deadline) => return self.progress(id).await,
            }
        }
    }

    fn state(&self, flow: &Flow) -> State {
        match &flow.stage {
            Stage::Connected { account } => State::Connected { account: account.clone() },
            Stage::Declined => State::Over { why: "the person declined" },
            Stage::Mismatch => State::Over { why: "the browser that gave the consent is not this person's" },
            _ if flow.is_pending(self.inner.clock.now()) => State::Pending,
            _ => State::Over { why: "the link expired before it was used" },
        }
    }
}
