//! The optimiser and the average in candle's own operations, for devices that the passes written for the CPU do not run on
//! (CUDA). The tests compare both on the CPU.

use candle_core::{Tensor, Var};

use super::AdamConfig;

type Result<T> = candle_core::Result<T>;

/// What one step of AdamW takes beside its constants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub lr: f64,
    /// 1 − β₁ᵗ and 1 − β₂ᵗ.
    pub bias: [f64; 2],
    pub decay: f64,
    /// What gradients are multiplied by.
    pub scale: f64,
}

/// First and second moment of one parameter, on its device.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    m: Tensor,
    v: Tensor,
}

impl Moments {
    /// From values, as snapshots have them.
    pub fn new(var: &Var, m: &[f32], v: &[f32]) -> Result<Self> {
        let on_device = |values: &[f32]| Tensor::from_slice(values, var.shape(), var.device());
        Ok(Self { m: on_device(m)?, v: on_device(v)? })
    }

    /// The values, for snapshots.
    pub fn values(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((self.m.flatten_all()?.to_vec1()?, self.v.flatten_all()?.to_vec1()?))
    }

    /// One step of AdamW.
    pub fn step(&mut self, var: &Var, grad: &Tensor, c: &AdamConfig, step: Step) -> Result<()> {
        let g = grad.detach().affine(step.scale, 0.0)?;
        self.m = (self.m.affine(c.beta1, 0.0)? + g.affine(1.0 - c.beta1, 0.0)?)?;
        self.v = (self.v.affine(c.beta2, 0.0)? + g.sqr()?.affine(1.0 - c.beta2, 0.0)?)?;
        let [bias1, bias2] = step.bias;
        let down = self.v.affine(1.0 / bias2, 0.0)?.sqrt()?.affine(1.0, c.eps)?;
        let by = (self.m.affine(step.lr / bias1, 0.0)? / down)?;
        var.set(&(var.as_tensor().detach().affine(1.0 - step.lr * step.decay, 0.0)? - by)?)
    }
}

/// Sum of the squares of all gradients, read back once.
pub(super) fn square(grads: &[Option<Tensor>]) -> Result<f64> {
    let squares = grads.iter().flatten().map(|g| g.sqr()?.sum_all()).collect::<Result<Vec<_>>>()?;
    if squares.is_empty() {
        return Ok(0.0);
    }
    Ok(f64::from(Tensor::stack(&squares, 0)?.sum_all()?.to_scalar::<f32>()?))
}

/// `average` moved by `share` of the way to `value`.
pub(super) fn blend(average: &Tensor, value: &Tensor, share: f64) -> Result<Tensor> {
    average + (value.detach() - average)?.affine(share, 0.0)?
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, InplaceOp2};

    use super::*;
    use crate::optim::{AdamW, BlendOp};
    use crate::random;

    fn values(purpose: &str) -> Tensor {
        random::normal(&[3, 5], &Device::Cpu, &mut random::stream(1, purpose)).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn steps_are_those_of_the_cpu() {
        let config = AdamConfig { weight_decay: 0.05, clip: 0.7, ..Default::default() };
        let (ours, native) = (Var::from_tensor(&values("p")).unwrap(), Var::from_tensor(&values("p")).unwrap());
        let mut adam = AdamW::new(vec![ours.clone()], config);
        let mut moments = Moments::new(&native, &[0.0; 15], &[0.0; 15]).unwrap();
        for t in 1..=10 {
            let grad = values(&format!("g{t}"));
            adam.step(&[Some(grad.clone())], 0.05).unwrap();
            let scale = (config.clip / square(&[Some(grad.clone()), None]).unwrap().sqrt()).min(1.0);
            let bias = [1.0 - config.beta1.powi(t), 1.0 - config.beta2.powi(t)];
            let step = Step { lr: 0.05, bias, decay: config.weight_decay, scale };
            moments.step(&native, &grad, &config, step).unwrap();
        }
        assert!(difference(&ours, &native) < 1e-5, "{}", difference(&ours, &native));
        assert!(difference(&ours, &values("p")) > 0.1);
        let mut snapshot = crate::snapshots::Snapshot::new(10);
        adam.save("a", &mut snapshot).unwrap();
        let (m, v) = moments.values().unwrap();
        let close = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(snapshot.take_len("a.m", 15).unwrap(), m) && close(snapshot.take_len("a.v", 15).unwrap(), v));
    }

    #[test]
    fn averages_are_those_of_the_cpu() {
        let (a, b) = (values("a").copy().unwrap(), values("b"));
        let native = blend(&a, &b, 0.25).unwrap();
        assert_eq!(BlendOp(0.25).name(), "ema");
        a.inplace_op2(&b, &BlendOp(0.25)).unwrap();
        assert!(difference(&a, &native) < 1e-6);
    }
}
