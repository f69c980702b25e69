//! Clients that hear of it when the tools change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rmcp::RoleServer;
use rmcp::service::{Peer, SubscriptionContext};

use crate::catalog::Changes;
use crate::id::Person;

/// Most subscriptions that one person may have open (2026-07-28). Each is a stream that never ends by itself.
const MAX_LISTENING_PER_PERSON: usize = 20;
/// The longest that a subscription is kept open. A client that is still there subscribes anew, with a credential that is
/// still good.
const LISTENING_ENDS_AFTER: Duration = Duration::from_secs(3600);
/// The longest that telling one client may take. One that does not read must not keep the others from hearing.
const TELL_WITHIN: Duration = Duration::from_secs(5);
/// Sessions that are kept before those that have ended are looked for.
const FIRST_SWEEP: usize = 64;

/// Whom to tell. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Listeners {
    changes: Option<Changes>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// Sessions of the revisions with a handshake.
    peers: Vec<Peer<RoleServer>>,
    /// At how many of them those that have ended are taken out.
    sweep_at: usize,
    /// Whether somebody tells them.
    is_told: bool,
    /// Open subscriptions.
    per_person: HashMap<Person, usize>,
}

impl Listeners {
    pub(super) fn new(changes: Option<Changes>) -> Self {
        Self { changes, table: Arc::default() }
    }

    /// Adds a session, until it ends.
    pub(super) fn add(&self, peer: Peer<RoleServer>) {
        let Some(changes) = &self.changes else { return };
        let mut table = self.lock();
        if table.peers.len() >= table.sweep_at {
            table.peers.retain(|peer| !peer.is_transport_closed());
            table.sweep_at = (2 * table.peers.len()).max(FIRST_SWEEP);
        }
        table.peers.push(peer);
        if !std::mem::replace(&mut table.is_told, true) {
            tokio::spawn(tell_all(Arc::downgrade(&self.table), changes.clone()));
        }
    }

    /// Counts a subscription. None: the person has too many.
    pub(super) fn begin(&self, person: &Person) -> Option<Listening> {
        let mut table = self.lock();
        let count = table.per_person.entry(person.clone()).or_default();
        if *count >= MAX_LISTENING_PER_PERSON {
            return None;
        }
        *count += 1;
        Some(Listening { table: Arc::clone(&self.table), person: person.clone() })
    }

    /// Tells a subscription of each change, as long as it takes that.
    pub(super) fn tell(&self, context: &SubscriptionContext) -> impl Future<Output = ()> + Send + 'static {
        let (sink, changes) = (context.sink().clone(), self.changes.clone());
        let wanted = context.accepted().tools_list_changed == Some(true);
        async move {
            let all = async {
                let Some(mut changes) = changes.filter(|_| wanted) else { return std::future::pending().await };
                while changes.next().await && sink.notify_tool_list_changed().await.is_ok() {}
            };
            // However it ended: the client may subscribe again.
            let _ = tokio::time::timeout(LISTENING_ENDS_AFTER, all).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells every session of each change, until the last handler is gone.
async fn tell_all(table: std::sync::Weak<Mutex<Table>>, mut changes: Changes) {
    while changes.next().await {
        let Some(table) = table.upgrade() else { return };
        let peers = lock(&table).peers.clone();
        drop(table);
        for peer in peers.into_iter().filter(|peer| !peer.is_transport_closed()) {
            // Each for itself: the next must not wait for one that does not read.
            tokio::spawn(async move {
                let told = tokio::time::timeout(TELL_WITHIN, peer.notify_tool_list_changed()).await;
                if !matches!(told, Ok(Ok(()))) {
                    tracing::debug!("a client could not be told that the tools changed");
                }
            });
        }
    }
}

/// An open subscription. Dropping it gives its place back.
pub(super) struct Listening {
    table: Arc<Mutex<Table>>,
    person: Person,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(count) = table.per_person.get_mut(&self.person) {
            *count -= 1;
            if *count == 0 {
                table.per_person.remove(&self.person);
            }
        }
    }
}
