//! Every graph that training exports, before `onnx.checker` with full shape inference. (That ONNX Runtime computes in
//! them what candle computes is tested in `inference`.)

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use training::progress::Progress;
use training::{Config, Sources, export, stages};
use weights::manifest::files;
use weights::{Activation, Architecture};

const CONFIG: &str = r#"
    name = "tiny"
    [data]
    sources = [{ name = "digits", from = "digits", resize = [28, 28] }]
    limit_per_class = 20
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 4
    orders = 1
    [zoo]
    epochs = 1
    [vae]
    hidden = [8]
    latent = [2, 4, 4]
    steps = 2
    batch = 4
    [encoder]
    images = 2
    width = 8
    heads = 2
    token_dim = 4
    embedding_dim = 6
    steps = 2
    batch = 4
    [diffusion]
    steps = 2
    batch = 4
    timesteps = 50
"#;

const NETWORKS: [(&str, &str); 3] = [
    ("mlp", "[architecture]\nkind = \"mlp\"\nhidden = [4]\n[denoiser]\nkind = \"mlp\"\nwidth = 8\nblocks = 2"),
    (
        "transformer",
        "[architecture]\nkind = \"tiny_cnn\"\n[denoiser]\nkind = \"transformer\"\nwidth = 8\nblocks = 2\nheads = 2\npieces = 4",
    ),
    (
        "unet",
        "[architecture]\nkind = \"head\"\n[denoiser]\nkind = \"unet\"\nchannels = 8\nmultipliers = [1, 2]\ngroups = 4",
    ),
];

/// Checks all files given; prints the names of those that pass. A file that does not ends it with an error.
const CHECK: &str = "
import sys
import onnx
for path in sys.argv[1:]:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node and model.graph.output, path
    print(path)
";

/// What the checker says of the files: its output, or its complaint.
fn check(files: &[String]) -> Result<String, String> {
    let set = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: run the tests with `make test`, which sets it"))
    };
    let mut python = Command::new(set("WEIGHTSMITH_PYTHON"));
    python.env("PYTHONPATH", set("WEIGHTSMITH_PYTHONPATH")).args(["-c", CHECK]).args(files);
    let output = python.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The graphs of a generator, written to `folder`; gives their paths.
fn graphs(name: &str, networks: &str, folder: &Path) -> Vec<String> {
    let config = Config::parse(&format!("{CONFIG}\n{networks}")).unwrap();
    let sources = Sources::load(&config).unwrap();
    let silent = Progress::silent();
    let zoo =
        stages::zoo::build(&config, &sources, &folder.join(format!("{name}-zoo")), &silent, training::Keep::nothing())
            .unwrap();
    let device = candle_core::Device::Cpu;
    let trained =
        stages::generator::train(&config, &zoo, &sources, &device, &silent, training::Keep::nothing()).unwrap();
    let half = training::precision::to_half(&trained.bundle).unwrap();
    let denoiser = half.file(files::DENOISER).unwrap();
    let files = trained.bundle.entries().filter(|(file, _)| file.ends_with(".onnx"));
    files
        .map(|(file, bytes)| write(folder, &format!("{name}-{}", file.replace('/', "-")), bytes))
        .chain([write(folder, &format!("{name}-denoiser-half.onnx"), denoiser)])
        .collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn every_exported_graph_is_valid_onnx() {
    let place = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (name, networks) in NETWORKS {
        let found = graphs(name, networks, place.path());
        // The VAE's encoder and decoder, the dataset encoder, the denoiser, the network's forward.
        assert_eq!(found.len(), 6, "{found:?}");
        files.extend(found);
    }
    let mlp = |activation| Architecture::Mlp { inputs: 6, hidden: vec![5, 4], classes: 3, activation };
    for architecture in [
        mlp(Activation::Relu),
        mlp(Activation::Tanh),
        Architecture::TinyCnn { channels: 1, classes: 10 },
        Architecture::TinyCnn { channels: 3, classes: 10 },
        Architecture::Head { features: 7, classes: 3 },
    ] {
        let name = format!("{}-{}.onnx", architecture.name(), files.len());
        files.push(write(place.path(), &name, &export::forward(&architecture).unwrap()));
    }
    let said = check(&files).unwrap_or_else(|complaint| panic!("{complaint}"));
    let passed: BTreeSet<&str> = said.lines().collect();
    assert_eq!(passed, files.iter().map(String::as_str).collect());
}

/// So that the test above means something: the checker is there and refuses what is no graph.
#[test]
fn the_checker_refuses_a_wrong_graph() {
    let place = tempfile::tempdir().unwrap();
    let graph = export::forward(&Architecture::Head { features: 7, classes: 3 }).unwrap();
    // An operator that does not exist, of a name as long as that of one that does.
    let mut wrong = graph.clone();
    let multiplies = |at: &usize| [&b"MatM"[..], b"Gemm"].contains(&&graph[*at..*at + 4]);
    let places: Vec<usize> = (0..graph.len() - 4).filter(multiplies).collect();
    assert!(!places.is_empty(), "a head multiplies matrices");
    places.iter().for_each(|&at| wrong[at..at + 4].copy_from_slice(b"Nope"));
    let files = [("good.onnx", graph), ("wrong.onnx", wrong)].map(|(name, bytes)| write(place.path(), name, &bytes));
    assert!(check(&files[..1]).is_ok());
    let complaint = check(&files[1..]).unwrap_err();
    assert!(complaint.contains("Nope"), "{complaint}");
}
