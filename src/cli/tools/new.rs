//! `obo tools new`.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use url::Url;

use super::super::{Exit, Global, output};
use crate::app::load_catalog;
use crate::catalog::tool::Method;
use crate::catalog::{Catalog, Effect, Level, OWN_TOOLKIT, kebab, parse_provider_manifest, schemas};
use crate::config::Config;
use crate::id::{ProviderId, ToolName};
use crate::rehearsal;

mod draft;

use draft::Draft;

/// Where the schemas stand for editors: a folder that is not read for manifests.
const SCHEMAS: &str = ".schemas";

#[derive(Args)]
pub(in crate::cli) struct New {
    /// The tool's name: Toolkit.Verb
    name: String,
    /// The provider: the name of its folder
    #[arg(long, value_name = "ID")]
    provider: Option<String>,
    /// The request's method
    #[arg(long, value_enum, value_name = "METHOD", ignore_case = true, hide_possible_values = true)]
    method: Option<MethodName>,
    /// Where to: '{server}/things/{thing_id}', or the whole URL with {arguments} in its path
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// What a call does: read, write or destructive [default: as the method has it]
    #[arg(long, value_enum, value_name = "EFFECT", hide_possible_values = true)]
    effect: Option<EffectName>,
    /// A scope that a call needs
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// The folder of manifests [default: the first of tools.dirs]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "UPPER")]
enum MethodName {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

#[derive(Clone, Copy, ValueEnum)]
enum EffectName {
    Read,
    Write,
    Destructive,
}

/// Everything that a manifest is made of.
struct Answers {
    provider: ProviderId,
    method: Method,
    url: String,
    effect: Effect,
    scopes: Vec<String>,
    dir: PathBuf,
}

impl New {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let catalog = load_catalog(&config)?;
        let name: ToolName = self.name.parse().map_err(Exit::usage)?;
        if name.toolkit().eq_ignore_ascii_case(OWN_TOOLKIT) {
            return Err(Exit::usage(format!(
                "the tools of {OWN_TOOLKIT} are obo's own; name the tool after its service"
            )));
        }
        let answers = self.complete(&config)?;
        let (_, verb) = name.as_str().split_once('.').unwrap_or_default();
        let folder = answers.dir.join(answers.provider.as_str());
        let file = folder.join(format!("{}.toml", kebab(verb)));
        if file.exists() {
            return Err(Exit::failed(format!("{} exists already and is left as it is", file.display())));
        }

        if answers.url.contains(['?', '#']) {
            return Err(Exit::usage("--url: leave the query out; it is written as query.NAME in the manifest"));
        }
        let (url, server) = match known_servers(&catalog, &answers)? {
            Some(servers) => (url_at(&servers, &answers.url)?, None),
            None => {
                let (url, server) = url_of_new(&answers.url)?;
                (url, Some(server))
            }
        };
        let draft = Draft {
            name: name.as_str(),
            provider: answers.provider.as_str(),
            method: answers.method,
            url: &url,
            effect: answers.effect,
            scopes: &answers.scopes,
        };
        write_schemas(&answers.dir)?;
        fs::create_dir_all(&folder).map_err(|e| Exit::failed(format!("{} cannot be made: {e}", folder.display())))?;
        if let Some(server) = &server {
            let manifest = folder.join("provider.toml");
            write_new(&manifest, &draft::provider(draft.provider, server, &answers.scopes))?;
            output::line(format!("Wrote {}: fill in its OAuth addresses.", manifest.display()))?;
        }
        write_new(&file, &draft.tool())?;
        output::line(format!("Wrote {}.", file.display()))?;
        prove(&file, &config).await?;
        next_steps(&file, &draft, &answers.dir, &config)
    }

    /// Asks on a terminal for what is missing. Elsewhere that is an error which names the options: whoever runs a script
    /// does not see a question.
    fn complete(&self, config: &Config) -> Result<Answers, Exit> {
        let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        let dir = self.dir.clone().or_else(|| config.tools.dirs.first().cloned());
        let mut missing = Vec::new();
        for (option, there) in [
            ("--provider", self.provider.is_some()),
            ("--method", self.method.is_some()),
            ("--url", self.url.is_some()),
            ("--dir", dir.is_some()),
        ] {
            if !there {
                missing.push(option);
            }
        }
        if !missing.is_empty() && !asks {
            return Err(Exit::usage(format!(
                "{} must be given; only on a terminal are they asked for",
                missing.join(", ")
            )));
        }
        let ask = |given: Option<String>, question: &str, default: &str| match given {
            Some(given) => Ok(given),
            None => question_of(question, default),
        };
        let toolkit = self.name.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let provider = ask(self.provider.clone(), "Provider (the name of its folder)", &toolkit)?;
        let method = match self.method {
            Some(method) => method,
            None => chosen::<MethodName>("Method of the request", "GET")?,
        };
        let url = ask(self.url.clone(), "URL, such as {api}/things/{thing_id} or https://api.example.com/things", "")?;
        let by_method = match method {
            MethodName::Get => "read",
            MethodName::Delete => "destructive",
            _ => "write",
        };
        let effect = match self.effect {
            Some(effect) => effect,
            None if asks && !missing.is_empty() => chosen::<EffectName>("Effect", by_method)?,
            None => EffectName::from_str(by_method, true).map_err(Exit::usage)?,
        };
        let mut scopes = self.scopes.clone();
        if scopes.is_empty() && asks && !missing.is_empty() {
            let text = question_of("Scopes that a call needs, with spaces between them (none: leave it empty)", "")?;
            scopes = text.split_whitespace().map(str::to_owned).collect();
        }
        let dir = match dir {
            Some(dir) => dir,
            None => PathBuf::from(question_of("Folder of manifests", "./tools")?),
        };
        Ok(Answers {
            provider: provider.parse().map_err(Exit::usage)?,
            method: method.into(),
            url,
            effect: effect.into(),
            scopes,
            dir,
        })
    }
}

fn question_of(question: &str, default: &str) -> Result<String, Exit> {
    let mut input = dialoguer::Input::<String>::new().with_prompt(question).allow_empty(true);
    if !default.is_empty() {
        input = input.default(default.to_owned());
    }
    input.interact_text().map_err(Exit::failed)
}

fn chosen<T: ValueEnum>(question: &str, default: &str) -> Result<T, Exit> {
    T::from_str(question_of(question, default)?.trim(), true).map_err(Exit::usage)
}

/// The servers of the provider: a built-in one, one of a configured folder, or one of the folder that is written to.
fn known_servers(catalog: &Catalog, answers: &Answers) -> Result<Option<BTreeMap<String, Url>>, Exit> {
    let manifest = answers.dir.join(answers.provider.as_str()).join("provider.toml");
    match fs::read_to_string(&manifest) {
        Ok(text) => match parse_provider_manifest(&text) {
            Ok(manifest) => Ok(Some(manifest.servers)),
            Err(_) => {
                let path = manifest.display();
                Err(Exit::failed(format!("{path} is broken; see `obo tools check {path}`, and mend it first")))
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Ok(catalog.provider(answers.provider.as_str()).map(|provider| provider.servers.clone()))
        }
        Err(e) => Err(Exit::failed(format!("{} cannot be read: {e}", manifest.display()))),
    }
}

/// The URL as manifests of a provider with these servers write it.
fn url_at(servers: &BTreeMap<String, Url>, url: &str) -> Result<String, Exit> {
    if url.starts_with('{') {
        return Ok(url.to_owned());
    }
    let within = |server: &Url| {
        let base = server.as_str().trim_end_matches('/');
        url.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with('/')).map(|rest| (base.len(), rest))
    };
    let begins = servers.iter().filter_map(|(name, server)| within(server).map(|found| (name, found)));
    // The longest, where one server lies within another.
    match begins.max_by_key(|(_, (length, _))| *length) {
        Some((name, (_, path))) => Ok(format!("{{{name}}}{path}")),
        None => {
            let known: Vec<String> = servers.iter().map(|(name, server)| format!("{{{name}}} is {server}")).collect();
            Err(Exit::usage(format!("--url: it begins with no server of the provider: {}", known.join(", "))))
        }
    }
}

/// The URL of a tool of a provider that there is none of yet, and its server.
fn url_of_new(url: &str) -> Result<(String, Url), Exit> {
    let wrong = || {
        let text = "--url: of a provider that there is no manifest of yet, write the whole URL: https://api.example.com/things";
        Exit::usage(text)
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let server = Url::parse(&format!("{scheme}://{host}")).map_err(|_| wrong())?;
    let path = path.trim_end_matches('/');
    Ok((if path.is_empty() { "{api}".to_owned() } else { format!("{{api}}/{path}") }, server))
}

/// For editors. They follow from this obo, so they are written anew.
fn write_schemas(dir: &Path) -> Result<(), Exit> {
    let folder = dir.join(SCHEMAS);
    let failed = |e: std::io::Error| Exit::failed(format!("{} cannot be written: {e}", folder.display()));
    fs::create_dir_all(&folder).map_err(failed)?;
    for (name, schema) in schemas() {
        let text = serde_json::to_string_pretty(&schema).map_err(Exit::failed)?;
        fs::write(folder.join(name), text).map_err(failed)?;
    }
    Ok(())
}

/// Never over a file that is there.
fn write_new(path: &Path, text: &str) -> Result<(), Exit> {
    let written = OpenOptions::new().write(true).create_new(true).open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| Exit::failed(format!("{} cannot be written: {e}", path.display())))
}

/// Checks what was written, and runs its case.
async fn prove(file: &Path, config: &Config) -> Result<(), Exit> {
    let checked = Catalog::check_at(file, &config.tools).map_err(Exit::failed)?;
    for problem in &checked.problems {
        output::line(format!("{}: {problem}", problem.level.as_str()))?;
    }
    if checked.problems.iter().any(|problem| problem.level == Level::Error) {
        return Err(Exit::failed(format!("mend {}, then look again with `obo tools check`", file.display())));
    }
    for tested in &checked.tested {
        for (_, case) in &tested.cases {
            let differences = rehearsal::run(&tested.tool, case).await.map_err(Exit::failed)?;
            if !differences.is_empty() {
                return Err(Exit::failed(format!("its case fails; see `obo tools test {}`", file.display())));
            }
        }
    }
    Ok(())
}

fn next_steps(file: &Path, draft: &Draft<'_>, dir: &Path, config: &Config) -> Result<(), Exit> {
    let input = serde_json::to_string(&draft.example()).map_err(Exit::failed)?;
    let (name, path, provider) = (draft.name, file.display(), draft.provider);
    let mut steps = vec![
        "edit it: description, arguments, request and response".to_owned(),
        format!("obo tools check {path}"),
        format!("obo tools test {path}"),
    ];
    let same = |other: &PathBuf| fs::canonicalize(other).ok() == fs::canonicalize(dir).ok();
    let served = config.tools.dirs.iter().any(same);
    if !served {
        steps.push(format!("add {} to tools.dirs in obo.toml, and start obo anew", dir.display()));
    }
    steps.push(format!("obo call {name} --dry-run --input '{input}'"));
    if config.providers.get(provider).is_none_or(|provider| provider.client_id.is_none()) {
        steps.push(format!(
            "register obo at the provider and set client_id in [providers.{provider}]: obo providers list"
        ));
    }
    steps.push(format!("obo call {name} --input '{input}'"));
    output::line("\nNext:")?;
    for (index, step) in steps.iter().enumerate() {
        output::line(format!("{}. {step}", index + 1))?;
    }
    if served {
        output::line("\nA running obo offers it within two seconds of each change.")?;
    }
    Ok(())
}

impl From<MethodName> for Method {
    fn from(name: MethodName) -> Self {
        match name {
            MethodName::Get => Self::Get,
            MethodName::Post => Self::Post,
            MethodName::Put => Self::Put,
            MethodName::Patch => Self::Patch,
            MethodName::Delete => Self::Delete,
        }
    }
}

impl From<EffectName> for Effect {
    fn from(name: EffectName) -> Self {
        match name {
            EffectName::Read => Self::Read,
            EffectName::Write => Self::Write,
            EffectName::Destructive => Self::Destructive,
        }
    }
}
