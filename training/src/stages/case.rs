//! A zoo that tests take steps on.

use super::course::Given;
use super::vectors::{self, Vectors};
use super::zoo::{self, Zoo};
use crate::config::Config;
use crate::data::Sources;
use crate::progress::Progress;
use crate::snapshots::Keep;

pub(super) struct Case {
    pub(super) config: Config,
    pub(super) sources: Sources,
    pub(super) zoo: Zoo,
    pub(super) vectors: Vectors,
}

/// The tests' smallest zoo, with changes to its configuration.
pub(super) fn case(changes: &[(&str, &str)]) -> Case {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/tiny.toml");
    let mut text = std::fs::read_to_string(path).unwrap();
    for (from, to) in [("seen = 20", "seen = 4"), ("epochs = 10", "epochs = 1")].iter().chain(changes) {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let config = Config::parse(&text).unwrap();
    let (sources, folder, silent) = (Sources::load(&config).unwrap(), tempfile::tempdir().unwrap(), Progress::silent());
    let zoo = zoo::build(&config, &sources, folder.path(), &silent, Keep::nothing()).unwrap();
    let vectors = vectors::vectorise(&config, &zoo, &silent).unwrap();
    Case { config, sources, zoo, vectors }
}

impl Case {
    pub(super) fn with<R>(&self, f: impl FnOnce(&Given<'_>) -> R) -> R {
        let Self { config, sources, zoo, vectors } = self;
        let progress = Progress::silent();
        f(&Given { config, zoo, vectors, sources, progress: &progress, keep: Keep::nothing(), identity: "" })
    }
}
