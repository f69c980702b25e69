//! The catalog that is in force. It is replaced as a whole when manifests change; whoever took it before keeps what they
//! took.

use std::sync::Arc;

use tokio::sync::watch;

use super::Catalog;

/// The catalog in force. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Live(Arc<watch::Sender<Arc<Catalog>>>);

/// Tells of replacements that clients can see.
#[derive(Clone)]
pub struct Changes(watch::Receiver<Arc<Catalog>>);

impl Live {
    /// Begins with this one.
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self(Arc::new(watch::Sender::new(catalog)))
    }

    /// The one in force now.
    pub fn now(&self) -> Arc<Catalog> {
        Arc::clone(&self.0.borrow())
    }

    /// Replaces it.
    pub fn replace(&self, catalog: Arc<Catalog>) {
        self.0.send_if_modified(|current| {
            let visible = !current.looks_like(&catalog);
            *current = catalog;
            visible
        });
    }

    /// Replacements from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }
}

impl Changes {
    /// Waits for the next replacement that shows; false when there will be none.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl Catalog {
    /// Whether clients are shown the same.
    fn looks_like(&self, other: &Self) -> bool {
        self.tools.len() == other.tools.len()
            && self.tools.values().zip(other.tools.values()).all(|(a, b)| {
                (&a.name, &a.title, &a.description, a.effect, a.idempotent)
                    == (&b.name, &b.title, &b.description, b.effect, b.idempotent)
                    && a.input == b.input
            })
    }
}
