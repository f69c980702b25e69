//! Is it alive, is it ready? For probes that know neither name nor secret of this server.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::StatusCode;

use super::limits::READY_TIMEOUT;

/// Says whether calls can be served: the store is reachable, the keys are open.
#[async_trait::async_trait]
pub trait Ready: Send + Sync {
    /// Whether it is so now.
    async fn ready(&self) -> bool;
}

/// `/healthz` and `/readyz`. Their answers name nothing, so they need no `Host` check: probes come by address.
pub(super) fn router(ready: Arc<dyn Ready>) -> Router {
    let readyz = move || {
        let ready = ready.clone();
        async move {
            match tokio::time::timeout(READY_TIMEOUT, ready.ready()).await {
                Ok(true) => (StatusCode::OK, "ready\n"),
                Ok(false) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            }
        }
    };
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readyz))
}
