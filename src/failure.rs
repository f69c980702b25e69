//! What went wrong with a call: one stable code, one text for the caller, one cause for the operator.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The stable code of a failed call. Never renamed, never reused; `docs/errors.md` explains each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The person must connect an account, or allow more, first.
    AuthorizationRequired,
    /// Policy does not allow this call.
    Denied,
    /// An argument is missing or wrong; nothing was sent.
    InvalidArguments,
    /// The person has several accounts of the provider and did not say which.
    AccountRequired,
    /// The thing asked for does not exist, or the person cannot see it.
    NotFound,
    /// The person may not do this at the provider. Connecting again does not help.
    Permission,
    /// The connection lacks a scope that this call needs.
    ScopeMissing,
    /// The provider asks to wait.
    RateLimited,
    /// The provider answered with an error of its own, or with something that is not an answer.
    ProviderError,
    /// The provider could not be reached. Nothing was done.
    ProviderUnreachable,
    /// The provider did not answer in time. Nothing was changed.
    Timeout,
    /// The connection broke after the request was sent: it may or may not have been done.
    OutcomeUnknown,
    /// A request or an answer is larger than obo carries.
    TooLarge,
    /// No audit record could be kept, so the call was not made.
    AuditUnavailable,
    /// The vault could not be opened or written.
    VaultUnavailable,
    /// A defect of obo. The log has the cause.
    Internal,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Code; 16] = [
        Code::AuthorizationRequired,
        Code::Denied,
        Code::InvalidArguments,
        Code::AccountRequired,
        Code::NotFound,
        Code::Permission,
        Code::ScopeMissing,
        Code::RateLimited,
        Code::ProviderError,
        Code::ProviderUnreachable,
        Code::Timeout,
        Code::OutcomeUnknown,
        Code::TooLarge,
        Code::AuditUnavailable,
        Code::VaultUnavailable,
        Code::Internal,
    ];

    /// The code as clients and the audit spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::AuthorizationRequired => "authorization_required",
            Code::Denied => "denied",
            Code::InvalidArguments => "invalid_arguments",
            Code::AccountRequired => "account_required",
            Code::NotFound => "not_found",
            Code::Permission => "permission",
            Code::ScopeMissing => "scope_missing",
            Code::RateLimited => "rate_limited",
            Code::ProviderError => "provider_error",
            Code::ProviderUnreachable => "provider_unreachable",
            Code::Timeout => "timeout",
            Code::OutcomeUnknown => "outcome_unknown",
            Code::TooLarge => "too_large",
            Code::AuditUnavailable => "audit_unavailable",
            Code::VaultUnavailable => "vault_unavailable",
            Code::Internal => "internal",
        }
    }

    /// Whether the same call may succeed later without anything being changed.
    pub fn can_retry(self) -> bool {
        matches!(
            self,
            Code::RateLimited
                | Code::ProviderUnreachable
                | Code::Timeout
                | Code::AuditUnavailable
                | Code::VaultUnavailable
        )
    }
}

/// A failed call.
///
/// `message` is for the caller, who may be a language model: what happened, then what to do next. `cause` is for the
/// operator's log only. Neither ever holds a secret, and `message` never holds a provider's raw answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Failure {
    /// The stable code.
    pub code: Code,
    /// What the caller may read.
    pub message: String,
    /// Whether the same call may succeed later.
    pub can_retry: bool,
    /// How long to wait before that, where the provider said so.
    pub retry_after: Option<Duration>,
    /// The provider's HTTP status, where it answered.
    pub status: Option<u16>,
    /// What the operator needs to know beyond the message.
    pub cause: Option<String>,
    /// Something the audit must say besides the code: `leak.blocked`.
    pub note: Option<&'static str>,
}

impl Failure {
    /// A failure with the code's own answer to whether a retry helps.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            can_retry: code.can_retry(),
            retry_after: None,
            status: None,
            cause: None,
            note: None,
        }
    }

    /// A defect: the caller reads that it is logged, the operator reads `cause`.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::new(Code::Internal, "something went wrong inside obo; its log says what").because(cause)
    }

    /// Adds what the operator needs to know.
    #[must_use]
    pub fn because(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// Adds what the audit must say besides the code.
    #[must_use]
    pub fn noted(mut self, note: &'static str) -> Self {
        self.note = Some(note);
        self
    }

    /// Adds the provider's HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Adds how long to wait.
    #[must_use]
    pub fn after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_spelled_as_they_serialise() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
