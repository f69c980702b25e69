//! A tool as the public clients read it.

use serde_json::{Map, Value, json};

use crate::catalog::{Api, Tool};
use crate::vault::Grant;

/// The formats besides the clients' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Chat Completions' `tools`.
    OpenAi,
    /// Messages' `tools`.
    Anthropic,
}

impl Format {
    /// Reads a format's name.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "openai" => Some(Self::OpenAi),
            "anthropic" => Some(Self::Anthropic),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }

    /// The tool for a model's API. Those refuse dots in names.
    pub(super) fn of(self, tool: &Tool) -> Value {
        let name = tool.name.underscored();
        match self {
            Self::OpenAi => json!({
                "type": "function",
                "function": { "name": name, "description": tool.description, "parameters": &*tool.input },
            }),
            Self::Anthropic => json!({
                "name": name, "description": tool.description, "input_schema": &*tool.input,
            }),
        }
    }
}

/// What an application is told of its user and a tool.
pub(super) struct Readiness<'a> {
    /// The user's connections.
    pub(super) grants: &'a [Grant],
    /// Whether one of them is enough for a tool.
    pub(super) enough: &'a dyn Fn(&Api, &Grant) -> bool,
}

/// The tool, and whether a user could call it now, where one is named.
pub(super) fn definition(tool: &Tool, readiness: Option<&Readiness<'_>>, formats: &[Format]) -> Value {
    let (toolkit, name) = tool.name.as_str().split_once('.').unwrap_or(("", tool.name.as_str()));
    let version = env!("CARGO_PKG_VERSION");
    let mut definition = json!({
        "name": name,
        "qualified_name": tool.name.as_str(),
        "fully_qualified_name": format!("{}@{version}", tool.name),
        "description": tool.description,
        "toolkit": { "name": toolkit, "version": version },
        "input": { "parameters": parameters(&tool.input) },
        "output": { "available_modes": ["value", "error"], "value_schema": { "val_type": "json" } },
        "requirements": requirements(tool.api().map(|api| &**api), readiness),
    });
    if !formats.is_empty() {
        let formatted: Map<String, Value> =
            formats.iter().map(|format| (format.name().to_owned(), format.of(tool))).collect();
        definition["formatted_schema"] = Value::Object(formatted);
    }
    definition
}

fn requirements(api: Option<&Api>, readiness: Option<&Readiness<'_>>) -> Value {
    let Some(api) = api else { return json!({ "met": true }) };
    let mut authorization = json!({
        "provider_id": api.provider.id.as_str(),
        "provider_type": "oauth2",
        "oauth2": { "scopes": api.scopes_any_of.first() },
        // Tools of a provider without a client are not offered.
        "status": "active",
    });
    let Some(readiness) = readiness else { return json!({ "authorization": authorization }) };
    let met = readiness.grants.iter().any(|grant| (readiness.enough)(api, grant));
    authorization["token_status"] = if met { "completed".into() } else { "not_started".into() };
    json!({ "met": met, "authorization": authorization })
}

/// The arguments, one by one, of the JSON Schema. What the clients' own types cannot say is `json`.
fn parameters(schema: &Map<String, Value>) -> Vec<Value> {
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Vec::new() };
    let parameter = |(name, property): (&String, &Value)| {
        json!({
            "name": name,
            "description": property.get("description"),
            "required": is_required(name),
            "inferrable": true,
            "value_schema": value_schema(property),
        })
    };
    properties.iter().map(parameter).collect()
}

fn value_schema(property: &Value) -> Value {
    let kind = kind(property);
    let mut schema = json!({ "val_type": kind });
    if kind == "array" {
        schema["inner_val_type"] = property.get("items").map_or("json", self::kind).into();
    }
    let texts = property.get("enum").and_then(Value::as_array).filter(|all| all.iter().all(Value::is_string));
    if let Some(texts) = texts {
        schema["enum"] = Value::Array(texts.clone());
    }
    schema
}

fn kind(schema: &Value) -> &'static str {
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => "string",
        Some("integer") => "integer",
        Some("number") => "number",
        Some("boolean") => "boolean",
        Some("array") => "array",
        _ => "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_listed_one_by_one() {
        let Value::Object(schema) = json!({
            "type": "object",
            "required": ["to"],
            "properties": {
                "to": { "type": "array", "items": { "type": "string" }, "description": "Who." },
                "how": { "type": "string", "enum": ["a", "b"] },
                "when": { "type": ["string", "null"] },
                "much": { "type": "array" },
            },
        }) else {
            panic!("an object")
        };
        let listed = parameters(&schema);
        let named = |name: &str| listed.iter().find(|parameter| parameter["name"] == name).unwrap();
        assert_eq!(named("to")["value_schema"], json!({ "val_type": "array", "inner_val_type": "string" }));
        assert_eq!((&named("to")["required"], &named("how")["required"]), (&json!(true), &json!(false)));
        assert_eq!(named("how")["value_schema"], json!({ "val_type": "string", "enum": ["a", "b"] }));
        assert_eq!(named("when")["value_schema"], json!({ "val_type": "json" }));
        assert_eq!(named("much")["value_schema"], json!({ "val_type": "array", "inner_val_type": "json" }));
        assert!(parameters(&Map::new()).is_empty());
    }
}
