//! What is asked for? Tools and providers, read from manifests once and immutable afterwards.
//!
//! A manifest is data: [`tool::ToolManifest`] and [`provider::ProviderManifest`] are what is written, [`Tool`] and
//! [`Provider`] what comes of it, with obo.toml applied and every program, template and schema compiled. What cannot
//! work is found here, at load, and never in a call.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use url::Url;

use crate::failure::Failure;
use crate::id::{ProviderId, ToolName};
use crate::secret::Secret;

mod arguments;
mod case;
mod examine;
mod finding;
pub mod jq;
mod lint;
mod live;
mod load;
pub mod mail;
mod own;
mod parse;
pub mod provider;
pub mod request;
mod source;
mod stamps;
pub mod tool;
mod verdict;

pub use arguments::{Arguments, MAX_ARGUMENT_BYTES, MAX_ARGUMENT_DEPTH, RESERVED, encoded_length};
pub use finding::{Finding, Level, Problem};
pub use lint::kebab;
pub use live::{Changes, Live};
pub use load::{Checked, Tested, ToolsConfig};
pub use own::OWN_TOOLKIT;
pub use parse::{parse_provider_manifest, parse_tool_manifest, schemas};
pub use provider::ProviderConfig;
pub use stamps::Stamps;
pub use verdict::{Fault, MAX_MESSAGE_CHARS, MAX_RETRY_AFTER, Verdict, seconds};

use arguments::Input;
use jq::Program;
use request::{Step, program};
use verdict::ErrorRules;

/// What a call does to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Changes nothing.
    Read,
    /// Adds or changes something.
    Write,
    /// Removes or overwrites something.
    Destructive,
}

impl Effect {
    /// The effect as manifests, policies and the audit spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Read => "read",
            Effect::Write => "write",
            Effect::Destructive => "destructive",
        }
    }
}

/// The client of a provider, from `[providers.ID]` of obo.toml.
#[derive(Clone)]
pub struct ProviderClient {
    /// The client id.
    pub id: String,
    /// The client secret; none for a public client.
    pub secret: Option<Secret>,
}

/// A provider, ready to use: its manifest with obo.toml applied and its programs compiled.
pub struct Provider {
    /// Its id.
    pub id: ProviderId,
    /// Its name for people.
    pub name: String,
    /// The API servers. `origin` and `servers` of obo.toml are applied.
    pub servers: BTreeMap<String, Url>,
    /// The OAuth side. `origin` and `pkce` of obo.toml are applied.
    pub oauth: provider::OauthManifest,
    /// How to learn which account was connected. `origin` is applied.
    pub account: provider::AccountManifest,
    /// Header fields of every request, OAuth's too.
    pub headers: HeaderMap,
    /// What scopes mean, in words.
    pub scopes: BTreeMap<String, String>,
    /// Scopes that give more than one tool can need, each with lesser ones.
    pub broad_scopes: BTreeMap<String, Vec<String>>,
    /// The client; none: its tools are not offered.
    pub client: Option<ProviderClient>,
    programs: ProviderPrograms,
}

struct ProviderPrograms {
    token_answer: Option<Program>,
    account_key: Program,
    account_label: Program,
    errors: ErrorRules,
}

/// The longest account key or label, in characters.
const MAX_ACCOUNT_CHARS: usize = 255;

impl Provider {
    /// Applies `[providers.ID]` of obo.toml to a manifest and compiles its programs.
    ///
    /// # Errors
    /// What is wrong with the manifest.
    pub fn new(mut manifest: provider::ProviderManifest, config: &ProviderConfig) -> Result<Self, Finding> {
        let id = manifest
            .id
            .parse::<ProviderId>()
            .map_err(|e| Finding::at("id", e.to_string(), "name the provider as its folder is named"))?;
        manifest.check()?;
        manifest.apply(config);
        let programs = ProviderPrograms {
            token_answer: manifest
                .oauth
                .token_answer
                .as_deref()
                .map(|s| program("token_answer", s, &[]))
                .transpose()?,
            account_key: program("key", &manifest.account.key, &[])?,
            account_label: program("label", &manifest.account.label, &[])?,
            errors: ErrorRules::compile(&manifest.errors)?,
        };
        let headers = manifest
            .headers
            .iter()
            .map(|(name, value)| provider::header(name, value))
            .collect::<Result<HeaderMap, Finding>>()?;
        let client = config.client_id.clone().map(|id| ProviderClient { id, secret: config.client_secret.clone() });
        Ok(Self {
            id,
            name: manifest.name,
            servers: manifest.servers,
            oauth: manifest.oauth,
            account: manifest.account,
            headers,
            scopes: manifest.scopes,
            broad_scopes: manifest.broad_scopes,
            client,
            programs,
        })
    }

    /// Names the token endpoint and the API origins. A grant remembers it: when it changes the grant is not used, so
    /// that a token never goes to a server its person did not consent to.
    pub fn fingerprint(&self) -> String {
        let mut origins: Vec<String> = self.servers.values().map(|url| url.origin().ascii_serialization()).collect();
        origins.sort();
        origins.dedup();
        format!("{} {}", self.oauth.token_url, origins.join(" "))
    }

    /// The token endpoint's answer in the shape of RFC 6749 §5.1 or §5.2.
    ///
    /// # Errors
    /// The answer does not have the shape that the manifest expects. The text holds nothing of it.
    pub fn token_answer(&self, answer: Value) -> Result<Value, String> {
        match &self.programs.token_answer {
            Some(program) => program.run(&answer, &[]).map_err(|e| e.to_string()),
            None => Ok(answer),
        }
    }

    /// The key and the label of the account that `answer`, the account endpoint's, is about.
    ///
    /// # Errors
    /// The answer does not name one. The text holds nothing of it.
    pub fn account_of(&self, answer: &Value) -> Result<(String, String), String> {
        let text = |what: &str, program: &Program| {
            let text = match program.run(answer, &[]).map_err(|e| format!("the account's {what}: {e}"))? {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                _ => return Err(format!("the answer does not give the account's {what}")),
            };
            let valid =
                !text.is_empty() && text.chars().count() <= MAX_ACCOUNT_CHARS && !text.chars().any(char::is_control);
            valid.then_some(text).ok_or_else(|| format!("the account's {what} is empty, too long or not one line"))
        };
        Ok((text("key", &self.programs.account_key)?, text("label", &self.programs.account_label)?))
    }

    /// What an API answer means by the manifest's rules. None: it is a success.
    pub fn judge(&self, status: StatusCode, headers: &HeaderMap, body: &Value) -> Option<Verdict> {
        self.programs.errors.judge(status, headers, body)
    }

    /// How long an access token lives when the token endpoint does not say.
    pub fn default_ttl(&self) -> Option<Duration> {
        self.oauth.default_ttl_s.map(Duration::from_secs)
    }
}

/// A tool, ready to call.
pub struct Tool {
    /// `Google.SendEmail`.
    pub name: ToolName,
    /// For people.
    pub title: String,
    /// For the model that chooses.
    pub description: String,
    /// What a call does.
    pub effect: Effect,
    /// Whether calling twice does no more than calling once.
    pub idempotent: bool,
    /// The JSON Schema of the arguments, as clients see it.
    pub input: Arc<Map<String, Value>>,
    /// What a call runs.
    pub runs: Runs,
    accepts: Input,
}

/// What a call of a tool runs.
#[derive(Clone)]
pub enum Runs {
    /// Requests to a provider's API, with the person's token.
    Api(Arc<Api>),
    /// Something that obo does itself.
    Own(Own),
}

/// What obo does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// Says what the person has connected.
    ListConnections,
    /// Asks the person to connect an account.
    Connect,
    /// Ends a connection.
    Disconnect,
}

/// What a tool does at a provider.
pub struct Api {
    /// The tool's name.
    pub name: ToolName,
    /// What a call does.
    pub effect: Effect,
    /// Whose API it calls.
    pub provider: Arc<Provider>,
    /// Scope sets, any one of which is enough. Never empty; a set may be.
    pub scopes_any_of: Vec<Vec<String>>,
    steps: Vec<Step>,
    response: Program,
    response_reads_input: bool,
    facts: BTreeMap<String, Fact>,
    /// Empty where there is but one.
    written_steps: Vec<tool::StepManifest>,
}

/// Something that policies may ask about the arguments.
#[derive(Debug)]
pub struct Fact {
    /// How what the program yields is read.
    pub kind: FactKind,
    /// Yields what to look at, from the arguments.
    pub program: Program,
}

/// How a fact is computed from what its program yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactKind {
    /// A set of the domains of e-mail addresses.
    EmailDomains,
    /// The number of elements of an array.
    Count,
    /// A set of the hosts of URLs.
    UrlHosts,
    /// The largest of an array of numbers.
    Max,
}

impl Tool {
    /// Compiles a manifest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(mut manifest: tool::ToolManifest, provider: Arc<Provider>) -> Result<Self, Finding> {
        let name: ToolName = manifest
            .name
            .parse()
            .map_err(|e: crate::id::InvalidName| Finding::at("name", e.to_string(), "rename the tool"))?;
        manifest.check()?;
        let accepts = Input::compile(&mut manifest.input)?;
        let known =
            PathArguments { input: &manifest.input, each: manifest.step.iter().any(|step| step.each.is_some()) };
        let (steps, bound) = request::compile_steps(&manifest, &provider, &known)?;
        // POST may read: searches are often made so. The others change things by definition (RFC 9110 §9.3, RFC 5789).
        let changes = |step: &Step| !matches!(step.request.method, http::Method::GET | http::Method::POST);
        if manifest.effect == Effect::Read && steps.iter().any(changes) {
            let reason = "a tool whose effect is \"read\" makes a PUT, PATCH or DELETE request".to_owned();
            return Err(Finding::at("effect", reason, "write effect = \"write\" or \"destructive\""));
        }
        let mut bound: Vec<&str> = bound.iter().map(String::as_str).collect();
        // A copy of the arguments, which may be large, is made only for those who look.
        let response_reads_input = manifest.response.value.contains(request::INPUT);
        if response_reads_input {
            bound.push(request::INPUT);
        }
        let response = program("value", &manifest.response.value, &bound)?;
        let facts = manifest
            .facts
            .iter()
            .map(|(name, fact)| Ok((name.clone(), Fact::compile(name, fact)?)))
            .collect::<Result<_, Finding>>()?;
        let scopes_any_of = match (manifest.scopes, manifest.scopes_any_of) {
            (Some(scopes), _) => vec![scopes],
            (None, Some(sets)) => sets,
            (None, None) => Vec::new(),
        };
        let api = Api {
            name: name.clone(),
            effect: manifest.effect,
            provider,
            scopes_any_of,
            steps,
            response,
            response_reads_input,
            facts,
            written_steps: manifest.step,
        };
        Ok(Self {
            name,
            title: manifest.title,
            description: manifest.description,
            effect: manifest.effect,
            idempotent: manifest.idempotent,
            input: Arc::new(manifest.input),
            runs: Runs::Api(Arc::new(api)),
            accepts,
        })
    }

    /// Fills in defaults, then validates against the schema.
    ///
    /// # Errors
    /// `invalid_arguments`, naming each wrong argument's path and what was expected there; never its value.
    /// `too_large` beyond [`MAX_ARGUMENT_BYTES`].
    pub fn arguments(&self, raw: Map<String, Value>) -> Result<Arguments, Failure> {
        self.accepts.accept(raw)
    }

    /// What it does at a provider, where it does.
    pub fn api(&self) -> Option<&Arc<Api>> {
        match &self.runs {
            Runs::Api(api) => Some(api),
            Runs::Own(_) => None,
        }
    }
}

impl Api {
    /// The requests of a call, in their order. Never empty.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The same as they are written, where there are several: to be shown.
    pub fn written_steps(&self) -> &[tool::StepManifest] {
        &self.written_steps
    }

    /// Computes the value of a call from the last answer; reads the answers of the steps with a name, in their order, and
    /// then the arguments where [`Api::response_reads_input`].
    pub fn response(&self) -> &Program {
        &self.response
    }

    /// Whether the program of the response reads the arguments.
    pub fn response_reads_input(&self) -> bool {
        self.response_reads_input
    }

    /// What policies may ask about the arguments, by name.
    pub fn facts(&self) -> &BTreeMap<String, Fact> {
        &self.facts
    }
}

impl Fact {
    fn compile(name: &str, manifest: &tool::FactManifest) -> Result<Self, Finding> {
        let mut kinds = [
            (FactKind::EmailDomains, &manifest.email_domains),
            (FactKind::Count, &manifest.count),
            (FactKind::UrlHosts, &manifest.url_hosts),
            (FactKind::Max, &manifest.max),
        ]
        .into_iter()
        .filter_map(|(kind, source)| Some((kind, source.as_ref()?)));
        match (kinds.next(), kinds.next()) {
            (Some((kind, source)), None) => Ok(Self { kind, program: program(name, source, &[])? }),
            _ => Err(Finding::at(
                name,
                format!("the fact {name:?} does not have exactly one kind"),
                "write one of email_domains, count, url_hosts and max",
            )),
        }
    }
}

/// The arguments that a URL may name.
struct PathArguments<'a> {
    input: &'a Map<String, Value>,
    each: bool,
}

impl PathArguments<'_> {
    fn has(&self, name: &str) -> bool {
        self.input.get("properties").is_some_and(|properties| properties.get(name).is_some())
    }

    fn check(&self, name: &str) -> Result<(), Finding> {
        let wrong = |reason: String, mend: &str| Err(Finding::at("url", reason, mend));
        let Some(schema) = self.input.get("properties").and_then(|properties| properties.get(name)) else {
            return wrong(
                format!("the URL names {{{name}}}, which is not an argument"),
                "add it to [input.properties]",
            );
        };
        let required = self.input.get("required").and_then(Value::as_array);
        let required = required.is_some_and(|required| required.iter().any(|required| required == name));
        if !required && schema.get("default").is_none() {
            let reason = format!("the URL needs {{{name}}}, which may be missing");
            return wrong(reason, "make the argument required or give it a default");
        }
        if !matches!(schema.get("type").and_then(Value::as_str), Some("string" | "integer" | "boolean")) {
            let reason = format!("the URL needs {{{name}}}, which is not text, an integer or a boolean");
            return wrong(reason, "give the argument such a type");
        }
        if self.each && name == "item" {
            return wrong("{item} is both an argument and the element of a step".into(), "rename the argument");
        }
        Ok(())
    }
}

/// All tools and providers.
pub struct Catalog {
    tools: BTreeMap<ToolName, Arc<Tool>>,
    aliases: HashMap<String, ToolName>,
    providers: BTreeMap<ProviderId, Arc<Provider>>,
    known: BTreeMap<ToolName, Arc<Tool>>,
    /// Built-in tools whose provider has no client: nobody can call them, so they are not compiled.
    idle: BTreeMap<ToolName, Arc<Provider>>,
    problems: Vec<Problem>,
    stamps: Stamps,
}

impl Catalog {
    /// Finds an enabled tool by either spelling of its name.
    pub fn find(&self, name: &str) -> Option<&Arc<Tool>> {
        let name = self.aliases.get(name)?;
        self.tools.get(name)
    }

    /// The enabled tools, in the order of their names.
    pub fn tools(&self) -> impl Iterator<Item = &Arc<Tool>> {
        self.tools.values()
    }

    /// All tools that were loaded, the enabled and the others, in the order of their names. For the operator's commands
    /// only. Built-in tools are loaded where their provider has a client.
    pub fn known_tools(&self) -> impl Iterator<Item = &Arc<Tool>> {
        self.known.values()
    }

    /// The provider that a built-in tool, by either spelling of its name, waits for a client of. For the operator's
    /// commands only.
    pub fn waits_for(&self, name: &str) -> Option<&Arc<Provider>> {
        self.idle.iter().find(|(idle, _)| idle.as_str() == name || idle.underscored() == name).map(|(_, of)| of)
    }

    /// All providers, with and without a client.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.providers.values()
    }

    /// One provider.
    pub fn provider(&self, id: &str) -> Option<&Arc<Provider>> {
        self.providers.values().find(|p| p.id.as_str() == id)
    }

    /// What the files of the operator's folders looked like just before they were read.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// What could not be loaded, or is not offered although it was asked for.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A provider with one server, `{api}`.
    pub(crate) fn provider() -> Provider {
        provider_with(&ProviderConfig::default())
    }

    pub(crate) fn provider_with(config: &ProviderConfig) -> Provider {
        let manifest = parse_provider_manifest(
            r#"
            id = "example"
            name = "Example"
            [servers]
            api = "https://api.example.com/v1"
            files = "https://files.example.com"
            [oauth]
            authorize_url = "https://login.example.com/authorize?tenant=x"
            token_url = "https://login.example.com/token"
            revoke = { url = "https://login.example.com/revoke" }
            token_answer = '.user // .'
            [account]
            url = "https://api.example.com/v1/me"
            key = '.id'
            label = '.email'
            [errors]
            failed = '.body.ok == false'
            token_dead = '.body.error == "token_dead"'
            scope_missing = '.body.error == "missing_scope"'
            rate_limited = '.body.error == "slow_down"'
            message = '.body.message'
            "#,
        )
        .unwrap();
        Provider::new(manifest, config).unwrap()
    }

    /// A tool of that provider.
    pub(crate) fn tool(text: &str) -> Arc<Tool> {
        try_tool(text).unwrap_or_else(|finding| panic!("{}", finding.reason))
    }

    fn try_tool(text: &str) -> Result<Arc<Tool>, Finding> {
        let manifest = parse_tool_manifest(text).map_err(|mut findings| findings.remove(0))?;
        Tool::new(manifest, Arc::new(provider())).map(Arc::new)
    }

    #[test]
    fn what_the_url_names_is_an_argument_or_computed_and_nothing_else() {
        let with = |rest: &str| {
            try_tool(&format!(
                "name = \"Example.Do\"\ntitle = \"T\"\ndescription = \"D\"\nscopes = []\neffect = \"read\"\n\
                 [input]\ntype = \"object\"\nrequired = [\"id\"]\nproperties.id.type = \"string\"\n{rest}"
            ))
            .err()
            .map(|finding| finding.reason)
        };
        let request =
            |url: &str, path: &str| with(&format!("[request]\nmethod = \"GET\"\nurl = \"{{api}}/{url}\"\n{path}"));
        assert_eq!(request("{id}/{id*}", ""), None);
        assert_eq!(request("{id}/{place}", "path.place = '.id'"), None);
        for (url, path, reason) in [
            ("{place}", "", "is not an argument"),
            ("{place*}", "", "is not an argument"),
            ("{id}", "path.place = '.id'", "the URL has no {place}"),
            ("{id}", "path.id = '.id'", "is an argument too"),
            ("{place}", "path.place = '$later'", "is not defined"),
        ] {
            let found = request(url, path).unwrap_or_default();
            assert!(found.contains(reason), "{url} {path}: {found}");
        }
        let input = "[[step]]\nbind = \"input\"\nrequest = { method = \"GET\", url = \"{api}/x\" }\n";
        assert!(with(input).unwrap().contains("cannot be the name of an answer"));
        assert_eq!(with("[request]\nmethod = \"GET\"\nurl = \"{api}/x\"\n[response]\nvalue = '$input.id'\n"), None);
        // Elsewhere they are what programs begin with.
        let query = "[request]\nmethod = \"GET\"\nurl = \"{api}/x\"\nquery.q = '$input.id'\n";
        assert!(with(query).unwrap().contains("is not defined"));
    }

    #[test]
    fn origin_moves_every_url_and_keeps_paths() {
        let config = ProviderConfig { origin: Some("http://127.0.0.1:4701".parse().unwrap()), ..Default::default() };
        let provider = provider_with(&config);
        assert_eq!(provider.servers["api"].as_str(), "http://127.0.0.1:4701/v1");
        assert_eq!(provider.servers["files"].as_str(), "http://127.0.0.1:4701/");
        assert_eq!(provider.oauth.authorize_url.as_str(), "http://127.0.0.1:4701/authorize?tenant=x");
        assert_eq!(provider.oauth.token_url.as_str(), "http://127.0.0.1:4701/token");
        assert_eq!(provider.oauth.revoke.as_ref().unwrap().url.as_str(), "http://127.0.0.1:4701/revoke");
        assert_eq!(provider.account.url.as_str(), "http://127.0.0.1:4701/v1/me");
        assert_eq!(provider.fingerprint(), "http://127.0.0.1:4701/token http://127.0.0.1:4701");
    }

    #[test]
    fn one_server_may_be_moved_alone() {
        let servers = BTreeMap::from([("api".to_owned(), "https://ghe.example.com/api/v3".parse().unwrap())]);
        let provider = provider_with(&ProviderConfig { servers, pkce: Some(false), ..Default::default() });
        assert_eq!(provider.servers["api"].as_str(), "https://ghe.example.com/api/v3");
        assert_eq!(provider.servers["files"].as_str(), "https://files.example.com/");
        assert!(!provider.oauth.pkce);
        assert_eq!(
            provider.fingerprint(),
            "https://login.example.com/token https://files.example.com https://ghe.example.com"
        );
    }

    #[test]
    fn answers_of_the_provider_are_read_by_its_programs() {
        let provider = provider();
        assert_eq!(provider.token_answer(json!({"user": {"a": 1}})), Ok(json!({"a": 1})));
        assert_eq!(
            provider.account_of(&json!({"id": 7, "email": "a@b.example"})),
            Ok(("7".into(), "a@b.example".into()))
        );
        for answer in [json!({}), json!({"id": "", "email": "x"}), json!({"id": "a\nb", "email": "x"}), json!([])] {
            assert!(provider.account_of(&answer).is_err(), "{answer}");
        }
    }

    const TOOL: &str = r#"
        name = "Example.Get"
        title = "Get"
        description = "Gets."
        scopes = ["read"]
        effect = "read"
        [input]
        type = "object"
        required = ["id"]
        [input.properties.id]
        type = "string"
        [input.properties.n]
        type = "integer"
        default = 3
        [input.properties.opt]
        type = "string"
        [request]
        method = "GET"
        url = "{api}/things/{id}"
        query.n = '.n'
        [response]
        value = '{id}'
        [facts]
        hosts = { url_hosts = '.opt' }
    "#;

    #[test]
    fn a_manifest_becomes_a_tool() {
        let tool = tool(TOOL);
        assert_eq!(tool.name.as_str(), "Example.Get");
        let api = tool.api().unwrap();
        assert_eq!(api.scopes_any_of, [["read"]]);
        assert_eq!(api.steps().len(), 1);
        assert_eq!(api.facts()["hosts"].kind, FactKind::UrlHosts);
        // Refused all the same; the list does not say so in every tool.
        assert!(!tool.input.contains_key("additionalProperties"));
        let unknown = Map::from_iter([("id".to_owned(), json!("x")), ("other".to_owned(), json!(1))]);
        assert!(tool.arguments(unknown).unwrap_err().message.contains("there is no argument \"other\""));
        let arguments = tool.arguments(Map::from_iter([("id".to_owned(), json!("x"))])).unwrap();
        assert_eq!(arguments.as_map()["n"], 3);
    }

    #[test]
    fn manifests_that_cannot_work_are_refused() {
        for (from, to, reason) in [
            ("Example.Get", "Example_Get", "tool name"),
            ("title = \"Get\"", "title = \"\"", "title"),
            ("scopes = [\"read\"]", "", "scopes"),
            ("scopes = [\"read\"]", "scopes_any_of = []", "scopes"),
            ("scopes = [\"read\"]", "scopes = []\nscopes_any_of = [[]]", "scopes"),
            ("{id}\"", "{opt}\"", "may be missing"),
            ("{id}\"", "{nothing}\"", "not an argument"),
            ("{api}", "{apo}", "no server"),
            ("{api}", "https://evil.example", "does not begin with a server"),
            ("query.n = '.n'", "query.n = '.n |'", "expected"),
            ("query.n = '.n'", "query.n = '$list'", "not defined"),
            ("query.n = '.n'", "headers.authorization = '.id'", "not a manifest's to set"),
            ("query.n = '.n'", "body = '.'", "has no body"),
            ("method = \"GET\"", "method = \"POST\"\nbody = '.'\nform = '.'", "more than one"),
            ("[input.properties.opt]", "[input.properties.account]", "reserved"),
            ("'{id}'", "'env'", "not available"),
            ("{ url_hosts = '.opt' }", "{}", "exactly one kind"),
            ("{ url_hosts = '.opt' }", "{ url_hosts = '.', count = '.' }", "exactly one kind"),
            ("method = \"GET\"", "method = \"GET\"\nqueri.x = '.'", "unknown key"),
            ("effect = \"read\"", "effect = \"reed\"", "reed"),
            (
                "[request]\n        method = \"GET\"",
                "[[step]]\nreads = true\n[step.request]\nmethod = \"PATCH\"",
                "a step that reads",
            ),
        ] {
            assert!(TOOL.contains(from), "{from}");
            let finding = try_tool(&TOOL.replacen(from, to, 1)).err().unwrap_or_else(|| panic!("{to} was accepted"));
            assert!(finding.reason.contains(reason), "{to}: {}", finding.reason);
            assert!(!finding.mend.is_empty(), "{to}");
        }
    }
}
