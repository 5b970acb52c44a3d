//! Vision transformers (Dosovitskiy et al. 2021; paper C.12): patches embedded by a convolution, a class token or the mean
//! of all, learned positions, blocks that normalise before self-attention and before a GELU layer of twice two linear maps.
//! Names are torchvision's.

use serde::{Deserialize, Serialize};

use crate::canonical::HiddenGroup;
use crate::layout::Layout;

/// Sizes of a vision transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vit {
    /// Input channels.
    pub channels: usize,
    /// Height and width of the input images.
    pub side: usize,
    /// Height and width of a patch; divides the side.
    pub patch: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; divide the width.
    pub heads: usize,
    /// Hidden units of a block's MLP.
    pub mlp: usize,
    /// What the classifier sees.
    #[serde(default)]
    pub pool: Pool,
    /// Number of classes.
    pub classes: usize,
}

/// What of the last tokens the classifier sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// A token of its own, which is learned.
    #[default]
    ClassToken,
    /// The mean of all patches' tokens.
    Mean,
}

/// Most blocks.
const MOST: usize = 64;

impl Vit {
    /// What is wrong with the sizes, apart from zeros.
    pub(crate) fn wrong(&self) -> Option<&'static str> {
        if self.patch == 0 || !self.side.is_multiple_of(self.patch) {
            return Some("the patch must divide the side of the images");
        }
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return Some("the heads must divide the width");
        }
        (!(1..=MOST).contains(&self.depth)).then_some("there are 1 to 64 blocks")
    }

    /// All sizes that must not be zero.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        vec![self.channels, self.side, self.width, self.mlp]
    }

    /// A name that says the sizes, such as `vit-1-16-4-32-2-4-64-10`; that of one with mean pooling ends in `-mean`.
    pub(crate) fn name(&self) -> String {
        let sizes = [self.channels, self.side, self.patch, self.width, self.depth, self.heads, self.mlp, self.classes];
        let pool = if self.pool == Pool::Mean { "-mean" } else { "" };
        format!("vit-{}{pool}", sizes.map(|size| size.to_string()).join("-"))
    }

    /// Tokens of an image.
    pub fn tokens(&self) -> usize {
        (self.side / self.patch.max(1)).pow(2) + usize::from(self.pool == Pool::ClassToken)
    }

    /// Name of a block's part.
    fn part(block: usize, part: &str) -> String {
        format!("encoder.layers.encoder_layer_{block}.{part}")
    }

    /// Parameters in torchvision's order.
    pub(crate) fn layout(&self) -> Layout {
        let (w, mut params) = (self.width, Vec::new());
        if self.pool == Pool::ClassToken {
            params.push(("class_token".to_owned(), vec![1, 1, w]));
        }
        params.push(("conv_proj.weight".into(), vec![w, self.channels, self.patch, self.patch]));
        params.push(("conv_proj.bias".into(), vec![w]));
        params.push(("encoder.pos_embedding".into(), vec![1, self.tokens(), w]));
        for block in 0..self.depth {
            let parts: [(&str, Vec<usize>); 12] = [
                ("ln_1.weight", vec![w]),
                ("ln_1.bias", vec![w]),
                ("self_attention.in_proj_weight", vec![3 * w, w]),
                ("self_attention.in_proj_bias", vec![3 * w]),
                ("self_attention.out_proj.weight", vec![w, w]),
                ("self_attention.out_proj.bias", vec![w]),
                ("ln_2.weight", vec![w]),
                ("ln_2.bias", vec![w]),
                ("mlp.0.weight", vec![self.mlp, w]),
                ("mlp.0.bias", vec![self.mlp]),
                ("mlp.3.weight", vec![w, self.mlp]),
                ("mlp.3.bias", vec![w]),
            ];
            params.extend(parts.map(|(part, shape)| (Self::part(block, part), shape)));
        }
        params.push(("encoder.ln.weight".into(), vec![w]));
        params.push(("encoder.ln.bias".into(), vec![w]));
        params.push(("heads.head.weight".into(), vec![self.classes, w]));
        params.push(("heads.head.bias".into(), vec![self.classes]));
        Layout::new(params)
    }

    /// Whole heads, and the hidden units of the MLPs.
    pub(crate) fn hidden_groups(&self, layout: &Layout) -> Vec<HiddenGroup> {
        let groups = |block| {
            let heads = [
                ("self_attention.in_proj_weight", 3),
                ("self_attention.in_proj_bias", 3),
                ("self_attention.out_proj.weight", self.width),
            ];
            let units = [("mlp.0.weight", 1), ("mlp.0.bias", 1), ("mlp.3.weight", self.width)];
            [(self.heads, heads), (self.mlp, units)].map(|(units, params)| {
                let params = params.map(|(part, outer)| (Self::part(block, part), outer));
                HiddenGroup::new(layout, units, false, params)
            })
        };
        (0..self.depth).flat_map(groups).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_one_has_torchvisions_parameters() {
        let pool = Pool::ClassToken;
        let (side, patch, width, depth, heads, mlp) = (224, 16, 768, 12, 12, 3072);
        let base = Vit { channels: 3, side, patch, width, depth, heads, mlp, pool, classes: 1000 };
        assert_eq!(base.layout().parameters(), 86_567_656);
        assert_eq!((base.tokens(), base.hidden_groups(&base.layout()).len()), (197, 24));
        let mean = Vit { pool: Pool::Mean, ..base.clone() };
        assert_eq!(mean.layout().parameters(), 86_567_656 - 2 * 768);
        assert_ne!(mean.name(), base.name());
        assert!(Vit { patch: 15, ..base.clone() }.wrong().is_some() && Vit { heads: 7, ..base }.wrong().is_some());
    }
}
