//! Networks as the bundle's graphs take them: in canonical form, cut into standardised rows; through the VAE's encoder and
//! the accuracy predictor.

use weights::manifest::PredictorContract;
use weights::{Manifest, StandardiseMode};

use super::{BATCH, Embedding, Generator};
use crate::contract::{Slot, batch_view, check, output};
use crate::error::{Error, Result, check_finite, check_length};
use crate::pool::SessionPool;

/// Sweeps over a network's layers when it is brought into canonical form.
const SWEEPS: usize = 4;

impl Generator {
    /// Accuracies that the bundle's predictor expects of flat weights (`[d]` each) in canonical form for a dataset, held
    /// inside 0 to 1; `None` where it has no predictor.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`] or [`Error::Graph`].
    pub fn predict(&self, weights: &[Vec<f32>], embedding: &Embedding) -> Result<Option<Vec<f64>>> {
        let (Some(pool), Some(contract)) = (&self.predictor, self.manifest.predictor) else { return Ok(None) };
        let (length, wide) = (self.manifest.vectorise.length, self.manifest.encoder.embedding_dim);
        check_length("the dataset embedding's values", embedding.dataset.len(), wide)?;
        let mut found = Vec::with_capacity(weights.len());
        for batch in weights.chunks(BATCH) {
            let rows = self.standardised(batch)?;
            let datasets = embedding.dataset.repeat(batch.len());
            let mut inputs = vec![("weights", batch_view(pool, batch.len(), &[length], &rows)?.into())];
            if contract.dataset {
                inputs.push(("dataset", batch_view(pool, batch.len(), &[wide], &datasets)?.into()));
            }
            let mut lease = pool.lease()?;
            let outputs = lease.run(inputs)?;
            let accuracies = output(pool, &outputs, "accuracy", batch.len())?;
            check_finite("the predicted accuracies", accuracies)?;
            found.extend(accuracies.iter().map(|&a| f64::from(a).clamp(0.0, 1.0)));
        }
        Ok(Some(found))
    }

    /// Weights (`[d]`) of the same function with their hidden units in the order that the generator learned, where its
    /// standardisation says which that is.
    ///
    /// # Errors
    /// [`Error::Length`].
    pub fn canonical(&self, theta: &[f32]) -> Result<Vec<f32>> {
        let (entry, mut theta) = (self.architecture(), theta.to_vec());
        let (d, groups) = (entry.parameters, entry.config.hidden_groups());
        check_length("the weights", theta.len(), d)?;
        // Standardised per weight, the middle is that of the aligned zoo. Constants around a part fix the order.
        if self.target().part.is_none() && self.manifest.standardise == StandardiseMode::Parameter && !groups.is_empty()
        {
            let mean = self.manifest.vectorise.join(self.chosen, &self.target().standardisation.centre(), d)?;
            weights::canonical::align(&mut theta, &mean, &entry.layout, &groups, SWEEPS)?;
        }
        Ok(theta)
    }

    /// Standardised rows (`[n · rows × length]`) of flat weights.
    fn standardised(&self, weights: &[Vec<f32>]) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(weights.len() * self.rows() * self.manifest.vectorise.length);
        for theta in weights {
            check_length("the weights", theta.len(), self.architecture().parameters)?;
            check_finite("the weights", theta)?;
            rows.extend(match &self.target().part {
                Some(part) => self.manifest.vectorise.cut(self.chosen, &part.take(theta)?, 0.0)?,
                None => self.manifest.vectorise.cut(self.chosen, theta, 0.0)?,
            });
        }
        self.target().standardisation.apply(&mut rows)?;
        Ok(rows)
    }

    /// Means of the VAE's posterior (`[rows × latent]` each) for flat weights (`[d]` each) in canonical form:
    /// [`Self::decode`] of them is the VAE's reconstruction.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`] or [`Error::Graph`].
    pub fn encode_weights(&self, weights: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let (dim, length) = (self.manifest.latent.dim(), self.manifest.vectorise.length);
        let per_network = self.rows();
        let mut latents = Vec::with_capacity(weights.len());
        for batch in weights.chunks((BATCH / per_network).max(1)) {
            let count = batch.len() * per_network;
            let rows = self.standardised(batch)?;
            let input = batch_view(&self.vae_encoder, count, &[length], &rows)?;
            let mut inputs = vec![("weights", input.into())];
            let index = self.index(batch.len());
            if !index.is_empty() {
                let kinds = self.manifest.vectorise.index_dim();
                inputs.push(("index", batch_view(&self.vae_encoder, count, &[kinds], &index)?.into()));
            }
            let mut lease = self.vae_encoder.lease()?;
            let outputs = lease.run(inputs)?;
            let means = output(&self.vae_encoder, &outputs, "mean", count * dim)?;
            check_finite("the latents", means)?;
            latents.extend(means.chunks_exact(per_network * dim).map(<[f32]>::to_vec));
        }
        Ok(latents)
    }
}

/// Checks the predictor's graph.
pub(super) fn check_predictor(manifest: &Manifest, pool: &SessionPool, contract: PredictorContract) -> Result<()> {
    if manifest.vectorise.index_dim() > 0 {
        let text = "it has a predictor, which takes networks as one row each, and several kinds of rows";
        return Err(Error::Bundle(text.into()));
    }
    let mut inputs = vec![Slot::batch("weights", &[manifest.vectorise.length])];
    if contract.dataset {
        inputs.push(Slot::batch("dataset", &[manifest.encoder.embedding_dim]));
    }
    check(pool, &inputs, &[Slot::batch("accuracy", &[1])])
}
