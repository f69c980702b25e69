//! Several accounts of one provider: which of them a call uses, and who may choose.

use std::time::Duration;

use obo::audit::{Kind, Phase};
use obo::catalog::{Catalog, ToolsConfig};
use obo::id::Person;
use serde_json::{Value, json};

use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::program::Program;
use crate::support::{Browser, TestObo, browser, mail};

const SEND: &str = "Google_SendEmail";
const SEND_SCOPE: &str = "https://www.googleapis.com/auth/gmail.send";

fn person(user: &str) -> Person {
    let (tenant, source) = (obo::id::TenantId::default_tenant(), obo::id::Source::obo());
    Person { tenant, source, user: user.parse().unwrap() }
}

/// An obo where alice has connected both of the provider's people, for sending mail.
async fn with_two_accounts() -> TestObo {
    let obo = TestObo::builder().config("[server]\nconsent_wait = \"0s\"").start().await;
    for account in ["alice@example.com", "bob@example.com"] {
        connect(&obo, "alice", account).await;
    }
    obo
}

async fn connect(obo: &TestObo, user: &str, account: &str) -> browser::Page {
    let provider = obo.app.catalog.provider("google").unwrap();
    let scopes = [SEND_SCOPE.to_owned()].into();
    let link =
        obo.app.obo.consent().connect(obo::consent::Wish::new(&person(user), provider, scopes, "test")).await.unwrap();
    let page = obo.consent(link.url.as_str(), user, account).await;
    assert_eq!(page.status, 200, "{}", page.text);
    page
}

/// The account page, in a browser that is signed in.
async fn account_page(obo: &TestObo, browser: &mut Browser, user: &str) -> browser::Page {
    let url = format!("{}/account", obo.base);
    let page = browser.get(&url).await;
    if !page.text.contains("name=\"token\"") {
        return page;
    }
    let token = obo.token_for(user).await;
    assert_eq!(browser.submit(&page, &[("token", &token)]).await.status, 303);
    browser.get(&url).await
}

/// The page beginning with the form whose button says this.
fn form(page: &browser::Page, button: &str) -> browser::Page {
    let button = page.text.find(&format!(">{button}<")).unwrap_or_else(|| panic!("no {button:?} in {}", page.text));
    let start = page.text[..button].rfind("<form ").unwrap();
    browser::Page {
        url: page.url.clone(),
        status: page.status,
        text: page.text[start..].to_owned(),
        location: None,
        headers: page.headers.clone(),
    }
}

async fn choose(obo: &TestObo, browser: &mut Browser, account: &str) {
    let page = account_page(obo, browser, "alice").await;
    let done = browser.submit(&form(&page, &format!("Use {account} by default")), &[]).await;
    assert_eq!((done.status, done.location.as_deref()), (303, Some("/account")), "{}", done.text);
}

async fn send(obo: &TestObo, account: Option<&str>) -> Value {
    let mut arguments = mail("bob@example.com", "x");
    if let Some(account) = account {
        arguments["account"] = json!(account);
    }
    obo.client("alice").await.call(SEND, arguments).await
}

/// Sends a mail, and says as whom the provider saw it.
async fn sent_as(obo: &TestObo, account: Option<&str>) -> String {
    value_of(&send(obo, account).await);
    obo.provider.log().into_iter().rfind(|call| call.path.ends_with("/messages/send")).unwrap().user.unwrap()
}

#[tokio::test]
async fn the_account_that_was_chosen_last_is_used_where_a_call_names_none() {
    let obo = with_two_accounts().await;
    let (alices, bobs) = ("alice@example.com", "bob@example.com");
    assert_eq!(code_of(&send(&obo, None).await).as_deref(), Some("account_required"), "the first is no default");
    let mut browser = Browser::new();
    let page = account_page(&obo, &mut browser, "alice").await;
    assert!(!page.text.contains("<dt>Default</dt>"), "{}", page.text);
    // The clock stands still: the order of choices does not hang on it.
    for chosen in [bobs, alices, bobs, alices] {
        choose(&obo, &mut browser, chosen).await;
        assert_eq!(sent_as(&obo, None).await, chosen);
        let page = account_page(&obo, &mut browser, "alice").await;
        assert_eq!(page.text.matches("<dt>Default</dt>").count(), 1, "{}", page.text);
        assert!(!page.text.contains(&format!("Use {chosen} by default")), "{}", page.text);
        let listed = value_of(&obo.client("alice").await.call("Obo_ListConnections", json!({})).await);
        let defaults: Vec<&Value> =
            listed["connections"].as_array().unwrap().iter().filter(|one| one["default"] == true).collect();
        assert_eq!((defaults.len(), &defaults[0]["account"]), (1, &json!(chosen)));
    }
    // A name still counts for more, and a wrong one is not replaced.
    assert_eq!(sent_as(&obo, Some(bobs)).await, bobs);
    assert_eq!(code_of(&send(&obo, Some("carol@example.com")).await).as_deref(), Some("account_required"));
    let listed = obo.client("alice").await.request("tools/list", json!({})).await;
    let account = &listed["result"]["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == SEND).unwrap()["inputSchema"]
        ["properties"]["account"];
    assert_eq!(account["enum"], json!([alices, bobs]));
    assert!(account["description"].as_str().unwrap().contains("Default: alice@example.com"), "{account}");
}

#[tokio::test]
async fn a_default_outlives_refreshes_and_consents() {
    let obo = with_two_accounts().await;
    let mut browser = Browser::new();
    choose(&obo, &mut browser, "bob@example.com").await;
    obo.clock.advance(Duration::from_secs(3600));
    let before = obo.provider.token_requests();
    assert_eq!(sent_as(&obo, None).await, "bob@example.com");
    assert_eq!(obo.provider.token_requests() - before, 1, "it was refreshed");
    for account in ["bob@example.com", "alice@example.com"] {
        connect(&obo, "alice", account).await;
        assert_eq!(sent_as(&obo, None).await, "bob@example.com", "{account} was connected again");
    }
    // Once it is gone there is none: what is left is used as ever.
    let ended = json!({ "provider": "google", "account": "bob@example.com" });
    value_of(&obo.client("alice").await.call("Obo_Disconnect", ended).await);
    assert_eq!(sent_as(&obo, None).await, "alice@example.com");
    connect(&obo, "alice", "bob@example.com").await;
    assert_eq!(code_of(&send(&obo, None).await).as_deref(), Some("account_required"));
}

#[tokio::test]
async fn a_default_that_ended_is_asked_for_and_no_other_takes_its_place() {
    let obo = with_two_accounts().await;
    let mut browser = Browser::new();
    choose(&obo, &mut browser, "bob@example.com").await;
    obo.provider.revoke_all("bob@example.com");
    for _ in 0..2 {
        let asked = send(&obo, None).await;
        let link = link_of(&asked).unwrap_or_else(|| panic!("{asked}"));
        let forwarded = obo.press(&mut Browser::new(), &link, "alice").await;
        let hint = url::Url::parse(&forwarded)
            .unwrap()
            .query_pairs()
            .find(|(name, _)| name == "login_hint")
            .unwrap()
            .1
            .into_owned();
        assert_eq!(hint, "bob@example.com");
    }
    assert!(
        obo.provider
            .log()
            .iter()
            .all(|call| call.user.as_deref() != Some("alice@example.com") || !call.path.ends_with("/send"))
    );
    assert_eq!(sent_as(&obo, Some("alice@example.com")).await, "alice@example.com");
    let page = account_page(&obo, &mut browser, "alice").await;
    assert!(page.text.contains("This connection no longer works."), "{}", page.text);
    assert!(page.text.contains("ask your agent to connect Google"), "{}", page.text);
}

#[tokio::test]
async fn t2_t13_nobody_else_chooses_and_no_other_form_does() {
    let obo = with_two_accounts().await;
    connect(&obo, "bob", "bob@example.com").await;
    let mut alices = Browser::new();
    let page = account_page(&obo, &mut alices, "alice").await;
    let choice = form(&page, "Use bob@example.com by default");
    let mut bobs = Browser::new();
    let own = account_page(&obo, &mut bobs, "bob").await;
    assert!(!own.text.contains("by default"), "with one account there is nothing to choose: {}", own.text);
    assert_eq!(bobs.submit(&choice, &[]).await.status, 403, "another browser");
    assert_eq!(Browser::new().submit(&choice, &[]).await.status, 403, "no cookie");
    for (origin, site) in [(Some("https://evil.example"), None), (Some("null"), Some("cross-site")), (None, None)] {
        assert_eq!(alices.submit_from(&choice, &[], origin, site).await.status, 403, "{origin:?} {site:?}");
    }
    // The hidden value of one form is not that of the other, and is made over what it names.
    for (from, to) in [("/account/disconnect", "/account/default"), ("/account/default", "/account/disconnect")] {
        let mut crossed = form(
            &page,
            if from.ends_with("default") { "Use bob@example.com by default" } else { "Disconnect bob@example.com" },
        );
        crossed.text = crossed.text.replacen(from, to, 1);
        assert_eq!(alices.submit(&crossed, &[]).await.status, 403, "{from} as {to}");
    }
    let mut bent = form(&page, "Use bob@example.com by default");
    bent.text = bent.text.replacen("100000000000000000002", "100000000000000000001", 1);
    assert_eq!(alices.submit(&bent, &[]).await.status, 403);
    assert_eq!(code_of(&send(&obo, None).await).as_deref(), Some("account_required"), "nothing was chosen");

    // Signed out, the browser has a form of hers and no say any more.
    let out = form(&page, "Sign out");
    assert_eq!(alices.submit(&out, &[]).await.status, 303);
    assert_ne!(alices.submit(&choice, &[]).await.status, 303);
    assert_eq!(code_of(&send(&obo, None).await).as_deref(), Some("account_required"));
    assert!(
        obo.app.audit.read(|record| record.note.as_deref() == Some("consent.default_chosen")).await.unwrap().is_empty()
    );
}

#[tokio::test]
async fn a_choice_is_on_record_before_and_after() {
    let obo = with_two_accounts().await;
    choose(&obo, &mut Browser::new(), "bob@example.com").await;
    let records = obo.app.audit.read(|record| record.note.as_deref() == Some("consent.default_chosen")).await.unwrap();
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            (record.kind, record.phase, record.user.as_deref(), record.account.as_deref(), record.actor.as_str())
        })
        .collect();
    let one = |phase| (Kind::Consent, phase, Some("alice"), Some("bob@example.com"), "browser");
    assert_eq!(told, [one(Phase::Intent), one(Phase::Outcome)]);
    assert_eq!(records[1].outcome.as_deref(), Some("ok"));

    // Without a record nothing is chosen.
    let database = rusqlite::Connection::open(obo.dir.path().join("data/obo.db")).unwrap();
    let no_room = "CREATE TRIGGER no_room BEFORE INSERT ON log BEGIN SELECT RAISE(ABORT, 'no room'); END;";
    database.execute_batch(no_room).unwrap();
    let mut browser = Browser::new();
    let page = account_page(&obo, &mut browser, "alice").await;
    assert_eq!(browser.submit(&form(&page, "Use alice@example.com by default"), &[]).await.status, 503);
    database.execute_batch("DROP TRIGGER no_room").unwrap();
    assert_eq!(sent_as(&obo, None).await, "bob@example.com");
}

/// The link names the account to pick, where the provider has a parameter for that.
#[tokio::test]
async fn a_link_for_one_account_hints_at_it() {
    let catalog = Catalog::load(&ToolsConfig::default(), &Default::default()).unwrap();
    let hints: Vec<(&str, Option<&str>)> =
        catalog.providers().map(|one| (one.id.as_str(), one.oauth.login_hint_param.as_deref())).collect();
    // Slack and others have none: their links name a workspace at most.
    let expected = [
        ("atlassian", None),
        ("github", Some("login")),
        ("google", Some("login_hint")),
        ("hubspot", None),
        ("linear", None),
        ("microsoft", Some("login_hint")),
        ("notion", None),
        ("salesforce", Some("login_hint")),
        ("slack", None),
    ];
    assert_eq!(hints, expected);

    let obo = with_two_accounts().await;
    let alice = obo.client("alice").await;
    for (tool, arguments) in [
        ("Google_SearchEmails", json!({ "query": "x", "account": "bob@example.com" })),
        ("Obo_Connect", json!({ "provider": "google", "account": "bob@example.com" })),
    ] {
        let asked = alice.call(tool, arguments).await;
        let link = link_of(&asked).unwrap_or_else(|| panic!("{asked}"));
        let mut browser = Browser::new();
        let forwarded = obo.press(&mut browser, &link, "alice").await;
        let query: std::collections::BTreeMap<String, String> =
            url::Url::parse(&forwarded).unwrap().query_pairs().into_owned().collect();
        assert_eq!(query["login_hint"], "bob@example.com", "{tool}");
        assert!(browser.get(&link).await.text.contains("<dd>bob@example.com</dd>"), "{tool}");
    }
    let first = obo.client("bob").await.call(SEND, mail("alice@example.com", "x")).await;
    let forwarded = obo.press(&mut Browser::new(), &link_of(&first).unwrap(), "bob").await;
    assert!(!forwarded.contains("login_hint"), "nobody is guessed at: {forwarded}");
}

#[tokio::test]
async fn the_shell_chooses_and_shows_the_default() {
    let (program, provider) = Program::with_provider("").await;
    let run = async |arguments: &[&str]| program.run(&[arguments, &["--user", "alice"]].concat()).await;
    let mut client = program.stdio("alice");
    for account in ["alice@example.com", "bob@example.com"] {
        let asked = client.call("Obo_Connect", json!({ "provider": "google", "another_account": true })).await;
        let mut browser = Browser::new();
        let page = browser.get(&link_of(&asked).unwrap()).await;
        let pressed = browser.submit(&page, &[]).await;
        let back = provider.consent(&pressed.location.unwrap(), account).await.unwrap();
        assert_eq!(browser.get(&back).await.status, 200);
        value_of(&client.call("Obo_Connect", json!({ "provider": "google", "another_account": true })).await);
    }
    let listed = async |arguments: &[&str]| -> Vec<(String, bool)> {
        let ran = run(&[&["connections", "--json"], arguments].concat()).await;
        let rows: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        rows.iter()
            .map(|row| (row["account"].as_str().unwrap().to_owned(), row["default"].as_bool().unwrap()))
            .collect()
    };
    let both = |alices, bobs| vec![("alice@example.com".to_owned(), alices), ("bob@example.com".to_owned(), bobs)];
    assert_eq!(listed(&[]).await, both(false, false));
    let chosen = run(&["connections", "--default", "google=bob@example.com"]).await;
    assert_eq!((chosen.code, chosen.stderr.as_str()), (0, ""), "{chosen:?}");
    assert_eq!(chosen.stdout, "bob@example.com is used where a call names no google account.\n");
    assert_eq!(listed(&[]).await, both(false, true));
    assert!(run(&["connections"]).await.stdout.contains("active, default"));
    assert_eq!(listed(&["--default", "google=ALICE@example.com"]).await, both(true, false));
    value_of(&client.call(SEND, mail("bob@example.com", "x")).await);
    assert_eq!(provider.log().last().unwrap().user.as_deref(), Some("alice@example.com"));

    for (value, code) in [("google", 2), ("google=carol@example.com", 2), ("slack=alice", 1), ("=", 1)] {
        let refused = run(&["connections", "--default", value]).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (code, ""), "{value}: {refused:?}");
    }
    // Another person of that name is another person.
    let other = program
        .run(&["connections", "--default", "google=bob@example.com", "--user", "alice", "--source", "corp"])
        .await;
    assert_eq!(other.code, 1, "{other:?}");
    assert_eq!(listed(&[]).await, both(true, false));
}
