//! The admission rules, case by case: `admission/*.yaml` hold each workspace and every message about it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing helper fails its test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use kaito_operator::{
    admission::{Verdict, defaults, validate_create, validate_update},
    workspace::{Workspace, strict},
};
use kaito_presets::{CustomInstanceType, InstanceTypes};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    base: String,
    #[serde(default)]
    before: Value,
    #[serde(default)]
    patch: Value,
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

fn read<T: DeserializeOwned>(file: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/admission").join(file);
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn workspace(manifest: &Value) -> Workspace {
    let read = strict::read(manifest).unwrap_or_else(|error| panic!("{error}: {manifest}"));
    assert_eq!(read.unknown_fields, [""; 0], "{manifest}");
    read.object
}

fn types() -> InstanceTypes {
    let described: Vec<CustomInstanceType> = serde_json::from_value(json!([
        { "name": "rack-8", "gpus": 2, "gpuMemory": "24Gi" },
        { "name": "rack-9", "gpus": 1, "gpuMemory": "16Gi", "memory": "8Gi" },
    ]))
    .unwrap();
    InstanceTypes::with_custom(described).unwrap()
}

fn patched(manifest: &Value, patch: &Value) -> Value {
    let mut manifest = manifest.clone();
    if !patch.is_null() {
        merge(&mut manifest, patch);
    }
    manifest
}

fn check(cases: &[Case], verdict: impl Fn(&Case, &Value) -> Verdict) {
    let bases: BTreeMap<String, Value> = read("bases.yaml");
    let mut names = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in cases {
        assert!(names.insert(&case.name), "two cases are called {:?}", case.name);
        let verdict = verdict(case, &bases[&case.base]);
        let errors: Vec<String> = verdict.errors.iter().map(ToString::to_string).collect();
        if (&errors, &verdict.warnings) != (&case.errors, &case.warnings) {
            wrong.push(format!("{}:\n  errors: {errors:#?}\n  warnings: {:#?}", case.name, verdict.warnings));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn creating() {
    let cases: Vec<Case> = read("create.yaml");
    let types = types();
    check(&cases, |case, base| {
        assert!(case.before.is_null(), "{}", case.name);
        validate_create(&workspace(&patched(base, &case.patch)), &types)
    });
}

#[test]
fn updating() {
    let cases: Vec<Case> = read("update.yaml");
    check(&cases, |case, base| {
        let before = patched(base, &case.before);
        validate_update(&workspace(&before), &workspace(&patched(&before, &case.patch)))
    });
}

#[test]
fn there_are_cases_enough() {
    let (create, update): (Vec<Case>, Vec<Case>) = (read("create.yaml"), read("update.yaml"));
    assert!(create.len() + update.len() >= 120, "{} + {}", create.len(), update.len());
}

/// The only default of an admitted workspace is an adapter's strength.
#[test]
fn defaulting() {
    let bases: BTreeMap<String, Value> = read("bases.yaml");
    for (name, base) in &bases {
        assert_eq!(defaults(&workspace(base)), workspace(base), "{name}");
    }
    let patch = json!({ "inference": { "adapters": [
        { "source": { "name": "a", "image": "r/a:1" } },
        { "source": { "name": "b", "image": "r/a:1" }, "strength": "0.2" },
    ] } });
    let defaulted = defaults(&workspace(&patched(&bases["adapters"], &patch)));
    let strengths: Vec<_> =
        defaulted.inference.unwrap().adapters.into_iter().map(|adapter| adapter.strength.unwrap()).collect();
    assert_eq!(strengths, ["1.0", "0.2"]);
}
