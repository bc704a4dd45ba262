//! `kaito download`: a model from the hub into its cache, before something needs it.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
    process, thread,
};

use anyhow::{Context, bail};
use kaito_hub::{Hub, HubOptions, Repo, Snapshot};

use super::image::Signals;
use crate::{args::DownloadArgs, model::ModelSource, output::print, progress::DownloadProgress};

pub fn run(args: &DownloadArgs) -> anyhow::Result<()> {
    end_when_asked()?;
    let repo = ModelSource::on_hub(&args.model)?;
    let options = HubOptions::from_env()?;
    if let Some(found) = args.link.as_deref().and_then(|link| linked(&repo, &options, link)) {
        tracing::info!(%repo, "the model is there already");
        return print(&format!("{}\n", found.display()));
    }
    let snapshot = Hub::new(options).download(&repo, &DownloadProgress::new(&repo.to_string()))?;
    let model = snapshot.model();
    if let Some(path) = &args.link {
        link(path, &model).with_context(|| format!("cannot make {} a link to the model", path.display()))?;
    }
    print(&format!("{}\n", model.display()))
}

/// Ends at once when asked to, which the first process of a container has to do by itself. What has arrived is gone on with.
fn end_when_asked() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the thread that waits for signals")?;
    let mut signals = Signals::listen(&runtime).context("cannot listen for Ctrl-C")?;
    thread::spawn(move || {
        runtime.block_on(signals.recv());
        process::exit(1);
    });
    Ok(())
}

/// The model that `link` leads to, if it is the one that is wanted, and whole. So a pod that starts again has what it had, and needs no
/// hub.
fn linked(repo: &Repo, options: &HubOptions, link: &Path) -> Option<PathBuf> {
    let found = fs::canonicalize(link).ok()?;
    let offline = HubOptions { offline: true, ..options.clone() };
    let cached = Hub::new(offline).download(repo, &|_: kaito_hub::Event<'_>| {}).ok()?;
    let is_same = |snapshot: &Snapshot| snapshot.model().canonicalize().is_ok_and(|model| model == found);
    is_same(&cached).then(|| cached.model())
}

/// Makes `path` a relative link, so that it leads to the model wherever both are mounted. What else is there is left alone.
fn link(path: &Path, model: &Path) -> anyhow::Result<()> {
    let name = path.file_name().context("it has no name")?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_symlink()) {
        bail!("something else is there");
    }
    let target = relative(&folder.canonicalize()?, &absolute(model)?);
    // Under another name first, so that a reader finds the old link or the new one.
    let prefix = format!(".{}.", name.to_string_lossy());
    let aside = tempfile::Builder::new().prefix(&prefix).make_in(folder, |aside| symlink(&target, aside))?;
    aside.persist(path)?;
    Ok(())
}

/// The path from the root, with the folder's links resolved but not one of the file itself, whose name counts.
fn absolute(model: &Path) -> io::Result<PathBuf> {
    match (model.parent(), model.file_name()) {
        (Some(folder), Some(name)) => Ok(folder.canonicalize()?.join(name)),
        _ => model.canonicalize(),
    }
}

/// The way from a folder to a path, both from the root.
fn relative(folder: &Path, path: &Path) -> PathBuf {
    let (mut from, mut to) = (folder.components().peekable(), path.components().peekable());
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    from.map(|_| Component::ParentDir).chain(to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_over_the_folder_that_both_have() {
        for (folder, path, expected) in [
            ("/mnt/weights", "/mnt/weights/hub/models--a--b/snapshots/c", "hub/models--a--b/snapshots/c"),
            ("/mnt/weights", "/mnt/hub/c", "../hub/c"),
            ("/a/b", "/c", "../../c"),
            ("/", "/c", "c"),
        ] {
            assert_eq!(relative(Path::new(folder), Path::new(path)), Path::new(expected));
        }
    }
}
