//! LoRA adapters with a classifier on a text encoder (paper 4.3): trained, kept and read as Python's `peft` does.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, IndexOp, Tensor, Var};
use datasets::glue::Example;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use training::optim::{self, AdamConfig, AdamW};
use training::progress::Progress;
use training::random;
use weights::lora::{CONFIG, FILE, PREFIX};
use weights::{Layout, Lora, LoraModule, tensors};

use crate::bert::{Batch, Bert, batch};
use crate::error::{Error, Result};
use crate::rewrite::Part;
use crate::text::TextEncoder;

/// Examples that are run at a time.
const PART: usize = 64;
/// What is before the names of an encoder's modules in a classifier.
const ENCODER: &str = "bert";

/// Which projections get an adapter, and of which size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of an adapter.
    pub rank: usize,
    /// Adapters are scaled by alpha / rank.
    pub alpha: usize,
    /// Last parts of the names of modules that get one.
    pub targets: Vec<String>,
    /// How many blocks get them, the last ones; 0: all.
    pub blocks: usize,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 4, alpha: 8, targets: vec!["query".into(), "value".into()], blocks: 2 }
    }
}

/// How adapters are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitConfig {
    /// Epochs.
    pub epochs: usize,
    /// Examples of a step.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// How many of the last epochs' adapters are kept.
    pub keep: usize,
}

impl Default for FitConfig {
    fn default() -> Self {
        Self { epochs: 8, batch: 32, lr: 2e-3, keep: 5 }
    }
}

/// What of an encoder an adapter changes, and how.
#[derive(Debug, Clone)]
pub struct Adapted<'a> {
    bert: &'a Bert,
    lora: Lora,
    layout: Layout,
    /// The first block that is adapted.
    first: usize,
}

/// Examples as hidden states in front of the first block that is adapted.
#[derive(Debug, Clone)]
pub struct Encoded {
    hidden: Tensor,
    batch: Batch,
    labels: Vec<u32>,
}

impl Encoded {
    /// Examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Their labels.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }
}

/// An adapter of some epoch, and how good it is.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its epoch, from 1.
    pub epoch: usize,
    /// Its values, as the layout has them.
    pub theta: Vec<f32>,
}

fn tensor_error(error: candle_core::Error) -> Error {
    Error::Training(training::Error::Tensor(error))
}

impl<'a> Adapted<'a> {
    /// An encoder, which `peft` is to find as `base`, with adapters for `classes` classes.
    ///
    /// # Errors
    /// [`Error::Text`] when no module has a target's name, or a size is 0.
    pub fn new(bert: &'a Bert, base: &str, config: &LoraConfig, classes: usize) -> Result<Self> {
        let c = bert.config();
        let modules = bert.modules();
        if config.rank == 0 || config.alpha == 0 || classes < 2 || config.blocks > c.layers {
            let text = format!(
                "an adapter has a rank and an alpha of 1 or more, two classes or more, and at most {} blocks",
                c.layers
            );
            return Err(Error::Text(text));
        }
        let first = if config.blocks == 0 { 0 } else { c.layers - config.blocks };
        let mut adapted = Vec::new();
        for target in &config.targets {
            let mut found = false;
            for (block, name, outputs, inputs) in &modules {
                if name.rsplit('.').next() == Some(target) {
                    found = true;
                    if *block >= first {
                        let name = format!("{ENCODER}.{name}");
                        adapted.push(LoraModule { name, inputs: *inputs, outputs: *outputs });
                    }
                }
            }
            if !found {
                let last: std::collections::BTreeSet<&str> =
                    modules.iter().filter_map(|m| m.1.rsplit('.').next()).collect();
                let known = last.into_iter().collect::<Vec<_>>().join(", ");
                return Err(Error::Text(format!("no module's name ends with {target}; there are {known}")));
            }
        }
        let lora = Lora {
            base: base.to_owned(),
            rank: config.rank,
            alpha: config.alpha,
            targets: config.targets.clone(),
            layers: if config.blocks > 0 { (first..c.layers).collect() } else { Vec::new() },
            modules: adapted,
            hidden: c.hidden,
            classes,
        };
        weights::Architecture::Lora(lora.clone()).validate()?;
        Ok(Self { bert, layout: lora.layout(), lora, first })
    }

    /// What is adapted, and how.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// Names and shapes of an adapter's values.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Runs the blocks that are not adapted, once for all.
    ///
    /// # Errors
    /// [`Error::Text`] when there is no example.
    pub fn encode(&self, encoder: &TextEncoder, examples: &[Example], length: usize) -> Result<Encoded> {
        let texts: Vec<(&str, Option<&str>)> =
            examples.iter().map(|e| (e.first.as_str(), e.second.as_deref())).collect();
        let batch = batch(encoder.tokenizer(), &texts, length)?;
        let mut parts = Vec::new();
        for rows in parts_of(examples.len()) {
            let part = || -> candle_core::Result<Tensor> {
                let some = batch.select(&Tensor::new(rows, &Device::Cpu)?)?;
                self.bert.blocks(&self.bert.embed(&some)?, &some, 0..self.first, &|_, _| Ok(None))
            };
            parts.push(part().map_err(tensor_error)?.detach());
        }
        let hidden = Tensor::cat(&parts, 0).map_err(tensor_error)?;
        Ok(Encoded { hidden, batch, labels: examples.iter().map(|e| e.label).collect() })
    }

    /// Logits `[b, classes]` of some examples.
    fn logits(&self, values: &BTreeMap<String, Tensor>, hidden: &Tensor, batch: &Batch) -> candle_core::Result<Tensor> {
        let scale = self.lora.alpha as f64 / self.lora.rank as f64;
        let added = |name: &str, x: &Tensor| -> candle_core::Result<Option<Tensor>> {
            let of = |part: &str| values.get(&format!("{PREFIX}.{ENCODER}.{name}.lora_{part}.weight"));
            let (Some(a), Some(b)) = (of("A"), of("B")) else { return Ok(None) };
            Ok(Some(crate::nn::linear(&crate::nn::linear(x, a)?, b)?.affine(scale, 0.0)?))
        };
        let layers = self.bert.config().layers;
        let x = self.bert.blocks(hidden, batch, self.first..layers, &added)?;
        let x = self.bert.pooler(&x.i((.., 0, ..))?.contiguous()?)?;
        let of = |name: &str| {
            let missing = || candle_core::Error::Msg(format!("the adapter has no classifier.{name}"));
            values.get(&format!("{PREFIX}.classifier.{name}")).ok_or_else(missing)
        };
        x.matmul(&of("weight")?.t()?)?.broadcast_add(of("bias")?)
    }

    /// Values to begin with: A normal, B zero, the classifier normal.
    fn initial(&self, seed: u64) -> candle_core::Result<BTreeMap<String, Var>> {
        let mut vars = BTreeMap::new();
        for param in &self.layout.params {
            let n = param.len();
            let std = match () {
                () if param.name.contains("lora_A") => 1.0 / (param.shape[1] as f32).sqrt(),
                () if param.name.ends_with("classifier.weight") => 0.02,
                () => 0.0,
            };
            let mut rng = random::stream(seed, &param.name);
            let values: Vec<f32> = random::normal_vec(n, &mut rng).into_iter().map(|v| v * std).collect();
            let tensor = Tensor::from_vec(values, param.shape.as_slice(), &Device::Cpu)?;
            vars.insert(param.name.clone(), Var::from_tensor(&tensor)?);
        }
        Ok(vars)
    }

    /// Values that training begins with: adapters that add nothing, and a classifier of chance.
    ///
    /// # Errors
    /// Those of tensors.
    pub fn start(&self, seed: u64) -> Result<Vec<f32>> {
        let vars = self.initial(seed).map_err(tensor_error)?;
        self.flat(&vars.into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect())
    }

    /// Trains an adapter from `start` (its seed) with batches of an order of `seed`; keeps those of the last epochs.
    ///
    /// # Errors
    /// [`Error::Text`] when there is nothing to learn from; divergence and interruption as [`Error::Training`].
    pub fn fit(
        &self,
        data: &Encoded,
        config: &FitConfig,
        (start, seed): (u64, u64),
        progress: &Progress,
    ) -> Result<Vec<Kept>> {
        if data.is_empty() || config.batch == 0 || config.epochs == 0 {
            return Err(Error::Text("an adapter needs examples, and batches and epochs of at least 1".into()));
        }
        let vars = self.initial(start).map_err(tensor_error)?;
        let values: BTreeMap<String, Tensor> =
            vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let list: Vec<Var> = vars.values().cloned().collect();
        let mut adam = AdamW::new(list.clone(), AdamConfig { clip: 1.0, ..Default::default() });
        let mut rng = random::stream(seed, "adapter");
        let mut order: Vec<u32> = (0..data.len() as u32).collect();
        let (each, mut step, mut kept) = (data.len().div_ceil(config.batch), 0, Vec::new());
        for epoch in 1..=config.epochs {
            order.shuffle(&mut rng);
            for rows in order.chunks(config.batch) {
                progress.check()?;
                let loss = self.loss(&values, data, rows).map_err(tensor_error)?;
                let value = loss.to_scalar::<f32>().map_err(tensor_error)?;
                if !value.is_finite() {
                    return Err(training::Error::Diverged { stage: "adapter", step }.into());
                }
                let grads = loss.backward().map_err(tensor_error)?;
                let grads: Vec<Option<Tensor>> = list.iter().map(|var| grads.get(var).cloned()).collect();
                adam.step(&grads, optim::cosine(config.lr, step, each * config.epochs))?;
                step += 1;
            }
            if epoch + config.keep > config.epochs {
                kept.push(Kept { epoch, theta: self.flat(&values)? });
            }
        }
        Ok(kept)
    }

    fn loss(&self, values: &BTreeMap<String, Tensor>, data: &Encoded, rows: &[u32]) -> candle_core::Result<Tensor> {
        let index = Tensor::new(rows, &Device::Cpu)?;
        let labels: Vec<u32> = rows.iter().map(|&i| data.labels[i as usize]).collect();
        let labels = Tensor::new(labels, &Device::Cpu)?;
        let logits = self.logits(values, &data.hidden.index_select(&index, 0)?, &data.batch.select(&index)?)?;
        candle_nn::loss::cross_entropy(&logits, &labels)
    }

    fn flat(&self, values: &BTreeMap<String, Tensor>) -> Result<Vec<f32>> {
        let mut theta = Vec::with_capacity(self.layout.parameters());
        for param in &self.layout.params {
            let own = values[&param.name].flatten_all().and_then(|t| t.to_vec1::<f32>());
            theta.extend(own.map_err(tensor_error)?);
        }
        Ok(theta)
    }

    /// Classes that an adapter predicts.
    ///
    /// # Errors
    /// As [`Adapted::scores`].
    pub fn predict(&self, theta: &[f32], data: &Encoded) -> Result<Vec<u32>> {
        let largest = |row: &Vec<f32>| {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            best.map_or(0, |(class, _)| class as u32)
        };
        Ok(self.scores(theta, data)?.iter().map(largest).collect())
    }

    /// Logits of the classes for each example.
    ///
    /// # Errors
    /// [`Error::Text`] when `theta` does not fit the layout.
    pub fn scores(&self, theta: &[f32], data: &Encoded) -> Result<Vec<Vec<f32>>> {
        if theta.len() != self.layout.parameters() {
            let text = format!("an adapter has {} values, and {} are given", self.layout.parameters(), theta.len());
            return Err(Error::Text(text));
        }
        let all = || -> candle_core::Result<Vec<Vec<f32>>> {
            let mut values = BTreeMap::new();
            for param in &self.layout.params {
                let own = theta[param.range()].to_vec();
                values.insert(param.name.clone(), Tensor::from_vec(own, param.shape.as_slice(), &Device::Cpu)?);
            }
            let mut scores = Vec::with_capacity(data.len());
            for rows in parts_of(data.len()) {
                let index = Tensor::new(rows, &Device::Cpu)?;
                let hidden = data.hidden.index_select(&index, 0)?;
                scores.extend(self.logits(&values, &hidden, &data.batch.select(&index)?)?.to_vec2::<f32>()?);
            }
            Ok(scores)
        };
        all().map_err(tensor_error)
    }

    /// Writes an adapter as `peft` reads it: `adapter_config.json` and `adapter_model.safetensors` in a new directory.
    ///
    /// # Errors
    /// [`Error::Model`] when the directory exists, [`Error::Io`].
    pub fn save(&self, theta: &[f32], dir: &Path) -> Result<()> {
        let part = Part::new(dir)?;
        let write = |name: &str, bytes: &[u8]| {
            let path = part.path().join(name);
            std::fs::write(&path, bytes).map_err(Error::io(&path))
        };
        write(CONFIG, self.lora.config_file().as_bytes())?;
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write(FILE, &tensors::to_safetensors(&self.layout, theta, &metadata)?)?;
        part.keep(dir)
    }

    /// Reads the values of an adapter that fits.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Weights`] names the tensor that is missing, or of another shape.
    pub fn open(&self, dir: &Path) -> Result<Vec<f32>> {
        let path = dir.join(FILE);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        Ok(tensors::from_safetensors(&bytes, &self.layout)?)
    }
}

/// The numbers of `n` examples, some at a time.
fn parts_of(n: usize) -> impl Iterator<Item = Vec<u32>> {
    (0..n).step_by(PART).map(move |start| (start..(start + PART).min(n)).map(|i| i as u32).collect())
}

/// Share of right predictions.
pub fn accuracy(predicted: &[u32], labels: &[u32]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(a, b)| a == b).count();
    right as f64 / labels.len().max(1) as f64
}

/// Matthews' correlation of predictions of two classes: 1 for all right, 0 for chance or one class alone.
pub fn matthews(predicted: &[u32], labels: &[u32]) -> f64 {
    let count = |p: u32, l: u32| predicted.iter().zip(labels).filter(|(a, b)| (**a, **b) == (p, l)).count() as f64;
    let (tp, tn, fp, missed) = (count(1, 1), count(0, 0), count(1, 0), count(0, 1));
    let norm = ((tp + fp) * (tp + missed) * (tn + fp) * (tn + missed)).sqrt();
    if norm > 0.0 { (tp * tn - fp * missed) / norm } else { 0.0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "lora_tests.rs"]
mod tests;
