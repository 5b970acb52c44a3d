//! `weightsmith report`: experiments from committed configurations, with every baseline, as Markdown, SVG and JSON.

mod adapters;
mod cache;
mod config;
mod experiment;
mod language;
mod markdown;
mod near;
mod overrides;
mod own;
pub mod plot;
mod result;
mod scale;
mod unseen;
mod weights_figure;

use std::path::PathBuf;

use crate::context::{RuntimeArgs, prepare, progress, say, write_whole};
use crate::error::{Error, Result};
use config::Experiment;
use experiment::Place;
use own::Own;

/// Run an experiment and write its page, its plots and its numbers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weightsmith report list\n  weightsmith report digits --out out/report\n  \
                  weightsmith report table-19-20 --data /data/idx --out out/report\n  \
                  weightsmith report all --data /data/idx --out out/report --quick")]
pub struct Args {
    /// Name of an experiment; `list` shows them, `all` runs those whose data is there.
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    experiment: Option<String>,
    /// An experiment of one's own.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the IDX sets (mnist, fashion-mnist, …).
    #[arg(long, env = "WEIGHTSMITH_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the results; zoos and generators are kept in its `cache`, and used again.
    #[arg(long, default_value = "out/report")]
    out: PathBuf,
    /// Directory of a text encoder, for table-5.
    #[arg(long, env = "WEIGHTSMITH_TEXT_ENCODER", value_name = "DIR")]
    text_encoder: Option<PathBuf>,
    /// A small run that shows that everything works.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let own = args.experiment.as_deref().and_then(Own::find);
    let experiments = match (args.experiment.as_deref(), &args.config) {
        (Some("list"), _) => return list(&args),
        _ if own.is_some() => Vec::new(),
        (Some("all"), _) => there(&args)?,
        (Some(name), _) => vec![config::built_in(name, args.quick)?],
        (None, Some(file)) => vec![config::of_file(file, args.quick)?],
        (None, None) => return Err(Error::input("usage", "name an experiment, or give a file with --config")),
    };
    // Said before anything is made.
    for experiment in &experiments {
        if let Some(text) = experiment::missing_data(experiment, args.data.as_deref()) {
            return Err(Error::input("data_missing", text));
        }
    }
    let everything = args.experiment.as_deref() == Some("all");
    let mut others: Vec<&Own> = own.into_iter().collect();
    if everything {
        others.extend(own::ALL.iter().filter(|own| own.of_all));
    }
    let data = args.data.as_deref();
    if let Some(text) = own.and_then(|own| own.missing(data)) {
        return Err(Error::input("data_missing", text));
    }
    others.retain(|own| match own.missing(data) {
        Some(text) => {
            say(&format!("passed over: {text}"));
            false
        }
        None => true,
    });
    args.runtime.train_there()?;
    let runtime = args.runtime.open()?;
    let progress = progress()?;
    let place = Place {
        data: args.data.as_deref(),
        text_encoder: args.text_encoder.as_deref(),
        out: &args.out,
        runtime: &runtime,
        progress: &progress,
    };
    for experiment in &experiments {
        one(experiment, &place, args.config.as_ref()).map_err(diverged)?;
    }
    for own in &others {
        own.run(&place, args.quick).map_err(diverged)?;
    }
    if everything {
        let named = experiments.iter().map(|e| (e.title.as_str(), e.name.as_str()));
        join(&named.chain(others.iter().map(|own| (own.title, own.name))).collect::<Vec<_>>(), &args.out)?;
    }
    Ok(())
}

/// A loss that is not finite is the experiment's mistake.
fn diverged(error: Error) -> Error {
    match error {
        Error::Training(e @ (training::Error::Diverged { .. } | training::Error::Collapsed { .. })) => {
            Error::input(e.code(), e.to_string())
        }
        other => other,
    }
}

fn one(experiment: &Experiment, place: &Place<'_>, file: Option<&PathBuf>) -> Result<()> {
    let target = |ending: &str| place.out.join(format!("{}.{ending}", experiment.name));
    let outcome = experiment::run(experiment, place)?;
    let command = outcome.command(file.map(|f| f.display().to_string()).as_deref());
    let page = markdown::page(&outcome, &command);
    let mut json = serde_json::to_vec_pretty(&outcome.json(&command)?).map_err(|e| Error::Internal(e.to_string()))?;
    json.push(b'\n');
    let svg = plot::svg(&outcome)?;
    prepare(&target("md"))?;
    write_whole(&target("json"), &json)?;
    write_whole(&target("svg"), svg.as_bytes())?;
    if let Some(figure) = &outcome.weights {
        let path = place.out.join(format!("{}-weights.svg", experiment.name));
        write_whole(&path, figure.svg(&format!("{}: weights", experiment.title))?.as_bytes())?;
    }
    write_whole(&target("md"), page.as_bytes())?;
    say(&page);
    say(&format!("{} .svg .json", target("md").display()));
    Ok(())
}

fn list(args: &Args) -> Result<()> {
    for name in config::names() {
        let experiment = config::built_in(name, args.quick)?;
        say(&format!("{name:<14} {}", experiment.title));
        if let Some(text) = experiment::missing_data(&experiment, args.data.as_deref()) {
            say(&format!("{:<14} {text}", ""));
        }
    }
    for own in &own::ALL {
        say(&format!("{:<14} {}", own.name, own.title));
        if let Some(text) = own.missing(args.data.as_deref()) {
            say(&format!("{:<14} {text}", ""));
        }
    }
    Ok(())
}

/// The experiments whose data is there.
fn there(args: &Args) -> Result<Vec<Experiment>> {
    let mut found = Vec::new();
    for name in config::names() {
        let experiment = config::built_in(name, args.quick)?;
        match experiment::missing_data(&experiment, args.data.as_deref()) {
            None => found.push(experiment),
            Some(text) => say(&format!("passed over: {text}")),
        }
    }
    Ok(found)
}

/// One page of all.
fn join(experiments: &[(&str, &str)], out: &std::path::Path) -> Result<()> {
    let mut all = String::from("# Results\n\n");
    for (title, name) in experiments {
        all.push_str(&format!("- [{title}]({name}.md)\n"));
    }
    for (_, name) in experiments {
        let path = out.join(format!("{name}.md"));
        let page = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        // Each page's headings, one level down.
        for line in page.lines() {
            all.push_str(if line.starts_with('#') { "\n#" } else { "\n" });
            all.push_str(line);
        }
        all.push('\n');
    }
    write_whole(&out.join("RESULTS.md"), all.as_bytes())
}
