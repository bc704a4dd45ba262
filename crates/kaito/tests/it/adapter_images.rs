//! Adapters in images: the command of docs/adapters.md packs one, and `kaito up` serves it out of its registry.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use flate2::{Compression, write::GzEncoder};
use kaito_testing::{
    background::Background,
    files::{copy_of, parity_adapter, tiny_model},
    process::{output, signal, text},
    registry::{Config, Registry, digest},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    documents::{blocks_of, read},
    program::{kaito, path},
    up::{Up, up},
};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Puts an image with these programs, in a compressed layer as they are published, into the registry.
fn put_base(registry: &Registry, repository: &str, tag: &str, programs: &[&str]) {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for program in programs {
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        archive.append_data(&mut header, program, &b"shell"[..]).unwrap();
    }
    let layer = archive.into_inner().unwrap().finish().unwrap();
    let platform = kaito_image::Platform::of_this_machine();
    let config = json!({
        "architecture": platform.architecture.to_string(), "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(b"what it unpacks to")]},
    });
    let config = config.to_string().into_bytes();
    let described = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE, "config": described("config.v1+json", &config),
        "layers": [described("layer.v1.tar+gzip", &layer)],
    });
    registry.put_blob(repository, &layer);
    registry.put_blob(repository, &config);
    registry.put_manifest(repository, tag, IMAGE, manifest.to_string().as_bytes());
}

/// Runs the documents' command for an adapter of the tiny model: in `folder`, and with this registry.
fn documented(folder: &Path, address: &str) -> String {
    let document = read("docs/adapters.md");
    let mut commands = blocks_of(&document, "sh").into_iter().flat_map(str::lines);
    let command = commands.find(|line| line.starts_with("kaito image build ")).unwrap();
    let model = tiny_model();
    let command = command
        .replace("registry.example.com", address)
        .replace(" mistral-7b ", &format!(" tiny --no-preset --weights {} ", model.display()))
        .replace("/adapters/sql ", &format!("{} ", folder.display()));
    let mut shell = Command::new("sh");
    let output = output(shell.args(["-c", command.as_str()]).env("PATH", path()));
    assert!(output.status.success(), "{command}\n{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn an_adapter_goes_into_an_image_and_out_of_it_into_a_server() {
    let background = Background::new();
    let registry = background.block_on(Registry::start(Config::default()));
    let address = registry.address.to_string();
    put_base(&registry, "library/busybox", "1.37", &["bin/sh", "bin/mkdir", "bin/cp"]);
    let folder = copy_of(&parity_adapter("mistral-window", "one"));
    File::create(folder.path().join("model.safetensors")).unwrap().set_len(1 << 30).unwrap();
    let printed = documented(folder.path(), &address);
    for part in
        ["for tiny, of rank 2", "model.safetensors: serving does not need them", "/adapters/sql:1.0", "in 3 layers"]
    {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    // What could not copy the adapter is no base.
    put_base(&registry, "library/none", "1", &["bin/cp"]);
    let (model, base) = (tiny_model(), format!("{address}/library/none:1"));
    let (model, adapter) = (model.to_str().unwrap(), folder.path().to_str().unwrap());
    let build = ["image", "build", "tiny", "--no-preset", "--weights", model, "--adapter", adapter, "--base", &base];
    let refused = output(kaito(&build).args(["--tag", &format!("{address}/adapters/none:1"), "--push"]));
    assert!(!refused.status.success() && text(&refused.stderr).contains("no /bin/sh, mkdir: "), "{refused:?}");

    let image = format!("{address}/adapters/sql:1.0");
    let inspected = output(&mut kaito(&["image", "inspect", "--json", &image]));
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((&inspected["adapter"], &inspected["command"]), (&json!("/data"), &json!(["sh"])));
    let shown = text(&output(&mut kaito(&["image", "inspect", &image])).stdout);
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["adapter", "/data"])), "{shown}");

    let manifest = folder.path().join("workspace.yaml");
    let workspace = |image: &str| {
        format!(
            "apiVersion: kaito.sh/v1beta1\nkind: Workspace\nmetadata: {{name: sql}}\n\
             resource: {{labelSelector: {{matchLabels: {{a: b}}}}}}\n\
             inference:\n  preset: {{name: mistral-7b-instruct}}\n  adapters:\n  \
             - source: {{name: sql, image: '{image}'}}\n    strength: '0.5'\n"
        )
    };
    let start = |text: String| {
        fs::write(&manifest, text).unwrap();
        let mut command = up(&manifest);
        command.arg("--weights").arg(tiny_model());
        command
    };
    let mut served = Up::start(&mut start(workspace(&image)));
    let started = served.wait_for(&["PodsStarting", "kaito serve mistral-7b-instruct", "--adapters"]);
    let fetched = started.split("--adapters ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let ready = served.ready();
    let models = Command::new("curl").args(["--silent", "--fail", &format!("http://{ready}/v1/models")]).output();
    let models: Value = serde_json::from_slice(&models.unwrap().stdout).unwrap();
    let sql = models["data"].as_array().unwrap().iter().find(|model| model["id"] == "sql").unwrap();
    assert_eq!(sql["parent"], "mistral-7b-instruct", "{models}");
    assert!(Path::new(&fetched).join("sql/adapter_config.json").is_file(), "{fetched}");
    signal(&served.child, Signal::INT);
    assert_eq!(served.ended().0.code(), Some(0));
    assert!(!Path::new(&fetched).exists(), "{fetched}");

    // What cannot be had is refused by the adapter's name, with what can be done.
    let volume = workspace(&image).replace(&format!("image: '{image}'"), "volumeSource: {emptyDir: {}}");
    for (text_of, words) in [
        (
            workspace(&format!("{address}/adapters/none:1.0")),
            &["\"sql\"", "adapters/none:1.0", "--adapter sql=FOLDER"][..],
        ),
        (workspace(&format!("{address}/library/busybox:1.37")), &["\"sql\"", "there is no /data/adapter_config.json"]),
        (volume, &["\"sql\"", "volume", "--adapter sql=FOLDER"]),
    ] {
        let refused = output(&mut start(text_of));
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}
