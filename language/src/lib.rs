//! Language models (paper 3.5, 4.3 to 4.5, A.3, A.4): directories as Hugging Face writes them, spectra of their layers,
//! generation of layers chunk by chunk, and the greedy search of Algorithm 1.

pub mod adapters;
pub mod bert;
pub mod described;
pub mod error;
pub mod evaluate;
pub mod generator;
pub mod lm;
pub mod lora;
pub mod model;
mod nn;
pub mod rewrite;
pub mod search;
pub mod soup;
pub mod spectra;
pub mod text;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;

pub use error::{Error, Result};
