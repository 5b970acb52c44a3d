//! The experiment `scale-872m` (paper A.4: 872 million parameters generated at once): a Llama-shaped model of random
//! values in which the chosen layers have as many is written to disk, and those layers are generated anew.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use ::language::generator::Generator;
use ::language::model::Model;
use ::language::rewrite::rewrite;
use half::bf16;
use serde::{Deserialize, Serialize};
use serde_json::json;
use training::random;
use training::stages::layers::LayersConfig;

use super::experiment::Place;
use super::own;
use crate::context::peak_rss_mib;
use crate::error::{Error, Result};

/// Its name.
pub const NAME: &str = "scale-872m";
/// Its title.
pub const TITLE: &str = "872 million parameters of a language model's layers, generated chunk by chunk";

const FILE: &str = include_str!("../../../configs/report/scale-872m.toml");
/// Values written at a time.
const PART: usize = 1 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    hidden: usize,
    intermediate: usize,
    blocks: usize,
    vocabulary: usize,
    layers: LayersConfig,
}

impl Settings {
    /// Names and shapes of all tensors, as a Llama without grouped queries has them.
    fn tensors(&self) -> Vec<(String, [usize; 2])> {
        let (h, m) = (self.hidden, self.intermediate);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), [self.vocabulary, h])];
        for block in 0..self.blocks {
            let matrices = [
                ("self_attn.q_proj", [h, h]),
                ("self_attn.k_proj", [h, h]),
                ("self_attn.v_proj", [h, h]),
                ("self_attn.o_proj", [h, h]),
                ("mlp.gate_proj", [m, h]),
                ("mlp.up_proj", [m, h]),
                ("mlp.down_proj", [h, m]),
            ];
            all.extend(matrices.map(|(layer, shape)| (format!("model.layers.{block}.{layer}.weight"), shape)));
        }
        all
    }
}

/// Writes the model, bf16; a block of random values, the same for all tensors from other places on.
fn synthesise(settings: &Settings, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let config = json!({ "model_type": "llama", "hidden_size": settings.hidden });
    std::fs::write(dir.join("config.json"), config.to_string()).map_err(Error::io(dir))?;
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in settings.tensors() {
        let end = at + 2 * shape[0] * shape[1];
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let path = dir.join("model.safetensors");
    let mut out = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
    let noise = random::normal_vec(PART + 7919, &mut random::stream(0, "model"));
    let bytes: Vec<u8> = noise.iter().flat_map(|v| bf16::from_f32(0.02 * v).to_le_bytes()).collect();
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(&path));
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    let mut left = at;
    while left > 0 {
        let shift = 2 * ((left / 2) % 7919);
        let n = left.min(2 * PART);
        write(&bytes[shift..shift + n])?;
        left -= n;
    }
    out.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?.sync_all().map_err(Error::io(&path))
}

/// Seconds to write as many bytes as the model has, and nothing else.
fn floor(bytes: u64, path: &Path) -> Result<f64> {
    let start = Instant::now();
    let part = vec![0x3cu8; 2 * PART];
    let mut file = File::create(path).map_err(Error::io(path))?;
    let mut left = bytes;
    while left > 0 {
        let n = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&part[..n]).map_err(Error::io(path))?;
        left -= n as u64;
    }
    file.sync_all().map_err(Error::io(path))?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(path).map_err(Error::io(path))?;
    Ok(seconds)
}

/// Runs it, and writes its page and its numbers.
///
/// # Errors
/// Those of writing, training and generation.
pub fn run(place: &Place<'_>, quick: bool) -> Result<()> {
    let settings: Settings = own::settings(NAME, FILE, quick)?;
    std::fs::create_dir_all(place.out).map_err(Error::io(place.out))?;
    let folder = tempfile::tempdir_in(place.out).map_err(Error::io(place.out))?;
    let (base, made) = (folder.path().join("model"), folder.path().join("made"));
    place.progress.note("writing a model");
    synthesise(&settings, &base)?;
    let model = Model::open(&base)?;
    let names: Vec<String> = model.matrices().into_iter().map(|m| m.name).collect();
    let learning = Instant::now();
    let generator = Generator::learn(&model, &names, &settings.layers, place.progress)?;
    let learning = learning.elapsed().as_secs_f64();
    let parameters = generator.parameters();
    place.progress.note("generating");
    let start = Instant::now();
    let mut sample = generator.sample(0)?;
    let sampling = start.elapsed().as_secs_f64();
    rewrite(&model, &made, &mut sample)?;
    let seconds = start.elapsed().as_secs_f64();
    let memory = peak_rss_mib();
    let made = made.join("model.safetensors");
    let bytes = made.metadata().map_err(Error::io(&made))?.len();
    let floor_seconds = floor(bytes, &folder.path().join("floor"))?;
    let rate = parameters as f64 / seconds;
    let mut page = format!("# {TITLE}\n\n{}", own::warning(quick));
    let _ = write!(
        page,
        "A Llama-shaped model of {} blocks of width {} (bf16, {:.2} GB, values of chance: nothing of them can be learned, and nothing \
         depends on them) has {parameters} parameters in the matrices of its blocks. All are generated by one generator of chunks of {} values, \
         and streamed into a new directory.\n\n| | |\n|---|---|\n| parameters generated | {parameters} |\n| seconds | {seconds:.1} |\n\
         | of them sampling latents | {sampling:.1} |\n| parameters a second | {:.1} million |\n| floor: seconds to write such a file | \
         {floor_seconds:.1} |\n| times the floor | {:.1} |\n| peak memory of the whole run | {memory:.0} MiB |\n| seconds to learn the \
         generator, a few steps | {learning:.1} |\n\n`{}`, revision {}.\n",
        settings.blocks,
        settings.hidden,
        bytes as f64 / 1e9,
        settings.layers.chunk,
        rate / 1e6,
        seconds / floor_seconds,
        own::command(NAME, quick),
        training::REVISION
    );
    let numbers = json!({
        "parameters": parameters, "peak_rss_mib": memory, "seconds": seconds, "parameters_per_second": rate,
        "floor_seconds": floor_seconds, "sampling_seconds": sampling, "bytes": bytes,
    });
    own::finish(place, (NAME, quick), &settings, numbers, &page)
}
