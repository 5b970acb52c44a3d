//! `weightsmith language`: layers of language models learned, generated, searched and mixed.

pub mod adapters;
mod commands;
mod evaluators;
pub mod spectrum;

use std::path::{Path, PathBuf};

use ::language::lm::Family;
use clap::{Subcommand, ValueEnum};

use crate::error::{Error, Result};

/// Commands on language models: directories with config.json, safetensors and tokenizer.json.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a small model on lines of text, to have one where there is nothing to download.
    #[command(
        after_help = "Example:\n  weightsmith language train --text corpus.txt --family llama --out ./tiny-llama"
    )]
    Train(Train),
    /// Score a model on text or questions.
    #[command(after_help = "Example:\n  weightsmith language evaluate ./tiny-llama --text held-out.txt")]
    Evaluate(Evaluate),
    /// Learn the matrices of the highest SNR as chunks, in one generator file.
    #[command(after_help = "Example:\n  weightsmith language learn ./tiny-llama --out layers.safetensors")]
    Learn(Learn),
    /// Write the model with generated matrices to a new directory, chunk by chunk.
    #[command(
        after_help = "Example:\n  weightsmith language generate ./tiny-llama --generator layers.safetensors --out ./generated"
    )]
    Generate(Generate),
    /// Go through the matrices, and keep the generated ones that do not lower the score (Algorithm 1).
    #[command(
        after_help = "Example:\n  weightsmith language search ./tiny-llama --generator layers.safetensors \\\n    \
                            --text validation.txt --out ./improved"
    )]
    Search(Search),
    /// Train LoRA adapters for described tasks, and a generator of adapters from a description.
    #[command(after_help = "Example:\n  weightsmith language adapters --encoder ./MiniLM --out phrases.tar --register")]
    Adapters(adapters::Args),
    /// Write the weighted mean of several models.
    #[command(after_help = "Example:\n  weightsmith language soup ./a=2 ./b=1 --out ./mixed")]
    Soup(Soup),
}

/// A family of small models.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Kind {
    /// Llama.
    Llama,
    /// Phi-3.
    Phi3,
    /// GPT-2.
    Gpt2,
}

impl From<Kind> for Family {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Llama => Self::Llama,
            Kind::Phi3 => Self::Phi3,
            Kind::Gpt2 => Self::Gpt2,
        }
    }
}

/// What to train, and on what.
#[derive(Debug, clap::Args)]
pub struct Train {
    /// Files of text, a text a line.
    #[arg(long, required = true)]
    text: Vec<PathBuf>,
    /// Family.
    #[arg(long, value_enum, default_value = "llama")]
    family: Kind,
    /// Tokens of the tokenizer that is learned, at most.
    #[arg(long, default_value_t = 1024)]
    vocabulary: usize,
    /// Width.
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Blocks.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Heads.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Tokens of a window.
    #[arg(long, default_value_t = 64)]
    length: usize,
    /// Steps.
    #[arg(long, default_value_t = 1500)]
    steps: usize,
    /// Windows of a step.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The directory to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
}

/// What a model is scored by.
#[derive(Debug, clap::Args)]
pub struct Score {
    /// Files of text, a text a line: the score is the mean log-likelihood of a token.
    #[arg(long, group = "score")]
    text: Vec<PathBuf>,
    /// A file of questions, a line each: `{"context", "choices", "answer"}`; the score is the share of right answers.
    #[arg(long, group = "score")]
    questions: Option<PathBuf>,
    /// A program that is given a model's directory and ends its output with a score, of which more is better.
    #[arg(long, group = "score", num_args = 1.., allow_hyphen_values = true)]
    command: Vec<String>,
    /// An address that is sent `{"model": DIRECTORY}` and answers `{"score": NUMBER}`.
    #[arg(long, group = "score")]
    url: Option<String>,
    /// Tokens of a window, with --text.
    #[arg(long, default_value_t = 64)]
    length: usize,
    /// Seconds that a program or an address may take.
    #[arg(long, default_value_t = 600.0)]
    limit: f64,
}

/// What to score.
#[derive(Debug, clap::Args)]
pub struct Evaluate {
    /// The model's directory.
    model: PathBuf,
    #[command(flatten)]
    score: Score,
}

/// What to learn.
#[derive(Debug, clap::Args)]
pub struct Learn {
    /// The model's directory.
    model: PathBuf,
    /// The share of each group's matrices that is learned, those of the highest SNR.
    #[arg(long, default_value_t = 0.25)]
    top: f64,
    /// Matrices to learn, in place of those; may be given several times.
    #[arg(long, conflicts_with = "top")]
    matrix: Vec<String>,
    /// A file of settings (TOML), as those of `layers` in docs/LANGUAGE.md.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The generator's file to write.
    #[arg(long)]
    out: PathBuf,
}

/// What to generate.
#[derive(Debug, clap::Args)]
pub struct Generate {
    /// The model's directory: what is not generated comes from it.
    model: PathBuf,
    /// The generator's file.
    #[arg(long)]
    generator: PathBuf,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The directory to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
}

/// How to search.
#[derive(Debug, clap::Args)]
pub struct Search {
    /// The model's directory; it is not changed.
    model: PathBuf,
    /// The generator's file.
    #[arg(long)]
    generator: PathBuf,
    #[command(flatten)]
    score: Score,
    /// Candidates of each matrix (K).
    #[arg(long, default_value_t = 8)]
    candidates: usize,
    /// How far candidates go from the matrix that there is to the generated one, in turn; 1: all the way, as in the paper.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 0.5, 0.25, 0.125])]
    shares: Vec<f64>,
    /// Try random directions in place of the generator: the control.
    #[arg(long)]
    noise: bool,
    /// Further candidates in place of those whose evaluation failed.
    #[arg(long, default_value_t = 2)]
    retries: usize,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The search's course with every score, from which an interrupted one goes on; OUT.course.json unless given.
    #[arg(long)]
    course: Option<PathBuf>,
    /// The directory to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
}

/// What to mix.
#[derive(Debug, clap::Args)]
pub struct Soup {
    /// Models, each `DIRECTORY=WEIGHT` or `DIRECTORY`, which has the weight 1.
    #[arg(required = true, num_args = 2..)]
    models: Vec<String>,
    /// The directory to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
}

/// Runs a command.
///
/// # Errors
/// Those of [`language`], with `usage` for what is missing.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Train(args) => commands::train(args),
        Command::Evaluate(args) => commands::evaluate(args),
        Command::Learn(args) => commands::learn(args),
        Command::Generate(args) => commands::generate(args),
        Command::Search(args) => commands::search(args),
        Command::Soup(args) => commands::soup(args),
        Command::Adapters(args) => adapters::run(args),
    }
}

/// Lines of files of text; empty ones are passed over.
fn lines(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        all.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if all.is_empty() { Err(Error::input("text_empty", "the files of text have no line")) } else { Ok(all) }
}

/// Says before long work that a directory is there already.
fn absent(path: &Path) -> Result<()> {
    let text = || format!("{} exists already: name a directory that does not", path.display());
    if path.exists() { Err(Error::input("exists", text())) } else { Ok(()) }
}
