//! `weightsmith`: weights for a dataset, from the command line.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod context;
mod demo;
mod error;
mod evaluate;
mod generate;
mod generator;
mod publish;
mod serve;
mod train;
mod zoo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::context::say;
use crate::error::Result;

/// Generates neural-network weights for a dataset: trains generators on zoos of models and serves them over HTTP.
#[derive(Debug, Parser)]
#[command(name = "weightsmith", version, max_term_width = 110)]
struct Cli {
    /// What to log, as in `info` or `weightsmith=debug,sqlx=warn`.
    #[arg(long, global = true, env = "WEIGHTSMITH_LOG", default_value = "warn")]
    log: String,
    /// Log as JSON lines.
    #[arg(long, global = true, env = "WEIGHTSMITH_LOG_JSON")]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API over HTTP.
    Serve(serve::Args),
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
    /// List, export and import generators.
    #[command(subcommand)]
    Generator(generator::Command),
    /// Print the OpenAPI document.
    Openapi,
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Zoo(command) => zoo::run(command),
        Command::Train(args) => train::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Generator(command) => generator::run(command),
        Command::Openapi => {
            say(api::openapi_json().trim_end());
            Ok(())
        }
    }
}

fn init_log(cli: &Cli) -> Result<()> {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_new(&cli.log)
        .map_err(|e| error::Error::input("log_filter_invalid", format!("--log {}: {e}", cli.log)))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if cli.log_json {
        builder.json().init();
    } else {
        builder.init();
    }
    Ok(())
}

fn main() -> ExitCode {
    training::threads::configure();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no errors.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            let lines: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|l| !l.starts_with("Usage") && !l.starts_with("For more"))
                .collect();
            let line = lines.join(" ");
            context::complain(&format!(
                "weightsmith: {}; see --help [usage]",
                line.trim_start_matches("error: ").trim()
            ));
            return ExitCode::from(2);
        }
    };
    let result = init_log(&cli).and_then(|()| run(cli.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            context::complain(&format!("weightsmith: {error} [{}]", error.code()));
            ExitCode::from(error.exit_code())
        }
    }
}
