//! What a provider's answer means: the `[errors]` of provider.toml, compiled.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::Finding;
use super::jq::Program;
use super::provider::ErrorManifest;
use super::request::program;

/// The longest message of a provider that is passed on, in characters.
pub const MAX_MESSAGE_CHARS: usize = 300;
/// The longest wait that is believed.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What went wrong, in the provider's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The access token is not accepted.
    TokenDead,
    /// The connection lacks a scope.
    ScopeMissing,
    /// The provider asks to wait.
    RateLimited,
    /// The person may not do this.
    Permission,
    /// The thing does not exist.
    NotFound,
    /// An argument was refused.
    InvalidArguments,
    /// Something else.
    Failed,
}

/// A failure that the manifest's rules recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What went wrong. None: the rules do not say, and the status decides.
    pub fault: Option<Fault>,
    /// How long to wait, where the manifest knows how to read it.
    pub retry_after: Option<Duration>,
    /// The provider's own words, bounded, on one line.
    pub message: Option<String>,
}

/// Compiled error rules.
#[derive(Debug)]
pub(super) struct ErrorRules {
    failed: Option<Program>,
    faults: Vec<(Fault, Program)>,
    retry_after_s: Option<Program>,
    message: Option<Program>,
}

impl ErrorRules {
    pub(super) fn compile(manifest: &ErrorManifest) -> Result<Self, Finding> {
        let rule = |key: &str, source: &Option<String>| source.as_deref().map(|s| program(key, s, &[])).transpose();
        let mut faults = Vec::new();
        for (fault, key, source) in [
            (Fault::TokenDead, "token_dead", &manifest.token_dead),
            (Fault::ScopeMissing, "scope_missing", &manifest.scope_missing),
            (Fault::RateLimited, "rate_limited", &manifest.rate_limited),
            (Fault::Permission, "permission", &manifest.permission),
            (Fault::NotFound, "not_found", &manifest.not_found),
            (Fault::InvalidArguments, "invalid_arguments", &manifest.invalid_arguments),
        ] {
            if let Some(program) = rule(key, source)? {
                faults.push((fault, program));
            }
        }
        Ok(Self {
            failed: rule("failed", &manifest.failed)?,
            faults,
            retry_after_s: rule("retry_after_s", &manifest.retry_after_s)?,
            message: rule("message", &manifest.message)?,
        })
    }

    /// None: the answer is a success.
    pub(super) fn judge(&self, status: StatusCode, headers: &HeaderMap, body: &Value) -> Option<Verdict> {
        if status.is_success() && self.failed.is_none() {
            return None;
        }
        let answer = json!({"status": status.as_u16(), "headers": header_object(headers), "body": body});
        // A rule that does not fit an answer does not decide on it.
        let holds = |program: &Program| matches!(program.run(&answer, &[]), Ok(Value::Bool(true)));
        if status.is_success() && !self.failed.as_ref().is_some_and(holds) {
            return None;
        }
        let fault = self.faults.iter().find(|(_, program)| holds(program)).map(|(fault, _)| *fault);
        let text = |program: &Program| match program.run(&answer, &[]) {
            Ok(Value::String(text)) => Some(text),
            Ok(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        Some(Verdict {
            fault: fault.or(status.is_success().then_some(Fault::Failed)),
            retry_after: self.retry_after_s.as_ref().and_then(text).and_then(|text| seconds(&text)),
            message: self.message.as_ref().and_then(text).map(|text| one_line(&text)).filter(|text| !text.is_empty()),
        })
    }
}

/// A number of seconds, held to [`MAX_RETRY_AFTER`].
pub fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    // A wait in the past is over.
    let bounded = seconds.clamp(0.0, MAX_RETRY_AFTER.as_secs_f64());
    if seconds.is_finite() { Duration::try_from_secs_f64(bounded).ok() } else { None }
}

/// Text of a provider's, for a caller: bounded, without control characters, so that it cannot look like more than it is.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARS).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn header_object(headers: &HeaderMap) -> Value {
    let mut object = Map::new();
    for name in headers.keys() {
        let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        object.insert(name.as_str().to_owned(), Value::String(values.join(", ")));
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> ErrorRules {
        ErrorRules::compile(&ErrorManifest {
            failed: Some(".body.ok == false".into()),
            token_dead: Some(".body.error == \"dead\"".into()),
            rate_limited: Some(".headers[\"x-left\"] == \"0\"".into()),
            not_found: Some(".body.error | test(\"_not_found$\")".into()),
            retry_after_s: Some(".headers[\"x-reset\"]".into()),
            message: Some(".body.message // .body.error".into()),
            ..ErrorManifest::default()
        })
        .unwrap()
    }

    fn judge(status: u16, headers: &[(&'static str, &'static str)], body: Value) -> Option<Verdict> {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect();
        rules().judge(StatusCode::from_u16(status).unwrap(), &headers, &body)
    }

    #[test]
    fn a_success_is_one_until_the_rules_say_otherwise() {
        assert_eq!(judge(200, &[], json!({"ok": true})), None);
        assert_eq!(judge(200, &[], json!("text")), None);
        assert_eq!(judge(200, &[], json!({"ok": false, "error": "x"})).unwrap().fault, Some(Fault::Failed));
        assert_eq!(judge(200, &[], json!({"ok": false, "error": "dead"})).unwrap().fault, Some(Fault::TokenDead));
        assert_eq!(
            judge(200, &[], json!({"ok": false, "error": "channel_not_found"})).unwrap().fault,
            Some(Fault::NotFound)
        );
    }

    #[test]
    fn what_no_rule_decides_is_left_to_the_status() {
        let verdict = judge(500, &[], json!({"error": 5})).unwrap();
        assert_eq!((verdict.fault, verdict.message), (None, Some("5".to_owned())));
        assert_eq!(
            judge(403, &[("x-left", "0"), ("x-reset", "12")], json!(null)).unwrap().fault,
            Some(Fault::RateLimited)
        );
    }

    #[test]
    fn waits_and_messages_are_bounded() {
        let verdict =
            judge(429, &[("x-reset", "99999999999")], json!({"message": format!("a\r\n{}", "b".repeat(999))})).unwrap();
        assert_eq!(verdict.retry_after, Some(MAX_RETRY_AFTER));
        let message = verdict.message.unwrap();
        assert!(message.starts_with("a b") && message.len() <= MAX_MESSAGE_CHARS, "{message}");
        assert_eq!(seconds("-5"), Some(Duration::ZERO));
        assert_eq!(seconds("1e300"), Some(MAX_RETRY_AFTER));
        assert_eq!(seconds("nan"), None);
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("inf"), None);
    }
}
