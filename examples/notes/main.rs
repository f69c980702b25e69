//! A small OAuth server with an API behind it: the provider that docs/bring-your-own-provider.md connects to obo.
//!
//! `cargo run --example notes [REDIRECT_URI]`. It keeps everything in memory, and lets anybody be Ana or Bob.

mod server;

use tokio::net::TcpListener;

/// Where obo is, unless obo.toml says otherwise.
const REDIRECT_URI: &str = "http://127.0.0.1:8787/oauth/callback/notes";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let redirect_uri = std::env::args().nth(1).unwrap_or_else(|| REDIRECT_URI.to_owned());
    let listener = TcpListener::bind("127.0.0.1:4801").await?;
    println!("Notes is at http://127.0.0.1:4801, for a client that is sent back to {redirect_uri}");
    axum::serve(listener, server::router(redirect_uri)).await?;
    Ok(())
}
