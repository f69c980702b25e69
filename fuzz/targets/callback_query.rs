//! What a browser brings back from a provider, or from somebody who pretends to be one.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|query: &str| {
    let _ = obo::consent::parse_callback_query(query);
});
