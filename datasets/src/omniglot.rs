//! Omniglot as it is published: zips of `SET/ALPHABET/CHARACTER/DRAWING.png` whose sets overlap.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::gather::{Kind, Take, wanted};
use crate::images::Collector;
use crate::source::file_name;
use crate::{Dataset, Error, Limits, Result, archive};

/// How the names of the zips of characters begin; `all_runs.zip`, which has other folders, is not one of them.
const ZIPS: &str = "images_";

/// Reads the characters of all `images_*.zip` of a folder as classes `ALPHABET/CHARACTER`, sorted by name, with their
/// drawings as examples; an alphabet that is in several zips is taken from the first. `alphabets` chooses some; with
/// none all are taken.
///
/// # Errors
/// `io`, `folder_invalid` when there is no such zip or an alphabet is not there (it names those that are), and those of
/// [`archive::from_zip`].
pub fn load(dir: &Path, alphabets: &[&str], limits: &Limits) -> Result<Dataset> {
    let mut drawings = Drawings { limits, alphabets, files: BTreeMap::new(), there: BTreeMap::new(), zip: 0, bytes: 0 };
    let invalid = |reason: String| Error::FolderInvalid { path: dir.to_path_buf(), reason };
    let zips = zips(dir)?;
    if zips.is_empty() {
        return Err(invalid(format!("there is no {ZIPS}*.zip in it; give the folder that holds Omniglot's zips")));
    }
    for (zip, path) in zips.iter().enumerate() {
        drawings.zip = zip;
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        drawings = archive::walk(BufReader::with_capacity(1 << 16, file), limits, drawings)?;
    }
    if let Some(unknown) = alphabets.iter().find(|name| !drawings.there.contains_key(**name)) {
        let known = drawings.there.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(invalid(format!("there is no alphabet {unknown:?} in its zips; there are {known}")));
    }
    drawings.finish(&file_name(dir))
}

fn zips(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut zips = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = file_name(&path);
        if name.starts_with(ZIPS) && name.ends_with(".zip") {
            zips.push(path);
        }
    }
    zips.sort();
    Ok(zips)
}

/// Takes the drawings of the alphabets that are asked for.
struct Drawings<'a> {
    limits: &'a Limits,
    alphabets: &'a [&'a str],
    /// By class and name of the drawing.
    files: BTreeMap<(String, String), Vec<u8>>,
    /// Which zip each alphabet is taken from.
    there: BTreeMap<String, usize>,
    zip: usize,
    bytes: u64,
}

impl Take for Drawings<'_> {
    fn wanted(&self, name: &str) -> Result<Option<Vec<String>>> {
        wanted(Kind::Zip, name)
    }

    fn file(&mut self, path: Vec<String>, reader: impl Read) -> Result<()> {
        let [_, alphabet, character, drawing] = &path[..] else {
            return Err(Error::ZipInvalid(format!(
                "the entry {:?} is not of the form SET/ALPHABET/CHARACTER/DRAWING, as Omniglot's are",
                path.join("/")
            )));
        };
        if *self.there.entry(alphabet.clone()).or_insert(self.zip) != self.zip {
            return Ok(());
        }
        if !self.alphabets.is_empty() && !self.alphabets.contains(&alphabet.as_str()) {
            return Ok(());
        }
        let limit = self.limits.max_decompressed_bytes;
        let mut bytes = Vec::new();
        let read = reader.take((limit - self.bytes).saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|e| Error::ZipInvalid(format!("the entry {:?} cannot be decompressed: {e}", path.join("/"))))?;
        self.bytes += bytes.len() as u64;
        if self.bytes > limit {
            return Err(Error::limit("bytes of the drawings", self.bytes, limit));
        }
        self.files.insert((format!("{alphabet}/{character}"), drawing.clone()), bytes);
        Ok(())
    }
}

impl Drawings<'_> {
    fn finish(self, name: &str) -> Result<Dataset> {
        let classes: BTreeSet<&String> = self.files.keys().map(|(class, _)| class).collect();
        let classes: Vec<String> = classes.into_iter().cloned().collect();
        if classes.len() > self.limits.max_classes {
            return Err(Error::limit("characters", classes.len(), self.limits.max_classes));
        }
        let mut images = Collector::new(self.limits);
        let mut label = 0;
        for ((class, drawing), bytes) in &self.files {
            if classes[label] != *class {
                label += 1;
            }
            images.push(&format!("{class}/{drawing}"), label as u32, bytes)?;
        }
        images.finish(name, classes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::TempDir;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::Data;
    use crate::images::tests::grey_png;
    use crate::load_source;

    fn folder(zips: &[(&str, &[(&str, u8)])]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, files) in zips {
            let mut zip = ZipWriter::new(File::create(dir.path().join(name)).unwrap());
            for (path, value) in *files {
                zip.start_file(*path, SimpleFileOptions::default()).unwrap();
                zip.write_all(&grey_png(2, 2, *value)).unwrap();
            }
            zip.finish().unwrap();
        }
        dir
    }

    fn two_sets() -> TempDir {
        folder(&[
            (
                "images_b.zip",
                &[
                    ("images_b/Latin/character01/9_01.png", 99),
                    ("images_b/Tagalog/character01/7_01.png", 7),
                    ("images_b/Tagalog/character02/8_01.png", 8),
                ],
            ),
            (
                "images_a.zip",
                &[
                    ("images_a/Latin/character02/2_01.png", 3),
                    ("images_a/Latin/character01/1_02.png", 2),
                    ("images_a/Latin/character01/1_01.png", 1),
                    ("__MACOSX/images_a/._Latin", 0),
                ],
            ),
            ("all_runs.zip", &[("all_runs/run01/class01.png", 5)]),
        ])
    }

    #[test]
    fn characters_are_classes_and_an_alphabet_comes_once() {
        let dir = two_sets();
        let data = load_source(&format!("omniglot:{}", dir.path().display())).unwrap();
        let names = ["Latin/character01", "Latin/character02", "Tagalog/character01", "Tagalog/character02"];
        assert_eq!(data.class_names, names);
        assert_eq!(
            (&data.labels[..], &data.data),
            (&[0, 0, 1, 2, 3][..], &Data::U8([[1; 4], [2; 4], [3; 4], [7; 4], [8; 4]].concat()))
        );
        let some = load_source(&format!("omniglot:{}#Tagalog", dir.path().display())).unwrap();
        assert_eq!(some.class_names, names[2..]);
        let both = load_source(&format!("omniglot:{}#Tagalog,Latin", dir.path().display())).unwrap();
        assert_eq!(both.digest(), data.digest());
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let dir = two_sets();
        let refused = |spec: String| load_source(&spec).unwrap_err();
        let error = refused(format!("omniglot:{}#Greek", dir.path().display()));
        assert!(error.code() == "folder_invalid" && error.to_string().contains("there are Latin, Tagalog"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        let error = refused(format!("omniglot:{}", empty.path().display()));
        assert!(error.code() == "folder_invalid" && error.to_string().contains("images_*.zip"), "{error}");
        let odd = folder(&[("images_x.zip", &[("cat/1.png", 1), ("dog/1.png", 2)])]);
        let error = refused(format!("omniglot:{}", odd.path().display()));
        assert!(error.code() == "zip_invalid" && error.to_string().contains("ALPHABET/CHARACTER"), "{error}");
        assert_eq!(refused("omniglot:/no/such".into()).code(), "io");
    }
}
