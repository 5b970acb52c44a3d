//! Adapters generated for a described task (paper 4.3): learned from a zoo of adapters, each conditioned on an embedding of
//! its task's description.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use training::export::Probe;
use training::progress::Progress;
use training::random;
use training::stages::rows::{Conditions, Rows, RowsConfig, Source};
use weights::manifest::{
    ArchitectureEntry, DescribedTask, EncoderContract, Latent, Modality, Pooling, Precision, TEXT, TextContract, files,
};
use weights::vectorise::Vectorise;
use weights::{Architecture, Bundle, Lora, Manifest, Standardisation, StandardiseMode};

use crate::error::{Error, Result};
use crate::text::distance;

/// Deviations below this share of their mean are that: a value that never changes is not blown up.
const FLOOR: f32 = 0.1;

/// An adapter of a zoo, and the embeddings of descriptions of its task.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    /// Its values.
    pub theta: &'a [f32],
    /// One or more embeddings.
    pub descriptions: &'a [Vec<f32>],
}

/// A generator of adapters.
#[derive(Debug)]
pub struct Adapters {
    lora: Lora,
    rows: Rows,
    config: RowsConfig,
    /// Values of a description's embedding.
    dim: usize,
    standardisation: Standardisation,
}

/// What a bundle says beside the networks.
#[derive(Debug, Clone)]
pub struct About<'a> {
    /// Suggested name.
    pub name: &'a str,
    /// One sentence for people.
    pub description: &'a str,
    /// The tasks of the zoo, with what they were learned with.
    pub tasks: Vec<DescribedTask>,
    /// What embeddings are.
    pub pooling: Pooling,
    /// Embeddings of each task's descriptions.
    pub embeddings: &'a [Vec<Vec<f32>>],
    /// The directory of the text encoder.
    pub encoder: &'a Path,
    /// Configuration, seeds, digests.
    pub training: serde_json::Value,
    /// What was measured.
    pub metrics: serde_json::Value,
}

/// Every adapter with each of its descriptions.
struct Pairs<'a> {
    members: &'a [Member<'a>],
    /// Which member each row is of.
    owner: Vec<usize>,
    mean: &'a [f32],
    std: &'a [f32],
}

impl Source for Pairs<'_> {
    fn rows(&self, picked: &[u32]) -> training::Result<Tensor> {
        let mut rows = Vec::with_capacity(picked.len() * self.mean.len());
        for &number in picked {
            let theta = self.members[self.owner[number as usize]].theta;
            rows.extend(theta.iter().zip(self.mean).zip(self.std).map(|((v, mean), std)| (v - mean) / std));
        }
        Ok(Tensor::from_vec(rows, (picked.len(), self.mean.len()), &Device::Cpu)?)
    }
}

impl Adapters {
    /// Learns a zoo of adapters of one layout.
    ///
    /// # Errors
    /// [`Error::Text`] when there are fewer than two, or values or embeddings are not of one length; those of training.
    pub fn learn(members: &[Member<'_>], lora: &Lora, config: &RowsConfig, progress: &Progress) -> Result<Self> {
        let parameters = lora.layout().parameters();
        let dim = members.first().and_then(|m| m.descriptions.first()).map_or(0, Vec::len);
        let fits = |m: &Member<'_>| {
            m.theta.len() == parameters
                && !m.descriptions.is_empty()
                && m.descriptions.iter().all(|d| d.len() == dim && dim > 0)
        };
        if members.len() < 2 || !members.iter().all(fits) {
            let text = "a generator of adapters learns from two or more, with as many values as their layout has and \
                        descriptions that one encoder embedded";
            return Err(Error::Text(text.into()));
        }
        let (mean, std) = moments(members, parameters);
        let owner: Vec<usize> =
            members.iter().enumerate().flat_map(|(i, m)| std::iter::repeat_n(i, m.descriptions.len())).collect();
        let embeddings: Vec<f32> = members.iter().flat_map(|m| m.descriptions).flatten().copied().collect();
        let values = Tensor::from_vec(embeddings, (owner.len(), dim), &Device::Cpu).map_err(training::Error::Tensor)?;
        let mut rows = Rows::new(config, parameters, 0, dim);
        let source = Pairs { members, owner, mean: &mean, std: &std };
        let stages = ("adapters: vae", "adapters: denoiser");
        rows.learn(&source, &Conditions { kinds: None, values }, stages, progress)?;
        let standardisation = Standardisation { mean, std, variances: Vec::new() };
        Ok(Self { lora: lora.clone(), rows, config: config.clone(), dim, standardisation })
    }

    /// What adapters change, and how.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// `n` adapters for the embedding of a description.
    ///
    /// # Errors
    /// [`Error::Text`] when the embedding is of another length.
    pub fn sample(&self, description: &[f32], n: usize, seed: u64) -> Result<Vec<Vec<f32>>> {
        if description.len() != self.dim {
            let (found, dim) = (description.len(), self.dim);
            return Err(Error::Text(format!("the embedding has {found} values; the generator's encoder gives {dim}")));
        }
        let tensor = |result: candle_core::Result<Tensor>| result.map_err(training::Error::Tensor);
        let noise = random::normal(&[n, self.config.latent], &Device::Cpu, &mut random::stream(seed, "adapters"))?;
        let condition = tensor(Tensor::new(description, &Device::Cpu).and_then(|t| t.unsqueeze(0)?.repeat((n, 1))))?;
        let z = self.rows.sample(&noise, &condition)?;
        let rows = self.rows.decode(&z, None)?.to_vec2::<f32>().map_err(training::Error::Tensor)?;
        let back = |row: Vec<f32>| -> Result<Vec<f32>> {
            let mut theta = row;
            self.standardisation.invert(&mut theta)?;
            weights::error::check_finite("the generated adapter", &theta)?;
            Ok(theta)
        };
        rows.into_iter().map(back).collect()
    }

    /// The bundle that a registry publishes: the graphs, and the text encoder that embeds descriptions.
    ///
    /// # Errors
    /// [`Error::Io`] when a file of the encoder cannot be read; [`Error::Weights`] when parts do not belong together.
    pub fn bundle(&self, about: &About<'_>) -> Result<Bundle> {
        let mut all = self.rows.graphs()?;
        all.insert(files::STANDARDISATION.into(), self.standardisation.to_safetensors());
        for name in files::TEXT {
            let path = about.encoder.join(name.trim_start_matches("text/"));
            all.insert(name.into(), std::fs::read(&path).map_err(Error::io(&path))?);
        }
        let config = Architecture::Lora(self.lora.clone());
        let layout = config.layout();
        let architectures = vec![ArchitectureEntry {
            name: config.name(),
            parameters: layout.parameters(),
            forward: String::new(),
            generated: Vec::new(),
            layout,
            config,
        }];
        let vectorise = Vectorise::model_wise(&[architectures[0].parameters]);
        let manifest = Manifest {
            format: Manifest::format_of(&vectorise, &architectures),
            name: about.name.into(),
            description: about.description.into(),
            modality: Modality::Text,
            architectures,
            vectorise,
            standardise: StandardiseMode::Parameter,
            latent: Latent { shape: vec![self.config.latent], scale: self.rows.scale() as f32 },
            schedule: self.rows.schedule().clone(),
            encoder: EncoderContract {
                extractor: TEXT.into(),
                input_shape: vec![self.dim],
                feature_dim: self.dim,
                classes: 1,
                min_classes: None,
                images_per_class: 1,
                embedding_dim: self.dim,
                condition_dim: self.dim,
                known_classes: None,
            },
            extractor: None,
            text: Some(TextContract {
                pooling: about.pooling,
                tasks: about.tasks.clone(),
                unit: spread(about.embeddings),
            }),
            predictor: None,
            quality: None,
            guidance: false,
            precision: Precision::Single,
            training: about.training.clone(),
            metrics: about.metrics.clone(),
            files: BTreeMap::new(),
        };
        Ok(Bundle::new(manifest, all)?)
    }

    /// Inputs of the graphs, with the outputs that candle gives for them.
    ///
    /// # Errors
    /// Those of tensors.
    pub fn probes(&self) -> Result<Vec<Probe>> {
        Ok(self.rows.probes()?)
    }
}

/// Mean distance of a description to the nearest other one of its task; 1 where tasks have one each.
fn spread(tasks: &[Vec<Vec<f32>>]) -> f32 {
    let nearest = |of: &[Vec<f32>], i: usize| {
        let others = of.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, other)| distance(&of[i], other));
        others.min_by(f32::total_cmp)
    };
    let all: Vec<f32> = tasks.iter().flat_map(|of| (0..of.len()).filter_map(|i| nearest(of, i))).collect();
    match all.len() {
        0 => 1.0,
        n => (all.iter().sum::<f32>() / n as f32).max(1e-3),
    }
}

/// Mean and deviation of each value over the zoo.
fn moments(members: &[Member<'_>], n: usize) -> (Vec<f32>, Vec<f32>) {
    let count = members.len() as f32;
    let mut mean = vec![0f32; n];
    members.iter().for_each(|m| mean.iter_mut().zip(m.theta).for_each(|(sum, v)| *sum += v / count));
    let mut std = vec![0f32; n];
    for member in members {
        let apart = member.theta.iter().zip(&mean).map(|(v, mean)| (v - mean).powi(2) / count);
        std.iter_mut().zip(apart).for_each(|(sum, v)| *sum += v);
    }
    std.iter_mut().for_each(|v| *v = v.sqrt());
    let floor = (FLOOR * std.iter().sum::<f32>() / n.max(1) as f32).max(1e-6);
    std.iter_mut().for_each(|v| *v = v.max(floor));
    (mean, std)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use weights::LoraModule;

    use super::*;

    fn config() -> RowsConfig {
        RowsConfig {
            hidden: 0,
            latent: 6,
            beta: 1e-3,
            kl_from: 0.5,
            vae_steps: 300,
            width: 48,
            blocks: 2,
            diffusion_steps: 400,
            batch: 32,
            lr: 3e-3,
            sampling_steps: 10,
            seed: 0,
        }
    }

    /// Two tasks whose adapters are around a centre each, and two descriptions a task.
    #[test]
    fn what_is_described_is_generated() {
        let lora = Lora {
            base: "base".into(),
            rank: 1,
            alpha: 2,
            targets: vec!["query".into()],
            layers: Vec::new(),
            modules: vec![LoraModule { name: "bert.query".into(), inputs: 5, outputs: 4 }],
            hidden: 3,
            classes: 2,
        };
        let n = lora.layout().parameters();
        let mut rng = random::stream(1, "test");
        let centres: Vec<Vec<f32>> = (0..2).map(|_| random::normal_vec(n, &mut rng)).collect();
        let descriptions: Vec<Vec<Vec<f32>>> =
            (0..2).map(|t| (0..2).map(|d| vec![1.0 - t as f32, t as f32, 0.1 * d as f32]).collect()).collect();
        let zoo: Vec<(usize, Vec<f32>)> = (0..24)
            .map(|i| {
                let noise = random::normal_vec(n, &mut rng);
                (i % 2, centres[i % 2].iter().zip(noise).map(|(c, n)| c + 0.1 * n).collect())
            })
            .collect();
        let members: Vec<Member<'_>> =
            zoo.iter().map(|(t, theta)| Member { theta, descriptions: &descriptions[*t] }).collect();
        let adapters = Adapters::learn(&members, &lora, &config(), &Progress::silent()).unwrap();
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        for task in 0..2 {
            // Between the descriptions that it was told.
            let near = [1.0 - task as f32, task as f32, 0.05];
            for theta in adapters.sample(&near, 3, 7).unwrap() {
                let (own, other) = (apart(&theta, &centres[task]), apart(&theta, &centres[1 - task]));
                assert!(own < 0.35 * other, "{own} from its own, {other} from the other");
            }
        }
        assert!(adapters.sample(&[1.0, 0.0], 1, 0).unwrap_err().to_string().contains("2 values"));
        let error = Adapters::learn(&members[..1], &lora, &config(), &Progress::silent()).unwrap_err();
        assert!(error.to_string().contains("two or more"), "{error}");
    }
}
