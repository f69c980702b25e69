//! Browsers that would be sent elsewhere with a code, or with anything.

use serde_json::json;

use super::{Heard, World};
use crate::support::oauth_client::register;
use crate::support::{Browser, OauthClient};

pub(super) const FAMILY: &str = "redirect tricks";

/// Addresses that no client may have.
const NEVER: [&str; 48] = [
    "http://evil.example/cb",
    "http://127.0.0.1.evil.example/cb",
    "http://localhost.evil.example/cb",
    "http://evil-localhost/cb",
    "http://127.0.0.1@evil.example/cb",
    "http://localhost:4711@evil.example/cb",
    "http://user@127.0.0.1/cb",
    "http://@127.0.0.1/cb",
    "http://10.0.0.1/cb",
    "http://0.0.0.0/cb",
    "http://[::]/cb",
    "http://[::ffff:127.0.0.1]/cb",
    "https://user:pass@evil.example/cb",
    "https://@evil.example/cb",
    "https://app.example\\@evil.example/cb",
    "https://app.example\\.evil.example/cb",
    "http://127.0.0.1\\.evil.example/",
    "http:\\\\evil.example/cb",
    "https://evil.example/cb#fragment",
    "https://evil.example/cb#",
    "https://evil.example/a b",
    "https://evil.example/\t",
    "https://evil.example/\r\nset-cookie: a=b",
    "https://evil.example/\u{0}",
    "https://evil.example/\u{202e}",
    "https://ev\u{131}l.example/cb",
    "https://evil\u{3002}example/cb",
    "https:///cb",
    "https:evil.example/cb",
    "https:/evil.example/cb",
    "//evil.example/cb",
    "/callback",
    "evil.example/cb",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "file:///etc/passwd",
    "blob:https://evil.example/x",
    "view-source:https://evil.example/",
    "intent://evil.example#Intent;end",
    "ms-settings:x",
    "search-ms:query=x&crumb=location:evil.example",
    "ssh://evil.example/",
    "ftp://evil.example/",
    "https://evil.example/cb?code=x",
    "https://evil.example/cb?iss=https%3A%2F%2Fother.example",
    "https://evil.example/cb?%73tate=x",
];

/// What a client is registered with, and where somebody would have its code sent.
const OTHERS: [(&str, &str); 34] = [
    ("https://app.example/cb", "https://evil.example/cb"),
    ("https://app.example/cb", "https://app.example.evil.example/cb"),
    ("https://app.example/cb", "https://evil.app.example/cb"),
    ("https://app.example/cb", "https://app.example@evil.example/cb"),
    ("https://app.example/cb", "https://app.example%40evil.example/cb"),
    ("https://app.example/cb", "https://app.example\\@evil.example/cb"),
    ("https://app.example/cb", "https://app.example:443/cb"),
    ("https://app.example/cb", "https://app.example:8443/cb"),
    ("https://app.example/cb", "https://app.example./cb"),
    ("https://app.example/cb", "https://APP.example/cb"),
    ("https://app.example/cb", "https://app.example/CB"),
    ("https://app.example/cb", "https://app.example/cb/"),
    ("https://app.example/cb", "https://app.example/cb/../evil"),
    ("https://app.example/cb", "https://app.example/cb/..%2fevil"),
    ("https://app.example/cb", "https://app.example/x/../cb"),
    ("https://app.example/cb", "https://app.example/./cb"),
    ("https://app.example/cb", "https://app.example//cb"),
    ("https://app.example/cb", "https://app.example/%63b"),
    ("https://app.example/cb", "https://app.example/cb?next=https://evil.example"),
    ("https://app.example/cb", "https://app.example/cb#x"),
    ("https://app.example/cb", "https://app.example/cb%0d%0aset-cookie:a=b"),
    ("https://app.example/cb", "http://app.example/cb"),
    ("https://app.example/cb", "app.example:/cb"),
    ("https://app.example/cb", "https://app.example/c"),
    ("http://127.0.0.1/cb", "http://localhost/cb"),
    ("http://127.0.0.1/cb", "http://[::1]/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.2/cb"),
    ("http://127.0.0.1/cb", "http://2130706433/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:4711/evil"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:4711@evil.example/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:x/cb"),
    ("http://127.0.0.1/cb", "https://127.0.0.1/cb"),
    ("cursor://app/cb", "cursor://evil/cb"),
    ("cursor://app/cb", "cursor2://app/cb"),
];

#[tokio::test]
async fn t7_nobody_is_sent_anywhere_but_to_an_address_of_the_client() {
    let mut world = World::of(FAMILY).await;
    for never in NEVER {
        world
            .case(&format!("registered with {never:?}"), async |world| {
                let mut heard = Heard::default();
                for uris in [json!([never]), json!([world.client.redirect_uri, never])] {
                    let refused = register(&world.obo.base, &json!({ "redirect_uris": uris })).await;
                    heard.error(&refused, "invalid_redirect_uri");
                    assert!(!refused.text.contains("evil") || !never.contains("evil"), "{}", refused.text);
                }
                // Nor is it asked for.
                let asked = world.client.begin_with(&[("redirect_uri", Some(never))]);
                world.nowhere(&mut heard, &asked.url).await;
                heard
            })
            .await;
    }
    for (registered, asked) in OTHERS {
        world
            .case(&format!("{asked:?} for {registered:?}"), async |world| {
                let mut heard = Heard::default();
                let client = OauthClient::register(&world.obo.base, "App", registered).await;
                let asked = client.begin_with(&[("redirect_uri", Some(asked))]);
                world.nowhere(&mut heard, &asked.url).await;
                heard
            })
            .await;
    }
    for (name, uri) in [("no redirect_uri", None), ("an empty redirect_uri", Some(""))] {
        world
            .case(name, async |world| {
                let mut heard = Heard::default();
                let asked = world.client.begin_with(&[("redirect_uri", uri)]);
                world.nowhere(&mut heard, &asked.url).await;
                heard
            })
            .await;
    }
    world
        .case("two of them", async |world| {
            let mut heard = Heard::default();
            let url = format!("{}&redirect_uri=https%3A%2F%2Fevil.example%2Fcb", world.client.begin().url);
            world.nowhere(&mut heard, &url).await;
            heard
        })
        .await;
    // A client of mallory's, whose address is in order: a link to obo must not end there by itself, not by an error
    // either. Before the sign-in nothing of it is shown; after it, a link that the person may follow or not.
    type Changes<'a> = &'a [(&'a str, Option<&'a str>)];
    let errors: [(&str, Changes<'_>); 7] = [
        ("response_type", &[("response_type", Some("token"))]),
        ("no response_type", &[("response_type", None)]),
        ("response_mode", &[("response_mode", Some("fragment"))]),
        ("a request object", &[("request", Some("eyJhbGciOiJub25lIn0.e30."))]),
        ("a request object elsewhere", &[("request_uri", Some("https://evil.example/request"))]),
        ("no challenge", &[("code_challenge", None)]),
        ("another resource", &[("resource", Some("https://evil.example/mcp"))]),
    ];
    for (name, changes) in errors {
        world
            .case(&format!("an error that leads elsewhere: {name}"), async |world| {
                let mut heard = Heard::default();
                let codes = world.codes().await;
                let asked = world.evil.begin_with(changes);
                let before = Browser::new().get(&asked.url).await;
                assert_eq!((before.status, &before.location), (200, &None));
                assert!(!before.text.contains("evil.example/callback"), "{}", before.text);
                heard.page(&before);
                let after = world.alice.get(&asked.url).await;
                heard.refused(&after, 400);
                let link = format!("{}?error=", world.evil.redirect_uri);
                assert!(after.text.contains(&link) && after.text.contains("rel=\"noreferrer\""), "{}", after.text);
                assert!(after.text.contains("Go back to evil.example<"), "it says where: {}", after.text);
                assert_eq!(world.codes().await, codes);
                heard
            })
            .await;
    }
    for prompt in ["none", "login", "consent"] {
        world
            .case(&format!("an answer without a person, prompt={prompt}"), async |world| {
                let mut heard = Heard::default();
                let asked = world.evil.begin_with(&[("prompt", Some(prompt))]);
                for browser in [&mut world.alice, &mut Browser::new()] {
                    let page = browser.get(&asked.url).await;
                    assert_eq!((page.status, &page.location), (200, &None));
                    heard.page(&page);
                }
                heard
            })
            .await;
    }
    world
        .case("line breaks in the state", async |world| {
            let mut heard = Heard::default();
            let state = "x\r\nset-cookie: planted=1\r\n\r\n<script>";
            let begun = world.client.begin_with(&[("state", Some(state))]);
            let page = world.alice.get(&begun.url).await;
            let pressed = world.alice.submit(&page, &[]).await;
            let location = pressed.location.clone().unwrap();
            assert!(location.starts_with(&format!("{}?", world.client.redirect_uri)), "{location}");
            assert!(pressed.headers.get("set-cookie").is_none() && location.is_ascii());
            assert_eq!(crate::support::oauth_client::parameters(&location)["state"], state);
            heard.page(&pressed);
            heard
        })
        .await;
    world
        .case("parameters of the answer in the state", async |world| {
            let mut heard = Heard::default();
            let state = "x&iss=https://evil.example&code=other#y";
            let begun = world.client.begin_with(&[("state", Some(state))]);
            let page = world.alice.get(&begun.url).await;
            let pressed = world.alice.submit(&page, &[]).await;
            let back = crate::support::oauth_client::parameters(pressed.location.as_deref().unwrap());
            assert_eq!((&back["state"], &back["iss"]), (&state.to_owned(), &world.obo.base));
            heard.page(&pressed);
            heard
        })
        .await;
    world.end();
}

impl World {
    /// Nobody gets further than a page that leads nowhere, signed in or not.
    async fn nowhere(&mut self, heard: &mut Heard, url: &str) {
        let codes = self.codes().await;
        self.sign_alice_in().await;
        for browser in [&mut self.alice, &mut Browser::new()] {
            let page = browser.get(url).await;
            heard.refused(&page, 400);
            assert!(!page.text.contains("href="), "{}", page.text);
        }
        assert_eq!(self.codes().await, codes);
    }
}
