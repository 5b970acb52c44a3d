//! Generators whose requests have any number of classes: the head of each number, and which class rows there are.

use weights::manifest::EncoderContract;

use super::Generator;
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

impl Generator {
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
