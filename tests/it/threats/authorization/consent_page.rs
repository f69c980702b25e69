//! Presses of "Allow" that no person made, or made for something else.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Heard, World};
use crate::support::browser::Page;
use crate::support::oauth_client::{http, sign_in_with, with_form};
use crate::support::{Browser, OauthClient};

pub(super) const FAMILY: &str = "consent page";

/// The page with one of its hidden values changed.
fn changed(page: &Page, name: &str, value: &str) -> Page {
    let mut page = with_form(page, "\"allow\"");
    let own = page.hidden().into_iter().find(|(other, _)| other == name).unwrap().1;
    page.text =
        page.text.replace(&format!("name=\"{name}\" value=\"{own}\""), &format!("name=\"{name}\" value=\"{value}\""));
    page
}

/// The page as if it had been shown for another address.
fn moved(page: &Page, url: &str) -> Page {
    let mut page = with_form(page, "\"allow\"");
    page.text = page.text.replace("action=\"", "x=\"").replacen("<form ", "<form action=\"\" ", 1);
    page.url = url.to_owned();
    page
}

impl World {
    /// What a press was answered with gave no code.
    async fn no_code(&mut self, name: &str, attack: impl AsyncFnOnce(&mut Self, &Page) -> Vec<(Page, u16)>) {
        self.case(name, async |world| {
            let mut heard = Heard::default();
            world.sign_alice_in().await;
            let codes = world.codes().await;
            let url = world.client.begin().url;
            let page = world.alice.get(&url).await;
            assert_eq!(page.status, 200, "{}", page.text);
            let answers = attack(world, &page).await;
            assert!(!answers.is_empty());
            for (answer, status) in answers {
                assert_eq!(answer.status, status, "{name}: {}", answer.text);
                assert!(answer.location.as_deref().is_none_or(|to| !to.contains("code=")), "{name}: {answer:?}");
                heard.page(&answer);
            }
            assert_eq!(world.codes().await, codes, "{name}");
            heard
        })
        .await;
    }
}

#[tokio::test]
async fn t2_only_the_person_who_was_shown_the_page_allows_what_it_said() {
    let mut world = World::of(FAMILY).await;
    for (name, value) in
        [("no", ""), ("a made-up", "A"), ("a long made-up", &*"A".repeat(43)), ("a very long", &*"A".repeat(20_000))]
    {
        world
            .no_code(&format!("with {name} hidden value"), async |world, page| {
                vec![(world.alice.submit(&changed(page, "form", value), &[]).await, 403)]
            })
            .await;
    }
    world
        .no_code("without a hidden value at all", async |world, page| {
            let mut page = with_form(page, "\"allow\"");
            page.text = page.text.replace("name=\"form\"", "name=\"from\"");
            vec![(world.alice.submit(&page, &[]).await, 400)]
        })
        .await;
    world
        .no_code("with each letter of the hidden value changed", async |world, page| {
            let own = with_form(page, "\"allow\"").hidden().into_iter().find(|(name, _)| name == "form").unwrap().1;
            let mut answers = Vec::new();
            for at in 0..own.len() {
                let mut bytes = own.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
                let bent = String::from_utf8(bytes).unwrap();
                answers.push((world.alice.submit(&changed(page, "form", &bent), &[]).await, 403));
            }
            answers
        })
        .await;
    world
        .no_code("from another browser that is signed in as the same person", async |world, page| {
            let mut other = world.obo.browser_of("alice").await;
            vec![(other.submit(page, &[]).await, 403)]
        })
        .await;
    world
        .no_code("of mallory's browser, in alice's", async |world, page| {
            let mallorys = world.mallory.get(&page.url).await;
            vec![(world.alice.submit(&mallorys, &[]).await, 403), (world.mallory.submit(page, &[]).await, 403)]
        })
        .await;
    world
        .no_code("of a browser without a cookie", async |_, page| vec![(Browser::new().submit(page, &[]).await, 200)])
        .await;
    world
        .no_code("for mallory's client", async |world, page| {
            let evil = world.evil.begin().url;
            vec![(world.alice.submit(&moved(page, &evil), &[]).await, 403)]
        })
        .await;
    world
        .no_code("for another client that calls itself the same and waits at the same place", async |world, page| {
            let twin = OauthClient::register(&world.obo.base, "Notes", &world.client.redirect_uri).await;
            vec![(world.alice.submit(&moved(page, &twin.begin().url), &[]).await, 403)]
        })
        .await;
    world
        .no_code("for a request with another state and challenge", async |world, page| {
            let other = world.client.begin().url;
            vec![(world.alice.submit(&moved(page, &other), &[]).await, 403)]
        })
        .await;
    world
        .no_code("for a request with another port", async |world, page| {
            let other = page.url.replace("4711", "4712");
            assert_ne!(other, page.url);
            vec![(world.alice.submit(&moved(page, &other), &[]).await, 403)]
        })
        .await;
    for further in ["&x=y", "&state=other", "&redirect_uri=https%3A%2F%2Fevil.example%2F", "&code_challenge=other"] {
        world
            .no_code(&format!("for its own request and {further}"), async |world, page| {
                let longer = format!("{}{further}", page.url);
                let status = if further == "&x=y" { 403 } else { 400 };
                vec![(world.alice.submit(&moved(page, &longer), &[]).await, status)]
            })
            .await;
    }
    for form in ["\"sign_out\"", "/account"] {
        world
            .no_code(&format!("with the value of another form: {form}"), async |world, page| {
                let other = if form == "/account" {
                    world.alice.get(&format!("{}/account", world.obo.base)).await
                } else {
                    with_form(page, form)
                };
                let value = other.hidden().into_iter().find(|(name, _)| name == "form").unwrap().1;
                vec![(world.alice.submit(&changed(page, "form", &value), &[]).await, 403)]
            })
            .await;
    }
    for (origin, site) in [
        (Some("https://evil.example"), None),
        (Some("https://evil.example"), Some("same-origin")),
        (Some("null"), None),
        (Some("null"), Some("cross-site")),
        (Some("null"), Some("same-site")),
        (Some("null"), Some("none")),
        (None, None),
        (None, Some("cross-site")),
        (Some(""), Some("same-origin")),
    ] {
        world
            .no_code(&format!("from elsewhere: {origin:?} {site:?}"), async |world, page| {
                vec![(world.alice.submit_from(page, &[], origin, site).await, 403)]
            })
            .await;
    }
    world
        .no_code("by a link, without a form", async |world, page| {
            let own = with_form(page, "\"allow\"").hidden();
            let query: String = own.iter().map(|(name, value)| format!("&{name}={value}")).collect();
            vec![(world.alice.get(&format!("{}{query}", page.url)).await, 200)]
        })
        .await;
    for (name, kind, body) in [
        ("JSON", "application/json", "{\"step\":\"allow\"}"),
        ("text", "text/plain", "step=allow"),
        ("several parts", "multipart/form-data; boundary=x", "--x--"),
    ] {
        world
            .no_code(&format!("a form that is {name}"), async |world, page| {
                let cookies: Vec<String> = world.alice.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let request = http()
                    .post(&page.url)
                    .header("content-type", kind)
                    .header("cookie", cookies.join("; "))
                    .header("origin", &world.obo.base);
                let answer = request.body(body).send().await.unwrap();
                let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
                let (url, text) = (page.url.clone(), answer.text().await.unwrap());
                vec![(Page { url, status, text, location: None, headers }, 400)]
            })
            .await;
    }
    for step in ["connect", "disown", "Allow", "allow ", "allow,deny", "grant", ""] {
        world
            .no_code(&format!("the step {step:?}"), async |world, page| {
                let answer = world.alice.submit(&changed(page, "step", step), &[]).await;
                let status = answer.status;
                assert!([400, 403].contains(&status), "{status}");
                vec![(answer, status)]
            })
            .await;
    }
    world
        .no_code("two steps in one form", async |world, page| {
            vec![(world.alice.submit(page, &[("step", "deny")]).await, 400)]
        })
        .await;
    world
        .no_code("after signing out", async |world, page| {
            let out = world.alice.submit(&with_form(page, "sign_out"), &[]).await;
            assert_eq!(out.status, 303);
            vec![(world.alice.submit(page, &[]).await, 200)]
        })
        .await;
    world
        .no_code("after somebody else signed in in the same browser", async |world, page| {
            world.alice.submit(&with_form(page, "sign_out"), &[]).await;
            let bob = world.obo.token_for("bob").await;
            sign_in_with(&mut world.alice, &world.obo.base, &bob).await;
            let answer = world.alice.submit(page, &[]).await;
            world.alice = Browser::new();
            vec![(answer, 403)]
        })
        .await;
    world
        .no_code("after half an hour", async |world, page| {
            world.obo.clock.advance(Duration::from_secs(31 * 60));
            vec![(world.alice.submit(page, &[]).await, 200)]
        })
        .await;
    world
        .no_code("in a browser whose cookie was planted before it signed in", async |world, page| {
            // Mallory knows the cookie that alice's browser has when she comes; signing in gives it another.
            let mut planted = Browser::new();
            planted.get(&page.url).await;
            let known = planted.cookies.clone();
            let mut victim = Browser::new();
            victim.cookies = known.clone();
            let sign_in = victim.get(&page.url).await;
            assert_eq!(victim.submit(&sign_in, &[("token", &world.alices_token)]).await.status, 303);
            assert_ne!(victim.cookies, known);
            let shown = victim.get(&page.url).await;
            let mut mallorys = Browser::new();
            mallorys.cookies = known;
            vec![(mallorys.get(&page.url).await, 200), (mallorys.submit(&shown, &[]).await, 200)]
        })
        .await;
    world
        .no_code("in a browser that brings two cookies", async |world, page| {
            let own: BTreeMap<String, String> = world.alice.cookies.clone();
            let (name, value) = own.iter().next().unwrap();
            let mallorys = &world.mallory.cookies[name];
            let mut answers = Vec::new();
            for both in [format!("{mallorys}; {name}={value}"), format!("{value}; {name}={mallorys}")] {
                let mut browser = Browser::new();
                browser.cookies.insert(name.clone(), both);
                answers.push((browser.submit(page, &[]).await, 200));
                answers.push((browser.get(&page.url).await, 200));
            }
            answers
        })
        .await;
    world
        .case("in a frame of another site", async |world| {
            let mut heard = Heard::default();
            world.sign_alice_in().await;
            let page = world.alice.get(&world.client.begin().url).await;
            let policy = page.headers["content-security-policy"].to_str().unwrap();
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
            for (name, value) in
                [("x-frame-options", "DENY"), ("cache-control", "no-store"), ("referrer-policy", "no-referrer")]
            {
                assert_eq!(page.headers[name], value);
            }
            assert!(!page.text.contains("<script") && !page.text.contains("src="));
            heard.page(&page);
            heard
        })
        .await;
    world
        .no_code("\"deny\" pressed by a browser that was shown \"allow\"", async |world, page| {
            // The two buttons have one hidden value: it proves that this browser was shown this request, and who has it
            // could press either. What it must not do is stand for another request, which the cases above hold.
            let (allow, deny) = (with_form(page, "\"allow\"").hidden(), with_form(page, "\"deny\"").hidden());
            assert_eq!(allow.iter().find(|(name, _)| name == "form"), deny.iter().find(|(name, _)| name == "form"));
            let denied = world.alice.submit(&changed(page, "step", "deny"), &[]).await;
            assert!(denied.location.as_deref().unwrap().contains("error=access_denied"));
            vec![(denied, 303)]
        })
        .await;
    world.end();
}
