//! A server for the conformance suite: `obo serve`, with the suite's tools, prompts and resources in the place of obo's.
//!
//! Everything in front of them is the product's, put together by the product: gates, bearer, sessions, bounds, both
//! transports. `tests/conformance/run` runs the suite against it; `conformance OBO_TOML DATA_DIR` starts it.

mod fixture;
mod offer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixture::Fixture;
use obo::app::{self, App, Way};
use obo::clock::SystemClock;
use obo::config::{Config, Environment};
use obo::transport;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(config), Some(data_dir), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: conformance OBO_TOML DATA_DIR".into());
    };
    serve(&config, data_dir).await
}

async fn serve(config: &Path, data_dir: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let app = App::open(app::Settings {
        config: Config::load(Some(config), &Environment::of_process()?)?,
        data_dir,
        clock: Arc::new(SystemClock),
        way: Way::Serve,
        prompt: None,
    })?;
    app.keys.open().await?;
    let listener = TcpListener::bind(app.config.server.listen).await?;
    let site = transport::http::router_to(Fixture::default(), app::setup(&app, listener.local_addr()?)?);
    transport::http::serve(listener, site, transport::signal::on_signal()?).await?;
    app.obo.drain(transport::SHUTDOWN_GRACE).await;
    Ok(())
}
