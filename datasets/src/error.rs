//! What can go wrong with labelled data, each with a stable code.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An input that is not the labelled data it should be. Each message is one sentence that says what was wrong and
/// what would be right; [`Error::code`] gives the stable code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An IDX header promises another number of bytes than the file holds.
    #[error(
        "the IDX header promises {promised} bytes of data and the file holds {found}; both must be the same number"
    )]
    IdxHeaderMismatch {
        /// Bytes of data that the header's dimensions make.
        promised: u128,
        /// Bytes of data found: a number, or "at least N" where reading stopped one byte past the promise.
        found: String,
    },
    /// Not an IDX file of the wanted kind.
    #[error("not a usable IDX file: {0}")]
    IdxInvalid(String),
    /// The zip archive is damaged or uses something unsupported.
    #[error("not a usable zip archive: {0}")]
    ZipInvalid(String),
    /// A zip entry whose path leaves the archive.
    #[error("the zip entry {0:?} points outside the archive; entries must be CLASS/FILE with relative names")]
    ZipUnsafePath(String),
    /// The tar archive is damaged or uses something unsupported.
    #[error("not a usable tar archive: {0}")]
    TarInvalid(String),
    /// A tar entry whose path leaves the archive, or that is a link or a device.
    #[error("the tar entry {0:?} is refused; entries must be plain files CLASS/FILE with relative names")]
    TarUnsafePath(String),
    /// The labels of an archive's files cannot be used.
    #[error("labels.csv is not usable: {0}")]
    LabelsCsvInvalid(String),
    /// A format of no known name.
    #[error("unknown format {0:?}; use one of: {forms}", forms = crate::FORMATS.join(", "))]
    UnknownFormat(String),
    /// Not an archive of a kind that is read, or one of nothing.
    #[error("not a usable archive: {0}")]
    ArchiveInvalid(String),
    /// The work was told to stop.
    #[error("the work was stopped before its end")]
    Stopped,
    /// An image that cannot be decoded.
    #[error("{name} is not a readable image ({formats}): {reason}", formats = crate::images::FORMATS)]
    ImageInvalid {
        /// File, zip entry or position in the request.
        name: String,
        /// What the decoder says.
        reason: String,
    },
    /// An image of another size than those before it.
    #[error("{name} is {found} pixels (height x width), the images before it are {expected}; all must be of one size")]
    ImageSizeMismatch {
        /// File, zip entry or position in the request.
        name: String,
        /// Size of the first image, height x width.
        expected: String,
        /// Size of this image, height x width.
        found: String,
    },
    /// A file of a task of GLUE that is not as it should be.
    #[error("{path}: {reason}")]
    Glue {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A class has no example.
    #[error("class {0:?} has no examples; give at least one for every class")]
    ClassWithoutImages(String),
    /// A class that is not among those declared.
    #[error("{class:?} is not one of the classes; known are: {known}")]
    UnknownClass {
        /// The class asked for.
        class: String,
        /// The classes there are.
        known: String,
    },
    /// The same class twice in a list of classes.
    #[error("class {0:?} is listed twice; name every class once")]
    DuplicateClass(String),
    /// Fewer than two classes.
    #[error("found {0} class(es); a dataset needs at least two")]
    TooFewClasses(usize),
    /// A class has too few examples for the split asked for.
    #[error(
        "class {class:?} has {have} example(s), the split needs at least {need} so that every part has one of each class"
    )]
    TooFewExamples {
        /// The class.
        class: String,
        /// Its examples.
        have: usize,
        /// The examples needed.
        need: usize,
    },
    /// NaN or an infinity.
    #[error("row {row} of the {array} holds NaN or an infinity (as f32); every value must be finite")]
    NonFinite {
        /// `images` or `features`.
        array: &'static str,
        /// Index of the example, from 0.
        row: usize,
    },
    /// An image value outside [0, 1].
    #[error("row {row} of the images holds {value}; float images must lie in [0, 1], or be u8 in 0..=255")]
    ValueOutOfRange {
        /// Index of the example, from 0.
        row: usize,
        /// The value.
        value: f32,
    },
    /// Not a NumPy archive of the wanted kind.
    #[error("not a usable npz archive: {0}")]
    NpzInvalid(String),
    /// A label outside the classes.
    #[error("label {label} of example {row} is out of range; labels of {classes} classes are 0..={}", .classes.saturating_sub(1))]
    LabelsOutOfRange {
        /// Index of the example, from 0.
        row: usize,
        /// The label found.
        label: i128,
        /// Number of classes.
        classes: usize,
    },
    /// More than a [`crate::Limits`] field allows.
    #[error("{what}: {found} exceeds the limit of {limit}")]
    LimitExceeded {
        /// What was counted.
        what: String,
        /// The count found (for a stream, where reading stopped).
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A source specification of no known form.
    #[error("unknown data source {0:?}; use one of: {forms}", forms = crate::SOURCE_FORMS.join(", "))]
    UnknownSource(String),
    /// A dataset whose parts do not fit together.
    #[error("not a valid dataset: {0}")]
    DatasetInvalid(String),
    /// Two datasets that cannot be joined.
    #[error("the datasets do not fit together: {0}")]
    DatasetMismatch(String),
    /// Something that only images can do, asked of features.
    #[error("dataset {0:?} holds feature vectors; only image datasets can be resized")]
    NotImages(String),
    /// Split fractions that leave no training part.
    #[error(
        "validation {validation} and test {test} are not usable fractions; each must be in [0, 1) and their sum below 1"
    )]
    SplitInvalid {
        /// The validation fraction given.
        validation: f64,
        /// The test fraction given.
        test: f64,
    },
    /// A sampling request that cannot be met.
    #[error("{0}")]
    SampleInvalid(String),
    /// A file or folder without the expected content.
    #[error("{path} is not a data folder: {reason}", path = .path.display())]
    FolderInvalid {
        /// The folder.
        path: PathBuf,
        /// What is missing and what would be right.
        reason: String,
    },
    /// The file system.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Error {
    /// The stable code of this error, snake_case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::IdxHeaderMismatch { .. } => "idx_header_mismatch",
            Self::IdxInvalid(_) => "idx_invalid",
            Self::ZipInvalid(_) => "zip_invalid",
            Self::ZipUnsafePath(_) => "zip_unsafe_path",
            Self::TarInvalid(_) => "tar_invalid",
            Self::TarUnsafePath(_) => "tar_unsafe_path",
            Self::LabelsCsvInvalid(_) => "labels_csv_invalid",
            Self::Glue { .. } => "glue_invalid",
            Self::UnknownFormat(_) => "unknown_format",
            Self::ArchiveInvalid(_) => "archive_invalid",
            Self::Stopped => "cancelled",
            Self::ImageInvalid { .. } => "image_invalid",
            Self::ImageSizeMismatch { .. } => "image_size_mismatch",
            Self::ClassWithoutImages(_) => "class_without_images",
            Self::UnknownClass { .. } => "unknown_class",
            Self::DuplicateClass(_) => "duplicate_class",
            Self::TooFewClasses(_) => "too_few_classes",
            Self::TooFewExamples { .. } => "too_few_examples",
            Self::NonFinite { .. } => "non_finite",
            Self::ValueOutOfRange { .. } => "value_out_of_range",
            Self::NpzInvalid(_) => "npz_invalid",
            Self::LabelsOutOfRange { .. } => "labels_out_of_range",
            Self::LimitExceeded { .. } => "limit_exceeded",
            Self::UnknownSource(_) => "unknown_source",
            Self::DatasetInvalid(_) => "dataset_invalid",
            Self::DatasetMismatch(_) => "dataset_mismatch",
            Self::NotImages(_) => "not_images",
            Self::SplitInvalid { .. } => "split_invalid",
            Self::SampleInvalid(_) => "sample_invalid",
            Self::FolderInvalid { .. } => "folder_invalid",
            Self::Io { .. } => "io",
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn limit(what: impl Into<String>, found: impl TryInto<u64>, limit: impl TryInto<u64>) -> Self {
        let count = |n: Option<u64>| n.unwrap_or(u64::MAX);
        Self::LimitExceeded {
            what: what.into(),
            found: count(found.try_into().ok()),
            limit: count(limit.try_into().ok()),
        }
    }
}
