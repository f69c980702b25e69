//! What the server says about itself to clients that look for where to sign in (RFC 9728).

use std::collections::BTreeSet;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::{Value, json};

use crate::authorization_server;
use crate::identity::issuer;

/// What is said of scopes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes {
    /// What a first token should be asked for, as every 401 says.
    pub(super) initial: Vec<String>,
    /// All scopes that anything here asks for.
    pub(super) supported: Vec<String>,
}

impl Scopes {
    /// Of the configured issuers.
    pub fn of<'i>(issuers: impl Iterator<Item = &'i issuer::Config>) -> Self {
        let issuers: Vec<_> = issuers.collect();
        let sets: BTreeSet<BTreeSet<&String>> = issuers.iter().map(|issuer| issuer.scopes.iter().collect()).collect();
        let all: BTreeSet<&String> =
            issuers.iter().flat_map(|issuer| issuer.scopes.iter().chain(&issuer.write_scopes)).collect();
        let initial = match issuers.first() {
            // Whose issuer a client will go to is not known yet; a scope of another one could be refused there.
            Some(first) if sets.len() == 1 => first.scopes.clone(),
            _ => Vec::new(),
        };
        Self { initial, supported: all.into_iter().cloned().collect() }
    }

    /// Of obo's own authorization server.
    pub fn own() -> Self {
        let one = vec![authorization_server::SCOPE.to_owned()];
        Self { initial: one.clone(), supported: one }
    }
}

/// The paths of resources: of the protocol endpoint, and of the older transport's, to which a client may have been given the
/// address.
pub(super) const RESOURCES: [&str; 2] = ["/mcp", "/sse"];

/// Where the document of the endpoint is too: clients look here where nothing told them better.
pub(super) const ROOT: &str = "/.well-known/oauth-protected-resource";

/// Where a resource's document is: its path is put in (RFC 9728 §3.1).
pub(super) fn path(resource: &str) -> String {
    format!("{ROOT}{resource}")
}

/// The protected resource's metadata (RFC 9728 §2). Without issuers the list is left out: the tokens then come from
/// obo itself, by other ways than OAuth.
pub(super) fn document(public_base: &str, resource: &str, issuers: &[String], scopes: &Scopes) -> Value {
    let mut document = json!({
        "resource": format!("{public_base}{resource}"),
        "bearer_methods_supported": ["header"],
        "resource_name": "obo",
    });
    if !issuers.is_empty() {
        document["authorization_servers"] = json!(issuers);
    }
    if !scopes.supported.is_empty() {
        document["scopes_supported"] = json!(scopes.supported);
    }
    document
}

/// The answer. Public.
pub(super) fn answer(document: Value) -> Response {
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(document)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(lists: &[(&[&str], &[&str])]) -> Scopes {
        let issuer = |(scopes, write): &(&[&str], &[&str])| {
            let text =
                format!("name = 'a'\nissuer = 'https://a.example'\nscopes = {scopes:?}\nwrite_scopes = {write:?}");
            toml::from_str::<issuer::Config>(&text).unwrap()
        };
        let issuers: Vec<_> = lists.iter().map(issuer).collect();
        Scopes::of(issuers.iter())
    }

    #[test]
    fn a_first_token_is_asked_for_with_what_every_issuer_asks() {
        for (lists, initial, supported) in [
            (&[][..], &[][..], &[][..]),
            (&[(&["use", "b"][..], &["write", "b"][..])], &["use", "b"], &["b", "use", "write"]),
            (&[(&["b", "a"], &[]), (&["a", "b"], &["w"])], &["b", "a"], &["a", "b", "w"]),
            (&[(&["a"], &[]), (&["b"], &[])], &[], &["a", "b"]),
            (&[(&["a"], &[]), (&[], &[])], &[], &["a"]),
        ] {
            let found = scopes(lists);
            assert_eq!(
                (&found.initial[..], &found.supported[..]),
                (&text(initial)[..], &text(supported)[..]),
                "{lists:?}"
            );
        }
        assert!(document("https://obo.example.com", "/mcp", &[], &Scopes::default()).get("scopes_supported").is_none());
    }

    fn text(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}
