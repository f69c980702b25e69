//! Providers, tools and policies.

use std::sync::Arc;

use super::Check;
use crate::app::{load_catalog, loopback_base, public_url};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::consent::redirect_uri;

pub(super) fn checks(config: &Config, checks: &mut Vec<Check>) -> Option<Arc<Catalog>> {
    let catalog = match load_catalog(config) {
        Ok(catalog) => catalog,
        Err(error) => {
            checks.push(Check::error("tools", error));
            return None;
        }
    };
    providers(config, &catalog, checks);
    for problem in catalog.problems() {
        checks.push(Check::error("tools", problem));
    }
    let offered = catalog.tools().filter(|tool| tool.api().is_some()).count();
    let own = catalog.tools().count() - offered;
    checks.push(match offered {
        0 => Check::warn(
            "tools",
            format!("none of a provider is offered, and {own} of obo's own"),
            "give a provider its client, and see that tools.enable names its tools",
        ),
        _ => Check::ok("tools", format!("{offered} of providers are offered, and {own} of obo's own")),
    });
    // One that cannot be enforced is refused with the configuration.
    checks.push(Check::ok("policy", "every person may call every tool that is offered"));
    Some(catalog)
}

fn providers(config: &Config, catalog: &Catalog, checks: &mut Vec<Check>) {
    let mut waiting = Vec::new();
    for provider in catalog.providers() {
        let Some(client) = &provider.client else {
            waiting.push(provider.id.to_string());
            continue;
        };
        let mut uris: Vec<String> = [public_url(config), loopback_base(config)]
            .into_iter()
            .filter_map(|base| Some(redirect_uri(&base.ok()?, provider).ok()?.to_string()))
            .collect();
        uris.dedup();
        let secret = match &client.secret {
            Some(_) => "with a secret",
            None => "without a secret",
        };
        let found = format!("{}: client {secret}; registered there must be {}", provider.id, uris.join(" and "));
        checks.push(Check::ok("provider", found));
    }
    if !waiting.is_empty() {
        let found = format!("without a client, and so without tools: {}", waiting.join(", "));
        checks.push(Check::ok("provider", format!("{found}; `obo providers list` shows what to register")));
    }
}
