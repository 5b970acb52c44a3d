//! `weightsmith bench`: measurements, as ratios where another program does the same.

mod child;
mod figures;
mod files;
mod load;
mod peer;
mod python;
mod registry;
mod scale;
mod serving;
mod zoo;

use clap::Subcommand;

use crate::error::Result;

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure lists, search, lineage, nearest, uploads and downloads on a registry of made-up rows.
    Registry(registry::Args),
    /// Measure sampling beside ONNX Runtime and PyTorch, and a server under many clients.
    Serving(Box<serving::Args>),
    /// Measure what things cost as they grow: parameters, zoos, generators that are loaded, clients.
    Scale(Box<scale::Args>),
    /// Measure how fast a zoo of tiny CNNs is trained, beside PyTorch.
    Zoo(zoo::Args),
}

/// Runs a benchmark.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Registry(args) => registry::run(args),
        Command::Serving(args) => serving::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Zoo(args) => zoo::run(&args),
    }
}
