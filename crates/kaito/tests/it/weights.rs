//! Weights on their way to where they are served: out of an image, out of the container that runs, and from the hub.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use kaito_testing::{
    background::Background,
    files::tiny_model,
    hub::{Fault, TestHub},
    process::{output, signal, text},
    registry::{Access, Config, Registry},
    wait::wait_for,
};
use rustix::process::Signal;

use crate::program::kaito;

/// The names of the files in a folder that readers of models see.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// That a folder has these files of the tiny model, byte for byte.
fn assert_same(folder: &Path, expected: &[String]) {
    assert_eq!(names(folder), expected);
    for name in expected {
        assert!(fs::read(folder.join(name)).unwrap() == fs::read(tiny_model().join(name)).unwrap(), "{name}");
    }
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = output(&mut kaito(arguments));
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A registry that lets one user in, with an image of the tiny model's weights alone, and a file of credentials for it.
fn registry_of_weights(background: &Background, at: &Path) -> (Arc<Registry>, String, PathBuf) {
    let config = Config { access: Access::Basic("team", "secret"), ..Config::default() };
    let registry = background.block_on(Registry::start(config));
    let image = format!("{}/weights/tiny:1", registry.address);
    let pull = at.join("pull.json");
    // As a secret of the type kubernetes.io/dockerconfigjson has it.
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"dGVhbTpzZWNyZXQ="}}}}}}"#, registry.address);
    fs::write(&pull, auths).unwrap();
    let weights = tiny_model();
    let (weights, authfile) = (weights.to_str().unwrap(), pull.to_str().unwrap());
    let build = ["image", "build", "tiny", "--no-preset", "--weights", weights, "--weights-only", "--push", "--tag"];
    let (status, _, stderr) = run(&[&build[..], &[&image, "--authfile", authfile]].concat());
    assert_eq!(status, 0, "{stderr}");
    (registry, image, pull)
}

#[test]
fn weights_come_out_of_an_image_once() {
    let background = Background::new();
    let at = tempfile::tempdir().unwrap();
    let (registry, image, pull) = registry_of_weights(&background, at.path());
    let to = at.path().join("mnt/weights");
    let files = format!("{},{}", pull.display(), pull.display());
    let extract = |image: &str, authfile: &str, path: &str| {
        run(&["image", "extract", image, "--path", path, "--to", to.to_str().unwrap(), "--authfile", authfile])
    };
    let (status, _, stderr) = extract(&image, &at.path().join("missing.json").display().to_string(), "/weights");
    assert_eq!(status, 1);
    assert!(stderr.contains("missing.json"), "a secret that is missing is named: {stderr}");
    let (status, _, stderr) = extract(&image, &files, "/data");
    assert!(status == 1 && stderr.contains("has no files in /data"), "{stderr}");
    let (status, stdout, stderr) = extract(&image, &files, "/weights");
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.ends_with(&format!("is in {}\n", to.display())), "{stdout}");
    // Everything that serving needs, and nothing else.
    let needed = names(&to);
    for name in ["config.json", "tokenizer.json"] {
        assert!(needed.iter().any(|needed| needed == name), "{needed:?}");
    }
    assert_same(&to, &needed);
    // A pod that starts again needs no registry.
    let asked = registry.log.lock().unwrap().len();
    let (status, stdout, _) = extract(&image, &files, "/weights");
    assert_eq!((status, registry.log.lock().unwrap().len()), (0, asked));
    assert!(stdout.contains("already"), "{stdout}");
}

/// As in a container of an image with neither a shell nor our libraries: the loader finds all that it needs in one folder.
#[test]
fn the_program_is_carried_to_where_nothing_of_it_is_installed() {
    let at = tempfile::tempdir().unwrap();
    let tool = at.path().join("tool");
    let (status, _, stderr) = run(&["image", "program", "--to", tool.to_str().unwrap()]);
    assert_eq!(status, 0, "{stderr}");
    let (loader, libraries, program) = (tool.join("ld.so"), tool.join("lib"), tool.join("kaito"));
    let carried = |before: &[&str], after: &[&str]| {
        let mut command = Command::new(&loader);
        command.env_clear().current_dir("/").arg("--library-path").arg(&libraries);
        let output = output(command.args(before).arg(&program).args(after));
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (status, listed, stderr) = carried(&["--list"], &[]);
    assert_eq!(status, 0, "{stderr}");
    let found: Vec<&str> = listed.lines().filter_map(|line| line.split(" => ").nth(1)).collect();
    assert!(!found.is_empty() && found.iter().all(|path| path.starts_with(tool.to_str().unwrap())), "{listed}");

    let to = at.path().join("mnt/weights");
    let (weights, folder) = (tiny_model(), to.to_str().unwrap());
    let extract = ["image", "extract", "/", "--path", weights.to_str().unwrap(), "--to", folder];
    let (status, _, stderr) = carried(&[], &extract);
    assert_eq!(status, 0, "{stderr}");
    assert_same(&to, &names(&tiny_model()));
    let (status, stdout, _) = carried(&[], &extract);
    assert!(status == 0 && stdout.contains("already"), "{stdout}");
    // The same program, carried over an older copy of it.
    assert_eq!(run(&["image", "program", "--to", tool.to_str().unwrap()]).0, 0);
}

fn largest(folder: &Path) -> String {
    let size = |name: &String| fs::metadata(folder.join(name)).unwrap().len();
    names(folder).into_iter().filter(|name| name.ends_with(".safetensors")).max_by_key(size).unwrap()
}

#[test]
fn a_download_goes_on_after_a_restart_and_a_whole_one_needs_no_hub() {
    let hub = TestHub::of_folder(&tiny_model());
    let at = tempfile::tempdir().unwrap();
    let (cache, link) = (at.path().join("hub"), at.path().join("tiny"));
    let download = || {
        let mut command = kaito(&["download", "test/tiny", "--link", link.to_str().unwrap()]);
        command.env("HF_ENDPOINT", &hub.url).env("HF_HUB_CACHE", &cache).env("HF_TOKEN", "token");
        command
    };
    let weights = largest(&tiny_model());
    hub.fault(&weights, &[Fault::BreakAfter(2000), Fault::RetryAfter(3600)]);
    let mut first = download().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the second request", || (hub.fetches(&weights).len() == 2).then_some(()));
    // The container is ended while it waits.
    signal(&first, Signal::TERM);
    assert!(!first.wait().unwrap().success());
    assert!(!link.exists(), "a link leads to a whole model");
    let output_of = |command: &mut Command| {
        let output = output(command);
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (status, stdout, stderr) = output_of(&mut download());
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(hub.fetches(&weights).last().unwrap().range.as_deref(), Some("bytes=2000-"), "it goes on where it was");
    assert_eq!(fs::canonicalize(stdout.trim()).unwrap(), fs::canonicalize(&link).unwrap());
    assert!(fs::read_link(&link).unwrap().is_relative());
    let needed = names(&link);
    assert_same(&link, &needed);
    assert!(needed.contains(&weights) && needed.iter().any(|name| name == "tokenizer.json"), "{needed:?}");

    // Mounted elsewhere, it leads there.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(&cache, elsewhere.path().join("hub")).unwrap();
    fs::rename(&link, elsewhere.path().join("tiny")).unwrap();
    assert_same(&elsewhere.path().join("tiny"), &needed);
    fs::rename(elsewhere.path().join("hub"), &cache).unwrap();
    fs::rename(elsewhere.path().join("tiny"), &link).unwrap();

    let (mut again, seen) = (download(), hub.seen().len());
    assert_eq!(output_of(&mut again).0, 0);
    assert_eq!(hub.seen().len(), seen, "a model that is there is not asked for");
    hub.stop();
    let (status, stdout, stderr) = output_of(&mut again);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(fs::canonicalize(stdout.trim()).unwrap(), fs::canonicalize(&link).unwrap());
}

#[test]
fn what_the_hub_refuses_or_damages_is_no_model() {
    let hub = TestHub::of_folder(&tiny_model());
    let at = tempfile::tempdir().unwrap();
    let link = at.path().join("tiny");
    let download = |token: Option<&str>| {
        let mut command = kaito(&["download", "test/tiny", "--link", link.to_str().unwrap()]);
        command.env("HF_ENDPOINT", &hub.url).env("HF_HUB_CACHE", at.path().join("hub"));
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
        let output = output(&mut command);
        assert_eq!(output.status.code(), Some(1));
        assert!(fs::symlink_metadata(&link).is_err(), "nothing is linked");
        text(&output.stderr)
    };
    let weights = largest(&tiny_model());
    hub.fault(&weights, &[Fault::Corrupt, Fault::Corrupt]);
    let said = download(None);
    assert!(said.contains(&weights) && said.contains("arrived damaged twice"), "{said}");
    hub.set(|contents| contents.refusal = Some((403, Some("GatedRepo"))));
    let said = download(None);
    assert!(said.contains("accept its terms") && said.contains("set HF_TOKEN"), "{said}");
    let said = download(Some("token"));
    assert!(said.contains("the account of the given token has no access"), "{said}");
    hub.set(|contents| contents.refusal = Some((401, None)));
    let said = download(Some("token"));
    assert!(said.contains("the hub refuses the given token"), "{said}");

    fs::write(&link, "mine").unwrap();
    hub.set(|contents| contents.refusal = None);
    let mut command = kaito(&["download", "test/tiny", "--link", link.to_str().unwrap()]);
    let output = output(command.env("HF_ENDPOINT", &hub.url).env("HF_HUB_CACHE", at.path().join("hub")));
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("something else is there"), "{said}");
    assert_eq!(fs::read_to_string(&link).unwrap(), "mine");
}
