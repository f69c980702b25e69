//! `obo call --dry-run`: what would be sent.

use serde_json::{Map, Value, json};

use super::super::{Exit, output};
use crate::catalog::tool::{RequestManifest, StepManifest};
use crate::catalog::{Api, Tool};
use crate::executor::{self, Body, Planned};

/// Shows the requests of a call: those of the first step as they would be sent, but for the token; later ones as what they
/// will be made of, because the answers that they need are not there. Nothing is sent, and no connection is looked for.
pub(super) fn show(tool: &Tool, mut arguments: Map<String, Value>, json: bool) -> Result<(), Exit> {
    let Some(api) = tool.api() else {
        let text = format!("{} makes no request of its own: there is nothing to show", tool.name);
        return Err(Exit::usage(text));
    };
    arguments.remove("account");
    let planned = executor::plan(api, &tool.arguments(arguments)?)?;
    let later = api.written_steps().get(1..).unwrap_or_default();
    if json {
        let first = planned.iter().map(|planned| json!(planned));
        let all: Vec<Value> = first.chain(later.iter().map(|step| later_as_json(api, step))).collect();
        return output::json(&all);
    }
    for (index, planned) in planned.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        show_planned(planned)?;
    }
    if planned.is_empty() {
        output::line("The first step makes no request with these arguments.")?;
    }
    for (index, step) in later.iter().enumerate() {
        show_later(api, index + 2, step)?;
    }
    Ok(())
}

fn show_planned(planned: &Planned) -> Result<(), Exit> {
    output::line(format!("{} {}", planned.method, planned.url))?;
    let mut headers: Vec<(&str, &str)> =
        planned.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    headers.extend(content_type(&planned.body).map(|kind| ("content-type", kind)));
    headers.sort_unstable();
    for (name, value) in headers {
        output::line(format!("{name}: {value}"))?;
    }
    match &planned.body {
        Body::None => Ok(()),
        Body::Json(body) => {
            output::line("")?;
            output::json(body)
        }
        Body::Text(text) => output::line(format!("\n{text}")),
        Body::Form(fields) => {
            let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            output::line(format!("\n{text}"))
        }
        Body::Multipart(parts) => {
            output::line("")?;
            for part in parts {
                let file = part.filename.as_deref().map(|name| format!(", file {name}")).unwrap_or_default();
                let kind = part.mime_type.as_deref().map(|kind| format!(", {kind}")).unwrap_or_default();
                output::line(format!("part {}{file}{kind}, {} bytes", part.name, part.bytes))?;
            }
            Ok(())
        }
    }
}

fn content_type(body: &Body) -> Option<&'static str> {
    match body {
        Body::None => None,
        Body::Json(_) => Some("application/json; charset=utf-8"),
        Body::Form(_) => Some("application/x-www-form-urlencoded"),
        Body::Text(_) => Some("text/plain; charset=utf-8"),
        Body::Multipart(_) => Some("multipart/form-data"),
    }
}

fn show_later(api: &Api, number: usize, step: &StepManifest) -> Result<(), Exit> {
    let request = &step.request;
    output::line(format!("\nthen, step {number}, with what was answered before: as the manifest says"))?;
    if let Some(each) = &step.each {
        output::line(format!("for each item of: {}", each.trim()))?;
    }
    output::line(format!("{} {}", request.method.as_str(), url_of(api, request)))?;
    for (name, source) in &request.query {
        output::line(format!("query {name}: {}", source.trim()))?;
    }
    for (name, source) in &request.headers {
        output::line(format!("{}: {}", name.to_ascii_lowercase(), source.trim()))?;
    }
    for (kind, source) in bodies(request) {
        output::line(format!("{kind}: {}", source.trim()))?;
    }
    Ok(())
}

fn later_as_json(api: &Api, step: &StepManifest) -> Value {
    let request = &step.request;
    let mut made_of = json!({ "query": request.query, "headers": request.headers });
    for (kind, source) in bodies(request) {
        made_of[kind] = json!(source.trim());
    }
    json!({
        "method": request.method.as_str(),
        "url": url_of(api, request),
        "each": step.each.as_deref().map(str::trim),
        "made_of": made_of,
    })
}

fn bodies(request: &RequestManifest) -> impl Iterator<Item = (&'static str, &str)> {
    let all =
        [("body", &request.body), ("form", &request.form), ("text", &request.text), ("multipart", &request.multipart)];
    all.into_iter().filter_map(|(kind, source)| Some((kind, source.as_deref()?)))
}

/// The URL with its server's address, and its arguments still to be filled in.
fn url_of(api: &Api, request: &RequestManifest) -> String {
    let named = request.url.strip_prefix('{').and_then(|rest| rest.split_once('}'));
    match named.and_then(|(name, path)| Some((api.provider.servers.get(name)?, path))) {
        Some((server, path)) => format!("{}{path}", server.as_str().trim_end_matches('/')),
        None => request.url.clone(),
    }
}
