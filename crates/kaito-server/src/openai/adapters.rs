//! Adapters that come and go while the server runs, as vLLM has them: `POST /v1/load_lora_adapter` and
//! `POST /v1/unload_lora_adapter`.

use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use kaito_engine::{Cancel, Error, NamedAdapter};

use super::{body, parameters};
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// Most adapters that a server has at the same time: a step looks at each.
const MOST: usize = 256;
/// Longest name, in characters.
const LONGEST_NAME: usize = 200;

/// An adapter that is to be loaded.
#[derive(Debug)]
struct Load {
    name: String,
    path: String,
    /// Whether it may take the place of one that has its name.
    in_place: bool,
}

/// An adapter that is to go.
#[derive(Debug)]
struct Unload {
    name: String,
}

/// Reads the body of `/v1/load_lora_adapter`.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for what is missing or of the wrong type.
pub(crate) fn parse_load(bytes: &[u8]) -> Result<Request, ApiError> {
    let mut body = body::parse(bytes)?;
    let name = take_name(&mut body)?;
    let path = body.take_string("lora_path")?.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| fields::missing("lora_path", "the folder of an adapter"))?;
    let in_place = body.take_flag("load_inplace")?.unwrap_or(false);
    parameters::ignore_rest(body);
    Ok(Request { stream: false, work: Box::new(Load { name, path, in_place }) })
}

/// Reads the body of `/v1/unload_lora_adapter`.
///
/// # Errors
/// As [`parse_load`].
pub(crate) fn parse_unload(bytes: &[u8]) -> Result<Request, ApiError> {
    let mut body = body::parse(bytes)?;
    let name = take_name(&mut body)?;
    parameters::ignore_rest(body);
    Ok(Request { stream: false, work: Box::new(Unload { name }) })
}

fn take_name(body: &mut Fields) -> Result<String, ApiError> {
    let at = body.path("lora_name");
    let name = body.take_string("lora_name")?.ok_or_else(|| fields::missing("lora_name", "a string"))?;
    let is_name =
        !name.trim().is_empty() && name.chars().count() <= LONGEST_NAME && !name.chars().any(char::is_control);
    if is_name {
        return Ok(name);
    }
    let shown: String = name.chars().take(20).collect();
    Err(fields::invalid(&at, format_args!("{shown:?}"), &format!("a name of 1 to {LONGEST_NAME} characters")))
}

/// The folder below which adapters lie that may be loaded.
///
/// # Errors
/// 404 where there is none.
fn root<'a>(context: &Context<'a>) -> Result<&'a Path, ApiError> {
    let options = context.options;
    // Who may load adapters decides what others are told, so that is nobody's right who has shown no key.
    let root = options.runtime_adapters.as_deref().filter(|_| options.api_keys.are_asked_for());
    root.ok_or_else(|| {
        let detail = "This server loads no adapters while it runs; one that is started with --runtime-adapters DIR and an API key \
                      does.";
        ApiError::new(StatusCode::NOT_FOUND, detail)
    })
}

/// The adapter's folder, which must lie below `root`, its files too, wherever links lead.
///
/// # Errors
/// 404 for what is not there, 400 for what lies elsewhere.
fn folder(root: &Path, asked: &str) -> Result<PathBuf, ApiError> {
    let missing = || {
        let detail = format!("There is no adapter at `lora_path` {asked:?}.");
        ApiError::new(StatusCode::NOT_FOUND, detail).with_param("lora_path")
    };
    let outside = || {
        let detail = format!("`lora_path` {asked:?} leads out of the folder that this server loads adapters from.");
        ApiError::bad_request(detail).with_param("lora_path")
    };
    let root = root.canonicalize().map_err(|_| missing())?;
    // An absolute path replaces the root.
    let joined = root.join(asked);
    let Ok(folder) = joined.canonicalize() else {
        // What lies elsewhere is not told apart from what is not there.
        let plain = !asked.contains("..") && joined.starts_with(&root);
        return Err(if plain { missing() } else { outside() });
    };
    if !folder.starts_with(&root) {
        return Err(outside());
    }
    if !folder.is_dir() {
        return Err(missing());
    }
    for file in kaito_engine::ADAPTER_FILES {
        if folder.join(file).canonicalize().is_ok_and(|file| !file.starts_with(&root)) {
            return Err(outside());
        }
    }
    Ok(folder)
}

impl Work for Load {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let root = root(context)?;
        let Self { name, path, in_place } = *self;
        if context.options.names_model(&name) {
            let detail = format!("`lora_name` {name:?} stands for the model itself; give the adapter another name.");
            return Err(ApiError::bad_request(detail).with_param("lora_name"));
        }
        let adapters = context.model.adapters();
        let known = adapters.find(&name).is_some();
        if known && !in_place {
            let detail = format!("There is an adapter {name:?} already; `load_inplace` replaces it.");
            return Err(ApiError::bad_request(detail).with_param("lora_name"));
        }
        if !known && adapters.list().len() >= MOST {
            let detail = format!("There are {MOST} adapters, which is the most that there may be; unload one first.");
            return Err(ApiError::bad_request(detail));
        }
        let folder = folder(root, &path)?;
        cancel.check()?;
        context.model.load_adapter(&name, &folder, in_place).map_err(|error| match error {
            error @ (Error::Load(_) | Error::OverLimit { .. } | Error::Checkpoint(_)) => {
                ApiError::bad_request(error.sentence(&|name: &str| format!("--{}", name.replace('_', "-"))))
                    .with_param("lora_path")
            }
            error => error.into(),
        })?;
        tracing::info!(adapter = name, folder = %folder.display(), "an adapter is loaded");
        Ok(Task::Text(format!("Success: LoRA adapter '{name}' added successfully.")))
    }
}

impl Work for Unload {
    fn prepare(self: Box<Self>, context: &Context<'_>, _: &Cancel) -> Result<Task, ApiError> {
        root(context)?;
        let Self { name } = *self;
        match context.model.adapters().remove(&name) {
            Some(NamedAdapter { name, .. }) => {
                tracing::info!(adapter = name, "an adapter is unloaded");
                Ok(Task::Text(format!("Success: LoRA adapter '{name}' removed successfully.")))
            }
            None => {
                let detail = format!("There is no adapter {name:?}.");
                Err(ApiError::new(StatusCode::NOT_FOUND, detail).with_param("lora_name"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_path_leads_out_of_the_root() {
        let all = tempfile::tempdir().unwrap();
        let (root, other) = (all.path().join("root"), all.path().join("other"));
        for folder in [&root, &root.join("a/b"), &root.join("linked"), &other] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(root.join("file"), "").unwrap();
        fs::write(other.join("adapter_config.json"), "{}").unwrap();
        symlink(&other, root.join("out")).unwrap();
        symlink(root.join("a"), root.join("in")).unwrap();
        symlink(other.join("adapter_config.json"), root.join("linked/adapter_config.json")).unwrap();
        let absolute = |path: &Path| path.to_str().unwrap().to_owned();
        for (asked, found) in [
            ("a", Ok("a")),
            ("a/b", Ok("a/b")),
            ("./a/../a/b", Ok("a/b")),
            ("in/b", Ok("a/b")),
            (&absolute(&root.join("a")), Ok("a")),
            ("none", Err(404)),
            ("file", Err(404)),
            ("a/none", Err(404)),
            ("..", Err(400)),
            ("../other", Err(400)),
            ("a/../../other", Err(400)),
            ("../none", Err(400)),
            ("out", Err(400)),
            ("linked", Err(400)),
            ("/etc", Err(400)),
            ("/no/such/folder", Err(400)),
            (&absolute(&other), Err(400)),
        ] {
            let found = found.map(|path| root.canonicalize().unwrap().join(path));
            assert_eq!(folder(&root, asked).map_err(|error| error.status().as_u16()), found, "{asked}");
        }
        assert_eq!(folder(&all.path().join("gone"), "a").unwrap_err().status(), 404);
    }
}
