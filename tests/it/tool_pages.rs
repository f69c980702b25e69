//! docs/tools: a page a toolkit, from the manifests. Compared here, and written anew with `UPDATE_SCHEMAS=1 cargo test`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use obo::catalog::{Catalog, ProviderConfig, Tool, ToolsConfig};
use serde_json::{Map, Value, json};

/// The whole built-in catalog, as if every provider had a client.
fn catalog() -> Catalog {
    let bare = Catalog::load(&ToolsConfig::default(), &BTreeMap::new()).unwrap();
    let client = || ProviderConfig { client_id: Some("x".to_owned()), ..ProviderConfig::default() };
    let clients = bare.providers().map(|provider| (provider.id.clone(), client())).collect();
    let catalog = Catalog::load(&ToolsConfig::default(), &clients).unwrap();
    assert_eq!(catalog.problems(), []);
    catalog
}

#[test]
fn the_pages_of_the_toolkits_are_current() {
    let catalog = catalog();
    let mut toolkits: BTreeMap<&str, Vec<&Arc<Tool>>> = BTreeMap::new();
    for tool in catalog.tools() {
        toolkits.entry(tool.name.toolkit()).or_default().push(tool);
    }
    let mut pages = BTreeMap::from([("README.md".to_owned(), index(&toolkits))]);
    for (toolkit, tools) in &toolkits {
        pages.insert(file(toolkit), page(toolkit, tools));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tools");
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for gone in names(&folder).iter().filter(|name| !pages.contains_key(*name)) {
            fs::remove_file(folder.join(gone)).unwrap();
        }
        for (name, text) in &pages {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    assert!(names(&folder).iter().eq(pages.keys()), "docs/tools has other pages; run UPDATE_SCHEMAS=1 cargo test");
    for (name, text) in &pages {
        let written = fs::read_to_string(folder.join(name)).unwrap();
        assert!(written == *text, "docs/tools/{name} is not current; run UPDATE_SCHEMAS=1 cargo test, and look at it");
    }
}

#[test]
fn the_examples_are_calls_that_obo_takes() {
    let catalog = catalog();
    let (mut with, mut without) = (0, Vec::new());
    for tool in catalog.tools() {
        match example(tool) {
            Some(arguments) => {
                tool.arguments(arguments).unwrap_or_else(|failure| panic!("{}: {failure:?}", tool.name));
                with += 1;
            }
            None => without.push(tool.name.to_string()),
        }
    }
    // An argument with a pattern needs a value in quotes in its description, or in `examples`.
    assert!(without.len() * 10 <= with, "no examples for {without:?}, but for {with} others");
}

fn file(toolkit: &str) -> String {
    format!("{}.md", toolkit.to_lowercase())
}

fn provider(tool: &Tool) -> &str {
    tool.api().map_or("obo itself", |api| &api.provider.name)
}

fn index(toolkits: &BTreeMap<&str, Vec<&Arc<Tool>>>) -> String {
    let mut page = String::from(
        "# The tools\n\nGenerated from the manifests in `tools/`. Tools of a provider are offered once it has a client in obo.toml.\n",
    );
    let count: usize = toolkits.values().map(Vec::len).sum();
    page.push_str(&format!(
        "{count} tools in {} toolkits.\n\n| toolkit | tool | what | effect |\n|---|---|---|---|\n",
        toolkits.len()
    ));
    for (toolkit, tools) in toolkits {
        for (n, tool) in tools.iter().enumerate() {
            let first = if n == 0 { format!("[{toolkit}]({})", file(toolkit)) } else { String::new() };
            let verb = tool.name.as_str();
            let anchor = tool.name.as_str().to_lowercase().replace('.', "");
            page.push_str(&format!(
                "| {first} | [{verb}]({}#{anchor}) | {} | {} |\n",
                file(toolkit),
                cell(&tool.title),
                tool.effect.as_str()
            ));
        }
    }
    page
}

fn page(toolkit: &str, tools: &[&Arc<Tool>]) -> String {
    let mut page = format!("# {toolkit}\n\nGenerated from the manifests. What acts: {}.\n", provider(tools[0]));
    for tool in tools {
        page.push_str(&format!("\n## {}\n\n**{}.** {}\n\n", tool.name, tool.title, tool.description.trim()));
        let again = if tool.idempotent { "; calling it twice does no more than calling it once" } else { "" };
        page.push_str(&format!("- Effect: {}{again}\n", tool.effect.as_str()));
        if let Some(api) = tool.api() {
            let set = |set: &Vec<String>| {
                let words = set.iter().map(|scope| match api.provider.scopes.get(scope) {
                    Some(words) => format!("{words} (`{scope}`)"),
                    None => format!("`{scope}`"),
                });
                words.collect::<Vec<_>>().join("; ")
            };
            let sets: Vec<String> = api.scopes_any_of.iter().map(set).filter(|set| !set.is_empty()).collect();
            page.push_str(&match &sets[..] {
                [] => "- The person is asked for nothing beyond the connection\n".to_owned(),
                [one] => format!("- The person is asked to let obo: {one}\n"),
                several => format!("- The person is asked to let obo: {}\n", several.join("; or ")),
            });
        }
        let mut rows = Vec::new();
        arguments(&tool.input, "", &mut rows);
        if rows.is_empty() {
            page.push_str("- It takes no arguments\n");
        } else {
            page.push_str("\n| argument | type | default | what |\n|---|---|---|---|\n");
            page.push_str(&rows.concat());
        }
        if let Some(arguments) = example(tool).filter(|_| !rows.is_empty()) {
            let input = Value::Object(arguments).to_string().replace('\'', "'\\''");
            page.push_str(&format!("\n```sh\nobo call {} --input '{input}'\n```\n", tool.name));
        }
    }
    page
}

/// One row an argument, those of objects below their own.
fn arguments(schema: &Map<String, Value>, prefix: &str, rows: &mut Vec<String>) {
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, argument) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let default = match argument.get("default") {
            Some(default) => format!("`{default}`"),
            None if required.contains(&name.as_str()) => "required".to_owned(),
            None => String::new(),
        };
        let words = argument.get("description").and_then(Value::as_str).unwrap_or_default();
        let name = format!("{prefix}{name}");
        rows.push(format!("| `{name}` | {} | {default} | {} |\n", kind(argument), cell(words)));
        if let Some(inner) = argument.as_object() {
            match inner.get("items").and_then(Value::as_object) {
                Some(items) => self::arguments(items, &format!("{name}[]."), rows),
                None => self::arguments(inner, &format!("{name}."), rows),
            }
        }
    }
}

/// A type, in words.
fn kind(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    let bound = |key: &str| schema[key].as_i64();
    let between = |least: Option<i64>, most: Option<i64>, what: &str| match (least, most) {
        (Some(least), Some(most)) => format!(", {least} to {most}{what}"),
        (None, Some(most)) => format!(", at most {most}{what}"),
        (Some(least), None) if least > 1 => format!(", at least {least}{what}"),
        _ => String::new(),
    };
    match &schema["type"] {
        Value::String(kind) if kind == "string" => {
            let format = match schema["format"].as_str() {
                Some("date-time") => "date and time".to_owned(),
                Some(format) => format.to_owned(),
                None => "text".to_owned(),
            };
            format + &between(bound("minLength").filter(|least| *least > 1), bound("maxLength"), " characters")
        }
        Value::String(kind) if kind == "integer" || kind == "number" => {
            kind.clone() + &between(bound("minimum"), bound("maximum"), "")
        }
        Value::String(kind) if kind == "array" => {
            format!(
                "list of {}{}",
                kind_of_items(&schema["items"]),
                between(bound("minItems"), bound("maxItems"), " items")
            )
        }
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    }
}

fn kind_of_items(items: &Value) -> String {
    match items["type"].as_str() {
        Some("string") if items["enum"].is_array() => kind(items),
        Some("string") => "text".to_owned(),
        Some("object") => "objects".to_owned(),
        Some(kind) => kind.to_owned(),
        None => "any".to_owned(),
    }
}

/// In one cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The arguments that must be given, with values that are accepted; none where there is no telling.
fn example(tool: &Tool) -> Option<Map<String, Value>> {
    let value = value(&Value::Object((*tool.input).clone()), "")?;
    let arguments = value.as_object()?.clone();
    tool.arguments(arguments.clone()).ok().map(|_| arguments)
}

/// A value that a schema accepts: of those that it names, that its description has in quotes, and that are usual.
fn value(schema: &Value, words: &str) -> Option<Value> {
    let words = schema["description"].as_str().unwrap_or(words);
    let accepts = jsonschema::validator_for(schema).ok()?;
    let named =
        schema["examples"].as_array().into_iter().flatten().chain(schema["enum"].as_array().into_iter().flatten());
    let made = match schema["type"].as_str() {
        Some("object") => {
            let properties = schema["properties"].as_object();
            let required = || schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let further = properties.into_iter().flatten().map(|(name, _)| &**name);
            let further = further.filter(|name| !required().any(|required| required == *name));
            let least = schema["minProperties"].as_u64().unwrap_or(0) as usize;
            let mut made = Map::new();
            for name in required().chain(further).take(required().count().max(least)) {
                made.insert(name.to_owned(), value(properties?.get(name)?, words)?);
            }
            let written =
                words.find('{').and_then(|at| serde_json::Deserializer::from_str(&words[at..]).into_iter().next());
            vec![Value::Object(made)].into_iter().chain(written.and_then(Result::ok)).collect()
        }
        Some("array") => {
            let mut item = schema["items"].clone();
            // What is said of the list has the examples of its items.
            if item["description"].is_null() && item.is_object() {
                item["description"] = json!(words);
            }
            vec![json!([value(&item, words)?])]
        }
        Some("integer" | "number") => [10, 1, 100].map(Value::from).to_vec(),
        Some("boolean") => vec![json!(true)],
        _ => {
            // `…, as in octo-org in octo-org/website.` and `…: 2026-03-31T14:00:00+02:00 (…)`
            let said = words.split_once("as in ").map(|(_, said)| said).into_iter();
            let said = said.flat_map(|said| [said.split([',', ';', ' ']).next().unwrap_or(said), said]);
            let each = words.split_whitespace().map(|word| word.trim_matches([',', ';', ':', '(', ')']));
            let dated = each.filter(|word| word.starts_with("20"));
            let shown =
                words.split('"').skip(1).step_by(2).chain(said).chain(dated).map(|text| text.trim_end_matches('.'));
            let usual = [
                "ana@example.com",
                "https://example.com",
                "Example",
                "1",
                "2026-12-01T09:00:00Z",
                "2026-12-01T09:00:00",
                "2026-12-01",
                "001000000000001AAA",
            ];
            // An address is nothing that just any text should be.
            let usual = usual.into_iter().skip(if schema["format"].is_null() { 2 } else { 0 });
            shown.chain(usual).map(Value::from).collect()
        }
    };
    named.cloned().chain(made).find(|value| accepts.is_valid(value))
}
