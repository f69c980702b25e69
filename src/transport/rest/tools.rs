//! The tools that an application's users may call, and the calls.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::auth::{self, Authorization, subject};
use super::definition::{Definition, Format, Readiness, definition};
use super::page::{Page, Paged, Parameters};
use super::{Refusal, actor, read};
use crate::call::{Obo, Outcome, Request};
use crate::catalog::Tool;
use crate::failure::{Code, Failure};
use crate::identity::{Application, Subject};
use crate::vault::Grant;

/// The version of every tool: they come with the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `GET /v1/tools`.
pub(super) async fn list(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    RawQuery(query): RawQuery,
) -> Result<Json<Paged<Definition>>, Refusal> {
    let query = Parameters::parse(query.as_deref())?;
    let formats = formats(&query)?;
    let listed = Listed::of(&obo, &application, &query).await?;
    let page = Page::of(&query)?;
    let readiness = listed.readiness();
    let tools = page.cut(&listed.tools);
    let items = tools.iter().map(|tool| definition(tool, readiness.as_ref(), &formats)).collect();
    Ok(Json(page.answer(items, listed.tools.len())))
}

/// `GET /v1/tools/{name}`.
pub(super) async fn get(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Definition>, Refusal> {
    let query = Parameters::parse(query.as_deref())?;
    let formats = formats(&query)?;
    let listed = Listed::of(&obo, &application, &query).await?;
    let tool = listed.named(&name)?;
    Ok(Json(definition(tool, listed.readiness().as_ref(), &formats)))
}

/// `GET /v1/formatted_tools`.
pub(super) async fn formatted_list(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    RawQuery(query): RawQuery,
) -> Result<Json<Paged<Value>>, Refusal> {
    let query = Parameters::parse(query.as_deref())?;
    let format = format(&query)?;
    let listed = Listed::of(&obo, &application, &query).await?;
    let page = Page::of(&query)?;
    let items = page.cut(&listed.tools).iter().map(|tool| format.of(tool)).collect();
    Ok(Json(page.answer(items, listed.tools.len())))
}

/// `GET /v1/formatted_tools/{name}`.
pub(super) async fn formatted_get(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Refusal> {
    let query = Parameters::parse(query.as_deref())?;
    let format = format(&query)?;
    let listed = Listed::of(&obo, &application, &query).await?;
    Ok(Json(format.of(listed.named(&name)?)))
}

/// The tools that are asked about, and where their user stands, if one is named.
struct Listed {
    tools: Vec<Arc<Tool>>,
    user: Option<Vec<Grant>>,
}

impl Listed {
    async fn of(obo: &Obo, application: &Application, query: &Parameters) -> Result<Self, Refusal> {
        let subject = query.get("user_id").map(|user| subject(application, user)).transpose()?;
        let (mut tools, user) = match &subject {
            Some(subject) => (obo.tools(subject), Some(obo.consent().connections(subject.person()).await?)),
            None => (obo.all_tools(), None),
        };
        if let Some(toolkit) = query.get("toolkit") {
            tools.retain(|tool| tool.name.toolkit().eq_ignore_ascii_case(toolkit));
        }
        Ok(Self { tools, user })
    }

    fn readiness(&self) -> Option<Readiness<'_>> {
        let grants = self.user.as_deref()?;
        Some(Readiness { grants, enough: &crate::consent::is_enough })
    }

    fn named(&self, name: &str) -> Result<&Arc<Tool>, Refusal> {
        let name = plain_name(name)?;
        let found = self.tools.iter().find(|tool| tool.name.as_str() == name || tool.name.underscored() == name);
        found.ok_or_else(unknown_tool)
    }
}

/// The name without its version, which must be the one there is.
fn plain_name(name: &str) -> Result<&str, Refusal> {
    match name.split_once('@') {
        None => Ok(name),
        Some((name, VERSION)) => Ok(name),
        Some(_) => Err(unknown_tool()),
    }
}

fn unknown_tool() -> Refusal {
    Refusal::not_found("there is no such tool; GET /v1/tools lists those there are")
}

fn formats(query: &Parameters) -> Result<Vec<Format>, Refusal> {
    let named = query.all("include_format").flat_map(|value| value.split(',')).filter(|name| *name != "arcade");
    named.filter(|name| !name.is_empty()).map(|name| Format::named(name).ok_or_else(unknown_format)).collect()
}

fn format(query: &Parameters) -> Result<Format, Refusal> {
    query.get("format").map_or(Ok(Format::OpenAi), |name| Format::named(name).ok_or_else(unknown_format))
}

fn unknown_format() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad_request", "the format must be openai or anthropic")
}

/// Whose connection for which tool.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "AuthorizeToolRequest")]
pub(super) struct Authorize {
    /// The tool's name with its toolkit, in either spelling: `Google.SendEmail` or `Google_SendEmail`.
    tool_name: String,
    /// The user, as the application knows them.
    user_id: String,
    /// The tool's version; another than there is names no tool.
    #[serde(default)]
    tool_version: Option<String>,
    /// Where the browser goes at the end: one of the application's `next_uris`.
    #[serde(default)]
    next_uri: Option<String>,
}

/// `POST /v1/tools/authorize`: a link for what a tool needs, or that there is no need for one.
pub(super) async fn authorize(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    body: Bytes,
) -> Result<Json<Authorization>, Refusal> {
    let asked: Authorize = read(&body)?;
    let subject = subject(&application, &asked.user_id)?;
    let tool = tool(&obo, &subject, &asked.tool_name, asked.tool_version.as_deref())?;
    let next_uri = asked.next_uri.map(|uri| auth::allowed(&application, &uri)).transpose()?;
    let Some(api) = tool.api() else {
        return Ok(Json(auth::needless(&asked.user_id)));
    };
    // Any of the sets is enough, and the first is what is asked for.
    let mut grants = obo.consent().connections(subject.person()).await?;
    grants.retain(|grant| crate::consent::is_enough(api, grant));
    if let Some(standing) = auth::of_several(&obo, &application, &grants).await? {
        return Ok(Json(standing));
    }
    let scopes = api.scopes_any_of.first().cloned().unwrap_or_default().into_iter().collect();
    Ok(Json(auth::ask(&obo, &application, &subject, &api.provider, scopes, next_uri).await?))
}

fn tool(obo: &Obo, subject: &Subject, name: &str, version: Option<&str>) -> Result<Arc<Tool>, Refusal> {
    if version.is_some_and(|version| version != VERSION) {
        return Err(unknown_tool());
    }
    obo.tool(subject, plain_name(name)?).ok_or_else(unknown_tool)
}

/// A call.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ExecuteRequest")]
#[serde(deny_unknown_fields)]
pub(super) struct Execute {
    /// The tool's name with its toolkit, in either spelling: `Google.SendEmail` or `Google_SendEmail`.
    tool_name: String,
    /// The user, as the application knows them.
    user_id: String,
    /// The tool's version; another than there is names no tool.
    #[serde(default)]
    tool_version: Option<String>,
    /// The arguments; with `account` among them, where the user has connected several.
    #[serde(default)]
    input: Option<Map<String, Value>>,
    /// Calls cannot be scheduled: anything but null is refused.
    #[serde(default)]
    run_at: Option<Value>,
    /// Taken, and without effect: no answer has a stack trace.
    #[serde(default, rename = "include_error_stacktrace")]
    _include_error_stacktrace: Option<bool>,
}

/// What became of a call.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ExecuteAnswer")]
pub(super) struct Executed {
    /// `immediate`.
    execution_type: &'static str,
    /// `success` or `failed`.
    status: &'static str,
    success: bool,
    /// How long it took, in milliseconds.
    duration: f64,
    output: Output,
}

/// The value of a call, or why there is none.
#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "ExecuteOutput")]
struct Output {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ToolError>,
    /// The link that the user must open first.
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization: Option<Authorization>,
}

/// Why a call has no value.
#[derive(Serialize, JsonSchema)]
struct ToolError {
    /// What kind of error it is, for those clients.
    kind: &'static str,
    /// What happened, and what to do next.
    message: String,
    /// Whether the same call may be made again.
    can_retry: bool,
    extra: Extra,
    /// How long to wait before.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// The provider's HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
}

/// What those clients have no field for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolErrorExtra")]
struct Extra {
    /// obo's own code of the error.
    code: Code,
}

/// `POST /v1/tools/execute`.
pub(super) async fn execute(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    body: Bytes,
) -> Result<Json<Executed>, Refusal> {
    let asked: Execute = read(&body)?;
    if asked.run_at.is_some_and(|at| !at.is_null()) {
        let text = "calls cannot be scheduled here; leave run_at out";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text));
    }
    let subject = subject(&application, &asked.user_id)?;
    let tool = tool(&obo, &subject, &asked.tool_name, asked.tool_version.as_deref())?;
    let request = Request {
        tool: tool.name.as_str().to_owned(),
        arguments: asked.input.unwrap_or_default(),
        actor: actor(&application),
        resume: None,
    };
    let began = Instant::now();
    let output = match obo.call(&subject, request).await {
        Outcome::Value(value) => Output { value: Some(value), ..Output::default() },
        Outcome::Authorization(link) => Output {
            error: Some(error(&Failure::new(
                Code::AuthorizationRequired,
                format!("the user must connect {} first, by the link in output.authorization", link.provider_name),
            ))),
            authorization: Some(auth::pending(&asked.user_id, &link)),
            ..Output::default()
        },
        Outcome::Failed(failure) => Output { error: Some(error(&failure)), ..Output::default() },
        Outcome::UnknownTool | Outcome::BadRequestState => return Err(unknown_tool()),
    };
    let success = output.error.is_none();
    Ok(Json(Executed {
        execution_type: "immediate",
        status: if success { "success" } else { "failed" },
        success,
        duration: began.elapsed().as_secs_f64() * 1000.0,
        output,
    }))
}

/// A failure as those clients read it; docs/errors.md has the table.
fn error(failure: &Failure) -> ToolError {
    ToolError {
        kind: kind(failure.code),
        message: failure.message.clone(),
        can_retry: failure.can_retry,
        extra: Extra { code: failure.code },
        retry_after_ms: failure.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        status_code: failure.status,
    }
}

/// The kind of a code. A test compares docs/errors.md with it.
pub fn kind(code: Code) -> &'static str {
    match code {
        Code::AuthorizationRequired => "TOOL_REQUIREMENTS_NOT_MET",
        Code::Denied | Code::TooLarge => "TOOL_RUNTIME_FATAL",
        Code::InvalidArguments => "TOOL_RUNTIME_BAD_INPUT_VALUE",
        Code::AccountRequired => "TOOL_RUNTIME_CONTEXT_REQUIRED",
        Code::NotFound => "UPSTREAM_RUNTIME_NOT_FOUND",
        Code::Permission | Code::ScopeMissing => "UPSTREAM_RUNTIME_AUTH_ERROR",
        Code::RateLimited => "UPSTREAM_RUNTIME_RATE_LIMIT",
        Code::ProviderError => "UPSTREAM_RUNTIME_SERVER_ERROR",
        Code::ProviderUnreachable => "NETWORK_TRANSPORT_RUNTIME_UNREACHABLE",
        Code::Timeout => "NETWORK_TRANSPORT_RUNTIME_TIMEOUT",
        Code::OutcomeUnknown => "NETWORK_TRANSPORT_RUNTIME_UNMAPPED",
        Code::AuditUnavailable | Code::VaultUnavailable => "TOOL_RUNTIME_RETRY",
        Code::Internal => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_errors_says_the_same() {
        let table = include_str!("../../../docs/errors.md");
        for code in Code::ALL {
            let line = table.lines().find(|line| line.starts_with(&format!("| `{}` |", code.as_str()))).unwrap();
            assert!(line.ends_with(&format!("| `{}` |", kind(code))), "{line}");
        }
    }

    #[test]
    fn versions_other_than_ours_name_no_tool() {
        assert_eq!(plain_name("Google.SendEmail").unwrap(), "Google.SendEmail");
        assert_eq!(plain_name(&format!("A.B@{VERSION}")).unwrap(), "A.B");
        assert!(plain_name("A.B@99").is_err());
    }
}
