//! A denoiser whose inputs and outputs stay where they are on the device, one place for each size of a batch, run by one
//! thread of its own: what CUDA graphs need, which are recorded by size, address and thread, and replayed instead of
//! launching hundreds of kernels one by one. On the CPU the same works without graphs, which is how it is tested.

use std::collections::BTreeMap;
use std::sync::mpsc;

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, NoSelectedOutputs, RunOptions, Session};
use ort::value::Tensor;

use super::Inputs;
use crate::error::{Error, Result};
use crate::pool::{Program, Use};
use crate::runtime::{Provider, Runtime};

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Bound {
    jobs: mpsc::Sender<Job>,
}

/// A run, and where its outcome goes.
struct Job {
    inputs: Inputs,
    done: mpsc::SyncSender<(Inputs, Result<Vec<f32>>)>,
}

impl Bound {
    /// Begins the thread and makes the session, for latents of this shape and f32 timesteps.
    ///
    /// # Errors
    /// [`Error::Graph`] when there is no thread or the session cannot be made.
    pub fn start(runtime: &Runtime, program: Program, latent: &[usize]) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::sync_channel(1);
        let (runtime, latent) = (runtime.clone(), latent.to_vec());
        let work = move || match Worker::new(&runtime, &program, latent) {
            Ok(mut worker) => {
                let _ = ready.send(Ok(()));
                drop(program);
                for Job { inputs, done } in queue {
                    let predictions = worker.denoise(&inputs).map_err(failed);
                    // Who asked may be gone.
                    let _ = done.send((inputs, predictions));
                }
            }
            Err(error) => drop(ready.send(Err(failed(error)))),
        };
        std::thread::Builder::new().name("denoiser".into()).spawn(work).map_err(failed)?;
        made.recv().map_err(failed)??;
        Ok(Self { jobs })
    }

    /// The predictions of a batch, which it gives back.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn denoise(&self, inputs: &mut Inputs) -> Result<Vec<f32>> {
        let (done, outcome) = mpsc::sync_channel(1);
        self.jobs.send(Job { inputs: std::mem::take(inputs), done }).map_err(|_| failed("its thread ended"))?;
        let (own, predictions) = outcome.recv().map_err(|_| failed("its thread ended"))?;
        *inputs = own;
        predictions
    }
}

/// What a denoiser predicts for a batch (latents `[n, shape…]`, timesteps `[n]`, conditions `[n, c]`) with its tensors bound
/// to one place, at the third run: on CUDA the second is recorded as a graph, and the third replays it. For comparisons.
///
/// # Errors
/// [`Error::Graph`].
pub fn replayed(
    runtime: &Runtime,
    graph: &[u8],
    shape: &[usize],
    [latents, times, conditions]: [&[f32]; 3],
) -> Result<Vec<f32>> {
    let bound = Bound::start(runtime, Program::new(runtime, graph, Use::Replay), shape)?;
    let times = times.iter().map(|&t| t as usize).collect();
    let mut inputs = Inputs { latents: latents.to_vec(), conditions: conditions.to_vec(), times };
    bound.denoise(&mut inputs)?;
    bound.denoise(&mut inputs)?;
    bound.denoise(&mut inputs)
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Graph { graph: weights::manifest::files::DENOISER.into(), reason: error.to_string() }
}

/// What the thread has.
struct Worker {
    /// Before the session, whose memory they are in.
    places: BTreeMap<usize, Place>,
    session: Session,
    latent: Vec<usize>,
    provider: Provider,
}

/// The tensors of one size of a batch.
struct Place {
    binding: IoBinding,
    latent: Pair,
    timestep: Pair,
    condition: Pair,
    prediction: Pair,
    options: RunOptions<NoSelectedOutputs>,
}

/// A tensor on the device, and what it is filled from or read into.
struct Pair {
    host: Tensor<f32>,
    device: Tensor<f32>,
}

impl Pair {
    fn new(device: &Allocator, shape: &[usize]) -> ort::Result<Self> {
        let tensor = |allocator| Tensor::<f32>::new(allocator, shape.to_vec());
        Ok(Self { host: tensor(&Allocator::default())?, device: tensor(device)? })
    }

    fn fill(&mut self, values: impl Iterator<Item = f32>) -> ort::Result<()> {
        self.host.extract_tensor_mut().1.iter_mut().zip(values).for_each(|(own, value)| *own = value);
        self.host.copy_into(&mut self.device)
    }

    fn read(&mut self) -> ort::Result<Vec<f32>> {
        self.device.copy_into(&mut self.host)?;
        Ok(self.host.extract_tensor().1.to_vec())
    }
}

impl Worker {
    fn new(runtime: &Runtime, program: &Program, latent: Vec<usize>) -> ort::Result<Self> {
        let session = program.used(Use::Replay).session(runtime, runtime.threads(), false)?;
        Ok(Self { places: BTreeMap::new(), session, latent, provider: runtime.provider() })
    }

    fn denoise(&mut self, inputs: &Inputs) -> ort::Result<Vec<f32>> {
        let rows = inputs.times.len();
        let condition = inputs.conditions.len() / rows.max(1);
        if !self.places.contains_key(&rows) {
            let place = self.place(rows, condition)?;
            self.places.insert(rows, place);
        }
        let Some(place) = self.places.get_mut(&rows) else { return Ok(Vec::new()) };
        place.latent.fill(inputs.latents.iter().copied())?;
        place.timestep.fill(inputs.times.iter().map(|&t| t as f32))?;
        place.condition.fill(inputs.conditions.iter().copied())?;
        self.session.run_binding_with_options(&place.binding, &place.options)?;
        place.prediction.read()
    }

    /// Tensors for so many rows, bound.
    fn place(&self, rows: usize, condition: usize) -> ort::Result<Place> {
        let device = match self.provider {
            Provider::Cpu => AllocationDevice::CPU,
            Provider::Cuda => AllocationDevice::CUDA,
        };
        let memory = MemoryInfo::new(device, 0, AllocatorType::Device, MemoryType::Default)?;
        let allocator = Allocator::new(&self.session, memory)?;
        let shape: Vec<usize> = std::iter::once(rows).chain(self.latent.iter().copied()).collect();
        let mut place = Place {
            binding: self.session.create_binding()?,
            latent: Pair::new(&allocator, &shape)?,
            timestep: Pair::new(&allocator, &[rows])?,
            condition: Pair::new(&allocator, &[rows, condition])?,
            prediction: Pair::new(&allocator, &shape)?,
            options: RunOptions::new()?,
        };
        place.binding.bind_input("latent", &place.latent.device)?;
        place.binding.bind_input("timestep", &place.timestep.device)?;
        place.binding.bind_input("condition", &place.condition.device)?;
        place.binding.bind_output("prediction", &mut place.prediction.device)?;
        if self.provider == Provider::Cuda {
            // A graph for each size.
            place.options.set("gpu_graph_id", rows.to_string())?;
        }
        Ok(place)
    }
}
