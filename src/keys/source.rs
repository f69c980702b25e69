//! Where the key from outside comes from.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::meta::{Cost, Meta, id_of};
use super::sealed::{KEY_BYTES, Key};
use super::{Ask, Config, KeyError, Prompt, SourceName};
use crate::os_keyring::{ATTENDED, Keyring, OsRing, Ring, SERVICE};
use crate::secret::{Secret, random_text};

/// The variable of `source = "env"` where obo.toml names none.
const DEFAULT_ENV: &str = "OBO_VAULT_KEY";

/// The variable that holds the passphrase where nobody can be asked.
const PASSPHRASE_ENV: &str = "OBO_VAULT_PASSPHRASE";

/// The variable that holds the passphrase that a vault is to have next.
const NEXT_PASSPHRASE_ENV: &str = "OBO_VAULT_NEW_PASSPHRASE";

/// The longest key file read, in bytes: 32 raw bytes, or their base64 with white space around it.
const MAX_KEY_FILE_BYTES: u64 = 256;

/// The shortest passphrase that a new vault accepts, in characters (NIST SP 800-63B §5.1.1.2).
const MIN_PASSPHRASE_CHARS: usize = 8;

/// The vault whose key is wanted, and whether a key may be made for it.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// The vault is being made.
    New(&'a Meta),
    /// The vault exists: its key is found, or it is an error.
    Existing(&'a Meta),
    /// The vault exists, and this is to be its key from now on.
    Next(&'a Meta),
}

/// Reads an environment variable.
type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What is outside the process: the keyring, the environment, a person. Cheap to clone.
#[derive(Clone)]
pub(super) struct Outside {
    pub(super) keyring: Keyring,
    env: Environment,
    prompt: Option<Prompt>,
    cost: Cost,
}

impl Outside {
    /// The real thing.
    pub(super) fn real() -> Self {
        Self::of(Arc::new(OsRing), Arc::new(|name: &str| std::env::var(name).ok()), Cost::NEW)
    }

    /// Something that stands in for it, in tests.
    pub(super) fn of(ring: Arc<dyn Ring>, env: Environment, cost: Cost) -> Self {
        Self { keyring: Keyring::new(ring), env, prompt: None, cost }
    }

    /// Lets a person be asked.
    pub(super) fn ask_with(&mut self, prompt: Prompt) {
        self.prompt = Some(prompt);
        self.keyring.deadline = ATTENDED;
    }

    /// What a passphrase of a new vault shall cost.
    pub(super) fn cost(&self) -> Cost {
        self.cost
    }

    /// The key of a vault.
    pub(super) async fn key(&self, config: &Config, target: Target<'_>) -> Result<Key, KeyError> {
        match config.source {
            SourceName::Keyring => match target {
                Target::New(meta) => self.new_in_keyring(meta).await,
                Target::Existing(meta) => self.found_in_keyring(meta).await,
                Target::Next(meta) => self.next_in_keyring(meta).await,
            },
            SourceName::Passphrase => self.by_passphrase(target).await,
            SourceName::File => {
                if matches!(target, Target::Next(_)) {
                    make_file(path_of(config)?)?;
                }
                in_file(config)
            }
            SourceName::Env => self.in_environment(config),
        }
    }

    /// See [`super::Keys::probe`].
    pub(super) async fn probe(&self, config: &Config) -> Result<(), KeyError> {
        match config.source {
            SourceName::Keyring => self.probe_keyring().await,
            SourceName::Passphrase => Ok(()),
            SourceName::File => in_file(config).map(drop),
            SourceName::Env => self.in_environment(config).map(drop),
        }
    }

    async fn found_in_keyring(&self, meta: &Meta) -> Result<Key, KeyError> {
        let user = meta.vault.to_string();
        let text = self.keyring.get(user.clone()).await?;
        let is_the_key = |text: &Secret| decode(text.expose().as_bytes()).is_some_and(|key| id_of(&key) == meta.key_id);
        if text.as_ref().is_none_or(|text| !is_the_key(text))
            // A change of the key that ended before the new key took the old one's place.
            && let Some(next) = self.keyring.get(next_user(meta)).await?.filter(is_the_key)
        {
            return decode(next.expose().as_bytes()).ok_or(KeyError::DoesNotOpen);
        }
        let Some(text) = text else {
            // A keyring that was never unlocked answers the same as one that lost the entry.
            return Err(KeyError::Unusable(format!(
                "the OS keyring has no key for this vault (service \"{SERVICE}\", user \"{user}\"); unlock the \
                 keyring, or restore that entry; obo never makes a second key beside an existing vault"
            )));
        };
        decode(text.expose().as_bytes()).ok_or_else(|| {
            KeyError::Unusable(format!(
                "the OS keyring's entry for this vault (service \"{SERVICE}\", user \"{user}\") is not a key; restore \
                 that entry"
            ))
        })
    }

    async fn new_in_keyring(&self, meta: &Meta) -> Result<Key, KeyError> {
        let user = meta.vault.to_string();
        let key = Key::random();
        let text = encode(&key);
        self.keyring.set(user.clone(), text.clone()).await?;
        // A keyring that says yes and forgets would lock the vault for ever: it is believed only after reading back.
        match self.keyring.get(user.clone()).await? {
            Some(found) if found.matches(&text) => Ok(key),
            _ => {
                let _ = self.keyring.delete(user).await;
                Err(forgetful())
            }
        }
    }

    /// A new key beside the one that the vault opens with. It takes that one's place with [`Outside::settle`].
    async fn next_in_keyring(&self, meta: &Meta) -> Result<Key, KeyError> {
        let key = Key::random();
        self.keep_in_keyring(next_user(meta), &key).await?;
        Ok(key)
    }

    async fn keep_in_keyring(&self, user: String, key: &Key) -> Result<(), KeyError> {
        let text = encode(key);
        self.keyring.set(user.clone(), text.clone()).await?;
        match self.keyring.get(user).await? {
            Some(found) if found.matches(&text) => Ok(()),
            _ => Err(forgetful()),
        }
    }

    /// Puts the vault's key where it belongs in the keyring, after it has become the vault's key; of a key that no longer
    /// is, nothing stays. Only the holder of the vault's lease may do so: another change may be under way.
    pub(super) async fn settle(&self, meta: &Meta, was: SourceName) -> Result<(), KeyError> {
        if meta.source == SourceName::Keyring {
            let key = self.found_in_keyring(meta).await?;
            self.keep_in_keyring(meta.vault.to_string(), &key).await?;
            return Ok(self.keyring.delete(next_user(meta)).await?);
        }
        if was == SourceName::Keyring {
            self.keyring.delete(meta.vault.to_string()).await?;
            self.keyring.delete(next_user(meta)).await?;
        }
        Ok(())
    }

    async fn probe_keyring(&self) -> Result<(), KeyError> {
        let user = format!("probe {}", random_text::<9>());
        let text = encode(&Key::random());
        self.keyring.set(user.clone(), text.clone()).await?;
        let found = self.keyring.on_another_thread().get(user.clone()).await;
        let deleted = self.keyring.delete(user).await;
        match found? {
            Some(found) if found.matches(&text) => Ok(deleted?),
            _ => Err(forgetful()),
        }
    }

    async fn by_passphrase(&self, target: Target<'_>) -> Result<Key, KeyError> {
        let (meta, ask) = match target {
            Target::New(meta) => (meta, Ask::NewPassphrase),
            Target::Existing(meta) => (meta, Ask::Passphrase),
            Target::Next(meta) => (meta, Ask::NextPassphrase),
        };
        let variable = if ask == Ask::NextPassphrase { NEXT_PASSPHRASE_ENV } else { PASSPHRASE_ENV };
        let (salt, cost) = meta.passphrase()?;
        let asked = match self.prompt.clone() {
            Some(prompt) => on_its_own_thread(move || prompt(ask)).await?,
            None => None,
        };
        let passphrase = asked
            .or_else(|| (self.env)(variable).map(Secret::new))
            .filter(|passphrase| !passphrase.expose().is_empty())
            .ok_or_else(|| {
                KeyError::Unusable(format!(
                    "this vault opens with a passphrase, and there is no terminal to ask for it; set {variable}"
                ))
            })?;
        if ask != Ask::Passphrase && passphrase.expose().chars().count() < MIN_PASSPHRASE_CHARS {
            return Err(KeyError::Unusable(format!(
                "the passphrase is too short; use {MIN_PASSPHRASE_CHARS} characters or more"
            )));
        }
        // Hundreds of milliseconds of computing: not on a thread that serves others.
        on_its_own_thread(move || derive(&passphrase, &salt, cost)).await?
    }

    fn in_environment(&self, config: &Config) -> Result<Key, KeyError> {
        let name = config.env.as_deref().unwrap_or(DEFAULT_ENV);
        let text = (self.env)(name).map(Zeroizing::new).ok_or_else(|| {
            KeyError::Unusable(format!(
                "the vault's key should be in the environment variable {name}, which is not set"
            ))
        })?;
        decode(text.as_bytes()).ok_or_else(|| {
            KeyError::Unusable(format!(
                "the environment variable {name} does not hold {KEY_BYTES} bytes in base64; `openssl rand -base64 32` \
                 makes a key for a new vault"
            ))
        })
    }
}

/// The key that was found is not the one that the vault was made with.
pub(super) fn wrong_key(config: &Config, found: &str, wanted: &str) -> KeyError {
    KeyError::Unusable(match config.source {
        SourceName::Passphrase => "that is not the passphrase of this vault; try again".to_owned(),
        source => format!(
            "{} does not hold the key of this vault (its id is {found}, and the vault opens with {wanted}); put the right one \
             back, or set [vault.key] if the key was changed (obo never makes a second key beside an existing vault)",
            match source {
                SourceName::File =>
                    path_of(config).map_or_else(|_| "the key file".to_owned(), |p| p.display().to_string()),
                SourceName::Env => format!("the environment variable {}", config.env.as_deref().unwrap_or(DEFAULT_ENV)),
                SourceName::Keyring | SourceName::Passphrase => "the OS keyring".to_owned(),
            }
        ),
    })
}

/// Whether two configurations name one place.
pub(super) fn same_place(one: &Config, two: &Config) -> bool {
    let name = |config: &Config| config.env.clone().unwrap_or_else(|| DEFAULT_ENV.to_owned());
    let path = |config: &Config| config.path.as_ref().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone()));
    one.source == two.source
        && match one.source {
            SourceName::File => path(one) == path(two),
            SourceName::Env => name(one) == name(two),
            SourceName::Keyring | SourceName::Passphrase => true,
        }
}

fn forgetful() -> KeyError {
    KeyError::Unavailable(
        "the OS keyring did not give back what it was given; choose another [vault.key] source".to_owned(),
    )
}

fn path_of(config: &Config) -> Result<&Path, KeyError> {
    config
        .path
        .as_deref()
        .ok_or_else(|| KeyError::Unusable("[vault.key] has source = \"file\" but no path; set path".to_owned()))
}

fn in_file(config: &Config) -> Result<Key, KeyError> {
    let path = path_of(config)?;
    let unusable = |text: String| KeyError::Unusable(format!("the vault's key file {} {text}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => unusable(
            "is not there; put it back, or for a new vault make one: \
             `(umask 077; openssl rand -base64 32 > FILE)`"
                .to_owned(),
        ),
        _ => unusable(format!("cannot be read: {error}")),
    })?;
    // Asked of the open file, so that it is the one that is read.
    let found = file.metadata().map_err(|error| unusable(format!("cannot be read: {error}")))?;
    if !found.is_file() {
        return Err(unusable("is not a file".to_owned()));
    }
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::MetadataExt::mode(&found);
        if mode & 0o077 != 0 {
            return Err(unusable(format!(
                "can be read by other users (mode {:o}); run `chmod 600 {}`",
                mode & 0o777,
                path.display()
            )));
        }
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_BYTES as usize));
    file.take(MAX_KEY_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| unusable(format!("cannot be read: {error}")))?;
    Key::from_bytes(&bytes)
        .or_else(|| decode(&bytes))
        .ok_or_else(|| unusable(format!("does not hold {KEY_BYTES} raw bytes or their base64")))
}

/// Makes a key file, unless there is one. It appears whole or not at all: a key that is cut off half-way would be a
/// vault's only key.
fn make_file(path: &Path) -> Result<(), KeyError> {
    use std::io::{ErrorKind, Write as _};
    let failed = |error: std::io::Error| {
        KeyError::Unusable(format!("the new key file {} cannot be written: {error}", path.display()))
    };
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let partial = folder.join(format!(".obo-key-{}", random_text::<9>()));
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&partial)?;
        file.write_all(encode(&Key::random()).expose().as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, a link never takes the place of a file that has appeared since.
        match std::fs::hard_link(&partial, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    let _ = std::fs::remove_file(&partial);
    // The name is durable before the vault relies on it.
    #[cfg(unix)]
    let written = written.and_then(|()| std::fs::File::open(folder)?.sync_all());
    written.map_err(failed)
}

/// The keyring's user for a key that is to take the place of the vault's.
fn next_user(meta: &Meta) -> String {
    format!("{} next", meta.vault)
}

fn encode(key: &Key) -> Secret {
    Secret::new(STANDARD.encode(key.expose()))
}

/// 32 bytes from base64 in any of its usual spellings.
fn decode(text: &[u8]) -> Option<Key> {
    let text = text.trim_ascii();
    // Sized before decoding, so that no buffer grows and leaves a copy behind.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 3]);
    [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD]
        .iter()
        .find_map(|engine| engine.decode_slice(text, bytes.as_mut()).ok())
        .and_then(|length| Key::from_bytes(bytes.get(..length)?))
}

/// Argon2id (RFC 9106), version 0x13.
fn derive(passphrase: &Secret, salt: &[u8], cost: Cost) -> Result<Key, KeyError> {
    let failed = |error: argon2::Error| KeyError::Unusable(format!("the passphrase cannot be used: {error}"));
    let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(KEY_BYTES)).map_err(failed)?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase.expose().as_bytes(), salt, key.as_mut())
        .map_err(failed)?;
    Key::from_bytes(key.as_ref()).ok_or(KeyError::DoesNotOpen)
}

/// Runs what blocks on a thread that nothing waits for at the end of the process.
pub(super) async fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, KeyError> {
    let (reply, answer) = oneshot::channel();
    let failed = || KeyError::Unavailable("a thread for the vault's key could not be run".to_owned());
    std::thread::Builder::new()
        .name("obo-key".to_owned())
        .spawn(move || drop(reply.send(work())))
        .map_err(|_| failed())?;
    answer.await.map_err(|_| failed())
}
