//! One dimension of F(4, 3): four outputs of a filter with three taps from six products (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", 2016, section 4). The points are 0, ±a, ±b and ∞ with a = 2/3 and b = 3/2: errors are half
//! of those with the usual 1 and 2 (a search over points, as in Alam et al., "Winograd Convolution for Deep Neural
//! Networks: Efficient Point Selection", 2022).
//!
//! With `g` the filter, `d` the inputs and `y` the outputs: y = Aᵀ [(G g) ⊙ (Bᵀ d)]. Each function does as many as there are
//! lanes, side by side.

use wide::f32x8;

/// Values side by side.
pub const LANES: usize = 8;
/// Values of [`LANES`] filters, tiles, or products.
pub type Lanes = f32x8;
/// Products in one dimension.
pub const POINTS: usize = 6;
/// Outputs in one dimension.
pub const OUT: usize = 4;
/// Taps in one dimension.
pub const TAPS: usize = 3;

const A: f32 = 2.0 / 3.0;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// Products of the differences between one point and all others: of 0, of ±a and of ±b.
const AT_0: f32 = A2 * B2;
const AT_A: f32 = 2.0 * A2 * (A2 - B2);
const AT_B: f32 = 2.0 * B2 * (B2 - A2);

/// `a · by + b`.
#[inline(always)]
fn scale_add(a: Lanes, by: f32, b: Lanes) -> Lanes {
    a.mul_add(Lanes::splat(by), b)
}

/// `Bᵀ d`.
#[inline(always)]
pub fn input([d0, d1, d2, d3, d4, d5]: [Lanes; POINTS]) -> [Lanes; POINTS] {
    let (even_a, odd_a) = (scale_add(d2, -B2, d4), scale_add(d1, -B2, d3));
    let (even_b, odd_b) = (scale_add(d2, -A2, d4), scale_add(d1, -A2, d3));
    [
        scale_add(d0, AT_0, scale_add(d2, -A2 - B2, d4)),
        scale_add(odd_a, A, even_a),
        scale_add(odd_a, -A, even_a),
        scale_add(odd_b, B, even_b),
        scale_add(odd_b, -B, even_b),
        scale_add(d1, AT_0, scale_add(d3, -A2 - B2, d5)),
    ]
}

/// `Aᵀ m`.
#[inline(always)]
pub fn output([m0, m1, m2, m3, m4, m5]: [Lanes; POINTS]) -> [Lanes; OUT] {
    let (even_a, odd_a, even_b, odd_b) = (m1 + m2, m1 - m2, m3 + m4, m3 - m4);
    [
        m0 + even_a + even_b,
        scale_add(odd_b, B, odd_a * A),
        scale_add(even_b, B2, even_a * A2),
        scale_add(odd_b, B * B2, scale_add(odd_a, A * A2, m5)),
    ]
}

/// `A y`: what of a gradient of the outputs goes to each product.
#[inline(always)]
pub fn output_gradient([y0, y1, y2, y3]: [Lanes; OUT]) -> [Lanes; POINTS] {
    let at = |p: f32| (scale_add(y2, p * p, y0), scale_add(y3, p * p * p, y1 * p));
    let ((even_a, odd_a), (even_b, odd_b)) = (at(A), at(B));
    [y0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y3]
}

/// `G g`.
#[inline(always)]
pub fn filter([g0, g1, g2]: [Lanes; TAPS]) -> [Lanes; POINTS] {
    let at = |p: f32, by: f32| (scale_add(g2, p * p / by, g0 * (1.0 / by)), g1 * (p / by));
    let ((even_a, odd_a), (even_b, odd_b)) = (at(A, AT_A), at(B, AT_B));
    [g0 * (1.0 / AT_0), even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g2]
}

/// `Gᵀ u`: the gradient of a filter from that of what it became.
#[inline(always)]
pub fn filter_gradient([u0, u1, u2, u3, u4, u5]: [Lanes; POINTS]) -> [Lanes; TAPS] {
    let (even_a, odd_a, even_b, odd_b) = (u1 + u2, u1 - u2, u3 + u4, u3 - u4);
    [
        scale_add(u0, 1.0 / AT_0, scale_add(even_a, 1.0 / AT_A, even_b * (1.0 / AT_B))),
        scale_add(odd_a, A / AT_A, odd_b * (B / AT_B)),
        scale_add(even_a, A2 / AT_A, scale_add(even_b, B2 / AT_B, u5)),
    ]
}

/// A square of values, transformed along its rows, which `row` gives, and then along its columns, which `take` gets with their
/// index.
#[inline(always)]
pub fn both<const R: usize, const C: usize, const P: usize, const Q: usize>(
    row: impl Fn(usize) -> [Lanes; C],
    transform: (impl Fn([Lanes; C]) -> [Lanes; Q], impl Fn([Lanes; R]) -> [Lanes; P]),
    mut take: impl FnMut(usize, [Lanes; P]),
) {
    let mut across = [[Lanes::ZERO; Q]; R];
    for (r, across) in across.iter_mut().enumerate() {
        *across = transform.0(row(r));
    }
    for q in 0..Q {
        take(q, transform.1(column(&across, q)));
    }
}

/// A column of rows. Picked from them: a map of so large an array is a call that copies it.
#[inline(always)]
pub fn column<const R: usize, const C: usize>(rows: &[[Lanes; C]; R], c: usize) -> [Lanes; R] {
    std::array::from_fn(|r| rows[r][c])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in every lane.
    fn lanes<const N: usize>(values: [f32; N]) -> [Lanes; N] {
        values.map(Lanes::splat)
    }

    #[test]
    fn six_products_make_four_outputs() {
        let (d, g) = ([0.5, -1.0, 2.0, 0.25, -0.75, 1.5], [1.0, -2.0, 0.5]);
        let (inputs, filter) = (input(lanes(d)), filter(lanes(g)));
        let y = output(std::array::from_fn(|i| inputs[i] * filter[i]));
        for (i, y) in y.iter().enumerate() {
            let direct: f32 = (0..TAPS).map(|k| d[i + k] * g[k]).sum();
            assert!(y.to_array().iter().all(|y| (y - direct).abs() < 1e-5), "{i}: {y:?} {direct}");
        }
    }

    #[test]
    fn gradients_are_the_transposes() {
        let (y, m) = ([0.5, -1.0, 2.0, 0.25], [0.5, -1.0, 0.3, 0.25, -0.75, 1.5]);
        let dot = |a: &[Lanes], b: &[f32]| a.iter().zip(b).map(|(a, b)| a.to_array()[3] * b).sum::<f32>();
        let (there, back) = (dot(&output(lanes(m)), &y), dot(&output_gradient(lanes(y)), &m));
        assert!((there - back).abs() < 1e-5, "{there} {back}");
        let g = [1.0, -2.0, 0.5];
        let (there, back) = (dot(&filter(lanes(g)), &m), dot(&filter_gradient(lanes(m)), &g));
        assert!((there - back).abs() < 1e-5, "{there} {back}");
    }
}
