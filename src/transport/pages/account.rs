//! `/account`: a signed-in person's own connections and recent calls.

use askama::Template;
use axum::extract::{Form, Query, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::Response;
use serde::Deserialize;

use super::sign_in::{Chosen, Entrance, For};
use super::{
    Connection, Disconnecting, Pages, STYLE, Step, Submitted, bad_form, gone, guard, page, see_other, unavailable,
};
use crate::audit::Record;
use crate::consent::{self, Back, BrowserCookie};
use crate::id::Person;

/// The path, which names its forms too.
const PATH: &str = super::ACCOUNT;

fn entrance() -> Entrance {
    Entrance { path: PATH.to_owned(), back: Back::Account, purpose: For::Account }
}

/// Shows the page, or the way to it.
pub(super) async fn show(State(pages): State<Pages>, Query(chosen): Query<Chosen>, headers: HeaderMap) -> Response {
    let known = pages.cookie_of(&headers);
    let cookie = known.clone().unwrap_or_default();
    let mut response = match pages.consent().signed_in(&cookie).await {
        Ok(Some(person)) => own(&pages, &cookie, &person).await,
        Ok(None) => entrance().ask(&pages, &cookie, &chosen, false).await,
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
        Step::SignOut => entrance().sign_out(&pages, &cookie).await,
        Step::SignIn => entrance().sign_in(&pages, &cookie, submitted).await,
        Step::LogIn => entrance().log_in(&pages, cookie, &chosen).await,
        Step::Connect | Step::Disown | Step::Allow | Step::Deny => bad_form(),
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

/// Takes the form that signs a client out.
pub(super) async fn sign_client_out(
    State(pages): State<Pages>,
    headers: HeaderMap,
    form: Result<Form<SigningOut>, axum::extract::rejection::FormRejection>,
) -> Response {
    let Some(server) = &pages.clients else { return bad_form() };
    let Ok(Form(submitted)) = form else { return bad_form() };
    let cookie = match guard::form(&pages, &headers, &client_form(&submitted.client), &submitted.form).await {
        Ok(cookie) => cookie,
        Err(refusal) => return refusal,
    };
    let signed_out = match pages.consent().signed_in(&cookie).await {
        Ok(Some(person)) => server.sign_out(&person, &submitted.client).await,
        Ok(None) => return see_other(PATH),
        Err(failure) => Err(failure),
    };
    match signed_out {
        // It is gone either way.
        Ok(_) => see_other(PATH),
        Err(failure) => unavailable(&failure),
    }
}

#[derive(Deserialize)]
pub(super) struct SigningOut {
    client: String,
    form: String,
}

fn client_form(id: &str) -> String {
    format!("{PATH}/client {id}")
}

/// The clients that are signed in for a person, as the page shows them.
async fn clients(
    pages: &Pages,
    cookie: &BrowserCookie,
    person: &Person,
) -> Result<Vec<Client>, crate::failure::Failure> {
    let Some(server) = &pages.clients else { return Ok(Vec::new()) };
    let mut clients = Vec::new();
    for session in server.clients_of(person).await? {
        clients.push(Client {
            form: pages.consent().form_value(cookie, &client_form(&session.id)).await?,
            name: session.client,
            since: day(session.created_at),
            used: day(session.used_at),
            until: day(session.expires_at),
            id: session.id,
        });
    }
    Ok(clients)
}

fn day(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// A client as the page shows it.
struct Client {
    id: String,
    form: String,
    name: String,
    since: String,
    used: String,
    until: String,
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
    let clients = match clients(pages, cookie, person).await {
        Ok(clients) => clients,
        Err(failure) => return unavailable(&failure),
    };
    let person = person.to_string();
    let own =
        Own { style: STYLE, person: &person, connections: &connections, clients: &clients, calls: &calls, form: &form };
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
    clients: &'a [Client],
    calls: &'a [Call],
    form: &'a str,
}
