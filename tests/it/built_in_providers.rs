//! What the built-in providers' own words mean: token answers, errors, and how long to wait. What needs an exchange with
//! them stands in `tests/e2e/catalog.test.mjs`.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use obo::catalog::{Catalog, Fault, ProviderConfig, ToolsConfig, Verdict};
use serde_json::{Value, json};

fn catalog() -> Catalog {
    Catalog::load(&ToolsConfig::default(), &Default::default()).unwrap()
}

fn judge(provider: &str, status: u16, headers: &[(&'static str, &'static str)], body: Value) -> Verdict {
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
    let catalog = catalog();
    let provider = catalog.provider(provider).unwrap();
    provider.judge(StatusCode::from_u16(status).unwrap(), &headers, &body).expect("a failure")
}

fn token_answer(provider: &str, answer: Value) -> Value {
    catalog().provider(provider).unwrap().token_answer(answer).unwrap()
}

#[test]
fn a_limit_that_ends_at_a_moment_is_a_wait() {
    const DATE: (&str, &str) = ("date", "Tue, 01 Dec 2026 10:00:00 GMT");
    let github = |headers: &[_]| judge("github", 403, headers, json!({"message": "API rate limit exceeded"}));
    let limited = github(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1796119290"), DATE]);
    assert_eq!((limited.fault, limited.retry_after), (Some(Fault::RateLimited), Some(Duration::from_secs(90))));
    // In the past: it is over.
    let over = github(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1796119100"), DATE]);
    assert_eq!(over.retry_after, Some(Duration::ZERO));
    for undecided in [
        &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1796119290")][..],
        &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "soon"), DATE],
        &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1796119290"), ("date", "1 December")],
        // That header counts, and is read without the manifest.
        &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1796119290"), DATE, ("retry-after", "5")],
    ] {
        let verdict = github(undecided);
        assert_eq!((verdict.fault, verdict.retry_after), (Some(Fault::RateLimited), None), "{undecided:?}");
    }

    let body = json!({"errors": [{"message": "Rate limit exceeded", "extensions": {"code": "RATELIMITED"}}]});
    let linear = |headers: &[_]| judge("linear", 400, headers, body.clone());
    let requests = ("x-ratelimit-requests-reset", "1796119230500");
    let complexity = ("x-ratelimit-complexity-reset", "1796119260000");
    for (headers, wait) in [
        (&[("x-ratelimit-requests-remaining", "0"), requests, complexity, DATE][..], Some(31)),
        (&[("x-ratelimit-complexity-remaining", "0"), requests, complexity, DATE], Some(60)),
        (&[("x-ratelimit-requests-remaining", "0"), requests], None),
        (&[requests, complexity, DATE], None),
    ] {
        let verdict = linear(headers);
        assert_eq!(verdict.fault, Some(Fault::RateLimited), "{headers:?}");
        assert_eq!(verdict.retry_after, wait.map(Duration::from_secs), "{headers:?}");
    }
}

#[test]
fn scopes_that_github_compares_are_compared() {
    let fault = |held: &'static str, accepted: &'static str| {
        judge("github", 404, &[("x-oauth-scopes", held), ("x-accepted-oauth-scopes", accepted)], json!({})).fault
    };
    for (held, accepted) in
        [("", "repo"), ("public_repo", "repo"), ("read:user", "public_repo, repo"), ("rep", "repo:x")]
    {
        assert_eq!(fault(held, accepted), Some(Fault::ScopeMissing), "{held:?} {accepted:?}");
    }
    for (held, accepted) in
        [("repo", "repo"), ("read:user, repo", "public_repo, repo"), ("repo", "repo:status"), ("", "")]
    {
        assert_eq!(fault(held, accepted), Some(Fault::NotFound), "{held:?} {accepted:?}");
    }
    // A GitHub App's token has permissions, and no scopes to compare.
    let app = judge("github", 404, &[("x-accepted-oauth-scopes", "repo")], json!({}));
    assert_eq!(app.fault, Some(Fault::NotFound));
}

#[test]
fn token_answers_get_the_shape_of_the_rfc() {
    let github = |answer| token_answer("github", answer);
    for (said, meant) in [
        ("bad_verification_code", "invalid_grant"),
        ("bad_refresh_token", "invalid_grant"),
        ("incorrect_client_credentials", "invalid_client"),
        ("redirect_uri_mismatch", "redirect_uri_mismatch"),
    ] {
        assert_eq!(github(json!({"error": said}))["error"], meant);
    }
    let oauth_app = json!({"access_token": "gho_x", "scope": "", "token_type": "bearer"});
    assert_eq!(github(oauth_app.clone()), oauth_app, "nothing was granted");
    let app = github(json!({"access_token": "ghu_x", "scope": "", "refresh_token": "ghr_x"}));
    assert_eq!(app, json!({"access_token": "ghu_x", "refresh_token": "ghr_x"}), "as asked");

    let microsoft = token_answer("microsoft", json!({"scope": "https://graph.microsoft.com/Mail.Send User.Read"}));
    assert_eq!(microsoft, json!({"scope": "Mail.Send User.Read"}));
    let hubspot = token_answer("hubspot", json!({"scopes": ["oauth", "crm.objects.deals.read"]}));
    assert_eq!(hubspot["scope"], "oauth crm.objects.deals.read");
}

#[test]
fn the_consent_page_has_words_for_every_scope() {
    // Built-in tools are loaded where there is a client.
    let client = || ProviderConfig { client_id: Some("x".to_owned()), ..Default::default() };
    let clients: BTreeMap<_, _> = catalog().providers().map(|one| (one.id.clone(), client())).collect();
    let catalog = Catalog::load(&ToolsConfig::default(), &clients).unwrap();
    assert_eq!(catalog.problems(), []);
    let mut seen = 0;
    for api in catalog.tools().filter_map(|tool| tool.api()) {
        for scope in api.scopes_any_of.iter().flatten() {
            assert!(api.provider.scopes.contains_key(scope), "{}: {scope}", api.name);
            seen += 1;
        }
    }
    assert!(seen > catalog.providers().count(), "{seen}");
}
