//! `weightsmith architecture`: layouts that checkpoints from outside have to have.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use registry::{ListRequest, MAX_LIMIT, NewAbout, Registry, architectures as rows};
use weights::checkpoint::{Checkpoint, Limits, Options, TensorLayout};

use crate::context::{RegistryArgs, caller, say, with_registry, writing};
use crate::error::{Error, Result};

/// Commands on architectures.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register the layout of a checkpoint, or one written down as JSON; the same name and layout again changes nothing.
    #[command(
        after_help = "Example:\n  weightsmith architecture import resnet20.th --name resnet20 --key state_dict --strip-prefix module."
    )]
    Import(Box<Import>),
    /// List the architectures of the registry.
    #[command(after_help = "Example:\n  weightsmith architecture list")]
    List {
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

/// What to register.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// A checkpoint (safetensors or PyTorch), or a .json file: `{"params": [{"name", "shape", "dtype"}]}`.
    file: PathBuf,
    /// Name to register it under.
    #[arg(long)]
    name: String,
    /// Where the tensors are in a PyTorch file, as in `model.state_dict`.
    #[arg(long)]
    key: Option<String>,
    /// What to take off the beginning of the tensors' names, as in `module.`.
    #[arg(long)]
    strip_prefix: Option<String>,
    /// What it is.
    #[arg(long, default_value = "")]
    description: String,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Import(args) => import(&args),
        Command::List { registry } => with_registry(&registry, list),
    }
}

fn import(args: &Import) -> Result<()> {
    registry::check_name(&args.name)?;
    let about = NewAbout { description: args.description.clone(), ..NewAbout::default() };
    let new = api::imports::architecture(&args.name, &layout(args)?, about)?;
    let row = with_registry(&args.registry, async |registry| {
        writing(registry, async |write| Ok(rows::ensure(write, &new).await?)).await
    })?;
    let tensors = row.layout["params"].as_array().map_or(0, Vec::len);
    say(&format!("{} has {tensors} tensors, {} values", row.name, row.parameters));
    Ok(())
}

/// The layout of a file, whose values are not read.
fn layout(args: &Import) -> Result<TensorLayout> {
    let path: &Path = &args.file;
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
        return serde_json::from_reader(file).map_err(|e| {
            let text = format!("{}: {e}; use {{\"params\": [{{\"name\", \"shape\", \"dtype\"}}]}}", path.display());
            Error::input("layout_invalid", text)
        });
    }
    let options = Options { key: args.key.clone(), strip_prefix: args.strip_prefix.clone() };
    Ok(Checkpoint::open(file, &options, &Limits::default())?.layout())
}

async fn list(registry: &Registry) -> Result<()> {
    let mut page = ListRequest { limit: MAX_LIMIT, ..ListRequest::default() };
    say(&format!("{:<24} {:>12}  description", "name", "values"));
    loop {
        let found = rows::list(registry, &caller(), &page).await?;
        for row in found.items {
            say(&format!("{:<24} {:>12}  {}", row.name, row.parameters, row.about.description));
        }
        match found.next_cursor {
            Some(cursor) => page.cursor = Some(cursor),
            None => return Ok(()),
        }
    }
}
