//! What `training` exports, on ONNX Runtime: every graph against candle, and a whole request.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;

use datasets::{Data, Dataset};
use inference::{Generator, SampleOptions};
use made::{check_probe, check_probes, train_as};
use support::runtime;
use training::export::{self, PROBE_BATCHES};
use training::stages::generator::Trained;
use training::stages::zoo::Zoo;
use training::{Config, Sources, TaskData};
use weights::{Activation, Architecture};

const CONFIG: &str = r#"
    name = "tiny"
    [data]
    sources = [{ name = "digits", from = "digits" }]
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 6
    orders = 2
    [zoo]
    epochs = 20
    [vae]
    hidden = [16]
    latent = [2, 4, 4]
    steps = 20
    batch = 8
    [encoder]
    images = 2
    width = 8
    heads = 2
    token_dim = 4
    embedding_dim = 6
    steps = 5
    batch = 8
    [diffusion]
    steps = 5
    batch = 8
    timesteps = 50
"#;

fn train(networks: &str) -> (Trained, Zoo, Sources) {
    train_as(&format!("{CONFIG}\n{networks}"))
}

/// The first examples of each class of a task on the digits, as a dataset.
fn dataset(task: &TaskData<'_>, per_class: usize) -> Dataset {
    let names = (0..task.classes()).map(|class| format!("row {class}")).collect();
    let labels = (0..task.classes() as u32).flat_map(|class| vec![class; per_class]).collect();
    Dataset::new("test", vec![1, 8, 8], names, Data::F32(task.first(per_class)), labels).unwrap()
}

#[test]
fn an_mlp_generator_runs_as_it_was_trained() {
    let (trained, zoo, sources) = train(
        r#"
        [architecture]
        kind = "mlp"
        hidden = [6]
        [denoiser]
        kind = "mlp"
        width = 16
        blocks = 2
        "#,
    );
    check_probes(&trained);
    let generator = Generator::load(&runtime(2), trained.bundle).unwrap();
    let digits = &sources.list()[0].data;

    // The zoo's own scores, which candle measured on as many test images of each class as every task has.
    let test = |run: usize| sources.task(&zoo.runs[run].task, training::Part::Test).unwrap();
    let per_class = (0..zoo.runs.len()).map(|run| test(run).per_class()).min().unwrap();
    for (index, checkpoint) in zoo.checkpoints.iter().enumerate().step_by(5) {
        let result = generator.evaluate(zoo.weights(index), &dataset(&test(checkpoint.run), per_class)).unwrap();
        assert!((result.loss - checkpoint.loss).abs() < 1e-5, "{} {}", result.loss, checkpoint.loss);
        assert!((result.accuracy - checkpoint.accuracy).abs() < 1e-6, "{} {}", result.accuracy, checkpoint.accuracy);
    }

    let classes = [7, 1, 4];
    let embedding = generator.embed(&generator.features(digits, &classes, 0).unwrap()).unwrap();
    let options = SampleOptions { count: 2, guidance: 1.5, ..SampleOptions::default() };
    let generated = generator.generate(&embedding, &options, &mut |_, _| true).unwrap();
    let task = digits.select_classes(&classes).unwrap();
    for theta in &generated.weights {
        assert_eq!(theta.len(), zoo.parameters());
        assert_eq!(generator.evaluate(theta, &task).unwrap().examples, task.len());
    }
    let latents = generator.encode_weights(&[zoo.weights(0).to_vec()]).unwrap();
    assert_eq!(generator.decode(&latents).unwrap()[0].len(), zoo.parameters());
}

#[test]
fn a_unet_runs_as_it_was_trained() {
    let (trained, ..) = train(
        r#"
        [architecture]
        kind = "head"
        [denoiser]
        kind = "unet"
        channels = 8
        multipliers = [1, 2]
        "#,
    );
    check_probes(&trained);
    Generator::load(&runtime(2), trained.bundle).unwrap();
}

/// An extractor as `training` takes it.
struct Loaded {
    extractor: inference::Extractor,
    onnx: Vec<u8>,
}

impl training::Extract for Loaded {
    fn spec(&self) -> &weights::manifest::ExtractorSpec {
        self.extractor.spec()
    }

    fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    fn extract(&self, images: &Dataset) -> Result<Dataset, String> {
        self.extractor.extract(images).map_err(|e| e.to_string())
    }
}

#[test]
fn heads_row_by_row_behind_a_backbone_run_as_they_were_trained() {
    let config = CONFIG.replace("sources =", "backbone = { kind = \"pca\", dim = 16 }\nsources =");
    let config = config.replace("latent = [2, 4, 4]", "latent = [3, 6]\nrows = true");
    let config = config.replace("epochs = 20", "fit = \"ridge\"\nimages = 20");
    let networks = "[architecture]\nkind = \"head\"\n[denoiser]\nkind = \"rows\"\nwidth = 12\nblocks = 2\nheads = 2\n";
    let config = Config::parse(&format!("{config}\n{networks}")).unwrap();
    let silent = training::progress::Progress::silent();
    let images = Sources::load(&config).unwrap();
    let digits = images.list()[0].data.clone();
    let made = training::backbone::fit(&config, &images, &silent).unwrap();
    let extractor = inference::Extractor::load(&runtime(2), &made.spec, &made.onnx).unwrap();
    let sources = images.extracted(&config, &Loaded { extractor, onnx: made.onnx }).unwrap();
    // Centred, of unit variance on the average, uncorrelated, the largest first.
    let features = sources.list()[0].data.gather(&(0..digits.len()).collect::<Vec<_>>());
    let variance = |i: usize, j: usize| {
        let products = features.chunks_exact(16).map(|row| f64::from(row[i]) * f64::from(row[j]));
        products.sum::<f64>() / digits.len() as f64
    };
    let variances: Vec<f64> = (0..16).map(|i| variance(i, i)).collect();
    assert!((variances.iter().sum::<f64>() / 16.0 - 1.0).abs() < 0.1, "{variances:?}");
    assert!(variances.is_sorted_by(|a, b| a * 1.1 > *b), "{variances:?}");
    assert!(variance(0, 1).abs() < 0.1 * variances[0], "{}", variance(0, 1));

    let folder = tempfile::tempdir().unwrap();
    let keep = training::Keep::nothing;
    let zoo = training::stages::zoo::build(&config, &sources, folder.path(), &silent, keep()).unwrap();
    assert!(zoo.mean_accuracy() > 0.9, "{}", zoo.mean_accuracy());
    let device = candle_core::Device::Cpu;
    let trained = training::stages::generator::train(&config, &zoo, &sources, &device, &silent, keep()).unwrap();
    check_probes(&trained);
    let generator = Generator::load(&runtime(2), trained.bundle).unwrap();
    // Images come in, features are what the heads see.
    let embedding = generator.embed(&generator.features(&digits, &[7, 1, 4], 0).unwrap()).unwrap();
    let options = SampleOptions::default();
    let theta = generator.generate(&embedding, &options, &mut |_, _| true).unwrap().weights.remove(0);
    assert_eq!(theta.len(), 3 * 16 + 3);
    let best = zoo.runs.iter().position(|run| run.task.classes.len() == 3).unwrap();
    let task = digits.select_classes(&zoo.runs[best].task.classes).unwrap();
    let task = generator.network_data(&task).unwrap();
    let found = generator.evaluate(zoo.weights(best), &task).unwrap();
    assert!(found.accuracy > 0.9 && generator.evaluate(&theta, &task).is_ok(), "{}", found.accuracy);
}

#[test]
fn a_convolutional_backbone_tells_its_classes_apart() {
    let text = r#"
        name = "t"
        [data]
        sources = [{ name = "digits", from = "digits" }]
        backbone = { kind = "conv", channels = [16, 32], dim = 32, steps = 400, batch = 64, shift = 0, lr = 5e-3 }
        [tasks]
        kind = "class_sets"
        classes = 3
        seen = 4
        orders = 1
        [architecture]
        kind = "head"
        [denoiser]
        kind = "mlp"
        width = 8
        blocks = 1
    "#;
    let config = Config::parse(text).unwrap();
    let images = Sources::load(&config).unwrap();
    let made = training::backbone::fit(&config, &images, &training::progress::Progress::silent()).unwrap();
    let extractor = inference::Extractor::load(&runtime(2), &made.spec, &made.onnx).unwrap();
    // Images that it did not learn from.
    let new = images.list()[0].dataset(training::Part::Test);
    // One-shot: the share of images whose own class has the nearest of one image each.
    let accuracy = |data: &Dataset| {
        let all = data.gather(&(0..data.len()).collect::<Vec<_>>());
        let rows: Vec<&[f32]> = all.chunks_exact(data.dim()).collect();
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f32>();
        let by_class = data.class_indices(&(0..data.len()).collect::<Vec<_>>());
        let mut right = 0;
        for draw in 0..10 {
            let nearest = |x: &[f32]| {
                let to = |k: &usize| distance(x, rows[by_class[*k][draw]]);
                (0..10usize).min_by(|a, b| to(a).total_cmp(&to(b))).unwrap() as u32
            };
            right += rows.iter().zip(&data.labels).filter(|(x, label)| nearest(x) == **label).count();
        }
        right as f64 / (10 * data.len()) as f64
    };
    let (pixels, features) = (accuracy(&new), accuracy(&extractor.extract(&new).unwrap()));
    eprintln!("{pixels:.3} on pixels, {features:.3} on features");
    assert!(features > pixels + 0.05 && features > 0.8, "{pixels} {features}");
}

#[test]
fn a_transformer_for_the_tiny_cnn_runs_as_it_was_trained() {
    let networks = r#"
        [architecture]
        kind = "tiny_cnn"
        [denoiser]
        kind = "transformer"
        width = 12
        blocks = 2
        heads = 3
        pieces = 4
        "#;
    // The tiny CNN takes images of 28×28; its zoo need not be good here.
    let config = CONFIG.replace("from = \"digits\"", "from = \"digits\", resize = [28, 28]");
    let config = config.replace("epochs = 20", "epochs = 1").replace("seen = 6", "seen = 3");
    let (trained, ..) = train_as(&format!("{config}\n{networks}"));
    check_probes(&trained);
    Generator::load(&runtime(2), trained.bundle).unwrap();
}

fn resnet() -> Architecture {
    let (blocks, widths) = (vec![1, 2], vec![4, 6]);
    Architecture::Resnet(weights::Resnet { channels: 2, side: 9, blocks, widths, classes: 3 })
}

/// With and without an expansion, a gate, a stride and an added input.
fn mobilenet() -> Architecture {
    let block =
        |kernel, expand, se, stride| weights::InvertedResidual { kernel, expand, out: 6, se, hswish: se, stride };
    Architecture::MobilenetV3(weights::MobilenetV3 {
        channels: 2,
        side: 9,
        stem: 4,
        stem_stride: 1,
        blocks: vec![block(3, 4, false, 1), block(5, 6, true, 2), block(3, 9, true, 1)],
        last: 7,
        hidden: 5,
        classes: 3,
    })
}

fn vit(pool: weights::Pool) -> Architecture {
    let (channels, side, patch, width, depth, heads, mlp, classes) = (2, 9, 3, 8, 2, 2, 6, 3);
    Architecture::Vit(weights::Vit { channels, side, patch, width, depth, heads, mlp, pool, classes })
}

#[test]
fn every_architecture_runs_as_in_candle() {
    let mlp = |activation| Architecture::Mlp { inputs: 9, hidden: vec![7, 5], classes: 4, activation };
    for architecture in [
        mlp(Activation::Relu),
        mlp(Activation::Tanh),
        Architecture::TinyCnn { channels: 1, classes: 10 },
        Architecture::TinyCnn { channels: 3, classes: 10 },
        Architecture::Head { features: 6, classes: 3 },
        Architecture::ResnetCifar { depth: 8, widths: [4, 4, 8], classes: 3 },
        Architecture::ResnetCifar { depth: 20, widths: [4, 6, 8], classes: 10 },
        resnet(),
        mobilenet(),
        vit(weights::Pool::ClassToken),
        vit(weights::Pool::Mean),
    ] {
        let graph = export::forward(&architecture).unwrap();
        for batch in PROBE_BATCHES {
            let probe = export::forward_probe(&architecture, batch).unwrap();
            assert_eq!(probe.outputs[0].shape, [batch, architecture.classes()]);
            assert!(probe.outputs[0].data.iter().any(|v| v.abs() > 1e-2), "{}: all but zero", probe.graph);
            check_probe(&probe, &graph);
            let statistics = export::statistics(&architecture).unwrap();
            let probe = export::statistics_probe(&architecture, batch).unwrap();
            assert_eq!(statistics.is_some(), architecture.layout().buffers().next().is_some());
            if let (Some(graph), Some(probe)) = (statistics, probe) {
                assert_eq!(probe.outputs.len(), architecture.layout().buffers().count());
                check_probe(&probe, &graph);
            }
        }
    }
}

/// What the manifest says of held-out reconstructions, which candle measured, measured again on ONNX Runtime: cutting,
/// standardisation, the index of each row and joining are the same in both.
fn check_reconstruction(trained: &Trained, zoo: &Zoo, sources: &Sources) {
    let generator = Generator::load(&runtime(2), trained.bundle.clone()).unwrap();
    let mut sum = 0.0;
    let held_out = &trained.vectors.held_out;
    for (kind, architecture) in zoo.architectures().enumerate() {
        let generator = generator.with_architecture(&architecture.name()).unwrap();
        let own: Vec<usize> = held_out.iter().copied().filter(|&c| zoo.kind(c) == kind).collect();
        assert!(!own.is_empty(), "{}: no run is held out", architecture.name());
        let rows: Vec<Vec<f32>> =
            own.iter().map(|&c| trained.vectors.aligned[zoo.offsets[c]..zoo.offsets[c + 1]].to_vec()).collect();
        let decoded = generator.decode(&generator.encode_weights(&rows).unwrap()).unwrap();
        let tasks: Vec<_> = own.iter().map(|&c| sources.task(zoo.task(c), training::Part::Test).unwrap()).collect();
        let per_class = tasks.iter().map(|t| t.per_class()).min().unwrap();
        for (theta, task) in decoded.iter().zip(&tasks) {
            assert_eq!(theta.len(), architecture.layout().parameters());
            sum += generator.evaluate(theta, &dataset(task, per_class)).unwrap().accuracy;
        }
    }
    let found = sum / held_out.len() as f64;
    let said = trained.bundle.manifest().metrics["reconstruction_accuracy_held_out"].as_f64().unwrap();
    assert!((found - said).abs() < 0.01, "{found} on ONNX Runtime, {said} in candle");
}

/// Networks are the same alone and among others, differ among each other, and their accuracy can be measured.
fn check_samples(generator: &Generator, sources: &Sources) {
    let digits = &sources.list()[0].data;
    let classes = [7, 1, 4];
    let embedding = generator.embed(&generator.features(digits, &classes, 0).unwrap()).unwrap();
    let generate = |count, guidance| {
        let options = SampleOptions { count, guidance, seed: 5, ..SampleOptions::default() };
        generator.generate(&embedding, &options, &mut |_, _| true).unwrap().weights
    };
    let (one, many) = (generate(1, 1.0), generate(70, 1.0));
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart(&one[0], &many[0]) < 1e-4);
    assert!(apart(&many[0], &many[1]) > 1e-3);
    assert!(apart(&many[0], &generate(1, 2.0)[0]) > 1e-6, "guidance does nothing");
    let task = digits.select_classes(&classes).unwrap();
    assert_eq!(generator.evaluate(&many[69], &task).unwrap().examples, task.len());
}

const SMALL_DENOISER: &str = r#"
    [denoiser]
    kind = "mlp"
    width = 16
    blocks = 2
"#;

#[test]
fn one_generator_makes_networks_of_several_architectures() {
    let config = CONFIG.replacen(
        "name = \"tiny\"",
        "name = \"tiny\"\nseed = 2\narchitectures = [{ kind = \"mlp\", hidden = [6] }, { kind = \"head\" }, \
         { kind = \"mlp\", hidden = [4, 3], activation = \"tanh\" }]\nvectors = { held_out = 0.2 }",
        1,
    );
    let (trained, zoo, sources) = train_as(&format!("{config}\n{SMALL_DENOISER}"));
    check_probes(&trained);
    check_reconstruction(&trained, &zoo, &sources);
    let generator = Generator::load(&runtime(2), trained.bundle.clone()).unwrap();
    assert_eq!((zoo.runs.len(), zoo.checkpoints.len()), (36, 36));
    let names: Vec<&str> = generator.manifest().architectures.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["mlp-64-6-3", "head-64-3", "mlp-64-4-3-3-tanh"]);
    assert_eq!(generator.architecture().name, names[0]);
    for name in names {
        let generator = generator.with_architecture(name).unwrap();
        assert_eq!(generator.architecture().name, name);
        check_samples(&generator, &sources);
    }
    let unknown = generator.with_architecture("mlp-1-2").unwrap_err();
    assert_eq!(unknown.code(), "unknown_architecture");
    assert!(unknown.to_string().contains("head-64-3"), "{unknown}");

    // Each has the zoo's own scores: its runs are of the architecture that the zoo says.
    for (index, checkpoint) in zoo.checkpoints.iter().enumerate().step_by(7) {
        let architecture = zoo.architectures().nth(zoo.kind(index)).unwrap();
        let generator = generator.with_architecture(&architecture.name()).unwrap();
        let task = sources.task(&zoo.runs[checkpoint.run].task, training::Part::Test).unwrap();
        let result = generator.evaluate(zoo.weights(index), &dataset(&task, task.per_class())).unwrap();
        assert!((result.accuracy - checkpoint.accuracy).abs() < 0.02, "{} {}", result.accuracy, checkpoint.accuracy);
    }

    // An older reader must not take it for what it knows.
    assert_eq!(generator.manifest().format, 2);
    let mut lost = trained.bundle.manifest().clone();
    lost.vectorise.pieces.truncate(2);
    let files = trained.bundle.entries().skip(1).map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
    assert!(weights::Bundle::new(lost, files).unwrap_err().to_string().contains("parameters"));
}

#[test]
fn chunked_networks_run_as_they_were_trained() {
    for (mode, chunk, rows) in
        [("layer_wise", 100, 5), ("uniform", 100, 5), ("layer_wise", 1000, 2), ("uniform", 1000, 1)]
    {
        let vectors = format!("[vectors]\nmode = \"{mode}\"\nchunk = {chunk}\nheld_out = 0.2");
        let architecture = "[architecture]\nkind = \"mlp\"\nhidden = [6]";
        let (trained, zoo, sources) = train(&format!("{vectors}\n{architecture}\n{SMALL_DENOISER}"));
        let manifest = trained.bundle.manifest();
        assert_eq!((manifest.vectorise.pieces.len(), manifest.vectorise.length), (rows, chunk), "{mode}");
        check_probes(&trained);
        check_reconstruction(&trained, &zoo, &sources);
        check_samples(&Generator::load(&runtime(2), trained.bundle).unwrap(), &sources);
    }
}

#[test]
fn a_convolutional_vae_and_cross_attention_run_as_they_were_trained() {
    let networks = r#"
        [architecture]
        kind = "mlp"
        hidden = [6]
        [denoiser]
        kind = "unet"
        channels = 8
        multipliers = [1, 2]
        attention = 2
        "#;
    let conv = "kind = \"conv\"\n    conv = { image = [2, 8, 8], channels = 8, groups = 4 }\n    latent = [2, 4, 4]";
    let config = format!("{}\n{networks}", CONFIG.replace("latent = [2, 4, 4]", conv));
    let (trained, ..) = train_as(&config);
    check_probes(&trained);
    let vae = trained.bundle.file("vae_encoder.onnx").unwrap();
    assert!(vae.windows(4).any(|w| w == b"Conv"), "it convolves");
    Generator::load(&runtime(2), trained.bundle).unwrap();
    for (wrong, said) in [("image = [2, 9, 8]", "doubled"), ("channels = 9", "groups")] {
        let key = if wrong.starts_with("image") { "image = [2, 8, 8]" } else { "channels = 8, groups" };
        let text = config.replacen(key, if key.starts_with("image") { wrong } else { "channels = 9, groups" }, 1);
        let error = Config::parse(&text).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = Config::parse(&config.replace("attention = 2", "attention = 3")).unwrap_err();
    assert!(error.to_string().contains("attention"), "{error}");
}

#[test]
fn diffusion_can_work_on_weights_themselves() {
    let networks = r#"
        [architecture]
        kind = "mlp"
        hidden = [6]
        [denoiser]
        kind = "mlp"
        width = 16
        blocks = 1
        "#;
    let (trained, zoo, _) =
        train_as(&format!("{}\n{networks}", CONFIG.replace("latent = [2, 4, 4]", "kind = \"identity\"")));
    check_probes(&trained);
    let generator = Generator::load(&runtime(2), trained.bundle).unwrap();
    assert_eq!(generator.manifest().latent.shape, [zoo.parameters()]);
    // The way there and back changes nothing.
    let theta = vec![zoo.weights(0).to_vec()];
    let back = generator.decode(&generator.encode_weights(&theta).unwrap()).unwrap();
    assert!(theta[0].iter().zip(&back[0]).all(|(a, b)| (a - b).abs() < 1e-4 * a.abs().max(1.0)));
}
