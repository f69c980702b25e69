//! The way to a page that only somebody who is signed in may see: at an issuer, or with a token of obo.

use askama::Template;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::{Pages, STYLE, Submitted, bad_form, page, see_other, unavailable};
use crate::consent::{Back, BrowserCookie, SignInWay};
use crate::failure::Failure;
use crate::id::Source;
use crate::identity::{Credential, IdentityError, Via};
use crate::secret::Secret;

/// What a person signs in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A consent link.
    Link,
    /// Their own page.
    Account,
    /// Deciding about a client.
    Client,
}

/// What a page's address says of signing in, beside what is the page's own.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Chosen {
    /// How to sign in: the name of an issuer, or `obo`.
    pub(super) with: Option<String>,
    /// The person has just signed out: their issuer must ask who it is, although it may remember.
    pub(super) again: Option<String>,
}

/// A page behind a sign-in.
pub(super) struct Entrance {
    /// Its address. The forms are posted there, and made for it.
    pub(super) path: String,
    /// How to get back to it from elsewhere.
    pub(super) back: Back,
    /// What it is for.
    pub(super) purpose: For,
}

impl Entrance {
    /// The address with more in its query.
    pub(super) fn and(&self, more: &str) -> String {
        let joint = if self.path.contains('?') { '&' } else { '?' };
        format!("{}{joint}{more}", self.path)
    }

    /// The page that signs in, or the choice among several ways. `wrong`: a token was tried and is not good.
    pub(super) async fn ask(&self, pages: &Pages, cookie: &BrowserCookie, chosen: &Chosen, wrong: bool) -> Response {
        let issuers = pages.consent().issuers();
        let form = match pages.consent().form_value(cookie, &self.path).await {
            Ok(form) => form,
            Err(failure) => return unavailable(&failure),
        };
        let again = if chosen.again.is_some() { "&again=1" } else { "" };
        let choose = || {
            let way = |name: &str, text: &str| (self.and(&format!("with={name}{again}")), text.to_owned());
            let mut ways: Vec<_> = issuers.iter().map(|issuer| way(issuer.as_str(), issuer.as_str())).collect();
            ways.sort();
            ways.push(way("obo", "A token that obo issued"));
            page(StatusCode::OK, &ChooseSignIn { style: STYLE, ways: &ways }, &[])
        };
        let issuer = match (chosen.with.as_deref(), &issuers[..]) {
            (Some("obo"), _) | (None, []) => return with_token(&self.path, &form, wrong, self.purpose),
            // One that is no way to sign in here gets the choice.
            (Some(with), _) => issuers.iter().find(|issuer| issuer.as_str() == with),
            (None, _) => None,
        };
        let Some(issuer) = issuer else { return choose() };
        match pages.consent().sign_in_way(issuer).await {
            Ok(SignInWay::Issuer { name, forward_to }) => {
                let action = self.and(&format!("with={name}{again}"));
                at_issuer(&action, &form, name.as_str(), self.purpose, forward_to)
            }
            Ok(SignInWay::Token) => choose(),
            Err(failure) => unavailable(&failure),
        }
    }

    /// Takes the token that was typed in.
    pub(super) async fn sign_in(&self, pages: &Pages, cookie: &BrowserCookie, submitted: Submitted) -> Response {
        match token_cookie(pages, submitted.token).await {
            Ok(Some(cookie)) => {
                let mut response = see_other(&self.path);
                pages.set_cookie(&mut response, &cookie);
                response
            }
            Ok(None) => {
                let with_token = Chosen { with: Some("obo".to_owned()), again: None };
                self.ask(pages, cookie, &with_token, true).await
            }
            Err(failure) => unavailable(&failure),
        }
    }

    /// Sends the browser to the issuer that was chosen.
    pub(super) async fn log_in(&self, pages: &Pages, cookie: BrowserCookie, chosen: &Chosen) -> Response {
        let Some(source) = chosen.with.as_deref().and_then(|with| with.parse::<Source>().ok()) else {
            return bad_form();
        };
        let visitor = pages.visitor(cookie);
        match pages.consent().begin_login(&source, self.back.clone(), &visitor, chosen.again.is_some()).await {
            Ok(Some(url)) => see_other(url.as_str()),
            Ok(None) => bad_form(),
            Err(failure) => unavailable(&failure),
        }
    }

    /// Signs the browser out, and asks who it is.
    pub(super) async fn sign_out(&self, pages: &Pages, cookie: &BrowserCookie) -> Response {
        match pages.consent().sign_out(cookie).await {
            Ok(()) => see_other(&self.and("again=1")),
            Err(failure) => unavailable(&failure),
        }
    }
}

/// The page with the one field for a token.
pub(super) fn with_token(action: &str, form: &str, wrong: bool, purpose: For) -> Response {
    let status = if wrong { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
    page(status, &SignIn { style: STYLE, action, form, wrong, purpose }, &[])
}

/// The page with the button that leads to an issuer.
pub(super) fn at_issuer(action: &str, form: &str, issuer: &str, purpose: For, forward_to: String) -> Response {
    page(StatusCode::OK, &SignInAtIssuer { style: STYLE, action, form, issuer, purpose }, &[forward_to])
}

/// Signs a browser in with the token of obo that was typed into a form; `None` where it is not a good one.
///
/// A token of an issuer is its client's: what that client may do is bounded by the token's scopes, and a browser that is
/// signed in may do everything the person may.
pub(super) async fn token_cookie(pages: &Pages, token: Option<Secret>) -> Result<Option<BrowserCookie>, Failure> {
    let Some(token) = token else { return Ok(None) };
    let token = Secret::new(token.expose().trim());
    match pages.obo.authenticate(&Credential::Bearer { token, obo_user: None }).await {
        Ok(subject) if *subject.via() == Via::OboToken => pages.consent().sign_in(&subject).await.map(Some),
        Ok(_) => Ok(None),
        Err(IdentityError::Unavailable { cause }) => Err(Failure::internal(cause)),
        Err(_) => Ok(None),
    }
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignIn<'a> {
    style: &'a str,
    action: &'a str,
    form: &'a str,
    wrong: bool,
    purpose: For,
}

#[derive(Template)]
#[template(path = "sign_in_at_issuer.html")]
struct SignInAtIssuer<'a> {
    style: &'a str,
    action: &'a str,
    form: &'a str,
    issuer: &'a str,
    purpose: For,
}

#[derive(Template)]
#[template(path = "choose_sign_in.html")]
struct ChooseSignIn<'a> {
    style: &'a str,
    /// Address and text of each.
    ways: &'a [(String, String)],
}
