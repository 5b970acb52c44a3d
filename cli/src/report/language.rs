//! The experiments `table-6` and `table-18` (paper 4.4 and 4.5): layers of small language models, trained here, are
//! learned, generated and searched through, beside random directions with as many tries; and mixed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ::language::evaluate::{Candidate, Evaluator, Likelihood};
use ::language::generator::Generator;
use ::language::lm::{Decoder, Family, tokens, train as fit};
use ::language::model::Model;
use ::language::rewrite::rewrite;
use ::language::search::{Course, Proposal, SearchConfig, search};
use ::language::soup::soup;
use ::language::spectra::spectra;
use datasets::glue::Task;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::json;
use training::random;
use training::stages::layers::LayersConfig;
use weights::digest;

use super::experiment::Place;
use super::own;
use crate::context::peak_rss_mib;
use crate::error::{Error, Result};

/// Name of the experiment on Algorithm 1.
pub const SEARCH: &str = "table-6";
/// Its title.
pub const SEARCH_TITLE: &str = "Layers of language models, generated and searched through";
/// Name of the experiment on soups.
pub const SOUP: &str = "table-18";
/// Its title.
pub const SOUP_TITLE: &str = "Language models improved by generated layers, mixed";

const FILE: &str = include_str!("../../../configs/report/language.toml");

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    models: Vec<String>,
    vocabulary: usize,
    width: usize,
    blocks: usize,
    heads: usize,
    top: f64,
    candidates: usize,
    shares: Vec<f64>,
    searches: u64,
    validation_tokens: usize,
    test_tokens: usize,
    samples: u64,
    train: fit::TrainConfig,
    layers: LayersConfig,
}

/// Why its data is not there, if so.
pub fn missing_data(data: Option<&Path>) -> Option<String> {
    let needs = format!("experiments {SEARCH} and {SOUP} need text/sst2, text/cola, text/mrpc and text/rte");
    let Some(dir) = data else {
        return Some(format!("{needs}: give the folder that holds them with --data, or in WEIGHTSMITH_DATA"));
    };
    let there = Task::ALL.iter().all(|task| dir.join("text").join(task.name()).is_dir());
    (!there).then(|| format!("{needs}, and they are not in {}", dir.display()))
}

/// Sentences to train on, to search by and to measure on.
struct Texts {
    train: Vec<String>,
    validation: Vec<String>,
    test: Vec<String>,
}

impl Texts {
    /// All different sentences of the tasks, in an order of chance: 80, 10 and 10 %.
    fn read(data: &Path, seed: u64) -> Result<Self> {
        let mut all = Vec::new();
        for task in Task::ALL {
            let split = task.read(&data.join("text"))?;
            for example in split.train.into_iter().chain(split.test) {
                all.extend([Some(example.first), example.second].into_iter().flatten());
            }
        }
        all.sort();
        all.dedup();
        all.shuffle(&mut random::stream(seed, "sentences"));
        let test = all.split_off(all.len() * 9 / 10);
        let validation = all.split_off(all.len() * 8 / 9);
        Ok(Self { train: all, validation, test })
    }
}

/// A model, its generator, and what it is measured by.
struct Bench<'a> {
    place: &'a Place<'a>,
    settings: &'a Settings,
    folder: PathBuf,
    model: Model,
    generator: Generator,
    /// Sees what Algorithm 1 sees.
    validation: Likelihood,
    /// Sees what it does not.
    test: Likelihood,
    unigram: f64,
    matrices: usize,
}

impl<'a> Bench<'a> {
    /// Trains the model and its generator, or takes those of an earlier run.
    fn new(place: &'a Place<'a>, settings: &'a Settings, family: &str, texts: &Texts) -> Result<Self> {
        let key = serde_json::to_vec(&json!({ "settings": settings, "family": family }))
            .map_err(|e| Error::Internal(e.to_string()))?;
        let key = digest::sha256(&[key.as_slice(), training::REVISION.as_bytes()].concat());
        let key: String = key.trim_start_matches("sha256:").chars().take(16).collect();
        let folder = place.out.join("cache/language").join(key);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let base = folder.join("base");
        if !base.is_dir() {
            train(place, settings, family, texts, &base)?;
        }
        let model = Model::open(&base)?;
        let decoder = Decoder::load(&model)?;
        let vocabulary = decoder.config().vocabulary;
        let tokenizer = tokens::open(&base, vocabulary)?;
        let cut = |texts: &[String], n: usize| -> Result<Vec<u32>> {
            let mut ids = tokens::encode(&tokenizer, texts)?;
            ids.truncate(n);
            Ok(ids)
        };
        let test = cut(&texts.test, settings.test_tokens)?;
        let unigram = tokens::unigram_perplexity(&cut(&texts.train, usize::MAX)?, &test, vocabulary);
        let validation = cut(&texts.validation, settings.validation_tokens)?;
        let file = folder.join("layers.safetensors");
        if !file.is_file() {
            let layers = spectra(&model, settings.top, place.progress)?;
            let names: Vec<String> = layers.into_iter().filter(|l| l.selected).map(|l| l.matrix.name).collect();
            Generator::learn(&model, &names, &settings.layers, place.progress)?.save(&file)?;
        }
        let (generator, length) = (Generator::open(&file)?, settings.train.length);
        let matrices = model.matrices().len();
        let validation = Likelihood::new(decoder.clone(), validation, length);
        let test = Likelihood::new(decoder, test, length);
        Ok(Self { place, settings, folder, model, generator, validation, test, unigram, matrices })
    }

    /// Perplexities on validation and test text of a model with other values.
    fn perplexities(&mut self, changed: BTreeMap<String, Vec<f32>>) -> Result<(f64, f64)> {
        let mut candidate = Candidate { model: &self.model, changed };
        let of = |evaluator: &mut Likelihood, candidate: &mut Candidate<'_>| -> Result<f64> {
            Ok((-evaluator.score(candidate)?).exp())
        };
        Ok((of(&mut self.validation, &mut candidate)?, of(&mut self.test, &mut candidate)?))
    }

    /// All matrices of the generator as `make` gives them.
    fn all(&mut self, make: impl Fn(&Generator, &Model, &str) -> Result<Vec<f32>>) -> Result<(f64, f64)> {
        let names: Vec<String> = self.generator.names().map(str::to_owned).collect();
        let (generator, model) = (&self.generator, &self.model);
        let changed = names.into_iter().map(|name| Ok((name.clone(), make(generator, model, &name)?)));
        let changed = changed.collect::<Result<_>>()?;
        self.perplexities(changed)
    }

    /// Algorithm 1; what it kept.
    fn search(&mut self, proposal: Proposal, seed: u64) -> Result<(Course, BTreeMap<String, Vec<f32>>)> {
        let (candidates, shares) = (self.settings.candidates, self.settings.shares.clone());
        let config = SearchConfig { candidates, proposal, shares, seed, retries: 0 };
        let path = self.folder.join(format!("{proposal:?}-{seed}.json").to_lowercase());
        let place = (&config, path.as_path());
        Ok(search(&self.model, &self.generator, &mut self.validation, place, self.place.progress)?)
    }
}

fn train(place: &Place<'_>, settings: &Settings, family: &str, texts: &Texts, to: &Path) -> Result<()> {
    let family = match family {
        "llama" => Family::Llama,
        "phi3" => Family::Phi3,
        "gpt2" => Family::Gpt2,
        other => return Err(Error::input("config_invalid", format!("{other} is no family of models"))),
    };
    let tokenizer = tokens::learn(&texts.train, settings.vocabulary)?;
    let ids = tokens::encode(&tokenizer, &texts.train)?;
    let (vocabulary, length) = (tokenizer.get_vocab_size(true), settings.train.length);
    let config = fit::small(family, vocabulary, settings.width, settings.blocks, settings.heads, length)?;
    Ok(fit::train(&config, &ids, &settings.train, place.progress)?.save(to, &tokenizer)?)
}

/// Perplexities of an arm, on validation and on test text.
type Arms = BTreeMap<&'static str, Vec<(f64, f64)>>;

const SEARCH_ARMS: [(&str, &str); 6] = [
    ("start", "the model as it was trained"),
    ("reconstruction", "the learned matrices through the autoencoder"),
    ("generated", "all learned matrices generated at once, without a search"),
    ("noise", "each of them moved in a random direction, as far as the generated one is from it"),
    ("searched", "Algorithm 1 with the generator"),
    ("searched, noise", "Algorithm 1 with random directions of the same length, and as many tries"),
];

/// The experiment on Algorithm 1.
///
/// # Errors
/// Those of reading, training and evaluation.
pub fn run_search(place: &Place<'_>, quick: bool) -> Result<()> {
    run(place, quick, (SEARCH, SEARCH_TITLE), &SEARCH_ARMS, |bench, arms| {
        let mut add = |arm: &'static str, value: (f64, f64)| arms.entry(arm).or_default().push(value);
        add("start", bench.perplexities(BTreeMap::new())?);
        let back = bench.folder.join("reconstruction");
        let _ = std::fs::remove_dir_all(&back);
        rewrite(&bench.model, &back, &mut bench.generator.reconstruct(&bench.model)?)?;
        let back = Model::open(&back)?;
        add("reconstruction", bench.all(|_, _, name| Ok(back.tensor(name)?))?);
        for seed in 0..bench.settings.samples {
            add("generated", bench.all(|generator, _, name| Ok(generator.sample_matrix(seed, name)?))?);
            let noise = bench.all(|generator, model, name| {
                let generated = generator.sample_matrix(seed, name)?;
                Ok(::language::search::as_far(&model.tensor(name)?, &generated, seed))
            })?;
            add("noise", noise);
        }
        for seed in 0..bench.settings.searches {
            for (arm, proposal) in [("searched", Proposal::Generated), ("searched, noise", Proposal::Noise)] {
                let (_, kept) = bench.search(proposal, seed)?;
                add(arm, bench.perplexities(kept)?);
            }
        }
        Ok(())
    })
}

const SOUP_ARMS: [(&str, &str); 4] = [
    ("start", "the model as it was trained"),
    ("searched", "Algorithm 1 with the generator, a run a seed"),
    ("soup", "the mean of the model and of all its searched versions"),
    ("soup, noise", "the same with the searches in random directions"),
];

/// The experiment on soups.
///
/// # Errors
/// Those of reading, training and evaluation.
pub fn run_soup(place: &Place<'_>, quick: bool) -> Result<()> {
    run(place, quick, (SOUP, SOUP_TITLE), &SOUP_ARMS, |bench, arms| {
        let mut add = |arm: &'static str, value: (f64, f64)| arms.entry(arm).or_default().push(value);
        add("start", bench.perplexities(BTreeMap::new())?);
        for (arm, proposal) in [("soup", Proposal::Generated), ("soup, noise", Proposal::Noise)] {
            let mut versions = vec![(Model::open(bench.model.dir())?, 1.0)];
            let folder = tempfile::tempdir_in(&bench.folder).map_err(Error::io(&bench.folder))?;
            for seed in 0..bench.settings.searches {
                let (_, kept) = bench.search(proposal, seed)?;
                let to = folder.path().join(seed.to_string());
                Candidate { model: &bench.model, changed: kept.clone() }.write(&to)?;
                versions.push((Model::open(&to)?, 1.0));
                if proposal == Proposal::Generated {
                    add("searched", bench.perplexities(kept)?);
                }
            }
            let to = folder.path().join("soup");
            soup(&versions, &to)?;
            let mixed = Model::open(&to)?;
            add(arm, bench.all(|_, _, name| Ok(mixed.tensor(name)?))?);
        }
        Ok(())
    })
}

fn run(
    place: &Place<'_>,
    quick: bool,
    (name, title): (&str, &str),
    arms: &[(&str, &str)],
    measure: impl Fn(&mut Bench<'_>, &mut Arms) -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    let settings: Settings = own::settings(name, FILE, quick)?;
    let data = place.data.ok_or_else(|| Error::Internal("no data".into()))?;
    let texts = Texts::read(data, settings.train.seed)?;
    let mut models = BTreeMap::new();
    let mut facts = String::new();
    for family in &settings.models {
        place.progress.note(&format!("{name}: {family}"));
        let mut bench = Bench::new(place, &settings, family, &texts)?;
        let mut own = Arms::new();
        measure(&mut bench, &mut own)?;
        let parameters: usize = bench.model.entries().values().map(::language::model::Entry::len).sum();
        let _ = writeln!(
            facts,
            "- {family}: {parameters} parameters; {} of {} matrices with {} parameters are learned. Perplexity of token \
             frequencies on the test text: {:.1}.",
            bench.generator.names().count(),
            bench.matrices,
            bench.generator.parameters(),
            bench.unigram
        );
        models.insert(family.clone(), own);
    }
    let seconds = start.elapsed().as_secs_f64();
    let page = page((title, &own::command(name, quick)), quick, arms, &models, &settings, (&facts, seconds));
    let mut by_arm: BTreeMap<&str, BTreeMap<&str, serde_json::Value>> = BTreeMap::new();
    for (family, own) in &models {
        for (arm, values) in own {
            let (validation, test): (Vec<f64>, Vec<f64>) = values.iter().copied().unzip();
            let value =
                json!({ "validation_perplexity": own::numbers(&validation), "test_perplexity": own::numbers(&test) });
            by_arm.entry(arm).or_default().insert(family, value);
        }
    }
    let out = json!({
        "seeds": (0..settings.searches).collect::<Vec<_>>(), "seconds": seconds, "peak_rss_mib": peak_rss_mib(),
        "arms": by_arm,
    });
    own::finish(place, (name, quick), &settings, out, &page)
}

fn page(
    (title, command): (&str, &str),
    quick: bool,
    arms: &[(&str, &str)],
    models: &BTreeMap<String, Arms>,
    settings: &Settings,
    (facts, seconds): (&str, f64),
) -> String {
    let mut out = format!("# {title}\n\n{}", own::warning(quick));
    out.push_str(
        "Sections 4.4 and 4.5 of the paper. Small language models, trained here on sentences of SST-2, CoLA, MRPC and RTE, stand in \
         for Llama and Mistral. Perplexities, ± over samples or searches: on the validation text that Algorithm 1 sees, and on test \
         text that it never saw.\n\n| arm |",
    );
    for family in models.keys() {
        let _ = write!(out, " {family}, validation | {family}, test |");
    }
    let _ = writeln!(out, "\n|---|{}", "---|---|".repeat(models.len()));
    for (arm, _) in arms {
        let _ = write!(out, "| {arm} |");
        for own in models.values() {
            let values = own.get(arm).map(Vec::as_slice).unwrap_or_default();
            for part in [values.iter().map(|v| v.0).collect::<Vec<_>>(), values.iter().map(|v| v.1).collect()] {
                let _ = write!(out, " {} |", own::cell(&part, 3));
            }
        }
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&own::legend(arms));
    let (revision, k) = (training::REVISION, settings.candidates);
    let _ = writeln!(
        out,
        "{facts}- {k} candidates a matrix; {seconds:.0} seconds, with what earlier runs left. `{command}`, revision {revision}."
    );
    out
}
