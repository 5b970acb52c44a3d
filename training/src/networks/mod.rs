//! The networks: the targets whose weights are generated, and the generator's own. One definition each, generic over
//! the backend.

pub mod conv_vae;
pub mod dataset_encoder;
pub mod denoiser;
pub mod layers;
pub mod predictor;
pub mod target;
pub mod unet;
pub mod vae;
