//! 2×2 maximum pooling with stride 2.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use super::{f32_slice, native};
use crate::error::Result;

/// 2×2 maximum pooling with stride 2 on `[n, c, h, w]`, h and w even.
///
/// # Errors
/// When a side is odd.
pub fn max_pool2(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h % 2 != 0 || w % 2 != 0 {
        return Err(candle_core::Error::Msg(format!("2×2 pooling needs even sides, the input has {h}×{w}")).into());
    }
    if !x.device().is_cpu() {
        return Ok(native::max_pool2(x)?);
    }
    Ok(x.contiguous()?.apply_op1(MaxPool2)?)
}

struct MaxPool2;
struct MaxPool2Grad;

/// The four corners of each 2×2 window of one plane: calls `f(output index, [input indices])`.
fn windows(h: usize, w: usize, mut f: impl FnMut(usize, [usize; 4])) {
    for oy in 0..h / 2 {
        for ox in 0..w / 2 {
            let i = 2 * oy * w + 2 * ox;
            f(oy * (w / 2) + ox, [i, i + 1, i + w, i + w + 1]);
        }
    }
}

fn dims4(layout: &Layout) -> candle_core::Result<(usize, usize, usize, usize)> {
    layout.shape().dims4()
}

impl CustomOp1 for MaxPool2 {
    fn name(&self) -> &'static str {
        "max_pool2"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout)?;
        let (n, c, h, w) = dims4(layout)?;
        let mut y = vec![0f32; x.len() / 4];
        for (plane, out) in x.chunks_exact(h * w).zip(y.chunks_exact_mut(h * w / 4)) {
            windows(h, w, |o, [a, b, c, d]| out[o] = plane[a].max(plane[b]).max(plane[c].max(plane[d])));
        }
        Ok((CpuStorage::F32(y), Shape::from((n, c, h / 2, w / 2))))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(arg.apply_op2_no_bwd(&grad.contiguous()?, &MaxPool2Grad)?))
    }
}

impl CustomOp2 for MaxPool2Grad {
    fn name(&self) -> &'static str {
        "max_pool2_grad"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, grad) = (f32_slice(x, x_layout)?, f32_slice(grad, grad_layout)?);
        let (n, c, h, w) = dims4(x_layout)?;
        let mut dx = vec![0f32; x.len()];
        let planes = x.chunks_exact(h * w).zip(grad.chunks_exact(h * w / 4)).zip(dx.chunks_exact_mut(h * w));
        for ((plane, grad), out) in planes {
            // The first maximum takes the whole gradient, as in PyTorch.
            windows(h, w, |o, corners| {
                let best = corners.into_iter().reduce(|a, b| if plane[b] > plane[a] { b } else { a });
                if let Some(best) = best {
                    out[best] = grad[o];
                }
            });
        }
        Ok((CpuStorage::F32(dx), Shape::from((n, c, h, w))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{max_difference, random};
    use super::*;
    use candle_core::Var;

    #[test]
    fn pooling_equals_candles_own_and_the_gradient_goes_to_the_maximum() {
        let x = Var::from_tensor(&random(&[2, 3, 6, 4], "x")).unwrap();
        let y = max_pool2(&x).unwrap();
        assert_eq!(max_difference(&y, &x.max_pool2d(2).unwrap()), 0.0);
        let weighting = random(y.dims(), "g");
        let grads = (&y * &weighting).unwrap().sum_all().unwrap().backward().unwrap();
        // The weighting at the maximum of each window, zero elsewhere (candle's own gradient divides it by the
        // window's size, so it is no reference).
        let wide = |t: &Tensor| t.upsample_nearest2d(6, 4).unwrap();
        let mask = x.eq(&wide(&y)).unwrap().to_dtype(candle_core::DType::F32).unwrap();
        let expected = (wide(&weighting) * mask).unwrap();
        assert!(max_difference(grads.get(&x).unwrap(), &expected) < 1e-6);
        assert!(max_pool2(&random(&[1, 1, 3, 4], "odd")).is_err());
    }
}
