//! Images of tiny models, written, read again, compared.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use kaito_image::{
    Base, Blob, Error, Event, Executable, Expected, Image, Inspection, Job, Layout, Model, Output, Plan, Platform,
    has_server, split_path, verify_blobs, verify_weights,
};
use kaito_testing::files::{copy_of, parity_model as fixture};

fn model(name: &str) -> Model {
    check(&fixture(name)).unwrap()
}

fn check(directory: &Path) -> Result<Model, Error> {
    Model::check(directory, &Expected::Any("tiny".to_owned()))
}

/// A copy that a test may spoil.
fn copy(name: &str) -> tempfile::TempDir {
    copy_of(&fixture(name))
}

static NEVER: AtomicBool = AtomicBool::new(false);

pub fn job() -> Job<'static> {
    Job { progress: &|_: Event<'_>| {}, cancelled: &NEVER }
}

fn this_executable() -> Executable {
    Executable::inspect(&std::env::current_exe().unwrap()).unwrap()
}

fn weights_only(name: &str) -> Plan {
    Plan::new(&model(name), Base::WeightsOnly, &Platform::of_this_machine()).unwrap()
}

fn output(path: impl Into<PathBuf>, tag: &str) -> Output {
    Output { path: path.into(), tag: Some(tag.to_owned()), name: Some(format!("localhost:5000/tiny:{tag}")) }
}

/// What the layers unpack to: modes and contents by path.
pub fn unpack(image: &Image) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for layer in &image.layers {
        let mut archive = tar::Archive::new(layer.open_at(0).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(files.insert(path.clone(), (entry.header().mode().unwrap(), content)).is_none(), "{path} twice");
        }
    }
    files
}

#[test]
fn every_layout_of_weights_is_packed_whole_with_a_layer_for_each_file() {
    for (name, weights) in [
        ("mistral-window", 1),
        ("falcon-40b-type-bf16", 3),
        ("llama-bin-sharded-bf16", 5),
        ("meta-llama-7b-type", 1),
        ("meta-llama-70b-type-2-shards", 2),
    ] {
        let directory = fixture(name);
        let model = model(name);
        assert_eq!(model.weights.len(), weights, "{name}");
        let image = weights_only(name).hash(job()).unwrap();
        assert_eq!(image.layers.len(), weights + 1, "{name}");
        let files = unpack(&image);
        for file in model.weights.iter().chain(&model.companions) {
            let content = fs::read(directory.join(&file.name)).unwrap();
            assert_eq!(files[&format!("weights/{}", file.name)], (0o644, content), "{name}: {}", file.name);
        }
        assert!(files.keys().any(|file| file == "weights/config.json" || file == "weights/params.json"), "{name}");
        assert!(files.keys().any(|file| file.starts_with("weights/tokenizer.")), "{name}");
        assert!(model.left_out.iter().any(|file| file.name == "cases.json"), "{name}");
        assert!(!files.contains_key("weights/cases.json"), "{name}");
        // What was unpacked is a model.
        let unpacked = tempfile::tempdir().unwrap();
        for (name, (_, content)) in files.iter().filter(|(name, _)| !name.ends_with('/')) {
            fs::write(unpacked.path().join(name.strip_prefix("weights/").unwrap()), content).unwrap();
        }
        assert_eq!(check(unpacked.path()).unwrap().parameters, model.parameters, "{name}");
    }
}

/// Hashing alone, a directory and a file give one digest, on any day and from any folder.
#[test]
fn the_same_input_gives_the_same_digest() {
    let at = tempfile::tempdir().unwrap();
    let hashed = weights_only("falcon-40b-type-bf16").hash(job()).unwrap();
    let copied = copy("falcon-40b-type-bf16");
    let later = File::options().write(true).open(copied.path().join("config.json")).unwrap();
    later.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let plan = Plan::new(&check(copied.path()).unwrap(), Base::WeightsOnly, &Platform::of_this_machine()).unwrap();
    let in_directory = plan.write(&output(at.path().join("layout"), "v1"), job()).unwrap();
    let in_file = plan.write(&output(at.path().join("image.tar"), "v1"), job()).unwrap();
    assert_eq!(hashed.digest(), in_directory.digest());
    assert_eq!(hashed.digest(), in_file.digest());
    for path in ["layout", "image.tar"] {
        let layout = Layout::open(&at.path().join(path)).unwrap();
        let image = layout.image(Some("v1"), &Platform::of_this_machine()).unwrap();
        assert_eq!(image.digest(), hashed.digest(), "{path}");
        verify_blobs(&image, job()).unwrap();
        assert_eq!(unpack(&image), unpack(&hashed), "{path}");
    }
}

#[test]
fn an_image_with_a_server_says_how_it_runs() {
    let model = model("mistral-window");
    let platform = Platform::of_this_machine();
    let image = Plan::new(&model, Base::Own(this_executable()), &platform).unwrap().hash(job()).unwrap();
    let files = unpack(&image);
    assert!(files.contains_key("weights/config.json"));
    assert_eq!(files["usr/local/bin/kaito"].0, 0o755);
    assert_eq!(files["usr/local/bin/kaito"].1, fs::read(std::env::current_exe().unwrap()).unwrap());
    let inspection = Inspection::of(&image).unwrap();
    assert_eq!(inspection.preset.as_deref(), Some("tiny"));
    assert_eq!(inspection.dtype.as_deref(), Some("f32"));
    assert_eq!(inspection.parameters, Some(model.parameters));
    assert_eq!(inspection.weights.as_deref(), Some("/weights"));
    assert_eq!(inspection.platform, platform.to_string());
    assert_eq!(inspection.user.as_deref(), Some("65532:65532"));
    assert_eq!(inspection.ports, ["5000/tcp"]);
    assert_eq!([inspection.entrypoint, inspection.command].concat(), ["/usr/local/bin/kaito", "serve"]);
    let contents: Vec<_> = inspection.layers.iter().map(|layer| layer.content.as_deref().unwrap()).collect();
    assert_eq!(contents, ["kaito", "configuration and tokenizer", "model.safetensors"]);
    assert!(has_server(&image).unwrap());
    // A registry that has the weights alone has most of this image.
    let alone = weights_only("mistral-window").hash(job()).unwrap();
    assert_eq!(
        image.layers[1..].iter().map(Blob::digest).collect::<Vec<_>>(),
        alone.layers.iter().map(Blob::digest).collect::<Vec<_>>()
    );
    assert!(!has_server(&weights_only("mistral-window").hash(job()).unwrap()).unwrap());
}

#[test]
fn a_base_image_is_kept_and_gets_a_server_only_if_it_has_none() {
    let at = tempfile::tempdir().unwrap();
    let platform = Platform::of_this_machine();
    let server = Plan::new(&model("mistral-window"), Base::Own(this_executable()), &platform).unwrap();
    let base = server.write(&output(at.path().join("base"), "v1"), job()).unwrap();
    let on = |executable| {
        let image = Box::new(base.clone());
        let below = Base::Image { name: "localhost/base:v1".to_owned(), image, executable };
        Plan::new(&model("falcon-40b-type-bf16"), below, &platform).unwrap()
    };
    let image = on(None).write(&output(at.path().join("built.tar"), "v2"), job()).unwrap();
    assert_eq!(
        image.layers[..3].iter().map(|layer| layer.digest()).collect::<Vec<_>>(),
        base.layers.iter().map(|l| l.digest()).collect::<Vec<_>>()
    );
    assert_eq!(image.layers.len(), 3 + 4);
    verify_blobs(&image, job()).unwrap();
    let inspection = Inspection::of(&image).unwrap();
    assert_eq!(inspection.labels["org.opencontainers.image.base.digest"], base.digest().to_string());
    assert_eq!(inspection.layers.len(), 7);
    assert_eq!(on(Some(this_executable())).hash(job()).unwrap().layers.len(), 3 + 1 + 4);

    let other = Platform::linux(if platform.to_string() == "linux/amd64" { "arm64" } else { "amd64" }.into());
    let below = Base::Image { name: "base".to_owned(), image: Box::new(base), executable: None };
    let error = Plan::new(&model("mistral-window"), below, &other).unwrap_err().to_string();
    assert!(error.contains(&platform.to_string()) && error.contains(&other.to_string()), "{error}");
    let error = Plan::new(&model("mistral-window"), Base::Own(this_executable()), &other).unwrap_err().to_string();
    assert!(error.contains("--weights-only"), "{error}");
}

#[test]
fn a_layout_holds_several_images_and_their_common_blobs_once() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("layout");
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(path.join("blobs/sha256")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let first = weights_only("mistral-window").write(&output(&path, "v1"), job()).unwrap();
    let blobs = names();
    assert_eq!(blobs.len(), 2 + 2);
    weights_only("mistral-window").write(&output(&path, "v2"), job()).unwrap();
    assert_eq!(names(), blobs);
    weights_only("falcon-40b-type-bf16").write(&output(&path, "falcon"), job()).unwrap();
    assert_eq!(names().len(), 4 + 6);
    let layout = Layout::open(&path).unwrap();
    let platform = Platform::of_this_machine();
    assert_eq!(layout.image(Some("v2"), &platform).unwrap().digest(), first.digest());
    for (tag, parts) in [(None, &["v1", "v2", "falcon", ":TAG"][..]), (Some("v3"), &["no image v3", "falcon"])] {
        let error = layout.image(tag, &platform).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    }
    // The same tag again is another image from now on.
    weights_only("falcon-40b-type-bf16").write(&output(&path, "v1"), job()).unwrap();
    let layout = Layout::open(&path).unwrap();
    assert_ne!(layout.image(Some("v1"), &platform).unwrap().digest(), first.digest());
    assert_eq!(layout.index().manifests().len(), 3);

    let text = path.to_str().unwrap();
    assert_eq!(split_path(text), Some((path.clone(), None)));
    assert_eq!(split_path(&format!("{text}:v1")), Some((path.clone(), Some("v1".to_owned()))));
    assert_eq!(split_path("localhost:5000/no/such:v1"), None);
}

#[test]
fn an_image_is_compared_with_a_directory() {
    let at = tempfile::tempdir().unwrap();
    let image = weights_only("falcon-40b-type-bf16").write(&output(at.path().join("layout"), "v1"), job()).unwrap();
    let same = verify_weights(&image, &model("falcon-40b-type-bf16"), job()).unwrap();
    assert!(same.holds() && same.same.len() == 4, "{same:?}");

    let changed = copy("falcon-40b-type-bf16");
    let shard = changed.path().join("model-00002-of-00003.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, bytes).unwrap();
    let found = verify_weights(&image, &check(changed.path()).unwrap(), job()).unwrap();
    assert_eq!(found.differ, ["model-00002-of-00003.safetensors"]);
    assert!(!found.holds());

    let other = verify_weights(&image, &model("mistral-window"), job()).unwrap();
    assert_eq!(other.missing, ["model.safetensors"]);
    assert_eq!(other.extra.len(), 3);
}

#[test]
fn named_chat_templates_are_packed_in_their_folder() {
    let directory = copy("mistral-window");
    let templates = directory.path().join("additional_chat_templates");
    fs::create_dir(&templates).unwrap();
    for (name, content) in [("rag.jinja", "rag"), ("tool_use.jinja", "tools"), ("notes.txt", "none")] {
        fs::write(templates.join(name), content).unwrap();
    }
    let model = check(directory.path()).unwrap();
    assert!(model.left_out.iter().any(|file| file.name == "additional_chat_templates/notes.txt"));
    let image = Plan::new(&model, Base::WeightsOnly, &Platform::of_this_machine()).unwrap().hash(job()).unwrap();
    let mut files = unpack(&image);
    files.retain(|name, _| name.contains("additional_chat_templates"));
    let files: Vec<_> = files.iter().map(|(name, (mode, content))| (&name[..], *mode, &content[..])).collect();
    assert_eq!(
        files,
        [
            ("weights/additional_chat_templates/", 0o755, &b""[..]),
            ("weights/additional_chat_templates/rag.jinja", 0o644, b"rag"),
            ("weights/additional_chat_templates/tool_use.jinja", 0o644, b"tools"),
        ]
    );
    assert!(verify_weights(&image, &model, job()).unwrap().holds());
    fs::write(templates.join("rag.jinja"), "other").unwrap();
    assert!(!verify_weights(&image, &check(directory.path()).unwrap(), job()).unwrap().holds());
}

#[test]
fn damage_of_a_layout_is_found() {
    let at = tempfile::tempdir().unwrap();
    let platform = Platform::of_this_machine();
    for (name, what, parts) in [
        ("flipped", 0, &["is damaged", "sha256:"][..]),
        ("short", 1, &["instead of", "truncated"]),
        ("gone", 2, &["has no blobs/sha256/"]),
    ] {
        let path = at.path().join(name);
        let image = weights_only("mistral-window").write(&output(&path, "v1"), job()).unwrap();
        let blob = path.join("blobs/sha256").join(image.layers[1].digest().digest());
        let mut bytes = fs::read(&blob).unwrap();
        match what {
            0 => {
                bytes[1000] ^= 1;
                fs::write(&blob, bytes).unwrap();
            }
            1 => fs::write(&blob, &bytes[..bytes.len() - 1]).unwrap(),
            _ => fs::remove_file(&blob).unwrap(),
        }
        let error = Layout::open(&path)
            .and_then(|layout| layout.image(None, &platform))
            .and_then(|image| verify_blobs(&image, job()))
            .unwrap_err()
            .to_string();
        for part in parts {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
    let archive = at.path().join("image.tar");
    weights_only("mistral-window").write(&output(&archive, "v1"), job()).unwrap();
    let bytes = fs::read(&archive).unwrap();
    for (end, part) in [(bytes.len() / 2, "truncated"), (3, "is no OCI layout"), (0, "is no OCI layout")] {
        fs::write(&archive, &bytes[..end]).unwrap();
        let error = Layout::open(&archive).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("image.tar"), "{end}: {error}");
    }
    let error = Layout::open(&fixture("mistral-window")).unwrap_err().to_string();
    assert!(error.contains("no oci-layout in it"), "{error}");
}

#[test]
fn a_layout_is_not_written_over_something_else() {
    let at = tempfile::tempdir().unwrap();
    fs::write(at.path().join("notes"), "x").unwrap();
    for directory in ["full", "folder.tar"] {
        fs::create_dir(at.path().join(directory)).unwrap();
    }
    fs::write(at.path().join("full/notes"), "x").unwrap();
    let before = left_behind(at.path());
    for (name, part) in [
        ("notes", "notes is a file: a layout is a directory or, if its name ends in .tar, a file"),
        ("folder.tar", "folder.tar is a directory: a layout is"),
        ("full", "full is no OCI layout"),
    ] {
        // Before anything is read, which may take long.
        let read = |event: Event<'_>| assert!(!matches!(event, Event::Position { .. }), "{name}: {event:?}");
        let job = Job { progress: &read, cancelled: &NEVER };
        let error = weights_only("mistral-window").write(&output(at.path().join(name), "v1"), job).unwrap_err();
        assert!(error.to_string().contains(part), "{name}: {error}");
    }
    assert_eq!(left_behind(at.path()), before);
    assert_eq!(fs::read_dir(at.path().join("folder.tar")).unwrap().count(), 0);
}

/// There is nothing to choose from.
#[test]
fn the_only_image_of_a_layout_is_found_from_any_machine() {
    let at = tempfile::tempdir().unwrap();
    let here = Platform::of_this_machine();
    let other = Platform::linux(if here.to_string() == "linux/amd64" { "arm64" } else { "amd64" }.into());
    let written = Plan::new(&model("mistral-window"), Base::WeightsOnly, &other)
        .and_then(|plan| plan.write(&output(at.path().join("layout"), "v1"), job()))
        .unwrap();
    let layout = Layout::open(&at.path().join("layout")).unwrap();
    assert_eq!(layout.image(None, &here).unwrap().digest(), written.digest());
}

/// Everything under `directory` but what was there before.
fn left_behind(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(left_behind(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_write_that_ends_early_leaves_nothing_behind() {
    let at = tempfile::tempdir().unwrap();
    let existing = at.path().join("existing");
    weights_only("mistral-window").write(&output(&existing, "v1"), job()).unwrap();
    let before = left_behind(at.path());
    let index = fs::read(existing.join("index.json")).unwrap();
    for path in ["existing", "new", "new.tar"] {
        // Somebody says stop once the first file is done.
        let cancelled = AtomicBool::new(false);
        let stop = |event: Event<'_>| {
            if let Event::Finished { .. } = event {
                cancelled.store(true, Ordering::Relaxed);
            }
        };
        let job = Job { progress: &stop, cancelled: &cancelled };
        let error = weights_only("llama-bin-sharded-bf16").write(&output(at.path().join(path), "v2"), job).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{path}: {error}");
        assert_eq!(left_behind(at.path()), before, "{path}");

        // A file changes after it was checked.
        let changing = copy("llama-bin-sharded-bf16");
        let plan =
            Plan::new(&check(changing.path()).unwrap(), Base::WeightsOnly, &Platform::of_this_machine()).unwrap();
        fs::write(changing.path().join("pytorch_model-00004-of-00005.bin"), "other").unwrap();
        let error = plan.write(&output(at.path().join(path), "v2"), self::job()).unwrap_err().to_string();
        assert!(error.contains("pytorch_model-00004-of-00005.bin has changed"), "{path}: {error}");
        assert_eq!(left_behind(at.path()), before, "{path}");
    }
    assert_eq!(fs::read(existing.join("index.json")).unwrap(), index);
}

/// What is wrong with a directory, and what the error has to say.
#[test]
fn weights_that_cannot_be_served_are_refused_before_anything_is_written() {
    type Spoil = fn(&Path);
    let cases: &[(&str, &str, Spoil, &[&str])] = &[
        (
            "a missing shard",
            "falcon-40b-type-bf16",
            |at| fs::remove_file(at.join("model-00002-of-00003.safetensors")).unwrap(),
            &["model-00002-of-00003.safetensors", "is missing", "tensors"],
        ),
        (
            "a truncated shard",
            "falcon-40b-type-bf16",
            |at| {
                let path = at.join("model-00003-of-00003.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
            },
            &["model-00003-of-00003.safetensors", "truncated", "bytes"],
        ),
        (
            "a truncated torch file",
            "llama-bin-sharded-bf16",
            |at| {
                let path = at.join("pytorch_model-00001-of-00005.bin");
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            },
            &["pytorch_model-00001-of-00005.bin"],
        ),
        (
            "a missing rank",
            "meta-llama-70b-type-2-shards",
            |at| fs::remove_file(at.join("consolidated.01.pth")).unwrap(),
            &["consolidated.01.pth"],
        ),
        (
            "no configuration",
            "mistral-window",
            |at| fs::remove_file(at.join("config.json")).unwrap(),
            &["no config.json"],
        ),
        (
            "no tokenizer",
            "mistral-window",
            |at| {
                for name in ["tokenizer.json", "tokenizer.model"] {
                    let _ = fs::remove_file(at.join(name));
                }
            },
            &["tokenizer"],
        ),
        (
            "another shape than the configuration's",
            "mistral-window",
            |at| {
                let path = at.join("config.json");
                let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                config["intermediate_size"] = (config["intermediate_size"].as_u64().unwrap() * 2).into();
                fs::write(&path, config.to_string()).unwrap();
            },
            &["model.safetensors", "mlp", "has shape", "expected"],
        ),
        (
            "a pointer instead of a file",
            "mistral-window",
            |at| {
                let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
                fs::write(at.join("model.safetensors"), pointer).unwrap();
            },
            &["model.safetensors", "git lfs pull"],
        ),
    ];
    for (what, name, spoil, parts) in cases {
        let directory = copy(name);
        check(directory.path()).unwrap();
        spoil(directory.path());
        let error = check(directory.path()).unwrap_err().to_string();
        for part in *parts {
            assert!(error.contains(part), "{what} lacks {part:?}: {error}");
        }
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(check(empty.path()).unwrap_err().to_string().contains("holds no weights"));
    assert!(
        check(&empty.path().join("no")).unwrap_err().to_string().contains("is neither a directory nor a GGUF file")
    );
}

#[test]
fn weights_of_another_model_are_refused_with_the_numbers() {
    let preset = kaito_presets::find("mistral-7b").unwrap();
    let error = Model::check(&fixture("falcon-40b-type-bf16"), &Expected::Preset(preset)).unwrap_err().to_string();
    for part in
        ["does not hold mistral-7b", "the family is falcon instead of mistral", "hidden_size is", "instead of 4096"]
    {
        assert!(error.contains(part), "{part:?}: {error}");
    }
}
