//! People of an identity provider: its signed access tokens (RFC 7519, RFC 9068), checked by its published keys.
//!
//! Hardened along RFC 8725: the key decides the algorithm, the configuration decides the issuer and the audience, and
//! nothing in a token decides where keys come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::{Authenticate, Credential, IdentityError, MAX_GROUPS, Subject, Via, bounded_groups};
use crate::clock::SharedClock;
use crate::egress::{self, Egress};
use crate::id::{Person, Source, TenantId, UserId};
use crate::secret::Secret;

mod introspection;
mod jwks;
mod jwt;
mod keys;
mod scopes;
mod seen;
mod sign_in;
#[cfg(test)]
mod tests;
mod userinfo;

pub use seen::MAX_SEEN_TOKENS;
pub use sign_in::SignIn;

use introspection::Introspection;
use jwt::Unverified;
use keys::{IssuerKeys, NoKey};
use seen::Seen;

/// How far the issuer's clock may differ from ours, in seconds, in either direction (RFC 7519 §4.1.4).
pub const LEEWAY_S: i64 = 60;

/// Most audiences looked at in a token.
const MAX_AUDIENCES: usize = 64;

/// `[[identity.issuer]]` of obo.toml.
#[derive(Clone, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, unique: the source of its people.
    #[schemars(with = "String")]
    pub name: Source,
    /// The issuer, spelled exactly as in its tokens.
    pub issuer: String,
    /// The audience its tokens for this server have. Default: `public_url` + `/mcp`. Never equal to `client_id`, because
    /// ID tokens, which every page of the organisation gets, have that one.
    #[serde(default)]
    pub audience: Option<String>,
    /// The organisation of all its people. Default: `default`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub tenant: Option<TenantId>,
    /// In place of `tenant`: the claim that names a person's organisation.
    #[serde(default)]
    pub tenant_claim: Option<String>,
    /// The values of `tenant_claim` that are accepted.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub tenants: Vec<TenantId>,
    /// The claim that is a person's id. It must never change and never be given to somebody else.
    #[serde(default = "sub")]
    pub user_claim: String,
    /// The claim that lists a person's groups, for policies. None: no groups.
    #[serde(default)]
    pub groups_claim: Option<String>,
    /// Scopes that every access token must have. Default none. A token without them is answered with 403 and the list,
    /// for the client to ask for.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Scopes that calls of tools which change something need besides. Default none.
    #[serde(default)]
    pub write_scopes: Vec<String>,
    /// The client for signing in on the consent pages (OpenID Connect, code with PKCE).
    #[serde(default)]
    pub client_id: Option<String>,
    /// Its secret, where it has one.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub client_secret: Option<Secret>,
    /// Scopes to ask for beside `openid` when people sign in on the pages: issuers exist that tell a person's groups only
    /// to clients that ask for `groups`. Default none.
    #[serde(default)]
    pub sign_in_scopes: Vec<String>,
    /// Whether its opaque access tokens are accepted: it is asked about each (RFC 7662), as the client above. One issuer
    /// at most can have this, because an opaque token does not say whose it is. Default `false`.
    #[serde(default)]
    pub introspection: bool,
}

fn sub() -> String {
    "sub".to_owned()
}

impl Config {
    /// Whether its people can be of this tenant.
    pub(super) fn may_be_in(&self, tenant: &TenantId) -> bool {
        match (&self.tenant_claim, &self.tenant) {
            (Some(_), _) => self.tenants.contains(tenant),
            (None, Some(own)) => own == tenant,
            (None, None) => *tenant == TenantId::default_tenant(),
        }
    }

    /// Checks what serde cannot.
    pub(super) fn check(&self) -> Result<(), String> {
        let name = self.name.as_str();
        let key = format!("identity.issuer {name:?}");
        if self.name == Source::obo() || name.starts_with("app:") {
            return Err(format!("{key}: the name is taken by obo itself; choose another"));
        }
        check_issuer_url(&self.issuer).map_err(|rule| format!("{key}: issuer {:?} {rule}", self.issuer))?;
        match self.audience.as_deref() {
            None | Some("") => {
                return Err(format!("{key}: audience is missing; it is public_url + \"/mcp\" as a rule"));
            }
            Some(audience) if Some(audience) == self.client_id.as_deref() => {
                return Err(format!(
                    "{key}: audience equals client_id, so ID tokens would be accepted; give it its own"
                ));
            }
            Some(_) => {}
        }
        match (&self.tenant, &self.tenant_claim, self.tenants.is_empty()) {
            (Some(_), Some(_), _) => Err(format!("{key}: tenant and tenant_claim exclude each other; keep one")),
            (None, Some(_), true) => Err(format!("{key}: tenant_claim needs tenants, the list of values to accept")),
            (_, None, false) => Err(format!("{key}: tenants is for tenant_claim; add it, or use tenant")),
            _ => Ok(()),
        }?;
        if !self.sign_in_scopes.is_empty() && self.client_id.is_none() {
            return Err(format!("{key}: sign_in_scopes is for signing in on the pages; add client_id, or remove it"));
        }
        introspection::check(&key, self)?;
        scopes::check(&format!("{key}: scopes"), &self.scopes)?;
        scopes::check(&format!("{key}: write_scopes"), &self.write_scopes)?;
        scopes::check(&format!("{key}: sign_in_scopes"), &self.sign_in_scopes)?;
        for (claim, key_name) in [
            (Some(&self.user_claim), "user_claim"),
            (self.groups_claim.as_ref(), "groups_claim"),
            (self.tenant_claim.as_ref(), "tenant_claim"),
        ] {
            if claim.is_some_and(String::is_empty) {
                return Err(format!("{key}: {key_name} is empty; name a claim"));
            }
        }
        Ok(())
    }
}

fn check_issuer_url(issuer: &str) -> Result<(), &'static str> {
    let url = Url::parse(issuer).map_err(|_| "is not a URL; write it as the tokens' iss claim has it")?;
    let loopback = url.host().is_some_and(|host| egress::is_loopback(&host));
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        _ => return Err("must be https, or http on a loopback host"),
    }
    // RFC 8414 §2, OpenID Connect Discovery §3.
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err("must have no query, fragment or user; write it as the tokens' iss claim has it");
    }
    Ok(())
}

/// All configured issuers.
pub struct Issuers {
    by_issuer: BTreeMap<String, Issuer>,
    introspection: Option<Introspection>,
    seen: Seen<Subject>,
    clock: SharedClock,
}

#[derive(Clone)]
struct Issuer {
    config: Config,
    keys: Arc<IssuerKeys>,
    egress: Egress,
}

impl Issuers {
    pub(super) fn new(configs: Vec<Config>, egress: Egress, clock: SharedClock) -> Self {
        let issuer = |config: Config| {
            let keys = Arc::new(IssuerKeys::new(config.issuer.clone(), egress.clone(), Arc::clone(&clock)));
            (config.issuer.clone(), Issuer { config, keys, egress: egress.clone() })
        };
        let by_issuer: BTreeMap<String, Issuer> = configs.into_iter().map(issuer).collect();
        let asked = by_issuer.values().find(|issuer| issuer.config.introspection).cloned();
        let introspection = asked.map(|issuer| Introspection::new(issuer, egress.clone(), Arc::clone(&clock)));
        Self { by_issuer, introspection, seen: Seen::new(), clock }
    }

    /// Who looks at opaque tokens, where anybody does.
    pub(super) fn opaque(&self) -> Option<&dyn Authenticate> {
        self.introspection.as_ref().map(|introspection| introspection as &dyn Authenticate)
    }

    pub(super) fn configs(&self) -> impl Iterator<Item = &Config> {
        self.by_issuer.values().map(|issuer| &issuer.config)
    }
}

#[async_trait]
impl Authenticate for Issuers {
    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        let Credential::Bearer { token, obo_user: None } = credential else { return Err(IdentityError::Missing) };
        let now = self.clock.now();
        if let Some(subject) = self.seen.get(token.expose(), now) {
            return Ok(subject);
        }
        let text = token.expose();
        let token = Unverified::parse(text).map_err(IdentityError::invalid)?;
        // The unverified issuer chooses among those configured, and nothing else: no request goes to any other.
        let issuer = token.issuer().and_then(|issuer| self.by_issuer.get(issuer));
        let issuer =
            issuer.ok_or_else(|| IdentityError::invalid("a signed token of an issuer that is not configured"))?;
        issuer.check_access_token(token.unverified_claims(), now)?;
        let claims = issuer.verify(token).await?;
        let subject = issuer.access(&claims)?;
        // Not beyond the time until which the keys at hand are believed without asking: a withdrawn key is noticed ten
        // minutes after it was last seen, at the latest.
        if let (Some(expires), Some(fresh_until)) = (subject.expires_at, issuer.keys.fresh_until()) {
            self.seen.put(text, subject.clone(), expires.min(fresh_until));
        }
        Ok(subject)
    }
}

impl Issuer {
    /// What an access token's claims must say before anybody is asked whether they are true: junk, expired tokens and
    /// those of others cost no request to the issuer.
    fn check_access_token(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<(), IdentityError> {
        let audience = self.config.audience.as_deref().unwrap_or_default();
        check_times(claims, now).map_err(|cause| self.refused(cause))?;
        check_audience(claims, audience).map_err(|cause| self.refused(cause))?;
        // Bound to a key of its holder by DPoP (RFC 9449 §6.1) or mutual TLS (RFC 8705 §3). obo looks at no proof of
        // that key, and taken as a plain bearer such a token would be worth stealing again (RFC 9449 §7.1).
        if claims.contains_key("cnf") {
            return Err(
                self.refused("bound to a key (cnf), for which obo checks no proof; it takes plain bearer tokens")
            );
        }
        Ok(())
    }

    /// Verifies a token's signature.
    async fn verify(&self, token: Unverified<'_>) -> Result<Map<String, Value>, IdentityError> {
        let issued = token.unverified_claims().get("iat").and_then(numeric_date);
        let keys = match self.keys.find(token.key_id(), token.algorithm(), issued).await {
            Ok(keys) => keys,
            Err(NoKey::Unknown) => return Err(self.refused("signed with a key that the issuer does not publish")),
            Err(NoKey::Ambiguous) => return Err(self.refused("names no key, and the issuer has several")),
            Err(NoKey::Unavailable(cause)) => return Err(self.unavailable(&cause)),
        };
        token.verify(&keys).map_err(|cause| self.refused(cause))
    }

    /// Whom an access token is about, by its verified claims, and what its scopes allow.
    fn access(&self, claims: &Map<String, Value>) -> Result<Subject, IdentityError> {
        let lacking = |changes| self.config.lacking(claims, changes).map_err(|cause| self.refused(cause));
        let subject = self.subject(claims)?;
        match lacking(false)? {
            Some(lacking) => Err(IdentityError::InsufficientScope(Arc::new(lacking))),
            None => Ok(Subject { lacking: lacking(true)?.map(Arc::new), ..subject }),
        }
    }

    /// Whom verified claims are about.
    fn subject(&self, claims: &Map<String, Value>) -> Result<Subject, IdentityError> {
        let person = Person {
            tenant: self.tenant(claims).map_err(|cause| self.refused(cause))?,
            source: self.config.name.clone(),
            user: self.user(claims).map_err(|cause| self.refused(cause))?,
        };
        let groups = self.groups(claims).map_err(|cause| self.refused(cause))?;
        let expires = claims.get("exp").and_then(numeric_date);
        let expires_at = expires.and_then(|seconds| Timestamp::from_second(seconds).ok());
        let via = Via::Issuer(self.config.name.as_str().to_owned());
        Ok(Subject { person, groups, via, expires_at, lacking: None })
    }

    fn refused(&self, cause: &str) -> IdentityError {
        IdentityError::invalid(format!("issuer {}: {cause}", self.config.name))
    }

    fn unavailable(&self, cause: &str) -> IdentityError {
        IdentityError::unavailable(format!("issuer {}: {cause}", self.config.name))
    }

    fn user(&self, claims: &Map<String, Value>) -> Result<UserId, &'static str> {
        let claim = claims.get(&self.config.user_claim).ok_or("the user claim is missing")?;
        claim.as_str().and_then(|user| user.parse().ok()).ok_or("the user claim is not a user id")
    }

    fn tenant(&self, claims: &Map<String, Value>) -> Result<TenantId, &'static str> {
        let Some(claim) = &self.config.tenant_claim else {
            return Ok(self.config.tenant.clone().unwrap_or_else(TenantId::default_tenant));
        };
        let value = claims.get(claim).and_then(Value::as_str).ok_or("the tenant claim is missing or not text")?;
        let tenant = self.config.tenants.iter().find(|tenant| tenant.as_str() == value);
        tenant.cloned().ok_or("the tenant claim is not in the list of tenants")
    }

    fn groups(&self, claims: &Map<String, Value>) -> Result<Vec<String>, &'static str> {
        let Some(name) = &self.config.groups_claim else { return Ok(Vec::new()) };
        let Some(claim) = claims.get(name) else {
            // OpenID Connect Core §5.6.2: where issuers put more groups than they write into a token.
            let elsewhere =
                claims.get("_claim_names").and_then(Value::as_object).is_some_and(|all| all.contains_key(name));
            return if elsewhere { Err("the groups stand elsewhere (_claim_names)") } else { Ok(Vec::new()) };
        };
        let groups = match claim {
            Value::String(group) => vec![group.clone()],
            Value::Array(groups) if groups.len() <= MAX_GROUPS => {
                let texts = groups.iter().map(|group| group.as_str().map(str::to_owned)).collect::<Option<_>>();
                texts.ok_or("the groups claim holds something that is not text")?
            }
            Value::Array(_) => return Err("too many groups"),
            _ => return Err("the groups claim is neither text nor a list"),
        };
        bounded_groups(groups)
    }
}

/// `exp` is required (RFC 9068 §2.2); `nbf` and `iat`, where present, must have come.
fn check_times(claims: &Map<String, Value>, now: Timestamp) -> Result<(), &'static str> {
    let now = now.as_second();
    let expires = numeric_date(claims.get("exp").ok_or("exp is missing")?).ok_or("exp is not a time")?;
    if expires.saturating_add(LEEWAY_S) <= now {
        return Err("expired");
    }
    for (name, not_yet) in [("nbf", "not valid yet (nbf)"), ("iat", "issued in the future (iat)")] {
        let Some(value) = claims.get(name) else { continue };
        let begins = numeric_date(value).ok_or("nbf or iat is not a time")?;
        if begins.saturating_sub(LEEWAY_S) > now {
            return Err(not_yet);
        }
    }
    Ok(())
}

/// A NumericDate (RFC 7519 §2): seconds, maybe with a fraction, within the time that the clock can show.
fn numeric_date(value: &Value) -> Option<i64> {
    let seconds = match value.as_i64() {
        Some(seconds) => seconds,
        // Out of range saturates, and is refused below.
        None => value.as_f64()?.floor() as i64,
    };
    (0..=Timestamp::MAX.as_second()).contains(&seconds).then_some(seconds)
}

/// `aud` is one text or a list of them (RFC 7519 §4.1.3), and names this server.
fn check_audience(claims: &Map<String, Value>, ours: &str) -> Result<(), &'static str> {
    if ours.is_empty() {
        return Err("no audience is configured");
    }
    match claims.get("aud") {
        Some(Value::String(audience)) if audience == ours => Ok(()),
        Some(Value::Array(list)) if list.len() <= MAX_AUDIENCES && list.iter().all(Value::is_string) => {
            let named = list.iter().any(|audience| audience.as_str() == Some(ours));
            if named { Ok(()) } else { Err("meant for somebody else (aud)") }
        }
        _ => Err("meant for somebody else (aud)"),
    }
}
