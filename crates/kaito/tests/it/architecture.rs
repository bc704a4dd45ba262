//! The invariants of ARCHITECTURE.md that a look at the sources can check.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a crate may use, by its manifest; what its tests use does not count.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(crates().join(name).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[").find(|section| section.starts_with("dependencies]")).unwrap_or_default();
    section
        .lines()
        .skip(1)
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(String::from)
        .collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn each_crate_knows_only_those_below_it() {
    for (name, may_know) in [
        ("kaito-spec", &[][..]),
        ("kaito-kernels", &["kaito-spec"]),
        ("kaito-presets", &["kaito-spec"]),
        ("kaito-json", &[]),
        ("kaito-net", &[]),
        ("kaito-hub", &["kaito-json", "kaito-net"]),
        ("kaito-jinja", &[]),
        ("kaito-metrics", &[]),
        ("kaito-model", &["kaito-jinja", "kaito-json", "kaito-kernels", "kaito-spec"]),
        ("kaito-engine", &["kaito-kernels", "kaito-model"]),
        ("kaito-grammar", &["kaito-engine", "kaito-model"]),
        ("kaito-server", &["kaito-engine", "kaito-grammar", "kaito-metrics"]),
        ("kaito-operator", &["kaito-metrics", "kaito-presets", "kaito-supervisor"]),
        ("kaito-supervisor", &["kaito-client"]),
        ("kaito-image", &["kaito-model", "kaito-net", "kaito-presets"]),
        ("kaito-client", &["kaito-net"]),
        ("kaito-upstream", &["kaito-client", "kaito-engine", "kaito-server"]),
        ("kaito-bench", &["kaito-client", "kaito-engine", "kaito-kernels", "kaito-model", "kaito-server"]),
        ("kaito-testing", &["kaito-engine", "kaito-server"]),
        ("random-checkpoint", &["kaito-presets"]),
        (
            "kaito",
            &[
                "kaito-bench",
                "kaito-client",
                "kaito-engine",
                "kaito-hub",
                "kaito-image",
                "kaito-operator",
                "kaito-presets",
                "kaito-server",
                "kaito-supervisor",
                "kaito-upstream",
            ],
        ),
    ] {
        for known in dependencies(name).iter().filter(|known| known.starts_with("kaito")) {
            assert!(may_know.contains(&known.as_str()), "{name} must not know {known}");
        }
    }
}

#[test]
fn no_program_is_built_with_what_tests_share() {
    let all: Vec<_> = fs::read_dir(crates()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(all.iter().any(|name| name == "kaito-testing"), "{all:?}");
    for name in all {
        let name = name.to_str().unwrap();
        assert!(!dependencies(name).contains("kaito-testing"), "{name} uses it outside its tests");
    }
}

#[test]
fn the_engine_knows_no_http() {
    for crate_name in ["axum", "hyper", "tower", "tower-http", "reqwest", "ureq"] {
        for name in ["kaito-engine", "kaito-kernels", "kaito-model"] {
            assert!(!dependencies(name).contains(crate_name), "{name} uses {crate_name}");
        }
    }
}

#[test]
fn the_engine_is_a_facade_and_the_rest_of_it_is_private() {
    let folder = crates().join("kaito-engine/src");
    let root = fs::read_to_string(folder.join("lib.rs")).unwrap();
    let public: Vec<_> = root.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")).collect();
    assert_eq!(public, ["dialects;", "remote;", "testing;"]);
    let for_tests_alone = "#[cfg(any(test, feature = \"testing\"))]\n#[doc(hidden)]\npub mod testing;\n";
    assert!(root.contains(for_tests_alone), "what tests look at is there with the feature `testing` alone");
    // Nothing is public for other crates and kept from the documentation.
    let all: String = sources(&folder).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert_eq!(all.matches("doc(hidden)").count(), 1);
}

#[test]
fn dialects_stand_beside_the_ways_through_engine_and_server() {
    let of_server = ["dialect", "openai", "anthropic", "ollama", "tgi"];
    for (sources_of, dialects) in [("kaito-engine/src", &["dialects"][..]), ("kaito-server/src", &of_server)] {
        let folder = crates().join(sources_of);
        // The table of routes says which dialect answers where.
        let named = |file: &PathBuf| file.ends_with("src/lib.rs") || file.ends_with("routes/table.rs");
        let inside = |file: &PathBuf| dialects.iter().any(|dialect| file.starts_with(folder.join(dialect)));
        let outside = |file: &PathBuf| !named(file) && !inside(file);
        for file in sources(&folder).into_iter().filter(outside) {
            let text = fs::read_to_string(&file).unwrap();
            for name in ["dialects::", "llama::", "text_generation::"] {
                let begins = |at| !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
                let uses = text.match_indices(name).any(|(at, _)| begins(at));
                assert!(!uses, "{} uses {name}", file.display());
            }
        }
    }
}

#[test]
fn the_catalogue_does_no_input_or_output() {
    for file in ["kaito-presets", "kaito-spec"].map(|name| sources(&crates().join(name).join("src"))).concat() {
        let text = fs::read_to_string(&file).unwrap();
        for module in ["std::fs", "std::net", "std::env", "std::process", "SystemTime", "Instant", "println!"] {
            assert!(!text.contains(module), "{} uses {module}", file.display());
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_the_kernels() {
    for entry in fs::read_dir(crates()).unwrap() {
        let folder = entry.unwrap().path();
        if folder.ends_with("kaito-kernels") {
            continue;
        }
        for root in ["src/lib.rs", "src/main.rs"].map(|root| folder.join(root)) {
            if let Ok(text) = fs::read_to_string(&root) {
                assert!(text.contains("\n#![forbid(unsafe_code)]\n"), "{}", root.display());
            }
        }
    }
}
