//! Whole networks, generated layer by layer: they classify at once.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;

use inference::{Generator, SampleOptions};
use made::{check_probes, train_as};
use support::runtime;
use training::stages::generator::Trained;
use training::stages::zoo::Zoo;

/// A generator of whole networks on the digits, layer by layer: what it makes classifies at once, and as its zoo does.
fn check_generated(architecture: &str, statistics: bool) {
    let config = format!(
        r#"
        name = "deep"
        [data]
        sources = [{{ name = "digits", from = "digits" }}]
        [tasks]
        kind = "sources"
        [architecture]
        {architecture}
        [zoo]
        runs_per_task = 4
        epochs = 8
        batch = 50
        lr = 7e-3
        keep = 4
        group = 2
        [vectors]
        mode = "layer_wise"
        chunk = 192
        [vae]
        hidden = [96]
        latent = [16]
        steps = 120
        batch = 4
        behaviour_images = 2
        [encoder]
        images = 2
        width = 8
        heads = 2
        token_dim = 4
        embedding_dim = 6
        steps = 5
        batch = 4
        [denoiser]
        kind = "mlp"
        width = 64
        blocks = 2
        [diffusion]
        steps = 300
        batch = 64
        timesteps = 50
        "#
    );
    let (trained, zoo, sources) = train_as(&config);
    assert!(zoo.mean_accuracy() > 0.7, "the zoo has {}", zoo.mean_accuracy());
    check_probes(&trained);
    check_reconstruction_of(&trained, &zoo);
    let (digits, classes) = (&sources.list()[0].data, (0..10).collect::<Vec<u32>>());
    let generator = Generator::load(&runtime(2), trained.bundle).unwrap();
    assert_eq!(generator.manifest().format, if statistics { 3 } else { 2 });
    let embedding = generator.embed(&generator.features(digits, &classes, 0).unwrap()).unwrap();
    let options = SampleOptions { count: 3, ..SampleOptions::default() };
    for theta in generator.generate(&embedding, &options, &mut |_, _| true).unwrap().weights {
        let accuracy = generator.evaluate(&theta, digits).unwrap().accuracy;
        assert!(accuracy > 0.5, "generated {accuracy}, of a zoo of {}", zoo.mean_accuracy());
        let layout = &generator.architecture().layout;
        let variances = layout.params.iter().filter(|p| p.is_variance());
        assert!(variances.into_iter().all(|p| theta[p.range()].iter().all(|v| *v >= 0.0)));
    }
    // Statistics of the request's own examples, in place of the generated ones.
    let options = SampleOptions { recalibrate: true, ..SampleOptions::default() };
    let support = generator.gather_support(digits, &classes, 0).unwrap().whole().data;
    let measured = generator.generate_on(&embedding, &options, Some(&support), &mut |_, _| true);
    if !statistics {
        assert_eq!(measured.unwrap_err().code(), "option_invalid");
        return;
    }
    let theta = measured.unwrap().weights.remove(0);
    let images = support.gather(&(0..support.len()).collect::<Vec<_>>());
    let again = training::stages::fit::recalibrate(&zoo.architecture, &theta, images).unwrap();
    assert!(theta.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs())), "not those of candle");
    let accuracy = generator.evaluate(&theta, digits).unwrap().accuracy;
    assert!(accuracy > 0.4, "with 20 examples' statistics {accuracy}");
}

/// A checkpoint that is standardised and taken back is the same.
fn check_reconstruction_of(trained: &Trained, zoo: &Zoo) {
    let statistics = trained.bundle.standardisation().unwrap();
    let aligned = &trained.vectors.aligned[..zoo.parameters()];
    let mut rows = trained.vectors.vectorise.cut(0, aligned, 0.0).unwrap();
    statistics.apply(&mut rows).unwrap();
    statistics.invert(&mut rows).unwrap();
    let back = trained.vectors.vectorise.join(0, &rows, zoo.parameters()).unwrap();
    for (a, b) in aligned.iter().zip(&back) {
        assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{a} {b}");
    }
}

#[test]
fn a_generated_resnet_classifies() {
    check_generated("kind = \"resnet\"\nblocks = [1, 1]\nwidths = [4, 8]", true);
}

#[test]
fn a_generated_mobilenet_classifies() {
    check_generated(
        "kind = \"mobilenet_v3\"\nstem = 6\nstem_stride = 1\nlast = 24\nhidden = 24\n\
         blocks = [{ kernel = 3, expand = 12, out = 8, stride = 2 }, \
         { kernel = 5, expand = 16, out = 8, se = true, hswish = true }]",
        true,
    );
}

#[test]
fn a_generated_vision_transformer_classifies() {
    check_generated("kind = \"vit\"\npatch = 4\nwidth = 16\ndepth = 1\nheads = 2\nmlp = 24", false);
}
