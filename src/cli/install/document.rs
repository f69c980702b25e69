//! A client's configuration as text: one entry is changed, and every other character stays.

use std::fmt;

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstObject, CstObjectProp, CstRootNode};
use serde_json::Value;

use super::client::Entry;

/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// A configuration that could be read.
pub(in crate::cli) struct Document {
    root: CstRootNode,
    marked: bool,
    was_empty: bool,
    section: &'static str,
}

/// Why a configuration is left as it is.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Unreadable {
    /// It is not JSON: where, and what is wrong there.
    Syntax { line: usize, column: usize, what: String },
    /// It is JSON, and not of the expected shape.
    Shape(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { line, column, what } => write!(f, "line {line}, column {column}: {what}"),
            Self::Shape(what) => f.write_str(what),
        }
    }
}

/// Comments and trailing commas, which VS Code's files have; nothing else that is not JSON.
const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_trailing_commas: true,
    allow_loose_object_property_names: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

impl Document {
    /// Reads a configuration whose servers stand under `section`. An empty one is as good as none.
    pub(in crate::cli) fn parse(text: &str, section: &'static str) -> Result<Self, Unreadable> {
        let (marked, text) = match text.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let root = CstRootNode::parse(text, &OPTIONS).map_err(|error| Unreadable::Syntax {
            line: error.line_display(),
            column: error.column_display(),
            what: error.kind().to_string().to_lowercase(),
        })?;
        let document = Self { root, marked, was_empty: text.is_empty(), section };
        // Everything that a change would stumble over is found before one is made.
        document.servers()?;
        Ok(document)
    }

    /// The entry of that name.
    pub(in crate::cli) fn entry(&self, name: &str) -> Result<Option<Value>, Unreadable> {
        let Some(servers) = self.servers()? else { return Ok(None) };
        let Some(property) = only(&servers, name)? else { return Ok(None) };
        Ok(Some(property.value().and_then(|value| value.to_serde_value()).unwrap_or_default()))
    }

    /// Puts the entry in, in the place of one of that name.
    pub(super) fn put(&self, name: &str, entry: &Entry) -> Result<(), Unreadable> {
        let value = CstInputValue::Object(entry.iter().map(|(key, value)| ((*key).to_owned(), input(value))).collect());
        let servers = match self.servers()? {
            Some(servers) => servers,
            None => {
                let object = self.root.object_value_or_create().ok_or_else(not_an_object)?;
                object.object_value_or_create(self.section).ok_or_else(|| not_servers(self.section))?
            }
        };
        match only(&servers, name)? {
            Some(property) => property.set_value(value),
            None => {
                servers.append(name, value);
            }
        }
        Ok(())
    }

    /// Takes the entry out.
    pub(super) fn remove(&self, name: &str) -> Result<(), Unreadable> {
        if let Some(property) = self.servers()?.map(|servers| only(&servers, name)).transpose()?.flatten() {
            property.remove();
        }
        Ok(())
    }

    /// The text.
    pub(super) fn text(&self) -> String {
        let mut text = if self.marked { String::from(BYTE_ORDER_MARK) } else { String::new() };
        text.push_str(&self.root.to_string());
        // Where there was nothing, it ends as a text file does.
        if self.was_empty && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    fn servers(&self) -> Result<Option<CstObject>, Unreadable> {
        let Some(value) = self.root.value() else { return Ok(None) };
        let object = value.as_object().ok_or_else(not_an_object)?;
        let Some(property) = only(&object, self.section)? else { return Ok(None) };
        property.object_value().map(Some).ok_or_else(|| not_servers(self.section))
    }
}

fn not_an_object() -> Unreadable {
    Unreadable::Shape("it is not a JSON object".to_owned())
}

fn not_servers(section: &str) -> Unreadable {
    Unreadable::Shape(format!("{section:?} in it is not an object"))
}

/// The property of that name. One that is there twice is read differently by different programs.
fn only(object: &CstObject, name: &str) -> Result<Option<CstObjectProp>, Unreadable> {
    let mut found = object.properties().into_iter().filter(|property| property.decoded_name().as_deref() == Some(name));
    let first = found.next();
    if found.next().is_some() {
        return Err(Unreadable::Shape(format!("{name:?} stands in it twice")));
    }
    Ok(first)
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(is) => CstInputValue::Bool(*is),
        Value::Number(number) => CstInputValue::Number(number.to_string()),
        Value::String(text) => CstInputValue::String(text.clone()),
        Value::Array(items) => CstInputValue::Array(items.iter().map(input).collect()),
        Value::Object(map) => {
            CstInputValue::Object(map.iter().map(|(key, value)| (key.clone(), input(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry() -> Entry {
        vec![("command", json!("/bin/obo")), ("args", json!(["stdio"]))]
    }

    fn put(text: &str) -> String {
        let document = Document::parse(text, "servers").unwrap_or_else(|e| panic!("{e}: {text}"));
        document.put("obo", &entry()).unwrap();
        document.text()
    }

    /// As JSON, without what JSON does not have.
    fn value(text: &str) -> Value {
        CstRootNode::parse(text.trim_start_matches(BYTE_ORDER_MARK), &OPTIONS).unwrap().to_serde_value().unwrap()
    }

    #[test]
    fn comments_commas_order_and_indentation_stay() {
        let before = "// mine\n{\n\t\"inputs\": [], // none\n\t/* the servers */\n\t\"servers\": {\n\t\t\"zeta\": { \"command\": \"z\" }, // last\n\t},\n\t\"b\": 1,\n}\n";
        let after = put(before);
        assert_eq!(
            after,
            "// mine\n{\n\t\"inputs\": [], // none\n\t/* the servers */\n\t\"servers\": {\n\t\t\"zeta\": { \"command\": \"z\" }, // last\n\t\t\"obo\": {\n\t\t\t\"command\": \"/bin/obo\",\n\t\t\t\"args\": [\"stdio\"],\n\t\t},\n\t},\n\t\"b\": 1,\n}\n"
        );
        let document = Document::parse(&after, "servers").unwrap();
        document.remove("obo").unwrap();
        assert_eq!(document.text(), before);
    }

    #[test]
    fn every_beginning_ends_in_the_same_entry() {
        let entry = json!({ "command": "/bin/obo", "args": ["stdio"] });
        assert_eq!(entry, super::super::value(&self::entry()));
        for before in [
            "",
            "\n",
            "{}",
            "{ }",
            "{\n}\n",
            "{\"servers\":{}}",
            "{\"servers\":{\"a\":{\"command\":\"a\"}}}",
            "{\"servers\":{\"obo\":{\"command\":\"old\",\"env\":{\"X\":\"1\"}}}}",
            "{\r\n    \"a\": 1\r\n}\r\n",
            "\u{feff}{\n  \"servers\": {}\n}\n",
            "// nothing yet\n",
        ] {
            let after = put(before);
            assert_eq!(value(&after)["servers"]["obo"], entry, "{before:?} became {after:?}");
            assert_eq!(put(&after), after, "again, {before:?}");
            assert_eq!(after.starts_with(BYTE_ORDER_MARK), before.starts_with(BYTE_ORDER_MARK));
            if before.contains('\r') {
                assert_eq!(after.matches('\n').count(), after.matches("\r\n").count(), "{after:?}");
            }
        }
        assert_eq!(value(&put("{\"servers\":{\"a\":{\"command\":\"a\"}}}"))["servers"]["a"]["command"], "a");
    }

    #[test]
    fn what_is_not_an_object_of_servers_is_left_alone() {
        for (text, says) in [
            ("{\n  \"servers\": {\n    oops\n  }\n}", "line 3, column 5: "),
            ("{ 'servers': {} }", "line 1, column 3: "),
            ("{ \"a\": 1 \"b\": 2 }", "line 1, column "),
            ("{ \"servers\": {", "line 1, column "),
            ("[]", "not a JSON object"),
            ("\"text\"", "not a JSON object"),
            ("{ \"servers\": [] }", "\"servers\" in it is not an object"),
            ("{ \"servers\": {}, \"servers\": {} }", "\"servers\" stands in it twice"),
        ] {
            let error = Document::parse(text, "servers").err().unwrap_or_else(|| panic!("{text}")).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let twice = Document::parse("{ \"servers\": { \"obo\": 1, \"\\u006fbo\": 2 } }", "servers").unwrap();
        assert!(twice.entry("obo").is_err() && twice.put("obo", &entry()).is_err());
        let deep = "[".repeat(100_000);
        assert!(Document::parse(&deep, "servers").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[ \\[\\]{}:,\"a/*\\\\\n\u{feff}]{0,80}") {
            if let Ok(document) = Document::parse(&text, "a") {
                let _ = document.put("obo", &entry());
                let _ = document.remove("obo");
                let _ = document.text();
            }
        }
    }
}
