//! A Google and a Slack to try obo against, without an account anywhere.
//!
//! `cargo run --example sandbox` starts both on one loopback port and prints what obo.toml needs. The people are
//! alice@example.com and bob@example.com; every call they make is printed as it happens.

#[path = "provider.rs"]
mod provider;

use std::time::Duration;

use obo::clock::{Clock as _, SystemClock};
use provider::{Provider, Service, Settings};

/// The redirect URIs of an obo that listens on its default port.
const REDIRECT_URIS: [&str; 2] =
    ["http://127.0.0.1:8787/oauth/callback/google", "http://127.0.0.1:8787/oauth/callback/slack"];

/// How often the log is looked at.
const POLL: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let provider = Provider::start(Settings::new(REDIRECT_URIS, || SystemClock.now().as_second())).await?;
    println!("# Put this into obo.toml, then: obo serve");
    for (id, service) in [("google", Service::Google), ("slack", Service::Slack)] {
        println!("[providers.{id}]");
        println!("client_id = \"{}\"\nclient_secret = \"{}\"", service.client_id(), service.client_secret());
        println!("origin = \"{}\"", provider.origin());
    }

    let mut seen = 0;
    loop {
        tokio::select! {
            stop = tokio::signal::ctrl_c() => return stop,
            () = tokio::time::sleep(POLL) => {}
        }
        let log = provider.log();
        for call in &log[seen..] {
            let user = call.user.as_deref().unwrap_or("-");
            eprintln!("{} {} {} {user}", call.status, call.method, call.path);
        }
        seen = log.len();
    }
}
