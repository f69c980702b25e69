//! Slack.

use serde_json::{Value, json};

use super::{Exchange, case, refusal, run};

fn account(person: &str) -> Value {
    json!({ "ok": true, "team": "Acme", "team_id": "T1", "user": person, "user_id": format!("U-{person}") })
}

#[tokio::test]
async fn as_two_people() {
    let cases = vec![
        case(
            "Slack.GetThread",
            json!({ "channel": "C1", "ts": "1718900000.123456", "page_token": "p2" }),
            vec![
                Exchange::of("GET /api/conversations.replies?channel=C1&cursor=p2&limit=50&ts=1718900000.123456").answers(json!({
                    "ok": true,
                    "messages": [
                        { "ts": "1718900000.123456", "user": "U1", "text": "x".repeat(5000), "blocks": [], "reactions": [{ "name": "eyes", "count": 2, "users": ["U1", "U2"] }] },
                        { "ts": "1718900001.000000", "bot_id": "B1" },
                    ],
                    "response_metadata": { "next_cursor": "" },
                })),
            ],
            json!({
                "messages": [
                    { "ts": "1718900000.123456", "user": "U1", "text": "x".repeat(4000), "reactions": [{ "name": "eyes", "count": 2 }] },
                    { "ts": "1718900001.000000", "user": "B1", "text": null, "reactions": [] },
                ],
                "next_page": null,
            }),
        ),
        case(
            "Slack.SearchMessages",
            json!({ "query": "in:#eng release", "max_results": 5 }),
            vec![
                Exchange::of("GET /api/search.messages?count=5&page=1&query=in:#eng release&sort=timestamp").answers(json!({
                    "ok": true,
                    "messages": {
                        "total": 7,
                        "paging": { "pages": 2 },
                        "matches": [{
                            "channel": { "id": "C1", "name": "eng" }, "user": "U1", "username": "ana", "ts": "1.2", "text": "out",
                            "permalink": "https://acme.slack.com/archives/C1/p12", "score": 1,
                        }],
                    },
                })),
            ],
            json!({
                "total": 7,
                "pages": 2,
                "messages": [{
                    "channel": "C1", "channel_name": "eng", "user": "U1", "user_name": "ana", "ts": "1.2", "text": "out",
                    "link": "https://acme.slack.com/archives/C1/p12",
                }],
            }),
        ),
        case(
            "Slack.ScheduleMessage",
            json!({ "channel": "C1", "text": "Soon.", "post_at": "2026-12-01T10:00:00Z" }),
            vec![
                Exchange::of("POST /api/chat.scheduleMessage")
                    .with(json!({ "channel": "C1", "text": "Soon.", "post_at": 1_796_119_200 }))
                    .answers(json!({ "ok": true, "channel": "C1", "scheduled_message_id": "Q1", "post_at": 1_796_119_200 })),
            ],
            json!({ "channel": "C1", "scheduled_message_id": "Q1", "post_at": "2026-12-01T10:00:00Z" }),
        ),
        case(
            "Slack.AddReaction",
            json!({ "channel": "C1", "ts": "1.2", "emoji": "eyes" }),
            vec![
                Exchange::of("POST /api/reactions.add")
                    .with(json!({ "channel": "C1", "timestamp": "1.2", "name": "eyes" }))
                    .answers(json!({ "ok": true })),
            ],
            json!({ "added": true }),
        ),
        // Twice is no more than once.
        case(
            "Slack.AddReaction",
            json!({ "channel": "C1", "ts": "1.2", "emoji": "eyes" }),
            vec![
                Exchange::of("POST /api/reactions.add")
                    .with(json!({ "channel": "C1", "timestamp": "1.2", "name": "eyes" }))
                    .answers(json!({ "ok": false, "error": "already_reacted" })),
            ],
            json!({ "added": true }),
        ),
    ];
    let refusals = vec![
        refusal(200, &[], json!({ "ok": false, "error": "missing_scope", "needed": "x" }), "authorization_required"),
        refusal(200, &[], json!({ "ok": false, "error": "channel_not_found" }), "not_found"),
        refusal(200, &[], json!({ "ok": false, "error": "time_in_past" }), "invalid_arguments"),
        refusal(200, &[], json!({ "ok": false, "error": "not_in_channel" }), "permission"),
        refusal(429, &[("retry-after", "30")], json!({ "ok": false, "error": "ratelimited" }), "rate_limited"),
    ];
    run("slack", account, cases, refusals).await;
}
