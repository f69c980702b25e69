//! T11, T12: where requests go, and what arguments can make of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::mirror::Mirror;
use crate::support::mcp::{code_of, value_of};
use crate::support::{Browser, TestObo};

/// A listener that nothing may ever connect to.
struct Canary {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Canary {
    async fn new() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { port, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Spellings of this machine, its neighbours and their metadata services, as a manifest could name them.
const PRIVATE: &[&str] = &[
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "localhost",
    "localhost.",
    "obo.localhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "169.254.169.254",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "[fd00:ec2::254]",
    "[fe80::1]",
];

#[tokio::test]
async fn t11_a_manifest_cannot_reach_private_addresses() {
    let (mirror, canary) = (Mirror::start().await, Canary::new().await);
    let provider = &mirror.manifests()[0].1;
    let servers: String =
        PRIVATE.iter().enumerate().map(|(at, host)| format!("p{at} = \"https://{host}:{}/\"\n", canary.port)).collect();
    let provider = provider.replace("[oauth]", &format!("{servers}[oauth]"));
    let port = mirror.origin.rsplit(':').next().unwrap();
    let mut builder = TestObo::builder()
        .config(&format!(
            "[providers.mirror]\nclient_id = \"obo\"\n[network]\nallow_private = [\"127.0.0.1:{port}\"]\n"
        ))
        .tool("mirror/provider.toml", &provider)
        .tool("mirror/read.toml", &mirror.manifests()[1].1);
    for at in 0..PRIVATE.len() {
        let manifest = mirror.manifests()[1].1.replace("Mirror.Read", &format!("Mirror.P{at}"));
        builder = builder.tool(&format!("mirror/p{at}.toml"), &manifest.replace("{api}", &format!("{{p{at}}}")));
    }
    let obo = builder.start().await;
    assert_eq!(mirror.connect(&obo, "alice").await.status, 200);
    let alice = obo.client("alice").await;
    value_of(&alice.call("Mirror_Read", json!({})).await);
    for (at, host) in PRIVATE.iter().enumerate() {
        let refused = alice.call(&format!("Mirror_P{at}"), json!({})).await;
        assert_eq!(code_of(&refused).as_deref(), Some("provider_unreachable"), "{host}: {refused}");
        assert!(refused.to_string().contains("may not connect"), "{host}: {refused}");
    }
    assert_eq!(canary.connections(), 0);
    // The canary can be reached by whoever tries.
    tokio::net::TcpStream::connect(("127.0.0.1", canary.port)).await.unwrap();
}

#[tokio::test]
async fn t11_a_private_token_endpoint_is_not_asked() {
    let (mirror, canary) = (Mirror::start().await, Canary::new().await);
    for key in ["token_url", "url"] {
        let path = if key == "url" { "userinfo" } else { "token" };
        let provider = mirror.manifests()[0].1.replace(
            &format!("{key} = \"{}/{path}\"", mirror.origin),
            &format!("{key} = \"https://127.0.0.1:{}/{path}\"", canary.port),
        );
        let port = mirror.origin.rsplit(':').next().unwrap();
        let obo = TestObo::builder()
            .config(&format!(
                "[providers.mirror]\nclient_id = \"obo\"\n[network]\nallow_private = [\"127.0.0.1:{port}\"]\n"
            ))
            .tool("mirror/provider.toml", &provider)
            .tool("mirror/read.toml", &mirror.manifests()[1].1)
            .start()
            .await;
        let page = mirror.connect(&obo, "alice").await;
        assert_eq!(page.status, 502, "{key}: {}", page.text);
        assert!(mirror.asked().iter().all(|asked| asked.path != format!("/{path}")), "{key} was moved");
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn t11_redirects_are_not_followed() {
    let (mirror, canary) = (Mirror::start().await, Canary::new().await);
    let obo = mirror.obo().await;
    // To a place that may not be reached, and to one that may: neither is gone to.
    let targets = [
        format!("http://127.0.0.1:{}/", canary.port),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        format!("{}/elsewhere", mirror.origin),
    ];
    for endpoint in ["/token", "/userinfo"] {
        for target in &targets {
            mirror.redirect(endpoint, target);
            let page = mirror.connect(&obo, "alice").await;
            assert_eq!(page.status, 502, "{endpoint} to {target}: {}", page.text);
            mirror.stop_redirecting();
        }
    }
    assert_eq!(mirror.connect(&obo, "alice").await.status, 200);
    let alice = obo.client("alice").await;
    for target in &targets {
        mirror.redirect("/api/", target);
        for tool in ["Mirror_Read", "Mirror_Write"] {
            let refused = alice.call(tool, json!({})).await;
            assert_eq!(code_of(&refused).as_deref(), Some("provider_error"), "{tool} to {target}: {refused}");
            assert!(!refused.to_string().contains(target.as_str()), "{refused}");
        }
        mirror.stop_redirecting();
    }
    assert_eq!(canary.connections(), 0);
    assert!(mirror.asked().iter().all(|asked| asked.path != "/elsewhere"));
}

/// 300 texts that mean something to a URL, a header or a server behind one, and what stands around them.
fn corpus(canary: u16) -> Vec<String> {
    let hosts = [format!("127.0.0.1:{canary}"), "evil.example".to_owned(), "169.254.169.254".to_owned()];
    let mut cores: Vec<String> = [
        ".",
        "..",
        "...",
        "/",
        "\\",
        "//",
        "../",
        "..\\",
        "../../",
        "/..",
        "/../../oauth",
        "..;/",
        ";/..",
        "%2e",
        "%2e%2e",
        "%2E%2E%2F",
        "%2f",
        "%5c",
        "%252e%252e%252f",
        "%25",
        "%00",
        "%0d%0a",
        "%c0%ae%c0%ae",
        "\u{2024}\u{2024}",
        "\u{ff0e}\u{ff0e}\u{ff0f}",
        "\u{2215}",
        "\u{2044}",
        "?",
        "#",
        "&",
        "=",
        ";",
        ":",
        "@",
        "!",
        "$",
        "'",
        "\"",
        "`",
        "(",
        ")",
        "*",
        "+",
        ",",
        "[",
        "]",
        "{",
        "}",
        "|",
        "^",
        "<",
        ">",
        "~",
        "-",
        "_",
        "?alt=media",
        "?key=x&alt=json",
        "#fragment",
        "&singleEvents=false",
        "&access_token=x",
        "\r\n",
        "\n",
        "\r",
        "\t",
        "\0",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "\u{202e}",
        "\r\nAuthorization: Bearer x",
        "\r\nHost: evil.example\r\n\r\n",
        " HTTP/1.1\r\n\r\nGET /",
        "${jndi:ldap://x}",
        "{calendar}",
        "{calendar_id}",
        "{{7*7}}",
        "\\(.secret)",
        "$ENV.HOME",
        "env",
        "input",
        " ",
        "a b",
        "ä",
        "日本",
        "\u{1f4c5}",
        "primary/events/x",
        "primary%2Fevents",
        "primary?x=y",
        "primary#x",
        "users/me",
    ]
    .map(str::to_owned)
    .to_vec();
    for host in &hosts {
        for shape in [
            "@{}",
            "//{}",
            "///{}/",
            "\\\\{}\\",
            "https://{}/",
            "http:{}",
            "https:\\\\{}",
            ":443@{}/",
            "{}#",
            "x@{}:80/?",
        ] {
            cores.push(shape.replace("{}", host));
        }
    }
    let mut all: Vec<String> = Vec::new();
    for core in cores {
        all.extend([core.clone(), format!("primary{core}"), format!("{core}primary")]);
    }
    all.truncate(300);
    assert_eq!(all.len(), 300);
    all
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

fn pairs(query: &str) -> Vec<(String, String)> {
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

#[tokio::test]
async fn t12_an_argument_stays_in_its_place() {
    let (mirror, canary) = (Mirror::start().await, Canary::new().await);
    let obo = mirror.obo().await;
    assert_eq!(mirror.connect(&obo, "alice").await.status, 200);
    let alice = obo.client("alice").await;
    let host = mirror.origin.strip_prefix("http://").unwrap();
    let (mut sent, mut refused) = (0, 0);
    for text in corpus(canary.port) {
        let header = text.is_ascii() && http::HeaderValue::from_str(&text).is_ok();
        // As a segment of the path; in the query, and in a header where it can be one; and there where it cannot.
        let (query, in_header) = if header {
            (json!({ "words": text, "prefer": text }), None)
        } else {
            (json!({ "words": text }), Some(json!({ "prefer": text })))
        };
        for arguments in [Some(json!({ "segment": text })), Some(query), in_header].into_iter().flatten() {
            let before = mirror.asked().len();
            let answer = alice.call("Mirror_Read", arguments.clone()).await;
            let asked = mirror.asked().split_off(before);
            let value = |name: &str, otherwise: &str| arguments[name].as_str().unwrap_or(otherwise).to_owned();
            match &asked[..] {
                [] => {
                    refused += 1;
                    assert_eq!(code_of(&answer).as_deref(), Some("invalid_arguments"), "{arguments}: {answer}");
                    assert!(arguments.get("words").is_none(), "a query takes every text: {arguments}");
                }
                [asked] => {
                    sent += 1;
                    assert!(header || arguments.get("prefer").is_none(), "{arguments}");
                    let segments: Vec<&str> = asked.path.split('/').collect();
                    let ["", "api", "things", segment, "end"] = segments[..] else {
                        panic!("{arguments}: {}", asked.path);
                    };
                    assert_eq!(decoded(segment), value("segment", "x"));
                    assert_eq!(pairs(&asked.query), [("q".to_owned(), value("words", "y"))]);
                    assert_eq!(asked.headers["host"], host);
                    assert_eq!(asked.headers["prefer"].to_str().unwrap(), value("prefer", "z").trim());
                    let mut names: Vec<&str> = asked.headers.keys().map(http::HeaderName::as_str).collect();
                    names.sort_unstable();
                    names.retain(|name| *name != "accept-encoding");
                    assert_eq!(names, ["accept", "authorization", "host", "prefer", "user-agent"], "{arguments}");
                    assert_eq!(asked.headers.get_all("authorization").iter().count(), 1);
                }
                more => panic!("{arguments}: {} requests", more.len()),
            }
        }
    }
    assert_eq!(canary.connections(), 0);
    assert!(sent > 300 && refused > 100, "{sent} sent, {refused} refused");
}

#[tokio::test]
async fn t12_calendar_ids_reach_the_calendar_and_nothing_else() {
    let canary = Canary::new().await;
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", "GoogleCalendar_ListEvents", json!({})).await;
    let alice = obo.client("alice").await;
    for text in corpus(canary.port) {
        let before = obo.provider.log().len();
        alice.call("GoogleCalendar_ListEvents", json!({ "calendar_id": text, "query": text })).await;
        for call in obo.provider.log().split_off(before) {
            let segments: Vec<&str> = call.path.split('/').collect();
            let ["", "calendar", "v3", "calendars", id, "events"] = segments[..] else {
                panic!("{text:?}: {}", call.path);
            };
            assert_eq!(decoded(id), text);
            let expected: Vec<(String, String)> =
                [("maxResults", "25"), ("orderBy", "startTime"), ("q", &text), ("singleEvents", "true")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .to_vec();
            let mut got = pairs(&call.query);
            got.sort();
            assert_eq!(got, expected, "{text:?}");
            assert_eq!(call.user.as_deref(), Some("alice@example.com"));
        }
    }
    assert_eq!(canary.connections(), 0);
    let reached = obo.provider.log().iter().filter(|call| call.path.starts_with("/calendar/")).count();
    assert!((100..300).contains(&reached), "{reached}");
}

#[tokio::test]
async fn t12_a_plan_shows_no_token_and_sends_nothing() {
    let obo = TestObo::start().await;
    let tool = obo.app.catalog.find("Google.SendEmail").unwrap();
    let Value::Object(mail) = crate::support::mail("bob@example.com", "x") else { unreachable!() };
    let planned = obo::executor::plan(tool.api().unwrap(), &tool.arguments(mail).unwrap()).unwrap();
    let shown = serde_json::to_string(&planned).unwrap();
    assert!(shown.contains("Bearer \u{2022}"), "{shown}");
    assert!(obo.provider.log().is_empty());
    assert_eq!(Browser::new().get(&format!("{}/healthz", obo.base)).await.status, 200);
}
