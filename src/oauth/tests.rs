//! OAuth against a token endpoint that keeps what it was sent, and that can be evil.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use url::Url;

use super::{Account, Oauth, OauthError, Revocation};
use crate::catalog::{Provider, ProviderConfig, parse_provider_manifest};
use crate::egress::stub::{Reply, Stub};
use crate::egress::{self, Egress};
use crate::secret::Secret;

/// A provider whose OAuth stands at `base`; `oauth` is added to `[oauth]`, before the tables in it.
fn provider(base: &Url, oauth: &str) -> Provider {
    provider_with(base, oauth, Some(("the client", Some("s3cret:/&"))))
}

fn provider_with(base: &Url, oauth: &str, client: Option<(&str, Option<&str>)>) -> Provider {
    let manifest = format!(
        r#"
        id = "example"
        name = "Example"
        [servers]
        api = "{base}api"
        [account]
        url = "{base}me"
        key = ".id"
        label = ".email"
        [oauth]
        authorize_url = "{base}authorize?fixed=1"
        token_url = "{base}token"
        {oauth}
        "#
    );
    let mut config = ProviderConfig::default();
    if let Some((id, secret)) = client {
        config.client_id = Some(id.to_owned());
        config.client_secret = secret.map(Secret::new);
    }
    let manifest = parse_provider_manifest(&manifest).unwrap();
    Provider::new(manifest, &config).ok().unwrap()
}

fn oauth(stub: &Stub) -> Oauth {
    Oauth::new(Egress::new(&egress::Config::default(), &[stub.url("/")]).unwrap())
}

fn redirect_uri() -> Url {
    Url::parse("http://127.0.0.1:8787/oauth/callback/example").unwrap()
}

fn scopes(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

async fn idle() -> Stub {
    Stub::start(|_| Reply::json(200, "{}")).await
}

/// The link's parameters; each must occur once.
fn parameters(url: &Url) -> BTreeMap<String, String> {
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let map: BTreeMap<String, String> = pairs.iter().cloned().collect();
    assert_eq!(map.len(), pairs.len(), "{url}");
    map
}

#[tokio::test]
async fn the_link_has_what_the_manifest_says() {
    let stub = idle().await;
    let oauth = oauth(&stub);
    let more = r#"
        base_scopes = ["openid"]
        login_hint_param = "hint"
        authorize_params = { access_type = "offline" }
    "#;
    let state = Secret::new("state-1");
    let ask = |provider: &Provider, challenge, hint| {
        oauth.authorize_url(provider, &redirect_uri(), &state, &scopes(&["b", "a"]), challenge, hint)
    };
    let url = ask(&provider(&stub.url("/"), more), Some("challenge-1"), Some("alice@example.com")).unwrap();
    assert_eq!(url.path(), "/authorize");
    let expected = [
        ("access_type", "offline"),
        ("client_id", "the client"),
        ("code_challenge", "challenge-1"),
        ("code_challenge_method", "S256"),
        ("fixed", "1"),
        ("hint", "alice@example.com"),
        ("redirect_uri", redirect_uri().as_str()),
        ("response_type", "code"),
        ("scope", "a b openid"),
        ("state", "state-1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(parameters(&url), expected.into());
    assert!(!url.as_str().contains("s3cret"));

    // Slack's way: another parameter, another separator, and `scope` must not be there.
    let more = "scope_param = 'user_scope'\nscope_separator = ','";
    let url = ask(&provider(&stub.url("/"), more), None, Some("alice")).unwrap();
    let sent = parameters(&url);
    assert_eq!(sent["user_scope"], "a,b");
    assert!(!["scope", "code_challenge", "code_challenge_method", "login_hint"].iter().any(|n| sent.contains_key(*n)));
    let sent = parameters(&ask(&provider(&stub.url("/"), "scope_separator = ','"), None, None).unwrap());
    assert_eq!(sent["scope"], "a,b");

    let none = oauth.authorize_url(&provider(&stub.url("/"), ""), &redirect_uri(), &state, &scopes(&[]), None, None);
    assert!(!parameters(&none.unwrap()).contains_key("scope"));
    let error = ask(&provider_with(&stub.url("/"), "", None), None, None).unwrap_err();
    assert!(matches!(error, OauthError::InvalidClient(code) if code == "not_configured"));
    assert_eq!(stub.connections(), 0);
}

#[test]
fn a_pkce_challenge_is_the_hash_of_its_verifier() {
    use base64::Engine as _;
    use sha2::Digest as _;
    let (one, two) = (Oauth::pkce(), Oauth::pkce());
    let hash = sha2::Sha256::digest(one.verifier.expose());
    assert_eq!(one.challenge, base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(hash));
    assert!(one.verifier.expose().len() >= 43 && !one.verifier.matches(&two.verifier));
}

#[tokio::test]
async fn a_code_is_exchanged_with_the_client_s_credentials() {
    let answer = r#"{"access_token":"at","token_type":"user","expires_in":"60","refresh_token":"rt","scope":"a,b"}"#;
    let stub = Stub::start(move |_| Reply::json(200, answer)).await;
    let oauth = oauth(&stub);
    let (code, verifier) = (Secret::new("the code"), Secret::new("the verifier"));
    for (more, client) in [
        ("", Some(("the client", Some("s3cret:/&")))),
        ("client_auth = 'basic'", Some(("the client", Some("s3cret:/&")))),
        ("client_auth = 'basic'", Some(("the client", None))),
    ] {
        let provider = provider_with(&stub.url("/"), more, client);
        let answer = oauth.exchange(&provider, &code, Some(&verifier), &redirect_uri()).await.unwrap();
        assert_eq!((answer.access_token.expose(), answer.refresh_token.unwrap().expose()), ("at", "rt"));
        assert_eq!(answer.expires_in, Some(Duration::from_secs(60)));
        assert_eq!(answer.scopes, Some(scopes(&["a", "b"])));
    }
    let asked = stub.asked();
    assert_eq!(asked.len(), 3);
    for asked in &asked {
        assert!(asked.head.starts_with("POST /token HTTP/1.1"));
        assert_eq!(asked.header("accept"), Some("application/json"));
        let form: BTreeMap<_, _> = asked.form().into_iter().collect();
        assert_eq!(form["grant_type"], "authorization_code");
        assert_eq!((form["code"].as_str(), form["code_verifier"].as_str()), ("the code", "the verifier"));
        assert_eq!(form["redirect_uri"], redirect_uri().as_str());
    }
    let form = |number: usize| asked[number].form().into_iter().collect::<BTreeMap<_, _>>();
    assert_eq!((form(0)["client_id"].as_str(), form(0)["client_secret"].as_str()), ("the client", "s3cret:/&"));
    assert_eq!(asked[0].header("authorization"), None);
    // RFC 6749 §2.3.1: "the+client:s3cret%3A%2F%26" in base64; the secret is not in the body too.
    assert_eq!(asked[1].header("authorization"), Some("Basic dGhlK2NsaWVudDpzM2NyZXQlM0ElMkYlMjY="));
    assert!(!form(1).contains_key("client_secret"));
    // A public client only says who it is.
    assert_eq!((form(2)["client_id"].as_str(), asked[2].header("authorization")), ("the client", None));
}

#[tokio::test]
async fn a_refresh_keeps_what_the_answer_does_not_say() {
    let stub = Stub::start(|_| Reply::json(200, r#"{"access_token":"at2"}"#)).await;
    let answer = oauth(&stub).refresh(&provider(&stub.url("/"), ""), &Secret::new("the refresh token")).await.unwrap();
    assert_eq!(answer.access_token.expose(), "at2");
    assert!(answer.refresh_token.is_none() && answer.expires_in.is_none() && answer.scopes.is_none());
    let form: BTreeMap<_, _> = stub.asked()[0].form().into_iter().collect();
    assert_eq!(form["grant_type"], "refresh_token");
    assert_eq!(form["refresh_token"], "the refresh token");
    assert!(!form.contains_key("scope"));
}

#[tokio::test]
async fn answers_of_another_shape_go_through_the_manifest_s_program() {
    let stub = Stub::start(|asked| {
        let good = asked.body.contains("good");
        let answer = if good {
            json!({"ok": true, "access_token": "bot", "authed_user": {"access_token": "user", "scope": "a,b"}})
        } else {
            json!({"ok": false, "error": "invalid_grant"})
        };
        Reply::json(200, answer.to_string())
    })
    .await;
    let provider = provider(&stub.url("/"), "token_answer = 'if .ok then .authed_user else {error} end'");
    let oauth = oauth(&stub);
    let answer = oauth.exchange(&provider, &Secret::new("good"), None, &redirect_uri()).await.unwrap();
    assert_eq!((answer.access_token.expose(), answer.scopes), ("user", Some(scopes(&["a", "b"]))));
    let error = oauth.exchange(&provider, &Secret::new("bad"), None, &redirect_uri()).await.err().unwrap();
    assert!(matches!(error, OauthError::InvalidGrant(_)));
}

#[tokio::test]
async fn evil_answers_are_refused_and_nothing_is_asked_twice() {
    let canary = idle().await;
    let elsewhere = canary.url("/token");
    let stub =
        Stub::start(move |asked| match asked.form().into_iter().find(|(name, _)| name == "code").unwrap().1.as_str() {
            "html" => Reply::Whole(200, "text/html", b"<html>sign in</html>".to_vec()),
            "huge" => Reply::json(200, vec![b' '; 10 << 20]),
            "duplicate" => Reply::json(200, r#"{"access_token":"a","access_token":"b"}"#),
            "redirect" => {
                Reply::Raw(format!("HTTP/1.1 307 X\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\n\r\n").into())
            }
            "500" => Reply::json(500, r#"{"error":"invalid_grant"}"#),
            "drop" => Reply::Raw(Vec::new()),
            "cut" => Reply::Raw(b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{\"access_token\":\"at\"".to_vec()),
            "empty" => Reply::json(200, ""),
            "slow" => Reply::Silence,
            "negative" => Reply::json(200, r#"{"access_token":"at","expires_in":-5}"#),
            "grant" => Reply::json(400, r#"{"error":"invalid_grant","error_description":"code grant of alice"}"#),
            "client" => Reply::json(401, r#"{"error":"invalid_client"}"#),
            "other" => Reply::json(400, r#"{"error":"bad_verification_code"}"#),
            "quotes" => Reply::json(400, r#"{"error":"code quotes and s3cret"}"#),
            _ => unreachable!(),
        })
        .await;
    let mut oauth = oauth(&stub);
    let provider = provider(&stub.url("/"), "");
    let mut connections = 0;
    for (code, expected) in [
        ("html", "the provider's token endpoint did not answer properly (not_json)"),
        ("huge", "the provider's token endpoint did not answer properly (too_large)"),
        ("duplicate", "the provider's token endpoint did not answer properly (not_json)"),
        ("redirect", "the provider's token endpoint did not answer properly (status_307)"),
        ("500", "the provider's token endpoint did not answer properly (status_500)"),
        ("drop", "the provider's token endpoint did not answer properly (connection_broken)"),
        ("cut", "the provider's token endpoint did not answer properly (connection_broken)"),
        ("empty", "the provider's token endpoint did not answer properly (not_json)"),
        ("slow", "the provider's token endpoint did not answer properly (timeout)"),
        ("grant", "the provider no longer accepts this authorization (invalid_grant)"),
        ("client", "the provider does not accept obo's client (invalid_client)"),
        ("other", "the provider refused (bad_verification_code)"),
        ("quotes", "the provider refused (unrecognised_code)"),
    ] {
        oauth.limits.total = if code == "slow" { Duration::from_millis(50) } else { super::LIMITS.total };
        let error = oauth.exchange(&provider, &Secret::new(code), None, &redirect_uri()).await.err().expect(code);
        assert_eq!(error.to_string(), expected);
        connections += 1;
        assert_eq!(stub.connections(), connections, "{code}");
    }
    assert_eq!(canary.connections(), 0);
    let answer = oauth.exchange(&provider, &Secret::new("negative"), None, &redirect_uri()).await.unwrap();
    assert_eq!(answer.expires_in, None);
}

#[tokio::test]
async fn what_was_not_sent_is_told_apart() {
    let stub = idle().await;
    let oauth = oauth(&stub);
    // Not written in the configuration, and private.
    // Bound, so that nobody else gets the port, but not listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let elsewhere = provider(&Url::parse(&format!("http://{}/", socket.local_addr().unwrap())).unwrap(), "");
    let error = oauth.refresh(&elsewhere, &Secret::new("rt")).await.err().unwrap();
    assert!(matches!(error, OauthError::Unavailable(code) if code == "forbidden_address"));
    let unreachable =
        Egress::new(&egress::Config::default(), std::slice::from_ref(&elsewhere.oauth.token_url)).unwrap();
    let error = Oauth::new(unreachable).refresh(&elsewhere, &Secret::new("rt")).await.err().unwrap();
    assert!(matches!(error, OauthError::Unavailable(code) if code == "unreachable"));
    let error = oauth.refresh(&provider_with(&stub.url("/"), "", None), &Secret::new("rt")).await.err().unwrap();
    assert!(matches!(error, OauthError::InvalidClient(_)));
    assert_eq!(stub.connections(), 0);
}

#[tokio::test]
async fn tokens_are_given_back_in_the_provider_s_way() {
    let stub = Stub::start(|asked| {
        let token = match asked.header("authorization") {
            Some(bearer) if bearer.starts_with("Bearer ") => bearer["Bearer ".len()..].to_owned(),
            _ => asked.form().into_iter().find(|(name, _)| name == "token").unwrap().1,
        };
        match token.as_str() {
            "good" => Reply::Whole(200, "text/plain", Vec::new()),
            "gone" => Reply::json(400, r#"{"error":"invalid_token"}"#),
            "no" => Reply::json(200, r#"{"ok":false,"error":"internal_error"}"#),
            "test" => Reply::json(200, r#"{"ok":true,"revoked":false}"#),
            "yes" => Reply::json(200, r#"{"ok":true,"revoked":true}"#),
            "dead" => Reply::json(401, "{}"),
            "drop" => Reply::Raw(Vec::new()),
            _ => Reply::json(503, "{}"),
        }
    })
    .await;
    let oauth = oauth(&stub);
    let with = |more: &str| provider(&stub.url("/"), more);
    let form = with(&format!("revoke = {{ url = '{}' }}", stub.url("/revoke")));
    let basic = with(&format!("client_auth = 'basic'\nrevoke = {{ url = '{}' }}", stub.url("/revoke")));
    let bearer = with(&format!("revoke = {{ url = '{}', style = 'bearer' }}", stub.url("/revoke")));
    for (provider, token, expected) in [
        (&form, "good", Revocation::Revoked),
        (&form, "gone", Revocation::Revoked),
        (&form, "dead", Revocation::Failed),
        (&form, "drop", Revocation::Failed),
        (&form, "other", Revocation::Failed),
        (&basic, "good", Revocation::Revoked),
        (&bearer, "yes", Revocation::Revoked),
        (&bearer, "no", Revocation::Failed),
        (&bearer, "test", Revocation::Failed),
        (&bearer, "dead", Revocation::Revoked),
        (&with(""), "good", Revocation::NotSupported),
    ] {
        assert_eq!(oauth.revoke(provider, &Secret::new(token)).await, expected, "{token}");
    }
    let asked = stub.asked();
    assert_eq!(asked[0].body, "token=good&client_id=the+client&client_secret=s3cret%3A%2F%26");
    assert_eq!(
        (asked[5].body.as_str(), asked[5].header("authorization")),
        ("token=good", Some("Basic dGhlK2NsaWVudDpzM2NyZXQlM0ElMkYlMjY="))
    );
    assert_eq!((asked[6].body.as_str(), asked[6].header("authorization")), ("", Some("Bearer yes")));
    assert_eq!(asked[6].header("content-length"), Some("0"));
    // A token that cannot stand in a header is not sent in any form.
    assert_eq!(oauth.revoke(&bearer, &Secret::new("a\r\nb")).await, Revocation::Failed);
    assert_eq!(stub.connections(), 10);
}

#[tokio::test]
async fn a_grant_is_ended_with_the_client_s_credentials() {
    let stub = Stub::start(|asked| match asked.body.as_str() {
        r#"{"access_token":"good"}"# => Reply::Whole(204, "text/plain", Vec::new()),
        r#"{"access_token":"gone"}"# => Reply::json(422, r#"{"message":"Validation Failed"}"#),
        _ => Reply::json(404, r#"{"message":"Not Found"}"#),
    })
    .await;
    let oauth = oauth(&stub);
    for path in ["/applications", "/applications/"] {
        let revoke = format!("revoke = {{ url = '{}', style = 'application_grant' }}", stub.url(path));
        let ending = provider(&stub.url("/"), &revoke);
        for (token, expected) in
            [("good", Revocation::Revoked), ("gone", Revocation::Revoked), ("other", Revocation::Failed)]
        {
            assert_eq!(oauth.revoke(&ending, &Secret::new(token)).await, expected, "{token}");
        }
        // Without a secret there is nothing to show for it.
        let public = provider_with(&stub.url("/"), &revoke, Some(("the client", None)));
        assert_eq!(oauth.revoke(&public, &Secret::new("good")).await, Revocation::Failed);
    }
    let asked = stub.asked();
    assert_eq!(asked.len(), 6);
    for asked in &asked {
        assert!(asked.head.starts_with("DELETE /applications/the%20client/grant "), "{}", asked.head);
        assert_eq!(asked.header("authorization"), Some("Basic dGhlK2NsaWVudDpzM2NyZXQlM0ElMkYlMjY="));
    }
}

#[tokio::test]
async fn a_provider_that_wants_json_and_a_header_gets_both() {
    let stub = Stub::start(|asked| match asked.path() {
        "/token" => Reply::json(200, r#"{"access_token":"at","token_type":"bearer","refresh_token":"rt"}"#),
        "/me" => Reply::json(200, r#"{"id":"1","email":"a@example.com"}"#),
        _ => Reply::json(200, r#"{"request_id":"x"}"#),
    })
    .await;
    let more = format!(
        "client_auth = 'basic'\ntoken_body = 'json'\nrevoke = {{ url = '{}', style = 'json' }}\n[headers]\nNotion-Version = '2022-06-28'\n",
        stub.url("/revoke")
    );
    let (provider, oauth) = (provider(&stub.url("/"), &more), oauth(&stub));
    let code = Secret::new("the \"code\"&=");
    let answer = oauth.exchange(&provider, &code, None, &redirect_uri()).await.unwrap();
    oauth.refresh(&provider, &answer.refresh_token.unwrap()).await.unwrap();
    oauth.account(&provider, &answer.access_token).await.unwrap();
    assert_eq!(oauth.revoke(&provider, &answer.access_token).await, Revocation::Revoked);

    let asked = stub.asked();
    let body = |number: usize| serde_json::from_str::<serde_json::Value>(&asked[number].body).unwrap();
    let redirect_uri = redirect_uri();
    assert_eq!(
        body(0),
        json!({"grant_type": "authorization_code", "code": "the \"code\"&=", "redirect_uri": redirect_uri})
    );
    assert_eq!(body(1), json!({"grant_type": "refresh_token", "refresh_token": "rt"}));
    assert_eq!(asked[2].header("authorization"), Some("Bearer at"));
    assert_eq!(body(3), json!({"token": "at"}));
    for (number, asked) in asked.iter().enumerate() {
        assert_eq!(asked.header("notion-version"), Some("2022-06-28"), "{}", asked.head);
        assert_eq!(asked.head.to_ascii_lowercase().matches("\r\ncontent-type: ").count(), usize::from(number != 2));
        if number != 2 {
            assert_eq!(asked.header("content-type"), Some("application/json"), "{}", asked.head);
            assert_eq!(asked.header("authorization"), Some("Basic dGhlK2NsaWVudDpzM2NyZXQlM0ElMkYlMjY="));
        }
    }
    // Without a secret there is nothing to show for it.
    let public = provider_with(&stub.url("/"), &more, Some(("the client", None)));
    assert_eq!(oauth.revoke(&public, &answer.access_token).await, Revocation::Failed);
}

#[tokio::test]
async fn the_account_is_asked_for_with_the_new_token() {
    let stub = Stub::start(|asked| match asked.header("authorization").unwrap() {
        "Bearer good" => Reply::json(200, r#"{"id":"42","email":"alice@example.com"}"#),
        "Bearer empty" => Reply::json(200, r#"{"id":"","email":"alice@example.com"}"#),
        "Bearer ugly" => Reply::json(200, r#"{"id":"42","email":"alice\u001b[31m"}"#),
        "Bearer long" => Reply::json(200, json!({"id": "42", "email": "x".repeat(256)}).to_string()),
        "Bearer none" => Reply::json(200, r#"{"ok":false}"#),
        "Bearer html" => Reply::Whole(200, "text/html", b"<html>".to_vec()),
        "Bearer dead" => Reply::json(401, "{}"),
        _ => Reply::json(500, r#"{"id":"42","email":"alice@example.com"}"#),
    })
    .await;
    let oauth = oauth(&stub);
    let mut provider = provider(&stub.url("/"), "");
    let alice = Account { key: "42".to_owned(), label: "alice@example.com".to_owned() };
    assert_eq!(oauth.account(&provider, &Secret::new("good")).await.unwrap(), alice);
    assert!(stub.asked()[0].head.starts_with("GET /me "));
    provider.account.method = crate::catalog::provider::AccountMethod::Post;
    assert_eq!(oauth.account(&provider, &Secret::new("good")).await.unwrap(), alice);
    assert!(stub.asked()[1].head.starts_with("POST /me ") && stub.asked()[1].header("content-length") == Some("0"));
    provider.account.body = Some(r#"{"query":"{viewer{id}}"}"#.to_owned());
    assert_eq!(oauth.account(&provider, &Secret::new("good")).await.unwrap(), alice);
    let with_body = &stub.asked()[2];
    assert_eq!(with_body.header("content-type"), Some("application/json"));
    assert_eq!(with_body.body, r#"{"query":"{viewer{id}}"}"#);
    for (token, code) in [
        ("empty", "no_account"),
        ("ugly", "no_account"),
        ("long", "no_account"),
        ("none", "no_account"),
        ("html", "not_json"),
        ("other", "status_500"),
    ] {
        let error = oauth.account(&provider, &Secret::new(token)).await.unwrap_err();
        assert!(matches!(&error, OauthError::Unavailable(found) if found == code), "{token}: {error}");
    }
    let error = oauth.account(&provider, &Secret::new("dead")).await.unwrap_err();
    assert!(matches!(error, OauthError::Refused(code) if code == "status_401"));
}

#[tokio::test]
async fn the_account_is_learnt_by_introspection() {
    let stub = Stub::start(|asked| match asked.body.starts_with("token=good&") {
        true => Reply::json(200, r#"{"active":true,"token":"good","id":42,"email":"alice@example.com"}"#),
        false => Reply::json(200, r#"{"active":false}"#),
    })
    .await;
    let oauth = oauth(&stub);
    let mut provider = provider(&stub.url("/"), "");
    provider.account.method = crate::catalog::provider::AccountMethod::Introspect;
    let alice = Account { key: "42".to_owned(), label: "alice@example.com".to_owned() };
    assert_eq!(oauth.account(&provider, &Secret::new("good")).await.unwrap(), alice);
    let asked = &stub.asked()[0];
    assert!(asked.head.starts_with("POST /me ") && asked.header("authorization").is_none(), "{}", asked.head);
    assert_eq!(asked.body, "token=good&client_id=the+client&client_secret=s3cret%3A%2F%26");
    let error = oauth.account(&provider, &Secret::new("other")).await.unwrap_err();
    assert!(matches!(error, OauthError::Unavailable(code) if code == "no_account"));
}

#[tokio::test]
async fn no_log_and_no_error_has_a_secret() {
    let stub = Stub::start(|asked| match asked.body.contains("c4nary-code") {
        true => Reply::json(400, r#"{"error":"invalid_grant c4nary-code","error_description":"c4nary-token"}"#),
        false => Reply::json(200, r#"{"access_token":"c4nary-token","refresh_token":"c4nary-refresh"}"#),
    })
    .await;
    let oauth = oauth(&stub);
    let client = Some(("the client", Some("c4nary-secret")));
    let at = |base: Url| {
        let more = format!("client_auth = 'basic'\nrevoke = {{ url = '{base}revoke' }}");
        provider_with(&base, &more, client)
    };
    let (provider, unreachable) = (at(stub.url("/")), at(Url::parse("http://127.0.0.1:1/").unwrap()));
    let (log, errors) = captured(async {
        let secret = |text: &str| Secret::new(text);
        let mut errors = Vec::new();
        errors.extend(
            oauth
                .exchange(&provider, &secret("c4nary-code"), Some(&secret("c4nary-verifier")), &redirect_uri())
                .await
                .err(),
        );
        assert!(oauth.refresh(&provider, &secret("c4nary-refresh")).await.is_ok());
        errors.extend(oauth.refresh(&unreachable, &secret("c4nary-refresh")).await.err());
        errors.extend(oauth.account(&provider, &secret("c4nary-token")).await.err());
        oauth.revoke(&provider, &secret("c4nary-token")).await;
        oauth.revoke(&unreachable, &secret("c4nary-token")).await;
        format!("{errors:?} {}", errors.iter().map(ToString::to_string).collect::<String>())
    })
    .await;
    assert!(log.contains("a revocation got no answer"), "{log}");
    for text in [log, errors] {
        assert!(!text.is_empty() && !text.contains("c4nary"), "{text}");
    }
}

/// Runs a future and gives what was logged meanwhile, at every level.
async fn captured<T>(future: impl Future<Output = T>) -> (String, T) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let result = future.await;
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (text, result)
}

/// The vault refreshes in a task of its own.
#[test]
fn futures_can_be_spawned() {
    fn is_send<T: Send>(_: &T) {}
    fn check(oauth: &Oauth, provider: &Provider, secret: &Secret, url: &Url) {
        is_send(&oauth.exchange(provider, secret, None, url));
        is_send(&oauth.refresh(provider, secret));
        is_send(&oauth.revoke(provider, secret));
        is_send(&oauth.account(provider, secret));
    }
    let _ = check;
}
