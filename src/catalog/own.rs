//! obo's own tools: declared as every other, in `own.toml`, and run by obo itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::arguments::Input;
use super::{Effect, Own, Runs, Tool};
use crate::id::{ProviderId, ToolName};

/// The toolkit of obo's own tools. No manifest may name a tool of it.
pub const OWN_TOOLKIT: &str = "Obo";

const DECLARATIONS: &str = include_str!("own.toml");

/// What own.toml says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declarations {
    tool: Vec<Declaration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declaration {
    name: String,
    title: String,
    description: String,
    effect: Effect,
    idempotent: bool,
    input: Map<String, Value>,
}

/// The own tools, where these providers have offered tools.
///
/// # Errors
/// What is wrong with own.toml. It is compiled in, so that is a defect.
pub(super) fn tools(offered: &BTreeMap<ProviderId, String>) -> Result<Vec<Tool>, String> {
    let declarations: Declarations = toml::from_str(DECLARATIONS).map_err(|e| format!("own.toml: {e}"))?;
    declarations.tool.into_iter().map(|declaration| tool(declaration, offered)).collect()
}

fn tool(declaration: Declaration, offered: &BTreeMap<ProviderId, String>) -> Result<Tool, String> {
    let Declaration { name, title, description, effect, idempotent, mut input } = declaration;
    let runs = match name.as_str() {
        "Obo.ListConnections" => Own::ListConnections,
        "Obo.Connect" => Own::Connect,
        "Obo.Disconnect" => Own::Disconnect,
        _ => return Err(format!("own.toml: nothing runs {name}")),
    };
    if runs == Own::Connect {
        name_providers(&mut input, offered);
    }
    let accepts = Input::compile_own(&mut input).map_err(|finding| format!("own.toml: {name}: {}", finding.reason))?;
    Ok(Tool {
        name: name.parse::<ToolName>().map_err(|e| format!("own.toml: {e}"))?,
        title,
        description,
        effect,
        idempotent,
        input: Arc::new(input),
        runs: Runs::Own(runs),
        accepts,
    })
}

/// Lists the providers that can be connected, by id and by name.
fn name_providers(input: &mut Map<String, Value>, offered: &BTreeMap<ProviderId, String>) {
    let Some(provider) = input.get_mut("properties").and_then(|all| all.get_mut("provider")) else { return };
    provider["enum"] = offered.keys().map(|id| Value::from(id.as_str())).collect();
    // Most ids are the names in lower case, and need no words.
    let unlike = offered.iter().filter(|(id, name)| !name.eq_ignore_ascii_case(id.as_str()));
    let names: Vec<String> = unlike.map(|(id, name)| format!("{id} is {name}")).collect();
    if !names.is_empty() {
        provider["description"] = Value::from(format!("The service; {}.", names.join(", ")));
    }
}
