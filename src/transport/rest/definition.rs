//! A tool as the public clients read it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::catalog::{Api, Tool};
use crate::vault::Grant;

/// A tool.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Tool")]
pub(super) struct Definition {
    /// The name without its toolkit.
    name: String,
    /// The name with its toolkit: what execute takes.
    qualified_name: String,
    /// The same, with the version.
    fully_qualified_name: String,
    /// What it does, for the model that chooses it.
    description: String,
    toolkit: Toolkit,
    input: Input,
    output: Output,
    requirements: Requirements,
    /// The tool for the model APIs that were asked for, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    formatted_schema: BTreeMap<&'static str, Value>,
}

/// What a tool belongs to.
#[derive(Serialize, JsonSchema)]
struct Toolkit {
    name: String,
    version: &'static str,
}

/// What a tool takes.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolInput")]
struct Input {
    parameters: Vec<Parameter>,
}

/// One argument of a tool.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolParameter")]
struct Parameter {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    required: bool,
    /// Whether a model may choose the value.
    inferrable: bool,
    value_schema: ValueSchema,
}

/// What a value may be. What has no name here is `json`.
#[derive(Serialize, JsonSchema)]
struct ValueSchema {
    val_type: &'static str,
    /// What an array's items are.
    #[serde(skip_serializing_if = "Option::is_none")]
    inner_val_type: Option<&'static str>,
    /// The texts that are taken.
    #[serde(rename = "enum", skip_serializing_if = "Option::is_none")]
    texts: Option<Vec<String>>,
}

/// What a tool answers.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolOutput")]
struct Output {
    available_modes: [&'static str; 2],
    value_schema: ValueSchema,
}

/// What must be there before a tool can be called.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolRequirements")]
struct Requirements {
    /// Whether it is; none where no user was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    /// The connection; none for a tool that needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization: Option<Needed>,
}

/// The connection that a tool needs.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolAuthorization")]
struct Needed {
    provider_id: String,
    /// `oauth2`.
    provider_type: &'static str,
    oauth2: NeededScopes,
    /// `active`: tools of a provider without a client are not offered.
    status: &'static str,
    /// `completed` or `not_started`; none where no user was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_status: Option<&'static str>,
}

/// The scopes that are asked for.
#[derive(Serialize, JsonSchema)]
struct NeededScopes {
    scopes: Vec<String>,
}

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
pub(super) fn definition(tool: &Tool, readiness: Option<&Readiness<'_>>, formats: &[Format]) -> Definition {
    let (toolkit, name) = tool.name.as_str().split_once('.').unwrap_or(("", tool.name.as_str()));
    let version = env!("CARGO_PKG_VERSION");
    Definition {
        name: name.to_owned(),
        qualified_name: tool.name.to_string(),
        fully_qualified_name: format!("{}@{version}", tool.name),
        description: tool.description.clone(),
        toolkit: Toolkit { name: toolkit.to_owned(), version },
        input: Input { parameters: parameters(&tool.input) },
        output: Output { available_modes: ["value", "error"], value_schema: ValueSchema::of("json") },
        requirements: requirements(tool.api().map(|api| &**api), readiness),
        formatted_schema: formats.iter().map(|format| (format.name(), format.of(tool))).collect(),
    }
}

fn requirements(api: Option<&Api>, readiness: Option<&Readiness<'_>>) -> Requirements {
    let Some(api) = api else { return Requirements { met: Some(true), authorization: None } };
    let met = readiness.map(|user| user.grants.iter().any(|grant| (user.enough)(api, grant)));
    Requirements {
        met,
        authorization: Some(Needed {
            provider_id: api.provider.id.to_string(),
            provider_type: "oauth2",
            oauth2: NeededScopes { scopes: api.scopes_any_of.first().into_iter().flatten().cloned().collect() },
            status: "active",
            token_status: met.map(|met| if met { "completed" } else { "not_started" }),
        }),
    }
}

/// The arguments, one by one, of the JSON Schema. What the clients' own types cannot say is `json`.
fn parameters(schema: &Map<String, Value>) -> Vec<Parameter> {
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Vec::new() };
    let parameter = |(name, property): (&String, &Value)| Parameter {
        name: name.clone(),
        description: property.get("description").and_then(Value::as_str).map(ToOwned::to_owned),
        required: is_required(name),
        inferrable: true,
        value_schema: value_schema(property),
    };
    properties.iter().map(parameter).collect()
}

impl ValueSchema {
    fn of(val_type: &'static str) -> Self {
        Self { val_type, inner_val_type: None, texts: None }
    }
}

fn value_schema(property: &Value) -> ValueSchema {
    let val_type = kind(property);
    let inner = || property.get("items").map_or("json", kind);
    let listed = property.get("enum").and_then(Value::as_array);
    let texts = listed.map(|all| all.iter().map(|text| text.as_str().map(ToOwned::to_owned)).collect());
    ValueSchema {
        inner_val_type: (val_type == "array").then(inner),
        texts: texts.flatten(),
        ..ValueSchema::of(val_type)
    }
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
        let listed = serde_json::to_value(parameters(&schema)).unwrap();
        let listed = listed.as_array().unwrap();
        let named = |name: &str| listed.iter().find(|parameter| parameter["name"] == name).unwrap();
        assert_eq!(named("to")["value_schema"], json!({ "val_type": "array", "inner_val_type": "string" }));
        assert_eq!((&named("to")["required"], &named("how")["required"]), (&json!(true), &json!(false)));
        assert_eq!(named("how")["value_schema"], json!({ "val_type": "string", "enum": ["a", "b"] }));
        assert_eq!(named("when")["value_schema"], json!({ "val_type": "json" }));
        assert_eq!(named("much")["value_schema"], json!({ "val_type": "array", "inner_val_type": "json" }));
        assert!(parameters(&Map::new()).is_empty());
    }
}
