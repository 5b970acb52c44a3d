//! How much a reader accepts before it refuses.

/// Upper bounds of the readers. Every one is checked before the memory it stands for is allocated.
///
/// The defaults fit files that the operator names; a server gives smaller ones for what clients send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Examples in one dataset.
    pub max_examples: usize,
    /// Classes in one dataset.
    pub max_classes: usize,
    /// Height × width of one image.
    pub max_pixels_per_image: usize,
    /// Length of one feature vector.
    pub max_feature_dim: usize,
    /// Values of all examples together: examples × channels × height × width, or examples × features.
    pub max_values: usize,
    /// Files in an archive, whatever they hold.
    pub max_files: usize,
    /// Bytes of a file as it lies on disk.
    pub max_compressed_bytes: u64,
    /// Bytes after decompression, over the whole input; decoded pixels are counted against it separately.
    pub max_decompressed_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_examples: 1_000_000,
            max_classes: 10_000,
            max_pixels_per_image: 1 << 20,
            max_feature_dim: 1 << 16,
            max_values: 1 << 30,
            max_files: 1_100_000,
            max_compressed_bytes: 8 << 30,
            max_decompressed_bytes: 1 << 30,
        }
    }
}
