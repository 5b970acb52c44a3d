//! The experiment `figure-2` (paper 4.1.4): chunks of the layers of a published ResNet-32 are learned by layer
//! type and position, and generated for ResNets of other depths, beside the published ones, copies of the nearest
//! layers, noise as far from those, and random weights.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

use datasets::Dataset;
use inference::Forward;
use serde::{Deserialize, Serialize};
use serde_json::json;
use training::stages::fit::{init_theta, recalibrate};
use training::stages::layers::{Layers, LayersConfig, nearest_copy};
use training::{export, random};
use weights::checkpoint::{Checkpoint, Limits, Options};
use weights::{Architecture, Layout, novelty, tensors};

use super::experiment::Place;
use super::own;
use crate::context::peak_rss_mib;
use crate::error::{Error, Result};

/// Its name.
pub const NAME: &str = "figure-2";
/// Its title.
pub const TITLE: &str = "Unseen architectures: ResNet-20, -44 and -56 from the layers of ResNet-32";

const FILE: &str = include_str!("../../../configs/report/figure-2.toml");
const CHECKPOINTS: &str = "checkpoints/resnet-cifar10";
const IMAGES: &str = "cifar10/test-jpg.tar.gz";
/// The classes in the order of the published checkpoints' outputs.
const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Depth of the network that is learned from.
    from: usize,
    /// Depths that are generated.
    to: Vec<usize>,
    /// Images of each class that accuracies are measured on.
    images: usize,
    /// Images of each class that normalisations are recalibrated on; others.
    calibration: usize,
    /// Networks of each depth in arms that draw them.
    samples: usize,
    /// How chunks are learned.
    layers: LayersConfig,
}

fn settings(quick: bool) -> Result<Settings> {
    own::settings(NAME, FILE, quick)
}

/// Why its data is not there, if so.
pub fn missing_data(data: Option<&Path>) -> Option<String> {
    let needs = format!("experiment {NAME} needs {CHECKPOINTS}/resnet32-*.th (and other depths) and {IMAGES}");
    let Some(dir) = data else {
        return Some(format!("{needs}: give the folder that holds them with --data, or in WEIGHTSMITH_DATA"));
    };
    let there = dir.join(CHECKPOINTS).is_dir() && dir.join(IMAGES).is_file();
    (!there).then(|| format!("{needs}, and they are not in {}", dir.display()))
}

/// Accuracies by arm and depth.
type Arms = BTreeMap<&'static str, BTreeMap<usize, Vec<f64>>>;

/// Runs it, and writes its page and its numbers.
///
/// # Errors
/// `data_missing`, and those of reading, training and ONNX Runtime.
pub fn run(place: &Place<'_>, quick: bool) -> Result<()> {
    let data = place.data.ok_or_else(|| Error::Internal("no data".into()))?;
    let start = Instant::now();
    let settings = settings(quick)?;
    let (calibration, test) = images(data, &settings)?;
    let mut runner = Runner { place, settings: &settings, calibration, test, arms: Arms::new() };
    runner.measure(data)?;
    let arms = runner.arms;
    let command = own::command(NAME, quick);
    let seconds = start.elapsed().as_secs_f64();
    let page = page(&settings, &arms, &command, quick, seconds);
    let by_arm: BTreeMap<&str, BTreeMap<usize, serde_json::Value>> =
        arms.iter().map(|(arm, by)| (*arm, by.iter().map(|(depth, v)| (*depth, own::numbers(v))).collect())).collect();
    let out = json!({
        "seeds": [settings.layers.rows.seed], "seconds": seconds, "peak_rss_mib": peak_rss_mib(), "arms": by_arm,
    });
    own::finish(place, (NAME, quick), &settings, out, &page)
}

/// Images to recalibrate on, and other images to measure on, of each class the first ones.
fn images(data: &Path, settings: &Settings) -> Result<(Dataset, Dataset)> {
    let all = datasets::load_source(&format!("tar:{}", data.join(IMAGES).display()))?;
    if all.class_names != CLASSES || all.shape != [3, 32, 32] {
        let text = format!(
            "{IMAGES} has classes {} of images {:?}; the checkpoints are for {} of [3, 32, 32]",
            all.class_names.join(", "),
            all.shape,
            CLASSES.join(", ")
        );
        return Err(Error::input("dataset_invalid", text));
    }
    let rows: Vec<usize> = (0..all.len()).collect();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for class in all.class_indices(&rows) {
        let (calibration, rest) = class.split_at(settings.calibration.min(class.len() / 2));
        first.extend_from_slice(calibration);
        second.extend(rest.iter().take(settings.images));
    }
    Ok((all.take(&first), all.take(&second)))
}

struct Runner<'a> {
    place: &'a Place<'a>,
    settings: &'a Settings,
    calibration: Dataset,
    test: Dataset,
    arms: Arms,
}

/// A network of one depth, ready to be measured.
struct Target {
    depth: usize,
    architecture: Architecture,
    layout: Layout,
    forward: Forward,
    original: Vec<f32>,
}

impl Runner<'_> {
    fn measure(&mut self, data: &Path) -> Result<()> {
        let from = self.target(data, self.settings.from)?;
        let layers =
            Layers::learn(&self.settings.layers, &from.layout, &from.original.as_slice(), self.place.progress)?;
        self.add("original", &from, &from.original)?;
        self.add_recalibrated("original, recalibrated", &from, &from.original)?;
        let back = layers.reconstruct(&from.layout, &from.original)?;
        self.add_recalibrated("reconstruction", &from, &back)?;
        self.generated(&layers, &from, &from)?;
        for depth in self.settings.to.clone() {
            let target = self.target(data, depth)?;
            self.add("original", &target, &target.original)?;
            self.add_recalibrated("original, recalibrated", &target, &target.original)?;
            self.generated(&layers, &from, &target)?;
        }
        Ok(())
    }

    /// What is generated for a depth, and what it has to be better than.
    fn generated(&mut self, layers: &Layers, from: &Target, to: &Target) -> Result<()> {
        let copy = nearest_copy(&from.layout, &from.original, &to.layout)?;
        self.add_recalibrated("nearest copy", to, &copy)?;
        for sample in 0..self.settings.samples as u64 {
            let mut rng = random::stream(self.settings.layers.rows.seed ^ sample, "unseen architecture");
            let scratch = init_theta(&to.architecture, &mut rng);
            self.add_recalibrated("scratch", to, &scratch)?;
            let made = layers.generate(&to.layout, &scratch, sample)?;
            self.add_recalibrated("generated", to, &made)?;
            // As far from the copies as what was generated.
            let noise = random::normal_vec(copy.len(), &mut rng);
            let mut moved = copy.clone();
            for param in to.layout.params.iter().filter(|p| !p.is_buffer()) {
                let range = param.range();
                novelty::move_as_far(&mut moved[range.clone()], &made[range.clone()], &noise[range]);
            }
            self.add_recalibrated("noise", to, &moved)?;
        }
        Ok(())
    }

    fn target(&self, data: &Path, depth: usize) -> Result<Target> {
        let architecture = Architecture::ResnetCifar { depth, widths: [16, 32, 64], classes: CLASSES.len() };
        architecture.validate()?;
        let layout = architecture.layout();
        let path = checkpoint(&data.join(CHECKPOINTS), depth)?;
        let file = BufReader::new(File::open(&path).map_err(Error::io(&path))?);
        let options = Options { key: Some("state_dict".into()), strip_prefix: Some("module.".into()) };
        let wrong = |e: weights::Error| Error::input(e.code(), format!("{}: {e}", path.display()));
        let mut bytes = Vec::new();
        let opened = Checkpoint::open(file, &options, &Limits::default());
        opened.and_then(|mut checkpoint| checkpoint.write(&mut bytes)).map_err(wrong)?;
        let original = tensors::from_safetensors(&bytes, &layout).map_err(wrong)?;
        let graph = export::forward(&architecture)?;
        let forward = Forward::from_onnx(self.place.runtime, &graph, &layout, &architecture.input_shape())?;
        Ok(Target { depth, architecture, layout, forward, original })
    }

    fn add_recalibrated(&mut self, arm: &'static str, target: &Target, theta: &[f32]) -> Result<()> {
        let rows: Vec<usize> = (0..self.calibration.len()).collect();
        let theta = recalibrate(&target.architecture, theta, self.calibration.gather(&rows))?;
        self.add(arm, target, &theta)
    }

    fn add(&mut self, arm: &'static str, target: &Target, theta: &[f32]) -> Result<()> {
        self.place.progress.check()?;
        let accuracy = target.forward.evaluate(theta, &self.test)?.accuracy;
        self.place.progress.note(&format!("ResNet-{}, {arm}: {:.1} %", target.depth, 100.0 * accuracy));
        self.arms.entry(arm).or_default().entry(target.depth).or_default().push(accuracy);
        Ok(())
    }
}

/// The published checkpoint of a depth.
fn checkpoint(dir: &Path, depth: usize) -> Result<PathBuf> {
    let start = format!("resnet{depth}-");
    let found = std::fs::read_dir(dir).map_err(Error::io(dir))?.filter_map(std::result::Result::ok);
    let mut found: Vec<PathBuf> = found
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&start))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    let text = || format!("{} has no file {start}….th; it is published as pytorch_resnet_cifar10", dir.display());
    found.into_iter().next().ok_or_else(|| Error::input("data_missing", text()))
}

/// What an arm is.
const ARMS: [(&str, &str); 7] = [
    ("original", "the published checkpoint"),
    ("original, recalibrated", "its normalisations measured on the same images as those of the other arms"),
    ("generated", "all weights generated by layer type and position, from noise"),
    ("nearest copy", "each layer that of ResNet-32 with the same type and the nearest position"),
    ("noise", "the nearest copy, each tensor moved in a random direction as far as what was generated is from it"),
    ("scratch", "random weights"),
    ("reconstruction", "the learned network itself through the VAE"),
];

fn page(settings: &Settings, arms: &Arms, command: &str, quick: bool, seconds: f64) -> String {
    let mut depths = vec![settings.from];
    depths.extend(&settings.to);
    let mut out = format!("# {TITLE}\n\n{}", own::warning(quick));
    let _ = write!(
        out,
        "Figure 2 of the paper (section 4.1.4). The published CIFAR-10 checkpoints on JPEG copies of its test images ({} a class; \
         normalisations measured on {} others a class). Accuracies in %.\n\n| arm |",
        settings.images, settings.calibration
    );
    for depth in &depths {
        let learned = if *depth == settings.from { " (learned from)" } else { "" };
        let _ = write!(out, " ResNet-{depth}{learned} |");
    }
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(depths.len()));
    for (arm, _) in ARMS {
        let _ = write!(out, "| {arm} |");
        for depth in &depths {
            let values = arms.get(arm).and_then(|by| by.get(depth)).map(Vec::as_slice).unwrap_or_default();
            let percent: Vec<f64> = values.iter().map(|v| 100.0 * v).collect();
            let _ = write!(out, " {} |", own::cell(&percent, 1));
        }
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&own::legend(&ARMS));
    let _ = writeln!(
        out,
        "\n{} samples in arms that draw; {seconds:.0} seconds. `{command}`, revision {}.",
        settings.samples,
        training::REVISION
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_valid_and_its_data_is_asked_for() {
        let (whole, quick) = (settings(false).unwrap(), settings(true).unwrap());
        assert_eq!((whole.to.len(), quick.to.len()), (3, 1));
        assert!(quick.layers.rows.vae_steps < whole.layers.rows.vae_steps && quick.layers.chunk == whole.layers.chunk);
        assert!(missing_data(None).unwrap().contains("--data"));
        let empty = tempfile::tempdir().unwrap();
        assert!(missing_data(Some(empty.path())).unwrap().contains("not in"));
        assert!(checkpoint(empty.path(), 32).unwrap_err().to_string().contains("resnet32-"));
    }
}
