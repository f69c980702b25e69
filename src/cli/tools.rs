//! `obo tools`.

use clap::Subcommand;
use serde_json::json;

use super::{Exit, Global, output};
use crate::app::load_catalog;
use crate::catalog::{Effect, Tool};

#[derive(Subcommand)]
pub(super) enum Tools {
    /// The tools that are offered
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// One tool: what it does, its arguments, what it needs
    Show {
        /// The tool: Google.SendEmail
        tool: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Tools {
    pub(super) fn run(self, global: &Global) -> Result<(), Exit> {
        let catalog = load_catalog(&global.config()?)?;
        match self {
            Tools::List { json: true } => output::json(&catalog.tools().map(|tool| as_json(tool)).collect::<Vec<_>>()),
            Tools::List { json: false } => {
                if catalog.tools().next().is_none() {
                    eprintln!(
                        "No tool is offered: no provider has a client yet. `obo providers list` shows what to register."
                    );
                    return Ok(());
                }
                let rows: Vec<Vec<String>> = catalog
                    .tools()
                    .map(|tool| vec![tool.name.to_string(), effect(tool).to_owned(), tool.title.clone()])
                    .collect();
                output::table(&["TOOL", "EFFECT", "WHAT"], &rows)
            }
            Tools::Show { tool: name, json } => {
                let tool = catalog.find(&name).ok_or_else(|| {
                    let nearest = crate::schema::nearest(&name, catalog.tools().map(|tool| tool.name.as_str()));
                    let hint =
                        nearest.map_or_else(|| "see `obo tools list`".to_owned(), |n| format!("did you mean {n}?"));
                    Exit::failed(format!("there is no tool {name:?} here; {hint}"))
                })?;
                if json {
                    return output::json(&as_json(tool));
                }
                output::line(format!("{}: {}\n", tool.name, tool.title))?;
                output::line(format!("{}\n", tool.description.trim()))?;
                output::line(format!("provider   {}", tool.provider.name))?;
                output::line(format!("effect     {}", effect(tool)))?;
                for (i, set) in tool.scopes_any_of.iter().enumerate() {
                    output::line(format!("{}     {}", if i == 0 { "scopes" } else { "  or  " }, set.join(" ")))?;
                }
                output::line("\narguments (JSON Schema)")?;
                output::json(&tool.input)
            }
        }
    }
}

fn effect(tool: &Tool) -> &'static str {
    match tool.effect {
        Effect::Read => "read",
        Effect::Write => "write",
        Effect::Destructive => "destructive",
    }
}

fn as_json(tool: &Tool) -> serde_json::Value {
    json!({
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "provider": tool.provider.id,
        "effect": tool.effect,
        "idempotent": tool.idempotent,
        "scopes_any_of": tool.scopes_any_of,
        "input": *tool.input,
    })
}
