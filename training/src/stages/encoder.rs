//! Trains the dataset encoder: contrastive alignment of z_D with the frozen VAE's latents (Eq. 2).

use candle_core::{D, Device, Tensor};
use datasets::Task;
use rand_chacha::ChaCha8Rng;

use super::course::{Course, Given};
use super::shards::{self, Shard};
use super::vectors::{Vectors, one_hot};
use super::zoo::Zoo;
use crate::backend::Eager;
use crate::config::{Arithmetic, Config};
use crate::curve::Curve;
use crate::data::{Part, Sources};
use crate::error::Result;
use crate::networks::dataset_encoder::{EncoderShape, encode, project_latent};
use crate::optim::{self, AdamConfig, AdamW};
use crate::params::{Init, Params};
use crate::tape::{self, Learned, Learning, Pass};

/// A trained dataset encoder. A clone shares its parameters.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// Its sizes.
    pub shape: EncoderShape,
    /// Its parameters (and those of the alignment's projection, which are not exported).
    pub params: Params,
}

impl Encoder {
    fn new(config: &Config, zoo: &Zoo, sources: &Sources, device: &Device) -> Self {
        let e = &config.encoder;
        let shape = EncoderShape {
            feature_dim: sources.feature_dim(),
            classes: config.most_classes().unwrap_or_else(|| zoo.architecture.classes()),
            images: e.images,
            width: e.width,
            heads: e.heads,
            blocks: e.blocks,
            token_dim: e.token_dim,
            embedding_dim: e.embedding_dim,
            kind: e.kind,
            condition: e.condition,
            any_number: config.most_classes().is_some(),
        };
        Self { shape, params: Params::new(config.seed ^ 0xe2c0, device) }
    }

    /// (z_D, condition) of datasets.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn encode(&mut self, supports: &Supports) -> Result<(Tensor, Tensor)> {
        let Supports { features, presence } = supports;
        encode(&mut Eager::new(&mut self.params), &self.shape, features, presence.as_ref())
    }

    /// The same encoder, for learning in this arithmetic.
    pub(super) fn learning_in(&self, arithmetic: Arithmetic) -> Self {
        Self { params: self.params.learning_in(arithmetic), ..self.clone() }
    }

    /// As [`Encoder::encode`], without gradients.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub(crate) fn values(&mut self, supports: &Supports) -> Result<(Tensor, Tensor)> {
        let outputs = tape::values(&mut self.params, &Encoding(&self.shape), &supports.inputs())?;
        Ok((outputs[0].clone(), outputs[1].clone()))
    }

    /// Support images of these tasks, drawn from `part`.
    ///
    /// # Errors
    /// When a task does not exist.
    pub fn support<'a>(
        &self,
        sources: &Sources,
        tasks: impl IntoIterator<Item = &'a Task>,
        part: Part,
        rng: &mut ChaCha8Rng,
    ) -> Result<Supports> {
        let (s, device) = (&self.shape, self.params.device());
        let (tasks, mut presence, mut n) = (tasks.into_iter(), Vec::new(), 0);
        let mut features = Vec::with_capacity(tasks.size_hint().0 * s.classes * s.images * s.feature_dim);
        for task in tasks {
            n += 1;
            sources.task(task, part)?.for_encoder().draw(s.images, rng, &mut features);
            if s.any_number {
                // Classes that the task does not have.
                features.resize(n * s.classes * s.images * s.feature_dim, 0.0);
                presence.extend((0..s.classes).map(|class| f32::from(u8::from(class < task.classes.len()))));
            }
        }
        Ok(Supports {
            features: Tensor::from_vec(features, (n, s.classes, s.images, s.feature_dim), device)?,
            presence: s.any_number.then(|| Tensor::from_vec(presence, (n, s.classes), device)).transpose()?,
        })
    }
}

/// Datasets as the encoder takes them.
#[derive(Debug, Clone)]
pub struct Supports {
    /// `[n, classes, images, feature_dim]`; zeros in place of classes that a dataset does not have.
    pub features: Tensor,
    /// Of each class whether a dataset has it, 1 or 0, `[n, classes]`; none where the number of classes is one and the same.
    pub presence: Option<Tensor>,
}

impl Supports {
    /// Features, and presence where there is one: what [`Encoding`] takes.
    pub(crate) fn inputs(&self) -> Vec<&Tensor> {
        std::iter::once(&self.features).chain(&self.presence).collect()
    }
}

/// Features (and presence) → z_D and condition.
pub(super) struct Encoding<'a>(pub &'a EncoderShape);

impl Pass for Encoding<'_> {
    fn outputs<B: Learning>(&self, b: &mut B, inputs: &[B::T]) -> Result<Vec<B::T>> {
        let (dataset, condition) = encode(b, self.0, &inputs[0], inputs.get(1))?;
        Ok(vec![dataset, condition])
    }
}

/// Trains the encoder against latents `[rows, latent…]` of all checkpoints.
///
/// # Errors
/// [`Error::Diverged`] when the loss is not finite; [`Error::Interrupted`].
pub fn train(given: &Given<'_>, latents: &Tensor) -> Result<(Encoder, Curve)> {
    let Given { config, zoo, vectors, sources, .. } = *given;
    let settings = &config.encoder;
    let encoder = Encoder::new(config, zoo, sources, latents.device());
    let batch = Batches { config, zoo, sources, vectors, latents: latents.flatten_from(1)? };
    let encoder = shards::created(encoder, config.seed, |shard| batch.learn(shard, 1.0))?;
    let decay = AdamConfig { weight_decay: settings.weight_decay, clip: 1.0, ..Default::default() };
    let mut adam = AdamW::new(encoder.params.vars(), decay);
    let mut shards = shards::shards(config.seed, "encoder", || encoder.learning_in(config.arithmetic));
    let mut course = Course::begin(given, "encoder", settings.steps, |snapshot| {
        snapshot.restore("params", &encoder.params)?;
        adam.restore("adam", snapshot)?;
        shards::restore(&mut shards, snapshot)
    })?;
    for step in course.steps() {
        let (loss, grads) = shards::learn(&mut shards, ("encoder", step), |s, share| batch.learn(s, share))?;
        adam.step_sums(grads, optim::cosine(settings.lr, step, settings.steps))?;
        if step % 20 == 0 {
            course.message(format!("contrastive loss {loss:.3}"));
        }
        course.made(step, loss, |snapshot| {
            snapshot.put_all("params", &encoder.params.snapshot()?)?;
            adam.save("adam", snapshot)?;
            shards::save(&shards, snapshot);
            Ok(())
        })?;
    }
    Ok((encoder, course.finish()))
}

/// What the batches are drawn from.
struct Batches<'a> {
    config: &'a Config,
    zoo: &'a Zoo,
    sources: &'a Sources,
    vectors: &'a Vectors,
    /// `[rows, latent_dim]`.
    latents: Tensor,
}

impl Batches<'_> {
    /// `share` of the contrastive loss of one shard, whose datasets are each other's negatives, and its gradients.
    fn learn(&self, shard: &mut Shard<Encoder>, share: f64) -> Result<Learned> {
        let (encoder, rng, device) = (&mut shard.networks, &mut shard.rng, self.latents.device());
        let picked = shards::pick(&self.vectors.train, self.config.encoder.batch, rng);
        let tasks: Vec<&Task> = picked.iter().map(|&i| self.zoo.task(i as usize)).collect();
        let supports = encoder.support(self.sources, tasks.iter().copied(), Part::Train, rng)?;
        let (rows, pieces) = self.vectors.draw(&picked, rng);
        let mut z = self.latents.index_select(&Tensor::new(rows.as_slice(), device)?, 0)?;
        if let Some(index) = one_hot(&pieces, self.vectors.vectorise.index_dim(), device)? {
            z = Tensor::cat(&[&z, &index], 1)?;
        }
        let pass = Alignment { shape: &encoder.shape, latent_dim: z.dim(1)? };
        let inputs: Vec<&Tensor> = [&supports.features, &z].into_iter().chain(&supports.presence).collect();
        let target = positives(&tasks, device)?;
        let temperature = self.config.encoder.temperature;
        let loss = |outputs: &[Tensor]| contrast(outputs, temperature, &target);
        tape::learn(&mut encoder.params, &pass, &inputs, share, loss)
    }
}

/// Features, latents (and presence, where a dataset has any number of classes) → z_D, projected latents, and the logarithm
/// that the temperature is moved by.
pub(crate) struct Alignment<'a> {
    pub shape: &'a EncoderShape,
    pub latent_dim: usize,
}

impl Pass for Alignment<'_> {
    fn outputs<B: Learning>(&self, b: &mut B, inputs: &[B::T]) -> Result<Vec<B::T>> {
        let (dataset, _) = encode(b, self.shape, &inputs[0], inputs.get(2))?;
        let projected = project_latent(b, &inputs[1], self.latent_dim, self.shape)?;
        let temperature = b.param("align.log_temperature", &[1], Init::Zeros)?;
        Ok(vec![dataset, projected, temperature])
    }
}

/// The contrastive loss of what [`Alignment`] gives; `temperature` is that at the start.
pub(crate) fn contrast(outputs: &[Tensor], temperature: f64, target: &Tensor) -> Result<Tensor> {
    let scale = outputs[2].affine(1.0, -temperature.ln())?.exp()?.clamp(1.0, 100.0)?;
    info_nce(&outputs[0], &outputs[1], &scale, target)
}

/// Rows that sum to one: weight 1/k on each of the k entries of the batch with the same task. Two runs of one dataset
/// are no negatives of each other.
fn positives(tasks: &[&Task], device: &Device) -> Result<Tensor> {
    let n = tasks.len();
    let mut target = vec![0f32; n * n];
    for (i, a) in tasks.iter().enumerate() {
        let same: Vec<usize> = (0..n).filter(|&j| tasks[j] == *a).collect();
        for &j in &same {
            target[i * n + j] = 1.0 / same.len() as f32;
        }
    }
    Ok(Tensor::from_vec(target, (n, n), device)?)
}

/// Symmetric InfoNCE (Eq. 2) of `a [n, e]` and `b [n, e]` with soft targets `[n, n]`.
fn info_nce(a: &Tensor, b: &Tensor, scale: &Tensor, target: &Tensor) -> Result<Tensor> {
    let unit = |x: &Tensor| -> Result<Tensor> {
        Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.affine(1.0, 1e-8)?.sqrt()?)?)
    };
    let similarity = unit(a)?.matmul(&unit(b)?.t()?)?.broadcast_mul(scale)?;
    let one_way = |s: &Tensor| -> Result<Tensor> {
        let log_p = candle_nn::ops::log_softmax(s, D::Minus1)?;
        Ok((log_p * target)?.sum(D::Minus1)?.mean_all()?.neg()?)
    };
    let transposed = similarity.t()?.contiguous()?;
    Ok((one_way(&similarity)? + one_way(&transposed)?)?.affine(0.5, 0.0)?)
}
