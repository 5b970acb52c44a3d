//! `weightsmith bench`: measurements, as ratios where another program does the same.

mod all;
mod child;
mod figures;
mod files;
mod load;
mod peer;
mod python;
mod registry;
mod scale;
mod serving;
mod training;
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
    /// Compare training steps of the denoisers with PyTorch's, in turns.
    Training(training::Args),
    /// Measure everything beside PyTorch and ONNX Runtime, in one run.
    All(Box<all::Args>),
}

/// Runs a benchmark.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Registry(args) => registry::run(args),
        Command::Serving(args) => serving::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Zoo(args) => zoo::run(&args),
        Command::Training(args) => training::run(&args),
        Command::All(args) => all::run(&args),
    }
}
