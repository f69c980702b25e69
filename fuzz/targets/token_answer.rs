//! What a token endpoint answers: two bytes of status, then a body of any kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obo::oauth::{OauthError, parse_token_answer};

fuzz_target!(|input: &[u8]| {
    let Some((status, body)) = input.split_first_chunk::<2>() else { return };
    let status = u16::from_le_bytes(*status);
    match parse_token_answer(status, body) {
        Ok(answer) => {
            assert!((200..=299).contains(&status));
            // Tokens will stand in headers.
            for token in [Some(&answer.access_token), answer.refresh_token.as_ref()].into_iter().flatten() {
                assert!(!token.expose().is_empty() && token.expose().bytes().all(|b| (0x21..=0x7e).contains(&b)));
            }
        }
        // Its text is a code: it is shown and logged.
        Err(
            OauthError::InvalidGrant(code)
            | OauthError::InvalidClient(code)
            | OauthError::Refused(code)
            | OauthError::Unavailable(code),
        ) => assert!(code.len() <= 64 && code.bytes().all(|b| b.is_ascii_graphic())),
        // Said by a header, which is not read here.
        Err(OauthError::Busy(_)) => unreachable!("nothing in a body asks to wait"),
    }
});
