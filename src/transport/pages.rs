//! The pages that a person sees: the one behind every consent link, and the provider's way back.
//!
//! They work without JavaScript; each step is one form with one button. Every form is a POST whose hidden value is bound
//! to this browser's cookie, and whose Origin or Sec-Fetch-Site is our own.

use std::time::Duration;

use askama::Template;
use axum::Router;
use axum::extract::{Form, Path, Query, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use crate::authorization_server::{self, AuthorizationServer};
use crate::call::Obo;
use crate::consent::{
    Asking, Back, BrowserCookie, CallbackQuery, Consent, FlowId, Listener, LoggedIn, Returned, SignInWay, Then, View,
    Visitor,
};
use crate::failure::{Code, Failure};
use crate::id::Person;
use crate::oauth::Revocation;
use crate::secret::Secret;
use crate::vault::Receipt;

mod account;
mod authorize;
mod guard;
mod sign_in;

use sign_in::{Chosen, For, token_cookie};

/// The style sheet, in every page. Its hash stands in the Content-Security-Policy.
const STYLE: &str = include_str!("pages/style.css");
/// Longest form accepted, in bytes: an identity provider's token is at most 16 KiB.
const MAX_FORM_BYTES: usize = 32 * 1024;

/// Most characters of a client's name beside a code.
const MAX_SHOWN_ACTOR_CHARS: usize = 40;

/// Longest that a form may take to arrive.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// A person's own page.
const ACCOUNT: &str = "/account";

/// What the pages need to know.
#[derive(Clone)]
pub struct Pages {
    obo: Obo,
    listener: Listener,
    base: Url,
    clients: Option<AuthorizationServer>,
}

/// The routes of the pages, under `base`. `clients`: obo's own authorization server, where it is on.
pub fn router(obo: Obo, listener: Listener, base: Url, clients: Option<AuthorizationServer>) -> Router {
    let mut router = Router::new();
    if clients.is_some() {
        router = router
            .route(authorization_server::path::AUTHORIZE, get(authorize::show).post(authorize::submit))
            .route("/account/client", post(account::sign_client_out));
    }
    router
        .route("/connect/{flow}", get(open).post(submit))
        .route("/oauth/callback/{provider}", get(callback))
        .route("/login/callback/{issuer}", get(login_callback))
        .route("/account", get(account::show).post(account::submit))
        .route("/account/default", post(account::prefer))
        .route("/account/disconnect", post(disconnect))
        .layer(middleware::from_fn(whole_form))
        .with_state(Pages { obo, listener, base, clients })
}

/// Reads a form whole before anything is made of it, within bounds of size and time: the pages are open to everybody.
async fn whole_form(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(FORM_TIMEOUT, axum::body::to_bytes(body, MAX_FORM_BYTES)).await;
    match read {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, body.into())).await,
        Ok(Err(_)) | Err(_) => bad_form(),
    }
}

impl Pages {
    fn consent(&self) -> &Consent {
        self.obo.consent()
    }

    fn visitor(&self, cookie: BrowserCookie) -> Visitor {
        Visitor { cookie, listener: self.listener, base: self.base.clone() }
    }

    /// `__Host-` ties the cookie to this very host over https (RFC 6265bis §4.1.3.2). Plain http is loopback only, where
    /// cookies are shared between ports: the port in the name keeps two servers apart.
    fn cookie_name(&self) -> String {
        if self.base.scheme() == "https" {
            "__Host-obo".to_owned()
        } else {
            format!("obo-{}", self.base.port_or_known_default().unwrap_or(0))
        }
    }

    fn cookie_of(&self, headers: &HeaderMap) -> Option<BrowserCookie> {
        let name = self.cookie_name();
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut ours = cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(key, _)| *key == name);
        match (ours.next(), ours.next()) {
            (Some((_, value)), None) => value.parse().ok(),
            // We set one, under one path. Of two, one was planted by somebody who can write cookies for this host, and
            // nothing says which (RFC 6265 §8.6): taking the wrong one would connect this person's account to theirs.
            (Some(_), Some(_)) => {
                tracing::warn!("a browser brought two cookies of our name; somebody may have planted one");
                None
            }
            (None, _) => None,
        }
    }

    fn set_cookie(&self, response: &mut Response, cookie: &BrowserCookie) {
        let secure = if self.base.scheme() == "https" { "; Secure" } else { "" };
        // Lax: the provider's redirect back is a top-level navigation and must bring it along.
        let text = format!("{}={}; Path=/; HttpOnly; SameSite=Lax{secure}", self.cookie_name(), cookie.expose());
        if let Ok(mut value) = HeaderValue::from_str(&text) {
            value.set_sensitive(true);
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
}

async fn open(
    State(pages): State<Pages>,
    Path(flow): Path<String>,
    Query(chosen): Query<Chosen>,
    headers: HeaderMap,
) -> Response {
    let known = pages.cookie_of(&headers);
    let cookie = known.clone().unwrap_or_default();
    let mut response = show(&pages, &flow, &cookie, false, chosen.again.is_some()).await;
    if known.is_none() {
        pages.set_cookie(&mut response, &cookie);
    }
    response
}

/// The page of a flow as this browser may see it.
async fn show(pages: &Pages, flow: &str, cookie: &BrowserCookie, wrong: bool, again: bool) -> Response {
    let Ok(id) = flow.parse::<FlowId>() else { return unknown() };
    match pages.consent().view(&id, &pages.visitor(cookie.clone())).await {
        Ok(view) => render_view(pages, &id, cookie, view, wrong, again).await,
        Err(failure) => unavailable(&failure),
    }
}

async fn render_view(
    pages: &Pages,
    id: &FlowId,
    cookie: &BrowserCookie,
    view: View,
    wrong: bool,
    again: bool,
) -> Response {
    let action = format!("/connect/{}", id.as_str());
    let form = match pages.consent().form_value(cookie, &action).await {
        Ok(form) => form,
        Err(failure) => return unavailable(&failure),
    };
    match view {
        View::Unknown => unknown(),
        View::Gone => gone(),
        View::SignIn(SignInWay::Token) => sign_in::with_token(&action, &form, wrong, For::Link),
        View::SignIn(SignInWay::Issuer { name, forward_to }) => {
            let action = if again { format!("{action}?again=1") } else { action };
            sign_in::at_issuer(&action, &form, name.as_str(), For::Link, forward_to)
        }
        View::NoProof => message(
            StatusCode::FORBIDDEN,
            "bad",
            "This link cannot be used",
            "This obo server has no way to tell that this browser belongs to the person it was made for. Tell whoever runs it; its log says more.",
            None,
        ),
        View::OtherPerson => {
            let signed_in = pages.consent().signed_in(cookie).await.ok().flatten();
            let person = signed_in.map_or_else(|| "somebody else".to_owned(), |person| person.to_string());
            page(
                StatusCode::FORBIDDEN,
                &OtherPerson { style: STYLE, action: &action, form: &form, person: &person },
                &[],
            )
        }
        View::Ask(asking) => {
            let Asking {
                person,
                actor,
                provider_name,
                tool_title,
                abilities,
                held,
                account,
                expires_in,
                then,
                forward_to,
            } = *asking;
            let then = match then {
                None => None,
                Some(Then::Code) => Some(
                    "This page cannot tell whose browser this is. After you allow it, you are shown a code to type where \
                     you asked for this link. If somebody else sent you the link, do not go on."
                        .to_owned(),
                ),
                Some(Then::Application(origin)) => {
                    Some(format!("After you allow it you are sent to {origin}, which makes sure that it is you."))
                }
            };
            let minutes = expires_in.as_secs().div_ceil(60);
            let good_for =
                format!("This link is good for {minutes} more minute{}.", if minutes == 1 { "" } else { "s" });
            let ask = Ask {
                style: STYLE,
                action: &action,
                form: &form,
                person: &person.to_string(),
                actor: &actor,
                provider: &provider_name,
                tool: tool_title.as_deref(),
                account: account.as_deref(),
                abilities: &abilities,
                held: held > 0,
                good_for: &good_for,
                then: then.as_deref(),
            };
            page(StatusCode::OK, &ask, &forward_to)
        }
    }
}

/// The fields of a form on the page of a flow.
#[derive(Deserialize)]
struct Submitted {
    step: Step,
    form: String,
    #[serde(default)]
    token: Option<Secret>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    SignIn,
    LogIn,
    SignOut,
    Connect,
    Disown,
    Allow,
    Deny,
}

async fn submit(
    State(pages): State<Pages>,
    Path(flow): Path<String>,
    Query(chosen): Query<Chosen>,
    headers: HeaderMap,
    form: Result<Form<Submitted>, axum::extract::rejection::FormRejection>,
) -> Response {
    let Ok(id) = flow.parse::<FlowId>() else { return unknown() };
    let Ok(Form(submitted)) = form else { return bad_form() };
    let cookie = match guard::form(&pages, &headers, &format!("/connect/{flow}"), &submitted.form).await {
        Ok(cookie) => cookie,
        Err(refusal) => return refusal,
    };
    match submitted.step {
        Step::SignIn => sign_in_at_link(&pages, &flow, &cookie, submitted.token).await,
        Step::LogIn => {
            match pages.consent().login_for(&id, &pages.visitor(cookie.clone()), chosen.again.is_some()).await {
                Ok(Some(url)) => see_other(url.as_str()),
                Ok(None) => gone(),
                Err(failure) => unavailable(&failure),
            }
        }
        Step::SignOut => match pages.consent().sign_out(&cookie).await {
            Ok(()) => see_other(&format!("/connect/{flow}?again=1")),
            Err(failure) => unavailable(&failure),
        },
        Step::Connect => match pages.consent().press(&id, &pages.visitor(cookie.clone())).await {
            Ok(Ok(url)) => see_other(url.as_str()),
            Ok(Err(view)) => render_view(&pages, &id, &cookie, view, false, false).await,
            Err(failure) => unavailable(&failure),
        },
        Step::Disown => match pages.consent().disown(&id, &pages.visitor(cookie)).await {
            Ok(true) => message(
                StatusCode::OK,
                "good",
                "Nothing was connected",
                "The code is void. Tell whoever sent you the link that you did, and the person who runs this obo server.",
                None,
            ),
            Ok(false) => gone(),
            Err(failure) => unavailable(&failure),
        },
        Step::Allow | Step::Deny => bad_form(),
    }
}

async fn sign_in_at_link(pages: &Pages, flow: &str, cookie: &BrowserCookie, token: Option<Secret>) -> Response {
    match token_cookie(pages, token).await {
        Ok(Some(cookie)) => {
            let mut response = see_other(&format!("/connect/{flow}"));
            pages.set_cookie(&mut response, &cookie);
            response
        }
        Ok(None) => show(pages, flow, cookie, true, false).await,
        Err(failure) => unavailable(&failure),
    }
}

async fn callback(
    State(pages): State<Pages>,
    Path(provider): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    // A browser without our cookie did not press the button: it meets the check with one that cannot fit.
    let cookie = pages.cookie_of(&headers).unwrap_or_default();
    let Some(query) = query.as_deref().and_then(CallbackQuery::parse) else { return not_ours() };
    match pages.consent().callback(&provider, query, &pages.visitor(cookie.clone())).await {
        Ok(returned) => render_returned(&pages, &cookie, returned).await,
        Err(failure) => unavailable(&failure),
    }
}

async fn login_callback(
    State(pages): State<Pages>,
    Path(issuer): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let cookie = pages.cookie_of(&headers).unwrap_or_default();
    let Some(query) = query.as_deref().and_then(CallbackQuery::parse) else { return not_ours() };
    match pages.consent().finish_login(&issuer, query, &pages.visitor(cookie)).await {
        Ok(LoggedIn::Yes { cookie, back }) => {
            let mut response = see_other(&back.path());
            pages.set_cookie(&mut response, &cookie);
            response
        }
        Ok(LoggedIn::NotOurs) => not_ours(),
        Ok(LoggedIn::Refused { back: back @ Back::Client { .. } }) => message(
            StatusCode::FORBIDDEN,
            "bad",
            "You were not signed in",
            "Your identity provider did not sign you in, so no app was allowed anything; you can try again.",
            Some(&back.path()),
        ),
        Ok(LoggedIn::Refused { back }) => message(
            StatusCode::FORBIDDEN,
            "bad",
            "You were not signed in",
            "Your identity provider did not sign you in. Nothing was connected; you can try again.",
            Some(&back.path()),
        ),
        Err(failure) => unavailable(&failure),
    }
}

async fn render_returned(pages: &Pages, cookie: &BrowserCookie, returned: Returned) -> Response {
    match returned {
        Returned::NotOurs => not_ours(),
        Returned::Used => gone(),
        Returned::Expired => message(
            StatusCode::GONE,
            "bad",
            "That took too long",
            "The answer came after the link had expired. Ask your agent to try again; it gets a new link.",
            None,
        ),
        Returned::OtherBrowser => message(
            StatusCode::FORBIDDEN,
            "bad",
            "This is not the browser that began",
            "Nothing was connected. Open the link again in the browser you want to use, and finish there.",
            None,
        ),
        Returned::Declined { provider_name } => message(
            StatusCode::OK,
            "",
            "Not connected",
            &format!("You did not allow access, so {provider_name} was not connected. You can close this page."),
            None,
        ),
        Returned::Failed { flow, provider_name, message: text, bad_answer } => message(
            if bad_answer { StatusCode::BAD_REQUEST } else { StatusCode::BAD_GATEWAY },
            "bad",
            &format!("{provider_name} could not be connected"),
            &format!("{text}. Nothing was kept; you can try again."),
            Some(&format!("/connect/{}", flow.as_str())),
        ),
        Returned::AtApplication(url) => see_other(url.as_str()),
        Returned::TypeBack(back) => {
            let action = format!("/connect/{}", back.flow.as_str());
            let form = match pages.consent().form_value(cookie, &action).await {
                Ok(form) => form,
                Err(failure) => return unavailable(&failure),
            };
            let type_back = TypeBackPage {
                style: STYLE,
                action: &action,
                form: &form,
                code: back.code.expose(),
                person: &back.person.to_string(),
                // Whoever made the link chose it, and it stands beside the code.
                actor: &back.actor.chars().take(MAX_SHOWN_ACTOR_CHARS).collect::<String>(),
                provider: &back.provider_name,
            };
            page(StatusCode::OK, &type_back, &[])
        }
        Returned::Connected(connected) => {
            if let Some(uri) = &connected.next_uri {
                return see_other(uri.as_str());
            }
            let grant = &connected.grant;
            let connection = Connection {
                person: connected.person.clone(),
                provider: grant.provider.to_string(),
                account: grant.account.key.clone(),
            };
            let Ok(connection) = serde_json::to_string(&connection) else { return not_ours() };
            let form = match pages.consent().form_value(cookie, &connection).await {
                Ok(form) => form,
                Err(failure) => return unavailable(&failure),
            };
            let done = ConnectedPage {
                style: STYLE,
                provider: &connected.provider_name,
                account: &grant.account.label,
                person: &connected.person.to_string(),
                withheld: &connected.withheld,
                expected: connected.expected.as_deref(),
                connection: &connection,
                form: &form,
            };
            page(StatusCode::OK, &done, &[])
        }
    }
}

/// A connection as a form names it. The form's hidden value is made over the whole text, so only what was rendered for
/// this browser comes back.
#[derive(Serialize, Deserialize)]
struct Connection {
    person: Person,
    provider: String,
    account: String,
}

#[derive(Deserialize)]
struct Disconnecting {
    connection: String,
    form: String,
}

async fn disconnect(
    State(pages): State<Pages>,
    headers: HeaderMap,
    form: Result<Form<Disconnecting>, axum::extract::rejection::FormRejection>,
) -> Response {
    let Ok(Form(submitted)) = form else { return bad_form() };
    let cookie = match guard::form(&pages, &headers, &submitted.connection, &submitted.form).await {
        Ok(cookie) => cookie,
        Err(refusal) => return refusal,
    };
    let Ok(connection) = serde_json::from_str::<Connection>(&submitted.connection) else { return bad_form() };
    let visitor = pages.visitor(cookie);
    match pages.consent().disconnect_at(&visitor, &connection.person, &connection.provider, &connection.account).await {
        Ok(Some(Receipt { outcome: Revocation::Revoked, .. })) => message(
            StatusCode::OK,
            "good",
            "Disconnected",
            "The provider has confirmed that its tokens are void.",
            Some(ACCOUNT),
        ),
        Ok(Some(_)) => message(
            StatusCode::OK,
            "",
            "Disconnected here",
            "obo has forgotten the connection, but the provider has not confirmed it. Remove obo in the provider's account settings too.",
            Some(ACCOUNT),
        ),
        Ok(None) => message(
            StatusCode::GONE,
            "",
            "Nothing to disconnect",
            "This connection has ended already, or you are no longer signed in as its person.",
            Some(ACCOUNT),
        ),
        Err(failure) => unavailable(&failure),
    }
}

#[derive(Template)]
#[template(path = "other_person.html")]
struct OtherPerson<'a> {
    style: &'a str,
    action: &'a str,
    form: &'a str,
    person: &'a str,
}

#[derive(Template)]
#[template(path = "ask.html")]
struct Ask<'a> {
    style: &'a str,
    action: &'a str,
    form: &'a str,
    person: &'a str,
    actor: &'a str,
    provider: &'a str,
    tool: Option<&'a str>,
    account: Option<&'a str>,
    abilities: &'a [(String, String)],
    held: bool,
    good_for: &'a str,
    then: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "type_back.html")]
struct TypeBackPage<'a> {
    style: &'a str,
    action: &'a str,
    form: &'a str,
    code: &'a str,
    person: &'a str,
    actor: &'a str,
    provider: &'a str,
}

#[derive(Template)]
#[template(path = "connected.html")]
struct ConnectedPage<'a> {
    style: &'a str,
    provider: &'a str,
    account: &'a str,
    person: &'a str,
    withheld: &'a [String],
    expected: Option<&'a str>,
    connection: &'a str,
    form: &'a str,
}

#[derive(Template)]
#[template(path = "message.html")]
struct Message<'a> {
    style: &'a str,
    title: &'a str,
    tone: &'a str,
    text: &'a str,
    back: Option<&'a str>,
    back_text: &'a str,
}

fn message(status: StatusCode, tone: &str, title: &str, text: &str, back: Option<&str>) -> Response {
    let back_text = if back == Some(ACCOUNT) { "Your connections" } else { "Try again" };
    page(status, &Message { style: STYLE, title, tone, text, back, back_text }, &[])
}

fn unknown() -> Response {
    message(
        StatusCode::NOT_FOUND,
        "bad",
        "There is no such link",
        "It may have been copied in part. Ask your agent to try again; it gets a new link.",
        None,
    )
}

fn gone() -> Response {
    message(
        StatusCode::GONE,
        "bad",
        "This link is used up",
        "It was used, declined, or has expired. Ask your agent to try again; if a connection is still needed, it gets a new link.",
        None,
    )
}

fn not_ours() -> Response {
    message(
        StatusCode::BAD_REQUEST,
        "bad",
        "This answer belongs to nothing that was begun here",
        "Nothing was connected, and nobody was signed in. Begin again where you came from: your agent, or the app that you were adding.",
        None,
    )
}

fn bad_form() -> Response {
    message(StatusCode::BAD_REQUEST, "bad", "The form did not arrive whole", "Open the link again.", None)
}

fn unavailable(failure: &Failure) -> Response {
    // Anybody may bring this about, again and again: it is told once, where it begins.
    if failure.code == Code::RateLimited {
        let text = "Too many people are signing in just now. Try again in a few minutes.";
        return message(StatusCode::TOO_MANY_REQUESTS, "bad", "Not just now", text, None);
    }
    tracing::error!(code = failure.code.as_str(), cause = failure.cause, "a page could not be shown");
    message(
        StatusCode::SERVICE_UNAVAILABLE,
        "bad",
        "Not just now",
        "obo cannot do this at the moment. Try again in a little while; the person who runs this obo server finds the reason in its log.",
        None,
    )
}

fn see_other(location: &str) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    if let Ok(mut value) = HeaderValue::from_str(location) {
        // It may carry the state of a flow.
        value.set_sensitive(true);
        response.headers_mut().insert(header::LOCATION, value);
    }
    harden(&mut response, &[]);
    response
}

fn page(status: StatusCode, template: &impl Template, forward_to: &[String]) -> Response {
    let Ok(html) = template.render() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let mut response = (status, axum::response::Html(html)).into_response();
    harden(&mut response, forward_to);
    response
}

/// Headers of every page (T8): nothing is stored, framed, referred, loaded from elsewhere, or posted elsewhere. A form
/// that ends in a redirect needs the places that the redirects lead to in `form-action`, and providers send browsers on
/// among origins that nobody lists; see docs/decisions/0003.
fn harden(response: &mut Response, forward_to: &[String]) {
    use base64::Engine as _;
    let style = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let mut forward = if forward_to.is_empty() { String::new() } else { " https:".to_owned() };
    for origin in forward_to.iter().filter(|origin| !origin.starts_with("https://")) {
        forward.push(' ');
        forward.push_str(origin);
    }
    let csp = format!(
        "default-src 'none'; style-src 'sha256-{style}'; form-action 'self'{forward}; base-uri 'none'; frame-ancestors 'none'",
    );
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, csp.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// For the one page whose form ends at a client: browsers hold every hop after a form to `form-action`, and a client's
/// address leads on to others that nobody here knows: from its website to a program of the computer, by a scheme of its
/// own. What the form is sent to first is in the page, which nobody else can write to.
fn let_forms_lead_anywhere(response: &mut Response) {
    let header = response.headers().get(header::CONTENT_SECURITY_POLICY).and_then(|value| value.to_str().ok());
    let free = header.map(|policy| policy.replace(" form-action 'self';", ""));
    if let Some(Ok(value)) = free.map(|policy| HeaderValue::from_str(&policy)) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, value);
    }
}

/// What every other path answers.
pub async fn nothing_here() -> Response {
    message(StatusCode::NOT_FOUND, "", "Nothing here", "This is an obo server. MCP clients use the path /mcp.", None)
}
