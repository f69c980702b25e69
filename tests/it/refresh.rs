//! Refreshes against the provider at its worst, through the whole of obo. What was lost is the provider's word.

use std::sync::Arc;
use std::time::Duration;

use obo::clock::{Clock as _, ManualClock};
use obo::failure::Code;
use obo::id::{Person, Source, TenantId};
use obo::oauth::{Account, parse_token_answer};
use serde_json::{Value, json};

use crate::evil_provider::{self, EvilProvider, Fault, Rotation};
use crate::support::mcp::{code_of, link_of, value_of};
use crate::support::{Mcp, TestObo};

/// How long its access tokens live, in seconds.
const LIFE: i64 = 3600;

/// How long a replaced token is accepted.
const GRACE: i64 = 30;

struct Bench {
    obo: TestObo,
    evil: EvilProvider,
    alice: Mcp,
}

impl Bench {
    /// An obo whose alice is connected there.
    async fn new(rotation: Rotation) -> Self {
        // The provider's clock is told what obo's says, once there is one.
        let time: Arc<std::sync::OnceLock<Arc<ManualClock>>> = Arc::default();
        let now = Arc::clone(&time);
        let evil = EvilProvider::start(evil_provider::Settings {
            rotation,
            lifetime: LIFE,
            latency: Duration::ZERO,
            now: Box::new(move || now.get().map_or(0, |clock| clock.now().as_millisecond())),
        });
        let evil = evil.await.unwrap();
        let config = format!(
            "[providers.evil]\nclient_id = \"obo\"\nclient_secret = \"evil-secret\"\norigin = {:?}\n",
            evil.origin()
        );
        let obo = TestObo::builder()
            .config(&config)
            .tool("evil/provider.toml", &evil.manifest())
            .tool("evil/who.toml", EvilProvider::tool())
            .start()
            .await;
        time.set(Arc::clone(&obo.clock)).unwrap();
        let alice = obo.client("alice").await;
        let bench = Self { obo, evil, alice };
        bench.connect().await;
        bench
    }

    async fn connect(&self) {
        let person =
            Person { tenant: TenantId::default_tenant(), source: Source::obo(), user: "alice".parse().unwrap() };
        let answer = parse_token_answer(200, self.evil.consent("alice").to_string().as_bytes()).unwrap();
        let account = Account { key: "alice".to_owned(), label: "alice".to_owned() };
        let provider = self.obo.app.catalog.provider("evil").unwrap();
        let scopes = ["who".to_owned()].into();
        self.obo.app.vault.deposit(&person, provider, account, answer, &scopes).await.unwrap();
    }

    async fn who(&self) -> Value {
        self.alice.call("Evil_Who", json!({})).await
    }

    /// The token has ended.
    fn later(&self) {
        self.obo.clock.advance(Duration::from_secs(LIFE as u64));
    }

    fn lost(&self) -> usize {
        self.evil.families().lost()
    }

    fn newest(&self) -> u64 {
        self.evil.families().of("alice").unwrap().newest()
    }
}

#[tokio::test]
async fn each_rotation_is_followed_and_nothing_is_presented_twice() {
    for rotation in [Rotation::Keeps, Rotation::Graced(GRACE * 1000), Rotation::Strict] {
        let bench = Bench::new(rotation).await;
        assert_eq!(value_of(&bench.who().await), json!({ "account": "alice", "generation": 1 }));
        for round in 2..=4 {
            bench.later();
            let generation = if rotation == Rotation::Keeps { 1 } else { round };
            assert_eq!(value_of(&bench.who().await)["generation"], generation, "{rotation:?}");
        }
        let families = bench.evil.families();
        let presented = &families.of("alice").unwrap().presented;
        let expected: &[u32] = if rotation == Rotation::Keeps { &[3] } else { &[1, 1, 1, 0] };
        assert_eq!((presented.as_slice(), families.lost()), (expected, 0));
    }
}

/// What may go wrong after the provider has rotated, where the grace covers it.
#[tokio::test]
async fn an_answer_that_cannot_be_used_costs_nothing_within_the_grace() {
    for fault in [
        Fault::CutAfter,
        Fault::StatusAfter(500, None),
        Fault::StatusAfter(503, Some(1)),
        Fault::Html,
        Fault::Huge,
        Fault::Redirect,
    ] {
        let bench = Bench::new(Rotation::Graced(GRACE * 1000)).await;
        bench.later();
        bench.evil.next([fault.clone()]);
        let mut answer = bench.who().await;
        for _ in 0..3 {
            if answer["isError"] != true {
                break;
            }
            // It says that it comes again, and when.
            assert_eq!(code_of(&answer).as_deref(), Some("provider_unreachable"), "{fault:?}: {answer}");
            bench.obo.clock.advance(Duration::from_secs(2));
            answer = bench.who().await;
        }
        assert_eq!(value_of(&answer)["generation"], 3, "{fault:?}");
        assert_eq!((bench.lost(), bench.evil.planted(), bench.evil.followed()), (0, 0, 0), "{fault:?}");
    }
}

#[tokio::test]
async fn answers_that_are_odd_are_taken_for_what_they_say() {
    for (fault, ends) in [
        (Fault::Drip, true),
        (Fault::Lifetime(None), true),
        (Fault::Lifetime(Some(json!(-1))), true),
        (Fault::Lifetime(Some(json!("3600"))), true),
        (Fault::Lifetime(Some(json!(1e300))), true),
    ] {
        let bench = Bench::new(Rotation::Strict).await;
        bench.later();
        bench.evil.next([fault.clone()]);
        assert_eq!(value_of(&bench.who().await)["generation"], 2, "{fault:?}");
        bench.later();
        assert_eq!(value_of(&bench.who().await)["generation"], if ends { 3 } else { 2 }, "{fault:?}");
        assert_eq!((bench.lost(), bench.evil.planted()), (0, 0), "{fault:?}");
        assert_eq!(bench.evil.families().again(), 0, "{fault:?}");
    }
}

#[tokio::test]
async fn trouble_before_anything_was_done_costs_nothing_at_the_strictest() {
    for fault in [
        Fault::CutBefore,
        Fault::StatusBefore(500, None),
        Fault::StatusBefore(429, Some(7)),
        Fault::Error("temporarily_unavailable"),
        Fault::Error("invalid_client"),
        Fault::Error("unsupported_grant_type"),
    ] {
        let bench = Bench::new(Rotation::Strict).await;
        bench.later();
        bench.evil.next([fault.clone(), fault.clone(), fault.clone()]);
        let mut answer = bench.who().await;
        for _ in 0..6 {
            if answer["isError"] != true {
                break;
            }
            assert!(link_of(&answer).is_none(), "{fault:?}: nobody is asked to connect again: {answer}");
            bench.obo.clock.advance(Duration::from_secs(70));
            answer = bench.who().await;
        }
        assert_eq!(value_of(&answer)["generation"], 2, "{fault:?}");
        assert_eq!((bench.lost(), bench.newest()), (0, 2), "{fault:?}");
    }
}

#[tokio::test]
async fn what_an_answer_repeats_is_told_to_nobody() {
    let bench = Bench::new(Rotation::Graced(GRACE * 1000)).await;
    bench.later();
    bench.evil.next([Fault::Echo]);
    let answer = bench.who().await;
    assert_eq!(code_of(&answer), Some(serde_json::to_value(Code::ProviderError).unwrap().as_str().unwrap().to_owned()));
    for word in ["evil-r.", "evil-a.", "evil-secret", "refresh_token="] {
        assert!(!answer.to_string().contains(word), "{answer}");
        let bytes = bench.obo.data_bytes();
        assert!(!bytes.windows(word.len()).any(|window| window == word.as_bytes()), "{word} is in the data folder");
    }
}

/// The provider's clock runs ahead: it refuses tokens that should be good.
#[tokio::test]
async fn a_token_that_ends_too_early_is_replaced_when_it_is_refused() {
    let bench = Bench::new(Rotation::Strict).await;
    bench.evil.skew((LIFE + 60) * 1000);
    // The new one has ended too, there, so that this call fails, and says why; the connection lives.
    let answer = bench.who().await;
    assert!(answer["isError"] == true, "{answer}");
    bench.evil.skew(0);
    assert_eq!(value_of(&bench.who().await)["generation"], bench.newest());
    assert_eq!(bench.lost(), 0);
    bench.evil.skew((LIFE / 2) * 1000);
    bench.obo.clock.advance(Duration::from_secs(LIFE as u64 * 3 / 5));
    assert_eq!(value_of(&bench.who().await)["account"], "alice");
    assert_eq!((bench.lost(), bench.evil.families().again()), (0, 0));
}

#[tokio::test]
async fn disconnecting_ends_the_family_there() {
    let bench = Bench::new(Rotation::Strict).await;
    bench.later();
    value_of(&bench.who().await);
    let ended = bench.alice.call("Obo_Disconnect", json!({ "provider": "evil" })).await;
    assert_ne!(ended["isError"], true, "{ended}");
    assert_eq!(bench.evil.families().of("alice").unwrap().death, Some(evil_provider::Death::Revoked));
    assert!(link_of(&bench.who().await).is_some());
}
