//! Convolutions that are done here instead of by ONNX Runtime give what its own give, on any number of threads.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;

use inference::{SessionPool, replayed};
use made::train_as;
use support::runtime;
use weights::manifest::files;

/// Planes of 16×16, 8×8 and 4×4; layers of 2 to 32 channels, 32 to 64 and back, joined ones of 96 and 128.
const CONFIG: &str = r#"
    name = "convolutions"
    [data]
    sources = [{ name = "digits", from = "digits" }]
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 2
    orders = 1
    [architecture]
    kind = "mlp"
    hidden = [8]
    [zoo]
    epochs = 1
    [vae]
    hidden = [16]
    latent = [2, 16, 16]
    steps = 2
    batch = 2
    [encoder]
    images = 2
    width = 8
    heads = 2
    token_dim = 4
    embedding_dim = 6
    steps = 2
    batch = 2
    [denoiser]
    kind = "unet"
    channels = 32
    multipliers = [1, 2, 2]
    [diffusion]
    steps = 2
    batch = 2
    timesteps = 100
"#;

/// Values between -1.5 and 1.5 that look like chance.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729 + i * i % 641) % 2003) as f32 / 667.0 - 1.5).collect()
}

#[test]
fn a_unet_predicts_what_onnx_runtime_predicts() {
    let bundle = train_as(CONFIG).0.bundle;
    let graph = bundle.file(files::DENOISER).unwrap();
    let plain = SessionPool::new(&runtime(1), files::DENOISER, graph).unwrap();
    let shape = [2, 16, 16];
    let condition = bundle.manifest().encoder.condition_dim;
    let mut most = 0f32;
    for threads in [1, 2, 3] {
        let runtime = runtime(threads);
        for rows in [1, 2, 3, 5, 16, 33] {
            let (latents, conditions) = (values(rows * 512, 1), values(rows * condition, 2));
            let times: Vec<f32> = (0..rows).map(|row| (row * 7 % 100) as f32).collect();
            let ours = replayed(&runtime, graph, &shape, [&latents, &times, &conditions]).unwrap();
            let inputs: [(&str, &[usize], &[f32]); 3] = [
                ("latent", &[rows, 2, 16, 16], &latents),
                ("timestep", &[rows], &times),
                ("condition", &[rows, condition], &conditions),
            ];
            let theirs = plain.run(&inputs).unwrap().remove("prediction").unwrap();
            assert_eq!(theirs.data.len(), ours.len());
            let pairs = || ours.iter().zip(&theirs.data);
            let largest = theirs.data.iter().fold(0f32, |m, v| m.max(v.abs()));
            let off = pairs().fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 5e-6 * largest, "{rows} rows on {threads} threads: {off} of {largest}");
            if threads == 1 {
                most = most.max(off);
            }
        }
    }
    assert!(most > 0.0, "on one thread too they are bit for bit ONNX Runtime's own");
}
