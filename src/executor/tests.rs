use std::collections::VecDeque;
use std::sync::Mutex;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::*;
use crate::catalog::Tool;
use crate::catalog::tests::tool;
use crate::id::{Source, TenantId};
use crate::secret::Secret;

const TOKEN: &str = "ya29.secret-token-of-alice";

fn person(user: &str) -> Person {
    Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: user.parse().unwrap() }
}

fn token() -> AccessToken {
    AccessToken::bind(person("alice"), "example".parse().unwrap(), Secret::new(TOKEN))
}

/// A provider that answers from a list, and remembers what it was asked.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Result<Answer, EgressError>>>,
    asked: Mutex<Vec<Planned>>,
}

impl Script {
    fn of(answers: impl IntoIterator<Item = Result<Answer, EgressError>>) -> Self {
        Self { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|planned| format!("{} {}", planned.method, planned.url)).collect()
    }
}

#[async_trait]
impl Wire for Script {
    async fn exchange(&self, planned: &Planned, _token: &AccessToken, limits: Limits) -> Result<Answer, NoAnswer> {
        assert!(limits.total <= REQUEST_LIMIT && limits.body_bytes == MAX_ANSWER_BYTES);
        self.asked.lock().unwrap().push(planned.clone());
        self.answers.lock().unwrap().pop_front().expect("no more answers were expected").map_err(NoAnswer::Egress)
    }
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: impl Into<Vec<u8>>) -> Result<Answer, EgressError> {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect();
    Ok(Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: body.into() })
}

fn json_answer(body: Value) -> Result<Answer, EgressError> {
    answer(200, &[], body.to_string())
}

fn manifest(effect: &str, rest: &str) -> Arc<Tool> {
    tool(&format!(
        "name = \"Example.Do\"\ntitle = \"T\"\ndescription = \"D\"\nscopes = []\neffect = \"{effect}\"\n\
         [input]\ntype = \"object\"\n[input.properties]\nid = {{ type = \"string\", default = \"x\" }}\n\
         n = {{ type = \"integer\" }}\nlist = {{ type = \"array\" }}\n{rest}"
    ))
}

fn reading() -> Arc<Tool> {
    manifest("read", "[request]\nmethod = \"GET\"\nurl = \"{api}/things/{id}\"\nquery.n = '.n'\nquery.tag = '.list'\n")
}

fn writing() -> Arc<Tool> {
    manifest(
        "write",
        "[request]\nmethod = \"POST\"\nurl = \"{api}/things\"\nbody = '{id}'\n[response]\nvalue = '{id}'\n",
    )
}

fn arguments(tool: &Tool, raw: Value) -> Arguments {
    let Value::Object(raw) = raw else { panic!("not an object") };
    tool.arguments(raw).unwrap()
}

async fn run_with(tool: &Arc<Tool>, raw: Value, script: &Script) -> Result<Value, RunError> {
    Run::new(script, tool.api().unwrap(), &arguments(tool, raw), &token()).value().await
}

async fn run(tool: &Arc<Tool>, answer: Result<Answer, EgressError>) -> Result<Value, RunError> {
    run_with(tool, json!({}), &Script::of([answer])).await
}

async fn failure(tool: &Arc<Tool>, answer: Result<Answer, EgressError>) -> Failure {
    match run(tool, answer).await {
        Err(RunError::Failed(failure) | RunError::ScopeMissing(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_of_somebody_else_is_a_defect_and_nothing_is_sent() {
    let (alice, provider) = (person("alice"), "example".parse().unwrap());
    assert!(check_binding(&alice, &provider, &token()).is_ok());
    for (person, provider) in [(person("bob"), "example"), (alice, "other")] {
        let failure = check_binding(&person, &provider.parse().unwrap(), &token()).unwrap_err();
        assert_eq!(failure.code, Code::Internal);
    }
}

#[tokio::test]
async fn a_request_is_built_from_the_manifest() {
    let script = Script::of([json_answer(json!({"ok": 1}))]);
    let value = run_with(&reading(), json!({"id": "a b", "n": 3, "list": ["x&y", 2]}), &script).await.unwrap();
    assert_eq!(value, json!({"ok": 1}));
    assert_eq!(script.asked(), ["GET https://api.example.com/v1/things/a%20b?n=3&tag=x%26y&tag=2"]);
    let planned = script.asked.lock().unwrap()[0].clone();
    assert_eq!(planned.headers["user-agent"], concat!("obo/", env!("CARGO_PKG_VERSION")));
    assert_eq!(planned.headers["authorization"], "Bearer ••••");
}

#[test]
fn a_plan_sends_nothing_and_shows_no_token() {
    let tool = writing();
    let planned = plan(tool.api().unwrap(), &arguments(&tool, json!({"id": "7"}))).unwrap();
    let shown = serde_json::to_value(&planned).unwrap();
    assert_eq!(
        shown,
        json!([{
            "method": "POST",
            "url": "https://api.example.com/v1/things",
            "headers": {
                "accept": "application/json",
                "authorization": "Bearer ••••",
                "user-agent": concat!("obo/", env!("CARGO_PKG_VERSION")),
            },
            "body": {"json": {"id": "7"}},
        }])
    );
}

#[tokio::test]
async fn every_body_is_written_as_its_type() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let client = reqwest::Client::new();
    let built = |body: &str, raw: Value| {
        let tool = manifest("write", &format!("[request]\nmethod = \"POST\"\nurl = \"{{api}}/x\"\n{body}\n"));
        let planned = plan(tool.api().unwrap(), &arguments(&tool, raw)).unwrap().remove(0);
        let builder = client.request(planned.method.clone(), planned.url.clone());
        request::dress(builder, &planned, &token()).unwrap().build().unwrap()
    };
    let text =
        |request: &reqwest::Request| String::from_utf8(request.body().unwrap().as_bytes().unwrap().to_vec()).unwrap();

    let request = built("body = '{id, n}'", json!({"n": 1}));
    assert_eq!(text(&request), r#"{"id":"x","n":1}"#);
    assert_eq!(request.headers()["content-type"], "application/json; charset=utf-8");
    assert_eq!(request.headers()["authorization"], format!("Bearer {TOKEN}"));
    assert!(request.headers()["authorization"].is_sensitive());
    assert!(!format!("{request:?}").contains(TOKEN));

    let request = built("form = '{a: .id, b: .list, c: null, d: true}'", json!({"id": "ä &", "list": [1, "2"]}));
    assert_eq!(text(&request), "a=%C3%A4+%26&b=1&b=2&d=true");
    assert_eq!(request.headers()["content-type"], "application/x-www-form-urlencoded");

    let request = built("text = '.id'", json!({"id": "grüß"}));
    assert_eq!(
        (text(&request).as_str(), &request.headers()["content-type"]),
        ("grüß", &HeaderValue::from_static("text/plain; charset=utf-8"))
    );

    let parts = "multipart = '[{name: \"a\", value: .id}, {name: \"f\", filename: \"x.bin\", mime_type: \"image/png\", content_base64: \"AAE=\"}]'";
    let request = built(parts, json!({}));
    assert!(request.headers()["content-type"].to_str().unwrap().starts_with("multipart/form-data; boundary="));

    let request = built("headers.if-match = '.id'", json!({"id": "\"etag\""}));
    assert_eq!(request.headers()["if-match"], "\"etag\"");
    assert!(request.body().is_none());
}

#[test]
fn what_cannot_be_a_request_is_refused_before_anything_is_sent() {
    for (request, raw, code) in [
        ("method = \"POST\"\nurl = \"{api}/x\"\nform = '{a: {b: 1}}'", json!({}), Code::InvalidArguments),
        ("method = \"POST\"\nurl = \"{api}/x\"\ntext = '1'", json!({}), Code::InvalidArguments),
        ("method = \"POST\"\nurl = \"{api}/x\"\nmultipart = '[{name: \"a\"}]'", json!({}), Code::InvalidArguments),
        (
            "method = \"POST\"\nurl = \"{api}/x\"\nmultipart = '[{name: \"a\\nb\", value: \"\"}]'",
            json!({}),
            Code::InvalidArguments,
        ),
        (
            "method = \"GET\"\nurl = \"{api}/x\"\nheaders.prefer = '.id'",
            json!({"id": "a\r\nX: y"}),
            Code::InvalidArguments,
        ),
        ("method = \"GET\"\nurl = \"{api}/x\"\nheaders.prefer = '.id'", json!({"id": "日"}), Code::InvalidArguments),
        ("method = \"GET\"\nurl = \"{api}/{id}\"", json!({"id": "../admin"}), Code::InvalidArguments),
        ("method = \"GET\"\nurl = \"{api}/x\"\nquery.q = '.id'", json!({"id": "x".repeat(9000)}), Code::TooLarge),
        ("method = \"GET\"\nurl = \"{api}/x\"\nquery.q = '{a: 1}'", json!({}), Code::InvalidArguments),
        ("method = \"GET\"\nurl = \"{api}/x\"\nquery.q = 'error(\"say which\")'", json!({}), Code::InvalidArguments),
        ("method = \"GET\"\nurl = \"{api}/x\"\nquery.q = '[range(1e9)]'", json!({}), Code::TooLarge),
    ] {
        let tool = manifest("write", &format!("[request]\n{request}\n"));
        let failure = plan(tool.api().unwrap(), &arguments(&tool, raw)).unwrap_err();
        assert_eq!(failure.code, code, "{request}: {}", failure.message);
    }
}

#[tokio::test]
async fn answers_that_are_none_are_told_apart() {
    assert_eq!(run(&reading(), answer(204, &[], "")).await.unwrap(), json!(null));
    assert_eq!(run(&reading(), answer(200, &[], " \n")).await.unwrap(), json!(null));
    let html = failure(&reading(), answer(200, &[("content-type", "text/html")], "<html>Sign in</html>")).await;
    assert_eq!((html.code, html.status, html.can_retry), (Code::ProviderError, Some(200), true));
    assert!(html.message.contains("not JSON (text/html)") && !html.message.contains("Sign in"), "{}", html.message);
    let cut = failure(&writing(), answer(200, &[("content-type", "application/json")], "{\"id\": ")).await;
    assert!(!cut.can_retry);
    assert!(cut.message.contains("cut off") && cut.message.contains("may have been done"), "{}", cut.message);
    let deep = failure(&reading(), answer(200, &[], "[".repeat(5000))).await;
    assert_eq!(deep.code, Code::ProviderError);
    let deep = failure(&reading(), answer(200, &[], "[".repeat(100) + &"]".repeat(100))).await;
    assert_eq!(deep.code, Code::ProviderError);
}

#[tokio::test]
async fn statuses_mean_what_they_say() {
    for (status, code, read_retry) in [
        (301, Code::ProviderError, false),
        (304, Code::ProviderError, false),
        (400, Code::InvalidArguments, false),
        (403, Code::Permission, false),
        (404, Code::NotFound, false),
        (409, Code::ProviderError, false),
        (410, Code::NotFound, false),
        (413, Code::TooLarge, false),
        (418, Code::ProviderError, false),
        (422, Code::InvalidArguments, false),
        (429, Code::RateLimited, true),
        (500, Code::ProviderError, true),
        (503, Code::ProviderError, true),
    ] {
        let read = failure(&reading(), answer(status, &[], "oops <b>")).await;
        assert_eq!((read.code, read.can_retry, read.status), (code, read_retry, Some(status)), "{status}");
        assert!(!read.message.contains("oops"), "{}", read.message);
        let write = failure(&writing(), answer(status, &[], "")).await;
        assert_eq!((write.code, write.can_retry), (code, status == 429), "{status}");
    }
    assert!(matches!(run(&reading(), answer(401, &[], "")).await, Err(RunError::TokenRejected { may_repeat: true })));
}

#[tokio::test]
async fn the_manifests_rules_come_before_the_status() {
    let said = |error: &str| json_answer(json!({"ok": false, "error": error, "message": "words\nof theirs"}));
    assert!(matches!(run(&writing(), said("token_dead")).await, Err(RunError::TokenRejected { may_repeat: true })));
    assert!(matches!(run(&reading(), said("missing_scope")).await, Err(RunError::ScopeMissing(_))));
    assert_eq!(failure(&reading(), said("slow_down")).await.code, Code::RateLimited);
    let other = failure(&reading(), said("weird")).await;
    assert_eq!(other.code, Code::ProviderError);
    assert!(other.message.ends_with("(Example says: \"words of theirs\")"), "{}", other.message);
}

#[tokio::test]
async fn waits_are_read_in_both_forms() {
    for (headers, expected) in [
        (vec![("retry-after", "17")], Some(17)),
        (vec![("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(30)),
        (vec![("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(0)),
        (vec![("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], None),
        (vec![("retry-after", "soon")], None),
        (vec![("retry-after", "99999999999999999999")], Some(MAX_RETRY_AFTER_S)),
        (vec![], None),
    ] {
        let failure = failure(&reading(), answer(429, &headers, "")).await;
        assert_eq!(failure.retry_after, expected.map(Duration::from_secs), "{headers:?}");
        assert!(failure.can_retry);
    }
}

const MAX_RETRY_AFTER_S: u64 = crate::catalog::MAX_RETRY_AFTER.as_secs();

#[tokio::test]
async fn silence_means_something_else_for_writes() {
    let host = || "api.example.com".to_owned();
    for (error, read, write) in [
        (EgressError::Forbidden(host()), (Code::ProviderUnreachable, false), (Code::ProviderUnreachable, false)),
        (EgressError::Unreachable(host()), (Code::ProviderUnreachable, true), (Code::ProviderUnreachable, true)),
        (EgressError::Timeout(host()), (Code::Timeout, true), (Code::OutcomeUnknown, false)),
        (EgressError::Broken(host()), (Code::ProviderError, true), (Code::OutcomeUnknown, false)),
        (EgressError::TooLarge(host()), (Code::TooLarge, false), (Code::TooLarge, false)),
    ] {
        let reading = failure(&reading(), Err(error.clone())).await;
        assert_eq!((reading.code, reading.can_retry), read, "{error}");
        let writing = failure(&writing(), Err(error.clone())).await;
        assert_eq!((writing.code, writing.can_retry), write, "{error}");
        assert!(writing.cause.is_some());
    }
}

fn two_steps(effect: &str) -> Arc<Tool> {
    two_steps_with(effect, "")
}

/// Two steps, the first of them with `more`.
fn two_steps_with(effect: &str, more: &str) -> Arc<Tool> {
    manifest(
        effect,
        &format!(
            "[[step]]\nbind = \"first\"\n{more}\n[step.request]\nmethod = \"POST\"\nurl = \"{{api}}/a\"\n\
             body = '{{id}}'\n[[step]]\n[step.request]\nmethod = \"POST\"\nurl = \"{{api}}/b\"\n\
             body = 'if $first.id == 0 then error(\"no such thing\") else {{of: $first.id}} end'\n\
             [response]\nvalue = '{{first: $first.id, second: .id}}'\n"
        ),
    )
}

#[tokio::test]
async fn later_steps_read_the_answers_of_earlier_ones() {
    let script = Script::of([json_answer(json!({"id": 1})), json_answer(json!({"id": 2}))]);
    let value = run_with(&two_steps("write"), json!({}), &script).await.unwrap();
    assert_eq!(value, json!({"first": 1, "second": 2}));
    assert_eq!(script.asked.lock().unwrap()[1].body, Body::Json(json!({"of": 1})));
}

#[tokio::test]
async fn an_answer_that_is_text_is_one_text() {
    let tool = manifest(
        "read",
        "[request]\nmethod = \"GET\"\nurl = \"{api}/files/{id}\"\nanswer = \"text\"\n[response]\nvalue = '{text: .}'\n",
    );
    for (body, text) in [("", ""), ("{\"id\": 1}", "{\"id\": 1}"), ("\u{feff}na\u{ef}ve\r\n", "na\u{ef}ve\r\n")] {
        assert_eq!(run(&tool, answer(200, &[], body)).await.unwrap(), json!({"text": text}));
    }
    let binary = failure(&tool, answer(200, &[], vec![0x25, 0x50, 0xff, 0xfe])).await;
    assert_eq!((binary.code, binary.can_retry), (Code::ProviderError, false));
    let leaked = failure(&tool, answer(200, &[], format!("it is {TOKEN}"))).await;
    assert!(leaked.message.contains("was withheld"), "{}", leaked.message);
    assert_eq!(failure(&tool, answer(404, &[], "{}")).await.code, Code::NotFound);
    // What would tell of a failure is only a text that says so.
    let told = r#"{"ok": false, "error": "slow_down"}"#;
    assert_eq!(run(&tool, answer(200, &[], told)).await.unwrap(), json!({"text": told}));
}

/// Finds the place of the call in a first answer: `path.place`.
fn placed() -> Arc<Tool> {
    manifest(
        "read",
        "[[step]]\nbind = \"places\"\n[step.request]\nmethod = \"GET\"\nurl = \"{api}/places\"\n\
         [[step]]\n[step.request]\nmethod = \"GET\"\nurl = \"{api}/in/{place}/things/{id*}\"\n\
         path.place = 'if ($places | length) > 1 then error(\"which of \\($places | join(\", \"))?\") else $places[0] end'\n\
         [response]\nvalue = '{place: $places[0], asked: $input.id, n: .n}'\n",
    )
}

#[tokio::test]
async fn a_step_goes_where_an_earlier_answer_says_and_the_value_knows_the_arguments() {
    let script = Script::of([json_answer(json!(["a b"])), json_answer(json!({"n": 1}))]);
    let value = run_with(&placed(), json!({"id": "x/y z"}), &script).await.unwrap();
    assert_eq!(value, json!({"place": "a b", "asked": "x/y z", "n": 1}));
    assert_eq!(script.asked()[1], "GET https://api.example.com/v1/in/a%20b/things/x/y%20z");
}

#[tokio::test]
async fn an_answer_leads_nowhere_else_than_a_segment_of_the_server() {
    for hostile in [json!([".."]), json!(["../../v2"]), json!(["a/b"]), json!(["%2e%2e"]), json!([null]), json!([{}])] {
        let script = Script::of([json_answer(hostile.clone())]);
        let failure = match run_with(&placed(), json!({}), &script).await {
            Err(RunError::Failed(failure)) => failure,
            other => panic!("{hostile}: {other:?}"),
        };
        assert_eq!(failure.code, Code::InvalidArguments, "{hostile}");
        assert_eq!(script.asked().len(), 1, "{hostile}");
    }
    let script = Script::of([json_answer(json!(["a", "b"]))]);
    let Err(RunError::Failed(failure)) = run_with(&placed(), json!({}), &script).await else { panic!() };
    assert_eq!((failure.code, failure.message.as_str()), (Code::InvalidArguments, "which of a, b?"));
}

#[tokio::test]
async fn a_call_that_changed_something_is_not_to_be_repeated() {
    let with = |second: Result<Answer, EgressError>| Script::of([json_answer(json!({"id": 1})), second]);
    let rejected = run_with(&two_steps("write"), json!({}), &with(answer(401, &[], ""))).await;
    assert!(matches!(rejected, Err(RunError::TokenRejected { may_repeat: false })));
    let rejected = run_with(&two_steps("read"), json!({}), &with(answer(401, &[], ""))).await;
    assert!(matches!(rejected, Err(RunError::TokenRejected { may_repeat: true })));
    let limited = run_with(&two_steps("write"), json!({}), &with(answer(429, &[], ""))).await;
    let Err(RunError::Failed(limited)) = limited else { panic!() };
    assert!(!limited.can_retry && limited.message.contains("was done already"), "{}", limited.message);
}

#[tokio::test]
async fn a_step_that_only_asks_has_changed_nothing() {
    let tool = two_steps_with("write", "reads = true");
    let with = |first: u8, second: Result<Answer, EgressError>| Script::of([json_answer(json!({"id": first})), second]);
    let rejected = run_with(&tool, json!({}), &with(1, answer(401, &[], ""))).await;
    assert!(matches!(rejected, Err(RunError::TokenRejected { may_repeat: true })));
    let Err(RunError::Failed(limited)) = run_with(&tool, json!({}), &with(1, answer(429, &[], ""))).await else {
        panic!()
    };
    assert!(limited.can_retry && !limited.message.contains("was done already"), "{}", limited.message);
    // Nothing is there to change: what the program says is all that is said.
    let Err(RunError::Failed(unknown)) = run_with(&tool, json!({}), &with(0, answer(200, &[], ""))).await else {
        panic!()
    };
    assert_eq!((unknown.code, unknown.message.as_str()), (Code::InvalidArguments, "no such thing"));
    // The step that changes is still one: its silence is not nothing.
    let silent = with(1, Err(EgressError::Timeout("api.example.com".to_owned())));
    let Err(RunError::Failed(silent)) = run_with(&tool, json!({}), &silent).await else { panic!() };
    assert_eq!(silent.code, Code::OutcomeUnknown);
}

fn each(effect: &str, method: &str) -> Arc<Tool> {
    manifest(
        effect,
        &format!(
            "[[step]]\nbind = \"all\"\neach = '.list'\n[step.request]\nmethod = \"{method}\"\nurl = \"{{api}}/t/{{item}}\"\n\
             [response]\nvalue = '{{all: [$all[] | .v], same: (. == $all)}}'\n"
        ),
    )
}

#[tokio::test]
async fn a_step_runs_over_each_element_in_order() {
    let ids: Vec<_> = (0..12).map(|n| format!("id{n}")).collect();
    let script = Script::of((0..12).map(|n| json_answer(json!({"v": n}))));
    let value = run_with(&each("read", "GET"), json!({"list": ids}), &script).await.unwrap();
    assert_eq!(value, json!({"all": (0..12).collect::<Vec<_>>(), "same": true}));
    assert_eq!(script.asked().len(), 12);
    let none = run_with(&each("read", "GET"), json!({"list": []}), &Script::default()).await.unwrap();
    assert_eq!(none, json!({"all": [], "same": true}));
    let many: Vec<_> = (0..26).collect();
    let Err(RunError::Failed(refused)) =
        run_with(&each("read", "GET"), json!({"list": many}), &Script::default()).await
    else {
        panic!()
    };
    assert_eq!(refused.code, Code::TooLarge);
}

#[tokio::test]
async fn writes_over_elements_stop_at_the_first_failure_and_say_so() {
    let script = Script::of([json_answer(json!({"v": 1})), answer(404, &[], "")]);
    let outcome = run_with(&each("write", "DELETE"), json!({"list": ["a", "b", "c"]}), &script).await;
    let Err(RunError::Failed(failure)) = outcome else { panic!() };
    assert_eq!(failure.code, Code::NotFound);
    assert!(failure.message.contains("was done already"), "{}", failure.message);
    assert_eq!(script.asked().len(), 2);
}

#[tokio::test]
async fn a_token_that_comes_back_is_withheld() {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("x{TOKEN}y"));
    let halves = TOKEN.split_at(9);
    let joined =
        manifest("read", "[request]\nmethod = \"GET\"\nurl = \"{api}/x\"\n[response]\nvalue = '{text: (.a + .b)}'\n");
    let twice = manifest(
        "read",
        "[request]\nmethod = \"GET\"\nurl = \"{api}/x\"\n[response]\nvalue = '{text: (.a | @base64d)}'\n",
    );
    let inner = base64::engine::general_purpose::STANDARD.encode(&encoded);
    for (tool, answer) in [
        (reading(), json_answer(json!({"request": {"authorization": format!("Bearer {TOKEN}")}}))),
        (reading(), json_answer(json!({"unused": encoded}))),
        (reading(), answer(500, &[], format!("debug: {TOKEN}"))),
        (reading(), answer(200, &[("x-echo", &format!("Bearer {TOKEN}"))], "{}")),
        (reading(), json_answer(json!({"ok": false, "message": TOKEN}))),
        (joined, json_answer(json!({"a": halves.0, "b": halves.1}))),
        (twice, json_answer(json!({"a": inner}))),
    ] {
        let failure = failure(&tool, answer).await;
        assert_eq!(failure.code, Code::ProviderError);
        assert_eq!(failure.note, Some(LEAK_BLOCKED), "{failure:?}");
        assert!(!format!("{failure:?}").contains(TOKEN));
    }
    let dead = run(&reading(), answer(401, &[], format!("bad token {TOKEN}"))).await;
    assert!(matches!(dead, Err(RunError::TokenRejected { may_repeat: true })));
}

#[tokio::test]
async fn values_are_bounded_and_fit_or_fail_in_words() {
    let big = failure(&reading(), json_answer(json!({"x": "a".repeat(MAX_VALUE_BYTES)}))).await;
    assert_eq!(big.code, Code::TooLarge);
    assert!(big.message.contains("ask for less"), "{}", big.message);
    let shape = failure(&writing(), json_answer(json!(["no", "object"]))).await;
    assert_eq!(shape.code, Code::ProviderError);
    assert!(shape.message.contains("was done already"), "the request was made: {}", shape.message);
}
