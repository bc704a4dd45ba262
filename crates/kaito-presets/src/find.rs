use std::fmt;

use crate::{PRESETS, Preset};

/// The preset of that name, or with that alias, whatever its case and wherever it has `_`, `-` or nothing: `Llama2_7b-chat` is
/// `llama-2-7b-chat`. What has a slash is the id of a model's card on the hub, in any case: `tiiuae/Falcon-7B`.
///
/// # Errors
///
/// [`UnknownPreset`], with the nearest name if one is near.
pub fn find(name: &str) -> Result<&'static Preset, UnknownPreset> {
    if name.contains('/') {
        let wanted = name.trim().to_lowercase();
        return PRESETS.iter().find(|preset| preset.hub_id.to_lowercase() == wanted).ok_or_else(|| UnknownPreset {
            name: name.to_owned(),
            nearest: nearest(&wanted, |preset| (preset.hub_id, preset.hub_id.to_lowercase())),
            beginning: Vec::new(),
        });
    }
    let wanted = normalised(name);
    PRESETS.iter().find(|preset| names(preset).any(|name| normalised(name) == wanted)).ok_or_else(|| UnknownPreset {
        name: name.to_owned(),
        nearest: nearest(&wanted, |preset| (preset.name, normalised(preset.name))),
        beginning: beginning(&wanted),
    })
}

fn names(preset: &Preset) -> impl Iterator<Item = &'static str> {
    std::iter::once(preset.name).chain(preset.aliases.iter().copied())
}

fn normalised(name: &str) -> String {
    name.trim().chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Longest name that is compared with others: no name is nearly as long, and the comparison takes time and memory.
const LONGEST: usize = 100;

/// The preset whose name has the least edit distance, if at most a third of the name would have to change. `called` gives the
/// name to show and the name to compare.
fn nearest(wanted: &str, called: impl Fn(&Preset) -> (&'static str, String)) -> Option<&'static str> {
    if wanted.len() > LONGEST {
        return None;
    }
    PRESETS
        .iter()
        .map(|preset| {
            let (shown, compared) = called(preset);
            (strsim::osa_distance(wanted, &compared), shown)
        })
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, _)| 3 * distance <= wanted.chars().count())
        .map(|(_, name)| name)
}

/// Shortest prefix of a name that is looked for.
const BEGINNING: usize = 3;

/// The presets whose names begin so: two for `phi-3`.
fn beginning(wanted: &str) -> Vec<&'static str> {
    let names = PRESETS.iter().map(|preset| preset.name);
    names.filter(|name| wanted.len() >= BEGINNING && normalised(name).starts_with(wanted)).collect()
}

/// No preset has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UnknownPreset {
    /// The name as it was given.
    pub name: String,
    /// The preset whose name differs least, if one is near enough to be meant.
    pub nearest: Option<&'static str>,
    /// The presets whose names begin so.
    pub beginning: Vec<&'static str>,
}

impl UnknownPreset {
    /// The presets that may be meant, as a question.
    pub fn question(&self) -> Option<String> {
        let names = match self.beginning.as_slice() {
            [] => self.nearest?.to_owned(),
            [only] => (*only).to_owned(),
            [first @ .., last] => format!("{} or {last}", first.join(", ")),
        };
        Some(format!("did you mean {names}?"))
    }
}

impl fmt::Display for UnknownPreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no preset {:?}", self.name)?;
        self.question().map_or(Ok(()), |question| write!(f, "; {question}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every spelling of a preset in the model documentation.
    const SPELLINGS: &[(&str, &str)] = &[
        ("llama-2-7b", "llama-2-7b"),
        ("llama-2-13b", "llama-2-13b"),
        ("llama-2-70b", "llama-2-70b"),
        ("llama-2-7b-chat", "llama-2-7b-chat"),
        ("llama-2-13b-chat", "llama-2-13b-chat"),
        ("llama-2-70b-chat", "llama-2-70b-chat"),
        ("llama2-7b", "llama-2-7b"),
        ("llama2-13b", "llama-2-13b"),
        ("llama2-70b", "llama-2-70b"),
        ("llama2_7b", "llama-2-7b"),
        ("llama2_13b", "llama-2-13b"),
        ("llama2_70b", "llama-2-70b"),
        ("llama2_7b-chat", "llama-2-7b-chat"),
        ("llama2_13b-chat", "llama-2-13b-chat"),
        ("llama2_70b-chat", "llama-2-70b-chat"),
        ("falcon_7b", "falcon-7b"),
        ("falcon_7b-instruct", "falcon-7b-instruct"),
        ("falcon_40b", "falcon-40b"),
        ("falcon_40b-instruct", "falcon-40b-instruct"),
        ("mistral_7b", "mistral-7b"),
        ("mistral_7b-instruct", "mistral-7b-instruct"),
        ("mistral-7b-instruct", "mistral-7b-instruct"),
        ("phi-3-mini-4k-instruct", "phi-3-mini-4k-instruct"),
        ("phi-3-mini-128k-instruct", "phi-3-mini-128k-instruct"),
        ("phi3_mini_4k_instruct", "phi-3-mini-4k-instruct"),
        ("LLaMA-2-7B-Chat", "llama-2-7b-chat"),
        (" FALCON-7B ", "falcon-7b"),
        ("smollm2", "smollm2-135m-instruct"),
        ("SmolLM2-135M", "smollm2-135m-instruct"),
    ];

    #[test]
    fn every_documented_spelling_resolves() {
        for &(spelling, name) in SPELLINGS {
            assert_eq!(find(spelling).map(|preset| preset.name), Ok(name), "{spelling:?}");
        }
    }

    #[test]
    fn every_name_and_alias_of_the_catalogue_resolves_to_its_own_preset() {
        for preset in PRESETS {
            for name in names(preset) {
                assert_eq!(find(name).map(|found| found.name), Ok(preset.name), "{name:?}");
            }
        }
    }

    #[test]
    fn the_id_of_a_card_in_any_case_is_its_preset() {
        for preset in PRESETS {
            let id = preset.hub_id;
            for spelling in [id.to_owned(), id.to_lowercase(), id.to_uppercase(), format!(" {id}\n")] {
                assert_eq!(find(&spelling).map(|found| found.name), Ok(preset.name), "{spelling:?}");
            }
        }
        // Hyphens tell repositories apart, and so do organisations.
        for (id, words) in [
            ("tiiuae/falcon7b", "; did you mean tiiuae/falcon-7b?"),
            ("mistralai/Mistral-7B-Instruct-v0.3", "; did you mean mistralai/Mistral-7B-Instruct-v0.2?"),
            ("microsoft/Phi-3-mini-8k-instruct", "; did you mean microsoft/Phi-3-mini-4k-instruct?"),
            ("Qwen/Qwen2.5-Coder-7B-Instruct", ""),
            ("someone/falcon-7b-instruct-of-ours", ""),
            ("/", ""),
            ("tiiuae/", ""),
            ("tiiuae/falcon-7b/main", "; did you mean tiiuae/falcon-7b?"),
        ] {
            assert_eq!(find(id).unwrap_err().to_string(), format!("there is no preset {id:?}{words}"));
        }
        assert_eq!(find(&"a/".repeat(1 << 20)).unwrap_err().nearest, None);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_one() {
        for (name, nearest) in [
            ("llama-2-7b-chta", Some("llama-2-7b-chat")),
            ("lama2-7b", Some("llama-2-7b")),
            ("mistal-7b-instruct", Some("mistral-7b-instruct")),
            ("phi-3-mini-8k-instruct", Some("phi-3-mini-4k-instruct")),
            ("gpt-4", None),
            ("phi-3", None),
            ("", None),
        ] {
            let error = find(name).unwrap_err();
            assert_eq!(error.nearest, nearest, "{name:?}");
            assert!(error.to_string().starts_with(&format!("there is no preset {name:?}")), "{error}");
        }
    }

    #[test]
    fn the_beginning_of_a_name_is_answered_with_the_names() {
        for (name, words) in [
            ("phi-3", "; did you mean phi-3-mini-4k-instruct or phi-3-mini-128k-instruct?"),
            ("Falcon_40", "; did you mean falcon-40b or falcon-40b-instruct?"),
            (
                "llama-2",
                "; did you mean llama-2-7b, llama-2-7b-chat, llama-2-13b, llama-2-13b-chat, llama-2-70b or \
                 llama-2-70b-chat?",
            ),
            ("smol", "; did you mean smollm2-135m-instruct?"),
            ("phi-3-mini-128k", "; did you mean phi-3-mini-128k-instruct?"),
            ("ph", ""),
            ("", ""),
        ] {
            assert_eq!(find(name).unwrap_err().to_string(), format!("there is no preset {name:?}{words}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_string_gets_an_answer(name in ".*") {
            if let Ok(preset) = find(&name) {
                let is_card = name.trim().eq_ignore_ascii_case(preset.hub_id);
                proptest::prop_assert!(is_card || names(preset).any(|one| normalised(one) == normalised(&name)));
            }
        }
    }
}
