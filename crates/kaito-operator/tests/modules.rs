//! The crate's modules use each other in one direction: as the table in lib.rs says, and without cycles in folders.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

type Uses = BTreeMap<String, BTreeSet<String>>;

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The code of a file or folder, without comments and without tests.
fn code(path: &Path) -> String {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let is_of_tests = |path: &PathBuf| path.ends_with("tests") || path.ends_with("tests.rs");
        return entries.filter(|path| !is_of_tests(path)).map(|path| code(&path)).collect();
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return String::new();
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The first words of what follows `prefix` everywhere in `code`: of `crate::a::b` it is `a`, of `crate::{a::b, c}` they are
/// `a` and `c`.
fn words_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut words = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == ':' || c == '$') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            words.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut is_begin = true;
        for (place, c) in group.char_indices() {
            if depth == 0 && is_begin && !c.is_whitespace() {
                words.insert(word(&group[place..]));
                is_begin = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_begin = true,
                _ => {}
            }
        }
    }
    words.remove("");
    words
}

/// The modules that a folder's main file declares, and for each what of the others follows `prefix` in it.
fn uses(folder: &Path, main: &str, prefix: &str) -> Uses {
    let declarations = fs::read_to_string(folder.join(main)).unwrap();
    let modules: BTreeSet<String> = declarations
        .lines()
        .filter_map(|line| {
            line.trim_start_matches("pub(crate) ").trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')
        })
        .filter(|module| *module != "tests")
        .map(String::from)
        .collect();
    let of = |module: &String| {
        let file = folder.join(format!("{module}.rs"));
        let code = if file.is_file() { code(&file) } else { code(&folder.join(module)) };
        // A file in a folder of its own reaches the others by one more `super`.
        let mut used = words_after(&code.replace("super::super::", "super::"), prefix);
        // The error of the crate is exported at its root.
        if used.remove("Error") {
            used.insert("error".to_owned());
        }
        used.into_iter().filter(|used| used != module && modules.contains(used)).collect()
    };
    modules.iter().map(|module| (module.clone(), of(module))).collect()
}

/// A module that is reached from itself, if there is one.
fn cycle(uses: &Uses) -> Option<&String> {
    let reached = |from: &String| {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&String> = uses[from].iter().collect();
        while let Some(module) = next.pop() {
            if reached.insert(module) {
                next.extend(&uses[module]);
            }
        }
        reached
    };
    uses.keys().find(|module| reached(module).contains(module))
}

#[test]
fn the_modules_use_each_other_as_the_table_says() {
    let library = fs::read_to_string(source_folder().join("lib.rs")).unwrap();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(String::from).collect::<Vec<_>>();
    let rows: Vec<(String, BTreeSet<String>)> = library
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `"))
        .map(|row| {
            let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").collect();
            (cells[0].trim_end_matches('`').to_owned(), quoted(cells.get(2).unwrap_or(&"")).into_iter().collect())
        })
        .collect();
    for (place, (module, used)) in rows.iter().enumerate() {
        let below: BTreeSet<String> = rows[place + 1..].iter().map(|(module, _)| module.clone()).collect();
        assert!(used.is_subset(&below), "{module} uses modules above it: {used:?}");
    }
    assert_eq!(uses(&source_folder(), "lib.rs", "crate::"), rows.into_iter().collect::<Uses>());
}

#[test]
fn no_modules_of_a_folder_use_each_other_in_a_circle() {
    for folder in ["decide", "runtime", "admission", "workspace"] {
        let folder = source_folder().join(folder);
        let uses = uses(&folder, "mod.rs", "super::");
        assert!(uses.len() > 3, "{uses:?}");
        assert_eq!(cycle(&uses), None, "{uses:#?}");
    }
}

#[test]
fn paths_are_read_from_code() {
    let code = "use crate::{\n    a::{b, c},\n    d, e as f,\n};\nlet x = crate::g::h; foo::crate::no; $crate::no;";
    assert_eq!(words_after(code, "crate::"), ["a", "d", "e", "g"].map(String::from).into());
    let circle: Uses = [("a", "b"), ("b", "c"), ("c", "b")].map(|(a, b)| (a.into(), [b.into()].into())).into();
    assert_eq!(cycle(&circle).unwrap(), "b");
    let line: Uses = [("a".into(), ["b".into()].into()), ("b".into(), BTreeSet::new())].into();
    assert_eq!(cycle(&line), None);
}
