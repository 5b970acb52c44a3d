//! The statistics that a generated network's normalisations store, measured on the request's own images.

use std::sync::Arc;

use datasets::Dataset;
use ort::session::SessionInputValue;
use weights::Layout;

use crate::contract::{Slot, batch_view, check, output, parameters};
use crate::error::{Error, Result, check_finite};
use crate::generator::Generator;
use crate::pool::{SessionPool, Use};
use crate::runtime::Runtime;

/// An architecture's graph of statistics: see [`weights::manifest::files::statistics`].
#[derive(Debug)]
pub(crate) struct Statistics {
    pool: Arc<SessionPool>,
    layout: Layout,
    input_shape: Vec<usize>,
}

impl Statistics {
    pub(crate) fn load(
        runtime: &Runtime,
        name: &str,
        bytes: &[u8],
        layout: &Layout,
        input_shape: &[usize],
    ) -> Result<Self> {
        let pool = runtime.pool(name, bytes, Use::Once)?;
        let weights = layout.params.iter().filter(|p| !p.is_buffer());
        let mut inputs: Vec<Slot<'_>> = weights.map(|p| Slot::fixed(&p.name, &p.shape)).collect();
        inputs.push(Slot::batch("input", input_shape));
        let outputs: Vec<Slot<'_>> = layout.buffers().map(|p| Slot::fixed(&p.name, &p.shape)).collect();
        check(&pool, &inputs, &outputs)?;
        Ok(Self { pool, layout: layout.clone(), input_shape: input_shape.to_vec() })
    }

    /// The network `theta` (`[d]`) with statistics measured on all of `images` (`[n × input]`).
    fn measure(&self, theta: &[f32], images: &[f32]) -> Result<Vec<f32>> {
        let weights = parameters(&self.pool, &self.layout, theta, |p| !p.is_buffer())?;
        let rows = images.len() / self.input_shape.iter().product::<usize>().max(1);
        let input = batch_view(&self.pool, rows, &self.input_shape, images)?;
        let weights = weights.into_iter().map(|(name, view)| (name, SessionInputValue::from(view)));
        let values = weights.chain([("input", input.into())]).collect();
        let mut lease = self.pool.lease()?;
        let outputs = lease.run(values)?;
        let mut measured = theta.to_vec();
        for buffer in self.layout.buffers() {
            let values = output(&self.pool, &outputs, &buffer.name, buffer.len())?;
            check_finite("the statistics", values)?;
            measured[buffer.range()].copy_from_slice(values);
        }
        Ok(measured)
    }
}

impl Generator {
    /// Networks (`[d]` each) with the statistics that their normalisations have on `examples` (as the networks take them)
    /// in place of those that they store.
    ///
    /// # Errors
    /// [`Error::Option`] where networks store none; [`Error::Length`], [`Error::NonFinite`] or [`Error::Graph`].
    pub fn recalibrate(&self, weights: &[Vec<f32>], examples: &Dataset) -> Result<Vec<Vec<f32>>> {
        let statistics = self.statistics().ok_or_else(|| Error::Option {
            option: "recalibrate",
            found: "true".into(),
            right: format!(
                "left out for {}, whose bundle has no graph that measures statistics",
                self.architecture().name
            ),
        })?;
        let images = examples.gather(&(0..examples.len()).collect::<Vec<_>>());
        weights.iter().map(|theta| statistics.measure(theta, &images)).collect()
    }
}
