//! Requests as they will be made: a step of a tool with its programs run.

use std::collections::BTreeMap;

use base64::Engine as _;
use http::{HeaderValue, Method, header};
use serde::Serialize;
use serde_json::{Map, Value};
use url::Url;

use crate::catalog::jq::{Program, RunError as JqError};
use crate::catalog::request::{BodyKind, MAX_EACH, Step};
use crate::catalog::{Api, Arguments, encoded_length};
use crate::failure::{Code, Failure};
use crate::secret::AccessToken;

/// The largest request body, in bytes: a mail of 25 MB, once more in base64.
pub const MAX_REQUEST_BYTES: usize = 35 * 1024 * 1024;
/// The longest URL, in bytes. Servers refuse longer ones in ways that are hard to read.
const MAX_URL_BYTES: usize = 8 * 1024;
/// The most parts of a multipart body, and fields of a form.
const MAX_PARTS: usize = 200;

const USER_AGENT: &str = concat!("obo/", env!("CARGO_PKG_VERSION"));
const MASKED: &str = "Bearer ••••";

/// A request, ready but for the token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    /// The method.
    #[serde(serialize_with = "method_text")]
    pub method: Method,
    /// Where to, with the query.
    pub url: Url,
    /// The header fields. `Authorization` is shown without the token.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Body,
}

fn method_text<S: serde::Serializer>(method: &Method, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(method.as_str())
}

/// A request's body.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// There is none.
    None,
    /// `application/json`.
    Json(Value),
    /// `application/x-www-form-urlencoded`.
    Form(Vec<(String, String)>),
    /// `text/plain`, UTF-8.
    Text(String),
    /// `multipart/form-data` (RFC 7578).
    Multipart(Vec<Part>),
}

/// A part of a multipart body.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// The field's name.
    pub name: String,
    /// The file's name, where it is a file.
    pub filename: Option<String>,
    /// Its type.
    pub mime_type: Option<String>,
    /// How long it is, in bytes.
    pub bytes: usize,
    /// The content.
    #[serde(skip)]
    pub content: Vec<u8>,
}

/// The requests that a call would begin with: those that need no answer of an earlier one. Nothing is sent.
///
/// # Errors
/// `invalid_arguments` or `too_large`, as the call itself would fail.
pub fn plan(tool: &Api, arguments: &Arguments) -> Result<Vec<Planned>, Failure> {
    // Every tool has a step; a later one may need answers.
    let Some(step) = tool.steps().first() else { return Ok(Vec::new()) };
    let inputs = Inputs { tool, arguments: &Value::Object(arguments.as_map().clone()), answers: &[] };
    match inputs.elements(step)? {
        None => Ok(vec![inputs.request(step, None)?]),
        Some(elements) => elements.iter().map(|element| inputs.request(step, Some(element))).collect(),
    }
}

/// What the programs of a step read.
pub(super) struct Inputs<'a> {
    /// The tool.
    pub tool: &'a Api,
    /// The arguments, an object.
    pub arguments: &'a Value,
    /// The answers that earlier steps gave a name, in their order.
    pub answers: &'a [Value],
}

impl Inputs<'_> {
    /// The elements to run a step over. None: it runs once.
    pub(super) fn elements(&self, step: &Step) -> Result<Option<Vec<Value>>, Failure> {
        let Some(program) = &step.each else { return Ok(None) };
        match self.value("each", program, None)? {
            Value::Array(elements) if elements.len() <= MAX_EACH => Ok(Some(elements)),
            Value::Array(_) => Err(Failure::new(
                Code::TooLarge,
                format!(
                    "this call would need more than {MAX_EACH} requests for one of its steps; ask for less at once"
                ),
            )),
            _ => Err(self.unfit("each yields no array")),
        }
    }

    /// One request of a step.
    pub(super) fn request(&self, step: &Step, element: Option<&Value>) -> Result<Planned, Failure> {
        let request = &step.request;
        let mut computed = BTreeMap::new();
        for (name, program) in &request.path {
            computed.insert(name.as_str(), self.value(name, program, element)?);
        }
        let mut url = request.url.expand(self.arguments, &computed, element)?;
        let mut query = Vec::new();
        for (name, program) in &request.query {
            let value = self.value(name, program, element)?;
            query.extend(fields(name, value).ok_or_else(|| self.unfit(name))?);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(Failure::new(Code::TooLarge, "the arguments make too long a URL; shorten them"));
        }

        let mut headers = BTreeMap::from([
            ("accept".to_owned(), "application/json".to_owned()),
            ("authorization".to_owned(), MASKED.to_owned()),
            ("user-agent".to_owned(), USER_AGENT.to_owned()),
        ]);
        for (name, value) in &self.tool.provider.headers {
            headers.insert(name.as_str().to_owned(), value.to_str().map_err(Failure::internal)?.to_owned());
        }
        for (name, program) in &request.headers {
            let text = match self.value(name.as_str(), program, element)? {
                Value::Null => continue,
                Value::String(text) => text,
                _ => return Err(self.unfit(name.as_str())),
            };
            // A line break would begin another field (RFC 9110 §5.5).
            if !text.is_ascii() || HeaderValue::from_str(&text).is_err() {
                let message = format!("an argument cannot be sent in the header {name}: it must be one line of ASCII");
                return Err(Failure::new(Code::InvalidArguments, message));
            }
            headers.insert(name.as_str().to_owned(), text);
        }

        let body = match &request.body {
            None => Body::None,
            Some((kind, program)) => {
                let value = self.value("body", program, element)?;
                body(*kind, value).ok_or_else(|| self.unfit("body"))?
            }
        };
        if body.length() > MAX_REQUEST_BYTES {
            let limit = MAX_REQUEST_BYTES / (1024 * 1024);
            return Err(Failure::new(
                Code::TooLarge,
                format!("the request would be larger than {limit} MiB; send less"),
            ));
        }
        Ok(Planned { method: request.method.clone(), url, headers, body })
    }

    fn value(&self, key: &str, program: &Program, element: Option<&Value>) -> Result<Value, Failure> {
        let variables: Vec<&Value> = self.answers.iter().chain(element).collect();
        program.run(self.arguments, &variables).map_err(|error| match error {
            JqError::Refused(message) => Failure::new(Code::InvalidArguments, message),
            JqError::TooMuch => {
                Failure::new(Code::TooLarge, "the arguments are too large for this tool; send less").because(key)
            }
            error => self.unfit(&format!("{key}: {error}")),
        })
    }

    /// A program that does not fit what it reads: the arguments' fault, or an answer's.
    fn unfit(&self, cause: &str) -> Failure {
        let name = &self.tool.name;
        if self.answers.is_empty() {
            let message = format!("these arguments do not fit together for {name}; see its description");
            Failure::new(Code::InvalidArguments, message).because(cause)
        } else {
            let message = format!("{} answered in a shape that {name} does not know", self.tool.provider.name);
            Failure::new(Code::ProviderError, message).because(cause)
        }
    }
}

impl Body {
    fn length(&self) -> usize {
        match self {
            Body::None => 0,
            Body::Json(value) => encoded_length(value),
            // Three bytes for one, at worst.
            Body::Form(fields) => fields.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum(),
            Body::Text(text) => text.len(),
            Body::Multipart(parts) => parts.iter().map(|part| part.content.len() + part.name.len() + 256).sum(),
        }
    }
}

/// A parameter as it is written: null leaves it out, an array repeats it. None: it cannot be written.
fn fields(name: &str, value: Value) -> Option<Vec<(String, String)>> {
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    };
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(items) if items.len() <= MAX_PARTS => {
            items.into_iter().map(|item| Some((name.to_owned(), text(item)?))).collect()
        }
        value => Some(vec![(name.to_owned(), text(value)?)]),
    }
}

fn body(kind: BodyKind, value: Value) -> Option<Body> {
    Some(match (kind, value) {
        (BodyKind::Json, value) => Body::Json(value),
        (BodyKind::Text, Value::String(text)) => Body::Text(text),
        (BodyKind::Form, Value::Object(object)) if object.len() <= MAX_PARTS => {
            let mut form = Vec::new();
            for (name, value) in object {
                form.extend(fields(&name, value)?);
            }
            Body::Form(form)
        }
        (BodyKind::Multipart, Value::Array(parts)) if parts.len() <= MAX_PARTS => {
            Body::Multipart(parts.into_iter().map(part).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn part(value: Value) -> Option<Part> {
    let Value::Object(mut object) = value else { return None };
    let text = |key: &str, object: &mut Map<String, Value>| match object.remove(key) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text))
            if !text.chars().any(|c| c.is_control()) || key == "value" || key == "content_base64" =>
        {
            Some(Some(text))
        }
        Some(_) => None,
    };
    let name = text("name", &mut object)??;
    let (value, filename) = (text("value", &mut object)?, text("filename", &mut object)?);
    let (mime_type, content) = (text("mime_type", &mut object)?, text("content_base64", &mut object)?);
    if !object.is_empty() {
        return None;
    }
    let content = match (value, content) {
        (Some(value), None) => value.into_bytes(),
        (None, Some(content)) => base64::engine::general_purpose::STANDARD.decode(content).ok()?,
        _ => return None,
    };
    Some(Part { name, filename, mime_type, bytes: content.len(), content })
}

/// Puts a planned request, with the token, into a client's request.
pub(super) fn dress(
    mut builder: reqwest::RequestBuilder,
    planned: &Planned,
    token: &AccessToken,
) -> Result<reqwest::RequestBuilder, Failure> {
    for (name, value) in &planned.headers {
        if name != header::AUTHORIZATION.as_str() {
            builder = builder.header(name, value);
        }
    }
    // RFC 6750 §2.1. Sensitive: clients and loggers leave it out of what they print.
    let mut authorization = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        .map_err(|_| Failure::internal("the access token cannot be sent in a header"))?;
    authorization.set_sensitive(true);
    builder = builder.header(header::AUTHORIZATION, authorization);
    Ok(match &planned.body {
        Body::None => builder,
        Body::Json(value) => {
            let text = serde_json::to_vec(value).map_err(Failure::internal)?;
            builder.header(header::CONTENT_TYPE, "application/json; charset=utf-8").body(text)
        }
        Body::Form(fields) => builder.form(fields),
        Body::Text(text) => builder.header(header::CONTENT_TYPE, "text/plain; charset=utf-8").body(text.clone()),
        Body::Multipart(parts) => {
            let mut form = reqwest::multipart::Form::new();
            for part in parts {
                let mut content = reqwest::multipart::Part::bytes(part.content.clone());
                if let Some(filename) = &part.filename {
                    content = content.file_name(filename.clone());
                }
                if let Some(mime_type) = &part.mime_type {
                    content = content.mime_str(mime_type).map_err(|_| {
                        Failure::new(Code::InvalidArguments, "a file's type must be like application/pdf")
                    })?;
                }
                form = form.part(part.name.clone(), content);
            }
            builder.multipart(form)
        }
    })
}
