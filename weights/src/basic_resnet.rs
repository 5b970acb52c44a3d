//! Residual networks of basic blocks with projection shortcuts (He et al. 2015, section 3.3, option B; paper C.10): a 3×3
//! stem without pooling, stages of blocks of two 3×3 convolutions, each followed by batch normalisation; the first block of
//! each stage but the first halves the image. ResNet-18 has the blocks `[2, 2, 2, 2]` and the widths
//! `[64, 128, 256, 512]`. Names are torchvision's.

use serde::{Deserialize, Serialize};

use crate::canonical::HiddenGroup;
use crate::convolution::Convolution;
use crate::layout::Layout;

/// Sizes of a residual network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resnet {
    /// Input channels.
    pub channels: usize,
    /// Height and width of the input images.
    pub side: usize,
    /// Blocks of each stage.
    pub blocks: Vec<usize>,
    /// Channels of each stage.
    pub widths: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
}

/// Two convolutions, and what the input is projected with before it is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// With the block's stride.
    pub first: Convolution,
    /// With stride 1.
    pub second: Convolution,
    /// A 1×1 convolution where the shape changes; none where the input is added as it is.
    pub shortcut: Option<Convolution>,
}

/// Most stages and most blocks of a stage.
const MOST: [usize; 2] = [8, 64];

impl Resnet {
    /// What is wrong with the sizes, apart from zeros.
    pub(crate) fn wrong(&self) -> Option<&'static str> {
        let stages = self.widths.len();
        if self.blocks.len() != stages || !(1..=MOST[0]).contains(&stages) {
            return Some("blocks and widths have one number for each stage, and there are 1 to 8 stages");
        }
        self.blocks.iter().any(|n| !(1..=MOST[1]).contains(n)).then_some("a stage has 1 to 64 blocks")
    }

    /// A name that says the sizes, such as `resnet-3-32-2-2-2-2-64-128-256-512-10`.
    pub(crate) fn name(&self) -> String {
        let sizes = [&self.channels, &self.side].into_iter().chain(&self.blocks).chain(&self.widths);
        let sizes: Vec<String> = sizes.chain([&self.classes]).map(usize::to_string).collect();
        format!("resnet-{}", sizes.join("-"))
    }

    /// The first convolution.
    pub fn stem(&self) -> Convolution {
        let width = self.widths.first().copied().unwrap_or(0);
        Convolution::new("conv1", "bn1", [self.channels, width], [3, 1])
    }

    /// The blocks in the order in which they are applied.
    pub fn stages(&self) -> Vec<Block> {
        let mut inputs = self.widths.first().copied().unwrap_or(0);
        let mut all = Vec::new();
        for (stage, (&blocks, &outputs)) in self.blocks.iter().zip(&self.widths).enumerate() {
            for block in 0..blocks {
                let of = format!("layer{}.{block}", stage + 1);
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let of_name = |i: usize| (format!("{of}.conv{i}"), format!("{of}.bn{i}"));
                let ((conv1, bn1), (conv2, bn2)) = (of_name(1), of_name(2));
                let projected = stride > 1 || inputs != outputs;
                let (projection, norm) = (format!("{of}.downsample.0"), format!("{of}.downsample.1"));
                all.push(Block {
                    first: Convolution::new(conv1, bn1, [inputs, outputs], [3, stride]),
                    second: Convolution::new(conv2, bn2, [outputs, outputs], [3, 1]),
                    shortcut: projected.then(|| Convolution::new(projection, norm, [inputs, outputs], [1, stride])),
                });
                inputs = outputs;
            }
        }
        all
    }

    /// Parameters and buffers in torchvision's order.
    pub(crate) fn layout(&self) -> Layout {
        let mut params = self.stem().params();
        for block in self.stages() {
            params.extend(block.first.params());
            params.extend(block.second.params());
            params.extend(block.shortcut.iter().flat_map(Convolution::params));
        }
        params.push(("fc.weight".into(), vec![self.classes, self.widths.last().copied().unwrap_or(0)]));
        params.push(("fc.bias".into(), vec![self.classes]));
        Layout::new(params)
    }

    /// The channels between a block's convolutions; those between blocks are tied through the shortcuts.
    pub(crate) fn hidden_groups(&self, layout: &Layout) -> Vec<HiddenGroup> {
        let group = |b: Block| {
            let params = b.first.rows().chain([b.second.columns()]).collect::<Vec<_>>();
            HiddenGroup::new(layout, b.first.outputs, false, params)
        };
        self.stages().into_iter().map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_torchvisions_resnet_18_but_for_the_stem() {
        let net = Resnet { channels: 3, side: 32, blocks: vec![2; 4], widths: vec![64, 128, 256, 512], classes: 1000 };
        let layout = net.layout();
        let buffers: usize = layout.buffers().map(crate::ParamSpec::len).sum();
        // torchvision: 11,689,512, with a 7×7 stem in place of 3×3.
        assert_eq!(layout.parameters() - buffers, 11_689_512 - 3 * 64 * (49 - 9));
        assert_eq!(buffers, 9_600);
        let names = layout.names();
        for name in ["conv1.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn2.bias", "fc.bias"] {
            assert!(layout.get(name).is_some(), "{name}: {names}");
        }
        assert!(layout.get("layer1.0.downsample.0.weight").is_none());
        assert_eq!(net.hidden_groups(&layout).len(), 8);
    }
}
