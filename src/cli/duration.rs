//! Times as people write them: `30d`, `12h`, `90m`.

use std::time::Duration;

/// Reads a whole number, which is not 0, and a unit of s, m, h or d.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    match parse_from_zero(text) {
        Ok(Duration::ZERO) => Err(format!("{text:?} is no time at all; write at least 1s")),
        parsed => parsed,
    }
}

/// The same, where none at all is a time too.
pub(super) fn parse_from_zero(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write a number and s, m, h or d, such as 30d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(seconds * u64::from(number)))
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_from_zero};

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse("30d").unwrap().as_secs(), 30 * 86_400);
        assert_eq!(parse("90m").unwrap().as_secs(), 5400);
        for bad in ["", "d", "30", "0d", "-1h", "1.5h", "1w", "30ä"] {
            assert!(parse(bad).is_err(), "{bad}");
            assert_eq!(parse_from_zero(bad).is_ok(), bad == "0d", "{bad}");
        }
    }
}
