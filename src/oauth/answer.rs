//! Reads what a token endpoint answered (RFC 6749 §5). Everything in it is hostile until it has passed here.

use std::collections::BTreeSet;
use std::time::Duration;

use http::HeaderValue;
use serde_json::{Map, Value};

use super::{OauthError, TokenAnswer};
use crate::egress::json;
use crate::secret::Secret;

/// Longest token accepted, in bytes. Larger ones do not fit into common limits on header size.
const MAX_TOKEN_BYTES: usize = 16 << 10; // 16 KiB

/// Most scopes in an answer.
const MAX_SCOPES: usize = 1000;

/// Longest name of a scope, in bytes.
const MAX_SCOPE_BYTES: usize = 512;

/// Longest lifetime believed.
const MAX_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60); // ten years

/// Longest wait that is believed.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60); // one day

/// Longest error code kept, in bytes.
const MAX_CODE_BYTES: usize = 64;

/// Reads an answer in the shape of RFC 6749 §5.1 or §5.2.
///
/// # Errors
/// See [`OauthError`]; its text is a code, never part of the body.
pub fn parse_token_answer(status: u16, body: &[u8]) -> Result<TokenAnswer, OauthError> {
    judge(status, &read(status, body)?)
}

/// How long a server asks to wait, in whole seconds (RFC 9110 §10.2.3). A date is not read: it is the server's clock.
pub(super) fn retry_after(header: Option<&HeaderValue>) -> Option<Duration> {
    let seconds: u64 = header?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(MAX_WAIT.as_secs())))
}

/// The JSON of an answer, before a manifest's program has seen it.
pub(super) fn read(status: u16, body: &[u8]) -> Result<Value, OauthError> {
    match status {
        // "Wait" and "come again" are not refusals.
        408 | 425 | 429 => return Err(unavailable(format!("status_{status}"))),
        200..=299 | 400..=499 => {}
        // Redirects are never followed: the request carried a secret. And even with a proper error in it, a 5xx says
        // that the server is not itself.
        _ => return Err(unavailable(format!("status_{status}"))),
    }
    // The content type is not asked: some providers send JSON as text, and HTML does not parse.
    json::parse(body).map_err(|_| unavailable("not_json"))
}

/// Decides what an answer means.
pub(super) fn judge(status: u16, value: &Value) -> Result<TokenAnswer, OauthError> {
    let Value::Object(answer) = value else { return Err(unavailable("not_a_token_answer")) };
    // Some providers report errors with status 200, so the error is looked for first.
    match answer.get("error") {
        None | Some(Value::Null) => {}
        Some(code) => return Err(refusal(&sanitised(code))),
    }
    if !(200..=299).contains(&status) {
        return Err(OauthError::Refused(format!("status_{status}")));
    }
    if let Some(kind) = answer.get("token_type").and_then(Value::as_str)
        // Tokens that need a key or are no access tokens at all (RFC 9449, RFC 8693 §2.2.1). Other names are taken for
        // bearer: providers write "user" or "bot".
        && ["dpop", "mac", "pop", "n_a"].contains(&kind.to_ascii_lowercase().as_str())
    {
        return Err(unavailable("token_type"));
    }
    let access_token = token(answer, "access_token")?.ok_or_else(|| unavailable("no_access_token"))?;
    Ok(TokenAnswer {
        access_token,
        refresh_token: token(answer, "refresh_token")?,
        expires_in: answer.get("expires_in").and_then(lifetime),
        scopes: scopes(answer.get("scope"))?,
    })
}

/// The body that the `oauth2` crate reads without surprises.
pub(super) fn standard(answer: &TokenAnswer) -> Vec<u8> {
    let mut body = Map::new();
    body.insert("access_token".to_owned(), answer.access_token.expose().into());
    body.insert("token_type".to_owned(), "bearer".into());
    if let Some(token) = &answer.refresh_token {
        body.insert("refresh_token".to_owned(), token.expose().into());
    }
    if let Some(lifetime) = answer.expires_in {
        body.insert("expires_in".to_owned(), lifetime.as_secs().into());
    }
    if let Some(scopes) = &answer.scopes {
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        body.insert("scope".to_owned(), scopes.join(" ").into());
    }
    Value::Object(body).to_string().into_bytes()
}

fn unavailable(code: impl Into<String>) -> OauthError {
    OauthError::Unavailable(code.into())
}

/// What an error code means (RFC 6749 §5.2, OpenID Connect Core §3.1.2.6).
fn refusal(code: &str) -> OauthError {
    match code {
        // The last three: the person must be asked again, which is what becomes of a grant that is not good.
        "invalid_grant" | "interaction_required" | "consent_required" | "login_required" => {
            OauthError::InvalidGrant(code.to_owned())
        }
        "invalid_client" | "unauthorized_client" => OauthError::InvalidClient(code.to_owned()),
        "server_error" | "temporarily_unavailable" | "slow_down" => OauthError::Unavailable(code.to_owned()),
        _ => OauthError::Refused(code.to_owned()),
    }
}

/// An error code that may be shown and logged: a description or anything longer never is.
fn sanitised(code: &Value) -> String {
    let code = code.as_str().unwrap_or_default().to_ascii_lowercase();
    let fits = (1..=MAX_CODE_BYTES).contains(&code.len())
        && code.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'));
    if fits { code } else { "unrecognised_code".to_owned() }
}

/// A token: printable ASCII (RFC 6749 appendix A.12, A.17), not empty, not huge. It will stand in a header.
fn token(answer: &Map<String, Value>, name: &str) -> Result<Option<Secret>, OauthError> {
    match answer.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text))
            if (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(|b| matches!(b, 0x21..=0x7e)) =>
        {
            Ok(Some(Secret::new(text.as_str())))
        }
        Some(_) => Err(unavailable(format!("bad_{name}"))),
    }
}

/// Seconds, as a number or as text. What makes no sense is as good as nothing.
fn lifetime(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    // NaN fails both comparisons.
    let sensible = seconds >= 1.0 && seconds <= MAX_LIFETIME.as_secs_f64();
    sensible.then(|| Duration::from_secs(seconds as u64))
}

/// Scopes, divided by spaces (RFC 6749 §3.3) or commas, or a list of them. Whatever cannot be a scope is left out:
/// fewer scopes than granted is the safe side.
fn scopes(value: Option<&Value>) -> Result<Option<BTreeSet<String>>, OauthError> {
    let texts: Vec<&str> = match value {
        Some(Value::String(text)) => text.split([' ', ',']).collect(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).flat_map(|t| t.split([' ', ','])).collect(),
        _ => return Ok(None),
    };
    let is_scope = |text: &&str| {
        (1..=MAX_SCOPE_BYTES).contains(&text.len())
            && text.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
    };
    let scopes: BTreeSet<String> = texts.into_iter().filter(is_scope).map(str::to_owned).collect();
    if scopes.len() > MAX_SCOPES { Err(unavailable("too_many_scopes")) } else { Ok(Some(scopes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<TokenAnswer, OauthError> {
        parse_token_answer(200, body.as_bytes())
    }

    #[test]
    fn an_ordinary_answer_is_read() {
        let answer = parse(
            r#"{"access_token":"at","token_type":"Bearer","expires_in":3599,"refresh_token":"rt","scope":"a b,c  a"}"#,
        );
        let answer = answer.unwrap();
        assert_eq!((answer.access_token.expose(), answer.refresh_token.unwrap().expose()), ("at", "rt"));
        assert_eq!(answer.expires_in, Some(Duration::from_secs(3599)));
        assert_eq!(answer.scopes.unwrap(), ["a", "b", "c"].map(str::to_owned).into());
        let least = parse(r#"{"access_token":"at","refresh_token":null,"error":null}"#).unwrap();
        assert!(least.refresh_token.is_none() && least.expires_in.is_none() && least.scopes.is_none());
        assert_eq!(parse(r#"{"access_token":"at","scope":["x y","z",1]}"#).unwrap().scopes.unwrap().len(), 3);
        assert_eq!(parse(r#"{"access_token":"at","scope":""}"#).unwrap().scopes, Some(BTreeSet::new()));
    }

    #[test]
    fn a_wait_is_asked_for_in_seconds() {
        let read = |text: &str| retry_after(Some(&HeaderValue::from_str(text).unwrap())).map(|wait| wait.as_secs());
        assert_eq!(retry_after(None), None);
        for (text, seconds) in
            [("7", Some(7)), (" 0 ", Some(0)), ("99999999", Some(86_400)), ("-1", None), ("1.5", None), ("soon", None)]
        {
            assert_eq!(read(text), seconds, "{text}");
        }
        assert_eq!(read("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    }

    #[test]
    fn lifetimes_that_make_no_sense_are_none() {
        for (text, seconds) in [
            ("60", Some(60)),
            ("\"60\"", Some(60)),
            ("\" 3600 \"", Some(3600)),
            ("59.9", Some(59)),
            ("315360000", Some(315_360_000)),
            ("315360001", None),
            ("0", None),
            ("-1", None),
            ("\"-5\"", None),
            ("1e300", None),
            ("\"inf\"", None),
            ("\"NaN\"", None),
            ("18446744073709551615", None),
            ("\"soon\"", None),
            ("null", None),
            ("[60]", None),
        ] {
            let answer = parse(&format!(r#"{{"access_token":"at","expires_in":{text}}}"#)).unwrap();
            assert_eq!(answer.expires_in.map(|lifetime| lifetime.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn tokens_that_could_not_stand_in_a_header_are_refused() {
        let huge = format!("\"{}\"", "x".repeat(MAX_TOKEN_BYTES + 1));
        for bad in ["\"\"", "\"a\\nb\"", "\"a\\r\\nX: y\"", "\"a\\u0000\"", "\"é\"", "\"a b\"", "1", "{}", "[]", &huge]
        {
            let access = parse(&format!(r#"{{"access_token":{bad}}}"#)).err().unwrap();
            assert!(matches!(&access, OauthError::Unavailable(code) if code == "bad_access_token"), "{bad:.20}");
            let refresh = parse(&format!(r#"{{"access_token":"at","refresh_token":{bad}}}"#)).err().unwrap();
            assert!(matches!(&refresh, OauthError::Unavailable(code) if code == "bad_refresh_token"), "{bad:.20}");
        }
    }

    #[test]
    fn errors_are_told_apart_whatever_the_status() {
        for status in [200, 400, 401, 403] {
            let code = |code: &str| {
                let body =
                    format!(r#"{{"error":{code},"error_description":"for alice@example.com","access_token":"at"}}"#);
                parse_token_answer(status, body.as_bytes()).err().unwrap()
            };
            assert!(matches!(code("\"invalid_grant\""), OauthError::InvalidGrant(_)));
            assert!(matches!(code("\"interaction_required\""), OauthError::InvalidGrant(_)));
            assert!(matches!(code("\"invalid_client\""), OauthError::InvalidClient(_)));
            assert!(matches!(code("\"unauthorized_client\""), OauthError::InvalidClient(_)));
            assert!(matches!(code("\"temporarily_unavailable\""), OauthError::Unavailable(_)));
            assert!(matches!(code("\"BAD_CODE-1.x\""), OauthError::Refused(code) if code == "bad_code-1.x"));
            for odd in ["\"code secret-123\"", "\"\"", "7", "{\"message\":\"secret\"}", "\"é\"", "\"a\\nb\"", "false"]
            {
                let error = code(odd);
                assert_eq!(error.to_string(), "the provider refused (unrecognised_code)", "{odd}");
            }
            let long = code(&format!("\"{}\"", "x".repeat(65)));
            assert!(!format!("{long} {long:?}").contains("xx"));
            assert!(!format!("{:?}", code("\"invalid_grant\"")).contains("alice"));
        }
    }

    #[test]
    fn what_is_not_an_answer_is_unavailable() {
        let at = r#"{"access_token":"at"}"#;
        let grant = r#"{"error":"invalid_grant"}"#;
        for (status, body) in [
            (200, "<html>sign in</html>"),
            (200, ""),
            (200, "access_token=at&token_type=bearer"),
            (200, r#"{"access_token":"at","access_token":"other"}"#),
            (200, r#"{"access_token":"at""#),
            (200, "[]"),
            (200, "\"at\""),
            (200, "null"),
            (200, "{}"),
            (200, r#"{"access_token":"at","token_type":"DPoP"}"#),
            (302, at),
            (307, grant),
            (304, ""),
            (429, grant),
            (408, grant),
            (500, grant),
            (502, "<html>"),
            (503, at),
            (400, "<html>"),
            (100, at),
            (0, at),
            (999, at),
        ] {
            let error = parse_token_answer(status, body.as_bytes()).err().expect(body);
            assert!(matches!(error, OauthError::Unavailable(_)), "{status} {body}: {error}");
        }
        // A proper refusal without a code is a refusal; a token in it is not taken.
        let error = parse_token_answer(400, at.as_bytes()).err().unwrap();
        assert!(matches!(error, OauthError::Refused(code) if code == "status_400"));
    }

    proptest::proptest! {
        #[test]
        fn any_body_gives_an_answer_or_a_short_code(status: u16, body: Vec<u8>) {
            if let Err(error) = parse_token_answer(status, &body) {
                proptest::prop_assert!(error.to_string().len() < 200);
            }
        }

        #[test]
        fn what_is_accepted_survives_the_standard_shape(
            token in "[!-~]{1,80}", refresh in proptest::option::of("[!-~]{1,80}"), ttl in 1u64..315_360_000,
        ) {
            let body = serde_json::json!({"access_token": token, "refresh_token": refresh, "expires_in": ttl});
            let first = parse_token_answer(200, body.to_string().as_bytes()).unwrap();
            let second = parse_token_answer(200, &standard(&first)).unwrap();
            proptest::prop_assert_eq!(first.access_token.expose(), second.access_token.expose());
            proptest::prop_assert_eq!(
                first.refresh_token.as_ref().map(Secret::expose),
                second.refresh_token.as_ref().map(Secret::expose)
            );
            proptest::prop_assert_eq!(first.expires_in, second.expires_in);
        }
    }
}
