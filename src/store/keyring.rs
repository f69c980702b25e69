//! The store of one machine whose grants have their sealed bodies in the OS keyring. Everything else, and what leads to
//! those bodies, is in the SQLite file.
//!
//! A body is written once, under a name of its own, and never changed: a record holds the name of its body, so replacing
//! the record replaces the body, whole or not at all. Names that no record holds are noted in the file, as
//! [`Table::KeyringEntry`]:
//!
//! 1. The names of the new bodies are noted. 2. The bodies are written, and read back. 3. In one transaction the records
//!    take the new names, the notes of those go, and the names that the records held are noted. 4. The bodies under the
//!    noted names are removed, then their notes.
//!
//! So whatever a crash leaves in the keyring is noted, and removed by the next writer. Only the holder of a lease writes.
//! A writer whose process lost the lease without knowing it cannot do step 3 any more: whoever removes a body changes its
//! note first, and the transaction asks for the note as it was.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lru::LruCache;

use super::sqlite::{SqliteStore, upkeep};
use super::{Examined, Lease, LogEntry, MAX_SEALED_BYTES, Record, RecordKey, Store, StoreError, Table, Write};
use crate::os_keyring::{Down, Keyring};
use crate::secret::{random, random_text};

/// What stands in a record in the place of a body in the keyring: this, then its name. NEVER CHANGE.
const ELSEWHERE: &[u8; 5] = b"OBOK1";

/// The note which says that bodies are in the keyring. It has the name of an entry that is there as long as they are, by
/// which a keyring that lost one of them is told from one that is locked, and so looks empty.
pub(super) const MARK: RecordKey = [0; 32];

/// Held by whoever writes bodies.
const TURN: RecordKey = [0xfe; 32];

/// How long others may write: each body takes a few calls of the keyring.
const TURN_WAIT: Duration = Duration::from_secs(60);

/// A body larger than any that is to be expected: two tokens as long as obo takes them, and what stands beside them.
const LARGEST_BYTES: usize = 40 << 10; // 40 KiB

/// How many bodies are remembered, so that not every call asks the keyring. They are sealed, and never change. That the
/// number is not 0 is seen by the compiler.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How often a record is read again whose body went away meanwhile, and how often a write that gives no condition is
/// made again.
const TRIES: u32 = 4;

/// How many records are read at once.
const PAGE: usize = 500;

/// The name of a body.
type Name = [u8; 32];

/// Records in a SQLite file, with the bodies of grants in the OS keyring.
pub struct KeyringStore(Arc<Inner>);

struct Inner {
    rows: Arc<dyn Store>,
    keyring: Keyring,
    /// One at a time, in turn; the lease alone would be polled for.
    turn: tokio::sync::Mutex<()>,
    /// The keyring takes bodies of [`LARGEST_BYTES`].
    takes: AtomicBool,
    remembered: Mutex<LruCache<Name, Vec<u8>>>,
}

/// Where the bodies of grants are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// In the keyring.
    pub in_keyring: u64,
    /// Still in the file, from before the keyring was chosen.
    pub in_file: u64,
    /// Nowhere: the keyring has lost them.
    pub lost: u64,
}

impl KeyringStore {
    /// Opens the store in `data_dir`, as [`SqliteStore::open`] does. The keyring is not asked yet.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open(data_dir: &Path, keyring: Keyring) -> Result<Self, StoreError> {
        Ok(Self::over(Arc::new(SqliteStore::open(data_dir)?), keyring))
    }

    /// The same over a store that is open already.
    pub fn over(rows: Arc<dyn Store>, keyring: Keyring) -> Self {
        Self(Arc::new(Inner {
            rows,
            keyring,
            turn: tokio::sync::Mutex::new(()),
            takes: AtomicBool::new(false),
            remembered: Mutex::new(LruCache::new(REMEMBERED)),
        }))
    }

    /// Counts where bodies are.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], also when the keyring is locked.
    pub async fn held(&self) -> Result<Held, StoreError> {
        let mut held = Held::default();
        for row in self.0.grants().await? {
            match (name_in(&row), self.0.filled(row).await?) {
                (None, _) => held.in_file += 1,
                (Some(_), Some(_)) => held.in_keyring += 1,
                (Some(_), None) => held.lost += 1,
            }
        }
        Ok(held)
    }

    /// Writes a copy to a new file, with the bodies in it: it needs no keyring. Other processes may go on; those that
    /// change a grant wait. Gives the copy's size in bytes.
    ///
    /// # Errors
    /// As [`upkeep::backup`].
    pub async fn backup(&self, data_dir: &Path, to: &Path) -> Result<u64, StoreError> {
        let _turn = self.0.turn.lock().await;
        let _lease = self.0.lease().await?;
        let mut bodies = Vec::new();
        for row in self.0.grants().await?.into_iter().filter(|row| name_in(row).is_some()) {
            let leads_to = row.sealed.clone();
            // A lost one is lost in the copy, too: nothing leads anywhere there.
            let body = self.0.filled(row).await?.map_or_else(Vec::new, |record| record.sealed);
            bodies.push((leads_to, body));
        }
        upkeep::backup_with(data_dir, to, bodies).await
    }
}

/// The name that a record holds in the place of a body.
fn name_in(row: &Record) -> Option<Name> {
    row.sealed.strip_prefix(ELSEWHERE)?.try_into().ok()
}

/// The user of the keyring's entry.
fn entry_of(name: &Name) -> String {
    use std::fmt::Write as _;
    name.iter().fold("connection ".to_owned(), |mut user, byte| {
        let _ = write!(user, "{byte:02x}");
        user
    })
}

fn note(name: Name) -> Record {
    let table = Table::KeyringEntry;
    Record { table, key: name, owner: name, generation: 1, expires_at: None, sealed: Vec::new() }
}

fn down(down: Down) -> StoreError {
    StoreError::Unavailable(down.to_string())
}

/// What is to be done, in terms of the file and of the keyring.
#[derive(Default)]
struct Plan {
    writes: Vec<Write>,
    bodies: Vec<(Name, Vec<u8>)>,
    replaced: Vec<Name>,
    /// Some of it was given without a condition, which it has here.
    unconditional: bool,
}

impl Plan {
    fn elsewhere(&mut self, body: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        if body.len() > MAX_SEALED_BYTES {
            return Err(StoreError::Unavailable(format!(
                "a record of {} bytes is longer than the {MAX_SEALED_BYTES} bytes that the store keeps",
                body.len()
            )));
        }
        let name = random();
        self.bodies.push((name, body));
        Ok([&ELSEWHERE[..], &name].concat())
    }

    fn replaces(&mut self, row: &Record) {
        self.replaced.extend(name_in(row));
    }
}

impl Inner {
    async fn lease(&self) -> Result<Lease, StoreError> {
        self.rows.lease(&TURN, TURN_WAIT).await?.ok_or_else(|| {
            StoreError::Unavailable("another obo process has been writing to the keyring for too long".to_owned())
        })
    }

    /// Every grant, as it stands in the file.
    async fn grants(&self) -> Result<Vec<Record>, StoreError> {
        let mut all: Vec<Record> = Vec::new();
        loop {
            let after = all.last().map(|row| row.key);
            let page = self.rows.scan(Table::Grant, after.as_ref(), PAGE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// A record with its body. None where the record went away meanwhile, or the keyring has lost its body.
    async fn filled(&self, mut row: Record) -> Result<Option<Record>, StoreError> {
        for _ in 0..TRIES {
            let Some(name) = name_in(&row) else { return Ok(Some(row)) };
            let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
            let body = match remembered {
                Some(body) => Some(body),
                None => self.keyring.kept(entry_of(&name)).await.map_err(down)?,
            };
            if let Some(body) = body {
                self.remember(name, &body);
                return Ok(Some(Record { sealed: body, ..row }));
            }
            match self.rows.get(row.table, &row.key).await? {
                None => return Ok(None),
                Some(now) if now.sealed == row.sealed => {
                    self.sees_its_mark().await?;
                    tracing::error!(entry = entry_of(&name), "store.keyring_entry_lost");
                    return Ok(None);
                }
                Some(now) => row = now,
            }
        }
        Err(StoreError::Unavailable("a connection kept changing while it was read; try again".to_owned()))
    }

    fn remember(&self, name: Name, body: &[u8]) {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).put(name, body.to_owned());
    }

    /// Tells a keyring that has lost an entry from one in which nothing can be seen.
    async fn sees_its_mark(&self) -> Result<(), StoreError> {
        let unseen = || {
            StoreError::Unavailable(
                "the OS keyring shows none of this vault's connections; unlock it, or restore a backup if it was reset"
                    .to_owned(),
            )
        };
        let mark = self.rows.get(Table::KeyringEntry, &MARK).await?.ok_or_else(unseen)?;
        let name: Name = mark.sealed.as_slice().try_into().map_err(|_| unseen())?;
        self.keyring.kept(entry_of(&name)).await.map_err(down)?.map(drop).ok_or_else(unseen)
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let begins_a_flow = |write: &Write| matches!(write, Write::Insert(record) if record.table == Table::Flow);
        if writes.iter().any(begins_a_flow) {
            self.takes_a_grant().await?;
        }
        if !writes.iter().any(is_of_a_grant) {
            return self.rows.apply(writes).await;
        }
        let _turn = self.turn.lock().await;
        let _lease = self.lease().await?;
        // What cannot be removed now is removed another time.
        self.remove_noted().await;
        for _ in 1..TRIES {
            let plan = self.plan(&writes).await?;
            let again = plan.unconditional;
            match self.carry_out(plan).await {
                Err(StoreError::Conflict) if again => {}
                other => return other,
            }
        }
        let plan = self.plan(&writes).await?;
        self.carry_out(plan).await
    }

    /// Says what is to be done for these writes, with the records as they stand now.
    async fn plan(&self, writes: &[Write]) -> Result<Plan, StoreError> {
        let mut plan = Plan::default();
        for write in writes {
            let planned = match write {
                Write::Insert(new) if new.table == Table::Grant => {
                    let sealed = plan.elsewhere(new.sealed.clone())?;
                    match self.rows.get(Table::Grant, &new.key).await? {
                        None => Write::Insert(Record { sealed, ..new.clone() }),
                        // What nobody can read is not there, so it is in nobody's way.
                        Some(row) if self.filled(row.clone()).await?.is_none() => {
                            plan.replaces(&row);
                            Write::Replace(Record { sealed, generation: row.generation, ..new.clone() })
                        }
                        Some(_) => return Err(StoreError::Conflict),
                    }
                }
                Write::Put(new) if new.table == Table::Grant => {
                    let sealed = plan.elsewhere(new.sealed.clone())?;
                    plan.unconditional = true;
                    match self.rows.get(Table::Grant, &new.key).await? {
                        None => Write::Insert(Record { sealed, ..new.clone() }),
                        Some(row) => {
                            plan.replaces(&row);
                            Write::Replace(Record { sealed, generation: row.generation, ..new.clone() })
                        }
                    }
                }
                Write::Replace(new) if new.table == Table::Grant => {
                    let row = self.at(&new.key, new.generation).await?;
                    plan.replaces(&row);
                    Write::Replace(Record { sealed: plan.elsewhere(new.sealed.clone())?, ..new.clone() })
                }
                Write::Delete { table: Table::Grant, key, generation } => {
                    plan.replaces(&self.at(key, *generation).await?);
                    write.clone()
                }
                Write::Reseal { table: Table::Grant, key, before, sealed } => {
                    let row = self.rows.get(Table::Grant, key).await?.ok_or(StoreError::Conflict)?;
                    let found = self.filled(row.clone()).await?;
                    if found.is_none_or(|found| found.sealed != *before) {
                        return Err(StoreError::Conflict);
                    }
                    plan.replaces(&row);
                    let (table, key, sealed) = (Table::Grant, *key, plan.elsewhere(sealed.clone())?);
                    Write::Reseal { table, key, before: row.sealed, sealed }
                }
                other => other.clone(),
            };
            plan.writes.push(planned);
        }
        Ok(plan)
    }

    async fn at(&self, key: &RecordKey, generation: u64) -> Result<Record, StoreError> {
        let row = self.rows.get(Table::Grant, key).await?;
        row.filter(|row| row.generation == generation).ok_or(StoreError::Conflict)
    }

    async fn carry_out(&self, plan: Plan) -> Result<(), StoreError> {
        let Plan { mut writes, mut bodies, replaced, .. } = plan;
        if !bodies.is_empty() && self.rows.get(Table::KeyringEntry, &MARK).await?.is_none() {
            let name: Name = random();
            bodies.push((name, b"obo".to_vec()));
            writes.push(Write::Insert(Record { sealed: name.to_vec(), ..note(MARK) }));
        }
        self.rows.apply(bodies.iter().map(|(name, _)| Write::Insert(note(*name))).collect()).await?;
        for (name, body) in &bodies {
            self.keyring.keep(entry_of(name), body).await.map_err(down)?;
        }
        let of_new = bodies.iter().map(|(name, _)| {
            let Record { table, key, generation, .. } = note(*name);
            Write::Delete { table, key, generation }
        });
        let of_old = replaced.iter().map(|name| Write::Insert(note(*name)));
        let writes = writes.into_iter().chain(of_new).chain(of_old).collect();
        let done = self.rows.apply(writes).await;
        match &done {
            Ok(()) => bodies.into_iter().for_each(|(name, body)| self.remember(name, &body)),
            // Nothing was changed. If that is because the turn was lost, the notes may be gone already.
            Err(StoreError::Conflict) => {
                for (name, _) in &bodies {
                    let _ = self.keyring.delete(entry_of(name)).await;
                }
            }
            // Nobody knows; the notes do.
            Err(_) => {}
        }
        // The old ones where it is done, the new ones where it is not: the notes say which.
        self.remove_noted().await;
        done
    }

    /// Removes whatever is noted. For the holder of the lease.
    async fn remove_noted(&self) {
        if let Err(error) = self.try_to_remove_noted().await {
            tracing::debug!(%error, "store.keyring_entries_left");
        }
    }

    async fn try_to_remove_noted(&self) -> Result<(), StoreError> {
        let noted = self.rows.scan(Table::KeyringEntry, None, PAGE).await?;
        for found in noted.into_iter().filter(|found| found.key != MARK) {
            let (table, key, generation) = (found.table, found.key, found.generation + 1);
            // From now on no record can come to hold it.
            self.rows.apply(vec![Write::Replace(found)]).await?;
            self.keyring.delete(entry_of(&key)).await.map_err(down)?;
            self.rows.apply(vec![Write::Delete { table, key, generation }]).await?;
        }
        Ok(())
    }

    /// Whoever is about to be asked for their consent must not learn afterwards that its fruits cannot be kept.
    async fn takes_a_grant(&self) -> Result<(), StoreError> {
        if self.takes.load(Ordering::Acquire) {
            return Ok(());
        }
        let user = format!("probe {}", random_text::<9>());
        let taken = self.keyring.keep(user.clone(), &[0; LARGEST_BYTES]).await;
        let removed = self.keyring.delete(user).await;
        taken.and(removed).map_err(|error| {
            StoreError::Unavailable(format!(
                "a connection of {LARGEST_BYTES} bytes cannot be kept in the keyring: {error}; or set [vault] store = \
                 \"file\""
            ))
        })?;
        self.takes.store(true, Ordering::Release);
        Ok(())
    }

    /// Moves bodies into the keyring that were in the file before the keyring was chosen.
    async fn move_in(&self) -> Result<(), StoreError> {
        for row in self.grants().await?.into_iter().filter(|row| name_in(row).is_none()) {
            let (table, key, before, sealed) = (row.table, row.key, row.sealed.clone(), row.sealed);
            match self.apply(vec![Write::Reseal { table, key, before, sealed }]).await {
                Ok(()) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Grants that have expired are removed one by one, with their bodies.
    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut pruned = 0;
        for row in self.grants().await?.into_iter().filter(|row| row.expires_at.is_some_and(|at| at < now)) {
            let delete = Write::Delete { table: row.table, key: row.key, generation: row.generation };
            match self.apply(vec![delete]).await {
                Ok(()) => pruned += 1,
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = self.move_in().await {
            tracing::warn!(%error, "store.not_moved_into_the_keyring");
        }
        {
            let _turn = self.turn.lock().await;
            let _lease = self.lease().await?;
            self.remove_noted().await;
        }
        Ok(pruned + self.rows.prune(now).await?)
    }
}

fn is_of_a_grant(write: &Write) -> bool {
    match write {
        Write::Insert(record) | Write::Replace(record) | Write::Put(record) => record.table == Table::Grant,
        Write::Reseal { table, .. } | Write::Delete { table, .. } => *table == Table::Grant,
        Write::Append(_) => false,
    }
}

impl KeyringStore {
    /// Runs what writes in a task of its own: a caller that goes away in the middle must not free the lease there.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let ended = |_| StoreError::Unavailable("the store did not get to it; try again".to_owned());
        tokio::spawn(work).await.map_err(ended)?
    }
}

#[async_trait::async_trait]
impl Store for KeyringStore {
    async fn close(&self) {
        self.0.rows.close().await;
    }

    async fn examine(&self, now: Timestamp) -> Result<Examined, StoreError> {
        self.0.rows.examine(now).await
    }

    async fn get(&self, table: Table, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        match (table, self.0.rows.get(table, key).await?) {
            (Table::KeyringEntry, _) | (_, None) => Ok(None),
            (Table::Grant, Some(row)) => self.0.filled(row).await,
            (_, Some(record)) => Ok(Some(record)),
        }
    }

    async fn generations(&self, table: Table, keys: &[RecordKey]) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        self.0.rows.generations(table, keys).await
    }

    async fn owned(&self, table: Table, owner: &RecordKey) -> Result<Vec<Record>, StoreError> {
        let rows = self.0.rows.owned(table, owner).await?;
        if table != Table::Grant {
            return Ok(rows);
        }
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            records.extend(self.0.filled(row).await?);
        }
        Ok(records)
    }

    async fn scan(&self, table: Table, after: Option<&RecordKey>, limit: usize) -> Result<Vec<Record>, StoreError> {
        if table == Table::KeyringEntry {
            return Ok(Vec::new());
        }
        if table != Table::Grant {
            return self.0.rows.scan(table, after, limit).await;
        }
        let mut after = after.copied();
        // An empty page is the end, for whoever reads pages: one of which everything is lost must not look like it.
        loop {
            let rows = self.0.rows.scan(table, after.as_ref(), limit).await?;
            let Some(last) = rows.last() else { return Ok(Vec::new()) };
            after = Some(last.key);
            let mut records = Vec::with_capacity(rows.len());
            for row in rows {
                records.extend(self.0.filled(row).await?);
            }
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.0);
        self.to_its_end(async move { inner.apply(writes).await }).await
    }

    async fn log(&self, after: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.0.rows.log(after, limit).await
    }

    async fn newest(&self, before: u64, limit: usize) -> Result<Vec<(u64, LogEntry)>, StoreError> {
        self.0.rows.newest(before, limit).await
    }

    async fn prune(&self, now: Timestamp) -> Result<usize, StoreError> {
        let inner = Arc::clone(&self.0);
        self.to_its_end(async move { inner.prune(now).await }).await
    }

    async fn lease(&self, name: &RecordKey, wait: Duration) -> Result<Option<Lease>, StoreError> {
        self.0.rows.lease(name, wait).await
    }
}

#[cfg(test)]
mod tests;
