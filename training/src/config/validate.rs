//! Checks a configuration's values, so that a mistake is named before minutes are spent.

use super::{ArchitectureConfig, BackboneConfig, Condition, Config, EncoderKind, Role, VaeKind, ZooFit};
use crate::error::{Error, Result};
use crate::networks::denoiser::DenoiserConfig;
use weights::vectorise::VectoriseMode;

pub(super) fn need(ok: bool, text: impl Into<String>) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Config(text.into())) }
}

impl Config {
    /// Checks values against their ranges and each other.
    ///
    /// # Errors
    /// [`Error::Config`] with what would be right.
    pub fn validate(&self) -> Result<()> {
        self.validate_sources()?;
        self.validate_extractor()?;
        self.validate_counts()?;
        self.validate_start()?;
        self.validate_numbers()?;
        self.validate_predictor()?;
        self.validate_evaluation()?;
        self.validate_networks()
    }

    fn validate_sources(&self) -> Result<()> {
        need(!self.data.sources.is_empty(), "data.sources needs at least one source")?;
        for (i, source) in self.data.sources.iter().enumerate() {
            let first = self.data.sources.iter().position(|s| s.name == source.name) == Some(i);
            need(first, format!("data.sources names {} twice", source.name))?;
        }
        for (share, name) in [(self.data.validation, "data.validation"), (self.data.test, "data.test")] {
            need(share > 0.0 && share < 1.0, format!("{name} must lie between 0 and 1, both excluded"))?;
        }
        let zoo = self.data.sources.iter().any(|s| s.role == Role::Zoo);
        need(zoo, "data.sources needs at least one source whose role is zoo, or that has none")?;
        let backbone = self.data.sources.iter().any(|s| s.role == Role::Backbone);
        need(!backbone || self.data.backbone.is_some(), "a source with the role backbone needs data.backbone")?;
        self.validate_tasks()
    }

    fn validate_extractor(&self) -> Result<()> {
        if let Some(backbone) = &self.data.backbone {
            let alone = self.data.extractor.is_none() && self.encoder.extractor.is_none();
            need(alone, "data.backbone makes the extractor; with it leave data.extractor and encoder.extractor out")?;
            let (BackboneConfig::Pca { dim } | BackboneConfig::Conv { dim, .. }) = backbone;
            need((1..=4096).contains(dim), "data.backbone.dim must lie between 1 and 4096")?;
            if let BackboneConfig::Conv { channels, steps, batch, lr, .. } = backbone {
                let some = (1..=8).contains(&channels.len()) && channels.iter().all(|c| (1..=1024).contains(c));
                need(some, "data.backbone.channels needs 1 to 8 convolutions of 1 to 1024 channels")?;
                need(*steps > 0 && *batch > 0, "data.backbone.steps and batch must be at least 1")?;
                need(*lr > 0.0 && lr.is_finite(), "data.backbone.lr must be a positive number")?;
            }
        }
        match (&self.data.extractor, &self.encoder.extractor) {
            (Some(data), Some(encoder)) => need(
                data == encoder,
                "data.extractor and encoder.extractor differ; with data.extractor leave the other out",
            ),
            _ => Ok(()),
        }
    }

    fn validate_counts(&self) -> Result<()> {
        for (value, name) in [
            (self.zoo.runs_per_task, "zoo.runs_per_task"),
            (self.zoo.epochs, "zoo.epochs"),
            (self.zoo.batch, "zoo.batch"),
            (self.zoo.group, "zoo.group"),
            (self.zoo.keep, "zoo.keep"),
            (self.vae.steps, "vae.steps"),
            (self.vae.batch, "vae.batch"),
            (self.vae.behaviour_images, "vae.behaviour_images"),
            (self.encoder.images, "encoder.images"),
            (self.encoder.width, "encoder.width"),
            (self.encoder.token_dim, "encoder.token_dim"),
            (self.encoder.embedding_dim, "encoder.embedding_dim"),
            (self.vae.hidden.iter().copied().min().unwrap_or(1), "each width of vae.hidden"),
            (self.encoder.batch, "encoder.batch"),
            (self.encoder.heads, "encoder.heads"),
            (self.diffusion.steps, "diffusion.steps"),
            (self.diffusion.batch, "diffusion.batch"),
            (self.diffusion.timesteps, "diffusion.timesteps"),
            (self.evaluation.samples, "evaluation.samples"),
            (self.evaluation.steps, "evaluation.steps"),
            (self.evaluation.batch, "evaluation.batch"),
        ] {
            need(value > 0, format!("{name} must be at least 1"))?;
        }
        need(self.zoo.keep <= self.zoo.epochs, "zoo.keep cannot exceed zoo.epochs")?;
        let head = self.only_heads();
        let ridge = self.zoo.fit == ZooFit::Ridge;
        need(
            !ridge || head && self.zoo.keep == 1,
            "zoo.fit = \"ridge\" makes linear heads: architecture.kind must be head, and zoo.keep 1",
        )?;
        need(ridge || self.zoo.images == 0, "zoo.images is for zoo.fit = \"ridge\"")?;
        let epochs = &self.evaluation.epochs;
        let ascending = !epochs.is_empty() && epochs.windows(2).all(|w| w[0] < w[1]);
        need(ascending, "evaluation.epochs must be numbers in ascending order, such as [0, 1, 5]")
    }

    /// Zoos whose runs train a part of the network.
    fn validate_start(&self) -> Result<()> {
        let zoo = &self.zoo;
        if zoo.start.is_none() {
            let none = zoo.train.is_empty() && zoo.heads.is_empty() && zoo.start_noise == 0.0;
            let file = zoo.start_key.is_none() && zoo.start_strip_prefix.is_none();
            return need(
                none && file,
                "zoo.train, heads, start_noise, start_key and start_strip_prefix belong to zoo.start, a checkpoint file",
            );
        }
        need(
            !zoo.train.is_empty(),
            "zoo.start needs zoo.train, patterns of the parameters that are trained, such as [\"layer3.2.bn2.*\"]",
        )?;
        need(zoo.fit == ZooFit::Adam, "zoo.start needs zoo.fit = \"adam\"")?;
        need(self.architecture.is_some(), "zoo.start takes one [architecture], not a list architectures")?;
        need(!self.only_heads(), "a linear head is one layer: zoo.start takes other kinds of architecture")?;
        need(
            self.data.backbone.is_none() && self.data.extractor.is_none(),
            "zoo.start takes networks of pixels: leave data.backbone and data.extractor out",
        )?;
        for name in &zoo.heads {
            let known = self.data.sources.iter().any(|source| source.name == *name);
            need(known, format!("zoo.heads names {name}, and there is no source of that name"))?;
        }
        need(zoo.start_noise >= 0.0 && zoo.start_noise.is_finite(), "zoo.start_noise must be 0 or a positive number")
    }

    fn validate_numbers(&self) -> Result<()> {
        for (share, name) in [
            (self.vectors.held_out, "vectors.held_out"),
            (self.vae.behaviour_share, "vae.behaviour_share"),
            (self.diffusion.condition_dropout, "diffusion.condition_dropout"),
        ] {
            need((0.0..=1.0).contains(&share), format!("{name} must lie between 0 and 1"))?;
        }
        for (value, name) in [
            (self.zoo.lr, "zoo.lr"),
            (self.vae.lr, "vae.lr"),
            (self.encoder.lr, "encoder.lr"),
            (self.encoder.temperature, "encoder.temperature"),
            (self.diffusion.lr, "diffusion.lr"),
            (self.evaluation.lr, "evaluation.lr"),
        ] {
            need(value > 0.0 && value.is_finite(), format!("{name} must be a positive number"))?;
        }
        for (value, name) in [
            (self.vae.beta, "vae.beta"),
            (self.vae.mse, "vae.mse"),
            (self.vae.behaviour, "vae.behaviour"),
            (self.vae.input_noise, "vae.input_noise"),
            (self.vae.predictor, "vae.predictor"),
            (self.vae.weight_decay, "vae.weight_decay"),
            (self.encoder.weight_decay, "encoder.weight_decay"),
            (self.encoder.joint, "encoder.joint"),
            (self.diffusion.latent_noise, "diffusion.latent_noise"),
            (self.diffusion.weight_decay, "diffusion.weight_decay"),
        ] {
            need(value >= 0.0 && value.is_finite(), format!("{name} must be 0 or a positive number"))?;
        }
        need(
            self.vectors.best_share > 0.0 && self.vectors.best_share <= 1.0,
            "vectors.best_share must lie above 0 and not above 1",
        )?;
        need((0.0..1.0).contains(&self.diffusion.ema), "diffusion.ema must be at least 0 and below 1")?;
        let (start, end) = (self.diffusion.beta_start, self.diffusion.beta_end);
        need(0.0 < start && start <= end && end < 1.0, "diffusion needs 0 < beta_start ≤ beta_end < 1")
    }

    fn validate_predictor(&self) -> Result<()> {
        let p = &self.predictor;
        for (value, name) in [(p.examples, "examples"), (p.width, "width"), (p.batch, "batch")] {
            need(value > 0, format!("predictor.{name} must be at least 1"))?;
        }
        need(p.lr > 0.0 && p.lr.is_finite(), "predictor.lr must be a positive number")?;
        for (value, name) in [(p.input_noise, "input_noise"), (p.weight_decay, "weight_decay")] {
            need(value >= 0.0 && value.is_finite(), format!("predictor.{name} must be 0 or a positive number"))?;
        }
        let whole = self.architectures.len() <= 1 && self.vectors.mode == VectoriseMode::ModelWise;
        need(
            p.steps == 0 || whole,
            "a predictor takes whole networks of one architecture: leave predictor.steps 0 with several architectures, or \
             with vectors.mode other than model_wise",
        )?;
        need(
            self.vae.predictor == 0.0 || p.steps > 0,
            "vae.predictor needs a predictor: set predictor.steps to at least 1",
        )
    }

    fn validate_evaluation(&self) -> Result<()> {
        let (e, d) = (&self.evaluation, &self.diffusion);
        need(e.steps <= d.timesteps, "evaluation.steps cannot exceed diffusion.timesteps")?;
        need(e.samples <= 256, "evaluation.samples must be at most 256, the server's limit")?;
        need((0.0..=20.0).contains(&e.guidance), "evaluation.guidance must lie between 0 and 20")?;
        let guided = e.guidance != 1.0;
        need(!guided || d.condition_dropout > 0.0, "evaluation.guidance other than 1 needs diffusion.condition_dropout")
    }

    fn validate_vae(&self) -> Result<()> {
        let several = self.architectures.len() > 1 || self.vectors.mode != VectoriseMode::ModelWise;
        match self.vae.kind {
            VaeKind::Linear => Ok(()),
            VaeKind::Conv => {
                need(!several, "vae.kind = \"conv\" takes whole networks of one architecture; use linear")?;
                self.vae.conv.halvings(&self.vae.latent).map(|_| ())
            }
            VaeKind::Identity => need(
                matches!(self.denoiser, DenoiserConfig::Mlp { .. }),
                "vae.kind = \"identity\" gives weights as they are to the denoiser: use denoiser.kind = \"mlp\"",
            ),
        }
    }

    fn validate_encoder(&self) -> Result<()> {
        let e = &self.encoder;
        need(
            e.steps > 0 || e.joint > 0.0 || e.condition == Condition::None,
            "encoder.steps is 0, so the encoder would learn nothing: give it steps of alignment, let it learn along with \
             the denoiser (encoder.joint above 0), or set encoder.condition to none",
        )?;
        need(
            e.joint == 0.0 || e.condition != Condition::None,
            "encoder.joint needs a condition to learn from: leave it 0 with encoder.condition = \"none\"",
        )?;
        need(
            e.kind == EncoderKind::SetTransformer || e.condition != Condition::Tokens,
            "the MLP encoder has no class tokens: set encoder.condition to pooled (or none) with encoder.kind = \"mlp\"",
        )
    }

    fn validate_networks(&self) -> Result<()> {
        let one = self.architecture.is_some() == self.architectures.is_empty();
        need(one, "give either [architecture], or a list architectures with at least one")?;
        need(
            (self.vectors.mode == VectoriseMode::ModelWise) == self.vectors.chunk.is_none(),
            "vectors.chunk, the values of a row, belongs to vectors.mode layer_wise or uniform, which need it",
        )?;
        need(self.vectors.chunk != Some(0), "vectors.chunk must be at least 1")?;
        self.validate_encoder()?;
        need(
            (0.0..1.0).contains(&self.vae.kl_from),
            "vae.kl_from, a share of vae.steps, must be at least 0 and below 1",
        )?;
        need(
            self.encoder.width.is_multiple_of(self.encoder.heads),
            "encoder.width must be a multiple of encoder.heads",
        )?;
        let latent: usize = self.vae.latent.iter().product();
        need(latent > 0, "vae.latent must have at least one value")?;
        self.validate_vae()?;
        self.validate_rows()?;
        self.validate_class_rows()?;
        match &self.denoiser {
            DenoiserConfig::Unet(unet) => unet.validate(&self.vae.latent),
            DenoiserConfig::Mlp { width, .. } => need(*width > 0, "denoiser.width must be at least 1"),
            DenoiserConfig::Transformer { width, heads, pieces, .. } => {
                let some = *width > 0 && *heads > 0 && *pieces > 0;
                let fits = some && width.is_multiple_of(*heads) && latent.is_multiple_of(*pieces);
                need(fits, "denoiser.width must be a multiple of heads and the latent's size one of pieces")
            }
            DenoiserConfig::Rows { width, heads, .. } => {
                need(self.vae.rows, "a denoiser of the kind rows needs vae.rows")?;
                need(
                    !self.diffusion.quality,
                    "a denoiser of the kind rows takes no quality: leave diffusion.quality out",
                )?;
                let tokens = self.encoder.condition == Condition::default();
                need(tokens, "a denoiser of the kind rows needs the class tokens: leave encoder.condition out")?;
                let fits = *width > 0 && *heads > 0 && width.is_multiple_of(*heads);
                need(fits, "denoiser.width must be a multiple of heads")
            }
        }
    }

    /// Whether the only networks are linear heads.
    fn only_heads(&self) -> bool {
        self.architecture == Some(ArchitectureConfig::Head) && self.architectures.is_empty()
    }

    /// Rows are those of linear heads.
    fn validate_rows(&self) -> Result<()> {
        if !self.vae.rows {
            return Ok(());
        }
        need(self.only_heads(), "vae.rows is for linear heads: architecture.kind must be head")?;
        need(self.vae.kind == VaeKind::Linear, "vae.rows needs vae.kind = \"linear\"")?;
        need(self.vectors.mode == VectoriseMode::ModelWise, "vae.rows needs vectors.mode = \"model_wise\"")?;
        need(self.vae.latent.len() == 2, "vae.rows needs a latent of shape [classes, width of a row]")
    }
}
