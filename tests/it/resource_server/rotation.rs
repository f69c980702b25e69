//! Keys that change while people work and strangers invent key ids.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt as _;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::idp::{Idp, Signer, with};
use super::{http, modern};
use crate::support::TestObo;

const ROTATIONS: usize = 10;
const PEOPLE: usize = 50;
const STRANGERS: usize = 1000;
/// Requests under way at once.
const AT_ONCE: usize = 64;
/// The least time between two fetches for a key id that is not known.
const PAUSE: Duration = Duration::from_secs(30);

fn forged(claims: &Value, number: usize) -> String {
    let header = json!({ "alg": "ES256", "kid": format!("invented-{number}"), "typ": "at+jwt" });
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", text(&header), text(claims), URL_SAFE_NO_PAD.encode([7; 64]))
}

#[tokio::test]
async fn t18_t21_rotations_in_a_flood_of_invented_key_ids_turn_nobody_away() {
    let mut key = Signer::new("key-0", Algorithm::ES256);
    let idp = Idp::start(&[&key]).await;
    let obo = TestObo::builder().config(&idp.table("corp", "")).start().await;
    let client = http();
    // A GET needs its bearer and a session: 404 is what a good bearer without one gets.
    let show = |token: String| {
        let request = client.get(format!("{}/mcp", obo.base)).header("accept", "text/event-stream").bearer_auth(token);
        async move {
            let answer = request.header("mcp-session-id", "none").send().await.unwrap();
            (answer.status().as_u16(), answer.headers().contains_key("retry-after"))
        }
    };
    assert_eq!(show(key.token(&idp.claims(&obo))).await.0, 404);
    assert_eq!(idp.fetches(), 1);

    let (mut served, mut later, mut refused) = (0, 0, 0);
    for rotation in 1..=ROTATIONS {
        obo.clock.advance(PAUSE);
        let before = idp.fetches();
        // The stranger is first, and uses the one fetch of the next thirty seconds up.
        let claims = idp.claims(&obo);
        assert_eq!(show(forged(&claims, 0)).await.0, 401, "it was looked for");
        assert_eq!(idp.fetches(), before + 1);
        // Only then the issuer rotates.
        obo.clock.advance(Duration::from_secs(1));
        key = Signer::new(&format!("key-{rotation}"), Algorithm::ES256);
        idp.publish(&[&key]);
        let claims = idp.claims(&obo);
        let people: Vec<String> =
            (0..PEOPLE).map(|person| key.token(&with(&claims, "sub", format!("person-{person}")))).collect();
        // People in the midst of the flood. Half of the strangers say that their token is old.
        let each = STRANGERS / PEOPLE;
        let old = with(&claims, "iat", claims["iat"].as_i64().unwrap() - 600);
        let requests = people.iter().enumerate().flat_map(|(person, token)| {
            let strangers = (0..each).map({
                let (claims, old) = (&claims, &old);
                move |n| {
                    let number = 1 + (rotation * PEOPLE + person) * each + n;
                    (false, forged(if n % 2 == 0 { claims } else { old }, number))
                }
            });
            strangers.chain([(true, token.clone())])
        });
        let answers: Vec<(bool, u16, bool)> = futures::stream::iter(requests)
            .map(|(good, token)| {
                let answer = show(token);
                async move {
                    let (status, retry_after) = answer.await;
                    (good, status, retry_after)
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (good, status, retry_after) in answers {
            match (good, status) {
                (true, 404) => served += 1,
                // Not "invalid": the client keeps its token and comes again.
                (true, 503) if retry_after => later += 1,
                (false, 401 | 503) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(idp.fetches(), before + 1, "one fetch in thirty seconds");
        // Who comes again is served, and the withdrawn key's namesakes are not.
        obo.clock.advance(PAUSE);
        let again = futures::future::join_all(people.into_iter().map(&show)).await;
        assert!(again.iter().all(|(status, _)| *status == 404), "{again:?}");
        assert_eq!(idp.fetches(), before + 2);
        served += again.len();
    }
    println!("{served} requests of people served, {later} told to come again, {refused} of strangers refused");
    assert_eq!((served + later, refused), (2 * ROTATIONS * PEOPLE, ROTATIONS * STRANGERS));
    // One at the beginning, and one in each thirty seconds of the twenty.
    assert_eq!(idp.fetches(), 1 + 2 * ROTATIONS);
    // Where the set was asked for after a token came, "unknown" is the truth and is said.
    obo.clock.advance(PAUSE);
    let unknown = modern(&obo, "tools/list", json!({})).bearer_auth(forged(&idp.claims(&obo), 0)).send().await.unwrap();
    assert_eq!(unknown.status(), 401);
}
