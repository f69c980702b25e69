//! OAuth 2.0 as both services have it in common: the authorize page, the code exchange, refresh, bearer tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::ledger::{self, Access, Code, Ended, Ledger, RefreshToken, TokenKind, TokenState, Visit};
use super::{Account, Iss, RefreshMode, Service, Shared, page};

/// The token endpoints of both services.
pub(super) const TOKEN_PATHS: [&str; 2] = ["/token", "/api/oauth.v2.access"];

/// How long a code may be exchanged, in seconds (RFC 6749 §4.1.2 recommends ten minutes at most).
const CODE_TTL_S: i64 = 600;

/// The parameters of a query or a form, each at most once (RFC 6749 §3.1, §3.2).
pub(super) struct Params(BTreeMap<String, String>);

impl Params {
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let mut params = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(text) {
            if params.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err("a parameter is repeated");
            }
        }
        Ok(Self(params))
    }

    /// The value; a parameter sent without one is as if it was not sent (RFC 6749 §3.1).
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// How a service spells its authorization request.
pub(super) struct Dialect {
    pub(super) service: Service,
    /// The parameter with the person's scopes.
    pub(super) scope: &'static str,
    /// The parameter with a bot's scopes.
    pub(super) bot_scope: Option<&'static str>,
    pub(super) separator: char,
    pub(super) known_scopes: &'static [&'static str],
    pub(super) response_type_needed: bool,
}

/// GET of the authorize page.
pub(super) fn authorize(shared: &Shared, dialect: &Dialect, path: &str, query: &str) -> Response {
    let params = match Params::parse(query.as_bytes()) {
        Ok(params) => params,
        Err(why) => return page::error("invalid_request", why),
    };
    // Without a client and a redirect URI that belong together nothing is sent anywhere (RFC 6749 §4.1.2.1).
    if params.get("client_id") != Some(dialect.service.client_id()) {
        return page::error("invalid_client", "no such client is registered");
    }
    let redirect_uri = params.get("redirect_uri").unwrap_or_default();
    if !shared.settings.redirect_uris.iter().any(|registered| registered == redirect_uri) {
        return page::error("redirect_uri_mismatch", "this redirect URI is not registered");
    }
    let Some(state) = params.get("state") else {
        return page::error("invalid_request", "state is missing");
    };

    let visit = match visit(dialect, &params, redirect_uri, state) {
        Ok(visit) => visit,
        Err(error) => return redirect(shared, redirect_uri, &[("error", error), ("state", state)]),
    };
    let id = obo::secret::random_text::<16>();
    let answer = page::consent(dialect.service, path, &id, &visit.scopes, params.get("login_hint"));
    shared.ledger().visits.insert(id, visit);
    answer
}

fn visit(dialect: &Dialect, params: &Params, redirect_uri: &str, state: &str) -> Result<Visit, &'static str> {
    match params.get("response_type") {
        Some("code") => {}
        None if !dialect.response_type_needed => {}
        _ => return Err("unsupported_response_type"),
    }
    let split = |name: &str| -> BTreeSet<String> {
        let scopes = params.get(name).unwrap_or_default().split(dialect.separator);
        scopes.filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
    };
    let (scopes, bot_scopes) = (split(dialect.scope), dialect.bot_scope.map(split).unwrap_or_default());
    if scopes.is_empty() && bot_scopes.is_empty() {
        return Err("invalid_scope");
    }
    if scopes.iter().chain(&bot_scopes).any(|scope| !dialect.known_scopes.contains(&scope.as_str())) {
        return Err("invalid_scope");
    }
    // The plain method protects nothing (RFC 7636 §7.2), and an S256 challenge is 43 characters (§4.2).
    let challenge = params.get("code_challenge").map(str::to_owned);
    let s256 = params.get("code_challenge_method") == Some("S256");
    if challenge.as_ref().is_some_and(|challenge| !s256 || challenge.len() != 43) {
        return Err("invalid_request");
    }
    Ok(Visit {
        service: dialect.service,
        redirect_uri: redirect_uri.to_owned(),
        state: state.to_owned(),
        challenge,
        scopes,
        bot_scopes,
        include_granted: params.get("include_granted_scopes") == Some("true"),
        offline: params.get("access_type") == Some("offline"),
        prompt_consent: params.get("prompt").is_some_and(|prompt| prompt.split(' ').any(|word| word == "consent")),
    })
}

/// POST of the authorize page: what the person decided.
pub(super) fn decide(shared: &Shared, body: &[u8]) -> Response {
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(body).into_owned().collect();
    let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let mut ledger = shared.ledger();
    let Some(visit) = field("visit").and_then(|id| ledger.visits.remove(id)) else {
        return page::error("invalid_request", "this page is no longer valid");
    };
    let state = visit.state.clone();
    let Some(account) = field("account").and_then(ledger::account) else {
        return redirect(shared, &visit.redirect_uri, &[("error", "access_denied"), ("state", &state)]);
    };

    let ticked = |scope: &String| {
        !page::may_be_unticked(visit.service, scope)
            || fields.iter().any(|(name, value)| name == "scope" && value == scope)
    };
    let mut scopes: BTreeSet<String> = visit.scopes.iter().filter(|scope| ticked(scope)).cloned().collect();
    if visit.include_granted || visit.service == Service::Slack {
        scopes.extend(ledger.granted(visit.service, account.email));
    }
    let scope_text = scopes.iter().cloned().collect::<Vec<_>>().join(" ");
    let with_refresh = match visit.service {
        // Google hands a refresh token out at the first consent only, unless it is told to ask again.
        Service::Google => {
            visit.offline && (visit.prompt_consent || !ledger.has_refresh_token(visit.service, account.email))
        }
        Service::Slack => true,
    };
    let family = ledger.found(visit.service, account, scopes);
    let text = ledger.issue(TokenKind::Code, "4/", family);
    let code = Code {
        service: visit.service,
        family,
        redirect_uri: visit.redirect_uri.clone(),
        challenge: visit.challenge,
        bot_scopes: visit.bot_scopes,
        with_refresh,
        expires_at: shared.now() + CODE_TTL_S,
        used: false,
    };
    ledger.codes.insert(text.clone(), code);
    drop(ledger);

    let mut answer = vec![("code", text.as_str()), ("state", &state)];
    if visit.service == Service::Google {
        answer.push(("scope", &scope_text));
    }
    redirect(shared, &visit.redirect_uri, &answer)
}

/// 302 back to the client with these parameters, and `iss` as the settings say.
fn redirect(shared: &Shared, redirect_uri: &str, params: &[(&str, &str)]) -> Response {
    let Ok(mut url) = Url::parse(redirect_uri) else {
        return page::error("redirect_uri_mismatch", "the registered redirect URI is not a URL");
    };
    url.query_pairs_mut().extend_pairs(params);
    match &shared.settings.iss {
        Iss::Absent => {}
        Iss::Own => drop(url.query_pairs_mut().append_pair("iss", &shared.origin)),
        Iss::Text(text) => drop(url.query_pairs_mut().append_pair("iss", text)),
    }
    (StatusCode::FOUND, [(header::LOCATION, String::from(url))]).into_response()
}

/// Why a token endpoint refuses; each service says it in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed(&'static str),
    Client,
    RedirectUri,
    Code,
    CodeVerifier,
    RefreshToken,
    GrantType,
}

/// What a token endpoint hands out.
pub(super) struct Issued {
    pub(super) account: &'static Account,
    pub(super) scopes: BTreeSet<String>,
    /// None where the person granted a bot only.
    pub(super) access: Option<String>,
    pub(super) bot: Option<(String, BTreeSet<String>)>,
    pub(super) refresh: Option<String>,
    pub(super) expires_in_s: Option<u64>,
    /// Whether a code was exchanged, rather than a refresh token.
    pub(super) by_code: bool,
}

/// The token endpoint (RFC 6749 §4.1.3, §6).
pub(super) fn token(shared: &Shared, service: Service, headers: &HeaderMap, body: &[u8]) -> Result<Issued, Refusal> {
    let form = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !form.starts_with("application/x-www-form-urlencoded") {
        return Err(Refusal::Malformed("the body is not a form"));
    }
    let params = Params::parse(body).map_err(Refusal::Malformed)?;
    authenticate_client(service, headers, &params)?;
    let mut ledger = shared.ledger();
    match params.get("grant_type") {
        Some("authorization_code") => exchange(shared, &mut ledger, service, &params),
        // Slack's documentation lets the type be left out with a code.
        None if service == Service::Slack => exchange(shared, &mut ledger, service, &params),
        Some("refresh_token") => refresh(shared, &mut ledger, service, &params),
        _ => Err(Refusal::GrantType),
    }
}

/// Client id and secret, in the body or by HTTP Basic, never both (RFC 6749 §2.3).
fn authenticate_client(service: Service, headers: &HeaderMap, params: &Params) -> Result<(), Refusal> {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (id, secret) = match basic {
        Some(_) if params.get("client_secret").is_some() => {
            return Err(Refusal::Malformed("the client authenticates in two ways"));
        }
        Some(value) => basic_credentials(value).ok_or(Refusal::Client)?,
        None => (
            params.get("client_id").unwrap_or_default().to_owned(),
            params.get("client_secret").unwrap_or_default().to_owned(),
        ),
    };
    if id == service.client_id() && secret == service.client_secret() { Ok(()) } else { Err(Refusal::Client) }
}

fn basic_credentials(value: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(STANDARD.decode(value.strip_prefix("Basic ")?).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    // Both halves are form-encoded before they are joined (RFC 6749 §2.3.1).
    let plain =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8().ok().map(String::from);
    Some((plain(id)?, plain(secret)?))
}

fn exchange(shared: &Shared, ledger: &mut Ledger, service: Service, params: &Params) -> Result<Issued, Refusal> {
    let verifier = params.get("code_verifier");
    if let Some(verifier) = verifier {
        ledger.verifiers.insert(verifier.to_owned());
    }
    let now = shared.now();
    let code = ledger.codes.get_mut(params.get("code").ok_or(Refusal::Code)?).ok_or(Refusal::Code)?;
    if code.service != service {
        return Err(Refusal::Code);
    }
    let family = code.family;
    if code.used {
        // Somebody else may have the tokens of the first exchange (RFC 6749 §4.1.2).
        ledger.end(family, Ended::CodeReused);
        return Err(Refusal::Code);
    }
    if code.expires_at <= now {
        return Err(Refusal::Code);
    }
    if params.get("redirect_uri") != Some(code.redirect_uri.as_str()) {
        return Err(Refusal::RedirectUri);
    }
    match (&code.challenge, verifier) {
        (None, None) => {}
        (Some(challenge), Some(verifier)) if s256(verifier).as_ref() == Some(challenge) => {}
        // A verifier without a challenge is a downgrade (RFC 9700 §2.1.1).
        _ => return Err(Refusal::CodeVerifier),
    }
    code.used = true;
    let (with_refresh, bot_scopes) = (code.with_refresh, std::mem::take(&mut code.bot_scopes));
    if ledger.families[family].ended.is_some() {
        return Err(Refusal::Code);
    }

    let mut issued = issue(shared, ledger, service, family, true);
    if with_refresh && shared.settings.refresh(service) != RefreshMode::None {
        issued.refresh = Some(issue_refresh(ledger, service, family));
    }
    if !bot_scopes.is_empty() {
        let text = ledger.issue(TokenKind::Access, "xoxb-", family);
        let access = Access {
            account: issued.account,
            service,
            family,
            scopes: bot_scopes.clone(),
            expires_at: None,
            bot: true,
        };
        ledger.access.insert(text.clone(), access);
        issued.bot = Some((text, bot_scopes));
    }
    Ok(issued)
}

/// RFC 7636 §4.1, §4.6: 43 to 128 unreserved characters; BASE64URL(SHA256(verifier)).
fn s256(verifier: &str) -> Option<String> {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let valid = (43..=128).contains(&verifier.len()) && verifier.bytes().all(unreserved);
    valid.then(|| URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)))
}

fn refresh(shared: &Shared, ledger: &mut Ledger, service: Service, params: &Params) -> Result<Issued, Refusal> {
    let text = params.get("refresh_token").ok_or(Refusal::RefreshToken)?;
    let now = shared.now();
    let RefreshToken { family, replaced_at } = *ledger.refresh.get(text).ok_or(Refusal::RefreshToken)?;
    if ledger.families[family].service != service || ledger.families[family].ended.is_some() {
        return Err(Refusal::RefreshToken);
    }
    let mode = shared.settings.refresh(service);
    let late = |grace: Duration| replaced_at.is_some_and(|at| now >= at.saturating_add_unsigned(grace.as_secs()));
    match mode {
        RefreshMode::None => return Err(Refusal::RefreshToken),
        RefreshMode::Rotates { grace } if late(grace) => return Err(Refusal::RefreshToken),
        RefreshMode::Strict { grace } if late(grace) => {
            ledger.end(family, Ended::RefreshTokenReused);
            return Err(Refusal::RefreshToken);
        }
        RefreshMode::Keeps | RefreshMode::Rotates { .. } | RefreshMode::Strict { .. } => {}
    }

    ledger.families[family].refreshes += 1;
    let mut issued = issue(shared, ledger, service, family, false);
    if mode != RefreshMode::Keeps {
        if let Some(token) = ledger.refresh.get_mut(text) {
            token.replaced_at.get_or_insert(now);
        }
        issued.refresh = Some(issue_refresh(ledger, service, family));
    }
    Ok(issued)
}

fn issue(shared: &Shared, ledger: &mut Ledger, service: Service, family: usize, by_code: bool) -> Issued {
    let (scopes, account) = (ledger.families[family].scopes.clone(), ledger.families[family].account);
    let expires_in_s =
        (shared.settings.refresh(service) != RefreshMode::None).then_some(shared.settings.access_ttl.as_secs());
    let access = (!scopes.is_empty()).then(|| {
        let prefix = match service {
            Service::Google => "ya29.",
            Service::Slack => "xoxp-",
        };
        let text = ledger.issue(TokenKind::Access, prefix, family);
        let expires_at = expires_in_s.map(|ttl| shared.now().saturating_add_unsigned(ttl));
        let access = Access { account, service, family, scopes: scopes.clone(), expires_at, bot: false };
        ledger.access.insert(text.clone(), access);
        text
    });
    Issued { account, scopes, access, bot: None, refresh: None, expires_in_s, by_code }
}

fn issue_refresh(ledger: &mut Ledger, service: Service, family: usize) -> String {
    let prefix = match service {
        Service::Google => "1//",
        Service::Slack => "xoxe-1-",
    };
    let text = ledger.issue(TokenKind::Refresh, prefix, family);
    ledger.refresh.insert(text.clone(), RefreshToken { family, replaced_at: None });
    text
}

/// The access that a request's bearer token gives; the error is none where there is no token at all.
pub(super) fn bearer(shared: &Shared, service: Service, headers: &HeaderMap) -> Result<Access, Option<TokenState>> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(None)?;
    let token = header.strip_prefix("Bearer ").ok_or(Some(TokenState::Unknown))?;
    let access = shared.ledger().living_access(token, shared.now()).map_err(Some)?;
    if access.service == service { Ok(access) } else { Err(Some(TokenState::Unknown)) }
}

/// A JSON answer that no cache keeps (RFC 6749 §5.1).
pub(super) fn json_answer(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = [(header::CONTENT_TYPE, "application/json; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, Body::from(body.to_string())).into_response()
}

/// A path that neither service has.
pub(super) async fn unknown_path(State(_): State<Arc<Shared>>) -> Response {
    json_answer(404, &json!({"error": {"code": 404, "status": "NOT_FOUND", "message": "No such path."}}))
}
