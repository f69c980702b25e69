//! `obo audit`.

use std::time::Duration;

use clap::Subcommand;

use super::{Exit, Global, duration, output};
use crate::app::Way;
use crate::audit::{Kind, Phase, Record};
use crate::clock::later;
use crate::id::Person;

#[derive(Subcommand)]
pub(super) enum Audit {
    /// Who did what, oldest first
    Show {
        /// Only this user
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Only this tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
        /// Only people of this source
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        /// Only this tool
        #[arg(long, value_name = "TOOL")]
        tool: Option<String>,
        /// Only the last while: 1h, 7d
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        since: Option<Duration>,
        /// Print a JSON record a line, intents too
        #[arg(long)]
        json: bool,
    },
    /// Check that no record was edited, removed, inserted or reordered, and no tail cut off
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Audit {
    pub(super) async fn run(self, global: &Global) -> Result<(), Exit> {
        let app = global.open(global.config()?, Way::Command)?;
        match self {
            Audit::Show { user, tenant, source, tool, since, json } => {
                let now = app.clock.now();
                let wanted = |record: &Record| {
                    let is = |asked: &Option<String>, has: &Option<String>| asked.is_none() || asked == has;
                    is(&user, &record.user)
                        && is(&tenant, &record.tenant)
                        && is(&source, &record.source)
                        && tool.as_ref().is_none_or(|tool| record.tool.as_ref().is_some_and(|has| same_tool(tool, has)))
                        && since.is_none_or(|since| later(record.time, since) >= now)
                };
                let records = app.audit.read(wanted).await.map_err(Exit::failed)?;
                if json {
                    return records
                        .iter()
                        .try_for_each(|record| output::line(serde_json::to_string(record).map_err(Exit::failed)?));
                }
                if records.is_empty() {
                    eprintln!("No record is like that.");
                    return Ok(());
                }
                let rows = rows(&records);
                output::table(&["TIME (UTC)", "WHO", "WHAT", "AS", "THROUGH", "OUTCOME"], &rows)
            }
            Audit::Verify { json } => {
                app.keys.open().await?;
                let report = app.audit.verify().await.map_err(Exit::failed)?;
                if json {
                    output::json(&report)?;
                } else {
                    for problem in &report.problems {
                        output::line(format!("chain {}, record {}: {}", problem.writer, problem.seq, problem.what))?;
                    }
                    output::line(format!(
                        "records: {}, chains: {}, problems: {}",
                        report.records,
                        report.chains,
                        report.problems.len()
                    ))?;
                    eprintln!(
                        "Someone who can roll back the whole store can also roll back its heads: keep copies of the audit outside."
                    );
                }
                if report.problems.is_empty() { Ok(()) } else { Err(Exit::quiet(1)) }
            }
        }
    }
}

/// Whether a tool is meant, in either spelling.
fn same_tool(asked: &str, name: &str) -> bool {
    asked == name || asked == name.replace('.', "_")
}

/// The person, told apart from others of the same name.
fn who(record: &Record) -> String {
    let (Some(user), Some(source), Some(tenant)) = (&record.user, &record.source, &record.tenant) else {
        return "-".to_owned();
    };
    match (user.parse(), source.parse(), tenant.parse()) {
        (Ok(user), Ok(source), Ok(tenant)) => Person { tenant, source, user }.to_string(),
        _ => user.clone(),
    }
}

/// A line for each thing that happened: an intent is shown only where its outcome is missing.
fn rows(records: &[Record]) -> Vec<Vec<String>> {
    let ended =
        |record: &Record| records.iter().any(|other| other.phase == Phase::Outcome && other.call_id == record.call_id);
    records
        .iter()
        .filter(|record| record.phase == Phase::Outcome || !ended(record))
        .map(|record| {
            let what = match (record.kind, &record.tool) {
                (_, Some(tool)) => tool.clone(),
                (Kind::Admin, None) => "obo".to_owned(),
                (_, None) => record.provider.clone().unwrap_or_default(),
            };
            let outcome = match record.phase {
                Phase::Outcome => match (&record.outcome, &record.note) {
                    (Some(outcome), Some(note)) => format!("{outcome} ({note})"),
                    (outcome, note) => outcome.clone().or_else(|| note.clone()).unwrap_or_default(),
                },
                Phase::Intent => "unknown: it was begun, and no end is on record".to_owned(),
            };
            vec![
                record.time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                who(record),
                what,
                record.account.clone().unwrap_or_else(|| "-".to_owned()),
                record.actor.clone(),
                outcome,
            ]
        })
        .collect()
}
