//! What one peer may use. None of these is a setting: whoever needs another value has found a bug.

use std::time::Duration;

/// Largest body of a message, in bytes: a 25 MiB attachment, the most that mail providers take, is 34 MiB in base64.
pub const MAX_BODY_BYTES: usize = 40 << 20;

/// Most bytes of bodies that are being read or worked on at once, in KiB. One person can fill it with calls of the
/// largest size; they then wait for each other.
pub const BODY_BUDGET_KIB: usize = 512 << 10; // 512 MiB

/// Longest that a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest that a request's head may take to arrive, also on a connection that is kept open.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a peer may take to read what was written for it.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest head of a request, in bytes; a little more may pass, as the buffer grows in steps.
pub const MAX_HEADER_BYTES: usize = 32 << 10;

/// Most header lines of a request.
pub const MAX_HEADERS: usize = 64;

/// Most connections open at once. Backends hold one for each user who is asked to consent; such a one takes about
/// 30 KiB.
pub const MAX_CONNECTIONS: usize = 8192;

/// Longest bearer token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Most sessions open at once, of both session-bearing transports together. An idle one takes about 50 KiB.
pub const MAX_SESSIONS: usize = 10_000;

/// Most sessions of one person. The one that was used least recently gives way to a new one.
pub const MAX_SESSIONS_PER_PERSON: usize = 100;

/// How long a session lives without a message.
pub const SESSION_IDLE: Duration = crate::identity::mcp_session::IDLE;

/// Most calls under way in one HTTP+SSE session, whose answers share one stream.
pub const MAX_PENDING_PER_STREAM: usize = 256;

/// Longest that a readiness check may take.
pub const READY_TIMEOUT: Duration = Duration::from_secs(2);
