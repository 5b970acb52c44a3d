//! Model soups: the weighted mean of several versions of a model (paper 4.5).

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use weights::checkpoint::Dtype;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::rewrite::{Fill, rewrite};

/// Writes the mean of `models`, each with its weight (of their sum), to the new directory `to`; all else is the first's.
///
/// # Errors
/// [`Error::Text`] when there are fewer than two models, a weight is negative or not finite, or all are zero;
/// [`Error::Model`] names the first tensor that one of them has otherwise; those of [`rewrite`].
pub fn soup(models: &[(Model, f64)], to: &Path) -> Result<()> {
    let total: f64 = models.iter().map(|(_, weight)| weight).sum();
    let odd = models.iter().any(|(_, weight)| !weight.is_finite() || *weight < 0.0);
    if models.len() < 2 || odd || total <= 0.0 {
        return Err(Error::Text("a soup has two models or more, with weights that are not negative".into()));
    }
    let first = &models[0].0;
    for (model, _) in &models[1..] {
        let shapes = |m: &Model| m.entries().values().map(|e| (e.spec.name.clone(), e.spec.shape.clone())).collect();
        let (own, other): (BTreeSet<_>, BTreeSet<_>) = (shapes(first), shapes(model));
        if let Some((name, shape)) = own.symmetric_difference(&other).next() {
            let text = format!("{name} of {shape:?} is in one of {} and this, not in both", first.dir().display());
            return Err(Error::model(model.dir(), text));
        }
    }
    rewrite(first, to, &mut Mean { models, total })
}

struct Mean<'a> {
    models: &'a [(Model, f64)],
    total: f64,
}

impl Fill for Mean<'_> {
    fn names(&self) -> BTreeSet<String> {
        let float = |dtype| matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let entries = self.models[0].0.entries().values();
        entries.filter(|e| float(e.spec.dtype)).map(|e| e.spec.name.clone()).collect()
    }

    fn fill(&mut self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut sum = vec![0f64; out.len()];
        for (model, weight) in self.models {
            model.read(name, range.clone(), out)?;
            sum.iter_mut().zip(out.iter()).for_each(|(sum, v)| *sum += weight / self.total * f64::from(*v));
        }
        out.iter_mut().zip(sum).for_each(|(v, sum)| *v = sum as f32);
        Ok(())
    }
}
