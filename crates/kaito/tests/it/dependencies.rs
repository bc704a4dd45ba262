//! Licences, sources and bans of all dependencies, as deny.toml has them: without the network, and without cargo-deny, which
//! checks the same and the advisories beside it (`.ci/advisories`).

use std::{fs, process::Command};

use kaito_testing::{files::repository, process::text};
use serde_json::Value;

/// The texts in quotes of one list of deny.toml: all of them, or those of one key of its tables.
fn listed(section: &str, list: &str, key: Option<&str>) -> Vec<String> {
    let text = fs::read_to_string(repository().join("deny.toml")).unwrap();
    let section = text.split("\n[").find(|part| part.starts_with(&format!("{section}]"))).unwrap();
    let list = section.split_once(&format!("\n{list} = [")).unwrap().1.split_once(']').unwrap().0.to_owned();
    let texts = list.split('"').collect::<Vec<_>>();
    let pairs = texts.chunks_exact(2).map(|pair| (pair[0].trim_end(), pair[1]));
    let wanted = pairs.filter(|(before, _)| key.is_none_or(|key| before.ends_with(&format!("{key} ="))));
    wanted.map(|(_, text)| text.to_owned()).collect()
}

/// Whether a licence expression holds when these licences are accepted: SPDX, and its older form with slashes for OR.
fn holds(expression: &str, accepted: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let outcome = any(&mut rest, accepted);
    outcome && rest.is_empty()
}

fn any(words: &mut &[&str], accepted: &[String]) -> bool {
    let mut outcome = all(words, accepted);
    while let ["OR", rest @ ..] = words {
        *words = rest;
        outcome |= all(words, accepted);
    }
    outcome
}

fn all(words: &mut &[&str], accepted: &[String]) -> bool {
    let mut outcome = one(words, accepted);
    while let ["AND", rest @ ..] = words {
        *words = rest;
        outcome &= one(words, accepted);
    }
    outcome
}

fn one(words: &mut &[&str], accepted: &[String]) -> bool {
    let is_accepted = |licence: &str| accepted.iter().any(|other| other == licence);
    let (outcome, rest) = match words {
        ["(", rest @ ..] => {
            *words = rest;
            let outcome = any(words, accepted);
            let [")", rest @ ..] = words else { return false };
            (outcome, rest)
        }
        [licence, "WITH", exception, rest @ ..] => (is_accepted(&format!("{licence} WITH {exception}")), rest),
        [licence, rest @ ..] => (is_accepted(licence), rest),
        [] => return false,
    };
    *words = rest;
    outcome
}

#[test]
fn expressions_of_licences() {
    let accepted = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("MIT/GPL-2.0", true),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH LLVM-exception", false),
        ("(MIT OR Apache-2.0) AND ISC", true),
        ("MIT AND (Apache-2.0 OR GPL-3.0-only)", false),
        // AND binds more closely.
        ("MIT OR GPL-3.0-only AND Apache-2.0", true),
        ("(MIT", false),
        ("MIT)", false),
        ("", false),
    ] {
        assert_eq!(holds(expression, &accepted), expected, "{expression}");
    }
}

/// Of what is built for this machine; cargo-deny looks at other systems too.
#[test]
fn every_dependency_has_a_licence_that_is_accepted() {
    let accepted = listed("licenses", "allow", None);
    assert!(accepted.contains(&"MIT".to_owned()), "{accepted:?}");
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = text(&version.stdout);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    // In other places than this a package may be missing that no machine of this kind needs.
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host]);
    let output = metadata.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{}", packages.len());
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or("none at all"));
        assert!(holds(licence, &accepted), "the licence of {name} is {licence}; deny.toml accepts {accepted:?}");
    }
}

#[test]
fn every_dependency_comes_from_the_registry_and_none_is_banned() {
    let sources = listed("sources", "allow-registry", None);
    let banned = listed("bans", "deny", Some("crate"));
    assert!(sources.len() == 1 && banned.contains(&"openssl-sys".to_owned()), "{sources:?} {banned:?}");
    let text = fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    let of = |key: &str| {
        let start = format!("{key} = \"");
        text.lines().filter_map(|line| Some(line.strip_prefix(&start)?.trim_end_matches('"'))).collect::<Vec<_>>()
    };
    let (found, names) = (of("source"), of("name"));
    assert!(found.len() > 50 && names.len() > found.len(), "{} of {}", found.len(), names.len());
    for source in found {
        let registry = source.strip_prefix("registry+");
        assert!(registry.is_some_and(|registry| sources.iter().any(|known| known == registry)), "{source}");
    }
    for name in names {
        assert!(!banned.iter().any(|other| other == name), "deny.toml says why {name} is banned");
    }
}
