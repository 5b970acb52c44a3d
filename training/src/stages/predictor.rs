//! Trains the accuracy predictor (paper B.1): from standardised weights, and z_D where it is dataset-conditioned, to the
//! accuracy on validation images. It learns from checkpoints, early and late, and so that it sees bad networks too from
//! disturbed ones and ones between two runs; after the VAE also from what that decodes. Whole runs are held out, and
//! what is made of them is what the manifest judges it by.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use datasets::Task;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::course::{Course, Given};
use super::encoder::Encoder;
use super::measure;
use super::shards::{self, Shard};
use super::vae::Vae;
use crate::backend::Eager;
use crate::config::PredictorConfig;
use crate::curve::Curve;
use crate::data::Part;
use crate::error::{Error, Result};
use crate::networks::predictor::{PredictorShape, predict};
use crate::optim::{self, AdamConfig, AdamW};
use crate::params::Params;
use crate::random;
use crate::tape::{self, Learned, Learning, Pass};

/// A trained predictor. A clone shares its parameters.
#[derive(Debug, Clone)]
pub struct Predictor {
    /// Its sizes.
    pub shape: PredictorShape,
    /// Its parameters.
    pub params: Params,
}

impl Predictor {
    /// (embedding, accuracy `[n, 1]`) of standardised weights `[n, length]`, with z_D `[n, embedding_dim]` where it is
    /// dataset-conditioned.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn predict(&mut self, weights: &Tensor, dataset: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        predict(&mut Eager::new(&mut self.params), &self.shape, weights, dataset)
    }

    /// The term of Eq. 9: squared distance between the embeddings of weights and of their reconstruction, mean over both
    /// dimensions. The predictor stays as it is.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn guidance(&self, weights: &Tensor, reconstruction: &Tensor) -> Result<Tensor> {
        let mut own = self.clone();
        let target = own.predict(weights, None)?.0.detach();
        Ok((own.predict(reconstruction, None)?.0 - target)?.sqr()?.mean_all()?)
    }
}

/// How a network came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Checkpoint,
    Disturbed,
    Decoded,
}

/// Networks whose accuracy was measured on validation images.
struct Examples {
    /// Standardised, `[n, length]`.
    x: Tensor,
    /// The checkpoint that each was made from: its task is the network's.
    checkpoint: Vec<usize>,
    kind: Vec<Kind>,
    accuracy: Vec<f32>,
}

/// Largest deviation of the noise on standardised weights; some are hardly moved, some no network any more.
const DISTURBANCE: (f64, f64) = (0.05, 3.0);

impl Examples {
    /// Makes and measures networks from the checkpoints `from`, about `n` in all.
    fn make(
        given: &Given<'_>,
        (vae, device): (Option<&mut Vae>, &Device),
        from: &[usize],
        n: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self> {
        let Given { zoo, vectors, sources, progress, .. } = *given;
        let length = vectors.vectorise.length;
        let row = |c: usize| &vectors.x[c * length..(c + 1) * length];
        let kinds = if vae.is_some() { 3 } else { 2 };
        let each = n.div_ceil(kinds).max(1);
        let mut whole = from.to_vec();
        rand::seq::SliceRandom::shuffle(whole.as_mut_slice(), rng);
        whole.truncate(each);
        let mut x: Vec<f32> = whole.iter().flat_map(|&c| row(c).iter().copied()).collect();
        let mut kind = vec![Kind::Checkpoint; whole.len()];
        let mut checkpoint = whole;
        for _ in 0..each {
            let (c, other, t) = pair(given, from, rng);
            let sigma = (DISTURBANCE.0.ln() + rng.random::<f64>() * (DISTURBANCE.1 / DISTURBANCE.0).ln()).exp() as f32;
            let noise = random::normal_vec(length, rng);
            let between = row(c).iter().zip(row(other)).map(|(a, b)| a + t * (b - a));
            x.extend(between.zip(noise).map(|(v, n)| v + sigma * n));
            checkpoint.push(c);
            kind.push(Kind::Disturbed);
        }
        let mut x = Tensor::from_vec(x, (checkpoint.len(), length), device)?;
        if let Some(vae) = vae {
            let (decoded, from) = decoded(given, vae, from, each, rng)?;
            x = Tensor::cat(&[&x, &decoded], 0)?;
            kind.extend(from.iter().map(|_| Kind::Decoded));
            checkpoint.extend(from);
        }
        let mut theta = x.flatten_all()?.to_vec1::<f32>()?;
        vectors.standardisation.invert(&mut theta)?;
        let d = zoo.parameters();
        let theta: Vec<f32> = theta.chunks_exact(length).flat_map(|row| row[..d].iter().copied()).collect();
        let scores = measure::validation_scores(zoo, sources, &checkpoint, &theta, progress)?;
        let accuracy = scores.iter().map(|s| s.accuracy as f32).collect();
        Ok(Self { x, checkpoint, kind, accuracy })
    }
}

/// A checkpoint, another of its task (itself, where there is none at hand), and how far to go from it to the other: half
/// the time not at all.
fn pair(given: &Given<'_>, from: &[usize], rng: &mut ChaCha8Rng) -> (usize, usize, f32) {
    let c = from[rng.random_range(0..from.len())];
    let task = given.zoo.task(c);
    let mut other = c;
    for _ in 0..8 {
        let candidate = from[rng.random_range(0..from.len())];
        if given.zoo.task(candidate) == task {
            other = candidate;
        }
    }
    let t = if rng.random_bool(0.5) { 0.0 } else { rng.random::<f32>() };
    (c, other, t)
}

/// Decoded networks `[n, length]`, standardised: latents of checkpoints, between two, and moved by up to once the
/// deviation of all latents.
fn decoded(
    given: &Given<'_>,
    vae: &mut Vae,
    from: &[usize],
    n: usize,
    rng: &mut ChaCha8Rng,
) -> Result<(Tensor, Vec<usize>)> {
    let means = vae.means(given.vectors)?.flatten_from(1)?;
    let dim = means.dim(1)?;
    let centred = means.broadcast_sub(&means.mean_keepdim(0)?)?;
    let deviation = centred.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
    let values = means.to_vec2::<f32>()?;
    let (mut z, mut checkpoint) = (Vec::with_capacity(n * dim), Vec::with_capacity(n));
    for _ in 0..n {
        let (c, other, t) = pair(given, from, rng);
        let sigma = deviation * rng.random::<f32>();
        let noise = random::normal_vec(dim, rng);
        let between = values[c].iter().zip(&values[other]).map(|(a, b)| a + t * (b - a));
        z.extend(between.zip(noise).map(|(v, n)| v + sigma * n));
        checkpoint.push(c);
    }
    let shape: Vec<usize> = std::iter::once(n).chain(vae.shape.latent.iter().copied()).collect();
    Ok((vae.decode(&Tensor::from_vec(z, shape, means.device())?, &vec![0; n])?.detach(), checkpoint))
}

/// Trains a predictor, and judges it on what was made of held-out runs. With `vae` it also sees decoded networks, with
/// `encoder` the dataset's embedding.
///
/// # Errors
/// [`Error::Config`] where networks are several rows or of several architectures; [`Error::Diverged`] when the loss is
/// not finite; [`Error::Interrupted`].
pub fn train(
    given: &Given<'_>,
    stage: &'static str,
    vae: Option<&mut Vae>,
    encoder: Option<&Encoder>,
    device: &Device,
) -> Result<(Predictor, Curve, Value)> {
    let Given { config, vectors, .. } = *given;
    if vectors.vectorise.index_dim() > 0 {
        let text = "a predictor takes whole networks of one architecture: leave predictor.steps 0 with several \
                    architectures, or with vectors.mode other than model_wise";
        return Err(Error::Config(text.into()));
    }
    let settings = &config.predictor;
    let mut rng = random::stream(config.seed, stage);
    let (mut train_vae, mut test_vae) = (vae.as_deref().cloned(), vae.as_deref().cloned());
    let share = vectors.held_out.len() as f64 / vectors.train.len().max(1) as f64;
    let learned = Examples::make(given, (train_vae.as_mut(), device), &vectors.train, settings.examples, &mut rng)?;
    let held_out = match vectors.held_out.is_empty() {
        true => None,
        false => {
            let n = ((settings.examples as f64 * share) as usize).max(HELD_OUT.min(settings.examples));
            Some(Examples::make(given, (test_vae.as_mut(), device), &vectors.held_out, n, &mut rng)?)
        }
    };
    let n = learned.accuracy.len().max(1) as f32;
    let mean = learned.accuracy.iter().sum::<f32>() / n;
    let std = (learned.accuracy.iter().map(|a| (a - mean).powi(2)).sum::<f32>() / n).sqrt().max(1e-3);
    let predictor = Predictor {
        shape: PredictorShape {
            length: vectors.vectorise.length,
            width: settings.width,
            dataset: encoder.map(|e| e.shape.embedding_dim),
            accuracy: (f64::from(mean), f64::from(std)),
        },
        params: Params::new(config.seed ^ 0xacc0, device),
    };
    let batch = Batches { given, settings, examples: &learned, std };
    let networks = (predictor, encoder.cloned());
    let (mut predictor, mut encoder) = shards::created(networks, config.seed, |shard| batch.learn(shard, 1.0))?;
    let decay = AdamConfig { weight_decay: settings.weight_decay, clip: 1.0, ..Default::default() };
    let mut adam = AdamW::new(predictor.params.vars(), decay);
    let learning = || {
        let params = predictor.params.learning_in(given.config.arithmetic);
        (Predictor { params, ..predictor.clone() }, encoder.clone())
    };
    let mut shards = shards::shards(config.seed, stage, learning);
    let mut course = Course::begin(given, stage, settings.steps, |snapshot| {
        snapshot.restore("params", &predictor.params)?;
        adam.restore("adam", snapshot)?;
        shards::restore(&mut shards, snapshot)
    })?;
    for step in course.steps() {
        let (loss, grads) = shards::learn(&mut shards, (stage, step), |s, share| batch.learn(s, share))?;
        adam.step_sums(grads, optim::cosine(settings.lr, step, settings.steps))?;
        if step % 20 == 0 {
            course.message(format!("loss {loss:.4}"));
        }
        course.made(step, loss, |snapshot| {
            snapshot.put_all("params", &predictor.params.snapshot()?)?;
            adam.save("adam", snapshot)?;
            shards::save(&shards, snapshot);
            Ok(())
        })?;
    }
    let curve = course.finish();
    let metrics = match &held_out {
        Some(examples) => judge(given, &mut predictor, encoder.as_mut(), examples, &mut rng)?,
        None => Value::Null,
    };
    Ok((predictor, curve, json!({ "examples": learned.accuracy.len(), "held_out": metrics })))
}

/// Networks made of held-out runs, at least: few of them tell little.
const HELD_OUT: usize = 600;

/// What the batches are drawn from.
struct Batches<'a> {
    given: &'a Given<'a>,
    settings: &'a PredictorConfig,
    examples: &'a Examples,
    std: f32,
}

impl Batches<'_> {
    /// `share` of the squared error of one shard's predictions, in deviations of the accuracies, and its gradients.
    fn learn(&self, shard: &mut Shard<(Predictor, Option<Encoder>)>, share: f64) -> Result<Learned> {
        let ((predictor, encoder), rng) = (&mut shard.networks, &mut shard.rng);
        let all: Vec<usize> = (0..self.examples.accuracy.len()).collect();
        let picked = shards::pick(&all, self.settings.batch, rng);
        let device = self.examples.x.device();
        let x = self.examples.x.index_select(&Tensor::new(picked.as_slice(), device)?, 0)?;
        let noise = random::normal(x.dims(), device, rng)?;
        let x = (x + noise.affine(self.settings.input_noise, 0.0)?)?;
        let dataset = match encoder {
            Some(encoder) => Some(embed(self.given, encoder, self.examples, &picked, rng)?),
            None => None,
        };
        let target: Vec<f32> = picked.iter().map(|&i| self.examples.accuracy[i as usize]).collect();
        let target = Tensor::from_vec(target, (picked.len(), 1), device)?;
        let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&dataset).collect();
        let scale = 1.0 / f64::from(self.std);
        let loss = |outputs: &[Tensor]| Ok((&outputs[0] - &target)?.affine(scale, 0.0)?.sqr()?.mean_all()?);
        tape::learn(&mut predictor.params, &Prediction(&predictor.shape), &inputs, share, loss)
    }
}

/// Weights (and z_D, where it sees it) → accuracy.
pub(crate) struct Prediction<'a>(pub &'a PredictorShape);

impl Pass for Prediction<'_> {
    fn outputs<B: Learning>(&self, b: &mut B, inputs: &[B::T]) -> Result<Vec<B::T>> {
        Ok(vec![predict(b, self.0, &inputs[0], inputs.get(1))?.1])
    }
}

/// z_D of the examples' tasks, from images drawn anew.
fn embed(
    given: &Given<'_>,
    encoder: &mut Encoder,
    examples: &Examples,
    picked: &[u32],
    rng: &mut ChaCha8Rng,
) -> Result<Tensor> {
    let tasks = picked.iter().map(|&i| given.zoo.task(examples.checkpoint[i as usize]));
    let supports = encoder.support(given.sources, tasks, Part::Train, rng)?;
    Ok(encoder.values(&supports)?.0)
}

/// How well the accuracies of networks made of held-out runs are told.
fn judge(
    given: &Given<'_>,
    predictor: &mut Predictor,
    mut encoder: Option<&mut Encoder>,
    examples: &Examples,
    rng: &mut ChaCha8Rng,
) -> Result<Value> {
    let all: Vec<u32> = (0..examples.accuracy.len() as u32).collect();
    let mut predicted = Vec::with_capacity(all.len());
    for picked in all.chunks(256) {
        let x = examples.x.index_select(&Tensor::new(picked, examples.x.device())?, 0)?;
        let dataset = match encoder.as_deref_mut() {
            Some(encoder) => Some(embed(given, encoder, examples, picked, rng)?),
            None => None,
        };
        let (_, y) = predictor.predict(&x, dataset.as_ref())?;
        predicted.extend(y.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from));
    }
    let of = |kind: Option<Kind>| {
        let own: Vec<usize> = (0..all.len()).filter(|&i| kind.is_none_or(|k| k == examples.kind[i])).collect();
        let measured: Vec<f64> = own.iter().map(|&i| f64::from(examples.accuracy[i])).collect();
        let predicted: Vec<f64> = own.iter().map(|&i| predicted[i]).collect();
        let tasks: Vec<&Task> = own.iter().map(|&i| given.zoo.task(examples.checkpoint[i])).collect();
        json!({
            "networks": own.len(),
            "r2": r_squared(&measured, &predicted),
            "spearman": spearman(&measured, &predicted),
            "spearman_within_task": within(&tasks, &measured, &predicted),
        })
    };
    let mut out = of(None);
    out["checkpoints"] = of(Some(Kind::Checkpoint));
    out["disturbed"] = of(Some(Kind::Disturbed));
    if examples.kind.contains(&Kind::Decoded) {
        out["decoded"] = of(Some(Kind::Decoded));
    }
    Ok(out)
}

/// Rank correlation inside each task of at least eight networks, mean over tasks; what ranking the samples of a request
/// needs.
fn within(tasks: &[&Task], measured: &[f64], predicted: &[f64]) -> Option<f64> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    tasks.iter().enumerate().for_each(|(i, task)| groups.entry(task.to_string()).or_default().push(i));
    let each = groups.values().filter(|own| own.len() >= 8);
    let pick = |own: &[usize], values: &[f64]| own.iter().map(|&i| values[i]).collect::<Vec<_>>();
    let found: Vec<f64> = each.filter_map(|own| spearman(&pick(own, measured), &pick(own, predicted))).collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

/// Share of the variance that predictions explain: 1 − Σ(y − ŷ)² / Σ(y − ȳ)²; `None` where nothing varies.
pub fn r_squared(measured: &[f64], predicted: &[f64]) -> Option<f64> {
    let mean = measured.iter().sum::<f64>() / measured.len().max(1) as f64;
    let total: f64 = measured.iter().map(|y| (y - mean).powi(2)).sum();
    let left: f64 = measured.iter().zip(predicted).map(|(y, p)| (y - p).powi(2)).sum();
    (total > 0.0).then(|| 1.0 - left / total)
}

/// Spearman's rank correlation, equal values sharing their mean rank; `None` where nothing varies.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let n = a.len().max(1) as f64;
    let mean = (n - 1.0) / 2.0;
    let covariance = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let scale = (covariance(&a, &a) * covariance(&b, &b)).sqrt();
    (scale > 0.0).then(|| covariance(&a, &b) / scale)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        let shared = (start + end - 1) as f64 / 2.0;
        order[start..end].iter().for_each(|&i| ranks[i] = shared);
        start = end;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_correlate_whatever_the_scale() {
        let a = [0.1, 0.5, 0.3, 0.9];
        let cubed: Vec<f64> = a.iter().map(|v: &f64| v.powi(3)).collect();
        let negated: Vec<f64> = a.iter().map(|v| -v).collect();
        assert!((spearman(&a, &cubed).unwrap() - 1.0).abs() < 1e-12);
        assert!((spearman(&a, &negated).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(spearman(&a, &[1.0; 4]), None);
        // Ties share a rank: 0.5·(1+2).
        assert_eq!(ranks(&[3.0, 1.0, 1.0, 0.0]), [3.0, 1.5, 1.5, 0.0]);
    }

    #[test]
    fn the_mean_explains_nothing() {
        let measured = [0.0, 1.0, 2.0];
        assert_eq!(r_squared(&measured, &[1.0; 3]), Some(0.0));
        assert_eq!(r_squared(&measured, &measured), Some(1.0));
        assert_eq!(r_squared(&[1.0; 3], &measured), None);
    }
}
