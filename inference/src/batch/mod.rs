//! Continuous batching: rows of all requests of a generator share the denoiser's runs. A row joins at any step and leaves when
//! its walk ends; next to it are rows at other steps, of other samplers, guided and not. A lane is a thread that works, step by
//! step: it takes a fair choice of the rows that wait, runs the denoiser once, and puts them back. There are as many lanes as
//! the pool has sessions, so that with many rows each core computes on its own, and with one row all of them do together.
//!
//! The threads of the requests are the lanes: who comes while a lane is free works until its own rows are done, and the others
//! wait. A second lane for one large request is a thread of its own, as long as there is work for it.

mod bound;
mod choose;
mod walk;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::histogram;
use ort::session::SessionOutputs;
use ort::value::{TensorElementType, TensorRef};

use crate::contract::{batch_view, output};
use crate::error::{Error, Result};
use crate::pool::{Lease, SessionPool};
use crate::runtime::Runtime;
use crate::samplers;
use bound::Bound;
pub use bound::replayed;
use choose::{Waiting, choose};
pub(crate) use walk::Request;
use walk::{Row, Ticket, Walk};

/// Most rows of the tensor in one run of the denoiser.
pub const MOST_ROWS: usize = 64;
/// How often who waits looks whether it should go on.
const PATIENCE: Duration = Duration::from_millis(20);

/// The denoiser of a generator with all that is sampled with it now.
#[derive(Debug)]
pub(crate) struct Batcher {
    pool: Arc<SessionPool>,
    latent: Vec<usize>,
    timestep: TensorElementType,
    /// Whether runs are filled up to a power of two.
    padded: bool,
    /// Runs in place of the pool's sessions.
    bound: Option<Bound>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they came.
    walks: Vec<Walk>,
    /// Lanes that work.
    lanes: usize,
    /// Rows that lanes have.
    running: usize,
}

/// A row that a lane has, with what it belongs to.
#[derive(Debug)]
struct Taken {
    row: Row,
    request: Arc<Request>,
    ticket: Arc<Ticket>,
}

/// A place among the lanes; given back when dropped.
struct Lane {
    batcher: Arc<Batcher>,
    /// The rows of the run; what is left here when a thread panics is lost, and their requests fail.
    taken: Vec<Taken>,
    inputs: Inputs,
    guided: Vec<f32>,
}

/// What the denoiser takes in a run, row by row.
#[derive(Debug, Default)]
struct Inputs {
    latents: Vec<f32>,
    conditions: Vec<f32>,
    times: Vec<usize>,
}

impl Inputs {
    fn clear(&mut self) {
        self.latents.clear();
        self.conditions.clear();
        self.times.clear();
    }

    /// Fills them with zeros up to so many rows, of `latent` and `condition` values each.
    fn fill(&mut self, rows: usize, latent: usize, condition: usize) {
        self.latents.resize(rows * latent, 0.0);
        self.conditions.resize(rows * condition, 0.0);
        self.times.resize(rows, 0);
    }
}

/// Takes a request out when the thread that waits for it goes away, however it goes.
struct Leaving<'b>(&'b Batcher, &'b Ticket);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.1.leave();
        self.0.state().sweep();
    }
}

impl Batcher {
    /// For the denoiser in `pool`, whose latents have this shape and whose timesteps this type; batches as the runtime says.
    ///
    /// # Errors
    /// [`Error::Graph`] where its tensors are to be bound and cannot be.
    pub fn new(
        runtime: &Runtime,
        pool: Arc<SessionPool>,
        latent: Vec<usize>,
        timestep: TensorElementType,
    ) -> Result<Self> {
        let bound = runtime.binds_tensors() && timestep == TensorElementType::Float32;
        let bound = bound.then(|| Bound::start(runtime, pool.program().clone(), &latent)).transpose()?;
        Ok(Self { pool, latent, timestep, padded: runtime.pads_batches(), bound, state: Mutex::default() })
    }

    /// Runs every session once on each size that padded runs have, with conditions of `condition` values.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn warm_up(&self, condition: usize) -> Result<()> {
        let sizes = || (0..).map(|i| 1 << i).take_while(|rows| *rows <= MOST_ROWS);
        let inputs = |rows| {
            let mut inputs = Inputs::default();
            inputs.fill(rows, self.dim(), condition);
            inputs
        };
        if let Some(bound) = &self.bound {
            // Twice: the second run of a size is the one that is recorded.
            return sizes().chain(sizes()).try_for_each(|rows| bound.denoise(&mut inputs(rows)).map(drop));
        }
        let mut leases = (0..self.pool.size()).map(|_| self.pool.lease()).collect::<Result<Vec<_>>>()?;
        for lease in &mut leases {
            sizes().try_for_each(|rows| self.denoise(&inputs(rows), lease).map(drop))?;
        }
        Ok(())
    }

    /// Values of a latent.
    fn dim(&self) -> usize {
        self.latent.iter().product()
    }

    /// Samples the request's latents, `[rows × dim]`. `proceed(done, all)` is asked with the steps of all rows; sampling stops
    /// when it gives false.
    ///
    /// # Errors
    /// [`Error::Graph`], [`Error::NonFinite`] or [`Error::Cancelled`].
    pub fn sample(
        self: &Arc<Self>,
        request: Request,
        proceed: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<f32>> {
        let all = request.steps();
        if all == 0 {
            return Ok(Vec::new());
        }
        let ticket = Arc::new(Ticket::new());
        let walk = Walk::new(request, ticket.clone());
        self.state().walks.push(walk);
        let _leaving = Leaving(self, &ticket);
        let mut seen = 0;
        loop {
            if let Some(mut lane) = self.lane() {
                while !ticket.is_settled() && lane.step() {
                    self.report(&ticket, &mut seen, all, proceed)?;
                }
            }
            if let Some(outcome) = ticket.take() {
                if seen < all && outcome.is_ok() {
                    self.report(&ticket, &mut seen, all, proceed)?;
                }
                return outcome;
            }
            std::thread::park_timeout(PATIENCE);
            self.report(&ticket, &mut seen, all, proceed)?;
        }
    }

    fn report(
        &self,
        ticket: &Ticket,
        seen: &mut usize,
        all: usize,
        proceed: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<()> {
        *seen = ticket.done();
        if proceed(*seen, all) { Ok(()) } else { Err(Error::Cancelled { step: *seen, total: all }) }
    }

    /// A lane, where one is free and has something to do.
    fn lane(self: &Arc<Self>) -> Option<Lane> {
        let mut state = self.state();
        if state.lanes >= self.pool.size() || state.walks.iter().all(|walk| walk.free.is_empty()) {
            return None;
        }
        state.lanes += 1;
        drop(state);
        Some(Lane { batcher: self.clone(), taken: Vec::new(), inputs: Inputs::default(), guided: Vec::new() })
    }

    /// Runs the denoiser once.
    fn denoise<'s>(&self, inputs: &Inputs, lease: &'s mut Lease<'_>) -> Result<SessionOutputs<'s>> {
        let (pool, rows) = (&self.pool, inputs.times.len());
        let latent = batch_view(pool, rows, &self.latent, &inputs.latents)?;
        let condition = batch_view(pool, rows, &[inputs.conditions.len() / rows], &inputs.conditions)?;
        let (floats, integers);
        let timestep = match self.timestep {
            TensorElementType::Int64 => {
                integers = inputs.times.iter().map(|&t| t as i64).collect::<Vec<_>>();
                TensorRef::from_array_view(([rows], &integers[..])).map(Into::into)
            }
            _ => {
                floats = inputs.times.iter().map(|&t| t as f32).collect::<Vec<_>>();
                TensorRef::from_array_view(([rows], &floats[..])).map(Into::into)
            }
        };
        let timestep = timestep.map_err(|e| pool.failed(e))?;
        lease.run(vec![("latent", latent.into()), ("timestep", timestep), ("condition", condition.into())])
    }

    /// Begins a lane on a thread of its own, where one is free then.
    fn spread(self: &Arc<Self>) {
        // Until it begins to work it keeps nothing: the generator may be gone by the time it gets a core.
        let batcher = Arc::downgrade(self);
        let work = move || {
            if let Some(mut lane) = batcher.upgrade().and_then(|batcher| batcher.lane()) {
                while lane.step() {}
            }
        };
        // Without a thread the lanes that there are do it all.
        if let Err(error) = std::thread::Builder::new().name("sampling".into()).spawn(work) {
            tracing::warn!(%error, "no thread for another lane of sampling");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock runs foreign code.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops what nobody waits for.
    fn sweep(&mut self) {
        self.walks.retain(|walk| !walk.ticket.is_gone());
    }

    /// Takes the rows of a lane's next run, and says whether they are all that there is.
    fn take(&mut self, lanes: usize, taken: &mut Vec<Taken>) -> bool {
        let waiting: Vec<_> = self
            .walks
            .iter()
            .map(|walk| Waiting { client: client(walk), rows: walk.free.len(), cost: walk.request.cost() })
            .collect();
        let free: usize = waiting.iter().map(|w| w.rows * w.cost).sum();
        // An equal share of all rows for each lane.
        let share = (free + self.running).div_ceil(lanes).clamp(1, MOST_ROWS);
        let chosen = choose(&waiting, share);
        for (walk, count) in self.walks.iter_mut().zip(chosen) {
            for _ in 0..count {
                let Some(row) = walk.free.pop() else { break };
                self.running += walk.request.cost();
                taken.push(Taken { row, request: walk.request.clone(), ticket: walk.ticket.clone() });
            }
        }
        self.running == taken.iter().map(|t| t.request.cost()).sum::<usize>() && free == self.running
    }

    /// Takes rows back after their step, and finishes the walks that are done.
    fn put_back(&mut self, taken: Vec<Taken>) {
        for Taken { row, request, ticket } in taken {
            self.running -= request.cost();
            let Some(at) = self.walks.iter().position(|walk| Arc::ptr_eq(&walk.ticket, &ticket)) else { continue };
            self.walks[at].put_back(row);
            if self.walks[at].is_finished() {
                self.walks.remove(at).finish();
            }
        }
    }

    /// Fails the requests of rows that are lost.
    fn lose(&mut self, taken: Vec<Taken>, error: impl Fn() -> Error) {
        for Taken { request, ticket, .. } in taken {
            self.running -= request.cost();
            if let Some(at) = self.walks.iter().position(|walk| Arc::ptr_eq(&walk.ticket, &ticket)) {
                self.walks.remove(at).fail(error());
            }
        }
    }
}

/// Who takes turns: a client with all its requests, and each request without one.
fn client(walk: &Walk) -> (Option<&str>, *const Ticket) {
    match &walk.request.client {
        Some(client) => (Some(client), std::ptr::null()),
        None => (None, Arc::as_ptr(&walk.ticket)),
    }
}

impl Lane {
    /// One run of the denoiser; false when there is nothing to do.
    fn step(&mut self) -> bool {
        let batcher = self.batcher.clone();
        let pool = &batcher.pool;
        let mut state = batcher.state();
        state.sweep();
        let alone = state.take(pool.size(), &mut self.taken);
        let idle = state.lanes < pool.size() && state.walks.iter().any(|walk| !walk.free.is_empty());
        drop(state);
        if self.taken.is_empty() {
            return false;
        }
        if idle {
            batcher.spread();
        }
        let begun = Instant::now();
        let outcome = self.run(alone);
        let mut state = batcher.state();
        let taken = std::mem::take(&mut self.taken);
        histogram!("weightsmith_generation_batch_samples").record(taken.len() as f64);
        match outcome {
            Ok(()) => state.put_back(taken),
            Err(error) => state.lose(taken, || pool.failed(error.to_string())),
        }
        drop(state);
        histogram!("weightsmith_generation_batch_duration_seconds", "stage" => "sample").record(begun.elapsed());
        true
    }

    /// Runs the denoiser on the rows that were taken, and advances them.
    fn run(&mut self, alone: bool) -> Result<()> {
        self.gather();
        let batcher = self.batcher.clone();
        let (pool, dim) = (&batcher.pool, batcher.dim());
        let mut rows = self.inputs.times.len();
        if batcher.padded {
            let condition = self.inputs.conditions.len() / rows;
            rows = rows.next_power_of_two();
            self.inputs.fill(rows, dim, condition);
        }
        let (mut lease, outputs, replayed);
        let mut predictions = match &batcher.bound {
            Some(bound) => {
                replayed = bound.denoise(&mut self.inputs)?;
                &replayed[..]
            }
            None => {
                lease = pool.lease_as(alone)?;
                outputs = batcher.denoise(&self.inputs, &mut lease)?;
                output(pool, &outputs, "prediction", rows * dim)?
            }
        };
        for Taken { row, request, .. } in &mut self.taken {
            let (own, rest) = predictions.split_at(request.cost() * dim);
            predictions = rest;
            if request.cost() == 1 {
                row.advance(request, own);
                continue;
            }
            let (conditional, null) = own.split_at(dim);
            self.guided.resize(dim, 0.0);
            samplers::guide(conditional, null, request.guidance, &mut self.guided);
            row.advance(request, &self.guided);
        }
        Ok(())
    }

    /// Writes the inputs of the run: of a guided row the conditional one and the null one, in which it is not told what the
    /// condition says, only what kind of row it is.
    fn gather(&mut self) {
        self.inputs.clear();
        for Taken { row, request, .. } in &self.taken {
            let condition = request.condition(row.index);
            for null in [false, true].into_iter().take(request.cost()) {
                self.inputs.times.push(row.step(request).t);
                self.inputs.latents.extend_from_slice(&row.z);
                let from = self.inputs.conditions.len();
                self.inputs.conditions.extend_from_slice(condition);
                if null {
                    self.inputs.conditions[from..from + request.told].fill(0.0);
                }
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let pool = &self.batcher.pool;
        let mut state = self.batcher.state();
        state.lose(std::mem::take(&mut self.taken), || pool.failed("the run was broken off"));
        state.lanes -= 1;
        // Somebody else works on what is left.
        if let Some(walk) = state.walks.iter().find(|walk| !walk.free.is_empty() && !walk.ticket.is_gone()) {
            walk.ticket.wake();
        }
    }
}
