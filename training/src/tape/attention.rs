//! softmax(Q Kᵀ / √width) V for each example and head, on tokens as the linear maps give them: no head is copied out.

use kernels::{Buffer, Pool, View, product};

use super::silu::exp;
use crate::backend::ABSENT;

/// Sizes of an attention of queries `[n, queries, width]` to keys and values `[n, keys, width]`.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Queries of an example.
    pub queries: usize,
    /// Keys of an example.
    pub keys: usize,
    /// Width of a token, over all heads.
    pub width: usize,
    /// Heads.
    pub heads: usize,
}

impl Attention {
    fn head(self) -> usize {
        self.width / self.heads
    }

    fn factor(self) -> f32 {
        (1.0 / (self.head() as f64).sqrt()) as f32
    }

    /// The columns of a head in the tokens of an example.
    fn part(self, tokens: &[f32], example: usize, count: usize, head: usize) -> View<'_> {
        let start = example * count * self.width + head * self.head();
        View::strided(&tokens[start..(example + 1) * count * self.width], count, self.head(), self.width)
    }

    /// Where those columns are.
    fn range(self, example: usize, count: usize, head: usize) -> std::ops::Range<usize> {
        example * count * self.width + head * self.head()..(example + 1) * count * self.width
    }

    /// Mixed values `[n, queries, width]`, and each key's share of each query, `[n, heads, queries, keys]`. Keys whose
    /// `presence [n, keys]` is 0 get none.
    pub fn forward(self, [q, k, v]: [&[f32]; 3], presence: Option<&[f32]>, pool: &Pool) -> (Buffer, Buffer) {
        let size = self.queries * self.keys;
        let n = q.len() / (self.queries * self.width);
        let mut mixed = pool.take(q.len());
        let mut shares = pool.take(n * self.heads * size);
        for (i, shares) in shares.chunks_exact_mut(size).enumerate() {
            let (example, head) = (i / self.heads, i % self.heads);
            let queries = self.part(q, example, self.queries, head);
            let keys = self.part(k, example, self.keys, head);
            product(queries, keys.t(), shares, self.keys, self.factor(), false);
            let there = presence.map(|p| &p[example * self.keys..(example + 1) * self.keys]);
            shares.chunks_exact_mut(self.keys).for_each(|row| softmax(row, there));
            let out = &mut mixed[self.range(example, self.queries, head)];
            let values = self.part(v, example, self.keys, head);
            product(View::new(shares, self.queries, self.keys), values, out, self.width, 1.0, false);
        }
        (mixed, shares)
    }

    /// Gradients of queries, keys and values from those of the mixed values.
    pub fn backward(self, [q, k, v]: [&[f32]; 3], shares: &[f32], grad: &[f32], pool: &Pool) -> [Buffer; 3] {
        let size = self.queries * self.keys;
        let (mut dq, mut dk, mut dv) = (pool.take(q.len()), pool.take(k.len()), pool.take(v.len()));
        let mut slopes = pool.take(size);
        for (i, shares) in shares.chunks_exact(size).enumerate() {
            let (example, head) = (i / self.heads, i % self.heads);
            let grad = self.part(grad, example, self.queries, head);
            let own = View::new(shares, self.queries, self.keys);
            product(own.t(), grad, &mut dv[self.range(example, self.keys, head)], self.width, 1.0, false);
            product(grad, self.part(v, example, self.keys, head).t(), &mut slopes, self.keys, 1.0, false);
            for (slopes, shares) in slopes.chunks_exact_mut(self.keys).zip(shares.chunks_exact(self.keys)) {
                let dot = kernels::sum(slopes, shares, |g, p| g * p) as f32;
                slopes.iter_mut().zip(shares).for_each(|(g, p)| *g = p * (*g - dot));
            }
            let slopes = View::new(&slopes, self.queries, self.keys);
            let (queries, keys) = (self.part(q, example, self.queries, head), self.part(k, example, self.keys, head));
            let out = &mut dq[self.range(example, self.queries, head)];
            product(slopes, keys, out, self.width, self.factor(), false);
            let out = &mut dk[self.range(example, self.keys, head)];
            product(slopes.t(), queries, out, self.width, self.factor(), false);
        }
        [dq, dk, dv]
    }
}

fn softmax(row: &mut [f32], presence: Option<&[f32]>) {
    if let Some(presence) = presence {
        row.iter_mut().zip(presence).for_each(|(v, p)| *v += (p - 1.0) * ABSENT as f32);
    }
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|v| *v = exp(*v - largest));
    if let Some(presence) = presence {
        // This exponential never quite reaches 0; what is not there has no share at all.
        row.iter_mut().zip(presence).for_each(|(v, p)| *v *= p);
    }
    let inverse = (1.0 / kernels::sum(row, &[], |v, _| v).max(f64::from(f32::MIN_POSITIVE))) as f32;
    row.iter_mut().for_each(|v| *v *= inverse);
}
