//! Backbones: feature extractors made from the sources' own training images, and exported as the ONNX image encoders
//! that registered extractors are. Neither validation nor test images nor those of left-out sources are looked at.

mod conv;
mod pca;

use rand::seq::SliceRandom;
use weights::manifest::{ExtractorSpec, ResizeRule};

use crate::config::{BACKBONE, BackboneConfig, Config, Role};
use crate::data::{Part, Source, Sources};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::{random, snapshots};

/// Most training images that a backbone looks at.
const IMAGES: usize = 20_000;

/// A feature extractor with its graph.
#[derive(Debug, Clone)]
pub struct Backbone {
    /// What it takes and gives.
    pub spec: ExtractorSpec,
    /// Its ONNX graph.
    pub onnx: Vec<u8>,
}

/// Makes the backbone of a configuration from sources of images.
///
/// # Errors
/// [`Error::Config`] when the configuration has none, the sources are no images, or have too few;
/// [`Error::Diverged`], [`Error::Interrupted`].
pub fn fit(config: &Config, sources: &Sources, progress: &Progress) -> Result<Backbone> {
    let (settings, shape) = given(config, sources)?;
    let from = learned_from(sources);
    let steps = if let BackboneConfig::Conv { steps, .. } = settings { *steps } else { 1 };
    let stage = progress.stage("backbone", steps, 0);
    let onnx = match settings {
        BackboneConfig::Pca { dim } => {
            let onnx = pca::fit(&images(config, &from), shape, *dim)?;
            stage.advance(1)?;
            onnx
        }
        BackboneConfig::Conv { channels, dim, steps, batch, lr, shift } => {
            let (channels, dim) = (channels.clone(), *dim);
            let settings = conv::Settings { channels, dim, steps: *steps, batch: *batch, lr: *lr, shift: *shift };
            conv::fit(config, &from, shape, &settings, &stage)?
        }
    };
    stage.finish();
    of(config, sources, onnx)
}

/// The backbone of a configuration whose graph was made before.
///
/// # Errors
/// [`Error::Config`] when the configuration has none, or the sources are no images.
pub fn of(config: &Config, sources: &Sources, onnx: Vec<u8>) -> Result<Backbone> {
    let (settings, shape) = given(config, sources)?;
    let (BackboneConfig::Pca { dim } | BackboneConfig::Conv { dim, .. }) = settings;
    let spec = ExtractorSpec {
        name: BACKBONE.into(),
        input: INPUT.into(),
        output: OUTPUT.into(),
        shape,
        resize: ResizeRule::Stretch,
        mean: vec![0.0; shape[0]],
        std: vec![1.0; shape[0]],
        dim: *dim,
    };
    Ok(Backbone { spec, onnx })
}

/// The settings, and the shape of the images.
fn given<'a>(config: &'a Config, sources: &Sources) -> Result<(&'a BackboneConfig, [usize; 3])> {
    let Some(settings) = &config.data.backbone else {
        return Err(Error::Config("the configuration has no data.backbone".into()));
    };
    let shape = sources.input_shape();
    match <[usize; 3]>::try_from(shape) {
        Ok(shape) => Ok((settings, shape)),
        Err(_) => Err(Error::Config(format!("a backbone needs images, and the examples have shape {shape:?}"))),
    }
}

/// The sources that it learns from.
fn learned_from(sources: &Sources) -> Vec<&Source> {
    let own = if sources.of(Role::Backbone).next().is_some() { Role::Backbone } else { Role::Zoo };
    sources.of(own).collect()
}

/// Digest of all that the backbone of a configuration depends on, this program among it.
///
/// # Errors
/// When the configuration cannot be written down.
pub fn key(config: &Config, sources: &Sources) -> Result<String> {
    let data: Vec<String> = learned_from(sources).iter().map(|source| source.dataset(Part::Train).digest()).collect();
    snapshots::identity(&(&config.data.backbone, config.seed, data))
}

const INPUT: &str = "images";
const OUTPUT: &str = "features";

/// Training images of sources as rows, evenly of each source where there are more than enough.
fn images(config: &Config, from: &[&Source]) -> Vec<f32> {
    let each = IMAGES / from.len().max(1);
    let mut rows = Vec::new();
    for source in from {
        let data = source.dataset(Part::Train);
        let mut indices: Vec<usize> = (0..data.len()).collect();
        if indices.len() > each {
            indices.shuffle(&mut random::stream(config.seed, &format!("backbone {}", source.name)));
            indices.truncate(each);
        }
        rows.extend(data.gather(&indices));
    }
    rows
}
