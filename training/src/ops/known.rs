//! A value whose gradient was made along with it, outside of candle.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use crate::error::Result;

/// The scalar `value` as what a function gives for `x` (on the CPU), whose gradient there is `gradient`, of the shape of `x`.
///
/// # Errors
/// When the shapes differ.
pub fn known(x: &Tensor, value: f32, gradient: Tensor) -> Result<Tensor> {
    if gradient.dims() != x.dims() {
        let text = format!("a gradient of {:?} for {:?}", gradient.dims(), x.dims());
        return Err(candle_core::Error::Msg(text).into());
    }
    Ok(x.apply_op1(Known { value, gradient })?)
}

struct Known {
    value: f32,
    gradient: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "known"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.gradient.broadcast_mul(grad)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_known_gradient_goes_on_through_candle() {
        let x = Var::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
        let doubled = x.affine(2.0, 0.0).unwrap();
        let y = known(&doubled, 5.0, Tensor::new(&[[3f32, 4.0]], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(y.to_scalar::<f32>().unwrap(), 5.0);
        let grads = y.affine(10.0, 1.0).unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[60.0, 80.0]]);
        assert!(known(&x, 0.0, Tensor::new(&[1f32], &Device::Cpu).unwrap()).is_err());
    }
}
