//! The stages of training, in order: zoo, vectors, VAE, dataset encoder, denoiser, predictor; and the fitting of many models at
//! once that zoo and fine-tuning share.

#[cfg(test)]
mod case;
mod course;
pub mod diffusion;
pub mod encoder;
pub mod fit;
pub mod generator;
pub mod known;
pub mod layers;
pub mod measure;
pub mod net;
pub mod predictor;
pub mod rows;
pub mod shards;
pub mod vae;
pub mod vectors;
pub mod zoo;

pub use course::Given;
