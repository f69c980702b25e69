//! Opaque access tokens: the issuer is asked what they are (RFC 7662).
//!
//! Such a token does not say whose it is, so one issuer at most is asked. Its answer is read by the same rules as the
//! claims of a signed token, and is believed for a minute, so that a token which the issuer has revoked works no longer
//! than that. What strangers can make obo ask is bounded by [`MAX_ASKS`] at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode, header};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use url::Url;

use super::seen::Seen;
use super::sign_in::is_safe;
use super::{Config, Issuer};
use crate::clock::{SharedClock, later};
use crate::egress::{Egress, Limits, json};
use crate::identity::{Authenticate, Credential, IdentityError, Subject};
use crate::secret::Secret;

/// How long a good answer is believed, at most: what a revocation takes to be noticed.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(60);

/// How long a refusal is remembered: clients that send the same bad token again and again cost one question.
pub(super) const BAD_FOR: Duration = Duration::from_secs(5);

/// Most questions to the issuer under way at once.
pub(super) const MAX_ASKS: usize = 16;

/// Longest that a token waits until the issuer may be asked about it.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Bounds of a question.
const LIMITS: Limits = Limits { total: Duration::from_secs(5), body_bytes: 64 << 10 /* 64 KiB */ };

/// Checks that an issuer can be asked. The error begins with the key.
pub(super) fn check(key: &str, config: &Config) -> Result<(), String> {
    if config.introspection && (config.client_id.is_none() || config.client_secret.is_none()) {
        return Err(format!(
            "{key}: introspection needs client_id and client_secret, with which obo asks the issuer; add them"
        ));
    }
    Ok(())
}

/// Asks an issuer about tokens. Cheap to clone.
#[derive(Clone)]
pub(super) struct Introspection(Arc<Inner>);

struct Inner {
    issuer: Issuer,
    egress: Egress,
    clock: SharedClock,
    good: Seen<Subject>,
    /// Apart from the good ones, or a flood of invented tokens would push those out.
    bad: Seen<IdentityError>,
    asks: Arc<Semaphore>,
}

impl Introspection {
    pub(super) fn new(issuer: Issuer, egress: Egress, clock: SharedClock) -> Self {
        Self(Arc::new(Inner {
            issuer,
            egress,
            clock,
            good: Seen::new(),
            bad: Seen::new(),
            asks: Arc::new(Semaphore::new(MAX_ASKS)),
        }))
    }
}

#[async_trait]
impl Authenticate for Introspection {
    /// # Cancellation
    /// A question under way goes on, and its answer is remembered: a caller who hangs up must not be able to undo the
    /// bounds.
    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        let Credential::Bearer { token, obo_user: None } = credential else { return Err(IdentityError::Missing) };
        let this = Arc::clone(&self.0);
        if let Some(known) = this.known(token) {
            return known;
        }
        let Ok(Ok(asking)) = tokio::time::timeout(MAX_WAIT, Arc::clone(&this.asks).acquire_owned()).await else {
            return Err(this.issuer.unavailable("too many questions about tokens are under way"));
        };
        // Others with the same token may have been answered while this one waited.
        if let Some(known) = this.known(token) {
            return known;
        }
        let token = token.clone();
        let asked = tokio::spawn(async move {
            let _asking = asking;
            let result = this.ask(&token).await;
            this.remember(&token, &result);
            result
        });
        // Only a defect or the end of the runtime gets here.
        asked.await.unwrap_or_else(|_| Err(self.0.issuer.unavailable("a question about a token broke off")))
    }
}

impl Inner {
    fn known(&self, token: &Secret) -> Option<Result<Subject, IdentityError>> {
        let now = self.clock.now();
        let good = self.good.get(token.expose(), now).map(Ok);
        good.or_else(|| self.bad.get(token.expose(), now).map(Err))
    }

    fn remember(&self, token: &Secret, result: &Result<Subject, IdentityError>) {
        let now = self.clock.now();
        match result {
            Ok(subject) => {
                let until = later(now, GOOD_FOR);
                let until = subject.expires_at.map_or(until, |expires| expires.min(until));
                self.good.put(token.expose(), subject.clone(), until);
            }
            // That it could not be asked says nothing about the token.
            Err(IdentityError::Unavailable { .. }) => {}
            Err(error) => self.bad.put(token.expose(), error.clone(), later(now, BAD_FOR)),
        }
    }

    async fn ask(&self, token: &Secret) -> Result<Subject, IdentityError> {
        let unavailable = |cause: &str| self.issuer.unavailable(cause);
        let url = self.endpoint().await.map_err(|cause| unavailable(&cause))?;
        // RFC 7662 §2.1.
        let request = self
            .egress
            .request(Method::POST, url)
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, self.basic())
            .form(&[("token", token.expose()), ("token_type_hint", "access_token")]);
        let answer = self.egress.send(request, LIMITS).await.map_err(|error| unavailable(&error.to_string()))?;
        let claims = match (answer.status, json::parse(&answer.body)) {
            (StatusCode::OK, Ok(Value::Object(claims))) => claims,
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                let (issuer, status) = (self.issuer.config.name.as_str(), answer.status.as_u16());
                tracing::error!(
                    issuer,
                    status,
                    "an issuer refuses obo's own client; check client_id and client_secret"
                );
                return Err(unavailable("it refuses obo's client for introspection"));
            }
            (status, _) => {
                return Err(unavailable(&format!("its introspection gave no answer (status {})", status.as_u16())));
            }
        };
        self.read(&claims)
    }

    /// Reads an answer (RFC 7662 §2.2), then as the claims of a signed token are read.
    fn read(&self, claims: &Map<String, Value>) -> Result<Subject, IdentityError> {
        let issuer = &self.issuer;
        match claims.get("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Err(issuer.refused("not an active token, says the issuer")),
            _ => return Err(issuer.unavailable("its introspection does not say whether a token is active")),
        }
        let text = |name: &str| claims.get(name).map(|value| value.as_str().unwrap_or_default());
        if text("iss").is_some_and(|iss| iss != issuer.config.issuer) {
            return Err(issuer.refused("another issuer's token, by its introspection"));
        }
        // RFC 6749 §7.1: a client must not use a type it does not know, and neither must we.
        if text("token_type").is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(issuer.refused("not a bearer token, by its introspection"));
        }
        issuer.check_access_token(claims, self.clock.now())?;
        issuer.access(claims)
    }

    /// Where to ask, from the issuer's own document.
    async fn endpoint(&self) -> Result<Url, String> {
        let metadata = self.issuer.keys.metadata().await?;
        let url = metadata.get("introspection_endpoint").and_then(Value::as_str);
        let url = url.and_then(|url| Url::parse(url).ok()).filter(is_safe);
        url.ok_or_else(|| "its discovery document has no usable introspection_endpoint".to_owned())
    }

    /// Our client's name and secret (RFC 6749 §2.3.1), as a header that is not shown.
    fn basic(&self) -> header::HeaderValue {
        let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let id = self.issuer.config.client_id.as_deref().unwrap_or_default();
        let secret = self.issuer.config.client_secret.as_ref().map_or("", Secret::expose);
        let pair = Secret::new(format!("{}:{}", encoded(id), encoded(secret)));
        let text = Secret::new(format!("Basic {}", STANDARD.encode(pair.expose())));
        // Base64 has no characters that a header refuses.
        let mut value =
            header::HeaderValue::from_str(text.expose()).unwrap_or_else(|_| header::HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }
}
