//! Layer normalisation of many models at once.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor, bail};
use kernels::sum;

use super::{f32_slice, native, norm_gradients};
use crate::error::Result;

/// ε of layer normalisation, as in torchvision's vision transformers.
pub const LAYER_NORM_EPSILON: f64 = 1e-6;

/// Normalises each row over the last dimension: `x [m, …, d]`, `scale` and `shift` `[m, d]` → as `x`.
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm_models(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let sizes = match x.dims() {
        [m, rows @ .., d] if *d > 0 && scale.dims() == [*m, *d] && shift.dims() == [*m, *d] => {
            Sizes { m: *m, rows: rows.iter().product(), d: *d }
        }
        dims => {
            let text = format!("a normalisation of {dims:?} by {:?} and {:?}", scale.dims(), shift.dims());
            return Err(candle_core::Error::Msg(text).into());
        }
    };
    if !x.device().is_cpu() {
        return Ok(native::layer_norm_models(x, scale, shift)?);
    }
    Ok(x.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, LayerNorm(sizes))?)
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    m: usize,
    /// Rows of a model.
    rows: usize,
    d: usize,
}

impl Sizes {
    /// Mean and 1/deviation of a row.
    fn statistics(self, row: &[f32]) -> (f32, f32) {
        let d = self.d as f64;
        let mean = (sum(row, &[], |v, _| v) / d) as f32;
        let variance = sum(row, &[], |v, _| (v - mean) * (v - mean)) / d;
        (mean, (1.0 / (variance + LAYER_NORM_EPSILON).sqrt()) as f32)
    }

    /// Range of the model of a row in `[m, d]`.
    fn model(self, row: usize) -> std::ops::Range<usize> {
        let start = row / self.rows * self.d;
        start..start + self.d
    }
}

struct LayerNorm(Sizes);

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm_models"
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
        for (i, (row, out)) in x.chunks_exact(s.d).zip(y.chunks_exact_mut(s.d)).enumerate() {
            let (mean, inverse) = s.statistics(row);
            let params = scale[s.model(i)].iter().zip(&shift[s.model(i)]);
            for ((y, x), (scale, shift)) in out.iter_mut().zip(row).zip(params) {
                *y = (x - mean) * inverse * scale + shift;
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
        "layer_norm_input_gradient"
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
        let mut scaled = vec![0f32; s.d];
        for (i, (row, out)) in x.chunks_exact(s.d).zip(dx.chunks_exact_mut(s.d)).enumerate() {
            let (mean, inverse) = s.statistics(row);
            let grad = g[i * s.d..(i + 1) * s.d].iter().zip(&scale[s.model(i)]);
            scaled.iter_mut().zip(grad).for_each(|(t, (g, scale))| *t = g * scale);
            let shift = (sum(&scaled, &[], |t, _| t) / s.d as f64) as f32;
            let dot = (sum(&scaled, row, |t, x| t * (x - mean) * inverse) / s.d as f64) as f32;
            for (dx, (t, x)) in out.iter_mut().zip(scaled.iter().zip(row)) {
                *dx = inverse * (t - shift - (x - mean) * inverse * dot);
            }
        }
        Ok((CpuStorage::F32(dx), xl.shape().clone()))
    }
}

struct ParamGradient(Sizes);

impl CustomOp3 for ParamGradient {
    fn name(&self) -> &'static str {
        "layer_norm_parameter_gradient"
    }

    /// Gradients of scale and shift, `[2, m, d]`.
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
        if g.len() != x.len() {
            bail!("a gradient of {} values for {}", g.len(), x.len())
        }
        let mut scale = vec![0f32; s.m * s.d];
        let mut shift = vec![0f32; s.m * s.d];
        for (i, (row, grad)) in x.chunks_exact(s.d).zip(g.chunks_exact(s.d)).enumerate() {
            let (mean, inverse) = s.statistics(row);
            let sums = scale[s.model(i)].iter_mut().zip(&mut shift[s.model(i)]);
            for ((scale, shift), (g, x)) in sums.zip(grad.iter().zip(row)) {
                *scale += g * (x - mean) * inverse;
                *shift += g;
            }
        }
        scale.extend(shift);
        Ok((CpuStorage::F32(scale), Shape::from((2, s.m, s.d))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_gradients, max_difference, random};
    use super::*;

    #[test]
    fn gradients_equal_finite_differences() {
        check_gradients(&[&[2, 2, 3, 5], &[2, 5], &[2, 5]], |v| layer_norm_models(&v[0], &v[1], &v[2]).unwrap());
    }

    #[test]
    fn rows_are_normalised_with_their_models_parameters() {
        let x = random(&[2, 3, 4, 9], "x").affine(3.0, 1.0).unwrap();
        let (scale, shift) = (random(&[2, 9], "scale"), random(&[2, 9], "shift"));
        let ours = layer_norm_models(&x, &scale, &shift).unwrap();
        let centred = x.broadcast_sub(&x.mean_keepdim(3).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(3).unwrap();
        let unit = centred.broadcast_div(&variance.affine(1.0, LAYER_NORM_EPSILON).unwrap().sqrt().unwrap()).unwrap();
        let of = |t: &Tensor| t.reshape((2, 1, 1, 9)).unwrap();
        let theirs = unit.broadcast_mul(&of(&scale)).unwrap().broadcast_add(&of(&shift)).unwrap();
        assert!(max_difference(&ours, &theirs) < 1e-4);
        assert!(layer_norm_models(&x, &scale, &random(&[2, 8], "shift")).is_err());
    }
}
