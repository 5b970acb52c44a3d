//! The accuracy predictor: what it learned holds for networks of held-out runs, and its graph says the same as candle.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;

use inference::{Generator, SessionPool};
use made::train_as;
use support::runtime;
use training::Config;
use training::stages::generator;
use training::stages::predictor::spearman;
use weights::manifest::files;

const CONFIG: &str = r#"
    name = "predicted"
    [data]
    sources = [{ name = "digits", from = "digits" }]
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 40
    orders = 2
    [architecture]
    kind = "mlp"
    hidden = [8]
    [zoo]
    epochs = 12
    keep = 4
    batch = 60
    lr = 1e-2
    [vectors]
    held_out = 0.2
    [vae]
    hidden = [32]
    latent = [16]
    steps = 150
    batch = 32
    [encoder]
    images = 2
    width = 16
    heads = 2
    token_dim = 4
    embedding_dim = 8
    steps = 20
    batch = 16
    [denoiser]
    kind = "mlp"
    width = 32
    blocks = 1
    [diffusion]
    timesteps = 50
    steps = 40
    batch = 16
    [predictor]
    steps = 400
    examples = 1500
    width = 64
"#;

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn a_predictor_ranks_networks_that_it_never_saw() {
    let (trained, zoo, sources) = train_as(CONFIG);
    let held_out = &trained.bundle.manifest().metrics["predictor"]["held_out"];
    assert!(number(&held_out["spearman"]) > 0.6, "{held_out}");
    assert!(number(&held_out["r2"]) > 0.3, "{held_out}");
    assert_eq!(trained.curve.last().unwrap().stage, "predictor");

    // The graph is candle's.
    let probes: Vec<_> = trained.probes.iter().filter(|p| p.graph == files::PREDICTOR).collect();
    assert_eq!(probes.len(), 3);
    let pool = SessionPool::new(&runtime(2), "predictor", trained.bundle.file(files::PREDICTOR).unwrap()).unwrap();
    for probe in probes {
        let inputs: Vec<_> =
            probe.inputs.iter().map(|n| (n.name.as_str(), n.shape.as_slice(), n.data.as_slice())).collect();
        let found = &pool.run(&inputs).unwrap()["accuracy"];
        let expected = &probe.outputs[0];
        assert_eq!(found.shape, expected.shape);
        assert!(found.data.iter().zip(&expected.data).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    // A checkpoint moved further and further away, in the units of its standardisation: the worse it gets, the less is
    // expected of it.
    let (x, statistics) = (trained.vectors.x.clone(), trained.vectors.standardisation.clone());
    let generator = Generator::load(&runtime(2), trained.bundle).unwrap();
    let task = zoo.task(0);
    let data = sources.list()[0].dataset(training::Part::Test);
    let embedding = generator.embed(&generator.features(&data, &task.classes, 0).unwrap()).unwrap();
    let test = data.select_classes(&task.classes).unwrap();
    let mut rng = training::random::stream(5, "moved");
    let moved: Vec<Vec<f32>> = (0..60)
        .map(|i| {
            let noise = training::random::normal_vec(zoo.parameters(), &mut rng);
            let mut theta: Vec<f32> = x.iter().zip(noise).map(|(w, n)| w + 0.05 * i as f32 * n).collect();
            statistics.invert(&mut theta).unwrap();
            theta
        })
        .collect();
    let expected = generator.predict(&moved, &embedding).unwrap().unwrap();
    let measured: Vec<f64> = moved.iter().map(|w| generator.evaluate(w, &test).unwrap().accuracy).collect();
    let agreement = spearman(&expected, &measured).unwrap();
    assert!(agreement > 0.4, "{agreement}: {expected:?} {measured:?}");
    assert!(expected.iter().all(|a| (0.0..=1.0).contains(a)));
}

#[test]
fn a_predictor_guides_the_vae_and_a_generator_can_be_without_one() {
    let few = CONFIG.replace("steps = 400", "steps = 30").replace("examples = 1500", "examples = 60");
    let small = few.replace("seen = 40", "seen = 6").replace("keep = 4", "keep = 1");
    let guided = small.replace("latent = [16]", "latent = [16]\n    predictor = 1.0");
    let ((with, ..), (without, ..)) = (train_as(&guided), train_as(&small));
    let stages: Vec<&str> = with.curve.iter().map(|c| c.stage.as_str()).collect();
    assert_eq!(stages, ["guide", "vae", "encoder", "denoiser", "predictor"]);
    // Eq. 9 changes what the VAE learns from its first step on.
    let vae = |trained: &generator::Trained| trained.curve.iter().find(|c| c.stage == "vae").unwrap().loss[0];
    assert!(vae(&with) > vae(&without), "{} {}", vae(&with), vae(&without));

    let none = small.replace("[predictor]\n    steps = 30", "[predictor]\n    steps = 0");
    let (trained, zoo, sources) = train_as(&none);
    assert_eq!(trained.bundle.manifest().predictor, None);
    let generator = Generator::load(&runtime(2), trained.bundle).unwrap();
    let data = sources.list()[0].dataset(training::Part::Test);
    let embedding = generator.embed(&generator.features(&data, &zoo.task(0).classes, 0).unwrap()).unwrap();
    assert_eq!(generator.predict(&[zoo.weights(0).to_vec()], &embedding).unwrap(), None);
    // Guiding needs a predictor's settings.
    let error = Config::parse(&none.replace("latent = [16]", "latent = [16]\n    predictor = 1.0")).unwrap_err();
    assert!(error.to_string().contains("predictor.steps"), "{error}");
}
