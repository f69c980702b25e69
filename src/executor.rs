//! Calls the provider: the only client of provider APIs.

use serde_json::Value;

use crate::failure::Failure;
use crate::policy::{Permit, Recorded};
use crate::secret::AccessToken;

/// Why a run gave no value.
#[derive(Debug, Clone)]
pub enum RunError {
    /// The provider does not accept the access token. `may_repeat` says that nothing was changed by then, so the call
    /// may be made again with a new token.
    TokenRejected {
        /// Whether the call may be repeated.
        may_repeat: bool,
    },
    /// The provider says that the token lacks a scope.
    ScopeMissing(Failure),
    /// Anything else.
    Failed(Failure),
}

/// Calls provider APIs. Cheap to clone.
#[derive(Clone)]
pub struct Executor {
    // http: the egress client
}

impl Executor {
    /// Makes the tool's requests as the token's person and returns the value its manifest computes.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(&self, _permit: &Recorded<Permit>, _token: &AccessToken) -> Result<Value, RunError> {
        todo!()
    }
}
