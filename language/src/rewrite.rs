//! A model's directory written anew with other values for some tensors. All else is copied byte for byte, at constant
//! memory; the directory that was read is never changed, and the new one appears whole or not at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::model::{Entry, Model, from_f32};

/// Bytes copied at a time.
const COPY: usize = 1 << 20;

/// Where new values come from.
pub trait Fill {
    /// The names of the tensors that get new values.
    fn names(&self) -> BTreeSet<String>;

    /// Values `range` of the tensor `name`, as many as `out` has. Tensors are asked for in the order of their bytes,
    /// each from its first value to its last.
    ///
    /// # Errors
    /// Whatever stops the writing.
    fn fill(&mut self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Values that are asked for at a time.
    fn step(&self) -> usize {
        COPY / 4
    }
}

/// Writes `model` to the new directory `to` with the values of `fill`, in the types and shards of the model.
///
/// # Errors
/// [`Error::Model`] when `to` exists, or a tensor to be filled does not; [`Error::Io`]; those of `fill`. Nothing is
/// left at `to` then.
pub fn rewrite(model: &Model, to: &Path, fill: &mut impl Fill) -> Result<()> {
    let names = fill.names();
    names.iter().try_for_each(|name| model.entry(name).map(|_| ()))?;
    let part = Part::new(to)?;
    copy_others(model, &part.path)?;
    for shard in 0..model.shards().len() {
        write_shard(model, shard, &part.path, &names, fill)?;
    }
    part.keep(to)
}

/// A directory under a temporary name, removed when it is not kept.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    kept: bool,
}

impl Part {
    /// Beside `to`, which must not exist.
    pub(crate) fn new(to: &Path) -> Result<Self> {
        if to.exists() {
            return Err(Error::model(to, "it exists already: name a directory that does not"));
        }
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let path = to.with_file_name(format!(".{name}.{}.part", std::process::id()));
        std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        Ok(Self { path, kept: false })
    }

    /// Where it is now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name.
    pub(crate) fn keep(mut self, to: &Path) -> Result<()> {
        std::fs::rename(&self.path, to).map_err(Error::io(to))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Writes a whole file or none: to a temporary name in the same folder, then renamed.
///
/// # Errors
/// [`Error::Io`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(Error::io(path))
}

/// Everything but the shards: configuration, tokenizer, index. Directories are passed over.
fn copy_others(model: &Model, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(model.dir()).map_err(Error::io(model.dir()))? {
        let path = entry.map_err(Error::io(model.dir()))?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        if !model.shards().iter().any(|shard| name == shard.name.as_str()) {
            std::fs::copy(&path, to.join(name)).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

fn write_shard(model: &Model, shard: usize, dir: &Path, names: &BTreeSet<String>, fill: &mut impl Fill) -> Result<()> {
    let path = dir.join(&model.shards()[shard].name);
    let mut out = BufWriter::with_capacity(COPY, File::create_new(&path).map_err(Error::io(&path))?);
    let mut entries: Vec<&Entry> = model.entries().values().filter(|e| e.shard == shard).collect();
    entries.sort_by_key(|e| e.start);
    copy(model, shard, 0..model.shards()[shard].start, &mut out, &path)?;
    for entry in entries {
        if names.contains(&entry.spec.name) {
            write_filled(entry, &mut out, &path, fill)?;
        } else {
            let bytes = (entry.len() * entry.spec.dtype.size()) as u64;
            copy(model, shard, entry.start..entry.start + bytes, &mut out, &path)?;
        }
    }
    let file = out.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?;
    file.sync_all().map_err(Error::io(&path))
}

fn write_filled(entry: &Entry, out: &mut impl Write, path: &Path, fill: &mut impl Fill) -> Result<()> {
    let (name, step) = (&entry.spec.name, fill.step().max(1));
    let mut values = vec![0f32; step.min(entry.len())];
    let mut bytes = Vec::new();
    for start in (0..entry.len()).step_by(step) {
        let range = start..(start + step).min(entry.len());
        let part = &mut values[..range.len()];
        fill.fill(name, range, part)?;
        weights::error::check_finite(name, part)?;
        bytes.clear();
        from_f32(entry.spec.dtype, part, &mut bytes)
            .ok_or_else(|| Error::model(path, format!("{name} is not of F32, F16 or BF16")))?;
        out.write_all(&bytes).map_err(Error::io(path))?;
    }
    Ok(())
}

fn copy(model: &Model, shard: usize, range: Range<u64>, out: &mut impl Write, path: &Path) -> Result<()> {
    let mut buffer = vec![0; COPY];
    let mut at = range.start;
    while at < range.end {
        let part = &mut buffer[..usize::try_from(range.end - at).unwrap_or(COPY).min(COPY)];
        model.bytes(shard, at, part)?;
        out.write_all(part).map_err(Error::io(path))?;
        at += part.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::model::tests::{sharded, tensors};

    /// Each value is its index, and 1000 for each letter of the name.
    struct Counted(Vec<&'static str>);

    impl Fill for Counted {
        fn names(&self) -> BTreeSet<String> {
            self.0.iter().map(|name| (*name).to_owned()).collect()
        }

        fn fill(&mut self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
            if range.end > 40 {
                return Err(Error::model("fill", "no more"));
            }
            out.iter_mut().zip(range).for_each(|(v, i)| *v = i as f32 + name.len() as f32 * 1000.0);
            Ok(())
        }

        fn step(&self) -> usize {
            7
        }
    }

    #[test]
    fn what_is_named_gets_new_values_and_the_rest_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let model = sharded(folder.path());
        let (to, name) = (folder.path().join("new"), "model.layers.0.self_attn.q_proj.weight");
        rewrite(&model, &to, &mut Counted(vec![name])).unwrap();
        let new = Model::open(&to).unwrap();
        for (tensor, dtype, values) in tensors() {
            let read = new.tensor(&tensor).unwrap();
            assert_eq!(new.entry(&tensor).unwrap().spec.dtype, dtype);
            if tensor == name {
                assert!(read.iter().enumerate().all(|(i, v)| (v - (i + name.len() * 1000) as f32).abs() < 256.0));
            } else {
                assert_eq!(read, model.tensor(&tensor).unwrap(), "{tensor} {values:?}");
            }
        }
        assert_eq!(std::fs::read(to.join("tokenizer.json")).unwrap(), b"{}");
        let error = rewrite(&model, &to, &mut Counted(vec![name])).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let model = sharded(folder.path());
        let before: BTreeSet<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let to = folder.path().join("new");
        assert!(rewrite(&model, &to, &mut Counted(vec!["model.embed_tokens.weight"])).is_err());
        assert!(rewrite(&model, &to, &mut Counted(vec!["no.such"])).unwrap_err().to_string().contains("no.such"));
        let after: BTreeSet<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(before, after);
    }
}
