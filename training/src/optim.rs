//! AdamW in one pass per tensor on the CPU, the exponential moving average of parameters, learning-rate schedule.

mod native;

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Tensor, Var, bail};
use rayon::prelude::*;

use crate::error::Result;
use crate::params::Params;
use crate::snapshots::Snapshot;
use crate::tape::Buffer;

/// AdamW's constants but the learning rate.
#[derive(Debug, Clone, Copy)]
pub struct AdamConfig {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// Decoupled weight decay, applied to matrices and kernels, not to vectors.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0 for no clipping.
    pub clip: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: 0.0 }
    }
}

/// A parameter's gradient.
#[derive(Debug)]
pub enum Gradient {
    /// As candle gives it.
    Tensor(Tensor),
    /// As a tape gives it, in the order of the parameter's values.
    Buffer(Buffer),
}

impl Gradient {
    /// The sum, in this order; none of none.
    fn sum(parts: Vec<Self>) -> Result<Option<Self>> {
        let mut parts = parts.into_iter();
        let Some(mut sum) = parts.next() else { return Ok(None) };
        for part in parts {
            sum = match (sum, part) {
                (Self::Tensor(a), Self::Tensor(b)) => Self::Tensor((a + b)?),
                (Self::Buffer(mut a), Self::Buffer(b)) if a.len() == b.len() => {
                    a.iter_mut().zip(&*b).for_each(|(a, b)| *a += b);
                    Self::Buffer(a)
                }
                _ => return Err(candle_core::Error::Msg("gradients of two kinds or sizes".into()).into()),
            };
        }
        Ok(Some(sum))
    }

    /// The values.
    #[cfg(test)]
    pub(crate) fn values(&self) -> Vec<f32> {
        match self {
            Self::Tensor(tensor) => tensor.flatten_all().unwrap().to_vec1().unwrap(),
            Self::Buffer(buffer) => buffer.to_vec(),
        }
    }

    /// As a tensor like a parameter.
    fn tensor(self, like: &Var) -> Result<Tensor> {
        match self {
            Self::Tensor(grad) => Ok(grad),
            Self::Buffer(grad) => Ok(Tensor::from_slice(&grad, like.shape(), like.device())?),
        }
    }

    /// Sum of squares.
    fn square(&self) -> Result<f64> {
        match self {
            Self::Tensor(grad) => Ok(f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?)),
            Self::Buffer(grad) => Ok(grad.chunks(4096).map(|part| kernels::sum(part, &[], |v, _| v * v)).sum()),
        }
    }
}

struct Slot {
    var: Var,
    moments: Mutex<(Vec<f32>, Vec<f32>)>,
    /// In place of those, where the parameter is not on the CPU.
    on_device: Mutex<Option<native::Moments>>,
}

impl Slot {
    fn off_cpu(&self) -> bool {
        !self.var.device().is_cpu()
    }

    /// Moments on the device: those of a snapshot, or zero.
    fn initial(&self) -> Result<native::Moments> {
        let moments = self.moments.lock().map_err(|_| lost())?;
        Ok(native::Moments::new(&self.var, &moments.0, &moments.1)?)
    }

    /// The moments, for a snapshot.
    fn values(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        if let Some(moments) = &*self.on_device.lock().map_err(|_| lost())? {
            return Ok(moments.values()?);
        }
        Ok(self.moments.lock().map_err(|_| lost())?.clone())
    }
}

/// AdamW over a fixed list of parameters.
pub struct AdamW {
    slots: Vec<Slot>,
    config: AdamConfig,
    step: i32,
}

impl AdamW {
    /// An optimiser of `vars`.
    pub fn new(vars: Vec<Var>, config: AdamConfig) -> Self {
        let slots = vars
            .into_iter()
            .map(|var| {
                let n = var.elem_count();
                Slot { var, moments: Mutex::new((vec![0.0; n], vec![0.0; n])), on_device: Mutex::default() }
            })
            .collect();
        Self { slots, config, step: 0 }
    }

    /// One step with learning rate `lr` and gradients in the order of the parameters; those without one stay.
    ///
    /// # Errors
    /// When a gradient has another shape than its parameter.
    pub fn step(&mut self, grads: &[Option<Tensor>], lr: f64) -> Result<()> {
        self.step_sums(grads.iter().map(|grad| grad.iter().cloned().map(Gradient::Tensor).collect()).collect(), lr)
    }

    /// The same with the sum of several gradients for each parameter.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step_sums(&mut self, grads: Vec<Vec<Gradient>>, lr: f64) -> Result<()> {
        self.step += 1;
        let bias = [self.config.beta1, self.config.beta2].map(|beta| 1.0 - beta.powi(self.step));
        let clip = self.config.clip > 0.0;
        if self.slots.iter().any(Slot::off_cpu) {
            let own = |(parts, slot): (Vec<Gradient>, &Slot)| {
                Gradient::sum(parts)?.map(|grad| grad.tensor(&slot.var)).transpose()
            };
            let grads = grads.into_iter().zip(&self.slots).map(own).collect::<Result<Vec<_>>>()?;
            let square = if clip { native::square(&grads)? } else { 0.0 };
            return self.native_step(&grads, lr, bias, self.scale(square));
        }
        let summed = |parts| -> Result<Option<(Gradient, f64)>> {
            let Some(grad) = Gradient::sum(parts)? else { return Ok(None) };
            let square = if clip { grad.square()? } else { 0.0 };
            Ok(Some((grad, square)))
        };
        let grads = grads.into_par_iter().map(summed).collect::<Result<Vec<_>>>()?;
        // Collected first, so that the sum's order does not depend on the threads.
        let scale = self.scale(grads.iter().flatten().map(|(_, square)| square).sum());
        self.slots.par_iter().zip(grads).try_for_each(|(slot, grad)| {
            let Some((grad, _)) = grad else { return Ok(()) };
            let decay = if slot.var.dims().len() > 1 { self.config.weight_decay } else { 0.0 };
            let op = AdamOp { moments: &slot.moments, rates: Rates::new(&self.config, self.step, lr, decay, scale) };
            match &grad {
                Gradient::Tensor(grad) => slot.var.as_tensor().inplace_op2(&grad.contiguous()?, &op)?,
                Gradient::Buffer(grad) => slot.var.as_tensor().inplace_op1(&BufferOp(op, grad))?,
            }
            Ok(())
        })
    }

    /// A step on another device than the CPU, one parameter after the other: they share one queue there.
    fn native_step(&self, grads: &[Option<Tensor>], lr: f64, bias: [f64; 2], scale: f64) -> Result<()> {
        for (slot, grad) in self.slots.iter().zip(grads) {
            let Some(grad) = grad else { continue };
            let decay = if slot.var.dims().len() > 1 { self.config.weight_decay } else { 0.0 };
            let mut moments = slot.on_device.lock().map_err(|_| lost())?;
            let of = match moments.take() {
                Some(of) => of,
                None => slot.initial()?,
            };
            moments.insert(of).step(&slot.var, grad, &self.config, native::Step { lr, bias, decay, scale })?;
        }
        Ok(())
    }

    /// Puts moments and step into a snapshot.
    ///
    /// # Errors
    /// When a step failed half-way.
    pub fn save(&self, prefix: &str, snapshot: &mut Snapshot) -> Result<()> {
        let (mut m, mut v) = (Vec::new(), Vec::new());
        for slot in &self.slots {
            let (own_m, own_v) = slot.values()?;
            m.extend_from_slice(&own_m);
            v.extend_from_slice(&own_v);
        }
        snapshot.put(&format!("{prefix}.m"), m);
        snapshot.put(&format!("{prefix}.v"), v);
        snapshot.put_count(&format!("{prefix}.step"), self.step as u64);
        Ok(())
    }

    /// Takes moments and step out of a snapshot.
    ///
    /// # Errors
    /// When it holds those of other parameters.
    pub fn restore(&mut self, prefix: &str, snapshot: &mut Snapshot) -> Result<()> {
        let n = self.slots.iter().map(|slot| slot.var.elem_count()).sum();
        let m = snapshot.take_len(&format!("{prefix}.m"), n)?;
        let v = snapshot.take_len(&format!("{prefix}.v"), n)?;
        self.step = snapshot.count(&format!("{prefix}.step"))? as i32;
        let mut at = 0;
        for slot in &self.slots {
            let end = at + slot.var.elem_count();
            *slot.moments.lock().map_err(|_| lost())? = (m[at..end].to_vec(), v[at..end].to_vec());
            *slot.on_device.lock().map_err(|_| lost())? = None;
            at = end;
        }
        Ok(())
    }

    /// What gradients are multiplied by, whose squares sum up to this.
    fn scale(&self, square: f64) -> f64 {
        if self.config.clip > 0.0 { (self.config.clip / square.sqrt().max(1e-12)).min(1.0) } else { 1.0 }
    }
}

fn lost() -> candle_core::Error {
    candle_core::Error::Msg("optimiser state lost".into())
}

/// What one step of Adam multiplies by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    beta1: f32,
    beta2: f32,
    step: f32,
    eps: f32,
    inv_bias2: f32,
    keep: f32,
    scale: f32,
}

impl Rates {
    /// Those of step `step`, from 1, with learning rate `lr`, weight decay `decay` and gradients times `scale`.
    pub(crate) fn new(config: &AdamConfig, step: i32, lr: f64, decay: f64, scale: f64) -> Self {
        let bias1 = 1.0 - config.beta1.powi(step);
        let bias2 = 1.0 - config.beta2.powi(step);
        Self {
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            step: (lr / bias1) as f32,
            eps: config.eps as f32,
            inv_bias2: (1.0 / bias2) as f32,
            keep: (1.0 - lr * decay) as f32,
            scale: scale as f32,
        }
    }

    /// Moves parameters `p` and their moments `m` and `v` by gradients `g`.
    pub(crate) fn update(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let Self { beta1, beta2, step, eps, inv_bias2, keep, scale } = *self;
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *p = *p * keep - step * *m / ((*v * inv_bias2).sqrt() + eps);
        }
    }
}

struct AdamOp<'a> {
    moments: &'a Mutex<(Vec<f32>, Vec<f32>)>,
    rates: Rates,
}

impl InplaceOp2 for AdamOp<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, pl: &Layout, g: &CpuStorage, gl: &Layout) -> candle_core::Result<()> {
        let (p, g) = slices(p, pl, g, gl)?;
        self.update(p, g)
    }
}

/// The same with a gradient that is no tensor.
struct BufferOp<'a>(AdamOp<'a>, &'a [f32]);

impl InplaceOp1 for BufferOp<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(p), Some((from, to))) = (p, layout.contiguous_offsets()) else {
            bail!("parameters must be f32 and contiguous")
        };
        if to - from != self.1.len() {
            bail!("a gradient has {} values, its parameter {}", self.1.len(), to - from)
        }
        self.0.update(&mut p[from..to], self.1)
    }
}

impl AdamOp<'_> {
    fn update(&self, p: &mut [f32], g: &[f32]) -> candle_core::Result<()> {
        let mut moments = self.moments.lock().map_err(|_| lost())?;
        let (m, v) = &mut *moments;
        self.rates.update(p, g, m, v);
        Ok(())
    }
}

fn slices<'a>(
    a: &'a mut CpuStorage,
    al: &Layout,
    b: &'a CpuStorage,
    bl: &Layout,
) -> candle_core::Result<(&'a mut [f32], &'a [f32])> {
    let (Some((a0, a1)), Some((b0, b1))) = (al.contiguous_offsets(), bl.contiguous_offsets()) else {
        bail!("parameters and gradients must be contiguous")
    };
    let CpuStorage::F32(a) = a else { bail!("parameters must be f32") };
    let (a, b) = (&mut a[a0..a1], &b.as_slice::<f32>()?[b0..b1]);
    if a.len() != b.len() {
        bail!("a gradient has {} values, its parameter {}", b.len(), a.len())
    }
    Ok((a, b))
}

struct BlendOp(f32);

impl InplaceOp2 for BlendOp {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> candle_core::Result<()> {
        let (a, b) = slices(a, al, b, bl)?;
        for (a, &b) in a.iter_mut().zip(b) {
            *a += self.0 * (b - *a);
        }
        Ok(())
    }
}

/// Exponential moving average of a network's parameters.
#[derive(Debug)]
pub struct Ema {
    average: BTreeMap<String, Tensor>,
    decay: f64,
    step: u64,
}

impl Ema {
    /// Starts at the present values.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        Ok(Self { average: params.snapshot()?, decay, step: 0 })
    }

    /// Moves the average towards the present values; the decay warms up as (1 + t)/(10 + t).
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(&mut self, params: &Params) -> Result<()> {
        self.step += 1;
        let t = self.step as f64;
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        if params.vars().first().is_some_and(|var| !var.device().is_cpu()) {
            for (name, average) in &mut self.average {
                if let Some(var) = params.get(name) {
                    *average = native::blend(average, var.as_tensor(), 1.0 - decay)?;
                }
            }
            return Ok(());
        }
        self.average.par_iter().try_for_each(|(name, average)| {
            let Some(var) = params.get(name) else { return Ok(()) };
            Ok(average.inplace_op2(var.as_tensor(), &BlendOp((1.0 - decay) as f32))?)
        })
    }

    /// Puts average and step into a snapshot.
    ///
    /// # Errors
    /// When the device fails.
    pub fn save(&self, prefix: &str, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.put_count(&format!("{prefix}.step"), self.step);
        snapshot.put_all(prefix, &self.average)
    }

    /// Takes average and step out of a snapshot.
    ///
    /// # Errors
    /// When it holds those of other parameters.
    pub fn restore(&mut self, prefix: &str, snapshot: &mut Snapshot, device: &Device) -> Result<()> {
        self.step = snapshot.count(&format!("{prefix}.step"))?;
        self.average = snapshot.take_like(prefix, &self.average, device)?;
        Ok(())
    }

    /// Sets the parameters to the average.
    ///
    /// # Errors
    /// When a shape differs.
    pub fn apply(&self, params: &Params) -> Result<()> {
        params.restore(&self.average)
    }
}

/// Learning rate at `step` of `steps`: linear warm-up over the first tenth, then cosine to a thousandth.
pub fn cosine(base: f64, step: usize, steps: usize) -> f64 {
    let warm = (steps / 10).max(1);
    if step < warm {
        return base * (step + 1) as f64 / warm as f64;
    }
    let t = (step - warm) as f64 / (steps - warm).max(1) as f64;
    base * (0.5 + 0.5 * (std::f64::consts::PI * t).cos()).max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_equals_the_formula() {
        let var = Var::from_slice(&[1.0f32, -2.0], 2, &Device::Cpu).unwrap();
        let loss = (var.as_tensor() * &Tensor::new(&[3.0f32, 0.5], &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
        let mut adam = AdamW::new(vec![var.clone()], AdamConfig::default());
        adam.step(&[loss.backward().unwrap().remove(&var)], 0.1).unwrap();
        // After bias correction the first step is lr · sign(gradient).
        let values = var.to_vec1::<f32>().unwrap();
        assert!((values[0] - 0.9).abs() < 1e-5 && (values[1] + 2.1).abs() < 1e-5, "{values:?}");
    }

    #[test]
    fn equals_candles_adamw_over_many_steps() {
        use candle_nn::optim::{Optimizer, ParamsAdamW};
        let start = [[0.5f32, -1.0], [2.0, 0.1]];
        let ours = Var::new(&start, &Device::Cpu).unwrap();
        let theirs = Var::new(&start, &Device::Cpu).unwrap();
        let config = AdamConfig { weight_decay: 0.01, ..Default::default() };
        let mut a = AdamW::new(vec![ours.clone()], config);
        let params = ParamsAdamW { lr: 0.05, weight_decay: 0.01, ..Default::default() };
        let mut b = candle_nn::AdamW::new(vec![theirs.clone()], params).unwrap();
        for _ in 0..20 {
            let loss = |v: &Var| v.sqr().unwrap().sum_all().unwrap();
            a.step(&[loss(&ours).backward().unwrap().remove(&ours)], 0.05).unwrap();
            b.step(&loss(&theirs).backward().unwrap()).unwrap();
        }
        let difference = (ours.as_tensor() - theirs.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
    }

    #[test]
    fn sums_of_buffers_are_sums_of_tensors() {
        let config = AdamConfig { weight_decay: 0.01, clip: 1.0, ..Default::default() };
        let values = [[3.0f32, -0.5], [0.25, 2.0]];
        let vars = [0, 1].map(|_| Var::from_slice(&[1.0f32, 2.0], (1, 2), &Device::Cpu).unwrap());
        let tensors = values.map(|v| Gradient::Tensor(Tensor::new(&[v], &Device::Cpu).unwrap()));
        let pool = crate::tape::Pool::default();
        let buffers = values.map(|v| Gradient::Buffer(pool.copy(&v)));
        for (var, grads) in vars.iter().zip([tensors, buffers]) {
            AdamW::new(vec![var.clone()], config).step_sums(vec![grads.into()], 0.1).unwrap();
        }
        let [a, b] = vars.map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(a, b);
        assert!((a[0] - 0.899).abs() < 1e-5 && (a[1] - 1.898).abs() < 1e-5, "{a:?}");
        let mut adam = AdamW::new(vec![Var::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap()], config);
        assert!(adam.step_sums(vec![vec![Gradient::Buffer(pool.copy(&[1.0]))]], 0.1).is_err());
    }

    #[test]
    fn ema_follows() {
        let mut params = Params::new(1, &Device::Cpu);
        params.get_or_init("a", &[2], crate::params::Init::Zeros).unwrap();
        let mut ema = Ema::new(&params, 0.5).unwrap();
        params.get("a").unwrap().set(&Tensor::new(&[1.0f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        for _ in 0..60 {
            ema.update(&params).unwrap();
        }
        params.get("a").unwrap().set(&Tensor::new(&[0.0f32, 0.0], &Device::Cpu).unwrap()).unwrap();
        ema.apply(&params).unwrap();
        let values = params.get("a").unwrap().to_vec1::<f32>().unwrap();
        assert!((values[0] - 1.0).abs() < 1e-3 && (values[1] - 2.0).abs() < 1e-3, "{values:?}");
    }

    #[test]
    fn cosine_warms_up_and_ends_low() {
        let at = |s| cosine(1.0, s, 100);
        assert!(at(0) < 0.2 && (at(10) - 1.0).abs() < 1e-9 && at(99) < 0.01);
    }
}
