//! `weightsmith bench all`: everything that is measured beside other programs, in one run.

use std::path::PathBuf;

use super::figures::Figures;
use super::python::PythonArgs;
use super::{serving, training, zoo};
use crate::context::{RegistryArgs, RuntimeArgs};
use crate::error::Result;

/// Measure everything beside PyTorch and ONNX Runtime.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith bench all --json bench.json")]
pub struct Args {
    #[command(flatten)]
    serving: serving::Options,
    /// Turns of each training step, ours and PyTorch's.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..1000))]
    pairs: u16,
    #[command(flatten)]
    python: PythonArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// File for the figures as JSON, with flat keys.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let (python, mut figures) = (args.python.open()?, Figures::default());
    serving::measure(&args.serving, &python, &args.registry, &args.runtime, &mut figures)?;
    training::measure(&python, args.pairs.into(), &mut figures)?;
    zoo::measure(&zoo::Options::default(), Some(&python), &mut figures)?;
    args.json.as_ref().map_or(Ok(()), |path| figures.write(path))
}
