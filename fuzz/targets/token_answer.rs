//! What a token endpoint answers: two bytes of status, then a body of any kind.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some((status, body)) = input.split_first_chunk::<2>() {
        let _ = obo::oauth::parse_token_answer(u16::from_le_bytes(*status), body);
    }
});
