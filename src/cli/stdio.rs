//! `obo stdio`.

use std::sync::Arc;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{Exit, Global, Who};
use crate::app::{Way, sweep, tend, watch_tools};
use crate::identity::Credential;
use crate::transport;

#[derive(Args)]
pub(super) struct Stdio {
    #[command(flatten)]
    who: Who,
}

impl Stdio {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let person = self.who.person()?;
        let app = global.open(config, Way::Local)?;
        let credential = Credential::OsUser { tenant: person.tenant, user: person.user };

        tokio::spawn(sweep(Arc::clone(&app.store), Arc::clone(&app.clock)));
        tokio::spawn(tend(&app));
        tokio::spawn(watch_tools(&app));
        let stop = transport::signal::on_signal().map_err(Exit::failed)?;
        let pages = CancellationToken::new();
        let serving = app.loopback.clone().map(|loopback| tokio::spawn(loopback.serve(app.obo.clone(), pages.clone())));
        let settings = transport::Settings::from(&app.config.server);
        let ended = transport::stdio::run(Arc::new(app.obo.clone()), credential, settings, stop).await;
        // First nothing new may come in by the pages; then what came in before is finished.
        pages.cancel();
        if let Some(serving) = serving {
            // Pages under way may finish; an idle browser connection must not keep the process.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), serving).await;
        }
        app.obo.drain(transport::SHUTDOWN_GRACE).await;
        ended.map_err(Exit::failed)
    }
}
