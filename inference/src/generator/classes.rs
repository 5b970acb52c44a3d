//! Classes of requests: how far they are from the zoo's; and generators for any number of them: the head of each number,
//! and which class rows there are.

use weights::manifest::{EncoderContract, KnownClasses};
use weights::{Bundle, novelty};

use super::{Embedding, Generator};
use crate::error::{Error, Result};

/// Refuses a number of classes that the generator does not take.
pub(crate) fn check_classes(encoder: &EncoderContract, found: usize) -> Result<()> {
    match encoder.min_classes {
        Some(least) if !(least..=encoder.classes).contains(&found) => {
            Err(Error::ClassesOutside { found, least, most: encoder.classes })
        }
        None if found != encoder.classes => {
            Err(Error::ClassesMismatch { found, needs: "this generator", expected: encoder.classes })
        }
        _ => Ok(()),
    }
}

/// Class tokens of the zoo's classes.
#[derive(Debug)]
pub(super) struct Known {
    contract: KnownClasses,
    /// `[tokens × dim]`.
    tokens: Vec<f32>,
}

/// How far a dataset is from the zoo, by its classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Familiarity {
    /// Of each class, in class order: the distance of its token (z_s, paper 3.3) to the nearest of those of the zoo's tasks, in
    /// units of what other images of those very classes have. About 1 is like one of them.
    pub distances: Vec<f64>,
    /// Whether their mean is within that of 95 % of the zoo's own datasets.
    pub near: bool,
}

impl Known {
    /// Those of a bundle, if it has them.
    ///
    /// # Errors
    /// [`Error::Weights`] when the file does not fit the manifest.
    pub(super) fn of(bundle: &Bundle) -> Result<Option<Self>> {
        Ok(bundle.known_classes()?.map(|(contract, tokens)| Self { contract, tokens }))
    }

    /// Distance of a token to the nearest, in units.
    fn distance(&self, token: &[f32]) -> f64 {
        let nearest = novelty::nearest(token, &self.tokens, self.contract.dim, None);
        nearest.map_or(f64::INFINITY, |(_, distance)| distance) / f64::from(self.contract.unit)
    }
}

impl Generator {
    /// How far a dataset is from the zoo, by its classes. None where the bundle does not know: bundles of earlier versions, and
    /// encoders without class tokens.
    pub fn familiarity(&self, embedding: &Embedding) -> Option<Familiarity> {
        let known = self.known.as_ref()?;
        let tokens = embedding.condition.get(self.manifest.encoder.embedding_dim..)?;
        let tokens = tokens.chunks_exact(known.contract.dim).take(embedding.classes);
        let distances: Vec<f64> = tokens.map(|token| known.distance(token)).collect();
        let mean = distances.iter().sum::<f64>() / distances.len().max(1) as f64;
        Some(Familiarity { near: mean <= f64::from(known.contract.near), distances })
    }

    /// The same generator, for requests of this number of classes: of a generator for any number it chooses the head. It
    /// shares the graphs.
    ///
    /// # Errors
    /// [`Error::ClassesOutside`] with the numbers that there are, or [`Error::ClassesMismatch`].
    pub fn for_classes(&self, classes: usize) -> Result<Self> {
        let encoder = &self.manifest.encoder;
        check_classes(encoder, classes)?;
        let chosen = encoder.min_classes.map_or(self.chosen, |least| classes - least);
        Ok(Self { chosen, ..self.clone() })
    }

    /// Number of classes of the architecture that is generated.
    pub fn classes(&self) -> usize {
        self.architecture().config.classes()
    }

    /// Whether requests have any number of classes.
    pub fn any_number(&self) -> bool {
        self.manifest.encoder.min_classes.is_some()
    }

    /// Of each class row whether a dataset of so many classes has it, 1 or 0, `[most classes]`; empty where the number is
    /// one and the same.
    pub(super) fn presence(&self, classes: usize) -> Vec<f32> {
        let most = if self.any_number() { self.manifest.encoder.classes } else { 0 };
        (0..most).map(|class| f32::from(u8::from(class < classes))).collect()
    }

    /// Values at the beginning of a latent (`[rows × latent]`) that the network depends on: those of its class rows.
    pub(crate) fn live_latents(&self) -> usize {
        let (dim, most) = (self.manifest.latent.dim(), self.manifest.encoder.classes);
        if self.any_number() { dim / most * self.classes() } else { self.rows() * dim }
    }

    /// Number of classes of features `[classes, images_per_class, feature_dim]`.
    pub(super) fn classes_of(&self, features: &[f32]) -> Result<usize> {
        let encoder = &self.manifest.encoder;
        let class = encoder.images_per_class * encoder.feature_dim;
        let found = if self.any_number() { features.len() / class } else { encoder.classes };
        crate::error::check_length("the features", features.len(), found * class)?;
        check_classes(encoder, found)?;
        Ok(found)
    }
}
