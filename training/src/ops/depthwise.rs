//! Depthwise convolution of many models at once: each channel by a kernel of its own.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor, bail};
use kernels::sum;

use super::conv::{Of, Sizes, gradients, slices};
use super::native;
use crate::error::Result;

/// Each channel of `m` models' images convolved alone: `x [m, n, c, h, w]`, `weight [m, c, 1, k, k]`, `bias [m, c]` →
/// `[m, n, c, h', w']`.
///
/// # Errors
/// When shapes do not fit.
pub fn depthwise_models(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
    let (_, n, c, ..) = x.dims5()?;
    let planes = planes(x, weight, bias, stride, pad)?;
    if !x.device().is_cpu() {
        return Ok(native::depthwise_models(x, weight, bias, &planes)?);
    }
    let op = Depthwise { planes, n, c };
    Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

/// Sizes of one channel's convolution: each channel is an image of one channel, and has a model of its own.
pub(super) fn planes(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Sizes> {
    let (m, n, c, h, w) = x.dims5()?;
    if weight.dims()[..3] != [m, c, 1] || bias.dims() != [m, c] {
        let text = format!("a depthwise convolution of {:?} by {:?}", x.dims(), weight.dims());
        return Err(candle_core::Error::Msg(text).into());
    }
    let (kernel, one) = (weight.reshape((m * c, 1, 1, weight.dim(3)?, weight.dim(4)?))?, bias.reshape((m * c, 1))?);
    Ok(Sizes::new(&x.reshape((m * c, n, 1, h, w))?, &kernel, &one, stride, pad)?)
}

#[derive(Debug, Clone, Copy)]
struct Depthwise {
    /// Sizes of one channel's convolution.
    planes: Sizes,
    n: usize,
    c: usize,
}

impl Depthwise {
    /// Kernel of the plane `i` of `[m, n, c]`, as an index into `[m, c]`.
    fn kernel(&self, i: usize) -> usize {
        i / (self.n * self.c) * self.c + i % self.c
    }

    fn taps(&self) -> usize {
        self.planes.patch()
    }

    /// Calls `f(tap, first input, first output, run)` for each horizontal run of one plane.
    fn runs(&self, mut f: impl FnMut(usize, usize, usize, usize)) {
        let positions = self.planes.positions();
        self.planes.runs(|from, to, run| f(to / positions, from, to % positions, run));
    }
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        "depthwise_models"
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
        let (s, taps) = (&self.planes, self.taps());
        let Ok((m, n, c, ..)) = xl.shape().dims5() else { bail!("a depthwise convolution of {:?}", xl.shape()) };
        let mut y = vec![0f32; m * n * c * s.positions()];
        let planes = x.chunks_exact(s.image()).zip(y.chunks_exact_mut(s.positions()));
        for (i, (image, out)) in planes.enumerate() {
            let kernel = &w[self.kernel(i) * taps..][..taps];
            out.fill(b[self.kernel(i)]);
            self.runs(|tap, from, to, run| {
                let out = &mut out[to..to + run];
                if s.stride == 1 {
                    out.iter_mut().zip(&image[from..from + run]).for_each(|(y, x)| *y += kernel[tap] * x);
                } else {
                    out.iter_mut().zip(image[from..].iter().step_by(s.stride)).for_each(|(y, x)| *y += kernel[tap] * x);
                }
            });
        }
        Ok((CpuStorage::F32(y), Shape::from((m, n, c, s.oh, s.ow))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        gradients([x, w, b], grad, |of| Gradient(*self, of))
    }
}

struct Gradient(Depthwise, Of);

impl CustomOp3 for Gradient {
    fn name(&self) -> &'static str {
        "depthwise_models_gradient"
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
        let out = match self.1 {
            Of::Input => self.0.input_gradient(x.len(), w, g),
            Of::Weight => self.0.weight_gradient(x, w.len(), g),
            Of::Bias => self.0.bias_gradient(w.len() / self.0.taps(), g),
        };
        let len = out.len();
        Ok((CpuStorage::F32(out), Shape::from(len)))
    }
}

impl Depthwise {
    fn input_gradient(&self, len: usize, w: &[f32], g: &[f32]) -> Vec<f32> {
        let (s, taps) = (&self.planes, self.taps());
        let mut dx = vec![0f32; len];
        for (i, (image, grad)) in dx.chunks_exact_mut(s.image()).zip(g.chunks_exact(s.positions())).enumerate() {
            let kernel = &w[self.kernel(i) * taps..][..taps];
            self.runs(|tap, to, from, run| {
                let grad = &grad[from..from + run];
                if s.stride == 1 {
                    image[to..to + run].iter_mut().zip(grad).for_each(|(x, g)| *x += kernel[tap] * g);
                } else {
                    image[to..].iter_mut().step_by(s.stride).zip(grad).for_each(|(x, g)| *x += kernel[tap] * g);
                }
            });
        }
        dx
    }

    fn weight_gradient(&self, x: &[f32], len: usize, g: &[f32]) -> Vec<f32> {
        let (s, taps) = (&self.planes, self.taps());
        let mut dw = vec![0f32; len];
        for (i, (image, grad)) in x.chunks_exact(s.image()).zip(g.chunks_exact(s.positions())).enumerate() {
            let kernel = &mut dw[self.kernel(i) * taps..][..taps];
            self.runs(|tap, from, to, run| {
                let grad = &grad[to..to + run];
                kernel[tap] += match s.stride {
                    1 => sum(grad, &image[from..from + run], |g, x| g * x) as f32,
                    _ => grad.iter().zip(image[from..].iter().step_by(s.stride)).map(|(g, x)| g * x).sum(),
                };
            });
        }
        dw
    }

    fn bias_gradient(&self, len: usize, g: &[f32]) -> Vec<f32> {
        let mut db = vec![0f32; len];
        for (i, grad) in g.chunks_exact(self.planes.positions()).enumerate() {
            db[self.kernel(i)] += sum(grad, &[], |g, _| g) as f32;
        }
        db
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_gradients, max_difference, random};
    use super::*;

    #[test]
    fn depthwise_equals_candles_grouped_convolution() {
        for (k, stride, pad) in [(3, 1, 1), (5, 1, 2), (3, 2, 1), (5, 2, 2)] {
            let (x, w) = (random(&[2, 2, 3, 9, 7], "x"), random(&[2, 3, 1, k, k], "w"));
            let b = random(&[2, 3], "b");
            let ours = depthwise_models(&x, &w, &b, stride, pad).unwrap();
            for model in 0..2 {
                let theirs = x.get(model).unwrap().conv2d(&w.get(model).unwrap(), pad, stride, 1, 3).unwrap();
                let bias = b.get(model).unwrap().reshape((1, 3, 1, 1)).unwrap();
                let theirs = theirs.broadcast_add(&bias).unwrap();
                assert!(max_difference(&ours.get(model).unwrap(), &theirs) < 1e-4, "k {k} stride {stride}");
            }
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for (k, stride, pad) in [(3, 1, 1), (3, 2, 1), (5, 2, 2)] {
            let shapes: [&[usize]; 3] = [&[2, 2, 2, 5, 6], &[2, 2, 1, k, k], &[2, 2]];
            check_gradients(&shapes, |v| depthwise_models(&v[0], &v[1], &v[2], stride, pad).unwrap());
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let (x, b) = (random(&[1, 1, 2, 3, 3], "x"), random(&[1, 2], "b"));
        assert!(depthwise_models(&x, &random(&[1, 2, 2, 3, 3], "w"), &b, 1, 1).is_err());
        assert!(depthwise_models(&x, &random(&[1, 2, 1, 5, 5], "w"), &b, 1, 0).is_err());
    }
}
