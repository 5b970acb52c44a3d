//! `weightsmith db`: the database's schema.

use registry::{SchemaStatus, migrate_schema, schema_status};

use crate::context::{RegistryArgs, say, tokio_runtime};
use crate::error::{Error, Result};

/// Look at the database's schema, or bring it up to date.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Bring the schema up to date; servers do it themselves at their start, unless told not to.
    #[command(after_help = "Example:\n  weightsmith db migrate --database-url postgres://weightsmith@db/weightsmith")]
    Migrate(Args),
    /// Say which migrations the database has and lacks; exit code 3 when it lacks some.
    #[command(after_help = "Example:\n  weightsmith db status --json")]
    Status(Args),
}

/// Which database, and how to answer.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Answer as JSON.
    #[arg(long, help_heading = "Other")]
    json: bool,
}

/// Runs the command.
pub fn run(command: Command) -> Result<()> {
    let (args, migrates) = match &command {
        Command::Migrate(args) => (args, true),
        Command::Status(args) => (args, false),
    };
    tokio_runtime()?.block_on(async {
        let database = args.registry.server()?;
        let status = match migrates {
            true => migrate_schema(&database.url).await,
            false => schema_status(&database.url).await,
        };
        database.stop();
        let status = status?;
        say(&told(&status, migrates, args.json)?);
        if migrates { Ok(()) } else { Ok(status.require_current()?) }
    })
}

fn told(status: &SchemaStatus, migrated: bool, json: bool) -> Result<String> {
    if json {
        return serde_json::to_string_pretty(status).map_err(|e| Error::Internal(e.to_string()));
    }
    let found = status.found.map_or_else(|| "no schema".to_owned(), |version| format!("schema version {version}"));
    let steps: Vec<String> = status.pending.iter().map(|step| format!("{:04} {}", step.version, step.name)).collect();
    Ok(match (migrated, steps.is_empty()) {
        (_, true) => format!("{found}, up to date"),
        (true, false) => format!("from {found} to version {}: {}", status.known, steps.join(", ")),
        (false, false) => format!("{found}; missing: {}", steps.join(", ")),
    })
}
