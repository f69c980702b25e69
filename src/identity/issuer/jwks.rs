//! An issuer's published keys (RFC 7517).

use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::jwt::algorithm_named;

/// Most keys in a set.
pub(super) const MAX_KEYS: usize = 64;

/// The keys of a set that can verify a signature; the others are left out (RFC 7517 §5).
pub(super) struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    /// Where the key says which of them it is for.
    algorithm: Option<Algorithm>,
    decoding: DecodingKey,
}

impl KeySet {
    /// Reads a set.
    pub(super) fn parse(set: &Value) -> Result<Self, &'static str> {
        let keys = set.get("keys").and_then(Value::as_array).ok_or("the key set has no keys")?;
        if keys.len() > MAX_KEYS {
            return Err("the key set has too many keys");
        }
        Ok(Self { keys: keys.iter().filter_map(|key| read(key.as_object()?)).collect() })
    }

    /// The keys that fit: by id where there is one, and by algorithm always. Ids are compared and never used as a
    /// path, a query or a name.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let fits = |key: &&Key| {
            (id.is_none() || key.id.as_deref() == id)
                && key.algorithms.contains(&algorithm)
                && key.algorithm.is_none_or(|only| only == algorithm)
        };
        self.keys.iter().filter(fits).map(|key| key.decoding.clone()).collect()
    }

    /// Whether there is a key with this id, for whichever algorithm.
    pub(super) fn has(&self, id: Option<&str>) -> bool {
        id.is_some() && self.keys.iter().any(|key| key.id.as_deref() == id)
    }
}

const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// Reads one key; none, where it is not for verifying signatures or of a kind that is not accepted.
fn read(key: &Map<String, Value>) -> Option<Key> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    // RFC 7517 §4.2, §4.3: a key for something else is not for this.
    if key.contains_key("use") && text("use") != Some("sig") {
        return None;
    }
    if let Some(operations) = key.get("key_ops")
        && !operations.as_array()?.iter().any(|operation| operation == "verify")
    {
        return None;
    }
    let (algorithms, decoding): (&'static [Algorithm], _) = match (text("kty")?, text("crv")) {
        // 2048 to 8192 bits; the verification refuses others.
        ("RSA", _) => (RSA, DecodingKey::from_rsa_components(text("n")?, text("e")?)),
        ("EC", Some("P-256")) => (&[Algorithm::ES256], DecodingKey::from_ec_components(text("x")?, text("y")?)),
        ("EC", Some("P-384")) => (&[Algorithm::ES384], DecodingKey::from_ec_components(text("x")?, text("y")?)),
        ("OKP", Some("Ed25519")) => (&[Algorithm::EdDSA], DecodingKey::from_ed_components(text("x")?)),
        // Among the others `oct`: a published key that verifies could sign just as well.
        _ => return None,
    };
    let algorithm = match key.get("alg") {
        None => None,
        // RFC 9864 §2.2 gives EdDSA with this curve a name of its own.
        Some(name) if name == "Ed25519" => Some(Algorithm::EdDSA),
        Some(name) => Some(algorithm_named(name.as_str()?)?),
    };
    let id = match key.get("kid") {
        None => None,
        Some(id) => Some(id.as_str()?.to_owned()),
    };
    Some(Key { id, algorithms, algorithm, decoding: decoding.ok()? })
}
