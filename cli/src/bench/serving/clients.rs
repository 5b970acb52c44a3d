//! A server in a process of its own, and many clients that each ask for one network after the other.

use base64::Engine as _;
use serde_json::{Value, json};

use super::made::Made;
use super::{OneByOne, Options, STEPS, seconds};
use crate::bench::child::Server;
use crate::bench::figures::{Figures, median};
use crate::bench::load::{self, Latency, Until};
use crate::context::{RegistryArgs, tokio_runtime, writing};
use crate::error::{Error, Result};
use crate::publish;

const NAME: &str = "bench";
/// Batches of which the best is what the server is compared with.
const OFFLINE: [usize; 2] = [32, 64];
/// Images of each class that a request is for.
const IMAGES: usize = 20;

/// Throughput beside the best offline batch, before and after, and latencies.
pub fn measure(
    options: &Options,
    made: &Made,
    alone: OneByOne,
    registry: &RegistryArgs,
    figures: &mut Figures,
) -> Result<()> {
    let offline = || -> Result<f64> {
        let rates = OFFLINE.map(|batch| Ok(batch as f64 * 2.0 / seconds(made, batch, 2)?));
        rates.into_iter().try_fold(0.0, |best: f64, rate: Result<f64>| Ok(best.max(rate?)))
    };
    let before = offline()?;
    let served = Served::start(made, registry)?;
    let clients = usize::from(options.clients);
    served.ask(clients, Until::Requests(2 * u32::from(options.clients)))?;
    let latency = served.ask(clients, Until::Seconds(options.seconds))?;
    let memory = served.server.memory();
    drop(served);
    let rate = median(vec![before, offline()?]);
    let key = |what: &str| format!("serving.{what}_{clients}_clients");
    figures.put(&key("throughput_over_offline"), latency.per_second / rate, "over the best offline batch");
    let over = "over PyTorch that answers the same requests one by one";
    figures.put(&key("speedup_over_torch_eager"), latency.per_second / alone.eager, over);
    figures.put(&key("speedup_over_torch_compile"), latency.per_second / alone.compile, over);
    figures.put(&key("p99_over_p50"), latency.p99_ms / latency.p50_ms, "");
    figures.put(&key("p50_ms"), latency.p50_ms, "milliseconds, in this run only");
    figures.put(&key("requests"), latency.requests as f64, "requests measured");
    figures.put(&key("memory_mib"), mib(memory), "MiB of the server");
    Ok(())
}

/// Latencies by the number of clients, for so many seconds each.
///
/// # Errors
/// When a server does not start, or a request fails.
pub fn at_each(made: &Made, registry: &RegistryArgs, clients: &[usize], seconds: f64) -> Result<Vec<(usize, Latency)>> {
    let served = Served::start(made, registry)?;
    served.ask(8, Until::Requests(200))?;
    clients.iter().map(|&n| Ok((n, served.ask(n, Until::Seconds(seconds))?))).collect()
}

/// Memory over many requests, on a generator that answers fast.
pub fn endure(options: &Options, made: &Made, registry: &RegistryArgs, figures: &mut Figures) -> Result<()> {
    let served = Served::start(made, registry)?;
    let clients = usize::from(options.clients);
    // What is used once stays: connections, sessions, threads, plans of statements.
    let warm = (options.requests / 10).max(1000);
    served.ask(clients, Until::Requests(warm))?;
    let before = served.server.memory();
    let latency = served.ask(clients, Until::Requests(options.requests))?;
    let after = served.server.memory();
    figures.put("serving.endurance_requests", latency.requests as f64, "requests to a small generator");
    figures.put("serving.endurance_per_second", latency.per_second, "a second, in this run only");
    figures.put("serving.endurance_p99_over_p50", latency.p99_ms / latency.p50_ms, "");
    figures.put("serving.endurance_memory_before_mib", mib(before), "MiB of the server after a tenth of them");
    figures.put("serving.endurance_memory_after_mib", mib(after), "MiB of the server at the end");
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A server with the generator and a dataset.
struct Served {
    server: Server,
    runtime: tokio::runtime::Runtime,
    dataset: Value,
    /// The server's, removed with it.
    _data: tempfile::TempDir,
}

impl Served {
    fn start(made: &Made, registry: &RegistryArgs) -> Result<Self> {
        let data = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
        let args = RegistryArgs { data_dir: data.path().to_path_buf(), database_url: None, ..registry.clone() };
        let runtime = tokio_runtime()?;
        runtime.block_on(async {
            let open = args.open().await?;
            let published = writing(&open.registry, async |write| {
                publish::generator(&open.registry, write, &made.bundle, NAME, None).await
            })
            .await;
            open.close().await;
            published
        })?;
        let server = Server::start(data.path())?;
        let dataset = runtime.block_on(register(&server.url, &made.support))?;
        Ok(Self { server, runtime, dataset, _data: data })
    }

    /// Lets clients ask for one network each, with seeds of their own.
    fn ask(&self, clients: usize, until: Until) -> Result<Latency> {
        let (address, dataset) = (format!("{}/v1/generations", self.server.url), self.dataset.clone());
        let ask = move |http: &reqwest::Client, seed: u32| {
            http.post(&address).json(&json!({
                "generator": NAME, "dataset": {"id": dataset}, "seed": seed, "steps": STEPS, "eta": 0.0,
            }))
        };
        self.runtime.block_on(load::measure(clients, until, ask))
    }
}

/// Sends the images, and gives the dataset's id.
async fn register(url: &str, support: &datasets::Dataset) -> Result<Value> {
    let mut few = Vec::new();
    for class in 0..support.classes() as u32 {
        let own = support.labels.iter().enumerate().filter(|(_, label)| **label == class);
        few.extend(own.map(|(at, _)| at).take(IMAGES));
    }
    let npz = datasets::npz::to_npz(&support.take(&few))?;
    let body = json!({"name": NAME, "npz": base64::engine::general_purpose::STANDARD.encode(npz)});
    let http = reqwest::Client::builder().no_proxy().build()?;
    let answer = http.post(format!("{url}/v1/datasets")).json(&body).send().await?;
    let (status, answer) = (answer.status(), answer.json::<Value>().await?);
    match status.is_success() {
        true => Ok(answer["id"].clone()),
        false => Err(Error::Internal(format!("the dataset was refused with {status}: {answer}"))),
    }
}
