//! `auth.start`, the wait for it, and the application's word on whose browser it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{Refusal, actor, read};
use crate::call::Obo;
use crate::catalog::Provider;
use crate::consent::{self, Confirmed, Connected, FlowId, Link, Progress, Wish, Wished};
use crate::identity::{Application, Subject};
use crate::vault::Grant;

/// Longest that a status is held.
const MAX_STATUS_WAIT: Duration = Duration::from_secs(59);
/// Most scopes in one request, and the longest of them, in bytes.
const MAX_SCOPES: usize = 100;
const MAX_SCOPE_BYTES: usize = 512;

#[derive(Deserialize)]
struct Authorize {
    auth_requirement: Requirement,
    user_id: String,
    #[serde(default)]
    next_uri: Option<String>,
}

#[derive(Deserialize)]
struct Requirement {
    #[serde(default)]
    provider_id: Option<String>,
    /// Those clients name one provider of several of a kind with it. Here every provider has one client.
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    provider_type: Option<String>,
    #[serde(default)]
    oauth2: Option<Oauth2>,
}

#[derive(Deserialize)]
struct Oauth2 {
    #[serde(default)]
    scopes: Option<Vec<String>>,
}

/// `POST /v1/auth/authorize`: a link for a user, or that there is no need for one.
pub(super) async fn authorize(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let Authorize { auth_requirement, user_id, next_uri } = read(&body)?;
    let subject = subject(&application, &user_id)?;
    let provider = provider(&obo, &auth_requirement)?;
    let scopes = scopes(auth_requirement.oauth2)?;
    let next_uri = next_uri.map(|uri| allowed(&application, &uri)).transpose()?;
    Ok(Json(ask(&obo, &application, &subject, &provider, scopes, next_uri).await?))
}

/// The connection that has these scopes, or a link for them.
pub(super) async fn ask(
    obo: &Obo,
    application: &Application,
    subject: &Subject,
    provider: &Provider,
    scopes: BTreeSet<String>,
    next_uri: Option<Url>,
) -> Result<Value, Refusal> {
    let actor = actor(application);
    let wish = Wish { next_uri, ..Wish::new(subject.person(), provider, scopes, &actor) };
    let user = subject.person().user.as_str();
    Ok(match obo.consent().fulfil(wish).await? {
        Wished::Standing(grant) => standing(user, &grant),
        Wished::Link(link) => pending(user, &link),
    })
}

/// That there is no need for a link.
pub(super) fn standing(user: &str, grant: &Grant) -> Value {
    json!({
        "status": "completed",
        "provider_id": grant.provider.as_str(),
        "user_id": user,
        "scopes": grant.scopes,
    })
}

/// A link that the user must open.
pub(super) fn pending(user: &str, link: &Link) -> Value {
    json!({
        "id": link.flow.as_str(),
        "status": "pending",
        "url": link.url.as_str(),
        "provider_id": link.provider.as_str(),
        "user_id": user,
        "scopes": link.scopes,
    })
}

#[derive(Deserialize)]
pub(super) struct Status {
    id: String,
    #[serde(default)]
    wait: Option<u64>,
}

/// `GET /v1/auth/status`: where a link stands; held while it is pending.
pub(super) async fn status(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    query: Result<Query<Status>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let Ok(Query(Status { id, wait })) = query else {
        let text = "the query needs id, and may have wait in whole seconds";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text));
    };
    let unknown = || Refusal::not_found("there is no such authorization");
    let flow: FlowId = id.parse().map_err(|()| unknown())?;
    // Whose it is comes first: a stranger's request must not be held.
    let progress = own(&application, obo.consent().progress(&flow).await?).ok_or_else(unknown)?;
    let wait = Duration::from_secs(wait.unwrap_or(0)).min(MAX_STATUS_WAIT);
    let progress = match progress.state {
        consent::State::Pending if !wait.is_zero() => {
            own(&application, obo.consent().progress_within(&flow, wait).await?).ok_or_else(unknown)?
        }
        _ => progress,
    };
    let status = match progress.state {
        consent::State::Pending => "pending",
        consent::State::Connected { .. } => "completed",
        // Those clients ask again for ever while the answer is 200.
        consent::State::Over { why } => return Err(Refusal::new(StatusCode::GONE, "authorization_failed", why)),
    };
    Ok(Json(json!({
        "id": flow.as_str(),
        "status": status,
        "provider_id": progress.provider.as_str(),
        "user_id": progress.person.user.as_str(),
        "scopes": progress.scopes,
    })))
}

fn own(application: &Application, progress: Option<Progress>) -> Option<Progress> {
    progress.filter(|progress| {
        progress.person.source == *application.source() && progress.person.tenant == *application.tenant()
    })
}

#[derive(Deserialize)]
struct ConfirmUser {
    #[serde(default)]
    flow_id: Option<String>,
    user_id: String,
    /// The code that the page showed, for applications with `confirm_by_code`; in place of `flow_id`.
    #[serde(default)]
    code: Option<String>,
}

/// `POST /v1/auth/confirm_user`: whose browser it was that came back from the provider.
pub(super) async fn confirm_user(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let confirm: ConfirmUser = read(&body)?;
    let subject = subject(&application, &confirm.user_id)?;
    let connected = match (&confirm.flow_id, &confirm.code) {
        (None, Some(code)) => obo.consent().confirm_code(subject.person(), code).await?,
        (Some(flow_id), None) => {
            match obo.consent().confirm_user(&application, flow_id, subject.person().user.as_str()).await? {
                Confirmed::Connected(connected) => connected,
                Confirmed::UserMismatch => {
                    let text = "the flow was started for another user; it is over, and nothing was connected";
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "user_mismatch", text));
                }
                Confirmed::Unknown => return Err(Refusal::not_found("there is no such flow, or it is over")),
                Confirmed::Failed(failure) => return Err(failure.into()),
            }
        }
        _ => {
            let text = "send either flow_id, as your verifier page was opened with it, or the code that the user typed";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text));
        }
    };
    Ok(Json(confirmed(&connected)))
}

fn confirmed(connected: &Connected) -> Value {
    let mut answer = json!({ "auth_id": connected.flow.as_str() });
    if let Some(uri) = &connected.next_uri {
        answer["next_uri"] = uri.as_str().into();
    }
    answer
}

pub(super) fn subject(application: &Application, user: &str) -> Result<Subject, Refusal> {
    application.on_behalf_of(user).map_err(|_| {
        let text = "user_id must have 1 to 255 bytes, without control characters or spaces at its ends";
        Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text)
    })
}

fn provider(obo: &Obo, requirement: &Requirement) -> Result<Arc<Provider>, Refusal> {
    let wrong = |text: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text);
    if requirement.provider_type.as_deref().is_some_and(|kind| kind != "oauth2") {
        return Err(wrong("provider_type can only be oauth2".to_owned()));
    }
    let name = requirement.provider_id.as_deref().or(requirement.id.as_deref());
    let name = name.ok_or_else(|| wrong("auth_requirement needs provider_id".to_owned()))?;
    let offered = obo.offered_providers();
    match offered.iter().find(|provider| provider.id.as_str() == name) {
        Some(provider) => Ok(provider.clone()),
        None => {
            let known: Vec<&str> = offered.iter().map(|provider| provider.id.as_str()).collect();
            Err(wrong(format!("there is no such provider here; known: {}", known.join(", "))))
        }
    }
}

/// RFC 6749 §3.3: a scope is printable ASCII without spaces, '"' and '\'.
fn scopes(oauth2: Option<Oauth2>) -> Result<BTreeSet<String>, Refusal> {
    let scopes = oauth2.and_then(|oauth2| oauth2.scopes).unwrap_or_default();
    let plain = |scope: &String| {
        (1..=MAX_SCOPE_BYTES).contains(&scope.len())
            && scope.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    };
    if scopes.len() > MAX_SCOPES || !scopes.iter().all(plain) {
        let text = format!("oauth2.scopes must be at most {MAX_SCOPES} scopes, each a text of its own");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text));
    }
    Ok(scopes.into_iter().collect())
}

/// T7: only where the operator said, and only as a browser reads it the same way.
pub(super) fn allowed(application: &Application, uri: &str) -> Result<Url, Refusal> {
    let known = Url::parse(uri).ok().filter(|parsed| application.may_send_to(parsed) && is_plain(uri));
    known.ok_or_else(|| {
        let text = "next_uri is not among the application's next_uris in obo.toml: exact origin and path, query free";
        Refusal::new(StatusCode::BAD_REQUEST, "next_uri_not_allowed", text)
    })
}

/// Nothing that readers of URLs disagree about: backslashes, spaces, control characters, dots that climb.
fn is_plain(uri: &str) -> bool {
    let path = uri.split(['?', '#']).next().unwrap_or_default();
    uri.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') && !path.contains("/.")
}
