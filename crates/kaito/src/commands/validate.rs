//! `kaito validate`: the admission rules without a cluster.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use kaito_operator::{
    admission::FieldError,
    manifests::{self, Checked, Outcome},
};
use serde::Serialize;

use super::{Told, pretty};
use crate::{args::ValidateArgs, output::print};

/// An object, and the file that it stands in.
#[derive(Debug, Serialize)]
struct Found {
    file: String,
    #[serde(flatten)]
    checked: Checked,
}

pub fn run(args: &ValidateArgs) -> anyhow::Result<()> {
    let types = super::instance_types(args.instance_types.as_deref())?;
    let mut found = Vec::new();
    for path in &args.filename {
        for (file, text) in files(path)? {
            found.extend(
                manifests::check(&text, &types).into_iter().map(|checked| Found { file: file.clone(), checked }),
            );
        }
    }
    let refused = found.iter().filter(|one| matches!(one.checked.outcome, Outcome::Refused { .. })).count();
    let valid = found.iter().filter(|one| matches!(one.checked.outcome, Outcome::Valid { .. })).count();
    if args.json {
        print(&pretty(&found)?)?;
    } else {
        let mut text: String = found.iter().map(report).collect();
        text.push_str(&summary(&found, valid, refused));
        print(&text)?;
    }
    if refused > 0 {
        return Err(Told.into());
    }
    if valid == 0 {
        bail!("there is no workspace in what was given: an object of kind Workspace and apiVersion kaito.sh/v1beta1");
    }
    Ok(())
}

/// Every file that a path means, with its text.
fn files(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(vec![("-".to_owned(), text)]);
    }
    let paths = if path.is_dir() { manifests_in(path)? } else { vec![path.to_owned()] };
    if paths.is_empty() {
        bail!("there is no .yaml, .yml or .json file in {}", path.display());
    }
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((path.display().to_string(), text))
    };
    paths.into_iter().map(read).collect()
}

/// The manifests of a directory and of those in it, in the order of their names.
fn manifests_in(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("cannot read the directory {}", directory.display());
    let entries = fs::read_dir(directory).with_context(context)?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().with_context(context)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.path();
        // Not through links, which may lead around in a circle.
        if entry.file_type().with_context(context)?.is_dir() {
            files.extend(manifests_in(&path)?);
        } else if path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known)) {
            files.push(path);
        }
    }
    Ok(files)
}

fn report(found: &Found) -> String {
    let Found { file, checked } = found;
    let what = match (checked.kind.as_str(), checked.name.as_str()) {
        ("", _) => format!("document {}", checked.document),
        (kind, "") => kind.to_owned(),
        (kind, name) => format!("{kind} {name}"),
    };
    let place = format!("{file}:{}: {what}", checked.line);
    match &checked.outcome {
        Outcome::Skipped => format!("{place}: skipped, for only workspaces are checked\n"),
        Outcome::Valid { warnings } => format!("{place}: valid\n{}", lines(&[], warnings)),
        Outcome::Refused { errors, warnings } => format!("{place}: refused\n{}", lines(errors, warnings)),
    }
}

fn lines(errors: &[FieldError], warnings: &[String]) -> String {
    let errors = errors.iter().map(|error| format!("  error: {}\n", indented(&error.to_string())));
    let warnings = warnings.iter().map(|warning| format!("  warning: {}\n", indented(warning)));
    errors.chain(warnings).collect()
}

/// A parser shows the lines around a mistake.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

fn summary(found: &[Found], valid: usize, refused: usize) -> String {
    let warnings: usize = found
        .iter()
        .map(|one| match &one.checked.outcome {
            Outcome::Valid { warnings } | Outcome::Refused { warnings, .. } => warnings.len(),
            Outcome::Skipped => 0,
        })
        .sum();
    let skipped = found.len() - valid - refused;
    let mut parts = vec![format!("{valid} valid"), format!("{refused} refused")];
    if skipped > 0 {
        parts.push(format!("{skipped} skipped"));
    }
    if warnings > 0 {
        parts.push(format!("{warnings} {}", if warnings == 1 { "warning" } else { "warnings" }));
    }
    format!("{}\n", parts.join(", "))
}
