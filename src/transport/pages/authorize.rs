//! `/oauth/authorize`: a person decides whether a client may act for them.
//!
//! The request stands in the page's address from its first look to the decision. The person signs in first; only then is
//! anything fetched that a stranger's link names.

use askama::Template;
use axum::extract::{Form, Query, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::Response;

use super::sign_in::{Chosen, Entrance, For};
use super::{Pages, STYLE, Step, Submitted, bad_form, guard, message, page, see_other, unavailable};
use crate::authorization_server::{Approver, Asked, AuthorizationServer, KnownBy, Refusal, path};
use crate::consent::{Back, BrowserCookie, SignedIn};
use crate::identity::client_session::SESSION_TTL;

/// Shows the page, or the way to it.
pub(super) async fn show(
    State(pages): State<Pages>,
    RawQuery(query): RawQuery,
    Query(chosen): Query<Chosen>,
    headers: HeaderMap,
) -> Response {
    let Some(server) = pages.clients.clone() else { return super::nothing_here().await };
    let known = pages.cookie_of(&headers);
    let cookie = known.clone().unwrap_or_default();
    let visit = Visit::new(query);
    let mut response = match visit.look(&pages, &server, &cookie).await {
        Look::Decide(asked, signed_in) => decide(&pages, &cookie, &visit, &asked, &signed_in).await,
        Look::SignIn => visit.entrance().ask(&pages, &cookie, &chosen, false).await,
        Look::No(page) => *page,
    };
    if known.is_none() {
        pages.set_cookie(&mut response, &cookie);
    }
    response
}

/// Takes its forms.
pub(super) async fn submit(
    State(pages): State<Pages>,
    RawQuery(query): RawQuery,
    Query(chosen): Query<Chosen>,
    headers: HeaderMap,
    form: Result<Form<Submitted>, axum::extract::rejection::FormRejection>,
) -> Response {
    let Some(server) = pages.clients.clone() else { return super::nothing_here().await };
    let Ok(Form(submitted)) = form else { return bad_form() };
    let visit = Visit::new(query);
    if !matches!(submitted.step, Step::Allow | Step::Deny) {
        let cookie = match guard::form(&pages, &headers, &visit.path, &submitted.form).await {
            Ok(cookie) => cookie,
            Err(refusal) => return refusal,
        };
        return match submitted.step {
            Step::SignIn => visit.entrance().sign_in(&pages, &cookie, submitted).await,
            Step::LogIn => visit.entrance().log_in(&pages, cookie, &chosen).await,
            Step::SignOut => visit.entrance().sign_out(&pages, &cookie).await,
            Step::Connect | Step::Disown | Step::Allow | Step::Deny => bad_form(),
        };
    }
    let cookie = pages.cookie_of(&headers).unwrap_or_default();
    let (asked, signed_in) = match visit.look(&pages, &server, &cookie).await {
        Look::Decide(asked, signed_in) => (asked, signed_in),
        Look::SignIn => return visit.entrance().ask(&pages, &cookie, &chosen, false).await,
        Look::No(page) => return *page,
    };
    // Made over what the page said: a client that has changed since then is another one.
    if let Err(refusal) = guard::form(&pages, &headers, &visit.decision(&asked), &submitted.form).await {
        return refusal;
    }
    let SignedIn { person, groups, proof_until } = *signed_in;
    let approver = Approver { person, groups, until: proof_until };
    let answer = match submitted.step {
        Step::Allow => server.allow(&asked, approver).await,
        _ => server.deny(&asked, &approver).await,
    };
    let location = match answer {
        Ok(location) => location,
        Err(failure) => return unavailable(&failure),
    };
    // Plain http is this computer, where a cookie goes to every port: the program that waits for the answer would get the
    // one that this decision was made with, and could decide the next time by itself.
    if pages.base.scheme() != "https"
        && let Err(failure) = pages.consent().sign_out(&cookie).await
    {
        return unavailable(&failure);
    }
    see_other(&location)
}

/// An authorization request, as it stands in the address.
struct Visit {
    /// Path and query, without what is ours.
    path: String,
    query: String,
}

/// What there is to show.
enum Look {
    Decide(Box<Asked>, Box<SignedIn>),
    SignIn,
    No(Box<Response>),
}

impl Visit {
    fn new(query: Option<String>) -> Self {
        let query = query.unwrap_or_default();
        // Put there by the links of the sign-in; of no meaning to OAuth.
        let ours = |pair: &&str| matches!(pair.split('=').next(), Some("with" | "again"));
        let query = query.split('&').filter(|pair| !ours(pair)).collect::<Vec<_>>().join("&");
        Self { path: format!("{}?{query}", path::AUTHORIZE), query }
    }

    fn entrance(&self) -> Entrance {
        let back = Back::Client { query: self.query.clone() };
        Entrance { path: self.path.clone(), back, purpose: For::Client }
    }

    /// What the forms of a decision are made for.
    fn decision(&self, asked: &Asked) -> String {
        format!("{} {}", self.path, asked.digest())
    }

    async fn look(&self, pages: &Pages, server: &AuthorizationServer, cookie: &BrowserCookie) -> Look {
        let no = |page| Look::No(Box::new(page));
        let signed_in = match pages.consent().sign_in_of(cookie).await {
            Ok(signed_in) => signed_in,
            Err(failure) => return no(unavailable(&failure)),
        };
        match (server.examine(&self.query, signed_in.is_some()).await, signed_in) {
            (Ok(Some(asked)), Some(signed_in)) => Look::Decide(Box::new(asked), Box::new(signed_in)),
            (Ok(_), None) | (Err(Refusal::Bad { back: Some(_), .. }), None) => Look::SignIn,
            (Err(Refusal::Bad { text, back }), _) => no(refused(&text, back.as_deref())),
            (Err(Refusal::Unavailable(text)), _) => {
                let text = format!("{text} Nothing was allowed. Try again in a while, or tell whoever makes the app.");
                no(message(StatusCode::BAD_GATEWAY, "bad", "This app cannot be looked up", &text, None))
            }
            (Err(Refusal::Failed(failure)), _) => no(unavailable(&failure)),
            (Ok(None), Some(_)) => no(bad_form()),
        }
    }
}

fn refused(text: &str, back: Option<&(crate::authorization_server::Destination, String)>) -> Response {
    let refused =
        Refused { style: STYLE, text, back: back.map(|(destination, url)| (destination.in_words(), url.clone())) };
    page(StatusCode::BAD_REQUEST, &refused, &[])
}

async fn decide(pages: &Pages, cookie: &BrowserCookie, visit: &Visit, asked: &Asked, signed_in: &SignedIn) -> Response {
    let (sign_out, form) = match tokio::try_join!(pages.consent().form_value(cookie, &visit.path), async {
        pages.consent().form_value(cookie, &visit.decision(asked)).await
    }) {
        Ok(both) => both,
        Err(failure) => return unavailable(&failure),
    };
    let host = match &asked.client.known_by {
        KnownBy::Document { host } => Some(host.as_str()),
        KnownBy::Registration => None,
    };
    let allow = Allow {
        style: STYLE,
        action: &visit.path,
        form: &form,
        sign_out: &sign_out,
        person: &signed_in.person.to_string(),
        name: asked.client.name.as_deref(),
        document: host.map(|host| (host, asked.client.id.as_str())),
        destination: &asked.destination.in_words(),
        address: asked.destination.as_str(),
        days: SESSION_TTL.as_secs() / (24 * 60 * 60),
    };
    let mut response = page(StatusCode::OK, &allow, &[]);
    super::let_forms_lead_anywhere(&mut response);
    response
}

#[derive(Template)]
#[template(path = "allow_client.html")]
struct Allow<'a> {
    style: &'a str,
    action: &'a str,
    form: &'a str,
    sign_out: &'a str,
    person: &'a str,
    name: Option<&'a str>,
    /// Where its document is: the host, and the whole address.
    document: Option<(&'a str, &'a str)>,
    destination: &'a str,
    address: &'a str,
    days: u64,
}

#[derive(Template)]
#[template(path = "refused_client.html")]
struct Refused<'a> {
    style: &'a str,
    text: &'a str,
    /// Where a link leads, in words, and its address.
    back: Option<(String, String)>,
}
