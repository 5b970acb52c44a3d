//! Layer normalisation, and group normalisation with SiLU behind, with scale and shift: a row at a time, in cache.

use kernels::{Buffer, Pool, sum};

use super::silu::{silu, slope};
use crate::backend::EPSILON;

/// Mean and 1/deviation of a row.
type Statistics = (f32, f32);

fn statistics(row: &[f32]) -> Statistics {
    let n = row.len() as f64;
    let mean = (sum(row, &[], |v, _| v) / n) as f32;
    let variance = sum(row, &[], |v, _| (v - mean) * (v - mean)) / n;
    (mean, (1.0 / (variance + EPSILON).sqrt()) as f32)
}

/// Each row of `x [rows, d]` normalised, times `scale [d]` plus `shift [d]`, with what [`layer_backward`] needs.
pub fn layer(x: &[f32], scale: &[f32], shift: &[f32], pool: &Pool) -> (Buffer, Vec<Statistics>) {
    let d = scale.len();
    let mut y = pool.take(x.len());
    let mut rows = Vec::with_capacity(x.len() / d);
    for (row, out) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let (mean, inverse) = statistics(row);
        rows.push((mean, inverse));
        for (((y, x), scale), shift) in out.iter_mut().zip(row).zip(scale).zip(shift) {
            *y = (x - mean) * inverse * scale + shift;
        }
    }
    (y, rows)
}

/// Turns gradients of what [`layer`] gave into those of `x`, and gives those of scale and shift.
pub fn layer_backward(
    x: &[f32],
    scale: &[f32],
    rows: &[Statistics],
    grad: &mut [f32],
    pool: &Pool,
) -> (Buffer, Buffer) {
    let d = scale.len();
    let (mut scales, mut shifts) = (pool.zeros(d), pool.zeros(d));
    let mut unit = pool.take(d);
    for ((row, grad), &(mean, inverse)) in x.chunks_exact(d).zip(grad.chunks_exact_mut(d)).zip(rows) {
        unit.iter_mut().zip(row).for_each(|(u, x)| *u = (x - mean) * inverse);
        for (((s, t), u), g) in scales.iter_mut().zip(&mut *shifts).zip(&*unit).zip(&*grad) {
            *s += g * u;
            *t += g;
        }
        grad.iter_mut().zip(scale).for_each(|(g, s)| *g *= s);
        let shift = (sum(grad, &[], |g, _| g) / d as f64) as f32;
        let dot = (sum(grad, &unit, |g, u| g * u) / d as f64) as f32;
        grad.iter_mut().zip(&*unit).for_each(|(g, u)| *g = inverse * (*g - shift - u * dot));
    }
    (scales, shifts)
}

/// Sizes of a group normalisation of `[n, c, positions]`.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Groups of an example.
    pub groups: usize,
    /// Channels of an example.
    pub c: usize,
    /// Positions of a channel.
    pub positions: usize,
}

impl Groups {
    /// Values of a group.
    fn group(self) -> usize {
        self.c / self.groups * self.positions
    }

    /// The first channel of the group of this index, over all examples.
    fn first(self, group: usize) -> usize {
        group % self.groups * (self.c / self.groups)
    }

    /// SiLU of each group of `x [n, c, positions]` normalised, times `scale [c]` plus `shift [c]`, with what
    /// [`Self::backward`] needs.
    pub fn forward(self, x: &[f32], scale: &[f32], shift: &[f32], pool: &Pool) -> (Buffer, Vec<Statistics>) {
        let mut y = pool.take(x.len());
        let mut all = Vec::with_capacity(x.len() / self.group());
        for (i, (row, out)) in x.chunks_exact(self.group()).zip(y.chunks_exact_mut(self.group())).enumerate() {
            let (mean, inverse) = statistics(row);
            all.push((mean, inverse));
            let planes = row.chunks_exact(self.positions).zip(out.chunks_exact_mut(self.positions));
            for (c, (plane, out)) in planes.enumerate() {
                let c = self.first(i) + c;
                let (factor, shift) = (inverse * scale[c], shift[c]);
                out.iter_mut().zip(plane).for_each(|(y, x)| *y = silu((x - mean) * factor + shift));
            }
        }
        (y, all)
    }

    /// Turns gradients of what [`Self::forward`] gave into those of `x`, and gives those of scale and shift.
    pub fn backward(
        self,
        x: &[f32],
        (scale, shift): (&[f32], &[f32]),
        all: &[Statistics],
        grad: &mut [f32],
        pool: &Pool,
    ) -> (Buffer, Buffer) {
        let (mut scales, mut shifts) = (pool.zeros(self.c), pool.zeros(self.c));
        let count = self.group() as f64;
        let groups = x.chunks_exact(self.group()).zip(grad.chunks_exact_mut(self.group())).zip(all);
        for (i, ((row, grad), &(mean, inverse))) in groups.enumerate() {
            let (mut level, mut dot) = (0f64, 0f64);
            let planes = row.chunks_exact(self.positions).zip(grad.chunks_exact_mut(self.positions));
            for (c, (plane, grad)) in planes.enumerate() {
                let c = self.first(i) + c;
                let (factor, shift) = (inverse * scale[c], shift[c]);
                grad.iter_mut().zip(plane).for_each(|(g, x)| *g *= slope((x - mean) * factor + shift));
                let own = sum(grad, &[], |g, _| g);
                let unit = sum(grad, plane, |g, x| g * ((x - mean) * inverse));
                scales[c] += unit as f32;
                shifts[c] += own as f32;
                level += own * f64::from(scale[c]);
                dot += unit * f64::from(scale[c]);
            }
            let (level, dot) = ((level / count) as f32, (dot / count) as f32);
            let planes = row.chunks_exact(self.positions).zip(grad.chunks_exact_mut(self.positions));
            for (c, (plane, grad)) in planes.enumerate() {
                let scale = scale[self.first(i) + c];
                let values = grad.iter_mut().zip(plane);
                values.for_each(|(g, x)| *g = inverse * (*g * scale - level - (x - mean) * inverse * dot));
            }
        }
        (scales, shifts)
    }
}
