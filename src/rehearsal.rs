//! The cases that manifests have: a tool is run on the answers that a case writes down, and what it sends and yields is
//! compared with what the case expects. The run is the executor's own, so what passes here is what a call does.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::catalog::tool::{ANY, AnswerManifest, ExpectedRequest, TestManifest};
use crate::catalog::{Api, Tool};
use crate::egress::Answer;
use crate::executor::{Body, Planned, Rehearsed, RunError, rehearse};
use crate::failure::{Code, Failure};

/// What differs between what a case expects and what happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// What is compared: `request 1, url`.
    pub what: String,
    /// What the case says.
    pub expected: Value,
    /// What happened.
    pub actual: Value,
}

/// Runs one case.
///
/// # Errors
/// What is wrong with the case itself.
pub async fn run(tool: &Tool, case: &TestManifest) -> Result<Vec<Difference>, String> {
    let api = tool.api().ok_or_else(|| format!("{} makes no requests", tool.name))?;
    if case.expect.value.is_some() && case.expect.error.is_some() {
        return Err("it expects both a value and an error; keep one of them".to_owned());
    }
    let answers = case.answer.as_slice().iter().map(answer).collect::<Result<Vec<_>, _>>()?;
    let rehearsed = match tool.arguments(case.arguments.clone()) {
        Ok(arguments) => rehearse(api, &arguments, answers).await.map_err(|failure| failure.message)?,
        // As a call would fail, before anything is sent.
        Err(failure) => Rehearsed {
            requests: Vec::new(),
            result: Err(RunError::Failed(failure)),
            answers_left: answers.len(),
            answers_lacking: false,
        },
    };
    Ok(compare(api, case, &rehearsed))
}

fn answer(manifest: &AnswerManifest) -> Result<Answer, String> {
    let body = match (&manifest.body, &manifest.text) {
        (Some(_), Some(_)) => return Err("an answer has both body and text; keep one of them".to_owned()),
        (Some(body), None) => serde_json::to_vec(body).map_err(|e| e.to_string())?,
        (None, Some(text)) => text.clone().into_bytes(),
        (None, None) => Vec::new(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &manifest.headers {
        let header = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok();
        match (header, HeaderValue::from_str(value)) {
            (Some(header), Ok(value)) => headers.insert(header, value),
            _ => return Err(format!("an answer's header {name:?} cannot be sent")),
        };
    }
    let status = StatusCode::from_u16(manifest.status).map_err(|_| format!("{} is no HTTP status", manifest.status))?;
    Ok(Answer { status, headers, body })
}

fn compare(api: &Arc<Api>, case: &TestManifest, rehearsed: &Rehearsed) -> Vec<Difference> {
    let mut found = Differences::default();
    let expected = case.expect.request.as_slice();
    for (index, request) in expected.iter().enumerate() {
        let what = format!("request {}", index + 1);
        match rehearsed.requests.get(index) {
            Some(actual) => compare_request(api, &what, request, actual, &mut found),
            None => found.add(&what, json!("made"), json!("not made")),
        }
    }
    if !expected.is_empty() && rehearsed.requests.len() > expected.len() {
        found.add("requests", json!(expected.len()), json!(rehearsed.requests.len()));
    }
    if rehearsed.answers_lacking {
        let what = format!("an answer to request {}", rehearsed.requests.len());
        found.add(&what, json!("written in the case"), json!("not written"));
        return found.0;
    }
    if rehearsed.answers_left > 0 {
        let asked = case.answer.as_slice().len() - rehearsed.answers_left;
        found.add("answers that are asked for", json!(case.answer.as_slice().len()), json!(asked));
    }
    match (&case.expect.value, case.expect.error, &rehearsed.result) {
        (Some(expected), _, Ok(ran)) => {
            if !alike(expected, &ran.value) {
                found.add("value", expected.clone(), without_nulls(&ran.value));
            }
        }
        (Some(expected), _, Err(error)) => found.add("value", expected.clone(), described(error)),
        (None, Some(code), Err(error)) if code_of(error) == code => {}
        (None, Some(code), Err(error)) => found.add("error", json!(code), described(error)),
        (None, Some(code), Ok(ran)) => found.add("error", json!(code), json!({ "value": ran.value })),
        (None, None, Ok(_)) => {}
        // Whoever looks at the request alone does not mean a failure.
        (None, None, Err(error)) => found.add("value", json!("any"), described(error)),
    }
    found.0
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn add(&mut self, what: &str, expected: Value, actual: Value) {
        self.0.push(Difference { what: what.to_owned(), expected, actual });
    }
}

fn compare_request(api: &Api, what: &str, expected: &ExpectedRequest, actual: &Planned, found: &mut Differences) {
    let mut compare = |part: &str, expected: Value, actual: Value| {
        if !alike(&expected, &actual) {
            found.add(&format!("{what}, {part}"), expected, actual);
        }
    };
    if let Some(method) = expected.method {
        compare("method", json!(method.as_str()), json!(actual.method.as_str()));
    }
    if let Some(url) = &expected.url {
        let mut bare = actual.url.clone();
        bare.set_query(None);
        compare("url", json!(with_server(api, url)), json!(bare.as_str()));
    }
    if let Some(query) = &expected.query {
        let actual = actual.url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned()));
        compare("query", texts(query), gathered(actual));
    }
    for (name, value) in &expected.headers {
        let there = actual.headers.get(&name.to_ascii_lowercase());
        compare(&format!("header {name}"), json!(value), json!(there));
    }
    if let Some(body) = &expected.body {
        compare("body", body.clone(), as_json(&actual.body, "json"));
    }
    if let Some(form) = &expected.form {
        let there = match &actual.body {
            Body::Form(fields) => gathered(fields.iter().cloned()),
            other => as_json(other, "form"),
        };
        compare("form", texts(form), there);
    }
    if let Some(text) = &expected.text {
        compare("text", json!(text), as_json(&actual.body, "text"));
    }
    if let Some(parts) = &expected.multipart {
        compare("multipart", json!(parts), as_json(&actual.body, "multipart"));
    }
}

/// A body of the kind that is asked for; one of another kind with its name, so that the difference shows it.
fn as_json(body: &Body, kind: &str) -> Value {
    let whole = json!(body);
    whole.get(kind).cloned().unwrap_or(whole)
}

/// `{server}/…` with the server's URL, as obo.toml has it.
fn with_server(api: &Api, url: &str) -> String {
    let named = url.strip_prefix('{').and_then(|rest| rest.split_once('}'));
    match named.and_then(|(name, path)| Some((api.provider.servers.get(name)?, path))) {
        Some((server, path)) => format!("{}{path}", server.as_str().trim_end_matches('/')),
        None => url.to_owned(),
    }
}

/// Numbers and booleans as they are written in a query.
fn texts(fields: &BTreeMap<String, Value>) -> Value {
    let text = |value: &Value| match value {
        Value::Number(_) | Value::Bool(_) => Value::String(value.to_string()),
        other => other.clone(),
    };
    let value = |value: &Value| match value {
        Value::Array(items) => items.iter().map(text).collect(),
        value => text(value),
    };
    fields.iter().map(|(name, field)| (name.clone(), value(field))).collect::<Map<_, _>>().into()
}

/// Pairs by name; a list where a name is there several times.
fn gathered(pairs: impl Iterator<Item = (String, String)>) -> Value {
    let mut fields: Map<String, Value> = Map::new();
    for (name, value) in pairs {
        let value = Value::String(value);
        match fields.get_mut(&name) {
            None => {
                fields.insert(name, value);
            }
            Some(Value::Array(items)) => items.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    fields.into()
}

/// Equal, but for what a manifest cannot know (`<any>`) and what TOML cannot write (null).
fn alike(expected: &Value, actual: &Value) -> bool {
    match (expected, actual) {
        (Value::String(text), _) if text == ANY => !actual.is_null(),
        (Value::Object(expected), Value::Object(actual)) => {
            expected.iter().all(|(key, value)| alike(value, actual.get(key).unwrap_or(&Value::Null)))
                && actual.iter().all(|(key, value)| value.is_null() || expected.contains_key(key))
        }
        (Value::Array(expected), Value::Array(actual)) => {
            expected.len() == actual.len() && expected.iter().zip(actual).all(|(a, b)| alike(a, b))
        }
        // 1 and 1.0 are one number.
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (expected, actual) => expected == actual,
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(entries) => entries
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// The code that a call ends with when connecting again does not help.
fn code_of(error: &RunError) -> Code {
    match error {
        RunError::TokenRejected { .. } => Code::AuthorizationRequired,
        RunError::ScopeMissing(failure) | RunError::Failed(failure) => failure.code,
    }
}

fn described(error: &RunError) -> Value {
    let failure = |failure: &Failure| match &failure.cause {
        Some(cause) => json!({ "error": failure.code, "message": failure.message, "cause": cause }),
        None => json!({ "error": failure.code, "message": failure.message }),
    };
    match error {
        RunError::TokenRejected { .. } => json!({ "error": Code::AuthorizationRequired }),
        RunError::ScopeMissing(inner) | RunError::Failed(inner) => failure(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_or_known_is_let_be() {
        for (expected, actual, same) in [
            (json!({"a": 1}), json!({"a": 1, "b": null}), true),
            (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
            (json!({"a": "<any>"}), json!({"a": [1]}), true),
            (json!({"a": "<any>"}), json!({}), false),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), false),
            (json!([1, 2]), json!([1]), false),
            (json!(1), json!(1.0), true),
            (json!("1"), json!(1), false),
        ] {
            assert_eq!(alike(&expected, &actual), same, "{expected} {actual}");
        }
    }
}
