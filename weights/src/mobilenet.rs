//! MobileNetV3 (Howard et al. 2019; paper C.11): a 3×3 stem, inverted residuals (1×1 expansion, depthwise convolution,
//! squeeze-and-excitation where it is asked for, 1×1 projection), a 1×1 convolution, pooling and a classifier of two
//! layers. Names are torchvision's. Each convolution is followed by batch normalisation, with ε = 1e-5 (torchvision's own
//! networks have 1e-3).

use serde::{Deserialize, Serialize};

use crate::canonical::HiddenGroup;
use crate::convolution::Convolution;
use crate::layout::Layout;

/// Sizes of a MobileNetV3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MobilenetV3 {
    /// Input channels.
    pub channels: usize,
    /// Height and width of the input images.
    pub side: usize,
    /// Channels of the first convolution.
    pub stem: usize,
    /// Its stride.
    #[serde(default = "stem_stride")]
    pub stem_stride: usize,
    /// The inverted residuals.
    pub blocks: Vec<InvertedResidual>,
    /// Channels of the last convolution.
    pub last: usize,
    /// Units of the classifier's hidden layer.
    pub hidden: usize,
    /// Number of classes.
    pub classes: usize,
}

/// An inverted residual. Its input is added to its output where both have the same shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvertedResidual {
    /// Side of the depthwise kernel, odd.
    pub kernel: usize,
    /// Channels of the depthwise convolution; where they are as many as the input's there is no expansion.
    pub expand: usize,
    /// Output channels.
    pub out: usize,
    /// Whether channels are weighed by squeeze-and-excitation.
    #[serde(default)]
    pub se: bool,
    /// Hard swish in place of ReLU.
    #[serde(default)]
    pub hswish: bool,
    /// Stride of the depthwise convolution.
    #[serde(default = "one")]
    pub stride: usize,
}

/// torchvision's.
pub fn stem_stride() -> usize {
    2
}

fn one() -> usize {
    1
}

/// The layers of an inverted residual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// 1×1, where there is one.
    pub expand: Option<Convolution>,
    /// Depthwise.
    pub depthwise: Convolution,
    /// Squeeze-and-excitation: name, and channels in the middle.
    pub gate: Option<(String, usize)>,
    /// 1×1, without an activation.
    pub project: Convolution,
    /// Hard swish in place of ReLU.
    pub hswish: bool,
    /// Whether the input is added.
    pub residual: bool,
}

/// Most blocks.
const MOST: usize = 64;

/// The multiple of 8 next to `value`, not below nine tenths of it, and at least 8: torchvision's rule.
fn divisible(value: usize) -> usize {
    let near = ((value + 4) / 8 * 8).max(8);
    if near * 10 < value * 9 { near + 8 } else { near }
}

impl MobilenetV3 {
    /// What is wrong with the sizes, apart from zeros.
    pub(crate) fn wrong(&self) -> Option<&'static str> {
        if !(1..=MOST).contains(&self.blocks.len()) {
            return Some("there are 1 to 64 blocks");
        }
        if self.blocks.iter().any(|b| b.kernel.is_multiple_of(2) || b.kernel > 31) {
            return Some("the kernel of a block is an odd number up to 31, such as 3 or 5");
        }
        let strides = self.blocks.iter().map(|b| b.stride).chain([self.stem_stride]);
        strides.into_iter().any(|s| !(1..=4).contains(&s)).then_some("a stride is a number from 1 to 4")
    }

    /// All sizes that must not be zero.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let own = [self.channels, self.side, self.stem, self.last, self.hidden];
        own.into_iter().chain(self.blocks.iter().flat_map(|b| [b.expand, b.out])).collect()
    }

    /// A name such as `mobilenet-v3-3-32-10-0a1b2c3d`: input, classes, and the beginning of a digest of all sizes.
    pub(crate) fn name(&self) -> String {
        let blocks: Vec<String> = self
            .blocks
            .iter()
            .map(|b| format!("{} {} {} {} {} {}", b.kernel, b.expand, b.out, b.se, b.hswish, b.stride))
            .collect();
        let ends = format!("{} {} {} {}", self.stem, self.stem_stride, self.last, self.hidden);
        let digest = crate::digest::sha256(format!("{ends}; {}", blocks.join(", ")).as_bytes());
        let digest = digest.trim_start_matches("sha256:").get(..8).unwrap_or_default().to_owned();
        format!("mobilenet-v3-{}-{}-{}-{digest}", self.channels, self.side, self.classes)
    }

    /// The first convolution.
    pub fn stem(&self) -> Convolution {
        Convolution::new("features.0.0", "features.0.1", [self.channels, self.stem], [3, self.stem_stride])
    }

    /// The convolution before pooling.
    pub fn last(&self) -> Convolution {
        let (inputs, of) = (self.blocks.last().map_or(self.stem, |b| b.out), self.blocks.len() + 1);
        Convolution::new(format!("features.{of}.0"), format!("features.{of}.1"), [inputs, self.last], [1, 1])
    }

    /// The inverted residuals in the order in which they are applied.
    pub fn blocks(&self) -> Vec<Block> {
        let mut inputs = self.stem;
        let block = |(i, b): (usize, &InvertedResidual)| {
            let mut place = 0;
            let mut next = || {
                let name = format!("features.{}.block.{place}", i + 1);
                place += 1;
                name
            };
            let conv =
                |of: &str, channels, size| Convolution::new(format!("{of}.0"), format!("{of}.1"), channels, size);
            let expand = (b.expand != inputs).then(|| conv(&next(), [inputs, b.expand], [1, 1]));
            let mut depthwise = conv(&next(), [b.expand; 2], [b.kernel, b.stride]);
            depthwise.groups = b.expand;
            let gate = b.se.then(|| (next(), divisible(b.expand / 4)));
            let project = conv(&next(), [b.expand, b.out], [1, 1]);
            let residual = b.stride == 1 && inputs == b.out;
            inputs = b.out;
            Block { expand, depthwise, gate, project, hswish: b.hswish, residual }
        };
        self.blocks.iter().enumerate().map(block).collect()
    }

    /// Parameters and buffers in torchvision's order.
    pub(crate) fn layout(&self) -> Layout {
        let mut params = self.stem().params();
        for block in self.blocks() {
            params.extend(block.expand.iter().flat_map(Convolution::params));
            params.extend(block.depthwise.params());
            if let Some((name, squeezed)) = &block.gate {
                let channels = block.depthwise.outputs;
                for (i, o, part) in [(channels, *squeezed, "fc1"), (*squeezed, channels, "fc2")] {
                    params.push((format!("{name}.{part}.weight"), vec![o, i, 1, 1]));
                    params.push((format!("{name}.{part}.bias"), vec![o]));
                }
            }
            params.extend(block.project.params());
        }
        params.extend(self.last().params());
        for (name, outputs, inputs) in
            [("classifier.0", self.hidden, self.last), ("classifier.3", self.classes, self.hidden)]
        {
            params.push((format!("{name}.weight"), vec![outputs, inputs]));
            params.push((format!("{name}.bias"), vec![outputs]));
        }
        Layout::new(params)
    }

    /// The channels of each expansion and of each squeeze, those of the last convolution and the classifier's hidden
    /// units; those between blocks are tied where inputs are added.
    pub(crate) fn hidden_groups(&self, layout: &Layout) -> Vec<HiddenGroup> {
        let mut groups = Vec::new();
        let group = |units, params: Vec<(String, usize)>| HiddenGroup::new(layout, units, false, params);
        for block in self.blocks() {
            let channels = block.depthwise.outputs;
            let gate =
                block.gate.as_ref().map(|(name, squeezed)| (move |part: &str| format!("{name}.{part}"), *squeezed));
            if let Some(expand) = &block.expand {
                let mut params: Vec<_> = expand.rows().chain(block.depthwise.rows()).collect();
                if let Some((name, squeezed)) = &gate {
                    params.extend([(name("fc1.weight"), *squeezed), (name("fc2.weight"), 1), (name("fc2.bias"), 1)]);
                }
                params.push(block.project.columns());
                groups.push(group(channels, params));
            }
            if let Some((name, squeezed)) = &gate {
                let params = vec![(name("fc1.weight"), 1), (name("fc1.bias"), 1), (name("fc2.weight"), channels)];
                groups.push(group(*squeezed, params));
            }
        }
        let last = self.last();
        let params = last.rows().chain([("classifier.0.weight".to_owned(), self.hidden)]).collect();
        groups.push(group(self.last, params));
        let hidden = [("classifier.0.weight", 1), ("classifier.0.bias", 1), ("classifier.3.weight", self.classes)];
        groups.push(group(self.hidden, hidden.map(|(name, outer)| (name.to_owned(), outer)).to_vec()));
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision's `mobilenet_v3_small`.
    fn small() -> MobilenetV3 {
        let block =
            |(kernel, expand, out, se, hswish, stride)| InvertedResidual { kernel, expand, out, se, hswish, stride };
        let blocks = [
            (3, 16, 16, true, false, 2),
            (3, 72, 24, false, false, 2),
            (3, 88, 24, false, false, 1),
            (5, 96, 40, true, true, 2),
            (5, 240, 40, true, true, 1),
            (5, 240, 40, true, true, 1),
            (5, 120, 48, true, true, 1),
            (5, 144, 48, true, true, 1),
            (5, 288, 96, true, true, 2),
            (5, 576, 96, true, true, 1),
            (5, 576, 96, true, true, 1),
        ];
        let blocks = blocks.map(block).to_vec();
        MobilenetV3 { channels: 3, side: 224, stem: 16, stem_stride: 2, blocks, last: 576, hidden: 1024, classes: 1000 }
    }

    #[test]
    fn the_small_one_has_torchvisions_parameters() {
        let layout = small().layout();
        let buffers: usize = layout.buffers().map(crate::ParamSpec::len).sum();
        assert_eq!(layout.parameters() - buffers, 2_542_856);
        for name in ["features.1.block.1.fc1.weight", "features.2.block.2.1.running_mean", "features.12.0.weight"] {
            assert!(layout.get(name).is_some(), "{name}: {}", layout.names());
        }
        let blocks = small().blocks();
        assert!(blocks[0].expand.is_none() && !blocks[0].residual && blocks[2].residual);
        // One block without an expansion, nine gates.
        assert_eq!(small().hidden_groups(&layout).len(), 10 + 9 + 2);
    }

    #[test]
    fn names_differ_where_sizes_do() {
        let mut other = small();
        assert_eq!(other.name(), small().name());
        other.blocks[4].stride = 2;
        assert_ne!(other.name(), small().name());
    }
}
