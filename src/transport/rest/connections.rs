//! The connections of an application's users.

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::auth::subject;
use super::page::{Page, Paged, Parameters};
use super::{Refusal, actor};
use crate::call::Obo;
use crate::identity::Application;
use crate::vault::{Grant, GrantStatus};

/// Longest id that is read, in bytes.
const MAX_ID_BYTES: usize = 2048;

/// A connection of a user to an account of a provider.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UserConnection")]
pub(super) struct Connection {
    id: String,
    /// The same as `id`.
    connection_id: String,
    connection_status: Standing,
    provider_id: String,
    /// `oauth2`.
    provider_type: &'static str,
    provider_user_info: ProviderUser,
    /// What the provider granted.
    scopes: Vec<String>,
    user_id: String,
}

/// Whether a connection can be used.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ConnectionStatus")]
enum Standing {
    /// It can.
    Active,
    /// The provider no longer accepts it; the user must connect again.
    Inactive,
}

/// The account at the provider.
#[derive(Serialize, JsonSchema)]
struct ProviderUser {
    /// What a person knows it by.
    account: String,
}

/// `GET /v1/admin/user_connections`.
pub(super) async fn list(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    RawQuery(query): RawQuery,
) -> Result<Json<Paged<Connection>>, Refusal> {
    let query = Parameters::parse(query.as_deref())?;
    let page = Page::of(&query)?;
    // The vault finds connections by person and in no other way: what nobody can list, nobody can steal as a list.
    let Some(user) = query.get("user[id]").or_else(|| query.get("user.id")) else {
        let text = "name the user whose connections are asked for: user[id]=…";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text));
    };
    let subject = subject(&application, user)?;
    let mut grants = obo.consent().connections(subject.person()).await?;
    if let Some(provider) = query.get("provider[id]").or_else(|| query.get("provider.id")) {
        grants.retain(|grant| grant.provider.as_str() == provider);
    }
    let items = page.cut(&grants).iter().map(connection).collect::<Result<_, _>>()?;
    Ok(Json(page.answer(items, grants.len())))
}

/// `DELETE /v1/admin/user_connections/{id}`: revoked at the provider, then forgotten here.
pub(super) async fn delete(
    State(obo): State<Obo>,
    Extension(application): Extension<Application>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let unknown = || Refusal::not_found("there is no such connection");
    let (user, provider, account) = named(&id).ok_or_else(unknown)?;
    let subject = subject(&application, &user).map_err(|_| unknown())?;
    let ended = obo.consent().disconnect(subject.person(), &provider, &account, &actor(&application)).await?;
    ended.map(|_| StatusCode::NO_CONTENT).ok_or_else(unknown)
}

fn connection(grant: &Grant) -> Result<Connection, Refusal> {
    let id = id_of(grant).map_err(crate::failure::Failure::internal)?;
    Ok(Connection {
        connection_id: id.clone(),
        id,
        connection_status: match grant.status {
            GrantStatus::Active => Standing::Active,
            GrantStatus::NeedsConsent => Standing::Inactive,
        },
        provider_id: grant.provider.to_string(),
        provider_type: "oauth2",
        provider_user_info: ProviderUser { account: grant.account.label.clone() },
        scopes: grant.scopes.iter().cloned().collect(),
        user_id: grant.person.user.to_string(),
    })
}

/// The id of a connection: whose, where, which. It proves nothing; whose application asks decides.
fn id_of(grant: &Grant) -> serde_json::Result<String> {
    let parts = serde_json::to_vec(&(grant.person.user.as_str(), grant.provider.as_str(), &grant.account.key))?;
    Ok(URL_SAFE_NO_PAD.encode(parts))
}

fn named(id: &str) -> Option<(String, String, String)> {
    if id.len() > MAX_ID_BYTES {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(id).ok()?).ok()
}
