//! Leases as rows, by the database's clock: a holder says again and again that it is alive, and is believed to be dead
//! when it has not for [`SPAN`].
//!
//! No connection is held meanwhile, so leases work behind a pooler. A holder that was stopped for longer than the span
//! has lost what it held without knowing: who is about to do what must not be done twice asks [`Lease::lasts`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

use super::link::{Link, Open, Value};
use crate::store::{Lease, RecordKey, StoreError};

/// How long a holder is believed after its last sign of life. A fraction of the half minute for which common providers take
/// a replaced token: a refresh that a crash interrupted must be taken up by then, even if whoever takes it up is killed in
/// its turn. A holder that lives renews it, however long its exchange takes.
pub(super) const SPAN: Duration = Duration::from_secs(4);

/// How often what is held is renewed, within a span.
const RENEWALS: u32 = 4;

/// How soon a lease that is taken is tried again, at first and at most.
const SHORTEST_POLL: Duration = Duration::from_millis(10);
const LONGEST_POLL: Duration = Duration::from_millis(200);

/// Parameters of the statements: the span is given in milliseconds.
const TAKE: &str = "
    INSERT INTO obo.lease AS held (name, holder, until)
    VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond')
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
    WHERE held.until <= clock_timestamp() OR held.holder = excluded.holder";
const RENEW: &str = "
    UPDATE obo.lease SET until = clock_timestamp() + $2 * interval '1 millisecond'
    WHERE holder = ANY ($1) RETURNING holder";
const RELEASE: &str = "DELETE FROM obo.lease WHERE name = $1 AND holder = $2";
const RELEASE_ALL: &str = "DELETE FROM obo.lease WHERE holder = ANY ($1)";
const PRESENT: &str = "
    INSERT INTO obo.replica AS known (id, until)
    VALUES ($1, clock_timestamp() + $2 * interval '1 millisecond')
    ON CONFLICT (id) DO UPDATE SET until = excluded.until";
const GONE: &str = "DELETE FROM obo.replica WHERE id = $1 OR until < clock_timestamp()";
const OTHERS: &str = "SELECT count(*) FROM obo.replica WHERE id <> $1 AND until > clock_timestamp()";

/// What this process holds.
pub(super) struct Leases {
    link: Arc<Link>,
    replica: Uuid,
    span: Duration,
    /// By holder: until when each is held, by this machine's clock, which was read before the database's.
    held: Mutex<HashMap<Uuid, Arc<Mutex<Instant>>>>,
    released: Notify,
    /// Whether this process has said that it is gone.
    gone: tokio::sync::Mutex<bool>,
}

impl Leases {
    pub(super) fn new(link: Arc<Link>, span: Duration) -> Arc<Self> {
        Arc::new(Self {
            link,
            replica: Uuid::new_v4(),
            span,
            held: Mutex::default(),
            released: Notify::new(),
            gone: tokio::sync::Mutex::default(),
        })
    }

    /// Takes `name`, waiting up to `wait`.
    pub(super) async fn take(
        self: &Arc<Self>,
        open: &Arc<Open>,
        name: &RecordKey,
        wait: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut pause = SHORTEST_POLL;
        loop {
            let released = self.released.notified();
            let (leases, name) = (Arc::clone(self), *name);
            // What was taken for somebody who has gone away meanwhile is given back when the task's result is dropped.
            if let Some((hold, until)) = self.link.run(async move { leases.try_take(name).await }).await?? {
                // In this order: the release is handed over before the thread may end.
                return Ok(Some(Lease::until((hold, Arc::clone(open)), until)));
            }
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let _ = tokio::time::timeout(pause.min(left), released).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }

    async fn try_take(self: Arc<Self>, name: RecordKey) -> Result<Option<(Hold, Arc<Mutex<Instant>>)>, StoreError> {
        let holder = Uuid::new_v4();
        let asked = Instant::now();
        let taken = self.link.execute(TAKE, vec![(&name).into(), holder.into(), self.millis()]).await;
        if matches!(taken, Ok(0)) {
            return Ok(None);
        }
        // Where the answer was lost it may be held: then this is given back at once.
        let hold = Hold { leases: Arc::clone(&self), name, holder };
        taken?;
        let until = Arc::new(Mutex::new(asked + self.span));
        self.held().insert(holder, Arc::clone(&until));
        Ok(Some((hold, until)))
    }

    /// Renews what is held, and says that this process is there, until it is gone.
    pub(super) async fn renew(this: Weak<Self>) {
        loop {
            let Some(span) = this.upgrade().map(|leases| leases.span) else { return };
            tokio::time::sleep(span / RENEWALS).await;
            let Some(leases) = this.upgrade() else { return };
            if let Err(error) = leases.renew_once().await {
                tracing::warn!(%error, "store.leases_not_renewed");
            }
        }
    }

    async fn renew_once(&self) -> Result<(), StoreError> {
        let holders: Vec<Uuid> = self.held().keys().copied().collect();
        let asked = Instant::now();
        self.present().await?;
        if holders.is_empty() {
            return Ok(());
        }
        let renewed = self.link.query(RENEW, vec![Value::Uuids(holders.clone()), self.millis()]).await?;
        let renewed: Vec<Uuid> = renewed.iter().map(|row| row.get(0)).collect();
        let held = self.held();
        for holder in holders {
            let Some(until) = held.get(&holder) else { continue };
            let mut until = until.lock().unwrap_or_else(PoisonError::into_inner);
            if renewed.contains(&holder) {
                *until = asked + self.span;
            } else {
                // Somebody else has it.
                *until = asked;
                tracing::warn!("store.lease_lost");
            }
        }
        Ok(())
    }

    /// Says that this process has the vault open.
    pub(super) async fn present(&self) -> Result<(), StoreError> {
        let gone = self.gone.lock().await;
        if !*gone {
            self.link.execute(PRESENT, vec![self.replica.into(), self.millis()]).await?;
        }
        Ok(())
    }

    /// How many other processes have the vault open.
    pub(super) async fn others(&self) -> Result<u64, StoreError> {
        let rows = self.link.query(OTHERS, vec![self.replica.into()]).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)).unsigned_abs())
    }

    /// Gives back everything, and says that this process no longer has the vault open.
    pub(super) async fn leave(&self) {
        let holders: Vec<Uuid> = self.held().drain().map(|(holder, _)| holder).collect();
        if !holders.is_empty() {
            let _ = self.link.execute(RELEASE_ALL, vec![Value::Uuids(holders)]).await;
        }
        let mut gone = self.gone.lock().await;
        *gone = true;
        let _ = self.link.execute(GONE, vec![self.replica.into()]).await;
    }

    fn millis(&self) -> Value {
        Value::Long(i64::try_from(self.span.as_millis()).unwrap_or(i64::MAX))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<Mutex<Instant>>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is, or may be, held. Dropping it gives it back.
struct Hold {
    leases: Arc<Leases>,
    name: RecordKey,
    holder: Uuid,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.leases.held().remove(&self.holder);
        let (leases, name, holder) = (Arc::clone(&self.leases), self.name, self.holder);
        self.leases.link.spawn(async move {
            if let Err(error) = leases.link.execute(RELEASE, vec![(&name).into(), holder.into()]).await {
                // It ends by itself.
                tracing::warn!(%error, "store.lease_not_released");
            }
            leases.released.notify_waiters();
        });
    }
}
