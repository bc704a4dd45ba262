//! `kaito image inspect` and `kaito image verify`.

use anyhow::{Context, bail};
use kaito_image::{Expected, Inspection, Model, Platform, Verification, verify_blobs, verify_weights};

use super::Work;
use crate::{
    args::{ImageInspectArgs, ImageVerifyArgs},
    display::{aligned, bytes, count},
    output::print,
};

pub fn inspect(args: &ImageInspectArgs) -> anyhow::Result<()> {
    let work = Work::begin(&args.registry)?;
    let platform = args.platform.clone().unwrap_or_else(Platform::of_this_machine);
    let (image, _) = work.find(&args.image, &platform)?;
    let inspection = Inspection::of(&image)?;
    if args.json {
        let text = serde_json::to_string_pretty(&inspection).context("cannot write JSON")?;
        return print(&(text + "\n"));
    }
    print(&format!("{}\n{}", aligned(summary(&args.image, &inspection)), aligned(layers(&inspection))))
}

fn summary(name: &str, image: &Inspection) -> Vec<[String; 2]> {
    let unknown = || "not said".to_owned();
    let joined = |words: &[String]| if words.is_empty() { "none".to_owned() } else { words.join(" ") };
    let parameters = image.parameters.map(|number| format!(", {} parameters", count(number)));
    [
        ("image", name.to_owned()),
        ("digest", image.digest.clone()),
        ("preset", image.preset.clone().unwrap_or_else(unknown) + parameters.as_deref().unwrap_or_default()),
        ("dtype", image.dtype.clone().unwrap_or_else(unknown)),
        ("size", format!("{} in {} layers", bytes(image.size), image.layers.len())),
        ("platform", image.platform.clone()),
        ("weights", image.weights.clone().unwrap_or_else(unknown)),
        ("adapter", image.adapter.clone().unwrap_or_default()),
        ("server", image.server.as_ref().map_or_else(|| "none".to_owned(), |version| format!("kaito {version}"))),
        ("runs", joined(&[image.entrypoint.clone(), image.command.clone()].concat())),
        ("user", image.user.clone().unwrap_or_else(|| "root".to_owned())),
        ("ports", joined(&image.ports)),
    ]
    .into_iter()
    .filter(|(key, _)| match *key {
        // Weights alone are not run.
        "runs" | "user" | "ports" => !image.entrypoint.is_empty() || !image.command.is_empty(),
        "adapter" => image.adapter.is_some(),
        "dtype" | "weights" => image.adapter.is_none(),
        _ => true,
    })
    .map(|(key, value)| [key.to_owned(), value])
    .collect()
}

fn layers(image: &Inspection) -> Vec<[String; 4]> {
    const WIDEST: usize = 60;
    let header = ["LAYER", "SIZE", "DIGEST", "CONTENT"].map(String::from);
    let rows = image.layers.iter().enumerate().map(|(number, layer)| {
        let content = layer.content.as_deref().unwrap_or("not said");
        let shown: String = content.chars().take(WIDEST).collect();
        let shown = if shown.len() < content.len() { shown + "..." } else { shown };
        [(number + 1).to_string(), bytes(layer.size), layer.short_digest(), shown]
    });
    std::iter::once(header).chain(rows).collect()
}

pub fn verify(args: &ImageVerifyArgs) -> anyhow::Result<()> {
    let work = Work::begin(&args.registry)?;
    let platform = args.platform.clone().unwrap_or_else(Platform::of_this_machine);
    let (image, local) = work.find(&args.image, &platform)?;
    let name = Inspection::of(&image)?.preset.unwrap_or_else(|| "the model".to_owned());
    let model = Model::check(&args.weights, &Expected::Any(name))?;
    if local {
        verify_blobs(&image, work.job())?;
    }
    let found = verify_weights(&image, &model, work.job())?;
    let rows =
        [("same", &found.same), ("differs", &found.differ), ("missing", &found.missing), ("extra", &found.extra)]
            .into_iter()
            .flat_map(|(what, names)| names.iter().map(move |name| [what.to_owned(), name.clone()]));
    print(&aligned(rows.collect()))?;
    if !found.holds() {
        bail!("{} does not hold the weights of {}: {}", args.image, args.weights.display(), numbers(&found));
    }
    Ok(())
}

fn numbers(found: &Verification) -> String {
    let parts = [("differ", found.differ.len()), ("missing", found.missing.len()), ("extra", found.extra.len())];
    let parts = parts.iter().filter(|(_, number)| *number > 0).map(|(what, number)| format!("{number} {what}"));
    parts.collect::<Vec<_>>().join(", ")
}
