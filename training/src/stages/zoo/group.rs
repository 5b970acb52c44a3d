//! The file of a group of runs, read.

use weights::tensors;

use crate::error::{Error, Result};
use crate::snapshots::Snapshots;

pub(super) struct Group {
    pub(super) accuracy: Vec<f32>,
    pub(super) loss: Vec<f32>,
    pub(super) theta: Vec<f32>,
}

impl Group {
    pub(super) fn read(store: &dyn Snapshots, name: &str) -> Result<Self> {
        let fail = |reason: String| Error::Zoo { path: store.place(), reason };
        let Some(bytes) = store.load(name)? else {
            return Err(fail("it is not finished; the same `zoo build` continues".into()));
        };
        let tensor = |name: &str| -> weights::Result<Vec<f32>> {
            let (_, values) = tensors::named_from_safetensors(&bytes, name)?;
            weights::error::check_finite(name, &values)?;
            Ok(values)
        };
        let read = || Ok(Self { accuracy: tensor("accuracy")?, loss: tensor("loss")?, theta: tensor("weights")? });
        let damaged = |e: weights::Error| {
            fail(format!("{name} is damaged ({e}); remove it, and the same `zoo build` makes it anew"))
        };
        read().map_err(damaged)
    }
}
