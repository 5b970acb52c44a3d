//! Trains the VAE (Eq. 1) with the behaviour loss: the outputs of the decoded network are compared with those of the
//! original on images of its task. Perfect reconstruction is worthless when the latent space between the runs is
//! empty; the behaviour loss and a large β make its points working networks.

use candle_core::{D, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use weights::Layout;

use super::course::{Course, Given};
use super::fit::{self, score};
use super::shards::{self, Shard};
use super::vectors::Vectors;
use super::zoo::Zoo;
use crate::backend::Eager;
use crate::config::{Config, VaeConfig};
use crate::curve::Curve;
use crate::data::{Part, Sources};
use crate::error::Result;
use crate::networks::vae::{VaeShape, decode, encode};
use crate::optim::{self, AdamConfig, AdamW};
use crate::params::Params;
use crate::random;
use crate::snapshots::Snapshot;

/// A trained VAE. A clone shares its parameters.
#[derive(Debug, Clone)]
pub struct Vae {
    /// Its sizes.
    pub shape: VaeShape,
    /// Its parameters.
    pub params: Params,
    /// Standardisation as tensors, `[length]` each.
    mean: Tensor,
    std: Tensor,
}

impl Vae {
    fn new(config: &Config, vectors: &Vectors, device: &Device) -> Result<Self> {
        let length = vectors.vectorise.length;
        Ok(Self {
            shape: VaeShape { length, hidden: config.vae.hidden.clone(), latent: config.vae.latent.clone() },
            params: Params::new(config.seed, device),
            mean: Tensor::from_slice(&vectors.standardisation.mean, length, device)?,
            std: Tensor::from_slice(&vectors.standardisation.std, length, device)?,
        })
    }

    /// Makes all parameters, so that clones have them too.
    fn create(&mut self) -> Result<()> {
        let x = Tensor::zeros((1, self.shape.length), candle_core::DType::F32, self.params.device())?;
        let (z, _) = self.encode(&x)?;
        self.decode(&z)?;
        Ok(())
    }

    /// Mean and log-variance of the latents of standardised vectors `x [n, length]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn encode(&mut self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        encode(&mut Eager::new(&mut self.params), &self.shape, x)
    }

    /// Standardised vectors `[n, length]` of latents `[n, latent…]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn decode(&mut self, z: &Tensor) -> Result<Tensor> {
        decode(&mut Eager::new(&mut self.params), &self.shape, z)
    }

    /// Weights `[n, length]` of latents `[n, latent…]`: decoded, standardisation undone.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn weights(&mut self, z: &Tensor) -> Result<Tensor> {
        let x = self.decode(z)?;
        self.undo(&x)
    }

    fn undo(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?)
    }

    /// Latent means of all vectors of a zoo, `[n, latent…]`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn means(&mut self, vectors: &Vectors) -> Result<Tensor> {
        let length = vectors.vectorise.length;
        let parts = vectors
            .x
            .chunks(512 * length)
            .map(|rows| {
                let x = Tensor::from_slice(rows, (rows.len() / length, length), self.params.device())?;
                Ok(self.encode(&x)?.0.detach())
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Mean test accuracy of the reconstructions of these checkpoints.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn reconstruction_accuracy(
        &mut self,
        zoo: &Zoo,
        vectors: &Vectors,
        sources: &Sources,
        checkpoints: &[usize],
        part: Part,
    ) -> Result<f64> {
        if checkpoints.is_empty() {
            return Ok(f64::NAN);
        }
        let length = vectors.vectorise.length;
        let rows: Vec<f32> =
            checkpoints.iter().flat_map(|&i| vectors.x[i * length..(i + 1) * length].iter().copied()).collect();
        let x = Tensor::from_vec(rows, (checkpoints.len(), length), self.params.device())?;
        let z = self.encode(&x)?.0;
        let theta = self.weights(&z)?.narrow(1, 0, zoo.parameters())?.flatten_all()?.to_vec1::<f32>()?;
        let tasks = checkpoints.iter().map(|&i| sources.task(zoo.task(i), part)).collect::<Result<Vec<_>>>()?;
        let per_class = tasks.iter().map(|t| t.per_class()).min().unwrap_or(0);
        let scores = score(&zoo.architecture, &tasks, &theta, per_class)?;
        Ok(scores.iter().map(|s| s.accuracy).sum::<f64>() / scores.len() as f64)
    }
}

/// Trains the VAE on the training checkpoints.
///
/// # Errors
/// [`Error::Diverged`] when the loss is not finite; [`Error::Interrupted`].
pub fn train(given: &Given<'_>, device: &Device) -> Result<(Vae, Curve)> {
    let Given { config, zoo, vectors, sources, .. } = *given;
    let mut vae = Vae::new(config, vectors, device)?;
    vae.create()?;
    let length = vectors.vectorise.length;
    let batch = Batches {
        settings: &config.vae,
        zoo,
        sources,
        train: &vectors.train,
        x: Tensor::from_slice(&vectors.x, (vectors.x.len() / length, length), device)?,
        layout: zoo.architecture.layout(),
    };
    let settings = &config.vae;
    let vars = vae.params.vars();
    let decay = AdamConfig { weight_decay: settings.weight_decay, clip: 1.0, ..Default::default() };
    let mut adam = AdamW::new(vars.clone(), decay);
    let mut shards = shards::shards(config.seed, "vae", || vae.clone());
    let mut best = Best::default();
    let mut course = Course::begin(given, "vae", settings.steps, |snapshot| {
        snapshot.restore("params", &vae.params)?;
        adam.restore("adam", snapshot)?;
        shards::restore(&mut shards, snapshot)?;
        best.restore(snapshot, device)
    })?;
    for step in course.steps() {
        let (loss, grads) = shards::gradients(&mut shards, &vars, ("vae", step), |s| batch.loss(s))?;
        adam.step(&grads, optim::cosine(settings.lr, step, settings.steps))?;
        if step % 20 == 0 {
            course.message(format!("loss {loss:.4}, held-out accuracy {:.3}", best.accuracy));
        }
        if (step + 1) % (settings.steps / CHECKS).max(1) == 0 || step + 1 == settings.steps {
            let held_out = &vectors.held_out[..vectors.held_out.len().min(CHECKED)];
            let accuracy = vae.reconstruction_accuracy(zoo, vectors, sources, held_out, Part::Validation)?;
            best.offer(accuracy, &vae.params)?;
        }
        course.made(step, loss, |snapshot| {
            snapshot.put_all("params", &vae.params.snapshot()?)?;
            adam.save("adam", snapshot)?;
            shards::save(&shards, snapshot);
            best.save(snapshot)
        })?;
    }
    vae.params.restore(&best.snapshot)?;
    Ok((vae, course.finish()))
}

/// Times that held-out runs are looked at.
const CHECKS: usize = 10;
/// Held-out checkpoints that are looked at.
const CHECKED: usize = 200;

/// The parameters with the best held-out reconstruction, measured on validation images: a few hundred runs are
/// memorised in minutes. Without held-out runs the last ones.
#[derive(Default)]
struct Best {
    accuracy: f64,
    snapshot: std::collections::BTreeMap<String, Tensor>,
}

impl Best {
    fn offer(&mut self, accuracy: f64, params: &Params) -> Result<()> {
        // NaN: nothing is held out.
        if accuracy.is_nan() || accuracy >= self.accuracy {
            self.accuracy = accuracy;
            self.snapshot = params.snapshot()?;
        }
        Ok(())
    }

    fn save(&self, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.put_f64("best.accuracy", self.accuracy);
        snapshot.put_all("best", &self.snapshot)
    }

    fn restore(&mut self, snapshot: &mut Snapshot, device: &Device) -> Result<()> {
        self.accuracy = snapshot.f64("best.accuracy")?;
        self.snapshot = snapshot.take_all("best", device)?;
        Ok(())
    }
}

/// KL(q ‖ N(0, 1)) in nats, mean over batch and latent dimensions.
fn kl_divergence(mean: &Tensor, log_variance: &Tensor) -> Result<Tensor> {
    let sum = ((mean.sqr()? + log_variance.exp()?)? - log_variance)?;
    Ok(sum.mean_all()?.affine(0.5, -0.5)?)
}

/// What the batches are drawn from.
struct Batches<'a> {
    settings: &'a VaeConfig,
    zoo: &'a Zoo,
    sources: &'a Sources,
    train: &'a [usize],
    x: Tensor,
    layout: Layout,
}

impl Batches<'_> {
    /// The loss of one shard: mse · squared error + β · KL + behaviour · KL of outputs.
    fn loss(&self, shard: &mut Shard<Vae>) -> Result<Tensor> {
        let (vae, rng, settings) = (&mut shard.networks, &mut shard.rng, self.settings);
        let device = self.x.device();
        let picked = shards::pick(self.train, settings.batch, rng);
        let x = self.x.index_select(&Tensor::new(picked.as_slice(), device)?, 0)?;
        let noise = random::normal(x.dims(), device, rng)?;
        let (mean, log_variance) = vae.encode(&(&x + noise.affine(settings.input_noise, 0.0)?)?)?;
        let log_variance = log_variance.clamp(-12.0, 4.0)?;
        let noise = random::normal(mean.dims(), device, rng)?;
        let z = (&mean + (log_variance.affine(0.5, 0.0)?.exp()? * noise)?)?;
        let decoded = vae.decode(&z)?;
        let kl = kl_divergence(&mean, &log_variance)?;
        let mse = (&decoded - &x)?.sqr()?.mean_all()?;
        let loss = (mse.affine(settings.mse, 0.0)? + kl.affine(settings.beta, 0.0)?)?;
        if settings.behaviour == 0.0 {
            return Ok(loss);
        }
        let behaviour = self.behaviour(&picked, &vae.undo(&x)?, &vae.undo(&decoded)?, rng)?;
        Ok((loss + behaviour.affine(settings.behaviour, 0.0)?)?)
    }

    /// KL between the outputs of original and decoded networks (`[batch, length]` weights each) on training images of
    /// each network's task, mean over networks and images.
    fn behaviour(&self, picked: &[u32], original: &Tensor, decoded: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let architecture = &self.zoo.architecture;
        let models = ((picked.len() as f64 * self.settings.behaviour_share).round() as usize).max(1);
        let mut images = Vec::new();
        for &i in &picked[..models] {
            self.sources.task(self.zoo.task(i as usize), Part::Train)?.draw(
                self.settings.behaviour_images,
                rng,
                &mut images,
            );
        }
        let images = fit::inputs(architecture, images, models, original.device())?;
        let original = original.narrow(0, 0, models)?;
        let decoded = decoded.narrow(0, 0, models)?;
        let p = fit::logits(architecture, &self.layout, &original, &images)?.detach();
        let q = fit::logits(architecture, &self.layout, &decoded, &images)?;
        let (p, q) = (candle_nn::ops::log_softmax(&p, D::Minus1)?, candle_nn::ops::log_softmax(&q, D::Minus1)?);
        Ok((p.exp()? * (&p - &q)?)?.sum(D::Minus1)?.mean_all()?)
    }
}
