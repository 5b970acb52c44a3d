//! Chunks of a network's layers, where they are, and where their values come from.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use weights::{Layout, ParamSpec};

use crate::error::{Error, Result};

/// A part of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Type of its layer: chunks of equal types are comparable.
    pub kind: String,
    /// Where its layer is among those of its stage, from 0 to 1.
    pub position: f64,
    /// Which part of its layer.
    pub part: usize,
    /// First value in the network's flat vector.
    pub offset: usize,
    /// Values.
    pub len: usize,
}

/// The chunks of a network: each parameter that is no buffer is cut for itself. The type of a parameter is its name
/// with the block's number taken out (`layer2.0.conv1.weight` is a type of its own where its shape is), and its shape.
pub fn chunks(layout: &Layout, chunk: usize) -> Vec<Chunk> {
    let mut all = Vec::new();
    for param in layout.params.iter().filter(|p| !p.is_buffer()) {
        let (kind, block) = kind(&param.name);
        let blocks =
            layout.params.iter().filter_map(|p| self::kind(&p.name).1.filter(|_| self::kind(&p.name).0 == kind));
        let last = blocks.max().unwrap_or(0).max(1);
        let kind = format!("{kind} {:?}", param.shape);
        for (part, offset) in param.range().step_by(chunk.max(1)).enumerate() {
            let len = chunk.min(param.range().end - offset);
            let position = block.unwrap_or(0) as f64 / last as f64;
            all.push(Chunk { kind: kind.clone(), position, part, offset, len });
        }
    }
    all
}

/// A parameter's name with `*` for the number of its block, and that number.
pub fn kind(name: &str) -> (String, Option<usize>) {
    let mut block = None;
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse() {
            Ok(number) => {
                block = Some(number);
                "*"
            }
            Err(_) => part,
        })
        .collect();
    (parts.join("."), block)
}

/// All parameters that are no buffers as one vector, cut without regard to layers (paper A.2, uniform): one type, the
/// position is that in the vector.
pub fn uniform(layout: &Layout, chunk: usize) -> Vec<Chunk> {
    let mut all: Vec<Chunk> = Vec::new();
    let mut flat = layout.params.iter().filter(|p| !p.is_buffer()).map(ParamSpec::range).peekable();
    // A chunk is one run of values, so that it can be read at once: it ends where a buffer interrupts the vector.
    while let Some(mut run) = flat.next() {
        while let Some(next) = flat.next_if(|next| next.start == run.end) {
            run.end = next.end;
        }
        let parts = run.clone().step_by(chunk.max(1));
        all.extend(parts.map(|offset| Chunk {
            kind: "uniform".to_owned(),
            position: 0.0,
            part: 0,
            offset,
            len: chunk.min(run.end - offset),
        }));
    }
    let last = all.len().saturating_sub(1).max(1) as f64;
    all.iter_mut().enumerate().for_each(|(i, c)| (c.part, c.position) = (i, i as f64 / last));
    all
}

/// Values of a network, which may be more than fit into memory.
pub trait Values: Sync {
    /// Values `range` of the network's flat vector, as many as `out` has.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()>;
}

impl Values for &[f32] {
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let have = self.len();
        let part = self.get(range.clone()).filter(|part| part.len() == out.len());
        let missing = || Error::Config(format!("values {range:?} are asked for, and there are {have}"));
        out.copy_from_slice(part.ok_or_else(missing)?);
        Ok(())
    }
}

/// Moments of all values of one type of layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// Mean.
    pub mean: f32,
    /// Standard deviation, at least 1e-6.
    pub std: f32,
    /// Fourth central moment over the squared variance: 3 for a normal distribution, more where tails are heavy.
    pub kurtosis: f32,
}

impl Moments {
    /// Of the chunks of `kind`, in two passes.
    ///
    /// # Errors
    /// When values cannot be read or are not finite.
    pub fn of(all: &[Chunk], kind: &str, values: &dyn Values) -> Result<Self> {
        let mean_of = |powers: &dyn Fn(f64) -> [f64; 2]| -> Result<[f64; 2]> {
            let (mut sums, mut n) = ([0.0; 2], 0usize);
            let mut row = Vec::new();
            for chunk in all.iter().filter(|c| c.kind == kind) {
                row.resize(chunk.len, 0.0);
                values.read(chunk.offset..chunk.offset + chunk.len, &mut row)?;
                for v in &row {
                    let [first, second] = powers(f64::from(*v));
                    sums = [sums[0] + first, sums[1] + second];
                }
                n += chunk.len;
            }
            if !sums.iter().all(|sum| sum.is_finite()) {
                return Err(Error::Config(format!("layers of the type {kind} have values that are not finite")));
            }
            Ok(sums.map(|sum| sum / n.max(1) as f64))
        };
        let [mean, _] = mean_of(&|v| [v, 0.0])?;
        let [variance, fourth] = mean_of(&|v| [(v - mean).powi(2), (v - mean).powi(4)])?;
        let kurtosis = if variance > 0.0 { fourth / variance.powi(2) } else { 3.0 };
        Ok(Self { mean: mean as f32, std: (variance.sqrt() as f32).max(1e-6), kurtosis: kurtosis as f32 })
    }
}

/// The network of `to` whose layers are those of `from` (`theta`) of the same type and the nearest position; buffers
/// too. Of two equally near the earlier.
///
/// # Errors
/// [`Error::Config`] when a layer has none of its type.
pub fn nearest_copy(from: &Layout, theta: &[f32], to: &Layout) -> Result<Vec<f32>> {
    let mut copy = vec![0f32; to.parameters()];
    let last = |layout: &Layout, kind: &str| {
        let blocks = layout.params.iter().map(|p| self::kind(&p.name)).filter(|(k, _)| k == kind);
        blocks.filter_map(|(_, block)| block).max().unwrap_or(0).max(1) as f64
    };
    for param in &to.params {
        let (kind, block) = kind(&param.name);
        let position = block.unwrap_or(0) as f64 / last(to, &kind);
        let end = last(from, &kind);
        let same = from.params.iter().filter(|p| p.shape == param.shape && self::kind(&p.name).0 == kind);
        let apart = |p: &&weights::ParamSpec| (self::kind(&p.name).1.unwrap_or(0) as f64 / end - position).abs();
        let nearest = same.min_by(|a, b| apart(a).total_cmp(&apart(b)));
        let nearest = nearest.ok_or_else(|| Error::Config(format!("there is no layer like {}", param.name)))?;
        copy[param.range()].copy_from_slice(&theta[nearest.range()]);
    }
    Ok(copy)
}
