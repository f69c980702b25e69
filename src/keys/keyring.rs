//! The operating system's keyring, which may ask a person, hang, or answer "no such entry" while it is locked.
//!
//! It holds one 32-byte key as base64 text: some keyrings keep only text, and one of them no more than 2560 bytes.
//! Calls run on a thread of their own that nobody waits for: a call that hangs must hold up neither a worker thread
//! nor the end of the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use super::KeyError;
use crate::secret::Secret;

/// The service name of every entry.
pub(super) const SERVICE: &str = "obo";

/// How long a call may take when nobody is there to answer an unlock prompt.
pub(super) const ALONE: Duration = Duration::from_secs(3);

/// How long a call may take when a person may have to unlock the keyring.
pub(super) const ATTENDED: Duration = Duration::from_secs(120);

/// Blocking access to entries of [`SERVICE`].
pub(super) trait Ring: Send + Sync {
    /// Reads an entry.
    fn get(&self, user: &str) -> Result<Option<Secret>, RingError>;
    /// Writes an entry.
    fn set(&self, user: &str, text: &Secret) -> Result<(), RingError>;
    /// Removes an entry.
    fn delete(&self, user: &str) -> Result<(), RingError>;
}

/// What went wrong, in words that hold nothing of the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RingError(pub(super) String);

/// A keyring behind its thread. Cheap to clone.
#[derive(Clone)]
pub(super) struct Keyring {
    ring: Arc<dyn Ring>,
    jobs: Arc<Mutex<Option<mpsc::Sender<Job>>>>,
    /// A call has outlived its deadline and holds the thread: more calls would only queue behind it.
    stuck: Arc<AtomicBool>,
    pub(super) deadline: Duration,
}

type Job = Box<dyn FnOnce(&dyn Ring) + Send>;

impl Keyring {
    pub(super) fn new(ring: Arc<dyn Ring>) -> Self {
        Self { ring, jobs: Arc::default(), stuck: Arc::default(), deadline: ALONE }
    }

    /// Reads an entry.
    pub(super) async fn get(&self, user: String) -> Result<Option<Secret>, KeyError> {
        self.run(move |ring| ring.get(&user)).await
    }

    /// Writes an entry.
    pub(super) async fn set(&self, user: String, text: Secret) -> Result<(), KeyError> {
        self.run(move |ring| ring.set(&user, &text)).await
    }

    /// Removes an entry.
    pub(super) async fn delete(&self, user: String) -> Result<(), KeyError> {
        self.run(move |ring| ring.delete(&user)).await
    }

    /// The same keyring behind another thread.
    pub(super) fn on_another_thread(&self) -> Self {
        Self { ring: Arc::clone(&self.ring), deadline: self.deadline, jobs: Arc::default(), stuck: Arc::default() }
    }

    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Ring) -> Result<T, RingError> + Send + 'static,
    ) -> Result<T, KeyError> {
        if self.stuck.load(Ordering::Acquire) {
            return Err(silent());
        }
        let (reply, answer) = oneshot::channel();
        self.hand_over(Box::new(move |ring| {
            // A caller that gave up must not find later that its call was made after all.
            if !reply.is_closed() {
                let _ = reply.send(call(ring));
            }
        }))?;
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(RingError(text)))) => Err(unavailable(&text)),
            Ok(Err(_)) => Err(unavailable("the call ended without an answer")),
            Err(_) => {
                self.stuck.store(true, Ordering::Release);
                Err(silent())
            }
        }
    }

    fn hand_over(&self, job: Job) -> Result<(), KeyError> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let job = match jobs.as_ref() {
            Some(thread) => match thread.send(job) {
                Ok(()) => return Ok(()),
                // The thread ended with a panic of the platform's library; the next one may do better.
                Err(mpsc::SendError(job)) => job,
            },
            None => job,
        };
        let (sender, receiver) = mpsc::channel::<Job>();
        let (ring, stuck) = (Arc::clone(&self.ring), Arc::clone(&self.stuck));
        std::thread::Builder::new()
            .name("obo-keyring".to_owned())
            .spawn(move || {
                for job in receiver {
                    job(ring.as_ref());
                    stuck.store(false, Ordering::Release);
                }
            })
            .map_err(|error| unavailable(&error.to_string()))?;
        let _ = sender.send(job);
        *jobs = Some(sender);
        Ok(())
    }
}

fn unavailable(text: &str) -> KeyError {
    KeyError::Unavailable(format!(
        "the OS keyring does not work here: {text}; unlock or start it, or for a new vault choose another \
         [vault.key] source"
    ))
}

fn silent() -> KeyError {
    KeyError::Unavailable(
        "the OS keyring does not answer; it may be waiting for somebody to unlock it: unlock it, then try again"
            .to_owned(),
    )
}

/// The platform's keyring.
pub(super) struct OsRing;

impl Ring for OsRing {
    fn get(&self, user: &str) -> Result<Option<Secret>, RingError> {
        match entry(user)?.get_password() {
            Ok(text) => Ok(Some(Secret::new(text))),
            Err(::keyring::Error::NoEntry) => Ok(None),
            Err(error) => Err(describe(&error)),
        }
    }

    fn set(&self, user: &str, text: &Secret) -> Result<(), RingError> {
        entry(user)?.set_password(text.expose()).map_err(|error| describe(&error))
    }

    fn delete(&self, user: &str) -> Result<(), RingError> {
        match entry(user)?.delete_credential() {
            Ok(()) | Err(::keyring::Error::NoEntry) => Ok(()),
            Err(error) => Err(describe(&error)),
        }
    }
}

fn entry(user: &str) -> Result<::keyring::v1::Entry, RingError> {
    // A failed start is remembered by the library until the process ends.
    if let Err(error) = ::keyring::v1::Entry::store_status() {
        return Err(RingError(format!("{} (obo asks again when it is started again)", describe(error).0)));
    }
    ::keyring::v1::Entry::new(SERVICE, user).map_err(|error| describe(&error))
}

/// The library's errors may hold the bytes of an entry: only texts that never do are passed on.
fn describe(error: &::keyring::Error) -> RingError {
    use ::keyring::Error;
    RingError(match error {
        Error::PlatformFailure(cause) => format!("it failed ({})", one_line(&cause.to_string())),
        Error::NoStorageAccess(cause) => format!("it is locked or refuses access ({})", one_line(&cause.to_string())),
        Error::NoEntry => "it has no such entry".to_owned(),
        Error::BadEncoding(_) | Error::BadDataFormat(..) => "its entry is not text".to_owned(),
        Error::Ambiguous(_) => "it has several entries for this vault".to_owned(),
        Error::NoDefaultStore => "there is none".to_owned(),
        _ => "it does not support this".to_owned(),
    })
}

/// A platform's message, cut to what fits a log line.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}
