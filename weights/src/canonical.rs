//! Canonical form: hidden units of a network can be permuted, and behind an odd activation flipped in sign, without
//! changing its function. Every checkpoint of a zoo is brought as near to one reference as these symmetries allow
//! (linear assignment per layer, a few sweeps), so that interpolation between checkpoints means something.

use crate::assignment::maximise;
use crate::error::{Result, check_length};
use crate::layout::Layout;

/// Exchangeable hidden units, and the parameters that belong to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiddenGroup {
    units: usize,
    odd: bool,
    slots: Vec<Slot>,
}

/// A parameter of a group: seen as `[outer, units, block]`, it has one block a unit in each of its outer parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    param: usize,
    outer: usize,
}

impl HiddenGroup {
    /// `units` units whose values are in the parameters of these names, each seen as `[outer, units, block]`: 1 for rows
    /// of what makes the units, the number of rows for columns of what takes them. `odd`: the way between is an odd
    /// function, so signs may flip.
    pub(crate) fn new<N: AsRef<str>>(
        layout: &Layout,
        units: usize,
        odd: bool,
        params: impl IntoIterator<Item = (N, usize)>,
    ) -> Self {
        let place = |name: &str| layout.params.iter().position(|p| p.name == name);
        let slots =
            params.into_iter().filter_map(|(name, outer)| Some(Slot { param: place(name.as_ref())?, outer })).collect();
        Self { units, odd, slots }
    }

    /// First value of each unit's blocks, `[outer × units]` one after the other, and the length of a block.
    fn blocks<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = (usize, usize)> + 'a {
        self.slots.iter().flat_map(move |slot| {
            let param = &layout.params[slot.param];
            let block = param.len() / (slot.outer * self.units).max(1);
            (0..slot.outer).map(move |part| (param.offset + part * self.units * block, block))
        })
    }
}

/// New unit `i` of a group is old unit `source[i]` times `sign[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitMap {
    /// Old unit for each new unit.
    pub source: Vec<usize>,
    /// +1 or −1 for each new unit.
    pub sign: Vec<f32>,
}

/// Applies `map` to the units of `group` in the flat vector `theta` (`[d]`): rows of what makes them, blocks of
/// columns of what takes them. The network's function stays the same.
///
/// # Errors
/// [`crate::Error::Length`] when `theta` does not fit the layout or `map` the group.
pub fn apply(theta: &mut [f32], layout: &Layout, group: &HiddenGroup, map: &UnitMap) -> Result<()> {
    check_length("the weight vector", theta.len(), layout.parameters())?;
    check_length("the unit map", map.source.len(), group.units)?;
    let old = theta.to_vec();
    for (start, block) in group.blocks(layout) {
        for (unit, (&source, &sign)) in map.source.iter().zip(&map.sign).enumerate() {
            let (to, from) = (start + unit * block, start + source * block);
            for k in 0..block {
                theta[to + k] = sign * old[from + k];
            }
        }
    }
    Ok(())
}

/// Best map of a group: maximises the inner product with the reference, which for permutations and sign flips
/// minimises the Euclidean distance.
fn best_map(theta: &[f32], reference: &[f32], layout: &Layout, group: &HiddenGroup) -> UnitMap {
    let n = group.units;
    let mut similarity = vec![0.0f64; n * n];
    for unit in 0..n {
        for source in 0..n {
            similarity[unit * n + source] = unit_similarity(theta, reference, (layout, group), unit, source);
        }
    }
    let score: Vec<f64> = if group.odd { similarity.iter().map(|s| s.abs()).collect() } else { similarity.clone() };
    let source = maximise(&score, n);
    let sign = source
        .iter()
        .enumerate()
        .map(|(unit, &s)| if group.odd && similarity[unit * n + s] < 0.0 { -1.0 } else { 1.0 })
        .collect();
    UnitMap { source, sign }
}

/// Inner product of everything that touches `source` in `theta` with everything that touches `unit` in `reference`.
fn unit_similarity(
    theta: &[f32],
    reference: &[f32],
    (layout, group): (&Layout, &HiddenGroup),
    unit: usize,
    source: usize,
) -> f64 {
    let dot = |a: usize, b: usize, len: usize| -> f64 {
        theta[a..a + len].iter().zip(&reference[b..b + len]).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    group.blocks(layout).map(|(start, block)| dot(start + source * block, start + unit * block, block)).sum()
}

/// Aligns `theta` (`[d]`) to `reference` (`[d]`) in place by at most `sweeps` passes over the hidden groups; stops
/// early when a pass changes nothing. Returns the number of passes made.
///
/// # Errors
/// [`crate::Error::Length`] when a vector does not fit the layout.
pub fn align(
    theta: &mut [f32],
    reference: &[f32],
    layout: &Layout,
    groups: &[HiddenGroup],
    sweeps: usize,
) -> Result<usize> {
    check_length("the weight vector", theta.len(), layout.parameters())?;
    check_length("the reference", reference.len(), layout.parameters())?;
    for sweep in 0..sweeps {
        let mut changed = false;
        for group in groups {
            let map = best_map(theta, reference, layout, group);
            let identity = map.source.iter().enumerate().all(|(i, &s)| i == s) && map.sign.iter().all(|&s| s > 0.0);
            if !identity {
                apply(theta, layout, group, &map)?;
                changed = true;
            }
        }
        if !changed {
            return Ok(sweep + 1);
        }
    }
    Ok(sweeps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Activation, Architecture};
    use proptest::prelude::*;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Plain reference forward of an MLP, independent of the training crate.
    fn mlp(theta: &[f32], layout: &Layout, x: &[f32], tanh: bool) -> Vec<f32> {
        let layers = layout.params.len() / 2;
        let mut x = x.to_vec();
        for layer in 0..layers {
            let (w, b) = (&layout.params[2 * layer], &layout.params[2 * layer + 1]);
            let columns = w.shape[1];
            x = (0..w.shape[0])
                .map(|row| {
                    let start = w.offset + row * columns;
                    let sum: f32 = theta[start..start + columns].iter().zip(&x).map(|(a, b)| a * b).sum();
                    let sum = sum + theta[b.offset + row];
                    match (layer + 1 == layers, tanh) {
                        (true, _) => sum,
                        (false, true) => sum.tanh(),
                        (false, false) => sum.max(0.0),
                    }
                })
                .collect();
        }
        x
    }

    fn scramble(theta: &mut [f32], layout: &Layout, groups: &[HiddenGroup], rng: &mut ChaCha8Rng) {
        for group in groups {
            let mut source: Vec<usize> = (0..group.units).collect();
            source.shuffle(rng);
            let sign = (0..group.units).map(|_| if group.odd && rng.random() { -1.0 } else { 1.0 }).collect();
            apply(theta, layout, group, &UnitMap { source, sign }).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn alignment_keeps_the_function(seed in any::<u64>(), tanh in any::<bool>()) {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let activation = if tanh { Activation::Tanh } else { Activation::Relu };
            let net = Architecture::Mlp { inputs: 6, hidden: vec![7, 5], classes: 3, activation };
            let (layout, groups) = (net.layout(), net.hidden_groups());
            let theta = random(layout.parameters(), rng);
            let reference = random(layout.parameters(), rng);
            let mut aligned = theta.clone();
            align(&mut aligned, &reference, &layout, &groups, 5).unwrap();
            let x = random(6, rng);
            for (a, b) in mlp(&theta, &layout, &x, tanh).iter().zip(mlp(&aligned, &layout, &x, tanh)) {
                prop_assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
            let distance = |v: &[f32]| v.iter().zip(&reference).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            prop_assert!(distance(&aligned) <= distance(&theta) + 1e-3);
        }

        #[test]
        fn a_scrambled_copy_comes_back_to_the_reference(seed in any::<u64>()) {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let net = Architecture::TinyCnn { channels: 1, classes: 10 };
            let (layout, groups) = (net.layout(), net.hidden_groups());
            let reference = random(layout.parameters(), rng);
            // One group at a time is scrambled, where the optimum is exact; several at once are a heuristic.
            for group in &groups {
                let mut theta = reference.clone();
                scramble(&mut theta, &layout, std::slice::from_ref(group), rng);
                align(&mut theta, &reference, &layout, std::slice::from_ref(group), 3).unwrap();
                prop_assert_eq!(&theta, &reference);
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let net = Architecture::TinyCnn { channels: 1, classes: 10 };
        let (layout, groups) = (net.layout(), net.hidden_groups());
        assert!(align(&mut [0.0; 3], &[0.0; 3], &layout, &groups, 1).is_err());
    }
}
