//! The stand-in is only worth something if it refuses what the real ones refuse.

use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::{Value, json};

use super::*;

const REDIRECT: &str = "http://127.0.0.1:9/oauth/callback";
const VERIFIER: &str = "a-verifier-of-exactly-forty-three-characters";
/// The S256 challenge of `VERIFIER`; computed apart from this code (openssl).
const CHALLENGE: &str = "3BDUOgg3BCaOLhbdxvKwhrgURus-cJFeDLkTPvQHi6w";
const SEND: &str = "https://www.googleapis.com/auth/gmail.send";
const READ: &str = "https://www.googleapis.com/auth/gmail.readonly";

/// A provider with a clock that a test moves.
struct Bench {
    provider: Provider,
    now: Arc<AtomicI64>,
    http: reqwest::Client,
}

async fn bench(adjust: impl FnOnce(&mut Settings)) -> Bench {
    let now = Arc::new(AtomicI64::new(1_800_000_000));
    let clock = now.clone();
    let mut settings = Settings::new([REDIRECT], move || clock.load(Ordering::SeqCst));
    adjust(&mut settings);
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    Bench { provider: Provider::start(settings).await.unwrap(), now, http }
}

impl Bench {
    fn advance(&self, seconds: i64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    fn google_url(&self, scopes: &str, more: &[(&str, &str)]) -> String {
        let mut url = url::Url::parse(&format!("{}/o/oauth2/v2/auth", self.provider.origin())).unwrap();
        url.query_pairs_mut()
            .append_pair("client_id", "sandbox-google")
            .append_pair("redirect_uri", REDIRECT)
            .append_pair("response_type", "code")
            .append_pair("state", "s t&1")
            .append_pair("access_type", "offline")
            .append_pair("scope", scopes)
            .extend_pairs(more);
        url.into()
    }

    fn slack_url(&self, user_scope: &str) -> String {
        let mut url = url::Url::parse(&format!("{}/oauth/v2/authorize", self.provider.origin())).unwrap();
        url.query_pairs_mut()
            .append_pair("client_id", "sandbox-slack")
            .append_pair("redirect_uri", REDIRECT)
            .append_pair("state", "s")
            .append_pair("user_scope", user_scope);
        url.into()
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> (u16, Value) {
        let answer = self.http.post(format!("{}{path}", self.provider.origin())).form(form).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn exchange(&self, code: &str, more: &[(&str, &str)]) -> (u16, Value) {
        let client = [
            ("grant_type", "authorization_code"),
            ("client_id", "sandbox-google"),
            ("client_secret", Service::Google.client_secret()),
            ("redirect_uri", REDIRECT),
            ("code", code),
        ];
        self.post("/token", &[&client, more].concat()).await
    }

    async fn slack_exchange(&self, code: &str) -> (u16, Value) {
        let request = self.http.post(format!("{}/api/oauth.v2.access", self.provider.origin()));
        let request = request.basic_auth("sandbox-slack", Some(Service::Slack.client_secret()));
        let answer = request.form(&[("code", code), ("redirect_uri", REDIRECT)]).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn refresh(&self, token: &str) -> (u16, Value) {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", "sandbox-google"),
            ("client_secret", Service::Google.client_secret()),
            ("refresh_token", token),
        ];
        self.post("/token", &form).await
    }

    /// Consent and exchange at Google.
    async fn connect(&self, who: &str, scopes: &str, more: &[(&str, &str)]) -> Value {
        let redirect = self.provider.consent(&self.google_url(scopes, more), who).await.unwrap();
        let (status, answer) = self.exchange(&param(&redirect, "code"), &[]).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn api(&self, method: http::Method, path: &str, token: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.provider.origin())).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    async fn userinfo(&self, token: &str) -> (u16, Value) {
        self.api(http::Method::GET, "/v1/userinfo", token, None).await
    }
}

fn param(redirect: &str, name: &str) -> String {
    let url = url::Url::parse(redirect).unwrap();
    url.query_pairs().find(|(n, _)| n == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer[name].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_mail_is_sent_as_the_person_who_agreed() {
    let bench = bench(|_| ()).await;
    let pkce = [("code_challenge", CHALLENGE), ("code_challenge_method", "S256")];
    let url = bench.google_url(&format!("openid email {SEND}"), &pkce);
    let redirect = bench.provider.consent(&url, "alice").await.unwrap();
    assert_eq!(param(&redirect, "state"), "s t&1");
    let (status, answer) = bench.exchange(&param(&redirect, "code"), &[("code_verifier", VERIFIER)]).await;
    assert_eq!((status, answer["expires_in"].as_u64()), (200, Some(3599)));
    assert!(text(&answer, "scope").contains("userinfo.email"), "{answer}");
    let token = text(&answer, "access_token");

    assert_eq!(bench.userinfo(token).await.1["sub"], PEOPLE[0].google_sub);
    // "To: bob@example.com\r\nSubject: hi\r\n\r\nyo", base64url.
    let raw = json!({"raw": "VG86IGJvYkBleGFtcGxlLmNvbQ0KU3ViamVjdDogaGkNCg0KeW8"});
    let (status, sent) = bench.api(http::Method::POST, "/gmail/v1/users/me/messages/send", token, Some(raw)).await;
    assert_eq!((status, &sent["labelIds"][0]), (200, &json!("SENT")));
    let labels = |email: &str| bench.provider.mailbox(email).iter().map(|mail| mail.label).collect::<Vec<_>>();
    assert_eq!((labels("alice@example.com"), labels("bob@example.com")), (vec!["SENT"], vec!["INBOX"]));

    let last = bench.provider.log().pop().unwrap();
    assert_eq!((last.user.as_deref(), last.status, last.performed), (Some("alice@example.com"), 200, true));
    assert!(bench.provider.secrets().contains(token) && bench.provider.secrets().contains(VERIFIER));
}

#[tokio::test]
async fn the_exchange_is_strict() {
    let bench = bench(|_| ()).await;
    let pkce = [("code_challenge", CHALLENGE), ("code_challenge_method", "S256")];
    let code = async |more: &[(&str, &str)]| {
        let url = bench.google_url("openid", more);
        param(&bench.provider.consent(&url, "bob").await.unwrap(), "code")
    };

    let with_challenge = code(&pkce).await;
    assert_eq!(bench.exchange(&with_challenge, &[]).await.0, 400, "a verifier is missing");
    let other = "b".repeat(43);
    assert_eq!(bench.exchange(&with_challenge, &[("code_verifier", &other)]).await.0, 400, "a wrong verifier");
    let plain = code(&[]).await;
    assert_eq!(bench.exchange(&plain, &[("code_verifier", VERIFIER)]).await.0, 400, "a verifier nobody announced");
    let late = code(&[]).await;
    bench.advance(600);
    assert_eq!(bench.exchange(&late, &[]).await.0, 400, "an expired code");

    let twice = code(&[]).await;
    let (_, answer) = bench.exchange(&twice, &[]).await;
    let (status, error) = bench.exchange(&twice, &[]).await;
    assert_eq!((status, text(&error, "error")), (400, "invalid_grant"));
    assert_eq!(bench.userinfo(text(&answer, "access_token")).await.0, 401, "its tokens died with it");
    assert_eq!(bench.provider.families().last().unwrap().ended, Some(Ended::CodeReused));

    let wrong_secret = [("grant_type", "refresh_token"), ("client_id", "sandbox-google"), ("client_secret", "x")];
    assert_eq!(bench.post("/token", &wrong_secret).await.0, 401);
    let repeated = [("grant_type", "refresh_token"), ("grant_type", "refresh_token")];
    assert_eq!(bench.post("/token", &repeated).await.0, 400);
    assert_eq!(bench.provider.token_requests(), 8);
}

#[tokio::test]
async fn the_authorize_page_sends_errors_only_where_they_belong() {
    let bench = bench(|settings| settings.iss = Iss::Own).await;
    let consent = async |url: String| bench.provider.consent(&url, "alice").await;
    let good = bench.google_url("openid", &[]);
    assert!(consent(good.replace("sandbox-google", "somebody")).await.is_err());
    assert!(consent(good.replace("callback", "callback/x")).await.is_err());
    for url in [
        good.replace("response_type=code", "response_type=token"),
        bench.google_url("openid", &[("code_challenge", VERIFIER)]),
        bench.google_url("no-such-scope", &[]),
    ] {
        let redirect = consent(url).await.unwrap();
        assert!(redirect.starts_with(REDIRECT) && !param(&redirect, "error").is_empty(), "{redirect}");
    }
    let denied = bench.provider.consent(&good, "deny").await.unwrap();
    assert_eq!((param(&denied, "error").as_str(), param(&denied, "code").as_str()), ("access_denied", ""));
    assert_eq!(param(&denied, "iss"), bench.provider.origin());
}

#[tokio::test]
async fn tokens_expire_are_revoked_and_carry_scopes() {
    let bench = bench(|_| ()).await;
    let answer = bench.connect("alice", &format!("openid {SEND}"), &[]).await;
    let token = text(&answer, "access_token");
    let (status, error) = bench.api(http::Method::GET, "/gmail/v1/users/me/messages", token, None).await;
    assert_eq!((status, &error["error"]["errors"][0]["reason"]), (403, &json!("insufficientPermissions")));
    assert_eq!(bench.userinfo("ya29.made-up").await.0, 401);
    bench.advance(3599);
    assert_eq!(bench.userinfo(token).await.0, 401);

    let (_, refreshed) = bench.refresh(text(&answer, "refresh_token")).await;
    assert!(refreshed.get("refresh_token").is_none(), "Google keeps the old one");
    assert_eq!(bench.userinfo(text(&refreshed, "access_token")).await.0, 200);
    assert_eq!(bench.post("/revoke", &[("token", text(&refreshed, "access_token"))]).await.0, 200);
    assert_eq!(bench.userinfo(text(&refreshed, "access_token")).await.0, 401);
    assert_eq!(bench.refresh(text(&answer, "refresh_token")).await.0, 400);
    assert_eq!(bench.post("/revoke", &[("token", text(&refreshed, "access_token"))]).await.0, 400);
}

#[tokio::test]
async fn google_adds_scopes_step_by_step_and_lets_people_leave_some_out() {
    let bench = bench(|_| ()).await;
    let first = bench.connect("alice", &format!("openid {SEND}"), &[]).await;
    assert!(first.get("refresh_token").is_some());
    let more = [("include_granted_scopes", "true")];
    let second = bench.connect("alice", &format!("openid {READ}"), &more).await;
    assert!(text(&second, "scope").contains(SEND) && text(&second, "scope").contains(READ));
    assert!(second.get("refresh_token").is_none(), "only the first consent has one");
    let third = bench.connect("alice", "openid", &[("prompt", "consent")]).await;
    assert!(third.get("refresh_token").is_some() && !text(&third, "scope").contains(SEND));

    let url = bench.google_url(&format!("openid {SEND} {READ}"), &[]);
    let redirect = bench.provider.consent_to(&url, "bob", &[READ]).await.unwrap();
    let (_, answer) = bench.exchange(&param(&redirect, "code"), &[]).await;
    assert_eq!(text(&answer, "scope"), format!("{READ} openid"));
}

#[tokio::test]
async fn refresh_tokens_rotate_as_the_mode_says() {
    let grace = Duration::from_secs(30);
    for (mode, survives) in [(RefreshMode::Rotates { grace }, true), (RefreshMode::Strict { grace }, false)] {
        let bench = bench(|settings| settings.google_refresh = mode).await;
        let answer = bench.connect("alice", "openid", &[]).await;
        let old = text(&answer, "refresh_token");
        let (_, next) = bench.refresh(old).await;
        assert_ne!(text(&next, "refresh_token"), old);
        bench.advance(29);
        assert_eq!(bench.refresh(old).await.0, 200, "within the grace period");
        bench.advance(1);
        assert_eq!(bench.refresh(old).await.0, 400, "after it");
        assert_eq!(bench.refresh(text(&next, "refresh_token")).await.0 == 200, survives, "{mode:?}");
        let ended = bench.provider.families()[0].ended;
        assert_eq!(ended, if survives { None } else { Some(Ended::RefreshTokenReused) });
    }
}

#[tokio::test]
async fn slack_answers_as_slack() {
    let bench = bench(|_| ()).await;
    let redirect = bench.provider.consent(&bench.slack_url("chat:write"), "bob").await.unwrap();
    let code = param(&redirect, "code");
    let (_, answer) = bench.slack_exchange(&code).await;
    assert!(answer.get("access_token").is_none(), "no bot was asked for");
    let token = text(&answer["authed_user"], "access_token");

    let message = json!({"channel": "#general", "text": "hello"});
    let (_, posted) = bench.api(http::Method::POST, "/api/chat.postMessage", token, Some(message)).await;
    assert_eq!((&posted["ok"], bench.provider.slack_messages()[0].user), (&json!(true), "bob@example.com"));
    let call = async |path: &str| bench.api(http::Method::GET, path, token, None).await.1;
    assert_eq!(call("/api/conversations.list").await["needed"], "channels:read");
    assert_eq!(call("/api/auth.test").await["user_id"], PEOPLE[1].slack_id);
    assert_eq!(bench.userinfo(token).await.0, 401, "a Slack token means nothing to Google");
    let redirect = bench.provider.consent(&bench.slack_url("channels:read"), "bob").await.unwrap();
    let (_, more) = bench.slack_exchange(&param(&redirect, "code")).await;
    assert_eq!(text(&more["authed_user"], "scope"), "channels:read,chat:write", "scopes add up");
    let list = async |query: &str| {
        let token = text(&more["authed_user"], "access_token");
        bench.api(http::Method::GET, &format!("/api/conversations.list{query}"), token, None).await.1
    };
    assert_eq!(list("?limit=1").await["response_metadata"]["next_cursor"], "1");
    assert_eq!(list("?cursor=1").await["channels"][0]["name"], "random");
    assert_eq!(list("?types=public_channel,private_channel").await["needed"], "groups:read");
    assert_eq!(call("/api/auth.revoke").await["revoked"], true);
    assert_eq!(call("/api/auth.test").await["error"], "token_revoked");
}

#[tokio::test]
async fn faults_happen_as_planted_and_then_stop() {
    let bench = bench(|_| ()).await;
    let answer = bench.connect("alice", &format!("openid {SEND}"), &[]).await;
    let token = text(&answer, "access_token");
    let url = format!("{}/v1/userinfo", bench.provider.origin());
    let get = || bench.http.get(&url).bearer_auth(token).send();

    bench.provider.fault("/v1/userinfo", 1, Fault::Status(503, json!({"error": "down"})));
    assert_eq!(get().await.unwrap().status(), 503);
    assert_eq!(get().await.unwrap().status(), 200);

    bench.provider.fault("/v1/*", 1, Fault::RateLimited(7));
    assert_eq!(get().await.unwrap().headers()[header::RETRY_AFTER], "7");
    bench.provider.fault("/v1/userinfo", 1, Fault::TruncatedJson);
    assert!(get().await.unwrap().json::<Value>().await.is_err());
    bench.provider.fault("/v1/userinfo", 1, Fault::Megabytes(3));
    assert!(get().await.unwrap().json::<Value>().await.unwrap()["pad"].as_str().unwrap().len() == 3 << 20);
    bench.provider.fault("/v1/userinfo", 1, Fault::Redirect("http://127.0.0.1:1/x".to_owned()));
    assert_eq!(get().await.unwrap().status(), 307);
    for encoding in Encoding::ALL {
        bench.provider.fault("/v1/userinfo", 1, Fault::EchoAuthorization(encoding));
        assert!(get().await.unwrap().text().await.unwrap().contains(&encoding.encode(token)), "{encoding:?}");
    }

    let calls = bench.provider.log().len();
    bench.provider.fault("/v1/userinfo", 1, Fault::CutBefore);
    assert!(get().await.is_err());
    bench.provider.fault("/v1/userinfo", 1, Fault::CutAfter);
    assert!(get().await.is_err());
    let cut: Vec<bool> = bench.provider.log()[calls..].iter().map(|call| call.performed).collect();
    assert_eq!(cut, [false, true]);
}

#[tokio::test]
async fn a_gate_holds_a_request_until_it_is_opened() {
    let bench = bench(|_| ()).await;
    let answer = bench.connect("alice", "openid", &[]).await;
    let gate = Gate::new();
    bench.provider.fault("/token", 2, Fault::Hold(gate.clone()));
    let waiting = async { tokio::join!(bench.refresh(text(&answer, "refresh_token")), bench.refresh("unknown")) };
    let opening = async {
        gate.arrived(2).await;
        assert_eq!(bench.provider.families()[0].refreshes, 0, "nothing is performed before the gate opens");
        gate.open();
    };
    let ((good, bad), ()) = tokio::join!(waiting, opening);
    assert_eq!((good.0, bad.0, bench.provider.families()[0].refreshes), (200, 400, 1));
}
