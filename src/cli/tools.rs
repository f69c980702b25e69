//! `obo tools`.

use clap::Subcommand;
use serde_json::json;

use super::{Exit, Global, output};
use crate::app::load_catalog;
use crate::catalog::{Catalog, Tool};

mod check;
mod new;
mod test;

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
    /// Say what is wrong in manifests: file, line, reason and mend
    Check(check::Check),
    /// Write a new manifest, with comments and a case
    New(new::New),
    /// Run the cases that manifests have, without a network
    Test(test::Test),
}

impl Tools {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let catalog = || -> Result<_, Exit> { Ok(load_catalog(&global.config()?)?) };
        match self {
            Tools::List { json } => list(&*catalog()?, json),
            Tools::Show { tool, json } => show(&*catalog()?, &tool, json),
            Tools::Check(check) => check.run(global),
            Tools::New(new) => new.run(global).await,
            Tools::Test(test) => test.run(global).await,
        }
    }
}

fn list(catalog: &Catalog, json: bool) -> Result<(), Exit> {
    if json {
        return output::json(&catalog.tools().map(|tool| as_json(tool)).collect::<Vec<_>>());
    }
    if !catalog.tools().any(|tool| tool.api().is_some()) {
        eprintln!("{}", nothing_offered(catalog));
    }
    if catalog.tools().next().is_none() {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = catalog
        .tools()
        .map(|tool| vec![tool.name.to_string(), tool.effect.as_str().to_owned(), tool.title.clone()])
        .collect();
    output::table(&["TOOL", "EFFECT", "WHAT"], &rows)
}

fn show(catalog: &Catalog, name: &str, json: bool) -> Result<(), Exit> {
    let tool = catalog.find(name).ok_or_else(|| not_offered(catalog, name))?;
    if json {
        return output::json(&as_json(tool));
    }
    output::line(format!("{}: {}\n", tool.name, tool.title))?;
    output::line(format!("{}\n", tool.description.trim()))?;
    let provider = tool.api().map_or("none: obo does it itself", |api| &api.provider.name);
    output::line(format!("provider   {provider}"))?;
    output::line(format!("effect     {}", tool.effect.as_str()))?;
    for (i, set) in tool.api().iter().flat_map(|api| &api.scopes_any_of).enumerate() {
        output::line(format!("{}     {}", if i == 0 { "scopes" } else { "or    " }, set.join(" ")))?;
    }
    output::line("\narguments (JSON Schema)")?;
    output::json(&tool.input)
}

fn nothing_offered(catalog: &Catalog) -> &'static str {
    if catalog.providers().any(|provider| provider.client.is_some()) {
        "No tool of a provider is offered: tools.enable in obo.toml names none of a provider that has a client."
    } else {
        "No tool of a provider is offered: no provider has a client yet. `obo providers list` shows what to register."
    }
}

/// Why a tool cannot be had, and what to do about it. For the operator: whoever else asks is told nothing of this.
pub(super) fn not_offered(catalog: &Catalog, name: &str) -> Exit {
    if let Some(provider) = catalog.waits_for(name) {
        return Exit { code: 64, text: super::providers::no_client(provider) };
    }
    let known = catalog.known_tools().find(|tool| tool.name.as_str() == name || tool.name.underscored() == name);
    if let Some(tool) = known {
        return match tool.api().filter(|api| api.provider.client.is_none()) {
            Some(api) => Exit { code: 64, text: super::providers::no_client(&api.provider) },
            None if tool.api().is_none() && !catalog.tools().any(|tool| tool.api().is_some()) => {
                Exit::failed(format!("{} has nothing to connect. {}", tool.name, nothing_offered(catalog)))
            }
            None => Exit::failed(format!("{} is not offered; add it to tools.enable in obo.toml", tool.name)),
        };
    }
    let nearest = crate::schema::nearest(name, catalog.tools().map(|tool| tool.name.as_str()));
    let hint = nearest.map_or_else(|| "see `obo tools list`".to_owned(), |nearest| format!("did you mean {nearest}?"));
    Exit::failed(format!("there is no tool {name:?} here; {hint}"))
}

fn as_json(tool: &Tool) -> serde_json::Value {
    json!({
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "provider": tool.api().map(|api| &api.provider.id),
        "effect": tool.effect,
        "idempotent": tool.idempotent,
        "scopes_any_of": tool.api().map(|api| &api.scopes_any_of),
        "input": *tool.input,
    })
}
