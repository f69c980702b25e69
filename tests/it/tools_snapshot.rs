//! Every tool exactly as MCP clients see it. A change here is a change of what models are told: look at it.

use obo::catalog::{Catalog, ToolsConfig};
use serde_json::{Value, json};

use crate::support::TestObo;

/// Gives every built-in provider a client, so that every built-in tool is offered.
fn clients() -> String {
    let catalog = Catalog::load(&ToolsConfig::default(), &Default::default()).unwrap();
    let others = catalog.providers().map(|one| one.id.clone()).filter(|id| !["google", "slack"].contains(&id.as_str()));
    others.map(|id| format!("[providers.{id}]\nclient_id = \"x\"\n")).collect()
}

async fn listed(config: &str) -> Value {
    let obo = TestObo::builder().config(&format!("{}{config}", clients())).start().await;
    let alice = obo.client("alice").await;
    let answer = alice.request("tools/list", json!({})).await["result"].clone();
    assert_eq!(alice.request("tools/list", json!({})).await["result"], answer, "the same, whenever it is asked");
    answer
}

#[tokio::test]
async fn tools_as_clients_see_them() {
    let mut answer = listed("").await;
    let Value::Array(tools) = answer["tools"].take() else { panic!("{answer}") };
    let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    let dotted: Vec<&str> = tools.iter().map(|tool| tool["_meta"]["obo/name"].as_str().unwrap()).collect();
    let manifests = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tools")).unwrap();
    let count: usize = manifests
        .map(|folder| {
            std::fs::read_dir(folder.unwrap().path())
                .unwrap()
                .filter(|f| f.as_ref().unwrap().file_name() != "provider.toml")
                .count()
        })
        .sum();
    let own = dotted.iter().filter(|name| name.starts_with("Obo.")).count();
    assert_eq!((names.len() - own, own), (count, 3), "one tool a file, and obo's own");
    assert!(names.is_sorted(), "{names:?}");
    for (tool, dotted) in tools.iter().zip(&dotted) {
        let name = tool["name"].as_str().unwrap();
        assert_eq!(name, dotted.replace('.', "_"));
        assert!(name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{name}");
        // Only what differs from what the protocol takes for granted, and never a second title.
        let hints = tool["annotations"].as_object().unwrap();
        assert!(hints.contains_key("readOnlyHint") != hints.contains_key("destructiveHint"), "{name}: {hints:?}");
        for (hint, value) in hints {
            let worth_saying = match hint.as_str() {
                "readOnlyHint" => *value == true,
                "destructiveHint" => value.is_boolean(),
                "idempotentHint" => *value == true && !hints.contains_key("readOnlyHint"),
                _ => false,
            };
            assert!(worth_saying, "{name}: {hints:?}");
        }
        assert!(tool["title"].is_string(), "{name}");
        assert_eq!(tool["inputSchema"]["type"], "object", "{name}");
        insta::assert_json_snapshot!(format!("tool_{name}"), tool);
    }
    // What is beside the list: how long a client may keep it, and for whom (2026-07-28).
    insta::assert_json_snapshot!("tools_list", answer);
}

#[tokio::test]
async fn dotted_names_are_spelled_as_they_are() {
    let answer = listed("[server]\ntool_names = \"dotted\"").await;
    let tools = answer["tools"].as_array().unwrap();
    for tool in tools {
        assert_eq!(tool["name"], tool["_meta"]["obo/name"]);
    }
    assert!(tools.is_sorted_by_key(|tool| tool["name"].as_str().unwrap()));
    assert_eq!(tools[0]["name"].as_str().unwrap().matches('.').count(), 1);
}
