//! Where samples may come from, and how the best are found: see `docs/CANDIDATES.md`.

use inference::ClosedForm;
use registry::CheckpointId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::request::NewGeneration;
use crate::error::{Error, Result};

/// Where a sample comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The generator's denoiser.
    Generated,
    /// A checkpoint of the generator's zoo whose dataset is near.
    Retrieved,
    /// Ridge regression or nearest centroid on the support examples; for linear heads.
    ClosedForm,
}

impl Origin {
    const ALL: [Self; 3] = [Self::Generated, Self::Retrieved, Self::ClosedForm];

    /// Its name in JSON and in the database.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Retrieved => "retrieved",
            Self::ClosedForm => "closed_form",
        }
    }
}

/// What decides which candidates are best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RankBy {
    /// Accuracy on support examples that are held out, one of each class at a time.
    LeaveOneOut,
    /// Accuracy on the labelled data of `validation`.
    Validation,
}

/// What a candidate was found to be worth; accuracies from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Scores {
    /// Accuracy that candidates of this origin (and closed form) reached on support examples held out; one number for
    /// all of them.
    #[schema(required, example = 0.92)]
    pub(super) leave_one_out: Option<f64>,
    /// Accuracy on the validation data.
    #[schema(required, example = 0.95)]
    pub(super) validation: Option<f64>,
    /// Accuracy on the support examples, which it was made from.
    #[schema(required, example = 1.0)]
    pub(super) support_accuracy: Option<f64>,
    /// Mean cross-entropy on the support examples, in nats.
    #[schema(required, example = 0.03)]
    pub(super) support_loss: Option<f64>,
}

/// A network that may be a sample.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(super) origin: Origin,
    /// Of a closed form: which.
    pub(super) method: Option<ClosedForm>,
    /// Of a generated one: which draw of the noise.
    pub(super) draw: Option<usize>,
    /// Of a retrieved one: the checkpoint.
    pub(super) checkpoint: Option<CheckpointId>,
    pub(super) theta: Vec<f32>,
    /// None where nothing was ranked.
    pub(super) scores: Option<Scores>,
    /// Loss on the validation data.
    pub(super) validation_loss: Option<f64>,
}

impl Candidate {
    pub(super) fn new(origin: Origin, theta: Vec<f32>) -> Self {
        Self { origin, method: None, draw: None, checkpoint: None, theta, scores: None, validation_loss: None }
    }

    /// The candidates that have one leave-one-out score.
    pub(super) fn group(&self) -> (Origin, Option<ClosedForm>) {
        (self.origin, self.method)
    }
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
    pub(super) fn of(new: &NewGeneration, head: bool, architecture: &str) -> Result<Self> {
        let invalid = |field: &str, rule: String| Err(Error::ValueInvalid(rule).in_field(field));
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
