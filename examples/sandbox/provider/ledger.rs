//! The ground truth: what was issued to whom, what is still alive, and which call acted as whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::{Account, PEOPLE, Service};

/// One request and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The method.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The query as it was sent.
    pub query: String,
    /// The e-mail address of the person it acted as; none where no valid token was shown.
    pub user: Option<String>,
    /// The status answered; 0 where the connection was cut before.
    pub status: u16,
    /// False where a planted fault took its place.
    pub performed: bool,
}

/// A token or code that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// The token itself.
    pub text: String,
    /// What it is.
    pub kind: TokenKind,
    /// By which service.
    pub service: Service,
    /// To whom.
    pub user: &'static str,
    /// Out of which consent; an index into [`super::Provider::families`].
    pub family: usize,
}

/// What an issued text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// An authorization code.
    Code,
    /// An access token.
    Access,
    /// A refresh token.
    Refresh,
}

/// All tokens that descend from one consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The service.
    pub service: Service,
    /// The person who agreed.
    pub user: &'static str,
    /// What they agreed to.
    pub scopes: BTreeSet<String>,
    /// Why it is dead; none while it lives.
    pub ended: Option<Ended>,
    /// How often it was refreshed.
    pub refreshes: usize,
    pub(super) account: &'static Account,
}

/// Why a family of tokens died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was revoked, by its person or by the client.
    Revoked,
    /// A refresh token was used again after its grace period.
    RefreshTokenReused,
    /// The code was used twice (RFC 6749 §4.1.2).
    CodeReused,
}

/// A mail in somebody's mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Whose mailbox.
    pub owner: &'static str,
    /// Its id there.
    pub id: String,
    /// The thread it belongs to.
    pub thread: String,
    /// `SENT` or `INBOX`.
    pub label: &'static str,
    /// The message (RFC 5322).
    pub raw: Vec<u8>,
}

/// A message in a Slack channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlackMessage {
    /// The channel's id.
    pub channel: String,
    /// Who wrote it.
    pub user: &'static str,
    /// What it says.
    pub text: String,
    /// Its time stamp, which is its id.
    pub ts: String,
}

/// A person's visit to the authorize page, before they decide.
pub(super) struct Visit {
    pub(super) service: Service,
    pub(super) redirect_uri: String,
    pub(super) state: String,
    pub(super) challenge: Option<String>,
    pub(super) scopes: BTreeSet<String>,
    pub(super) bot_scopes: BTreeSet<String>,
    pub(super) include_granted: bool,
    pub(super) offline: bool,
    pub(super) prompt_consent: bool,
}

pub(super) struct Code {
    pub(super) service: Service,
    pub(super) family: usize,
    pub(super) redirect_uri: String,
    pub(super) challenge: Option<String>,
    pub(super) bot_scopes: BTreeSet<String>,
    pub(super) with_refresh: bool,
    pub(super) expires_at: i64,
    pub(super) used: bool,
}

#[derive(Clone)]
pub(super) struct Access {
    pub(super) account: &'static Account,
    pub(super) service: Service,
    pub(super) family: usize,
    pub(super) scopes: BTreeSet<String>,
    pub(super) expires_at: Option<i64>,
    pub(super) bot: bool,
}

pub(super) struct RefreshToken {
    pub(super) family: usize,
    /// When a newer one took its place.
    pub(super) replaced_at: Option<i64>,
}

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) calls: Vec<Call>,
    pub(super) issued: Vec<IssuedToken>,
    pub(super) verifiers: BTreeSet<String>,
    pub(super) families: Vec<Family>,
    pub(super) token_requests: usize,
    pub(super) mail: Vec<Mail>,
    pub(super) events: Vec<(String, Value)>,
    pub(super) slack_messages: Vec<SlackMessage>,
    pub(super) visits: BTreeMap<String, Visit>,
    pub(super) codes: HashMap<String, Code>,
    pub(super) access: HashMap<String, Access>,
    pub(super) refresh: HashMap<String, RefreshToken>,
}

impl Ledger {
    /// A new family for what `account` agreed to.
    pub(super) fn found(&mut self, service: Service, account: &'static Account, scopes: BTreeSet<String>) -> usize {
        self.families.push(Family { service, user: account.email, scopes, ended: None, refreshes: 0, account });
        self.families.len() - 1
    }

    /// Hands out a token of a family.
    pub(super) fn issue(&mut self, kind: TokenKind, prefix: &str, family: usize) -> String {
        let text = format!("{prefix}{}", obo::secret::random_text::<32>());
        let Family { service, user, .. } = self.families[family];
        self.issued.push(IssuedToken { text: text.clone(), kind, service, user, family });
        text
    }

    /// What a person has agreed to so far, over all their living families.
    pub(super) fn granted(&self, service: Service, user: &str) -> BTreeSet<String> {
        let living = self.families.iter().filter(|f| f.service == service && f.user == user && f.ended.is_none());
        living.flat_map(|family| family.scopes.iter().cloned()).collect()
    }

    /// Whether a living family of this person has a refresh token.
    pub(super) fn has_refresh_token(&self, service: Service, user: &str) -> bool {
        self.refresh.values().any(|token| {
            let family = &self.families[token.family];
            family.service == service && family.user == user && family.ended.is_none()
        })
    }

    pub(super) fn end(&mut self, family: usize, why: Ended) {
        self.families[family].ended.get_or_insert(why);
    }

    /// Ends every family of a person, at one service or at both.
    pub(super) fn end_all(&mut self, user: &str, service: Option<Service>) {
        for family in &mut self.families {
            if family.user == user && service.is_none_or(|service| service == family.service) {
                family.ended.get_or_insert(Ended::Revoked);
            }
        }
    }

    pub(super) fn expire_access(&mut self, user: &str, now: i64) {
        for access in self.access.values_mut().filter(|access| access.account.email == user) {
            access.expires_at = Some(now);
        }
    }

    /// The access that a bearer token gives now.
    pub(super) fn living_access(&self, token: &str, now: i64) -> Result<Access, TokenState> {
        let access = self.access.get(token).ok_or(TokenState::Unknown)?;
        if self.families[access.family].ended.is_some() {
            return Err(TokenState::Revoked);
        }
        if access.expires_at.is_some_and(|end| end <= now) {
            return Err(TokenState::Expired);
        }
        Ok(access.clone())
    }

    /// The family that a token of either kind belongs to, dead or alive.
    pub(super) fn family_of(&self, token: &str) -> Option<usize> {
        let access = self.access.get(token).map(|access| access.family);
        access.or_else(|| self.refresh.get(token).map(|refresh| refresh.family))
    }
}

/// Why a bearer token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenState {
    Unknown,
    Revoked,
    Expired,
}

/// Finds a person by first name or address.
pub(super) fn account(who: &str) -> Option<&'static Account> {
    PEOPLE.iter().find(|account| account.name == who || account.email == who)
}
