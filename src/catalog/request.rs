//! Requests as manifests describe them: compiled, and their URLs filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use http::{HeaderName, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use url::Url;

use super::jq::Program;
use super::tool::{self, AnswerKind, RequestManifest, StepManifest, ToolManifest};
use super::{Finding, PathArguments, Provider};
use crate::failure::{Code, Failure};
use crate::schema::nearest;

/// The most steps of a tool.
pub const MAX_STEPS: usize = 5;
/// The most elements that `each` runs over.
pub const MAX_EACH: usize = 25;
/// The most parts of an argument that has several.
const MAX_PATH_PARTS: usize = 64;
/// The longest argument in a path, in bytes.
const MAX_PATH_ARGUMENT_BYTES: usize = 1024;

/// Header fields that a manifest may set. Not those that say who is calling, where to, or how the body is framed:
/// `Authorization`, `Cookie`, `Host`, `Content-*` and their like are obo's own.
const HEADERS: &[&str] = &[
    "accept",
    "accept-language",
    "consistencylevel",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "notion-version",
    "prefer",
    "x-github-api-version",
    "x-goog-user-project",
];

/// Bytes of a path argument that stand for themselves: the unreserved ones (RFC 3986 §2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One step of a tool.
#[derive(Debug)]
pub struct Step {
    /// The name of its answer in later programs, with its `$`.
    pub bind: Option<String>,
    /// Yields the elements to run it over.
    pub each: Option<Program>,
    /// Whether the manifest says that it changes nothing.
    pub reads: bool,
    /// What is asked.
    pub request: Request,
}

/// A compiled request.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Where to.
    pub url: UrlTemplate,
    /// Segments of the URL that are computed.
    pub path: Vec<(String, Program)>,
    /// Query parameters.
    pub query: Vec<(String, Program)>,
    /// Header fields.
    pub headers: Vec<(HeaderName, Program)>,
    /// The body.
    pub body: Option<(BodyKind, Program)>,
    /// How the answer is read.
    pub answer: AnswerKind,
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// `application/json`.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `text/plain`.
    Text,
    /// `multipart/form-data`.
    Multipart,
}

/// The name of the arguments in programs over an answer.
pub(super) const INPUT: &str = "$input";

/// A URL of one of the provider's servers, with arguments as whole path segments.
#[derive(Debug)]
pub struct UrlTemplate {
    server: Url,
    segments: Vec<Segment>,
}

#[derive(Debug, PartialEq)]
enum Segment {
    Fixed(String),
    Argument(String),
    /// An argument with parts, each of them a segment.
    Parts(String),
    Item,
}

impl UrlTemplate {
    /// Parses `{server}/fixed/{argument}`.
    fn parse(text: &str, provider: &Provider, each: bool) -> Result<Self, Finding> {
        let wrong = |reason: String, mend: &str| Finding::at("url", reason, mend);
        let (server, path) = text
            .strip_prefix('{')
            .and_then(|rest| rest.split_once('}'))
            .ok_or_else(|| wrong("the URL does not begin with a server".into(), "begin it with {name of a server}"))?;
        let Some(url) = provider.servers.get(server) else {
            let known: Vec<&str> = provider.servers.keys().map(String::as_str).collect();
            let mend = match nearest(server, known.iter().copied()) {
                Some(nearest) => format!("did you mean {{{nearest}}}?"),
                None => format!("its servers are {}", known.join(", ")),
            };
            return Err(wrong(format!("{} has no server {server:?}", provider.id), &mend));
        };
        let path = match path.strip_prefix('/') {
            Some(path) => path,
            None if path.is_empty() => path,
            None => return Err(wrong(format!("{path:?} follows the server"), "write '/' after {server}")),
        };
        let segments = if path.is_empty() {
            Vec::new()
        } else {
            path.split('/').map(|segment| Segment::parse(segment, each)).collect::<Result<_, _>>()?
        };
        Ok(Self { server: url.clone(), segments })
    }

    /// The names of the arguments in the path.
    fn arguments(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Argument(name) | Segment::Parts(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Fills in arguments, an object; what was computed, in their place; and, in a step with `each`, the element.
    ///
    /// The result is on the server, below its path, whatever the arguments are (T12): each argument is one segment, or each
    /// of its parts is, and the parsed URL is compared with the server's. What was computed is held to the same: it may come
    /// from an answer.
    ///
    /// # Errors
    /// `invalid_arguments`, naming the argument, when it cannot be a path segment.
    pub fn expand(
        &self,
        arguments: &Value,
        computed: &BTreeMap<&str, Value>,
        item: Option<&Value>,
    ) -> Result<Url, Failure> {
        let mut url = self.server.clone();
        let base = self.server.path().trim_end_matches('/').to_owned();
        let mut path = base.clone();
        let value = |name: &str| computed.get(name).or_else(|| arguments.get(name));
        for segment in &self.segments {
            path.push('/');
            match segment {
                Segment::Fixed(text) => path.push_str(text),
                Segment::Argument(name) => path.push_str(&encoded(name, value(name))?),
                Segment::Parts(name) => path.push_str(&encoded_parts(name, value(name))?),
                Segment::Item => path.push_str(&encoded("item", item)?),
            }
        }
        url.set_path(&path);
        // Parsing normalises: what came out must still be what was put together.
        let ours = url.origin() == self.server.origin() && url.path() == path && url.path().starts_with(&base);
        let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if ours && bare {
            Ok(url)
        } else {
            Err(Failure::new(Code::InvalidArguments, "an argument cannot be part of the provider's URL"))
        }
    }
}

impl fmt::Display for UrlTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.server.as_str().trim_end_matches('/'))?;
        self.segments.iter().try_for_each(|segment| match segment {
            Segment::Fixed(text) => write!(f, "/{text}"),
            Segment::Argument(name) => write!(f, "/{{{name}}}"),
            Segment::Parts(name) => write!(f, "/{{{name}*}}"),
            Segment::Item => f.write_str("/{item}"),
        })
    }
}

impl Segment {
    fn parse(text: &str, each: bool) -> Result<Self, Finding> {
        let wrong = |mend: &str| Err(Finding::at("url", format!("{text:?} is not a path segment"), mend));
        if let Some(name) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            return match name {
                "item" if each => Ok(Self::Item),
                name if is_identifier(name) => Ok(Self::Argument(name.to_owned())),
                name => match name.strip_suffix('*') {
                    Some(name) if is_identifier(name) => Ok(Self::Parts(name.to_owned())),
                    _ => wrong("write {argument}, or {argument*} for one with parts, with the name of an argument"),
                },
            };
        }
        let fixed = |b: u8| b.is_ascii_alphanumeric() || b"-._~:@$".contains(&b);
        match text {
            "" | "." | ".." => wrong("leave out empty segments, '.' and '..'"),
            text if text.bytes().all(fixed) => Ok(Self::Fixed(text.to_owned())),
            text if text.contains(['?', '#']) => wrong("write query parameters as query.NAME"),
            _ => wrong("an {argument} must be a whole segment; other segments are letters, digits and -._~:@$"),
        }
    }
}

/// The parts of a text, as many segments.
fn encoded_parts(name: &str, value: Option<&Value>) -> Result<String, Failure> {
    let refuse = |why: &str| Err(Failure::new(Code::InvalidArguments, format!("{name} {why}")));
    let Some(Value::String(text)) = value else { return encoded(name, value) };
    if text.len() > MAX_PATH_ARGUMENT_BYTES || text.split('/').count() > MAX_PATH_PARTS {
        return refuse("is too long to be part of the provider's URL");
    }
    if text.split('/').any(str::is_empty) {
        return refuse("must be parts with one '/' between them, as in docs/guide.md, and none before or after");
    }
    let parts: Result<Vec<_>, _> = text.split('/').map(|part| encoded(name, Some(&Value::from(part)))).collect();
    Ok(parts?.join("/"))
}

fn encoded(name: &str, value: Option<&Value>) -> Result<String, Failure> {
    let refuse = |why: &str| Err(Failure::new(Code::InvalidArguments, format!("{name} {why}")));
    let text = match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => number.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        _ => return refuse("must be text, an integer or a boolean, for it is part of the provider's URL"),
    };
    if text.is_empty() || text == "." || text == ".." {
        return refuse("must name something: it is part of the provider's URL, and cannot be empty, '.' or '..'");
    }
    if text.len() > MAX_PATH_ARGUMENT_BYTES {
        return refuse("is too long to be part of the provider's URL");
    }
    // Encoded they would be safe here, but there are servers that decode a path before they split it, and some twice.
    let lower = text.to_ascii_lowercase();
    let decodes = ["%2f", "%5c", "%2e", "%25", "%00"].iter().any(|escape| lower.contains(escape));
    if decodes || text.chars().any(|c| matches!(c, '/' | '\\') || c.is_control()) {
        return refuse("must not contain '/', '\\', percent escapes of them, or control characters");
    }
    Ok(utf8_percent_encode(&text, ENCODED).to_string())
}

/// Compiles the requests of a manifest.
pub(super) fn compile_steps(
    manifest: &ToolManifest,
    provider: &Provider,
    known: &PathArguments<'_>,
) -> Result<(Vec<Step>, Vec<String>), Finding> {
    let single;
    let steps = match (&manifest.request, manifest.step.as_slice()) {
        (Some(request), []) => {
            single = [StepManifest { bind: None, each: None, reads: false, request: request.clone() }];
            &single[..]
        }
        (None, []) => return Err(Finding::at("request", "there is no request".into(), "add [request] or [[step]]")),
        (None, steps) if steps.len() <= MAX_STEPS => steps,
        (None, _) => {
            return Err(Finding::at("step", format!("there are more than {MAX_STEPS} steps"), "split the tool"));
        }
        (Some(_), _) => {
            return Err(Finding::at("step", "there are both [request] and [[step]]".into(), "keep one of them"));
        }
    };
    let mut bound: Vec<String> = Vec::new();
    let mut compiled = Vec::new();
    for step in steps {
        let names: Vec<&str> = bound.iter().map(String::as_str).collect();
        let each = step.each.as_deref().map(|source| program("each", source, &names)).transpose()?;
        let request = compile_request(&step.request, provider, &names, each.is_some(), known)?;
        // The others change things by definition (RFC 9110 §9.3, RFC 5789).
        if step.reads && !matches!(step.request.method, tool::Method::Get | tool::Method::Post) {
            let reason = "a step that reads makes a PUT, PATCH or DELETE request".to_owned();
            return Err(Finding::at("reads", reason, "leave it out"));
        }
        let bind = step.bind.as_ref().map(|name| format!("${name}"));
        if let (Some(name), Some(bind)) = (&step.bind, &bind) {
            if !is_identifier(name) || name == "item" || bind == INPUT || bound.contains(bind) {
                let reason = format!("{name:?} cannot be the name of an answer");
                return Err(Finding::at(
                    "bind",
                    reason,
                    "use another name of letters, digits and '_', not \"item\" or \"input\"",
                ));
            }
            bound.push(bind.clone());
        }
        compiled.push(Step { bind, each, reads: step.reads, request });
    }
    Ok((compiled, bound))
}

fn compile_request(
    manifest: &RequestManifest,
    provider: &Provider,
    bound: &[&str],
    each: bool,
    known: &PathArguments<'_>,
) -> Result<Request, Finding> {
    let mut variables = bound.to_vec();
    if each {
        variables.push("$item");
    }
    let url = UrlTemplate::parse(&manifest.url, provider, each)?;
    let named: BTreeSet<&str> = url.arguments().collect();
    for name in named.iter().filter(|name| !manifest.path.contains_key(**name)) {
        known.check(name)?;
    }
    let path = manifest
        .path
        .iter()
        .map(|(name, source)| {
            let wrong = |reason: String, mend: &str| Err(Finding::at(name, reason, mend));
            if !named.contains(name.as_str()) {
                return wrong(format!("the URL has no {{{name}}}"), "write it into the URL, or take it out of path");
            }
            if known.has(name) {
                return wrong(format!("{name:?} is an argument too"), "use another name");
            }
            Ok((name.clone(), program(name, source, &variables)?))
        })
        .collect::<Result<_, Finding>>()?;
    let query = manifest
        .query
        .iter()
        .map(|(name, source)| Ok((name.clone(), program(name, source, &variables)?)))
        .collect::<Result<_, Finding>>()?;
    let headers = manifest
        .headers
        .iter()
        .map(|(name, source)| Ok((header_name(name)?, program(name, source, &variables)?)))
        .collect::<Result<_, Finding>>()?;
    let bodies = [
        ("body", BodyKind::Json, &manifest.body),
        ("form", BodyKind::Form, &manifest.form),
        ("text", BodyKind::Text, &manifest.text),
        ("multipart", BodyKind::Multipart, &manifest.multipart),
    ];
    let mut body = None;
    for (key, kind, source) in bodies {
        let Some(source) = source else { continue };
        if body.is_some() {
            let reason = "there is more than one of body, form, text and multipart".to_owned();
            return Err(Finding::at(key, reason, "keep one of them"));
        }
        if manifest.method == tool::Method::Get {
            return Err(Finding::at(key, "a GET request has no body".into(), "use query.NAME, or another method"));
        }
        body = Some((kind, program(key, source, &variables)?));
    }
    let method = match manifest.method {
        tool::Method::Get => Method::GET,
        tool::Method::Post => Method::POST,
        tool::Method::Put => Method::PUT,
        tool::Method::Patch => Method::PATCH,
        tool::Method::Delete => Method::DELETE,
    };
    Ok(Request { method, url, path, query, headers, body, answer: manifest.answer })
}

pub(super) fn program(key: &str, source: &str, variables: &[&str]) -> Result<Program, Finding> {
    Program::compile(source, variables).map_err(|e| Finding::at(key, e.to_string(), "correct the jq program"))
}

pub(super) fn header_name(name: &str) -> Result<HeaderName, Finding> {
    let lower = name.to_ascii_lowercase();
    match HeaderName::from_bytes(lower.as_bytes()) {
        Ok(header) if HEADERS.contains(&lower.as_str()) => Ok(header),
        _ => {
            let mend = format!("a manifest may set {}", HEADERS.join(", "));
            Err(Finding::at(name, format!("the header {name:?} is not a manifest's to set"), &mend))
        }
    }
}

fn is_identifier(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(segments: Vec<Segment>) -> UrlTemplate {
        UrlTemplate { server: "https://api.example.com/v1".parse().unwrap(), segments }
    }

    fn one_argument() -> UrlTemplate {
        template(vec![
            Segment::Fixed("calendars".into()),
            Segment::Argument("id".into()),
            Segment::Fixed("events".into()),
        ])
    }

    fn expand(id: Value) -> Result<String, Failure> {
        one_argument().expand(&json!({"id": id}), &BTreeMap::new(), None).map(String::from)
    }

    #[test]
    fn arguments_are_encoded_as_one_segment() {
        for (id, expected) in [
            (json!("primary"), "primary"),
            (json!("a b"), "a%20b"),
            (json!("en.usa#holiday@group.v.calendar.google.com"), "en.usa%23holiday%40group.v.calendar.google.com"),
            (json!("x?y=z&a"), "x%3Fy%3Dz%26a"),
            (json!("ä日"), "%C3%A4%E6%97%A5"),
            (json!("..."), "..."),
            (json!(";a:b"), "%3Ba%3Ab"),
            (json!(12), "12"),
            (json!(true), "true"),
        ] {
            assert_eq!(expand(id).unwrap(), format!("https://api.example.com/v1/calendars/{expected}/events"));
        }
    }

    #[test]
    fn arguments_cannot_leave_their_segment() {
        for id in [
            json!(""),
            json!("."),
            json!(".."),
            json!("../x"),
            json!("a/b"),
            json!("a\\b"),
            json!("%2e%2e"),
            json!("%2E"),
            json!("..%2f"),
            json!("a%5Cb"),
            json!("%252e"),
            json!("a\r\nb"),
            json!("a\tb"),
            json!("\u{0}"),
            json!("\u{7f}"),
            json!("\u{85}"),
            json!(null),
            json!(["a"]),
            json!({"a": 1}),
            json!(1.5),
            json!("x".repeat(2000)),
        ] {
            let failure = expand(id.clone()).unwrap_err();
            assert_eq!(failure.code, Code::InvalidArguments, "{id}");
        }
    }

    #[test]
    fn templates_are_a_server_and_whole_segments() {
        let provider = crate::catalog::tests::provider();
        for text in [
            "{api}",
            "{api}/",
            "{api}/a/b.c",
            "{api}/a/{id}/b",
            "{api}/a/{id*}/b",
            "{api}/{id*}",
            "{api}/~x/$batch/a:b",
        ] {
            assert!(UrlTemplate::parse(text, &provider, false).is_ok(), "{text}");
        }
        for text in [
            "https://api.example.com/a",
            "/a",
            "{apo}/a",
            "{api}//a",
            "{api}/./a",
            "{api}/../a",
            "{api}/a{id}",
            "{api}/{id}x",
            "{api}/a?b=c",
            "{api}/a#b",
            "{api}/{}",
            "{api}/{a.b}",
            "{api}/a%2fb",
            "{api}.evil.example/a",
            "{api}@evil.example/",
            "{api}:80/",
            "{api",
            "{api}/ä",
            "{api}/a\\b",
            "{api}/{id*}x",
            "{api}/{*}",
            "{api}/{id**}",
            "{api}/{*id}",
            "{api}/{id/}",
        ] {
            assert!(UrlTemplate::parse(text, &provider, false).is_err(), "{text}");
        }
    }

    #[test]
    fn the_element_of_a_step_is_a_segment_too() {
        let template = template(vec![Segment::Item]);
        let expand = |item: Option<&Value>| template.expand(&json!({}), &BTreeMap::new(), item);
        assert_eq!(expand(Some(&json!("x y"))).unwrap().path(), "/v1/x%20y");
        assert!(expand(Some(&json!("../x"))).is_err());
        assert!(expand(None).is_err());
    }

    fn parts(path: Value) -> Result<String, Failure> {
        let template = template(vec![
            Segment::Fixed("contents".into()),
            Segment::Parts("path".into()),
            Segment::Fixed("raw".into()),
        ]);
        template.expand(&json!({"path": path}), &BTreeMap::new(), None).map(String::from)
    }

    #[test]
    fn an_argument_with_parts_is_as_many_segments() {
        for (path, expected) in [
            (json!("README.md"), "README.md"),
            (json!("docs/a guide.md"), "docs/a%20guide.md"),
            (json!(".github/x?y#z"), ".github/x%3Fy%23z"),
            (json!("a/.../ä"), "a/.../%C3%A4"),
            (json!(7), "7"),
        ] {
            assert_eq!(parts(path).unwrap(), format!("https://api.example.com/v1/contents/{expected}/raw"));
        }
        for path in [
            json!(""),
            json!("/"),
            json!("/etc/passwd"),
            json!("docs/"),
            json!("a//b"),
            json!(".."),
            json!("../x"),
            json!("a/../../x"),
            json!("a/./b"),
            json!("a/%2e%2e/b"),
            json!("a%2Fb"),
            json!("a\\b"),
            json!("a/b\r\nc"),
            json!("x/".repeat(70) + "x"),
            json!("x/".repeat(600) + "x"),
            json!(null),
            json!(["a"]),
        ] {
            let failure = parts(path.clone()).unwrap_err();
            assert_eq!(failure.code, Code::InvalidArguments, "{path}");
            assert!(failure.message.starts_with("path "), "{}", failure.message);
        }
    }

    #[test]
    fn what_is_computed_takes_the_place_of_an_argument_and_is_held_to_the_same() {
        let expand = |id: Value| one_argument().expand(&json!({"id": "other"}), &BTreeMap::from([("id", id)]), None);
        assert_eq!(expand(json!("a b")).unwrap().path(), "/v1/calendars/a%20b/events");
        for hostile in [json!(".."), json!("a/b"), json!("//evil.example"), json!("%2e%2e"), json!(null), json!({})] {
            assert!(expand(hostile.clone()).is_err(), "{hostile}");
        }
    }

    #[test]
    fn only_some_headers_are_a_manifests() {
        assert!(header_name("If-Match").is_ok());
        for name in [
            "Authorization",
            "Cookie",
            "Host",
            "Content-Type",
            "Content-Length",
            "Proxy-Authorization",
            "User-Agent",
            "Transfer-Encoding",
            "X-Forwarded-For",
            "a b",
            "",
            "If-Match\r\nX",
        ] {
            assert!(header_name(name).is_err(), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_argument_with_parts_changes_the_rest_of_the_url(path in "[a-c./%\\\\ ä]{0,12}") {
            if let Ok(url) = parts(json!(path)) {
                let url = Url::parse(&url).unwrap();
                let segments: Vec<_> = url.path_segments().unwrap().collect();
                proptest::prop_assert_eq!(url.host_str(), Some("api.example.com"));
                proptest::prop_assert_eq!((segments[0], segments[1], *segments.last().unwrap()), ("v1", "contents", "raw"));
                let inner = &segments[2..segments.len() - 1];
                proptest::prop_assert!(inner.iter().all(|one| !matches!(*one, "" | "." | "..")));
                let decoded = percent_encoding::percent_decode_str(&inner.join("/")).decode_utf8().unwrap().into_owned();
                proptest::prop_assert_eq!(decoded, path);
            }
        }

        #[test]
        fn no_argument_changes_the_rest_of_the_url(id in "\\PC{0,40}") {
            if let Ok(url) = expand(json!(id)) {
                let url = Url::parse(&url).unwrap();
                let segments: Vec<_> = url.path_segments().unwrap().collect();
                proptest::prop_assert_eq!(url.host_str(), Some("api.example.com"));
                proptest::prop_assert_eq!(segments.len(), 4);
                proptest::prop_assert_eq!((segments[0], segments[1], segments[3]), ("v1", "calendars", "events"));
                let decoded = percent_encoding::percent_decode_str(segments[2]).decode_utf8().unwrap();
                proptest::prop_assert_eq!(decoded, id);
            }
        }
    }
}
