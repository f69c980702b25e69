//! A client's metadata document, from whoever a link says: the id on the first line, then what was found there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obo::authorization_server::{Destination, KnownBy, parse_document};

fuzz_target!(|input: &str| {
    let Some((id, body)) = input.split_once('\n') else { return };
    let Ok(client) = parse_document(id, body.as_bytes()) else { return };
    assert_eq!(client.id, id);
    assert!(matches!(&client.known_by, KnownBy::Document { host } if id.contains(host)));
    // It stands on a page.
    assert!(client.name.iter().all(|name| name.chars().count() <= 60 && !name.contains(char::is_control)));
    assert!((1..=16).contains(&client.redirect_uris.len()));
    for destination in &client.redirect_uris {
        assert!(destination.admits(destination));
        assert!(Destination::parse(destination.as_str()).is_ok_and(|again| again == *destination));
        // One word of a Content-Security-Policy.
        // It is still that address when it has the answer.
        let answer = destination.with(&[("code", "a&b"), ("iss", "c")]);
        let added = answer.strip_prefix(destination.as_str());
        assert!(matches!(added, Some("?code=a%26b&iss=c" | "&code=a%26b&iss=c")), "{answer}");
    }
});
