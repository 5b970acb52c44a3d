//! `weightsmith bench registry`: how the registry holds at size, against the server in a process of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::Rng;
use registry::datasets::{self, DatasetFilter};
use registry::embeddings::{self, NewEmbedding, SubjectKind};
use registry::synthetic::{self, Kind, Sizes, id};
use registry::{ListRequest, Registry};
use serde::Serialize;
use training::random;

use super::child::Server;
use super::load::Until;
use super::{files, load};
use crate::context::{RegistryArgs, caller, say, tokio_runtime, write_json, writing};
use crate::error::{Error, Result};

/// Dimensions of the embeddings.
const DIMENSIONS: usize = 256;
/// Embeddings stored at a time.
const BATCH: usize = 500;

/// Measure a registry of made-up rows.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  weightsmith bench registry --data-dir out/bench --checkpoints 1000000 --json bench.json"
)]
pub struct Args {
    /// Checkpoints.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1000..))]
    checkpoints: u32,
    /// Datasets, each with an embedding of 256 dimensions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..))]
    datasets: u32,
    /// Generators.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..))]
    generators: u32,
    /// Clients that ask at a time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..1000))]
    clients: u16,
    /// Seconds that each operation is measured for.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// MiB of the file that is sent and fetched; 0 to leave that out.
    #[arg(long, default_value_t = 1024)]
    file_mib: u64,
    /// File for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// The figures.
#[derive(Debug, Serialize)]
struct Report {
    checkpoints: u32,
    datasets: u32,
    generators: u32,
    clients: u16,
    operations: BTreeMap<&'static str, load::Latency>,
    serve_rss_mib: f64,
    upload_rss_mib: Option<f64>,
    upload_mib_per_second: Option<f64>,
    download_ratio_to_nginx: Option<f64>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    if !args.seconds.is_finite() || args.seconds <= 0.0 {
        return Err(Error::input("seconds_invalid", "--seconds must be a number above 0"));
    }
    let sizes = Sizes { checkpoints: args.checkpoints, datasets: args.datasets, generators: args.generators };
    let report = tokio_runtime()?.block_on(async {
        let open = args.registry.open().await?;
        let filled = fill(&open.registry, &sizes).await;
        open.close().await;
        filled?;
        measure(&args, &sizes).await
    })?;
    print(&report);
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(())
}

/// Fills an empty registry; one that it filled before is used again.
async fn fill(registry: &Registry, sizes: &Sizes) -> Result<()> {
    if !synthetic::filled(registry, sizes).await? {
        rows(registry, sizes).await?;
    }
    let kind = SubjectKind::Dataset;
    registry::nearest::maintain(registry, synthetic::version(), kind, registry::nearest::INDEX_FROM).await?;
    // Something to hold on to: the rows are there as any caller sees them.
    let some = datasets::list(registry, &caller(), &DatasetFilter::default(), &ListRequest::default()).await?;
    match some.items.is_empty() {
        true => Err(Error::Internal("the registry is empty after it was filled".into())),
        false => Ok(()),
    }
}

async fn rows(registry: &Registry, sizes: &Sizes) -> Result<()> {
    say(&format!("filling the registry with {} checkpoints", sizes.checkpoints));
    let artifact = registry.artifacts().put_bytes(&b"made up"[..], "application/octet-stream").await?;
    synthetic::fill(registry, sizes, &artifact.digest).await?;
    let mut rng = random::stream(0, "bench embeddings");
    let numbers: Vec<u32> = (1..=sizes.datasets).collect();
    for batch in numbers.chunks(BATCH) {
        let new: Vec<NewEmbedding> = batch.iter().map(|number| embedding(*number, &mut rng)).collect();
        writing(registry, async |write| {
            Ok(embeddings::insert_bulk(write, synthetic::version(), SubjectKind::Dataset, &new).await?)
        })
        .await?;
    }
    Ok(())
}

fn embedding(number: u32, rng: &mut rand_chacha::ChaCha8Rng) -> NewEmbedding {
    let embedding = (0..DIMENSIONS).map(|_| rng.random_range(-1.0..1.0)).collect();
    NewEmbedding { subject_id: id(Kind::Dataset, number), classes: vec![0, 1, 2], embedding }
}

/// Spreads counting numbers over `1..=size`, the same way each time.
fn spread(number: u32, size: u32) -> u32 {
    (u64::from(number).wrapping_mul(2_654_435_761) % u64::from(size)) as u32 + 1
}

type Path = Box<dyn Fn(u32) -> String + Send + Sync>;

fn operations(sizes: Sizes) -> Vec<(&'static str, Path)> {
    let Sizes { checkpoints, datasets, generators } = sizes;
    let zoo = move |n| id(Kind::Zoo, spread(n, sizes.zoos()));
    vec![
        ("list", Box::new(|_| "/v1/checkpoints?order=-created_at".into()) as Path),
        ("list_zoo", Box::new(move |n| format!("/v1/checkpoints?zoo={}", zoo(n)))),
        (
            "filter",
            Box::new(move |n| format!("/v1/checkpoints?zoo={}&min_accuracy=0.{}&order=-accuracy", zoo(n), 5 + n % 5)),
        ),
        ("filter_tags", Box::new(|n| format!("/v1/checkpoints?tags=fold-{}", spread(n, 9972)))),
        ("search", Box::new(move |n| format!("/v1/datasets?q=number%20{}", spread(n, datasets)))),
        ("search_generators", Box::new(move |n| format!("/v1/generators?q=family%20{}", n % 31))),
        (
            "lineage",
            Box::new(move |n| {
                format!("/v1/lineage?limit=50&node=checkpoint:{}", id(Kind::Checkpoint, spread(n, checkpoints)))
            }),
        ),
        (
            "lineage_sample",
            Box::new(move |n| {
                format!("/v1/lineage?limit=50&node=sample:{}/0", id(Kind::Generation, spread(n, generators * 10)))
            }),
        ),
        (
            "nearest",
            Box::new(move |n| {
                let dataset = id(Kind::Dataset, spread(n, datasets));
                format!("/v1/datasets/{dataset}/nearest?generator=bench-gen-1@1&limit=10")
            }),
        ),
    ]
}

/// Asks a server for a path.
fn get(
    url: String,
    path: impl Fn(u32) -> String + Send + Sync + 'static,
) -> impl Fn(&reqwest::Client, u32) -> reqwest::RequestBuilder + Send + Sync + 'static {
    move |http, n| http.get(format!("{url}{}", path(n)))
}

async fn measure(args: &Args, sizes: &Sizes) -> Result<Report> {
    let server = Server::start(&args.registry.data_dir)?;
    let mut measured = BTreeMap::new();
    let (peak, done) = server
        .peak_during(async {
            for (name, path) in operations(*sizes) {
                // Caches and prepared statements are warm on a server that runs.
                let (clients, url) = (usize::from(args.clients), server.url.clone());
                let warm = move |n| format!("/v1/datasets?limit=1&deleted={}", n % 2 == 1);
                load::measure(clients, Until::Seconds(1.0), get(url.clone(), warm)).await?;
                let latency = load::measure(clients, Until::Seconds(args.seconds), get(url, path)).await?;
                say(&line(name, &latency));
                measured.insert(name, latency);
            }
            Ok::<_, Error>(())
        })
        .await;
    done?;
    let mut report = Report {
        checkpoints: args.checkpoints,
        datasets: args.datasets,
        generators: args.generators,
        clients: args.clients,
        operations: measured,
        serve_rss_mib: mib(peak),
        upload_rss_mib: None,
        upload_mib_per_second: None,
        download_ratio_to_nginx: None,
    };
    if args.file_mib > 0 {
        let sent = files::upload(&server, args.file_mib << 20).await?;
        report.upload_rss_mib = Some(mib(sent.peak));
        report.upload_mib_per_second = Some(sent.mib_per_second);
        let stored = args.registry.data_dir.join("artifacts");
        report.download_ratio_to_nginx = files::download_ratio(&server, &sent, &stored).await?;
    }
    Ok(report)
}

fn mib(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
}

fn line(name: &str, latency: &load::Latency) -> String {
    let load::Latency { p50_ms, p99_ms, per_second, requests } = latency;
    format!("{name:<18} p50 {p50_ms:7.2} ms   p99 {p99_ms:7.2} ms   {per_second:8.0} /s   {requests} requests")
}

fn print(report: &Report) {
    say(&format!("memory of serve: {:.0} MiB at most", report.serve_rss_mib));
    if let (Some(memory), Some(speed)) = (report.upload_rss_mib, report.upload_mib_per_second) {
        say(&format!("upload: {memory:.0} MiB at most, {speed:.0} MiB/s"));
    }
    match report.download_ratio_to_nginx {
        Some(ratio) => say(&format!("download: {ratio:.2} of nginx")),
        None if report.upload_rss_mib.is_none() => {}
        None => say("download: nginx is not installed, nothing to compare with"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_stays_inside() {
        assert!((0..10_000).all(|n| (1..=97).contains(&spread(n, 97))));
        assert_eq!(spread(3, 1), 1);
    }
}
