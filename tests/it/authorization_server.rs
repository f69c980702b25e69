//! obo as the authorization server of MCP clients: from nothing but its address to a call, and to the end of the sign-in.
//!
//! Those who would bend it are in `threats/authorization.rs`.

use std::sync::Arc;
use std::time::Duration;

use obo::app::{self, App, Settings, Way};
use obo::clock::{Clock as _, ManualClock, SharedClock};
use obo::config::{Config, Environment};
use obo::identity::{ClientSession, Credential, Via};
use obo::secret::Secret;
use obo::store::Table;
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::documents::{Document, Documents};
use crate::support::issuer::Issuer;
use crate::support::mcp::value_of;
use crate::support::oauth_client::{
    Answer, CALLBACK, Tokens, allow, answer, challenge, http, listed, parameters, register, sign_in_with, with_form,
};
use crate::support::program::Ran;
use crate::support::{Browser, Mcp, OauthClient, TestObo, mail, providers};

const ON: &str = "[authorization_server]\nenabled = true";
const SEND: &str = "Google_SendEmail";
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn turned_on() -> TestObo {
    TestObo::builder().config(ON).start().await
}

/// An obo whose people are those of one issuer, `corp`.
async fn with_issuer(further: &str) -> (TestObo, Issuer) {
    let clock = Arc::new(std::sync::OnceLock::<Arc<ManualClock>>::new());
    let time = Arc::clone(&clock);
    let issuer = Issuer::start(move || time.get().unwrap().now().as_second()).await;
    let config = format!("{}{further}", issuer.table("corp", "groups_claim = \"groups\""));
    let obo = TestObo::builder().config(&config).start().await;
    clock.set(Arc::clone(&obo.clock)).unwrap();
    (obo, issuer)
}

async fn get(url: &str) -> Answer {
    answer(http().get(url)).await
}

/// The clients that are signed in, for anybody.
async fn sessions(app: &App) -> Vec<ClientSession> {
    app.obo.identity().clients().list(None).await.unwrap()
}

/// The notes on record that begin with `client.`, with user and actor, in order.
async fn noted(app: &App) -> Vec<(String, String, String)> {
    let records = app.audit.read(|r| r.note.as_deref().is_some_and(|note| note.starts_with("client."))).await.unwrap();
    records.into_iter().map(|r| (r.note.unwrap(), r.user.unwrap_or_default(), r.actor)).collect()
}

/// The notes alone, without the ids in them.
async fn notes(app: &App) -> Vec<String> {
    noted(app).await.into_iter().map(|(note, _, _)| note.split(' ').next().unwrap().to_owned()).collect()
}

/// Another process over the same folder. It ends when it is dropped.
struct Replica {
    app: App,
    at: String,
    stop: CancellationToken,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Replica {
    async fn of(obo: &TestObo, config: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = obo.dir.path().join("vault.key");
        let text = format!("[vault.key]\nsource = \"file\"\npath = {key:?}\n{}{config}", providers(&obo.provider));
        let listen = address.to_string();
        let variables = [("OBO_SERVER__LISTEN", listen.as_str()), ("OBO_SERVER__PUBLIC_URL", obo.base.as_str())];
        let config = Config::parse(&text, "obo.toml", obo.dir.path(), &Environment::from(variables)).unwrap();
        let clock: SharedClock = obo.clock.clone();
        let data_dir = obo.dir.path().join("data");
        let app = App::open(Settings { config, data_dir, clock, way: Way::Serve, prompt: None }).unwrap();
        let site = app::site(&app, address).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(obo::transport::http::serve(listener, site, stop.clone()));
        Self { app, at: format!("http://{address}"), stop }
    }
}

/// Runs the program on the folder of a running obo.
async fn run(obo: &TestObo, arguments: &[&str]) -> Ran {
    let file = obo.dir.path().join("obo.toml");
    std::fs::write(&file, "[vault.key]\nsource = \"file\"\npath = \"vault.key\"\n").unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_obo"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OBO_")) {
        command.env_remove(name);
    }
    command.arg("--config").arg(file).arg("--data-dir").arg(obo.dir.path().join("data")).args(arguments);
    let output = command.stdin(std::process::Stdio::null()).output().await.unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn a_client_that_knows_nothing_but_the_address_signs_a_person_in() {
    let obo = turned_on().await;
    obo.connect("alice", "alice@example.com", SEND, mail("bob@example.com", "x")).await;
    for resource in ["/mcp", "/sse"] {
        // It asks without a token, and is told where to look.
        let nobody = match resource {
            "/mcp" => answer(http().post(format!("{}/mcp", obo.base)).json(&json!({}))).await,
            _ => get(&format!("{}/sse", obo.base)).await,
        };
        assert_eq!(nobody.status, 401);
        let told = nobody.headers["www-authenticate"].to_str().unwrap();
        let described = format!("{}/.well-known/oauth-protected-resource{resource}", obo.base);
        assert!(told.contains(&format!("resource_metadata=\"{described}\"")), "{told}");
        let document = get(&described).await.json();
        assert_eq!(document["resource"], format!("{}{resource}", obo.base));
        assert_eq!(document["authorization_servers"], json!([obo.base]));
        assert_eq!(document["scopes_supported"], json!(["mcp"]));
    }
    let metadata = get(&format!("{}/.well-known/oauth-authorization-server", obo.base)).await;
    assert_eq!(metadata.headers["access-control-allow-origin"], "*");
    let metadata = metadata.json();
    assert_eq!(metadata["issuer"], obo.base);
    for (key, path) in [
        ("authorization_endpoint", "/oauth/authorize"),
        ("token_endpoint", "/oauth/token"),
        ("registration_endpoint", "/oauth/register"),
        ("revocation_endpoint", "/oauth/revoke"),
    ] {
        assert_eq!(metadata[key], format!("{}{path}", obo.base));
    }
    for (key, value) in [
        ("code_challenge_methods_supported", json!(["S256"])),
        ("response_types_supported", json!(["code"])),
        ("grant_types_supported", json!(["authorization_code", "refresh_token"])),
        ("token_endpoint_auth_methods_supported", json!(["none"])),
        ("authorization_response_iss_parameter_supported", json!(true)),
        ("client_id_metadata_document_supported", json!(true)),
    ] {
        assert_eq!(metadata[key], value, "{key}");
    }

    // It registers, as clients do that would like a secret too.
    let registration = json!({
        "client_name": "Notes",
        "redirect_uris": [CALLBACK],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "client_secret_post",
        "scope": "mcp everything",
    });
    let registered = register(&obo.base, &registration).await;
    assert_eq!(registered.status, 201);
    assert_eq!(registered.headers["cache-control"], "no-store");
    let registered = registered.json();
    assert_eq!(registered["client_name"], "Notes");
    assert_eq!(registered["redirect_uris"], json!([CALLBACK]));
    assert_eq!(registered["token_endpoint_auth_method"], "none");
    assert_eq!(registered["scope"], "mcp");
    assert!(registered.get("client_secret").is_none());
    // A program learns its port when it begins to listen.
    let client =
        OauthClient::with_id(&obo.base, registered["client_id"].as_str().unwrap(), "http://127.0.0.1:5150/callback");

    // The person signs in with their token, reads, and allows it.
    let begun = client.begin();
    let mut browser = Browser::new();
    let sign_in = browser.get(&begun.url).await;
    assert_eq!((sign_in.status, sign_in.forms_and_buttons()), (200, (1, 1)));
    assert!(!sign_in.text.contains("Notes"), "nothing a stranger wrote is shown before: {}", sign_in.text);
    let token = obo.token_for("alice").await;
    let signed_in = browser.submit(&sign_in, &[("token", &token)]).await;
    let url = url::Url::parse(&begun.url).unwrap();
    let again = format!("{}?{}", url.path(), url.query().unwrap());
    assert_eq!((signed_in.status, signed_in.location.as_deref()), (303, Some(&*again)));
    let page = browser.get(&begun.url).await;
    assert_eq!((page.status, page.forms_and_buttons()), (200, (3, 3)));
    for said in ["<dd>alice</dd>", "“<bdi>Notes</bdi>”", "nobody has checked", "127.0.0.1:5150/callback", "30 days"]
    {
        assert!(page.text.contains(said), "{said} is not in {}", page.text);
    }
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("form-action"), "{policy}");
    assert_eq!(sessions(&obo.app).await, [], "nothing was allowed yet");
    let back = allow(&mut browser, &begun.url).await;
    assert!(back.starts_with("http://127.0.0.1:5150/callback?code="), "{back}");
    let back = parameters(&back);
    assert_eq!((&back["state"], &back["iss"]), (&begun.state, &obo.base));

    let got = client.exchange(&back["code"], &begun.verifier).await;
    assert_eq!(got.headers["cache-control"], "no-store");
    let (tokens, got) = (got.tokens(), got.json());
    assert_eq!((&got["token_type"], &got["expires_in"], &got["scope"]), (&json!("Bearer"), &json!(900), &json!("mcp")));
    assert!(tokens.access.starts_with("oboa_") && tokens.refresh.starts_with("obor_"));

    // With it the client acts as alice, and only as she may.
    assert_eq!(listed(&obo.base, &tokens.access).await, 200);
    let alice = Mcp::new(&obo.base, Some(tokens.access.clone()));
    value_of(&alice.call(SEND, mail("bob@example.com", "from a client")).await);
    let sent = obo.provider.log().into_iter().rfind(|call| call.path.ends_with("/messages/send")).unwrap();
    assert_eq!(sent.user.as_deref(), Some("alice@example.com"));

    // It goes on for as long as it renews its tokens; the access tokens before stay good for their time.
    let renewed = client.refresh(&tokens.refresh).await.tokens();
    assert_ne!(renewed.refresh, tokens.refresh);
    assert_eq!((listed(&obo.base, &renewed.access).await, listed(&obo.base, &tokens.access).await), (200, 200));
    let shown = sessions(&obo.app).await;
    assert_eq!((shown.len(), shown[0].client.as_str()), (1, "Notes (as it calls itself)"));

    // An access token that is given back ends alone; a refresh token ends everything. Neither answer says anything.
    for (token, good) in [(&tokens.access, 200), (&renewed.refresh, 401)] {
        let revoked = client.revoke(token).await;
        assert_eq!((revoked.status, revoked.json()), (200, json!({})));
        assert_eq!(listed(&obo.base, &tokens.access).await, 401);
        assert_eq!(listed(&obo.base, &renewed.access).await, good);
    }
    assert_eq!(client.refresh(&renewed.refresh).await.error(), "invalid_grant");
    assert_eq!(sessions(&obo.app).await, []);
    assert_eq!(client.revoke(&renewed.refresh).await.status, 200, "of a token that is not good nothing is said");
    assert_eq!(notes(&obo.app).await, ["client.allowed", "client.signed_in", "client.gave_back"]);
    // Nothing that a client lives on is in the folder.
    let data = obo.data_bytes();
    for secret in [&tokens.access, &tokens.refresh, &renewed.access, &renewed.refresh, &back["code"]] {
        assert!(!data.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[tokio::test]
async fn people_of_an_issuer_sign_in_there_and_keep_their_groups() {
    let (obo, issuer) = with_issuer(ON).await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let begun = client.begin();
    let mut browser = Browser::new();
    // The way to sign in is chosen first; each way keeps the request.
    let choose = browser.get(&begun.url).await;
    assert_eq!(choose.status, 200);
    assert!(choose.text.contains("with=corp") && choose.text.contains("with=obo"), "{}", choose.text);
    let page = browser.get(&format!("{}&with=corp", begun.url)).await;
    assert!(page.text.contains("Sign in with corp"), "{}", page.text);
    let sent = browser.submit(&page, &[]).await.location.unwrap();
    let back = browser.get(&issuer.sign_in(&sent, "alice")).await;
    let here = url::Url::parse(&begun.url).unwrap();
    assert_eq!(back.location.as_deref(), Some(&*format!("/oauth/authorize?{}", here.query().unwrap())));
    let page = browser.get(&begun.url).await;
    assert!(page.text.contains("alice (corp, default)"), "{}", page.text);
    let code = client.code(&mut browser, &begun).await;
    let tokens = client.exchange(&code, &begun.verifier).await.tokens();
    let tokens = client.refresh(&tokens.refresh).await.tokens();

    let shown = Credential::Bearer { token: Secret::new(tokens.access.as_str()), obo_user: None };
    let subject = obo.app.obo.authenticate(&shown).await.unwrap();
    assert_eq!(subject.person().to_string(), "alice (corp, default)");
    assert_eq!(subject.groups(), ["staff"]);
    assert_eq!(subject.via(), &Via::Client("Notes (as it calls itself)".to_owned()));
    // The ID token's end, five minutes, is not the end of the sign-in.
    obo.clock.advance(14 * MINUTE);
    assert_eq!(listed(&obo.base, &tokens.access).await, 200);
    let renewed = client.refresh(&tokens.refresh).await.tokens();
    assert_eq!(sessions(&obo.app).await[0].groups, ["staff"]);
    // The issuer's own tokens are as good as ever.
    assert_eq!(listed(&obo.base, &issuer.access_token("alice", &format!("{}/mcp", obo.base))).await, 200);
    assert_eq!(client.revoke(&renewed.refresh).await.status, 200);
}

#[tokio::test]
async fn a_client_with_a_document_needs_no_registration() {
    let documents = Documents::start().await;
    let config = format!("{}{ON}\ndynamic_registration = false", documents.allowed());
    let obo = TestObo::builder().config(&config).start().await;
    let id = documents.put("/app/client.json", Document::json(&documents.good("/app/client.json")));
    let client = OauthClient::with_id(&obo.base, &id, "http://127.0.0.1:5150/callback");
    let begun = client.begin();
    let host = format!("127.0.0.1:{}", documents.port);

    let sign_in = Browser::new().get(&begun.url).await;
    assert!(!sign_in.text.contains("Paper"), "{}", sign_in.text);
    assert_eq!(documents.asked(), 0, "nothing is fetched for a stranger");
    let mut browser = obo.browser_of("alice").await;
    let page = browser.get(&begun.url).await;
    for said in [
        format!("<dd>{host}<code>{id}</code></dd>"),
        "“<bdi>Paper</bdi>”".to_owned(),
        "a program on this computer<code>http://127.0.0.1:5150/callback</code>".to_owned(),
    ] {
        assert!(page.text.contains(&said), "{said} is not in {}", page.text);
    }
    let code = client.code(&mut browser, &begun).await;
    let tokens = client.exchange(&code, &begun.verifier).await.tokens();
    let tokens = client.refresh(&tokens.refresh).await.tokens();
    assert_eq!(listed(&obo.base, &tokens.access).await, 200);
    let shown = sessions(&obo.app).await;
    assert_eq!((&shown[0].client, &shown[0].client_id), (&format!("Paper ({host})"), &id));
    // Read once in five minutes; and not at all for tokens, which know whose they are.
    assert_eq!(documents.asked(), 1);
    obo.clock.advance(5 * MINUTE - Duration::from_secs(1));
    browser.visit(&client.begin().url).await;
    assert_eq!(documents.asked(), 1);
    obo.clock.advance(Duration::from_secs(1));
    browser.visit(&client.begin().url).await;
    assert_eq!(documents.asked(), 2);
    // A document that is gone: nobody new, and nobody is signed out.
    documents.put("/app/client.json", Document { status: 404, ..Document::json(&json!({})) });
    obo.clock.advance(5 * MINUTE);
    assert_eq!(browser.visit(&client.begin().url).await.status, 502);
    let renewed = client.refresh(&tokens.refresh).await.tokens();
    assert_eq!(client.revoke(&renewed.refresh).await.status, 200);
    assert_eq!(listed(&obo.base, &renewed.access).await, 401);
    let registered = register(&obo.base, &json!({ "redirect_uris": [CALLBACK] })).await;
    assert_eq!(registered.status, 404);
}

#[tokio::test]
async fn whoever_signed_out_is_asked_who_they_are_and_the_request_stays() {
    let (obo, issuer) = with_issuer(ON).await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let begun = client.begin();
    let mut browser = obo.browser_at(&issuer, "corp", "bob").await;
    let page = browser.get(&begun.url).await;
    let out = browser.submit(&with_form(&page, "sign_out"), &[]).await;
    let again = out.location.unwrap();
    assert!(out.status == 303 && again.ends_with("&again=1"), "{again}");
    let again = url::Url::parse(&obo.base).unwrap().join(&again).unwrap();
    let choose = browser.get(again.as_str()).await;
    assert!(choose.text.contains("with=corp&#38;again=1"), "{}", choose.text);
    let page = browser.get(&format!("{again}&with=corp")).await;
    let sent = browser.submit(&page, &[]).await.location.unwrap();
    assert!(sent.contains("prompt=login"), "{sent}");
    browser.get(&issuer.sign_in(&sent, "alice")).await;
    let code = client.code(&mut browser, &begun).await;
    let tokens = client.exchange(&code, &begun.verifier).await.tokens();
    assert_eq!(listed(&obo.base, &tokens.access).await, 200);
    assert_eq!(sessions(&obo.app).await[0].person.user.as_str(), "alice");

    // What a client puts there is not taken for what the person chose, nor does it become part of the request.
    let begun = client.begin_with(&[("with", Some("nothing")), ("again", Some("1"))]);
    let mut other = Browser::new();
    let choose = other.get(&begun.url).await;
    assert!(choose.text.contains("with=corp") && !choose.text.contains("with=nothing"), "{}", choose.text);
    let mut browser = obo.browser_at(&issuer, "corp", "alice").await;
    let code = client.code(&mut browser, &begun).await;
    assert_eq!(client.exchange(&code, &begun.verifier).await.status, 200);
}

#[tokio::test]
async fn who_does_not_allow_it_sends_the_client_word() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let begun = client.begin();
    let mut browser = obo.browser_of("alice").await;
    let page = browser.get(&begun.url).await;
    let denied = browser.submit(&with_form(&page, "\"deny\""), &[]).await;
    assert_eq!(denied.status, 303);
    let location = denied.location.unwrap();
    assert!(location.starts_with(&format!("{CALLBACK}?")), "{location}");
    let back = parameters(&location);
    assert_eq!((back["error"].as_str(), &back["state"], &back["iss"]), ("access_denied", &begun.state, &obo.base));
    assert!(!back.contains_key("code"));
    assert_eq!(sessions(&obo.app).await, []);
    let noted = noted(&obo.app).await;
    assert_eq!(noted, [("client.denied".to_owned(), "alice".to_owned(), "Notes (as it calls itself)".to_owned())]);
}

#[tokio::test]
async fn the_account_page_lists_clients_and_signs_them_out() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let (mut alices, mut bobs) = (obo.browser_of("alice").await, obo.browser_of("bob").await);
    let (first, second) = (client.sign_in(&mut alices).await, client.sign_in(&mut alices).await);
    let of_bob = client.sign_in(&mut bobs).await;
    let account = format!("{}/account", obo.base);
    let page = alices.visit(&account).await;
    assert_eq!(page.text.matches("Sign Notes (as it calls itself) out").count(), 2, "{}", page.text);
    for said in ["Apps that act for you", "2026-11-24 08:00 UTC", "2026-12-24 08:00 UTC"] {
        assert!(page.text.contains(said), "{said} is not in {}", page.text);
    }
    let out = alices.submit(&with_form(&page, "/account/client"), &[]).await;
    assert_eq!((out.status, out.location.as_deref()), (303, Some("/account")));
    let left = [listed(&obo.base, &first.access).await, listed(&obo.base, &second.access).await];
    assert!(left.contains(&401) && left.contains(&200), "{left:?}");
    // The same form once more changes nothing, and nobody else's client can be named in it.
    alices.submit(&with_form(&page, "/account/client"), &[]).await;
    assert_eq!(sessions(&obo.app).await.len(), 2);
    let bobs_id = sessions(&obo.app).await.into_iter().find(|s| s.person.user.as_str() == "bob").unwrap().id;
    let mut forged = with_form(&alices.visit(&account).await, "/account/client");
    let own = forged.hidden().into_iter().find(|(name, _)| name == "client").unwrap().1;
    forged.text = forged.text.replace(&own, &bobs_id);
    assert_eq!(alices.submit(&forged, &[]).await.status, 403);
    let bobs_form = with_form(&bobs.visit(&account).await, "/account/client");
    assert_eq!(alices.submit(&bobs_form, &[]).await.status, 403);
    assert_eq!(listed(&obo.base, &of_bob.access).await, 200);
    assert_eq!(notes(&obo.app).await.iter().filter(|note| *note == "client.signed_out").count(), 1);
}

#[tokio::test]
async fn the_command_line_lists_clients_and_ends_them() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = obo.browser_of("alice").await;
    let (first, second) = (client.sign_in(&mut browser).await, client.sign_in(&mut browser).await);
    let id = sessions(&obo.app).await[0].id.clone();
    let table = run(&obo, &["token", "list"]).await;
    assert!(table.stdout.contains("Notes (as it calls itself)") && table.stdout.contains(&id), "{table:?}");
    let listing: Value = serde_json::from_str(&run(&obo, &["token", "list", "--json"]).await.stdout).unwrap();
    let clients: Vec<&Value> = listing.as_array().unwrap().iter().filter(|one| one.get("client").is_some()).collect();
    assert_eq!(clients.len(), 2);
    assert_eq!(clients[0]["client_id"], client.id);
    assert_eq!((&clients[0]["user"], &clients[0]["source"]), (&json!("alice"), &json!("obo")));

    let revoked = run(&obo, &["token", "revoke", &id]).await;
    assert_eq!(revoked.code, 0, "{revoked:?}");
    assert_eq!(revoked.stdout.trim_end(), "Notes (as it calls itself) acts no longer for alice.");
    let left = [listed(&obo.base, &first.access).await, listed(&obo.base, &second.access).await];
    assert!(left.contains(&401) && left.contains(&200), "{left:?}");
    assert_eq!(run(&obo, &["token", "revoke", &id]).await.code, 1);
    assert!(notes(&obo.app).await.contains(&"client.signed_out".to_owned()));
}

#[tokio::test]
async fn with_a_token_of_obo_goes_what_was_allowed_with_it() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut bobs = obo.browser_of("bob").await;
    let of_bob = client.sign_in(&mut bobs).await;
    let mut browser = obo.browser_of("alice").await;
    let tokens = client.sign_in(&mut browser).await;
    // Allowed, and not exchanged yet: it must not come to life afterwards.
    let begun = client.begin();
    let code = client.code(&mut browser, &begun).await;
    let issued = obo.app.obo.identity().tokens().list(None).await.unwrap();
    let id = &issued.iter().find(|token| token.person.user.as_str() == "alice").unwrap().id;
    assert_eq!(run(&obo, &["token", "revoke", id]).await.code, 0);
    assert_eq!(listed(&obo.base, &tokens.access).await, 401);
    assert_eq!(client.refresh(&tokens.refresh).await.error(), "invalid_grant");
    assert_eq!(client.exchange(&code, &begun.verifier).await.error(), "invalid_grant");
    assert!(browser.get(&client.begin().url).await.text.contains("name=\"token\""), "signed out");
    let left = sessions(&obo.app).await;
    assert_eq!((left.len(), left[0].person.user.as_str()), (1, "bob"));
    assert_eq!(listed(&obo.base, &of_bob.access).await, 200);
}

#[tokio::test]
async fn off_is_the_default_and_off_is_off() {
    let (obo, issuer) = with_issuer("").await;
    let nothing = async |at: &str| {
        for path in [
            "/.well-known/oauth-authorization-server",
            "/oauth/authorize?client_id=x",
            "/.well-known/oauth-protected-resource/sse",
        ] {
            assert_eq!(get(&format!("{at}{path}")).await.status, 404, "{path}");
        }
        for path in ["/oauth/token", "/oauth/register", "/oauth/revoke", "/oauth/authorize", "/account/client"] {
            let posted = answer(http().post(format!("{at}{path}")).form(&[("client_id", "x")])).await;
            assert_eq!(posted.status, 404, "{path}");
        }
    };
    nothing(&obo.base).await;
    let document = get(&format!("{}/.well-known/oauth-protected-resource/mcp", obo.base)).await.json();
    assert_eq!(document["authorization_servers"], json!([issuer.url]));
    assert_eq!(document.get("scopes_supported"), None);

    // Turned on, and off again: what was given out in between is worth nothing, and lives again only with it.
    let on = Replica::of(&obo, &format!("{}{ON}", issuer.table("corp", ""))).await;
    let registered = register(&on.at, &json!({ "redirect_uris": [CALLBACK] })).await.json();
    let client = OauthClient::with_id(&obo.base, registered["client_id"].as_str().unwrap(), CALLBACK).asking(&on.at);
    let token = obo.token_for("alice").await;
    let mut browser = Browser::new();
    sign_in_with(&mut browser, &on.at, &token).await;
    let tokens = client.sign_in(&mut browser).await;
    assert_eq!((listed(&on.at, &tokens.access).await, listed(&obo.base, &tokens.access).await), (200, 401));
    drop(on);
    let off = Replica::of(&obo, &issuer.table("corp", "")).await;
    nothing(&off.at).await;
    assert_eq!(listed(&off.at, &tokens.access).await, 401);
    assert!(!browser.get(&format!("{}/account", off.at)).await.text.contains("Apps that act"));
    let on = Replica::of(&obo, &format!("{}{ON}", issuer.table("corp", ""))).await;
    assert_eq!(listed(&on.at, &tokens.access).await, 200);
}

#[tokio::test]
async fn without_registration_only_documents_are_clients() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = obo.browser_of("alice").await;
    let tokens = client.sign_in(&mut browser).await;
    let closed = Replica::of(&obo, &format!("{ON}\ndynamic_registration = false")).await;
    let metadata = get(&format!("{}/.well-known/oauth-authorization-server", closed.at)).await.json();
    assert_eq!(metadata.get("registration_endpoint"), None);
    assert_eq!(register(&closed.at, &json!({ "redirect_uris": [CALLBACK] })).await.status, 404);
    // Those that registered before are nobody there.
    let client = client.asking(&closed.at);
    let page = browser.visit(&client.begin().url).await;
    assert_eq!(page.status, 400);
    assert!(page.text.contains("cannot register themselves"), "{}", page.text);
    let refused = client.refresh(&tokens.refresh).await;
    assert_eq!((refused.status, refused.error().as_str()), (401, "invalid_client"));
}

#[tokio::test]
async fn everything_ends_in_its_time() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = Browser::new();
    // Longer than anything here: the sign-in must end by itself.
    let person = obo::id::Person {
        tenant: obo::id::TenantId::default_tenant(),
        source: obo::id::Source::obo(),
        user: "alice".parse().unwrap(),
    };
    let (_, token) = obo.app.obo.identity().tokens().issue(&person, vec![], 400 * DAY).await.unwrap();
    sign_in_with(&mut browser, &obo.base, token.expose()).await;

    // A code: five minutes.
    let (first, second) = (client.begin(), client.begin());
    let (late, in_time) = (client.code(&mut browser, &first).await, client.code(&mut browser, &second).await);
    obo.clock.advance(Duration::from_secs(299));
    let tokens = client.exchange(&in_time, &second.verifier).await.tokens();
    obo.clock.advance(Duration::from_secs(1));
    assert_eq!(client.exchange(&late, &first.verifier).await.error(), "invalid_grant");

    // An access token: fifteen minutes.
    obo.clock.advance(14 * MINUTE + Duration::from_secs(58));
    assert_eq!(listed(&obo.base, &tokens.access).await, 200);
    obo.clock.advance(Duration::from_secs(1));
    assert_eq!(listed(&obo.base, &tokens.access).await, 401);

    // The sign-in: thirty days from its beginning, however often it is renewed. Nothing outlives it.
    let mut refresh = tokens.refresh;
    for _ in 0..29 {
        obo.clock.advance(DAY);
        refresh = client.refresh(&refresh).await.tokens().refresh;
    }
    obo.clock.advance(DAY - 20 * MINUTE);
    let last = client.refresh(&refresh).await;
    assert_eq!(last.json()["expires_in"], 300, "what is left of the sign-in");
    let last = last.tokens();
    obo.clock.advance(20 * MINUTE);
    assert_eq!(client.refresh(&last.refresh).await.error(), "invalid_grant");
    assert_eq!(listed(&obo.base, &last.access).await, 401);
    // What has expired is no more listed to its person, and goes with the next sweep.
    assert!(!browser.visit(&format!("{}/account", obo.base)).await.text.contains("Apps that act"));
    obo.app.store.prune(obo.clock.now()).await.unwrap();
    for table in [Table::AuthorizationCode, Table::ClientSession, Table::ClientToken] {
        assert_eq!(obo.app.store.scan(table, None, 10).await.unwrap(), [], "{table:?}");
    }

    // A registration: a hundred and eighty days. The client is told where it can do something about it.
    let mut browser = Browser::new();
    sign_in_with(&mut browser, &obo.base, token.expose()).await;
    obo.clock.advance(149 * DAY);
    sign_in_with(&mut browser, &obo.base, token.expose()).await;
    let tokens = client.sign_in(&mut browser).await;
    obo.clock.advance(DAY);
    let refused = client.refresh(&tokens.refresh).await;
    assert_eq!((refused.status, refused.error().as_str()), (401, "invalid_client"));
    sign_in_with(&mut browser, &obo.base, token.expose()).await;
    let page = browser.visit(&client.begin().url).await;
    assert!(page.status == 400 && page.text.contains("has run out"), "{}", page.text);
}

#[tokio::test]
async fn a_sign_in_ends_with_the_token_that_proved_who_it_was() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let person = obo::id::Person {
        tenant: obo::id::TenantId::default_tenant(),
        source: obo::id::Source::obo(),
        user: "alice".parse().unwrap(),
    };
    let tokens = obo.app.obo.identity().tokens();
    let (_, token) = tokens.issue(&person, vec!["staff".to_owned()], 10 * MINUTE).await.unwrap();
    let mut browser = Browser::new();
    sign_in_with(&mut browser, &obo.base, token.expose()).await;
    let got = client.sign_in(&mut browser).await;
    assert_eq!(sessions(&obo.app).await[0].groups, ["staff"]);
    let begun = client.begin();
    let code = client.code(&mut browser, &begun).await;
    obo.clock.advance(9 * MINUTE + Duration::from_secs(30));
    let renewed = client.refresh(&got.refresh).await;
    assert_eq!(renewed.json()["expires_in"], 30);
    let (renewed, begun_late) = (renewed.tokens(), client.begin());
    let late = client.code(&mut browser, &begun_late).await;
    assert_eq!(client.exchange(&code, &begun.verifier).await.error(), "invalid_grant", "five minutes are over");
    obo.clock.advance(Duration::from_secs(30));
    assert_eq!(listed(&obo.base, &renewed.access).await, 401);
    assert_eq!(client.refresh(&renewed.refresh).await.error(), "invalid_grant");
    assert_eq!(client.exchange(&late, &begun_late.verifier).await.error(), "invalid_grant");
}

#[tokio::test]
async fn an_issuer_that_is_taken_out_of_the_configuration_vouches_for_nobody() {
    let (obo, issuer) = with_issuer(ON).await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = obo.browser_at(&issuer, "corp", "alice").await;
    let tokens = client.sign_in(&mut browser).await;
    let begun = client.begin();
    let mut browser = obo.browser_at(&issuer, "corp", "alice").await;
    let code = client.code(&mut browser, &begun).await;
    let mut bobs = obo.browser_of("bob").await;
    let of_bob = client.sign_in(&mut bobs).await;
    for (name, config) in [
        ("gone", ON.to_owned()),
        ("another name", format!("{}{ON}", issuer.table("other", ""))),
        ("another tenant", format!("{}{ON}", issuer.table("corp", "tenant = \"acme\""))),
    ] {
        let without = Replica::of(&obo, &config).await;
        let asking = client.asking(&without.at);
        assert_eq!(listed(&without.at, &tokens.access).await, 401, "{name}");
        assert_eq!(asking.refresh(&tokens.refresh).await.error(), "invalid_grant", "{name}");
        assert_eq!(asking.exchange(&code, &begun.verifier).await.error(), "invalid_grant", "{name}");
        assert_eq!(listed(&without.at, &of_bob.access).await, 200, "{name}: people of obo are not the issuer's");
    }
}

#[tokio::test]
async fn several_processes_are_one_server() {
    let obo = turned_on().await;
    let other = Replica::of(&obo, ON).await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = obo.browser_of("alice").await;
    // Begun here, allowed there, exchanged here, used there; and ended here.
    let there = client.asking(&other.at);
    let begun = there.begin();
    let code = there.code(&mut browser, &begun).await;
    let tokens = client.exchange(&code, &begun.verifier).await.tokens();
    assert_eq!(listed(&other.at, &tokens.access).await, 200);
    let tokens = there.refresh(&tokens.refresh).await.tokens();
    assert_eq!(client.revoke(&tokens.refresh).await.status, 200);
    assert_eq!(listed(&other.at, &tokens.access).await, 401);

    // One token sent twice at the same moment, as clients do whose calls meet an expired token: both get the same
    // successor, and go on with it. Whoever comes with it after the other has used it ends the sign-in.
    for _ in 0..5 {
        let tokens = client.sign_in(&mut browser).await;
        let (here, there) = tokio::join!(client.refresh(&tokens.refresh), there.refresh(&tokens.refresh));
        let (here, there) = (here.tokens(), there.tokens());
        assert_eq!(here.refresh, there.refresh);
        for (at, token) in [(&obo.base, &here.access), (&other.at, &there.access), (&obo.base, &tokens.access)] {
            assert_eq!(listed(at, token).await, 200);
        }
        let next = client.refresh(&here.refresh).await.tokens();
        assert_eq!(client.refresh(&tokens.refresh).await.error(), "invalid_grant", "its successor was used");
        for (at, token) in [(&obo.base, &next.access), (&other.at, &there.access)] {
            assert_eq!(listed(at, token).await, 401);
        }
        assert_eq!(client.refresh(&next.refresh).await.error(), "invalid_grant");
        assert_eq!(sessions(&obo.app).await, []);
    }

    // A restart in between changes nothing.
    let begun = client.begin();
    let code = client.code(&mut browser, &begun).await;
    drop(other);
    let again = Replica::of(&obo, ON).await;
    let there = client.asking(&again.at);
    let tokens = there.exchange(&code, &begun.verifier).await.tokens();
    assert_eq!(listed(&again.at, &tokens.access).await, 200);
    assert_eq!(sessions(&again.app).await.len(), 1);
}

#[tokio::test]
async fn every_note_of_the_audit_page_is_written() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = obo.browser_of("alice").await;
    let expected = |notes: &[&str]| notes.iter().map(|note| (*note).to_owned()).collect::<Vec<_>>();
    let new = async |before: &mut usize| {
        let all = notes(&obo.app).await;
        let new = all[*before..].to_vec();
        *before = all.len();
        new
    };
    let mut seen = 0;

    let begun = client.begin();
    let code = client.code(&mut browser, &begun).await;
    client.exchange_with(&code, "x".repeat(43).as_str(), &[]).await;
    assert_eq!(new(&mut seen).await, expected(&["client.allowed", "client.code_refused"]));
    let begun = client.begin();
    let code = client.code(&mut browser, &begun).await;
    client.exchange(&code, &begun.verifier).await.tokens();
    client.exchange(&code, &begun.verifier).await;
    assert_eq!(new(&mut seen).await, expected(&["client.allowed", "client.signed_in", "client.code_reused"]));
    let tokens = client.sign_in(&mut browser).await;
    client.refresh(&tokens.refresh).await.tokens();
    obo.clock.advance(Duration::from_secs(10));
    client.refresh(&tokens.refresh).await;
    assert_eq!(new(&mut seen).await, expected(&["client.allowed", "client.signed_in", "client.token_reused"]));
    let tokens = client.sign_in(&mut browser).await;
    client.revoke(&tokens.refresh).await;
    assert_eq!(new(&mut seen).await, expected(&["client.allowed", "client.signed_in", "client.gave_back"]));
    client.sign_in(&mut browser).await;
    let id = sessions(&obo.app).await[0].id.clone();
    let page = browser.visit(&format!("{}/account", obo.base)).await;
    browser.submit(&with_form(&page, "/account/client"), &[]).await;
    assert_eq!(new(&mut seen).await, expected(&["client.allowed", "client.signed_in", "client.signed_out"]));
    let page = browser.visit(&client.begin().url).await;
    browser.submit(&with_form(&page, "\"deny\""), &[]).await;
    assert_eq!(new(&mut seen).await, expected(&["client.denied"]));

    // Each says whose and which; all notes of the page were seen; and the chain holds.
    let all = noted(&obo.app).await;
    assert!(all.iter().all(|(_, user, actor)| user == "alice" && actor == "Notes (as it calls itself)"), "{all:?}");
    let of_last: Vec<&str> = all.iter().filter_map(|(note, ..)| note.strip_suffix(&format!(" {id}"))).collect();
    assert_eq!(of_last, ["client.allowed", "client.signed_in", "client.signed_out"]);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/audit.md")).unwrap();
    for line in page.lines().filter_map(|line| line.strip_prefix("| `client.")) {
        let note = format!("client.{}", line.split('`').next().unwrap());
        if note == "client.displaced" {
            // Needs fifty: a_person_has_at_most_fifty_clients_and_a_client_eight_access_tokens.
            continue;
        }
        assert!(all.iter().any(|(told, ..)| told.split(' ').next() == Some(&note)), "{note} was not written");
    }
    assert_eq!(obo.app.audit.verify().await.unwrap().problems, []);
}

/// Makes the database refuse something from now on, as a full disk would.
fn refuse(obo: &TestObo, what: &str) -> Connection {
    let connection = Connection::open(obo.dir.path().join("data/obo.db")).unwrap();
    connection
        .execute_batch(&format!("CREATE TRIGGER no_room BEFORE {what} BEGIN SELECT RAISE(ABORT, 'no room'); END;"))
        .unwrap();
    connection
}

fn mend(connection: &Connection) {
    connection.execute_batch("DROP TRIGGER no_room").unwrap();
}

#[tokio::test]
async fn what_cannot_be_put_on_record_is_not_allowed() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = obo.browser_of("alice").await;
    let begun = client.begin();
    let page = browser.visit(&begun.url).await;
    let broken = refuse(&obo, "INSERT ON log");
    for step in ["\"allow\"", "\"deny\""] {
        let pressed = browser.submit(&with_form(&page, step), &[]).await;
        assert_eq!((pressed.status, pressed.location), (503, None), "{step}");
    }
    assert_eq!(obo.app.store.scan(Table::AuthorizationCode, None, 10).await.unwrap(), []);
    mend(&broken);
    // Allowed, and then not to be put on record that it was used: nobody is signed in, and the client is told to begin
    // anew rather than to come again with a code that is used up.
    let code = client.code(&mut browser, &begun).await;
    let broken = refuse(&obo, "INSERT ON log");
    let refused = client.exchange(&code, &begun.verifier).await;
    assert_eq!((refused.status, refused.error().as_str()), (400, "invalid_grant"), "{}", refused.text);
    assert_eq!(sessions(&obo.app).await, []);
    assert_eq!(obo.app.store.scan(Table::ClientToken, None, 10).await.unwrap(), []);
    mend(&broken);
    client.sign_in(&mut browser).await;
    // Who signs a client out gets that done, whether it can be put on record or not.
    let page = browser.visit(&format!("{}/account", obo.base)).await;
    let _broken = refuse(&obo, "INSERT ON log");
    assert_eq!(browser.submit(&with_form(&page, "/account/client"), &[]).await.status, 303);
    assert_eq!(sessions(&obo.app).await, []);
}

#[tokio::test]
async fn while_the_store_is_broken_nothing_is_used_up() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let mut browser = obo.browser_of("alice").await;
    let tokens = client.sign_in(&mut browser).await;
    let begun = client.begin();
    let code = client.code(&mut browser, &begun).await;
    let page = browser.visit(&client.begin().url).await;
    let unavailable = |answer: &Answer| {
        assert_eq!((answer.status, answer.error().as_str()), (503, "temporarily_unavailable"), "{}", answer.text);
        assert!(!answer.text.contains("no room") && !answer.text.contains("obo.db"), "{}", answer.text);
    };
    for what in ["INSERT ON records", "UPDATE ON records"] {
        let broken = refuse(&obo, what);
        unavailable(&client.exchange(&code, &begun.verifier).await);
        unavailable(&client.refresh(&tokens.refresh).await);
        mend(&broken);
    }
    let broken = refuse(&obo, "INSERT ON records");
    assert_eq!(browser.submit(&with_form(&page, "\"allow\""), &[]).await.status, 503);
    mend(&broken);
    let broken = refuse(&obo, "DELETE ON records");
    unavailable(&client.revoke(&tokens.refresh).await);
    mend(&broken);
    // Not to be read at all: nobody is let in, and nobody is told that a token is bad.
    let broken = Connection::open(obo.dir.path().join("data/obo.db")).unwrap();
    broken.execute_batch("ALTER TABLE records RENAME TO elsewhere").unwrap();
    unavailable(&client.exchange(&code, &begun.verifier).await);
    unavailable(&client.refresh(&tokens.refresh).await);
    unavailable(&client.revoke(&tokens.refresh).await);
    assert_eq!(listed(&obo.base, &tokens.access).await, 503);
    assert_eq!(browser.visit(&client.begin().url).await.status, 503);
    broken.execute_batch("ALTER TABLE elsewhere RENAME TO records").unwrap();

    assert_eq!(listed(&obo.base, &tokens.access).await, 200);
    client.refresh(&tokens.refresh).await.tokens();
    client.exchange(&code, &begun.verifier).await.tokens();
}

#[tokio::test]
async fn what_is_sent_is_bounded() {
    let obo = turned_on().await;
    let name = |text: &str| json!({ "client_name": text, "redirect_uris": [CALLBACK] });
    let uris = |count: usize, length: usize| {
        let uris: Vec<String> = (0..count).map(|n| format!("https://app.example/{n:0length$}")).collect();
        json!({ "redirect_uris": uris })
    };
    for good in [
        name(&"n".repeat(60)),
        name("Übersetzer ✈️"),
        name(""),
        name("  "),
        json!({ "redirect_uris": [CALLBACK], "client_name": null }),
        uris(16, 1),
        uris(1, 1000),
    ] {
        let answer = register(&obo.base, &good).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        assert!(answer.json()["client_id"].as_str().unwrap().len() <= 2048);
    }
    for (kind, bad) in [
        ("invalid_client_metadata", json!({ "client_name": 1, "redirect_uris": [CALLBACK] })),
        ("invalid_client_metadata", json!([])),
        ("invalid_client_metadata", json!("x")),
        ("invalid_client_metadata", json!({ "redirect_uris": [CALLBACK], "grant_types": ["client_credentials"] })),
        ("invalid_client_metadata", json!({ "redirect_uris": [CALLBACK], "grant_types": "authorization_code" })),
        ("invalid_client_metadata", json!({ "redirect_uris": [CALLBACK], "response_types": ["token"] })),
        ("invalid_redirect_uri", json!({ "client_name": "x" })),
        ("invalid_redirect_uri", json!({ "redirect_uris": [] })),
        ("invalid_redirect_uri", json!({ "redirect_uris": CALLBACK })),
        ("invalid_redirect_uri", json!({ "redirect_uris": [1] })),
        ("invalid_redirect_uri", json!({ "redirect_uris": [CALLBACK, "javascript:alert(1)"] })),
        ("invalid_redirect_uri", uris(17, 1)),
        ("invalid_redirect_uri", uris(1, 1100)),
        ("invalid_redirect_uri", uris(10, 400)),
    ] {
        let answer = register(&obo.base, &bad).await;
        assert_eq!((answer.status, answer.error().as_str()), (400, kind), "{bad:.100}");
    }
    // Too long: cut. Characters that turn text around, or cannot be seen, are left out: one name could look like another,
    // or like none.
    assert_eq!(register(&obo.base, &name(&"n".repeat(61))).await.json()["client_name"], "n".repeat(60));
    for hidden in [
        '\u{0}',
        '\n',
        '\u{7f}',
        '\u{ad}',
        '\u{34f}',
        '\u{61c}',
        '\u{115f}',
        '\u{1160}',
        '\u{17b4}',
        '\u{180b}',
        '\u{180e}',
        '\u{200b}',
        '\u{200c}',
        '\u{200d}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202b}',
        '\u{202d}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2067}',
        '\u{2068}',
        '\u{2069}',
        '\u{206f}',
        '\u{2800}',
        '\u{3164}',
        '\u{feff}',
        '\u{ffa0}',
        '\u{fff9}',
        '\u{1bca0}',
        '\u{1d173}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e0100}',
    ] {
        let answer = register(&obo.base, &name(&format!("No{hidden}tes"))).await;
        assert_eq!((answer.status, &answer.json()["client_name"]), (201, &json!("Notes")), "{hidden:?}");
    }
    // Sizes and kinds, of every endpoint.
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let post = async |path: &str, kind: &str, body: String| {
        let request = http().post(format!("{}{path}", obo.base)).header("content-type", kind);
        answer(request.body(body)).await.status
    };
    let (form, json) = ("application/x-www-form-urlencoded", "application/json");
    let padded = format!("{{\"redirect_uris\":[\"{CALLBACK}\"],\"x\":\"{}\"}}", "x".repeat(16 << 10));
    assert_eq!(post("/oauth/register", json, padded).await, 413);
    assert_eq!(post("/oauth/register", form, "x=1".to_owned()).await, 415);
    assert_eq!(post("/oauth/register", json, "{".to_owned()).await, 400);
    let twice = format!("{{\"redirect_uris\":[\"{CALLBACK}\"],\"redirect_uris\":[\"{CALLBACK}\"]}}");
    assert_eq!(post("/oauth/register", json, twice).await, 400);
    for path in ["/oauth/token", "/oauth/revoke"] {
        assert_eq!(post(path, form, format!("x={}", "x".repeat(16 << 10))).await, 413, "{path}");
        assert_eq!(post(path, json, "{}".to_owned()).await, 400, "{path}");
        assert_eq!(post(&format!("{path}?client_id=x"), form, "x=1".to_owned()).await, 400, "{path}");
        assert_eq!(post(path, form, format!("client_id={0}&client_id={0}", client.id)).await, 400, "{path}");
        assert_eq!(post(path, form, "\u{fffd}%ff%00=%".to_owned()).await, 400, "{path}");
        assert_eq!(post(path, form, String::new()).await, 400, "{path}");
        let basic = http().post(format!("{}{path}", obo.base)).basic_auth(&client.id, Some("x")).form(&[("a", "b")]);
        let refused = answer(basic).await;
        assert_eq!((refused.status, refused.error().as_str()), (401, "invalid_client"), "{path}");
        assert!(refused.headers.contains_key("www-authenticate"), "{path}");
    }
    assert_eq!(
        client.post("/oauth/token", &[("client_id", &client.id), ("grant_type", "password")]).await.error(),
        "unsupported_grant_type"
    );
    // The page: a request that is too long, or asks for two things at once.
    let mut browser = obo.browser_of("alice").await;
    let begun = client.begin();
    for bad in [
        client.begin_with(&[("state", Some(&"s".repeat(7000)))]).url,
        format!("{}&state=other", begun.url),
        format!("{}&client_id=other", begun.url),
        format!("{}&%73tate=other", begun.url),
        format!("{}/oauth/authorize", obo.base),
        format!("{}/oauth/authorize?%ff=%00", obo.base),
    ] {
        for browser in [&mut browser, &mut Browser::new()] {
            let page = browser.get(&bad).await;
            assert_eq!((page.status, &page.location), (400, &None), "{bad:.200}");
        }
    }
    // Several resources are one request; each must be ours.
    let several = format!("{}&resource={}/sse&resource={}", begun.url, obo.base, obo.base);
    assert_eq!(browser.get(&several).await.status, 200);
    assert_eq!(browser.get(&format!("{several}&resource=https://other.example/mcp")).await.status, 400);
}

#[tokio::test]
async fn a_person_has_at_most_fifty_clients_and_a_client_eight_access_tokens() {
    let obo = turned_on().await;
    let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
    let (mut browser, mut bobs) = (obo.browser_of("alice").await, obo.browser_of("bob").await);
    let of_bob = client.sign_in(&mut bobs).await;
    let mut all = Vec::new();
    for _ in 0..50 {
        obo.clock.advance(Duration::from_secs(1));
        all.push(client.sign_in(&mut browser).await);
    }
    // The first is used again; so the second is the one that was not used for longest.
    obo.clock.advance(Duration::from_secs(1));
    let first = client.refresh(&all[0].refresh).await.tokens();
    assert_eq!(sessions(&obo.app).await.len(), 51);
    client.sign_in(&mut browser).await;
    assert_eq!(sessions(&obo.app).await.len(), 51);
    assert_eq!(listed(&obo.base, &all[1].access).await, 401);
    assert_eq!(notes(&obo.app).await.iter().filter(|note| *note == "client.displaced").count(), 1);
    for kept in [&first, &all[2], &all[49], &of_bob] {
        assert_eq!(listed(&obo.base, &kept.access).await, 200);
    }

    let mut chain = vec![first];
    for _ in 0..8 {
        obo.clock.advance(Duration::from_secs(1));
        let next = client.refresh(&chain.last().unwrap().refresh).await.tokens();
        chain.push(next);
    }
    let mut good = Vec::new();
    for Tokens { access, .. } in &chain {
        good.push(listed(&obo.base, access).await == 200);
    }
    assert_eq!(good, [false, true, true, true, true, true, true, true, true]);
    assert_eq!(listed(&obo.base, &all[0].access).await, 401);
    assert_eq!(challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
}
