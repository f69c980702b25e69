//! Requests that would have a code without proof of who asked for it.

use super::{Heard, World};
use crate::support::oauth_client::challenge;

pub(super) const FAMILY: &str = "PKCE downgrade";

#[tokio::test]
async fn t6_no_code_is_given_without_a_challenge_and_none_exchanged_without_its_verifier() {
    let mut world = World::of(FAMILY).await;
    let good = challenge(&"v".repeat(43));
    let padded = format!("{good}=");
    let standard = "+/".repeat(21) + "A";
    let spaces = " ".repeat(43);
    let accented = "é".repeat(43);
    for (name, challenge, method) in [
        ("neither challenge nor method", None, None),
        ("no challenge", None, Some("S256")),
        ("an empty challenge", Some(""), Some("S256")),
        ("a short challenge", Some(&good[..42]), Some("S256")),
        ("a padded challenge", Some(&*padded), Some("S256")),
        ("a challenge in base64", Some(&*standard), Some("S256")),
        ("a challenge of spaces", Some(&*spaces), Some("S256")),
        ("a challenge of other letters", Some(&*accented), Some("S256")),
        ("no method", Some(&*good), None),
        ("an empty method", Some(&*good), Some("")),
        ("plain", Some(&*good), Some("plain")),
        ("the method in lower case", Some(&*good), Some("s256")),
        ("the method with a space", Some(&*good), Some("S256 ")),
        ("another method", Some(&*good), Some("S512")),
        ("two methods", Some(&*good), Some("S256 plain")),
    ] {
        world
            .case(&format!("asked with {name}"), async |world| {
                let mut heard = Heard::default();
                let codes = world.codes().await;
                let begun =
                    world.client.begin_with(&[("code_challenge", challenge), ("code_challenge_method", method)]);
                world.sign_alice_in().await;
                let page = world.alice.get(&begun.url).await;
                heard.refused(&page, 400);
                // The form of a good request, sent for this one.
                let mut form = world.alice.get(&world.client.begin().url).await;
                form.text =
                    form.text.replace("action=\"", "x=\"").replace("<form method=\"post\"", "<form action=\"\"");
                form.url = begun.url;
                let pressed = world.alice.submit(&form, &[]).await;
                heard.refused(&pressed, 400);
                assert_eq!(world.codes().await, codes);
                heard
            })
            .await;
    }
    for (name, further) in [
        ("two challenges", format!("&code_challenge={good}")),
        ("two methods in two", "&code_challenge_method=plain".to_owned()),
        ("a second method in disguise", "&code%5Fchallenge_method=plain".to_owned()),
    ] {
        world
            .case(&format!("asked with {name}"), async |world| {
                let mut heard = Heard::default();
                let page = world.alice.get(&format!("{}{further}", world.client.begin().url)).await;
                heard.refused(&page, 400);
                heard
            })
            .await;
    }
    // A verifier that fits the challenge and is none (RFC 7636 §4.1): whoever chose it could have been made to.
    for (name, verifier) in [
        ("too short", "v".repeat(42)),
        ("too long", "v".repeat(129)),
        ("of another alphabet", "v!".repeat(30)),
        ("with a space", format!("{} v", "v".repeat(43))),
        ("with a line break", format!("{}\n", "v".repeat(43))),
        ("with a zero byte", format!("{}\0", "v".repeat(43))),
        ("of other letters", "é".repeat(43)),
    ] {
        world
            .case(&format!("proven with a verifier {name}"), async |world| {
                let mut heard = Heard::default();
                world.sign_alice_in().await;
                let begun = world.client.begin_with(&[("code_challenge", Some(&challenge(&verifier)))]);
                let code = world.client.code(&mut world.alice, &begun).await;
                heard.error(&world.client.exchange(&code, &verifier).await, "invalid_grant");
                heard
            })
            .await;
    }
    for (name, change) in [("no verifier", None), ("an empty verifier", Some(""))] {
        world
            .case(&format!("proven with {name}"), async |world| {
                let mut heard = Heard::default();
                let (code, begun) = world.stolen().await;
                let sent = world.client.exchange_with(&code, &begun.verifier, &[("code_verifier", change)]).await;
                heard.error(&sent, "invalid_request");
                heard
            })
            .await;
    }
    world
        .case("proven with the challenge that was seen in the address", async |world| {
            let mut heard = Heard::default();
            let (code, begun) = world.stolen().await;
            heard.error(&world.client.exchange(&code, &challenge(&begun.verifier)).await, "invalid_grant");
            heard
        })
        .await;
    world
        .case("a challenge that somebody else took over", async |world| {
            // Mallory asks with alice's challenge, and hopes that alice's client will exchange the code for her.
            let mut heard = Heard::default();
            let (code, begun) = world.stolen().await;
            let replayed = world.evil.begin_with(&[("code_challenge", Some(&challenge(&begun.verifier)))]);
            let hers = world.evil.code(&mut world.mallory, &replayed).await;
            heard.error(&world.client.exchange(&hers, &begun.verifier).await, "invalid_grant");
            heard.error(&world.evil.exchange(&code, &begun.verifier).await, "invalid_grant");
            heard
        })
        .await;
    for (name, kind) in [("the implicit flow", "token"), ("the hybrid flow", "code token"), ("an ID token", "id_token")]
    {
        world
            .case(&format!("asked for {name}"), async |world| {
                let mut heard = Heard::default();
                world.sign_alice_in().await;
                let page = world.alice.get(&world.client.begin_with(&[("response_type", Some(kind))]).url).await;
                heard.refused(&page, 400);
                heard
            })
            .await;
    }
    world.end();
}
