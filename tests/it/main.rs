//! Everything through the public surface, in one binary. A new file needs a line here; keep them sorted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics is a test that fails")]

mod transport_fake;
mod transport_http;
mod transport_stdio;
