//! `weightsmith gc` and `weightsmith fsck`.

use registry::fsck::{self, FsckReport};
use registry::garbage::{self, GarbageOptions, GarbageReport, Tally};

use crate::config::Span;
use crate::context::{RegistryArgs, caller, say, with_registry};
use crate::error::{Error, Result};

/// Remove artifacts that nothing refers to, files without a row, and what uploads that were cut off left.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith gc --dry-run --data-dir .weightsmith/demo")]
pub struct GcArgs {
    /// Report what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Keep what was uploaded or written within this time; longer than any upload takes.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    grace: Span,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Compare every artifact with its row and every row with its artifact; exit code 1 when something is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith fsck --deep --data-dir .weightsmith/demo")]
pub struct FsckArgs {
    /// Read every byte and compare it with its digest.
    #[arg(long)]
    deep: bool,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs `gc`.
pub fn run_gc(args: GcArgs) -> Result<()> {
    let options = GarbageOptions { grace: args.grace.0, dry_run: args.dry_run };
    let report =
        with_registry(&args.registry, async |registry| Ok(garbage::collect(registry, &caller(), options).await?))?;
    say(&if args.json { json(&report)? } else { gc_text(&report, args.grace) });
    Ok(())
}

/// Runs `fsck`.
pub fn run_fsck(args: FsckArgs) -> Result<()> {
    let report = with_registry(&args.registry, async |registry| Ok(fsck::check(registry, args.deep).await?))?;
    say(&if args.json { json(&report)? } else { fsck_text(&report) });
    if report.is_clean() { Ok(()) } else { Err(Error::Damaged(report.problem_count)) }
}

/// A report as JSON.
pub fn json(report: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(report).map_err(|e| Error::Internal(e.to_string()))
}

fn gc_text(report: &GarbageReport, grace: Span) -> String {
    let verb = if report.dry_run { "would remove" } else { "removed" };
    let line = |tally: Tally, what: &str| format!("{verb} {} {what} ({} bytes)", tally.count, tally.bytes);
    let mut lines = vec![
        line(report.artifacts, "artifacts that nothing refers to"),
        line(report.orphans, "files without a row"),
        line(report.incoming, "files of uploads that were cut off"),
        format!("{verb} {} uploads in parts that were cut off", report.uploads),
    ];
    if report.busy > 0 {
        lines.push(format!("left {} that uploads under way may use: run it again", report.busy));
    }
    lines.push(format!("{} bytes in all; what is younger than {grace} stays", report.bytes()));
    lines.join("\n")
}

fn fsck_text(report: &FsckReport) -> String {
    let problem = |p: &fsck::Problem| format!("{}: {} ({})", p.code, p.what, p.detail);
    let mut lines: Vec<String> = report.problems.iter().map(problem).collect();
    let more = report.problem_count - report.problems.len() as u64;
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    let how = if report.deep { "content and size" } else { "size" };
    lines.push(format!(
        "{} artifacts ({} bytes) compared by {how} with {} files; {} files of uploads under way or cut off; {} problems",
        report.artifacts, report.bytes, report.files, report.incoming, report.problem_count
    ));
    lines.join("\n")
}
