//! A generator bundle: manifest and files, as one tar. Its digest is that of `manifest.json`, which holds the
//! digest of every other file.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::architecture::Architecture;
use crate::digest::sha256;
use crate::error::{Error, Result};
use crate::manifest::{
    ArchitectureEntry, FORMAT, FORMAT_CLASS_ROWS, FORMAT_PART, FORMAT_PIECES, FORMAT_STATISTICS, FORMAT_TEXT,
    FileEntry, KnownClasses, Manifest, Modality, files,
};
use crate::part::Part;
use crate::standardise::Standardisation;
use crate::tensors;

/// Largest file that is read from a bundle, 8 GiB.
const MAX_FILE: u64 = 8 << 30;
/// No generator has more files than this.
const MAX_FILES: usize = 10_000;

/// Manifest and files of a generator, verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    manifest: Manifest,
    manifest_json: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Bundle {
    /// Makes a bundle; fills the manifest's file table.
    ///
    /// # Errors
    /// [`Error::Bundle`] when the parts do not belong together.
    pub fn new(mut manifest: Manifest, files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        manifest.files = files
            .iter()
            .map(|(name, bytes)| (name.clone(), FileEntry { digest: sha256(bytes), size: bytes.len() as u64 }))
            .collect();
        let manifest_json =
            serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Bundle(format!("manifest: {e}")))?;
        let bundle = Self { manifest, manifest_json, files };
        bundle.verify()?;
        Ok(bundle)
    }

    /// From the manifest's bytes and all files, as they were stored.
    ///
    /// # Errors
    /// [`Error::Bundle`] when the manifest cannot be read, or a file is missing, unknown or changed.
    pub fn from_files(manifest_json: Vec<u8>, files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        // The format is read first: a newer manifest may not parse as ours.
        let format = serde_json::from_slice::<serde_json::Value>(&manifest_json)
            .map_err(|e| Error::Bundle(format!("manifest.json is not JSON ({e})")))?
            .get("format")
            .and_then(serde_json::Value::as_u64);
        if !format.is_some_and(|f| (u64::from(FORMAT)..=u64::from(FORMAT_TEXT)).contains(&f)) {
            let found = format.map_or_else(|| "none".to_owned(), |f| f.to_string());
            let reads = format!("this version reads formats {FORMAT} to {FORMAT_TEXT}");
            return Err(Error::Bundle(format!("manifest format is {found}; {reads}")));
        }
        let manifest =
            serde_json::from_slice(&manifest_json).map_err(|e| Error::Bundle(format!("manifest.json: {e}")))?;
        let bundle = Self { manifest, manifest_json, files };
        bundle.verify()?;
        Ok(bundle)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The generator's digest.
    pub fn digest(&self) -> String {
        sha256(&self.manifest_json)
    }

    /// Bytes of a file.
    ///
    /// # Errors
    /// [`Error::Bundle`] when there is no such file.
    pub fn file(&self, name: &str) -> Result<&[u8]> {
        self.files.get(name).map(Vec::as_slice).ok_or_else(|| Error::Bundle(format!("{name} is missing")))
    }

    /// All files with the manifest first.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &[u8])> {
        std::iter::once((files::MANIFEST, self.manifest_json.as_slice()))
            .chain(self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))
    }

    /// The standardisation statistics.
    ///
    /// # Errors
    /// When the file is damaged or has another length than the vectors.
    pub fn standardisation(&self) -> Result<Standardisation> {
        let bytes = self.file(files::STANDARDISATION)?;
        let (_, mean) = tensors::named_from_safetensors(bytes, "mean")?;
        let (_, std) = tensors::named_from_safetensors(bytes, "std")?;
        let length = self.manifest.vectorise.kinds() * self.manifest.vectorise.length;
        crate::error::check_length("the standardisation's mean", mean.len(), length)?;
        crate::error::check_length("the standardisation's std", std.len(), length)?;
        crate::error::check_finite("the standardisation's mean", &mean)?;
        crate::error::check_finite("the standardisation's std", &std)?;
        let mut variances = Vec::new();
        if self.manifest.has_statistics() {
            let (_, mask) = tensors::named_from_safetensors(bytes, files::VARIANCES)?;
            crate::error::check_length("the standardisation's variances", mask.len(), length)?;
            variances = mask.iter().map(|&v| v > 0.0).collect();
        }
        Ok(Standardisation { mean, std, variances })
    }

    /// Class tokens of the zoo's classes, `[tokens × dim]`; none where the bundle has none.
    ///
    /// # Errors
    /// When the file is missing or damaged, or does not fit the manifest.
    pub fn known_classes(&self) -> Result<Option<(KnownClasses, Vec<f32>)>> {
        let Some(known) = self.manifest.encoder.known_classes else { return Ok(None) };
        let (shape, tokens) = tensors::named_from_safetensors(self.file(files::KNOWN_CLASSES)?, "tokens")?;
        let classes = self.manifest.encoder.classes;
        let behind = self.manifest.encoder.condition_dim.checked_sub(self.manifest.encoder.embedding_dim);
        let fits = shape == [known.tokens, known.dim] && known.tokens > 0 && known.dim.checked_mul(classes) == behind;
        let above = |v: f32| v.is_finite() && v > 0.0;
        if !fits || !above(known.unit) || !above(known.near) {
            return Err(Error::Bundle(format!(
                "known_classes is {known:?} beside tokens of shape {shape:?}: it must be at least one token, of the width \
                 that the condition has for each of {classes} classes, and unit and near above 0"
            )));
        }
        crate::error::check_finite("the tokens of known classes", &tokens)?;
        Ok(Some((known, tokens)))
    }

    /// The part of an architecture's networks that is generated, with the constants around it; none where whole networks
    /// are.
    ///
    /// # Errors
    /// When the file of constants is missing or does not fit, or what is generated is no part of the network.
    pub fn part(&self, entry: &ArchitectureEntry) -> Result<Option<Part>> {
        if entry.generated.is_empty() {
            return Ok(None);
        }
        let constants = self.file(&files::constants(&entry.name))?;
        Part::from_safetensors(&entry.layout, &entry.generated, constants).map(Some)
    }

    /// Writes the bundle as a tar: sorted, without times or owners, so equal bundles give equal bytes.
    ///
    /// # Errors
    /// [`Error::Bundle`] when `writer` fails.
    pub fn write_tar(&self, writer: impl Write) -> Result<()> {
        let fail = |e: std::io::Error| Error::Bundle(format!("cannot write the tar: {e}"));
        let mut tar = tar::Builder::new(writer);
        for (name, bytes) in self.entries() {
            append(&mut tar, name, bytes).map_err(fail)?;
        }
        tar.into_inner().and_then(|mut w| w.flush()).map_err(fail)
    }

    /// Reads a tar and verifies every digest.
    ///
    /// # Errors
    /// [`Error::Bundle`] when the tar is damaged or is not a bundle.
    pub fn read_tar(reader: impl Read) -> Result<Self> {
        // What else the reader says is the file's own first lines.
        let first = |e: std::io::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
        let fail = |e| Error::Bundle(format!("cannot read the tar ({}); is the file complete?", first(e)));
        let mut manifest = None;
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(reader).entries().map_err(fail)? {
            let mut entry = entry.map_err(fail)?;
            if entry.header().entry_type().is_dir() {
                continue;
            }
            let name = entry.path().map_err(fail)?.to_string_lossy().trim_start_matches("./").to_owned();
            if entry.size() > MAX_FILE || files.len() > MAX_FILES {
                return Err(Error::Bundle(format!("{name} is over the limits of a bundle")));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(fail)?;
            if name == files::MANIFEST {
                manifest = Some(bytes);
            } else {
                files.insert(name, bytes);
            }
        }
        let manifest = manifest.ok_or_else(|| Error::Bundle("manifest.json is missing".into()))?;
        Self::from_files(manifest, files)
    }

    fn verify(&self) -> Result<()> {
        let fail = |reason: String| Err(Error::Bundle(reason));
        for (name, entry) in &self.manifest.files {
            let Some(bytes) = self.files.get(name) else { return fail(format!("{name} is missing")) };
            if sha256(bytes) != entry.digest {
                return fail(format!("{name} was changed: its digest is not the manifest's {}", entry.digest));
            }
        }
        if let Some(name) = self.files.keys().find(|name| !self.manifest.files.contains_key(*name)) {
            return fail(format!("{name} is not in the manifest"));
        }
        let Some(first) = self.manifest.architectures.first() else { return fail("it has no architecture".into()) };
        let any_number = self.manifest.vectorise.rows.is_some();
        for entry in &self.manifest.architectures {
            entry.config.validate()?;
            if entry.layout != entry.config.layout() || entry.parameters != entry.layout.parameters() {
                return fail(format!("the layout of {} is not that of its configuration", entry.name));
            }
            if entry.forward.is_empty() && entry.config.lora().is_none() {
                return fail(format!("{} has no forward graph", entry.name));
            }
            if self.manifest.vectorise.pieces.is_empty() && entry.generated_values() > self.manifest.vectorise.length {
                return fail(format!("{} has more parameters than the vectors", entry.name));
            }
            if !any_number && entry.config.classes() != first.config.classes() {
                return fail(format!("{} and {} differ in the number of classes", entry.name, first.name));
            }
            let part = self.part(entry)?;
            if part.is_some() && self.manifest.format < FORMAT_PART {
                return fail(format!("a part of a network is of format {FORMAT_PART}"));
            }
            if self.manifest.architectures.iter().filter(|other| other.name == entry.name).count() > 1 {
                return fail(format!("it has two architectures of the name {}", entry.name));
            }
        }
        let architectures = &self.manifest.architectures;
        let parameters: Vec<usize> = architectures.iter().map(ArchitectureEntry::generated_values).collect();
        self.manifest.vectorise.check(&parameters)?;
        if !self.manifest.vectorise.pieces.is_empty() && self.manifest.format < FORMAT_PIECES {
            return fail(format!("a table of pieces is of format {FORMAT_PIECES}"));
        }
        if self.manifest.has_statistics() && self.manifest.format < FORMAT_STATISTICS {
            return fail(format!("a network with stored statistics is of format {FORMAT_STATISTICS}"));
        }
        let texts = self.manifest.modality == Modality::Text;
        let adapters = architectures.iter().any(|entry| entry.config.lora().is_some());
        if texts || self.manifest.text.is_some() || adapters {
            self.verify_text()?;
        } else if any_number {
            self.verify_class_rows()?;
        } else if self.manifest.encoder.classes != first.config.classes() || self.manifest.encoder.min_classes.is_some()
        {
            return fail("encoder and architecture differ in the number of classes".into());
        }
        let scale = self.manifest.latent.scale;
        if self.manifest.latent.checked_dim().is_none_or(|d| d == 0) || !scale.is_finite() || scale <= 0.0 {
            return fail("the latent space is empty or absurdly large".into());
        }
        let schedule = &self.manifest.schedule;
        let valid = schedule.steps > 0 && schedule.beta_start > 0.0 && schedule.beta_end < 1.0;
        if valid { Ok(()) } else { fail("the noise schedule needs steps > 0 and 0 < beta < 1".into()) }
    }

    /// A generator that is conditioned on a text has the text encoder, and makes adapters.
    fn verify_text(&self) -> Result<()> {
        let manifest = &self.manifest;
        let fail = |reason: String| Err(Error::Bundle(reason));
        let adapters = |entry: &ArchitectureEntry| {
            entry.config.lora().is_some() && entry.forward.is_empty() && entry.generated.is_empty()
        };
        if manifest.modality != Modality::Text || !manifest.architectures.iter().all(adapters) {
            return fail("adapters are what a generator of the modality text makes, and nothing else".into());
        }
        if manifest.format < FORMAT_TEXT {
            return fail(format!("a generator that is conditioned on a text is of format {FORMAT_TEXT}"));
        }
        let Some(text) = &manifest.text else { return fail("the manifest does not say how texts are taken".into()) };
        if !(text.unit.is_finite() && text.unit > 0.0) || text.tasks.iter().any(|task| task.descriptions.is_empty()) {
            return fail("each task of `text` needs descriptions, and its unit is above 0".into());
        }
        let classes = manifest.architectures[0].config.classes();
        if let Some(task) = text.tasks.iter().find(|task| task.classes.len() != classes) {
            return fail(format!("the task {} must have the {classes} classes of the adapters", task.name));
        }
        files::TEXT.iter().try_for_each(|name| self.file(name).map(|_| ()))?;
        let e = &manifest.encoder;
        let one = e.classes == 1 && e.images_per_class == 1 && e.min_classes.is_none();
        match one && e.feature_dim == e.embedding_dim && e.feature_dim == e.condition_dim {
            true => Ok(()),
            false => fail("of a text the encoder takes one embedding and gives it as the condition".into()),
        }
    }

    /// A generator for any number of classes has the head of each number, in order, and latents with a row a class.
    fn verify_class_rows(&self) -> Result<()> {
        let manifest = &self.manifest;
        let fail = |reason: String| Err(Error::Bundle(reason));
        let most = manifest.encoder.classes;
        let Some(least) = manifest.encoder.min_classes.filter(|least| (2..=most).contains(least)) else {
            return fail(format!(
                "its heads have any number of classes up to {most}: encoder.min_classes must say from which"
            ));
        };
        if manifest.format < FORMAT_CLASS_ROWS {
            return fail(format!("heads of any number of classes are of format {FORMAT_CLASS_ROWS}"));
        }
        let heads = (least..=most).map(Some);
        let found = manifest.architectures.iter().map(|entry| match entry.config {
            Architecture::Head { classes, .. } => Some(classes),
            _ => None,
        });
        if !found.eq(heads) || manifest.vectorise.most_classes() != Some(most) {
            return fail(format!("it must have the heads of {least} to {most} classes, each once and in order"));
        }
        match manifest.latent.shape.first() == Some(&most) {
            true => Ok(()),
            false => fail(format!("the first number of latent.shape must be that of the class rows, {most}")),
        }
    }
}

/// Appends a file without time or owner.
pub(crate) fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

/// A small valid manifest for tests of other crates and of this one.
#[cfg(test)]
pub(crate) fn sample_manifest() -> Manifest {
    use crate::manifest::{ArchitectureEntry, EncoderContract, Latent, Modality, Precision, Prediction, Schedule};
    let config = Architecture::Head { features: 4, classes: 3 };
    let layout = config.layout();
    Manifest {
        format: FORMAT,
        name: "test".into(),
        description: "a test".into(),
        modality: Modality::Features,
        architectures: vec![ArchitectureEntry {
            name: config.name(),
            parameters: layout.parameters(),
            forward: files::forward(&config.name()),
            layout,
            config,
            generated: Vec::new(),
        }],
        vectorise: crate::vectorise::Vectorise::model_wise(&[15]),
        standardise: crate::standardise::StandardiseMode::Parameter,
        latent: Latent { shape: vec![8], scale: 1.0 },
        schedule: Schedule { steps: 10, beta_start: 1e-3, beta_end: 0.1, prediction: Prediction::Sample },
        encoder: EncoderContract {
            extractor: "pixels".into(),
            input_shape: vec![4],
            feature_dim: 4,
            classes: 3,
            min_classes: None,
            images_per_class: 5,
            embedding_dim: 8,
            condition_dim: 32,
            known_classes: None,
        },
        extractor: None,
        text: None,
        predictor: None,
        quality: None,
        guidance: true,
        precision: Precision::Single,
        training: serde_json::json!({}),
        metrics: serde_json::json!({}),
        files: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let files = BTreeMap::from([("a.onnx".to_owned(), vec![1, 2, 3]), ("forward/b.onnx".to_owned(), vec![4])]);
        Bundle::new(sample_manifest(), files).unwrap()
    }

    #[test]
    fn tar_round_trip_is_exact_and_deterministic() {
        let bundle = bundle();
        let mut tar = Vec::new();
        bundle.write_tar(&mut tar).unwrap();
        let mut again = Vec::new();
        bundle.write_tar(&mut again).unwrap();
        assert_eq!(tar, again);
        let back = Bundle::read_tar(tar.as_slice()).unwrap();
        assert_eq!(back, bundle);
        assert_eq!(back.digest(), bundle.digest());
    }

    #[test]
    fn damage_is_found() {
        let mut tar = Vec::new();
        bundle().write_tar(&mut tar).unwrap();
        assert!(Bundle::read_tar(&tar[..700]).is_err());
        assert!(Bundle::read_tar([].as_slice()).is_err());
        assert!(Bundle::read_tar([7u8; 3000].as_slice()).is_err());
        let original = bundle();
        let mut files = original.files.clone();
        files.insert("a.onnx".into(), vec![9]);
        let error = Bundle::from_files(original.manifest_json.clone(), files).unwrap_err();
        assert!(error.to_string().contains("a.onnx was changed"), "{error}");
        let mut files = original.files.clone();
        files.remove("a.onnx");
        assert!(Bundle::from_files(original.manifest_json.clone(), files).is_err());
        let mut files = original.files.clone();
        files.insert("extra".into(), vec![]);
        assert!(Bundle::from_files(original.manifest_json.clone(), files).is_err());
    }

    #[test]
    fn a_newer_format_is_refused_with_its_number() {
        let error = Bundle::from_files(br#"{"format": 9}"#.to_vec(), BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("format is 9"), "{error}");
    }

    #[test]
    fn constants_belong_to_what_is_not_generated() {
        let (mut manifest, mut files) = (sample_manifest(), BTreeMap::new());
        let entry = &mut manifest.architectures[0];
        entry.generated = vec!["bias".into()];
        let part = Part::new(&entry.layout, &entry.generated, (0..15).map(|v| v as f32).collect()).unwrap();
        let name = files::constants(&entry.name);
        manifest.vectorise = crate::vectorise::Vectorise::model_wise(&[3]);
        assert!(Bundle::new(manifest.clone(), files.clone()).is_err(), "no file of constants");
        files.insert(name.clone(), part.to_safetensors());
        let error = Bundle::new(manifest.clone(), files.clone()).unwrap_err().to_string();
        assert!(error.contains("format 5"), "{error}");
        manifest.format = Manifest::format_of(&manifest.vectorise, &manifest.architectures);
        let bundle = Bundle::new(manifest.clone(), files.clone()).unwrap();
        let mut tar = Vec::new();
        bundle.write_tar(&mut tar).unwrap();
        let back = Bundle::read_tar(tar.as_slice()).unwrap();
        let network = back.part(&back.manifest().architectures[0]).unwrap().unwrap().complete(&[7.0; 3]).unwrap();
        assert_eq!(network[..12], (0..12).map(|v| v as f32).collect::<Vec<_>>());
        assert_eq!(network[12..], [7.0; 3]);
        // Another part than the constants leave.
        manifest.architectures[0].generated = vec!["weight".into()];
        assert!(Bundle::new(manifest, files).is_err());
    }

    #[test]
    fn tokens_of_known_classes_fit_the_condition() {
        let of = |shape: &[usize], known: Option<KnownClasses>| {
            let mut manifest = sample_manifest();
            manifest.encoder.known_classes = known;
            let values = vec![0.5; shape.iter().product()];
            let file = tensors::named_to_safetensors(&[("tokens", shape, &values)], &BTreeMap::new());
            let bundle = Bundle::new(manifest, BTreeMap::from([(files::KNOWN_CLASSES.to_owned(), file)])).unwrap();
            bundle.known_classes()
        };
        let known = KnownClasses { tokens: 5, dim: 8, unit: 0.5, near: 1.3 };
        assert_eq!(of(&[5, 8], Some(known)).unwrap(), Some((known, vec![0.5; 40])));
        assert_eq!(of(&[5, 8], None).unwrap(), None);
        for (shape, known) in [
            (&[4, 8][..], known),
            (&[5, 7], KnownClasses { dim: 7, ..known }),
            (&[5, 8], KnownClasses { unit: 0.0, ..known }),
            (&[5, 8], KnownClasses { unit: f32::NAN, ..known }),
            (&[5, 8], KnownClasses { near: -1.0, ..known }),
            (&[0, 8], KnownClasses { tokens: 0, ..known }),
        ] {
            let error = of(shape, Some(known)).unwrap_err().to_string();
            assert!(error.contains("known_classes") && error.contains("3 classes"), "{error}");
        }
        let mut manifest = sample_manifest();
        manifest.encoder.known_classes = Some(known);
        assert!(Bundle::new(manifest, BTreeMap::new()).unwrap().known_classes().is_err(), "there is no file");
    }

    #[test]
    fn inconsistent_manifests_are_refused() {
        let mut manifest = sample_manifest();
        manifest.encoder.classes = 4;
        assert!(Bundle::new(manifest, BTreeMap::new()).is_err());
        let mut manifest = sample_manifest();
        manifest.schedule.beta_end = 1.5;
        assert!(Bundle::new(manifest, BTreeMap::new()).is_err());
    }

    /// Heads of 2 and 3 classes in one generator.
    fn any_number() -> Manifest {
        let mut manifest = sample_manifest();
        let three = manifest.architectures[0].clone();
        let config = Architecture::Head { features: 4, classes: 2 };
        let (name, layout) = (config.name(), config.layout());
        let two = crate::manifest::ArchitectureEntry {
            generated: Vec::new(),
            parameters: layout.parameters(),
            forward: files::forward(&name),
            name,
            layout,
            config,
        };
        manifest.architectures = vec![two, three];
        manifest.vectorise = crate::vectorise::Vectorise::class_rows(4, vec![2, 3], 3).unwrap();
        manifest.format = Manifest::format_of(&manifest.vectorise, &manifest.architectures);
        manifest.encoder.min_classes = Some(2);
        manifest.latent.shape = vec![3, 8];
        manifest
    }

    #[test]
    fn heads_of_any_number_of_classes_are_of_a_format_of_their_own() {
        let good = Bundle::new(any_number(), BTreeMap::new()).unwrap();
        assert_eq!(Bundle::from_files(good.manifest_json.clone(), BTreeMap::new()).unwrap(), good);
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = any_number();
            change(&mut manifest);
            Bundle::new(manifest, BTreeMap::new()).unwrap_err().to_string()
        };
        assert!(refused(&|m| m.format = 3).contains("format 4"));
        assert!(refused(&|m| m.encoder.min_classes = None).contains("min_classes"));
        assert!(refused(&|m| m.architectures.truncate(1)).contains("class rows"));
        assert!(refused(&|m| m.latent.shape = vec![8]).contains("latent.shape"));
        assert!(refused(&|m| m.encoder.classes = 4).contains("heads of 2 to 4 classes"));
        let mut fixed = sample_manifest();
        fixed.encoder.min_classes = Some(2);
        assert!(Bundle::new(fixed, BTreeMap::new()).is_err());
        // What does not vary says nothing of it.
        let text = serde_json::to_string(&sample_manifest()).unwrap();
        assert!(!text.contains("min_classes") && !text.contains("rows"), "{text}");
    }

    #[test]
    fn the_schedule_falls_to_noise() {
        let alphas = sample_manifest().schedule.alphas_cumulative();
        assert!(alphas.windows(2).all(|w| w[1] < w[0]));
        assert!((alphas[0] - (1.0 - 1e-3)).abs() < 1e-12);
    }
}
