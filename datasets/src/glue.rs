//! Labelled sentences: the tasks of GLUE that fit on a small machine, in the files that they are passed on in.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The most bytes of a file that are read.
const MAX_FILE: u64 = 64 << 20;

/// A sentence, or two, and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The sentence.
    pub first: String,
    /// The second one, of tasks on pairs.
    pub second: Option<String>,
    /// Its class.
    pub label: u32,
}

/// A task of GLUE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Sentiment of a sentence (SST-2).
    Sst2,
    /// Whether a sentence is grammatical (CoLA); measured by Matthews' correlation.
    Cola,
    /// Whether two sentences say the same (MRPC).
    Mrpc,
    /// Whether the second sentence follows from the first (RTE).
    Rte,
}

/// Its examples: `test` is the set whose labels are public, which nothing is chosen on.
#[derive(Debug, Clone)]
pub struct Split {
    /// To train on.
    pub train: Vec<Example>,
    /// To measure on.
    pub test: Vec<Example>,
}

/// Where the columns of a file are.
#[derive(Clone, Copy)]
struct Columns {
    /// Names of the columns, which the first line has; none: it has no such line.
    header: Option<&'static [&'static str]>,
    count: usize,
    first: usize,
    second: Option<usize>,
    label: usize,
}

impl Columns {
    /// Copies differ in what they call the sentence.
    fn check(self, path: &Path, first: &csv::StringRecord) -> Result<()> {
        let names = self.header.unwrap_or_default();
        let label = first.get(self.label).map(str::trim);
        if first.len() == self.count && label == names.get(self.label).copied() {
            return Ok(());
        }
        Err(refused(path, format!("its first line must name the columns {}", names.join(", "))))
    }
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sst2, Self::Cola, Self::Mrpc, Self::Rte];

    /// Its name, and that of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sst2 => "sst2",
            Self::Cola => "cola",
            Self::Mrpc => "mrpc",
            Self::Rte => "rte",
        }
    }

    /// Names of its classes, in the order of their labels.
    pub fn classes(self) -> [&'static str; 2] {
        match self {
            Self::Sst2 => ["negative", "positive"],
            Self::Cola => ["unacceptable", "acceptable"],
            Self::Mrpc => ["different", "equivalent"],
            Self::Rte => ["not_entailment", "entailment"],
        }
    }

    fn files(self) -> [&'static str; 2] {
        match self {
            Self::Sst2 | Self::Rte => ["train.tsv", "dev.tsv"],
            Self::Mrpc => ["msr_paraphrase_train.txt", "msr_paraphrase_test.txt"],
            Self::Cola => ["cola_public/raw/in_domain_train.tsv", "cola_public/raw/in_domain_dev.tsv"],
        }
    }

    fn columns(self) -> Columns {
        match self {
            Self::Sst2 => Columns { header: Some(&["label", "sentence"]), count: 2, first: 1, second: None, label: 0 },
            Self::Cola => Columns { header: None, count: 4, first: 3, second: None, label: 1 },
            Self::Mrpc => {
                let header: &[&str] = &["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"];
                Columns { header: Some(header), count: 5, first: 3, second: Some(4), label: 0 }
            }
            Self::Rte => {
                let header: &[&str] = &["index", "sentence1", "sentence2", "label"];
                Columns { header: Some(header), count: 4, first: 1, second: Some(2), label: 3 }
            }
        }
    }

    /// Reads the task from its folder in `dir` (`dir/sst2/train.tsv`; CoLA from `dir/cola/cola_public.zip`).
    ///
    /// # Errors
    /// [`Error::Glue`] names the file and the line, and says what it should have.
    pub fn read(self, dir: &Path) -> Result<Split> {
        let [train, test] = self.files().map(|file| self.file(&dir.join(self.name()), file));
        Ok(Split { train: train?, test: test? })
    }

    fn file(self, dir: &Path, file: &str) -> Result<Vec<Example>> {
        let (path, text) = match self {
            Self::Cola => {
                let path = dir.join("cola_public.zip");
                (path.join(file), member(&path, file)?)
            }
            _ => {
                let path = dir.join(file);
                let text = read(&path)?;
                (path, text)
            }
        };
        self.parse(&path, &text)
    }

    fn parse(self, path: &Path, text: &str) -> Result<Vec<Example>> {
        let columns = self.columns();
        // MRPC quotes cells as spreadsheets do; elsewhere a quotation mark is one.
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(b'\t')
            .quoting(self == Self::Mrpc)
            .has_headers(false)
            .flexible(true)
            .from_reader(text.trim_start_matches('\u{feff}').as_bytes());
        let mut examples = Vec::new();
        for (row, record) in reader.records().enumerate() {
            let record = record.map_err(|e| refused(path, e.to_string()))?;
            if row == 0 && columns.header.is_some() {
                columns.check(path, &record)?;
                continue;
            }
            let line = record.position().map_or(0, csv::Position::line);
            let wrong = |reason: String| refused(path, format!("line {line}: {reason}"));
            if record.len() != columns.count {
                return Err(wrong(format!("it has {} columns and should have {}", record.len(), columns.count)));
            }
            let cell = record[columns.label].trim();
            let number = cell.parse().ok().filter(|label: &usize| *label < 2);
            let label = number.or_else(|| self.classes().iter().position(|class| *class == cell));
            let label = label.ok_or_else(|| wrong(format!("its label is {cell:?}, neither 0 nor 1")))?;
            // A copy of MRPC has tabs for commas inside its quotation marks.
            let sentence = |column: usize| record[column].trim().replace('\t', ",");
            let (first, second) = (sentence(columns.first), columns.second.map(sentence));
            examples.push(Example { first, second, label: label as u32 });
        }
        match (0..2).find(|label| examples.iter().all(|e| e.label != *label)) {
            None => Ok(examples),
            Some(label) => Err(refused(path, format!("it has no example of the class {label}"))),
        }
    }
}

/// A file that is not as it should be.
pub(crate) fn refused(path: &Path, reason: impl Into<String>) -> Error {
    Error::Glue { path: PathBuf::from(path), reason: reason.into() }
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String> {
    text_of(path, File::open(path).map_err(|e| refused(path, e.to_string()))?)
}

fn text_of(path: &Path, source: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    source.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| refused(path, e.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused(path, format!("it is larger than {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| refused(path, format!("it is not UTF-8: {e}")))
}

fn member(path: &Path, name: &str) -> Result<String> {
    let file = File::open(path).map_err(|e| refused(path, e.to_string()))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| refused(path, e.to_string()))?;
    let member = archive.by_name(name).map_err(|e| refused(path, format!("{name}: {e}")))?;
    text_of(path, member)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::io::Write;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn example(first: &str, second: Option<&str>, label: u32) -> Example {
        Example { first: first.into(), second: second.map(Into::into), label }
    }

    #[test]
    fn sentences_and_pairs() {
        let sst2 = "label\tsentence\n0\tcontains no wit , only \"labored gags\n1\ta joy\n";
        let rte =
            "index\tsentence1\tsentence2\tlabel\n0\tNo weapons.\tWeapons.\tnot_entailment\n1\tA b.\tA.\tentailment\n";
        let mrpc = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t\"He said \t \"\" One \"\" .\"\tThe one .\n0\t7\t9\tOne .\tTwo .\n";
        let data = folder(&[
            ("sst2/train.tsv", sst2),
            ("sst2/dev.tsv", &sst2.replace("sentence", "content")),
            ("rte/train.tsv", rte),
            ("rte/dev.tsv", rte),
            ("mrpc/msr_paraphrase_train.txt", mrpc),
            ("mrpc/msr_paraphrase_test.txt", mrpc),
        ]);
        let read = Task::Sst2.read(data.path()).unwrap();
        assert_eq!(read.train, [example("contains no wit , only \"labored gags", None, 0), example("a joy", None, 1)]);
        assert_eq!(read.train, read.test);
        let read = Task::Rte.read(data.path()).unwrap();
        assert_eq!(read.train, [example("No weapons.", Some("Weapons."), 0), example("A b.", Some("A."), 1)]);
        let read = Task::Mrpc.read(data.path()).unwrap();
        assert_eq!(
            read.test,
            [example("He said , \" One \" .", Some("The one ."), 1), example("One .", Some("Two ."), 0)]
        );
    }

    #[test]
    fn cola_is_in_an_archive() {
        let data = folder(&[("cola/x", "")]);
        let file = File::create(data.path().join("cola/cola_public.zip")).unwrap();
        let mut archive = zip::ZipWriter::new(file);
        for name in Task::Cola.files() {
            archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(b"gj04\t1\t\tOne more.\ngj04\t0\t*\tMore one the.\n").unwrap();
        }
        archive.finish().unwrap();
        let read = Task::Cola.read(data.path()).unwrap();
        assert_eq!(read.train, [example("One more.", None, 1), example("More one the.", None, 0)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |text: &str| {
            let data = folder(&[("sst2/train.tsv", text)]);
            Task::Sst2.read(data.path()).unwrap_err().to_string()
        };
        for (text, wanted) in [
            ("sentence\tlabel\nx\t0\n", "first line must name"),
            ("label\tsentence\n0\tx\ty\n", "line 2: it has 3 columns"),
            ("label\tsentence\n0\tx\n2\ty\n", "line 3: its label is \"2\""),
            ("label\tsentence\n0\tx\n", "no example of the class 1"),
        ] {
            assert!(said(text).contains(wanted), "{}", said(text));
        }
        let nothing = Task::Cola.read(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(nothing.contains("cola_public.zip"), "{nothing}");
    }
}
