//! Labelled sentences of one's own (TSV), and small tasks on built-in ones, made of words.

use std::path::Path;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::glue::{Example, Split, read, refused};

/// Reads `train.tsv` and `test.tsv` of a folder: a first line `label`, `text` and, of pairs, `second`, between tabs; then
/// an example a line, its label one of `classes`.
///
/// # Errors
/// [`crate::Error::Glue`] names the file and the line, and says what it should have.
pub fn from_tsv(dir: &Path, classes: &[String]) -> Result<Split> {
    let of = |name: &str| tsv(&dir.join(name), classes);
    Ok(Split { train: of("train.tsv")?, test: of("test.tsv")? })
}

fn tsv(path: &Path, classes: &[String]) -> Result<Vec<Example>> {
    let text = read(path)?;
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let header: Vec<&str> = lines.next().map(|(_, line)| line.split('\t').collect()).unwrap_or_default();
    let pairs = match header.as_slice() {
        ["label", "text"] => false,
        ["label", "text", "second"] => true,
        _ => return Err(refused(path, "its first line must be label, text and, of pairs, second, between tabs")),
    };
    let mut examples = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |reason: String| refused(path, format!("line {}: {reason}", number + 1));
        let cells: Vec<&str> = line.split('\t').map(str::trim).collect();
        if cells.len() != header.len() {
            return Err(wrong(format!("it has {} columns and should have {}", cells.len(), header.len())));
        }
        let label = classes.iter().position(|class| class == cells[0]);
        let label =
            label.ok_or_else(|| wrong(format!("its label is {:?}; known are {}", cells[0], classes.join(", "))))?;
        let second = pairs.then(|| cells[2].to_owned());
        examples.push(Example { first: cells[1].to_owned(), second, label: label as u32 });
    }
    match classes.iter().enumerate().find(|(label, _)| examples.iter().all(|e| e.label as usize != *label)) {
        None => Ok(examples),
        Some((_, class)) => Err(refused(path, format!("it has no example of the class {class}"))),
    }
}

/// A task on built-in sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phrases {
    /// Whether an opinion is favourable.
    Opinion,
    /// Whether a sentence is about an animal or a machine.
    Subject,
    /// Whether something has happened or will.
    Tense,
    /// Whether a sentence is set indoors or outdoors.
    Setting,
}

/// How many of a list's words only tests have.
const HELD_OUT: usize = 3;

struct Words {
    /// What the classes differ in, a list each.
    of: [&'static [&'static str]; 2],
    /// Sentences; `{}` is the word, `@` a noun, `&` a place.
    forms: &'static [&'static str],
}

const NOUNS: &[&str] = &[
    "meal",
    "hotel",
    "book",
    "concert",
    "journey",
    "garden",
    "lecture",
    "coat",
    "exhibition",
    "game",
    "camera",
    "tour",
];
const PLACES: &[&str] = &[
    "by the river",
    "in the old town",
    "near the station",
    "on the hill",
    "at the market",
    "behind the school",
    "along the coast",
    "in the village",
    "beside the church",
    "at the border",
];

impl Phrases {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Opinion, Self::Subject, Self::Tense, Self::Setting];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opinion => "opinion",
            Self::Subject => "subject",
            Self::Tense => "tense",
            Self::Setting => "setting",
        }
    }

    /// Names of its classes, in the order of their labels.
    pub fn classes(self) -> [&'static str; 2] {
        match self {
            Self::Opinion => ["against", "for"],
            Self::Subject => ["animal", "machine"],
            Self::Tense => ["past", "future"],
            Self::Setting => ["indoors", "outdoors"],
        }
    }

    fn words(self) -> Words {
        match self {
            Self::Opinion => Words {
                of: [
                    &[
                        "awful",
                        "boring",
                        "dreadful",
                        "disappointing",
                        "poor",
                        "tedious",
                        "horrible",
                        "miserable",
                        "annoying",
                    ],
                    &[
                        "wonderful",
                        "delightful",
                        "excellent",
                        "charming",
                        "splendid",
                        "superb",
                        "great",
                        "lovely",
                        "fantastic",
                    ],
                ],
                forms: &["the @ & was {}", "we thought the @ was {}", "what a {} @", "everyone & called the @ {}"],
            },
            Self::Subject => Words {
                of: [
                    &["horse", "fox", "goat", "sparrow", "wolf", "rabbit", "otter", "donkey", "badger"],
                    &[
                        "tractor",
                        "printer",
                        "locomotive",
                        "crane",
                        "engine",
                        "generator",
                        "excavator",
                        "lorry",
                        "turbine",
                    ],
                ],
                forms: &[
                    "we saw a {} &",
                    "the old {} & made a noise",
                    "there is another {} &",
                    "a {} was beside the @",
                ],
            },
            Self::Tense => Words {
                of: [
                    &["bought", "left", "lost", "opened", "sold", "repaired", "visited", "finished", "missed"],
                    &[
                        "will buy",
                        "will leave",
                        "will lose",
                        "will open",
                        "will sell",
                        "will repair",
                        "will visit",
                        "will finish",
                        "will miss",
                    ],
                ],
                forms: &["they {} the @ &", "my sister {} the @", "the teachers {} another @ &", "he {} a @"],
            },
            Self::Setting => Words {
                of: [
                    &[
                        "kitchen",
                        "bedroom",
                        "office",
                        "library",
                        "cellar",
                        "corridor",
                        "bathroom",
                        "classroom",
                        "attic",
                    ],
                    &["forest", "meadow", "desert", "valley", "lake", "field", "mountain", "beach", "jungle"],
                ],
                forms: &[
                    "they met in the {}",
                    "we left the @ in the {}",
                    "the {} was quiet",
                    "there is another {} like it",
                ],
            },
        }
    }

    /// `train` and `test` examples; the words that decide are others in the test, equal seeds give equal ones.
    pub fn read(self, train: usize, test: usize, seed: u64) -> Split {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self as u64);
        let words = self.words();
        let mut make =
            |n: usize, tests: bool| -> Vec<Example> { (0..n).map(|i| words.example(i % 2, tests, &mut rng)).collect() };
        Split { train: make(train, false), test: make(test, true) }
    }
}

impl Words {
    fn example(&self, label: usize, tests: bool, rng: &mut ChaCha8Rng) -> Example {
        let all = self.of[label];
        let cut = all.len() - HELD_OUT;
        let own = if tests { &all[cut..] } else { &all[..cut] };
        let mut any = |list: &[&'static str]| list.choose(rng).copied().unwrap_or_default();
        let (word, noun, place, form) = (any(own), any(NOUNS), any(PLACES), any(self.forms));
        let mut text = form.replace("{}", word).replace('@', noun).replace('&', place);
        if rng.random_bool(0.5) {
            text.push_str(" today");
        }
        Example { first: text, second: None, label: label as u32 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_of_tests_are_not_learned_from() {
        for task in Phrases::ALL {
            let split = task.read(60, 40, 1);
            assert_eq!((split.train.len(), split.test.len()), (60, 40));
            assert_eq!(split.test.iter().filter(|e| e.label == 0).count(), 20);
            let words = task.words();
            for (label, all) in words.of.iter().enumerate() {
                let own = &all[all.len() - HELD_OUT..];
                let of = |examples: &[Example]| {
                    let mut some = examples.iter().filter(|e| e.label as usize == label);
                    some.any(|e| own.iter().any(|w| format!(" {} ", e.first).contains(&format!(" {w} "))))
                };
                assert!(of(&split.test) && !of(&split.train), "{task:?}");
            }
            assert_eq!(split.train, task.read(60, 40, 1).train);
            assert_ne!(split.train, task.read(60, 40, 2).train);
        }
    }

    #[test]
    fn files_are_read_and_what_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let classes = ["no".to_owned(), "yes".to_owned()];
        let with = |text: &str| {
            std::fs::write(folder.path().join("train.tsv"), text).unwrap();
            std::fs::write(folder.path().join("test.tsv"), "label\ttext\nno\ta\nyes\tb\n").unwrap();
            from_tsv(folder.path(), &classes)
        };
        let split = with("label\ttext\tsecond\nyes\tone\ttwo\nno\tthree\tfour\n").unwrap();
        assert_eq!(split.train[0], Example { first: "one".into(), second: Some("two".into()), label: 1 });
        for (text, wanted) in [
            ("text\tlabel\nx\tno\n", "first line must be label, text"),
            ("label\ttext\nno\n", "line 2: it has 1 columns"),
            ("label\ttext\nmaybe\tx\n", "its label is \"maybe\"; known are no, yes"),
            ("label\ttext\nno\tx\n", "no example of the class yes"),
        ] {
            let said = with(text).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }
}
