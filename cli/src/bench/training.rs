//! `weightsmith bench training`: a training step of each denoiser beside the same network's in PyTorch, in turns, with
//! the same weights on the same batch.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value, json};
use training::speed::{NETWORKS, Trial};

use super::peer::{Peer, median, number, python};
use crate::context::{say, write_whole};
use crate::error::{Error, Result};

/// The peer's program.
const PEER: (&str, &str) = ("train.py", include_str!("peers/train.py"));
/// How far both losses may be apart, as a share, before any step and after all.
const SAME: (f64, f64) = (1e-4, 1e-2);
/// Seconds that a turn should take: longer than a clock's and a scheduler's whims.
const TURN: f64 = 1.0;

/// Compare training steps with PyTorch's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith bench training --python .venv/bin/python --json training.json")]
pub struct Args {
    /// Python with torch and safetensors; else what the variable WEIGHTSMITH_BENCH_PYTHON names.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Turns of each program.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..1000))]
    pairs: u16,
    /// File for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How a step of one network compares.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    /// Which network.
    pub network: &'static str,
    /// Its parameters.
    pub parameters: usize,
    /// Our step's time over PyTorch's: median of the pairs.
    pub over_torch: f64,
    /// Of each pair.
    pub pairs: Vec<f64>,
    /// Our median step in milliseconds.
    pub ours_ms: f64,
    /// PyTorch's.
    pub torch_ms: f64,
    /// Both losses before any step.
    pub first_loss: [f64; 2],
    /// Both losses of the last step.
    pub last_loss: [f64; 2],
}

/// Runs the command.
pub fn command(args: Args) -> Result<()> {
    let ratios = run(&python(args.python)?, usize::from(args.pairs))?;
    for r in &ratios {
        say(&format!(
            "{:<12} {:>9} parameters  {:>7.1} ms  PyTorch {:>7.1} ms  ratio {:.2}",
            r.network, r.parameters, r.ours_ms, r.torch_ms, r.over_torch
        ));
    }
    if let Some(path) = &args.json {
        let text = json!({"keys": keys(&ratios), "networks": ratios});
        let text = serde_json::to_vec_pretty(&text).map_err(|e| Error::Internal(e.to_string()))?;
        write_whole(path, &text)?;
    }
    Ok(())
}

/// The figures by name, `training.unet_over_torch` and so on.
pub fn keys(ratios: &[Ratio]) -> Map<String, Value> {
    ratios.iter().map(|r| (format!("training.{}_over_torch", r.network), json!(r.over_torch))).collect()
}

/// Steps of every network, ours and PyTorch's in turns, `pairs` times.
///
/// # Errors
/// When the peer fails, or is another network: its loss is not ours.
pub fn run(python: &Path, pairs: usize) -> Result<Vec<Ratio>> {
    NETWORKS.into_iter().map(|network| compare(python, network, pairs.max(1))).collect()
}

fn compare(python: &Path, network: &'static str, pairs: usize) -> Result<Ratio> {
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let mut trial = Trial::new(network, 1)?.ok_or_else(|| Error::Internal(format!("no trial of {network}")))?;
    trial.save(folder.path())?;
    let place = folder.path().to_string_lossy().into_owned();
    let mut peer = Peer::start(python, folder.path(), PEER, &[network, &place])?;
    let theirs = number(&peer.read()?, "loss")?;
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
        network,
        parameters: trial.parameters(),
        over_torch: median(&pairs),
        pairs,
        ours_ms: median(&ours) * 1e3,
        torch_ms: median(&torch) * 1e3,
        first_loss,
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

    #[test]
    fn keys_are_flat() {
        let ratio = Ratio {
            network: "unet",
            parameters: 1,
            over_torch: 0.5,
            pairs: vec![0.5],
            ours_ms: 1.0,
            torch_ms: 2.0,
            first_loss: [1.0; 2],
            last_loss: [1.0; 2],
        };
        assert_eq!(keys(&[ratio])["training.unet_over_torch"], 0.5);
    }
}
