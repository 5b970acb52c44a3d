//! A network of which a part is trained, and the rest is frozen (paper C.6): where its start comes from, what of it is
//! trained and generated, and its two halves. The first half, up to where the first generated parameter is, depends on
//! the example alone: it is run once for each example.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use datasets::{Data, Dataset};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use weights::checkpoint::{Checkpoint, Limits, Options};
use weights::{Architecture, Layout, Part, part, tensors};

use crate::backend::{Cut, Models, Value};
use crate::config::{Config, Role, ZooConfig};
use crate::data::{TaskData, expand};
use crate::error::{Error, Result};
use crate::networks::target;
use crate::random;
use crate::stages::fit::{Net, split};
use crate::stages::zoo::ridge_head;

/// Examples that go through the first half together.
const BATCH: usize = 32;

/// A network whose rest is frozen.
#[derive(Debug)]
pub struct Frozen {
    architecture: Architecture,
    whole: Layout,
    part: Part,
    /// The network that all runs start from, `[d]`.
    start: Vec<f32>,
    /// Of each parameter of the part, whether runs train it; otherwise it is a head that was fitted for its task.
    trained: Vec<bool>,
    /// Sources whose tasks get a head of their own.
    heads: Vec<String>,
    /// Where the halves meet.
    meeting: Vec<usize>,
    /// Shapes of the values there, of one example.
    shapes: Vec<Vec<usize>>,
    /// Each parameter of the whole that is not generated.
    constants: Vec<Option<Tensor>>,
}

impl Frozen {
    /// What `config` says of the zoo's start, for networks of `architecture`.
    ///
    /// # Errors
    /// [`Error::Config`] when the file is missing or does not fit, a pattern matches nothing, or nothing or everything
    /// is trained.
    pub fn load(config: &Config, architecture: &Architecture) -> Result<Option<Self>> {
        let Some(path) = &config.zoo.start else { return Ok(None) };
        let zoo = config.data.sources.iter().filter(|s| s.role == Role::Zoo);
        // A head that no task keeps may have another number of classes.
        let spare = zoo.clone().all(|s| config.zoo.heads.contains(&s.name));
        let start = read(&config.zoo, Path::new(&expand(path)?), architecture, spare)?;
        Self::new(architecture, start, &config.zoo.train, &config.zoo.heads).map(Some)
    }

    /// A network of `architecture` that starts as `start` (`[d]`), of which the parameters that match `train` are
    /// trained; tasks of the sources `heads` get a last layer of their own.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn new(architecture: &Architecture, start: Vec<f32>, train: &[String], heads: &[String]) -> Result<Self> {
        let whole = architecture.layout();
        let of_train = |e: weights::Error| Error::Config(format!("zoo.train: {e}"));
        let names = part::matching(&whole, train).map_err(of_train)?;
        check_trained(&whole, &names)?;
        let head: Vec<String> = head(&whole).iter().filter(|_| !heads.is_empty()).map(|p| p.name.clone()).collect();
        if let Some(own) = names.iter().find(|name| head.contains(name)) {
            let text = format!("zoo.train matches {own}, and zoo.heads fits it: leave one of them out");
            return Err(Error::Config(text));
        }
        let generated: Vec<String> = names.iter().cloned().chain(head).collect();
        let part = Part::new(&whole, &generated, start.clone()).map_err(of_train)?;
        let trained = part.layout().params.iter().map(|p| names.contains(&p.name)).collect();
        let constants = whole.params.iter().map(|p| match generated.contains(&p.name) {
            true => Ok(None),
            false => Ok(Some(Tensor::from_slice(&start[p.range()], p.shape.as_slice(), &Device::Cpu)?)),
        });
        let constants = constants.collect::<Result<_>>()?;
        let meeting = meeting(architecture, &whole, &generated)?;
        let mut frozen = Self {
            architecture: architecture.clone(),
            whole,
            part,
            start,
            trained,
            heads: heads.to_vec(),
            meeting,
            shapes: Vec::new(),
            constants,
        };
        let blank = vec![0.0; architecture.input_dim()];
        let values = frozen.first_half(blank)?;
        frozen.shapes = values.iter().map(|v| v.dims()[2..].to_vec()).collect();
        Ok(frozen)
    }

    /// The generated part, and the constants around it.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// Digest of the network that all runs start from.
    pub fn digest(&self) -> String {
        weights::digest::of_weights(&self.start)
    }

    /// Whether runs train the part's `i`th parameter: a weight, or a statistic that is measured where weights are kept.
    pub fn trains(&self, i: usize) -> bool {
        self.trained.get(i).copied().unwrap_or(false)
    }

    /// Values of an example where the halves meet.
    pub fn dim(&self) -> usize {
        self.shapes.iter().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// Images as the second half takes them: `[dim]` of each.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn begun(&self, images: &Dataset) -> Result<Dataset> {
        let rows: Vec<usize> = (0..images.len()).collect();
        let half = |rows: &[usize]| -> Result<Vec<f32>> {
            let values = self.first_half(images.gather(rows))?;
            let flat = values.iter().map(|v| v.flatten_from(2)).collect::<candle_core::Result<Vec<_>>>()?;
            Ok(Tensor::cat(&flat, 2)?.flatten_all()?.to_vec1()?)
        };
        let parts = rows.par_chunks(BATCH).map(half).collect::<Result<Vec<_>>>()?;
        let (names, labels) = (images.class_names.clone(), images.labels.clone());
        Ok(Dataset::new(&images.name, vec![self.dim()], names, Data::F32(parts.concat()), labels)?)
    }

    /// The start's values `[1, n, …]` where the halves meet, for examples (`n · input` values).
    fn first_half(&self, x: Vec<f32>) -> Result<Vec<Tensor>> {
        let n = x.len() / self.architecture.input_dim();
        let shape: Vec<usize> = [1, n].into_iter().chain(self.architecture.input_shape()).collect();
        let x = Tensor::from_vec(x, shape, &Device::Cpu)?;
        let mut models = Models::default();
        let mut cut = Cut::begin(&mut models, &self.meeting);
        let params = self.whole.params.iter().map(|p| {
            if self.part.layout().get(&p.name).is_some() {
                return Ok(Value::live(None));
            }
            let shape: Vec<usize> = std::iter::once(1).chain(p.shape.iter().copied()).collect();
            Ok(Value::constant(Some(Tensor::from_slice(&self.start[p.range()], shape, &Device::Cpu)?)))
        });
        let params = params.collect::<Result<Vec<_>>>()?;
        let x = cut.example(Some(x));
        target::forward(&mut cut, &self.architecture, &params, &x)?;
        Ok(cut.found())
    }

    /// Logits `[m, n, classes]` of networks with these parameters of the part (`[m, …shape]` each) from where the first
    /// half ends, `x [m, n, dim]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn second_half(&self, models: &mut Models, params: &[Tensor], x: &Tensor) -> Result<Tensor> {
        let (m, n, _) = x.dims3()?;
        let (mut values, mut start) = (Vec::with_capacity(self.shapes.len()), 0);
        for shape in &self.shapes {
            let len = shape.iter().product();
            let full: Vec<usize> = [m, n].iter().chain(shape).copied().collect();
            values.push(x.narrow(2, start, len)?.reshape(full)?);
            start += len;
        }
        let mut own = params.iter();
        let all = self.constants.iter().map(|constant| match constant {
            None => Ok(Value::live(own.next().cloned())),
            Some(constant) => {
                let shape: Vec<usize> = std::iter::once(m).chain(constant.dims().iter().copied()).collect();
                Ok(Value::constant(Some(constant.to_device(x.device())?.broadcast_as(shape)?)))
            }
        });
        let all = all.collect::<Result<Vec<_>>>()?;
        let mut cut = Cut::end(models, &self.meeting, values);
        let example = cut.example(None);
        target::forward(&mut cut, &self.architecture, &all, &example)?.tensor().cloned()
    }

    /// The part's values `[g]` that the runs of a task start from. Where the task gets a head of its own, statistics that
    /// are generated are first measured on its examples, as runs will have them.
    ///
    /// # Errors
    /// When the head of a task cannot be fitted.
    pub fn start(&self, task: &TaskData<'_>) -> Result<Vec<f32>> {
        let values = self.part.take(&self.start)?;
        if !self.heads.iter().any(|name| name == task.source()) {
            return Ok(values);
        }
        let (classes, per_class) = (task.classes(), task.per_class());
        let (net, x) = (Net::new(&self.architecture, Some(self)), task.first(per_class));
        let mut values = net.recalibrate(&values, x.clone())?;
        let (features, dim) = self.head_inputs(&values, &net.inputs(x, 1, &Device::Cpu)?)?;
        let labels: Vec<u32> = (0..classes * per_class).map(|i| (i / per_class) as u32).collect();
        let fitted = ridge_head(&features, &labels, dim, classes)?;
        weights::error::check_finite("a fitted head", &fitted)?;
        let place = values.len().saturating_sub(fitted.len());
        values[place..].copy_from_slice(&fitted);
        Ok(values)
    }

    /// What the last layer takes `[n · dim]`, and its dim: what a last layer says that changes nothing.
    fn head_inputs(&self, values: &[f32], x: &Tensor) -> Result<(Vec<f32>, usize)> {
        let layout = self.part.layout();
        let mut params = split(&Tensor::from_slice(values, (1, values.len()), &Device::Cpu)?, layout)?;
        let dim = head(layout).first().and_then(|weight| weight.shape.get(1)).copied().unwrap_or(0);
        params.truncate(params.len().saturating_sub(2));
        params.push(Tensor::eye(dim, DType::F32, &Device::Cpu)?.unsqueeze(0)?);
        params.push(Tensor::zeros((1, dim), DType::F32, &Device::Cpu)?);
        let features = self.second_half(&mut Models::default(), &params, x)?;
        Ok((features.flatten_all()?.to_vec1()?, dim))
    }

    /// Moves the trained weights of a start by noise of `deviation` times their own size.
    pub fn disturb(&self, values: &mut [f32], deviation: f64, rng: &mut ChaCha8Rng) {
        for (i, param) in self.part.layout().params.iter().enumerate() {
            if deviation == 0.0 || !self.trained[i] || param.is_buffer() {
                continue;
            }
            let own = &mut values[param.range()];
            let square: f64 = own.iter().map(|v| f64::from(v * v)).sum::<f64>() / own.len().max(1) as f64;
            let scale = (deviation * square.sqrt()) as f32;
            let noise = random::normal_vec(own.len(), rng);
            own.iter_mut().zip(noise).for_each(|(v, n)| *v += scale * n);
        }
    }
}

/// Refuses patterns that leave no weight to train, tear a normalisation's statistics apart, or leave nothing frozen.
fn check_trained(whole: &Layout, names: &[String]) -> Result<()> {
    let refuse = |text: String| Err(Error::Config(format!("zoo.train matches {text}")));
    let own = |p: &&weights::ParamSpec| names.contains(&p.name);
    if whole.params.iter().filter(own).all(weights::ParamSpec::is_buffer) {
        return refuse(format!("only statistics, {}: name weights too", names.join(", ")));
    }
    let layer = |p: &weights::ParamSpec| p.name.rsplit_once('.').map(|(layer, _)| layer.to_owned());
    let other = |p: &weights::ParamSpec| whole.buffers().any(|q| layer(q) == layer(p) && !names.contains(&q.name));
    if let Some(lonely) = whole.buffers().filter(own).find(|p| other(p)) {
        return refuse(format!("{} alone: mean and variance of a normalisation go together", lonely.name));
    }
    match names.len() == whole.params.len() {
        true => refuse("all parameters: leave zoo.start and zoo.train out to train whole networks".into()),
        false => Ok(()),
    }
}

/// The last layer: its weight and its bias.
fn head(layout: &Layout) -> &[weights::ParamSpec] {
    &layout.params[layout.params.len().saturating_sub(2)..]
}

/// Where the halves of a network meet whose parameters `generated` are.
fn meeting(architecture: &Architecture, whole: &Layout, generated: &[String]) -> Result<Vec<usize>> {
    let mut models = Models::default();
    let mut cut = Cut::trace(&mut models);
    let kind = |p: &weights::ParamSpec| match generated.contains(&p.name) {
        true => Value::live(None),
        false => Value::constant(None),
    };
    let params: Vec<_> = whole.params.iter().map(kind).collect();
    let x = cut.example(None);
    target::forward(&mut cut, architecture, &params, &x)?;
    Ok(cut.meeting())
}

/// The network in a checkpoint file, `[d]`; without its head, which is then zero, where that is `spare`.
fn read(zoo: &ZooConfig, path: &Path, architecture: &Architecture, spare: bool) -> Result<Vec<f32>> {
    let wrong = |text: String| Error::Config(format!("zoo.start: {} {text}", path.display()));
    let file = File::open(path).map_err(|e| wrong(format!("cannot be read ({e}); name a checkpoint file")))?;
    let options = Options { key: zoo.start_key.clone(), strip_prefix: zoo.start_strip_prefix.clone() };
    let misfit = |e: weights::Error| wrong(format!("does not fit {}: {e}", architecture.name()));
    let mut bytes = Vec::new();
    let opened = Checkpoint::open(BufReader::new(file), &options, &Limits::default());
    opened.and_then(|mut checkpoint| checkpoint.write(&mut bytes)).map_err(misfit)?;
    let whole = architecture.layout();
    let mut body = whole.clone();
    if spare {
        body.params.truncate(whole.params.len().saturating_sub(2));
    }
    let mut theta = tensors::from_safetensors(&bytes, &body).map_err(misfit)?;
    theta.resize(whole.parameters(), 0.0);
    Ok(theta)
}
