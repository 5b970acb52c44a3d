//! Operations that candle's CPU backend does slowly or not at all: convolution by im2col and one matrix product
//! (stock convolution's gradient goes through a transposed convolution, 4–5 times slower), and 2×2 maximum pooling.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, bail};

use crate::error::Result;

/// `x [b, c, h, w]` → `[b, oh·ow, c·k·k]`: one row of patch values per output position.
///
/// # Errors
/// When the kernel does not fit or the device is not the CPU.
pub fn im2col(x: &Tensor, k: usize, stride: usize, pad: usize) -> Result<Tensor> {
    let (_, c, h, w) = x.dims4()?;
    if k == 0 || stride == 0 || h + 2 * pad < k || w + 2 * pad < k {
        return Err(candle_core::Error::Msg(format!("a {k}×{k} kernel does not fit an image of {h}×{w}")).into());
    }
    Ok(x.contiguous()?.apply_op1(Im2Col(Patch { c, h, w, k, stride, pad }))?)
}

/// 2-D convolution: `x [n, c, h, w]`, `weight [o, c, k, k]`, `bias [o]`.
///
/// # Errors
/// When shapes do not fit.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let (out, _, k, _) = weight.dims4()?;
    if !x.device().is_cpu() {
        let y = x.conv2d(weight, pad, stride, 1, 1)?;
        return Ok(y.broadcast_add(&bias.reshape((1, out, 1, 1))?)?);
    }
    let (oh, ow) = ((h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1);
    let columns = im2col(x, k, stride, pad)?.reshape((n * oh * ow, c * k * k))?;
    let y = columns.matmul(&weight.reshape((out, c * k * k))?.t()?)?.broadcast_add(bias)?;
    Ok(y.reshape((n, oh * ow, out))?.transpose(1, 2)?.contiguous()?.reshape((n, out, oh, ow))?)
}

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
        return Ok(x.max_pool2d(2)?);
    }
    Ok(x.contiguous()?.apply_op1(MaxPool2)?)
}

#[derive(Debug, Clone, Copy)]
struct Patch {
    c: usize,
    h: usize,
    w: usize,
    k: usize,
    stride: usize,
    pad: usize,
}

impl Patch {
    fn out(&self) -> (usize, usize) {
        ((self.h + 2 * self.pad - self.k) / self.stride + 1, (self.w + 2 * self.pad - self.k) / self.stride + 1)
    }

    /// Calls `f(offset in the image, offset in the column matrix, run length)` for every horizontal run of a patch
    /// that lies inside the image.
    fn runs(&self, mut f: impl FnMut(usize, usize, usize)) {
        let (oh, ow) = self.out();
        let row_len = self.c * self.k * self.k;
        for oy in 0..oh {
            for ox in 0..ow {
                let row = (oy * ow + ox) * row_len;
                let x0 = (ox * self.stride) as isize - self.pad as isize;
                let (from, to) = ((-x0).max(0) as usize, self.k.min((self.w as isize - x0).max(0) as usize));
                if from >= to {
                    continue;
                }
                let start = (x0 + from as isize) as usize;
                for c in 0..self.c {
                    for ky in 0..self.k {
                        let y = (oy * self.stride + ky) as isize - self.pad as isize;
                        if y < 0 || y >= self.h as isize {
                            continue;
                        }
                        let image = (c * self.h + y as usize) * self.w + start;
                        f(image, row + (c * self.k + ky) * self.k + from, to - from);
                    }
                }
            }
        }
    }
}

fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("the operation needs a contiguous tensor"),
    }
}

struct Im2Col(Patch);
struct Col2Im(Patch);

impl CustomOp1 for Im2Col {
    fn name(&self) -> &'static str {
        "im2col"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout)?;
        let p = &self.0;
        let (oh, ow) = p.out();
        let (image_len, rows_len) = (p.c * p.h * p.w, oh * ow * p.c * p.k * p.k);
        let batch = x.len() / image_len;
        let mut columns = vec![0f32; batch * rows_len];
        for (image, rows) in x.chunks_exact(image_len).zip(columns.chunks_exact_mut(rows_len)) {
            p.runs(|from, to, len| rows[to..to + len].copy_from_slice(&image[from..from + len]));
        }
        Ok((CpuStorage::F32(columns), Shape::from((batch, oh * ow, p.c * p.k * p.k))))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&Col2Im(self.0))?))
    }
}

impl CustomOp1 for Col2Im {
    fn name(&self) -> &'static str {
        "col2im"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let columns = f32_slice(storage, layout)?;
        let p = &self.0;
        let (oh, ow) = p.out();
        let (image_len, rows_len) = (p.c * p.h * p.w, oh * ow * p.c * p.k * p.k);
        let batch = columns.len() / rows_len;
        let mut x = vec![0f32; batch * image_len];
        for (rows, image) in columns.chunks_exact(rows_len).zip(x.chunks_exact_mut(image_len)) {
            p.runs(|to, from, len| {
                for (a, b) in image[to..to + len].iter_mut().zip(&rows[from..from + len]) {
                    *a += b;
                }
            });
        }
        Ok((CpuStorage::F32(x), Shape::from((batch, p.c, p.h, p.w))))
    }
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
    use super::*;
    use crate::random;
    use candle_core::{Device, Var};

    fn random(shape: &[usize], purpose: &str) -> Tensor {
        random::normal(shape, &Device::Cpu, &mut random::stream(3, purpose)).unwrap()
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn convolution_and_gradients_equal_candles_own() {
        for (k, stride, pad) in [(3, 1, 1), (5, 1, 0), (3, 2, 1), (1, 1, 0)] {
            let x = Var::from_tensor(&random(&[2, 3, 9, 8], "x")).unwrap();
            let w = Var::from_tensor(&random(&[4, 3, k, k], "w")).unwrap();
            let b = Var::from_tensor(&random(&[4], "b")).unwrap();
            let ours = conv2d(&x, &w, &b, stride, pad).unwrap();
            let theirs = x.conv2d(&w, pad, stride, 1, 1).unwrap();
            let theirs = theirs.broadcast_add(&b.reshape((1, 4, 1, 1)).unwrap()).unwrap();
            assert!(max_difference(&ours, &theirs) < 1e-4);
            let weighting = random(ours.dims(), "g");
            let grad = |y: &Tensor| (y * &weighting).unwrap().sum_all().unwrap().backward().unwrap();
            let (ours, theirs) = (grad(&ours), grad(&theirs));
            for v in [&x, &w, &b] {
                assert!(max_difference(ours.get(v).unwrap(), theirs.get(v).unwrap()) < 1e-3, "k {k} stride {stride}");
            }
        }
    }

    #[test]
    fn pooling_and_gradient_equal_candles_own() {
        let x = Var::from_tensor(&random(&[2, 3, 6, 4], "x")).unwrap();
        let (ours, theirs) = (max_pool2(&x).unwrap(), x.max_pool2d(2).unwrap());
        assert_eq!(max_difference(&ours, &theirs), 0.0);
        let weighting = random(ours.dims(), "g");
        let grad = |y: &Tensor| (y * &weighting).unwrap().sum_all().unwrap().backward().unwrap();
        let (ours, theirs) = (grad(&ours), grad(&theirs));
        assert!(max_difference(ours.get(&x).unwrap(), theirs.get(&x).unwrap()) < 1e-6);
        assert!(max_pool2(&random(&[1, 1, 3, 4], "odd")).is_err());
    }

    #[test]
    fn a_kernel_that_does_not_fit_is_an_error() {
        assert!(im2col(&random(&[1, 1, 3, 3], "x"), 5, 1, 0).is_err());
    }
}
