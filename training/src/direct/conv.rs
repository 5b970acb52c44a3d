//! Convolution, 2×2 maximum pooling where there is one, and tanh, of one small network on a batch, image by image: all
//! that an image needs stays in the first cache.
//!
//! The forward pass goes along rows, eight positions a vector, several outputs at once. The backward pass uses that only
//! one position in four has a gradient behind pooling: it adds whole patches, with channels innermost, of those alone.

use super::lanes::{LANES, Lanes, fma, load};

/// Sizes of a convolution with stride 1 and no border, and whether 2×2 maximum pooling follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conv {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) pool: bool,
}

/// What is used for each image anew.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The image, with room behind it for vectors that reach over its end.
    image: Vec<f32>,
    /// Outputs before pooling, rows rounded up to vectors.
    rows: Vec<f32>,
    /// Weights `[block of outputs][tap][output in the block]`.
    packed: Vec<f32>,
    /// Weights, or their gradient, `[output][row of the kernel][column][channel]`, kernel rows rounded up to vectors.
    patches: Vec<f32>,
    /// Gradient of the image `[y][x][channel]`, with room behind it.
    grad: Vec<f32>,
}

/// Kernels that are built in; see [`Conv::forward`].
pub(super) const KERNELS: [usize; 4] = [1, 2, 3, 5];

/// Vectors of a patch whose gradients are in registers together.
const TILE: usize = 5;

impl Conv {
    /// Rows and columns before pooling.
    fn before(&self) -> (usize, usize) {
        (self.height + 1 - self.kernel, self.width + 1 - self.kernel)
    }

    /// Rows and columns of the output.
    pub(super) fn after(&self) -> (usize, usize) {
        let (h, w) = self.before();
        if self.pool { (h / 2, w / 2) } else { (h, w) }
    }

    pub(super) fn input(&self) -> usize {
        self.channels * self.height * self.width
    }

    pub(super) fn output(&self) -> usize {
        let (h, w) = self.after();
        self.outputs * h * w
    }

    pub(super) fn weights(&self) -> usize {
        self.outputs * self.channels * self.kernel * self.kernel
    }

    /// Vectors of a kernel's row over all channels.
    fn row_vectors(&self) -> usize {
        (self.kernel * self.channels).div_ceil(LANES)
    }

    /// Values of a patch, rows rounded up to vectors.
    fn patch(&self) -> usize {
        self.kernel * self.row_vectors() * LANES
    }

    /// Images `x` → `y`, and for each output the place in its image (y · width + x) that its window begins at.
    pub(super) fn forward(
        &self,
        [weight, bias]: [&[f32]; 2],
        x: &[f32],
        y: &mut [f32],
        places: &mut [u32],
        scratch: &mut Scratch,
    ) {
        match self.kernel {
            1 => self.forward_of::<1>([weight, bias], x, y, places, scratch),
            2 => self.forward_of::<2>([weight, bias], x, y, places, scratch),
            3 => self.forward_of::<3>([weight, bias], x, y, places, scratch),
            _ => self.forward_of::<5>([weight, bias], x, y, places, scratch),
        }
    }

    fn forward_of<const K: usize>(
        &self,
        [weight, bias]: [&[f32]; 2],
        x: &[f32],
        y: &mut [f32],
        places: &mut [u32],
        scratch: &mut Scratch,
    ) {
        let (before, columns) = self.before();
        let stride = columns.next_multiple_of(LANES);
        let size = self.output();
        scratch.image.resize(self.input() + 2 * LANES, 0.0);
        scratch.rows.resize(self.outputs * before * stride, 0.0);
        self.pack(weight, &mut scratch.packed);
        let images = x.chunks_exact(self.input()).zip(y.chunks_exact_mut(size)).zip(places.chunks_exact_mut(size));
        for ((image, out), places) in images {
            scratch.image[..image.len()].copy_from_slice(image);
            self.rows::<K>(&scratch.packed, bias, &scratch.image, &mut scratch.rows);
            self.finish(&scratch.rows, out, places);
        }
    }

    /// Vectors of a row before pooling.
    fn vectors(&self) -> usize {
        self.before().1.div_ceil(LANES)
    }

    /// How many outputs are computed together, of those that are left: what fits into registers.
    fn block(&self, left: usize) -> usize {
        match left {
            6 if !self.vectors().is_multiple_of(3) => 6,
            4.. => 4,
            left => left,
        }
    }

    fn pack(&self, weight: &[f32], packed: &mut Vec<f32>) {
        let taps = self.channels * self.kernel * self.kernel;
        packed.clear();
        let mut first = 0;
        while first < self.outputs {
            let block = self.block(self.outputs - first);
            for tap in 0..taps {
                packed.extend((first..first + block).map(|o| weight[o * taps + tap]));
            }
            first += block;
        }
    }

    fn rows<const K: usize>(&self, packed: &[f32], bias: &[f32], image: &[f32], rows: &mut [f32]) {
        let (before, columns) = self.before();
        let stride = columns.next_multiple_of(LANES);
        let plane = before * stride;
        let taps = self.channels * K * K;
        let (mut first, mut rest, mut left) = (0, packed, rows);
        while first < self.outputs {
            let block = self.block(self.outputs - first);
            let (weight, others) = rest.split_at(block * taps);
            let (out, further) = left.split_at_mut(block * plane);
            let bias = &bias[first..first + block];
            let tiles = match (block, self.vectors() % 3) {
                (6, _) => Self::tiles::<K, 2, 1, 6>,
                (4, 0) => Self::tiles::<K, 1, 3, 4>,
                (4, _) => Self::tiles::<K, 3, 1, 4>,
                (3, _) => Self::tiles::<K, 4, 1, 3>,
                (2, _) => Self::tiles::<K, 4, 1, 2>,
                _ => Self::tiles::<K, 4, 1, 1>,
            };
            tiles(self, weight, bias, image, out);
            (first, rest, left) = (first + block, others, further);
        }
    }

    /// `O` outputs, `R` rows of `V` vectors of positions at a time.
    #[inline(never)]
    fn tiles<const K: usize, const R: usize, const V: usize, const O: usize>(
        &self,
        weight: &[f32],
        bias: &[f32],
        image: &[f32],
        out: &mut [f32],
    ) {
        let (before, vectors) = (self.before().0, self.vectors());
        let plane = before * vectors * LANES;
        let mut start = [[0.0; LANES]; O];
        start.iter_mut().zip(bias).for_each(|(lanes, bias)| *lanes = [*bias; LANES]);
        for first in (0..before).step_by(R) {
            // At the end some rows are computed twice.
            let rows: [usize; R] = std::array::from_fn(|r| (first + r).min(before - 1));
            for vector in (0..vectors).step_by(V) {
                let mut sums = [[start; V]; R];
                for (c, kernel) in weight.chunks_exact(K * K * O).enumerate() {
                    let plane = &image[c * self.height * self.width + vector * LANES..];
                    for (ky, kernel) in kernel.chunks_exact(K * O).enumerate() {
                        for r in 0..R {
                            // One check of bounds for a row of the kernel.
                            let row = &plane[(rows[r] + ky) * self.width..][..V * LANES + K - 1];
                            row_of_kernel::<K, V, O>(kernel, row, &mut sums[r]);
                        }
                    }
                }
                for (sums, y) in sums.iter().zip(rows) {
                    for (v, sums) in sums.iter().enumerate() {
                        let at = (y * vectors + vector + v) * LANES;
                        for (o, sum) in sums.iter().enumerate() {
                            out[o * plane + at..][..LANES].copy_from_slice(sum);
                        }
                    }
                }
            }
        }
    }

    /// Pooling and tanh.
    #[inline(never)]
    fn finish(&self, rows: &[f32], out: &mut [f32], places: &mut [u32]) {
        let (before, columns) = self.before();
        let (_, after) = self.after();
        let stride = columns.next_multiple_of(LANES);
        let lines = if self.pool { 2 } else { 1 };
        let (stride, width) = (stride, self.width as u32);
        let outs = out.chunks_exact_mut(after).zip(places.chunks_exact_mut(after));
        let planes =
            rows.chunks_exact(before * stride).flat_map(|plane| plane.chunks_exact(lines * stride).enumerate());
        for ((out, places), (line, pair)) in outs.zip(planes) {
            let first = (line * lines) as u32 * width;
            if self.pool {
                let (upper, lower) = pair.split_at(stride);
                pool_row(upper, lower, first, width, out, places);
            } else {
                out.copy_from_slice(&pair[..after]);
                places.iter_mut().enumerate().for_each(|(x, place)| *place = first + x as u32);
            }
        }
        super::lanes::tanh(out);
    }

    /// Gradients of weights and bias, added to `dw` and `db`, and of the images, where `dx` is wanted, of those of the
    /// outputs `y` before tanh (`dz`).
    pub(super) fn backward(
        &self,
        weight: &[f32],
        [x, dz]: [&[f32]; 2],
        places: &[u32],
        [dw, db]: [&mut [f32]; 2],
        dx: Option<&mut [f32]>,
        scratch: &mut Scratch,
    ) {
        let size = self.output();
        let positions = size / self.outputs;
        for dz in dz.chunks_exact(size) {
            db.iter_mut().zip(dz.chunks_exact(positions)).for_each(|(db, dz)| *db += dz.iter().sum::<f32>());
        }
        self.weight_gradient([x, dz], places, dw, scratch);
        if let Some(dx) = dx {
            self.input_gradient(weight, dz, places, dx, scratch);
        }
    }

    fn weight_gradient(&self, [x, dz]: [&[f32]; 2], places: &[u32], dw: &mut [f32], scratch: &mut Scratch) {
        let size = self.output();
        let (patch, positions) = (self.patch(), size / self.outputs);
        let offsets = self.offsets();
        scratch.image.resize(self.input() + 2 * LANES, 0.0);
        scratch.patches.clear();
        scratch.patches.resize(self.outputs * patch, 0.0);
        let images = x.chunks_exact(self.input()).zip(dz.chunks_exact(size)).zip(places.chunks_exact(size));
        for ((image, dz), places) in images {
            self.channels_last(image, &mut scratch.image);
            let outputs = dz.chunks_exact(positions).zip(places.chunks_exact(positions));
            for ((dz, places), patch) in outputs.zip(scratch.patches.chunks_exact_mut(patch)) {
                let image = &scratch.image;
                for (offsets, sums) in offsets.chunks(TILE).zip(patch.chunks_mut(TILE * LANES)) {
                    let gather = match offsets.len() {
                        1 => gather::<1>,
                        2 => gather::<2>,
                        3 => gather::<3>,
                        4 => gather::<4>,
                        _ => gather::<TILE>,
                    };
                    gather(image, dz, places, self.channels, offsets, sums);
                }
            }
        }
        self.weights_in_patches(|at, in_patch| dw[at] += scratch.patches[in_patch]);
    }

    fn input_gradient(&self, weight: &[f32], dz: &[f32], places: &[u32], dx: &mut [f32], scratch: &mut Scratch) {
        let size = self.output();
        let (patch, positions) = (self.patch(), size / self.outputs);
        let offsets = self.offsets();
        scratch.patches.clear();
        scratch.patches.resize(self.outputs * patch, 0.0);
        let Scratch { patches, grad, .. } = scratch;
        self.weights_in_patches(|at, in_patch| patches[in_patch] = weight[at]);
        grad.resize(self.input() + 2 * LANES, 0.0);
        let images = dx.chunks_exact_mut(self.input()).zip(dz.chunks_exact(size)).zip(places.chunks_exact(size));
        for ((image, dz), places) in images {
            grad.fill(0.0);
            let outputs = dz.chunks_exact(positions).zip(places.chunks_exact(positions));
            for ((dz, places), patch) in outputs.zip(patches.chunks_exact(patch)) {
                for (offsets, weights) in offsets.chunks(TILE).zip(patch.chunks(TILE * LANES)) {
                    let scatter = match offsets.len() {
                        1 => scatter::<1>,
                        2 => scatter::<2>,
                        3 => scatter::<3>,
                        4 => scatter::<4>,
                        _ => scatter::<TILE>,
                    };
                    scatter(grad, dz, places, self.channels, offsets, weights);
                }
            }
            self.channels_first(grad, image);
        }
    }

    /// Where the vectors of a patch lie behind its first value, channels innermost.
    fn offsets(&self) -> Vec<usize> {
        let rows = (0..self.kernel).map(|ky| ky * self.width * self.channels);
        rows.flat_map(|row| (0..self.row_vectors()).map(move |v| row + v * LANES)).collect()
    }

    /// Calls `f(index in the weights, index in the patches)` for each weight.
    fn weights_in_patches(&self, mut f: impl FnMut(usize, usize)) {
        let (k, row) = (self.kernel, self.row_vectors() * LANES);
        for at in 0..self.weights() {
            let (kx, ky, c, o) = (at % k, at / k % k, at / k / k % self.channels, at / k / k / self.channels);
            f(at, o * self.patch() + ky * row + kx * self.channels + c);
        }
    }

    /// `[c][y][x]` → `[y][x][c]`.
    fn channels_last(&self, image: &[f32], out: &mut [f32]) {
        if self.channels == 1 {
            out[..image.len()].copy_from_slice(image);
            return;
        }
        for (c, plane) in image.chunks_exact(self.height * self.width).enumerate() {
            let out = out.chunks_exact_mut(self.channels);
            out.zip(plane).for_each(|(out, v)| out[c] = *v);
        }
    }

    /// `[y][x][c]` → `[c][y][x]`.
    fn channels_first(&self, grad: &[f32], out: &mut [f32]) {
        for (c, plane) in out.chunks_exact_mut(self.height * self.width).enumerate() {
            let grad = grad.chunks_exact(self.channels);
            plane.iter_mut().zip(grad).for_each(|(v, grad)| *v = grad[c]);
        }
    }
}

/// The maxima of two rows' 2×2 windows and where they are; of equal ones the first, as in PyTorch.
fn pool_row(upper: &[f32], lower: &[f32], first: u32, width: u32, out: &mut [f32], places: &mut [u32]) {
    let windows = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
    for (x, ((out, place), (&[a, b], &[c, d]))) in out.iter_mut().zip(places).zip(windows).enumerate() {
        let (upper, up) = if b > a { (b, 1) } else { (a, 0) };
        let (lower, low) = if d > c { (d, width + 1) } else { (c, width) };
        let (best, at) = if lower > upper { (lower, low) } else { (upper, up) };
        *out = best;
        *place = first + 2 * x as u32 + at;
    }
}

/// Adds to `sums` the vectors at these offsets of the patches at `places`, each times its `dz`.
fn gather<const B: usize>(
    image: &[f32],
    dz: &[f32],
    places: &[u32],
    channels: usize,
    offsets: &[usize],
    sums: &mut [f32],
) {
    let offsets: [usize; B] = std::array::from_fn(|b| offsets[b]);
    // Two sums of each, so that additions need not wait for one another.
    let mut all = [[[0.0; LANES]; B]; 2];
    let (pairs, rest) = dz.as_chunks::<2>();
    let (pair_places, rest_places) = places.as_chunks::<2>();
    for (dz, place) in pairs.iter().zip(pair_places) {
        add_patch(&mut all[0], &image[place[0] as usize * channels..], &offsets, dz[0]);
        add_patch(&mut all[1], &image[place[1] as usize * channels..], &offsets, dz[1]);
    }
    for (dz, place) in rest.iter().zip(rest_places) {
        add_patch(&mut all[0], &image[*place as usize * channels..], &offsets, *dz);
    }
    for (b, sums) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate().take(B) {
        sums.iter_mut().zip(all[0][b].iter().zip(&all[1][b])).for_each(|(sum, (x, y))| *sum += x + y);
    }
}

#[inline(always)]
fn add_patch<const B: usize>(sums: &mut [Lanes; B], patch: &[f32], offsets: &[usize; B], dz: f32) {
    for b in 0..B {
        fma(&mut sums[b], &load(patch, offsets[b]), dz);
    }
}

/// Adds to the patches of `grad` at `places` the weights at these offsets, each times its `dz`.
fn scatter<const B: usize>(
    grad: &mut [f32],
    dz: &[f32],
    places: &[u32],
    channels: usize,
    offsets: &[usize],
    weights: &[f32],
) {
    let offsets: [usize; B] = std::array::from_fn(|b| offsets[b]);
    let weights: [Lanes; B] = std::array::from_fn(|b| load(weights, b * LANES));
    for (dz, place) in dz.iter().zip(places) {
        let patch = &mut grad[*place as usize * channels..];
        for (offset, weights) in offsets.iter().zip(&weights) {
            let mut lanes = load(patch, *offset);
            fma(&mut lanes, weights, *dz);
            patch[*offset..*offset + LANES].copy_from_slice(&lanes);
        }
    }
}

/// Adds to the sums of `O` outputs at `V` vectors of positions what a row of their kernels gives.
#[inline(always)]
fn row_of_kernel<const K: usize, const V: usize, const O: usize>(
    kernel: &[f32],
    row: &[f32],
    sums: &mut [[Lanes; O]; V],
) {
    for (kx, taps) in kernel.as_chunks::<O>().0.iter().enumerate().take(K) {
        let x: [Lanes; V] = std::array::from_fn(|v| load(row, v * LANES + kx));
        for o in 0..O {
            for v in 0..V {
                fma(&mut sums[v][o], &x[v], taps[o]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;
    use crate::{ops, random};

    fn values(len: usize, purpose: &str) -> Vec<f32> {
        random::normal_vec(len, &mut random::stream(3, purpose))
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
    }

    /// Output and gradients of this layer beside those of candle's operations.
    fn compare(conv: &Conv, n: usize, scratch: &mut Scratch) {
        let Conv { channels, height, width, outputs, kernel, pool } = *conv;
        let (x, weight) = (values(n * conv.input(), "x"), values(conv.weights(), "w"));
        let weight: Vec<f32> = weight.iter().map(|v| 0.2 * v).collect();
        let bias = values(outputs, "b");
        let var = |values: &[f32], shape: &[usize]| Var::from_slice(values, shape, &Device::Cpu).unwrap();
        let vars = [
            var(&x, &[n, channels, height, width]),
            var(&weight, &[outputs, channels, kernel, kernel]),
            var(&bias, &[outputs]),
        ];
        let theirs = ops::conv2d(&vars[0], &vars[1], &vars[2], 1, 0).unwrap();
        let theirs = if pool { ops::max_pool2(&theirs).unwrap() } else { theirs }.tanh().unwrap();
        let (mut y, mut places) = (vec![0.0; n * conv.output()], vec![0; n * conv.output()]);
        conv.forward([&weight, &bias], &x, &mut y, &mut places, scratch);
        assert!(difference(&y, &flat(&theirs)) < 1e-5, "{conv:?}");

        let upper = values(y.len(), "g");
        let weighting = Tensor::from_slice(&upper, theirs.dims(), &Device::Cpu).unwrap();
        let grads = (theirs * weighting).unwrap().sum_all().unwrap().backward().unwrap();
        let dz: Vec<f32> = upper.iter().zip(&y).map(|(g, y)| g * (1.0 - y * y)).collect();
        let (mut dw, mut db, mut dx) = (vec![0.0; weight.len()], vec![0.0; outputs], vec![0.0; x.len()]);
        conv.backward(&weight, [&x, &dz], &places, [&mut dw, &mut db], Some(&mut dx), scratch);
        for (var, own) in vars.iter().zip([&dx, &dw, &db]) {
            assert!(difference(own, &flat(grads.get(var).unwrap())) < 1e-4, "{conv:?}");
        }
    }

    #[test]
    fn layers_of_all_sizes_equal_candles() {
        let mut scratch = Scratch::default();
        for kernel in KERNELS {
            for (outputs, channels) in [(1, 1), (2, 3), (3, 2), (4, 6), (6, 8), (7, 5), (8, 1), (10, 11)] {
                // Rows of less than a vector, of one, of three, and of some and a part.
                for (rows, columns, pool) in [(3, 3, false), (4, 8, true), (2, 24, true), (6, 18, true), (1, 13, false)]
                {
                    let (height, width) = (rows + kernel - 1, columns + kernel - 1);
                    compare(&Conv { channels, height, width, outputs, kernel, pool }, 3, &mut scratch);
                }
            }
        }
    }
}
