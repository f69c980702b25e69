//! Jira and Confluence.

use serde_json::{Value, json};

use super::{Exchange, assert_fails, case, obo_with, refusal, run};

fn account(person: &str) -> Value {
    json!({ "account_id": format!("a-{person}"), "email": format!("{person}@example.com"), "name": person })
}

fn site(id: &str, host: &str, scopes: &[&str]) -> Value {
    json!({ "id": id, "url": format!("https://{host}"), "name": host, "scopes": scopes })
}

fn sites(list: Value) -> Exchange {
    Exchange::of("GET /oauth/token/accessible-resources").answers(list)
}

/// One site, as Atlassian lists it: once for each product.
fn acme() -> Exchange {
    sites(json!([
        site("c1", "acme.atlassian.net", &["read:jira-work", "write:jira-work"]),
        site("c1", "acme.atlassian.net", &["search:confluence", "read:page:confluence"]),
    ]))
}

#[tokio::test]
async fn as_two_people() {
    let paragraph = |content: Value| json!({ "type": "paragraph", "content": content });
    let text = |text: &str| json!({ "type": "text", "text": text });
    let said = json!({ "type": "doc", "version": 1, "content": [
        paragraph(json!([text("One"), { "type": "hardBreak" }, text("two")])), paragraph(json!([text("Three")])),
    ] });
    const FIELDS: &str =
        "summary,status,assignee,reporter,priority,issuetype,labels,description,comment,created,updated,duedate";
    let named = |name: &str| json!({ "name": name });
    let cases = vec![
        case(
            "Jira.SearchIssues",
            json!({ "jql": "project = ENG", "max_results": 5, "page_token": "p2" }),
            vec![
                acme(),
                Exchange::of("POST /ex/jira/c1/rest/api/3/search/jql")
                    .with(json!({
                        "jql": "project = ENG", "maxResults": 5, "nextPageToken": "p2",
                        "fields": ["summary", "status", "assignee", "priority", "issuetype", "updated"],
                    }))
                    .answers(json!({
                        "issues": [{ "key": "ENG-1", "fields": {
                            "summary": "Login", "issuetype": named("Bug"), "status": named("Done"), "priority": null,
                            "assignee": { "displayName": "Ana" }, "updated": "2026-11-01T00:00:00.000+0000",
                        } }],
                        "nextPageToken": "p3",
                    })),
            ],
            json!({
                "issues": [{
                    "key": "ENG-1", "summary": "Login", "type": "Bug", "status": "Done", "priority": null, "assignee": "Ana",
                    "updated_at": "2026-11-01T00:00:00.000+0000",
                }],
                "next_page": "p3",
            }),
        ),
        // Of several sites the one that is named, in whichever way.
        case(
            "Jira.GetIssue",
            json!({ "issue": "ENG-1", "site": "https://Beta.atlassian.net/" }),
            vec![
                sites(json!([
                    site("c1", "acme.atlassian.net", &["read:jira-work"]), site("c2", "beta.atlassian.net", &["read:jira-work"]),
                ])),
                Exchange::of(&format!("GET /ex/jira/c2/rest/api/3/issue/ENG-1?expand=renderedFields&fields={FIELDS}")).answers(json!({
                    "key": "ENG-1",
                    "fields": { "summary": "Login", "labels": ["web"], "reporter": { "displayName": "Bo" } },
                    "renderedFields": {
                        "description": "<p>It <b>fails</b></p>\n<p>always</p>",
                        "comment": { "comments": [{ "author": { "displayName": "Cy" }, "created": "yesterday", "body": "<p>Yes</p>" }] },
                    },
                })),
            ],
            json!({
                "key": "ENG-1", "summary": "Login", "type": null, "status": null, "priority": null, "assignee": null,
                "reporter": "Bo", "labels": ["web"], "due_date": null, "created_at": null, "updated_at": null,
                "text": " It fails always ", "comments": [{ "author": "Cy", "created_at": "yesterday", "text": " Yes " }],
            }),
        ),
        case(
            "Jira.CreateIssue",
            json!({ "project": "ENG", "type": "Bug", "summary": "Login", "text": "One\ntwo\n\n\nThree", "labels": ["web"] }),
            vec![
                acme(),
                Exchange::of("POST /ex/jira/c1/rest/api/3/issue")
                    .with(json!({ "fields": {
                        "project": { "key": "ENG" }, "issuetype": named("Bug"), "summary": "Login", "labels": ["web"],
                        "description": said,
                    } }))
                    .says(201, &[], json!({ "id": "10001", "key": "ENG-2", "self": "x" }).to_string()),
            ],
            json!({ "key": "ENG-2", "id": "10001" }),
        ),
        case(
            "Jira.CreateIssue",
            json!({ "project": "ENG", "type": "Bug", "summary": "Login" }),
            vec![
                acme(),
                Exchange::of("POST /ex/jira/c1/rest/api/3/issue")
                    .with(json!({ "fields": { "project": { "key": "ENG" }, "issuetype": named("Bug"), "summary": "Login" } }))
                    .says(201, &[], json!({ "id": "10001", "key": "ENG-2" }).to_string()),
            ],
            json!({ "key": "ENG-2", "id": "10001" }),
        ),
        case(
            "Jira.AddComment",
            json!({ "issue": "ENG-1", "text": "One\ntwo\n\nThree" }),
            vec![
                acme(),
                Exchange::of("POST /ex/jira/c1/rest/api/3/issue/ENG-1/comment")
                    .with(json!({ "body": said }))
                    .says(201, &[], json!({ "id": "7" }).to_string()),
            ],
            json!({ "id": "7" }),
        ),
        case(
            "Confluence.Search",
            json!({ "cql": "text ~ \"plan\"" }),
            vec![
                acme(),
                Exchange::of("GET /ex/confluence/c1/wiki/rest/api/search?cql=text ~ \"plan\"&limit=20").answers(json!({
                    "totalSize": 1,
                    "_links": { "base": "https://acme.atlassian.net/wiki" },
                    "results": [{
                        "content": { "id": "123", "type": "page", "title": "The plan" }, "excerpt": "the @@@hl@@@plan@@@endhl@@@ is",
                        "url": "/spaces/ENG/pages/123", "resultGlobalContainer": { "title": "Engineering" }, "lastModified": "2026-11-01",
                    }],
                })),
            ],
            json!({
                "total": 1,
                "results": [{
                    "id": "123", "type": "page", "title": "The plan", "space": "Engineering", "excerpt": "the plan is",
                    "updated_at": "2026-11-01", "link": "https://acme.atlassian.net/wiki/spaces/ENG/pages/123",
                }],
            }),
        ),
        case(
            "Confluence.GetPage",
            json!({ "page_id": "123", "offset": 1 }),
            vec![
                acme(),
                Exchange::of("GET /ex/confluence/c1/wiki/api/v2/pages/123?body-format=storage").answers(json!({
                    "id": "123", "title": "The plan", "version": { "number": 3 },
                    "body": { "storage": { "value": "<h1>A &amp; B</h1><p>&lt;x&gt;<ac:image /></p>" } },
                    "_links": { "base": "https://acme.atlassian.net/wiki", "webui": "/spaces/ENG/pages/123" },
                })),
            ],
            json!({
                "id": "123", "title": "The plan", "version": 3, "text": "A & B\n <x> \n", "total": 13,
                "link": "https://acme.atlassian.net/wiki/spaces/ENG/pages/123",
            }),
        ),
    ];
    let refusals = vec![
        refusal(
            401,
            &[],
            json!({ "code": 401, "message": "Unauthorized; scope does not match" }),
            "authorization_required",
        ),
        refusal(404, &[], json!({ "errorMessages": ["Issue does not exist."], "errors": {} }), "not_found"),
        refusal(403, &[], json!({ "message": "no" }), "permission"),
        refusal(429, &[("retry-after", "5")], json!({}), "rate_limited"),
    ];
    run("atlassian", account, cases, refusals).await;
}

#[tokio::test]
async fn a_site_that_is_not_clear_is_asked_for() {
    let at = obo_with("atlassian", account).await;
    let search = |rest: Value| {
        let mut arguments = json!({ "jql": "project = ENG" });
        arguments.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        arguments
    };
    let both = sites(json!([
        site("c1", "acme.atlassian.net", &["read:jira-work"]),
        site("c2", "beta.atlassian.net", &["read:jira-work"]),
    ]));
    let several = ("invalid_arguments", "say which with `site`: acme.atlassian.net, beta.atlassian.net");
    assert_fails(&at, "Jira.SearchIssues", search(json!({})), std::slice::from_ref(&both), several).await;
    let none = ("invalid_arguments", "no such site");
    let other = search(json!({ "site": "gamma.atlassian.net" }));
    assert_fails(&at, "Jira.SearchIssues", other, &[both], none).await;
    // The other product's site is of no use.
    let confluence = sites(json!([site("c1", "acme.atlassian.net", &["search:confluence"])]));
    assert_fails(&at, "Jira.SearchIssues", search(json!({})), &[confluence], none).await;
    // A hostile list leads nowhere else: nothing is sent after it.
    for id in ["../../oauth/token", "c1/../..", "..", "%2e%2e"] {
        let hostile = sites(json!([site(id, "acme.atlassian.net", &["read:jira-work"])]));
        assert_fails(&at, "Jira.SearchIssues", search(json!({})), &[hostile], ("invalid_arguments", "cloud ")).await;
    }
}
