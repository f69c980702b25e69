//! The jq programs of manifests: compiled at load, run without side effects, and stopped when they do too much.
//!
//! Manifests are the operator's, but what their programs read is a stranger's: arguments come from a model, answers
//! from a provider. Three walls stand between the two.
//!
//! - **At load** a program may call only what [`FUNCTIONS`] lists. There is no way to the environment, the clock, files
//!   or the log; no `def`, so no recursion of the author's own; no endless generators; no assignment.
//! - **At run** every step is paid for. A program, and the standard definitions it uses, are rewritten so that each
//!   value produced, and the size of each value built or handed to a native function, is taken from a budget in
//!   proportion to the input ([`WORK_BASE`], [`WORK_PER_INPUT_UNIT`], [`WORK_MAX`]). An empty budget ends the run, and
//!   `try` cannot hide it. jq itself cannot be interrupted.
//! - **Depth** is bounded for programs ([`MAX_TERM_DEPTH`]) and values ([`MAX_VALUE_DEPTH`]), so that no input can
//!   exhaust the stack.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::LazyLock;

use jaq_core::box_iter::box_once;
use jaq_core::compile::{Filter, Lut};
use jaq_core::data::HasLut;
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Def, Pattern, Term};
use jaq_core::load::{Arena, File, Lexer, Loader, Parser};
use jaq_core::native::{Fun, bome, v};
use jaq_core::ops::Math;
use jaq_core::path::{Part, Path};
use jaq_core::{Compiler, Ctx, DataT, Error, Exn, Native, RunPtr, ValXs, Vars};
use jaq_json::{Num, Val};
use serde_json::{Map, Value};

use super::mail;

/// The longest program, in bytes.
pub const MAX_SOURCE_BYTES: usize = 8 * 1024;
/// The deepest nesting of a program's terms.
pub const MAX_TERM_DEPTH: usize = 100;
/// The most parts of one path, text or object of a program.
pub const MAX_PARTS: usize = 100;
/// The deepest nesting of a value that a program reads, makes or returns.
pub const MAX_VALUE_DEPTH: usize = 80;
/// Work that every run may do, in units: one for each value produced, and one for each node or 16 bytes of text in a
/// value that is built or handed to a native function.
pub const WORK_BASE: u64 = 250_000;
/// Further work for each unit of the input's own size: a mail with its attachments is taken up some twelve times on its
/// way into a request.
pub const WORK_PER_INPUT_UNIT: u64 = 20;
/// The most work of any run, in units: what the largest mail needs, and a bound on memory for everything else.
pub const WORK_MAX: u64 = 40_000_000;

/// Bytes of text that count as one unit.
const BYTES_PER_UNIT: usize = 16;
/// The largest integer, in bits. Beyond it, squaring in a loop would cost more than the meter sees.
const MAX_INTEGER_BITS: u64 = 4096;
/// What a regular expression costs besides its text: it is compiled each time.
const REGEX_UNITS: u64 = 200;
/// The longest text that `error("…")` passes on, in characters.
const MAX_REFUSAL_CHARS: usize = 300;
/// Bracket depth accepted before the recursive lexer sees the source.
const MAX_BRACKETS: usize = 60;
/// The stack of the thread that lexes, parses and compiles: those recurse once for each prefix operator of a source
/// of [`MAX_SOURCE_BYTES`].
const COMPILE_STACK_BYTES: usize = 256 * 1024 * 1024;

/// What programs may call: name and number of arguments.
///
/// jq's own functions but for `rfc5322`, which makes a mail message (with an id and a date of its own, the one thing here
/// that two runs differ in), and `base64url` (RFC 4648 §5, without padding).
pub const FUNCTIONS: &[(&str, &[usize])] = &[
    ("@base64", &[0]),
    ("@base64d", &[0]),
    ("@html", &[0]),
    ("@json", &[0]),
    ("@text", &[0]),
    ("@uri", &[0]),
    ("abs", &[0]),
    ("add", &[0, 1]),
    ("all", &[0, 1, 2]),
    ("any", &[0, 1, 2]),
    ("arrays", &[0]),
    ("ascii_downcase", &[0]),
    ("ascii_upcase", &[0]),
    ("base64url", &[0]),
    ("booleans", &[0]),
    ("capture", &[1, 2]),
    ("ceil", &[0]),
    ("empty", &[0]),
    ("endswith", &[1]),
    ("error", &[1]),
    ("false", &[0]),
    ("first", &[0, 1]),
    ("flatten", &[0]),
    ("floor", &[0]),
    ("from_entries", &[0]),
    ("fromdate", &[0]),
    ("group_by", &[1]),
    ("gsub", &[2, 3]),
    ("has", &[1]),
    ("isempty", &[1]),
    ("join", &[1]),
    ("keys", &[0]),
    ("last", &[0, 1]),
    ("length", &[0]),
    ("limit", &[2]),
    ("ltrimstr", &[1]),
    ("map", &[1]),
    ("map_values", &[1]),
    ("match", &[1, 2]),
    ("max", &[0]),
    ("max_by", &[1]),
    ("min", &[0]),
    ("min_by", &[1]),
    ("not", &[0]),
    ("null", &[0]),
    ("nulls", &[0]),
    ("numbers", &[0]),
    ("objects", &[0]),
    ("range", &[1, 2, 3]),
    ("reverse", &[0]),
    ("rfc5322", &[0]),
    ("round", &[0]),
    ("rtrimstr", &[1]),
    ("scalars", &[0]),
    ("scan", &[1, 2]),
    ("select", &[1]),
    ("sort", &[0]),
    ("sort_by", &[1]),
    ("split", &[1, 2]),
    ("startswith", &[1]),
    ("strings", &[0]),
    ("sub", &[2, 3]),
    ("test", &[1, 2]),
    ("to_entries", &[0]),
    ("todate", &[0]),
    ("tojson", &[0]),
    ("tonumber", &[0]),
    ("tostring", &[0]),
    ("trim", &[0]),
    ("true", &[0]),
    ("type", &[0]),
    ("unique", &[0]),
    ("unique_by", &[1]),
    ("utf8bytelength", &[0]),
    ("values", &[0]),
    ("with_entries", &[1]),
];

/// Definitions of the standard library that [`FUNCTIONS`] stand on but programs may not call.
const INTERNAL: &[&str] = &[
    "capture_of_match",
    "error",
    "isarray",
    "isboolean",
    "isnumber",
    "isobject",
    "isstring",
    "iterables",
    "recurse",
    "scan_",
];

/// Functions of the standard library that obo replaces by its own.
const REPLACED: &[&str] = &["join", "tonumber", "error"];

/// Native functions that look at no more of their input than its surface.
const SHALLOW: &[&str] = &["first", "has", "last", "length", "limit", "range"];

/// Functions whose first argument is a regular expression.
const REGEX: &[&str] = &["capture", "gsub", "match", "scan", "sub", "test"];

/// Why a program cannot be used. Written for the manifest's author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProgramError(String);

/// Why a run gave no value. None of the texts holds any part of the input, but what the program itself says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The program, or `rfc5322`, refused its input and said why. For the caller.
    #[error("{0}")]
    Refused(String),
    /// The input does not have the shape that the program expects.
    #[error("the program does not fit this input")]
    Failed,
    /// The budget of work is spent.
    #[error("the program would do too much work on this input")]
    TooMuch,
    /// It yields no value or several, where one is needed.
    #[error("the program yields {0} values where one is needed")]
    NotOne(&'static str),
    /// It yields what JSON cannot say, or something too deep.
    #[error("the program yields something that is not JSON ({0})")]
    NotJson(&'static str),
}

/// A compiled program.
pub struct Program {
    filter: Filter<Native<Metered>>,
    variables: usize,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Program")
    }
}

impl Program {
    /// Compiles a program that may read the given variables (names with their `$`).
    ///
    /// # Errors
    /// What is wrong with it, for its author.
    pub fn compile(source: &str, variables: &[&str]) -> Result<Self, ProgramError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(ProgramError(format!("the program is longer than {MAX_SOURCE_BYTES} bytes")));
        }
        if bracket_depth(source) > MAX_BRACKETS {
            return Err(ProgramError(format!("brackets are nested more than {MAX_BRACKETS} deep")));
        }
        let work = || {
            catch_unwind(AssertUnwindSafe(|| compile(source, variables)))
                .unwrap_or_else(|_| Err(ProgramError("the program cannot be compiled".to_owned())))
        };
        if DEEP_STACK.get() {
            return work();
        }
        on_deep_stack(work).unwrap_or_else(|e| Err(ProgramError(format!("no thread to compile in: {e}"))))
    }

    /// Runs the program and returns its one value.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn run(&self, input: &Value, variables: &[&Value]) -> Result<Value, RunError> {
        let mut values = self.values(input, variables, 2)?;
        match (values.pop(), values.pop()) {
            (Some(value), None) => Ok(value),
            (None, _) => Err(RunError::NotOne("no")),
            _ => Err(RunError::NotOne("several")),
        }
    }

    fn values(&self, input: &Value, variables: &[&Value], at_most: usize) -> Result<Vec<Value>, RunError> {
        if variables.len() != self.variables {
            return Err(RunError::Failed);
        }
        let input = to_val(input, 0)?;
        let variables = variables.iter().map(|value| to_val(value, 0)).collect::<Result<Vec<_>, _>>()?;
        let mut units = 0;
        for value in std::iter::once(&input).chain(&variables) {
            units = weigh(value, 0, units, u64::MAX).ok_or(RunError::NotJson("nested too deep"))?;
        }
        let meter = Meter {
            left: Cell::new(units.saturating_mul(WORK_PER_INPUT_UNIT).saturating_add(WORK_BASE).min(WORK_MAX)),
            refusal: RefCell::new(None),
        };
        // The libraries beneath are not ours; a panic in one of them is this program's failure, not the process's.
        catch_unwind(AssertUnwindSafe(|| self.values_within(&meter, input, variables, at_most)))
            .unwrap_or(Err(RunError::Failed))
    }

    fn values_within(
        &self,
        meter: &Meter,
        input: Val,
        variables: Vec<Val>,
        at_most: usize,
    ) -> Result<Vec<Value>, RunError> {
        let run = Run { lut: &self.filter.lut, meter };
        let context = Ctx::<Metered>::new(run, Vars::new(variables));
        let mut values = Vec::new();
        for value in self.filter.id.run((context, input)).take(at_most) {
            let value = value.map_err(|exception| match exception.get_err() {
                Ok(_) => match meter.refusal.take() {
                    Some(text) => RunError::Refused(text),
                    None => RunError::Failed,
                },
                Err(_) => RunError::TooMuch,
            })?;
            values.push(to_json(&value, 0, meter)?);
        }
        Ok(values)
    }
}

thread_local! {
    /// Whether this thread was made to compile programs in.
    static DEEP_STACK: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread in which programs compile where they stand. Elsewhere each of them gets a thread of its own:
/// the parser recurses, so a source of nothing but `-` would exhaust an ordinary stack.
///
/// # Errors
/// There is no such thread to be had.
pub fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn_scoped(scope, || {
            DEEP_STACK.set(true);
            work()
        })?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// The budget of one run.
struct Meter {
    left: Cell<u64>,
    refusal: RefCell<Option<String>>,
}

impl Meter {
    /// Takes `units`; false when there are not so many left.
    fn take(&self, units: u64) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(units));
        units <= left
    }

    /// Takes the size of `value`; false when it is larger than what is left, or too deep.
    fn take_value(&self, value: &Val) -> bool {
        match weigh(value, 0, 0, self.left.get()) {
            Some(units) => self.take(units),
            None => {
                self.left.set(0);
                false
            }
        }
    }
}

/// The size of a value in units, added to `sum`; none when it is too deep, holds too large an integer, or the sum
/// exceeds `limit`. Shared parts count each time, for whoever walks or prints the value meets them each time.
fn weigh(value: &Val, depth: usize, sum: u64, limit: u64) -> Option<u64> {
    let mut sum = sum + 1;
    if sum > limit || depth > MAX_VALUE_DEPTH {
        return None;
    }
    match value {
        Val::Null | Val::Bool(_) => {}
        Val::Num(Num::BigInt(n)) if n.bits() > MAX_INTEGER_BITS => return None,
        Val::Num(Num::Dec(text)) => sum += (text.len() / BYTES_PER_UNIT) as u64,
        Val::Num(_) => {}
        Val::BStr(text) | Val::TStr(text) => sum += (text.len() / BYTES_PER_UNIT) as u64,
        Val::Arr(items) => {
            for item in items.iter() {
                sum = weigh(item, depth + 1, sum, limit)?;
            }
        }
        Val::Obj(entries) => {
            for (key, item) in entries.iter() {
                sum = weigh(key, depth + 1, sum, limit)?;
                sum = weigh(item, depth + 1, sum, limit)?;
            }
        }
    }
    (sum <= limit).then_some(sum)
}

/// What native functions see of a run.
#[derive(Clone, Copy)]
struct Run<'a> {
    lut: &'a Lut<Native<Metered>>,
    meter: &'a Meter,
}

/// Runs over jq values with a [`Meter`].
struct Metered;

impl DataT for Metered {
    type V<'a> = Val;
    type Data<'a> = Run<'a>;
}

impl<'a> HasLut<'a, Metered> for Run<'a> {
    fn lut(&self) -> &'a Lut<Native<Metered>> {
        self.lut
    }
}

fn compile(source: &str, variables: &[&str]) -> Result<Program, ProgramError> {
    let mut term = parse(source)?;
    check(&term, 0)?;
    term = metered(term);

    let prelude = needed(&term).into_iter();
    // jaq gives no way to hand over a parsed program, but takes parsed definitions: so the program is one of them.
    let main = Def { name: MAIN, args: Vec::new(), body: term };
    let arena = Arena::default();
    let modules = Loader::new(prelude.chain([main]))
        .load(&arena, File { code: MAIN, path: () })
        .map_err(|_| ProgramError("the program cannot be loaded".to_owned()))?;
    let filter =
        Compiler::default().with_funs(natives()).with_global_vars(variables.iter().copied()).compile(modules).map_err(
            |errors| {
                let undefined = errors.iter().flat_map(|(_, e)| e).map(|(name, _)| *name).next().unwrap_or("something");
                ProgramError(format!("{undefined:?} is not defined here"))
            },
        )?;
    Ok(Program { filter, variables: variables.len() })
}

/// The name that a program gets; none can call it.
const MAIN: &str = "obo_main";

/// A standard definition, rewritten, and what it calls.
struct Standard {
    def: Def<&'static str>,
    calls: HashSet<&'static str>,
}

static PRELUDE: LazyLock<Vec<Standard>> = LazyLock::new(|| {
    let rewritten = |def: Def<&'static str>| {
        let def = Def { body: metered(def.body), name: def.name, args: def.args };
        let mut calls = HashSet::new();
        collect_calls(&def.body, &mut calls);
        Standard { def, calls }
    };
    standard_definitions().into_iter().map(rewritten).collect()
});

/// The standard definitions that a program needs, in their order. Each program gets compiled copies of its own, so all
/// of them in every program would cost more than the programs do.
fn needed<'s>(term: &Term<&'s str>) -> Vec<Def<&'s str>> {
    let mut called = HashSet::new();
    collect_calls(term, &mut called);
    let mut needed = Vec::new();
    // A definition calls itself and earlier ones, so from the last to the first one walk meets them all.
    for standard in PRELUDE.iter().rev() {
        // By name alone: of two with one name, both.
        if called.contains(standard.def.name) {
            called.extend(&standard.calls);
            needed.push(standard.def.clone());
        }
    }
    needed.reverse();
    needed
}

fn collect_calls<'s>(term: &Term<&'s str>, names: &mut HashSet<&'s str>) {
    if let Term::Call(name, _) | Term::Str(Some(name), _) = term {
        names.insert(name);
    }
    children(term, &mut |child| collect_calls(child, names));
}

fn parse(source: &str) -> Result<Term<&str>, ProgramError> {
    let tokens = Lexer::new(source).lex().map_err(|errors| {
        let at = errors.first().map_or("", |(_, rest)| rest);
        ProgramError(format!("the program has a token that is not jq near {:?}", excerpt(at)))
    })?;
    Parser::new(&tokens).parse(|p| p.term()).map_err(|errors| match errors.first() {
        Some((expected, found)) => {
            let found = found.map_or_else(|| "the end".to_owned(), |token| format!("{:?}", excerpt(token.0)));
            ProgramError(format!("expected {}, found {found}", expected.as_str()))
        }
        None => ProgramError("the program is not jq".to_owned()),
    })
}

fn excerpt(text: &str) -> String {
    text.chars().take(30).collect()
}

fn bracket_depth(source: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Refuses what a program may not do.
fn check(term: &Term<&str>, depth: usize) -> Result<(), ProgramError> {
    if depth > MAX_TERM_DEPTH {
        return Err(ProgramError(format!("the program is nested more than {MAX_TERM_DEPTH} deep")));
    }
    let refuse = |what: &str| Err(ProgramError(what.to_owned()));
    match term {
        Term::BinOp(_, BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt, _) => {
            refuse("assignment (=, |=, +=, …) is not available; build a new value, as in '. + {key: 1}'")?;
        }
        Term::Def(..) => refuse("def is not available: a program must not recurse")?,
        Term::Call(name, arguments) => check_call(name, arguments)?,
        Term::Str(Some(format), _) => check_call(format, &[])?,
        _ => {}
    }
    // jaq runs the parts of a path, a text or an object one inside the other.
    let parts = match term {
        Term::Path(_, path) => path.0.len(),
        Term::Str(_, parts) => parts.len(),
        Term::Obj(entries) => entries.len(),
        _ => 0,
    };
    if parts > MAX_PARTS {
        return refuse(&format!("a path, a text or an object of the program has more than {MAX_PARTS} parts"));
    }
    let mut outcome = Ok(());
    children(term, &mut |child| {
        if outcome.is_ok() {
            outcome = check(child, depth + 1);
        }
    });
    outcome
}

fn check_call(name: &str, arguments: &[Term<&str>]) -> Result<(), ProgramError> {
    let listed = FUNCTIONS.iter().find(|(known, _)| *known == name);
    match listed {
        Some((_, arities)) if arities.contains(&arguments.len()) => {}
        Some((_, arities)) => {
            return Err(ProgramError(format!("{name} takes {} arguments here", join_numbers(arities))));
        }
        None => {
            let known = FUNCTIONS.iter().map(|(known, _)| *known);
            let mend = crate::schema::nearest(name, known).map(|n| format!("; did you mean {n}?")).unwrap_or_default();
            return Err(ProgramError(format!("the function {name:?} is not available{mend}")));
        }
    }
    // A pattern from data could be made to cost more than the meter sees; one written here was seen by its author.
    let pattern = REGEX.contains(&name) || (name == "split" && arguments.len() == 2);
    if pattern && !arguments.first().and_then(literal).is_some_and(|pattern| is_plain_pattern(&pattern)) {
        let reason = format!("the pattern of {name} must be written as text, with no flags but i, m, s and x in it");
        return Err(ProgramError(reason));
    }
    Ok(())
}

/// The text of a term that is nothing but text.
fn literal(term: &Term<&str>) -> Option<String> {
    let Term::Str(None, parts) = term else { return None };
    let mut text = String::new();
    for part in parts {
        match part {
            StrPart::Str(part) => text.push_str(part),
            StrPart::Char(c) => text.push(*c),
            StrPart::Term(_) => return None,
        }
    }
    Some(text)
}

/// Whether a pattern leaves the engine's view of its input alone: with the flag `u` off a match may split a character,
/// which the library around the engine does not expect.
fn is_plain_pattern(pattern: &str) -> bool {
    pattern.split("(?").skip(1).all(|group| {
        let after_flags = group.trim_start_matches(['i', 'm', 's', 'x']);
        group.starts_with(['<', ':']) || group.starts_with("P<") || after_flags.starts_with([':', ')'])
    })
}

fn join_numbers(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ")
}

/// Calls `f` with each term directly within `term`.
fn children<'t, 's>(term: &'t Term<&'s str>, f: &mut dyn FnMut(&'t Term<&'s str>)) {
    match term {
        Term::Id | Term::Recurse | Term::Num(_) | Term::Var(_) | Term::Break(_) | Term::Arr(None) => {}
        Term::Str(_, parts) => {
            for part in parts {
                if let StrPart::Term(term) = part {
                    f(term);
                }
            }
        }
        Term::Arr(Some(term)) | Term::Neg(term) | Term::Label(_, term) => f(term),
        Term::Obj(entries) => {
            for (key, value) in entries {
                f(key);
                value.iter().for_each(&mut *f);
            }
        }
        Term::BinOp(left, operator, right) => {
            f(left);
            if let BinaryOp::Pipe(Some(pattern)) = operator {
                pattern_terms(pattern, f);
            }
            f(right);
        }
        Term::Fold(_, source, pattern, arguments) => {
            f(source);
            pattern_terms(pattern, f);
            arguments.iter().for_each(f);
        }
        Term::TryCatch(body, handler) => {
            f(body);
            handler.iter().for_each(|handler| f(handler));
        }
        Term::IfThenElse(branches, otherwise) => {
            for (condition, then) in branches {
                f(condition);
                f(then);
            }
            otherwise.iter().for_each(|otherwise| f(otherwise));
        }
        Term::Def(definitions, body) => {
            definitions.iter().for_each(|definition| f(&definition.body));
            f(body);
        }
        Term::Call(_, arguments) => arguments.iter().for_each(f),
        Term::Path(base, path) => {
            f(base);
            for (part, _) in &path.0 {
                match part {
                    Part::Index(term) => f(term),
                    Part::Range(from, to) => from.iter().chain(to).for_each(&mut *f),
                }
            }
        }
    }
}

fn pattern_terms<'t, 's>(pattern: &'t Pattern<&'s str>, f: &mut dyn FnMut(&'t Term<&'s str>)) {
    match pattern {
        Pattern::Var(_) => {}
        Pattern::Arr(patterns) => patterns.iter().for_each(|pattern| pattern_terms(pattern, f)),
        Pattern::Obj(entries) => {
            for (key, pattern) in entries {
                f(key);
                pattern_terms(pattern, f);
            }
        }
    }
}

/// The standard definitions that [`FUNCTIONS`] need.
fn standard_definitions() -> Vec<Def<&'static str>> {
    let wanted = |name: &str| {
        (FUNCTIONS.iter().any(|(known, _)| *known == name) && !REPLACED.contains(&name)) || INTERNAL.contains(&name)
    };
    jaq_core::defs()
        .chain(jaq_std::defs())
        .chain(jaq_json::defs())
        .filter(|def| wanted(def.name))
        // Of these only the forms that end by themselves: the bounded ones stand on `recurse/0` and `recurse/1`.
        .filter(|def| !(def.name == "flatten" && def.args.len() == 1))
        .filter(|def| !(def.name == "recurse" && def.args.len() == 2))
        .collect()
}

/// Rewrites a term so that what it does is paid for.
fn metered(term: Term<&str>) -> Term<&str> {
    match term {
        Term::Id | Term::Num(_) | Term::Var(_) | Term::Break(_) | Term::Arr(None) => term,
        Term::Recurse => stepped(term),
        Term::Str(format, parts) => {
            let computed = parts.iter().any(|part| matches!(part, StrPart::Term(_)));
            let parts = parts
                .into_iter()
                .map(|part| match part {
                    // Printing a value costs its size, so that is paid first.
                    StrPart::Term(term) => StrPart::Term(weighed(metered(term))),
                    other => other,
                })
                .collect();
            let term = Term::Str(format, parts);
            if computed { weighed(term) } else { term }
        }
        Term::Arr(Some(term)) => weighed(Term::Arr(Some(Box::new(metered(*term))))),
        Term::Obj(entries) if entries.is_empty() => Term::Obj(entries),
        Term::Obj(entries) => {
            let entry = |(key, value): (Term<_>, Option<Term<_>>)| (metered(key), value.map(metered));
            weighed(Term::Obj(entries.into_iter().map(entry).collect()))
        }
        Term::Neg(term) => weighed(Term::Neg(Box::new(metered(*term)))),
        Term::BinOp(left, operator, right) => metered_operation(*left, operator, *right),
        Term::Label(name, term) => Term::Label(name, Box::new(metered(*term))),
        Term::Fold(name, source, pattern, arguments) => {
            let arguments = arguments.into_iter().map(|argument| stepped(metered(argument))).collect();
            stepped(Term::Fold(name, Box::new(metered(*source)), metered_pattern(pattern), arguments))
        }
        Term::TryCatch(body, handler) => {
            // jaq prints a caught error, and errors quote the value they are about.
            let body = Term::TryCatch(Box::new(metered(*body)), handler.map(|handler| Box::new(metered(*handler))));
            after_weighing(body)
        }
        Term::IfThenElse(branches, otherwise) => {
            let branches = branches.into_iter().map(|(when, then)| (metered(when), metered(then))).collect();
            Term::IfThenElse(branches, otherwise.map(|otherwise| Box::new(metered(*otherwise))))
        }
        Term::Def(definitions, body) => {
            let definitions = definitions
                .into_iter()
                .map(|def| Def { body: metered(def.body), name: def.name, args: def.args })
                .collect();
            Term::Def(definitions, Box::new(metered(*body)))
        }
        Term::Call("error", mut arguments) if arguments.len() == 1 => {
            let text = arguments.pop().map(metered).unwrap_or_default();
            pipe(weighed(text), Term::Call("!refuse", Vec::new()))
        }
        Term::Call(name, arguments) => {
            let regex = REGEX.contains(&name);
            let shallow = SHALLOW.contains(&name);
            let native = !shallow && is_native(name, arguments.len());
            let argument = |term| match name {
                // The key is hashed whole.
                "has" => weighed(metered(term)),
                _ => metered(term),
            };
            let call = Term::Call(name, arguments.into_iter().map(argument).collect());
            match (native, regex) {
                (true, _) => after_weighing(weighed(call)),
                (_, true) => bound(Term::Call("!regex", Vec::new()), call),
                _ => bound(Term::Call("!step", Vec::new()), stepped(call)),
            }
        }
        Term::Path(base, path) => {
            let sliced =
                path.0.iter().any(|(part, _)| matches!(part, Part::Range(Some(_), _) | Part::Range(_, Some(_))));
            let index = |term: Term<_>| match term {
                Term::Str(None, _) | Term::Num(_) => metered(term),
                // A value used as a key is hashed whole.
                term => weighed(metered(term)),
            };
            let parts = path.0.into_iter().map(|(part, optional)| {
                let part = match part {
                    Part::Index(term) => Part::Index(index(term)),
                    Part::Range(from, to) => Part::Range(from.map(index), to.map(index)),
                };
                (part, optional)
            });
            let base = metered(*base);
            // A slice of text counts its characters from the start.
            let base = if sliced { weighed(base) } else { base };
            stepped(Term::Path(Box::new(base), Path(parts.collect())))
        }
    }
}

fn metered_operation<'s>(left: Term<&'s str>, operator: BinaryOp<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    let operation =
        |left: Term<&'s str>, operator, right: Term<&'s str>| Term::BinOp(Box::new(left), operator, Box::new(right));
    match operator {
        BinaryOp::Pipe(pattern) => {
            operation(metered(left), BinaryOp::Pipe(pattern.map(metered_pattern)), metered(right))
        }
        BinaryOp::Math(Math::Mul) => {
            weighed(Term::Call("!multiply", vec![weighed(metered(left)), weighed(metered(right))]))
        }
        BinaryOp::Math(_) => weighed(operation(weighed(metered(left)), operator, weighed(metered(right)))),
        BinaryOp::Cmp(_) => stepped(operation(weighed(metered(left)), operator, weighed(metered(right)))),
        BinaryOp::Comma | BinaryOp::Alt | BinaryOp::Or | BinaryOp::And => {
            stepped(operation(metered(left), operator, metered(right)))
        }
        // Only in standard definitions: the left side must stay a plain path.
        BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => {
            weighed(operation(left, operator, metered(right)))
        }
    }
}

fn metered_pattern(pattern: Pattern<&str>) -> Pattern<&str> {
    match pattern {
        Pattern::Var(_) => pattern,
        Pattern::Arr(patterns) => Pattern::Arr(patterns.into_iter().map(metered_pattern).collect()),
        Pattern::Obj(entries) => {
            Pattern::Obj(entries.into_iter().map(|(key, pattern)| (metered(key), metered_pattern(pattern))).collect())
        }
    }
}

/// `term`, each of whose values costs one unit.
fn stepped(term: Term<&str>) -> Term<&str> {
    pipe(term, bound(Term::Call("!step", Vec::new()), Term::Id))
}

/// `term`, each of whose values costs its size.
fn weighed(term: Term<&str>) -> Term<&str> {
    pipe(term, after_weighing(Term::Id))
}

/// `term`, after its input's size was paid.
fn after_weighing(term: Term<&str>) -> Term<&str> {
    bound(Term::Call("!weigh", Vec::new()), term)
}

fn pipe<'s>(left: Term<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    Term::BinOp(Box::new(left), BinaryOp::Pipe(None), Box::new(right))
}

/// `left as $! | right`: runs `left` for its effect on the meter alone. A name that no program can spell; and a binding
/// rather than a pipe, for paths go through it.
fn bound<'s>(left: Term<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    Term::BinOp(Box::new(left), BinaryOp::Pipe(Some(Pattern::Var("$!"))), Box::new(right))
}

fn is_native(name: &str, arguments: usize) -> bool {
    static NATIVES: LazyLock<Vec<(&str, usize)>> =
        LazyLock::new(|| natives().map(|(name, arguments, _)| (name, arguments.len())).collect());
    NATIVES.contains(&(name, arguments))
}

fn natives() -> impl Iterator<Item = Fun<Metered>> {
    const DENIED: &[&str] = &[
        "debug_empty",
        "env",
        "fromjson",
        "halt",
        "indices",
        "input",
        "inputs",
        "localtime",
        "now",
        "stderr_empty",
        "strflocaltime",
        "contains",
        "bsearch",
        "path",
        "path_value",
    ];
    jaq_core::funs::<Metered>()
        .chain(jaq_std::funs::<Metered>())
        .chain(jaq_json::funs::<Metered>())
        .filter(|(name, ..)| !DENIED.contains(name))
        .chain(own())
}

fn own() -> impl Iterator<Item = Fun<Metered>> {
    let functions: [(&'static str, usize, RunPtr<Metered>); 9] = [
        ("!step", 0, |cv| paid(cv.0.data().meter.take(1))),
        ("!regex", 0, |cv| paid(cv.0.data().meter.take(REGEX_UNITS) && cv.0.data().meter.take_value(&cv.1))),
        ("!weigh", 0, |cv| paid(cv.0.data().meter.take_value(&cv.1))),
        ("!refuse", 0, |cv| refuse(cv.0.data().meter, cv.1)),
        ("!multiply", 2, |mut cv| {
            let right = cv.0.pop_var();
            let left = cv.0.pop_var();
            let text = |value: &Val| matches!(value, Val::TStr(_) | Val::BStr(_));
            if text(&left) || text(&right) {
                return bome(Err(Error::str("text cannot be multiplied")));
            }
            bome(left * right)
        }),
        ("join", 1, |mut cv| {
            let separator = cv.0.pop_var();
            join(cv.0.data().meter, &cv.1, &separator)
        }),
        ("tonumber", 0, |cv| bome(to_number(cv.1))),
        ("base64url", 0, |cv| bome(base64url(&cv.1))),
        ("rfc5322", 0, |cv| {
            let meter = cv.0.data().meter;
            let message = to_json(&cv.1, 0, meter).map_err(|_| "the message is too large".to_owned());
            match message.and_then(|message| mail::rfc5322(&message)) {
                Ok(message) => bome(Ok(Val::utf8_str(message))),
                Err(text) => refuse(meter, Val::from(text)),
            }
        }),
    ];
    functions.into_iter().map(|(name, arguments, run)| (name, v(arguments), Native::<Metered>::new(run)))
}

/// A halt rather than an error, for `try` would hide an error.
fn paid<'a>(paid: bool) -> ValXs<'a, Val> {
    if paid { bome(Ok(Val::Null)) } else { box_once(Err(Exn::halt(1))) }
}

fn refuse<'a>(meter: &Meter, text: Val) -> ValXs<'a, Val> {
    if let Val::TStr(text) | Val::BStr(text) = &text {
        let text = String::from_utf8_lossy(text).chars().take(MAX_REFUSAL_CHARS).collect();
        meter.refusal.replace(Some(text));
    }
    bome(Err(Error::new(text)))
}

fn join<'a>(meter: &Meter, items: &Val, separator: &Val) -> ValXs<'a, Val> {
    let (Val::Arr(items), Val::TStr(separator)) = (items, separator) else {
        return bome(Err(Error::str("join needs an array and a text")));
    };
    // The result is paid for before it is made: a long separator between many items is longer than both.
    let length = items.len().saturating_mul(separator.len());
    if !meter.take((length / BYTES_PER_UNIT) as u64) {
        return paid(false);
    }
    let mut text = Vec::with_capacity(length);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            text.extend_from_slice(separator);
        }
        match item {
            Val::TStr(item) => text.extend_from_slice(item),
            Val::Null => {}
            Val::Bool(_) | Val::Num(_) => text.extend_from_slice(item.to_string().as_bytes()),
            _ => return bome(Err(Error::str("join needs texts, numbers and booleans"))),
        }
    }
    bome(Ok(Val::utf8_str(text)))
}

fn to_number(value: Val) -> Result<Val, Error<Val>> {
    let text = match value {
        Val::Num(_) => return Ok(value),
        Val::TStr(text) if text.len() <= 64 => String::from_utf8_lossy(text.trim_ascii()).into_owned(),
        _ => return Err(Error::str("not a number")),
    };
    let number: serde_json::Number = serde_json::from_str(&text).map_err(|_| Error::str("not a number"))?;
    to_val(&Value::Number(number), 0).map_err(|_| Error::str("not a number"))
}

fn base64url(value: &Val) -> Result<Val, Error<Val>> {
    use base64::Engine as _;
    match value {
        Val::TStr(text) | Val::BStr(text) => {
            Ok(Val::from(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text.as_ref())))
        }
        _ => Err(Error::str("base64url needs text")),
    }
}

fn to_val(value: &Value, depth: usize) -> Result<Val, RunError> {
    if depth > MAX_VALUE_DEPTH {
        return Err(RunError::NotJson("nested too deep"));
    }
    Ok(match value {
        Value::Null => Val::Null,
        Value::Bool(value) => Val::Bool(*value),
        Value::Number(number) => Val::Num(match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => Num::from_integral(n),
            (_, Some(n)) => Num::from_integral(n),
            _ => Num::Float(number.as_f64().ok_or(RunError::NotJson("a number"))?),
        }),
        Value::String(text) => Val::utf8_str(text.clone().into_bytes()),
        Value::Array(items) => items.iter().map(|item| to_val(item, depth + 1)).collect::<Result<Val, RunError>>()?,
        Value::Object(entries) => Val::obj(
            entries
                .iter()
                .map(|(key, item)| Ok((Val::utf8_str(key.clone().into_bytes()), to_val(item, depth + 1)?)))
                .collect::<Result<_, RunError>>()?,
        ),
    })
}

/// jq values say more than JSON does: not-a-number, bytes, keys that are not text.
fn to_json(value: &Val, depth: usize, meter: &Meter) -> Result<Value, RunError> {
    if depth > MAX_VALUE_DEPTH {
        return Err(RunError::NotJson("nested too deep"));
    }
    if !meter.take(1) {
        return Err(RunError::TooMuch);
    }
    let text = |bytes: &[u8]| {
        if !meter.take((bytes.len() / BYTES_PER_UNIT) as u64) {
            return Err(RunError::TooMuch);
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| RunError::NotJson("text that is not UTF-8"))
    };
    Ok(match value {
        Val::Null => Value::Null,
        Val::Bool(value) => Value::Bool(*value),
        Val::Num(Num::Float(n)) => {
            Value::Number(serde_json::Number::from_f64(*n).ok_or(RunError::NotJson("not a finite number"))?)
        }
        Val::Num(n) => serde_json::from_str(&n.to_string()).map_err(|_| RunError::NotJson("a number"))?,
        Val::TStr(bytes) | Val::BStr(bytes) => Value::String(text(bytes)?),
        Val::Arr(items) => {
            Value::Array(items.iter().map(|item| to_json(item, depth + 1, meter)).collect::<Result<_, _>>()?)
        }
        Val::Obj(entries) => {
            let mut object = Map::new();
            for (key, item) in entries.iter() {
                let Val::TStr(key) = key else { return Err(RunError::NotJson("a key that is not text")) };
                object.insert(text(key)?, to_json(item, depth + 1, meter)?);
            }
            Value::Object(object)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    fn run(source: &str, input: Value) -> Result<Value, RunError> {
        Program::compile(source, &[]).unwrap_or_else(|e| panic!("{source}: {e}")).run(&input, &[])
    }

    #[test]
    fn a_program_brings_the_definitions_it_needs_and_no_others() {
        let names = |source: &'static str| -> Vec<&'static str> {
            let term = metered(parse(source).unwrap());
            needed(&term).into_iter().map(|def| def.name).collect()
        };
        assert_eq!(names(".a.b + 1"), [""; 0]);
        assert_eq!(names("map(.a)"), ["map"]);
        // What a definition stands on comes before it.
        let from_entries = names("[.[] | select(.a)] | with_entries(.)");
        let at = |name: &str| from_entries.iter().position(|known| *known == name);
        assert!(at("select").is_some() && at("to_entries").is_some() && at("to_entries") < at("with_entries"));
        assert!(PRELUDE.len() > 2 * from_entries.len(), "{from_entries:?}");
    }

    #[test]
    fn every_function_compiles_by_itself() {
        for (name, arities) in FUNCTIONS {
            for arity in *arities {
                // A pattern must be written out; it is as good an argument as any.
                let arguments = vec!["\"a\""; *arity].join("; ");
                let source = if *arity == 0 { (*name).to_owned() } else { format!("{name}({arguments})") };
                let compiled = Program::compile(&source, &[]);
                assert!(compiled.is_ok(), "{source}: {compiled:?}");
            }
        }
    }

    #[test]
    fn many_programs_compile_on_one_deep_stack() {
        let deep = "-".repeat(MAX_SOURCE_BYTES - 1) + "1";
        let both = || (Program::compile(&deep, &[]).map(drop), Program::compile(".a", &[]).map(drop));
        let alone = both();
        assert!(alone.0.is_err() && alone.1.is_ok());
        assert_eq!(on_deep_stack(both).unwrap(), alone);
        assert!(!DEEP_STACK.get());
    }

    #[test]
    fn programs_of_everyday_use_work() {
        let mail = json!({"to": ["a@b.example", "c@d.example"], "n": 3, "none": null, "f": 1.5});
        for (source, expected) in [
            (".to[0]", json!("a@b.example")),
            ("[.to[]? | {email: .}]", json!([{"email": "a@b.example"}, {"email": "c@d.example"}])),
            (".missing // \"none\"", json!("none")),
            ("{n, a: .n + 1, b: (.n * 2), c: (.f / 3)}", json!({"n": 3, "a": 4, "b": 6, "c": 0.5})),
            (".to | join(\", \")", json!("a@b.example, c@d.example")),
            ("[.to[] | split(\"@\")[1]] | unique", json!(["b.example", "d.example"])),
            ("to_entries | map(select(.value != null) | .key) | sort", json!(["f", "n", "to"])),
            ("with_entries(select(.value == 3))", json!({"n": 3})),
            ("reduce .to[] as $x (0; . + ($x | length))", json!(22)),
            ("if .n > 2 then \"many \\(.n)\" elif .n == 1 then \"one\" else \"none\" end", json!("many 3")),
            ("try (.n | keys) catch \"no\"", json!("no")),
            ("[limit(2; range(10))]", json!([0, 1])),
            ("\"12\" | tonumber", json!(12)),
            ("\"A-b_c\" | gsub(\"[^A-Za-z]\"; \"\") | ascii_downcase", json!("abc")),
            ("\"\\u00e4?\" | @uri", json!("%C3%A4%3F")),
            ("\"<<<???>>>\" | base64url", json!("PDw8Pz8_Pj4-")),
            ("[3, 1, 2] | sort | last", json!(3)),
            ("[[1, [2]], 3] | flatten", json!([1, 2, 3])),
            ("[.. | strings] | length", json!(2)),
            ("any(.to[]; endswith(\"b.example\"))", json!(true)),
            (".to as [$first, $second] | $second", json!("c@d.example")),
            ("1700000000 | todate", json!("2023-11-14T22:13:20Z")),
            ("{a: {b: 1}} * {a: {c: 2}}", json!({"a": {"b": 1, "c": 2}})),
            ("\"abc\"[0:2]", json!("ab")),
            ("@json \"v=\\(.to)\"", json!("v=[\"a@b.example\",\"c@d.example\"]")),
            (". | map_values(type) | .none", json!("null")),
            ("isempty(.to[])", json!(false)),
            ("\"a-1\" | capture(\"(?<k>[a-z])-(?<n>[0-9])\") | .n", json!("1")),
            ("\"ABC\" | test(\"(?i)b\"), empty", json!(true)),
        ] {
            assert_eq!(run(source, mail.clone()), Ok(expected), "{source}");
        }
    }

    #[test]
    fn variables_are_read_by_name() {
        let program = Program::compile("$list.n + $item + .x", &["$list", "$item"]).unwrap();
        assert_eq!(program.run(&json!({"x": 1}), &[&json!({"n": 10}), &json!(100)]), Ok(json!(111)));
        assert_eq!(program.run(&json!({"x": 1}), &[]), Err(RunError::Failed));
    }

    #[test]
    fn what_is_impure_or_endless_is_refused_at_load() {
        for source in [
            "env",
            "$ENV",
            "$__loc__",
            "input",
            "inputs",
            "now",
            "debug",
            "stderr",
            "halt",
            "halt_error",
            "input_filename",
            "input_line_number",
            "include \"x\"; .",
            "import \"x\" as x; .",
            "repeat(1)",
            "recurse(.+1)",
            "until(false; .)",
            "while(true; .)",
            "def f: f; f",
            "def f: 1; f",
            "localtime",
            "strflocaltime(\"%c\")",
            "getpath([1])",
            "path(..)",
            "fromjson",
            "combinations",
            "del(.a)",
            ".a = 1",
            ".a |= 2",
            ".[] += 1",
            "[.a] | $x",
            "now | todate",
            "@sh",
            "test(.pattern)",
            "test(\"(?-u:.)\")",
            "test(\"\\u0028?-u:.)\")",
            "test(\"a\\(.x)\")",
            "obo_main",
            "error_empty",
            "limit",
            "ltrimstr",
            "get_search_list",
            "getpath(\"a\")",
            "splits(\"a\")",
            "input_line_number",
            "ascii(1)",
            "@foo",
            "| |",
            "(",
            "\"\\q\"",
            "",
            "\u{0}",
            "walk(.)",
            "tojson(1)",
        ] {
            assert!(Program::compile(source, &[]).is_err(), "{source:?} was accepted");
        }
    }

    #[test]
    fn a_refusal_at_load_says_what_to_do() {
        let error = Program::compile("ascii_downcas", &[]).unwrap_err().to_string();
        assert_eq!(error, "the function \"ascii_downcas\" is not available; did you mean ascii_downcase?");
        let error = Program::compile(".a | | .b", &[]).unwrap_err().to_string();
        assert_eq!(error, "expected term, found \"|\"");
    }

    /// A value that costs `bytes` to read.
    fn many(n: usize) -> Value {
        Value::Array((0..n).map(|n| json!(n)).collect())
    }

    #[test]
    fn bombs_are_cut_off_quickly() {
        let start = Instant::now();
        for (source, input) in [
            ("[range(1e12)]", json!(null)),
            ("[range(0; 1; 0)]", json!(null)),
            ("[limit(1e9; range(1e12))]", json!(null)),
            ("[range(1e6) as $a | range(1e6) as $b | empty]", json!(null)),
            ("last(range(1e12))", json!(null)),
            ("reduce range(1e12) as $x (0; .)", json!(null)),
            ("[foreach range(1e12) as $x (0; . + 1; empty)]", json!(null)),
            ("[range(1e12)?]", json!(null)),
            ("try [range(1e12)] catch \"hidden\"", json!(null)),
            ("[range(1e12) | try error(\"x\") catch empty]", json!(null)),
            ("isempty(range(1e12) | select(. < 0))", json!(null)),
            ("first(range(1e12) | select(. < 0)) // 1", json!(null)),
            ("any(range(1e12); . < 0)", json!(null)),
            ("reduce .[] as $x (\"ab\"; . + .)", many(100)),
            ("reduce .[] as $x ([1]; . + .)", many(100)),
            ("reduce .[] as $x (1; [., .])", many(60)),
            ("reduce .[] as $x (1; [., .]) | tojson", many(40)),
            ("reduce .[] as $x (1; {a: ., b: .}) | tostring", many(40)),
            ("reduce .[] as $x (null; [.])", many(100_000)),
            ("reduce .[] as $x (7; . * .)", many(100_000)),
            ("[.[] as $a | .[] as $b | .[] as $c | 1] | length", many(2_000)),
            ("[.[] as $a | .[] as $b | .[] as $c | empty]", many(2_000)),
            (". as $root | [.[] | select($root == [$root])] | length", many(3_000)),
            (". as $root | [.[] | $root]", many(5_000)),
            ("reduce .[] as $x (\"\"; . + \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\")", many(100_000)),
            (". as $l | ([$l[] | \"aaaaaaaaaaaaaaaa\"] | add) as $s | $l | join($s)", many(20_000)),
            (
                "[(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)|(0,0)]",
                json!(null),
            ),
            ("[.[] | [[[[[[.]]]]]] | .[0,0][0,0][0,0][0,0][0,0][0,0]]", many(5_000)),
            (". as $x | [range(1e9) | $x | test(\"a*a*a*b\")]", json!("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")),
        ] {
            let one = Instant::now();
            let outcome = run(source, input);
            assert!(
                matches!(outcome, Err(RunError::TooMuch | RunError::NotJson(_))),
                "{source}: {:?}",
                outcome.map(|_| ())
            );
            assert!(one.elapsed() < Duration::from_secs(20), "{source} took {:?}", one.elapsed());
        }
        assert!(start.elapsed() < Duration::from_secs(240), "{:?}", start.elapsed());
    }

    #[test]
    fn text_is_not_multiplied() {
        assert_eq!(run("\"x\" * 1e9", json!(null)), Err(RunError::Failed));
        assert_eq!(run("1e9 * \"x\"", json!(null)), Err(RunError::Failed));
    }

    #[test]
    fn large_input_may_be_worked_on_as_a_whole() {
        let items: Vec<_> = (0..30_000).map(|n| json!({"id": n, "name": format!("name {n}"), "x": null})).collect();
        let value = run("{items: [.[] | {id, name}], n: length}", Value::Array(items)).unwrap();
        assert_eq!(value["n"], 30_000);
        let text = "a".repeat(20_000_000);
        assert_eq!(
            run("{raw: (.t | base64url)}", json!({"t": text})).unwrap()["raw"].as_str().unwrap().len(),
            26_666_667
        );
    }

    #[test]
    fn one_value_is_needed() {
        assert_eq!(run("empty", json!(null)), Err(RunError::NotOne("no")));
        assert_eq!(run("1, 2", json!(null)), Err(RunError::NotOne("several")));
    }

    #[test]
    fn only_json_comes_out() {
        assert_eq!(run("1 / 0", json!(null)), Err(RunError::NotJson("not a finite number")));
        assert_eq!(run("{(1 | tostring): 1}", json!(null)), Ok(json!({"1": 1})));
        assert!(run("18446744073709551616", json!(null)).is_ok());
        assert_eq!(run(".", json!(u64::MAX)), Ok(json!(u64::MAX)));
        assert_eq!(run(".", json!(-1.25)), Ok(json!(-1.25)));
    }

    #[test]
    fn errors_hold_what_the_program_says_and_nothing_of_the_input() {
        let secret = json!({"a": "hunter2"});
        assert_eq!(run(".a | keys", secret.clone()), Err(RunError::Failed));
        let refused = run("error(\"give a or b\")", secret);
        assert_eq!(refused, Err(RunError::Refused("give a or b".to_owned())));
        assert_eq!(run("try error(\"x\") catch .", json!(null)), Ok(json!("x")));
    }

    #[test]
    fn deep_input_is_refused_before_it_is_walked() {
        let deep = (0..200).fold(json!(1), |value, _| json!([value]));
        assert_eq!(run(".", deep), Err(RunError::NotJson("nested too deep")));
        let allowed = (0..MAX_VALUE_DEPTH).fold(json!(1), |value, _| json!([value]));
        assert_eq!(run("flatten", allowed.clone()), Ok(json!([1])));
        assert!(run("[..] | length", allowed[0].clone()).is_ok());
    }

    #[test]
    fn hostile_sources_end_in_an_error() {
        for source in [
            "-".repeat(8_000),
            "try ".repeat(2_000),
            "(".repeat(4_000),
            "[".repeat(50) + &"]".repeat(50),
            ".|".repeat(3_000) + ".",
            ". as $x|".repeat(1_000) + ".",
            "if ".repeat(2_000),
            "1+".repeat(3_000) + "1",
            "\"\\(".repeat(2_000),
            "reduce ".repeat(1_000),
            "def f: ".repeat(1_000),
            ".a".repeat(4_000),
            "x".repeat(9_000),
        ] {
            // What matters is that this returns.
            let _ = Program::compile(&source, &[]).map(|program| program.run(&json!({}), &[]));
        }
    }

    #[test]
    fn the_deepest_programs_run_on_an_ordinary_stack() {
        let deep = (0..MAX_VALUE_DEPTH - 1).fold(json!(1), |value, _| json!([value]));
        for source in [
            ".|".repeat(95) + ".",
            ". as $x|".repeat(95) + ".",
            "try ".repeat(95) + ".",
            "1+".repeat(95) + "1",
            ".,".repeat(95) + ".",
            "if true then ".repeat(95) + "." + &" end".repeat(95),
            "{a:".repeat(50) + "." + &"}".repeat(50) + " | 1",
            "first(".repeat(50) + ".." + &")".repeat(50),
            format!("\"{}\"", "\\(1)".repeat(99)),
            ".".to_owned() + &"[0]".repeat(99) + "?",
            "[.. | tojson] | length".to_owned(),
            "flatten | tostring".to_owned(),
            ". == [.]".to_owned(),
            "[..] | sort | unique | group_by(.) | length".to_owned(),
        ] {
            let program = Program::compile(&source, &[]).unwrap_or_else(|e| panic!("{source}: {e}"));
            // What matters is that this returns.
            let _ = program.run(&deep, &[]);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn no_source_panics(source in "[-.|,()\\[\\]{}\"\\\\a-z$@ 0-9:;?/*+]{0,60}") {
            let _ = Program::compile(&source, &[]).map(|program| program.run(&json!({"a": [1, "x"]}), &[]));
        }
    }
}
