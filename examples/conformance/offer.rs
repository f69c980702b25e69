//! What the suite expects to find, as data.

use rmcp::model::{GetPromptResult, Prompt, ReadResourceResult, Resource, ResourceTemplate, Tool};
use serde_json::{Map, Value, json};

/// One red pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";

/// No sound at all.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";

/// The tools: a name, and the schema of its arguments where it has any.
pub(crate) fn tools() -> Vec<Tool> {
    let none = || json!({"type": "object", "properties": {}});
    let text = |name: &str| json!({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]});
    let mut tools = vec![
        ("json_schema_2020_12_tool", whole_schema()),
        ("test_elicitation", text("message")),
        ("test_sampling", text("prompt")),
        (
            "test_header",
            json!({"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}),
        ),
    ];
    let without = [
        "test_audio_content",
        "test_elicitation_sep1034_defaults",
        "test_elicitation_sep1330_enums",
        "test_embedded_resource",
        "test_error_handling",
        "test_image_content",
        "test_input_required_result_capabilities",
        "test_input_required_result_elicitation",
        "test_input_required_result_list_roots",
        "test_input_required_result_multi_round",
        "test_input_required_result_multiple_inputs",
        "test_input_required_result_request_state",
        "test_input_required_result_sampling",
        "test_input_required_result_tampered_state",
        "test_logging_tool",
        "test_missing_capability",
        "test_multiple_content_types",
        "test_reconnection",
        "test_simple_text",
        "test_streaming_elicitation",
        "test_tool_with_logging",
        "test_tool_with_progress",
        "test_trigger_prompt_change",
        "test_trigger_tool_change",
    ];
    tools.extend(without.map(|name| (name, none())));
    tools.sort_by_key(|(name, _)| *name);
    let tool =
        |(name, schema)| Tool::new(name, "A tool of the conformance suite.", parsed::<Map<String, Value>>(schema));
    tools.into_iter().map(tool).collect()
}

/// What the tools that always say the same say: content, or an error.
pub(crate) fn plain_result(tool: &str) -> Option<Value> {
    let embedded = |uri: &str, mime: &str, text: &str| json!({"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": text}});
    let text = |text: &str| json!({"type": "text", "text": text});
    let image = || json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let content = match tool {
        "test_simple_text" => json!([text("This is a simple text response for testing.")]),
        "test_image_content" => json!([image()]),
        "test_audio_content" => json!([{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]),
        "test_embedded_resource" => {
            json!([embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")])
        }
        "test_multiple_content_types" => json!([
            text("Multiple content types test:"),
            image(),
            embedded("test://mixed-content-resource", "application/json", r#"{"test":"data","value":123}"#),
        ]),
        "test_error_handling" => {
            return Some(json!({
                "content": [text("This tool intentionally returns an error for testing")],
                "isError": true,
                "resultType": "complete",
            }));
        }
        "test_reconnection" | "test_header" | "json_schema_2020_12_tool" => json!([text("done")]),
        _ => return None,
    };
    Some(json!({"content": content, "resultType": "complete"}))
}

/// The form that a tool asks the person to fill in, on the revisions whose servers send requests.
pub(crate) fn form(tool: &str, arguments: &Map<String, Value>) -> Option<Value> {
    let titled = |choices: &[(&str, &str)]| -> Value {
        choices.iter().map(|(value, title)| json!({"const": value, "title": title})).collect()
    };
    let (message, properties, required) = match tool {
        "test_elicitation" => (
            arguments.get("message").and_then(Value::as_str).unwrap_or_default(),
            json!({
                "username": {"type": "string", "description": "User's response"},
                "email": {"type": "string", "description": "User's email address"},
            }),
            json!(["username", "email"]),
        ),
        "test_elicitation_sep1034_defaults" => (
            "Every field has a default",
            json!({
                "name": {"type": "string", "default": "John Doe"},
                "age": {"type": "integer", "default": 30},
                "score": {"type": "number", "default": 95.5},
                "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
                "verified": {"type": "boolean", "default": true},
            }),
            json!([]),
        ),
        "test_elicitation_sep1330_enums" => {
            let options = json!(["option1", "option2", "option3"]);
            (
                "Every kind of choice",
                json!({
                    "untitledSingle": {"type": "string", "enum": options},
                    "titledSingle": {
                        "type": "string",
                        "oneOf": titled(&[("value1", "First"), ("value2", "Second"), ("value3", "Third")]),
                    },
                    "legacyEnum": {
                        "type": "string",
                        "enum": ["opt1", "opt2", "opt3"],
                        "enumNames": ["One", "Two", "Three"],
                    },
                    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
                    "titledMulti": {
                        "type": "array",
                        "items": {"anyOf": titled(&[("value1", "First"), ("value2", "Second"), ("value3", "Third")])},
                    },
                }),
                json!([]),
            )
        }
        _ => return None,
    };
    Some(json!({
        "mode": "form",
        "message": message,
        "requestedSchema": {"type": "object", "properties": properties, "required": required},
    }))
}

/// Something that a tool or a prompt asks of the client before it can answer (2026-07-28, MRTR).
pub(crate) fn input(key: &str) -> Value {
    let form = |message: &str, field: &str, kind: &str| {
        let schema = json!({"type": "object", "properties": {field: {"type": kind}}, "required": [field]});
        json!({
            "method": "elicitation/create",
            "params": {"mode": "form", "message": message, "requestedSchema": schema},
        })
    };
    let sampling = |text: &str, most: u32| {
        let message = json!({"role": "user", "content": {"type": "text", "text": text}});
        json!({"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": most}})
    };
    match key {
        "capital_question" => sampling("What is the capital of France?", 100),
        "greeting" => sampling("Generate a greeting", 50),
        "client_roots" => json!({"method": "roots/list", "params": {}}),
        "confirm" => form("Please confirm", "ok", "boolean"),
        "step1" => form("Step 1: What is your name?", "name", "string"),
        "step2" => form("Step 2: What is your favorite color?", "color", "string"),
        "user_context" => form("What context should the prompt use?", "context", "string"),
        _ => form("What is your name?", "name", "string"),
    }
}

/// The prompts.
pub(crate) fn prompts() -> Vec<Prompt> {
    let required = |name: &str| json!({"name": name, "description": "An argument.", "required": true});
    let prompts = [
        ("test_input_required_result_prompt", json!([])),
        ("test_prompt_with_arguments", json!([required("arg1"), required("arg2")])),
        ("test_prompt_with_embedded_resource", json!([required("resourceUri")])),
        ("test_prompt_with_image", json!([])),
        ("test_simple_prompt", json!([])),
    ];
    let prompt = |(name, arguments)| {
        parsed(json!({"name": name, "description": "A prompt of the conformance suite.", "arguments": arguments}))
    };
    prompts.into_iter().map(prompt).collect()
}

/// What a prompt says.
pub(crate) fn prompt(name: &str, arguments: &Map<String, Value>) -> Option<GetPromptResult> {
    let argument = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default();
    let text = |text: &str| json!({"type": "text", "text": text});
    let contents = match name {
        "test_simple_prompt" => vec![text("This is a simple prompt for testing.")],
        "test_prompt_with_arguments" => {
            let (first, second) = (argument("arg1"), argument("arg2"));
            vec![text(&format!("Prompt with arguments: arg1='{first}', arg2='{second}'"))]
        }
        "test_prompt_with_embedded_resource" => {
            let said = "Embedded resource content for testing.";
            let resource = json!({"uri": argument("resourceUri"), "mimeType": "text/plain", "text": said});
            vec![json!({"type": "resource", "resource": resource}), text("Please process the embedded resource above.")]
        }
        "test_prompt_with_image" => vec![
            json!({"type": "image", "data": PNG, "mimeType": "image/png"}),
            text("Please analyze the image above."),
        ],
        "test_input_required_result_prompt" => vec![text("This is a prompt with context.")],
        _ => return None,
    };
    let messages: Vec<Value> =
        contents.into_iter().map(|content| json!({"role": "user", "content": content})).collect();
    Some(parsed(json!({"messages": messages, "resultType": "complete"})))
}

/// The resources.
pub(crate) fn resources() -> Vec<Resource> {
    let resource = |(uri, mime)| {
        parsed(json!({
            "uri": uri,
            "name": uri,
            "description": "A resource of the conformance suite.",
            "mimeType": mime,
        }))
    };
    [
        ("test://static-binary", "image/png"),
        ("test://static-text", "text/plain"),
        ("test://watched-resource", "text/plain"),
    ]
    .map(resource)
    .into()
}

/// The one template.
pub(crate) fn templates() -> Vec<ResourceTemplate> {
    vec![parsed(json!({
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "description": "A resource template of the conformance suite.",
        "mimeType": "application/json",
    }))]
}

/// What a resource holds.
pub(crate) fn resource(uri: &str) -> Option<ReadResourceResult> {
    let contents = match uri {
        "test://static-binary" => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
        "test://static-text" | "test://watched-resource" => {
            json!({"uri": uri, "mimeType": "text/plain", "text": "This is the content of the static text resource."})
        }
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let data = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
            json!({"uri": uri, "mimeType": "application/json", "text": data.to_string()})
        }
    };
    Some(parsed(json!({"contents": [contents], "resultType": "complete"})))
}

/// A schema that uses more than most (2025-11-25, Tools §Tool; 2026-07-28 has the composition and conditions too).
fn whole_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }},
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    })
}

/// Reads one of the values above, which are written to be readable as what they are.
#[expect(clippy::expect_used, reason = "constants of this file, all of which the suite asks for in each run")]
pub(crate) fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the offer has the form of its type")
}
