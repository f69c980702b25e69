//! The clients whose configuration obo writes: where each keeps it, and what an entry looks like there.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

/// What stands under a server's name, in the order in which it is written.
pub(super) type Entry = Vec<(&'static str, Value)>;

/// A program that uses MCP servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Client {
    /// Claude Desktop
    ClaudeDesktop,
    /// Claude Code, at a terminal or in an editor
    ClaudeCode,
    /// Cursor
    Cursor,
    /// Visual Studio Code
    Vscode,
}

/// How the client reaches obo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Reach {
    /// It launches a program.
    Launch { command: String, arguments: Vec<String> },
    /// It speaks HTTP.
    Http(String),
}

/// What the paths on a machine depend on.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Machine {
    pub(super) system: System,
    pub(super) home: Option<PathBuf>,
    pub(super) app_data: Option<PathBuf>,
    pub(super) xdg_config: Option<PathBuf>,
    pub(super) claude_config: Option<PathBuf>,
}

/// An operating system, as far as folders go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::cli) enum System {
    #[default]
    Linux,
    MacOs,
    Windows,
}

/// Where a client keeps its servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Place {
    /// The file.
    pub(in crate::cli) file: PathBuf,
    /// Any of these is there once the client has been started.
    pub(in crate::cli) signs: Vec<PathBuf>,
}

impl Place {
    /// Whether the client has been started here.
    pub(in crate::cli) fn is_used(&self) -> bool {
        self.signs.iter().any(|sign| sign.exists())
    }
}

impl Machine {
    /// This one.
    pub(in crate::cli) fn here() -> Self {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            system: match () {
                () if cfg!(windows) => System::Windows,
                () if cfg!(target_os = "macos") => System::MacOs,
                () => System::Linux,
            },
            home: std::env::home_dir().filter(|home| home.is_absolute()),
            app_data: variable("APPDATA"),
            xdg_config: variable("XDG_CONFIG_HOME"),
            claude_config: variable("CLAUDE_CONFIG_DIR"),
        }
    }

    /// Where applications keep what they are told: Electron's `appData`, which Claude Desktop and VS Code use.
    fn applications(&self) -> Option<PathBuf> {
        match self.system {
            System::Windows => self.app_data.clone(),
            System::MacOs => self.home.as_ref().map(|home| home.join("Library").join("Application Support")),
            System::Linux => self.xdg_config.clone().or_else(|| self.home.as_ref().map(|home| home.join(".config"))),
        }
    }

    /// The person's own file of a client; none where the system does not say where people's folders are.
    pub(in crate::cli) fn place(&self, client: Client) -> Option<Place> {
        let place = |file: PathBuf, signs: Vec<PathBuf>| Some(Place { file, signs });
        match client {
            Client::ClaudeDesktop => {
                let folder = self.applications()?.join("Claude");
                place(folder.join("claude_desktop_config.json"), vec![folder])
            }
            Client::ClaudeCode => {
                let home = self.home.as_ref();
                let file = self.claude_config.as_ref().or(home)?.join(".claude.json");
                let folder = self.claude_config.clone().or_else(|| home.map(|home| home.join(".claude")));
                place(file.clone(), [file].into_iter().chain(folder).collect())
            }
            Client::Cursor => {
                let folder = self.home.as_ref()?.join(".cursor");
                place(folder.join("mcp.json"), vec![folder])
            }
            Client::Vscode => {
                let folder = self.applications()?.join("Code").join("User");
                place(folder.join("mcp.json"), vec![folder])
            }
        }
    }
}

impl Client {
    /// All of them.
    pub(in crate::cli) const ALL: [Self; 4] = [Self::ClaudeDesktop, Self::ClaudeCode, Self::Cursor, Self::Vscode];

    /// For people.
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            Self::ClaudeDesktop => "Claude Desktop",
            Self::ClaudeCode => "Claude Code",
            Self::Cursor => "Cursor",
            Self::Vscode => "VS Code",
        }
    }

    /// As `obo install` takes it.
    pub(in crate::cli) fn argument(self) -> &'static str {
        match self {
            Self::ClaudeDesktop => "claude-desktop",
            Self::ClaudeCode => "claude-code",
            Self::Cursor => "cursor",
            Self::Vscode => "vscode",
        }
    }

    /// The key that its servers stand under.
    pub(in crate::cli) fn section(self) -> &'static str {
        match self {
            Self::Vscode => "servers",
            Self::ClaudeDesktop | Self::ClaudeCode | Self::Cursor => "mcpServers",
        }
    }

    /// The file of a project, for those that have one.
    pub(super) fn in_project(self, project: &Path) -> Option<PathBuf> {
        match self {
            Self::ClaudeDesktop => None,
            Self::ClaudeCode => Some(project.join(".mcp.json")),
            Self::Cursor => Some(project.join(".cursor").join("mcp.json")),
            Self::Vscode => Some(project.join(".vscode").join("mcp.json")),
        }
    }

    /// The entry, or none where the client's file cannot say it.
    pub(in crate::cli) fn entry(self, reach: &Reach) -> Option<Entry> {
        let mut entry = Entry::new();
        // Cursor tells the two apart by their other keys, and Claude Desktop launches whatever stands in its file.
        match (self, reach) {
            (Self::ClaudeDesktop, Reach::Http(_)) => return None,
            (Self::ClaudeDesktop, Reach::Launch { .. }) | (Self::Cursor, Reach::Http(_)) => {}
            (_, Reach::Launch { .. }) => entry.push(("type", json!("stdio"))),
            (_, Reach::Http(_)) => entry.push(("type", json!("http"))),
        }
        match reach {
            Reach::Launch { command, arguments } => {
                entry.extend([("command", json!(command)), ("args", json!(arguments))]);
            }
            Reach::Http(url) => entry.push(("url", json!(url))),
        }
        Some(entry)
    }

    /// What the person does next.
    pub(super) fn next(self) -> &'static str {
        match self {
            Self::ClaudeDesktop => {
                "quit Claude Desktop altogether, start it again, and ask it to list your connections"
            }
            Self::ClaudeCode => "start Claude Code again, and ask it to list your connections; /mcp shows the server",
            Self::Cursor => {
                "switch the server on under Cursor Settings, MCP, if it is not, and ask the agent to list your connections"
            }
            Self::Vscode => {
                "run \"MCP: List Servers\" in VS Code, start the server, and ask in agent mode to list your connections"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(machine: &Machine, client: Client) -> String {
        // The host's separator, whichever system is asked about.
        machine.place(client).unwrap().file.display().to_string().replace('\\', "/")
    }

    #[test]
    fn each_client_keeps_its_servers_where_the_system_has_such_files() {
        let home = Some(PathBuf::from("/home/alice"));
        let linux = Machine { home: home.clone(), ..Machine::default() };
        let xdg = Machine { xdg_config: Some("/srv/settings".into()), ..linux.clone() };
        let mac = Machine { system: System::MacOs, home: Some("/Users/alice".into()), ..Machine::default() };
        let windows = Machine {
            system: System::Windows,
            home: Some("C:/Users/alice".into()),
            app_data: Some("C:/Users/alice/AppData/Roaming".into()),
            // Another system's variable says nothing there.
            xdg_config: Some("/srv/settings".into()),
            ..Machine::default()
        };
        for (machine, files) in [
            (
                &linux,
                [
                    "/home/alice/.config/Claude/claude_desktop_config.json",
                    "/home/alice/.claude.json",
                    "/home/alice/.cursor/mcp.json",
                    "/home/alice/.config/Code/User/mcp.json",
                ],
            ),
            (
                &xdg,
                [
                    "/srv/settings/Claude/claude_desktop_config.json",
                    "/home/alice/.claude.json",
                    "/home/alice/.cursor/mcp.json",
                    "/srv/settings/Code/User/mcp.json",
                ],
            ),
            (
                &mac,
                [
                    "/Users/alice/Library/Application Support/Claude/claude_desktop_config.json",
                    "/Users/alice/.claude.json",
                    "/Users/alice/.cursor/mcp.json",
                    "/Users/alice/Library/Application Support/Code/User/mcp.json",
                ],
            ),
            (
                &windows,
                [
                    "C:/Users/alice/AppData/Roaming/Claude/claude_desktop_config.json",
                    "C:/Users/alice/.claude.json",
                    "C:/Users/alice/.cursor/mcp.json",
                    "C:/Users/alice/AppData/Roaming/Code/User/mcp.json",
                ],
            ),
        ] {
            assert_eq!(Client::ALL.map(|client| place(machine, client)), files, "{machine:?}");
        }
        let moved = Machine { claude_config: Some("/srv/claude".into()), ..linux.clone() };
        assert_eq!(place(&moved, Client::ClaudeCode), "/srv/claude/.claude.json");
        assert_eq!(place(&moved, Client::ClaudeDesktop), place(&linux, Client::ClaudeDesktop));
        assert_eq!(Machine::default().place(Client::Cursor), None);
    }

    #[test]
    fn projects_have_files_of_their_own() {
        let files = Client::ALL.map(|client| client.in_project(Path::new("work")));
        let file = |path: [&str; 2]| Some(PathBuf::from("work").join(path[0]).join(path[1]));
        assert_eq!(
            files,
            [None, Some("work/.mcp.json".into()), file([".cursor", "mcp.json"]), file([".vscode", "mcp.json"])]
        );
    }
}
