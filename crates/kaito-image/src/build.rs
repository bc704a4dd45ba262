//! Turns a checked model, or an adapter, into an image: decides on its layers and its labels.

use std::{collections::HashMap, path::PathBuf};

use oci_spec::image::{
    ANNOTATION_BASE_IMAGE_DIGEST, ANNOTATION_BASE_IMAGE_NAME, ANNOTATION_DESCRIPTION, ANNOTATION_TITLE,
    ANNOTATION_VERSION, Descriptor, Digest, ImageConfiguration, MediaType,
};

use crate::{
    Adapter, Blob, Error, Executable, Image, Item, Job, Model, ModelFile, Platform,
    layer::{Access, Layer, LayerBuilder},
    manifest::{self, BaseImage, Contents, Hashed, MAX_CONFIG, Runs, labels},
};

/// What is below the weights.
#[derive(Debug)]
pub enum Base {
    /// The executable, the libraries that it loads, certificates and a user.
    Own(Executable),
    /// The executable alone.
    Scratch(Executable),
    /// An image, with the executable on top unless it has a server already.
    Image {
        /// Its name, for the label that records it.
        name: String,
        /// The image itself.
        image: Box<Image>,
        /// What to add.
        executable: Option<Executable>,
    },
    /// Nothing: the files alone, to be mounted.
    WeightsOnly,
}

/// An image whose layers are known, but not yet their digests.
#[derive(Debug)]
pub struct Plan {
    contents: Contents,
    layers: Vec<Planned>,
}

#[derive(Debug)]
pub(crate) struct Planned {
    /// What is in it: a file's name, or what it is.
    pub title: String,
    pub layer: Layer,
    created_by: String,
}

impl Plan {
    /// Decides on the layers of `model` on `base`.
    ///
    /// # Errors
    /// When the base does not suit the platform or the executable.
    pub fn new(model: &Model, base: Base, platform: &Platform) -> Result<Self, Error> {
        let weights_only = matches!(base, Base::WeightsOnly);
        let (mut contents, mut layers) = Self::on(base, labels_of(model), platform)?;
        layers.push(companions(&model.companions)?);
        for file in &model.weights {
            layers.push(weights(file)?);
        }
        contents.runs = (!weights_only).then(|| Runs { weights: format!("/{WEIGHTS}"), model: model.name.clone() });
        Ok(Self { contents, layers })
    }

    /// Decides on the layers of `adapter` on `base`. The image runs what the base runs.
    ///
    /// # Errors
    /// When the base does not suit the platform.
    pub fn of_adapter(adapter: &Adapter, base: Base, platform: &Platform) -> Result<Self, Error> {
        let (contents, mut layers) = Self::on(base, labels_of_adapter(adapter), platform)?;
        let title = "configuration of the adapter";
        layers.push(folder(ADAPTER, &adapter.companions, title)?);
        layers.push(single(ADAPTER, &adapter.weights)?);
        Ok(Self { contents, layers })
    }

    /// What an image with these labels is on `base`, and the layers of the server in it.
    fn on(
        base: Base,
        mut labels: HashMap<String, String>,
        platform: &Platform,
    ) -> Result<(Contents, Vec<Planned>), Error> {
        let mut layers = Vec::new();
        let mut below = None;
        match base {
            Base::WeightsOnly => {}
            Base::Own(executable) => {
                suits(&executable, platform)?;
                layers.push(server_layer(executable.with_base()?, "the server, its libraries, certificates, a user"));
            }
            Base::Scratch(executable) => {
                suits(&executable, platform)?;
                layers.push(server_layer(executable.on_scratch()?, "the server"));
            }
            Base::Image { name, image, executable } => {
                if let Some(executable) = executable {
                    suits(&executable, platform)?;
                    layers.push(server_layer(executable.alone()?, "the server"));
                }
                labels.insert(ANNOTATION_BASE_IMAGE_DIGEST.to_owned(), image.digest().to_string());
                labels.insert(ANNOTATION_BASE_IMAGE_NAME.to_owned(), name.clone());
                let configuration = configuration_of(&name, &image, platform)?;
                below = Some(BaseImage { configuration, image: *image });
            }
        }
        if !layers.is_empty() {
            labels.insert(labels::SERVER.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        }
        Ok((Contents { labels, base: below, runs: None, platform: Some(platform.clone()) }, layers))
    }

    /// Bytes of all layers, the base's included.
    pub fn size(&self) -> u64 {
        let below = self.contents.base.as_ref().map_or(0, |base| base.image.layers.iter().map(Blob::size).sum());
        below + self.layers.iter().map(|planned| planned.layer.size()).sum::<u64>()
    }

    /// The platform that the image is for.
    pub fn platform(&self) -> Platform {
        self.contents.platform.clone().unwrap_or_else(Platform::of_this_machine)
    }

    /// Reads every file once to learn the digests. Nothing is written: the image reads its files again when it is sent.
    ///
    /// # Errors
    /// When a file can't be read, or the job is cancelled.
    pub fn hash(&self, job: Job<'_>) -> Result<Image, Error> {
        let digests = job.each("hashing", &self.items(), |item| {
            let planned = self.planned(item)?;
            let reader = crate::BlobSource::open_at(&planned.layer, 0).map_err(|source| planned.unreadable(source))?;
            Ok(job.hash(item, reader, |source| planned.unreadable(source), |_| Ok(()))?.0)
        })?;
        self.image(&digests)
    }

    pub(crate) fn planned(&self, item: usize) -> Result<&Planned, Error> {
        self.layers.get(item).ok_or(Error::Interrupted)
    }

    /// Layers of the base, whose digests are known.
    pub(crate) fn below(&self) -> &[Blob] {
        self.contents.base.as_ref().map_or(&[], |base| &base.image.layers)
    }

    pub(crate) fn items(&self) -> Vec<Item> {
        self.layers.iter().map(|planned| Item { name: planned.title.clone(), size: planned.layer.size() }).collect()
    }

    /// The image, when the digests of its layers are known.
    pub(crate) fn image(&self, digests: &[Digest]) -> Result<Image, Error> {
        let hashed: Vec<Hashed> =
            self.layers.iter().zip(digests).map(|(planned, digest)| planned.hashed(digest)).collect();
        let (config, manifest) = self.contents.assemble(&hashed)?;
        let own = self.layers.iter().zip(&hashed);
        let own = own.map(|(planned, hashed)| Blob::new(hashed.descriptor.clone(), planned.layer.clone()));
        Ok(Image { manifest, config, layers: self.below().iter().cloned().chain(own).collect() })
    }
}

impl Planned {
    pub(crate) fn unreadable(&self, source: std::io::Error) -> Error {
        Error::ReadLayer { layer: self.title.clone(), source }
    }

    fn hashed(&self, digest: &Digest) -> Hashed {
        let mut descriptor = Descriptor::new(MediaType::ImageLayer, self.layer.size(), digest.clone());
        let annotations = HashMap::from([(ANNOTATION_TITLE.to_owned(), self.title.clone())]);
        descriptor.set_annotations(Some(annotations));
        Hashed { descriptor, created_by: self.created_by.clone() }
    }
}

/// Where the weights lie in every image, whatever the model: with a server or without, their layers are the same.
pub const WEIGHTS: &str = "weights";

/// Where an adapter lies in an image of one: the init containers of KAITO's pods copy this folder.
pub const ADAPTER: &str = "data";

/// What is known of the layer that holds the small files beside the weights.
pub(crate) const COMPANIONS_TITLE: &str = "configuration and tokenizer";

fn server_layer(layer: Layer, what: &str) -> Planned {
    Planned { title: "kaito".to_owned(), layer, created_by: format!("kaito image build: {what}") }
}

/// The small files in one layer, with the directory that all weights lie in.
pub(crate) fn companions(files: &[ModelFile]) -> Result<Planned, Error> {
    folder(WEIGHTS, files, COMPANIONS_TITLE)
}

/// One file of weights in a layer of its own.
pub(crate) fn weights(file: &ModelFile) -> Result<Planned, Error> {
    single(WEIGHTS, file)
}

/// A directory with these files in one layer.
fn folder(directory: &str, files: &[ModelFile], title: &str) -> Result<Planned, Error> {
    let mut layer = LayerBuilder::default();
    layer.directory(directory, Access::EXECUTE)?;
    let mut inside = "";
    for file in files {
        // Files are in the order of their names, so those of a folder follow each other.
        let folder = file.name.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder != inside && !folder.is_empty() {
            layer.directory(&format!("{directory}/{folder}"), Access::EXECUTE)?;
        }
        inside = folder;
        layer.file(&format!("{directory}/{}", file.name), Access::READ, file.file.clone())?;
    }
    let created_by = format!("kaito image build: {title}");
    Ok(Planned { title: title.to_owned(), layer: layer.finish(), created_by })
}

/// One file of a directory in a layer of its own.
fn single(directory: &str, file: &ModelFile) -> Result<Planned, Error> {
    let mut layer = LayerBuilder::default();
    layer.file(&format!("{directory}/{}", file.name), Access::READ, file.file.clone())?;
    let created_by = format!("kaito image build: {}", file.name);
    Ok(Planned { title: file.name.clone(), layer: layer.finish(), created_by })
}

fn labels_of(model: &Model) -> HashMap<String, String> {
    [
        (ANNOTATION_TITLE, model.name.clone()),
        (ANNOTATION_DESCRIPTION, format!("{}, a language model, for Kaito", model.name)),
        (ANNOTATION_VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        (labels::PRESET, model.name.clone()),
        (labels::FAMILY, model.family.to_owned()),
        (labels::DTYPE, model.dtype.clone()),
        (labels::PARAMETERS, model.parameters.to_string()),
        (labels::WEIGHTS, format!("/{WEIGHTS}")),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn labels_of_adapter(adapter: &Adapter) -> HashMap<String, String> {
    [
        (ANNOTATION_TITLE, format!("an adapter of {}", adapter.model)),
        (ANNOTATION_DESCRIPTION, format!("An adapter (LoRA) of {}, for Kaito", adapter.model)),
        (ANNOTATION_VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        (labels::PRESET, adapter.model.clone()),
        (labels::FAMILY, adapter.family.to_owned()),
        (labels::ADAPTER, format!("/{ADAPTER}")),
        (labels::RANK, adapter.rank.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn suits(executable: &Executable, platform: &Platform) -> Result<(), Error> {
    if *executable.architecture() == platform.architecture {
        return Ok(());
    }
    Err(Error::OtherArchitecture { found: executable.architecture().to_string(), platform: platform.to_string() })
}

fn configuration_of(name: &str, image: &Image, platform: &Platform) -> Result<ImageConfiguration, Error> {
    let configuration: ImageConfiguration = manifest::read(&image.config, MAX_CONFIG)?;
    let found = Platform { architecture: configuration.architecture().clone(), os: configuration.os().clone() };
    if found != *platform {
        return Err(Error::NoPlatform {
            what: name.to_owned(),
            platform: platform.to_string(),
            found: found.to_string(),
        });
    }
    let (ids, layers) = (configuration.rootfs().diff_ids().len(), image.layers.len());
    if ids != layers {
        return Err(Error::LayerCount { what: name.to_owned(), ids, layers });
    }
    Ok(configuration)
}

/// Whether an image has a server already, so that a base needs none added.
///
/// # Errors
/// When its configuration can't be read.
pub fn has_server(image: &Image) -> Result<bool, Error> {
    let configuration: ImageConfiguration = manifest::read(&image.config, MAX_CONFIG)?;
    Ok(configuration.labels_of_config().is_some_and(|found| found.contains_key(labels::SERVER)))
}

/// Where an image is written, and how it is called there.
#[derive(Debug, Clone)]
pub struct Output {
    /// A directory or, with `.tar` at its end, a file.
    pub path: PathBuf,
    /// The tag in the layout's index.
    pub tag: Option<String>,
    /// The full name, `registry/repository:tag`.
    pub name: Option<String>,
}
