//! Who is calling? The bearer of every request, whatever its method and whatever session it names.

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;

use super::answer::retry_after;
use super::limits::MAX_TOKEN_BYTES;
use super::metadata::{self, Scopes};
use crate::identity::{Credential, IdentityError, Lacking};
use crate::secret::Secret;
use crate::transport::Service;

/// The header in which a trusted application names the user.
pub const OBO_USER: &str = "obo-user";

/// Seconds that a client is asked to wait when identities cannot be checked.
const UNAVAILABLE_RETRY_S: u32 = 5;

/// Why a request has no credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCredential {
    /// It shows none.
    Missing,
    /// It shows something that is not one.
    Malformed,
}

/// The credential that a request's headers show: `Authorization: Bearer`, and `Obo-User` where it stands beside it.
///
/// # Errors
/// When there is none, or not exactly one.
pub fn credential(headers: &HeaderMap) -> Result<Credential, NoCredential> {
    let value = single(headers, header::AUTHORIZATION.as_str())?.ok_or(NoCredential::Missing)?;
    let (scheme, token) = value.split_once(' ').ok_or(NoCredential::Malformed)?;
    let token = token.trim_matches(' ');
    // RFC 6750 §2.1: token68, and the scheme's name in any case (RFC 9110 §11.1).
    let well_formed =
        !token.is_empty() && token.len() <= MAX_TOKEN_BYTES && token.bytes().all(|b| b.is_ascii_graphic());
    if !scheme.eq_ignore_ascii_case("bearer") || !well_formed {
        return Err(NoCredential::Malformed);
    }
    let obo_user = single(headers, OBO_USER)?.map(str::to_owned);
    Ok(Credential::Bearer { token: Secret::new(token), obo_user })
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, NoCredential> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => std::str::from_utf8(value.as_bytes()).map(Some).map_err(|_| NoCredential::Malformed),
        // Two readers might each take another one.
        (Some(_), Some(_)) => Err(NoCredential::Malformed),
    }
}

/// Authenticates a request, and takes the credential out of it: from here on nobody needs it, and what is not there
/// cannot be logged.
///
/// # Errors
/// The answer for the client.
pub(super) async fn authenticate<S: Service>(
    service: &S,
    parts: &mut Parts,
    challenges: &Challenges,
) -> Result<S::Caller, Response> {
    let path = parts.uri.path().to_owned();
    let path = path.as_str();
    // RFC 6750 §2.3 is not offered: URLs end up in logs and in histories.
    if parts.uri.query().is_some_and(names_a_token) {
        let text = "a token in the query is not accepted; send it in the Authorization header";
        return Err(challenges.answer(path, StatusCode::BAD_REQUEST, Some("invalid_request"), text));
    }
    let shown = credential(&parts.headers);
    parts.headers.remove(header::AUTHORIZATION);
    parts.headers.remove(OBO_USER);
    let error = match shown {
        Ok(credential) => match service.authenticate(&credential).await {
            Ok(caller) => return Ok(caller),
            Err(error) => error,
        },
        Err(NoCredential::Missing) => IdentityError::Missing,
        Err(NoCredential::Malformed) => IdentityError::Invalid { cause: "the header is malformed".to_owned() },
    };
    Err(match error {
        IdentityError::Unavailable { .. } => {
            let text = "who is calling cannot be checked now; try again in a moment";
            let body = json!({"error": "temporarily_unavailable", "error_description": text});
            retry_after((StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response(), UNAVAILABLE_RETRY_S)
        }
        // RFC 6750 §3.1: no error code when nothing was shown.
        IdentityError::Missing => {
            challenges.answer(path, StatusCode::UNAUTHORIZED, None, "a bearer token is needed; sign in to get one")
        }
        IdentityError::Invalid { .. } => {
            let text = "the bearer token is not valid here; sign in again";
            challenges.answer(path, StatusCode::UNAUTHORIZED, Some("invalid_token"), text)
        }
        IdentityError::InsufficientScope(lacking) => challenges.insufficient(&lacking),
    })
}

fn names_a_token(query: &str) -> bool {
    url::form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "access_token")
}

/// The challenges that tell clients where to sign in, and for what.
pub(super) struct Challenges {
    metadata_url: String,
    /// Of the older transport, where it is a resource of its own.
    sse_metadata_url: Option<String>,
    /// What a first token should be asked for. Empty where that differs by issuer, or where nothing is needed.
    scope: String,
}

impl Challenges {
    /// `described`: the resources that have a document, as [`metadata::RESOURCES`] has them.
    pub(super) fn new(public_base: &str, described: &[&str], scopes: &Scopes) -> Self {
        let url = |resource: &str| format!("{public_base}{}", metadata::path(resource));
        let of = |resource: &str| described.contains(&resource).then(|| url(resource));
        Self { metadata_url: url("/mcp"), sse_metadata_url: of("/sse"), scope: scopes.initial.join(" ") }
    }

    /// An answer with the challenge of RFC 9728 §5.1.
    fn answer(&self, path: &str, status: StatusCode, error: Option<&str>, text: &str) -> Response {
        let of_sse = self.sse_metadata_url.as_ref().filter(|_| path != "/mcp");
        let mut value = format!("Bearer resource_metadata=\"{}\"", of_sse.unwrap_or(&self.metadata_url));
        // RFC 6750 §3; MCP 2026-07-28, Authorization §Scope Selection: clients ask for exactly this.
        if !self.scope.is_empty() {
            value.push_str(&format!(", scope=\"{}\"", self.scope));
        }
        if let Some(error) = error {
            value.push_str(&format!(", error=\"{error}\", error_description=\"{text}\""));
        }
        challenge(status, &value, error.unwrap_or("unauthorized"), text)
    }

    /// The answer to a good token with too few scopes (RFC 6750 §3.1). It names all that the request needs, not only
    /// what is missing: clients replace the token they have by one with what is named.
    pub(super) fn insufficient(&self, lacking: &Lacking) -> Response {
        let (needed, missing) = (lacking.needed.join(" "), lacking.missing.join(" "));
        let text = format!("the token does not have the scopes that this needs ({missing}); ask for one that has");
        let value = format!(
            "Bearer error=\"insufficient_scope\", scope=\"{needed}\", resource_metadata=\"{}\", \
             error_description=\"{text}\"",
            self.metadata_url
        );
        challenge(StatusCode::FORBIDDEN, &value, "insufficient_scope", &text)
    }
}

fn challenge(status: StatusCode, value: &str, error: &str, text: &str) -> Response {
    let body = json!({"error": error, "error_description": text});
    let mut response = (status, axum::Json(body)).into_response();
    // URL and scopes come from the configuration, whose check leaves no characters in them that a header refuses.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &[(&'static str, &str)]) -> Result<(String, Option<String>), NoCredential> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        match credential(&headers)? {
            Credential::Bearer { token, obo_user } => Ok((token.expose().to_owned(), obo_user)),
            Credential::OsUser { .. } => panic!("a header is not an OS user"),
        }
    }

    #[test]
    fn one_bearer_and_at_most_one_user() {
        use NoCredential::{Malformed, Missing};
        let token = || Ok(("t".to_owned(), None));
        for (lines, expected) in [
            (&[("authorization", "Bearer t")][..], token()),
            (&[("authorization", "bearer  t ")], token()),
            (&[("authorization", "Bearer t"), ("obo-user", "u 1")], Ok(("t".to_owned(), Some("u 1".to_owned())))),
            (&[], Err(Missing)),
            (&[("obo-user", "u")], Err(Missing)),
            (&[("authorization", "t")], Err(Malformed)),
            (&[("authorization", "Bearer ")], Err(Malformed)),
            (&[("authorization", "Bearer a b")], Err(Malformed)),
            (&[("authorization", "Basic dTpw")], Err(Malformed)),
            (&[("authorization", "Bearer t"), ("authorization", "Bearer t")], Err(Malformed)),
            (&[("authorization", "Bearer t"), ("obo-user", "a"), ("obo-user", "b")], Err(Malformed)),
        ] {
            assert_eq!(shown(lines), expected, "{lines:?}");
        }
        assert_eq!(shown(&[("authorization", &format!("Bearer {}", "t".repeat(MAX_TOKEN_BYTES + 1)))]), Err(Malformed));
    }

    #[test]
    fn tokens_in_the_query_are_seen_however_they_are_spelled() {
        assert!(names_a_token("a=b&access_token=x"));
        assert!(names_a_token("access%5Ftoken=x"));
        assert!(!names_a_token("sessionId=access_token"));
    }
}
