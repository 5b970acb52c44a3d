//! An experiment's page.

use std::collections::BTreeMap;
use std::fmt::{Result, Write};

use super::result::{Column, Group, Outcome};
use crate::compare::{IOU_SAMPLE, mean_std, median_max};

fn percent(values: Vec<f64>) -> String {
    if values.is_empty() {
        return "–".into();
    }
    let (mean, std) = mean_std(values);
    format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * std)
}

/// The page; `command` is what made it.
pub fn page(outcome: &Outcome, command: &str) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut out, outcome, command);
    out
}

fn write_page(out: &mut String, outcome: &Outcome, command: &str) -> Result {
    let e = &outcome.experiment;
    writeln!(out, "# {}\n", e.title)?;
    if e.quick {
        writeln!(out, "**A quick run, to see that it works: none of these numbers is a result.**\n")?;
    }
    writeln!(out, "{}\n", e.table)?;
    if !e.stands_in.is_empty() {
        writeln!(out, "{}\n", e.stands_in)?;
    }
    let part = outcome.generated.map_or(String::new(), |n| format!(", of which {n} are generated"));
    writeln!(
        out,
        "Zoo: {} runs, {} checkpoints of {} ({} parameters{part}), mean test accuracy {:.1} %. {} samples a task, seeds {:?}: \
         each trains a generator of its own on this one zoo. Accuracies on test images that neither zoo nor generator \
         saw, in %, mean ± standard deviation over models and seeds.\n",
        outcome.zoo_runs,
        outcome.zoo_checkpoints,
        outcome.architecture,
        outcome.parameters,
        100.0 * outcome.zoo_accuracy,
        e.samples,
        e.seeds,
    )?;
    writeln!(out, "![accuracies and novelty]({}.svg)\n", e.name)?;
    if let Some(figure) = &outcome.weights {
        writeln!(
            out,
            "![weights]({}-weights.svg)\n\nThe nearest zoo model of a generated one (L2, aligned) is of the same task for \
             {:.0} % of them (chance: {:.0} %).\n",
            e.name,
            100.0 * figure.nearest_of_own_task,
            100.0 * figure.chance,
        )?;
    }
    if e.variants.len() > 1 {
        variants(out, outcome)?;
    }
    for group in &outcome.groups {
        group_tables(out, outcome, group)?;
    }
    footer(out, outcome, command)
}

fn heading(outcome: &Outcome, group: &Group) -> String {
    let one_set = outcome.groups.iter().all(|g| g.set == group.set);
    match (outcome.experiment.variants.len(), one_set) {
        (1, _) => group.set.clone(),
        (_, true) => group.variant.clone(),
        (_, false) => format!("{}, {}", group.variant, group.set),
    }
}

/// The generated arm of each variant, beside each other.
fn variants(out: &mut String, outcome: &Outcome) -> Result {
    let e = &outcome.experiment;
    writeln!(out, "## Variants\n\nThe arm `generated`:\n")?;
    write!(out, "| variant | runs |")?;
    e.epochs.iter().try_for_each(|epoch| write!(out, " {epoch} epochs |"))?;
    writeln!(out, " zoo at 0 | reconstruction | shuffled | ± in a task | disagreement | novelty |")?;
    writeln!(out, "|---|---|{}---|---|---|---|---|---|", "---|".repeat(e.epochs.len()))?;
    for group in &outcome.groups {
        let columns = group.columns(outcome.of_sources());
        let find = |name: &str| columns.iter().find(|c| c.label() == name);
        let Some(generated) = find("generated") else { continue };
        let runs = group.pieces.first().map_or(0, |p| p.zoo_runs);
        write!(out, "| {} | {runs} |", heading(outcome, group))?;
        for i in 0..e.epochs.len() {
            write!(out, " {} |", percent(generated.at(i, None)))?;
        }
        let at_start = |name: &str| find(name).map_or_else(|| "–".into(), |c| percent(c.at(0, None)));
        write!(out, " {} | {} | {} |", at_start("zoo"), at_start("reconstruction"), at_start("shuffled"))?;
        writeln!(out, " {:.1} | {} | {} |", 100.0 * generated.within(0), disagreement(generated), novelty(generated))?;
    }
    writeln!(out)
}

fn disagreement(column: &Column) -> String {
    match column.disagreement.is_empty() {
        true => "–".into(),
        false => format!("{:.1}", 100.0 * mean_std(column.disagreement.clone()).0),
    }
}

fn novelty(column: &Column) -> String {
    let values = column.novelty();
    let (mean, std) = mean_std(values.iter().copied());
    if values.is_empty() { "–".into() } else { format!("{mean:.2} ± {std:.2}") }
}

fn group_tables(out: &mut String, outcome: &Outcome, group: &Group) -> Result {
    let columns = group.columns(outcome.of_sources());
    let e = &outcome.experiment;
    writeln!(out, "## {}\n", heading(outcome, group))?;
    write!(out, "| arm |")?;
    e.epochs.iter().try_for_each(|epoch| write!(out, " {epoch} epochs |"))?;
    writeln!(out, " ± seeds | ± in a task | best at {} | disagreement | novelty | error IoU |", e.epochs[0])?;
    writeln!(out, "|---|{}---|---|---|---|---|---|", "---|".repeat(e.epochs.len()))?;
    for column in &columns {
        write!(out, "| {} |", column.label())?;
        for i in 0..e.epochs.len() {
            write!(out, " {} |", percent(column.at(i, None)))?;
        }
        let (best, of) = column.best(0);
        let best = if of > 1.0 { format!("{:.1} of {of:.0}", 100.0 * best) } else { "–".into() };
        let iou = column.iou();
        let iou = if iou.is_empty() { "–".into() } else { format!("{:.2}", mean_std(iou).0) };
        writeln!(
            out,
            " {:.1} | {:.1} | {best} | {} | {} | {iou} |",
            100.0 * column.over_seeds(0, None),
            100.0 * column.within(0),
            disagreement(column),
            novelty(column),
        )?;
    }
    for (piece, timing) in group.pieces.iter().filter_map(|p| Some((p, p.timing?))) {
        writeln!(
            out,
            "\nOne model for each of {} tasks: generated in {:.2} s (embedding, sampling, decoding, one task after the \
             other), trained in {:.2} s (the zoo's recipe, all in one batched tensor): {:.0} times (seed {}).",
            timing.tasks,
            timing.generated_seconds,
            timing.trained_seconds,
            timing.trained_seconds / timing.generated_seconds.max(1e-9),
            piece.seed,
        )?;
    }
    answers(out, group)?;
    let tasks = columns.first().map(Column::tasks).unwrap_or_default();
    if outcome.of_sources() && tasks.len() > 1 {
        for (i, epoch) in e.epochs.iter().enumerate() {
            writeln!(out, "\nAfter {epoch} epochs, by dataset:\n\n| arm | {} |", tasks.join(" | "))?;
            writeln!(out, "|---|{}", "---|".repeat(tasks.len()))?;
            for column in &columns {
                let cells: Vec<String> = tasks.iter().map(|t| percent(column.at(i, Some(t)))).collect();
                writeln!(out, "| {} | {} |", column.label(), cells.join(" | "))?;
            }
        }
    }
    if outcome.generated.is_some() {
        middles(out, &columns, &tasks)?;
    }
    writeln!(out)
}

/// Mean, median and largest accuracy before fine-tuning, as in the paper's table of networks of which a part is
/// generated.
fn middles(out: &mut String, columns: &[Column], tasks: &[&str]) -> Result {
    let heads: Vec<String> = tasks.iter().map(|task| format!("{task}: mean | median | max")).collect();
    writeln!(out, "\nBefore fine-tuning, in %:\n\n| arm | models | {} |", heads.join(" | "))?;
    writeln!(out, "|---|---|{}", "---|---|---|".repeat(tasks.len()))?;
    for column in columns {
        write!(out, "| {} | {} |", column.label(), column.rows.len())?;
        for task in tasks {
            let values = column.at(0, Some(task));
            let (median, max) = median_max(&values);
            match values.is_empty() {
                true => write!(out, " – | – | – |")?,
                false => {
                    let mean = mean_std(values).0;
                    write!(out, " {:.2} | {:.2} | {:.2} |", 100.0 * mean, 100.0 * median, 100.0 * max)?;
                }
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// What the service answered with, and how far the tasks are from the zoo.
fn answers(out: &mut String, group: &Group) -> Result {
    let all: Vec<_> = group.pieces.iter().filter_map(|p| p.answers.as_ref()).collect();
    if all.is_empty() {
        return Ok(());
    }
    let mut origins: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut distances, mut of_classes) = (Vec::new(), Vec::new());
    for answers in all {
        answers.origins.iter().for_each(|(name, n)| *origins.entry(name).or_default() += n);
        distances.extend(&answers.distances);
        of_classes.extend(answers.class_distances.iter().map(|of| mean_std(of.iter().copied()).0));
    }
    let counts: Vec<String> = origins.iter().map(|(name, n)| format!("{n} {name}")).collect();
    write!(
        out,
        "\n`answer` is {}. Distance of the support to the zoo, in units of the zoo's own spread: {}",
        counts.join(", "),
        quantiles(distances)
    )?;
    match of_classes.is_empty() {
        true => writeln!(out, "."),
        false => writeln!(
            out,
            "; of its classes to the zoo's, in units of other images of those, mean over the classes: {}.",
            quantiles(of_classes)
        ),
    }
}

/// Median, and the 5th and 95th percentile.
fn quantiles(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get((values.len().saturating_sub(1) as f64 * share).round() as usize).copied();
    let [low, middle, high] = [0.05, 0.5, 0.95].map(|share| at(share).unwrap_or(f64::NAN));
    format!("median {middle:.2} (5 to 95 %: {low:.2} to {high:.2})")
}

fn footer(out: &mut String, outcome: &Outcome, command: &str) -> Result {
    let pieces: Vec<_> = outcome.groups.iter().flat_map(|g| &g.pieces).collect();
    let images: Vec<usize> = pieces.iter().map(|p| p.report.test_images).collect();
    let bytes = pieces.iter().map(|p| p.bundle_bytes).max().unwrap_or(0);
    writeln!(out, "## How it was measured\n")?;
    writeln!(
        out,
        "- `± seeds`: deviation of the seeds' means; `± in a task`: deviation between the models of one task and seed; \
         `best`: of the models of a task, chosen on the test images, an upper bound; `disagreement`: share of test \
         images that two models of a task predict differently, in %.\n\
         - `novelty`: L2 distance to the nearest checkpoint that the generator learned from, after alignment, over the \
         distance of zoo models to the nearest of another run. Zoo and retrieval are members of the zoo.\n\
         - `error IoU`: intersection over union of wrongly predicted test images, the largest with any of at most \
         {IOU_SAMPLE} training runs of the task (last checkpoints; never with itself), mean over models.\n\
         - `noise` is at the mean distance of the generated weights from the zoo. `average`: the 16 nearest runs, \
         aligned. `gaussian`: per parameter over the task's aligned training checkpoints (over the 16 nearest runs' \
         where the zoo has fewer than two of the task). `reconstruction`: held-out runs through the VAE; below it \
         training runs. `shuffled`: generated for the previous task. `closed_form_…`: on the same support images; `adapted`: ridge \
         regression on them towards what is generated. \
         `answer`: what the service hands out for linear heads, the first of generated, retrieved and closed forms as \
         it ranks them by the support images alone. `start`: what runs start from that train a part of their \
         networks.\n\
         - Test images a task: {} to {}.",
        images.iter().min().unwrap_or(&0),
        images.iter().max().unwrap_or(&0),
    )?;
    let stages: Vec<String> = outcome.seconds.iter().map(|(name, s)| format!("{name} {s:.1}")).collect();
    writeln!(
        out,
        "- Seconds: {} · all {:.1} (zoo and generators where they were made, whether in this run or before). Peak \
         memory of this run {:.0} MiB. A bundle has up to {:.1} MB.\n- `{command}`, revision {}, zoo `{}`.",
        stages.join(" · "),
        outcome.all_seconds(),
        outcome.peak_rss_mib,
        bytes as f64 / 1e6,
        training::REVISION,
        outcome.zoo,
    )
}
