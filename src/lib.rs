//! obo, "on behalf of": an MCP server whose tools act as the person who asked, with that person's own permission.
//!
//! # Layout
//! The modules stand in the order of a call's life; each may use only those above it (`tests/it/layering.rs`).
//!
//! - [`id`], [`secret`], [`clock`], [`failure`], [`schema`]: names, secrets, time, what can go wrong, what keys mean.
//! - [`os_keyring`]: the operating system's keyring, which may hang.
//! - [`store`], [`keys`], [`egress`]: where records are kept, how they are sealed, where requests may go.
//! - [`identity`]: who is this? · [`catalog`]: what is asked for?
//! - [`policy`]: may they? · [`oauth`]: the only client of token endpoints.
//! - [`vault`]: the person's token · [`executor`]: the only client of provider APIs · [`audit`]: who did what.
//! - [`consent`]: has the person said yes? · [`authorization_server`]: which clients may ask for them?
//! - [`rehearsal`]: the cases of manifests, run without a network.
//! - [`upkeep`]: the vault as a whole, for the operator.
//! - [`call`]: the only place that knows all the stages.
//! - [`transport`]: MCP over stdio and HTTP, and the pages a person sees.
//! - [`config`], [`app`], [`cli`]: everything put together.

pub mod clock;
pub mod failure;
pub mod id;
pub mod os_keyring;
pub mod schema;
pub mod secret;

pub mod egress;
pub mod keys;
pub mod store;

pub mod catalog;
pub mod identity;

pub mod oauth;
pub mod policy;

pub mod audit;
pub mod executor;
pub mod vault;

pub mod authorization_server;
pub mod consent;
pub mod rehearsal;
pub mod upkeep;

pub mod call;

pub mod transport;

pub mod app;
pub mod cli;
pub mod config;
