//! `kaito image`: models in container images.

mod build;
mod extract;
mod show;

use std::{
    fs,
    io::{self, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use kaito_image::{
    Image, Job, Layout, Platform, Progress, extract_adapter,
    registry::{self, Access, Credentials, PushOptions, PushReport, Reference, Repository, Secret},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    args::{ImageArgs, ImageCommand, ImagePushArgs, PushingArgs, RegistryArgs},
    display::{aligned, bytes},
    image_progress::ImageProgress,
    output::print,
};

pub fn run(args: &ImageArgs) -> anyhow::Result<()> {
    match &args.command {
        ImageCommand::Build(args) => build::run(args),
        ImageCommand::Push(args) => push(args),
        ImageCommand::Inspect(args) => show::inspect(args),
        ImageCommand::Verify(args) => show::verify(args),
        ImageCommand::Extract(args) => extract::extract(args),
        ImageCommand::Program(args) => extract::program(args),
    }
}

fn push(args: &ImagePushArgs) -> anyhow::Result<()> {
    let work = Work::begin(&args.registry)?;
    let platform = args.platform.clone().unwrap_or_else(Platform::of_this_machine);
    let reference = registry::parse_reference(&args.reference)?;
    let image = work.local(&args.path, &platform)?;
    let image = image.with_context(|| format!("there is no file or directory {}", args.path))?;
    let report = work.push(&image, &reference, &args.pushing, PushOptions::default())?;
    print(&aligned(pushed(&reference, &report)))
}

/// Copies the adapter that an image holds into `folder`.
pub fn fetch_adapter(image: &str, folder: &Path, args: &RegistryArgs) -> anyhow::Result<()> {
    let work = Work::begin(args)?;
    let image = work.remote(&registry::parse_reference(image)?, &Platform::of_this_machine())?;
    Ok(extract_adapter(&image, folder, work.job())?)
}

/// What all commands share: the threads of the client, how a registry is reached, and an end by Ctrl-C.
struct Work {
    runtime: Runtime,
    registry: registry::Options,
    progress: ImageProgress,
    cancelled: Arc<AtomicBool>,
    interrupted: watch::Receiver<bool>,
}

impl Work {
    fn begin(args: &RegistryArgs) -> anyhow::Result<Self> {
        let runtime = Runtime::new().context("cannot start the threads of the client")?;
        let registry = options(args)?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = cancelled.clone();
        let (interrupt, interrupted) = watch::channel(false);
        // There is one listener, which starts before any work: a listener per piece of work would miss a signal between two.
        let mut signals = Signals::listen(&runtime).context("cannot listen for Ctrl-C")?;
        runtime.spawn(async move {
            signals.recv().await;
            flag.store(true, Ordering::Relaxed);
            interrupt.send_replace(true);
        });
        Ok(Self { runtime, registry, progress: ImageProgress::new(), cancelled, interrupted })
    }

    fn job(&self) -> Job<'_> {
        Job { progress: &self.progress, cancelled: &self.cancelled }
    }

    /// The image in a layout on this machine, if `text` names one.
    fn local(&self, text: &str, platform: &Platform) -> anyhow::Result<Option<Image>> {
        let Some((path, tag)) = kaito_image::split_path(text) else { return Ok(None) };
        Ok(Some(Layout::open(&path)?.image(tag.as_deref(), platform)?))
    }

    fn remote(&self, reference: &Reference, platform: &Platform) -> anyhow::Result<Image> {
        self.until_interrupted("interrupted", async {
            Ok(Repository::open(reference, Access::Pull, &self.registry).await?.image(platform).await?)
        })
    }

    /// The image that `text` names, and whether it lies on this machine.
    fn find(&self, text: &str, platform: &Platform) -> anyhow::Result<(Image, bool)> {
        if let Some(image) = self.local(text, platform)? {
            return Ok((image, true));
        }
        if text.starts_with(['/', '.']) || Path::new(text).is_absolute() {
            bail!("there is no file or directory {text}");
        }
        Ok((self.remote(&registry::parse_reference(text)?, platform)?, false))
    }

    /// Fails if images can't be pushed there.
    fn check_push(&self, reference: &Reference) -> anyhow::Result<()> {
        let progress: &dyn Progress = &self.progress;
        self.until_interrupted("interrupted", async {
            let repository = Repository::open(reference, Access::Push, &self.registry).await?;
            Ok(repository.check_push(progress).await?)
        })
    }

    fn push(
        &self,
        image: &Image,
        reference: &Reference,
        args: &PushingArgs,
        options: PushOptions,
    ) -> anyhow::Result<PushReport> {
        let mut options = PushOptions { keep_existing: args.keep_tag, ..options };
        if let Some(repository) = &args.mount_from {
            for blob in image.blobs() {
                options.mounts.entry(blob.digest().clone()).or_insert_with(|| repository.clone());
            }
        }
        let progress: &dyn Progress = &self.progress;
        self.until_interrupted("interrupted; layers that have arrived whole are not sent again", async {
            let repository = Repository::open(reference, Access::Push, &self.registry).await?;
            Ok(repository.push(image, &options, progress).await?)
        })
    }

    /// Does `work`; if it is ended before, the error is `ended`.
    fn until_interrupted<T>(
        &self,
        ended: &'static str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let mut interrupted = self.interrupted.clone();
        self.runtime.block_on(async {
            tokio::select! {
                outcome = work => outcome,
                Ok(_) = interrupted.wait_for(|interrupted| *interrupted) => bail!(ended),
            }
        })
    }
}

/// The signals by which somebody ends this program.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub fn listen(runtime: &Runtime) -> io::Result<Self> {
        let _entered = runtime.enter();
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for one.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn options(args: &RegistryArgs) -> anyhow::Result<registry::Options> {
    let mut options = registry::Options {
        plain_http: args.plain_http,
        ca_files: args.ca_file.clone(),
        ..registry::Options::default()
    };
    for file in &args.authfile {
        // A file that does not exist would otherwise silently mean that there are no credentials.
        fs::metadata(file).with_context(|| format!("cannot read --authfile {}", file.display()))?;
    }
    if !args.authfile.is_empty() {
        options.credential_files.clone_from(&args.authfile);
    }
    let password = if args.password_stdin { Some(password_from_stdin()?) } else { args.password.clone() };
    options.credentials = match (&args.username, password) {
        (Some(user), Some(password)) => {
            Some(Credentials::Password { user: user.clone(), password: Secret::new(password) })
        }
        (Some(_), None) => bail!("--username wants a password: give KAITO_PASSWORD, --password-stdin or --password"),
        (None, _) => None,
    };
    Ok(options)
}

fn password_from_stdin() -> anyhow::Result<String> {
    const LONGEST: u64 = 64 << 10;
    let mut text = String::new();
    io::stdin().take(LONGEST).read_to_string(&mut text).context("cannot read the password from standard input")?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() { bail!("there is no password on standard input") } else { Ok(password.to_owned()) }
}

/// Rows that say what a push did.
fn pushed(reference: &Reference, report: &PushReport) -> Vec<[String; 2]> {
    let row = |key: &str, value: String| [key.to_owned(), value];
    let mut rows = vec![row("pushed", reference.to_string())];
    if report.unchanged {
        rows.push(row("sent", "nothing, the registry has this image".to_owned()));
    } else {
        rows.push(row("sent", sent(report.sent(), report.elapsed)));
        for (what, bytes_of) in
            [("existed", report.existed()), ("mounted", report.mounted()), ("resent", report.resent())]
        {
            if bytes_of > 0 {
                rows.push(row(what, bytes(bytes_of)));
            }
        }
    }
    if let Some(replaced) = &report.replaced {
        rows.push(row("replaced", replaced.clone()));
    }
    rows.push(row("digest", report.digest.to_string()));
    rows
}

fn sent(sent: u64, elapsed: Duration) -> String {
    if sent == 0 {
        return "nothing".to_owned();
    }
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { (sent as f64 / seconds) as u64 } else { 0 };
    format!("{} in {seconds:.1} s ({}/s)", bytes(sent), bytes(rate))
}
