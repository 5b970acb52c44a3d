//! Generator bundles on ONNX Runtime: encode a dataset, sample latents, decode them to weights, evaluate.
//!
//! The crate knows no database and no network. Its calls block; everything is `Send + Sync`.
//!
//! ```no_run
//! use inference::{Device, Generator, Runtime, SampleOptions, locate_library};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::new(&locate_library(None)?, Device::Auto, 0)?;
//! let bundle = weights::Bundle::read_tar(std::fs::File::open("generator.tar")?)?;
//! let generator = Generator::load(&runtime, bundle)?;
//! let digits = datasets::load_source("digits")?;
//! let classes = [3, 1, 4, 0, 7];
//! let embedding = generator.embed(&generator.features(&digits, &classes, 0)?)?;
//! let generated = generator.generate(&embedding, &SampleOptions::default(), &mut |_, _| true)?;
//! let result = generator.evaluate(&generated.weights[0], &digits.select_classes(&classes)?)?;
//! assert!(result.accuracy > 0.2);
//! # Ok(())
//! # }
//! ```

mod batch;
mod candidates;
mod contract;
mod convolutions;
mod error;
mod extractor;
mod features;
mod forward;
mod generator;
mod options;
pub mod output;
mod pool;
mod refine;
mod runtime;
pub mod samplers;
mod statistics;
mod support;

pub use batch::{MOST_ROWS as BATCH_ROWS, replayed};
pub use candidates::{Candidate, Maker, NEAR, Origin, Place, RETRIEVED, RankBy, Ranked, Scores};
pub use error::{Error, Result};
pub use extractor::Extractor;
pub use forward::{Evaluation, Forward};
pub use generator::{Embedding, Familiarity, Generated, Generator, Timings, memory};
pub use options::{SampleLimits, SampleOptions, SamplerKind};
pub use output::{Provenance, to_safetensors};
pub use pool::{Lease, SessionPool, Tensor};
pub use refine::{MAX_STEPS, Refine};
pub use runtime::{Device, Provider, Runtime, locate_library};
pub use support::{ClosedForm, Fold, MAX_FOLDS, Part, Support};
