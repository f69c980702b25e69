//! Results on stdout.

use std::io::Write as _;

use super::Exit;

/// Prints a line. A reader that has gone away is no error: `obo audit show | head` ends quietly.
pub(super) fn line(text: impl std::fmt::Display) -> Result<(), Exit> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Exit::failed(format!("stdout cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), Exit> {
    line(serde_json::to_string_pretty(value).map_err(Exit::failed)?)
}

/// Prints rows as columns, the widest cell of each deciding.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), Exit> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        line(padded.join("  ").trim_end())
    };
    print(head.to_vec())?;
    rows.iter().try_for_each(|row| print(row.iter().map(String::as_str).collect()))
}
