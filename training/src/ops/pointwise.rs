//! Hard swish and hard sigmoid (Howard et al. 2019), with their gradients.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use super::{f32_slice, native};
use crate::error::Result;

/// x · min(max(x + 3, 0), 6) / 6.
///
/// # Errors
/// When the device fails.
pub fn hard_swish(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return Ok(native::hard_swish(x)?);
    }
    Ok(x.contiguous()?.apply_op1(Hard::Swish)?)
}

/// min(max(x + 3, 0), 6) / 6.
///
/// # Errors
/// When the device fails.
pub fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return Ok(native::hard_sigmoid(x)?);
    }
    Ok(x.contiguous()?.apply_op1(Hard::Sigmoid)?)
}

#[derive(Debug, Clone, Copy)]
enum Hard {
    Swish,
    Sigmoid,
}

impl Hard {
    fn value(self, x: f32) -> f32 {
        let gate = (x + 3.0).clamp(0.0, 6.0) / 6.0;
        match self {
            Self::Swish => x * gate,
            Self::Sigmoid => gate,
        }
    }

    fn slope(self, x: f32) -> f32 {
        let inside = x > -3.0 && x < 3.0;
        match self {
            Self::Swish if inside => (2.0 * x + 3.0) / 6.0,
            Self::Swish => f32::from(u8::from(x >= 3.0)),
            Self::Sigmoid => f32::from(u8::from(inside)) / 6.0,
        }
    }
}

impl CustomOp1 for Hard {
    fn name(&self) -> &'static str {
        "hard"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = f32_slice(x, layout)?.iter().map(|&x| self.value(x)).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &Slope(*self))?))
    }
}

struct Slope(Hard);

impl CustomOp2 for Slope {
    fn name(&self) -> &'static str {
        "hard_gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, grad) = (f32_slice(x, x_layout)?, f32_slice(grad, grad_layout)?);
        let dx = x.iter().zip(grad).map(|(&x, g)| self.0.slope(x) * g).collect();
        Ok((CpuStorage::F32(dx), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_gradients;
    use super::*;

    #[test]
    fn gradients_equal_finite_differences() {
        // Wide enough to reach both ends.
        check_gradients(&[&[4, 7]], |v| hard_swish(&v[0].affine(3.0, 0.1).unwrap()).unwrap());
        check_gradients(&[&[4, 7]], |v| hard_sigmoid(&v[0].affine(3.0, 0.1).unwrap()).unwrap());
        let ends = Tensor::new(&[-4f32, -3.0, 0.0, 3.0, 5.0], &candle_core::Device::Cpu).unwrap();
        assert_eq!(hard_swish(&ends).unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.0, 3.0, 5.0]);
        assert_eq!(hard_sigmoid(&ends).unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.5, 1.0, 1.0]);
    }
}
