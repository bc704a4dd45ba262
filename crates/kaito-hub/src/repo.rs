use std::{fmt, str::FromStr};

use crate::Error;

/// Longest organisation or name that the hub allows.
const MAX_PART: usize = 96;

/// A model repository at a revision: `organisation/name`, or `organisation/name@revision`. Behind a colon there may be which of its
/// GGUF files is meant: `organisation/name:Q4_K_M`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repo {
    organisation: String,
    name: String,
    revision: String,
    variant: Option<String>,
}

impl Repo {
    /// `organisation/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// Branch, tag or commit; `main` unless given.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Which of its GGUF files is meant: a precision, as a rule.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Name of the repository's folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.organisation, self.name)
    }

    /// The revision as one segment of a URL path.
    pub(crate) fn escaped_revision(&self) -> String {
        self.revision.replace('/', "%2F")
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, ":{variant}"))
    }
}

impl FromStr for Repo {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::InvalidRepo { given: text.to_owned(), why: why.to_owned() };
        let (place, variant) = match text.split_once(':') {
            Some((place, variant)) => (place, Some(variant)),
            None => (text, None),
        };
        if variant.is_some_and(|variant| !is_safe_component(variant)) {
            return Err(invalid("what stands behind the colon names a GGUF file or its precision, as in :Q4_K_M"));
        }
        let (id, revision) = place.split_once('@').unwrap_or((place, "main"));
        let (organisation, name) = id.split_once('/').ok_or_else(|| invalid("it has no `/`"))?;
        for part in [organisation, name] {
            if !is_safe_component(part) || part.len() > MAX_PART || part.contains("--") {
                return Err(invalid(
                    "both parts take 1 to 96 letters, digits, `-`, `_` and `.`, begin with neither `-` nor `.`, \
                     and have no `--`",
                ));
            }
        }
        if revision.len() > 255 || !revision.split('/').all(is_safe_component) {
            return Err(invalid("a revision is a branch, a tag or a commit"));
        }
        Ok(Self {
            organisation: organisation.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

/// Whether a name that came from outside may become part of a path: it cannot leave its folder nor hide in it.
pub(crate) fn is_safe_component(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read() {
        for (text, id, revision) in [
            ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", "main"),
            ("mistralai/Mistral-7B-v0.1@refs/pr/1", "mistralai/Mistral-7B-v0.1", "refs/pr/1"),
            ("a/b@898df1396f35e447d5fe44e0a3ccaaaa69f30d36", "a/b", "898df1396f35e447d5fe44e0a3ccaaaa69f30d36"),
            ("a/b@v1:Q4_K_M", "a/b", "v1"),
            ("a/b-GGUF:b.Q8_0.gguf", "a/b-GGUF", "main"),
        ] {
            let repo: Repo = text.parse().unwrap();
            assert_eq!((repo.id().as_str(), repo.revision()), (id, revision));
            assert_eq!(repo.variant(), text.split_once(':').map(|(_, variant)| variant));
            assert_eq!(repo.to_string(), text);
        }
    }

    #[test]
    fn what_could_leave_the_cache_folder_is_no_id() {
        let long = format!("a/{}", "b".repeat(97));
        for text in [
            "", "llama", "a/b/c", "../b", "a/..", "/a", "a/", "a/b@", "a/b@../x", "a/b@/etc", "a\\b/c", "a/b c",
            "a--b/c", "-a/b", "a/b\0", "a/b:", "a/b:x:y", "a/b:../x", "a/b:.x", &long,
        ] {
            let error = text.parse::<Repo>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{text:?}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_folder_name_never_has_a_separator(text in ".{0,40}/.{0,40}") {
            if let Ok(repo) = text.parse::<Repo>() {
                proptest::prop_assert!(is_safe_component(&repo.folder()));
            }
        }
    }
}
