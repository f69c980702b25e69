//! Is a form ours? The cookie, the hidden value, and where the browser says it was sent from.

use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap};
use axum::response::Response;

use super::{Pages, message, unavailable};
use crate::consent::BrowserCookie;

/// The browser's cookie, when the form comes from a page that this browser was given by us.
///
/// # Errors
/// The page to show instead: 403, the same for every reason.
pub(super) async fn form(
    pages: &Pages,
    headers: &HeaderMap,
    form: &str,
    value: &str,
) -> Result<BrowserCookie, Response> {
    if !is_same_origin(headers, &pages.base.origin().ascii_serialization()) {
        return Err(refused("it was sent from another site"));
    }
    let Some(cookie) = pages.cookie_of(headers) else { return Err(refused("the browser brought no cookie of ours")) };
    match pages.consent().form_is_ours(&cookie, form, value).await {
        Ok(true) => Ok(cookie),
        Ok(false) => Err(refused("its hidden value is not of this browser and form")),
        Err(failure) => Err(unavailable(&failure)),
    }
}

/// Our own Origin; or, where the browser hides it (our pages have `Referrer-Policy: no-referrer`, so it sends `null`),
/// a `Sec-Fetch-Site` of the same origin, which no script can forge.
fn is_same_origin(headers: &HeaderMap, own: &str) -> bool {
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Some(value.to_str().unwrap_or("?")),
            (None, _) => None,
            (Some(_), Some(_)) => Some("?"),
        }
    };
    match one(header::ORIGIN.as_str()) {
        Some(origin) if origin == own => true,
        None | Some("null") => one("sec-fetch-site") == Some("same-origin"),
        Some(_) => false,
    }
}

/// The same page for every reason; the operator reads which it was.
fn refused(why: &str) -> Response {
    tracing::warn!(why, "a form was refused");
    message(
        StatusCode::FORBIDDEN,
        "bad",
        "This form did not come from here",
        "Nothing was done. Open the link again, in the browser you want to use, with cookies allowed.",
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_origin_counts() {
        let own = "http://127.0.0.1:8787";
        let with = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            is_same_origin(&headers, own)
        };
        assert!(with(&[("origin", own)]));
        assert!(with(&[("origin", "null"), ("sec-fetch-site", "same-origin")]));
        assert!(with(&[("sec-fetch-site", "same-origin")]));
        for bad in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "https://evil.example")],
            &[("origin", "http://127.0.0.1:87870")],
            &[("origin", "http://127.0.0.1")],
            &[("origin", own), ("origin", "https://evil.example")],
            &[("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("origin", "null"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(!with(bad), "{bad:?}");
        }
    }
}
