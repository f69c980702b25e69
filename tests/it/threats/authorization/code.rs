//! Codes in the wrong hands, or in the right ones twice.

use std::time::Duration;

use obo::clock::Clock as _;

use super::{Bend, Heard, World};
use crate::support::OauthClient;
use crate::support::oauth_client::{Answer, Tokens, challenge, listed, parameters};

pub(super) const FAMILY: &str = "code injection";

/// A parameter of a form, and what stands there; `None`: it is left out.
type Change = (&'static str, Option<String>);

/// What somebody sends with a code that they have stolen, all else being as it should.
fn wrong_forms(world: &World, begun_verifier: &str) -> Vec<(&'static str, Vec<Change>, &'static str)> {
    let other = |name, value: &str, error| (name, value.to_owned(), error);
    let mut forms = Vec::new();
    for (name, client_id, error) in [
        other("another client", &world.evil.id, "invalid_grant"),
        other("a document of somebody", "https://evil.example/client.json", "invalid_grant"),
        other("an unknown client", "notes", "invalid_client"),
        other("a client id in upper case", &world.client.id.to_uppercase(), "invalid_client"),
        other("a client id with a space", &format!("{} ", world.client.id), "invalid_client"),
        other("an empty client id", "", "invalid_request"),
    ] {
        forms.push((name, vec![("client_id", Some(client_id))], error));
    }
    forms.push(("no client id", vec![("client_id", None)], "invalid_request"));
    for (name, redirect_uri) in [
        ("another port", "http://127.0.0.1:4712/callback"),
        ("no port", "http://127.0.0.1/callback"),
        ("another path", "http://127.0.0.1:4711/callback2"),
        ("a slash more", "http://127.0.0.1:4711/callback/"),
        ("a query more", "http://127.0.0.1:4711/callback?"),
        ("localhost by name", "http://localhost:4711/callback"),
        ("the other loopback", "http://[::1]:4711/callback"),
        ("https in its place", "https://127.0.0.1:4711/callback"),
        ("a percent-encoded letter", "http://127.0.0.1:4711/%63allback"),
        ("the attacker's address", "https://evil.example/callback"),
        ("a fragment", "http://127.0.0.1:4711/callback#"),
    ] {
        forms.push((name, vec![("redirect_uri", Some(redirect_uri.to_owned()))], "invalid_grant"));
    }
    // OAuth 2.1 has no redirect_uri here: without it the verifier decides.
    for (name, redirect_uri) in [("no redirect_uri", None), ("an empty redirect_uri", Some(String::new()))] {
        let verifier = ("code_verifier", Some("x".repeat(64)));
        forms.push((name, vec![("redirect_uri", redirect_uri), verifier], "invalid_grant"));
    }
    for (name, verifier) in [
        ("a verifier that was made up", "x".repeat(64)),
        ("the challenge as verifier", challenge(begun_verifier)),
        ("the verifier and a letter", format!("{begun_verifier}x")),
        ("the verifier in upper case", begun_verifier.to_uppercase()),
    ] {
        forms.push((name, vec![("code_verifier", Some(verifier))], "invalid_grant"));
    }
    for (name, kind, error) in [
        ("grant_type in upper case", "AUTHORIZATION_CODE", "unsupported_grant_type"),
        ("the password grant", "password", "unsupported_grant_type"),
        ("the implicit grant", "implicit", "unsupported_grant_type"),
        ("client credentials", "client_credentials", "unsupported_grant_type"),
        ("token exchange", "urn:ietf:params:oauth:grant-type:token-exchange", "unsupported_grant_type"),
        ("a device code", "urn:ietf:params:oauth:grant-type:device_code", "unsupported_grant_type"),
        ("a refresh that has none", "refresh_token", "invalid_request"),
    ] {
        forms.push((name, vec![("grant_type", Some(kind.to_owned()))], error));
    }
    for secret in ["client_secret", "client_assertion"] {
        forms.push((secret, vec![(secret, Some("x".to_owned()))], "invalid_client"));
    }
    forms
}

#[tokio::test]
async fn t6_a_stolen_code_is_worth_nothing() {
    let mut world = World::of(FAMILY).await;
    let names: Vec<&str> = wrong_forms(&world, "").into_iter().map(|(name, ..)| name).collect();
    for (number, name) in names.into_iter().enumerate() {
        world
            .case(name, async |world| {
                let mut heard = Heard::default();
                let (code, begun) = world.stolen().await;
                let (_, changes, error) = wrong_forms(world, &begun.verifier).swap_remove(number);
                let changes: Vec<(&str, Option<&str>)> =
                    changes.iter().map(|(name, value)| (*name, value.as_deref())).collect();
                heard.error(&world.client.exchange_with(&code, &begun.verifier, &changes).await, error);
                // Who has shown the code with something wrong has used it up, for everybody.
                if error == "invalid_grant" {
                    heard.error(&world.client.exchange(&code, &begun.verifier).await, "invalid_grant");
                }
                heard
            })
            .await;
    }
    for name in ["client_id", "code", "code_verifier", "redirect_uri", "grant_type"] {
        world
            .case(&format!("{name} twice"), async |world| {
                let mut heard = Heard::default();
                let (code, begun) = world.stolen().await;
                let form = [
                    ("grant_type", "authorization_code"),
                    ("client_id", &world.client.id),
                    ("code", &code),
                    ("redirect_uri", &world.client.redirect_uri),
                    ("code_verifier", &begun.verifier),
                    (name, "other"),
                ];
                heard.error(&world.client.post("/oauth/token", &form).await, "invalid_request");
                heard
            })
            .await;
    }
    world
        .case("a client that is registered with the same address", async |world| {
            let mut heard = Heard::default();
            let same = OauthClient::register(&world.obo.base, "Notes", &world.client.redirect_uri).await;
            let (code, begun) = world.stolen().await;
            heard.error(&same.exchange(&code, &begun.verifier).await, "invalid_grant");
            heard
        })
        .await;
    let bend: [(&str, Bend); 7] = [
        ("cut off", |code| code[..42].to_owned()),
        ("with a letter more", |code| format!("{code}A")),
        ("in lower case", |code| code.to_lowercase()),
        ("with a space", |code| format!("{code} ")),
        ("made up", |_| "A".repeat(43)),
        ("very long", |_| "A".repeat(10_000)),
        ("another letter at each place", |code| code.to_owned()),
    ];
    for (name, bend) in bend {
        world
            .case(&format!("a code {name}"), async |world| {
                let mut heard = Heard::default();
                let (code, begun) = world.stolen().await;
                let places: Vec<usize> = if bend(&code) == code { (0..code.len()).collect() } else { Vec::new() };
                let bent = places.iter().map(|at| {
                    let mut bytes = code.clone().into_bytes();
                    bytes[*at] = if bytes[*at] == b'A' { b'B' } else { b'A' };
                    String::from_utf8(bytes).unwrap()
                });
                let mut all: Vec<String> = bent.collect();
                if all.is_empty() {
                    all.push(bend(&code));
                }
                for bent in all {
                    heard.error(&world.client.exchange(&bent, &begun.verifier).await, "invalid_grant");
                }
                heard
            })
            .await;
    }
    world.end_of_thefts().await;
}

impl World {
    async fn end_of_thefts(mut self) {
        self.case("in mallory's own sign-in at the same client", async |world| {
            let mut heard = Heard::default();
            let (code, _) = world.stolen().await;
            let hers = world.client.begin();
            world.client.code(&mut world.mallory, &hers).await;
            heard.error(&world.client.exchange(&code, &hers.verifier).await, "invalid_grant");
            heard
        })
        .await;
        self.case("mallory's code in alice's sign-in", async |world| {
            let mut heard = Heard::default();
            let (_, alices) = world.stolen().await;
            let hers = world.client.begin();
            let code = world.client.code(&mut world.mallory, &hers).await;
            heard.error(&world.client.exchange(&code, &alices.verifier).await, "invalid_grant");
            heard
        })
        .await;
        self.case("of one sign-in in another of the same person", async |world| {
            let mut heard = Heard::default();
            let (code, _) = world.stolen().await;
            let (_, other) = world.stolen().await;
            heard.error(&world.client.exchange(&code, &other.verifier).await, "invalid_grant");
            heard
        })
        .await;
        self.case("after the client has used it", async |world| {
            let mut heard = Heard::default();
            let (code, begun) = world.stolen().await;
            let own = world.client.exchange(&code, &begun.verifier).await;
            heard.answer(&own);
            heard.error(&world.evil.exchange(&code, &begun.verifier).await, "invalid_grant");
            // It was in two hands: the sign-in is over.
            assert_eq!(listed(&world.obo.base, &own.tokens().access).await, 401);
            heard
        })
        .await;
        self.case("with everything right, after the client", async |world| {
            let mut heard = Heard::default();
            let (code, begun) = world.stolen().await;
            heard.answer(&world.client.exchange(&code, &begun.verifier).await);
            heard.error(&world.client.exchange(&code, &begun.verifier).await, "invalid_grant");
            heard
        })
        .await;
        self.case("with everything right, after the client has renewed its tokens", async |world| {
            let mut heard = Heard::default();
            let (code, begun) = world.stolen().await;
            let own = world.client.exchange(&code, &begun.verifier).await.tokens();
            let renewed = world.client.refresh(&own.refresh).await;
            heard.answer(&renewed);
            world.obo.clock.advance(Duration::from_secs(9 * 60));
            heard.error(&world.client.exchange(&code, &begun.verifier).await, "invalid_grant");
            heard
        })
        .await;
        for (name, seconds) in [("five minutes later", 300), ("an hour later", 3600)] {
            self.case(name, async |world| {
                let mut heard = Heard::default();
                let (code, begun) = world.stolen().await;
                world.obo.clock.advance(Duration::from_secs(seconds));
                if seconds > 600 {
                    world.obo.app.store.prune(world.obo.clock.now()).await.unwrap();
                }
                heard.error(&world.client.exchange(&code, &begun.verifier).await, "invalid_grant");
                heard
            })
            .await;
        }
        self.case("a hundred times at once", async |world| {
            let (code, begun) = world.stolen().await;
            let exchange = |_| {
                let (client, code, verifier) = (world.client.clone(), code.clone(), begun.verifier.clone());
                tokio::spawn(async move { client.exchange(&code, &verifier).await })
            };
            at_most_one(futures::future::join_all((0..100).map(exchange)).await)
        })
        .await;
        self.case("by a thief without its verifier, at once with the client", async |world| {
            let (code, begun) = world.stolen().await;
            let exchange = |number: usize| {
                let (client, code) = (world.client.clone(), code.clone());
                let verifier = if number.is_multiple_of(2) { begun.verifier.clone() } else { "x".repeat(43) };
                tokio::spawn(async move { client.exchange(&code, &verifier).await })
            };
            at_most_one(futures::future::join_all((0..20).map(exchange)).await)
        })
        .await;
        for (name, path, field) in [
            ("as a refresh token", "/oauth/token", "refresh_token"),
            ("given back by somebody", "/oauth/revoke", "token"),
        ] {
            self.case(name, async |world| {
                let mut heard = Heard::default();
                let (code, _) = world.stolen().await;
                for id in [&world.client.id, &world.evil.id] {
                    let form = [("client_id", &**id), ("grant_type", "refresh_token"), (field, &code)];
                    let answer = world.client.post(path, &form).await;
                    assert!(path == "/oauth/revoke" || answer.error() == "invalid_grant", "{}", answer.text);
                    heard.answer(&answer);
                }
                heard
            })
            .await;
        }
        self.case("in the address of the token endpoint", async |world| {
            let mut heard = Heard::default();
            let (code, begun) = world.stolen().await;
            let path = format!("/oauth/token?code={code}&code_verifier={}", begun.verifier);
            let form = [("grant_type", "authorization_code"), ("client_id", &world.client.id)];
            heard.error(&world.client.post(&path, &form).await, "invalid_request");
            heard
        })
        .await;
        self.case("for a decision that was revoked before", async |world| {
            let mut heard = Heard::default();
            let (code, begun) = world.stolen().await;
            let alice = world.obo.app.obo.identity().tokens().list(None).await.unwrap();
            let alice = alice.into_iter().find(|token| token.person.user.as_str() == "alice").unwrap().person;
            world.obo.app.obo.identity().clients().revoke_all(&alice).await.unwrap();
            heard.error(&world.client.exchange(&code, &begun.verifier).await, "invalid_grant");
            heard
        })
        .await;
        self.case("that answers a request nobody sent", async |world| {
            // The browser is led to the client's address with mallory's code: the client knows neither state nor verifier.
            let mut heard = Heard::default();
            let hers = world.client.begin();
            let back = crate::support::oauth_client::allow(&mut world.mallory, &hers.url).await;
            let back = parameters(&back);
            let (_, alices) = world.stolen().await;
            assert_ne!(back["state"], alices.state);
            heard.error(&world.client.exchange(&back["code"], &alices.verifier).await, "invalid_grant");
            heard
        })
        .await;
        self.end();
    }
}

/// Of all that was answered, at most one gave tokens; what they are worth is for the judge.
fn at_most_one(answers: Vec<Result<Answer, tokio::task::JoinError>>) -> Heard {
    let mut heard = Heard::default();
    let mut given: Vec<Tokens> = Vec::new();
    for answer in answers {
        let answer = answer.unwrap();
        if answer.status == 200 {
            given.push(answer.tokens());
            heard.answer(&answer);
        } else {
            heard.error(&answer, "invalid_grant");
        }
    }
    assert!(given.len() <= 1, "{} got tokens", given.len());
    heard
}
