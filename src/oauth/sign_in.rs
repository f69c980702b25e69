//! Signs a browser in at an identity provider: the link, and the exchange of the code for an ID token
//! (OpenID Connect Core §3.1.2, §3.1.3). What the token says is for `identity` to verify.

use http::Method;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::{Oauth, OauthError, Pkce, answer, no_answer, revocation};
use crate::identity::SignIn;
use crate::secret::Secret;

/// Longest ID token accepted, in bytes.
const MAX_ID_TOKEN_BYTES: usize = 16 << 10; // 16 KiB

/// What a sign-in gives.
pub struct SignInTokens {
    /// Who came back.
    pub id_token: Secret,
    /// For asking the provider about them.
    pub access_token: Secret,
}

impl Oauth {
    /// The link that sends a browser to an identity provider.
    ///
    /// `again`: ask who it is, although the provider may remember somebody (OpenID Connect Core §3.1.2.1, `prompt`).
    pub fn sign_in_url(
        sign_in: &SignIn,
        redirect_uri: &Url,
        state: &Secret,
        nonce: &Secret,
        pkce: &Pkce,
        again: bool,
    ) -> Url {
        let mut url = sign_in.authorization_url.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &sign_in.client_id)
            .append_pair("redirect_uri", redirect_uri.as_str())
            .append_pair("scope", &sign_in.scopes.join(" "))
            .append_pair("state", state.expose())
            .append_pair("nonce", nonce.expose())
            .append_pair("code_challenge", &pkce.challenge)
            .append_pair("code_challenge_method", "S256");
        if again {
            url.query_pairs_mut().append_pair("prompt", "login");
        }
        url
    }

    /// Exchanges the code of a sign-in for its tokens. A refresh token beside them is not looked at.
    ///
    /// # Errors
    /// See [`OauthError`].
    pub async fn sign_in_tokens(
        &self,
        sign_in: &SignIn,
        code: &Secret,
        verifier: &Secret,
        redirect_uri: &Url,
    ) -> Result<SignInTokens, OauthError> {
        let request = self.id_token_request(sign_in, code, verifier, redirect_uri)?;
        let answer = self.egress.send(request, self.limits).await.map_err(no_answer)?;
        let body = zeroize::Zeroizing::new(answer.body);
        let value = answer::read(answer.status.as_u16(), &body)?;
        // An error in it is read as one; the access token has to be there (OpenID Connect Core §3.1.3.3).
        let access_token = answer::judge(answer.status.as_u16(), &value)?.access_token;
        let token = value.get("id_token").and_then(Value::as_str).filter(|token| token.len() <= MAX_ID_TOKEN_BYTES);
        let id_token = token.map(Secret::new).ok_or_else(|| OauthError::Unavailable("no_id_token".to_owned()))?;
        Ok(SignInTokens { id_token, access_token })
    }

    /// The request, built apart: a form under construction must not be held while the answer is awaited.
    fn id_token_request(
        &self,
        sign_in: &SignIn,
        code: &Secret,
        verifier: &Secret,
        redirect_uri: &Url,
    ) -> Result<reqwest::RequestBuilder, OauthError> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code.expose())
            .append_pair("redirect_uri", redirect_uri.as_str())
            .append_pair("code_verifier", verifier.expose());
        let mut request = self
            .egress
            .request(Method::POST, sign_in.token_url.clone())
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        match &sign_in.client_secret {
            Some(secret) if !sign_in.secret_in_body => {
                let credentials = revocation::basic(&sign_in.client_id, secret)
                    .ok_or_else(|| OauthError::InvalidClient("not_printable".to_owned()))?;
                request = request.header(AUTHORIZATION, credentials);
            }
            secret => {
                form.append_pair("client_id", &sign_in.client_id);
                if let Some(secret) = secret {
                    form.append_pair("client_secret", secret.expose());
                }
            }
        }
        Ok(request.body(form.finish()))
    }
}
