//! Whether a text holds an access token: an answer the one that asked for it (T16).
//!
//! Providers, and the proxies before them, do mirror requests: in debug answers, in error pages, in links. What goes
//! back to the caller goes to a model and into its logs, so a token must not be in it, in any form that somebody could
//! undo: as it is, in base64 at any alignment, in hexadecimal, percent-encoded, or escaped as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem::Finder;
use zeroize::Zeroizing;

/// Shorter tokens are not looked for: they would be found everywhere, and nobody issues them.
const MIN_TOKEN_BYTES: usize = 8;

/// Undoes an encoding.
type Undo = fn(&[u8]) -> Vec<u8>;

/// Looks for one access token.
pub struct Guard {
    /// Each in lower case: they are looked for whatever the case.
    needles: Vec<Zeroizing<Vec<u8>>>,
}

impl Guard {
    /// A guard for `token`.
    pub fn new(token: &str) -> Self {
        let token = token.as_bytes();
        let mut needles = Vec::new();
        if token.len() >= MIN_TOKEN_BYTES {
            needles.push(token.to_vec());
            needles.push(token.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
            for phase in 0..3 {
                needles.push(base64_core(token, phase, |bytes| STANDARD_NO_PAD.encode(bytes)));
                needles.push(base64_core(token, phase, |bytes| URL_SAFE_NO_PAD.encode(bytes)));
            }
        }
        for needle in &mut needles {
            needle.make_ascii_lowercase();
        }
        needles.sort();
        needles.dedup();
        Self { needles: needles.into_iter().map(Zeroizing::new).collect() }
    }

    /// Whether the token is in `bytes` in some form.
    pub fn finds_in(&self, bytes: &[u8]) -> bool {
        if self.needles.is_empty() {
            return false;
        }
        let mut view = Zeroizing::new(bytes.to_ascii_lowercase());
        if self.matches(&view) {
            return true;
        }
        // Forms within forms, as a percent-encoded link in a JSON text: undone one after the other.
        let steps: [(u8, Undo); 4] =
            [(b'\\', unescaped), (b'\\', unescaped), (b'%', percent_decoded), (b'%', percent_decoded)];
        for (mark, undo) in steps {
            if memchr::memchr(mark, &view).is_some() {
                view = Zeroizing::new(undo(&view).to_ascii_lowercase());
                if self.matches(&view) {
                    return true;
                }
            }
        }
        // base64 and hexadecimal are wrapped at some column.
        if view.iter().any(u8::is_ascii_whitespace) {
            view.retain(|byte| !byte.is_ascii_whitespace());
            return self.matches(&view);
        }
        false
    }

    fn matches(&self, view: &[u8]) -> bool {
        self.needles.iter().any(|needle| Finder::new(needle.as_slice()).find(view).is_some())
    }
}

/// The characters of base64 text that `token` alone decides, when `phase` bytes (modulo 3) stand before it.
fn base64_core(token: &[u8], phase: usize, encode: impl Fn(&[u8]) -> String) -> Vec<u8> {
    let padded = Zeroizing::new([&vec![0; phase], token].concat());
    let text = Zeroizing::new(encode(&padded));
    // Six bits a character: leave out those shared with the bytes before and after.
    let first = (phase * 8).div_ceil(6);
    let end = padded.len() * 8 / 6;
    text.as_bytes().get(first..end).unwrap_or_default().to_vec()
}

/// Undoes the escapes of JSON texts (RFC 8259 §7), which `bytes` holds in lower case.
fn unescaped(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escape = if byte == b'\\' { rest.first().copied() } else { None };
        let Some(escape) = escape else {
            plain.push(byte);
            continue;
        };
        rest = &rest[1..];
        match escape {
            b'u' => {
                let code = rest.get(..4).and_then(|hex| u32::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
                match code.and_then(char::from_u32) {
                    Some(c) => {
                        plain.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                        rest = &rest[4..];
                    }
                    None => plain.push(b'u'),
                }
            }
            b'n' | b'r' | b't' | b'b' | b'f' => plain.push(b'\n'),
            other => plain.push(other),
        }
    }
    plain
}

fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    percent_encoding::percent_decode(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "ya29.a0Af_H6SMBx-Q/w~+Zr=9:kL?";

    fn guard() -> Guard {
        Guard::new(TOKEN)
    }

    fn hex(upper: bool) -> String {
        TOKEN.bytes().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect()
    }

    /// Every form, by name.
    fn forms() -> Vec<(String, String)> {
        use base64::engine::general_purpose::{STANDARD, URL_SAFE};
        let mut forms = vec![
            ("raw".to_owned(), TOKEN.to_owned()),
            ("upper case".to_owned(), TOKEN.to_uppercase()),
            ("header".to_owned(), format!("Authorization: Bearer {TOKEN}")),
            ("hex".to_owned(), hex(false)),
            ("HEX".to_owned(), hex(true)),
            ("percent, all".to_owned(), TOKEN.bytes().map(|b| format!("%{b:02X}")).collect()),
            ("percent, lower".to_owned(), TOKEN.bytes().map(|b| format!("%{b:02x}")).collect()),
            (
                "percent, as needed".to_owned(),
                percent_encoding::utf8_percent_encode(TOKEN, percent_encoding::NON_ALPHANUMERIC).to_string(),
            ),
            (
                "percent, twice".to_owned(),
                percent_encoding::utf8_percent_encode(
                    &percent_encoding::utf8_percent_encode(TOKEN, percent_encoding::NON_ALPHANUMERIC).to_string(),
                    percent_encoding::NON_ALPHANUMERIC,
                )
                .to_string(),
            ),
            ("JSON, all".to_owned(), TOKEN.bytes().map(|b| format!("\\u00{b:02x}")).collect()),
            ("JSON, upper".to_owned(), TOKEN.bytes().map(|b| format!("\\u00{b:02X}")).collect()),
            ("JSON, slash".to_owned(), TOKEN.replace('/', "\\/").replace('=', "\\u003d")),
            ("JSON within JSON".to_owned(), TOKEN.replace('/', "\\\\/")),
        ];
        for before in 0..7 {
            for after in 0..4 {
                let mut bytes = vec![b'x'; before];
                bytes.extend_from_slice(TOKEN.as_bytes());
                bytes.extend(std::iter::repeat_n(b'y', after));
                for (name, text) in [
                    ("standard", STANDARD.encode(&bytes)),
                    ("standard, unpadded", STANDARD_NO_PAD.encode(&bytes)),
                    ("url", URL_SAFE.encode(&bytes)),
                    ("url, unpadded", URL_SAFE_NO_PAD.encode(&bytes)),
                ] {
                    forms.push((format!("base64 {name}, {before} before, {after} after"), text));
                }
            }
        }
        forms
    }

    #[test]
    fn every_form_is_found_wherever_it_stands() {
        let guard = guard();
        for (name, form) in forms() {
            for (before, after) in
                [("", ""), ("{\"x\":\"", "\"}"), ("a", "b"), ("%", "%"), ("\\", "\\"), ("\u{fe}=", "==")]
            {
                assert!(guard.finds_in(format!("{before}{form}{after}").as_bytes()), "{name} after {before:?}");
            }
        }
    }

    #[test]
    fn forms_wrapped_at_odd_columns_are_found() {
        let guard = guard();
        for (name, form) in forms().into_iter().filter(|(name, _)| name.contains("base64") || name.contains("ex")) {
            for column in [1, 7, 13] {
                let wrapped: Vec<String> =
                    form.as_bytes().chunks(column).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
                for end in ["\n", "\r\n"] {
                    assert!(guard.finds_in(wrapped.join(end).as_bytes()), "{name} at {column}");
                }
                if column > 1 {
                    assert!(guard.finds_in(wrapped.join("\\r\\n").as_bytes()), "{name} at {column}, escaped");
                }
            }
        }
    }

    #[test]
    fn other_texts_are_not_taken_for_the_token() {
        let guard = guard();
        let mut almost = TOKEN.to_owned();
        almost.pop();
        for text in ["", "hello", &almost, &"\\u".repeat(50), &"%".repeat(50), &"\\".repeat(51), "\\u00", "%zz%4"] {
            assert!(!guard.finds_in(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn large_answers_are_searched() {
        let text = "{\"key\": \"value \\u0041 %41 and more\"},\n".repeat(2 * 1024 * 1024 / 38);
        assert!(!guard().finds_in(text.as_bytes()));
        assert!(guard().finds_in((text + TOKEN).as_bytes()));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            guard().finds_in(&bytes);
        }
    }
}
