//! A copy of the root key, encrypted as age files are (<https://age-encryption.org/v1>), for the day on which the key from
//! outside is gone: a keyring that was reset, a file that nobody backed up.
//!
//! It holds the root key and not the key from outside, because the root key never changes: a copy stays good over every
//! change of the key, and for every backup. Whoever opens it opens the vault, and no change of the key takes that back.

use std::io::{Read as _, Write as _};

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::SecretString;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::change::{BUSY, Changed};
use super::sealed::Key;
use super::source::{Target, on_its_own_thread};
use super::{Config, KeyError, Keys, OpenKeys, meta};
use crate::id::TenantId;
use crate::secret::Secret;
use crate::store::{StoreError, Table, Write};

/// The format of what is in a copy.
const FORMAT: u32 = 1;

/// The longest copy, and the longest file of identities, that is read, in bytes.
pub const MAX_COPY_BYTES: u64 = 64 << 10; // 64 KiB

/// The shortest passphrase that a new copy accepts, in characters. As for a vault's.
const MIN_PASSPHRASE_CHARS: usize = 8;

/// Who shall be able to open a copy.
pub enum Lock {
    /// Whoever knows this.
    Passphrase(Secret),
    /// Whoever holds the identity of one of these (`age1…`).
    Recipients(Vec<String>),
}

/// What a copy is opened with.
pub enum Opener {
    /// The passphrase.
    Passphrase(Secret),
    /// The text of a file of identities (`AGE-SECRET-KEY-1…`), as `age-keygen` writes it.
    Identities(Secret),
}

/// An opened copy.
pub struct Recovered {
    vault: uuid::Uuid,
    root: Key,
}

#[derive(Serialize, Deserialize)]
struct Body {
    obo_recovery: u32,
    vault: uuid::Uuid,
    root: String,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.root.zeroize();
    }
}

fn unusable(text: impl Into<String>) -> KeyError {
    KeyError::Unusable(text.into())
}

impl OpenKeys {
    /// A copy of the root key, as text.
    ///
    /// # Errors
    /// [`KeyError::Unusable`]: a recipient that is none, or a passphrase that is too short.
    pub async fn recovery_copy(&self, lock: Lock) -> Result<String, KeyError> {
        let body = Body { obo_recovery: FORMAT, vault: self.vault, root: BASE64.encode(self.root.expose()) };
        let plain = serde_json::to_vec(&body).map_err(|error| KeyError::Unavailable(error.to_string()))?;
        let plain = Zeroizing::new(plain);
        // A passphrase costs a second of computing.
        on_its_own_thread(move || encrypt(&lock, &plain)).await?
    }
}

fn encrypt(lock: &Lock, plain: &[u8]) -> Result<String, KeyError> {
    let failed = |error: &dyn std::fmt::Display| unusable(format!("the recovery copy cannot be written: {error}"));
    let encryptor = match lock {
        Lock::Passphrase(passphrase) => {
            if passphrase.expose().chars().count() < MIN_PASSPHRASE_CHARS {
                return Err(unusable(format!(
                    "the passphrase is too short; use {MIN_PASSPHRASE_CHARS} characters or more"
                )));
            }
            age::Encryptor::with_user_passphrase(SecretString::from(passphrase.expose().to_owned()))
        }
        Lock::Recipients(names) => {
            let mut recipients = Vec::new();
            for name in names {
                let recipient = name.parse::<age::x25519::Recipient>();
                recipients.push(recipient.map_err(|_| {
                    unusable(format!("{name} is not a recipient of age; it begins with age1, and age-keygen prints it"))
                })?);
            }
            age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as &dyn age::Recipient))
                .map_err(|error| failed(&error))?
        }
    };
    let write = || -> std::io::Result<Vec<u8>> {
        let armored = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armored)?;
        writer.write_all(plain)?;
        writer.finish()?.finish()
    };
    let text = write().map_err(|error| failed(&error))?;
    String::from_utf8(text).map_err(|error| failed(&error))
}

impl Recovered {
    /// Opens a copy.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] when it is none, or does not open with this.
    pub async fn open(copy: Vec<u8>, with: Opener) -> Result<Self, KeyError> {
        on_its_own_thread(move || decrypt(&copy, &with)).await?
    }
}

fn decrypt(copy: &[u8], with: &Opener) -> Result<Recovered, KeyError> {
    let no_copy = || unusable("that is not a recovery copy of a vault");
    let decryptor = age::Decryptor::new_buffered(ArmoredReader::new(copy)).map_err(|_| no_copy())?;
    let wants_passphrase = decryptor.is_scrypt();
    let reader = match with {
        Opener::Passphrase(_) if !wants_passphrase => {
            return Err(unusable("this recovery copy opens with an identity; name its file with --identity"));
        }
        Opener::Identities(_) if wants_passphrase => {
            return Err(unusable("this recovery copy opens with a passphrase; leave --identity away"));
        }
        Opener::Passphrase(passphrase) => {
            let identity = age::scrypt::Identity::new(SecretString::from(passphrase.expose().to_owned()));
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
        }
        Opener::Identities(text) => {
            let mut identities = Vec::new();
            for line in text.expose().lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let identity = line.parse::<age::x25519::Identity>();
                // Not the parser's words: the line is a secret.
                identities.push(identity.map_err(|_| unusable("the file of identities has a line that is none"))?);
            }
            decryptor.decrypt(identities.iter().map(|identity| identity as &dyn age::Identity))
        }
    };
    let mut reader = reader.map_err(|_| {
        unusable(if wants_passphrase {
            "that is not the passphrase of this recovery copy; try again"
        } else {
            "none of these identities opens this recovery copy"
        })
    })?;
    let mut plain = Zeroizing::new(Vec::with_capacity(1 << 10));
    reader.by_ref().take(MAX_COPY_BYTES).read_to_end(&mut plain).map_err(|_| no_copy())?;
    let body: Body = serde_json::from_slice(&plain).map_err(|_| no_copy())?;
    if body.obo_recovery > FORMAT {
        return Err(unusable("this recovery copy was written by a newer obo; run the newer obo"));
    }
    let root = Zeroizing::new(BASE64.decode(&body.root).map_err(|_| no_copy())?);
    Ok(Recovered { vault: body.vault, root: Key::from_bytes(&root).ok_or_else(no_copy)? })
}

impl Keys {
    /// Whether a copy opens this vault: it is asked, not believed.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] when it does not.
    pub async fn opens_with(&self, copy: &Recovered) -> Result<(), KeyError> {
        let meta = self.store.get(Table::Meta, &meta::KEY).await?;
        // A key record that is damaged or gone is nothing that a copy needs.
        let meta = meta.and_then(|record| meta::Meta::parse(&record.sealed).ok());
        let another = || unusable("that is a recovery copy of another vault");
        if meta.is_some_and(|meta| meta.vault != copy.vault) {
            return Err(another());
        }
        let keys = OpenKeys::new(self.store.clone(), copy.root.clone(), copy.vault, String::new());
        match keys.load(&TenantId::default_tenant()).await {
            Ok(Some(_)) => Ok(()),
            // A vault of which there is a copy has a data key of the default tenant: the note of the copy is sealed with it.
            Ok(None) | Err(KeyError::DoesNotOpen) => Err(another()),
            Err(error) => Err(error),
        }
    }

    /// Makes the key that `to` names the vault's key, without the one that it has: a copy opens it. The vault is open
    /// afterwards.
    ///
    /// # Errors
    /// See [`KeyError`]. The vault opens with the key that it had, as before.
    ///
    /// # Cancellation
    /// As [`Keys::change_to`]; the same can be done again.
    pub async fn recover_to(&self, copy: &Recovered, to: &Config) -> Result<Changed, KeyError> {
        let _lease = self.only_one().await?;
        self.opens_with(copy).await?;
        let record = self.store.get(Table::Meta, &meta::KEY).await?;
        let was = record.as_ref().and_then(|record| meta::Meta::parse(&record.sealed).ok());
        let mut next = meta::Meta::of(copy.vault, to.source, self.outside.cost());
        let key = self.outside.key(to, Target::Next(&next)).await?;
        next.wrap(&key, &copy.root)?;
        let new = next.record()?;
        let write = match record {
            Some(record) => Write::Replace(crate::store::Record { generation: record.generation, ..new }),
            None => Write::Insert(new),
        };
        match self.store.apply(vec![write]).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Err(KeyError::Unavailable(BUSY.to_owned())),
            Err(error) => return Err(error.into()),
        }
        tracing::info!(vault = %next.vault, source = next.source.as_str(), "vault.recovered");
        let left = self.outside.settle(&next, was.as_ref().map_or(to.source, |was| was.source)).await.err();
        let open = OpenKeys::new(self.store.clone(), copy.root.clone(), next.vault, next.key_id.clone());
        // Open already, where this process opened it with the old key.
        let _ = self.open.set(std::sync::Arc::new(open));
        let from = was.map(|was| was.key_id).filter(|id| *id != next.key_id);
        Ok(Changed { from, to: next.key_id, left: left.map(|error| error.to_string()) })
    }
}
