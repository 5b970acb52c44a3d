//! The forward graph of an architecture, with weights as inputs: accuracy and loss of any weights.

use std::sync::Arc;

use datasets::Dataset;
use ort::session::SessionInputValue;
use ort::value::TensorRef;
use serde::Serialize;
use weights::Layout;

use crate::contract::{Slot, batch_view, check, output, parameters};
use crate::error::{Error, Result, check_finite, check_length};
use crate::pool::{Lease, SessionPool, Use};
use crate::runtime::Runtime;

/// Examples in one run of the graph.
const BATCH: usize = 512;

/// How well a network classifies a dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Share of examples whose largest logit is the label's, 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Number of examples.
    pub examples: usize,
    /// Predicted class of each example, in the dataset's order.
    pub predictions: Vec<u32>,
}

/// An architecture's forward graph.
#[derive(Debug)]
pub struct Forward {
    pool: Arc<SessionPool>,
    layout: Layout,
    input_shape: Vec<usize>,
    classes: usize,
}

impl Forward {
    /// From the graph's bytes; `input_shape` is that of one input, as in `Architecture::input_shape`.
    ///
    /// # Errors
    /// [`Error::Bundle`] when the graph does not take the layout's parameters and `input [batch, …]`, or does not
    /// give `logits [batch, classes]`.
    pub fn from_onnx(runtime: &Runtime, bytes: &[u8], layout: &Layout, input_shape: &[usize]) -> Result<Self> {
        Self::load(runtime, "the forward graph", bytes, layout, input_shape)
    }

    pub(crate) fn load(
        runtime: &Runtime,
        name: &str,
        bytes: &[u8],
        layout: &Layout,
        input_shape: &[usize],
    ) -> Result<Self> {
        // Every head ends in a bias with one value a class.
        let classes = layout.params.last().map_or(0, weights::ParamSpec::len);
        if classes == 0 || input_shape.iter().product::<usize>() == 0 {
            return Err(Error::Bundle(format!("{name} needs parameters and inputs, and has none")));
        }
        let pool = runtime.pool(name, bytes, Use::Once)?;
        let mut inputs: Vec<Slot<'_>> = layout.params.iter().map(|p| Slot::fixed(&p.name, &p.shape)).collect();
        inputs.push(Slot::batch("input", input_shape));
        check(&pool, &inputs, &[Slot::batch("logits", &[classes])])?;
        Ok(Self { pool, layout: layout.clone(), input_shape: input_shape.to_vec(), classes })
    }

    /// The parameters that the graph takes.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits `[rows × classes]` of the network `theta` (`[d]`) on `inputs` (`[rows × input]`).
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`] or [`Error::Graph`].
    pub fn logits(&self, theta: &[f32], inputs: &[f32]) -> Result<Vec<f32>> {
        let parameters = self.parameters(theta)?;
        let dim: usize = self.input_shape.iter().product();
        let rows = inputs.len() / dim;
        check_length("the inputs", inputs.len(), rows * dim)?;
        let mut logits = Vec::with_capacity(rows * self.classes);
        let mut lease = self.pool.lease()?;
        for batch in inputs.chunks(BATCH * dim) {
            self.batch(&mut lease, &parameters, batch, |values| logits.extend_from_slice(values))?;
        }
        Ok(logits)
    }

    /// Accuracy and loss of the network `theta` (`[d]`) on all examples of `dataset`, whose class k is the head's
    /// row k.
    ///
    /// # Errors
    /// When weights or dataset do not fit the architecture (see [`Error`]), or the logits are not finite.
    pub fn evaluate(&self, theta: &[f32], dataset: &Dataset) -> Result<Evaluation> {
        let parameters = self.parameters(theta)?;
        self.check_dataset(dataset)?;
        let dim = dataset.dim();
        let mut inputs = vec![0.0; BATCH.min(dataset.len()) * dim];
        let mut scores = Scores { classes: self.classes, loss: 0.0, correct: 0, predictions: Vec::new() };
        let mut lease = self.pool.lease()?;
        for start in (0..dataset.len()).step_by(BATCH) {
            let rows = BATCH.min(dataset.len() - start);
            let batch = &mut inputs[..rows * dim];
            for (i, row) in batch.chunks_exact_mut(dim).enumerate() {
                dataset.write_features(start + i, row);
            }
            let labels = &dataset.labels[start..start + rows];
            let mut outcome = Ok(());
            self.batch(&mut lease, &parameters, batch, |logits| outcome = scores.add(logits, labels))?;
            outcome?;
        }
        Ok(scores.finish())
    }

    fn parameters<'t>(&'t self, theta: &'t [f32]) -> Result<Vec<(&'t str, TensorRef<'t, f32>)>> {
        parameters(&self.pool, &self.layout, theta, |_| true)
    }

    fn batch(
        &self,
        lease: &mut Lease<'_>,
        parameters: &[(&str, TensorRef<'_, f32>)],
        inputs: &[f32],
        take: impl FnOnce(&[f32]),
    ) -> Result<()> {
        let rows = inputs.len() / self.input_shape.iter().product::<usize>();
        let input = batch_view(&self.pool, rows, &self.input_shape, inputs)?;
        let mut values: Vec<_> = parameters.iter().map(|(name, t)| (*name, SessionInputValue::from(&**t))).collect();
        values.push(("input", input.into()));
        let outputs = lease.run(values)?;
        take(output(&self.pool, &outputs, "logits", rows * self.classes)?);
        Ok(())
    }

    fn check_dataset(&self, dataset: &Dataset) -> Result<()> {
        // A network on flat inputs takes images of as many values.
        let flat = self.input_shape.len() == 1 && self.input_shape[0] == dataset.dim();
        if !flat && dataset.shape != self.input_shape {
            return Err(Error::ShapeMismatch {
                found: dataset.shape.clone(),
                needs: "this network",
                expected: self.input_shape.clone(),
            });
        }
        if dataset.classes() != self.classes {
            return Err(Error::ClassesMismatch {
                found: dataset.classes(),
                needs: "this network",
                expected: self.classes,
            });
        }
        if dataset.is_empty() {
            return Err(datasets::Error::DatasetInvalid("there is no example; give at least one".into()).into());
        }
        Ok(())
    }
}

/// Sums over the examples seen so far.
struct Scores {
    classes: usize,
    loss: f64,
    correct: usize,
    predictions: Vec<u32>,
}

impl Scores {
    fn add(&mut self, logits: &[f32], labels: &[u32]) -> Result<()> {
        check_finite("the network's logits", logits)?;
        for (row, &label) in logits.chunks_exact(self.classes).zip(labels) {
            let best = (0..row.len()).fold(0, |best, k| if row[k] > row[best] { k } else { best });
            let top = f64::from(row[best]);
            let log_sum = top + row.iter().map(|&v| (f64::from(v) - top).exp()).sum::<f64>().ln();
            let right = row.get(label as usize).copied().ok_or(datasets::Error::LabelsOutOfRange {
                row: self.predictions.len(),
                label: label.into(),
                classes: self.classes,
            })?;
            self.loss += log_sum - f64::from(right);
            self.correct += usize::from(best == label as usize);
            self.predictions.push(best as u32);
        }
        Ok(())
    }

    fn finish(self) -> Evaluation {
        let examples = self.predictions.len();
        let n = examples.max(1) as f64;
        Evaluation { accuracy: self.correct as f64 / n, loss: self.loss / n, examples, predictions: self.predictions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_cross_entropy_and_accuracy() {
        let mut scores = Scores { classes: 2, loss: 0.0, correct: 0, predictions: Vec::new() };
        scores.add(&[0.0, 0.0, 0.0, 3f32.ln(), 1000.0, -1000.0], &[1, 1, 0]).unwrap();
        let result = scores.finish();
        let expected = (2f64.ln() + (4.0f64 / 3.0).ln()) / 3.0;
        assert!((result.loss - expected).abs() < 1e-6, "{result:?}");
        // A tie goes to the first class.
        assert_eq!(result.predictions, [0, 1, 0]);
        assert!((result.accuracy - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn logits_that_are_not_finite_and_wrong_labels_are_errors() {
        let mut scores = Scores { classes: 2, loss: 0.0, correct: 0, predictions: Vec::new() };
        assert_eq!(scores.add(&[f32::NAN, 0.0], &[0]).unwrap_err().code(), "non_finite");
        assert_eq!(scores.add(&[1.0, 0.0], &[2]).unwrap_err().code(), "labels_out_of_range");
    }
}
