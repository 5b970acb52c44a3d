//! A pool of sessions for one graph: `Session::run` wants a session for itself. Who is alone gets a session with all
//! threads; several at a time get one each with their share of them, which do more together: nothing in an operator waits for
//! another thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::TensorRef;

use crate::convolutions::Convolutions;
use crate::error::{Error, Result};
use crate::runtime::{Provider, Runtime};

/// More sessions than this hold more copies of the weights than they win time.
const MAX_SESSIONS: usize = 4;
/// Sessions on one GPU: the second prepares its run while the first computes.
const MAX_CUDA_SESSIONS: usize = 2;

/// Sessions of one graph, made when they are first needed.
#[derive(Debug)]
pub struct SessionPool {
    runtime: Runtime,
    name: String,
    program: Program,
    size: usize,
    state: Mutex<State>,
    returned: Condvar,
}

/// How a graph is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Run after run: threads spin for a while after a run, which makes a short one that follows up to half again as fast.
    Steps,
    /// As [`Self::Steps`], recorded as CUDA graphs and replayed where there is CUDA.
    Replay,
    /// Now and then: idle threads leave the cores to others. Spinning ones took a seventh of a busy server's time.
    Once,
}

/// What sessions are made of.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    graph: Arc<[u8]>,
    /// The graph with convolutions that are not ONNX Runtime's.
    filtered: Option<Arc<Convolutions>>,
    used: Use,
}

impl Program {
    /// For a graph's bytes. What runs step by step on the CPU has convolutions of ours, but where one row is alone.
    pub fn new(runtime: &Runtime, graph: impl Into<Arc<[u8]>>, used: Use) -> Self {
        let graph = graph.into();
        let filtered = (runtime.provider() == Provider::Cpu && used != Use::Once).then(|| Convolutions::of(&graph));
        Self { graph, filtered: filtered.flatten().map(Arc::new), used }
    }

    /// The same, used in another way.
    pub fn used(&self, used: Use) -> Self {
        Self { used, ..self.clone() }
    }

    /// A session with this many threads inside an operator, for one row at a time or for many.
    pub fn session(&self, runtime: &Runtime, threads: usize, one: bool) -> ort::Result<Session> {
        match self.filtered.as_ref().filter(|_| !one) {
            Some(own) => runtime.session(own.graph(), threads, self.used, Some(own.operators(threads)?)),
            None => runtime.session(&self.graph, threads, self.used, None),
        }
    }
}

/// How many threads a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    /// All that the runtime has.
    Wide,
    /// The share of one of `size` sessions.
    Narrow,
}

/// A tensor that a graph gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Shape.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Vec<f32>,
}

#[derive(Debug, Default)]
struct State {
    narrow: Vec<Session>,
    wide: Option<Session>,
    /// Leases that are out.
    out: usize,
    /// Whether the session with all threads is out.
    wide_out: bool,
}

impl SessionPool {
    /// A pool for the graph `name` with these bytes. The first session is made at once, so that a damaged graph is
    /// found here; the threads of the runtime are shared out among the sessions.
    ///
    /// # Errors
    /// [`Error::Bundle`] when ONNX Runtime refuses the graph.
    pub fn new(runtime: &Runtime, name: impl Into<String>, graph: impl Into<Arc<[u8]>>) -> Result<Self> {
        Self::of(runtime, name, graph, Use::Once)
    }

    /// As [`Self::new`], where the use is known.
    pub(crate) fn of(
        runtime: &Runtime,
        name: impl Into<String>,
        graph: impl Into<Arc<[u8]>>,
        used: Use,
    ) -> Result<Self> {
        let most = if runtime.provider() == Provider::Cuda { MAX_CUDA_SESSIONS } else { MAX_SESSIONS };
        let size = runtime.threads().clamp(1, most);
        let pool = Self {
            runtime: runtime.clone(),
            name: name.into(),
            program: Program::new(runtime, graph, used),
            size,
            state: Mutex::default(),
            returned: Condvar::new(),
        };
        let first =
            pool.make(Width::Wide).map_err(|e| Error::Bundle(format!("{} is not a usable graph ({e})", pool.name)))?;
        pool.state().wide = Some(first);
        Ok(pool)
    }

    /// Name of the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its sessions are made of.
    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// Most sessions that are in use at a time.
    pub fn size(&self) -> usize {
        self.size
    }

    /// A session, which goes back to the pool when the lease is dropped; waits while all are in use. Who is the only one
    /// has all threads.
    ///
    /// A thread must not ask for a second session of a pool while it holds one: with all in use, it would wait for
    /// itself.
    ///
    /// # Errors
    /// [`Error::Graph`] when a further session cannot be made.
    pub fn lease(&self) -> Result<Lease<'_>> {
        self.lease_if(|state| state.out == 0)
    }

    /// As [`Self::lease`], where the caller knows whether it is going to stay alone.
    pub(crate) fn lease_as(&self, alone: bool) -> Result<Lease<'_>> {
        self.lease_if(|_| alone)
    }

    fn lease_if(&self, alone: impl Fn(&State) -> bool) -> Result<Lease<'_>> {
        let mut state = self.state();
        while state.out >= self.size {
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // One session of a graph is wide enough where there is one at a time.
        let wide = !state.wide_out && (self.size == 1 || alone(&state));
        let width = if wide { Width::Wide } else { Width::Narrow };
        state.out += 1;
        state.wide_out |= wide;
        let found = if wide { state.wide.take() } else { state.narrow.pop() };
        drop(state);
        // Its place is counted, and is given back when no session can be made.
        let mut lease = Lease { pool: self, session: found, width };
        if lease.session.is_none() {
            lease.session = Some(self.make(width).map_err(|e| self.failed(e))?);
        }
        Ok(lease)
    }

    /// Runs the graph once on f32 inputs (name, shape, row-major values) and gives all its outputs by name; for
    /// comparisons with other implementations of the graph.
    ///
    /// # Errors
    /// [`Error::Graph`] when the inputs do not fit or the graph fails.
    pub fn run(&self, inputs: &[(&str, &[usize], &[f32])]) -> Result<BTreeMap<String, Tensor>> {
        let view =
            |shape: &[usize], data| TensorRef::from_array_view((shape.to_vec(), data)).map_err(|e| self.failed(e));
        let values = inputs.iter().map(|&(name, shape, data)| Ok((name, view(shape, data)?.into())));
        let values = values.collect::<Result<Vec<_>>>()?;
        let mut lease = self.lease()?;
        let outputs = lease.run(values)?;
        let named = outputs.iter().map(|(name, value)| {
            let (shape, data) = value.try_extract_tensor::<f32>().map_err(|e| self.failed(e))?;
            let shape = shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
            Ok((name.to_owned(), Tensor { shape, data: data.to_vec() }))
        });
        named.collect()
    }

    fn make(&self, width: Width) -> ort::Result<Session> {
        let threads = match width {
            Width::Wide => self.runtime.threads(),
            Width::Narrow => (self.runtime.threads() / self.size).max(1),
        };
        // Where there are narrow ones, they share what is more than one row.
        self.program.session(&self.runtime, threads, width == Width::Wide && self.size > 1)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The lock is never held while foreign code runs, so the state is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::Graph { graph: self.name.clone(), reason: error.to_string() }
    }
}

/// A session in use. Dropping it, in a panic too, gives the session or at least its place back.
#[derive(Debug)]
pub struct Lease<'p> {
    pool: &'p SessionPool,
    session: Option<Session>,
    width: Width,
}

impl Lease<'_> {
    /// Runs the graph on named inputs.
    ///
    /// # Errors
    /// [`Error::Graph`] with what ONNX Runtime says.
    pub(crate) fn run<'s, 'i, 'v: 'i>(
        &'s mut self,
        inputs: Vec<(&'i str, SessionInputValue<'v>)>,
    ) -> Result<SessionOutputs<'s>> {
        let pool = self.pool;
        match &mut self.session {
            Some(session) => session.run(inputs).map_err(|e| pool.failed(e)),
            None => Err(pool.failed("the lease holds no session")),
        }
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.out -= 1;
        match self.width {
            Width::Wide => {
                state.wide_out = false;
                state.wide = self.session.take();
            }
            Width::Narrow => state.narrow.extend(self.session.take()),
        }
        drop(state);
        self.pool.returned.notify_one();
    }
}
