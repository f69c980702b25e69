//! Files that follow from the code: they are compared here, and written anew with `UPDATE_SCHEMAS=1 cargo test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use obo::config::{Config, Environment};
use obo::failure::Code;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_current(file: &str, text: &str) {
    let path = root().join(file);
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "{file} is not current; run UPDATE_SCHEMAS=1 cargo test, and look at what changed");
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_in(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn the_schemas_are_current() {
    let all = obo::catalog::schemas()
        .into_iter()
        .chain([("config.schema.json", Config::schema()), ("openapi.json", obo::transport::rest::openapi::document())]);
    for (name, schema) in all {
        is_current(&format!("schemas/{name}"), &(serde_json::to_string_pretty(&schema).unwrap() + "\n"));
    }
    let names: Vec<String> = files_in(&root().join("schemas"))
        .iter()
        .map(|f| f.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["config.schema.json", "openapi.json", "provider.schema.json", "tool.schema.json"]);
}

#[test]
fn the_schema_of_obo_toml_knows_every_key_of_the_design() {
    // What the schema takes, obo takes, and the other way round: one key of each section, right and misspelled.
    let validator = jsonschema::validator_for(&Config::schema()).unwrap();
    for (text, good) in [
        ("", true),
        ("[server]\nlisten = \"127.0.0.1:1\"\nconsent_delivery = \"elicit\"", true),
        ("[server]\nconsent_delivery = \"loud\"", false),
        ("[vault]\nstore = \"file\"\n[vault.key]\nsource = \"env\"\nenv = \"X\"", true),
        ("[vault.key]\nsource = \"env\"\nvariable = \"X\"", false),
        (
            "[providers.google]\nclient_id = \"x\"\npkce = true\n[providers.google.servers]\ngmail = \"https://g.example\"",
            true,
        ),
        ("[providers.google]\npkce = \"yes\"", false),
        ("[[identity.issuer]]\nname = \"corp\"\nissuer = \"https://idp.example.com\"\ntenant = \"acme\"", true),
        ("[[identity.issuer]]\nname = \"corp\"", false),
        ("[tools]\nenable = [\"Google.*\"]", true),
        ("[audit]\nfail_closed = \"all\"", true),
        ("[network]\nallow_private = [\"jira.corp:443\"]", true),
        ("[network]\nallow = []", false),
    ] {
        let value: Value = serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
        assert_eq!(validator.is_valid(&value), good, "{text}");
        let taken = Config::parse(text, "obo.toml", root(), &Environment::default());
        assert_eq!(taken.is_ok(), good, "{text}: {:?}", taken.err());
    }
}

#[test]
fn the_reference_of_obo_toml_is_current() {
    is_current("docs/config.md", &reference(&Config::schema()));
}

#[test]
fn the_errors_are_all_explained() {
    let page = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let named: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(code, _)| code).collect();
    assert_eq!(named, Code::ALL.map(Code::as_str));
    for code in Code::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{}` |", code.as_str()))).unwrap();
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{row}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{row}");
        // "no" and "yes" are what the code itself says; anything else is explained in words.
        match cells[3] {
            "yes" => assert!(code.can_retry() || code == Code::ScopeMissing, "{row}"),
            "no" => assert!(!code.can_retry(), "{row}"),
            _ => {}
        }
    }
}

/// Every name that code gives to what happened is explained in docs/audit.md, and nothing else is.
#[test]
fn the_notes_of_the_audit_are_all_explained() {
    let page = fs::read_to_string(root().join("docs/audit.md")).unwrap();
    let explained: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(note, _)| note.to_owned())
        .collect();
    let note = |text: &str| {
        let name = text.split([' ', ':']).next().unwrap_or_default();
        let (kind, what) = name.split_once('.')?;
        let known =
            matches!(kind, "consent" | "disconnect" | "refresh" | "leak" | "audit" | "token" | "app" | "client");
        let plain = !what.is_empty() && what.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        (known && plain).then(|| name.to_owned())
    };
    let mut given = BTreeSet::from(["disconnect".to_owned()]);
    for file in files_in(&root().join("src")).into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let text = fs::read_to_string(file).unwrap();
        given.extend(text.split('"').filter_map(note));
        // Events of the log begin so too: of these only what a command puts on record.
        let recorded = ["recorded(&app, \"", "recorded(app, \"", "record(app, \""]
            .into_iter()
            .flat_map(|call| text.split(call).skip(1));
        given.extend(
            recorded.filter_map(|rest| rest.split('"').next()).filter(|n| n.starts_with("vault.")).map(str::to_owned),
        );
    }
    assert!(given.len() > 20, "the search finds what it looks for: {given:?}");
    assert_eq!(given, explained);
}

#[test]
fn every_manifest_names_its_schema() {
    let manifests = files_in(&root().join("tools"));
    assert!(manifests.len() >= 8, "{manifests:?}");
    for path in manifests {
        let kind = if path.ends_with("provider.toml") { "provider" } else { "tool" };
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text.lines().next(),
            Some(&*format!("#:schema ../../schemas/{kind}.schema.json")),
            "{}",
            path.display()
        );
        assert_eq!(path.extension().unwrap(), "toml");
    }
}

/// The schema of obo.toml as a page for people.
fn reference(schema: &Value) -> String {
    let mut page = String::from(
        "# obo.toml\n\nGenerated from the schema, which is generated from the code: `schemas/config.schema.json`. Every key has a default;\n\
         an empty file is valid. Paths are relative to the file. Unknown keys are errors.\n\n\
         An environment variable with `__` in its name is a key and wins over the file: `OBO_SERVER__LISTEN` is\n\
         `server.listen`. Lists and tables are written in it as in TOML. Keys marked *secret* may be written `env:NAME` or\n\
         `file:PATH`.\n",
    );
    let mut sections = vec![("".to_owned(), schema.clone())];
    while let Some((path, section)) = sections.pop() {
        let mut rows = Vec::new();
        let mut inner = Vec::new();
        let no_keys = serde_json::Map::new();
        let required: Vec<&str> =
            section["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (key, written) in section["properties"].as_object().unwrap_or(&no_keys) {
            let found = Found::of(schema, written);
            let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match found.table {
                Some((suffix, table)) => inner.push((format!("{here}{suffix}"), table)),
                None => rows.push(format!(
                    "| `{key}` | {}{} | {} | {} |\n",
                    if SECRETS.contains(&here.as_str()) { "*secret* " } else { "" },
                    found.kind,
                    default(written, &found.words, required.contains(&key.as_str())),
                    found.words
                )),
            }
        }
        if !path.is_empty() && (!rows.is_empty() || inner.is_empty()) {
            let title =
                if path.ends_with("[]") { format!("[[{}]]", path.trim_end_matches("[]")) } else { format!("[{path}]") };
            page.push_str(&format!("\n## `{title}`\n\n"));
            let words = one_line(section["description"].as_str().unwrap_or_default());
            // What only repeats the title is left out.
            let words = match words.split_once(" of obo.toml") {
                Some((_, rest)) => rest.trim_start_matches([':', '.']).trim(),
                None => words.split_once("`: ").map_or(&*words, |(_, rest)| rest),
            };
            if !words.is_empty() {
                page.push_str(&format!("{}\n\n", sentence(words)));
            }
            if !rows.is_empty() {
                page.push_str(&format!("| key | type | default | what |\n|---|---|---|---|\n{}", rows.concat()));
            }
        }
        inner.reverse();
        sections.extend(inner);
    }
    page
}

/// The keys that may be written `env:NAME` or `file:PATH`.
const SECRETS: [&str; 3] = ["identity.issuer[].client_secret", "providers.ID.client_secret", "vault.url"];

/// The default as TOML, where it can be written; else the words say it.
fn default(written: &Value, words: &str, required: bool) -> String {
    match &written["default"] {
        _ if required => "required".to_owned(),
        Value::Null => match words.split_once("efault `").and_then(|(_, rest)| rest.split_once('`')) {
            Some((value, _)) => format!("`{value:?}`"),
            None if words.contains("efault") => "see text".to_owned(),
            None => "none".to_owned(),
        },
        value => format!("`{value}`"),
    }
}

/// What a key is, seen through references and options.
struct Found {
    kind: String,
    words: String,
    /// A table of its own, and what its name ends with.
    table: Option<(&'static str, Value)>,
}

impl Found {
    fn of(root: &Value, written: &Value) -> Self {
        let whole = resolved(root, written);
        let mut words =
            sentence(&one_line(written["description"].as_str().or(whole["description"].as_str()).unwrap_or_default()));
        let free =
            |of: &Value| of["additionalProperties"].is_object().then(|| resolved(root, &of["additionalProperties"]));
        let table = if whole["properties"].is_object() {
            Some(("", whole.clone()))
        } else if let Some(each) = free(&whole).filter(|each| each["properties"].is_object()) {
            Some((".ID", each))
        } else {
            let each = resolved(root, &whole["items"]);
            each["properties"].is_object().then_some(("[]", each))
        };
        let choices = choices(&whole);
        for (name, what) in &choices {
            words.push_str(&if what.is_empty() { format!(" `{name}`.") } else { format!(" `{name}`: {what}") });
        }
        let words = words.trim().to_owned();
        let kind = match kind_of(&whole).as_str() {
            "string" => {
                if choices.is_empty() {
                    "text".to_owned()
                } else {
                    "one of".to_owned()
                }
            }
            "array" => format!("list of {}", kind_of(&resolved(root, &whole["items"])).replace("string", "text")),
            "object" => format!(
                "table of {}",
                free(&whole).map_or("values".to_owned(), |each| kind_of(&each).replace("string", "text"))
            ),
            other => other.to_owned(),
        };
        Self { kind, words, table }
    }
}

fn kind_of(schema: &Value) -> String {
    let one = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    };
    one.unwrap_or("string").to_owned()
}

fn choices(schema: &Value) -> Vec<(String, String)> {
    let one_of = schema["oneOf"].as_array().into_iter().flatten();
    let described = one_of.clone().filter_map(|one| {
        Some((one["const"].as_str()?.to_owned(), one_line(one["description"].as_str().unwrap_or_default())))
    });
    let bare = one_of.chain([schema]).flat_map(|one| one["enum"].as_array().into_iter().flatten());
    let bare = bare.filter_map(|name| Some((name.as_str()?.to_owned(), String::new())));
    described.chain(bare).collect()
}

/// Follows references, and the alternative that is not null.
fn resolved(root: &Value, schema: &Value) -> Value {
    let mut here = schema;
    loop {
        let referred = here["$ref"].as_str().and_then(|to| root.pointer(to.trim_start_matches('#')));
        let chosen = here["anyOf"].as_array().and_then(|any| any.iter().find(|one| one["type"] != "null"));
        match referred.or(chosen) {
            Some(next) => here = next,
            None => return here.clone(),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
