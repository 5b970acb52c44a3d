//! A whole generator on ONNX Runtime, against results worked out by hand.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use datasets::{Data, Dataset};
use inference::{
    ClosedForm, Embedding, Error, Forward, Generator, Provenance, Provider, SampleOptions, SamplerKind, to_safetensors,
};
use support::onnx::Graph;
use support::{bundle, bundle_files, class_mean, close, dataset, expected, manifest, runtime};
use weights::manifest::{Prediction, files};
use weights::{Architecture, Bundle};

fn generator(prediction: Prediction) -> Generator {
    Generator::load(&runtime(2), bundle(prediction)).unwrap()
}

fn embed(generator: &Generator, classes: &[u32]) -> Embedding {
    generator.embed(&generator.features(&dataset(), classes, 1).unwrap()).unwrap()
}

#[test]
fn generated_heads_are_the_class_means_in_the_order_asked() {
    for prediction in [Prediction::Sample, Prediction::Epsilon] {
        let generator = generator(prediction);
        assert_eq!(generator.provider(), Provider::Cpu);
        for classes in [[0, 2], [2, 0], [1, 0]] {
            let embedding = embed(&generator, &classes);
            for (sampler, steps) in [(SamplerKind::Ddim, None), (SamplerKind::Ddpm, None), (SamplerKind::Ddpm, Some(9))]
            {
                let options = SampleOptions { sampler, steps, count: 2, seed: 5, ..SampleOptions::default() };
                let generated = generator.generate(&embedding, &options, &mut |_, _| true).unwrap();
                assert_eq!(generated.weights.len(), 2);
                for theta in &generated.weights {
                    close(theta, &expected(&dataset(), &classes, 1.0), 2e-2);
                }
            }
        }
    }
}

#[test]
fn closed_forms_come_from_the_examples_that_the_encoder_takes() {
    let generator = generator(Prediction::Sample);
    let (data, classes) = (dataset(), [2, 0]);
    let support = generator.gather_support(&data, &classes, 1).unwrap();
    let whole = support.whole();
    assert_eq!(whole.features, generator.features(&data, &classes, 1).unwrap());
    assert_eq!(whole.data.class_names, ["z", "x"]);
    let task = data.select_classes(&classes).unwrap();
    let heads = generator.closed_forms(&whole.data, &[]).unwrap();
    let forms: Vec<ClosedForm> = heads.iter().map(|(form, _)| *form).collect();
    assert_eq!(forms, [ClosedForm::Ridge, ClosedForm::Centroid, ClosedForm::Blend]);
    for (form, theta) in &heads {
        assert_eq!(generator.evaluate(theta, &task).unwrap().accuracy, 1.0, "{form:?}");
    }
    let means = [class_mean(&data, 2), class_mean(&data, 0)];
    let bias = means.iter().map(|mean| -mean.iter().map(|v| v * v).sum::<f32>());
    let centroid: Vec<f32> = means.iter().flatten().map(|v| 2.0 * v).chain(bias).collect();
    close(&heads[1].1, &centroid, 1e-5);

    let fold = support.fold(1);
    assert_eq!((fold.held_out.len(), fold.rest.data.len()), (2, whole.data.len() - 2));
    assert_eq!(fold.rest.features.len(), whole.features.len(), "the encoder gets as many as ever");
    generator.embed(&fold.rest.features).unwrap();
    // Equal examples are one: nothing is held out that is also among the rest.
    let twice = data.concat(&data).unwrap();
    assert_eq!(generator.gather_support(&twice, &classes, 1).unwrap().whole().data.len() % 2, 0);
    let same = data.take(&[0, 0, 0, data.len() - 1]);
    assert_eq!(generator.gather_support(&same, &classes, 1).unwrap().folds(), 0);
}

#[test]
fn guidance_scales_away_from_the_zero_condition() {
    for prediction in [Prediction::Sample, Prediction::Epsilon] {
        let generator = generator(prediction);
        let embedding = embed(&generator, &[1, 2]);
        for guidance in [0.0, 0.5, 3.0] {
            let options = SampleOptions { guidance, count: 3, ..SampleOptions::default() };
            let generated = generator.generate(&embedding, &options, &mut |_, _| true).unwrap();
            close(&generated.weights[2], &expected(&dataset(), &[1, 2], guidance), 2e-2);
        }
    }
}

#[test]
fn an_integer_timestep_is_served_too() {
    let mut files = bundle_files(Prediction::Epsilon);
    files.insert(files::DENOISER.into(), support::denoiser(Prediction::Epsilon, true));
    let generator = Generator::load(&runtime(2), Bundle::new(manifest(Prediction::Epsilon), files).unwrap()).unwrap();
    let embedding = embed(&generator, &[0, 1]);
    let generated = generator.generate(&embedding, &SampleOptions::default(), &mut |_, _| true).unwrap();
    close(&generated.weights[0], &expected(&dataset(), &[0, 1], 1.0), 2e-2);
}

#[test]
fn a_sample_does_not_depend_on_the_count() {
    // A denoiser that knows nothing of x₀ leaves each latent a mixture of its own noise.
    let half = Graph::new()
        .input("latent", &[0, 2, 2, 2])
        .input("timestep", &[0])
        .input("condition", &[0, 6])
        .floats("half", &[1], &[0.5])
        .node("Mul", &["latent", "half"], "prediction")
        .output("prediction", &[0, 2, 2, 2])
        .finish();
    let mut files = bundle_files(Prediction::Sample);
    files.insert(files::DENOISER.into(), half);
    let generator = Generator::load(&runtime(2), Bundle::new(manifest(Prediction::Sample), files).unwrap()).unwrap();
    let embedding = embed(&generator, &[0, 1]);
    let sample = |count, seed| {
        let options = SampleOptions { count, seed, eta: Some(0.7), steps: Some(5), ..SampleOptions::default() };
        generator.sample(&embedding, &options, &mut |_, _| true).unwrap()
    };
    let (one, three, many) = (sample(1, 9), sample(3, 9), sample(130, 9));
    assert_eq!((one.len(), three.len(), many.len()), (1, 3, 130));
    assert_eq!(one[0], many[0]);
    assert_eq!(three[..], many[..3]);
    assert!(many.iter().enumerate().all(|(i, z)| many[..i].iter().all(|other| other != z)));
    assert_ne!(one, sample(1, 10));
}

#[test]
fn progress_counts_all_steps_and_stops_when_told() {
    let generator = generator(Prediction::Sample);
    let embedding = embed(&generator, &[0, 1]);
    let options = SampleOptions { count: 65, steps: Some(4), ..SampleOptions::default() };
    let mut seen = Vec::new();
    generator
        .sample(&embedding, &options, &mut |step, total| {
            seen.push((step, total));
            true
        })
        .unwrap();
    assert!(seen.iter().all(|(_, total)| *total == 65 * 4) && seen.is_sorted(), "{seen:?}");
    assert_eq!(seen.last(), Some(&(260, 260)));
    let error = generator.sample(&embedding, &options, &mut |step, _| step < 3).unwrap_err();
    assert!(matches!(error, Error::Cancelled { step: 3..260, total: 260 }), "{error}");
}

#[test]
fn options_the_generator_cannot_honour_are_refused() {
    let mut plain = manifest(Prediction::Sample);
    plain.guidance = false;
    let plain = Bundle::new(plain, bundle_files(Prediction::Sample)).unwrap();
    let generator = Generator::load(&runtime(2), plain).unwrap();
    let embedding = embed(&generator, &[0, 1]);
    for options in [
        SampleOptions { guidance: 2.0, ..SampleOptions::default() },
        SampleOptions { steps: Some(101), ..SampleOptions::default() },
        SampleOptions { count: 0, ..SampleOptions::default() },
    ] {
        let error = generator.sample(&embedding, &options, &mut |_, _| true).unwrap_err();
        assert_eq!(error.code(), "option_invalid", "{error}");
    }
    let short = Embedding { condition: vec![0.0; 5], ..embedding };
    let error = generator.sample(&short, &SampleOptions::default(), &mut |_, _| true).unwrap_err();
    assert_eq!(error.code(), "length_mismatch");
}

#[test]
fn embeddings_are_the_same_alone_and_in_a_batch() {
    let generator = generator(Prediction::Sample);
    let classes = [[0, 1], [1, 0], [2, 1]];
    let features: Vec<_> = classes.iter().map(|c| generator.features(&dataset(), c, 1).unwrap()).collect();
    let many = generator.embed_many(&features).unwrap();
    for (features, embedding) in features.iter().zip(&many) {
        assert_eq!(&generator.embed(features).unwrap(), embedding);
    }
    close(&many[0].dataset, &many[1].dataset, 1e-6);
    assert_ne!(many[0].condition, many[1].condition);
    assert_eq!(generator.embed(&features[0][1..]).unwrap_err().code(), "length_mismatch");
    assert_eq!(generator.embed(&[f32::NAN; 18]).unwrap_err().code(), "non_finite");
    assert!(generator.embed_many(&[]).unwrap().is_empty());
}

#[test]
fn features_follow_seed_and_class_and_refuse_what_does_not_fit() {
    let generator = generator(Prediction::Sample);
    let (long, data) = (support::CLASSES * support::IMAGES * support::FEATURES, dataset());
    let forth = generator.features(&data, &[0, 2], 3).unwrap();
    assert_eq!(forth.len(), long);
    assert_eq!(forth, generator.features(&data, &[0, 2], 3).unwrap());
    let back = generator.features(&data, &[2, 0], 3).unwrap();
    assert_eq!([&back[long / 2..], &back[..long / 2]].concat(), forth);

    let refused = |data: &Dataset, classes: &[u32]| generator.features(data, classes, 0).unwrap_err();
    assert_eq!(refused(&data, &[0]).code(), "classes_mismatch");
    assert_eq!(refused(&data, &[0, 3]).code(), "unknown_class");
    assert_eq!(refused(&data, &[1, 1]).code(), "duplicate_class");
    let error = refused(&data.take(&[0, 1, 2]), &[0, 1]);
    assert_eq!(error.code(), "class_without_images");
    assert!(error.to_string().contains("\"y\""), "{error}");
    let names = vec!["a".to_owned(), "b".to_owned()];
    let wide = Dataset::new("wide", vec![4], names.clone(), Data::F32(vec![0.0; 8]), vec![0, 1]).unwrap();
    let error = refused(&wide, &[0, 1]);
    assert_eq!(error.code(), "shape_mismatch");
    assert!(error.to_string().contains("[4]") && error.to_string().contains("[3]"), "{error}");
    let images = Dataset::new("images", vec![1, 1, 3], names, Data::U8(vec![0; 6]), vec![0, 1]).unwrap();
    assert_eq!(refused(&images, &[0, 1]).code(), "modality_mismatch");
    let mut broken = data.clone();
    broken.data = Data::F32(vec![f32::INFINITY; 27]);
    assert_eq!(refused(&broken, &[0, 1]).code(), "non_finite");
    // A class with fewer examples than needed repeats them.
    assert_eq!(generator.features(&data.take(&[0, 3]), &[0, 1], 0).unwrap().len(), long);
}

#[test]
fn reconstruction_is_exact_for_an_exact_vae() {
    let generator = generator(Prediction::Sample);
    let weights: Vec<Vec<f32>> = (0..70).map(|k| (0..8).map(|i| (i * k) as f32 / 9.0 - 3.0).collect()).collect();
    let latents = generator.encode_weights(&weights).unwrap();
    for (theta, back) in weights.iter().zip(generator.decode(&latents).unwrap()) {
        close(&back, theta, 1e-4);
    }
    assert_eq!(generator.encode_weights(&[vec![0.0; 9]]).unwrap_err().code(), "length_mismatch");
    assert_eq!(generator.decode(&[vec![f32::NAN; 8]]).unwrap_err().code(), "non_finite");
    assert_eq!(generator.decode(&[vec![f32::MAX; 8]]).unwrap_err().code(), "non_finite");
}

#[test]
fn evaluation_counts_over_batches() {
    let generator = generator(Prediction::Sample);
    // 1,300 examples: label 1 when the first feature is larger than the second, every tenth label wrong.
    let mut values = Vec::new();
    let mut labels = Vec::new();
    for i in 0..1300u32 {
        let first = i % 2;
        values.extend([first as f32, 0.5, 0.0]);
        labels.push(if i % 10 == 0 { 1 - first } else { first });
    }
    let names = vec!["no".to_owned(), "yes".to_owned()];
    let data = Dataset::new("pairs", vec![3], names, Data::F32(values), labels).unwrap();
    let theta = [0.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0];
    let result = generator.evaluate(&theta, &data).unwrap();
    assert_eq!((result.examples, result.accuracy), (1300, 0.9));
    assert!((0..1300).all(|i| result.predictions[i] == i as u32 % 2));
    // Margin 1 everywhere: softplus(-1) when right, softplus(1) when wrong.
    let softplus = |x: f64| x.exp().ln_1p();
    assert!((result.loss - (0.9 * softplus(-1.0) + 0.1 * softplus(1.0))).abs() < 1e-6, "{}", result.loss);

    let refused = |theta: &[f32], data: &Dataset| generator.evaluate(theta, data).unwrap_err().code();
    assert_eq!(refused(&theta[..7], &data), "length_mismatch");
    assert_eq!(refused(&[f32::NAN; 8], &data), "non_finite");
    assert_eq!(refused(&theta, &dataset()), "classes_mismatch");
    assert_eq!(refused(&theta, &data.take(&[])), "dataset_invalid");
    let names = vec!["a".to_owned(), "b".to_owned()];
    let wide = Dataset::new("wide", vec![4], names, Data::F32(vec![0.0; 8]), vec![0, 1]).unwrap();
    assert_eq!(refused(&theta, &wide), "shape_mismatch");
}

#[test]
fn a_forward_graph_evaluates_without_a_generator() {
    let layout = Architecture::Head { features: 3, classes: 2 }.layout();
    let forward = Forward::from_onnx(&runtime(2), &support::forward(), &layout, &[3]).unwrap();
    let logits = forward.logits(&[1.0, 2.0, 3.0, 0.0, 0.0, 1.0, 10.0, 20.0], &[1.0, 1.0, 1.0, 0.0, 0.0, 2.0]).unwrap();
    assert_eq!(logits, [16.0, 21.0, 16.0, 22.0]);
    // Images of as many values fit flat inputs.
    let images = Dataset::new(
        "images",
        vec![1, 1, 3],
        vec!["a".to_owned(), "b".to_owned()],
        Data::U8(vec![255, 0, 0, 0, 0, 255]),
        vec![0, 1],
    )
    .unwrap();
    let result = forward.evaluate(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], &images).unwrap();
    assert_eq!(result.accuracy, 1.0);
    let other = Architecture::Head { features: 3, classes: 5 }.layout();
    let error = Forward::from_onnx(&runtime(2), &support::forward(), &other, &[3]).unwrap_err();
    assert_eq!(error.code(), "bundle_invalid");
    assert!(error.to_string().contains("weight [5, 3]"), "{error}");
}

#[test]
fn graphs_that_do_not_fit_the_manifest_are_named() {
    let load = |name: &str, graph: Vec<u8>| {
        let mut files = bundle_files(Prediction::Sample);
        files.insert(name.into(), graph);
        let bundle = Bundle::new(manifest(Prediction::Sample), files).unwrap();
        let error = Generator::load(&runtime(2), bundle).unwrap_err();
        assert_eq!(error.code(), "bundle_invalid");
        error.to_string()
    };
    let message = load(files::VAE_DECODER, b"not a graph".to_vec());
    assert!(message.contains("vae_decoder.onnx is not a usable graph"), "{message}");
    let message = load(files::VAE_DECODER, support::vae_encoder());
    assert!(message.contains("no input latent [batch, 2, 2, 2]"), "{message}");
    let identity = |input: &[usize], output: &str| {
        Graph::new().input("latent", input).node("Identity", &["latent"], output).output(output, input).finish()
    };
    let message = load(files::VAE_DECODER, identity(&[0, 2, 2, 3], "weights"));
    assert!(message.contains("not latent [batch, 2, 2, 2]"), "{message}");
    let message = load(files::VAE_DECODER, identity(&[0, 2, 2, 2], "other"));
    assert!(message.contains("no output weights [batch, 10]"), "{message}");
    let message = load(files::VAE_DECODER, identity(&[1, 2, 2, 2], "weights"));
    assert!(message.contains("vae_decoder.onnx has input latent"), "{message}");
    let extra = Graph::new()
        .input("latent", &[0, 2, 2, 2])
        .input("more", &[1])
        .integers("flat", &[-1, 8])
        .floats("matrix", &[8, 10], &[0.0; 80])
        .node("Reshape", &["latent", "flat"], "z")
        .node("MatMul", &["z", "matrix"], "weights")
        .output("weights", &[0, 10])
        .finish();
    let message = load(files::VAE_DECODER, extra);
    assert!(message.contains("the input more"), "{message}");

    let mut files = bundle_files(Prediction::Sample);
    files.remove(files::DENOISER);
    let bundle = Bundle::new(manifest(Prediction::Sample), files).unwrap();
    let error = Generator::load(&runtime(2), bundle).unwrap_err();
    assert!(error.to_string().contains("denoiser.onnx is missing"), "{error}");
}

#[test]
fn manifests_that_cannot_be_sampled_from_are_refused() {
    let load = |change: &dyn Fn(&mut weights::Manifest)| {
        let mut manifest = manifest(Prediction::Sample);
        change(&mut manifest);
        let bundle = Bundle::new(manifest, bundle_files(Prediction::Sample)).unwrap();
        let error = Generator::load(&runtime(2), bundle).unwrap_err();
        assert_eq!(error.code(), "bundle_invalid", "{error}");
        error.to_string()
    };
    assert!(load(&|m| m.encoder.extractor = "clip".into()).contains("clip"));
    assert!(load(&|m| m.encoder.embedding_dim = 0).contains("embedding_dim"));
    assert!(load(&|m| m.encoder.condition_dim = 0).contains("condition_dim"));
    assert!(load(&|m| m.encoder.images_per_class = usize::MAX).contains("features"));
    assert!(load(&|m| m.encoder.input_shape = vec![1, 2, 2]).contains("feature_dim 3"));
    assert!(load(&|m| m.latent.shape = vec![1 << 20, 1 << 20]).contains("latent.shape"));
    assert!(load(&|m| m.schedule.steps = 1 << 40).contains("schedule.steps"));
    // Usable numbers that are not those of the graphs.
    assert!(load(&|m| m.encoder.embedding_dim = 4).contains("dataset [batch, 4]"));
    assert!(load(&|m| m.encoder.images_per_class = 4).contains("features [batch, 2, 4, 3]"));
    assert!(load(&|m| m.latent.shape = vec![8]).contains("latent [batch, 8]"));
}

#[test]
fn files_tell_where_weights_came_from() {
    let generator = generator(Prediction::Sample);
    let options = SampleOptions { seed: 42, ..SampleOptions::default() };
    let classes = ["x".to_owned(), "a \"quoted\" name".to_owned()];
    let provenance = Provenance {
        generator_name: "means@production",
        dataset: "sha256:0",
        classes: &classes,
        options: &options,
        index: 3,
        instead: None,
    };
    let theta: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let bytes = to_safetensors(&generator, &theta, &provenance).unwrap();
    assert_eq!(weights::tensors::from_safetensors(&bytes, &generator.architecture().layout).unwrap(), theta);
    let expected: BTreeMap<String, String> = [
        ("format", "weightsmith"),
        ("generator", generator.digest()),
        ("generator_name", "means@production"),
        ("architecture", "head-3-2"),
        ("architecture_config", r#"{"kind":"head","features":3,"classes":2}"#),
        ("seed", "42"),
        ("index", "3"),
        ("dataset", "sha256:0"),
        ("classes", r#"["x","a \"quoted\" name"]"#),
        ("sampler", "ddim"),
        ("steps", "5"),
        ("eta", "0"),
        ("guidance", "1"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    assert_eq!(weights::tensors::metadata(&bytes).unwrap(), expected);
    assert!(to_safetensors(&generator, &theta[1..], &provenance).is_err());
}

#[test]
fn one_generator_serves_many_threads() {
    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }
    let generator = shared(generator(Prediction::Epsilon));
    let embedding = embed(&generator, &[0, 1]);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (generator, embedding) = (&generator, &embedding);
            scope.spawn(move || {
                for _ in 0..5 {
                    let options = SampleOptions { seed, count: 2, guidance: 2.0, ..SampleOptions::default() };
                    let generated = generator.generate(embedding, &options, &mut |_, _| true).unwrap();
                    close(&generated.weights[1], &expected(&dataset(), &[0, 1], 2.0), 2e-2);
                }
            });
        }
    });
}
