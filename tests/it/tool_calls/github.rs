//! GitHub: the files of a repository.

use base64::Engine as _;
use serde_json::{Value, json};

use super::{Exchange, assert_fails, case, obo_with, refusal, run};

fn account(person: &str) -> Value {
    json!({ "id": person.len(), "login": person })
}

#[tokio::test]
async fn as_two_people() {
    // GitHub breaks its lines.
    let content = base64::engine::general_purpose::STANDARD.encode("Grüße\n".repeat(20));
    let content: Vec<&str> = content.as_bytes().chunks(60).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let file = json!({
        "type": "file", "encoding": "base64", "path": "docs/a guide.md", "sha": "abc", "size": 160,
        "html_url": "https://github.com/o/r/blob/main/docs/a%20guide.md", "content": content.join("\n") + "\n",
    });
    let read = |text: &str| {
        json!({
            "type": "file", "path": "docs/a guide.md", "bytes": 160,
            "link": "https://github.com/o/r/blob/main/docs/a%20guide.md", "text": text, "total": 120,
        })
    };
    let large = json!({ "type": "file", "encoding": "none", "path": "x.bin", "size": 2_000_000, "html_url": "l", "content": "" });
    let here = |path: &str, rest: Value| {
        let mut arguments = json!({ "owner": "o", "repo": "r", "path": path });
        arguments.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        arguments
    };
    let asks = |path: &str| Exchange::of(&format!("GET /repos/o/r/contents/{path}"));
    let cases = vec![
        case(
            "GitHub.GetFile",
            here("docs/a guide.md", json!({ "ref": "main" })),
            vec![asks("docs/a%20guide.md?ref=main").answers(file.clone())],
            read(&"Grüße\n".repeat(20)),
        ),
        case(
            "GitHub.GetFile",
            here("docs/a guide.md", json!({ "offset": 114 })),
            vec![asks("docs/a%20guide.md").answers(file)],
            read("Grüße\n"),
        ),
        case(
            "GitHub.GetFile",
            here("docs", json!({})),
            vec![asks("docs").answers(json!([{ "name": "a.md", "type": "file", "size": 3, "sha": "x" }]))],
            json!({ "type": "dir", "entries": [{ "name": "a.md", "type": "file", "bytes": 3 }] }),
        ),
        case(
            "GitHub.GetFile",
            here("x.bin", json!({})),
            vec![asks("x.bin").answers(large)],
            json!({ "type": "file", "path": "x.bin", "bytes": 2_000_000, "link": "l", "text": null }),
        ),
    ];
    const SCOPES: &[(&str, &str)] = &[("x-oauth-scopes", "read:user"), ("x-accepted-oauth-scopes", "repo")];
    const LIMIT: &[(&str, &str)] = &[("retry-after", "60")];
    let refusals = vec![
        refusal(404, SCOPES, json!({ "message": "Not Found" }), "authorization_required"),
        refusal(404, &[], json!({ "message": "Not Found" }), "not_found"),
        refusal(403, LIMIT, json!({ "message": "You have exceeded a secondary rate limit" }), "rate_limited"),
    ];
    run("github", account, cases, refusals).await;
}

#[tokio::test]
async fn t12_a_path_stays_in_its_repository() {
    let at = obo_with("github", account).await;
    for path in ["../../../user", "a/../../x", "/etc/passwd", "a//b", "a/%2e%2e/b", "a\\b", ".", ""] {
        let arguments = json!({ "owner": "o", "repo": "r", "path": path });
        assert_fails(&at, "GitHub.GetFile", arguments, &[], ("invalid_arguments", "path ")).await;
    }
    let arguments = json!({ "owner": "o/../..", "repo": "r", "path": "x" });
    assert_fails(&at, "GitHub.GetFile", arguments, &[], ("invalid_arguments", "owner ")).await;
}
