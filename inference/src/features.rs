//! The dataset encoder's input: n examples of each class, in the order of the head's rows.

use datasets::{Dataset, sample_per_class};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use weights::Manifest;
use weights::manifest::Modality;

use crate::error::{Error, Result, check_finite};
use crate::extractor::Extractor;
use crate::generator::classes::check_classes as check_number;

/// Indices `[classes × images_per_class]` of `images_per_class` examples of each of `classes`.
///
/// The examples of a class depend on the seed and on the class alone, so another order of the classes gives the
/// same blocks in that order.
pub(crate) fn choose(manifest: &Manifest, dataset: &Dataset, classes: &[u32], seed: u64) -> Result<Vec<usize>> {
    check(manifest, dataset, classes)?;
    let all: Vec<usize> = (0..dataset.len()).collect();
    let lists = dataset.class_indices(&all);
    let mut chosen = Vec::with_capacity(classes.len() * manifest.encoder.images_per_class);
    for &class in classes {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(class));
        chosen.extend(sample_per_class(&lists, &[class], manifest.encoder.images_per_class, &mut rng)?);
    }
    Ok(chosen)
}

/// Features `[indices.len() × feature_dim]` of examples: by the extractor when there is one and they are images.
pub(crate) fn gather(extractor: Option<&Extractor>, dataset: &Dataset, indices: &[usize]) -> Result<Vec<f32>> {
    let features = match extractor {
        Some(extractor) if dataset.modality() == datasets::Modality::Image => extractor.features(dataset, indices)?,
        _ => dataset.gather(indices),
    };
    check_finite("the dataset's features", &features)?;
    Ok(features)
}

fn check(manifest: &Manifest, dataset: &Dataset, classes: &[u32]) -> Result<()> {
    check_examples(manifest, dataset)?;
    check_number(&manifest.encoder, classes.len())?;
    check_classes(dataset, classes)
}

/// Checks kind and shape of the examples. Where the networks take features, images of any size and ready features do.
fn check_examples(manifest: &Manifest, dataset: &Dataset) -> Result<()> {
    let encoder = &manifest.encoder;
    let behind = manifest.extractor.as_ref().is_some_and(|used| used.networks);
    if behind && (dataset.shape == [encoder.feature_dim] || dataset.modality() == datasets::Modality::Image) {
        return Ok(());
    }
    let same_kind = matches!(
        (manifest.modality, dataset.modality()),
        (Modality::Image, datasets::Modality::Image) | (Modality::Features, datasets::Modality::Features)
    );
    if !same_kind {
        let (found, expected) = (dataset.modality().to_string(), manifest.modality.to_string());
        return Err(Error::ModalityMismatch { found, expected });
    }
    if dataset.shape != encoder.input_shape {
        return Err(Error::ShapeMismatch {
            found: dataset.shape.clone(),
            needs: "this generator",
            expected: encoder.input_shape.clone(),
        });
    }
    Ok(())
}

fn check_classes(dataset: &Dataset, classes: &[u32]) -> Result<()> {
    let mut counts = vec![0usize; dataset.classes()];
    for &label in &dataset.labels {
        counts.get_mut(label as usize).into_iter().for_each(|count| *count += 1);
    }
    let mut named = vec![false; dataset.classes()];
    for &class in classes {
        let (Some(name), Some(named), Some(&count)) =
            (dataset.class_names.get(class as usize), named.get_mut(class as usize), counts.get(class as usize))
        else {
            let known = format!("0 to {}", dataset.classes().saturating_sub(1));
            return Err(datasets::Error::UnknownClass { class: class.to_string(), known }.into());
        };
        if std::mem::replace(named, true) {
            return Err(datasets::Error::DuplicateClass(name.clone()).into());
        }
        if count == 0 {
            return Err(datasets::Error::ClassWithoutImages(name.clone()).into());
        }
    }
    Ok(())
}
