//! `kaito image extract` and `kaito image program`: files out of images, and this program into a container of any image.

use std::path::Path;

use anyhow::{Context, anyhow};
use kaito_image::{Error, Executable, Platform, Unpacked, copy_folder, registry, unpack};

use super::Work;
use crate::{
    args::{ImageExtractArgs, ImageProgramArgs},
    output::print,
};

/// What stands for the container that this program runs in.
const ROOT: &str = "/";

pub fn extract(args: &ImageExtractArgs) -> anyhow::Result<()> {
    let path = format!("/{}", args.path.trim_matches('/'));
    let is_same = |found: &Unpacked| found.image == args.image && found.path == path;
    let to = args.to.display();
    // A tag may name another image by now; but what starts again is to have what it had, though no registry answers.
    if Unpacked::found(&args.to).is_some_and(|found| is_same(&found)) {
        return print(&format!("{path} of {} is in {to} already\n", args.image));
    }
    let work = Work::begin(&args.registry)?;
    let unpacked = if args.image == ROOT {
        copy_folder(Path::new(&path), &args.to, work.job())
    } else {
        let platform = args.platform.clone().unwrap_or_else(Platform::of_this_machine);
        let image = work.remote(&registry::parse_reference(&args.image)?, &platform)?;
        unpack(&image, &args.image, &path, &args.to, work.job())
    };
    match unpacked {
        Ok(_) => print(&format!("{path} of {} is in {to}\n", args.image)),
        Err(Error::Interrupted) => Err(anyhow!("interrupted; what has arrived whole is kept, and not fetched again")),
        Err(error) => Err(error).with_context(|| format!("cannot copy {path} of {} to {to}", args.image)),
    }
}

pub fn program(args: &ImageProgramArgs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    Executable::inspect(&program)?.carry(&args.to)?;
    Ok(())
}
