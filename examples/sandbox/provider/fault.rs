//! Faults that a test plants on a path: wrong answers, no answers, late answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What goes wrong.
#[derive(Clone)]
pub enum Fault {
    /// This status with this JSON, and nothing performed.
    Status(u16, Value),
    /// 200 with an HTML page, as captive portals and outages answer.
    Html,
    /// 200 with JSON that stops in the middle.
    TruncatedJson,
    /// 200 with this many MiB of well-formed JSON, sent in pieces without a length.
    Megabytes(usize),
    /// 429 with `Retry-After` in seconds, in the service's shape.
    RateLimited(u64),
    /// 307 to this URL.
    Redirect(String),
    /// 400 whose error text repeats the bearer token in this encoding.
    EchoAuthorization(Encoding),
    /// The connection is cut before anything is performed.
    CutBefore,
    /// The request is performed, then the connection is cut: the outcome is unknown to the caller.
    CutAfter,
    /// The request waits at the gate before it is performed. A caller who gives up first: nothing is performed.
    Hold(Gate),
    /// The request is performed, and its answer waits at the gate.
    HoldAnswer(Gate),
}

/// How a token is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it stands.
    Raw,
    /// Base64 (RFC 4648 §4).
    Base64,
    /// Base64url without padding (RFC 4648 §5).
    Base64Url,
    /// Lower-case hexadecimal.
    Hex,
    /// Every byte percent-encoded (RFC 3986 §2.1).
    Percent,
    /// Every character a JSON `\u` escape.
    JsonEscapes,
}

impl Encoding {
    /// All of them.
    pub const ALL: [Encoding; 6] =
        [Encoding::Raw, Encoding::Base64, Encoding::Base64Url, Encoding::Hex, Encoding::Percent, Encoding::JsonEscapes];

    /// The text in this encoding.
    pub fn encode(self, text: &str) -> String {
        let each = |format: fn(u8) -> String| text.bytes().map(format).collect();
        match self {
            Encoding::Raw => text.to_owned(),
            Encoding::Base64 => STANDARD.encode(text),
            Encoding::Base64Url => URL_SAFE_NO_PAD.encode(text),
            Encoding::Hex => each(|b| format!("{b:02x}")),
            Encoding::Percent => each(|b| format!("%{b:02X}")),
            Encoding::JsonEscapes => each(|b| format!("\\u{b:04x}")),
        }
    }
}

impl Fault {
    /// The answer in place of the real one; none where the request is to be performed or cut.
    pub(super) fn answer(&self, path: &str, authorization: Option<&HeaderValue>) -> Option<Response> {
        let slack = path.starts_with("/api/");
        match self {
            Fault::Status(status, body) => Some(json_text(*status, body.to_string())),
            Fault::Html => {
                let page = "<!doctype html><title>Sign in to the network</title><h1>Sign in to the network</h1>";
                Some(with_type(200, "text/html; charset=utf-8", Body::from(page)))
            }
            Fault::TruncatedJson => {
                Some(json_text(200, r#"{"access_token":"ya29.trunc","id":"msg-1","lab"#.to_owned()))
            }
            Fault::Megabytes(count) => Some(with_type(200, "application/json", megabytes(*count))),
            Fault::RateLimited(seconds) => {
                let body = if slack {
                    json!({"ok": false, "error": "ratelimited"})
                } else {
                    json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded."}})
                };
                let mut answer = json_text(429, body.to_string());
                answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
                Some(answer)
            }
            Fault::Redirect(to) => {
                let mut answer = with_type(307, "text/plain", Body::empty());
                if let Ok(to) = HeaderValue::from_str(to) {
                    answer.headers_mut().insert(header::LOCATION, to);
                }
                Some(answer)
            }
            Fault::EchoAuthorization(encoding) => {
                let value = authorization.and_then(|value| value.to_str().ok()).unwrap_or_default();
                let echo = encoding.encode(value.strip_prefix("Bearer ").unwrap_or(value));
                // Written by hand: a serialiser would escape the backslashes of `JsonEscapes` once more.
                Some(if slack {
                    json_text(200, format!(r#"{{"ok":false,"error":"bad token {echo}"}}"#))
                } else {
                    let error = format!(r#"{{"code":400,"status":"INVALID_ARGUMENT","message":"bad token {echo}"}}"#);
                    json_text(400, format!(r#"{{"error":{error}}}"#))
                })
            }
            Fault::CutBefore | Fault::CutAfter | Fault::Hold(_) | Fault::HoldAnswer(_) => None,
        }
    }
}

fn json_text(status: u16, body: String) -> Response {
    with_type(status, "application/json; charset=utf-8", Body::from(body))
}

fn with_type(status: u16, content_type: &'static str, body: Body) -> Response {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn megabytes(count: usize) -> Body {
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = std::iter::once(Bytes::from_static(b"{\"pad\":\""))
        .chain(std::iter::repeat_n(piece, count))
        .chain(std::iter::once(Bytes::from_static(b"\"}")));
    Body::from_stream(futures::stream::iter(pieces.map(Ok::<_, std::io::Error>)))
}

/// A gate at which requests wait until a test opens it. No clock is involved.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Default)]
struct GateState {
    arrived: usize,
    open: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(GateState::default())))
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until `count` requests have reached the gate.
    pub async fn arrived(&self, count: usize) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|state| state.arrived >= count).await;
    }

    /// Lets everyone through, from now on.
    pub fn open(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    pub(super) async fn pass(&self) {
        let mut state = self.0.subscribe();
        self.0.send_modify(|state| state.arrived += 1);
        let _ = state.wait_for(|state| state.open).await;
    }
}

/// The faults that nobody has met yet.
#[derive(Default)]
pub(super) struct Faults(Mutex<Vec<Planted>>);

struct Planted {
    path: String,
    times: usize,
    fault: Fault,
}

impl Faults {
    pub(super) fn plant(&self, path: &str, times: usize, fault: Fault) {
        self.lock().push(Planted { path: path.to_owned(), times, fault });
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// The first fault planted for `path`, used up once.
    pub(super) fn take(&self, path: &str) -> Option<Fault> {
        let mut planted = self.lock();
        let at = planted.iter().position(|p| match p.path.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => p.path == path,
        })?;
        let fault = planted[at].fault.clone();
        planted[at].times = planted[at].times.saturating_sub(1);
        if planted[at].times == 0 {
            planted.remove(at);
        }
        Some(fault)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Planted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
