//! The manifest of a generator bundle: everything that sampling needs besides the graphs, and where it came from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::layout::{Layout, ParamSpec};
use crate::standardise::StandardiseMode;
use crate::vectorise::Vectorise;

/// Version of the bundle format of a generator whose networks are one row each, of one architecture.
pub const FORMAT: u32 = 1;
/// Version of the bundle format of a generator with a table of pieces: the denoiser's condition and the VAE's graphs
/// take the index of the piece.
pub const FORMAT_PIECES: u32 = 2;
/// Version of the bundle format of a generator whose networks store statistics of batch normalisations: of their
/// variances the logarithm is standardised, and `standardisation.safetensors` says which they are.
pub const FORMAT_STATISTICS: u32 = 3;
/// Version of the bundle format of a generator of linear heads of any number of classes up to a largest: the dataset
/// encoder and the denoiser are told which class rows there are.
pub const FORMAT_CLASS_ROWS: u32 = 4;
/// Version of the bundle format of a generator that makes a part of its networks: the rest of each is a file of
/// constants.
pub const FORMAT_PART: u32 = 5;

/// Version of the bundle format of a generator that is conditioned on a text: it has the text encoder, and makes adapters
/// ([`crate::lora`]), which have no graph.
pub const FORMAT_TEXT: u32 = 6;

/// What stands for the feature extractor of a generator that is conditioned on a text.
pub const TEXT: &str = "text";

/// Names of the files in a bundle.
pub mod files {
    /// The manifest.
    pub const MANIFEST: &str = "manifest.json";
    /// `weights [batch, length]` (and `index [batch, index_dim]`, where there are several pieces) → `mean`, `log_variance` `[batch, latent…]`.
    pub const VAE_ENCODER: &str = "vae_encoder.onnx";
    /// `latent [batch, latent…]` (and `index`, as in the encoder) → `weights [batch, length]`, standardised.
    pub const VAE_DECODER: &str = "vae_decoder.onnx";
    /// `latent [batch, latent…]`, `timestep [batch]`, `condition [batch, condition_dim + index_dim]` → `prediction`, as
    /// latent. Of class rows the condition ends with their presence, `[batch, classes]`.
    pub const DENOISER: &str = "denoiser.onnx";
    /// `features [batch, classes, images, feature_dim]` (and `presence [batch, classes]`, 1 for a class that there is and 0
    /// for one that there is not, where the number of classes is the request's) → `dataset [batch, embedding_dim]` and
    /// `condition [batch, condition_dim]`.
    pub const DATASET_ENCODER: &str = "dataset_encoder.onnx";
    /// Tensors `mean` and `std`, `[kinds × length]` each; and [`VARIANCES`], where networks store statistics.
    pub const STANDARDISATION: &str = "standardisation.safetensors";
    /// Tensor of [`STANDARDISATION`], `[kinds × length]`: 1 where the value is a variance, of which ln(variance + 1e-5) is
    /// standardised, else 0.
    pub const VARIANCES: &str = "variances";

    /// `weights [batch, length]`, standardised, and where it is dataset-conditioned `dataset [batch, embedding_dim]` →
    /// `accuracy [batch, 1]`; only where a predictor was trained.
    pub const PREDICTOR: &str = "predictor.onnx";

    /// The loss of each training step: `{"format": 1, "stages": [{"stage", "steps", "step": […], "loss": […]}]}`.
    pub const TRAINING_CURVE: &str = "training_curve.json";

    /// Tensor `tokens`, `[tokens × dim]`: class tokens of the zoo's own classes; only where the condition has tokens.
    pub const KNOWN_CLASSES: &str = "known_classes.safetensors";

    /// `images [batch, channels, height, width]` → features `[batch, feature_dim]`, under the names of its
    /// specification; only with a registered feature extractor.
    pub const EXTRACTOR: &str = "extractor.onnx";

    /// A text encoder's files, as Hugging Face names them: [`TEXT_CONFIG`], [`TEXT_TOKENIZER`], [`TEXT_WEIGHTS`].
    pub const TEXT: [&str; 3] = [TEXT_CONFIG, TEXT_TOKENIZER, TEXT_WEIGHTS];
    /// `config.json` of a text encoder.
    pub const TEXT_CONFIG: &str = "text/config.json";
    /// `tokenizer.json` of a text encoder.
    pub const TEXT_TOKENIZER: &str = "text/tokenizer.json";
    /// `model.safetensors` of a text encoder.
    pub const TEXT_WEIGHTS: &str = "text/model.safetensors";

    /// The constants of an architecture of which a part is generated: all other parameters, as in the layout.
    pub fn constants(architecture: &str) -> String {
        format!("constants/{architecture}.safetensors")
    }

    /// The forward graph of an architecture: one input per parameter, named and shaped as in the layout, and
    /// `input [batch, …]` → `logits [batch, classes]`.
    pub fn forward(architecture: &str) -> String {
        format!("forward/{architecture}.onnx")
    }

    /// The statistics of an architecture's normalisations on images, each layer's after those before it have been
    /// normalised by their own: one input per parameter that is no buffer, and `input [batch, …]` → one output per buffer,
    /// named and shaped as in the layout. Only of architectures with buffers.
    pub fn statistics(architecture: &str) -> String {
        format!("statistics/{architecture}.onnx")
    }
}

/// What the denoiser's graph computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32.
    #[default]
    Single,
    /// f16, but for what is made of the timestep alone; inputs and outputs are f32.
    Half,
}

impl Precision {
    /// Whether it is f32.
    pub fn is_single(&self) -> bool {
        *self == Self::Single
    }
}

/// What kind of data conditions a generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Labelled images.
    Image,
    /// Labelled feature vectors.
    Features,
    /// A text description.
    Text,
}

impl std::fmt::Display for Modality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Features => "features",
            Self::Text => "text",
        })
    }
}

/// One architecture that a generator makes weights for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchitectureEntry {
    /// Name, as in [`Architecture::name`].
    pub name: String,
    /// Kind and sizes.
    pub config: Architecture,
    /// Parameters in the order of the vector.
    pub layout: Layout,
    /// Number of parameters.
    pub parameters: usize,
    /// The forward graph's file in the bundle; empty of an adapter, which has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub forward: String,
    /// Names of the parameters that are generated, where the others are constants ([`files::constants`]): rows are cut
    /// from the values of these alone, in the order of the layout. Empty where all are generated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generated: Vec<String>,
}

impl ArchitectureEntry {
    /// Number of values of a network that are generated.
    pub fn generated_values(&self) -> usize {
        self.generated_params().map(ParamSpec::len).sum()
    }

    /// Whether statistics of normalisations are generated.
    pub fn has_statistics(&self) -> bool {
        self.generated_params().any(ParamSpec::is_buffer)
    }

    fn generated_params(&self) -> impl Iterator<Item = &ParamSpec> {
        self.layout.params.iter().filter(|p| self.generated.is_empty() || self.generated.contains(&p.name))
    }
}

/// Latent space of the VAE, as the denoiser sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latent {
    /// `[d]` or `[channels, height, width]`.
    pub shape: Vec<usize>,
    /// The denoiser works on z · scale, which has unit standard deviation over the zoo.
    pub scale: f32,
}

impl Latent {
    /// Number of values of one latent.
    pub fn dim(&self) -> usize {
        self.shape.iter().product()
    }

    /// As [`Self::dim`]; nothing when the product overflows.
    pub fn checked_dim(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d))
    }
}

/// What the denoiser predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise ε (Eq. 3).
    Epsilon,
    /// The clean latent x₀.
    #[default]
    Sample,
}

/// The forward process: linear β from `beta_start` to `beta_end` over `steps` steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// T.
    pub steps: usize,
    /// β₁.
    pub beta_start: f64,
    /// β_T.
    pub beta_end: f64,
    /// What the network predicts.
    pub prediction: Prediction,
}

impl Schedule {
    /// ᾱ_t for t = 0 … T−1 (index 0 is the first noising step).
    pub fn alphas_cumulative(&self) -> Vec<f64> {
        let mut product = 1.0;
        (0..self.steps)
            .map(|t| {
                product *= 1.0 - self.beta(t);
                product
            })
            .collect()
    }

    /// β_t for t = 0 … T−1.
    pub fn beta(&self, t: usize) -> f64 {
        let last = self.steps.saturating_sub(1).max(1) as f64;
        self.beta_start + (self.beta_end - self.beta_start) * t as f64 / last
    }
}

/// How an image gets the size that a feature extractor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeRule {
    /// Height and width are resized each for itself.
    #[default]
    Stretch,
    /// The largest middle part of the wanted proportions is resized.
    Crop,
}

/// A feature extractor: an ONNX image encoder, and what is done to images before it.
///
/// An image gets the channels (grey repeated, colour by luminance), the size, values from 0 to 1, and then
/// `(value - mean) / std` of its channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractorSpec {
    /// Its name.
    pub name: String,
    /// Name of the graph's input, f32 `[batch, channels, height, width]`.
    pub input: String,
    /// Name of the graph's output, f32 `[batch, dim]`; further dimensions are flattened.
    pub output: String,
    /// `[channels, height, width]` of the input; 1 or 3 channels.
    pub shape: [usize; 3],
    /// How images get that size.
    #[serde(default)]
    pub resize: ResizeRule,
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Deviation of each channel.
    pub std: Vec<f32>,
    /// Features of an image; found by running the graph when it is registered.
    #[serde(default)]
    pub dim: usize,
}

/// The feature extractor of a generator; its graph is [`files::EXTRACTOR`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExtractorUse {
    /// What it takes and gives.
    pub spec: ExtractorSpec,
    /// Whether the generated networks take features too, and not only the dataset encoder.
    pub networks: bool,
}

/// What the dataset encoder takes and gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderContract {
    /// Feature extractor: `pixels` divides by 255 and flattens; otherwise the name of the bundle's own.
    pub extractor: String,
    /// Shape of one example as requests bring it: `[channels, height, width]` or `[features]`.
    pub input_shape: Vec<usize>,
    /// Features per example after the extractor.
    pub feature_dim: usize,
    /// Number of classes, in the order of the head's rows; with `min_classes` the largest.
    pub classes: usize,
    /// The smallest number of classes, where the request has any number from this to `classes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_classes: Option<usize>,
    /// Examples taken of each class.
    pub images_per_class: usize,
    /// Width of the dataset embedding z_D.
    pub embedding_dim: usize,
    /// Width of the denoiser's condition: z_D and one token a class, in class order.
    pub condition_dim: usize,
    /// Class tokens of the zoo's classes, beside which those of a request tell whether its classes are like them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_classes: Option<KnownClasses>,
}

/// The file [`files::KNOWN_CLASSES`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KnownClasses {
    /// How many tokens there are.
    pub tokens: usize,
    /// Width of a token, of which the condition has one a class behind z_D.
    pub dim: usize,
    /// Mean distance (Euclidean) of tokens of the same classes, from images that are not training images, to the nearest.
    pub unit: f32,
    /// Of datasets of those images, the mean distance over the classes that 95 % do not exceed, in units.
    pub near: f32,
}

/// What of a text encoder's last hidden states is the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over the tokens.
    #[default]
    Mean,
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
}

/// How a text becomes the condition: of the text encoder's last hidden states, at unit length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextContract {
    /// What of them.
    #[serde(default)]
    pub pooling: Pooling,
    /// The tasks of the zoo.
    pub tasks: Vec<DescribedTask>,
    /// Mean cosine distance of a description of the zoo to the nearest other one of its own task.
    pub unit: f32,
}

/// A task of a zoo of adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DescribedTask {
    /// Its name.
    pub name: String,
    /// Names of its classes, in the order of the classifier's rows.
    pub classes: Vec<String>,
    /// The descriptions that its adapters were learned with.
    pub descriptions: Vec<String>,
}

/// What the accuracy predictor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictorContract {
    /// Whether it takes the dataset embedding z_D beside the weights.
    pub dataset: bool,
}

/// Quality as a part of the condition: deviations of a checkpoint's accuracy (on validation images) from the mean of its
/// task's. It is the first value of the denoiser's condition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QualityContract {
    /// What is asked for when a request says nothing: high.
    pub default: f32,
}

/// Digest and size of a file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

impl Manifest {
    /// The version that its format has.
    pub fn format_of(vectorise: &Vectorise, architectures: &[ArchitectureEntry]) -> u32 {
        let part = architectures.iter().any(|entry| !entry.generated.is_empty());
        let statistics = architectures.iter().any(ArchitectureEntry::has_statistics);
        if architectures.iter().any(|entry| entry.config.lora().is_some()) {
            return FORMAT_TEXT;
        }
        match (&vectorise.rows, statistics, vectorise.pieces.is_empty()) {
            _ if part => FORMAT_PART,
            (Some(_), ..) => FORMAT_CLASS_ROWS,
            (None, true, _) => FORMAT_STATISTICS,
            (None, false, true) => FORMAT,
            (None, false, false) => FORMAT_PIECES,
        }
    }

    /// Whether statistics of normalisations are generated.
    pub fn has_statistics(&self) -> bool {
        self.architectures.iter().any(ArchitectureEntry::has_statistics)
    }
}

/// The manifest of a generator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Suggested name.
    pub name: String,
    /// One sentence for people.
    pub description: String,
    /// What conditions it.
    pub modality: Modality,
    /// Architectures; the first is the default.
    pub architectures: Vec<ArchitectureEntry>,
    /// How networks became vectors.
    pub vectorise: Vectorise,
    /// How vectors were standardised; the statistics are a file.
    pub standardise: StandardiseMode,
    /// The latent space.
    pub latent: Latent,
    /// The noise schedule.
    pub schedule: Schedule,
    /// The encoder's contract.
    pub encoder: EncoderContract,
    /// The feature extractor, unless it is `pixels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<ExtractorUse>,
    /// How it is conditioned on a text, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextContract>,
    /// The accuracy predictor, where one was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictor: Option<PredictorContract>,
    /// Quality, where the denoiser was conditioned on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<QualityContract>,
    /// Whether the denoiser was trained with condition dropout, so that guidance means something. The null
    /// condition is the zero vector.
    pub guidance: bool,
    /// What the denoiser computes in.
    #[serde(default, skip_serializing_if = "Precision::is_single")]
    pub precision: Precision,
    /// The training configuration, seeds, zoo and dataset digests, revision.
    pub training: serde_json::Value,
    /// What was measured at the end of training.
    pub metrics: serde_json::Value,
    /// All other files.
    pub files: BTreeMap<String, FileEntry>,
}
