//! Everything that is wrong with a manifest that did not become a tool.
//!
//! Compiling stops at the first thing that cannot work. Its author wants all of them, each at its place. So the manifest
//! is compiled again once for each of its parts, by the very same code and with everything else left out: what fails
//! then is that part.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use jaq_core::load::lex::Lexer;
use jaq_core::load::parse::Parser;
use serde_json::{Map, Value, json};

use super::finding::Finding;
use super::tool::{Method, RequestManifest, ResponseManifest, StepManifest, ToolManifest};
use super::{Effect, Provider, RESERVED, Tool};

/// The most programs of a manifest that is taken apart: each part is a manifest to compile. The largest built-in one has a
/// tenth of that.
const MAX_PARTS: usize = 200;

/// A manifest with one of its parts, and where that stands.
struct Part {
    manifest: ToolManifest,
    path: Vec<String>,
    /// The part's text, where it is a program.
    program: Option<String>,
}

/// Everything that is wrong. `first` is what compiling the whole of it found.
pub(super) fn all(manifest: ToolManifest, provider: &Arc<Provider>, first: Finding) -> Vec<Finding> {
    let compile = |manifest: ToolManifest| Tool::new(manifest, Arc::clone(provider)).err();
    let mut bare = bare(&manifest, provider);
    let mut findings: Vec<Finding> = Vec::new();
    let mut add = |finding: Finding| {
        // What several parts need fails in each of them.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    };
    for part in heads(&manifest, &bare) {
        if let Some(finding) = compile(part.manifest) {
            // These name their own keys, but for the schema of one argument.
            add(finding);
        }
    }
    if compile(bare.clone()).is_some() {
        // With a broken schema nothing compiles; what is left is judged by arguments of the same names.
        bare.input = plain(&manifest.input);
    }
    let parts = if count(&manifest) > MAX_PARTS { Vec::new() } else { programs(&manifest, &bare) };
    for part in parts {
        if let Some(finding) = compile(part.manifest) {
            let at = part.program.as_deref().and_then(|source| place_in(source, &finding.reason));
            add(match at {
                Some(at) => finding.moved_within(part.path, at),
                None => finding.moved_to(part.path),
            });
        }
    }
    if findings.is_empty() {
        findings.push(first);
    }
    findings
}

/// How many programs a manifest has, near enough.
fn count(manifest: &ToolManifest) -> usize {
    let requests = manifest.request.iter().chain(manifest.step.iter().map(|step| &step.request));
    requests.map(|request| request.query.len() + request.headers.len()).sum::<usize>() + manifest.facts.len()
}

/// Arguments of the same names, which a URL may have.
fn plain(input: &Map<String, Value>) -> Map<String, Value> {
    let names = input.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let names: Vec<&String> = names.filter(|name| *name != RESERVED).collect();
    let properties: Map<String, Value> =
        names.iter().map(|name| ((*name).clone(), json!({ "type": "string" }))).collect();
    match json!({ "type": "object", "required": names, "properties": properties }) {
        Value::Object(plain) => plain,
        _ => Map::new(),
    }
}

/// The manifest with its name, texts, scopes and arguments, and one request that any provider has.
fn bare(manifest: &ToolManifest, provider: &Provider) -> ToolManifest {
    let server = provider.servers.keys().next().map_or("", String::as_str);
    ToolManifest {
        name: "Check.Check".to_owned(),
        title: "Check".to_owned(),
        description: "Check.".to_owned(),
        scopes: Some(Vec::new()),
        scopes_any_of: None,
        effect: Effect::Destructive,
        request: Some(get(format!("{{{server}}}"))),
        step: Vec::new(),
        response: ResponseManifest::default(),
        facts: BTreeMap::new(),
        test: Vec::new(),
        ..manifest.clone()
    }
}

fn get(url: String) -> RequestManifest {
    RequestManifest { method: Method::Get, url, ..RequestManifest::default() }
}

/// What stands at the head of a manifest, one thing in each.
fn heads(manifest: &ToolManifest, bare: &ToolManifest) -> Vec<Part> {
    let with = |change: &dyn Fn(&mut ToolManifest)| {
        let mut part = bare.clone();
        part.input = Map::from_iter([("type".to_owned(), "object".into())]);
        change(&mut part);
        Part { manifest: part, path: Vec::new(), program: None }
    };
    vec![
        with(&|part| part.name.clone_from(&manifest.name)),
        with(&|part| part.title.clone_from(&manifest.title)),
        with(&|part| part.description.clone_from(&manifest.description)),
        with(&|part| {
            part.scopes.clone_from(&manifest.scopes);
            part.scopes_any_of.clone_from(&manifest.scopes_any_of);
        }),
        with(&|part| part.input.clone_from(&manifest.input)),
        // The shape of the steps: their names, their number, and what each may do, with nothing in them.
        with(&|part| {
            part.effect = manifest.effect;
            part.request = manifest.request.clone().map(|request| emptied(&request, bare));
            part.step = manifest.step.iter().map(|step| hollow(step, bare)).collect();
        }),
    ]
}

/// A step that asks for nothing in particular.
fn hollow(step: &StepManifest, bare: &ToolManifest) -> StepManifest {
    let each = step.each.as_ref().map(|_| "[]".to_owned());
    StepManifest { bind: step.bind.clone(), each, reads: step.reads, request: emptied(&step.request, bare) }
}

fn emptied(request: &RequestManifest, bare: &ToolManifest) -> RequestManifest {
    let url = bare.request.as_ref().map(|request| request.url.clone()).unwrap_or_default();
    RequestManifest { method: request.method, ..get(url) }
}

/// What has a program or a URL in it, one in each.
fn programs(manifest: &ToolManifest, bare: &ToolManifest) -> Vec<Part> {
    let mut parts = Vec::new();
    let steps: Vec<StepManifest> = manifest.step.iter().map(|step| hollow(step, bare)).collect();
    let path = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
    if let Some(request) = &manifest.request {
        for (request, inner, program) in request_parts(request, bare) {
            let manifest = ToolManifest { request: Some(request), ..bare.clone() };
            parts.push(Part { manifest, path: [path(&["request"]), inner].concat(), program });
        }
    }
    for (index, step) in manifest.step.iter().enumerate() {
        let number = index.to_string();
        let mut with = |changed: StepManifest, inner: Vec<String>, program: Option<String>| {
            let mut steps = steps.clone();
            let _ = mem::replace(&mut steps[index], changed);
            let manifest = ToolManifest { request: None, step: steps, ..bare.clone() };
            parts.push(Part { manifest, path: [path(&["step", &number]), inner].concat(), program });
        };
        if let Some(each) = &step.each {
            let changed = StepManifest { each: Some(each.clone()), ..steps[index].clone() };
            with(changed, path(&["each"]), Some(each.clone()));
        }
        for (request, inner, program) in request_parts(&step.request, bare) {
            with(StepManifest { request, ..steps[index].clone() }, [path(&["request"]), inner].concat(), program);
        }
    }
    let response = |value: &str| ResponseManifest { value: value.to_owned() };
    let (request, step) = if steps.is_empty() { (bare.request.clone(), Vec::new()) } else { (None, steps) };
    parts.push(Part {
        manifest: ToolManifest { request, step, response: response(&manifest.response.value), ..bare.clone() },
        path: path(&["response", "value"]),
        program: Some(manifest.response.value.clone()),
    });
    for (name, fact) in &manifest.facts {
        let facts = BTreeMap::from([(name.clone(), fact.clone())]);
        parts.push(Part {
            manifest: ToolManifest { facts, ..bare.clone() },
            path: path(&["facts", name]),
            program: None,
        });
    }
    parts
}

type RequestPart = (RequestManifest, Vec<String>, Option<String>);

fn request_parts(request: &RequestManifest, bare: &ToolManifest) -> Vec<RequestPart> {
    let empty = emptied(request, bare);
    let path = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut parts = vec![(RequestManifest { url: request.url.clone(), ..empty.clone() }, path(&["url"]), None)];
    for (name, source) in &request.query {
        let query = BTreeMap::from([(name.clone(), source.clone())]);
        parts.push((RequestManifest { query, ..empty.clone() }, path(&["query", name]), Some(source.clone())));
    }
    for (name, source) in &request.headers {
        let headers = BTreeMap::from([(name.clone(), source.clone())]);
        parts.push((RequestManifest { headers, ..empty.clone() }, path(&["headers", name]), Some(source.clone())));
    }
    let mut bodies = Vec::new();
    let mut body = |key: &str, source: &Option<String>, set: &dyn Fn(&mut RequestManifest)| {
        if let Some(source) = source {
            let mut part = empty.clone();
            set(&mut part);
            bodies.push((part, path(&[key]), Some(source.clone())));
        }
    };
    body("body", &request.body, &|part| part.body.clone_from(&request.body));
    body("form", &request.form, &|part| part.form.clone_from(&request.form));
    body("text", &request.text, &|part| part.text.clone_from(&request.text));
    body("multipart", &request.multipart, &|part| part.multipart.clone_from(&request.multipart));
    parts.extend(bodies);
    parts
}

/// The byte of a program that a finding is about, as far as it can be told.
fn place_in(source: &str, reason: &str) -> Option<usize> {
    let offset = |part: &str| {
        let at = (part.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
        (at <= source.len()).then_some(at)
    };
    let tokens = match Lexer::new(source).lex() {
        Ok(tokens) => tokens,
        Err(errors) => return errors.first().and_then(|(_, rest)| offset(rest)),
    };
    match Parser::new(&tokens).parse(|parser| parser.term()) {
        Err(errors) => match errors.first().and_then(|(_, found)| found.as_ref()) {
            Some(token) => offset(token.0),
            None => Some(source.trim_end().len()),
        },
        // It is jq, and asks for something that there is not: the reason quotes it.
        Ok(_) => {
            let quoted = reason.split('"').nth(1)?;
            source.find(quoted)
        }
    }
}
