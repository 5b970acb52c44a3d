//! Export of each trained network to ONNX from the definition that trained it, and probes: inputs with candle's
//! outputs, against which the exported graphs are compared.

use candle_core::{Device, Tensor};
use weights::manifest::files;
use weights::{Architecture, ParamSpec};

use crate::backend::onnx::{BATCH, Onnx};
use crate::backend::{Backend, Eager};
use crate::config::FEWEST;
use crate::error::Result;
use crate::networks::dataset_encoder::EncoderShape;
use crate::networks::denoiser::DenoiserShape;
use crate::networks::vae::VaeShape;
use crate::networks::{dataset_encoder, denoiser, predictor, target, vae};
use crate::params::Params;
use crate::random;
use crate::stages::diffusion::Denoiser;
use crate::stages::encoder::{Encoder, Supports};
use crate::stages::fit;
use crate::stages::predictor::Predictor;
use crate::stages::vae::Vae;
use crate::stages::vectors::one_hot;

/// A named tensor of a probe.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Name in the graph.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Vec<f32>,
}

/// Inputs of a graph and the outputs that candle gives for them.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// File in the bundle.
    pub graph: String,
    /// Inputs.
    pub inputs: Vec<Named>,
    /// Expected outputs.
    pub outputs: Vec<Named>,
}

/// Batches of the probes.
pub const PROBE_BATCHES: [usize; 3] = [1, 3, 32];

fn with_batch(shape: &[usize]) -> Vec<usize> {
    std::iter::once(BATCH).chain(shape.iter().copied()).collect()
}

/// A tensor of a probe.
///
/// # Errors
/// When the device fails.
pub fn named(name: &str, tensor: &Tensor) -> Result<Named> {
    Ok(Named { name: name.into(), shape: tensor.dims().to_vec(), data: tensor.flatten_all()?.to_vec1()? })
}

/// The forward graph of an architecture: one input per parameter and `input`, output `logits`.
///
/// # Errors
/// When the architecture makes no network.
pub fn forward(architecture: &Architecture) -> Result<Vec<u8>> {
    architecture.validate()?;
    let mut graph = Onnx::new("forward", None);
    let x = graph.input("input", &with_batch(&architecture.input_shape()));
    let params: Vec<String> = architecture.layout().params.iter().map(|p| graph.input(&p.name, &p.shape)).collect();
    let y = target::forward(&mut graph, architecture, &params, &x)?;
    graph.output(&y, "logits", &[BATCH, architecture.classes()]);
    Ok(graph.finish())
}

/// The graph that measures the statistics of an architecture's normalisations; none where it has no normalisation.
///
/// # Errors
/// When the architecture makes no network.
pub fn statistics(architecture: &Architecture) -> Result<Option<Vec<u8>>> {
    architecture.validate()?;
    let layout = architecture.layout();
    if layout.buffers().next().is_none() {
        return Ok(None);
    }
    let mut graph = Onnx::measuring("statistics");
    let x = graph.input("input", &with_batch(&architecture.input_shape()));
    // What is measured needs none that is stored.
    let input = |p: &ParamSpec| if p.is_buffer() { String::new() } else { graph.input(&p.name, &p.shape) };
    let params: Vec<String> = layout.params.iter().map(input).collect();
    target::forward(&mut graph, architecture, &params, &x)?;
    let measured = graph.statistics();
    for (buffer, value) in layout.buffers().zip(measured.iter().flatten()) {
        graph.output(value, &buffer.name, &buffer.shape);
    }
    Ok(Some(graph.finish()))
}

/// The VAE's encoder and decoder graphs.
///
/// # Errors
/// When a parameter is missing.
pub fn vae(shape: &VaeShape, params: &Params) -> Result<[(String, Vec<u8>); 2]> {
    let latent = with_batch(&shape.latent);
    let mut graph = Onnx::new("vae_encoder", Some(params));
    let x = graph.input("weights", &[BATCH, shape.length]);
    let index = index_input(&mut graph, shape);
    let (mean, log_variance) = vae::encode(&mut graph, shape, &x, index.as_ref())?;
    graph.output(&mean, "mean", &latent);
    graph.output(&log_variance, "log_variance", &latent);
    let encoder = graph.finish();
    let mut graph = Onnx::new("vae_decoder", Some(params));
    let z = graph.input("latent", &latent);
    let index = index_input(&mut graph, shape);
    let y = vae::decode(&mut graph, shape, &z, index.as_ref())?;
    graph.output(&y, "weights", &[BATCH, shape.length]);
    Ok([(files::VAE_ENCODER.into(), encoder), (files::VAE_DECODER.into(), graph.finish())])
}

/// What kind of row each is, where there are several.
fn index_input(graph: &mut Onnx<'_>, shape: &VaeShape) -> Option<String> {
    (shape.index > 0).then(|| graph.input("index", &[BATCH, shape.index]))
}

/// The graph in the dataset encoder's place where the condition is given outright, as an embedding of `dim` values.
///
/// # Errors
/// None so far.
pub fn given_condition(dim: usize) -> Result<Vec<u8>> {
    let mut graph = Onnx::new("dataset_encoder", None);
    let x = graph.input("features", &[BATCH, 1, 1, dim]);
    let y = graph.reshape(&x, &[-1, dim as i64])?;
    graph.output(&y, "dataset", &[BATCH, dim]);
    graph.output(&y, "condition", &[BATCH, dim]);
    Ok(graph.finish())
}

/// The dataset encoder's graph.
///
/// # Errors
/// When a parameter is missing.
pub fn dataset_encoder(e: &Encoder) -> Result<Vec<u8>> {
    let s = &e.shape;
    let mut graph = Onnx::new("dataset_encoder", Some(&e.params));
    let x = graph.input("features", &[BATCH, s.classes, s.images, s.feature_dim]);
    let presence = s.any_number.then(|| graph.input("presence", &[BATCH, s.classes]));
    let (dataset, condition) = dataset_encoder::encode(&mut graph, s, &x, presence.as_ref())?;
    graph.output(&dataset, "dataset", &[BATCH, s.embedding_dim]);
    graph.output(&condition, "condition", &[BATCH, s.condition_dim()]);
    Ok(graph.finish())
}

/// The denoiser's graph.
///
/// # Errors
/// When a parameter is missing.
pub fn denoiser(shape: &DenoiserShape, params: &Params) -> Result<Vec<u8>> {
    let latent = with_batch(&shape.latent);
    let mut graph = Onnx::new("denoiser", Some(params));
    let z = graph.input("latent", &latent);
    let t = graph.input("timestep", &[BATCH]);
    let c = graph.input("condition", &[BATCH, shape.condition_dim]);
    let y = denoiser::denoise(&mut graph, shape, &z, &t, &c)?;
    graph.output(&y, "prediction", &latent);
    Ok(graph.finish())
}

/// The predictor's graph.
///
/// # Errors
/// When a parameter is missing.
pub fn predictor(p: &Predictor) -> Result<Vec<u8>> {
    let mut graph = Onnx::new("predictor", Some(&p.params));
    let x = graph.input("weights", &[BATCH, p.shape.length]);
    let dataset = p.shape.dataset.map(|dim| graph.input("dataset", &[BATCH, dim]));
    let (_, y) = predictor::predict(&mut graph, &p.shape, &x, dataset.as_ref())?;
    graph.output(&y, "accuracy", &[BATCH, 1]);
    Ok(graph.finish())
}

/// Probes of the predictor's graph.
///
/// # Errors
/// When shapes do not fit.
pub fn predictor_probes(p: &mut Predictor) -> Result<Vec<Probe>> {
    let device = p.params.device().clone();
    let mut rng = random::stream(1, "probes");
    let mut probes = Vec::new();
    for n in PROBE_BATCHES {
        let x = random::normal(&[n, p.shape.length], &device, &mut rng)?;
        let mut inputs = vec![named("weights", &x)?];
        let dataset = match p.shape.dataset {
            Some(dim) => Some(random::normal(&[n, dim], &device, &mut rng)?),
            None => None,
        };
        if let Some(dataset) = &dataset {
            inputs.push(named("dataset", dataset)?);
        }
        let (_, y) = p.predict(&x, dataset.as_ref())?;
        probes.push(Probe { graph: files::PREDICTOR.into(), inputs, outputs: vec![named("accuracy", &y)?] });
    }
    Ok(probes)
}

/// Probes of all graphs at batches 1, 3 and 32.
///
/// # Errors
/// When shapes do not fit.
pub fn probes(v: &mut Vae, e: &mut Encoder, d: &mut Denoiser, architectures: &[Architecture]) -> Result<Vec<Probe>> {
    let device = v.params.device().clone();
    let mut rng = random::stream(0, "probes");
    let mut random = |shape: &[usize]| random::normal(shape, &device, &mut rng);
    let mut probes = Vec::new();
    for n in PROBE_BATCHES {
        let batch = |shape: &[usize]| -> Vec<usize> { std::iter::once(n).chain(shape.iter().copied()).collect() };
        let x = random(&[n, v.shape.length])?;
        let pieces: Vec<u32> = (0..n).map(|i| (i % v.shape.index.max(1)) as u32).collect();
        let index = one_hot(&pieces, v.shape.index, &device)?;
        let with_index = |first: Named| -> Result<Vec<Named>> {
            let index = index.as_ref().map(|index| named("index", index)).transpose()?;
            Ok(std::iter::once(first).chain(index).collect())
        };
        let (mean, log_variance) = v.encode(&x, &pieces)?;
        probes.push(Probe {
            graph: files::VAE_ENCODER.into(),
            inputs: with_index(named("weights", &x)?)?,
            outputs: vec![named("mean", &mean)?, named("log_variance", &log_variance)?],
        });
        let z = random(&batch(&v.shape.latent))?;
        probes.push(Probe {
            graph: files::VAE_DECODER.into(),
            inputs: with_index(named("latent", &z)?)?,
            outputs: vec![named("weights", &v.decode(&z, &pieces)?)?],
        });
        let s = e.shape.clone();
        let features = random(&[n, s.classes, s.images, s.feature_dim])?;
        let supports = Supports { features, presence: any_presence(&s, n, &device)? };
        let (dataset, condition) = e.encode(&supports)?;
        let presence = supports.presence.as_ref();
        let mut inputs = vec![named("features", &supports.features)?];
        inputs.extend(presence.map(|presence| named("presence", presence)).transpose()?);
        probes.push(Probe {
            graph: files::DATASET_ENCODER.into(),
            inputs,
            outputs: vec![named("dataset", &dataset)?, named("condition", &condition)?],
        });
        let steps = d.schedule.steps.max(1);
        let t: Vec<f32> = (0..n).map(|i| ((i * 379) % steps) as f32).collect();
        let t = Tensor::from_vec(t, n, &device)?;
        // Before z_D comes the quality, where the denoiser is told of it.
        let after = v.shape.index + presence.map_or(0, |_| s.classes);
        let before = d.shape.condition_dim - s.condition_dim() - after;
        let condition = match before {
            0 => condition,
            _ => Tensor::cat(&[&random(&[n, before])?, &condition], 1)?,
        };
        let condition = match &index {
            Some(index) => Tensor::cat(&[&condition, index], 1)?,
            None => condition,
        };
        let condition = match presence {
            Some(presence) => Tensor::cat(&[&condition, presence], 1)?,
            None => condition,
        };
        let y = d.denoise(&z, &t, &condition)?;
        probes.push(Probe {
            graph: files::DENOISER.into(),
            inputs: vec![named("latent", &z)?, named("timestep", &t)?, named("condition", &condition)?],
            outputs: vec![named("prediction", &y)?],
        });
        for architecture in architectures {
            probes.push(forward_probe(architecture, n)?);
            probes.extend(statistics_probe(architecture, n)?);
        }
    }
    Ok(probes)
}

/// Different numbers of classes, where a dataset has any number.
fn any_presence(shape: &EncoderShape, n: usize, device: &Device) -> Result<Option<Tensor>> {
    if !shape.any_number {
        return Ok(None);
    }
    let own = |i: usize| FEWEST + i % (shape.classes + 1 - FEWEST);
    let of = |i: usize| (0..shape.classes).map(move |class| f32::from(u8::from(class < own(i))));
    Ok(Some(Tensor::from_vec((0..n).flat_map(of).collect::<Vec<_>>(), (n, shape.classes), device)?))
}

/// A probe of an architecture's graph of statistics with random weights; none where it has no such graph.
///
/// # Errors
/// When shapes do not fit.
pub fn statistics_probe(architecture: &Architecture, n: usize) -> Result<Option<Probe>> {
    let layout = architecture.layout();
    if layout.buffers().next().is_none() {
        return Ok(None);
    }
    let mut rng = random::stream(n as u64, "statistics probe");
    let theta = fit::init_theta(architecture, &mut rng);
    let shape: Vec<usize> = std::iter::once(n).chain(architecture.input_shape()).collect();
    let x = random::normal(&shape, &Device::Cpu, &mut rng)?;
    let input = named("input", &x)?;
    let measured = fit::recalibrate(architecture, &theta, input.data.clone())?;
    let of = |p: &ParamSpec| Named { name: p.name.clone(), shape: p.shape.clone(), data: measured[p.range()].to_vec() };
    let params = layout.params.iter().filter(|p| !p.is_buffer());
    let inputs = std::iter::once(input).chain(params.map(of)).collect();
    let outputs = layout.buffers().map(of).collect();
    Ok(Some(Probe { graph: files::statistics(&architecture.name()), inputs, outputs }))
}

/// A probe of an architecture's forward graph with random weights.
///
/// # Errors
/// When shapes do not fit.
pub fn forward_probe(architecture: &Architecture, n: usize) -> Result<Probe> {
    let device = Device::Cpu;
    let mut rng = random::stream(n as u64, "forward probe");
    let theta = fit::init_theta(architecture, &mut rng);
    let shape: Vec<usize> = std::iter::once(n).chain(architecture.input_shape()).collect();
    let x = random::normal(&shape, &device, &mut rng)?;
    // Stored statistics of their own, where there are any.
    let theta = fit::recalibrate(architecture, &theta, x.flatten_all()?.to_vec1()?)?;
    let layout = architecture.layout();
    let params = layout
        .params
        .iter()
        .map(|p| Ok(Tensor::from_slice(&theta[p.range()], p.shape.as_slice(), &device)?))
        .collect::<Result<Vec<_>>>()?;
    let mut none = Params::new(0, &device);
    let y = target::forward(&mut Eager::new(&mut none), architecture, &params, &x)?;
    let mut inputs = vec![named("input", &x)?];
    for (spec, tensor) in layout.params.iter().zip(&params) {
        inputs.push(named(&spec.name, tensor)?);
    }
    Ok(Probe { graph: files::forward(&architecture.name()), inputs, outputs: vec![named("logits", &y)?] })
}
