//! The token endpoint (RFC 6749 §3.2) and the revocation endpoint (RFC 7009).

use serde_json::{Value, json};

use super::client::ClientError;
use super::code::Shown;
use super::request::Parameters;
use super::{AuthorizationServer, SCOPE, document, registration};
use crate::failure::Failure;
use crate::identity::client_session::{NoTokens, Tokens};
use crate::secret::Secret;

/// What kind of error a client is told (RFC 6749 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenErrorCode {
    /// The request is not one.
    InvalidRequest,
    /// There is no such client; it may register anew.
    InvalidClient,
    /// The code or the refresh token is not good; the person must sign in again.
    InvalidGrant,
    /// Neither a code nor a refresh token.
    UnsupportedGrantType,
    /// For another resource than this server (RFC 8707 §2).
    InvalidTarget,
    /// It cannot be done just now; nothing was used up.
    TemporarilyUnavailable,
}

impl TokenErrorCode {
    /// As it is spelled.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidTarget => "invalid_target",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
        }
    }
}

/// An error for a client. `text` says what is wrong and never holds what was sent.
#[derive(Debug, Clone)]
pub struct TokenError {
    /// Its kind.
    pub code: TokenErrorCode,
    /// A sentence for whoever runs the client.
    pub text: String,
}

impl TokenError {
    fn new(code: TokenErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    fn request(text: &str) -> Self {
        Self::new(TokenErrorCode::InvalidRequest, text)
    }
}

impl From<Failure> for TokenError {
    fn from(failure: Failure) -> Self {
        tracing::error!(code = failure.code.as_str(), cause = failure.cause, "a client could not be served");
        Self::new(TokenErrorCode::TemporarilyUnavailable, "obo cannot do this just now; try again")
    }
}

impl AuthorizationServer {
    /// Gives tokens for a code or a refresh token. `form` is the body, as sent.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn token(&self, form: &[u8]) -> Result<Value, TokenError> {
        let (this, form) = (self.clone(), form.to_vec());
        to_its_end(async move { this.give_tokens(&form).await }).await
    }

    async fn give_tokens(&self, form: &[u8]) -> Result<Value, TokenError> {
        let parameters = read(form)?;
        let client_id = self.client_of(&parameters).await?;
        if !parameters.resources().all(|resource| self.is_resource(resource)) {
            return Err(TokenError::new(TokenErrorCode::InvalidTarget, "resource is not this server"));
        }
        let given = |key: &str| parameters.get(key).ok_or_else(|| TokenError::request(&format!("{key} is missing")));
        let tokens = match given("grant_type")? {
            "authorization_code" => {
                let (code, verifier) = (Secret::new(given("code")?), Secret::new(given("code_verifier")?));
                let redirect_uri = parameters.get("redirect_uri");
                self.exchange(Shown { code: &code, client_id: &client_id, redirect_uri, verifier: &verifier }).await
            }
            "refresh_token" => {
                let token = Secret::new(given("refresh_token")?);
                self.inner.identity.clients().renew(&token, &client_id).await
            }
            _ => {
                let text = "grant_type must be authorization_code or refresh_token";
                return Err(TokenError::new(TokenErrorCode::UnsupportedGrantType, text));
            }
        };
        match tokens {
            Ok(tokens) => Ok(answer(&tokens)),
            Err(NoTokens::Invalid(why)) => {
                tracing::info!(why, "a client got no tokens");
                Err(TokenError::new(TokenErrorCode::InvalidGrant, why))
            }
            Err(NoTokens::Reused(session)) => {
                tracing::warn!(
                    client = session.client,
                    id = session.id,
                    "a refresh token came back; its session ended"
                );
                self.record_end(&session, "client.token_reused").await;
                // Said no differently than of one that was never good.
                Err(TokenError::new(TokenErrorCode::InvalidGrant, "the refresh token is not good any more"))
            }
            Err(NoTokens::Failed(failure)) => Err(failure.into()),
        }
    }

    /// Ends what a token stands for (RFC 7009 §2.1). Of a token that is not good nothing is said (§2.2).
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn revoke(&self, form: &[u8]) -> Result<(), TokenError> {
        let (this, form) = (self.clone(), form.to_vec());
        to_its_end(async move { this.end_token(&form).await }).await
    }

    async fn end_token(&self, form: &[u8]) -> Result<(), TokenError> {
        let parameters = read(form)?;
        let client_id = self.client_of(&parameters).await?;
        let token = parameters.get("token").ok_or_else(|| TokenError::request("token is missing"))?;
        let ended = self.inner.identity.clients().revoke_token(&Secret::new(token), &client_id).await?;
        if let Some(session) = ended {
            self.record_end(&session, "client.gave_back").await;
        }
        Ok(())
    }

    /// The client that a form is from. It proves nothing: what it shows besides is bound to it.
    async fn client_of(&self, parameters: &Parameters) -> Result<String, TokenError> {
        let id = parameters.get("client_id").ok_or_else(|| TokenError::request("client_id is missing"))?;
        let wrong = |text: &str| TokenError::new(TokenErrorCode::InvalidClient, text);
        if parameters.get("client_secret").is_some() || parameters.get("client_assertion").is_some() {
            return Err(wrong("clients have no secrets here; use token_endpoint_auth_method none"));
        }
        // A document is not fetched again: the code or token knows whose it is, and anybody can send this.
        if document::is_id(id) {
            return Ok(id.to_owned());
        }
        if !registration::is_id(id) {
            return Err(wrong("there is no such client; register it"));
        }
        match self.registered(id).await {
            Ok(client) => Ok(client.id),
            Err(ClientError::Bad(text) | ClientError::Unavailable(text)) => Err(wrong(&text)),
            Err(ClientError::Failed(failure)) => Err(failure.into()),
        }
    }
}

/// Carries a request to its end when its client goes away: whoever shows a stolen token and hangs up must not keep that off
/// the record, and a session is not left half begun.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, TokenError>> + Send + 'static,
) -> Result<T, TokenError> {
    let ended_early = |_| Err(Failure::internal("the request of a client ended early").into());
    tokio::spawn(work).await.unwrap_or_else(ended_early)
}

fn read(form: &[u8]) -> Result<Parameters, TokenError> {
    Parameters::read(form).ok_or_else(|| TokenError::request("a parameter stands there twice"))
}

/// RFC 6749 §5.1.
fn answer(tokens: &Tokens) -> Value {
    json!({
        "access_token": tokens.access.expose(),
        "token_type": "Bearer",
        "expires_in": tokens.expires_in.as_secs(),
        "refresh_token": tokens.refresh.expose(),
        "scope": SCOPE,
    })
}
