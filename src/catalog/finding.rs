//! What is wrong in a manifest, where, and how to mend it.

use std::fmt;
use std::ops::Range;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The file cannot be used, and is left out.
    Error,
    /// It can be used, but is probably not what was meant.
    Warning,
    /// It would be better with it.
    Hint,
}

impl Level {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Hint => "hint",
        }
    }
}

/// What is wrong in a manifest, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it weighs.
    pub level: Level,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// The column, from 1 and in characters, where it is known.
    pub column: Option<usize>,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub mend: String,
    place: Place,
}

/// Where to look for the line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Wherever the file first has this key.
    Key(String),
    /// At this path of the document.
    Path(Vec<String>),
    /// At this byte of the text that stands at this path.
    Within(Vec<String>, usize),
}

impl Finding {
    pub(super) fn at(key: &str, reason: String, mend: &str) -> Self {
        Self {
            level: Level::Error,
            line: None,
            column: None,
            reason,
            mend: mend.to_owned(),
            place: Place::Key(key.to_owned()),
        }
    }

    /// At a path of the document: keys, and indices of arrays.
    pub(super) fn at_path(path: &[&str], reason: String, mend: &str) -> Self {
        Self::at("", reason, mend).moved_to(path.iter().map(ToString::to_string).collect())
    }

    pub(super) fn moved_to(self, path: Vec<String>) -> Self {
        Self { place: Place::Path(path), ..self }
    }

    /// `at`: a byte of the text that stands at `path`.
    pub(super) fn moved_within(self, path: Vec<String>, at: usize) -> Self {
        Self { place: Place::Within(path, at), ..self }
    }

    pub(super) fn weighing(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// Looks for the line and the column.
    pub(super) fn located(mut self, text: &str) -> Self {
        if self.line.is_none()
            && let Some(offset) = self.place.offset(text)
        {
            self = self.at_offset(text, offset);
        }
        self
    }

    pub(super) fn at_offset(mut self, text: &str, offset: usize) -> Self {
        let mut end = offset.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &text[..end];
        self.line = Some(before.bytes().filter(|byte| *byte == b'\n').count() + 1);
        self.column = Some(before.rsplit('\n').next().unwrap_or_default().chars().count() + 1);
        self
    }
}

impl Place {
    fn offset(&self, text: &str) -> Option<usize> {
        match self {
            Place::Key(key) => offset_of_key(text, key),
            Place::Path(path) => Some(spans(text, path)?.0.start),
            Place::Within(path, at) => Some(within(text, spans(text, path)?.1?, *at)),
        }
    }
}

/// The first place that sets `key`, or opens a table of that name.
fn offset_of_key(text: &str, key: &str) -> Option<usize> {
    if key.is_empty() {
        return None;
    }
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let left = line.split_once('=').map_or(line, |(left, _)| left);
        let mut at = 0;
        for word in left.trim_end().split(['[', ']', '.', ' ', '"', '\'']) {
            if word == key {
                return Some(start + at);
            }
            at += word.len() + 1;
        }
        start += line.len();
    }
    None
}

/// Where the key and the value at a path stand; of the nearest ancestor, and without a value, where there is no such path.
fn spans(text: &str, path: &[String]) -> Option<(Range<usize>, Option<Range<usize>>)> {
    // Recoverable: the rest of a file with an error in it has places too.
    let (document, _) = DeTable::parse_recoverable(text);
    let mut key = 0..0;
    let mut table = Some(document.get_ref());
    let mut list: Option<&[Spanned<DeValue<'_>>]> = None;
    let mut value = None;
    for part in path {
        let next = match (table, list) {
            (Some(table), _) => table.iter().find(|(name, _)| name.get_ref() == part.as_str()).map(|(name, item)| {
                key = name.span();
                item
            }),
            (None, Some(list)) => part.parse::<usize>().ok().and_then(|index| list.get(index)).inspect(|item| {
                // Of a table in a list this is its header.
                key = item.span();
            }),
            (None, None) => None,
        };
        let Some(item) = next else { return Some((key, None)) };
        value = Some(item.span());
        table = match item.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => None,
        };
        list = match item.get_ref() {
            DeValue::Array(items) => Some(items.as_ref()),
            _ => None,
        };
    }
    Some((key, value))
}

/// The place of the byte `at` of a text value that is written in `span`.
fn within(text: &str, span: Range<usize>, at: usize) -> usize {
    let written = text.get(span.clone()).unwrap_or_default();
    let quotes = ["'''", "\"\"\"", "'", "\""].into_iter().find(|quotes| written.starts_with(quotes));
    let mut start = quotes.map_or(0, str::len);
    // TOML leaves out a line break that follows the opening quotes.
    if start == 3 {
        start += if written[start..].starts_with("\r\n") { 2 } else { usize::from(written[start..].starts_with('\n')) };
    }
    // With escapes before it the place is near enough.
    (span.start + start + at).min(span.end)
}

/// A finding, with its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Problem {
    /// The file; `built-in:` before one that is compiled in; obo.toml for a setting.
    pub file: String,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// The column, from 1, where it is known.
    pub column: Option<usize>,
    /// How much it weighs. What weighs less than an error keeps nothing from being used.
    pub level: Level,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub mend: String,
}

impl Problem {
    pub(super) fn new(file: &str, finding: Finding) -> Self {
        let Finding { level, line, column, reason, mend, .. } = finding;
        Self { file: file.to_owned(), line, column, level, reason, mend }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}; {}", self.reason, self.mend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n\n[[step]]\nbind = 'x'\n[step.request]\nquery.id = '.n |'\n\n[[step]]\n[step.request]\nquery.id = '''\n.a\n  | $no\n'''\n";

    fn place(finding: Finding) -> (Option<usize>, Option<usize>) {
        let finding = finding.located(TEXT);
        (finding.line, finding.column)
    }

    #[test]
    fn places_are_those_of_the_document() {
        let at = |path: &[&str]| place(Finding::at_path(path, String::new(), ""));
        assert_eq!(at(&["a"]), (Some(1), Some(1)));
        assert_eq!(at(&["step", "0", "request", "query", "id"]), (Some(6), Some(7)));
        assert_eq!(at(&["step", "1", "request", "query", "id"]), (Some(10), Some(7)));
        assert_eq!(at(&["step", "1", "request", "url"]).0, Some(9), "the table that lacks it");
        let within = |path: &[&str], at| {
            let path = path.iter().map(ToString::to_string).collect();
            place(Finding::at("", String::new(), "").moved_within(path, at))
        };
        assert_eq!(within(&["step", "0", "request", "query", "id"], 3), (Some(6), Some(16)));
        assert_eq!(within(&["step", "1", "request", "query", "id"], 7), (Some(12), Some(5)));
        assert_eq!(place(Finding::at("bind", String::new(), "")), (Some(4), Some(1)));
        assert_eq!(place(Finding::at("nothing", String::new(), "")), (None, None));
    }
}
