//! Where the database is, and how to get there: TLS with a verified name, except on this machine.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::store::StoreError;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long what was sent may stay unacknowledged before a connection counts as cut.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A database, and how to reach it. The password is in it, so it is never shown.
pub(super) struct Address {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    /// Where it is, without what is secret.
    pub(super) shown: String,
}

impl Address {
    /// Reads a URL as libpq does, with `sslrootcert` for a certificate authority of one's own.
    ///
    /// # Errors
    /// [`StoreError::Unusable`]; the text never holds the URL, which holds the password.
    pub(super) fn parse(url: &Secret) -> Result<Self, StoreError> {
        // Taken apart by hand, because a URL of several hosts is one to libpq alone.
        let (base, query) = url.expose().split_once('?').unwrap_or((url.expose(), ""));
        let (scheme, _) = base.split_once("://").ok_or_else(|| wrong("is no URL"))?;
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(wrong("does not begin with postgresql://"));
        }
        let (mut authority, mut mode, mut kept) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslrootcert", path)) => {
                    authority = Some(percent_decode_str(path).decode_utf8_lossy().into_owned());
                }
                // The name and the certificate are checked in every case.
                Some(("sslmode", "verify-full" | "verify-ca")) => mode = Some("sslmode=require"),
                Some(("sslmode", _)) => mode = Some(pair),
                _ => kept.push(pair),
            }
        }
        kept.extend(mode);
        let rebuilt = Zeroizing::new(format!("{base}?{}", kept.join("&")));
        let mut config = Config::from_str(&rebuilt).map_err(|error| {
            // The cause names an option, never a value.
            wrong(&format!("cannot be used ({})", cause(&error)))
        })?;
        if config.get_hosts().is_empty() {
            return Err(wrong("names no host"));
        }
        let here = config.get_hostaddrs().is_empty() && config.get_hosts().iter().all(is_this_machine);
        if !here {
            if config.get_ssl_mode() == SslMode::Disable {
                return Err(wrong("turns TLS off for a database on another machine; take out sslmode=disable"));
            }
            // "prefer" would go on in the clear with whoever says that it has no TLS.
            config.ssl_mode(SslMode::Require);
        } else if mode.is_none() && authority.is_none() {
            // Nobody can come between, and common servers have a certificate that nobody has signed.
            config.ssl_mode(SslMode::Disable);
        }
        config.application_name("obo");
        config.connect_timeout(CONNECT);
        config.tcp_user_timeout(UNACKNOWLEDGED);
        // After a failover the old primary must not be written to.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let shown = shown(&config);
        Ok(Self { config, tls: MakeRustlsConnect::new(tls(authority.as_deref())?), shown })
    }
}

fn wrong(what: &str) -> StoreError {
    StoreError::Unusable(format!(
        "vault.url {what}; write postgresql://USER:PASSWORD@HOST/DATABASE, or postgresql:///DATABASE?host=/run/postgresql&user=USER"
    ))
}

fn cause(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Whether nobody on a network can come between.
fn is_this_machine(host: &Host) -> bool {
    match host {
        #[cfg(unix)]
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

fn shown(config: &Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
        Host::Tcp(name) => name.clone(),
    });
    let hosts: Vec<_> = hosts.collect();
    format!("database {} at {}", config.get_dbname().or(config.get_user()).unwrap_or("?"), hosts.join(", "))
}

fn tls(authority: Option<&str>) -> Result<rustls::ClientConfig, StoreError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&format!("needs TLS, which cannot be prepared ({error})")))?;
    let Some(path) = authority else {
        let builder = builder
            .with_platform_verifier()
            .map_err(|error| wrong(&format!("needs TLS, and the system's certificates cannot be read ({error})")))?;
        return Ok(builder.with_no_client_auth());
    };
    let unreadable = |why: String| wrong(&format!("names sslrootcert={path}, which {why}"));
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(Path::new(path))
        .map_err(|error| unreadable(format!("cannot be read ({error})")))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unreadable(format!("is not PEM ({error})")))?;
        roots.add(certificate).map_err(|error| unreadable(format!("holds what is no certificate ({error})")))?;
    }
    if roots.is_empty() {
        return Err(unreadable("holds no certificate".to_owned()));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Address, String> {
        Address::parse(&Secret::new(url)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_database_elsewhere_is_reached_with_tls_or_not_at_all() {
        for (url, mode) in [
            ("postgresql://obo:pw@localhost/obo", SslMode::Disable),
            ("postgresql://obo:pw@localhost/obo?sslmode=require", SslMode::Require),
            ("postgresql://obo:pw@127.0.0.1:1,[::1]:6432/obo", SslMode::Disable),
            ("postgresql://obo:pw@a.example.com:1,b.example.com:6432/obo", SslMode::Require),
            ("postgresql://obo:pw@127.0.0.1:6432/obo?sslmode=disable", SslMode::Disable),
            ("postgresql:///obo?host=/run/postgresql&user=obo", SslMode::Disable),
            ("postgresql://obo:pw@db.example.com/obo", SslMode::Require),
            ("postgres://obo:pw@db.example.com/obo?sslmode=prefer", SslMode::Require),
            ("postgresql://obo:pw@db.example.com/obo?sslmode=verify-full", SslMode::Require),
            ("postgresql://obo:pw@localhost,db.example.com/obo", SslMode::Require),
            ("postgresql://obo:pw@localhost/obo?hostaddr=203.0.113.7", SslMode::Require),
        ] {
            assert_eq!(parsed(url).map(|address| address.config.get_ssl_mode()), Ok(mode), "{url}");
        }
        let off = parsed("postgresql://obo:pw@db.example.com/obo?sslmode=disable").err().unwrap();
        assert!(off.contains("turns TLS off"), "{off}");
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_never() {
        for (url, says) in [
            ("not a url pa55", "is no URL"),
            ("mysql://obo:pa55@db/obo", "does not begin with postgresql://"),
            ("postgresql:///obo?password=pa55", "names no host"),
            ("postgresql://obo:pa55@db/obo?sslmode=pa55", "cannot be used"),
            ("postgresql://obo:pa55@db/obo?unheard_of=pa55", "unheard_of"),
            ("postgresql://obo:pa55@db/obo?sslrootcert=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ] {
            let error = parsed(url).err().unwrap();
            assert!(error.contains(says), "{url}: {error}");
            assert!(!error.contains("pa55"), "{error}");
        }
        let shown = parsed("postgresql://obo:pa55@db.example.com/vault").unwrap().shown;
        assert_eq!(shown, "database vault at db.example.com");
    }
}
