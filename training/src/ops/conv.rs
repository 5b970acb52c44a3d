//! Convolution of many models at once, by im2col and one matrix product an image. Stock candle computes the gradient
//! through a transposed convolution (4–5 times slower) and knows no model axis; patch matrices live in one small buffer
//! here instead of in the graph, and the input's gradient is computed only where it is needed.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor, bail};
use kernels::{View, product};

use super::{f32_slice, native};
use crate::error::Result;

/// 2-D convolution: `x [n, c, h, w]`, `weight [o, c, k, k]`, `bias [o]` → `[n, o, h', w']` of the bias's type. On a GPU `x`
/// and `weight` may be bf16.
///
/// # Errors
/// When shapes do not fit.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let y = x.conv2d(weight, pad, stride, 1, 1)?.to_dtype(bias.dtype())?;
        return Ok(y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?);
    }
    let y = conv2d_models(&x.unsqueeze(0)?, &weight.unsqueeze(0)?, &bias.unsqueeze(0)?, stride, pad)?;
    Ok(y.squeeze(0)?)
}

/// The same for `m` models: `x [m, n, c, h, w]`, `weight [m, o, c, k, k]`, `bias [m, o]` → `[m, n, o, h', w']`.
///
/// # Errors
/// When shapes do not fit.
pub fn conv2d_models(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
    let sizes = Sizes::new(x, weight, bias, stride, pad)?;
    if !x.device().is_cpu() {
        return Ok(native::conv2d_models(x, weight, bias, &sizes)?);
    }
    let op = Conv(sizes);
    Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) m: usize,
    pub(super) n: usize,
    c: usize,
    h: usize,
    w: usize,
    pub(super) o: usize,
    pub(super) k: usize,
    pub(super) stride: usize,
    pub(super) pad: usize,
    pub(super) oh: usize,
    pub(super) ow: usize,
}

impl Sizes {
    pub(super) fn new(
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        stride: usize,
        pad: usize,
    ) -> candle_core::Result<Self> {
        let (m, n, c, h, w) = x.dims5()?;
        let (wm, o, wc, k, kw) = weight.dims5()?;
        if (wm, wc, kw) != (m, c, k) || bias.dims() != [m, o] || k == 0 || stride == 0 {
            bail!("a convolution of {:?} by {:?} with bias {:?}", x.dims(), weight.dims(), bias.dims())
        }
        if h + 2 * pad < k || w + 2 * pad < k {
            bail!("a {k}×{k} kernel does not fit an image of {h}×{w}")
        }
        let (oh, ow) = ((h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1);
        Ok(Self { m, n, c, h, w, o, k, stride, pad, oh, ow })
    }

    pub(super) fn patch(&self) -> usize {
        self.c * self.k * self.k
    }

    pub(super) fn positions(&self) -> usize {
        self.oh * self.ow
    }

    pub(super) fn image(&self) -> usize {
        self.c * self.h * self.w
    }

    fn weights(&self) -> usize {
        self.o * self.patch()
    }

    fn output(&self) -> usize {
        self.o * self.positions()
    }

    /// Calls `f(index in the image, index in the patch matrix [patch × positions], run)` for each horizontal run of
    /// positions that one kernel tap reads; neighbours in the image are `stride` apart.
    pub(super) fn runs(&self, mut f: impl FnMut(usize, usize, usize)) {
        for tap in 0..self.patch() {
            let (c, ky, kx) = (tap / (self.k * self.k), tap / self.k % self.k, tap % self.k);
            // Output columns whose input column ox · stride + kx − pad lies inside the image.
            let from = self.pad.saturating_sub(kx).div_ceil(self.stride);
            let to = (self.w + self.pad).saturating_sub(kx).div_ceil(self.stride).min(self.ow);
            if from >= to {
                continue;
            }
            for oy in 0..self.oh {
                let y = oy * self.stride + ky;
                if y < self.pad || y - self.pad >= self.h {
                    continue;
                }
                let image = (c * self.h + y - self.pad) * self.w + from * self.stride + kx - self.pad;
                f(image, tap * self.positions() + oy * self.ow + from, to - from);
            }
        }
    }

    /// Fills the patch matrix `[patch × positions]` of one image; positions outside the image stay as they are (zero).
    fn im2col(&self, image: &[f32], columns: &mut [f32]) {
        self.runs(|from, to, run| {
            if self.stride == 1 {
                columns[to..to + run].copy_from_slice(&image[from..from + run]);
            } else {
                let source = image[from..].iter().step_by(self.stride);
                columns[to..to + run].iter_mut().zip(source).for_each(|(c, v)| *c = *v);
            }
        });
    }

    /// Adds a patch matrix back to the image that it came from.
    fn col2im(&self, columns: &[f32], image: &mut [f32]) {
        self.runs(|to, from, run| {
            let columns = &columns[from..from + run];
            if self.stride == 1 {
                // The common case, written so that it vectorises.
                image[to..to + run].iter_mut().zip(columns).for_each(|(v, c)| *v += c);
            } else {
                image[to..].iter_mut().step_by(self.stride).zip(columns).for_each(|(v, c)| *v += c);
            }
        });
    }

    fn model<'a>(&self, all: &'a [f32], model: usize, len: usize) -> &'a [f32] {
        &all[model * len..(model + 1) * len]
    }
}

struct Conv(Sizes);

pub(super) type Three<'a> = [(&'a CpuStorage, &'a Layout); 3];

pub(super) fn slices(inputs: Three<'_>) -> candle_core::Result<[&[f32]; 3]> {
    let [a, b, c] = inputs;
    Ok([f32_slice(a.0, a.1)?, f32_slice(b.0, b.1)?, f32_slice(c.0, c.1)?])
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d_models"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let [x, w, b] = slices([(x, xl), (w, wl), (b, bl)])?;
        let s = &self.0;
        let mut columns = vec![0f32; s.patch() * s.positions()];
        let mut y = vec![0f32; s.m * s.n * s.output()];
        for (i, (image, out)) in x.chunks_exact(s.image()).zip(y.chunks_exact_mut(s.output())).enumerate() {
            let model = i / s.n;
            s.im2col(image, &mut columns);
            for (row, bias) in out.chunks_exact_mut(s.positions()).zip(s.model(b, model, s.o)) {
                row.fill(*bias);
            }
            let weight = View::new(s.model(w, model, s.weights()), s.o, s.patch());
            product(weight, View::new(&columns, s.patch(), s.positions()), out, s.positions(), 1.0, true);
        }
        Ok((CpuStorage::F32(y), Shape::from((s.m, s.n, s.o, s.oh, s.ow))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        gradients([x, w, b], grad, |of| Gradient(self.0, of))
    }
}

/// Gradients of a convolution's input, weight and bias, each where it is wanted, as the operation of input, weight and
/// the output's gradient that `of` gives.
pub(super) fn gradients<O: CustomOp3>(
    [x, w, b]: [&Tensor; 3],
    grad: &Tensor,
    of: impl Fn(Of) -> O,
) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let grad = grad.contiguous()?;
    let wanted = |t: &Tensor, which: Of| -> candle_core::Result<Option<Tensor>> {
        if !t.track_op() {
            return Ok(None);
        }
        Ok(Some(x.apply_op3_no_bwd(w, &grad, &of(which))?.reshape(t.shape())?))
    };
    Ok((wanted(x, Of::Input)?, wanted(w, Of::Weight)?, wanted(b, Of::Bias)?))
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    Input,
    Weight,
    Bias,
}

struct Gradient(Sizes, Of);

impl CustomOp3 for Gradient {
    fn name(&self) -> &'static str {
        "conv2d_models_gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        g: &CpuStorage,
        gl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let [x, w, g] = slices([(x, xl), (w, wl), (g, gl)])?;
        let s = &self.0;
        let out = match self.1 {
            Of::Input => input_gradient(s, w, g),
            Of::Weight => weight_gradient(s, x, g),
            Of::Bias => bias_gradient(s, g),
        };
        let len = out.len();
        Ok((CpuStorage::F32(out), Shape::from(len)))
    }
}

fn input_gradient(s: &Sizes, w: &[f32], g: &[f32]) -> Vec<f32> {
    let mut columns = vec![0f32; s.patch() * s.positions()];
    let mut dx = vec![0f32; s.m * s.n * s.image()];
    for (i, (grad, image)) in g.chunks_exact(s.output()).zip(dx.chunks_exact_mut(s.image())).enumerate() {
        let transposed = View::new(s.model(w, i / s.n, s.weights()), s.o, s.patch()).t();
        product(transposed, View::new(grad, s.o, s.positions()), &mut columns, s.positions(), 1.0, false);
        s.col2im(&columns, image);
    }
    dx
}

fn weight_gradient(s: &Sizes, x: &[f32], g: &[f32]) -> Vec<f32> {
    let mut columns = vec![0f32; s.patch() * s.positions()];
    let mut dw = vec![0f32; s.m * s.weights()];
    for (i, (image, grad)) in x.chunks_exact(s.image()).zip(g.chunks_exact(s.output())).enumerate() {
        s.im2col(image, &mut columns);
        let model = i / s.n;
        let out = &mut dw[model * s.weights()..(model + 1) * s.weights()];
        let transposed = View::new(&columns, s.patch(), s.positions()).t();
        product(View::new(grad, s.o, s.positions()), transposed, out, s.patch(), 1.0, true);
    }
    dw
}

fn bias_gradient(s: &Sizes, g: &[f32]) -> Vec<f32> {
    let mut db = vec![0f32; s.m * s.o];
    for (i, grad) in g.chunks_exact(s.output()).enumerate() {
        let out = &mut db[i / s.n * s.o..(i / s.n + 1) * s.o];
        for (sum, row) in out.iter_mut().zip(grad.chunks_exact(s.positions())) {
            *sum += row.iter().sum::<f32>();
        }
    }
    db
}

#[cfg(test)]
mod tests {
    use super::super::tests::{max_difference, random};
    use super::*;
    use candle_core::Var;

    #[test]
    fn convolution_and_gradients_equal_candles_own() {
        for (k, stride, pad) in [(3, 1, 1), (5, 1, 0), (3, 2, 1), (1, 1, 0), (5, 1, 4), (2, 3, 0)] {
            let x = Var::from_tensor(&random(&[2, 3, 9, 9], "x")).unwrap();
            let w = Var::from_tensor(&random(&[4, 3, k, k], "w")).unwrap();
            let b = Var::from_tensor(&random(&[4], "b")).unwrap();
            let ours = conv2d(&x, &w, &b, stride, pad).unwrap();
            let theirs = x.conv2d(&w, pad, stride, 1, 1).unwrap();
            let theirs = theirs.broadcast_add(&b.reshape((1, 4, 1, 1)).unwrap()).unwrap();
            assert!(max_difference(&ours, &theirs) < 1e-4, "k {k} stride {stride} pad {pad}");
            let weighting = random(ours.dims(), "g");
            let grad = |y: &Tensor| (y * &weighting).unwrap().sum_all().unwrap().backward().unwrap();
            let ours = grad(&ours);
            if stride == 3 {
                // candle's own gradient does not know strides that leave a rest; finite differences do below.
                continue;
            }
            let theirs = grad(&theirs);
            for v in [&x, &w, &b] {
                assert!(max_difference(ours.get(v).unwrap(), theirs.get(v).unwrap()) < 1e-3, "k {k} stride {stride}");
            }
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let shapes: [&[usize]; 3] = [&[2, 2, 2, 5, 6], &[2, 3, 2, 2, 2], &[2, 3]];
        let vars: Vec<Var> =
            shapes.iter().enumerate().map(|(i, s)| Var::from_tensor(&random(s, &format!("v{i}"))).unwrap()).collect();
        let value = |v: &[Tensor]| {
            let y = conv2d_models(&v[0], &v[1], &v[2], 3, 1).unwrap();
            let weighting = random(y.dims(), "g");
            (y * weighting).unwrap().sum_all().unwrap()
        };
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let grads = value(&tensors).backward().unwrap();
        for (i, var) in vars.iter().enumerate() {
            let analytic: Vec<f32> = grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let flat: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
            for at in (0..flat.len()).step_by(7) {
                let moved = |by: f32| {
                    let mut flat = flat.clone();
                    flat[at] += by;
                    let mut v = tensors.clone();
                    v[i] = Tensor::from_vec(flat, shapes[i], var.device()).unwrap();
                    value(&v).to_scalar::<f32>().unwrap()
                };
                let numeric = (moved(0.5) - moved(-0.5)) / 1.0;
                assert!((numeric - analytic[at]).abs() < 1e-2, "input {i} at {at}: {numeric} {}", analytic[at]);
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let (x, w, b) = (random(&[1, 1, 3, 3], "x"), random(&[1, 1, 5, 5], "w"), random(&[1], "b"));
        assert!(conv2d(&x, &w, &b, 1, 0).is_err());
        assert!(conv2d(&x, &random(&[1, 2, 3, 3], "w"), &b, 1, 0).is_err());
    }
}
