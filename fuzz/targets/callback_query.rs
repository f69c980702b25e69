//! What a browser brings back from a provider, or from somebody who pretends to be one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obo::consent::CallbackQuery;

fuzz_target!(|query: &str| {
    if CallbackQuery::parse(query).is_some() {
        // Whoever can append to a query cannot replace what stands in it (RFC 6749 §3.1).
        for further in ["&state=x", "&code=x", "&error=x", "&%73tate=x"] {
            assert!(CallbackQuery::parse(&format!("{query}{further}")).is_none());
        }
    }
});
