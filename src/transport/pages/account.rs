//! `/account`: a signed-in person's own connections and recent calls.

use askama::Template;
use axum::extract::{Form, Query, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::Response;
use serde::Deserialize;

use super::{
    Connection, Disconnecting, Pages, STYLE, SignIn, SignInAtIssuer, Step, Submitted, bad_form, gone, guard, page,
    see_other, unavailable,
};
use crate::audit::Record;
use crate::consent::{self, Back, BrowserCookie, SignInWay};
use crate::id::{Person, Source};

/// The path, which names its forms too.
const PATH: &str = super::ACCOUNT;

#[derive(Deserialize)]
pub(super) struct Chosen {
    /// How to sign in: the name of an issuer, or `obo`.
    with: Option<String>,
    /// See [`super::Further`].
    again: Option<String>,
}

/// Shows the page, or the way to it.
pub(super) async fn show(State(pages): State<Pages>, Query(chosen): Query<Chosen>, headers: HeaderMap) -> Response {
    let known = pages.cookie_of(&headers);
    let cookie = known.clone().unwrap_or_default();
    let mut response = match pages.consent().signed_in(&cookie).await {
        Ok(Some(person)) => own(&pages, &cookie, &person).await,
        Ok(None) => sign_in(&pages, &cookie, &chosen, false).await,
        Err(failure) => unavailable(&failure),
    };
    if known.is_none() {
        pages.set_cookie(&mut response, &cookie);
    }
    response
}

/// Takes its forms: signing in with a token or at an issuer, signing out.
pub(super) async fn submit(
    State(pages): State<Pages>,
    Query(chosen): Query<Chosen>,
    headers: HeaderMap,
    form: Result<Form<Submitted>, axum::extract::rejection::FormRejection>,
) -> Response {
    let Ok(Form(submitted)) = form else { return bad_form() };
    let cookie = match guard::form(&pages, &headers, PATH, &submitted.form).await {
        Ok(cookie) => cookie,
        Err(refusal) => return refusal,
    };
    match submitted.step {
        Step::SignOut => match pages.consent().sign_out(&cookie).await {
            Ok(()) => see_other(&format!("{PATH}?again=1")),
            Err(failure) => unavailable(&failure),
        },
        Step::SignIn => match super::token_cookie(&pages, submitted.token).await {
            Ok(Some(cookie)) => {
                let mut response = see_other(PATH);
                pages.set_cookie(&mut response, &cookie);
                response
            }
            Ok(None) => {
                let with_token = Chosen { with: Some("obo".to_owned()), again: None };
                sign_in(&pages, &cookie, &with_token, true).await
            }
            Err(failure) => unavailable(&failure),
        },
        Step::LogIn => {
            let Some(source) = chosen.with.and_then(|with| with.parse::<Source>().ok()) else { return bad_form() };
            match pages
                .consent()
                .begin_login(&source, Back::Account, &pages.visitor(cookie), chosen.again.is_some())
                .await
            {
                Ok(Some(url)) => see_other(url.as_str()),
                Ok(None) => bad_form(),
                Err(failure) => unavailable(&failure),
            }
        }
        Step::Connect | Step::Disown => bad_form(),
    }
}

/// Takes the form that makes a connection the default of its provider.
pub(super) async fn prefer(
    State(pages): State<Pages>,
    headers: HeaderMap,
    form: Result<Form<Disconnecting>, axum::extract::rejection::FormRejection>,
) -> Response {
    let Ok(Form(submitted)) = form else { return bad_form() };
    let cookie = match guard::form(&pages, &headers, &default_form(&submitted.connection), &submitted.form).await {
        Ok(cookie) => cookie,
        Err(refusal) => return refusal,
    };
    let Ok(connection) = serde_json::from_str::<Connection>(&submitted.connection) else { return bad_form() };
    let Connection { person, provider, account } = connection;
    match pages.consent().prefer_at(&pages.visitor(cookie), &person, &provider, &account).await {
        Ok(Some(_)) => see_other(PATH),
        Ok(None) => gone(),
        Err(failure) => unavailable(&failure),
    }
}

/// What the hidden value of that form is made over: not what that of the other form is, so that neither passes as the
/// other.
fn default_form(connection: &str) -> String {
    format!("{PATH}/default {connection}")
}

async fn sign_in(pages: &Pages, cookie: &BrowserCookie, chosen: &Chosen, wrong: bool) -> Response {
    let (with, again) = (chosen.with.as_deref(), if chosen.again.is_some() { "&again=1" } else { "" });
    let issuers = pages.consent().issuers();
    let form = match pages.consent().form_value(cookie, PATH).await {
        Ok(form) => form,
        Err(failure) => return unavailable(&failure),
    };
    let chosen = match (with, &issuers[..]) {
        (Some("obo"), _) | (None, []) => {
            let status = if wrong { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
            return page(status, &SignIn { style: STYLE, action: PATH, form: &form, wrong, link: false }, &[]);
        }
        (Some(with), _) => issuers.iter().find(|issuer| issuer.as_str() == with),
        (None, _) => None,
    };
    let Some(issuer) = chosen else {
        return page(StatusCode::OK, &ChooseSignIn { style: STYLE, issuers: &issuers, again }, &[]);
    };
    match pages.consent().sign_in_way(issuer).await {
        Ok(SignInWay::Issuer { name, forward_to }) => {
            let action = format!("{PATH}?with={name}{again}");
            let sign_in =
                SignInAtIssuer { style: STYLE, action: &action, form: &form, issuer: name.as_str(), link: false };
            page(StatusCode::OK, &sign_in, &[forward_to])
        }
        Ok(SignInWay::Token) => page(StatusCode::OK, &ChooseSignIn { style: STYLE, issuers: &issuers, again }, &[]),
        Err(failure) => unavailable(&failure),
    }
}

async fn own(pages: &Pages, cookie: &BrowserCookie, person: &Person) -> Response {
    let (account, form) =
        match tokio::try_join!(pages.consent().account(person), pages.consent().form_value(cookie, PATH)) {
            Ok(both) => both,
            Err(failure) => return unavailable(&failure),
        };
    let mut connections = Vec::with_capacity(account.connections.len());
    let through = match through_applications(pages, person).await {
        Ok(through) => through,
        Err(failure) => return unavailable(&failure),
    };
    let own = account.connections.into_iter().map(|connection| (None, connection));
    for (application, connection) in own.chain(through.into_iter().map(|(name, one)| (Some(name), one))) {
        match row(pages, cookie, application, connection).await {
            Ok(row) => connections.push(row),
            Err(failure) => return unavailable(&failure),
        }
    }
    let calls: Vec<Call> = account.calls.into_iter().map(Call::from).collect();
    let own = Own { style: STYLE, person: &person.to_string(), connections: &connections, calls: &calls, form: &form };
    page(StatusCode::OK, &own, &[])
}

/// What the person has connected through applications whose users sign in where they did, with the application's name.
async fn through_applications(
    pages: &Pages,
    person: &Person,
) -> Result<Vec<(String, consent::Connection)>, crate::failure::Failure> {
    let mut through = Vec::new();
    for user in pages.consent().also_as(person).await? {
        let name = user.source.as_str().trim_start_matches("app:").to_owned();
        let connections = pages.consent().account(&user).await?.connections;
        through.extend(connections.into_iter().map(|connection| (name.clone(), connection)));
    }
    Ok(through)
}

async fn row(
    pages: &Pages,
    cookie: &BrowserCookie,
    application: Option<String>,
    connection: consent::Connection,
) -> Result<Row, crate::failure::Failure> {
    let named = Connection {
        person: connection.grant.person.clone(),
        provider: connection.grant.provider.to_string(),
        account: connection.grant.account.key.clone(),
    };
    let named = serde_json::to_string(&named).map_err(crate::failure::Failure::internal)?;
    let day = |time: jiff::Timestamp| time.strftime("%Y-%m-%d %H:%M UTC").to_string();
    Ok(Row {
        form: pages.consent().form_value(cookie, &named).await?,
        default_form: pages.consent().form_value(cookie, &default_form(&named)).await?,
        connection: named,
        application,
        provider: connection.provider_name,
        account: connection.grant.account.label,
        connected: day(connection.grant.connected_at),
        last_used: connection.last_used.map_or_else(|| "not lately".to_owned(), day),
        usable: connection.usable,
        default: connection.default,
        may_choose: connection.one_of_several && !connection.default,
        abilities: connection.abilities,
    })
}

/// A connection as the page shows it.
struct Row {
    connection: String,
    form: String,
    default_form: String,
    application: Option<String>,
    provider: String,
    account: String,
    connected: String,
    last_used: String,
    usable: bool,
    default: bool,
    may_choose: bool,
    abilities: Vec<String>,
}

/// A call as the page shows it.
struct Call {
    day: String,
    time: String,
    tool: String,
    actor: String,
    account: Option<String>,
    outcome: String,
}

impl From<Record> for Call {
    fn from(record: Record) -> Self {
        Self {
            day: record.time.strftime("%Y-%m-%d").to_string(),
            time: record.time.strftime("%H:%M:%S").to_string(),
            tool: record.tool.unwrap_or_default(),
            actor: record.actor,
            account: record.account,
            outcome: record.outcome.unwrap_or_default().replace('_', " "),
        }
    }
}

#[derive(Template)]
#[template(path = "account.html")]
struct Own<'a> {
    style: &'a str,
    person: &'a str,
    connections: &'a [Row],
    calls: &'a [Call],
    form: &'a str,
}

#[derive(Template)]
#[template(path = "choose_sign_in.html")]
struct ChooseSignIn<'a> {
    style: &'a str,
    issuers: &'a [Source],
    again: &'a str,
}
