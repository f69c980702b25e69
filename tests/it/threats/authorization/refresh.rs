//! Refresh tokens that come back, and from whom.

use std::time::Duration;

use super::{Heard, World};
use crate::support::oauth_client::{Tokens, listed};

pub(super) const FAMILY: &str = "refresh reuse";

/// What becomes of the person's own sign-in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It is over: the token was in two hands.
    Over,
    /// It goes on: nothing of it was shown.
    GoesOn,
}

impl World {
    async fn signed_in(&mut self) -> Tokens {
        self.sign_alice_in().await;
        self.client.sign_in(&mut self.alice).await
    }

    /// Alice's client is signed in, something is tried, and it is what it must be.
    async fn on_a_sign_in(&mut self, name: &str, then: Then, attack: impl AsyncFnOnce(&mut Self, &Tokens) -> Heard) {
        self.case(name, async |world| {
            let own = world.signed_in().await;
            let mut heard = attack(world, &own).await;
            let expected = if then == Then::Over { 401 } else { 200 };
            assert_eq!(listed(&world.obo.base, &own.access).await, expected, "{name}");
            if then == Then::GoesOn {
                let renewed = world.client.refresh(&own.refresh).await;
                heard.answer(&renewed);
                world.client.revoke(&renewed.tokens().refresh).await;
            }
            heard
        })
        .await;
    }
}

#[tokio::test]
async fn t6_a_refresh_token_that_comes_back_ends_the_sign_in_for_both() {
    let mut world = World::of(FAMILY).await;
    world
        .on_a_sign_in("the thief first, then the person's client", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            let thief = world.client.refresh(&own.refresh).await;
            heard.answer(&thief);
            world.obo.clock.advance(Duration::from_secs(10));
            heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
            heard.error(&world.client.refresh(&thief.tokens().refresh).await, "invalid_grant");
            heard
        })
        .await;
    world
        .on_a_sign_in("both at once, and then both with what they got", Then::Over, async |world, own| {
            // In the ten seconds in which a lost answer can be had again, a thief gets no other one.
            let mut heard = Heard::default();
            let (thief, client) = tokio::join!(world.client.refresh(&own.refresh), world.client.refresh(&own.refresh));
            heard.answer(&thief);
            heard.answer(&client);
            assert_eq!(thief.tokens().refresh, client.tokens().refresh);
            let next = world.client.refresh(&client.tokens().refresh).await;
            heard.answer(&next);
            heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
            heard.error(&world.client.refresh(&next.tokens().refresh).await, "invalid_grant");
            heard
        })
        .await;
    world
        .on_a_sign_in("the person's client first, then the thief", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            let renewed = world.client.refresh(&own.refresh).await;
            heard.answer(&renewed);
            world.obo.clock.advance(Duration::from_secs(10));
            heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
            heard.error(&world.client.refresh(&renewed.tokens().refresh).await, "invalid_grant");
            heard
        })
        .await;
    world
        .on_a_sign_in("one that is two generations old", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            let second = world.client.refresh(&own.refresh).await.tokens();
            heard.answer(&world.client.refresh(&second.refresh).await);
            heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
            heard
        })
        .await;
    world
        .on_a_sign_in("an old one weeks later", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            heard.answer(&world.client.refresh(&own.refresh).await);
            world.obo.clock.advance(Duration::from_secs(20 * 24 * 3600));
            heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
            heard
        })
        .await;
    for (name, id) in [
        ("the newest one by another client", "evil"),
        ("the newest one in the name of a document", "https://evil.example/client.json"),
    ] {
        world
            .on_a_sign_in(name, Then::Over, async |world, own| {
                let mut heard = Heard::default();
                let id = if id == "evil" { world.evil.id.clone() } else { id.to_owned() };
                let form = [("grant_type", "refresh_token"), ("client_id", &*id), ("refresh_token", &own.refresh)];
                heard.error(&world.client.post("/oauth/token", &form).await, "invalid_grant");
                heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
                heard
            })
            .await;
    }
    world
        .on_a_sign_in("an old one by another client", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            heard.answer(&world.client.refresh(&own.refresh).await);
            heard.error(&world.evil.refresh(&own.refresh).await, "invalid_grant");
            heard
        })
        .await;
    world
        .on_a_sign_in("twenty at once", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            let refresh = |_| {
                let (client, token) = (world.client.clone(), own.refresh.clone());
                tokio::spawn(async move { client.refresh(&token).await })
            };
            let mut given = std::collections::BTreeSet::new();
            for answer in futures::future::join_all((0..20).map(refresh)).await {
                let answer = answer.unwrap();
                if answer.status == 200 {
                    given.insert(answer.tokens().refresh);
                }
                heard.answer(&answer);
            }
            assert_eq!(given.len(), 1, "one successor, however often it is asked for");
            let mut given = given.into_iter();
            world.client.revoke(&given.next().unwrap()).await;
            heard
        })
        .await;
    world
        .on_a_sign_in("one whose secret was changed at each place", Then::Over, async |world, own| {
            // The first ends the sign-in; from then on there is nothing to end.
            let mut heard = Heard::default();
            for at in ("obor_".len() + 22)..own.refresh.len() {
                let mut bytes = own.refresh.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
                let bent = String::from_utf8(bytes).unwrap();
                heard.error(&world.client.refresh(&bent).await, "invalid_grant");
            }
            heard
        })
        .await;
    world
        .on_a_sign_in("one whose sign-in was changed at each place", Then::GoesOn, async |world, own| {
            let mut heard = Heard::default();
            for at in 0..("obor_".len() + 21) {
                let mut bytes = own.refresh.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
                let bent = String::from_utf8(bytes).unwrap();
                heard.error(&world.client.refresh(&bent).await, "invalid_grant");
            }
            heard
        })
        .await;
    type Of = fn(&Tokens) -> String;
    let bend: [(&str, Of); 8] = [
        ("an access token", |own| own.access.clone()),
        ("an access token that begins like a refresh token", |own| own.access.replace("oboa_", "obor_")),
        ("one without its beginning", |own| own.refresh.replace("obor_", "")),
        ("one that begins twice", |own| format!("obor_{}", own.refresh)),
        ("one that is cut off", |own| own.refresh[..own.refresh.len() - 1].to_owned()),
        ("one with a letter more", |own| format!("{}A", own.refresh)),
        ("one with padding", |own| format!("{}=", own.refresh)),
        ("one that was made up", |_| format!("obor_{}", "A".repeat(64))),
    ];
    for (name, bend) in bend {
        world
            .on_a_sign_in(name, Then::GoesOn, async |world, own| {
                let mut heard = Heard::default();
                heard.error(&world.client.refresh(&bend(own)).await, "invalid_grant");
                heard
            })
            .await;
    }
    world
        .on_a_sign_in("a token twice in one form", Then::GoesOn, async |world, own| {
            let mut heard = Heard::default();
            let form = [
                ("grant_type", "refresh_token"),
                ("client_id", &*world.client.id),
                ("refresh_token", &own.refresh),
                ("refresh_token", "other"),
            ];
            heard.error(&world.client.post("/oauth/token", &form).await, "invalid_request");
            heard
        })
        .await;
    for name in ["given back by another client", "an access token given back by another client"] {
        world
            .on_a_sign_in(name, Then::GoesOn, async |world, own| {
                let mut heard = Heard::default();
                let token = if name.starts_with("an access") { &own.access } else { &own.refresh };
                let answer = world.evil.revoke(token).await;
                assert_eq!((answer.status, answer.text.as_str()), (200, "{}"));
                heard.answer(&answer);
                heard
            })
            .await;
    }
    world
        .on_a_sign_in("after it was given back", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            heard.answer(&world.client.revoke(&own.refresh).await);
            heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
            heard.error(&world.evil.refresh(&own.refresh).await, "invalid_grant");
            heard
        })
        .await;
    world
        .on_a_sign_in("an old one given back", Then::Over, async |world, own| {
            // Whoever has it ends what it stood for, and nobody gains.
            let mut heard = Heard::default();
            let renewed = world.client.refresh(&own.refresh).await;
            heard.answer(&renewed);
            heard.answer(&world.client.revoke(&own.refresh).await);
            heard.error(&world.client.refresh(&renewed.tokens().refresh).await, "invalid_grant");
            heard
        })
        .await;
    world
        .on_a_sign_in("after thirty days", Then::Over, async |world, own| {
            let mut heard = Heard::default();
            world.obo.clock.advance(Duration::from_secs(30 * 24 * 3600));
            heard.error(&world.client.refresh(&own.refresh).await, "invalid_grant");
            let alices = world.obo.app.obo.identity().clients().list(None).await.unwrap();
            for session in alices {
                world.obo.app.obo.identity().clients().revoke(None, &session.id).await.unwrap();
            }
            world.alices_token = world.obo.token_for("alice").await;
            heard
        })
        .await;
    world
        .case("for more than was allowed", async |world| {
            let mut heard = Heard::default();
            let own = world.signed_in().await;
            let form = [
                ("grant_type", "refresh_token"),
                ("client_id", &*world.client.id),
                ("refresh_token", &own.refresh),
                ("scope", "mcp admin offline_access"),
            ];
            let renewed = world.client.post("/oauth/token", &form).await;
            assert_eq!(renewed.json()["scope"], "mcp");
            world.client.revoke(&renewed.tokens().refresh).await;
            heard.answer(&renewed);
            heard
        })
        .await;
    world.end();
}
