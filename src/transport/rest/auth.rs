//! `auth.start`, the wait for it, and the application's word on whose browser it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use super::{Refusal, actor, read};
use crate::call::Obo;
use crate::catalog::Provider;
use crate::consent::{self, Confirmed, Connected, FlowId, Link, Progress, Typed, Wish, Wished};
use crate::id::{Person, ProviderId};
use crate::identity::{Application, Subject};
use crate::secret::AccessToken;
use crate::vault::Grant;

/// Longest that a status is held.
pub(super) const MAX_STATUS_WAIT: Duration = Duration::from_secs(59);
/// Most scopes in one request, and the longest of them, in bytes.
const MAX_SCOPES: usize = 100;
const MAX_SCOPE_BYTES: usize = 512;

/// What a user is asked to connect.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "AuthorizeRequest")]
pub(super) struct Authorize {
    auth_requirement: Requirement,
    /// The user, as the application knows them.
    user_id: String,
    /// Where the browser goes at the end: one of the application's `next_uris`.
    #[serde(default)]
    next_uri: Option<String>,
}

/// An account of a provider, with scopes.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "AuthRequirement")]
struct Requirement {
    /// The provider's id.
    #[serde(default)]
    provider_id: Option<String>,
    /// Another name of `provider_id`.
    // Those clients name one provider of several of a kind with it. Here every provider has one client.
    #[serde(default)]
    id: Option<String>,
    /// `oauth2`, and nothing else.
    #[serde(default)]
    provider_type: Option<String>,
    #[serde(default)]
    oauth2: Option<Oauth2>,
}

/// What is asked for by OAuth.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "OAuth2Requirement")]
struct Oauth2 {
    /// The scopes, as the provider spells them.
    #[serde(default)]
    scopes: Option<Vec<String>>,
}

/// Where a user's connection stands.
#[derive(Serialize, JsonSchema)]
pub(super) struct Authorization {
    /// The authorization's id, for the status; none where there is no need for a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    status: Status,
    /// The link that the user must open.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_id: Option<String>,
    user_id: String,
    /// The scopes that the connection has, or that are asked for.
    scopes: Vec<String>,
    /// For applications that were added with `--may-read-tokens`, once it is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Context>,
}

/// Where a link stands. A failed one is an error.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AuthorizationStatus")]
enum Status {
    /// The user has not finished.
    Pending,
    /// The account is connected.
    Completed,
}

/// The token of a connection.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AuthorizationContext")]
struct Context {
    /// The access token at the provider, as obo would use it now.
    #[serde(serialize_with = "shown")]
    #[schemars(with = "String")]
    token: AccessToken,
    user_info: UserInfo,
}

/// The account that was connected.
#[derive(Serialize, JsonSchema)]
struct UserInfo {
    /// The provider's own id of it.
    sub: String,
    /// What a person knows it by.
    account: String,
}

/// The one place where a token becomes part of an answer.
fn shown<S: Serializer>(token: &AccessToken, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(token.expose())
}

/// `POST /v1/auth/authorize`: a link for a user, or that there is no need for one.
pub(super) async fn authorize(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    body: Bytes,
) -> Result<Json<Authorization>, Refusal> {
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
) -> Result<Authorization, Refusal> {
    let actor = actor(application);
    let wish = || Wish { next_uri: next_uri.clone(), ..Wish::new(subject.person(), provider, scopes.clone(), &actor) };
    let link = match obo.consent().fulfil(wish()).await? {
        Wished::Link(link) => *link,
        Wished::Standing(enough) => match of_several(obo, application, &enough).await? {
            Some(standing) => return Ok(standing),
            None => obo.consent().connect(wish()).await?,
        },
    };
    Ok(pending(subject.person().user.as_str(), &link))
}

/// The same, of connections each of which is enough: the default where one was chosen.
pub(super) async fn of_several(
    obo: &Obo,
    application: &Application,
    enough: &[Grant],
) -> Result<Option<Authorization>, Refusal> {
    let all: Vec<&Grant> = enough.iter().collect();
    check_one(application, &all)?;
    match Grant::default_of(enough).or(enough.first()) {
        Some(grant) => standing(obo, application, grant).await,
        None => Ok(None),
    }
}

/// That there is no need for a link; none where the provider no longer accepts the connection.
pub(super) async fn standing(
    obo: &Obo,
    application: &Application,
    grant: &Grant,
) -> Result<Option<Authorization>, Refusal> {
    let context = match context(obo, application, grant).await? {
        Read::NotAllowed => None,
        Read::Context(context) => Some(*context),
        Read::Ended => return Ok(None),
    };
    Ok(Some(Authorization {
        id: None,
        status: Status::Completed,
        url: None,
        provider_id: Some(grant.provider.to_string()),
        user_id: grant.person.user.to_string(),
        scopes: grant.scopes.iter().cloned().collect(),
        context,
    }))
}

/// That a tool needs no connection.
pub(super) fn needless(user: &str) -> Authorization {
    Authorization {
        id: None,
        status: Status::Completed,
        url: None,
        provider_id: None,
        user_id: user.to_owned(),
        scopes: Vec::new(),
        context: None,
    }
}

/// A link that the user must open.
pub(super) fn pending(user: &str, link: &Link) -> Authorization {
    Authorization {
        id: Some(link.flow.as_str().to_owned()),
        status: Status::Pending,
        url: Some(link.url.to_string()),
        provider_id: Some(link.provider.to_string()),
        user_id: user.to_owned(),
        scopes: link.scopes.clone(),
        context: None,
    }
}

/// What an application may know of a connection's token.
enum Read {
    /// Nothing: it was added without `--may-read-tokens`.
    NotAllowed,
    /// The token.
    Context(Box<Context>),
    /// The provider no longer accepts the connection.
    Ended,
}

/// Whose token an application is shown is never guessed.
pub(super) fn check_one(application: &Application, enough: &[&Grant]) -> Result<(), Refusal> {
    let [first, _, ..] = enough else { return Ok(()) };
    if !application.may_read_tokens() || Grant::default_of(enough.iter().copied()).is_some() {
        return Ok(());
    }
    let labels: Vec<&str> = enough.iter().map(|grant| grant.account.label.as_str()).collect();
    let text = format!(
        "the user has several accounts of {} that would do ({}), and none is the default; disconnect all but one",
        first.provider,
        labels.join(", ")
    );
    Err(Refusal::new(StatusCode::BAD_REQUEST, "account_required", text))
}

async fn context(obo: &Obo, application: &Application, grant: &Grant) -> Result<Read, Refusal> {
    let Some(reader) = application.token_reader() else { return Ok(Read::NotAllowed) };
    let Some(token) = obo.read_token(&reader, grant).await? else { return Ok(Read::Ended) };
    let user_info = UserInfo { sub: grant.account.key.clone(), account: grant.account.label.clone() };
    Ok(Read::Context(Box::new(Context { token, user_info })))
}

/// The connection that a link has made; none where it is gone.
async fn connected(obo: &Obo, person: &Person, provider: &ProviderId, account: &str) -> Result<Option<Grant>, Refusal> {
    let grants = obo.consent().connections(person).await?;
    let made = |grant: &Grant| grant.provider == *provider && grant.account.label == account;
    Ok(grants.into_iter().filter(made).max_by_key(|grant| grant.connected_at))
}

#[derive(Deserialize)]
pub(super) struct StatusQuery {
    id: String,
    #[serde(default)]
    wait: Option<u64>,
}

/// `GET /v1/auth/status`: where a link stands; held while it is pending.
pub(super) async fn status(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    query: Result<Query<StatusQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Authorization>, Refusal> {
    let Ok(Query(StatusQuery { id, wait })) = query else {
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
    // Those clients ask again for ever while the answer is 200.
    let gone = |why: &str| Refusal::new(StatusCode::GONE, "authorization_failed", why);
    let Progress { person, provider, scopes, state } = progress;
    let (status, context) = match state {
        consent::State::Pending => (Status::Pending, None),
        consent::State::Over { why } => return Err(gone(why)),
        // Only where it is read: another application's link stays completed, whatever becomes of the connection.
        consent::State::Connected { account } if application.may_read_tokens() => {
            let ended = || gone("the connection that this link made is gone; start again");
            let grant = connected(&obo, &person, &provider, &account).await?.ok_or_else(ended)?;
            match context(&obo, &application, &grant).await? {
                Read::Context(context) => (Status::Completed, Some(*context)),
                Read::NotAllowed => (Status::Completed, None),
                Read::Ended => return Err(ended()),
            }
        }
        consent::State::Connected { .. } => (Status::Completed, None),
    };
    Ok(Json(Authorization {
        id: Some(flow.as_str().to_owned()),
        status,
        url: None,
        provider_id: Some(provider.to_string()),
        user_id: person.user.to_string(),
        scopes,
        context,
    }))
}

fn own(application: &Application, progress: Option<Progress>) -> Option<Progress> {
    progress.filter(|progress| {
        progress.person.source == *application.source() && progress.person.tenant == *application.tenant()
    })
}

/// Whose browser it was.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ConfirmUserRequest")]
pub(super) struct ConfirmUser {
    /// The id that the application's verifier page was opened with.
    #[serde(default)]
    flow_id: Option<String>,
    /// The user who is signed in to the application in that browser.
    user_id: String,
    /// The code that the page showed, for applications with `confirm_by_code`; in place of `flow_id`.
    #[serde(default)]
    code: Option<String>,
}

/// The flow that was confirmed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ConfirmUserAnswer")]
pub(super) struct ConfirmedUser {
    /// The authorization's id.
    auth_id: String,
    /// Where the browser should go now, where the authorization named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_uri: Option<String>,
}

/// `POST /v1/auth/confirm_user`: whose browser it was that came back from the provider.
pub(super) async fn confirm_user(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    body: Bytes,
) -> Result<Json<ConfirmedUser>, Refusal> {
    let confirm: ConfirmUser = read(&body)?;
    let subject = subject(&application, &confirm.user_id)?;
    let connected = match (&confirm.flow_id, &confirm.code) {
        (None, Some(code)) => {
            let actor = actor(&application);
            obo.consent().confirm_code(subject.person(), code, &Typed::InApplication, &actor).await?
        }
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
    let Connected { flow, next_uri, .. } = *connected;
    Ok(Json(ConfirmedUser { auth_id: flow.as_str().to_owned(), next_uri: next_uri.map(String::from) }))
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
