//! A message from a client, before anybody knows who sent it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obo::transport::frame::{Frame, Message, parse_frame};
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    match parse_frame(body) {
        Ok(Frame::Message(message)) => agrees(&message, body),
        // Each message of a batch reads the same where it stands and alone.
        Ok(Frame::Batch(messages)) => {
            for (message, range) in messages {
                agrees(&message, &body[range.clone()]);
                assert!(matches!(parse_frame(&body[range]), Ok(Frame::Message(alone)) if alone == message));
            }
        }
        Err(_) => {}
    }
});

/// Whoever reads the message again sees what the envelope said. What is JSON and still not read as a value, such as half
/// of a surrogate pair (RFC 8259 §8.2), is for the protocol layer to refuse.
fn agrees(message: &Message, text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
    assert_eq!(value["jsonrpc"], "2.0");
    assert_eq!(value["method"].as_str(), message.method.as_deref());
    assert_eq!(value["id"].is_null(), message.id.is_none());
}
