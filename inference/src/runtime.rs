//! The ONNX Runtime library: found, loaded once a process, with the execution provider that really works.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ort::environment::Environment;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{CUDA, ExecutionProvider};
use ort::logging::LogLevel;
use ort::operator::OperatorDomain;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pool::{SessionPool, Use};

/// Where the operator wants graphs to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// CUDA when it works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA or an error.
    Cuda,
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err(Error::UnknownDevice(text.to_owned())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// Where graphs really run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// CUDA.
    Cuda,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// A loaded ONNX Runtime with the provider that its sessions use. Clones share it.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    environment: Environment,
    library: PathBuf,
    provider: Provider,
    threads: usize,
    version: Option<String>,
    /// Why CUDA was passed over.
    without_cuda: Option<String>,
    /// Whether batches of the denoiser are filled up to a power of two.
    padded: AtomicBool,
    /// Whether the denoiser's tensors stay on the device.
    bound: AtomicBool,
    /// Pools in use, by name and digest of their graphs.
    pools: Mutex<HashMap<String, Weak<SessionPool>>>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("library", &self.0.library)
            .field("provider", &self.0.provider)
            .field("threads", &self.0.threads)
            .field("version", &self.0.version)
            .finish()
    }
}

/// ONNX Runtime allows one environment a process, so it is made once and kept; a failed try may be repeated.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

impl Runtime {
    /// Loads `library` (a file, see [`locate_library`]) and tries out `device` with a small graph.
    ///
    /// `threads` is the number of CPU threads that all sessions of a graph share; 0 means as many as the machine has.
    ///
    /// # Errors
    /// [`Error::RuntimeMissing`], [`Error::RuntimeUnusable`] (not loadable or too old), [`Error::RuntimeConflict`]
    /// (another library is in use), [`Error::CudaUnavailable`] when `device` is [`Device::Cuda`] and CUDA fails.
    pub fn new(library: &Path, device: Device, threads: usize) -> Result<Self> {
        let library = library.canonicalize().map_err(|_| Error::RuntimeMissing(library.to_path_buf()))?;
        if !library.is_file() {
            return Err(Error::RuntimeMissing(library));
        }
        let environment = load(&library)?;
        let (provider, without_cuda) = choose_provider(&library, &environment, device)?;
        let threads = if threads == 0 { available_threads() } else { threads };
        let version = version_in(&library.to_string_lossy()).or_else(|| version_in(ort::info()));
        tracing::info!(library = %library.display(), %provider, threads, version = version.as_deref(), "ONNX Runtime ready");
        Ok(Self(Arc::new(Inner {
            environment,
            library,
            provider,
            threads,
            version,
            without_cuda,
            padded: AtomicBool::new(provider == Provider::Cuda),
            bound: AtomicBool::new(false),
            pools: Mutex::default(),
        })))
    }

    /// Whether generators that are loaded from now on fill the denoiser's batches up to a power of two, and run each such
    /// size once when they are loaded. On CUDA they do: there the first run of each size searches for the fastest
    /// algorithms; the CPU has nothing to search for.
    pub fn pad_batches(&self, yes: bool) {
        self.0.padded.store(yes, Ordering::Relaxed);
    }

    pub(crate) fn pads_batches(&self) -> bool {
        self.0.padded.load(Ordering::Relaxed)
    }

    /// Whether the denoisers of generators that are loaded from now on have their tensors bound to one place on the device,
    /// which on CUDA lets their runs be replayed as CUDA graphs. Batches are filled up then in any case.
    pub fn bind_tensors(&self, yes: bool) {
        self.0.bound.store(yes, Ordering::Relaxed);
        if yes {
            self.pad_batches(true);
        }
    }

    pub(crate) fn binds_tensors(&self) -> bool {
        self.0.bound.load(Ordering::Relaxed)
    }

    /// The provider that sessions really use.
    pub fn provider(&self) -> Provider {
        self.0.provider
    }

    /// Version of the library, such as `1.32.0`, where its file name or its build information tells it.
    pub fn version(&self) -> Option<&str> {
        self.0.version.as_deref()
    }

    /// The library's file.
    pub fn library(&self) -> &Path {
        &self.0.library
    }

    /// Whether the library was built with the CUDA provider; that it works is another matter.
    pub fn has_cuda(&self) -> bool {
        CUDA::is_available().unwrap_or(false)
    }

    /// Why CUDA was tried and is not used.
    pub fn without_cuda(&self) -> Option<&str> {
        self.0.without_cuda.as_deref()
    }

    /// CPU threads that the sessions of a graph share.
    pub fn threads(&self) -> usize {
        self.0.threads
    }

    /// Runs a built-in graph once and checks what it gives, on the provider that is really used: for readiness.
    ///
    /// # Errors
    /// [`Error::Graph`] when it does not run, or runs wrong.
    pub fn warm(&self) -> Result<()> {
        let pool = SessionPool::new(self, "probe", PROBE)?;
        let outputs = pool.run(&[("x", &[], &[1.5])])?;
        match outputs.get("y") {
            Some(tensor) if tensor.data == [3.0] => Ok(()),
            other => Err(pool.failed(format!("1.5 + 1.5 gave {other:?}"))),
        }
    }

    /// Graphs that are loaded now.
    pub fn pools(&self) -> usize {
        let pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.values().filter(|pool| pool.strong_count() > 0).count()
    }

    /// The pool of the graph `name` with these bytes: one for all who ask, so that versions of a generator which have a graph in
    /// common have its sessions in common. It is let go with the last of them, once no run of theirs is under way.
    ///
    /// # Errors
    /// As [`SessionPool::new`].
    pub(crate) fn pool(&self, name: &str, graph: &[u8], used: Use) -> Result<Arc<SessionPool>> {
        let key = format!("{name} {}", weights::digest::sha256(graph));
        // A graph is loaded under the lock: who wants the same at the same time waits for it instead of loading it too.
        let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&key).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        let pool = Arc::new(SessionPool::of(self, name, graph, used)?);
        pools.retain(|_, pool| pool.strong_count() > 0);
        pools.insert(key, Arc::downgrade(&pool));
        Ok(pool)
    }

    /// A session for a graph's bytes with this many threads inside an operator, and operators of ours that the graph has.
    pub(crate) fn session(
        &self,
        graph: &[u8],
        threads: usize,
        used: Use,
        operators: Option<OperatorDomain>,
    ) -> ort::Result<Session> {
        let mut builder = build_session(&self.0.environment, self.0.provider, threads, used)?;
        if let Some(operators) = operators {
            builder = builder.with_operators(operators)?;
        }
        builder.with_intra_op_spinning(used != Use::Once)?.commit_from_memory(graph)
    }
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn load(library: &Path) -> Result<Environment> {
    // Nothing inside can leave the slot half-written, so a panic elsewhere does not spoil it.
    let mut slot = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((loaded, environment)) = &*slot {
        return match loaded == library {
            true => Ok(environment.clone()),
            false => Err(Error::RuntimeConflict { loaded: loaded.clone(), asked: library.to_path_buf() }),
        };
    }
    let builder = ort::init_from(library).map_err(|e| unusable(library, &e))?;
    let environment = builder
        .with_name("weightsmith")
        .with_telemetry(false)
        .with_logger(Arc::new(forward_log))
        .build()
        .map_err(|e| unusable(library, &e))?;
    environment.set_log_level(LogLevel::Warning);
    *slot = Some((library.to_path_buf(), environment.clone()));
    Ok(environment)
}

fn forward_log(level: LogLevel, category: &str, _id: &str, place: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => tracing::trace!(target: "onnxruntime", category, place, "{message}"),
        LogLevel::Warning => tracing::debug!(target: "onnxruntime", category, place, "{message}"),
        // The same text comes back as an error value, which the caller reports.
        LogLevel::Error | LogLevel::Fatal => {
            tracing::debug!(target: "onnxruntime", category, place, "error: {message}")
        }
    }
}

fn unusable(library: &Path, error: &dyn fmt::Display) -> Error {
    Error::RuntimeUnusable { path: library.to_path_buf(), reason: error.to_string(), minimum: ort::MINOR_VERSION }
}

fn build_session(
    environment: &Environment,
    provider: Provider,
    intra_threads: usize,
    used: Use,
) -> ort::Result<SessionBuilder> {
    let builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(intra_threads)?
        .with_log_level(LogLevel::Warning)?;
    match provider {
        Provider::Cpu => Ok(builder),
        // Without `error_on_failure`, ONNX Runtime would fall back to the CPU and say nothing. TensorFloat-32 would make
        // networks differ from those of the CPU in the third digit.
        Provider::Cuda => {
            // A search for the fastest convolution pays where a few sizes run again and again, after a warm-up.
            let search = match used {
                Use::Steps | Use::Replay => ConvAlgorithmSearch::Exhaustive,
                Use::Once => ConvAlgorithmSearch::Heuristic,
            };
            let cuda = CUDA::default().with_tf32(false).with_conv_algorithm_search(search);
            let cuda = cuda.with_cuda_graph(used == Use::Replay).build().error_on_failure();
            Ok(builder.with_execution_providers([cuda])?)
        }
    }
}

/// The provider that works, and why it is not CUDA where that was tried.
fn choose_provider(library: &Path, environment: &Environment, device: Device) -> Result<(Provider, Option<String>)> {
    let mut without_cuda = None;
    let probe =
        |provider| build_session(environment, provider, 1, Use::Once).and_then(|mut b| b.commit_from_memory(PROBE));
    if device != Device::Cpu {
        match probe(Provider::Cuda) {
            Ok(_) => return Ok((Provider::Cuda, None)),
            Err(e) if device == Device::Cuda => return Err(Error::CudaUnavailable(first_line(&e.to_string()))),
            Err(e) => {
                tracing::debug!(reason = %e, "CUDA is not usable; falling back to the CPU");
                without_cuda = Some(first_line(&e.to_string()));
            }
        }
    }
    match probe(Provider::Cpu) {
        Ok(_) => Ok((Provider::Cpu, without_cuda)),
        Err(e) => Err(unusable(library, &e)),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

/// The graph y = x + x on one f32 (IR 8, opset 17), in ONNX's protobuf encoding.
const PROBE: &[u8] = b"\x08\x08\x3a\x31\x0a\x0e\x0a\x01x\x0a\x01x\x12\x01y\x22\x03Add\x12\x05probe\
\x5a\x0b\x0a\x01x\x12\x06\x0a\x04\x08\x01\x12\x00\x62\x0b\x0a\x01y\x12\x06\x0a\x04\x08\x01\x12\x00\x42\x02\x10\x11";

/// The first `digits.digits.digits` of `text` whose file name or branch names a version of ONNX Runtime 1.
fn version_in(text: &str) -> Option<String> {
    text.match_indices("1.").find_map(|(at, _)| {
        let starts = at == 0 || matches!(text.as_bytes()[at - 1], b'.' | b'-');
        let version: String = text[at..].chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let version = version.trim_end_matches('.');
        let numbers = version.split('.').filter(|part| !part.is_empty()).count();
        (starts && numbers == 3 && version.split('.').count() == 3).then(|| version.to_owned())
    })
}

/// The library's file: `explicit`, or else what `WEIGHTSMITH_ORT` holds; either may be the file or a folder with it.
///
/// # Errors
/// [`Error::RuntimeUnset`] when neither is given, [`Error::RuntimeMissing`] when there is no library there.
pub fn locate_library(explicit: Option<PathBuf>) -> Result<PathBuf> {
    let from_environment = || std::env::var_os("WEIGHTSMITH_ORT").filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = explicit
        .filter(|p| !p.as_os_str().is_empty())
        .or_else(from_environment)
        .ok_or(Error::RuntimeUnset { minimum: ort::MINOR_VERSION })?;
    if path.is_file() {
        return Ok(path);
    }
    // The archive from the project keeps it in lib, the Python wheel in capi.
    ["", "lib", "capi", "onnxruntime/capi"]
        .iter()
        .find_map(|below| library_in(&path.join(below)))
        .ok_or(Error::RuntimeMissing(path))
}

/// The library in `folder`; of several the last by name, which is the one with the most exact version.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let is_library = |name: &str| {
        name.starts_with("libonnxruntime.so") || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(is_library) && path.is_file())
        .collect();
    found.sort();
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_round_trip() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
            assert_eq!(serde_json::to_string(&device).unwrap(), format!("\"{device}\""));
        }
        assert_eq!("CPU".parse::<Device>().unwrap(), Device::Cpu);
        assert_eq!("gpu".parse::<Device>().unwrap_err().code(), "unknown_device");
    }

    #[test]
    fn versions_are_read_from_names_and_build_information() {
        assert_eq!(version_in("/opt/libonnxruntime.so.1.32.0").as_deref(), Some("1.32.0"));
        assert_eq!(version_in("ORT Build Info: git-branch=rel-1.24.1, x=2.1.0").as_deref(), Some("1.24.1"));
        assert_eq!(version_in("/opt/libonnxruntime.so.1"), None);
        assert_eq!(version_in("/opt/21.5.0/libonnxruntime.so"), None);
    }

    #[test]
    fn a_library_is_found_as_file_and_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        let missing = locate_library(Some(folder.path().to_path_buf())).unwrap_err();
        assert_eq!(missing.code(), "runtime_missing");
        assert!(missing.to_string().contains("WEIGHTSMITH_ORT"), "{missing}");
        let capi = folder.path().join("onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        std::fs::write(capi.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert!(locate_library(Some(folder.path().to_path_buf())).is_err());
        let library = capi.join("libonnxruntime.so.1.32.0");
        std::fs::write(&library, "").unwrap();
        for path in [folder.path().to_path_buf(), capi, library.clone()] {
            assert_eq!(locate_library(Some(path)).unwrap(), library);
        }
    }
}
