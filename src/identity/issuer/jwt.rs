//! A signed token, before and after its signature is verified (RFC 7515, RFC 7519).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use crate::egress::json;
use crate::identity::MAX_BEARER_BYTES;

/// Longest key id looked at, in bytes.
const MAX_KEY_ID_BYTES: usize = 256;

/// A token in the right form whose signature nobody has verified.
///
/// **Permitted use**: finding the issuer and the key, and refusing early. Who somebody is comes out of
/// [`Unverified::verify`] only.
pub(super) struct Unverified<'t> {
    /// What is signed: `header.claims`, as sent.
    message: &'t str,
    /// In base64url.
    signature: &'t str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
}

impl<'t> Unverified<'t> {
    /// Takes a token apart.
    pub(super) fn parse(token: &'t str) -> Result<Self, &'static str> {
        if token.len() > MAX_BEARER_BYTES {
            return Err("longer than obo reads");
        }
        let (message, signature) = token.rsplit_once('.').ok_or("not three parts")?;
        let (header, claims) = message.split_once('.').ok_or("not three parts")?;
        if claims.contains('.') {
            return Err("not three parts");
        }
        let header = part(header, "the header is not a JSON object")?;
        // RFC 7515 §4.1.11: an extension that is not understood must be refused, and none is.
        if header.contains_key("crit") {
            return Err("the header has critical extensions");
        }
        check_type(header.get("typ"))?;
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(algorithm_named);
        let algorithm = algorithm.ok_or("signed by an algorithm that is not accepted")?;
        // `jku`, `x5u`, `jwk` and `x5c` are not looked at: keys come from the configured issuer (RFC 8725 §3.10).
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) if id.len() <= MAX_KEY_ID_BYTES => Some(id.clone()),
            Some(_) => return Err("the key id is not text, or too long"),
        };
        let claims = part(claims, "the claims are not a JSON object without duplicate names")?;
        Ok(Self { message, signature, algorithm, key_id, claims })
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    pub(super) fn unverified_claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// Verifies the signature with any of `keys`, each of which fits the algorithm, and gives the claims out.
    pub(super) fn verify(self, keys: &[DecodingKey]) -> Result<Map<String, Value>, &'static str> {
        let signed_by = |key: &DecodingKey| {
            jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, self.algorithm).unwrap_or(false)
        };
        if keys.iter().any(signed_by) { Ok(self.claims) } else { Err("the signature does not fit") }
    }
}

/// Decodes one part: base64url without padding, then a JSON object without duplicate names (RFC 7519 §4).
fn part(text: &str, error: &'static str) -> Result<Map<String, Value>, &'static str> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| error)?;
    match json::parse(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(error),
    }
}

/// `at+jwt` (RFC 9068 §2.1) or `JWT`, in any case and with or without `application/` (RFC 7515 §4.1.9). Providers that
/// write no type are common; other types are tokens for another use (RFC 8725 §3.11).
fn check_type(value: Option<&Value>) -> Result<(), &'static str> {
    let Some(value) = value else { return Ok(()) };
    let name = value.as_str().unwrap_or_default().to_ascii_lowercase();
    match name.strip_prefix("application/").unwrap_or(&name) {
        "at+jwt" | "jwt" => Ok(()),
        _ => Err("not an access token by its type"),
    }
}

/// The signatures accepted: asymmetric ones only. With HMAC, whoever has the public key could sign (RFC 8725 §2.1).
pub(super) fn algorithm_named(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}
