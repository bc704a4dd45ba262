//! Flags for adapters.

use std::path::PathBuf;

use clap::Args;
use kaito_engine::AdapterSource;

use crate::values;

/// Which adapters (LoRA) are served beside the model.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Adapters")]
pub struct AdapterArgs {
    /// Adapter (LoRA) that requests to /v1 may name as their model: a folder that PEFT saved, and how strongly it counts, 1 unless
    /// it says otherwise. May be given again; the model's own name stands for the model without any
    #[arg(long, env = "KAITO_ADAPTER", value_name = "NAME=DIR[:STRENGTH]", value_delimiter = ',', value_parser = adapter)]
    pub adapter: Vec<AdapterSource>,
    /// Folder of adapters: each folder in it that has an adapter_config.json is one, by its name. The model's own name, /chat and
    /// /generate answer with all adapters together, each as strong as the environment variable of its name says (1 without); an
    /// adapter's name with it alone, and NAME-base without any [default: /mnt/adapter, where it exists]
    #[arg(long, env = "KAITO_ADAPTERS", value_name = "DIR")]
    pub adapters: Option<PathBuf>,
    /// Folder below which adapters lie that clients with a key may load while the server runs, by /v1/load_lora_adapter and
    /// /v1/unload_lora_adapter
    #[arg(long, env = "KAITO_RUNTIME_ADAPTERS", value_name = "DIR")]
    pub runtime_adapters: Option<PathBuf>,
    /// Memory for the adapters that are loaded so, in 32 bits
    #[arg(long, env = "KAITO_ADAPTER_MEMORY", value_name = "SIZE", value_parser = values::size, default_value = "1GiB")]
    pub adapter_memory: u64,
}

/// `NAME=DIR` or `NAME=DIR:STRENGTH`.
fn adapter(text: &str) -> Result<AdapterSource, String> {
    let (name, rest) = text.split_once('=').ok_or("expected NAME=DIR or NAME=DIR:STRENGTH")?;
    let (directory, strength) = match rest.rsplit_once(':') {
        Some((directory, strength)) => (directory, self::strength(strength)?),
        None => (rest, 1.0),
    };
    if directory.is_empty() {
        return Err("expected a folder behind =".to_owned());
    }
    Ok(AdapterSource { name: self::name(name)?, directory: directory.into(), strength })
}

/// A name that requests can have for an adapter.
pub fn name(text: &str) -> Result<String, String> {
    /// Longest name, in characters.
    const LONGEST: usize = 200;
    let is_name = !text.trim().is_empty() && text.chars().count() <= LONGEST && !text.chars().any(char::is_control);
    if is_name { Ok(text.to_owned()) } else { Err(format!("expected a name of 1 to {LONGEST} characters")) }
}

/// How strongly an adapter counts.
pub fn strength(text: &str) -> Result<f32, String> {
    let strength = text.trim().parse().ok().filter(|strength: &f32| strength.is_finite() && *strength >= 0.0);
    strength.ok_or_else(|| format!("{text:?} is no strength: expected a number that is not negative, like 0.5"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_a_name_a_folder_and_a_strength() {
        for (text, name, directory, strength) in [
            ("sql=/models/sql", "sql", "/models/sql", 1.0),
            ("sql=/models/sql:0.5", "sql", "/models/sql", 0.5),
            ("a b=rel/x=y:2", "a b", "rel/x=y", 2.0),
            ("org/sql=d:0", "org/sql", "d", 0.0),
        ] {
            let expected = AdapterSource { name: name.to_owned(), directory: directory.into(), strength };
            assert_eq!(adapter(text), Ok(expected), "{text}");
        }
        for (text, part) in [
            ("/models/sql", "NAME=DIR"),
            ("=d", "a name of 1 to 200 characters"),
            ("sql=", "a folder"),
            ("sql=:1", "a folder"),
            ("sql=d:x", "\"x\" is no strength"),
            ("sql=d:-1", "not negative"),
            ("sql=d:inf", "\"inf\" is no strength"),
            ("sql=d:", "\"\" is no strength"),
            ("s\nl=d", "a name"),
        ] {
            let error = adapter(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
