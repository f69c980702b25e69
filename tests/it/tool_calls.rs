//! Tools of the catalog as two different people, against a provider that takes nothing but what its API documents: the
//! very request, with the person's own token; the value that comes back; and what goes wrong, in obo's words. The other
//! tools are run by `tests/e2e/catalog.test.mjs` and `tests/e2e/people.test.mjs`, where the test bed has what they need.

use std::collections::{BTreeMap, BTreeSet};

use obo::catalog::{Catalog, ProviderConfig, ToolsConfig};
use serde_json::{Value, json};

use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::scripted::{Exchange, PEOPLE, Scripted};
use crate::support::{Browser, TestObo};

mod atlassian;
mod github;
mod google;
mod hubspot;
mod notion;
mod slack;

/// A call, what it asks of the provider, and its value.
struct Case {
    tool: &'static str,
    arguments: Value,
    script: Vec<Exchange>,
    value: Value,
}

fn case(tool: &'static str, arguments: Value, script: Vec<Exchange>, value: Value) -> Case {
    Case { tool, arguments, script, value }
}

/// An answer to any request, and the code that it comes to.
struct Refusal {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: Value,
    code: &'static str,
}

fn refusal(status: u16, headers: &'static [(&'static str, &'static str)], body: Value, code: &'static str) -> Refusal {
    Refusal { status, headers, body, code }
}

/// An obo whose provider `id` is `scripted`, and nothing else.
async fn obo_with(id: &str, account: fn(&str) -> Value) -> (TestObo, Scripted) {
    let catalog = Catalog::load(&ToolsConfig::default(), &Default::default()).unwrap();
    let provider = catalog.provider(id).unwrap();
    let scripted = Scripted::start(provider.oauth.token_url.path(), provider.account.url.path(), account).await;
    let table = format!(
        "[server]\nconsent_wait = \"0s\"\n[providers.{id}]\nclient_id = \"x\"\nclient_secret = \"y\"\norigin = {:?}\n",
        scripted.origin
    );
    (TestObo::builder().without_providers().config(&table).start().await, scripted)
}

/// Goes through the consent that a call asks for.
async fn consent(obo: &TestObo, link: &str, person: &str) {
    let mut browser = Browser::new();
    let forwarded = url::Url::parse(&obo.press(&mut browser, link, person).await).unwrap();
    let asked = |name: &str| forwarded.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
    let back = format!("{}?code=code-{person}&state={}", asked("redirect_uri"), asked("state"));
    let page = browser.get(&back).await;
    assert_eq!(page.status, 200, "{}", page.text);
}

/// Runs each case as each person; then each tool with each refusal.
async fn run(id: &str, account: fn(&str) -> Value, cases: Vec<Case>, refusals: Vec<Refusal>) {
    let (obo, scripted) = obo_with(id, account).await;
    let ask = json!({ "provider": id });
    for person in PEOPLE {
        let client = obo.client(person).await;
        let asked = client.call("Obo.Connect", ask.clone()).await;
        consent(&obo, &link_of(&asked).unwrap_or_else(|| panic!("no link in {asked}")), person).await;
        assert_eq!(value_of(&client.call("Obo.Connect", ask.clone()).await)["status"], "connected");
        for Case { tool, arguments, script, value } in &cases {
            scripted.expect(script);
            let result = client.call(tool, arguments.clone()).await;
            scripted.assert_asked_by(person, tool);
            assert_eq!(&value_of(&result), value, "{tool} as {person}");
        }
    }
    let client = obo.client(PEOPLE[0]).await;
    let mut seen = BTreeSet::new();
    for Case { tool, arguments, script, .. } in cases.iter().filter(|one| seen.insert(one.tool)) {
        for Refusal { status, headers, body, code } in &refusals {
            let refused = script[0].clone().says(*status, headers, body.to_string());
            scripted.expect(&[refused]);
            let result = client.call(tool, arguments.clone()).await;
            scripted.assert_asked_by(PEOPLE[0], tool);
            if *code == "authorization_required" {
                // The scope was there, as far as obo knew: it is asked for again.
                let link = link_of(&result).unwrap_or_else(|| panic!("{tool}: no link in {result}"));
                consent(&obo, &link, PEOPLE[0]).await;
            } else {
                assert_eq!(code_of(&result).as_deref(), Some(*code), "{tool}: {result}");
            }
        }
    }
}

/// Asserts that a call fails before anything is sent, or after `script`, with this code and these words.
async fn assert_fails(
    (obo, scripted): &(TestObo, Scripted),
    tool: &str,
    arguments: Value,
    script: &[Exchange],
    (code, words): (&str, &str),
) {
    let client = obo.client(PEOPLE[0]).await;
    scripted.expect(script);
    let mut result = client.call(tool, arguments.clone()).await;
    if let Some(link) = link_of(&result) {
        consent(obo, &link, PEOPLE[0]).await;
        result = client.call(tool, arguments).await;
    }
    if !script.is_empty() {
        scripted.assert_asked_by(PEOPLE[0], tool);
    }
    assert_eq!(code_of(&result).as_deref(), Some(code), "{tool}: {result}");
    let text = result["content"][0]["text"].as_str().unwrap();
    assert!(text.contains(words), "{tool}: {text}");
}

/// A tool that nothing runs is one that nobody has seen at work.
#[test]
fn every_tool_of_a_provider_is_run_by_some_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |folder: &str| {
        let files = std::fs::read_dir(root.join(folder)).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.is_file()).map(|path| std::fs::read_to_string(path).unwrap()).collect::<String>()
    };
    // What the test bed runs, and what the modules of this file do.
    let run = read("tests/it/tool_calls") + &read("tests/e2e/lib");
    let client = || ProviderConfig { client_id: Some("x".to_owned()), ..Default::default() };
    let known = Catalog::load(&ToolsConfig::default(), &Default::default()).unwrap();
    let clients: BTreeMap<_, _> = known.providers().map(|one| (one.id.clone(), client())).collect();
    let catalog = Catalog::load(&ToolsConfig::default(), &clients).unwrap();
    let tools: Vec<_> = catalog.tools().filter_map(|tool| tool.api()).map(|api| api.name.to_string()).collect();
    assert!(tools.len() >= 45, "{} tools", tools.len());
    let missing: Vec<_> = tools
        .iter()
        .filter(|name| {
            ![format!("\"{name}\""), format!("\"{}\"", name.replace('.', "_"))].iter().any(|one| run.contains(one))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
