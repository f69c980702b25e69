//! Mail messages for the jq function `rfc5322`: RFC 5322 with MIME (RFC 2045 to 2047, 2231).

use base64::Engine as _;
use mail_builder::MessageBuilder;
use mail_builder::headers::address::Address;
use mail_builder::headers::message_id::MessageId;
use serde::Deserialize;
use serde_json::Value;

use crate::secret;

/// The largest message, in bytes, attachments encoded: what mail providers take at most.
pub const MAX_MESSAGE_BYTES: usize = 25 * 1024 * 1024;
/// The most recipients of one message.
pub const MAX_RECIPIENTS: usize = 100;
/// The most attachments of one message.
pub const MAX_ATTACHMENTS: usize = 50;

/// The longest header value accepted, in bytes.
const MAX_HEADER_BYTES: usize = 998;
/// The right-hand side of message ids. RFC 2606 §2 reserves it, so it belongs to nobody, and it says nothing of the
/// machine that made the message.
const MESSAGE_ID_DOMAIN: &str = "obo.invalid";

/// What `rfc5322` reads.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    #[serde(default)]
    to: Value,
    #[serde(default)]
    cc: Value,
    #[serde(default)]
    bcc: Value,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    html: Option<String>,
    #[serde(default)]
    attachments: Option<Vec<Attachment>>,
    #[serde(default)]
    in_reply_to: Option<String>,
    #[serde(default)]
    references: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attachment {
    filename: String,
    #[serde(default)]
    mime_type: Option<String>,
    content_base64: String,
}

/// Makes a message from `{to, cc, bcc, subject, text, html, attachments: [{filename, mime_type, content_base64}],
/// in_reply_to, references}`. The sender is left to the provider, which knows whose account it is.
///
/// # Errors
/// What is wrong with the input, for the caller; never its text.
pub fn rfc5322(message: &Value) -> Result<Vec<u8>, String> {
    // serde's own texts quote values, and a value may be a whole letter.
    let message: Message = Message::deserialize(message).map_err(|_| {
        "the message needs the keys to, cc, bcc, subject, text, html, attachments, in_reply_to and references, \
         each of its own type"
            .to_owned()
    })?;
    let mut recipients = 0;
    let mut builder = MessageBuilder::new()
        // Its own id, so that a message can be looked for after an answer was lost.
        .message_id(format!("{}@{MESSAGE_ID_DOMAIN}", secret::random_text::<16>()));
    for (field, value) in [("To", &message.to), ("Cc", &message.cc), ("Bcc", &message.bcc)] {
        let addresses = addresses(field, value)?;
        recipients += addresses.len();
        if !addresses.is_empty() {
            builder = builder.header(field, Address::new_list(addresses));
        }
    }
    if recipients == 0 {
        return Err("the message has no recipient; name one in to, cc or bcc".to_owned());
    }
    if recipients > MAX_RECIPIENTS {
        return Err(format!("the message has more than {MAX_RECIPIENTS} recipients"));
    }
    builder = builder.subject(header("subject", message.subject.unwrap_or_default())?);

    let in_reply_to = message.in_reply_to.map(|id| message_id("in_reply_to", &id)).transpose()?;
    let mut references = texts("references", &message.references)?
        .iter()
        .flat_map(|text| text.split_ascii_whitespace())
        .map(|id| message_id("references", id))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(id) = in_reply_to {
        // RFC 5322 §3.6.4: a reply's References end with the id it replies to.
        if references.last() != Some(&id) {
            references.push(id.clone());
        }
        builder = builder.in_reply_to(id);
    }
    if !references.is_empty() {
        builder = builder.references(MessageId::new_list(references.into_iter()));
    }

    let mut size = message.text.as_ref().map_or(0, String::len) + message.html.as_ref().map_or(0, String::len);
    match (message.text, message.html) {
        (text, Some(html)) => {
            builder = builder.html_body(html);
            if let Some(text) = text {
                builder = builder.text_body(text);
            }
        }
        (text, None) => builder = builder.text_body(text.unwrap_or_default()),
    }
    let attachments = message.attachments.unwrap_or_default();
    if attachments.len() > MAX_ATTACHMENTS {
        return Err(format!("the message has more than {MAX_ATTACHMENTS} attachments"));
    }
    for attachment in attachments {
        size = size.saturating_add(attachment.content_base64.len());
        if size > MAX_MESSAGE_BYTES {
            return Err(too_large());
        }
        let content = decode(&attachment.content_base64)
            .ok_or("content_base64 of an attachment is not base64; encode the file's bytes with RFC 4648 base64")?;
        let filename = header("filename", attachment.filename)?;
        let mime_type = mime_type(attachment.mime_type)?;
        builder = builder.attachment(mime_type, filename, content);
    }
    let message = builder.write_to_vec().map_err(|_| "the message could not be written".to_owned())?;
    if message.len() > MAX_MESSAGE_BYTES { Err(too_large()) } else { Ok(message) }
}

fn too_large() -> String {
    let limit = MAX_MESSAGE_BYTES / (1024 * 1024);
    format!("the message is larger than {limit} MB with its attachments encoded; send a link to the file instead")
}

/// A display name and an address, as in `Ana Ng <ana@example.com>`; just an address is enough.
pub(super) fn address(text: &str) -> Option<(Option<String>, String)> {
    let text = text.trim();
    if text.len() > MAX_HEADER_BYTES || text.chars().any(char::is_control) {
        return None;
    }
    let (name, address) = match text.strip_suffix('>') {
        Some(rest) => {
            let (name, address) = rest.rsplit_once('<')?;
            (name.trim(), address)
        }
        None => ("", text),
    };
    let name = match name.strip_prefix('"') {
        Some(quoted) => unquote(quoted.strip_suffix('"')?)?,
        // Unquoted specials would be a second address, a group or a comment (RFC 5322 §3.2.3).
        None if name.contains(['<', '>', '@', ',', ';', ':', '"', '(', ')', '[', ']', '\\']) => return None,
        None => name.to_owned(),
    };
    is_address(address).then(|| ((!name.is_empty()).then_some(name), address.to_owned()))
}

fn unquote(text: &str) -> Option<String> {
    let mut name = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => return None,
            '\\' => name.push(characters.next()?),
            c => name.push(c),
        }
    }
    Some(name)
}

/// Whether a text is a `dot-atom@domain` (RFC 5322 §3.4.1, RFC 5321 §4.5.3.1). Quoted local parts and literal
/// addresses are valid too, but nobody's; refusing them keeps every later reader's view of the domain the same.
fn is_address(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let atom = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b))
    };
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    local.len() <= 64 && domain.len() <= 253 && local.split('.').all(atom) && domain.split('.').all(label)
}

fn addresses<'x>(field: &str, value: &Value) -> Result<Vec<Address<'x>>, String> {
    let field = field.to_lowercase();
    texts(&field, value)?
        .into_iter()
        .enumerate()
        .map(|(i, text)| {
            let (name, address) = address(text).ok_or_else(|| {
                format!(
                    "{field}[{i}] is not one address; write it as ana@example.com or Ana Ng <ana@example.com>, \
                     one for each item"
                )
            })?;
            Ok(Address::new_address(name, address))
        })
        .collect()
}

/// A text, an array of texts, or nothing.
fn texts<'a>(field: &str, value: &'a Value) -> Result<Vec<&'a str>, String> {
    let wrong = || format!("{field} needs a text or an array of texts");
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![text]),
        Value::Array(items) => items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

/// A header's text: a line break in it would begin another header.
fn header(field: &str, text: String) -> Result<String, String> {
    if text.len() > MAX_HEADER_BYTES {
        return Err(format!("{field} is longer than {MAX_HEADER_BYTES} bytes"));
    }
    if text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        return Err(format!("{field} must be one line, without control characters"));
    }
    Ok(text)
}

/// A message id without its angle brackets (RFC 5322 §3.6.4).
fn message_id(field: &str, text: &str) -> Result<String, String> {
    let id = text.trim();
    let id = id.strip_prefix('<').and_then(|id| id.strip_suffix('>')).unwrap_or(id);
    let valid = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && !b"<>@".contains(&b));
    match id.split_once('@') {
        Some((left, right)) if id.len() <= MAX_HEADER_BYTES && valid(left) && valid(right) => Ok(id.to_owned()),
        _ => {
            Err(format!("{field} needs message ids such as <abc@mail.example.com>, as the Message-ID header has them"))
        }
    }
}

fn mime_type(text: Option<String>) -> Result<String, String> {
    let text = text.unwrap_or_else(|| "application/octet-stream".to_owned());
    let part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    // RFC 6838 §4.2. A composite type would be read as structure, not as a file.
    match text.split_once('/') {
        Some((kind, subtype)) if text.len() <= 127 && part(kind) && part(subtype) => {
            let composite = kind.eq_ignore_ascii_case("multipart") || kind.eq_ignore_ascii_case("message");
            Ok(if composite { "application/octet-stream".to_owned() } else { text })
        }
        _ => Err("mime_type of an attachment must be like application/pdf".to_owned()),
    }
}

/// Either alphabet, padded or not: models write all of them.
fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const ANY_PADDING: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, ANY_PADDING);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, ANY_PADDING);
    let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(&compact).or_else(|_| URL_SAFE.decode(&compact)).ok()
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders as _};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_full_message_reads_back_as_it_was_written() {
        let long = "Ein sehr langer Betreff – überall Umlaute äöü und 日本語のテキスト, damit gefaltet werden muss 🎉";
        let raw = rfc5322(&json!({
            "to": ["Jürgen Müller <j@example.com>", "\"Doe, Jane\" <jane@example.org>"],
            "cc": "cc@example.com",
            "bcc": ["b@example.com"],
            "subject": long,
            "text": "Grüße\r\n.\r\nFrom here – ünïcode 日本",
            "html": "<p>Grüße</p>",
            "attachments": [
                {"filename": "Jahresabschluß 2024 – 日本.pdf", "mime_type": "application/pdf", "content_base64": "AAEC/w=="},
                {"filename": "plain.txt", "content_base64": "aGk"},
            ],
            "in_reply_to": "<one@mail.example.com>",
            "references": ["<zero@mail.example.com>"],
        }))
        .unwrap();
        assert!(raw.is_ascii(), "header or body bytes that old relays change");
        let text = String::from_utf8(raw.clone()).unwrap();
        assert!(text.split("\r\n").all(|line| line.len() <= 998 && !line.contains('\n')), "{text}");

        let parsed = MessageParser::new().parse(&raw).unwrap();
        assert_eq!(parsed.subject(), Some(long));
        let to: Vec<_> = parsed.to().unwrap().iter().map(|a| (a.name(), a.address())).collect();
        assert_eq!(to, [(Some("Jürgen Müller"), Some("j@example.com")), (Some("Doe, Jane"), Some("jane@example.org"))]);
        assert_eq!(parsed.cc().unwrap().first().unwrap().address(), Some("cc@example.com"));
        assert_eq!(parsed.bcc().unwrap().first().unwrap().address(), Some("b@example.com"));
        assert_eq!(parsed.in_reply_to().as_text(), Some("one@mail.example.com"));
        let references = parsed.references().as_text_list().unwrap();
        assert_eq!(references, ["zero@mail.example.com", "one@mail.example.com"]);
        assert_eq!(parsed.body_text(0).unwrap().trim_end(), "Grüße\r\n.\r\nFrom here – ünïcode 日本");
        assert_eq!(parsed.body_html(0).unwrap().trim_end(), "<p>Grüße</p>");
        let attachments: Vec<_> =
            parsed.attachments().map(|a| (a.attachment_name().unwrap(), a.contents().to_vec())).collect();
        assert_eq!(attachments[0], ("Jahresabschluß 2024 – 日本.pdf", vec![0, 1, 2, 255]));
        assert_eq!(attachments[1], ("plain.txt", b"hi".to_vec()));
        assert!(parsed.message_id().unwrap().ends_with("@obo.invalid"));
        assert!(parsed.date().is_some());
        assert!(parsed.from().is_none());
    }

    #[test]
    fn a_plain_text_message_is_not_wrapped_in_parts() {
        let raw = rfc5322(&json!({"to": "a@b.example", "subject": "hi", "text": "hello"})).unwrap();
        let text = String::from_utf8(raw).unwrap();
        assert!(text.contains("Content-Type: text/plain"), "{text}");
        assert!(!text.contains("multipart"), "{text}");
    }

    #[test]
    fn two_messages_have_two_ids() {
        let message = json!({"to": "a@b.example", "subject": "hi", "text": "hello"});
        let id = |raw: Vec<u8>| MessageParser::new().parse(&raw).unwrap().message_id().unwrap().to_owned();
        assert_ne!(id(rfc5322(&message).unwrap()), id(rfc5322(&message).unwrap()));
    }

    #[test]
    fn headers_cannot_be_injected() {
        for (key, value) in [
            ("subject", json!("hi\r\nBcc: evil@example.com")),
            ("subject", json!("hi\nBcc: evil@example.com")),
            ("subject", json!("hi\u{0}")),
            ("to", json!("a@b.example\r\nBcc: evil@example.com")),
            ("to", json!("A\r\nBcc: x <a@b.example>")),
            ("to", json!("a@b.example, evil@example.com")),
            ("to", json!("a@b.example <evil@example.com>, x <c@d.example>")),
            ("to", json!("\"a@b.example\" extra <evil@example.com")),
            ("to", json!("a b@c.example")),
            ("to", json!("a@b@c.example")),
            ("to", json!("nobody")),
            ("to", json!("<>")),
            ("to", json!("")),
            ("to", json!([["a@b.example"]])),
            ("to", json!("group: a@b.example;")),
            ("to", json!("a@[127.0.0.1]")),
            ("in_reply_to", json!("<a@b>\r\nBcc: x@y.example")),
            ("in_reply_to", json!("not an id")),
            ("references", json!(["<a@b> <c"])),
            ("attachments", json!([{"filename": "a\r\nX: y", "content_base64": ""}])),
            ("attachments", json!([{"filename": "a", "mime_type": "text/html\r\nX: y", "content_base64": ""}])),
            ("attachments", json!([{"filename": "a", "mime_type": "text/html; charset=x", "content_base64": ""}])),
            ("attachments", json!([{"filename": "a", "content_base64": "!!!"}])),
            ("sender", json!("x")),
        ] {
            let mut message = json!({"to": "a@b.example", "subject": "s", "text": "t"});
            message[key] = value.clone();
            assert!(rfc5322(&message).is_err(), "{key} = {value}");
        }
        assert!(rfc5322(&json!({"subject": "s", "text": "t"})).is_err(), "no recipient");
    }

    #[test]
    fn display_names_cannot_hide_the_address() {
        assert_eq!(
            address("\"x@evil.example\" <y@example.com>"),
            Some((Some("x@evil.example".into()), "y@example.com".into()))
        );
        assert_eq!(address("Ana <ana@example.com>"), Some((Some("Ana".into()), "ana@example.com".into())));
        assert_eq!(address(" ana@example.com "), Some((None, "ana@example.com".into())));
        assert_eq!(address("a@evil.example, b@example.com"), None);
        assert_eq!(address("a@evil.example <b@example.com>"), None);
    }

    #[test]
    fn messages_are_bounded() {
        let big = "A".repeat(MAX_MESSAGE_BYTES + 1);
        let message = json!({"to": "a@b.example", "attachments": [{"filename": "a", "content_base64": big}]});
        assert!(rfc5322(&message).unwrap_err().starts_with("the message is larger than 25 MB"));
        let many: Vec<_> = (0..=MAX_RECIPIENTS).map(|n| format!("a{n}@b.example")).collect();
        assert!(rfc5322(&json!({"to": many})).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives(subject in "[^\\p{Cc}\\p{Zl}\\p{Zp}]{0,80}", text in "[^\\p{Cc}]{0,200}") {
            let subject = subject.trim().to_owned();
            let raw = rfc5322(&json!({"to": "a@b.example", "subject": subject, "text": text})).unwrap();
            let parsed = MessageParser::new().parse(&raw).unwrap();
            let words = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
            proptest::prop_assert_eq!(words(parsed.subject().unwrap_or_default()), words(&subject));
            let body = parsed.body_text(0).unwrap_or_default();
            proptest::prop_assert_eq!(body.trim_end(), text.trim_end());
            proptest::prop_assert!(parsed.bcc().is_none());
        }
    }
}
