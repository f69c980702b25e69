//! A tool manifest from a folder that somebody else wrote.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = obo::catalog::parse_tool_manifest(text);
});
