//! `kaito image build`.

use std::{env, path::PathBuf};

use anyhow::{Context, anyhow};
use kaito_hub::{Hub, HubOptions};
use kaito_image::{
    Adapter, Base, Blob, Executable, Expected, Model, ModelFile, Output, Plan, Platform,
    registry::{self, PushOptions, Reference},
};

use super::{Work, pushed};
use crate::{
    args::ImageBuildArgs,
    display::{aligned, bytes, count},
    output::print,
    progress::DownloadProgress,
};

pub fn run(args: &ImageBuildArgs) -> anyhow::Result<()> {
    let work = Work::begin(&args.registry)?;
    let reference = args.tag.as_deref().map(registry::parse_reference).transpose()?;
    let platform = args.platform.clone().unwrap_or_else(Platform::of_this_machine);
    let (plan, mounts, mut rows) = match &args.adapter_folder {
        None => {
            let model = model(args)?;
            let below = below(args, &work, &platform)?;
            let mounts = mounts(&below, reference.as_ref());
            (Plan::new(&model, below.base, &platform)?, mounts, described(&model))
        }
        Some(folder) => {
            let adapter = Adapter::check(folder, &expected(args)?, args.weights.as_deref())?;
            let below = below(args, &work, &platform)?;
            let mounts = mounts(&below, reference.as_ref());
            (Plan::of_adapter(&adapter, below.base, &platform)?, mounts, adapter_described(&adapter))
        }
    };
    if let Some(reference) = reference.as_ref().filter(|_| args.push) {
        // All of the weights are read before the first byte is sent.
        work.check_push(reference)?;
    }
    let image = match &args.output {
        None => plan.hash(work.job())?,
        Some(path) => {
            let tag = reference.as_ref().and_then(|reference| reference.tag().map(str::to_owned));
            let name = reference.as_ref().map(Reference::to_string);
            let image = plan.write(&Output { path: path.clone(), tag, name }, work.job())?;
            rows.push(["written".to_owned(), path.display().to_string()]);
            image
        }
    };
    rows.push(["image".to_owned(), format!("{} in {} layers", bytes(image.size()), image.layers.len())]);
    match reference.filter(|_| args.push) {
        Some(reference) => {
            let options = PushOptions { mounts, ..PushOptions::default() };
            rows.extend(pushed(&reference, &work.push(&image, &reference, &args.pushing, options)?));
        }
        None => rows.push(["digest".to_owned(), image.digest().to_string()]),
    }
    print(&aligned(rows))
}

fn expected(args: &ImageBuildArgs) -> anyhow::Result<Expected> {
    if args.no_preset {
        return Ok(Expected::Any(args.preset.clone()));
    }
    let hint = "`kaito presets` lists all names, --no-preset packs a model that is none of them";
    Ok(Expected::Preset(kaito_presets::find(&args.preset).map_err(|unknown| anyhow!("{unknown}; {hint}"))?))
}

fn model(args: &ImageBuildArgs) -> anyhow::Result<Model> {
    let expected = expected(args)?;
    let directory = match (&args.weights, &expected) {
        (Some(directory), _) => directory.clone(),
        (None, Expected::Preset(preset)) => download(preset.hub_id)?,
        (None, Expected::Any(_)) => PathBuf::new(),
    };
    Ok(Model::check(&directory, &expected)?)
}

fn download(repository: &str) -> anyhow::Result<PathBuf> {
    let repository = repository.parse().context("in the catalogue of presets")?;
    let hub = Hub::new(HubOptions::from_env()?);
    Ok(hub.download(&repository, &DownloadProgress::new(&repository.to_string()))?.model())
}

struct Below {
    base: Base,
    /// Where a base of a registry came from.
    reference: Option<Reference>,
    blobs: Vec<Blob>,
}

fn below(args: &ImageBuildArgs, work: &Work, platform: &Platform) -> anyhow::Result<Below> {
    let own = |base| Below { base, reference: None, blobs: Vec::new() };
    let this = || -> anyhow::Result<Executable> {
        Ok(Executable::inspect(&env::current_exe().context("cannot find the executable that runs")?)?)
    };
    match args.base.as_deref() {
        _ if args.weights_only => Ok(own(Base::WeightsOnly)),
        Some("scratch") if args.adapter_folder.is_some() => Ok(own(Base::WeightsOnly)),
        None => Ok(own(Base::Own(this()?))),
        Some("scratch") => Ok(own(Base::Scratch(this()?))),
        Some(name) => {
            let (image, local) = work.find(name, platform)?;
            // An adapter is copied out of its image by the base's programs, and needs no server in it.
            let complete = if args.adapter_folder.is_some() {
                kaito_image::check_copies_itself(name, &image, work.job())?;
                true
            } else {
                kaito_image::has_server(&image)?
            };
            let executable = if complete { None } else { Some(this()?) };
            let reference = if local { None } else { Some(registry::parse_reference(name)?) };
            let blobs = image.layers.clone();
            let base = Base::Image { name: name.to_owned(), image: Box::new(image), executable };
            Ok(Below { base, reference, blobs })
        }
    }
}

/// Blobs that need not travel when the base lies in the registry to which the image goes.
fn mounts(below: &Below, target: Option<&Reference>) -> std::collections::HashMap<kaito_image::Digest, String> {
    match (&below.reference, target) {
        (Some(base), Some(target)) if base.registry() == target.registry() => {
            below.blobs.iter().map(|blob| (blob.digest().clone(), base.repository().to_owned())).collect()
        }
        _ => Default::default(),
    }
}

fn described(model: &Model) -> Vec<[String; 2]> {
    let mut rows = vec![[
        "model".to_owned(),
        format!("{}, {} parameters in {}", model.name, count(model.parameters), model.dtype),
    ]];
    rows.push([
        "weights".to_owned(),
        format!(
            "{} in {} of weights and {} beside them",
            bytes(model.size()),
            files(model.weights.len()),
            model.companions.len()
        ),
    ]);
    rows.extend(left_out(&model.left_out));
    rows
}

fn adapter_described(adapter: &Adapter) -> Vec<[String; 2]> {
    let Adapter { model, rank, bytes: in_memory, weights, companions, .. } = adapter;
    let mut rows = vec![
        ["adapter".to_owned(), format!("for {model}, of rank {rank}, {} of memory", bytes(*in_memory))],
        [
            "files".to_owned(),
            format!("{} in {} and {} beside it", bytes(adapter.size()), weights.name, files(companions.len())),
        ],
    ];
    rows.extend(left_out(&adapter.left_out));
    rows
}

fn left_out(files: &[ModelFile]) -> Option<[String; 2]> {
    if files.is_empty() {
        return None;
    }
    let shown: Vec<&str> = files.iter().map(|file| file.name.as_str()).take(4).collect();
    let more = files.len() - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(["left out".to_owned(), format!("{}{more}: serving does not need them", shown.join(", "))])
}

fn files(number: usize) -> String {
    format!("{number} file{}", if number == 1 { "" } else { "s" })
}
