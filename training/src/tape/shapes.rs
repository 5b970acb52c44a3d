//! What moves values and adds them up: sums over broadcast dimensions, joining, upsampling.

use kernels::{Buffer, Pool};

/// How `b` is repeated to the shape of `a`: `a` is `[outer, repeats, inner]`, `b` is `[outer, inner]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeated {
    /// Leading values that both have.
    pub outer: usize,
    /// Times that each inner block of `b` is used.
    pub repeats: usize,
    /// Trailing values that both have.
    pub inner: usize,
}

impl Repeated {
    /// None where `b` is repeated in several places, or is not broadcast to `a` at all.
    pub fn new(a: &[usize], b: &[usize]) -> Option<Self> {
        let missing = a.len().checked_sub(b.len())?;
        let b: Vec<usize> = std::iter::repeat_n(1, missing).chain(b.iter().copied()).collect();
        let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len());
        let last = a.iter().zip(&b).rposition(|(a, b)| a != b).map_or(first, |at| at + 1);
        b[first..last].iter().all(|&d| d == 1).then_some(())?;
        let product = |dims: &[usize]| dims.iter().product();
        Some(Self { outer: product(&a[..first]), repeats: product(&a[first..last]), inner: product(&a[last..]) })
    }

    /// a + b.
    pub fn sum(self, a: &[f32], b: &[f32], pool: &Pool) -> Buffer {
        let mut out = pool.copy(a);
        if self.inner == 0 || self.repeats == 0 {
            return out;
        }
        for (block, b) in out.chunks_exact_mut(self.repeats * self.inner).zip(b.chunks_exact(self.inner)) {
            if let [b] = b {
                block.iter_mut().for_each(|v| *v += b);
                continue;
            }
            for row in block.chunks_exact_mut(self.inner) {
                row.iter_mut().zip(b).for_each(|(v, b)| *v += b);
            }
        }
        out
    }

    /// Gradient of `b` from that of the sum.
    pub fn gradient(self, grad: &[f32], pool: &Pool) -> Buffer {
        let mut out = pool.zeros(self.outer * self.inner);
        if self.inner == 0 || self.repeats == 0 {
            return out;
        }
        for (block, out) in grad.chunks_exact(self.repeats * self.inner).zip(out.chunks_exact_mut(self.inner)) {
            if let [out] = out {
                *out = kernels::sum(block, &[], |g, _| g) as f32;
                continue;
            }
            for row in block.chunks_exact(self.inner) {
                out.iter_mut().zip(row).for_each(|(v, g)| *v += g);
            }
        }
        out
    }
}

/// Joins `[outer, sizes[i]]` to `[outer, all sizes]`.
pub fn concat(parts: &[&[f32]], sizes: &[usize], pool: &Pool) -> Buffer {
    let row: usize = sizes.iter().sum();
    let mut out = pool.take(parts.iter().map(|part| part.len()).sum());
    for (i, row) in out.chunks_exact_mut(row.max(1)).enumerate() {
        let mut rest = row;
        for (part, &size) in parts.iter().zip(sizes) {
            let (own, others) = rest.split_at_mut(size);
            own.copy_from_slice(&part[i * size..(i + 1) * size]);
            rest = others;
        }
    }
    out
}

/// The part of [`concat`]'s output that begins at `start` of each row of `row` values.
pub fn part(all: &[f32], row: usize, start: usize, size: usize, pool: &Pool) -> Buffer {
    let mut out = pool.take(all.len() / row.max(1) * size);
    if size > 0 {
        let rows = all.chunks_exact(row).zip(out.chunks_exact_mut(size));
        rows.for_each(|(row, out)| out.copy_from_slice(&row[start..start + size]));
    }
    out
}

/// Each value four times: planes of `w` columns to planes twice as high and wide.
pub fn upsample2(x: &[f32], w: usize, pool: &Pool) -> Buffer {
    let mut out = pool.take(4 * x.len());
    for (row, out) in x.chunks_exact(w).zip(out.chunks_exact_mut(4 * w)) {
        let (first, second) = out.split_at_mut(2 * w);
        first.chunks_exact_mut(2).zip(row).for_each(|(pair, v)| pair.fill(*v));
        second.copy_from_slice(first);
    }
    out
}

/// Gradient of `x` from that of [`upsample2`]'s output.
pub fn upsample2_backward(grad: &[f32], w: usize, pool: &Pool) -> Buffer {
    let mut out = pool.take(grad.len() / 4);
    for (rows, out) in grad.chunks_exact(4 * w).zip(out.chunks_exact_mut(w)) {
        let (first, second) = rows.split_at(2 * w);
        let pairs = first.chunks_exact(2).zip(second.chunks_exact(2));
        out.iter_mut().zip(pairs).for_each(|(v, (a, b))| *v = a[0] + a[1] + b[0] + b[1]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated() {
        let of = |a: &[usize], b: &[usize]| Repeated::new(a, b).map(|r| (r.outer, r.repeats, r.inner));
        assert_eq!(of(&[2, 3, 4], &[2, 1, 4]), Some((2, 3, 4)));
        assert_eq!(of(&[2, 3, 4], &[3, 4]), Some((1, 2, 12)));
        assert_eq!(of(&[2, 3, 4, 4], &[2, 3, 1, 1]), Some((6, 16, 1)));
        assert_eq!(of(&[2, 3], &[2, 3]), Some((6, 1, 1)));
        assert_eq!(of(&[2, 3, 4], &[1, 3, 1]), None);
        assert_eq!(of(&[2, 3], &[2, 4]), None);
        assert_eq!(of(&[1, 3], &[2, 3]), None);
    }

    #[test]
    fn sums_and_their_gradients() {
        let pool = Pool::default();
        let a: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let middle = Repeated { outer: 2, repeats: 3, inner: 2 };
        let sum = middle.sum(&a, &[10.0, 20.0, 30.0, 40.0], &pool);
        assert_eq!(*sum, [10.0, 21.0, 12.0, 23.0, 14.0, 25.0, 36.0, 47.0, 38.0, 49.0, 40.0, 51.0]);
        assert_eq!(*middle.gradient(&a, &pool), [6.0, 9.0, 24.0, 27.0]);
        let planes = Repeated { outer: 3, repeats: 4, inner: 1 };
        assert_eq!(*planes.gradient(&a, &pool), [6.0, 22.0, 38.0]);
    }

    #[test]
    fn joined_and_cut() {
        let pool = Pool::default();
        let all = concat(&[&[1.0, 2.0, 5.0, 6.0], &[3.0, 7.0]], &[2, 1], &pool);
        assert_eq!(*all, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0]);
        assert_eq!(*part(&all, 3, 0, 2, &pool), [1.0, 2.0, 5.0, 6.0]);
        assert_eq!(*part(&all, 3, 2, 1, &pool), [3.0, 7.0]);
    }

    #[test]
    fn upsampled_and_back() {
        let pool = Pool::default();
        let up = upsample2(&[1.0, 2.0, 3.0, 4.0], 2, &pool);
        assert_eq!(up[..8], [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(*upsample2_backward(&up, 2, &pool), [4.0, 8.0, 12.0, 16.0]);
    }
}
