//! Generators of a part of a network: the bundle holds the rest, every sample is a whole network around it, and it works.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;

use std::path::Path;

use inference::{Generator, SampleOptions};
use made::train_in;
use support::runtime;
use training::stages::fit::{self, Recipe, init_theta};
use training::{Config, Part, Sources, random};
use weights::{Architecture, Bundle, tensors};

const CONFIG: &str = r#"
    name = "part"
    seed = 3
    [data]
    sources = [{ name = "digits", from = "digits" }]
    limit_per_class = 60
    [tasks]
    kind = "sources"
    [architecture]
    kind = "mlp"
    hidden = [12, 8]
    [vae]
    hidden = [32]
    latent = [8]
    steps = 150
    batch = 16
    lr = 3e-3
    [encoder]
    images = 2
    width = 8
    heads = 2
    token_dim = 4
    embedding_dim = 6
    steps = 60
    batch = 8
    [denoiser]
    kind = "mlp"
    width = 48
    blocks = 2
    [diffusion]
    steps = 250
    batch = 16
    timesteps = 100
    lr = 3e-3
"#;

fn parse(zoo: &str) -> Config {
    Config::parse(&format!("{CONFIG}\n[zoo]\nruns_per_task = 12\nepochs = 8\nkeep = 2\nbatch = 50\nlr = 0.01\n{zoo}"))
        .unwrap()
}

/// A network that learned the digits, with a last layer that then forgot them.
fn start(dir: &Path) -> (Architecture, Vec<f32>) {
    let config = parse("");
    let sources = Sources::load(&config).unwrap();
    let task = &sources.tasks(&config).unwrap().0[0];
    let data = [sources.task(task, Part::Train).unwrap()];
    let architecture = config.build_architectures(sources.input_shape(), 10).unwrap().remove(0);
    let recipe = Recipe::new(50, 0.01, &data);
    let first = init_theta(&architecture, &mut random::stream(1, "start"));
    let mut theta = fit::fit(&architecture, &data, first, &[1], &recipe, &[40], &mut || Ok(())).unwrap().remove(0);
    let last = architecture.layout().get("layers.2.weight").unwrap().range();
    theta[last].iter_mut().for_each(|v| *v *= 0.01);
    let file = tensors::to_safetensors(&architecture.layout(), &theta, &Default::default()).unwrap();
    std::fs::write(dir.join("start.safetensors"), file).unwrap();
    (architecture, theta)
}

#[test]
fn samples_are_whole_networks_around_the_generated_part() {
    for vectors in ["", "[vectors]\nmode = \"layer_wise\"\nchunk = 50"] {
        let dir = tempfile::tempdir().unwrap();
        let (architecture, start) = start(dir.path());
        let file = dir.path().join("start.safetensors");
        let keys = format!("start = \"{}\"\ntrain = [\"layers.0.bias\", \"layers.2.*\"]\n{vectors}", file.display());
        let config = parse(&keys);
        let (trained, zoo, sources) = train_in(&config, &dir.path().join("zoo"));
        let (manifest, layout) = (trained.bundle.manifest(), architecture.layout());
        let entry = &manifest.architectures[0];
        assert_eq!(entry.generated, ["layers.0.bias", "layers.2.weight", "layers.2.bias"]);
        assert_eq!((manifest.format, entry.parameters), (5, layout.parameters()));
        assert_eq!(entry.generated_values(), 12 + 10 * 8 + 10);
        manifest.vectorise.check(&[entry.generated_values()]).unwrap();
        // There and back through a tar.
        let mut tar = Vec::new();
        trained.bundle.write_tar(&mut tar).unwrap();
        let bundle = Bundle::read_tar(tar.as_slice()).unwrap();
        assert_eq!(bundle.digest(), trained.bundle.digest());
        let generator = Generator::load(&runtime(2), bundle).unwrap();
        let task = zoo.task(0);
        let digits = &sources.list()[0].data;
        let features = generator.features(digits, &task.classes, 0).unwrap();
        let embedding = generator.embed(&features).unwrap();
        let options = SampleOptions { count: 6, seed: 5, ..SampleOptions::default() };
        let made = generator.generate(&embedding, &options, &mut |_, _| true).unwrap().weights;
        let test = digits.select_classes(&task.classes).unwrap();
        let accuracy = |theta: &[f32]| generator.evaluate(theta, &test).unwrap().accuracy;
        let mut mean = 0.0;
        for theta in &made {
            assert_eq!(theta.len(), layout.parameters());
            for param in &layout.params {
                let same = param.range().all(|i| theta[i].to_bits() == start[i].to_bits());
                assert_eq!(same, !entry.generated.contains(&param.name), "{}", param.name);
            }
            mean += accuracy(theta) / made.len() as f64;
        }
        assert!(mean > 0.5, "{vectors}: {mean}, and the zoo has {}", zoo.mean_accuracy());
        // A network of the zoo through the VAE keeps the constants, and is what candle says.
        let network = zoo.whole(zoo.weights(0)).unwrap();
        assert_eq!(generator.canonical(&network).unwrap(), network);
        let back = generator.decode(&generator.encode_weights(&[network]).unwrap()).unwrap();
        assert_eq!(zoo.whole(&zoo.own(back[0].clone()).unwrap()).unwrap(), back[0]);
        let said = manifest.metrics["reconstruction_accuracy_train"].as_f64().unwrap();
        assert!((accuracy(&back[0]) - said).abs() < 0.3, "{} {said}", accuracy(&back[0]));
    }
}

#[test]
fn a_bundle_without_its_constants_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    start(dir.path());
    let file = dir.path().join("start.safetensors");
    let mut config = parse(&format!("start = \"{}\"\ntrain = [\"layers.2.*\"]", file.display()));
    (config.vae.steps, config.encoder.steps, config.diffusion.steps) = (2, 2, 2);
    let (trained, ..) = train_in(&config, &dir.path().join("zoo"));
    let (manifest, constants) = (trained.bundle.manifest().clone(), "constants/mlp-64-12-8-10.safetensors");
    assert!(manifest.files.contains_key(constants));
    let files = || trained.bundle.entries().skip(1).map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    let without = files().filter(|(name, _)| name != constants).collect();
    let error = Bundle::new(manifest.clone(), without).unwrap_err().to_string();
    assert!(error.contains(constants), "{error}");
    // Of an older format, or of another part.
    let mut older = manifest.clone();
    older.format = 2;
    assert!(Bundle::new(older, files().collect()).unwrap_err().to_string().contains("format 5"));
    let mut other = manifest;
    other.architectures[0].generated.push("layers.0.bias".into());
    assert!(Bundle::new(other, files().collect()).is_err());
}
