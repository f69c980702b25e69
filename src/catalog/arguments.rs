//! Arguments: bounded, completed with defaults, validated; and the schema they are validated against.

use std::io;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::Finding;
use crate::failure::{Code, Failure};
use crate::schema::nearest;

/// The largest arguments, in bytes of JSON: a mail of 25 MB with its attachments encoded, and the rest of the call.
pub const MAX_ARGUMENT_BYTES: usize = 30 * 1024 * 1024;
/// The deepest nesting of arguments.
pub const MAX_ARGUMENT_DEPTH: usize = 64;

/// How many wrong arguments are named at once.
const MAX_NAMED_ERRORS: usize = 5;
/// The longest path or name of the caller's that is quoted back, in characters.
const MAX_QUOTED_CHARS: usize = 100;
/// The argument that obo itself adds for people with several accounts of a provider.
pub const RESERVED: &str = "account";

/// Arguments that a tool's schema accepted. Only [`Tool::arguments`](super::Tool::arguments) builds them.
#[derive(Debug, Clone, PartialEq)]
pub struct Arguments(Map<String, Value>);

impl Arguments {
    /// The arguments as JSON.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// SHA-256 over the canonical JSON (keys sorted, no white space): the same arguments give the same digest.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash_object(&self.0, &mut hash);
        hash.finalize().into()
    }
}

/// A tool's compiled input schema.
pub(super) struct Input {
    validator: Validator,
    defaults: Vec<(String, Value)>,
    names: Vec<String>,
}

impl Input {
    /// Checks and compiles a schema. Arguments that it does not list are refused, unless it says otherwise; what clients
    /// see says so only where there are none to list, for in every list of tools it would be read and paid for.
    pub(super) fn compile(schema: &mut Map<String, Value>) -> Result<Self, Finding> {
        if schema.get("properties").is_some_and(|properties| properties.get(RESERVED).is_some()) {
            let reason = format!("the argument {RESERVED:?} is reserved");
            return Err(Finding::at(
                RESERVED,
                reason,
                "use another name; obo adds it for people with several accounts",
            ));
        }
        Self::compile_own(schema)
    }

    /// The same for a tool of obo's own, whose argument of the reserved name means what it says there.
    pub(super) fn compile_own(schema: &mut Map<String, Value>) -> Result<Self, Finding> {
        if schema.get("type") != Some(&Value::String("object".into())) {
            return Err(Finding::at("input", "the input is not of type object".into(), "write type = \"object\""));
        }
        let mut closed = schema.clone();
        closed.entry("additionalProperties").or_insert(Value::Bool(false));
        let none = Map::new();
        let properties = match schema.get("properties") {
            Some(Value::Object(properties)) => properties,
            None => &none,
            Some(_) => {
                return Err(Finding::at(
                    "properties",
                    "properties is not a table".into(),
                    "write [input.properties.NAME]",
                ));
            }
        };
        let defaults: Vec<_> = properties
            .iter()
            .filter_map(|(name, schema)| Some((name.clone(), schema.get("default")?.clone())))
            .collect();
        let names: Vec<_> = properties.keys().cloned().collect();
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !required.as_str().is_some_and(|name| properties.contains_key(name)) {
                let reason = format!("required names {required}, which is not among the properties");
                return Err(Finding::at("required", reason, "add the property or take it out of required"));
            }
        }
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            // Linear-time matching: a pattern meets whatever a caller sends.
            .with_pattern_options(PatternOptions::regex())
            .build(&Value::Object(closed))
            .map_err(|e| {
                Finding::at("input", format!("the input is not a JSON Schema: {e}"), "see JSON Schema 2020-12")
            })?;
        for (name, default) in &defaults {
            let alone = Value::Object(Map::from_iter([(name.clone(), default.clone())]));
            let path = format!("/{name}");
            if validator.iter_errors(&alone).any(|error| error.instance_path().to_string().starts_with(&path)) {
                let reason = format!("the default of {name:?} does not fit its own schema");
                return Err(Finding::at(name, reason, "correct the default"));
            }
        }
        if names.is_empty() {
            schema.entry("additionalProperties").or_insert(Value::Bool(false));
        }
        Ok(Self { validator, defaults, names })
    }

    /// Bounds, completes and validates.
    pub(super) fn accept(&self, mut raw: Map<String, Value>) -> Result<Arguments, Failure> {
        let invalid = |message: String| Failure::new(Code::InvalidArguments, message);
        if too_deep(raw.values(), 1) {
            return Err(invalid(format!("the arguments are nested more than {MAX_ARGUMENT_DEPTH} deep")));
        }
        if encoded_length(&raw) > MAX_ARGUMENT_BYTES {
            let limit = MAX_ARGUMENT_BYTES / (1024 * 1024);
            return Err(Failure::new(
                Code::TooLarge,
                format!("the arguments are larger than {limit} MiB; send less, or a link in the place of a file"),
            ));
        }
        for (name, default) in &self.defaults {
            if !raw.contains_key(name) {
                raw.insert(name.clone(), default.clone());
            }
        }
        let raw = Value::Object(raw);
        let errors: Vec<String> =
            self.validator.iter_errors(&raw).take(MAX_NAMED_ERRORS).map(|error| self.describe(&error)).collect();
        match raw {
            Value::Object(arguments) if errors.is_empty() => Ok(Arguments(arguments)),
            _ => Err(invalid(errors.join("; "))),
        }
    }

    /// What is wrong and where; never the value, which may be a whole letter or somebody's secret.
    fn describe(&self, error: &ValidationError<'_>) -> String {
        let path = quoted(error.instance_path().to_string().trim_start_matches('/'));
        let place = |what: String| if path.is_empty() { what } else { format!("{path}: {what}") };
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let unknown = unexpected.iter().take(MAX_NAMED_ERRORS).map(|name| {
                    let mend =
                        if path.is_empty() { nearest(name, self.names.iter().map(String::as_str)) } else { None };
                    let mend = mend.map(|nearest| format!(" (did you mean {nearest:?}?)")).unwrap_or_default();
                    format!("there is no argument {:?}{mend}", quoted(name))
                });
                place(unknown.collect::<Vec<_>>().join(", "))
            }
            // A schema that lists no argument at all refuses whatever is there, and does not say what that is.
            ValidationErrorKind::FalseSchema if path.is_empty() => "there are no arguments; leave them out".to_owned(),
            ValidationErrorKind::Required { property } => {
                place(format!("{} is required", property.as_str().unwrap_or("an argument")))
            }
            _ => place(error.masked_with("the value").to_string()),
        }
    }
}

fn quoted(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_QUOTED_CHARS).collect()
}

fn too_deep<'a>(mut values: impl Iterator<Item = &'a Value>, depth: usize) -> bool {
    depth > MAX_ARGUMENT_DEPTH
        || values.any(|value| match value {
            Value::Array(items) => too_deep(items.iter(), depth + 1),
            Value::Object(entries) => too_deep(entries.values(), depth + 1),
            _ => false,
        })
}

/// The length of a value as JSON, without writing it.
pub fn encoded_length(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

fn hash_value(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Array(items) => {
            hash.update(b"[");
            for (i, item) in items.iter().enumerate() {
                hash.update(if i == 0 { &b""[..] } else { b"," });
                hash_value(item, hash);
            }
            hash.update(b"]");
        }
        Value::Object(entries) => hash_object(entries, hash),
        // serde_json writes a scalar in one way only.
        scalar => hash.update(scalar.to_string().as_bytes()),
    }
}

/// Sorts the keys itself: whether serde_json's map does depends on features that any dependency may switch on.
fn hash_object(entries: &Map<String, Value>, hash: &mut Sha256) {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    hash.update(b"{");
    for (i, (key, item)) in sorted.into_iter().enumerate() {
        hash.update(if i == 0 { &b""[..] } else { b"," });
        hash.update(Value::String(key.clone()).to_string().as_bytes());
        hash.update(b":");
        hash_value(item, hash);
    }
    hash.update(b"}");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            _ => panic!("not an object"),
        }
    }

    fn input() -> Input {
        Input::compile(&mut object(json!({
            "type": "object",
            "required": ["to"],
            "properties": {
                "to": {"type": "string", "format": "email"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 50, "default": 10},
                "mode": {"enum": ["a", "b"], "default": "a"},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": false}},
            },
        })))
        .unwrap()
    }

    fn refused(raw: Value) -> String {
        let failure = input().accept(object(raw)).unwrap_err();
        assert_eq!(failure.code, Code::InvalidArguments);
        failure.message
    }

    #[test]
    fn defaults_are_filled_in_and_given_values_kept() {
        let arguments = input().accept(object(json!({"to": "a@b.example", "mode": "b"}))).unwrap();
        assert_eq!(Value::Object(arguments.as_map().clone()), json!({"to": "a@b.example", "mode": "b", "limit": 10}));
    }

    #[test]
    fn errors_name_the_place_and_what_was_expected_but_never_the_value() {
        assert_eq!(refused(json!({})), "to is required");
        assert_eq!(refused(json!({"to": "hunter2"})), "to: the value is not a \"email\"");
        assert_eq!(refused(json!({"to": 42})), "to: the value is not of type \"string\"");
        assert_eq!(
            refused(json!({"to": "a@b.example", "limt": 5})),
            "there is no argument \"limt\" (did you mean \"limit\"?)"
        );
        let several =
            refused(json!({"to": "a@b.example", "limit": 4242, "mode": "hunter2", "list": [{"x": 4242}, {"y": 1}]}));
        for part in [
            "limit: the value is greater than the maximum of 50",
            "mode: ",
            "list/0/x: ",
            "list/1: there is no argument \"y\"",
        ] {
            assert!(several.contains(part), "{several}");
        }
        assert!(!several.contains("4242") && !several.contains("hunter2"), "{several}");
    }

    #[test]
    fn a_tool_without_arguments_says_that_it_has_none() {
        let input = Input::compile(&mut object(json!({"type": "object"}))).unwrap();
        assert!(input.accept(Map::new()).is_ok());
        let failure = input.accept(object(json!({"hunter2": 1}))).unwrap_err();
        assert_eq!(failure.message, "there are no arguments; leave them out");
    }

    #[test]
    fn arguments_are_bounded() {
        let deep = (0..70).fold(json!(1), |value, _| json!([value]));
        assert!(refused(json!({"to": "a@b.example", "list": deep})).contains("nested"));
        let failure = input().accept(object(json!({"to": "a".repeat(MAX_ARGUMENT_BYTES)}))).unwrap_err();
        assert_eq!(failure.code, Code::TooLarge);
    }

    #[test]
    fn the_digest_is_of_the_content() {
        let digest = |text: &str| Arguments(serde_json::from_str(text).unwrap()).digest();
        assert_eq!(
            digest(r#"{"b": [1, {"y": 2, "x": null}], "a": "ä"}"#),
            digest(r#"{"a":"\u00e4","b":[1,{"x":null,"y":2}]}"#)
        );
        assert_ne!(digest(r#"{"a": 1}"#), digest(r#"{"a": "1"}"#));
        assert_ne!(digest(r#"{"a": [1, 2]}"#), digest(r#"{"a": [12]}"#));
        assert_ne!(digest(r#"{"a": {}}"#), digest(r#"{"a": []}"#));
        // The form is fixed: audit records and request states of other versions hold such digests.
        let canonical = Sha256::digest(br#"{"a":"x","b":[1,true,null]}"#);
        assert_eq!(digest(r#"{"b": [1, true, null], "a": "x"}"#), <[u8; 32]>::from(canonical));
    }

    #[test]
    fn schemas_that_cannot_work_are_refused() {
        for schema in [
            json!({"type": "array"}),
            json!({}),
            json!({"type": "object", "properties": {"account": {"type": "string"}}}),
            json!({"type": "object", "properties": {"a": {"type": "nonsense"}}}),
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            json!({"type": "object", "required": ["b"], "properties": {"a": {"type": "integer"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "https://example.com/schema"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}}),
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+\\1"}}}),
        ] {
            assert!(Input::compile(&mut object(schema.clone())).is_err(), "{schema}");
        }
    }
}
