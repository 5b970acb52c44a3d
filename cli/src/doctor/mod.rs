//! `weightsmith doctor`: what this machine has, what is really used of it, and whether it computes what the CPU computes.

mod checks;
mod machine;
mod networks;
mod speed;
mod steps;

use std::path::PathBuf;

use inference::{Device, Provider, Runtime};
use serde::Serialize;
use training::device;

use crate::context::{RuntimeArgs, say, write_json};
use crate::error::{Error, Result};

use checks::Check;
use machine::Machine;

/// Look at this machine, compare graphs and training with the CPU's, and measure: what to run first on a GPU.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith doctor --device cuda --json doctor.json")]
pub struct Args {
    /// Also write what was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// ONNX Runtime as it is used.
#[derive(Debug, Serialize)]
struct OnnxRuntime {
    library: PathBuf,
    version: Option<String>,
    /// Whether the library was built with the CUDA provider.
    has_cuda: bool,
    /// What sessions really use.
    provider: Provider,
    /// Why that is not CUDA, where CUDA was tried.
    without_cuda: Option<String>,
    threads: usize,
}

/// candle as it is used.
#[derive(Debug, Serialize)]
struct Candle {
    /// Whether this program was built for CUDA.
    built_for_cuda: bool,
    /// `cpu` or `cuda`.
    device: &'static str,
    /// Why that is not CUDA, where CUDA was tried.
    without_cuda: Option<String>,
}

/// All that is found.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    version: &'static str,
    revision: &'static str,
    machine: Machine,
    onnxruntime: OnnxRuntime,
    candle: Candle,
    checks: Vec<Check>,
    speed: speed::Speed,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let machine = Machine::look();
    say(&format!("weightsmith {} ({})", env!("CARGO_PKG_VERSION"), training::REVISION));
    machine.lines().iter().for_each(|line| say(line));
    let (runtime, candle_device) = devices(args, &machine)?;
    let (onnxruntime, candle) = (describe(&runtime), of_candle(args, &candle_device));
    lines(&onnxruntime, &candle).iter().for_each(|line| say(line));
    let reference = Runtime::new(runtime.library(), Device::Cpu, args.runtime.threads)?;
    let mut checks = Vec::new();
    let mut found = |check: Check| {
        say(&check.line());
        checks.push(check);
    };
    checks::graphs(&runtime, &reference, &candle_device, &mut found)?;
    steps::training(&candle_device, &mut found)?;
    let speed = speed::measure(&runtime, &candle_device)?;
    speed.lines().iter().for_each(|line| say(line));
    let failed = checks.iter().filter(|check| !check.pass).count();
    let (version, revision) = (env!("CARGO_PKG_VERSION"), training::REVISION);
    let report = Report { ok: failed == 0, version, revision, machine, onnxruntime, candle, checks, speed };
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    match failed {
        0 => {
            say(&format!("all {} checks passed", report.checks.len()));
            Ok(())
        }
        n => Err(Error::Parity(format!("{n} of {} checks failed: see above", report.checks.len()))),
    }
}

/// ONNX Runtime and the device of training; where CUDA is demanded, both must have it.
fn devices(args: &Args, machine: &Machine) -> Result<(Runtime, candle_core::Device)> {
    if args.runtime.device != Device::Cuda {
        args.runtime.train_there()?;
        return Ok((args.runtime.open()?, device::current()));
    }
    // Both are tried before either is told of: what is missing is often one thing.
    match (args.runtime.open(), device::cuda()) {
        (Ok(runtime), Ok(cuda)) => Ok((runtime, cuda)),
        (runtime, cuda) => {
            let reasons = [runtime.err().map(|e| e.to_string()), cuda.err().map(|e| e.to_string())];
            let reasons = reasons.into_iter().flatten().chain(of_the_cpu(args)).chain(machine.missing());
            let reasons: Vec<String> = reasons.collect();
            Err(Error::input("cuda_unavailable", reasons.join("; ")))
        }
    }
}

/// Whether the ONNX Runtime that is pointed to lacks the file of the CUDA provider.
fn of_the_cpu(args: &Args) -> Option<String> {
    let library = inference::locate_library(args.runtime.ort.clone()).ok()?;
    let provider = library.with_file_name("libonnxruntime_providers_cuda.so");
    let text = format!(
        "{} is ONNX Runtime for the CPU: `make cuda-runtime` fetches the one for CUDA, and `. .weightsmith/cuda.sh` points to it",
        library.display()
    );
    (!provider.exists()).then_some(text)
}

fn describe(runtime: &Runtime) -> OnnxRuntime {
    OnnxRuntime {
        library: runtime.library().to_path_buf(),
        version: runtime.version().map(str::to_owned),
        has_cuda: runtime.has_cuda(),
        provider: runtime.provider(),
        without_cuda: runtime.without_cuda().map(str::to_owned),
        threads: runtime.threads(),
    }
}

fn of_candle(args: &Args, chosen: &candle_core::Device) -> Candle {
    let tried = chosen.is_cpu() && args.runtime.device == Device::Auto;
    Candle {
        built_for_cuda: device::CUDA_BUILT,
        device: if chosen.is_cpu() { "cpu" } else { "cuda" },
        without_cuda: tried.then(|| device::cuda().err().map(|e| e.to_string())).flatten(),
    }
}

fn lines(onnxruntime: &OnnxRuntime, candle: &Candle) -> Vec<String> {
    let yes = |is: bool| if is { "with" } else { "without" };
    let mut lines = vec![
        format!(
            "ONNX Runtime {} {} ({} CUDA), on {}, {} threads",
            onnxruntime.version.as_deref().unwrap_or("of an unknown version"),
            onnxruntime.library.display(),
            yes(onnxruntime.has_cuda),
            onnxruntime.provider,
            onnxruntime.threads
        ),
        format!("candle (built {} CUDA), on {}", yes(candle.built_for_cuda), candle.device),
    ];
    lines.extend(onnxruntime.without_cuda.iter().map(|why| format!("  ONNX Runtime does not use CUDA: {why}")));
    lines.extend(candle.without_cuda.iter().map(|why| format!("  candle does not use CUDA: {why}")));
    lines
}
