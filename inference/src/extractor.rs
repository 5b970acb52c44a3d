//! Feature extractors: ONNX image encoders that turn images into feature vectors before anything else sees them.

use std::borrow::Cow;
use std::sync::Arc;

use datasets::{Data, Dataset, Modality};
use weights::manifest::{ExtractorSpec, ResizeRule};

use crate::contract::{Slot, batch_view, check};
use crate::error::{Error, Result, check_finite};
use crate::pool::{SessionPool, Use};
use crate::runtime::Runtime;

/// Images in one run of the graph.
const BATCH: usize = 64;
/// Longest feature vector.
const MAX_DIM: usize = 1 << 16;
/// Largest image that a graph takes: values of one.
const MAX_VALUES: usize = 3 << 22;

/// A loaded extractor. All methods take `&self` and may be called from many threads.
#[derive(Debug)]
pub struct Extractor {
    spec: ExtractorSpec,
    pool: Arc<SessionPool>,
}

impl Extractor {
    /// Loads the graph of a specification whose `dim` is known, and runs it once.
    ///
    /// # Errors
    /// [`Error::Extractor`] says what of the graph does not fit.
    pub fn load(runtime: &Runtime, spec: &ExtractorSpec, onnx: &[u8]) -> Result<Self> {
        let extractor = Self::probe(runtime, spec, onnx)?;
        match extractor.spec.dim == spec.dim {
            true => Ok(extractor),
            false => Err(refused(spec, &format!("it gives {} features, not {}", extractor.spec.dim, spec.dim))),
        }
    }

    /// Loads the graph of a specification and finds `dim` by running it once on two images, one of them grey and one
    /// with a gradient; what `spec.dim` says is not looked at.
    ///
    /// # Errors
    /// [`Error::Extractor`] when the specification makes no sense, ONNX Runtime refuses the graph, its input is not
    /// f32 `[batch, channels, height, width]` of a free batch, or its output is not `batch` rows of finite numbers.
    pub fn probe(runtime: &Runtime, spec: &ExtractorSpec, onnx: &[u8]) -> Result<Self> {
        check_spec(spec)?;
        let graph = |error: Error| match error {
            Error::Bundle(reason) => refused(spec, &reason),
            Error::Graph { reason, .. } => refused(spec, &reason),
            other => other,
        };
        let pool = runtime.pool(&format!("extractor {}", spec.name), onnx, Use::Once).map_err(graph)?;
        check(&pool, &[Slot::batch(&spec.input, &spec.shape)], &[]).map_err(graph)?;
        let mut extractor = Self { spec: spec.clone(), pool };
        let values: usize = spec.shape.iter().product();
        let mut images = vec![0.5; values];
        images.extend((0..values).map(|i| i as f32 / values as f32));
        extractor.spec.dim = 0;
        let (shape, features) = extractor.run(2, images).map_err(graph)?;
        let dim = features.len() / 2;
        if shape.first() != Some(&2) || dim == 0 || dim > MAX_DIM {
            let text = format!("its output {} has shape {shape:?} for 2 images", spec.output);
            return Err(refused(spec, &format!("{text}; it must be [2, features] with 1 to {MAX_DIM} features")));
        }
        check_finite("its features of two plain images", &features).map_err(|e| refused(spec, &e.to_string()))?;
        extractor.spec.dim = dim;
        Ok(extractor)
    }

    /// What it takes and gives.
    pub fn spec(&self) -> &ExtractorSpec {
        &self.spec
    }

    /// Features `[indices.len() × dim]` of these examples of a dataset of images.
    ///
    /// # Errors
    /// [`Error::ModalityMismatch`] for features, [`Error::Graph`], [`Error::NonFinite`].
    pub fn features(&self, dataset: &Dataset, indices: &[usize]) -> Result<Vec<f32>> {
        if dataset.modality() != Modality::Image {
            let (found, expected) = (dataset.modality().to_string(), Modality::Image.to_string());
            return Err(Error::ModalityMismatch { found, expected });
        }
        let mut features = Vec::with_capacity(indices.len() * self.spec.dim);
        for batch in indices.chunks(BATCH) {
            let (_, values) = self.run(batch.len(), self.prepare(dataset.take(batch))?)?;
            check_finite("the extracted features", &values)?;
            features.extend(values);
        }
        Ok(features)
    }

    /// A dataset of features `[dim]` with the same name, classes and labels.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn extract(&self, dataset: &Dataset) -> Result<Dataset> {
        let all: Vec<usize> = (0..dataset.len()).collect();
        let features = Data::F32(self.features(dataset, &all)?);
        let names = dataset.class_names.clone();
        Ok(Dataset::new(dataset.name.clone(), vec![self.spec.dim], names, features, dataset.labels.clone())?)
    }

    /// A dataset as the networks behind the extractor take it: features as they are, images extracted.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn as_features<'d>(&self, dataset: &'d Dataset) -> Result<Cow<'d, Dataset>> {
        match dataset.shape == [self.spec.dim] {
            true => Ok(Cow::Borrowed(dataset)),
            false => self.extract(dataset).map(Cow::Owned),
        }
    }

    /// Channels, size and normalisation of the graph's input, `[n × c × h × w]`.
    fn prepare(&self, images: Dataset) -> Result<Vec<f32>> {
        let [channels, height, width] = self.spec.shape;
        let mut images = images.with_channels(channels)?;
        if self.spec.resize == ResizeRule::Crop {
            images = images.center_crop(height, width)?;
        }
        if images.shape[1..] != [height, width] {
            images = images.resize(height, width)?;
        }
        let all: Vec<usize> = (0..images.len()).collect();
        let mut values = images.gather(&all);
        for (at, plane) in values.chunks_exact_mut(height * width).enumerate() {
            let (mean, std) = (self.spec.mean[at % channels], self.spec.std[at % channels]);
            plane.iter_mut().for_each(|value| *value = (*value - mean) / std);
        }
        Ok(values)
    }

    /// Runs the graph on `n` prepared images; the length is checked when `dim` is known.
    fn run(&self, n: usize, images: Vec<f32>) -> Result<(Vec<i64>, Vec<f32>)> {
        let input = batch_view(&self.pool, n, &self.spec.shape, &images)?;
        let mut lease = self.pool.lease()?;
        let outputs = lease.run(vec![(self.spec.input.as_str(), input.into())])?;
        let name = &self.spec.output;
        let value = outputs.get(name).ok_or_else(|| {
            let known: Vec<&str> = outputs.keys().collect();
            self.pool.failed(format!("it has no output {name}; there are: {}", known.join(", ")))
        })?;
        let (shape, data) = value.try_extract_tensor::<f32>().map_err(|e| self.pool.failed(e))?;
        if self.spec.dim > 0 && data.len() != n * self.spec.dim {
            return Err(self.pool.failed(format!("its output {name} has shape {shape} for {n} images")));
        }
        Ok((shape.to_vec(), data.to_vec()))
    }
}

fn check_spec(spec: &ExtractorSpec) -> Result<()> {
    let [channels, height, width] = spec.shape;
    let sides = [height, width].iter().all(|side| (1..=4096).contains(side));
    if !matches!(channels, 1 | 3) || !sides || spec.shape.iter().product::<usize>() > MAX_VALUES {
        return Err(refused(spec, "its shape must be [1 or 3, height, width] with sides of 1 to 2048 pixels or so"));
    }
    if spec.mean.len() != channels || spec.std.len() != channels {
        return Err(refused(spec, &format!("mean and std need {channels} values each, one a channel")));
    }
    if spec.mean.iter().chain(&spec.std).any(|v| !v.is_finite()) || spec.std.iter().any(|v| *v < 1e-6) {
        return Err(refused(spec, "mean and std must be finite, and std above 0"));
    }
    match spec.input.is_empty() || spec.output.is_empty() {
        true => Err(refused(spec, "input and output need names")),
        false => Ok(()),
    }
}

fn refused(spec: &ExtractorSpec, reason: &str) -> Error {
    Error::Extractor { name: spec.name.clone(), reason: reason.to_owned() }
}
