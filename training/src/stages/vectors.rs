//! From checkpoints to standardised vectors: canonical form, cutting, standardisation, hold-out by lineage.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use weights::vectorise::{Piece, Segment, Vectorise};
use weights::{Architecture, Layout, Standardisation, canonical};

use super::zoo::Zoo;
use crate::config::Config;
use crate::error::{Error, Result};
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
        let segments = self.vectorise.segments(architecture, self.parameters[architecture]);
        let mut parts = Vec::with_capacity(segments.len());
        for Segment { row, place, range } in segments {
            let index: Vec<u32> = first.iter().map(|first| first + row as u32).collect();
            let part = rows.index_select(&Tensor::new(index.as_slice(), rows.device())?, 0)?;
            parts.push(part.narrow(1, place, range.len())?);
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
        let mut vectorise = self.vectorise.clone();
        if let Some(rows) = &mut vectorise.rows {
            rows.classes = vec![rows.classes[architecture]];
        }
        let pieces = self.vectorise.pieces.iter().filter(|piece| piece.architecture == architecture);
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

impl Vectors {
    /// What the vectors are for heads of a number of classes that the zoo has none of.
    #[must_use]
    pub fn none_of(&self, classes: usize, parameters: usize) -> Self {
        let mut vectorise = self.vectorise.clone();
        if let Some(rows) = &mut vectorise.rows {
            rows.classes = vec![classes];
        }
        Self {
            standardisation: self.standardisation.of(&vectorise, 0).unwrap_or_default(),
            vectorise,
            aligned: Vec::new(),
            x: Vec::new(),
            train: Vec::new(),
            held_out: Vec::new(),
            rows: vec![0],
            kinds: Vec::new(),
            parameters: vec![parameters],
        }
    }

    /// Of each class row whether these checkpoints have it, 1 or 0, `[n, classes]`; none where all have the same.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn presence(&self, checkpoints: &[usize], device: &Device) -> Result<Option<Tensor>> {
        let Some(most) = self.vectorise.most_classes() else { return Ok(None) };
        let all: Vec<f32> = checkpoints.iter().flat_map(|&c| self.vectorise.presence(self.kinds[c])).collect();
        Ok(Some(Tensor::from_vec(all, (checkpoints.len(), most), device)?))
    }

    /// Of each value of the rows of these checkpoints whether they have it, 1 or 0, `[n, length]`; none where all have all.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn mask(&self, checkpoints: &[usize], device: &Device) -> Result<Option<Tensor>> {
        if self.vectorise.rows.is_none() {
            return Ok(None);
        }
        let all: Vec<f32> =
            checkpoints.iter().flat_map(|&c| self.vectorise.mask(self.kinds[c]).unwrap_or_default()).collect();
        Ok(Some(Tensor::from_vec(all, (checkpoints.len(), self.vectorise.length), device)?))
    }
}

/// Mean of values, or of those where `mask` (which broadcasts to their shape) is 1.
///
/// # Errors
/// When shapes do not fit.
pub fn masked_mean(values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let Some(mask) = mask else { return Ok(values.mean_all()?) };
    let count = mask.broadcast_as(values.shape())?.sum_all()?;
    Ok((values.broadcast_mul(mask)?.sum_all()? / count)?)
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
    let layouts: Vec<Layout> = (0..=zoo.further.len()).map(|kind| zoo.layout(kind)).collect();
    let vectorise = match config.most_classes() {
        Some(most) => class_rows(zoo, most)?,
        None => Vectorise::new(config.vectors.mode, config.vectors.chunk, &layouts)?,
    };
    let (train, held_out) = hold_out(config, zoo);
    let aligned = align(config, zoo, &layouts, progress)?;
    let theta = |c: usize| &aligned[zoo.offsets[c]..zoo.offsets[c + 1]];
    let standardisation = match vectorise.rows {
        Some(_) => {
            let heads = train.iter().map(|&c| theta(c));
            Standardisation::fit_class_rows(heads, &vectorise, config.vectors.standardise)?
        }
        None => of_each(config, &layouts, &vectorise, &|architecture| {
            let own = train.iter().filter(|&&c| zoo.kind(c) == architecture);
            own.flat_map(|&c| theta(c).iter().copied()).collect()
        })?,
    };
    let parts =
        (0..layouts.len()).map(|a| Ok(standardisation.of(&vectorise, a)?)).collect::<Result<Vec<Standardisation>>>()?;
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

/// How heads of any number of classes up to `most` lie in rows.
fn class_rows(zoo: &Zoo, most: usize) -> Result<Vectorise> {
    let mut classes = Vec::new();
    for architecture in zoo.architectures() {
        match architecture {
            Architecture::Head { features, .. } if *features == zoo.architecture.input_dim() => {}
            other => {
                let text =
                    format!("the zoo has networks {}; tasks.classes of several numbers is for heads", other.name());
                return Err(Error::Config(text));
            }
        }
        classes.push(architecture.classes());
    }
    Ok(Vectorise::class_rows(zoo.architecture.input_dim(), classes, most)?)
}

/// The statistics of each kind of row; `rows` gives the flat vectors of an architecture's training networks.
fn of_each(
    config: &Config,
    layouts: &[Layout],
    vectorise: &Vectorise,
    rows: &dyn Fn(usize) -> Vec<f32>,
) -> Result<Standardisation> {
    let mut all = Standardisation::default();
    for (architecture, layout) in layouts.iter().enumerate() {
        let flat = Standardisation::fit(&rows(architecture), layout.parameters(), layout, config.vectors.standardise)?;
        all.append(&flat.cut(vectorise, architecture)?);
    }
    Ok(all)
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
    for (index, layout) in layouts.iter().enumerate() {
        let (groups, d) = (zoo.hidden_groups(index), layout.parameters());
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
