//! Batch normalisation of many models at once: one pass forwards and one backwards over each channel, where candle's own
//! operations would write a tensor for each term.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor, bail};
use kernels::sum;
use weights::layout::NORM_EPSILON;

use super::{f32_slice, native, norm_gradients};
use crate::error::Result;

/// Normalises each channel by its mean and variance over examples and positions: `x [m, n, c, …]`, `scale` and `shift`
/// `[m, c]` → as `x`.
///
/// # Errors
/// When shapes do not fit.
pub fn batch_norm(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let op = Norm(Sizes::new(x, scale, shift)?);
    if !x.device().is_cpu() {
        return Ok(native::batch_norm(x, scale, shift)?);
    }
    Ok(x.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, op)?)
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    m: usize,
    n: usize,
    c: usize,
    /// Positions of an image.
    p: usize,
}

impl Sizes {
    fn new(x: &Tensor, scale: &Tensor, shift: &Tensor) -> candle_core::Result<Self> {
        let [m, n, c, image @ ..] = x.dims() else { bail!("a normalisation of {:?}", x.dims()) };
        let (m, n, c, p) = (*m, *n, *c, image.iter().product::<usize>());
        if scale.dims() != [m, c] || shift.dims() != [m, c] || n * p == 0 {
            bail!("a normalisation of {:?} by {:?} and {:?}", x.dims(), scale.dims(), shift.dims())
        }
        Ok(Self { m, n, c, p })
    }

    /// Values that a channel's statistics are over.
    fn count(&self) -> f64 {
        (self.n * self.p) as f64
    }

    /// Where the images of a channel (`model · c + channel`) begin.
    fn planes(self, channel: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (model, c) = (channel / self.c, channel % self.c);
        (0..self.n).map(move |i| {
            let start = ((model * self.n + i) * self.c + c) * self.p;
            start..start + self.p
        })
    }

    /// Mean and 1/deviation of a channel.
    fn statistics(self, x: &[f32], channel: usize) -> (f32, f32) {
        let mean = self.planes(channel).map(|r| sum(&x[r], &[], |v, _| v)).sum::<f64>() / self.count();
        let mean = mean as f32;
        let square = |v: f32| (v - mean) * (v - mean);
        let variance = self.planes(channel).map(|r| sum(&x[r], &[], |v, _| square(v))).sum::<f64>() / self.count();
        (mean, (1.0 / (variance + NORM_EPSILON).sqrt()) as f32)
    }

    /// Gradients of a channel's shift and scale.
    fn sums(self, x: &[f32], g: &[f32], channel: usize, (mean, inverse): (f32, f32)) -> (f64, f64) {
        self.planes(channel).fold((0.0, 0.0), |(shift, scale), r| {
            let dot = sum(&g[r.clone()], &x[r.clone()], |g, x| g * (x - mean) * inverse);
            (shift + sum(&g[r], &[], |g, _| g), scale + dot)
        })
    }
}

struct Norm(Sizes);

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (s, x) = (self.0, f32_slice(x, xl)?);
        let (scale, shift) = (f32_slice(scale, scale_layout)?, f32_slice(shift, shift_layout)?);
        let mut y = vec![0f32; x.len()];
        for channel in 0..s.m * s.c {
            let (mean, inverse) = s.statistics(x, channel);
            let factor = inverse * scale[channel];
            for range in s.planes(channel) {
                let values = y[range.clone()].iter_mut().zip(&x[range]);
                values.for_each(|(y, x)| *y = (x - mean) * factor + shift[channel]);
            }
        }
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        norm_gradients([x, scale, shift], grad, &InputGradient(self.0), &ParamGradient(self.0))
    }
}

struct InputGradient(Sizes);

impl CustomOp3 for InputGradient {
    fn name(&self) -> &'static str {
        "batch_norm_input_gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        g: &CpuStorage,
        gl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (s, x, g) = (self.0, f32_slice(x, xl)?, f32_slice(g, gl)?);
        let scale = f32_slice(scale, scale_layout)?;
        let mut dx = vec![0f32; x.len()];
        for (channel, scale) in scale.iter().enumerate() {
            let (mean, inverse) = s.statistics(x, channel);
            let (shift, dot) = s.sums(x, g, channel, (mean, inverse));
            let (shift, dot) = ((shift / s.count()) as f32, (dot / s.count()) as f32);
            let factor = inverse * scale;
            for range in s.planes(channel) {
                let values = dx[range.clone()].iter_mut().zip(g[range.clone()].iter().zip(&x[range]));
                values.for_each(|(dx, (g, x))| *dx = factor * (g - shift - (x - mean) * inverse * dot));
            }
        }
        Ok((CpuStorage::F32(dx), xl.shape().clone()))
    }
}

struct ParamGradient(Sizes);

impl CustomOp3 for ParamGradient {
    fn name(&self) -> &'static str {
        "batch_norm_parameter_gradient"
    }

    /// Gradients of scale and shift, `[2, m, c]`.
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        _: &CpuStorage,
        _: &Layout,
        g: &CpuStorage,
        gl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (s, x, g) = (self.0, f32_slice(x, xl)?, f32_slice(g, gl)?);
        let channels = s.m * s.c;
        let mut out = vec![0f32; 2 * channels];
        for channel in 0..channels {
            let (shift, scale) = s.sums(x, g, channel, s.statistics(x, channel));
            (out[channel], out[channels + channel]) = (scale as f32, shift as f32);
        }
        Ok((CpuStorage::F32(out), Shape::from((2, s.m, s.c))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_gradients, max_difference, random};
    use super::*;

    #[test]
    fn gradients_equal_finite_differences() {
        check_gradients(&[&[2, 3, 2, 2, 3], &[2, 2], &[2, 2]], |v| batch_norm(&v[0], &v[1], &v[2]).unwrap());
    }

    #[test]
    fn channels_are_normalised_over_examples_and_positions() {
        let x = random(&[2, 5, 3, 4, 4], "x").affine(3.0, 1.0).unwrap();
        let (scale, shift) = (random(&[2, 3], "scale"), random(&[2, 3], "shift"));
        let y = batch_norm(&x, &scale, &shift).unwrap();
        let rows = x.transpose(1, 2).unwrap().contiguous().unwrap().flatten_from(2).unwrap();
        let centred = rows.broadcast_sub(&rows.mean_keepdim(2).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(2).unwrap();
        let std = variance.affine(1.0, NORM_EPSILON).unwrap().sqrt().unwrap();
        let theirs = centred.broadcast_div(&std).unwrap().broadcast_mul(&scale.unsqueeze(2).unwrap()).unwrap();
        let theirs = theirs.broadcast_add(&shift.unsqueeze(2).unwrap()).unwrap();
        let ours = y.transpose(1, 2).unwrap().contiguous().unwrap().flatten_from(2).unwrap();
        assert!(max_difference(&ours, &theirs) < 1e-4);
        assert!(batch_norm(&x, &scale, &random(&[3, 3], "shift")).is_err());
    }
}
