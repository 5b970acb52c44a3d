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
    training::measure(&python, &mut figures)?;
    zoo::measure(&python, &mut figures)?;
    args.json.as_ref().map_or(Ok(()), |path| figures.write(path))
}
