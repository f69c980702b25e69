//! Answers that were sent, kept for a moment in case they did not arrive (2025-11-25, Transports §Resumability and
//! Redelivery).
//!
//! rmcp keeps events for a stream that is being written, but forgets the stream with its last event: an answer that is
//! ready while the client is reconnecting would be lost. So each stream is read to its end here, whoever is listening,
//! and kept a little longer than that: a connection can be dead long before anybody here notices.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use rmcp::transport::streamable_http_server::session::ServerSseMessage;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long a stream that has ended can be asked for again.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Most bytes that ended streams hold, of all sessions together. The oldest give way.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// The streams of all sessions that can be asked for again.
#[derive(Clone)]
pub(super) struct Streams {
    kept: Arc<Mutex<Kept>>,
    most_bytes: usize,
}

#[derive(Default)]
struct Kept {
    sessions: HashMap<String, HashMap<u64, Tail>>,
    /// The ended ones, in the order in which they ended.
    ended: VecDeque<Ended>,
    bytes: usize,
}

/// What is known of one stream.
#[derive(Default)]
struct Tail {
    events: Vec<ServerSseMessage>,
    reader: Option<mpsc::UnboundedSender<ServerSseMessage>>,
}

struct Ended {
    session: String,
    stream: u64,
    bytes: usize,
    at: Instant,
}

impl Default for Streams {
    fn default() -> Self {
        Self { kept: Arc::default(), most_bytes: MAX_KEPT_BYTES }
    }
}

impl Streams {
    /// Reads a stream of `session` to its end, and lets the [`Reader`] follow it.
    pub(super) fn follow(
        &self,
        session: &str,
        events: impl Stream<Item = ServerSseMessage> + Send + 'static,
    ) -> Reader {
        let (reader, incoming) = mpsc::unbounded_channel();
        let (streams, session) = (self.clone(), session.to_owned());
        tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            let (mut reader, mut stream, mut bytes) = (Some(reader), None, 0);
            while let Some(event) = events.next().await {
                stream = stream.or_else(|| Some(place(event.event_id.as_deref()?)?.1));
                bytes += size(&event);
                match (stream, &reader) {
                    (Some(stream), _) => streams.lock().push(&session, stream, event, &mut reader),
                    // Without an id it cannot be asked for again. Nobody may be reading, which is then all.
                    (None, Some(reader)) => drop(reader.send(event)),
                    (None, None) => {}
                }
            }
            if let Some(stream) = stream {
                streams.lock().end(Ended { session, stream, bytes, at: Instant::now() }, streams.most_bytes);
            }
        });
        Reader { incoming }
    }

    /// Takes a stream of `session` up again after the event that the client saw last. None: there is no such stream.
    pub(super) fn resume(&self, session: &str, last_event_id: &str) -> Option<Reader> {
        let (seen, stream) = place(last_event_id)?;
        let mut kept = self.lock();
        kept.expire(self.most_bytes);
        let ended = kept.ended.iter().any(|ended| ended.stream == stream && ended.session == session);
        let tail = kept.sessions.get_mut(session)?.get_mut(&stream)?;
        let (reader, incoming) = mpsc::unbounded_channel();
        let later = |event: &&ServerSseMessage| {
            event.event_id.as_deref().and_then(place).is_some_and(|(index, _)| index > seen)
        };
        for event in tail.events.iter().filter(later) {
            // Its other end stands a few lines above.
            let _ = reader.send(event.clone());
        }
        // The one that followed before ends: one stream has one reader.
        tail.reader = (!ended).then_some(reader);
        Some(Reader { incoming })
    }

    /// Forgets a session that has ended.
    pub(super) fn close(&self, session: &str) {
        let mut kept = self.lock();
        kept.sessions.remove(session);
        let freed: usize = kept.ended.iter().filter(|ended| ended.session == session).map(|ended| ended.bytes).sum();
        kept.ended.retain(|ended| ended.session != session);
        kept.bytes -= freed;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(
        &mut self,
        session: &str,
        stream: u64,
        event: ServerSseMessage,
        first: &mut Option<mpsc::UnboundedSender<ServerSseMessage>>,
    ) {
        let tail = self.sessions.entry(session.to_owned()).or_default().entry(stream).or_default();
        if let Some(first) = first.take() {
            tail.reader = Some(first);
        }
        if let Some(reader) = &tail.reader {
            // Nobody may be reading; that is what it is kept for.
            let _ = reader.send(event.clone());
        }
        tail.events.push(event);
    }

    fn end(&mut self, ended: Ended, most_bytes: usize) {
        // The session may have been closed before its stream came to an end.
        let streams = self.sessions.get_mut(&ended.session);
        if let Some(tail) = streams.and_then(|streams| streams.get_mut(&ended.stream)) {
            tail.reader = None;
            self.bytes += ended.bytes;
            self.ended.push_back(ended);
        }
        self.expire(most_bytes);
    }

    fn expire(&mut self, most_bytes: usize) {
        while let Some(oldest) = self.ended.front() {
            if self.bytes <= most_bytes && oldest.at.elapsed() < KEPT_FOR {
                return;
            }
            self.bytes -= oldest.bytes;
            if let Some(streams) = self.sessions.get_mut(&oldest.session) {
                streams.remove(&oldest.stream);
                if streams.is_empty() {
                    self.sessions.remove(&oldest.session);
                }
            }
            self.ended.pop_front();
        }
    }
}

/// How many bytes an event takes on the wire, near enough.
fn size(event: &ServerSseMessage) -> usize {
    struct Counter(usize);

    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut counter = Counter(size_of::<ServerSseMessage>());
    if let Some(message) = &event.message {
        // Counting cannot fail; what could not be written would not be sent either.
        let _ = serde_json::to_writer(&mut counter, &**message);
    }
    counter.0
}

/// Index and stream of an event id, which rmcp writes as `index/stream`. The session's own stream has no number.
fn place(event_id: &str) -> Option<(u64, u64)> {
    let (index, stream) = event_id.split_once('/')?;
    Some((index.parse().ok()?, stream.parse().ok()?))
}

/// Follows a stream. Dropping it loses nothing.
pub(super) struct Reader {
    incoming: mpsc::UnboundedReceiver<ServerSseMessage>,
}

impl Stream for Reader {
    type Item = ServerSseMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ServerSseMessage>> {
        self.incoming.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::ServerJsonRpcMessage;

    use super::*;

    fn event(id: &str) -> ServerSseMessage {
        let answer: ServerJsonRpcMessage = serde_json::from_str(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).unwrap();
        ServerSseMessage::new(id, answer)
    }

    async fn ids(reader: Reader) -> Vec<String> {
        reader.filter_map(|event| std::future::ready(event.event_id)).collect().await
    }

    fn stream() -> (mpsc::UnboundedSender<ServerSseMessage>, impl Stream<Item = ServerSseMessage> + Send + 'static) {
        let (events, incoming) = mpsc::unbounded_channel();
        (events, Reader { incoming })
    }

    async fn until_ended(streams: &Streams, count: usize) {
        while streams.lock().ended.len() < count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_answer_waits_for_who_went_away() {
        let streams = Streams::default();
        let (events, source) = stream();
        let mut reader = streams.follow("s", source);
        events.send(event("0/7")).unwrap();
        reader.next().await.unwrap();
        drop(reader);
        events.send(event("1/7")).unwrap();
        drop(events);
        until_ended(&streams, 1).await;
        for _ in 0..2 {
            assert_eq!(ids(streams.resume("s", "0/7").unwrap()).await, ["1/7"]);
        }
        for (session, id) in [("other", "0/7"), ("s", "0/8"), ("s", "0"), ("s", "x/7"), ("s", "")] {
            assert!(streams.resume(session, id).is_none(), "{session} {id}");
        }
        streams.close("s");
        assert!(streams.resume("s", "0/7").is_none());
        let kept = streams.lock();
        assert_eq!((kept.sessions.len(), kept.ended.len(), kept.bytes), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_stream_goes_on_after_it_was_taken_up_again() {
        let streams = Streams::default();
        let (events, source) = stream();
        let mut reader = streams.follow("s", source);
        events.send(event("0/7")).unwrap();
        reader.next().await.unwrap();
        let resumed = streams.resume("s", "0/7").unwrap();
        events.send(event("1/7")).unwrap();
        drop(events);
        assert_eq!(ids(resumed).await, ["1/7"]);
        assert!(reader.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_is_forgotten_after_a_while() {
        let streams = Streams::default();
        let (events, source) = stream();
        let reader = streams.follow("s", source);
        events.send(event("0/1")).unwrap();
        drop(events);
        assert_eq!(ids(reader).await, ["0/1"]);
        until_ended(&streams, 1).await;
        tokio::time::advance(KEPT_FOR).await;
        assert!(streams.resume("s", "0/1").is_none());
        let kept = streams.lock();
        assert_eq!((kept.sessions.len(), kept.bytes), (0, 0));
    }

    #[tokio::test]
    async fn the_oldest_gives_way_when_there_is_too_much() {
        let one = size(&event("0/1"));
        let streams = Streams { most_bytes: one * 2, ..Streams::default() };
        for number in 1..=3 {
            let (events, source) = stream();
            let reader = streams.follow("s", source);
            events.send(event(&format!("0/{number}"))).unwrap();
            drop(events);
            ids(reader).await;
            until_ended(&streams, number.min(2)).await;
        }
        while streams.resume("s", "0/1").is_some() {
            tokio::task::yield_now().await;
        }
        assert!(streams.resume("s", "0/3").is_some());
        assert!(streams.lock().bytes <= one * 2);
    }

    #[tokio::test]
    async fn a_session_closed_before_its_stream_ended_leaves_nothing() {
        let streams = Streams::default();
        let (events, source) = stream();
        let mut reader = streams.follow("s", source);
        events.send(event("0/1")).unwrap();
        reader.next().await.unwrap();
        streams.close("s");
        drop(events);
        assert!(reader.next().await.is_none());
        let kept = streams.lock();
        assert_eq!((kept.sessions.len(), kept.bytes), (0, 0));
    }
}
