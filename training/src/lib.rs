//! Training in candle: the zoo, the VAE, the dataset encoder and the denoiser, and their export to ONNX from the
//! same definitions that trained them. Takes and gives files and values; knows no database and no HTTP.

pub mod backbone;
pub mod backend;
pub mod config;
pub mod curve;
mod data;
pub mod device;
mod direct;
pub mod error;
pub mod export;
pub mod frozen;
pub mod networks;
mod ops;
pub mod optim;
pub mod params;
pub mod precision;
pub mod progress;
pub mod random;
pub mod snapshots;
pub mod speed;
pub mod stages;
mod tape;
pub mod threads;

/// The revision of the source that this program was built from, or `unknown`.
pub const REVISION: &str = env!("WEIGHTSMITH_REVISION");

pub use config::Config;
pub use curve::Curve;
pub use data::{Extract, Extracted, Part, Source, Sources, TaskData, expand};
pub use error::{Error, Result};
pub use snapshots::{Folder, Keep, Snapshots};
