//! One string for a source of data, and file access shared by the readers.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::file::{self, Format, ReadOptions};
use crate::{Dataset, Error, Limits, Result, digits, folder, idx, omniglot};

/// The forms that [`load_source`] understands.
pub const SOURCE_FORMS: [&str; 7] =
    ["digits", "idx:DIR", "folder:DIR", "npz:FILE", "zip:FILE", "tar:FILE", "omniglot:DIR[#ALPHABET,…]"];

/// Loads a source within the default [`Limits`]: `digits`, `idx:DIR`, `folder:DIR`, `npz:FILE`,
/// `zip:FILE`, `tar:FILE` (also compressed) or `omniglot:DIR`, which may name alphabets: `omniglot:DIR#Greek,Latin`.
///
/// The dataset is named after the folder, or the file without its ending. Errors: `unknown_source` lists the forms;
/// otherwise those of the reader.
pub fn load_source(spec: &str) -> Result<Dataset> {
    load_source_with(spec, &Limits::default())
}

/// As [`load_source`], within `limits`.
pub fn load_source_with(spec: &str, limits: &Limits) -> Result<Dataset> {
    if spec == "digits" {
        return digits::load();
    }
    let (form, path) = match spec.split_once(':') {
        Some((form, path)) if !path.is_empty() => (form, Path::new(path)),
        _ => return Err(Error::UnknownSource(spec.to_owned())),
    };
    let options = ReadOptions::default();
    match form {
        "idx" => idx::load_dir_with(path, limits),
        "folder" => folder::load(path, limits),
        "npz" => file::read_file(path, Format::Npz, &options, limits).map(|dataset| renamed(dataset, path)),
        "zip" => file::read_file(path, Format::Zip, &options, limits).map(|dataset| renamed(dataset, path)),
        "tar" => file::read_file(path, Format::Tar, &options, limits).map(|dataset| renamed(dataset, path)),
        "omniglot" => load_omniglot(path, limits),
        _ => Err(Error::UnknownSource(spec.to_owned())),
    }
}

fn load_omniglot(path: &Path, limits: &Limits) -> Result<Dataset> {
    let text = path.to_string_lossy();
    let (dir, alphabets) = text.rsplit_once('#').unwrap_or((&text, ""));
    let alphabets: Vec<&str> = alphabets.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    omniglot::load(Path::new(dir), &alphabets, limits)
}

fn renamed(dataset: Dataset, path: &Path) -> Dataset {
    let stem = path.file_stem().map_or_else(|| dataset.name.clone(), |stem| stem.to_string_lossy().into_owned());
    Dataset { name: stem, ..dataset }
}

/// The last component of a path, resolving "." and the like.
pub(crate) fn file_name(path: &Path) -> String {
    let resolved = path.file_name().is_none().then(|| path.canonicalize().ok()).flatten();
    let name = resolved.as_deref().unwrap_or(path).file_name();
    name.map_or_else(|| "data".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A file's bytes, no more than the limit of decompressed bytes.
pub(crate) fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let limit = limits.max_decompressed_bytes;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut bytes = Vec::new();
    if size <= limit {
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    }
    let found = size.max(bytes.len() as u64);
    match found > limit {
        true => Err(Error::limit(format!("bytes of {}", path.display()), found, limit)),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::npz;

    #[test]
    fn every_form_loads_and_others_are_listed() {
        let digits = load_source("digits").unwrap();
        let few = digits.take(&(0..40).collect::<Vec<_>>());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("few.npz");
        fs::write(&file, npz::to_npz(&few).unwrap()).unwrap();
        let loaded = load_source(&format!("npz:{}", file.display())).unwrap();
        assert_eq!(loaded.name, "few");
        assert_eq!(loaded.digest(), few.digest());
        for spec in ["", "mnist", "idx:", "csv:a", "Digits", "idx"] {
            let error = load_source(spec).unwrap_err();
            assert_eq!(error.code(), "unknown_source");
            assert!(error.to_string().contains("idx:DIR") && error.to_string().contains("digits"), "{error}");
        }
        for form in ["idx", "folder", "npz", "zip", "tar"] {
            assert_eq!(load_source(&format!("{form}:/no/such/thing")).unwrap_err().code(), "io");
        }
        assert_eq!(load_source(&format!("zip:{}", dir.path().display())).unwrap_err().code(), "io");
        let tight = Limits { max_decompressed_bytes: 10, ..Limits::default() };
        assert_eq!(load_source_with(&format!("npz:{}", file.display()), &tight).unwrap_err().code(), "limit_exceeded");
    }
}
