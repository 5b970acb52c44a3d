//! `weightsmith bench training`: a training step of each denoiser beside the same network's in PyTorch, in turns, with
//! the same weights on the same batch.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use training::speed::{NETWORKS, Trial};

use super::figures::{Figures, median};
use super::peer::{Peer, number};
use super::python::PythonArgs;
use crate::context::say;
use crate::error::{Error, Result};

/// The networks in PyTorch, and their step.
const SCRIPT: &str = concat!(include_str!("peers/networks.py"), "\n\n", include_str!("peers/train.py"));
/// How far both losses may be apart, as a share, before any step and after all.
const SAME: (f64, f64) = (1e-4, 1e-2);
/// Seconds that a turn should take: longer than a clock's and a scheduler's whims.
const TURN: f64 = 1.0;

/// Compare training steps with PyTorch's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith bench training --python .venv/bin/python --json training.json")]
pub struct Args {
    #[command(flatten)]
    python: PythonArgs,
    /// Turns of each program.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..1000))]
    pairs: u16,
    /// File for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How a step of one network compares.
#[derive(Debug)]
struct Ratio {
    /// Its parameters.
    parameters: usize,
    /// Our step's time over PyTorch's: median of the pairs.
    over_torch: f64,
    /// Of each pair.
    pairs: Vec<f64>,
    /// Our median step in milliseconds.
    ours_ms: f64,
    /// PyTorch's.
    torch_ms: f64,
    /// Both losses of the last step.
    last_loss: [f64; 2],
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut figures = Figures::default();
    measure(&args.python.open()?, usize::from(args.pairs), &mut figures)?;
    args.json.as_ref().map_or(Ok(()), |path| figures.write(path))
}

/// Measures a step of every network.
///
/// # Errors
/// As [`compare`].
pub fn measure(python: &Path, pairs: usize, figures: &mut Figures) -> Result<()> {
    say("training: a step of each denoiser, ours over PyTorch's with the same weights on the same batch");
    for network in NETWORKS {
        let ratio = compare(python, network, pairs.max(1))?;
        let key = |what: &str| format!("training.{network}_{what}");
        figures.put(&key("over_torch"), ratio.over_torch, "our step's time over PyTorch's");
        figures.put(&key("parameters"), ratio.parameters as f64, "parameters");
        figures.put(&key("ours_ms"), ratio.ours_ms, "milliseconds, in this run only");
        figures.put(&key("torch_ms"), ratio.torch_ms, "milliseconds, in this run only");
        figures.note(&key("pairs"), json!(ratio.pairs));
        figures.note(&key("last_losses"), json!(ratio.last_loss));
    }
    Ok(())
}

/// Steps of a network, ours and PyTorch's in turns, `pairs` times.
///
/// # Errors
/// When the peer fails, or is another network: its loss is not ours.
fn compare(python: &Path, network: &'static str, pairs: usize) -> Result<Ratio> {
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let mut trial = Trial::new(network, 1)?.ok_or_else(|| Error::Internal(format!("no trial of {network}")))?;
    trial.save(folder.path())?;
    let place = folder.path().to_string_lossy().into_owned();
    let mut peer = Peer::start(python, SCRIPT, &[network, &place])?;
    let theirs = number(&peer.ready, "loss")?;
    // Memory is had and caches are filled after one step of each.
    let first_loss = [f64::from(trial.step()?), theirs];
    same(network, first_loss, SAME.0)?;
    number(&peer.ask(1)?, "seconds")?;
    let once = number(&peer.ask(1)?, "seconds")?;
    trial.step()?;
    let steps = ((TURN / once.max(1e-6)).ceil() as usize).clamp(1, 1000);
    let (mut ours, mut torch, mut last_loss) = (Vec::new(), Vec::new(), first_loss);
    for pair in 0..pairs {
        // Who comes first alternates as well.
        for turn in [pair % 2, 1 - pair % 2] {
            if turn == 0 {
                let began = Instant::now();
                for _ in 0..steps {
                    last_loss[0] = f64::from(trial.step()?);
                }
                ours.push(began.elapsed().as_secs_f64() / steps as f64);
            } else {
                let answer = peer.ask(steps)?;
                torch.push(number(&answer, "seconds")? / steps as f64);
                last_loss[1] = number(&answer, "loss")?;
            }
        }
    }
    same(network, last_loss, SAME.1)?;
    let pairs: Vec<f64> = ours.iter().zip(&torch).map(|(ours, torch)| ours / torch).collect();
    Ok(Ratio {
        parameters: trial.parameters(),
        over_torch: median(pairs.clone()),
        pairs,
        ours_ms: median(ours) * 1e3,
        torch_ms: median(torch) * 1e3,
        last_loss,
    })
}

fn same(network: &str, [ours, theirs]: [f64; 2], share: f64) -> Result<()> {
    if (ours - theirs).abs() <= share * ours.abs().max(theirs.abs()) {
        return Ok(());
    }
    Err(Error::Internal(format!("the {network} of PyTorch is another network: its loss is {theirs}, ours {ours}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_losses_are_another_network() {
        assert!(same("mlp", [1.0, 1.00005], SAME.0).is_ok());
        assert!(same("mlp", [1.0, 1.001], SAME.0).unwrap_err().to_string().contains("another network"));
        assert!(same("mlp", [1.0, f64::NAN], SAME.0).is_err());
    }
}
