//! Checkpoints from outside: one file to its stored form and into a zoo. Used by the API and by the command line.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write as _};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use registry::architectures::{Architecture, NewArchitecture};
use registry::imports::{self, Added, NewImport};
use registry::{NewAbout, Registry, Write, ZooId};
use serde_json::json;
use sha2::{Digest, Sha256};
use weights::checkpoint::{Checkpoint, Limits, Options, TensorLayout};

use crate::error::{Error, Result};

/// Media type of what is stored.
pub const SAFETENSORS: &str = "application/vnd.safetensors";
/// Name of the archive among the files of an import's job.
pub const ARCHIVE: &str = "archive";
/// Bytes read at a time for a digest.
const CHUNK: usize = 1 << 20;

/// A file in its stored form, on disk.
#[derive(Debug)]
pub struct Taken {
    /// The canonical safetensors file, without a name: it goes away with this value, and with the process.
    file: File,
    /// Names, shapes and types of its tensors.
    pub layout: TensorLayout,
    /// Digest of the file as it came.
    pub source_digest: String,
}

impl Taken {
    /// A path that opens the stored form anew, in this process and while the value is there.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

/// Digest of a file, at constant memory.
///
/// # Errors
/// When it cannot be read.
pub fn digest(file: &mut File) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(format!("sha256:{}", hex::encode(hash.finalize()))),
            read => hash.update(&chunk[..read]),
        }
    }
}

/// Reads a file of tensors, checks it against `expected` when that is known, and writes its stored form into a file of
/// `folder`; blocks, at constant memory.
///
/// # Errors
/// [`Error::Import`], which names the tensor that is wrong.
pub fn take(path: &Path, options: &Options, expected: Option<&TensorLayout>, folder: &Path) -> Result<Taken> {
    let unreadable = |error: std::io::Error| Error::Internal(format!("a file to import cannot be read: {error}"));
    let mut source = File::open(path).map_err(unreadable)?;
    let source_digest = digest(&mut source).map_err(unreadable)?;
    let mut checkpoint =
        Checkpoint::open(BufReader::new(source), options, &Limits::default()).map_err(Error::Import)?;
    let layout = checkpoint.layout();
    if let Some(expected) = expected {
        layout.fits(expected).map_err(Error::Import)?;
    }
    let file = tempfile::tempfile_in(folder)
        .map_err(|error| Error::Internal(format!("a file to import cannot be kept on disk: {error}")))?;
    let mut out = BufWriter::with_capacity(CHUNK, &file);
    checkpoint.write(&mut out).map_err(Error::Import)?;
    out.flush().map_err(|error| Error::Import(weights::Error::Write(error)))?;
    drop(out);
    Ok(Taken { file, layout, source_digest })
}

/// The layout that an architecture demands.
///
/// # Errors
/// When the stored layout is not one of tensors.
pub fn layout_of(architecture: &Architecture) -> Result<TensorLayout> {
    serde_json::from_value(architecture.layout.clone())
        .map_err(|error| Error::Internal(format!("the layout of {} is not readable: {error}", architecture.name)))
}

/// An architecture that is only a layout.
///
/// # Errors
/// When the layout names no tensors, or wrong ones.
pub fn architecture(name: &str, layout: &TensorLayout, about: NewAbout) -> Result<NewArchitecture> {
    layout.validate().map_err(Error::Import)?;
    let as_json = |error| Error::Internal(format!("a layout cannot be written: {error}"));
    Ok(NewArchitecture {
        name: name.to_owned(),
        config: json!({"kind": "layout"}),
        parameters: i64::try_from(layout.parameters()).unwrap_or(i64::MAX),
        layout: serde_json::to_value(layout).map_err(as_json)?,
        forward_artifact: None,
        about,
    })
}

/// Stores the files and adds them to a zoo; a zoo without an architecture gets the layout of the first. `new` has
/// everything but the digest of the stored weights.
///
/// # Errors
/// Those of the registry; [`Error::Import`] when a layout is not the zoo's. Do not commit the write then.
pub async fn add(
    registry: &Registry,
    write: &mut Write,
    zoo: &registry::zoos::Zoo,
    taken: &[(Taken, NewImport)],
) -> Result<Vec<Added>> {
    let Some((first, _)) = taken.first() else {
        return Ok(Vec::new());
    };
    let zoo_id: ZooId = zoo.id;
    let own = architecture(&zoo.name, &first.layout, NewAbout::default())?;
    let expected = layout_of(&imports::settle_architecture(write, zoo_id, &own).await?)?;
    for (one, new) in taken {
        one.layout.fits(&expected).map_err(|error| Error::Import(error).in_field(new.source.name.clone()))?;
    }
    let mut all = Vec::with_capacity(taken.len());
    for (one, new) in taken {
        let artifact = registry.artifacts().put_file(&one.path(), SAFETENSORS).await?;
        all.push(NewImport { artifact_digest: artifact.digest, ..new.clone() });
    }
    Ok(imports::add(write, zoo_id, &all).await?)
}
