//! `obo tools test`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::super::{Exit, Global, output};
use crate::catalog::{Catalog, Level};
use crate::rehearsal::{self, Difference};

#[derive(Args)]
pub(in crate::cli) struct Test {
    /// A manifest, a provider's folder, or a folder as tools.dirs has them
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A case that was run.
struct Case {
    file: String,
    line: Option<usize>,
    tool: String,
    name: String,
    outcome: Result<Vec<Difference>, String>,
}

impl Test {
    pub(in crate::cli) async fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let checked = Catalog::check_at(&self.path, &config.tools).map_err(Exit::failed)?;
        let broken: Vec<_> = checked.problems.iter().filter(|problem| problem.level == Level::Error).collect();
        let mut cases = Vec::new();
        for tested in &checked.tested {
            for (line, case) in &tested.cases {
                cases.push(Case {
                    file: tested.file.clone(),
                    line: *line,
                    tool: tested.tool.name.to_string(),
                    name: case.name.clone(),
                    outcome: rehearsal::run(&tested.tool, case).await,
                });
            }
        }
        let failed = cases.iter().filter(|case| !case.passed()).count();
        if self.json {
            let cases: Vec<Value> = cases.iter().map(Case::as_json).collect();
            output::json(&json!({ "cases": cases, "problems": broken }))?;
        } else {
            cases.iter().try_for_each(Case::show)?;
            for problem in &broken {
                output::line(format!("broken  {problem}"))?;
            }
            output::line(format!("{} passed, {failed} failed", cases.len() - failed))?;
        }
        if failed > 0 || !broken.is_empty() {
            return Err(Exit::quiet(1));
        }
        if cases.is_empty() {
            // What has no case has not been shown to work.
            return Err(Exit::failed(format!("{} has no [[test]]", self.path.display())));
        }
        Ok(())
    }
}

impl Case {
    fn passed(&self) -> bool {
        self.outcome.as_ref().is_ok_and(Vec::is_empty)
    }

    fn place(&self) -> String {
        self.line.map_or_else(|| self.file.clone(), |line| format!("{}:{line}", self.file))
    }

    fn show(&self) -> Result<(), Exit> {
        let verdict = if self.passed() { "ok    " } else { "FAILED" };
        output::line(format!("{verdict}  {}: {}", self.tool, self.name))?;
        match &self.outcome {
            Ok(differences) if differences.is_empty() => Ok(()),
            Ok(differences) => {
                output::line(format!("  --> {}", self.place()))?;
                differences.iter().try_for_each(show_difference)
            }
            Err(reason) => output::line(format!("  --> {}\n  {reason}", self.place())),
        }
    }

    fn as_json(&self) -> Value {
        let (differences, reason) = match &self.outcome {
            Ok(differences) => (json!(differences), Value::Null),
            Err(reason) => (json!([]), json!(reason)),
        };
        json!({
            "file": self.file,
            "line": self.line,
            "tool": self.tool,
            "name": self.name,
            "passed": self.passed(),
            "differences": differences,
            "reason": reason,
        })
    }
}

/// Line by line where there are several, so that the one that differs is seen.
fn show_difference(difference: &Difference) -> Result<(), Exit> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        value => serde_json::to_string_pretty(value).unwrap_or_default(),
    };
    let (expected, actual) = (text(&difference.expected), text(&difference.actual));
    output::line(format!("  {}: - expected, + actual", difference.what))?;
    for line in lines_of(&expected, &actual) {
        output::line(format!("    {line}"))?;
    }
    Ok(())
}

/// The lines that both have in common (two spaces before them), only the first (`-`), or only the second (`+`).
fn lines_of(expected: &str, actual: &str) -> Vec<String> {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let same_ahead = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let same_behind =
        a[same_ahead..].iter().rev().zip(b[same_ahead..].iter().rev()).take_while(|(a, b)| a == b).count();
    let mut lines: Vec<String> = a[..same_ahead].iter().map(|line| format!("  {line}")).collect();
    lines.extend(a[same_ahead..a.len() - same_behind].iter().map(|line| format!("- {line}")));
    lines.extend(b[same_ahead..b.len() - same_behind].iter().map(|line| format!("+ {line}")));
    lines.extend(a[a.len() - same_behind..].iter().map(|line| format!("  {line}")));
    lines
}
