//! The operating system's keyring, which may ask a person, hang, or answer "no such entry" while it is locked.
//!
//! Entries are text: some keyrings keep nothing else, and one of them no more than 2560 bytes. Calls run on a thread of
//! their own that nobody waits for: a call that hangs must hold up neither a worker thread nor the end of the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use ::keyring::Error;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::sync::oneshot;

use crate::secret::Secret;

/// The service name of every entry.
pub const SERVICE: &str = "obo";

/// How long a call may take when nobody is there to answer an unlock prompt.
pub const ALONE: Duration = Duration::from_secs(3);

/// How long a call may take when a person may have to unlock the keyring.
pub const ATTENDED: Duration = Duration::from_secs(120);

/// Blocking access to entries of [`SERVICE`].
pub trait Ring: Send + Sync {
    /// Reads an entry.
    fn get(&self, user: &str) -> Result<Option<Secret>, RingError>;
    /// Writes an entry.
    fn set(&self, user: &str, text: &Secret) -> Result<(), RingError>;
    /// Removes an entry.
    fn delete(&self, user: &str) -> Result<(), RingError>;
}

/// What went wrong, in words that hold nothing of the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingError(pub String);

/// Why the keyring did not do it. It may work later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Down {
    /// It says no, in these words.
    Fails(String),
    /// It has not answered in time.
    Silent,
}

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fails(text) => write!(f, "the OS keyring does not work here: {text}; unlock or start it"),
            Self::Silent => f.write_str(
                "the OS keyring does not answer; it may be waiting for somebody to unlock it: unlock it, then try again",
            ),
        }
    }
}

/// A keyring behind its thread. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    ring: Arc<dyn Ring>,
    jobs: Arc<Mutex<Option<mpsc::Sender<Job>>>>,
    /// A call has outlived its deadline and holds the thread: more calls would only queue behind it.
    stuck: Arc<AtomicBool>,
    /// How long a call may take.
    pub deadline: Duration,
}

type Job = Box<dyn FnOnce(&dyn Ring) + Send>;

impl Keyring {
    /// The platform's, with somebody there to unlock it or not.
    pub fn of_platform(attended: bool) -> Self {
        let deadline = if attended { ATTENDED } else { ALONE };
        Self { deadline, ..Self::new(Arc::new(OsRing)) }
    }

    /// Over a ring, with nobody there to unlock it.
    pub fn new(ring: Arc<dyn Ring>) -> Self {
        Self { ring, jobs: Arc::default(), stuck: Arc::default(), deadline: ALONE }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// See [`Down`].
    pub async fn get(&self, user: String) -> Result<Option<Secret>, Down> {
        self.run(move |ring| ring.get(&user)).await
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// See [`Down`].
    pub async fn set(&self, user: String, text: Secret) -> Result<(), Down> {
        self.run(move |ring| ring.set(&user, &text)).await
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// See [`Down`].
    pub async fn delete(&self, user: String) -> Result<(), Down> {
        self.run(move |ring| ring.delete(&user)).await
    }

    /// Writes bytes, and believes it only after reading them back: a keyring that says yes and forgets would lose them.
    ///
    /// # Errors
    /// See [`Down`].
    pub async fn keep(&self, user: String, bytes: &[u8]) -> Result<(), Down> {
        let text = Secret::new(BASE64.encode(bytes));
        self.set(user.clone(), text.clone()).await?;
        match self.get(user).await? {
            Some(found) if found.matches(&text) => Ok(()),
            _ => Err(Down::Fails("it did not give back what it was given".to_owned())),
        }
    }

    /// Reads what [`Keyring::keep`] wrote. What is not that is no bytes at all.
    ///
    /// # Errors
    /// See [`Down`].
    pub async fn kept(&self, user: String) -> Result<Option<Vec<u8>>, Down> {
        let text = self.get(user).await?;
        Ok(text.map(|text| BASE64.decode(text.expose()).unwrap_or_default()))
    }

    /// The same keyring behind another thread.
    pub fn on_another_thread(&self) -> Self {
        Self { ring: Arc::clone(&self.ring), deadline: self.deadline, jobs: Arc::default(), stuck: Arc::default() }
    }

    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Ring) -> Result<T, RingError> + Send + 'static,
    ) -> Result<T, Down> {
        if self.stuck.load(Ordering::Acquire) {
            return Err(Down::Silent);
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
            Ok(Ok(Err(RingError(text)))) => Err(Down::Fails(text)),
            Ok(Err(_)) => Err(Down::Fails("the call ended without an answer".to_owned())),
            Err(_) => {
                self.stuck.store(true, Ordering::Release);
                Err(Down::Silent)
            }
        }
    }

    fn hand_over(&self, job: Job) -> Result<(), Down> {
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
            .map_err(|error| Down::Fails(error.to_string()))?;
        let _ = sender.send(job);
        *jobs = Some(sender);
        Ok(())
    }
}

/// The platform's keyring.
pub struct OsRing;

impl Ring for OsRing {
    fn get(&self, user: &str) -> Result<Option<Secret>, RingError> {
        with_entry(user, |entry| match entry.get_password() {
            Ok(text) => Ok(Some(Secret::new(text))),
            Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(error),
        })
    }

    fn set(&self, user: &str, text: &Secret) -> Result<(), RingError> {
        with_entry(user, |entry| entry.set_password(text.expose()))
    }

    fn delete(&self, user: &str) -> Result<(), RingError> {
        with_entry(user, |entry| match entry.delete_credential() {
            Ok(()) | Err(Error::NoEntry) => Ok(()),
            Err(error) => Err(error),
        })
    }
}

fn with_entry<T>(user: &str, act: impl Fn(&keyring_core::Entry) -> Result<T, Error>) -> Result<T, RingError> {
    let entry = || {
        // Chooses the platform's store, once. Whether that went well shows below.
        let _ = ::keyring::v1::Entry::store_status();
        keyring_core::Entry::new(SERVICE, user)
    };
    let done = match entry().and_then(|entry| act(&entry)) {
        Err(Error::PlatformFailure(_) | Error::NoDefaultStore) => {
            renew().and_then(|()| entry()).and_then(|entry| act(&entry))
        }
        other => other,
    };
    done.map_err(|error| describe(&error))
}

/// The library speaks to the service over one connection, which it opens once: a service that was not there at that
/// time, or was started again since, would be out of reach until the process ends.
fn renew() -> Result<(), Error> {
    #[cfg(target_os = "linux")]
    keyring_core::set_default_store(zbus_secret_service_keyring_store::Store::new()?);
    Ok(())
}

/// The library's errors may hold the bytes of an entry: only texts that never do are passed on.
fn describe(error: &Error) -> RingError {
    RingError(match error {
        Error::PlatformFailure(cause) => format!("it failed ({})", one_line(&cause.to_string())),
        Error::NoStorageAccess(cause) => format!("it is locked or refuses access ({})", one_line(&cause.to_string())),
        Error::NoEntry => "it has no such entry".to_owned(),
        Error::BadEncoding(_) | Error::BadDataFormat(..) => "its entry is not text".to_owned(),
        Error::Ambiguous(_) => "it has several entries for this vault".to_owned(),
        Error::TooLong(_, most) => format!("it takes no more than {most} bytes in one entry"),
        Error::NoDefaultStore => "there is none".to_owned(),
        _ => "it does not support this".to_owned(),
    })
}

/// A platform's message, cut to what fits a log line.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}
