//! `obo tools check`, `obo tools test` and `obo call --dry-run` as the author of a manifest meets them.

use serde_json::Value;

use crate::support::program::{Program, Ran};

const GOOGLE: &str = "[providers.google]\nclient_id = \"x\"\n[tools]\ndirs = [\"./tools\"]\n";

/// A tool without fault, and with a case.
const GOOD: &str = r#"name = "Google.GetThing"
title = "Read a thing"
description = "Reads one thing of the user's mailbox by its id."
scopes = ["https://www.googleapis.com/auth/gmail.readonly"]
effect = "read"
idempotent = true

[input]
type = "object"
required = ["id"]
[input.properties.id]
type = "string"
description = "The thing's id, as Google.SearchEmails returns it."
[input.properties.parts]
type = "integer"
default = 2
description = "How many parts to return."

[request]
method = "GET"
url = "{gmail}/things/{id}"
query.parts = '.parts'
headers.Prefer = '"short"'

[response]
value = '{id, title: .headline, more}'

[[test]]
name = "a thing"
arguments = { id = "a/b" }
[test.expect]
error = "invalid_arguments"

[[test]]
name = "another"
arguments = { id = "a b" }
[test.answer]
body = { id = "a b", headline = "T" }
[test.expect]
value = { id = "a b", title = "<any>" }
[test.expect.request]
method = "GET"
url = "{gmail}/things/a%20b"
query = { parts = 2 }
headers.prefer = "short"

[[test]]
name = "none"
arguments = { id = "x" }
[test.answer]
status = 404
[test.expect]
error = "not_found"
"#;

fn put(program: &Program, file: &str, text: &str) {
    let path = program.dir.path().join("tools").join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn steady(program: &Program, ran: &Ran) -> String {
    let folder = program.dir.path().display().to_string();
    ran.stdout.replace(&folder, "DIR").replace("././", "./").replace("/./", "/")
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

#[tokio::test]
async fn there_is_nothing_to_say_of_what_is_compiled_in() {
    let ran = Program::new("").run(&["tools", "check"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "0 errors, 0 warnings, 0 hints\n"), "{ran:?}");
}

#[tokio::test]
async fn everything_in_all_files_is_named_at_once() {
    let program = Program::new(GOOGLE);
    put(&program, "google/get-thing.toml", GOOD);
    put(
        &program,
        "google/do-thing.toml",
        r#"name = "Google.DoThing"
title = "Do"
description = "Do."
scopes = ["https://www.googleapis.com/auth/gmail.sent"]
effect = "read"
[input]
type = "object"
required = ["id"]
[input.properties.id]
type = "string"
[[step]]
bind = "a"
[step.request]
method = "POST"
url = "{gmial}/x/{idd}"
query.n = '.id | nonsense(1)'
body = '{id, idd}'
[[step]]
[step.request]
method = "GET"
url = "{gmail}/x/{idd}"
headers.authorization = '.id'
query.n = '''
.id
  | ,
'''
[response]
value = '$b.x'
[[test]]
name = "nothing"
expect = {}
"#,
    );
    put(
        &program,
        "google/broken.toml",
        "name = \"Google.Broken\"\ntitel = \"x\"\neffect = \"reed\"\n[request]\nmethod = \"GTE\"\n",
    );
    put(&program, "google/text.toml", "name = \"Slack.PostMessage\ntitle = \n");
    put(
        &program,
        "google/removes.toml",
        &GOOD
            .replace("GetThing", "Remove")
            .replace("\"GET\"", "\"DELETE\"")
            .replace("effect = \"read\"", "effect = \"write\""),
    );
    put(&program, "nobody/a.toml", GOOD);
    let schema = GOOD.replace("GetThing", "Schema").replace("type = \"integer\"", "type = \"number of them\"");
    put(&program, "google/schema.toml", &schema.replace("things/{id}", "things/{di}"));
    let ran = program.run(&["tools", "check"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let text: String = steady(&program, &ran)
        .split("\n\n")
        .filter(|finding| !finding.contains("--> built-in:"))
        .collect::<Vec<_>>()
        .join("\n\n");
    let (findings, _) = text.trim_end().rsplit_once("\n\n").unwrap();
    insta::assert_snapshot!("tools_check", findings);
    // The same list for programs.
    let all = json(&program.run(&["tools", "check", "--json"]).await);
    let problems = all["problems"].as_array().unwrap();
    let found = |problem: &&Value| problem["file"].as_str().unwrap().ends_with("text.toml");
    assert_eq!(problems.iter().find(found).unwrap()["line"], 1, "{all}");
}

#[tokio::test]
async fn what_check_accepts_is_served_and_what_is_refused_is_named() {
    let program = Program::new(GOOGLE);
    put(&program, "google/get-thing.toml", GOOD);
    let here = program.dir.path().join("tools");
    let check = |arguments: &'static [&'static str]| {
        let here = here.display().to_string();
        let program = &program;
        async move {
            let arguments: Vec<&str> =
                ["tools", "check"].into_iter().chain(arguments.iter().copied()).chain([here.as_str()]).collect();
            program.run(&arguments).await
        }
    };
    let ran = check(&[]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "0 errors, 0 warnings, 0 hints\n"), "{ran:?}");
    assert_eq!(program.run(&["tools", "show", "Google.GetThing"]).await.code, 0);

    // Warnings keep nothing from being served, unless one asks for it.
    put(&program, "google/get-thing.toml", &GOOD.replace("description = \"How many parts to return.\"\n", ""));
    assert_eq!((check(&[]).await.code, check(&["--strict"]).await.code), (0, 1));
    assert_eq!(program.run(&["tools", "show", "Google.GetThing"]).await.code, 0);

    put(&program, "google/get-thing.toml", &GOOD.replace("'{id, title", "'{id, | title"));
    let ran = check(&[]).await;
    assert!(ran.code == 1 && ran.stdout.contains("get-thing.toml:26:"), "{ran:?}");
    let served = program.run(&["tools", "show", "Google.GetThing"]).await;
    assert!(served.code == 1 && served.stderr.contains("get-thing.toml:26:"), "the log names it, too: {served:?}");
    assert_eq!(program.run(&["tools", "show", "Google.SendEmail"]).await.code, 0, "and the others are there");

    let nothing = program.run(&["tools", "check", &program.dir.path().join("data").display().to_string()]).await;
    assert_eq!(nothing.code, 1, "{nothing:?}");
}

#[tokio::test]
async fn the_built_in_catalog_has_nothing_to_mend() {
    let program = Program::new("");
    let ran = program.run(&["tools", "check", "--strict"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
}

#[tokio::test]
async fn the_cases_of_the_built_in_catalog_pass() {
    let program = Program::new("");
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/tools");
    let ran = program.run(&["tools", "test", tools]).await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    // None of them is left out because its file was.
    assert!(ran.stdout.contains("ok      Google.SendEmail: "), "{}", ran.stdout);
}

#[cfg(unix)]
#[tokio::test]
async fn what_anybody_may_write_is_not_served() {
    use std::os::unix::fs::PermissionsExt as _;
    let program = Program::new(GOOGLE);
    put(&program, "google/get-thing.toml", GOOD);
    put(&program, "google/send-email.toml", &GOOD.replace("GetThing", "SendEmail"));
    let open = |path: &str, mode: u32| {
        let path = program.dir.path().join("tools").join(path);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open("google/send-email.toml", 0o666);
    open("google", 0o777);
    let ran = program.run(&["tools", "check"]).await;
    assert!(ran.code == 1 && ran.stdout.contains("error: everybody on this machine may write into it"), "{ran:?}");
    assert!(ran.stdout.contains("warning: everybody on this machine may write into this folder"), "{ran:?}");
    // Nor is the built-in tool that it was to replace.
    assert_eq!(program.run(&["tools", "show", "Google.SendEmail"]).await.code, 1);
    assert_eq!(program.run(&["tools", "show", "Google.GetThing"]).await.code, 0);
}

#[tokio::test]
async fn cases_are_run_through_the_code_of_real_calls() {
    let program = Program::new(GOOGLE);
    put(&program, "google/get-thing.toml", GOOD);
    let file = program.dir.path().join("tools/google/get-thing.toml").display().to_string();
    let ran = program.run(&["tools", "test", &file]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    insta::assert_snapshot!("tools_test_passed", steady(&program, &ran));

    for (from, to, what) in [
        ("headline = \"T\"", "headline = \"T\", more = true", "value"),
        ("a%20b", "a%20c", "request 1, url"),
        ("parts = 2 }", "parts = 3 }", "request 1, query"),
        ("parts = 2 }", "}", "request 1, query"),
        ("prefer = \"short\"", "prefer = \"long\"", "request 1, header prefer"),
        (
            "method = \"GET\"\nurl = \"{gmail}/things/a%",
            "method = \"POST\"\nurl = \"{gmail}/things/a%",
            "request 1, method",
        ),
        ("status = 404", "status = 403", "error"),
        ("status = 404", "status = 200", "error"),
        ("\"invalid_arguments\"", "\"not_found\"", "error"),
        ("[test.answer]\nbody", "[[test.answer]]\n[[test.answer]]\nbody", "value"),
        ("[test.answer]\nbody = { id = \"a b\", headline = \"T\" }\n", "", "an answer to request 1"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        put(&program, "google/get-thing.toml", &GOOD.replacen(from, to, 1));
        let ran = program.run(&["tools", "test", "--json", &file]).await;
        let cases = json(&ran);
        let failed: Vec<&Value> =
            cases["cases"].as_array().unwrap().iter().filter(|case| case["passed"] == false).collect();
        assert_eq!((ran.code, failed.len()), (1, 1), "{to}: {cases}");
        let differences = failed[0]["differences"].as_array().unwrap();
        assert!(differences.iter().any(|difference| difference["what"] == what), "{to}: {cases}");
    }

    put(&program, "google/get-thing.toml", &GOOD.replace("headline = \"T\"", "headline = \"T\", more = [1]"));
    let ran = program.run(&["tools", "test", &file]).await;
    insta::assert_snapshot!("tools_test_failed", steady(&program, &ran));

    put(&program, "google/get-thing.toml", GOOD.split("\n[[test]]").next().unwrap());
    let ran = program.run(&["tools", "test", &file]).await;
    assert!(ran.code == 1 && ran.stderr.contains("has no [[test]]"), "{ran:?}");
}

#[tokio::test]
async fn a_case_may_have_several_requests_and_answers() {
    let program = Program::new(GOOGLE);
    let steps = r#"
[[step]]
bind = "list"
[step.request]
method = "GET"
url = "{gmail}/things"
[[step]]
bind = "all"
each = '$list.ids'
[step.request]
method = "POST"
url = "{gmail}/things/{item}"
form = '{n: $item, m: [1, 2]}'
[response]
value = '[$all[] | .x]'
[[test]]
name = "two"
arguments = { id = "x" }
answer = [{ body = { ids = ["a", "b"] } }, { body = { x = 1 } }, { text = '{"x": null}' }]
[test.expect]
request = [{ url = "{gmail}/things", query = {} }, { url = "{gmail}/things/a", form = { n = "a", m = [1, 2] } }, { url = "{gmail}/things/b" }]
"#;
    let head = GOOD.split("[request]").next().unwrap();
    put(&program, "google/get-thing.toml", &format!("{head}{steps}"));
    let file = program.dir.path().join("tools/google/get-thing.toml").display().to_string();
    let ran = program.run(&["tools", "test", &file]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    put(&program, "google/get-thing.toml", &format!("{head}{steps}value = [1, 2]\n"));
    let ran = program.run(&["tools", "test", &file]).await;
    assert!(ran.code == 1 && ran.stdout.contains("-   2\n"), "{ran:?}");

    // Of a later step there is no request yet, only what it will be made of.
    let arguments = ["call", "Google.GetThing", "--input", "{\"id\": \"x\"}", "--dry-run"];
    let ran = program.run(&arguments).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    insta::assert_snapshot!("dry_run_of_steps", ran.stdout.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    let all = json(&program.run(&[&arguments[..], &["--json"]].concat()).await);
    assert_eq!(all[0]["headers"]["authorization"], "Bearer ••••");
    assert_eq!(all[1]["made_of"]["form"], "{n: $item, m: [1, 2]}");
}

#[tokio::test]
async fn a_dry_run_needs_no_client() {
    let program = Program::new("[tools]\ndirs = [\"./tools\"]\n");
    put(&program, "google/get-thing.toml", &GOOD.replace("\"GET\"", "\"POST\"").replace("query.parts", "body"));
    let ran = program.run(&["call", "Google.GetThing", "--input", "{\"id\": \"x\"}", "--dry-run"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    insta::assert_snapshot!("dry_run", ran.stdout.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    let ran = program.run(&["call", "Google.GetThing", "--input", "{\"id\": \"x\"}"]).await;
    assert_eq!(ran.code, 64, "and a call does: {ran:?}");
}
