//! The spectra of all matrices of a model's blocks, one matrix in memory at a time (paper 3.5, A.3).

use std::collections::BTreeSet;

use serde::Serialize;
use training::progress::Progress;
use weights::spectrum::{Spectrum, select};

use crate::error::{Error, Result};
use crate::model::{Matrix, Model};

/// A matrix and its spectrum.
#[derive(Debug, Clone, Serialize)]
pub struct Layer {
    /// The matrix.
    #[serde(flatten)]
    pub matrix: Matrix,
    /// Its spectrum.
    pub spectrum: Spectrum,
    /// Whether its SNR is among the highest of its group.
    pub selected: bool,
}

/// Spectra of all matrices of the model's blocks; selected are the `top` share of each group with the highest SNR, at
/// least one.
///
/// # Errors
/// [`Error::Model`] when there is no such matrix, or `top` is no share; [`Error::Weights`] names a matrix of zeros or
/// with values that are not finite; those of reading.
pub fn spectra(model: &Model, top: f64, progress: &Progress) -> Result<Vec<Layer>> {
    if !(top > 0.0 && top <= 1.0) {
        return Err(Error::model(model.dir(), format!("the top share must be above 0 and at most 1, not {top}")));
    }
    let matrices = model.matrices();
    if matrices.is_empty() {
        let text = "it has no matrix in a numbered block, as model.layers.0.self_attn.q_proj.weight is one";
        return Err(Error::model(model.dir(), text));
    }
    let stage = progress.stage("spectrum", matrices.len(), 0);
    let mut layers = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let values = model.tensor(&matrix.name)?;
        let spectrum = Spectrum::of(&values, matrix.rows, matrix.cols);
        let spectrum = spectrum.map_err(|e| Error::model(model.dir(), format!("{}: {e}", matrix.name)))?;
        layers.push(Layer { matrix, spectrum, selected: false });
        stage.advance(1)?;
    }
    stage.finish();
    let chosen: BTreeSet<usize> =
        select(layers.iter().map(|l| (l.matrix.group.as_str(), &l.spectrum)), top).into_iter().collect();
    layers.iter_mut().enumerate().for_each(|(i, layer)| layer.selected = chosen.contains(&i));
    Ok(layers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::model::tests::{sharded, tensors, write};

    #[test]
    fn each_group_has_one_selected_and_zeros_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let model = sharded(folder.path());
        let layers = spectra(&model, 0.25, &Progress::silent()).unwrap();
        let names: Vec<(&str, bool)> = layers.iter().map(|l| (l.matrix.name.as_str(), l.selected)).collect();
        let [q0, up, q1] = names.as_slice() else { panic!("{names:?}") };
        assert!(up.1 && (q0.1 != q1.1), "{names:?}");
        assert!(spectra(&model, 0.0, &Progress::silent()).unwrap_err().to_string().contains("share"));
        let mut all = tensors();
        all[3].2.fill(0.0);
        let dir = folder.path().join("zeros");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("config.json"), "{}").unwrap();
        write(&dir.join("model.safetensors"), &all);
        let error = spectra(&Model::open(&dir).unwrap(), 0.25, &Progress::silent()).unwrap_err().to_string();
        assert!(error.contains("model.layers.1.self_attn.q_proj.weight") && error.contains("zero"), "{error}");
    }
}
