//! A folder of images, one sub-folder a class.

use std::fs;
use std::path::{Path, PathBuf};

use crate::images::Collector;
use crate::source::{file_name, read_file};
use crate::{Dataset, Error, Limits, Result};

/// Reads `dir/CLASS/*.png|jpg`: classes by sorted folder name, images by sorted file name.
///
/// Hidden files and folders are skipped, as are files directly in `dir`. All images must be of one size; grey ones
/// give one channel, others three. Errors: `too_few_classes`, `class_without_images`, `image_invalid`,
/// `image_size_mismatch`, `limit_exceeded`, `folder_invalid` for a folder inside a class, `io`.
pub fn load(dir: &Path, limits: &Limits) -> Result<Dataset> {
    let classes: Vec<PathBuf> = visible(dir)?.into_iter().filter(|path| path.is_dir()).collect();
    if classes.len() < 2 {
        return Err(Error::TooFewClasses(classes.len()));
    }
    if classes.len() > limits.max_classes {
        return Err(Error::limit("class folders", classes.len(), limits.max_classes));
    }
    let mut images = Collector::new(limits);
    for (label, class) in (0u32..).zip(&classes) {
        let files = visible(class)?;
        if files.is_empty() {
            return Err(Error::ClassWithoutImages(file_name(class)));
        }
        for file in files {
            if file.is_dir() {
                let reason = format!("{} is a folder inside a class; a class folder holds images only", file.display());
                return Err(Error::FolderInvalid { path: dir.to_path_buf(), reason });
            }
            images.push(&file.display().to_string(), label, &read_file(&file, limits)?)?;
        }
    }
    images.finish(&file_name(dir), classes.iter().map(|class| file_name(class)).collect())
}

/// Whether a file is what operating systems leave behind, not data.
pub(crate) fn is_clutter(name: &str) -> bool {
    name.starts_with('.') || matches!(name, "__MACOSX" | "Thumbs.db" | "desktop.ini")
}

fn visible(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if !is_clutter(&file_name(&path)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::Data;
    use crate::images::tests::grey_png;

    fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn code(files: &[(&str, Vec<u8>)]) -> (&'static str, String) {
        let error = load(folder(files).path(), &Limits::default()).unwrap_err();
        (error.code(), error.to_string())
    }

    #[test]
    fn classes_and_files_come_sorted() {
        let dir = folder(&[
            ("dog/1.png", grey_png(2, 2, 3)),
            ("cat/2.jpg", grey_png(2, 2, 2)), // content decides, not the name
            ("cat/1.png", grey_png(2, 2, 1)),
            ("cat/.DS_Store", vec![1]),
            (".git/config", vec![1]),
            ("README.md", vec![1]),
        ]);
        let data = load(dir.path(), &Limits::default()).unwrap();
        assert_eq!(data.class_names, ["cat", "dog"]);
        assert_eq!(data.labels, [0, 0, 1]);
        assert_eq!(data.data, Data::U8([[1; 4], [2; 4], [3; 4]].concat()));
    }

    #[test]
    fn bad_folders_are_named() {
        let image = || grey_png(2, 2, 1);
        assert_eq!(code(&[("cat/1.png", image())]).0, "too_few_classes");
        assert_eq!(code(&[("cat/1.png", image()), ("dog/.x", vec![])]).0, "class_without_images");
        let (code_text, message) = code(&[("cat/1.png", image()), ("dog/notes.txt", b"hi".to_vec())]);
        assert_eq!(code_text, "image_invalid");
        assert!(message.contains("notes.txt"), "{message}");
        let (code_size, message) = code(&[("cat/1.png", image()), ("dog/wide.png", grey_png(2, 3, 1))]);
        assert_eq!(code_size, "image_size_mismatch");
        assert!(message.contains("wide.png") && message.contains("2x3"), "{message}");
        assert_eq!(code(&[("cat/1.png", image()), ("dog/x/1.png", image())]).0, "folder_invalid");
        assert_eq!(load(Path::new("no/such/folder"), &Limits::default()).unwrap_err().code(), "io");
    }
}
