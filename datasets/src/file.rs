//! A file of labelled data of any format, read from disk without holding the file itself in memory.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::str::FromStr;

use crate::images::Target;
use crate::{Data, Dataset, Error, Limits, Modality, Result, archive, idx, npz, tarball};

/// Names of the formats that [`read_file`] reads.
pub const FORMATS: [&str; 5] = ["zip", "tar.gz", "tar", "idx", "npz"];

/// Format of a file of labelled data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A zip of images: see [`archive::from_zip`].
    Zip,
    /// A tar of images, with or without gzip: see [`tarball::from_tar`].
    Tar,
    /// An IDX file of images followed by one of labels, both plain or both compressed with gzip.
    Idx,
    /// A NumPy archive: see [`npz::from_npz`].
    Npz,
}

impl Format {
    /// The format that a file's name ends with, if it is one.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        match () {
            () if ends(&[".zip"]) => Some(Self::Zip),
            () if ends(&[".tar", ".tar.gz", ".tgz"]) => Some(Self::Tar),
            () if ends(&[".npz"]) => Some(Self::Npz),
            () if ends(&[".idx", ".idx.gz"]) => Some(Self::Idx),
            () => None,
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "zip" => Ok(Self::Zip),
            "tar.gz" | "tgz" | "tar" => Ok(Self::Tar),
            "idx" => Ok(Self::Idx),
            "npz" => Ok(Self::Npz),
            _ => Err(Error::UnknownFormat(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zip => "zip",
            Self::Tar => "tar.gz",
            Self::Idx => "idx",
            Self::Npz => "npz",
        })
    }
}

/// What a file's examples are brought to, and what labels them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// 1 (grey) or 3 (RGB) channels; `None`: as they are (in an archive grey only when all images are).
    pub channels: Option<usize>,
    /// Height and width that images are resized to; `None`: as they are, all of one size.
    pub size: Option<[usize; 2]>,
    /// The content of a `labels.csv` for an archive, instead of its own.
    pub labels: Option<Vec<u8>>,
}

impl ReadOptions {
    /// Checks the values.
    ///
    /// # Errors
    /// `dataset_invalid` for other channels than 1 and 3, or a side that is not 1 to 65,535.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        if !matches!(self.channels, None | Some(1 | 3)) {
            return Err(Error::DatasetInvalid("channels must be 1 (grey) or 3 (RGB)".into()));
        }
        let Some([height, width]) = self.size else { return Ok(()) };
        let side = |n: usize| (1..=usize::from(u16::MAX)).contains(&n);
        if !side(height) || !side(width) {
            let text = format!("cannot resize to {height}x{width}; each side must be 1 to 65535 pixels");
            return Err(Error::DatasetInvalid(text));
        }
        match height.saturating_mul(width) {
            area if area > limits.max_pixels_per_image => {
                Err(Error::limit("pixels of a resized image", area, limits.max_pixels_per_image))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a file. Besides the dataset itself, an entry of the archive at a time is in memory. The dataset's name is the
/// format's; give it one of your own.
///
/// Errors: `io`, `limit_exceeded` (also of the file's size), `dataset_invalid` for options that cannot be, and those
/// of the format's reader.
pub fn read_file(path: &Path, format: Format, options: &ReadOptions, limits: &Limits) -> Result<Dataset> {
    options.check(limits)?;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::io(path, std::io::Error::other("it is not a file")));
    }
    let size = metadata.len();
    if size > limits.max_compressed_bytes {
        return Err(Error::limit("bytes of the file", size, limits.max_compressed_bytes));
    }
    read(BufReader::with_capacity(1 << 16, file), format, options, limits)
}

/// As [`read_file`], from anything that can be read and sought.
pub(crate) fn read(
    source: impl Read + Seek,
    format: Format,
    options: &ReadOptions,
    limits: &Limits,
) -> Result<Dataset> {
    options.check(limits)?;
    let size = options.size.map(|[h, w]| (h as u32, w as u32));
    let target = Target { channels: options.channels, size };
    let labels = options.labels.as_deref();
    let dataset = match format {
        Format::Zip => archive::read_zip(source, limits, target, labels)?,
        Format::Tar => tarball::read_tar(source, limits, target, labels)?,
        Format::Npz => shaped(npz::read_npz(source, limits)?, options, limits)?,
        Format::Idx => shaped(idx::read_pair(source, limits)?, options, limits)?,
    };
    check_values(&dataset, limits)?;
    Ok(dataset)
}

fn check_values(dataset: &Dataset, limits: &Limits) -> Result<()> {
    match dataset.data.len() > limits.max_values {
        true => Err(Error::limit("values of all examples", dataset.data.len(), limits.max_values)),
        false => Ok(()),
    }
}

/// Brings a dataset that was not decoded from image files to the channels and size asked for.
fn shaped(dataset: Dataset, options: &ReadOptions, limits: &Limits) -> Result<Dataset> {
    let mut dataset = match options.channels {
        Some(channels) => dataset.with_channels(channels)?,
        None => dataset,
    };
    if let Some([height, width]) = options.size
        && dataset.shape.get(1..) != Some(&[height, width])
    {
        let values = dataset.len().saturating_mul(height).saturating_mul(width).saturating_mul(dataset.shape[0]);
        if values > limits.max_values {
            return Err(Error::limit("values of all examples", values, limits.max_values));
        }
        dataset = dataset.resize(height, width)?;
    }
    Ok(dataset)
}

impl Dataset {
    /// The images with 1 (grey by luminance, Rec. 709) or 3 channels (grey repeated).
    ///
    /// Errors: `not_images` for feature vectors, `dataset_invalid` for another number.
    pub fn with_channels(self, channels: usize) -> Result<Self> {
        if self.modality() != Modality::Image {
            return Err(Error::NotImages(self.name));
        }
        let area = self.shape[1] * self.shape[2];
        let data = match (self.shape[0], channels) {
            (from, to) if from == to => return Ok(self),
            (1, 3) => match &self.data {
                Data::U8(v) => Data::U8(v.chunks_exact(area).flat_map(|plane| plane.repeat(3)).collect()),
                Data::F32(v) => Data::F32(v.chunks_exact(area).flat_map(|plane| plane.repeat(3)).collect()),
            },
            (3, 1) => match &self.data {
                Data::U8(v) => {
                    let v: Vec<f32> = v.iter().map(|&v| f32::from(v)).collect();
                    Data::U8(luminance(&v, area).into_iter().map(|v| v.round() as u8).collect())
                }
                Data::F32(v) => Data::F32(luminance(v, area).into_iter().map(|v| v.clamp(0.0, 1.0)).collect()),
            },
            _ => return Err(Error::DatasetInvalid(format!("channels is {channels}; it must be 1 or 3"))),
        };
        let shape = vec![channels, self.shape[1], self.shape[2]];
        Self::new(self.name, shape, self.class_names, data, self.labels)
    }
}

fn luminance(values: &[f32], area: usize) -> Vec<f32> {
    let grey = |image: &[f32]| {
        (0..area).map(|i| 0.2126 * image[i] + 0.7152 * image[area + i] + 0.0722 * image[2 * area + i]).collect()
    };
    values.chunks_exact(3 * area).flat_map(|image| -> Vec<f32> { grey(image) }).collect()
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
