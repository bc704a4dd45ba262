//! The subcommands, a file for each.

pub mod bench;
pub mod chat;
pub mod controller;
pub mod crd;
pub mod devices;
pub mod download;
pub mod image;
pub mod install;
pub mod instance_types;
pub mod plan;
pub mod presets;
pub mod serve;
pub mod supervise;
pub mod up;
pub mod validate;

use std::{fs, path::Path};

use anyhow::{Context, anyhow};
use kaito_presets::{InstanceType, InstanceTypes, Preset};
use serde::Serialize;

/// The command has printed a negative answer and its reasons; the exit status says so too.
#[derive(Debug)]
pub struct Told;

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the output says what is wrong")
    }
}

impl std::error::Error for Told {}

fn pretty(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write it as JSON")?;
    text.push('\n');
    Ok(text)
}

/// The built-in instance types and those of a file.
fn instance_types(file: Option<&Path>) -> anyhow::Result<InstanceTypes> {
    let Some(file) = file else { return Ok(InstanceTypes::built_in()) };
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    kaito_operator::instance_types::from_file(&text).with_context(|| format!("in {}", file.display()))
}

/// The preset that somebody named.
fn preset(name: &str) -> anyhow::Result<&'static Preset> {
    kaito_presets::find(name).map_err(|unknown| anyhow!("{unknown}{} `kaito presets` lists all", next(&unknown)))
}

/// The instance type that somebody named.
fn instance_type<'a>(types: &'a InstanceTypes, name: &str) -> anyhow::Result<&'a InstanceType> {
    types.find(name).map_err(|unknown| anyhow!("{unknown}{} `kaito instance-types` lists all", next(&unknown)))
}

/// Separates a message from the hint that follows it; a message may be a question.
fn next(message: &impl ToString) -> &'static str {
    if message.to_string().ends_with('?') { "" } else { ";" }
}
