//! What a backend does: lists tools, asks for a connection, calls, looks at connections and ends them.

use std::time::Duration;

use obo::app::{App, Settings, Way};
use obo::clock::SharedClock;
use serde_json::{Value, json};

use crate::support::rest::application;
use crate::support::{Browser, Mcp, Rest, TestObo};

const VERIFIER: &str = "user_verifier_url = \"http://127.0.0.1:9/verify\"";
const SEND: &str = "Google.SendEmail";

async fn start() -> TestObo {
    let tables = application("shop", "acme", VERIFIER) + &application("other", "acme", VERIFIER);
    TestObo::builder().config(&tables).start().await
}

/// Consents by a link, and has the application confirm it.
async fn connect(obo: &TestObo, rest: &Rest, user: &str, link: &str, account: &str) {
    let mut browser = Browser::new();
    let page = browser.get(link).await;
    let pressed = browser.submit(&page, &[]).await;
    let back = obo.provider.consent(&pressed.location.unwrap(), account).await.unwrap();
    let sent = url::Url::parse(&browser.get(&back).await.location.unwrap()).unwrap();
    let flow = sent.query_pairs().find(|(key, _)| key == "flow_id").unwrap().1.into_owned();
    let (status, answer) = rest.post("/v1/auth/confirm_user", &json!({ "flow_id": flow, "user_id": user })).await;
    assert_eq!(status, 200, "{answer}");
}

fn send(user: &str) -> Value {
    json!({
        "tool_name": SEND,
        "user_id": user,
        "input": { "to": ["bob@example.com"], "subject": "x", "text": "Hello." },
    })
}

#[tokio::test]
async fn a_backend_lists_connects_calls_and_disconnects() {
    let obo = start().await;
    let shop = Rest::of(&obo.base, "shop");

    let (status, tool) = shop.get(&format!("/v1/tools/{SEND}?user_id=u1&include_format=openai,anthropic")).await;
    assert_eq!(status, 200, "{tool}");
    assert_eq!((&tool["name"], &tool["toolkit"]["name"]), (&json!("SendEmail"), &json!("Google")));
    assert_eq!(tool["requirements"]["met"], json!(false));
    assert_eq!(tool["requirements"]["authorization"]["token_status"], "not_started");
    assert_eq!(tool["formatted_schema"]["openai"]["function"]["name"], "Google_SendEmail");
    assert_eq!(tool["formatted_schema"]["anthropic"]["input_schema"]["type"], "object");

    let (status, refused) = shop.post("/v1/tools/execute", &send("u1")).await;
    assert_eq!((status, &refused["success"]), (200, &json!(false)), "{refused}");
    assert_eq!(refused["output"]["error"]["kind"], "TOOL_REQUIREMENTS_NOT_MET");
    assert_eq!(refused["output"]["authorization"]["status"], "pending");

    let (_, asked) =
        shop.post("/v1/tools/authorize", &json!({ "tool_name": "Google_SendEmail", "user_id": "u1" })).await;
    connect(&obo, &shop, "u1", asked["url"].as_str().unwrap(), "alice@example.com").await;
    let (_, again) = shop.post("/v1/tools/authorize", &json!({ "tool_name": SEND, "user_id": "u1" })).await;
    assert_eq!(again["status"], "completed", "{again}");

    let (status, done) = shop.post("/v1/tools/execute", &send("u1")).await;
    assert_eq!((status, &done["success"], &done["status"]), (200, &json!(true), &json!("success")), "{done}");
    assert!(done["output"]["value"]["id"].is_string(), "{done}");
    assert_eq!(obo.provider.mailbox("bob@example.com").len(), 1);
    let (_, tool) = shop.get(&format!("/v1/tools/{SEND}?user_id=u1")).await;
    assert_eq!(tool["requirements"]["met"], json!(true));
    let called = obo.app.audit.read(|r| r.tool.is_some() && r.outcome.as_deref() == Some("ok")).await.unwrap();
    assert_eq!((called[0].actor.as_str(), called[0].user.as_deref()), ("app:shop", Some("u1")));

    let (status, list) = shop.get("/v1/admin/user_connections?user%5Bid%5D=u1").await;
    assert_eq!((status, &list["total_count"]), (200, &json!(1)), "{list}");
    let connection = &list["items"][0];
    assert_eq!(connection["provider_user_info"]["account"], "alice@example.com");
    assert!(!list.to_string().contains("token"), "{list}");
    let path = format!("/v1/admin/user_connections/{}", connection["id"].as_str().unwrap());

    // For another application there is nothing.
    let other = Rest::of(&obo.base, "other");
    assert_eq!(other.get("/v1/admin/user_connections?user%5Bid%5D=u1").await.1["total_count"], 0);
    assert_eq!(other.delete(&path).await, 404);
    assert_eq!(other.post("/v1/tools/execute", &send("u1")).await.1["success"], json!(false));

    assert_eq!(shop.delete(&path).await, 204);
    assert_eq!(shop.delete(&path).await, 404);
    assert!(obo.provider.families().iter().all(|family| family.ended.is_some()), "revoked at the provider");
    assert_eq!(shop.post("/v1/tools/execute", &send("u1")).await.1["success"], json!(false));
}

#[tokio::test]
async fn lists_come_in_pages_and_formats() {
    let obo = start().await;
    let shop = Rest::of(&obo.base, "shop");
    let (_, all) = shop.get("/v1/tools?limit=100").await;
    let total = all["total_count"].as_u64().unwrap();
    assert_eq!(all["items"].as_array().unwrap().len() as u64, total);
    let mut names = Vec::new();
    for offset in 0..total {
        let (_, page) = shop.get(&format!("/v1/tools?limit=1&offset={offset}")).await;
        assert_eq!((&page["offset"], &page["page_count"]), (&json!(offset), &json!(1)));
        names.push(page["items"][0]["qualified_name"].as_str().unwrap().to_owned());
    }
    assert!(names.is_sorted() && names.contains(&SEND.to_owned()), "{names:?}");
    let (_, slack) = shop.get("/v1/tools?toolkit=slack").await;
    assert!(slack["items"].as_array().unwrap().iter().all(|tool| tool["toolkit"]["name"] == "Slack"));
    let (_, formatted) = shop.get("/v1/formatted_tools?format=anthropic&user_id=u1").await;
    assert!(formatted["items"].as_array().unwrap().iter().any(|tool| tool["name"] == "Google_SendEmail"));
    let (_, one) = shop.get(&format!("/v1/formatted_tools/{SEND}")).await;
    assert_eq!((&one["type"], &one["function"]["name"]), (&json!("function"), &json!("Google_SendEmail")));
}

#[tokio::test]
async fn the_document_says_what_there_is_and_needs_no_key() {
    let obo = start().await;
    let (status, document) = Rest::with_key(&obo.base, "").get("/v1/openapi.json").await;
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    assert_eq!(document, obo::transport::rest::openapi::document());

    // What answers say of themselves is what they are.
    let shop = Rest::of(&obo.base, "shop");
    let is_as_described = |name: &str, answer: &Value| {
        let schema = json!({
            "$ref": format!("#/components/schemas/{name}"), "components": document["components"],
        });
        let validator = jsonschema::validator_for(&schema).unwrap();
        let problems: Vec<String> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
        assert_eq!(problems, Vec::<String>::new(), "{name}: {answer}");
        assert!(!validator.is_valid(&json!({})), "{name} is anything at all");
    };
    let started = shop.start("u1", None).await;
    is_as_described("Authorization", &started);
    is_as_described("ExecuteAnswer", &shop.post("/v1/tools/execute", &send("u1")).await.1);
    is_as_described("ToolPage", &shop.get("/v1/tools?include_format=openai&user_id=u1").await.1);
    is_as_described("Error", &shop.get("/v1/auth/status").await.1);
    connect(&obo, &shop, "u1", started["url"].as_str().unwrap(), "alice@example.com").await;
    is_as_described("ExecuteAnswer", &shop.post("/v1/tools/execute", &send("u1")).await.1);
    is_as_described("UserConnectionPage", &shop.get("/v1/admin/user_connections?user%5Bid%5D=u1").await.1);

    // Every operation is there: something other than the path is wrong with an empty request.
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let request = reqwest::Client::builder().no_proxy().build().unwrap();
            let path = path.replace("{name}", SEND).replace("{id}", "AAAA");
            let request = request.request(method.to_uppercase().parse().unwrap(), format!("{}{path}", obo.base));
            let answer = request.header("authorization", "shop-key").send().await.unwrap();
            assert_ne!(answer.status(), 405, "{method} {path}");
            assert!(!answer.text().await.unwrap().contains("nothing at this path"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let obo = start().await;
    let shop = Rest::of(&obo.base, "shop");
    for (path, status) in [
        ("/v1/tools/Nothing.Here", 404),
        ("/v1/tools/Google.SendEmail@99.0.0", 404),
        ("/v1/tools?limit=x", 400),
        ("/v1/tools?user_id=%00", 400),
        ("/v1/tools?include_format=xml", 400),
        ("/v1/formatted_tools?format=xml", 400),
        ("/v1/admin/user_connections", 400),
        ("/v1/scheduled_tools", 404),
    ] {
        let (got, answer) = shop.get(path).await;
        assert_eq!(got, status, "{path}: {answer}");
        assert!(answer["msg"].as_str().is_some_and(|text| text == answer["message"]), "{answer}");
    }
    for (body, status) in [
        (json!({ "tool_name": "Nothing.Here", "user_id": "u1" }), 404),
        (json!({ "tool_name": SEND }), 400),
        (json!({ "tool_name": SEND, "user_id": "u1", "tool_version": "99" }), 404),
        (json!({ "tool_name": SEND, "user_id": "u1", "input": [] }), 400),
        (json!({ "tool_name": SEND, "user_id": "u1", "run_at": "2027-01-01T00:00:00" }), 400),
    ] {
        assert_eq!(shop.post("/v1/tools/execute", &body).await.0, status, "{body}");
    }
    let wrong = json!({ "tool_name": SEND, "user_id": "u1", "input": { "to": "nobody" } });
    let (status, answer) = shop.post("/v1/tools/execute", &wrong).await;
    assert_eq!((status, &answer["output"]["error"]["kind"]), (200, &json!("TOOL_RUNTIME_BAD_INPUT_VALUE")), "{answer}");
    for bad in ["", "x", "AAAA", "bnVsbA", &"A".repeat(5000)] {
        assert_eq!(shop.delete(&format!("/v1/admin/user_connections/{bad}")).await, 404, "{bad}");
    }
}

#[tokio::test]
async fn t21_calls_over_rest_are_limited_like_all_others() {
    let config =
        format!("[server]\ncalls_per_minute = 2\nconsent_wait = \"0s\"\n{}", application("shop", "acme", VERIFIER));
    let obo = TestObo::builder().config(&config).start().await;
    let shop = Rest::of(&obo.base, "shop");
    let kind = async |user: &str| {
        let (_, answer) = shop.post("/v1/tools/execute", &send(user)).await;
        answer["output"]["error"]["kind"].as_str().unwrap().to_owned()
    };
    assert_eq!(kind("u1").await, "TOOL_REQUIREMENTS_NOT_MET");
    assert_eq!(kind("u2").await, "TOOL_REQUIREMENTS_NOT_MET");
    let over_mcp = Mcp::new(&obo.base, Some("shop-key".to_owned())).for_user("u1");
    over_mcp.call("Slack_ListChannels", json!({})).await;
    assert_eq!(kind("u1").await, "UPSTREAM_RUNTIME_RATE_LIMIT");
    assert_eq!(kind("u2").await, "TOOL_REQUIREMENTS_NOT_MET");
}

#[tokio::test]
async fn a_held_status_hears_of_what_another_process_did() {
    let obo = start().await;
    // Another obo of the same folder, as a second replica is.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let clock: SharedClock = obo.clock.clone();
    let data_dir = obo.dir.path().join("data");
    let settings = Settings { config: obo.app.config.clone(), data_dir, clock, way: Way::Serve, prompt: None };
    let other = App::open(settings).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let site = obo::app::site(&other, address).unwrap();
    tokio::spawn(obo::transport::http::serve(listener, site, stop.clone()));

    let (here, there) = (Rest::of(&obo.base, "shop"), Rest::of(&format!("http://{address}"), "shop"));
    let started = here.start("u1", None).await;
    let link = started["url"].as_str().unwrap();
    let path = format!("/v1/auth/status?id={}&wait=59", started["id"].as_str().unwrap());
    // Long before it would be answered anyway.
    let soon = Duration::from_secs(20);
    let waiting = async { tokio::time::timeout(soon, here.get(&path)).await.unwrap() };
    let ((status, answer), ()) = tokio::join!(waiting, connect(&obo, &there, "u1", link, "alice@example.com"));
    assert_eq!((status, &answer["status"]), (200, &json!("completed")), "{answer}");

    // One that expires while it is held is told so, too.
    let started = here.start("u2", None).await;
    let path = format!("/v1/auth/status?id={}&wait=59", started["id"].as_str().unwrap());
    let waiting = async { tokio::time::timeout(soon, here.get(&path)).await.unwrap() };
    let ((status, _), ()) = tokio::join!(waiting, async { obo.clock.advance(Duration::from_secs(600)) });
    assert_eq!(status, 410);
    stop.cancel();
}
