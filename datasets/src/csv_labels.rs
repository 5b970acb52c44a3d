//! `labels.csv` of an archive: which class each file has.

use std::collections::HashMap;

use csv::{ReaderBuilder, Trim};

use crate::{Error, Limits, Result};

/// The label of each path, and the classes: by number when all are whole numbers, else by name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CsvLabels {
    /// Class index by path, `/` between its parts.
    pub(crate) labels: HashMap<String, u32>,
    /// Names of the classes, in label order.
    pub(crate) classes: Vec<String>,
}

/// Reads `path,label` rows below a header of these names.
///
/// Errors: `labels_csv_invalid` with the row, `limit_exceeded`.
pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<CsvLabels> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(bytes);
    let headers = reader.headers().map_err(|e| invalid(&e.to_string()))?.clone();
    let column = |name: &str| {
        let found = headers.iter().position(|header| header.trim_start_matches('\u{feff}').eq_ignore_ascii_case(name));
        found.ok_or_else(|| invalid(&format!("its header has no column {name}; begin with the line path,label")))
    };
    let (path_at, label_at) = (column("path")?, column("label")?);
    let mut rows: HashMap<String, String> = HashMap::new();
    for (index, record) in reader.records().enumerate() {
        let record = record.map_err(|e| invalid(&e.to_string()))?;
        let row = index + 1;
        let (path, label) = (record.get(path_at).unwrap_or_default(), record.get(label_at).unwrap_or_default());
        if path.is_empty() || label.is_empty() {
            return Err(invalid(&format!("row {row} has an empty path or label; give both")));
        }
        if rows.len() >= limits.max_examples {
            return Err(Error::limit("rows of labels.csv", row, limits.max_examples));
        }
        let path = path.replace('\\', "/").trim_start_matches("./").to_owned();
        if let Some(before) = rows.insert(path, label.to_owned()) {
            return Err(invalid(&format!("row {row} labels a file that has the label {before:?} already")));
        }
    }
    let classes = classes(&rows);
    if classes.len() > limits.max_classes {
        return Err(Error::limit("classes of labels.csv", classes.len(), limits.max_classes));
    }
    let index: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let labels = rows.iter().map(|(path, label)| (path.clone(), index[label.as_str()])).collect();
    Ok(CsvLabels { labels, classes })
}

fn classes(rows: &HashMap<String, String>) -> Vec<String> {
    let mut classes: Vec<String> = rows.values().cloned().collect();
    classes.sort_unstable();
    classes.dedup();
    // "10" comes after "2": labels that are numbers keep their order.
    let numbers: Option<Vec<u64>> = classes.iter().map(|class| class.parse().ok()).collect();
    if numbers.is_some() {
        classes.sort_by_key(|class| class.parse::<u64>().unwrap_or(u64::MAX));
    }
    classes
}

fn invalid(reason: &str) -> Error {
    Error::LabelsCsvInvalid(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<CsvLabels> {
        parse(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn rows_give_labels() {
        let read_back = read("\u{feff}path,label\na/1.png,cat\n.\\a\\2.png, dog\n").unwrap();
        assert_eq!(read_back.classes, ["cat", "dog"]);
        assert_eq!((read_back.labels["a/1.png"], read_back.labels["a/2.png"]), (0, 1));
        let swapped = read("label,Path,note\n10,a,x\n2,b,y\n").unwrap();
        assert_eq!(swapped.classes, ["2", "10"], "numbers are sorted as numbers");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("file,label\na,b\n", "path"),
            ("path,label\na,b\na,c\n", "row 2"),
            ("path,label\na\n", "fields"),
            ("path,label\n,b\n", "row 1"),
            ("", "path"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.code(), "labels_csv_invalid");
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(parse(b"path,label\n\xff,b\n", &Limits::default()).unwrap_err().code(), "labels_csv_invalid");
        let few = Limits { max_examples: 1, ..Limits::default() };
        assert_eq!(parse(b"path,label\na,b\nc,d\n", &few).unwrap_err().code(), "limit_exceeded");
        let few = Limits { max_classes: 1, ..Limits::default() };
        assert_eq!(parse(b"path,label\na,b\nc,d\n", &few).unwrap_err().code(), "limit_exceeded");
    }
}
