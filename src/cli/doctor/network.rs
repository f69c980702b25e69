//! The clock, the port, and, where it is asked for, who can be reached.

use std::io;
use std::time::Duration;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::net::TcpListener;
use url::Url;

use super::Check;
use crate::app::{App, public_url};
use crate::catalog::Catalog;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::egress::{Answer, Egress, EgressError, Limits};

/// No clock of a machine that runs this obo shows an earlier time.
const WRITTEN_IN: &str = "2026-01-01T00:00:00Z";
/// How far a clock may be off before tokens are refused because of it.
const MAX_DRIFT: SignedDuration = SignedDuration::from_secs(60);
/// How long one server has to answer.
const LIMITS: Limits = Limits { total: Duration::from_secs(10), body_bytes: 256 * 1024 };

/// Whether the clock can be right, without asking anybody.
pub(super) async fn clock(app: Option<&App>, now: Timestamp) -> Check {
    const MEND: &str = "set the clock, and have it kept by NTP: tokens are refused by their times";
    let written: Timestamp = WRITTEN_IN.parse().unwrap_or_default();
    if now < written {
        return Check::fail("clock", format!("it shows {now:.0}, before this obo was written"), MEND);
    }
    let newest = match app {
        Some(app) => app.store.newest(u64::MAX, 1).await.ok().and_then(|newest| newest.into_iter().next()),
        None => None,
    };
    let newest = newest.and_then(|(_, entry)| serde_json::from_str::<Value>(&entry.body).ok());
    let newest = newest.and_then(|record| record.get("time")?.as_str()?.parse::<Timestamp>().ok());
    match newest.filter(|newest| newest.duration_since(now) > MAX_DRIFT) {
        Some(newest) => {
            Check::warn("clock", format!("it shows {now:.0}, and the newest record is of {newest:.0}"), MEND)
        }
        None => Check::ok("clock", format!("{now:.0}; --online compares it")),
    }
}

/// Whether the port is free, or held by an obo of this vault.
pub(super) async fn port(config: &Config, app: Option<&App>) -> Check {
    const NAME: &str = "port";
    let address = config.server.listen;
    match TcpListener::bind(address).await {
        Ok(_) => Check::ok(NAME, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let Some(loopback) = app.and_then(|app| app.loopback.as_ref()) else {
                return Check::warn(
                    NAME,
                    format!("{address} is held, and without the vault's key nobody can tell by whom"),
                    "stop what holds it, or choose another server.listen",
                );
            };
            match loopback.site().await {
                Ok(Some(site)) => Check::ok(NAME, format!("{address} is held by this vault's `obo serve` at {site}")),
                Ok(None) => Check::ok(NAME, format!("{address} is held by another obo of this vault")),
                Err(failure) => Check::error(NAME, super::Exit::from(failure).text()),
            }
        }
        Err(error) => Check::fail(
            NAME,
            format!("{address} cannot be listened on: {error}"),
            "write an address of this machine into server.listen",
        ),
    }
}

/// Asks everybody whom obo would ask, without a credential.
pub(super) async fn online(config: &Config, catalog: Option<&Catalog>, egress: &Egress, checks: &mut Vec<Check>) {
    const UNREACHABLE: &str = "see whether this machine reaches it; [network] has proxy and ca_file";
    let mut drift = None;
    let with_client = catalog.into_iter().flat_map(Catalog::providers).filter(|provider| provider.client.is_some());
    for provider in with_client {
        let mut url = provider.oauth.token_url.clone();
        url.set_path("/");
        url.set_query(None);
        let place = url.origin().ascii_serialization();
        match egress.send(egress.request(Method::HEAD, url), LIMITS).await {
            Ok(answer) => {
                drift = drift.or_else(|| Some((place.clone(), date_of(&answer)?.duration_since(SystemClock.now()))));
                checks.push(Check::ok("reachable", format!("{place} ({})", provider.name)));
            }
            Err(error) => checks.push(Check::fail("reachable", format!("{}: {error}", provider.name), UNREACHABLE)),
        }
    }
    if let Some((place, drift)) = drift {
        checks.push(match drift.abs() > MAX_DRIFT {
            true => Check::fail(
                "clock",
                format!("it differs by {} s from that of {place}", drift.as_secs().abs()),
                "set the clock, and have it kept by NTP",
            ),
            false => Check::ok("clock", format!("as that of {place}, within {} s", MAX_DRIFT.as_secs())),
        });
    }
    for issuer in &config.identity.issuer {
        let Ok(url) = Url::parse(&format!("{}/.well-known/openid-configuration", issuer.issuer.trim_end_matches('/')))
        else {
            continue;
        };
        checks.push(match ask(egress, url).await {
            Ok(document) if document.get("issuer").and_then(Value::as_str) == Some(&issuer.issuer) => {
                Check::ok("issuer", format!("{}: {} answers", issuer.name, issuer.issuer))
            }
            Ok(_) => Check::fail(
                "issuer",
                format!("{}: the discovery document of {} is not of that issuer", issuer.name, issuer.issuer),
                "write identity.issuer.issuer exactly as the document has it",
            ),
            Err(what) => Check::fail("issuer", format!("{}: {what}", issuer.name), UNREACHABLE),
        });
    }
    if let Ok(url) = public_url(config).and_then(|base| {
        base.join("/healthz").map_err(|e| crate::config::ConfigError::new(format!("server.public_url: {e}")))
    }) {
        checks.push(match egress.send(egress.request(Method::GET, url), LIMITS).await {
            Ok(answer) if answer.status == http::StatusCode::OK => {
                Check::ok("public_url", format!("{} answers", config.server.public_base()))
            }
            Ok(answer) => Check::warn(
                "public_url",
                format!("{} answers {}, and not as obo does", config.server.public_base(), answer.status.as_u16()),
                "see where the proxy in front of obo leads",
            ),
            Err(EgressError::Unreachable(_)) => Check::warn(
                "public_url",
                format!("nobody is at {}", config.server.public_base()),
                "start `obo serve`; stdio does not need it",
            ),
            Err(error) => Check::warn("public_url", error.to_string(), UNREACHABLE),
        });
    }
}

async fn ask(egress: &Egress, url: Url) -> Result<Value, String> {
    let answer = egress.send(egress.request(Method::GET, url), LIMITS).await.map_err(|error| error.to_string())?;
    if answer.status != http::StatusCode::OK {
        return Err(format!("the discovery document is answered with {}", answer.status.as_u16()));
    }
    serde_json::from_slice(&answer.body).map_err(|_| "the discovery document is not JSON".to_owned())
}

/// RFC 9110 §6.6.1.
fn date_of(answer: &Answer) -> Option<Timestamp> {
    let date = answer.headers.get(http::header::DATE)?.to_str().ok()?;
    jiff::fmt::rfc2822::parse(date).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Status;

    #[tokio::test]
    async fn a_clock_before_this_program_cannot_be_right() {
        let at = async |time: &str| clock(None, time.parse().unwrap()).await.status;
        assert_eq!(at("1970-01-01T00:00:00Z").await, Status::Fail);
        assert_eq!(at("2026-11-24T08:00:00Z").await, Status::Ok);
    }

    #[test]
    fn dates_of_answers_are_read() {
        let mut answer = Answer { status: http::StatusCode::OK, headers: http::HeaderMap::new(), body: Vec::new() };
        assert_eq!(date_of(&answer), None);
        answer.headers.insert(http::header::DATE, "Tue, 24 Nov 2026 08:00:00 GMT".parse().unwrap());
        assert_eq!(date_of(&answer), Some("2026-11-24T08:00:00Z".parse().unwrap()));
    }
}
