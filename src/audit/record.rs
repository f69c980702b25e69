//! One record: a line of JSON with its own hash at the end.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Ending, Entry, Event, MAX_ACTOR_CHARS, hex};
use crate::failure::Code;
use crate::id::Person;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A tool call.
    Call,
    /// A person's consent, given or not.
    Consent,
    /// A token refresh.
    Refresh,
    /// A connection that ended.
    Disconnect,
    /// An act of the operator, or of the audit itself.
    Admin,
}

/// Before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// About to happen.
    Intent,
    /// Has happened, or was refused.
    Outcome,
}

/// An audit record, as `obo audit show --json` prints it. Never a token, a code, a secret, or an argument's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The chain it belongs to.
    pub writer: String,
    /// Its number in the chain.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// What it is about.
    pub kind: Kind,
    /// Before or after.
    pub phase: Phase,
    /// The call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// The tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who vouches for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who acted for them.
    pub actor: String,
    /// The tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The account at the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// `allow` or `deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// The policies that decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// `ok`, or what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The provider's HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// From beginning to end, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What else the operator should see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// MAC over the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_hmac: Option<String>,
    /// The hash of the record before; zeros for the first.
    pub prev: String,
    /// SHA-256(0x00 | prev | this record without its hash). Empty until it is chained.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// What stands before the hash at the end of a line.
const HASH_KEY: &str = ",\"hash\":\"";

impl Record {
    /// Whom it concerns, where it names somebody.
    pub(super) fn person(&self) -> Option<Person> {
        Some(Person {
            tenant: self.tenant.as_ref()?.parse().ok()?,
            source: self.source.as_ref()?.parse().ok()?,
            user: self.user.as_ref()?.parse().ok()?,
        })
    }

    pub(super) fn of_call(entry: &Entry, phase: Phase, ending: Option<&Ending>, now: Timestamp) -> Self {
        let outcome = ending.map(|e| e.failure.map_or("ok", |code| code.as_str()).to_owned());
        Self {
            call_id: Some(entry.call_id.to_string()),
            tenant: Some(entry.person.tenant.to_string()),
            source: Some(entry.person.source.to_string()),
            user: Some(entry.person.user.to_string()),
            tool: Some(entry.tool.to_string()),
            provider: entry.provider.as_ref().map(ToString::to_string),
            account: entry.account.clone(),
            decision: Some(if entry.allowed { "allow" } else { "deny" }.to_owned()),
            policies: entry.policies.clone(),
            outcome,
            status: ending.and_then(|e| e.status),
            duration_ms: ending.map(|_| crate::clock::remaining(entry.began, now).as_millis() as u64),
            note: ending.and_then(|e| e.note.clone()),
            arguments_hmac: entry.arguments_hmac.clone(),
            ..Self::blank(Kind::Call, phase, entry.actor.clone(), now)
        }
    }

    pub(super) fn of_event(event: &Event<'_>, now: Timestamp) -> Self {
        Self {
            tenant: event.person.map(|p| &p.tenant).or(event.tenant).map(ToString::to_string),
            source: event.person.map(|p| p.source.to_string()),
            user: event.person.map(|p| p.user.to_string()),
            provider: event.provider.map(ToString::to_string),
            account: event.account.map(ToOwned::to_owned),
            outcome: (event.phase == Phase::Outcome)
                .then(|| event.failure.map_or("ok", |code| code.as_str()).to_owned()),
            note: Some(event.what.to_owned()),
            duration_ms: event.duration.map(|d| d.as_millis() as u64),
            ..Self::blank(event.kind, event.phase, event.actor.chars().take(MAX_ACTOR_CHARS).collect(), now)
        }
    }

    /// Says in the chain that records are missing from it.
    pub(super) fn gap(lost: u64, now: Timestamp) -> Self {
        Self {
            outcome: Some(Code::AuditUnavailable.as_str().to_owned()),
            note: Some(format!("audit.gap: {lost} records could not be kept before this one")),
            ..Self::blank(Kind::Admin, Phase::Outcome, "obo".to_owned(), now)
        }
    }

    fn blank(kind: Kind, phase: Phase, actor: String, time: Timestamp) -> Self {
        Self {
            writer: String::new(),
            seq: 0,
            time,
            kind,
            phase,
            call_id: None,
            tenant: None,
            source: None,
            user: None,
            actor,
            tool: None,
            provider: None,
            account: None,
            decision: None,
            policies: Vec::new(),
            outcome: None,
            status: None,
            duration_ms: None,
            note: None,
            arguments_hmac: None,
            prev: String::new(),
            hash: String::new(),
        }
    }

    /// Puts the record into a chain: sets its place, and yields its line and its hash.
    pub(super) fn chain(mut self, writer: &str, seq: u64, prev: &[u8; 32]) -> Result<(String, [u8; 32]), String> {
        self.writer = writer.to_owned();
        self.seq = seq;
        self.prev = hex(prev);
        self.hash = String::new();
        let line = serde_json::to_string(&self).map_err(|e| e.to_string())?;
        let hash = hash(prev, &line);
        // The hash is spliced in as the last key, so that the hashed text can be recovered exactly.
        let line = format!("{}{HASH_KEY}{}\"}}", &line[..line.len() - 1], hex(&hash));
        Ok((line, hash))
    }

    /// Reads a line without checking it.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// Computes the hash that a line must have after `prev`, and yields the one it has. `None` for what is no line.
    pub(super) fn rehash(line: &str, prev: &[u8; 32]) -> Option<([u8; 32], String)> {
        let at = line.rfind(HASH_KEY)?;
        let given = line[at + HASH_KEY.len()..].strip_suffix("\"}")?;
        let hashed = format!("{}}}", &line[..at]);
        Some((hash(prev, &hashed), given.to_owned()))
    }
}

fn hash(prev: &[u8; 32], line: &str) -> [u8; 32] {
    let mut sha = Sha256::new();
    sha.update([0u8]);
    sha.update(prev);
    sha.update(line.as_bytes());
    sha.finalize().into()
}
