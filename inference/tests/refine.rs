//! Refinement of latents, noise on them, and quality: each does what it says, on a generator that `training` made.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;

use datasets::Dataset;
use inference::{Embedding, Generator, Refine, SampleOptions};
use made::train_as;
use support::runtime;
use training::progress::Progress;
use training::stages::{fit, measure, zoo};
use training::{Part, Sources};

const CONFIG: &str = r#"
    name = "refined"
    [data]
    sources = [{ name = "digits", from = "digits" }]
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 30
    orders = 2
    [architecture]
    kind = "mlp"
    hidden = [8]
    [zoo]
    epochs = 12
    keep = 4
    batch = 60
    lr = 1e-2
    [vae]
    hidden = [64]
    latent = [24]
    steps = 300
    batch = 32
    [encoder]
    images = 4
    width = 16
    heads = 2
    token_dim = 8
    embedding_dim = 8
    steps = 30
    batch = 16
    [denoiser]
    kind = "mlp"
    width = 64
    blocks = 2
    [diffusion]
    timesteps = 50
    steps = 200
    batch = 32
"#;

struct Trained {
    generator: Generator,
    zoo: zoo::Zoo,
    sources: Sources,
    train: Vec<usize>,
}

fn train(config: &str) -> Trained {
    let (trained, zoo, sources) = train_as(config);
    let generator = Generator::load(&runtime(2), trained.bundle).unwrap();
    Trained { generator, zoo, sources, train: trained.vectors.train }
}

/// Embedding, support and test examples of a request for some classes.
fn request(trained: &Trained, classes: &[u32]) -> (Embedding, Dataset, Dataset) {
    let source = &trained.sources.list()[0];
    let validation = source.dataset(Part::Validation);
    let generator = &trained.generator;
    let embedding = generator.embed(&generator.features(&validation, classes, 0).unwrap()).unwrap();
    let support = generator.gather_support(&validation, classes, 0).unwrap().whole().data;
    (embedding, support, source.dataset(Part::Test).select_classes(classes).unwrap())
}

#[test]
fn refined_latents_fit_the_examples_and_stay_near() {
    let trained = train(CONFIG);
    let generator = &trained.generator;
    let options = SampleOptions { count: 4, ..SampleOptions::default() };
    let (mut before, mut after, mut tuned) = (0.0, 0.0, 0.0);
    let sets = [[7, 1, 4], [0, 9, 2], [3, 5, 8]];
    for classes in &sets {
        let (embedding, support, test) = request(&trained, classes);
        let latents = generator.sample(&embedding, &options, &mut |_, _| true).unwrap();
        let refine = |refine: Refine| generator.refine(&latents, &support, &refine, &mut || true).unwrap();
        let refined = refine(Refine { steps: 4, prior: 1.0 });
        let loss = |latents: &[Vec<f32>], data: &Dataset| -> Vec<(f64, f64)> {
            let weights = generator.decode(latents).unwrap();
            let found = weights.iter().map(|w| generator.evaluate(w, data).unwrap());
            found.map(|e| (e.loss, e.accuracy)).collect()
        };
        for (old, new) in loss(&latents, &support).iter().zip(loss(&refined, &support)) {
            assert!(new.0 <= old.0 + 1e-6, "{old:?} {new:?}");
        }
        let mean = |found: Vec<(f64, f64)>| found.iter().map(|f| f.1).sum::<f64>() / found.len() as f64;
        before += mean(loss(&latents, &test)) / 3.0;
        after += mean(loss(&refined, &test)) / 3.0;
        // Plain fine-tuning on the same examples lowers the loss too.
        let weights = generator.decode(&latents).unwrap();
        let adapted = fit::adapt(&generator.architecture().config, &support, weights.clone(), 20, 3e-3).unwrap();
        for (old, new) in weights.iter().zip(&adapted) {
            let loss = |w: &[f32]| generator.evaluate(w, &support).unwrap().loss;
            assert!(loss(new) < loss(old));
        }
        tuned += adapted.iter().map(|w| generator.evaluate(w, &test).unwrap().accuracy).sum::<f64>() / 12.0;
        // Nothing to do, and no way from where it is.
        assert_eq!(refine(Refine { steps: 0, prior: 1.0 }), latents);
        let distance = |a: &[Vec<f32>]| -> f32 {
            a.iter().flatten().zip(latents.iter().flatten()).map(|(x, y)| (x - y).powi(2)).sum::<f32>().sqrt()
        };
        let held = refine(Refine { steps: 4, prior: 1e5 });
        assert!(distance(&held) < 0.05 * distance(&refined), "{} {}", distance(&held), distance(&refined));
    }
    println!("on test images: sampled {before:.3}, refined {after:.3}, fine-tuned {tuned:.3}");
    assert!(after > before + 0.02, "on test images: sampled {before}, refined {after}");
    let (_, support, _) = request(&trained, &sets[0]);
    let error = generator.refine(&[], &support, &Refine { steps: 999, prior: 1.0 }, &mut || true).unwrap_err();
    assert!(error.to_string().contains("refine.steps"), "{error}");
    let latent = vec![vec![0.0; generator.manifest().latent.dim()]];
    let error = generator.refine(&latent, &support, &Refine::default(), &mut || false).unwrap_err();
    assert_eq!(error.code(), "cancelled");
}

#[test]
fn noise_on_latents_buys_diversity() {
    let trained = train(&CONFIG.replace("steps = 300", "steps = 60"));
    let (embedding, ..) = request(&trained, &[7, 1, 4]);
    let sample = |count, latent_noise| {
        let options = SampleOptions { count, latent_noise, ..SampleOptions::default() };
        trained.generator.sample(&embedding, &options, &mut |_, _| true).unwrap()
    };
    let spread = |latents: &[Vec<f32>]| -> f32 {
        latents[1..].iter().map(|z| z.iter().zip(&latents[0]).map(|(a, b)| (a - b).powi(2)).sum::<f32>()).sum()
    };
    assert!(spread(&sample(8, 1.0)) > spread(&sample(8, 0.5)) && spread(&sample(8, 0.5)) > spread(&sample(8, 0.0)));
    assert_eq!(sample(8, 0.5)[..3], sample(3, 0.5), "a sample is the same alone and among others");
}

#[test]
fn quality_is_a_condition() {
    let config =
        CONFIG.replace("steps = 300", "steps = 60").replace("timesteps = 50", "timesteps = 50\n    quality = true");
    let trained = train(&config);
    let generator = &trained.generator;
    let default = generator.manifest().quality.unwrap().default;
    assert!(default > 0.5, "{default}");
    let (embedding, ..) = request(&trained, &[7, 1, 4]);
    let sample = |quality| {
        let options = SampleOptions { quality, ..SampleOptions::default() };
        generator.sample(&embedding, &options, &mut |_, _| true).unwrap()
    };
    assert_eq!(sample(None), sample(Some(default)));
    assert_ne!(sample(Some(-2.0)), sample(Some(2.0)));

    // What it was told: the accuracies of a task's checkpoints on validation images, in their own deviations.
    let qualities = measure::qualities(&trained.zoo, &trained.sources, &Progress::silent()).unwrap();
    let (sum, square) = qualities.iter().fold((0.0, 0.0), |(s, q), v| (s + v, q + v * v));
    let n = qualities.len() as f64;
    assert!((sum / n).abs() < 0.1 && square / n > 0.2 && square / n < 1.1, "{} {}", sum / n, square / n);
    // The better half of each task's.
    let kept = measure::best(&trained.zoo, &trained.train, &qualities, 0.5);
    assert!(kept.len() * 2 >= trained.train.len() && kept.len() < trained.train.len());
    let mean = |of: &[usize]| of.iter().map(|&c| qualities[c]).sum::<f64>() / of.len() as f64;
    assert!(mean(&kept) > mean(&trained.train) + 0.1);
    for &c in &trained.train {
        let task = |k: &&usize| trained.zoo.task(**k) == trained.zoo.task(c);
        let worst = kept.iter().filter(task).map(|&k| qualities[k]).fold(f64::INFINITY, f64::min);
        assert!(kept.contains(&c) || qualities[c] <= worst);
    }
}
