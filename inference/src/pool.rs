//! A pool of sessions for one graph: `Session::run` wants a session for itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::TensorRef;

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
    graph: Arc<[u8]>,
    size: usize,
    intra_threads: usize,
    state: Mutex<State>,
    returned: Condvar,
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
    idle: Vec<Session>,
    made: usize,
}

impl SessionPool {
    /// A pool for the graph `name` with these bytes. The first session is made at once, so that a damaged graph is
    /// found here; the threads of the runtime are shared out among the sessions.
    ///
    /// # Errors
    /// [`Error::Bundle`] when ONNX Runtime refuses the graph.
    pub fn new(runtime: &Runtime, name: impl Into<String>, graph: impl Into<Arc<[u8]>>) -> Result<Self> {
        let most = if runtime.provider() == Provider::Cuda { MAX_CUDA_SESSIONS } else { MAX_SESSIONS };
        let size = runtime.threads().clamp(1, most);
        let pool = Self {
            runtime: runtime.clone(),
            name: name.into(),
            graph: graph.into(),
            size,
            intra_threads: (runtime.threads() / size).max(1),
            state: Mutex::default(),
            returned: Condvar::new(),
        };
        let first = pool.make().map_err(|e| Error::Bundle(format!("{} is not a usable graph ({e})", pool.name)))?;
        *pool.state() = State { idle: vec![first], made: 1 };
        Ok(pool)
    }

    /// Name of the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Most sessions that exist at a time.
    pub fn size(&self) -> usize {
        self.size
    }

    /// A session, which goes back to the pool when the lease is dropped; waits while all are in use.
    ///
    /// A thread must not ask for a second session of a pool while it holds one: with all in use, it would wait for
    /// itself.
    ///
    /// # Errors
    /// [`Error::Graph`] when a further session cannot be made.
    pub fn lease(&self) -> Result<Lease<'_>> {
        let mut state = self.state();
        loop {
            if let Some(session) = state.idle.pop() {
                return Ok(Lease { pool: self, session: Some(session) });
            }
            if state.made < self.size {
                state.made += 1;
                drop(state);
                return self.lease_new();
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
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

    /// Makes a session whose place is already counted; gives the place back when that fails.
    fn lease_new(&self) -> Result<Lease<'_>> {
        let mut lease = Lease { pool: self, session: None };
        lease.session = Some(self.make().map_err(|e| self.failed(e))?);
        Ok(lease)
    }

    fn make(&self) -> ort::Result<Session> {
        self.runtime.session(&self.graph, self.intra_threads)
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
        match self.session.take() {
            Some(session) => state.idle.push(session),
            None => state.made -= 1,
        }
        drop(state);
        self.pool.returned.notify_one();
    }
}
