//! Configuration of a generator's training: one TOML file.

mod architecture;
mod data;
mod predictor;
mod tasks;
mod validate;
mod zoo;

use serde::{Deserialize, Serialize};
use weights::manifest::Prediction;
use weights::vectorise::VectoriseMode;
use weights::{Architecture, StandardiseMode};

use crate::error::{Error, Result};
use crate::networks::denoiser::DenoiserConfig;

pub use crate::networks::conv_vae::ConvVaeConfig;
pub use crate::networks::dataset_encoder::{Condition, EncoderKind};
pub use architecture::ArchitectureConfig;
pub use data::{BACKBONE, BackboneConfig, DataConfig, REGISTERED, Role, SourceConfig};
pub use predictor::PredictorConfig;
pub use tasks::{ClassRange, Classes, FEWEST, TasksConfig};
pub use zoo::{ZooConfig, ZooFit};

/// What products of matrices and convolutions are computed in while the generator's networks learn. Parameters, their
/// moments, sums, normalisations and losses are f32 in any case, and so is all that is measured or exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// f32.
    #[default]
    F32,
    /// What goes into a product is rounded to bf16; it is summed in f32. For a GPU, which has bf16 products; a CPU computes
    /// the same in f32, and slower than without.
    Bf16,
}

impl Arithmetic {
    fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// Everything that decides a generator. Sections have defaults; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of zoo and generator.
    pub name: String,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// Seed of everything.
    #[serde(default)]
    pub seed: u64,
    /// What products are computed in while networks learn.
    #[serde(default, skip_serializing_if = "Arithmetic::is_f32")]
    pub arithmetic: Arithmetic,
    /// Labelled data.
    pub data: DataConfig,
    /// Tasks of the zoo.
    pub tasks: TasksConfig,
    /// Network whose weights are generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<ArchitectureConfig>,
    /// In its place, networks of several architectures: one zoo and one generator for all. The first is the default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<ArchitectureConfig>,
    /// The zoo.
    #[serde(default)]
    pub zoo: ZooConfig,
    /// Vectors.
    #[serde(default)]
    pub vectors: VectorsConfig,
    /// The VAE.
    #[serde(default)]
    pub vae: VaeConfig,
    /// The dataset encoder.
    #[serde(default)]
    pub encoder: EncoderConfig,
    /// The denoiser.
    pub denoiser: DenoiserConfig,
    /// The diffusion.
    #[serde(default)]
    pub diffusion: DiffusionConfig,
    /// The accuracy predictor.
    #[serde(default)]
    pub predictor: PredictorConfig,
    /// What the demo measures.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
}

/// A key that is left out of what is written where it says what it says without: digests of what was made before the key
/// was there stay the same.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How checkpoints become vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VectorsConfig {
    /// Sweeps of the alignment of hidden units to a reference; 0 for none.
    pub alignment_sweeps: usize,
    /// Rounds of alignment: the first to the first checkpoint, each further one to the mean of the last.
    pub alignment_rounds: usize,
    /// Standardisation.
    pub standardise: StandardiseMode,
    /// Share of runs held out for validation.
    pub held_out: f64,
    /// Share of each task's training checkpoints that are learned from: those that are best on validation images.
    pub best_share: f64,
    /// Into what rows networks are cut.
    #[serde(skip_serializing_if = "is_model_wise")]
    pub mode: VectoriseMode,
    /// Values of a row, with `layer_wise` and `uniform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<usize>,
}

/// Left out of what is written, so that the identity of what was trained before stays.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
fn is_model_wise(mode: &VectoriseMode) -> bool {
    *mode == VectoriseMode::ModelWise
}

impl Default for VectorsConfig {
    fn default() -> Self {
        Self {
            alignment_sweeps: 4,
            alignment_rounds: 2,
            standardise: StandardiseMode::Parameter,
            held_out: 0.05,
            best_share: 1.0,
            mode: VectoriseMode::ModelWise,
            chunk: None,
        }
    }
}

/// What the VAE is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaeKind {
    /// Linear layers.
    #[default]
    Linear,
    /// Linear in and out, and the convolutional autoencoder of latent diffusion between; the latent has shape
    /// `[c, h, w]`.
    Conv,
    /// Nothing: diffusion directly on the standardised weights, the control arm. `latent`, `steps` and all weights of
    /// losses do not matter then.
    Identity,
}

/// The VAE (Eq. 1) with the behaviour loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaeConfig {
    /// What it is made of.
    pub kind: VaeKind,
    /// Sizes of the convolutional one.
    pub conv: ConvVaeConfig,
    /// Hidden widths of the encoder, of the linear one.
    pub hidden: Vec<usize>,
    /// Latent shape; with `rows` the first number is that of the classes, or the largest.
    pub latent: Vec<usize>,
    /// Each row of a linear head, which is one class, has a latent of its own, and all rows share the VAE.
    #[serde(skip_serializing_if = "is_default")]
    pub rows: bool,
    /// Weight of the KL divergence (nats, mean over the latent dimensions).
    pub beta: f64,
    /// Share of the steps after which the KL divergence counts; until then it is an autoencoder without noise.
    pub kl_from: f64,
    /// Weight of the squared error of the vectors.
    pub mse: f64,
    /// Weight of the behaviour loss: KL between the outputs of the original and of the decoded network.
    pub behaviour: f64,
    /// Share of each batch that the behaviour loss sees.
    pub behaviour_share: f64,
    /// Images of each class in the behaviour loss.
    pub behaviour_images: usize,
    /// Noise added to the standardised vectors.
    pub input_noise: f64,
    /// Optimiser steps.
    pub steps: usize,
    /// Batch.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Weight of the squared distance between a predictor's embeddings of weights and of their reconstruction (Eq. 9);
    /// above 0, a predictor without z_D is trained before, by the settings of `predictor`.
    pub predictor: f64,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            kind: VaeKind::default(),
            conv: ConvVaeConfig::default(),
            hidden: vec![512],
            latent: vec![128],
            rows: false,
            beta: 1e-4,
            kl_from: 0.0,
            mse: 1.0,
            behaviour: 0.3,
            behaviour_share: 0.5,
            behaviour_images: 8,
            input_noise: 0.001,
            steps: 2000,
            batch: 96,
            lr: 1e-3,
            weight_decay: 0.01,
            predictor: 0.0,
        }
    }
}

/// The dataset encoder and its alignment (Eq. 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// Feature extractor whose features the dataset encoder sees, while the networks see pixels; none: what the
    /// networks see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extractor: Option<String>,
    /// Images of each class.
    pub images: usize,
    /// Width inside.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Attention blocks inside a class and over classes.
    pub blocks: usize,
    /// Width of a class token.
    pub token_dim: usize,
    /// Width of z_D.
    pub embedding_dim: usize,
    /// Steps of the contrastive alignment (Eq. 2); 0 for none, where the encoder learns along with the denoiser (`joint`)
    /// or nothing is made of it.
    pub steps: usize,
    /// Batch.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Temperature of the contrastive loss at the start; it is learned.
    pub temperature: f64,
    /// Learning rate of the encoder while the denoiser trains, as a share of the denoiser's; 0 freezes it.
    pub joint: f64,
    /// The network.
    pub kind: EncoderKind,
    /// What the denoiser is told of the dataset.
    pub condition: Condition,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            extractor: None,
            images: 5,
            width: 64,
            heads: 4,
            blocks: 1,
            token_dim: 32,
            embedding_dim: 64,
            steps: 600,
            batch: 96,
            lr: 1e-3,
            weight_decay: 0.01,
            temperature: 0.1,
            joint: 0.0,
            kind: EncoderKind::default(),
            condition: Condition::default(),
        }
    }
}

/// The diffusion (Eq. 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// T.
    pub timesteps: usize,
    /// β₁.
    pub beta_start: f64,
    /// β_T.
    pub beta_end: f64,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Share of conditions replaced by zero, for classifier-free guidance.
    pub condition_dropout: f64,
    /// Whether the denoiser is told how good each checkpoint is, within its task: sampled at a high quality.
    pub quality: bool,
    /// Noise added to the latents of unit deviation.
    pub latent_noise: f64,
    /// Optimiser steps.
    pub steps: usize,
    /// Batch.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decay of the moving average of the parameters.
    pub ema: f64,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            beta_start: 0.0015,
            beta_end: 0.0155,
            prediction: Prediction::Sample,
            condition_dropout: 0.1,
            quality: false,
            latent_noise: 0.1,
            steps: 2000,
            batch: 96,
            lr: 1e-3,
            weight_decay: 0.05,
            ema: 0.995,
        }
    }
}

/// What the demo measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Seen tasks that are asked for.
    pub seen_tasks: usize,
    /// Unseen tasks that are asked for.
    pub unseen_tasks: usize,
    /// Samples of each request.
    pub samples: usize,
    /// DDIM steps.
    pub steps: usize,
    /// Guidance of each request.
    pub guidance: f64,
    /// Epochs of fine-tuning at which accuracy is measured.
    pub epochs: Vec<usize>,
    /// Images of a fine-tuning step.
    pub batch: usize,
    /// Adam's learning rate in fine-tuning.
    pub lr: f64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            seen_tasks: 52,
            unseen_tasks: 52,
            samples: 5,
            steps: 20,
            guidance: 1.0,
            epochs: vec![0, 1, 5],
            batch: 100,
            lr: 3e-3,
        }
    }
}

impl Config {
    /// The architectures for inputs of `input_shape` and `classes` classes; the first is the default.
    ///
    /// # Errors
    /// When the sizes make no network, the input does not fit one, or two are the same.
    pub fn build_architectures(&self, input_shape: &[usize], classes: usize) -> Result<Vec<Architecture>> {
        let all = self.architecture.iter().chain(&self.architectures);
        let built = all.map(|a| a.build(input_shape, classes)).collect::<Result<Vec<_>>>()?;
        match built.iter().enumerate().find(|(i, a)| built[..*i].contains(a)) {
            Some((_, twice)) => Err(Error::Config(format!("architectures has {} twice: once is enough", twice.name()))),
            None => Ok(built),
        }
    }

    /// Name of the feature extractor that the data goes through, if any.
    #[must_use]
    pub fn extractor(&self) -> Option<&str> {
        if self.data.backbone.is_some() {
            return Some(BACKBONE);
        }
        self.data.extractor.as_deref().or(self.encoder.extractor.as_deref()).filter(|name| *name != "pixels")
    }

    /// Parses and checks a TOML text.
    ///
    /// # Errors
    /// [`Error::Config`] with the line of a wrong key, or with the value that makes no sense.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|e| Error::Config(e.to_string().trim().replace('\n', " ")))?;
        config.validate()?;
        Ok(config)
    }

    /// Refuses sources that are files of the machine: a job may not read those.
    ///
    /// # Errors
    /// [`Error::Config`] with the sources there are.
    pub fn check_sources_of_job(&self) -> Result<()> {
        if self.zoo.start.is_some() {
            let text = "zoo.start is a file of the machine, which a job may not read: build such a zoo with \
                        `weightsmith zoo build`, and register what `weightsmith train` makes of it";
            return Err(Error::Config(text.into()));
        }
        let refused = |s: &&SourceConfig| s.from != "digits" && s.registered().is_none_or(str::is_empty);
        match self.data.sources.iter().find(refused) {
            Some(source) => Err(Error::Config(format!(
                "the source {} is from {:?}; a job takes \"digits\", or \"{REGISTERED}\" and the name or id of a dataset",
                source.name, source.from
            ))),
            None => Ok(()),
        }
    }

    /// Reads and checks a configuration in JSON, of the same form.
    ///
    /// # Errors
    /// [`Error::Config`] with the wrong key, or with the value that makes no sense.
    pub fn from_json(json: &serde_json::Value) -> Result<Self> {
        let config = Self::deserialize(json).map_err(|e| Error::Config(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "t"
        [data]
        sources = [{ name = "digits", from = "digits" }]
        [tasks]
        kind = "class_sets"
        classes = 5
        seen = 200
        orders = 15
        [architecture]
        kind = "mlp"
        hidden = [32]
        [denoiser]
        kind = "mlp"
        width = 64
        blocks = 2
    "#;

    #[test]
    fn a_minimal_file_has_the_defaults() {
        let config = Config::parse(MINIMAL).unwrap();
        assert_eq!(config.zoo, ZooConfig::default());
        assert_eq!(config.diffusion.timesteps, 1000);
    }

    #[test]
    fn full_networks_are_built_for_square_images() {
        let build = |architecture: &str, shape: &[usize]| {
            let text = MINIMAL.replace("kind = \"mlp\"\n        hidden = [32]", architecture);
            let built = Config::parse(&text).map(|config| config.build_architectures(shape, 5));
            built.and_then(|built| built).map(|all| all[0].name()).map_err(|e| e.to_string())
        };
        let resnet = "kind = \"resnet\"\nblocks = [1, 2]\nwidths = [4, 8]";
        assert_eq!(build(resnet, &[1, 8, 8]).unwrap(), "resnet-1-8-1-2-4-8-5");
        assert!(build(resnet, &[1, 8, 9]).unwrap_err().contains("square images"));
        assert!(build(resnet, &[64]).unwrap_err().contains("square images"));
        let cifar = "kind = \"resnet_cifar\"\ndepth = 8";
        assert_eq!(build(cifar, &[3, 32, 32]).unwrap(), "resnet-cifar-8-16-32-64-5");
        assert!(build(cifar, &[1, 8, 8]).unwrap_err().contains("[3, 32, 32]"));
        let vit = "kind = \"vit\"\npatch = 4\nwidth = 8\ndepth = 1\nheads = 2\nmlp = 16\npool = \"mean\"";
        assert_eq!(build(vit, &[3, 8, 8]).unwrap(), "vit-3-8-4-8-1-2-16-5-mean");
        assert!(build(vit, &[3, 10, 10]).unwrap_err().contains("patch must divide"));
        let mobilenet = "kind = \"mobilenet_v3\"\nstem = 4\nlast = 8\nhidden = 8\n\
                         blocks = [{ kernel = 3, expand = 8, out = 8, se = true }]";
        assert!(build(mobilenet, &[3, 8, 8]).unwrap().starts_with("mobilenet-v3-3-8-5-"));
        let even = mobilenet.replace("kernel = 3", "kernel = 2");
        assert!(build(&even, &[3, 8, 8]).unwrap_err().contains("odd number"));
        assert!(build(&mobilenet.replace("se =", "sse ="), &[3, 8, 8]).unwrap_err().contains("sse"));
    }

    #[test]
    fn keys_that_say_nothing_new_are_left_out() {
        let config = Config::parse(MINIMAL).unwrap();
        let keys = |value: serde_json::Value| {
            let keys: std::collections::BTreeSet<String> = value.as_object().unwrap().keys().cloned().collect();
            keys.into_iter().collect::<Vec<_>>().join(" ")
        };
        let zoo = serde_json::to_value(&config.zoo).unwrap();
        assert_eq!(keys(zoo), "batch common_init epochs group keep lr runs_per_task");
        assert_eq!(keys(serde_json::to_value(&config.data.sources[0]).unwrap()), "from name resize");
        let text = serde_json::to_string(&config).unwrap();
        for key in ["backbone", "role", "fit", "\"rows\""] {
            assert!(!text.contains(key), "{key} changes the digests of what was made before: {text}");
        }
    }

    #[test]
    fn numbers_of_classes_are_one_a_list_or_a_range() {
        let head = "kind = \"head\"\n[vae]\nrows = true\nlatent = [5, 8]";
        let rows = MINIMAL
            .replace("kind = \"mlp\"\n        hidden = [32]", head)
            .replace("kind = \"mlp\"\n        width = 64", "kind = \"rows\"\nheads = 2\nwidth = 64");
        let with = |classes: &str| Config::parse(&rows.replace("classes = 5", &format!("classes = {classes}")));
        let one = with("5").unwrap();
        assert_eq!(one.most_classes(), None);
        assert!(serde_json::to_string(&one).unwrap().contains("\"classes\":5,"), "as ever");
        for classes in ["[2, 3, 5]", "{ min = 2, max = 5 }", "[5]"] {
            assert_eq!(with(classes).unwrap().most_classes(), Some(5), "{classes}");
        }
        let error = |classes: &str| with(classes).unwrap_err().to_string();
        for (classes, text) in [
            ("[3, 2, 5]", "ascending"),
            ("[1, 5]", "at least 2"),
            ("[]", "ascending"),
            ("{ min = 1, max = 5 }", "min ≤ max"),
            ("{ min = 2, most = 5 }", "a range such as"),
            ("\"five\"", "a range such as"),
            ("[2, 4]", "the largest of tasks.classes"),
        ] {
            assert!(error(classes).contains(text), "{classes}: {}", error(classes));
        }
        let mlp = MINIMAL.replace("classes = 5", "classes = [2, 5]");
        assert!(Config::parse(&mlp).unwrap_err().to_string().contains("vae.rows = true"));
        let predicts = format!("{}\n[predictor]\nsteps = 5", rows.replace("classes = 5", "classes = [2, 5]"));
        assert!(Config::parse(&predicts).unwrap_err().to_string().contains("predictor.steps 0"));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| Config::parse(text).unwrap_err().to_string();
        assert!(error(&MINIMAL.replace("width = 64", "widht = 64")).contains("widht"));
        assert!(error(&format!("{MINIMAL}\n[zoo]\nbatch = 0")).contains("zoo.batch"));
        assert!(error(&format!("{MINIMAL}\n[encoder]\nwidth = 10")).contains("multiple of encoder.heads"));
        let unet = MINIMAL.replace(
            "kind = \"mlp\"\n        width = 64\n        blocks = 2",
            "kind = \"unet\"\nchannels = 16\nmultipliers = [1, 2]",
        );
        assert!(error(&unet).contains("[c, h, w]"), "{}", error(&unet));
        assert!(error(&format!("{MINIMAL}\n[zoo]\nfit = \"ridge\"")).contains("architecture.kind must be head"));
        assert!(error(&format!("{MINIMAL}\n[zoo]\nimages = 5")).contains("zoo.images"));
        assert!(error(&format!("{MINIMAL}\n[vae]\nrows = true")).contains("vae.rows is for linear heads"));
        let zoo = |keys: &str| error(&format!("{MINIMAL}\n[zoo]\n{keys}"));
        assert!(zoo("start = \"a.pth\"").contains("zoo.train"));
        assert!(zoo("train = [\"layers.1.*\"]").contains("zoo.start"));
        assert!(zoo("start = \"a\"\ntrain = [\"layers.1.*\"]\nheads = [\"mnist\"]").contains("mnist"));
        let rows = MINIMAL.replace("kind = \"mlp\"\n        width = 64", "kind = \"rows\"\nheads = 2\nwidth = 64");
        assert!(error(&rows).contains("needs vae.rows"), "{}", error(&rows));
        let head = MINIMAL.replace("kind = \"mlp\"\n        hidden = [32]", "kind = \"head\"");
        assert!(error(&format!("{head}\n[vae]\nrows = true\nlatent = [4, 8]")).contains("tasks.classes"));
        let source =
            |role: &str| MINIMAL.replace("from = \"digits\"", &format!("from = \"digits\", role = \"{role}\""));
        assert!(error(&source("left_out")).contains("at least one source whose role is zoo"));
        let both = MINIMAL.replace("[tasks]", "backbone = { kind = \"pca\", dim = 4 }\nextractor = \"clip\"\n[tasks]");
        assert!(error(&both).contains("data.backbone makes the extractor"), "{}", error(&both));
    }
}
