//! docs/threat-model.md says what holds each promise; this holds the document to it.

use std::collections::BTreeSet;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap()
}

/// All sources below a folder, of a kind.
fn texts(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("node_modules") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| extensions.iter().any(|known| e == *known)) {
                found.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

/// The names of all functions that are tests.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for text in texts("src", &["rs"]).into_iter().chain(texts("tests/it", &["rs"])) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if matches!(line, "#[test]" | "#[tokio::test]") || line.starts_with("#[tokio::test(") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                names.insert(rest.split(['(', '<']).next().unwrap().to_owned());
                is_test = false;
            }
        }
    }
    assert!(names.len() > 200, "only {} tests were found", names.len());
    names
}

/// What stands in back quotes in the cells of the column that is headed "tests", with the first cell of its row.
fn named_tests(document: &str) -> Vec<(String, String)> {
    let mut column = None;
    let mut named = Vec::new();
    for line in document.lines() {
        let Some(row) = line.strip_prefix('|') else {
            column = None;
            continue;
        };
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        match column {
            None => column = cells.iter().position(|cell| *cell == "tests"),
            Some(column) => {
                let cell = cells.get(column).copied().unwrap_or_default();
                named.extend(cell.split('`').skip(1).step_by(2).map(|name| (cells[0].to_owned(), name.to_owned())));
            }
        }
    }
    named
}

/// All `INV-n` of a text.
fn invariants(text: &str) -> BTreeSet<u32> {
    let numbers = text.split("INV-").skip(1).map(|rest| rest.chars().take_while(char::is_ascii_digit));
    numbers.filter_map(|digits| digits.collect::<String>().parse().ok()).collect()
}

#[test]
fn every_test_that_the_document_names_exists() {
    let (document, tests) = (document(), tests());
    let named = named_tests(&document);
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<_> = named.iter().filter(|(_, name)| !tests.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_invariant_is_in_the_code_and_in_the_document() {
    let in_code: BTreeSet<u32> = texts("src", &["rs"]).iter().flat_map(|text| invariants(text)).collect();
    let document = document();
    assert_eq!(in_code, invariants(&document));
    // Each has a row with a test of its own.
    let named = named_tests(&document);
    for number in in_code {
        let row = named
            .iter()
            .any(|(first, name)| *first == format!("INV-{number}") && name.starts_with(&format!("inv_{number}_")));
        assert!(row, "INV-{number} has no test of its own in the document");
    }
}

#[test]
fn every_threat_has_its_row() {
    let document = document();
    for number in 1..=23 {
        let rows = document.lines().filter(|line| line.starts_with(&format!("| T{number} |"))).count();
        assert_eq!(rows, 1, "T{number}");
    }
}

#[test]
fn the_reader_of_the_document_sees_tables() {
    let text = "| x | tests |\n|---|---|\n| T1 | `a_b`, `c_d` |\n\n| x | y |\n|---|---|\n| T2 | `e_f` |\n";
    let named: Vec<_> = named_tests(text).into_iter().map(|(row, name)| format!("{row} {name}")).collect();
    assert_eq!(named, ["T1 a_b", "T1 c_d"]);
    assert_eq!(invariants("INV-1, INV-12 and INV-x"), BTreeSet::from([1, 12]));
}
