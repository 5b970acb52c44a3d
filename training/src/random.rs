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

/// The exact state of a generator: seed, stream and position, in hexadecimal.
pub fn state(rng: &ChaCha8Rng) -> String {
    let seed: String = rng.get_seed().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{seed}:{:x}:{:x}", rng.get_stream(), rng.get_word_pos())
}

/// The generator of a [`state`]; none when the text is not one.
pub fn from_state(text: &str) -> Option<ChaCha8Rng> {
    let mut parts = text.split(':');
    let digits = parts.next().filter(|digits| digits.len() == 64 && digits.is_ascii())?;
    let mut seed = [0u8; 32];
    for (i, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).ok()?;
    }
    let stream = u64::from_str_radix(parts.next()?, 16).ok()?;
    let position = u128::from_str_radix(parts.next()?, 16).ok()?;
    let mut rng = ChaCha8Rng::from_seed(seed);
    rng.set_stream(stream);
    rng.set_word_pos(position);
    Some(rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn a_generator_goes_on_where_it_stood() {
        let mut rng = stream(9, "test");
        // Odd numbers of words, so that the position lies inside a block.
        for n in [0, 1, 7, 64, 333] {
            normal_vec(n, &mut rng);
            let _: u32 = rng.random();
            let mut other = from_state(&state(&rng)).unwrap();
            let mut ahead = rng.clone();
            assert_eq!(normal_vec(100, &mut other), normal_vec(100, &mut ahead));
            assert_eq!(other.random::<u32>(), ahead.random::<u32>());
        }
        for bad in ["", "00:1:2", &"z".repeat(64), &format!("{}:1:", "0".repeat(64))] {
            assert!(from_state(bad).is_none(), "{bad}");
        }
    }
}
