//! What a client sends with a browser, or in a form: parameters, of which some are addresses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obo::authorization_server::{Destination, Parameters};

fuzz_target!(|text: &[u8]| {
    let Some(parameters) = Parameters::read(text) else { return };
    for name in ["client_id", "redirect_uri", "state", "code_challenge", "code", "refresh_token"] {
        let Some(value) = parameters.get(name) else { continue };
        assert!(!value.is_empty());
        // Whoever can append to it cannot replace what stands in it (RFC 6749 §3.1).
        let longer = [text, b"&", name.as_bytes(), b"=x"].concat();
        assert!(Parameters::read(&longer).is_none());
    }
    if let Some(Ok(destination)) = parameters.get("redirect_uri").map(Destination::parse) {
        assert!(destination.as_str().bytes().all(|b| b.is_ascii_graphic() && b != b'\\' && b != b'#'));
        assert!(!destination.in_words().is_empty());
    }
});
