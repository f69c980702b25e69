//! Being told to stop.

use tokio_util::sync::CancellationToken;

/// A token that is cancelled when the process is asked to stop: SIGTERM or SIGINT, on Windows Ctrl-C.
///
/// # Errors
/// When the operating system does not let signals be watched.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    #[cfg(unix)]
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::spawn(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            // Nobody will ever tell; the process then ends the hard way.
            return;
        }
        told.cancel();
    });
    Ok(stop)
}
