//! The operations of this module in candle's own, for devices that the ones written here do not run on (CUDA). The tests
//! compare both on the CPU, forwards and backwards.

use candle_core::{D, Tensor};
use weights::layout::NORM_EPSILON;

use super::LAYER_NORM_EPSILON;
use super::conv::Sizes;

type Result<T> = candle_core::Result<T>;

/// Of images `[…, h, w]` the values that each tap of a kernel reads, `[…, h', w']` each, in the order of the taps.
fn taps(x: &Tensor, s: &Sizes) -> Result<Vec<Tensor>> {
    let x = x.pad_with_zeros(D::Minus1, s.pad, s.pad)?.pad_with_zeros(D::Minus2, s.pad, s.pad)?;
    let mut all = Vec::with_capacity(s.k * s.k);
    for ky in 0..s.k {
        let rows = every(&x, D::Minus2, ky, s.oh, s.stride)?;
        for kx in 0..s.k {
            all.push(every(&rows, D::Minus1, kx, s.ow, s.stride)?);
        }
    }
    Ok(all)
}

/// Of one dimension `n` positions from `start` on, `stride` apart.
fn every(x: &Tensor, dim: D, start: usize, n: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return x.narrow(dim, start, n);
    }
    let positions: Vec<u32> = (0..n).map(|i| (start + i * stride) as u32).collect();
    x.contiguous()?.index_select(&Tensor::from_vec(positions, n, x.device())?, dim)
}

/// [`super::conv2d_models`]: the patches of all images of a model in one matrix, and one product over the model axis.
pub(super) fn conv2d_models(x: &Tensor, weight: &Tensor, bias: &Tensor, s: &Sizes) -> Result<Tensor> {
    // [m, c, n, h', w'] for each tap, then [m, c, taps, n, h', w'].
    let taps = taps(&x.transpose(1, 2)?, s)?.iter().map(|t| t.unsqueeze(2)).collect::<Result<Vec<_>>>()?;
    let patches = Tensor::cat(&taps, 2)?.reshape((s.m, s.patch(), s.n * s.positions()))?;
    let y = weight.reshape((s.m, s.o, s.patch()))?.matmul(&patches)?.broadcast_add(&bias.unsqueeze(2)?)?;
    y.reshape((s.m, s.o, s.n, s.oh, s.ow))?.transpose(1, 2)?.contiguous()
}

/// [`super::depthwise_models`]: a product and a sum for each tap; `s` are the sizes of one channel's convolution.
pub(super) fn depthwise_models(x: &Tensor, weight: &Tensor, bias: &Tensor, s: &Sizes) -> Result<Tensor> {
    let (m, c) = bias.dims2()?;
    let kernel = weight.reshape((m, 1, c, s.k * s.k))?;
    let mut y = bias.reshape((m, 1, c, 1, 1))?;
    for (i, tap) in taps(x, s)?.iter().enumerate() {
        let factor = kernel.narrow(3, i, 1)?.unsqueeze(4)?;
        y = tap.broadcast_mul(&factor)?.broadcast_add(&y)?;
    }
    Ok(y)
}

/// (x − mean) / deviation over the last dimension.
fn normalised(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&variance.affine(1.0, epsilon)?.sqrt()?)
}

/// [`super::batch_norm`].
pub(super) fn batch_norm(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let channels = x.transpose(1, 2)?.contiguous()?;
    let y = normalised(&channels.flatten_from(2)?, NORM_EPSILON)?;
    let y = y.broadcast_mul(&scale.unsqueeze(2)?)?.broadcast_add(&shift.unsqueeze(2)?)?;
    y.reshape(channels.shape())?.transpose(1, 2)?.contiguous()
}

/// [`super::layer_norm_models`].
pub(super) fn layer_norm_models(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (m, d) = scale.dims2()?;
    let rows = x.reshape((m, (), d))?;
    let y = normalised(&rows, LAYER_NORM_EPSILON)?.broadcast_mul(&scale.unsqueeze(1)?)?;
    y.broadcast_add(&shift.unsqueeze(1)?)?.reshape(x.shape())
}

/// [`super::hard_sigmoid`].
pub(super) fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    // relu6(x + 3) / 6, as a difference of two, whose slopes are 0 outside.
    (x.affine(1.0, 3.0)?.relu()? - x.affine(1.0, -3.0)?.relu()?)?.affine(1.0 / 6.0, 0.0)
}

/// [`super::hard_swish`].
pub(super) fn hard_swish(x: &Tensor) -> Result<Tensor> {
    x * hard_sigmoid(x)?
}

/// [`super::max_pool2`]. The gradient of candle's own `max_pool2d` is a quarter of what it should be.
pub(super) fn max_pool2(x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let rows = x.reshape((n, c, h / 2, 2, w))?;
    let y = rows.narrow(3, 0, 1)?.maximum(&rows.narrow(3, 1, 1)?)?.reshape((n, c, h / 2, w / 2, 2))?;
    y.narrow(4, 0, 1)?.maximum(&y.narrow(4, 1, 1)?)?.squeeze(4)
}

#[cfg(test)]
mod tests {
    use candle_core::{Tensor, Var};

    use super::super::tests::{max_difference, random};
    use super::*;
    use crate::ops;

    /// Both give the same, and the same gradients of a weighted sum, for inputs of these shapes.
    fn check(
        shapes: &[&[usize]],
        ours: impl Fn(&[Tensor]) -> crate::error::Result<Tensor>,
        native: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let vars: Vec<Var> =
            shapes.iter().enumerate().map(|(i, s)| Var::from_tensor(&random(s, &format!("v{i}"))).unwrap()).collect();
        // Wide enough that every branch is taken.
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.affine(3.0, 0.1).unwrap()).collect();
        let (a, b) = (ours(&tensors).unwrap(), native(&tensors).unwrap());
        assert_eq!(a.dims(), b.dims());
        assert!(max_difference(&a, &b) < 1e-4, "{}", max_difference(&a, &b));
        let grads = |y: Tensor| (&y * random(y.dims(), "g")).unwrap().sum_all().unwrap().backward().unwrap();
        let (a, b) = (grads(a), grads(b));
        for (i, var) in vars.iter().enumerate() {
            let difference = max_difference(a.get(var).unwrap(), b.get(var).unwrap());
            assert!(difference < 1e-3, "gradient {i} differs by {difference}");
        }
    }

    #[test]
    fn convolutions_are_those_of_the_cpu() {
        for (k, stride, pad) in [(3, 1, 1), (3, 2, 1), (5, 2, 2), (1, 1, 0), (1, 2, 0)] {
            let sizes = |v: &[Tensor]| Sizes::new(&v[0], &v[1], &v[2], stride, pad).unwrap();
            check(
                &[&[2, 3, 2, 8, 6], &[2, 4, 2, k, k], &[2, 4]],
                |v| ops::conv2d_models(&v[0], &v[1], &v[2], stride, pad),
                |v| conv2d_models(&v[0], &v[1], &v[2], &sizes(v)),
            );
            check(
                &[&[2, 3, 2, 8, 6], &[2, 2, 1, k, k], &[2, 2]],
                |v| ops::depthwise_models(&v[0], &v[1], &v[2], stride, pad),
                |v| {
                    depthwise_models(
                        &v[0],
                        &v[1],
                        &v[2],
                        &ops::depthwise::planes(&v[0], &v[1], &v[2], stride, pad).unwrap(),
                    )
                },
            );
        }
    }

    #[test]
    fn normalisations_are_those_of_the_cpu() {
        check(
            &[&[2, 3, 4, 2, 5], &[2, 4], &[2, 4]],
            |v| ops::batch_norm(&v[0], &v[1], &v[2]),
            |v| batch_norm(&v[0], &v[1], &v[2]),
        );
        check(
            &[&[2, 3, 4, 9], &[2, 9], &[2, 9]],
            |v| ops::layer_norm_models(&v[0], &v[1], &v[2]),
            |v| layer_norm_models(&v[0], &v[1], &v[2]),
        );
    }

    #[test]
    fn hard_functions_and_pooling_are_those_of_the_cpu() {
        check(&[&[4, 7]], |v| ops::hard_swish(&v[0]), |v| hard_swish(&v[0]));
        check(&[&[4, 7]], |v| ops::hard_sigmoid(&v[0]), |v| hard_sigmoid(&v[0]));
        check(&[&[2, 3, 4, 6]], |v| ops::max_pool2(&v[0]), |v| max_pool2(&v[0]));
    }
}
