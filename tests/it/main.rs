//! Everything through the public surface, in one binary.
//!
//! A new test goes into the file of what it is about; `life_of_a_call.rs` is the one to read first. What needs a running
//! obo takes `support::TestObo`; what needs the program itself runs the binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics is a test that fails")]
#![expect(unreachable_pub, reason = "one binary: `pub` says what support offers to the tests")]

#[path = "../../examples/proof/evil_provider.rs"]
mod evil_provider;
#[path = "../../examples/notes/server.rs"]
mod notes;
#[path = "../../examples/sandbox/provider.rs"]
mod provider;
mod support;

mod accounts;
mod applications;
mod authorization_server;
mod built_in_providers;
mod cli;
mod confirm;
mod consent;
mod contract_store;
mod doctor;
#[cfg(unix)]
mod faults;
mod files;
mod install;
mod invariants;
mod layering;
mod life_of_a_call;
mod mcp_sessions;
mod migrate;
mod offboarding;
#[cfg(target_os = "linux")]
mod os_keyring;
mod own_provider;
mod own_tools;
mod postgres;
mod processes;
mod provider_answers;
mod readme;
mod refresh;
mod resource_server;
mod rest;
mod sign_in;
mod tamper;
mod threat_model;
mod threats;
mod tool_calls;
mod tool_lists;
mod tool_pages;
mod tools_check;
mod tools_new;
mod tools_reload;
mod tools_snapshot;
mod transport_fake;
mod transport_handler;
mod transport_http;
mod transport_stdio;
mod vault;
