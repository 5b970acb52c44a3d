//! Labelled data in: images and feature vectors with integer class labels.
//!
//! Readers for IDX ([`idx`]), image folders ([`folder`]), zip and tar archives ([`archive`], [`tarball`]), NumPy
//! archives ([`npz`]), Omniglot's zips ([`omniglot`]), base64 images of a request ([`inline`]) and the built-in handwritten digits ([`digits`]) all
//! give a [`Dataset`]; [`read_file`] reads a file of any of these formats without holding the file itself. [`unpack`]
//! takes an archive of any files apart. Deterministic splits, per-class sampling and tasks (ordered choices of classes) work on indices
//! into it. The crate knows no tensors, no database and no network.
//!
//! ```
//! let digits = datasets::load_source("digits")?;
//! let split = datasets::split(&digits, 7, 0.1, 0.2)?;
//! let task = digits.select_classes(&[3, 1, 4])?;
//! assert_eq!(task.class_names, ["3", "1", "4"]);
//! assert_eq!(split.train.len() + split.validation.len() + split.test.len(), 1797);
//! # Ok::<(), datasets::Error>(())
//! ```

pub mod archive;
mod csv_labels;
mod dataset;
pub mod digits;
mod error;
mod file;
pub mod folder;
mod gather;
pub mod glue;
pub mod idx;
mod images;
pub mod inline;
mod limits;
mod npy;
pub mod npz;
pub mod omniglot;
mod picture;
mod resize;
mod sampling;
pub mod sentences;
mod source;
mod split;
pub mod tarball;
mod task;
mod unpack;

pub use dataset::{Data, Dataset, Modality};
pub use error::{Error, Result};
pub use file::{FORMATS, Format, ReadOptions, read_file};
pub use limits::Limits;
pub use picture::{MAX_GRID_SIDE, example_png, grid};
pub use sampling::sample_per_class;
pub use source::{SOURCE_FORMS, load_source, load_source_with};
pub use split::{Split, split};
pub use task::{Task, class_sets, ordered_tasks};
pub use unpack::{ArchiveKind, Unpacked, unpack};
