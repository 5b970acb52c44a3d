//! Makes candidates and finds the best of them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use datasets::Dataset;
use inference::{ClosedForm, Embedding, Generator, Part, SampleOptions, Support, Timings};

use super::candidates::{Candidate, Origin, Plan, RankBy, Scores};
use super::retrieve::Retriever;
use crate::error::Result;
use crate::limits::Cancel;

/// Generated candidates of a fold; more would say little more about where they come from.
const FOLD_SAMPLES: usize = 8;

/// Makes the candidates of a request.
pub(super) struct Maker<'a> {
    pub(super) generator: &'a Generator,
    pub(super) options: &'a SampleOptions,
    pub(super) plan: &'a Plan,
    pub(super) retriever: Option<&'a mut Retriever>,
    pub(super) cancel: &'a Cancel,
    /// Learns of the steps of the request's own samples.
    pub(super) report: &'a dyn Fn(usize, usize),
}

/// What was ranked: the best first.
pub(super) struct Ranked {
    pub(super) candidates: Vec<Candidate>,
    pub(super) warnings: Vec<String>,
    /// Of the request's own samples.
    pub(super) timings: Timings,
}

impl Maker<'_> {
    /// Makes all candidates of a support, gives them their scores, and puts the best first.
    pub(super) fn rank(
        mut self,
        support: &Support,
        embedding: &Embedding,
        validation: Option<&Dataset>,
        rank_by: RankBy,
    ) -> Result<Ranked> {
        let (mut candidates, timings) = self.make(&support.whole(), embedding, self.options.count, true)?;
        let mut warnings = Vec::new();
        let mut by = By::Validation;
        match rank_by {
            RankBy::Validation => self.validate(&mut candidates, validation)?,
            RankBy::LeaveOneOut if support.folds() == 0 => {
                by = By::SupportLoss;
                warnings.push(
                    "leave-one-out needs two different examples of each class, and one has less: candidates are ranked \
                     by their loss on the examples that they were made from, which says little; give more examples, or \
                     rank by validation"
                        .to_owned(),
                );
            }
            RankBy::LeaveOneOut => {
                by = By::LeaveOneOut;
                let found = self.leave_one_out(support)?;
                for candidate in &mut candidates {
                    let score = found.get(&candidate.group()).copied();
                    candidate.scores.get_or_insert_default().leave_one_out = score;
                }
            }
        }
        sort(&mut candidates, by);
        Ok(Ranked { candidates, warnings, timings })
    }

    /// The candidates of a part of the support, with their scores on it.
    fn make(
        &mut self,
        part: &Part,
        embedding: &Embedding,
        count: usize,
        reports: bool,
    ) -> Result<(Vec<Candidate>, Timings)> {
        let mut candidates = Vec::new();
        let mut timings = Timings::default();
        if self.plan.has(Origin::ClosedForm) {
            for form in ClosedForm::ALL {
                let theta = self.generator.closed_form(form, &part.data)?;
                candidates.push(Candidate { method: Some(form), ..Candidate::new(Origin::ClosedForm, theta) });
            }
        }
        if let Some(retriever) = &mut self.retriever {
            for (id, theta) in retriever.nearest(&embedding.dataset)? {
                candidates.push(Candidate { checkpoint: Some(id), ..Candidate::new(Origin::Retrieved, theta) });
            }
        }
        if self.plan.has(Origin::Generated) {
            let options = SampleOptions { count, ..self.options.clone() };
            let generated = self.generator.generate(embedding, &options, &mut |step, steps| {
                if reports {
                    (self.report)(step, steps);
                }
                !self.cancel.is_set()
            })?;
            timings = generated.timings;
            for (draw, theta) in generated.weights.into_iter().enumerate() {
                candidates.push(Candidate { draw: Some(draw), ..Candidate::new(Origin::Generated, theta) });
            }
        }
        for candidate in &mut candidates {
            self.cancel.check()?;
            let found = self.generator.evaluate(&candidate.theta, &part.data)?;
            let scores = candidate.scores.get_or_insert_default();
            (scores.support_accuracy, scores.support_loss) = (Some(found.accuracy), Some(found.loss));
        }
        Ok((candidates, timings))
    }

    fn validate(&self, candidates: &mut [Candidate], data: Option<&Dataset>) -> Result<()> {
        let Some(data) = data else { return Ok(()) };
        for candidate in candidates {
            self.cancel.check()?;
            let found = self.generator.evaluate(&candidate.theta, data)?;
            candidate.validation_loss = Some(found.loss);
            candidate.scores.get_or_insert_default().validation = Some(found.accuracy);
        }
        Ok(())
    }

    /// Accuracy on held-out examples of each origin, and of each closed form. A fold does what the answer does: of an
    /// origin's candidates, the one that is best on the rest is tried.
    fn leave_one_out(&mut self, support: &Support) -> Result<BTreeMap<(Origin, Option<ClosedForm>), f64>> {
        let folds: Vec<_> = (0..support.folds()).map(|fold| support.fold(fold)).collect();
        let features: Vec<_> = folds.iter().map(|fold| fold.rest.features.clone()).collect();
        let embeddings = self.generator.embed_many(&features)?;
        let mut sums: BTreeMap<_, (usize, f64)> = BTreeMap::new();
        for (fold, embedding) in folds.iter().zip(&embeddings) {
            let count = self.options.count.min(FOLD_SAMPLES);
            let (mut candidates, _) = self.make(&fold.rest, embedding, count, false)?;
            sort(&mut candidates, By::Support);
            let mut tried = Vec::new();
            for candidate in &candidates {
                if !tried.contains(&candidate.group()) {
                    tried.push(candidate.group());
                    let found = self.generator.evaluate(&candidate.theta, &fold.held_out)?;
                    let sum = sums.entry(candidate.group()).or_default();
                    // Examples, and not their share: sums of whole numbers tie exactly.
                    *sum = (sum.0 + 1, sum.1 + (found.accuracy * found.examples as f64).round());
                }
            }
        }
        let examples: usize = folds.iter().map(|fold| fold.held_out.len()).sum();
        // An origin that some fold had nothing of has no score.
        sums.retain(|_, (times, _)| *times == folds.len());
        Ok(sums.into_iter().map(|(group, (_, right))| (group, right / examples.max(1) as f64)).collect())
    }
}

/// What decides first.
#[derive(Clone, Copy, PartialEq)]
enum By {
    LeaveOneOut,
    Validation,
    /// Accuracy on the support.
    Support,
    SupportLoss,
}

/// Puts the best first. Ties go to the closed form, which is cheap and the same for each seed; then to the better on the
/// support (with [`By::Validation`]: to the smaller loss there).
fn sort(candidates: &mut [Candidate], by: By) {
    candidates.sort_by(|a, b| {
        let of = |candidate: &Candidate| candidate.scores.unwrap_or_default();
        let (x, y): (Scores, Scores) = (of(a), of(b));
        let first = match by {
            By::LeaveOneOut => larger(x.leave_one_out, y.leave_one_out),
            By::Validation => larger(x.validation, y.validation),
            By::Support => Ordering::Equal,
            By::SupportLoss => smaller(x.support_loss, y.support_loss),
        };
        let closed = |candidate: &Candidate| candidate.origin != Origin::ClosedForm;
        first
            .then(closed(a).cmp(&closed(b)))
            .then(smaller(a.validation_loss, b.validation_loss))
            .then(larger(x.support_accuracy, y.support_accuracy))
            .then(smaller(x.support_loss, y.support_loss))
    });
}

/// The larger first, and what is not known last.
fn larger(a: Option<f64>, b: Option<f64>) -> Ordering {
    smaller(a.map(|v| -v), b.map(|v| -v))
}

/// The smaller first, and what is not known last.
fn smaller(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(origin: Origin, leave_one_out: Option<f64>, accuracy: f64, loss: f64) -> Candidate {
        let scores =
            Scores { leave_one_out, support_accuracy: Some(accuracy), support_loss: Some(loss), ..Scores::default() };
        Candidate { scores: Some(scores), ..Candidate::new(origin, vec![loss as f32]) }
    }

    fn order(mut candidates: Vec<Candidate>, by: By) -> Vec<(Origin, f32)> {
        sort(&mut candidates, by);
        candidates.iter().map(|c| (c.origin, c.theta[0])).collect()
    }

    #[test]
    fn the_origins_score_comes_first_and_ties_go_to_the_closed_form() {
        use Origin::{ClosedForm, Generated, Retrieved};
        let of = || {
            vec![
                candidate(Generated, Some(0.8), 0.9, 3.0),
                candidate(Generated, Some(0.8), 1.0, 2.0),
                candidate(Generated, Some(0.8), 1.0, 1.0),
                candidate(Retrieved, None, 1.0, 0.0),
                candidate(ClosedForm, Some(0.8), 0.5, 4.0),
                candidate(ClosedForm, Some(0.7), 1.0, 5.0),
            ]
        };
        let expected = [
            (ClosedForm, 4.0),
            (Generated, 1.0),
            (Generated, 2.0),
            (Generated, 3.0),
            (ClosedForm, 5.0),
            (Retrieved, 0.0),
        ];
        assert_eq!(order(of(), By::LeaveOneOut), expected);
        let by_loss: Vec<f32> = order(of(), By::SupportLoss).into_iter().map(|(_, loss)| loss).collect();
        assert_eq!(by_loss, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn validation_decides_by_accuracy_then_loss() {
        let of = |origin, accuracy, loss: f64| {
            let scores = Scores { validation: Some(accuracy), ..Scores::default() };
            let theta = vec![loss as f32];
            Candidate { scores: Some(scores), validation_loss: Some(loss), ..Candidate::new(origin, theta) }
        };
        let candidates = vec![
            of(Origin::Generated, 0.9, 0.5),
            of(Origin::Retrieved, 0.9, 0.4),
            of(Origin::Generated, 0.95, 9.0),
            of(Origin::ClosedForm, 0.9, 7.0),
        ];
        let order: Vec<f32> = order(candidates, By::Validation).into_iter().map(|(_, loss)| loss).collect();
        assert_eq!(order, [9.0, 7.0, 0.4, 0.5]);
    }
}
