//! Settings of VAE and dataset encoder beside the recipe: that each does what it says, and refuses what makes no sense.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use candle_core::Device;
use training::progress::Progress;
use training::stages::generator::{self, Trained};
use training::stages::zoo;
use training::{Config, Error, Keep, Result, Sources};

fn text() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/tiny.toml");
    std::fs::read_to_string(path).unwrap()
}

fn train(text: &str) -> Result<Trained> {
    let config = Config::parse(text)?;
    let sources = Sources::load(&config)?;
    let (folder, silent) = (tempfile::tempdir().unwrap(), Progress::silent());
    let zoo = zoo::build(&config, &sources, folder.path(), &silent, Keep::nothing())?;
    generator::train(&config, &zoo, &sources, &Device::Cpu, &silent, Keep::nothing())
}

fn losses(trained: &Trained, stage: &str) -> Vec<f32> {
    trained.curve.iter().find(|c| c.stage == stage).unwrap().loss.clone()
}

#[test]
fn a_latent_that_collapses_ends_training_with_the_step() {
    let strong =
        "latent = [8]\nbeta = 1000.0\nmse = 0.001\nbehaviour = 0.0\nlr = 0.02\nweight_decay = 0.5\nsteps = 400";
    let error = train(&text().replace("latent = [8]\nsteps = 40", strong)).unwrap_err();
    assert!(matches!(error, Error::Collapsed { stage: "vae", step: 201.., .. }), "{error}");
    assert_eq!(error.code(), "collapsed");
    assert!(error.to_string().contains("vae.beta"), "{error}");
    let metrics = train(&text()).unwrap().bundle.manifest().metrics.clone();
    assert!(metrics["latent_active"].as_f64().unwrap() > 0.5, "{metrics}");
}

#[test]
fn the_divergence_counts_from_its_step_on() {
    let trained = train(&text().replace("latent = [8]", "latent = [8]\nbeta = 10000.0\nkl_from = 0.975")).unwrap();
    let loss = losses(&trained, "vae");
    assert!(loss[..39].iter().all(|l| *l < 50.0), "{loss:?}");
    assert!(loss[39] > 500.0, "{loss:?}");
    let error = train(&text().replace("latent = [8]", "latent = [8]\nkl_from = 1.0")).unwrap_err();
    assert!(error.to_string().contains("vae.kl_from"), "{error}");
}

#[test]
fn encoders_beside_the_set_transformer_train() {
    let with = |keys: &str| train(&text().replace("embedding_dim = 8", &format!("embedding_dim = 8\n{keys}")));
    let mlp = with("kind = \"mlp\"\ncondition = \"pooled\"").unwrap();
    assert_eq!(mlp.bundle.manifest().encoder.condition_dim, 8);
    // Whatever the dataset, an unconditional generator has one answer: the condition is zero.
    let none = with("condition = \"none\"").unwrap();
    let probe = none.probes.iter().find(|p| p.graph == "dataset_encoder.onnx").unwrap();
    let condition = probe.outputs.iter().find(|o| o.name == "condition").unwrap();
    assert!(condition.data.iter().all(|v| *v == 0.0));
    let joint =
        train(&text().replace("embedding_dim = 8\nsteps = 20", "embedding_dim = 8\njoint = 1.0\nsteps = 0")).unwrap();
    assert!(losses(&joint, "encoder").is_empty() && losses(&joint, "denoiser").len() == 40);
    for (keys, said) in [
        ("kind = \"mlp\"", "no class tokens"),
        ("condition = \"none\"\njoint = 1.0", "encoder.joint"),
        ("condition = \"all\"", "all"),
    ] {
        let error = with(keys).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = train(&text().replace("embedding_dim = 8\nsteps = 20", "embedding_dim = 8\nsteps = 0")).unwrap_err();
    assert!(error.to_string().contains("encoder.steps"), "{error}");
}
