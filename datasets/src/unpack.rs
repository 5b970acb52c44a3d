//! An archive of any files, taken apart into a folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::gather::{Kind, Take, wanted};
use crate::{Error, Limits, Result, archive, tarball};

/// Bytes of a tar's block.
const BLOCK: usize = 512;
/// Where a tar's header has its checksum.
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// What kind of archive a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// A zip.
    Zip,
    /// A tar, plain or compressed with gzip.
    Tar,
}

impl ArchiveKind {
    /// The kind of an archive by how it begins, whatever it is called. Reads from the beginning.
    ///
    /// # Errors
    /// `archive_invalid` for what is no archive, or one that ends at once; `io`.
    pub fn of(mut source: impl Read + Seek) -> Result<Self> {
        let unreadable = |e| Error::io(Path::new("the archive"), e);
        source.rewind().map_err(unreadable)?;
        let begin = head(&mut source).map_err(unreadable)?;
        match &begin[..] {
            [b'P', b'K', 3, 4, ..] => Ok(Self::Zip),
            [b'P', b'K', 5, 6, ..] => Err(empty()),
            [0x1f, 0x8b, ..] => {
                source.rewind().map_err(unreadable)?;
                // What cannot be decompressed is no archive; the reason is of no more use than that.
                tar(&head(&mut MultiGzDecoder::new(source)).unwrap_or_default())
            }
            plain => tar(plain),
        }
    }
}

/// Up to one block.
fn head(source: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(BLOCK as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A block that begins a tar: its checksum is right.
fn tar(block: &[u8]) -> Result<ArchiveKind> {
    let unknown = || Error::ArchiveInvalid("it is neither a zip nor a tar, plain or gzip; send one of them".into());
    if block.len() < BLOCK {
        return Err(unknown());
    }
    if block.iter().all(|byte| *byte == 0) {
        return Err(empty());
    }
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| u32::from(if CHECKSUM.contains(&at) { b' ' } else { *byte })).sum();
    let digits = |byte: &&u8| !matches!(byte, b' ' | 0);
    let said: String = block[CHECKSUM].iter().filter(digits).map(|byte| char::from(*byte)).collect();
    match u32::from_str_radix(&said, 8) {
        Ok(said) if said == sum => Ok(ArchiveKind::Tar),
        _ => Err(unknown()),
    }
}

fn empty() -> Error {
    Error::ArchiveInvalid("there is nothing in it; pack the files into it".into())
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Its path in the archive, `/` between the parts: neither absolute nor with `..`.
    pub name: String,
    /// Where its content is.
    pub path: PathBuf,
}

/// Writes the files of an archive into `folder`, under names that are not theirs, and gives them by name. Hidden files
/// and `__MACOSX` are passed over. `stop` is asked now and then. What is written stays when this fails.
///
/// # Errors
/// `archive_invalid`; `zip_invalid`, `zip_unsafe_path`, `tar_invalid`, `tar_unsafe_path` (also for links);
/// `limit_exceeded` ([`Limits::max_files`], [`Limits::max_compressed_bytes`], [`Limits::max_decompressed_bytes`]);
/// `cancelled` when `stop` says so; `io`.
pub fn unpack(path: &Path, folder: &Path, limits: &Limits, stop: &dyn Fn() -> bool) -> Result<Vec<Unpacked>> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let archive = ArchiveKind::of(&mut file)?;
    file.rewind().map_err(|e| Error::io(path, e))?;
    let source = BufReader::with_capacity(1 << 16, file);
    let kind = match archive {
        ArchiveKind::Zip => Kind::Zip,
        ArchiveKind::Tar => Kind::Tar,
    };
    let writer = Writer { kind, limits, folder, left: limits.max_decompressed_bytes, files: BTreeMap::new(), stop };
    let writer = match archive {
        ArchiveKind::Zip => archive::walk(source, limits, writer)?,
        ArchiveKind::Tar => tarball::walk(source, limits, writer)?,
    };
    Ok(writer.files.into_iter().map(|(name, path)| Unpacked { name, path }).collect())
}

struct Writer<'a> {
    kind: Kind,
    limits: &'a Limits,
    folder: &'a Path,
    left: u64,
    files: BTreeMap<String, PathBuf>,
    stop: &'a dyn Fn() -> bool,
}

impl Take for Writer<'_> {
    fn wanted(&self, name: &str) -> Result<Option<Vec<String>>> {
        wanted(self.kind, name)
    }

    fn file(&mut self, path: Vec<String>, reader: impl Read) -> Result<()> {
        let name = path.join("/");
        if self.files.contains_key(&name) {
            return Err(self.kind.invalid(format!("two entries have the name {name:?}; every name must come once")));
        }
        if self.files.len() >= self.limits.max_files {
            return Err(Error::limit("files of the archive", self.files.len() + 1, self.limits.max_files));
        }
        // A number for a name: no archive decides where anything is written.
        let place = self.folder.join(self.files.len().to_string());
        self.copy(&name, &place, reader)?;
        self.files.insert(name, place);
        Ok(())
    }
}

impl Writer<'_> {
    fn copy(&mut self, name: &str, place: &Path, mut reader: impl Read) -> Result<()> {
        let mut file = File::create_new(place).map_err(|e| Error::io(place, e))?;
        let mut chunk = vec![0; CHUNK];
        loop {
            if (self.stop)() {
                return Err(Error::Stopped);
            }
            let read = match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(self.kind.invalid(format!("the entry {name:?} cannot be decompressed: {error}")));
                }
            };
            let Some(left) = self.left.checked_sub(read as u64) else {
                let limit = self.limits.max_decompressed_bytes;
                let what = format!("bytes of the archive, decompressed up to {name:?}");
                return Err(Error::limit(what, limit.saturating_add(1), limit));
            };
            self.left = left;
            file.write_all(&chunk[..read]).map_err(|e| Error::io(place, e))?;
        }
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
