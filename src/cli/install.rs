//! `obo install`: tells a client about obo, and leaves everything else in its configuration as it is.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};
use url::Url;

use super::{Exit, Global, output};
use crate::config::{default_config_file, default_data_dir};
use crate::egress::is_loopback;

pub(in crate::cli) mod client;
pub(in crate::cli) mod document;
pub(in crate::cli) mod file;

use client::{Client, Entry, Machine, Reach};
use document::Document;
use file::Found;

/// The longest name of a server, in characters.
const MAX_NAME_CHARS: usize = 64;

#[derive(Args)]
pub(super) struct Install {
    /// The client to configure
    #[arg(value_enum)]
    client: Client,
    /// Have the client speak to this `obo serve`, instead of launching obo
    #[arg(long, value_name = "URL", conflicts_with = "remove")]
    url: Option<Url>,
    /// Write the file of this project, instead of the user's own
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// What the server is called in the client
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = server_name)]
    name: String,
    /// Print the entry, and write nothing
    #[arg(long, conflicts_with_all = ["remove", "force"])]
    print: bool,
    /// Replace an entry of that name that says something else
    #[arg(long)]
    force: bool,
    /// Take the entry out
    #[arg(long)]
    remove: bool,
}

/// What obo is called in clients.
pub(in crate::cli) const DEFAULT_NAME: &str = "obo";

impl Install {
    pub(super) fn run(self, global: &Global) -> Result<(), Exit> {
        let name = self.client.name();
        if self.print {
            return self.print(global);
        }
        let (file, private) = self.file()?;
        let unreadable =
            |what: &dyn std::fmt::Display| Exit::failed(format!("{} is left as it is: {what}", file.display()));
        let found = Found::read(&file).map_err(Exit::failed)?;
        let document = Document::parse(&found.text, self.client.section()).map_err(|e| unreadable(&e))?;
        let there = document.entry(&self.name).map_err(|e| unreadable(&e))?;
        if self.remove {
            let Some(there) = there else {
                return output::line(format!("{name} has no {:?} in {}: nothing to do", self.name, file.display()));
            };
            if self.name != DEFAULT_NAME && !self.force && !launches_obo(&there) {
                return Err(Exit::failed(format!(
                    "{:?} in {} is another server; add --force to take it out all the same",
                    self.name,
                    file.display()
                )));
            }
            document.remove(&self.name).map_err(|e| unreadable(&e))?;
        } else {
            let entry = self.entry(global)?;
            let wanted = value(&entry);
            match there {
                Some(there) if says_the_same(&there, &wanted) => {
                    return output::line(format!(
                        "{name} has obo as {:?} in {} already: nothing to do",
                        self.name,
                        file.display()
                    ));
                }
                Some(there) if !self.force => {
                    return Err(Exit::failed(format!(
                        "{} has another {:?}, and is left as it is:\n{}\nadd --force to replace it, or --name to add a second",
                        file.display(),
                        self.name,
                        difference(&there, &wanted).join("\n")
                    )));
                }
                _ => document.put(&self.name, &entry).map_err(|e| unreadable(&e))?,
            }
        }
        if let Some(project) = &self.project {
            stays_inside(&file, project).map_err(|what| unreadable(&what))?;
        }
        let backup = found.replace(&document.text(), private).map_err(Exit::failed)?;
        let what = if self.remove { "no longer has" } else { "now has" };
        output::line(format!("{name} {what} {:?} in {}", self.name, file.display()))?;
        if let Some(backup) = backup {
            eprintln!("What was there before is kept in {}.", backup.display());
        }
        self.say_what_is_next(global);
        Ok(())
    }

    fn say_what_is_next(&self, global: &Global) {
        if self.remove {
            return eprintln!("Next: start {} again.", self.client.name());
        }
        if self.project.is_some() && self.url.is_none() {
            eprintln!("The file names paths of this machine: keep it out of version control.");
        }
        let config = global.config.clone().unwrap_or_else(default_config_file);
        if self.url.is_none() && !config.exists() {
            eprintln!("There is no configuration yet: run `obo init` first.");
        }
        eprintln!("Next: {}.", self.client.next());
    }

    /// The entry alone: what else is in the file may hold secrets of other servers.
    fn print(&self, global: &Global) -> Result<(), Exit> {
        let entry = value(&self.entry(global)?);
        output::json(&json!({ self.client.section(): { &self.name: entry } }))?;
        match self.file_wherever() {
            Ok(file) => eprintln!("This belongs into {}.", file.display()),
            Err(exit) => eprintln!("{}", exit.text()),
        }
        Ok(())
    }

    fn entry(&self, global: &Global) -> Result<Entry, Exit> {
        let reach = match &self.url {
            Some(url) => Reach::Http(endpoint(url)?),
            None => Reach::Launch { command: this_program()?, arguments: arguments(global)? },
        };
        self.client.entry(&reach).ok_or_else(|| {
            Exit::usage(format!(
                "{} launches the servers of its file; add {} under Settings, Connectors, or see docs/clients.md for mcp-remote",
                self.client.name(),
                match &reach {
                    Reach::Http(url) => url,
                    Reach::Launch { command, .. } => command,
                }
            ))
        })
    }

    /// The file to write, and whether nobody else may read it when it is new.
    fn file(&self) -> Result<(PathBuf, bool), Exit> {
        let file = self.file_wherever()?;
        if let Some(project) = &self.project {
            if !project.is_dir() {
                return Err(Exit::failed(format!("{} is not a folder", project.display())));
            }
            return Ok((file, false));
        }
        let place = Machine::here().place(self.client).ok_or_else(no_home)?;
        if !place.is_used() && !self.remove {
            let folder = file.parent().unwrap_or(Path::new("/"));
            let missing = place.signs.last().map_or(folder, PathBuf::as_path);
            return Err(Exit::failed(format!(
                "{} has not been started here: there is no {}; start it once and try again, or see what to write with --print",
                self.client.name(),
                missing.display()
            )));
        }
        Ok((file, true))
    }

    fn file_wherever(&self) -> Result<PathBuf, Exit> {
        let Some(project) = &self.project else {
            return Ok(Machine::here().place(self.client).ok_or_else(no_home)?.file);
        };
        let file = self.client.in_project(project).ok_or_else(|| {
            Exit::usage(format!("{} has no file of a project; leave --project out", self.client.name()))
        })?;
        Ok(std::path::absolute(&file).unwrap_or(file))
    }
}

/// Makes the file's folder. A project may come from anybody, and its links must not lead to other files of the person.
fn stays_inside(file: &Path, project: &Path) -> Result<(), String> {
    let folder = file.parent().unwrap_or(project);
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    if let Err(error) = std::fs::create_dir(folder)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(failed(error));
    }
    let project = std::fs::canonicalize(project).map_err(failed)?;
    let folder = std::fs::canonicalize(folder).map_err(failed)?;
    let outside = |path: &Path| !path.starts_with(&project);
    if outside(&folder) || std::fs::canonicalize(file).is_ok_and(|file| outside(&file)) {
        return Err("it is a link that leads out of the project".to_owned());
    }
    Ok(())
}

fn no_home() -> Exit {
    Exit::failed("the system does not say where your folders are; set HOME, or see what to write with --print")
}

/// What clients take as a server's name, and show as a part of its tools' names.
fn server_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let good = (1..=MAX_NAME_CHARS).contains(&text.len()) && text.bytes().all(plain);
    good.then(|| text.to_owned()).ok_or_else(|| format!("write 1 to {MAX_NAME_CHARS} letters, digits, '-' and '_'"))
}

/// The MCP endpoint of an `obo serve`.
fn endpoint(url: &Url) -> Result<String, Exit> {
    let wrong = |what: &str| Exit::usage(format!("--url: {what}"));
    match url.scheme() {
        "https" => {}
        "http" if url.host().is_some_and(|host| is_loopback(&host)) => {}
        _ => return Err(wrong("write an https address; plain http is for this machine alone")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        // A password would end up in a file that gets copied.
        return Err(wrong("leave out user names, passwords, and whatever stands after ? and #"));
    }
    let mut url = url.clone();
    if url.path() == "/" {
        url.set_path("/mcp");
    }
    Ok(url.into())
}

/// This program, by a path that a client can launch. One that the shell finds it by is preferred, because it stays good
/// when a package manager puts a new version beside the old one.
pub(in crate::cli) fn this_program() -> Result<String, Exit> {
    let here = std::env::current_exe().map_err(|e| Exit::failed(format!("obo cannot tell where it is: {e}")))?;
    let real = std::fs::canonicalize(&here).ok();
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .filter_map(|folder| Some(folder.join(here.file_name()?)))
        .find(|candidate| real.is_some() && std::fs::canonicalize(candidate).ok() == real);
    let path = found.unwrap_or(here);
    path.into_os_string().into_string().map_err(|path| {
        Exit::failed(format!("{} is not Unicode, as JSON must be; move obo elsewhere", PathBuf::from(path).display()))
    })
}

/// The arguments that have a launched obo find the same configuration and the same vault as this one, which may have
/// learned of them from this shell.
fn arguments(global: &Global) -> Result<Vec<String>, Exit> {
    let xdg = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let mut arguments = vec!["stdio".to_owned()];
    let mut say = |option: &str, path: Option<PathBuf>, default: Option<PathBuf>, moved: bool| -> Result<(), Exit> {
        let Some(path) = path.or_else(|| default.clone().filter(|_| moved)) else { return Ok(()) };
        let path = std::path::absolute(&path).map_err(|e| Exit::failed(format!("{}: {e}", path.display())))?;
        if Some(&path) == default.as_ref() && !moved {
            return Ok(());
        }
        let text = path.into_os_string().into_string();
        let text = text.map_err(|path| {
            Exit::failed(format!("{option} {} is not Unicode, as JSON must be", PathBuf::from(path).display()))
        })?;
        arguments.extend([option.to_owned(), text]);
        Ok(())
    };
    let unix = cfg!(all(unix, not(target_os = "macos")));
    say("--config", global.config.clone(), Some(default_config_file()), unix && xdg("XDG_CONFIG_HOME"))?;
    say("--data-dir", global.data_dir.clone(), default_data_dir(), unix && xdg("XDG_DATA_HOME"))?;
    Ok(arguments)
}

fn value(entry: &Entry) -> Value {
    Value::Object(entry.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Map<_, _>>())
}

/// Whether an entry does what the wanted one does. What else stands in it is the person's own: an environment, a switch.
fn says_the_same(there: &Value, wanted: &Value) -> bool {
    let same = |key: &str| there.get(key) == wanted.get(key);
    // Where there is no type, clients go by the other keys.
    let kind = there.get("type").is_none() || same("type");
    kind && ["command", "args", "url"].into_iter().all(same)
}

/// Whether an entry launches a program that is called obo.
fn launches_obo(entry: &Value) -> bool {
    let command = entry.get("command").and_then(Value::as_str).map(Path::new);
    command.and_then(Path::file_stem).is_some_and(|stem| stem.eq_ignore_ascii_case("obo"))
}

/// What stands there and what would, key by key. Values that may be secrets are not shown.
fn difference(there: &Value, wanted: &Value) -> Vec<String> {
    let Value::Object(there_map) = there else { return vec!["  - a value that is not an object".to_owned()] };
    let mut lines = Vec::new();
    for (key, value) in there_map {
        if wanted.get(key) != Some(value) {
            lines.push(format!("  - {key}: {}", shown(key, value, launches_obo(there))));
        }
    }
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if there.get(key) != Some(value) {
            lines.push(format!("  + {key}: {value}"));
        }
    }
    lines
}

fn shown(key: &str, value: &Value, is_obo: bool) -> String {
    match (key, value) {
        ("command" | "type", Value::String(_)) => value.to_string(),
        ("args", _) if is_obo => value.to_string(),
        ("url", Value::String(url)) => match Url::parse(url) {
            // Paths and queries hold keys, at some services.
            Ok(url) => format!("{} (the rest is not shown)", url.origin().ascii_serialization()),
            Err(_) => "(not a URL)".to_owned(),
        },
        (_, Value::Array(items)) => format!("({} values, not shown)", items.len()),
        (_, Value::Object(map)) => {
            format!("{} (values not shown)", map.keys().cloned().collect::<Vec<_>>().join(", "))
        }
        _ => "(not shown)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_an_obo_serve() {
        let good = |url: &str| endpoint(&Url::parse(url).unwrap()).map_err(|exit| exit.text().to_owned());
        assert_eq!(good("https://obo.example.com"), Ok("https://obo.example.com/mcp".to_owned()));
        assert_eq!(good("https://obo.example.com/mcp"), Ok("https://obo.example.com/mcp".to_owned()));
        assert_eq!(good("http://127.0.0.1:8787"), Ok("http://127.0.0.1:8787/mcp".to_owned()));
        assert_eq!(good("http://localhost:8787"), Ok("http://localhost:8787/mcp".to_owned()));
        for bad in [
            "http://obo.example.com",
            "ftp://obo.example.com",
            "https://alice:s3cret@obo.example.com",
            "https://obo.example.com/mcp?token=s3cret",
        ] {
            let error = good(bad).unwrap_err();
            assert!(error.starts_with("--url: ") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn names_are_plain() {
        assert_eq!(server_name("obo-work_2"), Ok("obo-work_2".to_owned()));
        for bad in ["", "a b", "a.b", "ö", &"x".repeat(65)] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_difference_shows_what_obo_would_write_and_no_secret() {
        let wanted = json!({ "type": "stdio", "command": "/bin/obo", "args": ["stdio"] });
        let there = json!({
            "command": "npx", "args": ["--token", "s3cret"], "url": "https://a.example/s3cret?key=s3cret",
            "env": { "TOKEN": "s3cret" }, "headers": ["s3cret"], "x": "s3cret",
        });
        assert_eq!(
            difference(&there, &wanted),
            [
                "  - args: (2 values, not shown)",
                "  - command: \"npx\"",
                "  - env: TOKEN (values not shown)",
                "  - headers: (1 values, not shown)",
                "  - url: https://a.example (the rest is not shown)",
                "  - x: (not shown)",
                "  + args: [\"stdio\"]",
                "  + command: \"/bin/obo\"",
                "  + type: \"stdio\"",
            ]
        );
        let old = json!({ "command": "/old/obo", "args": ["stdio", "--data-dir", "/x"] });
        assert!(!says_the_same(&old, &wanted) && launches_obo(&old));
        assert_eq!(difference(&old, &wanted)[0], "  - args: [\"stdio\",\"--data-dir\",\"/x\"]");
        // A client's own additions are no reason to write the file.
        let same = json!({ "command": "/bin/obo", "args": ["stdio"], "env": { "RUST_LOG": "debug" } });
        assert!(says_the_same(&same, &wanted));
        assert!(!says_the_same(&json!({ "type": "http", "command": "/bin/obo", "args": ["stdio"] }), &wanted));
        assert!(!says_the_same(&json!("obo"), &wanted));
    }
}
