//! Layers of a language model learned as chunks and generated (paper 3.5, A.4): the generator sees which matrix a chunk is
//! of (its group and its block's place) and which part of it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;
use training::progress::Progress;
use training::stages::layers::{Chunk, Layers, LayersConfig, Values};
use weights::{Layout, ParamSpec};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::rewrite::{Fill, write_whole};

/// Values decoded at a time, about.
const DECODED: usize = 1 << 22;
const KEY: &str = "weightsmith.matrices";

/// A generator of some matrices of a model.
#[derive(Debug)]
pub struct Generator {
    layers: Layers,
    layout: Layout,
    chunks: Vec<Chunk>,
}

/// Some tensors of a model as one vector.
struct Selected<'a> {
    model: &'a Model,
    layout: &'a Layout,
}

impl Values for Selected<'_> {
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> training::Result<()> {
        for param in touched(self.layout, &range) {
            let own = param.range();
            let (start, end) = (range.start.max(own.start), range.end.min(own.end));
            let part = &mut out[start - range.start..end - range.start];
            let read = self.model.read(&param.name, start - own.start..end - own.start, part);
            read.map_err(|e| training::Error::Config(e.to_string()))?;
        }
        Ok(())
    }
}

/// The parameters that a range of the flat vector has values of.
fn touched<'a>(layout: &'a Layout, range: &Range<usize>) -> impl Iterator<Item = &'a ParamSpec> {
    let (start, end) = (range.start, range.end);
    let first = layout.params.partition_point(|p| p.range().end <= start);
    layout.params[first..].iter().take_while(move |p| p.offset < end)
}

impl Generator {
    /// Learns the matrices `names` of `model`.
    ///
    /// # Errors
    /// [`Error::Model`] when there is no such matrix or none is named; those of training.
    pub fn learn(model: &Model, names: &[String], config: &LayersConfig, progress: &Progress) -> Result<Self> {
        let matrices = model.matrices();
        let mut params = Vec::new();
        for name in names {
            let known = matrices.iter().find(|m| m.name == *name);
            let matrix = known.ok_or_else(|| Error::model(model.dir(), format!("{name} is no matrix of a block")))?;
            params.push((name.clone(), vec![matrix.rows, matrix.cols]));
        }
        let layout = Layout::new(params);
        let layers = Layers::learn(config, &layout, &Selected { model, layout: &layout }, progress)?;
        Ok(Self::new(layers, layout))
    }

    fn new(layers: Layers, layout: Layout) -> Self {
        let chunks = layers.config().chunks(&layout);
        Self { layers, layout, chunks }
    }

    /// The matrices that it generates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.layout.params.iter().map(|p| p.name.as_str())
    }

    /// Parameters that it generates.
    pub fn parameters(&self) -> usize {
        self.layout.parameters()
    }

    /// What was learned.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Refuses a model that lacks a matrix, or has one of another shape.
    ///
    /// # Errors
    /// [`Error::Model`] names the first.
    pub fn fits(&self, model: &Model) -> Result<()> {
        for param in &self.layout.params {
            let found = &model.entry(&param.name)?.spec.shape;
            if *found != param.shape {
                let text = format!("{} is {found:?}; the generator makes {:?}", param.name, param.shape);
                return Err(Error::model(model.dir(), text));
            }
        }
        Ok(())
    }

    /// Writes it as one file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let names: Vec<(&str, &[usize])> =
            self.layout.params.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect();
        let names = serde_json::to_string(&names).map_err(|e| Error::Text(e.to_string()))?;
        let bytes = self.layers.to_bytes(&[(KEY, names)])?;
        write_whole(path, &bytes)
    }

    /// Reads what [`Generator::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Model`] when it is no such file.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let invalid = |reason: String| Error::model(path, format!("it is no generator of layers: {reason}"));
        let layers = Layers::from_bytes(&bytes).map_err(|e| invalid(e.to_string()))?;
        let metadata = weights::tensors::metadata(&bytes)?;
        let names = metadata.get(KEY).ok_or_else(|| invalid(format!("its metadata has no {KEY}")))?;
        let names: Vec<(String, Vec<usize>)> = serde_json::from_str(names).map_err(|e| invalid(e.to_string()))?;
        Ok(Self::new(layers, Layout::new(names)))
    }

    /// A sample of all matrices, to be written with [`crate::rewrite::rewrite`].
    ///
    /// # Errors
    /// Those of tensors.
    pub fn sample(&self, seed: u64) -> Result<Sample<'_>> {
        let latents = self.layers.sample(&self.chunks, 0..self.chunks.len(), seed)?;
        Ok(Sample { generator: self, latents, first: 0 })
    }

    /// A sample of one matrix: what [`Generator::sample`] gives for it from the same seed, without the others.
    ///
    /// # Errors
    /// [`Error::Text`] when the generator does not make it; those of tensors.
    pub fn sample_matrix(&self, seed: u64, name: &str) -> Result<Vec<f32>> {
        let param = self.layout.get(name).ok_or_else(|| unknown(name))?.range();
        let range = overlapping(&self.chunks, &param);
        let latents = self.layers.sample(&self.chunks, range.clone(), seed)?;
        Sample { generator: self, latents, first: range.start }.matrix(name)
    }

    /// The matrices as the autoencoder gives them back.
    ///
    /// # Errors
    /// Those of reading and of tensors.
    pub fn reconstruct(&self, model: &Model) -> Result<Sample<'_>> {
        self.fits(model)?;
        let latents = self.layers.encode(&self.chunks, &Selected { model, layout: &self.layout })?;
        Ok(Sample { generator: self, latents, first: 0 })
    }
}

fn unknown(name: &str) -> Error {
    Error::Text(format!("the generator makes no matrix {name}"))
}

/// The chunks that have values of a range of the flat vector.
fn overlapping(chunks: &[Chunk], range: &Range<usize>) -> Range<usize> {
    let first = chunks.partition_point(|c| c.offset + c.len <= range.start);
    first..chunks.partition_point(|c| c.offset < range.end)
}

/// Latents of all chunks, decoded where they are asked for.
#[derive(Debug)]
pub struct Sample<'a> {
    generator: &'a Generator,
    latents: Tensor,
    /// The chunk of the first latent.
    first: usize,
}

impl Sample<'_> {
    /// All values of a matrix.
    ///
    /// # Errors
    /// [`Error::Text`] when it is not generated.
    pub fn matrix(&mut self, name: &str) -> Result<Vec<f32>> {
        let n = self.generator.layout.get(name).map_or(0, ParamSpec::len);
        let mut values = vec![0.0; n];
        self.fill(name, 0..n, &mut values)?;
        weights::error::check_finite(name, &values)?;
        Ok(values)
    }
}

impl Fill for Sample<'_> {
    fn names(&self) -> BTreeSet<String> {
        self.generator.names().map(str::to_owned).collect()
    }

    fn fill(&mut self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Generator { layers, layout, chunks } = self.generator;
        let param = layout.get(name).ok_or_else(|| unknown(name))?;
        let wanted = param.offset + range.start..param.offset + range.end;
        let range = overlapping(chunks, &wanted);
        let some = &chunks[range.clone()];
        let z = self.latents.narrow(0, range.start - self.first, some.len()).map_err(training::Error::Tensor)?;
        let rows = layers.decode(some, &z)?;
        for (row, chunk) in rows.chunks_exact(layers.config().chunk).zip(some) {
            let (start, end) = (wanted.start.max(chunk.offset), wanted.end.min(chunk.offset + chunk.len));
            let values = &row[start - chunk.offset..end - chunk.offset];
            out[start - wanted.start..end - wanted.start].copy_from_slice(values);
        }
        Ok(())
    }

    fn step(&self) -> usize {
        let chunk = self.generator.layers.config().chunk;
        chunk * (DECODED / chunk).max(1)
    }
}
