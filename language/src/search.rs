//! Algorithm 1: matrix by matrix, K candidates each, the best one kept when it is no worse than what there is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use training::progress::Progress;
use training::random;
use weights::novelty;

use crate::error::{Error, Result};
use crate::evaluate::{Candidate, Evaluator};
use crate::generator::Generator;
use crate::model::Model;
use crate::rewrite::write_whole;

/// What candidates are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proposal {
    /// What the generator gives.
    Generated,
    /// The control: the matrix that there is, moved in a random direction as far as the generated one is from it.
    Noise,
}

/// How the search goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchConfig {
    /// Candidates of each matrix (K).
    pub candidates: usize,
    /// What they are.
    pub proposal: Proposal,
    /// How far each goes from the matrix that there is to the generated one, from 0 to 1: candidates take these in turn. In the
    /// paper all the way.
    pub shares: Vec<f64>,
    /// Seed: each candidate has its own, by matrix and number.
    pub seed: u64,
    /// Further candidates of a matrix in place of those whose evaluation failed.
    pub retries: usize,
}

impl SearchConfig {
    /// # Errors
    /// [`Error::Text`] when there is nothing to try.
    pub fn check(&self) -> Result<()> {
        if self.candidates == 0 || self.shares.is_empty() || !self.shares.iter().all(|s| *s > 0.0 && *s <= 1.0) {
            return Err(Error::Text("a search has candidates of 1 or more, and shares above 0 and at most 1".into()));
        }
        Ok(())
    }
}

/// A candidate that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Its number: its seed follows from it.
    pub number: usize,
    /// Its score; none when the evaluation failed.
    pub score: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A matrix that was gone through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The matrix.
    pub matrix: String,
    /// Score before it.
    pub before: f64,
    /// Score after it.
    pub after: f64,
    /// Number of the candidate that was kept; none: the matrix stays.
    pub kept: Option<usize>,
    /// All candidates.
    pub tried: Vec<Tried>,
}

/// The course of a search, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// How it goes.
    pub config: SearchConfig,
    /// What scores are.
    pub evaluator: String,
    /// Matrices in their order.
    pub matrices: Vec<String>,
    /// Score of the model as it was.
    pub initial: f64,
    /// What was done.
    pub steps: Vec<Step>,
}

impl Course {
    /// The score now.
    pub fn score(&self) -> f64 {
        self.steps.last().map_or(self.initial, |step| step.after)
    }

    /// Candidates whose evaluation gave a score.
    pub fn evaluations(&self) -> usize {
        self.steps.iter().flat_map(|s| &s.tried).filter(|t| t.score.is_some()).count()
    }
}

/// Goes through the generator's matrices; `course` is written after each, and an interrupted search goes on from it.
/// Gives the course, and the matrices that were kept.
///
/// # Errors
/// [`Error::Text`] when the course is that of another search, or every candidate of a matrix fails; those of the first
/// evaluation; [`Error::Training`] when it is interrupted.
pub fn search(
    model: &Model,
    generator: &Generator,
    evaluator: &mut dyn Evaluator,
    (config, path): (&SearchConfig, &Path),
    progress: &Progress,
) -> Result<(Course, BTreeMap<String, Vec<f32>>)> {
    config.check()?;
    generator.fits(model)?;
    let matrices: Vec<String> = generator.names().map(str::to_owned).collect();
    let mut candidate = Candidate { model, changed: BTreeMap::new() };
    let mut course = match resumed(path)? {
        Some(course) => course,
        None => {
            let initial = evaluator.score(&mut candidate)?;
            let (config, evaluator) = (config.clone(), evaluator.describe());
            Course { config, evaluator, matrices: matrices.clone(), initial, steps: Vec::new() }
        }
    };
    if course.config != *config || course.matrices != matrices || course.evaluator != evaluator.describe() {
        let text = format!("{} is the course of another search; remove it, or name another file", path.display());
        return Err(Error::Text(text));
    }
    let search = Search { model, generator, config };
    for step in &course.steps {
        if let Some(number) = step.kept {
            let original = model.tensor(&step.matrix)?;
            candidate.changed.insert(step.matrix.clone(), search.propose(&step.matrix, &original, number)?);
        }
    }
    let shown = progress.stage("search", matrices.len(), course.steps.len());
    for matrix in &matrices[course.steps.len()..] {
        let step = search.step(matrix, course.score(), &mut candidate, evaluator, progress)?;
        shown.message(format!("score {:.5}", step.after));
        course.steps.push(step);
        keep(path, &course)?;
        shown.advance(1)?;
    }
    shown.finish();
    Ok((course, candidate.changed))
}

struct Search<'a> {
    model: &'a Model,
    generator: &'a Generator,
    config: &'a SearchConfig,
}

impl Search<'_> {
    fn step(
        &self,
        matrix: &str,
        before: f64,
        candidate: &mut Candidate<'_>,
        evaluator: &mut dyn Evaluator,
        progress: &Progress,
    ) -> Result<Step> {
        let mut best: Option<(usize, f64, Vec<f32>)> = None;
        let mut tried: Vec<Tried> = Vec::new();
        let original = self.model.tensor(matrix)?;
        let scored = |tried: &[Tried]| tried.iter().filter(|t| t.score.is_some()).count();
        for number in 0..self.config.candidates + self.config.retries {
            if scored(&tried) == self.config.candidates {
                break;
            }
            progress.check()?;
            candidate.changed.insert(matrix.to_owned(), self.propose(matrix, &original, number)?);
            let score = evaluator.score(candidate);
            let values = candidate.changed.remove(matrix).unwrap_or_default();
            match score {
                Ok(score) => {
                    tried.push(Tried { number, score: Some(score), failure: None });
                    if score >= best.as_ref().map_or(before, |best| best.1) {
                        best = Some((number, score, values));
                    }
                }
                Err(Error::Evaluator(failure)) => {
                    progress.note(&format!("{matrix}, candidate {number}: {failure}"));
                    tried.push(Tried { number, score: None, failure: Some(failure) });
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(Tried { failure: Some(failure), .. }) = tried.last().filter(|_| scored(&tried) == 0) {
            return Err(Error::Evaluator(format!("no candidate of {matrix} could be evaluated; the last: {failure}")));
        }
        let (kept, after) = best.as_ref().map_or((None, before), |best| (Some(best.0), best.1));
        if let Some((_, _, values)) = best {
            candidate.changed.insert(matrix.to_owned(), values);
        }
        Ok(Step { matrix: matrix.to_owned(), before, after, kept, tried })
    }

    fn propose(&self, matrix: &str, original: &[f32], number: usize) -> Result<Vec<f32>> {
        use rand::Rng;
        let purpose = format!("{matrix} candidate {number}");
        let seed = random::stream(self.config.seed, &purpose).random();
        let mut to = self.generator.sample_matrix(seed, matrix)?;
        if self.config.proposal == Proposal::Noise {
            to = as_far(original, &to, seed);
        }
        let share = self.config.shares[number % self.config.shares.len()] as f32;
        to.iter_mut().zip(original).for_each(|(to, w)| *to = w + share * (*to - w));
        Ok(to)
    }
}

/// `original` moved in a random direction as far as `generated` is from it.
pub fn as_far(original: &[f32], generated: &[f32], seed: u64) -> Vec<f32> {
    let mut moved = original.to_vec();
    novelty::move_as_far(
        &mut moved,
        generated,
        &random::normal_vec(original.len(), &mut random::stream(seed, "noise")),
    );
    moved
}

fn resumed(path: &Path) -> Result<Option<Course>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path)(e)),
    };
    let text = |e| Error::Text(format!("{} is no course of a search: {e}", path.display()));
    serde_json::from_slice(&bytes).map(Some).map_err(text)
}

fn keep(path: &Path, course: &Course) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(course).map_err(|e| Error::Text(e.to_string()))?;
    write_whole(path, &bytes)
}
