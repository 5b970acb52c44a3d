//! `weightsmith bench`: measurements, as ratios where another program does the same.

mod child;
mod files;
mod load;
mod peer;
mod registry;
mod training;

use clap::Subcommand;

use crate::error::Result;

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure lists, search, lineage, nearest, uploads and downloads on a registry of made-up rows.
    Registry(registry::Args),
    /// Compare training steps of the denoisers with PyTorch's, in turns.
    Training(training::Args),
}

/// Runs a benchmark.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Registry(args) => registry::run(args),
        Command::Training(args) => training::command(args),
    }
}
