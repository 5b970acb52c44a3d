//! `weightsmith backup` and `weightsmith restore`.

use std::path::PathBuf;

use registry::backup::{self, Backup};

use crate::context::{RegistryArgs, say, tokio_runtime};
use crate::error::{Error, Result};
use crate::gc::json;

/// Write the database and all artifacts to a folder; the registry may be in use.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith backup /backups/monday --data-dir .weightsmith/demo")]
pub struct BackupArgs {
    /// The backup's folder: a new one.
    folder: PathBuf,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Put a backup into an empty registry, comparing every artifact with its digest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith restore /backups/monday --data-dir .weightsmith/new")]
pub struct RestoreArgs {
    /// The backup's folder.
    folder: PathBuf,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs `backup`.
pub fn run_backup(args: BackupArgs) -> Result<()> {
    let made = tokio_runtime()?.block_on(async {
        let open = args.registry.open().await?;
        let made = backup::make(&open.registry, open.url(), &args.registry.programs(), &args.folder).await;
        open.close().await;
        Ok::<_, Error>(made?)
    })?;
    tell("backed up", &made, args.json)
}

/// Runs `restore`.
pub fn run_restore(args: RestoreArgs) -> Result<()> {
    let RestoreArgs { folder, json, registry } = args;
    let restored = tokio_runtime()?.block_on(async {
        let server = registry.server_alone()?;
        let (place, options) = (registry.storage.place(&registry.data_dir), registry.storage.options());
        let restored = backup::restore(&folder, &registry.programs(), &server.url, &place, &options).await;
        server.stop();
        Ok::<_, Error>(restored?)
    })?;
    // Brings an older schema up to date, and shows that all can be opened.
    crate::context::with_registry(&registry, async |registry| Ok(registry.ping().await?))?;
    tell("restored", &restored, json)
}

fn tell(verb: &str, backup: &Backup, as_json: bool) -> Result<()> {
    let Backup { artifacts, artifact_bytes, database_bytes, schema_version, made_at, .. } = backup;
    say(&if as_json {
        json(backup)?
    } else {
        format!(
            "{verb} {artifacts} artifacts ({artifact_bytes} bytes) and the database of {made_at} (schema version \
             {schema_version}, dump of {database_bytes} bytes)"
        )
    });
    Ok(())
}
