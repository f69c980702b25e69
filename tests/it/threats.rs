//! Attacks, one by one, through the public surface. Names begin with the threat of docs/threat-model.md.
//!
//! Those on the consent pages and on the shared port stand in `consent.rs` and `processes.rs`.

mod audit_log;
mod authorization;
mod credentials;
mod hygiene;
mod leaks;
mod limits;
mod mirror;
mod people;
mod reach;
