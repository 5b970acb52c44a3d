//! Operations that candle's CPU backend does slowly or not at all. On other devices they are candle's own: `native`.

mod conv;
mod depthwise;
mod known;
mod layer_norm;
mod native;
mod norm;
mod pointwise;
mod pool;

pub use conv::{conv2d, conv2d_models};
pub use depthwise::depthwise_models;
pub use known::known;
pub use layer_norm::{LAYER_NORM_EPSILON, layer_norm_models};
pub use norm::batch_norm;
pub use pointwise::{hard_sigmoid, hard_swish};
pub use pool::max_pool2;

use candle_core::{CpuStorage, CustomOp3, Layout, Tensor, bail};

/// The values of a contiguous f32 tensor.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("the operation needs a contiguous tensor"),
    }
}

/// Gradients of a normalisation's input, scale and shift, each where it is wanted: `input` gives that of the input, `params`
/// those of scale and shift one after the other, of input, scale and the output's gradient.
fn norm_gradients(
    [x, scale, shift]: [&Tensor; 3],
    grad: &Tensor,
    input: &impl CustomOp3,
    params: &impl CustomOp3,
) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let grad = grad.contiguous()?;
    let input = x.track_op().then(|| x.apply_op3_no_bwd(scale, &grad, input)).transpose()?;
    if !scale.track_op() && !shift.track_op() {
        return Ok((input, None, None));
    }
    let both = x.apply_op3_no_bwd(scale, &grad, params)?;
    Ok((input, Some(both.get(0)?), Some(both.get(1)?)))
}

#[cfg(test)]
mod tests {
    use crate::random;
    use candle_core::{Device, Tensor, Var};

    /// The gradients of a weighted sum of what `f` gives for inputs of these shapes, beside central differences.
    pub(super) fn check_gradients(shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Tensor) {
        let vars: Vec<Var> =
            shapes.iter().enumerate().map(|(i, s)| Var::from_tensor(&random(s, &format!("v{i}"))).unwrap()).collect();
        let value = |v: &[Tensor]| {
            let y = f(v);
            (&y * random(y.dims(), "g")).unwrap().sum_all().unwrap()
        };
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let grads = value(&tensors).backward().unwrap();
        for (i, var) in vars.iter().enumerate() {
            let analytic: Vec<f32> = grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let flat: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
            for at in 0..flat.len() {
                let moved = |by: f32| {
                    let mut flat = flat.clone();
                    flat[at] += by;
                    let mut v = tensors.clone();
                    v[i] = Tensor::from_vec(flat, shapes[i], var.device()).unwrap();
                    value(&v).to_scalar::<f32>().unwrap()
                };
                let numeric = (moved(5e-3) - moved(-5e-3)) / 1e-2;
                let scale = 1.0 + numeric.abs();
                assert!((numeric - analytic[at]).abs() < 2e-2 * scale, "input {i} at {at}: {numeric} {}", analytic[at]);
            }
        }
    }

    pub(super) fn random(shape: &[usize], purpose: &str) -> Tensor {
        random::normal(shape, &Device::Cpu, &mut random::stream(3, purpose)).unwrap()
    }

    pub(super) fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }
}
