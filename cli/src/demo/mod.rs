//! `weightsmith demo`: the whole way on real data, from labelled images to weights over HTTP, beside its baselines.

mod arms;
mod client;
mod described;
mod report;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::{AppState, Settings};
use datasets::Task;
use inference::{Generator, Runtime};
use registry::generators::GeneratorVersion;
use registry::tokens::{self, NewToken, Scope, Secret, Token};
use registry::{TokenId, Write};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use training::progress::Progress;
use training::snapshots::{self, Folder, Keep};
use training::stages::generator::Trained;
use training::stages::zoo::{self, Zoo};
use training::{Config, Part, Sources, stages};

use crate::compare::spread;
use crate::context::{
    OpenRegistry, RegistryArgs, RuntimeArgs, caller, peak_rss_mib, prepare, progress, say, tokio_runtime, write_whole,
};
use crate::error::{Error, Result};
use crate::{publish, serve, train};

/// Train a zoo and a generator, serve them, ask for weights over HTTP, and compare them with baselines.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weightsmith demo\n  weightsmith demo --serve --bind 127.0.0.1:8080\n  \
                  WEIGHTSMITH_DATA=/data/idx weightsmith demo --config configs/tiny-cnn.toml --json out/cnn.json")]
pub struct Args {
    /// Configuration file; without it the built-in digits configuration.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Also write the numbers of the table as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep serving at the end.
    #[arg(long)]
    serve: bool,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    bind: SocketAddr,
    /// Folder of the demo's zoo and registry.
    #[arg(long, env = "WEIGHTSMITH_DEMO_DIR", default_value = ".weightsmith/demo")]
    data_dir: PathBuf,
    /// A PostgreSQL server with pgvector; without it a private one runs in the data folder.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Folder of a PostgreSQL with pgvector, for the private server.
    #[arg(long, env = "WEIGHTSMITH_POSTGRES")]
    postgres: Option<PathBuf>,
    /// A text encoder (the directory of a BERT, as MiniLM): with the built-in configuration, the demo also generates adapters
    /// for described tasks.
    #[arg(long, env = "WEIGHTSMITH_TEXT_ENCODER")]
    text_encoder: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// How long the demo's token is valid.
const TOKEN_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Marks a zoo whose generator was trained.
const FINISHED: &str = "finished";

/// Seconds of each stage, in order.
#[derive(Debug, Default)]
pub struct Clock {
    stages: Vec<(&'static str, f64)>,
}

impl Clock {
    fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let value = work()?;
        self.stages.push((name, start.elapsed().as_secs_f64()));
        Ok(value)
    }
}

/// What the server and the comparisons share.
pub struct Made {
    config: Config,
    sources: Sources,
    zoo: Zoo,
    trained: Trained,
}

/// The API on a loopback port.
struct Served {
    open: OpenRegistry,
    address: SocketAddr,
    version: GeneratorVersion,
    validation: Vec<(String, registry::DatasetId)>,
    test: Vec<(String, registry::DatasetId)>,
    example: String,
    /// The demo's own token.
    token: TokenId,
    secret: Secret,
    stop: oneshot::Sender<()>,
    task: JoinHandle<api::Result<()>>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    let config = crate::zoo::load_config(args.config.as_ref())?;
    if config.most_classes().is_some() {
        let text = "the demo compares networks of one number of classes: give one tasks.classes, or measure a generator for \
                    any number with `weightsmith report`";
        return Err(Error::input("config_invalid", text));
    }
    let mut clock = Clock::default();
    let sources = clock.time("data", || Ok(Sources::load(&config)?))?;
    // What is missing or in use is said before minutes are spent.
    if let Some(path) = &args.json {
        prepare(path)?;
    }
    let runtime = args.runtime.open()?;
    args.runtime.train_there()?;
    let tokio = tokio_runtime()?;
    let (listener, open) = tokio.block_on(async {
        let listener = serve::bind(args.bind).await?;
        Ok::<_, Error>((listener, args.registry().open().await?))
    })?;
    let progress = progress()?;
    let made = make(config, sources, &args.data_dir, &progress, &mut clock)?;
    let difference = train::verify(&runtime, &made.trained.bundle, &made.trained.probes)?;
    tracing::info!(difference, "graphs equal what was trained");
    let generator = Generator::load(&runtime, made.trained.bundle.clone())?;
    let begun = || tokio.block_on(begin(listener, open, &made, &generator, runtime.clone()));
    let mut served = clock.time("register", begun)?;

    let (seen, unseen) = tasks(&made)?;
    let http = client::Client::new(served.address, &served.secret, served.reference())?;
    let mut reports = Vec::new();
    for (name, tasks) in [("seen", seen), ("unseen", unseen)] {
        let parts = client::Parts { validation: &served.validation, test: &served.test };
        let answers = clock.time("requests", || tokio.block_on(http.ask_all(&made, &tasks, &parts, &progress)))?;
        let (registry, version) = (&served.open.registry, served.version.id);
        let near = tokio.block_on(arms::neighbours(&made, &tasks, registry, version, &generator))?;
        let measured = clock.time("compare", || arms::measure(&made, &tasks, &answers, &near, &progress))?;
        reports.push((name, measured));
    }
    let p50;
    (p50, served.example) = clock.time("latency", || tokio.block_on(http.latency(&made, &served.validation)))?;
    let described = match (&args.config, &args.text_encoder) {
        (None, Some(encoder)) => {
            let adapters = || tokio.block_on(described::run(&served, encoder, &args.data_dir, (&runtime, &progress)));
            Some(clock.time("adapters", adapters)?)
        }
        _ => None,
    };
    let report = report::Report {
        reports,
        described: described.as_ref().map(described::Described::json),
        stages: clock.stages,
        seconds: start.elapsed().as_secs_f64(),
        peak_rss_mib: peak_rss_mib(),
        generation_p50_ms: p50,
    };
    say(&report.table());
    if let Some(path) = &args.json {
        write_whole(path, report.json().to_string().as_bytes())?;
    }
    finish(&args, tokio, served, (&made, described.as_ref()))
}

fn make(config: Config, sources: Sources, dir: &Path, progress: &Progress, clock: &mut Clock) -> Result<Made> {
    // Each configuration has a folder of its own. The demo trains there and then: what an earlier demo finished goes;
    // one that was interrupted continues.
    let text = serde_json::to_vec(&config).map_err(|e| Error::Internal(e.to_string()))?;
    let zoo_dir = dir.join("zoos").join(&weights::digest::sha256(&text)["sha256:".len()..][..16]);
    if zoo_dir.join(FINISHED).exists() || stages::zoo::differs(&config, &sources, &zoo_dir)? {
        std::fs::remove_dir_all(&zoo_dir).map_err(Error::io(&zoo_dir))?;
    }
    // Beside the zoo: an interrupted demo continues inside its groups and stages too.
    let folder = Folder::new(zoo_dir.with_extension("snapshots"));
    let keep = Keep::new(&folder, snapshots::EVERY);
    let zoo = clock.time("zoo", || Ok(zoo::build(&config, &sources, &zoo_dir, progress, keep)?))?;
    let trained = stages::generator::train(&config, &zoo, &sources, &training::device::current(), progress, keep)?;
    clock.stages.extend(trained.seconds.iter().copied());
    write_whole(&zoo_dir.join(FINISHED), b"")?;
    keep.clear()?;
    folder.remove_empty();
    Ok(Made { config, sources, zoo, trained })
}

impl Args {
    fn registry(&self) -> RegistryArgs {
        RegistryArgs {
            data_dir: self.data_dir.clone(),
            database_url: self.database_url.clone(),
            postgres: self.postgres.clone(),
            storage: crate::config::StorageArgs::default(),
        }
    }
}

impl Served {
    /// The very version that was trained: the name alone means the latest.
    fn reference(&self) -> String {
        format!("{}@{}", self.version.generator, self.version.version)
    }
}

/// Registers everything and starts the API.
async fn begin(
    listener: TcpListener,
    open: OpenRegistry,
    made: &Made,
    generator: &Generator,
    runtime: Runtime,
) -> Result<Served> {
    let address = listener.local_addr().map_err(|e| Error::Internal(e.to_string()))?;
    let registry = &open.registry;
    let (mut validation, mut test) = (Vec::new(), Vec::new());
    let mut write = registry.write(&caller()).await?;
    for source in made.sources.list() {
        let id = publish::dataset(registry, &mut write, &source.dataset(Part::Validation)).await?.id;
        validation.push((source.name.clone(), id));
        test.push((source.name.clone(), publish::dataset(registry, &mut write, &source.dataset(Part::Test)).await?.id));
    }
    let zoo = publish::zoo(registry, &mut write, &made.sources, &made.zoo).await?;
    let version =
        publish::generator(registry, &mut write, &made.trained.bundle, &made.config.name, Some(zoo.id)).await?;
    publish::run_embeddings(&mut write, &version, zoo.id, generator, &made.zoo, &made.sources).await?;
    let (token, secret) = own_token(&mut write).await?;
    write.commit().await?;
    let settings = Settings { bind: address, ..Settings::default() };
    let state = AppState::new(registry.clone(), runtime, settings);
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        // A dropped sender also ends the server.
        let _ = stopped.await;
    };
    let task = tokio::spawn(api::serve(listener, state, shutdown));
    Ok(Served { open, address, version, validation, test, example: String::new(), token: token.id, secret, stop, task })
}

/// A token for the demo's requests, and for those that it suggests.
async fn own_token(write: &mut Write) -> Result<(Token, Secret)> {
    let new = NewToken {
        name: "demo".into(),
        owner: "demo".into(),
        scopes: vec![Scope::Read, Scope::Generate],
        expires_in: Some(TOKEN_VALIDITY),
        ..NewToken::default()
    };
    Ok(tokens::create(write, &new).await?)
}

/// The tasks that are asked for: evenly spaced ones of the zoo, and unseen ones.
fn tasks(made: &Made) -> Result<(Vec<Task>, Vec<Task>)> {
    let (seen, unseen) = made.sources.tasks(&made.config)?;
    let e = &made.config.evaluation;
    Ok((spread(&seen, e.seen_tasks), spread(&unseen, e.unseen_tasks)))
}

/// Leaves the address and curl lines; serves on when asked to.
fn finish(
    args: &Args,
    tokio: tokio::runtime::Runtime,
    served: Served,
    (made, described): (&Made, Option<&described::Described>),
) -> Result<()> {
    let (source, id) = &served.validation[0];
    let names = &made.sources.list()[0].data.class_names;
    let classes: Vec<&str> = names.iter().rev().take(made.zoo.architecture.classes()).map(String::as_str).collect();
    let base = format!("http://{}", served.address);
    if !args.serve {
        let dir = args.data_dir.display();
        say(&format!("\nServe it again: make serve SERVE_ARGS=\"--data-dir {dir} --bind {} --open\"", served.address));
    }
    say(&format!("\n{base} (described at {base}/docs); three requests, the data being {source}:"));
    let body = serde_json::json!({
        "generator": served.reference(), "dataset": { "id": id, "classes": classes }, "count": 1, "seed": 1
    });
    let body = body.to_string().replace('\'', "'\\''");
    // Served again, it is open; here, each request shows the token.
    let bearer = match args.serve {
        true => format!("-H 'authorization: Bearer {}' ", served.secret.reveal()),
        false => String::new(),
    };
    say(&format!("  curl -s {bearer}{base}/v1/generators/{}", made.config.name));
    say(&format!("  curl -s {bearer}-H 'content-type: application/json' -d '{body}' {base}/v1/generations"));
    say(&format!("  curl -s -OJ {bearer}{base}/v1/generations/{}/samples/0/file", served.example));
    if let Some(described) = described {
        described.print(&base, &bearer);
    }
    tokio.block_on(async {
        if args.serve {
            say("\nServing until Ctrl-C.");
            serve::stop_signal().await;
        }
        let mut write = served.open.registry.write(&caller()).await?;
        tokens::revoke(&mut write, served.token).await?;
        write.commit().await?;
        let _ = served.stop.send(());
        let ended = served.task.await.map_err(|e| Error::Internal(e.to_string()))?;
        served.open.close().await;
        Ok(ended?)
    })
}
