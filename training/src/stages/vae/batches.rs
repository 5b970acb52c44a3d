//! The batches that the VAE learns from, and its loss on them.

use candle_core::{D, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use weights::Architecture;

use super::coding::{Coding, bounded, kl_divergence};
use super::undo::Undo;
use super::{Vae, there};
use crate::config::VaeConfig;
use crate::data::{Part, Sources};
use crate::direct::{Network, Workspace};
use crate::error::Result;
use crate::ops;
use crate::random;
use crate::stages::course::Given;
use crate::stages::fit::Net;
use crate::stages::predictor::Predictor;
use crate::stages::shards::{self, Shard};
use crate::stages::vectors::{Rows, Vectors, masked_mean, one_hot};
use crate::stages::zoo::Zoo;
use crate::tape::{self, Learned};

/// What the batches are drawn from.
pub(super) struct Batches<'a> {
    settings: &'a VaeConfig,
    guide: Option<&'a Predictor>,
    zoo: &'a Zoo,
    sources: &'a Sources,
    vectors: &'a Vectors,
    x: Tensor,
    /// With the passes that are written out, where there are such.
    pub(super) architectures: Vec<(&'a Architecture, Option<Network>)>,
}

/// What a shard learns from in one step.
pub(super) struct Drawn {
    /// Checkpoints.
    picked: Vec<u32>,
    rows: Rows,
    /// Standardised rows `[n, length]`.
    x: Tensor,
    /// The same with noise, as the encoder sees them.
    pub(super) noisy: Tensor,
    /// What kind of row each is, where there are several.
    pub(super) index: Option<Tensor>,
    /// What latents are moved by, in their deviations; zero while it is an autoencoder.
    pub(super) noise: Tensor,
    /// Weight of the KL divergence.
    beta: f64,
}

impl<'a> Batches<'a> {
    pub(super) fn new(given: &Given<'a>, guide: Option<&'a Predictor>, device: &Device) -> Result<Self> {
        let Given { config, zoo, vectors, sources, .. } = *given;
        let length = vectors.vectorise.length;
        let whole = sources.frozen().is_none() && device.is_cpu();
        let known = |architecture| (architecture, Network::of(architecture).filter(|_| whole));
        Ok(Self {
            settings: &config.vae,
            guide,
            zoo,
            sources,
            vectors,
            x: Tensor::from_slice(&vectors.x, (vectors.x.len() / length, length), device)?,
            architectures: zoo.architectures().map(known).collect(),
        })
    }

    /// `share` of the loss of one shard, without noise and KL while it is an autoencoder, and its gradients.
    pub(super) fn learn(&self, shard: &mut Shard<Vae>, share: f64, autoencoder: bool) -> Result<Learned> {
        let drawn = self.draw(shard, autoencoder)?;
        let Shard { networks: Vae { shape, params, undo }, rng } = shard;
        let pass = Coding { shape, noise: Some(&drawn.noise) };
        let inputs: Vec<&Tensor> = std::iter::once(&drawn.noisy).chain(&drawn.index).collect();
        tape::learn(params, &pass, &inputs, share, |outputs| self.loss(&drawn, outputs, undo, rng))
    }

    /// A shard's batch.
    pub(super) fn draw(&self, shard: &mut Shard<Vae>, autoencoder: bool) -> Result<Drawn> {
        let (shape, rng, device) = (&shard.networks.shape, &mut shard.rng, self.x.device());
        let picked = shards::pick(&self.vectors.train, self.settings.batch, rng);
        let rows = self.vectors.batch(picked.iter().map(|&i| i as usize));
        let x = self.x.index_select(&Tensor::new(rows.rows.as_slice(), device)?, 0)?;
        let noise = random::normal(x.dims(), device, rng)?;
        let noisy = (&x + noise.affine(self.settings.input_noise, 0.0)?)?;
        let latents: Vec<usize> = std::iter::once(rows.rows.len()).chain(shape.latent.iter().copied()).collect();
        // Times zero, and not left out: the variance has a gradient then, if that of nothing, and its weights decay.
        let (share, beta) = if autoencoder { (0.0, 0.0) } else { (1.0, self.settings.beta) };
        let noise = random::normal(&latents, device, rng)?.affine(share, 0.0)?;
        let index = one_hot(&rows.pieces, shape.index, device)?;
        Ok(Drawn { picked, rows, x, noisy, index, noise, beta })
    }

    /// mse · squared error + β · KL + behaviour · KL of outputs + predictor · Eq. 9's term, of what [`Coding`] gives.
    pub(super) fn loss(&self, drawn: &Drawn, outputs: &[Tensor], undo: &Undo, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let (settings, device) = (self.settings, self.x.device());
        let (mean, log_variance, decoded) = (&outputs[0], bounded(&outputs[1])?, &outputs[2]);
        let checkpoints: Vec<usize> = drawn.picked.iter().map(|&i| i as usize).collect();
        let kl = kl_divergence(mean, &log_variance, there(self.vectors, &checkpoints, device)?.as_ref())?;
        let mask = self.vectors.mask(&checkpoints, device)?;
        let mse = masked_mean(&(decoded - &drawn.x)?.sqr()?, mask.as_ref())?;
        let mut loss = (mse.affine(settings.mse, 0.0)? + kl.affine(drawn.beta, 0.0)?)?;
        if let Some(guide) = self.guide.filter(|_| settings.predictor > 0.0) {
            loss = (loss + guide.guidance(&drawn.x, decoded)?.affine(settings.predictor, 0.0)?)?;
        }
        if settings.behaviour == 0.0 {
            return Ok(loss);
        }
        let rows = [&drawn.x, decoded].map(|rows| undo.rows(rows, &drawn.rows.pieces));
        let [original, decoded] = rows;
        let behaviour = self.behaviour(drawn, &original?, &decoded?, rng)?;
        Ok((loss + behaviour.affine(settings.behaviour, 0.0)?)?)
    }

    /// KL between the outputs of original and decoded networks (weights of all rows, `[rows, length]` each) on training
    /// images of each network's task, mean over networks and images.
    fn behaviour(&self, drawn: &Drawn, original: &Tensor, decoded: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let models = ((drawn.picked.len() as f64 * self.settings.behaviour_share).round() as usize).max(1);
        let mut sum: Option<Tensor> = None;
        for (index, (architecture, network)) in self.architectures.iter().enumerate() {
            let own = (0..models).filter(|&i| drawn.rows.networks[i].0 == index).collect::<Vec<_>>();
            if own.is_empty() {
                continue;
            }
            let first: Vec<u32> = own.iter().map(|&i| drawn.rows.networks[i].1).collect();
            let images = self.images(own.iter().map(|&i| drawn.picked[i]), rng)?;
            let [original, decoded] = [original, decoded].map(|rows| self.vectors.join(rows, index, &first));
            let (original, decoded) = (original?.detach(), decoded?);
            let kl = match network {
                Some(network) => direct(network, images, &original, &decoded)?,
                None => by_candle(&Net::new(architecture, self.sources.frozen()), images, &original, &decoded)?,
            };
            let kl = kl.affine(own.len() as f64 / models as f64, 0.0)?;
            sum = Some(match sum {
                Some(sum) => (sum + kl)?,
                None => kl,
            });
        }
        sum.map_or_else(|| Ok(Tensor::zeros((), candle_core::DType::F32, original.device())?), Ok)
    }

    /// Training images of each checkpoint's task.
    fn images(&self, checkpoints: impl Iterator<Item = u32>, rng: &mut ChaCha8Rng) -> Result<Vec<Vec<f32>>> {
        let of_one = |checkpoint| {
            let mut images = Vec::new();
            let task = self.sources.task(self.zoo.task(checkpoint as usize), Part::Train)?;
            task.draw(self.settings.behaviour_images, rng, &mut images);
            Ok(images)
        };
        checkpoints.map(of_one).collect()
    }
}

/// Mean over networks and images of the KL between the outputs of networks `original` and `decoded` (`[m, d]` each) on these
/// images of each.
pub(super) fn by_candle(net: &Net<'_>, images: Vec<Vec<f32>>, original: &Tensor, decoded: &Tensor) -> Result<Tensor> {
    let images = net.inputs(images.concat(), images.len(), decoded.device())?;
    let outputs = |theta: &Tensor| -> Result<Tensor> {
        Ok(candle_nn::ops::log_softmax(&net.logits(theta, &images)?, D::Minus1)?)
    };
    let (p, q) = (outputs(original)?, outputs(decoded)?);
    Ok((p.exp()? * (&p - &q)?)?.sum(D::Minus1)?.mean_all()?)
}

/// The same, network by network without a graph.
pub(super) fn direct(network: &Network, images: Vec<Vec<f32>>, original: &Tensor, decoded: &Tensor) -> Result<Tensor> {
    let (models, d) = decoded.dims2()?;
    let [p, q] = [original, decoded].map(|theta| theta.flatten_all()?.to_vec1::<f32>());
    let (p, q) = (p?, q?);
    let share = 1.0 / models.max(1) as f32;
    let pairs = p.par_chunks_exact(d.max(1)).zip(q.par_chunks_exact(d.max(1)));
    // Collected first, so that the sum's order does not depend on the threads.
    let all: Vec<(f32, Vec<f32>)> = pairs
        .zip(images)
        .map_init(Workspace::default, |workspace, ((p, q), images)| {
            workspace.x = images;
            let loss = network.divergence(p, q, workspace);
            (loss * share, workspace.grad.iter().map(|g| g * share).collect())
        })
        .collect();
    let (losses, grads): (Vec<f32>, Vec<Vec<f32>>) = all.into_iter().unzip();
    let grads = Tensor::from_vec(grads.concat(), (models, d), decoded.device())?;
    ops::known(decoded, losses.iter().sum(), grads)
}
