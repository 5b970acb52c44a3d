//! `weightsmith bench scale`: what things cost as they grow: parameters, zoos, generators that are loaded, clients.

use std::path::PathBuf;
use std::time::Instant;

use inference::{Generator, Runtime, SampleOptions};
use training::progress::Progress;
use training::stages::{generator, zoo};
use training::{Config, Keep, Sources};
use weights::Bundle;

use super::figures::{Figures, median};
use super::serving::{self, Made, Size};
use crate::context::{RegistryArgs, RuntimeArgs, peak_rss_mib, say};
use crate::error::{Error, Result};

/// Hidden widths of networks of about 10³ … 10⁷ parameters on 64 inputs and 5 classes.
const NETWORKS: [&[usize]; 5] = [&[14], &[140], &[270, 270], &[960, 960], &[3100, 3100]];
/// Values of a row.
const CHUNK: usize = 4096;
/// Runs of the zoos.
const ZOOS: [usize; 4] = [8, 32, 128, 512];
/// Generators loaded at a time.
const LOADED: [usize; 4] = [1, 4, 16, 64];
/// Clients.
const CLIENTS: [usize; 5] = [1, 4, 16, 64, 128];
/// Seconds that they ask for.
const SECONDS: f64 = 10.0;
/// Generations that are timed.
const ROUNDS: usize = 5;

/// Measure what things cost as they grow.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith bench scale --json scale.json")]
pub struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// File for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let (runtime, mut figures) = (args.runtime.open()?, Figures::default());
    parameters(&runtime, &mut figures)?;
    zoos(&mut figures)?;
    loaded(&runtime, &mut figures)?;
    clients(&runtime, &args.registry, &mut figures)?;
    args.json.as_ref().map_or(Ok(()), |path| figures.write(path))
}

/// A configuration of zoo and generator, trained for a few steps.
fn config(hidden: &[usize], runs: usize, seed: usize) -> Result<Config> {
    let tasks = runs.min(8);
    let text = format!(
        "name = \"scale\"\nseed = {seed}\n[data]\nsources = [{{ name = \"digits\", from = \"digits\" }}]\n\
         [tasks]\nkind = \"class_sets\"\nclasses = 5\nseen = {tasks}\norders = 1\n\
         [architecture]\nkind = \"mlp\"\nhidden = {hidden:?}\n[zoo]\nepochs = 1\nruns_per_task = {}\n\
         [vectors]\nmode = \"uniform\"\nchunk = {CHUNK}\nalignment_sweeps = 0\n\
         [vae]\nlatent = [64]\nhidden = [256]\nsteps = 2\nbatch = 4\nbehaviour = 0.0\n[encoder]\nsteps = 2\nbatch = 2\n\
         [denoiser]\nkind = \"mlp\"\nwidth = 256\nblocks = 2\n[diffusion]\nbatch = 4\nsteps = 2\n",
        runs / tasks
    );
    Ok(Config::parse(&text)?)
}

fn bundle(config: &Config) -> Result<(Bundle, Sources, zoo::Zoo)> {
    let sources = Sources::load(config)?;
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let silent = Progress::silent();
    let zoo = zoo::build(config, &sources, folder.path(), &silent, Keep::nothing())?;
    let made = generator::train(config, &zoo, &sources, &training::device::current(), &silent, Keep::nothing())?;
    Ok((made.bundle, sources, zoo))
}

/// Time and memory of one network, by its parameters. The floor is to copy it.
fn parameters(runtime: &Runtime, figures: &mut Figures) -> Result<()> {
    say("one network of so many parameters, cut into rows of 4,096 values; 20 steps of DDIM");
    for hidden in NETWORKS {
        let (bundle, sources, zoo) = bundle(&config(hidden, 2, 7)?)?;
        let before = rss_mib();
        forget_peak();
        let generator = Generator::load(runtime, bundle)?;
        let task = sources.task(&zoo.runs[0].task, training::Part::Train)?;
        let embedding = generator.embed(&task.first(generator.manifest().encoder.images_per_class))?;
        let options = SampleOptions { steps: Some(20), ..SampleOptions::default() };
        let (mut seconds, mut floor) = (Vec::new(), Vec::new());
        let mut d = 0;
        for _ in 0..=ROUNDS {
            let began = Instant::now();
            let weights = generator.generate(&embedding, &options, &mut |_, _| true)?.weights;
            seconds.push(began.elapsed().as_secs_f64());
            let began = Instant::now();
            let copy = std::hint::black_box(weights[0].clone());
            floor.push(began.elapsed().as_secs_f64());
            d = copy.len();
        }
        // The first makes sessions.
        let (seconds, floor) = (median(seconds[1..].to_vec()), median(floor[1..].to_vec()));
        let key = |what: &str| format!("scale.parameters.{d}.{what}");
        figures.put(&key("ms"), seconds * 1e3, "milliseconds");
        figures.put(&key("ns_per_parameter"), seconds * 1e9 / d as f64, "nanoseconds a parameter");
        figures.put(&key("over_a_copy"), seconds / floor.max(1e-9), "times a copy of it in memory");
        figures.put(&key("memory_mib"), peak_rss_mib() - before, "MiB at most for loading and generating");
    }
    Ok(())
}

/// Time to train a zoo and a generator on it, by the zoo's runs.
fn zoos(figures: &mut Figures) -> Result<()> {
    say("a zoo of so many runs of the MLP with 32 hidden units, one epoch each");
    for runs in ZOOS {
        let config = config(&[32], runs, 7)?;
        let sources = Sources::load(&config)?;
        let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
        let began = Instant::now();
        let zoo = zoo::build(&config, &sources, folder.path(), &Progress::silent(), Keep::nothing())?;
        let seconds = began.elapsed().as_secs_f64();
        let key = |what: &str| format!("scale.zoo.{}.{what}", zoo.runs.len());
        figures.put(&key("seconds"), seconds, "seconds");
        figures.put(&key("ms_per_run"), seconds * 1e3 / runs as f64, "milliseconds a run");
    }
    Ok(())
}

/// Memory by the number of generators that are loaded, of a kind but with weights of their own.
fn loaded(runtime: &Runtime, figures: &mut Figures) -> Result<()> {
    say("generators that are loaded, each with weights of its own, after one generation with each");
    let (mut held, mut bytes) = (Vec::new(), 0);
    let before = rss_mib();
    let most = LOADED.last().copied().unwrap_or_default();
    for seed in 1..=most {
        let (bundle, sources, zoo) = bundle(&config(&[32], 2, seed)?)?;
        bytes += inference::memory(&bundle);
        let generator = Generator::load(runtime, bundle)?;
        let task = sources.task(&zoo.runs[0].task, training::Part::Train)?;
        let embedding = generator.embed(&task.first(generator.manifest().encoder.images_per_class))?;
        generator.generate(&embedding, &SampleOptions::default(), &mut |_, _| true)?;
        held.push(generator);
        if LOADED.contains(&held.len()) {
            let key = |what: &str| format!("scale.loaded.{}.{what}", held.len());
            figures.put(&key("memory_mib"), rss_mib() - before, "MiB more than before the first, training included");
            figures.put(&key("counted_mib"), bytes as f64 / f64::from(1 << 20), "MiB that the budget counts");
        }
    }
    Ok(())
}

/// From now on the peak of this process's memory is counted anew.
fn forget_peak() {
    // Where the kernel does not let us, the figure says more than it should.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn rss_mib() -> f64 {
    super::child::memory(std::process::id()) as f64 / f64::from(1 << 20)
}

/// Requests a second and latencies, by the number of clients.
fn clients(runtime: &Runtime, registry: &RegistryArgs, figures: &mut Figures) -> Result<()> {
    say("clients that each ask for one network after the other, from a UNet and from a small MLP");
    for (name, size) in [("unet", Size::Unet), ("small", Size::Small)] {
        let made: Made = serving::make(runtime, size)?;
        for (clients, latency) in serving::at_each(&made, registry, &CLIENTS, SECONDS)? {
            let key = |what: &str| format!("scale.clients.{name}.{clients}.{what}");
            figures.put(&key("per_second"), latency.per_second, "requests a second");
            figures.put(&key("p50_ms"), latency.p50_ms, "milliseconds");
            figures.put(&key("p99_ms"), latency.p99_ms, "milliseconds");
        }
    }
    Ok(())
}
