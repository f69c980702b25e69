//! HubSpot: notes.

use serde_json::{Value, json};

use super::{Exchange, case, refusal, run};

fn account(person: &str) -> Value {
    json!({ "active": true, "hub_id": 1, "user_id": person.len(), "user": format!("{person}@example.com") })
}

#[tokio::test]
async fn as_two_people() {
    let to = |id: &str, kind: u64| json!({ "to": { "id": id }, "types": [{ "associationCategory": "HUBSPOT_DEFINED", "associationTypeId": kind }] });
    let note = |associations: Value| {
        Exchange::of("POST /crm/v3/objects/notes")
            .with(json!({
                "properties": { "hs_note_body": "Called.", "hs_timestamp": "2026-12-01T10:00:00Z" }, "associations": associations,
            }))
            .says(201, &[], json!({ "id": "n1", "properties": {} }).to_string())
    };
    let cases = vec![
        case(
            "HubSpot.CreateNote",
            json!({ "text": "Called.", "time": "2026-12-01T10:00:00Z", "contact_id": "51", "deal_id": "9001" }),
            vec![note(json!([to("51", 202), to("9001", 214)]))],
            json!({ "id": "n1" }),
        ),
        case(
            "HubSpot.CreateNote",
            json!({ "text": "Called.", "time": "2026-12-01T10:00:00Z", "deal_id": "9001" }),
            vec![note(json!([to("9001", 214)]))],
            json!({ "id": "n1" }),
        ),
    ];
    let refusals = vec![
        refusal(403, &[], json!({ "category": "MISSING_SCOPES", "message": "m" }), "authorization_required"),
        refusal(404, &[], json!({ "category": "OBJECT_NOT_FOUND", "message": "m" }), "not_found"),
        refusal(429, &[], json!({ "policyName": "TEN_SECONDLY_ROLLING", "message": "m" }), "rate_limited"),
    ];
    run("hubspot", account, cases, refusals).await;
}
