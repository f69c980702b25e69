//! Sessions, each bound to the person who opened it.
//!
//! A session id is not a proof of identity (2025-11-25, Security Best Practices §Session Hijacking): every request
//! shows its own bearer, and a session answers only to the person whose bearer opened it (INV-8). To everybody else it
//! does not exist.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt as _};
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_server::session::ServerSseMessage;
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, LocalSessionManagerError};
use rmcp::transport::streamable_http_server::{RestoreOutcome, SessionId, SessionManager};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::limits::{MAX_SESSIONS, MAX_SESSIONS_PER_PERSON, SESSION_IDLE};
use super::resume::Streams;
use crate::id::Person;
use crate::transport::drain::Pending;

/// Whose session is whose, for both session-bearing transports.
pub(super) struct Sessions {
    table: Mutex<Table>,
    most: usize,
    most_per_person: usize,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<String, Entry>,
    /// Open sessions and those being opened.
    per_person: HashMap<Person, usize>,
    total: usize,
    /// Counts uses, so that the least recent one can be told without a clock.
    uses: u64,
}

struct Entry {
    person: Person,
    revision: String,
    used: u64,
    link: Link,
}

/// How to reach a session.
#[derive(Clone)]
pub(super) enum Link {
    /// By its id, through rmcp.
    Streamable {
        /// Whether other processes can go on with it, and end it.
        kept: bool,
    },
    /// Through its stream (HTTP+SSE).
    Stream {
        /// Where its messages go.
        messages: mpsc::Sender<ClientJsonRpcMessage>,
        /// What it has not answered yet.
        pending: Pending,
        /// Ends it.
        end: CancellationToken,
    },
}

/// A session that has to be ended to make room.
pub(super) struct Evicted {
    pub(super) id: String,
    pub(super) link: Link,
}

/// No room for another session.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The right to open one session. Given back when it is dropped unused.
pub(super) struct Slot {
    sessions: Arc<Sessions>,
    person: Option<Person>,
}

impl Sessions {
    pub(super) fn new() -> Arc<Self> {
        Self::with_limits(MAX_SESSIONS, MAX_SESSIONS_PER_PERSON)
    }

    fn with_limits(most: usize, most_per_person: usize) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), most, most_per_person })
    }

    /// Makes room for a session of `person`. Where there is none, their own least recently used session gives way:
    /// clients that never say goodbye must not lock their user out, and nobody's session ends for somebody else's.
    pub(super) fn reserve(self: &Arc<Self>, person: &Person) -> Result<(Slot, Option<Evicted>), Full> {
        let mut table = self.lock();
        let mine = table.per_person.get(person).copied().unwrap_or_default();
        let evicted = if mine >= self.most_per_person || table.total >= self.most {
            let oldest = table.by_id.iter().filter(|(_, entry)| entry.person == *person);
            let id = oldest.min_by_key(|(_, entry)| entry.used).map(|(id, _)| id.clone()).ok_or(Full)?;
            table.remove(&id).map(|entry| Evicted { id, link: entry.link })
        } else {
            None
        };
        table.total += 1;
        *table.per_person.entry(person.clone()).or_default() += 1;
        Ok((Slot { sessions: self.clone(), person: Some(person.clone()) }, evicted))
    }

    /// The revision and the way to a session, where it is this person's.
    pub(super) fn find(&self, id: &str, person: &Person) -> Option<(String, Link)> {
        let mut table = self.lock();
        table.uses += 1;
        let now = table.uses;
        let entry = table.by_id.get_mut(id).filter(|entry| entry.person == *person)?;
        entry.used = now;
        Some((entry.revision.clone(), entry.link.clone()))
    }

    /// Notes that other processes can go on with a session from now on, and end it.
    pub(super) fn note_kept(&self, id: &str) {
        if let Some(entry) = self.lock().by_id.get_mut(id) {
            entry.link = Link::Streamable { kept: true };
        }
    }

    /// Forgets a session that has ended.
    pub(super) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.by_id.remove(id)?;
        self.release(&entry.person);
        Some(entry)
    }

    fn release(&mut self, person: &Person) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.per_person.get_mut(person) {
            *count -= 1;
            if *count == 0 {
                self.per_person.remove(person);
            }
        }
    }
}

impl Slot {
    /// Binds the session that was opened.
    pub(super) fn bind(mut self, id: &str, revision: &str, link: Link) {
        let Some(person) = self.person.take() else { return };
        let mut table = self.sessions.lock();
        table.uses += 1;
        let entry = Entry { person, revision: revision.to_owned(), used: table.uses, link };
        if let Some(before) = table.by_id.insert(id.to_owned(), entry) {
            table.release(&before.person);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(person) = self.person.take() {
            self.sessions.lock().release(&person);
        }
    }
}

/// rmcp's sessions, which tell [`Sessions`] when they end: closed by the client, by us, or by being idle.
pub(super) struct BoundSessionManager {
    inner: LocalSessionManager,
    sessions: Arc<Sessions>,
    streams: Streams,
}

impl BoundSessionManager {
    pub(super) fn new(sessions: Arc<Sessions>) -> Self {
        let mut inner = LocalSessionManager::default();
        inner.session_config.keep_alive = Some(SESSION_IDLE);
        Self { inner, sessions, streams: Streams::default() }
    }
}

impl SessionManager for BoundSessionManager {
    type Error = LocalSessionManagerError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        self.inner.create_session().await
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        self.inner.initialize_session(id, message).await
    }

    async fn restore_session(&self, id: SessionId) -> Result<RestoreOutcome<Self::Transport>, Self::Error> {
        self.inner.restore_session(id).await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        self.inner.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        self.sessions.remove(id);
        self.streams.close(id);
        self.inner.close_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        Ok(self.streams.follow(id, self.inner.create_stream(id, message).await?))
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), Self::Error> {
        self.inner.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.inner.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        if let Some(reader) = self.streams.resume(id, &last_event_id) {
            return Ok(reader.left_stream());
        }
        Ok(self.inner.resume(id, last_event_id).await?.right_stream())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(user: &str) -> Person {
        Person { tenant: "acme".parse().unwrap(), source: "corp".parse().unwrap(), user: user.parse().unwrap() }
    }

    fn open(sessions: &Arc<Sessions>, user: &str, id: &str) -> Option<String> {
        let (slot, evicted) = sessions.reserve(&person(user)).unwrap();
        slot.bind(id, "2025-11-25", Link::Streamable { kept: false });
        evicted.map(|evicted| evicted.id)
    }

    #[test]
    fn a_session_exists_for_its_person_only() {
        let sessions = Sessions::new();
        open(&sessions, "alice", "1");
        assert!(sessions.find("1", &person("alice")).is_some());
        assert!(sessions.find("1", &person("mallory")).is_none());
        let mut elsewhere = person("alice");
        elsewhere.tenant = "other".parse().unwrap();
        assert!(sessions.find("1", &elsewhere).is_none());
        let mut vouched = person("alice");
        vouched.source = "app:shop".parse().unwrap();
        assert!(sessions.find("1", &vouched).is_none());
        sessions.remove("1");
        assert!(sessions.find("1", &person("alice")).is_none());
    }

    #[test]
    fn a_persons_least_recently_used_session_gives_way() {
        let sessions = Sessions::with_limits(10, 2);
        open(&sessions, "alice", "1");
        open(&sessions, "alice", "2");
        sessions.find("1", &person("alice")).unwrap();
        assert_eq!(open(&sessions, "alice", "3").as_deref(), Some("2"));
        assert!(sessions.find("1", &person("alice")).is_some());
        assert_eq!(open(&sessions, "bob", "4"), None);
    }

    #[test]
    fn nobody_makes_room_for_somebody_else() {
        let sessions = Sessions::with_limits(2, 2);
        open(&sessions, "alice", "1");
        open(&sessions, "alice", "2");
        assert_eq!(sessions.reserve(&person("bob")).err(), Some(Full));
        sessions.remove("1");
        assert_eq!(open(&sessions, "bob", "3"), None);
    }

    #[test]
    fn unused_slots_are_given_back() {
        let sessions = Sessions::with_limits(1, 1);
        let (slot, _) = sessions.reserve(&person("alice")).unwrap();
        assert_eq!(sessions.reserve(&person("alice")).err(), Some(Full));
        drop(slot);
        assert!(sessions.reserve(&person("alice")).is_ok());
        let table = sessions.lock();
        assert_eq!((table.total, table.per_person.len()), (0, 0));
    }
}
