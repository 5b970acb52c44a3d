//! `weightsmith`: weights for a dataset, from the command line.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod architecture;
mod auth;
mod backup;
mod bench;
mod compare;
mod config;
mod context;
mod dataset;
mod db;
mod demo;
mod doctor;
mod error;
mod evaluate;
mod extractor;
mod gc;
mod generate;
mod generator;
mod import;
mod language;
mod parity;
mod publish;
mod report;
mod serve;
mod token;
mod train;
mod worker;
mod zoo;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::context::say;
use crate::error::Result;

/// Generates neural-network weights for a dataset: trains generators on zoos of models and serves them over HTTP.
#[derive(Debug, Parser)]
#[command(name = "weightsmith", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    log: config::LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API over HTTP.
    Serve(serve::Args),
    /// Work on jobs.
    Worker(worker::Args),
    /// Build a zoo of models.
    #[command(subcommand)]
    Zoo(zoo::Command),
    /// Train a generator on a zoo.
    Train(train::Args),
    /// Generate weights for labelled data.
    Generate(generate::Args),
    /// Evaluate weights files on labelled data.
    Evaluate(evaluate::Args),
    /// Train a zoo and a generator, serve them, ask for weights over HTTP, and compare them with baselines.
    Demo(demo::Args),
    /// Run an experiment and write its page, its plots and its numbers.
    Report(report::Args),
    /// List, export and import generators.
    #[command(subcommand)]
    Generator(generator::Command),
    /// Import and list architectures.
    #[command(subcommand)]
    Architecture(architecture::Command),
    /// Import, list and show datasets.
    #[command(subcommand)]
    Dataset(dataset::Command),
    /// Import and list feature extractors.
    #[command(subcommand)]
    Extractor(extractor::Command),
    /// Compare the spectra of a language model's layers with that of noise.
    Spectrum(language::spectrum::Args),
    /// Learn, generate, search and mix layers of language models.
    #[command(subcommand)]
    Language(language::Command),
    /// Look at this machine, compare graphs and training with the CPU's, and measure: what to run first on a GPU.
    Doctor(doctor::Args),
    /// Measure against other programs.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Remove artifacts that nothing refers to.
    Gc(gc::GcArgs),
    /// Compare every artifact with its row, and the reverse.
    Fsck(gc::FsckArgs),
    /// Write the database and all artifacts to a folder.
    Backup(backup::BackupArgs),
    /// Put a backup into an empty registry.
    Restore(backup::RestoreArgs),
    /// Look at the database's schema, or bring it up to date.
    #[command(subcommand)]
    Db(db::Command),
    /// Make, list and revoke tokens of the API.
    #[command(subcommand)]
    Token(token::Command),
    /// Print the OpenAPI document.
    Openapi,
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Zoo(command) => zoo::run(command),
        Command::Train(args) => train::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Report(args) => report::run(args),
        Command::Generator(command) => generator::run(command),
        Command::Architecture(command) => architecture::run(command),
        Command::Dataset(command) => dataset::run(command),
        Command::Extractor(command) => extractor::run(command),
        Command::Spectrum(args) => language::spectrum::run(&args),
        Command::Language(command) => language::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(command) => bench::run(command),
        Command::Gc(args) => gc::run_gc(args),
        Command::Fsck(args) => gc::run_fsck(args),
        Command::Backup(args) => backup::run_backup(args),
        Command::Restore(args) => backup::run_restore(args),
        Command::Db(command) => db::run(command),
        Command::Token(command) => token::run(command),
        Command::Openapi => {
            say(api::openapi_json().trim_end());
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    training::threads::configure();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => {
            context::complain(&format!("weightsmith: {line}; see --help [usage]"));
            ExitCode::from(2)
        }
        Err(Failure::Command(error)) => {
            context::complain(&format!("weightsmith: {error} [{}]", error.code()));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Why the program ends badly.
enum Failure {
    /// The command line cannot be read.
    Usage(String),
    /// The command failed.
    Command(error::Error),
}

impl From<error::Error> for Failure {
    fn from(error: error::Error) -> Self {
        Self::Command(error)
    }
}

fn start() -> std::result::Result<(), Failure> {
    let mut command = Cli::command();
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    let matches = parsed.map_err(|error| usage(&error))?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| usage(&error))?;
    config::check_environment(&command)?;
    if let (Command::Serve(args), Some(serve), Some((_, matches))) =
        (&cli.command, command.find_subcommand("serve"), matches.subcommand())
        && args.print_config
    {
        say(config::print(serve, matches).trim_end());
        return Ok(());
    }
    let _observed = cli.log.init()?;
    Ok(run(cli.command)?)
}

/// What is wrong with the command line, in one line. Help and version are no errors, and end the program here.
fn usage(error: &clap::Error) -> Failure {
    if !error.use_stderr() {
        error.exit();
    }
    let text = error.to_string();
    let lines: Vec<&str> =
        text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage") && !l.starts_with("For more")).collect();
    Failure::Usage(lines.join(" ").trim_start_matches("error: ").trim().to_owned())
}
