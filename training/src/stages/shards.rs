//! Data-parallel steps: the batch is cut into a fixed number of shards, each with its own stream of randomness, whose
//! gradients are averaged. Tensor operations stay on one thread (see [`crate::threads`]), so two cores do twice the
//! work; the number of shards does not depend on the machine, so equal seeds give equal networks.

use candle_core::{Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::device;
use crate::error::{Error, Result};
use crate::optim::Gradient;
use crate::random;
use crate::snapshots::Snapshot;
use crate::tape::Learned;

/// Shards of each batch.
pub const SHARDS: usize = 2;

/// One shard: its copy of the networks (which shares their parameters) and its randomness.
#[derive(Debug)]
pub struct Shard<N> {
    /// The networks.
    pub networks: N,
    /// Its stream.
    pub rng: ChaCha8Rng,
}

/// Networks with all their parameters: those are made by first use, here in one `loss`. A clone has the parameters that there
/// are when it is made, so that shards must be clones of what this gives.
///
/// # Errors
/// Those of the loss.
pub fn created<N, L>(networks: N, seed: u64, loss: impl FnOnce(&mut Shard<N>) -> Result<L>) -> Result<N> {
    let mut first = Shard { networks, rng: random::stream(seed, "create") };
    loss(&mut first)?;
    Ok(first.networks)
}

/// Shards with streams of their own for one stage.
pub fn shards<N>(seed: u64, stage: &str, networks: impl Fn() -> N) -> Vec<Shard<N>> {
    (0..SHARDS)
        .map(|i| Shard { networks: networks(), rng: random::stream(seed, &format!("{stage} shard {i}")) })
        .collect()
}

/// Puts the streams of all shards into a snapshot.
pub fn save<N>(shards: &[Shard<N>], snapshot: &mut Snapshot) {
    for (i, shard) in shards.iter().enumerate() {
        snapshot.put_rng(&format!("shard.{i}"), &shard.rng);
    }
}

/// Sets the streams of all shards to those of a snapshot.
///
/// # Errors
/// When it lacks one.
pub fn restore<N>(shards: &mut [Shard<N>], snapshot: &Snapshot) -> Result<()> {
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.rng = snapshot.rng(&format!("shard.{i}"))?;
    }
    Ok(())
}

/// Examples of one shard of a batch.
fn share(batch: usize) -> usize {
    batch.div_ceil(SHARDS).max(1)
}

/// One shard's part of a batch: checkpoints drawn from `train`, with replacement.
pub fn pick(train: &[usize], batch: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    (0..share(batch)).map(|_| train[rng.random_range(0..train.len())] as u32).collect()
}

/// Gradients by parameter, in the order of the parameters; none where the loss does not depend on it.
pub type Gradients = Vec<Option<Tensor>>;

/// Mean loss over the shards, and its gradients with respect to `vars`. `loss` gives a shard's mean loss.
///
/// # Errors
/// [`Error::Diverged`] when a loss is not finite, with `stage` and `step`; whatever `loss` returns.
pub fn gradients<N: Send>(
    shards: &mut [Shard<N>],
    vars: &[Var],
    at: (&'static str, usize),
    loss: impl Fn(&mut Shard<N>) -> Result<Tensor> + Sync,
) -> Result<(f32, Gradients)> {
    let (total, parts) = each(shards, at, |shard, share| {
        let loss = loss(shard)?.affine(share, 0.0)?;
        let grads = loss.backward()?;
        let own: Gradients = vars.iter().map(|var| grads.get(var).cloned()).collect();
        Ok((loss.to_scalar::<f32>()?, own))
    })?;
    let mut sum: Gradients = vec![None; vars.len()];
    for own in parts {
        for (sum, grad) in sum.iter_mut().zip(own) {
            *sum = match (sum.take(), grad) {
                (Some(a), Some(b)) => Some((a + b)?),
                (a, b) => a.or(b),
            };
        }
    }
    Ok((total, sum))
}

/// Mean loss over the shards, and the shards' gradients of each parameter, to be summed. `learn` gives a shard's share of
/// that loss with the gradients of the share.
///
/// # Errors
/// As [`gradients`].
pub(crate) fn learn<N: Send>(
    shards: &mut [Shard<N>],
    at: (&'static str, usize),
    learn: impl Fn(&mut Shard<N>, f64) -> Result<Learned> + Sync,
) -> Result<(f32, Vec<Vec<Gradient>>)> {
    let (loss, parts) = each(shards, at, |shard, share| learn(shard, share).map(|l| (l.loss, l.params)))?;
    let mut all: Vec<Vec<Gradient>> = Vec::new();
    for own in parts {
        all.resize_with(own.len(), Vec::new);
        all.iter_mut().zip(own).for_each(|(all, grad)| all.extend(grad));
    }
    Ok((loss, all))
}

/// The sum of each shard's share of the loss, and what each has with it, in the order of the shards. `f` takes a shard and
/// the part of the batch that it is.
///
/// # Errors
/// As [`gradients`].
fn each<N: Send, T: Send>(
    shards: &mut [Shard<N>],
    (stage, step): (&'static str, usize),
    f: impl Fn(&mut Shard<N>, f64) -> Result<(f32, T)> + Sync,
) -> Result<(f32, Vec<T>)> {
    let share = 1.0 / shards.len().max(1) as f64;
    let parts = device::each(shards, |shard: &mut Shard<N>| f(shard, share))?;
    let (losses, parts): (Vec<f32>, Vec<T>) = parts.into_iter().unzip();
    let total: f32 = losses.iter().sum();
    if total.is_finite() { Ok((total, parts)) } else { Err(Error::Diverged { stage, step }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_gradient_is_the_mean_over_shards() {
        let var = Var::from_slice(&[2.0f32], 1, &Device::Cpu).unwrap();
        let other = Var::from_slice(&[1.0f32], 1, &Device::Cpu).unwrap();
        let factors = [3.0, 5.0];
        let mut all: Vec<_> =
            factors.iter().map(|&f| Shard { networks: (var.clone(), f), rng: random::stream(0, "t") }).collect();
        let (loss, grads) = gradients(&mut all, &[var.clone(), other], ("t", 0), |s| {
            Ok((s.networks.0.as_tensor() * s.networks.1)?.sum_all()?)
        })
        .unwrap();
        assert_eq!(loss, 8.0);
        assert_eq!(grads[0].as_ref().unwrap().to_vec1::<f32>().unwrap(), [4.0]);
        assert!(grads[1].is_none());
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_an_error() {
        let var = Var::from_slice(&[-1.0f32], 1, &Device::Cpu).unwrap();
        let mut all = shards(1, "t", || ());
        let result = gradients(&mut all, std::slice::from_ref(&var), ("t", 7), |_| Ok(var.log()?.sum_all()?));
        assert!(matches!(result, Err(Error::Diverged { stage: "t", step: 7 })));
    }
}
