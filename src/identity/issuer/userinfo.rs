//! What an ID token leaves out (OpenID Connect Core §5.3). Issuers exist that tell a person's groups at their userinfo
//! endpoint alone; taken for somebody without groups, the person would be let through where a policy forbids by group.

use std::time::Duration;

use http::{Method, StatusCode, header};
use serde_json::{Map, Value};
use url::Url;

use super::Issuer;
use super::sign_in::is_safe;
use crate::egress::{Limits, json};
use crate::identity::IdentityError;
use crate::secret::Secret;

/// Bounds of the request.
const LIMITS: Limits = Limits { total: Duration::from_secs(5), body_bytes: 64 << 10 /* 64 KiB */ };

impl Issuer {
    /// An ID token's claims, with those that obo.toml names and that only the userinfo endpoint tells. Where there is no
    /// such endpoint, what the ID token says is all there is.
    pub(super) async fn completed(
        &self,
        mut claims: Map<String, Value>,
        access_token: &Secret,
    ) -> Result<Map<String, Value>, IdentityError> {
        let config = &self.config;
        let named = [Some(&config.user_claim), config.tenant_claim.as_ref(), config.groups_claim.as_ref()];
        let missing: Vec<&String> = named.into_iter().flatten().filter(|name| !claims.contains_key(*name)).collect();
        if missing.is_empty() {
            return Ok(claims);
        }
        let metadata = self.keys.metadata().await.map_err(|cause| self.unavailable(&cause))?;
        let Some(url) = metadata.get("userinfo_endpoint") else { return Ok(claims) };
        let url = url.as_str().and_then(|url| Url::parse(url).ok()).filter(is_safe);
        let url = url.ok_or_else(|| self.unavailable("its discovery document has no usable userinfo_endpoint"))?;
        let mut told = self.userinfo(url, access_token).await?;
        // OpenID Connect Core §5.3.2: it could be about somebody else.
        if claims.get("sub").is_none_or(|own| told.get("sub") != Some(own)) {
            return Err(self.refused("its userinfo is about somebody else than the ID token (sub)"));
        }
        for name in missing {
            claims.extend(told.remove_entry(name));
        }
        Ok(claims)
    }

    async fn userinfo(&self, url: Url, access_token: &Secret) -> Result<Map<String, Value>, IdentityError> {
        let bearer = Secret::new(format!("Bearer {}", access_token.expose()));
        let mut bearer = header::HeaderValue::from_str(bearer.expose())
            .map_err(|_| self.unavailable("its access token is not one that can be sent"))?;
        bearer.set_sensitive(true);
        let request = self
            .egress
            .request(Method::GET, url)
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, bearer);
        let answer = self.egress.send(request, LIMITS).await.map_err(|error| self.unavailable(&error.to_string()))?;
        match (answer.status, json::parse(&answer.body)) {
            (StatusCode::OK, Ok(Value::Object(told))) => Ok(told),
            (status, _) => Err(self.unavailable(&format!("its userinfo gave no JSON (status {})", status.as_u16()))),
        }
    }
}
