//! A zip archive of images, `CLASS/FILE` or labelled by a `labels.csv`.

use std::io::{Cursor, Read, Seek, SeekFrom};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::gather::{Gather, Kind, Take};
use crate::images::Target;
use crate::{Dataset, Error, Limits, Result};

/// Reads a zip of `CLASS/image.png|jpg`: classes and images by sorted name, whatever the order in the archive.
///
/// With a `labels.csv` (columns path and label) at its root or in its one folder, the classes are those of the rows.
/// One folder around everything (`pets/cat/1.png`) is looked through. Hidden entries, `__MACOSX` and files outside
/// any folder that are not images are skipped. Nothing is written to disk. Errors: `zip_invalid` (truncated, damaged,
/// encrypted, wrong checksum, a name twice, a link), `zip_unsafe_path`, `labels_csv_invalid`, `limit_exceeded`, and
/// those of [`crate::folder::load`].
pub fn from_zip(bytes: &[u8], limits: &Limits) -> Result<Dataset> {
    read_zip(Cursor::new(bytes), limits, Target::default(), None)
}

/// As [`from_zip`], from anything that can be read and sought: only one entry is in memory at a time.
pub(crate) fn read_zip(
    source: impl Read + Seek,
    limits: &Limits,
    target: Target,
    labels: Option<&[u8]>,
) -> Result<Dataset> {
    walk(source, limits, Gather::new(Kind::Zip, limits, target, labels))?.finish()
}

/// Gives all files of a zip to `taker`.
pub(crate) fn walk<T: Take>(source: impl Read + Seek, limits: &Limits, mut taker: T) -> Result<T> {
    let mut zip = Zip::open(source, limits)?;
    for (index, name) in zip.names()? {
        let folder = name.ends_with(['/', '\\']);
        if let Some(path) = taker.wanted(&name)?.filter(|_| !folder) {
            taker.file(path, zip.plain_file(index)?)?;
        }
    }
    Ok(taker)
}

/// A zip that gives no more than the allowed bytes, all entries together.
pub(crate) struct Zip<R> {
    archive: ZipArchive<R>,
    limit: u64,
    left: u64,
}

impl<R: Read + Seek> Zip<R> {
    pub(crate) fn open(mut source: R, limits: &Limits) -> Result<Self> {
        check_directory(&mut source, limits)?;
        let archive = ZipArchive::new(source).map_err(|e| invalid(&e))?;
        if archive.len() > limits.max_files {
            return Err(Error::limit("files of the zip", archive.len(), limits.max_files));
        }
        if archive.has_duplicate_names() {
            return Err(Error::ZipInvalid("two entries have the same name; every name must come once".into()));
        }
        Ok(Self { archive, limit: limits.max_decompressed_bytes, left: limits.max_decompressed_bytes })
    }

    /// Index and name of every entry.
    pub(crate) fn names(&self) -> Result<Vec<(usize, String)>> {
        (0..self.archive.len())
            .map(|index| {
                let entry = self.archive.by_index_data(index).map_err(|e| invalid(&e))?;
                Ok((index, entry.name().map_err(|e| invalid(&e))?.into_owned()))
            })
            .collect()
    }

    /// The content of an entry that is not a link; its checksum is checked at the end.
    fn plain_file(&mut self, index: usize) -> Result<impl Read> {
        let file = self.archive.by_index(index).map_err(|e| invalid(&e))?;
        match file.is_symlink() {
            true => Err(Error::ZipUnsafePath(String::from_utf8_lossy(file.name_raw()).into_owned())),
            false => Ok(file),
        }
    }

    /// Decompresses one entry and checks its checksum. What the directory says of sizes is not believed.
    pub(crate) fn read(&mut self, index: usize) -> Result<Vec<u8>> {
        let mut file = self.archive.by_index(index).map_err(|e| invalid(&e))?;
        let name = String::from_utf8_lossy(file.name_raw()).into_owned();
        let mut bytes = Vec::new();
        (&mut file)
            .take(self.left.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| Error::ZipInvalid(format!("the entry {name:?} cannot be decompressed: {e}")))?;
        let length = bytes.len() as u64;
        if length > self.left {
            let what = format!("bytes of the zip, decompressed up to {name:?}");
            return Err(Error::limit(what, self.limit.saturating_add(1), self.limit));
        }
        self.left -= length;
        Ok(bytes)
    }
}

/// Bytes of the smallest entry of a zip's directory.
const SMALLEST_ENTRY: u64 = 46;
/// How an entry of the directory begins.
const ENTRY: &[u8] = b"PK\x01\x02";

/// Refuses a directory of more entries than allowed before it is read into memory. The entries are counted where the
/// file is large enough to hold so many: what the end of the archive says of their number is not believed.
fn check_directory(source: &mut (impl Read + Seek), limits: &Limits) -> Result<()> {
    let broken = |e: std::io::Error| Error::ZipInvalid(format!("it cannot be read: {e}"));
    let length = source.seek(SeekFrom::End(0)).map_err(broken)?;
    if length > limits.max_compressed_bytes {
        return Err(Error::limit("bytes of the zip", length, limits.max_compressed_bytes));
    }
    source.rewind().map_err(broken)?;
    if length / SMALLEST_ENTRY <= limits.max_files as u64 {
        return Ok(());
    }
    let (mut window, mut held, mut found) = (vec![0u8; 1 << 16], 0, 0u64);
    loop {
        let read = source.read(&mut window[held..]).map_err(broken)?;
        if read == 0 {
            break;
        }
        let end = held + read;
        found += window[..end].windows(ENTRY.len()).filter(|bytes| *bytes == ENTRY).count() as u64;
        if found > limits.max_files as u64 {
            return Err(Error::limit("files of the zip", found, limits.max_files));
        }
        // A mark may lie across two pieces.
        held = (ENTRY.len() - 1).min(end);
        window.copy_within(end - held..end, 0);
    }
    source.rewind().map_err(broken)
}

fn invalid(error: &ZipError) -> Error {
    Error::ZipInvalid(error.to_string())
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
