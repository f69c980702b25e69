//! The threads that own the connections: one writes, two read.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::JobError;
use super::schema;
use crate::store::StoreError;

/// Most jobs that share one commit.
const MAX_BATCH: usize = 256;

/// Threads that read. Reads take microseconds; a second thread is there so that a long scan holds nobody up.
const READERS: usize = 2;

/// Runs one job inside the open transaction, and returns how to answer whoever waits.
type WriteJob = Box<dyn FnOnce(&Connection) -> Result<Answer, (JobError, Answer)> + Send>;

/// Tells the waiting caller how it ended, once that is known.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The writing thread.
pub(super) struct Writer(Crew<WriteJob>);

impl Writer {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel();
        let thread = spawn("obo-store-write", move || write_all(&connection, &receiver))?;
        Ok(Self(Crew { jobs: Some(sender), threads: vec![thread] }))
    }

    /// Does `job` in a transaction and returns once it is on the disk.
    pub(super) async fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Box::new(move |db: &Connection| match job(db) {
            Ok(value) => Ok(Box::new(move |end: Result<(), StoreError>| {
                let _ = reply.send(end.map(|()| value));
            }) as Answer),
            Err(error) => Err((
                error,
                Box::new(move |end: Result<(), StoreError>| {
                    if let Err(error) = end {
                        let _ = reply.send(Err(error));
                    }
                }) as Answer,
            )),
        }))?;
        answer.await.map_err(|_| stopped())?
    }
}

/// Takes jobs until the store is dropped, as many at a time as have queued up.
fn write_all(db: &Connection, jobs: &mpsc::Receiver<WriteJob>) {
    while let Ok(first) = jobs.recv() {
        let batch = std::iter::once(first).chain(jobs.try_iter().take(MAX_BATCH - 1)).collect();
        commit_batch(db, batch);
    }
}

/// Commits a batch as one transaction. A job that fails by itself is undone alone; when the database fails, all are.
fn commit_batch(db: &Connection, batch: Vec<WriteJob>) {
    let mut done: Vec<Answer> = Vec::with_capacity(batch.len());
    let mut undone: Vec<(Answer, StoreError)> = Vec::new();

    let outcome = (|| {
        db.execute_batch("BEGIN IMMEDIATE")?;
        for job in batch {
            db.execute_batch("SAVEPOINT job")?;
            match job(db) {
                Ok(answer) => {
                    done.push(answer);
                    db.execute_batch("RELEASE job")?;
                }
                Err((JobError::Database(error), answer)) => {
                    done.push(answer);
                    return Err(error);
                }
                Err((JobError::Conflict, answer)) => {
                    undone.push((answer, StoreError::Conflict));
                    db.execute_batch("ROLLBACK TO job; RELEASE job")?;
                }
                Err((JobError::Refused(text), answer)) => {
                    undone.push((answer, StoreError::Unavailable(text)));
                    db.execute_batch("ROLLBACK TO job; RELEASE job")?;
                }
            }
        }
        db.execute_batch("COMMIT")
    })();

    let outcome = outcome.map_err(|error: rusqlite::Error| {
        // A full disk may have ended the transaction already (SQLite, "Response To Errors Within A Transaction").
        if !db.is_autocommit() {
            let _ = db.execute_batch("ROLLBACK");
        }
        tracing::error!(%error, jobs = done.len(), "store.write_failed");
        StoreError::Unavailable(format!("the store cannot be written: {error}"))
    });
    for answer in done {
        answer(outcome.clone());
    }
    for (answer, error) in undone {
        answer(Err(error));
    }
    // Jobs that were not reached after a failure drop their reply, which their callers see as `stopped`.
}

/// The reading threads.
pub(super) struct Readers(Crew<ReadJob>);

type ReadJob = Box<dyn FnOnce(Result<&Connection, &StoreError>) + Send>;

impl Readers {
    pub(super) fn start(database: PathBuf) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let (receiver, database) = (Arc::clone(&receiver), database.clone());
            threads.push(spawn("obo-store-read", move || read_all(&database, &receiver))?);
        }
        Ok(Self(Crew { jobs: Some(sender), threads }))
    }

    /// Runs a query.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Box::new(move |db: Result<&Connection, &StoreError>| {
            let result = match db {
                Ok(db) => {
                    query(db).map_err(|error| StoreError::Unavailable(format!("the store cannot be read: {error}")))
                }
                Err(error) => Err(error.clone()),
            };
            let _ = reply.send(result);
        }))?;
        answer.await.map_err(|_| stopped())?
    }
}

fn read_all(database: &std::path::Path, jobs: &Mutex<mpsc::Receiver<ReadJob>>) {
    // Opened with the first job, so that opening a store costs nothing for those who never read.
    let mut connection: Option<Connection> = None;
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let opened = match &connection {
            Some(_) => Ok(()),
            None => open_reader(database).map(|new| connection = Some(new)),
        };
        match (opened, &connection) {
            (Ok(()), Some(db)) => job(Ok(db)),
            (Err(error), _) => job(Err(&error)),
            (Ok(()), None) => job(Err(&stopped())),
        }
    }
}

pub(super) fn open_reader(database: &std::path::Path) -> Result<Connection, StoreError> {
    schema::connect(database)
        .and_then(|db| db.pragma_update(None, "query_only", true).map(|()| db))
        .map_err(|error| StoreError::Unavailable(format!("cannot open {} for reading: {error}", database.display())))
}

/// Threads that take jobs until it is dropped. Dropping waits for the jobs that were handed over, so that a store that
/// is gone no longer touches its files.
struct Crew<J> {
    jobs: Option<mpsc::Sender<J>>,
    threads: Vec<JoinHandle<()>>,
}

impl<J> Crew<J> {
    fn send(&self, job: J) -> Result<(), StoreError> {
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(stopped)
    }
}

impl<J> Drop for Crew<J> {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| StoreError::Unavailable(format!("cannot start a thread for the store: {error}")))
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store did not get to it; try again".to_owned())
}
