//! Tokens that were verified before: a signature is checked once, not with every request.
//!
//! The key is a hash of the whole token, so what is found was verified byte for byte. Nothing outlives the token, nor the
//! time until which the keys are believed without asking: a withdrawn key is noticed as early as without this.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::identity::Subject;

/// How many tokens are remembered; beyond it the longest unused gives way. About 600 bytes each.
const MAX_TOKENS: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// Verified tokens.
pub(super) struct Seen(Mutex<LruCache<[u8; 32], Entry>>);

struct Entry {
    subject: Subject,
    until: Timestamp,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(MAX_TOKENS)))
    }

    /// Whom a token is about, if it was verified before and that still counts.
    pub(super) fn get(&self, token: &str, now: Timestamp) -> Option<Subject> {
        let key = key_of(token);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.get(&key)?;
        if now < entry.until {
            return Some(entry.subject.clone());
        }
        seen.pop(&key);
        None
    }

    /// Remembers a token that was just verified, until then.
    pub(super) fn put(&self, token: &str, subject: Subject, until: Timestamp) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.put(key_of(token), Entry { subject, until });
    }
}

fn key_of(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
