//! Where samples may come from, and how the best are found: see `docs/CANDIDATES.md`.

pub(super) use inference::{Origin, RankBy, Scores};
use registry::CheckpointId;

use super::request::NewGeneration;
use crate::error::{Error, Result};

/// A network that may be a sample.
pub(crate) type Candidate = inference::Candidate<CheckpointId>;

/// Networks that were generated, in the order of the noise.
pub(super) fn generated(weights: Vec<Vec<f32>>) -> Vec<Candidate> {
    let of = |(draw, theta)| Candidate { draw: Some(draw), ..Candidate::new(Origin::Generated, theta) };
    weights.into_iter().enumerate().map(of).collect()
}

/// Which candidates there are to be, and how they are ranked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) origins: Vec<Origin>,
    /// Whether the client asked for them.
    pub(super) explicit: bool,
    /// Nothing: in the order of the noise.
    pub(super) rank_by: Option<RankBy>,
}

impl Plan {
    /// The plan of a request for a generator of linear heads, or of `architecture`.
    ///
    /// # Errors
    /// `invalid_value` in `candidates`, `rank_by` or `validation`.
    pub(super) fn of(new: &NewGeneration, head: bool, architecture: &str, predictor: bool) -> Result<Self> {
        let invalid = |field: &str, rule: String| Err(Error::ValueInvalid(rule).in_field(field));
        if new.rank_by == Some(RankBy::Predictor) && !predictor {
            let rule = "rank_by is predictor and this generator has none: rank by leave_one_out or validation, or train \
                        it with predictor.steps above 0";
            return invalid("rank_by", rule.into());
        }
        match (new.rank_by, &new.validation) {
            (Some(RankBy::Validation), None) => {
                let rule = "rank_by is validation and there is no validation data: give labelled `validation` data, or \
                            rank by leave_one_out";
                return invalid("validation", rule.into());
            }
            (rank_by, Some(_)) if rank_by != Some(RankBy::Validation) => {
                let rule = "validation data is given and does not decide: set rank_by to validation, or give it as \
                            `evaluation` to have it measured only";
                return invalid("validation", rule.into());
            }
            _ => {}
        }
        let explicit = new.candidates.is_some();
        let origins = match &new.candidates {
            None if head => Origin::ALL.to_vec(),
            None => vec![Origin::Generated],
            Some(asked) => asked.clone(),
        };
        if origins.is_empty() {
            return invalid("candidates", "candidates is empty: name one of generated, retrieved, closed_form".into());
        }
        if let Some(twice) = origins.iter().enumerate().find(|(at, origin)| origins[..*at].contains(origin)) {
            return invalid("candidates", format!("{} is named twice: name it once", twice.1.as_str()));
        }
        if origins.contains(&Origin::ClosedForm) && !head {
            let rule = format!(
                "closed_form is for linear heads, and this generator makes {architecture}: leave closed_form out"
            );
            return invalid("candidates", rule);
        }
        let choice = (origins != [Origin::Generated]).then_some(RankBy::LeaveOneOut);
        Ok(Self { origins, explicit, rank_by: new.rank_by.or(choice) })
    }

    pub(super) fn has(&self, origin: Origin) -> bool {
        self.origins.contains(&origin)
    }
}
