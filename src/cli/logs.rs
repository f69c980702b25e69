//! Logs: to stderr, as text or JSON lines.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Logs connect links at `warn`, as part of the protocol errors that carry them, and whole messages below.
const SILENT: &str = "rmcp=error";
/// Libraries that would log whole messages, headers or bodies at their finest levels: requests carry people's mail, and
/// tokens. They stay at `warn`, whatever RUST_LOG says.
const QUIET: &[&str] =
    &["hyper", "hyper_util", "h2", "reqwest", "rustls", "tower", "axum", "zbus", "keyring_core", "cedar_policy"];

/// Starts logging. The level is RUST_LOG's, else `level`.
pub(super) fn start(format: LogFormat, level: &str) {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    if let Ok(directive) = SILENT.parse() {
        filter = filter.add_directive(directive);
    }
    for library in QUIET {
        if let Ok(directive) = format!("{library}=warn").parse() {
            filter = filter.add_directive(directive);
        }
    }
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().init(),
        LogFormat::Json => logs.json().flatten_event(true).finish().init(),
    }
}
