//! What commands share: where the data lives, the registry, ONNX Runtime, output.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use inference::{Device, Provider, Runtime};
use registry::backup::Programs;
use registry::embedded::{self, EmbeddedPostgres};
use registry::{Caller, Registry};
use training::progress::Progress;
use training::snapshots::{self, Folder, Keep};

use crate::config::StorageArgs;
use crate::error::{Error, Result};

/// How often a data folder that changes hands is tried.
const JOIN_TRIES: usize = 5;

/// Where the registry is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
pub struct RegistryArgs {
    /// Folder of the registry: artifacts, and the private PostgreSQL when there is no database URL.
    #[arg(long, env = "WEIGHTSMITH_DATA_DIR", default_value = ".weightsmith/data")]
    pub data_dir: PathBuf,
    /// A PostgreSQL server with pgvector; without it a private one runs in the data folder.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Folder of a PostgreSQL with pgvector (it holds bin/postgres), for the private server.
    #[arg(long, env = "WEIGHTSMITH_POSTGRES")]
    pub postgres: Option<PathBuf>,
    #[command(flatten)]
    pub storage: StorageArgs,
}

/// How graphs run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Runtime")]
pub struct RuntimeArgs {
    /// The ONNX Runtime library, or the folder that holds it.
    #[arg(long, env = "WEIGHTSMITH_ORT")]
    pub ort: Option<PathBuf>,
    /// Where graphs run and networks are trained: `cpu`, `cuda` (or fail), `auto` (CUDA when it works).
    #[arg(long, env = "WEIGHTSMITH_DEVICE", default_value_t = Device::Auto)]
    pub device: Device,
    /// CPU threads of a graph; 0 for all cores.
    #[arg(long, env = "WEIGHTSMITH_THREADS", default_value_t = 0)]
    pub threads: usize,
    /// Replay the denoiser's runs as CUDA graphs, a graph for each size of a batch; only with CUDA.
    #[arg(long, env = "WEIGHTSMITH_CUDA_GRAPHS")]
    pub cuda_graphs: bool,
}

/// Where language models are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Language models")]
pub struct ModelArgs {
    /// Folder of language models, a directory each, that jobs may search (Algorithm 1); without it there are none.
    #[arg(long, env = "WEIGHTSMITH_MODELS", value_name = "DIR")]
    pub models: Option<PathBuf>,
}

impl ModelArgs {
    /// The folder, which must be there.
    pub fn open(&self) -> Result<Option<PathBuf>> {
        match &self.models {
            Some(dir) if !dir.is_dir() => {
                let text = format!("{} is no folder: name one with --models that holds language models", dir.display());
                Err(Error::input("models_missing", text))
            }
            other => Ok(other.clone()),
        }
    }
}

/// An open registry with the private server that it may run on.
pub struct OpenRegistry {
    /// The registry.
    pub registry: Registry,
    server: DatabaseServer,
}

/// A database server that can be connected to: a given one, one that another process runs, or one of our own.
pub struct DatabaseServer {
    /// Its URL.
    pub url: String,
    own: Option<EmbeddedPostgres>,
}

impl RegistryArgs {
    /// The database's URL; an empty variable is one that is not set.
    fn url(&self) -> Option<&String> {
        self.database_url.as_ref().filter(|url| !url.is_empty())
    }

    /// Says what is missing before long work whose result goes into the registry.
    pub fn check(&self) -> Result<()> {
        if self.url().is_none() {
            embedded::locate(self.postgres.clone())?;
        }
        Ok(())
    }

    /// Connects; without a database URL, joins the private PostgreSQL of the data folder, or starts it.
    pub async fn open(&self) -> Result<OpenRegistry> {
        self.connect(self.server()?).await
    }

    /// As [`RegistryArgs::open`], but refuses a data folder that another process holds: for servers, which stay.
    pub async fn open_alone(&self) -> Result<OpenRegistry> {
        self.connect(self.server_alone()?).await
    }

    /// As [`RegistryArgs::open_alone`], but refuses a schema that would have to be migrated.
    pub async fn open_current(&self) -> Result<OpenRegistry> {
        let server = self.server_alone()?;
        registry::schema_status(&server.url).await?.require_current()?;
        self.connect(server).await
    }

    async fn connect(&self, server: DatabaseServer) -> Result<OpenRegistry> {
        let place = self.storage.place(&self.data_dir);
        let registry = Registry::connect_to(&server.url, &place, &self.storage.options()).await?;
        Ok(OpenRegistry { registry, server })
    }

    /// The database's server, shared with whoever runs it already.
    pub fn server(&self) -> Result<DatabaseServer> {
        for _ in 0..JOIN_TRIES {
            match self.server_alone() {
                Err(Error::Registry(registry::Error::DataDirectoryBusy(_))) => {}
                other => return other,
            }
            // None: the other process has just ended, and the folder is free.
            if let Some(url) = EmbeddedPostgres::join(&self.data_dir)? {
                return Ok(DatabaseServer { url, own: None });
            }
        }
        Err(registry::Error::DataDirectoryBusy(self.data_dir.clone()).into())
    }

    /// The database's server, started here when there is no URL.
    pub fn server_alone(&self) -> Result<DatabaseServer> {
        let make_dir = || std::fs::create_dir_all(&self.data_dir).map_err(Error::io(&self.data_dir));
        if let Some(url) = self.url() {
            make_dir()?;
            return Ok(DatabaseServer { url: url.clone(), own: None });
        }
        let postgres = embedded::locate(self.postgres.clone())?;
        make_dir()?;
        let server = EmbeddedPostgres::start(&postgres, &self.data_dir)?;
        Ok(DatabaseServer { url: server.url(), own: Some(server) })
    }

    /// The folder where bodies of uploads are while they come in; made when it is missing. Not the system's temporary
    /// folder, which may be small, or in memory.
    pub fn upload_dir(&self) -> Result<PathBuf> {
        let folder = self.data_dir.join("uploads");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        Ok(folder)
    }

    /// Where pg_dump and pg_restore are.
    pub fn programs(&self) -> Programs {
        Programs::of(embedded::locate(self.postgres.clone()).ok().as_deref())
    }
}

impl DatabaseServer {
    /// Stops it, when it is our own.
    pub fn stop(mut self) {
        if let Some(server) = &mut self.own {
            server.stop();
        }
    }
}

impl OpenRegistry {
    /// Closes connections, then stops the private server.
    pub async fn close(self) {
        self.registry.close().await;
        self.server.stop();
    }

    /// The database's URL.
    pub fn url(&self) -> &str {
        &self.server.url
    }
}

impl RuntimeArgs {
    /// Loads ONNX Runtime.
    pub fn open(&self) -> Result<Runtime> {
        let runtime = Runtime::new(&inference::locate_library(self.ort.clone())?, self.device, self.threads)?;
        if self.cuda_graphs && runtime.provider() != Provider::Cuda {
            let text = "--cuda-graphs is for CUDA, and graphs run on the CPU here; leave it out";
            return Err(Error::input("cuda_graphs_without_cuda", text));
        }
        runtime.bind_tensors(self.cuda_graphs);
        Ok(runtime)
    }

    /// Makes the device of this setting the one that training is on.
    ///
    /// # Errors
    /// [`training::Error::NoCuda`] when it is CUDA and that cannot be used.
    pub fn train_there(&self) -> Result<()> {
        let chosen = match self.device {
            Device::Cpu => candle_core::Device::Cpu,
            Device::Cuda => training::device::cuda()?,
            Device::Auto => training::device::cuda().unwrap_or(candle_core::Device::Cpu),
        };
        training::device::choose(&chosen);
        Ok(())
    }

    /// As [`Self::train_there`], for servers, whose graphs can run on CUDA where training cannot.
    pub fn train_there_or_here(&self) {
        if let Err(error) = self.train_there() {
            tracing::warn!(%error, "jobs train on the CPU");
        }
    }
}

/// Where a training that was stopped goes on from.
#[derive(Debug, Clone, Args)]
pub struct SnapshotArgs {
    /// Folder of snapshots: the same command continues from them after a crash or Ctrl-C, with the same result
    /// [default: OUT.snapshots].
    #[arg(long, value_name = "DIR")]
    pub snapshots: Option<PathBuf>,
    /// Seconds between two snapshots.
    #[arg(long, value_name = "SECONDS", default_value_t = snapshots::EVERY.as_secs_f64())]
    pub snapshot_every: f64,
}

/// Snapshots in a folder that no other process uses.
pub struct OpenSnapshots {
    folder: Folder,
    every: Duration,
    _lock: std::fs::File,
}

impl SnapshotArgs {
    /// Says what is wrong before anything is made.
    pub fn check(&self) -> Result<()> {
        self.every().map(|_| ())
    }

    fn every(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.snapshot_every)
            .map_err(|_| Error::input("option_invalid", "--snapshot-every must be a number of seconds from 0"))
    }

    /// Makes and locks the folder; `out` is the training's output.
    pub fn open(&self, out: &Path) -> Result<OpenSnapshots> {
        let every = self.every()?;
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let folder = self.snapshots.clone().unwrap_or_else(|| out.with_file_name(format!("{name}.snapshots")));
        let folder = Folder::new(folder);
        let lock = folder.lock()?;
        Ok(OpenSnapshots { folder, every, _lock: lock })
    }
}

impl OpenSnapshots {
    /// For the training.
    pub fn keep(&self) -> Keep<'_> {
        Keep::new(&self.folder, self.every)
    }

    /// Removes what is of no more use once the result is stored.
    pub fn finish(self) -> Result<()> {
        self.keep().clear()?;
        self.folder.remove_empty();
        Ok(())
    }
}

/// The async runtime of a command.
pub fn tokio_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::Internal(format!("cannot start the async runtime: {e}")))
}

/// Opens the registry, runs `work` on it, and closes it in every case.
pub fn with_registry<T>(args: &RegistryArgs, work: impl AsyncFnOnce(&Registry) -> Result<T>) -> Result<T> {
    tokio_runtime()?.block_on(async {
        let open = args.open().await?;
        let result = work(&open.registry).await;
        open.close().await;
        result
    })
}

/// Whoever uses the command line: they hold the registry's files and so may do everything.
pub fn caller() -> Caller {
    Caller::system("cli")
}

/// Makes changes in one unit of work.
pub async fn writing<T>(registry: &Registry, work: impl AsyncFnOnce(&mut registry::Write) -> Result<T>) -> Result<T> {
    let mut write = registry.write(&caller()).await?;
    let done = work(&mut write).await?;
    write.commit().await?;
    Ok(done)
}

/// Progress on standard error that ends at Ctrl-C; a second Ctrl-C ends the process at once.
pub fn progress() -> Result<Progress> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = cancel.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .map_err(|e| Error::Internal(format!("cannot listen for Ctrl-C: {e}")))?;
    Ok(Progress::new(true, cancel))
}

/// Writes a line to standard output; a closed pipe is no error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Writes a line to standard error.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// What the kernel says of `key` in a file of lines `key: value`; none where it does not.
pub fn kernel_says(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.trim() == key).map(|(_, value)| value.trim().to_owned())
}

/// KiB that the kernel says of `key`.
pub fn kernel_kib(file: &str, key: &str) -> Option<f64> {
    kernel_says(file, key)?.trim_end_matches(" kB").parse().ok()
}

/// Peak resident memory of this process in MiB; 0 where the kernel does not tell.
pub fn peak_rss_mib() -> f64 {
    kernel_kib("/proc/self/status", "VmHWM").unwrap_or(0.0) / 1024.0
}

/// Writes a value as JSON: a whole file or none.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    write_whole(path, &serde_json::to_vec_pretty(value).map_err(|e| Error::Internal(e.to_string()))?)
}

/// Makes the folder of a file that long work will write, and refuses a name that cannot be a file's.
pub fn prepare(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    if path.is_dir() {
        let text = format!("{} is a folder; name the file to write", path.display());
        return Err(Error::input("not_a_file", text));
    }
    Ok(())
}

/// Writes a whole file or none: to a temporary name in the same folder, then renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    prepare(path)?;
    Ok(::language::rewrite::write_whole(path, bytes)?)
}

/// Class labels of names, in the order given; all classes when there are none.
pub fn labels(dataset: &datasets::Dataset, classes: &[String]) -> Result<Vec<u32>> {
    if classes.is_empty() {
        return Ok((0..dataset.classes() as u32).collect());
    }
    classes
        .iter()
        .map(|name| {
            let found = dataset.class_names.iter().position(|c| c == name).map(|i| i as u32);
            found.ok_or_else(|| {
                let known = dataset.class_names.join(", ");
                Error::input("unknown_class", format!("there is no class {name}; the data has {known}"))
            })
        })
        .collect()
}

/// Runs blocking work on a thread where it may block.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    let ended = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    ended.map_err(|error| Error::Internal(format!("work stopped: {error}")))?
}
