//! Numbers and errors for people.

use std::fmt::Write;

use bytesize::ByteSize;

use crate::logging::escape;

/// The error and what caused it, each on a line. A cause that its effect has told already is left out.
pub fn error(error: &anyhow::Error) -> String {
    let mut text = format!("error: {}\n", escape::lines(&error.to_string()));
    let mut told = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !told.contains(&cause) {
            let _ = writeln!(text, "  caused by: {}", escape::lines(&cause));
        }
        told = cause;
    }
    text
}

/// `6.74 B`.
pub fn count(number: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")];
    match UNITS.iter().find(|(size, _)| number >= *size) {
        None => number.to_string(),
        Some((size, unit)) => {
            let value = number as f64 / *size as f64;
            let digits = if value < 10.0 { 2 } else { 1 };
            format!("{value:.digits$} {unit}")
        }
    }
}

/// `12.6 GiB`.
pub fn bytes(number: u64) -> String {
    ByteSize(number).display().iec().to_string()
}

/// Columns as wide as their widest cell.
pub fn aligned<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_follow_their_effects_once() {
        let chain = anyhow!("disk is gone").context("cannot read x: disk is gone").context("cannot load the model");
        assert_eq!(error(&chain), "error: cannot load the model\n  caused by: cannot read x: disk is gone\n");
        let plain: anyhow::Result<()> = Err(anyhow!("deep")).context("top");
        assert_eq!(error(&plain.unwrap_err()), "error: top\n  caused by: deep\n");
        let forged = anyhow!("no directory a\nerror: b\x1b[2J");
        assert_eq!(error(&forged), "error: no directory a\n    error: b\\u{1b}[2J\n");
    }

    #[test]
    fn numbers_are_legible() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_500, "1.50 k"), (6_738_415_616, "6.74 B"), (41_303_293_952, "41.3 B")]
        {
            assert_eq!(count(number), text);
        }
        assert_eq!(bytes(13_476_831_232), "12.6 GiB");
    }
}
