//! Eight values at a time, written so that the compiler makes vector instructions of them.

/// Values of a vector.
pub(super) const LANES: usize = 8;

/// A vector.
pub(super) type Lanes = [f32; LANES];

/// a · b + c, fused where the machine does that in one instruction: elsewhere it would be a call for each value.
#[inline(always)]
pub(super) fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// The vector at `at`.
#[inline(always)]
pub(super) fn load(values: &[f32], at: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[at..at + LANES]);
    lanes
}

/// sum += x · factor.
#[inline(always)]
pub(super) fn fma(sum: &mut Lanes, x: &Lanes, factor: f32) {
    for l in 0..LANES {
        sum[l] = mul_add(x[l], factor, sum[l]);
    }
}

/// tanh by a rational function, exact to a few units in the last place: the library's takes as long for one value as
/// this for eight.
pub(super) fn tanh(values: &mut [f32]) {
    // Beyond, tanh is 1 in single precision.
    const END: f32 = 7.905_311;
    const P: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297_1e-8,
        1.485_722_4e-5,
        6.372_619_3e-4,
        4.893_524_6e-3,
    ];
    const Q: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    for v in values {
        // Comparisons that keep what is not a number.
        let x = if *v > END { END } else { *v };
        let x = if x < -END { -END } else { x };
        let square = x * x;
        let p = P[1..].iter().fold(P[0], |sum, c| mul_add(sum, square, *c));
        let q = Q[1..].iter().fold(Q[0], |sum, c| mul_add(sum, square, *c));
        *v = x * p / q;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_exact() {
        let mut values: Vec<f32> =
            (-2000..=2000).map(|i| i as f32 * 0.01).chain([1e-6, -1e-6, 0.0, f32::INFINITY]).collect();
        let expected: Vec<f64> = values.iter().map(|v| f64::from(*v).tanh()).collect();
        tanh(&mut values);
        for (value, expected) in values.iter().zip(&expected) {
            assert!((f64::from(*value) - expected).abs() < 3e-7 * expected.abs().max(1e-6), "{value} {expected}");
        }
        let mut none = [f32::NAN; 9];
        tanh(&mut none);
        assert!(none.iter().all(|v| v.is_nan()), "what is not a number stays so, and is noticed");
    }
}
