//! Who is calling? The bearer of every request, whatever its method and whatever session it names.

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;

use super::answer::retry_after;
use super::limits::MAX_TOKEN_BYTES;
use crate::identity::{Credential, IdentityError};
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
    metadata_url: &str,
) -> Result<S::Caller, Response> {
    // RFC 6750 §2.3 is not offered: URLs end up in logs and in histories.
    if parts.uri.query().is_some_and(names_a_token) {
        let text = "a token in the query is not accepted; send it in the Authorization header";
        return Err(challenge(StatusCode::BAD_REQUEST, metadata_url, Some("invalid_request"), text));
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
            challenge(StatusCode::UNAUTHORIZED, metadata_url, None, "a bearer token is needed; sign in to get one")
        }
        IdentityError::Invalid { .. } => {
            let text = "the bearer token is not valid here; sign in again";
            challenge(StatusCode::UNAUTHORIZED, metadata_url, Some("invalid_token"), text)
        }
    })
}

fn names_a_token(query: &str) -> bool {
    url::form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "access_token")
}

/// An answer with the challenge that tells clients where to sign in (RFC 9728 §5.1).
fn challenge(status: StatusCode, metadata_url: &str, error: Option<&str>, text: &str) -> Response {
    let mut value = format!("Bearer resource_metadata=\"{metadata_url}\"");
    if let Some(error) = error {
        value.push_str(&format!(", error=\"{error}\", error_description=\"{text}\""));
    }
    let body = json!({"error": error.unwrap_or("unauthorized"), "error_description": text});
    let mut response = (status, axum::Json(body)).into_response();
    // The URL comes from the configuration and was parsed as one, so it has no characters that a header refuses.
    if let Ok(value) = HeaderValue::from_str(&value) {
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
