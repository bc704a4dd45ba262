use std::collections::BTreeSet;

use super::{Verdict, image, names, syntax};
use crate::workspace::{AdapterSource, AdapterSpec};

/// Most adapters of a workspace.
const MOST: usize = 10;
/// Longest name: a container and a volume are called `adapter-<name>`.
const LONGEST_NAME: usize = syntax::LABEL - "adapter-".len();

pub fn check(adapters: &[AdapterSpec], verdict: &mut Verdict) {
    if adapters.len() > MOST {
        let count = adapters.len();
        let message =
            format!("Number of Adapters exceeds the maximum limit, maximum of {MOST} allowed: there are {count}");
        verdict.refuse("inference.adapters", message);
    }
    let mut names = BTreeSet::new();
    for (index, adapter) in adapters.iter().enumerate() {
        let path = format!("inference.adapters[{index}]");
        check_name(&adapter.source.name, &path, &mut names, verdict);
        check_source(&adapter.source, &path, verdict);
        check_strength(adapter, &path, verdict);
    }
}

fn check_name<'a>(name: &'a str, path: &str, names: &mut BTreeSet<&'a str>, verdict: &mut Verdict) {
    let path = format!("{path}.source.name");
    if name.is_empty() {
        verdict.refuse(path, "Name of Adapter field must be specified: it names a folder, /mnt/adapter/<name>");
    } else if !syntax::is_dns_label(name, LONGEST_NAME) {
        verdict.refuse(
            path,
            format!(
                "Name of Adapter must be a valid DNS label: {name:?} is not at most {LONGEST_NAME} {}",
                syntax::A_DNS_LABEL
            ),
        );
    } else if !names.insert(name) {
        verdict.refuse(path, format!("Duplicate adapter source name found: {name}; each names a folder of its own"));
    }
}

fn check_source(source: &AdapterSource, path: &str, verdict: &mut Verdict) {
    let path = format!("{path}.source");
    let given: Vec<&str> = [
        ("image", source.image.is_some()),
        ("urls", !source.urls.is_empty()),
        ("volumeSource", source.volume_source.is_some()),
    ]
    .into_iter()
    .filter_map(|(field, given)| given.then_some(field))
    .collect();
    match given.as_slice() {
        [] => verdict.refuse(
            format!("{path}.image"),
            "Image of Adapter field must be specified: an image with the adapter in its folder /data, like \
             registry.example/adapter:1",
        ),
        ["urls"] => verdict.refuse(
            format!("{path}.urls"),
            "adapters are not downloaded from addresses; put this one into an image and give source.image, or give \
             source.volumeSource",
        ),
        [_] => {}
        several => {
            let message = format!("exactly one of image and volumeSource must be given, not {}", several.join(" and "));
            verdict.refuse(&path, message);
        }
    }
    if let Some(text) = &source.image {
        let path = format!("{path}.image");
        match image::read(text) {
            Err(problem) => verdict.refuse(path, problem),
            Ok(reference) if !reference.is_precise => {
                let message = format!("{text:?} has neither tag nor digest; give one, like {text}:1");
                verdict.refuse(path, message);
            }
            Ok(_) => {}
        }
    }
    names::check(&source.image_pull_secrets, &format!("{path}.imagePullSecrets"), "a Secret", verdict);
    if source.image.is_none() && !source.image_pull_secrets.is_empty() {
        verdict.warn(format!("{path}.imagePullSecrets"), "are not used, for there is no image to pull");
    }
}

fn check_strength(adapter: &AdapterSpec, path: &str, verdict: &mut Verdict) {
    let Some(text) = adapter.strength.as_deref() else { return };
    let (path, name) = (format!("{path}.strength"), &adapter.source.name);
    match number(text) {
        None => verdict.refuse(
            path,
            format!("Invalid strength value for Adapter '{name}': {text:?} is not a number; from 0 to 1 is allowed, like \"0.5\""),
        ),
        Some(strength) if !(0.0..=1.0).contains(&strength) => {
            verdict.refuse(path, format!("Strength value for Adapter '{name}' must be between 0 and 1: it is {text}"));
        }
        Some(0.0) => {
            verdict.warn(path, format!("is {text}: adapter {name} does nothing"));
        }
        Some(_) => {}
    }
}

/// A number in digits. Rust would also read `NaN` and `inf`, which are refused.
fn number(text: &str) -> Option<f64> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    text.parse().ok().filter(|_| is_digits)
}
