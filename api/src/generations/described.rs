//! Generations for a described task: from a text to adapters (paper 4.3).

use bytes::Bytes;
use language::text::Descriptions;

use super::Timings;
use super::candidates::{self, Origin};
use super::request::NewGeneration;
use super::work::{Clock, Job, Made};
use crate::error::{Error, Result};
use crate::limits::Cancel;
use crate::texts;

/// Of a text that is far.
const FAR: &str = "the description is far from those of the generator's zoo (distance): what is generated is likely to be \
                   for another task";

/// Refuses what needs labelled examples.
///
/// # Errors
/// `invalid_value` in the first field that does.
pub(super) fn check(new: &NewGeneration) -> Result<()> {
    let others = new.candidates.as_ref().is_some_and(|asked| asked.iter().any(|origin| *origin != Origin::Generated));
    let given = [
        ("candidates", others),
        ("rank_by", new.rank_by.is_some()),
        ("validation", new.validation.is_some()),
        ("evaluation", new.evaluation.is_some()),
        ("evaluate", new.evaluate == Some(true)),
        ("refine", new.refine.is_some()),
        ("recalibrate", new.recalibrate == Some(true)),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => {
            let rule = format!("{field} needs labelled examples, and this generator takes a text: leave it out");
            Err(Error::ValueInvalid(rule).in_field(field))
        }
    }
}

impl Job {
    /// Does all of it for a text; blocks.
    pub(super) fn run_described(
        &self,
        encoder: &Descriptions,
        cancel: &Cancel,
        report: &dyn Fn(usize, usize),
    ) -> Result<Made> {
        let mut clock = Clock::start();
        let text = self.dataset.text().map_err(|error| error.in_field("dataset"))?;
        let mut timings = Timings { parse_ms: clock.lap(), ..Timings::default() };
        let values = encoder.embed(text).map_err(Error::Language)?;
        let embedding = self.generator.embed(&values)?;
        timings.encode_ms = clock.lap();
        let nearest = encoder.nearest(&values);
        let distance = nearest.as_ref().map(|nearest| nearest.distance);
        let near = nearest.is_some_and(|nearest| nearest.is_near());
        // Which row is which class follows from the tasks that were learned from.
        let classes = nearest.filter(|_| near).map(|nearest| nearest.task.classes.clone()).unwrap_or_default();
        let generated = self.generator.generate(&embedding, &self.options, &mut |step, steps| {
            report(step, steps);
            !cancel.is_set()
        })?;
        timings.sample_ms = generated.timings.sample_ms;
        let dataset_digest = texts::digest(text);
        let samples = candidates::generated(generated.weights);
        let file = |sample| self.file(sample, &dataset_digest, &classes).map(Bytes::from);
        let files = samples.iter().map(file).collect::<inference::Result<_>>()?;
        timings.decode_ms = clock.lap() - timings.sample_ms;
        Ok(Made {
            dataset_id: self.dataset.id(),
            architecture: self.generator.architecture().name.clone(),
            distance,
            class_distances: None,
            files,
            evaluations: Vec::new(),
            evaluation_digest: None,
            validation_digest: None,
            warnings: if near { Vec::new() } else { vec![FAR.into()] },
            dataset_digest,
            classes,
            samples,
            timings,
        })
    }
}
