//! Reads the text of a manifest, and names everything in it that is not as its schema says.

use std::sync::LazyLock;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{Draft, ValidationError, Validator};
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::de::DeTable;

use super::finding::Finding;
use super::provider::ProviderManifest;
use super::tool::ToolManifest;
use crate::schema::unknown_keys;

/// The most findings of one file. Behind a wrong bracket everything is wrong.
const MAX_FINDINGS: usize = 50;

/// Ends the reason where the schema has several forms and none fits.
const NO_FORM: &str = "has none of the forms that it may have";

const AS_THE_SCHEMA_SAYS: &str = "correct it as the schema in schemas/ says";

/// Parses a tool manifest, without compiling what is in it. Never panics.
///
/// # Errors
/// Everything that is not as the schema says.
pub fn parse_tool_manifest(text: &str) -> Result<ToolManifest, Vec<Finding>> {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(ToolManifest).to_value());
    parse(text, &SCHEMA)
}

/// Parses a provider manifest, without compiling what is in it. Never panics.
///
/// # Errors
/// Everything that is not as the schema says.
pub fn parse_provider_manifest(text: &str) -> Result<ProviderManifest, Vec<Finding>> {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(ProviderManifest).to_value());
    parse(text, &SCHEMA)
}

/// The schemas of manifests, by the name of their file in `schemas/`.
pub fn schemas() -> Vec<(&'static str, Value)> {
    vec![
        ("tool.schema.json", schemars::schema_for!(ToolManifest).to_value()),
        ("provider.schema.json", schemars::schema_for!(ProviderManifest).to_value()),
    ]
}

fn parse<T: DeserializeOwned>(text: &str, schema: &Value) -> Result<T, Vec<Finding>> {
    let value: Value = toml::from_str(text).map_err(|first| not_toml(text, first))?;
    let mut findings: Vec<Finding> = unknown_keys(schema, &value)
        .into_iter()
        .map(|unknown| {
            let mend = match &unknown.nearest {
                Some(nearest) => format!("did you mean {nearest:?}?"),
                None => format!("known here: {}", unknown.known.join(", ")),
            };
            let reason = format!("unknown key {:?}", unknown.path);
            // A key that is quoted for its dots is looked for by its name.
            match unknown.key.contains('.') {
                true => Finding::at(&unknown.key, reason, &mend),
                false => Finding::at("", reason, &mend).moved_to(split_path(&unknown.path)),
            }
        })
        .collect();
    let first = match toml::from_str(text) {
        Ok(manifest) if findings.is_empty() => return Ok(manifest),
        Ok(_) => None,
        Err(first) => Some(first),
    };
    // What reads the file stops where it first does not fit; the schema finds the rest too.
    let mut misfits: Vec<Finding> = misfits(schema, &value).into_iter().map(|finding| finding.located(text)).collect();
    if let Some(first) = first {
        let first = of_toml(text, &first);
        let vague = |finding: &Finding| finding.line == first.line && finding.reason.ends_with(NO_FORM);
        match misfits.iter().position(vague) {
            // It knows the forms by their names.
            Some(index) => misfits[index] = first,
            None if misfits.is_empty() && findings.is_empty() => findings.push(first),
            None => {}
        }
    }
    findings.extend(misfits);
    findings.truncate(MAX_FINDINGS);
    Err(findings.into_iter().map(|finding| finding.located(text)).collect())
}

fn not_toml(text: &str, first: toml::de::Error) -> Vec<Finding> {
    let (_, errors) = DeTable::parse_recoverable(text);
    let mut findings: Vec<Finding> = Vec::new();
    // After the first error of a line the others are about the same thing, as a rule.
    let mut errors: Vec<Finding> = errors.iter().map(|error| of_toml(text, error)).collect();
    errors.sort_by_key(|finding| (finding.line, finding.column));
    for finding in errors {
        if findings.iter().all(|other| other.line != finding.line) && findings.len() < MAX_FINDINGS {
            findings.push(finding);
        }
    }
    if findings.is_empty() {
        findings.push(of_toml(text, &first));
    }
    findings
}

fn of_toml(text: &str, error: &toml::de::Error) -> Finding {
    let finding = Finding::at("", error.message().trim().replace('\n', ", "), AS_THE_SCHEMA_SAYS);
    match error.span() {
        Some(span) => finding.at_offset(text, span.start),
        None => finding,
    }
}

/// What the schema finds wrong, but for unknown keys.
fn misfits(schema: &Value, value: &Value) -> Vec<Finding> {
    // Both schemas are our own; were one of them broken, what reads the file still says what is wrong.
    let Ok(validator) = jsonschema::options().with_draft(Draft::Draft202012).build(schema) else { return Vec::new() };
    errors(&validator, value)
}

fn errors(validator: &Validator, value: &Value) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for error in validator.iter_errors(value).take(MAX_FINDINGS) {
        describe(&error, &mut findings);
    }
    findings
}

/// How deep in a document an error is.
fn depth(error: &ValidationError<'_>) -> usize {
    error.instance_path().as_str().split('/').count()
}

fn describe(error: &ValidationError<'_>, findings: &mut Vec<Finding>) {
    // What may be left out has two forms, null and its own: what is wrong is said of the one that goes deeper.
    if let ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } = error.kind() {
        let deepest = |branch: &Vec<ValidationError<'_>>| branch.iter().map(depth).max().unwrap_or_default();
        if let Some(branch) = context.iter().max_by_key(|branch| deepest(branch))
            && deepest(branch) > depth(error)
        {
            return branch.iter().for_each(|error| describe(error, findings));
        }
    }
    findings.extend(described(error).filter(|finding| !findings.contains(finding)));
}

fn described(error: &ValidationError<'_>) -> Option<Finding> {
    let path: Vec<String> = error.instance_path().to_string().split('/').skip(1).map(unescaped).collect();
    let what = if path.is_empty() { "the file".to_owned() } else { dotted(&path) };
    let (reason, mend) = match error.kind() {
        // Named with the key that was probably meant, elsewhere.
        ValidationErrorKind::AdditionalProperties { .. } | ValidationErrorKind::UnevaluatedProperties { .. } => {
            return None;
        }
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            (format!("{what} has no {key:?}"), format!("add {key} = …"))
        }
        ValidationErrorKind::Enum { options } => {
            let options: Vec<String> = options.as_array().into_iter().flatten().map(ToString::to_string).collect();
            (format!("{what} is {}, which is not known", error.instance()), format!("write {}", options.join(", ")))
        }
        ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => {
            (format!("{what} is not of type {kind}"), AS_THE_SCHEMA_SAYS.to_owned())
        }
        ValidationErrorKind::AnyOf { .. } | ValidationErrorKind::OneOfNotValid { .. } => {
            (format!("{what} {NO_FORM}"), AS_THE_SCHEMA_SAYS.to_owned())
        }
        _ => (format!("{what}: {error}"), AS_THE_SCHEMA_SAYS.to_owned()),
    };
    Some(Finding::at("", reason, &mend).moved_to(path))
}

/// RFC 6901 §3.
fn unescaped(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

fn dotted(path: &[String]) -> String {
    let mut text = String::new();
    for part in path {
        match part.parse::<usize>() {
            Ok(index) => text.push_str(&format!("[{index}]")),
            Err(_) if text.is_empty() => text.push_str(part),
            Err(_) => text.push_str(&format!(".{part}")),
        }
    }
    text
}

fn split_path(path: &str) -> Vec<String> {
    path.split(['.', '[']).map(|part| part.trim_end_matches(']').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let text = "name = 5\neffect = \"reed\"\ntitel = \"x\"\nscopes = []\n[input]\ntype = \"object\"\n\
                    [request]\nmethod = \"GTE\"\nqueri.x = '.'\n";
        let findings = parse_tool_manifest(text).unwrap_err();
        let mut lines: Vec<(usize, String)> = findings
            .iter()
            .map(|finding| (finding.line.unwrap(), format!("{}; {}", finding.reason, finding.mend)))
            .collect();
        lines.sort();
        insta::assert_debug_snapshot!(lines);
    }

    #[test]
    fn every_error_of_the_text_is_named() {
        let findings = parse_tool_manifest("name = \ntitle = 'x\n[input\n").unwrap_err();
        let lines: Vec<_> = findings.iter().map(|finding| finding.line.unwrap()).collect();
        assert_eq!(lines, [1, 2, 3], "{findings:?}");
    }
}
