//! Signing a browser in through the issuer (OpenID Connect Core §3.1): where to, and who came back.

use serde_json::Value;
use subtle::ConstantTimeEq as _;
use url::Url;

use super::jwt::Unverified;
use super::{Issuer, Issuers, check_audience, check_times};
use crate::egress;
use crate::id::Source;
use crate::identity::{IdentityError, Subject};
use crate::secret::Secret;

/// Where an issuer signs people in, and as which client.
pub struct SignIn {
    /// The issuer, which an `iss` in its answer must equal (RFC 9207 §2.4).
    pub issuer: String,
    /// Whether it announces that its answers have `iss`, so that one without is refused (RFC 9207 §2.3).
    pub sends_iss: bool,
    /// The authorization endpoint.
    pub authorization_url: Url,
    /// The token endpoint.
    pub token_url: Url,
    /// What is asked for: `openid`, and what obo.toml adds.
    pub scopes: Vec<String>,
    /// Our client id.
    pub client_id: String,
    /// Our secret, where there is one.
    pub client_secret: Option<Secret>,
    /// Whether the secret goes into the body: only where the issuer does not take HTTP Basic.
    pub secret_in_body: bool,
}

impl Issuers {
    /// Whether people of this source can be signed in in a browser.
    pub(in crate::identity) fn signs_in(&self, source: &Source) -> bool {
        self.named(source).is_some_and(|issuer| issuer.config.client_id.is_some())
    }

    /// Where people of this source sign in.
    pub(in crate::identity) async fn sign_in(&self, source: &Source) -> Result<SignIn, IdentityError> {
        let issuer = self.named(source).ok_or(IdentityError::Missing)?;
        let client_id = issuer.config.client_id.clone().ok_or(IdentityError::Missing)?;
        let unavailable = |cause: String| IdentityError::unavailable(format!("issuer {source}: {cause}"));
        let metadata = issuer.keys.metadata().await.map_err(unavailable)?;
        let endpoint = |name: &str| {
            let url = metadata.get(name).and_then(Value::as_str).and_then(|url| Url::parse(url).ok());
            url.filter(is_safe).ok_or_else(|| unavailable(format!("its discovery document has no usable {name}")))
        };
        let lists = |name: &str, value: &str| {
            metadata.get(name).and_then(Value::as_array).is_some_and(|list| list.iter().any(|item| item == value))
        };
        // RFC 9700 §2.1.1: without PKCE a stolen code could be brought in here. What is not announced is not supported
        // (RFC 8414 §2).
        if !lists("code_challenge_methods_supported", "S256") {
            return Err(unavailable("it does not announce PKCE with S256".to_owned()));
        }
        // Without the list, Basic is what clients use (OpenID Connect Discovery §3).
        let methods = "token_endpoint_auth_methods_supported";
        let further = issuer.config.sign_in_scopes.iter().filter(|scope| *scope != "openid").cloned();
        let secret_in_body = lists(methods, "client_secret_post") && !lists(methods, "client_secret_basic");
        Ok(SignIn {
            issuer: issuer.config.issuer.clone(),
            sends_iss: metadata.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true)),
            authorization_url: endpoint("authorization_endpoint")?,
            token_url: endpoint("token_endpoint")?,
            scopes: std::iter::once("openid".to_owned()).chain(further).collect(),
            client_id,
            client_secret: issuer.config.client_secret.clone(),
            secret_in_body,
        })
    }

    /// Who an ID token is about (OpenID Connect Core §3.1.3.7). The access token that came with it is shown to the issuer
    /// where the ID token leaves something out.
    pub(in crate::identity) async fn verify_id_token(
        &self,
        source: &Source,
        id_token: &Secret,
        access_token: &Secret,
        nonce: &Secret,
    ) -> Result<Subject, IdentityError> {
        let issuer = self.named(source).ok_or(IdentityError::Missing)?;
        let client_id = issuer.config.client_id.as_deref().ok_or(IdentityError::Missing)?;
        let refused = |cause: &str| IdentityError::invalid(format!("issuer {source}: ID token: {cause}"));
        let token = Unverified::parse(id_token.expose()).map_err(&refused)?;
        if token.issuer() != Some(issuer.config.issuer.as_str()) {
            return Err(refused("it is another issuer's"));
        }
        let claims = token.unverified_claims();
        let sent = claims.get("nonce").and_then(Value::as_str).unwrap_or_default();
        if !bool::from(sent.as_bytes().ct_eq(nonce.expose().as_bytes())) {
            return Err(refused("it was not made for this sign-in (nonce)"));
        }
        // Several audiences need `azp`, and it must be us; where it stands at all it must be us.
        let several = claims.get("aud").and_then(Value::as_array).is_some_and(|list| list.len() > 1);
        match claims.get("azp").and_then(Value::as_str) {
            Some(party) if party == client_id => {}
            None if !several => {}
            _ => return Err(refused("it was made for another client (azp)")),
        }
        check_times(claims, self.clock.now()).map_err(&refused)?;
        check_audience(claims, client_id).map_err(&refused)?;
        let claims = issuer.completed(issuer.verify(token).await?, access_token).await?;
        // An ID token says who came back; how long they stay is not its business. Nor has it scopes.
        Ok(Subject { expires_at: None, ..issuer.subject(&claims)? })
    }

    fn named(&self, source: &Source) -> Option<&Issuer> {
        self.by_issuer.values().find(|issuer| issuer.config.name == *source)
    }
}

/// Codes and secrets go to https, or to this machine.
pub(super) fn is_safe(url: &Url) -> bool {
    let loopback = url.host().is_some_and(|host| egress::is_loopback(&host));
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}
