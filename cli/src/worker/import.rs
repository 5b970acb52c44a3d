//! Jobs that import an archive of checkpoints.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use api::AppState;
use api::imports::ARCHIVE;
use datasets::{Limits, Unpacked};
use registry::imports as rows;
use registry::jobs::{self, Attempt, Progress, work};
use serde::Deserialize;
use serde_json::json;

use super::scratch::Scratch;
use super::{parse, registry};
use crate::context::blocking;
use crate::error::{Error, Result};
use crate::import::batches::{Common, Importer, Item, Tally, Target};
use crate::import::table::{self, Row};
use crate::import::{ENDINGS, is_checkpoint};

/// Name of the CSV in an archive.
const TABLE: &str = "checkpoints.csv";

/// What an import is asked for.
#[derive(Deserialize)]
struct Import {
    zoo: String,
    #[serde(default)]
    defaults: bool,
    #[serde(flatten)]
    common: Common,
}

/// Adds the checkpoints of an archive to a zoo. What a batch adds stays, and another attempt passes it over.
pub async fn import(state: &AppState, attempt: Attempt, unpacked_limit: u64) -> Result<()> {
    let request: Import = parse(&attempt.job.request)?;
    let id = request.zoo.parse().map_err(|_| Error::input("request_invalid", "the request: zoo is not an id"))?;
    let zoo = rows::own_zoo(registry(state), &attempt.caller, id).await?;
    let scratch = Scratch::make(&folder(state))?;
    let files = unpack(state, &attempt, scratch.path(), unpacked_limit).await?;
    let items = items(&files, request.defaults)?;
    let importer = Importer {
        registry: registry(state).clone(),
        caller: attempt.caller.clone(),
        common: request.common,
        folder: scratch.path().to_owned(),
        target: Target::Zoo(zoo.id),
        attempt: Some(attempt.clone()),
    };
    let begun = std::time::Instant::now();
    // What an earlier attempt has done says nothing of the rate of this one.
    let first = std::sync::OnceLock::new();
    let report = |tally: &Tally| {
        let from = *first.get_or_init(|| tally.done);
        let rate = Some((tally.done - from) as f64 / begun.elapsed().as_secs_f64());
        let rate = rate.filter(|rate| *rate > 0.0 && rate.is_finite());
        let seconds_left = rate.map(|rate| (items.len() - tally.done) as f64 / rate);
        let (step, steps) = (tally.done as u64, items.len() as u64);
        attempt.report(Progress { stage: "import".into(), step, steps, loss: None, rate, seconds_left });
    };
    let tally = importer.all(&items, report).await?;
    let result = json!({ "kind": "import", "url": format!("/v1/checkpoints?zoo={}", zoo.id),
        "detail": { "zoo": zoo.id, "files": items.len(), "imported": tally.added,
            "already_there": tally.known + tally.passed, "failed": tally.failed, "failures": tally.failures } });
    let mut write = registry(state).write(&attempt.caller).await?;
    work::succeed(&mut write, attempt.claim, &result).await?;
    Ok(write.commit().await?)
}

/// Folder of temporary files.
pub fn folder(state: &AppState) -> PathBuf {
    state.settings().folder()
}

/// Fetches the archive and takes it apart.
async fn unpack(state: &AppState, attempt: &Attempt, scratch: &Path, limit: u64) -> Result<Vec<Unpacked>> {
    let lost = || Error::input("artifact_missing", "the archive of this import is gone: send it again");
    let digest = jobs::snapshot_digest(registry(state), attempt.job.id, ARCHIVE).await?.ok_or_else(lost)?;
    attempt.report(Progress { stage: "unpack".into(), ..Progress::default() });
    let (archive, inside) = (scratch.join("archive"), scratch.join("files"));
    registry(state).artifacts().save(&digest, &archive).await?;
    std::fs::create_dir(&inside).map_err(Error::io(&inside))?;
    let limits = Limits {
        max_files: state.settings().datasets.max_files,
        max_compressed_bytes: u64::MAX,
        max_decompressed_bytes: limit,
        ..Limits::default()
    };
    let stop = attempt.stop.clone();
    blocking(move || {
        let files = datasets::unpack(&archive, &inside, &limits, &|| stop.load(Ordering::Relaxed))?;
        // Its room is of more use to the files.
        std::fs::remove_file(&archive).map_err(Error::io(&archive))?;
        Ok(files)
    })
    .await
}

/// The checkpoints among the files of an archive, with what its CSV says of them.
fn items(files: &[Unpacked], defaults: bool) -> Result<Vec<Item>> {
    let is_table = |name: &str| Path::new(name).file_name().is_some_and(|file| file == TABLE);
    let tables: Vec<&Unpacked> =
        files.iter().filter(|file| is_table(&file.name) && file.name.matches('/').count() <= 1).collect();
    let mut rows = match tables[..] {
        [] => None,
        [csv] => Some(described(files, csv)?),
        _ => {
            let text = format!("the archive has more than one {TABLE}; keep one, beside the files");
            return Err(Error::input("csv_invalid", text));
        }
    };
    let mut items = Vec::new();
    for Unpacked { name, path } in files {
        let row = rows.as_mut().and_then(|rows| rows.remove(path));
        let row = match (row, rows.is_some()) {
            (None, _) if !is_checkpoint(Path::new(name)) => continue,
            (None, true) if !defaults => return Err(table::no_row(TABLE, name)),
            (row, _) => row.unwrap_or_default(),
        };
        items.push(Item { path: path.clone(), shown: name.clone(), name: name.clone(), row });
    }
    if items.is_empty() {
        let text = format!("the archive holds no file to import: pack files with .{}", ENDINGS.join(", ."));
        return Err(Error::input("nothing_to_import", text));
    }
    Ok(items)
}

fn described(files: &[Unpacked], csv: &Unpacked) -> Result<std::collections::BTreeMap<PathBuf, Row>> {
    let folder = csv.name.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let find = |path: &Path| {
        let path = path.to_string_lossy().replace('\\', "/");
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let name = format!("{folder}{}", parts.join("/"));
        let found = files.iter().position(|file| file.name == name);
        found.map(|at| files[at].path.clone()).ok_or_else(|| "is not in the archive".to_owned())
    };
    let content = std::fs::File::open(&csv.path).map_err(Error::io(TABLE))?;
    table::read(content, TABLE, find)
}
