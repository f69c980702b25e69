//! Gives a token back (RFC 7009), in the way that the manifest names.
//!
//! Written here and not with the `oauth2` crate: that one refuses loopback emulators, knows no bearer style, and cannot
//! tell "the provider did not know it" from an error.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{Revocation, bearer};
use crate::catalog::Provider;
use crate::catalog::provider::{ClientAuth, RevokeManifest, RevokeStyle};
use crate::egress::{Answer, Egress, json};
use crate::secret::Secret;

/// Error codes that mean that the token was no good any more, which is what was wanted (RFC 7009 §2.2).
const ALREADY_GONE: &[&str] = &["invalid_token", "token_revoked", "token_expired", "invalid_auth"];

/// The request; none, where the token or the client's credentials cannot be written into one.
pub(super) fn request(
    egress: &Egress,
    provider: &Provider,
    manifest: &RevokeManifest,
    token: &Secret,
) -> Option<reqwest::RequestBuilder> {
    if manifest.style == RevokeStyle::ApplicationGrant {
        return application_grant(egress, provider, manifest, token);
    }
    let request = egress.request(Method::POST, manifest.url.clone()).headers(provider.headers.clone());
    let request = request.header(ACCEPT, "application/json");
    if manifest.style == RevokeStyle::Json {
        let client = provider.client.as_ref()?;
        let request = request.header(AUTHORIZATION, basic(&client.id, client.secret.as_ref()?)?);
        let body = json!({"token": token.expose()}).to_string();
        return Some(request.header(CONTENT_TYPE, "application/json").body(body));
    }
    if manifest.style == RevokeStyle::Bearer {
        return Some(request.header(AUTHORIZATION, bearer(token).ok()?).header(CONTENT_LENGTH, "0"));
    }
    with_token(request, provider, token)
}

/// A form with the token and the client's credentials, given as at the token endpoint (RFC 7009 §2.1, RFC 7662 §2.1).
pub(super) fn with_token(
    request: reqwest::RequestBuilder,
    provider: &Provider,
    token: &Secret,
) -> Option<reqwest::RequestBuilder> {
    let client = provider.client.as_ref()?;
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("token", token.expose());
    let credentials = match (&client.secret, provider.oauth.client_auth) {
        (Some(secret), ClientAuth::Basic) => Some(basic(&client.id, secret)?),
        (secret, _) => {
            form.append_pair("client_id", &client.id);
            if let Some(secret) = secret {
                form.append_pair("client_secret", secret.expose());
            }
            None
        }
    };
    let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.finish());
    Some(match credentials {
        Some(credentials) => request.header(AUTHORIZATION, credentials),
        None => request,
    })
}

/// Ends all that a person allowed the client (GitHub's REST API, "Delete an app authorization").
fn application_grant(
    egress: &Egress,
    provider: &Provider,
    manifest: &RevokeManifest,
    token: &Secret,
) -> Option<reqwest::RequestBuilder> {
    let client = provider.client.as_ref()?;
    let mut url = manifest.url.clone();
    url.path_segments_mut().ok()?.pop_if_empty().extend([client.id.as_str(), "grant"]);
    let body = json!({"access_token": token.expose()}).to_string();
    let request = egress.request(Method::DELETE, url).header(ACCEPT, "application/json");
    let request = request.header(AUTHORIZATION, basic(&client.id, client.secret.as_ref()?)?);
    Some(request.header(CONTENT_TYPE, "application/json").body(body))
}

/// What the answer means.
pub(super) fn outcome(style: RevokeStyle, answer: &Answer) -> Revocation {
    let body = json::parse(&answer.body).unwrap_or(Value::Null);
    match body.get("error").and_then(Value::as_str) {
        Some(code) if ALREADY_GONE.contains(&code) => return Revocation::Revoked,
        Some(_) => return Revocation::Failed,
        None => {}
    }
    // "Yes" in the status and "no" in the body is no.
    let denied = ["ok", "revoked", "success"].iter().any(|name| body.get(name) == Some(&Value::Bool(false)));
    match (answer.status.as_u16(), style) {
        (200..=299, _) if !denied => Revocation::Revoked,
        // The token was its own credential, and is not accepted any more.
        (401, RevokeStyle::Bearer) => Revocation::Revoked,
        // It is no access token of the client's any more, or a refresh token, which ends with the grant. Credentials that
        // are not accepted are answered with 404.
        (422, RevokeStyle::ApplicationGrant) => Revocation::Revoked,
        _ => Revocation::Failed,
    }
}

/// HTTP Basic with both parts form-encoded first (RFC 6749 §2.3.1).
pub(super) fn basic(id: &str, secret: &Secret) -> Option<HeaderValue> {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encoded(id), encoded(secret.expose()));
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}
