//! Class tokens of the zoo's own classes: a request whose classes are far from all of them is far from the zoo.
//!
//! z_D does not tell: on alphabets that no zoo had it lies as near the zoo's as on its own (`docs/CANDIDATES.md`). The
//! token of a class depends on its own images alone, so that class sets which the zoo lacks are near where their classes
//! are its own.

use datasets::Task;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use weights::manifest::KnownClasses;
use weights::novelty;

use super::encoder::Encoder;
use super::zoo::Zoo;
use crate::config::Config;
use crate::data::{Part, Sources};
use crate::error::Result;
use crate::networks::dataset_encoder::{Condition, EncoderKind};
use crate::random;

/// Most tokens that are kept.
const TOKENS: usize = 1024;
/// Tokens of other images whose distances give the unit.
const JUDGED: usize = 1024;
/// Share of the zoo's own datasets that are near.
const NEAR: f64 = 0.95;
/// Datasets that are encoded together.
const BATCH: usize = 32;

/// Tokens `[tokens × dim]` of training images of the zoo's tasks, with the distance that tokens of the same classes'
/// validation images have to them; none where the condition has no tokens.
///
/// # Errors
/// When shapes do not fit.
pub fn classes(
    config: &Config,
    zoo: &Zoo,
    sources: &Sources,
    encoder: &mut Encoder,
) -> Result<Option<(KnownClasses, Vec<f32>)>> {
    let dim = encoder.shape.token_dim;
    let has = encoder.shape.kind == EncoderKind::SetTransformer && encoder.shape.condition == Condition::Tokens;
    if !has {
        return Ok(None);
    }
    let tasks: Vec<&Task> = zoo.runs.iter().map(|run| &run.task).collect();
    for task in &tasks {
        if sources.task(task, Part::Validation)?.per_class() == 0 {
            return Ok(None);
        }
    }
    let mut rng = random::stream(config.seed, "known classes");
    let known = tokens(&tasks, TOKENS, (sources, Part::Train), encoder, &mut rng)?.concat();
    let judged = tokens(&tasks, JUDGED, (sources, Part::Validation), encoder, &mut rng)?;
    let of_dataset = |tokens: &Vec<f32>| {
        let nearest =
            |token| novelty::nearest(token, &known, dim, None).map_or(f64::INFINITY, |(_, distance)| distance);
        tokens.chunks_exact(dim).map(nearest).sum::<f64>() / (tokens.len() / dim) as f64
    };
    let mut distances: Vec<f64> = judged.par_iter().map(of_dataset).collect();
    let unit = distances.iter().sum::<f64>() / distances.len() as f64;
    distances.sort_by(f64::total_cmp);
    let near = distances[((distances.len() - 1) as f64 * NEAR).round() as usize] / unit;
    let contract = KnownClasses { tokens: known.len() / dim, dim, unit: unit as f32, near: near as f32 };
    Ok((unit > 0.0).then_some((contract, known)))
}

/// Tokens of the classes of tasks that are drawn until there are `most` of them at most, `[classes × dim]` a task.
fn tokens(
    tasks: &[&Task],
    most: usize,
    (sources, part): (&Sources, Part),
    encoder: &mut Encoder,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Vec<f32>>> {
    let (dim, start) = (encoder.shape.token_dim, encoder.shape.embedding_dim);
    let mut drawn: Vec<&Task> = Vec::new();
    let mut count = 0;
    while let Some(task) = tasks.choose(rng).filter(|task| drawn.is_empty() || count + task.classes.len() <= most) {
        count += task.classes.len();
        drawn.push(task);
    }
    let mut all = Vec::with_capacity(drawn.len());
    for batch in drawn.chunks(BATCH) {
        let supports = encoder.support(sources, batch.iter().copied(), part, rng)?;
        let (_, condition) = encoder.values(&supports)?;
        for (task, row) in batch.iter().zip(condition.to_vec2::<f32>()?) {
            all.push(row[start..start + task.classes.len() * dim].to_vec());
        }
    }
    Ok(all)
}
