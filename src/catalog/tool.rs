//! `<tool>.toml`: what a tool is called, what it takes, and which requests it makes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

pub use super::case::{ANY, AnswerManifest, ExpectManifest, ExpectedRequest, OneOrMany, TestManifest};
use super::{Effect, Finding};

/// A tool manifest, as written. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolManifest {
    /// The tool's full name, `Toolkit.Verb`: each part a letter followed by letters and digits, 48 characters in all.
    #[schemars(example = "GoogleCalendar.CreateEvent")]
    pub name: String,
    /// A short name for people, as in "Send an email".
    #[schemars(example = "Send an email")]
    pub title: String,
    /// For the model that chooses among tools: what it does, when not to use it, formats, units, time zones.
    pub description: String,
    /// The provider's scopes that a call needs, the least that works. Write `[]` where it needs none.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// Sets of scopes any one of which is enough, in the place of `scopes`. The first is asked for.
    #[serde(default)]
    pub scopes_any_of: Option<Vec<Vec<String>>>,
    /// What a call does to the world.
    pub effect: Effect,
    /// Whether calling twice with the same arguments does no more than calling once.
    #[serde(default)]
    pub idempotent: bool,
    /// The arguments: a JSON Schema (2020-12) of type object. Defaults at its top level are filled in before
    /// validation. `account` is reserved. Arguments that are not listed are refused unless `additionalProperties` says
    /// otherwise.
    pub input: Map<String, Value>,
    /// The one request of the tool. Several stand in `[[step]]` instead.
    #[serde(default)]
    pub request: Option<RequestManifest>,
    /// The requests of the tool, in their order, in the place of `[request]`.
    #[serde(default)]
    pub step: Vec<StepManifest>,
    /// What the caller gets.
    #[serde(default)]
    pub response: ResponseManifest,
    /// What policies may ask about the arguments.
    #[serde(default)]
    pub facts: BTreeMap<String, FactManifest>,
    /// Cases that `obo tools test` runs, without a network: a call, the provider's answer, and what is expected of both.
    #[serde(default)]
    pub test: Vec<TestManifest>,
}

/// One of several requests.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepManifest {
    /// A name for the answer (letters, digits and `_`), which later programs read as `$name`. With `each`, that is the array of the answers.
    #[serde(default)]
    pub bind: Option<String>,
    /// A jq program that yields an array. The request is made once for each of its elements (25 at most, 5 at a time),
    /// which programs of the request read as `$item` and its URL as `{item}`.
    #[serde(default)]
    pub each: Option<String>,
    /// Whether the request changes nothing although the tool does: a query by POST, before the change. GET requests are
    /// taken to change nothing without it.
    #[serde(default)]
    pub reads: bool,
    /// The request.
    pub request: RequestManifest,
}

/// A request to the provider's API. Its programs are jq over the arguments.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestManifest {
    /// The method.
    pub method: Method,
    /// Begins with `{server}`, the name of a server of provider.toml; then path segments, each of them either fixed or
    /// `{argument}`. The argument must be required or have a default, and be text, an integer or a boolean. It is
    /// percent-encoded. `{argument*}` is one that may have parts, as the path of a file has: each part between its '/' is
    /// a segment of its own. `{name}` may also be one of `path`.
    #[schemars(example = "{calendar}/calendars/{calendar_id}/events")]
    pub url: String,
    /// Segments of the URL that are no arguments, by the name that stands there in braces: jq programs that yield text, an
    /// integer or a boolean. With them an id that an earlier step has found can be part of the URL.
    #[serde(default)]
    pub path: BTreeMap<String, String>,
    /// Query parameters, by name: jq programs. Null leaves the parameter out, an array repeats it.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// Header fields, by name: jq programs that yield text; null leaves the field out. Only a few names are allowed.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The JSON body: a jq program.
    #[schemars(example = "{summary, start: {dateTime: .start}}")]
    #[serde(default)]
    pub body: Option<String>,
    /// A form body (`application/x-www-form-urlencoded`): a jq program that yields an object of texts, numbers and
    /// booleans. Null leaves a field out, an array repeats it.
    #[schemars(example = "{grant_type: \"x\", name}")]
    #[serde(default)]
    pub form: Option<String>,
    /// A plain text body: a jq program that yields text.
    #[schemars(example = ".text")]
    #[serde(default)]
    pub text: Option<String>,
    /// A `multipart/form-data` body: a jq program that yields an array of parts,
    /// `{name, value}` or `{name, filename, mime_type, content_base64}`.
    #[serde(default)]
    pub multipart: Option<String>,
    /// How the answer is read.
    #[serde(default)]
    pub answer: AnswerKind,
}

/// How an answer with a 2xx status is read. Others are read as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AnswerKind {
    /// As JSON; an empty one is null.
    #[default]
    Json,
    /// As text in UTF-8, for what a person wrote: the content of a file.
    Text,
}

/// A request method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "RFC 9110 §9 and RFC 5789 say what they mean")]
pub enum Method {
    #[default]
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// As requests have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// What the caller gets.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseManifest {
    /// A jq program over the answer of the last request: what the caller gets. It may read the answers of earlier ones as `$name`,
    /// and the arguments as `$input`.
    pub value: String,
}

impl Default for ResponseManifest {
    fn default() -> Self {
        Self { value: ".".to_owned() }
    }
}

/// Something that policies may ask about the arguments: exactly one of these, each a jq program that yields what is to
/// be looked at.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FactManifest {
    /// The domains of e-mail addresses, in lower case, as a set. From a text or an array of texts.
    #[serde(default)]
    pub email_domains: Option<String>,
    /// How many elements an array has.
    #[serde(default)]
    pub count: Option<String>,
    /// The hosts of URLs, in lower case, as a set. From a text or an array of texts.
    #[serde(default)]
    pub url_hosts: Option<String>,
    /// The largest of an array of numbers.
    #[serde(default)]
    pub max: Option<String>,
}

/// The longest title, in characters.
const MAX_TITLE_CHARS: usize = 80;
/// The longest description, in characters: it is read by a model with every other tool's.
const MAX_DESCRIPTION_CHARS: usize = 2000;

impl ToolManifest {
    /// Checks what the types do not.
    pub(super) fn check(&self) -> Result<(), Finding> {
        let text = |key: &str, text: &str, longest: usize| {
            let valid = !text.trim().is_empty()
                && text.chars().count() <= longest
                && !text.chars().any(|c| c.is_control() && c != '\n');
            let mend = format!("write 1 to {longest} characters");
            if valid {
                Ok(())
            } else {
                Err(Finding::at(key, format!("the {key} is empty, too long or not plain text"), &mend))
            }
        };
        text("title", &self.title, MAX_TITLE_CHARS)?;
        text("description", &self.description, MAX_DESCRIPTION_CHARS)?;
        let reason = match (&self.scopes, &self.scopes_any_of) {
            (Some(_), Some(_)) => "there are both scopes and scopes_any_of",
            (None, None) => "there are no scopes",
            (None, Some(sets)) if sets.is_empty() => "scopes_any_of has no set of scopes",
            _ => return self.check_scopes(),
        };
        Err(Finding::at("scopes", reason.to_owned(), "write scopes = [\"…\"], or scopes = [] where none is needed"))
    }

    fn check_scopes(&self) -> Result<(), Finding> {
        let all = self.scopes.iter().flatten().chain(self.scopes_any_of.iter().flatten().flatten());
        // RFC 6749 §3.3: a scope is printable ASCII without spaces, '"' and '\'.
        for scope in all {
            if scope.is_empty() || !scope.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
                let reason = format!("{scope:?} is not a scope");
                return Err(Finding::at("scopes", reason, "write each scope as a text of its own"));
            }
        }
        Ok(())
    }
}
