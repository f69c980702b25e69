//! Logs: to stderr, as text or JSON lines.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What libraries may log at most, whatever RUST_LOG says: at their finer levels they log whole messages, headers and
/// bodies, and requests carry people's mail, and tokens. rmcp logs connect links at `warn`.
const CAPS: &[(&str, Level)] = &[
    ("rmcp", Level::ERROR),
    ("axum", Level::WARN),
    ("cedar_policy", Level::WARN),
    ("h2", Level::WARN),
    ("hyper", Level::WARN),
    ("hyper_util", Level::WARN),
    ("keyring_core", Level::WARN),
    ("reqwest", Level::WARN),
    ("rustls", Level::WARN),
    ("tower", Level::WARN),
    ("zbus", Level::WARN),
];

/// Whether a library may log at a level. The cap lies over the filter, so no directive of it reaches further.
fn within_caps(target: &str, level: Level) -> bool {
    let library = target.split("::").next().unwrap_or(target);
    CAPS.iter().find(|(name, _)| *name == library).is_none_or(|(_, most)| level <= *most)
}

/// Starts logging. The level is RUST_LOG's, else `level`.
pub(super) fn start(format: LogFormat, level: &str) {
    let wanted = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let capped = filter_fn(|about| within_caps(about.target(), *about.level()));
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(logs.with_filter(wanted).with_filter(capped)).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_stay_within_their_caps() {
        assert!(!within_caps("rmcp::service", Level::WARN));
        assert!(within_caps("rmcp", Level::ERROR));
        assert!(!within_caps("h2::codec", Level::TRACE));
        assert!(within_caps("obo::call", Level::TRACE));
    }
}
