//! A tar archive of images, plain or compressed with gzip, read as a stream.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use tar::{Archive, EntryType};

use crate::gather::{Gather, Kind, Take};
use crate::images::Target;
use crate::{Dataset, Error, Limits, Result};

/// Most bytes of a name that comes as an entry of its own, and of the further attributes of an entry.
const MAX_EXTENSION: u64 = 64 << 10;
/// What tar adds to each file: a header, attributes, and zeros up to a whole block.
const OVERHEAD: u64 = 4 << 10;

/// Reads a tar or tar.gz of `CLASS/image.png|jpg`, or of images and a `labels.csv`, as [`crate::archive::from_zip`]
/// reads a zip.
///
/// Errors: `tar_invalid` (truncated, damaged, a name twice or not UTF-8, sparse files), `tar_unsafe_path` (a name that
/// leaves the archive, links, devices), and the others of [`crate::archive::from_zip`].
pub fn from_tar(source: impl Read, limits: &Limits) -> Result<Dataset> {
    read_tar(source, limits, Target::default(), None)
}

/// As [`from_tar`], with the options of a file.
pub(crate) fn read_tar(source: impl Read, limits: &Limits, target: Target, labels: Option<&[u8]>) -> Result<Dataset> {
    walk(source, limits, Gather::new(Kind::Tar, limits, target, labels))?.finish()
}

/// Gives all files of a tar or tar.gz to `taker`.
pub(crate) fn walk<T: Take>(source: impl Read, limits: &Limits, taker: T) -> Result<T> {
    let mut source = BufReader::with_capacity(1 << 16, source);
    let magic = source.fill_buf().map_err(|e| Error::TarInvalid(format!("it cannot be read: {e}")))?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        entries(MultiGzDecoder::new(source), limits, taker)
    } else {
        entries(source, limits, taker)
    }
}

fn entries<T: Take>(source: impl Read, limits: &Limits, taker: T) -> Result<T> {
    // Skipped entries and padding count as well, or a bomb of them would never end.
    let overhead = (limits.max_files as u64).saturating_mul(OVERHEAD);
    let most = limits.max_decompressed_bytes.saturating_add(overhead);
    let exceeded = Cell::new(false);
    let mut archive = Archive::new(Bounded { inner: source, left: most, exceeded: &exceeded });
    let taken = take_all(&mut archive, limits, taker).and_then(|taker| {
        // To its end: only there a gzip stream has its checksum.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(broken)?;
        Ok(taker)
    });
    match taken {
        _ if exceeded.get() => Err(Error::limit("bytes of the tar, decompressed", most.saturating_add(1), most)),
        taken => taken,
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::TarInvalid(format!("{error}; is the file complete?"))
}

/// Takes the files of all entries.
fn take_all<T: Take>(archive: &mut Archive<impl Read>, limits: &Limits, mut taker: T) -> Result<T> {
    let (mut entries, mut long_name) = (0usize, None);
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        entries += 1;
        // A file has at most a long name, attributes and itself.
        let most = limits.max_files.saturating_mul(3);
        if entries > most {
            return Err(Error::limit("entries of the tar", entries, most));
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let name = extension(&mut entry)?;
                long_name = Some(text(name.strip_suffix(&[0]).unwrap_or(&name))?);
            }
            EntryType::XHeader => {
                if let Some(path) = pax_path(&extension(&mut entry)?)? {
                    long_name = Some(path);
                }
            }
            EntryType::XGlobalHeader => {}
            kind => {
                let name = match long_name.take() {
                    Some(name) => name,
                    None => text(&entry.header().path_bytes())?,
                };
                take(&mut taker, kind, &name, &mut entry)?;
            }
        }
    }
    Ok(taker)
}

/// Takes one entry: a file, or a folder, and nothing else.
fn take(taker: &mut impl Take, kind: EntryType, name: &str, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
    let path = taker.wanted(name)?;
    match (kind, path) {
        (EntryType::Directory, _) => Ok(()),
        // Old tars mark a folder by its name only.
        (EntryType::Regular | EntryType::Continuous, _) if name.ends_with('/') => Ok(()),
        (EntryType::Regular | EntryType::Continuous, Some(path)) => whole(taker, path, entry),
        (EntryType::Regular | EntryType::Continuous, None) => Ok(()),
        (EntryType::GNUSparse, _) => {
            Err(Error::TarInvalid(format!("{name:?} is a sparse file; pack it without --sparse")))
        }
        _ => Err(Kind::Tar.unsafe_path(name)),
    }
}

/// Ends with an error after so many bytes, and notes that.
struct Bounded<'a, R> {
    inner: R,
    left: u64,
    exceeded: &'a Cell<bool>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => {
                self.exceeded.set(true);
                Err(std::io::Error::other("it is larger than allowed"))
            }
        }
    }
}

/// Reads a file that must be as long as its header says: a tar has no checksum that would tell a cut one.
fn whole(taker: &mut impl Take, path: Vec<String>, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
    let size = entry.size();
    let name = path.join("/");
    let mut counted = Counted { inner: entry, read: 0 };
    taker.file(path, &mut counted)?;
    match counted.read == size {
        true => Ok(()),
        false => Err(Error::TarInvalid(format!("it ends inside {name:?}; is the file complete?"))),
    }
}

struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>> {
    if entry.size() > MAX_EXTENSION {
        return Err(Error::limit("bytes of a name in the tar", entry.size(), MAX_EXTENSION));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|e| Error::TarInvalid(e.to_string()))?;
    Ok(bytes)
}

/// The path among the attributes `LENGTH KEY=VALUE\n` of the next file.
fn pax_path(bytes: &[u8]) -> Result<Option<String>> {
    let mut path = None;
    for attribute in tar::PaxExtensions::new(bytes) {
        let attribute = attribute.map_err(|e| Error::TarInvalid(e.to_string()))?;
        match attribute.key_bytes() {
            b"path" => path = Some(text(attribute.value_bytes())?),
            key if key == b"size" || key.starts_with(b"GNU.sparse") => {
                return Err(Error::TarInvalid("it holds a sparse file or one of 8 GiB; pack plain files".into()));
            }
            _ => {}
        }
    }
    Ok(path)
}

fn text(bytes: &[u8]) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        Error::TarInvalid(format!("the name {shown:?} is not UTF-8; rename the file"))
    })
}

#[cfg(test)]
#[path = "tarball_tests.rs"]
mod tests;
