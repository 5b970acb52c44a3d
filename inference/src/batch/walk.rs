//! Rows on their way from noise to latents.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use crate::error::{Error, Result, check_finite};
use crate::samplers::{self, Noise, Step};

/// What is to be sampled: rows that walk the same plan.
#[derive(Debug)]
pub(crate) struct Request {
    /// Steps.
    pub plan: Vec<Step>,
    /// Classifier-free guidance; 1 is off.
    pub guidance: f32,
    /// What the denoiser is told of each row of a network: the same for all networks.
    pub conditions: Vec<Vec<f32>>,
    /// Values at the beginning of a condition that are zero in the null condition.
    pub told: usize,
    /// Values of a latent row.
    pub dim: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Streams of the noise, one a row.
    pub streams: std::ops::Range<usize>,
    /// Who asks; requests without a name are each on their own.
    pub client: Option<Arc<str>>,
}

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    pub index: usize,
    pub z: Vec<f32>,
    previous: Vec<f32>,
    noise: Noise,
    at: usize,
}

/// Rows of a request. Those that no lane has are in `free`; finished ones are in `latents`.
#[derive(Debug)]
pub(super) struct Walk {
    pub request: Arc<Request>,
    pub ticket: Arc<Ticket>,
    /// Rows that could take a step, the first ones last.
    pub free: Vec<Row>,
    latents: Vec<f32>,
    left: usize,
}

/// What the thread that waits and those that work say to each other.
#[derive(Debug)]
pub(crate) struct Ticket {
    thread: Thread,
    done: AtomicUsize,
    gone: AtomicBool,
    settled: AtomicBool,
    outcome: Mutex<Option<Result<Vec<f32>>>>,
}

impl Ticket {
    pub fn new() -> Self {
        Self {
            thread: std::thread::current(),
            done: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            outcome: Mutex::default(),
        }
    }

    /// Steps done, of all rows together.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Nobody waits for it any more.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether there is an outcome, or was one.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// The latents, `[rows × dim]`, when there are any.
    pub fn take(&self) -> Option<Result<Vec<f32>>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn finish(&self, outcome: Result<Vec<f32>>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.settled.store(true, Ordering::Release);
        self.thread.unpark();
    }

    pub fn wake(&self) {
        self.thread.unpark();
    }
}

impl Request {
    /// Its rows.
    pub fn rows(&self) -> usize {
        self.streams.len()
    }

    /// Rows of the tensor for each of its rows.
    pub fn cost(&self) -> usize {
        if self.guidance == 1.0 { 1 } else { 2 }
    }

    /// Steps of all rows together.
    pub fn steps(&self) -> usize {
        self.rows() * self.plan.len()
    }

    /// What the denoiser is told of a row.
    pub fn condition(&self, row: usize) -> &[f32] {
        &self.conditions[row % self.conditions.len()]
    }
}

impl Row {
    /// Row `index` at the beginning: z_T ~ N(0, I).
    fn new(request: &Request, index: usize) -> Self {
        let stream = request.streams.start + index;
        // Each row has a stream of its own: a network is the same alone and among others.
        let mut noise = Noise::new(request.seed, stream..stream + 1);
        let z = noise.first(request.dim);
        let previous = vec![0.0; if samplers::is_multistep(&request.plan) { request.dim } else { 0 }];
        Self { index, z, previous, noise, at: 0 }
    }

    /// The step that it is at.
    pub fn step<'r>(&self, request: &'r Request) -> &'r Step {
        &request.plan[self.at]
    }

    /// Takes its step with what the network predicts.
    pub fn advance(&mut self, request: &Request, prediction: &[f32]) {
        self.step(request).advance(&mut self.z, prediction, &mut self.previous, &mut self.noise);
        self.at += 1;
    }
}

impl Walk {
    pub fn new(request: Request, ticket: Arc<Ticket>) -> Self {
        let left = request.rows();
        let free = (0..left).rev().map(|index| Row::new(&request, index)).collect();
        let latents = vec![0.0; left * request.dim];
        Self { request: Arc::new(request), ticket, free, latents, left }
    }

    /// Takes back a row that took a step.
    pub fn put_back(&mut self, row: Row) {
        self.ticket.done.fetch_add(1, Ordering::Relaxed);
        if row.at < self.request.plan.len() {
            // In the order of the rows, so that those that began first go first.
            let place = self.free.partition_point(|other| other.index > row.index);
            self.free.insert(place, row);
            return;
        }
        let dim = self.request.dim;
        self.latents[row.index * dim..(row.index + 1) * dim].copy_from_slice(&row.z);
        self.left -= 1;
    }

    pub fn is_finished(&self) -> bool {
        self.left == 0
    }

    /// Gives the latents to who waits for them.
    pub fn finish(self) {
        let checked = check_finite("the sampled latents", &self.latents);
        self.ticket.finish(checked.map(|()| self.latents));
    }

    /// Ends it without latents.
    pub fn fail(self, error: Error) {
        self.ticket.finish(Err(error));
    }
}
