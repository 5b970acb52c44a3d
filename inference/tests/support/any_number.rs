//! A generator of linear heads of any number of classes from 2 to 5, trained for a moment on heads of 2, 3 and 5 digits
//! behind a PCA backbone.

use std::sync::OnceLock;

use datasets::Dataset;
use inference::{Extractor, Runtime};
use training::config::Config;
use training::stages::generator::Trained;
use training::stages::zoo::Zoo;
use training::{Keep, Sources};
use weights::manifest::ExtractorSpec;

/// Features of the backbone.
pub const FEATURES: usize = 16;
/// Images of each class that the encoder takes.
pub const IMAGES: usize = 3;

pub const CONFIG: &str = r#"
    name = "any"
    [data]
    sources = [{ name = "digits", from = "digits" }]
    backbone = { kind = "pca", dim = 16 }
    [tasks]
    kind = "class_sets"
    classes = [2, 3, 5]
    seen = 30
    orders = 2
    [architecture]
    kind = "head"
    [zoo]
    fit = "ridge"
    images = 20
    [vae]
    rows = true
    hidden = [48]
    latent = [5, 12]
    beta = 1e-3
    steps = 150
    batch = 32
    [encoder]
    images = 3
    width = 32
    token_dim = 16
    embedding_dim = 16
    steps = 10
    batch = 16
    joint = 1.0
    [denoiser]
    kind = "rows"
    width = 48
    blocks = 1
    heads = 4
    [diffusion]
    steps = 200
    batch = 32
    lr = 3e-3
"#;

/// A generator and what it was trained on.
pub struct Any {
    pub trained: Trained,
    pub zoo: Zoo,
    /// The images before the backbone.
    pub digits: Dataset,
}

struct Loaded {
    extractor: Extractor,
    onnx: Vec<u8>,
}

impl training::Extract for Loaded {
    fn spec(&self) -> &ExtractorSpec {
        self.extractor.spec()
    }

    fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    fn extract(&self, images: &Dataset) -> Result<Dataset, String> {
        self.extractor.extract(images).map_err(|e| e.to_string())
    }
}

pub fn any(runtime: &Runtime) -> &'static Any {
    static ANY: OnceLock<Any> = OnceLock::new();
    ANY.get_or_init(|| {
        let (config, silent) = (Config::parse(CONFIG).unwrap(), training::progress::Progress::silent());
        let images = Sources::load(&config).unwrap();
        let digits = images.list()[0].data.clone();
        let made = training::backbone::fit(&config, &images, &silent).unwrap();
        let extractor = Extractor::load(runtime, &made.spec, &made.onnx).unwrap();
        let sources = images.extracted(&config, &Loaded { extractor, onnx: made.onnx }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let zoo = training::stages::zoo::build(&config, &sources, folder.path(), &silent, Keep::nothing()).unwrap();
        let device = candle_core::Device::Cpu;
        let keep = Keep::nothing();
        let trained = training::stages::generator::train(&config, &zoo, &sources, &device, &silent, keep).unwrap();
        Any { trained, zoo, digits }
    })
}
