//! What an answer means: a value, or what went wrong in words for the caller.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use super::RunError;
use crate::catalog::tool::AnswerKind;
use crate::catalog::{Api, Effect, Fault, MAX_RETRY_AFTER, seconds};
use crate::egress::{Answer, EgressError};
use crate::failure::{Code, Failure};
use crate::secret::echo::Guard;

/// Begins the cause of a failure that kept a token from going out; the audit notes such calls.
pub const LEAK_BLOCKED: &str = "leak.blocked";

/// The longest content type that is quoted, in characters.
const MAX_CONTENT_TYPE_CHARS: usize = 60;

/// What is known of a request when its answer is judged.
#[derive(Clone, Copy)]
pub(super) struct Circumstances {
    /// Whether this request may change something.
    pub writes: bool,
    /// Whether an earlier request of this run changed something.
    pub changed: bool,
}

/// Judges a whole answer.
pub(super) fn judge(
    tool: &Api,
    at: Circumstances,
    guard: &Guard,
    answer: &Answer,
    kind: AnswerKind,
) -> Result<Value, RunError> {
    let status = answer.status;
    if guard.finds_in(&answer.body) || guard.finds_in(&header_text(&answer.headers)) {
        // Nothing of a refusal is passed on, so it may still be one.
        if status == StatusCode::UNAUTHORIZED {
            return Err(RunError::TokenRejected { may_repeat: !at.changed });
        }
        return Err(RunError::Failed(leak(tool).with_status(status.as_u16())));
    }
    // Whatever it says, it is somebody's text, and no word of the provider's.
    if status.is_success() && kind == AnswerKind::Text {
        return match std::str::from_utf8(&answer.body) {
            // Some put a mark before it (RFC 3629 §6).
            Ok(text) => Ok(Value::from(text.trim_start_matches('\u{feff}'))),
            Err(_) => Err(RunError::Failed(not_text(tool, at, answer))),
        };
    }
    let body = if answer.body.trim_ascii().is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&answer.body) };
    let (body, is_json) = match body {
        Ok(body) => (body, true),
        Err(_) => (Value::Null, false),
    };
    let verdict = tool.provider.judge(status, &answer.headers, &body);
    if verdict.is_none() && status.is_success() {
        return if is_json { Ok(body) } else { Err(RunError::Failed(not_json(tool, at, answer))) };
    }
    let (fault, wait, words) = match verdict {
        Some(verdict) => (verdict.fault, verdict.retry_after, verdict.message),
        None => (None, None, None),
    };
    let words = words.filter(|words| !guard.finds_in(words.as_bytes()));
    let wait = wait.or_else(|| retry_after(&answer.headers));
    Err(fault_of(tool, at, status, fault.unwrap_or_else(|| by_status(status)), wait, words.as_deref()))
}

/// Judges a request that has no answer.
pub(super) fn judge_silence(tool: &Api, at: Circumstances, error: &EgressError) -> Failure {
    let provider = &tool.provider.name;
    let failure = match error {
        EgressError::Forbidden(_) => {
            let mut failure = Failure::new(
                Code::ProviderUnreachable,
                format!("obo may not connect to {provider}; nothing was sent; ask the operator of this obo server"),
            );
            failure.can_retry = false;
            failure
        }
        EgressError::Unreachable(_) => Failure::new(
            Code::ProviderUnreachable,
            format!("{provider} could not be reached; nothing was sent; try again later"),
        ),
        EgressError::Timeout(_) if at.writes => outcome_unknown(provider, "did not answer in time"),
        EgressError::Broken(_) if at.writes => outcome_unknown(provider, "broke the connection"),
        EgressError::Timeout(_) => {
            Failure::new(Code::Timeout, format!("{provider} did not answer in time; nothing was changed; try again"))
        }
        EgressError::Broken(_) => {
            let mut failure = Failure::new(
                Code::ProviderError,
                format!("{provider} broke the connection; nothing was changed; try again"),
            );
            failure.can_retry = true;
            failure
        }
        EgressError::TooLarge(_) if at.writes => Failure::new(
            Code::TooLarge,
            format!("the answer of {provider} is too large; the request was made; look before you repeat it"),
        ),
        EgressError::TooLarge(_) => {
            Failure::new(Code::TooLarge, format!("the answer of {provider} is too large; ask for less at once"))
        }
    };
    after_changes(at, failure.because(error))
}

/// The token was in what would have gone back.
pub(super) fn leak(tool: &Api) -> Failure {
    tracing::warn!(tool = %tool.name, provider = %tool.provider.id, event = LEAK_BLOCKED, "an answer held the access token and was withheld");
    let message =
        "the provider's answer contained the access token and was withheld; tell the operator of this obo server";
    Failure::new(Code::ProviderError, message).because("the answer held the access token").noted(LEAK_BLOCKED)
}

/// Says so when an earlier step of the call was done: then repeating it as a whole is not safe.
pub(super) fn after_changes(at: Circumstances, mut failure: Failure) -> Failure {
    if at.changed {
        failure.can_retry = false;
        failure.message.push_str("; an earlier part of this call was done already, so do not simply repeat it");
    }
    failure
}

fn outcome_unknown(provider: &str, what: &str) -> Failure {
    Failure::new(
        Code::OutcomeUnknown,
        format!(
            "{provider} {what} after the request was sent: it may or may not have been done; look before you repeat it"
        ),
    )
}

fn not_json(tool: &Api, at: Circumstances, answer: &Answer) -> Failure {
    let kind =
        answer.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("no content type");
    let kind: String = kind.chars().take(MAX_CONTENT_TYPE_CHARS).collect();
    let what = if kind.contains("json") {
        "JSON that is cut off or broken".to_owned()
    } else {
        format!("something that is not JSON ({kind})")
    };
    let mend = if at.writes {
        "the request may have been done; look before you repeat it"
    } else {
        "try again later, or tell the operator of this obo server"
    };
    let mut failure = Failure::new(Code::ProviderError, format!("{} answered with {what}; {mend}", tool.provider.name))
        .with_status(answer.status.as_u16());
    failure.can_retry = !at.writes;
    after_changes(at, failure)
}

fn not_text(tool: &Api, at: Circumstances, answer: &Answer) -> Failure {
    let message = format!("{} answered with something that is not text in UTF-8", tool.provider.name);
    let failure = Failure::new(Code::ProviderError, message).with_status(answer.status.as_u16());
    after_changes(at, failure)
}

/// What a status says by itself (RFC 9110 §15).
fn by_status(status: StatusCode) -> Fault {
    match status.as_u16() {
        401 => Fault::TokenDead,
        402 | 403 | 451 => Fault::Permission,
        404 | 410 => Fault::NotFound,
        429 => Fault::RateLimited,
        400 | 405 | 406 | 411 | 414 | 415 | 422 => Fault::InvalidArguments,
        _ => Fault::Failed,
    }
}

fn fault_of(
    tool: &Api,
    at: Circumstances,
    status: StatusCode,
    fault: Fault,
    wait: Option<Duration>,
    words: Option<&str>,
) -> RunError {
    let provider = &tool.provider.name;
    // In quotes: it is somebody else's text, and the reader may be a model.
    let quoted = words.map(|words| format!(" ({provider} says: {words:?})")).unwrap_or_default();
    let failure = |code: Code, message: String| Failure::new(code, message).with_status(status.as_u16());
    let failed = |failure: Failure| RunError::Failed(after_changes(at, failure));
    match fault {
        Fault::TokenDead => RunError::TokenRejected { may_repeat: !at.changed },
        // After a change it is a failure like any other: asking for the scope and calling again would repeat the change.
        Fault::ScopeMissing if at.changed => failed(failure(
            Code::ScopeMissing,
            format!("the connection to {provider} does not allow all of {}{quoted}", tool.name),
        )),
        Fault::ScopeMissing => RunError::ScopeMissing(after_changes(
            at,
            failure(
                Code::ScopeMissing,
                format!(
                    "the connection to {provider} does not allow {}; connect again and allow it{quoted}",
                    tool.name
                ),
            ),
        )),
        Fault::RateLimited => {
            let when = match wait {
                Some(wait) => format!("try again in {} s", wait.as_secs().max(1)),
                None => "try again in a minute".to_owned(),
            };
            failed(failure(Code::RateLimited, format!("{provider} asks to wait; {when}{quoted}")).after(wait))
        }
        Fault::Permission => failed(failure(
            Code::Permission,
            format!("{provider} does not let this account do that; connecting again does not help{quoted}"),
        )),
        Fault::NotFound => failed(failure(
            Code::NotFound,
            format!("{provider} does not know it, or this account cannot see it; check the ids{quoted}"),
        )),
        Fault::InvalidArguments => failed(failure(
            Code::InvalidArguments,
            format!("{provider} did not accept the arguments; correct them{quoted}"),
        )),
        Fault::Failed => failed(other(tool, at, status, wait, &quoted)),
    }
}

fn other(tool: &Api, at: Circumstances, status: StatusCode, wait: Option<Duration>, quoted: &str) -> Failure {
    let provider = &tool.provider.name;
    let number = status.as_u16();
    let (code, can_retry, message) = match number {
        300..=399 => (
            Code::ProviderError,
            false,
            format!("{provider} sent obo elsewhere, where it does not go; tell the operator of this obo server"),
        ),
        413 => (Code::TooLarge, false, format!("{provider} says that the request is too large; send less")),
        408 | 425 => (Code::ProviderError, true, format!("{provider} did not take the request; try again")),
        409 | 412 => (
            Code::ProviderError,
            false,
            format!("{provider} says that this conflicts with what is there; look at it again"),
        ),
        // 502 and 504 come from in front of the provider, when what is behind did not answer.
        500..=599 if at.writes => (
            Code::ProviderError,
            false,
            format!("{provider} failed; the request may have been done; look before you repeat it"),
        ),
        500..=599 => (Code::ProviderError, true, format!("{provider} failed; try again later")),
        _ => {
            (Code::ProviderError, false, format!("{provider} answered with an error; do not repeat the call unchanged"))
        }
    };
    let mut failure = Failure::new(code, format!("{message}{quoted}")).with_status(number).after(wait);
    failure.can_retry = can_retry && (tool.effect == Effect::Read || !at.writes);
    failure
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date. A date is compared with the answer's own `Date`, so that
/// neither clock need be right.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Some(wait) = seconds(text) {
        return Some(wait);
    }
    let moment = |text: &str| jiff::fmt::rfc2822::parse(text.trim()).ok().map(|zoned| zoned.timestamp());
    let date = moment(headers.get(header::DATE)?.to_str().ok()?)?;
    let wait = moment(text)?.duration_since(date);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO).min(MAX_RETRY_AFTER))
}

fn header_text(headers: &HeaderMap) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in headers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.push(b'\n');
    }
    text
}
