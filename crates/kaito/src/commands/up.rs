//! `kaito up`: a workspace on this machine.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use anyhow::Context;
use kaito_operator::up::{Host, Manifest, UpOptions, adapter_images, needs_weights, up};
use tempfile::TempDir;

use super::image::fetch_adapter;
use crate::{
    args::UpArgs,
    logging::{self, escape},
    model::download,
};

pub fn run(args: &UpArgs) -> anyhow::Result<()> {
    let text = read(&args.filename)?;
    let (manifest, warnings) = Manifest::read(&text, args.workspace.as_deref())
        .with_context(|| format!("cannot run {}", args.filename.display()))?;
    for warning in warnings {
        logging::say(&format!("warning: {}\n", escape::lines(&warning)));
    }
    let kaito = std::env::current_exe().context("cannot find this program")?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let host = runtime.block_on(Host::this(args.vllm.as_deref()));
    let preset = needs_weights(&manifest, &host)?;
    let adapters = adapters(&manifest, &host, args)?;
    let weights = match (&args.weights, preset) {
        (None, Some(preset)) => Some(download(preset)?),
        (given, _) => given.clone(),
    };
    let options = UpOptions {
        kaito: &kaito,
        port: args.port,
        host: &host,
        weights: weights.as_deref(),
        adapters: adapters.as_ref().map(TempDir::path),
        log: log_line,
    };
    // The program that reads the conditions may stop reading them; the model runs on.
    runtime.block_on(up(&manifest, &options, logging::patient_stdout())).map_err(anyhow::Error::from)
}

/// The workspace's adapters, each in a folder of its name, out of their images. The folder is there as long as the value is.
fn adapters(manifest: &Manifest, host: &Host, args: &UpArgs) -> anyhow::Result<Option<TempDir>> {
    let images = adapter_images(manifest, host)?;
    if images.is_empty() {
        return Ok(None);
    }
    let all = TempDir::with_prefix("kaito-adapters-").context("cannot make a folder for the adapters")?;
    for (name, image) in images {
        let folder = all.path().join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fetch_adapter(image, &folder, &args.registry).with_context(|| {
            format!(
                "cannot fetch the adapter {name:?} from the image {image} (`kaito serve --adapter {name}=FOLDER` serves one that is \
                 on this machine)"
            )
        })?;
    }
    Ok(Some(all))
}

/// A line of a process of the pod.
fn log_line(prefix: &str, line: &str) {
    logging::say(&format!("{} | {}\n", escape::line(prefix), escape::line(line)));
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        return io::stdin().read_to_string(&mut text).map(|_| text).context("cannot read stdin");
    }
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
