//! IDX files (the format of MNIST), gzip or plain.
//!
//! A file is `00 00 08 rank`, `rank` big-endian u32 dimensions, then one unsigned byte a value. Images have rank 3
//! `[n, h, w]` or rank 4 `[n, c, h, w]`, labels rank 1 `[n]`. A header is believed only when the data is exactly as
//! long as it promises.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::source::{file_name, read_file};
use crate::{Data, Dataset, Error, Limits, Result};

/// Images of an IDX file: their number, the shape `[c, h, w]` of one, all pixels row-major.
pub type Images = (usize, Vec<usize>, Vec<u8>);

/// Reads an IDX file of images within the default [`Limits`].
///
/// Errors: `idx_header_mismatch` when the data is shorter or longer than the header promises, `idx_invalid` for
/// anything else that is not IDX, `limit_exceeded`.
pub fn parse_images(bytes: &[u8]) -> Result<Images> {
    parse_images_with(bytes, &Limits::default())
}

/// Reads an IDX file of images within `limits`; errors as [`parse_images`].
pub fn parse_images_with(bytes: &[u8], limits: &Limits) -> Result<Images> {
    let (dims, pixels) = payload(bytes, &[3, 4], limits)?;
    as_images(&dims, pixels, limits)
}

fn as_images(dims: &[usize], pixels: Vec<u8>, limits: &Limits) -> Result<Images> {
    let (n, shape) = match dims[..] {
        [n, h, w] => (n, vec![1, h, w]),
        _ => (dims[0], dims[1..].to_vec()),
    };
    let pixels_each = shape[1] * shape[2];
    if pixels_each > limits.max_pixels_per_image {
        return Err(Error::limit("pixels of an image", pixels_each, limits.max_pixels_per_image));
    }
    Ok((n, shape, pixels))
}

/// Reads an IDX file of labels within the default [`Limits`]; errors as [`parse_images`].
pub fn parse_labels(bytes: &[u8]) -> Result<Vec<u8>> {
    parse_labels_with(bytes, &Limits::default())
}

/// Reads an IDX file of labels within `limits`; errors as [`parse_images`].
pub fn parse_labels_with(bytes: &[u8], limits: &Limits) -> Result<Vec<u8>> {
    payload(bytes, &[1], limits).map(|(_, labels)| labels)
}

/// Reads a file of images and its file of labels. Classes are 0 to the largest label; the name is the folder's.
///
/// Errors: those of [`parse_images`], `dataset_mismatch` when the two files count differently, `io`.
pub fn load_pair(images: &Path, labels: &Path) -> Result<Dataset> {
    let limits = Limits::default();
    let pair = Pair::read(images, labels, &limits)?;
    let name = file_name(images.parent().unwrap_or(images));
    let classes = pair.classes();
    pair.into_dataset(&name, classes)
}

/// Reads every pair `*images*` + `*labels*` of a folder as one dataset: train files first, then test (or t10k)
/// files, then others by name. The name is the folder's.
///
/// Errors: `folder_invalid` when there is no images file or one has no labels file, and those of [`load_pair`].
pub fn load_dir(dir: &Path) -> Result<Dataset> {
    load_dir_with(dir, &Limits::default())
}

/// As [`load_dir`], within `limits`.
pub fn load_dir_with(dir: &Path, limits: &Limits) -> Result<Dataset> {
    let pairs = find_pairs(dir)?;
    let read = pairs.iter().map(|found| found.read(limits)).collect::<Result<Vec<_>>>()?;
    let classes = read.iter().map(Pair::classes).max().unwrap_or(0);
    join(&file_name(dir), read, classes)
}

/// Reads a folder's train files and its test (or t10k) files as two datasets with the same classes.
///
/// Errors: `folder_invalid` when one of the two is missing, and those of [`load_dir`].
pub fn load_dir_parts(dir: &Path) -> Result<(Dataset, Dataset)> {
    let limits = Limits::default();
    let pairs = find_pairs(dir)?;
    let part = |part: Part, word: &str| {
        let read = (pairs.iter().filter(|found| found.part == part))
            .map(|found| found.read(&limits))
            .collect::<Result<Vec<_>>>()?;
        match read.is_empty() {
            true => {
                Err(invalid(dir, format!("it has no {word} images; expected a file like {word}-images-idx3-ubyte")))
            }
            false => Ok(read),
        }
    };
    let (train, test) = (part(Part::Train, "train")?, part(Part::Test, "test")?);
    let classes = train.iter().chain(&test).map(Pair::classes).max().unwrap_or(0);
    let name = file_name(dir);
    Ok((join(&name, train, classes)?, join(&name, test, classes)?))
}

/// Reads an IDX file of images that is followed by one of labels, both plain or both compressed with gzip
/// (`cat images.gz labels.gz`). Classes are 0 to the largest label.
///
/// Errors: those of [`parse_images`], `dataset_mismatch` when the two count differently.
pub(crate) fn read_pair(source: impl Read, limits: &Limits) -> Result<Dataset> {
    let mut source = BufReader::with_capacity(1 << 16, source);
    let magic = source.fill_buf().map_err(|e| Error::IdxInvalid(format!("it cannot be read ({e})")))?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        return pair_of(BufReader::new(flate2::bufread::MultiGzDecoder::new(source)), limits);
    }
    pair_of(source, limits)
}

fn pair_of(mut source: impl BufRead, limits: &Limits) -> Result<Dataset> {
    let (dims, pixels) = part_of_stream(&mut source, &[3, 4], limits)?;
    let images = as_images(&dims, pixels, limits)?;
    let (_, labels) = part_of_stream(&mut source, &[1], limits)?;
    let more = source.fill_buf().map_err(|e| Error::IdxInvalid(format!("its gzip stream breaks ({e})")))?;
    if !more.is_empty() {
        return Err(Error::IdxInvalid("something follows the labels; send images, then labels, and no more".into()));
    }
    let images_found = images.0;
    if images_found != labels.len() {
        return Err(Error::DatasetMismatch(format!(
            "there are {images_found} images and {} labels; there must be one label an image",
            labels.len()
        )));
    }
    let pair = Pair { images, labels };
    let classes = pair.classes();
    if classes > limits.max_classes {
        return Err(Error::limit("classes in an IDX file", classes, limits.max_classes));
    }
    let dataset = pair.into_dataset("idx", classes)?;
    dataset.require_every_class()?;
    Ok(dataset)
}

/// One IDX file of several in a stream: exactly as many bytes as its header promises.
fn part_of_stream(source: &mut impl BufRead, ranks: &[u8], limits: &Limits) -> Result<(Vec<usize>, Vec<u8>)> {
    let dims = header(source, ranks, limits)?;
    let promised = product(&dims);
    check_bytes(promised, limits)?;
    let mut data = Vec::new();
    let read = source.by_ref().take(u64::try_from(promised).unwrap_or(u64::MAX)).read_to_end(&mut data);
    read.map_err(|e| Error::IdxInvalid(format!("its stream breaks after {} of {promised} bytes: {e}", data.len())))?;
    match data.len() as u128 == promised {
        true => Ok((to_usize(&dims), data)),
        false => Err(Error::IdxHeaderMismatch { promised, found: data.len().to_string() }),
    }
}

/// Writes `pixels` of `n` images of `shape` `[c, h, w]` as a plain IDX file: rank 3 for one channel, else rank 4.
///
/// Errors: `dataset_invalid` when the number of pixels does not fit or a dimension exceeds 32 bits.
pub fn write_images(n: usize, shape: &[usize], pixels: &[u8]) -> Result<Vec<u8>> {
    let dims: Vec<usize> = match shape {
        [1, h, w] => vec![n, *h, *w],
        [c, h, w] => vec![n, *c, *h, *w],
        _ => return Err(Error::DatasetInvalid(format!("image shape {shape:?} must be [c, h, w]"))),
    };
    write(&dims, pixels)
}

/// Writes labels as a plain IDX file.
pub fn write_labels(labels: &[u8]) -> Result<Vec<u8>> {
    write(&[labels.len()], labels)
}

fn write(dims: &[usize], data: &[u8]) -> Result<Vec<u8>> {
    if dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d)) != Some(data.len()) {
        return Err(Error::DatasetInvalid(format!("{} values do not fill the dimensions {dims:?}", data.len())));
    }
    let mut out = vec![0, 0, UNSIGNED_BYTE, dims.len() as u8];
    for &dim in dims {
        let dim = u32::try_from(dim)
            .map_err(|_| Error::DatasetInvalid(format!("dimension {dim} must fit in the 32 bits of IDX")))?;
        out.extend(dim.to_be_bytes());
    }
    out.extend(data);
    Ok(out)
}

const UNSIGNED_BYTE: u8 = 0x08;

/// The dimensions and the data, whose length is exactly their product.
fn payload(bytes: &[u8], ranks: &[u8], limits: &Limits) -> Result<(Vec<usize>, Vec<u8>)> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return gzip_payload(MultiGzDecoder::new(bytes), ranks, limits);
    }
    let mut rest = bytes;
    let dims = header(&mut rest, ranks, limits)?;
    let promised = product(&dims);
    if promised != rest.len() as u128 {
        return Err(Error::IdxHeaderMismatch { promised, found: rest.len().to_string() });
    }
    check_bytes(promised, limits)?;
    Ok((to_usize(&dims), rest.to_vec()))
}

fn gzip_payload(mut reader: impl Read, ranks: &[u8], limits: &Limits) -> Result<(Vec<usize>, Vec<u8>)> {
    let dims = header(&mut reader, ranks, limits)?;
    let promised = product(&dims);
    // One byte more than promised tells a longer stream; never more than the limit is read.
    let most = u64::try_from(promised).unwrap_or(u64::MAX).min(limits.max_decompressed_bytes).saturating_add(1);
    let mut data = Vec::new();
    if let Err(error) = reader.take(most).read_to_end(&mut data) {
        return Err(Error::IdxInvalid(format!(
            "its gzip stream breaks after {} of {promised} bytes: {error}",
            data.len()
        )));
    }
    let found = data.len() as u128;
    check_bytes(found.min(promised), limits)?;
    match found.cmp(&promised) {
        Ordering::Equal => Ok((to_usize(&dims), data)),
        Ordering::Less => Err(Error::IdxHeaderMismatch { promised, found: found.to_string() }),
        Ordering::Greater => Err(Error::IdxHeaderMismatch { promised, found: format!("at least {found}") }),
    }
}

fn header(reader: &mut impl Read, ranks: &[u8], limits: &Limits) -> Result<Vec<u32>> {
    let ends = |error: std::io::Error| Error::IdxInvalid(format!("it ends inside the header ({error})"));
    let mut word = [0u8; 4];
    reader.read_exact(&mut word).map_err(ends)?;
    let [0, 0, kind, rank] = word else {
        return Err(Error::IdxInvalid(format!("it starts with {word:02x?}, IDX starts with 00 00 08 and the rank")));
    };
    if kind != UNSIGNED_BYTE {
        return Err(Error::IdxInvalid(format!(
            "its values are of type 0x{kind:02x}; only unsigned bytes (0x08) are read"
        )));
    }
    if !ranks.contains(&rank) {
        return Err(Error::IdxInvalid(format!("its rank is {rank}; images have rank 3 or 4, labels rank 1")));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        reader.read_exact(&mut word).map_err(ends)?;
        dims.push(u32::from_be_bytes(word));
    }
    if dims.contains(&0) {
        return Err(Error::IdxInvalid(format!("a dimension of {dims:?} is 0; all must be at least 1")));
    }
    if dims[0] as usize > limits.max_examples && product(&dims) <= u128::from(limits.max_decompressed_bytes) {
        return Err(Error::limit("examples in an IDX file", dims[0], limits.max_examples));
    }
    Ok(dims)
}

/// At most four dimensions of 32 bits: always fits.
fn product(dims: &[u32]) -> u128 {
    dims.iter().map(|&d| u128::from(d)).product()
}

fn to_usize(dims: &[u32]) -> Vec<usize> {
    dims.iter().map(|&d| d as usize).collect()
}

fn check_bytes(promised: u128, limits: &Limits) -> Result<()> {
    match promised > u128::from(limits.max_decompressed_bytes) {
        true => Err(Error::limit("bytes in an IDX file", promised, limits.max_decompressed_bytes)),
        false => Ok(()),
    }
}

struct Pair {
    images: Images,
    labels: Vec<u8>,
}

impl Pair {
    fn read(images: &Path, labels: &Path, limits: &Limits) -> Result<Self> {
        let images_parsed = parse_images_with(&read_file(images, limits)?, limits)?;
        let labels_parsed = parse_labels_with(&read_file(labels, limits)?, limits)?;
        if images_parsed.0 != labels_parsed.len() {
            return Err(Error::DatasetMismatch(format!(
                "{} holds {} images and {} holds {} labels; there must be one label an image",
                images.display(),
                images_parsed.0,
                labels.display(),
                labels_parsed.len()
            )));
        }
        Ok(Self { images: images_parsed, labels: labels_parsed })
    }

    fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |&label| usize::from(label) + 1)
    }

    fn into_dataset(self, name: &str, classes: usize) -> Result<Dataset> {
        if classes < 2 {
            return Err(Error::TooFewClasses(classes));
        }
        let (_, shape, pixels) = self.images;
        let names = (0..classes).map(|class| class.to_string()).collect();
        Dataset::new(name, shape, names, Data::U8(pixels), self.labels.into_iter().map(u32::from).collect())
    }
}

fn join(name: &str, pairs: Vec<Pair>, classes: usize) -> Result<Dataset> {
    let mut parts = pairs.into_iter().map(|pair| pair.into_dataset(name, classes));
    let first = parts.next().unwrap_or(Err(Error::TooFewClasses(0)))?;
    parts.try_fold(first, |joined, part| joined.concat(&part?))
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Train,
    Test,
    Other,
}

struct FoundPair {
    part: Part,
    images: PathBuf,
    labels: PathBuf,
}

impl FoundPair {
    fn read(&self, limits: &Limits) -> Result<Pair> {
        Pair::read(&self.images, &self.labels, limits)
    }
}

fn find_pairs(dir: &Path) -> Result<Vec<FoundPair>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_file() {
            names.insert(name);
        }
    }
    let mut pairs = Vec::new();
    for name in names.iter().filter(|name| name.contains("images")) {
        // Where a file lies beside its own gzip, it counts once.
        if name.strip_suffix(".gz").is_some_and(|plain| names.contains(plain)) {
            continue;
        }
        let labels = labels_of(name, &names)
            .ok_or_else(|| invalid(dir, format!("{name} has no labels file; expected {}", labels_name(name))))?;
        pairs.push(FoundPair { part: part_of(name), images: dir.join(name), labels: dir.join(labels) });
    }
    if pairs.is_empty() {
        return Err(invalid(dir, "it has no IDX images; expected files like train-images-idx3-ubyte.gz".into()));
    }
    pairs.sort_by(|a, b| (a.part, &a.images).cmp(&(b.part, &b.images)));
    Ok(pairs)
}

fn part_of(name: &str) -> Part {
    match name {
        _ if name.contains("train") => Part::Train,
        _ if name.contains("test") || name.contains("t10k") => Part::Test,
        _ => Part::Other,
    }
}

fn labels_name(images: &str) -> String {
    images.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
}

fn labels_of(images: &str, names: &BTreeSet<String>) -> Option<String> {
    let name = labels_name(images);
    let plain = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
    [name.clone(), plain.clone(), format!("{plain}.gz")].into_iter().find(|name| names.contains(name))
}

fn invalid(dir: &Path, reason: String) -> Error {
    Error::FolderInvalid { path: dir.to_path_buf(), reason }
}

#[cfg(test)]
#[path = "idx_tests.rs"]
mod tests;
