//! Zoos of which a part of each network is trained: the rest stays bit for bit, both halves are the whole network, and
//! what makes no sense is refused.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use candle_core::{Device, Tensor};
use training::frozen::Frozen;
use training::networks::target;
use training::progress::Progress;
use training::stages::fit::{self, Net, Recipe, init_theta, recalibrate};
use training::stages::zoo;
use training::{Config, Keep, Part, Sources, backend, random};
use weights::{Activation, Architecture, InvertedResidual, MobilenetV3, Pool, Vit, tensors};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

fn mlp(classes: usize) -> Architecture {
    Architecture::Mlp { inputs: 64, hidden: vec![16, 12], classes, activation: Activation::Relu }
}

fn config(zoo: &str) -> Config {
    let text = format!(
        "name = \"t\"\nseed = 3\n[data]\nsources = [{{ name = \"digits\", from = \"digits\" }}, \
         {{ name = \"again\", from = \"digits\" }}]\nlimit_per_class = 60\n[tasks]\nkind = \"sources\"\n[architecture]\n\
         kind = \"mlp\"\nhidden = [16, 12]\n[zoo]\nruns_per_task = 3\nepochs = 6\nkeep = 2\nbatch = 50\nlr = 0.01\n{zoo}\n\
         [denoiser]\nkind = \"mlp\"\nwidth = 16\nblocks = 1\n"
    );
    Config::parse(&text).unwrap()
}

/// A network that learned the digits, and whose middle layer was then made random.
fn start(dir: &Path) -> Vec<f32> {
    let mut whole = config("");
    whole.zoo.epochs = 30;
    let sources = Sources::load(&whole).unwrap();
    let task = &sources.tasks(&whole).unwrap().0[0];
    let data = [sources.task(task, Part::Train).unwrap()];
    let (architecture, recipe) = (mlp(10), Recipe::new(50, 0.01, &data));
    let first = init_theta(&architecture, &mut random::stream(1, "start"));
    let mut theta = fit::fit(&architecture, &data, first, &[1], &recipe, &[30], &mut || Ok(())).unwrap().remove(0);
    let layout = architecture.layout();
    let other = init_theta(&architecture, &mut random::stream(2, "start"));
    let middle = layout.get("layers.1.weight").unwrap().range();
    theta[middle.clone()].copy_from_slice(&other[middle]);
    let file = tensors::to_safetensors(&layout, &theta, &Default::default()).unwrap();
    std::fs::write(dir.join("start.safetensors"), file).unwrap();
    theta
}

fn zoo_keys(dir: &Path, rest: &str) -> String {
    format!("start = \"{}\"\n{rest}", dir.join("start.safetensors").display())
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn both_halves_are_the_whole_network() {
    let resnet = Architecture::ResnetCifar { depth: 14, widths: [4, 4, 6], classes: 5 };
    let cnn = Architecture::TinyCnn { channels: 1, classes: 4 };
    let mobilenet = MobilenetV3 {
        channels: 1,
        side: 8,
        stem: 4,
        stem_stride: 1,
        blocks: vec![InvertedResidual { kernel: 3, expand: 8, out: 4, se: true, hswish: true, stride: 2 }; 2],
        last: 6,
        hidden: 5,
        classes: 3,
    };
    let vit = Vit {
        channels: 1,
        side: 8,
        patch: 4,
        width: 6,
        depth: 2,
        heads: 2,
        mlp: 8,
        pool: Pool::ClassToken,
        classes: 3,
    };
    let cases = [
        (mlp(3), vec!["layers.1.*"], 16),
        (cnn.clone(), vec!["conv3.bias", "fc2.*"], 6 * 4 * 4),
        (cnn, vec!["conv1.weight"], 28 * 28),
        // A convolution before a normalisation is frozen, and so is what the shortcut takes.
        (resnet.clone(), vec!["layer3.1.bn1.*"], 2 * 6 * 8 * 8),
        (resnet.clone(), vec!["layer2.0.bn2.*"], 2 * 4 * 16 * 16),
        (resnet, vec!["layer3.1.conv2.weight"], 2 * 6 * 8 * 8),
        (Architecture::MobilenetV3(mobilenet.clone()), vec!["features.2.*"], 4 * 4 * 4),
        (Architecture::MobilenetV3(mobilenet), vec!["features.2.block.0.1.*"], 8 * 4 * 4),
        (Architecture::Vit(vit), vec!["encoder.layers.encoder_layer_1.mlp.*"], 2 * 5 * 6),
    ];
    for (architecture, train, dim) in cases {
        let mut rng = random::stream(5, "theta");
        let shape: Vec<usize> = [2, 3].into_iter().chain(architecture.input_shape()).collect();
        let x = random::normal(&shape, &Device::Cpu, &mut rng).unwrap();
        let x = x.affine(0.2, 0.5).unwrap().clamp(0f32, 1f32).unwrap();
        let flat: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        let theta = recalibrate(&architecture, &init_theta(&architecture, &mut rng), flat.clone()).unwrap();
        let frozen = Frozen::new(&architecture, theta.clone(), &names(&train), &[]).unwrap();
        let images = datasets::Dataset::new(
            "x",
            architecture.input_shape(),
            names(&["a", "b"]),
            datasets::Data::F32(flat.clone()),
            vec![0, 1, 0, 1, 0, 1],
        );
        let begun = frozen.begun(&images.unwrap()).unwrap();
        assert_eq!(begun.shape, [dim], "{train:?}");
        // Two models that differ in the part alone.
        let own = frozen.part().take(&theta).unwrap();
        let noise = random::normal_vec(own.len(), &mut rng);
        let other: Vec<f32> = own.iter().zip(noise).map(|(v, n)| v + 0.1 * n.abs()).collect();
        let net = Net::new(&architecture, Some(&frozen));
        let parts = Tensor::from_vec([own.clone(), other.clone()].concat(), (2, own.len()), &Device::Cpu).unwrap();
        let rows = begun.gather(&[0, 1, 2, 3, 4, 5]);
        let halves = net.logits(&parts, &net.inputs(rows, 2, &Device::Cpu).unwrap()).unwrap();
        let whole = [own, other].map(|values| frozen.part().complete(&values).unwrap()).concat();
        let whole = Tensor::from_vec(whole, (2, theta.len()), &Device::Cpu).unwrap();
        let params = fit::split(&whole, &architecture.layout()).unwrap();
        let whole = target::forward(&mut backend::Models::default(), &architecture, &params, &x).unwrap();
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (halves, whole) = (values(halves), values(whole));
        assert!(difference(&halves, &whole) < 1e-4, "{} {train:?}", architecture.name());
        assert!(difference(&whole[..whole.len() / 2], &whole[whole.len() / 2..]) > 1e-4, "the part changes nothing");
    }
}

#[test]
fn the_rest_of_every_checkpoint_is_the_start_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let start = start(dir.path());
    let config = config(&zoo_keys(dir.path(), "train = [\"layers.1.*\"]\nstart_noise = 0.02"));
    let sources = Sources::load(&config).unwrap();
    let folder = dir.path().join("zoo");
    let made = zoo::build(&config, &sources, &folder, &Progress::silent(), Keep::nothing()).unwrap();
    let layout = mlp(10).layout();
    assert_eq!((made.parameters(), made.runs.len(), made.checkpoints.len()), (16 * 12 + 12, 6, 12));
    let middle = layout.get("layers.1.weight").unwrap().offset..layout.get("layers.1.bias").unwrap().range().end;
    let mut seen = std::collections::BTreeSet::new();
    for c in 0..made.checkpoints.len() {
        let network = made.whole(made.weights(c)).unwrap();
        for (i, (a, b)) in network.iter().zip(&start).enumerate() {
            assert!(middle.contains(&i) || a.to_bits() == b.to_bits(), "value {i} of checkpoint {c}");
        }
        assert_eq!(made.own(network.clone()).unwrap(), made.weights(c));
        seen.insert(made.weights(c).iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    }
    assert_eq!(seen.len(), made.checkpoints.len(), "checkpoints are the same");
    // The middle layer is learned again, inside what is around it.
    let data = [sources.task(&made.runs[0].task, Part::Test).unwrap()];
    let values = sources.frozen().unwrap().start(&data[0]).unwrap();
    let before = fit::score(&mlp(10), &data, &values, 10).unwrap()[0].accuracy;
    assert!(before < 0.3 && made.mean_accuracy() > 0.5, "{before} {}", made.mean_accuracy());
    // The stored accuracy is that of the whole network on pixels.
    let pixels = Sources::load(&Config { zoo: Default::default(), ..config.clone() }).unwrap();
    let data = [pixels.task(&made.runs[0].task, Part::Test).unwrap()];
    let network = made.whole(made.weights(1)).unwrap();
    let per_class = data[0].per_class();
    let found = fit::score(&mlp(10), &data, &network, per_class).unwrap()[0].accuracy;
    assert!((found - made.checkpoints[1].accuracy).abs() < 1e-6, "{found} {:?}", made.checkpoints[1]);
    // Opened again it is the same; the start's place is no part of what it is, its values are.
    let again = zoo::open(&folder).unwrap();
    assert_eq!((&again.digest, &again.part, &again.theta), (&made.digest, &made.part, &made.theta));
    let moved = dir.path().join("moved.safetensors");
    std::fs::rename(dir.path().join("start.safetensors"), &moved).unwrap();
    let mut elsewhere = config.clone();
    elsewhere.zoo.start = Some(moved.display().to_string());
    let there = Sources::load(&elsewhere).unwrap();
    assert_eq!(zoo::key(&elsewhere, &there).unwrap(), zoo::key(&config, &sources).unwrap());
    let mut other = start;
    other[0] += 1.0;
    std::fs::write(&moved, tensors::to_safetensors(&layout, &other, &Default::default()).unwrap()).unwrap();
    let there = Sources::load(&elsewhere).unwrap();
    assert_ne!(zoo::key(&elsewhere, &there).unwrap(), zoo::key(&config, &sources).unwrap());
    // Constants that were changed are found.
    std::fs::write(folder.join("constants.safetensors"), b"other").unwrap();
    assert!(zoo::open(&folder).unwrap_err().to_string().contains("constants.safetensors"));
}

#[test]
fn a_task_may_have_a_head_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let start = start(dir.path());
    let zoo = zoo_keys(dir.path(), "train = [\"layers.1.*\"]\nheads = [\"again\"]");
    let config = config(&zoo);
    let sources = Sources::load(&config).unwrap();
    let frozen = sources.frozen().unwrap();
    let layout = frozen.part().layout().clone();
    assert_eq!(layout.names(), "layers.1.weight, layers.1.bias, layers.2.weight, layers.2.bias");
    let (seen, _) = sources.tasks(&config).unwrap();
    let head = layout.params[2].offset..layout.parameters();
    let starts: Vec<Vec<f32>> =
        seen.iter().map(|t| frozen.start(&sources.task(t, Part::Train).unwrap()).unwrap()).collect();
    assert_eq!(starts[0], frozen.part().take(&start).unwrap());
    assert_eq!(starts[1][..head.start], starts[0][..head.start]);
    // The head that was made for the random middle layer is better than the one that the start has.
    let score = |values: &Vec<f32>| {
        let test = [sources.task(&seen[1], Part::Test).unwrap()];
        fit::score(&mlp(10), &test, values, 10).unwrap()[0].accuracy
    };
    assert!(score(&starts[1]) > score(&starts[0]) + 0.2, "{} {}", score(&starts[1]), score(&starts[0]));
    let made = zoo::build(&config, &sources, &dir.path().join("zoo"), &Progress::silent(), Keep::nothing()).unwrap();
    for c in 0..made.checkpoints.len() {
        let task = seen.iter().position(|t| t == made.task(c)).unwrap();
        assert_eq!(made.weights(c)[head.clone()], starts[task][head.clone()], "runs train no head");
        assert_ne!(made.weights(c)[..head.start], starts[task][..head.start]);
    }
}

#[test]
fn generated_normalisations_have_the_statistics_of_their_batches_and_all_others_the_starts() {
    let dir = tempfile::tempdir().unwrap();
    let resnet = Architecture::ResnetCifar { depth: 8, widths: [4, 6, 8], classes: 10 };
    let mut rng = random::stream(3, "start");
    let images = random::normal_vec(8 * resnet.input_dim(), &mut rng).iter().map(|v| 0.5 + 0.2 * v).collect();
    let start = recalibrate(&resnet, &init_theta(&resnet, &mut rng), images).unwrap();
    let file = tensors::to_safetensors(&resnet.layout(), &start, &Default::default()).unwrap();
    std::fs::write(dir.path().join("start.safetensors"), file).unwrap();
    let keys = zoo_keys(dir.path(), "train = [\"layer3.0.bn?.*\"]\nheads = [\"digits\"]");
    let text = format!(
        "name = \"t\"\n[data]\nsources = [{{ name = \"digits\", from = \"digits\", resize = [32, 32], channels = 3 }}]\n\
         limit_per_class = 15\n[tasks]\nkind = \"sources\"\n[architecture]\nkind = \"resnet_cifar\"\ndepth = 8\n\
         widths = [4, 6, 8]\n[zoo]\nruns_per_task = 2\nepochs = 3\nbatch = 50\nlr = 0.02\n{keys}\n\
         [denoiser]\nkind = \"mlp\"\nwidth = 16\nblocks = 1\n"
    );
    let config = Config::parse(&text).unwrap();
    let sources = Sources::load(&config).unwrap();
    let made = zoo::build(&config, &sources, &dir.path().join("zoo"), &Progress::silent(), Keep::nothing()).unwrap();
    let network = made.whole(made.weights(0)).unwrap();
    for param in &resnet.layout().params {
        let same = network[param.range()] == start[param.range()];
        let own = param.name.starts_with("layer3.0.bn") || param.name.starts_with("linear");
        assert_eq!(same, !own, "{}", param.name);
    }
    // The stored statistics are those that these weights have on training images, behind the start's.
    let test = [sources.task(made.task(0), Part::Test).unwrap()];
    let train = sources.task(made.task(0), Part::Train).unwrap();
    let again = fit::recalibrate_on(&resnet, made.weights(0), &train).unwrap();
    assert!(difference(&again, made.weights(0)) < 1e-5);
    let other = fit::recalibrate(&resnet, &network, vec![0.5; resnet.input_dim()]).unwrap();
    assert_ne!(made.own(other).unwrap(), made.weights(0));
    // Runs learn, and what the zoo says is true of the whole network on pixels.
    let frozen = sources.frozen().unwrap();
    let at_start = fit::score(&resnet, &test, &frozen.start(&train).unwrap(), test[0].per_class()).unwrap()[0];
    assert!(made.checkpoints[0].loss < at_start.loss, "{at_start:?} {:?}", made.checkpoints);
    let pixels = Sources::load(&Config { zoo: Default::default(), ..config.clone() }).unwrap();
    let data = [pixels.task(made.task(0), Part::Test).unwrap()];
    let found = fit::score(&resnet, &data, &network, data[0].per_class()).unwrap()[0];
    assert!((found.accuracy - made.checkpoints[0].accuracy).abs() < 1e-6 && found.accuracy > 0.2, "{found:?}");
}

#[test]
fn what_makes_no_part_is_refused_with_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    start(dir.path());
    let load = |rest: &str| Sources::load(&config(&zoo_keys(dir.path(), rest))).map(|_| ()).unwrap_err().to_string();
    let error = load("train = [\"layers.7.*\"]");
    assert!(error.contains("layers.7.*") && error.contains("layers.0.weight, layers.0.bias"), "{error}");
    assert!(load("train = [\"*\"]").contains("leave zoo.start and zoo.train out"));
    let error = load("train = [\"layers.2.*\"]\nheads = [\"again\"]");
    assert!(error.contains("layers.2.weight") && error.contains("leave one of them out"), "{error}");
    let mut other = config(&zoo_keys(dir.path(), "train = [\"layers.1.*\"]"));
    other.zoo.start = Some(dir.path().join("none.pth").display().to_string());
    let error = Sources::load(&other).unwrap_err().to_string();
    assert!(error.contains("none.pth cannot be read") && error.contains("name a checkpoint file"), "{error}");
    other.zoo.start = Some(dir.path().join("narrow.safetensors").display().to_string());
    let narrow = Architecture::Mlp { inputs: 64, hidden: vec![16, 9], classes: 10, activation: Activation::Relu };
    let theta = init_theta(&narrow, &mut random::stream(0, "narrow"));
    let file = tensors::to_safetensors(&narrow.layout(), &theta, &Default::default()).unwrap();
    std::fs::write(dir.path().join("narrow.safetensors"), file).unwrap();
    let error = Sources::load(&other).unwrap_err().to_string();
    assert!(
        error.contains("does not fit mlp-64-16-12-10")
            && error.contains("layers.1.weight")
            && error.contains("[12, 16]"),
        "{error}"
    );
    let resnet = Architecture::ResnetCifar { depth: 8, widths: [4, 4, 4], classes: 5 };
    let theta = init_theta(&resnet, &mut random::stream(0, "resnet"));
    let error = Frozen::new(&resnet, theta, &names(&["*.running_var", "linear.*"]), &[]).unwrap_err().to_string();
    assert!(error.contains("mean and variance"), "{error}");
    let theta = init_theta(&resnet, &mut random::stream(0, "resnet"));
    let error = Frozen::new(&resnet, theta, &names(&["*.running_*"]), &[]).unwrap_err().to_string();
    assert!(error.contains("only statistics"), "{error}");
    assert!(other.check_sources_of_job().unwrap_err().to_string().contains("zoo build"));
}
