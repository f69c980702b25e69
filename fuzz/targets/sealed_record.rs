//! A record from a store that somebody else could write to.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obo::keys::Sealed;

fuzz_target!(|bytes: &[u8]| {
    if let Some(sealed) = Sealed::parse(bytes) {
        let _ = sealed.key_id();
        // A record has one length: one that was cut or added to is not one.
        assert!(Sealed::parse(&bytes[..bytes.len() - 1]).is_none());
        assert!(Sealed::parse(&[bytes, b"x"].concat()).is_none());
    }
});
