//! Convolution as matrix products over the patches of several images at once, as many as a core's cache holds. The
//! input's gradient of a convolution of stride 1 is a convolution itself, with the kernel turned around, which reads
//! patches instead of adding them up.

use super::pool::{Buffer, Pool};
use crate::ops::{View, product};

/// Values of a patch matrix that a core's second-level cache holds beside the weights.
const CACHED: usize = 128 * 1024;

/// Positions that are worth reading large weights for.
const POSITIONS: usize = 128;

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

    /// The convolution, plus `bias [o]` and, where given, what is as large as the output.
    pub fn forward(self, x: &[f32], weight: &[f32], bias: &[f32], residual: Option<&[f32]>, pool: &Pool) -> Buffer {
        let mut y = pool.take(x.len() / self.image() * self.output());
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
        y
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
        let turned = Self { c: self.o, h, w, o: self.c, pad: self.k - 1 - self.pad, ..self };
        let taps = self.k * self.k;
        let mut kernel = pool.take(weight.len());
        for (o, from) in weight.chunks_exact(self.patch()).enumerate() {
            for (c, from) in from.chunks_exact(taps).enumerate() {
                let to = &mut kernel[(c * self.o + o) * taps..][..taps];
                to.iter_mut().zip(from.iter().rev()).for_each(|(t, f)| *t = *f);
            }
        }
        turned.forward(grad, &kernel, &pool.zeros(self.c), None, pool)
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
        let (mut turned, mut bias) = (pool.take(self.o * self.patch()), pool.zeros(self.o));
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
                    bias[o] += crate::ops::sum(plane, &[], |g, _| g) as f32;
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
        (weight, bias)
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
