//! Secrets are types that cannot be printed, serialised or compared by accident, and that are wiped when dropped.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::id::{Person, ProviderId};

pub mod echo;

/// Text that must never be seen: a token, a client secret, a key in text form.
///
/// There is no `Debug`, `Display` or `Serialize`; [`Secret::expose`] is the one way in, and easy to search for.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over. The caller's other copies are the caller's to wipe.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself. For a request to the party it belongs to, and for sealing; never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in time that does not depend on where the texts differ.
    pub fn matches(&self, other: &Secret) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

/// Bytes that must never be seen: a key, the plaintext of a sealed record.
#[derive(Clone)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// A provider's access token, bound to the person and provider it may be used for.
///
/// Invariant INV-2: the executor compares both with the permit's; a token that met the wrong call would act as
/// somebody else.
#[derive(Clone)]
pub struct AccessToken {
    person: Person,
    provider: ProviderId,
    token: Secret,
}

impl AccessToken {
    /// Binds a token to its owner. Only the vault does this.
    pub fn bind(person: Person, provider: ProviderId, token: Secret) -> Self {
        Self { person, provider, token }
    }

    /// Whose token it is.
    pub fn person(&self) -> &Person {
        &self.person
    }

    /// The provider that issued it.
    pub fn provider(&self) -> &ProviderId {
        &self.provider
    }

    /// The token itself, for the `Authorization` header of a request to its provider.
    pub fn expose(&self) -> &str {
        self.token.expose()
    }
}

/// `N` random bytes from the operating system.
///
/// # Panics
/// Never returns predictable bytes: where the operating system has no randomness, the process ends.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    if getrandom::fill(&mut bytes).is_err() {
        // Going on without randomness would make every state, key and token guessable.
        std::process::abort();
    }
    bytes
}

/// `N` random bytes as base64url text without padding (RFC 4648 §5).
pub fn random_text<const N: usize>() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random::<N>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_is_by_content() {
        assert!(Secret::new("a").matches(&Secret::new("a")));
        assert!(!Secret::new("a").matches(&Secret::new("ab")));
    }

    #[test]
    fn random_texts_differ() {
        assert_ne!(random_text::<16>(), random_text::<16>());
        assert_eq!(random_text::<32>().len(), 43);
    }
}
