//! Small language models trained from nothing, to have something to generate layers for where there is nothing to
//! download.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use training::optim::{self, AdamConfig, AdamW};
use training::progress::Progress;
use training::random;
use training::stages::shards::{self, SHARDS, Shard};

use super::config::{Config, Family};
use super::decoder::Decoder;
use super::tokens;
use crate::error::{Error, Result};

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Steps.
    pub steps: usize,
    /// Windows of a step.
    pub batch: usize,
    /// Tokens of a window.
    pub length: usize,
    /// Learning rate.
    pub lr: f64,
    /// Seed of the weights and of the windows.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self { steps: 1500, batch: 16, length: 64, lr: 2e-3, seed: 0 }
    }
}

/// Trains a model of `config` on `train`.
///
/// # Errors
/// [`Error::Text`] when there are too few tokens; divergence and interruption as [`Error::Training`].
pub fn train(config: &Config, train: &[u32], settings: &TrainConfig, progress: &Progress) -> Result<Decoder> {
    let length = settings.length + 1;
    if train.len() < 2 * length || settings.length == 0 || settings.batch == 0 {
        let text = format!("there are {} tokens to train on; windows of {} need twice as many", train.len(), length);
        return Err(Error::Text(text));
    }
    let vars = initial(config, settings.seed)?;
    let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let decoder = Decoder::new(config.clone(), tensors);
    let list: Vec<Var> = vars.values().cloned().collect();
    let mut adam = AdamW::new(list.clone(), AdamConfig { clip: 1.0, weight_decay: 0.01, ..Default::default() });
    let mut shards = shards::shards(settings.seed, "language model", || decoder.clone());
    let each = settings.batch.div_ceil(SHARDS);
    let loss = |shard: &mut Shard<Decoder>| {
        let windows = tokens::draw(train, length, each, &mut shard.rng);
        let tokens = Tensor::from_vec(windows, (each, length), &Device::Cpu)?;
        Ok(shard.networks.surprise(&tokens)?.mean_all()?)
    };
    let stage = progress.stage("language model", settings.steps, 0);
    for step in 0..settings.steps {
        let (value, grads) = shards::gradients(&mut shards, &list, ("language model", step), loss)?;
        adam.step(&grads, optim::cosine(settings.lr, step, settings.steps))?;
        stage.advance_with(1, value)?;
    }
    stage.finish();
    let trained = vars.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?.detach())));
    Ok(Decoder::new(config.clone(), trained.collect::<candle_core::Result<_>>().map_err(training::Error::Tensor)?))
}

/// Weights to begin with: normal, of deviation 0.02, those that end a block smaller (as GPT-2's); norms one, biases zero.
fn initial(config: &Config, seed: u64) -> Result<BTreeMap<String, Var>> {
    let mut vars = BTreeMap::new();
    for (name, shape) in config.tensors() {
        let n: usize = shape.iter().product();
        let ends = ["o_proj", "down_proj", "c_proj"].iter().any(|end| name.contains(end));
        let std = if ends { 0.02 / (2.0 * config.layers as f32).sqrt() } else { 0.02 };
        let mut rng: ChaCha8Rng = random::stream(seed, &name);
        let values = match (shape.len(), name.ends_with(".bias")) {
            (_, true) => vec![0.0; n],
            (1, false) => vec![1.0; n],
            _ => random::normal_vec(n, &mut rng).into_iter().map(|v| v * std).collect(),
        };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).map_err(training::Error::Tensor)?;
        vars.insert(name, Var::from_tensor(&tensor).map_err(training::Error::Tensor)?);
    }
    Ok(vars)
}

/// A configuration of a small model.
///
/// # Errors
/// [`Error::Text`] when the sizes do not fit each other.
pub fn small(
    family: Family,
    vocabulary: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    length: usize,
) -> Result<Config> {
    if heads == 0 || !hidden.is_multiple_of(heads) || (hidden / heads) % 2 == 1 || layers == 0 {
        return Err(Error::Text(format!("{heads} heads do not fit a width of {hidden}: it must be an even multiple")));
    }
    let gated = family != Family::Gpt2;
    Ok(Config {
        family,
        vocabulary,
        hidden,
        intermediate: if gated { (8 * hidden / 3).next_multiple_of(32) } else { 4 * hidden },
        layers,
        heads,
        kv_heads: if gated && heads.is_multiple_of(2) { heads / 2 } else { heads },
        head_dim: hidden / heads,
        epsilon: 1e-5,
        rope_theta: if gated { 10_000.0 } else { 0.0 },
        window: None,
        positions: length,
        tied: !gated,
    })
}
