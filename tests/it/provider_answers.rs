//! What becomes of a provider's answers: a stable code, whether to try again, and a text that a model can act on.
//!
//! The texts are snapshots: read them as the model would.

use std::time::Duration;

use obo::id::{Person, Source, TenantId};
use serde_json::{Value, json};

use crate::provider::{Encoding, Fault, RefreshMode};
use crate::support::mcp::{link_of, value_of};
use crate::support::{TestObo, mail};

const SEND: &str = "Google_SendEmail";
const EVENTS: &str = "GoogleCalendar_ListEvents";
const SEND_SCOPE: &str = "https://www.googleapis.com/auth/gmail.send";
const SEND_PATH: &str = "/gmail/v1/users/me/messages/send";
const EVENTS_PATH: &str = "/calendar/v3/calendars/primary/events";
const POST_PATH: &str = "/api/chat.postMessage";

fn week() -> Value {
    json!({ "time_min": "2026-12-01T00:00:00Z", "time_max": "2026-12-08T00:00:00Z" })
}

fn message() -> Value {
    json!({ "channel": "C0GENERAL1", "text": "Hello." })
}

/// Alice with a connection to Google for mail and calendar.
async fn connected() -> TestObo {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    obo.connect("alice", "alice@example.com", EVENTS, week()).await;
    obo
}

/// What a failure tells: the code with its hints, and the text.
fn told(what: &str, result: &Value) -> String {
    assert_eq!(result["isError"], true, "{what}: {result}");
    let texts: Vec<&str> =
        result["content"].as_array().unwrap().iter().map(|item| item["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 1, "{what}: {result}");
    format!("{what}\n    {}\n    {}\n", result["_meta"]["obo/error"], texts[0])
}

fn google_error(status: u16, reason: &str, message: &str) -> Fault {
    let error = json!({ "code": status, "message": message, "status": reason, "errors": [{ "reason": reason }] });
    Fault::Status(status, json!({ "error": error }))
}

/// Makes the call under each fault; a call that failed must not have been counted as done.
async fn failures(obo: &TestObo, tool: &str, arguments: Value, path: &str, faults: Vec<(&str, Fault)>) -> String {
    let alice = obo.client("alice").await;
    let mut all = String::new();
    for (what, fault) in faults {
        let before = asked(obo, path);
        obo.provider.fault(path, 1, fault);
        let result = alice.call(tool, arguments.clone()).await;
        all.push_str(&told(what, &result).replace(obo.provider.origin(), "ORIGIN"));
        assert_eq!(asked(obo, path) - before, 1, "{what}: asked once, and not again by itself");
        obo.provider.clear_faults();
    }
    value_of(&alice.call(tool, arguments).await);
    all
}

fn asked(obo: &TestObo, path: &str) -> usize {
    obo.provider.log().iter().filter(|call| call.path == path).count()
}

fn answers() -> Vec<(&'static str, Fault)> {
    vec![
        ("400", google_error(400, "INVALID_ARGUMENT", "Invalid time zone")),
        ("403, not allowed", google_error(403, "forbidden", "Forbidden")),
        ("403, too much", google_error(403, "userRateLimitExceeded", "User Rate Limit Exceeded")),
        ("404", google_error(404, "notFound", "Not Found")),
        ("409", google_error(409, "duplicate", "The requested identifier already exists.")),
        ("412", google_error(412, "conditionNotMet", "Precondition Failed")),
        ("413", Fault::Status(413, json!({}))),
        ("429 with Retry-After", Fault::RateLimited(7)),
        ("429 without", google_error(429, "rateLimitExceeded", "Rate Limit Exceeded")),
        ("500", google_error(500, "backendError", "Backend Error")),
        ("503", Fault::Status(503, json!({}))),
        ("418", Fault::Status(418, json!({ "error": "a teapot" }))),
        ("HTML and 200", Fault::Html),
        ("JSON cut off", Fault::TruncatedJson),
        ("12 MB", Fault::Megabytes(12)),
        ("sent elsewhere", Fault::Redirect("https://evil.example/collect".to_owned())),
        ("the token sent back", Fault::EchoAuthorization(Encoding::Base64)),
        ("cut before it was done", Fault::CutBefore),
        ("cut after it was done", Fault::CutAfter),
    ]
}

#[tokio::test]
async fn answers_to_a_read() {
    let obo = connected().await;
    insta::assert_snapshot!("answers_to_a_read", failures(&obo, EVENTS, week(), EVENTS_PATH, answers()).await);
}

#[tokio::test]
async fn answers_to_a_write() {
    let obo = connected().await;
    let all = failures(&obo, SEND, mail("bob@example.com", "x"), SEND_PATH, answers()).await;
    insta::assert_snapshot!("answers_to_a_write", all);
    // Cut off after it was done: it was done, and the text says to look. Sent by the last call: the second.
    assert_eq!(obo.provider.mailbox("bob@example.com").len(), 2);
}

#[tokio::test]
async fn slacks_answers_to_a_write() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice", "Slack_PostMessage", message()).await;
    let no = |error: &str| Fault::Status(200, json!({ "ok": false, "error": error }));
    let faults = vec![
        ("no such channel", no("channel_not_found")),
        ("not in the channel", no("not_in_channel")),
        ("too long", no("msg_too_long")),
        ("something else", no("fatal_error")),
        ("429 with Retry-After", Fault::RateLimited(30)),
        ("429 in words only", no("ratelimited")),
        ("HTML and 200", Fault::Html),
        ("cut after it was done", Fault::CutAfter),
    ];
    insta::assert_snapshot!(
        "slacks_answers_to_a_write",
        failures(&obo, "Slack_PostMessage", message(), POST_PATH, faults).await
    );
}

#[tokio::test]
async fn nobody_there() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Only the calendar is elsewhere: connecting works.
    let obo = TestObo::builder()
        .config(&format!("[providers.google.servers]\ncalendar = \"http://{closed}/calendar/v3\""))
        .start()
        .await;
    obo.connect("alice", "alice@example.com", EVENTS, week()).await;
    let result = obo.client("alice").await.call(EVENTS, week()).await;
    insta::assert_snapshot!("nobody_there", told("no connection", &result));
}

#[tokio::test]
async fn a_scope_that_the_provider_misses_is_asked_for_again() {
    let obo = connected().await;
    let alice = obo.client("alice").await;
    let insufficient = google_error(403, "insufficientPermissions", "Request had insufficient authentication scopes.");
    obo.provider.fault(EVENTS_PATH, 1, insufficient);
    let asked = alice.call(EVENTS, week()).await;
    let link = link_of(&asked).unwrap_or_else(|| panic!("{asked}"));
    let scopes = asked["_meta"]["obo/authorization"]["scopes"].to_string();
    assert!(scopes.contains("calendar.events.readonly") && !scopes.contains("gmail"), "{scopes}");
    assert_eq!(obo.consent(&link, "alice", "alice@example.com").await.status, 200);
    value_of(&alice.call(EVENTS, week()).await);
    value_of(&alice.call(SEND, mail("bob@example.com", "still")).await);
}

#[tokio::test]
async fn a_box_left_unticked_is_a_scope_still_missing() {
    let obo = TestObo::start().await;
    let alice = obo.client("alice").await;
    let first = alice.call(SEND, mail("bob@example.com", "x")).await;
    let link = link_of(&first).unwrap();
    let mut browser = crate::support::Browser::new();
    let forwarded = obo.press(&mut browser, &link, "alice").await;
    let back = obo.provider.consent_to(&forwarded, "alice@example.com", &[]).await.unwrap();
    let page = browser.get(&back).await;
    assert_eq!(page.status, 200, "{}", page.text);
    let again = alice.call(SEND, mail("bob@example.com", "x")).await;
    assert!(link_of(&again).is_some_and(|second| second != link), "{again}");
    assert_eq!(asked(&obo, SEND_PATH), 0, "a call that cannot succeed is not tried");
}

#[tokio::test]
async fn a_connection_ended_at_the_provider_is_asked_for_again() {
    let obo = connected().await;
    let alice = obo.client("alice").await;
    let before = obo.provider.token_requests();
    obo.provider.revoke_all("alice@example.com");
    let asked = alice.call(SEND, mail("bob@example.com", "x")).await;
    let link = link_of(&asked).unwrap_or_else(|| panic!("{asked}"));
    assert_eq!(obo.provider.token_requests() - before, 1, "one refresh, refused for good");
    assert_eq!(obo.provider.mailbox("bob@example.com").len(), 0);
    let held = alice.call(EVENTS, week()).await;
    assert!(link_of(&held).is_some(), "{held}");
    assert_eq!(obo.provider.token_requests() - before, 1, "a dead connection is not tried again");
    assert_eq!(obo.consent(&link, "alice", "alice@example.com").await.status, 200);
    value_of(&alice.call(SEND, mail("bob@example.com", "x")).await);
}

#[tokio::test]
async fn a_token_refused_early_is_refreshed_and_the_call_made_again() {
    let obo = connected().await;
    let alice = obo.client("alice").await;
    let before = obo.provider.token_requests();
    // The provider ends the token before its time; obo's clock says that it is good.
    obo.provider.expire_access("alice@example.com");
    value_of(&alice.call(SEND, mail("bob@example.com", "x")).await);
    assert_eq!(obo.provider.token_requests() - before, 1);
    assert_eq!(obo.provider.mailbox("bob@example.com").len(), 1, "sent once");

    // A provider that refuses what it has just issued is not asked for ever.
    obo.provider.fault(SEND_PATH, 5, google_error(401, "authError", "Invalid Credentials"));
    let tried = asked(&obo, SEND_PATH);
    let refused = alice.call(SEND, mail("bob@example.com", "x")).await;
    insta::assert_snapshot!("a_new_token_refused", told("401, twice", &refused));
    assert_eq!(asked(&obo, SEND_PATH) - tried, 2);
}

/// Fifty callers at once, with an access token that has run out.
async fn fifty(mode: RefreshMode) {
    let obo = TestObo::builder().provider(move |settings| settings.google_refresh = mode).start().await;
    obo.connect("alice", "alice@example.com", EVENTS, week()).await;
    let alice = obo.client("alice").await;
    for round in 1..=3 {
        let before = obo.provider.token_requests();
        obo.clock.advance(Duration::from_secs(3600));
        let calls = (0..50).map(|_| alice.call(EVENTS, week()));
        for result in futures::future::join_all(calls).await {
            value_of(&result);
        }
        assert_eq!(obo.provider.token_requests() - before, 1, "round {round}: one refresh for all");
    }
    assert!(obo.provider.families().iter().all(|family| family.ended.is_none()), "no old token was shown twice");
}

#[tokio::test]
async fn fifty_callers_refresh_once_where_the_refresh_token_is_kept() {
    fifty(RefreshMode::Keeps).await;
}

#[tokio::test]
async fn fifty_callers_refresh_once_where_a_used_refresh_token_ends_the_connection() {
    fifty(RefreshMode::Strict { grace: Duration::ZERO }).await;
}

#[tokio::test]
async fn a_token_endpoint_that_fails_is_not_a_connection_that_ended() {
    let obo = connected().await;
    let alice = obo.client("alice").await;
    obo.clock.advance(Duration::from_secs(3600));
    let mut all = String::new();
    for (what, fault) in [
        ("500", Fault::Status(500, json!({}))),
        ("HTML and 200", Fault::Html),
        ("429", Fault::RateLimited(3)),
        ("cut before", Fault::CutBefore),
    ] {
        obo.provider.fault("/token", 3, fault);
        let result = alice.call(EVENTS, week()).await;
        all.push_str(&told(what, &result));
        obo.provider.clear_faults();
        // Whatever pause the failure asks for is over.
        obo.clock.advance(Duration::from_secs(600));
    }
    insta::assert_snapshot!("a_token_endpoint_that_fails", all);
    value_of(&alice.call(EVENTS, week()).await);
}

#[tokio::test]
async fn with_two_accounts_the_call_must_say_which() {
    let obo = TestObo::start().await;
    let alice = obo.client("alice").await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    // A second account is connected on its own account, as `obo connect` does.
    let alices = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: "alice".parse().unwrap() };
    let provider = obo.app.catalog.provider("google").unwrap();
    let scopes = [SEND_SCOPE.to_owned()].into();
    let link = obo.app.obo.consent().connect(obo::consent::Wish::new(&alices, provider, scopes, "test")).await.unwrap();
    assert_eq!(obo.consent(link.url.as_str(), "alice", "bob@example.com").await.status, 200);

    let which = told("two accounts", &alice.call(SEND, mail("bob@example.com", "x")).await);
    assert_eq!(asked(&obo, SEND_PATH), 0);
    for account in ["alice@example.com", "bob@example.com"] {
        value_of(&alice.call(SEND, with_account(mail("bob@example.com", "x"), account)).await);
        assert_eq!(obo.provider.log().last().unwrap().user.as_deref(), Some(account));
    }
    let other = alice.call(SEND, with_account(mail("bob@example.com", "x"), "carol@example.com")).await;
    insta::assert_snapshot!("two_accounts", which + &told("an account that is not connected", &other));
    assert_eq!(asked(&obo, SEND_PATH), 2);
}

fn with_account(mut arguments: Value, account: &str) -> Value {
    arguments["account"] = json!(account);
    arguments
}
