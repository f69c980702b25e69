//! Answers, codes and tokens of one place that are shown at another.

use std::sync::{Arc, OnceLock};

use obo::clock::{Clock as _, ManualClock};
use serde_json::json;

use super::{Heard, ON, World};
use crate::support::issuer::Issuer;
use crate::support::mcp::link_of;
use crate::support::oauth_client::{allow, answer, http, listed, parameters, with_form};
use crate::support::{Browser, TestObo, mail};

pub(super) const FAMILY: &str = "mix-up";

/// What `resource` may not be.
const RESOURCES: [&str; 14] = [
    "https://other.example/mcp",
    "https://other.example",
    "mcp",
    "*",
    "BASE/mcp/..",
    "BASE/mcp#x",
    "BASE/mcp?x",
    "BASE/v1",
    "BASE.evil.example/mcp",
    "BASE@evil.example/mcp",
    "BASE1/mcp",
    "BASE%2fmcp",
    " BASE/mcp",
    "BASE/MCP",
];

#[tokio::test]
async fn t4_t13_nothing_passes_for_what_it_is_not() {
    let clock = Arc::new(OnceLock::<Arc<ManualClock>>::new());
    let time = Arc::clone(&clock);
    let issuer = Issuer::start(move || time.get().unwrap().now().as_second()).await;
    let obo = TestObo::builder().config(&format!("{}{ON}", issuer.table("corp", ""))).start().await;
    clock.set(Arc::clone(&obo.clock)).unwrap();
    let mut world = World::over(FAMILY, obo).await;

    // RFC 9207: every answer says whose it is, and exactly.
    for step in ["\"allow\"", "\"deny\""] {
        world
            .case(&format!("the issuer in the answer to {step}"), async |world| {
                let mut heard = Heard::default();
                let begun = world.client.begin();
                world.sign_alice_in().await;
                let page = world.alice.get(&begun.url).await;
                let pressed = world.alice.submit(&with_form(&page, step), &[]).await;
                let back = parameters(pressed.location.as_deref().unwrap());
                assert_eq!((&back["iss"], &back["state"]), (&world.obo.base, &begun.state));
                let metadata = answer(http().get(format!("{}/.well-known/oauth-authorization-server", world.obo.base)));
                assert_eq!(metadata.await.json()["issuer"], back["iss"]);
                heard.page(&pressed);
                heard
            })
            .await;
    }
    world
        .case("the issuer in an error that is a link", async |world| {
            let mut heard = Heard::default();
            let page = world.alice.get(&world.client.begin_with(&[("response_type", Some("token"))]).url).await;
            let link = page.text.split("href=\"").find(|rest| rest.starts_with("http")).unwrap();
            let link = link.split('"').next().unwrap().replace("&#38;", "&");
            assert_eq!(parameters(&link)["iss"], world.obo.base);
            heard.refused(&page, 400);
            heard
        })
        .await;

    // Codes. Those of obo at the callbacks of obo's own sign-ins; those of others here.
    for callback in ["/login/callback/corp", "/oauth/callback/google"] {
        world
            .case(&format!("a code of obo at {callback}"), async |world| {
                let mut heard = Heard::default();
                let (code, _) = world.stolen().await;
                // A sign-in, or a consent, that this browser has really begun.
                let (state, iss) = if callback.starts_with("/login") {
                    let page = world.mallory.get(&format!("{}/account", world.obo.base)).await;
                    world.mallory.submit(&with_form(&page, "sign_out"), &[]).await;
                    let page = world.mallory.get(&format!("{}/account?with=corp", world.obo.base)).await;
                    let sent = world.mallory.submit(&page, &[]).await.location.unwrap();
                    (parameters(&sent)["state"].clone(), issuer.url.clone())
                } else {
                    let asked =
                        world.obo.client("mallory").await.call("Google_SendEmail", mail("b@example.com", "x")).await;
                    let sent = world.obo.press(&mut world.mallory, &link_of(&asked).unwrap(), "mallory").await;
                    (parameters(&sent)["state"].clone(), "https://accounts.google.com".to_owned())
                };
                for iss in [&iss, &world.obo.base] {
                    let query = url::form_urlencoded::Serializer::new(String::new())
                        .extend_pairs([("code", &code), ("state", &state), ("iss", iss)])
                        .finish();
                    let page = world.mallory.get(&format!("{}{callback}?{query}", world.obo.base)).await;
                    assert!([400, 403, 410].contains(&page.status), "{} {}", page.status, page.text);
                    heard.page(&page);
                }
                world.mallory = world.obo.browser_of("mallory").await;
                heard
            })
            .await;
    }
    world
        .case("a code of the issuer at the token endpoint", async |world| {
            let mut heard = Heard::default();
            let mut browser = Browser::new();
            let page = browser.get(&format!("{}/account?with=corp", world.obo.base)).await;
            let sent = browser.submit(&page, &[]).await.location.unwrap();
            let code = parameters(&issuer.sign_in(&sent, "alice"))["code"].clone();
            heard.error(&world.client.exchange(&code, &"v".repeat(43)).await, "invalid_grant");
            heard
        })
        .await;
    world
        .case("an answer of the issuer at the authorization endpoint", async |world| {
            let mut heard = Heard::default();
            let page =
                world.alice.get(&format!("{}/oauth/authorize?code=x&state=y&iss={}", world.obo.base, issuer.url)).await;
            heard.refused(&page, 400);
            heard
        })
        .await;
    world
        .case("a client whose address is obo's own callback", async |world| {
            // Who allows it comes back to obo with a code of obo's, which no sign-in has asked for.
            let mut heard = Heard::default();
            let callback = format!("{}/login/callback/corp", world.obo.base);
            let client = crate::support::OauthClient::register(&world.obo.base, "Notes", &callback).await;
            world.sign_alice_in().await;
            let location = allow(&mut world.alice, &client.begin().url).await;
            let page = world.alice.get(&location).await;
            heard.refused(&page, 400);
            heard
        })
        .await;

    // Resources.
    for resource in RESOURCES {
        world
            .case(&format!("for {resource}"), async |world| {
                let mut heard = Heard::default();
                let resource = resource.replace("BASE", &world.obo.base);
                world.sign_alice_in().await;
                let page = world.alice.get(&world.client.begin_with(&[("resource", Some(&resource))]).url).await;
                heard.refused(&page, 400);
                let (code, begun) = world.stolen().await;
                let other = [("resource", Some(&*resource))];
                let sent = world.client.exchange_with(&code, &begun.verifier, &other).await;
                heard.error(&sent, "invalid_target");
                heard
            })
            .await;
    }
    world
        .case("a refresh for another resource", async |world| {
            let mut heard = Heard::default();
            world.sign_alice_in().await;
            let own = world.client.sign_in(&mut world.alice).await;
            let form = [
                ("grant_type", "refresh_token"),
                ("client_id", &*world.client.id),
                ("refresh_token", &own.refresh),
                ("resource", "https://other.example/mcp"),
            ];
            heard.error(&world.client.post("/oauth/token", &form).await, "invalid_target");
            // Nothing was used up.
            let renewed = world.client.refresh(&own.refresh).await.tokens();
            world.client.revoke(&renewed.refresh).await;
            heard
        })
        .await;

    // Tokens in each other's place.
    for name in [
        "refresh token",
        "code",
        "client id",
        "access token in upper case",
        "access token cut off",
        "access token and a letter",
    ] {
        world
            .case(&format!("a bearer: {name}"), async |world| {
                let heard = Heard::default();
                let (code, _) = world.stolen().await;
                let own = world.client.sign_in(&mut world.alice).await;
                let bearer = match name {
                    "refresh token" => own.refresh.clone(),
                    "code" => code,
                    "client id" => world.client.id.clone(),
                    "access token in upper case" => own.access.to_uppercase(),
                    "access token cut off" => own.access[..own.access.len() - 1].to_owned(),
                    _ => format!("{}A", own.access),
                };
                assert_eq!(listed(&world.obo.base, &bearer).await, 401);
                let v1 = http().get(format!("{}/v1/tools", world.obo.base)).bearer_auth(&bearer);
                assert_eq!(answer(v1).await.status, 401);
                world.client.revoke(&own.refresh).await;
                heard
            })
            .await;
    }
    world
        .case("an access token that names somebody else", async |world| {
            let mut heard = Heard::default();
            world.sign_alice_in().await;
            let own = world.client.sign_in(&mut world.alice).await;
            let request = http().post(format!("{}/mcp", world.obo.base)).bearer_auth(&own.access);
            let refused = answer(request.header("obo-user", "bob").json(&json!({}))).await;
            assert_eq!(refused.status, 401);
            heard.answer(&refused);
            world.client.revoke(&own.refresh).await;
            heard
        })
        .await;
    world
        .case("an access token as an application's key", async |world| {
            let mut heard = Heard::default();
            world.sign_alice_in().await;
            let own = world.client.sign_in(&mut world.alice).await;
            for key in [own.access.clone(), format!("Bearer {}", own.access)] {
                let request = http().get(format!("{}/v1/tools", world.obo.base)).header("authorization", key);
                let refused = answer(request).await;
                assert_eq!(refused.status, 401);
                heard.answer(&refused);
            }
            world.client.revoke(&own.refresh).await;
            heard
        })
        .await;
    for name in ["access", "refresh", "issuer's"] {
        world
            .case(&format!("a browser that signs in with a client's token: {name}"), async |world| {
                let mut heard = Heard::default();
                world.sign_alice_in().await;
                let own = world.client.sign_in(&mut world.alice).await;
                let token = match name {
                    "access" => own.access.clone(),
                    "refresh" => own.refresh.clone(),
                    _ => issuer.access_token("alice", &format!("{}/mcp", world.obo.base)),
                };
                let url = world.evil.begin().url;
                let mut browser = Browser::new();
                let page = browser.get(&format!("{url}&with=obo")).await;
                let refused = browser.submit(&page, &[("token", &token)]).await;
                heard.refused(&refused, 401);
                assert!(!browser.get(&url).await.text.contains("value=\"allow\""));
                world.client.revoke(&own.refresh).await;
                heard
            })
            .await;
    }
    for name in ["a token of obo", "an access token of the issuer", "a token of the provider's kind"] {
        world
            .case(&format!("at the token endpoint: {name}"), async |world| {
                let mut heard = Heard::default();
                let token = match name {
                    "a token of obo" => world.alices_token.clone(),
                    "an access token of the issuer" => issuer.access_token("alice", &format!("{}/mcp", world.obo.base)),
                    _ => "ya29.a0AfH6SMB".to_owned(),
                };
                heard.error(&world.client.refresh(&token).await, "invalid_grant");
                heard.error(&world.client.exchange(&token, &"v".repeat(43)).await, "invalid_grant");
                // Nor is it given back there: it is not a client's.
                assert_eq!(world.client.revoke(&token).await.status, 200);
                if name != "a token of the provider's kind" {
                    assert_eq!(listed(&world.obo.base, &token).await, 200);
                }
                heard
            })
            .await;
    }
    world
        .case("a cookie of a client's token", async |world| {
            let mut heard = Heard::default();
            world.sign_alice_in().await;
            let own = world.client.sign_in(&mut world.alice).await;
            let mut browser = Browser::new();
            let name = world.alice.cookies.keys().next().unwrap().clone();
            for value in [&own.access[..43], &own.access["oboa_".len()..], &own.refresh[..43]] {
                browser.cookies.insert(name.clone(), value.to_owned());
                let page = browser.get(&world.client.begin().url).await;
                assert!(!page.text.contains("value=\"allow\""), "{}", page.text);
                heard.page(&page);
            }
            world.client.revoke(&own.refresh).await;
            heard
        })
        .await;
    world.end();
}
