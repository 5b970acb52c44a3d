//! The demo's second part: adapters for a described task, asked for over HTTP in words that were never learned from.

use std::fmt::Write as _;
use std::path::Path;

use ::language::described::{DescribedConfig, Learned, drawn, score};
use ::language::lora::Adapted;
use ::language::text::TextEncoder;
use inference::Runtime;
use serde_json::json;
use training::progress::Progress;

use super::Served;
use super::client::Client;
use crate::context::{caller, say};
use crate::error::{Error, Result};
use crate::language::adapters;
use crate::publish;

/// What is asked for each task of the configuration, in other words than its own.
const ASKED: [(&str, &str); 4] = [
    ("opinion", "Find out if somebody speaks well or badly of something."),
    ("subject", "Sort sentences: is it about fauna, or about machinery?"),
    ("tense", "Which sentences are about what is over, and which about what will be?"),
    ("setting", "Is the scene of a sentence inside a house or out in nature?"),
];
/// Adapters of each answer.
const COUNT: usize = 5;
/// Examples that they are measured on.
const TEST: &str = "test of the demo";

/// What was asked for, and what came.
pub struct Described {
    rows: Vec<Row>,
    generator: String,
}

struct Row {
    task: &'static str,
    asked: &'static str,
    zoo: f64,
    generated: f64,
    other: f64,
    distance: f64,
}

/// Trains adapters and their generator, publishes it, and asks for adapters for each task.
pub async fn run(
    served: &Served,
    encoder: &Path,
    folder: &Path,
    (runtime, progress): (&Runtime, &Progress),
) -> Result<Described> {
    let config = adapters::load_config(None)?;
    let learned = adapters::learned(&config, (encoder, &folder.join("adapters")), runtime, progress)?;
    let registry = &served.open.registry;
    let mut write = registry.write(&caller()).await?;
    let version = publish::generator(registry, &mut write, &learned.bundle, &config.name, None).await?;
    write.commit().await?;
    let generator = format!("{}@{}", version.generator, version.version);
    let http = Client::new(served.address, &served.secret, generator.clone())?;
    let rows = ask(&http, &config, &learned, encoder).await?;
    Ok(Described { rows, generator })
}

async fn ask(http: &Client, config: &DescribedConfig, learned: &Learned, dir: &Path) -> Result<Vec<Row>> {
    let encoder = TextEncoder::open(dir)?;
    let adapted = Adapted::new(encoder.bert(), "", &config.lora, 2)?;
    let mut answers = Vec::new();
    for (task, asked) in ASKED {
        let request = json!({ "generator": http.generator(), "dataset": { "text": asked }, "count": COUNT, "seed": 1 });
        let (generation, adapters) = http.adapters(&request).await?;
        answers.push((task, asked, generation["distance"].as_f64().unwrap_or(f64::NAN), adapters));
    }
    let mut rows = Vec::new();
    for (i, (task, asked, distance, adapters)) in answers.iter().enumerate() {
        let missing = || Error::Internal(format!("the configuration has no task {task}"));
        let own = config.tasks.iter().find(|t| t.name == *task).ok_or_else(missing)?;
        let test = drawn(&own.read(config)?.split.test, config.seed, TEST);
        let data = adapted.encode(&encoder, &test, config.length)?;
        let mean = |directories: &[tempfile::TempDir]| -> Result<f64> {
            let each = directories.iter().map(|dir| score(&adapted, &adapted.open(dir.path())?, &data, false));
            Ok(each.collect::<::language::Result<Vec<_>>>()?.iter().sum::<f64>() / COUNT as f64)
        };
        let before = &answers[(i + answers.len() - 1) % answers.len()].3;
        let zoo = learned.measured.iter().find(|m| m.task == *task).map_or(f64::NAN, |m| m.zoo);
        rows.push(Row { task, asked, zoo, generated: mean(adapters)?, other: mean(before)?, distance: *distance });
    }
    Ok(rows)
}

impl Described {
    /// One table for people, and a request to try.
    pub fn print(&self, base: &str, bearer: &str) {
        let mut out = String::from(
            "\nAdapters (LoRA) of a MiniLM for a task that was only described, in words that were not learned from; accuracy in %\n\
             on sentences whose deciding words no adapter has seen:\n\n  task      trained  generated  for another  distance  asked\n",
        );
        for r in &self.rows {
            let (zoo, generated, other) = (100.0 * r.zoo, 100.0 * r.generated, 100.0 * r.other);
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "  {:<9} {zoo:>7.1} {generated:>10.1} {other:>12.1} {:>9.2}  {}",
                r.task, r.distance, r.asked
            );
        }
        say(&out);
        let body = json!({ "generator": self.generator, "dataset": { "text": ASKED[0].1 }, "count": 1, "seed": 1 });
        say(&format!("  curl -s {bearer}-H 'content-type: application/json' -d '{body}' {base}/v1/generations"));
        say(&format!("  curl -s {bearer}{base}/v1/generations/ID/samples/0/adapter | tar x   # as peft loads it"));
    }

    /// The numbers, accuracies as fractions.
    pub fn json(&self) -> serde_json::Value {
        let row = |r: &Row| {
            let value = json!({
                "asked": r.asked, "zoo": r.zoo, "generated": r.generated, "shuffled": r.other, "distance": r.distance,
            });
            (r.task.to_owned(), value)
        };
        serde_json::Value::Object(self.rows.iter().map(row).collect())
    }
}
