//! obo at work, with no account anywhere: `cargo run --example sandbox`.
//!
//! A Google and a Slack live in this process, and so does the very server that `obo serve` is, with `origin` pointed at
//! them and nothing switched off. Alice and Bob each connect an account and send mail as themselves; then everything
//! stays up, to be tried by hand. `-- --once` ends after the show.

#[path = "../../tests/it/support/browser.rs"]
#[expect(unreachable_pub, dead_code, clippy::unwrap_used, reason = "shared with the tests, which use all of it")]
mod browser;
#[path = "../../tests/it/support/mcp.rs"]
#[expect(unreachable_pub, dead_code, clippy::unwrap_used, reason = "shared with the tests, which use all of it")]
mod mcp;
mod provider;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use browser::Browser;
use mcp::{Mcp, link_of, value_of};
use obo::app::{self, App, Way};
use obo::clock::{Clock as _, SystemClock};
use obo::config::{Config, Environment};
use obo::id::{Person, Source, TenantId};
use obo::transport;
use provider::{Provider, Service};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

type Problem = Box<dyn std::error::Error>;

/// Where obo listens, if the port is free; another one otherwise.
const USUAL_PORT: &str = "127.0.0.1:8787";

#[tokio::main]
async fn main() -> Result<(), Problem> {
    let once = std::env::args().any(|argument| argument == "--once");
    let folder = tempfile::tempdir()?;
    let stop = CancellationToken::new();
    let sandbox = Sandbox::start(folder.path(), &stop).await?;

    sandbox.show().await?;
    if !once {
        sandbox.stay().await?;
    }
    stop.cancel();
    sandbox.app.obo.drain(transport::SHUTDOWN_GRACE).await;
    Ok(())
}

struct Sandbox {
    provider: Provider,
    app: App,
    base: String,
}

impl Sandbox {
    async fn start(folder: &Path, stop: &CancellationToken) -> Result<Self, Problem> {
        let listener = match TcpListener::bind(USUAL_PORT).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("127.0.0.1:0").await?,
        };
        let address = listener.local_addr()?;
        let base = format!("http://{address}");
        let callbacks = ["google", "slack"].map(|id| format!("{base}/oauth/callback/{id}"));
        let provider = Provider::start(provider::Settings::new(callbacks, || SystemClock.now().as_second())).await?;

        let table = |id: &str, service: Service| {
            format!(
                "[providers.{id}]\nclient_id = {:?}\nclient_secret = {:?}\norigin = {:?}\n",
                service.client_id(),
                service.client_secret(),
                provider.origin()
            )
        };
        let text = format!(
            "[server]\nlisten = \"{address}\"\n[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n{}{}",
            table("google", Service::Google),
            table("slack", Service::Slack)
        );
        println!("obo.toml of this sandbox:\n");
        text.lines().for_each(|line| println!("    {line}"));
        println!();

        write_key(&folder.join("vault.key"))?;
        let config = Config::parse(&text, "obo.toml", folder, &Environment::default())?;
        let app = App::open(app::Settings {
            config,
            data_dir: folder.join("data"),
            clock: Arc::new(SystemClock),
            way: Way::Serve,
            prompt: None,
        })?;
        let site = app::site(&app, address)?;
        tokio::spawn(transport::http::serve(listener, site, stop.clone()));
        Ok(Self { provider, app, base })
    }

    async fn token(&self, user: &str) -> Result<String, Problem> {
        let person = Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: user.parse()? };
        let (_, token) =
            self.app.obo.identity().tokens().issue(&person, Vec::new(), Duration::from_secs(86_400)).await?;
        Ok(token.expose().to_owned())
    }

    /// The main job: two people, two accounts, consent, send, audit.
    async fn show(&self) -> Result<(), Problem> {
        let people = [("Alice", "alice", "bob"), ("Bob", "bob", "alice")];
        let (alice, bob) = (self.token("alice").await?, self.token("bob").await?);

        step("Alice's agent calls Google.SendEmail. She has connected nothing yet, so the call returns a link.");
        let agent = Mcp::new(&self.base, Some(alice.clone()));
        let asked = agent.call("Google_SendEmail", mail("bob@example.com", "Lunch?")).await;
        let link = link_of(&asked).ok_or("the call returned no link")?;
        println!("{}", asked["content"][0]["text"].as_str().unwrap_or_default());

        step("Bob gets hold of Alice's link and opens it, signed in as himself.");
        let mut bobs_browser = Browser::new();
        sign_in(&mut bobs_browser, &link, &bob).await;
        let refused = bobs_browser.get(&link).await;
        println!("{}: {}", refused.status, heading(&refused.text));
        if refused.status != 403 {
            return Err("Bob got in".into());
        }

        for (name, user, other) in people {
            let token = if user == "alice" { &alice } else { &bob };
            let agent = Mcp::new(&self.base, Some(token.clone()));
            let message = mail(&format!("{other}@example.com"), &format!("Lunch? asks {name}"));
            let link = link_of(&agent.call("Google_SendEmail", message.clone()).await).ok_or("no link")?;
            step(&format!("{name} opens their own link, signs in, presses the one button, and agrees at Google."));
            let page = self.consent(&link, token, user).await?;
            println!("{}: {}", page.status, heading(&page.text));
            step(&format!("{name}'s agent makes the same call again."));
            println!("{}", value_of(&agent.call("Google_SendEmail", message).await));
        }

        step("What Google saw: each mail was sent by the person whose agent asked.");
        for call in self.provider.log().iter().filter(|call| call.path.ends_with("/messages/send")) {
            println!("{} {} as {}", call.method, call.path, call.user.as_deref().unwrap_or("nobody"));
        }

        step("What obo's audit says: (obo audit show)");
        let records = self.app.audit.read(|_| true).await?;
        for record in records.iter().filter(|record| record.outcome.is_some()) {
            println!(
                "{}  {:<6} {:<18} {:<18} {}",
                record.time.strftime("%H:%M:%S"),
                record.user.as_deref().unwrap_or("-"),
                record.tool.as_deref().or(record.provider.as_deref()).unwrap_or("-"),
                record.account.as_deref().unwrap_or("-"),
                record.note.as_deref().or(record.outcome.as_deref()).unwrap_or("-"),
            );
        }
        let report = self.app.audit.verify().await?;
        println!("{} records, {} problems", report.records, report.problems.len());
        Ok(())
    }

    async fn consent(&self, link: &str, token: &str, user: &str) -> Result<browser::Page, Problem> {
        let mut browser = Browser::new();
        sign_in(&mut browser, link, token).await;
        let page = browser.get(link).await;
        let pressed = browser.submit(&page, &[]).await;
        let forwarded = pressed.location.ok_or("the button forwarded nowhere")?;
        let back = self.provider.consent(&forwarded, &format!("{user}@example.com")).await?;
        Ok(browser.get(&back).await)
    }

    /// Stays up for an MCP client and a browser, printing what the providers are asked.
    async fn stay(&self) -> Result<(), Problem> {
        step("Now you. Everything stays up until Ctrl-C.");
        println!("MCP endpoint   {}/mcp   (older clients: {}/sse)", self.base, self.base);
        println!("Alice's token  {}", self.token("alice").await?);
        println!("Bob's token    {}", self.token("bob").await?);
        println!(
            "\nAlice has not connected her calendar yet. This asks for it, and returns a link for your browser:\n"
        );
        println!("    curl -s {}/mcp -H \"Authorization: Bearer $TOKEN\" \\", self.base);
        println!("      -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\");
        println!(
            "      -H 'MCP-Protocol-Version: 2026-07-28' -H 'Mcp-Method: tools/call' -H 'Mcp-Name: GoogleCalendar_ListEvents' \\"
        );
        println!(
            "      -d '{}'\n",
            json!({
                "jsonrpc": "2.0", "id": 1, "method": "tools/call",
                "params": {
                    "name": "GoogleCalendar_ListEvents",
                    "arguments": { "time_min": "2026-12-01T00:00:00Z", "time_max": "2026-12-08T00:00:00Z" },
                    "_meta": {
                        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                        "io.modelcontextprotocol/clientInfo": { "name": "curl", "version": "1" },
                        "io.modelcontextprotocol/clientCapabilities": {}
                    }
                }
            })
        );
        println!("What the providers are asked:");
        let mut seen = self.provider.log().len();
        loop {
            tokio::select! {
                told = tokio::signal::ctrl_c() => return Ok(told?),
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            let log = self.provider.log();
            for call in &log[seen..] {
                println!("  {} {} {} as {}", call.status, call.method, call.path, call.user.as_deref().unwrap_or("-"));
            }
            seen = log.len();
        }
    }
}

/// A key for as long as the folder lives.
fn write_key(path: &Path) -> Result<(), Problem> {
    std::fs::write(path, obo::secret::random::<32>())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

async fn sign_in(browser: &mut Browser, link: &str, token: &str) {
    let page = browser.get(link).await;
    browser.submit(&page, &[("token", token)]).await;
}

fn mail(to: &str, subject: &str) -> Value {
    json!({ "to": [to], "subject": subject, "text": "At noon, in the usual place?" })
}

fn step(text: &str) {
    println!("\n── {text}");
}

/// The heading of a page.
fn heading(html: &str) -> &str {
    html.split("<h1>").nth(1).and_then(|rest| rest.split("</h1>").next()).unwrap_or("?")
}
