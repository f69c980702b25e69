//! Which scopes a token has, and which it needs to be used here (RFC 6750 §3.1).

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::Config;
use crate::identity::Lacking;

/// Most scopes that are read of a token, and most in a list of obo.toml.
const MAX_SCOPES: usize = 256;

/// Longest scope in a list of obo.toml, in bytes.
const MAX_SCOPE_BYTES: usize = 255;

/// Checks one of the lists of obo.toml. The error begins with the key's name.
pub(super) fn check(key: &str, scopes: &[String]) -> Result<(), String> {
    if scopes.len() > MAX_SCOPES {
        return Err(format!("{key} has more than {MAX_SCOPES} entries; ask for fewer"));
    }
    for scope in scopes {
        // MCP 2026-07-28, Authorization §Scope Selection: whether it gets refresh tokens is between a client and its
        // issuer. No resource can need it.
        if scope == "offline_access" {
            return Err(format!("{key} has offline_access, which says nothing about this server; remove it"));
        }
        // RFC 6749 §3.3. So that it can stand between the quotes of a challenge, too.
        let well_formed = scope.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        if scope.is_empty() || scope.len() > MAX_SCOPE_BYTES || !well_formed {
            return Err(format!("{key} has {scope:?}, which is not a scope; write one scope an entry"));
        }
    }
    Ok(())
}

impl Config {
    /// Every scope that is needed, for calls that change something or for everything else.
    pub(super) fn needed(&self, changes: bool) -> Vec<String> {
        let mut needed: Vec<String> = Vec::new();
        let write = if changes { &self.write_scopes[..] } else { &[] };
        for scope in self.scopes.iter().chain(write) {
            if !needed.contains(scope) {
                needed.push(scope.clone());
            }
        }
        needed
    }

    /// What verified claims lack for calls that change something, or for everything else. The one place that decides.
    pub(super) fn lacking(&self, claims: &Map<String, Value>, changes: bool) -> Result<Option<Lacking>, &'static str> {
        let needed = self.needed(changes);
        // Where nothing is needed, nothing is read: an odd claim that nobody relies on locks nobody out.
        if needed.is_empty() {
            return Ok(None);
        }
        let granted = Granted::read(claims)?;
        let missing: Vec<String> = needed.iter().filter(|scope| !granted.has(scope)).cloned().collect();
        Ok((!missing.is_empty()).then_some(Lacking { needed, missing }))
    }
}

/// The scopes of a token.
struct Granted<'c> {
    scopes: Vec<&'c str>,
    /// Whether they come from `scp`.
    relative: bool,
}

impl<'c> Granted<'c> {
    /// `scope`, a text with spaces (RFC 9068 §2.2.3, RFC 8693 §4.2, RFC 7662 §2.2); where there is none, `scp`, a text
    /// or a list, in which Entra ID and Okta have them. Neither: no scopes.
    fn read(claims: &'c Map<String, Value>) -> Result<Self, &'static str> {
        let words = |text: &'c str| text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>();
        let (scopes, relative) = match (claims.get("scope"), claims.get("scp")) {
            (Some(Value::String(text)), _) => (words(text), false),
            (None, Some(Value::String(text))) => (words(text), true),
            (None, Some(Value::Array(list))) => {
                let texts = list.iter().map(Value::as_str).collect::<Option<_>>();
                (texts.ok_or("scp holds something that is not text")?, true)
            }
            (None, None) => (Vec::new(), false),
            _ => return Err("scope is not text, or scp neither text nor a list"),
        };
        if scopes.len() > MAX_SCOPES {
            return Err("too many scopes");
        }
        Ok(Self { scopes, relative })
    }

    /// Entra ID is asked for `api://obo/Tools.Write` and writes `Tools.Write` into `scp`: names there are relative to
    /// the audience, which is ours.
    fn has(&self, scope: &str) -> bool {
        let short = scope.rsplit_once('/').map(|(_, name)| name).filter(|_| self.relative);
        self.scopes.iter().any(|granted| *granted == scope || Some(*granted) == short)
    }
}

impl Lacking {
    /// What is missing, in words.
    pub fn in_words(&self) -> String {
        let mut text = "your sign-in lacks the permission".to_owned();
        for (number, scope) in self.missing.iter().enumerate() {
            // Writing to memory has no way to fail.
            let _ = write!(text, "{} {scope}", if number == 0 { "" } else { "," });
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(scopes: &str) -> Config {
        toml::from_str(&format!("name = 'corp'\nissuer = 'https://idp.example.com'\naudience = 'a'\n{scopes}")).unwrap()
    }

    fn missing(claims: Value, changes: bool) -> Result<Vec<String>, &'static str> {
        let config = config("scopes = ['read', 'api://obo/use']\nwrite_scopes = ['write', 'read']");
        let lacking = config.lacking(claims.as_object().unwrap(), changes)?;
        Ok(lacking.map(|lacking| lacking.missing).unwrap_or_default())
    }

    #[test]
    fn scopes_are_compared_whole() {
        for (claims, read, change) in [
            (json!({"scope": "read api://obo/use write"}), vec![], vec![]),
            (json!({"scope": "write  api://obo/use   read "}), vec![], vec![]),
            (json!({"scope": "read api://obo/use"}), vec![], vec!["write"]),
            (json!({"scope": "READ api://obo/use"}), vec!["read"], vec!["read", "write"]),
            (json!({"scope": "readwrite api://obo/use"}), vec!["read"], vec!["read", "write"]),
            (
                json!({"scope": "read\tapi://obo/use"}),
                vec!["read", "api://obo/use"],
                vec!["read", "api://obo/use", "write"],
            ),
            (json!({"scp": "read use"}), vec![], vec!["write"]),
            (json!({"scp": ["read", "use", "write"]}), vec![], vec![]),
            (json!({"scp": ["read use write"]}), vec!["read", "api://obo/use"], vec!["read", "api://obo/use", "write"]),
            // Where both stand, `scope` counts; and only names of `scp` are relative.
            (json!({"scope": "read use", "scp": "write"}), vec!["api://obo/use"], vec!["api://obo/use", "write"]),
            (json!({}), vec!["read", "api://obo/use"], vec!["read", "api://obo/use", "write"]),
        ] {
            assert_eq!(missing(claims.clone(), false).unwrap(), read, "{claims}");
            assert_eq!(missing(claims.clone(), true).unwrap(), change, "{claims}");
        }
        for odd in [
            json!({"scope": ["read"]}),
            json!({"scope": null, "scp": "read use"}),
            json!({"scp": [["read"]]}),
            json!({"scp": {"read": true}}),
            json!({"scope": "x ".repeat(MAX_SCOPES + 1)}),
        ] {
            assert!(missing(odd.clone(), false).is_err(), "{odd}");
            assert_eq!(config("").lacking(odd.as_object().unwrap(), true), Ok(None), "nothing is asked for");
        }
    }

    #[test]
    fn lists_hold_scopes_and_nothing_else() {
        for (list, mend) in [
            ("scopes = ['offline_access']", "remove it"),
            ("write_scopes = ['a', 'offline_access']", "remove it"),
            ("scopes = ['a b']", "one scope an entry"),
            ("scopes = ['']", "one scope an entry"),
            ("scopes = ['a\"b']", "one scope an entry"),
            ("scopes = ['a\\b']", "one scope an entry"),
            ("write_scopes = ['é']", "one scope an entry"),
        ] {
            let error = config(list).check().unwrap_err();
            let key = list.split(' ').next().unwrap();
            assert!(error.starts_with(&format!("identity.issuer \"corp\": {key} has ")), "{error}");
            assert!(error.contains(mend), "{error}");
        }
        let many = format!("scopes = [{}]", "'a',".repeat(MAX_SCOPES + 1));
        assert!(config(&many).check().unwrap_err().contains("ask for fewer"));
        let good = config("scopes = ['obo.use', 'api://obo/Tools.Write', 'urn:x:y~!#$%&()*+']");
        assert_eq!(good.check(), Ok(()));
    }
}
