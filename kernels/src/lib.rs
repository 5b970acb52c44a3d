//! Arithmetic on the CPU that training and serving have in common: matrix products, and convolutions by patches or by
//! Winograd's minimal filtering. Each call works on its caller's thread; who has several cores cuts the work.

mod conv;
mod matrix;
mod pool;
mod winograd;

pub use conv::{Conv, Prepared};
pub use matrix::{View, product};
pub use pool::{Buffer, Pool};

/// Sum of `f` over values `a`, with those of `b` (0 where it is empty) beside them; in lanes, so that it vectorises.
pub fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    let (others, other) = b.as_chunks::<LANES>();
    for (i, chunk) in chunks.iter().enumerate() {
        let beside = others.get(i).unwrap_or(&[0.0; LANES]);
        for (lane, (a, b)) in lanes.iter_mut().zip(chunk.iter().zip(beside)) {
            *lane += f(*a, *b);
        }
    }
    let rest: f32 = rest.iter().enumerate().map(|(i, &a)| f(a, other.get(i).copied().unwrap_or(0.0))).sum();
    f64::from(lanes.iter().sum::<f32>() + rest)
}
