//! obo as an OAuth 2 resource server (RFC 6750, RFC 9728): whose tokens it takes, what they must say, and what it answers
//! to those that it does not take.

use obo::call::{Outcome, Request};
use obo::consent::Typed;
use obo::failure::Code;
use obo::identity::{Credential, Via};
use obo::secret::Secret;
use serde_json::{Map, Value, json};

use crate::support::{Browser, Mcp, TestObo, mail};

mod corpus;
pub(crate) mod idp;
mod introspection;
mod rotation;

use idp::{EC, Idp, RSA, with, without};

const WRITE: &str = "Google_SendEmail";
const READ: &str = "GoogleCalendar_ListEvents";

/// What a request was answered with.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) challenge: String,
    retry_after: Option<String>,
    text: String,
}

impl Answered {
    pub(crate) async fn of(request: reqwest::RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        Self {
            status: answer.status().as_u16(),
            challenge: header("www-authenticate").unwrap_or_default(),
            retry_after: header("retry-after"),
            text: answer.text().await.unwrap(),
        }
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A message of the newest revision, as a request without a bearer.
pub(crate) fn modern(obo: &TestObo, method: &str, mut params: Value) -> reqwest::RequestBuilder {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let request = http()
        .post(format!("{}/mcp", obo.base))
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", method);
    let request = match params["name"].as_str() {
        Some(name) => request.header("mcp-name", name),
        None => request,
    };
    request.json(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }))
}

async fn list(obo: &TestObo, token: &str) -> Answered {
    Answered::of(modern(obo, "tools/list", json!({})).bearer_auth(token)).await
}

pub(crate) async fn call(obo: &TestObo, token: &str, tool: &str) -> Answered {
    let arguments = if tool.contains("Send") { mail("bob@example.com", "x") } else { json!({}) };
    Answered::of(modern(obo, "tools/call", json!({ "name": tool, "arguments": arguments })).bearer_auth(token)).await
}

/// An obo with one issuer, `corp`, that publishes one EC key.
async fn with_issuer(further: &str) -> (TestObo, Idp) {
    let idp = Idp::start(&[&EC]).await;
    let config = format!("[server]\nconsent_wait = \"0s\"\n{}", idp.table("corp", further));
    (TestObo::builder().config(&config).start().await, idp)
}

const SCOPED: &str = "scopes = [\"obo.use\", \"profile\"]\nwrite_scopes = [\"obo.write\"]";

fn insufficient(obo: &TestObo, needed: &str, missing: &str) -> String {
    format!(
        "Bearer error=\"insufficient_scope\", scope=\"{needed}\", \
         resource_metadata=\"{}/.well-known/oauth-protected-resource/mcp\", \
         error_description=\"the token does not have the scopes that this needs ({missing}); ask for one that has\"",
        obo.base
    )
}

#[tokio::test]
async fn a_token_with_too_few_scopes_is_told_all_that_the_request_needs() {
    let (obo, idp) = with_issuer(SCOPED).await;
    let claims = idp.claims(&obo);
    let token = |scope: &str| EC.token(&with(&claims, "scope", scope));

    // Nothing and bad tokens: what to ask for at first.
    let scope = "scope=\"obo.use profile\"";
    let nothing = Answered::of(modern(&obo, "tools/list", json!({}))).await;
    assert_eq!(nothing.status, 401);
    assert!(nothing.challenge.contains(scope) && !nothing.challenge.contains("error="), "{nothing:?}");
    let bad = list(&obo, &EC.token(&with(&claims, "exp", 1))).await;
    assert!(bad.status == 401 && bad.challenge.contains(scope) && bad.challenge.contains("invalid_token"), "{bad:?}");
    let document: Value = http()
        .get(format!("{}/.well-known/oauth-protected-resource/mcp", obo.base))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(document["scopes_supported"], json!(["obo.use", "obo.write", "profile"]));

    // Good ones without what everything needs: nothing works, on any path.
    for (without, missing) in [
        (EC.token(&claims), "obo.use profile"),
        (token(""), "obo.use profile"),
        (token("obo.use"), "profile"),
        (token("obo.write obo.usex xobo.use PROFILE"), "obo.use profile"),
    ] {
        let expected = insufficient(&obo, "obo.use profile", missing);
        let listed = list(&obo, &without).await;
        assert_eq!((listed.status, listed.challenge.as_str()), (403, expected.as_str()));
        assert!(listed.text.contains("insufficient_scope"), "{listed:?}");
        for path in ["/mcp", "/sse"] {
            let opened = Answered::of(http().get(format!("{}{path}", obo.base)).bearer_auth(&without)).await;
            assert_eq!((opened.status, opened.challenge.as_str()), (403, expected.as_str()), "{path}");
        }
        let mut browser = Browser::new();
        let page = browser.get(&format!("{}/account?with=obo", obo.base)).await;
        assert_eq!(browser.submit(&page, &[("token", &without)]).await.status, 401, "nor do the pages take it");
    }

    // What reads works; what writes asks for more, in either spelling; with more it works.
    let reader = token("obo.use profile openid");
    assert_eq!(list(&obo, &reader).await.status, 200);
    assert_eq!(call(&obo, &reader, READ).await.status, 200);
    assert_eq!(
        call(&obo, &reader, "No_SuchTool").await.status,
        call(&obo, &token("obo.use profile obo.write"), "No_SuchTool").await.status
    );
    let expected = insufficient(&obo, "obo.use profile obo.write", "obo.write");
    for name in [WRITE, "Google.SendEmail"] {
        let refused = call(&obo, &reader, name).await;
        assert_eq!((refused.status, refused.challenge.as_str()), (403, expected.as_str()), "{name}");
        let allowed = call(&obo, &token("obo.use profile obo.write"), name).await;
        assert_eq!(allowed.status, 200, "{allowed:?}");
        assert!(allowed.text.contains("/connect/"), "{allowed:?}");
    }
    // As Entra ID and Okta write them.
    for scp in [json!("obo.use profile obo.write"), json!(["obo.write", "profile", "obo.use"])] {
        assert_eq!(call(&obo, &EC.token(&with(&claims, "scp", scp)), WRITE).await.status, 200);
    }
    assert_eq!(list(&obo, &EC.token(&with(&claims, "scope", json!(["obo.use", "profile"])))).await.status, 401);
    // Tokens of obo have no scopes and need none.
    assert_eq!(call(&obo, &obo.token_for("alice").await, WRITE).await.status, 200);
    assert_eq!(obo.provider.token_requests(), 0);
}

fn initialize(revision: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": revision, "capabilities": {}, "clientInfo": { "name": "test", "version": "1" },
    } })
}

fn plain_call(tool: &str) -> Value {
    let arguments = if tool.contains("Send") { mail("bob@example.com", "x") } else { json!({}) };
    json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": tool, "arguments": arguments } })
}

#[tokio::test]
async fn every_revision_and_transport_asks_for_the_scopes_to_write() {
    let (obo, idp) = with_issuer(SCOPED).await;
    let claims = idp.claims(&obo);
    let reader = EC.token(&with(&claims, "scope", "obo.use profile"));
    let writer = EC.token(&with(&claims, "scope", "obo.use profile obo.write"));
    let expected = insufficient(&obo, "obo.use profile obo.write", "obo.write");
    let mcp = |token: &str, body: &Value| {
        http()
            .post(format!("{}/mcp", obo.base))
            .header("accept", "application/json, text/event-stream")
            .bearer_auth(token)
            .json(body)
    };
    for revision in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let opened = mcp(&reader, &initialize(revision)).send().await.unwrap();
        let id = opened.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let send = |token: &str, body: &Value| {
            let request = mcp(token, body).header("mcp-session-id", &id);
            if revision > "2025-03-26" { request.header("mcp-protocol-version", revision) } else { request }
        };
        assert_eq!(Answered::of(send(&reader, &ready)).await.status, 202);
        for name in [WRITE, "Google.SendEmail"] {
            let refused = Answered::of(send(&reader, &plain_call(name))).await;
            assert_eq!((refused.status, refused.challenge.as_str()), (403, expected.as_str()), "{revision} {name}");
        }
        let read = Answered::of(send(&reader, &plain_call(READ))).await;
        assert!(read.status == 200 && read.text.contains("/connect/"), "{revision} {read:?}");
        // The same session, with another token of the same person: the token of each request counts.
        let written = Answered::of(send(&writer, &plain_call(WRITE))).await;
        assert!(written.status == 200 && written.text.contains("/connect/"), "{revision} {written:?}");
        if revision == "2025-03-26" {
            let mut batch = json!([plain_call(READ), plain_call(WRITE)]);
            batch[1]["id"] = json!(2);
            let refused = Answered::of(send(&reader, &batch)).await;
            assert_eq!((refused.status, refused.challenge.as_str()), (403, expected.as_str()));
            assert_eq!(Answered::of(send(&writer, &batch)).await.status, 200);
        }
    }

    // A refusal at the door is on record like every other.
    let refused = obo.app.audit.read(|r| r.outcome.as_deref() == Some("denied")).await.unwrap();
    assert_eq!(refused.len(), 7, "two spellings in three revisions, and a batch");
    assert!(
        refused.iter().all(|r| r.tool.as_deref() == Some("Google.SendEmail") && r.user.as_deref() == Some("alice"))
    );

    // HTTP+SSE.
    let mut stream = http().get(format!("{}/sse", obo.base)).bearer_auth(&reader).send().await.unwrap();
    let mut events = String::new();
    while !events.contains("\n\n") {
        events.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
    }
    let path = events.lines().find_map(|line| line.strip_prefix("data:")).unwrap().trim().to_owned();
    let send = |token: &str, body: &Value| http().post(format!("{}{path}", obo.base)).bearer_auth(token).json(body);
    assert_eq!(Answered::of(send(&reader, &initialize("2024-11-05"))).await.status, 202);
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(Answered::of(send(&reader, &ready)).await.status, 202);
    let refused = Answered::of(send(&reader, &plain_call(WRITE))).await;
    assert_eq!((refused.status, refused.challenge.as_str()), (403, expected.as_str()));
    assert_eq!(Answered::of(send(&writer, &plain_call(WRITE))).await.status, 202);

    // Two names in one call: two readers might each see another tool.
    let twice = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"GoogleCalendar_ListEvents","name":"Google_SendEmail","arguments":{}}}"#;
    let refused = Answered::of(mcp(&reader, &json!({})).body(twice)).await;
    assert_eq!(refused.status, 400, "{refused:?}");
}

#[tokio::test]
async fn policy_refuses_what_no_door_asked_about() {
    let (obo, idp) = with_issuer(SCOPED).await;
    let token = EC.token(&with(&idp.claims(&obo), "scope", "obo.use profile"));
    let credential = Credential::Bearer { token: Secret::new(token), obo_user: None };
    let reader = obo.app.obo.authenticate(&credential).await.unwrap();
    let request = |tool: &str, arguments: Value| Request {
        tool: tool.to_owned(),
        arguments: serde_json::from_value::<Map<String, Value>>(arguments).unwrap(),
        actor: "test".to_owned(),
        resume: None,
    };
    match obo.app.obo.call(&reader, request(WRITE, mail("bob@example.com", "x"))).await {
        Outcome::Failed(failure) => {
            assert_eq!(failure.code, Code::Denied);
            assert!(failure.message.contains("obo.write") && !failure.message.contains("obo.use"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    let read = obo.app.obo.call(&reader, request(READ, json!({}))).await;
    assert!(matches!(read, Outcome::Authorization(_)), "{read:?}");
    let denied = obo.app.audit.read(|r| r.outcome.as_deref() == Some("denied")).await.unwrap();
    assert_eq!(denied.len(), 1);
    assert_eq!((denied[0].user.as_deref(), denied[0].source.as_deref()), (Some("alice"), Some("corp")));
}

#[tokio::test]
async fn several_issuers_have_people_tenants_groups_and_scopes_of_their_own() {
    let (first, second) = (Idp::start(&[&EC]).await, Idp::start(&[&RSA]).await);
    let config = format!(
        "[server]\nconsent_wait = \"0s\"\n{}{}",
        first.table("corp", "tenant = \"acme\"\ngroups_claim = \"groups\"\nscopes = [\"a\"]"),
        second.table("partner", "tenant_claim = \"org\"\ntenants = [\"acme\", \"initech\"]\ngroups_claim = \"roles\"")
    );
    let obo = TestObo::builder().config(&config).start().await;
    let of_first = with(&with(&first.claims(&obo), "groups", json!(["ops", "dev"])), "scope", "a");
    let of_second = with(&with(&second.claims(&obo), "roles", "admins"), "org", "acme");
    let subject = async |token: String| {
        let credential = Credential::Bearer { token: Secret::new(token), obo_user: None };
        obo.app.obo.authenticate(&credential).await
    };

    // One tenant, one id, two sources: two people, with the groups of their own source.
    let one = subject(EC.token(&of_first)).await.unwrap();
    let two = subject(RSA.token(&of_second)).await.unwrap();
    assert_eq!(
        (one.person().to_string(), two.person().to_string()),
        ("alice (corp, acme)".into(), "alice (partner, acme)".into())
    );
    assert_eq!((one.groups(), two.groups()), (&["ops".into(), "dev".into()][..], &["admins".into()][..]));
    assert_eq!((one.via(), two.via()), (&Via::Issuer("corp".into()), &Via::Issuer("partner".into())));
    let client = |token: String| Mcp::new(&obo.base, Some(token));
    let link = crate::support::mcp::link_of(&client(EC.token(&of_first)).call(READ, json!({})).await).unwrap();
    // Neither issuer signs people in here, so a link ends with a code: of the one's link it is nothing for the other.
    let mut browser = Browser::new();
    let page = browser.get(&link).await;
    let forwarded = browser.submit(&page, &[]).await.location.unwrap();
    let back = obo.provider.consent(&forwarded, "alice@example.com").await.unwrap();
    let shown = browser.get(&back).await.text;
    let at = shown.find("<p class=\"code\"><code>").unwrap() + 22;
    let code = &shown[at..at + 9];
    assert!(obo.app.obo.consent().confirm_code(two.person(), code, &Typed::InClient("google"), "test").await.is_err());
    assert!(obo.app.obo.consent().confirm_code(one.person(), code, &Typed::InClient("google"), "test").await.is_ok());

    // A tenant comes from the list or not at all.
    assert_eq!(
        subject(RSA.token(&with(&of_second, "org", "initech"))).await.unwrap().person().tenant.as_str(),
        "initech"
    );
    for org in [json!("globex"), json!("ACME"), json!(""), json!(["acme"]), json!({"acme": true}), Value::Null] {
        assert_eq!(list(&obo, &RSA.token(&with(&of_second, "org", org.clone()))).await.status, 401, "{org}");
    }
    assert_eq!(list(&obo, &RSA.token(&without(&of_second, "org"))).await.status, 401);
    // The first issuer's tenant is not the token's to choose.
    assert_eq!(subject(EC.token(&with(&of_first, "org", "initech"))).await.unwrap().person().tenant.as_str(), "acme");
    // Neither signs for the other; and each asks for its own scopes.
    assert_eq!(list(&obo, &EC.token(&of_second)).await.status, 401);
    assert_eq!(list(&obo, &RSA.token(&of_first)).await.status, 401);
    assert_eq!(list(&obo, &EC.token(&without(&of_first, "scope"))).await.status, 403);
    assert_eq!(list(&obo, &RSA.token(&of_second)).await.status, 200);
    // They do not agree on what to ask for at first, so nothing is said of it.
    let nothing = Answered::of(modern(&obo, "tools/list", json!({}))).await;
    assert!(nothing.status == 401 && !nothing.challenge.contains("scope="), "{nothing:?}");
    let document: Value = http()
        .get(format!("{}/.well-known/oauth-protected-resource", obo.base))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(document["authorization_servers"].as_array().unwrap().len(), 2);
    assert_eq!(document["scopes_supported"], json!(["a"]));
    // Too many groups, or one that is none: refused rather than cut, because a policy may forbid by group.
    for groups in [json!(vec!["g"; 513]), json!(["ops", ""]), json!(["ops", 1]), json!({"ops": 1})] {
        assert_eq!(list(&obo, &EC.token(&with(&of_first, "groups", groups))).await.status, 401);
    }
}
