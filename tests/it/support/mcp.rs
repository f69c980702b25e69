//! A small MCP client over HTTP that shows exactly what came back.

use serde_json::{Value, json};

/// A client of one person, speaking 2026-07-28: every request stands for itself.
#[derive(Clone)]
pub struct Mcp {
    http: reqwest::Client,
    url: String,
    pub token: Option<String>,
    pub obo_user: Option<String>,
    pub capabilities: Value,
}

/// The newest revision.
pub const NEWEST: &str = "2026-07-28";

impl Mcp {
    pub fn new(base: &str, token: Option<String>) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, url: format!("{base}/mcp"), token, obo_user: None, capabilities: json!({}) }
    }

    /// The same client, which is an application's and names a user.
    pub fn for_user(mut self, user: &str) -> Self {
        self.obo_user = Some(user.to_owned());
        self
    }

    /// The same client with the capability of opening links.
    pub fn with_url_elicitation(mut self) -> Self {
        self.capabilities = json!({ "elicitation": { "url": {} } });
        self
    }

    /// A request of the newest revision: the JSON-RPC answer.
    pub async fn request(&self, method: &str, mut params: Value) -> Value {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": NEWEST,
            "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
            "io.modelcontextprotocol/clientCapabilities": self.capabilities,
        });
        let name = params.get("name").and_then(Value::as_str).map(str::to_owned);
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut request = self
            .http
            .post(&self.url)
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", NEWEST)
            .header("mcp-method", method)
            .json(&body);
        if let Some(name) = name {
            request = request.header("mcp-name", name);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(user) = &self.obo_user {
            request = request.header("obo-user", user);
        }
        let response = request.send().await.unwrap();
        let streamed = response
            .headers()
            .get("content-type")
            .is_some_and(|kind| kind.to_str().unwrap().starts_with("text/event-stream"));
        let text = response.text().await.unwrap();
        let json = if streamed {
            let mut data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
            data.rfind(|data| !data.is_empty()).unwrap_or_default().to_owned()
        } else {
            text
        };
        serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"))
    }

    /// Calls a tool: the `result`, or the whole answer where there is an `error`.
    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        self.call_with(tool, arguments, json!({})).await
    }

    /// Calls a tool with further parameters: `requestState`, `inputResponses`.
    pub async fn call_with(&self, tool: &str, arguments: Value, further: Value) -> Value {
        let mut params = further;
        params["name"] = json!(tool);
        params["arguments"] = arguments;
        let answer = self.request("tools/call", params).await;
        answer.get("result").cloned().unwrap_or(answer)
    }
}

/// The link of an answer that asks for consent, in whichever shape.
pub fn link_of(result: &Value) -> Option<String> {
    let elicited = result["inputRequests"].as_object().and_then(|all| all.values().next());
    let by_error = result.pointer("/error/data/elicitations/0/url");
    elicited
        .and_then(|one| one.pointer("/params/url"))
        .or(by_error)
        .or_else(|| result["_meta"].get("obo/authorization")?.get("authorization_url"))
        .and_then(Value::as_str)
        .map(str::to_owned)
}

/// The code of a failed call.
pub fn code_of(result: &Value) -> Option<String> {
    result["_meta"].get("obo/error")?["code"].as_str().map(str::to_owned)
}

/// The value of a successful call.
pub fn value_of(result: &Value) -> Value {
    assert_ne!(result["isError"], true, "{result}");
    let text = result.pointer("/content/0/text").and_then(Value::as_str).unwrap_or_else(|| panic!("{result}"));
    serde_json::from_str(text).unwrap()
}
