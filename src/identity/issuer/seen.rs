//! Tokens that were looked at before: a signature is checked once, and an issuer is asked once, not with every request.
//!
//! The key is a hash of the whole token, so what is found was looked at byte for byte. Nothing outlives the time that
//! whoever put it there gave it.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use lru::LruCache;
use sha2::{Digest, Sha256};

/// How many tokens are remembered; beyond it the longest unused gives way. About 600 bytes each.
pub const MAX_SEEN_TOKENS: usize = 10_000;

/// What is known of tokens.
pub(super) struct Seen<T>(Mutex<LruCache<[u8; 32], Entry<T>>>);

struct Entry<T> {
    known: T,
    until: Timestamp,
}

impl<T: Clone> Seen<T> {
    pub(super) fn new() -> Self {
        const BOUND: NonZeroUsize = NonZeroUsize::new(MAX_SEEN_TOKENS).unwrap();
        Self(Mutex::new(LruCache::new(BOUND)))
    }

    /// What is known of a token, if that still counts.
    pub(super) fn get(&self, token: &str, now: Timestamp) -> Option<T> {
        let key = key_of(token);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.get(&key)?;
        if now < entry.until {
            return Some(entry.known.clone());
        }
        seen.pop(&key);
        None
    }

    /// Remembers what was just learned of a token, until then.
    pub(super) fn put(&self, token: &str, known: T, until: Timestamp) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.put(key_of(token), Entry { known, until });
    }
}

fn key_of(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_gives_way() {
        let seen = Seen::new();
        let (now, until) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        for number in 0..MAX_SEEN_TOKENS {
            seen.put(&number.to_string(), number, until);
        }
        assert_eq!(seen.get("0", now), Some(0));
        seen.put("one more", 0, until);
        assert_eq!((seen.get("0", now), seen.get("1", now), seen.get("2", now)), (Some(0), None, Some(2)));
    }
}
