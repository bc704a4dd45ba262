//! Which files of a repository are needed to run its model.

use std::{collections::BTreeSet, fs, io::Read, path::Path};

use crate::{gguf, repo::is_safe_component};

/// Small files beside the weights, which are fetched if a repository has them.
const COMPANIONS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// The configuration of a model in the hub's own format.
const CONFIG: &str = "config.json";

/// The folder of further chat templates, each a file `NAME.jinja`, which stands beside chat_template.jinja.
const TEMPLATES: &str = "additional_chat_templates";

/// An index of shards is read up to this length. The largest published ones have some 100 kB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A format of weights: a single file, or shards with their index.
struct Format {
    single: &'static str,
    index: &'static str,
    shard_prefix: &'static str,
    shard_suffix: &'static str,
}

/// In order of preference.
const FORMATS: &[Format] = &[
    Format {
        single: "model.safetensors",
        index: "model.safetensors.index.json",
        shard_prefix: "model-",
        shard_suffix: ".safetensors",
    },
    Format {
        single: "pytorch_model.bin",
        index: "pytorch_model.bin.index.json",
        shard_prefix: "pytorch_model-",
        shard_suffix: ".bin",
    },
];

/// The files to fetch out of all files of a repository: one format of weights, never two, and what stands beside it. GGUF files stand
/// alone; they are taken where `variant` names one, or where there is nothing else.
///
/// # Errors
///
/// What is missing, and what there is instead.
pub(crate) fn needed<'a>(files: &[&'a str], variant: Option<&str>) -> Result<Vec<&'a str>, String> {
    if variant.is_some() {
        return gguf::needed(files, variant);
    }
    let present: BTreeSet<&str> = files.iter().copied().collect();
    let published = FORMATS.iter().find_map(|format| {
        let weights = weights_of(format, &present);
        (!weights.is_empty()).then_some(weights)
    });
    let (weights, config) = match published {
        Some(weights) => (weights, CONFIG),
        None => {
            let shards: Vec<&str> = present.iter().copied().filter(|name| is_meta_shard(name)).collect();
            if shards.is_empty() && files.iter().any(|file| file.ends_with(".gguf")) {
                return gguf::needed(files, None);
            }
            if shards.is_empty() {
                return Err(format!(
                    "it has neither model.safetensors nor pytorch_model.bin nor consolidated.00.pth, single or sharded{}",
                    instead(files)
                ));
            }
            (shards, "params.json")
        }
    };
    if !present.contains(config) {
        return Err(format!("it has weights, but no {config}"));
    }
    let is_beside = |name: &&str| *name == config || COMPANIONS.contains(name) || is_template(name);
    let beside = present.iter().copied().filter(is_beside);
    let needed: BTreeSet<&str> = beside.chain(weights).collect();
    Ok(needed.into_iter().collect())
}

/// The files beside the weights out of all files of a repository.
///
/// # Errors
///
/// A repository without a configuration.
pub(crate) fn beside_weights<'a>(files: &[&'a str]) -> Result<Vec<&'a str>, String> {
    if !files.contains(&CONFIG) {
        return Err(format!("it has no {CONFIG}"));
    }
    let beside: BTreeSet<&str> =
        files.iter().copied().filter(|name| COMPANIONS.contains(name) || is_template(name)).collect();
    Ok(beside.into_iter().collect())
}

fn weights_of<'a>(format: &Format, present: &BTreeSet<&'a str>) -> Vec<&'a str> {
    if let Some(single) = present.get(format.single) {
        return vec![single];
    }
    if !present.contains(format.index) {
        return Vec::new();
    }
    let is_part = |name: &&str| *name == format.index || is_shard(format, name);
    present.iter().copied().filter(is_part).collect()
}

/// `additional_chat_templates/tool_use.jinja`.
fn is_template(name: &str) -> bool {
    let file = name.strip_prefix(TEMPLATES).and_then(|name| name.strip_prefix('/'));
    file.is_some_and(|file| is_safe_component(file) && file.ends_with(".jinja"))
}

/// `model-00001-of-00003.safetensors`.
fn is_shard(format: &Format, name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix(format.shard_prefix)
        .and_then(|name| name.strip_suffix(format.shard_suffix))
        .and_then(|middle| middle.split_once("-of-"))
        .is_some_and(|(number, count)| digits(number) && digits(count))
}

/// `consolidated.00.pth`.
fn is_meta_shard(name: &str) -> bool {
    name.strip_prefix("consolidated.")
        .and_then(|name| name.strip_suffix(".pth"))
        .is_some_and(|number| number.len() == 2 && number.bytes().all(|b| b.is_ascii_digit()))
}

fn instead(files: &[&str]) -> String {
    let weights: Vec<&str> = files
        .iter()
        .copied()
        .filter(|name| [".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5"].iter().any(|s| name.ends_with(s)))
        .take(3)
        .collect();
    if weights.is_empty() { String::new() } else { format!(" (there are {} instead)", weights.join(", ")) }
}

/// Whether a snapshot holds a whole model, or what is beside its weights. Gives its first GGUF file, if it is made of such.
///
/// # Errors
///
/// What is missing.
pub(crate) fn check_complete(snapshot: &Path, variant: Option<&str>, weights: bool) -> Result<Option<String>, String> {
    let error = |error: std::io::Error| format!("{}: {error}", snapshot.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(snapshot).map_err(error)?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A link whose blob is gone does not count.
        if entry.path().is_file() {
            names.push(name);
        } else if let Ok(inner) = fs::read_dir(entry.path()) {
            let files = inner.flatten().filter(|entry| entry.path().is_file());
            names.extend(files.filter_map(|entry| Some(format!("{name}/{}", entry.file_name().into_string().ok()?))));
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if !weights {
        return beside_weights(&names).map(|_| None);
    }
    let needed = needed(&names, variant)?;
    for index in needed.iter().filter(|name| name.ends_with(".index.json")) {
        for shard in shards_of(&snapshot.join(index))? {
            if !names.contains(&shard.as_str()) {
                return Err(format!("{shard} is missing"));
            }
        }
    }
    Ok(first_gguf(&needed))
}

/// The first GGUF file of those that are needed, if they are such.
pub(crate) fn first_gguf(needed: &[&str]) -> Option<String> {
    needed.iter().find(|name| name.to_ascii_lowercase().ends_with(".gguf")).map(|name| (*name).to_owned())
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

fn shards_of(index: &Path) -> Result<BTreeSet<String>, String> {
    let read = || {
        let mut text = Vec::new();
        fs::File::open(index)?.take(MAX_INDEX_BYTES).read_to_end(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    let text = read().map_err(|error| format!("{}: {error}", index.display()))?;
    let text = kaito_json::standard(&text);
    let index: Index = serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", index.display()))?;
    Ok(index.weight_map.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// File lists as published.
    #[test]
    fn one_format_is_chosen_and_only_what_is_needed() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "Llama 2 for transformers: both formats",
                &[
                    ".gitattributes",
                    "LICENSE.txt",
                    "README.md",
                    "config.json",
                    "generation_config.json",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model.safetensors.index.json",
                    "pytorch_model-00001-of-00002.bin",
                    "pytorch_model-00002-of-00002.bin",
                    "pytorch_model.bin.index.json",
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer.model",
                    "tokenizer_config.json",
                ],
                &[
                    "config.json",
                    "generation_config.json",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model.safetensors.index.json",
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer.model",
                    "tokenizer_config.json",
                ],
            ),
            (
                "a second copy of the weights under another name",
                &["config.json", "consolidated.safetensors", "model.safetensors", "params.json", "tokenizer.model.v3"],
                &["config.json", "model.safetensors"],
            ),
            (
                "torch only, with code of its own",
                &["config.json", "modeling_falcon.py", "pytorch_model.bin", "tokenizer.json", "coreml/model.bin"],
                &["config.json", "pytorch_model.bin", "tokenizer.json"],
            ),
            (
                "named chat templates, and files that only look like them",
                &[
                    "additional_chat_templates/../config.json",
                    "additional_chat_templates/.hidden.jinja",
                    "additional_chat_templates/README.md",
                    "additional_chat_templates/rag.jinja",
                    "additional_chat_templates/tool_use.jinja",
                    "additional_chat_templates/x/y.jinja",
                    "chat_template.jinja",
                    "config.json",
                    "model.safetensors",
                    "other/tool_use.jinja",
                ],
                &[
                    "additional_chat_templates/rag.jinja",
                    "additional_chat_templates/tool_use.jinja",
                    "chat_template.jinja",
                    "config.json",
                    "model.safetensors",
                ],
            ),
            (
                "Meta's own",
                &[
                    "LICENSE.txt",
                    "checklist.chk",
                    "consolidated.00.pth",
                    "consolidated.01.pth",
                    "params.json",
                    "tokenizer.model",
                ],
                &["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"],
            ),
        ];
        for (what, files, expected) in cases {
            assert_eq!(needed(files, None).as_deref(), Ok(*expected), "{what}");
        }
    }

    #[test]
    fn a_repository_without_a_model_is_refused_with_what_it_has() {
        for (files, message) in [
            (&["README.md", "a.Q4_0.gguf", "a.Q8_0.gguf"][..], "2 models in GGUF files"),
            (&["README.md", "model.onnx"], "model.onnx"),
            (&["model.safetensors"], "no config.json"),
            (&["consolidated.00.pth"], "no params.json"),
            (&["config.json", "model-00001-of-00002.safetensors"], "neither model.safetensors nor"),
            (&["config.json", "../model.safetensors", "/model.safetensors"], "neither"),
            (&[], "neither"),
        ] {
            let error = needed(files, None).unwrap_err();
            assert!(error.contains(message), "{files:?}: {error}");
        }
    }

    #[test]
    fn a_snapshot_with_a_shard_missing_is_not_complete() {
        let snapshot = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(snapshot.path().join(name), text).unwrap();
        write("config.json", "{}");
        write(
            "model.safetensors.index.json",
            r#"{"metadata":{"total_size":NaN},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
        );
        write("model-00001-of-00002.safetensors", "");
        assert_eq!(
            check_complete(snapshot.path(), None, true),
            Err("model-00002-of-00002.safetensors is missing".to_owned())
        );
        write("model-00002-of-00002.safetensors", "");
        assert_eq!(check_complete(snapshot.path(), None, true), Ok(None));
        assert!(check_complete(snapshot.path(), Some("Q4_0"), true).is_err());
        write("m.Q4_0.gguf", "");
        assert_eq!(check_complete(snapshot.path(), Some("Q4_0"), true), Ok(Some("m.Q4_0.gguf".to_owned())));
        write("model.safetensors.index.json", "[");
        assert!(
            check_complete(snapshot.path(), None, true)
                .is_err_and(|error| error.contains("model.safetensors.index.json"))
        );
    }
}
