//! Several obo processes on one data folder, killed while they refresh: what is lost?
//!
//! `cargo run --example proof -- --grace --kills 40` kills with SIGKILL, against a provider that accepts a replaced
//! refresh token for half a minute; `--strict --sigterm` asks to stop, against one that ends a connection when an old token
//! is used; `--strict --kill` kills against that one. docs/proofs.md has the figures.
//!
//! The processes are the program itself. They share the vault, serve everybody, and are given tokens that live for a
//! second, so that they refresh all the time. The provider keeps the ground truth; what obo believes is not asked.

#[cfg(unix)]
mod evil_provider;
#[cfg(unix)]
mod proof;

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    proof::main()
}

#[cfg(not(unix))]
fn main() {
    eprintln!("this sends signals, which there are on Unix only");
}
