//! Generated weights as safetensors files that say where they came from.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::generator::Generator;
use crate::options::SampleOptions;

/// Where a generated network came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Provenance<'a> {
    /// Name under which the generator was asked for.
    pub generator_name: &'a str,
    /// Digest of the dataset.
    pub dataset: &'a str,
    /// Names of the classes, in the order of the head's rows.
    pub classes: &'a [String],
    /// The sampling options.
    pub options: &'a SampleOptions,
    /// Index of the sample in its request.
    pub index: usize,
    /// How it came to be, when it was not sampled: written in place of the sampling options.
    pub instead: Option<&'a [(&'a str, String)]>,
}

impl Provenance<'_> {
    /// The metadata of the file, as text by key.
    ///
    /// # Errors
    /// [`Error::Bundle`] when the architecture cannot be written as JSON.
    pub fn metadata(&self, generator: &Generator) -> Result<BTreeMap<String, String>> {
        let json_failed = |e: serde_json::Error| Error::Bundle(format!("metadata cannot be written ({e})"));
        let architecture = generator.architecture();
        let adapter = architecture.config.lora().is_some();
        let options = self.options;
        let mut metadata = vec![
            // Libraries that load adapters ask for their own name here.
            ("format", if adapter { "pt" } else { "weightsmith" }.to_owned()),
            ("generator", generator.digest().to_owned()),
            ("generator_name", self.generator_name.to_owned()),
            ("architecture", architecture.name.clone()),
            ("architecture_config", serde_json::to_string(&architecture.config).map_err(json_failed)?),
            ("dataset", self.dataset.to_owned()),
            ("classes", serde_json::to_string(self.classes).map_err(json_failed)?),
        ];
        match self.instead {
            Some(pairs) => metadata.extend(pairs.iter().cloned()),
            None => metadata.extend([
                ("seed", options.seed.to_string()),
                ("index", self.index.to_string()),
                ("sampler", options.sampler.to_string()),
                ("steps", options.effective_steps(&generator.manifest().schedule).to_string()),
                ("eta", options.effective_eta(&generator.manifest().schedule).to_string()),
                ("guidance", options.guidance.to_string()),
            ]),
        }
        if self.instead.is_none() {
            let noise = Some(options.latent_noise).filter(|noise| *noise > 0.0);
            metadata.extend(noise.map(|noise| ("latent_noise", noise.to_string())));
            metadata.extend(options.quality.map(|quality| ("quality", quality.to_string())));
            let refine = options.refine.filter(|refine| refine.steps > 0);
            metadata.extend(refine.map(|refine| ("refine", refine.steps.to_string())));
            metadata.extend(options.recalibrate.then(|| ("recalibrate", "true".to_owned())));
        }
        Ok(metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// The network `theta` (`[d]`) as a safetensors file with the names and shapes of the generator's architecture.
///
/// # Errors
/// When `theta` does not fit the architecture or is not finite.
pub fn to_safetensors(generator: &Generator, theta: &[f32], provenance: &Provenance<'_>) -> Result<Vec<u8>> {
    let metadata = provenance.metadata(generator)?;
    Ok(weights::tensors::to_safetensors(&generator.architecture().layout, theta, &metadata)?)
}
