//! The attack matrix of obo's own authorization server. What came of a case is told by what is kept, not by what was
//! answered: no sign-in and no access token that was not there before, and none that was heard is good. After each case the
//! person signs their own client in, as ever. docs/threat-model.md has how many cases each family has.

use std::collections::BTreeSet;
use std::ops::AsyncFnOnce;

use obo::store::{RecordKey, Table};

use crate::support::browser::Page;
use crate::support::oauth_client::{Answer, Begun, CALLBACK, listed, sign_in_with};
use crate::support::{Browser, OauthClient, TestObo};

mod code;
mod consent_page;
mod metadata;
mod mix_up;
mod pkce;
mod redirects;
mod refresh;

const ON: &str = "[authorization_server]\nenabled = true\n";

/// Makes something else of what was right.
type Bend = fn(&str) -> String;

/// A server with a person, alice, who has a client; and mallory, who has one too, and tries things.
struct World {
    obo: TestObo,
    client: OauthClient,
    alice: Browser,
    alices_token: String,
    mallory: Browser,
    evil: OauthClient,
    family: &'static str,
    cases: BTreeSet<String>,
}

/// What is kept.
struct Truth {
    sessions: BTreeSet<String>,
    access: BTreeSet<RecordKey>,
}

/// What the attacker was answered.
#[derive(Default)]
struct Heard(Vec<String>);

impl Heard {
    fn page(&mut self, page: &Page) {
        self.0.push(page.text.clone());
        self.0.extend(page.location.clone());
    }

    /// A page that refuses, and leads nowhere by itself.
    #[track_caller]
    fn refused(&mut self, page: &Page, status: u16) {
        assert_eq!((page.status, &page.location), (status, &None), "{}", page.text);
        assert!(!page.text.contains("value=\"allow\""), "{}", page.text);
        self.page(page);
    }

    #[track_caller]
    fn error(&mut self, answer: &Answer, error: &str) {
        assert_eq!(answer.error(), error, "{}", answer.text);
        assert!([400, 401].contains(&answer.status), "{}", answer.status);
        self.answer(answer);
    }

    fn answer(&mut self, answer: &Answer) {
        self.0.push(answer.text.clone());
    }

    /// The tokens for calls in all of it.
    fn access_tokens(&self) -> Vec<&str> {
        let tokens = self.0.iter().flat_map(|text| text.match_indices("oboa_").map(move |(at, _)| &text[at..]));
        tokens
            .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c)).next().unwrap())
            .collect()
    }
}

impl World {
    async fn of(family: &'static str) -> Self {
        Self::over(family, TestObo::builder().config(ON).start().await).await
    }

    async fn over(family: &'static str, obo: TestObo) -> Self {
        let client = OauthClient::register(&obo.base, "Notes", CALLBACK).await;
        let evil = OauthClient::register(&obo.base, "Notes", "https://evil.example/callback").await;
        let alices_token = obo.token_for("alice").await;
        let (alice, mallory) = (Browser::new(), obo.browser_of("mallory").await);
        Self { obo, client, alice, alices_token, mallory, evil, family, cases: BTreeSet::new() }
    }

    /// A sign-in that alice has allowed her client, and whose code somebody else has seen.
    async fn stolen(&mut self) -> (String, Begun) {
        self.sign_alice_in().await;
        let begun = self.client.begin();
        (self.client.code(&mut self.alice, &begun).await, begun)
    }

    /// Signs her browser in, unless it still is.
    async fn sign_alice_in(&mut self) {
        let url = self.client.begin().url;
        if !self.alice.get(&url).await.text.contains("value=\"allow\"") {
            sign_in_with(&mut self.alice, &self.obo.base, &self.alices_token).await;
        }
    }

    async fn truth(&self) -> Truth {
        let sessions = self.obo.app.obo.identity().clients().list(None).await.unwrap();
        let mut access = BTreeSet::new();
        loop {
            let after = access.last().copied();
            let page = self.obo.app.store.scan(Table::ClientToken, after.as_ref(), 100).await.unwrap();
            access.extend(page.iter().map(|record| record.key));
            if page.len() < 100 {
                break;
            }
        }
        Truth { sessions: sessions.into_iter().map(|session| session.id).collect(), access }
    }

    /// Makes one case, and judges it.
    async fn case(&mut self, name: &str, attack: impl AsyncFnOnce(&mut Self) -> Heard) {
        let name = name.to_owned();
        assert!(self.cases.insert(name.clone()), "{name} was there before");
        // However much time the case before has made pass.
        self.sign_alice_in().await;
        if !self.mallory.get(&self.client.begin().url).await.text.contains("value=\"allow\"") {
            self.mallory = self.obo.browser_of("mallory").await;
        }
        let before = self.truth().await;
        let heard = attack(self).await;
        let after = self.truth().await;
        assert!(after.sessions.is_subset(&before.sessions), "{name}: a client is signed in");
        assert!(after.access.is_subset(&before.access), "{name}: there is an access token");
        for token in heard.access_tokens() {
            assert_eq!(listed(&self.obo.base, token).await, 401, "{name}: a token is good");
        }
        // And her own client gets on.
        self.sign_alice_in().await;
        let own = self.client.sign_in(&mut self.alice).await;
        assert_eq!(listed(&self.obo.base, &own.access).await, 200, "{name}");
        assert_eq!(self.client.revoke(&own.refresh).await.status, 200, "{name}");
        assert_eq!(self.truth().await.sessions, after.sessions, "{name}");
    }

    /// No code was given out for anybody since the last case.
    async fn codes(&self) -> usize {
        self.obo.app.store.scan(Table::AuthorizationCode, None, 1000).await.unwrap().len()
    }

    /// Holds docs/threat-model.md to the cases that were made.
    fn end(self) {
        assert_eq!(told().get(self.family), Some(&self.cases.len()), "{}: docs/threat-model.md", self.family);
    }
}

/// How many cases the document says each family has.
fn told() -> std::collections::BTreeMap<String, usize> {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/threat-model.md")).unwrap();
    let section = document.split("\n## The attack matrix of the authorization server\n").nth(1).unwrap();
    let rows = section.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells.filter_map(|cells| Some((cells[0].to_owned(), cells[1].parse().ok()?))).collect()
}

#[test]
fn every_family_of_the_document_has_its_cases() {
    let families: Vec<String> = told().into_keys().collect();
    let made = [
        code::FAMILY,
        consent_page::FAMILY,
        metadata::FAMILY,
        mix_up::FAMILY,
        pkce::FAMILY,
        redirects::FAMILY,
        refresh::FAMILY,
    ];
    assert_eq!(families.iter().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(made));
    assert_eq!(families.len(), made.len());
}

/// The judge must see what it is there for.
#[tokio::test]
async fn a_case_that_succeeds_is_seen() {
    let local = tokio::task::LocalSet::new();
    local.run_until(what_succeeds()).await;
}

async fn what_succeeds() {
    for gain in ["a sign-in", "a token"] {
        let judged = tokio::task::spawn_local(async move {
            let mut world = World::of("none").await;
            world.sign_alice_in().await;
            let kept = world.client.sign_in(&mut world.alice).await;
            world
                .case(gain, async |world| {
                    let mut heard = Heard::default();
                    if gain == "a sign-in" {
                        world.evil.sign_in(&mut world.alice).await;
                    } else {
                        heard.0.push(format!("x{}\"", kept.access));
                    }
                    heard
                })
                .await;
        });
        assert!(judged.await.unwrap_err().is_panic(), "{gain}");
    }
}
