//! Connections, from the first byte to the last answer.
//!
//! By hand rather than with `axum::serve`, which has no bound on how slowly a request's head may arrive, nor on how
//! many connections there are.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::App;
use super::limits::{HEADER_TIMEOUT, MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_HEADERS, WRITE_TIMEOUT};
use crate::transport::SHUTDOWN_GRACE;

/// What is kept of the grace for writing the last answers and closing connections.
const CLOSING: Duration = Duration::from_secs(3);

/// How long accepting rests when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is cancelled, then lets calls under way finish, for at most [`SHUTDOWN_GRACE`], and closes
/// what is left. Handlers find the peer's address as [`ConnectInfo`].
///
/// # Errors
/// When the listener breaks.
pub async fn serve(listener: TcpListener, app: App, shutdown: CancellationToken) -> io::Result<()> {
    let App { router, stop } = app;
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (closing, cut) = (CancellationToken::new(), CancellationToken::new());
    // Dropping this future must not leave connections behind.
    let _cut = cut.clone().drop_guard();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            // Without room, the next one waits in the operating system's queue.
            accepted = accept(&listener, &room) => accepted?,
        };
        let (stream, peer, permit) = accepted;
        let mut stream = TimeoutStream::new(stream);
        // Reading has bounds of its own: a head, a body, and a stream that waits for something to happen.
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let connection = connection(Box::pin(stream), peer, router.clone(), closing.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = connection => {}
                () = cut.cancelled() => {}
            }
        });
    }
    drop(listener);
    let end = Instant::now() + SHUTDOWN_GRACE;
    // No further requests on open connections, and no further messages in sessions that share a stream.
    closing.cancel();
    stop.listening.cancel();
    stop.answers.close();
    // Running out of time here is what the grace is for.
    let _ = timeout_at(end - CLOSING, stop.answers.wait()).await;
    // Streams that wait for something to happen would wait for ever.
    stop.sessions.cancel();
    connections.close();
    let _ = timeout_at(end, connections.wait()).await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small and wanted at once; where that cannot be set they come a little later.
                let _ = stream.set_nodelay(true);
                return Ok((stream, peer, permit));
            }
            // The peer's failure, not ours.
            Err(error) if is_peers(&error) => {}
            Err(error) => {
                tracing::error!(%error, "http.accept_failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection<I>(stream: I, peer: SocketAddr, router: Router, closing: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "http.connection_ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::task::JoinHandle;

    use super::*;

    fn connect(closing: CancellationToken) -> (DuplexStream, JoinHandle<()>) {
        let (client, server) = tokio::io::duplex(4096);
        let peer = SocketAddr::from(([192, 0, 2, 1], 1234));
        let who = get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() });
        let router = Router::new().route("/", who);
        (client, tokio::spawn(connection(server, peer, router, closing)))
    }

    #[tokio::test(start_paused = true)]
    async fn heads_that_never_end_are_cut_off() {
        let (mut client, serving) = connect(CancellationToken::new());
        let begun = Instant::now();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
        serving.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), HEADER_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_say_nothing_more_are_closed() {
        let (mut client, serving) = connect(CancellationToken::new());
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("192.0.2.1:1234"), "{answer}");
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn idle_connections_close_at_once_when_told_to() {
        let closing = CancellationToken::new();
        let (_client, serving) = connect(closing.clone());
        closing.cancel();
        serving.await.unwrap();
    }
}
