//! Applications of `obo app`: their keys, from the first to the last.

use serde_json::{Value, json};

use crate::support::program::{Program, Ran};
use crate::support::rest::application;
use crate::support::{Rest, TestObo};

/// The key, which stands alone on stdout.
#[track_caller]
fn key_of(ran: &Ran) -> String {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let key = ran.stdout.trim_end_matches('\n').to_owned();
    assert!(key.starts_with("oboapp_") && !key.contains(char::is_whitespace) && !ran.stderr.contains(&key));
    key
}

async fn list(program: &Program) -> Value {
    let ran = program.run(&["app", "list", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    serde_json::from_str(&ran.stdout).unwrap()
}

#[tokio::test]
async fn a_key_is_made_listed_replaced_and_taken_away() {
    let program = Program::new(&application("crm", "acme", ""));
    let added = program.run(&["app", "add", "shop", "--tenant", "acme", "--may-read-tokens"]).await;
    let first = key_of(&added);
    for said in ["shown only now", "Authorization header", "/v1/", "access tokens", "user_verifier_url"] {
        assert!(added.stderr.contains(said), "{said}: {}", added.stderr);
    }
    let second = key_of(&program.run(&["app", "rotate", "shop"]).await);
    let listed = list(&program).await;
    assert_eq!((&listed[0]["name"], &listed[0]["configured"]), (&json!("crm"), &json!(true)), "{listed}");
    assert_eq!((&listed[1]["name"], &listed[1]["may_read_tokens"]), (&json!("shop"), &json!(true)), "{listed}");
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let kept = time(&listed[1]["old_key_until"]).duration_since(time(&listed[1]["created_at"]));
    assert_eq!(kept.as_hours(), 24, "{listed}");
    assert_eq!(listed[1]["last_used_at"], Value::Null);
    let third = program.run(&["app", "rotate", "shop", "--keep-old", "0s"]).await;
    assert!(third.stderr.contains("The old one is void."), "{}", third.stderr);
    let third = key_of(&third);

    // Kept as hashes, sealed: nothing of a key, nor the name, is in the folder.
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(program.data()).unwrap() {
        bytes.extend(std::fs::read(entry.unwrap().path()).unwrap_or_default());
    }
    for key in [&first, &second, &third] {
        assert!(memchr::memmem::find(&bytes, &key.as_bytes()[key.len() - 20..]).is_none());
    }

    for (arguments, says) in [
        (&["app", "rotate", "crm"][..], "obo.toml"),
        (&["app", "remove", "crm"], "obo.toml"),
        (&["app", "rotate", "nothing"], "obo app list"),
        (&["app", "add", "shop", "--tenant", "acme"], "exists"),
        (&["app", "rotate", "shop", "--keep-old", "31d"], "30d"),
    ] {
        let ran = program.run(arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(ran.stderr.contains(says), "{arguments:?}: {}", ran.stderr);
    }
    for arguments in [&["app", "add", "Not A Name", "--tenant", "acme"][..], &["app", "add", "x", "--tenant", "A B"]] {
        assert_eq!(program.run(arguments).await.code, 2, "{arguments:?}");
    }
    let table = program.run(&["app", "list"]).await.stdout;
    assert!(table.lines().any(|line| line.starts_with("crm") && line.contains("obo.toml")), "{table}");

    assert_eq!(program.run(&["app", "remove", "shop"]).await.code, 0);
    assert_eq!(list(&program).await.as_array().unwrap().len(), 1);
    let records = program.run(&["audit", "show", "--json"]).await.stdout;
    let records: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ended: Vec<&str> = records
        .iter()
        .filter(|record| record["outcome"] == "ok" && record["kind"] == "admin" && record["tenant"] == "acme")
        .map(|record| record["note"].as_str().unwrap())
        .collect();
    assert_eq!(ended, ["app.added_with_tokens shop", "app.rotated shop", "app.rotated shop", "app.removed shop"]);
    assert!(records.iter().any(|r| r["note"] == "app.added shop" && r["outcome"] == "invalid_arguments"));
    assert_eq!(program.run(&["audit", "verify"]).await.code, 0);
}

#[tokio::test]
async fn a_running_obo_takes_the_keys_as_they_are_now() {
    let obo = TestObo::start().await;
    let applications = obo.app.obo.identity().applications();
    let first = applications.add("shop", "acme".parse().unwrap(), false).await.unwrap();
    let tools = async |key: &str| Rest::with_key(&obo.base, key).get("/v1/tools").await.0;
    assert_eq!(tools(first.expose()).await, 200);
    let hour = std::time::Duration::from_secs(3600);
    let second = applications.rotate("shop", hour).await.unwrap();
    assert_eq!((tools(first.expose()).await, tools(second.expose()).await), (200, 200));
    obo.clock.advance(hour);
    assert_eq!((tools(first.expose()).await, tools(second.expose()).await), (401, 200));
    obo.app.obo.drain(hour).await;
    assert!(applications.list().await.unwrap()[0].last_used_at.is_some());
    applications.remove("shop").await.unwrap();
    assert_eq!(tools(second.expose()).await, 401);
}
