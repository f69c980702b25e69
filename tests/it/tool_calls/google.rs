//! Gmail, Google Calendar and Google Drive.

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Exchange, assert_fails, case, obo_with, refusal, run};

const MAIL: &str = "/gmail/v1/users/me";
const EVENT: &str = "/calendar/v3/calendars/primary/events/e1";
const FILE: &str = "/drive/v3/files/f1";
const ABOUT_FILE: &str = "fields=id,name,mimeType,size,modifiedTime,webViewLink&supportsAllDrives=true";

fn account(person: &str) -> Value {
    json!({ "sub": format!("1-{person}"), "email": format!("{person}@example.com") })
}

fn header(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

/// The message that a reply answers.
fn answered(headers: &[(&str, &str)], labels: &[&str]) -> Exchange {
    let wanted = ["From", "Reply-To", "To", "Cc", "Subject", "Message-ID", "References", "Delivered-To"];
    let wanted = wanted.map(|name| format!("metadataHeaders={name}")).join("&");
    let headers: Vec<Value> = headers.iter().map(|(name, value)| header(name, value)).collect();
    Exchange::of(&format!("GET {MAIL}/messages/m1?format=metadata&{wanted}"))
        .answers(json!({ "id": "m1", "threadId": "t1", "labelIds": labels, "payload": { "headers": headers } }))
}

fn sends(raw: Value) -> Exchange {
    Exchange::of(&format!("POST {MAIL}/messages/send"))
        .with(json!({ "threadId": "t1", "raw": raw }))
        .answers(json!({ "id": "m2", "threadId": "t1", "labelIds": ["SENT"] }))
}

fn about(mime_type: &str, size: Option<&str>) -> Exchange {
    Exchange::of(&format!("GET {FILE}?{ABOUT_FILE}")).answers(json!({
        "id": "f1", "name": "Plan", "mimeType": mime_type, "size": size, "modifiedTime": "2026-11-01T00:00:00Z",
        "webViewLink": "https://drive.example/f1",
    }))
}

fn read(mime_type: &str, text: &str, total: usize) -> Value {
    json!({
        "id": "f1", "name": "Plan", "mime_type": mime_type, "modified_at": "2026-11-01T00:00:00Z",
        "link": "https://drive.example/f1", "text": text, "total": total,
    })
}

fn event(attendees: Value) -> Value {
    json!({
        "id": "e1", "etag": "\"7\"", "htmlLink": "https://calendar.example/e1", "status": "confirmed", "summary": "Review",
        "start": { "date": "2026-12-01" }, "end": { "date": "2026-12-02" }, "attendees": attendees,
    })
}

#[tokio::test]
async fn as_two_people() {
    let plain = "Grüße, Ana?>".repeat(1000);
    let html = "<style>p { color: red }</style><p>Hello&nbsp;<b>Bob</b></p>\n<script>x()</script>";
    let part = |kind: &str, data: String| json!({ "mimeType": kind, "filename": "", "body": { "data": data } });
    let attachment =
        json!({ "mimeType": "application/pdf", "filename": "plan.pdf", "body": { "size": 12, "attachmentId": "a" } });
    let thread = json!({
        "id": "t1",
        "messages": [
            {
                "id": "m1",
                "payload": {
                    "mimeType": "multipart/mixed",
                    "headers": [header("FROM", "Ana <ana@example.com>"), header("Subject", "Plan")],
                    "parts": [
                        { "mimeType": "multipart/alternative", "parts": [
                            part("text/html", URL_SAFE.encode("<p>not this</p>")),
                            part("text/plain", URL_SAFE.encode(&plain)),
                        ] },
                        attachment,
                    ],
                },
            },
            { "id": "m2", "payload": part("text/html", URL_SAFE_NO_PAD.encode(html)) },
            { "id": "m3", "payload": { "mimeType": "image/png", "filename": "x.png", "body": { "size": 3 } } },
        ],
    });
    let nobody = json!({ "from": null, "to": null, "cc": null, "date": null, "subject": null });
    let with = |more: Value| {
        let (Value::Object(mut all), Value::Object(more)) = (nobody.clone(), more) else { panic!() };
        all.extend(more);
        Value::Object(all)
    };
    let ana = [
        ("From", "\"Ng, Ana\" <ana@example.com>"),
        ("To", "me@example.com, \"Lee, Cy\" <cy@example.com>"),
        ("Cc", "Di <di@example.com>"),
        ("Subject", "Plan"),
        ("Message-Id", "<m1@example.com>"),
        ("References", "<m0@example.com>"),
        ("Delivered-To", "Me@example.com"),
    ];
    let reply = |to: &str, cc: Value, subject: &str| {
        json!({
            "to": to, "cc": cc, "subject": subject, "in_reply_to": "<m1@example.com>",
            "references": "<m0@example.com> <m1@example.com>", "text": "Yes.",
        })
    };
    let busy = json!([{ "start": "2026-12-01T10:00:00Z", "end": "2026-12-01T11:00:00Z" }]);
    let one = |id: &str, labels: Value| {
        const WANTED: &str =
            "metadataHeaders=From&metadataHeaders=To&metadataHeaders=Cc&metadataHeaders=Subject&metadataHeaders=Date";
        Exchange::of(&format!("GET {MAIL}/messages/{id}?format=metadata&{WANTED}")).answers(json!({
            "id": id, "threadId": "t1", "snippet": "Soon", "labelIds": labels,
            "payload": { "headers": [header("Subject", id)] },
        }))
    };
    let summary = |id: &str, unread: bool| {
        with(json!({ "id": id, "thread_id": "t1", "subject": id, "snippet": "Soon", "unread": unread }))
    };
    let cases = vec![
        case(
            "Google.SearchEmails",
            json!({ "query": "is:unread", "max_results": 1, "page_token": "p2" }),
            vec![
                Exchange::of(&format!("GET {MAIL}/messages?maxResults=1&pageToken=p2&q=is:unread"))
                    .answers(json!({ "messages": [{ "id": "m1", "threadId": "t1" }], "nextPageToken": "p3" })),
                one("m1", json!(["UNREAD"])),
            ],
            json!({ "emails": [summary("m1", true)], "next_page": "p3" }),
        ),
        case(
            "GoogleCalendar.ListEvents",
            json!({ "time_min": "2026-12-01T00:00:00Z", "query": "review", "calendar_id": "team@group.calendar.google.com" }),
            vec![
                Exchange::of(
                    "GET /calendar/v3/calendars/team%40group.calendar.google.com/events\
                     ?maxResults=25&orderBy=startTime&q=review&singleEvents=true&timeMin=2026-12-01T00:00:00Z",
                )
                .answers(json!({
                    "timeZone": "Europe/Paris",
                    "items": [{
                        "id": "e1", "summary": "Review", "start": { "dateTime": "2026-12-01T10:00:00+01:00" },
                        "end": { "date": "2026-12-02" }, "status": "confirmed", "htmlLink": "l", "etag": "x",
                        "attendees": [{ "email": "ana@example.com", "responseStatus": "accepted", "self": true }],
                    }],
                })),
            ],
            json!({
                "events": [{
                    "id": "e1", "summary": "Review", "start": "2026-12-01T10:00:00+01:00", "end": "2026-12-02", "location": null,
                    "description": null, "status": "confirmed", "organizer": null, "link": "l",
                    "attendees": [{ "email": "ana@example.com", "response": "accepted" }],
                }],
                "time_zone": "Europe/Paris",
                "next_page": null,
            }),
        ),
        case(
            "Google.GetThread",
            json!({ "thread_id": "t1" }),
            vec![Exchange::of(&format!("GET {MAIL}/threads/t1?format=full")).answers(thread)],
            json!({
                "id": "t1",
                "count": 3,
                "messages": [
                    with(json!({
                        "id": "m1", "from": "Ana <ana@example.com>", "subject": "Plan",
                        "text": plain.chars().take(10_000).collect::<String>(), "truncated": true,
                        "attachments": [{ "filename": "plan.pdf", "mime_type": "application/pdf", "bytes": 12 }],
                    })),
                    with(json!({ "id": "m2", "text": " Hello&nbsp; Bob ", "truncated": false, "attachments": [] })),
                    with(json!({
                        "id": "m3", "text": "", "truncated": false,
                        "attachments": [{ "filename": "x.png", "mime_type": "image/png", "bytes": 3 }],
                    })),
                ],
            }),
        ),
        case(
            "Google.CreateDraft",
            json!({ "to": ["ana@example.com"], "subject": "Plan", "text": "Soon.", "thread_id": "t1" }),
            vec![
                Exchange::of(&format!("POST {MAIL}/drafts"))
                    .with(json!({ "message": { "threadId": "t1", "raw": {
                        "to": "<ana@example.com>", "cc": null, "subject": "Plan", "in_reply_to": null, "references": null,
                        "text": "Soon.",
                    } } }))
                    .answers(json!({ "id": "d1", "message": { "id": "m1", "threadId": "t1" } })),
            ],
            json!({ "id": "d1", "message_id": "m1", "thread_id": "t1" }),
        ),
        case(
            "Google.ReplyToEmail",
            json!({ "email_id": "m1", "text": "Yes." }),
            vec![answered(&ana, &["INBOX"]), sends(reply("<ana@example.com>", Value::Null, "Re: Plan"))],
            json!({ "id": "m2", "thread_id": "t1" }),
        ),
        // To all but the user; and the subject says already what it is.
        case(
            "Google.ReplyToEmail",
            json!({ "email_id": "m1", "text": "Yes.", "reply_all": true }),
            vec![
                answered(&[&ana[..3], &[("Subject", "RE: Plan")], &ana[4..]].concat(), &["INBOX"]),
                sends(reply("<ana@example.com>", json!("<cy@example.com>, <di@example.com>"), "RE: Plan")),
            ],
            json!({ "id": "m2", "thread_id": "t1" }),
        ),
        // To where it says that answers go; and, of one's own, to those it went to.
        case(
            "Google.ReplyToEmail",
            json!({ "email_id": "m1", "text": "Yes." }),
            vec![
                answered(&[&ana[..], &[("Reply-To", "list@example.com")]].concat(), &[]),
                sends(reply("<list@example.com>", Value::Null, "Re: Plan")),
            ],
            json!({ "id": "m2", "thread_id": "t1" }),
        ),
        case(
            "Google.ReplyToEmail",
            json!({ "email_id": "m1", "text": "Yes." }),
            vec![
                answered(&ana[..6], &["SENT"]),
                sends(reply("<me@example.com>, <cy@example.com>", Value::Null, "Re: Plan")),
            ],
            json!({ "id": "m2", "thread_id": "t1" }),
        ),
        case(
            "Google.ModifyLabels",
            json!({ "thread_id": "t1", "add": ["work"], "remove": ["INBOX", "unread"] }),
            vec![
                Exchange::of(&format!("GET {MAIL}/labels")).answers(json!({ "labels": [
                    { "id": "INBOX", "name": "INBOX" }, { "id": "UNREAD", "name": "UNREAD" }, { "id": "Label_1", "name": "Work" },
                ] })),
                Exchange::of(&format!("POST {MAIL}/threads/t1/modify"))
                    .with(json!({ "addLabelIds": ["Label_1"], "removeLabelIds": ["INBOX", "UNREAD"] }))
                    .answers(json!({ "id": "t1" })),
            ],
            json!({ "thread_id": "t1", "changed": true }),
        ),
        case(
            "GoogleCalendar.UpdateEvent",
            json!({
                "event_id": "e1", "start": "2026-12-01T10:00:00", "time_zone": "Europe/Paris", "location": "Room 7",
                "add_attendees": ["Cy@example.com", "ANA@example.com"], "remove_attendees": ["bo@example.com"],
                "send_updates": "all",
            }),
            vec![
                Exchange::of(&format!("GET {EVENT}")).answers(event(json!([
                    { "email": "ana@example.com", "responseStatus": "accepted" }, { "email": "Bo@example.com" },
                ]))),
                Exchange::of(&format!("PATCH {EVENT}?sendUpdates=all"))
                    .with(json!({
                        "location": "Room 7",
                        "start": { "dateTime": "2026-12-01T10:00:00", "date": null, "timeZone": "Europe/Paris" },
                        "attendees": [{ "email": "ana@example.com", "responseStatus": "accepted" }, { "email": "Cy@example.com" }],
                    }))
                    .answers(event(json!([{ "email": "ana@example.com" }, { "email": "Cy@example.com" }]))),
            ],
            json!({
                "id": "e1", "link": "https://calendar.example/e1", "status": "confirmed", "summary": "Review",
                "start": { "date": "2026-12-01" }, "end": { "date": "2026-12-02" },
                "attendees": ["ana@example.com", "Cy@example.com"],
            }),
        ),
        // Nobody speaks of those who take part: they stay as they are.
        case(
            "GoogleCalendar.UpdateEvent",
            json!({ "event_id": "e1", "summary": "Review", "end": "2026-12-03" }),
            vec![
                Exchange::of(&format!("GET {EVENT}")).answers(event(json!([{ "email": "ana@example.com" }]))),
                Exchange::of(&format!("PATCH {EVENT}?sendUpdates=none"))
                    .with(json!({ "summary": "Review", "end": { "date": "2026-12-03", "dateTime": null } }))
                    .answers(event(json!([]))),
            ],
            json!({
                "id": "e1", "link": "https://calendar.example/e1", "status": "confirmed", "summary": "Review",
                "start": { "date": "2026-12-01" }, "end": { "date": "2026-12-02" }, "attendees": [],
            }),
        ),
        case(
            "GoogleCalendar.DeleteEvent",
            json!({ "event_id": "e1" }),
            vec![Exchange::of(&format!("DELETE {EVENT}?sendUpdates=none")).says(204, &[], "")],
            json!({ "deleted": true }),
        ),
        case(
            "GoogleCalendar.FindFreeTime",
            json!({ "people": ["primary", "no@example.com"], "time_min": "2026-12-01T08:00:00Z", "time_max": "2026-12-01T18:00:00Z" }),
            vec![
                Exchange::of("POST /calendar/v3/freeBusy")
                    .with(json!({
                        "timeMin": "2026-12-01T08:00:00Z", "timeMax": "2026-12-01T18:00:00Z", "timeZone": "UTC",
                        "items": [{ "id": "primary" }, { "id": "no@example.com" }],
                    }))
                    .answers(json!({ "calendars": {
                        "no@example.com": { "busy": [], "errors": [{ "domain": "global", "reason": "notFound" }] },
                        "primary": { "busy": busy },
                    } })),
            ],
            json!({ "people": [
                { "person": "no@example.com", "busy": [], "error": "notFound" },
                { "person": "primary", "busy": busy, "error": null },
            ] }),
        ),
        case(
            "GoogleDrive.SearchFiles",
            json!({ "query": "name contains 'plan' or name contains 'it\\'s'", "page_token": "p2" }),
            vec![
                Exchange::of(
                    "GET /drive/v3/files?fields=nextPageToken,files(id,name,mimeType,size,modifiedTime,owners(emailAddress),webViewLink)\
                     &includeItemsFromAllDrives=true&orderBy=modifiedTime desc&pageSize=20&pageToken=p2\
                     &q=(name contains 'plan' or name contains 'it\\'s') and trashed = false&supportsAllDrives=true",
                )
                .answers(json!({
                    "files": [{ "id": "f1", "name": "Plan", "mimeType": "text/plain", "size": "9", "owners": [{ "emailAddress": "ana@example.com" }] }],
                    "nextPageToken": "p3",
                })),
            ],
            json!({
                "files": [{
                    "id": "f1", "name": "Plan", "mime_type": "text/plain", "bytes": "9", "modified_at": null,
                    "owners": ["ana@example.com"], "link": null,
                }],
                "next_page": "p3",
            }),
        ),
        case(
            "GoogleDrive.ReadFile",
            json!({ "file_id": "f1" }),
            vec![
                about("application/vnd.google-apps.document", None),
                Exchange::of(&format!("GET {FILE}/export?mimeType=text/plain")).says(200, &[], "\u{feff}One\r\nTwo"),
            ],
            read("application/vnd.google-apps.document", "One\r\nTwo", 8),
        ),
        case(
            "GoogleDrive.ReadFile",
            json!({ "file_id": "f1", "offset": 3 }),
            vec![
                about("application/json", Some("20")),
                Exchange::of(&format!("GET {FILE}?alt=media&supportsAllDrives=true")).says(200, &[], "{\"ok\": false}"),
            ],
            read("application/json", "k\": false}", 13),
        ),
        case(
            "GoogleDrive.CreateFile",
            json!({ "name": "notes.md", "text": "# Notes", "mime_type": "text/markdown", "folder_id": "d1" }),
            vec![
                Exchange::of("POST /drive/v3/files?fields=id,name,webViewLink&supportsAllDrives=true")
                    .with(json!({ "name": "notes.md", "mimeType": "text/markdown", "parents": ["d1"] }))
                    .answers(json!({ "id": "f9", "name": "notes.md", "webViewLink": "https://drive.example/f9" })),
                Exchange::of("PATCH /upload/drive/v3/files/f9?supportsAllDrives=true&uploadType=media")
                    .with(json!("# Notes"))
                    .answers(json!({ "id": "f9" })),
            ],
            json!({ "id": "f9", "name": "notes.md", "link": "https://drive.example/f9" }),
        ),
    ];
    let scope = json!({ "error": { "code": 403, "details": [{ "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT" }] } });
    let refusals = vec![
        refusal(403, &[], scope, "authorization_required"),
        refusal(404, &[], json!({ "error": { "code": 404, "message": "Not Found" } }), "not_found"),
        refusal(
            403,
            &[],
            json!({ "error": { "code": 403, "errors": [{ "reason": "userRateLimitExceeded" }] } }),
            "rate_limited",
        ),
    ];
    run("google", account, cases, refusals).await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let at = obo_with("google", account).await;
    let labels =
        Exchange::of(&format!("GET {MAIL}/labels")).answers(json!({ "labels": [{ "id": "L1", "name": "Work" }] }));
    let unknown = json!({ "thread_id": "t1", "add": ["Wrok"] });
    let told = ("invalid_arguments", "there is no label Wrok; there are Work");
    assert_fails(&at, "Google.ModifyLabels", unknown, &[labels], told).await;
    let reply = json!({ "email_id": "m1", "text": "Yes." });
    let script = [answered(&[("From", "MAILER-DAEMON")], &[])];
    assert_fails(&at, "Google.ReplyToEmail", reply, &script, ("invalid_arguments", "names nobody to answer")).await;
    let file = json!({ "file_id": "f1" });
    for (about, words) in [
        (about("application/pdf", Some("9")), "no text, but application/pdf"),
        (about("text/csv", Some("5000001")), "larger than 5 MB"),
    ] {
        assert_fails(&at, "GoogleDrive.ReadFile", file.clone(), &[about], ("invalid_arguments", words)).await;
    }
    let script = [
        about("text/plain", Some("4")),
        Exchange::of(&format!("GET {FILE}?alt=media&supportsAllDrives=true")).says(200, &[], vec![0xff, 0xfe, 0x00]),
    ];
    assert_fails(&at, "GoogleDrive.ReadFile", file, &script, ("provider_error", "not text in UTF-8")).await;
    // Somebody else was faster.
    let script = [
        Exchange::of(&format!("GET {EVENT}")).answers(event(json!([]))),
        Exchange::of(&format!("PATCH {EVENT}?sendUpdates=none")).with(json!({ "summary": "x" })).says(
            412,
            &[],
            json!({ "error": { "message": "Precondition Failed" } }).to_string(),
        ),
    ];
    let change = json!({ "event_id": "e1", "summary": "x" });
    assert_fails(&at, "GoogleCalendar.UpdateEvent", change, &script, ("provider_error", "conflicts")).await;
    // The file is there, and has nothing in it: said, so that it is not made twice.
    let script = [Exchange::of("POST /drive/v3/files?fields=id,name,webViewLink&supportsAllDrives=true")
        .with(json!({ "name": "x", "mimeType": "text/plain" }))
        .answers(json!({ "id": "../f9" }))];
    let create = json!({ "name": "x", "text": "y" });
    assert_fails(&at, "GoogleDrive.CreateFile", create, &script, ("invalid_arguments", "done already")).await;
}
