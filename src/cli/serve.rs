//! `obo serve`.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use tokio::net::TcpListener;

use super::{Exit, Global};
use crate::app::{Way, site, sweep, tend, watch_tools};
use crate::config::ConfigError;
use crate::transport;

#[derive(Args)]
pub(super) struct Serve {
    /// Address and port to listen on [default: server.listen of obo.toml]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

impl Serve {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        // An option lies over the environment, which lies over the file; everything that follows from it follows it.
        let config = match self.listen {
            Some(listen) => global
                .config_with("OBO_SERVER__LISTEN", &listen.to_string())
                .map_err(|exit| Exit { text: format!("--listen {listen}: {}", exit.text), ..exit })?,
            None => global.config()?,
        };
        let app = global.open(config, Way::Serve)?;
        let address = app.config.server.listen;
        let listener = TcpListener::bind(address).await.map_err(|e| {
            ConfigError::new(format!(
                "server.listen: {address} cannot be listened on: {e}; stop what holds it, or choose another port"
            ))
        })?;
        // At the start, where the operator sees it, rather than at the first call.
        app.keys.open().await?;
        if !app.catalog.tools().any(|tool| tool.api().is_some()) {
            tracing::warn!(
                "no tool of a provider is offered yet: give a provider its client in obo.toml; `obo providers list` shows which"
            );
        }
        tracing::info!(%address, public_url = app.config.server.public_base(), tools = app.catalog.tools().count(), "listening");
        tokio::spawn(sweep(Arc::clone(&app.store), Arc::clone(&app.clock)));
        tokio::spawn(tend(&app));
        tokio::spawn(watch_tools(&app));
        let stop = transport::signal::on_signal().map_err(Exit::failed)?;
        transport::http::serve(listener, site(&app, address)?, stop).await.map_err(Exit::failed)?;
        app.obo.drain(transport::SHUTDOWN_GRACE).await;
        tracing::info!("stopped");
        Ok(())
    }
}
