//! A record from a store that somebody else could write to.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(sealed) = obo::keys::Sealed::parse(bytes) {
        let _ = sealed.key_id();
    }
});
