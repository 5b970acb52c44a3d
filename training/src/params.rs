//! Named parameters of a network, created on first use.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use crate::config::Arithmetic;
use crate::error::{Error, Result};
use crate::random;
use crate::tape::Pool;

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with standard deviation √(gain / fan_in), fan_in = product of all dimensions but the first.
    Scaled(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// All zero: the branch starts as nothing.
    Zeros,
    /// All one.
    Ones,
}

/// Parameters by name. A parameter's initial value depends on the seed and its name only, not on the order of
/// creation. A clone shares the values of the parameters that there are; what is made later is its own
/// (`stages::shards::created`).
#[derive(Debug, Clone)]
pub struct Params {
    vars: BTreeMap<String, Var>,
    seed: u64,
    device: Device,
    pool: Pool,
    arithmetic: Arithmetic,
}

impl Params {
    /// No parameters yet.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { vars: BTreeMap::new(), seed, device: device.clone(), pool: Pool::default(), arithmetic: Arithmetic::F32 }
    }

    /// The device of the parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same parameters, for networks that learn in this arithmetic.
    #[must_use]
    pub fn learning_in(&self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self.clone() }
    }

    /// What products with these parameters are computed in.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Whether gradients are recorded on a tape, not by candle: on the CPU, in f32.
    pub(crate) fn on_tape(&self) -> bool {
        self.device.is_cpu() && self.arithmetic == Arithmetic::F32
    }

    /// Buffers for the values and gradients of what is computed with these parameters.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The parameter `name`, made with `init` when it is new.
    ///
    /// # Errors
    /// [`Error::Config`] when it exists with another shape.
    pub fn get_or_init(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        if let Some(var) = self.vars.get(name) {
            if var.dims() != shape {
                return Err(Error::Config(format!("parameter {name} is {:?}, asked as {shape:?}", var.dims())));
            }
            return Ok(var.as_tensor().clone());
        }
        let n: usize = shape.iter().product();
        let fan_in: usize = shape.iter().skip(1).product::<usize>().max(1);
        let std = match init {
            Init::Scaled(gain) => (gain / fan_in as f64).sqrt(),
            Init::Normal(std) => std,
            Init::Zeros | Init::Ones => 0.0,
        };
        let values = match init {
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            _ => {
                let mut rng = random::stream(self.seed, name);
                random::normal_vec(n, &mut rng).into_iter().map(|v| v * std as f32).collect()
            }
        };
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, &self.device)?)?;
        let tensor = var.as_tensor().clone();
        self.vars.insert(name.to_owned(), var);
        Ok(tensor)
    }

    /// The parameter `name`.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// All parameters in order of their names.
    pub fn vars(&self) -> Vec<Var> {
        self.vars.values().cloned().collect()
    }

    /// Names of all parameters, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.vars.keys().map(String::as_str)
    }

    /// Names with copies of the values (for EMA and best-so-far snapshots).
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        self.vars.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?))).collect()
    }

    /// Sets parameters to the values of a snapshot.
    ///
    /// # Errors
    /// When a shape differs.
    pub fn restore(&self, snapshot: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, var) in &self.vars {
            if let Some(value) = snapshot.get(name) {
                var.set(value)?;
            }
        }
        Ok(())
    }
}
