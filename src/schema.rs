//! Keys that a JSON Schema does not know, and the known key that was probably meant.
//!
//! A typing error in a configuration file must never be a setting silently left out. serde's `deny_unknown_fields`
//! stops at the first one and cannot suggest; this looks at the whole document.

use std::collections::BTreeSet;

use serde_json::Value;

/// How many levels are looked at. Configuration and manifests have six at most.
const MAX_DEPTH: usize = 32;
/// The least likeness of a suggestion, where 1 is equal (Jaro-Winkler).
const MIN_LIKENESS: f64 = 0.75;

/// A key that is not in the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// Where it stands: `providers.google.clientid`.
    pub path: String,
    /// The key itself.
    pub key: String,
    /// The known key that is most like it.
    pub nearest: Option<String>,
    /// What may stand there, sorted.
    pub known: Vec<String>,
}

impl std::fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unknown key {:?}", self.path)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest:?}?"),
            None => write!(f, "; known here: {}", self.known.join(", ")),
        }
    }
}

/// Every key of `value` that `schema` does not know, in the order of the document.
pub fn unknown_keys(schema: &Value, value: &Value) -> Vec<UnknownKey> {
    let mut found = Vec::new();
    walk(schema, schema, value, "", 0, &mut found);
    found
}

/// The candidate most like `word`, where one is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= MIN_LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

fn walk(root: &Value, schema: &Value, value: &Value, path: &str, depth: usize, found: &mut Vec<UnknownKey>) {
    if depth > MAX_DEPTH {
        return;
    }
    match value {
        Value::Object(entries) => {
            let mut objects = Vec::new();
            alternatives(root, schema, 0, &mut |schema| {
                if schema.get("properties").is_some() || schema.get("additionalProperties").is_some() {
                    objects.push(schema);
                }
            });
            if objects.is_empty() {
                return;
            }
            for (key, item) in entries {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let mut known = false;
                for schema in &objects {
                    let property = schema.get("properties").and_then(|properties| properties.get(key));
                    if let Some(next) =
                        property.or_else(|| schema.get("additionalProperties").filter(|s| s.is_object()))
                    {
                        known = true;
                        walk(root, next, item, &path, depth + 1, found);
                    } else if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
                        known = true;
                    }
                }
                if !known {
                    found.push(unknown(key, path, &objects));
                }
            }
        }
        Value::Array(items) => alternatives(root, schema, 0, &mut |schema| {
            let Some(next) = schema.get("items") else { return };
            for (i, item) in items.iter().enumerate() {
                walk(root, next, item, &format!("{path}[{i}]"), depth + 1, found);
            }
        }),
        _ => {}
    }
}

fn unknown(key: &str, path: String, objects: &[&Value]) -> UnknownKey {
    let known: BTreeSet<&str> = objects
        .iter()
        .filter_map(|schema| schema.get("properties")?.as_object())
        .flat_map(|properties| properties.keys().map(String::as_str))
        .collect();
    UnknownKey {
        nearest: nearest(key, known.iter().copied()).map(str::to_owned),
        known: known.into_iter().map(str::to_owned).collect(),
        key: key.to_owned(),
        path,
    }
}

/// Calls `f` with `schema` and all that it refers to or composes.
fn alternatives<'a>(root: &'a Value, schema: &'a Value, depth: usize, f: &mut dyn FnMut(&'a Value)) {
    if depth > MAX_DEPTH {
        return;
    }
    f(schema);
    let referred = schema.get("$ref").and_then(Value::as_str).and_then(|to| root.pointer(to.strip_prefix('#')?));
    if let Some(referred) = referred {
        alternatives(root, referred, depth + 1, f);
    }
    for keyword in ["anyOf", "oneOf", "allOf"] {
        for schema in schema.get(keyword).and_then(Value::as_array).into_iter().flatten() {
            alternatives(root, schema, depth + 1, f);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[derive(schemars::JsonSchema)]
    #[schemars(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Outer {
        listen: String,
        inner: Option<Inner>,
        list: Vec<Inner>,
        map: BTreeMap<String, Inner>,
        free: serde_json::Map<String, Value>,
    }

    #[derive(schemars::JsonSchema)]
    #[schemars(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Inner {
        client_id: String,
        pkce: bool,
    }

    #[test]
    fn unknown_keys_are_found_at_every_depth() {
        let schema = schemars::schema_for!(Outer).to_value();
        let value = json!({
            "listn": "x",
            "inner": {"clientid": 1},
            "list": [{"pkce": true}, {"pkse": true}],
            "map": {"any name": {"zzz": 1}},
            "free": {"whatever": {"x": 1}},
        });
        let found = unknown_keys(&schema, &value);
        let mut texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        texts.sort();
        assert_eq!(
            texts,
            [
                "unknown key \"inner.clientid\"; did you mean \"client_id\"?",
                "unknown key \"list[1].pkse\"; did you mean \"pkce\"?",
                "unknown key \"listn\"; did you mean \"listen\"?",
                "unknown key \"map.any name.zzz\"; known here: client_id, pkce",
            ]
        );
    }

    #[test]
    fn known_documents_have_none() {
        let schema = schemars::schema_for!(Outer).to_value();
        let value = json!({"listen": "x", "inner": null, "list": [], "map": {}, "free": {}});
        assert_eq!(unknown_keys(&schema, &value), []);
    }

    #[test]
    fn nothing_is_suggested_for_what_is_like_nothing() {
        assert_eq!(nearest("qqq", ["listen", "pkce"]), None);
        assert_eq!(nearest("Google.SendMail", ["Google.SendEmail", "Slack.PostMessage"]), Some("Google.SendEmail"));
    }
}
