//! The demo's table, and the same as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::arms::Measured;
use crate::compare::{ArmReport, SetReport, best, mean_std, within};

/// Everything that the demo measured.
pub struct Report {
    /// Per set of tasks (`seen`, `unseen`).
    pub reports: Vec<(&'static str, Measured)>,
    /// Adapters for described tasks, where they were asked for.
    pub described: Option<Value>,
    /// Seconds of each stage.
    pub stages: Vec<(&'static str, f64)>,
    /// Seconds of all.
    pub seconds: f64,
    /// Peak resident memory, MiB.
    pub peak_rss_mib: f64,
    /// Median time of a request for one sample, ms.
    pub generation_p50_ms: f64,
}

/// Sets with no more tasks than this are also listed task by task.
const LISTED_TASKS: usize = 12;

impl Report {
    /// One table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for (name, measured) in &self.reports {
            if let Some(set) = &measured.set {
                // Writing to a string cannot fail.
                let _ = set_table(&mut out, name, set, measured);
            }
        }
        let _ = self.footer(&mut out);
        out
    }

    fn footer(&self, out: &mut String) -> std::fmt::Result {
        let mut merged: Vec<(&str, f64)> = Vec::new();
        for (name, seconds) in &self.stages {
            match merged.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += seconds,
                None => merged.push((name, *seconds)),
            }
        }
        let stages: Vec<String> = merged.iter().map(|(name, s)| format!("{name} {s:.1}")).collect();
        writeln!(out, "\nseconds: {} · all {:.1}", stages.join(" · "), self.seconds)?;
        write!(
            out,
            "peak memory {:.0} MiB · one sample over HTTP: median {:.1} ms",
            self.peak_rss_mib, self.generation_p50_ms
        )
    }

    /// The numbers as JSON, accuracies as fractions.
    pub fn json(&self) -> Value {
        let mut out = Map::new();
        for (name, set) in &self.reports {
            let arms = set
                .set
                .iter()
                .flat_map(|set| set.arms.iter().map(|arm| (arm.arm.name().to_owned(), arm_json(arm, &set.epochs))));
            out.insert((*name).to_owned(), Value::Object(arms.collect()));
        }
        let novelty = self.reports.iter().filter_map(|(name, set)| {
            let (generated, zoo) = set.set.as_ref()?.novelty;
            Some(((*name).to_owned(), json!({ "generated": generated, "zoo": zoo })))
        });
        out.extend(self.described.clone().map(|described| ("described".to_owned(), described)));
        out.insert("nearest_checkpoint_distance".into(), Value::Object(novelty.collect()));
        out.insert(
            "stages".into(),
            self.stages.iter().map(|(name, s)| json!({ "name": name, "seconds": s })).collect(),
        );
        out.insert("seconds".into(), json!(self.seconds));
        out.insert("peak_rss_mib".into(), json!(self.peak_rss_mib));
        out.insert("generation_p50_ms".into(), json!(self.generation_p50_ms));
        Value::Object(out)
    }
}

fn accuracies(values: &[(usize, f64)]) -> impl Iterator<Item = f64> {
    values.iter().map(|v| v.1)
}

fn arm_json(arm: &ArmReport, epochs: &[usize]) -> Value {
    let epochs = epochs.iter().enumerate().map(|(i, epoch)| {
        let values = &arm.at(i);
        let (mean, std) = mean_std(accuracies(values));
        (
            format!("epoch_{epoch}"),
            json!({ "mean": mean, "std": std, "std_within_task": within(values),
            "best": best(values), "models": values.len() }),
        )
    });
    Value::Object(epochs.collect())
}

fn set_table(out: &mut String, name: &str, set: &SetReport, measured: &Measured) -> std::fmt::Result {
    write!(out, "\n{name}: {} tasks, test accuracy in %\n{:<10}", measured.tasks, "")?;
    for epoch in &set.epochs {
        write!(out, " {:>14}", format!("{epoch} epochs"))?;
    }
    writeln!(out, " {:>14} {:>12}", "best at 0", "± in a task")?;
    for arm in &set.arms {
        write!(out, "{:<10}", arm.arm.name())?;
        for i in 0..set.epochs.len() {
            let (mean, std) = mean_std(accuracies(&arm.at(i)));
            write!(out, " {:>14}", format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * std))?;
        }
        let first = arm.at(0);
        let models = first.len() as f64 / measured.tasks as f64;
        let best = format!("{:.1} of {models:.0}", 100.0 * best(&first));
        let within = format!("{:.1}", 100.0 * within(&first));
        let (best, within) = if models > 1.0 { (best, within) } else { ("-".into(), "-".into()) };
        writeln!(out, " {best:>14} {within:>12}")?;
    }
    let (generated, zoo) = set.novelty;
    writeln!(out, "distance to the nearest zoo model: generated {generated:.2}, zoo models {zoo:.2}")?;
    if measured.server_difference > 0.005 {
        // The server takes all test images of a class, the table as many of each class.
        writeln!(
            out,
            "the server, on all test images, is up to {:.1} points apart",
            100.0 * measured.server_difference
        )?;
    }
    if set.tasks.len() <= LISTED_TASKS { task_table(out, set) } else { Ok(()) }
}

/// Accuracy before fine-tuning, task by task.
fn task_table(out: &mut String, set: &SetReport) -> std::fmt::Result {
    write!(out, "\n{:<10}", "0 epochs")?;
    for task in &set.tasks {
        let short: String = task.split('[').next().unwrap_or(task).chars().take(14).collect();
        write!(out, " {short:>14}")?;
    }
    writeln!(out)?;
    for arm in &set.arms {
        write!(out, "{:<10}", arm.arm.name())?;
        let first = arm.at(0);
        for task in 0..set.tasks.len() {
            let (mean, std) = mean_std(first.iter().filter(|v| v.0 == task).map(|v| v.1));
            write!(out, " {:>14}", format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * std))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
