//! Lists of names of objects: Secrets, nodes.

use std::collections::BTreeSet;

use super::{Verdict, syntax};

/// Refuses what is not the name of an object, and warns of a name that is there twice. `kind` is like `a Secret`.
pub fn check(names: &[String], path: &str, kind: &str, verdict: &mut Verdict) {
    let mut seen = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if !syntax::is_object_name(name) {
            verdict.refuse(path, format!("{name:?} is not the name of {kind}: {}", syntax::AN_OBJECT_NAME));
        } else if !seen.insert(name) {
            verdict.warn(path, format!("{name:?} stands there already"));
        }
    }
}
