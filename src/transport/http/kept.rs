//! Sessions that another process began, or this one before it was started anew: rmcp begins them here once more, with what
//! their client said then.

use rmcp::model::InitializeRequestParams;
use rmcp::transport::streamable_http_server::session::store::{SessionState, SessionStore, SessionStoreError};

use crate::identity::McpSessions;

/// What rmcp asks for a session that it does not know. It asks only for what `Endpoint::session` let through: a session of
/// this very caller.
pub(super) struct Kept(pub(super) McpSessions);

#[async_trait::async_trait]
impl SessionStore for Kept {
    async fn load(&self, id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        let Some(params) = self.0.initialize(id).await.map_err(|failure| failure.message)? else { return Ok(None) };
        let params: InitializeRequestParams = serde_json::from_value(params)?;
        Ok(Some(SessionState::new(params)))
    }

    /// Kept by `Endpoint::initialize`, which knows whose it is.
    async fn store(&self, _: &str, _: &SessionState) -> Result<(), SessionStoreError> {
        Ok(())
    }

    /// Ended by `Endpoint::serve`.
    async fn delete(&self, _: &str) -> Result<(), SessionStoreError> {
        Ok(())
    }
}
