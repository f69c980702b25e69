//! The one format of everything that is sealed: XChaCha20-Poly1305 under a header that says which key opens it.
//!
//! ```text
//! [magic "OBO1"][algorithm u8][key id u32, big-endian][nonce 24 bytes][ciphertext][tag 16 bytes]
//! ```
//! The associated data is the header (magic to key id) followed by the [`Context`]. The plaintext is
//! `[length u32, big-endian][bytes][zeros]`, filled up to a multiple of 256 bytes, because the length of a token tells
//! which provider made it. The nonce is random: with 192 bits there is no counter to keep and no number of records
//! after which to change keys (draft-irtf-cfrg-xchacha-03 §2.1).

use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::{Context, KeyError};
use crate::secret::{SecretBytes, random};

/// Bytes of every key.
pub(super) const KEY_BYTES: usize = 32;

/// The longest plaintext that is sealed, in bytes.
pub const MAX_PLAINTEXT_BYTES: usize = 512 << 10; // 512 KiB

/// NEVER CHANGE: nothing that was sealed before would open.
const MAGIC: &[u8; 4] = b"OBO1";
/// The algorithm number of XChaCha20-Poly1305. NEVER REUSE A NUMBER.
const XCHACHA20_POLY1305: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 4;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const LENGTH_BYTES: usize = 4;
const BUCKET_BYTES: usize = 256;

/// A key of this vault.
#[derive(Clone)]
pub(super) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl Key {
    /// A new key.
    pub(super) fn random() -> Self {
        Self(Zeroizing::new(random()))
    }

    /// The key that these bytes are; none when there are not 32.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        (bytes.len() == KEY_BYTES).then(|| key.copy_from_slice(bytes))?;
        Some(Self(key))
    }

    pub(super) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// A key for one purpose, derived from this one (HKDF-SHA256, RFC 5869). Different labels give unrelated keys.
    pub(super) fn derive(&self, label: &[&[u8]]) -> Key {
        let mut derived = Zeroizing::new([0; KEY_BYTES]);
        #[expect(clippy::expect_used, reason = "HKDF-SHA256 gives up to 8160 bytes; 32 are asked for")]
        hkdf::Hkdf::<sha2::Sha256>::new(None, self.expose())
            .expand_multi_info(label, derived.as_mut())
            .expect("32 bytes are fewer than 8160");
        Key(derived)
    }

    /// Seals `plaintext`; it opens with this key and context only. `id` is written into the header.
    pub(super) fn seal(&self, id: u32, context: &Context, plaintext: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.seal_with_nonce(id, context, plaintext, random())
    }

    fn seal_with_nonce(
        &self,
        id: u32,
        context: &Context,
        plaintext: &[u8],
        nonce: [u8; NONCE_BYTES],
    ) -> Result<Vec<u8>, KeyError> {
        if plaintext.len() > MAX_PLAINTEXT_BYTES {
            return Err(KeyError::Unusable(format!(
                "a record of {} bytes is longer than the {MAX_PLAINTEXT_BYTES} bytes that obo seals",
                plaintext.len()
            )));
        }
        let padded = (LENGTH_BYTES + plaintext.len()).next_multiple_of(BUCKET_BYTES);
        // One buffer of the final size: the plaintext is turned into ciphertext where it stands, and no copy is left.
        let mut sealed = Vec::with_capacity(HEADER_BYTES + NONCE_BYTES + padded + TAG_BYTES);
        sealed.extend_from_slice(MAGIC);
        sealed.push(XCHACHA20_POLY1305);
        sealed.extend_from_slice(&id.to_be_bytes());
        let associated = associated_data(&sealed, context);
        sealed.extend_from_slice(&nonce);
        let start = sealed.len();
        sealed.extend_from_slice(&(plaintext.len() as u32).to_be_bytes());
        sealed.extend_from_slice(plaintext);
        sealed.resize(start + padded, 0);
        let tag = XChaCha20Poly1305::new(self.expose().into())
            .encrypt_inout_detached(&XNonce::from(nonce), &associated, (&mut sealed[start..]).into())
            .map_err(|_| KeyError::DoesNotOpen)?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens what [`Key::seal`] sealed.
    pub(super) fn open(&self, context: &Context, sealed: &Sealed<'_>) -> Result<SecretBytes, KeyError> {
        let mut plaintext = Zeroizing::new(sealed.ciphertext.to_vec());
        XChaCha20Poly1305::new(self.expose().into())
            .decrypt_inout_detached(
                &XNonce::from(*sealed.nonce),
                &associated_data(sealed.header, context),
                plaintext.as_mut_slice().into(),
                &Tag::from(*sealed.tag),
            )
            .map_err(|_| KeyError::DoesNotOpen)?;
        let (length, rest) = plaintext.split_first_chunk::<LENGTH_BYTES>().ok_or(KeyError::DoesNotOpen)?;
        let bytes = rest.get(..u32::from_be_bytes(*length) as usize).ok_or(KeyError::DoesNotOpen)?;
        Ok(SecretBytes::new(bytes.to_vec()))
    }
}

/// A sealed record, taken apart but not opened. **Says nothing about whether it is genuine.**
#[derive(Clone, Copy)]
pub struct Sealed<'a> {
    header: &'a [u8; HEADER_BYTES],
    nonce: &'a [u8; NONCE_BYTES],
    ciphertext: &'a [u8],
    tag: &'a [u8; TAG_BYTES],
}

impl<'a> Sealed<'a> {
    /// Takes a sealed record apart. None when it is not one: another magic or algorithm, or a length that sealing
    /// never makes.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>()?;
        let longest = (LENGTH_BYTES + MAX_PLAINTEXT_BYTES).next_multiple_of(BUCKET_BYTES);
        let ours = header.starts_with(MAGIC)
            && header[MAGIC.len()] == XCHACHA20_POLY1305
            && !ciphertext.is_empty()
            && ciphertext.len().is_multiple_of(BUCKET_BYTES)
            && ciphertext.len() <= longest;
        ours.then_some(Self { header, nonce, ciphertext, tag })
    }

    /// The id of the key that it says opens it.
    pub fn key_id(&self) -> u32 {
        let [.., a, b, c, d] = *self.header;
        u32::from_be_bytes([a, b, c, d])
    }
}

fn associated_data(header: &[u8], context: &Context) -> Vec<u8> {
    [header, context.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Table;

    fn key(byte: u8) -> Key {
        Key::from_bytes(&[byte; KEY_BYTES]).unwrap()
    }

    fn context() -> Context {
        Context::of(Table::Grant).with(b"acme").with(b"alice")
    }

    fn open(key: &Key, context: &Context, bytes: &[u8]) -> Option<Vec<u8>> {
        key.open(context, &Sealed::parse(bytes)?).ok().map(|plain| plain.expose().to_vec())
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Computed by an implementation that shares no code with this one. If it changes, no existing vault opens.
    #[test]
    fn the_format_is_what_it_was() {
        let nonce = std::array::from_fn(|n| n as u8);
        let sealed = key(0x42).seal_with_nonce(7, &context(), b"an access token", nonce).unwrap();
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&sealed);
        assert_eq!(hex(&sealed[..49]), VECTOR_START);
        assert_eq!(hex(&sealed[sealed.len() - 16..]), VECTOR_TAG);
        assert_eq!(hex(&digest), VECTOR_SHA256);
        assert_eq!(hex(key(0x42).derive(&[b"obo/v1/", b"label"]).expose()), VECTOR_DERIVED);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let sealed = key(1).seal(1, &context(), b"secret").unwrap();
        assert_eq!(open(&key(1), &context(), &sealed).unwrap(), b"secret");
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&key(1), &context(), &changed), None, "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(open(&key(1), &context(), &sealed[..length]), None, "cut to {length}");
        }
        let longer = [sealed.as_slice(), &[0]].concat();
        assert_eq!(open(&key(1), &context(), &longer), None);
    }

    #[test]
    fn another_key_or_context_is_refused() {
        let sealed = key(1).seal(1, &context(), b"secret").unwrap();
        assert_eq!(open(&key(2), &context(), &sealed), None);
        for other in [
            Context::of(Table::Flow).with(b"acme").with(b"alice"),
            Context::of(Table::Grant).with(b"acme").with(b"bob"),
            Context::of(Table::Grant).with(b"acm").with(b"ealice"),
            Context::of(Table::Grant).with(b"acmealice"),
            Context::of(Table::Grant).with(b"acme").with(b"alice").with(b""),
            Context::of(Table::Grant).with(b"acme"),
        ] {
            assert_eq!(open(&key(1), &other, &sealed), None);
        }
    }

    #[test]
    fn lengths_show_buckets_only() {
        let sealed = |length: usize| key(1).seal(1, &context(), &vec![b'x'; length]).unwrap().len();
        assert_eq!(sealed(0), sealed(252));
        assert_eq!(sealed(253), sealed(252) + BUCKET_BYTES);
        assert_eq!(sealed(252), HEADER_BYTES + NONCE_BYTES + BUCKET_BYTES + TAG_BYTES);
        let longest = vec![1; MAX_PLAINTEXT_BYTES];
        let largest = key(1).seal(1, &context(), &longest).unwrap();
        assert_eq!(open(&key(1), &context(), &largest).unwrap(), longest);
        assert!(key(1).seal(1, &context(), &[longest.as_slice(), b"x"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(plain in prop::collection::vec(any::<u8>(), 0..2000), id: u32) {
            let sealed = key(1).seal(id, &context(), &plain).unwrap();
            prop_assert_eq!(Sealed::parse(&sealed).unwrap().key_id(), id);
            prop_assert_eq!(open(&key(1), &context(), &sealed).unwrap(), plain);
        }

        #[test]
        fn nothing_else_opens_or_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..700), ours: bool) {
            if ours && bytes.len() > 5 {
                bytes[..5].copy_from_slice(b"OBO1\x01");
            }
            prop_assert_eq!(open(&key(1), &context(), &bytes), None);
        }
    }

    const VECTOR_START: &str =
        "4f424f310100000007000102030405060708090a0b0c0d0e0f10111213141516178cfc84e8a6cfe7a19105c13571188ad1";
    const VECTOR_TAG: &str = "4154a70f6989b0a844065a0e82c62f3b";
    const VECTOR_SHA256: &str = "a9c554059644afb1e12362ffe1dc415742eb67d844d592390f49663648ebb089";
    const VECTOR_DERIVED: &str = "34f9caa507e23345ed4d69387b5dfa5290c137807f1b0a876e51da66ae2b8a6c";
}
