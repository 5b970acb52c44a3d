//! Networks whose weights are generated.

use serde::{Deserialize, Serialize};
use weights::mobilenet::stem_stride;
use weights::{Activation, Architecture, InvertedResidual, MobilenetV3, Pool, Resnet, Vit};

use crate::error::{Error, Result};

/// Network whose weights are generated; inputs and classes follow from the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ArchitectureConfig {
    /// Multi-layer perceptron.
    Mlp {
        /// Hidden widths.
        hidden: Vec<usize>,
        /// Activation.
        #[serde(default)]
        activation: Activation,
    },
    /// The tiny CNN on 28×28 images.
    TinyCnn,
    /// ResNet for 32×32 colour images, with shortcuts without parameters.
    ResnetCifar {
        /// Layers with weights: 6n + 2.
        depth: usize,
        /// Channels of each stage.
        #[serde(default = "cifar_widths")]
        widths: [usize; 3],
    },
    /// Residual network of basic blocks, such as ResNet-18.
    Resnet {
        /// Blocks of each stage.
        blocks: Vec<usize>,
        /// Channels of each stage.
        widths: Vec<usize>,
    },
    /// MobileNetV3.
    MobilenetV3 {
        /// Channels of the first convolution.
        stem: usize,
        /// Its stride.
        #[serde(default = "stem_stride")]
        stem_stride: usize,
        /// The inverted residuals.
        blocks: Vec<InvertedResidual>,
        /// Channels of the last convolution.
        last: usize,
        /// Units of the classifier's hidden layer.
        hidden: usize,
    },
    /// Vision transformer.
    Vit {
        /// Height and width of a patch.
        patch: usize,
        /// Width of a token.
        width: usize,
        /// Blocks.
        depth: usize,
        /// Attention heads.
        heads: usize,
        /// Hidden units of a block's MLP.
        mlp: usize,
        /// What the classifier sees.
        #[serde(default)]
        pool: Pool,
    },
    /// Linear head on features.
    Head,
}

fn cifar_widths() -> [usize; 3] {
    [16, 32, 64]
}

impl ArchitectureConfig {
    /// The architecture for inputs of `input_shape` and `classes` classes.
    ///
    /// # Errors
    /// When the sizes make no network, or the input does not fit.
    pub fn build(&self, input_shape: &[usize], classes: usize) -> Result<Architecture> {
        let inputs = input_shape.iter().product();
        let architecture = match self {
            Self::Mlp { hidden, activation } => {
                Architecture::Mlp { inputs, hidden: hidden.clone(), classes, activation: *activation }
            }
            Self::TinyCnn => Architecture::TinyCnn { channels: input_shape[0], classes },
            Self::Head => Architecture::Head { features: inputs, classes },
            Self::ResnetCifar { depth, widths } => {
                Architecture::ResnetCifar { depth: *depth, widths: *widths, classes }
            }
            Self::Resnet { blocks, widths } => {
                let (channels, side) = image_size(input_shape)?;
                Architecture::Resnet(Resnet { channels, side, blocks: blocks.clone(), widths: widths.clone(), classes })
            }
            Self::MobilenetV3 { stem, stem_stride, blocks, last, hidden } => {
                let (channels, side) = image_size(input_shape)?;
                let (stem, stem_stride, last, hidden) = (*stem, *stem_stride, *last, *hidden);
                let blocks = blocks.clone();
                Architecture::MobilenetV3(MobilenetV3 {
                    channels,
                    side,
                    stem,
                    stem_stride,
                    blocks,
                    last,
                    hidden,
                    classes,
                })
            }
            Self::Vit { patch, width, depth, heads, mlp, pool } => {
                let (channels, side) = image_size(input_shape)?;
                let (patch, width, depth, heads, mlp) = (*patch, *width, *depth, *heads, *mlp);
                Architecture::Vit(Vit { channels, side, patch, width, depth, heads, mlp, pool: *pool, classes })
            }
        };
        architecture.validate()?;
        let image = architecture.input_shape().len() == 3;
        if architecture.input_dim() != inputs || image && architecture.input_shape() != input_shape {
            let need = architecture.input_shape();
            return Err(Error::Config(format!(
                "{} takes inputs of shape {need:?}, the data has {input_shape:?}; set `resize` for each source",
                architecture.name()
            )));
        }
        Ok(architecture)
    }
}

/// Channels and side of square images.
fn image_size(input_shape: &[usize]) -> Result<(usize, usize)> {
    match input_shape {
        [channels, height, width] if height == width => Ok((*channels, *height)),
        _ => Err(Error::Config(format!(
            "a convolutional network takes square images, the data has {input_shape:?}; set `resize` for each source"
        ))),
    }
}
