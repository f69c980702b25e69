//! MCP over stdin and stdout, for a client that starts obo itself.
//!
//! One JSON message a line; nothing else is ever written to stdout. Both lifecycles are spoken, mixed as the client
//! likes. The user is the one the process runs for, and is authenticated again for every call.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleServer;
use rmcp::ServiceExt as _;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::service::ServerInitializeError;
use rmcp::transport::Transport;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::drain::{Draining, Pending};
use super::frame::{Frame, FrameError, Kind, Message, error_json, parse_frame};
use super::mcp::{Handler as _, Mcp, Who};
use super::{Service, Settings};
use crate::identity::Credential;

/// Longest line that is read, in bytes: room for a 25 MiB attachment in base64.
const MAX_LINE_BYTES: usize = 40 << 20;

/// How many answers may wait to be written.
const OUTBOX: usize = 64;

/// How long the last answers may take to be written once everything else is done.
const FLUSH_GRACE: Duration = Duration::from_secs(5);

/// Serves MCP on the process's own stdin and stdout until the client closes stdin, or `shutdown` is cancelled.
///
/// Calls under way are finished and answered first, for at most [`super::SHUTDOWN_GRACE`]. A read of stdin that is not
/// a pipe may go on for longer: end the process rather than wait for the runtime.
///
/// # Errors
/// When the session breaks in a way that is not its end.
pub async fn run<S: Service>(
    service: Arc<S>,
    credential: Credential,
    settings: Settings,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let (reader, writer) = rmcp::transport::stdio_pipes();
    run_on(service, credential, settings, reader, writer, shutdown).await
}

/// [`run`] on any pair of streams.
///
/// # Errors
/// As [`run`].
pub async fn run_on<S, R, W>(
    service: Arc<S>,
    credential: Credential,
    settings: Settings,
    reader: R,
    writer: W,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: Service,
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let (outbox, lines) = mpsc::channel(OUTBOX);
    // Its own token: whoever cannot be written to any more need not be read from either.
    let stop = shutdown.child_token();
    let writing = tokio::spawn(write_lines(writer, lines, stop.clone()));
    let end = CancellationToken::new();
    let transport = Draining::new(Lines::new(reader, outbox), Pending::new(), stop).telling(end.clone());
    let handler = Mcp::new(service, Who::Process(credential), settings).ending_with(end);
    // Not `stop`: cancelling rmcp's own token would throw away the answers of calls under way.
    match handler.serve_with_ct(transport, CancellationToken::new()).await {
        Ok(running) => {
            running.waiting().await.map_err(io::Error::other)?;
        }
        // The client went away before it said anything.
        Err(ServerInitializeError::ConnectionClosed(_)) => {}
        Err(error) => return Err(io::Error::other(error)),
    }
    match tokio::time::timeout(FLUSH_GRACE, writing).await {
        Ok(Ok(Ok(()))) => Ok(()),
        // A client that closes both ends at once is gone, not broken.
        Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Ok(Ok(Err(error))) => Err(error),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "stdout was not read to its end")),
    }
}

/// The only writer of stdout: whole lines, in the order they were handed over.
async fn write_lines<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut lines: mpsc::Receiver<Vec<u8>>,
    stop: CancellationToken,
) -> io::Result<()> {
    // Stops the reader when writing has ended, however that came about.
    let _stop = stop.drop_guard();
    while let Some(mut line) = lines.recv().await {
        line.push(b'\n');
        writer.write_all(&line).await?;
        writer.flush().await?;
    }
    writer.shutdown().await
}

/// Messages, one a line.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    too_long: bool,
    /// Messages of a batch that are still to be handed on.
    queue: VecDeque<ClientJsonRpcMessage>,
    /// An answer of our own to what could not be read.
    refusal: Option<Vec<u8>>,
    outbox: mpsc::Sender<Vec<u8>>,
    /// Whether a request has been seen. Before the first one there is nothing that a notification could be about.
    opened: bool,
    /// Whether the last handshake was for 2025-03-26, the one revision with batches.
    batches: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(reader: R, outbox: mpsc::Sender<Vec<u8>>) -> Self {
        Self {
            reader: BufReader::new(reader),
            line: Vec::new(),
            too_long: false,
            queue: VecDeque::new(),
            refusal: None,
            outbox,
            opened: false,
            batches: false,
        }
    }

    /// Reads up to the end of a line; false at the end of the input.
    ///
    /// # Cancellation
    /// Safe: what was read so far stays in `self.line`.
    async fn read_line(&mut self) -> bool {
        loop {
            // A broken input is an ended one: there is nobody left to tell.
            let Ok(chunk) = self.reader.fill_buf().await else { return false };
            if chunk.is_empty() {
                // An unfinished last line still counts.
                return !self.line.is_empty();
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            if self.line.len() + part.len() > MAX_LINE_BYTES {
                self.too_long = true;
                self.line.clear();
            } else if !self.too_long {
                self.line.extend_from_slice(part);
            }
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                return true;
            }
        }
    }

    fn take_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.too_long) {
            let text = format!("the message is longer than {MAX_LINE_BYTES} bytes");
            self.refusal = Some(error_json(None, rmcp::ErrorData::invalid_request(text, None)));
            return;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let taken = parse_frame(&line).and_then(|frame| match frame {
            Frame::Message(message) => self.take_message(&message, &line),
            Frame::Batch(_) if !self.batches => Err(FrameError::NotAMessage),
            Frame::Batch(all) => all.into_iter().try_for_each(|(message, at)| self.take_message(&message, &line[at])),
        });
        if let Err(error) = taken {
            self.refusal = Some(error.to_json());
        }
    }

    fn take_message(&mut self, message: &Message, text: &[u8]) -> Result<(), FrameError> {
        if message.is_initialize() {
            self.batches = message.revision.as_deref() == Some("2025-03-26");
        }
        self.opened |= message.kind == Kind::Request;
        if self.opened {
            self.queue.push_back(serde_json::from_slice(text).map_err(|_| FrameError::NotAMessage)?);
        }
        Ok(())
    }
}

impl<R: AsyncRead + Send + Unpin> Transport<RoleServer> for Lines<R> {
    type Error = io::Error;

    fn send(&mut self, message: ServerJsonRpcMessage) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let outbox = self.outbox.clone();
        async move {
            let line = serde_json::to_vec(&message)?;
            outbox.send(line).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            if self.refusal.is_some() {
                // Reserving first: the refusal is taken only when there is room for it, so nothing is lost when this
                // future is dropped.
                let room = self.outbox.reserve().await.ok()?;
                if let Some(refusal) = self.refusal.take() {
                    room.send(refusal);
                }
            }
            if let Some(message) = self.queue.pop_front() {
                return Some(message);
            }
            if !self.read_line().await {
                return None;
            }
            self.take_line();
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(input: &[u8]) -> (Vec<ClientJsonRpcMessage>, Vec<String>) {
        let (outbox, mut refused) = mpsc::channel(OUTBOX);
        let mut lines = Lines::new(input, outbox);
        let mut messages = Vec::new();
        while let Some(message) = lines.receive().await {
            messages.push(message);
        }
        drop(lines);
        let mut refusals = Vec::new();
        while let Some(line) = refused.recv().await {
            refusals.push(String::from_utf8(line).unwrap());
        }
        (messages, refusals)
    }

    #[tokio::test]
    async fn lines_are_messages_and_the_last_needs_no_end() {
        let input = b"\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\r\n  \n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}";
        let (messages, refusals) = read(input).await;
        assert_eq!((messages.len(), refusals.len()), (2, 0));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_answered_and_the_next_line_counts() {
        let mut input = b"nonsense\n[]\n{}\n".to_vec();
        input.extend(vec![b'x'; MAX_LINE_BYTES + 1]);
        input.extend(b"\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n");
        let (messages, refusals) = read(&input).await;
        assert_eq!(messages.len(), 1);
        let codes: Vec<bool> = refusals.iter().map(|line| line.contains("-32700")).collect();
        assert_eq!(codes, [true, false, false, false], "{refusals:?}");
        assert!(refusals[3].contains("longer than"), "{}", refusals[3]);
    }

    #[tokio::test]
    async fn batches_are_read_after_a_handshake_that_has_them() {
        let batch = r#"[{"jsonrpc":"2.0","id":2,"method":"ping"},{"jsonrpc":"2.0","id":3,"method":"ping"}]"#;
        let initialize = |revision: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{revision}","capabilities":{{}},"clientInfo":{{"name":"c","version":"1"}}}}}}"#
            )
        };
        let (messages, _) = read(format!("{}\n{batch}\n", initialize("2025-03-26")).as_bytes()).await;
        assert_eq!(messages.len(), 3);
        let (messages, refusals) = read(format!("{}\n{batch}\n", initialize("2025-06-18")).as_bytes()).await;
        assert_eq!((messages.len(), refusals.len()), (1, 1));
    }

    #[tokio::test]
    async fn notifications_before_the_first_request_are_about_nothing() {
        let input = b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":9}}\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n";
        assert_eq!(read(input).await.0.len(), 1);
    }
}
