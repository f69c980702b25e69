//! An MCP client that signs people in at obo itself, and shows exactly what came back.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::browser::{Browser, Page};
use super::{TestObo, issuer};

/// Where a client on the person's computer waits.
pub const CALLBACK: &str = "http://127.0.0.1:4711/callback";

/// A client of one obo.
#[derive(Clone)]
pub struct OauthClient {
    http: reqwest::Client,
    /// What obo is called by everybody.
    pub public: String,
    /// Where it is asked. The same, unless there are several processes.
    pub at: String,
    pub id: String,
    pub redirect_uri: String,
}

/// A sign-in that a client has begun.
pub struct Begun {
    pub verifier: String,
    pub state: String,
    /// Where it sends the browser.
    pub url: String,
}

/// What a client lives on.
#[derive(Debug, Clone)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
}

/// An answer of an endpoint.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
    pub headers: reqwest::header::HeaderMap,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Its `error`.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("{}", self.text)).to_owned()
    }

    /// The tokens of a good one.
    pub fn tokens(&self) -> Tokens {
        assert_eq!(self.status, 200, "{}", self.text);
        let answer = self.json();
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        Tokens { access: text("access_token"), refresh: text("refresh_token") }
    }
}

pub fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

impl OauthClient {
    /// A client with an id of its own.
    pub fn with_id(public: &str, id: &str, redirect_uri: &str) -> Self {
        let (public, id, redirect_uri) = (public.to_owned(), id.to_owned(), redirect_uri.to_owned());
        Self { http: http(), at: public.clone(), public, id, redirect_uri }
    }

    /// A client that registers itself.
    pub async fn register(public: &str, name: &str, redirect_uri: &str) -> Self {
        let registration = json!({ "client_name": name, "redirect_uris": [redirect_uri] });
        let answer = register(public, &registration).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        Self::with_id(public, answer.json()["client_id"].as_str().unwrap(), redirect_uri)
    }

    /// The same client, which asks another process.
    pub fn asking(&self, at: &str) -> Self {
        Self { at: at.to_owned(), ..self.clone() }
    }

    /// Begins a sign-in.
    pub fn begin(&self) -> Begun {
        self.begin_with(&[])
    }

    /// Begins one with other parameters: each takes the place of the one of its name, or of none where it is `None`.
    pub fn begin_with(&self, changes: &[(&str, Option<&str>)]) -> Begun {
        let unique = || format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let (verifier, state) = (unique(), unique());
        let challenge = challenge(&verifier);
        let resource = format!("{}/mcp", self.public);
        let mut parameters: Vec<(&str, &str)> = vec![
            ("response_type", "code"),
            ("client_id", &self.id),
            ("redirect_uri", &self.redirect_uri),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("state", &state),
            ("scope", "mcp"),
            ("resource", &resource),
        ];
        for (name, value) in changes {
            parameters.retain(|(other, _)| other != name);
            parameters.extend(value.map(|value| (*name, value)));
        }
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        Begun { url: format!("{}/oauth/authorize?{query}", self.at), verifier, state }
    }

    /// Posts a form.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        answer(self.http.post(format!("{}{path}", self.at)).form(form)).await
    }

    pub async fn exchange(&self, code: &str, verifier: &str) -> Answer {
        self.exchange_with(code, verifier, &[]).await
    }

    /// Exchanges a code with other parameters.
    pub async fn exchange_with(&self, code: &str, verifier: &str, changes: &[(&str, Option<&str>)]) -> Answer {
        let resource = format!("{}/mcp", self.public);
        let mut form: Vec<(&str, &str)> = vec![
            ("grant_type", "authorization_code"),
            ("client_id", &self.id),
            ("code", code),
            ("redirect_uri", &self.redirect_uri),
            ("code_verifier", verifier),
            ("resource", &resource),
        ];
        for (name, value) in changes {
            form.retain(|(other, _)| other != name);
            form.extend(value.map(|value| (*name, value)));
        }
        self.post("/oauth/token", &form).await
    }

    pub async fn refresh(&self, token: &str) -> Answer {
        let form = [("grant_type", "refresh_token"), ("client_id", &self.id), ("refresh_token", token)];
        self.post("/oauth/token", &form).await
    }

    pub async fn revoke(&self, token: &str) -> Answer {
        self.post("/oauth/revoke", &[("client_id", &self.id), ("token", token)]).await
    }

    /// Signs the person of a browser in, who has signed in there before.
    pub async fn sign_in(&self, browser: &mut Browser) -> Tokens {
        let begun = self.begin();
        let code = self.code(browser, &begun).await;
        self.exchange(&code, &begun.verifier).await.tokens()
    }

    /// Allows what was begun: the code.
    pub async fn code(&self, browser: &mut Browser, begun: &Begun) -> String {
        let back = parameters(&allow(browser, &begun.url).await);
        assert_eq!(back["state"], begun.state);
        assert_eq!(back["iss"], self.public);
        back["code"].clone()
    }
}

/// S256 of a verifier.
pub fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()))
}

/// A registration as it is sent.
pub async fn register(at: &str, registration: &Value) -> Answer {
    answer(http().post(format!("{at}/oauth/register")).json(registration)).await
}

/// Opens the page about a client in a browser that is signed in, and presses "Allow": where the browser goes.
pub async fn allow(browser: &mut Browser, url: &str) -> String {
    // Over plain http a decision signs the browser out: the next one begins with the person's token again.
    let page = browser.visit(url).await;
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(page.text.contains("value=\"allow\""), "{}", page.text);
    let pressed = browser.submit(&page, &[]).await;
    assert_eq!(pressed.status, 303, "{}", pressed.text);
    pressed.location.unwrap()
}

/// The page with its form of a step in the place of the first one.
pub fn with_form(page: &Page, step: &str) -> Page {
    let mut forms = page.text.split("<form ").skip(1);
    let form = forms.find(|form| form.contains(step)).unwrap_or_else(|| panic!("no {step} in {}", page.text));
    Page {
        text: format!("<form {form}"),
        url: page.url.clone(),
        status: page.status,
        location: None,
        headers: page.headers.clone(),
    }
}

/// The parameters of an address.
pub fn parameters(location: &str) -> BTreeMap<String, String> {
    let url = url::Url::parse(location).unwrap_or_else(|e| panic!("{e}: {location}"));
    let mut found = BTreeMap::new();
    for (name, value) in url.query_pairs().into_owned() {
        assert!(found.insert(name, value).is_none(), "a parameter stands twice in {location}");
    }
    found
}

/// What `tools/list` with a bearer is answered with.
pub async fn listed(at: &str, token: &str) -> u16 {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": {
        "io.modelcontextprotocol/protocolVersion": super::mcp::NEWEST,
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    } } });
    let request = http()
        .post(format!("{at}/mcp"))
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", super::mcp::NEWEST)
        .header("mcp-method", "tools/list")
        .bearer_auth(token)
        .json(&body);
    request.send().await.unwrap().status().as_u16()
}

impl TestObo {
    /// A browser that is signed in with a token of obo.
    pub async fn browser_of(&self, user: &str) -> Browser {
        let token = self.token_for(user).await;
        let mut browser = Browser::new();
        sign_in_with(&mut browser, &self.base, &token).await;
        browser
    }

    /// A browser that is signed in at an issuer.
    pub async fn browser_at(&self, issuer: &issuer::Issuer, name: &str, user: &str) -> Browser {
        let mut browser = Browser::new();
        let page = browser.get(&format!("{}/account?with={name}", self.base)).await;
        let sent = browser.submit(&page, &[]).await;
        let back = issuer.sign_in(&sent.location.unwrap(), user);
        assert_eq!(browser.get(&back).await.status, 303);
        browser
    }
}

/// Signs a browser in at its person's own page, with a token of obo.
pub async fn sign_in_with(browser: &mut Browser, at: &str, token: &str) {
    let page = browser.get(&format!("{at}/account?with=obo")).await;
    let signed_in = browser.submit(&page, &[("token", token)]).await;
    assert_eq!(signed_in.status, 303, "{}", signed_in.text);
    browser.token = Some(token.to_owned());
}
