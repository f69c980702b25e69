//! T16: an access token that comes back in an answer goes no further.

use serde_json::json;

use super::hygiene::Needles;
use super::mirror::{Manner, Mirror, Place};
use crate::provider::{Encoding, Fault};
use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::{TestObo, mail};

#[tokio::test]
async fn t16_a_mirrored_token_is_withheld_in_every_form() {
    let mirror = Mirror::start().await;
    let obo = mirror.obo().await;
    assert_eq!(mirror.connect(&obo, "alice").await.status, 200);
    let alice = obo.client("alice").await;
    value_of(&alice.call("Mirror_Read", json!({})).await);
    let needles = Needles::of(mirror.tokens());
    let mut mirrored = 0;
    for tool in ["Mirror_Read", "Mirror_Write"] {
        for status in [200, 201, 400, 403, 404, 409, 429, 500, 503] {
            for encoding in Encoding::ALL {
                for place in [Place::Value, Place::Key, Place::Header] {
                    mirror.behave(Manner::Echo { status, encoding, place });
                    let answer = alice.call(tool, json!({})).await;
                    mirrored += 1;
                    let what = format!("{tool} {status} {encoding:?} {place:?}: {answer}");
                    assert_eq!(code_of(&answer).as_deref(), Some("provider_error"), "{what}");
                    assert_eq!(needles.in_bytes(answer.to_string().as_bytes()), None, "{what}");
                    assert!(answer.to_string().contains("was withheld"), "{what}");
                }
            }
        }
    }
    let blocked = obo.app.audit.read(|r| r.note.as_deref() == Some("leak.blocked")).await.unwrap();
    assert_eq!(blocked.len(), mirrored);
    assert!(blocked.iter().all(|record| record.outcome.as_deref() == Some("provider_error")));
    mirror.behave(Manner::Polite);
    value_of(&alice.call("Mirror_Read", json!({})).await);
    assert_eq!(needles.in_bytes(&obo.data_bytes()), None);
}

#[tokio::test]
async fn t16_a_refusal_that_mirrors_the_token_is_a_refusal_and_no_more() {
    let mirror = Mirror::start().await;
    let obo = mirror.obo().await;
    assert_eq!(mirror.connect(&obo, "alice").await.status, 200);
    let alice = obo.client("alice").await;
    let needles = Needles::of(mirror.tokens());
    for encoding in Encoding::ALL {
        mirror.behave(Manner::Echo { status: 401, encoding, place: Place::Value });
        let answer = alice.call("Mirror_Read", json!({})).await;
        assert!(link_of(&answer).is_some(), "there is no refresh token, so the person is asked: {answer}");
        assert_eq!(needles.in_bytes(answer.to_string().as_bytes()), None, "{answer}");
    }
}

#[tokio::test]
async fn t16_an_account_named_after_its_token_is_not_connected() {
    for encoding in Encoding::ALL {
        let mirror = Mirror::start().await;
        mirror.name_the_account_after_its_token(encoding);
        let obo = mirror.obo().await;
        let page = mirror.connect(&obo, "alice").await;
        let needles = Needles::of(mirror.tokens());
        assert_eq!(needles.in_bytes(page.text.as_bytes()), None, "{encoding:?} on the page");
        let records = obo.app.audit.read(|_| true).await.unwrap();
        let text = serde_json::to_string(&records).unwrap();
        assert_eq!(needles.in_bytes(text.as_bytes()), None, "{encoding:?} in the audit");
        assert_eq!(page.status, 502, "{encoding:?}: {}", page.text);
    }
}

#[tokio::test]
async fn t16_the_services_of_the_sandbox_mirror_in_vain() {
    let obo = TestObo::start().await;
    obo.connect("alice", "alice@example.com", "Google_SendEmail", mail("bob@example.com", "x")).await;
    let alice = obo.client("alice").await;
    let needles = Needles::of(obo.provider.secrets());
    for encoding in Encoding::ALL {
        obo.provider.fault("/gmail/v1/users/me/messages/send", 1, Fault::EchoAuthorization(encoding));
        let answer = alice.call("Google_SendEmail", mail("bob@example.com", "x")).await;
        assert_eq!(code_of(&answer).as_deref(), Some("provider_error"), "{answer}");
        assert_eq!(needles.in_bytes(answer.to_string().as_bytes()), None, "{answer}");
    }
    let blocked = obo.app.audit.read(|r| r.note.as_deref() == Some("leak.blocked")).await.unwrap();
    assert_eq!(blocked.len(), Encoding::ALL.len());
}
