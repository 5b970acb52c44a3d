//! Adapters generated for a described task (paper 4.3): learned from a zoo of adapters, each conditioned on an embedding of
//! its task's description.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use training::progress::Progress;
use training::random;
use training::stages::rows::{Conditions, Rows, RowsConfig, Source};
use weights::{Layout, tensors};

use crate::error::{Error, Result};
use crate::lora::LoraConfig;
use crate::rewrite::write_whole;

const KEY: &str = "weightsmith.adapters";
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
    head: Head,
    layout: Layout,
    rows: Rows,
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// What is kept beside the parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    config: RowsConfig,
    lora: LoraConfig,
    /// Classes of the classifier.
    classes: usize,
    /// Values of a description's embedding.
    dim: usize,
    /// Names and shapes.
    layout: Vec<(String, Vec<usize>)>,
    scale: f64,
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
    pub fn learn(
        members: &[Member<'_>],
        (layout, lora, classes): (&Layout, &LoraConfig, usize),
        config: &RowsConfig,
        progress: &Progress,
    ) -> Result<Self> {
        let dim = members.first().and_then(|m| m.descriptions.first()).map_or(0, Vec::len);
        let fits = |m: &Member<'_>| {
            m.theta.len() == layout.parameters()
                && !m.descriptions.is_empty()
                && m.descriptions.iter().all(|d| d.len() == dim && dim > 0)
        };
        if members.len() < 2 || !members.iter().all(fits) {
            let text = "a generator of adapters learns from two or more, with as many values as their layout has and \
                        descriptions that one encoder embedded";
            return Err(Error::Text(text.into()));
        }
        let (mean, std) = moments(members, layout.parameters());
        let owner: Vec<usize> =
            members.iter().enumerate().flat_map(|(i, m)| std::iter::repeat_n(i, m.descriptions.len())).collect();
        let embeddings: Vec<f32> = members.iter().flat_map(|m| m.descriptions).flatten().copied().collect();
        let values = Tensor::from_vec(embeddings, (owner.len(), dim), &Device::Cpu).map_err(training::Error::Tensor)?;
        let mut rows = Rows::new(config, layout.parameters(), 0, dim);
        let source = Pairs { members, owner, mean: &mean, std: &std };
        let stages = ("adapters: vae", "adapters: denoiser");
        rows.learn(&source, &Conditions { kinds: None, values }, stages, progress)?;
        let names = layout.params.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
        let head =
            Head { config: config.clone(), lora: lora.clone(), classes, dim, layout: names, scale: rows.scale() };
        Ok(Self { head, layout: layout.clone(), rows, mean, std })
    }

    /// Names and shapes of an adapter's values.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What adapters change, and how.
    pub fn lora(&self) -> &LoraConfig {
        &self.head.lora
    }

    /// Classes of their classifier.
    pub fn classes(&self) -> usize {
        self.head.classes
    }

    /// `n` adapters for the embedding of a description.
    ///
    /// # Errors
    /// [`Error::Text`] when the embedding is of another length.
    pub fn sample(&self, description: &[f32], n: usize, seed: u64) -> Result<Vec<Vec<f32>>> {
        if description.len() != self.head.dim {
            let (found, dim) = (description.len(), self.head.dim);
            return Err(Error::Text(format!("the embedding has {found} values; the generator's encoder gives {dim}")));
        }
        let tensor = |result: candle_core::Result<Tensor>| result.map_err(training::Error::Tensor);
        let noise = random::normal(&[n, self.head.config.latent], &Device::Cpu, &mut random::stream(seed, "adapters"))?;
        let condition = tensor(Tensor::new(description, &Device::Cpu).and_then(|t| t.unsqueeze(0)?.repeat((n, 1))))?;
        let z = self.rows.sample(&noise, &condition)?;
        let rows = self.rows.decode(&z, None)?.to_vec2::<f32>().map_err(training::Error::Tensor)?;
        let back = |row: Vec<f32>| -> Result<Vec<f32>> {
            let theta: Vec<f32> =
                row.into_iter().zip(&self.std).zip(&self.mean).map(|((v, std), mean)| v * std + mean).collect();
            weights::error::check_finite("the generated adapter", &theta)?;
            Ok(theta)
        };
        rows.into_iter().map(back).collect()
    }

    /// Writes it as one file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut all = self.rows.parameters()?;
        all.push(("mean".into(), vec![self.mean.len()], self.mean.clone()));
        all.push(("std".into(), vec![self.std.len()], self.std.clone()));
        let list: Vec<(&str, &[usize], &[f32])> =
            all.iter().map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice())).collect();
        let head = serde_json::to_string(&self.head).map_err(|e| Error::Text(e.to_string()))?;
        write_whole(path, &tensors::named_to_safetensors(&list, &[(KEY.to_owned(), head)].into()))
    }

    /// Reads what [`Adapters::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Model`] when it is no such file.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let invalid = |reason: String| Error::model(path, format!("it is no generator of adapters: {reason}"));
        let metadata = tensors::metadata(&bytes).map_err(|e| invalid(e.to_string()))?;
        let head = metadata.get(KEY).ok_or_else(|| invalid(format!("its metadata has no {KEY}")))?;
        let head: Head = serde_json::from_str(head).map_err(|e| invalid(e.to_string()))?;
        head.config.check()?;
        let layout = Layout::new(head.layout.clone());
        let of = |name: &str| -> Result<Vec<f32>> {
            let (shape, values) = tensors::named_from_safetensors(&bytes, name)?;
            weights::error::check_finite(name, &values)?;
            match shape == [layout.parameters()] {
                true => Ok(values),
                false => {
                    Err(invalid(format!("{name} has {} values, its layout {}", values.len(), layout.parameters())))
                }
            }
        };
        let (mean, std) = (of("mean")?, of("std")?);
        let mut rows = Rows::new(&head.config, layout.parameters(), 0, head.dim);
        rows.restore(&bytes, head.scale)?;
        Ok(Self { head, layout, rows, mean, std })
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
        let layout = Layout::new([("a", vec![4, 5]), ("b", vec![3])]);
        let mut rng = random::stream(1, "test");
        let centres: Vec<Vec<f32>> = (0..2).map(|_| random::normal_vec(23, &mut rng)).collect();
        let descriptions: Vec<Vec<Vec<f32>>> =
            (0..2).map(|t| (0..2).map(|d| vec![1.0 - t as f32, t as f32, 0.1 * d as f32]).collect()).collect();
        let zoo: Vec<(usize, Vec<f32>)> = (0..24)
            .map(|i| {
                let noise = random::normal_vec(23, &mut rng);
                (i % 2, centres[i % 2].iter().zip(noise).map(|(c, n)| c + 0.1 * n).collect())
            })
            .collect();
        let members: Vec<Member<'_>> =
            zoo.iter().map(|(t, theta)| Member { theta, descriptions: &descriptions[*t] }).collect();
        let lora = LoraConfig::default();
        let adapters = Adapters::learn(&members, (&layout, &lora, 3), &config(), &Progress::silent()).unwrap();
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        for task in 0..2 {
            // Between the descriptions that it was told.
            let near = [1.0 - task as f32, task as f32, 0.05];
            for theta in adapters.sample(&near, 3, 7).unwrap() {
                let (own, other) = (apart(&theta, &centres[task]), apart(&theta, &centres[1 - task]));
                assert!(own < 0.35 * other, "{own} from its own, {other} from the other");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapters.safetensors");
        adapters.save(&path).unwrap();
        let again = Adapters::open(&path).unwrap();
        let near = [1.0, 0.0, 0.0];
        assert_eq!(again.sample(&near, 2, 9).unwrap(), adapters.sample(&near, 2, 9).unwrap());
        assert_eq!((again.lora(), again.classes()), (&lora, 3));
        assert!(again.sample(&near[1..], 1, 0).unwrap_err().to_string().contains("2 values"));
        let error = Adapters::learn(&members[..1], (&layout, &lora, 3), &config(), &Progress::silent()).unwrap_err();
        assert!(error.to_string().contains("two or more"), "{error}");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(Adapters::open(&path).unwrap_err().to_string().contains("no generator of adapters"));
    }
}
