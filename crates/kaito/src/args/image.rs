//! Flags of `kaito image` and what is under it.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use kaito_image::Platform;

use crate::values;

#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Pack a model, or an adapter, into an image, and write it, push it or both
    Build(ImageBuildArgs),
    /// Push an image that lies on this machine to a registry
    Push(ImagePushArgs),
    /// Show what an image is
    Inspect(ImageInspectArgs),
    /// Compare an image with a directory of weights
    Verify(ImageVerifyArgs),
    /// Copy a folder out of an image
    ///
    /// Digests are verified. After an interruption the same command goes on: what has arrived whole is kept.
    Extract(ImageExtractArgs),
    /// Copy this program and its libraries to run elsewhere
    ///
    /// In a container of any image it runs as `DIR/ld.so --library-path DIR/lib DIR/kaito`.
    Program(ImageProgramArgs),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("destination").args(["output", "push"]).required(true).multiple(true))]
pub struct ImageBuildArgs {
    /// The preset whose weights these must be, or that the adapter is for (see `kaito presets`)
    #[arg(env = "KAITO_PRESET", value_parser = values::not_empty)]
    pub preset: String,
    /// Directory of the weights [default: the preset's download from the hub]
    #[arg(long, env = "KAITO_WEIGHTS", value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Pack an adapter (LoRA) that PEFT saved in this folder, in place of the model: its files go to /data, from where KAITO's pods
    /// copy them with the base's /bin/sh; --base scratch packs the files alone. Of --weights it takes the model's shape
    #[arg(
        long = "adapter",
        env = "KAITO_ADAPTER_FOLDER",
        value_name = "DIR",
        requires = "base",
        conflicts_with = "weights_only"
    )]
    pub adapter_folder: Option<PathBuf>,
    /// PRESET is a name of your own and no preset: check the weights against their own configuration only
    #[arg(long, env = "KAITO_NO_PRESET", requires = "weights")]
    pub no_preset: bool,
    /// Name of the image, registry/repository:tag
    #[arg(long, short, env = "KAITO_TAG", value_name = "REF", value_parser = values::not_empty)]
    pub tag: Option<String>,
    /// Write an OCI layout: a directory or, if PATH ends in .tar, a file
    #[arg(long, short, env = "KAITO_OUTPUT", value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Push the image to the registry of --tag; without --output nothing is written to this machine's disk
    #[arg(long, env = "KAITO_PUSH", requires = "tag")]
    pub push: bool,
    /// Base image: its name in a registry, an OCI layout, or scratch for none
    /// [default: this executable with the libraries it needs, certificates, and a user without privileges]
    #[arg(long, env = "KAITO_BASE", value_name = "REF", conflicts_with = "weights_only")]
    pub base: Option<String>,
    /// Pack only the weights, to be mounted as an image volume beside a server
    #[arg(long, env = "KAITO_WEIGHTS_ONLY")]
    pub weights_only: bool,
    /// The platform that the image is for [default: this machine's]
    #[arg(long, env = "KAITO_PLATFORM", value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub pushing: PushingArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub struct ImagePushArgs {
    /// An OCI layout: a directory or tar file, with :TAG if it holds several images
    #[arg(env = "KAITO_PATH", value_parser = values::not_empty)]
    pub path: String,
    /// Where to push it, registry/repository:tag
    #[arg(env = "KAITO_REFERENCE", value_name = "REF", value_parser = values::not_empty)]
    pub reference: String,
    /// Of an image for several platforms, the one to push [default: this machine's]
    #[arg(long, env = "KAITO_PLATFORM", value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub pushing: PushingArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// An image in a registry, or an OCI layout on this machine
    #[arg(env = "KAITO_IMAGE", value_parser = values::not_empty)]
    pub image: String,
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
    /// Of an image for several platforms, the one to show [default: this machine's]
    #[arg(long, env = "KAITO_PLATFORM", value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub struct ImageVerifyArgs {
    /// An image in a registry, or an OCI layout on this machine
    #[arg(env = "KAITO_IMAGE", value_parser = values::not_empty)]
    pub image: String,
    /// The directory of weights that it should hold
    #[arg(long, env = "KAITO_WEIGHTS", value_name = "DIR")]
    pub weights: PathBuf,
    /// Of an image for several platforms, the one to compare [default: this machine's]
    #[arg(long, env = "KAITO_PLATFORM", value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub struct ImageExtractArgs {
    /// An image in a registry; / is the container that this runs in
    #[arg(env = "KAITO_IMAGE", value_parser = values::not_empty)]
    pub image: String,
    /// The folder in the image
    #[arg(long, env = "KAITO_PATH", value_name = "DIR", value_parser = values::not_empty, default_value = "/weights")]
    pub path: String,
    /// Where its files go: a folder that does not exist yet, or that has been made by this command
    #[arg(long, env = "KAITO_TO", value_name = "DIR")]
    pub to: PathBuf,
    /// Of an image for several platforms, the one to read [default: this machine's]
    #[arg(long, env = "KAITO_PLATFORM", value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub struct ImageProgramArgs {
    /// Folder to copy them to
    #[arg(long, env = "KAITO_TO", value_name = "DIR")]
    pub to: PathBuf,
}

/// What a push may do.
#[derive(Debug, Args)]
pub struct PushingArgs {
    /// Refuse to move a tag that already names another image
    #[arg(long, env = "KAITO_KEEP_TAG")]
    pub keep_tag: bool,
    /// Another repository of the same registry that has some of the layers: they are mounted from there instead of sent
    #[arg(long, env = "KAITO_MOUNT_FROM", value_name = "REPOSITORY", value_parser = values::not_empty)]
    pub mount_from: Option<String>,
}

/// How a registry is reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry")]
pub struct RegistryArgs {
    /// Use HTTP without TLS, as is done for registries on this machine anyway
    #[arg(long, env = "KAITO_PLAIN_HTTP")]
    pub plain_http: bool,
    /// Certificates of the registry or of its authority, a PEM file; may be given more than once
    #[arg(long, env = "KAITO_CA_FILE", value_name = "FILE", value_delimiter = ',')]
    pub ca_file: Vec<PathBuf>,
    /// User of the registry [default: the one of `docker login`]
    #[arg(long, env = "KAITO_USERNAME", value_name = "NAME", value_parser = values::not_empty)]
    pub username: Option<String>,
    /// Password or token of that user. Prefer the variable: every user of this machine can read a command line
    #[arg(long, env = "KAITO_PASSWORD", hide_env_values = true, requires = "username", value_parser = values::not_empty)]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long, env = "KAITO_PASSWORD_STDIN", requires = "username", conflicts_with = "password")]
    pub password_stdin: bool,
    /// File of credentials, in Docker's format; may be given more than once [default: those of Docker and Podman]
    #[arg(long, env = "KAITO_AUTHFILE", value_name = "FILE", value_delimiter = ',')]
    pub authfile: Vec<PathBuf>,
}
