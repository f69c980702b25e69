//! `obo tools check`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::{Exit, Global, output};
use crate::app::check_catalog;
use crate::catalog::{Catalog, Level, Problem};

#[derive(Args)]
pub(in crate::cli) struct Check {
    /// A folder as tools.dirs has them, a provider's folder, or a file [default: the folders of obo.toml, and what is built in]
    #[arg(value_name = "DIR|FILE")]
    path: Option<PathBuf>,
    /// Take warnings for errors
    #[arg(long)]
    strict: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(in crate::cli) fn run(self, global: &Global) -> Result<(), Exit> {
        let config = global.config()?;
        let mut problems = match &self.path {
            Some(path) => {
                let checked = Catalog::check_at(path, &config.tools).map_err(Exit::failed)?;
                if checked.files == 0 && checked.problems.is_empty() {
                    let text =
                        format!("there is no manifest in {}; they are DIR/<provider>/<tool>.toml", path.display());
                    return Err(Exit::failed(text));
                }
                checked.problems
            }
            None => check_catalog(&config)?,
        };
        if self.strict {
            for problem in problems.iter_mut().filter(|problem| problem.level == Level::Warning) {
                problem.level = Level::Error;
            }
        }
        if self.json {
            output::json(&json!({ "problems": problems }))?;
        } else {
            problems.iter().try_for_each(show)?;
            output::line(summary(&problems))?;
        }
        if count(&problems, Level::Error) > 0 { Err(Exit::quiet(1)) } else { Ok(()) }
    }
}

/// As compilers write it, so that editors find the place.
fn show(problem: &Problem) -> Result<(), Exit> {
    output::line(format!("{}: {}", problem.level.as_str(), problem.reason))?;
    let mut place = problem.file.clone();
    for number in [problem.line, problem.column].into_iter().flatten() {
        place.push_str(&format!(":{number}"));
    }
    output::line(format!("  --> {place}"))?;
    output::line(format!("  mend: {}\n", problem.mend))
}

fn count(problems: &[Problem], level: Level) -> usize {
    problems.iter().filter(|problem| problem.level == level).count()
}

fn summary(problems: &[Problem]) -> String {
    let counted = |level: Level| match count(problems, level) {
        1 => format!("1 {}", level.as_str()),
        number => format!("{number} {}s", level.as_str()),
    };
    format!("{}, {}, {}", counted(Level::Error), counted(Level::Warning), counted(Level::Hint))
}
