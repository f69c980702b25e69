//! The direction of dependencies, and the few things that may be named in one place only. ARCHITECTURE.md has the ranks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Ranks, lowest first. A module may use those of lower ranks; equal ranks do not know each other, except in the first.
const RANKS: &[&[&str]] = &[
    &["id", "secret", "clock", "failure", "schema", "os_keyring"],
    &["store", "egress"],
    &["keys"],
    &["identity", "catalog"],
    &["policy", "oauth"],
    &["vault", "executor", "audit"],
    &["consent", "authorization_server", "rehearsal", "upkeep"],
    &["call"],
    &["transport"],
    &["config"],
    &["app"],
    &["cli"],
    &["main", "lib"],
];

struct Source {
    path: PathBuf,
    module: String,
    /// Without comments and without the tests at the end.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(&root).unwrap();
                let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                let is_test =
                    inside.file_stem().is_some_and(|s| s == "tests" || s.to_string_lossy().ends_with("_tests"));
                let until = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
                let code = if is_test { "" } else { &text[..until] };
                let code = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                found.push(Source { module: first.trim_end_matches(".rs").to_owned(), path, code });
            }
        }
    }
    assert!(found.len() > 30, "only {} files were found", found.len());
    found
}

/// The first names after `crate::` or, in main.rs, `obo::`.
fn used(code: &str, root: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + root.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            let mut fresh = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        names.push(std::mem::take(&mut word));
                        fresh = true;
                    }
                    c if depth == 0 && fresh && (c.is_alphanumeric() || c == '_') => word.push(c),
                    c if depth == 0 && !word.is_empty() && !c.is_whitespace() => fresh = false,
                    _ => {}
                }
            }
            names.push(word);
        } else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names.retain(|name| name.starts_with(|c: char| c.is_lowercase()));
    names
}

#[test]
fn dependencies_point_down() {
    let rank: BTreeMap<&str, usize> =
        RANKS.iter().enumerate().flat_map(|(i, names)| names.iter().map(move |name| (*name, i))).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let root = if source.module == "main" { "obo::" } else { "crate::" };
        let own = *rank.get(source.module.as_str()).unwrap_or_else(|| panic!("{} has no rank", source.module));
        for name in used(&source.code, root) {
            if name == source.module || (source.module == "lib") {
                continue;
            }
            let other =
                *rank.get(name.as_str()).unwrap_or_else(|| panic!("{}: {name} has no rank", source.path.display()));
            if other > own || (other == own && own != 0) {
                wrong.push(format!("{} uses {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Names that stand in one place only, and where.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("rmcp::", &["transport"]),
    ("axum::", &["transport"]),
    ("Recorded::after_durable_record", &["audit"]),
    ("AccessToken::bind", &["vault"]),
    ("Timestamp::now", &["clock"]),
    ("SystemTime", &["clock"]),
    ("reqwest::Client::builder", &["egress"]),
    ("reqwest::Client::new", &[]),
    ("rusqlite::", &["store"]),
    ("keyring::v1", &["os_keyring"]),
    ("keyring_core::", &["os_keyring"]),
    ("age::", &["keys"]),
    ("jsonwebtoken::", &["identity"]),
    ("oauth2::", &["oauth"]),
];

#[test]
fn what_belongs_in_one_place_stands_there_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, modules) in ONLY_IN {
            let stands = source
                .code
                .match_indices(name)
                .any(|(at, _)| !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            // Nobody's token, for a run that reaches nobody.
            let rehearsed = *name == "AccessToken::bind" && source.path.ends_with("executor/canned.rs");
            if stands && !rehearsed && !modules.contains(&source.module.as_str()) {
                wrong.push(format!("{} names {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Secrets are opened where they are used: sealed, sent to their own party, compared, or shown once to their owner.
#[test]
fn secrets_are_opened_in_few_places() {
    let allowed = [
        "secret",
        "os_keyring",
        "keys",
        "oauth",
        "vault",
        "executor",
        "identity",
        "consent",
        "authorization_server",
        "transport",
        "cli",
        "config",
        "audit",
    ];
    for source in sources() {
        // The database's password, sent to the database.
        if source.path.ends_with("store/postgres/address.rs") {
            continue;
        }
        if source.code.contains(".expose()") {
            assert!(allowed.contains(&source.module.as_str()), "{} opens a secret", source.path.display());
        }
    }
    // Nobody between the call and its stages touches one.
    for module in ["call", "policy", "catalog", "app", "store"] {
        assert!(!allowed.contains(&module));
    }
}

#[test]
fn the_reader_of_paths_sees_groups() {
    assert_eq!(used("use crate::{id::{A, B}, secret, store::X};", "crate::"), ["id", "secret", "store"]);
    assert_eq!(used("crate::call::Obo; mycrate::nothing", "crate::"), ["call"]);
}
