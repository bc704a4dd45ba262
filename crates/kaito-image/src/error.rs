use std::{io, path::PathBuf};

use oci_spec::OciSpecError;

/// Why an image can't be built, read or written. Every message names what it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A layout can't go where something else is.
    #[error(
        "{} is a {found}: a layout is a directory or, if its name ends in .tar, a file; choose another --output",
        path.display()
    )]
    OutputInTheWay {
        /// Where it should go.
        path: PathBuf,
        /// `file` or `directory`.
        found: &'static str,
    },
    /// There is less room than the image needs.
    #[error(
        "{} has {} free, the image needs {}: choose another --output, or leave it out and --push, which writes nothing",
        path.display(), size(*free), size(*needed)
    )]
    NoRoom {
        /// Where it should go.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// There is less room than a folder needs.
    #[error("{} has {} free, but {} are needed: give it more room", path.display(), size(*free), size(*needed))]
    NoRoomToUnpack {
        /// Where it should go.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A folder can't go where something else is.
    #[error("{} is there already, and nothing that was unpacked from an image: choose another --to, or remove it", path.display())]
    FolderInTheWay {
        /// Where it should go.
        path: PathBuf,
    },
    /// An image without the folder that is wanted.
    #[error("the image {digest} has no files in {path}")]
    NoFolderInImage {
        /// The image.
        digest: String,
        /// The folder.
        path: String,
    },
    /// An executable that needs no loader can't be started by one.
    #[error(
        "{} is linked statically: to run in containers of other images it has to be one that loads libraries, as in kaito's own \
         image", executable.display()
    )]
    IsStatic {
        /// The executable.
        executable: PathBuf,
    },
    /// Something that should be a file is not.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What it is.
        path: PathBuf,
    },
    /// A layer's file could not be read.
    #[error("cannot read the layer of {layer}: {source}")]
    ReadLayer {
        /// What is in the layer.
        layer: String,
        /// What the system said.
        source: io::Error,
    },
    /// A name that no archive can hold.
    #[error("{path:?} can't be the name of a file in an image: {source}")]
    EntryName {
        /// The name.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A directory with more files than any model has.
    #[error("{} holds more than {limit} files: give the directory of one model", directory.display())]
    TooManyFiles {
        /// The directory.
        directory: PathBuf,
        /// The most that are looked at.
        limit: usize,
    },
    /// The weights can't be served.
    #[error(transparent)]
    Model(#[from] kaito_model::Error),
    /// The weights are whole, but not those of the preset.
    #[error(
        "{} does not hold {preset}: {differences}{}", directory.display(),
        if like.is_empty() { String::new() } else { format!("; it looks like {like}") }
    )]
    OtherModel {
        /// The directory.
        directory: PathBuf,
        /// The preset.
        preset: &'static str,
        /// In which numbers they differ.
        differences: String,
        /// Presets of which these could be the weights.
        like: String,
    },
    /// An adapter for a model that nothing is known of.
    #[error("nothing is known of {model}, which the adapter is for: give the directory of that model's config.json")]
    UnknownModel {
        /// The model's name.
        model: String,
    },
    /// An image without an adapter.
    #[error("the image {digest} holds no adapter: there is no {missing}")]
    NoAdapterInImage {
        /// The image.
        digest: String,
        /// What should be there.
        missing: String,
    },
    /// A base of an adapter's image that can't copy the adapter.
    #[error(
        "the base {base} has no {missing}: an init container of a workspace starts them to copy the adapter. Name a base that has \
         them, like busybox, or --base scratch for the files alone"
    )]
    NoPrograms {
        /// The base's name.
        base: String,
        /// What is missing, with commas.
        missing: String,
    },
    /// A file that can't run on Linux.
    #[error(
        "{} is no executable for Linux ({reason}): run kaito on Linux, give --base with an image that has a server, or \
         pack --weights-only", path.display()
    )]
    NotAnExecutable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A library that the executable loads is not on this machine.
    #[error("{} needs the library {library}, which this machine does not have", executable.display())]
    NoLibrary {
        /// The executable.
        executable: PathBuf,
        /// The library.
        library: String,
    },
    /// An executable that can't stand alone.
    #[error(
        "{} loads {libraries}, so it can't run on --base scratch: leave --base out and they are packed with it, or build \
         kaito for a musl target", executable.display()
    )]
    NotStatic {
        /// The executable.
        executable: PathBuf,
        /// What it loads.
        libraries: String,
    },
    /// The executable is for other machines than the image.
    #[error(
        "this kaito runs on {found}, the image is for {platform}: give --base with an image for {platform} that has a \
         server, or pack --weights-only"
    )]
    OtherArchitecture {
        /// What the executable is for.
        found: String,
        /// What the image is for.
        platform: String,
    },
    /// An image that is not there for a platform.
    #[error("{what} is not there for {platform}, only for: {found}")]
    NoPlatform {
        /// The image.
        what: String,
        /// The platform.
        platform: String,
        /// The platforms that there are.
        found: String,
    },
    /// A configuration that does not belong to its manifest.
    #[error("{what} has {layers} layers, but its configuration speaks of {ids}")]
    LayerCount {
        /// The image.
        what: String,
        /// Layers in the configuration.
        ids: usize,
        /// Layers in the manifest.
        layers: usize,
    },
    /// A path that should be an OCI layout.
    #[error("{} is no OCI layout: {reason}", path.display())]
    NotALayout {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A part of a layout that is missing.
    #[error("{} has no {name}", path.display())]
    NotInLayout {
        /// The layout.
        path: PathBuf,
        /// The file in it.
        name: String,
    },
    /// No image of that name in a layout.
    #[error("{} holds no image {tag}, only: {names}", path.display())]
    NoSuchImage {
        /// The layout.
        path: PathBuf,
        /// What was asked for.
        tag: String,
        /// What there is.
        names: String,
    },
    /// Several images in a layout, and none was named.
    #[error("{} holds several images; add one of their tags as {}:TAG. There are: {names}", path.display(), path.display())]
    SeveralImages {
        /// The layout.
        path: PathBuf,
        /// Their tags.
        names: String,
    },
    /// A blob of a layout with a wrong length.
    #[error("blob {digest} in {} has {found} bytes instead of {expected}: the file is truncated or damaged", path.display())]
    BlobSize {
        /// The blob.
        digest: String,
        /// The layout.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The length that it should have.
        expected: u64,
    },
    /// An image without the label that says where its weights are.
    #[error("the image {digest} does not say where its weights are: it has no label io.kaito.weights")]
    NoWeightsLabel {
        /// The image.
        digest: String,
    },
    /// A blob that should be small is not.
    #[error("blob {digest} has {size} bytes; such blobs are read up to {limit} bytes")]
    BlobTooLarge {
        /// The blob.
        digest: String,
        /// Its size.
        size: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// A blob could not be read.
    #[error("cannot read blob {digest}: {source}")]
    ReadBlob {
        /// The blob.
        digest: String,
        /// What the system said.
        source: io::Error,
    },
    /// A blob's bytes are not those that its descriptor promises.
    #[error("blob {digest} is damaged: its {size} bytes have the digest {found}")]
    BlobDiffers {
        /// What it should be.
        digest: String,
        /// What it is.
        found: String,
        /// Its size.
        size: u64,
    },
    /// JSON that is malformed, or not what should be there.
    #[error("{what} is malformed: {source}")]
    Json {
        /// What it is.
        what: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An own document could not be written as JSON.
    #[error("cannot write JSON: {0}")]
    Serialize(serde_json::Error),
    /// An own document lacks a field.
    #[error("cannot describe the image: {0}")]
    Describe(#[from] OciSpecError),
    /// The job was cancelled.
    #[error("interrupted; nothing was left behind")]
    Interrupted,
}

/// `12.6 GiB`.
fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}
