//! A zip archive of images, `CLASS/FILE`.

use std::io::{Cursor, Read};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::folder::is_clutter;
use crate::images::Collector;
use crate::{Dataset, Error, Limits, Result};

/// Reads a zip of `CLASS/image.png|jpg`: classes and images by sorted name, whatever the order in the archive.
///
/// One folder around everything (`pets/cat/1.png`) is looked through. Hidden entries, `__MACOSX` and files outside
/// any folder that are not images are skipped. Nothing is written to disk. Errors: `zip_invalid` (truncated, damaged,
/// encrypted, wrong checksum), `zip_unsafe_path`, `limit_exceeded`, and those of [`crate::folder::load`].
pub fn from_zip(bytes: &[u8], limits: &Limits) -> Result<Dataset> {
    let mut zip = Zip::open(bytes, limits)?;
    let mut entries = zip.image_entries()?;
    strip_common_root(&mut entries);
    entries.retain(|entry| entry.path.len() > 1 || looks_like_image(&entry.path[0]));
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    if entries.len() > limits.max_examples {
        return Err(Error::limit("images in the zip", entries.len(), limits.max_examples));
    }
    let mut classes: Vec<String> = Vec::new();
    let mut images = Collector::new(limits);
    for entry in &entries {
        let name = entry.path.join("/");
        let [class, _] = &entry.path[..] else {
            return Err(Error::ZipInvalid(format!("the entry {name:?} is not of the form CLASS/FILE")));
        };
        if classes.last() != Some(class) {
            classes.push(class.clone());
            if classes.len() > limits.max_classes {
                return Err(Error::limit("class folders in the zip", classes.len(), limits.max_classes));
            }
        }
        images.push(&name, (classes.len() - 1) as u32, &zip.read(entry.index)?)?;
    }
    images.finish("zip", classes)
}

struct Entry {
    index: usize,
    path: Vec<String>,
}

/// A zip in memory that gives no more than the allowed bytes, all entries together.
pub(crate) struct Zip<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    limit: u64,
    left: u64,
}

impl<'a> Zip<'a> {
    pub(crate) fn open(bytes: &'a [u8], limits: &Limits) -> Result<Self> {
        let archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| invalid(&e))?;
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

    fn image_entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for (index, name) in self.names()? {
            let path = components(&name)?;
            let folder = name.ends_with(['/', '\\']);
            if !folder && !path.iter().any(|component| is_clutter(component)) {
                entries.push(Entry { index, path });
            }
        }
        Ok(entries)
    }
}

/// The parts of a relative path; Windows tools write backslashes.
fn components(name: &str) -> Result<Vec<String>> {
    let parts: Vec<&str> = name.split(['/', '\\']).collect();
    let absolute = parts[0].is_empty() || parts[0].ends_with(':');
    if absolute || parts.contains(&"..") || name.contains('\0') {
        return Err(Error::ZipUnsafePath(name.to_owned()));
    }
    Ok(parts.into_iter().filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect())
}

fn strip_common_root(entries: &mut [Entry]) {
    let Some(root) = entries.first().and_then(|entry| entry.path.first().cloned()) else { return };
    // Of one depth only: where a class folder holds the images itself, the root is that class.
    if entries.iter().all(|entry| entry.path.len() >= 2 && entry.path[0] == root)
        && entries.iter().any(|entry| entry.path.len() >= 3)
    {
        entries.iter_mut().for_each(|entry| {
            entry.path.remove(0);
        });
    }
}

fn looks_like_image(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    [".png", ".jpg", ".jpeg"].iter().any(|ending| lower.ends_with(ending))
}

fn invalid(error: &ZipError) -> Error {
    Error::ZipInvalid(error.to_string())
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
