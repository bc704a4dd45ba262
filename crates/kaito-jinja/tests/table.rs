//! Every row of `table.json`, which `make_table.py` asked the reference for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are failures of the test")]

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
const REFUSED: &[(&str, &str)] = &[
    ("the filter random", "what it gives is not known before"),
    ("text is an address in memory", "the text of an object of Python, here only looked at"),
    ("value of type bytes", "no chat template has bytes"),
    ("float.fromhex", "no chat template reads hexadecimal floats"),
    ("complex number", "roots of negative numbers"),
    ("with \\N", "the names of all characters would be a megabyte"),
    ("iterating over the variable loop", "a loop that is taken forward from inside itself"),
];

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

#[derive(Deserialize)]
struct Chats {
    variables: Vec<Data>,
    cases: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    template: String,
    /// Which of the sets of variables.
    variables: usize,
    text: Option<String>,
}

/// `make_chats.py` asked the reference for them.
#[test]
fn templates_in_the_shape_of_published_ones_render_with_tools_and_documents() {
    let chats: Chats = serde_json::from_str(include_str!("chats.json")).unwrap();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chats");
    let mut wrong = Vec::new();
    for chat in &chats.cases {
        let template = std::fs::read_to_string(format!("{folder}/{}.jinja", chat.template)).unwrap();
        let rendered = render(&template, &chats.variables[chat.variables]);
        if rendered.as_ref().ok() != chat.text.as_ref() {
            let Chat { template, variables, text } = chat;
            wrong.push(format!("{template} with variables {variables}: the reference has {text:?}, not {rendered:?}"));
        }
    }
    assert!(chats.cases.len() > 1000, "{} cases", chats.cases.len());
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), chats.cases.len(), wrong.join("\n"));
}
