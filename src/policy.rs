//! May they? A [`Permit`] is built here and nowhere else.

use std::sync::Arc;

use crate::catalog::{Api, Arguments, Effect, Own, Runs, Tool};
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::identity::{Lacking, Subject};

/// A person's permission for one call: this tool, these arguments.
///
/// Invariant INV-1: only [`Policy::decide`] builds one, and nothing reaches a provider without one. What the permit is
/// for is part of its type: one for a provider's API is of no use anywhere else, and no other is of use there.
#[derive(Clone)]
pub struct Permit<W = Runs> {
    person: Person,
    tool: Arc<Tool>,
    work: W,
    arguments: Arc<Arguments>,
    policies: Vec<String>,
}

/// A permit for requests to a provider's API.
pub type ApiPermit = Permit<Arc<Api>>;

/// A permit for something that obo does itself.
pub type OwnPermit = Permit<Own>;

impl<W> Permit<W> {
    /// Who may.
    pub fn person(&self) -> &Person {
        &self.person
    }

    /// What they may call.
    pub fn tool(&self) -> &Arc<Tool> {
        &self.tool
    }

    /// What the call runs.
    pub fn work(&self) -> &W {
        &self.work
    }

    /// With what.
    pub fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    /// The policies that allowed it, for the audit.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// The same permit with a narrower type.
    fn narrowed<V>(self, work: V) -> Permit<V> {
        Permit { person: self.person, tool: self.tool, work, arguments: self.arguments, policies: self.policies }
    }
}

/// Something whose audit record is durable.
///
/// Invariant INV-3: the executor takes only a `Recorded<Permit>`, so no request is made that the audit does not know.
#[derive(Clone)]
pub struct Recorded<T>(T);

impl<T> Recorded<T> {
    /// Marks `inner` as recorded. For the audit alone, after its record is durable; `tests/it/layering.rs` holds that.
    pub fn after_durable_record(inner: T) -> Self {
        Self(inner)
    }
}

impl<T> std::ops::Deref for Recorded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A recorded permit, by what it is for.
pub enum Work {
    /// Requests to a provider's API.
    Api(Recorded<ApiPermit>),
    /// Something that obo does itself.
    Own(Recorded<OwnPermit>),
}

impl Recorded<Permit> {
    /// What the permit is for.
    pub fn sorted(self) -> Work {
        match self.0.work.clone() {
            Runs::Api(api) => Work::Api(Recorded(self.0.narrowed(api))),
            Runs::Own(own) => Work::Own(Recorded(self.0.narrowed(own))),
        }
    }
}

/// `[policy]` of obo.toml.
#[derive(Debug, Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Files of Cedar policies. None: every signed-in user may call every enabled tool.
    pub files: Vec<std::path::PathBuf>,
    /// Rules for those who do not want Cedar: who may call what.
    pub allow: Vec<serde_json::Map<String, serde_json::Value>>,
}

impl Config {
    /// Refuses what this version cannot enforce: a policy that is silently not applied would be worse than none.
    ///
    /// # Errors
    /// One line naming the key and the mend.
    pub fn check(&self) -> Result<(), String> {
        if self.files.is_empty() && self.allow.is_empty() {
            Ok(())
        } else {
            let key = if self.files.is_empty() { "allow" } else { "files" };
            Err(format!(
                "policy.{key}: this version does not evaluate policies yet; remove the key, and use tools.enable to limit what is offered"
            ))
        }
    }
}

/// What a person's credential lacks for calls with such an effect. The same for every way in: the HTTP endpoint asks
/// while it can still answer with a status, [`Policy::decide`] asks always.
pub fn lacking(subject: &Subject, effect: Effect) -> Option<&Lacking> {
    match effect {
        Effect::Read => None,
        Effect::Write | Effect::Destructive => subject.lacks_for_changes(),
    }
}

/// The rules in force. Until an operator writes policies: every signed-in person may call every enabled tool.
#[derive(Debug, Clone, Default)]
pub struct Policy;

impl Policy {
    /// Decides on one call. Pure: no I/O, no clock.
    ///
    /// # Errors
    /// A [`Failure`] with code `denied`; its message says what to do, and never which policy exists.
    pub fn decide(&self, subject: &Subject, tool: &Arc<Tool>, arguments: Arguments) -> Result<Permit, Failure> {
        if !self.may_see(subject, tool) {
            return Err(Failure::new(
                Code::Denied,
                format!("you may not call {} here; ask the operator of this obo server for it", tool.name),
            ));
        }
        if let Some(lacking) = lacking(subject, tool.effect) {
            let text = format!("{}, which {} needs; sign in again and allow it", lacking.in_words(), tool.name);
            return Err(Failure::new(Code::Denied, text));
        }
        Ok(Permit {
            person: subject.person().clone(),
            tool: Arc::clone(tool),
            work: tool.runs.clone(),
            arguments: Arc::new(arguments),
            policies: vec!["signed-in".to_owned()],
        })
    }

    /// Whether a tool is shown to a person at all.
    pub fn may_see(&self, _subject: &Subject, _tool: &Tool) -> bool {
        true
    }
}
