//! The text of a new manifest: one that works as it stands, and says at each place what goes there.

use std::collections::BTreeMap;

use url::Url;

use crate::catalog::Effect;
use crate::catalog::tool::Method;

/// What a manifest is drafted from.
pub(super) struct Draft<'a> {
    /// `Acme.GetInvoice`.
    pub name: &'a str,
    /// The id of the provider.
    pub provider: &'a str,
    pub method: Method,
    /// `{server}/path/{argument}`.
    pub url: &'a str,
    pub effect: Effect,
    pub scopes: &'a [String],
}

impl Draft<'_> {
    /// The arguments that the URL names.
    pub(super) fn arguments(&self) -> Vec<&str> {
        let path = self.url.split_once('}').map_or("", |(_, path)| path);
        path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect()
    }

    fn has_body(&self) -> bool {
        matches!(self.method, Method::Post | Method::Put | Method::Patch)
    }

    /// `Get invoice`.
    fn words(&self) -> String {
        let verb = self.name.split_once('.').map_or(self.name, |(_, verb)| verb);
        let words = crate::catalog::kebab(verb).replace('-', " ");
        let mut chars = words.chars();
        chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
    }

    /// Arguments that make the case of the manifest, as TOML and as JSON.
    pub(super) fn example(&self) -> BTreeMap<&str, &str> {
        let mut example: BTreeMap<&str, &str> = self.arguments().into_iter().map(|name| (name, "example")).collect();
        if self.has_body() {
            example.insert("text", "Hello");
        }
        example
    }

    /// The manifest of the tool.
    pub(super) fn tool(&self) -> String {
        let Self { name, provider, url, .. } = self;
        let (words, method) = (self.words(), self.method.as_str());
        let (effect, scopes) = (self.effect.as_str(), list(self.scopes));
        let idempotent = self.method != Method::Post;
        let required: Vec<String> = self.example().keys().map(ToString::to_string).collect();
        let required = list(&required);
        let properties: String = self.example().keys().map(|name| property(name)).collect();
        let body = if self.has_body() {
            "# The JSON body: a jq program over the arguments. `form`, `text` and `multipart` are its siblings.\nbody = '{text}'\n"
        } else {
            "# Query parameters, each a jq program over the arguments; null leaves one out:\n# query.limit = '.limit'\n"
        };
        let (arguments, filled) = self.case();
        let expected_body = if self.has_body() { "body = { text = \"Hello\" }\n" } else { "" };
        format!(
            r#"#:schema ../.schemas/tool.schema.json
# Toolkit.Verb: how people, policies and models name the tool.
name = {name}
# For people, where tools are listed.
title = {title}
# For the model that chooses among tools: what it does, when not to use it, which formats and units, what it returns.
description = """
{words}: a first draft of a tool of {provider}. Write here what it does, when not to use it, and what it returns.\
"""
# The provider's scopes that a call needs, the least that works. People are asked for them when they connect.
scopes = {scopes}
# read: changes nothing. write: adds or changes something. destructive: removes or overwrites something.
effect = "{effect}"
# Whether calling twice with the same arguments does no more than calling once.
idempotent = {idempotent}

# The arguments: a JSON Schema. What is not listed is refused.
[input]
type = "object"
required = {required}
{properties}
[request]
method = "{method}"
# {{server}} is a server of provider.toml; {{argument}} is a required argument, which is percent-encoded.
url = {url}
{body}
[response]
# A jq program over the provider's answer: what the model gets. Give it what it needs, and no more.
value = '{{id, name}}'

# A case, which `obo tools test` runs without a network: arguments, the request they make, an answer, and the value.
[[test]]
name = "the request and the value"
arguments = {arguments}
[test.answer]
status = 200
body = {{ id = "1", name = "Example", more = "is left out" }}
[test.expect]
value = {{ id = "1", name = "Example" }}
[test.expect.request]
method = "{method}"
url = {filled}
{expected_body}"#,
            name = quoted(name),
            title = quoted(&words),
            url = quoted(url),
            filled = quoted(&filled),
        )
    }

    /// The arguments of the case, and the URL that they make.
    fn case(&self) -> (String, String) {
        let pairs: Vec<String> =
            self.example().iter().map(|(name, value)| format!("{name} = {}", quoted(value))).collect();
        let arguments = if pairs.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", pairs.join(", ")) };
        let mut filled = self.url.to_owned();
        for name in self.arguments() {
            filled = filled.replace(&format!("/{{{name}}}"), "/example");
        }
        (arguments, filled)
    }
}

fn property(name: &str) -> String {
    format!(
        "\n[input.properties.{name}]\ntype = \"string\"\n# What it is, in which format, with an example.\n\
         description = \"The {}, as in example.\"\n",
        name.replace('_', " ")
    )
}

/// The manifest of a provider that there is none of yet.
pub(super) fn provider(id: &str, server: &Url, scopes: &[String]) -> String {
    let origin = server.origin().ascii_serialization();
    let mut name = id.to_owned();
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let words: String =
        scopes.iter().map(|scope| format!("{} = \"say here what this lets a tool do\"\n", quoted(scope))).collect();
    format!(
        r#"#:schema ../.schemas/provider.schema.json
# The folder's name, and [providers.{id}] in obo.toml.
id = "{id}"
# What people read.
name = {name}

# Where its APIs are. Tools begin their URLs with {{api}}; give a second one another name.
[servers]
api = {api}

# The provider's documentation names these, as "OAuth 2.0" or "authorization code flow". They are guesses as they stand.
[oauth]
authorize_url = "{origin}/oauth/authorize"
token_url = "{origin}/oauth/token"
# Where to end a connection, if it can be: revoke = {{ url = "…" }}
# post: client id and secret in the body. basic: in the Authorization header.
client_auth = "post"
# Leave it on unless the provider refuses it.
pkce = true
# none | keeps | rotates | strict: what happens to a refresh token when it is used. With strict, obo never uses one twice.
refresh = "keeps"
# Scopes that are always asked for, to learn whose account it is.
base_scopes = []

# Which account was connected: a request with the new token, and two jq programs over the answer. The key must never
# change and never be given to another account; the label is what a person knows it by.
[account]
url = "{origin}/me"
key = '.id'
label = '.email // .id'

# How the provider says what went wrong: jq programs over {{status, headers, body}}. What none decides is judged by status.
[errors]
token_dead = '.status == 401'
rate_limited = '.status == 429'
message = '.body.message'

# What each scope lets a tool do, in words for the page on which people connect.
[scopes]
{words}"#,
        name = quoted(&name),
        api = quoted(server.as_str().trim_end_matches('/')),
    )
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}
