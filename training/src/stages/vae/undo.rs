//! From standardised rows back to weights, as tensors that gradients go through.

use candle_core::{Device, Tensor};
use weights::layout::NORM_EPSILON;

use crate::error::Result;
use crate::stages::vectors::Vectors;

/// The standardisation of a zoo's rows as tensors, `[kinds, length]` each.
#[derive(Debug, Clone)]
pub(super) struct Undo {
    mean: Tensor,
    std: Tensor,
    /// 1 where the value is a variance, of which the logarithm is standardised.
    variances: Option<Tensor>,
}

impl Undo {
    pub(super) fn new(vectors: &Vectors, device: &Device) -> Result<Self> {
        let (length, kinds) = (vectors.vectorise.length, vectors.vectorise.kinds());
        let s = &vectors.standardisation;
        let mask: Vec<f32> = s.variances.iter().map(|&v| f32::from(u8::from(v))).collect();
        let of_rows = |values: &[f32]| Tensor::from_slice(values, (kinds, length), device);
        Ok(Self {
            mean: of_rows(&s.mean)?,
            std: of_rows(&s.std)?,
            variances: if mask.is_empty() { None } else { Some(of_rows(&mask)?) },
        })
    }

    /// Undoes the standardisation of rows `[n, length]`, which are these pieces.
    pub(super) fn rows(&self, x: &Tensor, pieces: &[u32]) -> Result<Tensor> {
        if self.mean.dim(0)? == 1 {
            let x = x.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?;
            return self.variances.as_ref().map_or_else(|| Ok(x.clone()), |mask| exponential(&x, mask));
        }
        let index = Tensor::new(pieces, x.device())?;
        let of_rows = |t: &Tensor| t.index_select(&index, 0);
        let x = ((x * of_rows(&self.std)?)? + of_rows(&self.mean)?)?;
        self.variances.as_ref().map_or_else(|| Ok(x.clone()), |mask| exponential(&x, &of_rows(mask)?))
    }
}

/// Variances (`mask` 1, `[n or 1, length]`) of their logarithms in rows `x [n, length]`; other values stay.
fn exponential(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let largest = f64::from(weights::standardise::LARGEST_LOG);
    let variances = x.broadcast_mul(mask)?.minimum(largest)?.exp()?.affine(1.0, -NORM_EPSILON)?.relu()?;
    Ok((x.broadcast_mul(&mask.affine(-1.0, 1.0)?)? + variances.broadcast_mul(mask)?)?)
}
