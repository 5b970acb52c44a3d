//! The CSV that describes files to import.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// What is known of a file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Row {
    /// Test accuracy, 0 to 1.
    pub accuracy: Option<f32>,
    /// Test loss.
    pub loss: Option<f32>,
    /// What it was trained on: the id of a registered dataset, or a name.
    pub dataset: Option<String>,
    /// Name of its run.
    pub run: Option<String>,
    /// Epochs trained.
    pub epoch: Option<i32>,
    /// Its tags, between semicolons.
    pub tags: Option<String>,
    /// What is said about it.
    pub description: Option<String>,
}

impl Row {
    /// This row, and the values of another where it has none.
    pub fn or(self, other: &Self) -> Self {
        let other = other.clone();
        Self {
            accuracy: self.accuracy.or(other.accuracy),
            loss: self.loss.or(other.loss),
            dataset: self.dataset.or(other.dataset),
            run: self.run.or(other.run),
            epoch: self.epoch.or(other.epoch),
            tags: self.tags.or(other.tags),
            description: self.description.or(other.description),
        }
    }
}

/// A line of the CSV.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    path: PathBuf,
    #[serde(default)]
    accuracy: Option<f32>,
    #[serde(default)]
    loss: Option<f32>,
    #[serde(default)]
    dataset: Option<String>,
    #[serde(default)]
    run: Option<String>,
    #[serde(default)]
    epoch: Option<i32>,
    #[serde(default)]
    tags: Option<String>,
    #[serde(default)]
    description: Option<String>,
}

/// Reads a CSV, called `name` in errors; `find` gives the file that a path names, or says what is wrong with it.
///
/// # Errors
/// `csv_invalid`, `invalid_value`, with the row.
pub fn read(
    csv: impl Read,
    name: &str,
    find: impl Fn(&Path) -> std::result::Result<PathBuf, String>,
) -> Result<BTreeMap<PathBuf, Row>> {
    let wrong = |text: String| Error::input("csv_invalid", format!("{name}: {text}"));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(csv);
    let mut rows = BTreeMap::new();
    for (at, line) in reader.deserialize::<Line>().enumerate() {
        let Line { path, accuracy, loss, dataset, run, epoch, tags, description } =
            line.map_err(|e| wrong(e.to_string()))?;
        let place = format!("row {} names {}", at + 2, path.display());
        let file = find(&path).map_err(|why| wrong(format!("{place}, which {why}; remove the row")))?;
        registry::imports::check_values(accuracy, loss, epoch)
            .map_err(|error| Error::input(error.code(), format!("{name}: {place}: {error}")))?;
        let row = Row { accuracy, loss, dataset, run, epoch, tags, description };
        if rows.insert(file, row).is_some() {
            return Err(wrong(format!("{} has two rows; keep one", path.display())));
        }
    }
    Ok(rows)
}

/// Refuses a file that has no row, called `shown`.
///
/// # Errors
/// `csv_invalid`.
pub fn no_row(name: &str, shown: &str) -> Error {
    let text = format!("{name}: {shown} has no row; add one, or ask for defaults to take the common values");
    Error::input("csv_invalid", text)
}
