//! Which of a repository's GGUF files are meant: such repositories hold one model in many precisions, a file or several for each.

use std::collections::BTreeMap;

use crate::repo::is_safe_component;

const SUFFIX: &str = ".gguf";
/// Files that belong to a model of text, but are none.
const PROJECTORS: &str = "mmproj";
/// Most models that an error lists.
const LISTED: usize = 12;

/// The files of one model.
struct Files<'a> {
    /// Number of parts that their names announce, and those that are there.
    count: usize,
    names: Vec<&'a str>,
}

/// The files of the model that `variant` names, in order: the precision as a rule, such as `Q4_K_M`, or a file. Without it, of the only
/// model.
///
/// # Errors
///
/// What there is instead.
pub(crate) fn needed<'a>(files: &[&'a str], variant: Option<&str>) -> Result<Vec<&'a str>, String> {
    let models = models(files);
    if models.is_empty() {
        return Err("it has no GGUF files".to_owned());
    }
    let matching: Vec<(&String, &Files)> =
        models.iter().filter(|(model, _)| variant.is_none_or(|variant| names(model, variant))).collect();
    match (matching.as_slice(), variant) {
        ([(_, one)], _) if one.names.len() == one.count => Ok(one.names.clone()),
        ([(model, one)], _) => Err(format!("{model} has {} parts, of which {} are there", one.count, one.names.len())),
        ([], Some(variant)) => Err(format!("none of its GGUF models is {variant}: {}", list(models.keys()))),
        (several, Some(variant)) => {
            Err(format!("{variant} may be any of {}", list(several.iter().map(|(model, _)| *model))))
        }
        (several, None) => {
            let example = several.first().map_or("", |(model, _)| model.rsplit(['.', '/']).next().unwrap_or(model));
            Err(format!(
                "it has {} models in GGUF files ({}): name one behind a colon, as in :{example}",
                several.len(),
                list(several.iter().map(|(model, _)| *model))
            ))
        }
    }
}

/// The models by name: the path of a file without its ending and without the number of the part.
fn models<'a>(files: &[&'a str]) -> BTreeMap<String, Files<'a>> {
    let mut models: BTreeMap<String, Files> = BTreeMap::new();
    let mut sorted: Vec<&str> = files.iter().copied().filter(|file| is_model(file)).collect();
    sorted.sort_unstable();
    for file in sorted {
        let stem = file.get(..file.len() - SUFFIX.len()).unwrap_or(file);
        let (model, count) = part(stem).unwrap_or((stem, 1));
        let of_model = models.entry(model.to_owned()).or_insert(Files { count, names: Vec::new() });
        of_model.names.push(file);
    }
    models
}

/// Whether a file is one of a model's: in the repository's root, or in a folder there.
fn is_model(file: &str) -> bool {
    let parts: Vec<&str> = file.split('/').collect();
    let last = parts.last().copied().unwrap_or_default();
    parts.len() <= 2
        && parts.iter().all(|part| is_safe_component(part))
        && last.len() > SUFFIX.len()
        && last.get(last.len() - SUFFIX.len()..).is_some_and(|end| end.eq_ignore_ascii_case(SUFFIX))
        && !last.starts_with(PROJECTORS)
}

/// Model and number of parts of `MODEL-00002-of-00003`.
fn part(stem: &str) -> Option<(&str, usize)> {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (rest, count) = stem.rsplit_once("-of-").filter(|(_, count)| is_number(count))?;
    let (model, _) = rest.rsplit_once('-').filter(|(_, part)| is_number(part))?;
    count.parse().ok().map(|count| (model, count))
}

/// Whether `variant` is a model's name or a part of it between two of `-`, `.` and `/`, in letters of any case. So `Q4_K` is none of
/// `Q4_K_M`.
fn names(model: &str, variant: &str) -> bool {
    let variant = variant.to_lowercase();
    let variant = variant.strip_suffix(SUFFIX).unwrap_or(&variant);
    let model = model.to_lowercase();
    let is_end = |character: Option<char>| character.is_none_or(|character| "-./".contains(character));
    model.match_indices(variant).any(|(at, found)| {
        let before = model.get(..at).and_then(|text| text.chars().next_back());
        is_end(before) && is_end(model.get(at + found.len()..).and_then(|text| text.chars().next()))
    })
}

fn list<'a>(models: impl Iterator<Item = &'a String>) -> String {
    let models: Vec<&str> = models.map(String::as_str).collect();
    let more = if models.len() > LISTED { ", ..." } else { "" };
    format!("{}{more}", models.get(..LISTED.min(models.len())).unwrap_or_default().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 11] = [
        ".gitattributes",
        "README.md",
        "config.json",
        "llama-2-7b.Q4_K_M.gguf",
        "llama-2-7b.Q4_K_S.gguf",
        "llama-2-7b.Q8_0.gguf",
        "mmproj-f16.gguf",
        "BF16/llama-2-7b-BF16-00001-of-00002.gguf",
        "BF16/llama-2-7b-BF16-00002-of-00002.gguf",
        "llama-2-7b-F16-00001-of-00002.gguf",
        "../llama-2-7b-F32.gguf",
    ];

    #[test]
    fn a_precision_names_one_model_with_all_its_parts() {
        for (variant, expected) in [
            ("Q4_K_M", Ok(vec!["llama-2-7b.Q4_K_M.gguf"])),
            ("q8_0", Ok(vec!["llama-2-7b.Q8_0.gguf"])),
            ("llama-2-7b.Q8_0.gguf", Ok(vec!["llama-2-7b.Q8_0.gguf"])),
            ("BF16", Ok(vec!["BF16/llama-2-7b-BF16-00001-of-00002.gguf", "BF16/llama-2-7b-BF16-00002-of-00002.gguf"])),
            ("F16", Err("llama-2-7b-F16 has 2 parts, of which 1 are there")),
            ("Q4_K", Err("none of its GGUF models is Q4_K: BF16/llama-2-7b-BF16, llama-2-7b-F16, ")),
            ("llama-2-7b", Err("llama-2-7b may be any of BF16/llama-2-7b-BF16, llama-2-7b-F16, ")),
            ("F32", Err("none of its GGUF models is F32")),
        ] {
            match (needed(&FILES, Some(variant)), expected) {
                (Ok(found), expected) => assert_eq!(Ok(found), expected, "{variant}"),
                (Err(error), expected) => {
                    let begin = expected.unwrap_err();
                    assert!(error.starts_with(begin), "{variant}: {error}");
                }
            }
        }
    }

    #[test]
    fn without_a_precision_there_must_be_one_model() {
        assert_eq!(needed(&["a.Q4_0.gguf", "README.md"], None), Ok(vec!["a.Q4_0.gguf"]));
        let error = needed(&["a.Q4_0.gguf", "a.Q8_0.gguf"], None).unwrap_err();
        assert_eq!(error, "it has 2 models in GGUF files (a.Q4_0, a.Q8_0): name one behind a colon, as in :Q4_0");
        assert_eq!(needed(&["README.md"], None), Err("it has no GGUF files".to_owned()));
    }
}
