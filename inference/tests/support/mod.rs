//! A generator whose result is known: the head's row k is twice the mean feature vector of class k.

#![allow(dead_code)]

pub mod onnx;

use std::collections::BTreeMap;
use std::path::PathBuf;

use datasets::{Data, Dataset};
use inference::{Device, Runtime, locate_library};
use onnx::{Attribute, Graph};
use weights::manifest::{
    ArchitectureEntry, EncoderContract, FORMAT, Latent, Modality, Precision, Prediction, Schedule, files,
};
use weights::vectorise::Vectorise;
use weights::{Architecture, Bundle, Manifest, StandardiseMode};

pub const CLASSES: usize = 2;
pub const IMAGES: usize = 3;
pub const FEATURES: usize = 3;
/// Two rows of three weights and two biases.
pub const PARAMETERS: usize = 8;
/// The zoo's longest network had two parameters more.
pub const LENGTH: usize = 10;
pub const SCALE: f32 = 4.0;
pub const LATENT: [usize; 3] = [2, 2, 2];

pub fn library() -> PathBuf {
    locate_library(None).expect("run the tests with `make test`, which sets WEIGHTSMITH_ORT")
}

pub fn runtime(threads: usize) -> Runtime {
    Runtime::new(&library(), Device::Cpu, threads).unwrap()
}

pub fn schedule(prediction: Prediction) -> Schedule {
    Schedule { steps: 100, beta_start: 1e-3, beta_end: 0.1, prediction }
}

pub fn standardisation() -> (Vec<f32>, Vec<f32>) {
    let mean = (0..LENGTH).map(|i| i as f32 / 10.0).collect();
    let std = (0..LENGTH).map(|i| 1.0 + i as f32 / 5.0).collect();
    (mean, std)
}

pub fn manifest(prediction: Prediction) -> Manifest {
    let config = Architecture::Head { features: FEATURES, classes: CLASSES };
    let layout = config.layout();
    Manifest {
        format: FORMAT,
        name: "means".into(),
        description: "row k is twice the mean of class k".into(),
        modality: Modality::Features,
        architectures: vec![ArchitectureEntry {
            generated: Vec::new(),
            name: config.name(),
            parameters: layout.parameters(),
            forward: files::forward(&config.name()),
            layout,
            config,
        }],
        vectorise: Vectorise::model_wise(&[PARAMETERS, LENGTH]),
        standardise: StandardiseMode::Parameter,
        latent: Latent { shape: LATENT.to_vec(), scale: SCALE },
        schedule: schedule(prediction),
        encoder: EncoderContract {
            extractor: "pixels".into(),
            input_shape: vec![FEATURES],
            feature_dim: FEATURES,
            classes: CLASSES,
            min_classes: None,
            images_per_class: IMAGES,
            embedding_dim: FEATURES,
            condition_dim: CLASSES * FEATURES,
            known_classes: None,
        },
        extractor: None,
        text: None,
        predictor: None,
        quality: None,
        guidance: true,
        precision: Precision::Single,
        training: serde_json::json!({}),
        metrics: serde_json::json!({}),
        files: BTreeMap::new(),
    }
}

fn diagonal(rows: usize, columns: usize, value: f32) -> Vec<f32> {
    (0..rows * columns).map(|i| if i / columns == i % columns { value } else { 0.0 }).collect()
}

/// Class means in order as condition, their mean as dataset embedding.
pub fn dataset_encoder() -> Vec<u8> {
    let axis = |axis| [("axes", Attribute::Ints(vec![axis])), ("keepdims", Attribute::Int(0))];
    Graph::new()
        .input("features", &[0, CLASSES, IMAGES, FEATURES])
        .integers("flat", &[-1, (CLASSES * FEATURES) as i64])
        .node_with("ReduceMean", &["features"], "means", &axis(2))
        .node("Reshape", &["means", "flat"], "condition")
        .node_with("ReduceMean", &["means"], "dataset", &axis(1))
        .output("dataset", &[0, FEATURES])
        .output("condition", &[0, CLASSES * FEATURES])
        .finish()
}

/// The exact denoiser of the one latent x₀ = 2·scale·condition, zero where the condition has no value: it predicts
/// x₀, or ε = (z − √ᾱ_t·x₀)/√(1−ᾱ_t) with ᾱ looked up by the timestep.
pub fn denoiser(prediction: Prediction, integer_timestep: bool) -> Vec<u8> {
    let latent: Vec<usize> = std::iter::once(0).chain(LATENT).collect();
    let target: Vec<i64> = std::iter::once(-1).chain(LATENT.map(|d| d as i64)).collect();
    let (condition, dim) = (CLASSES * FEATURES, LATENT.iter().product());
    let alphas = schedule(prediction).alphas_cumulative();
    let table = |f: &dyn Fn(f64) -> f64| alphas.iter().map(|&a| f(a) as f32).collect::<Vec<_>>();
    let graph = Graph::new().input("latent", &latent);
    let graph = match integer_timestep {
        true => graph.integer_input("timestep", &[0]).node("Identity", &["timestep"], "t"),
        false => graph.input("timestep", &[0]).node_with("Cast", &["timestep"], "t", &[("to", Attribute::Int(7))]),
    };
    let graph = graph
        .input("condition", &[0, condition])
        .floats("matrix", &[condition, dim], &diagonal(condition, dim, 2.0 * SCALE))
        .floats("signal", &[alphas.len(), 1], &table(&|a| a.sqrt()))
        .floats("noise", &[alphas.len(), 1], &table(&|a| (1.0 - a).sqrt()))
        .integers("flat", &[-1, dim as i64])
        .integers("target", &target)
        .node("MatMul", &["condition", "matrix"], "x0");
    let graph = match prediction {
        Prediction::Sample => graph.node("Reshape", &["x0", "target"], "prediction"),
        Prediction::Epsilon => graph
            .node("Reshape", &["latent", "flat"], "z")
            .node("Gather", &["signal", "t"], "s")
            .node("Gather", &["noise", "t"], "n")
            .node("Mul", &["x0", "s"], "scaled")
            .node("Sub", &["z", "scaled"], "rest")
            .node("Div", &["rest", "n"], "epsilon")
            .node("Reshape", &["epsilon", "target"], "prediction"),
    };
    graph.output("prediction", &latent).finish()
}

/// Latent values in order, two zeros for the padding.
pub fn vae_decoder() -> Vec<u8> {
    let latent: Vec<usize> = std::iter::once(0).chain(LATENT).collect();
    Graph::new()
        .input("latent", &latent)
        .integers("flat", &[-1, PARAMETERS as i64])
        .floats("matrix", &[PARAMETERS, LENGTH], &diagonal(PARAMETERS, LENGTH, 1.0))
        .node("Reshape", &["latent", "flat"], "z")
        .node("MatMul", &["z", "matrix"], "weights")
        .output("weights", &[0, LENGTH])
        .finish()
}

/// The first values as mean, log-variance zero.
pub fn vae_encoder() -> Vec<u8> {
    let latent: Vec<usize> = std::iter::once(0).chain(LATENT).collect();
    let target: Vec<i64> = std::iter::once(-1).chain(LATENT.map(|d| d as i64)).collect();
    Graph::new()
        .input("weights", &[0, LENGTH])
        .floats("matrix", &[LENGTH, PARAMETERS], &diagonal(LENGTH, PARAMETERS, 1.0))
        .integers("target", &target)
        .node("MatMul", &["weights", "matrix"], "flat")
        .node("Reshape", &["flat", "target"], "mean")
        .node("Sub", &["mean", "mean"], "log_variance")
        .output("mean", &latent)
        .output("log_variance", &latent)
        .finish()
}

/// x·Wᵀ + b.
pub fn forward() -> Vec<u8> {
    Graph::new()
        .input("weight", &[CLASSES, FEATURES])
        .input("bias", &[CLASSES])
        .input("input", &[0, FEATURES])
        .node_with("Gemm", &["input", "weight", "bias"], "logits", &[("transB", Attribute::Int(1))])
        .output("logits", &[0, CLASSES])
        .finish()
}

pub fn bundle_files(prediction: Prediction) -> BTreeMap<String, Vec<u8>> {
    let (mean, std) = standardisation();
    let shape = [LENGTH];
    let statistics =
        weights::tensors::named_to_safetensors(&[("mean", &shape, &mean), ("std", &shape, &std)], &BTreeMap::new());
    [
        (files::DATASET_ENCODER.to_owned(), dataset_encoder()),
        (files::DENOISER.to_owned(), denoiser(prediction, false)),
        (files::VAE_DECODER.to_owned(), vae_decoder()),
        (files::VAE_ENCODER.to_owned(), vae_encoder()),
        (files::STANDARDISATION.to_owned(), statistics),
        (manifest(prediction).architectures[0].forward.clone(), forward()),
    ]
    .into()
}

pub fn bundle(prediction: Prediction) -> Bundle {
    Bundle::new(manifest(prediction), bundle_files(prediction)).unwrap()
}

/// `IMAGES` examples of each of three classes around the three axes.
pub fn dataset() -> Dataset {
    let mut values = Vec::new();
    let mut labels = Vec::new();
    for class in 0..3u32 {
        for image in 0..IMAGES {
            values.extend((0..FEATURES).map(|f| match f == class as usize {
                true => 1.0 + image as f32 / 10.0,
                false => 0.05 * image as f32,
            }));
            labels.push(class);
        }
    }
    let names = ["x", "y", "z"].map(str::to_owned).to_vec();
    Dataset::new("axes", vec![FEATURES], names, Data::F32(values), labels).unwrap()
}

/// Mean feature vector of a class of `dataset`.
pub fn class_mean(dataset: &Dataset, class: u32) -> Vec<f32> {
    let rows: Vec<usize> = (0..dataset.len()).filter(|&i| dataset.labels[i] == class).collect();
    let features = dataset.gather(&rows);
    (0..FEATURES).map(|f| features.iter().skip(f).step_by(FEATURES).sum::<f32>() / rows.len() as f32).collect()
}

/// The θ that the bundle generates for these classes, by hand.
pub fn expected(dataset: &Dataset, classes: &[u32], guidance: f32) -> Vec<f32> {
    let (mean, std) = standardisation();
    let mut theta: Vec<f32> =
        classes.iter().flat_map(|&c| class_mean(dataset, c)).map(|v| 2.0 * guidance * v).collect();
    theta.resize(PARAMETERS, 0.0);
    theta.iter().enumerate().map(|(i, v)| v * std[i] + mean[i]).collect()
}

pub fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "value {i}: {f} instead of {e}");
    }
}
