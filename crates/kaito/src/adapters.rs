//! Which adapters are served, from flags and folders.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use kaito_engine::AdapterSource;
use kaito_server::ServerOptions;

use crate::args::{AdapterArgs, adapter_name, adapter_strength};

/// Where KAITO's pods have their adapters.
const USUAL_FOLDER: &str = "/mnt/adapter";
/// What makes a folder an adapter.
const CONFIG_FILE: &str = "adapter_config.json";

/// The adapters to load with the model.
#[derive(Debug, Default, PartialEq)]
pub struct Chosen {
    pub sources: Vec<AdapterSource>,
    /// Whether the model's own name stands for the model with all of them.
    pub combined: bool,
}

/// The adapters that `args` ask for.
///
/// # Errors
/// For a folder that cannot be read, a strength that is no number, and names that stand for something else.
pub fn choose(args: &AdapterArgs, options: &ServerOptions) -> anyhow::Result<Chosen> {
    let usual = Some(Path::new(USUAL_FOLDER)).filter(|folder| args.adapters.is_none() && folder.is_dir());
    let folder = args.adapters.as_deref().or(usual);
    let variable = |name: &str| std::env::var(name).ok();
    let of_folder = folder.map_or(Ok(Vec::new()), |folder| in_folder(folder, variable)).context("--adapters")?;
    let combined = !of_folder.is_empty();
    let sources: Vec<_> = args.adapter.iter().cloned().chain(of_folder).collect();
    for (i, AdapterSource { name, .. }) in sources.iter().enumerate() {
        if options.names_model(name) {
            bail!("the adapter {name:?} has a name that stands for the model itself; give it another");
        }
        if sources.iter().take(i).any(|other| other.name == *name) {
            bail!("there are two adapters {name:?}; give one of them another name");
        }
    }
    Ok(Chosen { sources, combined })
}

/// What is to be said where an engine elsewhere computes and adapters lie in the usual folder: it is that engine's to load them.
pub fn left_to_the_engine() -> Option<String> {
    of_the_engine(Path::new(USUAL_FOLDER))
}

fn of_the_engine(folder: &Path) -> Option<String> {
    // A folder that cannot be read is nothing to this server, which loads none of it.
    let adapters = folders_of_adapters(folder).unwrap_or_default();
    let name = |directory: &PathBuf| directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = adapters.iter().map(name).collect();
    (!names.is_empty()).then(|| {
        format!(
            "the adapters in {} are not served: with --upstream the engine must have them (vLLM's --lora-modules NAME=DIR), and \
             requests ask for them by those names; there are {}",
            folder.display(),
            names.join(", ")
        )
    })
}

/// The folders in `folder` that are adapters, in order.
fn folders_of_adapters(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let directory = entry?.path();
        if directory.join(CONFIG_FILE).is_file() {
            found.push(directory);
        }
    }
    found.sort();
    Ok(found)
}

/// The adapters in a folder, each in a folder of its name, in the order of their names. `variable` gives an environment variable.
fn in_folder(folder: &Path, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Vec<AdapterSource>> {
    let unreadable = || format!("the folder {} cannot be read", folder.display());
    let mut sources = Vec::new();
    for directory in folders_of_adapters(folder).with_context(unreadable)? {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name =
            adapter_name(&name).map_err(|error| anyhow::anyhow!("the folder {}: {error}", directory.display()))?;
        let strength = match variable(&name) {
            Some(text) => adapter_strength(&text).map_err(|error| {
                anyhow::anyhow!("the environment variable {name}, the strength of the adapter: {error}")
            })?,
            None => 1.0,
        };
        sources.push(AdapterSource { name, directory, strength });
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(CONFIG_FILE), "{}").unwrap();
        }
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        fs::write(folder.path().join(CONFIG_FILE), "{}").unwrap();
        folder
    }

    fn source(folder: &Path, name: &str, strength: f32) -> AdapterSource {
        AdapterSource { name: name.to_owned(), directory: folder.join(name), strength }
    }

    fn args(folder: &Path, single: AdapterSource) -> AdapterArgs {
        AdapterArgs { adapter: vec![single], adapters: Some(folder.to_owned()), ..AdapterArgs::default() }
    }

    #[test]
    fn each_folder_with_a_configuration_is_an_adapter() {
        let folder = folder(&["two", "one"]);
        let variable = |name: &str| (name == "two").then(|| "0.25".to_owned());
        let expected = [source(folder.path(), "one", 1.0), source(folder.path(), "two", 0.25)];
        assert_eq!(in_folder(folder.path(), variable).unwrap(), expected);
        let error = in_folder(folder.path(), |_| Some("strong".to_owned())).unwrap_err().to_string();
        assert!(error.starts_with("the environment variable one") || error.contains("variable two"), "{error}");
        assert!(
            error.ends_with("\"strong\" is no strength: expected a number that is not negative, like 0.5"),
            "{error}"
        );
        let error = in_folder(Path::new("/no/such/folder"), |_| None).unwrap_err().to_string();
        assert_eq!(error, "the folder /no/such/folder cannot be read");
    }

    #[test]
    fn an_engine_elsewhere_has_adapters_of_its_own() {
        let folder = folder(&["two", "one"]);
        let said = of_the_engine(folder.path()).unwrap();
        for part in
            [folder.path().to_str().unwrap(), "are not served", "--lora-modules", "by those names", "are one, two"]
        {
            assert!(said.contains(part), "{said}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(of_the_engine(empty.path()), None);
        assert_eq!(of_the_engine(Path::new("/no/such/folder")), None);
    }

    #[test]
    fn the_model_answers_with_all_where_a_folder_of_them_is_given() {
        let folder = folder(&["one"]);
        let options = ServerOptions { model_name: "tiny".to_owned(), ..ServerOptions::default() };
        let single = source(Path::new("/a"), "single", 0.5);
        let of_folder = args(folder.path(), single.clone());
        let chosen = choose(&of_folder, &options).unwrap();
        assert_eq!(chosen, Chosen { sources: vec![single.clone(), source(folder.path(), "one", 1.0)], combined: true });
        let empty = tempfile::tempdir().unwrap();
        let alone = args(empty.path(), single.clone());
        assert_eq!(choose(&alone, &options).unwrap(), Chosen { sources: vec![single.clone()], combined: false });
        for (name, part) in [
            ("tiny", "stands for the model itself"),
            ("default", "stands for the model itself"),
            ("tiny-base", "stands for the model itself"),
            ("one", "there are two adapters \"one\""),
        ] {
            let args = args(folder.path(), AdapterSource { name: name.to_owned(), ..single.clone() });
            let error = choose(&args, &options).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}
