//! The files of an archive, in whatever order they come, made into one dataset.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use crate::csv_labels::{self, CsvLabels};
use crate::folder::is_clutter;
use crate::images::{Collector, Decoded, Target};
use crate::{Dataset, Error, Limits, Result};

/// Name of the file that labels the others.
const LABELS: &str = "labels.csv";
/// Longest name of a file.
const MAX_NAME: usize = 4096;
/// Deepest folder.
const MAX_DEPTH: usize = 64;

/// What kind of archive it is: errors differ in their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Zip,
    Tar,
}

impl Kind {
    /// The archive cannot be used.
    pub(crate) fn invalid(self, reason: impl Into<String>) -> Error {
        match self {
            Self::Zip => Error::ZipInvalid(reason.into()),
            Self::Tar => Error::TarInvalid(reason.into()),
        }
    }

    /// An entry's name is not one that an archive of images may have.
    pub(crate) fn unsafe_path(self, name: &str) -> Error {
        let shown = name.chars().take(200).collect();
        match self {
            Self::Zip => Error::ZipUnsafePath(shown),
            Self::Tar => Error::TarUnsafePath(shown),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::Tar => "tar",
        }
    }
}

/// What is done with the files of an archive, one by one as they come.
pub(crate) trait Take {
    /// The parts of a path when its file is to be read; `None` for what operating systems leave behind.
    fn wanted(&self, name: &str) -> Result<Option<Vec<String>>>;

    /// Takes one file.
    fn file(&mut self, path: Vec<String>, reader: impl Read) -> Result<()>;
}

/// Takes an archive's files one by one, decoding as they come: no file is held longer than that.
pub(crate) struct Gather<'a> {
    kind: Kind,
    limits: &'a Limits,
    target: Target,
    files: BTreeMap<Vec<String>, Result<Decoded>>,
    labels: Option<Vec<u8>>,
    labels_folder: Option<String>,
    left: u64,
    decoded: u64,
}

impl Take for Gather<'_> {
    fn wanted(&self, name: &str) -> Result<Option<Vec<String>>> {
        wanted(self.kind, name)
    }

    /// Reads one file. What it holds is decoded now; whether it matters is known when all are there.
    fn file(&mut self, path: Vec<String>, reader: impl Read) -> Result<()> {
        let name = path.join("/");
        if self.files.contains_key(&path) {
            return Err(self.kind.invalid(format!("two entries have the name {name:?}; every name must come once")));
        }
        let bytes = self.read(&name, reader)?;
        if path.last().is_some_and(|last| last == LABELS) && path.len() <= 2 {
            if self.labels.is_none() {
                self.labels = Some(bytes);
                self.labels_folder = (path.len() == 2).then(|| path[0].clone());
            }
            return Ok(());
        }
        if self.files.len() >= self.limits.max_files {
            return Err(Error::limit("files of the archive", self.files.len() + 1, self.limits.max_files));
        }
        let image = match Decoded::new(&name, &bytes, &self.target, self.limits) {
            Err(error @ Error::LimitExceeded { .. }) => return Err(error),
            other => other,
        };
        if let Ok(image) = &image {
            self.decoded = self.decoded.saturating_add(image.len());
            if self.decoded > self.limits.max_decompressed_bytes {
                let limit = self.limits.max_decompressed_bytes;
                return Err(Error::limit("bytes of decoded images", self.decoded, limit));
            }
        }
        self.files.insert(path, image);
        Ok(())
    }
}

impl<'a> Gather<'a> {
    /// `labels` are those given apart from the archive; they count instead of its own `labels.csv`.
    pub(crate) fn new(kind: Kind, limits: &'a Limits, target: Target, labels: Option<&[u8]>) -> Self {
        let left = limits.max_decompressed_bytes;
        let labels = labels.map(<[u8]>::to_vec);
        Self { kind, limits, target, files: BTreeMap::new(), labels, labels_folder: None, left, decoded: 0 }
    }

    fn read(&mut self, name: &str, reader: impl Read) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        reader
            .take(self.left.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| self.kind.invalid(format!("the entry {name:?} cannot be decompressed: {e}")))?;
        let length = bytes.len() as u64;
        if length > self.left {
            let what = format!("bytes of the {}, decompressed up to {name:?}", self.kind.name());
            let limit = self.limits.max_decompressed_bytes;
            return Err(Error::limit(what, limit.saturating_add(1), limit));
        }
        self.left -= length;
        Ok(bytes)
    }

    /// The dataset: classes from `labels.csv` when there is one, else from the folders; images by sorted name.
    pub(crate) fn finish(mut self) -> Result<Dataset> {
        match self.labels.take() {
            Some(csv) => {
                let labels = csv_labels::parse(&csv, self.limits)?;
                if let Some(folder) = self.labels_folder.take() {
                    strip_root(&mut self.files, &folder);
                }
                self.labelled(&labels)
            }
            None => {
                if let Some(root) = common_root(&self.files) {
                    strip_root(&mut self.files, &root);
                }
                self.by_folder()
            }
        }
    }

    fn by_folder(mut self) -> Result<Dataset> {
        // Files beside the class folders that are no images (README, LICENSE) do not matter.
        self.files.retain(|path, image| path.len() > 1 || image.is_ok());
        self.check_examples(self.files.len())?;
        let mut classes: Vec<String> = Vec::new();
        let mut images = Collector::new(self.limits).channels(self.target.channels);
        for (path, image) in self.files {
            let name = path.join("/");
            let [class, _] = &path[..] else {
                return Err(self.kind.invalid(format!("the entry {name:?} is not of the form CLASS/FILE")));
            };
            if classes.last() != Some(class) {
                classes.push(class.clone());
                if classes.len() > self.limits.max_classes {
                    let what = format!("class folders in the {}", self.kind.name());
                    return Err(Error::limit(what, classes.len(), self.limits.max_classes));
                }
            }
            images.push_decoded(&name, (classes.len() - 1) as u32, image?)?;
        }
        images.finish(self.kind.name(), classes)
    }

    fn labelled(self, labels: &CsvLabels) -> Result<Dataset> {
        self.check_examples(labels.labels.len())?;
        let names: HashSet<String> = self.files.keys().map(|path| path.join("/")).collect();
        if let Some(missing) = labels.labels.keys().filter(|name| !names.contains(*name)).min() {
            return Err(Error::LabelsCsvInvalid(format!(
                "it labels {missing:?}, which is not in the archive; paths are relative to the folder of labels.csv"
            )));
        }
        let mut images = Collector::new(self.limits).channels(self.target.channels);
        for (path, image) in self.files {
            let name = path.join("/");
            match labels.labels.get(&name) {
                Some(&label) => images.push_decoded(&name, label, image?)?,
                None if image.is_ok() => {
                    return Err(Error::LabelsCsvInvalid(format!(
                        "the image {name:?} has no row; give every image one"
                    )));
                }
                // Whatever else lies beside the images does not matter.
                None => {}
            }
        }
        images.finish(self.kind.name(), labels.classes.clone())
    }

    fn check_examples(&self, found: usize) -> Result<()> {
        match found > self.limits.max_examples {
            true => {
                let what = format!("images in the {}", self.kind.name());
                Err(Error::limit(what, found, self.limits.max_examples))
            }
            false => Ok(()),
        }
    }
}

/// The parts of a path when its file matters; `None` for what operating systems leave behind.
pub(crate) fn wanted(kind: Kind, name: &str) -> Result<Option<Vec<String>>> {
    let path = components(kind, name)?;
    let clutter = path.iter().any(|component| is_clutter(component));
    Ok((!clutter && !path.is_empty()).then_some(path))
}

/// The parts of a relative path; Windows tools write backslashes.
fn components(kind: Kind, name: &str) -> Result<Vec<String>> {
    let parts: Vec<&str> = name.split(['/', '\\']).collect();
    let absolute = parts[0].is_empty() || parts[0].ends_with(':');
    let too_long = name.len() > MAX_NAME || parts.len() > MAX_DEPTH;
    if absolute || too_long || parts.contains(&"..") || name.contains('\0') {
        return Err(kind.unsafe_path(name));
    }
    Ok(parts.into_iter().filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect())
}

/// The one folder around everything, when a deeper folder remains: where a class folder holds the images itself, it
/// is that class.
fn common_root<T>(files: &BTreeMap<Vec<String>, T>) -> Option<String> {
    let root = files.keys().next()?.first()?;
    let common = files.keys().all(|path| path.len() >= 2 && path[0] == *root);
    (common && files.keys().any(|path| path.len() >= 3)).then(|| root.clone())
}

fn strip_root<T>(files: &mut BTreeMap<Vec<String>, T>, root: &str) {
    let all = std::mem::take(files);
    files.extend(all.into_iter().map(|(mut path, value)| {
        if path.len() > 1 && path[0] == root {
            path.remove(0);
        }
        (path, value)
    }));
}
