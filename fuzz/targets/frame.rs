//! A message from a client, before anybody knows who sent it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obo::transport::frame::{Frame, parse_frame};

fuzz_target!(|body: &[u8]| {
    match parse_frame(body) {
        // Nothing is taken for a message that a JSON parser would not take for JSON.
        Ok(Frame::Message(_)) => assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok()),
        // Each message of a batch reads the same where it stands and alone.
        Ok(Frame::Batch(messages)) => {
            for (message, range) in messages {
                assert!(matches!(parse_frame(&body[range]), Ok(Frame::Message(alone)) if alone == message));
            }
        }
        Err(_) => {}
    }
});
