//! Operations that candle's CPU backend does slowly or not at all.

mod conv;
mod pool;

pub use conv::{conv2d, conv2d_models};
pub use pool::max_pool2;

use candle_core::{CpuStorage, Layout, bail};

/// The values of a contiguous f32 tensor.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("the operation needs a contiguous tensor"),
    }
}

#[cfg(test)]
mod tests {
    use crate::random;
    use candle_core::{Device, Tensor};

    pub(super) fn random(shape: &[usize], purpose: &str) -> Tensor {
        random::normal(shape, &Device::Cpu, &mut random::stream(3, purpose)).unwrap()
    }

    pub(super) fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }
}
