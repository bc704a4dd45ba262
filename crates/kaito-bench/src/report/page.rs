//! The report in a browser: one file that needs no other.

use minijinja::{AutoEscape, Environment, context, value::Serde};

use super::{Report, plot::plots, table};
use crate::Error;

const PAGE: &str = include_str!("page.html");

/// The report as a page.
///
/// # Errors
/// None that input could cause: a template that is wrong.
pub fn page(report: &Report) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let facts: Vec<(String, String)> = table::heading(report)
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let page = environment.render_str(
        PAGE,
        context! {
            name => &report.target.name,
            started => &report.started,
            version => report.version,
            facts => facts,
            sections => Serde(table::sections(report)),
            plots => Serde(plots(report)),
            notes => Serde(&report.notes),
        },
    )?;
    Ok(page)
}
