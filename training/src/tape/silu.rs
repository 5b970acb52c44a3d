//! x · sigmoid(x) and its slope, with an exponential that vectorises: the standard library's is called value by value.

use kernels::{Buffer, Pool};

/// eˣ within 2 units in the last place, between e⁻⁸⁷ and e⁸⁸.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p.mul_add(r * r, r + 1.0) * power
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x · sigmoid(x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// The derivative of [`silu`].
#[inline(always)]
pub fn slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 - s).mul_add(x, 1.0)
}

/// [`silu`] of each value.
pub fn forward(x: &[f32], pool: &Pool) -> Buffer {
    let mut y = pool.take(x.len());
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = silu(x));
    y
}

/// Turns gradients of what [`forward`] gave into those of `x`.
pub fn backward(x: &[f32], grad: &mut [f32]) {
    grad.iter_mut().zip(x).for_each(|(g, &x)| *g *= slope(x));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        for i in -8600..8700 {
            let x = i as f32 * 0.01 + 0.003;
            let (ours, theirs) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / theirs - 1.0).abs() < 2.5e-7, "e^{x}: {ours} {theirs}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
    }

    #[test]
    fn the_slope_equals_finite_differences() {
        for i in -60..60 {
            let x = f64::from(i) * 0.17;
            let f = |x: f64| x / (1.0 + (-x).exp());
            let numeric = (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
            assert!((f64::from(slope(x as f32)) - numeric).abs() < 1e-5, "at {x}");
        }
        assert_eq!((silu(-200.0).abs() < 1e-30, silu(200.0)), (true, 200.0));
    }
}
