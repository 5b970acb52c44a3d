//! Convolution as matrix products over the patches of several images at once, as many as a core's cache holds; with 3×3
//! filters over planes that tiles of 4×4 cover, by Winograd's filtering instead where that is faster. The
//! input's gradient of a convolution of stride 1 is a convolution itself, with the kernel turned around, which reads
//! patches instead of adding them up.

use std::ops::{Deref, Range};

use crate::matrix::{View, product};
use crate::pool::{Buffer, Pool};
use crate::winograd::{Filters, Winograd};

/// Values of a patch matrix that a core's second-level cache holds beside the weights.
const CACHED: usize = 128 * 1024;

/// Positions that are worth reading large weights for.
const POSITIONS: usize = 128;

/// Channels from which transforming tiles costs less than it saves.
const CHANNELS: usize = 32;

/// Tiles that are worth transforming filters for, and tiles that are worth reading filters that are transformed and four
/// times as large, where they fill vectors: a network's filters come from memory.
const TILES: [usize; 2] = [24, 12];

/// A weight `[o, c, k, k]` that many convolutions use.
#[derive(Debug)]
pub struct Prepared<D> {
    weight: D,
    filters: Option<Filters<Vec<f32>>>,
}

impl<D: Deref<Target = [f32]>> Prepared<D> {
    /// For convolutions of these channels and this kernel over any planes.
    pub fn new(conv: Conv, weight: D) -> Self {
        let filters = conv.over_tiles().map(|w| w.filters(&weight, false, vec![0.0; w.filter_values()]));
        Self { weight, filters }
    }
}

/// Sizes of a convolution of `x [n, c, h, w]` by `weight [o, c, k, k]`.
#[derive(Debug, Clone, Copy)]
pub struct Conv {
    /// Channels in.
    pub c: usize,
    /// Height in.
    pub h: usize,
    /// Width in.
    pub w: usize,
    /// Channels out.
    pub o: usize,
    /// Side of the kernel.
    pub k: usize,
    /// Stride.
    pub stride: usize,
    /// Zeros around the image.
    pub pad: usize,
}

impl Conv {
    /// Height and width of what comes out; none when the kernel does not fit.
    pub fn out(self) -> Option<(usize, usize)> {
        let side = |s: usize| (s + 2 * self.pad).checked_sub(self.k).map(|left| left / self.stride + 1);
        (self.k > 0 && self.stride > 0).then_some(())?;
        Some((side(self.h)?, side(self.w)?))
    }

    fn sides(self) -> (usize, usize) {
        self.out().unwrap_or_default()
    }

    fn positions(self) -> usize {
        let (h, w) = self.sides();
        h * w
    }

    fn patch(self) -> usize {
        self.c * self.k * self.k
    }

    fn image(self) -> usize {
        self.c * self.h * self.w
    }

    fn output(self) -> usize {
        self.o * self.positions()
    }

    /// Images whose patches are made at a time.
    fn together(self, n: usize) -> usize {
        let p = self.positions().max(1);
        (CACHED / (self.patch() * p).max(1)).max(POSITIONS / p).clamp(1, n.max(1))
    }

    /// Whether there are planes over which Winograd's filtering is faster, whatever this one's are.
    pub fn is_filtered(self) -> bool {
        self.over_tiles().is_some()
    }

    fn over_tiles(self) -> Option<Winograd> {
        Self { h: 4, w: 4, ..self }.winograd(|_| true)
    }

    /// Winograd's filtering, where it fits and is worth it.
    fn winograd(self, worth: impl Fn(&Winograd) -> bool) -> Option<Winograd> {
        let fits = (self.k, self.stride, self.pad) == (3, 1, 1) && self.c.min(self.o) >= CHANNELS;
        fits.then(|| Winograd::new(self.c, self.o, [self.h, self.w])).flatten().filter(worth)
    }

    /// The convolution of `x [n, c, h, w]`, plus `bias [o]` and, where given, what is as large as the output.
    pub fn forward(self, x: &[f32], weight: &[f32], bias: &[f32], residual: Option<&[f32]>, pool: &Pool) -> Buffer {
        self.forward_by(x, (weight, false), bias, residual, pool)
    }

    /// The same by a weight that may be `turned`: `[c, o, k, k]` of the convolution whose input's gradient this is.
    fn forward_by(
        self,
        x: &[f32],
        (weight, turned): (&[f32], bool),
        bias: &[f32],
        residual: Option<&[f32]>,
        pool: &Pool,
    ) -> Buffer {
        let n = x.len() / self.image();
        let mut y = pool.take(n * self.output());
        match self.winograd(|w| w.tiles(n) >= TILES[0]) {
            Some(winograd) => {
                let filters = winograd.filters(weight, turned, pool.take(winograd.filter_values()));
                winograd.forward(x, (&filters, 0), (bias, residual), &mut y, pool);
            }
            None if turned => self.by_patches(x, &self.turned(weight, pool), (bias, residual), &mut y, pool),
            None => self.by_patches(x, weight, (bias, residual), &mut y, pool),
        }
        y
    }

    /// The convolution plus `bias [o]` for the `channels` of the output that are asked for, into `y [n, channels, h', w']`.
    pub fn forward_prepared<D: Deref<Target = [f32]>>(
        self,
        x: &[f32],
        weight: &Prepared<D>,
        bias: &[f32],
        channels: Range<usize>,
        y: &mut [f32],
        pool: &Pool,
    ) {
        let part = Self { o: channels.len(), ..self };
        let bias = &bias[channels.clone()];
        let n = x.len() / self.image();
        let tiles = |w: &Winograd| w.tiles(n) >= TILES[1] && n >= w.group();
        match (self.winograd(tiles), &weight.filters) {
            (Some(winograd), Some(filters)) => {
                winograd.with_outputs(part.o).forward(x, (filters, channels.start), (bias, None), y, pool);
            }
            _ => {
                let weight = &weight.weight[channels.start * self.patch()..channels.end * self.patch()];
                part.by_patches(x, weight, (bias, None), y, pool);
            }
        }
    }

    fn by_patches(
        self,
        x: &[f32],
        weight: &[f32],
        (bias, residual): (&[f32], Option<&[f32]>),
        y: &mut [f32],
        pool: &Pool,
    ) {
        self.each(x, weight, pool, |first, product, stride, images| {
            let p = self.positions();
            for i in 0..images {
                for (o, bias) in bias.iter().enumerate() {
                    let to = (first + i) * self.output() + o * p;
                    let from = &product[o * stride + i * p..][..p];
                    let out = &mut y[to..to + p];
                    match residual {
                        Some(residual) => {
                            let values = out.iter_mut().zip(from).zip(&residual[to..to + p]);
                            values.for_each(|((y, v), r)| *y = v + bias + r);
                        }
                        None => out.iter_mut().zip(from).for_each(|(y, v)| *y = v + bias),
                    }
                }
            }
        });
    }

    /// `take(first image, weight · patches, its row stride, images)` for all images, some at a time.
    fn each(self, x: &[f32], weight: &[f32], pool: &Pool, mut take: impl FnMut(usize, &[f32], usize, usize)) {
        let (p, image) = (self.positions(), self.image());
        let together = self.together(x.len() / image);
        let mut patches = pool.take(self.patch() * together * p);
        let mut out = pool.take(self.o * together * p);
        let weight = View::new(weight, self.o, self.patch());
        for (i, images) in x.chunks(together * image).enumerate() {
            let count = images.len() / image;
            let stride = count * p;
            for (j, image) in images.chunks_exact(image).enumerate() {
                self.patches(image, &mut patches, stride, j * p);
            }
            let columns = View::new(&patches[..self.patch() * stride], self.patch(), stride);
            product(weight, columns, &mut out, stride, 1.0, false);
            take(i * together, &out, stride, count);
        }
    }

    /// Writes the patches of one image as columns from `offset`, of a matrix `[patch × stride]`.
    fn patches(self, image: &[f32], out: &mut [f32], stride: usize, offset: usize) {
        let (oh, ow) = self.sides();
        if self.stride == 1 && (oh, ow) == (self.h, self.w) {
            // Sizes that are known when this is compiled are copied without a call for each plane.
            return match oh * ow {
                16 => self.shifted::<16>(image, out, stride, offset),
                64 => self.shifted::<64>(image, out, stride, offset),
                256 => self.shifted::<256>(image, out, stride, offset),
                _ => self.shifted::<0>(image, out, stride, offset),
            };
        }
        let plane = self.h * self.w;
        for tap in 0..self.patch() {
            let (c, ky, kx) = (tap / (self.k * self.k), tap / self.k % self.k, tap % self.k);
            let source = &image[c * plane..(c + 1) * plane];
            let out = &mut out[tap * stride + offset..][..oh * ow];
            out.fill(0.0);
            let (from, to) = self.inside(kx);
            for oy in 0..oh {
                let y = oy * self.stride + ky;
                if y < self.pad || y - self.pad >= self.h || from >= to {
                    continue;
                }
                let source = &source[(y - self.pad) * self.w + from * self.stride + kx - self.pad..];
                let out = &mut out[oy * ow + from..oy * ow + to];
                out.iter_mut().zip(source.iter().step_by(self.stride)).for_each(|(c, v)| *c = *v);
            }
        }
    }

    /// The same where the output is as large as the image, of `P` positions (0: any number): each tap of a channel is its
    /// plane, shifted within zeros, but for the columns that come from the row above or below.
    fn shifted<const P: usize>(self, image: &[f32], out: &mut [f32], stride: usize, offset: usize) {
        let plane = self.h * self.w;
        let margin = self.pad * self.w + self.pad;
        let mut around = vec![0f32; plane + 2 * margin];
        let masks: Vec<u32> = (0..self.k).flat_map(|kx| self.mask(kx)).collect();
        let mut rows = out.chunks_mut(stride.max(1));
        for source in image.chunks_exact(plane) {
            around[margin..margin + plane].copy_from_slice(source);
            for tap in 0..self.k * self.k {
                let (ky, kx) = (tap / self.k, tap % self.k);
                let start = margin + ky * self.w + kx - self.pad * self.w - self.pad;
                let Some(row) = rows.next() else { return };
                let out = &mut row[offset..offset + plane];
                let (source, mask) = (&around[start..start + plane], &masks[kx * plane..(kx + 1) * plane]);
                match (out.first_chunk_mut::<P>(), source.first_chunk::<P>(), mask.first_chunk::<P>()) {
                    (Some(out), Some(source), Some(mask)) if P > 0 => masked(out, source, mask),
                    _ => masked(out, source, mask),
                }
            }
        }
    }

    /// All bits for those positions of the output whose column of the input lies inside the image, none for others.
    fn mask(self, kx: usize) -> impl Iterator<Item = u32> {
        let (from, to) = self.inside(kx);
        let w = self.w;
        (0..self.h * w).map(move |at| if (from..to).contains(&(at % w)) { u32::MAX } else { 0 })
    }

    /// Columns of the output, from and to, whose input column `ox · stride + kx − pad` lies inside the image.
    fn inside(self, kx: usize) -> (usize, usize) {
        let from = self.pad.saturating_sub(kx).div_ceil(self.stride);
        (from, (self.w + self.pad).saturating_sub(kx).div_ceil(self.stride).min(self.sides().1))
    }

    /// Gradient of `x` from that of the output.
    pub fn input_gradient(self, weight: &[f32], grad: &[f32], pool: &Pool) -> Buffer {
        if self.stride > 1 || self.pad >= self.k {
            return self.scattered(weight, grad, pool);
        }
        let (h, w) = self.sides();
        let conv = Self { c: self.o, h, w, o: self.c, pad: self.k - 1 - self.pad, ..self };
        conv.forward_by(grad, (weight, true), &pool.zeros(self.c), None, pool)
    }

    /// A weight `[c, o, k, k]` as `[o, c, k, k]`, its taps backwards.
    fn turned(self, weight: &[f32], pool: &Pool) -> Buffer {
        let taps = self.k * self.k;
        let mut kernel = pool.take(weight.len());
        for (c, from) in weight.chunks_exact(self.o * taps).enumerate() {
            for (o, from) in from.chunks_exact(taps).enumerate() {
                let to = &mut kernel[(o * self.c + c) * taps..][..taps];
                to.iter_mut().zip(from.iter().rev()).for_each(|(t, f)| *t = *f);
            }
        }
        kernel
    }

    /// The same by adding the patches' gradients up.
    fn scattered(self, weight: &[f32], grad: &[f32], pool: &Pool) -> Buffer {
        let (p, (oh, ow)) = (self.positions(), self.sides());
        let n = grad.len() / self.output();
        let mut patches = pool.take(self.patch() * p);
        let mut dx = pool.zeros(n * self.image());
        let weight = View::new(weight, self.o, self.patch());
        for (grad, image) in grad.chunks_exact(self.output()).zip(dx.chunks_exact_mut(self.image())) {
            product(weight.t(), View::new(grad, self.o, p), &mut patches, p, 1.0, false);
            for (tap, patches) in patches.chunks_exact(p).enumerate() {
                let (c, ky, kx) = (tap / (self.k * self.k), tap / self.k % self.k, tap % self.k);
                let (from, to) = self.inside(kx);
                for oy in 0..oh {
                    let y = oy * self.stride + ky;
                    if y < self.pad || y - self.pad >= self.h || from >= to {
                        continue;
                    }
                    let start = (c * self.h + y - self.pad) * self.w + from * self.stride + kx - self.pad;
                    let row = image[start..].iter_mut().step_by(self.stride);
                    row.zip(&patches[oy * ow + from..oy * ow + to]).for_each(|(v, g)| *v += g);
                }
            }
        }
        dx
    }

    /// Gradients of weight and bias from that of the output.
    pub fn parameter_gradients(self, x: &[f32], grad: &[f32], pool: &Pool) -> (Buffer, Buffer) {
        let mut bias = pool.zeros(self.o);
        for grad in grad.chunks_exact(self.output()) {
            for (bias, plane) in bias.iter_mut().zip(grad.chunks_exact(self.positions())) {
                *bias += crate::sum(plane, &[], |g, _| g) as f32;
            }
        }
        let weight = match self.winograd(|w| w.tiles(x.len() / self.image()) >= TILES[0]) {
            Some(winograd) => winograd.weight_gradient(x, grad, pool),
            None => self.weight_gradient_by_patches(x, grad, pool),
        };
        (weight, bias)
    }

    fn weight_gradient_by_patches(self, x: &[f32], grad: &[f32], pool: &Pool) -> Buffer {
        let mut turned = pool.take(self.o * self.patch());
        let mut first = true;
        let (p, image) = (self.positions(), self.image());
        let together = self.together(x.len() / image);
        let mut patches = pool.take(self.patch() * together * p);
        let mut beside = pool.take(self.o * together * p);
        for (images, grads) in x.chunks(together * image).zip(grad.chunks(together * self.output())) {
            let stride = images.len() / image * p;
            for (j, image) in images.chunks_exact(image).enumerate() {
                self.patches(image, &mut patches, stride, j * p);
            }
            for (j, grad) in grads.chunks_exact(self.output()).enumerate() {
                for (o, plane) in grad.chunks_exact(p).enumerate() {
                    beside[o * stride + j * p..][..p].copy_from_slice(plane);
                }
            }
            let columns = View::new(&patches[..self.patch() * stride], self.patch(), stride);
            let grads = View::new(&beside[..self.o * stride], self.o, stride);
            // What is read along its rows is packed first: of both, the gradients are the smaller.
            product(columns, grads.t(), &mut turned, self.o, 1.0, !first);
            first = false;
        }
        let mut weight = pool.take(turned.len());
        transpose(&turned, &mut weight, self.o);
        weight
    }
}

/// `source` where the mask has all bits, 0 where it has none.
#[inline(always)]
fn masked(out: &mut [f32], source: &[f32], mask: &[u32]) {
    let values = out.iter_mut().zip(source).zip(mask);
    values.for_each(|((out, source), mask)| *out = f32::from_bits(source.to_bits() & mask));
}

/// `[rows × columns]` to `[columns × rows]`, in blocks that stay in cache.
fn transpose(from: &[f32], to: &mut [f32], columns: usize) {
    const BLOCK: usize = 16;
    let rows = from.len() / columns.max(1);
    for r in (0..rows).step_by(BLOCK) {
        for (c, to) in to.chunks_exact_mut(rows).enumerate() {
            let values = from[r * columns..].iter().skip(c).step_by(columns);
            to[r..rows.min(r + BLOCK)].iter_mut().zip(values).for_each(|(to, from)| *to = *from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values between -1 and 1 that look like chance.
    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729 + i * i % 641) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// Sums in f64, as the definition says.
    fn defined(conv: Conv, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let (oh, ow) = conv.sides();
        let mut y = Vec::new();
        for image in x.chunks_exact(conv.image()) {
            for (o, at) in (0..conv.o).flat_map(|o| (0..oh * ow).map(move |at| (o, at))) {
                let mut sum = f64::from(bias[o]);
                for tap in 0..conv.patch() {
                    let (c, ky, kx) = (tap / (conv.k * conv.k), tap / conv.k % conv.k, tap % conv.k);
                    let row = (at / ow * conv.stride + ky).checked_sub(conv.pad).filter(|row| *row < conv.h);
                    let column = (at % ow * conv.stride + kx).checked_sub(conv.pad).filter(|column| *column < conv.w);
                    if let (Some(row), Some(column)) = (row, column) {
                        let value = image[(c * conv.h + row) * conv.w + column];
                        sum += f64::from(value) * f64::from(weight[o * conv.patch() + tap]);
                    }
                }
                y.push(sum as f32);
            }
        }
        y
    }

    fn difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    type Case = (usize, [usize; 2], [usize; 2], [usize; 3]);

    /// Images, channels in and out, sides, kernel, stride, margin: planes of all widths, groups that are not full, channels that
    /// do not fill a vector.
    const CASES: [Case; 12] = [
        (3, [32, 33], [16, 16], [3, 1, 1]),
        (1, [32, 36], [32, 32], [3, 1, 1]),
        (25, [36, 32], [4, 4], [3, 1, 1]),
        (33, [32, 32], [4, 4], [3, 1, 1]),
        (7, [35, 32], [8, 8], [3, 1, 1]),
        (2, [32, 32], [12, 16], [3, 1, 1]),
        (70, [34, 37], [8, 4], [3, 1, 1]),
        (2, [32, 32], [6, 6], [3, 1, 1]),
        (3, [5, 4], [16, 16], [3, 1, 1]),
        (2, [32, 32], [8, 8], [3, 2, 1]),
        (2, [32, 32], [8, 8], [1, 1, 0]),
        (2, [3, 4], [9, 7], [5, 1, 2]),
    ];

    fn each_case(check: impl Fn(Conv, usize, &str)) {
        for (n, [c, o], [h, w], [k, stride, pad]) in CASES {
            check(
                Conv { c, h, w, o, k, stride, pad },
                n,
                &format!("{n} of {c}×{h}×{w} to {o} by {k}, {stride}, {pad}"),
            );
        }
    }

    #[test]
    fn convolutions_are_the_sums_that_define_them() {
        let pool = Pool::default();
        each_case(|conv, n, case| {
            let (x, weight, bias) = (values(n * conv.image(), 1), values(conv.o * conv.patch(), 2), values(conv.o, 3));
            let expected = defined(conv, &x, &weight, &bias);
            assert!(difference(&conv.forward(&x, &weight, &bias, None, &pool), &expected) < 4e-4, "{case}");
            let residual = values(expected.len(), 4);
            let both: Vec<f32> = expected.iter().zip(&residual).map(|(y, r)| y + r).collect();
            assert!(difference(&conv.forward(&x, &weight, &bias, Some(&residual), &pool), &both) < 4e-4, "{case}");
            // In two parts, as two threads would.
            let prepared = Prepared::new(conv, &weight[..]);
            for channels in [0..conv.o, 0..conv.o / 2, conv.o / 2..conv.o] {
                let plane = conv.positions();
                let mut y = vec![f32::NAN; n * channels.len() * plane];
                conv.forward_prepared(&x, &prepared, &bias, channels.clone(), &mut y, &pool);
                let part = |all: &[f32]| all[channels.start * plane..channels.end * plane].to_vec();
                let expected: Vec<f32> = expected.chunks_exact(conv.output()).flat_map(part).collect();
                assert!(difference(&y, &expected) < 4e-4, "{case}, {channels:?}");
            }
        });
    }

    #[test]
    fn gradients_are_the_transposed_of_the_convolution() {
        let pool = Pool::default();
        each_case(|conv, n, case| {
            let (x, weight) = (values(n * conv.image(), 1), values(conv.o * conv.patch(), 2));
            let zeros = vec![0.0; conv.o];
            let grad = values(n * conv.output(), 5);
            // Linear in each: ⟨g, conv(x, w)⟩ = ⟨x, dx⟩ = ⟨w, dw⟩, for whatever x and w.
            let dx = conv.input_gradient(&weight, &grad, &pool);
            let (dw, db) = conv.parameter_gradients(&x, &grad, &pool);
            for seed in 6..9 {
                let (other, kernel) = (values(x.len(), seed), values(weight.len(), seed));
                let moved = dot(&grad, &defined(conv, &other, &weight, &zeros));
                assert!((moved - dot(&other, &dx)).abs() < 1e-4 * dot(&dx, &dx).sqrt() * 10.0, "{case}: input");
                let moved = dot(&grad, &defined(conv, &x, &kernel, &zeros));
                assert!((moved - dot(&kernel, &dw)).abs() < 1e-4 * dot(&dw, &dw).sqrt() * 10.0, "{case}: weight");
            }
            let sums = |o: usize| grad.chunks_exact(conv.positions()).skip(o).step_by(conv.o).flatten().sum::<f32>();
            let sums: Vec<f32> = (0..conv.o).map(sums).collect();
            assert!(difference(&db, &sums) < 1e-3, "{case}: bias");
        });
    }
}
