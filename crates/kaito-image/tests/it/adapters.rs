//! Images of adapters that PEFT wrote.

use std::{fs, path::Path};

use kaito_image::{Adapter, Base, Error, Expected, Inspection, Plan, Platform, extract_adapter};
use kaito_testing::files::{copy_files, copy_of, parity_adapter, parity_model};

use crate::images::{job, unpack};

const MODEL: &str = "llama-grouped-sharded";

fn check(directory: &Path) -> Result<Adapter, Error> {
    Adapter::check(directory, &Expected::Any("tiny".to_owned()), Some(&parity_model(MODEL)))
}

#[test]
fn an_adapter_lies_where_kaitos_pods_copy_it_from() {
    for (name, file, rank) in [("one", "adapter_model.safetensors", 2), ("two", "adapter_model.bin", 3)] {
        let directory = copy_of(&parity_adapter(MODEL, name));
        // What lies beside an adapter in many a folder: the model itself, and the tokenizer.
        copy_files(&parity_model(MODEL), directory.path());
        fs::write(directory.path().join("README.md"), "made for a test").unwrap();
        let adapter = check(directory.path()).unwrap();
        assert_eq!((adapter.rank, adapter.weights.name.as_str()), (rank, file));
        assert!(adapter.left_out.iter().any(|file| file.name.starts_with("model-00001")), "{:?}", adapter.left_out);
        let image = Plan::of_adapter(&adapter, Base::WeightsOnly, &Platform::of_this_machine());
        let image = image.unwrap().hash(job()).unwrap();
        let files = unpack(&image);
        let paths: Vec<&str> = files.keys().map(String::as_str).collect();
        let file = format!("data/{file}");
        assert_eq!(paths, ["data/", "data/README.md", "data/adapter_config.json", file.as_str()]);
        assert_eq!(files["data/"].0, 0o755);
        for (path, (mode, content)) in files.iter().filter(|(path, _)| !path.ends_with('/')) {
            let original = fs::read(directory.path().join(path.strip_prefix("data/").unwrap())).unwrap();
            assert_eq!((*mode, content), (0o644, &original), "{path}");
        }
        // What comes out of the image again is an adapter.
        let copied = tempfile::tempdir().unwrap();
        extract_adapter(&image, copied.path(), job()).unwrap();
        assert_eq!(check(copied.path()).unwrap().bytes, adapter.bytes);
        let inspection = Inspection::of(&image).unwrap();
        assert_eq!(inspection.adapter.as_deref(), Some("/data"));
        assert_eq!((inspection.preset.as_deref(), inspection.weights), (Some("tiny"), None));
        assert_eq!(inspection.labels["io.kaito.adapter.rank"], rank.to_string());
    }
}

/// Pods start the base's shell, with the base's variables.
#[test]
fn the_base_runs_as_before() {
    let platform = Platform::of_this_machine();
    let model = kaito_image::Model::check(&parity_model(MODEL), &Expected::Any("tiny".to_owned())).unwrap();
    let executable = kaito_image::Executable::inspect(&std::env::current_exe().unwrap()).unwrap();
    let base = Plan::new(&model, Base::Own(executable), &platform).unwrap().hash(job()).unwrap();
    let before = Inspection::of(&base).unwrap();
    let error = extract_adapter(&base, tempfile::tempdir().unwrap().path(), job()).unwrap_err().to_string();
    assert!(error.ends_with("holds no adapter: there is no /data/adapter_config.json"), "{error}");
    let below = Base::Image { name: "base:v1".to_owned(), image: Box::new(base.clone()), executable: None };
    let adapter = check(&parity_adapter(MODEL, "one")).unwrap();
    let image = Plan::of_adapter(&adapter, below, &platform).unwrap().hash(job()).unwrap();
    assert_eq!(image.layers.len(), base.layers.len() + 2);
    assert!(image.layers.iter().zip(&base.layers).all(|(layer, below)| layer.digest() == below.digest()));
    let after = Inspection::of(&image).unwrap();
    assert_eq!((after.entrypoint, after.command, after.user), (before.entrypoint, before.command, before.user));
    assert_eq!(after.labels["org.opencontainers.image.base.digest"], base.digest().to_string());
}

#[test]
fn an_adapter_that_cannot_be_served_is_refused_in_the_readers_words() {
    let change = |file: &str, from: &str, to: &str| {
        let directory = copy_of(&parity_adapter(MODEL, "one"));
        let path = directory.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
        directory
    };
    let config = "adapter_config.json";
    for (directory, parts) in [
        (change(config, "\"use_dora\": false", "\"use_dora\": true"), &["use_dora", "DoRA is not supported"][..]),
        (change(config, "\"bias\": \"none\"", "\"bias\": \"all\""), &["bias"]),
        (change(config, "\"r\": 2", "\"r\": 4"), &["adapter_model.safetensors", "lora_A.weight"]),
        (
            copy_of(&parity_adapter("phi3-window", "one")),
            &["gate_up_proj", "belongs to no matrix of a llama model's layers"],
        ),
        (tempfile::tempdir().unwrap(), &[config]),
    ] {
        let error = check(directory.path()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

/// The shapes of the catalogue do where there are no files of the model.
#[test]
fn an_adapter_is_checked_against_its_preset() {
    let preset = |name| Expected::Preset(kaito_presets::find(name).unwrap());
    let adapter = parity_adapter("mistral-window", "one");
    let error = Adapter::check(&adapter, &preset("mistral-7b"), None).unwrap_err().to_string();
    assert!(error.contains("4096"), "{error}");
    let error = Adapter::check(&adapter, &preset("falcon-7b"), None).unwrap_err().to_string();
    assert!(error.contains("a falcon model's layers"), "{error}");
    let error = Adapter::check(&adapter, &preset("mistral-7b"), Some(&parity_model("mistral-window"))).unwrap_err();
    assert!(error.to_string().contains("does not hold mistral-7b"), "{error}");
    let error = Adapter::check(&adapter, &Expected::Any("mine".to_owned()), None).unwrap_err().to_string();
    assert!(error.contains("nothing is known of mine"), "{error}");
}
