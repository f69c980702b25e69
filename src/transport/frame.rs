//! What is read of a message before the protocol layer sees it: is it JSON, is it bounded, what shape does it have?
//!
//! Everything here is written by whoever is on the other end. The scan allocates nothing and is linear; only then is
//! the envelope parsed, and the arguments inside it are left to the protocol layer.

use std::ops::Range;

use rmcp::ErrorData;
use rmcp::model::{JsonRpcError, RequestId};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// Deepest nesting of arrays and objects that is read.
pub const MAX_JSON_DEPTH: usize = 64;

/// Most values that one body may hold. Without it, megabytes of `[0,0,…]` become gigabytes once parsed.
pub const MAX_JSON_VALUES: usize = 250_000;

/// Most messages in one batch (2025-03-26, Basic §Batching).
pub const MAX_BATCH_MESSAGES: usize = 50;

/// Longest request id that is echoed, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 256;

/// What a body is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// One message.
    Message(Message),
    /// A batch: each message with the place where it stands in the body.
    Batch(Vec<(Message, Range<usize>)>),
}

/// The envelope of one JSON-RPC message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What kind of message it is.
    pub kind: Kind,
    /// Its id; none for notifications.
    pub id: Option<RequestId>,
    /// Its method; none for answers.
    pub method: Option<String>,
    /// The protocol revision that the message itself names: in `_meta` (2026-07-28), else that of `initialize`.
    pub revision: Option<String>,
    /// The tool that is called, where the method is `tools/call`.
    pub tool: Option<String>,
}

impl Message {
    /// Whether it opens a session (revisions before 2026-07-28).
    pub fn is_initialize(&self) -> bool {
        self.kind == Kind::Request && self.method.as_deref() == Some("initialize")
    }

    /// Whether it asks for the tools.
    pub fn lists_tools(&self) -> bool {
        self.kind == Kind::Request && self.method.as_deref() == Some("tools/list")
    }
}

/// The kinds of JSON-RPC messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Wants an answer.
    Request,
    /// Wants none.
    Notification,
    /// Answers a request of the server, well or badly.
    Answer,
}

/// Why a body is not read any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not JSON.
    #[error("the body is not JSON")]
    NotJson,
    /// JSON, and not a JSON-RPC 2.0 message.
    #[error("the body is not a JSON-RPC 2.0 message")]
    NotAMessage,
    /// Nested too deeply.
    #[error("the body is nested more than {MAX_JSON_DEPTH} levels deep")]
    TooDeep,
    /// Too many values.
    #[error("the body holds more than {MAX_JSON_VALUES} values")]
    TooManyValues,
    /// A batch without messages.
    #[error("the batch is empty")]
    EmptyBatch,
    /// A batch with too many messages.
    #[error("the batch holds more than {MAX_BATCH_MESSAGES} messages")]
    LongBatch,
}

impl FrameError {
    /// The JSON-RPC error that says so. It has no id: none was read that could be trusted.
    pub fn to_json(&self) -> Vec<u8> {
        let error = match self {
            Self::NotJson => ErrorData::parse_error(self.to_string(), None),
            _ => ErrorData::invalid_request(self.to_string(), None),
        };
        error_json(None, error)
    }
}

/// The bytes of a JSON-RPC error answer.
pub(super) fn error_json(id: Option<RequestId>, error: ErrorData) -> Vec<u8> {
    // Writing plain strings and numbers to memory has no way to fail; an empty body would still be an error to a client.
    serde_json::to_vec(&JsonRpcError::new(id, error)).unwrap_or_default()
}

/// Reads the envelope of a body, within bounds.
///
/// # Errors
/// See [`FrameError`].
pub fn parse_frame(body: &[u8]) -> Result<Frame, FrameError> {
    let text = std::str::from_utf8(body).map_err(|_| FrameError::NotJson)?;
    match scan(body)? {
        Scan::Other => parse_message(text).map(Frame::Message),
        Scan::Array(elements) => {
            let messages: Result<Vec<_>, _> =
                elements.into_iter().map(|range| Ok((parse_message(&text[range.clone()])?, range))).collect();
            messages.map(Frame::Batch)
        }
    }
}

enum Scan {
    Array(Vec<Range<usize>>),
    Other,
}

/// Walks over the structure without building it. Whether it is JSON is for the parser to say, except around the
/// elements of a batch, which are cut out here.
fn scan(body: &[u8]) -> Result<Scan, FrameError> {
    let is_batch = body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[');
    let mut elements = Vec::new();
    let (mut depth, mut values, mut start) = (0usize, 1usize, 0usize);
    let (mut in_string, mut escaped, mut closed) = (false, false, false);
    for (at, &byte) in body.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        if is_batch && closed && !byte.is_ascii_whitespace() {
            return Err(FrameError::NotJson);
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                values += 1;
                if is_batch && depth == 1 {
                    start = at + 1;
                }
            }
            b',' => {
                values += 1;
                if is_batch && depth == 1 {
                    elements.push(start..at);
                    start = at + 1;
                }
            }
            b']' | b'}' => {
                depth = depth.checked_sub(1).ok_or(FrameError::NotJson)?;
                if is_batch && depth == 0 {
                    if byte != b']' {
                        return Err(FrameError::NotJson);
                    }
                    elements.push(start..at);
                    closed = true;
                }
            }
            _ => {}
        }
        if depth > MAX_JSON_DEPTH {
            return Err(FrameError::TooDeep);
        }
        if values > MAX_JSON_VALUES {
            return Err(FrameError::TooManyValues);
        }
        if elements.len() > MAX_BATCH_MESSAGES {
            return Err(FrameError::LongBatch);
        }
    }
    if !is_batch {
        return Ok(Scan::Other);
    }
    if !closed {
        return Err(FrameError::NotJson);
    }
    if let [only] = elements.as_slice()
        && body[only.clone()].iter().all(u8::is_ascii_whitespace)
    {
        return Err(FrameError::EmptyBatch);
    }
    Ok(Scan::Array(elements))
}

/// What is parsed of a message. Known keys that stand twice are an error, so that no two readers can disagree on which
/// one counts.
#[derive(Deserialize)]
struct Envelope {
    jsonrpc: String,
    #[serde(default)]
    id: Option<RequestId>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Option<Object<Params>>,
    #[serde(default, deserialize_with = "present")]
    result: bool,
    #[serde(default, deserialize_with = "present")]
    error: bool,
}

#[derive(Deserialize)]
struct Params {
    #[serde(default)]
    name: Option<Lenient>,
    #[serde(default, rename = "protocolVersion")]
    protocol_version: Option<Lenient>,
    #[serde(default, rename = "_meta")]
    meta: Option<Object<Meta>>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default, rename = "io.modelcontextprotocol/protocolVersion")]
    protocol_version: Option<Lenient>,
}

/// A text, or anything else, which is for the protocol layer to refuse in its own words.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lenient {
    Text(String),
    Other(IgnoredAny),
}

impl Lenient {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Other(_) => None,
        }
    }
}

/// Reads an object, and nothing else: a derived reader would also take an array of the values in order.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(std::marker::PhantomData))
    }
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

fn parse_message(text: &str) -> Result<Message, FrameError> {
    let Object(envelope): Object<Envelope> = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => FrameError::NotAMessage,
        _ => FrameError::NotJson,
    })?;
    let long_id = matches!(&envelope.id, Some(RequestId::String(id)) if id.len() > MAX_REQUEST_ID_BYTES);
    if envelope.jsonrpc != "2.0" || long_id {
        return Err(FrameError::NotAMessage);
    }
    let kind = match (&envelope.method, &envelope.id, envelope.result, envelope.error) {
        (Some(_), Some(_), false, false) => Kind::Request,
        (Some(_), None, false, false) => Kind::Notification,
        (None, _, true, false) | (None, _, false, true) => Kind::Answer,
        _ => return Err(FrameError::NotAMessage),
    };
    let (name, opening, inline) = match envelope.params {
        Some(Object(params)) => (
            params.name.and_then(Lenient::text),
            params.protocol_version.and_then(Lenient::text),
            params.meta.and_then(|Object(meta)| meta.protocol_version).and_then(Lenient::text),
        ),
        None => (None, None, None),
    };
    let method = envelope.method.as_deref();
    let revision = if method == Some("initialize") { opening } else { inline };
    let tool = name.filter(|_| method == Some("tools/call"));
    Ok(Message { kind, id: envelope.id, method: envelope.method, revision, tool })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(body: &str) -> Message {
        match parse_frame(body.as_bytes()) {
            Ok(Frame::Message(message)) => message,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn the_envelope_says_kind_id_method_and_revision() {
        let request = message(
            r#" {"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","arguments":{},
            "_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
        );
        assert_eq!((request.kind, request.revision.as_deref()), (Kind::Request, Some("2026-07-28")));
        assert_eq!(request.tool.as_deref(), Some("x"));
        let prompt = message(r#"{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"x"}}"#);
        assert_eq!(prompt.tool, None);
        let odd = message(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["x"]}}"#);
        assert_eq!(odd.tool, None);
        let initialize =
            message(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-03-26"}}"#);
        assert!(initialize.is_initialize());
        assert_eq!(initialize.revision.as_deref(), Some("2025-03-26"));
        assert_eq!(message(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).kind, Kind::Notification);
        assert_eq!(message(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).kind, Kind::Answer);
        assert_eq!(message(r#"{"jsonrpc":"2.0","error":{"code":1,"message":""}}"#).kind, Kind::Answer);
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        use FrameError::{EmptyBatch, NotAMessage, NotJson};
        for (body, expected) in [
            ("", NotJson),
            ("nonsense", NotJson),
            ("{\"jsonrpc\":\"2.0\"", NotJson),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"} {}", NotJson),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}]", NotJson),
            ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}}", NotJson),
            ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"},]", NotJson),
            ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}] x", NotJson),
            ("[", NotJson),
            ("[ ]", EmptyBatch),
            ("[1]", NotAMessage),
            ("[[]]", NotAMessage),
            ("[[\"2.0\",1,\"ping\"]]", NotAMessage),
            ("1", NotAMessage),
            ("null", NotAMessage),
            ("{}", NotAMessage),
            ("{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"ping\"}", NotAMessage),
            ("{\"jsonrpc\":\"2.0\",\"id\":1}", NotAMessage),
            ("{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"ping\"}", NotAMessage),
            ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}", NotAMessage),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"result\":{}}", NotAMessage),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":[]}", NotAMessage),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"method\":\"x\"}", NotAMessage),
            (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#, NotAMessage),
        ] {
            assert_eq!(parse_frame(body.as_bytes()), Err(expected), "{body}");
        }
        assert_eq!(parse_frame(b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"ping\"}"), Err(NotJson));
    }

    #[test]
    fn bounds_hold_at_their_edges() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"a":{open}{close}}}}}"#)
        };
        assert!(parse_frame(nested(MAX_JSON_DEPTH - 2).as_bytes()).is_ok());
        assert_eq!(parse_frame(nested(MAX_JSON_DEPTH - 1).as_bytes()), Err(FrameError::TooDeep));
        // Brackets inside a string are text, also after an escaped quote.
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"a":"\"{}"}}}}"#, "[".repeat(500));
        assert!(parse_frame(text.as_bytes()).is_ok());

        let wide =
            |n: usize| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"a":[{}0]}}}}"#, "0,".repeat(n));
        assert!(parse_frame(wide(MAX_JSON_VALUES - 10).as_bytes()).is_ok());
        assert_eq!(parse_frame(wide(MAX_JSON_VALUES).as_bytes()), Err(FrameError::TooManyValues));

        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let batch = |n: usize| format!("[{}]", vec![ping; n].join(","));
        assert!(matches!(parse_frame(batch(50).as_bytes()), Ok(Frame::Batch(all)) if all.len() == 50));
        assert_eq!(parse_frame(batch(51).as_bytes()), Err(FrameError::LongBatch));
        let id = |n: usize| format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"x"}}"#, "a".repeat(n));
        assert!(parse_frame(id(MAX_REQUEST_ID_BYTES).as_bytes()).is_ok());
        assert_eq!(parse_frame(id(MAX_REQUEST_ID_BYTES + 1).as_bytes()), Err(FrameError::NotAMessage));
    }

    #[test]
    fn the_places_of_a_batch_are_its_messages() {
        let body = r#"[ {"jsonrpc":"2.0","id":1,"method":"a","params":{"x":[1,2],"y":"],["}} ,{"jsonrpc":"2.0","method":"b"}]"#;
        let Ok(Frame::Batch(messages)) = parse_frame(body.as_bytes()) else { panic!("a batch") };
        let again: Vec<Message> = messages.iter().map(|(_, range)| message(&body[range.clone()])).collect();
        assert_eq!(again, messages.into_iter().map(|(message, _)| message).collect::<Vec<_>>());
        assert_eq!(again.len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(body in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse_frame(&body);
        }

        #[test]
        fn what_is_accepted_is_json(body in r#"[\[\]{}",:0-9a-z \\]{0,64}"#) {
            if parse_frame(body.as_bytes()).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok());
            }
        }
    }
}
