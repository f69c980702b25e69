//! `obo providers`.

use clap::Subcommand;
use serde_json::json;

use super::{Exit, Global, output};
use crate::app::{load_catalog, loopback_base, public_url};
use crate::catalog::Provider;
use crate::consent::redirect_uri;

#[derive(Subcommand)]
pub(super) enum Providers {
    /// Each provider: whether it has a client, and the redirect URI to register there
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Providers {
    pub(super) fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let catalog = load_catalog(&config)?;
        let Providers::List { json } = self;
        let (public, loopback) = (public_url(&config)?, loopback_base(&config)?);
        let mut rows = Vec::new();
        for provider in catalog.providers() {
            let mut uris = vec![redirect_uri(&public, provider)?.to_string()];
            if public != loopback {
                // stdio and the command line come back to the loopback port.
                uris.push(redirect_uri(&loopback, provider)?.to_string());
            }
            rows.push((provider, uris));
        }
        if json {
            let rows: Vec<_> = rows
                .iter()
                .map(|(provider, uris)| {
                    json!({
                        "id": provider.id,
                        "name": provider.name,
                        "client_configured": provider.client.is_some(),
                        "redirect_uris": uris,
                    })
                })
                .collect();
            return output::json(&rows);
        }
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|(provider, uris)| {
                let client = if provider.client.is_some() { "yes" } else { "no" };
                vec![provider.id.to_string(), provider.name.clone(), client.to_owned(), uris.join(" and ")]
            })
            .collect();
        output::table(&["ID", "PROVIDER", "CLIENT", "REDIRECT URI TO REGISTER"], &rows)
    }
}

/// What to do about a provider without a client.
pub(super) fn no_client(provider: &Provider) -> String {
    let id = &provider.id;
    format!(
        "providers.{id}.client_id is missing: register an OAuth client at {}, with the redirect URI that `obo providers list` shows, and write [providers.{id}] client_id and client_secret into obo.toml",
        provider.name
    )
}
