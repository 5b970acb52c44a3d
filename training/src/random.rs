//! Seeded randomness. candle's CPU generator cannot be seeded, so noise is drawn here and made a tensor.

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::error::Result;

/// A generator for one named purpose: equal (seed, purpose) give equal streams, other purposes independent ones.
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    // FNV-1a: stable over versions and platforms, unlike the standard library's hasher.
    let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash);
    rng
}

/// `n` standard normal values.
pub fn normal_vec(n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| StandardNormal.sample(rng)).collect()
}

/// A standard normal tensor.
///
/// # Errors
/// When the device is out of memory.
pub fn normal(shape: &[usize], device: &Device, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    Ok(Tensor::from_vec(normal_vec(shape.iter().product(), rng), shape, device)?)
}
