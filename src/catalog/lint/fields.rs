//! Which arguments a jq program reads, as far as that can be told without running it.

use jaq_core::load::lex::{Lexer, StrPart};
use jaq_core::load::parse::{BinaryOp, Parser, Term};
use jaq_core::path::Part;

/// Functions whose arguments read what the function itself reads.
const SAME_INPUT: &[&str] = &["select", "first", "last", "isempty", "error", "limit", "has", "range", "test", "join"];

/// The names of the fields that a program reads of its own input, each with its place in the source. Only those are named
/// that certainly are: what stands behind a `|` reads something else.
pub(super) fn of_input(source: &str) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    if let Ok(tokens) = Lexer::new(source).lex()
        && let Ok(term) = Parser::new(&tokens).parse(|parser| parser.term())
    {
        walk(&term, true, &mut found);
    }
    found.into_iter().map(|name| (name, name.as_ptr() as usize - source.as_ptr() as usize)).collect()
}

/// `at_input`: whether `.` here is the program's own input.
fn walk<'s>(term: &Term<&'s str>, at_input: bool, found: &mut Vec<&'s str>) {
    match term {
        Term::Path(base, path) => {
            if let (Term::Id, true, Some((Part::Index(index), _))) = (&**base, at_input, path.0.first())
                && let Some(name) = plain(index)
            {
                found.push(name);
            }
            walk(base, at_input, found);
            for (part, _) in &path.0 {
                match part {
                    // `.[.key]` reads `.key` of the input, not of what stands before it.
                    Part::Index(term) => walk(term, at_input, found),
                    Part::Range(from, to) => from.iter().chain(to).for_each(|term| walk(term, at_input, found)),
                }
            }
        }
        Term::Obj(entries) => {
            for (key, value) in entries {
                match value {
                    // `{subject}` is short for `{subject: .subject}`.
                    None => found.extend(plain(key).filter(|_| at_input)),
                    Some(value) => {
                        walk(key, at_input, found);
                        walk(value, at_input, found);
                    }
                }
            }
        }
        Term::BinOp(left, BinaryOp::Pipe(pattern), right) => {
            walk(left, at_input, found);
            // `… as $x | …` goes on with what it began with.
            let same = pattern.is_some() || matches!(**left, Term::Id);
            walk(right, at_input && same, found);
        }
        Term::BinOp(left, _, right) => {
            walk(left, at_input, found);
            walk(right, at_input, found);
        }
        Term::Str(_, parts) => {
            for part in parts {
                if let StrPart::Term(term) = part {
                    walk(term, at_input, found);
                }
            }
        }
        Term::Arr(Some(term)) | Term::Neg(term) | Term::Label(_, term) => walk(term, at_input, found),
        Term::Fold(_, source, _, arguments) => {
            walk(source, at_input, found);
            // The first is where it begins; the others read what came of it so far.
            for (index, argument) in arguments.iter().enumerate() {
                walk(argument, at_input && index == 0, found);
            }
        }
        Term::TryCatch(body, handler) => {
            walk(body, at_input, found);
            handler.iter().for_each(|handler| walk(handler, false, found));
        }
        Term::IfThenElse(branches, otherwise) => {
            for (condition, then) in branches {
                walk(condition, at_input, found);
                walk(then, at_input, found);
            }
            otherwise.iter().for_each(|otherwise| walk(otherwise, at_input, found));
        }
        Term::Call(name, arguments) => {
            let same = at_input && SAME_INPUT.contains(name);
            arguments.iter().for_each(|argument| walk(argument, same, found));
        }
        _ => {}
    }
}

/// The text of an index that is nothing but text.
fn plain<'s>(index: &Term<&'s str>) -> Option<&'s str> {
    match index {
        Term::Str(None, parts) => match parts.as_slice() {
            [StrPart::Str(name)] => Some(name),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &str) -> Vec<&str> {
        let found = of_input(source);
        for (name, at) in &found {
            assert!(source[*at..].starts_with(name), "{name} at {at} of {source}");
        }
        found.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn only_what_is_certainly_read_of_the_input_is_named() {
        for (source, expected) in [
            (".a", &["a"][..]),
            (".a.b", &["a"]),
            (".\"a b\" // .c", &["a b", "c"]),
            ("{a, b: .c, \"d\": 1}", &["a", "c"]),
            ("[.a[]? | {email: .x}]", &["a"]),
            (". | .a", &["a"]),
            (".a as $x | .b + $x", &["a", "b"]),
            ("$x.a", &[]),
            (".a | map(.b)", &["a"]),
            ("map(.b)", &[]),
            ("select(.a) | .b", &["a"]),
            ("if .a then .b else .c end", &["a", "b", "c"]),
            ("\"\\(.a) and \\(.b | .c)\"", &["a", "b"]),
            (".[.a]", &["a"]),
            ("reduce .a[] as $x (.b; . + .c)", &["a", "b"]),
            ("[.a, .b] | .[0]", &["a", "b"]),
            ("not jq |", &[]),
        ] {
            assert_eq!(names(source), expected, "{source}");
        }
    }
}
