//! ResNets for 32×32 images (He et al. 2015, section 4.2) with shortcuts of option A: three stages of blocks of two 3×3
//! convolutions, each followed by batch normalisation. Names are those of the published CIFAR-10 checkpoints, behind
//! their prefix `module.`.

use crate::canonical::HiddenGroup;
use crate::convolution::Convolution;
use crate::layout::Layout;

/// Side of the input images.
pub const SIDE: usize = 32;
/// Mean of each channel that is taken off images whose values are from 0 to 1.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Deviation of each channel that images are divided by.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Blocks of each stage of a network of this depth; none where there is no such network.
pub fn blocks(depth: usize) -> Option<usize> {
    ((8..=1202).contains(&depth) && (depth - 2).is_multiple_of(6)).then(|| (depth - 2) / 6)
}

/// The convolutions in the order in which they are applied: name, inputs, outputs, stride. Each has a normalisation.
pub fn convolutions(depth: usize, widths: &[usize; 3]) -> Vec<Convolution> {
    let mut all = vec![Convolution::new("conv1", "bn1", [3, widths[0]], [3, 1])];
    let mut inputs = widths[0];
    for (stage, &outputs) in widths.iter().enumerate() {
        for block in 0..blocks(depth).unwrap_or(0) {
            let of = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            for (i, inputs, stride) in [(1, inputs, stride), (2, outputs, 1)] {
                let (name, norm) = (format!("{of}.conv{i}"), format!("{of}.bn{i}"));
                all.push(Convolution::new(name, norm, [inputs, outputs], [3, stride]));
            }
            inputs = outputs;
        }
    }
    all
}

/// Parameters and buffers: per convolution its weight, then of its normalisation weight, bias, running mean and running
/// variance; at the end the classifier.
pub fn layout(depth: usize, widths: &[usize; 3], classes: usize) -> Layout {
    let mut params: Vec<_> = convolutions(depth, widths).iter().flat_map(Convolution::params).collect();
    params.push(("linear.weight".into(), vec![classes, widths[2]]));
    params.push(("linear.bias".into(), vec![classes]));
    Layout::new(params)
}

/// The channels between a block's convolutions; those between blocks are tied through the shortcuts.
pub(crate) fn hidden_groups(depth: usize, widths: &[usize; 3], layout: &Layout) -> Vec<HiddenGroup> {
    let all = convolutions(depth, widths);
    let group = |pair: &[Convolution]| {
        let params = pair[0].rows().chain([pair[1].columns()]).collect::<Vec<_>>();
        HiddenGroup::new(layout, pair[0].outputs, false, params)
    };
    all[1..].chunks_exact(2).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_paper() {
        // Published: 0.27, 0.46, 0.66 and 0.85 million parameters, without buffers.
        for (depth, parameters) in [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)] {
            let layout = layout(depth, &[16, 32, 64], 10);
            let buffers: usize = layout.buffers().map(crate::ParamSpec::len).sum();
            assert_eq!(layout.parameters() - buffers, parameters, "{depth}");
            // A running mean and variance of each normalisation's channels.
            let widths: usize = convolutions(depth, &[16, 32, 64]).iter().map(|c| c.outputs).sum();
            assert_eq!(buffers, 2 * widths);
            assert_eq!(convolutions(depth, &[16, 32, 64]).len() + 1, depth);
        }
        assert_eq!([7, 8, 21, 32].map(blocks), [None, Some(1), None, Some(5)]);
    }
}
