//! A transport that ends only when what it was asked is answered.
//!
//! rmcp cuts calls off five seconds after its input ends. A client that closes stdin after its last request still
//! wants the answer, so the end of input is held back until every request has one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rmcp::RoleServer;
use rmcp::model::{ClientJsonRpcMessage, ClientNotification, JsonRpcMessage, RequestId, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::SHUTDOWN_GRACE;

/// What rmcp itself waits once the input has ended.
const RMCP_DRAIN: Duration = Duration::from_secs(5);

/// Wraps a transport. `stop` ends the input early, as if the client had closed it.
pub(super) struct Draining<T> {
    inner: T,
    pending: Pending,
    stop: CancellationToken,
    ended: Option<Instant>,
    tell: CancellationToken,
}

impl<T> Draining<T> {
    pub(super) fn new(inner: T, pending: Pending, stop: CancellationToken) -> Self {
        Self { inner, pending, stop, ended: None, tell: CancellationToken::new() }
    }

    /// Cancels `tell` when the input has ended: what would go on until then ends too.
    pub(super) fn telling(self, tell: CancellationToken) -> Self {
        Self { tell, ..self }
    }
}

impl<T: Transport<RoleServer>> Transport<RoleServer> for Draining<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        message: ServerJsonRpcMessage,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let answered = match &message {
            JsonRpcMessage::Response(response) => Some(response.id.clone()),
            JsonRpcMessage::Error(error) => error.id.clone(),
            _ => None,
        };
        let pending = self.pending.clone();
        let send = self.inner.send(message);
        async move {
            let sent = send.await;
            if let Some(id) = answered {
                pending.answered(&id);
            }
            sent
        }
    }

    /// # Cancellation
    /// Safe, where the inner transport's is: the moment the input ended is kept.
    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        let ended = match self.ended {
            Some(ended) => ended,
            None => {
                let message = tokio::select! {
                    biased;
                    () = self.stop.cancelled() => None,
                    message = self.inner.receive() => message,
                };
                if let Some(message) = message {
                    self.pending.note(&message);
                    return Some(message);
                }
                self.tell.cancel();
                *self.ended.insert(Instant::now())
            }
        };
        // Whoever has no answer by then gets none.
        let _ = tokio::time::timeout_at(ended + (SHUTDOWN_GRACE - RMCP_DRAIN), self.pending.none()).await;
        None
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}

/// The requests that have no answer yet.
#[derive(Clone)]
pub(super) struct Pending {
    requests: Arc<Mutex<HashMap<RequestId, usize>>>,
    count: Arc<watch::Sender<usize>>,
}

impl Pending {
    pub(super) fn new() -> Self {
        Self { requests: Arc::default(), count: Arc::new(watch::Sender::new(0)) }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }

    fn note(&self, message: &ClientJsonRpcMessage) {
        match message {
            JsonRpcMessage::Request(request) => {
                *self.lock().entry(request.id.clone()).or_default() += 1;
                self.count.send_modify(|count| *count += 1);
            }
            // A request that was withdrawn is not answered (2025-11-25, Cancellation §Behavior Requirements).
            JsonRpcMessage::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.answered(id);
                }
            }
            _ => {}
        }
    }

    fn answered(&self, id: &RequestId) {
        let mut requests = self.lock();
        if let Some(times) = requests.get_mut(id) {
            *times -= 1;
            if *times == 0 {
                requests.remove(id);
            }
            self.count.send_modify(|count| *count -= 1);
        }
    }

    async fn none(&self) {
        // The sender is ours, so waiting cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, usize>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use super::*;

    struct Script(VecDeque<&'static str>);

    impl Transport<RoleServer> for Script {
        type Error = Infallible;
        fn send(&mut self, _: ServerJsonRpcMessage) -> impl Future<Output = Result<(), Infallible>> + Send + 'static {
            std::future::ready(Ok(()))
        }
        async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
            self.0.pop_front().map(|text| serde_json::from_str(text).unwrap())
        }
        async fn close(&mut self) -> Result<(), Infallible> {
            Ok(())
        }
    }

    const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

    fn draining(script: &[&'static str]) -> Draining<Script> {
        Draining::new(Script(script.iter().copied().collect()), Pending::new(), CancellationToken::new())
    }

    fn answer() -> ServerJsonRpcMessage {
        serde_json::from_str(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_the_answer() {
        let mut transport = draining(&[PING]);
        assert!(transport.receive().await.is_some());
        let early = tokio::time::timeout(Duration::from_secs(1), transport.receive()).await;
        assert!(early.is_err(), "the input ended while a request had no answer");
        transport.send(answer()).await.unwrap();
        assert!(transport.receive().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_no_longer_than_the_grace() {
        let mut transport = draining(&[PING]);
        assert!(transport.receive().await.is_some());
        let begun = Instant::now();
        assert!(transport.receive().await.is_none());
        assert_eq!(begun.elapsed() + RMCP_DRAIN, SHUTDOWN_GRACE);
    }

    #[tokio::test]
    async fn withdrawn_requests_are_not_waited_for() {
        let mut transport =
            draining(&[PING, r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#]);
        assert!(transport.receive().await.is_some());
        assert!(transport.receive().await.is_some());
        assert!(transport.receive().await.is_none());
    }

    #[tokio::test]
    async fn being_told_to_stop_ends_the_input() {
        let mut transport = draining(&[PING]);
        transport.stop.cancel();
        assert!(transport.receive().await.is_none());
    }
}
