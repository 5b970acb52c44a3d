//! Target networks: many at once equal each alone, alignment keeps their function, data is split and drawn honestly.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use candle_core::{Device, Tensor};
use datasets::Task;
use training::backend::Eager;
use training::networks::target;
use training::params::Params;
use training::stages::fit::{self, Recipe, fit, init_theta, score};
use training::{Config, Part, Sources, random};
use weights::{Activation, Architecture, canonical};

fn architectures() -> Vec<Architecture> {
    let mlp = |activation| Architecture::Mlp { inputs: 64, hidden: vec![12, 8], classes: 3, activation };
    vec![
        mlp(Activation::Relu),
        mlp(Activation::Tanh),
        Architecture::TinyCnn { channels: 1, classes: 10 },
        Architecture::TinyCnn { channels: 3, classes: 4 },
        Architecture::Head { features: 64, classes: 3 },
    ]
}

/// Small, with a stage that is no wider than the one before.
fn resnet() -> Architecture {
    Architecture::ResnetCifar { depth: 14, widths: [4, 4, 6], classes: 5 }
}

/// Networks that store statistics, or have layers of other kinds: small, with odd sides.
fn deep() -> Vec<Architecture> {
    let (blocks, widths) = (vec![2, 1], vec![4, 6]);
    let mut all =
        vec![resnet(), Architecture::Resnet(weights::Resnet { channels: 2, side: 9, blocks, widths, classes: 3 })];
    let block =
        |(kernel, expand, out, se, stride)| weights::InvertedResidual { kernel, expand, out, se, hswish: se, stride };
    // With and without an expansion, a gate, a stride and an added input.
    let blocks = [(3, 4, 4, false, 1), (5, 6, 6, true, 2), (3, 9, 6, true, 1)].map(block).to_vec();
    let (channels, side, stem, stem_stride, last, hidden, classes) = (2, 9, 4, 1, 7, 5, 3);
    all.push(Architecture::MobilenetV3(weights::MobilenetV3 {
        channels,
        side,
        stem,
        stem_stride,
        blocks,
        last,
        hidden,
        classes,
    }));
    for pool in [weights::Pool::ClassToken, weights::Pool::Mean] {
        let (patch, width, depth, heads, mlp) = (3, 8, 2, 2, 6);
        all.push(Architecture::Vit(weights::Vit { channels, side, patch, width, depth, heads, mlp, pool, classes }));
    }
    all
}

/// Logits of one model through the eager backend.
fn alone(architecture: &Architecture, theta: &[f32], x: &Tensor) -> Vec<f32> {
    let layout = architecture.layout();
    let params: Vec<Tensor> = layout
        .params
        .iter()
        .map(|p| Tensor::from_slice(&theta[p.range()], p.shape.as_slice(), &Device::Cpu).unwrap())
        .collect();
    let mut none = Params::new(0, &Device::Cpu);
    let y = target::forward(&mut Eager::new(&mut none), architecture, &params, x).unwrap();
    y.flatten_all().unwrap().to_vec1().unwrap()
}

fn input(architecture: &Architecture, n: usize, seed: u64) -> Tensor {
    let shape: Vec<usize> = std::iter::once(n).chain(architecture.input_shape()).collect();
    random::normal(&shape, &Device::Cpu, &mut random::stream(seed, "x")).unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn many_models_at_once_equal_each_alone() {
    for architecture in architectures().into_iter().chain(deep()) {
        let mut rng = random::stream(1, "theta");
        let images = || input(&architecture, 3, 9).flatten_all().unwrap().to_vec1().unwrap();
        let thetas: Vec<Vec<f32>> = (0..3)
            .map(|_| fit::recalibrate(&architecture, &init_theta(&architecture, &mut rng), images()).unwrap())
            .collect();
        let xs: Vec<Tensor> = (0..3).map(|i| input(&architecture, 4, i)).collect();
        let layout = architecture.layout();
        let theta = Tensor::from_vec(thetas.concat(), (3, layout.parameters()), &Device::Cpu).unwrap();
        let x = Tensor::stack(&xs, 0).unwrap();
        let together = fit::logits(&architecture, &layout, &theta, &x).unwrap();
        let together: Vec<f32> = together.flatten_all().unwrap().to_vec1().unwrap();
        let each: Vec<f32> = thetas.iter().zip(&xs).flat_map(|(t, x)| alone(&architecture, t, x)).collect();
        assert!(difference(&together, &each) < 1e-4, "{}", architecture.name());
    }
}

#[test]
fn recalibrated_normalisations_have_the_statistics_of_the_images() {
    let architecture = resnet();
    let layout = architecture.layout();
    let mut rng = random::stream(4, "theta");
    let theta = init_theta(&architecture, &mut rng);
    let images = input(&architecture, 6, 1).affine(2.0, 0.5).unwrap();
    let values: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
    let calibrated = fit::recalibrate(&architecture, &theta, values.clone()).unwrap();
    for param in &layout.params {
        let same = calibrated[param.range()] == theta[param.range()];
        assert_eq!(same, !param.is_buffer(), "{}", param.name);
    }
    // The first layer's outputs, by hand: convolution, mean and variance of a channel.
    let standard = (images
        .broadcast_sub(&Tensor::new(&weights::resnet::MEAN, &Device::Cpu).unwrap().reshape((3, 1, 1)).unwrap())
        .unwrap())
    .broadcast_div(&Tensor::new(&weights::resnet::STD, &Device::Cpu).unwrap().reshape((3, 1, 1)).unwrap())
    .unwrap();
    let first = &layout.params[0];
    let weight = Tensor::from_slice(&theta[first.range()], first.shape.as_slice(), &Device::Cpu).unwrap();
    let y = standard.conv2d(&weight, 1, 1, 1, 1).unwrap();
    let channel: Vec<f32> = y.narrow(1, 2, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let n = channel.len() as f32;
    let mean = channel.iter().sum::<f32>() / n;
    let variance = channel.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
    let at = |name: &str| calibrated[layout.get(name).unwrap().range()][2];
    assert!((at("bn1.running_mean") - mean).abs() < 1e-4 * variance.sqrt(), "{} {mean}", at("bn1.running_mean"));
    assert!((at("bn1.running_var") / variance - 1.0).abs() < 1e-4, "{} {variance}", at("bn1.running_var"));
    // What is stored is what was used: once more on the same images changes nothing.
    let again = fit::recalibrate(&architecture, &calibrated, values).unwrap();
    assert!(difference(&again, &calibrated) < 1e-4);
    // A network without buffers stays.
    let mlp = &architectures()[0];
    let theta = init_theta(mlp, &mut rng);
    assert_eq!(fit::recalibrate(mlp, &theta, vec![0.5; 640]).unwrap(), theta);
}

#[test]
fn canonical_form_keeps_the_function() {
    for architecture in architectures().into_iter().chain(deep()) {
        let (layout, groups) = (architecture.layout(), architecture.hidden_groups());
        for seed in 0..8 {
            let mut rng = random::stream(seed, "theta");
            let reference = init_theta(&architecture, &mut rng);
            // Biases are zero at the start; a symmetry that forgot them would not show.
            let mut theta: Vec<f32> = random::normal_vec(reference.len(), &mut rng).iter().map(|v| 0.2 * v).collect();
            for variance in layout.params.iter().filter(|p| p.is_variance()) {
                theta[variance.range()].iter_mut().for_each(|v| *v = 0.5 + v.abs());
            }
            let mut aligned = theta.clone();
            canonical::align(&mut aligned, &reference, &layout, &groups, 4).unwrap();
            assert!(groups.is_empty() || aligned != theta, "{}: nothing moved", architecture.name());
            let x = input(&architecture, 5, seed);
            let (before, after) = (alone(&architecture, &theta, &x), alone(&architecture, &aligned, &x));
            assert!(difference(&before, &after) < 1e-4, "{} seed {seed}", architecture.name());
        }
    }
}

/// A small residual network on the digits, trained in a zoo.
#[test]
fn a_network_with_normalisations_learns_and_is_kept_complete() {
    let mut config = config();
    config.architecture = Some(training::config::ArchitectureConfig::Resnet { blocks: vec![1, 1], widths: vec![4, 8] });
    let sources = Sources::load(&config).unwrap();
    let (seen, _) = sources.tasks(&config).unwrap();
    let architecture = config.build_architectures(sources.input_shape(), 3).unwrap().remove(0);
    let layout = architecture.layout();
    let tasks = |part| seen[..2].iter().map(|t| sources.task(t, part).unwrap()).collect::<Vec<_>>();
    let (train, test) = (tasks(Part::Train), tasks(Part::Test));
    let recipe = Recipe::new(60, 1e-2, &train);
    let start = init_theta(&architecture, &mut random::stream(1, "start")).repeat(2);
    let kept = fit(&architecture, &train, start.clone(), &[5, 6], &recipe, &[0, 4], &mut || Ok(())).unwrap();
    assert_eq!(kept[0], start, "what was not trained has the statistics that it came with");
    let scores = score(&architecture, &test, &kept[1], 20).unwrap();
    assert!(scores.iter().all(|s| s.accuracy > 0.8), "{scores:?}");
    // What is stored are the statistics of the trained network's layers on training images.
    for (theta, task) in kept[1].chunks_exact(layout.parameters()).zip(&train) {
        assert!(difference(&fit::recalibrate_on(&architecture, theta, task).unwrap(), theta) < 1e-4);
        let moved = layout.buffers().all(|b| theta[b.range()] != start[b.range()]);
        assert!(moved, "a statistic is that of the start");
    }
    // Fine-tuning on a few examples leaves the statistics.
    let digits = sources.list()[0].dataset(Part::Validation).select_classes(&[0, 1, 2]).unwrap();
    let few = digits.take(&(0..12).collect::<Vec<_>>());
    let adapted = fit::adapt(&architecture, &few, vec![kept[1][..layout.parameters()].to_vec()], 2, 1e-3).unwrap();
    for param in &layout.params {
        let same = adapted[0][param.range()] == kept[1][param.range()];
        assert_eq!(same, param.is_buffer(), "{}", param.name);
    }
}

fn config() -> Config {
    Config::parse(
        r#"
        name = "t"
        seed = 3
        [data]
        sources = [{ name = "digits", from = "digits" }]
        [tasks]
        kind = "class_sets"
        classes = 3
        seen = 20
        orders = 2
        [architecture]
        kind = "mlp"
        hidden = [8]
        [denoiser]
        kind = "mlp"
        width = 16
        blocks = 1
        "#,
    )
    .unwrap()
}

#[test]
fn training_together_equals_training_alone_and_learns() {
    let config = config();
    let sources = Sources::load(&config).unwrap();
    let (seen, _) = sources.tasks(&config).unwrap();
    let architecture = config.build_architectures(sources.input_shape(), 3).unwrap().remove(0);
    let tasks: Vec<_> = seen[..2].iter().map(|t| sources.task(t, Part::Train).unwrap()).collect();
    let test: Vec<_> = seen[..2].iter().map(|t| sources.task(t, Part::Test).unwrap()).collect();
    let recipe = Recipe::new(60, 1e-2, &tasks);
    let start: Vec<f32> = (0..2).flat_map(|i| init_theta(&architecture, &mut random::stream(i, "start"))).collect();
    let d = architecture.layout().parameters();
    let together = fit(&architecture, &tasks, start.clone(), &[5, 6], &recipe, &[0, 3], &mut || Ok(())).unwrap();
    assert_eq!(together[0], start);
    for i in 0..2 {
        let own = start[i * d..(i + 1) * d].to_vec();
        let alone = fit(&architecture, &tasks[i..=i], own, &[5 + i as u64], &recipe, &[3], &mut || Ok(())).unwrap();
        assert!(difference(&alone[0], &together[1][i * d..(i + 1) * d]) < 1e-3);
    }
    let scores = score(&architecture, &test, &together[1], 20).unwrap();
    assert!(scores.iter().all(|s| s.accuracy > 0.8), "{scores:?}");
    let before = score(&architecture, &test, &start, 20).unwrap();
    assert!(before.iter().all(|s| s.accuracy < 0.7), "{before:?}");
}

/// Tiny CNNs on enlarged digits: written-out passes, which every core makes alike, whoever else is trained beside.
#[test]
fn tiny_cnns_together_are_those_alone_bit_for_bit_and_learn() {
    let mut config = config();
    config.architecture = Some(training::config::ArchitectureConfig::TinyCnn);
    config.data.sources[0].resize = Some([28, 28]);
    let sources = Sources::load(&config).unwrap();
    let (seen, _) = sources.tasks(&config).unwrap();
    let architecture = config.build_architectures(sources.input_shape(), 3).unwrap().remove(0);
    let tasks = |part| seen[..3].iter().map(|t| sources.task(t, part).unwrap()).collect::<Vec<_>>();
    let (train, test) = (tasks(Part::Train), tasks(Part::Test));
    let recipe = Recipe::new(30, 1e-2, &train);
    let start: Vec<f32> = (0..3).flat_map(|i| init_theta(&architecture, &mut random::stream(i, "start"))).collect();
    let d = architecture.layout().parameters();
    let together = fit(&architecture, &train, start.clone(), &[5, 6, 7], &recipe, &[0, 2], &mut || Ok(())).unwrap();
    assert_eq!(together[0], start);
    for i in 0..3 {
        let own = start[i * d..(i + 1) * d].to_vec();
        let alone = fit(&architecture, &train[i..=i], own, &[5 + i as u64], &recipe, &[2], &mut || Ok(())).unwrap();
        assert_eq!(alone[0], together[1][i * d..(i + 1) * d]);
    }
    let scores = score(&architecture, &test, &together[1], 20).unwrap();
    assert!(scores.iter().all(|s| s.accuracy > 0.8), "{scores:?}");
}

#[test]
fn unseen_class_sets_and_the_parts_are_disjoint() {
    let config = config();
    let sources = Sources::load(&config).unwrap();
    let (seen, unseen) = sources.tasks(&config).unwrap();
    let set = |t: &Task| {
        let mut classes = t.classes.clone();
        classes.sort_unstable();
        classes
    };
    assert_eq!((seen.len(), unseen.len()), (40, 100));
    assert!(unseen.iter().all(|u| seen.iter().all(|s| set(s) != set(u))));
    let source = &sources.list()[0];
    let parts = [Part::Train, Part::Validation, Part::Test].map(|p| source.dataset(p).len());
    assert_eq!(parts.iter().sum::<usize>(), source.data.len());
    assert!(parts[0] > parts[2] && parts[2] > parts[1]);
}

#[test]
fn support_is_drawn_in_class_order_without_repeats() {
    let config = config();
    let sources = Sources::load(&config).unwrap();
    let task = |classes: [u32; 3]| Task { source: "digits".into(), classes: classes.to_vec() };
    let draw = |task: &Task, n: usize| {
        let mut out = Vec::new();
        sources.task(task, Part::Validation).unwrap().draw(n, &mut random::stream(9, "draw"), &mut out);
        out
    };
    let x = draw(&task([1, 2, 3]), 6);
    assert_eq!(x.len(), 3 * 6 * 64);
    let images: std::collections::BTreeSet<Vec<u32>> =
        x.chunks(64).map(|i| i.iter().map(|v| v.to_bits()).collect()).collect();
    assert_eq!(images.len(), 18, "an image was drawn twice");
    // More than there are: all of them, then repeats.
    assert_eq!(draw(&task([1, 2, 3]), 50).len(), 3 * 50 * 64);
    assert!(sources.task(&task([1, 2, 30]), Part::Test).is_err());
    assert!(sources.task(&Task { source: "none".into(), classes: vec![0, 1] }, Part::Test).is_err());
}
