//! Layers of one network learned as chunks, and generated: for networks of other depths (paper 4.1.4), or for the network
//! itself (3.5, A.4). A chunk is conditioned on the type of its layer, on where in the network that layer is, and on which
//! part of the layer it is.
//!
//! The vectors of one network are few. What is learned is how the layers of a type differ along the depth, not a
//! distribution over trained networks.

mod chunks;
mod saved;

use std::ops::Range;

use candle_core::{Device, Tensor};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use weights::Layout;

pub use chunks::{Chunk, Moments, Values, chunks, kind, nearest_copy, uniform};

use super::rows::{Conditions, Rows, RowsConfig, Source};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::random;

/// Most values of a chunk.
const MOST_CHUNK: usize = 1 << 22;

/// How chunks are learned. In a file all keys are at one level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayersConfig {
    /// Values of a chunk.
    pub chunk: usize,
    /// Whether chunks are cut from all layers as one vector; else each layer is cut for itself.
    pub uniform: bool,
    /// How they are learned as rows.
    #[serde(flatten)]
    pub rows: RowsConfig,
}

impl Default for LayersConfig {
    fn default() -> Self {
        // First an autoencoder, whose latents heavy tails need.
        Self { chunk: 4096, uniform: false, rows: RowsConfig { kl_from: 0.5, ..RowsConfig::default() } }
    }
}

impl<'de> Deserialize<'de> for LayersConfig {
    // A flattened struct would let unknown keys pass.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        fn take<T: DeserializeOwned, E: serde::de::Error>(
            value: Option<Value>,
            default: T,
        ) -> std::result::Result<T, E> {
            value.map_or(Ok(default), |value| serde_json::from_value(value).map_err(E::custom))
        }
        let mut keys = serde_json::Map::deserialize(deserializer)?;
        let default = Self::default();
        let (chunk, uniform) =
            (take(keys.remove("chunk"), default.chunk)?, take(keys.remove("uniform"), default.uniform)?);
        // Its own default is another.
        keys.entry("kl_from").or_insert_with(|| default.rows.kl_from.into());
        let rows = RowsConfig::deserialize(Value::Object(keys))
            .map_err(|e| D::Error::custom(format!("{e}; beside those there are `chunk` and `uniform`")))?;
        Ok(Self { chunk, uniform, rows })
    }
}

impl LayersConfig {
    /// The chunks of a network.
    pub fn chunks(&self, layout: &Layout) -> Vec<Chunk> {
        if self.uniform { uniform(layout, self.chunk) } else { chunks(layout, self.chunk) }
    }

    /// # Errors
    /// [`Error::Config`] names what makes no sense.
    pub fn check(&self) -> Result<()> {
        if !(1..=MOST_CHUNK).contains(&self.chunk) {
            return Err(Error::Config(format!("layers: chunk is {}; it must be from 1 to {MOST_CHUNK}", self.chunk)));
        }
        self.rows.check().map_err(|e| match e {
            Error::Config(text) => Error::Config(format!("layers: {text}")),
            other => other,
        })
    }
}

/// Values of the condition that say where a layer is.
const OCTAVES: usize = 4;
/// The most parts of a layer that have a value of the condition each.
const PARTS: usize = 64;
/// Chunks that are worked on at a time, where they are worked on in order.
const ROWS: usize = 256;

/// A place from 0 to 1 as itself and `octaves` sines and cosines.
fn waves(place: f64, octaves: usize) -> Vec<f32> {
    let waves = (0..octaves).flat_map(|i| {
        let angle = std::f64::consts::PI * place * 2f64.powi(i as i32);
        [angle.sin() as f32, angle.cos() as f32]
    });
    std::iter::once(place as f32).chain(waves).collect()
}

/// Which part of how many: one value each, or waves where they are many.
fn part_features(part: usize, parts: usize) -> Vec<f32> {
    if parts <= PARTS {
        return (0..parts).map(|i| f32::from(u8::from(i == part))).collect();
    }
    waves(part as f64 / (parts - 1) as f64, (parts as f64).log2().ceil() as usize)
}

/// What was learned from one network.
#[derive(Debug)]
pub struct Layers {
    config: LayersConfig,
    types: Types,
    rows: Rows,
}

/// Types of layers, and how their values are standardised.
#[derive(Debug)]
struct Types {
    chunk: usize,
    kinds: Vec<String>,
    parts: usize,
    moments: Vec<Moments>,
}

/// Chunks of a network's values as rows.
struct Chunked<'a> {
    types: &'a Types,
    all: &'a [Chunk],
    values: &'a dyn Values,
}

impl Source for Chunked<'_> {
    fn rows(&self, picked: &[u32]) -> Result<Tensor> {
        let (n, length) = (picked.len(), self.types.chunk);
        let mut rows = vec![0f32; n * length];
        for (row, &number) in rows.chunks_exact_mut(length).zip(picked) {
            let chunk = &self.all[number as usize];
            let Moments { mean, std, .. } = self.types.moments[self.types.kind(chunk)?];
            let own = &mut row[..chunk.len];
            self.values.read(chunk.offset..chunk.offset + chunk.len, own)?;
            own.iter_mut().for_each(|v| *v = (*v - mean) / std);
        }
        Ok(Tensor::from_vec(rows, (n, length), &Device::Cpu)?)
    }
}

impl Types {
    fn kind(&self, chunk: &Chunk) -> Result<usize> {
        let unknown = || {
            let known = self.kinds.join(", ");
            Error::Config(format!("no layer of the type {} was learned; there are {known}", chunk.kind))
        };
        self.kinds.iter().position(|kind| *kind == chunk.kind).ok_or_else(unknown)
    }

    /// One-hot types `[n, kinds]`.
    fn one_hot(&self, all: &[Chunk]) -> Result<Tensor> {
        let (n, kinds) = (all.len(), self.kinds.len());
        let mut index = vec![0f32; n * kinds];
        for (row, chunk) in index.chunks_exact_mut(kinds).zip(all) {
            row[self.kind(chunk)?] = 1.0;
        }
        Ok(Tensor::from_vec(index, (n, kinds), &Device::Cpu)?)
    }

    /// Values of a condition.
    fn condition_dim(&self) -> usize {
        self.kinds.len() + part_features(0, self.parts).len() + waves(0.0, OCTAVES).len()
    }

    fn conditions(&self, all: &[Chunk]) -> Result<Conditions> {
        let kinds = self.one_hot(all)?;
        let mut places = Vec::with_capacity(all.len() * self.condition_dim());
        for chunk in all {
            if chunk.part >= self.parts {
                return Err(Error::Config(format!("a layer of the type {} has too many parts", chunk.kind)));
            }
            places.extend(part_features(chunk.part, self.parts));
            places.extend(waves(chunk.position, OCTAVES));
        }
        let places = Tensor::from_vec(places, (all.len(), self.condition_dim() - self.kinds.len()), &Device::Cpu)?;
        Ok(Conditions { values: Tensor::cat(&[&kinds, &places], 1)?, kinds: Some(kinds) })
    }
}

impl Layers {
    fn new(config: &LayersConfig, kinds: Vec<String>, parts: usize, moments: Vec<Moments>) -> Self {
        let types = Types { chunk: config.chunk, kinds, parts, moments };
        let rows = Rows::new(&config.rows, config.chunk, types.kinds.len(), types.condition_dim());
        Self { config: config.clone(), types, rows }
    }

    /// Learns the chunks of a network of `layout` (`[d]` values).
    ///
    /// # Errors
    /// [`Error::Config`] when there is no chunk, [`Error::Diverged`], [`Error::Interrupted`], those of reading.
    pub fn learn(config: &LayersConfig, layout: &Layout, values: &dyn Values, progress: &Progress) -> Result<Self> {
        config.check()?;
        let all = config.chunks(layout);
        if all.is_empty() {
            return Err(Error::Config("layers: the network has no parameters to learn from".into()));
        }
        let mut kinds: Vec<String> = all.iter().map(|c| c.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        let parts = all.iter().map(|c| c.part + 1).max().unwrap_or(1);
        let moments = kinds.iter().map(|kind| Moments::of(&all, kind, values)).collect::<Result<_>>()?;
        let mut layers = Self::new(config, kinds, parts, moments);
        let known = layers.types.conditions(&all)?;
        let source = Chunked { types: &layers.types, all: &all, values };
        layers.rows.learn(&source, &known, ("layers: vae", "layers: denoiser"), progress)?;
        Ok(layers)
    }

    /// How it was learned.
    pub fn config(&self) -> &LayersConfig {
        &self.config
    }

    /// Types of layers, each with the moments of its values.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &Moments)> {
        self.types.kinds.iter().map(String::as_str).zip(&self.types.moments)
    }

    /// The network itself through the VAE and back; buffers stay.
    ///
    /// # Errors
    /// When it has a layer of a type that was not learned.
    pub fn reconstruct(&self, layout: &Layout, theta: &[f32]) -> Result<Vec<f32>> {
        let all = self.config.chunks(layout);
        let z = self.encode(&all, &theta)?;
        self.in_place(&all, &z, theta.to_vec())
    }

    /// A network of another layout whose layers are of the types that were learned; its buffers are those of
    /// `start`, to be measured anew.
    ///
    /// # Errors
    /// When it has a layer of a type that was not learned.
    pub fn generate(&self, layout: &Layout, start: &[f32], seed: u64) -> Result<Vec<f32>> {
        let all = self.config.chunks(layout);
        let z = self.sample(&all, 0..all.len(), seed)?;
        self.in_place(&all, &z, start.to_vec())
    }

    fn in_place(&self, all: &[Chunk], z: &Tensor, mut theta: Vec<f32>) -> Result<Vec<f32>> {
        for (i, some) in all.chunks(ROWS).enumerate() {
            let rows = self.decode(some, &z.narrow(0, i * ROWS, some.len())?)?;
            for (row, chunk) in rows.chunks_exact(self.config.chunk).zip(some) {
                theta[chunk.offset..chunk.offset + chunk.len].copy_from_slice(&row[..chunk.len]);
            }
        }
        weights::error::check_finite("the generated weights", &theta)?;
        Ok(theta)
    }

    /// Latents `[n, latent]` of chunks with these values.
    ///
    /// # Errors
    /// When a chunk is of a type that was not learned, or values cannot be read.
    pub fn encode(&self, all: &[Chunk], values: &dyn Values) -> Result<Tensor> {
        let known = self.types.conditions(all)?;
        self.rows.encode(&Chunked { types: &self.types, all, values }, &known)
    }

    /// Latents `[n, latent]` of the chunks `range` of `all`, sampled by DDIM: from one seed a chunk has the same, whichever
    /// range it is sampled in.
    ///
    /// # Errors
    /// When a chunk is of a type that was not learned.
    pub fn sample(&self, all: &[Chunk], range: Range<usize>, seed: u64) -> Result<Tensor> {
        let known = self.types.conditions(&all[range.clone()])?;
        let mut rng = random::stream(seed, "layers");
        let noise = random::normal(&[all.len(), self.config.rows.latent], &Device::Cpu, &mut rng)?;
        self.rows.sample(&noise.narrow(0, range.start, range.len())?, &known.values)
    }

    /// Values of some chunks from their latents `[n, latent]`: `n` rows of the chunk's length, of which a shorter chunk
    /// has the first.
    ///
    /// # Errors
    /// When a chunk is of a type that was not learned.
    pub fn decode(&self, some: &[Chunk], z: &Tensor) -> Result<Vec<f32>> {
        let kinds = self.types.one_hot(some)?;
        let mut rows = self.rows.decode(z, Some(&kinds))?.flatten_all()?.to_vec1::<f32>()?;
        for (row, chunk) in rows.chunks_exact_mut(self.config.chunk).zip(some) {
            let Moments { mean, std, .. } = self.types.moments[self.types.kind(chunk)?];
            row.iter_mut().for_each(|v| *v = *v * std + mean);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
