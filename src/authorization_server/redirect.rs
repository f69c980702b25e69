//! Where a browser is sent with a code: which addresses a client may have, and which of them it asked for.

use url::{Host, Url};

/// Longest redirect URI, in bytes.
const MAX_BYTES: usize = 1024;

/// Schemes of programs that receive what they open and send it nowhere. Any other name without a dot could be a browser's
/// or a file manager's, which would take the code to wherever the rest of the address says.
const PROGRAMS: [&str; 10] =
    ["claude", "cursor", "goose", "kiro", "raycast", "vscode", "vscode-insiders", "vscodium", "windsurf", "zed"];

/// Parameters of an answer (RFC 6749 §4.1.2, RFC 9207 §2). A redirect URI that has them already would answer for itself,
/// and of two readers one may take its words for obo's.
const OURS: [&str; 5] = ["code", "error", "error_description", "iss", "state"];

/// A redirect URI that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// As the client spelled it.
    text: String,
    url: Url,
}

impl Destination {
    /// Reads a redirect URI.
    ///
    /// # Errors
    /// What is wrong with it, to be put after it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_BYTES {
            return Err("is too long");
        }
        // What URL parsers disagree about: they take a backslash for a slash, drop tabs, or cut at spaces.
        if !text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b'"' | b'<' | b'>' | b'^' | b'`')) {
            return Err("has characters that a URL cannot have");
        }
        // RFC 6749 §3.1.2.
        if text.contains('#') {
            return Err("has a fragment");
        }
        let url = Url::parse(text).map_err(|_| "is not an absolute URL")?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a user or a password");
        }
        if url.query_pairs().any(|(name, _)| OURS.contains(&&*name)) {
            return Err("has a parameter that the answer has");
        }
        let plain_authority = || {
            let authority = text.split_once("://").map(|(_, rest)| authority(rest));
            authority.is_some_and(|authority| !authority.is_empty() && !authority.contains('@'))
        };
        match url.scheme() {
            "https" if url.has_host() && plain_authority() => {}
            "https" => return Err("has no host"),
            // RFC 8252 §7.3. By name too: many clients in use register `localhost`.
            "http" if is_loopback(&url) && plain_authority() => {}
            "http" => return Err("is http and not of this computer; only https is sent a code"),
            // RFC 8252 §7.1: a domain of the program's maker, backwards.
            scheme if scheme.contains('.') || PROGRAMS.contains(&scheme) => {}
            _ => return Err("has a scheme that no code is sent to; use https, or one like com.example.app"),
        }
        Ok(Self { text: text.to_owned(), url })
    }

    /// As the client spelled it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a program on the person's computer waits there.
    pub fn is_loopback(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// What kind of place that is, for people. The address itself stands beside it.
    pub fn in_words(&self) -> String {
        match self.url.scheme() {
            "https" => self.url.host_str().unwrap_or_default().to_owned(),
            "http" => "a program on this computer".to_owned(),
            scheme => format!("the program that opens {scheme}: links on this computer"),
        }
    }

    /// The address with the parameters of an answer (RFC 6749 §4.1.2). What the client's own query says stays.
    pub fn with(&self, parameters: &[(&str, &str)]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        let joint = if self.text.contains('?') { '&' } else { '?' };
        format!("{}{joint}{}", self.text, query.finish())
    }

    /// Whether a client that registered this asks for it with `asked`: the very same text (RFC 9700 §2.1), the port of
    /// a loopback address aside, which a program learns only when it begins to listen (RFC 8252 §7.3).
    pub fn admits(&self, asked: &Destination) -> bool {
        if self.text == asked.text {
            return true;
        }
        match (without_port(&self.text), without_port(&asked.text)) {
            (Some(own), Some(other)) => own == other,
            _ => false,
        }
    }
}

/// The part of what follows `://` before path and query.
fn authority(rest: &str) -> &str {
    rest.split(['/', '?']).next().unwrap_or_default()
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// A loopback address as it is spelled, without its port: host, and path with query.
fn without_port(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("http://")?;
    let host = ["127.0.0.1", "[::1]", "localhost"].into_iter().find(|host| rest.starts_with(host))?;
    let after = &rest[host.len()..];
    let Some(port) = after.strip_prefix(':') else {
        return (after.is_empty() || after.starts_with(['/', '?'])).then_some((host, after));
    };
    let end = port.find(['/', '?']).unwrap_or(port.len());
    let (port, path) = port.split_at(end);
    (!port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())).then_some((host, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Destination {
        Destination::parse(text).unwrap_or_else(|why| panic!("{text} {why}"))
    }

    #[test]
    fn some_addresses_are_never_sent_a_code() {
        for text in [
            "",
            "/callback",
            "callback",
            "//evil.example/cb",
            "http://evil.example/cb",
            "http://127.0.0.1.evil.example/cb",
            "http://localhost.evil.example/cb",
            "http://127.0.0.1@evil.example/cb",
            "http://localhost:1@evil.example/cb",
            "http://user@127.0.0.1/cb",
            "http://@127.0.0.1/cb",
            "https://user:pass@app.example/cb",
            "https://@app.example/cb",
            "https://app.example\\@evil.example/cb",
            "http://127.0.0.1\\.evil.example/",
            "https://app.example/cb#fragment",
            "https://app.example/cb#",
            "https://app.example/a b",
            "https://app.example/\t",
            "https://app.example/\r\nset-cookie:a=b",
            "https://app.example/\u{202e}",
            "https://ünïcode.example/",
            "https:///cb",
            "https:app.example/cb",
            "https:/app.example/cb",
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "data:text/html,x",
            "vbscript:x",
            "file:///etc/passwd",
            "blob:https://app.example/x",
            "ftp://app.example/",
            "wss://app.example/",
            "ms-settings:x",
            "intent://x#Intent;end",
            "mailto:a@b.example",
            "SSH://app.example/",
            "https://app.example/cb?code=x",
            "https://app.example/cb?a=b&state=x",
            "https://app.example/cb?%69ss=https://evil.example",
            "http://127.0.0.1/cb?error=x",
            "cursor://x/y?iss=x",
            "microsoft-edge:https://evil.example/cb",
            "googlechromes://evil.example/cb",
            "webcal://evil.example/cb",
            "smb://evil.example/cb",
            "search-ms:x",
            "web+x://evil.example/cb",
            "itms-services://x",
        ] {
            assert!(Destination::parse(text).is_err(), "{text:?}");
        }
        assert!(Destination::parse(&format!("https://app.example/{}", "a".repeat(MAX_BYTES))).is_err());
        for text in [
            "https://claude.example/api/mcp/auth_callback",
            "https://app.example:8443/cb?x=1",
            "http://127.0.0.1/cb",
            "http://127.0.0.1:33418/",
            "http://[::1]:9/cb",
            "http://localhost:6274/oauth/callback",
            "cursor://anysphere.cursor-retrieval/oauth/callback",
            "vscode://vscode.example/x",
            "com.example.app:/oauth2redirect",
        ] {
            at(text);
        }
    }

    #[test]
    fn only_the_same_text_is_the_same_address_and_a_loopback_port_is_free() {
        for (registered, asked) in [
            ("https://app.example/cb", "https://app.example/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:5000/cb"),
            ("http://127.0.0.1:1/cb", "http://127.0.0.1:5000/cb"),
            ("http://127.0.0.1:1/cb", "http://127.0.0.1/cb"),
            ("http://[::1]/cb", "http://[::1]:5000/cb"),
            ("http://localhost:1?x=1", "http://localhost:2?x=1"),
        ] {
            assert!(at(registered).admits(&at(asked)), "{registered} {asked}");
        }
        for (registered, asked) in [
            ("https://app.example/cb", "https://app.example/cb/"),
            ("https://app.example/cb", "https://app.example/cb?x=1"),
            ("https://app.example/cb", "https://app.example/CB"),
            ("https://app.example/cb", "https://app.example:443/cb"),
            ("https://app.example/cb", "https://APP.example/cb"),
            ("https://app.example/cb", "https://app.example/%63b"),
            ("https://app.example/cb", "https://app.example/x/../cb"),
            ("https://app.example/cb", "https://app.example.evil.example/cb"),
            ("https://app.example/cb", "https://evil.example/cb"),
            ("https://app.example:1/cb", "https://app.example:2/cb"),
            ("http://127.0.0.1/cb", "http://localhost/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.2/cb"),
            ("http://127.0.0.1/cb", "http://127.1/cb"),
            ("http://127.0.0.1/cb", "http://[::1]/cb"),
            ("http://127.0.0.1/cb", "https://127.0.0.1/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:5000/cb2"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:5000/cb?x=1"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:5000//cb"),
            ("cursor://a/cb", "cursor://b/cb"),
            ("cursor://a:1/cb", "cursor://a:2/cb"),
        ] {
            assert!(!at(registered).admits(&at(asked)), "{registered} {asked}");
        }
    }

    #[test]
    fn an_answer_keeps_the_address_as_it_is() {
        let parameters = [("code", "a b&c"), ("state", "x=y")];
        assert_eq!(at("https://app.example/cb").with(&parameters), "https://app.example/cb?code=a+b%26c&state=x%3Dy");
        assert_eq!(at("https://app.example/cb?k=v").with(&[("error", "e")]), "https://app.example/cb?k=v&error=e");
    }

    #[test]
    fn a_page_names_where_it_leads() {
        for (text, words) in [
            ("https://tool.example:8443/cb?x", "tool.example"),
            ("HTTP://127.0.0.1:5/cb", "a program on this computer"),
            ("cursor://x/y", "the program that opens cursor: links on this computer"),
        ] {
            assert_eq!(at(text).in_words(), words);
        }
    }
}
