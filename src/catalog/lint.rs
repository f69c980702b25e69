//! What is probably not meant in a manifest that can be used. Never an error: a file that is refused is refused by what
//! compiles it, for serving and for `obo tools check` alike.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::finding::{Finding, Level};
use super::tool::{Method, RequestManifest, ToolManifest};
use super::{Effect, Provider};
use crate::schema::nearest;

mod fields;

/// The shortest description that can tell a model anything, in characters.
const SHORT_DESCRIPTION_CHARS: usize = 20;
/// How deep arguments are looked at for descriptions.
const MAX_DEPTH: usize = 8;

/// Verbs of tools that ask by POST: the body holds the question.
const ASKING: &[&str] =
    &["Batch", "Check", "Count", "Fetch", "Find", "Get", "List", "Look", "Preview", "Query", "Read", "Search"];

/// What is unwise in a tool's manifest.
pub(super) fn tool(manifest: &ToolManifest, provider: &Provider, file: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    names(manifest, file, &mut findings);
    if manifest.description.trim().chars().count() < SHORT_DESCRIPTION_CHARS {
        let reason = "the description is too short for a model to choose by".to_owned();
        let mend = "say what the tool does, when not to use it, and what it returns";
        findings.push(Finding::at_path(&["description"], reason, mend));
    }
    let mut path = vec!["input".to_owned()];
    descriptions(&manifest.input, &mut path, &mut findings);
    scopes(manifest, provider, &mut findings);
    effects(manifest, &mut findings);
    arguments(manifest, &mut findings);
    let mut findings: Vec<Finding> = findings.into_iter().map(|finding| finding.weighing(Level::Warning)).collect();
    if manifest.test.is_empty() {
        let reason = "there is no [[test]]".to_owned();
        let mend = "add one: arguments, the request they make, an answer, and the value; `obo tools test` runs it";
        findings.push(Finding::at_path(&[], reason, mend).weighing(Level::Hint));
    }
    findings
}

/// The file is named after the verb, so that it is found.
fn names(manifest: &ToolManifest, file: &str, findings: &mut Vec<Finding>) {
    let Some((toolkit, verb)) = manifest.name.split_once('.') else { return };
    let expected = format!("{}.toml", kebab(verb));
    // A provider with several toolkits may have the same verb in two of them.
    let longer = format!("{}-{expected}", kebab(toolkit));
    if !file.ends_with(&expected) || !longer.ends_with(file) {
        let reason = format!("the file of {} is named {file:?}", manifest.name);
        findings.push(Finding::at_path(&["name"], reason, &format!("name it {expected:?}")));
    }
    for (part, what) in [(toolkit, "toolkit"), (verb, "verb")] {
        if !part.starts_with(|c: char| c.is_ascii_uppercase()) {
            let reason = format!("the {what} {part:?} begins with a small letter");
            findings.push(Finding::at_path(&["name"], reason, "write Toolkit.Verb, each word with a capital letter"));
        }
    }
}

/// `SendEmail` as `send-email`.
pub fn kebab(text: &str) -> String {
    let mut kebab = String::new();
    let chars: Vec<char> = text.chars().collect();
    for (i, c) in chars.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| chars[i]);
        let after = chars.get(i + 1);
        // The capitals of an abbreviation stay together: `ReadURLs` is `read-urls`.
        let begins = c.is_ascii_uppercase()
            && before.is_some_and(|before| {
                !before.is_ascii_uppercase() || after.is_some_and(|c| c.is_ascii_lowercase() && *c != 's')
            });
        if begins {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}

/// Arguments without a description, at every depth.
fn descriptions(schema: &Map<String, Value>, path: &mut Vec<String>, findings: &mut Vec<Finding>) {
    if path.len() > 2 * MAX_DEPTH {
        return;
    }
    for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let Some(schema) = schema.as_object() else { continue };
        path.extend(["properties".to_owned(), name.clone()]);
        let described = schema.get("description").and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty());
        if !described && !schema.contains_key("$ref") && !schema.contains_key("const") {
            let reason = format!("the argument {name:?} has no description");
            let mend = "say what it is, in which format, with an example";
            findings.push(Finding::at("", reason, mend).moved_to(path.clone()));
        }
        descriptions(schema, path, findings);
        if let Some(items) = schema.get("items").and_then(Value::as_object) {
            path.push("items".to_owned());
            descriptions(items, path, findings);
            path.pop();
        }
        path.truncate(path.len() - 2);
    }
}

/// Scopes that the provider does not describe, that give too much, or that another one of the set includes.
fn scopes(manifest: &ToolManifest, provider: &Provider, findings: &mut Vec<Finding>) {
    let sets = manifest.scopes.iter().map(|set| ("scopes", set));
    let sets = sets.chain(manifest.scopes_any_of.iter().flatten().map(|set| ("scopes_any_of", set)));
    let mut seen = BTreeSet::new();
    for (key, set) in sets {
        for scope in set {
            if !provider.scopes.contains_key(scope) && seen.insert(scope) {
                let reason = format!("{} does not say what the scope {scope:?} lets a tool do", provider.id);
                let known = provider.scopes.keys().map(String::as_str);
                let mend = match nearest(scope, known) {
                    Some(nearest) => format!("did you mean {nearest:?}? Else add it to [scopes] of provider.toml"),
                    None => "add it to [scopes] of provider.toml: people read it when they connect".to_owned(),
                };
                findings.push(Finding::at_path(&[key], reason, &mend));
            }
        }
    }
    // Where a lesser set will do as well, its author has thought of it.
    for scope in manifest.scopes.iter().flatten() {
        if let Some(lesser) = provider.broad_scopes.get(scope) {
            let reason = format!("the scope {scope:?} gives more than one tool can need");
            let mend = match lesser.as_slice() {
                [] => "ask for a narrower one".to_owned(),
                lesser => format!("ask for the least that works of {}", lesser.join(", ")),
            };
            findings.push(Finding::at_path(&["scopes"], reason, &mend));
        }
    }
}

/// An effect that the requests contradict.
fn effects(manifest: &ToolManifest, findings: &mut Vec<Finding>) {
    let single = manifest.request.iter().map(|request| (request.method, false));
    let requests: Vec<(Method, bool)> =
        single.chain(manifest.step.iter().map(|step| (step.request.method, step.reads))).collect();
    let verb = manifest.name.split_once('.').map_or("", |(_, verb)| verb);
    let mut warn = |reason: &str, mend: &str| {
        findings.push(Finding::at_path(&["effect"], reason.to_owned(), mend));
    };
    let posts = requests.iter().any(|(method, reads)| *method == Method::Post && !reads);
    match manifest.effect {
        Effect::Read if posts && !ASKING.iter().any(|asking| verb.starts_with(asking)) => warn(
            "the effect is \"read\", but the tool makes a POST request",
            "write effect = \"write\", or begin the verb with Search, List, Get or Query where it only asks",
        ),
        Effect::Write | Effect::Destructive if requests.iter().all(|(method, _)| *method == Method::Get) => {
            warn("the tool only makes GET requests, but its effect is not \"read\"", "write effect = \"read\"")
        }
        Effect::Write if requests.iter().any(|(method, _)| *method == Method::Delete) => warn(
            "the tool makes a DELETE request, but its effect is \"write\"",
            "write effect = \"destructive\" where something is lost by it",
        ),
        _ => {}
    }
}

/// Fields that programs read of the arguments and that no argument is called by.
fn arguments(manifest: &ToolManifest, findings: &mut Vec<Finding>) {
    // Then there may be others.
    if manifest.input.get("additionalProperties").is_some_and(|further| *further != Value::Bool(false)) {
        return;
    }
    let known: Vec<&str> = manifest
        .input
        .get("properties")
        .and_then(Value::as_object)
        .map(|properties| properties.keys().map(String::as_str).collect())
        .unwrap_or_default();
    for (path, source) in programs(manifest) {
        for (name, at) in fields::of_input(source) {
            if !known.contains(&name) {
                let mend = match nearest(name, known.iter().copied()) {
                    Some(nearest) => format!("did you mean .{nearest}?"),
                    None => "add it to [input.properties]".to_owned(),
                };
                let reason = format!("the program reads .{name}, which is not an argument");
                findings.push(Finding::at("", reason, &mend).moved_within(path.clone(), at));
            }
        }
    }
}

/// The programs over arguments, and where they stand.
fn programs(manifest: &ToolManifest) -> Vec<(Vec<String>, &str)> {
    let mut programs: Vec<(Vec<String>, &str)> = Vec::new();
    let path = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
    if let Some(request) = &manifest.request {
        of_request(path(&["request"]), request, &mut programs);
    }
    for (index, step) in manifest.step.iter().enumerate() {
        let index = index.to_string();
        if let Some(each) = &step.each {
            programs.push((path(&["step", &index, "each"]), each));
        }
        of_request(path(&["step", &index, "request"]), &step.request, &mut programs);
    }
    for (name, fact) in &manifest.facts {
        let kinds = [
            ("email_domains", &fact.email_domains),
            ("count", &fact.count),
            ("url_hosts", &fact.url_hosts),
            ("max", &fact.max),
        ];
        for (kind, source) in kinds {
            programs.extend(source.as_deref().map(|source| (path(&["facts", name, kind]), source)));
        }
    }
    programs
}

fn of_request<'m>(prefix: Vec<String>, request: &'m RequestManifest, programs: &mut Vec<(Vec<String>, &'m str)>) {
    let mut add = |parts: &[&str], source: &'m str| {
        let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        programs.push(([prefix.clone(), parts].concat(), source));
    };
    request.query.iter().for_each(|(name, source)| add(&["query", name], source));
    request.headers.iter().for_each(|(name, source)| add(&["headers", name], source));
    let bodies =
        [("body", &request.body), ("form", &request.form), ("text", &request.text), ("multipart", &request.multipart)];
    for (key, source) in bodies {
        source.iter().for_each(|source| add(&[key], source));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_become_file_names() {
        for (verb, file) in [
            ("SendEmail", "send-email"),
            ("Get", "get"),
            ("ReadURLs", "read-urls"),
            ("ListHTMLPages", "list-html-pages"),
            ("GetV2Thing", "get-v2-thing"),
        ] {
            assert_eq!(kebab(verb), file);
        }
    }
}
