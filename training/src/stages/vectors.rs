//! From checkpoints to standardised vectors: canonical form, cutting, standardisation, hold-out by lineage.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use weights::vectorise::{Piece, Vectorise};
use weights::{Layout, Standardisation, canonical};

use super::zoo::Zoo;
use crate::config::Config;
use crate::error::Result;
use crate::progress::Progress;
use crate::random;

/// The zoo as vectors.
#[derive(Debug, Clone)]
pub struct Vectors {
    /// How networks became rows.
    pub vectorise: Vectorise,
    /// Aligned, not standardised and not cut, one network after the other as in [`Zoo::theta`].
    pub aligned: Vec<f32>,
    /// Aligned, cut and standardised, `[rows × length]`: all rows of the first checkpoint, then of the next.
    pub x: Vec<f32>,
    /// The statistics of each kind of row, over the training checkpoints.
    pub standardisation: Standardisation,
    /// Checkpoints of the training runs.
    pub train: Vec<usize>,
    /// Checkpoints of the runs held out for validation.
    pub held_out: Vec<usize>,
    /// First row of each checkpoint, and after the last one's.
    rows: Vec<usize>,
    /// Architecture of each checkpoint.
    kinds: Vec<usize>,
    /// Number of parameters of each architecture.
    parameters: Vec<usize>,
}

/// The rows of some networks, to be made a batch.
#[derive(Debug, Default, Clone)]
pub struct Rows {
    /// Rows of [`Vectors::x`].
    pub rows: Vec<u32>,
    /// Which piece each is.
    pub pieces: Vec<u32>,
    /// The networks: architecture, and place of the first row in the batch.
    pub networks: Vec<(usize, u32)>,
}

impl Vectors {
    /// Rows of a checkpoint.
    pub fn rows_of(&self, checkpoint: usize) -> Range<usize> {
        self.rows[checkpoint]..self.rows[checkpoint + 1]
    }

    /// Number of checkpoints.
    pub fn checkpoints(&self) -> usize {
        self.kinds.len()
    }

    /// Which piece a row of a checkpoint is, by its place among the checkpoint's.
    pub fn pieces_of(&self, checkpoint: usize) -> Range<usize> {
        self.vectorise.pieces_of(self.kinds[checkpoint])
    }

    /// One row of each of these checkpoints, drawn at random, and which piece it is.
    pub fn draw(&self, checkpoints: &[u32], rng: &mut ChaCha8Rng) -> (Vec<u32>, Vec<u32>) {
        let one = |&checkpoint: &u32| {
            let (rows, pieces) = (self.rows_of(checkpoint as usize), self.pieces_of(checkpoint as usize));
            // Where there is no choice nothing is drawn.
            let place = if rows.len() > 1 { rng.random_range(0..rows.len()) } else { 0 };
            ((rows.start + place) as u32, (pieces.start + place) as u32)
        };
        checkpoints.iter().map(one).unzip()
    }

    /// All rows of these checkpoints.
    pub fn batch(&self, checkpoints: impl IntoIterator<Item = usize>) -> Rows {
        let mut batch = Rows::default();
        for checkpoint in checkpoints {
            batch.networks.push((self.kinds[checkpoint], batch.rows.len() as u32));
            batch.rows.extend(self.rows_of(checkpoint).map(|row| row as u32));
            batch.pieces.extend(self.pieces_of(checkpoint).map(|piece| piece as u32));
        }
        batch
    }

    /// The networks of one architecture `[networks, d]` from a batch of rows `[rows, length]`, those whose first rows
    /// are `first`.
    ///
    /// # Errors
    /// When a row is not there.
    pub fn join(&self, rows: &Tensor, architecture: usize, first: &[u32]) -> Result<Tensor> {
        let ranges = self.vectorise.ranges(architecture, self.parameters[architecture]);
        let mut parts = Vec::with_capacity(ranges.len());
        for (range, place) in ranges.iter().zip(0u32..) {
            let index: Vec<u32> = first.iter().map(|first| first + place).collect();
            let part = rows.index_select(&Tensor::new(index.as_slice(), rows.device())?, 0)?;
            parts.push(part.narrow(1, 0, range.len())?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 1)? })
    }

    /// What a zoo's vectors are for its models of one architecture, which are these checkpoints.
    #[must_use]
    pub fn only(&self, zoo: &Zoo, architecture: usize, checkpoints: &[usize]) -> Self {
        let d = self.parameters[architecture];
        let place = |c: &usize| checkpoints.binary_search(c).ok();
        let mut x = Vec::new();
        let mut aligned = Vec::with_capacity(checkpoints.len() * d);
        for &c in checkpoints {
            let rows = self.rows_of(c);
            x.extend_from_slice(&self.x[rows.start * self.vectorise.length..rows.end * self.vectorise.length]);
            aligned.extend_from_slice(&self.aligned[zoo.offsets[c]..zoo.offsets[c + 1]]);
        }
        let pieces = self.vectorise.pieces.iter().filter(|piece| piece.architecture == architecture);
        let mut vectorise = self.vectorise.clone();
        vectorise.pieces = pieces.map(|piece| Piece { architecture: 0, ..piece.clone() }).collect();
        let per_network = vectorise.kinds();
        Self {
            standardisation: self.standardisation.of(&self.vectorise, architecture).unwrap_or_default(),
            vectorise,
            aligned,
            x,
            train: self.train.iter().filter_map(place).collect(),
            held_out: self.held_out.iter().filter_map(place).collect(),
            rows: (0..=checkpoints.len()).map(|i| i * per_network).collect(),
            kinds: vec![0; checkpoints.len()],
            parameters: vec![d],
        }
    }
}

/// Rows of an identity `[pieces, index_dim]` for pieces of a table: the index of each row, as the networks take it;
/// none where all rows are of one kind.
///
/// # Errors
/// When the device is out of memory.
pub fn one_hot(pieces: &[u32], index_dim: usize, device: &Device) -> Result<Option<Tensor>> {
    if index_dim == 0 {
        return Ok(None);
    }
    let mut rows = vec![0f32; pieces.len() * index_dim];
    for (row, &piece) in rows.chunks_exact_mut(index_dim).zip(pieces) {
        row[piece as usize] = 1.0;
    }
    Ok(Some(Tensor::from_vec(rows, (pieces.len(), index_dim), device)?))
}

/// Aligns, cuts and standardises a zoo, each architecture for itself.
///
/// # Errors
/// When the zoo is empty or cannot be cut so; [`Error::Interrupted`](crate::Error::Interrupted).
pub fn vectorise(config: &Config, zoo: &Zoo, progress: &Progress) -> Result<Vectors> {
    let layouts: Vec<Layout> = zoo.architectures().map(weights::Architecture::layout).collect();
    let vectorise = Vectorise::new(config.vectors.mode, config.vectors.chunk, &layouts)?;
    let (train, held_out) = hold_out(config, zoo);
    let aligned = align(config, zoo, &layouts, progress)?;
    let theta = |c: usize| &aligned[zoo.offsets[c]..zoo.offsets[c + 1]];
    let mut standardisation = Standardisation::default();
    let mut parts = Vec::with_capacity(layouts.len());
    for (architecture, layout) in layouts.iter().enumerate() {
        let own = train.iter().filter(|&&c| zoo.kind(c) == architecture);
        let rows: Vec<f32> = own.flat_map(|&c| theta(c).iter().copied()).collect();
        let flat = Standardisation::fit(&rows, layout.parameters(), layout, config.vectors.standardise)?;
        let part = flat.cut(&vectorise, architecture)?;
        standardisation.append(&part);
        parts.push(part);
    }
    let kinds: Vec<usize> = (0..zoo.checkpoints.len()).map(|c| zoo.kind(c)).collect();
    let (mut x, mut rows) = (Vec::new(), vec![0]);
    for (c, &kind) in kinds.iter().enumerate() {
        let mut cut = vectorise.cut(kind, theta(c), 0.0)?;
        parts[kind].apply(&mut cut)?;
        x.extend(cut);
        rows.push(x.len() / vectorise.length);
    }
    let parameters = layouts.iter().map(Layout::parameters).collect();
    Ok(Vectors { vectorise, aligned, x, standardisation, train, held_out, rows, kinds, parameters })
}

/// Holds out whole runs: checkpoints of one run are near copies of each other.
fn hold_out(config: &Config, zoo: &Zoo) -> (Vec<usize>, Vec<usize>) {
    let mut runs: Vec<usize> = (0..zoo.runs.len()).collect();
    runs.shuffle(&mut random::stream(config.seed, "hold out"));
    let mut held = vec![false; zoo.runs.len()];
    for architecture in 0..=zoo.further.len() {
        // The same share of each architecture's, and never all of them.
        let own: Vec<usize> = runs.iter().copied().filter(|&run| zoo.runs[run].architecture == architecture).collect();
        let n = ((own.len() as f64 * config.vectors.held_out).round() as usize).min(own.len().saturating_sub(1));
        own[..n].iter().for_each(|&run| held[run] = true);
    }
    (0..zoo.checkpoints.len()).partition(|&i| !held[zoo.checkpoints[i].run])
}

/// Weights of all checkpoints in canonical form: first against the architecture's first checkpoint (no accuracy
/// decides, for accuracies are measured on test images), then against the mean.
fn align(config: &Config, zoo: &Zoo, layouts: &[Layout], progress: &Progress) -> Result<Vec<f32>> {
    let mut theta = zoo.theta.clone();
    let sweeps = config.vectors.alignment_sweeps;
    for (index, (architecture, layout)) in zoo.architectures().zip(layouts).enumerate() {
        let (groups, d) = (architecture.hidden_groups(), layout.parameters());
        let own: Vec<usize> = (0..zoo.checkpoints.len()).filter(|&c| zoo.kind(c) == index).collect();
        let Some(&first) = own.first().filter(|_| sweeps > 0 && !groups.is_empty()) else { continue };
        let mut reference = zoo.weights(first).to_vec();
        let mut rows: Vec<f32> = own.iter().flat_map(|&c| zoo.weights(c).iter().copied()).collect();
        for _ in 0..config.vectors.alignment_rounds.max(1) {
            use rayon::prelude::*;
            rows.par_chunks_exact_mut(d).try_for_each(|row| {
                canonical::align(row, &reference, layout, &groups, sweeps)?;
                progress.check()
            })?;
            reference = mean(&rows, d);
        }
        for (row, &c) in rows.chunks_exact(d).zip(&own) {
            theta[zoo.offsets[c]..zoo.offsets[c + 1]].copy_from_slice(row);
        }
    }
    Ok(theta)
}

/// Mean of rows `[n × d]`.
pub fn mean(rows: &[f32], d: usize) -> Vec<f32> {
    let mut sum = vec![0f64; d];
    for row in rows.chunks_exact(d) {
        for (s, &v) in sum.iter_mut().zip(row) {
            *s += f64::from(v);
        }
    }
    let n = (rows.len() / d).max(1) as f64;
    sum.into_iter().map(|s| (s / n) as f32).collect()
}
