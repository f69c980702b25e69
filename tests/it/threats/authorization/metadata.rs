//! Clients that say they are another, and documents that lie or lead somewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Bend, CALLBACK, Heard, ON, World};
use crate::support::documents::{Document, Documents};
use crate::support::oauth_client::register;
use crate::support::{Browser, OauthClient, TestObo};

pub(super) const FAMILY: &str = "client impersonation by metadata";

/// Counts whoever connects, and says nothing.
async fn canary() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, seen) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((_stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, seen)
}

impl World {
    /// Nobody of this id is let in: a page says why, and the token endpoint knows of nothing.
    async fn no_client(&mut self, heard: &mut Heard, id: &str, status: u16) {
        let codes = self.codes().await;
        self.sign_alice_in().await;
        let client = OauthClient::with_id(&self.obo.base, id, CALLBACK);
        let page = self.alice.get(&client.begin().url).await;
        heard.refused(&page, status);
        assert!(!page.text.contains("href="), "{}", page.text);
        let exchanged = client.exchange(&"c".repeat(43), &"v".repeat(43)).await;
        assert!(["invalid_grant", "invalid_client", "invalid_request"].contains(&&*exchanged.error()));
        assert_eq!(self.codes().await, codes);
    }
}

/// What is wrong with an answer at a document's address, beginning from one that is right.
fn lies(documents: &Documents, path: &str) -> Vec<(&'static str, Document, u16)> {
    let good = documents.good(path);
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        Document::json(&changed)
    };
    let without = |key: &str| {
        let mut changed = good.clone();
        changed.as_object_mut().unwrap().remove(key);
        Document::json(&changed)
    };
    let sent_as = |status: u16, kind: &str| {
        let headers = if kind.is_empty() { Vec::new() } else { vec![("content-type", kind.to_owned())] };
        Document { status, headers, ..Document::json(&good) }
    };
    let text = good.to_string();
    let own = |value: &str| with("client_id", json!(value));
    vec![
        ("client_id of another address", own("https://app.example/client.json"), 400),
        ("client_id of another path of its host", own(&format!("{}/other.json", documents.url)), 400),
        ("client_id with a slash more", own(&format!("{}{path}/", documents.url)), 400),
        ("client_id in upper case", own(&format!("{}{path}", documents.url).to_uppercase()), 400),
        ("client_id by name", own(&format!("http://localhost:{}{path}", documents.port)), 400),
        ("client_id that is a number", with("client_id", json!(1)), 400),
        ("client_id that is a list", with("client_id", json!([format!("{}{path}", documents.url)])), 400),
        ("client_id that is null", with("client_id", Value::Null), 400),
        ("no client_id", without("client_id"), 400),
        ("a secret", with("client_secret", json!("x")), 400),
        ("a secret that is empty", with("client_secret", json!("")), 400),
        ("the end of a secret", with("client_secret_expires_at", json!(0)), 400),
        ("private_key_jwt", with("token_endpoint_auth_method", json!("private_key_jwt")), 400),
        ("client_secret_basic", with("token_endpoint_auth_method", json!("client_secret_basic")), 400),
        ("a list of methods", with("token_endpoint_auth_method", json!(["none"])), 400),
        ("a method that is null", with("token_endpoint_auth_method", Value::Null), 400),
        ("no addresses", without("redirect_uris"), 400),
        ("an empty list of addresses", with("redirect_uris", json!([])), 400),
        ("an address that is text", with("redirect_uris", json!(CALLBACK)), 400),
        ("an address that no client may have", with("redirect_uris", json!([CALLBACK, "javascript:x"])), 400),
        ("other addresses", with("redirect_uris", json!(["https://evil.example/callback"])), 400),
        ("seventeen addresses", with("redirect_uris", json!(vec![CALLBACK; 17])), 400),
        ("another grant", with("grant_types", json!(["client_credentials"])), 400),
        ("another response", with("response_types", json!(["token"])), 400),
        ("a name that is no text", with("client_name", json!({ "en": "Paper" })), 400),
        ("a name twice", Document::text(&text.replacen('{', "{\"client_name\":\"Other\",", 1)), 400),
        ("its id twice", Document::text(&text.replacen('{', "{\"client_id\":\"https://app.example/c\",", 1)), 400),
        (
            "a name in disguise twice",
            Document::text(&text.replacen('{', "{\"client\\u005fid\":\"https://app.example/c\",", 1)),
            400,
        ),
        ("nothing", Document::text(""), 400),
        ("a list", Document::text(&format!("[{text}]")), 400),
        ("text", Document::text("\"client\""), 400),
        ("two documents", Document::text(&format!("{text}{text}")), 400),
        ("half a document", Document::text(&text[..text.len() / 2]), 400),
        ("a page", Document::text("<!doctype html><title>client</title>"), 400),
        ("depths", Document::text(&format!("{}{}", "[".repeat(5000), "]".repeat(5000))), 400),
        ("more than 16 KiB", with("x", json!("x".repeat(17 << 10))), 400),
        ("html's type", sent_as(200, "text/html"), 400),
        ("text's type", sent_as(200, "text/plain; charset=utf-8"), 400),
        ("a type that only begins as JSON", sent_as(200, "application/jsonp"), 400),
        ("a script's type", sent_as(200, "application/javascript"), 400),
        ("no type", sent_as(200, ""), 400),
        ("404", sent_as(404, "application/json"), 502),
        ("500", sent_as(500, "application/json"), 502),
        ("203", sent_as(203, "application/json"), 502),
        ("206", sent_as(206, "application/json"), 502),
        ("401", sent_as(401, "application/json"), 502),
        (
            "bombs",
            Document {
                headers: vec![("content-type", "application/json".to_owned()), ("content-encoding", "gzip".to_owned())],
                ..Document::text("not gzip")
            },
            502,
        ),
        ("silence", Document { never: true, ..Document::text("") }, 502),
    ]
}

/// Hosts that nobody outside may make obo connect to, as they can be spelled.
const PRIVATE: [&str; 40] = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "127.0.0.1.",
    "%31%32%37.0.0.1",
    "127.255.255.254",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "0",
    "0.0.0.0",
    "[::]",
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "[::ffff:a9fe:a9fe]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "10.0.0.1",
    "10.1",
    "172.16.0.1",
    "192.168.0.1",
    "192.168.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[fc00::1]",
    "[fe80::1]",
    "localhost",
    "LOCALHOST",
    "a.localhost",
];

#[tokio::test]
async fn t11_no_client_speaks_for_another_and_no_document_leads_obo_anywhere() {
    let documents = Documents::start().await;
    let obo = TestObo::builder().config(&format!("{}{ON}", documents.allowed())).start().await;
    let mut world = World::over(FAMILY, obo).await;

    // Each lie at an address of its own; that the address itself is in order is shown by what follows at it.
    let names: Vec<&str> = lies(&documents, "/").into_iter().map(|(name, ..)| name).collect();
    for (number, name) in names.into_iter().enumerate() {
        world
            .case(&format!("a document with {name}"), async |world| {
                let mut heard = Heard::default();
                let path = format!("/{number}.json");
                let (_, lie, status) = lies(&documents, &path).swap_remove(number);
                let id = documents.put(&path, lie);
                world.no_client(&mut heard, &id, status).await;
                documents.put(&path, Document::json(&documents.good(&path)));
                if name == "other addresses" {
                    // As a document that one was in order, and is remembered for its time.
                    world.obo.clock.advance(Duration::from_secs(5 * 60));
                    world.sign_alice_in().await;
                }
                let page = world.alice.get(&OauthClient::with_id(&world.obo.base, &id, CALLBACK).begin().url).await;
                assert_eq!(page.status, 200, "{name}: nothing of a bad one is remembered: {}", page.text);
                heard
            })
            .await;
    }
    for (name, target) in [("a good one", "/good.json"), ("the cloud", ""), ("itself", "/around.json")] {
        world
            .case(&format!("a document that redirects to {name}"), async |world| {
                let mut heard = Heard::default();
                let good = documents.put("/good.json", Document::json(&documents.good("/good.json")));
                let to = match target {
                    "" => "http://169.254.169.254/latest/meta-data".to_owned(),
                    "/good.json" => good,
                    path => format!("{}{path}", documents.url),
                };
                let headers = vec![("location", to), ("content-type", "application/json".to_owned())];
                let body = documents.good("/around.json").to_string().into_bytes();
                for status in [301, 302, 303, 307, 308] {
                    let answer = Document { status, headers: headers.clone(), body: body.clone(), never: false };
                    let id = documents.put("/around.json", answer);
                    world.no_client(&mut heard, &id, 400).await;
                }
                heard
            })
            .await;
    }

    // Where a document may be, and how that is spelled.
    let good = documents.put("/client.json", Document::json(&documents.good("/client.json")));
    let spelled: [(&str, String); 14] = [
        ("a fragment", format!("{good}#x")),
        ("an empty fragment", format!("{good}#")),
        ("a user", good.replace("http://", "http://user@")),
        ("an empty user", good.replace("http://", "http://@")),
        ("a password", good.replace("http://", "http://a:b@")),
        ("dot segments", good.replace("/client", "/x/../client")),
        ("encoded dot segments", good.replace("/client", "/%2e/client")),
        ("no path", documents.url.clone()),
        ("the path /", format!("{}/", documents.url)),
        ("a scheme in upper case", good.replace("http", "HTTP")),
        ("a backslash", good.replace("/client", "\\client")),
        ("a tab", good.replace("/client", "/cli\tent")),
        ("one slash", good.replace("http://", "http:/")),
        ("a leading zero in the port", good.replace(&format!(":{}", documents.port), &format!(":0{}", documents.port))),
    ];
    for (name, id) in spelled {
        world
            .case(&format!("an id with {name}"), async |world| {
                let mut heard = Heard::default();
                let before = documents.asked();
                world.no_client(&mut heard, &id, 400).await;
                assert_eq!(documents.asked(), before, "nothing was fetched");
                heard
            })
            .await;
    }
    for id in [
        "ftp://app.example/c",
        "file:///etc/passwd",
        "javascript:x",
        "data:application/json,{}",
        "app.example",
        "oboc_",
        "oboc_.",
        "oboc_e30.e30",
        "urn:x",
    ] {
        world
            .case(&format!("the id {id}"), async |world| {
                let mut heard = Heard::default();
                world.no_client(&mut heard, id, 400).await;
                heard
            })
            .await;
    }
    let (port, seen) = canary().await;
    for host in PRIVATE {
        world
            .case(&format!("a document at {host}"), async |world| {
                let mut heard = Heard::default();
                for scheme in ["https", "http"] {
                    world.no_client(&mut heard, &format!("{scheme}://{host}:{port}/client.json"), 400).await;
                }
                assert_eq!(seen.load(Ordering::SeqCst), 0, "{host}");
                heard
            })
            .await;
    }
    world
        .case("a document at a host that stands elsewhere in obo.toml", async |world| {
            let mut heard = Heard::default();
            let before = world.obo.provider.log().len();
            world.no_client(&mut heard, &format!("{}/client.json", world.obo.provider.origin()), 400).await;
            // Nor obo itself.
            world.no_client(&mut heard, &format!("{}/mcp", world.obo.base), 400).await;
            assert_eq!(world.obo.provider.log().len(), before);
            heard
        })
        .await;
    world
        .case("a document that a stranger's link names", async |world| {
            let mut heard = Heard::default();
            let before = documents.asked();
            let id = documents.put("/strange.json", Document::json(&documents.good("/strange.json")));
            let url = OauthClient::with_id(&world.obo.base, &id, CALLBACK).begin().url;
            for _ in 0..3 {
                let page = Browser::new().get(&url).await;
                assert!(page.status == 200 && page.text.contains("name=\"token\""), "{}", page.text);
                heard.page(&page);
            }
            let client = OauthClient::with_id(&world.obo.base, &id, CALLBACK);
            heard.error(&client.exchange(&"c".repeat(43), &"v".repeat(43)).await, "invalid_grant");
            assert_eq!(documents.asked(), before, "nobody has signed in");
            heard
        })
        .await;

    // What the page said is what is allowed.
    for (name, key, value, status) in [
        ("another name", "client_name", json!("Bank"), 403),
        ("no name", "client_name", Value::Null, 403),
        ("another address", "redirect_uris", json!(["https://evil.example/callback"]), 400),
        ("another id", "client_id", json!("https://app.example/client.json"), 400),
    ] {
        world
            .case(&format!("a document that gets {name} between the page and the press"), async |world| {
                let mut heard = Heard::default();
                let mut document = documents.good("/changing.json");
                let id = documents.put("/changing.json", Document::json(&document));
                // For half an hour from now on.
                world.alice = world.obo.browser_of("alice").await;
                let page = world.alice.get(&OauthClient::with_id(&world.obo.base, &id, CALLBACK).begin().url).await;
                assert_eq!(page.status, 200, "{}", page.text);
                document[key] = value;
                documents.put("/changing.json", Document::json(&document));
                world.obo.clock.advance(Duration::from_secs(5 * 60));
                let codes = world.codes().await;
                let pressed = world.alice.submit(&page, &[]).await;
                heard.refused(&pressed, status);
                assert_eq!(world.codes().await, codes);
                // What is at the address now is not for the next case.
                world.obo.clock.advance(Duration::from_secs(5 * 60));
                heard
            })
            .await;
    }

    // Registered ids: what is in one was put there by obo, or it is none.
    world
        .case("a registered id with each letter changed", async |world| {
            let mut heard = Heard::default();
            let id = world.client.id.clone();
            for at in 0..id.len() {
                let mut bytes = id.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
                let bent = OauthClient::with_id(&world.obo.base, std::str::from_utf8(&bytes).unwrap(), CALLBACK);
                heard.error(&bent.exchange(&"c".repeat(43), &"v".repeat(43)).await, "invalid_client");
                let page = world.alice.get(&bent.begin().url).await;
                heard.refused(&page, 400);
            }
            heard
        })
        .await;
    let forge: [(&str, Bend); 6] = [
        ("without its seal", |id| id.split_once('.').unwrap().0.to_owned()),
        ("with an empty seal", |id| format!("{}.", id.split_once('.').unwrap().0)),
        ("with half a seal", |id| id[..id.len() - 21].to_owned()),
        ("with padding", |id| format!("{id}=")),
        ("with two seals", |id| format!("{id}.{}", id.split_once('.').unwrap().1)),
        ("with a place of its own put in", |id| {
            use base64::Engine as _;
            use base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let (text, seal) = id.strip_prefix("oboc_").unwrap().split_once('.').unwrap();
            let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
            let text = text.replace("http://127.0.0.1:4711/callback", "https://evil.example/callback");
            format!("oboc_{}.{seal}", URL_SAFE_NO_PAD.encode(text))
        }),
    ];
    for (name, forge) in forge {
        world
            .case(&format!("a registered id {name}"), async |world| {
                let mut heard = Heard::default();
                let forged = forge(&world.client.id);
                world.no_client(&mut heard, &forged, 400).await;
                heard
            })
            .await;
    }
    world
        .case("a registered id of another vault", async |world| {
            let mut heard = Heard::default();
            let other = TestObo::builder().config(ON).start().await;
            let foreign = OauthClient::register(&other.base, "Notes", CALLBACK).await;
            world.no_client(&mut heard, &foreign.id, 400).await;
            heard
        })
        .await;
    world
        .case("a registration with a document's id", async |world| {
            let mut heard = Heard::default();
            let good = documents.put("/client.json", Document::json(&documents.good("/client.json")));
            let lie = json!({
                "client_id": good, "client_uri": good, "client_name": "Paper", "redirect_uris": ["https://evil.example/callback"],
                "software_statement": "eyJhbGciOiJub25lIn0.e30.", "jwks_uri": "http://169.254.169.254/",
            });
            let registered = register(&world.obo.base, &lie).await.json();
            let id = registered["client_id"].as_str().unwrap();
            assert!(id.starts_with("oboc_") && registered.get("client_uri").is_none(), "{registered}");
            // Under its own id it is what it is; under the other one it has not that address.
            let client = OauthClient::with_id(&world.obo.base, id, "https://evil.example/callback");
            world.sign_alice_in().await;
            let page = world.alice.get(&client.begin().url).await;
            assert!(page.text.contains("nobody has checked") && !page.text.contains(&documents.url), "{}", page.text);
            let as_document = OauthClient::with_id(&world.obo.base, &good, "https://evil.example/callback");
            let refused = world.alice.get(&as_document.begin().url).await;
            heard.refused(&refused, 400);
            heard
        })
        .await;
    for name in [
        "claude.ai",
        "https://claude.ai",
        "Notes (claude.ai)",
        "obo",
        "<b>Bank</b>",
        "\u{5d0}\u{5d1} app",
        "Notes\" checked",
        "\u{202e}setoN",
        "N\u{3164}o\u{200b}tes",
        "Notes”, checked by your administrator. “",
        &"N".repeat(61),
    ] {
        world
            .case(&format!("a registration that calls itself {name:?}"), async |world| {
                let mut heard = Heard::default();
                let client = OauthClient::register(&world.obo.base, name, "https://evil.example/callback").await;
                world.sign_alice_in().await;
                let page = world.alice.get(&client.begin().url).await;
                assert!(page.text.contains("<dd>unknown: nobody has checked who it is</dd>"), "{}", page.text);
                assert!(
                    page.text.contains("<dd>evil.example<code>https://evil.example/callback</code></dd>"),
                    "{}",
                    page.text
                );
                assert!(!page.text.contains(['\u{202e}', '\u{3164}', '\u{200b}']), "{}", page.text);
                assert_eq!(page.text.matches(['“', '”']).count(), 2, "{}", page.text);
                assert!(!page.text.contains(&"N".repeat(61)), "{}", page.text);
                assert!(!page.text.contains("<b>Bank"), "{}", page.text);
                heard.page(&page);
                heard
            })
            .await;
    }
    for name in ["claude.ai", "Bank, example.com"] {
        world
            .case(&format!("a document that calls itself {name:?}"), async |world| {
                let mut heard = Heard::default();
                let path = format!("/named-{}.json", name.len());
                let mut document = documents.good(&path);
                document["client_name"] = json!(name);
                let id = documents.put(&path, Document::json(&document));
                let page = world.alice.get(&OauthClient::with_id(&world.obo.base, &id, CALLBACK).begin().url).await;
                let host = format!("127.0.0.1:{}", documents.port);
                assert!(page.text.contains(&format!("<dd>{host}<code>{id}</code></dd>")), "{}", page.text);
                assert!(page.text.contains(&format!("“<bdi>{name}</bdi>”")), "{}", page.text);
                heard.page(&page);
                heard
            })
            .await;
    }
    world.end();
}
