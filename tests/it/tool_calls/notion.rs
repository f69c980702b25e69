//! Notion.

use serde_json::{Value, json};

use super::{Exchange, case, refusal, run};

fn account(person: &str) -> Value {
    json!({
        "object": "user", "id": format!("bot-{person}"), "type": "bot",
        "bot": {
            "workspace_id": "w1", "workspace_name": "Acme",
            "owner": { "type": "user", "user": { "id": format!("u-{person}"), "person": { "email": format!("{person}@example.com") } } },
        },
    })
}

#[tokio::test]
async fn as_two_people() {
    const PAGE: &str = "b55c9c91-384d-452b-81db-d1ef79372b75";
    let asked = json!({ "query": "plan", "sort": { "timestamp": "last_edited_time", "direction": "descending" }, "page_size": 20, "start_cursor": "c1" });
    let found = json!({
        "results": [
            {
                "object": "page", "id": PAGE, "url": "https://notion.so/p", "last_edited_time": "2026-11-01T00:00:00Z",
                "parent": { "type": "page_id", "page_id": "p0" },
                "properties": {
                    "Tags": { "type": "multi_select", "multi_select": [] },
                    "Name": { "type": "title", "title": [{ "plain_text": "The " }, { "plain_text": "plan" }] },
                },
            },
            {
                "object": "data_source", "id": "d1", "url": "https://notion.so/d", "title": [{ "plain_text": "Plans" }],
                "parent": { "type": "database_id", "database_id": "d0" }, "properties": { "Name": { "type": "title", "title": {} } },
            },
        ],
        "has_more": true,
        "next_cursor": "c2",
    });
    let cases = vec![
        case(
            "Notion.Search",
            json!({ "query": "plan", "page_token": "c1" }),
            vec![Exchange::of("POST /v1/search").with(asked).answers(found)],
            json!({
                "results": [
                    { "id": PAGE, "type": "page", "title": "The plan", "parent": "p0", "edited_at": "2026-11-01T00:00:00Z", "link": "https://notion.so/p" },
                    { "id": "d1", "type": "data_source", "title": "Plans", "parent": "d0", "edited_at": null, "link": "https://notion.so/d" },
                ],
                "next_page": "c2",
            }),
        ),
        case(
            "Notion.GetPage",
            json!({ "page_id": PAGE, "offset": 2 }),
            vec![
                Exchange::of(&format!("GET /v1/pages/{PAGE}/markdown"))
                    .answers(json!({ "object": "page_markdown", "id": PAGE, "markdown": "# Plan", "truncated": false, "unknown_block_ids": [] })),
            ],
            json!({ "id": PAGE, "text": "Plan", "total": 6, "incomplete": false }),
        ),
        case(
            "Notion.CreatePage",
            json!({ "parent_id": PAGE, "title": "Notes", "text": "- one" }),
            vec![
                Exchange::of("POST /v1/pages")
                    .with(json!({
                        "parent": { "page_id": PAGE }, "properties": { "title": { "title": [{ "text": { "content": "Notes" } }] } },
                        "markdown": "- one",
                    }))
                    .answers(json!({ "object": "page", "id": "n1", "url": "https://notion.so/n" })),
            ],
            json!({ "id": "n1", "link": "https://notion.so/n" }),
        ),
    ];
    let error = |status: u16, code: &str| json!({ "object": "error", "status": status, "code": code, "message": "m" });
    let refusals = vec![
        // There are no scopes; what the app may not do is not the person's to allow.
        refusal(403, &[], error(403, "restricted_resource"), "permission"),
        refusal(404, &[], error(404, "object_not_found"), "not_found"),
        refusal(400, &[], error(400, "validation_error"), "invalid_arguments"),
        refusal(429, &[("retry-after", "2")], error(429, "rate_limited"), "rate_limited"),
    ];
    run("notion", account, cases, refusals).await;
}
