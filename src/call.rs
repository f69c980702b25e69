//! The life of a tool call: the only place that knows all the stages.
//!
//! Every way in, MCP on either transport, REST or the command line, comes through [`Obo::call`].

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::catalog::Tool;
use crate::consent::Link;
use crate::failure::Failure;
use crate::identity::{Credential, IdentityError, Subject};

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

/// obo: the stages of a call, put together. Cheap to clone.
#[derive(Clone)]
pub struct Obo {}

impl Obo {
    /// Says who is calling.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn authenticate(&self, _credential: &Credential) -> Result<Subject, IdentityError> {
        todo!()
    }

    /// The tools that a person may see, in the order of their names.
    pub fn tools(&self, _subject: &Subject) -> Vec<Arc<Tool>> {
        todo!()
    }

    /// One tool that a person may see, by either spelling.
    pub fn tool(&self, _subject: &Subject, _name: &str) -> Option<Arc<Tool>> {
        todo!()
    }

    /// Makes a call. It is carried to its end, audit included, even when the caller goes away.
    pub async fn call(&self, _subject: &Subject, _request: Request) -> Outcome {
        todo!()
    }
}
