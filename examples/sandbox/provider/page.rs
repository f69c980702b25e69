//! The pages a person sees at the provider, and a walk through them without a browser.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use axum::response::{Html, IntoResponse, Response};
use http::{StatusCode, header};
use url::Url;

use super::{PEOPLE, Service};

const STYLE: &str = "
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1c1f24; --soft: #5b6470; --line: #d9dde3; --go: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --card: #1d2026; --ink: #e8eaee; --soft: #9aa3b0; --line: #343a44; --go: #84b3ff; } }
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem; background: var(--ground); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }
main { width: min(26rem, 100%); background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.75rem }
h1 { font-size: 1.25rem; margin: 0 0 .25rem } p { color: var(--soft); margin: 0 0 1rem }
ul { list-style: none; margin: 0 0 1.25rem; padding: 0 } li { padding: .3rem 0; overflow-wrap: anywhere } label { display: flex; gap: .6rem }
button { width: 100%; margin-top: .5rem; padding: .65rem 1rem; border-radius: 8px; border: 1px solid var(--line); background: none; color: var(--ink); font: inherit; text-align: left; cursor: pointer }
button:hover, button:focus-visible { border-color: var(--go) } button.deny { text-align: center; color: var(--soft) }
";

/// Whether the consent page lets a person leave this scope out. Only Google's does, and not for who they are.
pub(super) fn may_be_unticked(service: Service, scope: &str) -> bool {
    service == Service::Google && scope.starts_with("https://www.googleapis.com/auth/") && !scope.contains("/userinfo.")
}

/// The consent page: which account, and what it allows. One form, and an opaque id in it.
pub(super) fn consent(
    service: Service,
    action: &str,
    visit: &str,
    scopes: &BTreeSet<String>,
    hint: Option<&str>,
) -> Response {
    let name = match service {
        Service::Google => "Google",
        Service::Slack => "Slack",
    };
    let mut list = String::new();
    for scope in scopes {
        let text = escape(scope);
        // Writing to a String does not fail.
        let _ = if may_be_unticked(service, scope) {
            write!(
                list,
                r#"<li><label><input type="checkbox" name="scope" value="{text}" checked> {text}</label></li>"#
            )
        } else {
            write!(list, "<li>{text}</li>")
        };
    }
    let mut buttons = String::new();
    let mut people: Vec<_> = PEOPLE.iter().collect();
    people.sort_by_key(|person| hint != Some(person.email));
    for person in people {
        let _ = write!(buttons, r#"<button name="account" value="{0}">Allow as {0}</button>"#, person.email);
    }
    respond(
        StatusCode::OK,
        &format!("{name} sandbox: allow access"),
        &format!(
            r#"<h1>obo wants to use your {name} account</h1><p>This is the sandbox's {name}. Choose an account to allow it.</p>
<form method="post" action="{action}"><input type="hidden" name="visit" value="{visit}"><ul>{list}</ul>{buttons}
<button class="deny" name="account" value="">Deny</button></form>"#
        ),
    )
}

/// An error that is shown here, because there is nobody it could safely be sent to.
pub(super) fn error(code: &str, why: &str) -> Response {
    let body = format!("<h1>This request is not valid</h1><p>{}: {}</p>", escape(code), escape(why));
    respond(StatusCode::BAD_REQUEST, "Not valid", &body)
}

fn respond(status: StatusCode, title: &str, body: &str) -> Response {
    let page = format!(
        r#"<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"#
    );
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::X_FRAME_OPTIONS, "DENY")];
    (status, headers, Html(page)).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Opens the page, chooses, and returns the `Location` it answers.
pub(super) async fn walk(authorize_url: &str, who: &str, only: Option<&[&str]>) -> Result<String, String> {
    let say = |error: reqwest::Error| error.without_url().to_string();
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().map_err(say)?;
    let url = Url::parse(authorize_url).map_err(|error| error.to_string())?;
    let opened = browser.get(url.clone()).send().await.map_err(say)?;
    if let Some(to) = location(&opened) {
        return Ok(to);
    }
    let (status, page) = (opened.status(), opened.text().await.map_err(say)?);
    let visit = between(&page, r#"name="visit" value=""#, "\"").ok_or_else(|| format!("{status}: {page}"))?;
    let account = match who {
        "deny" => "",
        who => super::ledger::account(who).map(|account| account.email).ok_or("nobody here has that name")?,
    };
    let mut fields = vec![("visit", visit), ("account", account)];
    let ticked = page.split(r#"name="scope" value=""#).skip(1).filter_map(|rest| rest.split('"').next());
    fields.extend(ticked.filter(|scope| only.is_none_or(|only| only.contains(scope))).map(|scope| ("scope", scope)));
    let mut action = url;
    action.set_query(None);
    let answer = browser.post(action).form(&fields).send().await.map_err(say)?;
    match location(&answer) {
        Some(to) => Ok(to),
        None => Err(format!("{}: no redirect after the consent page", answer.status())),
    }
}

fn location(answer: &reqwest::Response) -> Option<String> {
    Some(answer.headers().get(header::LOCATION)?.to_str().ok()?.to_owned())
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}
