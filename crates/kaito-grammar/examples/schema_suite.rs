//! How well grammars keep to JSON schemas, measured by suites that others wrote:
//!
//! ```text
//! cargo run --release -p kaito-grammar --example schema_suite -- DIR [TOKENIZER]
//! ```
//!
//! DIR holds files of the JSON Schema Test Suite (such as `tests/draft2020-12`), MaskBench's `data`, or both, in any depth.
//! TOKENIZER is a model's directory, the demo model's where none is given. Each instance is written as compact JSON, tokenised,
//! and fed to its schema's grammar token by token. A line for each case that is judged wrongly goes to standard error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kaito_engine::{Cancel, TokenMask};
use kaito_grammar::{Grammar, Grammars};
use kaito_model::tokenizer::{Special, Tokenizer};
use serde_json::Value;

/// Instances of one schema.
struct Case {
    schema: Value,
    instances: Vec<(Value, bool, String)>,
}

#[derive(Default)]
struct Tally {
    schemas: usize,
    refused_schemas: usize,
    /// The reasons for which schemas are refused.
    reasons: BTreeMap<String, usize>,
    right: usize,
    refused: usize,
    wrongly_accepted: usize,
    wrongly_rejected: usize,
    masks: Vec<Duration>,
    first_masks: Vec<Duration>,
}

struct Suite {
    tokenizer: Tokenizer,
    rows: usize,
    strict: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("give a folder of suites")?);
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let tokenizer = Tokenizer::open(&arguments.next().map_or(demo, PathBuf::from))?;
    let rows = tokenizer.vocab_size();
    let mut folders: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    collect(&directory, &mut folders)?;
    println!(
        "| folder | mode | schemas | refused | instances | right | of refused | wrongly accepted | wrongly rejected | mask p50 | p99 | first mask p50 | p99 |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (folder, files) in &folders {
        for strict in [true, false] {
            let suite = Suite { tokenizer: tokenizer.clone(), rows, strict };
            let grammars = Grammars::new(tokenizer.clone(), rows, tokenizer.eos_token_id().into_iter().collect());
            let mut tally = Tally::default();
            for file in files {
                let Ok(content) = serde_json::from_str::<Value>(&fs::read_to_string(file)?) else { continue };
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                for case in cases(&content) {
                    suite.judge(&grammars, &name, &case, &mut tally);
                }
            }
            print(folder.strip_prefix(&directory).unwrap_or(folder), strict, &mut tally);
        }
    }
    Ok(())
}

/// The JSON files of each folder.
fn collect(directory: &Path, folders: &mut BTreeMap<PathBuf, Vec<PathBuf>>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, folders)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            folders.entry(directory.to_owned()).or_default().push(path);
        }
    }
    Ok(())
}

/// The cases of a file: a list of them as in the JSON Schema Test Suite, or one as in MaskBench.
fn cases(content: &Value) -> Vec<Case> {
    let case = |value: &Value| {
        let instances = value.get("tests")?.as_array()?.iter().filter_map(|test| {
            let description = test.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
            Some((test.get("data")?.clone(), test.get("valid")?.as_bool()?, description))
        });
        Some(Case { schema: value.get("schema")?.clone(), instances: instances.collect() })
    };
    match content {
        Value::Array(list) => list.iter().filter_map(case).collect(),
        one => case(one).into_iter().collect(),
    }
}

impl Suite {
    fn tokens(&self, text: &str) -> Vec<u32> {
        let before = self.tokenizer.encode("\n", Special::Skip).unwrap_or_default();
        let mut tokens = self.tokenizer.encode(&format!("\n{text}"), Special::Skip).unwrap_or_default();
        tokens.drain(..before.len().min(tokens.len()));
        tokens
    }

    fn judge(&self, grammars: &Grammars, name: &str, case: &Case, tally: &mut Tally) {
        let grammar = Grammar::JsonSchema { schema: case.schema.clone(), strict: self.strict, whitespace: None };
        tally.schemas += 1;
        let start = Instant::now();
        let compiled = grammars.constraint(&grammar, &Cancel::default()).map(|mut constraint| {
            constraint.mask(&mut TokenMask::of(self.rows, &[]));
            constraint
        });
        match compiled {
            Err(error) => {
                let reason: String = error.to_string().chars().take(70).collect();
                *tally.reasons.entry(reason).or_default() += 1;
                tally.refused_schemas += 1;
                tally.refused += case.instances.len();
            }
            Ok(constraint) => {
                tally.first_masks.push(start.elapsed());
                for (instance, valid, description) in &case.instances {
                    let mut constraint = constraint.fork();
                    let mut accepted = true;
                    for token in self.tokens(&instance.to_string()) {
                        let mut mask = TokenMask::of(self.rows, &[]);
                        if !constraint.is_finished() {
                            let start = Instant::now();
                            constraint.mask(&mut mask);
                            tally.masks.push(start.elapsed());
                        }
                        if constraint.is_finished() || !constraint.accept(token) {
                            accepted = false;
                            break;
                        }
                    }
                    accepted &= constraint.may_end();
                    match (accepted, valid) {
                        (true, false) => tally.wrongly_accepted += 1,
                        (false, true) => tally.wrongly_rejected += 1,
                        _ => tally.right += 1,
                    }
                    if accepted != *valid {
                        let mode = if self.strict { "strict" } else { "lenient" };
                        eprintln!("{mode} {name}: {description}: accepted {accepted}, valid {valid}");
                    }
                }
            }
        }
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> String {
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or_else(|| "-".to_owned(), |time| format!("{:.3} ms", time.as_secs_f64() * 1e3))
}

fn print(folder: &Path, strict: bool, tally: &mut Tally) {
    let Tally { schemas, refused_schemas, right, refused, wrongly_accepted, wrongly_rejected, .. } = *tally;
    let instances = right + refused + wrongly_accepted + wrongly_rejected;
    let mode = if strict { "strict" } else { "lenient" };
    let [p50, p99] = [50, 99].map(|percent| percentile(&mut tally.masks, percent));
    let [first_p50, first_p99] = [50, 99].map(|percent| percentile(&mut tally.first_masks, percent));
    println!(
        "| {} | {mode} | {schemas} | {refused_schemas} | {instances} | {right} | {refused} | {wrongly_accepted} | \
         {wrongly_rejected} | {p50} | {p99} | {first_p50} | {first_p99} |",
        folder.display()
    );
    let mut reasons: Vec<_> = std::mem::take(&mut tally.reasons).into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons.iter().take(12) {
        eprintln!("{mode} refused {count}: {reason}");
    }
}
