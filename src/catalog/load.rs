//! Reads manifests: those compiled in, then those of the operator's folders, which may replace them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::finding::{Finding, Level, Problem};
use super::parse::{parse_provider_manifest, parse_tool_manifest};
use super::provider::ProviderConfig;
use super::source::{self, PROVIDER_FILE, Source};
use super::stamps::Stamps;
use super::tool::TestManifest;
use super::{Catalog, OWN_TOOLKIT, Own, Provider, Runs, Tool, examine, jq, lint, own};
use crate::id::{ProviderId, ToolName};
use crate::schema::nearest;

/// `[tools]` of obo.toml.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolsConfig {
    /// Folders of manifests beside those compiled in: `DIR/<provider>/<tool>.toml`. A file may replace a built-in tool
    /// of the same name; a broken one that does hides it. `obo serve` and `obo stdio` take up changes while they run.
    pub dirs: Vec<PathBuf>,
    /// The tools to offer: full names, or `Toolkit.*`. Default: all whose provider has a client, and obo's own (`Obo.*`).
    pub enable: Option<Vec<String>>,
}

/// What is to be said of the manifests at a path.
pub struct Checked {
    /// How many manifests stand there.
    pub files: usize,
    /// What is wrong with them, by file and line.
    pub problems: Vec<Problem>,
    /// The tools that could be compiled, with their cases.
    pub tested: Vec<Tested>,
}

/// A tool with the cases that its manifest has.
pub struct Tested {
    /// The manifest's file.
    pub file: String,
    /// The tool.
    pub tool: Arc<Tool>,
    /// Its cases, each with the line it begins in.
    pub cases: Vec<(Option<usize>, TestManifest)>,
}

impl Tested {
    fn of(source: &Source, catalog: &Catalog) -> Option<Self> {
        let text = source.text().ok()?;
        let manifest = parse_tool_manifest(text).ok()?;
        let tool = catalog.known_tools().find(|tool| tool.name.as_str() == manifest.name)?;
        let line = |index: usize| Finding::at_path(&["test", &index.to_string()], String::new(), "").located(text).line;
        let cases = manifest.test.into_iter().enumerate().map(|(index, case)| (line(index), case)).collect();
        Some(Self { file: source.file.clone(), tool: Arc::clone(tool), cases })
    }
}

/// What the manifests are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be served: what cannot be called is not compiled.
    Serve,
    /// To be judged: all of them, whoever has a client, and with what is merely unwise.
    Check,
}

impl Catalog {
    /// Loads what is compiled in and what is in the operator's folders.
    ///
    /// A broken manifest is a [`Problem`], and the rest is loaded without it.
    ///
    /// # Errors
    /// One line naming a key of obo.toml and the mend.
    pub fn load(config: &ToolsConfig, providers: &BTreeMap<ProviderId, ProviderConfig>) -> Result<Self, String> {
        in_depth(|| {
            // Before the files are read: what changes in between shows as a change.
            let stamps = Stamps::of(&config.dirs);
            let (sources, problems) = sources_of(config)?;
            let catalog = Self::of(&sources, config, providers, Purpose::Serve, problems)?;
            Ok(Self { stamps, ..catalog })
        })
    }

    /// Everything that there is to say about the manifests that [`Catalog::load`] would read, built-in ones of providers
    /// without a client among them: what keeps a file from being served, by the very code that serves it, and what is
    /// merely unwise.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    pub fn check(
        config: &ToolsConfig,
        providers: &BTreeMap<ProviderId, ProviderConfig>,
    ) -> Result<Vec<Problem>, String> {
        in_depth(|| {
            let (sources, problems) = sources_of(config)?;
            Ok(sorted(Self::of(&sources, config, providers, Purpose::Check, problems)?.problems))
        })
    }

    /// The same for a folder as `tools.dirs` has them, a provider's folder, or one file of such. Providers may come from
    /// `config`; of what it configures for them nothing is applied.
    ///
    /// # Errors
    /// It cannot be read, or the folders of `config` cannot.
    pub fn check_at(path: &Path, config: &ToolsConfig) -> Result<Checked, String> {
        in_depth(|| Self::checked(path, config))
    }

    fn checked(path: &Path, config: &ToolsConfig) -> Result<Checked, String> {
        let (sources, problems) = sources_at(path, config)?;
        let config = ToolsConfig::default();
        let catalog = Self::of(&sources, &config, &BTreeMap::new(), Purpose::Check, problems)?;
        let here = |file: &str| Path::new(file).starts_with(path);
        let files = sources.iter().filter(|source| here(&source.file)).count();
        let problems = catalog.problems.iter().filter(|problem| here(&problem.file)).cloned().collect();
        let tested = sources.iter().filter(|source| here(&source.file) && source.name != PROVIDER_FILE);
        let tested = tested.filter_map(|source| Tested::of(source, &catalog)).collect();
        Ok(Checked { files, problems: sorted(problems), tested })
    }

    fn of(
        sources: &[Source],
        config: &ToolsConfig,
        providers: &BTreeMap<ProviderId, ProviderConfig>,
        purpose: Purpose,
        mut problems: Vec<Problem>,
    ) -> Result<Self, String> {
        let loaded = load_providers(sources, providers, &mut problems)?;
        let (mut known, idle) = load_tools(sources, &loaded, purpose, &mut problems);
        for tool in own::tools(&offered(config, &known))? {
            known.insert(tool.name.clone(), Arc::new(tool));
        }
        let tools = enabled(config, &known, &idle, &mut problems);
        let mut aliases = HashMap::new();
        for name in tools.keys() {
            aliases.insert(name.as_str().to_owned(), name.clone());
            aliases.insert(name.underscored(), name.clone());
        }
        Ok(Self { tools, aliases, providers: loaded, known, idle, problems, stamps: Stamps::default() })
    }
}

fn in_depth<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    jq::on_deep_stack(work).map_err(|e| format!("no thread to read the manifests in: {e}"))?
}

/// What is found where, by file and line.
fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by(|a, b| (&a.file, a.line, a.column, a.level).cmp(&(&b.file, b.line, b.column, b.level)));
    problems
}

fn sources_of(config: &ToolsConfig) -> Result<(Vec<Source>, Vec<Problem>), String> {
    let (mut sources, mut problems) = (source::built_in(), Vec::new());
    for dir in &config.dirs {
        source::read_dir(dir, &mut sources, &mut problems).map_err(|reason| format!("tools.dirs: {reason}"))?;
    }
    Ok((sources, problems))
}

/// What stands at a path, with the built-in manifests and the providers of the configured folders before it.
fn sources_at(path: &Path, config: &ToolsConfig) -> Result<(Vec<Source>, Vec<Problem>), String> {
    let (mut sources, _) = sources_of(config)?;
    sources.retain(|source| source.built_in || source.name == PROVIDER_FILE);
    let mut problems = Vec::new();
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let is_provider = !path.is_dir()
        || folder.join(PROVIDER_FILE).is_file()
        || (source::list(folder)?.iter().any(|path| source::is_manifest(path))
            && sources.iter().any(|other| other.folder == source::name(folder)));
    if is_provider {
        source::read_provider_dir(folder, &mut sources, &mut problems)?;
    } else {
        source::read_dir(folder, &mut sources, &mut problems)?;
    }
    Ok((sources, problems))
}

fn load_providers(
    sources: &[Source],
    configs: &BTreeMap<ProviderId, ProviderConfig>,
    problems: &mut Vec<Problem>,
) -> Result<BTreeMap<ProviderId, Arc<Provider>>, String> {
    // A later folder's file replaces an earlier one, and hides it when it is broken.
    let files: BTreeMap<&str, &Source> =
        sources.iter().filter(|s| s.name == PROVIDER_FILE).map(|s| (s.folder.as_str(), s)).collect();
    for (id, config) in configs {
        if !files.contains_key(id.as_str()) {
            let known: Vec<&str> = files.keys().copied().collect();
            let mend = match nearest(id.as_str(), known.iter().copied()) {
                Some(nearest) => format!("did you mean providers.{nearest}?"),
                None => format!("known are {}", known.join(", ")),
            };
            return Err(format!("providers.{id}: there is no such provider; {mend}"));
        }
        config.check(id.as_str(), None)?;
    }
    let default = ProviderConfig::default();
    let mut loaded = BTreeMap::new();
    for (folder, source) in files {
        let config = configs.iter().find(|(id, _)| id.as_str() == folder).map_or(&default, |(_, config)| config);
        let manifest = source.text().and_then(parse_provider_manifest);
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(findings) => {
                problems.extend(findings.into_iter().map(|finding| source.problem(finding)));
                continue;
            }
        };
        config.check(folder, Some(&manifest.servers))?;
        let provider = if manifest.id == folder {
            Provider::new(manifest, config)
        } else {
            let reason = format!("the id is {:?}, but the folder is {folder:?}", manifest.id);
            Err(Finding::at("id", reason, "name both the same"))
        };
        match provider {
            Ok(provider) => {
                loaded.insert(provider.id.clone(), Arc::new(provider));
            }
            Err(finding) => problems.push(source.problem(finding)),
        }
    }
    Ok(loaded)
}

/// The tools, and the names of those that are left as they are until their provider has a client.
fn load_tools(
    sources: &[Source],
    providers: &BTreeMap<ProviderId, Arc<Provider>>,
    purpose: Purpose,
    problems: &mut Vec<Problem>,
) -> (BTreeMap<ToolName, Arc<Tool>>, BTreeMap<ToolName, Arc<Provider>>) {
    let tools: Vec<&Source> = sources.iter().filter(|source| source.name != PROVIDER_FILE).collect();
    // Names that differ in case alone would be one and the same to people, and to some clients.
    let mut claims: BTreeMap<String, Vec<&Source>> = BTreeMap::new();
    for source in &tools {
        if let Some(name) = source.claimed_name() {
            claims.entry(name.as_str().to_lowercase()).or_default().push(source);
        }
    }
    let hidden = |source: &Source| {
        let same_file =
            |other: &&Source| !other.built_in && (&other.folder, &other.name) == (&source.folder, &source.name);
        let claimed = source.claimed_name().is_some_and(|name| {
            claims.get(&name.as_str().to_lowercase()).is_some_and(|claims| claims.iter().any(|other| !other.built_in))
        });
        source.built_in && (claimed || tools.iter().any(same_file))
    };
    let (mut loaded, mut idle) = (BTreeMap::new(), BTreeMap::new());
    for source in &tools {
        // Who wants to be told everything is also told what is wrong with a file that is not offered for its name.
        let mut by_name = None;
        if source.claimed_name().is_some_and(|name| name.toolkit().eq_ignore_ascii_case(OWN_TOOLKIT)) {
            let reason = format!("the tools of {OWN_TOOLKIT} are obo's own");
            by_name = Some(Finding::at("name", reason, "name the tool after its service"));
        } else if hidden(source) {
            continue;
        } else if let Some(rival) = rival(source, &claims) {
            let reason = format!("the tool's name is also that of {}", rival.file);
            by_name = Some(Finding::at("name", reason, "rename one of them; until then neither is offered"));
        }
        let refused = by_name.is_some();
        problems.extend(by_name.map(|finding| source.problem(finding)));
        if refused && purpose == Purpose::Serve {
            continue;
        }
        let Some(provider) = providers.values().find(|provider| provider.id.as_str() == source.folder) else {
            // Where the provider's own manifest is broken, that is the problem to mend.
            if !sources.iter().any(|other| other.name == PROVIDER_FILE && other.folder == source.folder) {
                let reason = format!("there is no provider {:?}", source.folder);
                let mend = format!("add {PROVIDER_FILE} beside it, or move it to its provider's folder");
                problems.push(source.problem(Finding::at("", reason, &mend)));
            }
            continue;
        };
        // Most people use a few of the built-in providers, and every process would pay for all of them. An operator's own
        // files are read all the same: what is wrong with them should be known before there is a client.
        if let (true, None, Some(name), Purpose::Serve) =
            (source.built_in, &provider.client, source.claimed_name(), purpose)
        {
            idle.insert(name.clone(), Arc::clone(provider));
            continue;
        }
        let tool = source.text().and_then(|text| compile_tool(text, provider));
        match tool {
            Ok(_) if refused => {}
            Ok(tool) => {
                loaded.insert(tool.name.clone(), Arc::new(tool));
            }
            Err(findings) => problems.extend(findings.into_iter().map(|finding| source.problem(finding))),
        }
        if purpose == Purpose::Check
            && let Ok(manifest) = source.text().and_then(parse_tool_manifest)
        {
            let findings = lint::tool(&manifest, provider, &source.name).into_iter();
            // Whoever has the program cannot add to what is compiled in.
            let findings = findings.filter(|finding| !source.built_in || finding.level != Level::Hint);
            problems.extend(findings.map(|finding| source.problem(finding)));
        }
    }
    if purpose == Purpose::Check {
        problems.extend(shared_toolkits(&tools));
    }
    (loaded, idle)
}

/// Another manifest of the same origin that has the same name.
fn rival<'s>(source: &Source, claims: &BTreeMap<String, Vec<&'s Source>>) -> Option<&'s Source> {
    let rivals = claims.get(&source.claimed_name()?.as_str().to_lowercase())?;
    rivals.iter().find(|other| other.file != source.file && other.built_in == source.built_in).copied()
}

/// A tool of a manifest's text, or everything that is wrong with it.
fn compile_tool(text: &str, provider: &Arc<Provider>) -> Result<Tool, Vec<Finding>> {
    let manifest = parse_tool_manifest(text)?;
    Tool::new(manifest, Arc::clone(provider)).map_err(|first| match parse_tool_manifest(text) {
        Ok(manifest) => examine::all(manifest, provider, first),
        Err(_) => vec![first],
    })
}

/// Toolkits that two providers' folders have tools of. Whoever reads `Toolkit.*` in obo.toml or in a policy means one.
fn shared_toolkits(tools: &[&Source]) -> Vec<Problem> {
    let mut first: BTreeMap<String, &Source> = BTreeMap::new();
    let mut problems = Vec::new();
    for source in tools {
        let Some(name) = source.claimed_name() else { continue };
        let before = *first.entry(name.toolkit().to_lowercase()).or_insert(source);
        if before.folder != source.folder {
            let reason = format!("the toolkit {} is that of the provider {:?}, too", name.toolkit(), before.folder);
            let finding = Finding::at_path(&["name"], reason, "name the toolkit after the service of this provider");
            problems.push(source.problem(finding.weighing(Level::Warning)));
        }
    }
    problems
}

/// The providers that have a tool which is offered, with their names.
fn offered(config: &ToolsConfig, known: &BTreeMap<ToolName, Arc<Tool>>) -> BTreeMap<ProviderId, String> {
    let named = |name: &ToolName| match &config.enable {
        Some(patterns) => patterns.iter().any(|pattern| matches_pattern(pattern, name)),
        None => true,
    };
    let apis = known.iter().filter(|(name, _)| named(name)).filter_map(|(_, tool)| tool.api());
    let providers = apis.map(|api| &api.provider).filter(|provider| provider.client.is_some());
    providers.map(|provider| (provider.id.clone(), provider.name.clone())).collect()
}

fn enabled(
    config: &ToolsConfig,
    known: &BTreeMap<ToolName, Arc<Tool>>,
    idle: &BTreeMap<ToolName, Arc<Provider>>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<ToolName, Arc<Tool>> {
    let can_connect = !offered(config, known).is_empty();
    let has_client = |tool: &Tool| match &tool.runs {
        Runs::Api(api) => api.provider.client.is_some(),
        // Connections outlive what is offered, and can be seen and ended; there is nothing to connect.
        Runs::Own(own) => can_connect || *own != Own::Connect,
    };
    let Some(patterns) = &config.enable else {
        return known
            .iter()
            .filter(|(_, tool)| has_client(tool))
            .map(|(name, tool)| (name.clone(), Arc::clone(tool)))
            .collect();
    };
    let mut problem = |reason: String, mend: String| {
        problems.push(Problem::new("obo.toml", Finding::at("", reason, &mend)));
    };
    let mut enabled = BTreeMap::new();
    let mut without_client = BTreeMap::new();
    let mut nothing_to_connect = false;
    for pattern in patterns {
        let mut matched = false;
        for (name, tool) in known {
            if !matches_pattern(pattern, name) {
                continue;
            }
            matched = true;
            if has_client(tool) {
                enabled.insert(name.clone(), Arc::clone(tool));
            } else if let Some(api) = tool.api() {
                without_client.insert(api.provider.id.as_str(), pattern);
            } else if pattern == name.as_str() {
                nothing_to_connect = true;
            }
        }
        for (_, provider) in idle.iter().filter(|(name, _)| matches_pattern(pattern, name)) {
            matched = true;
            without_client.insert(provider.id.as_str(), pattern);
        }
        if !matched {
            let all = || known.keys().chain(idle.keys());
            let toolkits = all().map(|name| format!("{}.*", name.toolkit()));
            let names: Vec<String> = all().map(ToString::to_string).chain(toolkits).collect();
            let mend = match nearest(pattern, names.iter().map(String::as_str)) {
                Some(nearest) => format!("did you mean {nearest:?}?"),
                None => "write Toolkit.Verb or Toolkit.*; `obo tools list` shows them".to_owned(),
            };
            problem(format!("tools.enable: {pattern:?} is no tool that could be loaded"), mend);
        }
    }
    if nothing_to_connect {
        problem(
            format!("tools.enable: {OWN_TOOLKIT}.Connect has nothing to connect: no tool of a provider is offered"),
            "enable the tools of a provider that has a client".to_owned(),
        );
    }
    for (provider, pattern) in without_client {
        problem(
            format!("tools.enable: {pattern:?} needs the provider {provider}, which has no client"),
            format!("set providers.{provider}.client_id"),
        );
    }
    enabled
}

fn matches_pattern(pattern: &str, name: &ToolName) -> bool {
    match pattern.strip_suffix(".*") {
        Some(toolkit) => toolkit == name.toolkit(),
        None => pattern == "*" || pattern == name.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    fn client() -> ProviderConfig {
        ProviderConfig { client_id: Some("id".into()), ..Default::default() }
    }

    fn configs(ids: &[&str]) -> BTreeMap<ProviderId, ProviderConfig> {
        ids.iter().map(|id| (id.parse().unwrap(), client())).collect()
    }

    /// A folder of manifests.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(files: &[(&str, &str)]) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = folder.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            folder
        }

        fn load(&self) -> Catalog {
            let config = ToolsConfig { dirs: vec![self.0.path().to_owned()], enable: None };
            Catalog::load(&config, &configs(&["google", "slack"])).unwrap()
        }
    }

    const PROVIDER: &str = r#"
        id = "acme"
        name = "Acme"
        [servers]
        api = "https://api.acme.example"
        [oauth]
        authorize_url = "https://acme.example/a"
        token_url = "https://acme.example/t"
        [account]
        url = "https://api.acme.example/me"
        key = '.id'
        label = '.email'
    "#;

    fn tool(name: &str, server: &str) -> String {
        format!(
            "name = \"{name}\"\ntitle = \"T\"\ndescription = \"D\"\nscopes = []\neffect = \"read\"\n\
             [input]\ntype = \"object\"\n[request]\nmethod = \"GET\"\nurl = \"{{{server}}}/x\"\n"
        )
    }

    /// The tools of providers.
    fn names(catalog: &Catalog) -> Vec<&str> {
        catalog.tools().filter(|tool| tool.api().is_some()).map(|tool| tool.name.as_str()).collect()
    }

    /// How many tools of Google and Slack are compiled in, by the beginning of their names.
    fn built_in_named(beginning: &str) -> usize {
        let catalog = Catalog::load(&ToolsConfig::default(), &configs(&["google", "slack"])).unwrap();
        names(&catalog).iter().filter(|name| name.starts_with(beginning)).count()
    }

    /// Those of obo's own.
    fn own(catalog: &Catalog) -> Vec<&str> {
        catalog.tools().filter(|tool| tool.api().is_none()).map(|tool| tool.name.as_str()).collect()
    }

    #[test]
    fn built_in_manifests_are_good() {
        let catalog = Catalog::load(&ToolsConfig::default(), &configs(&["google", "slack"])).unwrap();
        assert_eq!(catalog.problems(), []);
        for toolkit in ["Google.", "GoogleCalendar.", "GoogleDrive.", "Slack."] {
            assert!(names(&catalog).iter().any(|name| name.starts_with(toolkit)), "{toolkit}");
        }
        for tool in catalog.tools() {
            for spelling in [tool.name.as_str().to_owned(), tool.name.underscored()] {
                assert_eq!(catalog.find(&spelling).map(|found| &found.name), Some(&tool.name));
            }
            for (api, scope) in
                tool.api().iter().flat_map(|api| api.scopes_any_of.iter().flatten().map(move |s| (api, s)))
            {
                assert!(api.provider.scopes.contains_key(scope), "{}: {scope} has no words", tool.name);
            }
            for (name, schema) in tool.input.get("properties").and_then(Value::as_object).into_iter().flatten() {
                assert!(schema["description"].is_string(), "{}: {name} has no description", tool.name);
            }
        }
        assert!(catalog.find("google.sendemail").is_none());
    }

    fn token_answer(provider: &str, answer: Value) -> Value {
        let catalog = Catalog::load(&ToolsConfig::default(), &configs(&[])).unwrap();
        catalog.provider(provider).unwrap().token_answer(answer).unwrap()
    }

    #[test]
    fn slack_gives_the_persons_token_and_never_the_bots() {
        assert_eq!(
            token_answer(
                "slack",
                json!({
                    "ok": true, "access_token": "xoxb-bot", "token_type": "bot", "scope": "commands",
                    "authed_user": {"id": "U1", "scope": "chat:write,channels:read", "access_token": "xoxp-me", "token_type": "user"},
                })
            ),
            json!({"access_token": "xoxp-me", "token_type": "bearer", "scope": "chat:write channels:read"})
        );
        // A refresh answers with a flat object.
        assert_eq!(
            token_answer(
                "slack",
                json!({
                    "ok": true, "access_token": "xoxe.new", "refresh_token": "xoxe-1-r", "expires_in": 43200,
                    "token_type": "user", "scope": "chat:write",
                })
            ),
            json!({
                "access_token": "xoxe.new", "refresh_token": "xoxe-1-r", "expires_in": 43200,
                "token_type": "bearer", "scope": "chat:write",
            })
        );
        for bots in [
            json!({"ok": true, "access_token": "xoxb-bot", "token_type": "bot", "authed_user": {"id": "U1"}}),
            json!({"ok": true, "access_token": "xoxb-bot", "token_type": "bot"}),
            json!({"ok": true}),
        ] {
            assert_eq!(token_answer("slack", bots)["error"], "invalid_scope");
        }
        for (error, expected) in [
            ("invalid_refresh_token", "invalid_grant"),
            ("invalid_code", "invalid_grant"),
            ("bad_client_secret", "invalid_client"),
            ("bad_redirect_uri", "bad_redirect_uri"),
        ] {
            assert_eq!(token_answer("slack", json!({"ok": false, "error": error}))["error"], expected);
        }
    }

    #[test]
    fn google_scopes_are_named_as_they_were_asked_for() {
        let answer = token_answer(
            "google",
            json!({
                "access_token": "t",
                "scope": "https://www.googleapis.com/auth/userinfo.email openid https://www.googleapis.com/auth/gmail.send",
            }),
        );
        assert_eq!(answer["scope"], "email https://www.googleapis.com/auth/gmail.send openid");
        let error = json!({"error": "invalid_grant", "error_description": "Token has been expired or revoked."});
        assert_eq!(token_answer("google", error.clone()), error);
    }

    #[test]
    fn google_errors_are_told_apart() {
        use crate::catalog::Fault;
        let catalog = Catalog::load(&ToolsConfig::default(), &configs(&[])).unwrap();
        let reason = |reason: &str| json!({"error": {"code": 403, "message": "m", "errors": [{"reason": reason}]}});
        let detail = |reason: &str| json!({"error": {"code": 403, "details": [{"@type": "x"}, {"reason": reason}]}});
        for (status, body, expected) in [
            (401, json!({"error": {"message": "m"}}), Some(Fault::TokenDead)),
            (403, detail("ACCESS_TOKEN_SCOPE_INSUFFICIENT"), Some(Fault::ScopeMissing)),
            (403, reason("insufficientPermissions"), Some(Fault::ScopeMissing)),
            (403, reason("userRateLimitExceeded"), Some(Fault::RateLimited)),
            (403, reason("forbidden"), None),
            (403, json!("not an object"), None),
            (403, json!({"error": "text"}), None),
            (429, json!(null), Some(Fault::RateLimited)),
            (410, json!({}), Some(Fault::NotFound)),
            (500, json!([]), None),
        ] {
            let status = http::StatusCode::from_u16(status).unwrap();
            let verdict = catalog.provider("google").unwrap().judge(status, &http::HeaderMap::new(), &body).unwrap();
            assert_eq!(verdict.fault, expected, "{status} {body}");
        }
    }

    #[test]
    fn arguments_of_the_built_in_tools_become_their_requests() {
        let catalog = Catalog::load(&ToolsConfig::default(), &configs(&["google", "slack"])).unwrap();
        let body = |name: &str, raw: Value| {
            let Value::Object(raw) = raw else { panic!("not an object") };
            let tool = catalog.find(name).unwrap();
            let arguments = tool.arguments(raw).unwrap();
            let (_, program) = tool.api().unwrap().steps()[0].request.body.as_ref().unwrap();
            program.run(&Value::Object(arguments.as_map().clone()), &[]).unwrap()
        };
        assert_eq!(
            body(
                "GoogleCalendar.CreateEvent",
                json!({
                    "summary": "S", "start": "2026-03-31T14:00:00", "end": "2026-03-31T15:00:00", "time_zone": "Europe/Paris",
                    "attendees": ["ana@example.com"],
                })
            ),
            json!({
                "summary": "S",
                "start": {"dateTime": "2026-03-31T14:00:00", "timeZone": "Europe/Paris"},
                "end": {"dateTime": "2026-03-31T15:00:00", "timeZone": "Europe/Paris"},
                "attendees": [{"email": "ana@example.com"}],
            })
        );
        assert_eq!(
            body("GoogleCalendar.CreateEvent", json!({"summary": "S", "start": "2026-03-31", "end": "2026-04-01"})),
            json!({"summary": "S", "start": {"date": "2026-03-31"}, "end": {"date": "2026-04-01"}})
        );
        assert_eq!(
            body("Slack.PostMessage", json!({"channel": "C01", "text": "t", "unfurl_links": false})),
            json!({"channel": "C01", "text": "t", "unfurl_links": false})
        );
        let mail = body("Google.SendEmail", json!({"to": ["ana@example.com"], "subject": "S", "thread_id": "t1"}));
        assert_eq!(mail["threadId"], "t1");
        assert!(mail["raw"].is_string());
        // The largest attachment that a message of 25 MB has room for.
        let content = "QUJD".repeat(23 * 1024 * 1024 / 4);
        let largest = json!({
            "to": ["ana@example.com"], "subject": "S", "thread_id": "t1",
            "attachments": [{"filename": "f", "content_base64": content}],
        });
        assert!(body("Google.SendEmail", largest)["raw"].as_str().unwrap().len() > 30 * 1024 * 1024);
    }

    #[test]
    fn tools_of_providers_without_a_client_are_known_but_not_offered() {
        let catalog = Catalog::load(&ToolsConfig::default(), &configs(&["slack"])).unwrap();
        assert!(names(&catalog).contains(&"Slack.PostMessage") && names(&catalog).len() == built_in_named("Slack."));
        assert!(!catalog.known_tools().any(|tool| tool.name.toolkit() == "Google"), "and not compiled");
        for name in ["Google.SendEmail", "Google_SendEmail"] {
            assert_eq!(catalog.waits_for(name).unwrap().id.as_str(), "google");
        }
        assert!(catalog.waits_for("Slack.PostMessage").is_none() && catalog.waits_for("Google.Nothing").is_none());
        assert!(catalog.find("Google.SendEmail").is_none());
        assert!(catalog.provider("google").unwrap().client.is_none());
    }

    #[test]
    fn enable_names_tools_and_toolkits() {
        let load = |enable: &[&str]| {
            let enable = Some(enable.iter().map(ToString::to_string).collect());
            Catalog::load(&ToolsConfig { dirs: Vec::new(), enable }, &configs(&["google"])).unwrap()
        };
        let google = load(&["Google.*"]);
        assert!(names(&google).iter().all(|name| name.starts_with("Google.")), "{:?}", names(&google));
        assert_eq!(names(&google).len(), built_in_named("Google."));
        assert_eq!(names(&load(&["GoogleCalendar.ListEvents"])), ["GoogleCalendar.ListEvents"]);
        assert_eq!(names(&load(&[])), [""; 0]);
        let catalog = load(&["Google.SendMail", "Slack.*"]);
        let problems: Vec<String> = catalog.problems().iter().map(ToString::to_string).collect();
        assert!(names(&catalog).is_empty());
        assert!(problems[0].contains("did you mean \"Google.SendEmail\"?"), "{problems:?}");
        assert!(problems[1].contains("set providers.slack.client_id"), "{problems:?}");
    }

    #[test]
    fn own_tools_are_offered_unless_enable_leaves_them_out() {
        let load = |enable: Option<&[&str]>, clients: &[&str]| {
            let enable = enable.map(|enable| enable.iter().map(ToString::to_string).collect());
            Catalog::load(&ToolsConfig { dirs: Vec::new(), enable }, &configs(clients)).unwrap()
        };
        let all = ["Obo.Connect", "Obo.Disconnect", "Obo.ListConnections"];
        assert_eq!(own(&load(None, &["google"])), all);
        assert_eq!(own(&load(Some(&["*"]), &["google"])), all);
        assert_eq!(own(&load(Some(&["Google.*", "Obo.*"]), &["google"])), all);
        assert_eq!(own(&load(Some(&["Google.*", "Obo.Connect"]), &["google"])), ["Obo.Connect"]);
        assert_eq!(own(&load(Some(&["Google.*"]), &["google"])), [""; 0]);
        // What can be connected is what is offered.
        for (enable, clients, providers) in [
            (None, &["google", "slack"][..], json!(["google", "slack"])),
            (None, &["slack"], json!(["slack"])),
            (Some(&["Obo.*", "Slack.ListChannels"][..]), &["google", "slack"], json!(["slack"])),
        ] {
            let catalog = load(enable, clients);
            let input = &catalog.find("Obo_Connect").unwrap().input;
            assert_eq!(input["properties"]["provider"]["enum"], providers);
        }
        // With nothing to connect, what is connected can still be seen and ended.
        assert_eq!(own(&load(None, &[])), ["Obo.Disconnect", "Obo.ListConnections"]);
        let catalog = load(Some(&["Obo.*"]), &["google"]);
        assert_eq!(own(&catalog), ["Obo.Disconnect", "Obo.ListConnections"]);
        assert_eq!(catalog.problems(), []);
        let problems = load(Some(&["Obo.Connect", "Slack.PostMessage"]), &["google"]).problems().to_vec();
        assert!(problems[0].reason.contains("nothing to connect"), "{problems:?}");
    }

    #[test]
    fn no_manifest_takes_the_place_of_an_own_tool() {
        for name in ["Obo.Connect", "Obo.Mine", "OBO.Connect", "obo.listconnections"] {
            let catalog = Folder::with(&[("slack/mine.toml", &tool(name, "api"))]).load();
            assert!(catalog.problems()[0].reason.contains("obo's own"), "{name}: {:?}", catalog.problems());
            assert_eq!(own(&catalog).len(), 3, "{name}");
            assert!(catalog.find("Obo.Connect").unwrap().api().is_none(), "{name}");
            assert_eq!(names(&catalog).len(), built_in_named(""), "{name}");
        }
    }

    #[test]
    fn settings_of_unknown_providers_are_errors() {
        let error = Catalog::load(&ToolsConfig::default(), &configs(&["gogle"])).err().unwrap();
        assert_eq!(error, "providers.gogle: there is no such provider; did you mean providers.google?");
        let dirs = vec![PathBuf::from("does-not-exist")];
        let error = Catalog::load(&ToolsConfig { dirs, enable: None }, &configs(&[])).err().unwrap();
        assert!(error.starts_with("tools.dirs: does-not-exist cannot be read"), "{error}");
    }

    #[test]
    fn a_folder_adds_providers_and_tools() {
        let folder = Folder::with(&[
            ("acme/provider.toml", PROVIDER),
            ("acme/get.toml", &tool("Acme.Get", "api")),
            ("google/mine.toml", &tool("Google.Mine", "gmail")),
            ("README.md", "not a manifest"),
        ]);
        let catalog = folder.load();
        assert_eq!(catalog.problems(), []);
        assert!(catalog.find("Google_Mine").is_some());
        assert!(catalog.known_tools().any(|tool| tool.name.as_str() == "Acme.Get"));
        assert!(catalog.find("Acme.Get").is_none(), "it has no client");
    }

    #[test]
    fn a_file_replaces_a_built_in_tool_of_its_name() {
        let catalog = Folder::with(&[("slack/any.toml", &tool("Slack.PostMessage", "api"))]).load();
        assert_eq!(catalog.problems(), []);
        assert_eq!(catalog.find("Slack.PostMessage").unwrap().title, "T");
    }

    #[test]
    fn a_broken_file_hides_the_built_in_tool_and_nothing_else() {
        for broken in [
            "name = \"Slack.PostMessage\"\nthis is not toml".to_owned(),
            tool("Slack.PostMessage", "nonsense"),
            tool("Slack.PostMessage", "api") + "[nonsense]\nx = 1\n",
        ] {
            let catalog = Folder::with(&[("slack/any.toml", &broken)]).load();
            assert!(catalog.find("Slack.PostMessage").is_none(), "{broken}");
            assert_eq!(names(&catalog).len(), built_in_named("") - 1);
            assert_eq!(catalog.problems().len(), 1, "{:?}", catalog.problems());
            assert!(catalog.problems()[0].line.is_some(), "{:?}", catalog.problems());
        }
        let catalog = Folder::with(&[("slack/post-message.toml", "\u{0}")]).load();
        assert!(catalog.find("Slack.PostMessage").is_none(), "the same file, whatever is in it");
    }

    #[test]
    fn a_broken_provider_hides_its_own_tools_only() {
        let catalog = Folder::with(&[("slack/provider.toml", "id = \"slack\"\nnam = \"x\"\n")]).load();
        assert_eq!(names(&catalog).len(), built_in_named("Google"));
        let problem = &catalog.problems()[0];
        assert_eq!((problem.line, problem.mend.as_str()), (Some(2), "did you mean \"name\"?"), "{problem}");
        let http = PROVIDER.replace("https://api.acme", "http://api.acme");
        let catalog = Folder::with(&[("acme/provider.toml", &http)]).load();
        assert!(catalog.problems()[0].reason.contains("plain http"), "{:?}", catalog.problems());
        let catalog = Folder::with(&[("acne/provider.toml", PROVIDER)]).load();
        assert!(catalog.problems()[0].reason.contains("but the folder is"), "{:?}", catalog.problems());
    }

    #[test]
    fn two_files_of_one_name_are_both_refused() {
        let catalog =
            Folder::with(&[("slack/a.toml", &tool("Slack.Same", "api")), ("slack/b.toml", &tool("Slack.SAME", "api"))])
                .load();
        assert_eq!(catalog.problems().len(), 2);
        assert!(catalog.find("Slack.Same").is_none() && catalog.find("Slack.SAME").is_none());
    }

    #[test]
    fn a_tool_without_a_provider_is_a_problem() {
        let catalog = Folder::with(&[("nobody/a.toml", &tool("Nobody.Get", "api"))]).load();
        assert!(catalog.problems()[0].reason.contains("there is no provider"), "{:?}", catalog.problems());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}", cut in 0usize..2000) {
            let _ = parse_tool_manifest(&text);
            let _ = parse_provider_manifest(&text);
            let text = tool("Acme.Get", "api");
            let cut = text.floor_char_boundary(cut.min(text.len()));
            let _ = parse_tool_manifest(&text[..cut]);
        }
    }
}
