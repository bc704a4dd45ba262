//! Every row of `table.json`, which `make_table.py` asked the reference for.

use std::collections::BTreeMap;

use chrono::{NaiveDate, NaiveDateTime};
use kaito_jinja::{Data, Error, Limits, Template};
use serde::Deserialize;

#[derive(Deserialize)]
struct Table {
    variables: Data,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    section: String,
    template: String,
    text: Option<String>,
    /// The name of the exception.
    error: Option<String>,
    /// The text holds an address in memory.
    #[serde(default)]
    address: bool,
}

/// Rows that are refused in a sentence though the reference renders them: by a part of the sentence, and why.
const REFUSED: &[(&str, &str)] = &[];

fn now() -> NaiveDateTime {
    NaiveDate::from_ymd_opt(2024, 3, 5).unwrap().and_hms_micro_opt(14, 7, 9, 12345).unwrap()
}

fn render(template: &str, variables: &Data) -> Result<String, Error> {
    let Data::Dict(variables) = variables else { panic!("the variables are no object") };
    let template = Template::parse(template)?;
    let variables = variables.iter().map(|(name, value)| (name.as_str(), value));
    template.render(variables, now(), Limits::default(), &|| false)
}

#[test]
fn every_row_is_equal_or_refused_in_a_sentence() {
    let table: Table = serde_json::from_str(include_str!("table.json")).unwrap();
    assert!(table.rows.len() > 7000, "{} rows", table.rows.len());
    let mut wrong = Vec::new();
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &table.rows {
        let rendered = render(&row.template, &table.variables);
        let reason = match (&rendered, &row.text) {
            (Ok(got), Some(want)) if got == want => continue,
            // Where the reference fails, or writes an address, there is no text.
            (Err(error), None) => {
                assert!(row.error.is_some() || row.address);
                assert!(!error.to_string().is_empty());
                continue;
            }
            (Err(error), Some(_)) => {
                let sentence = error.to_string();
                if let Some((part, _)) = REFUSED.iter().find(|(part, _)| sentence.contains(part)) {
                    *refused.entry(part).or_default() += 1;
                    continue;
                }
                format!("{:?}: {sentence}", row.text)
            }
            (Ok(got), Some(want)) => format!("{want:?}, not {got:?}"),
            (Ok(got), None) => format!("{:?} (address {}), not {got:?}", row.error, row.address),
        };
        wrong.push(format!("{} {:?}: the reference has {reason}", row.section, row.template));
    }
    for (part, _) in REFUSED {
        assert!(refused.contains_key(part), "no row is refused for {part}");
    }
    let total: usize = refused.values().sum();
    assert!(wrong.is_empty(), "{} of {} rows differ:\n{}", wrong.len(), table.rows.len(), wrong.join("\n"));
    assert!(total * 100 < table.rows.len(), "{total} rows are refused");
}
