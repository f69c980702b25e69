//! An application's backend: REST with its key.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A client with one key.
pub struct Rest {
    http: reqwest::Client,
    base: String,
    key: String,
}

/// The table of an application whose key is `NAME-key`.
pub fn application(name: &str, tenant: &str, further: &str) -> String {
    let hash: String = Sha256::digest(format!("{name}-key")).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[identity.application]]\nname = {name:?}\ntenant = {tenant:?}\nkey_sha256 = {hash:?}\n{further}\n")
}

impl Rest {
    /// The backend of the application of that name.
    pub fn of(base: &str, name: &str) -> Self {
        Self::with_key(base, &format!("{name}-key"))
    }

    pub fn with_key(base: &str, key: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, base: base.to_owned(), key: key.to_owned() }
    }

    /// The status and the JSON answer.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.answer(self.http.post(format!("{}{path}", self.base)).json(body)).await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.answer(self.http.get(format!("{}{path}", self.base))).await
    }

    /// The same with the header in which MCP clients of applications name the user.
    pub async fn get_as(&self, user: &str, path: &str) -> (u16, Value) {
        self.answer(self.http.get(format!("{}{path}", self.base)).header("obo-user", user)).await
    }

    /// The status alone.
    pub async fn delete(&self, path: &str) -> u16 {
        let request = self.http.delete(format!("{}{path}", self.base)).header("authorization", &self.key);
        request.send().await.unwrap().status().as_u16()
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.header("authorization", &self.key).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// `auth.start` for Google's mail: the answer, which must have a link.
    pub async fn start(&self, user: &str, next_uri: Option<&str>) -> Value {
        let mut body = serde_json::json!({
            "auth_requirement": {
                "provider_id": "google",
                "provider_type": "oauth2",
                "oauth2": { "scopes": ["https://www.googleapis.com/auth/gmail.send"] },
            },
            "user_id": user,
        });
        if let Some(uri) = next_uri {
            body["next_uri"] = uri.into();
        }
        let (status, answer) = self.post("/v1/auth/authorize", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }
}
