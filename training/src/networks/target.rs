//! Forward passes of the target architectures.

use weights::architecture::{Activation, Architecture};

use crate::backend::{Layers, Unary};
use crate::error::Result;

/// Logits of `architecture` with `params` in the order of its layout: `x [n, …input shape]` → `[n, classes]`.
///
/// # Errors
/// When shapes do not fit.
pub fn forward<L: Layers>(b: &mut L, architecture: &Architecture, params: &[L::T], x: &L::T) -> Result<L::T> {
    match architecture {
        Architecture::Mlp { activation, .. } => {
            let f = match activation {
                Activation::Relu => Unary::Relu,
                Activation::Tanh => Unary::Tanh,
            };
            let layers = params.len() / 2;
            let mut x = x.clone();
            for (i, layer) in params.chunks_exact(2).enumerate() {
                x = b.linear(&x, &layer[0], &layer[1])?;
                if i + 1 < layers {
                    x = b.unary(&x, f)?;
                }
            }
            Ok(x)
        }
        Architecture::TinyCnn { .. } => {
            let mut x = x.clone();
            for (i, layer) in params[..6].chunks_exact(2).enumerate() {
                x = b.conv2d(&x, &layer[0], &layer[1], 1, 0)?;
                if i < 2 {
                    x = b.max_pool2(&x)?;
                }
                x = b.unary(&x, Unary::Tanh)?;
            }
            let x = b.flatten(&x)?;
            let x = b.linear(&x, &params[6], &params[7])?;
            let x = b.unary(&x, Unary::Tanh)?;
            b.linear(&x, &params[8], &params[9])
        }
        Architecture::Head { .. } => b.linear(x, &params[0], &params[1]),
    }
}
