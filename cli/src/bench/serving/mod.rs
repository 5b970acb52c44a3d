//! `weightsmith bench serving`: sampling beside a bare loop over the same graphs in ONNX Runtime and beside PyTorch, and a
//! server under many clients.

mod clients;
mod made;

use std::path::{Path, PathBuf};
use std::time::Instant;

use inference::SampleOptions;
use serde_json::json;
use weights::tensors;

use super::figures::{Figures, paired};
use super::peer::{Peer, number};
use super::python::PythonArgs;
use crate::context::{RegistryArgs, RuntimeArgs, say};
use crate::error::{Error, Result};
pub use clients::at_each;
pub use made::{Made, Size, make};

/// The networks in PyTorch, and the loop over them.
const SCRIPT: &str = concat!(include_str!("../peers/networks.py"), "\n\n", include_str!("../peers/serve.py"));
/// Steps of DDIM.
const STEPS: usize = 20;
/// Seconds of a turn, about.
const LONG: f64 = 1.0;
/// Batches that are compared.
const BATCHES: [usize; 2] = [1, 32];
/// What `peers/serve.py` samples with.
const MODES: [&str; 4] = ["ort", "eager", "compile", "diffusers"];
/// Largest difference of generated weights from a peer's, for it to have done the same.
const SAME: f32 = 2e-3;

/// Measure sampling and serving.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith bench serving --python venv/bin/python --json bench.json")]
pub struct Args {
    #[command(flatten)]
    pub options: Options,
    #[command(flatten)]
    python: PythonArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// File for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How much is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Rounds of each comparison; ours and the peers' take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..1000))]
    rounds: u16,
    /// Clients of the server.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..1000))]
    clients: u16,
    /// Seconds that the clients ask for.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Requests of the test of endurance, on a small generator; 0 leaves it out.
    #[arg(long, default_value_t = 2000)]
    requests: u32,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut figures = Figures::default();
    measure(&args.options, &args.python.open()?, &args.registry, &args.runtime, &mut figures)?;
    args.json.as_ref().map_or(Ok(()), |path| figures.write(path))
}

/// Measures everything about serving.
///
/// # Errors
/// When a peer does something else than we do, or anything fails.
pub fn measure(
    options: &Options,
    python: &Path,
    registry: &RegistryArgs,
    runtime: &RuntimeArgs,
    figures: &mut Figures,
) -> Result<()> {
    if !options.seconds.is_finite() || options.seconds <= 0.0 {
        return Err(Error::input("seconds_invalid", "--seconds must be a number above 0"));
    }
    say("serving: a UNet on latents 8x16x16, 20 steps of DDIM, and the decoder");
    let runtime = runtime.open()?;
    let made = make(&runtime, Size::Unet)?;
    figures.note("serving.provider", json!(runtime.provider().to_string()));
    let alone = beside_peers(options, python, &made, "", figures)?;
    say("the same, of the residual MLP of configs/tiny-cnn.toml");
    beside_peers(options, python, &make(&runtime, Size::Mlp)?, "mlp_", figures)?;
    clients::measure(options, &made, alone, registry, figures)?;
    if options.requests > 0 {
        clients::endure(options, &make(&runtime, Size::Small)?, registry, figures)?;
    }
    Ok(())
}

/// What is sampled.
fn sampled(count: usize) -> SampleOptions {
    SampleOptions { count, steps: Some(STEPS), eta: Some(0.0), seed: 3, ..SampleOptions::default() }
}

/// Seconds of `runs` generations of a batch.
fn seconds(made: &Made, batch: usize, runs: usize) -> Result<f64> {
    let options = sampled(batch);
    let began = Instant::now();
    for _ in 0..runs {
        made.generator.generate(&made.embedding, &options, &mut |_, _| true)?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Samples a second of programs that answer one request after the other.
#[derive(Debug, Default, Clone, Copy)]
struct OneByOne {
    eager: f64,
    compile: f64,
}

/// Samples in turns with each peer, and says how they compare; `of` begins the figures' names.
fn beside_peers(options: &Options, python: &Path, made: &Made, of: &str, figures: &mut Figures) -> Result<OneByOne> {
    let mut alone = OneByOne::default();
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    made.save(folder.path(), &sampled(1), BATCHES[1])?;
    for batch in BATCHES {
        let own = made.generator.generate(&made.embedding, &sampled(batch), &mut |_, _| true)?.weights;
        let runs = (LONG / seconds(made, batch, 2)? * 2.0).ceil().clamp(1.0, 1000.0) as usize;
        let mut peers = Vec::new();
        for mode in MODES {
            let text = [mode, &folder.path().display().to_string(), &batch.to_string()].map(str::to_owned);
            peers.push(Peer::start(python, SCRIPT, &text.each_ref().map(String::as_str))?);
            let found = std::fs::read(folder.path().join(format!("{mode}-{batch}.safetensors")));
            let (_, theirs) = tensors::named_from_safetensors(&found.map_err(Error::io(folder.path()))?, "weights")?;
            let pairs = own.iter().flatten().zip(&theirs);
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            if theirs.len() != own.len() * own[0].len() || difference.is_nan() || difference > SAME {
                return Err(Error::Internal(format!("{mode} makes other weights: they differ by {difference}")));
            }
            figures.put(
                &format!("serving.{of}difference_{mode}_batch_{batch}"),
                f64::from(difference),
                "largest difference of generated weights",
            );
        }
        let mut asks: Vec<_> = peers.iter_mut().map(|peer| move || number(&peer.ask(runs)?, "seconds")).collect();
        let mut asks: Vec<&mut dyn FnMut() -> Result<f64>> = asks.iter_mut().map(|ask| ask as _).collect();
        let (own, ratios) = paired(usize::from(options.rounds), || seconds(made, batch, runs), &mut asks)?;
        let rate = (batch * runs) as f64 / own;
        if batch == 1 {
            alone = OneByOne { eager: rate / ratios[1], compile: rate / ratios[2] };
        }
        let suffix = if batch == BATCHES[1] { String::new() } else { format!("_batch_{batch}") };
        figures.put(
            &format!("serving.{of}overhead_batch_{batch}"),
            1.0 / ratios[0],
            "our time over bare ONNX Runtime's",
        );
        for (peer, ratio) in ["torch_eager", "torch_compile", "diffusers"].into_iter().zip(&ratios[1..]) {
            figures.put(&format!("serving.{of}speedup_over_{peer}{suffix}"), *ratio, "samples a second over its");
        }
        figures.put(
            &format!("serving.{of}samples_per_second_batch_{batch}"),
            rate,
            "samples a second, in this run only",
        );
    }
    Ok(alone)
}
