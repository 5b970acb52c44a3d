//! A generator whose denoiser computes in half precision: half the memory, and faster where the device has f16
//! arithmetic, as GPUs do. A CPU computes in f32 all the same, with casts around it.

use serde_json::json;
use weights::Bundle;
use weights::manifest::{Precision, files};

use crate::backend::half::half;
use crate::error::{Error, Result};

/// The generator of `bundle` with its denoiser in half precision: a generator of its own, with a digest of its own, whose
/// manifest says which one it was made of (`training.converted_from`).
///
/// # Errors
/// [`Error::Config`] where the denoiser is in half precision already, or has a weight beyond what f16 holds.
pub fn to_half(bundle: &Bundle) -> Result<Bundle> {
    let mut manifest = bundle.manifest().clone();
    if manifest.precision == Precision::Half {
        return Err(Error::Config(format!("the denoiser of {} is in half precision already", manifest.name)));
    }
    let denoiser = half(bundle.file(files::DENOISER)?, "timestep")?;
    manifest.precision = Precision::Half;
    if let Some(training) = manifest.training.as_object_mut() {
        training.insert("converted_from".into(), json!(bundle.digest()));
    }
    let own = |(name, bytes): (&str, &[u8])| (name.to_owned(), bytes.to_vec());
    let mut all: std::collections::BTreeMap<_, _> =
        bundle.entries().filter(|(name, _)| *name != files::MANIFEST).map(own).collect();
    all.insert(files::DENOISER.into(), denoiser);
    Ok(Bundle::new(manifest, all)?)
}
