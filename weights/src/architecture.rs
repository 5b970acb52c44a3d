//! The architectures whose weights are generated: sizes, layout, symmetries. The forward pass of each lives in
//! `training::networks`, written once for every backend.

use serde::{Deserialize, Serialize};

use crate::basic_resnet::Resnet;
use crate::canonical::HiddenGroup;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::lora::Lora;
use crate::mobilenet::MobilenetV3;
use crate::resnet;
use crate::vit::Vit;

/// Activation between hidden layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(0, x).
    #[default]
    Relu,
    /// Hyperbolic tangent: odd, so hidden units may also be flipped in sign.
    Tanh,
}

/// A target architecture with its sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Architecture {
    /// Multi-layer perceptron on flattened images or features.
    Mlp {
        /// Number of inputs.
        inputs: usize,
        /// Width of each hidden layer.
        hidden: Vec<usize>,
        /// Number of classes.
        classes: usize,
        /// Activation after each hidden layer.
        #[serde(default)]
        activation: Activation,
    },
    /// The CNN of the model-zoo literature on 28×28 images: conv 8@5×5, pool 2, conv 6@5×5, pool 2, conv 4@2×2,
    /// fc 36→20→classes, tanh. 2,464 parameters for 1 channel and 10 classes, 2,864 for 3 channels.
    TinyCnn {
        /// Input channels.
        channels: usize,
        /// Number of classes.
        classes: usize,
    },
    /// ResNet for 32×32 colour images with values from 0 to 1, as the published CIFAR-10 checkpoints: see
    /// [`crate::resnet`].
    ResnetCifar {
        /// Layers with weights: 6n + 2, such as 20, 32, 44 and 56.
        depth: usize,
        /// Channels of each stage.
        #[serde(default = "resnet_widths")]
        widths: [usize; 3],
        /// Number of classes.
        classes: usize,
    },
    /// Residual network of basic blocks: see [`crate::basic_resnet`].
    Resnet(Resnet),
    /// MobileNetV3: see [`crate::mobilenet`].
    MobilenetV3(MobilenetV3),
    /// Vision transformer: see [`crate::vit`].
    Vit(Vit),
    /// Linear classifier on frozen features.
    Head {
        /// Feature dimension.
        features: usize,
        /// Number of classes.
        classes: usize,
    },
    /// LoRA with a classifier on a text model: see [`crate::lora`]. It has no forward pass of its own here.
    Lora(Lora),
}

fn resnet_widths() -> [usize; 3] {
    [16, 32, 64]
}

/// Side of the tiny CNN's input images.
pub const TINY_CNN_SIDE: usize = 28;

impl Architecture {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Architecture`] when a size is zero, there are fewer than two classes, or the network is too large.
    pub fn validate(&self) -> Result<()> {
        let fail = |reason: &str| Err(Error::Architecture { name: self.name(), reason: reason.to_owned() });
        if self.classes() < 2 {
            return fail("a classifier needs at least 2 classes");
        }
        let sizes: Vec<usize> = match self {
            Self::Mlp { inputs, hidden, .. } => std::iter::once(*inputs).chain(hidden.iter().copied()).collect(),
            Self::TinyCnn { channels, .. } => vec![*channels],
            Self::Head { features, .. } => vec![*features],
            Self::ResnetCifar { depth, widths, .. } => {
                if resnet::blocks(*depth).is_none() {
                    return fail(
                        "the depth of a ResNet for CIFAR is 6n + 2 and from 8 to 1202, such as 20, 32, 44 or 56",
                    );
                }
                // A shortcut adds as many zero channels before as behind.
                if widths.windows(2).any(|w| w[1] < w[0] || !(w[1] - w[0]).is_multiple_of(2)) {
                    return fail(
                        "each stage of a ResNet has as many channels as the one before, or an even number more",
                    );
                }
                widths.to_vec()
            }
            Self::Resnet(net) => {
                if let Some(reason) = net.wrong() {
                    return fail(reason);
                }
                // Names are those of rows in a registry, too.
                if net.name().len() > 100 {
                    return fail("its sizes make a name of more than 100 characters; take fewer stages");
                }
                [net.channels, net.side].into_iter().chain(net.widths.iter().copied()).collect()
            }
            Self::MobilenetV3(net) => match net.wrong() {
                Some(reason) => return fail(reason),
                None => net.sizes(),
            },
            Self::Vit(net) => match net.wrong() {
                Some(reason) => return fail(reason),
                None => net.sizes(),
            },
            Self::Lora(lora) => match lora.wrong() {
                Some(reason) => return fail(reason),
                None => lora.sizes(),
            },
        };
        if sizes.contains(&0) {
            return fail("every size must be at least 1");
        }
        if sizes.iter().chain([&self.classes()]).any(|&s| s > 1 << 20) {
            return fail("no size may exceed 1,048,576");
        }
        Ok(())
    }

    /// The adapter that it is, where it is one.
    pub fn lora(&self) -> Option<&Lora> {
        match self {
            Self::Lora(lora) => Some(lora),
            _ => None,
        }
    }

    /// A name that says the sizes, such as `mlp-64-32-5`.
    pub fn name(&self) -> String {
        match self {
            Self::Mlp { inputs, hidden, classes, activation } => {
                let sizes: Vec<String> =
                    std::iter::once(inputs).chain(hidden).chain([classes]).map(usize::to_string).collect();
                let suffix = if *activation == Activation::Tanh { "-tanh" } else { "" };
                format!("mlp-{}{suffix}", sizes.join("-"))
            }
            Self::TinyCnn { channels, classes } => format!("tiny-cnn-{channels}-{classes}"),
            Self::ResnetCifar { depth, widths: [a, b, c], classes } => {
                format!("resnet-cifar-{depth}-{a}-{b}-{c}-{classes}")
            }
            Self::Resnet(net) => net.name(),
            Self::MobilenetV3(net) => net.name(),
            Self::Vit(net) => net.name(),
            Self::Head { features, classes } => format!("head-{features}-{classes}"),
            Self::Lora(lora) => lora.name(),
        }
    }

    /// Number of classes, the width of the logits.
    pub fn classes(&self) -> usize {
        match self {
            Self::Mlp { classes, .. }
            | Self::TinyCnn { classes, .. }
            | Self::ResnetCifar { classes, .. }
            | Self::Head { classes, .. } => *classes,
            Self::Resnet(net) => net.classes,
            Self::MobilenetV3(net) => net.classes,
            Self::Vit(net) => net.classes,
            Self::Lora(lora) => lora.classes,
        }
    }

    /// Shape of one input: `[features]`, or `[channels, height, width]`; empty where it is a text.
    pub fn input_shape(&self) -> Vec<usize> {
        match self {
            Self::Mlp { inputs, .. } => vec![*inputs],
            Self::TinyCnn { channels, .. } => vec![*channels, TINY_CNN_SIDE, TINY_CNN_SIDE],
            Self::ResnetCifar { .. } => vec![3, resnet::SIDE, resnet::SIDE],
            Self::Resnet(net) => vec![net.channels, net.side, net.side],
            Self::MobilenetV3(net) => vec![net.channels, net.side, net.side],
            Self::Vit(net) => vec![net.channels, net.side, net.side],
            Self::Head { features, .. } => vec![*features],
            Self::Lora(_) => Vec::new(),
        }
    }

    /// Number of values of one input.
    pub fn input_dim(&self) -> usize {
        self.input_shape().iter().product()
    }

    /// Values that a pass holds of one example: those of the input, or of convolutional networks about those of the
    /// layers at the first stage's size, to bound memory by.
    pub fn activations(&self) -> usize {
        let first_stage = match self {
            Self::ResnetCifar { depth, widths, .. } => 4 * widths[0] * resnet::blocks(*depth).unwrap_or(0) / 3,
            Self::Resnet(net) => 4 * net.widths.iter().zip(&net.blocks).map(|(w, b)| w * b).max().unwrap_or(0) / 3,
            Self::MobilenetV3(net) => 2 * net.blocks.iter().map(|b| b.expand).max().unwrap_or(0).max(net.stem),
            Self::Vit(net) => return self.input_dim().max(net.tokens() * (4 * net.width + net.mlp) * net.depth / 2),
            _ => return self.input_dim(),
        };
        let image: usize = self.input_shape()[1..].iter().product();
        self.input_dim().max(first_stage * image)
    }

    /// Names, shapes and order of the parameters.
    pub fn layout(&self) -> Layout {
        match self {
            Self::Mlp { inputs, hidden, classes, .. } => {
                let sizes: Vec<usize> =
                    std::iter::once(*inputs).chain(hidden.iter().copied()).chain([*classes]).collect();
                Layout::new(sizes.windows(2).enumerate().flat_map(|(i, io)| {
                    let (input, output) = (io[0], io[1]);
                    [(format!("layers.{i}.weight"), vec![output, input]), (format!("layers.{i}.bias"), vec![output])]
                }))
            }
            Self::TinyCnn { channels, classes } => Layout::new([
                ("conv1.weight", vec![8, *channels, 5, 5]),
                ("conv1.bias", vec![8]),
                ("conv2.weight", vec![6, 8, 5, 5]),
                ("conv2.bias", vec![6]),
                ("conv3.weight", vec![4, 6, 2, 2]),
                ("conv3.bias", vec![4]),
                ("fc1.weight", vec![20, 36]),
                ("fc1.bias", vec![20]),
                ("fc2.weight", vec![*classes, 20]),
                ("fc2.bias", vec![*classes]),
            ]),
            Self::ResnetCifar { depth, widths, classes } => resnet::layout(*depth, widths, *classes),
            Self::Resnet(net) => net.layout(),
            Self::MobilenetV3(net) => net.layout(),
            Self::Vit(net) => net.layout(),
            Self::Head { features, classes } => {
                Layout::new([("weight", vec![*classes, *features]), ("bias", vec![*classes])])
            }
            Self::Lora(lora) => lora.layout(),
        }
    }

    /// The layers of hidden units that may be permuted (and, where the path to the next layer is odd, flipped in
    /// sign) without changing the network's function.
    pub fn hidden_groups(&self) -> Vec<HiddenGroup> {
        let layout = self.layout();
        // `units` outputs of one layer feed the next.
        let between = |layer: &str, next: &str, units, odd| {
            let (weight, bias, columns) =
                (format!("{layer}.weight"), format!("{layer}.bias"), format!("{next}.weight"));
            let rows = layout.get(&columns).map_or(0, |p| p.shape[0]);
            HiddenGroup::new(&layout, units, odd, [(weight, 1), (bias, 1), (columns, rows)])
        };
        match self {
            Self::Mlp { hidden, activation, .. } => {
                let group = |(i, &units): (usize, &usize)| {
                    let odd = *activation == Activation::Tanh;
                    between(&format!("layers.{i}"), &format!("layers.{}", i + 1), units, odd)
                };
                hidden.iter().enumerate().map(group).collect()
            }
            // Max pooling is not odd, so the two pooled layers keep their sign.
            Self::TinyCnn { .. } => vec![
                between("conv1", "conv2", 8, false),
                between("conv2", "conv3", 6, false),
                between("conv3", "fc1", 4, true),
                between("fc1", "fc2", 20, true),
            ],
            Self::ResnetCifar { depth, widths, .. } => resnet::hidden_groups(*depth, widths, &layout),
            Self::Resnet(net) => net.hidden_groups(&layout),
            Self::MobilenetV3(net) => net.hidden_groups(&layout),
            Self::Vit(net) => net.hidden_groups(&layout),
            Self::Head { .. } | Self::Lora(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_cnn_has_the_parameters_of_the_literature() {
        assert_eq!(Architecture::TinyCnn { channels: 1, classes: 10 }.layout().parameters(), 2464);
        assert_eq!(Architecture::TinyCnn { channels: 3, classes: 10 }.layout().parameters(), 2864);
    }

    #[test]
    fn mlp_layout_is_weight_then_bias() {
        let mlp = Architecture::Mlp { inputs: 64, hidden: vec![32], classes: 5, activation: Activation::Relu };
        let layout = mlp.layout();
        assert_eq!(layout.parameters(), 2245);
        assert_eq!(layout.names(), "layers.0.weight, layers.0.bias, layers.1.weight, layers.1.bias");
        assert_eq!(layout.params[2].offset, 64 * 32 + 32);
        assert_eq!(mlp.name(), "mlp-64-32-5");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let bad = Architecture::Mlp { inputs: 0, hidden: vec![4], classes: 5, activation: Activation::Relu };
        assert!(bad.validate().is_err());
        assert!(Architecture::Head { features: 4, classes: 1 }.validate().is_err());
        assert!(Architecture::Head { features: 4, classes: 2 }.validate().is_ok());
        let resnet = |depth, widths| Architecture::ResnetCifar { depth, widths, classes: 10 }.validate();
        assert!(resnet(20, [16, 32, 64]).is_ok() && resnet(8, [4, 4, 6]).is_ok());
        assert!(resnet(21, [16, 32, 64]).is_err() && resnet(20, [16, 8, 64]).is_err());
        assert!(resnet(20, [16, 17, 64]).is_err() && resnet(20, [0, 2, 4]).is_err());
        assert!(resnet(usize::MAX, [16, 32, 64]).is_err());
        let basic = |blocks: &[usize], widths: &[usize]| {
            let (blocks, widths) = (blocks.to_vec(), widths.to_vec());
            Architecture::Resnet(Resnet { channels: 1, side: 9, blocks, widths, classes: 3 }).validate()
        };
        assert!(basic(&[1, 2], &[4, 3]).is_ok() && basic(&[1], &[4]).is_ok());
        assert!(basic(&[1, 2], &[4]).is_err() && basic(&[], &[]).is_err());
        let vit = |patch, heads, mlp| {
            let (channels, side, width, depth, classes) = (1, 9, 8, 1, 3);
            let pool = crate::Pool::Mean;
            Architecture::Vit(Vit { channels, side, patch, width, depth, heads, mlp, pool, classes }).validate()
        };
        assert!(vit(3, 2, 4).is_ok());
        assert!(vit(2, 2, 4).is_err() && vit(3, 3, 4).is_err() && vit(3, 2, 0).is_err() && vit(0, 2, 4).is_err());
        let mobilenet = |kernel, expand, stride| {
            let block = crate::InvertedResidual { kernel, expand, out: 4, se: true, hswish: true, stride };
            let (channels, side, stem, stem_stride, last, hidden, classes) = (1, 9, 4, 1, 8, 8, 3);
            let blocks = vec![block];
            Architecture::MobilenetV3(MobilenetV3 { channels, side, stem, stem_stride, blocks, last, hidden, classes })
                .validate()
        };
        assert!(mobilenet(3, 8, 1).is_ok());
        assert!(mobilenet(4, 8, 1).is_err() && mobilenet(3, 0, 1).is_err() && mobilenet(3, 8, 0).is_err());
        assert!(basic(&[1, 0], &[4, 4]).is_err() && basic(&[1, 2], &[4, 0]).is_err());
    }
}
