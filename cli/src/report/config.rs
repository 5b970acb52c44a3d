//! Experiments: one TOML file each, in `configs/report/`.

mod sampling;

use std::path::Path;

use inference::SamplerKind;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use training::Config;
use training::config::{FEWEST, Role, TasksConfig};

use super::overrides;
use crate::compare::Arm;
use crate::error::{Error, Result};
pub use sampling::Sampling;

/// The variable that the sources of an experiment name for their folder.
pub const DATA: &str = "${WEIGHTSMITH_DATA}";

/// The experiments of the paper's tables, in the order of `report all`.
const BUILT_IN: [(&str, &str); 29] = [
    ("table-1", include_str!("../../../configs/report/table-1.toml")),
    ("table-1-omniglot", include_str!("../../../configs/report/table-1-omniglot.toml")),
    ("steps-heads", include_str!("../../../configs/report/steps-heads.toml")),
    ("table-2", include_str!("../../../configs/report/table-2.toml")),
    ("digits", include_str!("../../../configs/report/digits.toml")),
    ("steps", include_str!("../../../configs/report/steps.toml")),
    ("table-19-20", include_str!("../../../configs/report/table-19-20.toml")),
    ("steps-cnn", include_str!("../../../configs/report/steps-cnn.toml")),
    ("steps-epsilon", include_str!("../../../configs/report/steps-epsilon.toml")),
    ("table-20-predictor", include_str!("../../../configs/report/table-20-predictor.toml")),
    ("table-21", include_str!("../../../configs/report/table-21.toml")),
    ("table-4", include_str!("../../../configs/report/table-4.toml")),
    ("leave-one-out", include_str!("../../../configs/report/leave-one-out.toml")),
    ("leave-one-out-refined", include_str!("../../../configs/report/leave-one-out-refined.toml")),
    ("ablations", include_str!("../../../configs/report/ablations.toml")),
    ("zoo-size", include_str!("../../../configs/report/zoo-size.toml")),
    ("table-3", include_str!("../../../configs/report/table-3.toml")),
    ("table-22", include_str!("../../../configs/report/table-22.toml")),
    ("figure-6", include_str!("../../../configs/report/figure-6.toml")),
    ("figure-7", include_str!("../../../configs/report/figure-7.toml")),
    ("figure-10", include_str!("../../../configs/report/figure-10.toml")),
    ("table-9", include_str!("../../../configs/report/table-9.toml")),
    ("table-15", include_str!("../../../configs/report/table-15.toml")),
    ("table-10", include_str!("../../../configs/report/table-10.toml")),
    ("table-11", include_str!("../../../configs/report/table-11.toml")),
    ("vectorising", include_str!("../../../configs/report/vectorising.toml")),
    ("table-16", include_str!("../../../configs/report/table-16.toml")),
    ("table-23", include_str!("../../../configs/report/table-23.toml")),
    ("figure-9", include_str!("../../../configs/report/figure-9.toml")),
];

/// What `base` may name in a built-in experiment.
const BASES: [(&str, &str); 5] = [
    ("../digits.toml", crate::zoo::DIGITS),
    ("../digits-unet.toml", include_str!("../../../configs/digits-unet.toml")),
    ("../mixed.toml", include_str!("../../../configs/mixed.toml")),
    ("../tiny-cnn.toml", include_str!("../../../configs/tiny-cnn.toml")),
    ("../five-way.toml", include_str!("../../../configs/five-way.toml")),
];

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    table: String,
    #[serde(default)]
    stands_in: String,
    #[serde(default = "one_seed")]
    seeds: Vec<u64>,
    #[serde(default = "at_once")]
    epochs: Vec<usize>,
    #[serde(default = "some_samples")]
    samples: usize,
    #[serde(default = "all_arms")]
    arms: Vec<Arm>,
    #[serde(default = "many_tasks")]
    seen_tasks: usize,
    #[serde(default)]
    unseen_tasks: usize,
    #[serde(default)]
    left_out_tasks: usize,
    #[serde(default)]
    target_classes: Vec<usize>,
    #[serde(default)]
    leave_out: bool,
    #[serde(default)]
    timing: bool,
    #[serde(default)]
    weights_figure: bool,
    #[serde(default)]
    sampling: Sampling,
    #[serde(default)]
    fine_tuning: FineTuning,
    base: Option<String>,
    generator: Option<Table>,
    #[serde(default)]
    overrides: Table,
    #[serde(default)]
    variants: Vec<VariantFile>,
    #[serde(default)]
    quick: Quick,
}

/// What `--quick` replaces.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Quick {
    seeds: Option<Vec<u64>>,
    epochs: Option<Vec<usize>>,
    samples: Option<usize>,
    seen_tasks: Option<usize>,
    unseen_tasks: Option<usize>,
    left_out_tasks: Option<usize>,
    target_classes: Option<Vec<usize>>,
    overrides: Table,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariantFile {
    name: String,
    #[serde(default)]
    overrides: Table,
    #[serde(default = "whole")]
    share: f64,
    #[serde(default = "whole")]
    sets: f64,
    #[serde(default)]
    sources: Vec<String>,
    sampling: Option<Sampling>,
}

/// How models are fine-tuned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FineTuning {
    /// Images of a step.
    pub batch: usize,
    /// Adam's learning rate.
    pub lr: f64,
}

impl Default for FineTuning {
    fn default() -> Self {
        Self { batch: 100, lr: 3e-3 }
    }
}

fn one_seed() -> Vec<u64> {
    vec![0]
}
fn at_once() -> Vec<usize> {
    vec![0]
}
fn some_samples() -> usize {
    20
}
fn all_arms() -> Vec<Arm> {
    Arm::ALL.into_iter().filter(|arm| !arm.chosen()).collect()
}
fn many_tasks() -> usize {
    52
}
fn whole() -> f64 {
    1.0
}

/// An experiment, ready to run. Serialised, it is the `configuration` of the results.
#[derive(Debug, Clone, Serialize)]
pub struct Experiment {
    /// Name of its files.
    pub name: String,
    /// Whether `--quick` made it small: no result to quote.
    pub quick: bool,
    /// One line for people.
    pub title: String,
    /// The paper's table.
    pub table: String,
    /// What stands in for data that is missing.
    pub stands_in: String,
    /// Each seed trains a generator of its own on the one zoo, and draws support images and samples of its own.
    pub seeds: Vec<u64>,
    /// Epochs of fine-tuning after which accuracy is measured.
    pub epochs: Vec<usize>,
    /// Models of a task.
    pub samples: usize,
    /// The arms.
    pub arms: Vec<Arm>,
    /// Seen tasks that are measured, at most.
    pub seen_tasks: usize,
    /// Unseen tasks that are measured, at most.
    pub unseen_tasks: usize,
    /// Tasks of sources with the role `left_out` that are measured, at most.
    pub left_out_tasks: usize,
    /// Numbers of classes that are measured, of a generator for any number: so many tasks of each. Empty: those of the zoo.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target_classes: Vec<usize>,
    /// Whether each source in turn is unseen.
    pub leave_out: bool,
    /// Whether the seconds for one model of each task are measured: generated, and trained.
    pub timing: bool,
    /// Whether the weights themselves are shown (paper C.8).
    pub weights_figure: bool,
    /// How models are fine-tuned.
    pub fine_tuning: FineTuning,
    /// Configuration of the zoo and of the first variant's generator.
    pub generator: Config,
    /// The generators.
    pub variants: Vec<Variant>,
}

/// One of the generators that an experiment compares.
#[derive(Debug, Clone, Serialize)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub generator: Config,
    /// Share of each task's runs that it learns from.
    pub share: f64,
    /// Share of each source's class sets that it learns from.
    pub sets: f64,
    /// Sources that it learns from, and whose tasks it is measured on; none: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// How it is sampled.
    pub sampling: Sampling,
}

fn invalid(name: &str, text: impl std::fmt::Display) -> Error {
    Error::input("config_invalid", format!("experiment {name}: {text}"))
}

/// Names of the built-in experiments.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// A built-in experiment.
///
/// # Errors
/// `unknown_experiment` with those there are.
pub fn built_in(name: &str, quick: bool) -> Result<Experiment> {
    let Some((_, text)) = BUILT_IN.iter().find(|(n, _)| *n == name) else {
        let known = names().collect::<Vec<_>>().join(", ");
        let text = format!("there is no experiment {name}; there are {known}, or give a file with --config");
        return Err(Error::input("unknown_experiment", text));
    };
    let base = |path: &str| {
        let of_name = |known: &str| known == path || path.strip_suffix(".toml") == Some(known);
        let found = BASES.iter().chain(&BUILT_IN).find(|(known, _)| of_name(known));
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| invalid(name, format!("there is no file {path}")))
    };
    parse(name, text, quick, &base)
}

/// An experiment of one's own; its name is the file's.
///
/// # Errors
/// `io`, or `config_invalid` with the wrong key or value.
pub fn of_file(path: &Path, quick: bool) -> Result<Experiment> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    registry::check_name(&name).map_err(|e| Error::input(e.code(), format!("{}: {e}", path.display())))?;
    let base = |base: &str| {
        let path = path.parent().unwrap_or(Path::new("")).join(base);
        std::fs::read_to_string(&path).map_err(Error::io(&path))
    };
    parse(&name, &text, quick, &base)
}

fn parse(name: &str, text: &str, quick: bool, base: &dyn Fn(&str) -> Result<String>) -> Result<Experiment> {
    let one_line = |e: toml::de::Error| invalid(name, e.to_string().trim().replace('\n', " "));
    let table: Table = toml::from_str(text).map_err(one_line)?;
    let mut file: File = like(name, table, base)?.try_into().map_err(one_line)?;
    let generator = match (&file.base, &file.generator) {
        (Some(path), None) => base(path)?,
        (None, Some(table)) => table.to_string(),
        _ => return Err(invalid(name, "give either base, a file, or the section [generator]")),
    };
    let generator = Config::parse(&generator).map_err(|e| invalid(name, e))?;
    let mut generator = overrides::apply(&generator, &file.overrides).map_err(|e| invalid(name, e))?;
    if quick {
        generator =
            overrides::apply(&generator, &file.quick.overrides).map_err(|e| invalid(name, format!("quick: {e}")))?;
        let Quick { seeds, epochs, samples, seen_tasks, unseen_tasks, left_out_tasks, target_classes, .. } =
            file.quick.clone();
        file.seeds = seeds.unwrap_or(file.seeds);
        file.epochs = epochs.unwrap_or(file.epochs);
        file.samples = samples.unwrap_or(file.samples);
        file.seen_tasks = seen_tasks.unwrap_or(file.seen_tasks);
        file.unseen_tasks = unseen_tasks.unwrap_or(file.unseen_tasks);
        file.left_out_tasks = left_out_tasks.unwrap_or(file.left_out_tasks);
        file.target_classes = target_classes.unwrap_or(file.target_classes);
    }
    let experiment = Experiment {
        name: name.to_owned(),
        quick,
        variants: variants(name, &file, &generator)?,
        title: file.title,
        table: file.table,
        stands_in: file.stands_in,
        seeds: file.seeds,
        epochs: file.epochs,
        samples: file.samples,
        arms: file.arms,
        seen_tasks: file.seen_tasks,
        unseen_tasks: file.unseen_tasks,
        left_out_tasks: file.left_out_tasks,
        target_classes: file.target_classes,
        leave_out: file.leave_out,
        timing: file.timing,
        weights_figure: file.weights_figure,
        fine_tuning: file.fine_tuning,
        generator,
    };
    experiment.validate()?;
    Ok(experiment)
}

/// What an experiment takes from the one that it is `like`, where it does not say it itself: its zoo and the first
/// generator, and what makes them small for `--quick`.
fn like(name: &str, mut own: Table, file: &dyn Fn(&str) -> Result<String>) -> Result<Table> {
    let Some(other) = own.remove("like") else { return Ok(own) };
    let path = other.as_str().ok_or_else(|| invalid(name, "like is the name of another experiment's file"))?;
    let other: Table =
        toml::from_str(&file(path)?).map_err(|e| invalid(name, format!("{path}: {}", e.to_string().trim())))?;
    let shared = ["stands_in", "base", "generator", "overrides", "quick"];
    complete(&mut own, other.into_iter().filter(|(key, _)| shared.contains(&key.as_str())));
    Ok(own)
}

/// Adds to a table the keys of another that it lacks, and so inside its tables.
fn complete(own: &mut Table, other: impl IntoIterator<Item = (String, Value)>) {
    for (key, value) in other {
        match (own.get_mut(&key), value) {
            (Some(Value::Table(own)), Value::Table(value)) => complete(own, value),
            (Some(_), _) => {}
            (None, value) => {
                own.insert(key, value);
            }
        }
    }
}

fn variants(name: &str, file: &File, generator: &Config) -> Result<Vec<Variant>> {
    if file.variants.is_empty() {
        let full = Variant {
            name: "full".into(),
            generator: generator.clone(),
            share: 1.0,
            sets: 1.0,
            sources: Vec::new(),
            sampling: file.sampling,
        };
        return Ok(vec![full]);
    }
    let mut variants: Vec<Variant> = Vec::with_capacity(file.variants.len());
    for variant in &file.variants {
        let wrong = |text: String| invalid(name, format!("variant {:?}: {text}", variant.name));
        let config = overrides::apply(generator, &variant.overrides).map_err(wrong)?;
        let (a, b) = (generator, &config);
        let zoo = |c: &Config| (c.name.clone(), c.seed, c.data.clone(), c.tasks.clone(), c.zoo.clone());
        if zoo(a) != zoo(b) || (&a.architecture, &a.architectures) != (&b.architecture, &b.architectures) {
            let text = "all variants learn from one zoo: name, seed, data, tasks, architecture and zoo are those of \
                        the experiment; share takes a part of its runs";
            return Err(wrong(text.into()));
        }
        if variants.iter().any(|v| v.name == variant.name) {
            return Err(wrong("two variants have this name".into()));
        }
        variants.push(Variant {
            name: variant.name.clone(),
            generator: config,
            share: variant.share,
            sets: variant.sets,
            sources: variant.sources.clone(),
            sampling: variant.sampling.unwrap_or(file.sampling),
        });
    }
    Ok(variants)
}

impl Variant {
    /// Whether it learns from runs on tasks of this source.
    pub fn learns(&self, source: &str) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|own| own == source)
    }
}

impl Experiment {
    fn validate(&self) -> Result<()> {
        let need = |ok: bool, text: &str| if ok { Ok(()) } else { Err(invalid(&self.name, text)) };
        need(!self.seeds.is_empty(), "seeds needs at least one")?;
        need((1..=256).contains(&self.samples), "samples must lie between 1 and 256")?;
        let ascending = !self.epochs.is_empty() && self.epochs.windows(2).all(|w| w[0] < w[1]);
        need(ascending, "epochs must be numbers in ascending order, such as [0, 1, 5]")?;
        need(!self.arms.is_empty(), "arms needs at least one")?;
        let once = self.arms.iter().all(|arm| self.arms.iter().filter(|a| *a == arm).count() == 1);
        need(once, "arms names one twice")?;
        let tuning = &self.fine_tuning;
        let positive = tuning.batch > 0 && tuning.lr > 0.0 && tuning.lr.is_finite();
        need(positive, "fine_tuning needs a batch of at least 1 and a positive lr")?;
        let tasks = self.seen_tasks + self.unseen_tasks + self.left_out_tasks;
        need(tasks > 0, "seen_tasks, unseen_tasks or left_out_tasks must be at least 1")?;
        let left_out = self.generator.data.sources.iter().any(|s| s.role == Role::LeftOut);
        need(self.left_out_tasks == 0 || left_out, "left_out_tasks needs a source with role = \"left_out\"")?;
        let most = self.generator.most_classes();
        need(
            self.target_classes.is_empty() || most.is_some(),
            "target_classes is for a generator of any number of classes: tasks.classes must be a list or a range",
        )?;
        let inside = |k: &usize| (FEWEST..=most.unwrap_or_default()).contains(k);
        need(
            self.target_classes.iter().all(inside) && self.target_classes.windows(2).all(|pair| pair[0] < pair[1]),
            "target_classes are numbers in ascending order, from 2 to the largest of tasks.classes",
        )?;
        if self.leave_out {
            need(self.generator.tasks == TasksConfig::Sources, "leave_out needs tasks of the kind sources")?;
            need(self.generator.data.sources.len() >= 2, "leave_out needs at least two sources")?;
            need(!left_out, "leave_out leaves each source out in turn; leave role = \"left_out\" out")?;
        }
        self.variants.iter().try_for_each(|v| self.validate_variant(v))
    }

    fn validate_variant(&self, variant: &Variant) -> Result<()> {
        let wrong = |text: &dyn std::fmt::Display| invalid(&self.name, format!("variant {:?}: {text}", variant.name));
        for (key, share) in [("share", variant.share), ("sets", variant.sets)] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(wrong(&format!("{key} must lie above 0 and not above 1")));
            }
        }
        if variant.sets < 1.0 && self.generator.tasks == TasksConfig::Sources {
            return Err(wrong(&"sets takes a part of the class sets, and tasks are whole sources here: take share"));
        }
        let known = |name: &String| self.generator.data.sources.iter().any(|s| s.role == Role::Zoo && s.name == *name);
        if let Some(other) = variant.sources.iter().find(|name| !known(name) || self.leave_out) {
            return Err(wrong(&format!("sources names {other}: it takes sources of the zoo, and no leave_out")));
        }
        let part = variant.generator.zoo.start.is_some();
        if part && variant.sampling.tune > 0 {
            return Err(wrong(&"sampling.tune trains whole networks, and zoo.start a part: take sampling.refine"));
        }
        let Sampling { steps, guidance, eta, .. } = variant.sampling;
        variant.sampling.refinement().validate().map_err(|e| wrong(&e))?;
        if !(0.0..=3.0).contains(&variant.sampling.latent_noise) || variant.sampling.tune > 10_000 {
            return Err(wrong(&"sampling.latent_noise must lie between 0 and 3, sampling.tune between 0 and 10000"));
        }
        if variant.sampling.quality.is_some() && !variant.generator.diffusion.quality {
            return Err(wrong(&"sampling.quality needs diffusion.quality"));
        }
        if !(0.0..=1.0).contains(&eta) || (eta != 0.0 && variant.sampling.sampler != SamplerKind::Ddim) {
            return Err(wrong(&"sampling.eta must lie between 0 and 1, and is of ddim only"));
        }
        // The same rules as for the demo's requests.
        let mut config = variant.generator.clone();
        (config.evaluation.steps, config.evaluation.guidance) = (steps, guidance);
        config.validate().map_err(|e| wrong(&e))
    }

    /// Sources, and the zoo's start, that are below `--data`: the name, and the folder or file there.
    pub fn folders(&self) -> Vec<(&str, &str)> {
        let sources = self.generator.data.sources.iter().map(|s| (s.name.as_str(), s.from.as_str()));
        let start = self.generator.zoo.start.iter().map(|start| ("start", start.as_str()));
        let all = sources.chain(start);
        all.filter_map(|(name, from)| from.split_once(DATA).map(|(_, path)| (name, folder_of(path)))).collect()
    }
}

/// The folder of a source below `--data`, without what may be chosen of it.
fn folder_of(path: &str) -> &str {
    path.split('#').next().unwrap_or(path).trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_experiment_is_valid() {
        for (name, quick) in names().flat_map(|name| [(name, false), (name, true)]) {
            built_in(name, quick).unwrap_or_else(|e| panic!("{name} {quick}: {e}"));
        }
    }

    #[test]
    fn the_five_datasets_have_one_zoo_and_one_generator() {
        let first = built_in("table-19-20", false).unwrap();
        for name in
            ["table-4", "leave-one-out", "leave-one-out-refined", "ablations", "zoo-size", "vectorising", "figure-10"]
        {
            for quick in [false, true] {
                let first = built_in("table-19-20", quick).unwrap();
                let other = built_in(name, quick).unwrap();
                assert_eq!(other.generator, first.generator, "{name} {quick}");
            }
        }
        assert_eq!(built_in("table-4", false).unwrap().variants[0].generator, first.variants[0].generator);
    }

    #[test]
    fn an_experiment_like_another_says_what_differs() {
        let first = "title = \"a\"\ntable = \"-\"\nsamples = 7\nbase = \"x\"\n[overrides]\n\"vae.beta\" = 0.5\n\
                     \"zoo.keep\" = 2\n[quick]\nsamples = 3\nepochs = [0, 9]\n";
        let own =
            "title = \"b\"\ntable = \"-\"\nlike = \"first\"\n[overrides]\n\"vae.beta\" = 0.25\n[quick]\nepochs = [0]";
        let file = |name: &str| Ok(if name == "first" { first.to_owned() } else { crate::zoo::DIGITS.to_owned() });
        let own = parse("own", own, true, &file).unwrap();
        assert_eq!((own.title.as_str(), own.generator.vae.beta, own.generator.zoo.keep), ("b", 0.25, 2));
        assert_eq!((own.samples, own.epochs), (3, vec![0]));
    }

    fn refused(text: &str) -> String {
        let base = |_: &str| Ok(crate::zoo::DIGITS.to_owned());
        parse("own", text, true, &base).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_named() {
        let head = "title = \"t\"\ntable = \"-\"\nbase = \"x.toml\"\n";
        assert!(refused(&format!("{head}sample = 3")).contains("sample"));
        assert!(refused(&format!("{head}arms = [\"generatd\"]")).contains("generatd"));
        assert!(refused("title = \"t\"\ntable = \"-\"").contains("either base"));
        assert!(refused(&format!("{head}epochs = [1, 0]")).contains("ascending"));
        assert!(refused(&format!("{head}leave_out = true")).contains("leave_out"));
        let variant = |text: &str| refused(&format!("{head}[[variants]]\nname = \"v\"\n{text}"));
        assert!(variant("overrides = { \"vae.behavior\" = 0.0 }").contains("vae.behavior"));
        assert!(variant("overrides = { \"zoo.epochs\" = 1 }").contains("one zoo"));
        assert!(variant("share = 0.0").contains("share"));
        assert!(variant("sets = 1.5").contains("sets"));
        assert!(variant("sampling = { guidance = 99.0 }").contains("guidance"));
        assert!(refused("like = 3").contains("like"));
        assert!(refused(&format!("{head}target_classes = [3]")).contains("any number of classes"));
        assert!(refused(&format!("{head}[quick]\noverrides = {{ \"vae.x\" = 0 }}")).contains("quick"));
    }
}
