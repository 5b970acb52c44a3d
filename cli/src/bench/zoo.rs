//! `weightsmith bench zoo`: how fast a zoo of tiny CNNs is trained, beside PyTorch that trains the same ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use training::stages::zoo::{Plan, Trainer};
use training::{Config, Part, Sources};
use weights::tensors;

use super::figures::{Figures, median};
use super::peer::{Peer, number};
use super::python::PythonArgs;
use crate::context::{say, write_whole};
use crate::error::{Error, Result};

/// The peers' script.
const SCRIPT: &str = include_str!("peers/zoo.py");
/// What the peers are: see the script.
const MODES: [&str; 3] = ["loop", "processes", "vmap"];
/// Steps that are not measured.
const WARM_UP: usize = 2;

/// Measure how fast a zoo is trained, beside PyTorch.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith bench zoo --python venv/bin/python --json bench.json")]
pub struct Args {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    python: PythonArgs,
    /// File for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is trained, and how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Models.
    #[arg(long, default_value_t = Options::default().models, value_parser = clap::value_parser!(u16).range(1..10_000))]
    models: u16,
    /// Models in one batched tensor.
    #[arg(long, default_value_t = Options::default().group, value_parser = clap::value_parser!(u16).range(1..10_000))]
    group: u16,
    /// Images of a step.
    #[arg(long, default_value_t = Options::default().batch, value_parser = clap::value_parser!(u16).range(10..10_000))]
    batch: u16,
    /// Steps of every model in a round.
    #[arg(long, default_value_t = Options::default().steps, value_parser = clap::value_parser!(u16).range(1..1000))]
    steps: u16,
    /// Rounds; ours and the peers' take turns.
    #[arg(long, default_value_t = Options::default().rounds, value_parser = clap::value_parser!(u16).range(1..1000))]
    rounds: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { models: 64, group: 32, batch: 50, steps: 20, rounds: 5 }
    }
}

/// The figures.
#[derive(Debug)]
struct Report {
    models: u16,
    batch: u16,
    cores: usize,
    /// Milliseconds of a step of one model: the time of a round over its steps and models.
    step_ms: BTreeMap<&'static str, f64>,
    /// Mean accuracy on test images after all steps.
    accuracy: BTreeMap<&'static str, f64>,
    /// Which of the two loops was the faster: the one that the speed-up is over.
    faster_loop: Option<&'static str>,
    speedups: BTreeMap<&'static str, f64>,
    torch: Option<Value>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut figures = Figures::default();
    measure(&args.options, Some(&args.python.open()?), &mut figures)?;
    args.json.as_ref().map_or(Ok(()), |path| figures.write(path))
}

/// Trains a zoo beside the peers, or alone where there is no Python.
///
/// # Errors
/// When training or a peer fails.
pub fn measure(options: &Options, python: Option<&Path>, figures: &mut Figures) -> Result<()> {
    let config = configuration(options)?;
    let sources = Sources::load(&config)?;
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let plan = Plan::new(&config, &sources)?;
    // What goes wrong inside is told after the plan's own errors.
    let measured = plan.train(|trainer| Ok(rounds((options, python), &config, &sources, folder.path(), trainer)))?;
    let report = measured?;
    put(&report, figures);
    Ok(())
}

/// A zoo of tiny CNNs, each from a start of its own, on the digits that are built in.
fn configuration(args: &Options) -> Result<Config> {
    let epochs = (WARM_UP + usize::from(args.steps) * usize::from(args.rounds)) * usize::from(args.batch);
    let text = format!(
        "name = \"bench\"\nseed = 1\n\
         [data]\nsources = [{{ name = \"digits\", from = \"digits\", resize = [28, 28] }}]\n\
         [tasks]\nkind = \"sources\"\n[architecture]\nkind = \"tiny_cnn\"\n\
         [zoo]\nruns_per_task = {}\nepochs = {epochs}\nbatch = {}\nlr = 3e-3\ngroup = {}\ncommon_init = false\n\
         [denoiser]\nkind = \"mlp\"\nwidth = 8\nblocks = 1\n",
        args.models, args.batch, args.group
    );
    Ok(Config::parse(&text)?)
}

fn rounds(
    (args, python): (&Options, Option<&Path>),
    config: &Config,
    sources: &Sources,
    folder: &Path,
    trainer: &mut Trainer<'_>,
) -> Result<Report> {
    share(config, sources, &trainer.theta()?, usize::from(args.models), &folder.join("data.safetensors"))?;
    let mut peers = Vec::new();
    for mode in MODES {
        if let Some(python) = python {
            peers.push((mode, Peer::start(python, SCRIPT, &[mode, &folder.to_string_lossy()])?));
        }
    }
    let mut times: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut accuracy = BTreeMap::new();
    for round in 0..=args.rounds {
        let steps = if round == 0 { WARM_UP } else { usize::from(args.steps) };
        let mut note = |name, seconds: f64| {
            if round > 0 {
                times.entry(name).or_default().push(seconds);
            }
        };
        let began = Instant::now();
        trainer.advance(steps)?;
        note("ours", began.elapsed().as_secs_f64());
        for (mode, peer) in &mut peers {
            let said = peer.ask(steps)?;
            note(*mode, number(&said, "seconds")?);
            accuracy.insert(*mode, number(&said, "accuracy")?);
        }
    }
    let scores = trainer.scores(Part::Test)?;
    accuracy.insert("ours", scores.iter().map(|s| s.accuracy).sum::<f64>() / scores.len().max(1) as f64);
    let torch = peers.first().map(|(_, peer)| peer.ready.clone());
    Ok(report(args, &times, accuracy, torch))
}

/// Writes for the peers what the models see and start from.
fn share(config: &Config, sources: &Sources, start: &[f32], models: usize, path: &Path) -> Result<()> {
    let (tasks, _) = sources.tasks(config)?;
    let task = tasks.first().ok_or_else(|| Error::Internal("the benchmark has no task".into()))?;
    let mut values = Vec::new();
    for (part, name) in [(Part::Train, "train"), (Part::Test, "test")] {
        let mut data = sources.list()[0].dataset(part);
        if part == Part::Test {
            // Scores are on as many images of each class.
            let least = sources.task(task, part)?.per_class();
            let classes = data.class_indices(&(0..data.len()).collect::<Vec<_>>());
            let kept: Vec<usize> = classes.iter().flat_map(|class| class.iter().take(least).copied()).collect();
            data = data.take(&kept);
        }
        let x = data.gather(&(0..data.len()).collect::<Vec<_>>());
        let shape: Vec<usize> = std::iter::once(data.len()).chain(data.shape.iter().copied()).collect();
        values.push((format!("{name}.x"), shape, x));
        values.push((format!("{name}.y"), vec![data.len()], data.labels.iter().map(|&l| l as f32).collect()));
    }
    values.push(("start".into(), vec![models, start.len() / models], start.to_vec()));
    let named: Vec<_> = values.iter().map(|(n, shape, x)| (n.as_str(), shape.as_slice(), x.as_slice())).collect();
    let settings = json!({"batch": config.zoo.batch, "lr": config.zoo.lr}).to_string();
    let file = tensors::named_to_safetensors(&named, &BTreeMap::from([("settings".to_owned(), settings)]));
    write_whole(path, &file)
}

fn report(
    args: &Options,
    times: &BTreeMap<&'static str, Vec<f64>>,
    accuracy: BTreeMap<&'static str, f64>,
    torch: Option<Value>,
) -> Report {
    let all = f64::from(args.steps) * f64::from(args.models);
    let step_ms = times.iter().map(|(name, times)| (*name, median(times.clone()) / all * 1e3)).collect();
    // Of each round its own ratio: what else the machine did then, it did to both.
    let ratio = |name: &str| {
        let (theirs, ours) = (times.get(name)?, times.get("ours")?);
        Some(median(theirs.iter().zip(ours).map(|(theirs, ours)| theirs / ours).collect()))
    };
    let mut speedups = BTreeMap::new();
    let mut faster_loop = None;
    if let (Some(one), Some(two)) = (ratio("loop"), ratio("processes")) {
        speedups.insert("zoo.speedup_over_torch_one_process", one);
        speedups.insert("zoo.speedup_over_torch_two_processes", two);
        speedups.insert("zoo.speedup_over_torch_loop", one.min(two));
        faster_loop = Some(if one <= two { "loop" } else { "processes" });
    }
    if let Some(vmap) = ratio("vmap") {
        speedups.insert("zoo.speedup_over_torch_vmap", vmap);
    }
    Report {
        models: args.models,
        batch: args.batch,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        step_ms,
        accuracy,
        faster_loop,
        speedups,
        torch,
    }
}

fn put(report: &Report, figures: &mut Figures) {
    say(&format!("zoo: {} tiny CNNs, batches of {}, {} cores", report.models, report.batch, report.cores));
    for (name, ms) in &report.step_ms {
        figures.put(&format!("zoo.{name}_ms"), *ms, "milliseconds a step of one model, in this run only");
        let accuracy = report.accuracy.get(name).copied().unwrap_or(f64::NAN);
        figures.put(&format!("zoo.{name}_accuracy"), accuracy, "mean accuracy at the end");
    }
    for (name, ratio) in &report.speedups {
        figures.put(name, *ratio, "times as fast");
    }
    figures.note("zoo.faster_loop", json!(report.faster_loop));
    figures.note("zoo.torch", json!(report.torch));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speedups_are_medians_of_each_rounds_ratio_over_the_faster_loop() {
        let args = Options { models: 2, group: 1, batch: 10, steps: 5, rounds: 3 };
        let times = BTreeMap::from([
            ("ours", vec![1.0, 2.0, 1.0]),
            ("loop", vec![9.0, 20.0, 8.0]),
            ("processes", vec![6.0, 10.0, 7.0]),
            ("vmap", vec![3.0, 4.0, 1.0]),
        ]);
        let report = report(&args, &times, BTreeMap::new(), None);
        assert_eq!(report.speedups["zoo.speedup_over_torch_one_process"], 9.0);
        assert_eq!(report.speedups["zoo.speedup_over_torch_loop"], 6.0);
        assert_eq!(report.speedups["zoo.speedup_over_torch_vmap"], 2.0);
        assert_eq!((report.faster_loop, report.step_ms["ours"]), (Some("processes"), 100.0));
    }

    #[test]
    fn a_small_zoo_is_measured_without_peers() {
        let args = Options { models: 3, group: 2, batch: 20, steps: 2, rounds: 2 };
        let config = configuration(&args).unwrap();
        let sources = Sources::load(&config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::new(&config, &sources).unwrap();
        let measured =
            plan.train(|trainer| Ok(rounds((&args, None), &config, &sources, folder.path(), trainer))).unwrap();
        let report = measured.unwrap();
        assert!(report.step_ms["ours"] > 0.0 && report.accuracy["ours"] > 0.0 && report.speedups.is_empty());
        let file = std::fs::read(folder.path().join("data.safetensors")).unwrap();
        let (shape, start) = tensors::named_from_safetensors(&file, "start").unwrap();
        assert_eq!((shape, start.len()), (vec![3, 2464], 3 * 2464));
    }
}
