//! `[[test]]` of a tool's manifest: what a call with these arguments sends, and what comes of the answer.
//!
//! Cases are read with the manifest and looked at by `obo tools test` only.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::tool::Method;
use crate::failure::Code;

/// Written for a text that differs from run to run.
pub const ANY: &str = "<any>";

/// A case: a call, the provider's answers to it, and what is expected. `obo tools test` makes the call through the very code
/// that makes real ones, but for the network.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestManifest {
    /// What it shows, in a few words: `an unknown channel`.
    #[schemars(example = "an unknown channel")]
    pub name: String,
    /// The arguments of the call. Defaults are filled in, and the schema is checked, as always.
    #[serde(default)]
    pub arguments: Map<String, Value>,
    /// What the provider answers: `[test.answer]`, or `[[test.answer]]` where the tool makes several requests, in the order
    /// in which they are made.
    #[serde(default)]
    pub answer: OneOrMany<AnswerManifest>,
    /// What is expected of obo. What is not written is not compared.
    pub expect: ExpectManifest,
}

/// An answer of the provider.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerManifest {
    /// The HTTP status. Default 200.
    #[serde(default = "ok")]
    #[schemars(range(min = 200, max = 599), example = 404)]
    pub status: u16,
    /// Header fields: `headers.Retry-After = "30"`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The JSON body. Without it, and without `text`, the body is empty.
    #[serde(default)]
    pub body: Option<Value>,
    /// A body that is not JSON, or JSON that TOML cannot write: `text = '{"next": null}'`.
    #[serde(default)]
    pub text: Option<String>,
}

fn ok() -> u16 {
    200
}

/// What is expected.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectManifest {
    /// The request that is sent: `[test.expect.request]`, or `[[test.expect.request]]` for each of several, in their order.
    #[serde(default)]
    pub request: OneOrMany<ExpectedRequest>,
    /// The tool's value. A text `<any>` in it stands for whatever is there; a key that is null counts as one that is absent,
    /// because TOML cannot write it.
    #[serde(default)]
    pub value: Option<Value>,
    /// The code of the failure, in the place of `value`: `not_found`. A token that the provider does not accept is
    /// `authorization_required`.
    #[serde(default)]
    pub error: Option<Code>,
}

/// A request that is expected. What is not written is not compared.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectedRequest {
    /// The method.
    #[serde(default)]
    pub method: Option<Method>,
    /// The URL without its query, with arguments filled in: `{api}/things/42`, where `{api}` is a server of provider.toml.
    #[serde(default)]
    #[schemars(example = "{api}/things/42")]
    pub url: Option<String>,
    /// All query parameters, by name; a list for one that is repeated. `query = {}` says that there are none.
    #[serde(default)]
    pub query: Option<BTreeMap<String, Value>>,
    /// Header fields, by name. Others may be there.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The JSON body. `<any>` and null as in `value`.
    #[serde(default)]
    pub body: Option<Value>,
    /// All fields of a form body, by name; a list for one that is repeated.
    #[serde(default)]
    pub form: Option<BTreeMap<String, Value>>,
    /// A plain text body.
    #[serde(default)]
    pub text: Option<String>,
    /// The parts of a multipart body: `{name, filename, mime_type, bytes}`, where `bytes` is the content's length.
    #[serde(default)]
    pub multipart: Option<Vec<Value>>,
}

/// One table, or a list of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(Box<T>),
    /// Several.
    Many(Vec<T>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    /// All of them.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}
